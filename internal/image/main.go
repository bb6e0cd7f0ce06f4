// Command image owns Holdfast's container image. It puts a built binary into an
// OCI image without Docker, a daemon or a base image: certificate authorities,
// a user without rights, empty folders, and the binary.
//
// It guarantees that the same binary, version and date give the same digest on
// every machine: certificate authorities come from a pinned Go module, times
// are the given one, and nothing is read but its arguments. It refuses binaries
// that are linked to something the image does not have, or built for another
// platform, and a push by plain HTTP to another machine.
package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// nobody is the user in the image: it owns nothing but the state directory.
const nobody = 65532

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "image: error: %v\n", err)
		os.Exit(1)
	}
}

// binary is a built program and the platform that it is for.
type binary struct {
	platform v1.Platform
	content  []byte
}

// spec is everything that decides the digest.
type spec struct {
	binaries []binary
	version  string
	revision string // commit it was built from
	date     time.Time
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says what is wrong
	var s spec
	flags.Func("binary", "OS/ARCH=FILE; once for each platform", func(v string) error {
		b, err := readBinary(v)
		s.binaries = append(s.binaries, b)
		return err
	})
	flags.StringVar(&s.version, "version", "dev", "version, for the labels")
	flags.StringVar(&s.revision, "revision", "", "commit, for the labels")
	flags.Func("date", "date of everything in the image, as SOURCE_DATE_EPOCH: seconds since 1970", func(v string) error {
		var seconds int64
		_, err := fmt.Sscanf(v, "%d", &seconds)
		s.date = time.Unix(seconds, 0).UTC()
		return err
	})
	archive := flags.String("o", "", "OCI archive to write")
	push := flags.String("push", "", "reference to push to, for example registry.example.com/holdfast/holdfast:1.0; signs in as docker and podman do")
	if err := flags.Parse(args); err != nil {
		return err
	}
	index, err := s.index()
	if err != nil {
		return err
	}
	if *archive != "" {
		if err := writeArchive(*archive, index, s.version, s.date); err != nil {
			return err
		}
	}
	if *push != "" {
		if err := pushIndex(ctx, *push, index); err != nil {
			return err
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, digest)
	return err
}

// readBinary reads OS/ARCH=FILE.
func readBinary(arg string) (binary, error) {
	platform, file, ok := strings.Cut(arg, "=")
	if !ok {
		return binary{}, fmt.Errorf("%q is not OS/ARCH=FILE", arg)
	}
	p, err := v1.ParsePlatform(platform)
	if err != nil {
		return binary{}, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return binary{}, err
	}
	return binary{*p, content}, nil
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// check refuses what could not run in an image with nothing else in it.
func (b binary) check() error {
	f, err := elf.NewFile(bytes.NewReader(b.content))
	if err != nil {
		return fmt.Errorf("the binary for %s: %w", b.platform, err)
	}
	defer f.Close() //nolint:errcheck // of a buffer
	if machine, ok := machines[b.platform.Architecture]; !ok || b.platform.OS != "linux" || f.Machine != machine {
		return fmt.Errorf("the binary for %s is for %s", b.platform, f.Machine)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return fmt.Errorf("the binary for %s is not static: build it with CGO_ENABLED=0", b.platform)
	}
	return nil
}

// index is one image for each platform.
func (s spec) index() (v1.ImageIndex, error) {
	if len(s.binaries) == 0 {
		return nil, errors.New("name a binary")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range s.binaries {
		image, err := s.image(b)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &b.platform}})
	}
	return index, nil
}

// image puts one binary on what it needs. The layer that changes with each
// version comes last.
func (s spec) image(b binary) (v1.Image, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	base, err := layer(s.date, baseFiles())
	if err != nil {
		return nil, err
	}
	program, err := layer(s.date, []file{{path: "usr/local/bin/holdfast", mode: 0o755, content: b.content}})
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: b.platform.Architecture, OS: b.platform.OS, Created: v1.Time{Time: s.date},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       fmt.Sprintf("%d:%d", nobody, nobody),
			Env:        []string{"PATH=/usr/local/bin"},
			Entrypoint: []string{"/usr/local/bin/holdfast"},
			Cmd:        []string{"run", "-c", "/etc/holdfast/holdfast.yaml"},
			WorkingDir: "/",
			Labels:     s.labels(),
		},
	})
	if err != nil {
		return nil, err
	}
	var layers []mutate.Addendum
	for _, l := range []struct {
		layer v1.Layer
		what  string
	}{{base, "certificate authorities and a user"}, {program, "holdfast " + s.version}} {
		layers = append(layers, mutate.Addendum{Layer: l.layer, MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: s.date}, CreatedBy: l.what}})
	}
	return mutate.Append(image, layers...)
}

// labels are the annotations of the OCI image specification.
func (s spec) labels() map[string]string {
	const prefix = "org.opencontainers.image."
	labels := map[string]string{
		prefix + "title":       "Holdfast",
		prefix + "description": "A pull-based GitOps reconciler that proves what it deploys",
		prefix + "source":      "https://github.com/holdfast-dev/holdfast",
		prefix + "licenses":    "Apache-2.0",
		prefix + "version":     s.version,
		prefix + "created":     s.date.Format(time.RFC3339),
	}
	if s.revision != "" {
		labels[prefix+"revision"] = s.revision
	}
	return labels
}

// baseFiles are what a static Go program misses in an empty image.
func baseFiles() []file {
	user := fmt.Sprintf("nonroot:x:%d:%d:nonroot:/var/lib/holdfast:/usr/sbin/nologin\n", nobody, nobody)
	return []file{
		{path: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/usr/sbin/nologin\n" + user)},
		{path: "etc/group", mode: 0o644, content: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nobody)},
		{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, content: authorities()},
		{path: "etc/holdfast/", mode: 0o755},
		{path: "tmp/", mode: 0o1777},
		{path: "var/lib/holdfast/", mode: 0o700, owner: nobody},
	}
}

// authorities are Mozilla's, in PEM. Those that are trusted under a condition are
// left out, because PEM cannot say so.
func authorities() []byte {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes everything
		}
	}
	return b.Bytes()
}

// pushIndex pushes with the credentials that the user has for the registry.
func pushIndex(ctx context.Context, reference string, index v1.ImageIndex) error {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	if host := ref.Context().Registry; host.Scheme() != "https" && !strings.HasPrefix(host.Name(), "127.0.0.1:") && !strings.HasPrefix(host.Name(), "localhost:") {
		return fmt.Errorf("%s is reached by plain HTTP", host.Name())
	}
	return remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
}
