package commit

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/verify"
)

func documentKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyDocument(t *testing.T) {
	t.Parallel()
	alice, mallory := documentKey(t), documentKey(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	line := func(options string) []Signer {
		b := "alice@example.com " + options + string(ssh.MarshalAuthorizedKey(alice.PublicKey()))
		allowed, err := ParseAllowedSigners("orders", []byte(b))
		if err != nil {
			t.Fatal(err)
		}
		return []Signer{{Name: "alice", SSH: allowed}}
	}
	message := []byte(`{"kind":"rollback"}`)
	sign := func(namespace string, key ssh.Signer, m []byte) []byte {
		sig, err := SignDocument(namespace, m, key)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	good := sign(NamespaceOrder, alice, message)
	revoked := func(kind verify.AnchorKind, value string) *verify.Revocations {
		r := &verify.Revocations{}
		r.Add(verify.Revocation{Anchor: verify.Anchor{Kind: kind, Value: value}, Reason: "lost", Time: now})
		return r
	}
	authority := documentKey(t)
	cert := &ssh.Certificate{Key: alice.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"alice@example.com"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, alice)
	if err != nil {
		t.Fatal(err)
	}
	issuer := []Signer{{Name: "alice", SSH: []AllowedSigner{{Principals: []string{"*"}, CertAuthority: true, Key: authority.PublicKey()}}}}
	within := line(`valid-after="20260401",valid-before="20260601" `)
	within[0].NotBefore, within[0].NotAfter = now.AddDate(0, -1, 0), now.AddDate(0, 1, 0)
	ended := line("")
	ended[0].NotAfter = now.AddDate(0, -1, 0)
	for _, c := range []struct {
		name    string
		signers []Signer
		message []byte
		sig     []byte
		revoked *verify.Revocations
		want    string // in the error; empty: accepted
	}{
		{"as it should be", line(""), message, good, nil, ""},
		{"a line for the namespace", line(`namespaces="` + NamespaceOrder + `" `), message, good, nil, ""},
		{"another message", line(""), []byte(`{"kind":"recover"}`), good, nil, "does not fit"},
		{"an unknown key", line(""), message, sign(NamespaceOrder, mallory, message), nil, "unknown SSH key"},
		{"a signature over a commit", line(""), message, sign(SSHNamespace, alice, message), nil, `made for the namespace "git"`},
		{"a signature over a configuration", line(""), message, sign(NamespaceConfig, alice, message), nil, "made for the namespace"},
		{"a key that may sign commits only", line(`namespaces="git" `), message, good, nil, "may not sign for the namespace"},
		{"a key whose time is over", line(`valid-before="20260101" `), message, good, nil, "is not valid at"},
		{"a key whose time is to come", line(`valid-after="20260601" `), message, good, nil, "is not valid at"},
		{"a key and a signer in their time", within, message, good, nil, ""},
		{"a certificate", issuer, message, sign(NamespaceOrder, certified, message), nil, "unknown SSH key"},
		{"a signer whose time is over", ended, message, good, nil, "signer alice is not valid at"},
		{"a certificate authority", line(`cert-authority `), message, good, nil, "unknown SSH key"},
		{"nobody", nil, message, good, nil, "unknown SSH key"},
		{"nothing", line(""), message, nil, nil, "not one armored signature"},
		{"a revoked key", line(""), message, good, revoked(verify.AnchorKey, ssh.FingerprintSHA256(alice.PublicKey())), "was revoked"},
		{"a revoked signer", line(""), message, good, revoked(verify.AnchorIdentity, "alice"), "was revoked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			name, err := VerifyDocument(NamespaceOrder, c.signers, c.message, c.sig, now, c.revoked)
			switch {
			case c.want == "" && (err != nil || name != "alice"):
				t.Errorf("got %q, %v", name, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// What ssh-keygen signs is accepted: a security team signs where its key is.
func TestDocumentSignedBySSHKeygen(t *testing.T) {
	t.Parallel()
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("there is no ssh-keygen")
	}
	dir := t.TempDir()
	key, doc := filepath.Join(dir, "key"), filepath.Join(dir, "order.json")
	if err := os.WriteFile(doc, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-q", "-t", "ed25519", "-N", "", "-f", key}, {"-q", "-Y", "sign", "-f", key, "-n", NamespaceOrder, doc}} {
		if out, err := exec.CommandContext(t.Context(), keygen, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	sig, err := os.ReadFile(doc + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	allowed, err := ParseAllowedSigners("x", append([]byte("alice "), pub...))
	if err != nil {
		t.Fatal(err)
	}
	if name, err := VerifyDocument(NamespaceOrder, []Signer{{Name: "alice", SSH: allowed}}, []byte("{}"), sig, time.Now(), nil); err != nil || name != "alice" {
		t.Errorf("got %q, %v", name, err)
	}
}
