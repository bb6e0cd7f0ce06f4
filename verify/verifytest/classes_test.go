package verifytest_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// bed is an image with all that a rule of [set] asks for, in a registry.
type bed struct {
	reg    *testenv.Registry
	a      *verifytest.Authority
	pem    []byte
	pinned string
	digest digest.Digest
}

func newBed(t *testing.T, layout verifytest.Layout) *bed {
	t.Helper()
	b := &bed{reg: must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(t), a: must(verifytest.NewAuthority())(t)}
	t.Cleanup(func() { _ = b.reg.Close() })
	b.pem = must(b.a.Key("release"))(t)
	b.digest = must(verifytest.PushImage(t.Context(), b.reg.Host+"/app:1", verifytest.ImageOptions{}))(t)
	b.pinned = b.reg.Host + "/app@" + b.digest.String()
	o := verifytest.SignOptions{Key: "release", Layout: layout}
	must(0, errors.Join(b.a.Sign(t.Context(), b.pinned, o), b.a.Attest(t.Context(), b.pinned, "https://spdx.dev/Document", verifytest.SPDX("x"), o)))(t)
	return b
}

// judge verifies the image through a registry that lies.
func (b *bed) judge(t *testing.T, lie func(http.ResponseWriter, *http.Request) bool) error {
	t.Helper()
	host := lying(t, b.reg.URL(), lie)
	_, _, err := set(t, host, b.pem, nil).Verify(t.Context(), "e", images(host+"/app@"+b.digest.String()))
	return err
}

// upstream is what the registry itself answers.
func (b *bed) upstream(t *testing.T, r *http.Request) (http.Header, []byte) {
	t.Helper()
	resp, err := http.Get(b.reg.URL() + r.URL.Path)
	if err != nil {
		t.Error(err)
		return http.Header{}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.Header, body
}

// change answers with what the registry has, changed.
func (b *bed) change(t *testing.T, match string, change func(doc map[string]any)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, match) || r.Method != http.MethodGet {
			return false
		}
		header, body := b.upstream(t, r)
		var doc map[string]any
		if err := json.Unmarshal(body, &doc); err != nil {
			return false
		}
		change(doc)
		w.Header().Set("Content-Type", header.Get("Content-Type"))
		_ = json.NewEncoder(w).Encode(doc) // a client may give up
		return true
	}
}

// TestReferrersInPages has the registry give its list one by one: what is on the
// last page counts, and a page that fails is never the end of the list.
func TestReferrersInPages(t *testing.T) {
	t.Parallel()
	b := newBed(t, verifytest.Referrers)
	pages := func(last http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			header, body := b.upstream(t, r)
			var list map[string]any
			if err := json.Unmarshal(body, &list); err != nil {
				t.Error(err)
			}
			all := list["manifests"].([]any) // in no order, and in another one each time
			slices.SortFunc(all, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			page := 0
			_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
			if page == len(all)-1 && last != nil {
				last(w, r)
				return true
			}
			if page < len(all)-1 {
				w.Header().Set("Link", fmt.Sprintf(`<%s?page=%d>; rel="next"`, r.URL.Path, page+1))
			}
			list["manifests"] = all[page : page+1]
			w.Header().Set("Content-Type", header.Get("Content-Type"))
			_ = json.NewEncoder(w).Encode(list)
			return true
		}
	}
	if err := b.judge(t, pages(nil)); err != nil {
		t.Errorf("in pages: %v", err)
	}
	for name, last := range map[string]http.HandlerFunc{
		"a page that is missing": http.NotFound,
		"a page that fails":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"a page that is cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[`)
		},
	} {
		if err := b.judge(t, pages(last)); err == nil || fault.KindOf(err) != fault.Transient {
			t.Errorf("%s: %v (%v)", name, err, fault.KindOf(err))
		}
	}
}

