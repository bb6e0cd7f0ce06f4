package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/mask"
)

// An API server that takes a request and never answers, or stops in the middle
// of an answer, must not hold a stack for good.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte("{"))
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-done:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(done) })
	masker, err := mask.New(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCluster(ClusterConfig{
		REST: &rest.Config{Host: server.URL}, Masker: masker, Key: bytes.Repeat([]byte("k"), 32), Lease: LeaseConfig{Off: true}, timeout: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, gvk := range []schema.GroupVersionKind{{Version: "v1", Kind: "ConfigMap"}, {Group: "apps", Version: "v1", Kind: "Deployment"}} {
		ended := make(chan error, 1)
		go func() {
			_, err := c.resource(t.Context(), gvk)
			ended <- err
		}()
		select {
		case err := <-ended:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", gvk, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: still waiting for a server that is silent", gvk)
		}
	}
}
