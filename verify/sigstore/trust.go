package sigstore

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

const intotoPayload = "application/vnd.in-toto+json"

// trust is one signer, ready for both libraries.
type trust struct {
	signer  verify.Signer
	key     *verify.Anchor       // of a key; nil for a keyless identity
	subject *regexp.Regexp       // of a keyless identity
	anyone  bool                 // see [Discover]: whoever the root certifies
	root    *material            // nil for an unlogged key
	trusted root.TrustedMaterial // of root and key
	bundle  *sgverify.Verifier
	policy  sgverify.PolicyOption
	legacy  cosign.CheckOpts // without a ClaimVerifier: each use sets its own
	at      time.Time        // of a replay; zero is now
}

func newTrust(s verify.Signer) (trust, error) {
	t := trust{signer: s}
	var trusted root.TrustedMaterial = &root.BaseTrustedMaterial{}
	options := []sgverify.VerifierOption{sgverify.WithNoObserverTimestamps()}
	t.legacy = cosign.CheckOpts{Offline: true, IgnoreTlog: true}
	if s.Root != nil {
		m, err := newMaterial(s.Root)
		if err != nil {
			return t, fmt.Errorf("root %q: %w", s.Root.Name, err)
		}
		t.root, trusted, options = m, m.TrustedMaterial, m.options(s.Identity != nil)
		t.legacy.TrustedMaterial, t.legacy.IgnoreTlog = m.TrustedMaterial, s.Root.Log == 0
		t.legacy.UseSignedTimestamps = len(m.TimestampingAuthorities()) > 0
	}
	if s.Key != nil {
		return t, t.trustKey(trusted, options)
	}
	return t, t.trustIdentity(trusted, options)
}

// asOf returns t as it judged at a time, for a replay.
func (t trust) asOf(at time.Time) (trust, error) {
	t.at = at
	if t.root == nil || !t.root.current() || t.key != nil {
		return t, nil
	}
	t.trusted = pastMaterial{t.trusted, at} // nothing else proves a time, so certificates must be valid then
	var err error
	t.bundle, err = sgverify.NewVerifier(t.trusted, t.root.options(true)...)
	return t, err
}

// pastMaterial is a trusted root whose authorities are asked as of a time.
type pastMaterial struct {
	root.TrustedMaterial
	at time.Time
}

func (m pastMaterial) FulcioCertificateAuthorities() []root.CertificateAuthority {
	var out []root.CertificateAuthority
	for _, ca := range m.TrustedMaterial.FulcioCertificateAuthorities() {
		out = append(out, pastAuthority{ca, m.at})
	}
	return out
}

type pastAuthority struct {
	root.CertificateAuthority
	at time.Time
}

