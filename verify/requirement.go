package verify

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Requirement is one thing that a rule asks of an artifact: statements of one
// kind, by a number of distinct signers. Exactly one of the pointers is set.
type Requirement struct {
	// Signers are names of the rule's signers, each of whom may make the statement;
	// Threshold of them must, 1 if it is 0. A party counts once, however many of
	// its keys, certificates or log entries there are.
	Signers   []string `json:"signers"`
	Threshold int      `json:"threshold,omitempty"`
	// MaxAge is how long ago the statement may have been signed, by its proven
	// time; 0 is for ever.
	MaxAge time.Duration `json:"maxAge,omitempty"`
	// Source says where it is asked for, for people: "holdfast.yaml:31".
	Source string `json:"-"`

	Signature       *SignatureRequirement       `json:"signature,omitempty"`
	SBOM            *SBOMRequirement            `json:"sbom,omitempty"`
	Provenance      *ProvenanceRequirement      `json:"provenance,omitempty"`
	VSA             *VSARequirement             `json:"vsa,omitempty"`
	Vulnerabilities *VulnerabilitiesRequirement `json:"vulnerabilities,omitempty"`
	Test            *TestRequirement            `json:"test,omitempty"`
	Release         *ReleaseRequirement         `json:"release,omitempty"`
	SCAI            *SCAIRequirement            `json:"scai,omitempty"`
	Predicate       *PredicateRequirement       `json:"predicate,omitempty"`
}

// SignatureRequirement asks for a signature of the artifact itself. One on an
// index covers its platforms by hash.
type SignatureRequirement struct{}

// The SBOM formats that a rule may ask for.
const (
	FormatSPDX      = "spdx"
	FormatCycloneDX = "cyclonedx"
)

// SBOMRequirement asks for a software bill of materials.
type SBOMRequirement struct {
	Formats []string `json:"formats,omitempty"` // FormatSPDX, FormatCycloneDX; empty: either
}

// ProvenanceRequirement asks for SLSA provenance.
// https://slsa.dev/spec/v1.2/verifying-artifacts
type ProvenanceRequirement struct {
	// Builders are the build platforms that are trusted, and up to which SLSA
	// build level; Level is the least that is enough, 1 if it is 0.
	Builders []Builder `json:"builders"`
	Level    int       `json:"level,omitempty"`
	// AllowV02 also reads provenance v0.2, which says less.
	AllowV02 bool `json:"allowV02,omitempty"`
	// Repository is the source repository's URI, Refs the patterns, by segment, of
	// the refs that may be built; empty: any.
	Repository string   `json:"repository"`
	Refs       []string `json:"refs,omitempty"`
	// Triggers are the events that may have started the build; empty: any but
	// those that run what strangers wrote.
	Triggers   []string `json:"triggers,omitempty"`
	BuildTypes []string `json:"buildTypes,omitempty"` // exact; empty: those of the builder's profile
	// Parameters are the external parameters that are known, beside those that
	// the builder's profile checks itself: another one is a denial. A name with
	// dots is a path ("inputs.target"); a name means all that is below it, too.
	// With values, the parameter must be there and have one of them, and "" among
	// them lets it be missing; without values it may have any.
	Parameters map[string][]string `json:"parameters,omitempty"`
	// SingleSubject refuses provenance about several artifacts.
	SingleSubject bool `json:"singleSubject,omitempty"`
}

// Builder is a build platform. The first one of a list that matches counts.
type Builder struct {
	ID    Match `json:"id"`    // of the builder.id in the provenance
	Level int   `json:"level"` // SLSA build level that it is trusted for: 1 to 3
	// Profile says how its provenance is read and compared with the certificate:
	// one of BuilderProfiles. Empty: by the letter of SLSA, with BuildTypes given.
	Profile string `json:"profile,omitempty"`
}

// The profiles of build systems that no certificate describes, beside those of
// [Build].
const (
	ProfileBuildKit    = "buildkit"
	ProfileJenkins     = "jenkins"
	ProfileAzureDevOps = "azure-devops"
)

