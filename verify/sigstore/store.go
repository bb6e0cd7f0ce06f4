package sigstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	cbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// Caps on the evidence of one image.
const (
	maxCandidates = 128
	maxBytes      = 128 << 20 // of all bundles and layers together
	maxInFlight   = 256 << 20 // of all that is fetched at once, for whichever image
	parallel      = 8
	collectBudget = time.Minute
)

// The layouts, as reported in facts.
const (
	LayoutReferrers = "referrers"
	LayoutLegacy    = "legacy"
)

// bundleTypes are the media types of Sigstore bundles that are read. An
// unknown one is skipped: it may be of use to someone else.
// https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto
var bundleTypes = map[string]bool{
	"application/vnd.dev.sigstore.bundle.v0.3+json":        true,
	"application/vnd.dev.sigstore.bundle+json;version=0.3": true,
	"application/vnd.dev.sigstore.bundle+json;version=0.2": true,
	"application/vnd.dev.sigstore.bundle+json;version=0.1": true,
}

const (
	emptyConfig = "application/vnd.oci.empty.v1+json"

	simpleSigningType types.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	dsseType          types.MediaType = "application/vnd.dsse.envelope.v1+json"
)

// Store fetches what a registry has about an image. The verifiers of all rules
// share one, so that what they ask for at the same time is fetched once. It is
// safe for concurrent use.
type Store struct {
	client *registry.Client
	flight singleflight.Group
	bytes  *semaphore.Weighted // that are fetched and read now
}

// NewStore returns a Store over client.
func NewStore(client *registry.Client) *Store {
	return &Store{client: client, bytes: semaphore.NewWeighted(maxInFlight)}
}

// candidate is something that may prove something. Nothing in it is trusted.
type candidate struct {
	where       string // for people
	digest      digest.Digest
	layout      string
	bundle      *sgbundle.Bundle
	legacy      oci.Signature
	attestation bool  // of legacy
	err         error // it could not be read
}

// fetched is a blob that is still to be read.
type fetched struct {
	where, layout string
	desc          v1.Descriptor
	attestation   bool
}

// claim returns the predicate type that c says it has, verify.PredicateSignature for a
// signature in either layout, and "" where it cannot be told. It is not verified:
// it only says whether c could be what someone looks for.
func (c candidate) claim() (predicate string) {
	defer func() {
		if r := recover(); r != nil { // as in guarded: a stranger chose the bytes
			predicate = ""
		}
	}()
	switch {
	case c.err != nil:
		return ""
	case c.legacy != nil && !c.attestation:
		return verify.PredicateSignature
	case c.legacy != nil:
		return legacyClaim(c.legacy)
	default:
		return bundleClaim(c.bundle)
	}
}

func bundleClaim(b *sgbundle.Bundle) string {
	env, err := b.Envelope()
	if err != nil {
		return ""
	}
	raw, err := env.DecodeB64Payload()
	if err != nil {
		return ""
	}
	return predicateType(raw)
}

func legacyClaim(att oci.Signature) string {
	payload, err := att.Payload()
	if err != nil {
		return ""
	}
	var env dsse.Envelope
	if err := json.Unmarshal(payload, &env); err != nil {
		return ""
	}
	raw, err := env.DecodeB64Payload()
	if err != nil {
		return ""
	}
	return predicateType(raw)
}

func predicateType(statement []byte) string {
	var st struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(statement, &st); err != nil {
		return ""
	}
	return st.PredicateType
}

// collect returns all candidates about s.Digest, in a stable order.
func (st *Store) collect(ctx context.Context, s verify.Subject) ([]candidate, error) {
	got, err := st.share(ctx, s.Pinned(), func(ctx context.Context) (any, error) { return st.fetch(ctx, s) })
	if err != nil {
		return nil, err
	}
	return got.([]candidate), nil
}

// share calls fetch, or waits for the same call by another. What it asked of the
// registry is noted for each of them.
func (st *Store) share(ctx context.Context, key string, fetch func(context.Context) (any, error)) (any, error) {
	type result struct {
		val     any
		answers *verify.Answers
	}
	ch := st.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), collectBudget)
		defer cancel()
		answers := verify.NewAnswers()
		val, err := fetch(verify.Collect(ctx, answers))
		return result{val, answers}, err
	})
	select {
	case r := <-ch:
		got := r.Val.(result)
		verify.Collecting(ctx).Merge(got.answers)
		return got.val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fingerprint returns a digest over the lists that fetch begins with.
func (st *Store) fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	got, err := st.share(ctx, "fingerprint "+s.Pinned(), func(ctx context.Context) (any, error) { return st.peek(ctx, s) })
	if err != nil {
		return "", fault.Wrap(fault.Transient, "verify/sigstore.Fingerprint", "", err)
	}
	return got.(digest.Digest), nil
}

