package verify

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Root is what a signer's identity and the time of a signature are judged by: a
// Sigstore instance, or certificate authorities of one's own. Roots are never
// merged: a log of one says nothing about a signature under another.
type Root struct {
	Name string `json:"name"`
	// TrustedRoot is a Sigstore trusted_root.json; or:
	TrustedRoot []byte `json:"trustedRoot,omitempty"`
	// Authorities are the certificates, in PEM, of authorities that issue
	// long-lived certificates, and Timestampers those of RFC 3161 authorities.
	// Without timestamps a certificate must be valid now.
	Authorities  []byte `json:"authorities,omitempty"`
	Timestampers []byte `json:"timestampers,omitempty"`
	// Log is how many operators of transparency logs must have recorded a
	// signature, Timestamps how many operators of timestamp authorities must have
	// said when they saw it. Two logs of one operator count once (CVE-2026-49834).
	Log        int `json:"log"`
	Timestamps int `json:"timestamps"`
	// CertificateLog asks for a signed certificate timestamp in each certificate.
	CertificateLog bool `json:"certificateLog"`
}

// Signer is someone who may vouch for artifacts: a key, an identity that an
// authority of a root certifies, or one of the Notary Project. Exactly one of
// Key, Identity and Notation is set.
type Signer struct {
	Name     string            `json:"name"`
	Key      *Key              `json:"key,omitempty"`
	Identity *Identity         `json:"identity,omitempty"`
	Notation *NotationIdentity `json:"notation,omitempty"`
	// Root is required with Identity, and with Key unless Unlogged is set.
	Root *Root `json:"root,omitempty"`
	// NotBefore and NotAfter bound the proven time of a signature; zero is open.
	// They need a root that proves one (CVE-2026-54787).
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Unlogged accepts signatures by Key that nobody but the signer knows the time
	// of: a stolen key then leaves no public trace.
	Unlogged bool `json:"unlogged,omitempty"`
}

// Key is a public key that is trusted.
type Key struct {
	PEM []byte `json:"pem"` // PKIX, ECDSA, RSA (2048 bits or more) or Ed25519
}

// Identity is a keyless signer: who a trusted certificate authority says it is.
type Identity struct {
	Issuer  string `json:"issuer"` // OIDC issuer, compared exactly
	Subject Match  `json:"subject"`
	Build   *Build `json:"build,omitempty"`
}

// NotationIdentity is a signer in the sense of the Notary Project. What it signs
// is judged as under a trust policy of the level "strict": there is no other, for
// a lower one lets whoever serves a registry bring back what has expired
// (CVE-2024-23332).
// https://github.com/notaryproject/specifications/blob/v1.1.0/specs/trust-store-trust-policy.md
type NotationIdentity struct {
	// Certificates, in PEM, are the trust store: authorities, or certificates that
	// signed themselves and sign artifacts. One of them must be in the chain of a
	// signature.
	Certificates []byte `json:"certificates"`
	// Timestampers, in PEM, are root certificates of RFC 3161 authorities. With
	// them, each signature must have a timestamp; without, its whole chain must be
	// valid now.
	Timestampers []byte `json:"timestampers,omitempty"`
	// Subjects are distinguished names in the form of RFC 4514, with at least C, ST
	// and O: "C=US, ST=WA, O=acme". A certificate must have every part of one.
	Subjects []string `json:"subjects"`
}

// MarshalJSON names the certificates by their digest, like [Root].
func (n NotationIdentity) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Certificates string   `json:"certificates"`
		Timestampers string   `json:"timestampers,omitempty"`
		Subjects     []string `json:"subjects"`
	}{sum(n.Certificates), sum(n.Timestampers), n.Subjects})
}

// String returns the subjects for people.
func (n NotationIdentity) String() string { return strings.Join(n.Subjects, " or ") }

// String names a signer for people.
func (s Signer) String() string {
	switch {
	case s.Key != nil:
		return "key " + s.Name
	case s.Identity != nil:
		return s.Name + ", " + s.Identity.String()
	case s.Notation != nil:
		return s.Name + ", " + s.Notation.String()
	default:
		return s.Name
	}
}

