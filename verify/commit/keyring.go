package commit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/verify"
)

const (
	minRSA       = 2048     // bits
	maxSignature = 64 << 10 // bytes of an armored signature
)

// keyring holds what each signer may sign with.
type keyring struct{ signers []holder }

type holder struct {
	Signer
	pgp    openpgp.EntityList
	prover Prover // of certificates; nil for a signer without an identity
}

// match says whose signature it was.
type match struct {
	signer      string
	kind        string // "ssh", "openpgp" or "x509"
	fingerprint string // of the key; of a certificate, whom it names and who says so
	// userVerified says that a security key made sure who was there, by PIN or
	// fingerprint, and not only that someone was.
	userVerified bool
	// time is when others than the signer say that it was signed; zero where
	// nobody does.
	time time.Time
	// anchors are all that the signature counts by: the signer's name, the
	// principal, the key, and what stands above or below the key.
	anchors []verify.Anchor
}

// String returns the kind and the fingerprint.
func (m match) String() string { return m.kind + " " + m.fingerprint }

func newKeyring(signers []Signer, prover NewProver) (keyring, error) {
	var k keyring
	owner := map[string]string{} // key → signer: two names for one key would add up what both may do
	claim := func(key, signer string) error {
		if other, ok := owner[key]; ok && other != signer {
			return fmt.Errorf("signers %q and %q have the same key", other, signer)
		}
		owner[key] = signer
		return nil
	}
	for _, s := range signers {
		if s.Name == "" {
			return k, errors.New("a signer has no name")
		}
		if slices.ContainsFunc(k.signers, func(h holder) bool { return h.Name == s.Name }) {
			return k, fmt.Errorf("signer %q is listed twice", s.Name)
		}
		if len(s.SSH) == 0 && len(s.OpenPGP) == 0 && s.Certified == nil {
			return k, fmt.Errorf("signer %q has no keys", s.Name)
		}
		if !s.NotAfter.IsZero() && s.NotAfter.Before(s.NotBefore) {
			return k, fmt.Errorf("signer %q: notAfter is before notBefore", s.Name)
		}
		h := holder{Signer: s}
		for _, a := range s.SSH {
			if err := checkAllowed(a); err != nil {
				return k, fmt.Errorf("signer %q: %s: %w", s.Name, a.Location, err)
			}
			// One authority may serve many signers, told apart by principals.
			if a.CertAuthority {
				continue
			}
			if err := claim(ssh.FingerprintSHA256(a.Key), s.Name); err != nil {
				return k, err
			}
		}
		for i, b := range s.OpenPGP {
			entities, err := parseOpenPGP(b)
			if err != nil {
				return k, fmt.Errorf("signer %q: OpenPGP key %d: %w", s.Name, i+1, err)
			}
			for _, e := range entities {
				if err := claim(pgpFingerprint(e), s.Name); err != nil {
					return k, err
				}
			}
			h.pgp = append(h.pgp, entities...)
		}
		if s.Certified != nil {
			if s.UserVerified {
				return k, fmt.Errorf("signer %q: a certificate does not say that its holder was verified by a security key", s.Name)
			}
			var err error
			if h.prover, err = newCertified(s, prover); err != nil {
				return k, fmt.Errorf("signer %q: %w", s.Name, err)
			}
		}
		k.signers = append(k.signers, h)
	}
	return k, nil
}

func checkAllowed(a AllowedSigner) error {
	if a.Key == nil {
		return errors.New("no key")
	}
	if len(a.Principals) == 0 {
		return errors.New("no principals")
	}
	return checkKey(a.Key)
}

// checkKey refuses kinds and sizes of SSH keys that are too weak.
func checkKey(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	}
	c, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return fmt.Errorf("keys of type %s are not accepted", clip(key.Type()))
	}
	switch k := c.CryptoPublicKey().(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("the RSA key has %d bits, at least %d are required", k.N.BitLen(), minRSA)
		}
		return nil
	case *ecdsa.PublicKey:
		return nil // P-256 and up; the SSH library knows no smaller curve
	}
	return fmt.Errorf("keys of type %s are not accepted", clip(key.Type()))
}

