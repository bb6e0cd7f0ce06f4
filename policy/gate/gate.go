// Package gate owns the decision that something may be written to the world. It
// is the only code that can make a usable [Grant].
//
// It guarantees that a grant exists only after its intent is durable in the
// ledger, that everything was judged which has to be judged, and that each
// judgement is about exactly this plan. It refuses by default: evidence that is
// missing, a decision about something else, or a plan that removes more than
// the limit is a no.
package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// Ledger is where intents become durable.
type Ledger interface {
	// Append returns when e and its bodies are durable.
	Append(ctx context.Context, e ledger.Entry, bodies map[string][]byte) (ledger.Index, error)
}

// Grant permits one plan. Only a Gate makes a usable one: Admit, after the
// intent is in the ledger, and Restore, for a plan that only restores what was
// granted before. A zero Grant is refused by every target.
type Grant struct {
	plan   plan.Plan
	digest digest.Digest
	intent ledger.Index
	ok     bool
}

// Plan returns the granted plan. It fails for a zero Grant, and for a plan that
// was changed after it was granted.
func (g Grant) Plan() (plan.Plan, error) {
	if !g.ok {
		return plan.Plan{}, fault.New(fault.Internal, "policy/gate.Plan", "", "no grant: the gate did not admit this plan")
	}
	if g.plan.Digest() != g.digest {
		return plan.Plan{}, fault.New(fault.Internal, "policy/gate.Plan", "", "the plan was changed after it was granted")
	}
	return g.plan, nil
}

// Intent returns the ledger index of the intent that the grant rests on.
func (g Grant) Intent() ledger.Index { return g.intent }

// Request is everything that the gate looks at.
type Request struct {
	Plan plan.Plan
	// Commit is the evidence that the plan's revision was authorised.
	Commit verify.Evidence
	// Artifacts are what the rendering and the plan name, with their digests;
	// Report must hold verified evidence for each of them.
	Artifacts []verify.Subject
	Report    verify.Report
	// Rendered and Planned are the two judgements. Both are required.
	// A removal has nothing rendered to judge, so Rendered is left out.
	Rendered policy.Decision
	Planned  policy.Decision
	// Removal says that the plan ends a whole stack, which asked for that while
	// it could. It may hold nothing but deletes and releases.
	Removal bool
}

// Limits bound what one plan may do.
type Limits struct {
	// MaxDeletes is how many objects one plan may delete or replace; 0 is no
	// limit on the number.
	MaxDeletes int
	// MaxDeleteShare is which share of a stack one plan may delete or replace, in
	// percent, where that is more than [fewDeletes] objects; 0 is no limit.
	MaxDeleteShare int
	// AllowEmpty permits a plan that removes everything that a stack owns.
	AllowEmpty bool
}

// fewDeletes is up to how many objects a plan may remove whatever their share is.
const fewDeletes = 3

// Gate admits plans.
type Gate struct {
	ledger Ledger
	limits Limits

	mu       sync.Mutex
	standing map[string]Standing
}

// Standing is what a stack was last granted: for each object the digest that it
// must have. It permits restoring exactly that, and nothing else.
type Standing struct {
	Environment string
	Rendered    digest.Digest
	Revision    string
	Objects     map[plan.ObjectID]digest.Digest
}

// New returns a Gate that records its intents in l.
func New(l Ledger, limits Limits) *Gate {
	return &Gate{ledger: l, limits: limits, standing: map[string]Standing{}}
}

// Admit checks that everything about r was judged and found good, makes the
// intent durable and returns the grant. A refusal is an error of kind Denied.
func (g *Gate) Admit(ctx context.Context, r Request) (Grant, error) {
	const op = "policy/gate.Admit"
	p := r.Plan
	sum := p.Digest()
	if p.Stack == "" || p.Rendered == "" || p.Revision.ID == "" {
		return Grant{}, fault.New(fault.Internal, op, "", "the plan names no stack, rendering or revision")
	}
	if err := g.judge(r, sum); err != nil {
		return Grant{}, fault.WithStack(p.Stack, err)
	}
	bodies := map[string][]byte{
		"plan":     mustJSON(p),
		"evidence": mustJSON(r.Report),
		"commit":   mustJSON(r.Commit),
		"rendered": mustJSON(r.Rendered),
		"planned":  mustJSON(r.Planned),
	}
	outcome := ""
	if r.Removal {
		outcome = Removal
	}
	return g.grant(ctx, p, sum, outcome, p.Summary(), bodies)
}

// Removal is the outcome of an intent that ends a whole stack.
const Removal = "removal"

