package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// TestAttachGoesNowhereElse: what is pushed, and the account that may push, go to the
// registry that was named, whatever that says.
func TestAttachGoesNowhereElse(t *testing.T) {
	t.Parallel()
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`
	for name, c := range map[string]struct {
		post func(w http.ResponseWriter, elsewhere string)
		kind fault.Kind
		want string
	}{
		"an upload to another host":     {func(w http.ResponseWriter, e string) { accepted(w, "http://"+e+"/v2/app/blobs/uploads/1") }, fault.Denied, "refusing to upload to"},
		"an upload that goes on and on": {func(w http.ResponseWriter, _ string) { accepted(w, "/artifacts-uploads/1") }, fault.Transient, "202"},
		"an upload with a name in it":   {func(w http.ResponseWriter, e string) { accepted(w, "http://me:x@"+e+"/v2/app/blobs/uploads/1") }, fault.Denied, "refusing to upload to"},
		"an upload to nowhere":          {func(w http.ResponseWriter, _ string) { accepted(w, "") }, fault.Transient, "no place to upload to"},
		"a redirect":                    {func(w http.ResponseWriter, e string) { redirect(w, "http://"+e+"/x") }, fault.Denied, "refusing to send content where a redirect leads"},
		"no leave to push":              {func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusForbidden) }, fault.Transient, "403"},
		"an answer that means nothing":  {func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusOK) }, fault.Transient, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var reached atomic.Bool
			elsewhere := serve(t, func(http.ResponseWriter, *http.Request) { reached.Store(true) })
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Header.Get("Authorization") == "":
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				case strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
					fmt.Fprint(w, manifest)
				case r.Method == http.MethodHead:
					w.WriteHeader(http.StatusNotFound)
				default:
					c.post(w, elsewhere)
				}
			})
			cl := client(t, map[string]registry.Host{host: {InsecureHTTP: true, Username: "u", Password: secret}, elsewhere: {InsecureHTTP: true}})
			_, err := cl.Attach(t.Context(), host+"/app", digest.FromString(manifest), registry.Attachment{MediaType: "application/x", Content: []byte("{}x")})
			if fault.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter22") {
				t.Errorf("got %v (%v)", err, fault.KindOf(err))
			}
			if reached.Load() {
				t.Error("another host was asked")
			}
		})
	}
}

func accepted(w http.ResponseWriter, location string) {
	if location != "" {
		w.Header().Set("Location", location)
	}
	w.WriteHeader(http.StatusAccepted)
}

func redirect(w http.ResponseWriter, to string) {
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusTemporaryRedirect)
}
