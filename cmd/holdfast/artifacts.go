package main

import (
	"os"
	"time"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/notation"
	"github.com/holdfast-dev/holdfast/verify/predicate"
	"github.com/holdfast-dev/holdfast/verify/provenance"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/release"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/scai"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/testresult"
	"github.com/holdfast-dev/holdfast/verify/vsa"
	"github.com/holdfast-dev/holdfast/verify/vuln"
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

// newArtifacts wires the trust rules to the verifiers. What is added to revoked later counts at
// once. A command that answers now, and does not come back, waits for no
// evidence: its grace is nil.
func newArtifacts(cfg *config.Loaded, sec *secrets, revoked *verify.Revocations, grace func(string) time.Duration, keep *keeper) (*verify.Set, error) {
	client, err := newRegistryClient(cfg.Registries, sec)
	if err != nil {
		return nil, err
	}
	read, seen := noted(os.ReadFile)
	conf := verify.Config{Resolver: client, Revocations: revoked, Grace: grace, Platforms: platforms(cfg)}
	if conf.Rules, err = trustRules(&cfg.Trust, read); err != nil {
		return nil, err
	}
	if conf.Exceptions, err = trustExceptions(&cfg.Trust, conf.Rules, revoked, read, time.Now); err != nil {
		return nil, err
	}
	if keep != nil {
		conf.Keep, conf.Trust = keep.inputs, keep.document(artifactRules(&cfg.Trust, conf.Rules, seen))
	}
	return newSet(conf, client)
}

// newSet wires the trust rules to those who judge by them.
func newSet(conf verify.Config, client *registry.Client) (*verify.Set, error) {
	sources := []attest.Source{sigstore.Source(sigstore.NewStore(client)), notation.Source(client)}
	return verify.NewSet(conf, attest.Factory(sources, judges...))
}

// judges judge what statements say: a new predicate is a folder below verify and
// a line here.
var judges = []attest.NewJudge{
	sbom.New, provenance.New, vsa.New, vuln.New, testresult.New, release.New, scai.New, predicate.New,
}

// platforms returns which platforms of an index an environment runs.
func platforms(cfg *config.Loaded) func(string) []string {
	return func(env string) []string {
		for _, e := range cfg.Environments {
			if e.Name == env {
				return e.Platforms
			}
		}
		return nil
	}
}

func newRegistryClient(list []config.Registry, sec *secrets) (*registry.Client, error) {
	rc := registry.Config{Hosts: map[string]registry.Host{}}
	for _, r := range list {
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
