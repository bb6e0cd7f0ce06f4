package git

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// mode is a tree entry's mode; Git has these five, and a group-writable relic.
type mode string

const (
	modeTree      mode = "40000"
	modeFile      mode = "100644"
	modeFileGroup mode = "100664"
	modeExec      mode = "100755"
	modeLink      mode = "120000"
	modeSubmodule mode = "160000"
)

const (
	maxDepth = 128     // folders inside folders
	maxMemo  = 1 << 16 // entries of a memo before it is dropped
)

var errTooDeep = invalid("flatten the folders", "folders are nested more than %d deep", maxDepth)

type entry struct {
	name string
	key  string // what it is sorted by: of a folder its name with a slash
	mode mode
	id   plumbing.Hash
}

// tree is one folder, its entries in Git's order.
type tree struct{ entries []entry }

// find returns the entry called name. A folder stands where its name with a slash would.
func (t *tree) find(name string) (entry, bool) {
	for _, key := range []string{name, name + "/"} {
		i, ok := slices.BinarySearchFunc(t.entries, key, func(e entry, key string) int { return cmp.Compare(e.key, key) })
		if ok && t.entries[i].name == name {
			return t.entries[i], true
		}
	}
	return entry{}, false
}

// parseTree parses a tree object: "mode SP name NUL id", again and again. It
// refuses names that Git would not check out, and entries that are repeated or
// out of order, which two readers could understand differently.
func parseTree(raw []byte) (*tree, error) {
	t := &tree{}
	seen := map[string]bool{}
	last := ""
	for len(raw) > 0 {
		head, rest, ok := bytes.Cut(raw, []byte{0})
		if !ok || len(rest) < 20 {
			return nil, errors.New("entry is cut off")
		}
		m, name, ok := strings.Cut(string(head), " ")
		if !ok {
			return nil, errors.New("entry has no mode")
		}
		e := entry{name: name, mode: mode(m), id: plumbing.Hash(rest[:20])}
		switch e.mode {
		case modeTree, modeFile, modeFileGroup, modeExec, modeLink, modeSubmodule:
		default:
			return nil, fmt.Errorf("entry %q has mode %q", clip(name), clip(m))
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		if e.key = name; e.mode == modeTree {
			e.key += "/" // base_name_compare: a folder sorts as if its name ended in a slash
		}
		if seen[name] || e.key <= last {
			return nil, fmt.Errorf("entry %q is repeated or out of order", clip(name))
		}
		seen[name], last = true, e.key
		t.entries = append(t.entries, e)
		raw = rest[20:]
	}
	return t, nil
}

// checkName refuses names that mean something else than a file in this folder.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("name %q is not allowed", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8", clip(name))
	case isDotGit(name):
		return fmt.Errorf("name %q stands for .git", clip(name))
	}
	for _, r := range name {
		if r == '/' || r == '\\' || unicode.IsControl(r) {
			return fmt.Errorf("name %q has a slash, a backslash or a control character", clip(name))
		}
	}
	return nil
}

// isDotGit reports whether a file system could take name for ".git": ASCII
// case, HFS+'s ignored code points, NTFS's short name, trailing dots, spaces and
// streams (Git's is_hfs_dotgit and is_ntfs_dotgit).
func isDotGit(name string) bool {
	name, _, _ = strings.Cut(name, ":")
	var b strings.Builder
	for _, r := range name {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
		default:
			b.WriteRune(unicode.ToLower(r))
		}
	}
	switch strings.TrimRight(b.String(), ". ") {
	case ".git", "git~1":
		return true
	}
	return false
}

// shape is what the limits and the content ids need to know about a folder,
// with everything below it.
type shape struct {
	files   int
	bytes   int64
	longest int      // bytes of the longest path below
	links   []string // paths of the symlinks below, sorted
}

// memo remembers by id, so that a new commit costs its change.
type memo struct {
	mu     sync.Mutex
	trees  map[plumbing.Hash]*tree
	shapes map[plumbing.Hash]*shape
}

func recall[V any](m *memo, of map[plumbing.Hash]V, id plumbing.Hash) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := of[id]
	return v, ok
}

func remember[V any](m *memo, of map[plumbing.Hash]V, id plumbing.Hash, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(of) >= maxMemo {
		clear(of)
	}
	of[id] = v
}

// tree returns the parsed tree id; the zero hash is the empty tree.
func (m *mirror) tree(id plumbing.Hash) (*tree, error) {
	if id.IsZero() {
		return &tree{}, nil
	}
	if t, ok := recall(&m.memo, m.memo.trees, id); ok {
		return t, nil
	}
	raw, err := m.object(plumbing.TreeObject, id, maxTree)
	if err != nil {
		return nil, err
	}
	t, err := parseTree(raw)
	if err != nil {
		return nil, invalid("rename the file", "tree %s: %w", id, err)
	}
	remember(&m.memo, m.memo.trees, id, t)
	return t, nil
}

