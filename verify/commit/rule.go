package commit

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Rule permits signers to change paths. Of the rules that name a signer and match
// a path at least one must permit the change, and what any of them asks for must
// be there: a rule that asks for nothing takes nothing from one that does.
type Rule struct {
	Paths   []string // doublestar globs over slash-separated paths, from the root: "apps/**"
	Signers []string // names of Config.Signers
	// Approvals asks that others than the signer approved the commit.
	Approvals *Approvals
	// Owners asks that each path was signed or approved by one of those who own it
	// by CODEOWNERS as it was before the commit.
	Owners bool
	// UserVerified asks that the signature, and each approval, was made by a
	// security key that verified who was there.
	UserVerified bool
	// ForgeMerges are signers whose merges count as if the signer of what was
	// merged had made them: a forge signs for whoever is logged in.
	ForgeMerges []string
	// Source asks that a verifier of the source vouches for the commit, or for a
	// later one of the same history.
	Source *Source
	// Asked says where the rule is, for people: "holdfast.yaml:12".
	Asked string
}

// byRule is what one rule asks for and a step lacks.
type byRule struct {
	error
	asked string
}

func (e byRule) Unwrap() error { return e.error }

// lacks says which rule asked for what is missing.
func (r Rule) lacks(err error) error {
	if err == nil {
		return nil
	}
	return byRule{err, r.Asked}
}

// Approvals asks for approvals: signed documents that name repository, ref and
// commit.
type Approvals struct {
	Threshold int      // distinct people, the signer of the commit not among them
	Signers   []string // names of Config.Signers who may approve
}

// Source asks for a SLSA verification summary of the source track.
// https://slsa.dev/spec/v1.2/source-requirements
type Source struct {
	Signers   []string // names of Config.Signers, Certified, who may make one
	Verifiers []string // exact ids of verifiers
	Levels    []string // each must be among the verified levels, or a higher one: "SLSA_SOURCE_LEVEL_3"
}

// demands reports whether r asks for more than a signature.
func (r Rule) demands() bool {
	return r.Approvals != nil || r.Owners || r.UserVerified || r.Source != nil
}

// matches reports whether r is about path.
func (r Rule) matches(path string) bool {
	return slices.ContainsFunc(r.Paths, func(glob string) bool {
		ok, err := doublestar.Match(glob, path)
		return ok && err == nil
	})
}

// setRules checks and takes the rules of c, with whom they name.
func (v *Verifier) setRules(c Config) error {
	v.ruled, v.forges = map[string]bool{}, map[string]bool{}
	var err error
	if v.owners, err = ownerNames(c); err != nil {
		return fault.Wrap(fault.Invalid, op+".New", "correct the owners", err)
	}
	for i, r := range c.Rules {
		if err := v.checkRule(c, r); err != nil {
			return fault.Wrap(fault.Invalid, op+".New", "", fmt.Errorf("rule %d %w", i+1, err))
		}
		for _, s := range r.Signers {
			v.ruled[s] = true
		}
		for _, s := range r.ForgeMerges {
			v.forges[s] = true
		}
		r.Paths, r.Signers, r.ForgeMerges = slices.Clone(r.Paths), slices.Clone(r.Signers), slices.Clone(r.ForgeMerges)
		v.rules = append(v.rules, r)
	}
	for s := range v.forges {
		if v.ruled[s] {
			return fault.New(fault.Invalid, op+".New", "take it out of the signers of the rules: a forge signs for whoever is logged in",
				"the signer %q signs commits and merges of a forge", s)
		}
	}
	if t := c.Tags; t != nil {
		if err := t.validate(c); err != nil {
			return fault.Wrap(fault.Invalid, op+".New", "correct the tags", err)
		}
		v.tags = &Tags{Pattern: t.Pattern, Signers: slices.Clone(t.Signers)}
	}
	return nil
}

