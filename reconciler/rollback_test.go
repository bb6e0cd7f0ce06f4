package reconciler

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// What an order needs to be one.
func TestOrdersThatAreNone(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied()
	ctx := t.Context()
	order := func(kind, name, reason string) error {
		_, err := r.NewOrder(ctx, kind, name, "commit-1", reason)
		return err
	}
	noSigner := b.new()
	noSigner.Signer = nil
	key := verify.Anchor{Kind: verify.AnchorKey, Value: leaked.Value}
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
		says string
	}{
		"an order without a reason":     {order(OrderRollback, "a", ""), fault.Invalid, "no reason"},
		"a rollback of nothing":         {order(OrderRollback, "nobody", "why"), fault.Invalid, "no stack"},
		"a recovery of nothing":         {order(OrderRecover, "nobody", "why"), fault.Invalid, "no repository"},
		"another order":                 {order("reboot", "a", "why"), fault.Invalid, "no order"},
		"an order that is too long":     {r.Obey(ctx, make([]byte, maxOrder+1), []byte("alice's")), fault.Invalid, "more than"},
		"a signature that is too long":  {r.Obey(ctx, []byte("{}"), make([]byte, maxOrder+1)), fault.Invalid, "more than"},
		"an order that nobody may sign": {noSigner.Obey(ctx, []byte("{}"), []byte("alice's")), fault.Denied, "nobody may sign"},
		"for another repository":        {hand(t, r, Order{Kind: OrderRecover, Ledger: b.Origin(), Repository: "other", Issued: time.Now(), Reason: "why"}, "alice's"), fault.Denied, "no repository"},
		"a suspension of nothing":       {r.Suspend(ctx, "nobody", "why", time.Time{}), fault.Invalid, "no stack"},
		"a suspension that is over":     {r.Suspend(ctx, "a", "why", time.Now().Add(-time.Second)), fault.Invalid, "is over"},
		"the end of no suspension":      {r.Resume(ctx, "nobody"), fault.Invalid, "no stack"},
		"a revocation without a reason": {func() error { _, err := r.Revoke(ctx, verify.Revocation{Anchor: key, Reason: ""}); return err }(), fault.Invalid, "no reason"},
		"a revocation of less than a value": {func() error {
			_, err := r.Revoke(ctx, verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorKey, Value: "0a"}, Reason: "why"})
			return err
		}(), fault.Invalid, ""},
	} {
		if c.err == nil || fault.KindOf(c.err) != c.kind || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	for _, typ := range []ledger.Type{ledger.Suspended, ledger.Resumed, ledger.Revoked, ledger.Ordered} {
		if n := b.count("append " + string(typ)); n != 0 {
			t.Errorf("%d %s on record", n, typ)
		}
	}
}

// What is not in the ledger does not hold.
func TestOrdersThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.push(map[string]string{"a/object": "v2"})
	if err := r.Reconcile(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.Suspend(t.Context(), "a", "stop", time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, typ := range []ledger.Type{ledger.Suspended, ledger.Resumed, ledger.Revoked, ledger.Ordered} {
		b.fails("append "+string(typ), fault.Transient)
	}
	if err := r.Suspend(t.Context(), "", "stop", time.Time{}); err == nil || r.suspension("another") != nil {
		t.Errorf("suspend: %v", err)
	}
	if err := r.Resume(t.Context(), "a"); err == nil || r.suspension("a") == nil {
		t.Errorf("resume: %v", err)
	}
	if _, err := r.Revoke(t.Context(), verify.Revocation{Anchor: leaked, Reason: "it leaked"}); err == nil || len(r.Revocations.List()) != 0 {
		t.Errorf("revoke: %v", err)
	}
	if err := obey(t, r, OrderRollback, "a", "commit-1", "alice's"); err == nil || r.orders.rolledBack("a") != nil {
		t.Errorf("roll back: %v", err)
	}
}

// Who suspends all ends it for all; without a daemon nobody is waited for.
func TestSuspensions(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	r := b.applied("a", "c")
	ctx := t.Context()
	until := time.Now().Add(time.Hour)
	if err := errors.Join(r.Suspend(ctx, "a", "stop", until), r.Suspend(ctx, "", "freeze", time.Time{})); err != nil {
		t.Fatal(err)
	}
	if a, c := r.suspension("a").err().Error(), r.suspension("c").err().Error(); !strings.Contains(a, until.UTC().Format(time.RFC3339)) || !strings.Contains(c, "until it is resumed: freeze") {
		t.Errorf("%q, %q", a, c)
	}
	restarted := b.new()
	if err := restarted.takeUpOrders(ctx); err != nil || !restarted.suspension("a").Until.Equal(until.Truncate(time.Second)) {
		t.Errorf("after a restart: %v, %+v", err, restarted.suspension("a"))
	}
	if err := r.Resume(ctx, "c"); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("one of all: %v", err)
	}
	if err := r.Resume(ctx, "a"); err != nil || r.suspension("a").Reason != "freeze" {
		t.Errorf("one's own: %v, %+v", err, r.suspension("a"))
	}
	b.with(func() {
		for _, e := range b.entries {
			if e.Type == ledger.Suspended && (e.Subject == "") != (e.Stack == "") {
				t.Errorf("the end that was named: %+v", e)
			}
		}
	})
	if err := errors.Join(r.Suspend(ctx, "a", "stop", time.Time{}), r.Resume(ctx, "")); err != nil || r.suspension("a") != nil || r.suspension("c") != nil {
		t.Errorf("all: %v", err)
	}
	if err := r.Resume(ctx, "a"); err != nil {
		t.Errorf("what is not suspended: %v", err)
	}
	if one, all := b.recorded(ledger.Resumed, "a", ""), b.recorded(ledger.Resumed, "", ""); one != 2 || all != 1 {
		t.Errorf("on record: %d of one, %d of all", one, all)
	}
}

