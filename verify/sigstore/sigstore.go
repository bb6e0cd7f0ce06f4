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
	store  *Store
	rule   verify.Rule
	trusts []trust
}

// Factory returns a [verify.Factory] that reads evidence through store.
func Factory(store *Store) verify.Factory {
	return func(r verify.Rule) (verify.Verifier, error) { return New(store, r) }
}

// New returns the Verifier of rule r. It refuses a rule without an identity,
// and one whose keys or trusted root do not parse.
func New(store *Store, r verify.Rule) (*Verifier, error) {
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
	return &Verifier{store: store, rule: r, trusts: trusts}, nil
}

// Verify implements [verify.Verifier]: at least one signature about s.Digest by
// one of the rule's signers. The fact "signatures" lists each that counts:
// {signer, layout, digest}.
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
	var signers, why []string
	for _, c := range found {
		p, err := v.prove(ctx, c, s.Digest)
		switch {
		case err != nil:
			why = append(why, c.where+": "+err.Error())
		case !p.signature:
			why = append(why, c.where+": an attestation ("+p.statement.PredicateType+"), not a signature")
		default:
			signers = append(signers, p.signer)
			proofs = append(proofs, map[string]any{"signer": p.signer, "layout": c.layout, "digest": s.Digest.String()})
		}
	}
	check := verify.Check{Name: CheckSignature, Want: "a signature by " + v.rule.Signers()}
	if len(proofs) == 0 {
		check.Found, check.Detail = "nothing", strings.Join(bounded(why), "\n")
		if len(found) > 0 {
			check.Found = fmt.Sprintf("%d candidates, none valid", len(found))
		}
		e.Checks = []verify.Check{check}
		return e, fault.New(fault.Denied, op, "sign it in CI, or add the signer under trust: in holdfast.yaml", "%s: %s", s.Pinned(), noSignature)
	}
	slices.Sort(signers)
	check.OK, check.Found = true, strings.Join(slices.Compact(signers), ", ")
	e.Checks = []verify.Check{check}
	e.Facts = map[string]any{"signatures": proofs}
	return e, nil
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
func (v *Verifier) Attestations(ctx context.Context, s verify.Subject) ([]verify.Statement, error) {
	found, err := v.store.collect(ctx, s)
	if err != nil {
		return nil, fault.Wrap(fault.Transient, "verify/sigstore.Attestations", "", err)
	}
	var out []verify.Statement
	for _, c := range found {
		if p, err := v.prove(ctx, c, s.Digest); err == nil && !p.signature {
			out = append(out, p.statement)
		}
	}
	return out, nil
}

// Platforms implements [verify.Attestor].
func (v *Verifier) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	return v.store.platforms(ctx, s)
}

// proof is a candidate that was verified.
type proof struct {
	signer    string
	signature bool
	statement verify.Statement // unless signature in the legacy layout
}

// prove tries the rule's signers in turn. The error says why each refused.
func (v *Verifier) prove(ctx context.Context, c candidate, d digest.Digest) (proof, error) {
	if c.err != nil {
		return proof{}, c.err
	}
	var why []string
	for _, t := range v.trusts {
		p, err := guarded(ctx, t, c, d)
		if err == nil {
			p.signer, p.statement.Signer = t.name, t.name
			return p, nil
		}
		why = append(why, t.name+": "+err.Error())
	}
	return proof{}, fmt.Errorf("%s", strings.Join(why, "; "))
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