// BuilderProfiles lists the profiles of builders.
var BuilderProfiles = []string{
	ProfileGitHub, ProfileGitLab, ProfileCircleCI, ProfileBuildkite, ProfileBuildKit, ProfileJenkins, ProfileAzureDevOps,
}

// RunsStrangers reports whether a trigger of a build system runs what people
// outside its project wrote.
func RunsStrangers(profile, trigger string) bool {
	return slices.Contains(profiles[profile].untrusty, trigger)
}

// MatchesPattern reports whether one of the patterns, by segment, matches s.
func MatchesPattern(patterns []string, s string) bool { return globs(patterns, s) }

// VSARequirement asks for a SLSA verification summary by someone else.
// https://slsa.dev/spec/v1.2/verification_summary
type VSARequirement struct {
	// Verifiers are the exact ids of the verifiers whose verdict counts.
	Verifiers []string `json:"verifiers"`
	// Resource is the URI that the summary must be about; empty: the artifact's
	// repository, NAME or oci://NAME, with or without its digest.
	Resource Match `json:"resource,omitzero"`
	// Levels must all be among the verified levels; SLSA_BUILD_LEVEL_3 contains 2.
	Levels []string `json:"levels"`
	// VerifiedWithin is how old the verification may be, by its own word; 0 is
	// for ever.
	VerifiedWithin time.Duration `json:"verifiedWithin,omitempty"`
}

// VulnerabilitiesRequirement asks for the result of a vulnerability scan.
// What it found is judged by policies.
type VulnerabilitiesRequirement struct {
	// Scanners are patterns, by segment, over the scanner's URI, for example
	// pkg:github/aquasecurity/*; empty: any.
	Scanners []string `json:"scanners,omitempty"`
	// ScanMaxAge and DatabaseMaxAge bound how old the scan and the scanner's
	// database are. What the scanner does not say is too old.
	ScanMaxAge     time.Duration `json:"scanMaxAge"`
	DatabaseMaxAge time.Duration `json:"databaseMaxAge"`
	// MaxSeverity is the highest severity that may be found: none, low, medium,
	// high, critical; empty: critical. An unknown severity counts as high.
	MaxSeverity string `json:"maxSeverity,omitempty"`
}

// TestRequirement asks for the result of a test: unit, SAST, DAST, IAST, smoke.
type TestRequirement struct {
	// Kind is how the test is called: one of its configurations must have that
	// name, or that URI.
	Kind string `json:"kind"`
	// AllowWarnings accepts the result WARNED.
	AllowWarnings bool `json:"allowWarnings,omitempty"`
	// SARIF asks that the statement refers to a SARIF document by its digest. It
	// may then be a reference by an attester of that name, or a SCAI attribute of
	// that name, too: these say that there is a report, not what it says.
	SARIF bool `json:"sarif,omitempty"`
}

// ReleaseRequirement asks for a release attestation.
type ReleaseRequirement struct {
	// Package is the package URL, without version, that was released; what it
	// qualifies must be the same. Empty: any.
	Package string `json:"package,omitempty"`
}

// SCAIRequirement asks for attributes of the artifact or of how it was made.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/scai.md
type SCAIRequirement struct {
	Attributes []string `json:"attributes"` // each must be asserted, in one report
	// Evidence is the media type of the document that each must refer to by its
	// digest; empty: the signer's word is enough.
	Evidence string `json:"evidence,omitempty"`
}

// PredicateRequirement asks for a statement of any other type.
type PredicateRequirement struct {
	Type string `json:"type"` // exact predicate type
	// Rego is a module of package holdfast.predicate whose deny rules judge
	// input.predicate, which is verified; empty: the statement alone is enough,
	// which is refused for the types that another requirement reads.
	Rego []byte `json:"rego,omitempty"`
}

