package registry

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

func FuzzHeaders(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="s\"x"`, `</v2/a/referrers/b?n=1>; rel="next"`)
	f.Add(`Basic`, `<>;rel=next,<`)
	f.Fuzz(func(t *testing.T, challenge, link string) {
		if scheme, params := pick([]string{challenge}); scheme == "" && params != nil {
			t.Error("parameters without a scheme")
		}
		parseLink(link)
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:00"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := parseIndex(name.Repository{}, b); err == nil && len(list) > MaxReferrers {
			t.Error("too long")
		}
	})
}

func FuzzTags(f *testing.F) {
	f.Add([]byte(`{"name":"acme/desired-state","tags":["1.0.0","latest"]}`))
	f.Add([]byte(`{"tags":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tags, err := parseTags(b); err != nil && tags != nil {
			t.Error("tags with an error")
		}
	})
}
