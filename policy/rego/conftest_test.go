package rego

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/conftest/output"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// corpus holds the inputs of the differential test.
var corpus = map[string]string{
	"one.yaml":   "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1, template: {spec: {containers: [{name: c, image: nginx}]}}}\n",
	"multi.yaml": "kind: A\nmetadata: {name: a}\n---\nkind: Deployment\nmetadata: {name: old}\n---\n---\nkind: B\n",
	"array.json": `[{"kind": "Deployment", "metadata": {"name": "x"}}, {"kind": "C", "n": 1.5}]`,
	"plan.json":  `{"resource_changes": [{"address": "aws_db_instance.a", "mode": "managed", "type": "aws_db_instance", "name": "a", "change": {"actions": ["delete"], "after": null}}]}`,
	"conf.toml":  "kind = \"Deployment\"\n[metadata]\nname = \"toml\"\n",
	"main.tf":    "resource \"aws_instance\" \"a\" {\n  ami = \"x\"\n}\n",
	"Dockerfile": "FROM nginx\nUSER root\n",
	"x.env":      "KIND=a\n",
}

// policies holds the rules of the differential test.
var policies = map[string]string{
	"deny": `package main
deny contains msg if { input.kind == "Deployment"; msg := sprintf("no %s", [input.metadata.name]) }
deny contains "second body" if input.kind == "Deployment"
warn contains "careful" if input.kind == "A"`,
	"named": `package main
deny_a contains "a" if input.kind
violation_b contains {"msg": "b", "details": {"n": 1, "deep": [1, 2]}} if input.kind
warn_c_d contains {"msg": "c", "sev": "low"} if input.metadata`,
	"violation": `package main
violation contains {"msg": "v", "_loc": {"file": "f", "line": 3}} if input.kind`,
	"exception": `package main
deny_a contains "a" if input.kind
deny_b contains "b" if input.kind
deny contains "plain" if input.kind
exception contains rules if { input.kind == "Deployment"; rules := ["a", ""] }
exception contains rules if { input.kind == "A"; rules := ["b", "a"] }`,
	"helpers": `package main
import data.lib.h
deny contains h.message(input) if h.bad(input)
`,
	"file": `package main
warn contains data.conftest.file.name if input.kind
deny contains "dir" if not startswith(data.conftest.file.dir, "/")`,
	"namespaces": `package main
deny contains "main" if input.kind
`,
	"data": `package main
deny contains "listed" if input.kind in data.kinds`,
	"nulls": `package main
deny contains "null" if input == null
warn contains "nothing" if not input.kind`,
	"silent": `package main
deny contains "never" if input.nothing`,
	"printing": `package main
deny contains "x" if { print(input.kind); input.kind }`,
}

const combined = `package main
deny contains msg if {
	some f in input
	f.contents.kind == "Deployment"
	msg := sprintf("%s in %s", [f.contents.metadata.name, f.path])
}
warn contains sprintf("%d", [count(input)])`