// TestRegistryThatLies is about what a registry says of what it has.
func TestRegistryThatLies(t *testing.T) {
	t.Parallel()
	for _, layout := range []verifytest.Layout{verifytest.Referrers, verifytest.Legacy} {
		b, name := newBed(t, layout), []string{"referrers", "legacy"}[layout]
		if err := b.judge(t, func(http.ResponseWriter, *http.Request) bool { return false }); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		other := newBed(t, layout) // another image, by another key
		for what, lie := range map[string]func(http.ResponseWriter, *http.Request) bool{
			"CVE-2023-47630 a blob of another digest": func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				_, body := b.upstream(t, r)
				_, _ = w.Write(append(body, ' '))
				return true
			},
			"CVE-2023-47630 a manifest of another digest": func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/sha256:") {
					return false
				}
				header, body := b.upstream(t, r)
				w.Header().Set("Content-Type", header.Get("Content-Type"))
				w.Header().Set("Docker-Content-Digest", header.Get("Docker-Content-Digest"))
				_, _ = w.Write(append(body, ' '))
				return true
			},
			"CVE-2023-47630 the evidence of another image": func(w http.ResponseWriter, r *http.Request) bool {
				path := strings.ReplaceAll(r.URL.Path, b.digest.Encoded(), other.digest.Encoded())
				if strings.Contains(r.URL.Path, "/manifests/sha256:"+b.digest.Encoded()) {
					return false
				}
				header, body := other.upstream(t, &http.Request{URL: must(r.URL.Parse(path))(t)})
				w.Header().Set("Content-Type", header.Get("Content-Type"))
				_, _ = w.Write(body)
				return true
			},
			"no media types in manifests": b.change(t, "/manifests/sha256", func(doc map[string]any) {
				if layers, ok := doc["layers"].([]any); ok {
					for _, l := range layers {
						l.(map[string]any)["mediaType"] = "text/plain"
					}
				}
			}),
			"sizes below zero": b.change(t, "/manifests/sha256", func(doc map[string]any) {
				if layers, ok := doc["layers"].([]any); ok {
					for _, l := range layers {
						l.(map[string]any)["size"] = -1
					}
				}
			}),
		} {
			if err := b.judge(t, lie); err == nil {
				t.Errorf("%s, %s: accepted", name, what)
			}
		}
	}
}

// TestClass14_credentials_are_of_one_host verifies with a password through a registry
// that sends its client elsewhere: by a redirect, and by the realm of its tokens
// (Helm CVE-2021-32690, Ratify CVE-2025-27403, Kyverno CVE-2026-41323).
func TestClass14_credentials_are_of_one_host(t *testing.T) {
	t.Parallel()
	b := newBed(t, verifytest.Referrers)
	for name, send := range map[string]func(w http.ResponseWriter, r *http.Request, to string) bool{
		"redirect": func(w http.ResponseWriter, r *http.Request, to string) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		},
		"realm": func(w http.ResponseWriter, _ *http.Request, to string) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+to+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
	} {
		var asked, leaked atomic.Int32
		elsewhere := lying(t, b.reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
			asked.Add(1)
			if r.Header.Get("Authorization") != "" {
				leaked.Add(1)
			}
			w.WriteHeader(http.StatusNotFound)
			return true
		})
		host := lying(t, b.reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "" && name == "redirect" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			return send(w, r, "http://"+elsewhere)
		})
		client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{
			host:      {InsecureHTTP: true, Username: "me", Password: func() (string, error) { return "hunter22", nil }},
			elsewhere: {InsecureHTTP: true},
		}}))(t)
		_, _, err := setOver(t, client, verify.Signer{Name: "release", Key: &verify.Key{PEM: b.pem}, Unlogged: true}).Verify(t.Context(), "e", images(host+"/app@"+b.digest.String()))
		if err == nil || errors.Is(err, verify.ErrMissing) {
			t.Errorf("%s: %v (%v)", name, err, fault.KindOf(err))
		}
		if leaked.Load() != 0 || (name == "redirect" && asked.Load() == 0) {
			t.Errorf("%s: %d requests came, %d with the password", name, asked.Load(), leaked.Load())
		}
	}
}

// setOver asks for a signature by signer, over a client.
func setOver(t *testing.T, client *registry.Client, signer verify.Signer) *verify.Set {
	t.Helper()
	return must(verify.NewSet(verify.Config{
		Resolver: client, Revocations: new(verify.Revocations),
		Rules: []verify.Rule{{
			Name: "r", Kind: verify.KindImage, Repositories: []string{"**"},
			Signers: []verify.Signer{signer},
			Require: []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{signer.Name}}},
		}},
	}, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(client))})))(t)
}