func parseOpenPGP(b []byte) (openpgp.EntityList, error) {
	read := openpgp.ReadKeyRing
	if bytes.Contains(b, []byte("-----BEGIN PGP")) {
		read = openpgp.ReadArmoredKeyRing
	}
	entities, err := read(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("it does not parse: %w", err)
	}
	if len(entities) == 0 {
		return nil, errors.New("it is empty")
	}
	for _, e := range entities {
		if e.PrivateKey != nil {
			return nil, errors.New("it is a private key; export the public key")
		}
		if err := checkPGPKey(e.PrimaryKey); err != nil {
			return nil, err
		}
	}
	return entities, nil
}

// checkPGPKey refuses kinds and sizes of OpenPGP keys that are too weak.
func checkPGPKey(key *packet.PublicKey) error {
	switch k := key.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("the RSA key has %d bits, at least %d are required", k.N.BitLen(), minRSA)
		}
	}
	switch key.PubKeyAlgo {
	case packet.PubKeyAlgoDSA, packet.PubKeyAlgoElGamal:
		return errors.New("DSA keys are not accepted")
	}
	return nil
}

func pgpFingerprint(e *openpgp.Entity) string { return fmt.Sprintf("%X", e.PrimaryKey.Fingerprint) }

// verify returns whose signature c carries. Each refusal says why.
func (k keyring) verify(c *object, now time.Time) (m match, err error) {
	// The parsers below are not ours; a panic in one must be a no, not a crash.
	defer func() {
		if r := recover(); r != nil {
			m, err = match{}, because("sign the commit again", "the signature cannot be parsed")
		}
	}()
	switch {
	case c.signature == "":
		return match{}, because("sign the commit (git commit -S), or have it merged by someone who does", "%w", errUnsigned)
	case len(c.signature) > maxSignature:
		return match{}, because("sign the commit again", "the signature has %d bytes, the limit is %d", len(c.signature), maxSignature)
	case strings.HasPrefix(c.signature, "-----BEGIN SSH SIGNATURE-----\n"):
		return k.verifySSH(c, now)
	case strings.HasPrefix(c.signature, "-----BEGIN PGP SIGNATURE-----\n"):
		return k.verifyOpenPGP(c, now)
	case strings.HasPrefix(c.signature, "-----BEGIN "+pemCMS+"-----\n"):
		return k.verifyCertified(c)
	}
	return match{}, because("sign the commit with an SSH or an OpenPGP key, or with gitsign", "the signature is neither SSH nor OpenPGP nor X.509")
}

const hintUnknown = "add the key to the signers, or have the commit signed by one of them"

func (k keyring) verifySSH(c *object, now time.Time) (match, error) {
	sig, err := parseSSHSignature(c.signature)
	if err != nil {
		return match{}, because("sign the commit again", "SSH signature: %w", err)
	}
	// The signature's own namespace is what it was made for: a signature over a
	// file or an e-mail must not pass as one over a commit.
	if sig.Namespace != SSHNamespace {
		return match{}, because("sign with git, which uses the namespace git", "SSH signature: made for the namespace %q, not %q", clip(sig.Namespace), SSHNamespace)
	}
	if err := sshsig.Verify(bytes.NewReader(c.payload), sig, sig.PublicKey, sig.HashAlgorithm, SSHNamespace); err != nil {
		return match{}, because("sign the commit again", "SSH signature: does not fit the commit")
	}
	refusal := because(hintUnknown, "signed by an unknown SSH key %s", keyFingerprint(sig.PublicKey))
	for _, h := range k.signers {
		for _, a := range h.SSH {
			if !a.holds(sig.PublicKey) {
				continue
			}
			err := a.permits(sig, c, now)
			if err == nil {
				err = within("signer "+h.Name, h.NotBefore, h.NotAfter, c, now)
			}
			if err == nil && h.UserVerified && !userVerified(sig) {
				err = errNotVerified(h.Name)
			}
			if err == nil {
				return match{signer: h.Name, kind: "ssh", fingerprint: keyFingerprint(sig.PublicKey),
					userVerified: userVerified(sig), anchors: sshAnchors(h.Name, c, sig.PublicKey)}, nil
			}
			refusal = err
		}
	}
	return match{}, refusal
}

