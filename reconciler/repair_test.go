package reconciler

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// tamper changes an object, and nobody reports it.
func (b *bed) tamper(name, content string) { b.with(func() { b.live[name] = content }) }

// pend has the object of a stack wait for its repair.
func (s *stack) pend() {
	s.live.addPending(map[plan.ObjectID]time.Time{{Kind: "Object", Name: s.Name}: time.Now()})
}

// A repair restores what is enforced, and only while it may be.
func TestRepair(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before func(*bed, *Reconciler, *stack)
		object string
		plans  int
		kind   fault.Kind // of the error, if there is one
		fails  bool
	}{
		{"what drifted", func(_ *bed, _ *Reconciler, s *stack) { s.pend() }, "v1", 1, 0, false},
		{"nothing that is known", func(*bed, *Reconciler, *stack) {}, "edited", 0, 0, false},
		{"nothing that is enforced", func(_ *bed, _ *Reconciler, s *stack) { s.pend(); s.live.current = nil }, "edited", 0, 0, false},
		{"suspended since it was found", func(_ *bed, r *Reconciler, s *stack) {
			s.pend()
			r.orders.suspend("a", Suspension{Reason: "stop"})
		}, "edited", 0, 0, false},
		{"what was revoked", func(_ *bed, _ *Reconciler, s *stack) {
			s.pend()
			s.revoked(s.granted(), fault.New(fault.Denied, "", "", "it was %w", verify.ErrRevoked))
		}, "edited", 0, fault.Denied, true},
		{"a plan that cannot be made", func(b *bed, _ *Reconciler, s *stack) { s.pend(); b.fails("plan a", fault.Transient) }, "edited", 1, fault.Transient, true},
		{"what a mark knows more about", func(b *bed, r *Reconciler, s *stack) {
			s.pend()
			b.marks = map[string]Mark{"e/repo": {Commit: "commit-9"}}
		}, "edited", 1, fault.Denied, true},
		{"what the gate did not grant", func(_ *bed, r *Reconciler, s *stack) { s.pend(); r.Gate.Revoke("a") }, "edited", 1, fault.Denied, true},
		{"what cannot be written", func(b *bed, _ *Reconciler, s *stack) { s.pend(); b.fails("apply a", fault.Invalid) }, "edited", 1, fault.Invalid, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			b.tamper("a", "edited")
			s, before := r.stack("a"), b.count("plan a")
			c.before(b, r, s)
			if err := r.repair(t.Context(), s); c.fails != (err != nil) || err != nil && fault.KindOf(err) != c.kind {
				t.Errorf("repair: %v", err)
			}
			if got := b.object("a"); got != c.object {
				t.Errorf("it is %q", got)
			}
			if n := b.count("plan a") - before; n != c.plans {
				t.Errorf("%d plans", n)
			}
		})
	}
}

// An apply that waits half-way is not led back, until it is clear that it does not go on.
func TestNothingLeadsBackHalfWay(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	s := r.stack("a")
	s.live.waits(true)
	b.tamper("a", "of the newer commit")
	s.pend()
	plans := b.count("plan a")
	if err := r.repair(t.Context(), s); err != nil {
		t.Error(err)
	}
	if found, err := r.compareNow(t.Context(), s, true); err != nil || len(found) != 0 {
		t.Errorf("compared: %v, %v", found, err)
	}
	if b.object("a") != "of the newer commit" || b.count("plan a") != plans {
		t.Errorf("it is %q after %d plans", b.object("a"), b.count("plan a")-plans)
	}
	r.settle(t.Context(), s, fault.New(fault.Waiting, "", "", "wave 1 waits"))
	if !s.live.halfWay() {
		t.Error("it still waits")
	}
	r.settle(t.Context(), s, fault.New(fault.Denied, "", "", "the next commit is refused"))
	if err := r.repair(t.Context(), s); err != nil || b.object("a") != "v1" {
		t.Errorf("what was granted: %v, %q", err, b.object("a"))
	}
}

// What cannot be repaired now is kept for whoever tries again.
func TestFailedRepairIsKept(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	s := r.stack("a")
	b.tamper("a", "edited")
	b.fails("plan a", fault.Denied)
	s.pend()
	if err := r.repair(t.Context(), s); fault.KindOf(err) != fault.Denied {
		t.Errorf("repair: %v", err)
	}
	b.works("plan a")
	if err := r.repair(t.Context(), s); err != nil || b.object("a") != "v1" {
		t.Errorf("the second repair: %v, it is %q", err, b.object("a"))
	}
}

