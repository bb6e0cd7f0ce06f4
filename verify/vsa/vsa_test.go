package vsa

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

var (
	now     = time.Date(2026, 6, 6, 12, 0, 0, 0, time.UTC)
	subject = digest.FromString("shop")
)

const name = "ghcr.io/acme/shop"

// good is a summary as the specification's example has it.
const good = `{
  "verifier": {"id": "https://acme.example/verifier"},
  "timeVerified": "2026-06-06T10:20:50.52Z",
  "resourceUri": "oci://ghcr.io/acme/shop",
  "policy": {"uri": "https://acme.example/shop.policy", "digest": {"sha256": "9c41e22cb71a64ef7fae6cf3adf3d25e62f1a8d94bd4b2f5e8a8b2b8b5a5d3f1"}},
  "inputAttestations": [{"uri": "https://acme.example/shop.intoto.jsonl", "digest": {"sha256": "abcd"}}],
  "verificationResult": "PASSED",
  "verifiedLevels": ["SLSA_BUILD_LEVEL_3", "ACME_REVIEWED"],
  "dependencyLevels": {"SLSA_BUILD_LEVEL_3": 5, "SLSA_BUILD_LEVEL_2": 7},
  "slsaVersion": "1.2"
}`

func rule() verify.VSARequirement {
	return verify.VSARequirement{Verifiers: []string{"https://acme.example/verifier"}, Levels: []string{"SLSA_BUILD_LEVEL_2"}, VerifiedWithin: 24 * time.Hour}
}