// String returns "subject (issuer)" for people.
func (i Identity) String() string { return i.Subject.String() + " (" + i.Issuer + ")" }

// Match says which names are meant. Exactly one field is set.
type Match struct {
	Exact string `json:"exact,omitempty"`
	// Prefix is compared by whole path segments: "https://github.com/acme/shop"
	// does not match ".../acme/shop-evil/…".
	Prefix string `json:"prefix,omitempty"`
	// Template is literal text with typed holes: "{repo}" is one segment of
	// letters, digits, ".", "_" and "-"; "{v:semver}" a semantic version with an
	// optional "v"; "{id:number}" digits; "{rev:sha}" 40 or 64 hexadecimal digits.
	Template string `json:"template,omitempty"`
	// UnsafeRegex is a regular expression (RE2) over the whole name. It is called
	// unsafe because an unescaped dot matches what an attacker registers.
	UnsafeRegex string `json:"unsafeRegex,omitempty"`
}

// String returns the match for people.
func (m Match) String() string {
	switch {
	case m.Exact != "":
		return m.Exact
	case m.Prefix != "":
		return strings.TrimSuffix(m.Prefix, "/") + "/…"
	case m.Template != "":
		return m.Template
	default:
		return "/" + m.UnsafeRegex + "/"
	}
}

// IsZero reports whether nothing is said.
func (m Match) IsZero() bool { return m == Match{} }

// holes are the types of a template's holes.
var holes = map[string]string{
	"":       `(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*|\.[A-Za-z0-9_-][A-Za-z0-9_.-]*)`, // neither "." nor ".."
	"semver": `v?(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?`,
	"number": `[0-9]+`,
	"sha":    `(?:[0-9a-f]{40}|[0-9a-f]{64})`,
}

var hole = regexp.MustCompile(`\{([a-z][a-zA-Z0-9]*)(?::([a-z]+))?\}`)

// Regexp returns the anchored expression that m stands for.
func (m Match) Regexp() (*regexp.Regexp, error) {
	set := 0
	for _, s := range []string{m.Exact, m.Prefix, m.Template, m.UnsafeRegex} {
		if s != "" {
			set++
		}
	}
	if set != 1 {
		return nil, fmt.Errorf("set exactly one of exact, prefix, template and unsafeRegex")
	}
	switch {
	case m.Exact != "":
		return regexp.Compile(`\A` + regexp.QuoteMeta(m.Exact) + `\z`)
	case m.Prefix != "":
		if !prefixNamesAPath(m.Prefix) {
			return nil, fmt.Errorf("prefix %q would match almost anyone: name at least a host and one path segment", m.Prefix)
		}
		return regexp.Compile(`\A` + regexp.QuoteMeta(strings.TrimSuffix(m.Prefix, "/")) + `(?:/(?s:.*))?\z`)
	case m.Template != "":
		return m.template()
	default:
		return m.unsafe()
	}
}

func (m Match) template() (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString(`\A`)
	rest := m.Template
	for {
		at := hole.FindStringSubmatchIndex(rest)
		literal := rest
		if at != nil {
			literal = rest[:at[0]]
		}
		if strings.ContainsAny(literal, "{}*") {
			return nil, fmt.Errorf("template %q: a hole is written {name} or {name:type}, with type semver, number or sha", m.Template)
		}
		b.WriteString(regexp.QuoteMeta(literal))
		if at == nil {
			break
		}
		kind := ""
		if at[4] >= 0 {
			kind = rest[at[4]:at[5]]
		}
		expr, ok := holes[kind]
		if !ok {
			return nil, fmt.Errorf("template %q: unknown type of hole %q: use semver, number or sha", m.Template, kind)
		}
		b.WriteString("(?:" + expr + ")")
		rest = rest[at[1]:]
	}
	literal, _, _ := strings.Cut(m.Template, "{") // whole segments of it
	if !prefixNamesAPath(literal[:strings.LastIndex(literal, "/")+1]) {
		return nil, fmt.Errorf("template %q would match almost anyone: name at least a host and one path segment before the first hole", m.Template)
	}
	return regexp.Compile(b.String() + `\z`)
}

