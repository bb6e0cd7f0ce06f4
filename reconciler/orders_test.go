package reconciler

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/verify"
)

func TestSuspendedStackStaysAsItIs(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r := b.new()
	stop := b.run(r)
	b.until("both are deployed", func() bool { return status(r, "a").Phase == Ready && status(r, "c").Phase == Ready })
	if err := r.Suspend(t.Context(), "a", "", time.Time{}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("without a reason: %v", err)
	}
	if err := r.Suspend(t.Context(), "a", "a migration", time.Time{}); err != nil {
		t.Fatal(err)
	}
	b.push(map[string]string{"a/object": "v2", "c/object": "v2"})
	b.until("the other is updated", func() bool { return b.object("c") == "v2" })
	b.drift("a", "moved")
	b.until("the drift is known", func() bool { return len(status(r, "a").Findings) == 1 })
	if got := status(r, "a"); got.Phase != Suspended || !strings.Contains(got.Message, "a migration") {
		t.Errorf("status: %+v", got)
	}
	if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Waiting {
		t.Errorf("apply: %v", err)
	}
	if got := phaseMetric(t, r, "a", Suspended); got != 1 {
		t.Errorf("the metric of its phase is %v", got)
	}
	stop()

	r = b.new() // it holds over a restart
	b.run(r)
	b.until("it is suspended again", func() bool { return status(r, "a").Phase == Suspended })
	b.until("the other is taken up", func() bool { return status(r, "c").Phase == Ready })
	if got := b.object("a"); got != "moved" {
		t.Errorf("the suspended stack was made %q", got)
	}
	if err := r.Resume(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	b.until("it is brought to the newest commit", func() bool { return b.object("a") == "v2" && status(r, "a").Phase == Ready })
}

// phaseMetric returns what the metrics say about a phase of a stack.
func phaseMetric(t *testing.T, r *Reconciler, stack string, p Phase) float64 {
	t.Helper()
	families, err := r.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "holdfast_stack_phase" && labels["stack"] == stack && labels["phase"] == string(p) {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func TestSuspensionEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r := b.new()
	b.run(r)
	b.until("both are deployed", func() bool { return status(r, "a").Phase == Ready && status(r, "c").Phase == Ready })
	if err := r.Suspend(t.Context(), "", "a freeze", time.Now().Add(1500*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b.drift("c", "edited")
	b.push(map[string]string{"a/object": "v2"})
	b.until("the commit is seen", func() bool { return status(r, "a").Desired == "commit-2" })
	if got := b.object("a"); got != "v1" {
		t.Errorf("a suspended stack was made %q", got)
	}
	b.until("it goes on by itself", func() bool { return b.object("a") == "v2" })
	b.until("what drifted is reverted", func() bool { return b.object("c") == "v1" })
}

func TestRevocationWithdrawsWhatRuns(t *testing.T) {
	t.Parallel()
	key := verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0a", 32)}
	for _, c := range []struct {
		name   string
		anchor verify.Anchor
	}{{"key", key}, {"commit", verify.Anchor{Kind: verify.AnchorCommit, Value: strings.Repeat("1", 40)}}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.evidence, b.rests = map[string]string{"a": "signed"}, []verify.Anchor{key, {Kind: verify.AnchorCommit, Value: strings.Repeat("1", 40)}}
			r := b.new()
			stop := b.run(r)
			b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
			applied := b.count("apply a")
			b.with(func() { b.evidence = map[string]string{} }) // the verifier knows it too
			stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: c.anchor, Reason: "it leaked"})
			if err != nil || len(stacks) != 1 || stacks[0] != "a" {
				t.Fatalf("Revoke: %v, %v", stacks, err)
			}
			b.until("it is denied", func() bool { return status(r, "a").Phase == Denied })
			b.drift("a", "moved")
			b.until("the drift is known", func() bool { return len(status(r, "a").Findings) == 1 })
			if b.told(EventRevoked, "a") != 1 {
				t.Error("nobody was told")
			}
			check := func(when string) {
				if got := b.object("a"); got != "moved" || b.count("apply a") != applied {
					t.Errorf("%s: what was revoked was restored: %q", when, got)
				}
				if status(r, "a").Revoked == "" {
					t.Errorf("%s: the status does not say so", when)
				}
			}
			check("at once")
			stop()

			r = b.new()
			b.run(r)
			b.until("it is denied after a restart", func() bool { return status(r, "a").Phase == Denied })
			check("after a restart")
			if b.recorded(ledger.Revoked, "", string(c.anchor.Kind)) != 1 {
				t.Error("the ledger does not say so")
			}
			// Evidence that rests on something else makes it well again.
			b.with(func() {
				b.evidence, b.rests = map[string]string{"a": "signed again"}, []verify.Anchor{{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0b", 32)}}
			})
			b.push(map[string]string{"a/object": "v2"})
			b.until("it is well again", func() bool { return status(r, "a").Phase == Ready && b.object("a") == "v2" })
		})
	}
}

// TestRevocationSince spares what was there before, also after a restart.
func TestRevocationSince(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	old, late := verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0a", 32), At: noon}, verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0b", 32)}
	b := newBed(t, "a")
	b.evidence, b.rests = map[string]string{"a": "signed"}, []verify.Anchor{old, late}
	r := b.new()
	stop := b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	if stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: old, Since: noon.Add(time.Minute), Reason: "stolen"}); err != nil || len(stacks) != 0 {
		t.Fatalf("what was signed before is withdrawn: %v, %v", stacks, err)
	}
	if _, err := r.Revoke(t.Context(), verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorCommit, Value: strings.Repeat("1", 40)}, Since: noon, Reason: "stolen"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a commit as of a time: %v", err)
	}
	stop()
	r = b.new()
	stop = b.run(r)
	if b.until("it is enforced after a restart", func() bool { return status(r, "a").Phase == Ready }); status(r, "a").Revoked != "" {
		t.Errorf("after a restart what was signed before is revoked: %s", status(r, "a").Revoked)
	}
	if list := r.Revocations.List(); len(list) != 1 || !list[0].Since.Equal(noon.Add(time.Minute)) {
		t.Errorf("a restart knows %v", list)
	}
	if stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: old, Since: noon, Reason: "stolen even before"}); err != nil || len(stacks) != 1 {
		t.Errorf("what was signed since is not withdrawn: %v, %v", stacks, err)
	}
	stop()
}

