package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/holdfast-dev/holdfast/sources"
)

const (
	branchPrefix = "refs/holdfast/heads/"
	keepPrefix   = "refs/holdfast/keep/"

	maxCommit = 1 << 20 // bytes of one commit object
	maxTree   = 8 << 20 // bytes of one tree object
	maxHaves  = 256     // commits that we say we have

	// Packs up to these become loose objects, as with Git's fetch.unpackLimit:
	// a pack for each commit would slow every look-up in time.
	unpackObjects = 1000
	unpackBytes   = 32 << 20
)

// mirror is the bare repository that keeps what was fetched.
type mirror struct {
	dir    string
	limits sources.Limits

	mu    sync.Mutex // go-git's storage is not safe for concurrent use
	store *filesystem.Storage

	memo memo
}

func newMirror(dir string, l sources.Limits) *mirror {
	return &mirror{dir: dir, limits: l, memo: memo{trees: map[plumbing.Hash]*tree{}, shapes: map[plumbing.Hash]*shape{}}}
}

// with runs f on the opened storage, alone.
func (m *mirror) with(f func(*filesystem.Storage) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store == nil {
		st, err := openStore(m.dir)
		if err != nil {
			return fmt.Errorf("mirror %s: %w", m.dir, err)
		}
		m.store = st
	}
	return f(m.store)
}

func openStore(dir string) (*filesystem.Storage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// What a crash left behind in the middle of a transfer.
	for _, pattern := range []string{"incoming-*", "objects/pack/tmp_*"} {
		left, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	if err := dropEmptyRefs(dir); err != nil {
		return nil, err
	}
	st := filesystem.NewStorageWithOptions(osfs.New(dir, osfs.WithBoundOS()), cache.NewObjectLRU(16*cache.MiByte),
		filesystem.Options{KeepDescriptors: true, MaxOpenDescriptors: 16})
	_, err := os.Stat(filepath.Join(dir, "HEAD"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = gogit.Init(st, nil)
	}
	return st, err
}

func (m *mirror) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store == nil {
		return nil
	}
	st := m.store
	m.store = nil
	return st.Close()
}

// object returns the content of an object of at most `most` bytes, which is
// guaranteed to hash to id. It wraps plumbing.ErrObjectNotFound.
func (m *mirror) object(t plumbing.ObjectType, id plumbing.Hash, most int64) ([]byte, error) {
	var b []byte
	err := m.with(func(st *filesystem.Storage) (err error) {
		b, err = readObject(st, t, id, most)
		return err
	})
	if err != nil {
		return nil, err
	}
	if got := plumbing.ComputeHash(t, b); got != id {
		return nil, invalid("delete the mirror folder; it is fetched again", "object %s is damaged: its content hashes to %s", id, got)
	}
	return b, nil
}

// readObject reads one object, whose size is checked before its content is held.
func readObject(st storer.EncodedObjectStorer, t plumbing.ObjectType, id plumbing.Hash, most int64) (b []byte, err error) {
	size, err := objectSize(st, id)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", t, id, err)
	}
	if size > most {
		return nil, tooLarge(t, id, size, most)
	}
	o, err := st.EncodedObject(t, id)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", t, id, err)
	}
	r, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	b, err = io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, tooLarge(t, id, int64(len(b)), most)
	}
	return b, err
}

