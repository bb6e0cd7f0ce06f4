package kubernetes

import (
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// stays returns the fields that were ours, are not declared any more, and stay in the
// object all the same, because somebody else owns them too (Kubernetes, "Server-Side
// Apply", Field management). after is live as our apply would leave it. To take such a
// field out of the repository does not take it out of the world.
func (t *Target) stays(live, after *unstructured.Unstructured) ([]plan.Field, error) {
	self := []string{t.c.cfg.FieldManager}
	before, _, err := t.c.fieldSets(live, self)
	if err != nil {
		return nil, err
	}
	now, others, err := t.c.fieldSets(after, self)
	if err != nil {
		return nil, err
	}
	var ds []difference
	before.Leaves().Difference(now).Iterate(func(p fieldpath.Path) {
		at, ok := pointerTo(after.Object, p)
		if !ok || !others.Has(p) {
			return
		}
		v, _ := valueAt(t.masked(content(after.Object)), at)
		ds = append(ds, difference{pointer: at, from: v, to: v, had: true, has: true})
	})
	t.c.owned(after, ds)
	return shown(ds), nil
}

// pointerTo returns the JSON pointer of what a path leads to in v.
func pointerTo(v any, p fieldpath.Path) (at string, ok bool) {
	for _, pe := range p {
		i, there := elementAt(v, pe)
		switch x := v.(type) {
		case map[string]any:
			if !there {
				return "", false
			}
			at += "/" + escapePointer(*pe.FieldName)
			v = x[*pe.FieldName]
		case []any:
			if !there {
				return "", false
			}
			at += "/" + strconv.Itoa(i)
			v = x[i]
		default:
			return "", false
		}
	}
	return at, true
}
