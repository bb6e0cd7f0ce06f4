package terraform

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// The end of a stack. Its resources are destroyed by a plan like any other: the
// tool makes it, it is masked and judged, and what was judged is applied. Or
// they are let go of: then nothing in the world changes, and the state that the
// daemon keeps is moved aside under a name that no run looks for. A state that a
// configured backend keeps stays where it is: it is the operator's.

const opRemove = "targets/terraform.Removal"

// ending says how a plan ends its stack.
type ending string

// The endings. The zero ending is none.
const (
	destroyed ending = "destroyed"
	orphaned  ending = "orphaned"
)

var _ targets.Remover = (*Target)(nil)

// Removal implements [targets.Remover]. A resource that its configuration keeps
// from being destroyed makes it an error of kind fault.Invalid.
func (t *Target) Removal(ctx context.Context, r targets.Rendered, orphan bool) (plan.Plan, error) {
	remove := t.destruction
	if orphan {
		remove = t.release
	}
	p, err := remove(ctx, r)
	return p, fault.WithStack(t.spec.Stack, t.scrub(err))
}

// destruction plans to destroy everything in the state.
func (t *Target) destruction(ctx context.Context, r targets.Rendered) (plan.Plan, error) {
	p, err := t.saved(ctx, r, &sealed{ends: destroyed})
	if err != nil && strings.Contains(err.Error(), "nstance cannot be destroyed") { // Terraform writes "Instance", OpenTofu "Resource instance"
		return plan.Plan{}, fault.New(fault.Invalid, opRemove,
			"bring the stack file back without prevent_destroy, or with prune: orphan, and remove it again in a later commit", "%s", err)
	}
	p.Keeps = 0
	return p, err
}

// removals returns the changes of a plan that destroys everything. That only the
// state changes means here that something goes from it.
func removals(changes []plan.Change) []plan.Change {
	for i := range changes {
		if changes[i].ID.Kind == kindState {
			changes[i].Action = plan.Delete
		}
	}
	return changes
}

// release plans to let go of everything in the state.
func (t *Target) release(ctx context.Context, r targets.Rendered) (plan.Plan, error) {
	s := &sealed{ends: orphaned}
	p := plan.Plan{Documents: r.Documents}
	err := t.planning(ctx, r, s, func(ctx context.Context, u *run) error {
		now, err := u.state(ctx)
		p.Changes = now.releases(t)
		return err
	})
	if err != nil {
		return plan.Plan{}, err
	}
	return t.bound(r, s, p)
}

// letGo moves the state aside, if it still holds what was granted.
func (u *run) letGo(ctx context.Context, p plan.Plan, rec *targets.Receipt) error {
	now, err := u.state(ctx)
	if err != nil {
		return err
	}
	found := now.releases(u.t)
	if err := fresh(p.Changes, found); err != nil {
		return err
	}
	if len(found) != len(p.Changes) {
		return fault.New(fault.Transient, opRemove, "", "the state has other resources now: %w", targets.ErrStale)
	}
	if err := u.moveState(); err != nil {
		return err
	}
	for i := range rec.Outcomes {
		rec.Outcomes[i].Err = ""
	}
	return nil
}

// state is what the tool says that it manages, with its secrets in clear.
type state struct {
	Values struct {
		Outputs map[string]any `json:"outputs"`
		Root    stateModule    `json:"root_module"`
	} `json:"values"`
}

type stateModule struct {
	Resources []struct {
		Address string          `json:"address"`
		Mode    string          `json:"mode"`
		Type    string          `json:"type"`
		Deposed string          `json:"deposed_key"`
		Values  json.RawMessage `json:"values"`
	} `json:"resources"`
	Children []stateModule `json:"child_modules"`
}

// state reads the newest state. It writes nothing.
func (u *run) state(ctx context.Context) (state, error) {
	var raw bytes.Buffer
	err := u.tool(ctx, u.t.cfg.Limits.PlanJSON, func(line []byte) { raw.Write(line) }, "show", "-json", "-no-color")
	if err != nil {
		return state{}, u.failure(opRemove, "", err)
	}
	var s state
	if err := json.Unmarshal(raw.Bytes(), &s); err != nil {
		return state{}, fault.New(fault.Internal, opRemove, "", "the state's JSON: %w", err)
	}
	return s, nil
}

