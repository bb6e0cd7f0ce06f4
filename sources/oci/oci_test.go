package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/sources/sourcestest"
)

const repository = "registry.test/acme/desired-state"

var errDown = errors.New("connection refused")

// shelf is a registry in memory. It answers what it was told to, true or not.
type shelf struct {
	mu    sync.Mutex
	tags  map[string]digest.Digest
	under map[digest.Digest][]byte
	down  bool
	asked []string
}

func newShelf() *shelf {
	return &shelf{tags: map[string]digest.Digest{}, under: map[digest.Digest][]byte{}}
}

func (s *shelf) ask(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
	if s.down {
		return errDown
	}
	return nil
}

func (s *shelf) PeekTag(_ context.Context, _, tag string) (digest.Digest, error) {
	if err := s.ask("tag " + tag); err != nil {
		return "", err
	}
	if d, ok := s.tags[tag]; ok {
		return d, nil
	}
	return "", errors.New("not found")
}

func (s *shelf) Tags(context.Context, string) ([]string, error) {
	return slices.Collect(maps.Keys(s.tags)), s.ask("tags")
}

func (s *shelf) Manifest(ctx context.Context, _ string, d digest.Digest) ([]byte, error) {
	return s.get(ctx, "manifest", d)
}

func (s *shelf) Open(ctx context.Context, _ string, d digest.Digest, _ int64) (io.ReadCloser, error) {
	b, err := s.get(ctx, "blob", d)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (s *shelf) get(ctx context.Context, what string, d digest.Digest) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.ask(what + " " + d.String()); err != nil {
		return nil, err
	}
	b, ok := s.under[d]
	if !ok {
		return nil, errors.New("not found")
	}
	return b, nil
}

func (s *shelf) put(b []byte) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(b)
	s.under[d] = b
	return d
}

// push puts an artifact there as flux does, changed by edit, and tags it.
func (s *shelf) push(tag string, layer []byte, edit func(*manifest)) digest.Digest {
	m := &manifest{
		SchemaVersion: 2, MediaType: manifestType,
		Config:      descriptor{MediaType: "application/vnd.cncf.flux.config.v1+json", Digest: s.put([]byte("{}")), Size: 2},
		Layers:      []descriptor{{MediaType: layerFlux, Digest: s.put(layer), Size: int64(len(layer))}},
		Annotations: map[string]string{annotationCreated: time.Now().UTC().Format(time.RFC3339Nano)},
	}
	if edit != nil {
		edit(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	d := s.put(b)
	s.tags[tag] = d
	return d
}

func made(at time.Time) func(*manifest) {
	return func(m *manifest) { m.Annotations[annotationCreated] = at.UTC().Format(time.RFC3339) }
}

func version(v string) func(*manifest) {
	return func(m *manifest) { m.Annotations[annotationVersion] = v }
}

// entry is one entry of an archive.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}, content}
}

// archive writes entries as a compressed tar.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func folder(t testing.TB, files map[string]string) []byte {
	var all []entry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		all = append(all, file(name, files[name]))
	}
	return archive(t, all...)
}

func anyone(context.Context, digest.Digest) error { return nil }

