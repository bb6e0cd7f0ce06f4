package verifytest_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/provenance"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

const (
	benchImages  = 100
	benchLatency = 20 * time.Millisecond
	benchIssuer  = "https://token.actions.githubusercontent.com"
	benchSubject = "https://github.com/acme/shop/.github/workflows/release.yml@refs/heads/main"
	benchBuilder = "https://github.com/acme/shop/.github/workflows/release.yml@refs/heads/main"
)

// company is a registry 20 ms away with images that are signed, with an SBOM and
// provenance each, by a workflow, or by a key.
type company struct {
	proxy    *testenv.FaultProxy
	host     string
	rule     verify.Rule
	root     []byte
	subjects []verify.Subject
	of       digest.Digest // the last image
}

func newCompany(b *testing.B, keyed bool) *company {
	b.Helper()
	reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(b)
	b.Cleanup(func() { _ = reg.Close() })
	a := must(verifytest.NewAuthority())(b)
	c := &company{proxy: must(testenv.NewFaultProxy(reg.URL()))(b), root: must(a.TrustedRoot())(b)}
	b.Cleanup(func() { _ = c.proxy.Close() })
	c.host = strings.TrimPrefix(c.proxy.URL(), "http://")
	o := verifytest.SignOptions{Identity: benchSubject, Issuer: benchIssuer, Build: &verify.Certificate{
		BuildSigner: benchBuilder, Runner: "github-hosted", SourceRepository: "https://github.com/acme/shop",
		SourceDigest: strings.Repeat("a", 40), SourceRef: "refs/heads/main", Trigger: "push",
	}}
	if keyed {
		o = verifytest.SignOptions{Key: "release"}
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(4)
	for i := range benchImages {
		g.Go(func() error {
			repo := fmt.Sprintf("%s/app-%d", reg.Host, i)
			d, err := verifytest.PushImage(ctx, repo+":1", verifytest.ImageOptions{})
			if err != nil {
				return err
			}
			ref := repo + "@" + d.String()
			if err := a.Sign(ctx, ref, o); err != nil {
				return err
			}
			if err := a.Attest(ctx, ref, sbom.PredicateSPDX, verifytest.SPDX("app"), o); err != nil {
				return err
			}
			if err := a.Attest(ctx, ref, "https://slsa.dev/provenance/v1", benchProvenance, o); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			c.of = d
			c.subjects = append(c.subjects, verify.Subject{Kind: verify.KindImage, Reference: fmt.Sprintf("%s/app-%d@%s", c.host, i, d)})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	by := []string{"ci"}
	c.rule = verify.Rule{
		Name: "acme", Kind: verify.KindImage, Repositories: []string{"**"},
		Signers: []verify.Signer{{
			Name: "ci", Identity: &verify.Identity{Issuer: benchIssuer, Subject: verify.Match{Exact: benchSubject}},
			Root: &verify.Root{Name: "test", TrustedRoot: c.root, Log: 1, CertificateLog: true},
		}},
		Require: []verify.Requirement{
			{Signature: &verify.SignatureRequirement{}, Signers: by},
			{SBOM: &verify.SBOMRequirement{}, Signers: by},
			{Provenance: &verify.ProvenanceRequirement{
				Builders: []verify.Builder{{ID: verify.Match{Exact: benchBuilder}, Level: 2, Profile: verify.ProfileGitHub}}, Repository: "https://github.com/acme/shop",
			}, Signers: by},
		},
	}
	if keyed {
		s := &c.rule.Signers[0]
		s.Identity, s.Key = nil, &verify.Key{PEM: must(a.Key("release"))(b)}
	}
	return c
}

var benchProvenance = map[string]any{
	"buildDefinition": map[string]any{
		"buildType":          "https://actions.github.io/buildtypes/workflow/v1",
		"externalParameters": map[string]any{"workflow": map[string]any{"ref": "refs/heads/main", "repository": "https://github.com/acme/shop", "path": ".github/workflows/release.yml"}},
		"resolvedDependencies": []any{map[string]any{
			"uri": "git+https://github.com/acme/shop@refs/heads/main", "digest": map[string]any{"gitCommit": strings.Repeat("a", 40)},
		}},
	},
	"runDetails": map[string]any{"builder": map[string]any{"id": benchBuilder}},
}

// set returns verifiers that know nothing yet.
func (c *company) set(b *testing.B) *verify.Set {
	b.Helper()
	client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{c.host: {InsecureHTTP: true}}}))(b)
	return must(verify.NewSet(verify.Config{Rules: []verify.Rule{c.rule}, Resolver: client, Revocations: new(verify.Revocations)},
		attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(client))}, sbom.New, provenance.New)))(b)
}

