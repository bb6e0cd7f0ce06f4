package intoto

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// MediaTypeSARIF is the media type of SARIF documents.
// https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
const MediaTypeSARIF = "application/sarif+json"

// The predicate types that more than one kind of requirement reads.
const (
	PredicateSCAI = "https://in-toto.io/attestation/scai/v0.3"
)

// Descriptor is a ResourceDescriptor: what a predicate refers to.
// https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md
type Descriptor struct {
	Name             string            `json:"name"`
	URI              string            `json:"uri"`
	Digest           map[string]string `json:"digest"`
	Content          string            `json:"content"` // base64
	DownloadLocation string            `json:"downloadLocation"`
	MediaType        string            `json:"mediaType"`
}

// Check requires what the specification does: one of uri, digest and content.
func (d Descriptor) Check() error {
	if d.URI == "" && len(d.Digest) == 0 && d.Content == "" {
		return fmt.Errorf("the resource %q has neither uri nor digest nor content", Short(d.Name))
	}
	return nil
}

// SHA256 returns the digest by SHA-256, or "" if there is no well-formed one.
func (d Descriptor) SHA256() digest.Digest {
	sum := digest.NewDigestFromEncoded(digest.SHA256, d.Digest["sha256"])
	if sum.Validate() != nil {
		return ""
	}
	return sum
}

// Where returns the place that it names, the more useful one first.
func (d Descriptor) Where() string {
	for _, s := range []string{d.DownloadLocation, d.URI, d.Name} {
		if s != "" {
			return Short(s)
		}
	}
	return ""
}

// Is requires a document of the media type that is fixed by its digest.
func (d Descriptor) Is(mediaType string) error {
	switch {
	case d.MediaType != mediaType:
		return fmt.Errorf("%q has media type %q, expected %q", d.Where(), Short(d.MediaType), mediaType)
	case d.SHA256() == "":
		return fmt.Errorf("%q is not fixed by a SHA-256 digest", d.Where())
	}
	return nil
}

// Assertion is one attribute of a SCAI attribute report.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/scai.md
type Assertion struct {
	Attribute  string         `json:"attribute"`
	Target     *Descriptor    `json:"target"`
	Conditions map[string]any `json:"conditions"`
	Evidence   *Descriptor    `json:"evidence"`
}

// Report is a SCAI attribute report.
type Report struct {
	Attributes []Assertion `json:"attributes"`
	Producer   *Descriptor `json:"producer"`
}

// MaxAttributes bounds a report.
const MaxAttributes = 1024

// DecodeReport reads a SCAI attribute report. It refuses one without an
// attribute, and an attribute without a name.
func DecodeReport(b []byte) (Report, error) {
	var r Report
	if err := Decode(b, &r); err != nil {
		return r, err
	}
	if len(r.Attributes) == 0 || len(r.Attributes) > MaxAttributes {
		return r, fmt.Errorf("it asserts %d attributes, expected 1 to %d", len(r.Attributes), MaxAttributes)
	}
	for _, a := range r.Attributes {
		if a.Attribute == "" {
			return r, fmt.Errorf("an attribute has no name")
		}
	}
	return r, nil
}

// Holds requires that the attribute is the artifact's own, whatever else is the
// case, and that it has evidence of the media type; an empty one asks for none.
func (a Assertion) Holds(artifact digest.Digest, evidence string) error {
	switch {
	case a.Target != nil && a.Target.SHA256() != artifact:
		return fmt.Errorf("attribute %q is about %q, not about this artifact", Short(a.Attribute), a.Target.Where())
	case len(a.Conditions) > 0:
		return fmt.Errorf("attribute %q holds only under conditions", Short(a.Attribute))
	case evidence == "":
		return nil
	case a.Evidence == nil:
		return fmt.Errorf("attribute %q has no evidence, expected %q", Short(a.Attribute), evidence)
	}
	if err := a.Evidence.Is(evidence); err != nil {
		return fmt.Errorf("the evidence of attribute %q: %w", Short(a.Attribute), err)
	}
	return nil
}
