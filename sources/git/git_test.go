package git

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/sources/sourcestest"
)

const token = "s3cret-token-of-the-test"

func gitServer(t *testing.T, o testenv.GitOptions) (*testenv.GitServer, *testenv.Repo) {
	t.Helper()
	s, err := testenv.NewGitServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, s.Close()) })
	r, err := s.NewRepo("team/fleet")
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[V any](v V, err error) func(t *testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		must(t, err)
		return v
	}
}

func push(t *testing.T, r *testenv.Repo, files map[string]string) string {
	t.Helper()
	must(t, r.Write(files))
	id := get(r.Commit("change", testenv.CommitOptions{}))(t)
	must(t, r.Push("--force"))
	return id
}

func secret(s string) func() (string, error) { return func() (string, error) { return s, nil } }

func open(t *testing.T, c Config) *Source {
	t.Helper()
	c.Name, c.Branch = "fleet", "main"
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "mirror")
	}
	s := get(New(c))(t)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func fetch(t *testing.T, s *Source) *sources.Snapshot {
	t.Helper()
	return get(s.Fetch(t.Context(), get(s.Head(t.Context()))(t)))(t)
}

// config returns a working configuration for each way to reach a server.
func config(t *testing.T, kind string, s *testenv.GitServer) Config {
	switch kind {
	case "https":
		return Config{URL: s.HTTPURL("team/fleet"), Auth: Auth{Password: secret(token + "\n"), CA: s.CA()}}
	case "bearer":
		return Config{URL: s.HTTPURL("team/fleet"), Auth: Auth{Token: secret(token), CA: s.CA()}}
	case "ssh":
		key := get(os.ReadFile(s.ClientKey()))(t)
		return Config{URL: s.SSHURL("team/fleet"), Auth: Auth{SSHKey: func() ([]byte, error) { return key, nil }, KnownHosts: s.KnownHostsFile()}}
	}
	return Config{URL: s.Path("team/fleet")}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"https", "bearer", "ssh", "path"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			sourcestest.Run(t, func(t *testing.T) (sources.Source, func(map[string]string) string) {
				server, repo := gitServer(t, testenv.GitOptions{Token: token, TLS: true})
				return open(t, config(t, kind, server)), func(files map[string]string) string {
					for _, d := range get(os.ReadDir(repo.Dir))(t) {
						if d.Name() != ".git" {
							must(t, os.RemoveAll(filepath.Join(repo.Dir, d.Name())))
						}
					}
					return push(t, repo, files)
				}
			})
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		url, want string
		auth      Auth
	}{
		{"", "not supported", Auth{}},
		{"relative/path", "", Auth{}},
		{"http://git.example/r", "plain http", Auth{}},
		{"https://user:hunter2@git.example/r", "contains a password", Auth{}},
		{"https://git.example/r?x=1", "query", Auth{}},
		{"https://git.example", "no path", Auth{}},
		{"git://git.example/r", "not supported", Auth{}},
		{"ext::sh -c id", "", Auth{}},
		{"file://host/r", "not file:///", Auth{}},
		{"git@host:-oProxyCommand=x", "dash", Auth{}},
		{"ssh://git@host/r", "knownHosts", Auth{SSHKey: func() ([]byte, error) { return nil, nil }}},
		{"ssh://git@host/r", "sshKey", Auth{KnownHosts: "/x"}},
		{"https://git.example/r", "both", Auth{Password: secret("a"), Token: secret("b")}},
		{"https://git.example/r", "not SSH", Auth{KnownHosts: "/x"}},
		{"/srv/r", "not HTTP", Auth{Token: secret("x")}},
		{"https://git.example/r", "no PEM", Auth{CA: []byte("x")}},
	} {
		_, err := New(Config{Name: "n", URL: c.url, Branch: "main", Dir: "/m", Auth: c.auth})
		if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", c.url, err)
		}
	}
	for _, c := range []Config{
		{URL: "/r", Branch: "main", Dir: "/m"},
		{Name: "n", URL: "/r", Branch: "", Dir: "/m"},
		{Name: "n", URL: "/r", Branch: "a..b", Dir: "/m"},
		{Name: "n", URL: "/r", Branch: "-x", Dir: "/m"},
		{Name: "n", URL: "/r", Branch: "main", Dir: "m"},
		{Name: "n", URL: "/r", Branch: "main", Dir: "/m", Limits: sources.Limits{Files: -1}},
	} {
		if _, err := New(c); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:80/r", "http://[::1]/r", "git@host:team/r.git", "ssh://host:2222/r", "file:///srv/r"} {
		if _, err := parseURL(u); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{Token: token, TLS: true})
	push(t, repo, map[string]string{"a": "b"})
	other, _ := gitServer(t, testenv.GitOptions{})
	otherKey := get(os.ReadFile(other.ClientKey()))(t)
	for name, c := range map[string]struct {
		change func(*Config)
		base   string
		want   string
	}{
		"wrong token":     {func(c *Config) { c.Auth.Token = secret("wr0ng-token") }, "bearer", "refuses the credentials"},
		"wrong password":  {func(c *Config) { c.Auth.Password = secret("wr0ng-token") }, "https", "refuses the credentials"},
		"no credentials":  {func(c *Config) { c.Auth.Password = nil }, "https", "refuses the credentials"},
		"unknown CA":      {func(c *Config) { c.Auth.CA = nil }, "https", "certificate"},
		"wrong host key":  {func(c *Config) { c.Auth.KnownHosts = swapHost(t, server, other) }, "ssh", "host key is not the one"},
		"unknown host":    {func(c *Config) { c.Auth.KnownHosts = other.KnownHostsFile() }, "ssh", "host key is not in known_hosts"},
		"wrong ssh key":   {func(c *Config) { c.Auth.SSHKey = func() ([]byte, error) { return otherKey, nil } }, "ssh", "refuses the credentials"},
		"broken ssh key":  {func(c *Config) { c.Auth.SSHKey = func() ([]byte, error) { return []byte("wr0ng-token"), nil } }, "ssh", "not a private key"},
		"no such branch":  {func(c *Config) { c.Branch = "gone" }, "path", "branch"},
		"no such path":    {func(c *Config) { c.URL += "-gone" }, "path", "repository"},
		"no such webrepo": {func(c *Config) { c.URL += "-gone" }, "https", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, c.base, server)
			cfg.Name, cfg.Branch, cfg.Dir = "fleet", "main", t.TempDir()
			c.change(&cfg)
			s := get(New(cfg))(t)
			_, err := s.Head(t.Context())
			if fault.KindOf(err) != fault.Transient || fault.HintOf(err) == "" || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v (%v), hint %q", err, fault.KindOf(err), fault.HintOf(err))
			}
			if s := fmt.Sprint(err); strings.Contains(s, "wr0ng") || strings.Contains(s, token) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

