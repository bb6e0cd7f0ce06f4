package verifytest

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	ociremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekordsse "github.com/sigstore/rekor/pkg/types/dsse"
	"github.com/sigstore/rekor/pkg/types/hashedrekord"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-dev/holdfast/verify"
)

// Layout says where a signature is put.
type Layout int

// The layouts.
const (
	Referrers Layout = iota // a Sigstore bundle v0.3 in a referring manifest
	Legacy                  // cosign's .sig and .att tags
)

const (
	bundleType    = "application/vnd.dev.sigstore.bundle.v0.3+json"
	intotoType    = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
	statementV1   = "https://in-toto.io/Statement/v1"
	statementV01  = "https://in-toto.io/Statement/v0.1"
)

// Registry says how a registry is reached. The zero value is HTTPS, or HTTP for
// loopback, without credentials.
type Registry struct {
	Transport          http.RoundTripper
	Username, Password string
}

func (r Registry) options(ctx context.Context) []remote.Option {
	opts := []remote.Option{remote.WithContext(ctx)}
	if r.Transport != nil {
		opts = append(opts, remote.WithTransport(r.Transport))
	}
	if r.Username != "" {
		opts = append(opts, remote.WithAuth(&authn.Basic{Username: r.Username, Password: r.Password}))
	}
	return opts
}

// ImageOptions say what to push.
type ImageOptions struct {
	Registry
	Platforms []string // "linux/amd64", …: an index of one image each; empty: one image
}

