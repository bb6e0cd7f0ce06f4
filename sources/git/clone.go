package git

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// Clone reads the history of a person's own clone. It writes nothing to it.
type Clone struct {
	src  *Source
	repo *gogit.Repository
}

// OpenClone opens the clone that dir is in. name is for revisions and errors.
// What is not a clone is fault.Invalid.
func OpenClone(name, dir string) (*Clone, error) {
	const op = "sources/git.OpenClone"
	repo, err := gogit.PlainOpenWithOptions(dir, &gogit.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "name a clone with --repo", "%s: %w", dir, err)
	}
	st, ok := repo.Storer.(*filesystem.Storage)
	if !ok {
		return nil, fault.New(fault.Internal, op, "", "%s: not a clone on disk", dir)
	}
	limits := sources.Limits{}.WithDefaults()
	m := newMirror(filepath.Clean(dir), limits)
	m.store = st // opened as it is: nothing is made and nothing is cleaned up
	return &Clone{src: &Source{name: name, limits: limits, mirror: m}, repo: repo}, nil
}

// Commit returns the raw bytes of a commit object.
func (c *Clone) Commit(ctx context.Context, id string) ([]byte, error) { return c.src.Commit(ctx, id) }

// ChangedPaths returns the paths that differ between two commits, as
// [Source.ChangedPaths] does.
func (c *Clone) ChangedPaths(ctx context.Context, parent, child string) ([]string, error) {
	return c.src.ChangedPaths(ctx, parent, child)
}

// File returns the content of a regular file of a commit, as [Source.File] does.
func (c *Clone) File(ctx context.Context, id, name string) ([]byte, error) {
	return c.src.File(ctx, id, name)
}

// Notes returns what the clone's own notes under a ref say about a commit.
func (c *Clone) Notes(ctx context.Context, ref, id string) ([][]byte, error) {
	r, err := c.repo.Reference(plumbing.ReferenceName(ref), true)
	if errors.Is(err, plumbing.ErrReferenceNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, c.src.fail(ctx, "Notes", err)
	}
	blob, err := c.src.mirror.note(r.Hash(), id)
	if err != nil || blob.IsZero() {
		return nil, c.src.fail(ctx, "Notes", err)
	}
	b, err := c.src.mirror.object(plumbing.BlobObject, blob, maxNotes)
	if err != nil {
		return nil, c.src.fail(ctx, "Notes", err)
	}
	return [][]byte{b}, nil
}

// Tag returns the newest of the clone's tags for a commit, as [Source.Tag] does.
func (c *Clone) Tag(ctx context.Context, pattern, id string) (name, object string, raw []byte, err error) {
	h, err := parseID(id)
	if err != nil {
		return "", "", nil, c.src.fail(ctx, "Tag", err)
	}
	tags, err := c.src.mirror.refs(tagPrefix)
	if err == nil {
		name, object, raw, err = c.src.mirror.newestTag(tags, pattern, h)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil, err
	}
	return name, object, raw, c.src.fail(ctx, "Tag", err)
}

// Close closes the clone's files.
func (c *Clone) Close() error { return c.src.mirror.close() }

// Resolve returns the full id of the commit that rev names, as git rev-parse
// reads it. An unknown one is fault.Invalid.
func (c *Clone) Resolve(rev string) (string, error) {
	const op = "sources/git.Resolve"
	if rev == "" || rev[0] == '-' {
		return "", fault.New(fault.Invalid, op, "", "%q is not a revision", rev)
	}
	id, err := c.repo.ResolveRevision(plumbing.Revision(rev))
	if err != nil {
		if errors.Is(err, plumbing.ErrReferenceNotFound) {
			return "", fault.New(fault.Invalid, op, "fetch it first", "the clone has no revision %q", rev)
		}
		return "", fault.New(fault.Invalid, op, "", "revision %q: %w", rev, err)
	}
	return id.String(), nil
}
