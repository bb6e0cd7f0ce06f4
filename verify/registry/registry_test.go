package registry_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

const body = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// serve starts a registry. What it answers is an image manifest unless h says
// otherwise.
func serve(t *testing.T, h http.HandlerFunc) (host string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", manifestType)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func client(t *testing.T, hosts map[string]registry.Host) *registry.Client {
	t.Helper()
	c, err := registry.New(registry.Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func plain(t *testing.T, host string) *registry.Client {
	return client(t, map[string]registry.Host{host: {InsecureHTTP: true}})
}

func TestResolve(t *testing.T) {
	t.Parallel()
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/app/manifests/good":
			fmt.Fprint(w, body)
		case "/v2/app/manifests/lies":
			w.Header().Set("Docker-Content-Digest", digest.FromString("else").String())
			fmt.Fprint(w, body)
		case "/v2/app/manifests/absent":
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	c := plain(t, host)
	pinned := digest.FromString("x")
	for ref, want := range map[string]struct {
		digest digest.Digest
		kind   fault.Kind
	}{
		host + "/app:good":                           {digest: digest.FromString(body)},
		host + "/app@" + pinned.String():             {digest: pinned},
		host + "/app:1@" + pinned.String():           {digest: pinned},
		host + "/app:lies":                           {kind: fault.Transient},
		host + "/app:absent":                         {kind: fault.Waiting},
		host + "/app:broken":                         {kind: fault.Transient},
		host + "/App:1":                              {kind: fault.Invalid},
		host + "/app@sha256:12":                      {kind: fault.Invalid},
		host + "/app@md5:" + strings.Repeat("0", 32): {kind: fault.Invalid},
	} {
		got, err := c.Resolve(t.Context(), verify.Subject{Kind: verify.KindImage, Reference: ref})
		switch {
		case want.digest != "":
			if err != nil || got.Digest != want.digest || got.Name != host+"/app" {
				t.Errorf("%s: %+v, %v", ref, got, err)
			}
		case err == nil || fault.KindOf(err) != want.kind:
			t.Errorf("%s: %v (%v), want %v", ref, err, fault.KindOf(err), want.kind)
		}
	}
}

func TestContentIsChecked(t *testing.T) {
	t.Parallel()
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, digest.FromString("endless").String()) {
			chunk := make([]byte, 1<<20)
			for { // until the client has enough
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}
		fmt.Fprint(w, "something else")
	})
	c := plain(t, host)
	for _, want := range []string{"asked for", "endless"} {
		d := digest.FromString(want)
		if _, err := c.Blob(t.Context(), host+"/app", d); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("blob %q: %v", want, err)
		}
		if _, err := c.Manifest(t.Context(), host+"/app", d); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("manifest %q: %v", want, err)
		}
	}
}

func index(t *testing.T, n int) []byte {
	t.Helper()
	list := []any{}
	for i := range n {
		list = append(list, map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1, "digest": digest.FromString(fmt.Sprint(i)).String()})
	}
	b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	d := digest.FromString("image")
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    int
		kind    fault.Kind
		err     string
	}{
		"paged": {want: 5, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			if r.URL.Query().Get("page") == "" {
				w.Header().Set("Link", `<`+r.URL.Path+`?page=2>; rel="next"`)
				_, _ = w.Write(index(t, 2))
				return
			}
			_, _ = w.Write(index(t, 3))
		}},
		"fallback tag": {want: 2, handler: func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/manifests/sha256-"+d.Encoded()) {
				_, _ = w.Write(index(t, 2))
				return
			}
			w.WriteHeader(http.StatusNotFound)
		}},
		"none": {want: 0, handler: http.NotFound},
		"5xx is not none": {kind: fault.Transient, err: "503", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}},
		"5xx of the fallback is not none": {kind: fault.Transient, err: "500", handler: func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/referrers/") {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.WriteHeader(http.StatusInternalServerError)
		}},
		"missing page is not the end": {kind: fault.Transient, err: "missing", handler: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("page") != "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Link", `<`+r.URL.Path+`?page=2>; rel="next"`)
			_, _ = w.Write(index(t, 1))
		}},
		"circle": {kind: fault.Transient, err: "circle", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Link", `<`+r.URL.Path+`>; rel="next"`)
			_, _ = w.Write(index(t, 1))
		}},
		"page elsewhere": {kind: fault.Denied, err: "elsewhere", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Link", `<http://other.example/v2/app/referrers/x>; rel="next"`)
			_, _ = w.Write(index(t, 1))
		}},
		"too many": {kind: fault.Denied, err: "more than", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			_, _ = w.Write(index(t, registry.MaxReferrers+1))
		}},
		"a login page": {kind: fault.Transient, err: "content type", handler: func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "<html>")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := serve(t, c.handler)
			got, err := plain(t, host).Referrers(t.Context(), host+"/app", d)
			if c.err == "" {
				if err != nil || len(got) != c.want {
					t.Errorf("%d, %v", len(got), err)
				}
				return
			}
			if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v (%v), want %v %q", err, fault.KindOf(err), c.kind, c.err)
			}
		})
	}
}

func secret() (string, error) { return "hunter22", nil }

func TestRedirectGetsNoCredentials(t *testing.T) {
	t.Parallel()
	var leaked atomic.Bool
	blob := "content"
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		fmt.Fprint(w, blob)
	})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, "http://"+other+"/blob", http.StatusTemporaryRedirect)
	})
	c := client(t, map[string]registry.Host{
		host:  {InsecureHTTP: true, Username: "me", Password: secret},
		other: {InsecureHTTP: true, Username: "me", Password: secret},
	})
	b, err := c.Blob(t.Context(), host+"/app", digest.FromString(blob))
	if err != nil || string(b) != blob {
		t.Fatalf("%q, %v", b, err)
	}
	if leaked.Load() {
		t.Error("the redirect's target got the credential")
	}
	// The same redirect to a host that is not marked for plain HTTP.
	c = client(t, map[string]registry.Host{host: {InsecureHTTP: true, Username: "me", Password: secret}})
	if _, err := c.Blob(t.Context(), host+"/app", digest.FromString(blob)); fault.KindOf(err) != fault.Denied {
		t.Errorf("redirect to plain HTTP: %v", err)
	}
}

func TestTokenRealm(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	realm := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if u, p, _ := r.BasicAuth(); u != "me" || p != "hunter22" || r.URL.Query().Get("scope") != "repository:app:pull" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, `{"token":"t0ken"}`)
	})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t0ken" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+realm+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, body)
	})
	hosts := map[string]registry.Host{
		host:  {InsecureHTTP: true, Username: "me", Password: secret},
		realm: {InsecureHTTP: true},
	}
	_, err := client(t, hosts).Tag(t.Context(), host+"/app", "1")
	if fault.KindOf(err) != fault.Denied || asked.Load() != 0 {
		t.Errorf("a realm on another host: %v, asked %d times", err, asked.Load())
	}
	h := hosts[host]
	h.Realms = []string{realm}
	hosts[host] = h
	if _, err := client(t, hosts).Tag(t.Context(), host+"/app", "1"); err != nil {
		t.Errorf("a listed realm: %v", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", manifestType)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	if _, err := client(t, nil).Tag(t.Context(), host+"/app", "1"); fault.KindOf(err) != fault.Transient {
		t.Errorf("an unknown authority: %v", err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if _, err := client(t, map[string]registry.Host{host: {CA: ca}}).Tag(t.Context(), host+"/app", "1"); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	t.Parallel()
	host := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	if _, err := client(t, nil).Tag(t.Context(), host+"/app", "1"); err == nil || errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