// objectSize returns the size that an object says it has. go-git's own answer about a
// loose object leaves its file open until the next garbage collection (v5.19,
// storage/filesystem, encodedObjectSizeFromUnpacked).
func objectSize(st storer.EncodedObjectStorer, id plumbing.Hash) (size int64, err error) {
	files, ok := st.(interface{ Filesystem() billy.Filesystem })
	if !ok {
		return st.EncodedObjectSize(id)
	}
	name := id.String()
	f, err := files.Filesystem().Open(path.Join("objects", name[:2], name[2:]))
	if errors.Is(err, fs.ErrNotExist) { // it is in a pack
		return st.EncodedObjectSize(id)
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := objfile.NewReader(f)
	if err != nil {
		return 0, err
	}
	_, size, err = r.Header()
	return size, errors.Join(err, r.Close())
}

func tooLarge(t plumbing.ObjectType, id plumbing.Hash, size, most int64) error {
	return invalid("keep large files out of the repository, or raise the source's limits", "%s %s has %d bytes, the limit is %d", t, id, size, most)
}

// commit returns a commit's raw bytes.
func (m *mirror) commit(id plumbing.Hash) ([]byte, error) {
	return m.object(plumbing.CommitObject, id, maxCommit)
}

// rootTree returns the tree of a commit.
func (m *mirror) rootTree(id plumbing.Hash) (plumbing.Hash, error) {
	raw, err := m.commit(id)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	root, _, err := parseCommit(raw)
	if err != nil {
		return plumbing.ZeroHash, invalid("rewrite the commit", "commit %s: %w", id, err)
	}
	return root, nil
}

// parseCommit reads the tree and the parents by position, as Git does: the
// first line is the tree and the parents follow it. Nothing further down can
// change them (a second tree header is ignored here and refused by verify/commit).
func parseCommit(raw []byte) (root plumbing.Hash, parents []plumbing.Hash, err error) {
	id := func(line []byte, key string) (plumbing.Hash, bool) {
		rest, ok := bytes.CutPrefix(line, []byte(key+" "))
		if !ok || !commitID.Match(rest) {
			return plumbing.ZeroHash, false
		}
		return plumbing.NewHash(string(rest)), true
	}
	line, rest, _ := bytes.Cut(raw, []byte("\n"))
	root, ok := id(line, "tree")
	if !ok {
		return root, nil, errors.New("it does not begin with its tree")
	}
	for {
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		p, ok := id(line, "parent")
		if !ok {
			return root, parents, nil
		}
		parents = append(parents, p)
	}
}

// ref returns the commit a ref of ours names, or the zero hash.
func (m *mirror) ref(name string) (plumbing.Hash, error) {
	var id plumbing.Hash
	err := m.with(func(st *filesystem.Storage) error {
		r, err := st.Reference(plumbing.ReferenceName(name))
		if errors.Is(err, plumbing.ErrReferenceNotFound) {
			return nil
		}
		if err == nil {
			id = r.Hash()
		}
		return err
	})
	return id, err
}

// setRef makes a ref name a commit, so that a crash leaves the old or the new
// one. go-git empties the file before it writes, and a ref that is empty stops
// a repository for good.
func (m *mirror) setRef(name string, id plumbing.Hash) error {
	return m.with(func(*filesystem.Storage) error {
		path := filepath.Join(m.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.CreateTemp(m.dir, "incoming-*")
		if err != nil {
			return err
		}
		_, err = f.WriteString(id.String() + "\n")
		if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			return errors.Join(err, os.Remove(f.Name()))
		}
		return nil
	})
}

// dropEmptyRefs removes refs that a crash of the machine left empty: what they
// named is fetched again.
func dropEmptyRefs(dir string) error {
	err := filepath.WalkDir(filepath.Join(dir, "refs", "holdfast"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Size() > 0 {
			return err
		}
		return os.Remove(path) //nolint:gosec // the folder is ours alone, and what goes is empty
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tips returns the commits that our refs name: the ones that are complete.
func (m *mirror) tips() ([]plumbing.Hash, error) {
	var ids []plumbing.Hash
	err := m.each(func(r *plumbing.Reference) {
		n := r.Name().String()
		if strings.HasPrefix(n, branchPrefix) || strings.HasPrefix(n, keepPrefix) || strings.HasPrefix(n, keptNote) || n == keptHead {
			ids = append(ids, r.Hash())
		}
	})
	return ids, err
}

// each calls f for each ref of the mirror.
func (m *mirror) each(f func(*plumbing.Reference)) error {
	return m.with(func(st *filesystem.Storage) error {
		refs, err := st.IterReferences()
		if err != nil {
			return err
		}
		return refs.ForEach(func(r *plumbing.Reference) error {
			f(r)
			return nil
		})
	})
}

// haves returns commits to offer to a server: our tips, and their ancestors so
// that a rewritten branch finds common ground.
func (m *mirror) haves() ([]plumbing.Hash, error) {
	queue, err := m.tips()
	if err != nil {
		return nil, err
	}
	seen := map[plumbing.Hash]bool{}
	var out []plumbing.Hash
	for len(queue) > 0 && len(out) < maxHaves {
		id := queue[0]
		queue = queue[1:]
		if seen[id] {
			continue
		}
		seen[id] = true
		raw, err := m.commit(id)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
		_, parents, err := parseCommit(raw)
		if err != nil {
			return nil, err
		}
		queue = append(queue, parents...)
	}
	return out, nil
}

// connected makes sure that tip came with its whole tree, and with every
// ancestor up to commits that were complete before. A ref is set only then.
func (m *mirror) connected(ctx context.Context, tip plumbing.Hash) error {
	done := map[plumbing.Hash]bool{}
	tips, err := m.tips()
	if err != nil {
		return err
	}
	for _, id := range tips {
		done[id] = true
	}
	for stack := []plumbing.Hash{tip}; len(stack) > 0; {
		id := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if done[id] {
			continue
		}
		done[id] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, err := m.commit(id)
		if err != nil {
			return err
		}
		root, parents, err := parseCommit(raw)
		if err != nil {
			return invalid("rewrite the commit", "commit %s: %w", id, err)
		}
		if id == tip {
			if _, err := m.shape(root); err != nil {
				return err
			}
		}
		stack = append(stack, parents...)
	}
	return nil
}

// ingest stores the objects of a pack that a server sent. go-git computes each
// object's id from its content, so that nothing can be stored under a false one.
func (m *mirror) ingest(ctx context.Context, pack io.Reader) (err error) {
	if err := m.with(func(*filesystem.Storage) error { return nil }); err != nil {
		return err // the folder could not be made
	}
	f, err := os.CreateTemp(m.dir, "incoming-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	most := transfer(m.limits)
	n, err := io.Copy(f, io.LimitReader(&contextReader{ctx, pack}, most+1))
	if err != nil {
		return err
	}
	if n > most {
		return invalid("raise the source's limits if the repository is meant to be this large", "the pack has more than %d bytes", most)
	}
	objects, total, err := measure(f, m.limits.Bytes)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return m.with(func(st *filesystem.Storage) error {
		if objects > unpackObjects || total > unpackBytes {
			return packfile.WritePackfileToObjectStorage(st, f)
		}
		return unpack(st, f)
	})
}

// contextReader stops between reads when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// measure reads a pack without building its objects and returns how many there
// are and how many bytes they unfold to. A delta of a few bytes can unfold to
// gigabytes, so the size that it announces counts.
func measure(f io.ReadSeeker, most int64) (objects int, total int64, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, 0, err
	}
	s := packfile.NewScanner(f)
	_, n, err := s.Header()
	if err != nil {
		return 0, 0, fmt.Errorf("pack: %w", err)
	}
	for range n {
		h, err := s.NextObjectHeader()
		if err != nil {
			return 0, 0, fmt.Errorf("pack: %w", err)
		}
		size := h.Length
		if size > most {
			return 0, 0, tooLarge(h.Type, h.Reference, size, most)
		}
		if h.Type == plumbing.OFSDeltaObject || h.Type == plumbing.REFDeltaObject {
			head := &headWriter{}
			if _, _, err := s.NextObject(head); err != nil {
				return 0, 0, fmt.Errorf("pack: %w", err)
			}
			size = head.target()
		}
		if size < 0 || size > most {
			return 0, 0, tooLarge(h.Type, h.Reference, size, most)
		}
		total += size
		objects++
	}
	return objects, total, nil
}

// headWriter keeps the first bytes that are written to it.
type headWriter struct {
	b [20]byte
	n int
}

// Write implements io.Writer.
func (w *headWriter) Write(p []byte) (int, error) {
	w.n += copy(w.b[w.n:], p)
	return len(p), nil
}

// target returns the size that a delta announces for its result: the second
// of the two numbers it begins with, 7 bits a byte, least significant first
// (gitformat-pack, "Deltified representation"). It is negative where that is no number.
func (w *headWriter) target() int64 {
	b := w.b[:w.n]
	number := func() int64 {
		var v int64
		for shift := 0; shift < 63; shift += 7 {
			if len(b) == 0 {
				return -1
			}
			c := b[0]
			b = b[1:]
			v |= int64(c&0x7f) << shift
			if c&0x80 == 0 {
				return v
			}
		}
		return -1
	}
	if number() < 0 {
		return -1
	}
	return number()
}

// unpack stores a small pack's objects one by one, what is named before what
// names it, so that a crash leaves no tree without its files and no commit
// without its tree.
func unpack(st *filesystem.Storage, pack io.Reader) error {
	mem := memory.NewStorage()
	p, err := packfile.NewParserWithStorage(packfile.NewScanner(pack), mem)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if _, err := p.Parse(); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, t := range []plumbing.ObjectType{plumbing.BlobObject, plumbing.TreeObject, plumbing.CommitObject, plumbing.TagObject} {
		it, err := mem.IterEncodedObjects(t)
		if err != nil {
			return err
		}
		err = it.ForEach(func(o plumbing.EncodedObject) error {
			_, err := st.SetEncodedObject(o)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
