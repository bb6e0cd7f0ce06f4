package commit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// walk judges the steps of one history.
type walk struct {
	v     *Verifier
	h     History
	now   time.Time
	steps []string // oldest first

	vouched map[string]*vouched // by commit: what its notes say of its source
}

// step is the outcome for one commit.
type step struct {
	id     string
	commit *object
	by     match  // whose change it is
	merger *match // the forge that made the merge; nil if by did
	paths  int
	asked
	at []string // where the rules that apply to it are
}

// asked is what the rules that apply to a step ask for, and what was found.
type asked struct {
	approvals []match             // who approved
	owners    map[string][]string // path → the owners of whom one was asked
	source    *vouched
}

// anchors are all that a step counts by.
func (s step) anchors() []verify.Anchor {
	out := slices.Clone(s.by.anchors)
	if s.merger != nil {
		out = append(out, s.merger.anchors...)
	}
	for _, a := range s.approvals {
		out = append(out, a.anchors...)
	}
	if s.source != nil {
		out = append(out, s.source.by.anchors...)
	}
	return out
}

// checks say what a step rests on.
func (s step) checks(id string) []verify.Check {
	text := fmt.Sprintf("%s signed by %s (%s) for %d paths", short(id), s.by.signer, s.by, s.paths)
	if s.merger != nil {
		text = fmt.Sprintf("%s merged by %s (%s) what %s (%s) signed, for %d paths", short(id), s.merger.signer, s.merger, s.by.signer, s.by, s.paths)
	}
	out := []verify.Check{{Name: "commit", OK: true, Detail: text, Asked: strings.Join(s.at, ", ")}}
	if len(s.approvals) > 0 {
		var who []string
		for _, a := range s.approvals {
			who = append(who, fmt.Sprintf("%s (%s)", a.signer, a))
		}
		out = append(out, verify.Check{Name: "approvals", OK: true, Detail: short(id) + " approved by " + strings.Join(who, ", ")})
	}
	if s.source != nil {
		out = append(out, verify.Check{Name: "source", OK: true, Detail: fmt.Sprintf("%s verified by %s: %s", short(s.source.id), s.source.verifier, strings.Join(s.source.levels, ", "))})
	}
	return out
}

// describe sets the facts of a step that policies may use.
func (s step) describe(facts map[string]any) {
	facts["signer"] = s.by.signer
	facts["fingerprint"] = s.by.fingerprint
	facts["method"] = s.by.kind
	facts["userVerified"] = s.by.userVerified
	facts["author"] = s.commit.author.String()
	if !s.by.time.IsZero() {
		facts["signed"] = s.by.time.UTC().Format(time.RFC3339)
	}
	if s.merger != nil {
		facts["mergedBy"] = s.merger.signer
	}
	if len(s.approvals) > 0 {
		var list []any
		for _, a := range s.approvals {
			list = append(list, map[string]any{"signer": a.signer, "fingerprint": a.fingerprint, "method": a.kind, "userVerified": a.userVerified})
		}
		facts["approvals"] = list
	}
	if len(s.owners) > 0 {
		owners := map[string]any{}
		for path, names := range s.owners {
			owners[path] = slices.Clone(names)
		}
		facts["owners"] = owners
	}
	if s.source != nil {
		facts["source"] = map[string]any{"verifier": s.source.verifier, "levels": slices.Clone(s.source.levels), "commit": s.source.id}
	}
}

// judge checks the step i: its form, its signature, and that rules permit its
// signer to change every path that differs from its first parent.
func (w *walk) judge(ctx context.Context, i int) (step, error) {
	s := step{id: w.steps[i]}
	var err error
	if s.commit, err = load(ctx, w.h, s.id); err != nil {
		return step{}, err
	}
	if s.by, err = w.signed(s.id, s.commit); err != nil {
		return step{}, err
	}
	parent := ""
	if len(s.commit.parents) > 0 {
		parent = s.commit.parents[0]
	}
	paths, err := w.h.ChangedPaths(ctx, parent, s.id)
	if err != nil {
		return step{}, err
	}
	s.paths = len(paths)
	if w.v.forges[s.by.signer] {
		if err := w.merged(ctx, &s, paths); err != nil {
			return step{}, err
		}
	}
	if !w.v.ruled[s.by.signer] { // an empty commit has no path that a rule could refuse
		return step{}, s.denied("add a rule for the signer, or have the commit signed by another", "signed by %s, whom no rule permits anything", s.by.signer)
	}
	rules, owned, err := w.v.applying(s, paths)
	if err != nil {
		return step{}, err
	}
	for _, r := range rules {
		if r.Asked != "" {
			s.at = append(s.at, r.Asked)
		}
	}
	rules = slices.DeleteFunc(rules, func(r Rule) bool { return !r.demands() })
	err = w.satisfy(ctx, i, &s, parent, rules, owned)
	return s, err
}

