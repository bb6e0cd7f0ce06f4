package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/mod/semver"
)

const (
	tagPrefix  = "refs/tags/"
	notePrefix = "refs/notes/"

	// Where the mirror keeps what it was brought.
	keptTag  = "refs/holdfast/tags/"  // a tag's own object
	keptHead = "refs/holdfast/tagged" // the commit that the newest tag leads to
	keptNote = "refs/holdfast/notes/"
	accepted = "refs/holdfast/accepted/" // a commit's notes when it was accepted

	maxTag   = 1 << 20 // bytes of one tag object
	maxNotes = 1 << 20 // bytes of the notes of one commit
)

// followed says which refs of the other side count.
type followed struct {
	branch string   // without refs/heads/; empty if tags are followed
	tags   string   // pattern of tags; empty if a branch is
	notes  []string // full names of refs of notes
}

// head is the ref of the mirror that names the newest commit.
func (f followed) head() string {
	if f.branch != "" {
		return branchPrefix + f.branch
	}
	return keptHead
}

// String names what is followed, for people.
func (f followed) String() string {
	if f.branch != "" {
		return "branch " + f.branch
	}
	return "the newest tag like " + f.tags
}

// tips is where the refs that are followed point.
type tips struct {
	commit plumbing.Hash
	tag    string        // what leads to commit, without refs/tags/; empty for a branch
	object plumbing.Hash // the tag's own; the commit's for a lightweight tag and a branch
	notes  map[string]plumbing.Hash
}

// all returns what has to be there, each once.
func (t tips) all() []plumbing.Hash {
	out := []plumbing.Hash{t.object}
	for _, id := range t.notes {
		out = append(out, id)
	}
	return out
}

// pick finds the tips among the refs of the other side. peel returns the commit
// that a tag leads to.
func (f followed) pick(refs map[string]plumbing.Hash, peel func(ref string) (plumbing.Hash, error)) (tips, error) {
	t := tips{notes: map[string]plumbing.Hash{}}
	for _, n := range f.notes {
		if id := refs[n]; !id.IsZero() {
			t.notes[n] = id
		}
	}
	if f.branch != "" {
		t.commit = refs[plumbing.NewBranchReferenceName(f.branch).String()]
		t.object = t.commit
		if t.commit.IsZero() {
			return t, errNoBranch
		}
		return t, nil
	}
	for ref := range refs {
		if name, ok := strings.CutPrefix(ref, tagPrefix); ok && isVersion(f.tags, name) && newer(name, t.tag) {
			t.tag = name
		}
	}
	if t.tag == "" {
		return t, errNoTag
	}
	t.object = refs[tagPrefix+t.tag]
	var err error
	t.commit, err = peel(tagPrefix + t.tag)
	return t, err
}

var errNoTag = errors.New("no tag fits the pattern")

// version returns the semantic version that a tag's name ends in, with the "v"
// that the name may leave out.
func version(name string) string {
	v := path.Base(name)
	if !strings.HasPrefix(v, "v") {
		v = "v" + v
	}
	return v
}

// isVersion reports whether a tag fits a pattern and names a version. One before
// a release counts only where the pattern has a "-" that asks for it.
func isVersion(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	v := version(name)
	return ok && err == nil && branchName.MatchString(name) && plumbing.NewTagReferenceName(name).Validate() == nil &&
		semver.IsValid(v) && (semver.Prerelease(v) == "" || strings.Contains(pattern, "-"))
}

// newer reports whether a tag's version comes after another's; the empty name is
// before all. Of names for one version the greater string is the newer.
func newer(a, b string) bool {
	if b == "" {
		return true
	}
	if c := semver.Compare(version(a), version(b)); c != 0 {
		return c > 0
	}
	return a > b
}

// checkTagPattern refuses a pattern that could match no version.
func checkTagPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" || strings.HasPrefix(pattern, "refs/") {
		return fmt.Errorf("tag pattern %q is not one, such as v*", pattern)
	}
	return nil
}

func checkNotesRef(ref string) error {
	if !strings.HasPrefix(ref, notePrefix) || !branchName.MatchString(ref) || plumbing.ReferenceName(ref).Validate() != nil {
		return fmt.Errorf("%q is not a ref of notes, such as refs/notes/commits", ref)
	}
	return nil
}