func (a pastAuthority) Verify(cert *x509.Certificate, _ time.Time) ([][]*x509.Certificate, error) {
	return a.CertificateAuthority.Verify(cert, a.at)
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

func (t *trust) trustKey(trusted root.TrustedMaterial, options []sgverify.VerifierOption) error {
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(t.signer.Key.PEM)
	if err != nil {
		return fmt.Errorf("give a public key in PEM: ECDSA, RSA (2048 bits or more) or Ed25519: %w", err)
	}
	if err := strong(pub); err != nil {
		return err
	}
	verifier, err := keyVerifier(pub)
	if err != nil {
		return err
	}
	anchor, err := keyAnchor(pub)
	if err != nil {
		return err
	}
	t.key, t.policy, t.legacy.SigVerifier = &anchor, sgverify.WithKey(), verifier
	t.trusted = keyMaterial{TrustedMaterial: trusted, key: root.NewExpiringKey(verifier, t.signer.NotBefore, t.signer.NotAfter)}
	t.bundle, err = sgverify.NewVerifier(t.trusted, options...)
	return err
}

func (t *trust) trustIdentity(trusted root.TrustedMaterial, options []sgverify.VerifierOption) (err error) {
	i := t.signer.Identity
	if t.subject, err = i.Subject.Regexp(); err != nil {
		return err
	}
	if t.root == nil {
		return errors.New("an identity needs a root")
	}
	// Neither library anchors a pattern; ours is. What they compare is compared
	// again in [trust.identify].
	if i.Issuer == "" {
		t.policy = sgverify.WithoutIdentitiesUnsafe() // certificates of one's own have no issuer extension
	} else {
		id, err := sgverify.NewShortCertificateIdentity(i.Issuer, "", "", t.subject.String())
		if err != nil {
			return err
		}
		t.policy = sgverify.WithCertificateIdentity(id)
	}
	t.legacy.Identities = []cosign.Identity{{Issuer: i.Issuer, SubjectRegExp: t.subject.String()}}
	t.legacy.IgnoreSCT = !t.signer.Root.CertificateLog
	t.trusted = trusted
	t.bundle, err = sgverify.NewVerifier(trusted, options...)
	return err
}

// anyOf verifies what one of several verifiers of the same key accepts.
type anyOf []signature.Verifier

func (v anyOf) PublicKey(o ...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return v[0].PublicKey(o...)
}

func (v anyOf) VerifySignature(sig, message io.Reader, o ...signature.VerifyOption) error {
	rawSig, err := io.ReadAll(sig)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(message)
	if err != nil {
		return err
	}
	for _, one := range v {
		if err = one.VerifySignature(bytes.NewReader(rawSig), bytes.NewReader(raw), o...); err == nil {
			return nil
		}
	}
	return err
}

// keyVerifier returns what verifies signatures of a key. Of keys over P-384 and
// P-521 it takes those over the curve's own digest, and, as sigstore-go does of
// certificates, over SHA-256, which older clients sign.
func keyVerifier(pub crypto.PublicKey) (signature.Verifier, error) {
	v, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	own := crypto.SHA384
	switch {
	case !ok, ec.Curve == elliptic.P256():
		return v, nil
	case ec.Curve == elliptic.P521():
		own = crypto.SHA512
	}
	first, err := signature.LoadVerifier(pub, own)
	return anyOf{first, v}, err
}

// keyAnchor names a key by the SHA-256 of its PKIX form:
// openssl pkey -pubin -in key.pub -outform DER | sha256sum
func keyAnchor(pub crypto.PublicKey) (verify.Anchor, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	return verify.Anchor{Kind: verify.AnchorKey, Value: digest.FromBytes(der).String()}, err
}

func strong(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("an ECDSA key over %s is too weak", k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
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

// identify completes st with who made it, at the times that were proven, if that
// is t's signer. cert is the certificate that it was made with, or nil.
func (t trust) identify(st verify.Statement, cert *x509.Certificate, times []time.Time) (verify.Statement, error) {
	st.Signers = []string{t.signer.Name}
	var last time.Time // one who lies dates back
	for _, at := range times {
		if st.Time.IsZero() || at.Before(st.Time) {
			st.Time = at
		}
		if at.After(last) {
			last = at
		}
	}
	for _, at := range []time.Time{st.Time, last} {
		if err := t.inWindow(at); err != nil {
			return verify.Statement{}, err
		}
	}
	if t.key != nil {
		st.Party, st.RestsOn = t.key.Value, verify.SeenAt(last, []verify.Anchor{*t.key})
		return st, nil
	}
	if cert == nil {
		return verify.Statement{}, errors.New("there is no certificate")
	}
	c, err := describe(cert)
	if err != nil {
		return verify.Statement{}, err
	}
	if err := t.names(c); err != nil {
		return verify.Statement{}, err
	}
	st.Certificate, st.Party = &c, c.Issuer+" "+c.Subject
	for _, san := range cryptoutils.GetSubjectAlternateNames(cert) {
		st.RestsOn = append(st.RestsOn, verify.Anchor{Kind: verify.AnchorIdentity, Value: san})
	}
	if len(st.RestsOn) == 0 {
		return verify.Statement{}, errors.New("the certificate names nobody")
	}
	if key, err := keyAnchor(cert.PublicKey); err == nil && t.root.current() { // a certificate that lives long has a key that one may have to revoke
		st.RestsOn = append(st.RestsOn, key)
	}
	if t.root.current() { // nothing proves when it was signed: it ends with the certificate
		st.Time, st.NotAfter, last = time.Time{}, cert.NotAfter, time.Time{}
	}
	st.RestsOn = verify.SeenAt(last, st.RestsOn)
	return st, nil
}

// names checks that a certificate is for t's signer.
func (t trust) names(c verify.Certificate) error {
	i := t.signer.Identity
	switch {
	case t.anyone:
		return nil
	case i.Issuer != c.Issuer:
		return fmt.Errorf("the certificate is for issuer %q", c.Issuer)
	case !t.subject.MatchString(c.Subject):
		return fmt.Errorf("the certificate is for %q", c.Subject)
	case i.Build == nil:
		return nil
	}
	if why := i.Build.Check(c); len(why) > 0 {
		return fmt.Errorf("the certificate is for another build: %s", strings.Join(why, "; "))
	}
	return nil
}

// inWindow checks the proven time of a signature against the signer's window
// (CVE-2026-54787). A time that has not come yet is a clock that is wrong: it
// would be fresh for as long as it is ahead.
func (t trust) inWindow(at time.Time) error {
	from, to := t.signer.NotBefore, t.signer.NotAfter
	now := t.at
	if now.IsZero() {
		now = time.Now()
	}
	switch {
	case at.After(now.Add(intoto.Skew)):
		return fmt.Errorf("signed %s, which is in the future", at.Format(time.RFC3339))
	case from.IsZero() && to.IsZero():
		return nil
	case at.IsZero():
		return errors.New("nothing proves when it was signed, and the signer counts for some time only")
	case !from.IsZero() && at.Before(from):
		return fmt.Errorf("signed %s, and the signer counts from %s on", at.Format(time.RFC3339), from.Format(time.RFC3339))
	case !to.IsZero() && !at.Before(to):
		return fmt.Errorf("signed %s, and the signer counts until %s", at.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	return nil
}

// describe reads what a certificate says of its holder.
func describe(cert *x509.Certificate) (verify.Certificate, error) {
	s, err := certificate.SummarizeCertificate(cert)
	if err != nil {
		return verify.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return verify.Certificate{
		Issuer: s.Issuer, Subject: s.SubjectAlternativeName,
		BuildSigner: s.BuildSignerURI, BuildSignerDigest: s.BuildSignerDigest, Runner: s.RunnerEnvironment,
		SourceRepository: s.SourceRepositoryURI, SourceDigest: s.SourceRepositoryDigest, SourceRef: s.SourceRepositoryRef,
		SourceRepositoryID: s.SourceRepositoryIdentifier, SourceOwner: s.SourceRepositoryOwnerURI, SourceOwnerID: s.SourceRepositoryOwnerIdentifier,
		BuildConfig: s.BuildConfigURI, BuildConfigDigest: s.BuildConfigDigest, Trigger: s.BuildTrigger,
		Run: s.RunInvocationURI, Visibility: s.SourceRepositoryVisibilityAtSigning, Deployment: deployment(cert),
	}, nil
}

func (t trust) proveBundle(b *sgbundle.Bundle, d digest.Digest) (verify.Statement, error) {
	env, err := b.Envelope()
	if err != nil {
		return verify.Statement{}, fmt.Errorf("not a signed statement: %w", err)
	}
	if env.PayloadType != intotoPayload {
		return verify.Statement{}, fmt.Errorf("payload type %q", intoto.Short(env.PayloadType))
	}
	about, err := digestPolicy(d)
	if err != nil {
		return verify.Statement{}, err
	}
	by, err := t.check(b, about, verify.Statement{})
	if err != nil {
		return verify.Statement{}, err
	}
	raw, err := env.DecodeB64Payload() // not before the signature was checked
	if err != nil {
		return verify.Statement{}, err
	}
	st, err := parseStatement(raw, d)
	if err != nil {
		return verify.Statement{}, err
	}
	by.Subject, by.Subjects, by.PredicateType, by.Predicate = st.Subject, st.Subjects, st.PredicateType, st.Predicate
	return by, nil
}

func digestPolicy(d digest.Digest) (sgverify.ArtifactPolicyOption, error) {
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return nil, err
	}
	return sgverify.WithArtifactDigest("sha256", sum), nil
}

// observed returns the times that others than the signer proved, after counting
// who they are.
func (t trust) observed(b *sgbundle.Bundle, result *sgverify.VerificationResult) ([]time.Time, error) {
	if t.root == nil {
		return nil, nil
	}
	if err := t.root.count(b, result, t.trusted); err != nil {
		return nil, err
	}
	var times []time.Time
	for _, ts := range result.VerifiedTimestamps {
		times = append(times, ts.Timestamp)
	}
	return times, nil
}

func (t trust) proveLegacySignature(ctx context.Context, sig oci.Signature, d digest.Digest) (verify.Statement, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return verify.Statement{}, err
	}
	if err := t.legacyPossible(); err != nil {
		return verify.Statement{}, err
	}
	co := t.legacy
	co.ClaimVerifier = cosign.SimpleClaimVerifier // nil would accept a signature of any image
	if _, err := cosign.VerifyImageSignature(ctx, sig, h, &co); err != nil {
		return verify.Statement{}, err
	}
	raw, err := sig.Payload()
	if err != nil {
		return verify.Statement{}, err
	}
	if err := checkSimpleSigning(raw, d); err != nil {
		return verify.Statement{}, err
	}
	return t.identifyLegacy(verify.Statement{Subject: d, PredicateType: verify.PredicateSignature}, sig)
}

func (t trust) proveLegacyAttestation(ctx context.Context, att oci.Signature, d digest.Digest) (verify.Statement, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return verify.Statement{}, err
	}
	if err := t.legacyPossible(); err != nil {
		return verify.Statement{}, err
	}
	co := t.legacy
	co.ClaimVerifier = cosign.IntotoSubjectClaimVerifier // nil would accept an attestation of any image
	if _, err := cosign.VerifyBlobAttestation(ctx, att, h, &co); err != nil {
		return verify.Statement{}, err
	}
	payload, err := att.Payload()
	if err != nil {
		return verify.Statement{}, err
	}
	var env dsse.Envelope
	if err := json.Unmarshal(payload, &env); err != nil {
		return verify.Statement{}, err
	}
	if env.PayloadType != intotoPayload {
		return verify.Statement{}, fmt.Errorf("payload type %q", intoto.Short(env.PayloadType))
	}
	if len(env.Signatures) != 1 { // the log may have recorded another one
		return verify.Statement{}, fmt.Errorf("%d signatures in one envelope", len(env.Signatures))
	}
	raw, err := env.DecodeB64Payload()
	if err != nil {
		return verify.Statement{}, err
	}
	st, err := parseStatement(raw, d)
	if err != nil {
		return verify.Statement{}, err
	}
	if st.PredicateType == verify.PredicateSignature {
		return verify.Statement{}, errors.New("a signature statement in the place of an attestation")
	}
	return t.identifyLegacy(st, att)
}

// legacyPossible refuses what the older layout cannot prove.
func (t trust) legacyPossible() error {
	switch r := t.signer.Root; {
	case r == nil:
		return nil
	case r.Log > 1 || r.Timestamps > 1:
		return errors.New("the older layout has one log entry and one timestamp, and more are asked for: sign into a bundle")
	case len(r.Authorities) > 0:
		return errors.New("certificate authorities of one's own are read in bundles only: sign into a bundle")
	}
	return nil
}

// identifyLegacy is identify for the older layout. It checks what cosign leaves
// open: cosign asks whether the authority was trusted at the beginning that a
// certificate gives itself, which whoever has the key of an authority that has
// ended can set back. The time that others proved counts.
func (t trust) identifyLegacy(st verify.Statement, sig oci.Signature) (verify.Statement, error) {
	if t.root == nil {
		return t.identify(st, nil, nil)
	}
	var times []time.Time
	if t.signer.Root.Log > 0 {
		entry, err := sig.Bundle()
		if err != nil {
			return verify.Statement{}, err
		}
		if entry == nil {
			return verify.Statement{}, errors.New("no log entry")
		}
		times = append(times, time.Unix(entry.Payload.IntegratedTime, 0))
	}
	if t.signer.Root.Timestamps > 0 {
		ts, err := cosign.VerifyRFC3161Timestamp(sig, &t.legacy)
		if err != nil {
			return verify.Statement{}, err
		}
		if ts == nil {
			return verify.Statement{}, errors.New("no timestamp")
		}
		times = append(times, ts.Time)
	}
	if len(times) == 0 {
		return verify.Statement{}, errors.New("nothing proves when it was signed")
	}
	cert, err := sig.Cert()
	if err != nil {
		return verify.Statement{}, err
	}
	switch {
	case t.key != nil && cert != nil: // the log has recorded the certificate, and whoever looks for the key finds nothing
		return verify.Statement{}, errors.New("expected a signature by a key, not by a certificate")
	case t.key != nil:
		return t.identify(st, nil, times)
	case cert == nil:
		return verify.Statement{}, errors.New("no certificate")
	}
	for _, at := range times {
		if _, err := sgverify.VerifyLeafCertificate(at, cert, t.root.TrustedMaterial); err != nil {
			return verify.Statement{}, err
		}
	}
	return t.identify(st, cert, times)
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
	if err := intoto.Decode(raw, &p); err != nil {
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
		Type          string                    `json:"_type"`
		PredicateType string                    `json:"predicateType"`
		Subject       []verify.StatementSubject `json:"subject"`
		Predicate     json.RawMessage           `json:"predicate"`
	}
	if err := intoto.Decode(raw, &st); err != nil {
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
			return verify.Statement{Subject: d, Subjects: st.Subject, PredicateType: st.PredicateType, Predicate: st.Predicate}, nil
		}
	}
	return verify.Statement{}, fmt.Errorf("the statement is not about %s", d)
}
