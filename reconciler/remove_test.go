package reconciler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// gone returns a reconciler with a stack "a" whose file is gone and whose
// objects are to be deleted.
func (b *bed) gone() (*Reconciler, *stack) {
	b.t.Helper()
	b.prune["a"] = PruneDelete
	r := b.applied("a", "c")
	b.push(map[string]string{"a/object": ""})
	if err := r.look(b.t.Context(), ""); err != nil {
		b.t.Fatal(err)
	}
	r.late.Wait()
	return r, r.stack("a")
}

func TestRemoval(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before func(*bed, *Reconciler, *stack)
		object string
		phase  Phase
		says   string
		never  string
	}{
		{"of a stack that is gone", func(*bed, *Reconciler, *stack) {}, "", "", "", ""},
		{"of one that others need", func(_ *bed, r *Reconciler, _ *stack) { r.stack("c").DependsOn = []string{"a"} }, "v1", Waiting, "still needed by c", "removal a"},
		{"of one that cannot be removed", func(_ *bed, _ *Reconciler, s *stack) { s.live.current.target = &plain{s.live.current.target} }, "v1", Invalid, "cannot be removed", "removal a"},
		{"of one that is not gone", func(_ *bed, r *Reconciler, s *stack) {
			s.want(s.snap, s.commit, s.seen)
			r.stack("c").DependsOn = []string{"a"}
		}, "v1", Held, "", "removal a"},
		{"of one that has nothing in the world", func(_ *bed, _ *Reconciler, s *stack) { s.live.current = nil }, "v1", Held, "", "removal a"},
		{"of one that is suspended", func(_ *bed, r *Reconciler, _ *stack) { r.orders.suspend("a", Suspension{Reason: "stop"}) }, "v1", Suspended, "stop", "removal a"},
		{"whose commit cannot be read", func(b *bed, _ *Reconciler, _ *stack) { b.fails("local", fault.Transient) }, "v1", Failed, "local", "removal a"},
		{"by somebody who was revoked", func(b *bed, r *Reconciler, _ *stack) {
			b.with(func() { b.signed = []verify.Anchor{leaked} })
			r.Revocations.Add(verify.Revocation{Anchor: leaked, Reason: "it leaked"})
		}, "v1", Denied, "revoked", "removal a"},
		{"that cannot be planned", func(b *bed, _ *Reconciler, _ *stack) { b.fails("removal a", fault.Invalid) }, "v1", Invalid, "removal a", "evaluate a"},
		{"that policy denies", func(b *bed, _ *Reconciler, _ *stack) { b.with(func() { b.denied["a"] = true }) }, "v1", Denied, "not like this", "apply a"},
		{"before the mark is known", func(b *bed, _ *Reconciler, _ *stack) {
			b.with(func() { b.marks = map[string]Mark{} })
			b.fails("mark read", fault.Transient)
		}, "v1", Failed, "mark read", "apply a"},
		{"by policies of a repository that is behind its mark", func(b *bed, r *Reconciler, s *stack) { b.judgedByOld(r, &s.live.current.basis) }, "v1", Denied, "commit-9", "apply a"},
		{"that is not in the ledger", func(b *bed, _ *Reconciler, _ *stack) { b.fails("append "+string(ledger.Intent), fault.Transient) }, "v1", Failed, "append intent", "apply a"},
		{"that a restart would not know of", func(b *bed, _ *Reconciler, _ *stack) {
			if err := os.WriteFile(filepath.Join(b.state, "stacks", "a.json"), []byte("{"), 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, "v1", Invalid, "state", "apply a"},
		{"that cannot be forgotten", func(b *bed, r *Reconciler, _ *stack) {
			b.at["apply a"] = func() error {
				file := r.state.path("stacks", "a")
				return errors.Join(os.Remove(file), os.MkdirAll(filepath.Join(file, "in the way"), 0o700))
			}
		}, "", Failed, "forget a", ""},
		{"that does not work", func(b *bed, _ *Reconciler, _ *stack) { b.fails("apply a", fault.Transient) }, "v1", Failed, "apply a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a", "c")
			r, s := b.gone()
			b.with(func() { clear(b.calls) })
			c.before(b, r, s)
			again := r.end(t.Context(), s)
			if got := b.object("a"); got != c.object {
				t.Errorf("it is %q", got)
			}
			st := status(r, "a")
			if c.phase == Held {
				if n := s.failures(); n != 0 || again != 0 {
					t.Errorf("it was tried %d times, and will be in %s", n, again)
				}
			} else if st.Phase != c.phase || !strings.Contains(st.Message, c.says) {
				t.Errorf("it is %s: %s", st.Phase, st.Message)
			}
			if c.never != "" && b.count(c.never) != 0 {
				t.Errorf("%q was reached", c.never)
			}
		})
	}
}