// looseDot finds a dot that stands for any character between two of a host name.
var looseDot = regexp.MustCompile(`(?i)[a-z0-9]\.[a-z]{2,}`)

func (m Match) unsafe() (*regexp.Regexp, error) {
	if looseDot.MatchString(m.UnsafeRegex) {
		return nil, fmt.Errorf("unsafeRegex %q: the dot in %q matches any character: write \\. for it", m.UnsafeRegex, looseDot.FindString(m.UnsafeRegex))
	}
	if _, err := regexp.Compile(m.UnsafeRegex); err != nil { // alone: a group that it closes would not be anchored
		return nil, err
	}
	re, err := regexp.Compile(`\A(?:` + m.UnsafeRegex + `)\z`)
	if err != nil {
		return nil, err
	}
	for _, anyone := range []string{"", "https://mallory.example/x", "mallory@mallory.example"} {
		if re.MatchString(anyone) {
			return nil, fmt.Errorf("unsafeRegex %q matches anyone, for example %q", m.UnsafeRegex, anyone)
		}
	}
	return re, nil
}

// Matches reports whether name is meant. A match that does not compile matches
// nothing: rules with one are refused before.
func (m Match) Matches(name string) bool {
	if m.Exact != "" && m == (Match{Exact: m.Exact}) {
		return m.Exact == name
	}
	re, err := m.Regexp()
	return err == nil && re.MatchString(name)
}

// The profiles of build systems whose certificates Fulcio fills.
const (
	ProfileGitHub    = "github-actions"
	ProfileGitLab    = "gitlab-ci"
	ProfileCircleCI  = "circleci"
	ProfileBuildkite = "buildkite"
)

// Build says which build a certificate must have been issued to. Everything
// that is set must be there and match: what a certificate leaves out matches
// nothing. The profile adds what must always hold.
type Build struct {
	Profile string `json:"profile"`
	// Repository is the source repository's URI; RepositoryID and OwnerID are the
	// numbers that its forge gave it, which a name that is taken over does not have.
	Repository   string   `json:"repository,omitempty"`
	RepositoryID string   `json:"repositoryId,omitempty"`
	OwnerID      string   `json:"ownerId,omitempty"`
	Refs         []string `json:"refs,omitempty"`        // patterns by segment: refs/heads/main, refs/tags/*
	Triggers     []string `json:"triggers,omitempty"`    // push, schedule, …
	Runners      []string `json:"runners,omitempty"`     // github-hosted, …
	Signers      []string `json:"signers,omitempty"`     // patterns over the build signer URI
	Digests      []string `json:"digests,omitempty"`     // of the build signer, as the certificate has it
	Visibilities []string `json:"visibility,omitempty"`  // public, private, internal
	Environments []string `json:"deployments,omitempty"` // deployment environment of the job
}

// profile is what a build system's certificates are like.
type profile struct {
	issuer   *regexp.Regexp // whole issuer
	hosted   []string       // runners that are the build system's own
	never    []string       // runners that are never trusted
	untrusty []string       // triggers that run what strangers wrote, refused unless listed
	numbers  bool           // its certificates have numeric ids
	extended bool           // they have source repository, ref and runner
}

