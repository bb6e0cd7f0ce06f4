package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

func TestPlatforms(t *testing.T) {
	t.Parallel()
	const indexType, imageType = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	entry := func(mt, platform string) string {
		os, arch, _ := strings.Cut(platform, "/")
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":2,"platform":{"os":%q,"architecture":%q}}`, mt, digest.FromString(platform), os, arch)
	}
	index := func(entries ...string) string {
		return `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[` + strings.Join(entries, ",") + `]}`
	}
	amd, arm := entry(imageType, "linux/amd64"), entry(imageType, "linux/arm64")
	for name, c := range map[string]struct {
		manifest string
		want     string // platforms
		err      string
	}{
		"an image":                {manifest: `{"schemaVersion":2,"mediaType":"` + imageType + `","config":{},"layers":[]}`},
		"an index":                {manifest: index(amd, arm), want: "linux/amd64 linux/arm64"},
		"an index without type":   {manifest: `{"schemaVersion":2,"manifests":[` + amd + `]}`, want: "linux/amd64"},
		"attestations of a build": {manifest: index(amd, entry(imageType, "unknown/unknown")), want: "linux/amd64"},
		"an index in an index":    {manifest: index(amd, entry(indexType, "linux/arm64")), err: "an index inside an index"},
		"endless":                 {manifest: index(strings.Split(strings.TrimSuffix(strings.Repeat(amd+"\n", 129), "\n"), "\n")...), err: "more than 128 manifests"},
		"no manifest":             {manifest: `"x"`, err: "not a manifest"},
	} {
		host := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, c.manifest) })
		s := verify.Subject{Kind: verify.KindImage, Name: host + "/app", Digest: digest.FromString(c.manifest)}
		list, err := plain(t, host).Platforms(t.Context(), s)
		if (err == nil) != (c.err == "") || err != nil && (fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, p := range list {
			if p.Subject.Name != s.Name || p.Subject.Digest != digest.FromString(p.Name) {
				t.Errorf("%s: %s is %s", name, p.Name, p.Subject.Pinned())
			}
			got = append(got, p.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestExists(t *testing.T) {
	t.Parallel()
	there, other := digest.FromString("there"), digest.FromString("other")
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, there.String()) && !strings.HasSuffix(r.URL.Path, other.String()) {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Docker-Content-Digest", there.String())
	})
	for d, ok := range map[digest.Digest]bool{there: true, other: false, digest.FromString("absent"): false} {
		err := plain(t, host).Exists(t.Context(), verify.Subject{Name: host + "/app", Digest: d})
		if (err == nil) != ok || !ok && fault.KindOf(err) != fault.Transient {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// TestSingle: what a manifest is, it says itself.
func TestSingle(t *testing.T) {
	t.Parallel()
	for manifest, want := range map[string]string{
		`{"schemaVersion":2,"config":{},"layers":[]}`:                                                       "",
		`{"schemaVersion":2,"manifests":[]}`:                                                                "an index inside an index",
		`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`:                                        "not a manifest",
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":{},"layers":[]}`: "and is not",
	} {
		host := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, manifest) })
		err := plain(t, host).Single(t.Context(), verify.Subject{Name: host + "/app", Digest: digest.FromString(manifest)})
		if (err == nil) != (want == "") || err != nil && (fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", manifest, err)
		}
	}
}
