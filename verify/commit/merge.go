package commit

import (
	"container/heap"
	"context"
	"errors"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// merged makes a forge's merge a change of whoever signed what was merged. The
// forge may add nothing and take nothing back: what it signs, whoever is logged
// in there may have written. So each path that the merge changes must be as the
// merged commit has it, and must be changed there since both sides parted.
func (w *walk) merged(ctx context.Context, s *step, paths []string) error {
	forge := s.by
	if len(s.commit.parents) != 2 {
		return s.denied("merge with a merge commit, and not by squashing or rebasing: a forge's own signature says nothing of who wrote it",
			"signed by %s, whose signature counts on merges of two commits only", forge.signer)
	}
	tip := s.commit.parents[1]
	head, err := load(ctx, w.h, tip)
	if err != nil {
		return err
	}
	by, err := w.signed(tip, head)
	if err != nil {
		return s.denied(fault.HintOf(err), "merged by %s: %w", forge.signer, err)
	}
	if w.v.forges[by.signer] {
		return s.denied("sign the newest commit of the branch yourself, then merge", "merged by %s: what was merged, %s, is signed by %s too", forge.signer, short(tip), by.signer)
	}
	base, err := w.mergeBase(ctx, s.commit.parents[0], tip)
	if errors.Is(err, errNoBase) {
		return s.denied("rebase the branch, and merge it again", "merged by %s: %w", forge.signer, err)
	}
	if err != nil {
		return err
	}
	own, err := w.changed(ctx, tip, s.id)
	if err != nil {
		return err
	}
	theirs, err := w.changed(ctx, base, tip)
	if err != nil {
		return err
	}
	for _, p := range paths {
		const hint = "bring the branch up to date (git merge, signed), and merge it again"
		switch {
		case own[p]:
			return s.denied(hint, "merged by %s: %s is not as %s has it, who signed what was merged", forge.signer, clip(p), by.signer)
		case !theirs[p]:
			return s.denied(hint, "merged by %s: %s is changed, and %s did not change it in what was merged", forge.signer, clip(p), by.signer)
		}
	}
	s.by, s.merger = by, &forge
	return nil
}

// changed returns the paths that differ between two commits, as a set.
func (w *walk) changed(ctx context.Context, from, to string) (map[string]bool, error) {
	paths, err := w.h.ChangedPaths(ctx, from, to)
	set := make(map[string]bool, len(paths))
	for _, p := range paths {
		set[p] = true
	}
	return set, err
}

var errNoBase = errors.New("the two sides of the merge have no one commit in which they parted")

// mergeBase returns the best common ancestor of two commits, as git merge-base
// finds it: it goes back by commit date, paints what each side reaches, and stops
// when only what lies behind a common ancestor is left. Two that are as good are
// none.
func (w *walk) mergeBase(ctx context.Context, a, b string) (string, error) {
	const (
		left = 1 << iota
		right
		stale
	)
	queue, paint := &byDate{}, map[string]int{}
	add := func(id string, colour int) error {
		if paint[id]&colour == colour {
			return nil
		}
		paint[id] |= colour
		if len(paint) > w.v.most {
			return denied("bring the branch up to date, and merge it again", "more than %d commits lie between the two sides of the merge", w.v.most)
		}
		c, err := load(ctx, w.h, id)
		if err == nil {
			heap.Push(queue, dated{id, c})
		}
		return err
	}
	if err := errors.Join(add(a, left), add(b, right)); err != nil {
		return "", err
	}
	var bases []string
	for queue.has(func(d dated) bool { return paint[d.id]&stale == 0 }) {
		d := heap.Pop(queue).(dated)
		colour := paint[d.id]
		if colour == left|right {
			bases = append(bases, d.id)
			colour |= stale
		}
		for _, p := range d.parents {
			if err := add(p, colour); err != nil {
				return "", err
			}
		}
	}
	best := ""
	for _, id := range bases {
		if paint[id]&stale != 0 {
			continue
		}
		if best != "" && best != id {
			return "", errNoBase
		}
		best = id
	}
	if best == "" {
		return "", errNoBase
	}
	return best, nil
}

type dated struct {
	id string
	*object
}

// byDate is a heap of commits, the newest first.
type byDate []dated

// Len implements heap.Interface.
func (q byDate) Len() int { return len(q) }

// Less implements heap.Interface.
func (q byDate) Less(i, j int) bool { return q[i].committer.when.After(q[j].committer.when) }

// Swap implements heap.Interface.
func (q byDate) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *byDate) Push(v any) { *q = append(*q, v.(dated)) }

// Pop implements heap.Interface.
func (q *byDate) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func (q byDate) has(want func(dated) bool) bool {
	for _, d := range q {
		if want(d) {
			return true
		}
	}
	return false
}
