// Package targetstest owns the conformance suite that every target passes. The
// suite is the contract of package targets, as tests: [Run] drives a target
// through real plans, a real gate and a real place to deploy to.
//
// It guarantees that a target which passes plans without writing, applies only
// what was granted, notices a world that moved, and shows no secret. It refuses
// fakes of the target's own side: a [World] is the real thing, or it proves
// nothing.
package targetstest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// patience bounds each wait of the suite. It is generous: a slow machine is not
// a broken target.
const patience = 2 * time.Minute

// World is a fresh place to deploy to, and one stack's target on it.
type World struct {
	Target targets.Target

	// V1 is the stack's first state, of at least two objects. V2 changes at
	// least one object of V1 and removes none. Shrunk is V1 without at least
	// one, but not all, of its objects.
	V1, V2, Shrunk *sources.Snapshot

	// Secret is a value of at least 12 bytes, with characters that JSON and URLs
	// escape, which V1 and V2 put into an object as a secret.
	Secret string

	// Disturb changes, behind the target's back, an object that V1 made and V2
	// changes: once V1 is applied, both a plan of V1 and one of V2 touch it.
	Disturb func(t testing.TB)

	// Read describes everything that the target may write to, apart from its own
	// bookkeeping (locks, inventory). Equal worlds have equal descriptions.
	Read func(t testing.TB) string

	// Content, if set, is Read without the marks by which the target knows what
	// it owns: what stays as it was when a stack is let go of.
	Content func(t testing.TB) string

	// Prepare, if set, is what stands between Render and Plan, such as pinning.
	Prepare func(t testing.TB, r targets.Rendered) targets.Rendered

	// Log, if set, returns everything that the target has logged so far.
	Log func() string

	// VolatilePayload says that the payload is a file which carries the time of
	// its making, so that two plans are equal but for its digest.
	VolatilePayload bool
}

// Setup makes a World that nothing else uses and that goes away with t.
type Setup func(t *testing.T) World

// Run runs the suite. Each case gets a World of its own and runs in parallel.
func Run(t *testing.T, setup Setup) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, w World)
	}{
		{"RenderIsPure", renderIsPure},
		{"PlanWritesNothing", planWritesNothing},
		{"TwoPlansAreEqual", twoPlansAreEqual},
		{"PlanOfAFewObjects", planOfAFewObjects},
		{"AppliedIsEmptyPlan", appliedIsEmptyPlan},
		{"ZeroGrantIsRefused", zeroGrantIsRefused},
		{"AlteredPlanIsRefused", alteredPlanIsRefused},
		{"ForeignPayloadIsRefused", foreignPayloadIsRefused},
		{"StaleGrantIsRefused", staleGrantIsRefused},
		{"DriftIsPlannedBack", driftIsPlannedBack},
		{"RemovalIsPlanned", removalIsPlanned},
		{"EndDeletesEverything", endDeletesEverything},
		{"EndLetsGo", endLetsGo},
		{"EndIsPlannedAgain", endIsPlannedAgain},
		{"EndIsNoStandingGrant", endIsNoStandingGrant},
		{"CancelledApplyConverges", cancelledApplyConverges},
		{"NoSecretLeaves", noSecretLeaves},
		{"ObserveAgreesWithPlan", observeAgreesWithPlan},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := setup(t)
			if c, ok := w.Target.(targets.Closer); ok {
				t.Cleanup(func() {
					if err := c.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
			c.run(t, w)
		})
	}
}

// Ledger keeps entries in memory, for tests of what stands on a gate.
type Ledger struct {
	mu      sync.Mutex
	entries []ledger.Entry
}

// Append implements gate.Ledger.
func (l *Ledger) Append(_ context.Context, e ledger.Entry, _ map[string][]byte) (ledger.Index, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	return ledger.Index(len(l.entries) - 1), nil
}

// Grant has a real gate admit p, with evidence and decisions that find nothing
// to say against it.
func Grant(ctx context.Context, t testing.TB, p plan.Plan) gate.Grant {
	t.Helper()
	g, err := gate.New(&Ledger{}, gate.Limits{AllowEmpty: true}).Admit(ctx, request(p))
	if err != nil {
		t.Fatalf("the gate does not admit the plan: %v", err)
	}
	return g
}

// request asks for p with evidence and decisions that say nothing against it.
func request(p plan.Plan) gate.Request {
	decided := func(stage policy.Stage, of digest.Digest) policy.Decision {
		return policy.Decision{Stage: stage, Of: of, Rules: 1}
	}
	return gate.Request{
		Plan: p,
		Commit: verify.Evidence{
			Subject: verify.Subject{Kind: "commit", Reference: p.Revision.ID},
			Checks:  []verify.Check{{Name: "signature", OK: true}},
		},
		Report:   verify.Report{Environment: p.Environment},
		Rendered: decided(policy.StageRendered, p.Rendered),
		Planned:  decided(policy.StagePlan, p.Digest()),
	}
}

