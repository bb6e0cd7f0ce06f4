package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// unpacked reads one archive as a desired state.
func unpacked(t testing.TB, layer []byte, l sources.Limits, paths naming) (*tree, error) {
	t.Helper()
	s := newShelf()
	return read(t.Context(), s, repository, t.TempDir(), []descriptor{{MediaType: layerFlux, Digest: s.put(layer), Size: int64(len(layer))}}, l.WithDefaults(), paths)
}

// packed compresses what may be no tar.
func packed(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	for _, p := range parts {
		if _, err := zw.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// raw writes one file under a name that the tar package would not write.
func raw(t testing.TB, name string) []byte {
	t.Helper()
	b := unzipped(t, archive(t, file(strings.Repeat("x", len(name)), "content")))
	copy(b, name)
	return packed(t, checksummed(b))
}

// checksummed corrects the checksum of the first header.
func checksummed(b []byte) []byte {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// TestClass02_path_traversal is about names that lead out of what is unpacked
// (CVE-2022-24877), or that two programs understand differently.
func TestClass02_path_traversal(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"../a", "a/../../b", "a/..", "..", "/etc/passwd", "//a", "a//b", "a/./b", ".", "", "./", "././../a", `..\a`, `a\b`, `C:\a`,
		"a\nb", "a\x7fb", "\xff\xfe", ".git/config", "apps/.GIT/hooks/post-checkout", "a/", "./a/", strings.Repeat("a", 99) + "/..",
	} {
		b := raw(t, name)
		if name == "" {
			b = packed(t, checksummed(append(make([]byte, 148), unzipped(t, archive(t, file("x", "content")))[148:]...)))
		}
		tr, err := unpacked(t, b, sources.Limits{}, relative)
		if err == nil || fault.KindOf(err) != fault.Invalid || tr != nil {
			t.Errorf("%q: %v (%v)", name, err, fault.KindOf(err))
		}
	}
	for name, want := range map[string]string{"a": "a", "./a": "a", "././a": "a", "a/b": "a/b", ".gitignore": ".gitignore", "...": "...", "a b": "a b", "ä": "ä"} {
		tr, err := unpacked(t, raw(t, name), sources.Limits{}, relative)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		} else if b, err := tr.ReadFile(want); err != nil || string(b) != "content" {
			t.Errorf("%q: %q, %v", name, b, err)
		}
	}
	// Only a bundle, which has a root of its own, may begin there.
	if tr, err := unpacked(t, raw(t, "/policy/a.rego"), sources.Limits{}, rooted); err != nil {
		t.Error(err)
	} else if _, err := tr.ReadFile("policy/a.rego"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"//a", "/../a", "/"} {
		if _, err := unpacked(t, raw(t, name), sources.Limits{}, rooted); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestClass07_links_and_devices is about entries that are no files (CVE-2022-24348,
// CVE-2022-24904, source-controller CVE-2026-47680).
func TestClass07_links_and_devices(t *testing.T) {
	t.Parallel()
	for what, h := range map[string]tar.Header{
		"a symlink out":      {Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"a symlink inside":   {Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"},
		"a hard link":        {Name: "a", Typeflag: tar.TypeLink, Linkname: "b"},
		"a character device": {Name: "a", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		"a block device":     {Name: "a", Typeflag: tar.TypeBlock},
		"a pipe":             {Name: "a", Typeflag: tar.TypeFifo},
		"a global path":      {Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "c"}},
	} {
		_, err := unpacked(t, archive(t, file("b", "content"), entry{Header: h}), sources.Limits{}, relative)
		t.Log(what)
		refused(t, err, fault.Invalid, "")
	}
	// A sparse file, whose size says nothing about the archive's.
	content := "1\n0\n5\n" + strings.Repeat("\x00", 506) + "hello"
	sparse := archive(t, entry{tar.Header{Name: "b", Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644, PAXRecords: map[string]string{
		"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "b", "XNU.sparse.realsize": "1000000",
	}}, content})
	_, err := unpacked(t, packed(t, bytes.ReplaceAll(unzipped(t, sparse), []byte("XNU."), []byte("GNU."))), sources.Limits{}, relative)
	refused(t, err, fault.Invalid, "sparse")
	// git archive says which commit it is of.
	b := archive(t, entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Repeat("0", 40)}}}, file("b", "content"))
	if _, err := unpacked(t, b, sources.Limits{}, relative); err != nil {
		t.Error(err)
	}
}

func TestRepeatedEntries(t *testing.T) {
	t.Parallel()
	for what, entries := range map[string][]entry{
		"a file twice":         {file("a", "1"), file("a", "2")},
		"a file in two ways":   {file("a", "1"), file("./a", "2")},
		"a file and a folder":  {file("a", "1"), file("a/b", "2")},
		"a folder and a file":  {file("a/b", "1"), file("a", "2")},
		"a file as a folder":   {file("a", "1"), {Header: tar.Header{Name: "a/", Typeflag: tar.TypeDir}}},
		"a folder as a file":   {{Header: tar.Header{Name: "a/", Typeflag: tar.TypeDir}}, file("a", "1")},
		"the same, far deeper": {file("x/y/z", "1"), file("x/y/z/a", "2")},
	} {
		_, err := unpacked(t, archive(t, entries...), sources.Limits{}, relative)
		t.Log(what)
		refused(t, err, fault.Invalid, "there twice")
	}
	// A folder may be named again.
	if _, err := unpacked(t, archive(t, entry{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir}}, entry{Header: tar.Header{Name: "a/", Typeflag: tar.TypeDir}}, file("a/b", "1"), entry{Header: tar.Header{Name: "./a", Typeflag: tar.TypeDir}}), sources.Limits{}, relative); err != nil {
		t.Error(err)
	}
}

// TestClass20_decompression_bombs is about a few bytes that unfold to gigabytes
// (CVE-2022-31016, CVE-2023-40584, cosign CVE-2024-29902).
func TestClass20_decompression_bombs(t *testing.T) {
	t.Parallel()
	bomb := packed(t, make([]byte, 16<<20))
	header := func(size int64) []byte {
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	many := func(n int, name func(int) string) []byte {
		var all []entry
		for i := range n {
			all = append(all, file(name(i), ""))
		}
		return archive(t, all...)
	}
	deep := strings.Repeat("d/", 63)
	for what, c := range map[string]struct {
		layer   []byte
		limits  sources.Limits
		refusal string
	}{
		"zeros in a file":             {packed(t, header(16<<20), make([]byte, 16<<20)), sources.Limits{File: 1 << 30}, "unfold to more than"},
		"zeros after the end":         {bomb, sources.Limits{}, "unfold to more than"},
		"a file that says too much":   {packed(t, header(1<<40)), sources.Limits{}, "limit is"},
		"a file above the limit":      {archive(t, file("a", "12345")), sources.Limits{File: 4}, `"a" has 5 bytes, the limit is 4`},
		"all files above the limit":   {archive(t, file("a", strings.Repeat("1", 300)), file("b", strings.Repeat("2", 300))), sources.Limits{Bytes: 500}, "its files have more than 500 bytes"},
		"too many files":              {many(11, func(i int) string { return fmt.Sprint(i) }), sources.Limits{Files: 10}, "more than 10 files and folders"},
		"too many folders":            {many(2, func(i int) string { return fmt.Sprintf("%s%d", deep, i) }), sources.Limits{Files: 10}, "more than 10 files and folders"},
		"too many headers":            {archive(t, repeatHeader(tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Repeat("\x01", 1000)}}, 100)...), sources.Limits{Files: 10, Bytes: 1000}, "unfolds to more than"},
		"too deep":                    {archive(t, file(strings.Repeat("d/", 64)+"a", "")), sources.Limits{}, "folders deep"},
		"a path that is too long":     {archive(t, file(strings.Repeat("dddddddddd/", 20)+"a", "")), sources.Limits{PathLength: 200}, "the limit is 200"},
		"a name that is too long":     {archive(t, file(strings.Repeat("n", 256), "")), sources.Limits{}, "the limit is 255"},
		"bombs behind each other":     {slices.Concat(bomb, bomb), sources.Limits{}, "unfold to more than"},
		"nothing":                     {archive(t), sources.Limits{}, "holds no file"},
		"only folders":                {archive(t, entry{Header: tar.Header{Name: "a/", Typeflag: tar.TypeDir}}), sources.Limits{}, "holds no file"},
		"something behind the end":    {packed(t, unzipped(t, archive(t, file("a", "b"))), []byte("evil")), sources.Limits{}, "after its end"},
		"no gzip":                     {[]byte("apiVersion: v1"), sources.Limits{}, "archive"},
		"no tar":                      {packed(t, []byte(strings.Repeat("kind: ConfigMap\n", 64))), sources.Limits{}, "archive"},
		"a file that is cut off":      {packed(t, unzipped(t, archive(t, file("a", strings.Repeat("b", 2000))))[:1024]), sources.Limits{}, "archive"},
		"a compression that is cut":   {archive(t, file("a", strings.Repeat("b", 2000)))[:40], sources.Limits{}, "archive"},
		"a compression that is wrong": {flipped(archive(t, file("a", strings.Repeat("b", 2000)))), sources.Limits{}, "archive"},
	} {
		_, err := unpacked(t, c.layer, c.limits, relative)
		t.Log(what)
		refused(t, err, fault.Invalid, c.refusal)
	}
}

func repeatHeader(h tar.Header, n int) []entry {
	out := make([]entry, n)
	for i := range out {
		out[i].Header = h
	}
	return out
}

func flipped(b []byte) []byte {
	b[len(b)-6] ^= 1 // in the checksum
	return b
}

// TestUnpackIsBounded is about the memory that a bomb takes before it is refused:
// it is refused while it is read, not after.
func TestUnpackIsBounded(t *testing.T) {
	t.Parallel()
	bomb := packed(t, make([]byte, 64<<20))
	u := unpacker{limits: sources.Limits{}.WithDefaults(), root: &node{dir: true, entries: map[string]*node{}}}
	m := &counter{r: bytes.NewReader(bomb)}
	err := u.unpack(m, io.Discard)
	refused(t, err, fault.Invalid, "unfold to more than")
	if m.n > int64(len(bomb))/2 {
		t.Errorf("%d of %d bytes were read", m.n, len(bomb))
	}
}

// TestFullDisk is about a disk that takes no more: that says nothing about the artifact.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	u := unpacker{limits: sources.Limits{}.WithDefaults(), root: &node{dir: true, entries: map[string]*node{}}}
	err := u.unpack(bytes.NewReader(archive(t, file("a", "b"))), disk{full{}})
	refused(t, err, fault.Transient, "no space")
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestModes is about the one thing of a file's mode that counts.
func TestModes(t *testing.T) {
	t.Parallel()
	plain, err := unpacked(t, archive(t, file("a", "b")), sources.Limits{}, relative)
	if err != nil {
		t.Fatal(err)
	}
	h := file("a", "b")
	h.Mode = 0o6755
	run, err := unpacked(t, archive(t, h, entry{Header: tar.Header{Name: "empty/", Typeflag: tar.TypeDir}}), sources.Limits{}, relative)
	if err != nil {
		t.Fatal(err)
	}
	if plain.digest() == run.digest() {
		t.Error("the mode is not in the digest")
	}
	info, err := fs.Stat(run, "a")
	if err != nil || info.Mode() != 0o555 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := fs.Stat(run, "empty"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder without files: %v", err)
	}
	h.Mode = 0o777
	other, err := unpacked(t, archive(t, h), sources.Limits{}, relative)
	if err != nil || other.digest() != run.digest() {
		t.Errorf("what a umask or a folder without files changes is in the digest: %v", err)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	s := newShelf()
	dir := t.TempDir()
	bundle := func(d digest.Digest) Bundle {
		return Bundle{Name: "baseline", Repository: repository, Digest: d.String(), Dir: dir, Registry: s, Admit: anyone}
	}
	const rego = "package main\n"
	single := func(m *manifest, typ, title, content string) {
		m.Layers = append(m.Layers, descriptor{MediaType: typ, Digest: s.put([]byte(content)), Size: int64(len(content)), Annotations: map[string]string{annotationTitle: title}})
	}
	conftest := func(m *manifest) {
		m.Layers = nil
		single(m, layerPolicy, "policy/a.rego", rego)
		single(m, layerData, "policy/data.json", "{}")
	}
	oras := func(m *manifest) { m.Layers[0].MediaType = layerOCI }
	for what, c := range map[string]struct {
		d     digest.Digest
		files []string
	}{
		"conftest push": {s.push("a", nil, conftest), []string{"policy/a.rego", "policy/data.json"}},
		"oras push":     {s.push("b", folder(t, map[string]string{"policy/a.rego": rego}), oras), []string{"policy/a.rego"}},
		"opa build":     {s.push("c", raw(t, "/a.rego"), oras), []string{"a.rego"}},
	} {
		files, err := Policies(t.Context(), bundle(c.d))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, f := range c.files {
			if b, err := fs.ReadFile(files, f); err != nil || len(b) == 0 {
				t.Errorf("%s: %s: %q, %v", what, f, b, err)
			}
		}
		s.down = true
		if _, err := Policies(t.Context(), bundle(c.d)); err != nil {
			t.Errorf("%s, while the registry is down: %v", what, err)
		}
		s.down = false
	}
	for what, edit := range map[string]func(*manifest){
		"a way out":        func(m *manifest) { m.Layers = nil; single(m, layerPolicy, "../a.rego", rego) },
		"from the root":    func(m *manifest) { m.Layers = nil; single(m, layerPolicy, "/a.rego", rego) },
		"no name":          func(m *manifest) { m.Layers = nil; single(m, layerPolicy, "", rego) },
		"a name twice":     func(m *manifest) { conftest(m); single(m, layerPolicy, "policy/a.rego", rego) },
		"something else":   func(m *manifest) { conftest(m); single(m, "application/x-sh", "a.sh", "id") },
		"a desired state":  nil,
		"two archives":     func(m *manifest) { oras(m); m.Layers = append(m.Layers, m.Layers[0]) },
		"nothing in there": func(m *manifest) { m.Layers = nil },
	} {
		_, err := Policies(t.Context(), bundle(s.push("x", folder(t, map[string]string{"a.rego": rego}), edit)))
		t.Log(what)
		refused(t, err, fault.Invalid, map[string]string{"no name": "which names its file"}[what])
	}
	s.asked = nil
	b := bundle(s.tags["b"])
	b.Dir, b.Admit = filepath.Join(dir, "other"), func(context.Context, digest.Digest) error {
		return fault.New(fault.Denied, "verify", "sign it", "no signature by a trusted identity")
	}
	_, err := Policies(t.Context(), b)
	refused(t, err, fault.Denied, "no signature")
	if _, err := os.Stat(b.Dir); len(s.asked) > 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was read before it was admitted: %q, %v", s.asked, err)
	}
	for what, edit := range map[string]func(*Bundle){
		"a tag":             func(b *Bundle) { b.Digest = "latest" },
		"nobody who judges": func(b *Bundle) { b.Admit = nil },
		"no registry":       func(b *Bundle) { b.Registry = nil },
		"no folder":         func(b *Bundle) { b.Dir = "x" },
		"no repository":     func(b *Bundle) { b.Repository = "acme" },
		"a negative limit":  func(b *Bundle) { b.Limits.Bytes = -1 },
	} {
		b := bundle(s.tags["b"])
		edit(&b)
		if files, err := Policies(t.Context(), b); err == nil || files != nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(unzipped(f, archive(f, file("apps/web/stack.yaml", "kind: Stack\n"), entry{Header: tar.Header{Name: "apps/", Typeflag: tar.TypeDir}})))
	f.Add(unzipped(f, archive(f, entry{Header: tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}})))
	f.Add(unzipped(f, archive(f, file("a", "1"), file("a/b", "2"))))
	f.Add(unzipped(f, archive(f, file(strings.Repeat("long/", 60)+"ä", "x"))))
	f.Add(unzipped(f, archive(f, entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}})))
	f.Add(unzipped(f, raw(f, "../a")))
	f.Fuzz(func(t *testing.T, content []byte) {
		var z bytes.Buffer
		zw, err := gzip.NewWriterLevel(&z, gzip.NoCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := zw.Write(content); err != nil || zw.Close() != nil {
			t.Fatal("gzip")
		}
		l := sources.Limits{Bytes: 1 << 16, File: 1 << 12, Files: 64, PathLength: 200}
		u := unpacker{limits: l, root: &node{dir: true, entries: map[string]*node{}}}
		var spool bytes.Buffer
		w := bufio.NewWriter(&spool)
		if err := u.unpack(&z, w); err != nil {
			if k := fault.KindOf(err); k != fault.Invalid {
				t.Errorf("%v is %v", err, k)
			}
			return
		}
		if w.Flush() != nil || int64(spool.Len()) > l.Bytes || u.nodes > l.Files {
			t.Fatalf("%d bytes, %d nodes", spool.Len(), u.nodes)
		}
		tr := newTree(u.root, nil)
		err = fs.WalkDir(tr, ".", func(p string, _ fs.DirEntry, err error) error {
			if !fs.ValidPath(p) || len(p) > l.PathLength || strings.ContainsAny(p, "\\\x00\n") || strings.Contains(p, "..") && strings.Contains("/"+p+"/", "/../") {
				t.Errorf("the name %q", p)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.flux.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.cncf.flux.content.v1.tar+gzip","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}],"annotations":{"org.opencontainers.image.created":"2026-11-21T00:00:00Z"}}`))
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.cncf.openpolicyagent.policy.layer.v1+rego","digest":"sha256:00","size":-1,"annotations":{"org.opencontainers.image.title":"../a"}}]}`))
	f.Add([]byte(`{"layers":[],"Layers":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			if fault.KindOf(err) != fault.Invalid || m != nil {
				t.Errorf("%v", err)
			}
			return
		}
		for _, l := range m.Layers {
			if l.Digest.Validate() != nil || l.Size < 0 {
				t.Errorf("%+v", l)
			}
		}
		if l, err := m.desiredState(); err == nil && !l.archive() {
			t.Errorf("%+v", l)
		}
		_, _ = m.policies()
	})
}
