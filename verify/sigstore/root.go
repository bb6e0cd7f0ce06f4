package sigstore

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"golang.org/x/net/publicsuffix"

	"github.com/holdfast-dev/holdfast/verify"
)

// material is a root, ready for use.
type material struct {
	root.TrustedMaterial
	of       *verify.Root
	logs     map[string][]string // ids of logs, by who operates them
	stampers map[string]string   // who operates a timestamp authority, by its URI
}

func newMaterial(r *verify.Root) (*material, error) {
	m := &material{of: r, logs: map[string][]string{}, stampers: map[string]string{}}
	read := m.readTrustedRoot
	if len(r.TrustedRoot) == 0 {
		read = m.readAuthorities
	}
	if err := read(); err != nil {
		return nil, err
	}
	switch n := len(slices.Compact(slices.Sorted(maps.Values(m.stampers)))); {
	case r.Log > len(m.logs):
		return nil, fmt.Errorf("log: %d can never be met: its logs have %d operators", r.Log, len(m.logs))
	case r.Timestamps > n:
		return nil, fmt.Errorf("timestamps: %d can never be met: its timestamp authorities have %d operators", r.Timestamps, n)
	case r.CertificateLog && len(m.CTLogs()) == 0:
		return nil, errors.New("certificateLog can never be met: it has no certificate transparency log")
	}
	return m, nil
}

// readTrustedRoot reads a trusted_root.json, with the operators, which sigstore-go
// does not hand on.
func (m *material) readTrustedRoot() error {
	const give = "give the trusted_root.json of your Sigstore: %w"
	doc, err := root.NewTrustedRootProtobuf(m.of.TrustedRoot)
	if err != nil {
		return fmt.Errorf(give, err)
	}
	if m.TrustedMaterial, err = root.NewTrustedRootFromProtobuf(doc); err != nil {
		return fmt.Errorf(give, err)
	}
	for _, l := range doc.GetTlogs() {
		who := cmp.Or(l.GetOperator(), operator(l.GetBaseUrl()))
		m.logs[who] = append(m.logs[who], hex.EncodeToString(l.GetLogId().GetKeyId()))
	}
	for _, s := range doc.GetTimestampAuthorities() {
		m.stampers[s.GetUri()] = cmp.Or(s.GetOperator(), operator(s.GetUri()))
	}
	return nil
}

// current reports whether nothing proves when something was signed: then what a
// certificate signs counts while the certificate does.
func (m *material) current() bool { return m.of.Log+m.of.Timestamps == 0 }

// options are what sigstore-go must check. An observer's time is a Rekor v1
// entry's, or a timestamp authority's, which Rekor v2 entries need. A key has no
// certificate that could be in a log.
func (m *material) options(certified bool) []sgverify.VerifierOption {
	var out []sgverify.VerifierOption
	if certified && m.of.CertificateLog {
		out = append(out, sgverify.WithSignedCertificateTimestamps(1))
	}
	if m.of.Log > 0 {
		out = append(out, sgverify.WithTransparencyLog(m.of.Log), sgverify.WithObserverTimestamps(1))
	}
	if m.of.Timestamps > 0 {
		out = append(out, sgverify.WithSignedTimestamps(m.of.Timestamps))
	}
	if m.current() {
		out = append(out, sgverify.WithCurrentTime())
	}
	return out
}

// count requires that as many operators as the root asks for recorded what is in
// b, and said when they saw it: sigstore-go counts logs and authorities, of which
// one operator may have several (CVE-2026-49834). trusted is m, with the signer's
// key if it has one.
func (m *material) count(b *sgbundle.Bundle, result *sgverify.VerificationResult, trusted root.TrustedMaterial) error {
	if out := m.outOfService(result); m.of.Log > 1 || m.of.Log > 0 && len(out) > 0 {
		n := 0
		for _, ids := range m.logs {
			ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(out, id) })
			if _, err := sgverify.VerifyTlogEntry(b, logsOf{trusted, ids}, 1, false); err == nil {
				n++
			}
		}
		if n < m.of.Log {
			return fmt.Errorf("it is in the logs in service of %d operators, and %d are asked for", n, m.of.Log)
		}
	}
	if m.of.Timestamps > 1 {
		seen := map[string]bool{}
		for _, ts := range result.VerifiedTimestamps {
			if ts.Type == "TimestampAuthority" {
				seen[m.stampers[ts.URI]] = true
			}
		}
		if len(seen) < m.of.Timestamps {
			return fmt.Errorf("it has timestamps of %d operators, and %d are asked for", len(seen), m.of.Timestamps)
		}
	}
	return nil
}

