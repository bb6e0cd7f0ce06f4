package main

import (
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
)

// newCommitVerifier wires the rules about a repository's commits.
func newCommitVerifier(rc *config.Repository, trust *config.Trust, revoked *verify.Revocations, read files) (*commit.Verifier, error) {
	signers, err := newSigners(rc.Commits.Signers, read)
	if err != nil {
		return nil, err
	}
	for i, s := range rc.Commits.Signers {
		if signers[i].Certified, err = certified(s, trust, read); err != nil {
			return nil, err
		}
	}
	c := commit.Config{
		Repository: rc.Name, URI: rc.Commits.Repository, Ref: followedRef(rc), Anchor: rc.Anchor,
		Signers: signers, Owners: rc.Commits.Owners, Revocations: revoked,
		Prover: func(s []verify.Signer) (commit.Prover, error) { return sigstore.NewProver(s) },
	}
	if c.URI == "" {
		if c.URI, err = commit.RepositoryURI(rc.URL); err != nil {
			return nil, fault.New(fault.Invalid, "holdfast", "set commits.repository", "repository %s: %w", rc.Name, err)
		}
	}
	if rc.Tag != "" {
		c.Tags = &commit.Tags{Pattern: rc.Tag, Signers: rc.Commits.TagSigners}
	}
	asked := rc.Commits.Sources()
	c.Asked = asked[0]
	for i := range rc.Commits.Rules {
		c.Rules = append(c.Rules, commitRule(&rc.Commits.Rules[i], asked[i+1]))
	}
	return commit.New(c)
}

func commitRule(r *config.CommitRule, asked string) commit.Rule {
	out := commit.Rule{Asked: asked, Paths: r.Paths, Signers: r.Signers, Owners: r.Owners, UserVerified: r.UserVerified}
	if a := r.Approvals; a != nil {
		out.Approvals = &commit.Approvals{Threshold: a.Threshold, Signers: a.Signers}
	}
	if f := r.ForgeMerges; f != nil {
		out.ForgeMerges = f.Signers
	}
	if s := r.Source; s != nil {
		out.Source = &commit.Source{Signers: s.Signers, Verifiers: s.Verifiers, Levels: s.Levels}
	}
	return out
}

// certified returns whom the certificates of a signer must name; nil if it is to
// have none.
func certified(s config.Signer, trust *config.Trust, read files) (*verify.Signer, error) {
	if s.Identity == nil {
		return nil, nil
	}
	roots := map[string]*verify.Root{}
	for _, r := range trust.Roots {
		if r.Name != s.Root {
			continue
		}
		root, err := trustRoot(r, read)
		if err != nil {
			return nil, err
		}
		roots[r.Name] = root
	}
	signer, err := trustSigner(config.TrustSigner{Name: s.Name, Identity: s.Identity, Root: s.Root}, roots, read)
	return &signer, err
}

// followedRef names what is followed, as approvals and source attestations do.
func followedRef(rc *config.Repository) string {
	if rc.Tag != "" {
		return "refs/tags/" + rc.Tag
	}
	return "refs/heads/" + rc.Branch
}

// followedNotes are the refs of notes that the rules of a repository need.
func followedNotes(c *config.Commits) []string {
	var refs []string
	approvals, sources := c.Notes()
	if approvals {
		refs = append(refs, commit.NotesRef)
	}
	if sources {
		refs = append(refs, commit.SourceNotesRef)
	}
	return refs
}

// newSigners reads the keys of signers.
func newSigners(list []config.Signer, read files) ([]commit.Signer, error) {
	var out []commit.Signer
	for _, s := range list {
		signer := commit.Signer{Name: s.Name, UserVerified: s.UserVerified}
		if s.NotBefore != nil {
			signer.NotBefore = s.NotBefore.Time
		}
		if s.NotAfter != nil {
			signer.NotAfter = s.NotAfter.Time
		}
		if s.AllowedSignersFile != "" {
			b, err := read(s.AllowedSignersFile)
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "", "signer %s: %w", s.Name, err)
			}
			if signer.SSH, err = commit.ParseAllowedSigners(s.AllowedSignersFile, b); err != nil {
				return nil, err
			}
		}
		if s.OpenPGPKeyFile != "" {
			b, err := read(s.OpenPGPKeyFile)
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "", "signer %s: %w", s.Name, err)
			}
			signer.OpenPGP = [][]byte{b}
		}
		out = append(out, signer)
	}
	return out, nil
}
