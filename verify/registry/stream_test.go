package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// TestOpen is about a registry that lies about a blob that is read as a stream:
// the end of it is never reached.
func TestOpen(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("content", 50_000)
	d := digest.FromString(content)
	chunked := func(w http.ResponseWriter, text string) { // no Content-Length
		fmt.Fprint(w, text[:1])
		w.(http.Flusher).Flush()
		fmt.Fprint(w, text[1:])
	}
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch strings.Split(r.URL.Path, "/")[2] {
		case "good":
			fmt.Fprint(w, content)
		case "chunked":
			chunked(w, content)
		case "short":
			chunked(w, content[:100])
		case "long":
			chunked(w, content+"x")
		case "other":
			chunked(w, strings.ToUpper(content))
		case "announced":
			fmt.Fprint(w, content+"x")
		case "cut":
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			fmt.Fprint(w, content[:100])
		case "absent":
			w.WriteHeader(http.StatusNotFound)
		}
	})
	c := plain(t, host)
	for name, ok := range map[string]bool{"good": true, "chunked": true, "short": false, "long": false, "other": false, "announced": false, "cut": false, "absent": false} {
		r, err := c.Open(t.Context(), host+"/"+name, d, int64(len(content)))
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
			if cerr := r.Close(); cerr != nil {
				t.Errorf("%s: %v", name, cerr)
			}
		}
		if len(b) > len(content) {
			t.Errorf("%s: it goes on after %d bytes", name, len(b))
		}
		switch {
		case ok && (err != nil || string(b) != content):
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		case name == "absent" && !errors.Is(err, registry.ErrNotFound):
			t.Errorf("%s: %v", name, err)
		case !ok && name != "absent" && (err == nil || fault.KindOf(err) != fault.Transient):
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, size := range []int{len(content) - 1, len(content) + 1} { // a manifest that says another size
		for _, name := range []string{"good", "chunked"} {
			r, err := c.Open(t.Context(), host+"/"+name, d, int64(size))
			if err == nil {
				_, err = io.ReadAll(r)
				_ = r.Close()
			}
			if err == nil || fault.KindOf(err) != fault.Transient {
				t.Errorf("%s with %d bytes for %d: %v", name, len(content), size, err)
			}
		}
	}
	for _, bad := range []digest.Digest{"", "latest", "sha256:00", digest.Digest("sha512:" + strings.Repeat("0", 128))} {
		if r, err := c.Open(t.Context(), host+"/good", bad, 1); err == nil || r != nil || fault.KindOf(err) != fault.Denied {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	page := func(w http.ResponseWriter, next string, tags ...string) {
		if next != "" {
			w.Header().Set("Link", fmt.Sprintf("<%s>; rel=\"next\"", next))
		}
		fmt.Fprintf(w, `{"name":"x","tags":["%s"]}`, strings.Join(tags, `","`))
	}
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch repo := strings.Split(r.URL.Path, "/")[2]; {
		case repo == "pages" && r.URL.Query().Get("last") == "":
			page(w, "/v2/pages/tags/list?last=1.1.0", "1.0.0", "1.1.0")
		case repo == "pages":
			page(w, "", "2.0.0")
		case repo == "circle":
			page(w, "/v2/circle/tags/list", "1.0.0")
		case repo == "endless":
			page(w, "/v2/endless/tags/list?last="+r.URL.Query().Get("last")+"x", "1.0.0")
		case repo == "elsewhere":
			page(w, "https://evil.test/v2/elsewhere/tags/list", "1.0.0")
		case repo == "gone" && r.URL.Query().Get("last") == "":
			page(w, "/v2/gone/tags/list?last=1", "1.0.0")
		case repo == "many":
			_, _ = w.Write(slices.Concat([]byte(`{"tags":["x"`), bytes.Repeat([]byte(`,"x"`), registry.MaxTags), []byte(`]}`)))
		case repo == "page":
			fmt.Fprint(w, "<html>")
		case repo == "none":
			fmt.Fprint(w, `{"name":"none","tags":null}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	c := plain(t, host)
	if tags, err := c.Tags(t.Context(), host+"/pages"); err != nil || !slices.Equal(tags, []string{"1.0.0", "1.1.0", "2.0.0"}) {
		t.Errorf("%q, %v", tags, err)
	}
	if tags, err := c.Tags(t.Context(), host+"/none"); err != nil || len(tags) > 0 {
		t.Errorf("%q, %v", tags, err)
	}
	for repo, kind := range map[string]fault.Kind{
		"circle": fault.Transient, "endless": fault.Transient, "gone": fault.Transient, "page": fault.Transient, "absent": fault.Transient,
		"elsewhere": fault.Denied, "many": fault.Denied,
	} {
		if tags, err := c.Tags(t.Context(), host+"/"+repo); err == nil || tags != nil || fault.KindOf(err) != kind {
			t.Errorf("%s: %d tags, %v", repo, len(tags), err)
		}
	}
}
