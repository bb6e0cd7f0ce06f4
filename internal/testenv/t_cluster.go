package testenv

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// joinShared runs once a process: a test process is one user of the shared
// control plane, however many tests it has.
var joinShared = sync.OnceValues(func() (*Cluster, error) {
	s, err := sharedSite()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return s.join(ctx)
})

// SharedCluster returns the control plane that all test processes of a run
// share. The first one starts it; it ends a few seconds after the last one.
// Tests keep out of each other's way with [Namespace] and with unique names
// for what has no namespace.
func SharedCluster(t testing.TB) *Cluster {
	t.Helper()
	c, err := joinShared()
	if err != nil {
		t.Fatalf("shared cluster: %v", err)
	}
	view := *c
	view.stop = nil // Close on a test's copy must not end the process's use
	return &view
}

// Namespace makes a namespace with a unique name, ready for pods, and deletes
// it when the test ends. It does not wait for the deletion.
func Namespace(t testing.TB, c *Cluster) string {
	t.Helper()
	name := "t-" + strings.ToLower(rand.Text()[:12])
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := c.do(ctx, http.MethodPost, "/api/v1/namespaces", map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
	}, nil)
	if err != nil {
		t.Fatalf("namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := c.do(ctx, http.MethodDelete, "/api/v1/namespaces/"+name, nil, nil)
		if err != nil && !isStatus(err, http.StatusNotFound) {
			t.Errorf("delete namespace %s: %v", name, err)
		}
	})
	// Without its service account a namespace refuses pods.
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		return false, c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+name+"/serviceaccounts/default", nil, nil)
	})
	if err != nil {
		t.Fatalf("namespace %s: %v", name, err)
	}
	return name
}
