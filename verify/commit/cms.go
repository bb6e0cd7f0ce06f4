package commit

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // digests of signers with keys on larger curves
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"google.golang.org/protobuf/proto"
)

// pemCMS is the armor that git asks programs for X.509 signatures for.
const pemCMS = "SIGNED MESSAGE"

// Bounds of one CMS signature.
const (
	maxCertificates = 16
	maxAttributes   = 16
	maxTimestamps   = 8
)

// The object identifiers of RFC 5652 and RFC 3161, and the attribute in which
// gitsign keeps the entry of the transparency log.
// https://github.com/sigstore/gitsign/blob/main/internal/rekor/oid/oid.go
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidTimestamp     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 14}
	oidLogEntry      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 3, 1}
)

var digestAlgorithms = map[string]crypto.Hash{
	"2.16.840.1.101.3.4.2.1": crypto.SHA256,
	"2.16.840.1.101.3.4.2.2": crypto.SHA384,
	"2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

// cms is a CMS signature (RFC 5652) by one signer over bytes that it does not
// carry itself.
type cms struct {
	attributes  []byte // the signed attributes in DER: what the signature is over
	hash        crypto.Hash
	digest      []byte // of the signed bytes, as the attributes have it
	signature   []byte
	certificate *x509.Certificate
	entry       []byte   // of a transparency log, in protobuf; nil if there is none
	timestamps  [][]byte // RFC 3161 tokens
}

// parseCMS parses one armored signature and nothing around it. It accepts DER
// alone, one signer, and the one certificate that the signer names: what else a
// signature carries decides nothing (CVE-2026-39984).
func parseCMS(armored string) (*cms, error) {
	block, rest := pem.Decode([]byte(armored))
	if block == nil || block.Type != pemCMS || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one armored signature")
	}
	outer := cryptobyte.String(block.Bytes)
	var info, content cryptobyte.String
	var kind asn1.ObjectIdentifier
	if !outer.ReadASN1(&info, cbasn1.SEQUENCE) || !outer.Empty() || !info.ReadASN1ObjectIdentifier(&kind) ||
		!info.ReadASN1(&content, explicit(0)) || !info.Empty() {
		return nil, errors.New("it is not in DER")
	}
	if !kind.Equal(oidSignedData) {
		return nil, fmt.Errorf("it is of type %s", kind)
	}
	var data cryptobyte.String
	if !content.ReadASN1(&data, cbasn1.SEQUENCE) || !content.Empty() {
		return nil, errors.New("it is not in DER")
	}
	return parseSignedData(data)
}

func explicit(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

var errSignedData = errors.New("the signed data does not parse")

// parseSignedData reads a SignedData, RFC 5652, section 5.1.
func parseSignedData(data cryptobyte.String) (*cms, error) {
	var version int
	var algorithms, encapsulated, certificates, revocations, infos cryptobyte.String
	var eContentType asn1.ObjectIdentifier
	var hasCertificates, hasRevocations bool
	if !data.ReadASN1Integer(&version) || !data.ReadASN1(&algorithms, cbasn1.SET) ||
		!data.ReadASN1(&encapsulated, cbasn1.SEQUENCE) || !encapsulated.ReadASN1ObjectIdentifier(&eContentType) ||
		!data.ReadOptionalASN1(&certificates, &hasCertificates, explicit(0)) ||
		!data.ReadOptionalASN1(&revocations, &hasRevocations, explicit(1)) ||
		!data.ReadASN1(&infos, cbasn1.SET) || !data.Empty() {
		return nil, errSignedData
	}
	switch {
	case !eContentType.Equal(oidData):
		return nil, fmt.Errorf("it signs content of type %s", eContentType)
	case !encapsulated.Empty():
		return nil, errors.New("it carries content of its own, which is not the commit")
	}
	var info cryptobyte.String
	if !infos.ReadASN1(&info, cbasn1.SEQUENCE) {
		return nil, errors.New("it has no signer")
	}
	if !infos.Empty() { // of several, different readers would choose different ones
		return nil, errors.New("it has more than one signer")
	}
	certs, err := parseCertificates(certificates)
	if err != nil {
		return nil, err
	}
	return parseSignerInfo(info, certs)
}

func parseCertificates(set cryptobyte.String) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for !set.Empty() {
		var raw cryptobyte.String
		if len(out) == maxCertificates {
			return nil, fmt.Errorf("it has more than %d certificates", maxCertificates)
		}
		if !set.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return nil, errors.New("a certificate is of a form that is not read")
		}
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, errors.New("a certificate does not parse")
		}
		out = append(out, c)
	}
	return out, nil
}

