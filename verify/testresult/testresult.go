// Package testresult owns the judgement of test results: that one kind of test
// was made and passed, or that its report exists where a rule asks for one.
//
// It guarantees that a test is told from others by the name or URI of its
// configuration, that of several results of one test by one signer the newest
// counts, and that a failure outweighs whatever else is there. It refuses a
// result that contradicts itself, and a report that no digest fixes.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
package testresult

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// The predicate types: of results, and of references to reports.
const (
	Predicate          = "https://in-toto.io/attestation/test-result/v0.1"
	PredicateReference = "https://in-toto.io/attestation/reference/v0.1"
)

// The results of a test.
const (
	passed = "PASSED"
	warned = "WARNED"
	failed = "FAILED"
)

// maxListed bounds the descriptors of a statement, maxFacts those in facts.
const (
	maxListed = 10_000
	maxFacts  = 32
)

// Judge judges the results of one kind of test. It implements [verify.Judge].
type Judge struct{ want verify.TestRequirement }

// New returns the Judge of a requirement for a test.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.Test == nil {
		return nil, verify.ErrNotApplicable
	}
	return Judge{*q.Test}, nil
}

// Superseding implements [verify.Superseding].
func (Judge) Superseding() {}

// Reads implements [verify.Judge].
func (j Judge) Reads(predicateType string) bool {
	switch predicateType {
	case Predicate:
		return true
	case PredicateReference, intoto.PredicateSCAI:
		return j.want.SARIF
	default:
		return false
	}
}

// Judge implements [verify.Judge]. The facts are {kind, result, url, passed,
// warned, failed, configuration, reports}; result is empty of a statement that
// only refers to a report.
func (j Judge) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	f := verify.Finding{Series: st.PredicateType}
	var err error
	switch st.PredicateType {
	case Predicate:
		err = j.result(st, &f)
	case PredicateReference:
		err = j.reference(st, &f)
	case intoto.PredicateSCAI:
		err = j.attribute(st, &f)
	default:
		err = verify.ErrOther
	}
	if errors.Is(err, verify.ErrOther) {
		f.Series = "other" // it replaces nothing of this test
	}
	return f, err
}

// result judges a test-result.
func (j Judge) result(st verify.Statement, f *verify.Finding) error {
	var r struct {
		Result        string              `json:"result"`
		Configuration []intoto.Descriptor `json:"configuration"`
		URL           string              `json:"url"`
		PassedTests   []string            `json:"passedTests"`
		WarnedTests   []string            `json:"warnedTests"`
		FailedTests   []string            `json:"failedTests"`
	}
	if err := intoto.Decode(st.Predicate, &r); err != nil {
		return fmt.Errorf("the test result is not usable: %w", err)
	}
	if err := descriptors("configuration", r.Configuration); err != nil {
		return fmt.Errorf("the test result is not usable: %w", err)
	}
	if !slices.ContainsFunc(r.Configuration, func(d intoto.Descriptor) bool { return d.Name == j.want.Kind || d.URI == j.want.Kind }) {
		return fmt.Errorf("it is the result of %s: %w", names(r.Configuration), verify.ErrOther)
	}
	switch {
	case r.Result == failed:
		return fmt.Errorf("%s failed%s: %w", j.want.Kind, list(r.FailedTests), verify.ErrContradicts)
	case r.Result != passed && r.Result != warned:
		return fmt.Errorf("the test result is not usable: unknown result %q, expected PASSED, WARNED or FAILED", intoto.Short(r.Result))
	case len(r.FailedTests) > 0:
		return fmt.Errorf("%s says %s, and lists tests that failed%s: %w", j.want.Kind, r.Result, list(r.FailedTests), verify.ErrContradicts)
	case !j.want.AllowWarnings && (r.Result == warned || len(r.WarnedTests) > 0):
		return fmt.Errorf("%s passed with warnings%s, which the rule does not allow", j.want.Kind, list(r.WarnedTests))
	}
	var reports []intoto.Descriptor
	if j.want.SARIF {
		var err error
		if reports, err = sarif(r.Configuration); err != nil {
			return fmt.Errorf("%s: %w", j.want.Kind, err)
		}
	}
	f.Text = fmt.Sprintf("%s %s", j.want.Kind, strings.ToLower(r.Result))
	f.Facts = map[string]any{
		"kind": j.want.Kind, "result": r.Result, "url": intoto.Short(r.URL), "passed": len(r.PassedTests), "warned": len(r.WarnedTests),
		"failed": len(r.FailedTests), "configuration": documents(r.Configuration), "reports": documents(reports),
	}
	return nil
}