func TestRevokeRefusesWhatItCannotMean(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	for _, a := range []verify.Anchor{{Kind: "keys", Value: "x"}, {Kind: verify.AnchorKey}} {
		if _, err := r.Revoke(t.Context(), verify.Revocation{Anchor: a, Reason: "because"}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v: %v", a, err)
		}
	}
	if _, err := r.Revoke(t.Context(), verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorKey, Value: "x"}, Reason: ""}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("without a reason: %v", err)
	}
}

// obey issues, signs and hands in an order.
func obey(t *testing.T, r *Reconciler, kind, name, to, signature string) error {
	t.Helper()
	o, err := r.NewOrder(t.Context(), kind, name, to, "the newest one is broken")
	if err != nil {
		t.Fatal(err)
	}
	return hand(t, r, o, signature)
}

func hand(t *testing.T, r *Reconciler, o Order, signature string) error {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return r.Obey(t.Context(), raw, []byte(signature))
}

func TestRollbackHoldsUntilTheNextCommit(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r := b.new()
	stop := b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	b.push(map[string]string{"a/object": "v2, which is broken"})
	b.until("it is updated", func() bool { return b.object("a") == "v2, which is broken" && status(r, "a").Phase == Ready })

	if err := obey(t, r, OrderRollback, "a", "commit-1", "mallory's"); fault.KindOf(err) != fault.Denied {
		t.Fatalf("an order that nobody signed: %v", err)
	}
	o, err := r.NewOrder(t.Context(), OrderRollback, "a", "commit-1", "v2 is broken")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Order){
		"another daemon": func(o *Order) { o.Ledger = "elsewhere" },
		"an old one":     func(o *Order) { o.Issued = o.Issued.Add(-2 * time.Hour) },
		"a future one":   func(o *Order) { o.Issued = o.Issued.Add(2 * time.Hour) },
		"another state":  func(o *Order) { o.From = "commit-1" },
		"no reason":      func(o *Order) { o.Reason = "" },
		"another kind":   func(o *Order) { o.Kind = "reboot" },
		"the future":     func(o *Order) { o.To = "commit-3" },
	} {
		bad := o
		change(&bad)
		if err := hand(t, r, bad, "alice's"); err == nil {
			t.Errorf("an order for %s was taken", what)
		}
	}
	if err := hand(t, r, o, "alice's"); err != nil {
		t.Fatal(err)
	}
	b.until("it is back", func() bool { return b.object("a") == "v1" && status(r, "a").Phase == Ready })
	if got := status(r, "a").RolledBack; got == nil || got.To != "commit-1" || got.From != "commit-2" {
		t.Errorf("status: %+v", got)
	}
	if err := hand(t, r, o, "alice's"); fault.KindOf(err) != fault.Denied {
		t.Errorf("the order was taken twice: %v", err)
	}
	// A commit that does not touch the stack is no answer.
	b.push(map[string]string{"c/object": "v2"})
	b.until("the other is updated", func() bool { return b.object("c") == "v2" })
	b.until("the commit was taken", func() bool { return r.Status().Repositories[0].Enforced == "commit-3" })
	if got := b.object("a"); got != "v1" {
		t.Errorf("it was made %q", got)
	}
	// Nor is a restart.
	stop()
	clear(b.found)
	r = b.new()
	b.run(r)
	b.until("it is taken up", func() bool { return status(r, "a").Phase == Ready })
	b.drift("a", "moved")
	b.until("what it went back to is enforced", func() bool { return b.object("a") == "v1" })
	b.push(map[string]string{"a/object": "v3"})
	b.until("the next commit of the stack ends it", func() bool { return b.object("a") == "v3" && status(r, "a").RolledBack == nil })
	if err := obey(t, r, OrderRollback, "a", "commit-2", "alice's"); fault.KindOf(err) != fault.Denied {
		t.Errorf("back to what an order led away from: %v", err)
	}
}

