package config

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Commits says who may change what.
type Commits struct {
	Signers    []Signer            `json:"signers" jsonschema_description:"Who signs commits. At least one: an unsigned history is not trusted."`
	Rules      []CommitRule        `json:"rules" jsonschema_description:"Each path that a commit changes must be allowed to its signer by a rule, and everything that any rule for that path and signer asks for must be there."`
	Owners     map[string][]string `json:"owners,omitempty" jsonschema_description:"Whom the names in CODEOWNERS mean: @user, @organisation/team or an email, each with names of signers."`
	TagSigners []string            `json:"tagSigners,omitempty" jsonschema_description:"Names of signers who may sign the tags that are followed; required with tag."`
	Repository string              `json:"repository,omitempty" jsonschema_description:"URI of the repository in approvals and source attestations; by default https:// and the host and path of url, without .git."`

	source string // file:line of the rules
}

// Signer is a person or a machine that signs commits.
type Signer struct {
	Name               string    `json:"name" jsonschema_description:"How rules and the ledger call the signer; unique in its list."`
	AllowedSignersFile string    `json:"allowedSignersFile,omitempty" jsonschema_description:"SSH keys in the format of ssh-keygen(1), ALLOWED SIGNERS."`
	OpenPGPKeyFile     string    `json:"openpgpKeyFile,omitempty" jsonschema_description:"OpenPGP public keys, armoured or binary."`
	Identity           *Identity `json:"identity,omitempty" jsonschema_description:"Whom certificates name, as gitsign has them made. Of commits only; needs root."`
	Root               string    `json:"root,omitempty" jsonschema_description:"Name of a root under trust.roots, with a log or timestamps: without either nothing proves when a commit was signed."`
	UserVerified       bool      `json:"userVerified,omitempty" jsonschema_description:"Only signatures count that were made by a security key which verified, by PIN or fingerprint, who was there."`
	NotBefore          *Date     `json:"notBefore,omitempty" jsonschema_description:"Since when the signer counts, at the time when Holdfast first saw the thing, or at the proven time of a signature with a certificate."`
	NotAfter           *Date     `json:"notAfter,omitempty" jsonschema_description:"Until when the signer counts, at the same time as notBefore."`
}

// CommitRule allows signers to change paths.
type CommitRule struct {
	Paths        []string         `json:"paths" jsonschema_description:"Globs; ** crosses folders."`
	Signers      []string         `json:"signers" jsonschema_description:"Names of signers."`
	Approvals    *CommitApprovals `json:"approvals,omitempty" jsonschema_description:"Ask that others than the signer approved the commit, in the notes refs/notes/holdfast."`
	Owners       bool             `json:"owners,omitempty" jsonschema_description:"Ask that an owner of each path signed or approved the commit, by CODEOWNERS as of its parent. A path that nobody owns is denied."`
	UserVerified bool             `json:"userVerified,omitempty" jsonschema_description:"Ask that the commit, and each approval, was signed by a security key which verified who was there."`
	ForgeMerges  *ForgeMerges     `json:"forgeMerges,omitempty" jsonschema_description:"Take merge commits that a forge makes with its own key as changes of whoever signed what was merged."`
	Source       *CommitSource    `json:"source,omitempty" jsonschema_description:"Ask for a SLSA verification summary of the source track, in the notes refs/notes/commits."`

	source string // file:line
}

// CommitApprovals asks for approvals.
type CommitApprovals struct {
	Signers   []string `json:"signers" jsonschema_description:"Names of signers who may approve."`
	Threshold int      `json:"threshold,omitempty" jsonschema:"minimum=1" jsonschema_description:"How many distinct people must, besides the one who signed the commit; 1 by default."`
}

// ForgeMerges names the keys of forges.
type ForgeMerges struct {
	Signers []string `json:"signers" jsonschema_description:"Names of signers that are a forge's own key, such as GitHub's web-flow key. They permit nothing by themselves."`
}

// CommitSource asks for a verification summary of the source.
type CommitSource struct {
	Signers   []string `json:"signers" jsonschema_description:"Names of signers, with an identity, who make the summaries."`
	Verifiers []string `json:"verifiers" jsonschema_description:"Exact ids of verifiers."`
	Levels    []string `json:"levels" jsonschema_description:"SLSA_SOURCE_LEVEL_3, ORG_SOURCE_…: each must be among the verified levels, or a higher one of the source track."`
}

// Notes returns the refs of notes that the rules need.
func (c *Commits) Notes() (approvals, sources bool) {
	for _, r := range c.Rules {
		approvals = approvals || r.Approvals != nil || r.Owners
		sources = sources || r.Source != nil
	}
	return approvals, sources
}

// complete fills in defaults and makes paths absolute.
func (c *Commits) complete(dir string) {
	completeSigners(dir, c.Signers)
	for i := range c.Rules {
		if a := c.Rules[i].Approvals; a != nil && a.Threshold == 0 {
			a.Threshold = 1
		}
	}
}