// PushImage pushes a small random image, or an index, to ref and returns its digest.
func PushImage(ctx context.Context, ref string, o ImageOptions) (digest.Digest, error) {
	tag, err := name.ParseReference(ref)
	if err != nil {
		return "", err
	}
	if len(o.Platforms) == 0 {
		img, err := random.Image(64, 1)
		if err != nil {
			return "", err
		}
		if err := remote.Write(tag, img, o.options(ctx)...); err != nil {
			return "", err
		}
		return digestOf(img)
	}
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range o.Platforms {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return "", err
		}
		img, err := random.Image(64, 1)
		if err != nil {
			return "", err
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	if err := remote.WriteIndex(tag, idx, o.options(ctx)...); err != nil {
		return "", err
	}
	return digestOf(idx)
}

func digestOf(m interface{ Digest() (v1.Hash, error) }) (digest.Digest, error) {
	h, err := m.Digest()
	return digest.Digest(h.String()), err
}

// SignOptions say who signs, how, and, for tests of what must be refused, what is
// wrong about it.
type SignOptions struct {
	Registry
	Layout Layout
	Key    string // the name of one of the Authority's keys; or:
	// Identity (an e-mail address or a URI; several, one a line) and its OIDC
	// Issuer. Build is what else the certificate says.
	Identity, Issuer string
	Build            *verify.Certificate
	// With is the Authority's key that Identity holds; empty is a new one.
	With string
	// Company issues the certificate in the place of the Authority, without an SCT.
	Company *Company
	// IssuedAt is since when the certificate is valid; zero is a minute ago, since
	// log times are whole seconds. Lifetime is for how long; zero is ten minutes, or
	// a year if a company issues it. Usage is for what; nil is for signing code.
	IssuedAt time.Time
	Lifetime time.Duration
	Usage    []x509.ExtKeyUsage
	NoSCT    bool
	// Hash is the digest that the key signs; zero is what belongs to the key.
	Hash crypto.Hash

	NoTlog bool // no log entry
	// Logs names the Rekor v1 logs, and Tiles the Rekor v2 logs that record the
	// signature; both empty is Main's v1. The legacy layout has one of version 1.
	Logs, Tiles []string
	// LoggedAt is when the log says it saw the signature; zero is now.
	LoggedAt time.Time
	Stamps   []Stamp // the legacy layout has one

	// Claim replaces the digest that the signature is about, while it is still
	// put beside the image: a signature that was copied.
	Claim digest.Digest
	// SwapEntry logs another artifact, signed by the same key, and attaches that entry.
	SwapEntry bool
	// StatementType replaces the in-toto statement's _type, and PayloadType that
	// of the envelope.
	StatementType, PayloadType string
	// CoSigner names a key that signs the same statement, too.
	CoSigner string
	// RawPayload replaces the signed payload.
	RawPayload []byte
	// Change is the last to see a bundle, and ChangeLayer the annotations of a
	// layer of the legacy layout, before it is pushed.
	Change      func(*protobundle.Bundle)
	ChangeLayer func(annotations map[string]string)
}

func (o SignOptions) lifetime() time.Duration {
	switch {
	case o.Lifetime != 0:
		return o.Lifetime
	case o.Company != nil:
		return 365 * 24 * time.Hour
	default:
		return 10 * time.Minute
	}
}

func (o SignOptions) payloadType() string {
	if o.PayloadType != "" {
		return o.PayloadType
	}
	return intotoType
}

// Sign signs the image at ref, "name@sha256:…", and pushes the signature.
func (a *Authority) Sign(ctx context.Context, ref string, o SignOptions) error {
	target, err := name.NewDigest(ref)
	if err != nil {
		return err
	}
	if o.Layout == Referrers {
		return a.attest(ctx, target, signPredicate, map[string]any{}, o)
	}
	payload := o.RawPayload
	if payload == nil {
		payload, err = json.Marshal(map[string]any{
			"critical": map[string]any{
				"identity": map[string]any{"docker-reference": target.Context().Name()},
				"image":    map[string]any{"docker-manifest-digest": o.claim(digest.Digest(target.DigestStr()))},
				"type":     "cosign container image signature",
			},
			"optional": nil,
		})
		if err != nil {
			return err
		}
	}
	s, err := a.signer(o)
	if err != nil {
		return err
	}
	sig, err := s.sign(payload)
	if err != nil {
		return err
	}
	l := layer{payload: payload, sig: sig, mt: "application/vnd.dev.cosign.simplesigning.v1+json", suffix: ".sig"}
	l.annotations = map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(sig)}
	entry := signed{kind: hashedrekord.KIND, artifact: payload, sig: sig, by: s, at: s.logged}
	if o.SwapEntry {
		entry.artifact = []byte("another artifact")
		if entry.sig, err = s.sign(entry.artifact); err != nil {
			return err
		}
	}
	return a.pushLegacy(ctx, target, l, entry, o)
}

// Attest signs a statement about the image at ref and pushes it.
func (a *Authority) Attest(ctx context.Context, ref, predicateType string, predicate any, o SignOptions) error {
	target, err := name.NewDigest(ref)
	if err != nil {
		return err
	}
	return a.attest(ctx, target, predicateType, predicate, o)
}

func (a *Authority) attest(ctx context.Context, target name.Digest, predicateType string, predicate any, o SignOptions) error {
	if o.Layout == Referrers {
		b, err := a.Bundle(ctx, target.Context().Name(), digest.Digest(target.DigestStr()), predicateType, predicate, o)
		if err != nil {
			return err
		}
		return PushBundle(ctx, target.String(), b, predicateType, o.Registry)
	}
	e, err := a.envelope(target.Context().Name(), digest.Digest(target.DigestStr()), predicateType, predicate, o)
	if err != nil {
		return err
	}
	entry, err := e.entry(o)
	if err != nil {
		return err
	}
	annotations := map[string]string{"predicateType": predicateType, signatureAnnotation: ""}
	l := layer{payload: e.json, sig: e.json, mt: "application/vnd.dsse.envelope.v1+json", suffix: ".att", annotations: annotations}
	return a.pushLegacy(ctx, target, l, entry, o)
}

// envelope is a signed statement.
type envelope struct {
	typ                string
	payload, sig, json []byte
	by                 signer
}

