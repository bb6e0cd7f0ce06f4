package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// programs is the folder of what the tests build.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = os.MkdirTemp("", "image-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

// program builds a static program once.
func program(name string, args ...string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		path := filepath.Join(programs, name)
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", path}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", errors.New(string(out))
		}
		return path, nil
	})
}

// holdfast is the real thing, as "make image" builds it; small is quicker to pack.
var (
	holdfast = program("holdfast", "-ldflags", "-s -w -X main.version=1.2.3", "../../cmd/holdfast")
	small    = program("small", "testdata/small.go")
)

func built(t *testing.T, program func() (string, error)) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build runs the command and returns the digest that it prints and the archive.
func build(t *testing.T, program func() (string, error), args ...string) (digest, archive string) {
	t.Helper()
	archive = filepath.Join(t.TempDir(), "image.tar")
	var out bytes.Buffer
	args = append([]string{"-binary", "linux/" + runtime.GOARCH + "=" + built(t, program), "-version", "1.2.3", "-revision", "abc", "-date", "1700000000", "-o", archive}, args...)
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String()), archive
}

// unpack writes a tar stream below dir, without owners.
func unpack(t *testing.T, r io.Reader, dir string) (headers map[string]*tar.Header) {
	t.Helper()
	headers = map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name] = h
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(to, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		content, err := io.ReadAll(tr)
		if err == nil {
			err = os.WriteFile(to, content, h.FileInfo().Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// open reads an archive back and returns the image for this platform.
func open(t *testing.T, archive string) (v1.ImageIndex, v1.Image) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	unpack(t, f, dir)
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%v, %v", manifest, err)
	}
	index, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	inner, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(inner.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index, image
}

func TestSameInputSameDigest(t *testing.T) {
	t.Parallel()
	one, first := build(t, small)
	two, second := build(t, small)
	if one != two {
		t.Errorf("%s, then %s", one, two)
	}
	a, errA := os.ReadFile(first)
	b, errB := os.ReadFile(second)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("two archives differ: %v, %v", errA, errB)
	}
	index, _ := open(t, first)
	if digest, err := index.Digest(); err != nil || digest.String() != one {
		t.Errorf("the archive has %s, printed was %s: %v", digest, one, err)
	}
	if other, _ := build(t, small, "-date", "1700000001"); other == one {
		t.Error("the date is not in the image")
	}
}

func TestWhatIsInTheImage(t *testing.T) {
	t.Parallel()
	_, archive := build(t, holdfast)
	_, image := open(t, archive)
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if c.User != "65532:65532" || strings.Join(c.Entrypoint, " ") != "/usr/local/bin/holdfast" || strings.Join(c.Cmd, " ") != "run -c /etc/holdfast/holdfast.yaml" ||
		c.Labels["org.opencontainers.image.version"] != "1.2.3" || c.Labels["org.opencontainers.image.revision"] != "abc" || config.Created.Unix() != 1700000000 {
		t.Errorf("config: %+v", config)
	}
	root := t.TempDir()
	headers := unpack(t, mutate.Extract(image), root)
	for name, want := range map[string]struct {
		mode int64
		uid  int
	}{
		"etc/passwd": {0o644, 0}, "tmp/": {0o1777, 0}, "var/lib/holdfast/": {0o700, nobody}, "usr/local/bin/holdfast": {0o755, 0},
	} {
		h := headers[name]
		if h == nil {
			h = headers[strings.TrimSuffix(name, "/")]
		}
		if h == nil || h.Mode != want.mode || h.Uid != want.uid {
			t.Errorf("%s: %+v", name, h)
		}
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil || !pool.AppendCertsFromPEM(pem) || bytes.Count(pem, []byte("BEGIN CERTIFICATE")) < 50 {
		t.Errorf("certificate authorities: %d bytes, %v", len(pem), err)
	}

	// Nothing else is needed: the program runs with the image as all there is.
	cmd := exec.CommandContext(t.Context(), "/usr/local/bin/holdfast", "version")
	cmd.Dir, cmd.Env = "/", c.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: os.Getgid(), Size: 1}},
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) && len(out) == 0 {
		t.Skip("this kernel lets nobody make a user namespace")
	}
	if err != nil || !strings.Contains(string(out), "1.2.3") {
		t.Errorf("version: %v: %s", err, out)
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	digest, _ := build(t, small, "-push", host+"/holdfast/holdfast:1.2.3")
	ref, err := name.ParseReference(host + "/holdfast/holdfast@" + digest)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	here, other := "linux/"+runtime.GOARCH, "linux/arm64"
	if runtime.GOARCH == "arm64" {
		other = "linux/amd64"
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("text "), 100), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no binary":         {nil, "name a binary"},
		"no platform":       {[]string{"-binary", built(t, small)}, "OS/ARCH=FILE"},
		"another platform":  {[]string{"-binary", other + "=" + built(t, small)}, "is for"},
		"not a program":     {[]string{"-binary", here + "=" + text}, "bad magic"},
		"a linked program":  {[]string{"-binary", here + "=/bin/sh"}, "not static"},
		"no date":           {[]string{"-date", "yesterday"}, "expected integer"},
		"plain HTTP abroad": {[]string{"-binary", here + "=" + built(t, small), "-push", "10.0.0.1:5000/x/y:1"}, "plain HTTP"},
	} {
		if err := run(context.Background(), c.args, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
