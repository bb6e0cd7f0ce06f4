// Package targets owns the contract of a place that Holdfast deploys to. Each
// target is one folder below this one, and proves itself with targetstest.
//
// A target guarantees that rendering is pure, that planning never writes, and
// that it applies exactly the plan that was granted. It refuses a zero grant,
// and stops with [ErrStale] when the world moved since it was judged.
package targets

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// ErrStale is wrapped by Apply when a granted change no longer fits the world:
// another uid, or other values in the fields that it touches. The caller plans
// again and has the new plan judged.
var ErrStale = errors.New("the world changed since the plan was judged")

// Rendered is what a snapshot means to a target.
type Rendered struct {
	Stack       string
	Environment string
	Revision    sources.Revision
	// Digest binds the whole rendering over masked content: every secret is
	// replaced by its keyed mask first.
	Digest digest.Digest
	// Documents are the rendered files for policy, masked.
	Documents []plan.Document
	// Artifacts are what the rendering names, unresolved. A target whose
	// artifacts only a plan names (Terraform) implements [PlanNamer].
	Artifacts []verify.Subject
	// Private is the target's own half.
	Private any
}

// Outcome is what became of one change.
type Outcome struct {
	ID     plan.ObjectID `json:"id"`
	Action plan.Action   `json:"action"`
	Err    string        `json:"error,omitempty"` // masked; empty: done
}

// Receipt says what Apply did. It always tells the truth, also beside an error.
type Receipt struct {
	Stack    string        `json:"stack"`
	Plan     digest.Digest `json:"plan"`
	Started  time.Time     `json:"started"`
	Ended    time.Time     `json:"ended"`
	Outcomes []Outcome     `json:"outcomes"`
	// Private is the target's own half (what it remembers to watch).
	Private any `json:"-"`
}

// Target is one stack's view of a place to deploy to.
type Target interface {
	// Render is pure: same snapshot, same bytes; no cluster, no network.
	Render(ctx context.Context, s *sources.Snapshot) (Rendered, error)
	// Plan reads the world and never writes to it. With only, it plans just those objects.
	Plan(ctx context.Context, r Rendered, only ...plan.ObjectID) (plan.Plan, error)
	// Apply carries out exactly the granted plan. It checks every change before the first
	// write; when one went stale since, it stops with ErrStale. The Receipt always says what was done.
	Apply(ctx context.Context, g gate.Grant) (Receipt, error)
}

// Pinner is an optional ability: references in the rendering can be rewritten
// to the digests that were verified. Without it an artifact must be immutable
// as the repository names it.
type Pinner interface {
	// Pin returns r with each reference that is a key of digests replaced by
	// name@digest. A reference of r.Artifacts without an entry is an error.
	Pin(r Rendered, digests map[string]verify.Subject) (Rendered, error)
}

// Restorer is an optional ability: objects can be restored one by one under a
// standing grant. What a target without it deploys (Terraform) is planned and
// judged anew each time.
type Restorer interface {
	// Desired returns the digest that each object of r must have, equal to the
	// After of a change that leads to it.
	Desired(ctx context.Context, r Rendered) (map[plan.ObjectID]digest.Digest, error)
}

// PlanNamer is an optional ability: artifacts that only a plan names. A
// reference that is mutable or unknown until apply is an error of kind
// fault.Denied with the hint to pin it.
type PlanNamer interface {
	PlanArtifacts(p plan.Plan) ([]verify.Subject, error)
}

// HealthChecker is optional. A Target without it is healthy once Apply returns.
type HealthChecker interface {
	// Healthy returns nil when everything in r is ready, an error of kind
	// fault.Waiting while it is on its way, and another error when it failed.
	Healthy(ctx context.Context, r Rendered) error
}

// FindingClass says how the world differs from what was granted.
type FindingClass string

// The classes of finding.
const (
	Modified FindingClass = "modified" // a field that we own has another value
	Foreign  FindingClass = "foreign"  // a second manager added a field that nobody declared or allowed
	Missing  FindingClass = "missing"  // an object that we own is gone
	Extra    FindingClass = "extra"    // an object that the stack no longer declares is still there
	// Kept is a field that is not declared any more and stays, since somebody else owns
	// it too. It is told of once: from then on it is theirs.
	Kept FindingClass = "kept"
	// Unmanaged is an object beside the stack's own that no stack declares. Nothing is
	// done about it, and it is no drift.
	Unmanaged FindingClass = "unmanaged"
)

