package registry

import (
	"context"
	"encoding/json"
	"errors"

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

// Platforms returns the runnable manifests of an index, and nothing for a plain
// image. What BuildKit adds to an index under the platform unknown/unknown is not
// runnable; an index inside an index is fault.Denied.
func (c *Client) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	const op = "verify/registry.Platforms"
	b, err := c.Manifest(ctx, s.Name, s.Digest)
	if err != nil {
		return nil, fault.Wrap(fault.Transient, op, "", err)
	}
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.New(fault.Denied, op, "push it again", "%s: not a manifest: %w", s.Pinned(), err)
	}
	if !m.MediaType.IsIndex() && len(m.Manifests) == 0 {
		return nil, nil
	}
	if len(m.Manifests) > maxPlatforms {
		return nil, fault.New(fault.Denied, op, "push one index for each artifact", "%s: an index of more than %d manifests", s.Pinned(), maxPlatforms)
	}
	var out []verify.Platform
	for _, d := range m.Manifests {
		if d.MediaType.IsIndex() {
			return nil, fault.New(fault.Denied, op, "push one index with all platforms", "%s: an index inside an index", s.Pinned())
		}
		name := "any"
		if d.Platform != nil {
			name = d.Platform.String()
		}
		if d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown" {
			continue
		}
		child := s
		child.Digest = digest.Digest(d.Digest.String())
		out = append(out, verify.Platform{Name: name, Subject: child})
	}
	return out, nil
}
