package testenv

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// Signer signs commits and tags as git does, in pure Go: neither gpg nor
// ssh-keygen is needed, and the bytes that are signed are the caller's choice.
type Signer struct {
	Name, Email string
	KeyFile     string // the private key: OpenSSH or armored OpenPGP, without a passphrase

	ssh ssh.Signer
	pgp *openpgp.Entity
}

// pgpCreated is before every commit that a test dates back, because a
// signature that is older than its key does not count.
var pgpCreated = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

// NewSSHSigner makes an Ed25519 key in dir.
func NewSSHSigner(dir, name, email string) (*Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ssh signer: %w", err)
	}
	return newSSHSigner(dir, name, email, private)
}

func newSSHSigner(dir, name, email string, private ed25519.PrivateKey) (*Signer, error) {
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("ssh signer: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, email)
	if err != nil {
		return nil, fmt.Errorf("ssh signer: %w", err)
	}
	s := &Signer{Name: name, Email: email, ssh: signer}
	if s.KeyFile, err = writeKey(dir, "ssh", email, pem.EncodeToMemory(block)); err != nil {
		return nil, fmt.Errorf("ssh signer: %w", err)
	}
	return s, nil
}

// NewOpenPGPSigner makes an Ed25519 OpenPGP key (version 4) in dir.
func NewOpenPGPSigner(dir, name, email string) (*Signer, error) {
	entity, err := openpgp.NewEntity(name, "", email, pgpConfig(pgpCreated))
	if err != nil {
		return nil, fmt.Errorf("openpgp signer: %w", err)
	}
	s := &Signer{Name: name, Email: email, pgp: entity}
	var private bytes.Buffer
	w, err := armor.Encode(&private, openpgp.PrivateKeyType, nil)
	if err != nil {
		return nil, fmt.Errorf("openpgp signer: %w", err)
	}
	if err := entity.SerializePrivate(w, pgpConfig(pgpCreated)); err != nil {
		return nil, fmt.Errorf("openpgp signer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("openpgp signer: %w", err)
	}
	if s.KeyFile, err = writeKey(dir, "openpgp", email, private.Bytes()); err != nil {
		return nil, fmt.Errorf("openpgp signer: %w", err)
	}
	return s, nil
}

func pgpConfig(at time.Time) *packet.Config {
	return &packet.Config{
		Algorithm:   packet.PubKeyAlgoEdDSA,
		DefaultHash: crypto.SHA512,
		Time:        func() time.Time { return at },
	}
}

// writeKey stores a private key under a name nobody has used yet, so that two
// keys of one person can live side by side.
func writeKey(dir, kind, email string, key []byte) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	prefix := kind + "-" + strings.Map(func(r rune) rune {
		if r == '/' || r == os.PathSeparator {
			return '_'
		}
		return r
	}, email)
	f, err := os.CreateTemp(dir, prefix+"-*.key")
	if err != nil {
		return "", err
	}
	if _, err := f.Write(key); err != nil {
		_ = f.Close()
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return filepath.Abs(f.Name())
}

// Sign returns the armored signature over payload, as git puts it into a
// "gpgsig" header. Only OpenPGP signatures contain the time.
func (s *Signer) Sign(payload []byte, at time.Time) (string, error) {
	if s.ssh != nil {
		return s.SignNamespace(payload, "git")
	}
	if at.Before(pgpCreated) {
		at = pgpCreated
	}
	var out bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&out, s.pgp, bytes.NewReader(payload), pgpConfig(at)); err != nil {
		return "", fmt.Errorf("openpgp signer: %w", err)
	}
	return strings.TrimRight(out.String(), "\n") + "\n", nil
}

// SignNamespace returns an armored SSH signature made for a namespace of the
// caller's choice; git's is "git". It is an error for an OpenPGP signer.
func (s *Signer) SignNamespace(payload []byte, namespace string) (string, error) {
	if s.ssh == nil {
		return "", fmt.Errorf("ssh signer: %s has an OpenPGP key", s.Email)
	}
	signature, err := sshsig.Sign(bytes.NewReader(payload), s.ssh, sshsig.HashSHA512, namespace)
	if err != nil {
		return "", fmt.Errorf("ssh signer: %w", err)
	}
	return string(sshsig.Armor(signature)), nil
}

// AllowedSignersLine returns the signer's line for an allowed_signers file
// (ssh-keygen(1)), or "" for an OpenPGP signer.
func (s *Signer) AllowedSignersLine() string {
	if s.ssh == nil {
		return ""
	}
	return fmt.Sprintf("%s namespaces=\"git\" %s", s.Email, ssh.MarshalAuthorizedKey(s.ssh.PublicKey()))
}

// PublicKeyArmored returns the armored OpenPGP public key; for an SSH signer
// it is the key's line in authorized_keys form.
func (s *Signer) PublicKeyArmored() string {
	if s.ssh != nil {
		return string(ssh.MarshalAuthorizedKey(s.ssh.PublicKey()))
	}
	var out bytes.Buffer
	w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
	if err != nil {
		return ""
	}
	if err := s.pgp.Serialize(w); err != nil {
		return ""
	}
	if err := w.Close(); err != nil {
		return ""
	}
	return out.String() + "\n"
}

// Fingerprint returns "SHA256:…" of an SSH key, or the OpenPGP primary key's
// fingerprint in upper-case hex.
func (s *Signer) Fingerprint() string {
	if s.ssh != nil {
		return ssh.FingerprintSHA256(s.ssh.PublicKey())
	}
	return strings.ToUpper(hex.EncodeToString(s.pgp.PrimaryKey.Fingerprint))
}