func TestMarkOutlivesTheStateDirectory(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.marks = map[string]Mark{}
	r := b.new()
	stop := b.run(r)
	b.push(map[string]string{"a/object": "v2"})
	b.until("the newer commit is deployed", func() bool { return b.object("a") == "v2" && status(r, "a").Phase == Ready })
	stop()
	if got := b.marks["e/repo"].Commit; got != "commit-2" {
		t.Fatalf("the mark says %q", got)
	}
	// The state directory is lost, and the Git server offers an old signed head.
	b.state = t.TempDir()
	b.with(func() { b.commit, b.entries, b.lostlog = 1, nil, true })
	r = b.new()
	b.run(r)
	b.until("it is denied", func() bool { return status(r, "a").Phase == Denied })
	if got := status(r, "a"); !strings.Contains(got.Message, "commit-2") || !strings.Contains(got.Hint, "holdfast recover repo") {
		t.Errorf("status: %+v", got)
	}
	if got := b.object("a"); got != "v2" {
		t.Errorf("the old commit was deployed: %q", got)
	}
	// The newest head alone is no order either: the ledger is lost.
	b.with(func() { b.commit = 2 })
	b.until("the head is seen", func() bool { return r.Status().Repositories[0].Enforced == "commit-2" })
	applied := b.count("apply a")
	b.push(map[string]string{"a/object": "v3"})
	b.until("the next commit is seen", func() bool { return r.Status().Repositories[0].Enforced == "commit-3" })
	b.until("and denied", func() bool { return status(r, "a").Phase == Denied && status(r, "a").Desired == "commit-3" })
	if b.count("apply a") != applied {
		t.Error("something was applied before an order")
	}
	if err := obey(t, r, OrderRecover, "repo", "commit-2", "mallory's"); fault.KindOf(err) != fault.Denied {
		t.Fatalf("an order that nobody signed: %v", err)
	}
	if err := obey(t, r, OrderRecover, "repo", "commit-2", "alice's"); err != nil {
		t.Fatal(err)
	}
	b.with(func() { b.lostlog = false }) // the mark was replaced: its checkpoint is ours
	if _, err := r.Apply(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := b.object("a"); got != "v3" {
		t.Errorf("after the order: %q", got)
	}
}

func TestRestoredBackupRevertsNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.marks = map[string]Mark{}
	r := b.new()
	stop := b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	stop()
	// Somebody went on with another copy of the state: the mark knows more.
	b.with(func() {
		b.marks["e/repo"] = Mark{Repository: "repo", Commit: "commit-9", Checkpoint: []byte("c")}
		b.live["a"], b.lostlog = "v9", true
		clear(b.found)
	})
	r = b.new()
	b.run(r)
	b.until("it is taken up", func() bool { return status(r, "a").Applied == "commit-1" })
	b.drift("a", "v9")
	b.until("the difference is known", func() bool { return len(status(r, "a").Findings) == 1 })
	if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Denied {
		t.Errorf("apply: %v", err)
	}
	if got := b.object("a"); got != "v9" {
		t.Errorf("an old backup brought back %q", got)
	}
}

