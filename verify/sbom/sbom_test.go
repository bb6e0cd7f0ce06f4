package sbom

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/verify"
)

func TestParse(t *testing.T) {
	t.Parallel()
	spdx3 := `{"@context":"https://spdx.org/rdf/3.0.1/spdx-context.jsonld","@graph":[
		{"type":"CreationInfo","specVersion":"3.0.1"},{"type":"Tool","name":"syft"},{"type":"software_Package","name":"a"}]}`
	for name, c := range map[string]struct {
		format, in, err string
		components      int
	}{
		"spdx 2.3":        {verify.FormatSPDX, `{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","packages":[{"name":"a","SPDXID":"SPDXRef-a","downloadLocation":"NOASSERTION"}]}`, "", 1},
		"spdx 3":          {verify.FormatSPDX, spdx3, "", 1},
		"cyclonedx":       {verify.FormatCycloneDX, `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library","name":"a","components":[{"type":"library","name":"b"}]}]}`, "", 2},
		"spdx 1":          {verify.FormatSPDX, `{"spdxVersion":"SPDX-1.2"}`, "not an SPDX document", 0},
		"spdx 3 context":  {verify.FormatSPDX, `{"@context":"https://evil.example/","@graph":[]}`, "unknown @context", 0},
		"spdx 3 version":  {verify.FormatSPDX, strings.ReplaceAll(spdx3, `"specVersion":"3.0.1"`, `"x":1`), "specVersion", 0},
		"no package":      {verify.FormatSPDX, `{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT"}`, "lists no component", 0},
		"nameless":        {verify.FormatCycloneDX, `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library"}]}`, "no name", 0},
		"array":           {verify.FormatCycloneDX, `[]`, "not a JSON object", 0},
		"cut":             {verify.FormatCycloneDX, `{"bomFormat":`, "not JSON", 0},
		"deep":            {verify.FormatCycloneDX, `{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested deeper", 0},
		"wrong bomFormat": {verify.FormatCycloneDX, `{"bomFormat":"x","specVersion":"1.6"}`, "not a CycloneDX", 0},
	} {
		d, err := parse(c.format, []byte(c.in))
		if c.err == "" && (err != nil || d.components != c.components) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %v, want %q", name, err, c.err)
		}
	}
}

func TestFormatOf(t *testing.T) {
	t.Parallel()
	for typ, want := range map[string]string{
		PredicateSPDX: verify.FormatSPDX, PredicateSPDX + "/v2.3": verify.FormatSPDX, PredicateSPDX + "/v3": verify.FormatSPDX,
		PredicateCycloneDX: verify.FormatCycloneDX, PredicateCycloneDX + "/v1.6": verify.FormatCycloneDX,
		PredicateSPDX + "/v9": "", PredicateSPDX + "x": "", PredicateCycloneDX + "/v1.": "", PredicateCycloneDX + "/v2.0": "", "": "",
	} {
		if got, _, _ := formatOf(typ); got != want {
			t.Errorf("%q: %q, want %q", typ, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a"}]}`))
	f.Add([]byte(`{"spdxVersion":"SPDX-2.3","packages":[{"name":"a"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range []string{verify.FormatSPDX, verify.FormatCycloneDX} {
			if d, err := parse(format, b); err == nil && d.components == 0 {
				t.Error("an empty document was accepted")
			}
		}
	})
}
