package reconciler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/verify"
)

// stateDir holds, per repository, the newest commit that was authorised and,
// per stack, what was granted last: enough to render it again offline and to
// demand the same digests. It holds no content and no secret.
type stateDir string

// stackState is what is kept about a stack.
type stackState struct {
	Key      string                    `json:"key"`
	Revision string                    `json:"revision"`
	Rendered digest.Digest             `json:"rendered"`
	Pins     map[string]verify.Subject `json:"pins,omitempty"`
	Saved    time.Time                 `json:"saved"`
}

func (d stateDir) path(kind, name string) string {
	return filepath.Join(string(d), kind, name+".json")
}

func (d stateDir) save(s *stack, p *Proposal) error {
	return d.write(d.path("stacks", s.Name), stackState{
		Key: s.Key, Revision: p.Plan.Revision.ID, Rendered: p.rendered.Digest, Pins: p.pins, Saved: time.Now().UTC(),
	})
}

// repositoryState is what is kept about a repository.
type repositoryState struct {
	Verified string    `json:"verified"` // newest commit that was authorised
	Seen     time.Time `json:"seen"`     // when it was first seen: signatures are judged at this time
}

func (d stateDir) saveRepository(name string, st repositoryState) error {
	return d.write(d.path("repositories", name), st)
}

func (d stateDir) repository(name string) (st repositoryState, err error) {
	err = d.read(d.path("repositories", name), &st)
	return st, err
}

// forget makes the next start judge a stack anew.
func (d stateDir) forget(stack string) error {
	err := os.Remove(d.path("stacks", stack))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", stack, err)
	}
	return nil
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
		return fault.New(fault.Invalid, "reconciler.state", "remove the file; the history is then judged from the anchor", "state %s: %w", path, err)
	}
	return nil
}

// write replaces a file so that a crash leaves the old or the new content.
func (d stateDir) write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// resumeStack renders again what was granted before the last stop. If the
// digests are the same, it is enforced at once; if not, it is judged anew.
func (r *Reconciler) resumeStack(ctx context.Context, s *stack) error {
	var st stackState
	if err := r.state.read(r.state.path("stacks", s.Name), &st); err != nil {
		return err
	}
	if st.Rendered == "" || st.Key != s.Key {
		return nil
	}
	snap, commit := s.desired()
	track := newTracker(snap)
	rendered, err := s.Target.Render(ctx, track.snapshot())
	if err != nil {
		return err
	}
	if rendered, err = pin(s.Target, rendered, st.Pins); err != nil {
		return err
	}
	if rendered.Digest != st.Rendered {
		return nil
	}
	objects, err := desiredObjects(ctx, s.Target, rendered)
	if err != nil {
		return err
	}
	r.Gate.Resume(s.Name, gate.Standing{Environment: s.Environment, Rendered: rendered.Digest, Revision: st.Revision, Objects: objects})
	p := &Proposal{Commit: commit, rendered: rendered, inputs: track.inputs(), pins: st.Pins}
	p.Plan.Revision = snap.Revision
	s.stand(p)
	r.observe(ctx, s)
	return nil
}
