package main

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-dev/holdfast/sources"
)

// countedFS is a file system whose content ids are the names and contents below, and that
// counts what is listed.
type countedFS struct {
	fstest.MapFS
	listed []string
}

func (c *countedFS) ReadDir(name string) ([]fs.DirEntry, error) {
	c.listed = append(c.listed, name)
	return c.MapFS.ReadDir(name)
}

func (c *countedFS) ContentID(name string) (string, error) {
	var b strings.Builder
	err := fs.WalkDir(c.MapFS, name, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b.WriteString(p + "\x00" + string(c.MapFS[p].Data) + "\x00")
		}
		return err
	})
	return b.String(), err
}

// A commit is searched where it changed something, and the stacks are those of a full search.
func TestDiscoverFollowsChange(t *testing.T) {
	t.Parallel()
	d := &discoverer{}
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	base := fstest.MapFS{
		"apps/a/stack.yaml": file("a"), "apps/a/x.yaml": file("1"), "apps/b/stack.yaml": file("b"), "apps/b/deep/er/stack.yaml": file("c"),
		"infra/n/main.tf": file(""), "stack.yaml": file("top"), "docs/stack.yml": file(""),
	}
	snapshot := func(change func(fstest.MapFS)) *countedFS {
		m := fstest.MapFS{}
		for k, v := range base {
			m[k] = v
		}
		if change != nil {
			change(m)
		}
		return &countedFS{MapFS: m}
	}
	for _, step := range []struct {
		name   string
		change func(fstest.MapFS)
		found  string
		listed string // besides the first search
	}{
		{"at first", nil, "apps/a/stack.yaml apps/b/deep/er/stack.yaml apps/b/stack.yaml stack.yaml", "*"},
		{"nothing", nil, "apps/a/stack.yaml apps/b/deep/er/stack.yaml apps/b/stack.yaml stack.yaml", ""},
		{"a file", func(m fstest.MapFS) { m["apps/a/x.yaml"] = file("2") }, "apps/a/stack.yaml apps/b/deep/er/stack.yaml apps/b/stack.yaml stack.yaml", ". apps apps/a"},
		{"one more", func(m fstest.MapFS) { m["infra/n/stack.yaml"] = file("n") }, "apps/a/stack.yaml apps/b/deep/er/stack.yaml apps/b/stack.yaml infra/n/stack.yaml stack.yaml", ". apps apps/a infra infra/n"},
		{"one less", func(m fstest.MapFS) { delete(m, "apps/b/deep/er/stack.yaml") }, "apps/a/stack.yaml apps/b/stack.yaml stack.yaml", ". apps apps/b infra infra/n"},
		{"back", nil, "apps/a/stack.yaml apps/b/deep/er/stack.yaml apps/b/stack.yaml stack.yaml", ". apps apps/b"},
	} {
		c := snapshot(step.change)
		got, err := d.stackFiles(t.Context(), &sources.Snapshot{FS: c})
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != step.found {
			t.Errorf("%s: %v, %v", step.name, got, err)
		}
		if listed := strings.Join(c.listed, " "); step.listed != "*" && listed != step.listed {
			t.Errorf("%s: listed %q, want %q", step.name, listed, step.listed)
		}
	}
	broken := &sources.Snapshot{FS: fstest.MapFS{}}
	if got, err := (&discoverer{}).stackFiles(t.Context(), broken); len(got) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty snapshot: %v, %v", got, err)
	}
}
