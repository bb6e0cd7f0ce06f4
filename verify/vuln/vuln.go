// Package vuln owns the judgement of vulnerability scans: that one was made,
// lately, by a scanner that is trusted, with a database that was current, and
// what is the worst that it found.
//
// It guarantees that a severity which cannot be read counts as high, and that of
// several scans by one signer with one scanner the newest counts. It refuses a
// scan without the dates that say how much it can know, a date in the future, and
// a result that it cannot count where the rule bounds the severity.
package vuln

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// The predicate types of scans.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/vulns_02.md
// https://github.com/sigstore/cosign/blob/main/specs/COSIGN_VULN_ATTESTATION_SPEC.md
const (
	PredicateV01    = "https://in-toto.io/attestation/vulns/v0.1"
	PredicateV02    = "https://in-toto.io/attestation/vulns/v0.2"
	PredicateCosign = "https://cosign.sigstore.dev/attestation/vuln/v1"
)

// Judge judges scans. It implements [verify.Judge].
type Judge struct {
	want verify.VulnerabilitiesRequirement
}

// New returns the Judge of a requirement for a scan.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.Vulnerabilities == nil {
		return nil, verify.ErrNotApplicable
	}
	return Judge{*q.Vulnerabilities}, nil
}

// Superseding implements [verify.Superseding].
func (Judge) Superseding() {}

// Reads implements [verify.Judge].
func (Judge) Reads(predicateType string) bool {
	return slices.Contains([]string{PredicateV01, PredicateV02, PredicateCosign}, predicateType)
}

// Judge implements [verify.Judge]. The facts are {scanner {uri, version}, database
// {uri, version, updated}, scanned, counted, counts, worst, vulnerabilities,
// moreVulnerabilities}.
func (j Judge) Judge(st verify.Statement, now time.Time) (verify.Finding, error) {
	s, err := parse(st.PredicateType, st.Predicate)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the scan is not usable: %w", err)
	}
	scanner, _, _ := strings.Cut(s.scanner.uri, "@") // another version of a scanner is the same one
	f := verify.Finding{Made: s.finished.Time, Series: scanner}
	if len(j.want.Scanners) > 0 && !verify.MatchesPattern(j.want.Scanners, s.scanner.uri) {
		return f, fmt.Errorf("scanner: found %q, expected %s: %w", intoto.Short(s.scanner.uri), strings.Join(j.want.Scanners, " or "), verify.ErrOther)
	}
	if err := intoto.Fresh("scanFinishedOn", s.finished, st.Time, now, j.want.ScanMaxAge); err != nil {
		return f, err
	}
	if err := intoto.Fresh("scanner.db.lastUpdate", s.updated, st.Time, now, j.want.DatabaseMaxAge); err != nil {
		return f, err
	}
	if err := j.severity(s); err != nil {
		return f, err
	}
	f.NotAfter = s.finished.Add(j.want.ScanMaxAge)
	if end := s.updated.Add(j.want.DatabaseMaxAge); end.Before(f.NotAfter) {
		f.NotAfter = end
	}
	f.Text = s.text()
	f.Facts = s.facts()
	return f, nil
}

// severity checks the worst of what was found.
func (j Judge) severity(s scan) error {
	most := j.want.MaxSeverity
	if most == "" || most == verify.Severities[len(verify.Severities)-1] {
		return nil
	}
	if !s.counted {
		return errors.New("the result is in a format whose severities cannot be counted: attest it as " + PredicateV02)
	}
	worst := s.worst()
	if worst.rank() <= slices.Index(verify.Severities, most) {
		return nil
	}
	return fmt.Errorf("it found %s, of severity %s, expected at most %s: %w", intoto.Short(worst.id), worst.severity, most, verify.ErrContradicts)
}
