// Package sources owns what a desired state is before anyone trusts it: a
// [Source] that knows its newest [Revision] and can fetch the [Snapshot] that a
// revision names.
//
// It guarantees that a snapshot is read-only and is exactly what its revision
// names. It refuses branch and tag names as identities: a revision is a commit
// id or a manifest digest. Nothing here says that a snapshot may be trusted;
// package verify does.
package sources

import (
	"context"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Revision names one immutable state of a source.
type Revision struct {
	Source string `json:"source"` // the source's configured name
	ID     string `json:"id"`     // a full commit id or an OCI manifest digest, never a branch or tag
}

// String returns "source@id" with the id shortened for people.
func (r Revision) String() string {
	algorithm, id, isDigest := strings.Cut(r.ID, ":")
	if !isDigest {
		algorithm, id = "", r.ID
	} else {
		algorithm += ":"
	}
	return r.Source + "@" + algorithm + id[:min(len(id), 12)]
}

// Snapshot is the content of one revision.
type Snapshot struct {
	Revision Revision
	// Tree is a Merkle digest over the source's own tree ids. Two snapshots
	// with equal Tree have equal content.
	Tree digest.Digest
	// FS holds the files. It is read-only, never follows a symlink out of the
	// tree, and may read lazily. It may implement [Identified].
	FS fs.FS
}

// Identified is an optional ability of a [Snapshot]'s FS: it names the content
// of one file or folder without reading it, so that work can follow change.
type Identified interface {
	// ContentID returns an id that is equal for equal content of the file or
	// folder name (a slash-separated path as in fs.FS), or an error wrapping
	// fs.ErrNotExist.
	ContentID(name string) (string, error)
}

// Source is one place where desired state is kept.
type Source interface {
	// Head reports the newest revision. It is cheap and called on every tick.
	Head(ctx context.Context) (Revision, error)
	// Fetch returns the content of r. It MUST fail if it gets anything but what r.ID names.
	Fetch(ctx context.Context, r Revision) (*Snapshot, error)
}
