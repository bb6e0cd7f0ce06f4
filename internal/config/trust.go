package config

import (
	"fmt"
	"net/url"
	"slices"
	"time"
)

// defaultRootAge is after how long a root of trust may be out of date: Sigstore
// adds a log about every six months.
const defaultRootAge = 180 * 24 * time.Hour

// Trust says which artifacts are trusted, in the order in which one reads it:
// by what identities and times are judged, who may vouch, and for what.
type Trust struct {
	Roots      []Root         `json:"roots,omitempty" jsonschema_description:"Sigstore instances, and certificate authorities of one's own, by which signers and the time of signatures are judged."`
	Signers    []TrustSigner  `json:"signers,omitempty" jsonschema_description:"Who may vouch for artifacts. Someone counts only where a rule names him."`
	Rules      []TrustRule    `json:"rules,omitempty" jsonschema_description:"What is asked of which artifacts. The most specific rule applies, and only that; an artifact that no rule matches is denied."`
	Exceptions *ExceptionFile `json:"exceptions,omitempty" jsonschema_description:"Signed exceptions: one artifact, one environment, named checks, a reason and an end."`
	Summaries  *Summaries     `json:"summaries,omitempty" jsonschema_description:"Attach a SLSA verification summary (VSA) of one's own to what was verified, for others to build on."`
}

// Summaries says who speaks of what was verified, and where.
type Summaries struct {
	Verifier     string     `json:"verifier" jsonschema_description:"URI by which others know this Holdfast; their rules list it under vsa.verifiers."`
	KeyFile      string     `json:"keyFile" jsonschema_description:"Private key in PEM, ECDSA over P-256 or Ed25519: PKCS #8, or as cosign generate-key-pair writes it."`
	PasswordFile string     `json:"passwordFile,omitempty" jsonschema_description:"File with the password of the key."`
	Repositories []string   `json:"repositories" jsonschema_description:"Globs on normalised names, segment by segment: where to attach."`
	Every        Duration   `json:"every,omitempty" jsonschema_description:"How long a summary is good for, 24h by default: what is deployed anew after it gets another one."`
	TimestampURL string     `json:"timestampURL,omitempty" jsonschema_description:"An RFC 3161 timestamp authority that says when a summary was signed. Without one its readers know no time: their signer must be unlogged."`
	Registries   []Registry `json:"registries,omitempty" jsonschema_description:"Accounts that may push, in the place of those under registries, which then need not."`
}

// Root is a root of trust.
type Root struct {
	Name         string `json:"name" jsonschema_description:"How signers call it."`
	TrustedRoot  string `json:"trustedRoot,omitempty" jsonschema_description:"trusted_root.json of a Sigstore instance: the public one, a private one, GitHub's."`
	Authorities  string `json:"authorities,omitempty" jsonschema_description:"PEM file with certificate authorities of one's own, instead of trustedRoot."`
	Timestampers string `json:"timestampers,omitempty" jsonschema_description:"PEM file with RFC 3161 timestamp authorities, beside authorities."`
	Log          *int   `json:"log,omitempty" jsonschema:"minimum=0,maximum=8" jsonschema_description:"How many operators of transparency logs must have recorded a signature. 1 by default with trustedRoot; 0 for an instance without a log, such as GitHub's own."`
	Timestamps   int    `json:"timestamps,omitempty" jsonschema:"minimum=0,maximum=8" jsonschema_description:"How many operators of timestamp authorities must have said when they saw a signature."`
	// CertificateLog says whether certificates carry SCTs.
	CertificateLog *bool    `json:"certificateLog,omitempty" jsonschema_description:"Whether each certificate must be in a certificate transparency log. By default yes where log is 1 or more."`
	MaxAge         Duration `json:"maxAge,omitempty" jsonschema_description:"After how long without a change of the file people are told that it may be out of date, 4320h (180 days) by default."`
}