// lacks returns which tips are not among haves, which are complete, nor named by
// a ref of a tag.
func (m *mirror) lacks(t tips, haves []plumbing.Hash) ([]plumbing.Hash, error) {
	tags, err := m.refs(keptTag)
	if err != nil {
		return nil, err
	}
	var out []plumbing.Hash
	for _, id := range t.all() {
		if !slices.Contains(haves, id) && !slices.Contains(out, id) && (t.tag == "" || tags[t.tag] != id) {
			out = append(out, id)
		}
	}
	return out, nil
}

// keep makes the mirror's refs name tips that came with all they reach. What
// leads to the commit comes last: it says that all is there.
func (m *mirror) keep(ctx context.Context, f followed, t tips) error {
	if err := m.connected(ctx, t.commit); err != nil {
		return err
	}
	if t.tag != "" {
		if _, err := m.tagged(t.object); err != nil {
			return err
		}
		if err := m.setRef(keptTag+t.tag, t.object); err != nil {
			return err
		}
	}
	for ref, id := range t.notes {
		if err := m.connected(ctx, id); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		if err := m.setRef(keptNote+strings.TrimPrefix(ref, notePrefix), id); err != nil {
			return err
		}
	}
	return m.setRef(f.head(), t.commit)
}

// tag returns the raw bytes of a tag object, and nil if id names a commit.
func (m *mirror) tag(id plumbing.Hash) ([]byte, error) {
	if _, err := m.commit(id); err == nil {
		return nil, nil
	}
	return m.object(plumbing.TagObject, id, maxTag)
}

// tagged returns what a tag names: an annotated tag's object is on its first
// line. It may be another tag.
func (m *mirror) tagged(id plumbing.Hash) (plumbing.Hash, error) {
	raw, err := m.tag(id)
	if err != nil || raw == nil {
		return id, err
	}
	return parseTagged(raw)
}

func parseTagged(raw []byte) (plumbing.Hash, error) {
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("object "))
	if !ok || !commitID.Match(rest) {
		return plumbing.ZeroHash, errors.New("the tag does not begin with its object")
	}
	return plumbing.NewHash(string(rest)), nil
}

// newestTag returns the newest of the tags, by name, that match a pattern and
// name the commit id.
func (m *mirror) newestTag(tags map[string]plumbing.Hash, pattern string, id plumbing.Hash) (string, string, []byte, error) {
	newest := ""
	for name, object := range tags {
		if !isVersion(pattern, name) || !newer(name, newest) {
			continue
		}
		if names, err := m.tagged(object); err == nil && names == id {
			newest = name
		}
	}
	if newest == "" {
		return "", "", nil, fmt.Errorf("no tag that fits %s leads to commit %s: %w", pattern, id, fs.ErrNotExist)
	}
	raw, err := m.tag(tags[newest])
	return newest, tags[newest].String(), raw, err
}

// refs returns the refs of the mirror below a prefix, without it.
func (m *mirror) refs(prefix string) (map[string]plumbing.Hash, error) {
	out := map[string]plumbing.Hash{}
	err := m.each(func(r *plumbing.Reference) {
		if name, ok := strings.CutPrefix(r.Name().String(), prefix); ok {
			out[name] = r.Hash()
		}
	})
	return out, err
}

// note returns the blob with what a commit of notes says about the object id, and
// the zero hash if that is nothing. Git spreads notes over folders of two digits
// once they are many.
// https://git-scm.com/docs/git-notes
func (m *mirror) note(notes plumbing.Hash, id string) (plumbing.Hash, error) {
	root, err := m.rootTree(notes)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	for at, rest := root, id; ; {
		t, err := m.tree(at)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		if e, ok := t.find(rest); ok && e.mode != modeTree {
			return e.id, nil
		}
		if len(rest) <= 2 {
			return plumbing.ZeroHash, nil
		}
		e, ok := t.find(rest[:2])
		if !ok || e.mode != modeTree {
			return plumbing.ZeroHash, nil
		}
		at, rest = e.id, rest[2:]
	}
}

// file returns the content of a regular file of a commit. Symlinks are not
// followed, neither to the file nor on the way.
func (m *mirror) file(commit plumbing.Hash, name string) ([]byte, error) {
	at, err := m.rootTree(commit)
	if err != nil {
		return nil, err
	}
	missing := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	folders, last := path.Split(name)
	for folder := range strings.SplitSeq(strings.TrimSuffix(folders, "/"), "/") {
		if folder == "" {
			continue
		}
		t, err := m.tree(at)
		if err != nil {
			return nil, err
		}
		e, ok := t.find(folder)
		if !ok || e.mode != modeTree {
			return nil, missing
		}
		at = e.id
	}
	t, err := m.tree(at)
	if err != nil {
		return nil, err
	}
	switch e, ok := t.find(last); {
	case !ok, e.mode == modeTree:
		return nil, missing
	case e.mode == modeLink || e.mode == modeSubmodule:
		return nil, invalid("make it a file of its own", "%s is not a regular file", name)
	default:
		return m.object(plumbing.BlobObject, e.id, m.limits.File)
	}
}

