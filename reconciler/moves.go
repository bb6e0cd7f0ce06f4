package reconciler

import (
	"context"
	"log/slog"
	"slices"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
)

// declare has the targets of changed stacks say that they will own something
// new, before any of them goes on: nothing that moves between them is pruned on
// its way. Those whose turn may be far off are rendered right away, so that the
// others need not wait for them.
func (r *Reconciler) declare(ctx context.Context, wanted []*stack) {
	var far []*stack
	for _, s := range wanted {
		c, ok := s.desired().target.(targets.Claimer)
		if !ok || s.unchanged() {
			continue
		}
		if r.postpone(s) {
			continue
		}
		c.Expect()
		s.expect()
		if r.queue == nil || len(s.DependsOn) > 0 || r.suspension(s.Name) != nil {
			far = append(far, s)
		}
	}
	if !slices.ContainsFunc(r.all(), func(s *stack) bool { return s.granted() != nil }) {
		return // nothing is deployed that could move
	}
	for _, s := range far {
		r.claim(ctx, s, s.desired())
	}
}

// postpone has a suspended stack keep what it has: it gives nothing away, and
// nothing that may move to it is pruned. It says whether s is one.
func (r *Reconciler) postpone(s *stack) bool {
	c, ok := s.desired().target.(targets.Claimer)
	if !ok || s.unchanged() || s.granted() == nil || r.suspension(s.Name) == nil {
		return false
	}
	c.Postpone()
	s.expect()
	return true
}

// expect notes that others wait for the stack's rendering.
func (s *stack) expect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = true
}

// takeExpected reports whether others wait for the stack's rendering, once.
func (s *stack) takeExpected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.expected
	s.expected = false
	return was
}

// claim has the target of a stack that is refused before it is rendered say
// what it would own: others wait for that before they prune.
func (r *Reconciler) claim(ctx context.Context, s *stack, b basis) {
	if !s.takeExpected() {
		return
	}
	// What is wrong with it is told when its turn comes.
	_ = guarded(s, func() error { _, err := b.target.Render(ctx, b.snap); return err })
}

// renamed returns the stack of found that was called s before: the same folder
// and environment under another name.
func renamed(s *stack, found []asked) (string, bool) {
	for _, c := range found {
		if c.Err == nil && c.Dir == s.Dir && c.Environment == s.Environment && c.Name != s.Name {
			return c.Name, true
		}
	}
	return "", false
}

// rename notes that a stack goes on under another name. What it deployed is
// neither pruned nor left alone: it goes on being enforced under the old name
// until the new one stands, and the new one may take it over. The caller holds r.mu.
func (r *Reconciler) rename(ctx context.Context, s *stack, to string, rev sources.Revision) {
	if r.before[to] == s.Name {
		return
	}
	if r.suspension(s.Name) == nil {
		s.renounce()
	}
	s.hold(rev)
	s.progress("the stack goes on as " + to)
	r.Log.InfoContext(ctx, "stack renamed", slog.String("stack", s.Name), slog.String("to", to))
	r.recordLater(ctx, s.entry(ledger.Decided, "renamed", "the stack goes on as "+to), nil)
	if r.before == nil {
		r.before = map[string]string{}
	}
	r.before[to] = s.Name
	r.orders.rename(s.Name, to)
}

// renounce lets other stacks take over what the stack deployed.
func (s *stack) renounce() {
	if d := s.granted(); d != nil {
		if c, ok := d.target.(targets.Claimer); ok {
			c.Renounce()
		}
	}
}

// takeOver has the old name of a stack let go of what it deployed, which it did
// not while it was suspended.
func (r *Reconciler) takeOver(name string) {
	r.mu.Lock()
	old := r.stacks[r.before[name]]
	r.mu.Unlock()
	if old != nil {
		old.renounce()
	}
}

// endOldName ends the old name of a stack that was renamed, once it stands under
// the new one: what the new one does not declare goes, as in any other commit.
func (r *Reconciler) endOldName(name string) {
	r.mu.Lock()
	old := r.stacks[r.before[name]]
	delete(r.before, name)
	r.mu.Unlock()
	r.orders.rename("", name)
	if old == nil {
		return
	}
	old.mu.Lock()
	old.renamed = true
	old.mu.Unlock()
	r.Gate.Revoke(old.Name)
	r.queueRemoval(old)
}

// inFolder returns the stack that has the folder and environment of another one
// now, or nil.
func (r *Reconciler) inFolder(old *stack) *stack {
	for _, s := range r.all() {
		if s != old && s.repo == old.repo && s.Dir == old.Dir && s.Environment == old.Environment && s.Err == nil {
			return s
		}
	}
	return nil
}

// endOldNames ends the old names of stacks that stood under the new one before
// the last stop.
func (r *Reconciler) endOldNames() {
	r.mu.Lock()
	var standing []string
	for to := range r.before {
		if s := r.stacks[to]; s != nil && s.granted() != nil {
			standing = append(standing, to)
		}
	}
	r.mu.Unlock()
	for _, to := range standing {
		r.endOldName(to)
	}
}