// TrustSigner is a key or an identity.
type TrustSigner struct {
	Name      string    `json:"name" jsonschema_description:"How rules, evidence and the ledger call the signer."`
	Key       *TrustKey `json:"key,omitempty" jsonschema_description:"A public key. Of a key in a KMS, the exported public key: no KMS is asked to verify."`
	Identity  *Identity `json:"identity,omitempty" jsonschema_description:"Whom a certificate of the root names."`
	Notation  *Notation `json:"notation,omitempty" jsonschema_description:"A Notary Project identity; its trust policy is always strict."`
	Root      string    `json:"root,omitempty" jsonschema_description:"Name of a root; required with identity, and with key unless unlogged."`
	Unlogged  bool      `json:"unlogged,omitempty" jsonschema_description:"Accept signatures by the key that nobody but the signer knows the time of. A stolen key then leaves no public trace."`
	NotBefore *Date     `json:"notBefore,omitempty" jsonschema_description:"Since when the signer counts, by the proven time of the signature."`
	NotAfter  *Date     `json:"notAfter,omitempty" jsonschema_description:"Until when the signer counts, by the proven time of the signature."`
}

// TrustKey is a public key.
type TrustKey struct {
	File string `json:"file,omitempty" jsonschema_description:"PEM file."`
	PEM  string `json:"pem,omitempty" jsonschema_description:"The key itself."`
}

// Identity is who a certificate names.
type Identity struct {
	Issuer  string `json:"issuer,omitempty" jsonschema_description:"Exact OIDC issuer. Empty only for authorities of one's own, whose certificates name none."`
	Subject Match  `json:"subject" jsonschema_description:"Subject alternative name."`
	Build   *Build `json:"build,omitempty" jsonschema_description:"Which build the certificate must have been issued to."`
}

// Match says which names are meant.
type Match struct {
	Exact       string `json:"exact,omitempty" jsonschema_description:"The whole name."`
	Prefix      string `json:"prefix,omitempty" jsonschema_description:"A beginning, by whole path segments: https://github.com/acme/shop."`
	Template    string `json:"template,omitempty" jsonschema_description:"Literal text with typed holes: {repo} is one segment, {v:semver}, {id:number}, {rev:sha}."`
	UnsafeRegex string `json:"unsafeRegex,omitempty" jsonschema_description:"A regular expression over the whole name. Every dot that is not escaped is a way in."`
}

// Build says which build a certificate must have been issued to.
type Build struct {
	Profile      string   `json:"profile" jsonschema:"enum=github-actions,enum=gitlab-ci,enum=circleci,enum=buildkite" jsonschema_description:"Whose certificates they are. It checks the issuer, refuses builds of pull requests by strangers, and asks for the build system's own runners unless runners says otherwise."`
	Repository   string   `json:"repository,omitempty" jsonschema_description:"URI of the source repository."`
	RepositoryID string   `json:"repositoryId,omitempty" jsonschema_description:"The number that the forge gave the repository: a name can be taken over, a number cannot."`
	OwnerID      string   `json:"ownerId,omitempty" jsonschema_description:"The number of the repository's owner."`
	Refs         []string `json:"refs,omitempty" jsonschema_description:"Globs by segment: refs/heads/main, refs/tags/*."`
	Triggers     []string `json:"triggers,omitempty" jsonschema_description:"push, schedule, workflow_dispatch, …"`
	Runners      []string `json:"runners,omitempty" jsonschema_description:"github-hosted, self-hosted, …"`
	Signers      []string `json:"signers,omitempty" jsonschema_description:"Globs by segment on the build signer URI: the reusable workflow."`
	Digests      []string `json:"digests,omitempty" jsonschema_description:"Digests of the build signer."`
	Visibility   []string `json:"visibility,omitempty" jsonschema_description:"public, private, internal."`
	Deployments  []string `json:"deployments,omitempty" jsonschema_description:"Deployment environments of the job."`
}

// Notation is a Notary Project identity.
type Notation struct {
	CAFile   string   `json:"caFile" jsonschema_description:"PEM file with the certificate authorities of the trust store."`
	TSAFile  string   `json:"tsaFile,omitempty" jsonschema_description:"PEM file with RFC 3161 timestamp authorities."`
	Subjects []string `json:"subjects" jsonschema_description:"Trusted subjects: C=US, ST=WA, O=acme."`
}

