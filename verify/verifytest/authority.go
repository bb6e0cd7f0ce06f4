// Package verifytest owns a throwaway Sigstore that signs for real, for tests
// and the demo: a certificate authority with a certificate transparency log,
// Rekor logs of both versions and timestamp authorities by several operators, a
// company's own authorities, and named keys. It also pushes small images, and
// [Run] is the suite that every set of image verifiers must pass.
//
// It guarantees that nothing is faked: each certificate has a real SCT, each
// log entry a real promise and inclusion proof, each timestamp is a real RFC 3161
// response, each signature verifies with cosign and sigstore-go, unless its
// options say what is to be wrong about it. It refuses to be anyone's root of
// trust: its keys live in memory only.
package verifytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"
	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-dev/holdfast/verify"
)

// The names of the Authority's logs and timestamp authorities. Sibling has the
// operator of Main, Other has another one, and Stranger is in no root unless
// it is named.
const (
	Main     = "main"
	Sibling  = "sibling"
	Other    = "other"
	Stranger = "stranger"
)

// hosts are the domains of what the names stand for.
var hosts = map[string]string{
	Main: "holdfast.test", Sibling: "2.holdfast.test", Other: "other.test", Stranger: "stranger.test",
}

// Authority is a throwaway Sigstore. It is safe for concurrent use.
type Authority struct {
	ca       *certifier
	ctKey    *ecdsa.PrivateKey
	logs     map[string]*transparencyLog
	stampers map[string]*stamper

	mu   sync.Mutex
	keys map[string]crypto.Signer
}

// NewAuthority returns an Authority whose certificates and keys are valid from
// an hour ago for ten years.
func NewAuthority() (*Authority, error) { return NewAuthorityUntil(time.Time{}) }