// File returns the content of a regular file in a commit's tree. Without one the
// error wraps fs.ErrNotExist; a symlink is fault.Invalid.
func (s *Source) File(ctx context.Context, id, name string) ([]byte, error) {
	h, err := parseID(id)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, s.fail(ctx, "File", err)
	}
	b, err := s.mirror.file(h, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return b, s.fail(ctx, "File", err)
}

// Notes returns what the notes under a ref, one of [Config.Notes], say about a
// commit: as they were when it was fetched last, and what [Source.KeepNotes] kept,
// if that differs.
func (s *Source) Notes(ctx context.Context, ref, id string) ([][]byte, error) {
	if _, err := parseID(id); err != nil {
		return nil, s.fail(ctx, "Notes", err)
	}
	name := strings.TrimPrefix(ref, notePrefix)
	now, failed := s.mirror.noteNow(name, id)
	kept, err := s.mirror.ref(accepted + name + "/" + id)
	if err != nil {
		return nil, s.fail(ctx, "Notes", err)
	}
	var out [][]byte
	for _, blob := range []plumbing.Hash{now, kept} {
		if blob.IsZero() || len(out) > 0 && now == kept {
			continue
		}
		b, err := s.mirror.object(plumbing.BlobObject, blob, maxNotes)
		if err != nil {
			failed = err
			continue
		}
		out = append(out, b)
	}
	if len(out) > 0 { // whoever breaks the notes takes nothing away from what was accepted
		return out, nil
	}
	return nil, s.fail(ctx, "Notes", failed)
}

// noteNow returns the blob with what the notes of a name say about a commit.
func (m *mirror) noteNow(name, id string) (plumbing.Hash, error) {
	notes, err := m.ref(keptNote + name)
	if err != nil || notes.IsZero() {
		return plumbing.ZeroHash, err
	}
	return m.note(notes, id)
}

// KeepNotes keeps what the notes say now about the commits that were accepted,
// from the commit from (exclusive; empty: the first) to head along first parents,
// for when they are judged again: whoever may push notes may take them away. What
// was kept before stays.
func (s *Source) KeepNotes(ctx context.Context, from, head string) error {
	if len(s.refs.notes) == 0 {
		return nil
	}
	for id, n := head, 0; id != "" && n < maxKept; n++ {
		for _, ref := range s.refs.notes {
			if err := s.mirror.keepNote(strings.TrimPrefix(ref, notePrefix), id); err != nil {
				return s.fail(ctx, "KeepNotes", err)
			}
		}
		raw, err := s.Commit(ctx, id)
		if err != nil {
			return err
		}
		_, parents, err := parseCommit(raw)
		if err != nil {
			return s.fail(ctx, "KeepNotes", err)
		}
		id = ""
		if head != from && len(parents) > 0 && parents[0].String() != from {
			id = parents[0].String()
		}
	}
	return nil
}

// maxKept is how many commits' notes are kept at once.
const maxKept = 1000

func (m *mirror) keepNote(name, id string) error {
	ref := accepted + name + "/" + id
	if kept, err := m.ref(ref); err != nil || !kept.IsZero() {
		return err
	}
	blob, err := m.noteNow(name, id)
	if err != nil || blob.IsZero() {
		return err
	}
	return m.setRef(ref, blob)
}

// Tag returns the newest tag that matches a pattern and names a commit: its name,
// the id and the raw bytes of its object. A lightweight tag has the commit's id
// and no bytes. Without a tag the error wraps fs.ErrNotExist.
func (s *Source) Tag(ctx context.Context, pattern, id string) (name, object string, raw []byte, err error) {
	h, err := parseID(id)
	if err != nil {
		return "", "", nil, s.fail(ctx, "Tag", err)
	}
	tags, err := s.mirror.refs(keptTag)
	if err != nil {
		return "", "", nil, s.fail(ctx, "Tag", err)
	}
	name, object, raw, err = s.mirror.newestTag(tags, pattern, h)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil, err
	}
	return name, object, raw, s.fail(ctx, "Tag", err)
}
