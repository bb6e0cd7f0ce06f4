package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// repairWorkers restore drifted objects. They are apart from the workers of the
// queue, so that a storm of merges does not delay a repair.
const repairWorkers = 4

// observe has the target watch what was granted, if it can. It replaces the
// observer of what was granted before.
func (r *Reconciler) observe(_ context.Context, s *stack) {
	o, ok := s.Target.(targets.Observer)
	if !ok || r.watch == nil {
		return
	}
	ctx, stop := context.WithCancel(r.life)
	s.observing(stop)
	rendered, _ := s.granted()
	r.watch.Go(func() error {
		err := o.Observe(ctx, rendered, func(f targets.Finding) { r.found(ctx, s, f) })
		if err != nil && ctx.Err() == nil {
			// The schedule still compares; the watch starts again with the next grant.
			r.Log.ErrorContext(ctx, "watch ended", slog.String("stack", s.Name), slog.String("error", r.Scrub(err.Error())))
		}
		return nil
	})
}

// found takes one confirmed difference from a target.
func (r *Reconciler) found(ctx context.Context, s *stack, f targets.Finding) {
	f.Stack = s.Name
	v := s.Drift.Judge(f, time.Now())
	if v.Action == drift.Ignored {
		return
	}
	_, fresh := s.findings.Add(v.Finding)
	if fresh {
		r.recordDrift(ctx, s, v)
	}
	if v.Action == drift.Reverted {
		s.addPending(f.ID, f.Detected)
		r.repairs.Add(s.Name)
		return
	}
	s.enter(Drifted)
}

func (r *Reconciler) recordDrift(ctx context.Context, s *stack, v drift.Verdict) {
	f := v.Finding
	r.metrics.findings.WithLabelValues(s.TargetName, string(f.Class), string(v.Action)).Inc()
	note := fmt.Sprintf("%s %s", f.ID, f.Class)
	if f.Actor != "" {
		note += " by " + f.Actor
	}
	for _, field := range f.Fields {
		note += fmt.Sprintf("; %s: %s instead of %s", field.Path, orAbsent(field.From), orAbsent(field.To))
	}
	note = r.Scrub(note)
	r.recordLater(ctx, s.entry(ledger.Drift, string(v.Action), note), bodies(map[string]any{"finding": f}))
	r.Log.InfoContext(ctx, "drift", slog.String("stack", s.Name), slog.String("object", f.ID.String()), slog.String("class", string(f.Class)),
		slog.String("actor", f.Actor), slog.String("action", string(v.Action)), slog.String("what", note))
}

func orAbsent(v string) string {
	if v == "" {
		return "nothing"
	}
	return v
}

func (r *Reconciler) workRepairs(ctx context.Context) {
	for {
		name, down := r.repairs.Get()
		if down {
			return
		}
		s := r.stack(name)
		if s != nil && ctx.Err() == nil {
			if err := r.guarded(s, func() error { return r.repair(ctx, s) }); err != nil && ctx.Err() == nil {
				r.Log.WarnContext(ctx, "drift not reverted", slog.String("stack", s.Name), slog.String("error", r.Scrub(err.Error())), slog.String("hint", fault.HintOf(err)))
				// The full comparison finds it again.
				r.queue.AddAfter(request{compareStack, s.Name}, s.backoff(time.Second, time.Minute))
			}
		}
		r.repairs.Done(name)
	}
}

// repair restores the objects of s that were found to have drifted, under its
// standing grant.
func (r *Reconciler) repair(ctx context.Context, s *stack) error {
	ids, detected := s.takePending()
	rendered, ok := s.granted()
	if len(ids) == 0 || !ok {
		return nil
	}
	p, err := s.Target.Plan(ctx, rendered, ids...)
	if err != nil {
		return err
	}
	return r.restore(ctx, s, p, ids, detected)
}

