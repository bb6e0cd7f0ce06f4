package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// repairWorkers restore drifted objects. They are apart from the workers of the
// queue, so that a storm of merges does not delay a repair.
const repairWorkers = 16

// observe has the target watch what was granted, if it can. It replaces the
// observer of what was granted before.
func (r *Reconciler) observe(s *stack) {
	d := s.granted()
	if d == nil || r.watch == nil {
		return
	}
	o, ok := d.target.(targets.Observer)
	if !ok {
		return
	}
	ctx, stop := context.WithCancel(r.life)
	s.live.observing(stop)
	r.watch.Go(func() error {
		wait := time.Second
		for ctx.Err() == nil {
			err := r.watchOnce(ctx, o, d)
			if ctx.Err() != nil {
				break
			}
			r.Log.WarnContext(ctx, "watch ended; starting it again", slog.String("stack", d.Name), slog.Duration("after", wait), slog.String("error", r.Scrub(err.Error())))
			pause(ctx, wait)
			wait = min(2*wait, time.Minute)
		}
		return nil
	})
}

// watchOnce observes until ctx ends or the target cannot go on. It returns an
// error, also for a target that ended by itself or panicked.
func (r *Reconciler) watchOnce(ctx context.Context, o targets.Observer, d *deployment) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "reconciler.observe", "report this with the log", "panic: %v", p)
		}
	}()
	if err := o.Observe(ctx, d.rendered, func(f targets.Finding) { r.found(ctx, d, f) }); err != nil {
		return err
	}
	return errors.New("the target stopped watching")
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// found takes one confirmed difference from the target of d. One that is about
// what was granted before is late, and dropped.
func (r *Reconciler) found(ctx context.Context, d *deployment, f targets.Finding) {
	s := r.stack(d.Name)
	if s == nil || s.granted() != d {
		return
	}
	f.Stack = s.Name
	v := r.verdict(ctx, s, d, f, time.Now())
	if v.Action == drift.Ignored {
		return
	}
	s.disturbed()
	if v.Action == drift.Reverted { // a repair of a suspended stack does nothing
		s.live.addPending(map[plan.ObjectID]time.Time{f.ID: signOf(f)})
		r.repairs.Add(s.Name)
	}
}

// signOf returns when the first sign of f came.
func signOf(f targets.Finding) time.Time {
	if f.Noticed.IsZero() {
		return f.Detected
	}
	return f.Noticed
}

// verdict judges f, which s was found to differ by, notes it, and has what is held
// back for a while looked at again when that is over.
func (r *Reconciler) verdict(ctx context.Context, s *stack, d *deployment, f targets.Finding, now time.Time) drift.Verdict {
	f = r.attribute(d, s.live.findings.Known(f))
	v := d.Drift.Judge(f, now)
	fight := false
	switch v.Action {
	case drift.Ignored:
		return v
	case drift.Reverted:
		var wait time.Duration
		if wait, fight = s.live.fights.Revert(v.Finding, now); wait > 0 {
			v.Action, v.Until = drift.Fought, now.Add(wait)
		}
	}
	if !v.Until.IsZero() && r.queue != nil {
		r.queue.AddAfter(request{compareStack, s.Name}, v.Until.Sub(now))
	}
	kept, fresh := s.live.findings.Add(v.Finding)
	v.Finding = kept
	if fresh {
		r.unattributed(d, kept)
	}
	switch {
	case fight:
		r.recordFight(ctx, s, v)
	case fresh && v.Action != drift.Fought: // what is fought about was told of
		r.recordDrift(ctx, s, v)
	}
	return v
}

// recordFinding appends an entry about a finding, under its name.
func (r *Reconciler) recordFinding(ctx context.Context, s *stack, t ledger.Type, outcome string, f targets.Finding, note string) {
	e := s.entry(t, outcome, note)
	e.Subject = f.Ref
	r.recordLater(ctx, e, bodies(map[string]any{"finding": f}))
}

// eventOf returns an event about a finding of s.
func (s *stack) eventOf(t EventType, key, message string, f targets.Finding) Event {
	e := s.event(t, key, message)
	e.Object, e.Class, e.Actor = f.ID.String(), string(f.Class), f.Who()
	return e
}

