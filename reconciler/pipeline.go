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
	artifacts []verify.Subject
	pins      map[string]verify.Subject
	inputs    map[string]string
}

// reconcile is the flow of docs/ARCHITECTURE.md for one stack. The commit was
// authorised before the stack was discovered.
func (r *Reconciler) reconcile(ctx context.Context, s *stack) error {
	if err := s.refused(); err != nil {
		return err
	}
	if s.unchanged() {
		return r.finish(ctx, s)
	}
	if err := r.dependencies(s); err != nil {
		return err
	}
	s.enter(Reconciling)
	start := time.Now()
	p, err := r.deploy(ctx, s, ledger.Applied)
	if err != nil {
		return err
	}
	r.metrics.reconcileSeconds.WithLabelValues(s.TargetName).Observe(time.Since(start).Seconds())
	r.Log.InfoContext(ctx, "applied", slog.String("stack", s.Name), slog.String("revision", p.Plan.Revision.String()),
		slog.String("changes", p.Plan.Summary()), slog.Duration("took", time.Since(start)))
	return r.finish(ctx, s)
}

// deploy has one stack judged, applied and made the state that is enforced. typ
// is the type of the entry for the result.
func (r *Reconciler) deploy(ctx context.Context, s *stack, typ ledger.Type) (*Proposal, error) {
	p, err := r.judge(ctx, s)
	s.judged(p)
	if err != nil {
		return p, err
	}
	r.recordLater(ctx, s.entry(ledger.Verified, "ok", fmt.Sprintf("%d artifacts", len(p.Report.Evidence))), bodies(map[string]any{"evidence": p.Report}))
	r.recordLater(ctx, s.entry(ledger.Decided, "ok", p.Plan.Summary()), bodies(map[string]any{"rendered": p.Rendered, "planned": p.Planned}))
	if err := r.apply(ctx, s, p, typ); err != nil {
		return p, err
	}
	return p, r.stand(ctx, s, p)
}

