package reconciler

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// A world that is as it was granted does not hide what is asked for and was not
// done.
func TestCalm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		phase   Phase
		change  func(*bed, *stack)
		settled Phase
	}{
		{"it is ready", Ready, nil, Ready},
		{"it drifted", Drifted, nil, Ready},
		{"it drifts in another object", Drifted, func(_ *bed, s *stack) { s.live.findings.Add(targets.Finding{ID: plan.ObjectID{Name: "x"}}) }, Drifted},
		{"it drifted, and a newer commit came in", Drifted, func(b *bed, s *stack) { s.want(b.snapshot("commit-2"), s.commit, s.seen) }, Ready},
		{"its file is gone", Held, func(_ *bed, s *stack) { s.held = true }, Held},
		{"its revert was denied", Denied, nil, Ready},
		{"it is not healthy", Progressing, nil, Progressing},
		{"it is refused", Ready, func(_ *bed, s *stack) { s.refusal = errors.New("no"); s.status.Phase = Denied }, Denied},
		{"it is refused, and drifted", Drifted, func(_ *bed, s *stack) { s.refusal = errors.New("no") }, Drifted},
		{"its newer commit is denied", Denied, func(b *bed, s *stack) { s.want(b.snapshot("commit-2"), s.commit, s.seen) }, Denied},
		{"its removal is denied", Denied, func(_ *bed, s *stack) { s.held = true }, Denied},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.applied("a")
			b.push(map[string]string{"a/object": "v2"})
			s := r.stack("a")
			if s.enter(c.phase); c.change != nil {
				c.change(b, s)
			}
			if s.calm(); s.snapshotStatus().Phase != c.settled {
				t.Errorf("it is %s, want %s", s.snapshotStatus().Phase, c.settled)
			}
		})
	}
}

func TestPhases(t *testing.T) {
	t.Parallel()
	same := func(text string) string { return text }
	s := newStack("repo", Stack{Name: "a"})
	waits := fault.New(fault.Waiting, "", "", "not healthy")
	for _, c := range []struct {
		from, to Phase
		err      error
		changed  bool
	}{
		{Pending, Waiting, waits, true},
		{Waiting, Waiting, waits, false},
		{Progressing, Progressing, waits, false},
		{Reconciling, Waiting, waits, true},
		{Waiting, Waiting, fault.New(fault.Waiting, "", "", "something else"), true},
		{Progressing, Failed, errors.New("broken"), true},
	} {
		s.enter(c.from)
		if changed := s.settle(c.err, same); changed != c.changed || s.snapshotStatus().Phase != c.to {
			t.Errorf("%s, %v: %s, changed %t", c.from, c.err, s.snapshotStatus().Phase, changed)
		}
	}
	for phase, drifted := range map[Phase]Phase{Ready: Drifted, Denied: Denied, Held: Held, Waiting: Waiting} {
		s.enter(phase)
		if s.disturbed(); s.snapshotStatus().Phase != drifted {
			t.Errorf("drift makes of %s %s", phase, s.snapshotStatus().Phase)
		}
	}
	for _, phase := range phases {
		s.enter(phase)
		if want := phase == Ready || phase == Held || phase == Drifted; s.settled() != want {
			t.Errorf("%s: settled %t", phase, s.settled())
		}
	}
}

// A stack file is gone once.
func TestHoldOnce(t *testing.T) {
	t.Parallel()
	s := newStack("repo", Stack{Name: "a"})
	if s.revisionString() != "" {
		t.Errorf("a revision %q", s.revisionString())
	}
	first := sources.Revision{Source: "repo", ID: "commit-2"}
	if !s.hold(first) || s.hold(sources.Revision{Source: "repo", ID: "commit-3"}) || s.goneAt() != first || s.revisionString() != "repo@commit-2" {
		t.Errorf("gone at %s", s.goneAt())
	}
}

// What nothing was asked of yet is not what was asked for.
func TestUnchangedNeedsARequest(t *testing.T) {
	t.Parallel()
	s := newStack("repo", Stack{Name: "a", Key: "k"})
	s.live.current = &deployment{basis: basis{Stack: s.Stack}, inputs: map[string]string{"a": "x"}}
	if s.unchanged() {
		t.Error("it is unchanged")
	}
}

// A commit that is not applied yet is not said to be, and a phase begins once.
func TestStatusOfANewerCommit(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.push(map[string]string{"a/object": "v2"})
	s := r.stack("a")
	since := s.snapshotStatus().Since
	s.want(b.snapshot("commit-2"), s.commit, s.seen)
	if st := s.snapshotStatus(); st.Applied != "commit-1" || st.Desired != "commit-2" {
		t.Errorf("%+v", st)
	}
	if s.enter(Ready); s.snapshotStatus().Since != since {
		t.Error("a phase began anew")
	}
}