// TrustRule is one rule about artifacts.
type TrustRule struct {
	Name         string    `json:"name" jsonschema_description:"How evidence and the ledger call the rule."`
	Kind         string    `json:"kind,omitempty" jsonschema:"enum=image,enum=artifact,enum=policy,enum=chart" jsonschema_description:"Kind of artifact: an image, by default; an artifact with a desired state; a bundle of policies; a Helm chart."`
	Repositories []string  `json:"repositories" jsonschema_description:"Globs on normalised names, segment by segment: ghcr.io/acme/**."`
	Environments []string  `json:"environments,omitempty" jsonschema_description:"Empty: all."`
	Mode         string    `json:"mode,omitempty" jsonschema:"enum=enforce,enum=warn,enum=observe" jsonschema_description:"How a refusal is taken: enforce, the default, denies; warn lets it pass and tells people; observe only records it."`
	Until        *Date     `json:"until,omitempty" jsonschema_description:"The day from which a rule that warns or observes is enforced; required with these modes."`
	Require      []Require `json:"require" jsonschema_description:"Everything that is asked of an artifact."`

	source string // file:line
}

// Require is one thing that is asked of an artifact: exactly one field is set.
type Require struct {
	Signature       *RequireSignature       `json:"signature,omitempty" jsonschema_description:"A signature of the artifact itself. One on an index covers its platforms."`
	SBOM            *RequireSBOM            `json:"sbom,omitempty" jsonschema_description:"A software bill of materials."`
	Provenance      *RequireProvenance      `json:"provenance,omitempty" jsonschema_description:"SLSA provenance."`
	VSA             *RequireVSA             `json:"vsa,omitempty" jsonschema_description:"A SLSA verification summary by another verifier."`
	Vulnerabilities *RequireVulnerabilities `json:"vulnerabilities,omitempty" jsonschema_description:"The result of a vulnerability scan."`
	Test            *RequireTest            `json:"test,omitempty" jsonschema_description:"The result of a test."`
	Release         *RequireRelease         `json:"release,omitempty" jsonschema_description:"A release attestation."`
	SCAI            *RequireSCAI            `json:"scai,omitempty" jsonschema_description:"Attributes of the artifact or of how it was made."`
	Predicate       *RequirePredicate       `json:"predicate,omitempty" jsonschema_description:"A statement of any other type."`

	source string // file:line
}

// By says who must have made a statement.
type By struct {
	Signers   []string `json:"signers" jsonschema_description:"Names of signers, each of whom may make it."`
	Threshold int      `json:"threshold,omitempty" jsonschema:"minimum=1" jsonschema_description:"How many distinct of them must, 1 by default."`
	MaxAge    Duration `json:"maxAge,omitempty" jsonschema_description:"How long ago it may have been signed, by its proven time."`
}

// RequireSignature asks for a signature.
type RequireSignature struct {
	By `json:",inline"`
}

// RequireSBOM asks for a software bill of materials.
type RequireSBOM struct {
	By      `json:",inline"`
	Formats []string `json:"formats,omitempty" jsonschema:"enum=spdx,enum=cyclonedx" jsonschema_description:"Empty: both."`
}

// RequireProvenance asks for SLSA provenance.
type RequireProvenance struct {
	By            `json:",inline"`
	Builders      []Builder           `json:"builders" jsonschema_description:"Build platforms that are trusted."`
	Level         int                 `json:"level,omitempty" jsonschema:"minimum=1,maximum=3" jsonschema_description:"The least SLSA build level, 1 by default."`
	AllowV02      bool                `json:"allowV02,omitempty" jsonschema_description:"Also read provenance v0.2, which says less."`
	Repository    string              `json:"repository" jsonschema_description:"URI of the source repository."`
	Refs          []string            `json:"refs,omitempty" jsonschema_description:"Globs by segment on the ref that was built."`
	Triggers      []string            `json:"triggers,omitempty" jsonschema_description:"Events that may have started the build; empty: any that runs only what the repository's own people wrote."`
	BuildTypes    []string            `json:"buildTypes,omitempty" jsonschema_description:"Exact build types; empty: those of the builder's profile."`
	Parameters    map[string][]string `json:"parameters,omitempty" jsonschema_description:"External parameters that are known, with the values that each may have; an empty list allows any. Another parameter is a denial."`
	SingleSubject bool                `json:"singleSubject,omitempty" jsonschema_description:"Refuse provenance about several artifacts."`
}

