package reconciler

import (
	"context"
	"log/slog"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// rollback keeps a stack at an older commit, by a signed order, until a newer
// commit changes what the stack is made of.
type rollback struct {
	Repository string            `json:"repository"`
	Stack      string            `json:"stack"`
	To         string            `json:"to"`     // commit that it is kept at
	From       string            `json:"from"`   // commit that it leads away from
	Key        string            `json:"key"`    // of the request that it leads away from
	Inputs     map[string]string `json:"inputs"` // content that it leads away from
	Seen       time.Time         `json:"seen"`   // when To was first seen, as far as it is known
	Reason     string            `json:"reason"`
	Since      time.Time         `json:"since"`
}

func (o *orders) rollBack(rb *rollback) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.rollbacks == nil {
		o.rollbacks = map[string]*rollback{}
	}
	o.rollbacks[rb.Stack] = rb
}

func (o *orders) rolledBack(stack string) *rollback {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rollbacks[stack]
}

func (o *orders) endRollback(stack string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.rollbacks, stack)
}

func (o *orders) wasLeft(stack, revision string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.left[stack+"@"+revision]
}

// prepareRollback checks that a stack may go back to o.To, and returns what
// makes it so.
func (r *Reconciler) prepareRollback(ctx context.Context, o Order) (func() error, error) {
	const op = "reconciler.rollback"
	s, err := r.named(o.Stack)
	if err != nil {
		return nil, err
	}
	repo := r.repository(s.repo)
	if o.Repository != s.repo {
		return nil, fault.New(fault.Invalid, op, "", "stack %q is in repository %q", o.Stack, s.repo)
	}
	if r.orders.wasLeft(o.Stack, o.Repository+"@"+o.To) {
		return nil, fault.New(fault.Denied, op, "go back to another commit, or fix it with a new one",
			"an order led away from commit %s before", o.To)
	}
	seen, err := r.now()
	if err != nil {
		return nil, err
	}
	// The commit is a part of the history that was authorised, step by step.
	if _, err := repo.Authorise(ctx, o.To, o.From, seen); err != nil {
		return nil, fault.New(fault.KindOf(err), op, "name a commit of the branch that comes before the newest one", "commit %s is not one that the history of %s went through: %w", o.To, short(o.From), err)
	}
	if _, err := r.declared(ctx, repo, o.Stack, o.To, seen); err != nil {
		return nil, err
	}
	b := s.desired()
	if b.snap == nil {
		return nil, fault.New(fault.Waiting, op, "", "nothing was asked for yet")
	}
	rb := &rollback{Repository: s.repo, Stack: s.Name, To: o.To, From: o.From, Key: b.Key, Inputs: r.inputsOf(ctx, s, b), Seen: seen, Reason: r.Scrub(o.Reason), Since: seen}
	return func() error {
		if err := r.state.saveRollback(rb); err != nil {
			return err
		}
		r.orders.rollBack(rb)
		return r.retake(ctx, repo)
	}, nil
}

func short(id string) string { return id[:min(len(id), 12)] }

// inputsOf returns what the rendering of b reads: a commit that changes none of
// it is no answer to a rollback. If it does not render, it is all that is in its
// folder.
func (r *Reconciler) inputsOf(ctx context.Context, s *stack, b basis) map[string]string {
	if d := s.granted(); d != nil && d.snap.Revision == b.snap.Revision {
		return d.inputs
	}
	track := newTracker(b.snap)
	if err := guarded(s, func() error {
		_, err := b.target.Render(ctx, track.snapshot())
		return err
	}); err == nil {
		return track.inputs()
	}
	if ids, ok := b.snap.FS.(sources.Identified); ok {
		return map[string]string{b.Dir: contentID(ids, b.Dir)}
	}
	return map[string]string{".": b.snap.Tree.String()}
}

// declared returns the stack as an older commit declares it.
func (r *Reconciler) declared(ctx context.Context, repo *repository, name, commit string, seen time.Time) (basis, error) {
	snap, evidence, err := r.past(ctx, repo, commit, seen)
	if err != nil {
		return basis{}, err
	}
	found, err := repo.Discover(ctx, snap)
	if err != nil {
		return basis{}, err
	}
	for _, c := range found {
		if c.Name == name {
			return basis{Stack: c, snap: snap, commit: evidence, seen: seen}, c.Err
		}
	}
	return basis{}, fault.New(fault.Invalid, "reconciler.rollback", "name a commit that has the stack", "commit %s declares no stack %q", commit, name)
}

// asked is what a stack is asked to become.
type asked struct {
	Stack
	snap   *sources.Snapshot
	commit verify.Evidence
	seen   time.Time
}

// heldBack replaces the stacks that a rollback holds by what they were at the
// commit that they are kept at. A rollback ends with the first commit that
// changes what it led away from.
func (r *Reconciler) heldBack(ctx context.Context, repo *repository, snap *sources.Snapshot, commit verify.Evidence, seen time.Time, found []Stack) []asked {
	out := make([]asked, 0, len(found))
	for _, c := range found {
		a := asked{Stack: c, snap: snap, commit: commit, seen: seen}
		rb := r.orders.rolledBack(c.Name)
		if rb == nil || rb.Repository != repo.Name || c.Err != nil {
			out = append(out, a)
			continue
		}
		if c.Key != rb.Key || !sameInputs(rb.Inputs, snap) {
			r.endRollback(ctx, rb, snap.Revision.ID)
			out = append(out, a)
			continue
		}
		b, err := r.declared(ctx, repo, c.Name, rb.To, rb.Seen)
		if err != nil {
			a.Err = fault.WithStack(c.Name, fault.Wrap(fault.Denied, "reconciler.rollback", "sign another order", err))
		} else {
			a = asked{Stack: b.Stack, snap: b.snap, commit: b.commit, seen: b.seen}
		}
		out = append(out, a)
	}
	return out
}

func (r *Reconciler) endRollback(ctx context.Context, rb *rollback, commit string) {
	r.orders.endRollback(rb.Stack)
	if err := r.state.forgetRollback(rb.Stack); err != nil {
		r.Log.WarnContext(ctx, "state not written", slog.String("stack", rb.Stack), slog.String("error", err.Error()))
	}
	r.Log.InfoContext(ctx, "rollback ended", slog.String("stack", rb.Stack), slog.String("commit", commit))
}

// retake takes the newest verified commit once more, under changed orders.
func (r *Reconciler) retake(ctx context.Context, repo *repository) error {
	repo.polling.Lock()
	defer repo.polling.Unlock()
	st := repo.snapshotStatus()
	snap, commit, err := r.past(ctx, repo, st.Verified, repo.snapshotSeen())
	if err != nil {
		return err
	}
	return r.take(ctx, repo, snap, commit, repo.snapshotSeen())
}
