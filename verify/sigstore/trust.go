package sigstore

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

const intotoPayload = "application/vnd.in-toto+json"

// trust is one signer of a rule, ready for both libraries.
type trust struct {
	name   string
	key    *verify.Anchor    // of a key; nil for a keyless identity
	root   *root.TrustedRoot // of a keyless identity
	bundle *sgverify.Verifier
	policy sgverify.PolicyOption
	legacy cosign.CheckOpts // without a ClaimVerifier: each use sets its own
}

func newTrusts(r verify.Rule) ([]trust, error) {
	const op = "verify/sigstore.New"
	var tr *root.TrustedRoot
	if len(r.TrustedRoot) > 0 {
		var err error
		if tr, err = root.NewTrustedRootFromJSON(r.TrustedRoot); err != nil {
			return nil, fault.New(fault.Invalid, op, "give the trusted_root.json of your Sigstore", "trusted root: %w", err)
		}
	}
	var out []trust
	for _, k := range r.Keys {
		t, err := keyTrust(k, tr, r.InsecureIgnoreTlog)
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "give a public key in PEM: ECDSA, RSA (2048 bits or more) or Ed25519", "key %q: %w", k.Name, err)
		}
		out = append(out, t)
	}
	for _, i := range r.Keyless {
		if tr == nil {
			return nil, fault.New(fault.Invalid, op, "set trustedRoot", "keyless identities need a trusted root")
		}
		t, err := identityTrust(i, tr)
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "", "identity %s: %w", i, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// keyMaterial is a trusted root in which one key answers to every hint: which
// key is meant is the rule's decision and never the bundle's.
type keyMaterial struct {
	root.TrustedMaterial
	key root.TimeConstrainedVerifier
}

func (m keyMaterial) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	return m.key, nil
}

func keyTrust(k verify.Key, tr *root.TrustedRoot, ignoreTlog bool) (trust, error) {
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(k.PEM)
	if err != nil {
		return trust{}, err
	}
	if err := strong(pub); err != nil {
		return trust{}, err
	}
	verifier, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return trust{}, err
	}
	name := k.Name
	if name == "" {
		name = "unnamed"
	}
	anchor, err := keyAnchor(pub)
	if err != nil {
		return trust{}, err
	}
	t := trust{name: "key " + name, key: &anchor, policy: sgverify.WithKey()}
	material := keyMaterial{
		TrustedMaterial: &root.BaseTrustedMaterial{},
		key:             root.NewExpiringKey(verifier, time.Time{}, time.Time{}),
	}
	t.legacy = cosign.CheckOpts{SigVerifier: verifier, Offline: true, IgnoreTlog: true}
	options := []sgverify.VerifierOption{sgverify.WithNoObserverTimestamps()}
	if !ignoreTlog {
		if tr == nil {
			return trust{}, errors.New("a transparency log is required and there is no trusted root")
		}
		material.TrustedMaterial = tr
		t.legacy.IgnoreTlog, t.legacy.TrustedMaterial = false, tr
		options = []sgverify.VerifierOption{sgverify.WithTransparencyLog(1), sgverify.WithObserverTimestamps(1)}
	}
	t.bundle, err = sgverify.NewVerifier(material, options...)
	return t, err
}

// keyAnchor names a key by the SHA-256 of its PKIX form:
// openssl pkey -pubin -in key.pub -outform DER | sha256sum
func keyAnchor(pub crypto.PublicKey) (verify.Anchor, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	return verify.Anchor{Kind: verify.AnchorKey, Value: digest.FromBytes(der).String()}, err
}

// anchors returns what a candidate that t accepted rests on: the key, or all
// subjects of the certificate.
func (t trust) anchors(c candidate) ([]verify.Anchor, error) {
	if t.key != nil {
		return []verify.Anchor{*t.key}, nil
	}
	cert, err := c.certificate()
	if err != nil {
		return nil, err
	}
	var out []verify.Anchor
	for _, san := range cryptoutils.GetSubjectAlternateNames(cert) {
		out = append(out, verify.Anchor{Kind: verify.AnchorIdentity, Value: san})
	}
	if len(out) == 0 {
		return nil, errors.New("the certificate names nobody")
	}
	return out, nil
}

