// Package registry owns what Holdfast reads from OCI registries: the digest a
// tag stands for, manifests and blobs by digest, and the lists of what refers
// to a manifest; and the one thing that it writes there, a statement of its own that
// refers to an artifact.
//
// It guarantees that content asked for by digest has that digest, that every
// response, list and redirect chain is bounded, that a failure is never an
// empty answer, and that a credential goes to its own host and to the token
// hosts which the operator listed, and nowhere else. It refuses plain HTTP for
// a host that is not marked for it, token realms on other hosts, and pages of a
// list that lead to another host.
package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Caps on what is read. They are generous for honest content.
const (
	MaxManifest  = 4 << 20  // bytes, the limit that the OCI distribution specification recommends
	MaxBlob      = 32 << 20 // bytes
	MaxReferrers = 512      // descriptors in one list, all pages together

	maxPages     = 64
	maxRedirects = 5
	maxToken     = 1 << 20          // bytes of a token response
	maxCached    = 32 << 20         // bytes of content kept by digest
	callTimeout  = 60 * time.Second // one request, body included
)

// ErrNotFound is wrapped when the registry says that there is no such tag,
// manifest or blob.
var ErrNotFound = errors.New("not found")

// Config is what the operator says about registries.
type Config struct {
	// Hosts is keyed by host or host:port as in a reference; "docker.io" means
	// "index.docker.io". A host that is not listed is reached by HTTPS without
	// credentials.
	Hosts map[string]Host
	// DockerConfig is the path of a config.json whose "auths" give credentials
	// for hosts that have none in Hosts; empty for none. It is read again for
	// each token. Credential helpers are not run.
	DockerConfig string
}

// Host says how one registry is reached.
type Host struct {
	Username string
	// Password returns the password or token; it is asked each time, so that a
	// rotated one is used. Nil means no credentials.
	Password func() (string, error)
	CA       []byte // PEM; replaces the system's authorities
	// InsecureHTTP talks plain HTTP to this host.
	InsecureHTTP bool
	// Realms are other hosts (host or host:port) that may issue this registry's tokens.
	Realms []string
}

// Client reads from registries. It is safe for concurrent use.
type Client struct {
	hosts        map[string]*host
	dockerConfig string
	fallback     *host // hosts that are not configured
	past         *past // of a replay, which asks nobody

	mu     sync.Mutex
	bytes  int
	cache  map[digest.Digest][]byte // immutable by nature
	order  []digest.Digest
	tokens map[tokenKey]token
}

// New checks c and returns a Client. It makes no request.
func New(c Config) (*Client, error) {
	cl := &Client{
		hosts:        map[string]*host{},
		dockerConfig: c.DockerConfig,
		cache:        map[digest.Digest][]byte{},
		tokens:       map[tokenKey]token{},
	}
	var err error
	if cl.fallback, err = newHost(Host{}); err != nil {
		return nil, err
	}
	for h, conf := range c.Hosts {
		reg, err := name.NewRegistry(h, name.StrictValidation)
		if err != nil {
			return nil, fault.New(fault.Invalid, "verify/registry.New", "write host or host:port", "registry %q: %w", h, err)
		}
		if cl.hosts[reg.RegistryStr()], err = newHost(conf); err != nil {
			return nil, fault.New(fault.Invalid, "verify/registry.New", "", "registry %s: %w", h, err)
		}
	}
	return cl, nil
}

// component is one part of a repository's path, as the OCI distribution
// specification has it ("Pulling manifests"). Runtimes accept nothing else.
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// Parse implements [verify.Resolver].
func (c *Client) Parse(s verify.Subject) (verify.Subject, error) {
	s, _, err := parse(s)
	return s, err
}

func parse(s verify.Subject) (verify.Subject, name.Reference, error) {
	const op = "verify/registry.Parse"
	ref, err := name.ParseReference(s.Reference)
	if err == nil {
		for part := range strings.SplitSeq(ref.Context().RepositoryStr(), "/") {
			if !component.MatchString(part) {
				err = fmt.Errorf("%q is not a part of a repository name", part)
			}
		}
	}
	if err != nil {
		return s, nil, fault.New(fault.Invalid, op, "write the image as registry/repository:tag or registry/repository@sha256:…", "%q is not an image reference: %w", s.Reference, err)
	}
	s.Name = ref.Context().Name()
	if d, ok := ref.(name.Digest); ok {
		s.Digest = digest.Digest(d.DigestStr())
		if err := supported(s.Digest); err != nil {
			return s, nil, fault.New(fault.Invalid, op, "", "%s: %w", s.Reference, err)
		}
	}
	return s, ref, nil
}

