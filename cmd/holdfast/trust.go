package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/telemetry"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
)

// trustRules reads the files that the trust: section names.
func trustRules(t *config.Trust, read files) ([]verify.Rule, error) {
	roots := map[string]*verify.Root{}
	for _, r := range t.Roots {
		root, err := trustRoot(r, read)
		if err != nil {
			return nil, err
		}
		roots[r.Name] = root
	}
	signers := map[string]verify.Signer{}
	for _, s := range t.Signers {
		signer, err := trustSigner(s, roots, read)
		if err != nil {
			return nil, err
		}
		signers[s.Name] = signer
	}
	var rules []verify.Rule
	for i := range t.Rules {
		r, err := trustRule(&t.Rules[i], signers, read)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// files reads a file that the operator's file names.
type files func(name string) ([]byte, error)

// trust reads a file that is named under trust:; an empty name is no file.
func (read files) trust(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := read(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "holdfast", "correct the path under trust: in holdfast.yaml", "trust: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 { // what is empty would ask for nothing
		return nil, fault.New(fault.Invalid, "holdfast", "write the file again", "trust: %s is empty", name)
	}
	return b, nil
}

func trustRoot(r config.Root, read files) (*verify.Root, error) {
	out := &verify.Root{Name: r.Name, Timestamps: r.Timestamps}
	if r.Log != nil {
		out.Log = *r.Log
	}
	if r.CertificateLog != nil {
		out.CertificateLog = *r.CertificateLog
	}
	for _, f := range []struct {
		name string
		into *[]byte
	}{{r.TrustedRoot, &out.TrustedRoot}, {r.Authorities, &out.Authorities}, {r.Timestampers, &out.Timestampers}} {
		var err error
		if *f.into, err = read.trust(f.name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func trustSigner(s config.TrustSigner, roots map[string]*verify.Root, read files) (verify.Signer, error) {
	out := verify.Signer{Name: s.Name, Unlogged: s.Unlogged, Root: roots[s.Root]}
	if s.NotBefore != nil {
		out.NotBefore = s.NotBefore.Time
	}
	if s.NotAfter != nil {
		out.NotAfter = s.NotAfter.Time
	}
	if k := s.Key; k != nil {
		pem, err := read.trust(k.File)
		if err != nil {
			return out, err
		}
		out.Key = &verify.Key{PEM: append(pem, k.PEM...)} // one of them is empty
	}
	if i := s.Identity; i != nil {
		out.Identity = &verify.Identity{Issuer: i.Issuer, Subject: trustMatch(&i.Subject)}
		if b := i.Build; b != nil {
			out.Identity.Build = &verify.Build{
				Profile: b.Profile, Repository: b.Repository, RepositoryID: b.RepositoryID, OwnerID: b.OwnerID, Refs: b.Refs, Triggers: b.Triggers,
				Runners: b.Runners, Signers: b.Signers, Digests: b.Digests, Visibilities: b.Visibility, Environments: b.Deployments,
			}
		}
	}
	if n := s.Notation; n != nil {
		certificates, err := read.trust(n.CAFile)
		if err != nil {
			return out, err
		}
		timestampers, err := read.trust(n.TSAFile)
		if err != nil {
			return out, err
		}
		out.Notation = &verify.NotationIdentity{Certificates: certificates, Timestampers: timestampers, Subjects: n.Subjects}
	}
	return out, nil
}

func trustMatch(m *config.Match) verify.Match {
	if m == nil {
		return verify.Match{}
	}
	return verify.Match{Exact: m.Exact, Prefix: m.Prefix, Template: m.Template, UnsafeRegex: m.UnsafeRegex}
}

func trustRule(r *config.TrustRule, signers map[string]verify.Signer, read files) (verify.Rule, error) {
	out := verify.Rule{
		Name: r.Name, Kind: r.Kind, Repositories: r.Repositories, Environments: r.Environments, Mode: verify.Mode(r.Mode), Source: r.Source(),
	}
	if r.Until != nil {
		out.Until = r.Until.Time
	}
	for i := range r.Require {
		q, err := trustRequirement(&r.Require[i], read)
		if err != nil {
			return out, err
		}
		out.Require = append(out.Require, q)
		for _, name := range q.Signers {
			if !slices.ContainsFunc(out.Signers, func(s verify.Signer) bool { return s.Name == name }) {
				out.Signers = append(out.Signers, signers[name])
			}
		}
	}
	return out, nil
}

func trustRequirement(q *config.Require, read files) (verify.Requirement, error) {
	by := q.By()
	if by == nil {
		return verify.Requirement{}, fmt.Errorf("%s: it asks for nothing", q.Source())
	}
	out := verify.Requirement{Signers: by.Signers, Threshold: by.Threshold, MaxAge: time.Duration(by.MaxAge), Source: q.Source()}
	switch {
	case q.Signature != nil:
		out.Signature = &verify.SignatureRequirement{}
	case q.SBOM != nil:
		out.SBOM = &verify.SBOMRequirement{Formats: q.SBOM.Formats}
	case q.Provenance != nil:
		p := q.Provenance
		out.Provenance = &verify.ProvenanceRequirement{
			Level: p.Level, AllowV02: p.AllowV02, Repository: p.Repository, Refs: p.Refs, Triggers: p.Triggers, BuildTypes: p.BuildTypes,
			Parameters: p.Parameters, SingleSubject: p.SingleSubject,
		}
		for _, b := range p.Builders {
			out.Provenance.Builders = append(out.Provenance.Builders, verify.Builder{ID: trustMatch(&b.ID), Level: b.Level, Profile: b.Profile})
		}
	case q.VSA != nil:
		out.VSA = &verify.VSARequirement{
			Verifiers: q.VSA.Verifiers, Resource: trustMatch(q.VSA.Resource), Levels: q.VSA.Levels, VerifiedWithin: time.Duration(q.VSA.VerifiedWithin),
		}
	case q.Vulnerabilities != nil:
		out.Vulnerabilities = &verify.VulnerabilitiesRequirement{
			Scanners: q.Vulnerabilities.Scanners, ScanMaxAge: time.Duration(q.Vulnerabilities.ScanMaxAge),
			DatabaseMaxAge: time.Duration(q.Vulnerabilities.DatabaseMaxAge), MaxSeverity: q.Vulnerabilities.MaxSeverity,
		}
	case q.Test != nil:
		out.Test = &verify.TestRequirement{Kind: q.Test.Kind, AllowWarnings: q.Test.AllowWarnings, SARIF: q.Test.SARIF}
	case q.Release != nil:
		out.Release = &verify.ReleaseRequirement{Package: q.Release.Package}
	case q.SCAI != nil:
		out.SCAI = &verify.SCAIRequirement{Attributes: q.SCAI.Attributes, Evidence: q.SCAI.Evidence}
	case q.Predicate != nil:
		rego, err := read.trust(q.Predicate.RegoFile)
		if err != nil {
			return out, err
		}
		out.Predicate = &verify.PredicateRequirement{Type: q.Predicate.Type, Rego: rego}
	}
	return out, nil
}

// trustExceptions returns what the signed file of exceptions says, for as long as
// whoever signed it is not revoked. A file that is not signed as it must be is an
// error.
func trustExceptions(t *config.Trust, rules []verify.Rule, revoked *verify.Revocations, read files, now func() time.Time) (func() []verify.Exception, error) {
	x := t.Exceptions
	if x == nil {
		return nil, nil
	}
	keys := map[string][]byte{}
	for _, s := range x.Signers {
		b, err := read.trust(s.AllowedSignersFile)
		if err != nil {
			return nil, err
		}
		keys[s.AllowedSignersFile] = b
	}
	message, err := read.trust(x.File)
	if err != nil {
		return nil, err
	}
	signature, err := read.trust(x.File + config.SignatureSuffix)
	if err != nil {
		return nil, err
	}
	parsed, err := config.ParseExceptions(x.File, message)
	if err != nil {
		return nil, err
	}
	signed := func() (string, error) {
		return checkDocument(commit.NamespaceException, x.Signers, keys, message, signature, now(), revoked)
	}
	// Whoever signed it may be nobody any more: then it excepts nothing.
	if _, err := signed(); err != nil && !errors.Is(err, verify.ErrRevoked) && !errors.Is(err, commit.ErrOutOfTime) {
		return nil, fmt.Errorf("%s: %w", x.File, err)
	}
	if err := nameChecks(parsed, rules); err != nil {
		return nil, fault.New(fault.Invalid, "holdfast", "name checks as holdfast verify prints them", "%s: %w", x.File, err)
	}
	return func() []verify.Exception {
		by, err := signed()
		if err != nil {
			return nil
		}
		var out []verify.Exception
		for _, e := range parsed.Exceptions {
			out = append(out, verify.Exception{
				Digest: digest.Digest(e.Digest), Environments: e.Environments, Checks: e.Checks, Reason: e.Reason, By: by, Until: e.Until.Time,
			})
		}
		return out
	}, nil
}

// nameChecks refuses an exception of a check that no rule makes: a name that is
// mistyped would except nothing.
func nameChecks(x *config.Exceptions, rules []verify.Rule) error {
	var known []string
	for _, r := range rules {
		for _, q := range r.Require {
			known = append(known, q.Name())
		}
	}
	for _, e := range x.Exceptions {
		for _, name := range e.Checks {
			if !slices.Contains(known, name) {
				return fmt.Errorf("no rule checks %q", name)
			}
		}
	}
	return nil
}

// trustRoots returns how old the roots of trust are, by their files. One that is
// not there is refused elsewhere.
func trustRoots(cfg *config.Loaded) []telemetry.Root {
	var out []telemetry.Root
	for _, r := range cfg.Trust.Roots {
		if info, err := os.Stat(cmp.Or(r.TrustedRoot, r.Authorities)); err == nil {
			out = append(out, telemetry.Root{Name: r.Name, Changed: info.ModTime(), MaxAge: time.Duration(r.MaxAge)})
		}
	}
	return out
}

// oldRoots returns those that may be out of date.
func oldRoots(cfg *config.Loaded, now time.Time) []telemetry.Root {
	return slices.DeleteFunc(trustRoots(cfg), func(r telemetry.Root) bool { return now.Sub(r.Changed) <= r.MaxAge })
}
