package reconciler

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// Proposal is what the pipeline found out about one stack before anything is
// written. After an error it holds what was reached.
type Proposal struct {
	Plan     plan.Plan        `json:"plan"`
	Commit   verify.Evidence  `json:"commit"`
	Report   verify.Report    `json:"report"`
	Rendered *policy.Decision `json:"rendered,omitempty"`
	Planned  *policy.Decision `json:"planned,omitempty"`

	rendered  targets.Rendered
	named     []verify.Subject // what the rendering names, unresolved
	artifacts []verify.Subject
	pins      map[string]verify.Subject
	inputs    map[string]string
}

// reconcile brings one stack to what is asked for. The commit was authorised
// before the stack was discovered.
func (r *Reconciler) reconcile(ctx context.Context, s *stack) error {
	if err := s.refused(); err != nil {
		return err
	}
	if s.unchanged() {
		s.standing() // it may have come to stand while a newer commit asked for the same
		return r.finish(ctx, s)
	}
	r.takeOver(s.Name)
	if err := r.dependencies(ctx, s); err != nil {
		if s.granted() != nil {
			r.claim(ctx, s, s.desired()) // what it waits for may wait to hear what it gives up
		}
		return err
	}
	s.enter(Reconciling)
	start := time.Now()
	p, err := r.deploy(ctx, s, s.desired(), ledger.Applied, nil)
	if err != nil {
		return err
	}
	ctx = s.traced(ctx)
	r.metrics.reconcileSeconds.WithLabelValues(s.TargetName).Observe(time.Since(start).Seconds())
	if !p.Plan.Empty() {
		r.metrics.deployed(s.desired())
	}
	r.Log.InfoContext(ctx, "applied", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("revision", p.Plan.Revision.String()),
		slog.String("changes", p.Plan.Summary()), slog.Duration("took", time.Since(start)))
	if !p.Plan.Empty() {
		r.tell(s.event(EventApplied, "applied", p.Plan.Summary()))
	}
	return r.finish(ctx, s)
}

// recordKept tells of what was taken out of the repository and stays in the world.
func (r *Reconciler) recordKept(ctx context.Context, s *stack, p plan.Plan) {
	now := time.Now().UTC()
	for _, c := range p.Changes {
		if len(c.Stays) == 0 {
			continue
		}
		f := targets.Finding{Stack: s.Name, ID: c.ID, Class: targets.Kept, Fields: c.Stays, Actor: c.Stays[0].Manager, Since: c.Stays[0].Since, Detected: now, LastSeen: now}
		note := fmt.Sprintf("%s: not declared any more, and there still:", f.ID)
		for _, field := range f.Fields {
			note += fmt.Sprintf(" %s (managed by %s)", field.Path, orNothing(field.Manager))
		}
		note = r.Scrub(note)
		r.recordFinding(ctx, s, ledger.Drift, string(drift.Reported), f, note)
		r.Log.WarnContext(ctx, "fields stay", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("object", f.ID.String()), slog.String("what", note),
			slog.String("hint", "have the other manager let go of them, or remove them by hand"))
	}
}

// deploy is the flow of docs/ARCHITECTURE.md: b is judged, applied, and becomes
// what is enforced. typ is the type of the entry for the result. With accept,
// the plan must also be what the caller meant.
func (r *Reconciler) deploy(ctx context.Context, s *stack, b basis, typ ledger.Type, accept func(plan.Plan) error) (p *Proposal, err error) {
	begin := r.traceDeploy
	if typ == ledger.Reverted {
		begin = r.traceRepair
	}
	ctx, span := begin(ctx, s, b)
	s.remember(span)
	defer func() { endSpan(span, r.Scrub, err) }()
	if err := eachRepository(s, b, func(repo string) error { return r.knows(ctx, b.Environment, repo) }); err != nil {
		r.claim(ctx, s, b)
		return nil, err
	}
	if err := r.Revocations.Check(b.commit.RestsOn...); err != nil {
		r.claim(ctx, s, b)
		return &Proposal{Commit: b.commit}, err
	}
	p, err = r.judge(ctx, s, b)
	s.judged(p)
	if err != nil {
		return p, err
	}
	if accept != nil {
		if err := accept(p.Plan); err != nil {
			return p, err
		}
	}
	if r.Verified != nil {
		r.Verified(ctx, b.Environment, p.Report)
	}
	r.recordLater(ctx, s.entry(ledger.Verified, "ok", fmt.Sprintf("%d artifacts", len(p.Report.Evidence))), bodies(map[string]any{"evidence": p.Report}))
	r.recordLater(ctx, s.entry(ledger.Decided, "ok", p.Plan.Summary()), bodies(map[string]any{"rendered": p.Rendered, "planned": p.Planned}))

	s.live.work.Lock()
	defer s.live.work.Unlock()
	if err := r.stillAsked(s, b, p, typ); err != nil {
		return p, err
	}
	if err := r.apply(ctx, s, b, p, typ); err != nil {
		return p, err
	}
	r.recordKept(ctx, s, p.Plan)
	return p, r.stand(ctx, s, b, p)
}

