package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/provenance"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
)

// suggest prints the strictest rule that an image would pass now.
func (f *trustFlags) suggest(cmd *cobra.Command, ref string) error {
	cfg := &config.Loaded{}
	if f.config != "" || f.trust != "" {
		var err error
		if cfg, err = f.load(); err != nil {
			return err
		}
	}
	keys, roots, err := suggestable(cfg)
	if err != nil {
		return err
	}
	client, err := newRegistryClient(cfg.Registries, &secrets{})
	if err != nil {
		return err
	}
	subject, err := client.Resolve(cmd.Context(), verify.Subject{Kind: verify.KindImage, Reference: ref})
	if err != nil {
		return err
	}
	found, rejected, err := sigstore.Discover(cmd.Context(), sigstore.NewStore(client), subject, keys, roots)
	if err != nil {
		return err
	}
	for _, r := range rejected {
		fmt.Fprintf(printing{cmd.ErrOrStderr()}, "holdfast: note: %s (%s) counts for nobody: %v\n", r.Where, r.PredicateType, r.Reason)
	}
	if len(found) == 0 {
		return fault.New(fault.Denied, "holdfast.verify", "name its signer's key or root in a file with --trust", "%s: no signature or attestation by anyone whom a root or a key of the file proves", subject.Pinned())
	}
	trust, others := suggestion(subject, found, cfg)
	b, err := yaml.Marshal(map[string]any{"trust": trust})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "# What %s would pass now. Read it as a proposal: whoever signed it is not\n# trustworthy because he signed.\n%s", subject.Pinned(), b)
	for _, o := range others {
		fmt.Fprintf(cmd.OutOrStdout(), "# There is also %s: see docs/predicates.md for how to ask for it.\n", o)
	}
	return nil
}

// suggestable returns the keys and the roots of the file, or the public Sigstore.
func suggestable(cfg *config.Loaded) (keys []verify.Signer, roots []*verify.Root, err error) {
	byName := map[string]*verify.Root{}
	for _, r := range cfg.Trust.Roots {
		root, err := trustRoot(r, os.ReadFile)
		if err != nil {
			return nil, nil, err
		}
		byName[r.Name] = root
		roots = append(roots, root)
	}
	for _, s := range cfg.Trust.Signers {
		if s.Key == nil {
			continue
		}
		signer, err := trustSigner(s, byName, os.ReadFile)
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, signer)
	}
	if len(roots) == 0 {
		public, err := sigstore.RootOf("sigstore", sigstore.PublicGood)
		if err != nil {
			return nil, nil, err
		}
		roots = append(roots, public)
	}
	return keys, roots, nil
}

// suggestion is the section trust: that asks for what was found, by exactly those
// who made it, and what else there is, for which only a person can write the terms.
func suggestion(s verify.Subject, found []verify.Statement, cfg *config.Loaded) (out config.Trust, others []string) {
	out.Roots = cfg.Trust.Roots
	if len(out.Roots) == 0 {
		out.Roots = []config.Root{{Name: "sigstore", TrustedRoot: "trusted_root.json"}}
	}
	by := map[string]string{} // names of signers, by party
	rule := config.TrustRule{Name: "suggested", Kind: verify.KindImage, Repositories: []string{s.Name}}
	for _, st := range found {
		if by[st.Party] == "" {
			signer := suggestSigner(st, cfg, len(out.Signers))
			by[st.Party] = signer.Name
			out.Signers = append(out.Signers, signer)
		}
		if !ask(&rule, st, by[st.Party]) {
			others = append(others, fmt.Sprintf("%s by %s", verify.Brief(st.PredicateType), by[st.Party]))
		}
	}
	out.Rules = []config.TrustRule{rule}
	return out, others
}

