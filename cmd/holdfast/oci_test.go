package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/rego"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/sources/oci"
	"github.com/holdfast-dev/holdfast/sources/sourcestest"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// registryOf starts a registry, behind a proxy that can fail, and returns the
// operator's file that names it.
func registryOf(t *testing.T, o testenv.RegistryOptions) (*testenv.Registry, *testenv.FaultProxy, *config.Loaded) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := testenv.NewRegistry(o)
	must(err)
	t.Cleanup(func() { _ = r.Close() })
	p, err := testenv.NewFaultProxyTLS(r.URL(), r.Transport())
	must(err)
	t.Cleanup(func() { _ = p.Close() })
	dir := t.TempDir()
	ca, password := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password")
	must(os.WriteFile(ca, p.CA(), 0o600))
	must(os.WriteFile(password, []byte(r.Password), 0o600))
	cfg := &config.Loaded{Digest: digest.FromString("operator")}
	cfg.StateDir = filepath.Join(dir, "state")
	cfg.Registries = []config.Registry{{Host: p.Host(), CAFile: ca}}
	if o.Auth {
		cfg.Registries[0].Username, cfg.Registries[0].PasswordFile = r.Username, password
	}
	return r, p, cfg
}

// pushFiles pushes an artifact to acme/desired-state:production, past the proxy.
func pushFiles(t *testing.T, r *testenv.Registry, files map[string]string) digest.Digest {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, f := range slices.Sorted(maps.Keys(files)) {
		err := tw.WriteHeader(&tar.Header{Name: f, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[f]))})
		if err == nil {
			_, err = io.WriteString(tw, files[f])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(r.Host + "/acme/desired-state")
	if err != nil {
		t.Fatal(err)
	}
	opts := []remote.Option{remote.WithContext(t.Context()), remote.WithTransport(r.Transport()), remote.WithAuth(&authn.Basic{Username: r.Username, Password: r.Password})}
	layer := func(typ string, content []byte) ociDescriptor {
		if err := remote.WriteLayer(repo, static.NewLayer(content, types.MediaType(typ)), opts...); err != nil {
			t.Fatal(err)
		}
		return ociDescriptor{MediaType: typ, Digest: digest.FromBytes(content), Size: int64(len(content))}
	}
	m, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "config": layer(fluxConfig, []byte("{}")), "layers": []ociDescriptor{layer(fluxLayer, b.Bytes())},
		"annotations": map[string]string{"org.opencontainers.image.created": time.Now().UTC().Format(time.RFC3339Nano)},
	})
	if err == nil {
		err = remote.Put(repo.Tag("production"), rawManifest(m), opts...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(m)
}

// TestOCISource is the suite of sources with the client and the registries that
// the daemon meets.
func TestOCISource(t *testing.T) {
	t.Parallel()
	for what, o := range map[string]testenv.RegistryOptions{"distribution": {TLS: true, Auth: true}, "referrers": {Referrers: true, TLS: true}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			sourcestest.Run(t, func(t *testing.T) (sources.Source, func(map[string]string) string) {
				r, p, cfg := registryOf(t, o)
				return ociSource(t, cfg, p), func(files map[string]string) string { return pushFiles(t, r, files).String() }
			})
		})
	}
}