// No order is taken twice, however many there are.
func TestEveryOrderIsRemembered(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, first := b.rolling()
	second := first
	second.Reason = "once more"
	for _, o := range []Order{first, second} {
		if err := hand(t, r, o, "alice's"); err != nil {
			t.Fatal(err)
		}
	}
	restarted := b.new()
	defer restarted.Close()
	if err := restarted.TakeUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Reconciler{r, restarted} {
		for _, o := range []Order{first, second} {
			if err := hand(t, r, o, "alice's"); err == nil || !strings.Contains(err.Error(), "taken before") {
				t.Errorf("%s: %v", o.Reason, err)
			}
		}
	}
}

// A suspension that was taken up after a restart ends in its time.
func TestSuspensionEndsAfterARestart(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c", "d")
	r := b.applied("a", "c", "d")
	r.queue = r.metrics.delaying(queueStacks)
	defer r.queue.ShutDown()
	r.orders.suspend("a", Suspension{Until: time.Now().Add(200 * time.Millisecond)})
	r.orders.suspend("c", Suspension{})
	r.awaitResumption()
	if n := r.queue.Len(); n != 0 {
		t.Errorf("%d requests at once", n)
	}
	b.until("its time", func() bool { return r.queue.Len() == 2 })
	for range 2 {
		if req, _ := r.queue.Get(); req.name != "a" {
			t.Errorf("request %+v", req)
		}
	}
}

// A revocation is about what is deployed.
func TestRevocationOfWhatIsNotDeployed(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c")
	b.evidence, b.rests = map[string]string{"a": "signed", "c": "signed"}, []verify.Anchor{leaked}
	r := b.applied("a")
	for range 2 { // the second one is no news
		if stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: leaked, Reason: "it leaked"}); err != nil || len(stacks) != 1 || stacks[0] != "a" {
			t.Errorf("%v, %v", stacks, err)
		}
	}
	if n := b.told(EventRevoked, "a"); n != 1 {
		t.Errorf("told %d times", n)
	}
	b.with(func() { b.rests = nil })
	b.push(map[string]string{"a/object": "v2"})
	if err := r.Reconcile(t.Context(), "a"); err != nil || status(r, "a").Revoked != "" {
		t.Errorf("%v: %+v", err, status(r, "a"))
	}
	over := 0
	for _, e := range b.events {
		if e.Resolved && e.Key == "revoked/a" {
			over++
		}
	}
	if over != 1 {
		t.Errorf("told %d times that it is over", over)
	}
}

// What was judged by a policy that is revoked is not trusted either.
func TestRevokedPolicy(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	old := digest.FromString("policies")
	b.judges = func(_ policy.Input, d *policy.Decision) { d.Policies = old }
	r := b.applied("a")
	if stacks, err := r.Revoke(t.Context(), verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorPolicy, Value: old.String()}, Reason: "it lets all pass"}); err != nil || len(stacks) != 1 {
		t.Errorf("%v, %v", stacks, err)
	}
}