// certificate returns the certificate that c was signed with.
func (c candidate) certificate() (*x509.Certificate, error) {
	var cert *x509.Certificate
	if c.bundle != nil {
		content, err := c.bundle.VerificationContent()
		if err != nil {
			return nil, err
		}
		cert = content.Certificate()
	} else {
		var err error
		if cert, err = c.legacy.Cert(); err != nil {
			return nil, err
		}
	}
	if cert == nil {
		return nil, errors.New("there is no certificate")
	}
	return cert, nil
}

func strong(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("an RSA key of %d bits is too weak", k.N.BitLen())
		}
		return nil
	default:
		return fmt.Errorf("keys of type %T are not supported", pub)
	}
}

func identityTrust(i verify.Identity, tr *root.TrustedRoot) (trust, error) {
	if i.Issuer == "" || (i.Subject == "") == (i.SubjectPrefix == "") {
		return trust{}, errors.New("needs an issuer, and either a subject or a subject prefix")
	}
	pattern := subjectPattern(i)
	id, err := sgverify.NewShortCertificateIdentity(i.Issuer, "", i.Subject, pattern)
	if err != nil {
		return trust{}, err
	}
	// Threshold 1 each. The observer's time is a Rekor v1 entry's, or a
	// timestamp authority's, which Rekor v2 entries need.
	v, err := sgverify.NewVerifier(tr, sgverify.WithSignedCertificateTimestamps(1),
		sgverify.WithTransparencyLog(1), sgverify.WithObserverTimestamps(1))
	if err != nil {
		return trust{}, err
	}
	return trust{
		name:   i.String(),
		root:   tr,
		bundle: v,
		policy: sgverify.WithCertificateIdentity(id),
		legacy: cosign.CheckOpts{
			TrustedMaterial:     tr,
			Identities:          []cosign.Identity{{Issuer: i.Issuer, Subject: i.Subject, SubjectRegExp: pattern}},
			Offline:             true,
			UseSignedTimestamps: len(tr.TimestampingAuthorities()) > 0,
		},
	}, nil
}

// subjectPattern is a verify.Identity's SubjectPrefix for the two libraries,
// which only know regular expressions. Neither anchors them.
func subjectPattern(i verify.Identity) string {
	if i.SubjectPrefix == "" {
		return ""
	}
	return `\A` + regexp.QuoteMeta(strings.TrimSuffix(i.SubjectPrefix, "/")) + `(?:/(?s:.*))?\z`
}

func (t trust) proveBundle(b *sgbundle.Bundle, d digest.Digest) (proof, error) {
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return proof{}, err
	}
	env, err := b.Envelope()
	if err != nil {
		return proof{}, fmt.Errorf("not a signed statement: %w", err)
	}
	if _, err := t.bundle.Verify(b, sgverify.NewPolicy(sgverify.WithArtifactDigest("sha256", sum), t.policy)); err != nil {
		return proof{}, err
	}
	if env.PayloadType != intotoPayload {
		return proof{}, fmt.Errorf("payload type %q", env.PayloadType)
	}
	raw, err := env.DecodeB64Payload()
	if err != nil {
		return proof{}, err
	}
	st, err := parseStatement(raw, d)
	if err != nil {
		return proof{}, err
	}
	return proof{statement: st, signature: st.PredicateType == PredicateSign}, nil
}

