package verify

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// PredicateSignature is the predicate type of a signature: what cosign writes in
// its bundles, and what every other kind of signature is read as.
const PredicateSignature = "https://sigstore.dev/cosign/sign/v1"

// Statement is an attestation, or a signature, whose signer and subject were
// verified.
type Statement struct {
	// Name is the repository of the artifact that is judged, in normal form. It is
	// not signed: a statement that says where it holds is compared with it.
	Name    string
	Subject digest.Digest // the manifest that it is about
	// Subjects are all that the statement is about, as signed.
	Subjects      []StatementSubject
	PredicateType string // exactly as signed; PredicateSignature for a signature
	Predicate     []byte // raw JSON, as signed; nil for a signature without a statement
	// Signers names every signer of the rule that this signature is by: two
	// entries may mean the same one.
	Signers []string
	// Party is what a threshold counts once: the key, or issuer and subject.
	Party       string
	Certificate *Certificate // of a keyless signature; nil for a key
	// Time is the earliest proven time of the signature; zero where nobody but the
	// signer knows it.
	Time time.Time
	// NotAfter is when the signature has to be looked at again; zero is never.
	NotAfter time.Time
	RestsOn  []Anchor      // the signer's
	Digest   digest.Digest // of the document that holds it, in the registry
	Where    string        // for people: where the registry has it
	Layout   string        // how it is kept there
}

// StatementSubject is one subject of a statement.
type StatementSubject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"` // by algorithm, hex
}

// Rejected is an attestation that was not believed.
type Rejected struct {
	Where string // for people: where the registry has it
	// PredicateType is what it claims to be; empty if it cannot be read.
	PredicateType string
	Reason        error // wraps [ErrRevoked] if it is good but for a revocation
}

// Attestor yields verified statements to those who judge what they say. Whose
// they may be was decided when the Attestor was made.
type Attestor interface {
	// Attestations returns the verified statements about exactly s.Digest,
	// signatures included, and what claims to be one and is not believed: wrong is
	// something else than missing. A registry failure is fault.Transient, never "none".
	Attestations(ctx context.Context, s Subject) ([]Statement, []Rejected, error)
	// Platforms returns the runnable manifests of an index, and nothing for a
	// plain image.
	Platforms(ctx context.Context, s Subject) ([]Platform, error)
	// Single returns an error unless s is one manifest and not an index, whatever the
	// index calls it that names it.
	Single(ctx context.Context, s Subject) error
	// Exists returns an error unless the artifact itself can be seen: registries
	// hide what one may not see, and then a lack of evidence says nothing.
	Exists(ctx context.Context, s Subject) error
	Fingerprinter
}

// Platform is one runnable manifest of an index.
type Platform struct {
	Name    string // "linux/arm64"
	Subject Subject
}

// What the error of a [Judge] says of a statement, beside that it is not enough.
var (
	// ErrOther: it is somebody else's business, as if it were not there: the
	// result of another test.
	ErrOther = errors.New("it is about something else")
	// ErrContradicts: its maker says no, and nobody else's yes outweighs that: a
	// test that failed, a verification that did.
	ErrContradicts = errors.New("its maker says no")
)

// Judge decides whether what a verified statement says is enough for one
// requirement. It does no I/O.
type Judge interface {
	// Reads reports whether statements of the type are its business. It MUST
	// compare types exactly, or by a list of versions (CVE-2022-35929).
	Reads(predicateType string) bool
	// Judge returns what st says, or why it is not enough. now is the time of the
	// judgement. st.PredicateType is one that it reads. The error may wrap
	// [ErrOther] or [ErrContradicts]; Made and Series are set with an error, too.
	Judge(st Statement, now time.Time) (Finding, error)
}

// Finding is what a judge found in a statement.
type Finding struct {
	Text  string         // for people: "spdx 2.3, 12 components"
	Facts map[string]any // for policies; keys are stable and documented
	// Party is who else than the signer must be distinct for a threshold, such as
	// the builder; empty: nobody.
	Party string
	// Made is when the statement says that its matter was made. A date that a
	// signer chose only narrows: it orders statements of one signer.
	Made time.Time
	// Series is what a newer statement of the same signer replaces, of a
	// [Superseding] judge: the scanner, the test. Empty: all that it reads.
	Series string
	// NotAfter is when it has to be looked at again; zero is never.
	NotAfter time.Time
}

// Superseding is a [Judge] of statements of which only the newest of a series by
// a signer counts: a scan that found nothing last week does not outweigh today's.
type Superseding interface{ Superseding() }
