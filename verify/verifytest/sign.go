package verifytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
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
	"google.golang.org/protobuf/encoding/protojson"
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
	// Identity (an e-mail address or a URI) and its OIDC Issuer.
	Identity, Issuer string
	NoTlog           bool // with Key: no log entry

	// Claim replaces the digest that the signature is about, while it is still
	// put beside the image: a signature that was copied.
	Claim digest.Digest
	// LoggedAt is when the log says it saw the signature; zero is now. The
	// certificate is valid for ten minutes from now on.
	LoggedAt time.Time
	// SwapEntry logs another artifact, signed by the same key, and attaches that entry.
	SwapEntry bool
	// StatementType replaces the in-toto statement's _type.
	StatementType string
	// RawPayload replaces the signed payload.
	RawPayload []byte
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
				"image":    map[string]any{"docker-manifest-digest": o.claim(target)},
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
	annotations := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
	if !o.NoTlog {
		logged, loggedSig := payload, sig
		if o.SwapEntry {
			logged = []byte("another artifact")
			if loggedSig, err = s.sign(logged); err != nil {
				return err
			}
		}
		e, err := a.record(ctx, hashedrekord.KIND, logged, loggedSig, s.pem, s.logged)
		if err != nil {
			return err
		}
		if err := e.annotate(annotations); err != nil {
			return err
		}
	}
	return a.pushLegacy(ctx, target, ".sig", payload, "application/vnd.dev.cosign.simplesigning.v1+json", annotations, s, o)
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
	payload, err := statement(target, predicateType, predicate, o)
	if err != nil {
		return err
	}
	s, err := a.signer(o)
	if err != nil {
		return err
	}
	sig, err := s.sign(dsse.PAE(intotoType, payload))
	if err != nil {
		return err
	}
	envelope, err := marshalEnvelope(payload, sig)
	if err != nil {
		return err
	}
	var e *logEntry
	if !o.NoTlog {
		logged, loggedSig := envelope, sig
		if o.SwapEntry {
			other := []byte(`{"_type":"https://in-toto.io/Statement/v1"}`)
			if loggedSig, err = s.sign(dsse.PAE(intotoType, other)); err != nil {
				return err
			}
			if logged, err = marshalEnvelope(other, loggedSig); err != nil {
				return err
			}
		}
		if e, err = a.record(ctx, rekordsse.KIND, logged, loggedSig, s.pem, s.logged); err != nil {
			return err
		}
	}
	if o.Layout == Referrers {
		return pushBundle(ctx, target, predicateType, payload, sig, s, e, o)
	}
	annotations := map[string]string{"predicateType": predicateType, "dev.cosignproject.cosign/signature": ""}
	if e != nil {
		if err := e.annotate(annotations); err != nil {
			return err
		}
	}
	return a.pushLegacy(ctx, target, ".att", envelope, "application/vnd.dsse.envelope.v1+json", annotations, s, o)
}

func statement(target name.Digest, predicateType string, predicate any, o SignOptions) ([]byte, error) {
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
		"subject": []any{map[string]any{
			"name":   target.Context().Name(),
			"digest": map[string]string{"sha256": digest.Digest(o.claim(target)).Encoded()},
		}},
	})
}

func marshalEnvelope(payload, sig []byte) ([]byte, error) {
	return json.Marshal(dsse.Envelope{
		PayloadType: intotoType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(sig)}},
	})
}

func (o SignOptions) claim(target name.Digest) string {
	if o.Claim != "" {
		return o.Claim.String()
	}
	return target.DigestStr()
}

// signer is a key, and a certificate for it when it is keyless.
type signer struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	pem    []byte // what the log shows: the certificate or the public key
	logged time.Time
}

func (s signer) sign(b []byte) ([]byte, error) {
	sum := sha256.Sum256(b)
	return ecdsa.SignASN1(rand.Reader, s.key, sum[:])
}

