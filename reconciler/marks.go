package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Mark is how far a repository's history was followed, as it is kept with what
// is deployed. It makes a lost or restored state directory harmless: nothing is
// applied by a daemon that knows less than the mark.
type Mark struct {
	Repository string
	Commit     string    // newest commit that was authorised
	Seen       time.Time // when it was first seen
	Checkpoint []byte    // of the ledger, signed
}

// Marks keep marks. An environment without a place for them is not among
// Environments.
type Marks interface {
	Environments() []string
	// Read returns the mark of a repository. A failure to read is
	// fault.Transient, and nothing is applied until it can be read.
	Read(ctx context.Context, environment, repository string) (m Mark, found bool, err error)
	// Write replaces the mark. With over it also replaces one that was written
	// under a key that is lost, and inventories like it are believed once more.
	Write(ctx context.Context, environment string, m Mark, over bool) error
}

// markKeeper compares each mark once, before the first write to an environment,
// and keeps it up to date afterwards.
type markKeeper struct {
	mu     sync.Mutex
	places map[markPlace]*markState
}

type markPlace struct{ environment, repository string }

type markState struct {
	mu      sync.Mutex // held while the mark is read or written
	checked bool
	refused error                  // why nothing may be written there
	found   string                 // commit of the mark that is refused
	written string                 // commit of the mark as it is
	done    atomic.Pointer[string] // the same, once it was checked
	retry   time.Time
}

func (k *markKeeper) at(environment, repository string) *markState {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := markPlace{environment, repository}
	if k.places == nil {
		k.places = map[markPlace]*markState{}
	}
	if k.places[p] == nil {
		k.places[p] = &markState{}
	}
	return k.places[p]
}

// markAgain is how long a refusal holds before the mark is read again: another
// daemon may have taken an order.
const markAgain = 10 * time.Second

const (
	markTimeout = 10 * time.Second // to read or write a mark
	markRetry   = 2 * time.Second  // after which a mark that could not be read is read again
)