func (g *Gate) judge(r Request, sum digest.Digest) error {
	const op = "policy/gate.Admit"
	p := r.Plan
	if !r.Commit.Verified() {
		return fault.New(fault.Denied, op, "sign the commit with a key that the operator's file trusts",
			"commit %s has no verified evidence", p.Revision.ID)
	}
	if got := r.Commit.Subject.Reference; got != p.Revision.ID {
		return fault.New(fault.Denied, op, "", "the commit evidence is about %q, the plan about %q", got, p.Revision.ID)
	}
	if r.Report.Environment != p.Environment {
		return fault.New(fault.Denied, op, "", "the evidence was judged for environment %q, the plan is for %q", r.Report.Environment, p.Environment)
	}
	proven := map[digest.Digest]bool{}
	for _, e := range r.Report.Evidence {
		if !e.Verified() {
			return fault.New(fault.Denied, op, "", "%s: not every check passed", e.Subject.Pinned())
		}
		proven[e.Subject.Digest] = true
	}
	for _, a := range r.Artifacts {
		if a.Digest == "" || !proven[a.Digest] {
			return fault.New(fault.Denied, op, "", "%s: no verified evidence", a.Pinned())
		}
	}
	type judgement struct {
		stage policy.Stage
		of    digest.Digest
		d     policy.Decision
	}
	needed := []judgement{{policy.StageRendered, p.Rendered, r.Rendered}, {policy.StagePlan, sum, r.Planned}}
	if r.Removal {
		if n := p.Count(plan.Delete, plan.Release); n != len(p.Changes) || p.Keeps != 0 {
			return fault.New(fault.Internal, op, "", "the removal does something else than removing")
		}
		needed = needed[1:]
	}
	for _, d := range needed {
		switch {
		case d.d.Stage != d.stage || d.d.Of != d.of:
			return fault.New(fault.Denied, op, "", "the %s decision is about something else (%s, want %s)", d.stage, d.d.Of, d.of)
		case !d.d.Allowed():
			return fault.New(fault.Denied, op, "", "policy refuses the %s stage", d.stage)
		}
	}
	removes := p.Count(plan.Delete, plan.Replace)
	if g.limits.MaxDeletes > 0 && removes > g.limits.MaxDeletes {
		return fault.New(fault.Waiting, op,
			"remove fewer objects in one commit, or raise limits.maxDeletes in the operator's file",
			"the plan removes %d objects, the limit is %d", removes, g.limits.MaxDeletes)
	}
	if r.Removal {
		return nil
	}
	if share := g.limits.MaxDeleteShare; share > 0 && removes > fewDeletes && removes*100 > share*(p.Keeps+removes) {
		return fault.New(fault.Waiting, op,
			"check that the stack's folder is what you meant; remove fewer objects in one commit, or raise limits.maxDeleteShare in the operator's file",
			"the plan removes %d of %d objects, the limit is %d percent", removes, p.Keeps+removes, share)
	}
	if !g.limits.AllowEmpty && removes > 0 && p.Keeps == 0 {
		return fault.New(fault.Waiting, op, "check that the stack's folder is what you meant; to end the stack, set prune: delete in its file, and remove the file in a later commit",
			"the plan removes everything that the stack has (%d objects)", removes)
	}
	return nil
}

// Stand makes what r asks for the state that Restore may lead back to, once it
// is applied. r is judged again: what could not be admitted cannot stand.
// objects maps each desired object to its digest; nil means that nothing of the
// stack can be restored without a new decision.
func (g *Gate) Stand(r Request, objects map[plan.ObjectID]digest.Digest) error {
	if r.Removal {
		return fault.WithStack(r.Plan.Stack, fault.New(fault.Internal, "policy/gate.Stand", "", "the end of a stack cannot stand"))
	}
	if err := g.judge(r, r.Plan.Digest()); err != nil {
		return fault.WithStack(r.Plan.Stack, err)
	}
	g.Resume(r.Plan.Stack, Standing{
		Environment: r.Plan.Environment,
		Rendered:    r.Plan.Rendered,
		Revision:    r.Plan.Revision.ID,
		Objects:     objects,
	})
	return nil
}

// Resume is for a restart: it takes up a standing grant that was kept with the
// stack's state, after the caller rendered again and found the same digests.
func (g *Gate) Resume(stack string, s Standing) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.standing[stack] = s
}

// Revoke ends a stack's standing grant.
func (g *Gate) Revoke(stack string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.standing, stack)
}

// Restore admits p without a new decision if every change in it leads exactly
// to what the standing grant of its stack says: no delete, no replace, no
// object and no digest that was not granted. One short intent is durable first.
func (g *Gate) Restore(ctx context.Context, p plan.Plan) (Grant, error) {
	const op = "policy/gate.Restore"
	g.mu.Lock()
	s, ok := g.standing[p.Stack]
	g.mu.Unlock()
	if !ok {
		return Grant{}, fault.WithStack(p.Stack, fault.New(fault.Denied, op, "", "no standing grant"))
	}
	if p.Rendered != s.Rendered || p.Environment != s.Environment {
		return Grant{}, fault.WithStack(p.Stack, fault.New(fault.Denied, op, "", "the plan realises another rendering than the standing grant"))
	}
	for _, c := range p.Changes {
		if c.Action != plan.Create && c.Action != plan.Update {
			return Grant{}, fault.WithStack(p.Stack, fault.New(fault.Denied, op, "", "%s: a standing grant does not cover a %s", c.ID, c.Action))
		}
		if want := s.Objects[c.ID]; want == "" || c.After != want {
			return Grant{}, fault.WithStack(p.Stack, fault.New(fault.Denied, op, "", "%s: the result is not what was granted", c.ID))
		}
	}
	ids := make([]string, len(p.Changes))
	for i, c := range p.Changes {
		ids[i] = c.ID.String()
	}
	slices.Sort(ids)
	note := "restore " + strings.Join(ids, ", ")
	return g.grant(ctx, p, p.Digest(), "", note, map[string][]byte{"plan": mustJSON(p)})
}

func (g *Gate) grant(ctx context.Context, p plan.Plan, sum digest.Digest, outcome, note string, bodies map[string][]byte) (Grant, error) {
	idx, err := g.ledger.Append(ctx, ledger.Entry{
		Type:        ledger.Intent,
		Stack:       p.Stack,
		Environment: p.Environment,
		Revision:    p.Revision.Source + "@" + p.Revision.ID,
		Outcome:     outcome,
		Note:        note,
	}, bodies)
	if err != nil {
		return Grant{}, fault.WithStack(p.Stack, fault.Wrap(fault.Transient, "policy/gate.grant",
			"look at the state directory: disk full, read-only or lost?", fmt.Errorf("the intent is not durable: %w", err)))
	}
	return Grant{plan: p, digest: sum, intent: idx, ok: true}, nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // plans, reports and decisions are JSON-shaped by contract
		panic("policy/gate: " + err.Error())
	}
	return b
}
