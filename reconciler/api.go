package reconciler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pmezard/go-difflib/difflib"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// Overview is the status of everything.
type Overview struct {
	Repositories []RepositoryStatus  `json:"repositories"`
	Stacks       []Status            `json:"stacks"`
	Revocations  []verify.Revocation `json:"revocations,omitempty"`
}

// Status returns what is known, without I/O.
func (r *Reconciler) Status() Overview {
	var o Overview
	for _, c := range r.Repositories {
		o.Repositories = append(o.Repositories, r.repository(c.Name).snapshotStatus())
	}
	for _, s := range r.all() {
		o.Stacks = append(o.Stacks, r.stackStatus(s))
	}
	o.Revocations = r.Revocations.List()
	return o
}

// stackStatus returns what is known about a stack, what people ordered included.
func (r *Reconciler) stackStatus(s *stack) Status {
	st := s.snapshotStatus()
	if st.Suspended = r.suspension(s.Name); st.Suspended != nil {
		st.Phase, st.Message, st.Hint = Suspended, st.Suspended.err().Error(), fault.HintOf(st.Suspended.err())
	}
	if rb := r.orders.rolledBack(s.Name); rb != nil {
		st.RolledBack = &RolledBack{To: rb.To, From: rb.From, Reason: rb.Reason, Since: rb.Since}
	}
	return st
}

// Sync takes the newest commit of every repository once. It is for work without
// a daemon; the errors of the repositories are joined.
func (r *Reconciler) Sync(ctx context.Context) error {
	if err := r.TakeUp(ctx); err != nil {
		return err
	}
	return r.look(ctx, "")
}

// TakeUp takes up what was verified, granted and ordered before, without
// network. It is for work without a daemon; Run does it itself.
func (r *Reconciler) TakeUp(ctx context.Context) error {
	if err := r.closeDangling(ctx); err != nil {
		return err
	}
	if err := r.takeUpOrders(ctx); err != nil {
		return err
	}
	r.resume(ctx)
	return nil
}

// look looks at one repository now, or at all.
func (r *Reconciler) look(ctx context.Context, name string) error {
	var errs []error
	for _, c := range r.Repositories {
		if name == "" || c.Name == name {
			repo := r.repository(c.Name)
			repo.polling.Lock()
			errs = append(errs, r.tryAdvance(ctx, repo))
			repo.polling.Unlock()
		}
	}
	return errors.Join(errs...)
}