// parseSSHSignature parses one armored signature and nothing around it.
func parseSSHSignature(armored string) (*sshsig.Signature, error) {
	block, rest := pem.Decode([]byte(armored))
	if block == nil || block.Type != sshsig.PEMType || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one armored signature")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("it does not parse: %s", clip(err.Error()))
	}
	// ssh-rsa is RSA with SHA-1, whatever the hash over the message is.
	switch f := sig.Signature.Format; f {
	case ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		// PROTOCOL.u2f: the first byte after the signature holds the flags, bit 0 of which says that someone was there.
		if len(sig.Signature.Rest) == 0 || sig.Signature.Rest[0]&flagUserPresent == 0 {
			return nil, errors.New("the security key was not touched")
		}
	default:
		return nil, fmt.Errorf("signatures of format %q are not accepted", clip(f))
	}
	key := sig.PublicKey
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	return sig, checkKey(key)
}

// The flags of a security key's signature.
// https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.u2f
const (
	flagUserPresent  = 1 << 0
	flagUserVerified = 1 << 2
)

// userVerified reports whether a security key says that it verified who was
// there. x/crypto has checked the signature over the flags, and looks at presence
// only.
func userVerified(sig *sshsig.Signature) bool {
	switch sig.Signature.Format {
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return len(sig.Signature.Rest) > 0 && sig.Signature.Rest[0]&flagUserVerified != 0
	}
	return false
}

// errNotVerified is the refusal of a signature that no security key vouches for.
func errNotVerified(signer string) error {
	return because("sign with a security key that asks for a PIN or a fingerprint: ssh-keygen -t ed25519-sk -O verify-required",
		"%s has to be verified by a security key, and the signature does not say that anybody was", signer)
}

func keyFingerprint(key ssh.PublicKey) string {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	return ssh.FingerprintSHA256(key)
}

// sshAnchors names the signer, the principal that ssh-keygen would be asked
// about, the key, and the authority of a certificate.
func sshAnchors(signer string, c *object, key ssh.PublicKey) []verify.Anchor {
	out := []verify.Anchor{
		{Kind: verify.AnchorIdentity, Value: signer},
		{Kind: verify.AnchorIdentity, Value: c.committer.email},
		{Kind: verify.AnchorKey, Value: keyFingerprint(key)},
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		out = append(out, verify.Anchor{Kind: verify.AnchorKey, Value: ssh.FingerprintSHA256(cert.SignatureKey)})
	}
	return out
}

// pgpAnchors names the signer, the primary key, and the subkey that signed.
func pgpAnchors(signer string, e *openpgp.Entity, issuer uint64) []verify.Anchor {
	out := []verify.Anchor{
		{Kind: verify.AnchorIdentity, Value: signer},
		{Kind: verify.AnchorKey, Value: pgpFingerprint(e)},
	}
	for _, sub := range e.Subkeys {
		if sub.PublicKey.KeyId == issuer {
			out = append(out, verify.Anchor{Kind: verify.AnchorKey, Value: fmt.Sprintf("%X", sub.PublicKey.Fingerprint)})
		}
	}
	return out
}

// holds reports whether a is about key: the very key, or the authority that
// signed it as a certificate.
func (a AllowedSigner) holds(key ssh.PublicKey) bool {
	cert, ok := key.(*ssh.Certificate)
	if ok != a.CertAuthority {
		return false
	}
	if ok {
		key = cert.SignatureKey
	}
	return bytes.Equal(a.Key.Marshal(), key.Marshal())
}

