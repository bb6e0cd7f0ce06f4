package reconciler

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

func TestState(t *testing.T) {
	t.Parallel()
	d := stateDir(t.TempDir())
	if kept, err := d.stacks("repo"); err != nil || len(kept) != 0 {
		t.Errorf("nothing: %v, %v", kept, err)
	}
	if err := errors.Join(d.forget("a"), d.forgetRollback("a"), d.update("a", func(*stackState) { t.Error("there is nothing to update") })); err != nil {
		t.Error(err)
	}
	for name, st := range map[string]stackState{"a": {Repository: "repo", Dir: "a"}, "other": {Repository: "other"}} {
		if err := d.write(d.path("stacks", name), st); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"stacks/broken.json": "{", "stacks/a.txt": "notes", "rollbacks/broken.json": "{"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(string(d), name)), 0o700), os.WriteFile(filepath.Join(string(d), name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.update("a", func(st *stackState) { st.Held = true }); err != nil {
		t.Error(err)
	}
	kept, err := d.stacks("repo")
	if len(kept) != 1 || kept["a"].Dir != "a" || !kept["a"].Held {
		t.Errorf("kept: %+v", kept)
	}
	if fault.KindOf(err) != fault.Invalid || err == nil || !strings.Contains(err.Error(), "broken.json") || strings.Contains(err.Error(), "a.txt") {
		t.Errorf("what is broken: %v", err)
	}
	if err := d.update("broken", func(*stackState) { t.Error("there is nothing to update") }); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("update of what is broken: %v", err)
	}
	if rbs, err := d.rollbacks(); err != nil || len(rbs) != 1 || rbs[0].Stack != "broken" || fault.KindOf(rbs[0].broken) != fault.Invalid || rbs[0].broken == nil {
		t.Errorf("rollbacks: %+v, %v", rbs, err)
	}
	for _, dir := range []string{"stacks/full.json/x", "rollbacks/full.json/x"} {
		if err := os.MkdirAll(filepath.Join(string(d), dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if d.forget("full") == nil || d.forgetRollback("full") == nil {
		t.Error("what cannot be removed is forgotten")
	}
	if d.write(d.path("stacks", "full"), stackState{}) == nil {
		t.Error("what cannot be written is kept")
	}
	if err := errors.Join(d.saveRollback(&rollback{Stack: "a"}), d.forgetRollback("a")); err != nil {
		t.Error(err)
	}
}

// kept returns the state of a bed whose stack "a" stands at commit-1, and a
// reconciler that starts from it.
func (b *bed) kept() (*Reconciler, stackState) {
	b.t.Helper()
	b.applied("a").Close()
	r := b.new()
	b.t.Cleanup(r.Close)
	kept, err := r.state.stacks("repo")
	if err != nil || kept["a"].Rendered == "" {
		b.t.Fatalf("%+v, %v", kept, err)
	}
	b.with(func() { clear(b.calls) })
	return r, kept["a"]
}

// After a restart only what was granted is enforced without a new judgement.
func TestTakeUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		before   func(*bed, *stackState)
		stands   bool
		restores bool
	}{
		{"what was granted", func(*bed, *stackState) {}, true, true},
		{"what renders to something else", func(_ *bed, st *stackState) { st.Rendered = digest.FromString("x") }, false, false},
		{"what does not render", func(b *bed, _ *stackState) { b.fails("render a", fault.Invalid) }, false, false},
		{"what cannot be pinned", func(b *bed, _ *stackState) { b.fails("pin a", fault.Invalid) }, false, false},
		{"what panics", func(b *bed, _ *stackState) { b.panics = "a" }, false, false},
		{"what is being removed", func(_ *bed, st *stackState) { st.Removing = true }, true, false},
		{"what was revoked", func(_ *bed, st *stackState) { st.Rests = []verify.Anchor{leaked} }, true, false},
		{"what has another key", func(_ *bed, st *stackState) { st.Key = "other" }, false, false},
		{"what was elsewhere", func(_ *bed, st *stackState) { st.Dir, st.Key = "b", "other" }, false, false},
		{"what belongs to another repository", func(_ *bed, st *stackState) { st.Repository = "other" }, false, false},
		{"what cannot run any more", func(b *bed, _ *stackState) { b.with(func() { b.bad["a"] = errors.New("no") }) }, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r, st := b.kept()
			c.before(b, &st)
			if err := r.state.write(r.state.path("stacks", "a"), st); err != nil {
				t.Fatal(err)
			}
			r.Revocations.Add(verify.Revocation{Anchor: leaked})
			if err := r.TakeUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := r.stack("a")
			if stands := s != nil && s.granted() != nil; stands != c.stands {
				t.Fatalf("it stands: %t", stands)
			}
			if !c.stands {
				return
			}
			b.tamper("a", "edited")
			s.pend()
			_ = r.repair(t.Context(), s)
			if restored := b.object("a") == "v1"; restored != c.restores {
				t.Errorf("it was restored: %t", restored)
			}
		})
	}
}