// stillAsked reports whether what was judged is what may be written now: while
// it was judged the stack may have been replaced, suspended, or brought on.
func (r *Reconciler) stillAsked(s *stack, b basis, p *Proposal, typ ledger.Type) error {
	if sus := r.suspension(s.Name); sus != nil {
		return sus.err()
	}
	newer := r.stack(s.Name) != s
	if typ == ledger.Reverted { // back to what is enforced, and to nothing older
		d := s.granted()
		newer = newer || d == nil || d.snap != b.snap || d.target != b.target
	} else if w := s.desired(); w.snap != b.snap {
		newer = newer || !sameInputs(p.inputs, w.snap)
	}
	if newer {
		return fault.New(fault.Waiting, "reconciler.deploy", "", "a newer request came in")
	}
	return nil
}

// judge renders, verifies, plans and has everything judged. It writes nothing.
func (r *Reconciler) judge(ctx context.Context, s *stack, b basis) (*Proposal, error) {
	p := &Proposal{Commit: b.commit}
	if err := r.Revocations.Check(b.commit.RestsOn...); err != nil {
		return p, err
	}
	track := newTracker(b.snap)

	rendered, err := r.render(ctx, b, track.snapshot())
	if err != nil {
		return p, err
	}
	p.inputs, p.named = track.inputs(), rendered.Artifacts
	p.Report, p.pins, err = r.verifyArtifacts(ctx, b, rendered.Artifacts)
	if err != nil {
		return p, err
	}
	p.artifacts = pinned(p.pins)
	if p.rendered, err = pin(b.target, rendered, p.pins); err != nil {
		return p, err
	}
	if p.Rendered, err = r.decide(ctx, s.repo, b, policy.StageRendered, p.rendered.Digest, p.rendered.Documents, p); err != nil {
		return p, err
	}
	if p.Plan, err = r.plan(ctx, b, p.rendered); err != nil {
		return p, err
	}
	if err := r.verifyPlanned(ctx, b, p); err != nil {
		return p, err
	}
	p.Planned, err = r.decide(ctx, s.repo, b, policy.StagePlan, p.Plan.Digest(), p.Plan.Documents, p)
	return p, err
}

// pin rewrites the rendering to the verified digests. A target that cannot
// rewrite names its artifacts in the plan, where they must be immutable already.
func pin(t targets.Target, r targets.Rendered, pins map[string]verify.Subject) (targets.Rendered, error) {
	if p, ok := t.(targets.Pinner); ok {
		return p.Pin(r, pins)
	}
	if len(r.Artifacts) > 0 {
		return r, fault.New(fault.Internal, "reconciler.pin", "", "the target names artifacts and cannot pin them")
	}
	return r, nil
}

func pinned(pins map[string]verify.Subject) []verify.Subject {
	out := make([]verify.Subject, 0, len(pins))
	for _, ref := range slices.Sorted(maps.Keys(pins)) {
		out = append(out, pins[ref])
	}
	return out
}

// verifyPlanned verifies the artifacts that only the plan names.
func (r *Reconciler) verifyPlanned(ctx context.Context, b basis, p *Proposal) error {
	namer, ok := b.target.(targets.PlanNamer)
	if !ok {
		return nil
	}
	named, err := namer.PlanArtifacts(p.Plan)
	if err != nil {
		return err
	}
	p.named = append(p.named, named...)
	report, pins, err := r.verifyArtifacts(ctx, b, named)
	p.Report.Evidence = append(p.Report.Evidence, report.Evidence...)
	p.artifacts = append(p.artifacts, pinned(pins)...)
	return err
}

