// Package testenv is the test bed: a real Kubernetes control plane, git
// servers, OCI registries, a provider mirror and a proxy that injects faults,
// all on the loopback interface and all thrown away afterwards. Tests, the demo
// and the benchmarks build on it.
//
// It guarantees that what it starts is real (no fakes of a protocol), isolated
// from the user's own configuration, and gone when its last user is gone, even
// after a crash. It refuses to skip: a missing tool is an error that says how
// to build it.
package testenv

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ToolDir returns the directory that holds the tools the test bed runs:
// $HOLDFAST_TOOLS, or else holdfast/tools under the user's cache directory.
func ToolDir() string {
	if dir := os.Getenv("HOLDFAST_TOOLS"); dir != "" {
		return dir
	}
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	return filepath.Join(cache, "holdfast", "tools")
}

// Tool returns the absolute path of a tool in [ToolDir]: "controlplane",
// "kwok", "tofu", "conftest", "prometheus" or "promtool". It does not look in PATH, so that a test never
// runs a version nobody chose.
func Tool(name string) (string, error) {
	path, err := filepath.Abs(filepath.Join(ToolDir(), name))
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", name, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w; run `make tools`, or point HOLDFAST_TOOLS at a directory that has it", name, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("tool %s: %s is not an executable file; run `make tools`", name, path)
	}
	return path, nil
}

// mirrored are the providers of the filesystem mirror and the tools they are
// made from.
var mirrored = []struct{ name, version string }{
	{"local", "1.4.0"},
	{"time", "0.14.2"},
}

// ProviderMirror builds a filesystem mirror under dir and returns dir. The
// mirror has hashicorp/local 1.4.0 and hashicorp/time 0.14.2 for this platform
// under the hostnames of both public registries, in the unpacked layout:
// https://opentofu.org/docs/cli/config/config-file/#filesystem_mirror
func ProviderMirror(dir string) (string, error) {
	platform := runtime.GOOS + "_" + runtime.GOARCH
	for _, p := range mirrored {
		tool, err := Tool("terraform-provider-" + p.name)
		if err != nil {
			return "", err
		}
		for _, host := range []string{"registry.opentofu.org", "registry.terraform.io"} {
			folder := filepath.Join(dir, host, "hashicorp", p.name, p.version, platform)
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return "", fmt.Errorf("provider mirror: %w", err)
			}
			if err := linkOrCopy(tool, filepath.Join(folder, "terraform-provider-"+p.name+"_v"+p.version)); err != nil {
				return "", fmt.Errorf("provider mirror: %w", err)
			}
		}
	}
	return dir, nil
}

// linkOrCopy makes to a hard link of from, or a copy where they are on
// different file systems. An existing file is left as it is.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		_ = os.Remove(to)
		return err
	}
	return out.Close()
}