// What moves while it is repaired is looked at again.
func TestRepairOfWhatMovesAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	r.repairs = r.metrics.plain(queueRepairs)
	t.Cleanup(r.repairs.ShutDown)
	s := r.stack("a")
	b.tamper("a", "edited")
	b.with(func() { b.stale["a"] = 1 })
	s.pend()
	if err := r.repair(t.Context(), s); err != nil || r.repairs.Len() != 1 || b.object("a") != "edited" {
		t.Errorf("repair: %v; %d to do", err, r.repairs.Len())
	}
	if err := r.repair(t.Context(), s); err != nil || b.object("a") != "v1" {
		t.Errorf("the second repair: %v; it is %q", err, b.object("a"))
	}
}

// A repair that does not work is tried again, also for a stack that nothing else
// looks at; and one of a stack that is gone hurts nobody.
func TestRepairIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	r.repairs.Add("nobody")
	b.with(func() {
		b.at["apply a"] = func() error { b.works("apply a"); return fault.New(fault.Transient, "", "", "cut off") }
	})
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
	if n := b.recorded(ledger.Refused, "a", ""); n != 0 {
		t.Errorf("%d refusals are on record", n)
	}
}

// What is right again by itself needs no grant.
func TestRepairOfNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	s := r.stack("a")
	s.live.findings.Add(targets.Finding{ID: plan.ObjectID{Kind: "Object", Name: "a"}})
	s.pend()
	intents := b.recorded(ledger.Intent, "a", "")
	if err := r.repair(t.Context(), s); err != nil || b.recorded(ledger.Intent, "a", "") != intents || len(s.live.findings.List()) != 0 {
		t.Errorf("repair: %v; %d findings", err, len(s.live.findings.List()))
	}
}

// A watch that ends begins again.
func TestWatchBeginsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "a")
		r := b.applied("a")
		ctx, stop := context.WithCancel(t.Context())
		r.watch, r.life = errgroup.WithContext(ctx)
		b.at["observe a"] = func() error {
			if b.count("observe a") < 3 {
				return errors.New("cut off")
			}
			return nil
		}
		r.observe(r.stack("a"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.count("observe a"); n != 3 {
			t.Errorf("it began %d times", n)
		}
		stop()
		if err := r.watch.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// A comparison that did not work does not put off the next one.
func TestFailedComparisonKeepsItsSchedule(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.schedule = soon{}
	r := b.applied("a")
	b.fails("plan a", fault.Transient)
	if next := r.compare(t.Context(), r.stack("a")); next > 5*time.Millisecond {
		t.Errorf("the next one is in %s", next)
	}
}

// A finding that is late, that a rule ignores or that is only reported changes
// nothing.
func TestFindings(t *testing.T) {
	t.Parallel()
	finding := targets.Finding{ID: plan.ObjectID{Kind: "Object", Name: "a"}, Class: targets.Modified, Fields: []plan.Field{{Path: "/v", From: "edited"}}, Actor: "kubectl-edit", Detected: time.Now()}
	for _, c := range []struct {
		name    string
		before  func(*Reconciler, *stack, *deployment)
		known   int
		pending int
	}{
		{"drift", func(*Reconciler, *stack, *deployment) {}, 1, 1},
		{"of what was enforced before", func(_ *Reconciler, s *stack, d *deployment) { now := *d; s.live.current = &now }, 0, 0},
		{"of a stack that is gone", func(r *Reconciler, _ *stack, _ *deployment) { delete(r.stacks, "a") }, 0, 0},
		{"that a rule ignores", func(_ *Reconciler, _ *stack, d *deployment) {
			d.Drift.Ignore = []drift.Ignore{{Kind: "Object", Path: "/v", Until: time.Now().Add(time.Hour)}}
		}, 0, 0},
		{"that is only reported", func(_ *Reconciler, _ *stack, d *deployment) { d.Drift.Mode = drift.Report }, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			r.repairs = r.metrics.plain(queueRepairs)
			t.Cleanup(r.repairs.ShutDown)
			s := r.stack("a")
			d := s.granted()
			c.before(r, s, d)
			for range 2 { // what is known is no news
				r.found(t.Context(), d, finding)
			}
			ids, _ := s.live.takePending()
			if known := len(s.live.findings.List()); known != c.known || len(ids) != c.pending || r.repairs.Len() != c.pending {
				t.Errorf("%d known, %d to repair", known, len(ids))
			}
			r.late.Wait()
			if n := b.recorded(ledger.Drift, "a", ""); n != c.known {
				t.Errorf("%d on record", n)
			}
			if n := samples(t, r.Metrics.(*prometheus.Registry))[`holdfast_drift_detect_seconds_count{target="fake"}`]; n != 0 {
				t.Error("it is measured since a time that nobody knows")
			}
			for _, e := range b.events {
				if e.Type == EventDrift && e.Message != "Object/a modified by kubectl-edit; /v: edited instead of nothing" {
					t.Errorf("told %q", e.Message)
				}
			}
		})
	}
}

// The full comparison finds what nobody watched, and reverts it or says so.
func TestFullComparison(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mode      drift.Mode
		wrap      func(*target) targets.Target
		suspended bool
		object    string
		phase     Phase
	}{
		"reverts under a standing grant":  {drift.Revert, nil, false, "v1", Ready},
		"reverts by a new judgement":      {drift.Revert, plainly, false, "v1", Ready},
		"reports":                         {drift.Report, nil, false, "edited", Drifted},
		"reports while it is suspended":   {drift.Revert, nil, true, "edited", Drifted},
		"and so without a standing grant": {drift.Revert, plainly, true, "edited", Drifted},
		"reports what it need not judge":  {drift.Report, plainly, false, "edited", Drifted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.mode, b.wrap["a"] = c.mode, c.wrap
			r := b.applied("a")
			b.tamper("a", "edited")
			s := r.stack("a")
			if found, err := r.Drift(t.Context(), "a"); err != nil || len(found) != 1 || len(status(r, "a").Findings) != 0 || status(r, "a").Phase != Ready || b.object("a") != "edited" {
				t.Errorf("a look at it: %v, %v; status %+v", found, err, status(r, "a"))
			}
			if c.suspended {
				r.orders.suspend("a", Suspension{Reason: "stop"})
			}
			for range 2 { // what is known is told once
				if found, err := r.compareNow(t.Context(), s, true); err != nil || len(found) > 1 {
					t.Fatalf("%v, %v", found, err)
				}
			}
			r.late.Wait()
			if b.recorded(ledger.Drift, "a", "") != 1 || b.told(EventDrift, "a") != 1 {
				t.Errorf("%d on record, %d told", b.recorded(ledger.Drift, "a", ""), b.told(EventDrift, "a"))
			}
			if got := b.object("a"); got != c.object {
				t.Errorf("it is %q", got)
			}
			if got := s.snapshotStatus().Phase; got != c.phase {
				t.Errorf("it is %s", got)
			}
			if c.phase != Drifted {
				return
			}
			b.tamper("a", "v1") // somebody put it right
			if found, err := r.compareNow(t.Context(), s, true); err != nil || len(found) != 0 || s.snapshotStatus().Phase != Ready || b.told(EventRecovered, "a") != 1 {
				t.Errorf("after it is over: %v, %v, %+v", found, err, s.snapshotStatus())
			}
		})
	}
}