// Profiles are the build systems of the public Fulcio whose certificates say
// something of the build.
// https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
var profiles = map[string]profile{
	ProfileGitHub: {
		issuer: regexp.MustCompile(`\Ahttps://(?:token\.actions\.githubusercontent\.com(?:/[A-Za-z0-9_-]+)?|[A-Za-z0-9.-]+/_services/token)\z`),
		hosted: []string{"github-hosted"}, untrusty: []string{"pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment", "workflow_run",
			"issue_comment", "issues", "discussion", "discussion_comment", "fork", "watch"}, numbers: true, extended: true,
	},
	ProfileGitLab: {
		issuer: regexp.MustCompile(`\Ahttps://[A-Za-z0-9.-]+(?::[0-9]+)?\z`),
		hosted: []string{"gitlab-hosted"}, untrusty: []string{"merge_request_event", "external_pull_request_event", "parent_pipeline", "pipeline"}, numbers: true, extended: true,
	},
	ProfileCircleCI: {
		issuer: regexp.MustCompile(`\Ahttps://oidc\.circleci\.com/org/[0-9a-f-]{36}\z`),
		never:  []string{"ssh-rerun"}, extended: true,
	},
	ProfileBuildkite: {issuer: regexp.MustCompile(`\Ahttps://agent\.buildkite\.com\z`)},
}

// validate refuses what could not be checked as it is meant.
func (b *Build) validate(issuer string) error {
	p, ok := profiles[b.Profile]
	if !ok {
		return fmt.Errorf("unknown profile %q: use github-actions, gitlab-ci, circleci or buildkite", b.Profile)
	}
	if !p.issuer.MatchString(issuer) {
		return fmt.Errorf("%s certificates do not come from issuer %q", b.Profile, issuer)
	}
	if p.extended && b.Repository == "" {
		return fmt.Errorf("profile %s needs build.repository: the repository that is built", b.Profile)
	}
	if p.numbers && b.RepositoryID == "" && b.OwnerID == "" {
		return fmt.Errorf("profile %s needs build.repositoryId or build.ownerId: a name can be taken over by another, its number cannot", b.Profile)
	}
	for _, r := range slices.Concat(b.Refs, b.Signers) {
		if err := checkGlob(r); err != nil {
			return err
		}
	}
	for _, r := range b.Runners {
		if slices.Contains(p.never, r) {
			return fmt.Errorf("runner %q is never trusted: somebody was logged in on it", r)
		}
	}
	return nil
}

// checkGlob refuses a pattern by segment that mixes text with a wildcard.
func checkGlob(p string) error {
	for seg := range strings.SplitSeq(p, "/") {
		if seg != "*" && seg != "**" && strings.ContainsAny(seg, "*?[]{}\\ ") {
			return fmt.Errorf("pattern %q: segment %q mixes text with a wildcard", p, seg)
		}
	}
	return nil
}

// globs reports whether one of the patterns, by segment, matches s.
func globs(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return pattern(strings.Split(p, "/")).match(s) })
}

// Check returns why a certificate was not issued to b's build, or nil. It says
// everything that does not fit, not only the first.
func (b *Build) Check(c Certificate) []string {
	p := profiles[b.Profile]
	var why []string
	wrong := func(what, found, want string) {
		if found == "" {
			found = "nothing"
		} else {
			found = fmt.Sprintf("%q", found)
		}
		why = append(why, fmt.Sprintf("%s: found %s, expected %s", what, found, want))
	}
	same := func(what, found, want string) {
		if want != "" && found != want {
			wrong(what, found, fmt.Sprintf("%q", want))
		}
	}
	among := func(what, found string, want []string) {
		if len(want) > 0 && !slices.Contains(want, found) {
			wrong(what, found, strings.Join(want, " or "))
		}
	}
	like := func(what, found string, want []string) {
		if len(want) > 0 && (found == "" || !globs(want, found)) {
			wrong(what, found, strings.Join(want, " or "))
		}
	}
	same("source repository", c.SourceRepository, b.Repository)
	same("source repository's number", c.SourceRepositoryID, b.RepositoryID)
	same("source repository owner's number", c.SourceOwnerID, b.OwnerID)
	like("ref", c.SourceRef, b.Refs)
	like("build signer", c.BuildSigner, b.Signers)
	among("build signer's digest", c.BuildSignerDigest, b.Digests)
	among("visibility of the source repository", c.Visibility, b.Visibilities)
	among("deployment environment", c.Deployment, b.Environments)
	runners := b.Runners
	if len(runners) == 0 {
		runners = p.hosted
	}
	among("runner", c.Runner, runners)
	if slices.Contains(p.never, c.Runner) {
		wrong("runner", c.Runner, "one that nobody was logged in on")
	}
	among("trigger", c.Trigger, b.Triggers)
	if len(b.Triggers) == 0 && len(p.untrusty) > 0 && (c.Trigger == "" || slices.Contains(p.untrusty, c.Trigger)) {
		wrong("trigger", c.Trigger, "one that runs only what the repository's own people wrote")
	}
	return why
}

