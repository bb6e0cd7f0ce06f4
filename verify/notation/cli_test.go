package notation_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// cli is the real notation, with a key of its own.
type cli struct {
	path, home string
}

// newCLI configures notation to sign as h, and to trust b's authorities.
func newCLI(t *testing.T, b *bed, h *verifytest.Holder) cli {
	t.Helper()
	c := cli{testenv.RequireTool(t, "notation"), t.TempDir()}
	der, err := x509.MarshalPKCS8PrivateKey(h.Key)
	if err != nil {
		t.Fatal(err)
	}
	var chain bytes.Buffer
	for _, cert := range h.Chain {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	c.write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	c.write(t, "chain.pem", chain.Bytes())
	c.write(t, "tsa.pem", b.Timestampers())
	c.write(t, "notation/signingkeys.json", encode(t, map[string]any{"default": "release", "keys": []any{
		map[string]any{"name": "release", "keyPath": filepath.Join(c.home, "key.pem"), "certPath": filepath.Join(c.home, "chain.pem")},
	}}))
	c.write(t, "notation/truststore/x509/ca/acme/ca.pem", b.Certificates())
	c.write(t, "notation/truststore/x509/tsa/acme/tsa.pem", b.Timestampers())
	c.write(t, "notation/trustpolicy.json", encode(t, map[string]any{"version": "1.0", "trustPolicies": []any{map[string]any{
		"name": "acme", "registryScopes": []string{"*"}, "signatureVerification": map[string]any{"level": "strict"},
		"trustStores": []string{"ca:acme", "tsa:acme"}, "trustedIdentities": []string{"x509.subject: " + verifytest.NotationSubject},
	}}}))
	return c
}

func (c cli) write(t *testing.T, name string, content []byte) {
	t.Helper()
	path := filepath.Join(c.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c cli) run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.path, args...)
	cmd.Env = []string{"HOME=" + c.home, "XDG_CONFIG_HOME=" + c.home, "XDG_CACHE_HOME=" + c.home}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("notation %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestRealNotation verifies what the real notation signs, and has the real
// notation verify what the throwaway notary of the other tests signs.
func TestRealNotation(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]testenv.RegistryOptions{"referrers API": {Referrers: true}, "fallback tag": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, o)
			rsa := b.certify(t, verifytest.CertificateOptions{Name: "release", RSA: true})
			clock := httptest.NewServer(b.TimestampServer())
			t.Cleanup(clock.Close)
			for _, who := range []*verifytest.Holder{b.who, rsa} {
				c := newCLI(t, b, who)
				for _, format := range []string{"jws", "cose"} {
					i := b.push(t)
					c.run(t, "sign", "--insecure-registry", "--signature-format", format, i.Pinned())
					if st := b.accepted(t, i, b.signer()); !st.Time.IsZero() || st.NotAfter.IsZero() {
						t.Errorf("%s: %+v", format, st)
					}
					b.refused(t, i, b.signer(b.stamped), "timestamp: there is none")

					i = b.push(t)
					c.run(t, "sign", "--insecure-registry", "--signature-format", format, "--expiry", "24h", "--user-metadata", "build=7",
						"--timestamp-url", clock.URL, "--timestamp-root-cert", filepath.Join(c.home, "tsa.pem"), i.Pinned())
					if st := b.accepted(t, i, b.signer(b.stamped)); time.Since(st.Time) > time.Minute || time.Until(st.NotAfter) > 24*time.Hour {
						t.Errorf("%s: %+v", format, st)
					}

					i = b.push(t, "linux/amd64", "linux/arm64")
					c.run(t, "sign", "--insecure-registry", "--signature-format", format, i.Pinned())
					b.accepted(t, i, b.signer())

					if o.Referrers {
						continue // this registry lists signatures under another artifact type, which notation does not look for
					}
					i = b.push(t)
					b.sign(t, i, who, verifytest.NotationOptions{COSE: format == "cose", StampedAt: time.Now()})
					c.run(t, "verify", "--insecure-registry", i.Pinned())
				}
			}
		})
	}
}

// TestForgeIsReal has the real notation verify what the tests forge, where nothing
// is wrong about it.
func TestForgeIsReal(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{})
	c := newCLI(t, b, b.who)
	i := b.push(t)
	raw := forge(t, i, b.who, nil)
	b.pushed(t, i, raw)
	c.write(t, "notation/trustpolicy.json", encode(t, map[string]any{"version": "1.0", "trustPolicies": []any{map[string]any{
		"name": "acme", "registryScopes": []string{"*"}, "signatureVerification": map[string]any{"level": "strict"},
		"trustStores": []string{"ca:acme"}, "trustedIdentities": []string{"x509.subject: " + verifytest.NotationSubject},
	}}}))
	c.run(t, "verify", "--insecure-registry", i.Pinned())
}