// Resolve implements [verify.Resolver]. A tag is resolved by reading the
// manifest and hashing it; what the registry says about its digest must agree.
func (c *Client) Resolve(ctx context.Context, s verify.Subject) (verify.Subject, error) {
	const op = "verify/registry.Resolve"
	s, ref, err := parse(s)
	if err != nil || s.Digest != "" {
		return s, err
	}
	_, d, err := c.manifest(ctx, ref.Context(), ref.Identifier(), "")
	if err != nil {
		return s, noSuchImage(op, s, err)
	}
	s.Digest = d
	return s, nil
}

// Peek implements [verify.Resolver] by a HEAD request, which registries do not
// count as a pull.
func (c *Client) Peek(ctx context.Context, s verify.Subject) (verify.Subject, error) {
	const op = "verify/registry.Peek"
	s, ref, err := parse(s)
	if err != nil || s.Digest != "" {
		return s, err
	}
	d, err := c.peek(ctx, ref.Context(), ref.Identifier())
	if err != nil {
		return s, noSuchImage(op, s, err)
	}
	s.Digest = d
	return s, nil
}

// noSuchImage makes a tag that does not exist something to wait for.
func noSuchImage(op string, s verify.Subject, err error) error {
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	return fault.New(fault.Waiting, op, "push the image, or correct its name", "%s: no such image: %w", s.Reference, err)
}

// PeekTag returns the digest that the registry says tag stands for, or an error
// wrapping [ErrNotFound]. A digest in the place of tag asks whether it exists.
func (c *Client) PeekTag(ctx context.Context, repo, tag string) (digest.Digest, error) {
	r, err := repository(repo)
	if err != nil {
		return "", err
	}
	return c.peek(ctx, r, tag)
}

func (c *Client) peek(ctx context.Context, r name.Repository, id string) (digest.Digest, error) {
	resp, err := c.request(ctx, http.MethodHead, r, "/manifests/"+id, http.Header{"Accept": {acceptManifests}})
	if errors.Is(err, ErrNotFound) {
		verify.Collecting(ctx).None(question(http.MethodHead, r.Name(), manifestAt, id))
	}
	if err != nil {
		return "", err
	}
	discard(resp)
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); supported(d) == nil {
		collectHead(ctx, r.Name(), id, d)
		return d, nil
	}
	// "A HEAD request to an existing […] manifest URL […] SHOULD" give the
	// digest in that header; from others it is fetched.
	_, d, err := c.manifest(ctx, r, id, "")
	if err == nil {
		collectHead(ctx, r.Name(), id, d)
	}
	return d, err
}

// PeekReferrers returns a digest over the list of what refers to d. It changes
// when the list does.
func (c *Client) PeekReferrers(ctx context.Context, repo string, d digest.Digest) (digest.Digest, error) {
	r, err := repository(repo)
	if err != nil {
		return "", err
	}
	list, err := c.referrersAPI(ctx, r, d)
	if errors.Is(err, ErrNotFound) {
		tagged, err := c.peek(ctx, r, TagPrefix(d))
		if errors.Is(err, ErrNotFound) {
			return listDigest(nil)
		}
		return tagged, err
	}
	if err != nil {
		return "", err
	}
	return listDigest(list)
}

func listDigest(list []v1.Descriptor) (digest.Digest, error) {
	slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	b, err := json.Marshal(list)
	if err != nil {
		return "", fault.Wrap(fault.Internal, "verify/registry.PeekReferrers", "", err)
	}
	return sum(b), nil
}

// Manifest returns the manifest with digest d in repository repo, which others have
// too: it is not to be changed.
func (c *Client) Manifest(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	if b, ok := c.cached(d); ok {
		collect(ctx, manifestAt, repo, d.String(), d, b)
		return b, nil
	}
	r, err := repository(repo)
	if err != nil {
		return nil, err
	}
	b, _, err := c.manifest(ctx, r, d.String(), d)
	return b, err
}

// Tag returns the manifest that tag stands for now.
func (c *Client) Tag(ctx context.Context, repo, tag string) ([]byte, error) {
	r, err := repository(repo)
	if err != nil {
		return nil, err
	}
	b, _, err := c.manifest(ctx, r, tag, "")
	return b, err
}

// Blob returns the blob with digest d, at most [MaxBlob] bytes, which others have too:
// it is not to be changed.
func (c *Client) Blob(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	const op = "verify/registry.Blob"
	if b, ok := c.cached(d); ok {
		collect(ctx, blobAt, repo, d.String(), d, b)
		return b, nil
	}
	r, resp, err := c.blob(ctx, op, repo, d)
	if err != nil {
		return nil, err
	}
	b, err := read(resp, MaxBlob)
	if err != nil {
		return nil, err
	}
	if sum(b) != d {
		return nil, lied(r, d, b)
	}
	c.keep(d, b)
	collect(ctx, blobAt, repo, d.String(), d, b)
	return b, nil
}