// signed returns whose signature a commit carries, unless it is revoked.
func (w *walk) signed(id string, c *object) (match, error) {
	by, err := w.v.keys.verify(c, w.now)
	if err != nil {
		return match{}, fault.Wrap(fault.Denied, op, "", fmt.Errorf("commit %s by %s: %w", short(id), c.author, err))
	}
	if by.time.IsZero() { // a commit names its signature: whoever has seen the one has seen the other
		by.anchors = verify.SeenAt(w.now, by.anchors)
	}
	if err := w.v.revoked.Check(by.anchors...); err != nil {
		return match{}, denied("have the change signed by someone else; if it is old, set the anchor to a commit after it that you have checked",
			"commit %s by %s: %w", short(id), c.author, err)
	}
	return by, nil
}

// denied is a refusal of the step.
func (s step) denied(hint, format string, args ...any) error {
	return denied(hint, "commit %s by %s: "+format, append([]any{short(s.id), s.commit.author}, args...)...)
}

// waiting is a refusal of the step that something which may still come would lift.
func (s step) waiting(hint, format string, args ...any) error {
	return fault.New(fault.Waiting, op, hint, "commit %s by %s: "+format, append([]any{short(s.id), s.commit.author}, args...)...)
}

// applying returns the rules that apply to a step and the paths of those that
// ask for owners. It refuses the step if a path has no rule that permits it.
func (v *Verifier) applying(s step, paths []string) (rules []Rule, owned []string, err error) {
	use := make([]bool, len(v.rules))
	for _, p := range paths {
		permitted, owners := false, false
		for i, r := range v.rules {
			if !slices.Contains(r.Signers, s.by.signer) || !r.matches(p) {
				continue
			}
			use[i] = true
			owners = owners || r.Owners
			permitted = permitted || s.merger == nil || slices.Contains(r.ForgeMerges, s.merger.signer)
		}
		switch {
		case permitted:
		case s.merger != nil:
			return nil, nil, s.denied("merge it with a signature of your own, or add the forge to forgeMerges of the rule",
				"no rule permits %s, merged by %s, to change %s", s.by.signer, s.merger.signer, clip(p))
		default:
			return nil, nil, s.denied("have the commit signed by someone whom a rule permits this path, or add a rule",
				"no rule permits %s to change %s", s.by.signer, clip(p))
		}
		if owners {
			owned = append(owned, p)
		}
	}
	for i, r := range v.rules {
		if use[i] {
			rules = append(rules, r)
		}
	}
	return rules, owned, nil
}

// satisfy checks everything that the rules ask for beyond a signature.
func (w *walk) satisfy(ctx context.Context, i int, s *step, parent string, rules []Rule, owned []string) error {
	if len(rules) == 0 {
		return nil
	}
	for _, r := range rules {
		if r.UserVerified && !s.by.userVerified {
			err := errNotVerified(s.by.signer)
			return r.lacks(s.denied(fault.HintOf(err), "%w", err))
		}
	}
	if slices.ContainsFunc(rules, func(r Rule) bool { return r.Approvals != nil || r.Owners }) {
		if err := w.approve(ctx, s, rules); err != nil {
			return err
		}
	}
	if len(owned) > 0 {
		if err := w.own(ctx, s, parent, owned); err != nil {
			return rules[slices.IndexFunc(rules, func(r Rule) bool { return r.Owners })].lacks(err)
		}
	}
	for _, r := range rules {
		if r.Source == nil {
			continue
		}
		if err := w.vouch(ctx, i, s, *r.Source); err != nil {
			return r.lacks(err)
		}
	}
	return nil
}