// marked makes sure that this daemon knows at least what the mark of a
// repository in an environment says, and that the mark says what this daemon
// knows. Nothing is written to the environment before.
func (r *Reconciler) marked(ctx context.Context, environment, repository string) error {
	if r.Marks == nil || !slices.Contains(r.Marks.Environments(), environment) {
		return nil
	}
	repo := r.repository(repository)
	ms := r.marks.at(environment, repository)
	verified := repo.snapshotStatus().Verified
	if done := ms.done.Load(); done != nil && *done == verified {
		return nil // nobody waits for another's request
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if err := r.checkMark(ctx, ms, repo, environment, verified); err != nil {
		return err
	}
	if ms.written == verified {
		ms.done.Store(&verified)
		return nil
	}
	return r.writeMark(ctx, ms, environment, repo, verified, false)
}

// eachRepository calls f with each repository whose mark counts for a judgement of b: the
// stack's own, and those that its policies come from.
func eachRepository(s *stack, b basis, f func(repository string) error) error {
	for _, repo := range append([]string{s.repo}, b.JudgedBy...) {
		if err := f(repo); err != nil {
			return err
		}
	}
	return nil
}

// knows makes sure that this daemon knows at least what the mark says, and
// writes nothing. It comes before the judgement, so that a person reads of the
// lost state, and not of all that follows from it.
func (r *Reconciler) knows(ctx context.Context, environment, repository string) error {
	if r.Marks == nil || !slices.Contains(r.Marks.Environments(), environment) {
		return nil
	}
	repo := r.repository(repository)
	ms := r.marks.at(environment, repository)
	if ms.done.Load() != nil {
		return nil
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return r.checkMark(ctx, ms, repo, environment, repo.snapshotStatus().Verified)
}

// checkMark reads the mark and compares it, once. The caller holds ms.mu.
func (r *Reconciler) checkMark(ctx context.Context, ms *markState, repo *repository, environment, verified string) error {
	if ms.refused != nil && time.Now().Before(ms.retry) {
		return ms.refused
	}
	if ms.checked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	m, found, err := r.Marks.Read(ctx, environment, repo.Name)
	if err != nil { // those who wait for the same need not ask again
		ms.refused, ms.retry = err, time.Now().Add(markRetry)
		return err
	}
	wasRefused := ms.found != ""
	ms.refused = nil
	if found {
		ms.written = m.Commit
		err := r.compareMark(ctx, repo, m, verified)
		if err != nil && fault.KindOf(err) == fault.Denied {
			ms.refused, ms.found, ms.retry = err, m.Commit, time.Now().Add(markAgain)
			r.Log.WarnContext(ctx, "mark refused", slog.String("repository", repo.Name), slog.String("environment", environment), slog.String("error", r.Scrub(err.Error())))
			e := markEvent(environment, repo.Name, err.Error())
			e.Revision, e.Kind, e.Hint = m.Commit, fault.Denied, fault.HintOf(err)
			r.tell(e)
		}
		if err != nil {
			return err
		}
	}
	ms.checked, ms.found = true, ""
	if wasRefused {
		e := markEvent(environment, repo.Name, "this daemon knows what the mark says")
		e.Resolved = true
		r.tell(e)
	}
	return nil
}

// markEvent returns an event about the mark of a repository in an environment.
func markEvent(environment, repository, message string) Event {
	return Event{Type: EventSource, Key: "mark/" + environment + "/" + repository, Environment: environment, Repository: repository, Message: message}
}

// compareMark reports what the mark knows and this daemon does not.
func (r *Reconciler) compareMark(ctx context.Context, repo *repository, m Mark, verified string) error {
	const op = "reconciler.marked"
	hint := fmt.Sprintf("restore the newest state directory; if it is lost, sign an order: holdfast recover %s COMMIT --reason …", repo.Name)
	if len(m.Checkpoint) > 0 {
		if err := r.Ledger.Contains(ctx, m.Checkpoint); err != nil {
			if fault.KindOf(err) != fault.Denied {
				return err
			}
			return fault.New(fault.Denied, op, hint, "commit %s was applied there by a daemon that knew more than this one: %w", m.Commit, err)
		}
	}
	if m.Commit == verified || m.Commit == "" {
		return nil
	}
	if verified == "" {
		return fault.New(fault.Waiting, op, "", "no commit of repository %s was verified yet", repo.Name)
	}
	err := repo.Follows(ctx, m.Commit, verified)
	if k := fault.KindOf(err); err != nil && (k == fault.Denied || k == fault.Invalid) {
		return fault.New(fault.Denied, op, hint, "commit %s was applied there, and %s does not come after it: %w", m.Commit, verified, err)
	}
	return err
}

// writeMark replaces the mark. The caller holds ms.mu.
func (r *Reconciler) writeMark(ctx context.Context, ms *markState, environment string, repo *repository, commit string, over bool) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	checkpoint, err := r.Ledger.Checkpoint(ctx)
	if err != nil {
		return err
	}
	m := Mark{Repository: repo.Name, Commit: commit, Seen: repo.snapshotSeen(), Checkpoint: checkpoint}
	if err := r.Marks.Write(ctx, environment, m, over); err != nil {
		return err
	}
	ms.written = commit
	ms.done.Store(&commit)
	return nil
}

// markSoon brings the marks of a repository up to date while its stacks are
// still being judged. Whoever applies waits for it, or does it.
func (r *Reconciler) markSoon(ctx context.Context, repo *repository) {
	if r.Marks == nil || r.queue == nil {
		return
	}
	for _, env := range r.Marks.Environments() {
		r.late.Go(func() {
			if err := r.marked(ctx, env, repo.Name); err != nil && ctx.Err() == nil {
				r.Log.DebugContext(ctx, "mark not written yet", slog.String("repository", repo.Name), slog.String("environment", env), slog.String("error", r.Scrub(err.Error())))
			}
		})
	}
}