// Certificate is what the certificate of a keyless signature says of its
// holder, as Fulcio fills it in. Empty is what it does not say.
// https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
type Certificate struct {
	Issuer             string `json:"issuer,omitempty"`
	Subject            string `json:"subject,omitempty"`
	BuildSigner        string `json:"buildSigner,omitempty"`        // 1.9, a URI
	BuildSignerDigest  string `json:"buildSignerDigest,omitempty"`  // 1.10
	Runner             string `json:"runner,omitempty"`             // 1.11
	SourceRepository   string `json:"sourceRepository,omitempty"`   // 1.12, a URI
	SourceDigest       string `json:"sourceDigest,omitempty"`       // 1.13
	SourceRef          string `json:"sourceRef,omitempty"`          // 1.14
	SourceRepositoryID string `json:"sourceRepositoryId,omitempty"` // 1.15
	SourceOwner        string `json:"sourceOwner,omitempty"`        // 1.16, a URI
	SourceOwnerID      string `json:"sourceOwnerId,omitempty"`      // 1.17
	BuildConfig        string `json:"buildConfig,omitempty"`        // 1.18, a URI
	BuildConfigDigest  string `json:"buildConfigDigest,omitempty"`  // 1.19
	Trigger            string `json:"trigger,omitempty"`            // 1.20
	Run                string `json:"run,omitempty"`                // 1.21, a URI
	Visibility         string `json:"visibility,omitempty"`         // 1.22
	Deployment         string `json:"deployment,omitempty"`         // 1.23
}

// MarshalJSON names the trusted root by its digest: it is large, and public.
func (r Root) MarshalJSON() ([]byte, error) {
	type plain Root // without this method
	out := struct {
		plain
		TrustedRoot  string `json:"trustedRoot,omitempty"`
		Authorities  string `json:"authorities,omitempty"`
		Timestampers string `json:"timestampers,omitempty"`
	}{plain: plain(r), TrustedRoot: sum(r.TrustedRoot), Authorities: sum(r.Authorities), Timestampers: sum(r.Timestampers)}
	return json.Marshal(out)
}

func sum(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return digest.FromBytes(b).String()
}

// Validate refuses a signer that could not be judged as it is meant.
func (s Signer) Validate() error {
	switch {
	case s.Name == "":
		return fmt.Errorf("a signer has no name")
	case s.Notation != nil:
		return s.validateNotation()
	case (s.Key == nil) == (s.Identity == nil):
		return fmt.Errorf("signer %q: set exactly one of key, identity and notation", s.Name)
	case s.Key != nil && len(s.Key.PEM) == 0:
		return fmt.Errorf("signer %q: the key is empty: give the public key in PEM", s.Name)
	case s.Identity != nil && s.Unlogged:
		return fmt.Errorf("signer %q: unlogged is for keys: an identity's certificate ends after minutes", s.Name)
	case s.Root == nil && s.Identity != nil:
		return fmt.Errorf("signer %q: an identity needs a root: the trusted_root.json of your Sigstore", s.Name)
	case s.Root == nil && !s.Unlogged:
		return fmt.Errorf("signer %q: name a root, or say unlogged: true if its signatures are in no transparency log", s.Name)
	case s.Key != nil && !s.Unlogged && s.Root.Log+s.Root.Timestamps == 0:
		return fmt.Errorf("signer %q: its root proves no time: name one with a log or a timestamp authority, or say unlogged: true", s.Name)
	case s.Root != nil && s.Unlogged:
		return fmt.Errorf("signer %q: set either root or unlogged", s.Name)
	case !s.NotAfter.IsZero() && !s.NotBefore.Before(s.NotAfter):
		return fmt.Errorf("signer %q: notAfter is not after notBefore", s.Name)
	case (s.Unlogged || s.Root.Log+s.Root.Timestamps == 0) && (!s.NotBefore.IsZero() || !s.NotAfter.IsZero()):
		return fmt.Errorf("signer %q: a window needs a proven time: name a root with a log or a timestamp authority", s.Name)
	}
	if s.Root != nil {
		if err := s.Root.validate(); err != nil {
			return fmt.Errorf("signer %q: %w", s.Name, err)
		}
	}
	if s.Identity == nil {
		return nil
	}
	if s.Identity.Issuer == "" && len(s.Root.Authorities) == 0 {
		return fmt.Errorf("signer %q: an identity needs the exact issuer, for example https://token.actions.githubusercontent.com", s.Name)
	}
	if _, err := s.Identity.Subject.Regexp(); err != nil {
		return fmt.Errorf("signer %q: subject: %w", s.Name, err)
	}
	if b := s.Identity.Build; b != nil {
		if err := b.validate(s.Identity.Issuer); err != nil {
			return fmt.Errorf("signer %q: %w", s.Name, err)
		}
	}
	return nil
}