// permits checks a line's namespaces, window and principals as ssh-keygen -Y
// verify does, with the committer's email as the principal.
func (a AllowedSigner) permits(sig *sshsig.Signature, c *object, now time.Time) error {
	if len(a.Namespaces) > 0 && !matchList(a.Namespaces, SSHNamespace) {
		return because(`add "git" to the namespaces of the line`, "the key may not sign for the namespace %q (%s)", SSHNamespace, a.Location)
	}
	if err := within("the key ("+a.Location+")", a.ValidAfter, a.ValidBefore, c, now); err != nil {
		return err
	}
	if !matchList(a.Principals, c.committer.email) {
		return because("commit with an email that the line lists, or add the email", "the key is not for the committer %s (%s)", clip(c.committer.email), a.Location)
	}
	cert, ok := sig.PublicKey.(*ssh.Certificate)
	if !ok {
		return nil
	}
	if err := a.permitsCert(cert, c, now); err != nil {
		return err
	}
	if _, required := cert.CriticalOptions[verifyRequired]; required && !userVerified(sig) {
		return errNotVerified(c.committer.email)
	}
	return nil
}

// verifyRequired is the critical option of certificates that count only with the
// user-verified flag; see PROTOCOL.certkeys.
const verifyRequired = "verify-required"

// permitsCert checks a certificate: made by the authority, for users, with the
// committer among its principals, valid at both times, nothing critical unknown.
func (a AllowedSigner) permitsCert(cert *ssh.Certificate, c *object, now time.Time) error {
	const hint = "have the certificate issued again"
	if cert.CertType != ssh.UserCert || len(cert.ValidPrincipals) == 0 {
		return because(hint, "the certificate is not for users, or for no principal in particular")
	}
	if cert.Signature == nil || cert.Signature.Format == ssh.KeyAlgoRSA {
		return because(hint, "the certificate is signed with SHA-1")
	}
	for _, at := range []time.Time{now, c.committer.when} {
		checker := ssh.CertChecker{Clock: func() time.Time { return at }, SupportedCriticalOptions: []string{verifyRequired}}
		if err := checker.CheckCert(c.committer.email, cert); err != nil {
			return because(hint, "the certificate is not valid: %s", clip(err.Error()))
		}
	}
	return nil
}

// moment is a time that a window is checked at, and what it is for people.
type moment struct {
	what string
	t    time.Time
}

// within checks both times that matter against a window; zero is unbounded.
func within(what string, from, to time.Time, c *object, now time.Time) error {
	return inWindow(what, from, to, moment{"when the commit was first seen", now}, moment{"on the commit's own date", c.committer.when})
}

