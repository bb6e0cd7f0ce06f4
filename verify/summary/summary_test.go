package summary_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/summary"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
	"github.com/holdfast-dev/holdfast/verify/vsa"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/docker/go-events.(*Broadcaster).run")) // of the test's registry
}

const verifier = "https://holdfast.acme.example/staging"

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func pemOf(t *testing.T, key any) []byte {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))(t)})
}

func publicOf(t *testing.T, key any) []byte {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(key))(t)})
}

func p256(t *testing.T) (private, public []byte) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	return pemOf(t, key), publicOf(t, key.Public())
}

// bed is a registry with an image that was verified.
type bed struct {
	client   *registry.Client
	pinned   string
	evidence verify.Evidence
}

func newBed(t *testing.T, o testenv.RegistryOptions) bed {
	t.Helper()
	reg := must(testenv.NewRegistry(o))(t)
	t.Cleanup(func() { _ = reg.Close() })
	host := registry.Host{InsecureHTTP: !o.TLS, CA: reg.CA}
	if o.Auth {
		host.Username, host.Password = reg.Username, func() (string, error) { return reg.Password, nil }
	}
	d := must(verifytest.PushImage(t.Context(), reg.Host+"/acme/app:1", verifytest.ImageOptions{
		Registry: verifytest.Registry{Transport: reg.Transport(), Username: reg.Username, Password: reg.Password},
	}))(t)
	return bed{
		client: must(registry.New(registry.Config{Hosts: map[string]registry.Host{reg.Host: host}}))(t), pinned: reg.Host + "/acme/app@" + d.String(),
		evidence: verify.Evidence{
			Subject: verify.Subject{Kind: verify.KindImage, Reference: reg.Host + "/acme/app:1", Name: reg.Host + "/acme/app", Digest: d}, Rule: "acme",
			Checks: []verify.Check{{Name: "signature", OK: true}, {Name: "test e2e", OK: true}}, Attestations: []digest.Digest{digest.FromString("bundle")},
			Facts: map[string]any{verify.NameProvenance: []any{map[string]any{"level": 3}, map[string]any{"level": 2}}},
		},
	}
}

// publish makes the verdict known, and returns when it is.
func (b bed) publish(t *testing.T, conf summary.Config, to summary.Attacher, e verify.Evidence) *summary.Publisher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	saved := make(chan map[string]time.Time, 1)
	conf.Save = func(known map[string]time.Time) error { saved <- known; return nil }
	p := must(summary.New(conf, to, slog.New(slog.DiscardHandler)))(t)
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	p.Verified(t.Context(), "staging", verify.Report{Evidence: []verify.Evidence{e}})
	select {
	case known := <-saved:
		if len(known) != 1 {
			t.Errorf("known are %v", known)
		}
	case <-time.After(time.Minute):
		t.Fatal("no summary was attached")
	}
	return p
}

func config(key []byte) summary.Config {
	return summary.Config{Verifier: verifier, Version: "1", Key: key, Repositories: []string{"**"}, Policy: digest.FromString("policy"), Every: time.Hour,
		Revoked: new(verify.Revocations).Check}
}

// judge asks for a summary by somebody, as the next Holdfast does.
func (b bed) judge(t *testing.T, by verify.Signer, q verify.VSARequirement) error {
	t.Helper()
	by.Name = "staging"
	set := must(verify.NewSet(verify.Config{Resolver: b.client, Revocations: new(verify.Revocations), Rules: []verify.Rule{{
		Name: "promoted", Kind: verify.KindImage, Repositories: []string{"**"}, Signers: []verify.Signer{by},
		Require: []verify.Requirement{{Signers: []string{by.Name}, VSA: &q}},
	}}}, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(b.client))}, vsa.New)))(t)
	_, _, err := set.Verify(t.Context(), "production", []verify.Subject{{Kind: verify.KindImage, Reference: b.pinned}})
	return err
}

