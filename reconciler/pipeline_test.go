package reconciler

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// leaked is a key that tests revoke.
var leaked = verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0a", 32)}

// snapshot returns a commit of the bed, each time as another value.
func (b *bed) snapshot(commit string) *sources.Snapshot {
	b.t.Helper()
	snap, err := b.Fetch(b.t.Context(), sources.Revision{Source: "repo", ID: commit})
	if err != nil {
		b.t.Fatal(err)
	}
	return snap
}

// What was judged is written only if it is still what is asked for (a commit) or
// enforced (a return to it).
func TestOnlyWhatIsStillAskedIsWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name              string
		meanwhile         func(*bed, *Reconciler, *stack)
		applied, reverted bool // may be written
	}{
		{"nothing came in", func(*bed, *Reconciler, *stack) {}, true, true},
		{"a commit with the same content", func(b *bed, _ *Reconciler, s *stack) { s.want(b.snapshot("commit-2"), s.commit, s.seen) }, true, true},
		{"a commit with other content", func(b *bed, _ *Reconciler, s *stack) { s.want(b.snapshot("commit-3"), s.commit, s.seen) }, false, true},
		{"another generation", func(_ *bed, r *Reconciler, s *stack) {
			next := newStack("repo", s.Stack)
			next.inherit(s)
			next.want(s.snap, s.commit, s.seen)
			r.stacks["a"] = next
		}, false, false},
		{"another generation, after a commit with the same content", func(b *bed, r *Reconciler, s *stack) {
			s.want(b.snapshot("commit-2"), s.commit, s.seen)
			r.stacks["a"] = newStack("repo", s.Stack)
		}, false, false},
		{"the stack is gone", func(_ *bed, r *Reconciler, _ *stack) { delete(r.stacks, "a") }, false, false},
		{"another commit is enforced", func(b *bed, _ *Reconciler, s *stack) {
			d := *s.live.current
			d.snap = b.snapshot("commit-1")
			s.live.current = &d
		}, true, false},
		{"another target enforces it", func(_ *bed, _ *Reconciler, s *stack) {
			d := *s.live.current
			d.target = &plain{d.target}
			s.live.current = &d
		}, true, false},
		{"nothing is enforced", func(_ *bed, _ *Reconciler, s *stack) { s.live.current = nil }, true, false},
		{"a suspension", func(_ *bed, r *Reconciler, _ *stack) { r.orders.suspend("a", Suspension{Reason: "stop"}) }, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			b.push(map[string]string{"c/object": "v1"})
			b.push(map[string]string{"a/object": "v2"})
			s := r.stack("a")
			asked, enforced, p := s.desired(), s.granted().basis, &Proposal{inputs: s.granted().inputs}
			c.meanwhile(b, r, s)
			for typ, may := range map[ledger.Type]bool{ledger.Applied: c.applied, ledger.Reverted: c.reverted} {
				basis := asked
				if typ == ledger.Reverted {
					basis = enforced
				}
				err := r.stillAsked(s, basis, p, typ)
				if may != (err == nil) || err != nil && fault.KindOf(err) != fault.Waiting {
					t.Errorf("%s: %v", typ, err)
				}
			}
		})
	}
}

