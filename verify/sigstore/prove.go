package sigstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Prover proves who made signatures that are not kept beside an artifact in a
// registry: over the bytes of a commit, and statements about one. It does no I/O,
// knows of no revocation, and is safe for concurrent use.
type Prover struct{ trusts []trust }

// NewProver returns the Prover of signers. It refuses to be made for nobody, and
// refuses keys and roots that do not parse.
func NewProver(signers []verify.Signer) (*Prover, error) {
	if len(signers) == 0 {
		return nil, errors.New("verify/sigstore: no trusted identity configured")
	}
	p := new(Prover)
	for _, s := range signers {
		t, err := newTrust(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "verify/sigstore.NewProver", "look at the signer and its root in holdfast.yaml", "signer %q: %w", s.Name, err)
		}
		p.trusts = append(p.trusts, t)
	}
	return p, nil
}

// Message returns who signed message, as b says. Of the statement only the
// signers, their certificate and the times are set.
func (p *Prover) Message(b *sgbundle.Bundle, message []byte) (verify.Statement, error) {
	return p.prove(func(t trust) (verify.Statement, error) {
		if b.GetMessageSignature() == nil {
			return verify.Statement{}, errors.New("not a signature over a message")
		}
		return t.check(b, sgverify.WithArtifact(bytes.NewReader(message)), verify.Statement{PredicateType: verify.PredicateSignature})
	})
}

// Statement returns the in-toto statement in b, as signed, and who signed it, if
// it is about something with a digest, in hexadecimal digits, under an algorithm
// of in-toto's such as "gitCommit".
func (p *Prover) Statement(b *sgbundle.Bundle, algorithm, value string) (payload []byte, by verify.Statement, err error) {
	by, err = p.prove(func(t trust) (verify.Statement, error) {
		env, err := b.Envelope()
		if err != nil {
			return verify.Statement{}, fmt.Errorf("not a signed statement: %w", err)
		}
		if env.PayloadType != intotoPayload {
			return verify.Statement{}, fmt.Errorf("payload type %q", verify.Brief(env.PayloadType))
		}
		if payload, err = env.DecodeB64Payload(); err != nil {
			return verify.Statement{}, err
		}
		sum, err := hex.DecodeString(value)
		if err != nil {
			return verify.Statement{}, err
		}
		return t.check(b, sgverify.WithArtifactDigest(algorithm, sum), verify.Statement{})
	})
	if err != nil {
		return nil, verify.Statement{}, err
	}
	return payload, by, nil
}

// prove tries all signers, and names each by whom it is signed. The error says
// why each refused. A panic in a parser is a refusal: strangers chose the bytes.
func (p *Prover) prove(by func(trust) (verify.Statement, error)) (out verify.Statement, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = verify.Statement{}, fmt.Errorf("malformed: %v", r)
		}
	}()
	var why []error
	for _, t := range p.trusts {
		st, err := by(t)
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", t.signer, err))
			continue
		}
		st.Signers = append(slices.Clone(out.Signers), st.Signers...)
		out = st
	}
	if len(out.Signers) == 0 {
		return verify.Statement{}, verify.Reasons(why)
	}
	return out, nil
}
