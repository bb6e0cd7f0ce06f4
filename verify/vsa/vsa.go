// Package vsa owns the judgement of SLSA verification summaries: that somebody
// else, who is trusted to, has verified the artifact.
//
// It guarantees what the specification asks of a consumer: a verifier that the
// rule names exactly, the resource, the result, the levels, and the time of the
// verification. It refuses a summary that failed, one about another resource, one
// that is too old or from the future, and one of another major version.
// https://slsa.dev/spec/v1.2/verification_summary#how-to-verify
package vsa

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// Predicate is the predicate type of verification summaries, of builds and of
// source alike.
const Predicate = "https://slsa.dev/verification_summary/v1"

// Judge judges verification summaries. It implements [verify.Judge].
type Judge struct{ want verify.VSARequirement }

// New returns the Judge of a requirement for a verification summary.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.VSA == nil {
		return nil, verify.ErrNotApplicable
	}
	return Judge{*q.VSA}, nil
}

// Superseding implements [verify.Superseding]: what failed today passed yesterday.
func (Judge) Superseding() {}

// Reads implements [verify.Judge].
func (Judge) Reads(predicateType string) bool { return predicateType == Predicate }

// maxListed bounds the levels of a summary.
const maxListed = 256

type summary struct {
	Verifier struct {
		ID string `json:"id"`
	} `json:"verifier"`
	TimeVerified       intoto.Time         `json:"timeVerified"`
	ResourceURI        string              `json:"resourceUri"`
	Policy             intoto.Descriptor   `json:"policy"`
	InputAttestations  []intoto.Descriptor `json:"inputAttestations"`
	VerificationResult string              `json:"verificationResult"`
	VerifiedLevels     []string            `json:"verifiedLevels"`
	DependencyLevels   map[string]uint64   `json:"dependencyLevels"`
	SLSAVersion        string              `json:"slsaVersion"`
}

// Judge implements [verify.Judge]. The facts are {verifier, resource, levels,
// verified, policy {uri, digest}, inputs, dependencyLevels, slsaVersion}.
func (j Judge) Judge(st verify.Statement, now time.Time) (verify.Finding, error) {
	var s summary
	if err := intoto.Decode(st.Predicate, &s); err != nil {
		return verify.Finding{}, fmt.Errorf("the summary is not usable: %w", err)
	}
	f := verify.Finding{Made: s.TimeVerified.Time, Series: s.Verifier.ID + " " + s.ResourceURI + " " + s.Policy.URI}
	if err := s.complete(); err != nil {
		return f, fmt.Errorf("the summary is not usable: %w", err)
	}
	if !slices.Contains(j.want.Verifiers, s.Verifier.ID) {
		return f, fmt.Errorf("verifier: found %q, expected %s: %w", intoto.Short(s.Verifier.ID), strings.Join(j.want.Verifiers, " or "), verify.ErrOther)
	}
	if err := j.resource(st, s.ResourceURI); err != nil {
		return f, err
	}
	if err := intoto.Fresh("timeVerified", s.TimeVerified, st.Time, now, j.want.VerifiedWithin); err != nil {
		return f, err
	}
	if s.VerificationResult != "PASSED" || slices.Contains(s.VerifiedLevels, "FAILED") {
		return f, fmt.Errorf("the verification by %q says %s: %w", intoto.Short(s.Verifier.ID), intoto.Short(s.VerificationResult), verify.ErrContradicts)
	}
	for _, want := range j.want.Levels {
		if !slices.ContainsFunc(s.VerifiedLevels, func(found string) bool { return contains(found, want) }) {
			return f, fmt.Errorf("levels: found %q, expected %s", intoto.Short(strings.Join(s.VerifiedLevels, ", ")), want)
		}
	}
	if j.want.VerifiedWithin > 0 {
		f.NotAfter = s.TimeVerified.Add(j.want.VerifiedWithin)
	}
	f.Text = fmt.Sprintf("%s verified by %s at %s", intoto.Short(strings.Join(s.VerifiedLevels, ", ")), intoto.Short(s.Verifier.ID), s.TimeVerified)
	f.Facts = s.facts()
	return f, nil
}

var majorOne = regexp.MustCompile(`\A1\.[0-9]{1,3}\z`)

// complete requires what a summary must say.
func (s summary) complete() error {
	switch {
	case s.Verifier.ID == "":
		return errors.New("it names no verifier")
	case s.ResourceURI == "":
		return errors.New("it names no resource")
	case s.Policy.URI == "":
		return errors.New("it names no policy")
	case s.VerificationResult != "PASSED" && s.VerificationResult != "FAILED":
		return fmt.Errorf("unknown result %q", intoto.Short(s.VerificationResult))
	case len(s.VerifiedLevels) == 0 || len(s.VerifiedLevels) > maxListed || len(s.DependencyLevels) > maxListed:
		return fmt.Errorf("it lists %d levels and %d of dependencies, expected at most %d", len(s.VerifiedLevels), len(s.DependencyLevels), maxListed)
	case s.SLSAVersion != "" && !majorOne.MatchString(s.SLSAVersion):
		return fmt.Errorf("it is by SLSA %q, expected 1.x", intoto.Short(s.SLSAVersion))
	}
	return nil
}

// resource checks what the summary is about: a package that passed for one name,
// or for one environment, has not passed for another.
func (j Judge) resource(st verify.Statement, uri string) error {
	if !j.want.Resource.IsZero() {
		if !j.want.Resource.Matches(uri) {
			return fmt.Errorf("resource: found %q, expected %s", intoto.Short(uri), j.want.Resource)
		}
		return nil
	}
	if st.Name == "" {
		return errors.New("the artifact has no name to compare the resource with: set resource in the rule")
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(uri, "oci://"), "@"+st.Subject.String())
	if bare == st.Name || "index."+bare == st.Name && strings.HasPrefix(bare, "docker.io/") {
		return nil
	}
	return fmt.Errorf("resource: found %q, expected oci://%s", intoto.Short(uri), st.Name)
}

var slsaLevel = regexp.MustCompile(`\A(SLSA_[A-Z]+(?:_[A-Z]+)*_LEVEL_)([0-9])\z`)

// contains reports whether a level contains another: each level of a track of
// SLSA contains those below it, any other one itself alone.
func contains(found, want string) bool {
	f, w := slsaLevel.FindStringSubmatch(found), slsaLevel.FindStringSubmatch(want)
	if f == nil || w == nil {
		return found == want
	}
	return f[1] == w[1] && f[2] >= w[2]
}

func (s summary) facts() map[string]any {
	levels := []string{}
	for _, l := range s.VerifiedLevels {
		levels = append(levels, intoto.Short(l))
	}
	dependencies := map[string]uint64{}
	for l, n := range s.DependencyLevels {
		dependencies[intoto.Short(l)] = n
	}
	return map[string]any{
		"verifier": intoto.Short(s.Verifier.ID), "resource": intoto.Short(s.ResourceURI), "levels": levels, "verified": s.TimeVerified.String(),
		"policy": map[string]any{"uri": intoto.Short(s.Policy.URI), "digest": s.Policy.SHA256().String()},
		"inputs": len(s.InputAttestations), "dependencyLevels": dependencies, "slsaVersion": s.SLSAVersion,
	}
}
