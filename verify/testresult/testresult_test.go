package testresult

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

var subject = digest.FromString("shop")

func judge(t testing.TB, q verify.TestRequirement) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{Test: &q})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// result is a test result as the specification's example has it.
func result(value, rest string) string {
	return `{"result":"` + value + `","configuration":[{"name":"unit","uri":"https://acme.example/unit","downloadLocation":"https://github.com/acme/shop/blob/main/.github/workflows/ci.yml",
		"digest":{"gitBlob":"ebe4add40f63c3c98bc9b32ff1e736f04120b023"}}],"url":"https://github.com/acme/shop/actions/runs/4425592351"` + rest + `}`
}

func sarifDescriptor(media, sum string) string {
	return fmt.Sprintf(`{"name":"unit.sarif","downloadLocation":"https://acme.example/unit.sarif","mediaType":%q,"digest":{"sha256":%q}}`, media, sum)
}

func TestJudge(t *testing.T) {
	t.Parallel()
	unit, warnings, report := verify.TestRequirement{Kind: "unit"}, verify.TestRequirement{Kind: "unit", AllowWarnings: true}, verify.TestRequirement{Kind: "unit", SARIF: true}
	good := sarifDescriptor(intoto.MediaTypeSARIF, subject.Encoded())
	withReport := func(d string) string {
		return `{"result":"PASSED","configuration":[{"name":"unit","uri":"https://acme.example/unit"},` + d + `]}`
	}
	reference := func(attester string, d ...string) string {
		return `{"attester":{"id":"` + attester + `"},"references":[` + strings.Join(d, ",") + `]}`
	}
	attribute := func(rest string) string { return `{"attributes":[{"attribute":"unit"` + rest + `}]}` }
	for name, c := range map[string]struct {
		q         verify.TestRequirement
		typ       string
		predicate string
		want      string
		is        error
	}{
		"passed":                             {q: unit, predicate: result("PASSED", `,"passedTests":["a","b"],"warnedTests":[],"failedTests":[]`)},
		"passed, by URI":                     {q: verify.TestRequirement{Kind: "https://acme.example/unit"}, predicate: result("PASSED", "")},
		"passed with warnings":               {q: warnings, predicate: result("WARNED", `,"warnedTests":["a"]`)},
		"passed, with a report":              {q: report, predicate: withReport(good)},
		"referred to":                        {q: report, typ: PredicateReference, predicate: reference("unit", good, sarifDescriptor("application/spdx+json", ""))},
		"asserted":                           {q: report, typ: intoto.PredicateSCAI, predicate: attribute(`,"evidence":` + good)},
		"failed":                             {q: unit, predicate: result("FAILED", `,"failedTests":["a"]`), want: `unit failed: "a"`, is: verify.ErrContradicts},
		"failed, where warnings are allowed": {q: warnings, predicate: result("FAILED", ""), want: "unit failed", is: verify.ErrContradicts},
		"passed and lists failures":          {q: unit, predicate: result("PASSED", `,"failedTests":["a"]`), want: "lists tests that failed", is: verify.ErrContradicts},
		"warned":                             {q: unit, predicate: result("WARNED", ""), want: "passed with warnings"},
		"passed and lists warnings":          {q: unit, predicate: result("PASSED", `,"warnedTests":["a"]`), want: "passed with warnings"},
		"result is unknown":                  {q: unit, predicate: result("passed", ""), want: "unknown result"},
		"result is missing":                  {q: unit, predicate: strings.Replace(result("PASSED", ""), `"result"`, `"outcome"`, 1), want: "unknown result"},
		"result is there twice":              {q: unit, predicate: result("FAILED", `,"result":"PASSED"`), want: "there twice"},
		"kind is another":                    {q: verify.TestRequirement{Kind: "dast"}, predicate: result("PASSED", ""), want: "it is the result of", is: verify.ErrOther},
		"kind is another, and failed":        {q: verify.TestRequirement{Kind: "dast"}, predicate: result("FAILED", ""), want: "it is the result of", is: verify.ErrOther},
		"kind is in another case":            {q: verify.TestRequirement{Kind: "Unit"}, predicate: result("PASSED", ""), want: "it is the result of", is: verify.ErrOther},
		"configuration is missing":           {q: unit, predicate: `{"result":"PASSED"}`, want: "configuration has 0 entries"},
		"configuration means nothing":        {q: unit, predicate: `{"result":"PASSED","configuration":[{"name":"unit"}]}`, want: "neither uri nor digest"},
		"report is missing":                  {q: report, predicate: result("PASSED", ""), want: "refers to no document"},
		"report is not fixed":                {q: report, predicate: withReport(sarifDescriptor(intoto.MediaTypeSARIF, "abc")), want: "not fixed by a SHA-256"},
		"report of a test that failed":       {q: report, predicate: strings.Replace(withReport(good), "PASSED", "FAILED", 1), want: "unit failed", is: verify.ErrContradicts},
		"reference by another":               {q: report, typ: PredicateReference, predicate: reference("dast", good), want: `it is by "dast"`, is: verify.ErrOther},
		"reference to something else":        {q: report, typ: PredicateReference, predicate: reference("unit", sarifDescriptor("application/spdx+json", subject.Encoded())), want: "refers to no document"},
		"reference that is not fixed":        {q: report, typ: PredicateReference, predicate: reference("unit", good, sarifDescriptor(intoto.MediaTypeSARIF, "")), want: "not fixed by a SHA-256"},
		"reference to nothing":               {q: report, typ: PredicateReference, predicate: reference("unit"), want: "references has 0 entries"},
		"attribute is another":               {q: report, typ: intoto.PredicateSCAI, predicate: `{"attributes":[{"attribute":"dast"}]}`, want: "does not assert unit", is: verify.ErrOther},
		"attribute without a report":         {q: report, typ: intoto.PredicateSCAI, predicate: attribute(""), want: "has no evidence"},
		"attribute with other evidence":      {q: report, typ: intoto.PredicateSCAI, predicate: attribute(`,"evidence":` + sarifDescriptor("text/plain", subject.Encoded())), want: "has media type"},
		"attribute of another target":        {q: report, typ: intoto.PredicateSCAI, predicate: attribute(`,"target":` + sarifDescriptor("", digest.FromString("lib").Encoded()) + `,"evidence":` + good), want: "not about this artifact"},
		"attribute under conditions":         {q: report, typ: intoto.PredicateSCAI, predicate: attribute(`,"conditions":{"x":1},"evidence":` + good), want: "only under conditions"},
		"something else":                     {q: unit, typ: "https://example.com", predicate: `{}`, want: "something else", is: verify.ErrOther},
		"not JSON":                           {q: unit, predicate: `{`, want: "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := verify.Statement{Subject: subject, PredicateType: c.typ, Predicate: []byte(c.predicate)}
			if c.typ == "" {
				st.PredicateType = Predicate
			}
			f, err := judge(t, c.q).Judge(st, time.Time{})
			if c.want == "" {
				if err != nil || f.Facts["kind"] != c.q.Kind || f.Text == "" || f.Series != st.PredicateType {
					t.Fatalf("%+v, %v", f, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if kind(err) != kind(c.is) {
				t.Errorf("%v is %s, want %s", err, kind(err), kind(c.is))
			}
			if other := f.Series != st.PredicateType; other != errors.Is(err, verify.ErrOther) {
				t.Errorf("series %q", f.Series)
			}
		})
	}
}

// kind names what an error says beside that a statement is not enough.
func kind(err error) string {
	switch {
	case errors.Is(err, verify.ErrOther):
		return "about something else"
	case errors.Is(err, verify.ErrContradicts):
		return "a contradiction"
	default:
		return "not enough"
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	for _, sarif := range []bool{false, true} {
		j := judge(t, verify.TestRequirement{Kind: "unit", SARIF: sarif})
		if !j.Reads(Predicate) || j.Reads(Predicate+"0") || j.Reads(PredicateReference) != sarif || j.Reads(intoto.PredicateSCAI) != sarif {
			t.Errorf("sarif %t", sarif)
		}
		if _, ok := j.(verify.Superseding); !ok {
			t.Error("an old result outweighs a new one")
		}
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted has no failure.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(result("PASSED", `,"passedTests":["a"]`)))
	f.Add([]byte(`{"attester":{"id":"unit"},"references":[` + sarifDescriptor(intoto.MediaTypeSARIF, subject.Encoded()) + `]}`))
	f.Add([]byte(`{"attributes":[{"attribute":"unit","evidence":` + sarifDescriptor(intoto.MediaTypeSARIF, subject.Encoded()) + `}]}`))
	j := judge(f, verify.TestRequirement{Kind: "unit", SARIF: true})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, typ := range []string{Predicate, PredicateReference, intoto.PredicateSCAI} {
			found, err := j.Judge(verify.Statement{Subject: subject, PredicateType: typ, Predicate: b}, time.Time{})
			if err != nil {
				continue
			}
			if reports, _ := found.Facts["reports"].([]map[string]any); found.Facts["failed"] != 0 || len(reports) == 0 || reports[0]["digest"] == "" {
				t.Errorf("accepted %q: %v", b, found.Facts)
			}
		}
	})
}