func (a *Authority) envelope(name string, d digest.Digest, predicateType string, predicate any, o SignOptions) (e envelope, err error) {
	e.typ = o.payloadType()
	if e.payload, err = statement(name, d, predicateType, predicate, o); err != nil {
		return e, err
	}
	if e.by, err = a.signer(o); err != nil {
		return e, err
	}
	if e.sig, err = e.by.sign(dsse.PAE(e.typ, e.payload)); err != nil {
		return e, err
	}
	sigs := [][]byte{e.sig}
	if o.CoSigner != "" {
		other, err := a.signer(SignOptions{Key: o.CoSigner})
		if err != nil {
			return e, err
		}
		one, err := other.sign(dsse.PAE(e.typ, e.payload))
		if err != nil {
			return e, err
		}
		sigs = append(sigs, one)
	}
	e.json, err = marshalEnvelope(e.typ, e.payload, sigs...)
	return e, err
}

// entry is what a log is given of e.
func (e envelope) entry(o SignOptions) (signed, error) {
	out := signed{kind: rekordsse.KIND, artifact: e.json, sig: e.sig, by: e.by, at: e.by.logged}
	if !o.SwapEntry {
		return out, nil
	}
	other := []byte(`{"_type":"https://in-toto.io/Statement/v1"}`)
	var err error
	if out.sig, err = e.by.sign(dsse.PAE(intotoType, other)); err != nil {
		return out, err
	}
	out.artifact, err = marshalEnvelope(intotoType, other, out.sig)
	return out, err
}

// Bundle returns a statement about what has the name and the digest, signed, as a
// Sigstore bundle v0.3.
func (a *Authority) Bundle(ctx context.Context, name string, d digest.Digest, predicateType string, predicate any, o SignOptions) (*protobundle.Bundle, error) {
	e, err := a.envelope(name, d, predicateType, predicate, o)
	if err != nil {
		return nil, err
	}
	material := e.by.material()
	if material.TlogEntries, err = a.entries(ctx, e, o); err != nil {
		return nil, err
	}
	for _, s := range o.Stamps {
		response, err := a.stamper(s, o).stamp(e.sig, s)
		if err != nil {
			return nil, err
		}
		if material.TimestampVerificationData == nil {
			material.TimestampVerificationData = &protobundle.TimestampVerificationData{}
		}
		material.TimestampVerificationData.Rfc3161Timestamps = append(
			material.TimestampVerificationData.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: response})
	}
	b := &protobundle.Bundle{
		MediaType: bundleType, VerificationMaterial: material,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			PayloadType: e.typ, Payload: e.payload, Signatures: []*protodsse.Signature{{Sig: e.sig}},
		}},
	}
	if o.Change != nil {
		o.Change(b)
	}
	return b, nil
}

