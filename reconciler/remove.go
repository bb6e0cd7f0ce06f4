package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

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
// it, while it could, is removed or let go of. With keep nothing is deleted
// either way: so many are gone at once (invariant 7), or another name has its folder.
func (r *Reconciler) gone(ctx context.Context, s *stack, rev sources.Revision, keep bool) {
	if !s.hold(rev) {
		return
	}
	prune := s.pruned()
	r.Log.WarnContext(ctx, "stack file is gone", slog.String("stack", s.Name), slog.String("environment", s.Environment),
		slog.String("revision", rev.String()), slog.String("prune", string(prune)), slog.Bool("kept", keep))
	if err := r.state.update(s.Name, func(st *stackState) { st.Held, st.Keep = true, keep }); err != nil {
		r.Log.WarnContext(ctx, "state not written", slog.String("stack", s.Name), slog.String("error", err.Error()))
	}
	if prune != PruneHold && !keep {
		r.queueRemoval(s)
		return
	}
	message := "the stack file is gone; nothing is deleted"
	if keep && prune != PruneHold {
		message = "the stack file is gone, or was with many others or in favour of another name; nothing is deleted"
	}
	r.recordLater(ctx, s.entry(ledger.Refused, "held", message), nil)
	s.alarm(true)
	e := s.event(EventHeld, "stack", message)
	e.Hint = hintHeld
	r.tell(e)
}

// heldAgain takes up, after a restart, a stack whose file is gone.
func (r *Reconciler) heldAgain(s *stack, newest sources.Revision, st stackState) {
	s.hold(newest)
	if s.pruned() != PruneHold && !st.Keep {
		r.queueRemoval(s)
	}
}

// resumeRemoval goes on with a removal that a suspension kept back.
func (r *Reconciler) resumeRemoval(s *stack) {
	var st stackState
	if err := r.state.read(r.state.path("stacks", s.Name), &st); err == nil && !st.Keep {
		r.queueRemoval(s)
	}
}

func (r *Reconciler) queueRemoval(s *stack) {
	if r.queue != nil {
		r.queue.Add(request{removeStack, s.Name})
	}
}

const (
	fewGone   = 3  // stacks that may be gone at once, whatever their share is
	goneShare = 50 // percent of a repository's stacks that may be gone at once
)

// massive reports whether more stacks of a repository are gone at once than a
// person would remove. The caller holds r.mu.
func (r *Reconciler) massive(repo string, lost []*stack) bool {
	all := 0
	for _, s := range r.stacks {
		if s.repo == repo && s.granted() != nil && !s.isHeld() {
			all++
		}
	}
	news := 0
	for _, s := range lost {
		if !s.isHeld() {
			news++
		}
	}
	return news > fewGone && 100*news > goneShare*all || news == all && all > 1
}

const hintHeld = "bring the stack file back, or delete what it deployed by hand; prune: delete or orphan in a stack file says otherwise beforehand"

// pruned is what becomes of the objects now that the stack file is gone: what
// the last granted request said.
func (s *stack) pruned() Prune {
	s.mu.Lock()
	renamed := s.renamed
	s.mu.Unlock()
	d := s.granted()
	switch {
	case renamed: // what its new name declares is not its own any more
		return PruneDelete
	case d != nil && d.Prune != "":
		return d.Prune
	}
	return PruneHold
}

// end removes a stack whose file is gone, and returns when to try again. One
// that was brought back meanwhile, or that is to be held, is none of its business.
func (r *Reconciler) end(ctx context.Context, s *stack) time.Duration {
	if s.granted() == nil || !s.isHeld() || s.pruned() == PruneHold {
		return 0
	}
	err := guarded(s, func() error { return r.remove(ctx, s) })
	if err == nil || errors.Is(err, errBroughtBack) {
		return 0
	}
	return r.settle(ctx, s, err)
}

var errBroughtBack = errors.New("the stack file is there again")

// remove deletes what a stack deployed, or lets go of it, once its stack file is
// gone. The plan is judged and granted like any other.
func (r *Reconciler) remove(ctx context.Context, s *stack) (err error) {
	const op = "reconciler.remove"
	d := s.granted()
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
	still := func() error {
		if sus := r.suspension(s.Name); sus != nil {
			return sus.err()
		}
		if r.stack(s.Name) != s || s.granted() != d || !s.isHeld() {
			return errBroughtBack
		}
		return nil
	}
	if err := still(); err != nil {
		return err
	}
	p := &Proposal{Commit: commit, inputs: d.inputs, rendered: d.rendered}
	if p.Plan, err = t.Removal(ctx, d.rendered, s.pruned() == PruneOrphan); err != nil {
		return err
	}
	p.Plan.Revision = b.snap.Revision
	p.Report.Environment = s.Environment
	if p.Planned, err = r.decide(ctx, s.repo, b, policy.StagePlan, p.Plan.Digest(), p.Plan.Documents, p); err != nil {
		s.judged(p)
		return err
	}
	if err := eachRepository(s, b, func(repo string) error { return r.marked(ctx, s.Environment, repo) }); err != nil {
		return err
	}
	if err := still(); err != nil {
		return err
	}
	req := p.removalRequest()
	grant, err := r.pass(ctx, b, func(ctx context.Context) (gate.Grant, error) { return r.Gate.Admit(ctx, req) })
	if err != nil {
		return err
	}
	// From here on nothing of it is restored, over a restart either.
	if err := r.state.update(s.Name, func(st *stackState) { st.Removing = true }); err != nil {
		return err
	}
	r.Gate.Revoke(s.Name)
	s.live.observing(nil)
	s.begin()
	receipt, err := r.carryOut(ctx, b, grant)
	r.result(ctx, s, ledger.Applied, grant, receipt, err)
	if err != nil {
		return err
	}
	r.Log.InfoContext(s.traced(ctx), "removed", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("prune", string(s.pruned())), slog.String("changes", p.Plan.Summary()))
	r.tell(s.event(EventApplied, "applied", "the stack is removed: "+p.Plan.Summary()))
	return r.forget(ctx, s)
}

// removal returns the basis of the judgement of a removal: the stack as it was
// granted, at the commit that removed its file.
func (r *Reconciler) removal(ctx context.Context, s *stack, d *deployment) (basis, verify.Evidence, error) {
	repo := r.repository(s.repo)
	snap, commit, err := r.past(ctx, repo, s.goneAt().ID, repo.snapshotSeen())
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
func (r *Reconciler) forget(ctx context.Context, s *stack) error {
	r.Gate.Revoke(s.Name)
	if err := r.state.forget(s.Name); err != nil {
		return err
	}
	if rb := r.orders.rolledBack(s.Name); rb != nil {
		r.endRollback(ctx, rb, s.goneAt().ID)
	}
	r.mu.Lock()
	delete(r.kept, s.Name)
	if r.stacks[s.Name] == s {
		delete(r.stacks, s.Name)
	}
	r.mu.Unlock()
	s.close()
	return nil
}

// goneAt returns the revision in which the stack file is gone.
func (s *stack) goneAt() sources.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}
