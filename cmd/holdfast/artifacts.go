package main

import (
	"fmt"
	"os"
	"time"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
)

// defaultEvidenceGrace is how long missing evidence is waited for where an
// environment does not say.
const defaultEvidenceGrace = 10 * time.Minute

// evidenceGrace returns how long an environment waits for missing evidence.
func evidenceGrace(cfg *config.Loaded) func(string) time.Duration {
	return func(env string) time.Duration {
		for _, e := range cfg.Environments {
			if e.Name == env {
				return e.EvidenceGrace.Or(defaultEvidenceGrace)
			}
		}
		return defaultEvidenceGrace
	}
}

// newArtifacts wires the trust rules to the verifiers: a new verifier is a
// folder below verify and a line here. What is added to revoked later counts at
// once. A command that answers now, and does not come back, waits for no
// evidence: its grace is nil.
func newArtifacts(cfg *config.Loaded, sec *secrets, revoked *verify.Revocations, grace func(string) time.Duration) (*verify.Set, error) {
	client, err := newRegistryClient(cfg, sec)
	if err != nil {
		return nil, err
	}
	rules, err := trustRules(cfg)
	if err != nil {
		return nil, err
	}
	store := sigstore.NewStore(client)
	attestations := func(r verify.Rule, revoked *verify.Revocations) (verify.Attestor, error) {
		return sigstore.New(store, r, revoked)
	}
	return verify.NewSet(verify.Config{Rules: rules, Resolver: client, Revocations: revoked, Grace: grace},
		sigstore.Factory(store), sbom.Factory(attestations))
}

func newRegistryClient(cfg *config.Loaded, sec *secrets) (*registry.Client, error) {
	rc := registry.Config{Hosts: map[string]registry.Host{}}
	for _, r := range cfg.Registries {
		h := registry.Host{Username: r.Username, InsecureHTTP: r.InsecureHTTP, Realms: r.Realms}
		if r.PasswordFile != "" {
			h.Password = func() (string, error) { return sec.read(r.PasswordFile) }
		}
		if r.CAFile != "" {
			ca, err := os.ReadFile(r.CAFile)
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "", "registry %s: %w", r.Host, err)
			}
			h.CA = ca
		}
		rc.Hosts[r.Host] = h
	}
	return registry.New(rc)
}

// trustRules reads the files that the trust: section names.
func trustRules(cfg *config.Loaded) ([]verify.Rule, error) {
	var rules []verify.Rule
	for _, t := range cfg.Trust {
		r := verify.Rule{
			Name: t.Name, Kind: t.Kind, Repositories: t.Repositories, Environments: t.Environments,
			InsecureIgnoreTlog: t.InsecureIgnoreTlog,
			SBOM:               verify.SBOMRequirement{Required: t.SBOM.Required, Formats: t.SBOM.Formats},
		}
		for i, k := range t.Keys {
			pem := []byte(k.PEM)
			if k.File != "" {
				b, err := os.ReadFile(k.File)
				if err != nil {
					return nil, fault.New(fault.Invalid, "holdfast", "", "trust rule %s: %w", t.Name, err)
				}
				pem = b
			}
			name := k.Name
			if name == "" {
				name = fmt.Sprintf("%s/%d", t.Name, i)
			}
			r.Keys = append(r.Keys, verify.Key{Name: name, PEM: pem})
		}
		for _, k := range t.Keyless {
			r.Keyless = append(r.Keyless, verify.Identity{Issuer: k.Issuer, Subject: k.Subject, SubjectPrefix: k.SubjectPrefix})
		}
		if t.TrustedRoot != "" {
			b, err := os.ReadFile(t.TrustedRoot)
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "", "trust rule %s: trustedRoot: %w", t.Name, err)
			}
			r.TrustedRoot = b
		}
		rules = append(rules, r)
	}
	return rules, nil
}