func TestClockThatGoesBackWaits(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	b.with(func() { b.last = time.Now().Add(time.Hour) })
	b.push(map[string]string{"a/object": "v2"})
	b.until("it says so", func() bool { return strings.Contains(r.Status().Repositories[0].Message, "the clock went back") })
	if got := b.object("a"); got != "v1" {
		t.Errorf("something was applied: %q", got)
	}
	b.with(func() { b.last = time.Now() })
	r.Poke("repo")
	b.until("it goes on", func() bool { return b.object("a") == "v2" })
}

func TestHeadThatCannotBeConfirmedIsAFinding(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	r.repository("repo").MaxAge = 50 * time.Millisecond
	stop := b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	b.with(func() { b.down = true })
	b.until("it is noticed", func() bool { r.Poke("repo"); return r.Status().Repositories[0].Stale })
	b.until("it is recorded", func() bool { return b.recorded(ledger.Raised, "", "stale") == 1 })
	b.with(func() { b.down = false })
	b.until("it is over", func() bool { r.Poke("repo"); return !r.Status().Repositories[0].Stale })
	stop()
	told, raised := []bool{}, 0 // is it over?
	for _, e := range b.events {
		if e.Key == "age/repo" {
			told = append(told, e.Resolved)
		}
	}
	for i, over := range told {
		if over != (i%2 == 1) {
			t.Fatalf("told %v", told)
		}
	}
	for _, e := range b.entries {
		if e.Type == ledger.Raised {
			raised++
		}
	}
	if len(told) < 2 || raised != (len(told)+1)/2 {
		t.Errorf("told %v, and %d on record", told, raised)
	}
}

// A restart does not make old news fresh.
func TestRestartDoesNotConfirmTheHead(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	r.repository("repo").MaxAge = time.Hour
	stop := b.run(r)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	stop()
	path := r.state.path("repositories", "repo")
	var st repositoryState
	if err := r.state.read(path, &st); err != nil || time.Since(st.Confirmed) > time.Minute {
		t.Fatalf("kept: %+v, %v", st, err)
	}
	st.Confirmed = st.Confirmed.Add(-2 * time.Hour)
	if err := r.state.write(path, st); err != nil {
		t.Fatal(err)
	}
	b.with(func() { b.down = true })
	r = b.new()
	r.repository("repo").MaxAge = time.Hour
	authorise := r.repository("repo").Authorise
	r.repository("repo").Authorise = func(context.Context, string, string, time.Time) (verify.Evidence, error) {
		return verify.Evidence{}, errors.New("its signer is not known any more")
	}
	stop = b.run(r)
	b.until("it is noticed though nothing can be taken up", func() bool { return r.Status().Repositories[0].Stale })
	r.repository("repo").Authorise = authorise
	recover, err := r.prepareRecover(t.Context(), Order{Repository: "repo", To: st.Verified})
	if err != nil {
		t.Fatal(err)
	}
	r.repository("repo").polling.Lock()
	err = recover()
	r.repository("repo").polling.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	r = b.new()
	r.repository("repo").MaxAge = time.Hour
	b.run(r)
	b.until("an order to recover changes nothing about that", func() bool { return r.Status().Repositories[0].Stale })
	b.with(func() { b.down = false })
	b.until("it is over, and kept", func() bool {
		r.Poke("repo")
		return !r.Status().Repositories[0].Stale && r.state.read(path, &st) == nil && time.Since(st.Confirmed) < time.Minute
	})
}

func TestGoneStack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		prune Prune
		live  string
		phase Phase
	}{{"", "v1", Held}, {PruneHold, "v1", Held}, {PruneDelete, "", ""}, {PruneOrphan, "let go", ""}} {
		t.Run(string("prune "+c.prune), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a", "c")
			b.prune["a"] = c.prune
			r := b.new()
			b.run(r)
			b.until("both are deployed", func() bool { return status(r, "a").Phase == Ready && status(r, "c").Phase == Ready })
			b.push(map[string]string{"a/object": ""})
			b.until("it is dealt with", func() bool { return status(r, "a").Phase == c.phase && b.object("a") == c.live })
			if c.phase == Held {
				b.drift("a", "moved")
				b.until("it goes on being enforced", func() bool { return b.object("a") == c.live })
				if b.told(EventHeld, "a") != 1 {
					t.Error("nobody was told")
				}
			}
			if got := status(r, "c").Phase; got != Ready {
				t.Errorf("the other stack is %s", got)
			}
		})
	}
}

