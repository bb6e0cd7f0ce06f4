package verifytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/digitorus/pkcs7"
	"github.com/digitorus/timestamp"
)

// stamper is an RFC 3161 timestamp authority.
type stamper struct {
	url        string
	root, leaf *x509.Certificate
	key        *ecdsa.PrivateKey // of the leaf
}

// Stamp says which timestamp a signature gets.
type Stamp struct {
	By string // Main, …; empty: the company's, or Main
	// At is when it says that it saw the signature; zero is now.
	At time.Time
	// Over replaces what it saw.
	Over []byte
	// Forged has a stranger sign it, who puts the real authority's certificate into
	// the bag beside its own (CVE-2026-39984).
	Forged bool
}

// The extended key usage must be critical (RFC 3161, section 2.3).
var (
	oidExtendedKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidTimeStamping     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}
	oidStampPolicy      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}
)

func newStamper(url string, start, end time.Time) (*stamper, error) {
	s := &stamper{url: url}
	rootKey, err := newKey()
	if err != nil {
		return nil, err
	}
	if s.root, err = authorityCert(url+" timestamp root", nil, nil, start, end, rootKey, rootKey); err != nil {
		return nil, err
	}
	if s.key, err = newKey(); err != nil {
		return nil, err
	}
	s.leaf, err = stampCert(s.root, rootKey, s.key, start, end)
	return s, err
}

func stampCert(parent *x509.Certificate, parentKey, key *ecdsa.PrivateKey, start, end time.Time) (*x509.Certificate, error) {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{oidTimeStamping})
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "timestamps"}, NotBefore: start, NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{{Id: oidExtendedKeyUsage, Critical: true, Value: usage}},
	}, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// stamp returns a timestamp response over sig, its certificate included.
func (s *stamper) stamp(sig []byte, o Stamp) ([]byte, error) {
	if o.Over != nil {
		sig = o.Over
	}
	if o.At.IsZero() {
		o.At = time.Now()
	}
	sum := sha256.Sum256(sig)
	token := timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: o.At, Policy: oidStampPolicy, AddTSACertificate: true,
	}
	if !o.Forged {
		return token.CreateResponseWithOpts(s.leaf, s.key, crypto.SHA256)
	}
	return s.forge(token)
}

// TimestampServer answers requests for timestamps, as Main.
func (a *Authority) TimestampServer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
		if err != nil {
			http.Error(w, "the request is too long", http.StatusBadRequest)
			return
		}
		asked, err := timestamp.ParseRequest(body)
		if err != nil {
			http.Error(w, "this is no request for a timestamp", http.StatusBadRequest)
			return
		}
		token := timestamp.Timestamp{
			HashAlgorithm: asked.HashAlgorithm, HashedMessage: asked.HashedMessage, Nonce: asked.Nonce,
			Time: time.Now(), Policy: oidStampPolicy, AddTSACertificate: asked.Certificates,
		}
		s := a.stampers[Main]
		response, err := token.CreateResponseWithOpts(s.leaf, s.key, crypto.SHA256)
		if err != nil {
			http.Error(w, "no timestamp could be made", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/timestamp-reply")
		_, _ = w.Write(response) // the client is gone
	})
}

// forge has a stranger sign token. Its own certificate is one of an authority, so
// that whoever takes the first that is not takes the real one.
func (s *stamper) forge(token timestamp.Timestamp) ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := authorityCert("stranger", nil, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}, s.leaf.NotBefore, s.leaf.NotAfter, key, key)
	if err != nil {
		return nil, err
	}
	honest, err := token.CreateResponseWithOpts(cert, key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	parsed, err := timestamp.ParseResponse(honest)
	if err != nil {
		return nil, err
	}
	old, err := pkcs7.Parse(parsed.RawToken)
	if err != nil {
		return nil, err
	}
	forged, err := pkcs7.NewSignedData(old.Content)
	if err != nil {
		return nil, err
	}
	forged.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	forged.SetContentType(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4})
	forged.GetSignedData().Version = 3
	forged.AddCertificate(s.leaf)
	if err := forged.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	signed, err := forged.Finish()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		Status struct{ Status int }
		Token  asn1.RawValue
	}{Token: asn1.RawValue{FullBytes: signed}})
}
