package verifytest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// cosign is the real one, with a key of its own.
type cosign struct {
	path, home string
	pub        []byte
}

// newCosign makes the key over curve, by cosign itself if that is nil.
func newCosign(t *testing.T, tool string, curve elliptic.Curve) cosign {
	t.Helper()
	c := cosign{path: testenv.RequireTool(t, tool), home: t.TempDir()}
	if curve == nil {
		c.run(t, "generate-key-pair", "--output-key-prefix", "key")
	} else {
		key := must(ecdsa.GenerateKey(curve, rand.Reader))(t)
		der := must(x509.MarshalPKCS8PrivateKey(key))(t)
		must(0, os.WriteFile(filepath.Join(c.home, "raw.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))(t)
		c.run(t, "import-key-pair", "--key", "raw.pem", "--output-key-prefix", "key")
	}
	c.pub = must(os.ReadFile(filepath.Join(c.home, "key.pub")))(t)
	must(0, os.WriteFile(filepath.Join(c.home, "sbom.json"), must(json.Marshal(verifytest.SPDX("shop")))(t), 0o600))(t)
	return c
}

func (c cosign) run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.path, args...)
	cmd.Dir, cmd.Env = c.home, []string{"HOME=" + c.home, "COSIGN_PASSWORD=", "COSIGN_YES=true", "SIGSTORE_NO_CACHE=true"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("cosign %v: %v\n%s", args, err, out.Bytes())
	}
}

// TestCosignTimestamps verifies by whom cosign had its signatures timestamped, and
// that a key's window is compared with that.
func TestCosignTimestamps(t *testing.T) {
	t.Parallel()
	a := must(verifytest.NewAuthority())(t)
	stamps := httptest.NewServer(a.TimestampServer())
	t.Cleanup(stamps.Close)
	trustedRoot := must(a.TrustedRootWith(verifytest.RootOptions{Stampers: []string{verifytest.Main}, NoCertificateLog: true}))(t)
	for name, c := range map[string]struct {
		tool  string
		flags []string
	}{
		"2.6, tags":    {"cosign2", nil},
		"2.6, bundles": {"cosign2", []string{"--new-bundle-format"}},
		"3.1, bundles": {"cosign3", []string{"--use-signing-config=false"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer := newCosign(t, c.tool, nil)
			reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(t)
			t.Cleanup(func() { _ = reg.Close() })
			d := must(verifytest.PushImage(t.Context(), reg.Host+"/app:1", verifytest.ImageOptions{}))(t)
			pinned := reg.Host + "/app@" + d.String()
			client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{reg.Host: {InsecureHTTP: true}}}))(t)
			judge := func(change func(*verify.Signer)) error {
				by := verify.Signer{Name: "release", Key: &verify.Key{PEM: signer.pub}, Root: &verify.Root{Name: "test", TrustedRoot: trustedRoot, Timestamps: 1}}
				if change != nil {
					change(&by)
				}
				_, _, err := setOver(t, client, by).Verify(t.Context(), "e", images(pinned))
				return err
			}
			flags := append([]string{"sign", "--key", "key.key", "--tlog-upload=false", "--timestamp-server-url", stamps.URL}, c.flags...)
			signer.run(t, append(flags, pinned)...)
			if err := judge(nil); err != nil {
				t.Error(err)
			}
			if err := judge(func(s *verify.Signer) { s.NotAfter = time.Now().Add(-time.Minute) }); err == nil {
				t.Error("accepted after the key's window")
			}
			if err := judge(func(s *verify.Signer) { s.NotBefore = time.Now().Add(time.Minute) }); err == nil {
				t.Error("accepted before the key's window")
			}
		})
	}
}

// TestCosign verifies what the real cosign signs and attests, in both layouts, by a
// key and without a log; and by no other key.
func TestCosign(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tool  string
		flags []string
		curve elliptic.Curve
	}{
		"2.6, tags":           {tool: "cosign2", flags: []string{"--tlog-upload=false"}},
		"2.6, bundles":        {tool: "cosign2", flags: []string{"--tlog-upload=false", "--new-bundle-format"}},
		"2.6, tags, P-384":    {tool: "cosign2", flags: []string{"--tlog-upload=false"}, curve: elliptic.P384()},
		"2.6, bundles, P-384": {tool: "cosign2", flags: []string{"--tlog-upload=false", "--new-bundle-format"}, curve: elliptic.P384()},
		"3.1, bundles":        {tool: "cosign3", flags: []string{"--use-signing-config=false", "--tlog-upload=false"}},
		"3.1, bundles, P-384": {tool: "cosign3", flags: []string{"--use-signing-config=false", "--tlog-upload=false"}, curve: elliptic.P384()},
		"3.1, tags":           {tool: "cosign3", flags: []string{"--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=false"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer := newCosign(t, c.tool, c.curve)
			for kind, referrers := range map[string]bool{"referrers API": true, "referrers tag": false} {
				reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: referrers}))(t)
				t.Cleanup(func() { _ = reg.Close() })
				d := must(verifytest.PushImage(t.Context(), reg.Host+"/app:1", verifytest.ImageOptions{}))(t)
				pinned := reg.Host + "/app@" + d.String()
				signer.run(t, append(append([]string{"sign", "--key", "key.key"}, c.flags...), pinned)...)
				if _, _, err := set(t, reg.Host, signer.pub, nil).Verify(t.Context(), "e", images(pinned)); err == nil {
					t.Errorf("%s: accepted without an SBOM", kind)
				}
				signer.run(t, append(append([]string{"attest", "--key", "key.key", "--type", "spdxjson", "--predicate", "sbom.json"}, c.flags...), pinned)...)
				if _, _, err := set(t, reg.Host, signer.pub, nil).Verify(t.Context(), "e", images(pinned)); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
				other := must(must(verifytest.NewAuthority())(t).Key("other"))(t)
				if _, _, err := set(t, reg.Host, other, nil).Verify(t.Context(), "e", images(pinned)); err == nil {
					t.Errorf("%s: accepted by another key", kind)
				}
			}
		})
	}
}
