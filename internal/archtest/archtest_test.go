package archtest

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-dev/holdfast/"

// allowed is the import table: what of ours each package may import. A package
// that is not listed fails the test, so that a new one is placed on purpose.
// "*" is anything.
var allowed = map[string]string{
	"cmd/holdfast":      "*",
	"cmd/holdfast-demo": "*",

	"sources":             "internal/fault",
	"sources/git":         "sources internal/fault",
	"sources/oci":         "sources verify/strictjson internal/durable internal/fault",
	"sources/sourcestest": "sources",

	"verify":            "internal/fault",
	"verify/commit":     "verify sources internal/fault",
	"verify/registry":   "verify internal/fault",
	"verify/attest":     "verify internal/fault",
	"verify/sigstore":   "verify verify/intoto verify/registry internal/fault",
	"verify/notation":   "verify verify/registry verify/strictjson internal/fault",
	"verify/sbom":       "verify verify/intoto verify/sigstore internal/fault",
	"verify/intoto":     "verify/strictjson",
	"verify/strictjson": "",
	"verify/provenance": "verify verify/intoto",
	"verify/vsa":        "verify verify/intoto",
	"verify/vuln":       "verify verify/intoto",
	"verify/summary":    "verify verify/registry verify/vsa internal/fault",
	"verify/testresult": "verify verify/intoto",
	"verify/release":    "verify verify/intoto",
	"verify/scai":       "verify verify/intoto",
	"verify/predicate":  "verify verify/intoto internal/opa",
	"verify/verifytest": "verify verify/registry verify/sigstore internal/fault",

	"targets/plan":        "sources",
	"policy":              "verify targets/plan internal/fault",
	"policy/rego":         "policy verify targets/plan internal/fault internal/opa",
	"policy/library":      "internal/fault",
	"policy/gate":         "policy verify targets/plan ledger internal/fault",
	"targets":             "sources verify targets/plan policy/gate",
	"targets/kubernetes":  "targets targets/plan policy/gate sources verify internal/daemon internal/fault internal/mask",
	"targets/terraform":   "targets targets/plan policy/gate sources verify internal/box internal/daemon internal/egress internal/fault internal/mask",
	"targets/targetstest": "targets targets/plan policy policy/gate sources verify ledger internal/fault",

	"drift":       "targets targets/plan sources",
	"ledger":      "internal/durable internal/fault",
	"ledger/fsck": "",
	"reconciler":  "sources verify policy policy/gate targets targets/plan drift ledger internal/durable internal/fault",

	"internal/daemon":   "",
	"internal/durable":  "",
	"internal/fault":    "",
	"internal/mask":     "",
	"internal/box":      "internal/fault",
	"internal/config":   "internal/durable internal/egress internal/fault targets/plan",
	"internal/egress":   "internal/fault",
	"internal/sandbox":  "internal/fault",
	"internal/archtest": "",
	"internal/image":    "",
	"internal/testenv":  "",
	"internal/world":    "internal/box internal/testenv verify/verifytest reconciler targets/terraform",
	"internal/demo":     "internal/testenv internal/world examples reconciler",
	"internal/bench":    "internal/testenv internal/world internal/mask reconciler sources targets/terraform",
	"internal/soak":     "internal/testenv internal/world ledger reconciler targets targets/plan",
	"internal/notify":   "internal/fault",
	"internal/opa":      "",
	"internal/forge":    "internal/fault internal/httpd",
	"internal/httpd":    "",
	"examples":          "",

	"internal/telemetry": "ledger internal/fault",
}

// testOnly may be imported by tests of any package.
var testOnly = []string{"internal/testenv", "internal/world", "examples", "sources/sourcestest", "verify/verifytest", "targets/targetstest", "ledger/fsck"}

type pkg struct {
	ImportPath, Dir                             string
	GoFiles, Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		list, ok := allowed[name]
		if !ok {
			t.Errorf("%s is not in the import table", name)
			continue
		}
		if list == "*" {
			continue
		}
		may := strings.Fields(list)
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s; the table allows %q", name, ours, list)
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			ours, ok := strings.CutPrefix(imp, module)
			if !ok || ours == name || slices.Contains(may, ours) || slices.Contains(testOnly, ours) {
				continue
			}
			if strings.HasPrefix(ours, "cmd/") || ours == "reconciler" {
				t.Errorf("the tests of %s import %s", name, ours)
			}
		}
	}
}

// TestNoTestPartsInTheBinary keeps the throwaway certificate authority and the
// test bed out of the program that people run.
func TestNoTestPartsInTheBinary(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"cmd/holdfast").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		ours := strings.TrimPrefix(dep, module)
		if slices.Contains([]string{"internal/testenv", "internal/demo", "internal/bench", "internal/soak", "internal/world", "verify/verifytest", "targets/targetstest", "sources/sourcestest"}, ours) ||
			strings.HasSuffix(dep, "sigstore-go/pkg/testing/ca") {
			t.Errorf("cmd/holdfast links %s", dep)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(strings.TrimPrefix(p.ImportPath, module), "/") {
			if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "pkg"}, part) {
				t.Errorf("%s: %q says nothing about what is in it", p.ImportPath, part)
			}
		}
	}
}

// TestDocs wants one doc comment for each package, of a length that can say
// what it owns, guarantees and refuses.
func TestDocs(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		var docs []string
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				docs = append(docs, file.Doc.Text())
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments, want 1", p.ImportPath, len(docs))
			continue
		}
		if len(docs[0]) < 120 || !strings.Contains(docs[0], "refuse") {
			t.Errorf("%s: the package comment does not say what it owns, guarantees and refuses", p.ImportPath)
		}
	}
}