// TestClass20_resource_bombs gives each kind of request more than anybody can hold
// (cosign CVE-2024-29902, CVE-2024-29903; sigstore-go CVE-2024-45395).
func TestClass20_resource_bombs(t *testing.T) {
	t.Parallel()
	var zeros bytes.Buffer
	z := gzip.NewWriter(&zeros)
	if _, err := io.CopyN(z, endless('0'), 1<<30); err != nil {
		t.Fatal(err)
	}
	must(0, z.Close())(t)
	beds := map[string]*bed{"referrers": newBed(t, verifytest.Referrers), "legacy": newBed(t, verifytest.Legacy)}
	deep := strings.Repeat(`{"manifests":[`, 1<<20)
	for name, c := range map[string]struct {
		answer  func(http.ResponseWriter)
		refused string
	}{
		"a gigabyte that was compressed": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(zeros.Bytes())
		}, "longer than"},
		"an answer without an end": {func(w http.ResponseWriter) { _, _ = io.CopyN(w, endless(' '), 256<<20) }, "longer than"},
		"a nesting bomb":           {func(w http.ResponseWriter) { _, _ = io.WriteString(w, deep) }, ""},
	} {
		for layout, b := range beds {
			for _, request := range []string{"/referrers/", ".sig", ".att", "/blobs/", "/manifests/sha256:"} {
				t.Run(fmt.Sprint(layout, " ", name, " for ", request), func(t *testing.T) {
					asked := false
					err := b.judge(t, func(w http.ResponseWriter, r *http.Request) bool {
						if !strings.Contains(r.URL.Path, request) || r.Method != http.MethodGet {
							return false
						}
						asked = true
						w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
						c.answer(w)
						return true
					})
					if asked && (err == nil || !strings.Contains(err.Error(), c.refused)) {
						t.Errorf("%v, want %q", err, c.refused)
					}
				})
			}
		}
	}
}

// endless is a reader of one byte, over and over.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// TestClass20_a_thousand_signatures puts far more beside an image than anybody
// signs: it is refused before any of it is fetched (cosign CVE-2023-46737, notation
// CVE-2023-33957).
func TestClass20_a_thousand_signatures(t *testing.T) {
	t.Parallel()
	many := func(key string) func(doc map[string]any) {
		return func(doc map[string]any) {
			list, ok := doc[key].([]any)
			if !ok || len(list) == 0 {
				return
			}
			var out []any
			for i := range 1000 {
				one := map[string]any{}
				for k, v := range list[0].(map[string]any) {
					one[k] = v
				}
				one["digest"] = digest.FromString(fmt.Sprint(i)).String()
				out = append(out, one)
			}
			doc[key] = out
		}
	}
	for layout, lie := range map[verifytest.Layout][2]string{verifytest.Referrers: {"/referrers/", "manifests"}, verifytest.Legacy: {".sig", "layers"}} {
		b := newBed(t, layout)
		var fetched atomic.Int32
		changed := b.change(t, lie[0], many(lie[1]))
		err := b.judge(t, func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				fetched.Add(1)
			}
			return changed(w, r)
		})
		if fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "more than") || fetched.Load() != 0 {
			t.Errorf("%v (%v), %d blobs were fetched", err, fault.KindOf(err), fetched.Load())
		}
	}
}

// TestEvidenceAmongMuchElse has a hundred bad signatures beside the good one.
func TestEvidenceAmongMuchElse(t *testing.T) {
	t.Parallel()
	for _, layout := range []verifytest.Layout{verifytest.Referrers, verifytest.Legacy} {
		b := newBed(t, layout)
		for range 100 {
			o := verifytest.SignOptions{Key: "stranger", Layout: layout, NoTlog: true}
			must(0, b.a.Sign(t.Context(), b.pinned, o))(t)
		}
		if err := b.judge(t, func(http.ResponseWriter, *http.Request) bool { return false }); err != nil {
			t.Error(err)
		}
	}
}
