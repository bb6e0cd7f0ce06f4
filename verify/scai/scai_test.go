package scai

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

var subject = digest.FromString("shop")

func judge(t testing.TB, q verify.SCAIRequirement) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{SCAI: &q})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// report is a report as the specification's examples have it.
func report(attributes ...string) string {
	return `{"attributes":[` + strings.Join(attributes, ",") + `],"producer":{"uri":"https://acme.example/runner"},"https://acme.example/x":1}`
}

func TestJudge(t *testing.T) {
	t.Parallel()
	target := func(d digest.Digest) string {
		return fmt.Sprintf(`{"attribute":"REPRODUCIBLE","target":{"name":"shop","digest":{"sha256":%q}}}`, d.Encoded())
	}
	evidence := func(media, sum string) string {
		return fmt.Sprintf(`{"attribute":"REPRODUCIBLE","evidence":{"name":"r.json","uri":"https://acme.example/r.json","digest":{"sha256":%q},"mediaType":%q}}`, sum, media)
	}
	good := evidence("application/x.dsse+json", subject.Encoded())
	stack := `{"attribute":"WITH_STACK_PROTECTION"}`
	conditional := `{"attribute":"REPRODUCIBLE","conditions":{"flags":"-fstack-protector*"}}`
	for name, c := range map[string]struct {
		predicate, evidence string
		attributes          []string
		want                string
	}{
		"asserted":                    {report(stack, good), "", []string{"REPRODUCIBLE", "WITH_STACK_PROTECTION"}, ""},
		"with evidence":               {report(good), "application/x.dsse+json", []string{"REPRODUCIBLE"}, ""},
		"of this target":              {report(target(subject)), "", []string{"REPRODUCIBLE"}, ""},
		"twice, once of this":         {report(target(digest.FromString("lib")), conditional, target(subject)), "", []string{"REPRODUCIBLE"}, ""},
		"attribute is missing":        {report(good), "", []string{"REPRODUCIBLE", "WITH_STACK_PROTECTION"}, `"WITH_STACK_PROTECTION" is not asserted`},
		"attribute in another case":   {report(`{"attribute":"reproducible"}`), "", []string{"REPRODUCIBLE"}, "is not asserted"},
		"target is another":           {report(target(digest.FromString("lib"))), "", []string{"REPRODUCIBLE"}, "not about this artifact"},
		"target has no digest":        {report(`{"attribute":"REPRODUCIBLE","target":{"name":"shop"}}`), "", []string{"REPRODUCIBLE"}, "not about this artifact"},
		"conditions":                  {report(conditional), "", []string{"REPRODUCIBLE"}, "only under conditions"},
		"evidence is missing":         {report(`{"attribute":"REPRODUCIBLE"}`), "application/x.dsse+json", []string{"REPRODUCIBLE"}, "has no evidence"},
		"evidence is of another type": {report(evidence("text/plain", subject.Encoded())), "application/x.dsse+json", []string{"REPRODUCIBLE"}, "has media type"},
		"evidence is not fixed":       {report(evidence("application/x.dsse+json", "")), "application/x.dsse+json", []string{"REPRODUCIBLE"}, "not fixed by a SHA-256"},
		"attributes are missing":      {`{}`, "", []string{"REPRODUCIBLE"}, "asserts 0 attributes"},
		"attributes are too many":     {report(slices.Repeat([]string{stack}, intoto.MaxAttributes+1)...), "", []string{"WITH_STACK_PROTECTION"}, "attributes, expected"},
		"attribute has no name":       {report(`{"evidence":{}}`, good), "", []string{"REPRODUCIBLE"}, "has no name"},
		"name is there twice":         {`{"attributes":[{"attribute":"a","attribute":"REPRODUCIBLE"}]}`, "", []string{"REPRODUCIBLE"}, "there twice"},
	} {
		st := verify.Statement{Subject: subject, PredicateType: intoto.PredicateSCAI, Predicate: []byte(c.predicate)}
		f, err := judge(t, verify.SCAIRequirement{Attributes: c.attributes, Evidence: c.evidence}).Judge(st, time.Time{})
		if c.want == "" && (err != nil || f.Text != strings.Join(c.attributes, ", ")) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestFacts: policies see what holds of the artifact, and nothing else.
func TestFacts(t *testing.T) {
	t.Parallel()
	st := verify.Statement{Subject: subject, PredicateType: intoto.PredicateSCAI, Predicate: []byte(report(`{"attribute":"B"}`, `{"attribute":"A"}`, `{"attribute":"A"}`,
		`{"attribute":"C","conditions":{"x":1}}`, `{"attribute":"D","target":{"uri":"https://x"}}`))}
	f, err := judge(t, verify.SCAIRequirement{Attributes: []string{"A"}}).Judge(st, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(f.Facts["attributes"], f.Facts["producer"]); got != "[A B]https://acme.example/runner" {
		t.Error(got)
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	j := judge(t, verify.SCAIRequirement{})
	if !j.Reads(intoto.PredicateSCAI) || j.Reads("https://in-toto.io/attestation/scai/v0.2") || j.Reads(intoto.PredicateSCAI+"0") {
		t.Error("another type is read")
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted is asserted.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(report(`{"attribute":"A","evidence":{"digest":{"sha256":"x"}}}`)))
	f.Add([]byte(report(`{"attribute":"A","target":null,"conditions":{}}`)))
	j := judge(f, verify.SCAIRequirement{Attributes: []string{"A"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := j.Judge(verify.Statement{Subject: subject, PredicateType: intoto.PredicateSCAI, Predicate: b}, time.Time{})
		if err != nil {
			return
		}
		if all, _ := found.Facts["attributes"].([]string); len(all) == 0 {
			t.Errorf("accepted %q", b)
		}
	})
}
