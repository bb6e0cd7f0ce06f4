package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/fluxcd/pkg/ssa"
	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fluxcd/cli-utils/pkg/object"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// rendering is the private half of a [targets.Rendered].
type rendering struct {
	owner   string
	objects []*desired
	custom  map[string]resource // what the CustomResourceDefinitions in it define, by group kind
	sum     digest.Digest       // of the Rendered that it belongs to
}

// Render implements [targets.Target]. What it reads and makes is limited; an
// object that the operator did not allow is an error of kind fault.Denied. The
// newest rendering is what the stack claims against other stacks of the Cluster.
func (t *Target) Render(ctx context.Context, s *sources.Snapshot) (targets.Rendered, error) {
	r, err := t.render(ctx, s)
	if k := fault.KindOf(err); err != nil && (k == fault.Invalid || k == fault.Denied) {
		t.c.claims.failed(t)
	}
	return r, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) render(ctx context.Context, s *sources.Snapshot) (targets.Rendered, error) {
	ren, err := t.objects(ctx, s)
	if err != nil {
		return targets.Rendered{}, err
	}
	out := targets.Rendered{Stack: t.spec.Stack, Environment: t.spec.Environment, Revision: s.Revision}
	if out.Artifacts, err = ren.artifacts(t.c.kinds, t.spec.Namespace); err != nil {
		return targets.Rendered{}, err
	}
	for _, o := range ren.objects {
		o.from.lines = nil // nobody asks for them any more
	}
	t.c.claims.claim(t, ren.ids())
	return ren.finish(out), nil
}

// objects returns what s declares, and claims nothing.
func (t *Target) objects(ctx context.Context, s *sources.Snapshot) (*rendering, error) {
	if s == nil || s.FS == nil {
		return nil, fault.New(fault.Internal, opRender, "", "no snapshot")
	}
	found, err := t.read(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(fault.Transient, opRender, "", err)
	}
	if len(found) == 0 {
		return nil, invalid(`correct the paths; a rendering never empties a stack: to retire one, see "Retire a stack" in docs/operations.md`, "the stack renders no object")
	}
	ren := &rendering{owner: t.owner, custom: customResources(found)}
	at := map[plan.ObjectID]string{}
	for _, d := range found {
		o, err := t.object(d, ren.custom)
		if err != nil {
			return nil, err
		}
		if first, dup := at[o.id]; dup {
			return nil, invalid("remove or rename one of them", "%s is declared twice: %s and %s", o.id, first, o.from.at())
		}
		at[o.id] = o.from.at()
		ren.objects = append(ren.objects, o)
	}
	if err := t.reaches(ren.objects); err != nil {
		return nil, err
	}
	slices.SortFunc(ren.objects, func(a, b *desired) int { return order(a.u, b.u) })
	return ren, nil
}

// finish derives the digest and the documents from the objects.
func (ren *rendering) finish(out targets.Rendered) targets.Rendered {
	h := sha256.New()
	out.Documents = make([]plan.Document, len(ren.objects))
	for i, o := range ren.objects {
		fmt.Fprintf(h, "%s\n", o.after)
		out.Documents[i] = o.document()
	}
	out.Digest = digest.NewDigest(digest.SHA256, h)
	ren.sum = out.Digest
	out.Private = ren
	return out
}

func (o *desired) document() plan.Document {
	return plan.Document{Name: o.from.file, Line: o.from.line, Value: o.masked}
}

func (ren *rendering) ids() map[plan.ObjectID]bool {
	ids := make(map[plan.ObjectID]bool, len(ren.objects))
	for _, o := range ren.objects {
		ids[o.id] = true
	}
	return ids
}

// rendering returns the private half of r, if r is this target's.
func (t *Target) rendering(r targets.Rendered) (*rendering, error) {
	ren, ok := r.Private.(*rendering)
	if !ok || ren.owner != t.owner || ren.sum != r.Digest {
		return nil, fault.New(fault.Internal, opPlan, "", "the rendering is not this target's")
	}
	return ren, nil
}