// decide has documents judged. A decision that refuses is an error of kind
// Denied that carries every message.
func (r *Reconciler) decide(ctx context.Context, repo string, b basis, stage policy.Stage, of digest.Digest, docs []plan.Document, p *Proposal) (*policy.Decision, error) {
	d, err := r.evaluate(ctx, b, policy.Input{
		Stage: stage, Target: b.TargetName, Stack: b.Name, Environment: b.Environment,
		Repository: repo, Commit: p.Commit.Subject.Reference,
		Documents: docs, Report: p.Report, Of: of,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Denied, "policy.Evaluate", "look at the policy: it could not be evaluated", err)
	}
	if err := r.Revocations.Check(d.Rests()...); err != nil {
		return &d, err
	}
	if d.Allowed() {
		return &d, nil
	}
	if d.Rules == 0 {
		return &d, fault.New(fault.Denied, "policy.Evaluate", "check that the stack declares something, and that a policy set has rules for "+b.TargetName,
			"no policy rule judged the %s stage", stage)
	}
	return &d, fault.New(fault.Denied, "policy.Evaluate", "change what is declared, or ask the owner of the policy for an exception", "%s", refusals(d))
}

// refusals joins the messages of the rules that refuse.
func refusals(d policy.Decision) string {
	var lines []string
	for _, res := range d.Results {
		if res.Level != policy.Deny && res.Level != policy.Violation {
			continue
		}
		where := res.File
		if res.Line > 0 {
			where = fmt.Sprintf("%s:%d", res.File, res.Line)
		}
		line := fmt.Sprintf("policy %s: %s", res.Namespace, res.Message)
		if where != "" {
			line += " (" + where + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// apply passes the gate and carries the plan out. The caller holds the stack's
// work lock.
func (r *Reconciler) apply(ctx context.Context, s *stack, b basis, p *Proposal, typ ledger.Type) error {
	if p.Plan.Empty() {
		return nil
	}
	if err := r.Revocations.Check(p.rests()...); err != nil { // revoked since it was judged
		return err
	}
	if err := eachRepository(s, b, func(repo string) error { return r.marked(ctx, b.Environment, repo) }); err != nil {
		return err
	}
	grant, err := r.pass(ctx, b, func(ctx context.Context) (gate.Grant, error) { return r.Gate.Admit(ctx, p.request()) })
	if err != nil {
		return err
	}
	s.progress("applying " + p.Plan.Summary())
	s.begin()
	receipt, err := r.carryOut(ctx, b, grant)
	r.result(ctx, s, typ, grant, receipt, err)
	// What was granted before is still what is enforced, but for an apply that waits for
	// what it wrote to become healthy: to lead that back would never let it come to an end.
	half := fault.KindOf(err) == fault.Waiting && slices.ContainsFunc(receipt.Outcomes, func(o targets.Outcome) bool { return o.Err == "" })
	s.live.waits(err != nil && (half || fault.KindOf(err) == fault.Waiting && s.live.halfWay()))
	if err != nil && !s.live.halfWay() {
		r.observe(s)
	}
	return err
}

// removalRequest is a request for a plan that removes a whole stack: there is
// nothing rendered to judge.
func (p *Proposal) removalRequest() gate.Request {
	return gate.Request{Plan: p.Plan, Commit: p.Commit, Report: p.Report, Planned: *p.Planned, Removal: true}
}

func (p *Proposal) request() gate.Request {
	return gate.Request{
		Plan: p.Plan, Commit: p.Commit, Artifacts: p.artifacts, Report: p.Report,
		Rendered: *p.Rendered, Planned: *p.Planned,
	}
}

// rests returns everything that a revocation would make p void by.
func (p *Proposal) rests() []verify.Anchor {
	all := [][]verify.Anchor{p.Commit.RestsOn}
	for _, e := range p.Report.Evidence {
		all = append(all, e.RestsOn)
	}
	for _, d := range []*policy.Decision{p.Rendered, p.Planned} {
		if d != nil {
			all = append(all, d.Rests())
		}
	}
	return verify.Anchors(all...)
}

// bodies returns what p reached, as documents for the ledger.
func (p *Proposal) bodies() map[string][]byte {
	if p == nil {
		return nil
	}
	docs := map[string]any{"commit": p.Commit, "evidence": p.Report}
	if p.Rendered != nil {
		docs["rendered"] = p.Rendered
	}
	if p.Planned != nil {
		docs["planned"] = p.Planned
	}
	if p.Plan.Stack != "" {
		docs["plan"] = p.Plan
	}
	return bodies(docs)
}

// result records what became of a grant. The world has changed already, so
// nothing waits for it; after a crash the dangling intent tells.
func (r *Reconciler) result(ctx context.Context, s *stack, typ ledger.Type, g gate.Grant, receipt targets.Receipt, err error) {
	intent := g.Intent()
	e := s.entry(typ, "ok", "")
	e.Intent = &intent
	if err != nil {
		e.Outcome, e.Note = "failed", r.Scrub(err.Error())
	}
	r.recordLater(ctx, e, bodies(map[string]any{"receipt": receipt}))
}

// stand makes what was applied the state that is enforced from now on, also
// over a restart.
func (r *Reconciler) stand(ctx context.Context, s *stack, b basis, p *Proposal) error {
	objects, err := desiredObjects(ctx, b.target, p.rendered)
	if err != nil {
		return err
	}
	if err := r.Gate.Stand(p.request(), objects); err != nil {
		return err
	}
	if err := r.state.save(s, b, p); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.kept, s.Name) // it has its name by itself now
	r.mu.Unlock()
	b.anew = false
	d := &deployment{basis: b, rendered: p.rendered, inputs: p.inputs, at: time.Now(), rests: p.rests()}
	before, over, trusted := s.stand(d)
	r.ended(ctx, s, EventRecovered, over)
	s.live.fights.Forget()
	if trusted {
		e := s.event(EventRecovered, "revoked", "what runs rests on nothing that was revoked any more")
		e.Resolved = true
		r.tell(e)
	}
	if err := r.Revocations.Check(d.rests...); err != nil { // revoked meanwhile
		r.withdraw(ctx)
	}
	_, span := r.child(ctx, "observe")
	r.observe(s)
	span.End()
	r.endOldName(s.Name)
	if before != nil && before.target != b.target {
		closeTarget(before.target)
	}
	return nil
}

// desiredObjects returns what a standing grant may lead back to; nil for a
// target that cannot restore.
func desiredObjects(ctx context.Context, t targets.Target, r targets.Rendered) (map[plan.ObjectID]digest.Digest, error) {
	if t, ok := t.(targets.Restorer); ok {
		return t.Desired(ctx, r)
	}
	return nil, nil
}

// finish waits for health. What is applied stays applied while it waits.
func (r *Reconciler) finish(ctx context.Context, s *stack) error {
	d := s.granted()
	if d == nil {
		return nil
	}
	if h, ok := d.target.(targets.HealthChecker); ok {
		s.enter(Progressing)
		return h.Healthy(ctx, d.rendered)
	}
	return nil
}

// dependencies reports the first stack that s depends on and that is not ready
// as it is asked for now.
func (r *Reconciler) dependencies(ctx context.Context, s *stack) error {
	const op = "reconciler.dependencies"
	if cycle := r.cycle(s.Name, s.Name, map[string]bool{}); cycle != nil {
		return fault.New(fault.Invalid, op, "remove one of the dependsOn entries", "dependency cycle: %s", strings.Join(cycle, " → "))
	}
	for _, name := range s.DependsOn {
		d := r.stack(name)
		if d == nil {
			return fault.New(fault.Waiting, op, "add the stack, or remove it from dependsOn", "depends on stack %q, which does not exist", name)
		}
		phase := d.snapshotStatus().Phase
		ready := phase == Ready || phase == Drifted
		if r.queue == nil { // nothing runs by itself, so the phase says nothing
			ready = r.finish(ctx, d) == nil
		}
		if err := d.refused(); err != nil || !ready || !d.unchanged() {
			if ready {
				phase = Pending
			}
			return fault.New(fault.Waiting, op, "", "waits for stack %q, which is %s", name, phase)
		}
	}
	return nil
}

// cycle returns a path from at back to start, or nil. seen holds the stacks from
// which there is none.
func (r *Reconciler) cycle(start, at string, seen map[string]bool) []string {
	s := r.stack(at)
	if s == nil || seen[at] {
		return nil
	}
	seen[at] = true
	for _, next := range s.DependsOn {
		if next == start {
			return []string{at, start}
		}
		if path := r.cycle(start, next, seen); path != nil {
			return append([]string{at}, path...)
		}
	}
	return nil
}

// bodies marshals documents for the ledger. They hold masked values only.
func bodies(docs map[string]any) map[string][]byte {
	out := make(map[string][]byte, len(docs))
	for role, v := range docs {
		b, err := json.Marshal(v)
		if err != nil { // plans, reports, decisions and receipts are JSON-shaped by contract
			panic("reconciler: " + err.Error())
		}
		out[role] = b
	}
	return out
}

// warn tells of what passes although a check failed: a rule that warns, an
// exception that somebody signed.
func (r *Reconciler) warn(ctx context.Context, b basis, report verify.Report) {
	for _, e := range report.Evidence {
		for _, c := range e.Checks {
			if c.OK || c.Waived == "" || e.Quiet {
				continue
			}
			r.Log.WarnContext(ctx, "evidence is missing or wrong, and waived", slog.String("stack", b.Name), slog.String("environment", b.Environment),
				slog.String("artifact", e.Subject.Pinned()), slog.String("check", c.Name), slog.String("waived", c.Waived), slog.String("asked", c.Asked))
		}
	}
}
