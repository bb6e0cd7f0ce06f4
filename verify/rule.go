package verify

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Rule says which artifacts it is about and who must have vouched for them. It
// is plain data and comes from the operator's file. Rules are checked by
// [NewSet], which refuses one that would trust anything.
type Rule struct {
	Name string
	Kind string // KindImage
	// Repositories are patterns over normalised repository names
	// ("index.docker.io/library/nginx"), compared segment by segment: "*" is
	// exactly one segment, "**" any number of them, none included. There are no
	// wildcards inside a segment. "docker.io" means "index.docker.io".
	Repositories []string
	Environments []string // empty: all
	// Keys and Keyless are alternatives: a signature by any one of them counts.
	Keys    []Key
	Keyless []Identity
	// TrustedRoot is a Sigstore trusted_root.json. It is required with Keyless,
	// and with Keys unless InsecureIgnoreTlog is set.
	TrustedRoot []byte
	// InsecureIgnoreTlog accepts signatures by Keys without a transparency log
	// entry: a stolen key then leaves no public trace. It never applies to Keyless.
	InsecureIgnoreTlog bool
	SBOM               SBOMRequirement
}

// Key is a public key that is trusted.
type Key struct {
	Name string // for people
	PEM  []byte // PKIX, ECDSA, RSA or Ed25519
}

// Identity is a keyless signer: who a trusted certificate authority says it is.
// Exactly one of Subject and SubjectPrefix is set.
type Identity struct {
	Issuer  string // OIDC issuer, compared exactly
	Subject string // subject alternative name, compared exactly
	// SubjectPrefix is compared by whole path segments:
	// "https://github.com/acme/shop" does not match ".../acme/shop-evil/…".
	SubjectPrefix string
}

// String returns "subject (issuer)" for people.
func (i Identity) String() string {
	s := i.Subject
	if i.SubjectPrefix != "" {
		s = strings.TrimSuffix(i.SubjectPrefix, "/") + "/…"
	}
	return s + " (" + i.Issuer + ")"
}

// The SBOM formats that a rule may ask for.
const (
	FormatSPDX      = "spdx"
	FormatCycloneDX = "cyclonedx"
)

// SBOMRequirement asks for a signed software bill of materials.
type SBOMRequirement struct {
	Required bool
	Formats  []string // FormatSPDX, FormatCycloneDX; empty: either
	// Keys and Keyless may name other signers than the rule's; both empty: the rule's.
	Keys    []Key
	Keyless []Identity
}

// sbomSigners returns who may sign the SBOM under rule r.
func (r Rule) sbomSigners() ([]Key, []Identity) {
	if len(r.SBOM.Keys) == 0 && len(r.SBOM.Keyless) == 0 {
		return r.Keys, r.Keyless
	}
	return r.SBOM.Keys, r.SBOM.Keyless
}

// ForSBOM returns the rule with the signers of its SBOM in the place of its own.
func (r Rule) ForSBOM() Rule {
	r.Keys, r.Keyless = r.sbomSigners()
	return r
}

// Digest binds everything the rule says, trusted root included.
func (r Rule) Digest() digest.Digest {
	b, err := json.Marshal(r)
	if err != nil { // strings, bytes and booleans always marshal
		panic("verify: rule is not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Signers names everyone the rule trusts, for people.
func (r Rule) Signers() string {
	var all []string
	for _, k := range r.Keys {
		all = append(all, "key "+k.Name)
	}
	for _, i := range r.Keyless {
		all = append(all, i.String())
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
	switch {
	case r.Name == "":
		return ruleError(r, "name each rule under trust:", "it has no name")
	case r.Kind != KindImage:
		return ruleError(r, "set kind: image", "unknown kind %q", r.Kind)
	case len(r.Repositories) == 0:
		return ruleError(r, `list repositories:, for example "ghcr.io/acme/**"`, "it matches no repository")
	case len(r.Keys) == 0 && len(r.Keyless) == 0:
		return ruleError(r, "add keys: or keyless:", "it names no trusted identity")
	case len(r.Keyless) > 0 && len(r.TrustedRoot) == 0:
		return ruleError(r, "set trustedRoot to the trusted_root.json of your Sigstore", "keyless identities need a trusted root")
	case len(r.SBOM.Keyless) > 0 && len(r.TrustedRoot) == 0:
		return ruleError(r, "set trustedRoot to the trusted_root.json of your Sigstore", "the SBOM's keyless identities need a trusted root")
	case len(r.TrustedRoot) == 0 && !r.InsecureIgnoreTlog:
		return ruleError(r, "set trustedRoot, or insecureIgnoreTlog: true if your signatures are in no log", "keys without a transparency log must be asked for by name")
	}
	for _, k := range append(append([]Key{}, r.Keys...), r.SBOM.Keys...) {
		if len(k.PEM) == 0 {
			return ruleError(r, "give the public key in PEM", "key %q is empty", k.Name)
		}
	}
	for _, i := range append(append([]Identity{}, r.Keyless...), r.SBOM.Keyless...) {
		if err := i.validate(r); err != nil {
			return err
		}
	}
	for _, f := range r.SBOM.Formats {
		if f != FormatSPDX && f != FormatCycloneDX {
			return ruleError(r, "use spdx or cyclonedx", "unknown SBOM format %q", f)
		}
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

func (i Identity) validate(r Rule) error {
	switch {
	case i.Issuer == "":
		return ruleError(r, "set issuer, for example https://token.actions.githubusercontent.com", "a keyless identity has no issuer")
	case (i.Subject == "") == (i.SubjectPrefix == ""):
		return ruleError(r, "set exactly one of subject and subjectPrefix", "the identity of issuer %s has both or neither", i.Issuer)
	case i.SubjectPrefix != "" && !prefixNamesAPath(i.SubjectPrefix):
		return ruleError(r, `name at least a host and one path segment: "https://github.com/acme"`, "subjectPrefix %q would match almost anyone", i.SubjectPrefix)
	}
	return nil
}

// prefixNamesAPath reports whether p is scheme://host/segment…: anything
// shorter is everyone at a host, or everyone.
func prefixNamesAPath(p string) bool {
	_, rest, _ := strings.Cut(p, "://")
	host, path, _ := strings.Cut(rest, "/")
	return host != "" && strings.Trim(path, "/") != ""
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