func judge(t testing.TB, q verify.VSARequirement) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{VSA: &q})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func changed(t testing.TB, name string, value any) []byte {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal([]byte(good), &p); err != nil {
		t.Fatal(err)
	}
	if p[name] = value; value == nil {
		delete(p, name)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	type c struct {
		predicate []byte
		name      string
		rule      func(*verify.VSARequirement)
	}
	for title, c := range map[string]c{
		"as in the specification":       {},
		"the resource is the bare name": {predicate: changed(t, "resourceUri", name)},
		"the resource has the digest":   {predicate: changed(t, "resourceUri", "oci://"+name+"@"+subject.String())},
		"the resource is at Docker Hub": {predicate: changed(t, "resourceUri", "docker.io/library/nginx"), name: "index.docker.io/library/nginx"},
		"the resource is the rule's":    {predicate: changed(t, "resourceUri", "pkg:oci/shop"), rule: func(q *verify.VSARequirement) { q.Resource = verify.Match{Exact: "pkg:oci/shop"} }},
		"a level of one's own":          {rule: func(q *verify.VSARequirement) { q.Levels = []string{"ACME_REVIEWED", "SLSA_BUILD_LEVEL_1"} }},
		"a level of the source track":   {predicate: changed(t, "verifiedLevels", []string{"SLSA_SOURCE_LEVEL_4"}), rule: func(q *verify.VSARequirement) { q.Levels = []string{"SLSA_SOURCE_LEVEL_3"} }},
		"no version":                    {predicate: changed(t, "slsaVersion", nil)},
		"a field that nobody knows":     {predicate: changed(t, "https://acme.example/x", 1)},
		"a verification long ago":       {predicate: changed(t, "timeVerified", "2020-01-01T00:00:00Z"), rule: func(q *verify.VSARequirement) { q.VerifiedWithin = 0 }},
	} {
		q := rule()
		if c.rule != nil {
			c.rule(&q)
		}
		st := verify.Statement{Name: name, Subject: subject, PredicateType: Predicate, Predicate: []byte(good), Time: now.Add(-time.Hour)}
		if c.predicate != nil {
			st.Predicate = c.predicate
		}
		if c.name != "" {
			st.Name = c.name
		}
		f, err := judge(t, q).Judge(st, now)
		if err != nil {
			t.Errorf("%s: %v", title, err)
			continue
		}
		if f.Made.IsZero() || f.Series == "" || f.Facts["verifier"] != q.Verifiers[0] || f.NotAfter.IsZero() != (q.VerifiedWithin == 0) {
			t.Errorf("%s: %+v", title, f)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for title, c := range map[string]struct {
		field string
		value any
		name  string
		rule  func(*verify.VSARequirement)
		want  string
		is    error
	}{
		"verifier is another":                 {field: "verifier", value: map[string]any{"id": "https://acme.example/verifier/v2"}, want: "verifier: found", is: verify.ErrOther},
		"verifier is missing":                 {field: "verifier", want: "names no verifier"},
		"resource is another":                 {field: "resourceUri", value: "oci://ghcr.io/acme/shop-evil", want: "resource: found"},
		"resource is a part of the name":      {field: "resourceUri", value: "oci://ghcr.io/acme", want: "resource: found"},
		"resource has another digest":         {field: "resourceUri", value: name + "@" + digest.FromString("evil").String(), want: "resource: found"},
		"resource of a registry called index": {field: "resourceUri", value: "evil.example/shop", name: "index.evil.example/shop", want: "resource: found"},
		"resource is not the rule's":          {rule: func(q *verify.VSARequirement) { q.Resource = verify.Match{Exact: "oci://x/prod"} }, want: "resource: found"},
		"resource is missing":                 {field: "resourceUri", want: "names no resource"},
		"resource without a name to match":    {name: "-", want: "has no name"},
		"result is a failure":                 {field: "verificationResult", value: "FAILED", want: "says FAILED", is: verify.ErrContradicts},
		"result is unknown":                   {field: "verificationResult", value: "passed", want: "unknown result"},
		"result is missing":                   {field: "verificationResult", want: "unknown result"},
		"level is a failure":                  {field: "verifiedLevels", value: []string{"FAILED", "SLSA_BUILD_LEVEL_3"}, want: "the verification by", is: verify.ErrContradicts},
		"level is lower":                      {field: "verifiedLevels", value: []string{"SLSA_BUILD_LEVEL_1"}, want: "levels: found"},
		"level is of another track":           {field: "verifiedLevels", value: []string{"SLSA_SOURCE_LEVEL_3"}, want: "levels: found"},
		"level only looks like one":           {field: "verifiedLevels", value: []string{"SLSA_BUILD_LEVEL_30"}, want: "levels: found"},
		"level is missing":                    {field: "verifiedLevels", want: "lists 0 levels"},
		"level of one's own is missing":       {rule: func(q *verify.VSARequirement) { q.Levels = []string{"ACME_REVIEWED_2"} }, want: "levels: found"},
		"time is too old":                     {field: "timeVerified", value: "2026-06-05T10:00:00Z", want: "more than 24h"},
		"time is in the future":               {field: "timeVerified", value: "2026-06-06T13:00:00Z", want: "in the future"},
		"time is after the signature":         {field: "timeVerified", value: "2026-06-06T11:30:00Z", want: "after it was signed"},
		"time is missing":                     {field: "timeVerified", want: "is missing"},
		"time is not one":                     {field: "timeVerified", value: "now", want: "RFC 3339"},
		"policy is missing":                   {field: "policy", want: "names no policy"},
		"version is another major one":        {field: "slsaVersion", value: "2.0", want: "expected 1.x"},
		"version is not one":                  {field: "slsaVersion", value: "1.x", want: "expected 1.x"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			q := rule()
			if c.rule != nil {
				c.rule(&q)
			}
			st := verify.Statement{Name: name, Subject: subject, PredicateType: Predicate, Predicate: []byte(good), Time: now.Add(-time.Hour)}
			if c.field != "" {
				st.Predicate = changed(t, c.field, c.value)
			}
			if c.name != "" {
				st.Name = strings.Trim(c.name, "-")
			}
			_, err := judge(t, q).Judge(st, now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if kind(err) != kind(c.is) {
				t.Errorf("%v is %s, want %s", err, kind(err), kind(c.is))
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
	j := judge(t, rule())
	if !j.Reads(Predicate) || j.Reads(Predicate+"/") || j.Reads("https://slsa.dev/verification_summary/v0.2") {
		t.Error("another type is read")
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted passed.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"verifier":{"id":""},"policy":{"digest":{"sha256":""}}}`))
	j := judge(f, rule())
	f.Fuzz(func(t *testing.T, b []byte) {
		st := verify.Statement{Name: name, Subject: subject, PredicateType: Predicate, Predicate: b}
		if found, err := j.Judge(st, now); err == nil && (!strings.Contains(string(b), "PASSED") || found.Facts["verifier"] != rule().Verifiers[0]) {
			t.Errorf("accepted %q", b)
		}
	})
}

// TestSeries: a newer summary replaces those of the same policy, and no others: one
// verifier has a policy for each environment.
func TestSeries(t *testing.T) {
	t.Parallel()
	series := func(predicate []byte) string {
		f, err := judge(t, rule()).Judge(verify.Statement{Name: name, Subject: subject, PredicateType: Predicate, Predicate: predicate}, now)
		if err != nil {
			t.Fatal(err)
		}
		return f.Series
	}
	first := series([]byte(good))
	if series(changed(t, "timeVerified", "2026-06-06T11:00:00Z")) != first {
		t.Error("a newer one replaces nothing")
	}
	if series(changed(t, "policy", map[string]any{"uri": "https://acme.example/other.policy"})) == first {
		t.Error("that of another policy replaces it")
	}
}
