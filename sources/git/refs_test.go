package git

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha1" // git's object ids
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gohash "github.com/go-git/go-git/v5/plumbing/hash"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/sources"
)

const notesRef = "refs/notes/holdfast"

// following opens a source of something else than a branch alone.
func following(t *testing.T, c Config) *Source {
	t.Helper()
	c.Name, c.Dir = "fleet", filepath.Join(t.TempDir(), "mirror")
	s := get(New(c))(t)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func git(t *testing.T, r *testenv.Repo, args ...string) string {
	t.Helper()
	return get(r.Git(args...))(t)
}

// note adds to the notes of a commit, and pushes them.
func note(t *testing.T, r *testenv.Repo, id, text string) {
	t.Helper()
	git(t, r, "notes", "--ref", notesRef, "append", "-m", text, id)
	git(t, r, "push", "-q", "-f", "origin", notesRef)
}

func TestNotes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"https", "ssh", "path"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server, repo := gitServer(t, testenv.GitOptions{Token: token, TLS: true})
			c := config(t, kind, server)
			c.Branch, c.Notes = "main", []string{notesRef, "refs/notes/commits"}
			s := following(t, c)
			one := push(t, repo, map[string]string{"a": "1"})
			read := func(id string) string {
				t.Helper()
				fetch(t, s)
				return string(bytes.Join(get(s.Notes(t.Context(), notesRef, id))(t), []byte("|")))
			}
			if got := read(one); got != "" {
				t.Errorf("a note before there is one: %q", got)
			}
			note(t, repo, one, "first")
			if got := read(one); got != "first\n" { // of a commit that is known
				t.Errorf("the note that came later: %q", got)
			}
			two := push(t, repo, map[string]string{"a": "2"})
			note(t, repo, two, "second")
			if got := read(two) + read(one); got != "second\nfirst\n" {
				t.Errorf("notes %q", got)
			}
			// What a commit was accepted with stays known, whoever takes it away.
			must(t, s.KeepNotes(t.Context(), "", two))
			note(t, repo, one, "more")
			if got := read(one); got != "first\n\nmore\n|first\n" {
				t.Errorf("the note now and then: %q", got)
			}
			must(t, s.KeepNotes(t.Context(), "", two)) // what was kept stays
			git(t, repo, "notes", "--ref", notesRef, "remove", one)
			git(t, repo, "push", "-q", "-f", "origin", notesRef)
			if got := read(one); got != "first\n" {
				t.Errorf("a note that was taken back after it was accepted: %q", got)
			}
			must(t, s.KeepNotes(t.Context(), two, two)) // once more, without it
			must(t, s.KeepNotes(t.Context(), "", two))
			git(t, repo, "notes", "--ref", notesRef, "add", "-m", "x", one)
			git(t, repo, "notes", "--ref", notesRef, "remove", one)
			git(t, repo, "push", "-q", "-f", "origin", notesRef)
			if got := read(one); got != "first\n" {
				t.Errorf("a note that was taken back: %q", got)
			}
			if got := get(s.Notes(t.Context(), "refs/notes/commits", one))(t); got != nil {
				t.Errorf("notes of a ref that is not there: %q", got)
			}
			// Without the other side, what is known is what came with it.
			must(t, server.Close())
			if kind == "path" {
				return
			}
			if _, err := s.Fetch(t.Context(), sources.Revision{Source: "fleet", ID: two}); err != nil {
				t.Errorf("a commit that is known, while Git is down: %v", err)
			}
			if got := get(s.Notes(t.Context(), notesRef, two))(t); len(got) != 1 || string(got[0]) != "second\n" {
				t.Errorf("its note: %q", got)
			}
		})
	}
}

