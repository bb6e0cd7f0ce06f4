package targetstest

import (
	"context"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// removal plans the end of the stack, and checks what is true of every such
// plan. A target that cannot end a stack skips the test.
func (w World) removal(t *testing.T, r targets.Rendered, orphan bool) plan.Plan {
	t.Helper()
	remover, ok := w.Target.(targets.Remover)
	if !ok {
		t.Skip("the target cannot end a stack")
	}
	before := w.Read(t)
	p, err := remover.Removal(t.Context(), r, orphan)
	if err != nil {
		t.Fatalf("Removal: %v", err)
	}
	w.unchanged(t, before)
	if p.Stack != r.Stack || p.Environment != r.Environment || p.Revision != r.Revision || p.Rendered != r.Digest || p.Target == "" {
		t.Errorf("the plan does not name what it ends: %s", mustJSON(t, p))
	}
	if p.Keeps != 0 || p.Payload == "" || len(p.Documents) == 0 {
		t.Errorf("it keeps %d, has payload %q and %d documents; want 0, one, and some", p.Keeps, p.Payload, len(p.Documents))
	}
	want := plan.Delete
	if orphan {
		want = plan.Release
	}
	if n := p.Count(want); n != len(p.Changes) {
		t.Errorf("%d of %d changes are a %s: %s", n, len(p.Changes), want, mustJSON(t, p.Changes))
	}
	if how := Leaks(mustJSON(t, p), w.Secret); how != "" {
		t.Errorf("the secret stands in the plan (%s)", how)
	}
	return p
}

// end has a real gate admit the end of a stack, and applies it.
func (w World) end(t *testing.T, p plan.Plan) {
	t.Helper()
	rec, err := w.Target.Apply(t.Context(), removalGrant(t, p))
	if err != nil {
		t.Fatalf("Apply: %v\n%s", err, mustJSON(t, rec))
	}
	checkReceipt(t, p, rec)
	for _, o := range rec.Outcomes {
		if o.Err != "" {
			t.Errorf("%s: %s", o.ID, o.Err)
		}
	}
	if how := Leaks(mustJSON(t, rec), w.Secret); how != "" {
		t.Errorf("the secret stands in the receipt (%s)", how)
	}
}

func removalGrant(t *testing.T, p plan.Plan) gate.Grant {
	t.Helper()
	g, err := gate.New(&Ledger{}, gate.Limits{}).Admit(t.Context(), removalRequest(p))
	if err != nil {
		t.Fatalf("the gate does not admit the removal: %v", err)
	}
	return g
}

func removalRequest(p plan.Plan) gate.Request {
	r := request(p)
	r.Removal, r.Rendered = true, policy.Decision{}
	return r
}

func endDeletesEverything(t *testing.T, w World) {
	before := w.Read(t)
	r, _ := w.deploy(t, w.V1)
	p := w.removal(t, r, false)
	if p.Empty() {
		t.Fatal("nothing is removed")
	}
	w.end(t, p)
	w.unchanged(t, before)
	again := w.plan(t, r)
	if again.Empty() || again.Count(plan.Create) != len(again.Changes) {
		t.Errorf("a plan after the end: %s; want creates alone", again.Summary())
	}
}

func endLetsGo(t *testing.T, w World) {
	r, _ := w.deploy(t, w.V1)
	p := w.removal(t, r, true)
	if p.Empty() {
		t.Fatal("nothing is let go of")
	}
	content := w.Read
	if w.Content != nil {
		content = w.Content
	}
	before := content(t)
	w.end(t, p)
	if after := content(t); after != before {
		t.Errorf("letting go changed something.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if again := w.removal(t, r, false); !again.Empty() {
		t.Errorf("it still owns something: %s", mustJSON(t, again.Changes))
	}
}

// endIsPlannedAgain ends a stack that is half gone, and one that is gone.
func endIsPlannedAgain(t *testing.T, w World) {
	before := w.Read(t)
	r, _ := w.deploy(t, w.V1)
	w.apply(t, w.plan(t, w.render(t, w.Shrunk))) // what a removal that was cut off leaves
	w.end(t, w.removal(t, r, false))
	p := w.removal(t, r, false)
	if !p.Empty() {
		t.Errorf("a removal of what is gone: %s", mustJSON(t, p.Changes))
	}
	w.end(t, p)
	w.unchanged(t, before)
}

func endIsNoStandingGrant(t *testing.T, w World) {
	r, _ := w.deploy(t, w.V1)
	for _, orphan := range []bool{false, true} {
		p := w.removal(t, r, orphan)
		g := gate.New(&Ledger{}, gate.Limits{})
		if err := g.Stand(removalRequest(p), nil); err == nil {
			t.Error("a removal can stand")
		}
		before := w.Read(t)
		g.Resume(p.Stack, gate.Standing{Environment: p.Environment, Rendered: p.Rendered, Revision: p.Revision.ID})
		if _, err := g.Restore(t.Context(), p); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "does not cover") {
			t.Errorf("a removal under a standing grant: %v", err)
		}
		// Nor can a plan that was granted as something else become one.
		if _, err := gate.New(&Ledger{}, gate.Limits{}).Admit(context.WithoutCancel(t.Context()), request(p)); !orphan && err == nil {
			t.Error("a plan that removes everything was admitted as an ordinary one")
		}
		w.unchanged(t, before)
	}
}