// A removal that is denied is on record with what was judged.
func TestDeniedRemovalKeepsItsEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r, s := b.gone()
	b.with(func() { b.denied["a"] = true })
	r.end(t.Context(), s)
	r.late.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.ContainsFunc(b.entries, func(e ledger.Entry) bool {
		return e.Type == ledger.Refused && e.Stack == "a" && e.Bodies["planned"] != "" && e.Bodies["plan"] != ""
	}) {
		t.Error("the denial has no judgement")
	}
}

// What comes while a removal is prepared stops it: before it is planned, and
// before it is granted.
func TestRemovalStopsForWhatComesMeanwhile(t *testing.T) {
	t.Parallel()
	for what, comes := range map[string]func(*Reconciler, *stack){
		"a suspension":            func(r *Reconciler, _ *stack) { r.orders.suspend("a", Suspension{Reason: "stop"}) },
		"the stack file":          func(_ *Reconciler, s *stack) { s.want(s.snap, s.commit, s.seen) },
		"another generation":      func(r *Reconciler, s *stack) { r.mu.Lock(); r.stacks["a"] = newStack("repo", s.Stack); r.mu.Unlock() },
		"something newly granted": func(_ *Reconciler, s *stack) { d := *s.granted(); s.stand(&d) },
	} {
		for when, never := range map[string]string{"local": "removal a", "evaluate a": "apply a"} {
			t.Run(what+" at "+when, func(t *testing.T) {
				t.Parallel()
				b := newBed(t, "a", "c")
				r, s := b.gone()
				b.with(func() { clear(b.calls); b.at[when] = func() error { comes(r, s); return nil } })
				again := r.end(t.Context(), s)
				if b.object("a") != "v1" || b.count(never) != 0 || b.recorded(ledger.Intent, "a", "removal") != 0 {
					t.Error("it was removed")
				}
				if suspended := what == "a suspension"; suspended != (again > 0) || suspended != (s.failures() > 0) {
					t.Errorf("it failed %d times, and is tried again in %s", s.failures(), again)
				}
			})
		}
	}
}