// rolling returns a reconciler whose stack "a" was brought to commit-2, and the
// order to go back.
func (b *bed) rolling() (*Reconciler, Order) {
	b.t.Helper()
	r := b.applied("a")
	b.push(map[string]string{"a/object": "v2"})
	if err := r.Reconcile(b.t.Context(), "a"); err != nil {
		b.t.Fatal(err)
	}
	r.late.Wait()
	o, err := r.NewOrder(b.t.Context(), OrderRollback, "a", "commit-1", "v2 is broken")
	if err != nil {
		b.t.Fatal(err)
	}
	return r, o
}

// A rollback is refused if what it leads to, or away from, is not what it says.
func TestRollbackRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*bed, *Reconciler, *Order)
		kind   fault.Kind
		says   string
	}{
		"of another repository": {func(_ *bed, r *Reconciler, o *Order) {
			r.repos["other"] = &repository{status: RepositoryStatus{Verified: o.From}}
			o.Repository = "other"
		}, fault.Invalid, `is in repository "repo"`},
		"of a stack that is not there":       {func(_ *bed, _ *Reconciler, o *Order) { o.Stack = "nobody" }, fault.Invalid, "no stack"},
		"to what history did not go through": {func(b *bed, _ *Reconciler, _ *Order) { b.fails("follows", fault.Denied) }, fault.Denied, "went through"},
		"to what cannot be read":             {func(b *bed, _ *Reconciler, _ *Order) { b.fails("local", fault.Transient) }, fault.Transient, "local"},
		"to what was revoked": {func(b *bed, r *Reconciler, _ *Order) {
			revoking(b, r)
			r.Revocations.Add(verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorIdentity, Value: "signer of commit-1"}})
		}, fault.Denied, "was revoked"},
		"to a commit without the stack":    {func(b *bed, _ *Reconciler, _ *Order) { b.with(func() { b.alias["a"] = "another" }) }, fault.Invalid, `declares no stack "a"`},
		"to a stack that cannot run":       {func(b *bed, _ *Reconciler, _ *Order) { b.with(func() { b.bad["a"] = errors.New("no such field") }) }, fault.Internal, "no such field"},
		"to what an order led away from":   {func(_ *bed, r *Reconciler, _ *Order) { r.orders.take("x", "a", "repo@commit-1") }, fault.Denied, "led away from commit commit-1"},
		"from what is not known":           {func(_ *bed, r *Reconciler, _ *Order) { r.stack("a").snap = nil }, fault.Waiting, "is not known"},
		"from what is refused":             {func(_ *bed, r *Reconciler, _ *Order) { r.stack("a").refusal = errors.New("no") }, fault.Waiting, "is not known"},
		"before the clock can be believed": {func(b *bed, _ *Reconciler, _ *Order) { b.with(func() { b.last = time.Now().Add(time.Hour) }) }, fault.Waiting, "the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r, o := b.rolling()
			c.before(b, r, &o)
			err := hand(t, r, o, "alice's")
			if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (%s), want %s: %q", err, fault.KindOf(err), c.kind, c.says)
			}
			if r.orders.rolledBack("a") != nil || b.count("append "+string(ledger.Ordered)) != 0 {
				t.Error("the order was taken")
			}
		})
	}
}