// swapHost returns a known_hosts file that has other's key under server's address.
func swapHost(t *testing.T, server, other *testenv.GitServer) string {
	t.Helper()
	mine := strings.Fields(string(get(os.ReadFile(server.KnownHostsFile()))(t)))
	theirs := strings.Fields(string(get(os.ReadFile(other.KnownHostsFile()))(t)))
	theirs[0] = mine[0]
	f := filepath.Join(t.TempDir(), "known_hosts")
	must(t, os.WriteFile(f, []byte(strings.Join(theirs, " ")+"\n"), 0o600))
	return f
}

func TestRedirectGetsNoCredentials(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Get("Authorization"))
	}))
	t.Cleanup(thief.Close)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+r.URL.RequestURI(), http.StatusFound)
	}))
	t.Cleanup(front.Close)
	s := open(t, Config{URL: front.URL + "/team/fleet.git", Auth: Auth{Password: secret(token)}})
	_, err := s.Head(t.Context())
	if fault.KindOf(err) != fault.Transient || !strings.Contains(err.Error(), "redirects to another host") {
		t.Errorf("got %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) > 0 {
		t.Errorf("the other host was asked, with %q", seen)
	}
}

// The gate at the transport must hold without the redirect policy above it.
func TestTransportIsBoundToItsOrigin(t *testing.T) {
	t.Parallel()
	bound := &boundTransport{scheme: "https", host: "git.example", next: http.DefaultTransport}
	for _, u := range []string{"http://git.example/r", "https://git.example.evil/r", "https://git.example:444/r"} {
		if _, err := bound.RoundTrip(httptest.NewRequest("GET", u, nil)); !errors.Is(err, errRedirect) { //nolint:bodyclose // there is none
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestLocalKeepAndForcePush(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	c := config(t, "ssh", server)
	c.Dir = filepath.Join(t.TempDir(), "mirror")
	push(t, repo, map[string]string{"a": "1"})
	old := push(t, repo, map[string]string{"a": "2", "dir/b": "1"})
	s := open(t, c)
	before := fetch(t, s)
	must(t, s.Keep(t.Context(), old))

	// A force-push: Head and Fetch report what the branch is now.
	get(repo.Git("reset", "-q", "--hard", "HEAD~1"))(t)
	now := push(t, repo, map[string]string{"a": "3"})
	if got := fetch(t, s).Revision.ID; got != now {
		t.Errorf("head is %s, want %s", got, now)
	}
	// The kept revision is still there, from the mirror alone, after a restart.
	must(t, server.Close())
	must(t, s.Close())
	c.Name, c.Branch = "fleet", "main"
	s = get(New(c))(t)
	t.Cleanup(func() { must(t, s.Close()) })
	again := get(s.Local(t.Context(), before.Revision))(t)
	if again.Tree != before.Tree {
		t.Errorf("tree is %s, was %s", again.Tree, before.Tree)
	}
	if _, err := s.Head(t.Context()); fault.KindOf(err) != fault.Transient {
		t.Errorf("head of a dead server: %v", err)
	}
	if _, err := s.Local(t.Context(), sources.Revision{Source: "fleet", ID: strings.Repeat("1", 40)}); err == nil {
		t.Error("an unknown revision is in the mirror")
	}
}

func TestChangedPaths(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	one := push(t, repo, map[string]string{"same": "1", "mod": "1", "gone": "1", "old/name": "moved", "x": "file", "run.sh": "#!"})
	must(t, repo.Remove("gone", "old", "x"))
	must(t, os.Chmod(filepath.Join(repo.Dir, "run.sh"), 0o755))
	get(repo.Git("update-index", "--add", "--cacheinfo", "160000,"+one+",sub"))(t)
	must(t, repo.Write(map[string]string{"mod": "2", "new/name": "moved", "x/y": "folder"}))
	must(t, os.MkdirAll(filepath.Join(repo.Dir, "sub"), 0o755))
	two := push(t, repo, nil)
	s := open(t, config(t, "path", server))
	snap := fetch(t, s)
	want := []string{"gone", "mod", "new/name", "old/name", "run.sh", "sub", "x", "x/y"}
	if got := get(s.ChangedPaths(t.Context(), one, two))(t); !slices.Equal(got, want) {
		t.Errorf("changed paths %q, want %q", got, want)
	}
	whole := []string{"gone", "mod", "old/name", "run.sh", "same", "x"}
	if got := get(s.ChangedPaths(t.Context(), "", one))(t); !slices.Equal(got, whole) {
		t.Errorf("whole tree %q, want %q", got, whole)
	}
	raw := get(s.Commit(t.Context(), two))(t)
	if plumbing.ComputeHash(plumbing.CommitObject, raw).String() != two {
		t.Error("the commit's bytes do not hash to its id")
	}
	// The submodule is listed, and an error only when it is opened.
	if _, err := fs.ReadDir(snap.FS, "."); err != nil {
		t.Error(err)
	}
	if _, err := fs.ReadFile(snap.FS, "sub"); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "submodule") {
		t.Errorf("read a submodule: %v", err)
	}
}

func TestClass07_symlinks_out_of_the_repository(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	must(t, repo.Write(map[string]string{"common/base.yaml": "base", "apps/web/own.yaml": "own", "secret": "top"}))
	for link, target := range map[string]string{
		"apps/web/base.yaml": "../../common/base.yaml", // fine
		"apps/web/dir":       "../../common",           // fine, a folder
		"alias":              "apps/web/dir",           // fine, a chain
		"up":                 "alias/../secret",        // the folder above common, not above alias
		"escape":             "../outside",
		"apps/deep":          "../../outside",
		"sneaky":             "apps/../../outside",
		"over":               "alias/../../outside",
		"absolute":           "/etc/passwd",
		"loop":               "loop2",
		"loop2":              "loop",
		"dangling":           "nowhere",
	} {
		must(t, os.Symlink(target, filepath.Join(repo.Dir, link)))
	}
	push(t, repo, nil)
	s := open(t, config(t, "path", server))
	snap := fetch(t, s)
	for name, want := range map[string]string{
		"apps/web/base.yaml": "base", "apps/web/dir/base.yaml": "base", "alias/base.yaml": "base", "up": "top",
	} {
		if b, err := fs.ReadFile(snap.FS, name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"escape", "apps/deep", "sneaky", "over", "absolute", "loop"} {
		for op, f := range map[string]func() error{
			"read": func() error { _, err := fs.ReadFile(snap.FS, name); return err },
			"open": func() error { _, err := snap.FS.Open(name); return err },
			"stat": func() error { _, err := fs.Stat(snap.FS, name); return err },
			"into": func() error { _, err := fs.ReadFile(snap.FS, name+"/x"); return err },
		} {
			if err := f(); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "symlink "+name) && !strings.Contains(err.Error(), name+":") {
				t.Errorf("%s %s: %v", op, name, err)
			}
		}
	}
	if _, err := fs.Stat(snap.FS, "dangling"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dangling: %v", err)
	}
	if err := fstest.TestFS(sub(t, snap.FS, "apps/web"), "own.yaml", "base.yaml"); err != nil {
		t.Error(err)
	}
	// What a folder's links lead to is part of its id.
	id := func(s *sources.Snapshot) string { return get(s.FS.(sources.Identified).ContentID("apps/web"))(t) }
	push(t, repo, map[string]string{"unrelated": "x"})
	if next := fetch(t, s); id(next) != id(snap) {
		t.Error("the id changed without its content")
	}
	push(t, repo, map[string]string{"common/base.yaml": "changed"})
	if next := fetch(t, s); id(next) == id(snap) {
		t.Error("the content behind a symlink changed, and the id did not")
	}
}

func sub(t *testing.T, fsys fs.FS, dir string) fs.FS {
	t.Helper()
	return get(fs.Sub(fsys, dir))(t)
}

func TestLimits(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	push(t, repo, map[string]string{"small": "x", "a/b/large": strings.Repeat("x", 5000), "a/third": "y"})
	for name, c := range map[string]struct {
		limits sources.Limits
		want   string
	}{
		"bytes": {sources.Limits{Bytes: 5000}, "more than 5000 bytes"},
		"files": {sources.Limits{Files: 2}, "more than 2 files"},
		"path":  {sources.Limits{PathLength: 8}, "a path has 9 bytes"},
	} {
		for _, kind := range []string{"path", "ssh"} {
			cfg := config(t, kind, server)
			cfg.Limits = c.limits
			s := open(t, cfg)
			_, err := s.Fetch(t.Context(), get(s.Head(t.Context()))(t))
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%s over %s: %v", name, kind, err)
			}
		}
	}
	cfg := config(t, "path", server)
	cfg.Limits = sources.Limits{File: 4999}
	snap := fetch(t, open(t, cfg))
	if _, err := fs.ReadFile(snap.FS, "small"); err != nil {
		t.Error(err)
	}
	if _, err := snap.FS.Open("a/b/large"); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "the limit is 4999") {
		t.Errorf("open a large file: %v", err)
	}
	cfg = config(t, "ssh", server)
	cfg.Limits = sources.Limits{Timeout: time.Nanosecond}
	if _, err := open(t, cfg).Head(t.Context()); fault.KindOf(err) != fault.Transient {
		t.Errorf("head without time: %v", err)
	}
}