// recordFight tells of a fight, once.
func (r *Reconciler) recordFight(ctx context.Context, s *stack, v drift.Verdict) {
	f := v.Finding
	v.Action = drift.Fought
	who := f.Who()
	if who == "" {
		who = "somebody unknown"
	}
	note := fmt.Sprintf("%s: %s changes it again and again", f.ID, who)
	for _, field := range f.Fields {
		note += "; " + field.Path
	}
	note = r.Scrub(note)
	r.metrics.found(s.TargetName, f, string(v.Action))
	r.recordFinding(ctx, s, ledger.Drift, string(v.Action), f, note)
	ev := s.eventOf(EventDrift, "fight/"+f.ID.String(), note+"; it is reverted less and less often", f)
	ev.Hint = "stop the other side, or have one of the two let go: an ignore rule, conflicts: yield, or the field out of the repository"
	r.tell(ev)
	r.Log.WarnContext(ctx, "fight", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("object", f.ID.String()),
		slog.String("actor", f.Who()), slog.String("what", note))
}

func (r *Reconciler) recordDrift(ctx context.Context, s *stack, v drift.Verdict) {
	f := v.Finding
	r.metrics.found(s.TargetName, f, string(v.Action))
	note := fmt.Sprintf("%s %s", f.ID, f.Class)
	if who := f.Who(); who != "" {
		note += " by " + who
	}
	for _, field := range f.Fields {
		note += fmt.Sprintf("; %s: %s instead of %s", field.Path, orNothing(field.From), orNothing(field.To))
	}
	if v.Rule != "" {
		note += fmt.Sprintf("; %s by %q", v.Action, v.Rule)
	}
	if !v.Until.IsZero() {
		note += " until " + v.Until.UTC().Format(time.RFC3339)
	}
	note = r.Scrub(note)
	r.recordFinding(ctx, s, ledger.Drift, string(v.Action), f, note)
	e := s.eventOf(EventDrift, "drift/"+f.ID.String(), note, f)
	switch v.Action {
	case drift.Asked:
		e.Hint = fmt.Sprintf("holdfast approve %s %s reverts it", s.Name, f.Ref)
	case drift.Offered:
		e.Hint = fmt.Sprintf("holdfast drift %s --branch NAME makes it a commit in a clone of the repository", s.Name)
	}
	r.tell(e)
	r.Log.InfoContext(ctx, "drift", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("object", f.ID.String()), slog.String("class", string(f.Class)),
		slog.String("actor", f.Who()), slog.String("action", string(v.Action)), slog.String("what", note))
}

func orNothing(v string) string {
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
		if s := r.stack(name); s != nil && ctx.Err() == nil {
			done := r.metrics.busy(queueRepairs)
			if err := guarded(s, func() error { return r.repair(ctx, s) }); err != nil && ctx.Err() == nil {
				r.unrepaired(ctx, s, err)
			}
			done()
		}
		r.repairs.Done(name)
	}
}

// unrepaired notes that a repair did not work. The full comparison tries again.
func (r *Reconciler) unrepaired(ctx context.Context, s *stack, err error) {
	ctx = s.traced(ctx)
	kind := fault.KindOf(err)
	r.Log.WarnContext(ctx, "drift not reverted", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("kind", kind.String()),
		slog.String("op", fault.OpOf(err)), slog.String("error", r.Scrub(err.Error())), slog.String("hint", fault.HintOf(err)))
	if kind == fault.Denied || kind == fault.Invalid {
		r.recordLater(ctx, s.entry(ledger.Refused, kind.String(), r.Scrub(err.Error())), nil)
	}
	r.queue.AddAfter(request{compareStack, s.Name}, s.again(kind))
}

// again counts a failed attempt and returns when to try again.
func (s *stack) again(kind fault.Kind) time.Duration {
	s.mu.Lock()
	s.attempts++
	s.mu.Unlock()
	if kind == fault.Denied || kind == fault.Invalid {
		return s.backoff(time.Minute, 10*time.Minute)
	}
	return s.backoff(time.Second, time.Minute)
}

