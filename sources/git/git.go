// Package git owns the [sources.Source] that follows one branch, or the newest
// version tag, of one Git repository, over HTTP(S), SSH or from a path, and the bare mirror that lets
// Holdfast restart, and repair drift, while Git is down.
//
// It guarantees that every object it hands out hashes to the id it was asked
// for, that a snapshot is read-only and lazy over Git's own trees, that a
// symlink never leaves the tree, and that credentials go to the one host of the
// configured URL and into no error. It refuses submodule content, paths that
// could escape a checkout (".git" in every disguise that Git knows, "..",
// control characters), repositories beyond its limits, and plain HTTP to
// other hosts. It judges nobody: whether a commit may be trusted is the
// business of package verify/commit, to which it gives the raw bytes.
package git

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// Config describes one source. It holds no secret itself, only ways to get one.
type Config struct {
	Name string // the source's name, as revisions carry it
	// URL is https://…, http://… (loopback, or with InsecureHTTP), ssh://user@host/…,
	// git@host:path, an absolute path or file:///…. It carries no password.
	URL          string
	Branch       string   // the branch to follow, without refs/heads/; or:
	Tag          string   // pattern of tags, as of path.Match; the newest semantic version is followed
	Notes        []string // refs of notes that are brought along: "refs/notes/…"
	Dir          string   // where the bare mirror is kept between runs
	Auth         Auth
	Limits       sources.Limits
	InsecureHTTP bool // permit http:// to a host that is not loopback
}

// Auth says how to prove who we are. The functions are called for each
// connection, so that a rotated secret is used at once; what they return is
// neither kept nor logged.
type Auth struct {
	Username   string                 // for basic authentication and SSH; "git" if empty and not in the URL
	Password   func() (string, error) // HTTP basic authentication; forges take an access token here
	Token      func() (string, error) // HTTP bearer authentication
	SSHKey     func() ([]byte, error) // private key in OpenSSH or PEM form, without a passphrase
	KnownHosts string                 // known_hosts file; required for SSH
	CA         []byte                 // PEM certificates that HTTPS must chain to, instead of the system's
}

// transfer is how many bytes one fetch may bring: history is larger than a
// snapshot, but not without bound.
func transfer(l sources.Limits) int64 { return 4 * l.Bytes }

// Source follows one branch, or the newest tag. It is safe for concurrent use.
type Source struct {
	name   string
	refs   followed
	limits sources.Limits
	mirror *mirror
	remote remote
	turn   chan struct{} // held during a transfer
}

// remote is the other side: a server, or a repository at a path.
type remote interface {
	// tips says where the refs that are followed point.
	tips(ctx context.Context) (tips, error)
	// fetch brings the tips and all they reach into m.
	fetch(ctx context.Context, m *mirror) (tips, error)
	// close closes what is kept open between calls.
	close()
}

