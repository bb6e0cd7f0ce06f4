package oci

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// Bundle names a policy bundle in a registry.
type Bundle struct {
	Name       string // of the policy set, for messages
	Repository string // host/path, without a tag and without oci://
	Digest     string // of its manifest
	Dir        string // where it is kept between runs
	Registry   Content
	Admit      Admit
	Limits     sources.Limits
}

// Policies has a bundle admitted, brings it unless it is kept, and returns its
// files: those of one archive, as oras push and opa build make it, or those that
// conftest push puts there one by one.
func Policies(ctx context.Context, b Bundle) (fs.FS, error) {
	const op = "sources/oci.Policies"
	d, err := parseID(b.Digest)
	if err != nil {
		return nil, err
	}
	switch {
	case b.Registry == nil || b.Admit == nil || !filepath.IsAbs(b.Dir):
		return nil, fault.New(fault.Internal, op, "", "policy set %s: nothing to read from, nowhere to keep it, or nobody who judges it", b.Name)
	case !repositoryName.MatchString(b.Repository):
		return nil, fault.New(fault.Invalid, op, "write oci://host/path@sha256:…", "policy set %s: %q is not a repository", b.Name, b.Repository)
	case b.Limits.Negative():
		return nil, fault.New(fault.Invalid, op, "use positive limits", "policy set %s: a limit is negative", b.Name)
	}
	l := b.Limits.WithDefaults()
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	fail := func(err error) error {
		return fault.Wrap(fault.Transient, op, "check that the registry can be reached, and that the bundle is there", fmt.Errorf("policy set %s: %s@%s: %w", b.Name, b.Repository, short(d), err))
	}
	if err := b.Admit(ctx, d); err != nil {
		return nil, fail(err)
	}
	kept := &store{dir: b.Dir, most: 2 * l.Bytes, content: b.Registry}
	raw, err := kept.Manifest(ctx, b.Repository, d)
	if err != nil {
		return nil, fail(err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, fail(err)
	}
	layers, err := m.policies()
	if err != nil {
		return nil, fail(err)
	}
	t, err := read(ctx, kept, b.Repository, b.Dir, layers, l, rooted)
	if err != nil {
		return nil, fail(err)
	}
	return t, nil
}
