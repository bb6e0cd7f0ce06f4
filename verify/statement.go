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
}

// Attestor yields verified statements to verifiers that judge what they say.
// Who may sign them was decided when the Attestor was made.
type Attestor interface {
	// Attestations returns the verified statements about exactly s.Digest, none
	// if there are none. A registry failure is fault.Transient, never "none".
	Attestations(ctx context.Context, s Subject) ([]Statement, error)
	// Platforms returns the runnable manifests of an index, and nothing for a
	// plain image.
	Platforms(ctx context.Context, s Subject) ([]Platform, error)
}

// Platform is one runnable manifest of an index.
type Platform struct {
	Name    string // "linux/arm64"
	Subject Subject
}
