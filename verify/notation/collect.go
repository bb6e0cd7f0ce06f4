package notation

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// Caps on the signatures of one artifact: verifying without them lets whoever
// may push to a repository keep a verifier busy (CVE-2023-33957, CVE-2023-33958,
// CVE-2023-25656). An honest envelope has some 10 KiB.
const (
	maxCandidates = 128
	maxEnvelope   = 128 << 10 // bytes
	parallel      = 8
)

// Layout is how a signature is kept in the registry, as reported in facts.
const Layout = "notation"

const (
	artifactType = "application/vnd.cncf.notary.signature"
	emptyConfig  = "application/vnd.oci.empty.v1+json"
)

// candidate is something that may prove something. Nothing in it is trusted.
type candidate struct {
	where     string // for people
	mediaType string // of the envelope
	envelope  []byte
	err       error // it could not be read
}

// collect returns all signatures of the Notary Project that refer to s.Digest, in
// a stable order.
func (v *Verifier) collect(ctx context.Context, s verify.Subject) ([]candidate, error) {
	list, err := v.client.Referrers(ctx, s.Name, s.Digest)
	if err != nil {
		return nil, err
	}
	var wanted []v1.Descriptor
	for _, d := range list {
		// The list's artifactType is a hint that saves a request. Without one, and
		// where a registry gives the type of the empty config instead, the manifest
		// is asked.
		if d.ArtifactType == "" || d.ArtifactType == emptyConfig || d.ArtifactType == artifactType {
			wanted = append(wanted, d)
		}
	}
	if len(wanted) > maxCandidates {
		return nil, fault.New(fault.Denied, "verify/notation", "delete what does not belong to this artifact", "%s: more than %d signatures", s.Pinned(), maxCandidates)
	}
	all := make([]*candidate, len(wanted))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, d := range wanted {
		g.Go(func() (err error) { all[i], err = v.fetch(gctx, s, d); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []candidate
	for _, c := range all {
		if c != nil {
			out = append(out, *c)
		}
	}
	return out, nil
}

// manifest is the part of an OCI manifest that is used here.
type manifest struct {
	MediaType    types.MediaType `json:"mediaType"`
	ArtifactType string          `json:"artifactType"`
	Config       *v1.Descriptor  `json:"config"`
	Layers       []v1.Descriptor `json:"layers"`
	Manifests    []v1.Descriptor `json:"manifests"`
}

// isSignature reports whether m says that it is a signature, in either of the
// ways that a signature manifest may.
// https://github.com/notaryproject/specifications/blob/v1.1.0/specs/signature-specification.md#oci-signatures
func (m manifest) isSignature() bool {
	switch {
	case m.Config == nil:
		return false
	case m.ArtifactType != "":
		return m.ArtifactType == artifactType && m.Config.MediaType == emptyConfig
	default:
		return m.Config.MediaType == artifactType
	}
}

// fetch returns the signature in a referring manifest, or nil if that is
// something else. An error is the registry's, also that it lacks what it listed;
// what is wrong about the signature is the candidate's.
func (v *Verifier) fetch(ctx context.Context, s verify.Subject, d v1.Descriptor) (*candidate, error) {
	c := &candidate{where: "referrer " + d.Digest.String()}
	b, err := v.client.Manifest(ctx, s.Name, digest.Digest(d.Digest.String()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.where, err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil || !m.isSignature() {
		return nil, nil //nolint:nilerr // what is no manifest is no signature either
	}
	if len(m.Layers) != 1 {
		c.err = fmt.Errorf("a signature manifest has one envelope, and this has %d", len(m.Layers))
		return c, nil
	}
	l := m.Layers[0]
	if l.Size < 0 || l.Size > maxEnvelope {
		c.err = fmt.Errorf("an envelope of %d bytes: more than %d are not read", l.Size, maxEnvelope)
		return c, nil
	}
	c.mediaType = string(l.MediaType)
	if c.envelope, err = v.client.Blob(ctx, s.Name, digest.Digest(l.Digest.String())); err != nil {
		return nil, fmt.Errorf("%s: %w", c.where, err)
	}
	if int64(len(c.envelope)) != l.Size { // the cap was checked against what it claims
		c.err = fmt.Errorf("the envelope has %d bytes, not %d", len(c.envelope), l.Size)
	}
	return c, nil
}

// target returns the descriptor that a signature of s must be about. It is made
// from the manifest's bytes: what a registry says of their type proves nothing.
func (v *Verifier) target(ctx context.Context, s verify.Subject) (descriptor, error) {
	b, err := v.client.Manifest(ctx, s.Name, s.Digest)
	if err != nil {
		return descriptor{}, fmt.Errorf("%s: %w", s.Pinned(), err)
	}
	mt, err := registry.MediaType(b)
	if err != nil {
		return descriptor{}, fault.New(fault.Denied, "verify/notation", "push it again", "%s: %w", s.Pinned(), err)
	}
	return descriptor{MediaType: mt, Digest: s.Digest, Size: int64(len(b))}, nil
}
