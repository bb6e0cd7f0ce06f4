// Package sbom owns the judgement of a software bill of materials: that there
// is one for the image, signed by someone who may, and that it says something.
//
// It guarantees that only verified attestations are read, that a document which
// does not parse in the format its predicate type names is a denial, and that an
// empty one is a denial. For an index, either the index itself has an SBOM or
// every runnable platform in it has one; it says which. It refuses to look
// inside predicates of other types.
package sbom

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// CheckSBOM is the name of the check that this package reports.
const CheckSBOM = "sbom"

// The predicate types of SBOM attestations, which may have a version behind
// them: "https://spdx.dev/Document/v2.3", "https://cyclonedx.org/bom/v1.5".
// https://github.com/in-toto/attestation/tree/main/spec/predicates
const (
	PredicateSPDX      = "https://spdx.dev/Document"
	PredicateCycloneDX = "https://cyclonedx.org/bom"
)

// Attestations makes the source of verified attestations for a rule, whose
// signers are the ones that may sign the SBOM unless they are revoked.
type Attestations func(verify.Rule, *verify.Revocations) (verify.Attestor, error)

// Verifier requires an SBOM under one rule. It is safe for concurrent use.
type Verifier struct {
	rule   verify.Rule
	source verify.Attestor
}

// Factory returns a [verify.Factory]. A rule that does not require an SBOM asks
// nothing of this package.
func Factory(attestations Attestations) verify.Factory {
	return func(r verify.Rule, revoked *verify.Revocations) (verify.Verifier, error) {
		if !r.SBOM.Required {
			return nil, fmt.Errorf("no SBOM is required: %w", verify.ErrNotApplicable)
		}
		if attestations == nil {
			return nil, errors.New("verify/sbom: no source of attestations")
		}
		source, err := attestations(r.ForSBOM(), revoked)
		if err != nil {
			return nil, err
		}
		return &Verifier{rule: r, source: source}, nil
	}
}

// Verify implements [verify.Verifier]. The fact "sboms" lists each document:
// {format, version, components, tools, signer, digest, on}, where on is "image",
// "index" or the platform.
func (v *Verifier) Verify(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
	const op = "verify/sbom.Verify"
	if s.Kind != verify.KindImage {
		return verify.Evidence{}, fmt.Errorf("%s: %w", s.Kind, verify.ErrNotApplicable)
	}
	platforms, err := v.source.Platforms(ctx, s)
	if err != nil {
		return verify.Evidence{}, fault.Wrap(fault.Transient, op, "", err)
	}
	on := "image"
	if len(platforms) > 0 {
		on = "index"
	}
	e := verify.Evidence{Subject: s, Rule: v.rule.Name}
	r, err := v.one(ctx, s, on)
	if err != nil && len(platforms) > 0 && errors.Is(err, errNone) {
		return v.each(ctx, e, platforms, err)
	}
	return v.conclude(e, []result{r}, err)
}

