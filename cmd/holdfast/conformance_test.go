package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConformance judges the vectors of sigstore-conformance with holdfast verify
// bundle. They are not ours to keep: HOLDFAST_CONFORMANCE names a clone of
// https://github.com/sigstore/sigstore-conformance.
func TestConformance(t *testing.T) {
	t.Parallel()
	clone := os.Getenv("HOLDFAST_CONFORMANCE")
	if clone == "" {
		t.Skip("HOLDFAST_CONFORMANCE names no clone of sigstore-conformance")
	}
	assets := filepath.Join(clone, "test", "assets")
	dirs, err := filepath.Glob(filepath.Join(assets, "bundle-verify", "*", "bundle.sigstore.json"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no vectors in %s: %v", assets, err)
	}
	for _, bundle := range dirs {
		dir := filepath.Dir(bundle)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			args := append([]string{"verify", "bundle", "--bundle", bundle}, vectorFlags(t, dir)...)
			artifact := filepath.Join(assets, "bundle-verify", "a.txt")
			if own := filepath.Join(dir, "artifact"); isThere(own) {
				artifact = own
			}
			want := exitOK
			if strings.HasSuffix(dir, "_fail") {
				want = exitDenied
			}
			var out, errs bytes.Buffer
			if code := Main(t.Context(), append(args, artifact), strings.NewReader(""), &out, &errs); code != want {
				t.Errorf("exit code %d, want %d\n%s%s", code, want, out.String(), errs.String())
			}
		})
	}
}

// vectorFlags are the flags that a vector's folder asks for.
func vectorFlags(t *testing.T, dir string) (flags []string) {
	t.Helper()
	read := func(name, otherwise string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return otherwise
		}
		return strings.TrimSpace(string(b))
	}
	if root := filepath.Join(dir, "trusted_root.json"); isThere(root) {
		flags = append(flags, "--trusted-root", root)
	}
	if key := filepath.Join(dir, "key.pub"); isThere(key) {
		return append(flags, "--key", key)
	}
	const beacon = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
	return append(flags, "--certificate-identity", read("identity", beacon), "--certificate-oidc-issuer", read("issuer", "https://token.actions.githubusercontent.com"))
}

func isThere(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