func suggestSigner(st verify.Statement, cfg *config.Loaded, n int) config.TrustSigner {
	if st.Certificate == nil {
		i := slices.IndexFunc(cfg.Trust.Signers, func(s config.TrustSigner) bool { return s.Name == st.Signers[0] })
		return cfg.Trust.Signers[i] // it is by one of them
	}
	c := st.Certificate
	out := config.TrustSigner{
		Name: fmt.Sprintf("signer-%d", n+1), Root: st.Signers[0],
		Identity: &config.Identity{Issuer: c.Issuer, Subject: config.Match{Exact: c.Subject}},
	}
	if profile := verify.ProfileOf(c.Issuer); profile != "" && c.SourceRepository != "" {
		out.Identity.Build = &config.Build{
			Profile: profile, Repository: c.SourceRepository, RepositoryID: c.SourceRepositoryID, OwnerID: c.SourceOwnerID,
			Refs: some(c.SourceRef), Triggers: some(c.Trigger), Runners: some(c.Runner), Signers: some(c.BuildSigner),
			Visibility: some(c.Visibility), Deployments: some(c.Deployment),
		}
	}
	return out
}

func some(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// ask adds to rule what st is, by name: the same thing by another signer too asks
// for both. It reports whether there is an entry that asks for it.
func ask(rule *config.TrustRule, st verify.Statement, name string) bool {
	q, by := requireFor(st)
	if by == nil {
		return false
	}
	for i := range rule.Require {
		have := rule.Require[i].By()
		if !sameKind(&rule.Require[i], &q) {
			continue
		}
		if !slices.Contains(have.Signers, name) {
			have.Signers = append(have.Signers, name)
			have.Threshold = len(have.Signers)
		}
		if a, b := rule.Require[i].SBOM, q.SBOM; b != nil && !slices.Contains(a.Formats, b.Formats[0]) {
			a.Formats = append(a.Formats, b.Formats[0])
		}
		if a, b := rule.Require[i].Provenance, q.Provenance; b != nil && !slices.Contains(a.Builders, b.Builders[0]) {
			a.Builders = append(a.Builders, b.Builders[0])
		}
		return true
	}
	by.Signers = []string{name}
	rule.Require = append(rule.Require, q)
	return true
}

func sameKind(a, b *config.Require) bool {
	return (a.Signature == nil) == (b.Signature == nil) && (a.SBOM == nil) == (b.SBOM == nil) && (a.Provenance == nil) == (b.Provenance == nil)
}

// requireFor returns what asks for a statement like st, and nil where its terms
// are a person's: of a scan how old, of a test which kind.
func requireFor(st verify.Statement) (config.Require, *config.By) {
	if st.PredicateType == verify.PredicateSignature {
		q := &config.RequireSignature{}
		return config.Require{Signature: q}, &q.By
	}
	for _, format := range []string{verify.FormatSPDX, verify.FormatCycloneDX} {
		j, err := sbom.New(verify.Requirement{SBOM: &verify.SBOMRequirement{Formats: []string{format}}})
		if err == nil && j.Reads(st.PredicateType) {
			q := &config.RequireSBOM{Formats: []string{format}}
			return config.Require{SBOM: q}, &q.By
		}
	}
	if q, err := provenanceFor(st); err == nil {
		return config.Require{Provenance: q}, &q.By
	}
	return config.Require{}, nil
}

// provenanceFor asks for provenance by the builder that st names, of the
// repository that the certificate proves.
func provenanceFor(st verify.Statement) (*config.RequireProvenance, error) {
	var p struct {
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
		} `json:"runDetails"`
		BuildDefinition struct {
			BuildType string `json:"buildType"`
		} `json:"buildDefinition"`
	}
	if st.PredicateType != provenance.PredicateV1 || st.Certificate == nil || st.Certificate.SourceRepository == "" {
		return nil, errors.New("no provenance whose source a certificate proves")
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return nil, err
	}
	id := p.RunDetails.Builder.ID
	if id == "" || strings.ContainsAny(id, "\n") {
		return nil, errors.New("it names no builder")
	}
	q := &config.RequireProvenance{
		Builders:   []config.Builder{{ID: config.Match{Exact: id}, Level: 1, Profile: verify.ProfileOf(st.Certificate.Issuer)}},
		Repository: st.Certificate.SourceRepository, Refs: some(st.Certificate.SourceRef), BuildTypes: some(p.BuildDefinition.BuildType),
	}
	return q, nil
}