// The names of requirements, by which reports, exceptions and facts call them.
const (
	NameSignature       = "signature"
	NameSBOM            = "sbom"
	NameProvenance      = "provenance"
	NameVSA             = "vsa"
	NameVulnerabilities = "vulnerabilities"
	NameTest            = "test"
	NameRelease         = "release"
	NameSCAI            = "scai"
	NamePredicate       = "predicate"
)

// Name returns what the requirement is called: one of the names, with what it
// is about where there can be several.
func (q Requirement) Name() string {
	names := q.names()
	if len(names) != 1 {
		return ""
	}
	return names[0]
}

func (q Requirement) names() []string {
	var out []string
	for _, c := range []struct {
		set  bool
		name string
	}{
		{q.Signature != nil, NameSignature},
		{q.SBOM != nil, NameSBOM},
		{q.Provenance != nil, NameProvenance},
		{q.VSA != nil, NameVSA},
		{q.Vulnerabilities != nil, NameVulnerabilities},
		{q.Test != nil, NameTest},
		{q.Release != nil, NameRelease},
		{q.SCAI != nil, NameSCAI},
		{q.Predicate != nil, NamePredicate},
	} {
		if c.set {
			out = append(out, c.name)
		}
	}
	switch {
	case q.Test != nil && len(out) == 1:
		out[0] += " " + q.Test.Kind
	case q.Predicate != nil && len(out) == 1:
		out[0] += " " + q.Predicate.Type
	}
	return out
}

// comparesName reports whether the verdict depends on what the artifact is
// called, not on its content alone.
func (q Requirement) comparesName() bool { return q.VSA != nil && q.VSA.Resource.IsZero() }

// Need returns the number of distinct signers that are asked for.
func (q Requirement) Need() int { return max(1, q.Threshold) }