// A stack whose newest content was not applied is taken up from the commit that
// it was granted with.
func TestTakeUpFromTheOlderCommit(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.kept()
	b.push(map[string]string{"a/object": "v2"})
	if err := r.state.saveRepository("repo", repositoryState{Verified: "commit-2"}); err != nil {
		t.Fatal(err)
	}
	if err := r.TakeUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := r.stack("a").granted(); d == nil || d.rendered.Private != "v1" || r.stack("a").unchanged() {
		t.Errorf("enforced: %+v", d)
	}
}

// A newest request that is refused does not end what was granted before a restart.
func TestTakeUpOfARefusedRequest(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.kept()
	b.push(nil)
	if err := r.state.saveRepository("repo", repositoryState{Verified: "commit-2"}); err != nil {
		t.Fatal(err)
	}
	inner := r.repos["repo"].Discover
	r.repos["repo"].Discover = func(ctx context.Context, snap *sources.Snapshot) ([]Stack, error) {
		stacks, err := inner(ctx, snap)
		for i := range stacks {
			if snap.Revision.ID == "commit-2" {
				stacks[i].Err = errors.New("not in this environment")
			}
		}
		return stacks, err
	}
	if err := r.TakeUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.stack("a"); s.refused() == nil || s.granted() == nil {
		t.Errorf("refused %v, enforced %v", s.refused(), s.granted())
	}
}

// What an older commit declares as something else is not what was granted.
func TestPastBasis(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, st := b.kept()
	no := errors.New("no")
	r.repos["repo"].Discover = nil
	history := &past{r: r, repo: r.repository("repo"), found: map[string][]basis{"commit-1": {
		{Stack: Stack{Name: "b", Dir: "a", Key: st.Key}}, {Stack: Stack{Name: "a", Dir: "b", Key: st.Key}}, {Stack: Stack{Name: "a", Dir: "a", Key: "other"}},
		{Stack: Stack{Name: "a", Dir: "a", Key: st.Key, Err: no}},
	}}}
	if got, err := history.basis(t.Context(), "a", st); fault.KindOf(err) != fault.Waiting || err == nil {
		t.Errorf("%+v, %v", got.Stack, err)
	}
	good := Stack{Name: "a", Dir: "a", Key: st.Key, Build: func() (targets.Target, error) { return b.build("a") }}
	history.found["commit-1"] = append(history.found["commit-1"], basis{Stack: good})
	if got, err := history.basis(t.Context(), "a", st); err != nil || got.target == nil {
		t.Errorf("%+v, %v", got.Stack, err)
	}
}

// What is taken up and is not enforced after all frees its target.
func TestTakeUpClosesWhatItDoesNotUse(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r, st := b.kept()
	b.push(map[string]string{"a/object": ""})
	if err := r.state.saveRepository("repo", repositoryState{Verified: "commit-2"}); err != nil {
		t.Fatal(err)
	}
	st.Rendered = digest.FromString("x")
	if err := r.state.write(r.state.path("stacks", "a"), st); err != nil {
		t.Fatal(err)
	}
	if err := r.TakeUp(t.Context()); err != nil || r.stack("a") != nil {
		t.Fatalf("%v, %+v", err, r.stack("a"))
	}
	if n := b.count("close a"); n != 1 || b.count("build a") != 1 {
		t.Errorf("closed %d times of %d", n, b.count("build a"))
	}
}

// The names of two stacks may be taken up in another repository's time.
func TestResumeStackOfAnotherRepository(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, st := b.kept()
	other := newStack("other", Stack{Name: "a", Dir: "a"})
	r.stacks["a"] = other
	history := &past{r: r, repo: r.repository("repo"), newest: sources.Revision{Source: "repo", ID: "commit-1"}, found: map[string][]basis{}}
	if err := r.resumeStack(t.Context(), history, "a", st); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("resume: %v", err)
	}
	if other.granted() != nil || b.count("render a") != 0 {
		t.Error("it enforces what another one was granted")
	}
}