func TestRemovalWaitsForDependents(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.prune["a"], b.depends["c"] = PruneDelete, "a"
	r := b.new()
	b.run(r)
	b.until("both are deployed", func() bool { return status(r, "c").Phase == Ready })
	b.push(map[string]string{"a/object": ""})
	b.until("it waits", func() bool { return strings.Contains(status(r, "a").Message, "still needed by c") })
	if got := b.object("a"); got != "v1" {
		t.Errorf("it is %q", got)
	}
}

func TestDeniedStackIsLookedAtAgainWhenTheEvidenceChanges(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.evidence = map[string]string{}
	r := b.new()
	b.run(r)
	b.until("it is denied", func() bool { return status(r, "a").Phase == Denied })
	s := r.stack("a")
	b.until("it is known what is missing", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.unproven != nil
	})
	r.lookAgain(t.Context(), s) // takes the first fingerprint, and judges once more
	b.until("it was judged again", func() bool { return b.count("render a") == 2 && r.stack("a").failures() == 2 })
	if again := r.lookAgain(t.Context(), s); again != lookAgainAfter {
		t.Errorf("unchanged evidence is looked at after %s", again)
	}
	b.with(func() { b.evidence["a"] = "signed" })
	r.lookAgain(t.Context(), s)
	b.until("it is deployed", func() bool { return status(r, "a").Phase == Ready })
	if got := b.count("render a"); got != 3 {
		t.Errorf("rendered %d times", got)
	}
}

// A stack that goes on under another name in the same folder is no stack that is
// gone: nothing is pruned, and it goes on being enforced until the new name
// stands, also when the daemon stops in between.
func TestRenamedStack(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.prune["a"] = PruneDelete
	_, stop := b.ready("a")
	b.with(func() {
		b.alias["a"], b.aliasFrom, b.dirs = "new", 2, map[string]string{"new": "a"}
		b.denied["new"] = true
	})
	b.push(map[string]string{"a/object": "v2"})
	b.until("the new name is denied", func() bool { return b.recorded(ledger.Refused, "new", "denied") > 0 })
	b.drift("a", "moved")
	b.until("the old one is still enforced", func() bool { return b.object("a") == "v1" })
	stop()
	clear(b.found)
	r := b.new()
	b.run(r)
	b.untilPhase(r, "new", Denied)
	b.drift("a", "moved")
	b.until("it is after a restart", func() bool { return b.object("a") == "v1" })
	if b.count("removal a") != 0 || b.count("renounce a") < 2 {
		t.Error("the renamed stack was pruned before the new name stands")
	}
	b.with(func() { b.denied = map[string]bool{} })
	b.push(map[string]string{"a/object": "v3"})
	b.untilPhase(r, "new", Ready)
	b.until("what only the old name has is removed", func() bool { return b.count("removal a") == 1 && status(r, "a").Stack == "" })
}

// Whoever is about to own something says so before anybody prunes.
func TestChangedStacksAreExpectedFirst(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.depends["c"] = "a"
	_, _ = b.ready("a", "c")
	expected, rendered := b.count("expect c"), b.count("render c")
	b.with(func() { b.denied["a"] = true })
	b.push(map[string]string{"a/object": "v2", "c/object": "v2"})
	b.until("the dependent is rendered, though its turn is far off", func() bool { return b.count("render c") > rendered })
	if b.count("expect c") <= expected {
		t.Error("it was not expected")
	}
}

// A second rollback leads away from the same as the first, not from where that led.
func TestRollbackAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	for _, v := range []string{"v2", "v3"} {
		b.push(map[string]string{"a/object": v})
		b.until(v, func() bool { return b.object("a") == v && status(r, "a").Phase == Ready })
	}
	for _, back := range []struct{ commit, object string }{{"commit-2", "v2"}, {"commit-1", "v1"}} {
		if err := obey(t, r, OrderRollback, "a", back.commit, "alice's"); err != nil {
			t.Fatal(err)
		}
		b.until("back at "+back.commit, func() bool { return b.object("a") == back.object && status(r, "a").Phase == Ready })
	}
	// The same content under another commit is as bad.
	b.push(map[string]string{"b": "unrelated"})
	b.until("the next commit", func() bool { return r.Status().Repositories[0].Enforced == "commit-4" })
	if err := obey(t, r, OrderRollback, "a", "commit-3", "alice's"); fault.KindOf(err) != fault.Denied {
		t.Errorf("back to what was bad: %v", err)
	}
}