// What a suspension kept back goes on with its end, but nothing that is kept.
func TestResumedRemoval(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		push    map[string]string
		resume  string
		prune   Prune
		state   string // content of its state file, if that is another
		removed []string
	}{
		"one":                    {map[string]string{"a/object": ""}, "a", PruneDelete, "", []string{"a"}},
		"all":                    {map[string]string{"a/object": ""}, "", PruneOrphan, "", []string{"a"}},
		"another one":            {map[string]string{"a/object": ""}, "d", PruneDelete, "", nil},
		"one that is held":       {map[string]string{"a/object": ""}, "a", PruneHold, "", nil},
		"one whose fate is lost": {map[string]string{"a/object": ""}, "a", PruneDelete, "{", nil},
		"so many are kept":       {map[string]string{"a/object": "", "c/object": "", "d/object": "", "e/object": ""}, "", PruneDelete, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a", "c", "d", "e")
			for _, s := range []string{"a", "c", "d", "e"} {
				b.prune[s] = c.prune
			}
			r := b.applied("a", "c", "d", "e")
			r.orders.suspend(c.resume, Suspension{Reason: "stop"})
			b.push(c.push)
			if err := r.look(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if c.state != "" {
				if err := os.WriteFile(r.state.path("stacks", "a"), []byte(c.state), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r.queue = r.metrics.delaying(queueStacks)
			t.Cleanup(r.queue.ShutDown)
			if err := r.Resume(t.Context(), c.resume); err != nil {
				t.Fatal(err)
			}
			looked := 2 // each of them is reconciled and compared
			if c.resume == "" {
				looked = 8
			}
			b.until("all that is to be looked at", func() bool { return r.queue.Len() == looked+len(c.removed) })
			for range looked + len(c.removed) {
				req, _ := r.queue.Get()
				if req.kind == removeStack && !slices.Contains(c.removed, req.name) {
					t.Errorf("%s is removed", req.name)
				}
				r.queue.Done(req)
			}
		})
	}
}

// A share of the stacks of one repository that no person would remove at once
// is a mistake.
func TestMassRemoval(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	add := func(repo string, n int, deployed, held bool) (out []*stack) {
		for range n {
			s := newStack(repo, Stack{Name: fmt.Sprint("s", len(r.stacks))})
			if s.held = held; deployed {
				s.live.current = &deployment{}
			}
			r.stacks[s.Name] = s
			out = append(out, s)
		}
		return out
	}
	for _, c := range []struct {
		lost, left int
		massive    bool
	}{{0, 0, false}, {0, 5, false}, {1, 0, false}, {2, 0, true}, {3, 0, true}, {2, 1, false}, {3, 1, false}, {4, 1, true}, {4, 3, true}, {4, 4, false}, {4, 40, false}} {
		clear(r.stacks)
		lost := add("repo", c.lost, true, false)
		add("repo", c.left, true, false)
		check := func(when string, lost []*stack) {
			t.Helper()
			if got := r.massive("repo", lost); got != c.massive {
				t.Errorf("%d gone, %d left, %s: %t", c.lost, c.left, when, got)
			}
		}
		check("alone", lost)
		add("another", 20, true, false)
		check("beside another repository", lost)
		add("repo", 20, false, false)
		check("beside what has nothing in the world", lost)
		check("beside what is gone already", append(lost, add("repo", 20, true, true)...))
	}
}

func TestPruned(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		granted Prune
		renamed bool
		want    Prune
	}{{"none", false, PruneHold}, {"", false, PruneHold}, {PruneHold, false, PruneHold}, {PruneOrphan, false, PruneOrphan}, {PruneDelete, false, PruneDelete}, {PruneHold, true, PruneDelete}, {PruneOrphan, true, PruneDelete}} {
		s := newStack("repo", Stack{Name: "a", Prune: PruneDelete})
		if s.renamed = c.renamed; c.granted != "none" {
			s.live.current = &deployment{basis: basis{Stack: Stack{Prune: c.granted}}}
		}
		if got := s.pruned(); got != c.want {
			t.Errorf("granted with %q, renamed %t: %q, want %q", c.granted, c.renamed, got, c.want)
		}
	}
}

func TestDependents(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	for name, on := range map[string][]string{"a": nil, "needs a": {"c", "a"}, "needs c": {"c"}, "held": {"a"}} {
		r.stacks[name] = newStack("repo", Stack{Name: name, DependsOn: on})
	}
	r.stacks["held"].hold(sources.Revision{})
	if got := r.dependents("a"); !slices.Equal(got, []string{"needs a"}) {
		t.Errorf("dependents: %v", got)
	}
}

// A rollback ends with its stack.
func TestRemovedStackIsForgotten(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r, s := b.gone()
	rb := &rollback{Repository: "repo", Stack: "a", Dir: "a", To: "commit-1"}
	if err := r.state.saveRollback(rb); err != nil {
		t.Fatal(err)
	}
	r.orders.rollBack(rb)
	if again := r.end(t.Context(), s); again != 0 {
		t.Fatalf("again in %s: %+v", again, status(r, "a"))
	}
	left, err := r.state.rollbacks()
	if err != nil || len(left) != 0 || r.orders.rolledBack("a") != nil {
		t.Errorf("the rollback is left: %v, %v", left, err)
	}
	kept, err := r.state.stacks("repo")
	if _, ok := kept["a"]; err != nil || ok || r.stack("a") != nil || b.count("close a") != 1 {
		t.Errorf("it is left: %v, %v; closed %d times", kept, err, b.count("close a"))
	}
}

