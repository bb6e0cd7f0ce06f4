package registry_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// TestTagIsNoPage is about answers that have no digest to be compared with.
func TestTagIsNoPage(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"a login page": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, body)
		},
		"no type": func(w http.ResponseWriter, _ *http.Request) { w.Header()["Content-Type"] = nil; fmt.Fprint(w, body) },
		"a blob's type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, body)
		},
		"half of it": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body[:20]) },
		"nothing":    func(http.ResponseWriter, *http.Request) {},
	} {
		host := serve(t, answer)
		if _, err := plain(t, host).Tag(t.Context(), host+"/app", "1"); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("%s: tag: %v", name, err)
		}
		if _, err := plain(t, host).Resolve(t.Context(), verify.Subject{Reference: host + "/app:1"}); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("%s: resolve: %v", name, err)
		}
	}
}

// TestClass21_digest_served_differently is about content that changes between the moment
// that it is verified and the moment that it is fetched again (Crossplane
// GHSA-wfqx-gjrf-g28r): a digest names one content, always.
func TestClass21_digest_served_differently(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) == 1 {
			fmt.Fprint(w, body)
			return
		}
		fmt.Fprint(w, strings.Replace(body, "2", "3", 1))
	})
	d := digest.FromString(body)
	first := plain(t, host)
	for range 2 { // the second is not asked for
		if b, err := first.Manifest(t.Context(), host+"/app", d); err != nil || string(b) != body {
			t.Errorf("%q, %v", b, err)
		}
	}
	second := plain(t, host)
	if b, err := second.Manifest(t.Context(), host+"/app", d); err == nil || b != nil {
		t.Errorf("other content under the same digest: %q", b)
	}
	if b, err := second.Blob(t.Context(), host+"/app", d); err == nil || b != nil {
		t.Errorf("other content under the same digest: %q", b)
	}
	if requests.Load() != 3 {
		t.Errorf("%d requests", requests.Load())
	}
}

func TestPeek(t *testing.T) {
	t.Parallel()
	var gets atomic.Int32
	d := digest.FromString(body)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			gets.Add(1)
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/absent"):
			w.WriteHeader(http.StatusNotFound)
			return
		case strings.HasSuffix(r.URL.Path, "/down"):
			w.WriteHeader(http.StatusBadGateway)
			return
		case strings.HasSuffix(r.URL.Path, "/odd"):
			w.Header().Set("Docker-Content-Digest", "md5:1234")
		case strings.HasSuffix(r.URL.Path, "/1"):
			w.Header().Set("Docker-Content-Digest", d.String())
		}
		fmt.Fprint(w, body)
	})
	c := plain(t, host)
	for tag, want := range map[string]struct {
		kind fault.Kind
		gets int32
	}{"1": {}, "silent": {gets: 1}, "absent": {kind: fault.Waiting}, "down": {kind: fault.Transient}} {
		gets.Store(0)
		got, err := c.Peek(t.Context(), verify.Subject{Reference: host + "/app:" + tag})
		if want.kind == 0 && (err != nil || got.Digest != d || got.Name != host+"/app") || want.kind != 0 && fault.KindOf(err) != want.kind {
			t.Errorf("%s: %+v, %v", tag, got, err)
		}
		if gets.Load() != want.gets {
			t.Errorf("%s: %d manifests were pulled", tag, gets.Load())
		}
	}
	gets.Store(0)
	pinned := verify.Subject{Reference: host + "/app@" + d.String()}
	if got, err := c.Peek(t.Context(), pinned); err != nil || got.Digest != d || gets.Load() != 0 {
		t.Errorf("a digest: %+v, %v", got, err)
	}
	if _, err := c.PeekTag(t.Context(), host+"/app", "absent"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("an absent tag: %v", err)
	}
	if got, err := c.PeekTag(t.Context(), host+"/app", "odd"); err != nil || got != d {
		t.Errorf("a digest of a kind that we cannot check: %s, %v", got, err)
	}
}

