package reconciler

import (
	"context"
	"log/slog"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// gone notes that the stack file is gone as of rev. By default nothing is
// deleted, and what was deployed goes on being enforced; a stack that asked for
// it, while it could, is removed or let go of.
func (r *Reconciler) gone(ctx context.Context, s *stack, rev sources.Revision) {
	if !s.hold(rev) {
		return
	}
	prune := s.pruned()
	r.Log.WarnContext(ctx, "stack file is gone", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("prune", string(prune)))
	if prune != PruneHold {
		if r.queue != nil {
			r.queue.Add(request{removeStack, s.Name})
		}
		return
	}
	const message = "the stack file is gone; nothing is deleted"
	r.recordLater(ctx, s.entry(ledger.Refused, "held", message), nil)
	s.alarm(true)
	e := s.event(EventHeld, "stack", message)
	e.Hint = hintHeld
	r.tell(e)
}

const hintHeld = "bring the stack file back, or delete what it deployed by hand; prune: delete or orphan in a stack file says otherwise beforehand"

// pruned is what becomes of the objects now that the stack file is gone: what
// the last granted request said.
func (s *stack) pruned() Prune {
	if d := s.granted(); d != nil && d.Prune != "" {
		return d.Prune
	}
	return PruneHold
}

// remove deletes what a stack deployed, or lets go of it, once its stack file is
// gone. The plan is judged and granted like any other.
func (r *Reconciler) remove(ctx context.Context, s *stack) (err error) {
	const op = "reconciler.remove"
	d := s.granted()
	if d == nil || !s.isHeld() {
		return nil
	}
	if needed := r.dependents(s.Name); len(needed) > 0 {
		return fault.New(fault.Waiting, op, "remove the dependsOn entries first", "still needed by %s", strings.Join(needed, ", "))
	}
	t, ok := d.target.(targets.Remover)
	if !ok {
		return fault.New(fault.Invalid, op, "delete what it deployed by hand", "a %s stack cannot be removed", s.TargetName)
	}
	// Who removed the stack file answers for this, not who deployed the stack.
	b, commit, err := r.removal(ctx, s, d)
	if err != nil {
		return err
	}
	ctx, span := r.traceDeploy(ctx, s, b)
	s.remember(span)
	defer func() { endSpan(span, r.Scrub, err) }()
	s.live.work.Lock()
	defer s.live.work.Unlock()
	if r.stack(s.Name) != s || s.granted() != d {
		return nil // brought back meanwhile
	}
	p := &Proposal{Commit: commit, inputs: d.inputs, rendered: d.rendered}
	if p.Plan, err = t.Removal(ctx, d.rendered, d.Prune == PruneOrphan); err != nil {
		return err
	}
	p.Plan.Revision = b.snap.Revision
	p.Report.Environment = s.Environment
	if p.Planned, err = r.decide(ctx, s.repo, b, policy.StagePlan, p.Plan.Digest(), p.Plan.Documents, p); err != nil {
		s.judged(p)
		return err
	}
	if err := r.marked(ctx, s.Environment, s.repo); err != nil {
		return err
	}
	req := p.removalRequest()
	grant, err := r.pass(ctx, b, func(ctx context.Context) (gate.Grant, error) { return r.Gate.Admit(ctx, req) })
	if err != nil {
		return err
	}
	s.live.observing(nil)
	s.begin()
	receipt, err := r.carryOut(ctx, b, grant)
	r.result(ctx, s, ledger.Applied, grant, receipt, err)
	if err != nil {
		r.observe(s)
		return err
	}
	r.Log.InfoContext(s.traced(ctx), "removed", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("prune", string(d.Prune)), slog.String("changes", p.Plan.Summary()))
	r.tell(s.event(EventApplied, "applied", "the stack is removed: "+p.Plan.Summary()))
	return r.forget(s)
}

// removal returns the basis of the judgement of a removal: the stack as it was
// granted, at the commit that removed its file.
func (r *Reconciler) removal(ctx context.Context, s *stack, d *deployment) (basis, verify.Evidence, error) {
	repo := r.repository(s.repo)
	st := repo.snapshotStatus()
	snap, commit, err := r.past(ctx, repo, st.Verified, st.seen)
	if err != nil {
		return basis{}, commit, err
	}
	b := d.basis
	b.snap, b.commit = snap, commit
	return b, commit, r.Revocations.Check(commit.RestsOn...)
}

// dependents returns the stacks that depend on name.
func (r *Reconciler) dependents(name string) []string {
	var out []string
	for _, s := range r.all() {
		for _, d := range s.DependsOn {
			if d == name && !s.isHeld() {
				out = append(out, s.Name)
			}
		}
	}
	return out
}

// forget ends a stack that has nothing in the world any more.
func (r *Reconciler) forget(s *stack) error {
	r.Gate.Revoke(s.Name)
	if err := r.state.forget(s.Name); err != nil {
		return err
	}
	r.mu.Lock()
	if r.stacks[s.Name] == s {
		delete(r.stacks, s.Name)
	}
	r.mu.Unlock()
	s.close()
	return nil
}