// TestSummary: what one Holdfast says of an artifact is enough for the next, in every
// registry, by every kind of key; and for nobody who asks for something else.
func TestSummary(t *testing.T) {
	t.Parallel()
	private, public := p256(t)
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other := p256(t)
	ask := func(change func(*verify.VSARequirement)) verify.VSARequirement {
		q := verify.VSARequirement{Verifiers: []string{verifier}, VerifiedWithin: time.Hour,
			Levels: []string{"SLSA_BUILD_LEVEL_2", "HOLDFAST_VERIFIED_SIGNATURE", "HOLDFAST_VERIFIED_TEST_E2E", "HOLDFAST_ENVIRONMENT_STAGING"}}
		if change != nil {
			change(&q)
		}
		return q
	}
	for name, c := range map[string]struct {
		registry testenv.RegistryOptions
		private  []byte
		public   []byte
	}{
		"referrers API":               {testenv.RegistryOptions{Referrers: true}, private, public},
		"referrers tag, TLS, account": {testenv.RegistryOptions{TLS: true, Auth: true}, private, public},
		"Ed25519":                     {testenv.RegistryOptions{Referrers: true}, pemOf(t, edPrivate), publicOf(t, edPublic)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, c.registry)
			by := verify.Signer{Key: &verify.Key{PEM: c.public}, Unlogged: true}
			if err := b.judge(t, by, ask(nil)); err == nil {
				t.Error("accepted before anybody said so")
			}
			b.publish(t, config(c.private), b.client, b.evidence)
			if err := b.judge(t, by, ask(nil)); err != nil {
				t.Error(err)
			}
			for what, change := range map[string]func(*verify.VSARequirement){
				"another verifier":          func(q *verify.VSARequirement) { q.Verifiers = []string{"https://holdfast.acme.example/production"} },
				"the level of one platform": func(q *verify.VSARequirement) { q.Levels = []string{"SLSA_BUILD_LEVEL_3"} },
				"another environment":       func(q *verify.VSARequirement) { q.Levels = []string{"HOLDFAST_ENVIRONMENT_PRODUCTION"} },
				"what was not checked":      func(q *verify.VSARequirement) { q.Levels = []string{"HOLDFAST_VERIFIED_SBOM"} },
			} {
				if err := b.judge(t, by, ask(change)); err == nil {
					t.Errorf("accepted for %s", what)
				}
			}
			if err := b.judge(t, verify.Signer{Key: &verify.Key{PEM: other}, Unlogged: true}, ask(nil)); err == nil {
				t.Error("accepted by another key")
			}
			// What was there before is still there beside it.
			second := b.evidence
			second.Rule, second.Checks = "other", []verify.Check{{Name: "sbom", OK: true}}
			b.publish(t, config(c.private), b.client, second)
			if err := b.judge(t, by, ask(nil)); err != nil {
				t.Errorf("what another rule verified takes the place of it: %v", err)
			}
			if err := b.judge(t, by, ask(func(q *verify.VSARequirement) { q.Levels = []string{"HOLDFAST_VERIFIED_SBOM"} })); err != nil {
				t.Error(err)
			}
			if list := must(b.client.Referrers(t.Context(), b.evidence.Subject.Name, b.evidence.Subject.Digest))(t); len(list) != 2 {
				t.Errorf("%d summaries are attached", len(list))
			}
		})
	}
}

// TestRoom: an artifact that much refers to already is left alone, for verifiers refuse
// one with too much.
func TestRoom(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	for i := range 3 {
		_, err := b.client.Attach(t.Context(), b.evidence.Subject.Name, b.evidence.Subject.Digest, registry.Attachment{MediaType: "application/x", Content: []byte{'0' + byte(i)}, Most: 2})
		if (err == nil) != (i < 2) {
			t.Errorf("number %d: %v", i+1, err)
		}
	}
}

// TestTimestamped: with a timestamp authority its readers know when it was signed.
func TestTimestamped(t *testing.T) {
	t.Parallel()
	private, public := p256(t)
	a := must(verifytest.NewAuthority())(t)
	stamps := httptest.NewServer(a.TimestampServer())
	t.Cleanup(stamps.Close)
	root := must(a.TrustedRootWith(verifytest.RootOptions{Stampers: []string{verifytest.Main}, NoCertificateLog: true}))(t)
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	conf := config(private)
	conf.TimestampURL = stamps.URL
	b.publish(t, conf, b.client, b.evidence)
	by := verify.Signer{Key: &verify.Key{PEM: public}, Root: &verify.Root{Name: "tsa", TrustedRoot: root, Timestamps: 1}, NotBefore: time.Now().Add(-time.Hour)}
	if err := b.judge(t, by, verify.VSARequirement{Verifiers: []string{verifier}, Levels: []string{"SLSA_BUILD_LEVEL_2"}}); err != nil {
		t.Error(err)
	}
}