func (c *company) verify(b *testing.B, set *verify.Set) {
	b.Helper()
	report, _, err := set.Verify(b.Context(), "production", c.subjects)
	if err != nil || len(report.Evidence) != benchImages {
		b.Fatal(err)
	}
}

// floor makes the round trips that a verification must make, and nothing else:
// what refers to each image, with the tags of the older layout and the manifest
// beside it; then the manifests; then the bundles.
func (c *company) floor(b *testing.B) {
	b.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}}
	defer client.CloseIdleConnections()
	get := func(ctx context.Context, url string) []byte {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			b.Error(err)
			return nil
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		resp, err := client.Do(req)
		if err != nil {
			b.Error(err)
			return nil
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			b.Error(err)
		}
		return body
	}
	var all sync.WaitGroup
	for _, s := range c.subjects {
		all.Go(func() {
			repo, d, _ := strings.Cut(strings.TrimPrefix(s.Reference, c.host+"/"), "@")
			base := "http://" + c.host + "/v2/" + repo
			var first sync.WaitGroup
			for _, tag := range []string{d, strings.Replace(d, ":", "-", 1) + ".sig", strings.Replace(d, ":", "-", 1) + ".att"} {
				first.Go(func() { get(b.Context(), base+"/manifests/"+tag) })
			}
			var index struct{ Manifests []struct{ Digest string } }
			if err := json.Unmarshal(get(b.Context(), base+"/referrers/"+d), &index); err != nil {
				b.Error(err)
			}
			first.Wait()
			var rest sync.WaitGroup
			for _, m := range index.Manifests {
				rest.Go(func() {
					var manifest struct{ Layers []struct{ Digest string } }
					if err := json.Unmarshal(get(b.Context(), base+"/manifests/"+m.Digest), &manifest); err != nil {
						b.Error(err)
						return
					}
					get(b.Context(), base+"/blobs/"+manifest.Layers[0].Digest)
				})
			}
			rest.Wait()
		})
	}
	all.Wait()
}

// BenchmarkCold verifies 100 images that nobody looked at before, from a registry
// that is 20 ms away, beside the round trips alone. A certificate takes ten times
// the arithmetic of a key: chain, SCT, identity.
func BenchmarkCold(b *testing.B) {
	b.Run("keys", func(b *testing.B) { cold(b, true) })
	b.Run("certificates", func(b *testing.B) { cold(b, false) })
}

func cold(b *testing.B, keyed bool) {
	c := newCompany(b, keyed)
	c.proxy.Set(testenv.Fault{Delay: benchLatency})
	var floor, ours time.Duration
	var requests int
	for b.Loop() {
		at := time.Now()
		c.floor(b)
		floor += time.Since(at)
		before := c.proxy.Requests()
		set := c.set(b)
		at = time.Now()
		c.verify(b, set)
		ours += time.Since(at)
		requests += c.proxy.Requests() - before
	}
	n := float64(b.N)
	b.ReportMetric(float64(ours)/float64(floor), "x-floor")
	b.ReportMetric(ours.Seconds()*1000/n, "ms/100-images")
	b.ReportMetric(floor.Seconds()*1000/n, "floor-ms")
	b.ReportMetric(float64(requests)/n/benchImages, "requests/image")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkManyStacks has 20 stacks name the same 100 images at once.
func BenchmarkManyStacks(b *testing.B) {
	c := newCompany(b, false)
	c.proxy.Set(testenv.Fault{Delay: benchLatency})
	var requests int
	for b.Loop() {
		before, set := c.proxy.Requests(), c.set(b)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { c.verify(b, set) })
		}
		wg.Wait()
		c.verify(b, set)
		requests += c.proxy.Requests() - before
	}
	b.ReportMetric(float64(requests)/float64(b.N)/benchImages, "requests/image")
}

