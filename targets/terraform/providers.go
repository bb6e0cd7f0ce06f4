package terraform

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// defaultHosts are the registries that a source without a host means: the one
// of OpenTofu and the one of Terraform.
var defaultHosts = []string{"registry.opentofu.org", "registry.terraform.io"}

// platform is how packages of providers call this one.
const platform = runtime.GOOS + "_" + runtime.GOARCH

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// lockFile is a dependency lock file.
type lockFile struct {
	name    string
	entries []lockEntry
}

type lockEntry struct {
	addr    string // with its host
	version string
	hashes  []string
	pos     string
}

func (e lockEntry) h1() []string {
	return slices.DeleteFunc(slices.Clone(e.hashes), func(h string) bool { return !strings.HasPrefix(h, "h1:") })
}

// find returns the entry of a provider; addr may lack a default host.
func (l *lockFile) find(addr string) (lockEntry, bool) {
	for _, e := range l.entries {
		if e.addr == addr {
			return e, true
		}
		for _, host := range defaultHosts {
			if e.addr == host+"/"+addr {
				return e, true
			}
		}
	}
	return lockEntry{}, false
}

var lockSchema = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "provider", LabelNames: []string{"source"}}}}

// parseLock reads a lock file as
// https://developer.hashicorp.com/terraform/language/files/dependency-lock describes it.
func parseLock(name string, src []byte) (*lockFile, error) {
	f, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diagnostics(diags)
	}
	content, diags := f.Body.Content(lockSchema)
	if diags.HasErrors() {
		return nil, diagnostics(diags)
	}
	out := &lockFile{name: name}
	for _, b := range content.Blocks {
		e := lockEntry{addr: strings.ToLower(b.Labels[0]), pos: at(b.DefRange)}
		if !validAddress(e.addr) {
			return nil, invalid("run `tofu providers lock`", "%s: %q is not the address of a provider", e.pos, e.addr)
		}
		attrs, diags := b.Body.JustAttributes()
		if diags.HasErrors() {
			return nil, diagnostics(diags)
		}
		if a, ok := attrs["version"]; ok {
			e.version = literal(a.Expr)
		}
		if e.version == "" || strings.ContainsAny(e.version, `/\`) || e.version == "." || e.version == ".." {
			return nil, invalid("run `tofu providers lock`", "%s: no version", e.pos)
		}
		if a, ok := attrs["hashes"]; ok {
			list, diags := hcl.ExprList(a.Expr)
			if diags.HasErrors() {
				return nil, diagnostics(diags)
			}
			for _, item := range list {
				e.hashes = append(e.hashes, literal(item))
			}
		}
		out.entries = append(out.entries, e)
	}
	return out, nil
}

// validAddress reports whether addr is host/namespace/name, each of them a plain path element.
func validAddress(addr string) bool {
	parts := strings.Split(addr, "/")
	return len(parts) == 3 && !slices.ContainsFunc(parts, func(p string) bool {
		return p == "" || p == "." || p == ".." || strings.ContainsAny(p, "\\\"\n$%{}") || strings.ContainsRune(p, 0)
	})
}

// Lock returns a dependency lock file for required (provider address with host
// → version), with an h1: hash for each platform that the filesystem mirror
// has. It is for repositories whose providers cannot be had from a registry.
func Lock(mirror string, required map[string]string) ([]byte, error) {
	const op = "targets/terraform.Lock"
	var out bytes.Buffer
	out.WriteString("# Made from a provider mirror by Holdfast.\n")
	for _, addr := range sortedKeys(required) {
		version := required[addr]
		if !validAddress(addr) || version == "" || strings.ContainsAny(version, `/\"`) {
			return nil, fault.New(fault.Invalid, op, "write host/namespace/name and a version", "%q %q is not a provider and a version", addr, version)
		}
		packages, err := mirrorPackages(mirror, addr, version)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, op, "add the provider to the mirror", err)
		}
		fmt.Fprintf(&out, "\nprovider %q {\n  version = %q\n  hashes = [\n", addr, version)
		var hashes []string
		for _, platform := range sortedKeys(packages) {
			h, err := hashPackage(packages[platform])
			if err != nil {
				return nil, fault.Wrap(fault.Internal, op, "", err)
			}
			hashes = append(hashes, h)
		}
		slices.Sort(hashes)
		for _, h := range slices.Compact(hashes) {
			fmt.Fprintf(&out, "    %q,\n", h)
		}
		out.WriteString("  ]\n}\n")
	}
	return out.Bytes(), nil
}