func (t trust) proveLegacySignature(ctx context.Context, sig oci.Signature, d digest.Digest) (proof, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return proof{}, err
	}
	co := t.legacy
	co.ClaimVerifier = cosign.SimpleClaimVerifier // nil would accept a signature of any image
	if _, err := cosign.VerifyImageSignature(ctx, sig, h, &co); err != nil {
		return proof{}, err
	}
	if err := t.trustedWhenLogged(sig); err != nil {
		return proof{}, err
	}
	raw, err := sig.Payload()
	if err != nil {
		return proof{}, err
	}
	if err := checkSimpleSigning(raw, d); err != nil {
		return proof{}, err
	}
	return proof{signature: true}, nil
}

func (t trust) proveLegacyAttestation(ctx context.Context, att oci.Signature, d digest.Digest) (proof, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return proof{}, err
	}
	co := t.legacy
	co.ClaimVerifier = cosign.IntotoSubjectClaimVerifier // nil would accept an attestation of any image
	if _, err := cosign.VerifyBlobAttestation(ctx, att, h, &co); err != nil {
		return proof{}, err
	}
	if err := t.trustedWhenLogged(att); err != nil {
		return proof{}, err
	}
	payload, err := att.Payload()
	if err != nil {
		return proof{}, err
	}
	var env dsse.Envelope
	if err := json.Unmarshal(payload, &env); err != nil {
		return proof{}, err
	}
	if env.PayloadType != intotoPayload {
		return proof{}, fmt.Errorf("payload type %q", env.PayloadType)
	}
	raw, err := env.DecodeB64Payload()
	if err != nil {
		return proof{}, err
	}
	st, err := parseStatement(raw, d)
	if err != nil {
		return proof{}, err
	}
	if st.PredicateType == PredicateSign {
		return proof{}, errors.New("a signature statement in the place of an attestation")
	}
	return proof{statement: st}, nil
}

// trustedWhenLogged checks what cosign leaves open: it asks whether the authority
// was trusted at the beginning that a certificate gives itself, which whoever
// has the key of an authority that has ended can set back. The log's time counts.
func (t trust) trustedWhenLogged(sig oci.Signature) error {
	if t.root == nil {
		return nil
	}
	cert, err := sig.Cert()
	if err != nil {
		return err
	}
	entry, err := sig.Bundle()
	if err != nil {
		return err
	}
	if cert == nil || entry == nil {
		return errors.New("no certificate or no log entry")
	}
	_, err = sgverify.VerifyLeafCertificate(time.Unix(entry.Payload.IntegratedTime, 0), cert, t.root)
	return err
}

// checkSimpleSigning checks the type that cosign's claim verifier leaves
// unchecked, and the digest again.
// https://github.com/containers/image/blob/main/docs/containers-signature.5.md
func checkSimpleSigning(raw []byte, d digest.Digest) error {
	var p struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("signature payload: %w", err)
	}
	if p.Critical.Type != "cosign container image signature" {
		return fmt.Errorf("signature payload of type %q", p.Critical.Type)
	}
	if p.Critical.Image.Digest != d.String() {
		return fmt.Errorf("the signature is about %q", p.Critical.Image.Digest)
	}
	return nil
}

// The statement types of in-toto. cosign writes v0.1 for its attestations still.
// https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
const (
	statementV1  = "https://in-toto.io/Statement/v1"
	statementV01 = "https://in-toto.io/Statement/v0.1"
)

// parseStatement reads a statement whose signature was verified and requires
// that it is about d.
func parseStatement(raw []byte, d digest.Digest) (verify.Statement, error) {
	var st struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		Predicate json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return verify.Statement{}, fmt.Errorf("statement: %w", err)
	}
	if st.Type != statementV1 && st.Type != statementV01 {
		return verify.Statement{}, fmt.Errorf("statement of type %q", st.Type)
	}
	if st.PredicateType == "" {
		return verify.Statement{}, errors.New("statement without a predicate type")
	}
	for _, s := range st.Subject {
		if s.Digest["sha256"] == d.Encoded() {
			return verify.Statement{Subject: d, PredicateType: st.PredicateType, Predicate: st.Predicate}, nil
		}
	}
	return verify.Statement{}, fmt.Errorf("the statement is not about %s", d)
}