func ociSource(t *testing.T, cfg *config.Loaded, p *testenv.FaultProxy) *oci.Source {
	t.Helper()
	client, err := newRegistryClient(cfg.Registries, &secrets{})
	if err != nil {
		t.Fatal(err)
	}
	src, err := oci.New(oci.Config{
		Name: "fleet", Repository: p.Host() + "/acme/desired-state", Tag: "production", Dir: filepath.Join(cfg.StateDir, "oci"),
		Registry: client, Admit: func(context.Context, digest.Digest) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// TestOCISourceFaults is about each way in which a registry can fail: it says
// nothing about the artifact, and leaves nothing that is taken for it later.
func TestOCISourceFaults(t *testing.T) {
	t.Parallel()
	r, p, cfg := registryOf(t, testenv.RegistryOptions{TLS: true})
	d := pushFiles(t, r, map[string]string{"stack.yaml": strings.Repeat("kind: Stack\n", 5000)})
	rev := sources.Revision{Source: "fleet", ID: d.String()}
	for what, f := range map[string]testenv.Fault{
		"an error":            {Status: 503},
		"not there":           {Status: 404},
		"forbidden":           {Status: 403},
		"cut off":             {CutAfter: 40},
		"a broken connection": {CutAfter: -1},
		"other bytes":         {Corrupt: true},
	} {
		for _, path := range []string{"/manifests/", "/blobs/"} {
			f.Match = func(r *http.Request) bool { return strings.Contains(r.URL.Path, path) }
			p.Set(f)
			src := ociSource(t, cfg, p)
			if snap, err := src.Fetch(t.Context(), rev); snap != nil || err == nil || fault.KindOf(err) != fault.Transient {
				t.Errorf("%s at %s: %v, %v", what, path, snap, err)
			}
			if err := os.RemoveAll(filepath.Join(cfg.StateDir, "oci")); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Set(testenv.Fault{})
	src := ociSource(t, cfg, p)
	p.Down()
	if _, err := src.Head(t.Context()); fault.KindOf(err) != fault.Transient || err == nil {
		t.Errorf("head while it is down: %v", err)
	}
	p.Up()
	if _, err := src.Fetch(t.Context(), rev); err != nil {
		t.Error(err)
	}
}

// TestKeptEvidence is about a restart while the registry is down: what was
// accepted counts on, under the same operator's file, until it is revoked.
func TestKeptEvidence(t *testing.T) {
	t.Parallel()
	r, p, cfg := registryOf(t, testenv.RegistryOptions{Referrers: true, TLS: true})
	authority, err := verifytest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	key, err := authority.Key("release")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "release.pub"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Trust = config.Trust{
		Signers: []config.TrustSigner{{Name: "release", Key: &config.TrustKey{File: filepath.Join(dir, "release.pub")}, Unlogged: true}},
		Rules: []config.TrustRule{{Name: "state", Kind: verify.KindArtifact, Repositories: []string{p.Host() + "/acme/**"},
			Require: []config.Require{{Signature: &config.RequireSignature{By: config.By{Signers: []string{"release"}}}}}}},
	}
	name := p.Host() + "/acme/desired-state"
	restart := func() *artifactTrust {
		t.Helper()
		revoked := new(verify.Revocations)
		set, err := newArtifacts(cfg, &secrets{}, revoked, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		trust, err := newArtifactTrust(cfg, &secrets{}, set, revoked)
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}
	ask := func(trust *artifactTrust, kind string, d digest.Digest) error {
		_, err := trust.evidence(t.Context(), kind, name, d)
		return err
	}
	unsigned := pushFiles(t, r, map[string]string{"a": "unsigned"})
	signed := pushFiles(t, r, map[string]string{"a": "signed"})
	if err := authority.Sign(t.Context(), r.Host+"/acme/desired-state@"+signed.String(), verifytest.SignOptions{Registry: verifytest.Registry{Transport: r.Transport()}, Key: "release", NoTlog: true}); err != nil {
		t.Fatal(err)
	}
	first := restart()
	if err := ask(first, verify.KindArtifact, unsigned); fault.KindOf(err) != fault.Denied {
		t.Errorf("unsigned: %v", err)
	}
	if err := ask(first, verify.KindArtifact, signed); err != nil {
		t.Fatal(err)
	}
	p.Down()
	if err := ask(restart(), verify.KindArtifact, signed); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := ask(restart(), verify.KindArtifact, unsigned); fault.KindOf(err) != fault.Transient {
		t.Errorf("what was refused: %v", err)
	}
	if err := ask(restart(), verify.KindPolicy, signed); fault.KindOf(err) != fault.Denied {
		t.Errorf("as another kind, for which there is no rule: %v", err)
	}
	again := restart()
	again.revoked.Add(verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorDigest, Value: signed.String()}})
	if err := ask(again, verify.KindArtifact, signed); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	again = restart()
	e, ok := again.known(slices.Collect(maps.Keys(first.accepted))[0])
	if !ok {
		t.Fatal("it is not known")
	}
	e.NotAfter = time.Now().Add(-time.Second)
	if err := again.keep(slices.Collect(maps.Keys(first.accepted))[0], e); err != nil {
		t.Fatal(err)
	}
	if err := ask(again, verify.KindArtifact, signed); fault.KindOf(err) != fault.Transient {
		t.Errorf("what has ended: %v", err)
	}
	p.Up()
	if err := ask(restart(), verify.KindArtifact, signed); err != nil {
		t.Errorf("what has ended, proven again: %v", err)
	}
	p.Down()
	files, err := filepath.Glob(filepath.Join(cfg.StateDir, "evidence", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	older := bytes.Replace(b, []byte(`{"holdfast":"`+version), []byte(`{"holdfast":"older-`+version), 1)
	for what, content := range map[string][]byte{"an older Holdfast": older, "a damaged file": b[:20]} {
		if err := os.WriteFile(files[0], content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ask(restart(), verify.KindArtifact, signed); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(restart(), verify.KindArtifact, signed); err != nil {
		t.Errorf("as it was: %v", err)
	}
	cfg.Digest = digest.FromString("another operator's file")
	if err := ask(restart(), verify.KindArtifact, signed); fault.KindOf(err) != fault.Transient {
		t.Errorf("under another file: %v", err)
	}
}

// TestConftestPush is about bundles as the real conftest pushes them: data is
// found below the name of the folder that was pushed, as after conftest pull.
func TestConftestPush(t *testing.T) {
	t.Parallel()
	conftest := testenv.RequireTool(t, "conftest")
	r, err := testenv.NewRegistry(testenv.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	dir := t.TempDir()
	for f, content := range map[string]string{
		"policy/shop.rego":        "package main\n\ndeny contains msg if {\n\tinput.kind == data.policy.params.forbidden\n\tmsg := \"it is forbidden\"\n}\n",
		"policy/params/data.yaml": "forbidden: Secret\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), conftest, "push", "--tls=false", "--policy", "policy", r.Host+"/acme/policies:1")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "DOCKER_CONFIG="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cfg := &config.Loaded{}
	cfg.Registries = []config.Registry{{Host: r.Host, InsecureHTTP: true}}
	client, err := newRegistryClient(cfg.Registries, &secrets{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.PeekTag(t.Context(), r.Host+"/acme/policies", "1")
	if err != nil {
		t.Fatal(err)
	}
	files, err := oci.Policies(t.Context(), oci.Bundle{
		Name: "company", Repository: r.Host + "/acme/policies", Digest: d.String(), Dir: filepath.Join(dir, "kept"), Registry: client,
		Admit: func(context.Context, digest.Digest) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := rego.New(t.Context(), rego.Config{Bundles: []rego.Bundle{{Name: "company", FS: files}}})
	if err != nil {
		t.Fatal(err)
	}
	for kind, allowed := range map[string]bool{"Secret": false, "ConfigMap": true} {
		decision, err := ev.Evaluate(t.Context(), policy.Input{
			Stage: policy.StageRendered, Target: "kubernetes", Stack: "shop", Environment: "production", Of: digest.FromString(kind),
			Documents: []plan.Document{{Name: "a.yaml", Value: map[string]any{"kind": kind}}},
		})
		if err != nil || decision.Allowed() != allowed {
			t.Errorf("%s: %+v, %v", kind, decision, err)
		}
	}
}