// TestCosignReads: the real cosign verifies a summary that was signed with a key of
// its own making.
func TestCosignReads(t *testing.T) {
	t.Parallel()
	tool, home := testenv.RequireTool(t, "cosign3"), t.TempDir()
	run := func(args ...string) error {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "COSIGN_PASSWORD=hunter2", "COSIGN_YES=true", "SIGSTORE_NO_CACHE=true"}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		t.Logf("cosign %v: %v\n%s", args[0], err, out.Bytes())
		return err
	}
	if err := run("generate-key-pair", "--output-key-prefix", "key"); err != nil {
		t.Fatal(err)
	}
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	conf := config(must(os.ReadFile(filepath.Join(home, "key.key")))(t))
	conf.Password = func() ([]byte, error) { return []byte("hunter2"), nil }
	b.publish(t, conf, b.client, b.evidence)
	verified := []string{"verify-attestation", "--key", "key.pub", "--insecure-ignore-tlog=true", "--type", vsa.Predicate, b.pinned}
	if err := run(verified...); err != nil {
		t.Error("cosign refuses it")
	}
	if err := run(append(verified[:len(verified)-2:len(verified)-2], "https://slsa.dev/provenance/v1", b.pinned)...); err == nil {
		t.Error("cosign takes it for something else")
	}
	conf.Password = func() ([]byte, error) { return []byte("wrong"), nil }
	if _, err := summary.New(conf, b.client, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a key is opened without its password")
	}
}

// silent fails where something is attached that must not be.
type silent struct{ t *testing.T }

func (s silent) Attach(context.Context, string, digest.Digest, registry.Attachment) (digest.Digest, error) {
	s.t.Error("something was attached")
	return "", errors.New("no")
}

// TestSilence: nothing is said of what was not verified, of what people waived, of
// repositories that the operator did not name, and of what was said just now.
func TestSilence(t *testing.T) {
	t.Parallel()
	private, _ := p256(t)
	d := digest.FromString("x")
	good := verify.Evidence{Subject: verify.Subject{Name: "ghcr.io/acme/app", Digest: d}, Rule: "acme", Checks: []verify.Check{{Name: "signature", OK: true}}}
	conf := config(private)
	conf.Repositories = []string{"ghcr.io/acme/*"}
	conf.Known = map[string]time.Time{good.Subject.Pinned() + " staging acme " + verifier: time.Now()}
	waived, failed, elsewhere, nothing := good, good, good, good
	waived.Rule, waived.Checks = "waived", []verify.Check{{Name: "signature", OK: true}, {Name: "sbom", Waived: "exception by dave"}}
	failed.Rule, failed.Checks = "failed", []verify.Check{{Name: "signature"}}
	elsewhere.Subject.Name = "ghcr.io/other/app"
	nothing.Rule, nothing.Checks = "nothing", nil

	p := must(summary.New(conf, silent{t}, slog.New(slog.DiscardHandler)))(t)
	for name, e := range map[string]verify.Evidence{"waived": waived, "failed": failed, "elsewhere": elsewhere, "nothing": nothing, "known": good} {
		if p.Verified(t.Context(), "staging", verify.Report{Evidence: []verify.Evidence{e}}); p.Waiting() != 0 {
			t.Fatalf("%s: something is said", name)
		}
	}
	if p.Verified(t.Context(), "production", verify.Report{Evidence: []verify.Evidence{good}}); p.Waiting() != 1 {
		t.Error("nothing is said in another environment")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	private, public := p256(t)
	for name, change := range map[string]func(*summary.Config){
		"no verifier":        func(c *summary.Config) { c.Verifier = "staging" },
		"no repository":      func(c *summary.Config) { c.Repositories = nil },
		"an odd pattern":     func(c *summary.Config) { c.Repositories = []string{"acme/*"} },
		"no revocations":     func(c *summary.Config) { c.Revoked = nil },
		"no end":             func(c *summary.Config) { c.Every = 0 },
		"no key":             func(c *summary.Config) { c.Key = nil },
		"a public key":       func(c *summary.Config) { c.Key = public },
		"a curve of its own": func(c *summary.Config) { c.Key = pemOf(t, must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)) },
		"RSA":                func(c *summary.Config) { c.Key = pemOf(t, must(rsa.GenerateKey(rand.Reader, 2048))(t)) },
	} {
		conf := config(private)
		change(&conf)
		if _, err := summary.New(conf, silent{t}, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
