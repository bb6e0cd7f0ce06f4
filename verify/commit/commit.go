// Package commit owns the question who authorised a commit. It judges raw
// object bytes: the bytes that hash to the commit's id are the bytes whose
// signature is checked and the bytes that name the tree.
//
// It guarantees that history only moves forward along first parents from the
// last applied commit (or the operator's anchor, or the root), and that each
// step was signed by a known key, valid when Holdfast first saw the commit, of a
// signer whom a rule permits every path of the step's diff, what a merge adds
// on its own included; and that whatever else a rule asks for is there: approvals
// by others, an owner, a security key that verified who was there, a summary that
// binds commit, repository and ref. It refuses objects that two readers could
// understand differently, weak keys and hashes, certificates without a proven time,
// tags that nobody signed, and to be built without signers or rules.
package commit

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// KindCommit is the kind of a commit as a verify.Subject.
const KindCommit = "commit"

// SSHNamespace is the signature namespace of commits; see gitformat-signature
// and git's gpg-interface.c, which calls ssh-keygen -Y verify -n git.
const SSHNamespace = "git"

const (
	defaultMaxCommits = 10_000
	maxChecks         = 50 // steps that evidence describes one by one
	op                = "verify/commit"
)

// Signer is a person or a bot whose signatures count.
type Signer struct {
	Name    string
	SSH     []AllowedSigner
	OpenPGP [][]byte // public keys, armored or binary
	// Certified is whom certificates must name, as gitsign has them made, and by
	// what root they are judged. The root must prove the time of a signature.
	Certified *verify.Signer
	// UserVerified asks for signatures of security keys that verified, by PIN or
	// fingerprint, who was there.
	UserVerified bool
	// NotBefore and NotAfter bound when the signer may sign, both inclusive;
	// zero is unbounded. They come on top of what the keys say.
	NotBefore, NotAfter time.Time
}

// Config says whom to believe.
type Config struct {
	Repository string // for messages and evidence
	// URI names the repository, and Ref what is followed there, in approvals and
	// source attestations: a commit's own signature binds neither. Both are
	// required where a rule asks for one.
	URI, Ref string
	// Anchor is the commit where judging starts when nothing was applied yet.
	// It is trusted itself. Without it all history is judged.
	Anchor  string
	Signers []Signer
	Rules   []Rule
	// Asked says where the rules are, for people: "holdfast.yaml:9".
	Asked string
	// Owners says whom the names in CODEOWNERS mean: names of Signers.
	Owners map[string][]string
	// Tags is set where tags are followed instead of a branch.
	Tags       *Tags
	MaxCommits int // steps judged at once at most; 10,000 if zero
	// Prover makes what judges certificates; required where a signer is Certified.
	Prover NewProver
	// Revocations may grow at any time. A step by a revoked signer or key
	// authorises nothing, whatever the date on it, which is the signer's own
	// word. With a Since, a step counts that was seen, or is proven to be signed,
	// before; approvals, tags and notes count only where that is proven, for they
	// may come long after the commit. A revoked commit may not be head; what comes after it may. Nil
	// revokes nothing.
	Revocations *verify.Revocations
}

// History gives access to commits. sources/git implements it.
type History interface {
	// Commit returns the raw bytes of the commit object id.
	Commit(ctx context.Context, id string) ([]byte, error)
	// ChangedPaths returns the paths that differ between the trees of two
	// commits, both sides of renames included. An empty parent is the empty tree.
	ChangedPaths(ctx context.Context, parent, child string) ([]string, error)
	// File returns the content of a regular file in a commit's tree, and an error
	// wrapping fs.ErrNotExist if there is none. It MUST NOT follow symlinks.
	File(ctx context.Context, id, path string) ([]byte, error)
	// Notes returns what the notes under a ref ("refs/notes/…") say about a commit:
	// now, and when it was accepted. Strangers may have written it.
	Notes(ctx context.Context, ref, id string) ([][]byte, error)
	// Tag returns the newest tag that matches a pattern and leads to a commit: its
	// name without refs/tags/, and the id and raw bytes of the tag object. Those of
	// a lightweight tag, which has none, are the commit's id and nil. An error
	// wrapping fs.ErrNotExist says that there is no such tag.
	Tag(ctx context.Context, pattern, id string) (name, object string, raw []byte, err error)
}

// Verifier judges commits. It is safe for concurrent use.
type Verifier struct {
	repository string
	anchor     string
	most       int
	uri, ref   string
	asked      string
	keys       keyring
	revoked    *verify.Revocations
	rules      []Rule
	ruled      map[string]bool // signers that some rule names
	forges     map[string]bool // signers whose merges some rule takes
	owners     map[string][]string
	tags       *Tags
}

