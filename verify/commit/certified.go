package commit

import (
	"errors"
	"fmt"

	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"

	"github.com/holdfast-dev/holdfast/verify"
)

// Prover proves who made a signature with a certificate, and when. Package
// verify/sigstore has one.
type Prover interface {
	// Message returns who signed message, as b says.
	Message(b *sgbundle.Bundle, message []byte) (verify.Statement, error)
	// Statement returns the in-toto statement in b, as signed, and who signed it,
	// if it is about something with that digest.
	Statement(b *sgbundle.Bundle, algorithm, value string) (payload []byte, by verify.Statement, err error)
}

// NewProver makes the Prover of signers.
type NewProver func([]verify.Signer) (Prover, error)

// newCertified returns the Prover of one signer. It refuses roots by which
// nothing proves the time of a signature: a certificate ends, and whoever has its
// key may date a commit as he likes.
func newCertified(s Signer, prover NewProver) (Prover, error) {
	c := s.Certified
	switch {
	case prover == nil:
		return nil, errors.New("nobody can judge certificates")
	case c.Identity == nil || c.Root == nil:
		return nil, errors.New("an identity needs a root")
	case c.Root.Log+c.Root.Timestamps == 0:
		return nil, fmt.Errorf("root %q proves no time: ask for a log or for timestamps", c.Root.Name)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return prover([]verify.Signer{*c})
}

// verifyCertified judges an X.509 signature, as gitsign makes it.
func (k keyring) verifyCertified(c *object) (match, error) {
	sig, err := parseCMS(c.signature)
	if err != nil {
		return match{}, because("sign the commit again", "X.509 signature: %w", err)
	}
	if !sig.fits(c.payload) {
		return match{}, because("sign the commit again", "X.509 signature: does not fit the commit")
	}
	if sig.entry == nil && len(sig.timestamps) == 0 {
		return match{}, because("run git config gitsign.rekorMode offline, or set gitsign.timestampServerURL, and sign the commit again",
			"X.509 signature: it carries neither a log entry nor a timestamp: nothing proves when it was made")
	}
	b, err := sig.bundle()
	if err != nil {
		return match{}, because("sign the commit again", "X.509 signature: %w", err)
	}
	refusal := because("add an identity to the signers, or have the commit signed by one of them", "signed with a certificate, and no signer has an identity")
	for _, h := range k.signers {
		if h.prover == nil {
			continue
		}
		by, err := h.prover.Message(b, sig.attributes)
		if err != nil {
			refusal = because("have the commit signed by an identity that a signer names, with gitsign.rekorMode offline", "X.509 signature: %s", clipTo(err.Error(), 600))
			continue
		}
		m := h.certified(by)
		// What others proved is more than when it was first seen here.
		err = inWindow("signer "+h.Name, h.NotBefore, h.NotAfter, moment{"when the commit was signed", m.time}, moment{"on the commit's own date", c.committer.when})
		if err == nil {
			return m, nil
		}
		refusal = err
	}
	return match{}, refusal
}

// certified is the match of a signature by h, as a Prover described it.
func (h holder) certified(by verify.Statement) match {
	m := match{signer: h.Name, kind: "x509", fingerprint: by.Party, time: by.Time,
		anchors: append([]verify.Anchor{{Kind: verify.AnchorIdentity, Value: h.Name}}, by.RestsOn...)}
	if len(by.RestsOn) > 0 { // all are of the same signature
		m.anchors[0].At = by.RestsOn[0].At
	}
	if by.Certificate != nil {
		m.fingerprint = clip(by.Certificate.Subject + " (" + by.Certificate.Issuer + ")")
	}
	return m
}