// Whatever refuses first ends the judgement, and nothing is written.
func TestJudgementEndsWithTheFirstRefusal(t *testing.T) {
	t.Parallel()
	stage := func(stage policy.Stage, change func(*policy.Decision)) func(*bed) {
		return func(b *bed) {
			b.judges = func(in policy.Input, d *policy.Decision) {
				if in.Stage == stage {
					change(d)
				}
			}
		}
	}
	deny := func(d *policy.Decision) {
		d.Results = []policy.Result{{Level: policy.Warn, Message: "a matter of taste"}, {Level: policy.Violation, Message: "too big", File: "object", Line: 7}}
	}
	for _, c := range []struct {
		name   string
		refuse func(*bed)
		kind   fault.Kind
		says   string
		never  string // call that is not reached
	}{
		{"the commit is revoked", func(b *bed) { b.signed = []verify.Anchor{leaked} }, fault.Denied, "revoked", "evaluate a"},
		{"rendering", func(b *bed) { b.fails("render a", fault.Invalid) }, fault.Invalid, "render a", "evaluate a"},
		{"verification", func(b *bed) { b.evidence = map[string]string{} }, fault.Denied, "nothing vouches", "evaluate a"},
		{"pinning", func(b *bed) { b.fails("pin a", fault.Denied) }, fault.Denied, "pin a", "evaluate a"},
		{"what cannot be pinned", func(b *bed) { b.wrap["a"], b.evidence = plainly, map[string]string{"a": "signed"} }, fault.Internal, "cannot pin", "evaluate a"},
		{"a policy that cannot judge", func(b *bed) { b.at["evaluate a"] = func() error { return errors.New("out of time") } }, fault.Denied, "out of time", "plan a"},
		{"policy over what is rendered", stage(policy.StageRendered, deny), fault.Denied, "policy : too big (object:7)", "plan a"},
		{"no rule for what is rendered", stage(policy.StageRendered, func(d *policy.Decision) { d.Rules = 0 }), fault.Denied, "no policy rule judged the rendered stage", "plan a"},
		{"a revoked policy", stage(policy.StageRendered, func(d *policy.Decision) { d.Policies = digest.FromString("old") }), fault.Denied, "revoked", "plan a"},
		{"planning", func(b *bed) { b.fails("plan a", fault.Invalid) }, fault.Invalid, "plan a", "name artifacts a"},
		{"what only the plan names", func(b *bed) { b.fails("name artifacts a", fault.Denied) }, fault.Denied, "name artifacts a", "apply a"},
		{"evidence for what only the plan names", func(b *bed) { b.evidence = map[string]string{"a": "signed"} }, fault.Denied, "only planned: nothing vouches", "apply a"},
		{"policy over the plan", stage(policy.StagePlan, deny), fault.Denied, "too big", "apply a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.wrap["a"] = func(t *target) targets.Target { return namer{t} }
			if b.evidence == nil && c.name != "evidence for what only the plan names" {
				b.evidence = map[string]string{"a": "signed", "only planned": "signed"}
			}
			c.refuse(b)
			r := b.applied()
			r.Revocations.Add(verify.Revocation{Anchor: leaked, Reason: "it leaked"})
			r.Revocations.Add(verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorPolicy, Value: digest.FromString("old").String()}})
			for what, do := range map[string]func() error{
				"plan":  func() error { _, err := r.Plan(t.Context(), "a"); return err },
				"apply": func() error { _, err := r.Apply(t.Context(), "a"); return err },
			} {
				err := do()
				if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "taste") {
					t.Errorf("%s: %v (%s), want %s: %q", what, err, fault.KindOf(err), c.kind, c.says)
				}
			}
			if n := b.count(c.never); n != 0 {
				t.Errorf("%q was reached %d times", c.never, n)
			}
			if got := b.object("a"); got != "" {
				t.Errorf("%q was deployed", got)
			}
		})
	}
}

// A world that is as it is asked for needs no grant.
func TestNothingToDo(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.live["a"] = "v1"
	r, _ := b.ready("a")
	if b.count("apply a") != 0 || b.recorded(ledger.Intent, "a", "") != 0 || b.told(EventApplied, "a") != 0 {
		t.Error("something was granted")
	}
	b.push(map[string]string{"a/object": "v2"})
	b.until("v2", func() bool { return b.object("a") == "v2" && status(r, "a").Phase == Ready })
	if n := b.told(EventApplied, "a"); n != 1 {
		t.Errorf("it was told %d times that something was deployed", n)
	}
}

// Not even then does a commit stand that nobody is known to have authorised.
func TestWhatNobodyAuthorisedDoesNotStand(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.live["a"], b.unproven = "v1", true
	r := b.applied()
	if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Denied || err == nil {
		t.Errorf("apply: %v", err)
	}
	if r.stack("a").granted() != nil {
		t.Error("it stands")
	}
}