// timed reports whether something proves when the signer's signatures were made.
func (s Signer) timed() bool {
	if s.Notation != nil {
		return len(s.Notation.Timestampers) > 0
	}
	return s.Root != nil && s.Root.Log+s.Root.Timestamps > 0
}

// validateNotation is validate for a signer of the Notary Project.
func (s Signer) validateNotation() error {
	n := s.Notation
	switch {
	case s.Key != nil || s.Identity != nil:
		return fmt.Errorf("signer %q: set exactly one of key, identity and notation", s.Name)
	case s.Root != nil || s.Unlogged:
		return fmt.Errorf("signer %q: a notation identity has its own certificates: leave root and unlogged out", s.Name)
	case len(n.Certificates) == 0:
		return fmt.Errorf("signer %q: the trust store is empty: give the certificate authority in PEM", s.Name)
	case len(n.Subjects) == 0:
		return fmt.Errorf("signer %q: it names no subject, for example C=US, ST=WA, O=acme", s.Name)
	case !s.NotAfter.IsZero() && !s.NotBefore.Before(s.NotAfter):
		return fmt.Errorf("signer %q: notAfter is not after notBefore", s.Name)
	case len(n.Timestampers) == 0 && (!s.NotBefore.IsZero() || !s.NotAfter.IsZero()):
		return fmt.Errorf("signer %q: a window needs a proven time: name timestamp authorities", s.Name)
	}
	return nil
}

func (r *Root) validate() error {
	switch {
	case (len(r.TrustedRoot) == 0) == (len(r.Authorities) == 0):
		return fmt.Errorf("root %q: it needs either a trusted root or certificate authorities", r.Name)
	case len(r.Authorities) > 0 && (r.Log > 0 || r.CertificateLog):
		return fmt.Errorf("root %q: certificate authorities of one's own have no transparency log: set log: 0", r.Name)
	case r.Log < 0 || r.Timestamps < 0 || r.Log > 8 || r.Timestamps > 8:
		return fmt.Errorf("root %q: log and timestamps are between 0 and 8", r.Name)
	case len(r.TrustedRoot) > 0 && r.Log == 0 && r.Timestamps == 0:
		return fmt.Errorf("root %q: without a log, ask for timestamps: nothing else proves when something was signed", r.Name)
	}
	return nil
}

// ProfileOf returns the profile whose certificates come from issuer, or "" where
// that cannot be told: any host may be a GitLab.
func ProfileOf(issuer string) string {
	for _, name := range []string{ProfileGitHub, ProfileCircleCI, ProfileBuildkite} {
		if profiles[name].issuer.MatchString(issuer) {
			return name
		}
	}
	if issuer == "https://gitlab.com" {
		return ProfileGitLab
	}
	return ""
}
