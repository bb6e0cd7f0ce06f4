package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/config"
)

// TestOwnNamespaces: Terraform stays out of Holdfast's namespaces where no
// environment names one, too.
func TestOwnNamespaces(t *testing.T) {
	t.Parallel()
	none := filepath.Join(t.TempDir(), "none")
	pod := filepath.Join(t.TempDir(), "namespace")
	if err := os.WriteFile(pod, []byte("gitops\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty, named := &config.Loaded{}, &config.Loaded{}
	named.Environments = []config.Environment{{Name: "a", Kubernetes: &config.Kubernetes{Namespace: "ops"}}, {Name: "b"}}
	for name, tc := range map[string]struct {
		cfg  *config.Loaded
		pod  string
		want []string
	}{
		"without a cluster":        {empty, none, []string{"holdfast-system"}},
		"in a pod":                 {empty, pod, []string{"gitops", "holdfast-system"}},
		"with an environment":      {named, none, []string{"holdfast-system", "ops"}},
		"with both":                {named, pod, []string{"gitops", "holdfast-system", "ops"}},
		"a file that says nothing": {empty, os.DevNull, []string{"holdfast-system"}},
	} {
		if got := ownNamespaces(tc.cfg, tc.pod); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q; want %q", name, got, tc.want)
		}
	}

	empty.StateDir = t.TempDir()
	ts, err := newTargetSet(empty, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ts.renderer.Close() })
	if !slices.Contains(ts.protected.Namespaces, defaultNamespace) {
		t.Errorf("Terraform may touch %s: protected are %q", defaultNamespace, ts.protected.Namespaces)
	}
}
