package library_test

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/library"
	"github.com/holdfast-dev/holdfast/policy/rego"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// TestRego runs the tests that stand beside each policy.
func TestRego(t *testing.T) {
	t.Parallel()
	modules := map[string]*ast.Module{}
	tested := map[string]bool{}
	err := fs.WalkDir(os.DirFS("."), ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil || path.Ext(p) != ".rego" {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		modules[p], err = ast.ParseModuleWithOpts(p, string(text), ast.ParserOptions{RegoVersion: ast.RegoV1})
		tested[path.Dir(p)] = tested[path.Dir(p)] || strings.HasSuffix(p, "_test.rego")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range library.Names() {
		if !tested[name] {
			t.Errorf("%s has no Rego test", name)
		}
	}
	results, err := tester.NewRunner().SetModules(modules).RaiseBuiltinErrors(true).RunTests(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for r := range results {
		n++
		if !r.Pass() {
			t.Errorf("%s:%d: %s.%s failed: %v", r.Location.File, r.Location.Row, r.Package, r.Name, r.Error)
		}
	}
	if n < 50 {
		t.Errorf("only %d Rego tests ran", n)
	}
}

// TestNames checks that the list is what lies in the folders.
func TestNames(t *testing.T) {
	t.Parallel()
	var found []string
	for _, target := range []string{"kubernetes", "terraform"} {
		entries, err := os.ReadDir(target)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, target+"/"+e.Name())
		}
	}
	slices.Sort(found)
	if got := library.Names(); !slices.Equal(got, found) {
		t.Errorf("Names() = %v, folders %v", got, found)
	}
}

// TestGet loads each policy alone under the guards, and all of them together.
func TestGet(t *testing.T) {
	t.Parallel()
	var all []rego.Bundle
	for _, name := range library.Names() {
		fsys, err := library.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		b := rego.Bundle{Name: name, FS: fsys}
		all = append(all, b)
		e, err := rego.New(t.Context(), rego.Config{Bundles: []rego.Bundle{b}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := e.Namespaces(); !slices.Equal(got, []string{library.Namespace(name)}) {
			t.Errorf("%s holds the namespaces %v", name, got)
		}
	}
	e, err := rego.New(t.Context(), rego.Config{Bundles: all})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(e.Namespaces()); got != len(all) {
		t.Errorf("%d namespaces of %d policies", got, len(all))
	}
	d := evaluate(t, e, map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p"},
		"spec": map[string]any{"hostPID": true, "containers": []any{map[string]any{"name": "c", "image": "nginx"}}},
	})
	if d.Allowed() || len(d.Results) < 5 {
		t.Errorf("a bad pod gave %v", d.Results)
	}
}

func TestGetUnknown(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "kubernetes", "lib/kubernetes", "kubernetes/../lib", "kubernetes/rbac/"} {
		if _, err := library.Get(name); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("Get(%q) = %v", name, err)
		}
	}
}

// TestGetHoldsNoMore checks that a policy brings no other policy along.
func TestGetHoldsNoMore(t *testing.T) {
	t.Parallel()
	fsys, err := library.Get("kubernetes/rbac")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"kubernetes/rbac/policy.rego", "lib/kubernetes/workload.rego"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := fs.ReadFile(fsys, "kubernetes/images/policy.rego"); err == nil {
		t.Error("another policy can be read")
	}
}

func evaluate(t *testing.T, e *rego.Evaluator, value any) policy.Decision {
	t.Helper()
	d, err := e.Evaluate(t.Context(), policy.Input{
		Stage: policy.StageRendered, Target: "kubernetes", Of: "sha256:1",
		Documents: []plan.Document{{Name: "a.yaml", Line: 1, Value: value}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