// parseSignerInfo reads a SignerInfo, RFC 5652, section 5.3.
func parseSignerInfo(info cryptobyte.String, certs []*x509.Certificate) (*cms, error) {
	malformed := errors.New("the signer does not parse")
	c := new(cms)
	var version int
	var sid, digestAlgorithm, signatureAlgorithm, signed, unsigned cryptobyte.String
	var sidTag cbasn1.Tag
	var hash asn1.ObjectIdentifier
	var hasUnsigned bool
	if !info.ReadASN1Integer(&version) || !info.ReadAnyASN1Element(&sid, &sidTag) ||
		!info.ReadASN1(&digestAlgorithm, cbasn1.SEQUENCE) || !digestAlgorithm.ReadASN1ObjectIdentifier(&hash) {
		return nil, malformed
	}
	// Without signed attributes the signature would be over the commit itself, and
	// a text that looks like attributes could be passed off as signed ones.
	if !info.PeekASN1Tag(explicit(0)) {
		return nil, errors.New("it has no signed attributes")
	}
	if !info.ReadASN1Element(&signed, explicit(0)) || !info.ReadASN1(&signatureAlgorithm, cbasn1.SEQUENCE) ||
		!info.ReadASN1Bytes(&c.signature, cbasn1.OCTET_STRING) ||
		!info.ReadOptionalASN1(&unsigned, &hasUnsigned, explicit(1)) || !info.Empty() {
		return nil, malformed
	}
	var ok bool
	if c.hash, ok = digestAlgorithms[hash.String()]; !ok {
		return nil, fmt.Errorf("the digest algorithm %s is not accepted", hash)
	}
	var err error
	if c.certificate, err = certificateOf(sid, sidTag, certs); err != nil {
		return nil, err
	}
	// RFC 5652, section 5.4: the signature is over the DER encoding of the
	// attributes with the tag SET OF in the place of [0].
	c.attributes = bytes.Clone(signed)
	c.attributes[0] = byte(cbasn1.SET)
	if err := c.readSigned(cryptobyte.String(c.attributes)); err != nil {
		return nil, err
	}
	return c, c.readUnsigned(unsigned)
}

// certificateOf returns the one certificate that a SignerIdentifier names.
func certificateOf(sid cryptobyte.String, tag cbasn1.Tag, certs []*x509.Certificate) (*x509.Certificate, error) {
	var named func(*x509.Certificate) bool
	switch tag {
	case cbasn1.SEQUENCE:
		var body, issuer cryptobyte.String
		serial := new(big.Int)
		if !sid.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || !body.ReadASN1Integer(serial) || !body.Empty() {
			return nil, errors.New("the signer's certificate is not named")
		}
		named = func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawIssuer, issuer) && c.SerialNumber.Cmp(serial) == 0
		}
	case cbasn1.Tag(0).ContextSpecific():
		var id cryptobyte.String
		if !sid.ReadASN1(&id, tag) || len(id) == 0 {
			return nil, errors.New("the signer's certificate is not named")
		}
		named = func(c *x509.Certificate) bool { return bytes.Equal(c.SubjectKeyId, id) }
	default:
		return nil, errors.New("the signer's certificate is not named")
	}
	var out *x509.Certificate
	for _, c := range certs {
		if !named(c) {
			continue
		}
		if out != nil {
			return nil, errors.New("two certificates fit the signer")
		}
		out = c
	}
	if out == nil {
		return nil, errors.New("the signer's certificate is not in it")
	}
	return out, nil
}

// attributes reads a SET OF Attribute: each type at most once.
func attributes(set cryptobyte.String, read func(kind asn1.ObjectIdentifier, values cryptobyte.String) error) error {
	seen := map[string]bool{}
	for !set.Empty() {
		var attr, values cryptobyte.String
		var kind asn1.ObjectIdentifier
		if !set.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&kind) || !attr.ReadASN1(&values, cbasn1.SET) || !attr.Empty() {
			return errors.New("an attribute does not parse")
		}
		if seen[kind.String()] || len(seen) == maxAttributes {
			return errors.New("an attribute is repeated, or there are too many")
		}
		seen[kind.String()] = true
		if err := read(kind, values); err != nil {
			return err
		}
	}
	return nil
}

