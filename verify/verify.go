// Package verify owns the proof that something may be trusted: which
// [Subject]s the desired state names, what a [Requirement] asks of them, and
// the [Evidence] that was found.
//
// It guarantees that zero evidence is a denial, that a subject nobody claims is
// a denial, that what is revoked counts for nothing from that moment on, cached
// or under way, and that every later stage sees name@digest only: a tag is
// resolved once, here. It refuses to be built without a verifier, without a
// trusted identity, or without a way to revoke.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// ErrNotApplicable is wrapped by a [Verifier] that does not handle a subject's kind.
var ErrNotApplicable = errors.New("verifier does not apply to this kind of subject")

// Subject is one artifact that the desired state names.
type Subject struct {
	Kind      string `json:"kind"`      // KindImage, …; the key of the table of artifact kinds
	Reference string `json:"reference"` // as written: "ghcr.io/acme/shop:1.4"
	// Name is the repository in normal form ("index.docker.io/library/nginx"),
	// Digest the manifest that was resolved. Both are empty until resolved.
	Name   string        `json:"name,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
	// Locations say where the desired state names it, for people:
	// "apps/web/deployment.yaml:12 Deployment/web spec.template.spec.containers[0].image".
	Locations []string `json:"locations,omitempty"`
	// Platforms are those of an index that are to run: "linux/arm64". Empty: all.
	Platforms []string `json:"platforms,omitempty"`
}

// Pinned returns "name@digest", or the reference while it is unresolved.
func (s Subject) Pinned() string {
	if s.Digest == "" {
		return s.Reference
	}
	return s.Name + "@" + s.Digest.String()
}

// Check is one thing that was looked at and what came of it.
type Check struct {
	Name   string `json:"name"`             // stable: "signature", "sbom", "provenance", …
	OK     bool   `json:"ok"`               //
	Found  string `json:"found,omitempty"`  // what was there, for people
	Want   string `json:"want,omitempty"`   // what was expected, for people
	Detail string `json:"detail,omitempty"` // what it rests on: anchors, one a line
	// Asked says where it is asked for: "holdfast.yaml:31".
	Asked string `json:"asked,omitempty"`
	// Next is the one thing to do about a failed check.
	Next string `json:"next,omitempty"`
	// Tried is what was looked at on the way, for people, bounded.
	Tried []Tried `json:"tried,omitempty"`
	// Waived says why a failed check does not count: a mode, an exception.
	Waived string `json:"waived,omitempty"`
}

// Tried is one candidate for a check.
type Tried struct {
	Where string `json:"where"`           // where the registry has it
	What  string `json:"what,omitempty"`  // the predicate type, as it claims
	Found string `json:"found,omitempty"` // what it says, if it counts
	Why   string `json:"why,omitempty"`   // why it does not count
}

// Evidence is what was proven about one subject.
type Evidence struct {
	Subject Subject `json:"subject"`
	// Rule names the trust rule that was applied.
	Rule   string  `json:"rule"`
	Checks []Check `json:"checks"`
	// Facts are verified values that a policy may use: signer identities, SBOM
	// component counts, builder. Keys are stable and documented.
	Facts map[string]any `json:"facts,omitempty"`
	// Attestations are the documents with the statements that were accepted.
	Attestations []digest.Digest `json:"attestations,omitempty"`
	// RestsOn is everything that a revocation would make this evidence void by:
	// the keys and identities that it was accepted with, the digest, the commit.
	RestsOn []Anchor `json:"restsOn,omitempty"`
	// Quiet says that nobody is to be told of checks that are waived: the rule
	// only observes.
	Quiet bool `json:"quiet,omitempty"`
	// Inputs is the document of what the verdict was reached with, see [Inputs];
	// empty where it is not kept.
	Inputs digest.Digest `json:"inputs,omitempty"`
	inputs *Inputs       // until it is kept
	// NotAfter is when this evidence must be looked at again; zero is never.
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// Verified reports whether at least one check was made and none failed, those
// that are waived aside.
func (e Evidence) Verified() bool {
	if len(e.Checks) == 0 {
		return false
	}
	for _, c := range e.Checks {
		if !c.OK && c.Waived == "" {
			return false
		}
	}
	return true
}

// Report is the evidence for everything that one rendering names.
type Report struct {
	Environment string     `json:"environment"`
	Evidence    []Evidence `json:"evidence"`
}

// Digest binds the report's content.
func (r Report) Digest() digest.Digest {
	b, err := json.Marshal(r)
	if err != nil { // Facts come from JSON and always go back to it
		panic("verify: report is not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Verifier proves one kind of thing about a subject.
type Verifier interface {
	// Verify returns evidence about s, whose Digest is set. An error wrapping
	// ErrNotApplicable means "not my kind"; any other error means that s MUST
	// NOT be deployed. One of kind fault.Waiting that wraps ErrMissing means that
	// there is nothing to judge yet: it MUST NOT stand for evidence that is wrong,
	// nor for a registry that fails. Evidence with a failed check may come with the error so that a
	// person can see what was looked at.
	Verify(ctx context.Context, s Subject) (Evidence, error)
}

// Fingerprinter is a [Verifier] whose evidence may come or change later.
type Fingerprinter interface {
	// Fingerprint returns a digest over the lists that a verification of s would
	// begin with. It changes when they do, proves nothing, and is cheap: it
	// downloads no evidence.
	Fingerprint(ctx context.Context, s Subject) (digest.Digest, error)
}

// Resolver turns a reference into the one digest that every later stage sees.
type Resolver interface {
	// Parse returns s with Name set, and Digest where the reference carries
	// one. It does no I/O. A reference that does not parse is fault.Invalid.
	Parse(s Subject) (Subject, error)
	// Resolve returns s with Name and Digest set. A reference that carries a
	// digest keeps it; a tag is looked up once. A registry failure is
	// fault.Transient, a tag that does not exist fault.Waiting.
	Resolve(ctx context.Context, s Subject) (Subject, error)
	// Peek is Resolve on the registry's bare word: a hint to look again, which
	// costs less and MUST NOT be deployed.
	Peek(ctx context.Context, s Subject) (Subject, error)
}