// BenchmarkCached verifies what was verified before, on all cores.
func BenchmarkCached(b *testing.B) {
	c := newCompany(b, false)
	set := c.set(b)
	c.verify(b, set)
	before := c.proxy.Requests()
	var n atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := set.Verify(b.Context(), "production", c.subjects); err != nil {
				b.Error(err)
			}
			n.Add(benchImages)
		}
	})
	if c.proxy.Requests() != before {
		b.Error("a verdict from the cache asked the registry")
	}
	b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "artifacts/s")
}

// BenchmarkBare is sigstore-go alone, on one core: the floor of what is computed.
func BenchmarkBare(b *testing.B) {
	c := newCompany(b, false)
	raw := c.oneBundle(b)
	tr := must(root.NewTrustedRootFromJSON(c.root))(b)
	v := must(sgverify.NewVerifier(tr, sgverify.WithSignedCertificateTimestamps(1), sgverify.WithTransparencyLog(1), sgverify.WithObserverTimestamps(1)))(b)
	id := must(sgverify.NewShortCertificateIdentity(benchIssuer, "", benchSubject, ""))(b)
	var bundle sgbundle.Bundle
	if err := bundle.UnmarshalJSON(raw); err != nil {
		b.Fatal(err)
	}
	sum := must(hex.DecodeString(c.of.Encoded()))(b)
	policy := sgverify.NewPolicy(sgverify.WithArtifactDigest("sha256", sum), sgverify.WithCertificateIdentity(id))
	b.Run("parsed", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.Verify(&bundle, policy); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("with parsing", func(b *testing.B) {
		for b.Loop() {
			var again sgbundle.Bundle
			if err := again.UnmarshalJSON(raw); err != nil {
				b.Fatal(err)
			}
			if _, err := v.Verify(&again, policy); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ours", func(b *testing.B) {
		signer := c.rule.Signers[0]
		for b.Loop() {
			if _, err := sigstore.ProveBundle(signer, raw, sigstore.Artifact{Digest: c.of}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkMemory says what 100 verdicts are kept in.
func BenchmarkMemory(b *testing.B) {
	c := newCompany(b, false)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		set := c.set(b)
		before := heap()
		c.verify(b, set)
		b.ReportMetric(float64(int64(heap())-int64(before))/1024/benchImages, "KiB/image")
		runtime.KeepAlive(set)
	}
}

// oneBundle returns a signature of the last image that was pushed.
func (c *company) oneBundle(b *testing.B) []byte {
	b.Helper()
	client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{c.host: {InsecureHTTP: true}}}))(b)
	for _, s := range c.subjects {
		resolved := must(client.Parse(s))(b)
		if resolved.Digest != c.of {
			continue
		}
		for _, d := range must(client.Referrers(b.Context(), resolved.Name, c.of))(b) {
			var m struct {
				Layers []struct{ Digest digest.Digest }
			}
			if err := json.Unmarshal(must(client.Manifest(b.Context(), resolved.Name, digest.Digest(d.Digest.String())))(b), &m); err != nil {
				b.Fatal(err)
			}
			return must(client.Blob(b.Context(), resolved.Name, m.Layers[0].Digest))(b)
		}
	}
	b.Fatal("no bundle")
	return nil
}
