// Package notation owns the proof of who signed an artifact in the format of the
// Notary Project. It reads the JWS and COSE envelopes that notation pushes among
// an artifact's OCI referrers, and works offline, against the certificates that
// it is given.
//
// It guarantees that what counts is signed by a certificate that chains to one of
// a signer's own, that names the signer's subject, and that was valid when the
// signature was proven to be made; that the signed payload is exactly the
// manifest's digest, media type and size; and that all is judged as under the
// trust policy level "strict". A registry failure is never "no signature". It
// refuses signed attributes that it does not understand, the signing scheme in
// which a third party vouches for the time, signatures that need a plugin, and
// trust in every subject of an authority.
//
// It asks nobody whether a certificate was revoked: what Holdfast revokes itself
// counts, and the windows of signers and certificates.
//
// https://github.com/notaryproject/specifications/tree/v1.1.0/specs
package notation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// collectBudget bounds the time in which all signatures of one artifact are
// fetched.
const collectBudget = time.Minute

// Verifier proves who signed an artifact, for a list of signers. It implements
// [verify.Attestor], and is safe for concurrent use.
type Verifier struct {
	client  *registry.Client
	revoked *verify.Revocations
	trusts  []trust
	clock   verify.Clock
}

// Source returns what makes the Verifier of a list of signers, reading through
// client.
func Source(client *registry.Client) func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) {
	return func(signers []verify.Signer, revoked *verify.Revocations) (verify.Attestor, error) {
		return New(client, signers, revoked)
	}
}

// New returns the Verifier of those signers that are of the Notary Project, of
// whom those in revoked are nobody. It refuses to be made for nobody, and refuses
// certificates and subjects that do not parse; where all signers are of another
// kind, the error wraps [verify.ErrNotApplicable].
func New(client *registry.Client, signers []verify.Signer, revoked *verify.Revocations) (*Verifier, error) {
	if client == nil {
		return nil, errors.New("verify/notation: no registry client")
	}
	if len(signers) == 0 {
		return nil, errors.New("verify/notation: no trusted identity configured")
	}
	v := &Verifier{client: client, revoked: revoked, clock: verify.NewClock()}
	for _, s := range signers {
		if s.Notation == nil {
			continue
		}
		t, err := newTrust(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "verify/notation.New", "look at the signer under trust: in holdfast.yaml", "signer %q: %w", s.Name, err)
		}
		v.trusts = append(v.trusts, t)
	}
	if len(v.trusts) == 0 {
		return nil, fmt.Errorf("verify/notation: %w", verify.ErrNotApplicable)
	}
	return v, nil
}

// Attestations implements [verify.Attestor]. Each statement is a signature.
func (v *Verifier) Attestations(ctx context.Context, s verify.Subject) ([]verify.Statement, []verify.Rejected, error) {
	const op = "verify/notation.Attestations"
	ctx, cancel := context.WithTimeout(ctx, collectBudget)
	defer cancel()
	found, err := v.collect(ctx, s)
	if err != nil || len(found) == 0 {
		return nil, nil, fault.Wrap(fault.Transient, op, "", err)
	}
	about, err := v.target(ctx, s)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Transient, op, "", err)
	}
	var out []verify.Statement
	var rejected []verify.Rejected
	for _, c := range found {
		if err := ctx.Err(); err != nil {
			return nil, nil, fault.Wrap(fault.Transient, op, "", err)
		}
		by, err := v.prove(ctx, c, about)
		if err != nil {
			rejected = append(rejected, verify.Rejected{Where: c.where, PredicateType: verify.PredicateSignature, Reason: err})
			continue
		}
		out = append(out, by...)
	}
	return out, rejected, nil
}

// Platforms implements [verify.Attestor].
func (v *Verifier) Platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	return v.client.Platforms(ctx, s)
}

// Single implements [verify.Attestor].
func (v *Verifier) Single(ctx context.Context, s verify.Subject) error {
	return v.client.Single(ctx, s)
}

// Exists implements [verify.Attestor].
func (v *Verifier) Exists(ctx context.Context, s verify.Subject) error {
	return v.client.Exists(ctx, s)
}

// Fingerprint implements [verify.Fingerprinter].
func (v *Verifier) Fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	d, err := v.client.PeekReferrers(ctx, s.Name, s.Digest)
	return d, fault.Wrap(fault.Transient, "verify/notation.Fingerprint", "", err)
}

// prove opens c and returns a statement for each signer that it is by: two names
// may mean the same one. The error says why each refused; it wraps the revocation
// if one accepted but for that.
func (v *Verifier) prove(ctx context.Context, c candidate, about descriptor) (out []verify.Statement, err error) {
	defer func() { // whoever may push to the repository chose the bytes that are parsed
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("malformed: %v", r)
		}
	}()
	if c.err != nil {
		return nil, c.err
	}
	s, err := open(c.mediaType, c.envelope, about)
	if err != nil {
		return nil, err
	}
	var why error
	for _, t := range v.trusts {
		st, err := t.accept(ctx, s, v.clock.In(ctx))
		if err == nil {
			err = v.revoked.Check(st.RestsOn...)
		}
		if err != nil {
			why = also(why, fmt.Errorf("%s: %w", t.signer, err))
			continue
		}
		st.Where, st.Digest, st.Layout = c.where, digest.FromBytes(c.envelope), Layout
		out = append(out, st)
	}
	if len(out) == 0 {
		return nil, why
	}
	return out, nil
}

// also adds err to those before it, on one line.
func also(before, err error) error {
	if before == nil {
		return err
	}
	return fmt.Errorf("%w; %w", before, err)
}