// What is to be repaired is known until it is, since it was first seen.
func TestPending(t *testing.T) {
	t.Parallel()
	var e enforced
	a, c := plan.ObjectID{Name: "a"}, plan.ObjectID{Name: "c"}
	first := time.Now()
	for _, m := range []map[plan.ObjectID]time.Time{{a: first}, {c: first}, {a: first.Add(time.Second)}} {
		e.addPending(m)
	}
	if ids, at := e.takePending(); len(ids) != 2 || at[a] != first || at[c] != first {
		t.Errorf("%v, %v", ids, at)
	}
}

// A revocation is about what is enforced, and is news once.
func TestRevokedOnce(t *testing.T) {
	t.Parallel()
	s, d := newStack("repo", Stack{Name: "a"}), &deployment{}
	why := errors.New("it leaked")
	if s.live.current = d; s.revoked(&deployment{}, why) || s.live.whyRevoked() != nil {
		t.Error("of what was enforced before")
	}
	if !s.revoked(d, why) || s.revoked(d, errors.New("again")) || !errors.Is(s.live.whyRevoked(), why) {
		t.Errorf("revoked: %v", s.live.whyRevoked())
	}
}

// An observer ends with the next one, and with its stack, also when it begins
// just then.
func TestObserversEnd(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	s := newStack("repo", Stack{Name: "a"})
	ended := ""
	s.live.observing(func() { ended += "1" })
	if s.live.observing(func() { ended += "2" }); ended != "1" {
		t.Errorf("ended %q", ended)
	}
	d := &deployment{basis: basis{target: &target{b: b, name: "a"}}}
	s.live.current, s.target = d, &target{b: b, name: "next"}
	if s.close(); ended != "12" || b.count("close a") != 1 || b.count("close next") != 1 {
		t.Errorf("ended %q, closed %v", ended, b.calls)
	}
	if s.live.observing(func() { ended += "3" }); ended != "123" {
		t.Errorf("ended %q", ended)
	}
	one := newStack("repo", Stack{Name: "one"})
	one.target = &target{b: b, name: "one"}
	one.live.current = &deployment{basis: basis{target: one.target}}
	if one.close(); b.count("close one") != 1 {
		t.Errorf("one target was closed %d times", b.count("close one"))
	}
	none := newStack("repo", Stack{Name: "none"})
	none.target = &plain{}
	none.close()
}

// A denied stack is judged again when the evidence changed, or after a long time.
func TestLookAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*bed, *stack)
		again  time.Duration
		judged int
	}{
		"the evidence changed":           {func(*bed, *stack) {}, 0, 1},
		"it did not":                     {func(b *bed, s *stack) { s.looked, _ = b.Fingerprint(b.t.Context(), "e", s.unproven.named) }, lookAgainAfter, 0},
		"it cannot be read":              {func(b *bed, _ *stack) { b.fails("fingerprint", fault.Transient) }, lookAgainAfter, 0},
		"it is not denied any more":      {func(_ *bed, s *stack) { s.enter(Ready) }, 0, 0},
		"its stack file is gone":         {func(_ *bed, s *stack) { s.held = true }, 0, 0},
		"it was not judged":              {func(_ *bed, s *stack) { s.unproven = nil }, lookAgainAfter, 0},
		"it names nothing":               {func(_ *bed, s *stack) { s.unproven.named = nil }, lookAgainAfter, 0},
		"a long time, and nothing known": {func(_ *bed, s *stack) { s.unproven, s.judgedAt = nil, time.Now().Add(-judgeAgainAfter-time.Second) }, 0, 1},
		"a long time, and it is ready":   {func(_ *bed, s *stack) { s.enter(Ready); s.judgedAt = time.Time{} }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.evidence = map[string]string{}
			r := b.applied()
			if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Denied {
				t.Fatalf("apply: %v", err)
			}
			r.queue = r.metrics.delaying(queueStacks)
			defer r.queue.ShutDown()
			s := r.stack("a")
			c.before(b, s)
			if again := r.lookAgain(t.Context(), s); again != c.again || r.queue.Len() != c.judged {
				t.Errorf("again in %s, judged %d times", again, r.queue.Len())
			}
			if judged := s.judgedAt; time.Since(judged) > time.Minute && s.snapshotStatus().Phase == Denied {
				t.Errorf("judged at %s", judged)
			}
		})
	}
}

// What was looked at for one commit says nothing about the next.
func TestDeniedAnew(t *testing.T) {
	t.Parallel()
	s := newStack("repo", Stack{Name: "a"})
	s.asked = sources.Revision{ID: "1"}
	s.denied(nil)
	s.looked = digest.FromString("x")
	if s.denied(nil); s.looked == "" {
		t.Error("the same commit is new")
	}
	s.asked.ID = "2"
	if s.denied(nil); s.looked != "" || s.judgedAt.IsZero() {
		t.Error("the next commit is not")
	}
}
