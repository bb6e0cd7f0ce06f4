package notation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	nx509 "github.com/notaryproject/notation-core-go/x509"
	"github.com/notaryproject/tspclient-go"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

// trust is one signer, ready for use.
type trust struct {
	signer       verify.Signer
	certificates []*x509.Certificate
	subjects     []subject
	timestampers *x509.CertPool // nil: none
}

func newTrust(s verify.Signer) (trust, error) {
	t := trust{signer: s}
	var err error
	if t.certificates, err = parseCertificates(s.Notation.Certificates); err != nil {
		return t, fmt.Errorf("certificates: %w", err)
	}
	for _, c := range t.certificates {
		if !c.IsCA && !selfSigned(c) {
			return t, fmt.Errorf("certificates: %s is neither an authority nor signed by itself", c.Subject)
		}
	}
	if len(s.Notation.Subjects) == 0 {
		return t, errors.New("it names no subject")
	}
	for _, text := range s.Notation.Subjects {
		parsed, err := parseSubject(text)
		if err != nil {
			return t, fmt.Errorf("subject %q: %w", text, err)
		}
		t.subjects = append(t.subjects, parsed)
	}
	if len(s.Notation.Timestampers) == 0 {
		return t, nil
	}
	roots, err := parseCertificates(s.Notation.Timestampers)
	if err != nil {
		return t, fmt.Errorf("timestampers: %w", err)
	}
	t.timestampers = x509.NewCertPool()
	for _, c := range roots {
		if !c.IsCA || !selfSigned(c) {
			return t, fmt.Errorf("timestampers: %s is no root certificate", c.Subject)
		}
		t.timestampers.AddCert(c)
	}
	return t, nil
}

// parseCertificates reads certificates in PEM, and refuses anything else among them.
func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(b); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("give certificates in PEM, and nothing else")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is none")
	}
	return out, nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// accept returns the statement that s is if it is by t's signer. The steps and
// their order are those of the Notary Project; integrity was verified before.
// https://github.com/notaryproject/specifications/blob/v1.1.0/specs/trust-store-trust-policy.md#steps
func (t trust) accept(ctx context.Context, s *signed, now time.Time) (verify.Statement, error) {
	authority, err := signature.VerifyAuthenticity(&s.SignerInfo, t.certificates)
	if err != nil {
		return verify.Statement{}, fmt.Errorf("none of its certificates, from %s up, is a trusted one", s.issuer)
	}
	if !slices.ContainsFunc(t.subjects, func(want subject) bool { return want.matches(s.subject) }) {
		return verify.Statement{}, fmt.Errorf("the certificate is for %s", s.subject)
	}
	end := s.SignedAttributes.Expiry
	if !end.IsZero() && !now.Before(end) {
		return verify.Statement{}, fmt.Errorf("the signer gave the signature until %s", end.UTC().Format(time.RFC3339))
	}
	made, by := period{from: now, to: now}, []*x509.Certificate(nil)
	if t.timestampers != nil {
		if made, by, err = t.stamped(ctx, s); err != nil {
			return verify.Statement{}, fmt.Errorf("timestamp: %w", err)
		}
	}
	if err := checkChain(s.CertificateChain, authority, made); err != nil {
		return verify.Statement{}, err
	}
	if err := t.inWindow(made); err != nil {
		return verify.Statement{}, err
	}
	return t.statement(s, made, by)
}

// statement returns what s says, which was made then. It rests on the subject, on
// the keys of the whole chain, and on the key that stamped it.
func (t trust) statement(s *signed, made period, stampedBy []*x509.Certificate) (verify.Statement, error) {
	who := verify.Certificate{Issuer: s.issuer.String(), Subject: s.subject.String()}
	st := verify.Statement{
		Subject: s.about.Digest, PredicateType: verify.PredicateSignature, Signers: []string{t.signer.Name},
		Party: who.Issuer + " " + who.Subject, Certificate: &who,
		RestsOn:  []verify.Anchor{{Kind: verify.AnchorIdentity, Value: who.Subject}},
		NotAfter: s.SignedAttributes.Expiry,
	}
	for _, c := range s.CertificateChain {
		key, err := keyAnchor(c)
		if err != nil {
			return verify.Statement{}, err
		}
		st.RestsOn = append(st.RestsOn, key)
	}
	if t.timestampers != nil { // proven by whoever stamped it, whose own keys prove nothing of themselves
		st.RestsOn = verify.SeenAt(made.to, st.RestsOn)
	}
	for _, c := range stampedBy {
		key, err := keyAnchor(c)
		if err != nil {
			return verify.Statement{}, err
		}
		st.RestsOn = append(st.RestsOn, key)
	}
	if t.timestampers == nil { // nothing proves when it was signed: it ends with the first of its certificates
		for _, c := range s.CertificateChain {
			st.NotAfter = earliest(st.NotAfter, c.NotAfter)
		}
		return st, nil
	}
	// Anyone can have an old signature stamped anew. What the signer says of the
	// time is not proven, and may only narrow.
	st.Time = earliest(made.from, s.SignedAttributes.SigningTime)
	return st, nil
}