// Builder is a build platform.
type Builder struct {
	ID      Match  `json:"id" jsonschema_description:"builder.id."`
	Level   int    `json:"level" jsonschema:"minimum=1,maximum=3" jsonschema_description:"SLSA build level that it is trusted for."`
	Profile string `json:"profile,omitempty" jsonschema_description:"How to read its provenance: github-actions, gitlab-ci, jenkins, azure-devops, …"`
}

// RequireVSA asks for a SLSA verification summary.
type RequireVSA struct {
	By             `json:",inline"`
	Verifiers      []string `json:"verifiers" jsonschema_description:"Exact ids of verifiers."`
	Resource       *Match   `json:"resource,omitempty" jsonschema_description:"The resource URI that it must be about; by default the artifact's repository."`
	Levels         []string `json:"levels" jsonschema_description:"SLSA_BUILD_LEVEL_3, … Each must be among the verified levels, or a higher one."`
	VerifiedWithin Duration `json:"verifiedWithin,omitempty" jsonschema_description:"How long ago it may have been verified, by its own word."`
}

// RequireVulnerabilities asks for a vulnerability scan.
type RequireVulnerabilities struct {
	By             `json:",inline"`
	Scanners       []string `json:"scanners,omitempty" jsonschema_description:"Globs by segment on the scanner's URI; empty: any."`
	ScanMaxAge     Duration `json:"scanMaxAge" jsonschema_description:"How old the scan may be."`
	DatabaseMaxAge Duration `json:"databaseMaxAge" jsonschema_description:"How old the scanner's database may have been."`
	MaxSeverity    string   `json:"maxSeverity,omitempty" jsonschema:"enum=none,enum=low,enum=medium,enum=high,enum=critical" jsonschema_description:"The highest severity that may be found; everything by default, for policies to judge. An unknown severity counts as high."`
}

// RequireTest asks for the result of a test.
type RequireTest struct {
	By            `json:",inline"`
	Kind          string `json:"kind" jsonschema_description:"How the test is called: unit, sast, dast, iast, smoke, …"`
	AllowWarnings bool   `json:"allowWarnings,omitempty" jsonschema_description:"Accept the result WARNED."`
	SARIF         bool   `json:"sarif,omitempty" jsonschema_description:"It must refer to a SARIF document by its digest."`
}

// RequireRelease asks for a release attestation.
type RequireRelease struct {
	By      `json:",inline"`
	Package string `json:"package,omitempty" jsonschema_description:"Package URL without version."`
}

// RequireSCAI asks for attributes.
type RequireSCAI struct {
	By         `json:",inline"`
	Attributes []string `json:"attributes" jsonschema_description:"Each must be asserted."`
	Evidence   string   `json:"evidence,omitempty" jsonschema_description:"Media type of the evidence that each must have; empty: none is asked for."`
}

// RequirePredicate asks for a statement of any other type.
type RequirePredicate struct {
	By       `json:",inline"`
	Type     string `json:"type" jsonschema_description:"Exact predicate type."`
	RegoFile string `json:"regoFile,omitempty" jsonschema_description:"A module of package holdfast.predicate whose deny rules judge input.predicate."`
}

// ExceptionFile names signed exceptions.
type ExceptionFile struct {
	File    string   `json:"file" jsonschema_description:"The exceptions; the signature is beside it, with .sig at the end of its name."`
	Signers []Signer `json:"signers" jsonschema_description:"Who may sign exceptions."`
}

// asked is one field of a Require that is set.
type asked struct {
	name string
	by   *By
}

// asked returns what is asked for: one thing, if the entry is right.
func (q *Require) asked() []asked {
	var out []asked
	if q.Signature != nil {
		out = append(out, asked{"signature", &q.Signature.By})
	}
	if q.SBOM != nil {
		out = append(out, asked{"sbom", &q.SBOM.By})
	}
	if q.Provenance != nil {
		out = append(out, asked{"provenance", &q.Provenance.By})
	}
	if q.VSA != nil {
		out = append(out, asked{"vsa", &q.VSA.By})
	}
	if q.Vulnerabilities != nil {
		out = append(out, asked{"vulnerabilities", &q.Vulnerabilities.By})
	}
	if q.Test != nil {
		out = append(out, asked{"test", &q.Test.By})
	}
	if q.Release != nil {
		out = append(out, asked{"release", &q.Release.By})
	}
	if q.SCAI != nil {
		out = append(out, asked{"scai", &q.SCAI.By})
	}
	if q.Predicate != nil {
		out = append(out, asked{"predicate", &q.Predicate.By})
	}
	return out
}