// NewAuthorityUntil returns an Authority whose intermediate certificate ends at
// end, or with everything else where that is zero.
func NewAuthorityUntil(end time.Time) (*Authority, error) {
	a := &Authority{keys: map[string]crypto.Signer{}, logs: map[string]*transparencyLog{}, stampers: map[string]*stamper{}}
	var err error
	if a.ca, err = newCertifier("holdfast test", end); err != nil {
		return nil, err
	}
	if a.ctKey, err = newKey(); err != nil {
		return nil, err
	}
	for name, host := range hosts {
		if a.logs[name], err = newLog("https://rekor." + host); err != nil {
			return nil, err
		}
		if a.stampers[name], err = newStamper("https://tsa."+host, a.ca.start, a.ca.end); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Company is a certificate authority of one's own, for long-lived certificates,
// with a timestamp authority beside it. It has no logs.
type Company struct {
	ca      *certifier
	stamper *stamper
}

// NewCompany returns a Company, whose intermediate certificate ends at end, or
// with everything else where that is zero.
func NewCompany(end time.Time) (*Company, error) {
	ca, err := newCertifier("company", end)
	if err != nil {
		return nil, err
	}
	s, err := newStamper("company", ca.start, ca.end)
	return &Company{ca, s}, err
}

// Authorities returns the company's certificate authorities in PEM.
func (c *Company) Authorities() []byte { return certPEM(c.ca.root, c.ca.intermediate) }

// Root returns only the root certificate in PEM.
func (c *Company) Root() []byte { return certPEM(c.ca.root) }

// Timestampers returns the root certificate of the timestamp authority in PEM.
func (c *Company) Timestampers() []byte { return certPEM(c.stamper.root) }

// certifier is a root and an intermediate certificate authority.
type certifier struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey // of the intermediate
	start, end         time.Time
}

func newCertifier(name string, intermediateEnd time.Time) (*certifier, error) {
	c := &certifier{start: time.Now().Add(-time.Hour), end: time.Now().AddDate(10, 0, 0)}
	if intermediateEnd.IsZero() {
		intermediateEnd = c.end
	}
	rootKey, err := newKey()
	if err != nil {
		return nil, err
	}
	if c.key, err = newKey(); err != nil {
		return nil, err
	}
	if c.root, err = authorityCert(name+" root", nil, nil, c.start, c.end, rootKey, rootKey); err != nil {
		return nil, err
	}
	c.intermediate, err = authorityCert(name+" intermediate", c.root, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, c.start, intermediateEnd, c.key, rootKey)
	return c, err
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func authorityCert(name string, parent *x509.Certificate, usage []x509.ExtKeyUsage, start, end time.Time, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"holdfast.test"}},
		NotBefore: start, NotAfter: end, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: usage,
		BasicConstraintsValid: true, IsCA: true,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// RootOptions say what is in a trusted root.
type RootOptions struct {
	Logs, Stampers []string // names
	// NoCertificateLog leaves the certificate transparency log out: GitHub's form.
	NoCertificateLog bool
	// Operators are written into the file, by the name of the log or timestamp
	// authority. Without, only the addresses say who operates what.
	Operators map[string]string
}

// TrustedRoot returns the Authority's trusted_root.json, with one log.
func (a *Authority) TrustedRoot() ([]byte, error) {
	return a.TrustedRootWith(RootOptions{Logs: []string{Main}})
}

// TrustedRootWith returns a trusted_root.json of the Authority.
func (a *Authority) TrustedRootWith(o RootOptions) ([]byte, error) {
	ctlogs, rekor := map[string]*root.TransparencyLog{}, map[string]*root.TransparencyLog{}
	if !o.NoCertificateLog {
		if err := a.add(ctlogs, "https://ct.holdfast.test", a.ctKey); err != nil {
			return nil, err
		}
	}
	for _, name := range o.Logs {
		if err := a.add(rekor, a.logs[name].url, a.logs[name].key); err != nil {
			return nil, err
		}
	}
	var stampers []root.TimestampingAuthority
	for _, name := range o.Stampers {
		s := a.stampers[name]
		stampers = append(stampers, &root.SigstoreTimestampingAuthority{
			URI: s.url, Root: s.root, Leaf: s.leaf, ValidityPeriodStart: a.ca.start, ValidityPeriodEnd: a.ca.end,
		})
	}
	fulcio := &root.FulcioCertificateAuthority{
		URI: "https://fulcio.holdfast.test", Root: a.ca.root, Intermediates: []*x509.Certificate{a.ca.intermediate},
		ValidityPeriodStart: a.ca.start, ValidityPeriodEnd: a.ca.end,
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{fulcio}, ctlogs, stampers, rekor)
	if err != nil {
		return nil, err
	}
	b, err := tr.MarshalJSON()
	if err != nil || o.Operators == nil {
		return b, err
	}
	return a.operated(b, o.Operators)
}

// add adds a log to those of a root.
func (a *Authority) add(to map[string]*root.TransparencyLog, url string, key *ecdsa.PrivateKey) error {
	id, err := logID(key)
	if err != nil {
		return err
	}
	to[hex.EncodeToString(id)] = &root.TransparencyLog{
		BaseURL: url, ID: id, ValidityPeriodStart: a.ca.start, ValidityPeriodEnd: a.ca.end,
		HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256, PublicKey: key.Public(),
	}
	return nil
}

// operated writes operators into a trusted root, which sigstore-go does not.
func (a *Authority) operated(trustedRoot []byte, operators map[string]string) ([]byte, error) {
	var doc prototrustroot.TrustedRoot
	if err := protojson.Unmarshal(trustedRoot, &doc); err != nil {
		return nil, err
	}
	for name, who := range operators {
		for _, l := range doc.Tlogs {
			if l.BaseUrl == a.logs[name].url {
				l.Operator = who
			}
		}
		for _, s := range doc.TimestampAuthorities {
			if s.Uri == a.stampers[name].url {
				s.Operator = who
			}
		}
	}
	return protojson.Marshal(&doc)
}

// logID is the SHA-256 of the key in PKIX form (RFC 6962, section 3.2).
func logID(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// Key returns the public key called name in PEM, made on first use. A name that
// ends in ".rsa2048", ".rsa3072", ".ed25519", ".p384" or ".p521" is such a key,
// any other an ECDSA key over P-256.
func (a *Authority) Key(name string) ([]byte, error) {
	k, err := a.key(name)
	if err != nil {
		return nil, err
	}
	return cryptoutils.MarshalPublicKeyToPEM(k.Public())
}

func (a *Authority) key(name string) (crypto.Signer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k, ok := a.keys[name]; ok {
		return k, nil
	}
	k, err := keyOf(name[strings.LastIndex(name, ".")+1:])
	if err != nil {
		return nil, err
	}
	a.keys[name] = k
	return k, nil
}

func keyOf(kind string) (crypto.Signer, error) {
	switch kind {
	case "rsa2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "ed25519":
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	case "p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		return newKey()
	}
}

// The extensions of Fulcio's certificates.
// https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
var (
	oidIssuer  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	oidSCTList = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2} // RFC 6962, section 3.3
)

// extensions returns what Fulcio writes into a certificate. What is empty is left
// out.
func extensions(c verify.Certificate) ([]pkix.Extension, error) {
	var out []pkix.Extension
	if c.Issuer != "" {
		out = append(out, pkix.Extension{Id: oidIssuer, Value: []byte(c.Issuer)})
	}
	for i, value := range []string{
		c.Issuer, c.BuildSigner, c.BuildSignerDigest, c.Runner, c.SourceRepository, c.SourceDigest, c.SourceRef, c.SourceRepositoryID,
		c.SourceOwner, c.SourceOwnerID, c.BuildConfig, c.BuildConfigDigest, c.Trigger, c.Run, c.Visibility, c.Deployment,
	} {
		if value == "" {
			continue
		}
		der, err := asn1.MarshalWithParams(value, "utf8")
		if err != nil {
			return nil, err
		}
		out = append(out, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8 + i}, Value: der})
	}
	return out, nil
}