// Notes that cannot be read are said to be so, also of a commit that is known.
func TestBrokenNotes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"https", "path"} {
		server, repo := gitServer(t, testenv.GitOptions{Token: token, TLS: true})
		c := config(t, kind, server)
		c.Branch, c.Notes = "main", []string{notesRef}
		s := following(t, c)
		id := push(t, repo, map[string]string{"a": "1"})
		note(t, repo, id, "good")
		fetch(t, s)
		file := filepath.Join(t.TempDir(), "tree")
		must(t, os.WriteFile(file, append([]byte("100644 .git\x00"), get(hex.DecodeString(git(t, repo, "rev-parse", "HEAD:a")))(t)...), 0o600))
		tree := git(t, repo, "hash-object", "-t", "tree", "-w", "--literally", file)
		raw := filepath.Join(t.TempDir(), "commit")
		must(t, os.WriteFile(raw, []byte("tree "+tree+"\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nm\n"), 0o600))
		broken := git(t, repo, "hash-object", "-t", "commit", "-w", "--literally", raw)
		for _, object := range []string{tree, broken} {
			name := filepath.Join("objects", object[:2], object[2:])
			must(t, os.MkdirAll(filepath.Join(server.Path("team/fleet"), "objects", object[:2]), 0o700))
			b := get(os.ReadFile(filepath.Join(repo.Dir, ".git", name)))(t)
			must(t, os.WriteFile(filepath.Join(server.Path("team/fleet"), name), b, 0o600))
		}
		must(t, os.MkdirAll(filepath.Join(server.Path("team/fleet"), "refs", "notes"), 0o700))
		must(t, os.WriteFile(filepath.Join(server.Path("team/fleet"), notesRef), []byte(broken+"\n"), 0o600))
		if _, err := s.Fetch(t.Context(), sources.Revision{Source: "fleet", ID: id}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: broken notes: %v (%v)", kind, err, fault.KindOf(err))
		}
		if got := get(s.Notes(t.Context(), notesRef, id))(t); len(got) != 1 || string(got[0]) != "good\n" {
			t.Errorf("%s: the notes of before: %q", kind, got)
		}
	}
}

