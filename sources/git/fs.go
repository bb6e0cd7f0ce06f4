package git

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// maxHops bounds the symlinks that one name may pass.
const maxHops = 16

// treeFS is a tree of the mirror as a read-only file system. It reads lazily
// and implements fs.ReadDirFS, fs.ReadFileFS, fs.StatFS, fs.ReadLinkFS and
// sources.Identified.
type treeFS struct {
	m    *mirror
	root plumbing.Hash
}

// Open implements fs.FS. It follows symlinks that stay inside the tree.
func (t *treeFS) Open(name string) (fs.File, error) {
	e, err := t.resolve("open", name)
	if err != nil {
		return nil, err
	}
	info, err := t.info(path.Base(name), e)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if e.mode == modeTree {
		list, err := t.ReadDir(name)
		if err != nil {
			return nil, err
		}
		return sources.OpenDir(info, name, list), nil
	}
	b, err := t.blob("open", name, e)
	if err != nil {
		return nil, err
	}
	return sources.OpenFile(info, b), nil
}

// ReadFile implements fs.ReadFileFS.
func (t *treeFS) ReadFile(name string) ([]byte, error) {
	e, err := t.resolve("read", name)
	if err != nil {
		return nil, err
	}
	if e.mode == modeTree {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a directory")}
	}
	return t.blob("read", name, e)
}

func (t *treeFS) blob(op, name string, e entry) ([]byte, error) {
	if e.mode == modeSubmodule {
		return nil, &fs.PathError{Op: op, Path: name, Err: invalid("copy the files into the repository, or name the other repository as a source of its own",
			"%s is a submodule, which is not fetched", name)}
	}
	b, err := t.m.object(plumbing.BlobObject, e.id, t.m.limits.File)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return b, nil
}