// TestSameVerdicts: the same rules give the same results as the conftest command.
func TestSameVerdicts(t *testing.T) {
	t.Parallel()
	bin := testenv.RequireTool(t, "conftest")
	dir := t.TempDir()
	files := writeFiles(t, filepath.Join(dir, "in"), corpus)
	writeFiles(t, filepath.Join(dir, "data"), map[string]string{"kinds.yaml": "kinds: [A, C]\n"})
	for name, text := range policies {
		p := filepath.Join(dir, "policy", name)
		writeFiles(t, p, map[string]string{"p.rego": text})
		switch name {
		case "helpers":
			writeFiles(t, p, map[string]string{"lib/h.rego": "package lib.h\nbad(x) if x.kind == \"A\"\nmessage(x) := x.kind"})
		case "namespaces":
			writeFiles(t, p, map[string]string{"o.rego": "package other.sub\nwarn contains \"other\" if input.metadata", "m.rego": "package main\ndeny contains \"more\" if input.n"})
		}
	}
	writeFiles(t, filepath.Join(dir, "combined"), map[string]string{"p.rego": combined})
	for name := range policies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := TestOptions{Policy: []string{filepath.Join(dir, "policy", name)}, Data: []string{filepath.Join(dir, "data")}}
			same(t, bin, o, files)
			o.AllNamespaces = name == "namespaces"
			o.Data = nil
			if name != "data" {
				same(t, bin, o, files)
			}
		})
	}
	t.Run("combined", func(t *testing.T) {
		t.Parallel()
		same(t, bin, TestOptions{Policy: []string{filepath.Join(dir, "combined")}, Combine: true}, files)
	})
	t.Run("pattern", func(t *testing.T) {
		t.Parallel()
		same(t, bin, TestOptions{Policy: []string{filepath.Join(dir, "policy", "namespaces")}, Namespaces: []string{"oth*"}}, files)
	})
	t.Run("one policy file and a parser", func(t *testing.T) {
		t.Parallel()
		same(t, bin, TestOptions{Policy: []string{filepath.Join(dir, "policy", "deny", "p.rego")}, Parser: "yaml"}, files[:1])
	})
	t.Run("library", func(t *testing.T) {
		t.Parallel()
		same(t, bin, TestOptions{Policy: []string{"../library/kubernetes", "../library/lib"}, AllNamespaces: true}, only(files, "one.yaml", "multi.yaml", "array.json"))
		same(t, bin, TestOptions{Policy: []string{"../library/terraform", "../library/lib"}, AllNamespaces: true}, only(files, "plan.json"))
	})
}

// TestStdin: "-" is read as conftest reads it.
func TestStdin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"p.rego": policies["deny"]})
	got, err := Test(t.Context(), TestOptions{Policy: []string{dir}, Stdin: strings.NewReader(corpus["multi.yaml"])}, []string{"-"})
	if err != nil || len(got) != 1 || got[0].FileName != "-" || len(got[0].Failures) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestListedDifferences holds what conftest lets pass and we do not.
