package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Rule says which artifacts it is about and who must have vouched for them. It
// is plain data and comes from the operator's file. Rules are checked by
// [NewSet], which refuses one that would trust anything.
type Rule struct {
	Name string
	Kind string // KindImage, …
	// Repositories are patterns over normalised repository names
	// ("index.docker.io/library/nginx"), compared segment by segment: "*" is
	// exactly one segment, "**" any number of them, none included. There are no
	// wildcards inside a segment. "docker.io" means "index.docker.io".
	Repositories []string
	Environments []string // empty: all
	// Mode is how a refusal under this rule is taken; empty is Enforce. Observe and
	// Warn end at Until, which they need: then the rule is enforced.
	Mode  Mode      `json:",omitempty"`
	Until time.Time `json:",omitzero"`
	// Signers are those that Require names.
	Signers []Signer
	// Require is all that is asked of an artifact; at least one thing.
	Require []Requirement
	// Source says where the rule is, for people: "holdfast.yaml:12".
	Source string `json:"-"`
}

// Mode is how a refusal is taken.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce" // it is a denial
	Warn    Mode = "warn"    // it passes, and people are told
	Observe Mode = "observe" // it passes, and is on record
)

// Digest binds everything the rule says, trusted root included.
func (r Rule) Digest() digest.Digest {
	b, err := json.Marshal(r)
	if err != nil { // strings, bytes and booleans always marshal
		panic("verify: rule is not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Names lists the signers of a requirement, for people.
func (r Rule) Names(q Requirement) string {
	var all []string
	for _, s := range r.Signers {
		if slices.Contains(q.Signers, s.Name) {
			all = append(all, s.String())
		}
	}
	return strings.Join(all, " or ")
}

const ruleOp = "verify.NewSet"

func ruleError(r Rule, hint, format string, args ...any) error {
	return fault.New(fault.Invalid, ruleOp, hint, "trust rule %q: %s", r.Name, fmt.Sprintf(format, args...))
}

// validate refuses a rule that would check nothing or that means something
// else than it seems to.
func (r Rule) validate() error {
	kind, known := KindOf(r.Kind)
	switch {
	case r.Name == "":
		return ruleError(r, "name each rule under trust:", "it has no name")
	case !known:
		return ruleError(r, "use one of "+strings.Join(KindNames(), ", "), "unknown kind %q", r.Kind)
	case len(r.Repositories) == 0:
		return ruleError(r, `list repositories:, for example "ghcr.io/acme/**"`, "it matches no repository")
	case len(r.Require) == 0:
		return ruleError(r, "add require:, for example - signature: {signers: [release]}", "it asks for nothing")
	case r.Mode != "" && r.Mode != Enforce && r.Mode != Warn && r.Mode != Observe:
		return ruleError(r, "use enforce, warn or observe", "unknown mode %q", r.Mode)
	case (r.Mode == Warn || r.Mode == Observe) && r.Until.IsZero():
		return ruleError(r, "set until: to the day from which it is enforced", "mode %s has no end", r.Mode)
	case !r.Until.IsZero() && r.Mode != Warn && r.Mode != Observe:
		return ruleError(r, "leave until: out", "only warn and observe end")
	}
	if !kind.Placed && len(r.Environments) > 0 {
		return ruleError(r, "leave environments: out", "a desired state and a policy bundle belong to no environment: the rule would never apply")
	}
	for i, s := range r.Signers {
		if err := s.Validate(); err != nil {
			return ruleError(r, "look at the signer under trust: in holdfast.yaml", "%v", err)
		}
		if slices.ContainsFunc(r.Signers[:i], func(o Signer) bool { return o.Name == s.Name }) {
			return ruleError(r, "give each signer its own name", "signer %q is there twice", s.Name)
		}
	}
	names := map[string]bool{}
	for _, q := range r.Require {
		if err := q.validate(r.Signers); err != nil {
			return ruleError(r, "look at require: of the rule", "%v", err)
		}
		if names[q.Name()] {
			return ruleError(r, "ask once, with all signers and a threshold", "it asks twice for %s", q.Name())
		}
		names[q.Name()] = true
	}
	for _, p := range r.Repositories {
		if _, err := parsePattern(p); err != nil {
			return ruleError(r, `write patterns like "ghcr.io/acme/*" or "ghcr.io/acme/**"`, "%v", err)
		}
	}
	for _, e := range r.Environments {
		if e == "" || strings.ContainsAny(e, "*?[") {
			return ruleError(r, "name environments exactly, or leave environments: out for all", "environment %q is not a name", e)
		}
	}
	return nil
}

// prefixNamesAPath reports whether p is scheme://host/segment…: anything
// shorter is everyone at a host, or everyone, and so is a segment that is empty or
// only looks like one.
func prefixNamesAPath(p string) bool {
	_, rest, _ := strings.Cut(p, "://")
	host, path, _ := strings.Cut(rest, "/")
	segments := strings.Split(strings.TrimSuffix(path, "/"), "/")
	odd := func(s string) bool {
		return s == "" || s == "." || s == ".." || s == "@" || strings.TrimSpace(s) != s
	}
	return host != "" && !slices.ContainsFunc(segments, odd)
}

// pattern is a parsed element of Rule.Repositories.
type pattern []string

func parsePattern(s string) (pattern, error) {
	p := pattern(strings.Split(s, "/"))
	for _, seg := range p {
		switch {
		case seg == "*" || seg == "**":
		case seg == "":
			return nil, fmt.Errorf("repository pattern %q has an empty segment", s)
		case strings.ContainsAny(seg, "*?[]{}\\@ "):
			return nil, fmt.Errorf("repository pattern %q: segment %q mixes text with a wildcard", s, seg)
		}
	}
	first := p[0]
	if first == "docker.io" {
		p[0], first = "index.docker.io", "index.docker.io"
	}
	isHost := strings.ContainsAny(first, ".:") || first == "localhost" || first == "*" || first == "**"
	if !isHost {
		return nil, fmt.Errorf("repository pattern %q does not begin with a registry host", s)
	}
	return p, nil
}

// Repositories returns what reports whether one of the patterns, as in a [Rule],
// matches the name of a repository. It refuses to match nothing.
func Repositories(patterns []string) (func(name string) bool, error) {
	var parsed []pattern
	for _, s := range patterns {
		p, err := parsePattern(s)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, p)
	}
	if len(parsed) == 0 {
		return nil, errors.New("it matches no repository")
	}
	return func(name string) bool {
		return slices.ContainsFunc(parsed, func(p pattern) bool { return p.match(name) })
	}, nil
}

// match compares segment by segment. The work is bounded by the product of the lengths.
func (p pattern) match(name string) bool {
	segs := strings.Split(name, "/")
	// reach[j] says that the pattern so far matches the first j segments.
	reach := make([]bool, len(segs)+1)
	reach[0] = true
	for _, want := range p {
		next := make([]bool, len(segs)+1)
		for j := range next {
			switch {
			case want == "**":
				next[j] = reach[j] || (j > 0 && next[j-1])
			case j > 0 && (want == "*" || want == segs[j-1]):
				next[j] = reach[j-1]
			}
		}
		reach = next
	}
	return reach[len(segs)]
}

// moreSpecific orders patterns: more literal segments first, then fewer "**",
// then more "*" (each "*" demands a segment).
func (p pattern) moreSpecific(q pattern) bool {
	pl, pd, ps := p.shape()
	ql, qd, qs := q.shape()
	switch {
	case pl != ql:
		return pl > ql
	case pd != qd:
		return pd < qd
	default:
		return ps > qs
	}
}

func (p pattern) shape() (literals, doubles, singles int) {
	for _, s := range p {
		switch s {
		case "**":
			doubles++
		case "*":
			singles++
		default:
			literals++
		}
	}
	return literals, doubles, singles
}
