package ledger

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// algEd25519 is the signature type byte of an Ed25519 key, https://c2sp.org/signed-note.
const algEd25519 = 1

// GenerateKey returns a new Ed25519 key pair for the log called origin, in the
// text forms of package note. The first is secret.
func GenerateKey(origin string) (signer, verifier string, err error) {
	signer, verifier, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fault.Wrap(fault.Internal, "ledger.GenerateKey", "", err)
	}
	if _, err := note.NewVerifier(verifier); err != nil { // a name with spaces or '+'
		return "", "", fault.New(fault.Invalid, "ledger.GenerateKey", "use a name such as example.com/holdfast",
			"log name %q: %w", origin, err)
	}
	return signer, verifier, nil
}

// LoadOrCreateKey returns the signer in the file at path, and its verifier key
// for auditors. If there is no such file it is made, with mode 0600. It fails
// if others may read the file, and if the key is not for the log called origin.
func LoadOrCreateKey(path, origin string) (note.Signer, string, error) {
	const op = "ledger.LoadOrCreateKey"
	raw, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKey(path, origin); err != nil {
			return nil, "", fault.Wrap(fault.Internal, op, "", fmt.Errorf("ledger key: %w", err))
		}
		raw, err = readKey(path)
	}
	if err != nil {
		return nil, "", fault.Wrap(fault.Internal, op, "make the key file readable by the daemon's user only: chmod 600", err)
	}
	signer, vkey, err := parseKey(raw)
	if err != nil {
		return nil, "", fault.New(fault.Invalid, op, "restore the key file from a copy", "ledger key %s: %w", path, err)
	}
	if signer.Name() != origin {
		return nil, "", fault.New(fault.Invalid, op, "", "ledger key %s is for the log %q, not %q", path, signer.Name(), origin)
	}
	return signer, vkey, nil
}

func readKey(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("ledger key %s: others may read it (mode %04o)", path, fi.Mode().Perm())
	}
	b, err := readFile(path, maxCheckpoint)
	return strings.TrimSpace(string(b)), err
}

func createKey(path, origin string) error {
	skey, _, err := GenerateKey(origin)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// A key that another process made meanwhile is as good.
	if err := durable.Create(path, []byte(skey+"\n")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// parseKey returns the signer in a "PRIVATE+KEY+<name>+<hash>+<key>" and the
// verifier key that belongs to it. No error quotes the text.
func parseKey(skey string) (note.Signer, string, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, "", errors.New("it is no note signer key")
	}
	parts := strings.SplitN(skey, "+", 5) // base64 has '+' too
	if len(parts) != 5 {
		return nil, "", errors.New("it is no note signer key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize || raw[0] != algEd25519 {
		return nil, "", errors.New("it is no Ed25519 key")
	}
	pub, ok := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", errors.New("it has no public key")
	}
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), pub)
	return signer, vkey, err
}