// repair restores the objects of s that were found to have drifted, under its
// standing grant.
func (r *Reconciler) repair(ctx context.Context, s *stack) (err error) {
	s.live.work.Lock()
	defer s.live.work.Unlock()
	if s.live.halfWay() {
		return nil
	}
	ids, detected := s.live.takePending()
	d := s.granted()
	if len(ids) == 0 || d == nil || r.suspension(s.Name) != nil {
		return nil
	}
	if err := s.live.whyRevoked(); err != nil {
		return err
	}
	ctx, span := r.traceRepair(ctx, s, d.basis)
	defer func() {
		if err != nil { // whoever tells of it says where
			s.remember(span)
		}
		endSpan(span, r.Scrub, err)
	}()
	attempt := func(detected map[plan.ObjectID]time.Time) error {
		ids := slices.SortedFunc(maps.Keys(detected), plan.ObjectID.Compare)
		p, err := r.plan(ctx, d.basis, d.rendered, ids...)
		if err != nil {
			return err
		}
		return r.restore(ctx, s, d, p, ids, detected)
	}
	err = attempt(detected)
	if err != nil && len(ids) > 1 && fault.KindOf(err) != fault.Transient {
		// One that cannot be restored does not keep the others from it.
		var errs []error
		left := map[plan.ObjectID]time.Time{}
		for _, id := range ids {
			if err := attempt(map[plan.ObjectID]time.Time{id: detected[id]}); err != nil {
				errs, left[id] = append(errs, err), detected[id]
			}
		}
		err, detected = errors.Join(errs...), left
	}
	if err != nil {
		s.live.addPending(detected) // for whoever tries again
	}
	return err
}

// restore applies p, which leads back to d, and closes the findings for ids. The
// caller holds the stack's work lock.
func (r *Reconciler) restore(ctx context.Context, s *stack, d *deployment, p plan.Plan, ids []plan.ObjectID, detected map[plan.ObjectID]time.Time) error {
	if !p.Empty() {
		if err := r.marked(ctx, d.Environment, s.repo); err != nil {
			return err
		}
		grant, err := r.pass(ctx, d.basis, func(ctx context.Context) (gate.Grant, error) { return r.Gate.Restore(ctx, p) })
		if err != nil {
			return err
		}
		receipt, err := r.carryOut(ctx, d.basis, grant)
		r.result(ctx, s, ledger.Reverted, grant, receipt, err)
		if errors.Is(err, targets.ErrStale) { // it moved again: look again
			s.live.addPending(detected)
			r.repairs.Add(s.Name)
			return nil
		}
		if err != nil {
			return err
		}
		r.metrics.reverted(s, len(p.Changes))
		r.Log.InfoContext(ctx, "reverted drift", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.Int("objects", len(p.Changes)))
	}
	for _, at := range detected {
		r.metrics.repairSeconds.Observe(time.Since(at).Seconds())
	}
	r.ended(ctx, s, EventReverted, s.live.findings.Close(ids...))
	s.calm()
	return nil
}

// ended records that findings are over, and tells people.
func (r *Reconciler) ended(ctx context.Context, s *stack, t EventType, findings []targets.Finding) {
	for _, f := range findings {
		r.recordFinding(ctx, s, ledger.Ended, string(t), f, fmt.Sprintf("%s %s: %s after %s, seen from %s to %s", f.ID, f.Class, t, time.Since(f.Detected).Round(time.Millisecond),
			f.Detected.UTC().Format(time.RFC3339), f.LastSeen.UTC().Format(time.RFC3339)))
		e := s.eventOf(t, "drift/"+f.ID.String(), "the object is again as it was granted", f)
		e.Resolved = true
		r.tell(e)
	}
}

// compare is the full comparison: a plan from what was granted. It finds what a
// watch missed, and is the only way for a target that cannot watch. It returns
// when to compare again.
func (r *Reconciler) compare(ctx context.Context, s *stack) time.Duration {
	if s.granted() == nil {
		return s.untilCompare(time.Now())
	}
	err := guarded(s, func() error {
		_, err := r.compareNow(ctx, s, true)
		return err
	})
	if err == nil || ctx.Err() != nil {
		return s.untilCompare(time.Now())
	}
	kind := fault.KindOf(err)
	if kind == fault.Denied || kind == fault.Invalid { // the repair was judged, and refused
		r.settle(ctx, s, err)
	} else {
		r.Log.WarnContext(ctx, "comparison failed", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("kind", kind.String()),
			slog.String("op", fault.OpOf(err)), slog.String("error", r.Scrub(err.Error())), slog.String("hint", fault.HintOf(err)))
	}
	if next := s.untilCompare(time.Now()); next > 0 {
		return min(s.again(kind), next)
	}
	return s.again(kind)
}