// The comparison ignores what a rule ignores.
func TestFullComparisonIgnores(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.tamper("a", "edited")
	s := r.stack("a")
	s.granted().Drift.Ignore = []drift.Ignore{{Kind: "Object", Path: "/v", Until: time.Now().Add(time.Hour)}}
	if found, err := r.compareNow(t.Context(), s, true); err != nil || len(found) != 0 || b.object("a") != "edited" || len(status(r, "a").Findings) != 0 {
		t.Errorf("%v, %v, %q", found, err, b.object("a"))
	}
}

// A look at the drift ends no finding.
func TestDriftChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	r.stack("a").live.findings.Add(targets.Finding{ID: plan.ObjectID{Kind: "Object", Name: "a"}})
	if found, err := r.Drift(t.Context(), "a"); err != nil || len(found) != 0 || len(status(r, "a").Findings) != 1 {
		t.Errorf("%v, %v: %+v", found, err, status(r, "a"))
	}
}

// A revert that would change more than what drifted is not made.
func TestRevertChangesNothingElse(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.wrap["a"] = plainly
	r := b.applied("a")
	b.tamper("a", "edited")
	s := r.stack("a")
	err := r.revert(t.Context(), s, s.granted(), []plan.ObjectID{{Kind: "Object", Name: "another"}})
	if fault.KindOf(err) != fault.Denied || err == nil || !strings.Contains(err.Error(), "would change Object/a too") {
		t.Errorf("revert: %v", err)
	}
	if got := b.object("a"); got != "edited" {
		t.Errorf("it was made %q", got)
	}
}

// A revert is about what is to be reverted, and not about all that is known.
func TestRevertLeavesWhatIsOnlyReported(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.tamper("a", "edited")
	s := r.stack("a")
	for _, name := range []string{"a", "another"} {
		s.live.findings.Add(targets.Finding{ID: plan.ObjectID{Kind: "Object", Name: name}, Detected: time.Now()})
	}
	if err := r.revert(t.Context(), s, s.granted(), []plan.ObjectID{{Kind: "Object", Name: "a"}}); err != nil || b.object("a") != "v1" {
		t.Errorf("revert: %v", err)
	}
	if left := s.live.findings.List(); len(left) != 1 || left[0].ID.Name != "another" {
		t.Errorf("left: %v", left)
	}
}

// daily is a schedule that is far off.
type daily struct{}

func (daily) Next(now time.Time) time.Time { return now.Add(24 * time.Hour) }

