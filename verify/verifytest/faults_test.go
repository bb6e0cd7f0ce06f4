package verifytest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

func must[V any](v V, err error) func(t testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// lying stands in front of a registry and answers in its place where lie does.
func lying(t *testing.T, target string, lie func(http.ResponseWriter, *http.Request) bool) (host string) {
	t.Helper()
	u := must(url.Parse(target))(t)
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // clients give up once one request failed
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !lie(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// set returns the daemon's verifiers over the registry at host, which wait an
// hour for what is missing. The resolver may be replaced.
func set(t *testing.T, host string, pem []byte, resolver func(*registry.Client) verify.Resolver) *verify.Set {
	t.Helper()
	client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{host: {InsecureHTTP: true}}}))(t)
	store := sigstore.NewStore(client)
	conf := verify.Config{
		Resolver: client, Revocations: new(verify.Revocations), Grace: func(string) time.Duration { return time.Hour },
		Rules: []verify.Rule{{
			Name: "r", Kind: verify.KindImage, Repositories: []string{"**"},
			Signers: []verify.Signer{{Name: "release", Key: &verify.Key{PEM: pem}, Unlogged: true}},
			Require: []verify.Requirement{
				{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}},
				{SBOM: &verify.SBOMRequirement{}, Signers: []string{"release"}},
			},
		}},
	}
	if resolver != nil {
		conf.Resolver = resolver(client)
	}
	return must(verify.NewSet(conf, attest.Factory([]attest.Source{sigstore.Source(store)}, sbom.New)))(t)
}

func images(refs ...string) (out []verify.Subject) {
	for _, ref := range refs {
		out = append(out, verify.Subject{Kind: verify.KindImage, Reference: ref})
	}
	return out
}

