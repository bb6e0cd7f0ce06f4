package git

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Argo CD CVE-2026-55797, go-git CVE-2025-21613, CVE-2026-45570 and Atlantis
// GHSA-rjh2-4xgw-p2hj: a URL or a branch becomes an option of a program, or a
// line of a shell. No program is run at all, and what looks like one is refused.
func TestClass09_url_becomes_a_command(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "canary")
	bin := t.TempDir()
	for _, name := range []string{"git", "ssh", "sh", "git-upload-pack", "git-remote-ext"} {
		script := "#!/bin/sh\n: > " + canary + "\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	t.Setenv("GIT_SSH_COMMAND", filepath.Join(bin, "ssh"))
	t.Setenv("GIT_PROXY_COMMAND", filepath.Join(bin, "git"))
	for _, url := range []string{
		"-uhttps://git.example/r", "--upload-pack=id", "ext::sh -c id", "fd::17/x", "git::https://git.example/r",
		"git@-oProxyCommand=id:r", "git@host:-oProxyCommand=id", "ssh://-oProxyCommand=id/r", "ssh://git@-oProxyCommand=id/r",
		"https://-host/r", "https://git.example/r\nid", "javascript:alert(1)",
	} {
		if _, err := parseURL(url); err == nil {
			t.Errorf("%q is taken for a URL", url)
		}
		s, err := New(Config{Name: "n", URL: url, Branch: "main", Dir: filepath.Join(t.TempDir(), "m")})
		if err == nil {
			t.Errorf("%q is taken for %+v", url, s.remote)
			_ = s.Close()
		} else if fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v (%v)", url, err, fault.KindOf(err))
		}
	}
	for _, branch := range []string{"-x", "--upload-pack=id", "a b", "$(id)", "a;id", "a\nb", "../x", "a..b", "@{-1}", ""} {
		if _, err := New(Config{Name: "n", URL: "https://git.example/r", Branch: branch, Dir: "/m"}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("branch %q: %v", branch, err)
		}
	}
	// What is a path, however odd, goes to no program.
	for _, url := range []string{"http://127.0.0.1:9/--upload-pack=id", "http://127.0.0.1:9/r;id", "http://127.0.0.1:9/$(id)", "http://127.0.0.1:9/`id`", filepath.Join(t.TempDir(), "$(id)")} {
		s, err := New(Config{Name: "n", URL: url, Branch: "main", Dir: filepath.Join(t.TempDir(), "m")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Head(t.Context()); err == nil {
			t.Errorf("%s has a head", url)
		}
		_ = s.Close()
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a program was run")
	}
}
