// Package sbom owns the judgement of a software bill of materials: that it is
// one, and says something. Whose it is, and about what, was verified before.
//
// It guarantees that a document which does not parse in the format its predicate
// type names is refused, and so is an empty one. It refuses to look inside
// predicates of other types.
package sbom

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

// The predicate types of SBOM attestations, which may have a version behind
// them: "https://spdx.dev/Document/v2.3", "https://cyclonedx.org/bom/v1.5".
// https://github.com/in-toto/attestation/tree/main/spec/predicates
const (
	PredicateSPDX      = "https://spdx.dev/Document"
	PredicateCycloneDX = "https://cyclonedx.org/bom"
)

// Judge judges SBOMs in some formats. It implements [verify.Judge].
type Judge struct{ formats []string }

// New returns the Judge of a requirement for an SBOM.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.SBOM == nil {
		return nil, verify.ErrNotApplicable
	}
	j := Judge{formats: q.SBOM.Formats}
	if len(j.formats) == 0 {
		j.formats = []string{verify.FormatSPDX, verify.FormatCycloneDX}
	}
	return j, nil
}

// Reads implements [verify.Judge].
func (j Judge) Reads(predicateType string) bool {
	format, _, ok := formatOf(predicateType)
	return ok && slices.Contains(j.formats, format)
}

// Judge implements [verify.Judge]. The facts are {format, version, components,
// tools}.
func (j Judge) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	format, version, _ := formatOf(st.PredicateType)
	doc, err := parse(format, st.Predicate)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the SBOM is not usable: %w", err)
	}
	if !strings.HasPrefix(doc.version, version) {
		return verify.Finding{}, fmt.Errorf("the SBOM is not usable: the document has version %s", doc.version)
	}
	return verify.Finding{
		Text:  fmt.Sprintf("%s %s, %d components", doc.format, doc.version, doc.components),
		Facts: map[string]any{"format": doc.format, "version": doc.version, "components": doc.components, "tools": doc.tools},
	}, nil
}

// spdxTypes are the SPDX predicate types that are known, with the beginning of
// the version that the document must then have. cosign writes the bare one.
var spdxTypes = map[string]string{
	PredicateSPDX:             "",
	PredicateSPDX + "/v2.3":   "2.3",
	PredicateSPDX + "/v3":     "3.",
	PredicateSPDX + "/v3.0":   "3.0",
	PredicateSPDX + "/v3.0.1": "3.0.1",
}

// formatOf maps a predicate type to a format and to the version, or its
// beginning, that the document must have.
func formatOf(predicateType string) (format, version string, ok bool) {
	if v, ok := spdxTypes[predicateType]; ok {
		return verify.FormatSPDX, v, true
	}
	if predicateType == PredicateCycloneDX {
		return verify.FormatCycloneDX, "", true
	}
	minor, ok := strings.CutPrefix(predicateType, PredicateCycloneDX+"/v1.")
	if !ok || minor == "" || len(minor) > 2 || strings.Trim(minor, "0123456789") != "" {
		return "", "", false
	}
	return verify.FormatCycloneDX, "1." + minor, true
}