func (q Requirement) validate(signers []Signer) error {
	switch n := q.names(); {
	case len(n) == 0:
		return fmt.Errorf("a requirement asks for nothing: write for example signature: {signers: [release]}")
	case len(n) > 1:
		return fmt.Errorf("one requirement asks for %s: make each an entry of its own", strings.Join(n, " and "))
	}
	name := q.Name()
	if len(q.Signers) == 0 {
		return fmt.Errorf("%s: it names no signer", name)
	}
	for i, s := range q.Signers {
		if !slices.ContainsFunc(signers, func(x Signer) bool { return x.Name == s }) {
			return fmt.Errorf("%s: there is no signer %q", name, s)
		}
		if slices.Contains(q.Signers[:i], s) {
			return fmt.Errorf("%s: signer %q is named twice", name, s)
		}
	}
	if q.Threshold < 0 || q.Need() > len(q.Signers) {
		return fmt.Errorf("%s: threshold %d of %d signers can never be met", name, q.Threshold, len(q.Signers))
	}
	if q.MaxAge < 0 {
		return fmt.Errorf("%s: maxAge is negative", name)
	}
	for _, s := range signers {
		if s.Notation != nil && q.Signature == nil && slices.Contains(q.Signers, s.Name) {
			return fmt.Errorf("%s: %q signs artifacts and makes no statements about them: name a key or an identity", name, s.Name)
		}
		if q.MaxAge > 0 && slices.Contains(q.Signers, s.Name) && !s.timed() {
			return fmt.Errorf("%s: maxAge needs a proven time, and the signatures of %q have none: give it a root with a log or a timestamp authority", name, s.Name)
		}
	}
	if err := q.validateKind(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// validateKind checks what is asked for, whoever may say it.
func (q Requirement) validateKind() error {
	switch {
	case q.SBOM != nil:
		return q.SBOM.validate()
	case q.Provenance != nil:
		return q.Provenance.validate()
	case q.VSA != nil && len(q.Signers) > 1 && len(q.VSA.Verifiers) > 1:
		// "Consumers MUST accept only specific (signer, verifier) pairs."
		return fmt.Errorf("with several signers and several verifiers, each signer could speak for each verifier: name one signer, or one verifier")
	case q.VSA != nil:
		return q.VSA.validate()
	case q.Vulnerabilities != nil:
		return q.Vulnerabilities.validate()
	case q.Test != nil:
		return q.Test.validate()
	case q.Release != nil:
		return q.Release.validate()
	case q.SCAI != nil:
		return q.SCAI.validate()
	case q.Predicate != nil:
		return q.Predicate.validate()
	default:
		return nil
	}
}

// named refuses a list with an element that says nothing, or twice the same.
func named(what string, list []string) error {
	for i, s := range list {
		if strings.TrimSpace(s) != s || s == "" {
			return fmt.Errorf("%s: %q is not a name", what, s)
		}
		if slices.Contains(list[:i], s) {
			return fmt.Errorf("%s: %q is there twice", what, s)
		}
	}
	return nil
}

func (q *SBOMRequirement) validate() error {
	for _, f := range q.Formats {
		if f != FormatSPDX && f != FormatCycloneDX {
			return fmt.Errorf("unknown format %q: use spdx or cyclonedx", f)
		}
	}
	return nil
}

func (q *ProvenanceRequirement) validate() error {
	if len(q.Builders) == 0 {
		return fmt.Errorf("it trusts no builder: list builders, each with its id and its SLSA build level")
	}
	best := 0
	for _, b := range q.Builders {
		if err := b.validate(len(q.BuildTypes) > 0); err != nil {
			return err
		}
		best = max(best, b.Level)
	}
	switch {
	case q.Level < 0 || q.Level > 3:
		return fmt.Errorf("level is between 1 and 3")
	case q.Level > best:
		return fmt.Errorf("level %d can never be met: no builder is trusted for more than level %d", q.Level, best)
	case !prefixNamesAPath(q.Repository):
		return fmt.Errorf("repository %q is not the URI of a source repository, for example https://github.com/acme/shop", q.Repository)
	}
	for _, list := range []struct {
		what string
		list []string
	}{
		{"refs", q.Refs}, {"triggers", q.Triggers}, {"buildTypes", q.BuildTypes}, {"parameters", slices.Sorted(maps.Keys(q.Parameters))},
	} {
		if err := named(list.what, list.list); err != nil {
			return err
		}
	}
	for _, r := range q.Refs {
		if err := checkGlob(r); err != nil {
			return err
		}
	}
	return nil
}

func (b Builder) validate(typed bool) error {
	if _, err := b.ID.Regexp(); err != nil {
		return fmt.Errorf("builder id: %w", err)
	}
	switch {
	case b.Level < 1 || b.Level > 3:
		return fmt.Errorf("builder %s: level is between 1 and 3", b.ID)
	case b.Profile == "" && !typed:
		return fmt.Errorf("builder %s: set its profile, one of %s, or list buildTypes", b.ID, strings.Join(BuilderProfiles, ", "))
	case b.Profile != "" && !slices.Contains(BuilderProfiles, b.Profile):
		return fmt.Errorf("builder %s: unknown profile %q: use one of %s", b.ID, b.Profile, strings.Join(BuilderProfiles, ", "))
	}
	return nil
}

// slsaLevel is a level of a track of SLSA, the only ones that begin with SLSA_.
// https://slsa.dev/spec/v1.2/verification_summary#slsaresult
var slsaLevel = regexp.MustCompile(`\ASLSA_[A-Z]+(?:_[A-Z]+)*_LEVEL_[0-9]\z`)

func (q *VSARequirement) validate() error {
	switch {
	case len(q.Verifiers) == 0:
		return fmt.Errorf("it trusts no verifier: list verifiers by their exact ids")
	case len(q.Levels) == 0:
		return fmt.Errorf("it asks for no level, for example SLSA_BUILD_LEVEL_2")
	case q.VerifiedWithin < 0:
		return fmt.Errorf("verifiedWithin is negative")
	}
	if err := named("verifiers", q.Verifiers); err != nil {
		return err
	}
	if err := named("levels", q.Levels); err != nil {
		return err
	}
	for _, l := range q.Levels {
		if l == "FAILED" || strings.HasPrefix(l, "SLSA_") && !slsaLevel.MatchString(l) {
			return fmt.Errorf("%q is not a level: use for example SLSA_BUILD_LEVEL_2", l)
		}
	}
	if q.Resource.IsZero() {
		return nil
	}
	if _, err := q.Resource.Regexp(); err != nil {
		return fmt.Errorf("resource: %w", err)
	}
	return nil
}

// Severities lists what a vulnerability can be, the worst last.
var Severities = []string{"none", "low", "medium", "high", "critical"}

func (q *VulnerabilitiesRequirement) validate() error {
	switch {
	case q.ScanMaxAge <= 0:
		return fmt.Errorf("set scanMaxAge: a scan says nothing of what was found out since")
	case q.DatabaseMaxAge <= 0:
		return fmt.Errorf("set databaseMaxAge: a scan knows what its database knew")
	case q.MaxSeverity != "" && !slices.Contains(Severities, q.MaxSeverity):
		return fmt.Errorf("unknown severity %q: use %s", q.MaxSeverity, strings.Join(Severities, ", "))
	}
	for _, p := range q.Scanners {
		if err := checkGlob(p); err != nil {
			return err
		}
	}
	return named("scanners", q.Scanners)
}

func (q *TestRequirement) validate() error {
	if err := named("kind", []string{q.Kind}); err != nil {
		return fmt.Errorf("%w: say which test, as its configuration calls it", err)
	}
	return nil
}

func (q *ReleaseRequirement) validate() error {
	if q.Package == "" {
		return nil
	}
	typ, rest, _ := strings.Cut(strings.TrimPrefix(q.Package, "pkg:"), "/")
	path, _, _ := strings.Cut(rest, "?")
	if !strings.HasPrefix(q.Package, "pkg:") || typ == "" || path == "" || strings.ContainsAny(path, "@#") || strings.ContainsAny(q.Package, " #") {
		return fmt.Errorf("package %q is not a package URL without version, for example pkg:oci/shop?repository_url=ghcr.io/acme/shop", q.Package)
	}
	return nil
}

func (q *SCAIRequirement) validate() error {
	if len(q.Attributes) == 0 {
		return fmt.Errorf("it asks for no attribute")
	}
	if q.Evidence != "" && strings.Count(q.Evidence, "/") != 1 {
		return fmt.Errorf("evidence %q is not a media type, for example application/sarif+json", q.Evidence)
	}
	return named("attributes", q.Attributes)
}

// ownTypes are predicate types, or their beginnings, that a requirement of
// another kind judges.
var ownTypes = []struct{ prefix, kind string }{
	{"https://slsa.dev/provenance/", NameProvenance},
	{"https://slsa.dev/verification_summary/", NameVSA},
	{"https://spdx.dev/Document", NameSBOM},
	{"https://cyclonedx.org/bom", NameSBOM},
	{"https://in-toto.io/attestation/vulns/", NameVulnerabilities},
	{"https://cosign.sigstore.dev/attestation/vuln/", NameVulnerabilities},
	{"https://in-toto.io/attestation/test-result/", NameTest},
	{"https://in-toto.io/attestation/release/", NameRelease},
	{"https://in-toto.io/attestation/scai/", NameSCAI},
}

func (q *PredicateRequirement) validate() error {
	u, err := url.Parse(q.Type)
	if err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "" || strings.ContainsAny(q.Type, " *") {
		return fmt.Errorf("type %q is not the URI of a predicate type", q.Type)
	}
	if q.Type == PredicateSignature {
		return fmt.Errorf("type %q is a signature: ask for signature instead", q.Type)
	}
	for _, t := range ownTypes {
		if len(q.Rego) == 0 && strings.HasPrefix(q.Type, t.prefix) {
			return fmt.Errorf("nothing would be checked of %s: ask for %s instead, or give a Rego module", q.Type, t.kind)
		}
	}
	return nil
}