// releases returns the changes that let go of what the state holds.
func (s state) releases(t *Target) []plan.Change {
	out := s.Values.Root.releases(t, nil)
	slices.SortFunc(out, func(a, b plan.Change) int { return a.ID.Compare(b.ID) })
	return out
}

func (m stateModule) releases(t *Target, out []plan.Change) []plan.Change {
	for _, r := range m.Resources {
		if r.Mode != "managed" {
			continue
		}
		id := plan.ObjectID{Kind: r.Type, Name: t.cfg.Masker.Scrub(r.Address)}
		if r.Deposed != "" {
			id.Name += deposedMark + r.Deposed + ")"
		}
		out = append(out, plan.Change{
			ID: id, Action: plan.Release, Before: keyed(t.cfg.Masker, "state", r.Values),
			Reason: "the stack ends and lets go of it: it stays, and nothing manages it any more",
		})
	}
	for _, c := range m.Children {
		out = c.releases(t, out)
	}
	return out
}

// workspaceState is the file of the stack's workspace, below the folder of the state.
func (u *run) workspaceState() string {
	if u.r.workspace == "default" {
		return filepath.Base(u.t.stateFile())
	}
	return filepath.Join(workspacesDir, u.r.workspace, "terraform.tfstate")
}

// removeState removes the state that the daemon keeps, once nothing is in it.
func (u *run) removeState(ctx context.Context) error {
	if u.r.config.backend != "" {
		return nil
	}
	left, err := u.state(ctx)
	if err != nil {
		return err
	}
	if len(left.Values.Outputs) > 0 || len(left.releases(u.t)) > 0 { // what was only read does not count
		return fault.New(fault.Transient, opRemove, "", "the state still holds something: %w", targets.ErrStale)
	}
	return u.withState(func(root *os.Root, name string) error {
		// The backup is the state before the end, secrets included.
		if err := root.Remove(name + ".backup"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.Remove(name); err != nil {
			return err
		}
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if root.Remove(dir) != nil { // something else is in it
				return nil
			}
		}
		_ = os.Remove(u.t.stateDir()) // something else may be in it
		return nil
	})
}

// moveState moves the state that the daemon keeps aside, as
// "terraform.tfstate.orphaned-20060102T150405Z" beside it. It holds secrets as
// before, and only the daemon's user can read it.
func (u *run) moveState() error {
	if u.r.config.backend != "" {
		return nil
	}
	return u.withState(func(root *os.Root, name string) error {
		if err := root.Chmod(name, 0o600); err != nil {
			return err
		}
		return root.Rename(name, name+".orphaned-"+time.Now().UTC().Format("20060102T150405Z"))
	})
}

// withState calls f while nobody else uses the state that the daemon keeps. It
// does nothing where there is none. The lock is the one that the tool takes:
// fcntl(2) on the file. Programs of the sandbox can write to the folder: no link
// is followed out of it.
func (u *run) withState(f func(root *os.Root, name string) error) error {
	name := u.workspaceState()
	root, err := os.OpenRoot(u.t.stateDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Transient, opRemove, "look at the state directory", err)
	}
	defer root.Close() //nolint:errcheck // only a handle on a folder
	file, err := root.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	failed := func(err error) error {
		return fault.Wrap(fault.Transient, opRemove, "look at the state directory: full or read-only?", fmt.Errorf("the stack's state: %w", err))
	}
	if err != nil {
		return failed(err)
	}
	defer file.Close() //nolint:errcheck // ends the lock; nothing was written through it
	whole := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}
	if err := syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &whole); err != nil {
		return fault.New(fault.Waiting, opRemove, "wait for whoever holds the lock", "the state is locked: %w", err)
	}
	if err := f(root, name); err != nil {
		return failed(err)
	}
	return nil
}