// outOfService returns the ids of the logs that were not in service at each of the
// times that were proven. sigstore-go compares a promise of Rekor v1 with that, and
// nothing of Rekor v2: the key of a log that has ended would record for ever.
func (m *material) outOfService(result *sgverify.VerificationResult) (ids []string) {
	for id, l := range m.RekorLogs() {
		if slices.ContainsFunc(result.VerifiedTimestamps, func(ts sgverify.TimestampVerificationResult) bool {
			return ts.Timestamp.Before(l.ValidityPeriodStart) || !l.ValidityPeriodEnd.IsZero() && ts.Timestamp.After(l.ValidityPeriodEnd)
		}) {
			ids = append(ids, id)
		}
	}
	return ids
}

// logsOf is a root with some of its logs only.
type logsOf struct {
	root.TrustedMaterial
	ids []string
}

func (l logsOf) RekorLogs() map[string]*root.TransparencyLog {
	out := map[string]*root.TransparencyLog{}
	for _, id := range l.ids {
		out[id] = l.TrustedMaterial.RekorLogs()[id]
	}
	return out
}

// operator names who operates what is at a URL, where the root does not say: the
// registered domain.
func operator(at string) string {
	u, err := url.Parse(at)
	if err != nil || u.Hostname() == "" {
		return at
	}
	if domain, err := publicsuffix.EffectiveTLDPlusOne(u.Hostname()); err == nil {
		return domain
	}
	return u.Hostname()
}

// ownMaterial is a root of one's own certificate authorities.
type ownMaterial struct {
	root.BaseTrustedMaterial
	authorities  []root.CertificateAuthority
	timestampers []root.TimestampingAuthority
}

func (m *ownMaterial) FulcioCertificateAuthorities() []root.CertificateAuthority {
	return m.authorities
}

func (m *ownMaterial) TimestampingAuthorities() []root.TimestampingAuthority { return m.timestampers }

// readAuthorities reads certificates. A timestamp authority is operated by the
// organisation that its root certificate names, or else by itself.
func (m *material) readAuthorities() error {
	own := new(ownMaterial)
	m.TrustedMaterial = own
	roots, intermediates, err := chains(m.of.Authorities)
	if err != nil {
		return fmt.Errorf("authorities: %w", err)
	}
	for _, c := range roots {
		own.authorities = append(own.authorities, &root.FulcioCertificateAuthority{
			Root: c, Intermediates: intermediates, ValidityPeriodStart: c.NotBefore, ValidityPeriodEnd: c.NotAfter, URI: c.Subject.String(),
		})
	}
	if len(m.of.Timestampers) == 0 {
		return nil
	}
	if roots, intermediates, err = chains(m.of.Timestampers); err != nil {
		return fmt.Errorf("timestampers: %w", err)
	}
	for _, c := range roots {
		name := c.Subject.String()
		own.timestampers = append(own.timestampers, &root.SigstoreTimestampingAuthority{
			Root: c, Intermediates: intermediates, ValidityPeriodStart: c.NotBefore, ValidityPeriodEnd: c.NotAfter, URI: name,
		})
		m.stampers[name] = cmp.Or(strings.Join(c.Subject.Organization, ", "), name)
	}
	return nil
}

// chains reads certificates in PEM: those that signed themselves are roots.
func chains(pem []byte) (roots, intermediates []*x509.Certificate, err error) {
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM(pem)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range certs {
		switch {
		case !c.IsCA:
			return nil, nil, fmt.Errorf("%s is no certificate authority", c.Subject)
		case c.CheckSignatureFrom(c) == nil:
			roots = append(roots, c)
		default:
			intermediates = append(intermediates, c)
		}
	}
	if len(roots) == 0 {
		return nil, nil, errors.New("no certificate signed itself: give the root too")
	}
	return roots, intermediates, nil
}

// oidDeployment is the deployment environment of a job, which sigstore-go does
// not read yet.
// https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
var oidDeployment = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 23}

func deployment(cert *x509.Certificate) string {
	for _, e := range cert.Extensions {
		var s string
		if e.Id.Equal(oidDeployment) {
			if rest, err := asn1.Unmarshal(e.Value, &s); err == nil && len(rest) == 0 {
				return s
			}
		}
	}
	return ""
}