// reference judges a reference to a report by the attester of that name.
func (j Judge) reference(st verify.Statement, f *verify.Finding) error {
	var r struct {
		Attester struct {
			ID string `json:"id"`
		} `json:"attester"`
		References []intoto.Descriptor `json:"references"`
	}
	if err := intoto.Decode(st.Predicate, &r); err != nil {
		return fmt.Errorf("the reference is not usable: %w", err)
	}
	if err := descriptors("references", r.References); err != nil {
		return fmt.Errorf("the reference is not usable: %w", err)
	}
	if r.Attester.ID != j.want.Kind {
		return fmt.Errorf("it is by %q: %w", intoto.Short(r.Attester.ID), verify.ErrOther)
	}
	reports, err := sarif(r.References)
	if err != nil {
		return fmt.Errorf("%s: %w", j.want.Kind, err)
	}
	return j.referred(f, reports)
}

// attribute judges a SCAI attribute of the test's name, with a report as evidence.
func (j Judge) attribute(st verify.Statement, f *verify.Finding) error {
	r, err := intoto.DecodeReport(st.Predicate)
	if err != nil {
		return fmt.Errorf("the attribute report is not usable: %w", err)
	}
	i := slices.IndexFunc(r.Attributes, func(a intoto.Assertion) bool { return a.Attribute == j.want.Kind })
	if i < 0 {
		return fmt.Errorf("it does not assert %s: %w", j.want.Kind, verify.ErrOther)
	}
	a := r.Attributes[i]
	if err := a.Holds(st.Subject, intoto.MediaTypeSARIF); err != nil {
		return err
	}
	return j.referred(f, []intoto.Descriptor{*a.Evidence})
}

func (j Judge) referred(f *verify.Finding, reports []intoto.Descriptor) error {
	f.Text = fmt.Sprintf("%s, report %s", j.want.Kind, reports[0].Where())
	f.Facts = map[string]any{
		"kind": j.want.Kind, "result": "", "url": "", "passed": 0, "warned": 0, "failed": 0,
		"configuration": documents(nil), "reports": documents(reports),
	}
	return nil
}

// descriptors requires at least one, each of which means something.
func descriptors(what string, all []intoto.Descriptor) error {
	if len(all) == 0 || len(all) > maxListed {
		return fmt.Errorf("%s has %d entries, expected 1 to %d", what, len(all), maxListed)
	}
	for _, d := range all {
		if err := d.Check(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// sarif returns the SARIF documents among descriptors, of which there must be one,
// each fixed by its digest.
func sarif(all []intoto.Descriptor) ([]intoto.Descriptor, error) {
	var out []intoto.Descriptor
	for _, d := range all {
		if d.MediaType != intoto.MediaTypeSARIF {
			continue
		}
		if err := d.Is(intoto.MediaTypeSARIF); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("it refers to no document of media type %s", intoto.MediaTypeSARIF)
	}
	return out, nil
}

func documents(all []intoto.Descriptor) []map[string]any {
	out := []map[string]any{}
	for _, d := range all[:min(len(all), maxFacts)] {
		out = append(out, map[string]any{"name": intoto.Short(d.Name), "uri": intoto.Short(d.URI), "digest": d.SHA256().String(), "location": intoto.Short(d.DownloadLocation)})
	}
	return out
}

func names(all []intoto.Descriptor) string {
	var out []string
	for _, d := range all[:min(len(all), 4)] {
		out = append(out, fmt.Sprintf("%q", d.Where()))
	}
	return strings.Join(out, ", ")
}

// list names tests for people; nothing where there are none.
func list(tests []string) string {
	if len(tests) == 0 {
		return ""
	}
	return fmt.Sprintf(": %q", intoto.Short(strings.Join(tests[:min(len(tests), 8)], ", ")))
}
