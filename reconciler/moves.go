package reconciler

import (
	"context"
	"log/slog"
	"slices"

	"github.com/holdfast-dev/holdfast/ledger"
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
		c.Expect()
		if r.queue == nil || len(s.DependsOn) > 0 || r.suspension(s.Name) != nil {
			far = append(far, s)
		}
	}
	if !slices.ContainsFunc(r.all(), func(s *stack) bool { return s.granted() != nil }) {
		return // nothing is deployed that could move
	}
	for _, s := range far {
		b := s.desired()
		// What is wrong with it is told when its turn comes.
		_ = guarded(s, func() error { _, err := b.target.Render(ctx, b.snap); return err })
	}
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

// rename ends a stack that goes on under another name. What it deployed is not
// pruned: the new name takes it over. The caller holds r.mu.
func (r *Reconciler) rename(ctx context.Context, s *stack, to string) {
	if d := s.granted(); d != nil {
		if c, ok := d.target.(targets.Claimer); ok {
			c.Renounce()
		}
	}
	r.Log.InfoContext(ctx, "stack renamed", slog.String("stack", s.Name), slog.String("to", to))
	r.recordLater(ctx, s.entry(ledger.Decided, "renamed", "the stack goes on as "+to), nil)
	r.Gate.Revoke(s.Name)
	delete(r.stacks, s.Name)
	if r.before == nil {
		r.before = map[string]string{}
	}
	r.before[to] = s.Name
	s.close()
}

// forgetOldName forgets the old name of a stack that was renamed, once it stands under
// the new one: until then a restart needs it.
func (r *Reconciler) forgetOldName(name string) error {
	r.mu.Lock()
	old, ok := r.before[name]
	delete(r.before, name)
	r.mu.Unlock()
	if !ok {
		return nil
	}
	return r.state.forget(old)
}

// resumeRenamed takes up a rename that the last stop came in between.
func (r *Reconciler) resumeRenamed(ctx context.Context, history *past, name, to string, st stackState) error {
	b, err := history.basis(ctx, name, st)
	if err != nil {
		return err
	}
	if c, ok := b.target.(targets.Claimer); ok {
		c.Renounce()
	}
	closeTarget(b.target)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.before == nil {
		r.before = map[string]string{}
	}
	r.before[to] = name
	return nil
}

// inFolder returns the stack of a repository that stands in a folder now, or nil.
func (r *Reconciler) inFolder(repo, dir string) *stack {
	for _, s := range r.all() {
		if s.repo == repo && s.Dir == dir && s.Err == nil {
			return s
		}
	}
	return nil
}