// Leaks returns how secret stands in text ("plain", "base64", …), or "" when it
// does not.
func Leaks(text, secret string) string {
	b := []byte(secret)
	j, err := json.Marshal(secret)
	if err != nil {
		return "not JSON: " + err.Error()
	}
	jj, err := json.Marshal(string(j))
	if err != nil {
		return "not JSON: " + err.Error()
	}
	for _, e := range []struct{ name, value string }{
		{"plain", secret},
		{"JSON", string(j[1 : len(j)-1])},
		{"JSON in JSON", string(jj[3 : len(jj)-3])},
		{"base64", base64.RawStdEncoding.EncodeToString(b)},
		{"URL-safe base64", base64.RawURLEncoding.EncodeToString(b)},
		{"URL query", url.QueryEscape(secret)},
		{"URL path", url.PathEscape(secret)},
		{"hex", hex.EncodeToString(b)},
		{"upper-case hex", strings.ToUpper(hex.EncodeToString(b))},
	} {
		if strings.Contains(text, e.value) {
			return e.name
		}
	}
	return ""
}

func (w World) render(t *testing.T, s *sources.Snapshot) targets.Rendered {
	t.Helper()
	r, err := w.Target.Render(t.Context(), s)
	if err != nil {
		t.Fatalf("Render(%s): %v", s.Revision, err)
	}
	if w.Prepare != nil {
		r = w.Prepare(t, r)
	}
	return r
}

func (w World) plan(t *testing.T, r targets.Rendered, only ...plan.ObjectID) plan.Plan {
	t.Helper()
	p, err := w.Target.Plan(t.Context(), r, only...)
	if err != nil {
		t.Fatalf("Plan(%s): %v", r.Revision, err)
	}
	return p
}

func (w World) apply(t *testing.T, p plan.Plan) targets.Receipt {
	t.Helper()
	rec, err := w.Target.Apply(t.Context(), Grant(t.Context(), t, p))
	if err != nil {
		t.Fatalf("Apply(%s): %v\n%s", p.Revision, err, mustJSON(t, rec))
	}
	return rec
}

// deploy brings s all the way into the world.
func (w World) deploy(t *testing.T, s *sources.Snapshot) (targets.Rendered, targets.Receipt) {
	t.Helper()
	r := w.render(t, s)
	return r, w.apply(t, w.plan(t, r))
}