// Finding is one object that is not as it was granted.
type Finding struct {
	Stack  string        `json:"stack"`
	ID     plan.ObjectID `json:"id"`
	Class  FindingClass  `json:"class"`
	Fields []plan.Field  `json:"fields,omitempty"` // From is the live value, To the granted one; masked
	// Source and Excerpt are where it is declared ("infra/main.tf:12"), and what stands there.
	Source  string `json:"source,omitempty"`
	Excerpt string `json:"excerpt,omitempty"`
	// Actor is who did it, as far as the target can tell without guessing: a
	// field manager ("kubectl-edit"); empty is unknown.
	Actor string    `json:"actor,omitempty"`
	Since time.Time `json:"since,omitzero"` // when the actor did it, or when it was first seen
	// User is who signed in to do it, and Origin from where and with what, as far as
	// an audit log tells; empty is unknown.
	User   string  `json:"user,omitempty"`
	Origin *Origin `json:"origin,omitempty"`
	// Ref names the finding from when it is first seen until it is over.
	Ref      string    `json:"ref,omitempty"`
	Detected time.Time `json:"detected"`          // first seen
	LastSeen time.Time `json:"lastSeen,omitzero"` // seen last, confirmed each time
	// Excuse is what somebody wrote on the live object so that it is not reverted. It
	// counts as far as the operator allows.
	Excuse *Excuse `json:"excuse,omitempty"`
	// Noticed is when the first sign of it came; for metrics.
	Noticed time.Time `json:"-"`
}

// Who says who made f, with what is known: a user, else a field manager, else nothing.
func (f Finding) Who() string {
	switch {
	case f.User != "" && f.Actor != "":
		return f.User + " with " + f.Actor
	case f.User != "":
		return f.User
	}
	return f.Actor
}

// Origin is what an audit log says about a write (Kubernetes audit.k8s.io/v1, Event).
type Origin struct {
	Groups    []string `json:"groups,omitempty"`
	SourceIPs []string `json:"sourceIPs,omitempty"`
	UserAgent string   `json:"userAgent,omitempty"`
	AuditID   string   `json:"auditID,omitempty"`
	// Impersonator is who acted as User.
	Impersonator string    `json:"impersonator,omitempty"`
	Time         time.Time `json:"time,omitzero"`
}

// Excuse is a person's word that drift of an object is meant, until a time.
type Excuse struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason,omitempty"`
}

// ExcuseOf returns what stands on the live object of c, or nil.
func ExcuseOf(c plan.Change) *Excuse {
	if c.Excused.IsZero() {
		return nil
	}
	return &Excuse{Until: c.Excused, Reason: c.Excuse}
}

// Remover is an optional ability: everything that a stack owns can be removed.
type Remover interface {
	// Removal plans, without writing, what ends the stack that r was granted
	// for: every object that it owns is deleted or, with orphan, let go of
	// ([plan.Release]). The plan keeps nothing.
	Removal(ctx context.Context, r Rendered, orphan bool) (plan.Plan, error)
}

// Claimer is optional: a target whose stacks must not prune what another one is
// about to declare.
type Claimer interface {
	// Expect says that the stack is about to be rendered anew. It is called for
	// every stack that a commit changes, before any of them goes on.
	Expect()
	// Renounce says that the stack is no longer declared under its name: other
	// stacks may take over its objects. It deletes nothing.
	Renounce()
	// Postpone says that the stack is not rendered anew before a person says so:
	// what it claims stays its own, and others keep what they would prune.
	Postpone()
}

// Observer is optional: a target that can tell at once that the world moved.
type Observer interface {
	// Observe calls found for each object of r that differs from it, from the
	// moment it returns nothing until ctx ends. It confirms a difference before
	// it reports it, calls found from one goroutine at a time, and never
	// writes. Observe and Plan MUST agree.
	Observe(ctx context.Context, r Rendered, found func(Finding)) error
}

// Recaller is an optional ability of an [Observer]: what it has watched since it looked
// at it last needs no look.
type Recaller interface {
	// Recall is Plan of all objects, where those count as being as r declares them that
	// were so when they were looked at last and of which nothing was heard since. What
	// happened in the very last moments may be missing in it; an observer tells of it.
	Recall(ctx context.Context, r Rendered) (plan.Plan, error)
}

// Surveyor is an optional ability: to say what stands beside what a stack has.
type Surveyor interface {
	// Unmanaged returns the objects that no stack declares where r has its own, of class
	// [Unmanaged], by their id. unseen is what may not be listed. It leaves out the
	// namespaces in done, and adds those that it has looked at.
	Unmanaged(ctx context.Context, r Rendered, done map[string]bool) (found []Finding, unseen []string, err error)
}

// Adopter is an optional ability: drift becomes a change of the repository.
type Adopter interface {
	// Adopt returns the files of s as they would have to be for found to be what is
	// declared, by their path; it writes nothing. What no change of a file brings about
	// is an error of kind fault.Invalid.
	Adopt(ctx context.Context, s *sources.Snapshot, found []Finding) (map[string][]byte, error)
}

// Attributor is optional: a target that learns, mostly later, who made a change.
type Attributor interface {
	// Attribute returns f with User and Origin, and whether they are known. It asks
	// nobody.
	Attribute(f Finding) (Finding, bool)
}

// Closer is optional: a target that holds resources for its stack.
type Closer interface {
	// Close frees what the target holds. The target is not used afterwards.
	Close() error
}