func TestPeekReferrers(t *testing.T) {
	t.Parallel()
	d := digest.FromString("image")
	list := index(t, 2)
	var reversed struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		Manifests     []any  `json:"manifests"`
	}
	if err := json.Unmarshal(list, &reversed); err != nil {
		t.Fatal(err)
	}
	reversed.Manifests[0], reversed.Manifests[1] = reversed.Manifests[1], reversed.Manifests[0]
	other, err := json.Marshal(reversed)
	if err != nil {
		t.Fatal(err)
	}
	peek := func(answer func(http.ResponseWriter, *http.Request)) (digest.Digest, error) {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			answer(w, r)
		})
		return plain(t, host).PeekReferrers(t.Context(), host+"/app", d)
	}
	api := func(b []byte) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	tag := func(value string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/referrers/") || value == "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Docker-Content-Digest", digest.FromString(value).String())
		}
	}
	var seen []digest.Digest
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"two": api(list), "two in another order": api(other), "three": api(index(t, 3)), "none": api(index(t, 0)),
		"no tag": tag(""), "a tag": tag("a"), "another tag": tag("b"),
	} {
		got, err := peek(answer)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		seen = append(seen, got)
	}
	distinct := map[digest.Digest]bool{}
	for _, d := range seen {
		distinct[d] = true
	}
	if len(distinct) != 5 { // the order does not count, nor how nothing is said
		t.Errorf("%d different fingerprints: %v", len(distinct), seen)
	}
	for _, code := range []int{401, 403, 429, 500} {
		if _, err := peek(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("%d: %v", code, err)
		}
	}
}

// tokens is a registry whose tokens work for so many requests.
func tokens(t *testing.T, uses int32, asked, sent *atomic.Int32) (host string) {
	var left atomic.Int32
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		sent.Add(1)
		if r.URL.Path == "/token" {
			left.Store(uses)
			fmt.Fprintf(w, `{"token":"t%d"}`, asked.Add(1))
			return
		}
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", asked.Load()) || left.Add(-1) < 0 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, body)
	})
}

