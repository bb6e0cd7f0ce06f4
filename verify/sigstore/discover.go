package sigstore

import (
	"context"
	"regexp"

	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Discover returns who signed what about s, whoever it is: by one of keys, or with
// a certificate of one of roots. It is for suggesting rules to people, and proves
// nothing that may be deployed. What nobody of them signed is rejected.
func Discover(ctx context.Context, store *Store, s verify.Subject, keys []verify.Signer, roots []*verify.Root) ([]verify.Statement, []verify.Rejected, error) {
	const op = "verify/sigstore.Discover"
	v := &Verifier{store: store}
	for _, k := range keys {
		t, err := newTrust(k)
		if err != nil {
			return nil, nil, fault.New(fault.Invalid, op, "", "signer %q: %w", k.Name, err)
		}
		v.trusts = append(v.trusts, t)
	}
	for _, r := range roots {
		t, err := anyoneOf(r)
		if err != nil {
			return nil, nil, fault.New(fault.Invalid, op, "", "root %q: %w", r.Name, err)
		}
		v.trusts = append(v.trusts, t)
	}
	return v.Attestations(ctx, s)
}

// anyoneOf accepts every identity that the root certifies.
func anyoneOf(r *verify.Root) (trust, error) {
	m, err := newMaterial(r)
	if err != nil {
		return trust{}, err
	}
	t := trust{
		signer: verify.Signer{Name: r.Name, Identity: &verify.Identity{}, Root: r}, anyone: true,
		root: m, trusted: m.TrustedMaterial, subject: regexp.MustCompile(``), policy: sgverify.WithoutIdentitiesUnsafe(),
	}
	t.bundle, err = sgverify.NewVerifier(m.TrustedMaterial, m.options(true)...)
	return t, err
}
