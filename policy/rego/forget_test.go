package rego

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a killed process left is removed, and nothing else.
func TestForget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"holdfast-policy-1", "holdfast-policy-new", "other-1"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "0"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "other-1"), filepath.Join(dir, "holdfast-policy-link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holdfast-policy-1", "other-1"} {
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	forget(dir, time.Now().Add(-time.Hour))
	for name, want := range map[string]bool{"holdfast-policy-1": false, "holdfast-policy-new": true, "holdfast-policy-link": true, "other-1/0": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