// blob asks for the blob with digest d. Nothing of the answer is checked yet.
func (c *Client) blob(ctx context.Context, op, repo string, d digest.Digest) (name.Repository, *http.Response, error) {
	r, err := repository(repo)
	if err != nil {
		return r, nil, err
	}
	if err := supported(d); err != nil {
		return r, nil, fault.Wrap(fault.Denied, op, "", err)
	}
	resp, err := c.get(ctx, r, "/blobs/"+d.String(), nil)
	return r, resp, err
}

// Referrers lists the manifests that name d as their subject: by the referrers
// API, or by the referrers tag where a registry answers 404 to it.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
func (c *Client) Referrers(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	r, err := repository(repo)
	if err != nil {
		return nil, err
	}
	out, err := c.referrersAPI(ctx, r, d)
	if err == nil {
		collectList(ctx, r.Name(), d, out)
	}
	if !errors.Is(err, ErrNotFound) {
		return out, err
	}
	collectNone(ctx, referrersAt, r.Name(), d.String())
	// "If the referrers API returns a 404, the client MUST fallback to pulling
	// the referrers tag schema."
	b, _, err := c.manifest(ctx, r, TagPrefix(d), "")
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseIndex(r, b)
}

// TagPrefix returns "sha256-<hex>": the referrers tag, and the stem of the
// legacy ".sig" and ".att" tags.
func TagPrefix(d digest.Digest) string { return strings.ReplaceAll(d.String(), ":", "-") }

func (c *Client) referrersAPI(ctx context.Context, r name.Repository, d digest.Digest) ([]v1.Descriptor, error) {
	const op = "verify/registry.Referrers"
	var out []v1.Descriptor
	path := "/referrers/" + d.String()
	seen := map[string]bool{}
	for range maxPages {
		if seen[path] {
			return nil, fault.New(fault.Transient, op, "", "%s: the pages of the referrers list go in a circle", r)
		}
		seen[path] = true
		resp, err := c.get(ctx, r, path, http.Header{"Accept": {string(types.OCIImageIndex)}})
		if err != nil {
			if len(seen) > 1 && errors.Is(err, ErrNotFound) {
				// A later page that is missing is a broken list, not an absent API.
				return nil, fault.New(fault.Transient, op, "", "%s: a page of the referrers list is missing: %v", r, err)
			}
			return nil, err
		}
		b, err := read(resp, MaxManifest)
		if err != nil {
			return nil, err
		}
		if !hasType(resp, string(types.OCIImageIndex)) {
			return nil, fault.New(fault.Transient, op, "", "%s: the referrers list has content type %.80q", r, resp.Header.Get("Content-Type"))
		}
		page, err := parseIndex(r, b)
		if err != nil {
			return nil, err
		}
		if out = append(out, page...); len(out) > MaxReferrers {
			return nil, tooMany(r)
		}
		next, err := nextPage(r, resp)
		if err != nil || next == "" {
			return out, err
		}
		path = next
	}
	return nil, tooMany(r)
}

// hasType reports whether the answer says that it is of one of the media types:
// a login page is not.
func hasType(resp *http.Response, accepted ...string) bool {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && slices.Contains(accepted, mt)
}

func tooMany(r name.Repository) error {
	return fault.New(fault.Denied, "verify/registry.Referrers", "delete old referrers of this image", "%s: more than %d referrers or %d pages", r, MaxReferrers, maxPages)
}

// nextPage returns the path and query of the next page below /v2/<name>, or "".
func nextPage(r name.Repository, resp *http.Response) (string, error) {
	target, ok := parseLink(resp.Header.Get("Link"))
	if !ok {
		return "", nil
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil {
		return "", fault.New(fault.Transient, "verify/registry.Referrers", "", "%s: bad Link header", r)
	}
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/v2/"+r.RepositoryStr())
	if u.Host != resp.Request.URL.Host || !ok {
		return "", fault.New(fault.Denied, "verify/registry.Referrers", "", "%s: the next page of the referrers list is elsewhere: %s", r, redacted(u))
	}
	if u.RawQuery != "" {
		rest += "?" + u.RawQuery
	}
	return rest, nil
}

// parseLink returns the target of a Link header with rel="next" (RFC 8288).
func parseLink(h string) (string, bool) {
	for _, link := range strings.Split(h, ",") {
		target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
		if !ok || !strings.HasPrefix(target, "<") {
			continue
		}
		for _, p := range strings.Split(params, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
			if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
				return target[1:], true
			}
		}
	}
	return "", false
}

