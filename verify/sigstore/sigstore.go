// Package sigstore owns the proof that a trusted signer vouched for an image.
// It reads both layouts that cosign writes: Sigstore bundles among an image's
// OCI referrers, verified by sigstore-go, and the older ".sig" and ".att" tags,
// verified by cosign. It works offline, against the keys and the trusted root
// that it is given.
//
// It guarantees that what counts as a signature is about exactly this digest
// and says so in its signed payload: a bundle's statement has the predicate type
// [PredicateSign], a legacy payload names the digest. So an attestation is
// never taken for a signature, nor a signature for an attestation. A registry
// failure is never "no signature". It refuses trust without an identity, keys
// without a transparency log unless the rule says so by name, and message
// signatures in bundles (cosign signs images by statement).
package sigstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// PredicateSign is the predicate type of a signature in the bundle layout.
const PredicateSign = "https://sigstore.dev/cosign/sign/v1"

// The names of the checks that this package reports.
const (
	CheckSignature = "signature"
)

const noSignature = "no signature by a trusted identity"

// Verifier proves signatures under one rule. It implements [verify.Verifier]
// and [verify.Attestor], and is safe for concurrent use.
type Verifier struct {
	store   *Store
	rule    verify.Rule
	revoked *verify.Revocations
	trusts  []trust
}

// Factory returns a [verify.Factory] that reads evidence through store.
func Factory(store *Store) verify.Factory {
	return func(r verify.Rule, revoked *verify.Revocations) (verify.Verifier, error) {
		return New(store, r, revoked)
	}
}

// New returns the Verifier of rule r, for which a signer in revoked is nobody. It
// refuses a rule without an identity, and one whose keys or trusted root do not
// parse.
func New(store *Store, r verify.Rule, revoked *verify.Revocations) (*Verifier, error) {
	if store == nil {
		return nil, fmt.Errorf("verify/sigstore: no store")
	}
	trusts, err := newTrusts(r)
	if err != nil {
		return nil, err
	}
	if len(trusts) == 0 {
		return nil, fmt.Errorf("verify/sigstore: no trusted identity configured")
	}
	return &Verifier{store: store, rule: r, revoked: revoked, trusts: trusts}, nil
}

// Verify implements [verify.Verifier]: at least one signature about s.Digest by
// one of the rule's signers who is not revoked. The fact "signatures" lists each
// that counts: {signer, layout, digest}. With nothing there that claims to be a
// signature, the error wraps [verify.ErrMissing].
func (v *Verifier) Verify(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
	const op = "verify/sigstore.Verify"
	if s.Kind != verify.KindImage {
		return verify.Evidence{}, fmt.Errorf("%s: %w", s.Kind, verify.ErrNotApplicable)
	}
	found, err := v.store.collect(ctx, s)
	if err != nil {
		return verify.Evidence{}, fault.Wrap(fault.Transient, op, "", err)
	}
	e := verify.Evidence{Subject: s, Rule: v.rule.Name}
	var proofs []any
	var signers []string
	var no refusals
	for _, c := range found {
		p, err := v.prove(ctx, c, s.Digest)
		switch {
		case err != nil:
			no.add(c, err)
		case !p.signature:
			no.add(c, fmt.Errorf("an attestation (%s), not a signature", p.statement.PredicateType))
		default:
			signers = append(signers, p.signer)
			proofs = append(proofs, map[string]any{"signer": p.signer, "layout": c.layout, "digest": s.Digest.String()})
			e.RestsOn = append(e.RestsOn, p.statement.RestsOn...)
		}
	}
	check := verify.Check{Name: CheckSignature, Want: "a signature by " + v.rule.Signers()}
	if len(proofs) == 0 {
		check.Found, check.Detail = "nothing", strings.Join(bounded(no.why), "\n")
		if len(found) > 0 {
			check.Found = fmt.Sprintf("%d candidates, none valid", len(found))
		}
		e.Checks = []verify.Check{check}
		return e, v.refuse(ctx, s, no)
	}
	slices.Sort(signers)
	check.OK, check.Found = true, strings.Join(slices.Compact(signers), ", ")
	e.RestsOn = verify.Anchors(e.RestsOn)
	check.Detail = names(e.RestsOn)
	e.Checks = []verify.Check{check}
	e.Facts = map[string]any{"signatures": proofs}
	return e, nil
}

// names lists anchors as a person would revoke them.
func names(anchors []verify.Anchor) string {
	var out []string
	for _, a := range anchors {
		out = append(out, a.String())
	}
	return strings.Join(out, "\n")
}

// refusals collects why candidates do not count.
type refusals struct {
	why        []string
	signatures int   // candidates that claim to be a signature
	revoked    error // of a signature that is valid but for a revocation
}

func (r *refusals) add(c candidate, err error) {
	r.why = append(r.why, c.where+": "+err.Error())
	if claim := c.claim(); claim != PredicateSign && claim != "" {
		return
	}
	r.signatures++
	if isRevoked(err) {
		r.revoked = err
	}
}