func TestNotesInFolders(t *testing.T) {
	t.Parallel()
	_, repo := gitServer(t, testenv.GitOptions{})
	id := push(t, repo, map[string]string{"a": "1"})
	for depth := range 4 {
		name := id
		for i := range depth {
			at := 3*i + 2
			name = name[:at] + "/" + name[at:]
		}
		blob := git(t, repo, "rev-parse", "HEAD:a")
		git(t, repo, "read-tree", "--empty")
		git(t, repo, "update-index", "--add", "--cacheinfo", "100644,"+blob+","+name)
		commit := git(t, repo, "commit-tree", "-m", "notes", git(t, repo, "write-tree"))
		git(t, repo, "push", "-q", "-f", "origin", commit+":"+notesRef)
		git(t, repo, "read-tree", "HEAD")
		git(t, repo, "update-ref", notesRef, commit)
		clone := get(OpenClone("fleet", repo.Dir))(t)
		if got := get(clone.Notes(t.Context(), notesRef, id))(t); len(got) != 1 || string(got[0]) != "1" {
			t.Errorf("%s: %q", name, got)
		}
		if got := get(clone.Notes(t.Context(), notesRef, strings.Repeat("1", 40)))(t); got != nil {
			t.Errorf("another commit: %q", got)
		}
		if got := get(clone.Notes(t.Context(), "refs/notes/none", id))(t); got != nil {
			t.Errorf("another ref: %q", got)
		}
		must(t, clone.Close())
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"https", "ssh", "path"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server, repo := gitServer(t, testenv.GitOptions{Token: token, TLS: true})
			c := config(t, kind, server)
			c.Tag = "v*"
			s := following(t, c)
			tag := func(name string) string {
				t.Helper()
				id := git(t, repo, "rev-parse", "HEAD")
				object := get(repo.Tag(name, "message", testenv.CommitOptions{}))(t)
				git(t, repo, "push", "-q", "-f", "origin", "refs/tags/"+name)
				if head := get(s.Head(t.Context()))(t).ID; head != id {
					t.Errorf("after %s the head is %s, want %s", name, head, id)
				}
				fetch(t, s)
				gotName, gotObject, raw, err := s.Tag(t.Context(), "v*", id)
				if err != nil || gotName != name || gotObject != object || !strings.HasPrefix(string(raw), "object "+id+"\n") {
					t.Errorf("tag %s %s %q, %v", gotName, gotObject, raw, err)
				}
				return id
			}
			one := push(t, repo, map[string]string{"a": "1"})
			if _, err := s.Head(t.Context()); fault.KindOf(err) != fault.Transient || !strings.Contains(err.Error(), "no tag like v*") {
				t.Errorf("no tag: %v", err)
			}
			git(t, repo, "tag", "vNext")
			git(t, repo, "tag", "w9.0.0")
			git(t, repo, "tag", "v9.0.0-rc.1")
			git(t, repo, "push", "-q", "origin", "--tags")
			tag("v1.9.0")
			push(t, repo, map[string]string{"a": "2"})
			tag("v1.10.0") // not in the order of text
			push(t, repo, map[string]string{"a": "3"})
			two := git(t, repo, "rev-parse", "HEAD")
			tag("v1.10.1")
			// A newer commit with an older version changes nothing.
			push(t, repo, map[string]string{"a": "4"})
			git(t, repo, "tag", "-a", "-m", "old", "v1.2.0")
			git(t, repo, "push", "-q", "origin", "v1.2.0")
			if head := get(s.Head(t.Context()))(t).ID; head != two {
				t.Errorf("the head went to an older version: %s", head)
			}
			if _, _, _, err := s.Tag(t.Context(), "w*", one); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("another pattern: %v", err)
			}
			// A lightweight tag is told apart.
			git(t, repo, "tag", "v3.0.0")
			git(t, repo, "push", "-q", "origin", "v3.0.0")
			head := fetch(t, s).Revision.ID
			if name, object, raw, err := s.Tag(t.Context(), "v*", head); err != nil || name != "v3.0.0" || object != head || raw != nil {
				t.Errorf("a lightweight tag: %s %s %q %v", name, object, raw, err)
			}
			// And so is a tag of a tag: what it names is not the commit.
			git(t, repo, "tag", "-a", "-m", "nested", "v4.0.0", "v1.10.1")
			git(t, repo, "push", "-q", "origin", "v4.0.0")
			if kind != "path" { // a server peels it to the end
				if head := fetch(t, s).Revision.ID; head != two {
					t.Errorf("a nested tag leads to %s", head)
				}
				if name, _, _, err := s.Tag(t.Context(), "v*", two); err != nil || name != "v1.10.1" {
					t.Errorf("a nested tag: %s, %v", name, err)
				}
			}
			clone := get(OpenClone("fleet", repo.Dir))(t)
			defer func() { must(t, clone.Close()) }()
			if name, _, raw, err := clone.Tag(t.Context(), "v*", two); err != nil || name != "v1.10.1" || raw == nil {
				t.Errorf("the clone: %s %q %v", name, raw, err)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	names := []string{"1.0.0", "v1.0.1", "app/v1.1.0", "v1.2.0-rc.1", "v1.2.0", "v10.0.0"}
	for i, a := range names {
		for j, b := range names {
			if newer(a, b) != (i > j) {
				t.Errorf("%s after %s: %t", a, b, newer(a, b))
			}
		}
	}
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"v*", "v1.0.0", true}, {"v*", "1.0.0", false}, {"*", "1.0.0", true}, {"*", "main", false}, {"v*", "v1.0.0-rc.1", false}, {"v*-*", "v1.0.0-rc.1", true},
		{"app/v*", "app/v1.0.0", true}, {"v*", "app/v1.0.0", false}, {"v*", "v1.0.0 x", false}, {"*", "-1.0.0", false}, {"*", "v1..0", false}, {"*", "v1.0.0.lock", false},
	} {
		if got := isVersion(c.pattern, c.name); got != c.want {
			t.Errorf("%s as %s: %t", c.name, c.pattern, got)
		}
	}
	for _, c := range []Config{
		{Tag: "v*", Branch: "main"}, {Tag: "v["}, {Tag: "refs/tags/v*"}, {}, {Branch: "main", Notes: []string{"refs/heads/x"}},
		{Branch: "main", Notes: []string{"refs/notes/../heads/x"}}, {Branch: "main", Notes: []string{"refs/notes/x y"}},
	} {
		c.Name, c.URL, c.Dir = "fleet", "https://git.example/r", "/m"
		if _, err := New(c); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	must(t, repo.Write(map[string]string{".github/CODEOWNERS": "* @a\n", "docs/x": "1"}))
	must(t, os.Symlink(".github/CODEOWNERS", filepath.Join(repo.Dir, "CODEOWNERS")))
	must(t, os.Symlink(".github", filepath.Join(repo.Dir, "owners")))
	id := push(t, repo, nil)
	s := open(t, Config{URL: server.Path("team/fleet")})
	fetch(t, s)
	clone := get(OpenClone("fleet", repo.Dir))(t)
	defer func() { must(t, clone.Close()) }()
	for name, want := range map[string]string{
		".github/CODEOWNERS": "", "docs": "file does not exist", "docs/CODEOWNERS": "file does not exist", "docs/x/y": "file does not exist", "no": "file does not exist",
		"CODEOWNERS": "is not a regular file", "owners/CODEOWNERS": "file does not exist",
	} {
		b, err := s.File(t.Context(), id, name)
		if want == "" && (err != nil || string(b) != "* @a\n") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if errors.Is(err, fs.ErrNotExist) != (want == "file does not exist") {
			t.Errorf("%s: %v", name, err)
		}
		if again, err2 := clone.File(t.Context(), id, name); string(again) != string(b) || (err == nil) != (err2 == nil) {
			t.Errorf("%s of the clone: %q, %v", name, again, err2)
		}
	}
	if _, err := s.File(t.Context(), strings.Repeat("1", 40), "x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a commit that is not there: %v", err)
	}
}

