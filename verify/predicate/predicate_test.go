package predicate

import (
	"encoding/json"
	"errors"
	"os"
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

const typ = "https://acme.example/review/v1"

func requirement(module string) verify.Requirement {
	return verify.Requirement{Predicate: &verify.PredicateRequirement{Type: typ, Rego: []byte(module)}}
}

func judge(t testing.TB, module string) Judge {
	t.Helper()
	j, err := New(requirement(module))
	if err != nil {
		t.Fatal(err)
	}
	return j.(Judge)
}

func statement(predicate string) verify.Statement {
	return verify.Statement{
		Subject: subject, PredicateType: typ, Predicate: []byte(predicate), Signers: []string{"review"}, Time: now.Add(-time.Hour),
		Subjects:    []verify.StatementSubject{{Name: "shop", Digest: map[string]string{"sha256": subject.Encoded()}}},
		Certificate: &verify.Certificate{Issuer: "https://acme.example", Subject: "alice@acme.example"},
	}
}

const review = `package holdfast.predicate

deny contains msg if {
	count(input.predicate.approvers) < 2
	msg := sprintf("%d approvers, expected 2", [count(input.predicate.approvers)])
}

deny contains "no approvers" if not input.predicate.approvers

deny contains "approved by its author" if input.predicate.author in input.predicate.approvers

deny contains "signed by another" if not "review" in input.signers

deny contains "about another artifact" if input.subjects[0].digest.sha256 != split(input.subject, ":")[1]

deny contains "signed too long ago" if {
	time.now_ns() - time.parse_rfc3339_ns(input.time) > ((1000 * 1000) * 1000) * 86400
}

deny contains "not from acme" if not from_acme

from_acme if endswith(input.certificate.subject, "@acme.example")

deny contains "large" if input.predicate.number > 9007199254740992
`

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		predicate string
		st        func(*verify.Statement)
		want      string
	}{
		"approved":            {predicate: `{"author":"carol","approvers":["alice","bob"],"number":9007199254740992}`},
		"too few":             {predicate: `{"author":"carol","approvers":["alice"]}`, want: "denied: 1 approvers, expected 2"},
		"several reasons":     {predicate: `{"author":"alice","approvers":["alice"]}`, want: "1 approvers, expected 2; approved by its author"},
		"nothing said":        {predicate: `{}`, want: "denied: no approvers"},
		"signer":              {predicate: `{"approvers":["alice","bob"]}`, st: func(st *verify.Statement) { st.Signers = []string{"ci"} }, want: "signed by another"},
		"subject":             {predicate: `{"approvers":["alice","bob"]}`, st: func(st *verify.Statement) { st.Subject = digest.FromString("x") }, want: "about another artifact"},
		"time":                {predicate: `{"approvers":["alice","bob"]}`, st: func(st *verify.Statement) { st.Time = now.Add(-25 * time.Hour) }, want: "signed too long ago"},
		"no time":             {predicate: `{"approvers":["alice","bob"]}`, st: func(st *verify.Statement) { st.Time = time.Time{} }, want: "the Rego module:"},
		"no certificate":      {predicate: `{"approvers":["alice","bob"]}`, st: func(st *verify.Statement) { st.Certificate = nil }, want: "not from acme"},
		"exact numbers":       {predicate: `{"approvers":["alice","bob"],"number":9007199254740993}`, want: "large"},
		"name is there twice": {predicate: `{"approvers":["a","b"],"approvers":[]}`, want: "there twice"},
		"long":                {predicate: `{"approvers":["alice","bob"],"x":"` + strings.Repeat("x", maxJudged) + `"}`, want: "longer than the"},
		"not an object":       {predicate: `[]`, want: "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := statement(c.predicate)
			if c.st != nil {
				c.st(&st)
			}
			f, err := judge(t, review).Judge(st, now)
			if c.want == "" && (err != nil || f.Facts["judged"] != true || f.Facts["predicate"] == nil) {
				t.Errorf("%+v, %v", f, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestWithoutModule: the statement alone is enough where nothing judges it.
func TestWithoutModule(t *testing.T) {
	t.Parallel()
	j := judge(t, "")
	f, err := j.Judge(statement(`{"x":1}`), now)
	if err != nil || f.Facts["judged"] != false || !j.Reads(typ) || j.Reads(typ+"/") {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := j.Judge(statement(`{"x":1`), now); err == nil {
		t.Error("what is not JSON is accepted")
	}
	long := `{"x":"` + strings.Repeat("x", maxFact) + `"}`
	if f, err := j.Judge(statement(long), now); err != nil || f.Facts["predicate"] != nil {
		t.Errorf("a long predicate is a fact: %v", err)
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
}

// TestNewRefuses: a module that cannot refuse, or could reach outside, is found
// when the rule is loaded.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	const in = "package holdfast.predicate\n"
	for name, c := range map[string]struct{ module, want string }{
		"nothing":               {" ", "empty"},
		"no rule":               {in, "no deny rule"},
		"another package":       {`package main` + "\n" + `deny contains "x" if input.predicate.x`, "expected holdfast.predicate"},
		"a package below":       {`package holdfast.predicate.x` + "\n" + `deny contains "x" if input.predicate.x`, "expected holdfast.predicate"},
		"deny is a value":       {in + `deny := "x" if input.predicate.x`, "would never refuse"},
		"deny is a boolean":     {in + `deny if input.predicate.x`, "would never refuse"},
		"deny is an object":     {in + `deny["k"] := "v" if input.predicate.x`, "would never refuse"},
		"deny is a number":      {in + `deny contains 1 if input.predicate.x`, "would never refuse"},
		"deny is empty":         {in + `deny contains " " if input.predicate.x`, "would never refuse"},
		"deny is a function":    {in + `deny(x) := "x" if x`, "would never refuse"},
		"denied":                {in + `deny_review contains "x" if input.predicate.x`, "would never refuse"},
		"in another case":       {in + `Deny contains "x" if input.predicate.x`, "would never refuse"},
		"violation":             {in + "deny contains \"x\" if input.predicate.x\nviolation contains \"x\" if input.predicate.y", "would never refuse"},
		"warn":                  {in + `warn contains "x" if input.predicate.x`, "would never refuse"},
		"input is misspelt":     {in + `deny contains "x" if input.predicat.x`, "input.predicat.x is not there"},
		"data":                  {in + `deny contains "x" if input.predicate.x in data.bad`, "data.bad is not there"},
		"data, imported":        {in + "import data.lib\n" + `deny contains "x" if lib.bad(input.predicate.x)`, "data.lib is not there"},
		"old syntax":            {in + `deny[msg] { msg := "x" }`, "rego_parse_error"},
		"does not compile":      {in + `deny contains "x" if y`, "rego_unsafe_var_error"},
		"network":               {in + `deny contains "x" if http.send({"method":"GET","url":"https://evil.example"}).status_code != 200`, "undefined function http.send"},
		"process":               {in + `deny contains "x" if opa.runtime().env.HOME`, "undefined function opa.runtime"},
		"chance":                {in + `deny contains "x" if rand.intn("x", 2) == 0`, "undefined function rand.intn"},
		"modules in the module": {in + `deny contains "x" if rego.parse_module("x", input.predicate.x)`, "undefined function rego.parse_module"},
	} {
		if _, err := New(requirement(c.module)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestRefusesWhatItCannotJudge: an error is never a pass.
func TestRefusesWhatItCannotJudge(t *testing.T) {
	t.Parallel()
	const in = "package holdfast.predicate\n"
	for name, c := range map[string]struct{ module, want string }{
		"error in a builtin": {in + `deny contains "x" if time.parse_rfc3339_ns(input.predicate.at) < 0`, "the Rego module:"},
		"not a message":      {in + `deny contains input.predicate.n if true`, "not a message"},
		"an empty message":   {in + `deny contains input.predicate.empty if true`, "not a message"},
		"an object":          {in + `deny contains {"msg": input.predicate.at} if true`, "not a message"},
		"without end":        {in + `deny contains "x" if { some a in numbers.range(1, 20000); some b in numbers.range(1, 20000); a * b == -1 }`, "did not end within"},
		"many reasons":       {in + `deny contains sprintf("%d", [x]) if some x in numbers.range(1, 100)`, "denied:"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := judge(t, c.module)
			if c.want == "did not end within" {
				j.limit = 100 * time.Millisecond
			}
			_, err := j.Judge(statement(`{"at":"never","n":1,"empty":""}`), now)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 4096 {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestDocumentedModule: the module in docs/predicates.md judges as it says.
func TestDocumentedModule(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/predicates.md")
	if err != nil {
		t.Fatal(err)
	}
	_, module, _ := strings.Cut(string(doc), "```rego\n")
	module, _, ok := strings.Cut(module, "```")
	if !ok {
		t.Fatal("docs/predicates.md has no module")
	}
	j := judge(t, module)
	for predicate, want := range map[string]string{
		`{"author":"carol","approvers":["alice","bob"]}`: "", `{}`: "no approvers",
		`{"author":"carol","approvers":["alice"]}`: "1 approvers", `{"author":"bob","approvers":["alice","bob"]}`: "by its author",
	} {
		if _, err := j.Judge(statement(predicate), now); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", predicate, err, want)
		}
	}
}

// TestEnginePanics: a panic of the engine refuses one statement.
func TestEnginePanics(t *testing.T) {
	t.Parallel()
	predicate := map[string]any{"approvers": []any{"alice", "bob"}, "number": json.Number("1e9988888889")} // never gets past the reader
	if err := judge(t, review).evaluate(statement(`{}`), predicate, now); err == nil || !strings.Contains(err.Error(), "the engine panicked") {
		t.Errorf("got %v", err)
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted is what the module asks.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(`{"author":"carol","approvers":["alice","bob"]}`))
	f.Add([]byte(`{"approvers":{"a":1,"b":2},"number":1e999}`))
	j := judge(f, review)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := j.Judge(statement(string(b)), now); err == nil && !strings.Contains(string(b), "approvers") && !strings.Contains(string(b), `\u`) {
			t.Errorf("accepted %q", b)
		}
	})
}

// FuzzNew: no module makes the compiler panic.
func FuzzNew(f *testing.F) {
	f.Add(review)
	f.Add("package holdfast.predicate\ndeny contains x if some x in [1]")
	f.Fuzz(func(_ *testing.T, module string) { _, _ = New(requirement(module)) })
}
