package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// MaxTags is how many tags are read of one repository.
const MaxTags = 10_000

// Open returns the blob with digest d and of size bytes as a stream: for content
// that is too large to hold. What was read may be trusted only once Read has
// returned io.EOF, which it does for content that has the digest and the size.
// The stream is bounded by the time of one request, body included.
func (c *Client) Open(ctx context.Context, repo string, d digest.Digest, size int64) (io.ReadCloser, error) {
	r, resp, err := c.blob(ctx, "verify/registry.Open", repo, d)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength >= 0 && resp.ContentLength != size {
		discard(resp)
		return nil, otherSize(r, d, size)
	}
	return &blob{body: resp.Body, repository: r, digest: d, size: size, hash: sha256.New()}, nil
}

// blob is a stream whose digest and size are checked while it is read.
type blob struct {
	body       io.ReadCloser
	repository name.Repository
	digest     digest.Digest
	size, read int64
	hash       hash.Hash
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.hash.Write(p[:n]) // a hash never fails
	if b.read += int64(n); b.read > b.size {
		return 0, otherSize(b.repository, b.digest, b.size)
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, fault.New(fault.Transient, "verify/registry.Open", "", "%s@%s: %w", b.repository, b.digest, cause(err))
	case b.read != b.size:
		return n, otherSize(b.repository, b.digest, b.size)
	}
	if got := digest.Digest("sha256:" + hex.EncodeToString(b.hash.Sum(nil))); got != b.digest {
		return n, fault.New(fault.Transient, "verify/registry.Open", "check the registry and what is between it and here",
			"%s: the registry answered with other content (%s) than was asked for (%s)", b.repository, got, b.digest)
	}
	return n, io.EOF
}

// Close implements io.Closer.
func (b *blob) Close() error { return b.body.Close() }

func otherSize(r name.Repository, d digest.Digest, want int64) error {
	return fault.New(fault.Transient, "verify/registry.Open", "check the registry and what is between it and here",
		"%s: the registry answered with another number of bytes than the %d that %s has", r, want, d)
}

// Tags lists the tags of repo, all pages of them.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
func (c *Client) Tags(ctx context.Context, repo string) ([]string, error) {
	const op = "verify/registry.Tags"
	r, err := repository(repo)
	if err != nil {
		return nil, err
	}
	var out []string
	path, seen := "/tags/list", map[string]bool{}
	for path != "" {
		if seen[path] || len(seen) == maxPages {
			return nil, fault.New(fault.Transient, op, "", "%s: the list of tags has more than %d pages, or they go in a circle", r, maxPages)
		}
		seen[path] = true
		resp, err := c.get(ctx, r, path, nil)
		if err != nil {
			return nil, fault.Wrap(fault.Transient, op, "", err) // a page that is missing is a broken list
		}
		b, err := read(resp, MaxManifest)
		if err != nil {
			return nil, err
		}
		page, err := parseTags(b)
		if err != nil {
			return nil, fault.New(fault.Transient, op, "check the registry and what is between it and here", "%s: %w", r, err)
		}
		if out = append(out, page...); len(out) > MaxTags {
			return nil, fault.New(fault.Denied, op, "delete old tags", "%s: more than %d tags", r, MaxTags)
		}
		if path, err = nextPage(r, resp); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseTags(b []byte) ([]string, error) {
	var list struct {
		Tags []string `json:"tags"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("the list of tags is not JSON: %w", err)
	}
	return list.Tags, nil
}