// A revocation counts between the judgement and the apply, and during the apply.
func TestRevokedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		when    string
		applied bool
	}{{"plan a", false}, {"apply a", true}} {
		t.Run(c.when, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.evidence, b.rests = map[string]string{"a": "signed"}, []verify.Anchor{leaked}
			r := b.applied()
			b.at[c.when] = func() error {
				r.Revocations.Add(verify.Revocation{Anchor: leaked, Reason: "it leaked"})
				return nil
			}
			_, err := r.Apply(t.Context(), "a")
			if c.applied != (err == nil) || err != nil && !errors.Is(err, verify.ErrRevoked) {
				t.Errorf("apply: %v", err)
			}
			if got := b.object("a") != ""; got != c.applied {
				t.Errorf("applied: %t", got)
			}
			if s := r.stack("a"); c.applied && (s.live.whyRevoked() == nil || b.told(EventRevoked, "a") != 1) {
				t.Error("what was applied is trusted still")
			}
		})
	}
}

// The mark is compared before anything is judged, and is up to date before
// anything is written.
func TestNothingIsWrittenBeforeTheMark(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		broken func(*bed)
		kind   fault.Kind
		never  string
	}{
		{"it cannot be read", func(b *bed) { b.fails("mark read", fault.Transient) }, fault.Transient, "evaluate a"},
		{"it knows more", func(b *bed) { b.marks["e/repo"] = Mark{Commit: "commit-9"} }, fault.Denied, "evaluate a"},
		{"it cannot be written", func(b *bed) { b.fails("mark write", fault.Transient) }, fault.Transient, "apply a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.marks = map[string]Mark{}
			c.broken(b)
			r := b.applied()
			if _, err := r.Apply(t.Context(), "a"); err == nil || fault.KindOf(err) != c.kind {
				t.Errorf("apply: %v", err)
			}
			if b.count(c.never) != 0 || b.object("a") != "" {
				t.Error("it went on")
			}
		})
	}
}

// A stack that is refused before it is rendered says all the same what it would
// own: others wait for that before they prune.
func TestRefusedStackIsClaimed(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(*bed){
		"by the mark":     func(b *bed) { b.marks = map[string]Mark{"e/repo": {Commit: "commit-9"}} },
		"by a revocation": func(b *bed) { b.signed = []verify.Anchor{leaked} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			refuse(b)
			r := b.applied()
			r.Revocations.Add(verify.Revocation{Anchor: leaked, Reason: "it leaked"})
			for range 2 { // it is said once
				if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Denied || err == nil {
					t.Fatalf("apply: %v", err)
				}
			}
			if n := b.count("render a"); n != 1 {
				t.Errorf("it was rendered %d times", n)
			}
		})
	}
}

// What is not kept for a restart does not count as done.
func TestStateThatCannotBeKept(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied()
	if err := os.WriteFile(filepath.Join(b.state, "stacks"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Apply(t.Context(), "a"); err == nil {
		t.Error("it was applied, though it cannot be kept")
	}
	if r.stack("a").unchanged() {
		t.Error("nothing is left to do")
	}
}

// Those who depend on a stack wait until it is healthy.
func TestHealth(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "db")
	b.depends["web"] = "db"
	b.fails("healthy db", fault.Waiting)
	r := b.new()
	b.run(r)
	b.untilPhase(r, "db", Progressing)
	b.until("web to wait", func() bool { return strings.Contains(status(r, "web").Message, `"db", which is progressing`) })
	b.works("healthy db")
	b.untilPhase(r, "db", Ready)
	b.untilPhase(r, "web", Ready)
}

// A stack waits for another one unless that is what it is asked to be.
func TestReadyToBeDependedOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		db    func(*bed, *stack)
		waits string
	}{
		{"ready", func(*bed, *stack) {}, ""},
		{"drifted", func(_ *bed, s *stack) { s.enter(Drifted) }, ""},
		{"denied", func(_ *bed, s *stack) { s.enter(Denied) }, "which is denied"},
		{"refused, while the older request stands", func(_ *bed, s *stack) { s.refuse(sources.Revision{}, errors.New("no")) }, "which is pending"},
		{"behind", func(b *bed, s *stack) { s.want(b.snapshot("commit-2"), s.commit, s.seen) }, "which is pending"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "web", "db")
			b.depends["web"] = "db"
			r := b.applied("db")
			b.push(map[string]string{"db/object": "v2"})
			r.queue = r.metrics.delaying(queueStacks) // as in a daemon, where the phase says it
			t.Cleanup(r.queue.ShutDown)
			c.db(b, r.stack("db"))
			err := r.dependencies(t.Context(), r.stack("web"))
			if (c.waits == "") != (err == nil) || err != nil && (fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), c.waits)) {
				t.Errorf("%v, want %q", err, c.waits)
			}
		})
	}
}