// By returns who must have made the statement that is asked for, and nil where
// nothing is asked, or more than one thing.
func (q *Require) By() *By {
	if all := q.asked(); len(all) == 1 {
		return all[0].by
	}
	return nil
}

// Source returns "FILE:LINE" of the rule.
func (r *TrustRule) Source() string { return r.source }

// Source returns "FILE:LINE" of the requirement.
func (q *Require) Source() string { return q.source }

// trust checks what types cannot express; what the rules mean is checked where
// they are compiled. Without envs no environment is known.
func (c checker) trust(t *Trust, envs map[string]*Environment) {
	roots, signers, rules := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range t.Roots {
		at, r := fmt.Sprintf("$.trust.roots[%d]", i), &t.Roots[i]
		c.once(at, "root", r.Name, roots)
		if (r.TrustedRoot == "") == (r.Authorities == "") {
			c.wrong(at, "set trustedRoot to the trusted_root.json of your Sigstore, or authorities to a PEM file", "root %q needs exactly one of trustedRoot and authorities", r.Name)
		}
		if r.Timestampers != "" && r.Authorities == "" {
			c.wrong(at, "", "timestampers belong to authorities; a trusted root has its own")
		}
	}
	for i := range t.Signers {
		at := fmt.Sprintf("$.trust.signers[%d]", i)
		c.once(at, "signer", t.Signers[i].Name, signers)
		c.trustSigner(at, &t.Signers[i], roots)
	}
	for i := range t.Rules {
		at, r := fmt.Sprintf("$.trust.rules[%d]", i), &t.Rules[i]
		c.once(at, "trust rule", r.Name, rules)
		c.trustRule(at, r, signers, envs)
		r.source = c.at(at)
		for j := range r.Require {
			r.Require[j].source = c.at(fmt.Sprintf("%s.require[%d]", at, j))
		}
	}
	if s := t.Summaries; s != nil {
		const at = "$.trust.summaries"
		if s.Verifier == "" || s.KeyFile == "" || len(s.Repositories) == 0 {
			c.wrong(at, "set verifier, keyFile and repositories", "summaries need somebody who makes them, and repositories")
		}
		c.registries(at+".registries", s.Registries)
		if u, err := url.Parse(s.TimestampURL); s.TimestampURL != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil) {
			c.wrong(at+".timestampURL", "write https://host/path", "%q is not the address of a timestamp authority", s.TimestampURL)
		}
	}
	if x := t.Exceptions; x != nil {
		if x.File == "" || len(x.Signers) == 0 {
			c.wrong("$.trust.exceptions", "", "exceptions need a file, and who may sign them")
		}
		c.signers("$.trust.exceptions.signers", x.Signers)
	}
}

func (c checker) trustSigner(at string, s *TrustSigner, roots map[string]bool) {
	set := 0
	for _, is := range []bool{s.Key != nil, s.Identity != nil, s.Notation != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		c.wrong(at, "", "signer %q needs exactly one of key, identity and notation", s.Name)
		return
	}
	if s.Key != nil && (s.Key.File == "") == (s.Key.PEM == "") {
		c.wrong(at+".key", "", "a key needs either file or pem")
	}
	if s.Root != "" && !roots[s.Root] {
		c.wrong(at+".root", "add it under trust.roots", "%q is not a root", s.Root)
	}
	switch {
	case s.Notation != nil:
		if s.Root != "" || s.Unlogged {
			c.wrong(at, "", "a notation identity has its own authorities: leave root and unlogged out")
		}
	case s.Identity != nil && s.Root == "":
		c.wrong(at, "name a root, with the trusted_root.json of your Sigstore", "identity %q needs a root", s.Name)
	case s.Root == "" && !s.Unlogged:
		c.wrong(at, "name a root, or write unlogged: true if its signatures are in no transparency log", "signer %q has no root that could prove when something was signed", s.Name)
	case s.Root != "" && s.Unlogged:
		c.wrong(at, "", "set either root or unlogged")
	}
}