// Sources returns "FILE:LINE" of the rules together, and of each of them.
func (c *Commits) Sources() []string {
	out := []string{c.source}
	for _, r := range c.Rules {
		out = append(out, r.source)
	}
	return out
}

// SetSources sets what Sources returned of the file that c came from.
func (c *Commits) SetSources(list []string) {
	for i, at := range list {
		switch {
		case i == 0:
			c.source = at
		case i <= len(c.Rules):
			c.Rules[i-1].source = at
		}
	}
}

// commits checks who may change what.
func (c checker) commits(at string, r *Repository) {
	if len(r.Commits.Signers) == 0 {
		c.wrong(at, "name at least one signer: an unsigned history is not trusted", "commits.signers is empty")
	}
	known := c.signers(at+".signers", r.Commits.Signers)
	if len(r.Commits.Rules) == 0 {
		c.wrong(at, "allow paths to signers, for example {paths: [\"**\"], signers: [alice]}", "commits.rules is empty")
	}
	r.Commits.source = c.at(at + ".rules")
	for i := range r.Commits.Rules {
		r.Commits.Rules[i].source = c.at(fmt.Sprintf("%s.rules[%d]", at, i))
		c.commitRule(fmt.Sprintf("%s.rules[%d]", at, i), &r.Commits.Rules[i], &r.Commits, known)
	}
	for name, signers := range r.Commits.Owners {
		if !strings.Contains(name, "@") {
			c.wrong(at+".owners", "write @user, @organisation/team or an email", "%q is not an owner", name)
		}
		c.known(at+".owners", signers, known)
	}
	c.known(at+".tagSigners", r.Commits.TagSigners, known)
	switch {
	case r.Tag == "":
		if len(r.Commits.TagSigners) > 0 {
			c.wrong(at+".tagSigners", "set tag: \"v*\", or take tagSigners out", "no tags are followed")
		}
	case r.Branch != "":
		c.wrong(parent(at)+".tag", "keep one of them", "tag and branch exclude each other")
	case len(r.Commits.TagSigners) == 0:
		c.wrong(at, "add tagSigners: an unsigned tag is not trusted", "nobody may sign the tags that are followed")
	}
	if _, err := path.Match(r.Tag, ""); err != nil {
		c.wrong(parent(at)+".tag", "write a pattern such as v*", "%q is not a pattern", r.Tag)
	}
}

func (c checker) commitRule(at string, r *CommitRule, all *Commits, known map[string]bool) {
	if len(r.Paths) == 0 || len(r.Signers) == 0 {
		c.wrong(at, "", "a rule needs paths and signers")
	}
	c.globs(at+".paths", r.Paths)
	c.known(at+".signers", r.Signers, known)
	if a := r.Approvals; a != nil {
		c.known(at+".approvals.signers", a.Signers, known)
		if n := max(a.Threshold, 1); len(a.Signers) < n {
			c.wrong(at+".approvals", "name as many who may approve", "%d approvals are asked for, and %d people may approve", n, len(a.Signers))
		}
	}
	if r.Owners && len(all.Owners) == 0 {
		c.wrong(at, "say under commits.owners whom the names in CODEOWNERS mean", "owners are asked for, and nobody is one")
	}
	if f := r.ForgeMerges; f != nil {
		c.known(at+".forgeMerges.signers", f.Signers, known)
		for _, s := range f.Signers {
			if slices.Contains(r.Signers, s) {
				c.wrong(at+".forgeMerges", "take it out of signers: a forge signs for whoever is logged in", "%q signs commits and merges of a forge", s)
			}
		}
	}
	if s := r.Source; s != nil {
		c.known(at+".source.signers", s.Signers, known)
		if len(s.Signers) == 0 || len(s.Verifiers) == 0 || len(s.Levels) == 0 {
			c.wrong(at+".source", "set signers, verifiers and levels", "a source attestation of anybody, or of anything, is asked for")
		}
	}
}

// known checks that names are those of signers.
func (c checker) known(at string, names []string, signers map[string]bool) {
	for i, s := range names {
		if !signers[s] {
			c.wrong(fmt.Sprintf("%s[%d]", at, i), "", "%q is not a signer of this repository", s)
		}
	}
}

// identities checks that each identity among the signers of commits has a root
// that proves when something was signed.
func (c checker) identities(repositories []Repository, t *Trust) {
	for i, r := range repositories {
		for j, s := range r.Commits.Signers {
			at := fmt.Sprintf("$.repositories[%d].commits.signers[%d]", i, j)
			if (s.Identity == nil) != (s.Root == "") {
				c.wrong(at, "set both or neither", "identity and root belong together")
			}
			if s.Root != "" && !slices.ContainsFunc(t.Roots, func(root Root) bool { return root.Name == s.Root }) {
				c.wrong(at+".root", "add it under trust.roots", "%q is not a root", s.Root)
			}
		}
	}
}