// An order that was taken and cannot be carried out says so.
func TestRollbackThatCannotBeCarriedOut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*bed, *Reconciler)
		says   string
	}{
		"it cannot be kept": {func(b *bed, _ *Reconciler) {
			if err := os.WriteFile(filepath.Join(b.state, "rollbacks"), nil, 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, "write state"},
		"the newest commit cannot be read": {func(b *bed, _ *Reconciler) {
			b.at["append "+string(ledger.Ordered)] = func() error { b.fails("local", fault.Transient); return nil }
		}, "local"},
		"a newer commit ends it": {func(b *bed, r *Reconciler) {
			b.at["append "+string(ledger.Ordered)] = func() error {
				b.push(map[string]string{"a/object": "v3"})
				r.repository("repo").note(func(st *RepositoryStatus) { st.Verified = "commit-3" })
				return nil
			}
		}, "a newer commit ended the rollback"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r, o := b.rolling()
			c.before(b, r)
			if err := hand(t, r, o, "alice's"); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// A rollback in the place of one that cannot be read leads away from what the
// newest commit asks for.
func TestRollbackOverABrokenOne(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, o := b.rolling()
	r.orders.rollBack(&rollback{Stack: "a", broken: errors.New("unreadable")})
	if err := hand(t, r, o, "alice's"); err != nil {
		t.Fatal(err)
	}
	if rb := r.orders.rolledBack("a"); rb == nil || rb.broken != nil || len(rb.Inputs) == 0 || rb.Key == "" {
		t.Errorf("%+v", rb)
	}
}

// A rollback of one stack is nothing to another.
func TestRollbacksOfManyStacks(t *testing.T) {
	t.Parallel()
	var o orders
	for _, name := range []string{"a", "c"} {
		o.rollBack(&rollback{Stack: name})
	}
	o.endRollback("c")
	if o.rolledBack("a") == nil || o.rolledBack("c") != nil {
		t.Errorf("%v", o.rollbacks)
	}
}

// What a rollback holds back, and what ends it.
func TestHeldBack(t *testing.T) {
	t.Parallel()
	no := errors.New("no such field")
	for name, c := range map[string]struct {
		rb     func(*rollback) // changes what is kept
		stack  func(*Stack)    // changes what is asked for
		before func(*bed)
		at     string // commit that the stack is asked to be at
		ended  bool
		err    string
	}{
		"what it led away from":    {at: "commit-1"},
		"in another repository":    {rb: func(rb *rollback) { rb.Repository = "other" }, at: "commit-2"},
		"in another folder":        {rb: func(rb *rollback) { rb.Dir = "b" }, at: "commit-2"},
		"what cannot run":          {stack: func(s *Stack) { s.Err = no }, at: "commit-2", err: "no such field"},
		"another request":          {stack: func(s *Stack) { s.Key = "other" }, at: "commit-2", ended: true},
		"other content":            {rb: func(rb *rollback) { rb.Inputs = map[string]string{"a/object": "sha256:x"} }, at: "commit-2", ended: true},
		"without its older commit": {before: func(b *bed) { b.fails("local", fault.Transient) }, at: "commit-2", err: "local"},
		"what cannot be read":      {rb: func(rb *rollback) { rb.broken = errors.New("unreadable") }, at: "commit-2", err: "unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r, _ := b.rolling()
			s := r.stack("a")
			rb := &rollback{Repository: "repo", Stack: "a", Dir: "a", To: "commit-1", From: "commit-2", Key: s.Key, Inputs: maps.Clone(s.granted().inputs)}
			asks := s.Stack
			if c.rb != nil {
				c.rb(rb)
			}
			if c.stack != nil {
				c.stack(&asks)
			}
			if c.before != nil {
				c.before(b)
			}
			r.orders.rollBack(rb)
			got := r.heldBack(t.Context(), r.repository("repo"), s.snap, s.commit, s.seen, []Stack{asks, {Name: "another"}})
			if len(got) != 2 || got[0].snap.Revision.ID != c.at || got[1].snap != s.snap {
				t.Errorf("held back: %+v", got)
			}
			if err := got[0].Err; (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
			if ended := r.orders.rolledBack("a") == nil; ended != c.ended {
				t.Errorf("ended: %t", ended)
			}
		})
	}
}

// The same request over the same content is as bad in any commit.
func TestLeftBefore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left   string
		back   func(*bed, *basis)
		denied bool
	}{
		"the commit":              {"commit-3", nil, true},
		"the same in another":     {"commit-1", nil, true},
		"other content":           {"commit-2", nil, false},
		"another request":         {"commit-1", func(_ *bed, b *basis) { b.Key = "other" }, false},
		"the same beside others":  {"commit-5", nil, true},
		"the commit, gone by now": {"commit-3", func(b *bed, _ *basis) { b.fails("local", fault.Transient) }, true},
		"what cannot be read":     {"commit-9", nil, false},
	} {
		b := newBed(t, "a")
		b.push(map[string]string{"a/object": "v2"})
		b.push(map[string]string{"a/object": "v1"})
		b.push(map[string]string{"a/object": ""})
		b.push(map[string]string{"a/object": "v1", "c/object": "v1"})
		r := b.new()
		repo := r.repository("repo")
		r.orders.take("x", "a", "repo@"+c.left)
		back, err := r.declared(t.Context(), repo, "a", "a", "commit-3", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if c.back != nil {
			c.back(b, &back)
		}
		if err := r.leftBefore(t.Context(), repo, back, time.Now()); c.denied != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// unidentified is a snapshot that cannot tell what is the same.
func unidentified(content string) *sources.Snapshot {
	return &sources.Snapshot{Tree: digest.FromString(content), FS: fstest.MapFS{"a/object": {Data: []byte(content)}}}
}

// Without content ids the whole tree is what counts.
func TestContentWithoutIDs(t *testing.T) {
	t.Parallel()
	snap := unidentified("v1")
	track := newTracker(snap)
	if _, err := track.snapshot().FS.Open("a/object"); err != nil {
		t.Fatal(err)
	}
	if fs, ok := track.snapshot().FS.(sources.Identified); ok {
		if id, err := fs.ContentID("a/object"); err == nil {
			t.Errorf("an id: %q", id)
		}
	}
	if in := track.inputs(); !sameInputs(in, unidentified("v1")) || sameInputs(in, unidentified("v2")) {
		t.Errorf("inputs %v", in)
	}
	if got := folderID(basis{Stack: Stack{Dir: "a"}, snap: snap}); got != snap.Tree.String() {
		t.Errorf("the folder is %q", got)
	}
}

// What a rollback leads away from is what the rendering reads; if it does not
// render, all that may have made it so.
func TestInputsOf(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a")
	b.push(map[string]string{"a/object": "v2"})
	s := r.stack("a")
	d, renders := s.granted(), b.count("render a")
	older, newer := s.desired(), s.desired()
	newer.snap = b.snapshot("commit-2")
	if got := r.inputsOf(t.Context(), s, older); !maps.Equal(got, d.inputs) || b.count("render a") != renders {
		t.Errorf("of what is enforced: %v", got)
	}
	if got := r.inputsOf(t.Context(), s, newer); maps.Equal(got, d.inputs) || got["a/object"] == "" || len(got) != 1 {
		t.Errorf("of another commit: %v", got)
	}
	b.fails("render a", fault.Invalid)
	if got := r.inputsOf(t.Context(), s, newer); got["a"] == "" || len(got) != 1 {
		t.Errorf("of what does not render: %v", got)
	}
	newer.snap = unidentified("v2")
	if got := r.inputsOf(t.Context(), s, newer); got["."] != newer.snap.Tree.String() {
		t.Errorf("of what does not render and has no ids: %v", got)
	}
	s.live.current = nil
	b.works("render a")
	if got := r.inputsOf(t.Context(), s, older); !maps.Equal(got, d.inputs) {
		t.Errorf("of what was never granted: %v", got)
	}
}

// After an order the next commit is not held up by what the mark said before it.
func TestRecoveredHistoryGoesOn(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.marks = map[string]Mark{"e/repo": {Commit: "commit-9"}}
	r := b.applied()
	if _, err := r.Apply(t.Context(), "a"); fault.KindOf(err) != fault.Denied || err == nil {
		t.Fatalf("before the order: %v", err)
	}
	if err := obey(t, r, OrderRecover, "repo", "commit-1", "alice's"); err != nil {
		t.Fatal(err)
	}
	if len(r.repository("repo").poked) != 1 {
		t.Error("the repository is not looked at right away")
	}
	b.push(map[string]string{"a/object": "v2"})
	if err := r.Reconcile(t.Context(), "a"); err != nil || b.object("a") != "v2" {
		t.Errorf("after it: %v: %q", err, b.object("a"))
	}
}

// History goes on only from a commit that is there and whose signer may sign it.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*bed)
		says   string
		taken  bool
	}{
		"what cannot be fetched": {func(b *bed) { b.fails("fetch", fault.Transient) }, "fetch", false},
		"what nobody signed":     {func(b *bed) { b.with(func() { b.refuse = "commit-2" }) }, "nobody signed", false},
		"what cannot be kept": {func(b *bed) {
			_ = os.RemoveAll(filepath.Join(b.state, "repositories"))
			_ = os.WriteFile(filepath.Join(b.state, "repositories"), nil, 0o600)
		}, "write state", true},
		"what cannot be said to others":   {func(b *bed) { b.fails("mark write", fault.Transient) }, "mark write", true},
		"by a clock that is not believed": {func(b *bed) { b.with(func() { b.last = time.Now().Add(time.Hour) }) }, "the clock", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			b.marks = map[string]Mark{"e/repo": {Commit: "commit-9"}}
			r := b.applied()
			_ = r.knows(t.Context(), "e", "repo") // which finds the mark
			b.push(nil)
			o, err := r.NewOrder(t.Context(), OrderRecover, "repo", "commit-2", "the disk is lost")
			if err != nil || o.From != "commit-9" {
				t.Fatalf("%+v, %v", o, err)
			}
			c.before(b)
			if err := hand(t, r, o, "alice's"); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if taken := b.count("append "+string(ledger.Ordered)) == 1; taken != c.taken {
				t.Errorf("taken: %t", taken)
			}
			if err := r.knows(t.Context(), "e", "repo"); err == nil {
				t.Error("the mark is forgotten")
			}
		})
	}
}