// New returns a Verifier for c. It refuses, as fault.Invalid, a configuration
// that would check nothing or not what it says.
func New(c Config) (*Verifier, error) {
	invalid := func(hint, format string, args ...any) (*Verifier, error) {
		return nil, fault.New(fault.Invalid, op+".New", hint, "commits of %s: "+format, append([]any{c.Repository}, args...)...)
	}
	if len(c.Signers) == 0 {
		return invalid("list who may sign commits", "no signers")
	}
	if len(c.Rules) == 0 {
		return invalid("say which signers may change which paths", "no rules")
	}
	if c.Anchor != "" && !commitID.MatchString(c.Anchor) {
		return invalid("give the anchor as a full commit id", "anchor %q is not a commit id", c.Anchor)
	}
	if c.MaxCommits < 0 {
		return invalid("use a positive number", "maxCommits is negative")
	}
	v := &Verifier{repository: c.Repository, anchor: c.Anchor, most: c.MaxCommits, revoked: c.Revocations, uri: c.URI, ref: c.Ref, asked: c.Asked}
	if v.most == 0 {
		v.most = defaultMaxCommits
	}
	var err error
	if v.keys, err = newKeyring(c.Signers, c.Prover); err != nil {
		return invalid("correct the signer's keys", "%w", err)
	}
	if err := v.setRules(c); err != nil {
		return invalid(fault.HintOf(err), "%w", err)
	}
	return v, nil
}

// Verify judges every step from the commit from (the last applied one,
// exclusive), or else the anchor (exclusive), or else the root (inclusive), to
// head. With head equal to from it judges head itself again.
//
// The time now is when head was first seen: keys must be valid then, and at the
// commit's own date, which its signer chose and which therefore can only
// narrow. A refusal is fault.Denied, or fault.Waiting where what is missing may
// still come, such as an approval. It comes with the evidence so far, its last
// check failed; errors of h keep their kind.
func (v *Verifier) Verify(ctx context.Context, h History, from, head string, now time.Time) (verify.Evidence, error) {
	ev := verify.Evidence{
		Subject: verify.Subject{Kind: KindCommit, Reference: head, Name: v.repository},
		Rule:    "commits of " + v.repository,
		Facts:   map[string]any{},
	}
	if now.IsZero() {
		return ev, fault.New(fault.Internal, op, "", "the time of first sight is missing")
	}
	for _, id := range []string{head, from} {
		if id != "" && !commitID.MatchString(id) {
			return ev, fault.New(fault.Invalid, op, "name commits by their full id", "%q is not a commit id", clip(id))
		}
	}
	ev.RestsOn = []verify.Anchor{{Kind: verify.AnchorCommit, Value: head}}
	if err := v.revoked.Check(ev.RestsOn...); err != nil {
		return v.refused(ev, head, denied("push a commit that takes "+short(head)+" back (git revert)", "%w", err))
	}
	steps, err := v.steps(ctx, h, from, head)
	if err != nil {
		return v.refused(ev, head, err)
	}
	if steps == nil {
		ev.Checks = []verify.Check{{Name: "anchor", OK: true, Detail: short(head) + " is the anchor that the operator set"}}
		ev.Facts["commits"] = 0
		return ev, nil
	}
	ev, err = v.judgeAll(ctx, h, ev, steps, now)
	if err != nil {
		return ev, err
	}
	// Again, for what was revoked while the history was judged.
	if err := v.revoked.Check(ev.RestsOn...); err != nil {
		return v.refused(ev, head, err)
	}
	return ev, nil
}

// judgeAll judges steps, oldest first, so that the first wrong one is named.
func (v *Verifier) judgeAll(ctx context.Context, h History, ev verify.Evidence, steps []string, now time.Time) (verify.Evidence, error) {
	if left := len(steps) - maxChecks; left > 0 {
		ev.Checks = append(ev.Checks, verify.Check{Name: "commits", OK: true,
			Detail: fmt.Sprintf("%d earlier commits, each signed and permitted by a rule", left)})
	}
	walk := &walk{v: v, h: h, now: now, steps: steps}
	if v.tags != nil {
		if err := walk.tagged(ctx, &ev, steps[len(steps)-1]); err != nil {
			return v.refused(ev, steps[len(steps)-1], err)
		}
	}
	for i, id := range steps {
		if err := ctx.Err(); err != nil {
			return ev, fault.Wrap(fault.Transient, op, "", err)
		}
		s, err := walk.judge(ctx, i)
		if err != nil {
			if i < len(steps)-maxChecks {
				ev.Checks = nil // the summary promised too much
			}
			return v.refused(ev, id, err)
		}
		ev.RestsOn = verify.Anchors(ev.RestsOn, s.anchors())
		if i >= len(steps)-maxChecks {
			ev.Checks = append(ev.Checks, s.checks(id)...)
		}
		if i == len(steps)-1 {
			s.describe(ev.Facts)
			ev.Facts["commits"] = len(steps)
		}
	}
	return ev, nil
}