// A delta of a few bytes may announce gigabytes; the announcement is enough to refuse it.
func TestDeltaBomb(t *testing.T) {
	t.Parallel()
	var pack bytes.Buffer
	pack.WriteString("PACK")
	must(t, binary.Write(&pack, binary.BigEndian, []uint32{2, 1}))
	delta := []byte{1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x90, 1} // from 1 byte to 32 GiB
	pack.WriteByte(7<<4 | byte(len(delta)))                         // REF_DELTA
	pack.Write(make([]byte, 20))
	z := zlib.NewWriter(&pack)
	get(z.Write(delta))(t)
	must(t, z.Close())
	pack.Write(make([]byte, 20))
	m := newMirror(t.TempDir(), sources.Limits{}.WithDefaults())
	t.Cleanup(func() { must(t, m.close()) })
	err := m.ingest(t.Context(), &pack)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "has 34359738368 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestDamagedMirror(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	push(t, repo, map[string]string{"a": "right"})
	s := open(t, config(t, "path", server))
	snap := fetch(t, s)
	id := plumbing.ComputeHash(plumbing.BlobObject, []byte("right")).String()
	f := filepath.Join(s.mirror.dir, "objects", id[:2], id[2:])
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	get(z.Write([]byte("blob 5\x00wrong")))(t)
	must(t, z.Close())
	must(t, os.Chmod(f, 0o600))
	must(t, os.WriteFile(f, b.Bytes(), 0o600))
	must(t, s.Close()) // drops what was read before
	if got, err := fs.ReadFile(snap.FS, "a"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("read %q, %v", got, err)
	}
}