// comparison plans d as planAll does. Where one object has no way back, the others are
// compared by themselves; only if none can be, the error is returned.
func (r *Reconciler) comparison(ctx context.Context, d *deployment, memory bool) (plan.Plan, error) {
	p, err := planAll(ctx, d.target, d.rendered, memory)
	t, ok := d.target.(targets.Restorer)
	if kind := fault.KindOf(err); err == nil || !ok || kind != fault.Denied && kind != fault.Invalid {
		return p, err
	}
	objects, derr := t.Desired(ctx, d.rendered)
	if derr != nil {
		return p, err
	}
	var all plan.Plan
	good := 0
	for _, id := range slices.SortedFunc(maps.Keys(objects), plan.ObjectID.Compare) {
		one, oerr := d.target.Plan(ctx, d.rendered, id)
		if oerr != nil {
			r.Log.WarnContext(ctx, "object not compared", slog.String("stack", d.Name), slog.String("object", id.String()), slog.String("error", r.Scrub(oerr.Error())))
			continue
		}
		if good == 0 {
			all = one
		} else {
			all.Changes = append(all.Changes, one.Changes...)
		}
		good++
	}
	if good == 0 {
		return p, err
	}
	return all, nil
}

// compareNow returns what differs. With act, it is recorded and, where the
// stack's rules say so, reverted; without, everything is looked at anew, whatever the
// target knows already.
func (r *Reconciler) compareNow(ctx context.Context, s *stack, act bool) ([]targets.Finding, error) {
	d := s.granted()
	if d == nil {
		return nil, fault.New(fault.Waiting, "reconciler.compare", "", "nothing was applied yet")
	}
	if act && s.live.halfWay() {
		return nil, nil
	}
	start := time.Now()
	p, err := r.comparison(ctx, d, act)
	if err != nil {
		return nil, err
	}
	r.metrics.compareSeconds.WithLabelValues(s.TargetName).Observe(time.Since(start).Seconds())
	var found []targets.Finding
	var revert []plan.ObjectID
	for _, f := range drift.FromPlan(p, start.UTC()) {
		if !act {
			if v := d.Drift.Judge(s.live.findings.Known(f), time.Now()); v.Action != drift.Ignored {
				found = append(found, v.Finding)
			}
			continue
		}
		v := r.verdict(ctx, s, d, f, time.Now())
		if v.Action == drift.Ignored {
			continue
		}
		found = append(found, v.Finding)
		if v.Action == drift.Reverted {
			revert = append(revert, f.ID)
		}
	}
	if !act {
		return found, nil
	}
	for _, old := range s.live.findings.List() { // those that are gone
		if !slices.ContainsFunc(found, func(f targets.Finding) bool { return f.ID == old.ID }) {
			r.ended(ctx, s, EventRecovered, s.live.findings.Close(old.ID))
		}
	}
	if len(found) > 0 {
		s.disturbed()
	}
	if len(revert) == 0 || r.suspension(s.Name) != nil {
		s.calm()
		return found, nil
	}
	return found, r.revert(ctx, s, d, revert)
}

// revert restores ids. What a standing grant covers is restored under it; for a
// target without one (Terraform) what was granted is judged and applied again.
func (r *Reconciler) revert(ctx context.Context, s *stack, d *deployment, ids []plan.ObjectID) error {
	if _, ok := d.target.(targets.Restorer); ok {
		detected := make(map[plan.ObjectID]time.Time, len(ids))
		for _, f := range s.live.findings.List() {
			if slices.Contains(ids, f.ID) {
				detected[f.ID] = f.Detected
			}
		}
		s.live.addPending(detected)
		return r.repair(ctx, s)
	}
	p, err := r.deploy(ctx, s, d.basis, ledger.Reverted, func(p plan.Plan) error {
		for _, c := range p.Changes {
			if !slices.Contains(ids, c.ID) {
				return fault.New(fault.Denied, "reconciler.revert", "apply the stack by hand, or change its ignore rules",
					"the plan that reverts the drift would change %s too, which is not to be reverted", c.ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.metrics.reverted(s, len(p.Plan.Changes))
	r.Log.InfoContext(s.traced(ctx), "reverted drift", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.Int("objects", len(p.Plan.Changes)))
	s.calm()
	return nil
}
