// Package plan owns the plain values that describe a change before it is made:
// which object, from what to what, and the digests that bind a judgement to
// exactly this change.
//
// It guarantees that [Plan.Digest] covers everything a judge saw, and that it
// is a value: it imports no target, does no I/O. It refuses secrets: whoever
// fills in a [Field] or a [Document] has masked it before.
package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/sources"
)

// ObjectID names one object that a stack owns, independent of API versions. It
// is comparable and can be a map key.
type ObjectID struct {
	Kind      string `json:"kind"`                // "Deployment.apps", "ConfigMap", "aws_s3_bucket"
	Namespace string `json:"namespace,omitempty"` // empty for cluster-scoped objects and for Terraform
	Name      string `json:"name"`                // object name, or the whole Terraform resource address
}

// String returns "Kind/namespace/name", for Terraform the address alone.
func (id ObjectID) String() string {
	if strings.Contains(id.Name, ".") && strings.Contains(id.Name, id.Kind+".") {
		return id.Name
	}
	kind, _, _ := strings.Cut(id.Kind, ".")
	if id.Namespace == "" {
		return kind + "/" + id.Name
	}
	return kind + "/" + id.Namespace + "/" + id.Name
}

// Compare orders ids by kind, namespace and name.
func (id ObjectID) Compare(o ObjectID) int {
	if c := strings.Compare(id.Kind, o.Kind); c != 0 {
		return c
	}
	if c := strings.Compare(id.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(id.Name, o.Name)
}

// Action says what a change does to its object.
type Action string

// The actions. A replace deletes the object and creates it again.
const (
	Create  Action = "create"
	Update  Action = "update"
	Replace Action = "replace"
	Delete  Action = "delete"
	Release Action = "release" // the object stays, and is not ours any more
)

// Field is one difference within an object.
type Field struct {
	Path string `json:"path"`           // JSON pointer
	From string `json:"from,omitempty"` // JSON, masked; empty: the field is absent
	To   string `json:"to,omitempty"`   // JSON, masked; empty: the field goes
	// Foreign says that a second manager added the field, that nobody declared
	// or allowed it, and that it is removed (invariant 12).
	Foreign bool `json:"foreign,omitempty"`
	// Manager is who else owns the field in the live object, and Since is when that
	// manager wrote last: a change takes the field from it.
	Manager string    `json:"manager,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// Within reports whether a JSON pointer is, or is below, what pattern names; *
// in the pattern stands for one segment.
func Within(pattern, pointer string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(pointer, "/")
	if len(got) < len(want) {
		return false
	}
	for i, w := range want {
		if w != "*" && w != got[i] {
			return false
		}
	}
	return true
}

// Change is what happens to one object.
type Change struct {
	ID     ObjectID `json:"id"`
	Action Action   `json:"action"`
	// UID is the live object's uid when the change was planned; empty for a create.
	UID string `json:"uid,omitempty"`
	// Before is the digest of the fields that the change touches, as judged;
	// After that of the object as it is desired. Both are over masked content.
	Before digest.Digest `json:"before,omitempty"`
	After  digest.Digest `json:"after,omitempty"`
	Fields []Field       `json:"fields,omitempty"`
	// Stays are fields that are not declared any more and keep their value, since
	// somebody else owns them too.
	Stays []Field `json:"stays,omitempty"`
	// Source is where the desired object is declared: "apps/web/deployment.yaml:12".
	// Excerpt is what stands there, where that helps: the head of an HCL block.
	Source  string `json:"source,omitempty"`
	Excerpt string `json:"excerpt,omitempty"`
	// Reason says why, where the action does not: "no longer declared", "adopted from kubectl".
	Reason string `json:"reason,omitempty"`
	// Actor and Since say who made the live object differ, and when, as far as
	// the target can tell. They are for findings and no part of the digest.
	Actor string    `json:"-"`
	Since time.Time `json:"-"`
	// Excused and Excuse are until when, and why, somebody wrote on the live object
	// that its drift is meant; no part of the digest either.
	Excused time.Time `json:"-"`
	Excuse  string    `json:"-"`
}

// Foreign reports whether all that c does to its object is to remove foreign fields.
func (c Change) Foreign() bool {
	return c.Action == Update && len(c.Fields) > 0 && !slices.ContainsFunc(c.Fields, func(f Field) bool { return !f.Foreign })
}

// Document is one masked value that policies judge.
type Document struct {
	Name  string `json:"name"`           // file name within the snapshot, or "plan.json"
	Line  int    `json:"line,omitempty"` // where the document starts in that file; 0 is unknown
	Value any    `json:"value"`          // JSON-shaped: map[string]any, []any, string, float64 or int64, bool, nil
}

// Plan is a digest-bound list of changes.
type Plan struct {
	Stack       string           `json:"stack"`
	Environment string           `json:"environment"`
	Target      string           `json:"target"` // "kubernetes", "terraform"
	Revision    sources.Revision `json:"revision"`
	Rendered    digest.Digest    `json:"rendered"` // digest of the rendering that this plan realises
	Changes     []Change         `json:"changes"`
	// Keeps is how many objects the stack still has after the plan; 0 in a plan
	// that removes something means that it removes everything.
	Keeps int `json:"keeps"`
	// Documents are what policy(plan) judges, masked.
	Documents []Document `json:"documents,omitempty"`
	// Payload binds Private: the digest of the plan file, or of the desired
	// objects with their secrets replaced by keyed masks.
	Payload digest.Digest `json:"payload,omitempty"`
	// Private is the target's own half (desired objects, a plan file). It is
	// neither stored nor hashed. Whoever applies the plan MUST check it
	// against Payload first.
	Private any `json:"-"`
}

// Digest binds everything in p that a judge can see.
func (p Plan) Digest() digest.Digest {
	b, err := json.Marshal(p)
	if err != nil { // documents are JSON-shaped by contract
		panic("plan: not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Changes) == 0 }

// Count returns how many changes have one of the given actions.
func (p Plan) Count(actions ...Action) int {
	n := 0
	for _, c := range p.Changes {
		if slices.Contains(actions, c.Action) {
			n++
		}
	}
	return n
}

// Summary returns "2 to create, 1 to update, 0 to delete" as terraform words it;
// a replace counts as a delete and a create.
func (p Plan) Summary() string {
	return fmt.Sprintf("%d to create, %d to update, %d to delete",
		p.Count(Create, Replace), p.Count(Update), p.Count(Delete, Replace))
}
