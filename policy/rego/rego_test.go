package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

func bundle(files map[string]string) Bundle {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return Bundle{Name: "test", FS: m}
}

func load(t testing.TB, text string) (*Evaluator, error) {
	t.Helper()
	return New(t.Context(), Config{Bundles: []Bundle{bundle(map[string]string{"p.rego": text})}})
}

func mustLoad(t testing.TB, text string) *Evaluator {
	t.Helper()
	e, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func input(values ...any) policy.Input {
	in := policy.Input{
		Stage: policy.StageRendered, Target: "kubernetes", Stack: "shop", Environment: "prod",
		Repository: "r", Commit: "c0ffee", Of: "sha256:1",
	}
	for i, v := range values {
		in.Documents = append(in.Documents, plan.Document{Name: fmt.Sprintf("d%d.yaml", i), Line: i + 1, Value: v})
	}
	return in
}

func object(kind, name string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name}}
}

// messages evaluates and returns "level: message" of each result.
func messages(t testing.TB, e *Evaluator, in policy.Input) []string {
	t.Helper()
	d, err := e.Evaluate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(d.Results))
	for i, r := range d.Results {
		out[i] = string(r.Level) + ": " + r.Message
	}
	return out
}

// TestRefusedAtLoad holds a policy for each way of passing in silence.
func TestRefusedAtLoad(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"complete string":   {`deny := "x"`, "test/p.rego:3: rule \"deny\" is not a set"},
		"boolean":           {`deny if true`, "test/p.rego:3: rule \"deny\" is not a set"},
		"boolean warn":      {`warn if input.a`, "test/p.rego:3: rule \"warn\" is not a set"},
		"boolean named":     {`deny_a := true`, "test/p.rego:3"},
		"number":            {`deny contains 1`, "test/p.rego:3: rule \"deny\" contains 1"},
		"empty string":      {`deny contains ""`, "test/p.rego:3"},
		"boolean element":   {`violation contains true if input.a`, "test/p.rego:3"},
		"array element":     {`deny contains ["x"]`, "test/p.rego:3"},
		"object, no msg":    {`deny contains {"message": "x"}`, "test/p.rego:3"},
		"object, empty msg": {`deny contains {"msg": ""}`, "test/p.rego:3"},
		"object, msg 1":     {`deny contains {"msg": 1}`, "test/p.rego:3"},
		"object rule":       {`deny["k"] := "x"`, "test/p.rego:3"},
		"nested set":        {`deny.a contains "x"`, "test/p.rego:3"},
		"function":          {`deny(x) := "x" if x`, "test/p.rego:3"},
		"default":           {`default deny := false`, "test/p.rego:3"},
		"camel case":        {`denyFoo contains "x"`, `test/p.rego:3: conftest does not evaluate a rule named "denyFoo"`},
		"capital":           {`Deny contains "x"`, "test/p.rego:3"},
		"trailing _":        {`deny_ contains "x"`, "test/p.rego:3"},
		"plural":            {`violations contains "x"`, "test/p.rego:3"},
		"near boolean":      {`denyAll if input.a`, "test/p.rego:3"},
		"no rule":           {`allow := true`, "no deny, violation or warn rule"},
		"syntax":            {`deny contains {`, "test/p.rego:4: rego_parse_error"},
		"network":           {`deny contains x if x := http.send({"method": "get", "url": "http://127.0.0.1"}).body`, "undefined function http.send"},
		"dns":               {`deny contains x if some x in net.lookup_ip_addr("localhost")`, "undefined function net.lookup_ip_addr"},
		"environment":       {`deny contains x if x := opa.runtime().env.HOME`, "undefined function opa.runtime"},
		"chance":            {`deny contains "x" if rand.intn("a", 2) == 1`, "undefined function rand.intn"},
		"schema reference":  {`deny contains "x" if json.match_schema({}, {"$ref": "http://127.0.0.1/"})`, "undefined function json.match_schema"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, "package main\n\n"+tt.text+"\n")
			if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "holdfast-policy-") {
				t.Errorf("the error names a private folder: %v", err)
			}
		})
	}
}

