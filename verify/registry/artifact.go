package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

const maxPlatforms = 128 // manifests in one index

// Exists returns an error of kind fault.Transient unless the registry has s
// itself: one that hides what may not be seen answers as if nothing were there.
func (c *Client) Exists(ctx context.Context, s verify.Subject) error {
	d, err := c.PeekTag(ctx, s.Name, s.Digest.String())
	if errors.Is(err, ErrNotFound) || (err == nil && d != s.Digest) {
		return fault.New(fault.Transient, "verify/registry.Exists", "", "%s: the registry shows no such artifact", s.Pinned())
	}
	return err
}

// Single returns an error of kind fault.Denied if s is an index: what an index calls
// an image is looked into before it is believed.
func (c *Client) Single(ctx context.Context, s verify.Subject) error {
	const op = "verify/registry.Single"
	b, err := c.Manifest(ctx, s.Name, s.Digest)
	if err != nil {
		return fault.Wrap(fault.Transient, op, "", err)
	}
	kind, err := MediaType(b)
	if err == nil && types.MediaType(kind).IsIndex() {
		err = errors.New("an index inside an index")
	}
	if err != nil {
		return fault.New(fault.Denied, op, "push one index with all platforms", "%s: %w", s.Pinned(), err)
	}
	return nil
}

// MediaType returns the media type of a manifest: the one that it says it has,
// or, where it says none, the one that its content has. A document that two readers
// could take for different things is refused (CVE-2021-41190).
func MediaType(b []byte) (string, error) {
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("not a manifest: %w", err)
	}
	image, index := m.Config != nil || m.Layers != nil, m.Manifests != nil
	switch {
	case image == index:
		return "", errors.New("not a manifest: it must have either layers or manifests")
	case m.MediaType != "" && m.MediaType.IsIndex() == index:
		return string(m.MediaType), nil
	case m.MediaType != "":
		return "", fmt.Errorf("it says that it is %q, and is not", verify.Brief(string(m.MediaType)))
	case index:
		return string(types.OCIImageIndex), nil
	default:
		return string(types.OCIManifestSchema1), nil
	}
}

// Platforms returns the runnable manifests of an index, and nothing for a plain
// image, each named as [verify.PlatformName] does. What BuildKit adds to an index under the platform unknown/unknown is not
// runnable; an index inside an index is fault.Denied.
func (c *Client) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	const op = "verify/registry.Platforms"
	b, err := c.Manifest(ctx, s.Name, s.Digest)
	if err != nil {
		return nil, fault.Wrap(fault.Transient, op, "", err)
	}
	kind, err := MediaType(b)
	if err != nil {
		return nil, fault.New(fault.Denied, op, "push it again", "%s: %w", s.Pinned(), err)
	}
	if err := c.isKind(ctx, s, b, types.MediaType(kind).IsIndex()); err != nil {
		return nil, err
	}
	if !types.MediaType(kind).IsIndex() {
		return nil, nil
	}
	var m struct {
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.New(fault.Denied, op, "push it again", "%s: not a manifest: %w", s.Pinned(), err)
	}
	if len(m.Manifests) > maxPlatforms {
		return nil, fault.New(fault.Denied, op, "push one index for each artifact", "%s: an index of more than %d manifests", s.Pinned(), maxPlatforms)
	}
	var out []verify.Platform
	for _, d := range m.Manifests {
		if d.MediaType.IsIndex() {
			return nil, fault.New(fault.Denied, op, "push one index with all platforms", "%s: an index inside an index", s.Pinned())
		}
		if d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown" {
			continue
		}
		name := verify.AnyPlatform
		if p := d.Platform; p != nil {
			name = verify.PlatformName(p.OS, p.Architecture, p.Variant)
		}
		child := s
		child.Digest = digest.Digest(d.Digest.String())
		out = append(out, verify.Platform{Name: name, Subject: child})
	}
	return out, nil
}

// isKind requires that a manifest is of its subject's kind, see [verify.Kind].
func (c *Client) isKind(ctx context.Context, s verify.Subject, manifest []byte, index bool) error {
	const op = "verify/registry.Platforms"
	kind, known := verify.KindOf(s.Kind)
	not := func(format string, args ...any) error {
		return fault.New(fault.Denied, op, "name "+kind.What, "%s is not %s: %s", s.Pinned(), kind.What, fmt.Sprintf(format, args...))
	}
	if !known || kind.Config == "" {
		return nil
	}
	if index {
		return not("it is an index")
	}
	var m struct {
		Config v1.Descriptor   `json:"config"`
		Layers []v1.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return not("%v", err)
	}
	if string(m.Config.MediaType) != kind.Config {
		return not("its config is %q, expected %s", verify.Brief(string(m.Config.MediaType)), kind.Config)
	}
	content := 0
	for _, l := range m.Layers {
		switch {
		case string(l.MediaType) == kind.Layer:
			content++
		case !slices.Contains(kind.Extra, string(l.MediaType)):
			return not("it has a layer %q", verify.Brief(string(l.MediaType)))
		}
	}
	if content != 1 {
		return not("it has %d layers with content", content)
	}
	if kind.Named == nil {
		return nil
	}
	if m.Config.Size > MaxManifest {
		return not("its config has %d bytes", m.Config.Size)
	}
	config, err := c.Blob(ctx, s.Name, digest.Digest(m.Config.Digest.String()))
	if err != nil {
		return fault.Wrap(fault.Transient, op, "", err)
	}
	name, version, err := kind.Named(config)
	if err != nil {
		return not("%v", err)
	}
	if repo := path.Base(s.Name); name != repo {
		return fault.New(fault.Denied, op, "name the chart that is meant", "%s calls itself %s", s.Pinned(), name)
	}
	if tag := tagOf(s.Reference); tag != "" && tag != strings.ReplaceAll(version, "+", "_") {
		return fault.New(fault.Denied, op, "name the version that is meant", "%s calls itself version %s", s.Reference, version)
	}
	return nil
}

// tagOf returns the tag in a reference, also where there is a digest behind it.
func tagOf(reference string) string {
	bare, _, _ := strings.Cut(reference, "@")
	last := bare[strings.LastIndex(bare, "/")+1:]
	_, tag, _ := strings.Cut(last, ":")
	return tag
}