// Desired returns the digest that each object of r must have, as the changes of
// a plan of r name it in After.
func (t *Target) Desired(ctx context.Context, r targets.Rendered) (map[plan.ObjectID]digest.Digest, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return nil, fault.WithStack(t.spec.Stack, err)
	}
	out := make(map[plan.ObjectID]digest.Digest, len(ren.objects))
	for _, o := range ren.objects {
		o, _, err := t.place(ctx, ren, o)
		if err != nil {
			return nil, fault.WithStack(t.spec.Stack, err)
		}
		out[o.id] = o.after
	}
	return out, nil
}

// Pin implements [targets.Pinner].
func (t *Target) Pin(r targets.Rendered, digests map[string]verify.Subject) (targets.Rendered, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return targets.Rendered{}, fault.WithStack(t.spec.Stack, err)
	}
	for _, a := range r.Artifacts {
		if s, ok := digests[a.Reference]; !ok || s.Digest.Validate() != nil || s.Name == "" {
			return targets.Rendered{}, fault.WithStack(t.spec.Stack, fault.New(fault.Internal, opRender, "", "%s has no verified digest", a.Reference))
		}
	}
	pinned := &rendering{owner: ren.owner, custom: ren.custom, objects: make([]*desired, len(ren.objects))}
	for i, o := range ren.objects {
		found, err := t.c.kinds.images(o.u.GroupVersionKind().GroupKind(), o.u.Object)
		if err != nil {
			return targets.Rendered{}, invalid("", "%s: %w", o.from.at(), err)
		}
		if len(found) == 0 {
			pinned.objects[i] = o
			continue
		}
		c := *o
		c.u = o.u.DeepCopy()
		found, err = t.c.kinds.images(c.u.GroupVersionKind().GroupKind(), c.u.Object)
		if err != nil {
			return targets.Rendered{}, invalid("", "%s: %w", o.from.at(), err)
		}
		for _, im := range found {
			im.pin(digests[im.reference])
		}
		if err := t.seal(&c); err != nil {
			return targets.Rendered{}, err
		}
		pinned.objects[i] = &c
	}
	return pinned.finish(r), nil
}

// order is the order in which ssa reconciles kinds: definitions first, webhooks last.
func order(a, b *unstructured.Unstructured) int {
	s := ssa.SortableUnstructureds{a, b}
	switch {
	case s.Less(0, 1):
		return -1
	case s.Less(1, 0):
		return 1
	}
	return 0
}

// stage groups kinds that can be applied at the same time.
func stage(u *unstructured.Unstructured) int {
	gk := u.GroupVersionKind().GroupKind()
	meta := object.UnstructuredToObjMetadata(u)
	switch {
	case gk == crdKind || gk == namespaceKind:
		return 0
	case gk.Group == "admissionregistration.k8s.io" && gk.Kind != "ValidatingAdmissionPolicy":
		return 3
	case ssa.IsLessThan(meta.GroupKind, schema.GroupKind{Group: "apps", Kind: "Deployment"}):
		return 1 // what pods refer to
	}
	return 2
}

var (
	crdKind       = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}
	namespaceKind = schema.GroupKind{Kind: "Namespace"}
)

// customResources returns what the CustomResourceDefinitions among ds define.
func customResources(ds []declared) map[string]resource {
	out := map[string]resource{}
	for _, d := range ds {
		u := &unstructured.Unstructured{Object: d.value}
		if u.GroupVersionKind().GroupKind() != crdKind {
			continue
		}
		var def struct {
			Spec struct {
				Group, Scope string
				Names        struct{ Kind, Plural string }
			}
		}
		b, err := json.Marshal(d.value)
		if err != nil || json.Unmarshal(b, &def) != nil {
			continue // the API server says what is wrong with it
		}
		gk := schema.GroupKind{Group: def.Spec.Group, Kind: def.Spec.Names.Kind}
		out[gk.String()] = resource{name: def.Spec.Names.Plural, namespaced: def.Spec.Scope == "Namespaced"}
	}
	return out
}