// shape measures the tree id. It reads the header of each blob below it, which
// also proves that the blob is there.
func (m *mirror) shape(id plumbing.Hash) (*shape, error) { return m.shapeAt(id, 0) }

func (m *mirror) shapeAt(id plumbing.Hash, depth int) (*shape, error) {
	if s, ok := recall(&m.memo, m.memo.shapes, id); ok {
		return s, nil
	}
	if depth > maxDepth {
		return nil, errTooDeep
	}
	t, err := m.tree(id)
	if err != nil {
		return nil, err
	}
	s := &shape{}
	for _, e := range t.entries {
		length := len(e.name)
		switch e.mode {
		case modeTree:
			sub, err := m.shapeAt(e.id, depth+1)
			if err != nil {
				return nil, err
			}
			// A few trees that name each other many times can stand for more
			// files than memory has room for; saturate instead of adding up.
			s.files = min(s.files+sub.files, m.limits.Files+1)
			s.bytes = min(s.bytes+sub.bytes, m.limits.Bytes+1)
			length += 1 + sub.longest
			for _, l := range sub.links {
				if len(s.links) <= m.limits.Files {
					s.links = append(s.links, e.name+"/"+l)
				}
			}
		case modeSubmodule:
			s.files++
		default:
			size, err := m.size(e.id)
			if err != nil {
				return nil, err
			}
			s.files++
			s.bytes = min(s.bytes+size, m.limits.Bytes+1)
			if e.mode == modeLink {
				s.links = append(s.links, e.name)
			}
		}
		s.longest = max(s.longest, length)
	}
	slices.Sort(s.links)
	remember(&m.memo, m.memo.shapes, id, s)
	return s, nil
}

func (m *mirror) size(id plumbing.Hash) (n int64, err error) {
	err = m.with(func(st *filesystem.Storage) error {
		n, err = st.EncodedObjectSize(id)
		if err != nil {
			err = fmt.Errorf("blob %s: %w", id, err)
		}
		return err
	})
	return n, err
}

// withinLimits refuses a tree that is larger than the limits.
func (m *mirror) withinLimits(root plumbing.Hash) error {
	s, err := m.shape(root)
	if err != nil {
		return err
	}
	const hint = "make the repository smaller, or raise the source's limits"
	switch {
	case s.files > m.limits.Files:
		return invalid(hint, "the tree has more than %d files", m.limits.Files)
	case s.bytes > m.limits.Bytes:
		return invalid(hint, "the tree's files have more than %d bytes", m.limits.Bytes)
	case s.longest > m.limits.PathLength:
		return invalid(hint, "a path has %d bytes, the limit is %d", s.longest, m.limits.PathLength)
	}
	return nil
}

// differ lists the paths that differ between two trees. It opens only trees
// whose ids differ.
type differ struct {
	ctx   context.Context
	m     *mirror
	paths []string
}

func (d *differ) sorted() []string {
	slices.Sort(d.paths)
	return slices.Compact(d.paths)
}

func (d *differ) trees(dir string, from, to plumbing.Hash) error {
	if from == to {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if strings.Count(dir, "/") > maxDepth {
		return errTooDeep
	}
	a, err := d.m.tree(from)
	if err != nil {
		return err
	}
	b, err := d.m.tree(to)
	if err != nil {
		return err
	}
	before := make(map[string]entry, len(a.entries))
	for _, e := range a.entries {
		before[e.name] = e
	}
	for _, e := range b.entries {
		old := before[e.name]
		delete(before, e.name)
		if err := d.entry(path.Join(dir, e.name), old, e); err != nil {
			return err
		}
	}
	for name, old := range before {
		if err := d.entry(path.Join(dir, name), old, entry{}); err != nil {
			return err
		}
	}
	return nil
}

// entry compares one name; an entry without a mode is absent.
func (d *differ) entry(name string, a, b entry) error {
	if a.mode == b.mode && a.id == b.id {
		return nil
	}
	if len(name) > d.m.limits.PathLength {
		return invalid("use shorter names, or raise the source's limits", "a path has %d bytes, the limit is %d", len(name), d.m.limits.PathLength)
	}
	var from, to plumbing.Hash
	file := false
	for _, side := range []struct {
		e  entry
		id *plumbing.Hash
	}{{a, &from}, {b, &to}} {
		switch side.e.mode {
		case "":
		case modeTree:
			*side.id = side.e.id
		default:
			file = true
		}
	}
	if file || isEmptyTree(from) || isEmptyTree(to) {
		d.paths = append(d.paths, name)
	}
	if len(d.paths) > d.m.limits.Files {
		return invalid("split the change, or raise the source's limits", "the change has more than %d paths", d.m.limits.Files)
	}
	return d.trees(name, from, to)
}

// isEmptyTree reports whether id is the tree without entries, which Git does
// not write but an attacker can: adding one is a change, if an invisible one.
func isEmptyTree(id plumbing.Hash) bool {
	return id.String() == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
}
