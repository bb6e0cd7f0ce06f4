package registry

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// emptyJSON is the config of an artifact that has none.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidance-for-an-empty-descriptor
const (
	emptyJSON     = "{}"
	emptyJSONType = "application/vnd.oci.empty.v1+json"
)

// Attachment is one document that is to be found among what refers to an artifact.
type Attachment struct {
	// MediaType is that of Content, and the artifact type of the manifest.
	MediaType   string
	Content     []byte
	Annotations map[string]string
	// Most is how many documents may refer to the artifact already; zero is as many
	// as are read. Verifiers refuse an artifact that has too many.
	Most int
}

// descriptor is what names content.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       digest.Digest     `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, b []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: sum(b), Size: int64(len(b))}
}

// Attach pushes a as a referrer of the manifest d in repository repo, and returns the
// digest of its manifest. A registry without the referrers API gets the referrers tag
// as well, which two writers at once may lose an entry of. The errors are those of
// reading; a registry that sends the content elsewhere is fault.Denied.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests-with-subject
func (c *Client) Attach(ctx context.Context, repo string, d digest.Digest, a Attachment) (digest.Digest, error) {
	const op = "verify/registry.Attach"
	r, err := repository(repo)
	if err != nil {
		return "", err
	}
	subject, err := c.Manifest(ctx, repo, d)
	if err != nil {
		return "", err
	}
	if err := c.room(ctx, repo, d, a.Most); err != nil {
		return "", err
	}
	kind, err := MediaType(subject)
	if err != nil {
		return "", fault.New(fault.Denied, op, "", "%s@%s: %w", repo, d, err)
	}
	for _, b := range [][]byte{[]byte(emptyJSON), a.Content} {
		if err := c.upload(ctx, r, b); err != nil {
			return "", err
		}
	}
	about := descriptor{MediaType: kind, Digest: d, Size: int64(len(subject))}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": a.MediaType, "annotations": a.Annotations,
		"config": describe(emptyJSONType, []byte(emptyJSON)), "layers": []descriptor{describe(a.MediaType, a.Content)}, "subject": about,
	})
	if err != nil {
		return "", fault.Wrap(fault.Internal, op, "", err)
	}
	resp, err := c.put(ctx, r, sum(manifest).String(), string(types.OCIManifestSchema1), manifest)
	if err != nil {
		return "", err
	}
	if resp.Get("OCI-Subject") != "" { // "the registry […] understood and processed the request's subject"
		return sum(manifest), nil
	}
	entry := describe(string(types.OCIManifestSchema1), manifest)
	entry.ArtifactType, entry.Annotations = a.MediaType, a.Annotations
	return sum(manifest), c.addToTag(ctx, r, d, entry)
}

// room refuses to attach where most documents refer to d already; zero is any number.
func (c *Client) room(ctx context.Context, repo string, d digest.Digest, most int) error {
	if most == 0 {
		return nil
	}
	there, err := c.Referrers(ctx, repo, d)
	if err == nil && len(there) >= most {
		err = fault.New(fault.Denied, "verify/registry.Attach", "delete old referrers of this artifact", "%s@%s has %d referrers already: of many more nobody would read any", repo, d, len(there))
	}
	return err
}

// addToTag adds an entry to the referrers tag of d.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
func (c *Client) addToTag(ctx context.Context, r name.Repository, d digest.Digest, entry descriptor) error {
	const op = "verify/registry.Attach"
	list := []json.RawMessage{}
	old, _, err := c.manifest(ctx, r, TagPrefix(d), "")
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	default:
		known, err := parseIndex(r, old)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(known, func(k v1.Descriptor) bool { return k.Digest.String() == entry.Digest.String() }) {
			return nil
		}
		if len(known) >= MaxReferrers {
			return tooMany(r)
		}
		var raw struct {
			Manifests []json.RawMessage `json:"manifests"`
		}
		if err := json.Unmarshal(old, &raw); err != nil {
			return fault.Wrap(fault.Transient, op, "", err)
		}
		list = raw.Manifests // as they are, whatever else they say
	}
	b, err := json.Marshal(entry)
	if err != nil {
		return fault.Wrap(fault.Internal, op, "", err)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": append(list, b)})
	if err != nil {
		return fault.Wrap(fault.Internal, op, "", err)
	}
	_, err = c.put(ctx, r, TagPrefix(d), string(types.OCIImageIndex), index)
	return err
}

func (c *Client) put(ctx context.Context, r name.Repository, reference, mediaType string, b []byte) (http.Header, error) {
	return c.write(ctx, http.MethodPut, r, "/manifests/"+reference, mediaType, b, http.StatusCreated)
}

// upload pushes a blob, unless it is there.
func (c *Client) upload(ctx context.Context, r name.Repository, b []byte) error {
	const op = "verify/registry.Attach"
	resp, err := c.request(ctx, http.MethodHead, r, "/blobs/"+sum(b).String(), nil)
	if err == nil {
		discard(resp)
		return nil
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	header, err := c.write(ctx, http.MethodPost, r, "/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	// The place to upload to is the registry's to choose, but not the host: the
	// credential goes with the content.
	base, err := c.address(r, "/blobs/uploads/")
	if err != nil {
		return err
	}
	place, err := base.Parse(header.Get("Location"))
	if err != nil || header.Get("Location") == "" {
		return fault.New(fault.Transient, op, "", "%s: the registry names no place to upload to", r)
	}
	if place.Host != base.Host || place.Scheme != base.Scheme || place.User != nil {
		return fault.New(fault.Denied, op, "", "%s: refusing to upload to %s", r, redacted(place))
	}
	q := place.Query()
	q.Set("digest", sum(b).String())
	place.RawQuery = q.Encode()
	_, err = c.writeTo(ctx, http.MethodPut, r, place, "application/octet-stream", b, http.StatusCreated)
	return err
}

// write sends content below /v2/<name>, with leave to push, and requires an answer.
func (c *Client) write(ctx context.Context, method string, r name.Repository, path, mediaType string, b []byte, want int) (http.Header, error) {
	u, err := c.address(r, path)
	if err != nil {
		return nil, err
	}
	return c.writeTo(ctx, method, r, u, mediaType, b, want)
}

func (c *Client) writeTo(ctx context.Context, method string, r name.Repository, u *url.URL, mediaType string, b []byte, want int) (http.Header, error) {
	const op = "verify/registry.Attach"
	header := http.Header{}
	if mediaType != "" {
		header.Set("Content-Type", mediaType)
	}
	resp, err := c.authorized(ctx, method, r, u, "pull,push", header, b)
	if err != nil {
		return nil, err
	}
	discard(resp)
	switch resp.StatusCode {
	case want:
		return maps.Clone(resp.Header), nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, fault.New(fault.Transient, op, "give the account for "+r.RegistryStr()+" leave to push", "%s: the registry answered %s", redacted(u), status(resp))
	default:
		return nil, fault.New(fault.Transient, op, "", "%s: the registry answered %s", redacted(u), status(resp))
	}
}