// branchName is stricter than git check-ref-format, for what a branch to deploy from is called.
var branchName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,199}$`)

// New returns the Source that c describes. It does no I/O; what is wrong with c
// is fault.Invalid.
func New(c Config) (*Source, error) {
	const op = "sources/git.New"
	invalid := func(hint, format string, args ...any) error {
		return fault.New(fault.Invalid, op, hint, "source %s: "+format, append([]any{c.Name}, args...)...)
	}
	if c.Name == "" {
		return nil, fault.New(fault.Invalid, op, "give the source a name", "a git source has no name")
	}
	if err := c.checkRefs(); err != nil {
		return nil, invalid("name the branch to deploy from, for example main, or a pattern of tags, for example v*", "%w", err)
	}
	if c.Dir == "" || !filepath.IsAbs(c.Dir) {
		return nil, invalid("give the mirror an absolute folder", "mirror folder %q is not an absolute path", c.Dir)
	}
	l := c.Limits
	if l.Negative() {
		return nil, invalid("use positive limits", "a limit is negative")
	}
	ep, err := parseURL(c.URL)
	if err != nil {
		return nil, invalid("use https://host/path, ssh://user@host/path, git@host:path or an absolute path", "%w", err)
	}
	limits := l.WithDefaults()
	r, err := newRemote(c, ep, limits)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, op, "correct the source's url or auth", fmt.Errorf("source %s: %w", c.Name, err))
	}
	return &Source{
		name:   c.Name,
		refs:   c.followed(),
		limits: limits,
		mirror: newMirror(c.Dir, limits),
		remote: r,
		turn:   make(chan struct{}, 1),
	}, nil
}

func (c Config) followed() followed {
	return followed{branch: c.Branch, tags: c.Tag, notes: c.Notes}
}

func (c Config) checkRefs() error {
	for _, n := range c.Notes {
		if err := checkNotesRef(n); err != nil {
			return err
		}
	}
	if c.Tag != "" {
		if c.Branch != "" {
			return errors.New("there is both a branch and a pattern of tags")
		}
		return checkTagPattern(c.Tag)
	}
	if !branchName.MatchString(c.Branch) || plumbing.NewBranchReferenceName(c.Branch).Validate() != nil {
		return fmt.Errorf("branch %q is not a branch name", c.Branch)
	}
	return nil
}

// Head returns the commit that the branch names on the remote now, or that the
// newest tag leads to. Any failure to ask is fault.Transient.
func (s *Source) Head(ctx context.Context) (sources.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	t, err := s.remote.tips(ctx)
	if err != nil {
		return sources.Revision{}, s.fail(ctx, "Head", err)
	}
	return sources.Revision{Source: s.name, ID: t.commit.String()}, nil
}

// Fetch brings the branch, with its whole history, into the mirror and returns
// the content of r. A revision that the branch does not have (any more) is
// fault.Transient: ask Head again.
func (s *Source) Fetch(ctx context.Context, r sources.Revision) (*sources.Snapshot, error) {
	id, err := s.revision(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Timeout)
	defer cancel()
	if err := s.transfer(ctx, id); err != nil {
		return nil, s.fail(ctx, "Fetch", err)
	}
	snap, err := s.snapshot(r, id)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, fault.New(fault.Transient, "sources/git.Fetch", "look at the branch's newest commit again",
			"%s: %s does not have commit %s", s.name, s.refs, r.ID)
	}
	return snap, s.fail(ctx, "Fetch", err)
}

// Local returns the content of r from the mirror, without any network: after a
// restart, and while Git is down.
func (s *Source) Local(ctx context.Context, r sources.Revision) (*sources.Snapshot, error) {
	id, err := s.revision(r)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, "Local", err)
	}
	snap, err := s.snapshot(r, id)
	return snap, s.fail(ctx, "Local", err)
}

// Commit returns the raw bytes of the commit object id from the mirror, exactly
// as they hash to id.
func (s *Source) Commit(ctx context.Context, id string) ([]byte, error) {
	h, err := parseID(id)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, s.fail(ctx, "Commit", err)
	}
	b, err := s.mirror.commit(h)
	return b, s.fail(ctx, "Commit", err)
}

// ChangedPaths returns, sorted, every path whose file, mode or submodule
// differs between the trees of parent and child: both sides of a rename, and
// deletions. An empty parent stands for the empty tree.
func (s *Source) ChangedPaths(ctx context.Context, parent, child string) ([]string, error) {
	paths, err := s.changedPaths(ctx, parent, child)
	return paths, s.fail(ctx, "ChangedPaths", err)
}

func (s *Source) changedPaths(ctx context.Context, parent, child string) ([]string, error) {
	var from plumbing.Hash // zero: the empty tree
	if parent != "" {
		id, err := parseID(parent)
		if err != nil {
			return nil, err
		}
		if from, err = s.mirror.rootTree(id); err != nil {
			return nil, err
		}
	}
	id, err := parseID(child)
	if err != nil {
		return nil, err
	}
	to, err := s.mirror.rootTree(id)
	if err != nil {
		return nil, err
	}
	d := differ{ctx: ctx, m: s.mirror}
	if err := d.trees("", from, to); err != nil {
		return nil, err
	}
	return d.sorted(), nil
}

// Keep pins the commit id, with all it reaches, in the mirror.
func (s *Source) Keep(ctx context.Context, id string) error {
	h, err := parseID(id)
	if err == nil {
		_, err = s.mirror.commit(h)
	}
	if err == nil {
		err = s.mirror.setRef(keepPrefix+id, h)
	}
	return s.fail(ctx, "Keep", err)
}

// Close closes the mirror's files and idle connections. The Source opens them
// again when it is used.
func (s *Source) Close() error {
	s.remote.close()
	return s.mirror.close()
}

// transfer makes sure that want is in the mirror if the branch has it.
func (s *Source) transfer(ctx context.Context, want plumbing.Hash) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	known, err := s.known(want)
	if err != nil || known && len(s.refs.notes) == 0 {
		return err
	}
	// Of a commit that is known the notes may have changed.
	t, err := s.remote.fetch(ctx, s.mirror)
	if err == nil {
		err = s.mirror.keep(ctx, s.refs, t)
	}
	if known && err != nil && ctx.Err() == nil && isUnreachable(err) {
		return nil // what came with it is judged
	}
	return err
}

// known reports whether a commit is in the mirror with all it reaches. Only a ref
// says so: a crash in the middle of a transfer leaves objects, but no ref.
func (s *Source) known(id plumbing.Hash) (bool, error) {
	for _, ref := range []string{s.refs.head(), keepPrefix + id.String()} {
		if kept, err := s.mirror.ref(ref); err != nil || kept == id {
			return err == nil, err
		}
	}
	return false, nil
}

// isUnreachable reports whether a failure is one of the way to the other side,
// and not of what it holds.
func isUnreachable(err error) bool {
	var classified *fault.Error
	return !errors.As(err, &classified)
}

// snapshot reads the commit and the shape of its tree, and no blob.
func (s *Source) snapshot(r sources.Revision, id plumbing.Hash) (*sources.Snapshot, error) {
	root, err := s.mirror.rootTree(id)
	if err != nil {
		return nil, err
	}
	if err := s.mirror.withinLimits(root); err != nil {
		return nil, err
	}
	return &sources.Snapshot{
		Revision: r,
		// Git's tree id is a Merkle root already; the object format is hashed
		// with it so that ids of another format can never be mistaken for it.
		Tree: digest.FromString("git tree sha1 " + root.String()),
		FS:   &treeFS{m: s.mirror, root: root},
	}, nil
}

func (s *Source) revision(r sources.Revision) (plumbing.Hash, error) {
	if r.Source != s.name {
		return plumbing.ZeroHash, fault.New(fault.Internal, "sources/git", "", "revision %s is not of source %s", r, s.name)
	}
	id, err := parseID(r.ID)
	return id, fault.Wrap(fault.Invalid, "sources/git", "name a commit by its full id", err)
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}$`)

func parseID(id string) (plumbing.Hash, error) {
	if !commitID.MatchString(id) {
		return plumbing.ZeroHash, fault.New(fault.Invalid, "sources/git", "name a commit by its full id, 40 hexadecimal digits",
			"%q is not a commit id", clip(id))
	}
	return plumbing.NewHash(id), nil
}
