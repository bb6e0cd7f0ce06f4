package kubernetes

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// yielded is a declared field that the operator lets others set: where the live
// object has a value, that value is sent in the place of ours. Leaving the field
// out instead would give it up, and the server would reset it.
type yielded struct {
	path  []string
	value any
}

func (y yielded) pointer() string {
	var b strings.Builder
	for _, p := range y.path {
		b.WriteString("/" + escapePointer(p))
	}
	return b.String()
}

// yields returns the fields of o that the stack yields to what live has. Fields
// within lists are never yielded: an index means something else in each object.
// Neither is what holds an image: which one runs is nobody else's choice.
func (t *Target) yields(o *desired, live *unstructured.Unstructured) []yielded {
	if t.spec.Yield == nil || live == nil {
		return nil
	}
	fixed, err := t.c.imagePointers(o, live)
	if err != nil {
		return nil
	}
	var out []yielded
	var walk func(m map[string]any, path []string)
	walk = func(m map[string]any, path []string) {
		for k, v := range m {
			y := yielded{path: append(path[:len(path):len(path)], k)}
			holds := slices.ContainsFunc(fixed, func(p string) bool { return plan.Within(y.pointer(), p) })
			if !holds && t.spec.Yield(o.id, y.pointer()) {
				if value, ok, err := unstructured.NestedFieldNoCopy(live.Object, y.path...); ok && err == nil {
					y.value = runtime.DeepCopyJSONValue(value)
					out = append(out, y)
				}
				continue
			}
			if inner, ok := v.(map[string]any); ok {
				walk(inner, y.path)
			}
		}
	}
	walk(o.u.Object, nil)
	return out
}

// imagePointers returns where the desired and the live object name images.
func (c *Cluster) imagePointers(o *desired, live *unstructured.Unstructured) ([]string, error) {
	var out []string
	for _, u := range []*unstructured.Unstructured{o.u, live} {
		found, err := c.kinds.images(o.u.GroupVersionKind().GroupKind(), content(u.Object))
		if err != nil {
			return nil, err
		}
		for _, im := range found {
			out = append(out, im.pointer())
		}
	}
	return out, nil
}

// send returns what is sent for o: the object as rendered, but for what it yields.
func (o *desired) send(ys []yielded) (*unstructured.Unstructured, error) {
	if len(ys) == 0 {
		return o.u, nil
	}
	u := o.u.DeepCopy()
	for _, y := range ys {
		if err := unstructured.SetNestedField(u.Object, y.value, y.path...); err != nil {
			return nil, invalid("", "%s: %s cannot be yielded: %w", o.id, y.pointer(), err)
		}
	}
	return u, nil
}