// refuse returns the error of an image without a signature that counts: one
// that is revoked, one that is wrong, or none yet.
func (v *Verifier) refuse(ctx context.Context, s verify.Subject, no refusals) error {
	const op = "verify/sigstore.Verify"
	const hint = "sign it in CI, or add the signer under trust: in holdfast.yaml"
	switch {
	case no.revoked != nil:
		return fault.New(fault.Denied, op, fault.HintOf(no.revoked), "%s: %s: %w", s.Pinned(), noSignature, no.revoked)
	case no.signatures > 0:
		return fault.New(fault.Denied, op, hint, "%s: %s", s.Pinned(), noSignature)
	}
	// Registries hide what one may not see: without the image itself, a lack of
	// signatures says nothing.
	if err := v.store.exists(ctx, s); err != nil {
		return fault.Wrap(fault.Transient, op, "check the credentials for the registry, and that the image is there", err)
	}
	return fault.New(fault.Denied, op, hint, "%s: %s: %w", s.Pinned(), noSignature, verify.ErrMissing)
}

// bounded keeps a report readable when someone pushed many bad candidates.
func bounded(why []string) []string {
	const most, long = 8, 400
	for i, w := range why {
		if len(w) > long {
			why[i] = strings.ToValidUTF8(w[:long], "") + "…"
		}
	}
	if len(why) > most {
		why = append(why[:most:most], fmt.Sprintf("and %d more", len(why)-most))
	}
	return why
}

// Attestations implements [verify.Attestor]: the statements about s.Digest by
// the rule's signers, signatures left out.
func (v *Verifier) Attestations(ctx context.Context, s verify.Subject) ([]verify.Statement, []verify.Rejected, error) {
	found, err := v.store.collect(ctx, s)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Transient, "verify/sigstore.Attestations", "", err)
	}
	var out []verify.Statement
	var rejected []verify.Rejected
	for _, c := range found {
		p, err := v.prove(ctx, c, s.Digest)
		switch {
		case err != nil:
			rejected = append(rejected, verify.Rejected{PredicateType: c.claim(), Reason: fmt.Errorf("%s: %w", c.where, err)})
		case !p.signature:
			out = append(out, p.statement)
		}
	}
	return out, rejected, nil
}

// Platforms implements [verify.Attestor].
func (v *Verifier) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	return v.store.platforms(ctx, s)
}

// Fingerprint implements [verify.Fingerprinter].
func (v *Verifier) Fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	return v.store.fingerprint(ctx, s)
}

// proof is a candidate that was verified.
type proof struct {
	signer    string
	signature bool
	// statement has only the signer's part if this is a signature in the legacy
	// layout.
	statement verify.Statement
}

// prove tries the rule's signers in turn. The error says why each refused; it
// wraps the revocation if one accepted but for that.
func (v *Verifier) prove(ctx context.Context, c candidate, d digest.Digest) (proof, error) {
	if c.err != nil {
		return proof{}, c.err
	}
	var why []error
	for _, t := range v.trusts {
		p, err := guarded(ctx, t, c, d)
		if err == nil {
			p.signer, p.statement.Signer = t.name, t.name
			if p.statement.RestsOn, err = t.anchors(c); err == nil {
				err = v.notRevoked(p.statement.RestsOn)
			}
		}
		if err == nil {
			return p, nil
		}
		why = append(why, fmt.Errorf("%s: %w", t.name, err))
	}
	return proof{}, list(why)
}

// revokedError marks a candidate that is good but for a revocation.
type revokedError struct{ error }

// Unwrap returns the revocation.
func (e revokedError) Unwrap() error { return e.error }

func isRevoked(err error) bool {
	var r revokedError
	return errors.As(err, &r)
}

func (v *Verifier) notRevoked(anchors []verify.Anchor) error {
	if err := v.revoked.Check(anchors...); err != nil {
		return revokedError{err}
	}
	return nil
}

// list joins errors on one line.
func list(errs []error) error {
	var out error
	for _, err := range errs {
		if out == nil {
			out = err
			continue
		}
		out = fmt.Errorf("%w; %w", out, err)
	}
	return out
}

// guarded makes a panic in a parser a refusal of that one candidate: whoever
// may push to the repository chose its bytes.
func guarded(ctx context.Context, t trust, c candidate, d digest.Digest) (p proof, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = proof{}, fmt.Errorf("malformed: %v", r)
		}
	}()
	switch {
	case c.bundle != nil:
		return t.proveBundle(c.bundle, d)
	case c.legacy != nil && c.attestation:
		return t.proveLegacyAttestation(ctx, c.legacy, d)
	case c.legacy != nil:
		return t.proveLegacySignature(ctx, c.legacy, d)
	default:
		return proof{}, fmt.Errorf("nothing to verify")
	}
}
