package reconciler

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// A trace tells the way of one commit into the world: the span "revision" with
// what it took to trust the commit, and below it one span "deploy" for each
// stack that the commit changed. Whatever is tried again later, and each repair
// of drift, is a trace of its own with a link to the commit's. Names and
// attributes are documented in docs/metrics.md.

// The attributes of spans. Their values are names, commits, digests and counts,
// never content.
const (
	attrRepository  = attribute.Key("holdfast.repository")
	attrRevision    = attribute.Key("holdfast.revision")
	attrStack       = attribute.Key("holdfast.stack")
	attrEnvironment = attribute.Key("holdfast.environment")
	attrTarget      = attribute.Key("holdfast.target")
	attrPlan        = attribute.Key("holdfast.plan.digest")
	attrIndex       = attribute.Key("holdfast.ledger.index")
	attrEntry       = attribute.Key("holdfast.ledger.type")
	attrKind        = attribute.Key("holdfast.error.kind")
)

// The stages: names of spans, and values of the label stage.
const (
	stageFetch           = "fetch"
	stageVerifyCommit    = "verify_commit"
	stageDiscover        = "discover"
	stageRender          = "render"
	stageVerifyArtifacts = "verify_artifacts"
	stagePolicyRendered  = "policy_rendered"
	stagePlan            = "plan"
	stagePolicyPlan      = "policy_plan"
	stageGate            = "gate"
	stageApply           = "apply"
)

// stage is a step of the pipeline while it runs: a span, and how long it took.
type stage struct {
	trace.Span
	scrub func(string) string
	took  prometheus.Observer
	start time.Time
}

// stage begins a step. Target is empty for a step that is about a whole commit.
func (r *Reconciler) stage(ctx context.Context, name, target string) (context.Context, stage) {
	ctx, span := r.child(ctx, name)
	return ctx, stage{Span: span, scrub: r.Scrub, took: r.metrics.stageSeconds.WithLabelValues(name, target), start: time.Now()}
}

// end ends the step with what became of it. A step that was refused took its
// time too, and counts.
func (s stage) end(err error) {
	s.took.Observe(time.Since(s.start).Seconds())
	endSpan(s.Span, s.scrub, err)
}

// child starts a span below the one of ctx. Where there is none, there is no
// trace to be a part of.
func (r *Reconciler) child(ctx context.Context, name string) (context.Context, trace.Span) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, trace.SpanFromContext(ctx)
	}
	return r.Tracer.Start(ctx, name)
}

// endSpan ends span with what became of it.
func endSpan(span trace.Span, scrub func(string) string, err error) {
	if err != nil && span.IsRecording() {
		span.SetAttributes(attrKind.String(fault.KindOf(err).String()))
		span.SetStatus(codes.Error, scrub(err.Error()))
	}
	span.End()
}

// indexed notes where in the ledger the step was recorded.
func indexed(span trace.Span, i ledger.Index) {
	if span.IsRecording() {
		span.SetAttributes(attrIndex.Int64(int64(i)))
	}
}

// traceRevision starts the trace of a commit.
func (r *Reconciler) traceRevision(ctx context.Context, repo *repository, commit string) (context.Context, trace.Span) {
	ctx, span := r.Tracer.Start(ctx, "revision", trace.WithNewRoot(), trace.WithAttributes(attrRepository.String(repo.Name), attrRevision.String(commit)))
	repo.trace.begin(commit, span.SpanContext())
	return ctx, span
}

// traceDeploy starts the span of a deployment of b. The first one of a stack
// for a commit belongs to the commit's trace.
func (r *Reconciler) traceDeploy(ctx context.Context, s *stack, b basis) (context.Context, trace.Span) {
	origin, first := r.repository(s.repo).trace.take(b.snap.Revision.ID, b.Name)
	if first {
		return r.Tracer.Start(trace.ContextWithSpanContext(ctx, origin), "deploy", aboutStack(b))
	}
	return r.Tracer.Start(ctx, "deploy", aboutStack(b), trace.WithNewRoot(), linked(origin))
}

// traceRepair starts the span of a return to b.
func (r *Reconciler) traceRepair(ctx context.Context, s *stack, b basis) (context.Context, trace.Span) {
	origin := r.repository(s.repo).trace.origin(b.snap.Revision.ID)
	return r.Tracer.Start(ctx, "repair", aboutStack(b), trace.WithNewRoot(), linked(origin))
}

func aboutStack(b basis) trace.SpanStartEventOption {
	return trace.WithAttributes(attrStack.String(b.Name), attrEnvironment.String(b.Environment), attrTarget.String(b.TargetName), attrRevision.String(b.snap.Revision.ID))
}

func linked(origin trace.SpanContext) trace.SpanStartOption {
	if !origin.IsValid() {
		return trace.WithLinks()
	}
	return trace.WithLinks(trace.Link{SpanContext: origin})
}

// remember keeps span until the outcome of the work is told.
func (s *stack) remember(span trace.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.span = span.SpanContext()
}