// refused adds the failed check that err stands for, if it is a refusal.
func (v *Verifier) refused(ev verify.Evidence, id string, err error) (verify.Evidence, error) {
	if k := fault.KindOf(err); k == fault.Denied || k == fault.Waiting {
		asked := v.asked
		if by, ok := errors.AsType[byRule](err); ok {
			asked = by.asked
		}
		ev.Checks = append(ev.Checks, verify.Check{Name: "commit", OK: false, Found: err.Error(), Want: "a step that is signed and permitted by a rule",
			Detail: short(id), Asked: asked, Next: fault.HintOf(err)})
	}
	return ev, err
}

// steps returns the ids to judge, oldest first, or nil if head is the anchor.
func (v *Verifier) steps(ctx context.Context, h History, from, head string) ([]string, error) {
	if head == v.anchor {
		if from != "" {
			// Only the very first step may start at the anchor: later it would be a way back.
			if _, err := v.firstParents(ctx, h, head, from); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	if from == head {
		return []string{head}, nil
	}
	base := from
	if base == "" {
		base = v.anchor
	}
	return v.firstParents(ctx, h, head, base)
}

// Follows checks that head is from, or comes after it along first parents. It
// judges nothing: who signed which step is not asked.
func (v *Verifier) Follows(ctx context.Context, h History, from, head string) error {
	_, err := v.firstParents(ctx, h, head, from)
	return err
}

// firstParents follows first parents from head to base (exclusive), or to the root if
// base is empty, and returns the ids oldest first.
func (v *Verifier) firstParents(ctx context.Context, h History, head, base string) ([]string, error) {
	var ids []string
	for id := head; id != base; {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(fault.Transient, op, "", err)
		}
		if len(ids) == v.most {
			return nil, denied("set a newer anchor, or raise maxCommits", "commit %s: more than %d commits have to be judged", short(head), v.most)
		}
		c, err := load(ctx, h, id)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		if len(c.parents) > 0 {
			id = c.parents[0]
			continue
		}
		if base == "" {
			break
		}
		if base == v.anchor {
			return nil, denied("set the anchor to a commit of this branch",
				"commit %s by %s: the anchor %s is not among its first parents", short(head), c.author, short(base))
		}
		return nil, v.sideways(ctx, h, head, base)
	}
	slices.Reverse(ids)
	return ids, nil
}

// sideways is the refusal of a force-push.
func (v *Verifier) sideways(ctx context.Context, h History, head, base string) error {
	c, err := load(ctx, h, head)
	if err != nil {
		return err
	}
	return denied("push a commit on top of "+short(base)+" (git revert takes changes back)",
		"commit %s by %s: history moved back or sideways (force-push): %s, the last applied commit, is not among its first parents",
		short(head), c.author, short(base))
}

// load reads and parses one commit, and makes sure that the bytes are the ones
// that id names.
func load(ctx context.Context, h History, id string) (*object, error) {
	raw, err := h.Commit(ctx, id)
	if err != nil {
		return nil, fault.Wrap(fault.Transient, op, "fetch the repository again", err)
	}
	if err := checkID("commit", raw, id); err != nil {
		return nil, denied("fetch the repository again", "commit %s: %w", short(id), err)
	}
	c, err := parse(raw)
	if err != nil {
		return nil, denied("write the commit again with git", "commit %s by %s: malformed: %w", short(id), authorGuess(raw), err)
	}
	return c, nil
}

func denied(hint, format string, args ...any) error {
	return fault.New(fault.Denied, op, hint, format, args...)
}

// because is the reason of a refusal that does not know its commit yet.
func because(hint, format string, args ...any) error {
	return &fault.Error{Op: op, Kind: fault.Denied, Hint: hint, Err: fmt.Errorf(format, args...)}
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}$`)

func short(id string) string { return id[:min(len(id), 12)] }

// clip makes text that an attacker may have chosen fit for one line of a log.
func clip(s string) string { return clipTo(s, 120) }

func clipTo(s string, most int) string {
	s = strings.ToValidUTF8(s[:min(len(s), most)], "?")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

var errUnsigned = errors.New("unsigned")