// earliest returns the earlier of two times of which zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// keyAnchor names the key of a certificate by the SHA-256 of its PKIX form.
func keyAnchor(c *x509.Certificate) (verify.Anchor, error) {
	der, err := x509.MarshalPKIXPublicKey(c.PublicKey)
	return verify.Anchor{Kind: verify.AnchorKey, Value: digest.FromBytes(der).String()}, err
}

// period is when something happened: between the two, both included.
type period struct{ from, to time.Time }

// checkChain requires that the chain leads to the trusted authority, and that each
// of its certificates was valid all of the time. Its signatures and the usage of
// its keys were checked; that the path also keeps to what its authorities may
// certify is not what the Notary Project asks for, but what RFC 5280 does.
func checkChain(chain []*x509.Certificate, authority *x509.Certificate, made period) error {
	for _, c := range chain {
		switch {
		case made.from.Before(c.NotBefore):
			return fmt.Errorf("the certificate of %s counts from %s on", c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
		case made.to.After(c.NotAfter):
			return fmt.Errorf("the certificate of %s counts until %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	// "MUST NOT contain anyExtendedKeyUsage".
	if slices.Contains(chain[0].ExtKeyUsage, x509.ExtKeyUsageAny) {
		return errors.New("the certificate is for any usage, and must be for code signing")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(authority)
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: made.to, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	return err
}

// inWindow checks the proven time of a signature against the signer's window.
func (t trust) inWindow(made period) error {
	from, to := t.signer.NotBefore, t.signer.NotAfter
	switch {
	case from.IsZero() && to.IsZero():
		return nil
	case t.timestampers == nil:
		return errors.New("nothing proves when it was signed, and the signer counts for some time only")
	case !from.IsZero() && made.from.Before(from):
		return fmt.Errorf("signed %s, and the signer counts from %s on", made.from.UTC().Format(time.RFC3339), from.UTC().Format(time.RFC3339))
	case !to.IsZero() && !made.to.Before(to):
		return fmt.Errorf("signed %s, and the signer counts until %s", made.to.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	}
	return nil
}

// maxToken bounds a timestamp, in bytes: an honest one has some 6 KiB.
const maxToken = 64 << 10

// stamped returns when a trusted timestamp authority saw the signature, and the
// certificate that it said so with.
func (t trust) stamped(ctx context.Context, s *signed) (period, []*x509.Certificate, error) {
	raw := s.UnsignedAttributes.TimestampSignature
	if len(raw) == 0 {
		return period{}, nil, errors.New("there is none")
	}
	if len(raw) > maxToken {
		return period{}, nil, fmt.Errorf("it has %d bytes: more than %d are not read", len(raw), maxToken)
	}
	token, err := tspclient.ParseSignedToken(raw)
	if err != nil {
		return period{}, nil, err
	}
	// "The time-stamp token MUST NOT contain any signatures other than the
	// signature of the TSA" (RFC 3161, section 2.4.2). Each would cost a
	// verification, and strangers may put here what they like.
	if len(token.SignerInfos) != 1 || len(token.Certificates) > maxChain {
		return period{}, nil, fmt.Errorf("it has %d signatures and %d certificates", len(token.SignerInfos), len(token.Certificates))
	}
	info, err := token.Info()
	if err != nil {
		return period{}, nil, err
	}
	at, err := info.Validate(s.Signature)
	if err != nil {
		return period{}, nil, err
	}
	chain, err := token.Verify(ctx, x509.VerifyOptions{Roots: t.timestampers, CurrentTime: at.Value})
	if err != nil {
		return period{}, nil, err
	}
	if err := nx509.ValidateTimestampingCertChain(chain); err != nil {
		return period{}, nil, err
	}
	return period{from: at.Value.Add(-at.Accuracy), to: at.Value.Add(at.Accuracy)}, chain[:1], nil
}