// Without a daemon the same holds, and nothing is waited for for ever.
func TestDependenciesWithoutADaemon(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "db")
	b.depends["web"] = "db"
	r := b.applied()
	apply := func(name string) error { _, err := r.Apply(t.Context(), name); return err }
	if err := apply("web"); fault.KindOf(err) != fault.Waiting || err == nil {
		t.Errorf("before what it depends on: %v", err)
	}
	if err := apply("db"); err != nil {
		t.Fatal(err)
	}
	b.fails("healthy db", fault.Waiting)
	if err := apply("web"); fault.KindOf(err) != fault.Waiting || err == nil {
		t.Errorf("before what it depends on is healthy: %v", err)
	}
	b.works("healthy db")
	if err := apply("web"); err != nil {
		t.Errorf("after what it depends on: %v", err)
	}
	b.with(func() { b.denied["db"] = true })
	if err := apply("db"); fault.KindOf(err) != fault.Denied {
		t.Errorf("a denied stack: %v", err)
	}
}

// A command waits until what it applied is healthy, and no longer.
func TestApplyWaitsForHealth(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcomes []fault.Kind // until it is healthy
		stops    bool         // the command is stopped at the first one
		asked    int
		kind     fault.Kind // of the error, if it is not healthy
	}{
		"healthy at once":   {nil, false, 1, -1},
		"healthy at last":   {[]fault.Kind{fault.Waiting, fault.Waiting}, false, 3, -1},
		"never healthy":     {[]fault.Kind{fault.Waiting, fault.Invalid, fault.Waiting}, false, 2, fault.Invalid},
		"not waited for":    {[]fault.Kind{fault.Waiting, fault.Waiting}, true, 1, fault.Waiting},
		"not known at once": {[]fault.Kind{fault.Transient}, false, 1, fault.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			b.at["healthy a"] = func() error {
				n := b.count("healthy a")
				if c.stops {
					stop()
				}
				if n > len(c.outcomes) {
					return nil
				}
				return fault.New(c.outcomes[n-1], "", "", "not healthy")
			}
			_, err := r.Apply(ctx, "a")
			if (c.kind < 0) != (err == nil) || err != nil && fault.KindOf(err) != c.kind || b.count("healthy a") != c.asked {
				t.Errorf("%v, asked %d times", err, b.count("healthy a"))
			}
		})
	}
}

// What a command could not do the daemon tries again, and it looks again at the
// evidence of what is denied.
func TestDaemonGoesOnAfterACommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a")
		r := b.applied()
		r.queue = r.metrics.delaying(queueStacks)
		defer r.queue.ShutDown()
		next := func(want request, within time.Duration) {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			if n := r.queue.Len(); n != 1 {
				t.Fatalf("%d requests", n)
			}
			req, _ := r.queue.Get()
			if r.queue.Done(req); req != want {
				t.Errorf("%+v, want %+v", req, want)
			}
		}
		if _, err := r.Apply(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := r.queue.Len(); n != 0 {
			t.Errorf("%d requests after it worked", n)
		}
		b.fails("plan a", fault.Transient)
		if _, err := r.Apply(t.Context(), "a"); err == nil {
			t.Error("it worked")
		}
		next(request{reconcileStack, "a"}, time.Second)
		b.fails("plan a", fault.Denied)
		if _, err := r.Apply(t.Context(), "a"); err == nil {
			t.Error("it was not denied")
		}
		next(request{reconcileStack, "a"}, time.Second)
		next(request{lookAgain, "a"}, lookAgainAfter)
	})
}

