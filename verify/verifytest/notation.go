package verifytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/tspclient-go"
)

// NotationSubject is the subject of the certificates that a [Notary] issues,
// without the common name.
const NotationSubject = "C=US, ST=WA, O=acme"

const (
	notationArtifact = "application/vnd.cncf.notary.signature"
	notationPayload  = "application/vnd.cncf.notary.payload.v1+json"
	emptyConfig      = "application/vnd.oci.empty.v1+json"
)

// Notary is a throwaway certificate authority of the Notary Project, with a
// timestamp authority beside it. It is safe for concurrent use.
type Notary struct {
	root, intermediate, stampRoot, stamp issuer
}

// issuer is a certificate and its key.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewNotary returns a Notary whose own certificates are valid from ten years ago
// for twenty years.
func NewNotary() (*Notary, error) {
	n := new(Notary)
	var err error
	if n.root, err = newIssuer("notary test root", nil); err != nil {
		return nil, err
	}
	if n.intermediate, err = newIssuer("notary test intermediate", &n.root); err != nil {
		return nil, err
	}
	if n.stampRoot, err = newIssuer("timestamp test root", nil); err != nil {
		return nil, err
	}
	n.stamp, err = n.stampRoot.stamper(nil)
	return n, err
}

// stamper returns a timestamp authority, whose certificate is altered before it is
// signed.
func (i *issuer) stamper(change func(*x509.Certificate)) (issuer, error) {
	key, err := newKey()
	if err != nil {
		return issuer{}, err
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{oidTimeStamping})
	if err != nil {
		return issuer{}, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "timestamp test authority"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: oidExtendedKeyUsage, Critical: true, Value: usage}},
	}
	if change != nil {
		change(template)
	}
	cert, err := i.issue(template, key.Public())
	return issuer{cert, key}, err
}

// Restamped returns the Notary with another timestamp authority under the same
// root, whose certificate is altered before it is signed.
func (n *Notary) Restamped(change func(*x509.Certificate)) (*Notary, error) {
	out := *n
	var err error
	out.stamp, err = n.stampRoot.stamper(change)
	return &out, err
}

// Subordinate returns the Notary with another authority that issues, whose
// certificate is altered before it is signed.
func (n *Notary) Subordinate(who string, change func(*x509.Certificate)) (*Notary, error) {
	out := *n
	var err error
	out.intermediate, err = newIssuer(who, &n.root, change)
	return &out, err
}

func newIssuer(who string, parent *issuer, change ...func(*x509.Certificate)) (issuer, error) {
	key, err := newKey()
	if err != nil {
		return issuer{}, err
	}
	i := issuer{key: key}
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: who, Country: []string{"US"}, Province: []string{"WA"}, Organization: []string{"holdfast.test"}},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	for _, c := range change {
		c(template)
	}
	if parent == nil {
		i.cert = template
		parent = &i
	}
	i.cert, err = parent.issue(template, key.Public())
	return i, err
}

