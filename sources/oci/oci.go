// Package oci owns the [sources.Source] that follows a tag, or a range of
// versions, of a repository in an OCI registry, and the reading of policy
// bundles that are kept there.
//
// It guarantees that nothing of an artifact is read before its digest was
// admitted by whoever judges signatures, that what is read has the digests and
// sizes that the admitted manifest names, that a snapshot is read-only, and that
// the order of artifacts is the one that their publisher signed: a tag that is
// moved back leads nowhere. What was fetched is kept on disk, so that Holdfast
// can restart, and repair drift, while the registry is down. It refuses links,
// devices, paths that lead out or mean two things, repeated entries, artifacts
// beyond its limits and ones that unfold to far more than they are, container
// images, and to be built without a judge.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/blang/semver/v4"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// Registry reads from OCI registries. Its failures are fault.Transient.
type Registry interface {
	// PeekTag returns the digest that the registry says tag stands for now.
	PeekTag(ctx context.Context, repository, tag string) (digest.Digest, error)
	// Tags lists all tags of a repository.
	Tags(ctx context.Context, repository string) ([]string, error)
	Content
}

// Content is what a registry has under a digest.
type Content interface {
	// Manifest returns the manifest with digest d. It MUST fail if the bytes do
	// not have that digest.
	Manifest(ctx context.Context, repository string, d digest.Digest) ([]byte, error)
	// Open returns the blob with digest d and of size bytes. Read MUST NOT return
	// io.EOF for content that has another digest or size.
	Open(ctx context.Context, repository string, d digest.Digest, size int64) (io.ReadCloser, error)
}

// Admit decides whether the artifact with a digest may be read. It returns nil
// only for one that is trusted, and is asked before anything of it is read.
type Admit func(ctx context.Context, d digest.Digest) error

// Config describes one source.
type Config struct {
	Name string // the source's name, as revisions carry it
	// Repository is host/path, without a tag and without oci://.
	Repository string
	// Tag is what is followed; or:
	Tag string
	// Semver is a range of versions, such as ">=1.2.0 <2.0.0"; the tag with the
	// highest one is followed. A pre-release counts only if the range names one.
	Semver string
	// Annotations are what an artifact's manifest must say, exactly. They are in
	// what is signed: they bind an artifact to one purpose.
	Annotations map[string]string
	Dir         string // where what was fetched is kept between runs
	Registry    Registry
	Admit       Admit
	Limits      sources.Limits
}

// Source follows one tag or range of versions. It is safe for concurrent use.
type Source struct {
	name, repository, tag string
	versions              *versions // nil: the tag is followed
	annotations           map[string]string
	registry              Registry
	admit                 Admit
	limits                sources.Limits
	store                 *store
	turn                  chan struct{} // held while an artifact is brought
}