func (st *Store) peek(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	var parts [3]digest.Digest
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { parts[0], err = st.client.PeekReferrers(ctx, s.Name, s.Digest); return err })
	for i, suffix := range []string{".sig", ".att"} {
		g.Go(func() (err error) {
			parts[i+1], err = st.client.PeekTag(ctx, s.Name, registry.TagPrefix(s.Digest)+suffix)
			if errors.Is(err, registry.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	return digest.FromString(fmt.Sprint(parts)), nil
}

func (st *Store) fetch(ctx context.Context, s verify.Subject) ([]candidate, error) {
	var refs, sigs, atts []fetched
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { refs, err = st.referrers(gctx, s); return err })
	g.Go(func() (err error) { sigs, err = st.legacyTag(gctx, s, ".sig", simpleSigningType); return err })
	g.Go(func() (err error) { atts, err = st.legacyTag(gctx, s, ".att", dsseType); return err })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := append(append(refs, sigs...), atts...)
	total, err := withinCaps(s, all)
	if err != nil {
		return nil, err
	}
	if err := st.bytes.Acquire(ctx, total); err != nil {
		return nil, err
	}
	defer st.bytes.Release(total)
	out := make([]candidate, len(all))
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, f := range all {
		g.Go(func() error {
			b, err := st.client.Blob(gctx, s.Name, digest.Digest(f.desc.Digest.String()))
			if err != nil {
				return missingPart(f.where, err)
			}
			if int64(len(b)) != f.desc.Size { // the caps were checked against what it claims
				out[i] = candidate{where: f.where, layout: f.layout, attestation: f.attestation, err: fmt.Errorf("it has %d bytes, not %d", len(b), f.desc.Size)}
				return nil
			}
			out[i] = parse(f, b)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// missingPart turns "not found" for something that the registry itself listed
// into a failure: it must not look like an absence of evidence.
func missingPart(where string, err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return fault.New(fault.Transient, "verify/sigstore", "", "%s: listed by the registry, but missing: %v", where, err)
	}
	return fmt.Errorf("%s: %w", where, err)
}

// withinCaps returns how many bytes there are to fetch.
func withinCaps(s verify.Subject, all []fetched) (total int64, err error) {
	for _, f := range all {
		if f.desc.Size < 0 || f.desc.Size > registry.MaxBlob {
			return 0, tooMuch(s)
		}
		total += f.desc.Size
	}
	if len(all) > maxCandidates || total > maxBytes {
		return 0, tooMuch(s)
	}
	return total, nil
}

func tooMuch(s verify.Subject) error {
	return fault.New(fault.Denied, "verify/sigstore", "delete what does not belong to this image",
		"%s: more than %d signatures and attestations, or more than %d bytes of them", s.Pinned(), maxCandidates, maxBytes)
}

// manifest is the part of an OCI image manifest that is used here.
type manifest struct {
	MediaType    types.MediaType `json:"mediaType"`
	ArtifactType string          `json:"artifactType"`
	Config       v1.Descriptor   `json:"config"`
	Layers       []v1.Descriptor `json:"layers"`
	Manifests    []v1.Descriptor `json:"manifests"`
	Subject      *v1.Descriptor  `json:"subject"`
}

func (st *Store) referrers(ctx context.Context, s verify.Subject) ([]fetched, error) {
	list, err := st.client.Referrers(ctx, s.Name, s.Digest)
	if err != nil {
		return nil, err
	}
	var wanted []v1.Descriptor
	for _, d := range list {
		// The list's artifactType is a hint that saves a request. Without one,
		// and where a registry gives the type of the empty config instead
		// (go-containerregistry's does), the manifest is asked.
		if d.ArtifactType == "" || d.ArtifactType == emptyConfig || bundleTypes[d.ArtifactType] {
			wanted = append(wanted, d)
		}
	}
	if len(wanted) > maxCandidates {
		return nil, tooMuch(s)
	}
	parts := make([][]fetched, len(wanted))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, d := range wanted {
		g.Go(func() (err error) { parts[i], err = st.referrer(gctx, s, d); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []fetched
	for _, p := range parts {
		out = append(out, p...)
	}
	return out, nil
}

// referrer returns the bundles in one referring manifest.
func (st *Store) referrer(ctx context.Context, s verify.Subject, d v1.Descriptor) ([]fetched, error) {
	where := "referrer " + d.Digest.String()
	b, err := st.client.Manifest(ctx, s.Name, digest.Digest(d.Digest.String()))
	if err != nil {
		return nil, missingPart(where, err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, nil //nolint:nilerr // not a manifest, so not a bundle either
	}
	var out []fetched
	for _, l := range m.Layers {
		if bundleTypes[string(l.MediaType)] {
			out = append(out, fetched{where: where, layout: LayoutReferrers, desc: l})
		}
	}
	return out, nil
}

// legacyTag returns the layers of type mt behind the tag sha256-<hex><suffix>.
func (st *Store) legacyTag(ctx context.Context, s verify.Subject, suffix string, mt types.MediaType) ([]fetched, error) {
	tag := registry.TagPrefix(s.Digest) + suffix
	b, err := st.client.Tag(ctx, s.Name, tag)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.New(fault.Denied, "verify/sigstore", "sign the image again", "%s:%s: not a manifest: %w", s.Name, tag, err)
	}
	var out []fetched
	for _, l := range m.Layers {
		if l.MediaType == mt {
			out = append(out, fetched{where: tag + " " + l.Digest.String(), layout: LayoutLegacy, desc: l, attestation: mt == dsseType})
		}
	}
	return out, nil
}

func parse(f fetched, b []byte) candidate {
	c := candidate{where: f.where, digest: digest.Digest(f.desc.Digest.String()), layout: f.layout, attestation: f.attestation}
	if f.layout == LayoutReferrers {
		c.bundle, c.err = parseBundle(b)
		return c
	}
	c.legacy, c.err = parseLegacy(f.desc.Annotations, b, f.attestation)
	return c
}

// maxParts is how many objects, lists and elements a bundle may have: an honest one
// has some hundred, whatever is in its payload, which is one string. Each takes far
// more memory than its bytes.
const maxParts = 16_384

// parts counts the objects, lists and elements of a JSON document.
func parts(b []byte) (n int) {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[', ',':
			n++
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return n
}

func parseBundle(b []byte) (*sgbundle.Bundle, error) {
	if parts(b) > maxParts {
		return nil, fmt.Errorf("bundle: more than %d parts", maxParts)
	}
	var bundle sgbundle.Bundle
	if err := bundle.UnmarshalJSON(b); err != nil {
		return nil, fmt.Errorf("bundle: %s", verify.Brief(err.Error()))
	}
	if !bundleTypes[bundle.GetMediaType()] {
		return nil, fmt.Errorf("bundle of media type %q", verify.Brief(bundle.GetMediaType()))
	}
	return &bundle, nil
}

// parseLegacy makes cosign's value of a layer and its annotations.
// https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
func parseLegacy(annotations map[string]string, payload []byte, attestation bool) (oci.Signature, error) {
	var opts []static.Option
	if s := annotations[static.BundleAnnotationKey]; s != "" {
		var rb cbundle.RekorBundle
		if err := json.Unmarshal([]byte(s), &rb); err != nil {
			return nil, fmt.Errorf("log entry: %w", err)
		}
		// cosign asserts the type and decodes without looking at the error.
		body, ok := rb.Payload.Body.(string)
		if !ok {
			return nil, errors.New("log entry: the body is not a string")
		}
		if _, err := base64.StdEncoding.DecodeString(body); err != nil {
			return nil, fmt.Errorf("log entry: %w", err)
		}
		opts = append(opts, static.WithBundle(&rb))
	}
	if s := annotations[static.RFC3161TimestampAnnotationKey]; s != "" {
		var ts cbundle.RFC3161Timestamp
		if err := json.Unmarshal([]byte(s), &ts); err != nil {
			return nil, fmt.Errorf("timestamp: %w", err)
		}
		opts = append(opts, static.WithRFC3161Timestamp(&ts))
	}
	if s := annotations[static.CertificateAnnotationKey]; s != "" {
		opts = append(opts, static.WithCertChain([]byte(s), []byte(annotations[static.ChainAnnotationKey])))
	}
	if attestation {
		return static.NewAttestation(payload, opts...)
	}
	sig := annotations[static.SignatureAnnotationKey]
	if sig == "" {
		return nil, errors.New("no signature")
	}
	return static.NewSignature(payload, sig, opts...)
}
