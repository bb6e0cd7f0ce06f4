package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// When an object is adopted, server-side apply leaves what its old managers set
// and the stack does not declare. For managers that the stack names in AdoptFrom
// their entries in the managed fields become ours first, as fluxcd/pkg/ssa does
// for kubectl: the apply that follows then removes what it no longer has. The
// plan shows it, field by field.

// adoptedFrom is the reason of a change that takes over live.
func adoptedFrom(live *unstructured.Unstructured) string { return "adopted from " + managers(live) }

// takes returns the managers whose fields come with live when it is adopted:
// those in AdoptFrom that it has, if Holdfast never applied it.
func (t *Target) takes(live *unstructured.Unstructured) []string {
	if !t.spec.Adopt || live == nil || t.c.entry(live) != nil {
		return nil
	}
	var from []string
	for _, e := range live.GetManagedFields() {
		if e.Subresource == "" && e.FieldsV1 != nil && slices.Contains(t.spec.AdoptFrom, e.Manager) {
			from = append(from, e.Manager)
		}
	}
	slices.Sort(from)
	return slices.Compact(from)
}

// takeOver returns what an apply leads to if the fields of the managers in from
// are ours before it. after is the result of the apply alone. The server is asked
// once more, without writing: it gives fields that go their defaults.
func (t *Target) takeOver(ctx context.Context, o *desired, res resource, live, after *unstructured.Unstructured, from []string) (*unstructured.Unstructured, error) {
	theirs, others, err := t.c.fieldSets(after, from)
	if err != nil {
		return nil, err
	}
	pruned := after.DeepCopy()
	theirs.Difference(others).Iterate(func(p fieldpath.Path) {
		if under(others, p).Empty() {
			pruned.Object, _ = removeAt(pruned.Object, p).(map[string]any)
		}
	})
	ops := replaced("", content(live.Object), content(pruned.Object), "apiVersion", "kind", "metadata")
	was, _ := live.Object["metadata"].(map[string]any)
	will, _ := pruned.Object["metadata"].(map[string]any)
	for _, field := range []string{"labels", "annotations", "finalizers", "ownerReferences"} {
		ops = append(ops, replaced("/metadata", only(was, field), only(will, field))...)
	}
	return t.as.patch(ctx, res, o.id, string(live.GetUID()), live.GetResourceVersion(), ops, true)
}

// replaced returns the operations that lead from one map to another, whole
// fields at a time, but for those in except.
func replaced(at string, from, to map[string]any, except ...string) []operation {
	keys := maps.Clone(from)
	if keys == nil {
		keys = map[string]any{}
	}
	maps.Copy(keys, to)
	var ops []operation
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		v, has := to[k]
		switch {
		case slices.Contains(except, k):
		case !has:
			ops = append(ops, operation{Op: "remove", Path: at + "/" + escapePointer(k)})
		case !equalJSON(from[k], v):
			ops = append(ops, operation{"add", at + "/" + escapePointer(k), v})
		}
	}
	return ops
}

func only(m map[string]any, field string) map[string]any {
	if v, ok := m[field]; ok {
		return map[string]any{field: v}
	}
	return nil
}

// fieldSets returns the fields in u of the managers in from, and those of all others.
func (c *Cluster) fieldSets(u *unstructured.Unstructured, from []string) (theirs, others *fieldpath.Set, err error) {
	theirs, others = fieldpath.NewSet(), fieldpath.NewSet()
	for _, e := range u.GetManagedFields() {
		if e.FieldsV1 == nil {
			continue
		}
		set := fieldpath.NewSet()
		if err := set.FromJSON(e.FieldsV1.GetRawReader()); err != nil {
			return nil, nil, fault.New(fault.Transient, opPlan, "", "the managed fields of %s cannot be read: %w", e.Manager, err)
		}
		if e.Subresource == "" && slices.Contains(from, e.Manager) {
			theirs = theirs.Union(set)
		} else {
			others = others.Union(set)
		}
	}
	return theirs, others, nil
}

