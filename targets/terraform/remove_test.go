package terraform_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
	"github.com/holdfast-dev/holdfast/targets/terraform"
	"github.com/holdfast-dev/holdfast/verify"
)

// end applies the end of a stack under a grant of a real gate.
func end(t testing.TB, target *terraform.Target, p plan.Plan) (targets.Receipt, error) {
	t.Helper()
	g, err := gate.New(&targetstest.Ledger{}, gate.Limits{}).Admit(t.Context(), gate.Request{
		Plan: p, Removal: true,
		Commit:  verify.Evidence{Subject: verify.Subject{Kind: "commit", Reference: p.Revision.ID}, Checks: []verify.Check{{Name: "signature", OK: true}}},
		Report:  verify.Report{Environment: p.Environment},
		Planned: policy.Decision{Stage: policy.StagePlan, Of: p.Digest(), Rules: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return target.Apply(t.Context(), g)
}

func removal(t testing.TB, target *terraform.Target, r targets.Rendered, orphan bool) plan.Plan {
	t.Helper()
	p, err := target.Removal(t.Context(), r, orphan)
	if err != nil {
		t.Fatalf("Removal: %v", err)
	}
	return p
}

// things is a configuration of two resources, one of them with a secret inside,
// and an output.
const things = `
variable "password" {
  type      = string
  sensitive = true
}
resource "terraform_data" "one" { input = var.password }
resource "terraform_data" "two" {
  for_each = toset(["a"])
  input    = each.key
}
output "two" { value = terraform_data.two["a"].output }
`

func stateFiles(t testing.TB, l *lab) []string {
	t.Helper()
	return glob(t, filepath.Join(l.cfg.StateDir, "test", "shop", "*"))
}

func TestRemovalDestroys(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		for _, workspace := range []string{"", "blue"} {
			l := newLab(t, e)
			l.spec.Workspace = workspace
			l.cfg.Environ["TF_VAR_password"] = secret
			target := l.target(t)
			r, _ := l.deploy(t, target, snapshot("c", map[string]string{"infra/main.tf": things}))
			p := removal(t, target, r, false)
			if p.Count(plan.Delete) != 3 || len(p.Documents) != 1 || p.Documents[0].Name != terraform.PlanDocument {
				t.Errorf("changes: %s", asJSON(t, p.Changes))
			}
			if _, err := end(t, target, p); err != nil {
				t.Fatal(err)
			}
			if left := stateFiles(t, l); len(left) > 0 {
				t.Errorf("workspace %q: %q are left", workspace, left)
			}
		}
	})
}

func TestRemovalIsNotStale(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Environ["TF_VAR_password"] = secret
		target := l.target(t)
		r, _ := l.deploy(t, target, snapshot("c1", map[string]string{"infra/main.tf": things}))
		deleting, letting := removal(t, target, r, false), removal(t, target, r, true)
		l.deploy(t, target, snapshot("c2", map[string]string{"infra/main.tf": strings.ReplaceAll(things, `"a"`, `"b"`)}))
		for _, p := range []plan.Plan{deleting, letting} {
			if _, err := end(t, target, p); !errors.Is(err, targets.ErrStale) {
				t.Errorf("%s over another state: %v", p.Changes[0].Action, err)
			}
		}
		deleting.Private = letting.Private
		if _, err := end(t, target, deleting); err == nil {
			t.Error("a plan with another's payload was applied")
		}
		if left := stateFiles(t, l); len(left) == 0 {
			t.Error("the state is gone")
		}
	})
}

func TestPreventDestroyHoldsTheRemoval(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		target := l.target(t)
		r, _ := l.deploy(t, target, snapshot("c", map[string]string{"infra/main.tf": `
resource "terraform_data" "precious" {
  lifecycle {
    prevent_destroy = true
  }
}`}))
		_, err := target.Removal(t.Context(), r, false)
		wantFault(t, err, fault.Invalid, "terraform_data.precious", "without prevent_destroy, or with prune: orphan")
		if p := removal(t, target, r, true); len(p.Changes) != 1 {
			t.Errorf("changes: %s", asJSON(t, p.Changes))
		}
	})
}

func TestOrphanMovesTheStateAside(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Environ["TF_VAR_password"] = secret
		target := l.target(t)
		r, _ := l.deploy(t, target, snapshot("c", map[string]string{"infra/main.tf": things}))
		p := removal(t, target, r, true)
		if len(p.Changes) != 2 || p.Changes[1].ID.Name != `terraform_data.two["a"]` || p.Changes[0].Before == p.Changes[1].Before {
			t.Errorf("changes: %s", asJSON(t, p.Changes))
		}
		name := filepath.Join(l.cfg.StateDir, "test", "shop", "terraform.tfstate")
		before, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}

		// Somebody who holds the tool's lock is waited for. This process cannot
		// shut itself out, so another one holds it.
		release := lockedElsewhere(t, name)
		_, err = end(t, target, p)
		wantFault(t, err, fault.Waiting, "the state is locked")
		release()

		rec, err := end(t, target, p)
		if err != nil || len(rec.Outcomes) != 2 || rec.Outcomes[0].Err+rec.Outcomes[1].Err != "" {
			t.Fatalf("receipt %s, error %v", asJSON(t, rec), err)
		}
		aside := glob(t, name+".orphaned-*")
		if len(aside) != 1 {
			t.Fatalf("files: %q", stateFiles(t, l))
		}
		after, err := os.ReadFile(aside[0])
		if err != nil || string(after) != string(before) {
			t.Errorf("the state was changed on its way (%v)", err)
		}
		if info, err := os.Stat(aside[0]); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("the state that was moved aside is open to others: %v, %v", info, err)
		}
		if _, err := os.Stat(name); !os.IsNotExist(err) {
			t.Errorf("the state is still there: %v", err)
		}
	})
}

// lockedElsewhere has another process hold the lock of a file until release is called.
func lockedElsewhere(t testing.TB, name string) (release func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(exe, []string{exe, "-test.run=^TestLockHolder$"}, &os.ProcAttr{
		Env: []string{"HOLDFAST_TEST_LOCK=" + name}, Files: []*os.File{in, out, os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{in, out} {
		_ = f.Close() // the child has its own
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the other process did not lock: %v", err)
	}
	return func() {
		_ = stdin.Close()
		_ = stdout.Close()
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestLockHolder is the other process of lockedElsewhere.
func TestLockHolder(t *testing.T) {
	name := os.Getenv("HOLDFAST_TEST_LOCK")
	if name == "" {
		t.Skip("only as another test's process")
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("locked\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}