// each requires an SBOM on every platform of an index that has none itself,
// which is what the error onIndex says.
func (v *Verifier) each(ctx context.Context, e verify.Evidence, platforms []verify.Platform, onIndex error) (verify.Evidence, error) {
	results := make([]result, len(platforms))
	errs := make([]error, len(platforms))
	var g errgroup.Group
	g.SetLimit(8)
	for i, p := range platforms {
		g.Go(func() error {
			results[i], errs[i] = v.one(ctx, p.Subject, p.Name)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	err := worst(errs)
	if err != nil {
		err = worst([]error{err, onIndex})
	}
	return v.conclude(e, results, err)
}

// worst returns the error that decides: a registry failure, for then the answer
// is not known yet; else what is wrong; else what is missing.
func worst(errs []error) error {
	rank := func(err error) int {
		switch {
		case err == nil:
			return 0
		case errors.Is(err, verify.ErrMissing):
			return 1
		case fault.KindOf(err) == fault.Denied:
			return 2
		default:
			return 3
		}
	}
	return slices.MaxFunc(errs, func(a, b error) int { return rank(a) - rank(b) })
}

// Fingerprint implements [verify.Fingerprinter]: of an index, what is attached to
// each platform counts too.
func (v *Verifier) Fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	platforms, err := v.source.Platforms(ctx, s)
	if err != nil {
		return "", err
	}
	subjects := []verify.Subject{s}
	for _, p := range platforms {
		subjects = append(subjects, p.Subject)
	}
	parts := make([]digest.Digest, len(subjects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, sub := range subjects {
		g.Go(func() (err error) { parts[i], err = v.source.Fingerprint(ctx, sub); return err })
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	return digest.FromString(fmt.Sprint(parts)), nil
}

func (v *Verifier) conclude(e verify.Evidence, results []result, err error) (verify.Evidence, error) {
	check := verify.Check{Name: CheckSBOM, Want: "an SBOM (" + strings.Join(v.formats(), " or ") + ") signed by " + v.rule.ForSBOM().Signers(), OK: err == nil}
	if err != nil {
		check.Found, check.Detail = "no usable SBOM", err.Error()
		e.Checks = []verify.Check{check}
		return e, err
	}
	var facts []any
	var found []string
	for _, r := range results {
		e.RestsOn = append(e.RestsOn, r.restsOn...)
		found = append(found, fmt.Sprintf("%s %s, %d components, on the %s", r.doc.format, r.doc.version, r.doc.components, r.on))
		facts = append(facts, map[string]any{
			"format": r.doc.format, "version": r.doc.version, "components": r.doc.components, "tools": r.doc.tools,
			"signer": r.signer, "digest": r.digest, "on": r.on,
		})
	}
	e.RestsOn = verify.Anchors(e.RestsOn)
	check.Found = strings.Join(found, "; ")
	e.Checks = []verify.Check{check}
	e.Facts = map[string]any{"sboms": facts}
	return e, nil
}

// result is one accepted document.
type result struct {
	doc                document
	signer, digest, on string
	restsOn            []verify.Anchor
}

var errNone = errors.New("no SBOM attestation by a trusted identity")

// one returns the first good SBOM about exactly s. A malformed one is skipped
// if another is good: the trusted signer has replaced it.
func (v *Verifier) one(ctx context.Context, s verify.Subject, on string) (result, error) {
	const op = "verify/sbom.Verify"
	statements, rejected, err := v.source.Attestations(ctx, s)
	if err != nil {
		return result{}, fault.Wrap(fault.Transient, op, "", err)
	}
	var bad []error
	for _, st := range statements {
		format, version, ok := formatOf(st.PredicateType)
		if !ok || st.Subject != s.Digest || !slices.Contains(v.formats(), format) {
			continue
		}
		doc, err := parse(format, st.Predicate)
		if err == nil && !strings.HasPrefix(doc.version, version) {
			err = fmt.Errorf("the document has version %s", doc.version)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s signed by %s: %w", st.PredicateType, st.Signer, err))
			continue
		}
		return result{doc: doc, signer: st.Signer, digest: s.Digest.String(), on: on, restsOn: st.RestsOn}, nil
	}
	if len(bad) > 0 {
		return result{}, fault.New(fault.Denied, op, "attest a complete SBOM in CI", "%s: the SBOM is not usable: %w", s.Pinned(), errors.Join(bad...))
	}
	const hint = "attest an SBOM in CI: cosign attest --type spdxjson or cyclonedx"
	if why := v.claimed(rejected); why != nil {
		return result{}, fault.New(fault.Denied, op, hint, "%s: %w: %w", s.Pinned(), errNone, why)
	}
	return result{}, fault.New(fault.Denied, op, hint, "%s: %w: %w", s.Pinned(), errNone, verify.ErrMissing)
}

// claimed joins the reasons against what claims to be an SBOM in a wanted
// format, or to be nothing that can be read. Nil says that there is none.
func (v *Verifier) claimed(rejected []verify.Rejected) error {
	const most = 8
	var why []error
	for _, r := range rejected {
		format, _, ok := formatOf(r.PredicateType)
		if r.PredicateType != "" && (!ok || !slices.Contains(v.formats(), format)) {
			continue
		}
		if len(why) == most {
			break
		}
		why = append(why, r.Reason)
	}
	return errors.Join(why...)
}

func (v *Verifier) formats() []string {
	if len(v.rule.SBOM.Formats) > 0 {
		return v.rule.SBOM.Formats
	}
	return []string{verify.FormatSPDX, verify.FormatCycloneDX}
}

// spdxTypes are the SPDX predicate types that are known, with the beginning of
// the version that the document must then have. cosign writes the bare one.
var spdxTypes = map[string]string{
	PredicateSPDX:             "",
	PredicateSPDX + "/v2.3":   "2.3",
	PredicateSPDX + "/v3":     "3.",
	PredicateSPDX + "/v3.0":   "3.0",
	PredicateSPDX + "/v3.0.1": "3.0.1",
}

// formatOf maps a predicate type to a format and to the version, or its
// beginning, that the document must have.
func formatOf(predicateType string) (format, version string, ok bool) {
	if v, ok := spdxTypes[predicateType]; ok {
		return verify.FormatSPDX, v, true
	}
	if predicateType == PredicateCycloneDX {
		return verify.FormatCycloneDX, "", true
	}
	minor, ok := strings.CutPrefix(predicateType, PredicateCycloneDX+"/v1.")
	if !ok || minor == "" || len(minor) > 2 || strings.Trim(minor, "0123456789") != "" {
		return "", "", false
	}
	return verify.FormatCycloneDX, "1." + minor, true
}