// readSigned takes the digest out of the signed attributes, RFC 5652, section 11.
func (c *cms) readSigned(set cryptobyte.String) error {
	var body cryptobyte.String
	var contentType asn1.ObjectIdentifier
	if !set.ReadASN1(&body, cbasn1.SET) {
		return errors.New("the signed attributes do not parse")
	}
	err := attributes(body, func(kind asn1.ObjectIdentifier, values cryptobyte.String) error {
		switch {
		case kind.Equal(oidContentType):
			if !values.ReadASN1ObjectIdentifier(&contentType) || !values.Empty() {
				return errors.New("the content type does not parse")
			}
		case kind.Equal(oidMessageDigest):
			if !values.ReadASN1Bytes(&c.digest, cbasn1.OCTET_STRING) || !values.Empty() {
				return errors.New("the digest does not parse")
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !contentType.Equal(oidData):
		return errors.New("the signed attributes are not about data")
	case len(c.digest) != c.hash.Size():
		return errors.New("the signed attributes have no digest of the algorithm that is named")
	}
	return nil
}

// readUnsigned takes out what proves the time: the entry of a log, and timestamps.
func (c *cms) readUnsigned(set cryptobyte.String) error {
	return attributes(set, func(kind asn1.ObjectIdentifier, values cryptobyte.String) error {
		switch {
		case kind.Equal(oidLogEntry):
			if !values.ReadASN1Bytes(&c.entry, cbasn1.OCTET_STRING) || !values.Empty() {
				return errors.New("the log entry does not parse")
			}
		case kind.Equal(oidTimestamp):
			for !values.Empty() {
				var token cryptobyte.String
				if len(c.timestamps) == maxTimestamps || !values.ReadASN1Element(&token, cbasn1.SEQUENCE) {
					return errors.New("the timestamps do not parse, or there are too many")
				}
				c.timestamps = append(c.timestamps, token)
			}
		}
		return nil
	})
}

// fits reports whether c says that it is over payload.
func (c *cms) fits(payload []byte) bool {
	h := c.hash.New()
	h.Write(payload)
	return bytes.Equal(h.Sum(nil), c.digest)
}

// bundle returns c as a Sigstore bundle over c.attributes, so that the one
// verifier of bundles judges it.
func (c *cms) bundle() (*sgbundle.Bundle, error) {
	sum := sha256.Sum256(c.attributes)
	material := &protobundle.VerificationMaterial{
		Content: &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: c.certificate.Raw}},
	}
	if c.entry != nil {
		entry, err := c.logEntry()
		if err != nil {
			return nil, fmt.Errorf("the log entry: %w", err)
		}
		material.TlogEntries = []*rekorpb.TransparencyLogEntry{entry}
	}
	if len(c.timestamps) > 0 {
		material.TimestampVerificationData = new(protobundle.TimestampVerificationData)
		for _, token := range c.timestamps {
			response, err := timestampResponse(token)
			if err != nil {
				return nil, fmt.Errorf("a timestamp: %w", err)
			}
			material.TimestampVerificationData.Rfc3161Timestamps = append(material.TimestampVerificationData.Rfc3161Timestamps,
				&protocommon.RFC3161SignedTimestamp{SignedTimestamp: response})
		}
	}
	return sgbundle.NewBundle(&protobundle.Bundle{
		MediaType:            "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: material,
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     c.signature,
		}},
	})
}

// timestampResponse puts a TimeStampToken into the TimeStampResp that bundles
// carry, with the status "granted" (RFC 3161, section 2.4.2).
func timestampResponse(token []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(0) })
		b.AddBytes(token)
	})
	return b.Bytes()
}

// logEntry returns the log entry with its body. gitsign leaves the body out,
// since it follows from the signature; making it here also binds the entry to
// this signature and no other (CVE-2024-51746).
func (c *cms) logEntry() (*rekorpb.TransparencyLogEntry, error) {
	entry := new(rekorpb.TransparencyLogEntry)
	if err := proto.Unmarshal(c.entry, entry); err != nil {
		return nil, errors.New("it does not parse")
	}
	if k := entry.GetKindVersion(); k.GetKind() != "hashedrekord" || k.GetVersion() != "0.0.1" {
		return nil, fmt.Errorf("it is of kind %q, version %q", clip(k.GetKind()), clip(k.GetVersion()))
	}
	body, err := hashedRekord(c.attributes, c.signature, c.certificate)
	entry.CanonicalizedBody = body
	return entry, err
}

// hashedRekord returns the body of Rekor's entry for a signature over message
// with the key of a certificate: hashedrekord 0.0.1 as canonical JSON (RFC 8785).
func hashedRekord(message, signature []byte, cert *x509.Certificate) ([]byte, error) {
	type object = map[string]any // encoding/json sorts the keys; the values need no escapes
	sum := sha256.Sum256(message)
	return json.Marshal(object{
		"apiVersion": "0.0.1",
		"kind":       "hashedrekord",
		"spec": object{
			"data": object{"hash": object{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
			"signature": object{
				"content":   signature,
				"publicKey": object{"content": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})},
			},
		},
	})
}