// treeOf encodes a tree object.
func treeOf(entries ...string) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		b.WriteString(e + "\x00" + strings.Repeat("i", 20))
	}
	return b.Bytes()
}

func TestParseTree(t *testing.T) {
	t.Parallel()
	if _, err := parseTree(treeOf("100644 a", "100644 a.b", "40000 a", "100755 b", "120000 c", "160000 d")); err == nil {
		t.Error("a file and a folder of one name were accepted")
	}
	tr, err := parseTree(treeOf("100644 .gitignore", "100644 a.b", "40000 a", "100755 b", "100644 git", "120000 é"))
	if err != nil || len(tr.entries) != 6 {
		t.Errorf("a good tree: %v", err)
	}
	for _, bad := range []string{
		"..", ".", "", "a/b", `a\b`, "a\nb", "a\x7f", "\xff", ".git", ".GIT", ".Git ", ".git.", "git~1", "GIT~1", ".git::$INDEX_ALLOCATION",
		".g\u200cit", "\ufeff.git",
	} {
		if _, err := parseTree(treeOf("100644 " + bad)); err == nil {
			t.Errorf("the name %q was accepted", bad)
		}
	}
	for _, bad := range [][]byte{treeOf("100600 a"), treeOf("a"), treeOf("100644 b", "100644 a"), treeOf("100644 a", "100644 a"), treeOf("100644 a")[:20], []byte("x")} {
		if _, err := parseTree(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParseTree(f *testing.F) {
	f.Add(treeOf("100644 a", "40000 b"))
	f.Add(treeOf("100644 .git"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tr, err := parseTree(raw)
		if err != nil {
			return
		}
		var b bytes.Buffer
		for _, e := range tr.entries {
			if !fs.ValidPath(e.name) || isDotGit(e.name) {
				t.Errorf("accepted the name %q", e.name)
			}
			b.WriteString(string(e.mode) + " " + e.name + "\x00" + string(e.id[:]))
		}
		if !bytes.Equal(b.Bytes(), raw) {
			t.Error("two trees parse to the same")
		}
	})
}

func FuzzParseURL(f *testing.F) {
	f.Add("https://host/path")
	f.Add("git@host:path")
	f.Fuzz(func(t *testing.T, s string) {
		ep, err := parseURL(s)
		if err == nil && (ep.path == "" || strings.HasPrefix(ep.path, "-") || ep.scheme != "file" && ep.host == "") {
			t.Errorf("accepted %q as %+v", s, ep)
		}
	})
}

// A folder sorts as if its name ended in a slash, and is found by its name.
func TestFindInTree(t *testing.T) {
	t.Parallel()
	var raw []byte
	for _, e := range []string{"100644 a", "100644 a-b", "40000 a0", "100644 a1", "40000 b", "100644 b0", "40000 c"} {
		raw = append(append(raw, e...), 0)
		raw = append(raw, make([]byte, 20)...)
	}
	tr, err := parseTree(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]mode{"a": modeFile, "a-b": modeFile, "a0": modeTree, "a1": modeFile, "b": modeTree, "b0": modeFile, "c": modeTree, "": "", "a/": "", "b/": "", "b/x": "", "d": "", "A": ""} {
		if e, ok := tr.find(name); ok != (want != "") || e.mode != want || ok && e.name != name {
			t.Errorf("%q: %+v, %t", name, e, ok)
		}
	}
}