// judge renders, verifies, plans and has everything judged. It writes nothing.
func (r *Reconciler) judge(ctx context.Context, s *stack) (*Proposal, error) {
	snap, commit := s.desired()
	p := &Proposal{Commit: commit}
	track := newTracker(snap)

	rendered, err := s.Target.Render(ctx, track.snapshot())
	if err != nil {
		return p, err
	}
	p.inputs = track.inputs()
	p.Report, p.pins, err = r.Artifacts.Verify(ctx, s.Environment, rendered.Artifacts)
	if err != nil {
		return p, err
	}
	p.artifacts = pinned(p.pins)
	if p.rendered, err = pin(s.Target, rendered, p.pins); err != nil {
		return p, err
	}
	if p.Rendered, err = r.decide(ctx, s, policy.StageRendered, p.rendered.Digest, p.rendered.Documents, p); err != nil {
		return p, err
	}
	if p.Plan, err = s.Target.Plan(ctx, p.rendered); err != nil {
		return p, err
	}
	if err := r.verifyPlanned(ctx, s, p); err != nil {
		return p, err
	}
	p.Planned, err = r.decide(ctx, s, policy.StagePlan, p.Plan.Digest(), p.Plan.Documents, p)
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
func (r *Reconciler) verifyPlanned(ctx context.Context, s *stack, p *Proposal) error {
	namer, ok := s.Target.(targets.PlanNamer)
	if !ok {
		return nil
	}
	named, err := namer.PlanArtifacts(p.Plan)
	if err != nil {
		return err
	}
	report, pins, err := r.Artifacts.Verify(ctx, s.Environment, named)
	p.Report.Evidence = append(p.Report.Evidence, report.Evidence...)
	p.artifacts = append(p.artifacts, pinned(pins)...)
	return err
}

// decide has documents judged. A decision that refuses is an error of kind
// Denied that carries every message.
func (r *Reconciler) decide(ctx context.Context, s *stack, stage policy.Stage, of digest.Digest, docs []plan.Document, p *Proposal) (*policy.Decision, error) {
	d, err := s.Policy.Evaluate(ctx, policy.Input{
		Stage: stage, Target: s.TargetName, Stack: s.Name, Environment: s.Environment,
		Repository: s.repo, Commit: p.Commit.Subject.Reference,
		Documents: docs, Report: p.Report, Of: of,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Denied, "policy.Evaluate", "look at the policy: it could not be evaluated", err)
	}
	if d.Allowed() {
		return &d, nil
	}
	if d.Rules == 0 {
		return &d, fault.New(fault.Denied, "policy.Evaluate", "give the environment a policy set with rules for "+s.TargetName,
			"no policy rule judges the %s stage", stage)
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

// apply passes the gate and carries the plan out.
func (r *Reconciler) apply(ctx context.Context, s *stack, p *Proposal, typ ledger.Type) error {
	if p.Plan.Empty() {
		return nil
	}
	grant, err := r.Gate.Admit(ctx, p.request())
	if err != nil {
		return err
	}
	s.progress("applying " + p.Plan.Summary())
	receipt, err := s.Target.Apply(ctx, grant)
	r.result(ctx, s, typ, grant, receipt, err)
	return err
}

func (p *Proposal) request() gate.Request {
	return gate.Request{
		Plan: p.Plan, Commit: p.Commit, Artifacts: p.artifacts, Report: p.Report,
		Rendered: *p.Rendered, Planned: *p.Planned,
	}
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
func (r *Reconciler) stand(ctx context.Context, s *stack, p *Proposal) error {
	objects, err := desiredObjects(ctx, s.Target, p.rendered)
	if err != nil {
		return err
	}
	if err := r.Gate.Stand(p.request(), objects); err != nil {
		return err
	}
	if err := r.state.save(s, p); err != nil {
		return err
	}
	s.stand(p)
	r.observe(ctx, s)
	return nil
}

// desiredObjects returns what a standing grant may lead back to; nil for a
// target that cannot restore.
func desiredObjects(ctx context.Context, t targets.Target, r targets.Rendered) (map[plan.ObjectID]digest.Digest, error) {
	if t, ok := t.(targets.Restorer); ok {
		return t.Desired(ctx, r)
	}
	return nil, nil //nolint:nilnil // says that nothing can be restored without a decision
}

// finish waits for health. What is applied stays applied while it waits.
func (r *Reconciler) finish(ctx context.Context, s *stack) error {
	if h, ok := s.Target.(targets.HealthChecker); ok {
		s.enter(Progressing)
		rendered, _ := s.granted()
		if err := h.Healthy(ctx, rendered); err != nil {
			return err
		}
	}
	return nil
}

// dependencies reports the first stack that s depends on and that is not ready.
func (r *Reconciler) dependencies(s *stack) error {
	const op = "reconciler.dependencies"
	for _, name := range s.DependsOn {
		d := r.stack(name)
		if d == nil {
			return fault.New(fault.Waiting, op, "add the stack, or remove it from dependsOn", "depends on stack %q, which does not exist", name)
		}
		if cycle := r.cycle(s.Name, d, nil); cycle != nil {
			return fault.New(fault.Invalid, op, "remove one of the dependsOn entries", "dependency cycle: %s", strings.Join(cycle, " → "))
		}
		if st := d.snapshotStatus(); st.Phase != Ready && st.Phase != Drifted {
			return fault.New(fault.Waiting, op, "", "waits for stack %q, which is %s", name, st.Phase)
		}
	}
	return nil
}

// cycle returns the path from d back to start, or nil.
func (r *Reconciler) cycle(start string, d *stack, path []string) []string {
	if len(path) > 1000 || slices.Contains(path, d.Name) {
		return nil
	}
	path = append(path, d.Name)
	for _, next := range d.DependsOn {
		if next == start {
			return append([]string{start}, append(path, start)...)
		}
		if n := r.stack(next); n != nil {
			if c := r.cycle(start, n, path); c != nil {
				return c
			}
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