func TestListedDifferences(t *testing.T) {
	t.Parallel()
	bin := testenv.RequireTool(t, "conftest")
	for name, tt := range map[string]struct {
		policy, input, namespace string
		want                     string // part of the error; empty: a failure is found
	}{
		"complete rule":     {`deny := "x"`, "kind: A", "main", "not a set"},
		"number":            {`deny contains 1`, "kind: A", "main", "not a message"},
		"object rule":       {`deny["k"] := "x"`, "kind: A", "main", "not a set"},
		"near miss":         {"warn contains \"x\" if input.b\ndenyFoo contains \"x\"", "kind: A", "main", "does not evaluate a rule named"},
		"unknown namespace": {`deny contains "x"`, "kind: A", "man", "holds no rule"},
		"builtin error":     {`deny contains "x" if to_number(input.kind) > 0`, "kind: A", "main", "to_number"},
		"empty message":     {`deny contains trim(input.kind, "A")`, "kind: A", "main", "empty message"},
		"network":           {`deny contains "x" if http.send({"method": "get", "url": "http://127.0.0.1:1", "raise_error": false}).status_code == 200`, "kind: A", "main", "undefined function"},
		"environment":       {`deny contains "x" if not opa.runtime().env`, "kind: A", "main", "undefined function"},
		"list":              {`deny contains "x" if input.kind == "Pod"`, "apiVersion: v1\nkind: List\nitems: [{kind: Pod}]", "main", ""},
		"case":              {"deny_a contains \"x\" if input.b\ndeny_A contains \"x\" if input.kind", "kind: A", "main", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			files := writeFiles(t, filepath.Join(dir, "in"), map[string]string{"a.yaml": tt.input})
			writeFiles(t, filepath.Join(dir, "policy"), map[string]string{"p.rego": "package main\n" + tt.policy})
			o := TestOptions{Policy: []string{filepath.Join(dir, "policy")}, Namespaces: []string{tt.namespace}}
			if out := conftest(t, bin, o, files); slices.ContainsFunc(out, output.CheckResult.HasFailure) {
				t.Errorf("conftest does refuse it: %+v", out)
			}
			got, err := Test(t.Context(), o, files)
			switch {
			case tt.want == "" && (err != nil || !slices.ContainsFunc(got, output.CheckResult.HasFailure)):
				t.Errorf("no failure: %+v, %v", got, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTestRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := writeFiles(t, filepath.Join(dir, "in"), map[string]string{"bad.json": "{", "x.unknown": "", "ok.yaml": "a: 1"})
	writeFiles(t, filepath.Join(dir, "policy"), map[string]string{"p.rego": policies["deny"]})
	o := TestOptions{Policy: []string{filepath.Join(dir, "policy")}}
	for _, args := range [][]string{nil, only(files, "bad.json"), only(files, "x.unknown"), {filepath.Join(dir, "none")}, {filepath.Join(dir, "policy")}, {"-"}} {
		if got, err := Test(t.Context(), o, args); err == nil {
			t.Errorf("%v: %v", args, got)
		}
	}
	o.Policy = []string{filepath.Join(dir, "nowhere")}
	if got, err := Test(t.Context(), o, only(files, "ok.yaml")); err == nil {
		t.Errorf("no policies: %v", got)
	}
}

func writeFiles(t *testing.T, dir string, files map[string]string) []string {
	t.Helper()
	var out []string
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

func only(files []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(files), func(f string) bool { return !slices.Contains(names, filepath.Base(f)) })
}

// same fails unless the conftest command and Test agree.
func same(t *testing.T, bin string, o TestOptions, files []string) {
	t.Helper()
	got, err := Test(t.Context(), o, files)
	if err != nil {
		t.Fatal(err)
	}
	if g, w := canonical(t, got), canonical(t, conftest(t, bin, o, files)); g != w {
		t.Errorf("holdfast %s\nconftest %s", g, w)
	}
}

// conftest runs the real command.
func conftest(t *testing.T, bin string, o TestOptions, files []string) []output.CheckResult {
	t.Helper()
	args := []string{"test", "-o", "json", "--no-fail"}
	for _, p := range o.Policy {
		args = append(args, "-p", p)
	}
	for _, d := range o.Data {
		args = append(args, "-d", d)
	}
	for _, n := range o.Namespaces {
		args = append(args, "-n", n)
	}
	if o.Parser != "" {
		args = append(args, "--parser", o.Parser)
	}
	args = append(args, fmt.Sprintf("--all-namespaces=%t", o.AllNamespaces), fmt.Sprintf("--combine=%t", o.Combine))
	cmd := exec.CommandContext(t.Context(), bin, append(args, files...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("conftest %v: %v\n%s%s", args, err, out, stderr.String())
	}
	var results []output.CheckResult
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return results
}

// canonical orders results, drops namespaces without rules, which conftest
// reports as empty results, and what print wrote.
func canonical(t *testing.T, results []output.CheckResult) string {
	t.Helper()
	var lines []string
	for _, r := range results {
		if r.Totals().Tests() == 0 {
			continue
		}
		r.Queries = nil
		for _, list := range [][]output.Result{r.Failures, r.Warnings, r.Exceptions} {
			for i := range list {
				list[i].Outputs = nil
			}
			slices.SortFunc(list, func(a, b output.Result) int { return strings.Compare(line(t, a), line(t, b)) })
		}
		lines = append(lines, line(t, r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func line(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzMessage: no value that a rule may give makes an empty verdict or a panic.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{`"x"`, `{"msg": "x", "_loc": {"line": 1}}`, `{"msg": ""}`, `[]`, `1`, `null`, `{"_loc": 1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var v any
		if json.Unmarshal([]byte(s), &v) != nil {
			return
		}
		if r, err := message(v); err == nil && (r.Message == "" || r.Metadata == nil) {
			t.Errorf("%s gave %+v", s, r)
		}
	})
}
