package git

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// errRedirect refuses to follow a server to another origin.
var errRedirect = errors.New("the server redirects to another host")

// invalid is a fault of the repository's content.
func invalid(hint, format string, args ...any) error {
	return fault.New(fault.Invalid, "sources/git", hint, format, args...)
}

// fail classifies what came from a library and names the source. Text that a
// server chose is not repeated beyond a clipped, printable line.
func (s *Source) fail(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	op = "sources/git." + op
	var classified *fault.Error
	if errors.As(err, &classified) {
		return fault.Wrap(classified.Kind, op, "", fmt.Errorf("source %s: %w", s.name, err))
	}
	transient := func(hint, format string, args ...any) error {
		return fault.New(fault.Transient, op, hint, "source %s: "+format, append([]any{s.name}, args...)...)
	}
	switch {
	case ctx.Err() != nil:
		return transient("check that the Git server answers in time", "%w", ctx.Err())
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed), isSSHAuth(err):
		return transient("check the source's credentials, and that they may read the repository", "the server refuses the credentials")
	case knownhosts.IsHostKeyChanged(err):
		return transient("find out why the host key changed before you change known_hosts", "the server's host key is not the one in known_hosts")
	case knownhosts.IsHostUnknown(err):
		return transient("add the server's host key to known_hosts", "the server's host key is not in known_hosts")
	case errors.Is(err, errRedirect):
		return transient("set the source's url to where the repository is now", "%w; credentials are not sent there", errRedirect)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return transient("check the source's url, and that the credentials may read it", "repository not found")
	case errors.Is(err, transport.ErrEmptyRemoteRepository), errors.Is(err, errNoBranch):
		return transient("push the branch, or correct the source's branch", "branch %s does not exist", s.refs.branch)
	case errors.Is(err, errNoTag):
		return transient("push a tag with a semantic version, or correct the source's pattern", "no tag like %s with a semantic version exists", s.refs.tags)
	case errors.Is(err, plumbing.ErrObjectNotFound):
		return transient("fetch the source again", "the mirror lacks an object: %w", err)
	}
	return transient("check that the Git server can be reached", "%w", &clipped{err})
}

// clipped shortens the text of an error and keeps its chain.
type clipped struct{ err error }

func (c *clipped) Error() string { return clip(c.err.Error()) }
func (c *clipped) Unwrap() error { return c.err }

// clip makes text from outside fit for one line of a log.
func clip(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s[:min(len(s), most)])
	return strings.TrimSpace(s)
}

// isSSHAuth reports whether err is x/crypto's answer to refused keys; it has no type.
func isSSHAuth(err error) bool {
	return strings.Contains(err.Error(), "ssh: unable to authenticate")
}