// restore applies p, which leads back to what was granted, and closes the
// findings for ids.
func (r *Reconciler) restore(ctx context.Context, s *stack, p plan.Plan, ids []plan.ObjectID, detected map[plan.ObjectID]time.Time) error {
	if !p.Empty() {
		grant, err := r.Gate.Restore(ctx, p)
		if err != nil {
			return err
		}
		receipt, err := s.Target.Apply(ctx, grant)
		r.result(ctx, s, ledger.Reverted, grant, receipt, err)
		if errors.Is(err, targets.ErrStale) { // it moved again: look again
			for _, id := range ids {
				s.addPending(id, detected[id])
			}
			r.repairs.Add(s.Name)
			return nil
		}
		if err != nil {
			return err
		}
		r.Log.InfoContext(ctx, "reverted drift", slog.String("stack", s.Name), slog.Int("objects", len(p.Changes)))
	}
	for _, id := range ids {
		if at, ok := detected[id]; ok {
			r.metrics.repairSeconds.Observe(time.Since(at).Seconds())
		}
	}
	s.findings.Close(ids...)
	s.calm()
	return nil
}

// calm notes that the world was found to be what was granted, or was made so.
func (s *stack) calm() {
	unchanged := s.unchanged()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.findings.List()) > 0 {
		return
	}
	switch s.status.Phase {
	case Ready:
		s.status.Message, s.status.Hint = "", ""
	case Drifted:
		s.enterLocked(Ready)
	case Denied, Invalid:
		// A repair was refused; what is asked for was granted before.
		if unchanged && s.refusal == nil {
			s.enterLocked(Ready)
			s.status.Message, s.status.Hint = "", ""
		}
	}
}

// compare is the full comparison: a plan from what was granted. It finds what a
// watch missed, and is the only way for a target that cannot watch.
func (r *Reconciler) compare(ctx context.Context, s *stack) error {
	_, err := r.compareNow(ctx, s, true)
	return err
}

// compareNow returns what differs. With act, it is recorded and, where the
// stack's rules say so, reverted.
func (r *Reconciler) compareNow(ctx context.Context, s *stack, act bool) ([]targets.Finding, error) {
	rendered, ok := s.granted()
	if !ok {
		return nil, fault.New(fault.Waiting, "reconciler.compare", "", "nothing was applied yet")
	}
	start := time.Now()
	p, err := s.Target.Plan(ctx, rendered)
	if err != nil {
		return nil, err
	}
	r.metrics.compareSeconds.WithLabelValues(s.TargetName).Observe(time.Since(start).Seconds())
	var found []targets.Finding
	var revert []plan.ObjectID
	for _, f := range drift.FromPlan(p, start.UTC()) {
		v := s.Drift.Judge(f, time.Now())
		if v.Action == drift.Ignored {
			continue
		}
		if !act {
			found = append(found, v.Finding)
			continue
		}
		kept, fresh := s.findings.Add(v.Finding)
		found = append(found, kept)
		if fresh {
			r.recordDrift(ctx, s, v)
		}
		if v.Action == drift.Reverted {
			revert = append(revert, f.ID)
		}
	}
	if !act {
		return found, nil
	}
	r.closeAbsent(s, found)
	if len(found) > len(revert) {
		s.enter(Drifted)
	}
	if len(revert) == 0 {
		s.calm()
		return found, nil
	}
	return found, r.revert(ctx, s, rendered, p, revert)
}

// closeAbsent ends findings that the comparison did not find any more.
func (r *Reconciler) closeAbsent(s *stack, found []targets.Finding) {
	for _, old := range s.findings.List() {
		if !slices.ContainsFunc(found, func(f targets.Finding) bool { return f.ID == old.ID }) {
			s.findings.Close(old.ID)
		}
	}
}

// revert restores ids. What a standing grant covers is restored under it; a
// target without one (Terraform) goes through the whole pipeline again.
func (r *Reconciler) revert(ctx context.Context, s *stack, rendered targets.Rendered, p plan.Plan, ids []plan.ObjectID) error {
	if _, ok := s.Target.(targets.Restorer); ok {
		if len(ids) < len(p.Changes) {
			var err error
			if p, err = s.Target.Plan(ctx, rendered, ids...); err != nil {
				return err
			}
		}
		detected := make(map[plan.ObjectID]time.Time, len(ids))
		for _, f := range s.findings.List() {
			detected[f.ID] = f.Detected
		}
		return r.restore(ctx, s, p, ids, detected)
	}
	proposal, err := r.deploy(ctx, s, ledger.Reverted)
	if err != nil {
		return err
	}
	r.Log.InfoContext(ctx, "reverted drift", slog.String("stack", s.Name), slog.Int("objects", len(proposal.Plan.Changes)))
	s.calm()
	return nil
}