// TestEveryRegistryFailureIsTransient breaks each kind of request in each way.
// None of it may look like a lack of evidence, nor like evidence that is wrong.
func TestEveryRegistryFailureIsTransient(t *testing.T) {
	t.Parallel()
	a := must(verifytest.NewAuthority())(t)
	pem := must(a.Key("release"))(t)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	faults := map[string]http.HandlerFunc{
		"401": status(http.StatusUnauthorized), "403": status(http.StatusForbidden), "429": status(http.StatusTooManyRequests),
		"500": status(http.StatusInternalServerError), "503": status(http.StatusServiceUnavailable), "no content": status(http.StatusNoContent),
		"a login page": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><body>Sign in</body></html>") },
		"an empty answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"schemaVersion":2,`)
		},
		"cut without a length": func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprint(buf, "HTTP/1.0 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\r\n{\"schemaVersion\":2,")
			_ = buf.Flush()
			_ = conn.Close()
		},
		"an error in JSON": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS"}]}`)
		},
		"another digest in the header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			fmt.Fprint(w, `{"schemaVersion":2}`)
		},
	}
	for kind, referrers := range map[string]bool{"referrers API": true, "referrers tag": false} {
		reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: referrers}))(t)
		t.Cleanup(func() { _ = reg.Close() })
		push := func(repo string) (pinned string) {
			return reg.Host + "/" + repo + "@" + must(verifytest.PushImage(t.Context(), reg.Host+"/"+repo+":1", verifytest.ImageOptions{}))(t).String()
		}
		good := push("signed")
		push("unsigned")
		for _, layout := range []verifytest.Layout{verifytest.Referrers, verifytest.Legacy} {
			o := verifytest.SignOptions{Key: "release", Layout: layout}
			must(0, errors.Join(a.Sign(t.Context(), good, o), a.Attest(t.Context(), good, "https://spdx.dev/Document", verifytest.SPDX("x"), o)))(t)
		}
		requests := map[string]func(path string) bool{
			"the tag":      func(p string) bool { return strings.HasSuffix(p, "/manifests/1") },
			"the list":     func(p string) bool { return strings.Contains(p, "/referrers/") },
			"the list tag": func(p string) bool { return strings.Contains(p, "/manifests/sha256-") && !strings.Contains(p, ".") },
			".sig":         func(p string) bool { return strings.HasSuffix(p, ".sig") },
			".att":         func(p string) bool { return strings.HasSuffix(p, ".att") },
			"a blob":       func(p string) bool { return strings.Contains(p, "/blobs/") },
			"a manifest":   func(p string) bool { return strings.Contains(p, "/manifests/sha256:") },
		}
		for request, match := range requests {
			for name, answer := range faults {
				t.Run(kind+"/"+request+"/"+name, func(t *testing.T) {
					t.Parallel()
					for _, repo := range []string{"/signed:1", "/unsigned:1"} {
						var hits atomic.Int32
						host := lying(t, reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
							if !match(r.URL.Path) {
								return false
							}
							hits.Add(1)
							answer(w, r)
							return true
						})
						_, _, err := set(t, host, pem, nil).Verify(t.Context(), "e", images(host+repo))
						if hits.Load() == 0 {
							continue // it never asks for that
						}
						if err == nil || fault.KindOf(err) != fault.Transient {
							t.Errorf("%s: %v (%v)", repo, err, fault.KindOf(err))
						}
					}
				})
			}
		}
		// What the registry lists and does not have, the image itself included.
		for _, request := range []string{"a blob", "a manifest"} {
			host := lying(t, reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
				if requests[request](r.URL.Path) {
					w.WriteHeader(http.StatusNotFound)
					return true
				}
				return false
			})
			for repo, concerned := range map[string]bool{"/signed:1": true, "/unsigned:1": request == "a manifest"} {
				_, _, err := set(t, host, pem, nil).Verify(t.Context(), "e", images(host+repo))
				if concerned && (err == nil || fault.KindOf(err) != fault.Transient) {
					t.Errorf("%s, 404 for %s%s: %v (%v)", kind, request, repo, err, fault.KindOf(err))
				}
			}
		}
		// And nothing is broken: one is accepted, one waited for.
		if _, _, err := set(t, reg.Host, pem, nil).Verify(t.Context(), "e", images(reg.Host+"/signed:1")); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if _, _, err := set(t, reg.Host, pem, nil).Verify(t.Context(), "e", images(reg.Host+"/unsigned:1")); fault.KindOf(err) != fault.Waiting {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// moving lets a tag move right after it was resolved.
type moving struct {
	*registry.Client
	move func()
}

func (m moving) Resolve(ctx context.Context, s verify.Subject) (verify.Subject, error) {
	s, err := m.Client.Resolve(ctx, s)
	m.move()
	return s, err
}

// TestClass21_verify_then_fetch is about tags that move between the moment that
// they are resolved and the moment that something is fetched (Kyverno
// CVE-2022-47633, Crossplane GHSA-mf7q-r4rv-jv94): what was verified is what is
// pinned, whichever way the tag moved.
func TestClass21_verify_then_fetch(t *testing.T) {
	t.Parallel()
	reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(t)
	t.Cleanup(func() { _ = reg.Close() })
	a := must(verifytest.NewAuthority())(t)
	pem := must(a.Key("release"))(t)
	sign := func(pinned string) {
		o := verifytest.SignOptions{Key: "release"}
		must(0, errors.Join(a.Sign(t.Context(), pinned, o), a.Attest(t.Context(), pinned, "https://spdx.dev/Document", verifytest.SPDX("x"), o)))(t)
	}
	push := func(tag string) digest.Digest {
		return must(verifytest.PushImage(t.Context(), tag, verifytest.ImageOptions{}))(t)
	}

	good := reg.Host + "/good"
	first := push(good + ":1")
	sign(good + "@" + first.String())
	s := set(t, reg.Host, pem, func(c *registry.Client) verify.Resolver { return moving{c, func() { push(good + ":1") }} })
	report, pins, err := s.Verify(t.Context(), "e", images(good+":1"))
	if err != nil || pins[good+":1"].Digest != first || report.Evidence[0].Subject.Digest != first {
		t.Errorf("%v, pinned to %s, want %s", err, pins[good+":1"], first)
	}
	if _, pins, err = s.Verify(t.Context(), "e", images(good+":1")); err == nil || len(pins) != 0 {
		t.Errorf("the image that the tag was moved to: %v, %v", pins, err)
	}

	evil := reg.Host + "/evil"
	second := push(evil + ":1")
	s = set(t, reg.Host, pem, func(c *registry.Client) verify.Resolver {
		return moving{c, func() { sign(evil + "@" + push(evil+":1").String()) }}
	})
	if report, pins, err = s.Verify(t.Context(), "e", images(evil+":1")); err == nil || len(pins) != 0 || report.Evidence[0].Subject.Digest != second {
		t.Errorf("accepted by the signature of another image: %v, %v", pins, err)
	}
}

// TestSizeMustBeTheOneClaimed is about a manifest that says less than its layers
// have, which would get around the limit on all evidence of an image together.
func TestSizeMustBeTheOneClaimed(t *testing.T) {
	t.Parallel()
	reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(t)
	t.Cleanup(func() { _ = reg.Close() })
	a := must(verifytest.NewAuthority())(t)
	pem := must(a.Key("release"))(t)
	d := must(verifytest.PushImage(t.Context(), reg.Host+"/app:1", verifytest.ImageOptions{}))(t)
	pinned := reg.Host + "/app@" + d.String()
	legacy := verifytest.SignOptions{Key: "release", Layout: verifytest.Legacy}
	must(0, errors.Join(a.Sign(t.Context(), pinned, legacy), a.Attest(t.Context(), pinned, "https://spdx.dev/Document", verifytest.SPDX("x"), legacy)))(t)
	var size int
	host := lying(t, reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".sig") || size == 0 {
			return false
		}
		resp, err := http.Get(reg.URL() + r.URL.Path)
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
			panic(err)
		}
		m["layers"].([]any)[0].(map[string]any)["size"] = size
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		_ = json.NewEncoder(w).Encode(m)
		return true
	})
	if _, _, err := set(t, host, pem, nil).Verify(t.Context(), "e", images(host+"/app:1")); err != nil {
		t.Fatal(err)
	}
	for _, size = range []int{1, 100_000} {
		report, _, err := set(t, host, pem, nil).Verify(t.Context(), "e", images(host+"/app:1"))
		if fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(report.Evidence[0].Checks), fmt.Sprintf("bytes, not %d", size)) {
			t.Errorf("%d bytes: %v, %+v", size, err, report.Evidence[0].Checks)
		}
	}
}