// issue signs a certificate made of template, which is valid from ten years ago for
// twenty years where it does not say.
func (i *issuer) issue(template *x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	var err error
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().AddDate(-10, 0, 0), time.Now().AddDate(10, 0, 0)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key, i.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Certificates returns the root certificate in PEM: the trust store.
func (n *Notary) Certificates() []byte { return certPEM(n.root.cert) }

// Intermediate returns the certificate in PEM of the authority that issues.
func (n *Notary) Intermediate() []byte { return certPEM(n.intermediate.cert) }

// Timestampers returns the timestamp authority's root certificate in PEM.
func (n *Notary) Timestampers() []byte { return certPEM(n.stampRoot.cert) }

// CertificateOptions say what a certificate is like.
type CertificateOptions struct {
	// Name is the common name behind NotationSubject; Subject replaces the whole.
	Name    string
	Subject pkix.Name
	// From and Until are its validity; zero: an hour ago, and tomorrow.
	From, Until time.Time
	SelfSigned  bool
	RSA         bool // a key of 2048 bits, not ECDSA P-256
	// Change alters the certificate before it is signed.
	Change func(*x509.Certificate)
}

// Holder is who has a certificate and its key.
type Holder struct {
	Chain []*x509.Certificate // root last
	Key   crypto.Signer
}

// PEM returns the holder's own certificate in PEM.
func (h *Holder) PEM() []byte { return certPEM(h.Chain[0]) }

// Certify issues a certificate for code signing.
func (n *Notary) Certify(o CertificateOptions) (*Holder, error) {
	h := new(Holder)
	ec, err := newKey()
	if err != nil {
		return nil, err
	}
	h.Key = ec
	if o.RSA {
		if h.Key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
	}
	if o.Until.IsZero() {
		o.From, o.Until = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	if o.Subject.String() == "" {
		o.Subject = pkix.Name{Country: []string{"US"}, Province: []string{"WA"}, Organization: []string{"acme"}, CommonName: o.Name}
	}
	template := &x509.Certificate{
		Subject: o.Subject, NotBefore: o.From, NotAfter: o.Until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	if o.Change != nil {
		o.Change(template)
	}
	by := n.intermediate
	if o.SelfSigned {
		by = issuer{template, ec}
	}
	leaf, err := by.issue(template, h.Key.Public())
	if err != nil {
		return nil, err
	}
	h.Chain = []*x509.Certificate{leaf}
	if !o.SelfSigned {
		h.Chain = append(h.Chain, n.intermediate.cert, n.root.cert)
	}
	return h, nil
}

// NotationOptions say how is signed and, for tests of what must be refused, what
// is wrong about it.
type NotationOptions struct {
	Registry
	COSE bool // the envelope, which is JWS otherwise
	// SignedAt is what the signer says of the time, Expiry until when he means it,
	// and StampedAt what the timestamp authority says; zero: now, for ever, and no
	// timestamp.
	SignedAt, Expiry, StampedAt time.Time
	// Claim alters what the signature is about.
	Claim func(*v1.Descriptor)
	// Payload replaces the payload, and PayloadType its type.
	Payload     []byte
	PayloadType string
	Scheme      signature.SigningScheme
	Attributes  []signature.Attribute // further ones that are signed
}

// Sign signs the artifact at ref, "name@sha256:…", as notation does, and pushes
// the signature.
func (n *Notary) Sign(ctx context.Context, ref string, h *Holder, o NotationOptions) error {
	target, err := name.NewDigest(ref)
	if err != nil {
		return err
	}
	got, err := remote.Get(target, o.options(ctx)...)
	if err != nil {
		return err
	}
	envelope, err := n.Envelope(ctx, got.Descriptor, h, o)
	if err != nil {
		return err
	}
	return PushNotation(ctx, ref, o.mediaType(), envelope, o.Registry)
}

func (o NotationOptions) mediaType() string {
	if o.COSE {
		return cose.MediaTypeEnvelope
	}
	return jws.MediaTypeEnvelope
}

// Envelope returns a signature of what target describes.
func (n *Notary) Envelope(ctx context.Context, target v1.Descriptor, h *Holder, o NotationOptions) ([]byte, error) {
	if o.Claim != nil {
		o.Claim(&target)
	}
	if o.Payload == nil {
		var err error
		o.Payload, err = json.Marshal(map[string]any{"targetArtifact": map[string]any{
			"mediaType": target.MediaType, "digest": target.Digest, "size": target.Size,
		}})
		if err != nil {
			return nil, err
		}
	}
	if o.PayloadType == "" {
		o.PayloadType = notationPayload
	}
	if o.Scheme == "" {
		o.Scheme = signature.SigningSchemeX509
	}
	if o.SignedAt.IsZero() {
		o.SignedAt = time.Now()
	}
	signer, err := signature.NewLocalSigner(h.Chain, h.Key)
	if err != nil {
		return nil, err
	}
	request := &signature.SignRequest{
		Payload: signature.Payload{ContentType: o.PayloadType, Content: o.Payload}, Signer: signer,
		SigningTime: o.SignedAt, Expiry: o.Expiry, ExtendedSignedAttributes: o.Attributes,
		SigningAgent: "verifytest/1", SigningScheme: o.Scheme,
	}
	if !o.StampedAt.IsZero() {
		request.Timestamper = clock{n.stamp, o.StampedAt}
		request.TSARootCAs = x509.NewCertPool()
		request.TSARootCAs.AddCert(n.stampRoot.cert)
	}
	e, err := signature.NewEnvelope(o.mediaType())
	if err != nil {
		return nil, err
	}
	return e.Sign(request.WithContext(ctx))
}

// clock is a timestamp authority whose clock stands still.
type clock struct {
	issuer
	at time.Time
}

// Timestamp implements [tspclient.Timestamper] for requests in SHA-256.
func (c clock) Timestamp(_ context.Context, r *tspclient.Request) (*tspclient.Response, error) {
	b, err := c.respond(r.MessageImprint.HashedMessage, r.Nonce)
	if err != nil {
		return nil, err
	}
	out := new(tspclient.Response)
	return out, out.UnmarshalBinary(b)
}

// respond answers for a SHA-256 sum, with an accuracy of a second (RFC 3161).
func (c clock) respond(sum []byte, nonce *big.Int) ([]byte, error) {
	token := timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum, Nonce: nonce,
		Time: c.at.UTC().Truncate(time.Second), Accuracy: time.Second, Policy: oidStampPolicy,
		AddTSACertificate: true,
	}
	return token.CreateResponseWithOpts(c.cert, c.key, crypto.SHA256)
}

// Stamp returns a timestamp of a signature that was made with SHA-256.
func (n *Notary) Stamp(sig []byte, at time.Time) ([]byte, error) {
	sum := sha256.Sum256(sig)
	b, err := clock{n.stamp, at}.respond(sum[:], nil)
	if err != nil {
		return nil, err
	}
	var out tspclient.Response
	err = out.UnmarshalBinary(b)
	return out.TimestampToken.FullBytes, err
}

// TimestampServer answers timestamp requests over HTTP (RFC 3161, section 3.4).
func (n *Notary) TimestampServer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request tspclient.Request
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
		if err == nil {
			err = request.UnmarshalBinary(b)
		}
		if err == nil {
			var response *tspclient.Response
			if response, err = (clock{n.stamp, time.Now()}).Timestamp(r.Context(), &request); err == nil {
				b, err = response.MarshalBinary()
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/timestamp-reply")
		_, _ = w.Write(b) // the client sees that something is missing
	})
}

// PushNotation pushes an envelope, which may be anything, as a signature of the
// artifact at ref, in a manifest after changes.
func PushNotation(ctx context.Context, ref, mediaType string, envelope []byte, r Registry, change ...func(*v1.Manifest)) error {
	target, err := name.NewDigest(ref)
	if err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: notationArtifact, Layers: make([]v1.Descriptor, 1)}
	if m.Subject, err = remote.Head(target, r.options(ctx)...); err != nil {
		return err
	}
	if m.Config, err = pushBlob(ctx, target.Context(), []byte("{}"), emptyConfig, r); err != nil {
		return err
	}
	if m.Layers[0], err = pushBlob(ctx, target.Context(), envelope, types.MediaType(mediaType), r); err != nil {
		return err
	}
	for _, c := range change {
		c(&m)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return remote.Put(target.Context().Digest(h.String()), rawManifest(raw), r.options(ctx)...)
}

func pushBlob(ctx context.Context, repo name.Repository, b []byte, mt types.MediaType, r Registry) (v1.Descriptor, error) {
	l := static.NewLayer(b, mt)
	h, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mt, Digest: h, Size: int64(len(b))}, remote.WriteLayer(repo, l, r.options(ctx)...)
}

// rawManifest is an OCI image manifest as it is.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)      { return m, nil }
func (rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