// traced returns ctx with the span of the last work on s, once: what is logged
// and recorded about its outcome belongs to it.
func (s *stack) traced(ctx context.Context) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	span := s.span
	s.span = trace.SpanContext{}
	if !span.IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, span)
}

// commitTrace is the trace of the newest commit of a repository.
type commitTrace struct {
	mu     sync.Mutex
	commit string
	span   trace.SpanContext
	begun  map[string]bool // stacks that have their span in it
}

func (t *commitTrace) begin(commit string, span trace.SpanContext) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit, t.span, t.begun = commit, span, map[string]bool{}
}

// origin returns the span of commit, which is not valid if it is not known any
// more.
func (t *commitTrace) origin(commit string) trace.SpanContext {
	t.mu.Lock()
	defer t.mu.Unlock()
	if commit != t.commit {
		return trace.SpanContext{}
	}
	return t.span
}

// take returns origin, and whether this is the first time for stack.
func (t *commitTrace) take(commit, stack string) (origin trace.SpanContext, first bool) {
	origin = t.origin(commit)
	if !origin.IsValid() {
		return origin, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first = !t.begun[stack]
	t.begun[stack] = true
	return origin, first
}

// What follows are the steps of the pipeline, each with its stage around it.

func (r *Reconciler) fetch(ctx context.Context, repo *repository, rev sources.Revision) (*sources.Snapshot, error) {
	ctx, step := r.stage(ctx, stageFetch, "")
	snap, err := repo.Source.Fetch(ctx, rev)
	step.end(err)
	return snap, err
}

func (r *Reconciler) authorise(ctx context.Context, repo *repository, from, head string) (verify.Evidence, error) {
	ctx, step := r.stage(ctx, stageVerifyCommit, "")
	commit, err := repo.Authorise(ctx, from, head, repo.seen)
	step.end(err)
	return commit, err
}

func (r *Reconciler) discover(ctx context.Context, repo *repository, snap *sources.Snapshot) ([]Stack, error) {
	ctx, step := r.stage(ctx, stageDiscover, "")
	found, err := repo.Discover(ctx, snap)
	step.end(err)
	return found, err
}

func (r *Reconciler) render(ctx context.Context, b basis, snap *sources.Snapshot) (targets.Rendered, error) {
	ctx, step := r.stage(ctx, stageRender, b.TargetName)
	rendered, err := b.target.Render(ctx, snap)
	step.end(err)
	return rendered, err
}

func (r *Reconciler) verifyArtifacts(ctx context.Context, b basis, named []verify.Subject) (verify.Report, map[string]verify.Subject, error) {
	ctx, step := r.stage(ctx, stageVerifyArtifacts, b.TargetName)
	report, pins, err := r.Artifacts.Verify(ctx, b.Environment, named)
	r.warn(ctx, b, report)
	step.end(err)
	return report, pins, err
}

func (r *Reconciler) evaluate(ctx context.Context, b basis, in policy.Input) (policy.Decision, error) {
	name := stagePolicyRendered
	if in.Stage == policy.StagePlan {
		name = stagePolicyPlan
	}
	ctx, step := r.stage(ctx, name, b.TargetName)
	d, err := b.Policy.Evaluate(ctx, in)
	step.end(err)
	return d, err
}

func (r *Reconciler) plan(ctx context.Context, b basis, rendered targets.Rendered, only ...plan.ObjectID) (plan.Plan, error) {
	ctx, step := r.stage(ctx, stagePlan, b.TargetName)
	var p plan.Plan
	var err error
	if len(only) == 0 {
		p, err = planAll(ctx, b.target, rendered, !b.anew)
	} else {
		p, err = b.target.Plan(ctx, rendered, only...)
	}
	if err == nil && step.IsRecording() {
		step.SetAttributes(attrPlan.String(p.Digest().String()))
	}
	step.end(err)
	return p, err
}

// planAll plans everything, with memory from what the target has watched of it where
// it can.
func planAll(ctx context.Context, t targets.Target, r targets.Rendered, memory bool) (plan.Plan, error) {
	if t, ok := t.(targets.Recaller); ok && memory {
		return t.Recall(ctx, r)
	}
	return t.Plan(ctx, r)
}

// pass asks the gate, by admit or by restore, which returns when the intent is
// in the ledger.
func (r *Reconciler) pass(ctx context.Context, b basis, ask func(context.Context) (gate.Grant, error)) (gate.Grant, error) {
	ctx, step := r.stage(ctx, stageGate, b.TargetName)
	grant, err := ask(ctx)
	if err == nil {
		indexed(step, grant.Intent())
	}
	step.end(err)
	return grant, err
}

func (r *Reconciler) carryOut(ctx context.Context, b basis, grant gate.Grant) (targets.Receipt, error) {
	ctx, step := r.stage(ctx, stageApply, b.TargetName)
	receipt, err := b.target.Apply(ctx, grant)
	step.end(err)
	return receipt, err
}