func inWindow(what string, from, to time.Time, moments ...moment) error {
	for _, at := range moments {
		if at.t.Before(from) || !to.IsZero() && at.t.After(to) {
			return because("have the commit signed by a key that is valid, or change the window",
				"%s is not valid %s, %s", what, at.what, at.t.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

func (k keyring) verifyOpenPGP(c *object, now time.Time) (match, error) {
	body, issuer, err := onePacket(c.signature)
	if err != nil {
		return match{}, because("sign the commit again", "OpenPGP signature: %w", err)
	}
	var refusal error
	for _, h := range k.signers {
		if len(h.pgp) == 0 {
			continue
		}
		m, err := h.verifyOpenPGP(c, body, issuer, now)
		if err == nil {
			return m, nil
		}
		if known(err) || refusal == nil {
			refusal = err
		}
	}
	if refusal == nil {
		refusal = because(hintUnknown, "signed by an OpenPGP key, and no signer has one")
	}
	return match{}, refusal
}

// errUnknownKey marks the refusal that says least.
var errUnknownKey = errors.New("signed by an unknown OpenPGP key")

func known(err error) bool { return !errors.Is(err, errUnknownKey) }

func (h holder) verifyOpenPGP(c *object, body []byte, issuer uint64, now time.Time) (match, error) {
	config := &packet.Config{Time: func() time.Time { return now }}
	sig, entity, err := openpgp.VerifyDetachedSignature(h.pgp, bytes.NewReader(c.payload), bytes.NewReader(body), config)
	switch {
	case len(h.pgp.KeysById(issuer)) == 0:
		return match{}, because(hintUnknown, "%w", errUnknownKey)
	case entity == nil:
		return match{}, because("sign the commit again", "OpenPGP signature: does not fit the commit")
	case err != nil: // revoked, expired, or an unknown critical notation
		return match{}, because("have the commit signed by a key that is valid", "the OpenPGP key of %s is not valid: %s", h.Name, clip(err.Error()))
	}
	if err := checkPGPSignature(sig, entity, c.committer.when); err != nil {
		return match{}, because("have the commit signed by a key that is valid", "the OpenPGP signature of %s is refused: %w", h.Name, err)
	}
	if err := within("signer "+h.Name, h.NotBefore, h.NotAfter, c, now); err != nil {
		return match{}, err
	}
	if h.UserVerified {
		return match{}, errNotVerified(h.Name)
	}
	return match{signer: h.Name, kind: "openpgp", fingerprint: pgpFingerprint(entity), anchors: pgpAnchors(h.Name, entity, issuer)}, nil
}

// checkPGPSignature checks what the library leaves open: the hash, the kind of
// signature, the signing key's strength, and its validity on the commit's date.
func checkPGPSignature(sig *packet.Signature, e *openpgp.Entity, date time.Time) error {
	switch sig.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512:
	default:
		return fmt.Errorf("it uses %s", sig.Hash)
	}
	if sig.SigType != packet.SigTypeBinary {
		return errors.New("it is not over a document")
	}
	self, _ := e.PrimarySelfSignature()
	if self == nil || e.PrimaryKey.KeyExpired(self, date) {
		return errors.New("the key was not valid on the commit's own date")
	}
	if *sig.IssuerKeyId == e.PrimaryKey.KeyId {
		return checkPGPKey(e.PrimaryKey)
	}
	for _, sub := range e.Subkeys {
		if sub.PublicKey.KeyId != *sig.IssuerKeyId {
			continue
		}
		if sub.PublicKey.KeyExpired(sub.Sig, date) {
			return errors.New("the subkey was not valid on the commit's own date")
		}
		return checkPGPKey(sub.PublicKey)
	}
	return errors.New("the signing key is not part of the key")
}

// onePacket takes the armor off and makes sure that there is one signature and
// nothing else: of several, different readers would choose different ones. It
// returns the id of the key that the signature names.
func onePacket(armored string) (body []byte, issuer uint64, err error) {
	if strings.Count(armored, "-----BEGIN ") != 1 || !strings.HasSuffix(strings.TrimSpace(armored), "-----END PGP SIGNATURE-----") {
		return nil, 0, errors.New("it is not one armored signature")
	}
	block, err := armor.Decode(strings.NewReader(armored))
	if err != nil || block.Type != openpgp.SignatureType {
		return nil, 0, errors.New("the armor does not parse")
	}
	body, err = io.ReadAll(io.LimitReader(block.Body, maxSignature))
	if err != nil {
		return nil, 0, errors.New("the armor does not parse")
	}
	packets := packet.NewReader(bytes.NewReader(body))
	p, err := packets.Next()
	if err != nil {
		return nil, 0, errors.New("it does not parse")
	}
	sig, ok := p.(*packet.Signature)
	if !ok || sig.IssuerKeyId == nil {
		return nil, 0, errors.New("it is not a signature that names its key")
	}
	if _, err := packets.Next(); err != io.EOF { //nolint:errorlint // the end is io.EOF itself
		return nil, 0, errors.New("it holds more than one packet")
	}
	return body, *sig.IssuerKeyId, nil
}