// A target is closed when another one stands in its place, and not before.
func TestTargetThatIsReplacedIsClosed(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "base")
	r, _ := b.ready("a", "base")
	b.push(map[string]string{"a/object": "v2"})
	b.until("v2", func() bool { return b.object("a") == "v2" && status(r, "a").Phase == Ready })
	if n := b.count("close a"); n != 0 {
		t.Fatalf("the target was closed %d times while it is used", n)
	}
	b.with(func() { b.depends["a"] = "base" }) // another key: another generation
	b.push(nil)
	b.until("the old target is closed", func() bool { return b.count("close a") == 1 })
	if n := b.count("build a"); n != 2 {
		t.Errorf("%d targets were made", n)
	}
}

// A command plans again when the world moved, but not for ever.
func TestApplyPlansAgain(t *testing.T) {
	t.Parallel()
	for moves, done := range map[int]bool{staleAgain - 1: true, staleAgain: false} {
		b := newBed(t, "a")
		b.stale["a"] = moves
		_, err := b.applied().Apply(t.Context(), "a")
		if done != (err == nil) || err != nil && !errors.Is(err, targets.ErrStale) || b.count("plan a") != staleAgain {
			t.Errorf("it moved %d times: %v after %d plans", moves, err, b.count("plan a"))
		}
	}
}

// A refusal names every rule that refuses, and where; what was not reached is not
// on record.
func TestRefusals(t *testing.T) {
	t.Parallel()
	got := refusals(policy.Decision{Results: []policy.Result{
		{Level: policy.Deny, Namespace: "main", Message: "no owner"}, {Level: policy.Warn, Namespace: "main", Message: "old"},
		{Level: policy.Violation, Namespace: "pods", Message: "privileged", File: "web.yaml"}, {Level: policy.Deny, Namespace: "pods", Message: "root", File: "web.yaml", Line: 3},
	}})
	if want := "policy main: no owner\npolicy pods: privileged (web.yaml)\npolicy pods: root (web.yaml:3)"; got != want {
		t.Errorf("%q", got)
	}
	p := &Proposal{}
	if got := slices.Sorted(maps.Keys(p.bodies())); !slices.Equal(got, []string{"commit", "evidence"}) {
		t.Errorf("on record: %v", got)
	}
}

// Commands do not get around what people ordered and what was refused.
func TestCommandsRefuse(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "bad", "needy")
	b.bad["bad"], b.depends["needy"] = fault.New(fault.Invalid, "", "", "no such field"), "nothing"
	r := b.applied()
	if err := r.Suspend(t.Context(), "a", "stop", time.Time{}); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]fault.Kind{"a": fault.Waiting, "bad": fault.Invalid, "needy": fault.Waiting, "nobody": fault.Invalid} {
		if _, err := r.Apply(t.Context(), name); err == nil || fault.KindOf(err) != kind {
			t.Errorf("apply %s: %v", name, err)
		}
		if b.count("evaluate "+name) != 0 {
			t.Errorf("%s was judged", name)
		}
		if _, err := r.Drift(t.Context(), name); err == nil || fault.KindOf(err) == fault.Internal {
			t.Errorf("drift of %s, which was never applied: %v", name, err)
		}
	}
	for _, name := range []string{"bad", "nobody"} {
		if _, err := r.Plan(t.Context(), name); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("plan %s: %v", name, err)
		}
	}
}