func (a *Authority) signer(o SignOptions) (s signer, err error) {
	s.logged = o.LoggedAt
	if s.logged.IsZero() {
		s.logged = time.Now()
	}
	switch {
	case o.Key != "" && o.Identity != "", o.Key == "" && o.Identity == "":
		return s, errors.New("verifytest: set either Key or Identity")
	case o.Key != "":
		if s.key, err = a.key(o.Key); err != nil {
			return s, err
		}
		s.pem, err = cryptoutils.MarshalPublicKeyToPEM(s.key.Public())
		return s, err
	}
	if s.key, err = newKey(); err != nil {
		return s, err
	}
	// A minute back: log times are whole seconds.
	s.cert, err = a.certify(o.Identity, o.Issuer, time.Now().Add(-time.Minute), s.key)
	if err != nil {
		return s, err
	}
	s.pem = certPEM(s.cert)
	return s, nil
}

// annotate adds what cosign stores of a log entry in the legacy layout.
func (e *logEntry) annotate(annotations map[string]string) error {
	b, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": e.set,
		"Payload": map[string]any{
			"body": base64.StdEncoding.EncodeToString(e.body), "integratedTime": e.time.Unix(),
			"logIndex": e.index, "logID": hex.EncodeToString(e.id),
		},
	})
	annotations["dev.sigstore.cosign/bundle"] = string(b)
	return err
}

func (e *logEntry) proto() *protorekor.TransparencyLogEntry {
	return &protorekor.TransparencyLogEntry{
		LogIndex: e.index, LogId: &protocommon.LogId{KeyId: e.id},
		KindVersion:       &protorekor.KindVersion{Kind: e.kind, Version: e.version},
		IntegratedTime:    e.time.Unix(),
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: e.set},
		InclusionProof:    &protorekor.InclusionProof{RootHash: e.rootHash, TreeSize: 1, Checkpoint: &protorekor.Checkpoint{Envelope: e.checkpoint}},
		CanonicalizedBody: e.body,
	}
}

func pushBundle(ctx context.Context, target name.Digest, predicateType string, payload, sig []byte, s signer, e *logEntry, o SignOptions) error {
	material := &protobundle.VerificationMaterial{}
	if s.cert != nil {
		material.Content = &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: s.cert.Raw}}
	} else {
		sum := sha256.Sum256(s.pem)
		material.Content = &protobundle.VerificationMaterial_PublicKey{
			PublicKey: &protocommon.PublicKeyIdentifier{Hint: base64.StdEncoding.EncodeToString(sum[:])},
		}
	}
	if e != nil {
		material.TlogEntries = []*protorekor.TransparencyLogEntry{e.proto()}
	}
	b, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: bundleType, VerificationMaterial: material,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			PayloadType: intotoType, Payload: payload, Signatures: []*protodsse.Signature{{Sig: sig}},
		}},
	})
	if err != nil {
		return err
	}
	return ociremote.WriteAttestationNewBundleFormat(target, b, predicateType, ociremote.WithRemoteOptions(o.options(ctx)...))
}

// pushLegacy adds a layer to the image behind the tag sha256-<hex><suffix>.
func (a *Authority) pushLegacy(ctx context.Context, target name.Digest, suffix string, payload []byte, mt types.MediaType, annotations map[string]string, s signer, o SignOptions) error {
	if s.cert != nil {
		annotations["dev.sigstore.cosign/certificate"] = string(certPEM(s.cert))
		annotations["dev.sigstore.cosign/chain"] = string(certPEM(a.intermediate, a.root))
	}
	h, err := v1.NewHash(target.DigestStr())
	if err != nil {
		return err
	}
	tag := target.Context().Tag(h.Algorithm + "-" + h.Hex + suffix)
	var base v1.Image
	if base, err = remote.Image(tag, o.options(ctx)...); err != nil {
		base = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	img, err := mutate.Append(base, mutate.Addendum{Layer: static.NewLayer(payload, mt), Annotations: annotations})
	if err != nil {
		return fmt.Errorf("legacy layout: %w", err)
	}
	return remote.Write(tag, img, o.options(ctx)...)
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
