package commit

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/verify"
)

// The SSH signature namespaces of documents other than commits. A signature
// made for one of them is none for another.
const (
	NamespaceOrder     = "order@holdfast.dev"     // a signed order
	NamespaceConfig    = "config@holdfast.dev"    // an operator's file
	NamespaceException = "exception@holdfast.dev" // a file of exceptions from trust rules
	NamespaceApproval  = "approval@holdfast.dev"  // an approval of a commit
)

// SignDocument signs message for a namespace, as ssh-keygen -Y sign does, and
// returns the armored signature.
func SignDocument(namespace string, message []byte, key ssh.Signer) ([]byte, error) {
	sig, err := sshsig.Sign(bytes.NewReader(message), key, sshsig.HashSHA512, namespace)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sshsig.Armor(sig), nil
}

// ErrOutOfTime is wrapped by what is signed as it must be, by a key or a signer
// that does not count at this time.
var ErrOutOfTime = errors.New("is not valid at")

// VerifyDocument returns the name of the signer whose SSH key signed message for
// a namespace. A key that is unknown, outside its window, not for the namespace
// or revoked is an error; so is a certificate, since a document has no
// committer that one could be for.
func VerifyDocument(namespace string, signers []Signer, message, armored []byte, now time.Time, revoked *verify.Revocations) (string, error) {
	m, err := verifyDocument(namespace, signers, message, armored, now)
	if err != nil {
		return "", err
	}
	return m.signer, revoked.Check(m.anchors...)
}

func verifyDocument(namespace string, signers []Signer, message, armored []byte, now time.Time) (match, error) {
	sig, err := parseSSHSignature(string(armored))
	if err != nil {
		return match{}, because("sign it with ssh-keygen -Y sign -n "+namespace, "SSH signature: %w", err)
	}
	if sig.Namespace != namespace {
		return match{}, because("sign it with ssh-keygen -Y sign -n "+namespace, "SSH signature: made for the namespace %q, not %q", clip(sig.Namespace), namespace)
	}
	if err := sshsig.Verify(bytes.NewReader(message), sig, sig.PublicKey, sig.HashAlgorithm, namespace); err != nil {
		return match{}, because("sign it again", "SSH signature: does not fit the document")
	}
	refusal := because("have it signed by one of the signers", "signed by an unknown SSH key %s", keyFingerprint(sig.PublicKey))
	for _, s := range signers {
		for _, a := range s.SSH {
			if a.CertAuthority || !a.holds(sig.PublicKey) {
				continue
			}
			refusal = a.permitsDocument(s, namespace, now)
			if refusal == nil && s.UserVerified && !userVerified(sig) {
				refusal = errNotVerified(s.Name)
			}
			if refusal != nil {
				continue
			}
			return match{signer: s.Name, kind: "ssh", fingerprint: keyFingerprint(sig.PublicKey), userVerified: userVerified(sig), anchors: []verify.Anchor{
				{Kind: verify.AnchorKey, Value: keyFingerprint(sig.PublicKey)},
				{Kind: verify.AnchorIdentity, Value: s.Name},
			}}, nil
		}
	}
	return match{}, refusal
}

// permitsDocument checks a line's namespaces and both windows at time now.
func (a AllowedSigner) permitsDocument(s Signer, namespace string, now time.Time) error {
	if len(a.Namespaces) > 0 && !matchList(a.Namespaces, namespace) {
		return because(fmt.Sprintf("add %q to the namespaces of the line", namespace), "the key may not sign for the namespace %q (%s)", namespace, a.Location)
	}
	for _, w := range []struct {
		what     string
		from, to time.Time
	}{{"the key (" + a.Location + ")", a.ValidAfter, a.ValidBefore}, {"signer " + s.Name, s.NotBefore, s.NotAfter}} {
		if now.Before(w.from) || !w.to.IsZero() && now.After(w.to) {
			return because("have it signed by a key that is valid, or change the window", "%s %w %s", w.what, ErrOutOfTime, now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