// A name in another folder of an older commit is somebody else's.
func TestRollbackKeepsToItsFolder(t *testing.T) {
	t.Parallel()
	b := newBed(t, "shop")
	r, _ := b.ready("shop")
	b.with(func() { b.alias["aaa"] = "shop" })
	b.push(map[string]string{"aaa/object": "evil"})
	b.untilPhase(r, "shop@repo/aaa", Invalid)
	b.push(map[string]string{"aaa/object": "", "shop/object": "v2"})
	b.until("v2", func() bool { return b.object("shop") == "v2" && status(r, "shop").Phase == Ready })
	if err := obey(t, r, OrderRollback, "shop", "commit-2", "alice's"); err != nil {
		t.Fatal(err)
	}
	b.until("back", func() bool { return b.object("shop") == "v1" && status(r, "shop").Phase == Ready })
	if got := status(r, "shop").Dir; got != "shop" {
		t.Errorf("the rollback deployed folder %q", got)
	}
}

// revoking has the bed's commits know what is revoked.
func revoking(b *bed, r *Reconciler) {
	inner := r.repos["repo"].Authorise
	r.repos["repo"].Authorise = func(ctx context.Context, from, head string, seen time.Time) (verify.Evidence, error) {
		e, err := inner(ctx, from, head, seen)
		e.RestsOn = []verify.Anchor{{Kind: verify.AnchorIdentity, Value: "signer of " + head}}
		return e, errors.Join(err, r.Revocations.Check(e.RestsOn...))
	}
}

// What rests on a revoked signer is still watched after a restart, and what does
// not is still enforced; and it can be rolled back from.
func TestRevokedHead(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r := b.new()
	revoking(b, r)
	stop := b.run(r)
	b.until("both are deployed", func() bool { return status(r, "a").Phase == Ready && status(r, "c").Phase == Ready })
	b.push(map[string]string{"a/object": "v2"})
	b.until("v2", func() bool { return b.object("a") == "v2" && status(r, "a").Phase == Ready })
	if stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorIdentity, Value: "signer of commit-2"}, Reason: "left"}); err != nil || len(stacks) != 1 {
		t.Fatalf("Revoke: %v, %v", stacks, err)
	}
	stop()
	clear(b.found)
	r = b.new()
	revoking(b, r)
	b.run(r)
	b.drift("c", "moved")
	b.until("the other is still enforced", func() bool { return b.object("c") == "v1" })
	b.drift("a", "moved")
	b.until("its drift is known", func() bool { return len(status(r, "a").Findings) == 1 })
	if err := obey(t, r, OrderRollback, "a", "commit-1", "alice's"); err != nil {
		t.Fatal(err)
	}
	b.until("it is back at what may be trusted", func() bool { return b.object("a") == "v1" && status(r, "a").Phase == Ready })
}

// A stack file that comes back while its stack is being removed wins.
func TestStackThatIsBroughtBack(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.prune["a"] = PruneDelete
	r, _ := b.ready("a", "c")
	b.with(func() { b.denied["a"] = true }) // the removal is denied
	b.push(map[string]string{"a/object": ""})
	b.untilPhase(r, "a", Denied)
	b.with(func() { b.denied = map[string]bool{} })
	b.push(map[string]string{"a/object": "v1"})
	b.untilPhase(r, "a", Ready)
	r.queue.Add(request{removeStack, "a"}) // a late request is none of its business
	b.drift("a", "moved")
	b.until("it is enforced", func() bool { return b.object("a") == "v1" })
}

// A removal that a crash cut off goes on after the restart, and nothing is
// restored meanwhile.
func TestCrashInARemoval(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.prune["a"] = PruneDelete
	r, stop := b.ready("a", "c")
	b.with(func() { b.denied["a"] = true })
	b.push(map[string]string{"a/object": ""})
	b.untilPhase(r, "a", Denied)
	stop()
	b.with(func() { b.denied = map[string]bool{} })
	b.open = []ledger.Numbered{{Index: 7, Entry: ledger.Entry{Type: ledger.Intent, Stack: "a", Outcome: gate.Removal, Bodies: map[string]digest.Digest{"commit": "sha256:x"}}}}
	r = b.new()
	b.run(r)
	b.until("it is removed", func() bool { return b.object("a") == "" && status(r, "a").Stack == "" })
}