// TestHelpersAreNotRefused: a helper may begin like a rule.
func TestHelpersAreNotRefused(t *testing.T) {
	t.Parallel()
	mustLoad(t, `package main
deny contains "x" if input.kind in denylist
denylist := ["A"]
denyFunction(x) := x
warningText := 1
`)
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	ok := bundle(map[string]string{"p.rego": "package main\ndeny contains \"x\" if input.a"})
	for name, tt := range map[string]struct {
		cfg  Config
		want string
	}{
		"no bundle":         {Config{}, "no policies configured"},
		"no files":          {Config{Bundles: []Bundle{{Name: "x"}}}, "no name or no files"},
		"twice":             {Config{Bundles: []Bundle{ok, ok}}, "named twice"},
		"no policy":         {Config{Bundles: []Bundle{bundle(map[string]string{"a.json": "{}"})}}, "hold no policy"},
		"unknown namespace": {Config{Bundles: []Bundle{ok}, Namespaces: []string{"man"}}, `policy namespace "man" holds no rule`},
		"negative timeout":  {Config{Bundles: []Bundle{ok}, Timeout: -1}, "negative policy timeout"},
		"reserved":          {Config{Bundles: []Bundle{ok}, Data: map[string]any{"conftest": 1}}, "reserved"},
		"reserved in bundle": {Config{Bundles: []Bundle{ok, {Name: "d", FS: bundle(map[string]string{
			"d.json": `{"holdfast": 1}`,
		}).FS}}}, "reserved"},
		"data twice": {Config{Bundles: []Bundle{ok, {Name: "d", FS: bundle(map[string]string{
			"d.json": `{"params": {"a": 1}}`,
		}).FS}}, Data: map[string]any{"params": map[string]any{"a": 2}}}, "data.params.a is set by a bundle and by the operator"},
		"data over rule": {Config{Bundles: []Bundle{ok}, Data: map[string]any{"main": map[string]any{"deny": []any{}}}}, "hides a rule"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := New(t.Context(), tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) || fault.KindOf(err) != fault.Invalid {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestErrorsAreNoVerdict: what could not be judged is an error, never a pass.
func TestErrorsAreNoVerdict(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ rule, want string }{
		"builtin error":  {`deny contains "x" if to_number(input.kind) == 1`, "to_number"},
		"number":         {`deny contains x if x := count(input.kind)`, "not a message"},
		"empty message":  {`deny contains x if x := trim(input.kind, input.kind)`, "empty message"},
		"no msg":         {`deny contains x if x := {"a": input.kind}`, `"msg" field`},
		"msg is no text": {`deny contains {"msg": x} if x := count(input.kind)`, `"msg" field`},
		"conflict":       {"deny contains \"x\" if a == 1\na := 1 if input.kind\na := 2 if input.kind", "conflict"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := mustLoad(t, "package main\n"+tt.rule).Evaluate(t.Context(), input(object("Pod", "p")))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "d0.yaml:1") {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if d.Allowed() || fault.KindOf(err) != fault.Denied {
				t.Errorf("allowed %t, kind %s", d.Allowed(), fault.KindOf(err))
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	b := bundle(map[string]string{"p.rego": `package main
deny contains "x" if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a + b < 0
}`})
	e, err := New(t.Context(), Config{Bundles: []Bundle{b}, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Evaluate(t.Context(), input(object("Pod", "p")))
	if !errors.Is(err, context.DeadlineExceeded) || fault.KindOf(err) != fault.Transient {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Evaluate(ctx, input(object("Pod", "p"))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestResults(t *testing.T) {
	t.Parallel()
	e := mustLoad(t, `package main
deny contains "plain" if input.kind == "B"
violation_size contains {"msg": "meta", "details": {"n": 3}, "_loc": {"file": "orig.yaml", "line": 7}} if input.kind == "B"
warn contains "careful"
deny_old contains "never" if input.kind == "B"
exception contains rules if {
	input.kind == "B"
	rules := ["old"]
}`)
	d, err := e.Evaluate(t.Context(), input(object("B", "b"), object("A", "a")))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(d.Results)
	want := `[{"level":"deny","namespace":"main","rule":"deny","message":"plain","file":"d0.yaml","line":1,"object":"B/b"},` +
		`{"level":"exception","namespace":"main","rule":"deny_old","message":"data.main.exception[_][_] == \"old\"","file":"d0.yaml","line":1,"object":"B/b"},` +
		`{"level":"warn","namespace":"main","rule":"warn","message":"careful","file":"d0.yaml","line":1,"object":"B/b"},` +
		`{"level":"warn","namespace":"main","rule":"warn","message":"careful","file":"d1.yaml","line":2,"object":"A/a"},` +
		`{"level":"violation","namespace":"main","rule":"violation_size","message":"meta","file":"orig.yaml","line":7,"object":"B/b","metadata":{"details":{"n":3}}}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if d.Rules != 4 || d.Allowed() || d.Of != "sha256:1" || d.Policies != e.Policies() {
		t.Errorf("decision %+v", d)
	}
}

// TestListsAreSplit: a rule sees the object that hides in a list.
func TestListsAreSplit(t *testing.T) {
	t.Parallel()
	e := mustLoad(t, "package main\ndeny contains msg if { input.kind == \"Pod\"; msg := input.metadata.name }")
	list := func(kind string, items ...any) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": kind, "items": items}
	}
	untyped := map[string]any{"metadata": map[string]any{"name": "u"}}
	got := messages(t, e, input(list("List", object("Pod", "a"), list("List", object("Pod", "b"))), list("PodList", untyped), []any{object("Pod", "c")}))
	if want := "[deny: a deny: b deny: u deny: c]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFacts(t *testing.T) {
	t.Parallel()
	e := mustLoad(t, `package main
deny contains msg if {
	h := input.holdfast
	msg := sprintf("%s %s %s %s %s", [h.stage, h.stack, h.environment, h.commit, concat(",", sort(object.keys(h.artifacts)))])
}
deny contains h.artifacts["good@sha256:1"].facts.builder if h := input.holdfast`)
	in := input(object("Pod", "p"))
	in.Report.Evidence = []verify.Evidence{
		{Subject: verify.Subject{Reference: "good:1", Name: "good", Digest: "sha256:1"}, Checks: []verify.Check{{OK: true}}, Facts: map[string]any{"builder": "ci"}},
		{Subject: verify.Subject{Reference: "bad:1", Name: "bad", Digest: "sha256:2"}, Checks: []verify.Check{{OK: true}, {OK: false}}},
		{Subject: verify.Subject{Reference: "none:1", Name: "none", Digest: "sha256:3"}},
	}
	if got, want := fmt.Sprint(messages(t, e, in)), "[deny: ci deny: rendered shop prod c0ffee good:1,good@sha256:1]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	forged := object("Pod", "p")
	forged["holdfast"] = map[string]any{"environment": "dev"}
	if _, err := e.Evaluate(t.Context(), input(forged)); err == nil || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("forged facts gave %v", err)
	}
	if _, ok := in.Documents[0].Value.(map[string]any)["holdfast"]; ok {
		t.Error("the caller's document was changed")
	}
}

func TestCombine(t *testing.T) {
	t.Parallel()
	b := bundle(map[string]string{"p.rego": `package main
deny contains msg if {
	some a in input
	msg := sprintf("%s %s %s", [a.path, a.contents.kind, a.contents.holdfast.stack])
}`})
	e, err := New(t.Context(), Config{Bundles: []Bundle{b}, Combine: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(messages(t, e, input(object("A", "a"), object("B", "b")))), "[deny: d0.yaml A shop deny: d1.yaml B shop]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestNoDocuments: nothing to judge is not a yes.
func TestNoDocuments(t *testing.T) {
	t.Parallel()
	for _, combine := range []bool{false, true} {
		e, err := New(t.Context(), Config{Combine: combine, Bundles: []Bundle{bundle(map[string]string{"p.rego": "package main\ndeny contains \"x\" if input.kind"})}})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			stage  policy.Stage
			target string
			want   bool
		}{
			{policy.StageRendered, "kubernetes", false},
			{policy.StageRendered, "terraform", false},
			{policy.StagePlan, "terraform", false},
			{policy.StagePlan, "", false},
			{policy.StagePlan, "kubernetes", true},
		} {
			in := input()
			in.Stage, in.Target = tt.stage, tt.target
			d, err := e.Evaluate(t.Context(), in)
			if err != nil || d.Allowed() != tt.want {
				t.Errorf("%s %s: allowed %t, %v", tt.stage, tt.target, d.Allowed(), err)
			}
		}
	}
}

// TestDigest: every file and setting that can change a verdict changes it.
func TestDigest(t *testing.T) {
	t.Parallel()
	files := map[string]string{"p.rego": "package main\ndeny contains \"x\" if input.a", "d.json": `{"k": 1}`}
	base := Config{Bundles: []Bundle{bundle(files)}}
	of := func(cfg Config) string {
		e, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return e.Policies().String()
	}
	if first, second := of(base), of(base); first != second {
		t.Error("not stable")
	}
	seen := map[string]string{of(base): "base"}
	for name, cfg := range map[string]Config{
		"policy":    {Bundles: []Bundle{bundle(map[string]string{"p.rego": files["p.rego"] + "\n", "d.json": files["d.json"]})}},
		"data":      {Bundles: []Bundle{bundle(map[string]string{"p.rego": files["p.rego"], "d.json": `{"k": 2}`})}},
		"name":      {Bundles: []Bundle{bundle(map[string]string{"q.rego": files["p.rego"], "d.json": files["d.json"]})}},
		"operator":  {Bundles: base.Bundles, Data: map[string]any{"o": 1}},
		"combine":   {Bundles: base.Bundles, Combine: true},
		"namespace": {Bundles: base.Bundles, Namespaces: []string{"main"}},
	} {
		if other, ok := seen[of(cfg)]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[of(cfg)] = name
	}
}

// TestOwnPackages: whoever writes one bundle changes nothing about another's rules.
func TestOwnPackages(t *testing.T) {
	t.Parallel()
	security := Bundle{Name: "security", FS: fstest.MapFS{"sec.rego": {Data: []byte("package sec\ndeny contains \"no\"")}}}
	team := func(text string, own bool) Bundle {
		return Bundle{Name: "git/team", Own: own, FS: fstest.MapFS{"team.rego": {Data: []byte(text)}}}
	}
	nested := Bundle{Name: "nested", FS: fstest.MapFS{"sec.rego": {Data: []byte("package acme.sec\ndeny contains \"no\"")}}}
	data := func(text string) Bundle {
		return Bundle{Name: "git/team", Own: true, FS: fstest.MapFS{"a/d.json": {Data: []byte(text)}, "team.rego": {Data: []byte("package team\nwarn contains \"x\"")}}}
	}
	exception := "package sec\nexception contains [\"\"]"
	for name, c := range map[string]struct {
		bundles []Bundle
		ok      bool
	}{
		"its own package":              {[]Bundle{security, team("package team\nwarn contains \"x\"", true)}, true},
		"an exception":                 {[]Bundle{security, team(exception, true)}, false},
		"an exception, the other way":  {[]Bundle{team(exception, true), security}, false},
		"of two that the operator has": {[]Bundle{security, team(exception, false)}, true},
		"within":                       {[]Bundle{security, team("package sec.exception\nx := [\"\"]", true)}, false},
		"within a helper":              {[]Bundle{security, team("package sec.trusted.more\nx := 1", true)}, false},
		"around":                       {[]Bundle{nested, team("package acme\nsec.exception contains [\"\"]", true)}, false},
		"around, by its own rules":     {[]Bundle{nested, team("package acme\nwarn contains \"x\"", true)}, false},
		"around, the other way":        {[]Bundle{team("package acme\nsec.exception contains [\"\"]", true), nested}, false},
		"beside":                       {[]Bundle{nested, team("package acme.team\nwarn contains \"x\"", true)}, true},
		"data":                         {[]Bundle{security, data(`{"sec":{"exception":[[""]]}}`)}, false},
		"data within":                  {[]Bundle{nested, data(`{"acme":{"sec":{"exception":[[""]]}}}`)}, false},
		"data above":                   {[]Bundle{nested, data(`{"acme":["x"]}`)}, false},
		"data beside":                  {[]Bundle{nested, data(`{"acme":{"team":{"x":1}}}`)}, true},
		"the operator's, as a copy, with an exception": {[]Bundle{
			{Name: "git/team", Own: true, FS: fstest.MapFS{"sec.rego": security.FS.(fstest.MapFS)["sec.rego"], "x.rego": {Data: []byte(exception)}}}, security,
		}, false},
		"where the operator has data": {[]Bundle{security, team("package limits.images\nwarn contains \"x\"", true)}, false},
	} {
		if _, err := New(t.Context(), Config{Bundles: c.bundles, Data: map[string]any{"limits": map[string]any{"images": []any{"x"}}}}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRestore: what an evaluator was made of, through JSON, makes the same one.
func TestRestore(t *testing.T) {
	t.Parallel()
	e, err := New(t.Context(), Config{
		Bundles: []Bundle{
			{Name: "acme/one", FS: fstest.MapFS{"a/deny.rego": {Data: []byte("package main\ndeny contains msg if { msg := sprintf(\"%v %v\", [data.limits.most, data.own]) }")}}},
			{Name: "two", FS: fstest.MapFS{"limits.json": {Data: []byte(`{"limits":{"most":9007199254740993}}`)}, "x.rego": {Data: []byte("package other\nwarn contains \"x\"")}}},
		},
		Namespaces: []string{"main", "other"}, Data: map[string]any{"own": "value"}, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(e.Source())
	if err != nil {
		t.Fatal(err)
	}
	var s Source
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	again, err := Restore(t.Context(), s)
	if err != nil || again.Policies() != e.Policies() {
		t.Fatalf("%v, policies %s, were %s", err, again.Policies(), e.Policies())
	}
	in, at := input(object("A", "a")), time.Unix(0, 0)
	then, err1 := e.EvaluateAt(t.Context(), in, at)
	now, err2 := again.EvaluateAt(t.Context(), in, at)
	if err1 != nil || err2 != nil || len(then.Results) != 2 || then.Digest() != now.Digest() {
		t.Errorf("%v, %v, and was %v, %v", now.Results, err2, then.Results, err1)
	}
	s.Bundles[0].Files["a/../b.rego"] = []byte("package x")
	if _, err := Restore(t.Context(), s); err == nil {
		t.Error("a file outside of its bundle is read")
	}
}

// TestTime: all rules see the one instant that was passed in.
func TestTime(t *testing.T) {
	t.Parallel()
	e := mustLoad(t, "package main\ndeny contains time.format(time.now_ns())")
	d, err := e.EvaluateAt(t.Context(), input(object("A", "a")), time.Unix(0, 0))
	if err != nil || len(d.Results) != 1 || d.Results[0].Message != "1970-01-01T00:00:00Z" {
		t.Errorf("got %v, %v", d.Results, err)
	}
}

// TestFileInfoConcurrently: data.conftest.file names the file that is judged.
func TestFileInfoConcurrently(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{"data.conftest.file", "data[input.ref].file"} {
		e := mustLoad(t, "package main\ndeny contains msg if { f := "+ref+"; f.name != input.want; msg := f.name }\nwarn contains \"seen\" if "+ref+".name == input.want")
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range 20 {
					name := fmt.Sprintf("f%d-%d.yaml", w, i)
					in := input(map[string]any{"want": name, "ref": "conftest"})
					in.Documents[0].Name = "dir/" + name
					d, err := e.Evaluate(context.WithoutCancel(t.Context()), in)
					if err != nil || len(d.Results) != 1 || d.Results[0].Level != policy.Warn {
						t.Errorf("%s: %v %v", name, d.Results, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkEvaluate(b *testing.B) {
	var text strings.Builder
	text.WriteString("package main\n")
	for i := range 30 {
		fmt.Fprintf(&text, "deny_r%d contains msg if {\n\tsome c in input.spec.template.spec.containers\n\tc.image == \"bad:%d\"\n\tmsg := sprintf(\"%%s has a bad image\", [c.name])\n}\n", i, i)
	}
	e := mustLoad(b, text.String())
	values := make([]any, 1000)
	for i := range values {
		o := object("Deployment", fmt.Sprint("d", i))
		o["spec"] = map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": fmt.Sprint("bad:", i)}}}}}
		values[i] = o
	}
	in := input(values...)
	for b.Loop() {
		if _, err := e.Evaluate(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(values)*b.N)/b.Elapsed().Seconds(), "objects/s")
}