// unchanged fails t if the world is not as it was.
func (w World) unchanged(t *testing.T, before string) {
	t.Helper()
	if after := w.Read(t); after != before {
		t.Errorf("the world changed.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func renderIsPure(t *testing.T, w World) {
	before := w.Read(t)
	a, b := w.render(t, w.V1), w.render(t, w.V1)
	if a.Digest == "" || a.Digest != b.Digest {
		t.Errorf("digests of two renderings: %q, %q; want equal ones", a.Digest, b.Digest)
	}
	if x, y := mustJSON(t, a.Documents), mustJSON(t, b.Documents); x != y {
		t.Errorf("two renderings differ:\n%s\n%s", x, y)
	}
	if a.Stack == "" || a.Environment == "" || a.Revision != w.V1.Revision {
		t.Errorf("stack %q, environment %q, revision %v; want all of them, and %v", a.Stack, a.Environment, a.Revision, w.V1.Revision)
	}
	if len(a.Documents) == 0 {
		t.Error("no documents for policy to judge")
	}
	if c := w.render(t, w.V2); c.Digest == a.Digest {
		t.Error("two different snapshots have one digest")
	}
	w.unchanged(t, before)
}

func planWritesNothing(t *testing.T, w World) {
	r := w.render(t, w.V1)
	before := w.Read(t)
	p := w.plan(t, r)
	w.unchanged(t, before)

	if p.Count(plan.Create) < 2 {
		t.Errorf("%s; want at least 2 to create", p.Summary())
	}
	if p.Stack != r.Stack || p.Environment != r.Environment || p.Revision != r.Revision || p.Rendered != r.Digest || p.Target == "" {
		t.Errorf("the plan does not name what it realises: %s", mustJSON(t, p))
	}
	if p.Payload == "" || len(p.Documents) == 0 {
		t.Errorf("payload %q, %d documents; want both", p.Payload, len(p.Documents))
	}
	var objects map[plan.ObjectID]digest.Digest
	if restorer, ok := w.Target.(targets.Restorer); ok {
		var err error
		if objects, err = restorer.Desired(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range p.Changes {
		if objects != nil && objects[c.ID] != c.After {
			t.Errorf("%s: the rendering has digest %q, the plan %q", c.ID, objects[c.ID], c.After)
		}
	}
	w.apply(t, p)

	r = w.render(t, w.V2)
	before = w.Read(t)
	if w.plan(t, r).Empty() {
		t.Error("the second state changes nothing")
	}
	w.unchanged(t, before)
}

func twoPlansAreEqual(t *testing.T, w World) {
	for _, s := range []*sources.Snapshot{w.V1, w.V2} {
		r := w.render(t, s)
		a, b := w.plan(t, r), w.plan(t, r)
		granted := b
		if w.VolatilePayload {
			a.Payload, b.Payload = "", ""
		}
		if a.Digest() != b.Digest() {
			t.Errorf("two plans of %s differ:\n%s\n%s", s.Revision, mustJSON(t, a), mustJSON(t, b))
		}
		w.apply(t, granted)
	}
}

func planOfAFewObjects(t *testing.T, w World) {
	r := w.render(t, w.V1)
	all := w.plan(t, r)
	want := all.Changes[0].ID
	p := w.plan(t, r, want)
	if len(p.Changes) == 0 || len(p.Changes) >= len(all.Changes) {
		t.Errorf("%d of %d changes with only %s", len(p.Changes), len(all.Changes), want)
	}
	found := false
	for _, c := range p.Changes {
		found = found || c.ID == want
	}
	if !found {
		t.Errorf("a plan of only %s does not contain it", want)
	}
}

func appliedIsEmptyPlan(t *testing.T, w World) {
	for _, s := range []*sources.Snapshot{w.V1, w.V2} {
		r := w.render(t, s)
		p := w.plan(t, r)
		rec := w.apply(t, p)
		checkReceipt(t, p, rec)
		for _, o := range rec.Outcomes {
			if o.Err != "" {
				t.Errorf("%s: %s", o.ID, o.Err)
			}
		}
		again := w.plan(t, r)
		if !again.Empty() {
			t.Errorf("a plan after the apply of %s: %s", s.Revision, mustJSON(t, again.Changes))
		}
	}
}

func checkReceipt(t *testing.T, p plan.Plan, rec targets.Receipt) {
	t.Helper()
	if rec.Stack != p.Stack || rec.Plan != p.Digest() {
		t.Errorf("the receipt is about stack %q, plan %s; want %q, %s", rec.Stack, rec.Plan, p.Stack, p.Digest())
	}
	if rec.Started.IsZero() || rec.Ended.Before(rec.Started) {
		t.Errorf("the receipt's times: %s to %s", rec.Started, rec.Ended)
	}
	told := map[plan.ObjectID]bool{}
	for _, o := range rec.Outcomes {
		told[o.ID] = true
	}
	for _, c := range p.Changes {
		if !told[c.ID] {
			t.Errorf("the receipt does not say what became of %s", c.ID)
		}
	}
}

func zeroGrantIsRefused(t *testing.T, w World) {
	w.plan(t, w.render(t, w.V1))
	before := w.Read(t)
	if _, err := w.Target.Apply(t.Context(), gate.Grant{}); err == nil {
		t.Error("a zero grant was applied")
	}
	w.unchanged(t, before)
}

func alteredPlanIsRefused(t *testing.T, w World) {
	p := w.plan(t, w.render(t, w.V1))
	g := Grant(t.Context(), t, p)
	p.Changes[0].Reason += "altered" // the grant shares the slice
	before := w.Read(t)
	if _, err := w.Target.Apply(t.Context(), g); err == nil {
		t.Error("a plan that was altered after the grant was applied")
	}
	w.unchanged(t, before)
}

func foreignPayloadIsRefused(t *testing.T, w World) {
	judged := w.plan(t, w.render(t, w.V1))
	other := w.plan(t, w.render(t, w.V2))
	before := w.Read(t)
	for name, private := range map[string]any{"another plan's": other.Private, "no": nil, "a foreign type's": "x"} {
		judged.Private = private
		if _, err := w.Target.Apply(t.Context(), Grant(t.Context(), t, judged)); err == nil {
			t.Errorf("a plan with %s payload was applied", name)
		}
	}
	w.unchanged(t, before)
}

func staleGrantIsRefused(t *testing.T, w World) {
	w.deploy(t, w.V1)
	p := w.plan(t, w.render(t, w.V2))
	g := Grant(t.Context(), t, p)
	w.Disturb(t)
	before := w.Read(t)
	rec, err := w.Target.Apply(t.Context(), g)
	if !errors.Is(err, targets.ErrStale) {
		t.Errorf("applying to a world that moved: %v; want ErrStale", err)
	}
	for _, o := range rec.Outcomes {
		if o.Err == "" {
			t.Errorf("the receipt says that %s was done", o.ID)
		}
	}
	w.unchanged(t, before)
}

func driftIsPlannedBack(t *testing.T, w World) {
	r, _ := w.deploy(t, w.V1)
	good := w.Read(t)
	w.Disturb(t)
	if w.Read(t) == good {
		t.Fatal("Disturb changed nothing that Read shows")
	}
	p := w.plan(t, r)
	if p.Empty() {
		t.Fatal("the plan does not see the drift")
	}
	w.apply(t, p)
	w.unchanged(t, good)
}

func removalIsPlanned(t *testing.T, w World) {
	w.deploy(t, w.V1)
	r := w.render(t, w.Shrunk)
	p := w.plan(t, r)
	if p.Count(plan.Delete) == 0 {
		t.Errorf("%s; want a delete", p.Summary())
	}
	rec := w.apply(t, p)
	checkReceipt(t, p, rec)
	if again := w.plan(t, r); !again.Empty() {
		t.Errorf("a plan after the removal: %s", mustJSON(t, again.Changes))
	}
}

// cancelledApplyConverges cancels before the first write, and again as soon as
// the world has moved.
func cancelledApplyConverges(t *testing.T, w World) {
	r := w.render(t, w.V1)
	p := w.plan(t, r)
	before := w.Read(t)

	ctx, cancel := context.WithCancel(t.Context())
	g := Grant(ctx, t, p)
	cancel()
	if _, err := w.Target.Apply(ctx, g); err == nil {
		t.Error("an apply with a cancelled context reports success")
	}
	w.unchanged(t, before)

	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	type result struct {
		rec targets.Receipt
		err error
	}
	done := make(chan result, 1)
	go func() {
		rec, err := w.Target.Apply(ctx, g)
		done <- result{rec, err}
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var res result
	for running := true; running; {
		select {
		case res = <-done:
			running = false
		case <-tick.C:
			if w.Read(t) != before {
				cancel()
			}
		}
	}
	checkReceipt(t, p, res.rec)
	if res.err == nil {
		for _, o := range res.rec.Outcomes {
			if o.Err != "" {
				t.Errorf("an apply without an error reports %s: %s", o.ID, o.Err)
			}
		}
	}
	if rest := w.plan(t, r); !rest.Empty() {
		w.apply(t, rest)
	}
	if again := w.plan(t, r); !again.Empty() {
		t.Errorf("it does not converge: %s", mustJSON(t, again.Changes))
	}
}

func noSecretLeaves(t *testing.T, w World) {
	clean := func(where, text string) {
		t.Helper()
		if how := Leaks(text, w.Secret); how != "" {
			t.Errorf("the secret stands in %s (%s):\n%s", where, how, text)
		}
	}
	check := func(r targets.Rendered, p plan.Plan) {
		t.Helper()
		clean("the rendering", mustJSON(t, []any{r.Stack, r.Environment, r.Revision, r.Digest, r.Documents, r.Artifacts}))
		clean("the plan", mustJSON(t, p))
	}
	for _, s := range []*sources.Snapshot{w.V1, w.V2} {
		r := w.render(t, s)
		p := w.plan(t, r)
		check(r, p)
		clean("the receipt", mustJSON(t, w.apply(t, p)))
	}
	w.Disturb(t)
	r := w.render(t, w.V1)
	check(r, w.plan(t, r))
	if w.Log != nil {
		clean("the log", w.Log())
	}
}

func observeAgreesWithPlan(t *testing.T, w World) {
	o, ok := w.Target.(targets.Observer)
	if !ok {
		t.Skip("the target does not observe")
	}
	r, _ := w.deploy(t, w.V1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := make(chan targets.Finding, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- o.Observe(ctx, r, func(f targets.Finding) {
			select {
			case found <- f:
			default: // one finding is enough
			}
		})
	}()
	w.Disturb(t)
	select {
	case err := <-ended:
		t.Fatalf("Observe ended: %v", err)
	case <-ctx.Done():
		t.Fatal("Observe saw nothing")
	case f := <-found:
		for _, c := range w.plan(t, r).Changes {
			if c.ID == f.ID {
				cancel()
				if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("Observe ended: %v", err)
				}
				return
			}
		}
		t.Errorf("Observe reports %s, which Plan does not change", f.ID)
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
