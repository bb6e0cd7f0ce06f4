package git

import (
	"context"
	"errors"
	"fmt"

	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/holdfast-dev/holdfast/sources"
)

// pathRemote is a repository on this machine, bare or with a work tree. Its
// objects are copied without running git, so none of its hooks and none of its
// configuration has a say.
type pathRemote struct {
	path   string
	refs   followed
	limits sources.Limits
}

func (r *pathRemote) open() (*gogit.Repository, tips, error) {
	repo, err := gogit.PlainOpenWithOptions(r.path, &gogit.PlainOpenOptions{EnableDotGitCommonDir: true})
	if err != nil {
		return nil, tips{}, fmt.Errorf("%s: %w", r.path, err)
	}
	refs, err := resolved(repo)
	if err != nil {
		return nil, tips{}, err
	}
	t, err := r.refs.pick(refs, func(ref string) (plumbing.Hash, error) { return peel(repo.Storer, refs[ref]) })
	return repo, t, err
}

// resolved returns the refs of a repository, symbolic ones by what they lead to.
func resolved(repo *gogit.Repository) (map[string]plumbing.Hash, error) {
	all, err := repo.References()
	if err != nil {
		return nil, err
	}
	refs := map[string]plumbing.Hash{}
	return refs, all.ForEach(func(r *plumbing.Reference) error {
		if r.Type() == plumbing.SymbolicReference {
			end, err := repo.Reference(r.Name(), true)
			if err != nil {
				return nil //nolint:nilerr // it leads nowhere
			}
			r = plumbing.NewHashReference(r.Name(), end.Hash())
		}
		refs[r.Name().String()] = r.Hash()
		return nil
	})
}

// peel returns what a tag names.
func peel(st storer.EncodedObjectStorer, id plumbing.Hash) (plumbing.Hash, error) {
	raw, err := readObject(st, plumbing.TagObject, id, maxTag)
	if errors.Is(err, plumbing.ErrObjectNotFound) { // no tag object: it is lightweight
		return id, nil
	}
	if err != nil {
		return id, err
	}
	return parseTagged(raw)
}

func (r *pathRemote) tips(context.Context) (tips, error) {
	_, t, err := r.open()
	return t, err
}

func (r *pathRemote) fetch(ctx context.Context, m *mirror) (tips, error) {
	repo, t, err := r.open()
	if err != nil {
		return tips{}, err
	}
	return t, m.with(func(st *filesystem.Storage) error {
		c := copier{ctx: ctx, from: repo.Storer, to: st, left: transfer(r.limits), most: r.limits.Bytes}
		if err := c.commits(t.commit); err != nil {
			return err
		}
		for _, id := range t.notes {
			if err := c.commits(id); err != nil {
				return err
			}
		}
		if t.object == t.commit {
			return nil
		}
		raw, err := c.get(plumbing.TagObject, t.object, maxTag)
		if err != nil {
			return err
		}
		return c.put(plumbing.TagObject, raw)
	})
}

func (r *pathRemote) close() {}

// copier copies what a commit reaches. It writes each object after everything
// that the object names, so that an object that is there is complete, and its
// cost is the change.
type copier struct {
	ctx  context.Context
	from storer.EncodedObjectStorer
	to   *filesystem.Storage
	left int64 // bytes that may still be copied
	most int64 // bytes of one object
}

func (c *copier) commits(tip plumbing.Hash) error {
	type step struct {
		id  plumbing.Hash
		raw []byte // set once the parents are on the stack above
	}
	stack := []step{{id: tip}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.raw != nil {
			if err := c.put(plumbing.CommitObject, top.raw); err != nil {
				return err
			}
			stack = stack[:len(stack)-1]
			continue
		}
		if c.has(top.id) {
			stack = stack[:len(stack)-1]
			continue
		}
		raw, err := c.get(plumbing.CommitObject, top.id, maxCommit)
		if err != nil {
			return err
		}
		top.raw = raw
		root, parents, err := parseCommit(raw)
		if err != nil {
			return invalid("rewrite the commit", "commit %s: %w", top.id, err)
		}
		if err := c.tree(root, 0); err != nil {
			return err
		}
		for _, p := range parents {
			stack = append(stack, step{id: p})
		}
	}
	return nil
}

func (c *copier) tree(id plumbing.Hash, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	if c.has(id) {
		return nil
	}
	raw, err := c.get(plumbing.TreeObject, id, maxTree)
	if err != nil {
		return err
	}
	t, err := parseTree(raw)
	if err != nil {
		return invalid("rename the file", "tree %s: %w", id, err)
	}
	for _, e := range t.entries {
		switch {
		case e.mode == modeTree:
			err = c.tree(e.id, depth+1)
		case e.mode == modeSubmodule || c.has(e.id):
			err = nil
		default:
			var b []byte
			if b, err = c.get(plumbing.BlobObject, e.id, c.most); err == nil {
				err = c.put(plumbing.BlobObject, b)
			}
		}
		if err != nil {
			return err
		}
	}
	return c.put(plumbing.TreeObject, raw)
}

func (c *copier) has(id plumbing.Hash) bool { return c.to.HasEncodedObject(id) == nil }

func (c *copier) get(t plumbing.ObjectType, id plumbing.Hash, most int64) ([]byte, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	b, err := readObject(c.from, t, id, most)
	if err != nil {
		return nil, err
	}
	if c.left -= int64(len(b)); c.left < 0 {
		return nil, invalid("raise the source's limits if the repository is meant to be this large", "the repository has more to copy than the limit")
	}
	if plumbing.ComputeHash(t, b) != id {
		return nil, invalid("repair the repository", "%s %s is damaged", t, id)
	}
	return b, nil
}

func (c *copier) put(t plumbing.ObjectType, b []byte) error {
	o := &plumbing.MemoryObject{}
	o.SetType(t)
	if _, err := o.Write(b); err != nil {
		return err
	}
	_, err := c.to.SetEncodedObject(o)
	return err
}