var (
	repositoryName = regexp.MustCompile(`^([a-z0-9-]+(\.[a-z0-9-]+)+(:[0-9]+)?|[a-z0-9-]+:[0-9]+|localhost)(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$`)
	// tagName is the OCI distribution specification's form of a tag.
	tagName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// New returns the Source that c describes. It does no I/O; what is wrong with c
// is fault.Invalid.
func New(c Config) (*Source, error) {
	const op = "sources/oci.New"
	invalid := func(hint, format string, args ...any) error {
		return fault.New(fault.Invalid, op, hint, "source %s: "+format, append([]any{c.Name}, args...)...)
	}
	s := &Source{name: c.Name, repository: c.Repository, tag: c.Tag, annotations: c.Annotations, registry: c.Registry, admit: c.Admit,
		limits: c.Limits.WithDefaults(), turn: make(chan struct{}, 1)}
	switch {
	case c.Name == "":
		return nil, fault.New(fault.Invalid, op, "give the source a name", "an OCI source has no name")
	case c.Registry == nil || c.Admit == nil:
		return nil, fault.New(fault.Internal, op, "", "source %s: nothing to read from, or nobody who judges what is read", c.Name)
	case !repositoryName.MatchString(c.Repository):
		return nil, invalid("write oci://host/path, for example oci://ghcr.io/acme/desired-state", "%q is not a repository", c.Repository)
	case (c.Tag == "") == (c.Semver == ""):
		return nil, invalid("set tag, or semver", "it needs either a tag or a range of versions to follow")
	case c.Tag != "" && !tagName.MatchString(c.Tag):
		return nil, invalid("name the tag to deploy from, for example production", "%q is not a tag", c.Tag)
	case c.Dir == "" || !filepath.IsAbs(c.Dir):
		return nil, invalid("give it an absolute folder", "folder %q is not an absolute path", c.Dir)
	case c.Limits.Negative():
		return nil, invalid("use positive limits", "a limit is negative")
	}
	if c.Semver != "" {
		var err error
		if s.versions, err = parseVersions(c.Semver); err != nil {
			return nil, invalid(`write a range such as ">=1.2.0 <2.0.0"`, "semver %q: %w", c.Semver, err)
		}
	}
	s.store = &store{dir: c.Dir, most: 2 * s.limits.Bytes, content: c.Registry}
	return s, nil
}

// Head returns the digest that the tag stands for now, as the registry says. That
// is a hint: what is behind it is admitted, and compared with what came before,
// before it is read. Any failure to ask is fault.Transient.
func (s *Source) Head(ctx context.Context) (sources.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	tag := s.tag
	if s.versions != nil {
		tags, err := s.registry.Tags(ctx, s.repository)
		if err != nil {
			return sources.Revision{}, s.fail("Head", err)
		}
		if tag = s.versions.highest(tags); tag == "" {
			return sources.Revision{}, fault.New(fault.Transient, "sources/oci.Head", "push a tag with a version of the range, or correct the source's semver",
				"source %s: none of the %d tags of %s is a version of %s", s.name, len(tags), s.repository, s.versions)
		}
	}
	d, err := s.registry.PeekTag(ctx, s.repository, tag)
	if err != nil {
		return sources.Revision{}, s.fail("Head", fmt.Errorf("tag %s: %w", tag, err))
	}
	return sources.Revision{Source: s.name, ID: d.String()}, nil
}

// Fetch has r admitted, brings it, and returns its content.
func (s *Source) Fetch(ctx context.Context, r sources.Revision) (*sources.Snapshot, error) {
	d, err := s.revision(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	if err := s.admit(ctx, d); err != nil {
		return nil, s.fail("Fetch", err)
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, s.fail("Fetch", ctx.Err())
	}
	snap, err := s.snapshot(ctx, s.store, r, d)
	return snap, s.fail("Fetch", err)
}

// Local returns the content of r from disk, without any network: after a
// restart, and while the registry is down. It was admitted when it was fetched;
// whether it would be today is for the caller to ask.
func (s *Source) Local(ctx context.Context, r sources.Revision) (*sources.Snapshot, error) {
	d, err := s.revision(r)
	if err != nil {
		return nil, err
	}
	snap, err := s.snapshot(ctx, s.store.offline(), r, d)
	return snap, s.fail("Local", err)
}

func (s *Source) snapshot(ctx context.Context, from Content, r sources.Revision, d digest.Digest) (*sources.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := s.manifest(ctx, from, d)
	if err != nil {
		return nil, err
	}
	layer, err := m.desiredState()
	if err != nil {
		return nil, err
	}
	t, err := read(ctx, from, s.repository, s.store.dir, []descriptor{layer}, s.limits, relative)
	if err != nil {
		return nil, err
	}
	return &sources.Snapshot{Revision: r, Tree: t.digest(), FS: t}, nil
}

// manifest reads the manifest d, which must say what is asked of all of them.
func (s *Source) manifest(ctx context.Context, from Content, d digest.Digest) (*manifest, error) {
	raw, err := from.Manifest(ctx, s.repository, d)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("artifact %s: %w", short(d), err)
	}
	for k, want := range s.annotations {
		if got, ok := m.Annotations[k]; !ok || got != want {
			return nil, fault.New(fault.Denied, "sources/oci", "push the artifact with that annotation, or correct the source's annotations",
				"artifact %s: annotation %s is %q, it must be %q", short(d), k, clip(got), want)
		}
	}
	return m, nil
}

// Artifact is what the manifest of an artifact says about it. It is in what was
// signed.
type Artifact struct {
	Digest   digest.Digest
	Created  time.Time // org.opencontainers.image.created; zero if it does not say
	Version  string    // org.opencontainers.image.version; empty if it does not say
	Revision string    // org.opencontainers.image.revision, for people
	Source   string    // org.opencontainers.image.source, for people
}

// maxAhead is how far the clock of a build may be ahead of ours.
const maxAhead = 10 * time.Minute

// Advance checks that history may go on from the artifact from (empty: this is
// the first) to head, which was first seen at a given time. Both are digests that
// were admitted. A refusal is fault.Denied.
//
// The order is the one that the publisher signed: of versions where those are
// followed, and of the times of creation otherwise. A time is the publisher's
// own word, so it only narrows: one that is yet to come would keep out all that
// follow.
func (s *Source) Advance(ctx context.Context, from, head string, seen time.Time) (Artifact, error) {
	const op = "sources/oci.Advance"
	a, err := s.describe(ctx, head)
	if err != nil {
		return Artifact{}, err
	}
	switch {
	case s.versions != nil && !s.versions.contain(a.Version):
		return a, fault.New(fault.Denied, op, "push it with the annotation "+annotationVersion+" set to a version of the range",
			"source %s: artifact %s says that it is version %q, which is none of %s", s.name, short(a.Digest), clip(a.Version), s.versions)
	case s.versions == nil && a.Created.IsZero():
		return a, fault.New(fault.Denied, op, "push it with flux or oras, which write the annotation "+annotationCreated,
			"source %s: artifact %s does not say when it was made: nothing proves that it is newer than another", s.name, short(a.Digest))
	case a.Created.After(seen.Add(maxAhead)):
		return a, fault.New(fault.Denied, op, "correct the clock of the build, and push it again",
			"source %s: artifact %s says that it was made at %s, which is yet to come", s.name, short(a.Digest), a.Created.Format(time.RFC3339))
	}
	if from == "" || from == head {
		return a, nil
	}
	return a, s.Follows(ctx, from, head)
}

// Follows checks that the artifact head is from, or comes after it in the order
// that their publisher signed.
func (s *Source) Follows(ctx context.Context, from, head string) error {
	if from == head {
		return nil
	}
	f, err := s.describe(ctx, from)
	if err != nil {
		return err
	}
	h, err := s.describe(ctx, head)
	if err != nil {
		return err
	}
	back := func(what string, was, is any) error {
		return fault.New(fault.Denied, "sources/oci.Follows", "push the wanted content as a new artifact; to go back to an old one, sign an order (holdfast rollback)",
			"source %s: history moved back or sideways: artifact %s has the %s %v, and %s, the last applied one, has %v", s.name, short(h.Digest), what, is, short(f.Digest), was)
	}
	if v, err := semver.Parse(trimV(f.Version)); s.versions != nil && err == nil {
		if w, err := semver.Parse(trimV(h.Version)); err != nil || !w.GT(v) {
			return back("version", f.Version, clip(h.Version))
		}
		return nil
	}
	if !h.Created.After(f.Created) {
		return back("time of creation", f.Created.Format(time.RFC3339Nano), h.Created.Format(time.RFC3339Nano))
	}
	return nil
}

func (s *Source) describe(ctx context.Context, id string) (Artifact, error) {
	d, err := parseID(id)
	if err != nil {
		return Artifact{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	m, err := s.manifest(ctx, s.store, d)
	if err != nil {
		return Artifact{}, s.fail("Advance", err)
	}
	a := Artifact{Digest: d, Version: m.Annotations[annotationVersion], Revision: clip(m.Annotations[annotationRevision]), Source: clip(m.Annotations[annotationSource])}
	if at, ok := m.Annotations[annotationCreated]; ok {
		// RFC 3339, says the OCI image specification ("Pre-Defined Annotation Keys").
		if a.Created, err = time.Parse(time.RFC3339, at); err != nil {
			return Artifact{}, fault.New(fault.Denied, "sources/oci.Advance", "write the time of creation as 2027-01-31T12:00:00Z",
				"source %s: artifact %s: annotation %s is %q", s.name, short(d), annotationCreated, clip(at))
		}
	}
	return a, nil
}

func (s *Source) revision(r sources.Revision) (digest.Digest, error) {
	if r.Source != s.name {
		return "", fault.New(fault.Internal, "sources/oci", "", "revision %s is not of source %s", r, s.name)
	}
	return parseID(r.ID)
}

var artifactID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func parseID(id string) (digest.Digest, error) {
	if !artifactID.MatchString(id) {
		return "", fault.New(fault.Invalid, "sources/oci", "name an artifact by its digest, sha256: and 64 hexadecimal digits", "%q is not the digest of an artifact", clip(id))
	}
	return digest.Digest(id), nil
}

// fail names the source, and makes what nobody classified something that may pass.
func (s *Source) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	hint := "check that the registry can be reached, and that the artifact is there"
	return fault.Wrap(fault.Transient, "sources/oci."+op, hint, fmt.Errorf("source %s: %s: %w", s.name, s.repository, err))
}

// versions is a range of versions.
type versions struct {
	text    string
	matches semver.Range
}

func parseVersions(text string) (*versions, error) {
	r, err := semver.ParseRange(text)
	if err != nil {
		return nil, errors.New("it is not a range of versions") // the library's text names its own variables
	}
	return &versions{text, r}, nil
}

// String returns the range as it was written.
func (v *versions) String() string { return v.text }

// contain reports whether a version, with or without a leading v, is in the
// range. A pre-release is only where the range names one: 2.0.0-rc.1 is less than
// 2.0.0, and nobody means it by that.
func (v *versions) contain(version string) bool {
	w, err := semver.Parse(trimV(version))
	return err == nil && v.matches(w) && (len(w.Pre) == 0 || strings.Contains(v.text, "-"))
}

// highest returns the tag with the highest version of the range, or "".
func (v *versions) highest(tags []string) string {
	var best string
	var most semver.Version
	for _, t := range slices.Sorted(slices.Values(tags)) {
		if !tagName.MatchString(t) || !v.contain(t) {
			continue
		}
		if w, err := semver.Parse(trimV(t)); err == nil && (best == "" || w.GT(most)) {
			best, most = t, w
		}
	}
	return best
}

func trimV(version string) string { return strings.TrimPrefix(version, "v") }

// short is a digest for people.
func short(d digest.Digest) string { return d.String()[:min(len(d), len("sha256:")+12)] }