// Git shows other objects in the place of those that are asked for, if the
// repository says so (refs/replace, info/grafts). Nothing of it is believed here.
func TestReplacedObjectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	one := push(t, repo, map[string]string{"a": "1"})
	two := push(t, repo, map[string]string{"a": "2", "b": "2"})
	good := get(exec.Command("git", "-C", repo.Dir, "cat-file", "commit", two).Output())(t)
	// The commit, a tree, a blob and a history by other means.
	git(t, repo, "checkout", "-q", "--detach")
	must(t, repo.Write(map[string]string{"a": "evil", "c": "evil"}))
	evil := get(repo.Commit("evil", testenv.CommitOptions{}))(t)
	git(t, repo, "replace", two, evil)
	git(t, repo, "replace", two+"^{tree}", evil+"^{tree}")
	git(t, repo, "replace", one+":a", evil+":a")
	graft := filepath.Join(server.Path("team/fleet"), "info", "grafts")
	must(t, os.MkdirAll(filepath.Dir(graft), 0o700))
	must(t, os.WriteFile(graft, []byte(two+"\n"), 0o600)) // no parent
	git(t, repo, "push", "-q", "origin", "refs/replace/*:refs/replace/*")
	if shown := get(exec.Command("git", "-C", repo.Dir, "cat-file", "commit", two).Output())(t); slices.Equal(shown, good) {
		t.Fatal("git itself does not replace")
	}
	for name, h := range map[string]history{"path": open(t, Config{URL: server.Path("team/fleet")}), "clone": get(OpenClone("fleet", repo.Dir))(t)} {
		if s, ok := h.(*Source); ok {
			fetch(t, s)
		}
		raw := get(h.Commit(t.Context(), two))(t)
		paths := get(h.ChangedPaths(t.Context(), one, two))(t)
		file := get(h.File(t.Context(), two, "a"))(t)
		first := get(h.File(t.Context(), one, "a"))(t)
		if !slices.Equal(raw, good) || strings.Join(paths, " ") != "a b" || string(file) != "2" || string(first) != "1" || !strings.Contains(string(raw), "parent "+one) {
			t.Errorf("%s: %q, %v, %q, %q", name, raw, paths, file, first)
		}
		must(t, h.Close())
	}
}

// history is what both readers of a repository have.
type history interface {
	Commit(ctx context.Context, id string) ([]byte, error)
	ChangedPaths(ctx context.Context, parent, child string) ([]string, error)
	File(ctx context.Context, id, name string) ([]byte, error)
	Close() error
}

// Bytes that are made to collide under SHA-1 (SHAttered) get another id than
// SHA-1's, in the mirror as in git: they cannot be stored under one that others
// have. testdata/shattered-1.b64 is the beginning of such a file.
func TestCollidingObjectsHaveAnotherID(t *testing.T) {
	t.Parallel()
	raw := get(base64.StdEncoding.DecodeString(strings.ReplaceAll(string(get(os.ReadFile("testdata/shattered-1.b64"))(t)), "\n", "")))(t)
	h := gohash.New(crypto.SHA1)
	h.Write(raw)
	if plain := sha1.Sum(raw); bytes.Equal(h.Sum(nil), plain[:]) {
		t.Error("a collision is not detected")
	}
}