func TestTokenEndsEarly(t *testing.T) {
	t.Parallel()
	var asked, sent atomic.Int32
	host := tokens(t, 2, &asked, &sent)
	c := plain(t, host)
	for i := range 5 {
		if _, err := c.Tag(t.Context(), host+"/app", "1"); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	if asked.Load() != 3 { // for 1 and 2, 3 and 4, 5
		t.Errorf("asked for %d tokens", asked.Load())
	}
	// A registry that takes none of its own tokens is asked once more, not for ever.
	asked.Store(0)
	sent.Store(0)
	host = tokens(t, 0, &asked, &sent)
	_, err := plain(t, host).Tag(t.Context(), host+"/app", "1")
	if fault.KindOf(err) != fault.Transient || err == nil || errors.Is(err, registry.ErrNotFound) || asked.Load() != 1 || sent.Load() != 3 {
		t.Errorf("%v after %d tokens and %d requests", err, asked.Load(), sent.Load())
	}
}

// TestClass11_secrets_in_error_text has every failure that we can think of happen to a
// client with a password, and looks for it, and for signatures in URLs, in what
// the errors say (Argo CD CVE-2025-23216, Flux CVE-2024-31216).
func TestClass11_secrets_in_error_text(t *testing.T) {
	t.Parallel()
	const signed = "?X-Amz-Signature=5ca1ab1e&sig=5ca1ab1e"
	basic := base64.StdEncoding.EncodeToString([]byte("me:hunter22"))
	echo := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", "Basic realm="+r.Header.Get("Authorization"))
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(buf, "HTTP/1.1 %d said %s\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", code, r.Header.Get("Authorization"))
			_ = buf.Flush()
			_ = conn.Close()
		}
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) }
	}
	realm := func(format string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(http.StatusTeapot)
				fmt.Fprint(w, r.Header.Get("Authorization"))
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(format, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"401 that echoes": echo(401), "403 that echoes": echo(403), "500 that echoes": echo(500), "299 that echoes": echo(299),
		"redirect to the dead":           redirect(dead.URL + "/blob" + signed),
		"redirect to plain HTTP":         redirect("http://elsewhere.invalid/blob" + signed),
		"redirect with a password":       redirect("https://me:hunter22@elsewhere.invalid/"),
		"redirect in a circle":           func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+signed, http.StatusFound) },
		"realm elsewhere":                realm(`Bearer realm="https://elsewhere.invalid/token` + signed + `&x=%s"`),
		"realm with a password":          realm(`Bearer realm="https://me:hunter22@%s/token"`),
		"realm that refuses":             realm(`Bearer realm="http://%s/token` + signed + `"`),
		"realm that is no URL":           realm(`Bearer realm="http://%%zz` + signed + `%s"`),
		"a page of the list elsewhere":   func(w http.ResponseWriter, _ *http.Request) { link(w, "https://elsewhere.invalid/"+signed, t) },
		"a page of the list is no URL":   func(w http.ResponseWriter, _ *http.Request) { link(w, "https://%zz/"+signed, t) },
		"content that echoes":            func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Authorization")) },
		"a type that echoes in the list": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "x/y") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" && !strings.Contains(name, "realm") {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				answer(w, r)
			})
			u, err := url.Parse(dead.URL)
			if err != nil {
				t.Fatal(err)
			}
			c := client(t, map[string]registry.Host{
				host: {InsecureHTTP: true, Username: "me", Password: secret}, u.Host: {InsecureHTTP: true},
			})
			d := digest.FromString("x")
			_, tagErr := c.Tag(t.Context(), host+"/app", "1")
			_, blobErr := c.Blob(t.Context(), host+"/app", d)
			_, listErr := c.Referrers(t.Context(), host+"/app", d)
			_, peekErr := c.PeekTag(t.Context(), host+"/app", "1")
			if tagErr == nil && blobErr == nil && listErr == nil {
				t.Error("nothing failed")
			}
			for _, err := range []error{tagErr, blobErr, listErr, peekErr} {
				text := fmt.Sprint(err) + fault.HintOf(err)
				for _, s := range []string{"hunter22", basic, "5ca1ab1e", "Signature"} {
					if strings.Contains(text, s) {
						t.Errorf("%q is in %s", s, text)
					}
				}
			}
		})
	}
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(`{"auths":{"x":{"auth":"aHVudGVyMjI"},"hunter22":}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
	})
	c, err := registry.New(registry.Config{DockerConfig: file, Hosts: map[string]registry.Host{host: {InsecureHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tag(t.Context(), host+"/app", "1"); err == nil || strings.Contains(err.Error(), "hunter22") || strings.Contains(err.Error(), "aHVudGVyMjI") {
		t.Errorf("a broken Docker configuration: %v", err)
	}
}

func link(w http.ResponseWriter, target string, t *testing.T) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	w.Header().Set("Link", "<"+target+`>; rel="next"`)
	_, _ = w.Write(index(t, 1))
}

// TestClass14_credentials_to_another_host is about a registry that sends the client
// elsewhere (Helm CVE-2021-32690, Ratify CVE-2025-27403): nobody but the host
// that a credential is for ever sees it, whatever the request.
func TestClass14_credentials_to_another_host(t *testing.T) {
	t.Parallel()
	var leaked atomic.Value
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(r.Method + " " + r.URL.Path + ": " + a)
		}
		w.WriteHeader(http.StatusNotFound)
	})
	d := digest.FromString("x")
	var back atomic.Bool
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/back":
			back.Store(r.Header.Get("Authorization") != "")
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			http.Redirect(w, r, "http://"+other+r.URL.Path, http.StatusTemporaryRedirect)
		}
	})
	c := client(t, map[string]registry.Host{
		host: {InsecureHTTP: true, Username: "me", Password: secret}, other: {InsecureHTTP: true, Username: "you", Password: secret},
	})
	_, _ = c.Tag(t.Context(), host+"/app", "1")
	_, _ = c.Manifest(t.Context(), host+"/app", d)
	_, _ = c.Blob(t.Context(), host+"/app", d)
	_, _ = c.Referrers(t.Context(), host+"/app", d)
	_, _ = c.PeekTag(t.Context(), host+"/app", "1")
	_, _ = c.PeekReferrers(t.Context(), host+"/app", d)
	_, _ = c.Resolve(t.Context(), verify.Subject{Reference: host + "/app:1"})
	if got := leaked.Load(); got != nil {
		t.Errorf("another host got the credential: %v", got)
	}
	// Nor does it come back once another host was in between, who chose where to.
	between := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+host+"/back", http.StatusTemporaryRedirect)
	})
	start := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+between+"/", http.StatusTemporaryRedirect)
	})
	c = client(t, map[string]registry.Host{
		host: {InsecureHTTP: true, Username: "me", Password: secret}, between: {InsecureHTTP: true}, start: {InsecureHTTP: true, Username: "me", Password: secret},
	})
	_, _ = c.Blob(t.Context(), start+"/app", d)
	if back.Load() {
		t.Error("a redirect from elsewhere got the credential of the host that it named")
	}
}
