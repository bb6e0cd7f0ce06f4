package notation

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	gocose "github.com/veraison/go-cose"

	"github.com/holdfast-dev/holdfast/verify/strictjson"
)

// maxChain is how many certificates are looked at, root included: each costs some
// verifications of signatures that a stranger chose.
const maxChain = 8

const payloadType = "application/vnd.cncf.notary.payload.v1+json"

// pluginPrefix begins the signed attributes by which a signature asks for a
// plugin of notation that knows how to verify it.
const pluginPrefix = "io.cncf.notary.verificationPlugin"

// descriptor is what a signature is about.
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

func (d descriptor) String() string {
	return fmt.Sprintf("%s (%s, %d bytes)", d.Digest, d.MediaType, d.Size)
}

// signed is the content of an envelope: its signature is by the first certificate
// of its chain, each of which the next one issued. Whose they are is not known yet.
type signed struct {
	signature.SignerInfo
	about           descriptor
	subject, issuer pkix.RDNSequence // of the first certificate
}

// open returns the content of an envelope that is about what it should be, after
// every check that does not depend on who is trusted.
func open(mediaType string, envelope []byte, about descriptor) (*signed, error) {
	n, err := chainLength(mediaType, envelope)
	if err != nil {
		return nil, err
	}
	if n > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates: more than %d are not looked at", n, maxChain)
	}
	e, err := signature.ParseEnvelope(mediaType, envelope)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	content, err := e.Verify()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if err := checkPayload(content.Payload, about); err != nil {
		return nil, err
	}
	if err := checkAttributes(content.SignerInfo.SignedAttributes); err != nil {
		return nil, err
	}
	s := &signed{SignerInfo: content.SignerInfo, about: about}
	leaf := s.CertificateChain[0]
	if s.subject, err = distinguishedName(leaf.RawSubject); err != nil {
		return nil, fmt.Errorf("subject of the certificate: %w", err)
	}
	if s.issuer, err = distinguishedName(leaf.RawIssuer); err != nil {
		return nil, fmt.Errorf("issuer of the certificate: %w", err)
	}
	return s, nil
}

// chainLength returns how many certificates an envelope has, before any of them
// is parsed.
func chainLength(mediaType string, envelope []byte) (int, error) {
	switch mediaType {
	case jws.MediaTypeEnvelope:
		var e struct {
			Protected string `json:"protected"`
			Header    struct {
				Chain []json.RawMessage `json:"x5c"`
			} `json:"header"`
		}
		if err := strictjson.Unmarshal(envelope, &e); err != nil {
			return 0, fmt.Errorf("envelope: %w", err)
		}
		// "The Header Parameter names […] MUST be unique" (RFC 7515, section 4): three
		// decoders read them.
		protected, err := base64.RawURLEncoding.DecodeString(e.Protected)
		if err == nil {
			err = strictjson.Check(protected)
		}
		if err != nil {
			return 0, fmt.Errorf("envelope: protected header: %w", err)
		}
		return len(e.Header.Chain), nil
	case cose.MediaTypeEnvelope:
		var e gocose.Sign1Message
		if err := e.UnmarshalCBOR(envelope); err != nil {
			return 0, fmt.Errorf("envelope: %w", err)
		}
		chain, ok := e.Headers.Unprotected[gocose.HeaderLabelX5Chain].([]any)
		if !ok {
			return 0, errors.New("envelope: it has no certificate chain")
		}
		return len(chain), nil
	default:
		return 0, fmt.Errorf("an envelope of type %.80q is not read", mediaType)
	}
}

// checkPayload requires that what was signed is about.
// https://github.com/notaryproject/specifications/blob/v1.1.0/specs/signature-specification.md#payload
func checkPayload(p signature.Payload, about descriptor) error {
	if p.ContentType != payloadType {
		return fmt.Errorf("payload of type %.80q", p.ContentType)
	}
	var payload struct {
		Target descriptor `json:"targetArtifact"`
	}
	if err := strictjson.Unmarshal(p.Content, &payload); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if payload.Target != about {
		return fmt.Errorf("the signature is about %s, and not about %s", payload.Target, about)
	}
	return nil
}

// checkAttributes refuses what is signed and not understood here: "unknown
// critical attributes MUST cause signature verification to fail". A request for a
// plugin is one, marked or not.
func checkAttributes(a signature.SignedAttributes) error {
	if a.SigningScheme != signature.SigningSchemeX509 {
		return fmt.Errorf("signing scheme %.80q, in which a signing authority vouches for the time: only %s is read", a.SigningScheme, signature.SigningSchemeX509)
	}
	for _, x := range a.ExtendedAttributes {
		name := fmt.Sprint(x.Key)
		if strings.HasPrefix(name, pluginPrefix) {
			return fmt.Errorf("it asks for the notation plugin %.80q, and plugins are not run", fmt.Sprint(x.Value))
		}
		if x.Critical {
			return fmt.Errorf("unknown critical attribute %.80q", name)
		}
	}
	return nil
}

// distinguishedName parses a name that must not be empty.
func distinguishedName(der []byte) (pkix.RDNSequence, error) {
	var name pkix.RDNSequence
	rest, err := asn1.Unmarshal(der, &name)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0:
		return nil, errors.New("there is something behind it")
	case len(name) == 0:
		return nil, errors.New("it is empty")
	}
	return name, nil
}
