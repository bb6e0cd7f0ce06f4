package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// ownersFiles are where GitHub looks for CODEOWNERS, in this order; the first
// that is there counts.
var ownersFiles = []string{".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS"}

// Bounds of one CODEOWNERS file. GitHub reads up to 3 MB.
const (
	maxOwners     = 3 << 20 // bytes
	maxOwnerLines = 20_000  // lines with a pattern
	maxOwnerFacts = 50      // paths whose owners are in the evidence
)

// codeowners is a CODEOWNERS file, in GitHub's format.
// https://docs.github.com/en/repositories/managing-your-repositorys-settings-and-features/customizing-your-repository/about-code-owners
type codeowners []ownerLine

type ownerLine struct {
	pattern ownerPattern
	owners  []string // in lower case; none leaves what matches without an owner
}

// parseOwners parses a CODEOWNERS file. A line that does not parse is an error
// with its number, where GitHub leaves the line out: then an earlier line would
// say who owns what that one was about.
func parseOwners(b []byte) (codeowners, error) {
	switch {
	case len(b) > maxOwners:
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(b), maxOwners)
	case !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0:
		return nil, errors.New("it is not UTF-8 text")
	}
	out := codeowners{}
	for n, line := range contentLines(b) {
		l, err := parseOwnerLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(out) == maxOwnerLines {
			return nil, fmt.Errorf("it has more than %d lines", maxOwnerLines)
		}
		out = append(out, l)
	}
	return out, nil
}

// ownerName is @user, @organisation/team or an email.
var ownerName = regexp.MustCompile(`^(@[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+)$`)

func parseOwnerLine(line string) (ownerLine, error) {
	var l ownerLine
	pattern, rest := cutPattern(line)
	var err error
	if l.pattern, err = newOwnerPattern(pattern); err != nil {
		return l, fmt.Errorf("pattern %q: %w", clip(pattern), err)
	}
	for _, name := range strings.Fields(rest) {
		if name[0] == '#' {
			break
		}
		if !ownerName.MatchString(name) {
			return l, fmt.Errorf("%q is no owner", clip(name))
		}
		l.owners = append(l.owners, strings.ToLower(name))
	}
	return l, nil
}

// cutPattern takes everything up to the first space that no backslash escapes.
func cutPattern(line string) (pattern, rest string) {
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case ' ', '\t':
			return line[:i], line[i:]
		}
	}
	return line, ""
}

// ownerPattern is a pattern by segments of a path. "**" is any number of them,
// and the rest is as in [path.Match], without classes.
type ownerPattern []string

