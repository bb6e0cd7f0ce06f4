package oci

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// node is a file or a folder.
type node struct {
	name       string
	dir        bool
	executable bool
	offset     int64 // in the spool
	size       int64
	sum        [sha256.Size]byte // of a file's content; of a folder, over what is in it
	entries    map[string]*node  // of a folder
	list       []*node           // the entries by name, without folders that hold no file
}

// files returns the number of files at or below n.
func (n *node) files() int {
	if !n.dir {
		return 1
	}
	count := 0
	for _, e := range n.entries {
		count += e.files()
	}
	return count
}

// seal computes the sums of folders. Folders that hold no file are left out, as
// in Git: whether a tool writes an entry for one says nothing.
func (n *node) seal() {
	if !n.dir {
		return
	}
	for _, e := range n.entries {
		e.seal()
		if !e.dir || len(e.list) > 0 {
			n.list = append(n.list, e)
		}
	}
	n.entries = nil // it is not needed any more
	slices.SortFunc(n.list, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	h := sha256.New()
	for _, e := range n.list {
		fmt.Fprintf(h, "%s %d %s %x\n", e.kind(), len(e.name), e.name, e.sum) // a hash never fails
	}
	h.Sum(n.sum[:0])
}

func (n *node) kind() string {
	switch {
	case n.dir:
		return "folder"
	case n.executable:
		return "executable"
	default:
		return "file"
	}
}

// id names the content of n.
func (n *node) id() string { return n.kind() + " " + hex.EncodeToString(n.sum[:]) }

// tree is a read-only file system over a spool. Files are read when they are
// opened. It implements fs.ReadDirFS, fs.ReadFileFS, fs.StatFS and
// sources.Identified.
type tree struct {
	root *node
	// spool is a file without a name. The runtime closes it when nobody has the
	// tree any more.
	spool *os.File
}

func newTree(root *node, spool *os.File) *tree {
	root.seal()
	return &tree{root: root, spool: spool}
}

// digest is a Merkle digest over the names, modes and contents of all files.
func (t *tree) digest() digest.Digest { return digest.FromString("oci tree sha256 " + t.root.id()) }

func (t *tree) find(op, name string) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	at := t.root
	if name == "." {
		return at, nil
	}
	for el := range strings.SplitSeq(name, "/") {
		i, ok := slices.BinarySearchFunc(at.list, el, func(n *node, el string) int { return cmp.Compare(n.name, el) })
		if !ok {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		at = at.list[i]
	}
	return at, nil
}

// Open implements fs.FS.
func (t *tree) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	info := fileInfo{n, path.Base(name)}
	if n.dir {
		return sources.OpenDir(info, name, entries(n)), nil
	}
	b, err := t.content(n)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return sources.OpenFile(info, b), nil
}

// ReadFile implements fs.ReadFileFS.
func (t *tree) ReadFile(name string) ([]byte, error) {
	n, err := t.find("read", name)
	if err != nil {
		return nil, err
	}
	if n.dir {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a directory")}
	}
	b, err := t.content(n)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	return entries(n), nil
}

// Stat implements fs.StatFS.
func (t *tree) Stat(name string) (fs.FileInfo, error) {
	n, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	return fileInfo{n, path.Base(name)}, nil
}

// ContentID implements sources.Identified.
func (t *tree) ContentID(name string) (string, error) {
	n, err := t.find("id", name)
	if err != nil {
		return "", err
	}
	return n.id(), nil
}

// content reads a file from the spool: it must still be what was unpacked.
func (t *tree) content(n *node) ([]byte, error) {
	b := make([]byte, n.size)
	if _, err := t.spool.ReadAt(b, n.offset); err != nil && (n.size > 0 || !errors.Is(err, io.EOF)) {
		return nil, onDisk(err)
	}
	if sha256.Sum256(b) != n.sum {
		return nil, fault.New(fault.Transient, "sources/oci", "look at the disk of the state directory", "%q is not what was unpacked any more", n.name)
	}
	return b, nil
}

func entries(n *node) []fs.DirEntry {
	out := make([]fs.DirEntry, 0, len(n.list))
	for _, e := range n.list {
		out = append(out, fs.FileInfoToDirEntry(fileInfo{e, e.name}))
	}
	return out
}

// fileInfo describes a node under the name that it was asked for by.
type fileInfo struct {
	n    *node
	name string
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.n.size }
func (i fileInfo) ModTime() time.Time { return time.Time{} } // it is the packer's, and says nothing
func (i fileInfo) IsDir() bool        { return i.n.dir }
func (i fileInfo) Sys() any           { return nil }

// Mode implements fs.FileInfo. Nothing is writable.
func (i fileInfo) Mode() fs.FileMode {
	switch {
	case i.n.dir:
		return fs.ModeDir | 0o555
	case i.n.executable:
		return 0o555
	default:
		return 0o444
	}
}