// entries are those of all logs of o.
func (a *Authority) entries(ctx context.Context, e envelope, o SignOptions) (out []*protorekor.TransparencyLogEntry, err error) {
	if o.NoTlog {
		return nil, nil
	}
	logged, err := e.entry(o)
	if err != nil {
		return nil, err
	}
	for _, name := range o.logs() {
		one, err := a.logs[name].record(ctx, logged)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	for _, name := range o.Tiles {
		message := dsse.PAE(e.typ, e.payload)
		if o.SwapEntry {
			message = []byte("another artifact")
		}
		one, err := a.logs[name].recordTiles(ctx, message, e.sig, e.by)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func (o SignOptions) logs() []string {
	if len(o.Logs)+len(o.Tiles) == 0 {
		return []string{Main}
	}
	return o.Logs
}

func (a *Authority) stamper(s Stamp, o SignOptions) *stamper {
	if s.By == "" && o.Company != nil {
		return o.Company.stamper
	}
	if s.By == "" {
		s.By = Main
	}
	return a.stampers[s.By]
}

func statement(name string, d digest.Digest, predicateType string, predicate any, o SignOptions) ([]byte, error) {
	if o.RawPayload != nil {
		return o.RawPayload, nil
	}
	typ := o.StatementType
	if typ == "" && o.Layout == Legacy {
		typ = statementV01 // as cosign v2 does
	} else if typ == "" {
		typ = statementV1
	}
	return json.Marshal(map[string]any{
		"_type": typ, "predicateType": predicateType, "predicate": predicate,
		"subject": []any{map[string]any{"name": name, "digest": map[string]string{"sha256": o.claim(d).Encoded()}}},
	})
}

func marshalEnvelope(typ string, payload []byte, sigs ...[]byte) ([]byte, error) {
	e := dsse.Envelope{PayloadType: typ, Payload: base64.StdEncoding.EncodeToString(payload)}
	for _, sig := range sigs {
		e.Signatures = append(e.Signatures, dsse.Signature{Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	return json.Marshal(e)
}

func (o SignOptions) claim(d digest.Digest) digest.Digest {
	if o.Claim != "" {
		return o.Claim
	}
	return d
}

// signer is a key, and a certificate for it when it is keyless.
type signer struct {
	key    crypto.Signer
	hash   crypto.Hash
	cert   *x509.Certificate
	pem    []byte // what the log shows: the certificate or the public key
	logged time.Time
}

func (s signer) sign(b []byte) ([]byte, error) {
	with, err := signature.LoadSigner(s.key, s.hash)
	if err != nil {
		return nil, err
	}
	return with.SignMessage(bytes.NewReader(b))
}

// material is what a bundle says of s.
func (s signer) material() *protobundle.VerificationMaterial {
	if s.cert != nil {
		return &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_Certificate{
			Certificate: &protocommon.X509Certificate{RawBytes: s.cert.Raw},
		}}
	}
	sum := sha256.Sum256(s.pem)
	return &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_PublicKey{
		PublicKey: &protocommon.PublicKeyIdentifier{Hint: base64.StdEncoding.EncodeToString(sum[:])},
	}}
}

// hashOf is the digest that belongs to a key.
func hashOf(key crypto.Signer) crypto.Hash {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		switch ec.Curve {
		case elliptic.P384():
			return crypto.SHA384
		case elliptic.P521():
			return crypto.SHA512
		}
	}
	return crypto.SHA256
}

func (a *Authority) signer(o SignOptions) (s signer, err error) {
	s.logged = o.LoggedAt
	if s.logged.IsZero() {
		s.logged = time.Now()
	}
	if (o.Key == "") == (o.Identity == "") {
		return s, errors.New("verifytest: set either Key or Identity")
	}
	if named := cmp.Or(o.Key, o.With); named != "" {
		s.key, err = a.key(named)
	} else {
		s.key, err = newKey()
	}
	if err != nil {
		return s, err
	}
	if s.hash = o.Hash; s.hash == 0 {
		s.hash = hashOf(s.key)
	}
	if o.Key != "" {
		s.pem, err = cryptoutils.MarshalPublicKeyToPEM(s.key.Public())
		return s, err
	}
	if s.cert, err = a.certificate(o, s.key.Public()); err != nil {
		return s, err
	}
	s.pem = certPEM(s.cert)
	return s, nil
}

// PushBundle pushes a bundle as a referrer of the image at ref.
func PushBundle(ctx context.Context, ref string, b *protobundle.Bundle, predicateType string, r Registry) error {
	target, err := name.NewDigest(ref)
	if err != nil {
		return err
	}
	raw, err := protojson.Marshal(b)
	if err != nil {
		return err
	}
	return ociremote.WriteAttestationNewBundleFormat(target, raw, predicateType, ociremote.WithRemoteOptions(r.options(ctx)...))
}

// The annotations of the legacy layout.
// https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
const (
	signatureAnnotation   = "dev.cosignproject.cosign/signature"
	entryAnnotation       = "dev.sigstore.cosign/bundle"
	stampAnnotation       = "dev.sigstore.cosign/rfc3161timestamp"
	certificateAnnotation = "dev.sigstore.cosign/certificate"
	chainAnnotation       = "dev.sigstore.cosign/chain"
)

// layer is one of the legacy layout.
type layer struct {
	payload     []byte
	sig         []byte // what a timestamp is over
	mt          types.MediaType
	suffix      string
	annotations map[string]string
}

// pushLegacy adds a layer to the image behind the tag sha256-<hex><suffix>.
func (a *Authority) pushLegacy(ctx context.Context, target name.Digest, l layer, entry signed, o SignOptions) error {
	if err := a.annotate(ctx, l, entry, o); err != nil {
		return err
	}
	h, err := v1.NewHash(target.DigestStr())
	if err != nil {
		return err
	}
	tag := target.Context().Tag(h.Algorithm + "-" + h.Hex + l.suffix)
	var base v1.Image
	if base, err = remote.Image(tag, o.options(ctx)...); err != nil {
		base = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	img, err := mutate.Append(base, mutate.Addendum{Layer: static.NewLayer(l.payload, l.mt), Annotations: l.annotations})
	if err != nil {
		return fmt.Errorf("legacy layout: %w", err)
	}
	return remote.Write(tag, img, o.options(ctx)...)
}

// annotate adds the certificate, the log entry and the timestamp.
func (a *Authority) annotate(ctx context.Context, l layer, entry signed, o SignOptions) error {
	if !o.NoTlog {
		e, err := a.logs[o.logs()[0]].record(ctx, entry)
		if err != nil {
			return err
		}
		if l.annotations[entryAnnotation], err = annotation(e); err != nil {
			return err
		}
	}
	for _, s := range o.Stamps {
		response, err := a.stamper(s, o).stamp(l.sig, s)
		if err != nil {
			return err
		}
		b, err := json.Marshal(map[string][]byte{"SignedRFC3161Timestamp": response})
		if err != nil {
			return err
		}
		l.annotations[stampAnnotation] = string(b)
	}
	if entry.by.cert != nil {
		ca := a.ca
		if o.Company != nil {
			ca = o.Company.ca
		}
		l.annotations[certificateAnnotation] = string(certPEM(entry.by.cert))
		l.annotations[chainAnnotation] = string(certPEM(ca.intermediate, ca.root))
	}
	if o.ChangeLayer != nil {
		o.ChangeLayer(l.annotations)
	}
	return nil
}

// SPDX returns a minimal valid SPDX 2.3 document with one package called name.
func SPDX(name string) any {
	return map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name,
		"documentNamespace": "https://holdfast.test/spdx/" + name,
		"creationInfo":      map[string]any{"created": "2026-01-01T00:00:00Z", "creators": []string{"Tool: verifytest-1"}},
		"packages": []any{map[string]any{
			"name": name, "SPDXID": "SPDXRef-Package-1", "versionInfo": "1.0.0", "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
		}},
		"relationships": []any{map[string]any{
			"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-Package-1",
		}},
	}
}

// CycloneDX returns a minimal valid CycloneDX 1.5 document with one component called name.
func CycloneDX(name string) any {
	return map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata":   map[string]any{"tools": map[string]any{"components": []any{map[string]any{"type": "application", "name": "verifytest", "version": "1"}}}},
		"components": []any{map[string]any{"type": "library", "name": name, "version": "1.0.0"}},
	}
}

// platformsOf returns the pinned names of the images in an index.
func platformsOf(ctx context.Context, ref string, r Registry) ([]string, error) {
	d, err := name.NewDigest(ref)
	if err != nil {
		return nil, err
	}
	idx, err := remote.Index(d, r.options(ctx)...)
	if err != nil {
		return nil, err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range m.Manifests {
		out = append(out, d.Context().Digest(c.Digest.String()).String())
	}
	return out, nil
}