// newOwnerPattern reads a pattern as of gitignore, without what GitHub does not
// know in CODEOWNERS: negation, classes, and an escaped "#".
func newOwnerPattern(s string) (ownerPattern, error) {
	switch {
	case strings.HasPrefix(s, "!"):
		return nil, errors.New("patterns cannot be negated")
	case strings.ContainsAny(s, "[]"):
		return nil, errors.New("patterns have no classes")
	case strings.HasPrefix(s, `\#`):
		return nil, errors.New(`a pattern cannot begin with "#"`)
	case strings.Contains(s, "***"):
		return nil, errors.New("three asterisks mean nothing")
	case strings.HasSuffix(s, `\`) && !strings.HasSuffix(s, `\\`):
		return nil, errors.New("a backslash escapes nothing")
	case s == "/":
		return nil, errors.New("it matches nothing")
	}
	segments := strings.Split(strings.TrimPrefix(s, "/"), "/")
	last := len(segments) - 1
	folder := segments[last] == "" // a trailing slash: what is below
	if folder {
		segments, last = segments[:last], last-1
	}
	if slices.Contains(segments, "") {
		return nil, errors.New("it has an empty segment")
	}
	for _, g := range segments {
		if _, err := path.Match(g, ""); err != nil {
			return nil, errors.New("a backslash escapes nothing")
		}
	}
	p := ownerPattern(segments)
	switch {
	case folder && segments[last] == "**":
	case folder:
		p = append(p, "*", "**")
	case segments[last] == "**":
		p = append(p[:last], "*", "**")
	case segments[last] != "*": // a file, or a folder with all that is below
		p = append(p, "**")
	}
	if last == 0 && !strings.HasPrefix(s, "/") { // one segment matches in any folder
		p = append(ownerPattern{"**"}, p...)
	}
	return p, nil
}

// match reports whether p matches all of a path. It takes time proportional to
// the product of the lengths.
func (p ownerPattern) match(segments []string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(segments) {
		switch {
		case i < len(p) && p[i] == "**":
			star, mark = i, j
			i++
		case i < len(p) && matchSegment(p[i], segments[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == "**" {
		i++
	}
	return i == len(p)
}

func matchSegment(pattern, segment string) bool {
	ok, err := path.Match(pattern, segment)
	return ok && err == nil
}

// of returns who owns a path: of the last line that matches.
func (c codeowners) of(name string) []string {
	segments := strings.Split(name, "/")
	for _, l := range slices.Backward(c) {
		if l.pattern.match(segments) {
			return l.owners
		}
	}
	return nil
}

// ownersAt reads CODEOWNERS as of a commit. An error wrapping fs.ErrNotExist says
// that there is none.
func (w *walk) ownersAt(ctx context.Context, id string) (codeowners, error) {
	for _, name := range ownersFiles {
		b, err := w.h.File(ctx, id, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := parseOwners(b)
		if err != nil {
			return nil, denied("correct it; while it is broken, only a newer anchor leads on", "%s of commit %s: %w", name, short(id), err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("commit %s has no CODEOWNERS: %w", short(id), fs.ErrNotExist)
}

// own checks that an owner of each path signed or approved the step, by
// CODEOWNERS as of the parent: who owns what is not for the commit itself to say.
func (w *walk) own(ctx context.Context, s *step, parent string, paths []string) error {
	if parent == "" {
		return s.denied("set the anchor to a commit that has CODEOWNERS", "it is the first commit, and CODEOWNERS of the one before it says who owns what")
	}
	owners, err := w.ownersAt(ctx, parent)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.denied("set the anchor to a commit that has CODEOWNERS", "%w", err)
	case fault.KindOf(err) == fault.Denied:
		return s.denied(fault.HintOf(err), "%w", err)
	case err != nil:
		return err
	}
	s.owners = map[string][]string{}
	for _, p := range paths {
		names := owners.of(p)
		if len(names) == 0 {
			return s.denied("give the path an owner in CODEOWNERS, in a commit before this one", "nobody owns %s", clip(p))
		}
		if !slices.ContainsFunc(names, func(name string) bool { return s.speaks(w.v.owners[name]) }) {
			return s.waiting(w.v.hintApprove(s.id), "%s belongs to %s, and none of them signed or approved it", clip(p), clip(strings.Join(names, ", ")))
		}
		if len(s.owners) < maxOwnerFacts {
			s.owners[p] = names
		}
	}
	return w.keepsOwners(ctx, s, paths)
}

// speaks reports whether one of the signers signed or approved the step.
func (s *step) speaks(signers []string) bool {
	return slices.Contains(signers, s.by.signer) ||
		slices.ContainsFunc(s.approvals, func(a match) bool { return slices.Contains(signers, a.signer) })
}

// keepsOwners refuses a step after which nobody could go on: one that breaks
// CODEOWNERS, or takes it away.
func (w *walk) keepsOwners(ctx context.Context, s *step, paths []string) error {
	if !slices.ContainsFunc(paths, func(p string) bool { return slices.Contains(ownersFiles, p) }) {
		return nil
	}
	_, err := w.ownersAt(ctx, s.id)
	if errors.Is(err, fs.ErrNotExist) || fault.KindOf(err) == fault.Denied {
		return s.denied("correct CODEOWNERS in the same commit", "it would leave no CODEOWNERS that can be read: %w", err)
	}
	return err
}
