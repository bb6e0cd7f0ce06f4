// Package sigstore owns the proof of who signed a statement about an artifact.
// It reads both layouts that cosign writes: Sigstore bundles among an artifact's
// OCI referrers, verified by sigstore-go, and the older ".sig" and ".att" tags,
// verified by cosign. It works offline, against the keys and the trusted roots
// that it is given.
//
// It guarantees that what counts as a signature is about exactly this digest
// and says so in its signed payload: a bundle's statement has the predicate type
// [verify.PredicateSignature], a legacy payload names the digest. So an
// attestation is never taken for a signature, nor a signature for an attestation.
// A registry failure is never "no signature". It refuses trust without an
// identity, keys without a proven time unless the rule says so by name, and
// message signatures in bundles about images (cosign signs images by statement).
package sigstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Verifier proves who made the statements about an artifact, for a list of
// signers. It implements [verify.Attestor], and is safe for concurrent use.
type Verifier struct {
	store   *Store
	revoked *verify.Revocations
	trusts  []trust
	clock   verify.Clock
}

// Source returns what makes the Verifier of a list of signers, reading through
// store.
func Source(store *Store) func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) {
	return func(signers []verify.Signer, revoked *verify.Revocations) (verify.Attestor, error) {
		return New(store, signers, revoked)
	}
}

// New returns the Verifier of those signers that Sigstore knows, of whom those in
// revoked are nobody. It refuses to be made for nobody, and refuses keys and roots
// that do not parse; where all signers are of another kind, the error wraps
// [verify.ErrNotApplicable].
func New(store *Store, signers []verify.Signer, revoked *verify.Revocations) (*Verifier, error) {
	if store == nil {
		return nil, errors.New("verify/sigstore: no store")
	}
	if len(signers) == 0 {
		return nil, errors.New("verify/sigstore: no trusted identity configured")
	}
	v := &Verifier{store: store, revoked: revoked, clock: verify.NewClock()}
	for _, s := range signers {
		if s.Notation != nil { // verify/notation's
			continue
		}
		t, err := newTrust(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "verify/sigstore.New", "look at the signer under trust: in holdfast.yaml", "signer %q: %w", s.Name, err)
		}
		v.trusts = append(v.trusts, t)
	}
	if len(v.trusts) == 0 {
		return nil, fmt.Errorf("verify/sigstore: %w", verify.ErrNotApplicable)
	}
	return v, nil
}

// Attestations implements [verify.Attestor].
func (v *Verifier) Attestations(ctx context.Context, s verify.Subject) ([]verify.Statement, []verify.Rejected, error) {
	found, err := v.store.collect(ctx, s)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Transient, "verify/sigstore.Attestations", "", err)
	}
	trusts, err := v.asOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	var out []verify.Statement
	var rejected []verify.Rejected
	for _, c := range found {
		proven, err := v.prove(ctx, trusts, c, s.Digest)
		if ctx.Err() != nil {
			return nil, nil, fault.Wrap(fault.Transient, "verify/sigstore.Attestations", "", ctx.Err())
		}
		if err != nil {
			rejected = append(rejected, verify.Rejected{Where: c.where, PredicateType: c.claim(), Reason: err})
			continue
		}
		for _, st := range proven {
			st.Where, st.Digest, st.Layout = c.where, c.digest, c.layout
			out = append(out, st)
		}
	}
	return out, rejected, nil
}

// asOf returns the signers, to be judged by the time of ctx.
func (v *Verifier) asOf(ctx context.Context) ([]trust, error) {
	if !verify.Replayed(ctx) {
		return v.trusts, nil
	}
	out := make([]trust, len(v.trusts))
	for i, t := range v.trusts {
		var err error
		if out[i], err = t.asOf(v.clock.In(ctx)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Platforms implements [verify.Attestor].
func (v *Verifier) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	return v.store.client.Platforms(ctx, s)
}

// Single implements [verify.Attestor].
func (v *Verifier) Single(ctx context.Context, s verify.Subject) error {
	return v.store.client.Single(ctx, s)
}

// Exists implements [verify.Attestor].
func (v *Verifier) Exists(ctx context.Context, s verify.Subject) error {
	return v.store.client.Exists(ctx, s)
}

// Fingerprint implements [verify.Fingerprinter].
func (v *Verifier) Fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	return v.store.fingerprint(ctx, s)
}

// prove tries all signers. It returns a statement for each by whom c is signed;
// two names for one signer, judged by the same times, share one. The error says
// why each refused; it wraps the revocation if one accepted but for that.
func (v *Verifier) prove(ctx context.Context, trusts []trust, c candidate, d digest.Digest) ([]verify.Statement, error) {
	if c.err != nil {
		return nil, verify.BriefError(c.err)
	}
	var out []verify.Statement
	var why []error
	for _, t := range trusts {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		st, err := guarded(ctx, t, c, d)
		if err == nil {
			err = v.revoked.Check(st.RestsOn...)
		}
		if errors.Is(err, verify.ErrRevoked) { // first: people are shown so much of the reasons
			why = slices.Insert(why, 0, fmt.Errorf("%s: %w", t.signer, err))
			continue
		}
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", t.signer, err))
			continue
		}
		same := func(o verify.Statement) bool {
			return o.Party == st.Party && o.Time.Equal(st.Time) && o.NotAfter.Equal(st.NotAfter)
		}
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i].Signers = append(out[i].Signers, st.Signers...)
			continue
		}
		out = append(out, st)
	}
	if len(out) == 0 {
		return nil, verify.Reasons(why)
	}
	return out, nil
}

// guarded makes a panic in a parser a refusal of that one candidate: whoever
// may push to the repository chose its bytes.
func guarded(ctx context.Context, t trust, c candidate, d digest.Digest) (st verify.Statement, err error) {
	defer func() {
		if r := recover(); r != nil {
			st, err = verify.Statement{}, fmt.Errorf("malformed: %v", r)
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
		return verify.Statement{}, errors.New("nothing to verify")
	}
}