func open(t testing.TB, s *shelf, edit func(*Config)) *Source {
	t.Helper()
	c := Config{Name: "fleet", Repository: repository, Tag: "production", Dir: filepath.Join(t.TempDir(), "oci"), Registry: s, Admit: anyone}
	if edit != nil {
		edit(&c)
	}
	src, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func fetch(t testing.TB, s *Source) *sources.Snapshot {
	t.Helper()
	r, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Fetch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func revision(d digest.Digest) sources.Revision {
	return sources.Revision{Source: "fleet", ID: d.String()}
}

// refused checks that err is of a kind, has a hint, and says what is wrong.
func refused(t *testing.T, err error, kind fault.Kind, text string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), text) || fault.HintOf(err) == "" {
		t.Errorf("%v (%v), hint %q; want %v with %q", err, fault.KindOf(err), fault.HintOf(err), kind, text)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sourcestest.Run(t, func(t *testing.T) (sources.Source, func(map[string]string) string) {
		s := newShelf()
		return open(t, s, nil), func(files map[string]string) string {
			return s.push("production", folder(t, files), nil).String()
		}
	})
}

func TestNew(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*Config){
		"no name":            func(c *Config) { c.Name = "" },
		"no registry":        func(c *Config) { c.Registry = nil },
		"nobody who judges":  func(c *Config) { c.Admit = nil },
		"no host":            func(c *Config) { c.Repository = "acme/desired-state" },
		"a scheme":           func(c *Config) { c.Repository = "oci://" + repository },
		"a tag in the name":  func(c *Config) { c.Repository = repository + ":1" },
		"a way out":          func(c *Config) { c.Repository = "registry.test/../x" },
		"neither":            func(c *Config) { c.Tag = "" },
		"both":               func(c *Config) { c.Semver = ">=1.0.0" },
		"an option as a tag": func(c *Config) { c.Tag = "-x" },
		"no range":           func(c *Config) { c.Tag, c.Semver = "", "newest" },
		"no folder":          func(c *Config) { c.Dir = "oci" },
		"a negative limit":   func(c *Config) { c.Limits.Files = -1 },
	} {
		c := Config{Name: "fleet", Repository: repository, Tag: "production", Dir: t.TempDir(), Registry: newShelf(), Admit: anyone}
		edit(&c)
		if s, err := New(c); err == nil || s != nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestAdmitFirst is about the order in which an artifact is judged and read:
// nothing of one that is refused is asked for.
func TestAdmitFirst(t *testing.T) {
	t.Parallel()
	s := newShelf()
	d := s.push("production", folder(t, map[string]string{"a": "b"}), nil)
	for kind, text := range map[fault.Kind]string{fault.Denied: "no signature by a trusted identity", fault.Waiting: "no signature yet", fault.Transient: "no answer"} {
		src := open(t, s, func(c *Config) {
			c.Admit = func(_ context.Context, got digest.Digest) error {
				if got != d {
					t.Errorf("asked about %s", got)
				}
				return fault.New(kind, "verify", "sign it", "%s", text)
			}
		})
		_, err := src.Fetch(t.Context(), revision(d))
		refused(t, err, kind, text)
		if _, err := os.Stat(src.store.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("something was written: %v", err)
		}
	}
	if len(s.asked) > 0 {
		t.Errorf("the registry was asked for %q", s.asked)
	}
}

// TestClass21_tag_moves_between_verification_and_fetch is about what is read
// after something else was verified (Kyverno CVE-2022-47633, Crossplane
// GHSA-mf7q-r4rv-jv94): the digest that was admitted is the one that is read,
// whatever the tag and the registry say by then.
func TestClass21_tag_moves_between_verification_and_fetch(t *testing.T) {
	t.Parallel()
	s := newShelf()
	good := s.push("production", folder(t, map[string]string{"a": "good"}), nil)
	src := open(t, s, func(c *Config) {
		c.Admit = func(context.Context, digest.Digest) error {
			s.push("production", folder(t, map[string]string{"a": "evil"}), nil)
			return nil
		}
	})
	if b, err := fs.ReadFile(fetch(t, src).FS, "a"); err != nil || string(b) != "good" {
		t.Errorf("%q, %v", b, err)
	}
	// A registry that has other content under the digest.
	evil := s.under[s.tags["production"]]
	layer := good
	for d, b := range s.under {
		if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) && d != good {
			layer = d
		}
	}
	for what, lie := range map[digest.Digest][]byte{good: evil, layer: folder(t, map[string]string{"a": "evil"})} {
		s := &shelf{tags: maps.Clone(s.tags), under: maps.Clone(s.under)}
		for d := range s.under { // the only layer that is asked for
			if bytes.HasPrefix(s.under[d], []byte{0x1f, 0x8b}) && what != good {
				s.under[d] = lie
			}
		}
		if what == good {
			s.under[good] = lie
		}
		src := open(t, s, nil)
		snap, err := src.Fetch(t.Context(), revision(good))
		refused(t, err, fault.Transient, "sha256:")
		if snap != nil {
			t.Error("a snapshot of it")
		}
		if left, err := filepath.Glob(filepath.Join(src.store.dir, newPrefix+"*")); err != nil || len(left) > 0 {
			t.Errorf("%q is left", left)
		}
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	s := newShelf()
	src := open(t, s, nil)
	_, err := src.Head(t.Context())
	refused(t, err, fault.Transient, "not found")
	s.down = true
	_, err = src.Head(t.Context())
	refused(t, err, fault.Transient, "refused")
}

func TestHeadOfVersions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		semver string
		tags   []string
		want   string
	}{
		"the highest":              {">=1.0.0", []string{"1.0.0", "v1.10.0", "1.9.0", "latest", "sha256-ab.sig"}, "v1.10.0"},
		"in the range":             {">=1.0.0 <2.0.0", []string{"1.0.0", "2.0.0", "0.9.0"}, "1.0.0"},
		"no pre-release":           {">=1.0.0", []string{"1.0.0", "2.0.0-rc.1"}, "1.0.0"},
		"a pre-release asked for":  {">=1.0.0-0", []string{"1.0.0", "2.0.0-rc.1"}, "2.0.0-rc.1"},
		"a pre-release is not 2.0": {">=1.0.0 <2.0.0", []string{"1.0.0", "2.0.0-rc.1"}, "1.0.0"},
		"with a wildcard":          {"1.x", []string{"1.2.0", "2.0.0"}, "1.2.0"},
		"none":                     {">=3.0.0", []string{"1.0.0"}, ""},
	} {
		s := newShelf()
		for _, tag := range c.tags {
			s.push(tag, folder(t, map[string]string{"tag": tag}), nil)
		}
		r, err := open(t, s, func(conf *Config) { conf.Tag, conf.Semver = "", c.semver }).Head(t.Context())
		if c.want == "" {
			refused(t, err, fault.Transient, "none of the")
		} else if err != nil || r.ID != s.tags[c.want].String() {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// TestOrder is about tags that are moved: only forward, as the publisher signed it.
func TestOrder(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	s := newShelf()
	n := 0
	push := func(edit func(*manifest)) string {
		n++
		return s.push("t", folder(t, map[string]string{"n": fmt.Sprint(n)}), edit).String()
	}
	first, second := push(made(now.Add(-2*time.Hour))), push(made(now.Add(-time.Hour)))
	same := push(made(now.Add(-time.Hour)))
	undated := push(func(m *manifest) { delete(m.Annotations, annotationCreated) })
	garbled := push(func(m *manifest) { m.Annotations[annotationCreated] = "yesterday" })
	future := push(made(now.Add(24 * time.Hour)))
	ahead := push(made(now.Add(5 * time.Minute)))
	src := open(t, s, nil)
	for name, c := range map[string]struct {
		from, head string
		refusal    string
	}{
		"the first":               {"", first, ""},
		"forward":                 {first, second, ""},
		"where it is":             {second, second, ""},
		"back":                    {second, first, "moved back or sideways"},
		"sideways":                {second, same, "moved back or sideways"},
		"without a date":          {first, undated, "does not say when"},
		"without a date at first": {"", undated, "does not say when"},
		"a date that is none":     {first, garbled, `is "yesterday"`},
		"a date to come":          {first, future, "yet to come"},
		"a clock that is ahead":   {second, ahead, ""},
	} {
		a, err := src.Advance(t.Context(), c.from, c.head, now)
		if c.refusal == "" {
			if err != nil || a.Digest.String() != c.head || a.Created.IsZero() {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
			continue
		}
		refused(t, err, fault.Denied, c.refusal)
	}
	if err := src.Follows(t.Context(), second, first); fault.KindOf(err) != fault.Denied {
		t.Errorf("%v", err)
	}
	if err := src.Follows(t.Context(), "0000000000000000000000000000000000000000", first); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a commit: %v", err)
	}
}

// TestOrderOfVersions is about a range of versions, where the signed version is
// the order. The tag is nobody's word.
func TestOrderOfVersions(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := newShelf()
	v1 := s.push("1.0.0", folder(t, map[string]string{"a": "1"}), version("1.0.0")).String()
	v2 := s.push("1.2.0", folder(t, map[string]string{"a": "2"}), version("v1.2.0")).String()
	backport := s.push("1.1.9", folder(t, map[string]string{"a": "3"}), version("1.1.9")).String()
	silent := s.push("1.9.0", folder(t, map[string]string{"a": "4"}), nil).String()
	beyond := s.push("1.9.1", folder(t, map[string]string{"a": "5"}), version("2.0.0")).String()
	again := s.push("1.2.0", folder(t, map[string]string{"a": "6"}), version("1.2.0")).String()
	src := open(t, s, func(c *Config) { c.Tag, c.Semver = "", ">=1.0.0 <2.0.0" })
	for _, c := range []struct{ from, head, refusal string }{
		{"", v1, ""}, {v1, v2, ""}, {v1, backport, ""},
		{v2, v1, "moved back"}, {v2, backport, "moved back"}, {v2, again, "moved back or sideways"},
		{v1, silent, "none of"}, {"", silent, "none of"}, {v1, beyond, "none of"},
	} {
		_, err := src.Advance(t.Context(), c.from, c.head, now)
		if c.refusal == "" && err != nil {
			t.Errorf("%v", err)
		} else if c.refusal != "" {
			refused(t, err, fault.Denied, c.refusal)
		}
	}
	// What came before the versions were followed has only a date.
	old := s.push("x", folder(t, map[string]string{"a": "7"}), made(now.Add(-time.Hour))).String()
	if _, err := src.Advance(t.Context(), old, v1, now); err != nil {
		t.Errorf("from a date to a version: %v", err)
	}
	late := s.push("x", folder(t, map[string]string{"a": "8"}), made(now.Add(time.Hour))).String()
	if _, err := src.Advance(t.Context(), late, v1, now); fault.KindOf(err) != fault.Denied {
		t.Errorf("from a later date to a version: %v", err)
	}
}

// TestAnnotations is about an artifact that was signed for another purpose.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	s := newShelf()
	staging := s.push("production", folder(t, map[string]string{"a": "staging"}), func(m *manifest) { m.Annotations["acme.example/channel"] = "staging" })
	none := s.push("production", folder(t, map[string]string{"a": "none"}), nil)
	right := s.push("production", folder(t, map[string]string{"a": "right"}), func(m *manifest) { m.Annotations["acme.example/channel"] = "production" })
	src := open(t, s, func(c *Config) { c.Annotations = map[string]string{"acme.example/channel": "production"} })
	for _, d := range []digest.Digest{staging, none} {
		_, err := src.Fetch(t.Context(), revision(d))
		refused(t, err, fault.Denied, "acme.example/channel")
		_, err = src.Advance(t.Context(), "", d.String(), time.Now())
		refused(t, err, fault.Denied, "acme.example/channel")
	}
	if _, err := src.Fetch(t.Context(), revision(right)); err != nil {
		t.Error(err)
	}
}

func TestManifests(t *testing.T) {
	t.Parallel()
	content := map[string]string{"a": "b"}
	for name, c := range map[string]struct {
		edit    func(*manifest)
		refusal string
	}{
		"flux": {nil, ""},
		"oras": {func(m *manifest) {
			m.Layers[0].MediaType, m.Config.MediaType = layerOCI, "application/vnd.oci.empty.v1+json"
		}, ""},
		"without a media type":     {func(m *manifest) { m.MediaType = "" }, ""},
		"an index":                 {func(m *manifest) { m.MediaType = "application/vnd.oci.image.index.v1+json" }, "application/vnd.oci.image.index"},
		"a container image":        {func(m *manifest) { m.Layers[0].MediaType, m.Config.MediaType = layerOCI, imageConfigs[0] }, "container image"},
		"a Docker image":           {func(m *manifest) { m.Layers[0].MediaType, m.Config.MediaType = layerOCI, imageConfigs[1] }, "container image"},
		"another version":          {func(m *manifest) { m.SchemaVersion = 1 }, "schema version 1"},
		"no layers":                {func(m *manifest) { m.Layers = nil }, "no layers"},
		"two layers":               {func(m *manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, "2 layers"},
		"thousands of layers":      {func(m *manifest) { m.Layers = slices.Repeat(m.Layers, 1001) }, "1001 layers"},
		"a Helm chart":             {func(m *manifest) { m.Layers[0].MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip" }, "helm.chart"},
		"a single file":            {func(m *manifest) { m.Layers[0].MediaType = "application/vnd.oci.image.layer.v1.tar" }, "its layer is a"},
		"no digest":                {func(m *manifest) { m.Layers[0].Digest = "" }, "digest"},
		"another algorithm":        {func(m *manifest) { m.Layers[0].Digest = digest.Digest("sha512:" + strings.Repeat("0", 128)) }, "digest"},
		"a path as a digest":       {func(m *manifest) { m.Layers[0].Digest = "sha256:../../../etc/passwd" }, "digest"},
		"a negative size":          {func(m *manifest) { m.Layers[0].Size = -1 }, "size -1"},
		"a size beyond the limits": {func(m *manifest) { m.Layers[0].Size = 1 << 40 }, "more than"},
	} {
		s := newShelf()
		d := s.push("production", folder(t, content), c.edit)
		_, err := open(t, s, nil).Fetch(t.Context(), revision(d))
		if c.refusal == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		t.Log(name)
		refused(t, err, fault.Invalid, c.refusal)
	}
	s := newShelf()
	for _, raw := range []string{
		"", "{", "[]", `{"schemaVersion":2,"layers":[],"layers":[{}]}`, `{"schemaVersion":2} {}`,
		strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000),
	} {
		_, err := open(t, s, nil).Fetch(t.Context(), revision(s.put([]byte(raw))))
		refused(t, err, fault.Invalid, "malformed")
	}
	// Names in another case are other names.
	_, err := open(t, s, nil).Fetch(t.Context(), revision(s.put([]byte(`{"schemaVersion":2,"Layers":[{}]}`))))
	refused(t, err, fault.Invalid, "no layers")
}

// TestLocal is about what is there while the registry is not.
func TestLocal(t *testing.T) {
	t.Parallel()
	s := newShelf()
	d := s.push("production", folder(t, map[string]string{"a": "b"}), nil)
	dir := filepath.Join(t.TempDir(), "oci")
	at := func(c *Config) { c.Dir = dir }
	_, err := open(t, s, at).Local(t.Context(), revision(d))
	refused(t, err, fault.Transient, "not on disk")
	want := fetch(t, open(t, s, at)).Tree
	s.down, s.asked = true, nil
	again := open(t, s, at)
	snap, err := again.Local(t.Context(), revision(d))
	if err != nil || snap.Tree != want {
		t.Fatalf("%v, %v", snap, err)
	}
	if snap, err = again.Fetch(t.Context(), revision(d)); err != nil || snap.Tree != want {
		t.Errorf("what is kept is fetched: %v, %v", snap, err)
	}
	if _, err := again.Advance(t.Context(), d.String(), d.String(), time.Now()); err != nil {
		t.Errorf("%v", err)
	}
	if len(s.asked) > 0 {
		t.Errorf("the registry was asked for %q", s.asked)
	}
	// What is damaged on disk is not used, and is brought again.
	for _, name := range keptIn(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Local(t.Context(), revision(d)); fault.KindOf(err) != fault.Transient {
			t.Errorf("%s is damaged: %v", name, err)
		}
		s.down = false
		if snap := fetch(t, again); snap.Tree != want {
			t.Errorf("%s was brought again as %s", name, snap.Tree)
		}
		s.down = true
	}
}

// keptIn returns the names of what a folder keeps.
func keptIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// TestStore is about what is kept on disk: within a limit, the newest first, and
// without what a crash left.
func TestStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, newPrefix+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newShelf()
	st := &store{dir: dir, most: 250, content: s}
	var all []digest.Digest
	for i := range 4 {
		d := s.put(bytes.Repeat([]byte{byte(i)}, 100))
		all = append(all, d)
		r, err := st.Open(t.Context(), repository, d, 100)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || digest.FromBytes(b) != d {
			t.Errorf("%d: %q, %v", i, b, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		long := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(st.path(d), long, long); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // it is of use again
			st.used(all[0])
		}
	}
	want := []string{filepath.Base(st.path(all[0])), filepath.Base(st.path(all[3]))}
	slices.Sort(want)
	if got := keptIn(t, dir); !slices.Equal(got, want) {
		t.Errorf("it keeps %q, want %q", got, want)
	}
	// Another size than the manifest says is another blob.
	s.down = true
	if _, err := st.Open(t.Context(), repository, all[3], 99); err == nil {
		t.Error("a blob of another size")
	}
}

// TestDamagedSpool is about a disk that changes what was unpacked.
func TestDamagedSpool(t *testing.T) {
	t.Parallel()
	s := newShelf()
	s.push("production", folder(t, map[string]string{"a": "good"}), nil)
	snap := fetch(t, open(t, s, nil))
	tr, ok := snap.FS.(*tree)
	if !ok {
		t.Fatal("another file system")
	}
	if _, err := tr.spool.WriteAt([]byte("evil"), 0); err != nil {
		t.Fatal(err)
	}
	b, err := fs.ReadFile(snap.FS, "a")
	if b != nil || fault.KindOf(err) != fault.Transient {
		t.Errorf("%q, %v", b, err)
	}
}