// How a comparison came out decides when the next one is.
func TestNextComparison(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		before    func(*bed, *Reconciler, *stack)
		min, max  time.Duration // until the next one
		attempts  int
		scheduled bool
	}{
		{"nothing was applied yet", func(_ *bed, _ *Reconciler, s *stack) { s.live.current = nil }, 23 * time.Hour, 24 * time.Hour, 0, true},
		{"nothing differs", func(*bed, *Reconciler, *stack) {}, 23 * time.Hour, 24 * time.Hour, 0, true},
		{"no schedule", func(*bed, *Reconciler, *stack) {}, 0, 0, 0, false},
		{"it did not work", func(b *bed, _ *Reconciler, _ *stack) { b.fails("plan a", fault.Transient) }, 1, time.Second, 1, true},
		{"it did not work, and there is no schedule", func(b *bed, _ *Reconciler, _ *stack) { b.fails("plan a", fault.Transient) }, 1, time.Second, 1, false},
		{"the revert was denied", func(b *bed, r *Reconciler, _ *stack) { b.tamper("a", "edited"); r.Gate.Revoke("a") }, 30 * time.Second, 2 * time.Minute, 2, true},
		{"the revert was refused", func(b *bed, _ *Reconciler, _ *stack) { b.tamper("a", "edited"); b.fails("apply a", fault.Invalid) }, 30 * time.Second, 2 * time.Minute, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			if c.scheduled {
				b.schedule = daily{}
			}
			r := b.applied("a")
			s := r.stack("a")
			c.before(b, r, s)
			if next := r.compare(t.Context(), s); next < c.min || next > c.max || s.failures() != c.attempts {
				t.Errorf("the next comparison is in %s after %d failures", next, s.failures())
			}
		})
	}
	t.Run("the daemon stops", func(t *testing.T) {
		t.Parallel()
		b := newBed(t, "a")
		r := b.applied("a")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["plan a"] = func() error { cancel(); return ctx.Err() }
		if next := r.compare(ctx, r.stack("a")); next != 0 || r.stack("a").failures() != 0 {
			t.Errorf("the next comparison is in %s after %d failures", next, r.stack("a").failures())
		}
	})
}

// A revert that is judged and refused is the state of its stack.
func TestDeniedRevertIsSaid(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.tamper("a", "edited")
	r.Gate.Revoke("a")
	r.compare(t.Context(), r.stack("a"))
	r.late.Wait()
	if got := status(r, "a").Phase; got != Denied || b.recorded(ledger.Refused, "a", "denied") != 1 {
		t.Errorf("it is %s", got)
	}
}

// What cannot be watched, and what nothing is granted for, is not.
func TestNothingToWatch(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "plain")
	b.wrap["plain"] = plainly
	r := b.applied("plain")
	watch, life := errgroup.WithContext(t.Context())
	r.watch, r.life = watch, life
	for _, name := range []string{"a", "plain"} {
		if r.observe(r.stack(name)); r.stack(name).live.stop != nil {
			t.Errorf("%s is watched", name)
		}
	}
	if err := watch.Wait(); err != nil {
		t.Error(err)
	}
}

// A target that ends its watch, in whatever way, is to watch again.
func TestWatchThatEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ends func() error
		says string
	}{
		"with an error": {func() error { return errors.New("cut off") }, "cut off"},
		"by a panic":    {func() error { panic("oh no") }, "panic: oh no"},
		"by itself":     {nil, "stopped watching"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			b.at["observe a"] = c.ends
			d := r.stack("a").granted()
			if err := r.watchOnce(ctx, d.target.(targets.Observer), d); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("watchOnce: %v, want %q", err, c.says)
			}
		})
	}
}

// leaver is a target whose plans leave a field behind, and that recalls nothing.
type leaver struct{ *target }

func (l leaver) Plan(ctx context.Context, r targets.Rendered, only ...plan.ObjectID) (plan.Plan, error) {
	p, err := l.target.Plan(ctx, r, only...)
	for i := range p.Changes {
		p.Changes[i].Stays = []plan.Field{{Path: "/spec/replicas", From: "2", To: "2", Manager: "scaler"}}
	}
	return p, err
}

// What is taken out of the repository and stays in the world is told of when it was
// applied, also by hand.
func TestKeptIsRecorded(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.wrap["a"] = func(t *target) targets.Target { return leaver{t} }
	r := b.applied("a")
	if n := b.recorded(ledger.Drift, "a", "reported"); n != 1 {
		t.Errorf("%d entries", n)
	}
	b.tamper("a", "edited")
	if _, err := r.Apply(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r.late.Wait()
	if n := b.recorded(ledger.Drift, "a", "reported"); n != 2 {
		t.Errorf("%d entries after an apply by hand", n)
	}
}
