// Package verifytest owns a throwaway Sigstore that signs for real, for tests
// and the demo: a certificate authority with a certificate transparency log, a
// Rekor log, and named keys. It also pushes small images, and [Run] is the
// suite that every set of image verifiers must pass.
//
// It guarantees that nothing is faked: each certificate has a real SCT, each
// log entry a real promise and inclusion proof, each signature verifies with
// cosign and sigstore-go. It refuses to be anyone's root of trust: its keys live
// in memory only.
package verifytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/go-openapi/runtime"
	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/pki"
	"github.com/sigstore/rekor/pkg/types"
	rekordsse "github.com/sigstore/rekor/pkg/types/dsse"
	"github.com/sigstore/rekor/pkg/types/hashedrekord"
	rekorutil "github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Authority is a throwaway Sigstore. It is safe for concurrent use.
type Authority struct {
	root, intermediate *x509.Certificate
	intermediateKey    *ecdsa.PrivateKey
	ctKey, rekorKey    *ecdsa.PrivateKey
	start, end         time.Time

	mu    sync.Mutex
	keys  map[string]*ecdsa.PrivateKey
	index int64 // of the next log entry
}

// NewAuthority returns an Authority whose certificates and keys are valid from
// an hour ago for ten years.
func NewAuthority() (*Authority, error) {
	a := &Authority{keys: map[string]*ecdsa.PrivateKey{}, start: time.Now().Add(-time.Hour), end: time.Now().AddDate(10, 0, 0)}
	var rootKey *ecdsa.PrivateKey
	for _, k := range []**ecdsa.PrivateKey{&rootKey, &a.intermediateKey, &a.ctKey, &a.rekorKey} {
		var err error
		if *k, err = newKey(); err != nil {
			return nil, err
		}
	}
	var err error
	if a.root, err = a.authorityCert("holdfast test root", nil, nil, rootKey, rootKey); err != nil {
		return nil, err
	}
	a.intermediate, err = a.authorityCert("holdfast test intermediate", a.root, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, a.intermediateKey, rootKey)
	return a, err
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func (a *Authority) authorityCert(name string, parent *x509.Certificate, usage []x509.ExtKeyUsage, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"holdfast.test"}},
		NotBefore: a.start, NotAfter: a.end, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: usage,
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

// TrustedRoot returns the Authority's trusted_root.json.
func (a *Authority) TrustedRoot() ([]byte, error) {
	logOf := func(base string, key *ecdsa.PrivateKey) (map[string]*root.TransparencyLog, error) {
		id, err := logID(key)
		if err != nil {
			return nil, err
		}
		return map[string]*root.TransparencyLog{hex.EncodeToString(id): {
			BaseURL: base, ID: id, ValidityPeriodStart: a.start, ValidityPeriodEnd: a.end,
			HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256, PublicKey: key.Public(),
		}}, nil
	}
	ctlogs, err := logOf("https://ct.holdfast.test", a.ctKey)
	if err != nil {
		return nil, err
	}
	rekor, err := logOf("https://rekor.holdfast.test", a.rekorKey)
	if err != nil {
		return nil, err
	}
	fulcio := &root.FulcioCertificateAuthority{
		URI: "https://fulcio.holdfast.test", Root: a.root, Intermediates: []*x509.Certificate{a.intermediate},
		ValidityPeriodStart: a.start, ValidityPeriodEnd: a.end,
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{fulcio}, ctlogs, nil, rekor)
	if err != nil {
		return nil, err
	}
	return tr.MarshalJSON()
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

// Key returns the public key called name in PEM, made on first use.
func (a *Authority) Key(name string) ([]byte, error) {
	k, err := a.key(name)
	if err != nil {
		return nil, err
	}
	return cryptoutils.MarshalPublicKeyToPEM(k.Public())
}

func (a *Authority) key(name string) (*ecdsa.PrivateKey, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k, ok := a.keys[name]; ok {
		return k, nil
	}
	k, err := newKey()
	if err != nil {
		return nil, err
	}
	a.keys[name] = k
	return k, nil
}

// The extensions of Fulcio's certificates that are used here.
// https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
var (
	oidIssuer   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	oidIssuerV2 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
	oidSCTList  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2} // RFC 6962, section 3.3
)