// under returns what set has at and below p.
func under(set *fieldpath.Set, p fieldpath.Path) *fieldpath.Set {
	for _, pe := range p {
		set = set.WithPrefix(pe)
	}
	return set
}

// removeAt returns v without what p leads to.
func removeAt(v any, p fieldpath.Path) any {
	key, ok := elementAt(v, p[0])
	if !ok {
		return v
	}
	switch x := v.(type) {
	case map[string]any:
		k := *p[0].FieldName
		if len(p) == 1 {
			delete(x, k)
		} else {
			x[k] = removeAt(x[k], p[1:])
		}
	case []any:
		if len(p) == 1 {
			return slices.Delete(x, key, key+1)
		}
		x[key] = removeAt(x[key], p[1:])
	}
	return v
}

// elementAt finds one element of a path in v: the index in a list, or whether a map has it.
func elementAt(v any, pe fieldpath.PathElement) (index int, ok bool) {
	switch x := v.(type) {
	case map[string]any:
		if pe.FieldName == nil {
			return 0, false
		}
		_, ok = x[*pe.FieldName]
		return 0, ok
	case []any:
		index = slices.IndexFunc(x, func(e any) bool {
			switch {
			case pe.Key != nil:
				m, isMap := e.(map[string]any)
				return isMap && !slices.ContainsFunc(*pe.Key, func(f value.Field) bool { return !equalJSON(m[f.Name], f.Value.Unstructured()) })
			case pe.Value != nil:
				return equalJSON(e, (*pe.Value).Unstructured())
			}
			return false
		})
		return index, index >= 0
	}
	return 0, false
}

// adopting completes the change of an object that is taken over with the fields
// of other managers.
func (t *Target) adopting(c *change, live *unstructured.Unstructured) {
	if c.takes = t.takes(live); len(c.takes) == 0 {
		return
	}
	if text, ok := live.GetAnnotations()[lastApplied]; ok {
		// Its value is a copy of the object, secrets included.
		c.Fields = append(c.Fields, plan.Field{Path: "/metadata/annotations/" + escapePointer(lastApplied), From: strconv.Quote(fmt.Sprintf("(%d bytes)", len(text)))})
	}
}

// migrate makes the fields of the managers that c takes over ours, if the object
// is as it was judged, and returns its version then.
func (t *Target) migrate(ctx context.Context, c *change) (string, error) {
	for range attempts(ctx) {
		live, err := t.as.get(ctx, c.res, c.ID)
		if err != nil {
			return "", t.c.apiError(opApply, c.ID, err)
		}
		if err := t.asJudged(c, live); err != nil {
			return "", err
		}
		if len(t.takes(live)) == 0 { // done before, by an apply that was cut off
			return live.GetResourceVersion(), nil
		}
		entries, err := t.c.migrated(live, c.takes)
		if err != nil {
			return "", err
		}
		ops := []operation{{"replace", "/metadata/managedFields", entries}}
		out, err := t.as.patch(ctx, c.res, c.ID, c.UID, live.GetResourceVersion(), ops, false)
		if err == nil {
			return out.GetResourceVersion(), nil
		}
		if !errors.Is(err, errMoved) {
			return "", t.c.apiError(opApply, c.ID, err)
		}
	}
	return "", t.contended(ctx, opApply, c.res, c.ID)
}

// migrated returns the managed fields of u with those of the managers in from as ours.
func (c *Cluster) migrated(u *unstructured.Unstructured, from []string) ([]metav1.ManagedFieldsEntry, error) {
	theirs, _, err := c.fieldSets(u, from)
	if err != nil {
		return nil, err
	}
	var out []metav1.ManagedFieldsEntry
	var version string
	for _, e := range u.GetManagedFields() {
		if e.Subresource == "" && slices.Contains(from, e.Manager) {
			version = e.APIVersion
			continue
		}
		out = append(out, e)
	}
	fields, err := theirs.ToJSON()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, opApply, "", err)
	}
	now := metav1.Now()
	return append(out, metav1.ManagedFieldsEntry{
		Manager: c.cfg.FieldManager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: version,
		Time: &now, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(string(fields)),
	}), nil
}
