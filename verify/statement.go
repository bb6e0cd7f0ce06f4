package verify

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Statement is an attestation whose signature, signer and subject were verified.
type Statement struct {
	Subject       digest.Digest // the manifest that it is about
	PredicateType string        // exactly as signed
	Predicate     []byte        // raw JSON, as signed
	Signer        string        // for people: "key release" or "subject (issuer)"
	RestsOn       []Anchor      // the signer's
}

// Rejected is an attestation that was not believed.
type Rejected struct {
	// PredicateType is what it claims to be; empty if it cannot be read.
	PredicateType string
	Reason        error
}

// Attestor yields verified statements to verifiers that judge what they say.
// Who may sign them was decided when the Attestor was made.
type Attestor interface {
	// Attestations returns the verified statements about exactly s.Digest, and
	// what claims to be one and is not believed: wrong is something else than
	// missing. A registry failure is fault.Transient, never "none".
	Attestations(ctx context.Context, s Subject) ([]Statement, []Rejected, error)
	// Platforms returns the runnable manifests of an index, and nothing for a
	// plain image.
	Platforms(ctx context.Context, s Subject) ([]Platform, error)
	Fingerprinter
}

// Platform is one runnable manifest of an index.
type Platform struct {
	Name    string // "linux/arm64"
	Subject Subject
}
