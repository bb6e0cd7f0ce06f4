package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// RepositoryStatus is what is known about one repository.
type RepositoryStatus struct {
	Name     string    `json:"name"`
	Head     string    `json:"head,omitempty"`     // newest commit that was seen
	Verified string    `json:"verified,omitempty"` // newest commit that was authorised
	Message  string    `json:"message,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Checked  time.Time `json:"checked,omitzero"` // last time the head could be read
}

// repository is a watched repository.
type repository struct {
	Repository

	mu     sync.Mutex // guards status
	status RepositoryStatus

	// Only the worker that polls uses what follows.
	attempts int
	refused  string // head that was refused; judged again only when it changes or on demand
}

func (r *repository) snapshotStatus() RepositoryStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.status
	st.Name = r.Name
	return st
}

func (r *repository) note(f func(*RepositoryStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.status)
}

// poll looks for a newer commit and returns when to look again.
func (r *Reconciler) poll(ctx context.Context, repo *repository) time.Duration {
	err := r.advance(ctx, repo)
	if ctx.Err() != nil {
		return 0
	}
	interval := repo.Interval + time.Duration(rand.Int64N(int64(repo.Interval)/10+1)) //nolint:gosec // jitter needs no secrecy
	if err == nil {
		repo.attempts = 0
		return interval
	}
	message := r.Scrub(err.Error())
	if repo.snapshotStatus().Message != message {
		r.Log.WarnContext(ctx, "revision not taken", slog.String("repository", repo.Name), slog.String("kind", fault.KindOf(err).String()),
			slog.String("op", fault.OpOf(err)), slog.String("error", message), slog.String("hint", fault.HintOf(err)))
	}
	repo.note(func(st *RepositoryStatus) { st.Message, st.Hint = message, fault.HintOf(err) })
	r.metrics.sourceErrors.WithLabelValues(repo.Name, fault.KindOf(err).String()).Inc()
	repo.attempts++
	return min(interval<<min(repo.attempts-1, 6), max(interval, 5*time.Minute))
}

// advance takes the newest commit if it may be trusted. Until it returns nil
// the last verified one goes on being enforced.
func (r *Reconciler) advance(ctx context.Context, repo *repository) error {
	head, err := repo.Source.Head(ctx)
	if err != nil {
		return err
	}
	verified := repo.snapshotStatus().Verified
	repo.note(func(st *RepositoryStatus) { st.Head, st.Checked = head.ID, time.Now().UTC() })
	switch head.ID {
	case verified:
		repo.refused = ""
		repo.note(func(st *RepositoryStatus) { st.Message, st.Hint = "", "" })
		return nil
	case repo.refused:
		return fault.New(fault.Denied, "reconciler.advance", repo.snapshotStatus().Hint, "%s", repo.snapshotStatus().Message)
	}
	r.recordLater(ctx, ledger.Entry{Type: ledger.Seen, Revision: head.Source + "@" + head.ID}, nil)
	snap, err := repo.Source.Fetch(ctx, head)
	if err != nil {
		return err
	}
	seen := time.Now().UTC()
	commit, err := repo.Authorise(ctx, verified, head.ID, seen)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Denied || k == fault.Invalid {
			repo.refused = head.ID
			r.recordLater(ctx, ledger.Entry{Type: ledger.Refused, Revision: head.Source + "@" + head.ID, Outcome: k.String(), Note: r.Scrub(err.Error())},
				bodies(map[string]any{"commit": commit}))
		}
		return err
	}
	if err := r.take(ctx, repo, snap, commit); err != nil {
		return err
	}
	if err := r.state.saveRepository(repo.Name, repositoryState{Verified: head.ID, Seen: seen}); err != nil {
		return err
	}
	r.recordLater(ctx, ledger.Entry{Type: ledger.Verified, Revision: head.Source + "@" + head.ID, Outcome: "ok"}, bodies(map[string]any{"commit": commit}))
	r.Log.InfoContext(ctx, "verified commit", slog.String("repository", repo.Name), slog.String("commit", head.ID), slog.String("since", verified))
	return nil
}

// take discovers the stacks of an authorised snapshot and queues those whose
// inputs changed.
func (r *Reconciler) take(ctx context.Context, repo *repository, snap *sources.Snapshot, commit verify.Evidence) error {
	found, err := repo.Discover(ctx, snap)
	if err != nil {
		return err
	}
	repo.note(func(st *RepositoryStatus) {
		st.Verified, st.Message, st.Hint = snap.Revision.ID, "", ""
	})
	for _, s := range r.replace(ctx, repo.Name, found) {
		s.want(snap, commit)
		if r.queue != nil && (!s.unchanged() || !s.settled()) {
			r.queue.Add(request{reconcileStack, s.Name})
		}
	}
	return nil
}

// replace makes found the stacks of a repository and returns them. A stack that
// is gone is held; one whose configuration changed is started anew.
func (r *Reconciler) replace(ctx context.Context, repo string, found []Stack) []*stack {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*stack, 0, len(found))
	names := map[string]bool{}
	for _, c := range found {
		if other := r.stacks[c.Name]; other != nil && (other.repo != repo || names[c.Name]) {
			c.Err = fault.WithStack(c.Name, fault.New(fault.Invalid, "reconciler.replace", "give one of them another name",
				"the name is used twice: %s in %s and %s in %s", other.Dir, other.repo, c.Dir, repo))
			c.Name = fmt.Sprintf("%s@%s/%s", c.Name, repo, c.Dir)
		}
		names[c.Name] = true
		old := r.stacks[c.Name]
		if old != nil && c.Err == nil && old.Err == nil && old.Key == c.Key {
			out = append(out, old)
			continue
		}
		if old != nil && c.Err != nil && old.Err == nil {
			// The new request is refused: what was granted goes on being enforced.
			old.refuse(c.Err)
			if r.queue != nil {
				r.queue.Add(request{reconcileStack, old.Name})
			}
			continue
		}
		s := newStack(repo, c)
		if old != nil {
			s.inherit(old)
		}
		s.build()
		r.stacks[c.Name] = s
		out = append(out, s)
		if r.queue != nil && s.Schedule != nil {
			r.queue.AddAfter(request{compareStack, s.Name}, s.untilCompare(time.Now()))
		}
	}
	for name, s := range r.stacks {
		if s.repo == repo && !names[name] && s.hold() {
			r.Log.WarnContext(ctx, "stack file is gone", slog.String("stack", name))
			r.recordLater(ctx, s.entry(ledger.Refused, "held", "the stack file is gone; nothing is deleted"), nil)
		}
	}
	return out
}

// resume takes up, without network, what was verified and granted before the
// last stop. What cannot be taken up is judged anew.
func (r *Reconciler) resume(ctx context.Context) {
	for _, repo := range r.repos {
		st, err := r.state.repository(repo.Name)
		if err == nil && st.Verified != "" {
			err = r.resumeRepository(ctx, repo, st)
		}
		if err != nil {
			r.Log.WarnContext(ctx, "state not taken up", slog.String("repository", repo.Name), slog.String("error", r.Scrub(err.Error())))
		}
	}
}

func (r *Reconciler) resumeRepository(ctx context.Context, repo *repository, st repositoryState) error {
	id := st.Verified
	// The mark alone is remembered first: whatever fails below, history does
	// not start over.
	repo.note(func(s *RepositoryStatus) { s.Verified = id })
	snap, err := repo.Source.Local(ctx, sources.Revision{Source: repo.Name, ID: id})
	if err != nil {
		return err
	}
	commit, err := repo.Authorise(ctx, id, id, st.Seen)
	if err != nil {
		return err
	}
	if err := r.take(ctx, repo, snap, commit); err != nil {
		return err
	}
	for _, s := range r.all() {
		if s.repo != repo.Name || s.Err != nil {
			continue
		}
		if err := r.guarded(s, func() error { return r.resumeStack(ctx, s) }); err != nil {
			r.Log.WarnContext(ctx, "stack not taken up", slog.String("stack", s.Name), slog.String("error", r.Scrub(err.Error())))
		}
	}
	return nil
}
