package kubernetes

import (
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// certain returns the change that makes live what o declares, or nil where only the
// server can tell it. What differs is put back in a copy of live, in the values and in our
// field set: if that copy is what is remembered of the object when it was as it should be,
// by the digests of both, an apply leads there, and a dry run would say nothing else of what
// is declared. What the server writes otherwise than it is declared, and lists that others
// reordered, are never certain. A stack that acts as an account is told what that may see.
func (t *Target) certain(o *desired, res resource, live *unstructured.Unstructured, owned map[plan.ObjectID]bool) *change {
	good := t.c.asDeclared(t, o)
	if good == nil || t.as != t.c.self || tooWide(live) {
		return nil
	}
	if reason, err := t.ownership(o, live, owned[o.id]); err != nil || reason != "" || len(t.takes(live)) > 0 || len(t.yields(o, live)) > 0 {
		return nil
	}
	after := t.c.putBack(o, live)
	if after == nil || !t.c.same(good, o.id, after) {
		return nil
	}
	ds := compare("", t.masked(content(live.Object)), t.masked(content(after.Object)), nil)
	if len(ds) == 0 {
		return nil
	}
	t.c.owned(live, ds)
	if t.contest(o, live, ds) != nil {
		return nil
	}
	c := t.creation(o, res)
	t.update(c, live, ds)
	for _, d := range ds {
		c.pointers = append(c.pointers, d.pointer)
	}
	c.Before, c.foretold = t.before(live, c.pointers), good
	return c
}

// putBack returns live with what o declares of it, and with that in our field set; nil
// where that takes the server.
func (c *Cluster) putBack(o *desired, live *unstructured.Unstructured) *unstructured.Unstructured {
	set := c.entry(live)
	if set == nil || c.ourEntry(live)["apiVersion"] != o.u.GetAPIVersion() {
		return nil
	}
	after := live.DeepCopy()
	set = runtime.DeepCopyJSON(set)
	declared := maps.Clone(o.u.Object)
	for _, k := range []string{"apiVersion", "kind", "status"} {
		delete(declared, k)
	}
	if meta, ok := declared["metadata"].(map[string]any); ok {
		meta = maps.Clone(meta)
		delete(meta, "name")
		delete(meta, "namespace")
		declared["metadata"] = meta
	}
	if !replenish(declared, after.Object, set, 0) {
		return nil
	}
	c.ourEntry(after)["fieldsV1"] = set
	return after
}

// replenish makes live, and the field set of whoever declared it, what declared says. It
// reports false where it cannot tell.
func replenish(declared, live, set map[string]any, depth int) bool {
	if depth > maxDepth {
		return false
	}
	for k, want := range declared {
		have, there := live[k]
		if there && equalJSON(have, want) && set["f:"+k] != nil {
			continue
		}
		if more, _ := have.(map[string]any); len(more) > 0 && (want == nil || equalJSON(want, map[string]any{})) {
			return false // an apply leaves what is in it
		}
		switch want := want.(type) {
		case map[string]any:
			next, _ := have.(map[string]any)
			sub, _ := set["f:"+k].(map[string]any)
			leaf := len(want) == 0 || there && next == nil || sub != nil && len(sub) == 0
			if !leaf {
				if next == nil {
					next = map[string]any{}
				}
				if sub == nil {
					sub = map[string]any{}
				}
				live[k], set["f:"+k] = next, sub
				if !replenish(want, next, sub, depth+1) {
					return false
				}
				continue
			}
		case []any:
			sub, _ := set["f:"+k].(map[string]any)
			if len(sub) > 0 { // its elements have managers of their own
				if !replenishList(want, have, sub, depth+1) {
					return false
				}
				continue
			}
		}
		live[k], set["f:"+k] = runtime.DeepCopyJSONValue(want), map[string]any{}
	}
	return true
}

// replenishList is replenish for the elements of a list that are told apart by keys, as far as
// all of them are where they are declared.
func replenishList(declared []any, have any, set map[string]any, depth int) bool {
	live, _ := have.([]any)
	if len(live) != len(declared) {
		return false
	}
	for i := range declared {
		want, _ := declared[i].(map[string]any)
		next, _ := live[i].(map[string]any)
		key, names := keyIn(set, live[i])
		sub, _ := set[key].(map[string]any)
		if want == nil || next == nil || sub == nil || !strings.HasPrefix(key, "k:") {
			return false
		}
		for _, n := range names {
			if v, ok := want[n]; ok && !equalJSON(v, next[n]) {
				return false
			}
		}
		if !replenish(want, next, sub, depth+1) {
			return false
		}
	}
	return true
}