// certificate returns the certificate for who o says, by the company of o, or by
// a, logged in the certificate transparency log.
func (a *Authority) certificate(o SignOptions, key crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	from, usage := o.IssuedAt, o.Usage
	if from.IsZero() {
		from = time.Now().Add(-time.Minute)
	}
	if usage == nil {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: from, NotAfter: from.Add(o.lifetime()),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}
	says := verify.Certificate{Issuer: o.Issuer}
	if o.Build != nil {
		says = *o.Build
		says.Issuer = o.Issuer
	}
	if template.ExtraExtensions, err = extensions(says); err != nil {
		return nil, err
	}
	if err := nameHolder(template, o.Identity); err != nil {
		return nil, err
	}
	if o.Company != nil {
		return o.Company.ca.issue(template, key)
	}
	if o.NoSCT {
		return a.ca.issue(template, key)
	}
	// The SCT is over the certificate as it is without the SCT.
	pre, err := a.ca.issue(template, key)
	if err != nil {
		return nil, err
	}
	sct, err := a.sct(pre, from)
	if err != nil {
		return nil, err
	}
	template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: oidSCTList, Value: sct})
	return a.ca.issue(template, key)
}

// nameHolder adds who the certificate is for, which may be several, one a line.
func nameHolder(template *x509.Certificate, identity string) error {
	if identity == "" {
		return errors.New("verifytest: a certificate for nobody")
	}
	for one := range strings.SplitSeq(identity, "\n") {
		if !strings.Contains(one, "://") {
			template.EmailAddresses = append(template.EmailAddresses, one)
			continue
		}
		u, err := url.Parse(one)
		if err != nil {
			return fmt.Errorf("verifytest: identity: %w", err)
		}
		template.URIs = append(template.URIs, u)
	}
	return nil
}

func (c *certifier) issue(template *x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, c.intermediate, key, c.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// sct returns the value of the SCT list extension for pre (RFC 6962, section 3.2).
func (a *Authority) sct(pre *x509.Certificate, at time.Time) ([]byte, error) {
	id, err := logID(a.ctKey)
	if err != nil {
		return nil, err
	}
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, Timestamp: uint64(at.UnixMilli())} // after 1970
	copy(sct.LogID.KeyID[:], id)
	input, err := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: ct.MerkleTreeLeaf{
		Version: ct.V1, LeafType: ct.TimestampedEntryLeafType,
		TimestampedEntry: &ct.TimestampedEntry{
			Timestamp: sct.Timestamp, EntryType: ct.PrecertLogEntryType,
			PrecertEntry: &ct.PreCert{
				IssuerKeyHash:  sha256.Sum256(a.ca.intermediate.RawSubjectPublicKeyInfo),
				TBSCertificate: pre.RawTBSCertificate,
			},
		},
	}})
	if err != nil {
		return nil, err
	}
	sig, err := cttls.CreateSignature(*a.ctKey, cttls.SHA256, input)
	if err != nil {
		return nil, err
	}
	sct.Signature = ct.DigitallySigned(sig)
	list, err := x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&sct})
	if err != nil {
		return nil, err
	}
	raw, err := cttls.Marshal(*list)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(raw)
}

func certPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
