// Package scai owns the judgement of SCAI attribute reports: that attributes of
// an artifact are asserted, with evidence where a rule asks for it.
//
// It guarantees that each attribute that the rule names is asserted of this very
// artifact. It refuses to count one that is asserted of another target, one that
// holds only under conditions, and evidence that no digest fixes.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/scai.md
package scai

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// Judge judges attribute reports. It implements [verify.Judge].
type Judge struct{ want verify.SCAIRequirement }

// New returns the Judge of a requirement for attributes.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.SCAI == nil {
		return nil, verify.ErrNotApplicable
	}
	return Judge{*q.SCAI}, nil
}

// Reads implements [verify.Judge].
func (Judge) Reads(predicateType string) bool { return predicateType == intoto.PredicateSCAI }

// Judge implements [verify.Judge]. The facts are {attributes, evidence, producer}:
// all that is asserted of the artifact without conditions, and the documents that
// the attributes of the rule refer to.
func (j Judge) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	r, err := intoto.DecodeReport(st.Predicate)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the attribute report is not usable: %w", err)
	}
	var why []error
	evidence := map[string]any{}
	for _, name := range j.want.Attributes {
		a, err := j.asserted(r, name, st.Subject)
		if err != nil {
			why = append(why, err)
			continue
		}
		if a.Evidence != nil {
			evidence[name] = map[string]any{"location": a.Evidence.Where(), "digest": a.Evidence.SHA256().String(), "mediaType": intoto.Short(a.Evidence.MediaType)}
		}
	}
	if err := errors.Join(why...); err != nil {
		return verify.Finding{}, err
	}
	return verify.Finding{
		Text:  strings.Join(j.want.Attributes, ", "),
		Facts: map[string]any{"attributes": attributes(r, st.Subject), "evidence": evidence, "producer": producer(r)},
	}, nil
}

// asserted returns an assertion of the attribute that holds; the report may have
// several of one name.
func (j Judge) asserted(r intoto.Report, name string, artifact digest.Digest) (intoto.Assertion, error) {
	why := fmt.Errorf("attribute %q is not asserted", name)
	for _, a := range r.Attributes {
		if a.Attribute != name {
			continue
		}
		err := a.Holds(artifact, j.want.Evidence)
		if err == nil {
			return a, nil
		}
		why = err
	}
	return intoto.Assertion{}, why
}

// attributes lists what is asserted of the artifact, each name once, bounded.
func attributes(r intoto.Report, artifact digest.Digest) []string {
	const most = 128
	out := []string{}
	for _, a := range r.Attributes {
		if a.Holds(artifact, "") == nil {
			out = append(out, intoto.Short(a.Attribute))
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), most)]
}

func producer(r intoto.Report) string {
	if r.Producer == nil {
		return ""
	}
	return r.Producer.Where()
}
