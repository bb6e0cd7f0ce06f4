package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-dev/holdfast/internal/world"
)

const (
	fluxConfig  = "application/vnd.cncf.flux.config.v1+json"
	fluxLayer   = "application/vnd.cncf.flux.content.v1.tar+gzip"
	policyLayer = "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
)

// ociDescriptor names a layer.
type ociDescriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// rawManifest is what remote.Put pushes.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return ociManifest, nil }

// artifact pushes a folder to acme/desired-state as flux push artifact does, or
// the .rego files of one to acme/policies as conftest push does, and sets $HEAD or
// $BUNDLE to its digest: "artifact TAG FOLDER|bomb signed|unsigned|wrong-key
// [created=DURATION]", "artifact policies FOLDER …". The registry ends, or a tag
// is moved, by "artifact stop" and "artifact retag TAG DIGEST".
func (s *script) artifact(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "stop":
		s.check(ts, s.w.Registry.Close())
		return
	case "retag":
		repo := s.ociRepository(ts, "acme/desired-state")
		d, err := remote.Get(repo.Digest(args[2]), s.registryOptions()...)
		s.check(ts, err)
		s.check(ts, remote.Tag(repo.Tag(args[1]), d, s.registryOptions()...))
		ts.Setenv("HEAD", args[2])
		return
	case "policies":
		ts.Setenv("BUNDLE", s.pushArtifact(ts, "acme/policies", "1", world.Release(args[2]), time.Unix(0, 0), s.policyLayers(ts, ts.MkAbs(args[1]))))
		return
	}
	created := time.Now()
	for _, a := range args[3:] {
		offset, err := time.ParseDuration(strings.TrimPrefix(a, "created="))
		s.check(ts, err)
		created = created.Add(offset)
	}
	layer, err := tarball(ts.MkAbs(args[1]))
	if args[1] == "bomb" {
		layer, err = bomb()
	}
	s.check(ts, err)
	layers := []ociDescriptor{s.pushLayer(ts, "acme/desired-state", fluxLayer, layer)}
	ts.Setenv("HEAD", s.pushArtifact(ts, "acme/desired-state", args[0], world.Release(args[2]), created, layers))
}

func (s *script) ociRepository(ts *testscript.TestScript, path string) name.Repository {
	repo, err := name.NewRepository(s.w.Registry.Host + "/" + path)
	s.check(ts, err)
	return repo
}

func (s *script) registryOptions() []remote.Option {
	return []remote.Option{
		remote.WithContext(s.t.Context()), remote.WithTransport(s.w.Registry.Transport()),
		remote.WithAuth(&authn.Basic{Username: s.w.Registry.Username, Password: s.w.Registry.Password}),
	}
}

func (s *script) pushLayer(ts *testscript.TestScript, path, mediaType string, content []byte) ociDescriptor {
	layer := static.NewLayer(content, types.MediaType(mediaType))
	s.check(ts, remote.WriteLayer(s.ociRepository(ts, path), layer, s.registryOptions()...))
	return ociDescriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// pushArtifact pushes the manifest, signs it as release says, and returns its digest.
func (s *script) pushArtifact(ts *testscript.TestScript, path, tag string, release world.Release, created time.Time, layers []ociDescriptor) string {
	m, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "config": s.pushLayer(ts, path, fluxConfig, []byte("{}")), "layers": layers,
		"annotations": map[string]string{"org.opencontainers.image.created": created.UTC().Format(time.RFC3339Nano)},
	})
	s.check(ts, err)
	s.check(ts, remote.Put(s.ociRepository(ts, path).Tag(tag), rawManifest(m), s.registryOptions()...))
	d := digest.FromBytes(m).String()
	if release == world.Signed {
		release = world.NoSBOM // a desired state has none
	}
	if release != world.Unsigned {
		s.check(ts, s.w.Sign(s.t.Context(), path, d, release, false))
	}
	return d
}

func (s *script) policyLayers(ts *testscript.TestScript, dir string) (layers []ociDescriptor) {
	files, err := filepath.Glob(filepath.Join(dir, "*.rego"))
	s.check(ts, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		s.check(ts, err)
		d := s.pushLayer(ts, "acme/policies", policyLayer, b)
		d.Annotations = map[string]string{"org.opencontainers.image.title": "policy/" + filepath.Base(f)}
		layers = append(layers, d)
	}
	return layers
}

// tarball packs a folder, without .git.
func tarball(dir string) ([]byte, error) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.Name() == ".git":
			return fs.SkipDir
		case e.Type()&fs.ModeSymlink != 0:
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			return tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})
		case !e.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = tw.Write(content)
		return err
	})
	err = errors.Join(err, tw.Close(), zw.Close())
	return b.Bytes(), err
}

// bomb is files of zeros, a thousandth of their size.
func bomb() ([]byte, error) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	zeros := make([]byte, 4<<20)
	var err error
	for i := range 16 {
		err = errors.Join(err, tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(zeros))}))
		if err == nil {
			_, err = tw.Write(zeros)
		}
	}
	err = errors.Join(err, tw.Close(), zw.Close())
	return b.Bytes(), err
}

// ociSource makes the desired state an OCI artifact: "setoci 'tag: production'".
// It adds rules for artifacts and policies by the release key.
func (s *script) ociSource(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(s.w.Config)
	s.check(ts, err)
	text := regexp.MustCompile(`(?s)\nrepositories:\n.*?\nenvironments:`).ReplaceAllString(string(b), fmt.Sprintf(`
repositories:
- name: shop
  oci: {reference: "oci://%s/acme/desired-state", %s}
  interval: 200ms

environments:`, s.w.Registry.Host, args[0]))
	var rules strings.Builder
	for _, kind := range []string{"artifact", "policy"} {
		path := map[string]string{"artifact": "desired-state", "policy": "policies"}[kind]
		fmt.Fprintf(&rules, "  - name: %s\n    kind: %s\n    repositories: [%q]\n    require: [{signature: {signers: [release]}}]\n",
			kind, kind, s.w.Registry.Host+"/acme/"+path)
	}
	parts := strings.SplitN(text, "\n  rules:\n", 2)
	if len(parts) != 2 || !slices.Contains(strings.Split(text, "\n"), "- name: shop") {
		ts.Fatalf("the operator's file has another form:\n%s", text)
	}
	s.check(ts, os.WriteFile(s.w.Config, []byte(parts[0]+"\n  rules:\n"+rules.String()+parts[1]), 0o600))
}