func parseIndex(r name.Repository, b []byte) ([]v1.Descriptor, error) {
	const op = "verify/registry.Referrers"
	var idx struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fault.New(fault.Transient, op, "", "%s: the referrers list is not JSON: %w", r, err)
	}
	if idx.SchemaVersion != 2 || (idx.MediaType != "" && idx.MediaType != types.OCIImageIndex) {
		return nil, fault.New(fault.Transient, op, "", "%s: the referrers list is not an OCI image index", r)
	}
	if len(idx.Manifests) > MaxReferrers {
		return nil, tooMany(r)
	}
	return idx.Manifests, nil
}

// manifestTypes are the media types of images, indexes and OCI artifacts.
var manifestTypes = []string{
	string(types.OCIImageIndex), string(types.OCIManifestSchema1),
	string(types.DockerManifestList), string(types.DockerManifestSchema2),
}

var acceptManifests = strings.Join(manifestTypes, ", ")

// manifest fetches by tag or digest; want is empty for a tag.
func (c *Client) manifest(ctx context.Context, r name.Repository, id string, want digest.Digest) ([]byte, digest.Digest, error) {
	if want != "" {
		if err := supported(want); err != nil {
			return nil, "", fault.Wrap(fault.Denied, "verify/registry.Manifest", "", err)
		}
	}
	resp, err := c.get(ctx, r, "/manifests/"+id, http.Header{"Accept": {acceptManifests}})
	if errors.Is(err, ErrNotFound) {
		collectNone(ctx, manifestAt, r.Name(), id)
	}
	if err != nil {
		return nil, "", err
	}
	b, err := read(resp, MaxManifest)
	if err != nil {
		return nil, "", err
	}
	got := sum(b)
	if want == "" {
		// Without a digest to compare with, this is all that tells a manifest from
		// the page of a proxy, or from the beginning of one.
		if !hasType(resp, manifestTypes...) || !json.Valid(b) {
			return nil, "", fault.New(fault.Transient, "verify/registry.Manifest", "check the registry and what is between it and here",
				"%s:%s: the registry answered with %d bytes of type %.80q that are no manifest", r, id, len(b), resp.Header.Get("Content-Type"))
		}
		// A header in another algorithm cannot be compared and is not used.
		if h := digest.Digest(resp.Header.Get("Docker-Content-Digest")); strings.HasPrefix(string(h), "sha256:") {
			want = h
		}
	}
	if want != "" && got != want {
		return nil, "", lied(r, want, b)
	}
	c.keep(got, b)
	collect(ctx, manifestAt, r.Name(), id, got, b)
	return b, got, nil
}

// lied says that the content is not what was asked for. Nothing was learnt about
// that, so it is asked again: an answer that was cut short looks the same.
func lied(r name.Repository, want digest.Digest, b []byte) error {
	return fault.New(fault.Transient, "verify/registry", "check the registry and what is between it and here",
		"%s: the registry answered with other content (%s) than was asked for (%s)", r, sum(b), want)
}

func sum(b []byte) digest.Digest {
	h := sha256.Sum256(b)
	return digest.Digest("sha256:" + hex.EncodeToString(h[:]))
}

// supported refuses digests that this package cannot check.
func supported(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%s: only sha256 is supported", d)
	}
	return nil
}

func repository(repo string) (name.Repository, error) {
	r, err := name.NewRepository(repo)
	if err != nil {
		return r, fault.New(fault.Invalid, "verify/registry", "", "%q is not a repository: %w", repo, err)
	}
	return r, nil
}

// read returns the body, or an error if it is longer than limit.
func read(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close() //nolint:errcheck // only read from
	const op = "verify/registry.read"
	if resp.ContentLength > limit {
		return nil, tooLong(resp.Request.URL, limit)
	}
	// What it says of its length is believed for the first megabyte only.
	buf := bytes.NewBuffer(make([]byte, 0, min(max(resp.ContentLength, 0), 1<<20)+bytes.MinRead))
	_, err := buf.ReadFrom(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fault.New(fault.Transient, op, "", "%s: %w", redacted(resp.Request.URL), err)
	}
	b := buf.Bytes()
	if int64(len(b)) > limit {
		return nil, tooLong(resp.Request.URL, limit)
	}
	return b, nil
}

func tooLong(u *url.URL, limit int64) error {
	return fault.New(fault.Transient, "verify/registry.read", "check the registry and what is between it and here",
		"%s: the answer is longer than %d bytes", redacted(u), limit)
}

func (c *Client) cached(d digest.Digest) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.cache[d]
	return b, ok
}

func (c *Client) keep(d digest.Digest, b []byte) {
	if len(b) > maxCached/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.cache[d]; ok {
		return
	}
	if cap(b)-len(b) > len(b)/8 { // what was read without knowing how long it is
		b = bytes.Clone(b)
	}
	c.cache[d] = b
	c.order = append(c.order, d)
	c.bytes += len(b)
	for c.bytes > maxCached {
		c.bytes -= len(c.cache[c.order[0]])
		delete(c.cache, c.order[0])
		c.order = c.order[1:]
	}
}