// What ends is one generation of a stack, and not the next one.
func TestForgetKeepsTheNextGeneration(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r, s := b.gone()
	next := newStack("repo", s.Stack)
	r.stacks["a"] = next
	if err := r.forget(t.Context(), s); err != nil || r.stack("a") != next {
		t.Errorf("forget: %v", err)
	}
}

// A stack that goes on under another name leaves nothing under the old one,
// whatever its prune says.
func TestRenamedStackLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.prune["a"] = PruneHold
	r, _ := b.ready("a")
	b.with(func() { b.alias["a"], b.aliasFrom, b.dirs = "new", 2, map[string]string{"new": "a"} })
	b.push(map[string]string{"a/object": "v2"})
	b.untilPhase(r, "new", Ready)
	b.until("the old name is ended", func() bool { return b.count("removal a") == 1 && status(r, "a").Stack == "" })
}

// Who is who among stacks that share a folder or a name.
func TestRenamed(t *testing.T) {
	t.Parallel()
	was := newStack("repo", Stack{Name: "old", Dir: "shop", Environment: "e"})
	for name, c := range map[string]struct {
		repo string
		now  Stack
		is   bool
	}{
		"another name":           {"repo", Stack{Name: "new", Dir: "shop", Environment: "e"}, true},
		"another folder":         {"repo", Stack{Name: "new", Dir: "cart", Environment: "e"}, false},
		"another environment":    {"repo", Stack{Name: "new", Dir: "shop", Environment: "f"}, false},
		"one that cannot run":    {"repo", Stack{Name: "new", Dir: "shop", Environment: "e", Err: context.Canceled}, false},
		"the same, found by now": {"repo", Stack{Name: "old", Dir: "shop", Environment: "e"}, false},
	} {
		if to, ok := renamed(was, []asked{{Stack: c.now}}); ok != c.is || ok && to != "new" {
			t.Errorf("%s: renamed to %q, %t", name, to, ok)
		}
		if c.now.Name == "old" {
			continue
		}
		r := newBed(t, "x").new()
		r.stacks["old"], r.stacks["new"] = was, newStack(c.repo, c.now)
		if got := r.inFolder(was) != nil; got != c.is {
			t.Errorf("%s: in its folder: %t", name, got)
		}
		r.stacks["new"].repo = "another"
		if r.inFolder(was) != nil {
			t.Errorf("%s in another repository has its folder", name)
		}
	}
}

// A target that cannot hand over what it deployed keeps its name.
func TestCalledBefore(t *testing.T) {
	t.Parallel()
	other := func(repo, dir string, deployed bool) *stack {
		s := newStack(repo, Stack{Name: "old", Dir: dir})
		if deployed {
			s.live.current = &deployment{}
		}
		return s
	}
	for name, c := range map[string]struct {
		target targets.Target
		runs   *stack
		kept   *stackState
		before string
	}{
		"nothing":                           {&plain{}, nil, nil, ""},
		"in its folder":                     {&plain{}, other("repo", "shop", true), nil, "old"},
		"one that can be taken over":        {&target{}, other("repo", "shop", true), nil, ""},
		"one that cannot run":               {nil, other("repo", "shop", true), nil, ""},
		"with nothing in the world":         {&plain{}, other("repo", "shop", false), nil, ""},
		"in another folder":                 {&plain{}, other("repo", "cart", true), nil, ""},
		"in another repository":             {&plain{}, other("another", "shop", true), nil, ""},
		"before a restart":                  {&plain{}, nil, &stackState{Repository: "repo", Dir: "shop"}, "old"},
		"in another folder before it":       {&plain{}, nil, &stackState{Repository: "repo", Dir: "cart"}, ""},
		"in another repository before it":   {&plain{}, nil, &stackState{Repository: "another", Dir: "shop"}, ""},
		"elsewhere by now, and here before": {&plain{}, other("repo", "cart", true), &stackState{Repository: "repo", Dir: "shop"}, ""},
	} {
		r := newBed(t, "x").new()
		s := newStack("repo", Stack{Name: "new", Dir: "shop"})
		s.live.current = &deployment{} // it is not called before as it is now
		s.target = c.target
		if c.runs != nil {
			r.stacks["old"] = c.runs
		}
		r.kept = map[string]stackState{"new": {Repository: "repo", Dir: "shop"}}
		if c.kept != nil {
			r.kept["old"] = *c.kept
		}
		if got := r.calledBefore(s); got != c.before {
			t.Errorf("%s: %q, want %q", name, got, c.before)
		}
		r.stacks["new"] = s
		if got := r.calledBefore(s); c.kept != nil && got != "" {
			t.Errorf("%s: it runs under its name, and was %q", name, got)
		}
	}
}

