package terraform

import (
	"archive/zip"
	"bytes"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// A saved plan holds exactly the configuration that was judged, of every module.
func TestSameConfiguration(t *testing.T) {
	t.Parallel()
	cfg, err := load(t.Context(), fstest.MapFS{
		"infra/main.tf":    {Data: []byte("module \"a\" {\n  source = \"../m\"\n}\n")},
		"infra/x.tfvars":   {Data: []byte("x = 1\n")},
		"infra/.hidden.tf": {Data: []byte("{")},
		"m/m.tf":           {Data: []byte("module \"b\" {\n  source = \"./n\"\n}\n")},
		"m/n/n.tf.json":    {Data: []byte("{}")},
	}, "infra", Limits{}.withDefaults(), Protected{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	own := map[string][]byte{"infra/" + overrideName: []byte(`{"terraform":{}}`), "infra/" + variablesName: []byte("{}")}
	const modules = `[{"Key":"","Dir":"."},{"Key":"a","Source":"../m","Dir":"../m"},{"Key":"a.b","Source":"./n","Dir":"../m/n"}]`
	good := map[string]string{
		"tfplan": "x", "tfstate": "{}", ".terraform.lock.hcl": "", "tfconfig/modules.json": modules,
		"tfconfig/m-/main.tf": string(cfg.files["infra/main.tf"]), "tfconfig/m-/" + overrideName: `{"terraform":{}}`,
		"tfconfig/m-a/m.tf": string(cfg.files["m/m.tf"]), "tfconfig/m-a.b/n.tf.json": "{}",
	}
	saved := func(change map[string]string, twice ...string) []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for name, content := range good {
			if c, ok := change[name]; ok {
				content = c
			}
			if content == "-" {
				continue
			}
			for range 1 + strings.Count(strings.Join(twice, " "), name) {
				w, err := z.Create(name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for name, content := range change {
			if _, there := good[name]; !there {
				w, err := z.Create(name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if err := cfg.sameConfiguration(saved(nil), own); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"no zip":             []byte("x"),
		"a file":             saved(map[string]string{"tfconfig/m-/main.tf": "locals {}\n"}),
		"longer":             saved(map[string]string{"tfconfig/m-/main.tf": good["tfconfig/m-/main.tf"] + "locals {}\n"}),
		"a file of a module": saved(map[string]string{"tfconfig/m-a.b/n.tf.json": "{ }"}),
		"no file":            saved(map[string]string{"tfconfig/m-a/m.tf": "-"}),
		"no override":        saved(map[string]string{"tfconfig/m-/" + overrideName: "-"}),
		"another override":   saved(map[string]string{"tfconfig/m-/" + overrideName: "{}"}),
		"one more":           saved(map[string]string{"tfconfig/m-/evil.tf": ""}),
		"one more module":    saved(map[string]string{"tfconfig/m-c/evil.tf": ""}),
		"no modules":         saved(map[string]string{"tfconfig/modules.json": "-"}),
		"fewer modules":      saved(map[string]string{"tfconfig/modules.json": `[{"Key":"","Dir":"."}]`}),
		"another folder":     saved(map[string]string{"tfconfig/modules.json": strings.Replace(modules, "../m/n", "../m", 1)}),
		"another key":        saved(map[string]string{"tfconfig/modules.json": strings.Replace(modules, "a.b", "a.c", 1)}),
		"nonsense":           saved(map[string]string{"tfconfig/modules.json": "["}),
		"a file twice":       saved(nil, "tfconfig/m-/main.tf"),
	} {
		if err := cfg.sameConfiguration(b, own); fault.KindOf(err) != fault.Denied || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
