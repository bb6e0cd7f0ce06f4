// Package policy owns judgement: an [Evaluator] takes masked documents with the
// verified evidence and returns a [Decision].
//
// It guarantees that a decision is bound by digest to the exact input and the
// exact policies it was made with. It refuses to confuse "no" with "could not
// judge": an error is never a yes.
package policy

import (
	"context"
	"encoding/json"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// Stage says which of the two judgements is asked for.
type Stage string

// The stages: files show intent, only a plan shows a destroy.
const (
	StageRendered Stage = "rendered"
	StagePlan     Stage = "plan"
)

// Input is everything that a policy may see. It holds no secret: documents are
// masked before they get here.
type Input struct {
	Stage       Stage           `json:"stage"`
	Target      string          `json:"target"` // "kubernetes", "terraform"
	Stack       string          `json:"stack"`
	Environment string          `json:"environment"`
	Repository  string          `json:"repository"`
	Commit      string          `json:"commit"`
	Documents   []plan.Document `json:"documents"`
	Report      verify.Report   `json:"report"` // verified evidence only
	// Of is the digest of the rendering (StageRendered) or the plan
	// (StagePlan) that is judged; the gate compares it.
	Of digest.Digest `json:"of"`
}

// Digest binds the input.
func (in Input) Digest() digest.Digest {
	b, err := json.Marshal(in)
	if err != nil { // documents are JSON-shaped by contract
		panic("policy: input is not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Level is how serious a result is. Deny and Violation refuse; Warn informs.
type Level string

// The levels, named as conftest's rules are.
const (
	Deny      Level = "deny"
	Violation Level = "violation"
	Warn      Level = "warn"
	Exception Level = "exception" // a rule that an exception silenced
)

// Result is one rule's verdict about one document.
type Result struct {
	Level     Level          `json:"level"`
	Namespace string         `json:"namespace"`
	Rule      string         `json:"rule"` // "deny_privileged"
	Message   string         `json:"message"`
	File      string         `json:"file,omitempty"`
	Line      int            `json:"line,omitempty"`
	Object    string         `json:"object,omitempty"` // "Deployment/web", a resource address
	Metadata  map[string]any `json:"metadata,omitempty"`
}

// Decision is the outcome of one evaluation.
type Decision struct {
	Stage    Stage         `json:"stage"`
	Of       digest.Digest `json:"of"`       // copied from the input: what was judged
	Input    digest.Digest `json:"input"`    // digest of the whole input
	Policies digest.Digest `json:"policies"` // digest of every policy and data file
	Rules    int           `json:"rules"`    // rules that were evaluated; zero is a denial
	Results  []Result      `json:"results,omitempty"`
	// RestsOn is what a revocation would make the policies void by, beside their
	// digest: the bundles that they came in, and whoever signed those.
	RestsOn []verify.Anchor `json:"restsOn,omitempty"`
	// Inputs is the document of what was judged, by what, and when; empty where it
	// is not kept.
	Inputs digest.Digest `json:"inputs,omitempty"`
}

// Rests returns everything that a revocation would make the decision void by.
func (d Decision) Rests() []verify.Anchor {
	return verify.Anchors(d.RestsOn, []verify.Anchor{{Kind: verify.AnchorPolicy, Value: d.Policies.String()}})
}

// Allowed reports whether at least one rule was evaluated and none refuses.
func (d Decision) Allowed() bool {
	if d.Rules == 0 || d.Of == "" {
		return false
	}
	for _, r := range d.Results {
		if r.Level == Deny || r.Level == Violation {
			return false
		}
	}
	return true
}

// Digest binds the decision.
func (d Decision) Digest() digest.Digest {
	b, err := json.Marshal(d)
	if err != nil { // metadata comes from JSON
		panic("policy: decision is not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Evaluator judges. It is safe for concurrent use.
type Evaluator interface {
	// Evaluate judges in. A violation is a Decision; an error (could not judge) counts as no.
	Evaluate(ctx context.Context, in Input) (Decision, error)
}