func (c checker) trustRule(at string, r *TrustRule, signers map[string]bool, envs map[string]*Environment) {
	if len(r.Repositories) == 0 {
		c.wrong(at, "", "repositories is empty")
	}
	c.globs(at+".repositories", r.Repositories)
	for i, e := range r.Environments {
		if envs != nil && envs[e] == nil {
			c.wrong(fmt.Sprintf("%s.environments[%d]", at, i), "", "%q is not an environment", e)
		}
	}
	if r.Kind != "" {
		c.oneOf(at+".kind", "kind", r.Kind, "image", "artifact", "policy", "chart")
	}
	if r.Mode != "" {
		c.oneOf(at+".mode", "mode", r.Mode, "enforce", "warn", "observe")
	}
	if (r.Mode == "warn" || r.Mode == "observe") != (r.Until != nil) {
		c.wrong(at, "write until: with the day from which the rule is enforced", "the modes warn and observe have an end, and only they")
	}
	if len(r.Require) == 0 {
		c.wrong(at, "add require:, for example - signature: {signers: [release]}", "trust rule %q asks for nothing", r.Name)
	}
	for i := range r.Require {
		qat, all := fmt.Sprintf("%s.require[%d]", at, i), r.Require[i].asked()
		switch len(all) {
		case 0:
			c.wrong(qat, "write for example signature: {signers: [release]}", "it asks for nothing")
			continue
		case 1:
		default:
			c.wrong(qat, "begin each with a dash of its own", "one entry asks for %s and %s", all[0].name, all[1].name)
			continue
		}
		by := all[0].by
		if len(by.Signers) == 0 {
			c.wrong(qat, "add signers:", "it names no signer")
		}
		for _, s := range by.Signers {
			if !signers[s] {
				c.wrong(qat, "add it under trust.signers", "%q is not a signer", s)
			}
		}
	}
}

// complete fills in defaults and makes paths absolute.
func (t *Trust) complete(dir string) {
	for i := range t.Roots {
		r := &t.Roots[i]
		r.TrustedRoot, r.Authorities, r.Timestampers = abs(dir, r.TrustedRoot), abs(dir, r.Authorities), abs(dir, r.Timestampers)
		if r.Log == nil {
			r.Log = new(0)
			if r.TrustedRoot != "" {
				r.Log = new(1)
			}
		}
		if r.CertificateLog == nil {
			r.CertificateLog = new(*r.Log > 0)
		}
		r.MaxAge = Duration(r.MaxAge.Or(defaultRootAge))
	}
	for i := range t.Signers {
		s := &t.Signers[i]
		if s.Key != nil {
			s.Key.File = abs(dir, s.Key.File)
		}
		if n := s.Notation; n != nil {
			n.CAFile, n.TSAFile = abs(dir, n.CAFile), abs(dir, n.TSAFile)
		}
	}
	for i := range t.Rules {
		r := &t.Rules[i]
		if r.Kind == "" {
			r.Kind = "image"
		}
		if r.Mode == "" {
			r.Mode = "enforce"
		}
		for j := range r.Require {
			if p := r.Require[j].Predicate; p != nil {
				p.RegoFile = abs(dir, p.RegoFile)
			}
		}
	}
	if s := t.Summaries; s != nil {
		s.KeyFile, s.PasswordFile = abs(dir, s.KeyFile), abs(dir, s.PasswordFile)
		completeRegistries(dir, s.Registries)
	}
	if x := t.Exceptions; x != nil {
		x.File = abs(dir, x.File)
		completeSigners(dir, x.Signers)
	}
}

// Named returns the files that it names; none of them is secret.
func (t *Trust) Named() []string {
	var files []string
	for _, r := range t.Roots {
		files = append(files, r.TrustedRoot, r.Authorities, r.Timestampers)
	}
	for _, s := range t.Signers {
		if s.Key != nil {
			files = append(files, s.Key.File)
		}
		if s.Notation != nil {
			files = append(files, s.Notation.CAFile, s.Notation.TSAFile)
		}
	}
	for _, r := range t.Rules {
		for _, q := range r.Require {
			if q.Predicate != nil {
				files = append(files, q.Predicate.RegoFile)
			}
		}
	}
	if x := t.Exceptions; x != nil {
		files = append(files, x.File, x.File+SignatureSuffix)
		for _, s := range x.Signers {
			files = append(files, s.AllowedSignersFile)
		}
	}
	return slices.DeleteFunc(files, func(f string) bool { return f == "" })
}