// Reconcile looks at the source of a stack now, applies it and waits until it is
// healthy; without a name it does so for all.
func (r *Reconciler) Reconcile(ctx context.Context, name string) error {
	repo := ""
	if name != "" {
		s, err := r.named(name)
		if err != nil {
			return err
		}
		repo = s.repo
	}
	errs := []error{r.look(ctx, repo)}
	var mu sync.Mutex
	g := new(errgroup.Group)
	g.SetLimit(r.Workers)
	for _, s := range r.all() {
		if name == "" && s.isHeld() || name != "" && s.Name != name {
			continue
		}
		g.Go(func() error {
			_, err := r.Apply(ctx, s.Name)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	_ = g.Wait() // all errors are collected
	return errors.Join(errs...)
}

// Close waits for entries that are on their way to the ledger and frees what
// the targets hold. It is for work without a daemon; Run does it itself.
func (r *Reconciler) Close() {
	r.late.Wait()
	r.closeTargets()
}

func (r *Reconciler) named(name string) (*stack, error) {
	if s := r.stack(name); s != nil {
		return s, nil
	}
	return nil, fault.New(fault.Invalid, "reconciler", "holdfast status lists the stacks", "there is no stack %q", name)
}

// anew is b for somebody who asks: everything is looked at.
func anew(b basis) basis {
	b.anew = true
	return b
}

// Plan runs the pipeline for one stack up to the gate and writes nothing. The
// proposal says what was reached, also beside an error.
func (r *Reconciler) Plan(ctx context.Context, name string) (*Proposal, error) {
	s, err := r.named(name)
	if err != nil {
		return nil, err
	}
	var p *Proposal
	err = guarded(s, func() error {
		if err := s.refused(); err != nil {
			return err
		}
		p, err = r.judge(ctx, s, anew(s.desired()))
		return err
	})
	return p, err
}

// Apply runs the whole pipeline for one stack, whether or not its inputs
// changed, and waits until it is healthy, for at most five minutes. In a daemon, what did not
// work is tried again as usual.
func (r *Reconciler) Apply(ctx context.Context, name string) (*Proposal, error) {
	s, err := r.named(name)
	if err != nil {
		return nil, err
	}
	var p *Proposal
	err = guarded(s, func() error {
		if sus := r.suspension(name); sus != nil {
			return sus.err()
		}
		if err := s.refused(); err != nil {
			return err
		}
		if err := r.dependencies(ctx, s); err != nil {
			return err
		}
		for range staleAgain {
			if p, err = r.deploy(ctx, s, anew(s.desired()), ledger.Applied, nil); !errors.Is(err, targets.ErrStale) {
				break // the daemon itself may have been at it
			}
		}
		return err
	})
	if err == nil {
		err = r.healthy(ctx, s)
	}
	again := r.settle(ctx, s, err)
	if r.queue != nil && err != nil {
		r.queue.AddAfter(request{reconcileStack, name}, max(again, time.Second))
	}
	return p, err
}

// staleAgain is how often a command plans anew when the world moved meanwhile.
const staleAgain = 3

// healthTimeout is how long a command waits for health. What it applied stays
// applied, and the daemon goes on waiting.
const healthTimeout = 5 * time.Minute

// healthy waits for s.
func (r *Reconciler) healthy(ctx context.Context, s *stack) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	for {
		err := guarded(s, func() error { return r.finish(ctx, s) })
		if err == nil || fault.KindOf(err) != fault.Waiting || ctx.Err() != nil {
			return err
		}
		pause(ctx, 200*time.Millisecond)
	}
}

// Drift compares one stack with the live world now and changes nothing.
func (r *Reconciler) Drift(ctx context.Context, name string) ([]targets.Finding, error) {
	s, err := r.named(name)
	if err != nil {
		return nil, err
	}
	var found []targets.Finding
	err = guarded(s, func() error {
		found, err = r.compareNow(ctx, s, false)
		return err
	})
	return found, err
}

// Unmanaged returns what no stack declares where one has its objects, and what the target
// may not list. A target that cannot say has none. It leaves out the namespaces of the
// stack's environment that are in done, and adds those that it has looked at.
func (r *Reconciler) Unmanaged(ctx context.Context, name string, done map[string]map[string]bool) (found []targets.Finding, unseen []string, err error) {
	s, err := r.named(name)
	if err != nil {
		return nil, nil, err
	}
	d := s.granted()
	if d == nil {
		return nil, nil, fault.New(fault.Waiting, "reconciler.Unmanaged", "", "nothing was applied yet")
	}
	t, ok := d.target.(targets.Surveyor)
	if !ok {
		return nil, nil, nil
	}
	if done[d.Environment] == nil {
		done[d.Environment] = map[string]bool{}
	}
	err = guarded(s, func() error {
		found, unseen, err = t.Unmanaged(ctx, d.rendered, done[d.Environment])
		return err
	})
	return found, unseen, err
}

// lines splits a file as git does. A last line without an end says so.
func lines(b []byte) []string {
	out := strings.SplitAfter(string(b), "\n")
	if last := len(out) - 1; out[last] == "" {
		return out[:last]
	} else if last >= 0 {
		out[last] += "\n\\ No newline at end of file\n"
	}
	return out
}

// Patch returns what differs from what was granted for a stack as a patch of its
// repository (git apply), and the commit that it is of: merged, it makes the live world
// what is declared.
func (r *Reconciler) Patch(ctx context.Context, name string) (patch, revision string, err error) {
	const op = "reconciler.Patch"
	found, err := r.Drift(ctx, name)
	if err != nil || len(found) == 0 {
		return "", "", err
	}
	d := r.stack(name).granted()
	a, ok := d.target.(targets.Adopter)
	if !ok {
		return "", "", fault.New(fault.Invalid, op, "change the repository by hand", "drift of a %s stack cannot be made a patch", d.TargetName)
	}
	files, err := a.Adopt(ctx, d.snap, found)
	if err != nil {
		return "", "", err
	}
	var out strings.Builder
	for _, file := range slices.Sorted(maps.Keys(files)) {
		was, err := fs.ReadFile(d.snap.FS, file)
		if err != nil {
			return "", "", fault.Wrap(fault.Transient, op, "", err)
		}
		text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
			A: lines(was), B: lines(files[file]),
			FromFile: "a/" + file, ToFile: "b/" + file, Context: 3,
		})
		if err != nil {
			return "", "", fault.Wrap(fault.Internal, op, "", err)
		}
		fmt.Fprintf(&out, "diff --git a/%s b/%s\n%s", file, file, text)
	}
	if text := out.String(); r.Scrub(text) != text {
		return "", "", fault.New(fault.Invalid, op, "change the repository by hand", "the patch would show a secret that stands beside what changes")
	}
	return out.String(), d.snap.Revision.ID, nil
}
