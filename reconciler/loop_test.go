package reconciler

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy/gate"
)

func TestNewRefusesWhatIsIncomplete(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("a reconciler of nothing")
	}
	c := newBed(t, "a").new().Config
	if _, err := New(c); err == nil {
		t.Error("two reconcilers that count the same")
	}
	tracer := noop.NewTracerProvider().Tracer("test")
	c.Metrics, c.OrderMaxAge, c.Tracer = prometheus.NewRegistry(), time.Minute, tracer
	if r, err := New(c); err != nil || r.OrderMaxAge != time.Minute || r.Tracer != c.Tracer {
		t.Errorf("what is configured does not hold: %v", err)
	}
}

// Every intent that a crash left open is closed.
func TestAllDanglingIntentsAreClosed(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	for i, name := range []string{"a", "c", "d"} {
		b.open = append(b.open, ledger.Numbered{Index: ledger.Index(i), Entry: ledger.Entry{Type: ledger.Intent, Stack: name, Bodies: map[string]digest.Digest{"commit": "sha256:x"}}})
	}
	if err := b.new().closeDangling(t.Context()); err != nil || len(b.entries) != 3 {
		t.Errorf("%d are closed: %v", len(b.entries), err)
	}
}

// Nothing begins until it is known what was left open and what people ordered.
func TestNothingBeginsWithoutTheLedger(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"dangling", "orders", "append " + string(ledger.Applied)} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.open = []ledger.Numbered{{Index: 7, Entry: ledger.Entry{Type: ledger.Intent, Stack: "a"}}}
			b.fails(call, fault.Transient)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b.at["build a"] = func() error { cancel(); return nil } // it began: do not wait for its end
			for what, begin := range map[string]func(*Reconciler) error{
				"run":  func(r *Reconciler) error { return r.Run(ctx) },
				"sync": func(r *Reconciler) error { return r.Sync(ctx) },
			} {
				r := b.new()
				if err := begin(r); fault.KindOf(err) != fault.Transient || err == nil {
					t.Errorf("%s: %v", what, err)
				}
				r.Close()
			}
			if b.count("build a") != 0 {
				t.Error("it began")
			}
		})
	}
}

// After a crash only what an apply left in doubt is judged anew.
func TestWhatACrashLeavesInDoubt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcome string
		judged  bool
		kept    bool
	}{"an apply": {"", true, false}, "a repair": {"", false, true}, "a removal": {gate.Removal, true, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.applied("a").Close()
			e := ledger.Entry{Type: ledger.Intent, Stack: "a", Outcome: c.outcome}
			if c.judged {
				e.Bodies = map[string]digest.Digest{"commit": "sha256:x"}
			}
			b.open = []ledger.Numbered{{Index: 7, Entry: e}}
			r := b.new()
			if err := r.closeDangling(t.Context()); err != nil {
				t.Fatal(err)
			}
			if kept, err := r.state.stacks("repo"); err != nil || c.kept != (len(kept) == 1) {
				t.Errorf("kept: %v, %v", kept, err)
			}
		})
	}
}

// What cannot be forgotten must not be taken up.
func TestCrashWhoseStateCannotBeForgotten(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.open = []ledger.Numbered{{Index: 7, Entry: ledger.Entry{Type: ledger.Intent, Stack: "a", Bodies: map[string]digest.Digest{"commit": "sha256:x"}}}}
	r := b.new()
	if err := os.MkdirAll(r.state.path("stacks", "a")+"/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.closeDangling(t.Context()); err == nil {
		t.Error("it is as if it were forgotten")
	}
}

// A request for a stack that is gone, or is suspended, is nothing to do.
func TestRequestsThatCameToNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.with(func() { clear(b.calls) })
	for _, kind := range []requestKind{reconcileStack, compareStack, lookAgain, removeStack} {
		if again := r.handle(t.Context(), request{kind, "nobody"}); again != 0 {
			t.Errorf("%d: again in %s", kind, again)
		}
	}
	r.orders.suspend("a", Suspension{Reason: "stop", Until: time.Now().Add(time.Hour)})
	s := r.stack("a")
	s.want(b.snapshot("commit-1"), s.commit, s.seen)
	s.live.dirty = true
	for _, kind := range []requestKind{reconcileStack, removeStack} {
		if again := r.handle(t.Context(), request{kind, "a"}); again < 59*time.Minute || again > time.Hour {
			t.Errorf("%d: again in %s", kind, again)
		}
	}
	if n := b.count("render a"); n != 0 {
		t.Errorf("a suspended stack was judged %d times", n)
	}
	r.orders.suspend("a", Suspension{Reason: "stop"})
	if again := r.handle(t.Context(), request{reconcileStack, "a"}); again != 0 {
		t.Errorf("without an end: again in %s", again)
	}
}

// A refusal is recorded and told once; the end of the daemon is no failure.
func TestSettle(t *testing.T) {
	t.Parallel()
	for _, kind := range []fault.Kind{fault.Denied, fault.Invalid, fault.Transient, fault.Internal, fault.Waiting} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			s := r.stack("a")
			err := fault.New(kind, "op", "hint", "no")
			stopped, stop := context.WithCancel(t.Context())
			stop()
			if again := r.settle(stopped, s, err); again != 0 || s.failures() != 0 {
				t.Errorf("after the end: again in %s", again)
			}
			recorded, limit := 0, 15*time.Second
			switch kind {
			case fault.Denied, fault.Invalid:
				recorded, limit = 1, 0
			case fault.Transient, fault.Internal:
				limit = 5 * time.Minute
			}
			for range 12 {
				again := r.settle(t.Context(), s, err)
				if limit == 0 && again != 0 || limit > 0 && (again <= 0 || again > limit) {
					t.Errorf("again in %s", again)
				}
			}
			r.late.Wait()
			if n := b.recorded(ledger.Refused, "a", kind.String()); n != recorded || b.told(EventDenied, "a") != recorded {
				t.Errorf("%d on record, %d told", n, b.told(EventDenied, "a"))
			}
			if again := r.settle(t.Context(), s, nil); again != 0 || s.failures() != 0 || !s.settled() {
				t.Errorf("when it is well: again in %s", again)
			}
		})
	}
}

