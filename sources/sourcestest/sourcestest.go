// Package sourcestest owns the conformance suite that every [sources.Source]
// passes. It guarantees nothing about an implementation that does not run it,
// and it refuses to know any implementation: it works on the interface alone.
package sourcestest

import (
	"context"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-dev/holdfast/sources"
)

// New returns a source under test and a function that makes files (by
// slash-separated path) its whole newest content and returns the new revision's
// id. The revision MUST be new even where the content is not. New is called once
// for each test and cleans up through t.
type New func(t *testing.T) (src sources.Source, mutate func(files map[string]string) string)

// Run runs the suite.
func Run(t *testing.T, newSource New) {
	t.Helper()
	for name, f := range map[string]func(*testing.T, sources.Source, func(map[string]string) string){
		"head and fetch agree":              headAndFetch,
		"a snapshot is a file system":       fileSystem,
		"a snapshot is stable":              stable,
		"an unknown revision is refused":    unknownRevision,
		"another source's is refused":       foreignRevision,
		"the tree digest names the content": treeDigest,
		"content ids follow content":        contentIDs,
		"a cancelled context stops":         cancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, mutate := newSource(t)
			f(t, src, mutate)
		})
	}
}

func first() map[string]string {
	return map[string]string{"README.md": "hello\n", "apps/web/a.yaml": "kind: A\n", "apps/db/b.yaml": "kind: B\n", "empty": ""}
}

func headAndFetch(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	for _, files := range []map[string]string{first(), {"only": "this\n"}} {
		id := mutate(files)
		s := fetchHead(t, src)
		if s.Revision.ID != id {
			t.Fatalf("head is %s, want %s", s.Revision.ID, id)
		}
		if got := content(t, s.FS); !maps.Equal(got, files) {
			t.Errorf("content is %q, want %q", got, files)
		}
	}
}

func fileSystem(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	files := first()
	mutate(files)
	s := fetchHead(t, src)
	if err := fstest.TestFS(s.FS, slices.Collect(maps.Keys(files))...); err != nil {
		t.Error(err)
	}
	err := fs.WalkDir(s.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s is writable: %s", name, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func stable(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	files := first()
	mutate(files)
	old := fetchHead(t, src)
	mutate(map[string]string{"README.md": "changed\n"})
	fetchHead(t, src)
	if got := content(t, old.FS); !maps.Equal(got, files) {
		t.Errorf("after another fetch the old snapshot is %q, want %q", got, files)
	}
	b, err := fs.ReadFile(old.FS, "README.md")
	if err != nil {
		t.Fatal(err)
	}
	clear(b) // the caller may do what it likes with what it read
	again, err := fs.ReadFile(old.FS, "README.md")
	if err != nil || string(again) != files["README.md"] {
		t.Errorf("after the caller changed its bytes the file is %q, %v", again, err)
	}
	back, err := src.Fetch(t.Context(), old.Revision)
	if err != nil {
		t.Fatalf("fetch an earlier revision: %v", err)
	}
	if back.Tree != old.Tree {
		t.Errorf("the earlier revision has tree %s now, had %s", back.Tree, old.Tree)
	}
}

// wrong returns an id of the same form that names nothing.
func wrong(id string) string {
	last := "0"
	if strings.HasSuffix(id, "0") {
		last = "1"
	}
	return id[:len(id)-1] + last
}

func unknownRevision(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	id := mutate(first())
	head := fetchHead(t, src).Revision
	for _, bad := range []string{wrong(id), id[:len(id)-1], "main", "HEAD", "latest", "", "../" + id} {
		if s, err := src.Fetch(t.Context(), sources.Revision{Source: head.Source, ID: bad}); err == nil {
			t.Errorf("fetch of %q returned %s", bad, s.Revision)
		}
	}
}

func foreignRevision(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	id := mutate(first())
	if _, err := src.Fetch(t.Context(), sources.Revision{Source: fetchHead(t, src).Revision.Source + "-other", ID: id}); err == nil {
		t.Error("a revision of another source was fetched")
	}
}

func treeDigest(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	seen := map[string]string{} // digest → content
	for _, files := range []map[string]string{
		first(),
		{"README.md": "hello"},
		{"readme.md": "hello"},
		{"a/b": "x"},
		{"ab": "x"},
		{"a": "x", "b": ""},
		first(),
		{"README.md": "hello"},
	} {
		mutate(files)
		s := fetchHead(t, src)
		if err := s.Tree.Validate(); err != nil {
			t.Fatalf("tree digest %q: %v", s.Tree, err)
		}
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(files)) {
			b.WriteString(name + "\x00" + files[name] + "\x00")
		}
		for d, c := range seen {
			if (d == s.Tree.String()) != (c == b.String()) {
				t.Errorf("digests are equal: %t, contents %q and %q", d == s.Tree.String(), c, b.String())
			}
		}
		seen[s.Tree.String()] = b.String()
	}
}

func contentIDs(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	mutate(first())
	a := fetchHead(t, src)
	changed := first()
	changed["apps/web/a.yaml"] = "kind: Changed\n"
	mutate(changed)
	b := fetchHead(t, src)
	ia, ok := a.FS.(sources.Identified)
	if !ok {
		t.Skip("the snapshot does not identify its content")
	}
	ib := b.FS.(sources.Identified)
	for name, same := range map[string]bool{".": false, "apps": false, "apps/web": false, "apps/web/a.yaml": false, "apps/db": true, "README.md": true} {
		x, err := ia.ContentID(name)
		if err != nil {
			t.Fatal(err)
		}
		y, err := ib.ContentID(name)
		if err != nil {
			t.Fatal(err)
		}
		if (x == y) != same {
			t.Errorf("%s: ids are equal: %t, want %t", name, x == y, same)
		}
	}
	if id, err := ia.ContentID("absent"); err == nil {
		t.Errorf("a file that is absent has the id %s", id)
	}
}

func cancelled(t *testing.T, src sources.Source, mutate func(map[string]string) string) {
	id := mutate(first())
	name := fetchHead(t, src).Revision.Source
	next := mutate(map[string]string{"x": "y"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := src.Fetch(ctx, sources.Revision{Source: name, ID: next}); err == nil {
		t.Errorf("a fetch of %s after %s went on although its context had ended", next, id)
	}
}

func fetchHead(t *testing.T, src sources.Source) *sources.Snapshot {
	t.Helper()
	r, err := src.Head(t.Context())
	if err != nil {
		t.Fatalf("head: %v", err)
	}
	s, err := src.Fetch(t.Context(), r)
	if err != nil {
		t.Fatalf("fetch: %v", err)
	}
	if s.Revision != r {
		t.Fatalf("asked for %v, got %v", r, s.Revision)
	}
	return s
}

func content(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		files[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