// Old names whose new ones stand already are ended after a restart.
func TestOldNamesEnd(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	r.queue = r.metrics.delaying(queueStacks)
	defer r.queue.ShutDown()
	for _, name := range []string{"old", "new", "other old", "other new", "third old"} {
		r.stacks[name] = newStack("repo", Stack{Name: name})
	}
	r.stacks["new"].live.current = &deployment{}
	r.before = map[string]string{"new": "old", "other new": "other old", "third new": "third old"}
	r.endOldNames()
	if r.before["new"] != "" || len(r.before) != 2 || !r.stacks["old"].renamed || r.queue.Len() != 1 {
		t.Errorf("left: %v; %d requests", r.before, r.queue.Len())
	}
	if req, _ := r.queue.Get(); req != (request{removeStack, "old"}) {
		t.Errorf("%+v", req)
	}
}

// What a stack will own is known right away if its turn may be far off, and
// there is something that could move.
func TestWhoseTurnIsFarOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		deployed, daemon, suspended bool
		rendered, expected          int
		postponed                   int
	}{
		"nothing is deployed":   {false, false, false, 0, 1, 0},
		"without a daemon":      {true, false, false, 1, 1, 0},
		"its turn comes":        {true, true, false, 0, 1, 0},
		"while it is suspended": {true, true, true, 0, 0, 1}, // it stays as it is
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a", "c")
			r := b.applied()
			if c.deployed {
				r = b.applied("a", "c")
			}
			if c.suspended {
				r.orders.suspend("a", Suspension{Reason: "stop"})
			}
			if c.daemon {
				r.queue = r.metrics.delaying(queueStacks)
				t.Cleanup(r.queue.ShutDown)
			}
			b.with(func() { clear(b.calls) })
			b.push(map[string]string{"a/object": "v2"})
			if err := r.look(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if n := b.count("render a"); n != c.rendered || b.count("expect a") != c.expected {
				t.Errorf("rendered %d times, expected %d times", n, b.count("expect a"))
			}
			if n := b.count("postpone a"); n != c.postponed {
				t.Errorf("postponed %d times", n)
			}
		})
	}
}

// An old name whose end is near is told once.
func TestRenameIsNotedOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	for range 2 {
		r.rename(t.Context(), r.stack("a"), "new", sources.Revision{Source: "repo", ID: "commit-2"})
	}
	r.late.Wait()
	if n := b.recorded(ledger.Decided, "a", "renamed"); n != 1 || b.count("renounce a") != 1 {
		t.Errorf("%d on record, %d renounced", n, b.count("renounce a"))
	}
	if at := status(r, "a").Since; at.After(time.Now()) || status(r, "a").Message != "the stack goes on as new" {
		t.Errorf("status: %+v", status(r, "a"))
	}
}

// What a stack is held for is not removed, whoever queued it.
func TestHeldIsNotEnded(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	s := r.stack("a")
	s.hold(sources.Revision{Source: "repo", ID: "commit-2"})
	if wait := r.end(t.Context(), s); wait != 0 || b.count("removal a") != 0 {
		t.Errorf("%d removals, again after %s", b.count("removal a"), wait)
	}
}
