package reconciler

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// rollback keeps a stack at an older commit, by a signed order, until a newer
// commit changes what the stack is made of.
type rollback struct {
	Repository string            `json:"repository"`
	Stack      string            `json:"stack"`
	Dir        string            `json:"dir"`    // its folder, then as now
	To         string            `json:"to"`     // commit that it is kept at
	From       string            `json:"from"`   // commit that it leads away from
	Key        string            `json:"key"`    // of the request that it leads away from
	Inputs     map[string]string `json:"inputs"` // content that it leads away from
	Seen       time.Time         `json:"seen"`   // when To was first seen, as far as it is known
	Reason     string            `json:"reason"`
	Since      time.Time         `json:"since"`

	broken error // it cannot be read: the stack is denied until a person decides
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

// leftCommits returns the commits of a repository that rollbacks of a stack led
// away from.
func (o *orders) leftCommits(stack, repo string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for left := range o.left {
		if commit, ok := strings.CutPrefix(left, stack+"@"+repo+"@"); ok {
			out = append(out, commit)
		}
	}
	return out
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
	seen, err := r.Ledger.Now()
	if err != nil {
		return nil, err
	}
	// The commit is a part of the history that was authorised, step by step.
	if err := repo.Follows(ctx, o.To, o.From); err != nil {
		return nil, fault.New(fault.KindOf(err), op, "name a commit of the branch that comes before the newest one", "commit %s is not one that the history of %s went through: %w", o.To, short(o.From), err)
	}
	// What is not kept any more may still be had from the source.
	rev := sources.Revision{Source: repo.Name, ID: o.To}
	if _, err := repo.Source.Local(ctx, rev); err != nil {
		if _, err := repo.Source.Fetch(ctx, rev); err != nil {
			return nil, err
		}
	}
	back, err := r.declared(ctx, repo, o.Stack, s.Dir, o.To, seen)
	if err != nil {
		return nil, err
	}
	if err := r.leftBefore(ctx, repo, back, seen); err != nil {
		return nil, err
	}
	rb := &rollback{Repository: s.repo, Stack: s.Name, Dir: s.Dir, To: o.To, From: o.From, Seen: seen, Reason: r.Scrub(o.Reason), Since: seen}
	if before := r.orders.rolledBack(s.Name); before != nil && before.broken == nil {
		rb.Key, rb.Inputs = before.Key, before.Inputs // it still leads away from the same
	} else {
		b := s.desired()
		if b.snap == nil || s.refused() != nil {
			return nil, fault.New(fault.Waiting, op, "wait until the newest commit is taken, or fix it with a new one", "what the newest commit asks for is not known")
		}
		rb.Key, rb.Inputs = b.Key, r.inputsOf(ctx, s, b)
	}
	return func() error {
		if err := r.state.saveRollback(rb); err != nil {
			return err
		}
		r.orders.rollBack(rb)
		if err := r.retake(ctx, repo); err != nil {
			return err
		}
		if r.orders.rolledBack(s.Name) != rb {
			return fault.New(fault.Waiting, op, "look at holdfast status, and sign another order if it is still needed", "a newer commit ended the rollback at once")
		}
		return nil
	}, nil
}

// leftBefore refuses to go back to what an order led away from before: the same
// request over the same content, whatever commit it is in.
func (r *Reconciler) leftBefore(ctx context.Context, repo *repository, back basis, seen time.Time) error {
	for _, commit := range r.orders.leftCommits(back.Name, repo.Name) {
		bad, err := r.declared(ctx, repo, back.Name, back.Dir, commit, seen)
		same := err == nil && bad.Key == back.Key && folderID(bad) == folderID(back) && folderID(back) != absent
		if commit == back.snap.Revision.ID || same {
			return fault.New(fault.Denied, "reconciler.rollback", "go back to another commit, or fix it with a new one",
				"an order led away from commit %s before, and %s has the same", commit, back.snap.Revision.ID)
		}
	}
	return nil
}

// folderID identifies the content of a stack's folder.
func folderID(b basis) string {
	if ids, ok := b.snap.FS.(sources.Identified); ok {
		return contentID(ids, b.Dir)
	}
	return b.snap.Tree.String()
}

func short(id string) string {
	return strings.TrimPrefix(sources.Revision{ID: id}.String(), "@")
}

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
	if _, ok := b.snap.FS.(sources.Identified); ok {
		return map[string]string{b.Dir: folderID(b)}
	}
	return map[string]string{".": b.snap.Tree.String()}
}

// declared returns the stack as an older commit declares it, in the folder that
// it has now: the same name in another is somebody else's.
func (r *Reconciler) declared(ctx context.Context, repo *repository, name, dir, commit string, seen time.Time) (basis, error) {
	snap, evidence, err := r.past(ctx, repo, commit, seen)
	if err != nil {
		return basis{}, err
	}
	if !evidence.Verified() {
		return basis{}, fault.New(fault.Denied, "reconciler.rollback", "name another commit", "commit %s, or who signed it, was %w", commit, verify.ErrRevoked)
	}
	found, err := repo.Discover(ctx, snap)
	if err != nil {
		return basis{}, err
	}
	for _, c := range found {
		if c.Name == name && c.Dir == dir {
			return basis{Stack: c, snap: snap, commit: evidence, seen: seen}, c.Err
		}
	}
	return basis{}, fault.New(fault.Invalid, "reconciler.rollback", "name a commit that has the stack", "commit %s declares no stack %q in %s", commit, name, dir)
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
		if rb != nil && rb.broken != nil {
			a.Err = fault.WithStack(c.Name, rb.broken)
			out = append(out, a)
			continue
		}
		if rb == nil || rb.Repository != repo.Name || rb.Dir != c.Dir || c.Err != nil {
			out = append(out, a)
			continue
		}
		if c.Key != rb.Key || !sameInputs(rb.Inputs, snap) {
			r.endRollback(ctx, rb, snap.Revision.ID)
			out = append(out, a)
			continue
		}
		b, err := r.declared(ctx, repo, c.Name, rb.Dir, rb.To, rb.Seen)
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
	r.recordLater(ctx, ledger.Entry{Type: ledger.Decided, Stack: rb.Stack, Revision: rb.Repository + "@" + commit, Outcome: "rollback-ended", Subject: rb.To,
		Note: "a newer commit changes the stack"}, nil)
}

// retake takes the newest verified commit once more, under changed orders. The
// caller holds repo.polling.
func (r *Reconciler) retake(ctx context.Context, repo *repository) error {
	id, seen := repo.state(time.Time{}).taken()
	snap, commit, err := r.past(ctx, repo, id, seen)
	if err != nil {
		return err
	}
	return r.take(ctx, repo, snap, commit, seen)
}