// ReadDir implements fs.ReadDirFS. Entries are sorted by name; symlinks and
// submodules are listed and not followed.
func (t *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := t.resolve("readdir", name)
	if err != nil {
		return nil, err
	}
	if e.mode != modeTree {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	sub, err := t.m.tree(e.id)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	list := make([]fs.DirEntry, 0, len(sub.entries))
	for _, e := range sub.entries {
		list = append(list, dirEntry{t, e})
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// Stat implements fs.StatFS.
func (t *treeFS) Stat(name string) (fs.FileInfo, error) {
	e, err := t.resolve("stat", name)
	if err != nil {
		return nil, err
	}
	return t.info(path.Base(name), e)
}

// Lstat implements fs.ReadLinkFS.
func (t *treeFS) Lstat(name string) (fs.FileInfo, error) {
	e, err := t.lresolve("lstat", name)
	if err != nil {
		return nil, err
	}
	return t.info(path.Base(name), e)
}

// ReadLink implements fs.ReadLinkFS.
func (t *treeFS) ReadLink(name string) (string, error) {
	e, err := t.lresolve("readlink", name)
	if err != nil {
		return "", err
	}
	if e.mode != modeLink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return t.target(name, e)
}

// ContentID implements sources.Identified. The id of a folder covers what the
// symlinks in it lead to, since its tree id does not.
func (t *treeFS) ContentID(name string) (string, error) {
	e, err := t.resolve("id", name)
	if err != nil {
		return "", err
	}
	w := idWalk{t: t, above: map[plumbing.Hash]bool{}, known: map[string]string{}}
	return w.id(name, e)
}

// idWalk computes one content id. It computes each folder once, and follows a
// bounded number of symlinks: ten folders of ten links to each other would
// otherwise take 10^10 steps.
type idWalk struct {
	t     *treeFS
	above map[plumbing.Hash]bool // folders whose id is being computed
	known map[string]string      // ids by path without symlinks
	links int
}

func (w *idWalk) id(name string, e entry) (string, error) {
	own := string(e.mode) + " " + e.id.String()
	if e.mode != modeTree || w.above[e.id] { // a link to a folder above adds nothing new
		return own, nil
	}
	s, err := w.t.m.shape(e.id)
	if err != nil || len(s.links) == 0 {
		return own, err
	}
	dir := w.t.realDir(name)
	if id, ok := w.known[dir]; ok {
		return id, nil
	}
	if len(w.above) > maxHops {
		return "", invalid("remove a symlink", "folder %s: symlinks lead through too many folders", name)
	}
	w.above[e.id] = true
	defer delete(w.above, e.id)
	h := sha256.New()
	io.WriteString(h, own) // a hash never fails
	for _, l := range s.links {
		id, err := w.link(path.Join(dir, l))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "\x00%s\x00%s", l, id) // a hash never fails
	}
	id := fmt.Sprintf("%s+links %x", modeTree, h.Sum(nil))
	w.known[dir] = id
	return id, nil
}

// link returns the id of what the symlink at name leads to.
func (w *idWalk) link(name string) (string, error) {
	if w.links++; w.links > maxMemo {
		return "", invalid("remove symlinks", "there are more than %d symlinks to follow", maxMemo)
	}
	e, err := w.t.resolve("id", name)
	switch {
	case err == nil:
		return w.id(name, e)
	case errors.Is(err, fs.ErrNotExist), fault.KindOf(err) == fault.Invalid:
		return "broken", nil // it cannot be read now; when it can, the id changes
	}
	return "", err
}

// realDir returns the path of a folder without symlinks, so that links inside
// it are resolved from where they are.
func (t *treeFS) realDir(name string) string {
	w := walk{t: t, name: name}
	if _, err := w.to(name, true); err != nil {
		return name
	}
	return w.at
}

// resolve returns the entry that name leads to, through symlinks.
func (t *treeFS) resolve(op, name string) (entry, error) { return t.lookup(op, name, true) }

// lresolve is resolve, except that the last element is not followed.
func (t *treeFS) lresolve(op, name string) (entry, error) { return t.lookup(op, name, false) }

func (t *treeFS) lookup(op, name string, follow bool) (entry, error) {
	if !fs.ValidPath(name) {
		return entry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if len(name) > t.m.limits.PathLength {
		return entry{}, &fs.PathError{Op: op, Path: clip(name), Err: fs.ErrNotExist}
	}
	w := walk{t: t, name: name}
	e, err := w.to(name, follow)
	if err != nil {
		return entry{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return e, nil
}

// walk follows one name from the root, and counts the symlinks it passes.
type walk struct {
	t    *treeFS
	name string // for errors
	hops int
	at   string // where the walk arrived, without symlinks
}

func (w *walk) to(name string, follow bool) (entry, error) {
	cur := entry{mode: modeTree, id: w.t.root}
	w.at = "."
	for name != "." && name != "" {
		first, rest, _ := strings.Cut(name, "/")
		if cur.mode != modeTree {
			return entry{}, fs.ErrNotExist
		}
		dir, err := w.t.m.tree(cur.id)
		if err != nil {
			return entry{}, err
		}
		next, ok := dir.find(first)
		if !ok {
			return entry{}, fs.ErrNotExist
		}
		if next.mode == modeLink && (rest != "" || follow) {
			target, err := w.follow(path.Join(w.at, first), next)
			if err != nil {
				return entry{}, err
			}
			return w.to(path.Join(target, rest), follow)
		}
		w.at = path.Join(w.at, first)
		cur, name = next, rest
	}
	return cur, nil
}

// follow returns where the symlink at link leads, as a path from the root. A
// target with ".." is resolved by its text: the link's own folder has no
// symlink left in it, and a target's are seen when the walk starts over.
func (w *walk) follow(link string, e entry) (string, error) {
	if w.hops++; w.hops > maxHops {
		return "", invalid("remove the loop", "symlink %s is one of more than %d in a row, or of a loop", link, maxHops)
	}
	target, err := w.t.target(link, e)
	if err != nil {
		return "", err
	}
	outside := invalid("point the symlink at a file of the repository", "symlink %s points outside the repository (%q)", link, clip(target))
	if path.IsAbs(target) || strings.ContainsAny(target, "\\\x00") || target == "" {
		return "", outside
	}
	// Elements are taken one by one: path.Join would turn "a/../../.." into
	// something that hides where it passed.
	at := path.Dir(link)
	for el := range strings.SplitSeq(target, "/") {
		switch el {
		case "", ".":
		case "..":
			if at == "." {
				return "", outside
			}
			if at, err = w.up(at); err != nil {
				return "", err
			}
		default:
			at = path.Join(at, el)
		}
	}
	return at, nil
}

// up returns the folder above at. Where at passes through another symlink, the
// folder above is that of the symlink's target, as on a real file system.
func (w *walk) up(at string) (string, error) {
	sub := walk{t: w.t, name: w.name, hops: w.hops}
	e, err := sub.to(at, true)
	w.hops = sub.hops
	if err != nil {
		return "", err
	}
	if e.mode != modeTree {
		return "", fs.ErrNotExist
	}
	if sub.at == "." {
		return "", invalid("point the symlink at a file of the repository", "%s: a symlink points outside the repository", w.name)
	}
	return path.Dir(sub.at), nil
}

func (t *treeFS) target(link string, e entry) (string, error) {
	b, err := t.m.object(plumbing.BlobObject, e.id, int64(t.m.limits.PathLength))
	if err != nil {
		return "", fmt.Errorf("symlink %s: %w", link, err)
	}
	return string(b), nil
}

func (t *treeFS) info(name string, e entry) (fs.FileInfo, error) {
	i := fileInfo{name: name, mode: fileMode(e.mode)}
	if e.mode == modeTree || e.mode == modeSubmodule {
		return i, nil
	}
	var err error
	i.size, err = t.m.size(e.id)
	return i, err
}

// fileMode translates Git's modes. Nothing is writable. A submodule is listed
// as irregular, so that nobody takes it for a folder or a file.
func fileMode(m mode) fs.FileMode {
	switch m {
	case modeTree:
		return fs.ModeDir | 0o555
	case modeExec:
		return 0o555
	case modeLink:
		return fs.ModeSymlink | 0o777
	case modeSubmodule:
		return fs.ModeIrregular
	}
	return 0o444
}

type fileInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return time.Time{} } // Git keeps none
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }

type dirEntry struct {
	t *treeFS
	e entry
}

func (d dirEntry) Name() string               { return d.e.name }
func (d dirEntry) IsDir() bool                { return d.e.mode == modeTree }
func (d dirEntry) Type() fs.FileMode          { return fileMode(d.e.mode).Type() }
func (d dirEntry) Info() (fs.FileInfo, error) { return d.t.info(d.e.name, d.e) }
func (d dirEntry) String() string             { return fs.FormatDirEntry(d) }