// checkRule refuses a rule that would not ask for what it says.
func (v *Verifier) checkRule(c Config, r Rule) error {
	invalid := func(hint, format string, args ...any) error {
		return fault.New(fault.Invalid, op+".New", hint, format, args...)
	}
	if len(r.Paths) == 0 || len(r.Signers) == 0 {
		return invalid("give each rule paths and signers", "has no paths or no signers")
	}
	for _, p := range r.Paths {
		if p == "" || strings.HasPrefix(p, "/") || strings.HasPrefix(p, "./") || !doublestar.ValidatePattern(p) {
			return invalid(`write globs from the root of the repository, such as "apps/**"`, "has a path that is not right: %q is not a glob that could match", p)
		}
	}
	named := slices.Concat(r.Signers, r.ForgeMerges)
	if a := r.Approvals; a != nil {
		named = append(named, a.Signers...)
		if len(distinct(a.Signers)) < a.Threshold || a.Threshold < 1 {
			return invalid("ask for one approval or more, and name as many who may approve", "asks for %d approvals of %d people", a.Threshold, len(distinct(a.Signers)))
		}
	}
	if s := r.Source; s != nil {
		named = append(named, s.Signers...)
		if len(s.Signers) == 0 || len(s.Verifiers) == 0 || len(s.Levels) == 0 {
			return invalid("say who signs source attestations, which verifiers count, and which levels are asked for", "asks for a source attestation of anybody, or of anything")
		}
		for _, name := range s.Signers {
			if k, ok := signerOf(c, name); ok && k.Certified == nil {
				return invalid("give the signer an identity", "takes source attestations of %q, who has no identity", name)
			}
		}
	}
	for _, s := range named {
		if _, ok := signerOf(c, s); !ok {
			return invalid("add the signer, or correct the name", "names the signer %q, who is not configured", s)
		}
	}
	if r.Owners && len(c.Owners) == 0 {
		return invalid("say under owners whom the names in CODEOWNERS mean", "asks for owners, and nobody is one")
	}
	if (r.Approvals != nil || r.Owners || r.Source != nil) && (c.URI == "" || c.Ref == "") {
		return invalid("give the repository's URI and the ref that is followed", "asks for approvals or a source attestation, and there is nothing that they could be bound to")
	}
	return nil
}

func signerOf(c Config, name string) (Signer, bool) {
	i := slices.IndexFunc(c.Signers, func(s Signer) bool { return s.Name == name })
	if i < 0 {
		return Signer{}, false
	}
	return c.Signers[i], true
}

func distinct(names []string) []string { return slices.Compact(slices.Sorted(slices.Values(names))) }

// ownerNames returns whom the names in CODEOWNERS mean. Forges ignore their case.
func ownerNames(c Config) (map[string][]string, error) {
	out := map[string][]string{}
	for name, signers := range c.Owners {
		if !ownerName.MatchString(name) {
			return nil, fmt.Errorf("%q is no owner: write @user, @organisation/team or an email", name)
		}
		key := strings.ToLower(name)
		if _, ok := out[key]; ok {
			return nil, fmt.Errorf("the owner %q is listed twice", name)
		}
		if len(signers) == 0 {
			return nil, fmt.Errorf("the owner %q is nobody", name)
		}
		for _, s := range signers {
			if _, ok := signerOf(c, s); !ok {
				return nil, fmt.Errorf("the owner %q is the signer %q, who is not configured", name, s)
			}
		}
		out[key] = slices.Clone(signers)
	}
	return out, nil
}

// RepositoryURI returns the form of a repository's URL that approvals and source
// attestations name: "https://host/path" however it is fetched, in lower case but
// for the path, and without ".git". Of a path it is "file:///path".
func RepositoryURI(at string) (string, error) {
	if strings.HasPrefix(at, "/") {
		return "file://" + strings.TrimSuffix(strings.TrimRight(at, "/"), ".git"), nil
	}
	if host, path, ok := strings.Cut(at, ":"); ok && !strings.Contains(host, "/") && !strings.HasPrefix(path, "//") { // git@host:path
		_, host, _ = cutLast(host, "@")
		at = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(at)
	if err != nil || u.Path == "" {
		return "", errors.New("it is no URL of a repository")
	}
	path := strings.TrimSuffix(strings.TrimRight(u.Path, "/"), ".git")
	switch u.Scheme {
	case "file":
		return "file://" + path, nil
	case "https", "http", "ssh":
		host := strings.ToLower(u.Hostname())
		if p := u.Port(); p != "" && u.Scheme != "ssh" {
			host += ":" + p
		}
		return "https://" + host + path, nil
	}
	return "", fmt.Errorf("the scheme %q is not one of a repository", u.Scheme)
}

// cutLast cuts s at the last sep; without one, all of s is after it.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}