// Whoever waits for a stack is looked at when it is well, and nobody else.
func TestWake(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	r.queue = r.metrics.delaying(queueStacks)
	t.Cleanup(r.queue.ShutDown)
	for name, phase := range map[string]Phase{"waits": Waiting, "is ready": Ready, "is drifted": Drifted, "is held": Held} {
		r.stacks[name] = newStack("repo", Stack{Name: name, DependsOn: []string{"a"}})
		r.stacks[name].enter(phase)
	}
	r.stacks["another"] = newStack("repo", Stack{Name: "another", DependsOn: []string{"c"}})
	r.wake("a")
	if req, _ := r.queue.Get(); req != (request{reconcileStack, "waits"}) || r.queue.Len() != 0 {
		t.Errorf("%+v, and %d more", req, r.queue.Len())
	}
}

// The result of a grant is recorded sooner or later; other entries are tried once.
func TestEntriesThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	intent := ledger.Index(3)
	for name, c := range map[string]struct {
		intent  *ledger.Index
		running bool // a daemon is
		ending  bool // it stops
		broken  int  // attempts that fail
		tried   int
		told    []bool // events about the ledger: is it over?
	}{
		"a ledger that works":     {&intent, true, false, 0, 1, nil},
		"a result":                {&intent, true, false, 3, 4, []bool{false, false, false, true}},
		"a result at the end":     {&intent, true, true, 3, 1, []bool{false}},
		"a result of a command":   {&intent, false, false, 3, 1, []bool{false}},
		"an entry without intent": {nil, true, false, 3, 1, []bool{false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			synctest.Test(t, func(t *testing.T) {
				r := b.new()
				if c.running {
					life, stop := context.WithCancel(t.Context())
					defer stop()
					if r.life = life; c.ending {
						stop()
					}
				}
				left := c.broken
				b.at["append "+string(ledger.Applied)] = func() error {
					if left--; left < 0 {
						return nil
					}
					return errors.New("disk full")
				}
				r.recordLater(t.Context(), ledger.Entry{Type: ledger.Applied, Stack: "a", Intent: c.intent}, nil)
				r.late.Wait()
			})
			if n := b.count("append " + string(ledger.Applied)); n != c.tried {
				t.Errorf("tried %d times, want %d", n, c.tried)
			}
			var told []bool
			for _, e := range b.events {
				if e.Type == EventLedger {
					told = append(told, e.Resolved)
				}
			}
			if !slices.Equal(told, c.told) {
				t.Errorf("told %v, want %v", told, c.told)
			}
		})
	}
}

// People hear of what they have to decide, and of what does not go away.
func TestWhatPeopleHearOf(t *testing.T) {
	t.Parallel()
	fails := func(k fault.Kind, op string) error { return fault.New(k, op, "", "no") }
	for name, c := range map[string]struct {
		err      error
		changed  bool
		failures int
		held     bool
		told     EventType // empty: nothing
	}{
		"a denial":                             {fails(fault.Denied, "op"), true, 1, false, EventDenied},
		"a denial that is known":               {fails(fault.Denied, "op"), false, 1, false, ""},
		"a wrong repository":                   {fails(fault.Invalid, "op"), true, 1, false, EventDenied},
		"a plan over the limits":               {fails(fault.Waiting, opAdmit), true, 1, false, EventHeld},
		"a plan over the limits that is known": {fails(fault.Waiting, opAdmit), false, 1, false, ""},
		"a denial by the gate":                 {fails(fault.Denied, opAdmit), true, 1, false, EventDenied},
		"waiting":                              {fails(fault.Waiting, "op"), true, failuresUntilTold, false, ""},
		"the first failure":                    {fails(fault.Transient, "op"), true, 1, false, ""},
		"a failure that lasts":                 {fails(fault.Transient, "op"), false, failuresUntilTold, false, EventFailed},
		"a failure that lasts on":              {fails(fault.Transient, "op"), true, failuresUntilTold + 1, false, ""},
		"a failure of the gate":                {fails(fault.Transient, opAdmit), true, 1, false, ""},
		"it is well":                           {nil, true, 0, false, ""},
		"a stack file that is gone":            {nil, true, 0, true, ""},
	} {
		b := newBed(t, "a")
		r := b.new()
		s := newStack("repo", Stack{Name: "a"})
		s.attempts, s.held = c.failures, c.held
		r.tellSettled(s, c.err, c.changed)
		if n := b.told(c.told, "a"); len(b.events) != n || n != 1 && c.told != "" {
			t.Errorf("%s: told %+v", name, b.events)
		}
		if c.told == "" {
			s.alarm(true)
			b.events = nil
		}
		r.tellSettled(s, nil, true)
		if n := b.told(EventRecovered, "a"); n == 1 == c.held {
			t.Errorf("%s: told %d times that it is over", name, n)
		}
	}
	b := newBed(t, "a")
	r := b.new()
	r.Events = nil // nobody listens
	r.tell(Event{})
}
