package reconciler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// stateDir holds, per repository, the newest commit that was authorised and,
// per stack, what was granted last: enough to render it again offline and to
// demand the same digests. It holds no content and no secret.
type stateDir string

// repositoryState is what is kept about a repository.
type repositoryState struct {
	Verified string `json:"verified"` // newest commit that was authorised
	// Enforced is the commit that was taken, where the newest one may be refused
	// after it was authorised; empty: Verified.
	Enforced     string    `json:"enforced,omitempty"`
	EnforcedSeen time.Time `json:"enforcedSeen,omitzero"`
	Seen         time.Time `json:"seen"` // when it was first seen: signatures are judged at this time
	// Confirmed is when the source last said which commit is the newest, give or
	// take an eighth of the repository's maxAge.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// taken returns the commit that was taken, and when it was first seen.
func (st repositoryState) taken() (id string, seen time.Time) {
	if st.Enforced == "" {
		return st.Verified, st.Seen
	}
	return st.Enforced, st.EnforcedSeen
}

// stackState is what is kept about a stack.
type stackState struct {
	Repository string                    `json:"repository"`
	Dir        string                    `json:"dir"`
	Key        string                    `json:"key"`
	Revision   string                    `json:"revision"`
	Seen       time.Time                 `json:"seen"`
	Rendered   digest.Digest             `json:"rendered"`
	Pins       map[string]verify.Subject `json:"pins,omitempty"`
	Rests      []verify.Anchor           `json:"rests,omitempty"`
	// Held says that the stack file is gone. Keep says that it was gone with so
	// many others that nothing is deleted, and Removing that a removal began.
	Held     bool      `json:"held,omitempty"`
	Keep     bool      `json:"keep,omitempty"`
	Removing bool      `json:"removing,omitempty"`
	Saved    time.Time `json:"saved"`
}

func (d stateDir) path(kind, name string) string {
	return filepath.Join(string(d), kind, name+".json")
}

// update changes what is kept about a stack, if anything is.
func (d stateDir) update(stack string, change func(*stackState)) error {
	var st stackState
	if err := d.read(d.path("stacks", stack), &st); err != nil || st.Repository == "" {
		return err
	}
	change(&st)
	return d.write(d.path("stacks", stack), st)
}

func (d stateDir) save(s *stack, b basis, p *Proposal) error {
	return d.write(d.path("stacks", s.Name), stackState{
		Repository: s.repo, Dir: b.Dir, Key: b.Key, Revision: b.snap.Revision.ID, Seen: b.seen,
		Rendered: p.rendered.Digest, Pins: p.pins, Rests: p.rests(), Saved: time.Now().UTC(),
	})
}

func (d stateDir) saveRepository(name string, st repositoryState) error {
	return d.write(d.path("repositories", name), st)
}

func (d stateDir) repository(name string) (st repositoryState, err error) {
	err = d.read(d.path("repositories", name), &st)
	return st, err
}

// stacks returns what is kept about the stacks of a repository, by name.
func (d stateDir) stacks(repository string) (map[string]stackState, error) {
	entries, err := os.ReadDir(filepath.Join(string(d), "stacks"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	out := map[string]stackState{}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		var st stackState
		if err := d.read(d.path("stacks", name), &st); err != nil {
			errs = append(errs, err)
		} else if st.Repository == repository {
			out[name] = st
		}
	}
	return out, errors.Join(errs...)
}

// forget makes the next start judge a stack anew.
func (d stateDir) forget(stack string) error {
	err := os.Remove(d.path("stacks", stack))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", stack, err)
	}
	return nil
}

func (d stateDir) saveRollback(rb *rollback) error { return d.write(d.path("rollbacks", rb.Stack), rb) }

func (d stateDir) forgetRollback(stack string) error {
	if err := os.Remove(d.path("rollbacks", stack)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget rollback of %s: %w", stack, err)
	}
	return nil
}

// rollbacks returns every rollback that holds.
func (d stateDir) rollbacks() ([]*rollback, error) {
	files, err := filepath.Glob(d.path("rollbacks", "*"))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var out []*rollback
	for _, f := range files {
		rb := &rollback{}
		if err := d.read(f, rb); err != nil {
			rb = &rollback{Stack: strings.TrimSuffix(filepath.Base(f), ".json"), broken: fault.Wrap(fault.Denied, "reconciler.rollback",
				"sign the rollback again, or remove the file to have the newest commit applied", err)}
		}
		out = append(out, rb)
	}
	return out, nil
}

func (d stateDir) read(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.New(fault.Invalid, "reconciler.state", "restore the file from a backup; if you remove it, history is judged from the anchor again", "state %s: %w", path, err)
	}
	return nil
}

