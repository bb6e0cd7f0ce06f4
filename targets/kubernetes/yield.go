package kubernetes

import (
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// yielded is a declared field that others may set: where the live object has a
// value, that value is sent in the place of ours. Leaving the field out instead
// would give it up, and the server would reset it.
type yielded struct {
	keys  []string // the way to it in the format of FieldsV1
	at    string   // the same as a JSON pointer into the desired object
	value any
}

// yields returns the fields of o that keep what live has: those that the operator
// lets others set, and those that the stack yields in a conflict. What holds an
// image is never among them: which one runs is nobody else's choice.
func (t *Target) yields(o *desired, live *unstructured.Unstructured) []yielded {
	if t.spec.Yield == nil && t.spec.Conflicts != Yield || live == nil {
		return nil
	}
	fixed, err := t.c.imagePointers(o, live)
	if err != nil {
		return nil
	}
	out := t.conceded(o, live, fixed)
	// Fields within lists are not asked for: an index means something else in
	// each object.
	var walk func(m map[string]any, keys []string, at string)
	walk = func(m map[string]any, keys []string, at string) {
		for k, v := range m {
			y := yielded{keys: append(keys[:len(keys):len(keys)], "f:"+k), at: at + "/" + escapePointer(k)}
			holds := slices.ContainsFunc(fixed, func(p string) bool { return plan.Within(y.at, p) })
			if !holds && t.spec.Yield(o.id, y.at) {
				if _, value, ok := locate(live.Object, y.keys); ok {
					y.value = runtime.DeepCopyJSONValue(value)
					out = append(out, y)
				}
				continue
			}
			if inner, ok := v.(map[string]any); ok {
				walk(inner, y.keys, y.at)
			}
		}
	}
	if t.spec.Yield != nil {
		walk(o.u.Object, nil, "")
	}
	// One that holds another comes first, so that both end as they are.
	slices.SortFunc(out, func(a, b yielded) int { return strings.Compare(a.at, b.at) })
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
		tokens, _, ok := locate(u.Object, y.keys)
		if !ok || len(tokens) == 0 {
			return nil, invalid("", "%s: %s cannot be yielded", o.id, y.at)
		}
		put(u.Object, tokens, y.value)
	}
	return u, nil
}

// put sets the value at tokens, which lead somewhere in v.
func put(v any, tokens []string, value any) {
	switch v := v.(type) {
	case map[string]any:
		if len(tokens) == 1 {
			v[tokens[0]] = value
		} else {
			put(v[tokens[0]], tokens[1:], value)
		}
	case []any:
		i, err := strconv.Atoi(tokens[0])
		if err != nil || i < 0 || i >= len(v) {
			return
		}
		if len(tokens) == 1 {
			v[i] = value
		} else {
			put(v[i], tokens[1:], value)
		}
	}
}