// certify issues a certificate for ten minutes from notBefore, logged in the
// certificate transparency log.
func (a *Authority) certify(identity, issuer string, notBefore time.Time, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	derIssuer, err := asn1.MarshalWithParams(issuer, "utf8")
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: notBefore, NotAfter: notBefore.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: oidIssuer, Value: []byte(issuer)}, {Id: oidIssuerV2, Value: derIssuer}},
	}
	if strings.Contains(identity, "://") {
		u, err := url.Parse(identity)
		if err != nil {
			return nil, err
		}
		template.URIs = []*url.URL{u}
	} else {
		template.EmailAddresses = []string{identity}
	}
	create := func() (*x509.Certificate, error) {
		der, err := x509.CreateCertificate(rand.Reader, template, a.intermediate, key.Public(), a.intermediateKey)
		if err != nil {
			return nil, err
		}
		return x509.ParseCertificate(der)
	}
	// The SCT is over the certificate as it is without the SCT.
	pre, err := create()
	if err != nil {
		return nil, err
	}
	sct, err := a.sct(pre, notBefore)
	if err != nil {
		return nil, err
	}
	template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: oidSCTList, Value: sct})
	return create()
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
				IssuerKeyHash:  sha256.Sum256(a.intermediate.RawSubjectPublicKeyInfo),
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

// logEntry is what Rekor answers for a new entry.
type logEntry struct {
	kind, version string
	body, id, set []byte
	index         int64
	time          time.Time
	rootHash      []byte
	checkpoint    string
}

// record logs what was signed: for hashedrekord the artifact, for dsse the envelope.
func (a *Authority) record(ctx context.Context, kind string, artifact, sig, publicPEM []byte, at time.Time) (*logEntry, error) {
	props := types.ArtifactProperties{PublicKeyBytes: [][]byte{publicPEM}, PKIFormat: string(pki.X509), SignatureBytes: sig}
	version := "0.0.1"
	switch kind {
	case hashedrekord.KIND:
		sum := sha256.Sum256(artifact)
		props.ArtifactHash = hex.EncodeToString(sum[:])
	case rekordsse.KIND:
		props.ArtifactBytes = artifact
	default:
		return nil, fmt.Errorf("unknown kind of entry %q", kind)
	}
	body, err := canonicalEntry(ctx, kind, version, props)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	id, err := logID(a.rekorKey)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	index := a.index
	a.index++
	a.mu.Unlock()
	e := &logEntry{kind: kind, version: version, body: body, id: id, index: index, time: at}
	payload, err := json.Marshal(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(body), IntegratedTime: at.Unix(), LogIndex: index, LogID: hex.EncodeToString(id),
	})
	if err != nil {
		return nil, err
	}
	canonical, err := jsoncanonicalizer.Transform(payload)
	if err != nil {
		return nil, err
	}
	signer, err := signature.LoadECDSASignerVerifier(a.rekorKey, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	if e.set, err = signer.SignMessage(bytes.NewReader(canonical)); err != nil {
		return nil, err
	}
	// Each entry is the only leaf of a tree of its own: its proof is empty.
	leaf := sha256.Sum256(append([]byte{0}, body...))
	e.rootHash = leaf[:]
	cp, err := rekorutil.CreateAndSignCheckpoint(ctx, "rekor.holdfast.test", 1, 1, e.rootHash, signer)
	e.checkpoint = string(cp)
	return e, err
}

func canonicalEntry(ctx context.Context, kind, version string, props types.ArtifactProperties) ([]byte, error) {
	proposed, err := types.NewProposedEntry(ctx, kind, version, props)
	if err != nil {
		return nil, err
	}
	entry, err := types.CreateVersionedEntry(proposed)
	if err != nil {
		return nil, err
	}
	canonical, err := types.CanonicalizeEntry(ctx, entry)
	if err != nil {
		return nil, err
	}
	again, err := models.UnmarshalProposedEntry(bytes.NewReader(canonical), runtime.JSONConsumer())
	if err != nil {
		return nil, err
	}
	if entry, err = types.UnmarshalEntry(again); err != nil {
		return nil, err
	}
	return entry.Canonicalize(ctx)
}

func certPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