// write replaces a file so that a crash leaves the old or the new content.
func (d stateDir) write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := durable.Replace(path, b); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// resume takes up, without network, what was verified and granted before the
// last stop. What cannot be taken up is judged anew; a mark that cannot be read
// stops its repository, since history must not start over.
func (r *Reconciler) resume(ctx context.Context) {
	if err := errors.Join(durable.Tidy(filepath.Join(string(r.state), "repositories")), durable.Tidy(filepath.Join(string(r.state), "stacks"))); err != nil {
		r.Log.WarnContext(ctx, "unfinished files are left in the state directory", slog.String("error", err.Error()))
	}
	r.keep(ctx)
	for _, c := range r.Repositories {
		repo := r.repository(c.Name)
		st, err := r.state.repository(repo.Name)
		if err != nil {
			repo.broken = err
		} else if st.Verified != "" {
			err = r.resumeRepository(ctx, repo, st)
		}
		if err != nil {
			r.Log.WarnContext(ctx, "state not taken up", slog.String("repository", repo.Name), slog.String("error", r.Scrub(err.Error())))
		}
	}
}

// keep reads what the state directory says about stacks, before any of them is
// discovered: their names are taken.
func (r *Reconciler) keep(ctx context.Context) {
	kept := map[string]stackState{}
	for _, c := range r.Repositories {
		stacks, err := r.state.stacks(c.Name)
		if err != nil {
			r.Log.WarnContext(ctx, "stack state not read", slog.String("repository", c.Name), slog.String("error", err.Error()))
		}
		maps.Copy(kept, stacks)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = kept
}

func (r *Reconciler) resumeRepository(ctx context.Context, repo *repository, st repositoryState) error {
	// The mark is remembered first: whatever fails below, history does not
	// start over, and old news is not fresh.
	if st.Confirmed.Before(time.Now()) { // else the clock was ahead
		repo.since = st.Confirmed
	}
	repo.note(func(s *RepositoryStatus) { s.Verified, s.seen = st.Verified, st.Seen })
	repo.head, repo.seen = st.Verified, st.Seen // also where it has to be fetched again
	id, seen := st.taken()
	newest, commit, err := r.past(ctx, repo, id, seen)
	if err != nil {
		return err
	}
	repo.takenSeen = seen
	if err := r.take(ctx, repo, newest, commit, seen); err != nil {
		if repo.Take == nil {
			return err
		}
		// What it would be judged by says nothing about what was granted before.
		r.Log.WarnContext(ctx, "revision not taken", slog.String("repository", repo.Name), slog.String("error", r.Scrub(err.Error())))
	}
	history := &past{r: r, repo: repo, newest: newest.Revision, found: map[string][]basis{}}
	for name, st := range r.kept {
		if st.Repository != repo.Name {
			continue
		}
		if err := r.resumeStack(ctx, history, name, st); err != nil {
			r.Log.WarnContext(ctx, "stack not taken up", slog.String("stack", name), slog.String("error", r.Scrub(err.Error())))
		}
	}
	r.endOldNames()
	return nil
}

// past returns a snapshot that was fetched before, with fresh evidence of who
// authorised it.
func (r *Reconciler) past(ctx context.Context, repo *repository, id string, seen time.Time) (*sources.Snapshot, verify.Evidence, error) {
	snap, err := repo.Source.Local(ctx, sources.Revision{Source: repo.Name, ID: id})
	if err != nil {
		return nil, verify.Evidence{}, err
	}
	commit, err := repo.Authorise(ctx, id, id, seen)
	if errors.Is(err, verify.ErrRevoked) {
		// What ran by it goes on being watched. Its evidence is not verified, and so
		// nothing new is granted by it.
		return snap, verify.Evidence{Subject: verify.Subject{Kind: "commit", Reference: id}}, nil
	}
	return snap, commit, err
}

// past finds stacks as older commits declared them, and discovers each commit once.
type past struct {
	r      *Reconciler
	repo   *repository
	newest sources.Revision
	found  map[string][]basis // by commit
}

func (p *past) basis(ctx context.Context, name string, st stackState) (basis, error) {
	if _, ok := p.found[st.Revision]; !ok {
		snap, commit, err := p.r.past(ctx, p.repo, st.Revision, st.Seen)
		if err != nil {
			return basis{}, err
		}
		stacks, err := p.repo.Discover(ctx, snap)
		if err != nil {
			return basis{}, err
		}
		all := make([]basis, 0, len(stacks))
		for _, s := range stacks {
			all = append(all, basis{Stack: s, snap: snap, commit: commit, seen: st.Seen})
		}
		p.found[st.Revision] = all
	}
	for _, b := range p.found[st.Revision] {
		if b.Name != name || b.Dir != st.Dir || b.Key != st.Key || b.Err != nil {
			continue
		}
		var err error
		b.target, err = b.Build()
		return b, err
	}
	return basis{}, fault.New(fault.Waiting, "reconciler.resume", "", "commit %s does not declare it as it was granted; it is judged anew", st.Revision)
}

// resumeStack renders again what was granted before the last stop, from the
// newest verified commit if that gives the same, or from the commit that it was
// granted with. Only the same digest is enforced without a new judgement.
func (r *Reconciler) resumeStack(ctx context.Context, history *past, name string, st stackState) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "reconciler.resume", "report this with the log", "panic: %v", p)
		}
	}()
	s := r.stack(name)
	if s != nil && s.repo != st.Repository {
		return fault.New(fault.Invalid, "reconciler.resume", "", "the name belongs to repository %s", st.Repository)
	}
	if s != nil && s.refused() == nil && s.Key == st.Key {
		// What the newest commit renders to, and whether it can be rendered and
		// pinned at all, says nothing about what was granted before.
		if ok, err := r.takeUp(ctx, s, s.desired(), st); ok {
			return err
		}
	}
	b, err := history.basis(ctx, name, st)
	if err != nil {
		return err
	}
	if s == nil { // the newest commit does not declare it any more
		s = newStack(history.repo.Name, b.Stack)
		s.target = b.target
		s.want(b.snap, b.commit, b.seen)
	}
	ok, err := r.takeUp(ctx, s, b, st)
	if !ok {
		closeTarget(b.target)
		return err
	}
	if r.stack(name) != nil {
		r.postpone(s)
		return nil
	}
	r.mu.Lock()
	r.stacks[name] = s
	r.mu.Unlock()
	if now := r.inFolder(s); now != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rename(ctx, s, now.Name, history.newest)
		return nil
	}
	r.heldAgain(s, history.newest, st)
	return nil
}

// takeUp makes b what s enforces if it renders to what was granted.
func (r *Reconciler) takeUp(ctx context.Context, s *stack, b basis, st stackState) (bool, error) {
	track := newTracker(b.snap)
	rendered, err := b.target.Render(ctx, track.snapshot())
	if err != nil {
		return false, err
	}
	if rendered, err = pin(b.target, rendered, st.Pins); err != nil || rendered.Digest != st.Rendered {
		return false, err
	}
	objects, err := desiredObjects(ctx, b.target, rendered)
	if err != nil {
		return false, err
	}
	d := &deployment{basis: b, rendered: rendered, inputs: track.inputs(), at: st.Saved, rests: st.Rests}
	if st.Removing { // it goes on being removed: nothing of it is restored
		s.stand(d)
		return true, nil
	}
	if err := r.Revocations.Check(st.Rests...); err != nil {
		s.stand(d)
		s.revoked(d, err)
		r.observe(s) // drift is still reported
		return true, nil
	}
	r.Gate.Resume(s.Name, gate.Standing{Environment: b.Environment, Rendered: rendered.Digest, Revision: st.Revision, Objects: objects})
	s.stand(d)
	r.observe(s)
	return true, nil
}
