package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// RepositoryStatus is what is known about one repository.
type RepositoryStatus struct {
	Name     string    `json:"name"`
	Head     string    `json:"head,omitempty"`     // newest commit that was seen
	Verified string    `json:"verified,omitempty"` // newest commit that was authorised: history only moves forward from it
	Enforced string    `json:"enforced,omitempty"` // commit whose stacks are running
	Message  string    `json:"message,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Checked  time.Time `json:"checked,omitzero"` // last time the head could be confirmed
	Stale    bool      `json:"stale,omitempty"`  // the head could not be confirmed for longer than maxAge

	seen     time.Time // when Verified was first seen
	headSeen time.Time // when Head was first seen
}

// repository is a watched repository.
type repository struct {
	Repository

	mu     sync.Mutex // guards status
	status RepositoryStatus

	trace   commitTrace
	poked   chan struct{} // look now
	polling sync.Mutex    // held while the repository is looked at; guards what follows

	attempts  int
	takenSeen time.Time // when what is enforced was first seen, where that may be another one than the newest
	head      string    // newest head that was seen, and when it was first seen
	seen      time.Time //
	refusal   error     // why head is refused; judged again only when it changes
	broken    error     // the mark cannot be read: nothing is taken
	since     time.Time // when the head was confirmed last, as far as that is kept; else the first look
	stale     bool      // it is known that the head could not be confirmed for too long
}

// snapshotSeen returns when the newest verified commit was first seen.
func (r *repository) snapshotSeen() time.Time { return r.snapshotStatus().seen }

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

// pollLoop looks for newer commits until ctx ends.
func (r *Reconciler) pollLoop(ctx context.Context, repo *repository) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-repo.poked:
		}
		repo.polling.Lock()
		next := r.poll(ctx, repo)
		repo.polling.Unlock()
		timer.Reset(next)
	}
}

// Poke has a repository looked at now, as if its interval were over. It does
// not wait, and many at once are one.
func (r *Reconciler) Poke(name string) {
	if repo := r.repository(name); repo != nil {
		r.poke(repo)
	}
}

func (r *Reconciler) poke(repo *repository) {
	select {
	case repo.poked <- struct{}{}:
	default:
	}
}

// poll looks for a newer commit and returns when to look again.
func (r *Reconciler) poll(ctx context.Context, repo *repository) time.Duration {
	err := r.tryAdvance(ctx, repo)
	r.watchAge(ctx, repo)
	interval := repo.Interval + time.Duration(rand.Int64N(int64(repo.Interval)/10+1)) //nolint:gosec // jitter needs no secrecy
	if err == nil || ctx.Err() != nil {
		repo.attempts = 0
		return interval
	}
	message := r.Scrub(err.Error())
	if repo.snapshotStatus().Message != message {
		r.Log.WarnContext(ctx, "revision not taken", slog.String("repository", repo.Name), slog.String("kind", fault.KindOf(err).String()),
			slog.String("op", fault.OpOf(err)), slog.String("error", message), slog.String("hint", fault.HintOf(err)))
	}
	news := repo.snapshotStatus().Message != message
	repo.note(func(st *RepositoryStatus) { st.Message, st.Hint = message, r.Scrub(fault.HintOf(err)) })
	if k := fault.KindOf(err); news && (k == fault.Denied || k == fault.Invalid || k == fault.Internal || errors.Is(err, ledger.ErrClock)) {
		r.tell(Event{Type: EventSource, Key: "source/" + repo.Name, Repository: repo.Name, Revision: repo.head, Kind: k, Message: message, Hint: fault.HintOf(err)})
	}
	r.metrics.sourceErrors.WithLabelValues(repo.Name, fault.KindOf(err).String()).Inc()
	if repo.refusal != nil || fault.KindOf(err) == fault.Waiting { // asking is cheap, and a fix or an approval should not wait
		return interval
	}
	repo.attempts++
	return min(interval<<min(repo.attempts-1, 6), max(interval, 5*time.Minute))
}

// confirmed returns when the source last said which commit is the newest, as far
// as that is known. The caller holds repo.polling.
func (r *repository) confirmed() time.Time {
	if at := r.snapshotStatus().Checked; at.After(r.since) {
		return at
	}
	return r.since
}

// watchAge notes when the head of a repository could not be confirmed for longer
// than its maxAge: what is enforced may be old, and nobody would know (a forge
// that is cut off looks like one where nothing happens).
func (r *Reconciler) watchAge(ctx context.Context, repo *repository) {
	if repo.since.IsZero() {
		repo.since = time.Now()
	}
	st, confirmed := repo.snapshotStatus(), repo.confirmed()
	if repo.MaxAge > 0 && st.Verified != "" && confirmed.Sub(repo.since) > repo.MaxAge/8 {
		if err := r.state.saveRepository(repo.Name, repo.state(confirmed)); err != nil {
			r.Log.WarnContext(ctx, "repository state not kept", slog.String("repository", repo.Name), slog.String("error", err.Error()))
		} else {
			repo.since = confirmed
		}
	}
	stale := repo.MaxAge > 0 && time.Since(confirmed) > repo.MaxAge
	if stale == repo.stale {
		return
	}
	repo.stale = stale
	repo.note(func(st *RepositoryStatus) { st.Stale = stale })
	e := Event{Type: EventSource, Key: "age/" + repo.Name, Repository: repo.Name, Revision: st.Verified, Resolved: !stale, Message: "the head of the branch is confirmed again"}
	if stale {
		e.Message = "the head of the branch could not be confirmed since " + confirmed.UTC().Format(time.RFC3339)
		e.Hint = "look at the Git server, and at the credential for it"
		r.Log.WarnContext(ctx, "head not confirmed", slog.String("repository", repo.Name), slog.Time("since", confirmed))
		r.recordLater(ctx, ledger.Entry{Type: ledger.Raised, Revision: repo.Name + "@" + st.Verified, Outcome: "stale", Note: e.Message}, nil)
	}
	r.tell(e)
}

// tryAdvance turns a panic over what a repository holds into that repository's
// failure (invariant 9).
func (r *Reconciler) tryAdvance(ctx context.Context, repo *repository) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "reconciler.advance", "report this with the log", "repository %s: panic: %v", repo.Name, p)
		}
	}()
	if repo.broken != nil {
		return repo.broken
	}
	return r.advance(ctx, repo)
}

// well notes that nothing is wrong with a repository.
func (r *Reconciler) well(repo *repository) {
	if repo.snapshotStatus().Message == "" {
		return
	}
	repo.note(func(st *RepositoryStatus) { st.Message, st.Hint = "", "" })
	r.tell(Event{Type: EventSource, Key: "source/" + repo.Name, Resolved: true, Repository: repo.Name, Revision: repo.head, Message: "the repository can be read and is accepted"})
}

// advance takes the newest commit if it may be trusted. Until it returns nil
// the last verified one goes on being enforced.
func (r *Reconciler) advance(ctx context.Context, repo *repository) error {
	now, err := r.Ledger.Now()
	if err != nil {
		return err
	}
	head, err := repo.Source.Head(ctx)
	if err != nil {
		return err
	}
	if head.ID != repo.head {
		repo.head, repo.seen, repo.refusal = head.ID, now, nil
		r.recordLater(ctx, ledger.Entry{Type: ledger.Seen, Revision: head.Source + "@" + head.ID}, nil)
	}
	st := repo.snapshotStatus()
	repo.note(func(st *RepositoryStatus) { st.Head, st.headSeen, st.Checked = head.ID, repo.seen, time.Now().UTC() })
	if head.ID == st.Enforced {
		r.well(repo)
		return nil
	}
	if repo.refusal != nil {
		return repo.refusal
	}
	commit, err := r.consider(ctx, repo, head, st.Verified)
	if k := fault.KindOf(err); err != nil && (k == fault.Denied || k == fault.Invalid) {
		repo.refusal = err
		r.metrics.refused(refusedCommit, err)
		r.recordLater(ctx, ledger.Entry{Type: ledger.Refused, Revision: head.Source + "@" + head.ID, Outcome: k.String(), Note: r.Scrub(err.Error())},
			bodies(map[string]any{"commit": commit}))
	}
	return err
}

// consider fetches a commit, proves who authorised it, and takes it.
func (r *Reconciler) consider(ctx context.Context, repo *repository, head sources.Revision, verified string) (_ verify.Evidence, err error) {
	ctx, span := r.traceRevision(ctx, repo, head.ID)
	defer func() { endSpan(span, r.Scrub, err) }()
	snap, err := r.fetch(ctx, repo, head)
	if fault.KindOf(err) == fault.Denied { // it was judged before it was brought: what was found goes on record
		commit, _ := r.authorise(ctx, repo, verified, head.ID)
		return commit, err
	}
	if err != nil {
		return verify.Evidence{}, err
	}
	commit, err := r.authorise(ctx, repo, verified, head.ID)
	if err != nil {
		return commit, err
	}
	// The mark comes first: once anything of this commit is in the world, no
	// restart may go back behind it.
	st := repo.state(time.Now().UTC())
	st.Verified, st.Seen = head.ID, repo.seen
	if err := r.state.saveRepository(repo.Name, st); err != nil {
		return commit, fault.Wrap(fault.Transient, "reconciler.advance", "look at the state directory: disk full, read-only or lost?", err)
	}
	repo.note(func(st *RepositoryStatus) { st.Verified, st.seen = head.ID, repo.seen })
	r.markSoon(ctx, repo)
	r.recordLater(ctx, ledger.Entry{Type: ledger.Verified, Revision: head.Source + "@" + head.ID, Outcome: "ok"}, bodies(map[string]any{"commit": commit}))
	r.Log.InfoContext(ctx, "verified commit", slog.String("repository", repo.Name), slog.String("commit", head.ID), slog.String("since", verified))
	if err := r.take(ctx, repo, snap, commit, repo.seen); err != nil || repo.Take == nil {
		return commit, err
	}
	repo.takenSeen = repo.seen
	err = r.state.saveRepository(repo.Name, repo.state(time.Now().UTC()))
	return commit, fault.Wrap(fault.Transient, "reconciler.advance", "look at the state directory: disk full, read-only or lost?", err)
}

// state returns what is kept about r. The caller holds r.polling.
func (r *repository) state(confirmed time.Time) repositoryState {
	st := r.snapshotStatus()
	out := repositoryState{Verified: st.Verified, Seen: st.seen, Confirmed: confirmed}
	if r.Take != nil { // what is enforced may be another commit than the newest verified one
		out.Enforced, out.EnforcedSeen = st.Enforced, r.takenSeen
	}
	return out
}

// judgeDenied has every stack that is denied judged again: what denied it may have
// been replaced.
func (r *Reconciler) judgeDenied() {
	if r.queue == nil {
		return
	}
	for _, s := range r.all() {
		if s.snapshotStatus().Phase == Denied {
			r.queue.Add(request{reconcileStack, s.Name})
		}
	}
}

// take discovers the stacks of an authorised snapshot and queues those that are
// not what is asked for.
func (r *Reconciler) take(ctx context.Context, repo *repository, snap *sources.Snapshot, commit verify.Evidence, seen time.Time) error {
	if repo.Take != nil {
		changed, err := repo.Take(ctx, snap, commit)
		if err != nil {
			return err
		}
		if changed {
			defer r.judgeDenied()
		}
	}
	found, err := r.discover(ctx, repo, snap)
	if err != nil {
		return err
	}
	wanted, refused := r.replace(ctx, repo.Name, snap.Revision, r.heldBack(ctx, repo, snap, commit, seen, found))
	r.declare(ctx, wanted)
	repo.note(func(st *RepositoryStatus) { st.Enforced = snap.Revision.ID })
	r.well(repo)
	if r.queue == nil {
		return nil
	}
	for _, s := range append(wanted, refused...) {
		if s.refused() != nil || !s.unchanged() || !s.settled() {
			r.queue.Add(request{reconcileStack, s.Name})
		}
	}
	return nil
}

// replace makes found the stacks of a repository. It returns those whose request
// is taken, and those that go on as they were because the new one is not. A
// stack that is gone is held.
func (r *Reconciler) replace(ctx context.Context, repo string, rev sources.Revision, found []asked) (wanted, refused []*stack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]bool{}
	found = r.owners(repo, found)
	for i, c := range found {
		names[c.Name] = true
		old := r.stacks[c.Name]
		if old != nil && c.Err == nil && old.Err == nil && old.Key == c.Key {
			old.want(c.snap, c.commit, c.seen)
			wanted = append(wanted, old)
			continue
		}
		s := newStack(repo, c.Stack)
		if old != nil {
			s.inherit(old)
		}
		s.build()
		if was := r.calledBefore(s); was != "" && s.Err == nil {
			s.Err = fault.WithStack(s.Name, fault.New(fault.Invalid, "reconciler.replace", "keep the name; or take the stack file away in one commit, and add it under the new name in another",
				"the stack in %s is called %s, and what a %s stack deployed is kept under its name", s.Dir, was, s.TargetName))
			found[i].Err = s.Err
		}
		if s.Err != nil && old != nil && old.granted() != nil {
			old.refuse(rev, s.Err)
			refused = append(refused, old)
			continue
		}
		r.stacks[c.Name] = s
		s.want(c.snap, c.commit, c.seen)
		wanted = append(wanted, s)
		if r.queue != nil && s.Schedule != nil {
			r.queue.AddAfter(request{compareStack, s.Name}, s.untilCompare(time.Now()))
		}
	}
	maps.DeleteFunc(r.before, func(_, old string) bool { return names[old] })
	var lost []*stack
	for name, s := range r.stacks {
		if s.repo != repo || names[name] {
			continue
		}
		if s.granted() == nil { // nothing of it is in the world
			delete(r.stacks, name)
			s.close()
		} else if to, ok := renamed(s, found); ok {
			r.rename(ctx, s, to, rev)
		} else {
			lost = append(lost, s)
		}
	}
	mass := r.massive(repo, lost)
	for _, s := range lost {
		sameFolder := slices.ContainsFunc(found, func(c asked) bool { return c.Dir == s.Dir })
		r.gone(ctx, s, rev, mass || sameFolder)
	}
	return wanted, refused
}

// calledBefore returns the other name under which the folder of s has something
// deployed, if its target cannot take that over under a new one.
func (r *Reconciler) calledBefore(s *stack) string {
	if _, ok := s.target.(targets.Claimer); ok || s.target == nil {
		return ""
	}
	for name, o := range r.stacks {
		if o.repo == s.repo && o.Dir == s.Dir && name != s.Name && o.granted() != nil {
			return name
		}
	}
	for name, k := range r.kept {
		if k.Repository == s.repo && k.Dir == s.Dir && name != s.Name && r.stacks[name] == nil && r.stacks[s.Name] == nil {
			return name
		}
	}
	return ""
}

// holder is the folder that has a stack's name.
type holder struct {
	repo, dir string
	deployed  bool // something of it is in the world
	held      bool // its stack file is gone
}

// holder returns who has a name: the stack that runs or, while the daemon
// starts, the one that ran before. The caller holds r.mu.
func (r *Reconciler) holder(name string) *holder {
	if s := r.stacks[name]; s != nil {
		return &holder{s.repo, s.Dir, s.granted() != nil, s.isHeld()}
	}
	if k, ok := r.kept[name]; ok {
		return &holder{k.Repository, k.Dir, true, k.Held}
	}
	return nil
}

// owners decides who has a name. A name is what a stack's objects and its
// Terraform state are kept under, so nobody may take it from a stack that has
// something deployed: it stays with its folder until nothing is. Who may change
// the one folder need not be who may change the other. The caller holds r.mu.
func (r *Reconciler) owners(repo string, found []asked) []asked {
	claims := map[string][]string{} // name → folders
	for i, c := range found {
		if c.Err != nil && strings.Contains(c.Name, "/") { // it does not decode: it is whoever was there before
			for _, s := range r.stacks {
				if s.repo == repo && s.Dir == c.Dir {
					found[i].Name = s.Name
				}
			}
			for name, k := range r.kept {
				if k.Repository == repo && k.Dir == c.Dir && r.stacks[name] == nil {
					found[i].Name = name
				}
			}
		}
		claims[found[i].Name] = append(claims[found[i].Name], c.Dir)
	}
	for i, c := range found {
		dirs, has := claims[c.Name], r.holder(c.Name)
		var other string
		switch {
		case has != nil && has.repo == repo && has.dir == c.Dir: // it has it
			continue
		case has != nil && has.repo != repo:
			other = has.repo + "/" + has.dir
		case has != nil && has.deployed:
			other = has.repo + "/" + has.dir
			if has.held {
				other += ", whose stack file is gone and whose objects are still there"
			}
		case len(dirs) > 1:
			other = repo + "/" + dirs[slices.IndexFunc(dirs, func(d string) bool { return d != c.Dir })]
		default:
			continue
		}
		found[i].Err = fault.WithStack(c.Name, fault.New(fault.Invalid, "reconciler.replace", "give this stack another name; to move a stack, let go of its objects (prune: orphan) and adopt them under the new one",
			"the name of the stack in %s/%s is taken by %s", repo, c.Dir, other))
		found[i].Name = c.Name + "@" + repo + "/" + c.Dir
	}
	return found
}