// What does not decode, or whose name is claimed twice, is not gone after a restart.
func TestRestartMistakesNothingForGone(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bed){
		"a file that does not decode": func(b *bed) { b.with(func() { b.undecodable = "a" }); b.push(nil) },
		"a name that is claimed twice": func(b *bed) {
			b.with(func() { b.alias["aaa"] = "a" })
			b.push(map[string]string{"aaa/object": "evil"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.prune["a"] = PruneDelete
			_, stop := b.ready("a")
			change(b)
			stop()
			clear(b.found)
			r := b.new()
			b.run(r)
			b.drift("a", "moved")
			b.until("it is still enforced", func() bool { return b.object("a") == "v1" })
			if b.count("removal a") != 0 {
				t.Error("it was removed")
			}
		})
	}
}

// What was judged is not written if the stack was suspended meanwhile.
func TestSuspendStopsWhatIsJudged(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	s := r.stack("a")
	s.live.work.Lock() // whoever is judged by now waits here
	plans, done := b.count("plan a"), make(chan error)
	go func() {
		_, err := r.deploy(t.Context(), s, s.desired(), ledger.Applied, nil)
		done <- err
	}()
	b.until("it is judged", func() bool { return b.count("plan a") > plans })
	if err := r.Suspend(t.Context(), "a", "stop", time.Time{}); err != nil {
		t.Fatal(err)
	}
	s.live.work.Unlock()
	if err := <-done; fault.KindOf(err) != fault.Waiting || err == nil || !strings.Contains(err.Error(), "suspended") {
		t.Errorf("deploy = %v", err)
	}
}

// Drift is reverted to what is enforced, never to what was before.
func TestRevertDoesNotGoBack(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	s := r.stack("a")
	before := s.granted()
	b.push(map[string]string{"a/object": "v2"})
	b.until("the next commit is applied", func() bool { return s.granted() != before && b.object("a") == "v2" })
	if _, err := r.deploy(t.Context(), s, before.basis, ledger.Reverted, nil); fault.KindOf(err) != fault.Waiting || err == nil {
		t.Errorf("deploy = %v", err)
	}
	if got := b.object("a"); got != "v2" {
		t.Errorf("it was made %q", got)
	}
}

// An emptied repository deletes nothing, whatever its stacks asked for, and a
// restart is no way around that.
func TestEmptiedRepositoryIsHeld(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.prune["a"], b.prune["c"] = PruneDelete, PruneDelete
	r, stop := b.ready("a", "c")
	b.push(map[string]string{"a/object": "", "c/object": "", "readme": "nothing is left"})
	for _, name := range []string{"a", "c"} {
		b.untilPhase(r, name, Held)
	}
	stop()
	clear(b.found)
	r = b.new()
	b.run(r)
	b.untilPhase(r, "a", Held)
	b.drift("a", "moved")
	b.until("it goes on being enforced", func() bool { return b.object("a") == "v1" })
	if b.count("removal a")+b.count("removal c") != 0 {
		t.Error("the stacks of an emptied repository were removed")
	}
}

// One text is signed, and the same is read.
func TestOrderIsReadAsItIsSigned(t *testing.T) {
	t.Parallel()
	good := `{"kind":"rollback","ledger":"l","repository":"r","stack":"s","from":"a","to":"b","reason":"why","issued":"2026-01-02T03:04:05Z"}`
	if o, err := parseOrder([]byte(good)); err != nil || o.To != "b" {
		t.Fatalf("%+v, %v", o, err)
	}
	for name, raw := range map[string]string{
		"a field twice":    strings.Replace(good, `"to":"b"`, `"to":"b","to":"c"`, 1),
		"another case":     strings.Replace(good, `"to":"b"`, `"to":"b","To":"c"`, 1),
		"an unknown field": strings.Replace(good, `"to":"b"`, `"to":"b","until":"c"`, 1),
		"more behind it":   good + `{"kind":"recover"}`,
		"no JSON":          "rollback, please",
	} {
		if o, err := parseOrder([]byte(raw)); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s is read as %+v: %v", name, o, err)
		}
	}
}