// mirrorPackages returns where mirror keeps a provider, by platform ("linux_amd64"),
// unpacked or as a zip file.
func mirrorPackages(mirror, addr, version string) (map[string]string, error) {
	dir := filepath.Join(mirror, filepath.FromSlash(addr))
	out := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(dir, version))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		out[e.Name()] = filepath.Join(dir, version, e.Name())
	}
	prefix := "terraform-provider-" + filepath.Base(dir) + "_" + version + "_"
	zips, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range zips {
		if platform, ok := strings.CutPrefix(e.Name(), prefix); ok && strings.HasSuffix(platform, ".zip") {
			platform = strings.TrimSuffix(platform, ".zip")
			if _, ok := out[platform]; !ok {
				out[platform] = filepath.Join(dir, e.Name())
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the mirror has no provider %s %s", addr, version)
	}
	return out, nil
}

// hashPackage returns the h1: hash of an unpacked or zipped package.
func hashPackage(name string) (string, error) {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return dirhash.HashDir(real, "", dirhash.Hash1)
	}
	return dirhash.HashZip(real, dirhash.Hash1)
}

// providerHashes remembers the hashes of packages. Providers have hundreds of
// megabytes, and the tool itself hashes them once more when it starts them.
type providerHashes struct {
	mu    sync.Mutex
	known map[string]string // path and fingerprint → hash
}

func (p *providerHashes) hash(name string) (string, error) {
	key, err := fingerprint(name)
	if err != nil || key == "" {
		return hashPackage(name)
	}
	p.mu.Lock()
	h, ok := p.known[key]
	p.mu.Unlock()
	if ok {
		return h, nil
	}
	if h, err = hashPackage(name); err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[string]string{}
	}
	p.known[key] = h
	return h, nil
}

// tools remembers the digests of the tools of this process, each of which all stacks of an
// environment share.
var tools toolSums

type toolSums struct {
	mu    sync.Mutex
	known map[string]string // path and fingerprint → digest
}

// sum returns the SHA-256 of a tool. It reads it again only when the file has changed.
func (s *toolSums) sum(name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := fingerprint(name)
	if err != nil {
		return "", err
	}
	if h, ok := s.known[key]; ok && key != "" {
		return h, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read from
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if s.known == nil || len(s.known) > 100 {
		s.known = map[string]string{}
	}
	s.known[key] = hex.EncodeToString(h.Sum(nil))
	return s.known[key], nil
}

// checkProviders recomputes the hash of each provider in the mirror and
// compares it with the lock file. The tool alone would accept a package of an
// unpacked mirror for which the lock file has no hash that it can check.
func (t *Target) checkProviders(cfg *configuration) error {
	const op = "targets/terraform.Plan"
	required := map[string]bool{}
	for addr := range cfg.providers {
		e, _ := cfg.lock.find(addr)
		required[e.addr] = true
	}
	for _, e := range cfg.lock.entries {
		packages, err := mirrorPackages(t.cfg.Mirror, e.addr, e.version)
		name, ok := packages[platform]
		if err != nil || !ok {
			if !required[e.addr] {
				continue // the tool asks for it if the state needs it
			}
			return fault.New(fault.Denied, op, "add the provider to the mirror, or lock a version that it has",
				"%s: the mirror %s has no provider %s %s for %s", e.pos, t.cfg.Mirror, e.addr, e.version, platform)
		}
		got, err := t.providers.hash(name)
		if err != nil {
			return fault.Wrap(fault.Transient, op, "look at the provider mirror", err)
		}
		if !slices.Contains(e.hashes, got) {
			return fault.New(fault.Denied, op,
				"find out who changed the mirror; if the provider is right, run `tofu providers lock` and commit "+lockName,
				"%s: provider %s %s in the mirror has %s, which the lock file does not list", e.pos, e.addr, e.version, got)
		}
	}
	return nil
}
