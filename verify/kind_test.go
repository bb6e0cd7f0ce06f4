package verify

import (
	"strings"
	"testing"
)

// TestKinds: the table is what rules may be about.
func TestKinds(t *testing.T) {
	t.Parallel()
	for _, name := range []string{KindImage, KindArtifact, KindPolicy, KindChart} {
		if k, ok := KindOf(name); !ok || k.Name != name || k.What == "" || (k.Config == "") != (k.Layer == "") {
			t.Errorf("%s: %+v", name, k)
		}
	}
	if _, ok := KindOf("function"); ok || len(KindNames()) != 4 {
		t.Errorf("the kinds are %v", KindNames())
	}
}

func FuzzChartName(f *testing.F) {
	for _, seed := range []string{`{"name":"shop","version":"1.2.3+build.7"}`, `{"name":"../x","version":"1"}`, `{"name":1}`, `[]`, ``, `{"name":"shop","version":"1","version":"2"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		name, version, err := chartName(config)
		if err == nil && (name == "" || version == "" || strings.ContainsAny(name+version, "/@: \n")) {
			t.Errorf("%q, %q", name, version)
		}
	})
}
