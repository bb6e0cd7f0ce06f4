package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// A conflict is a field that the stack declares, that another manager owns in the
// live object, and that has another value there (Kubernetes, "Server-Side Apply",
// Conflicts). A stack has one rule for all of them. Every apply is forced all the
// same: the rule is kept here, where the field, its manager and since when are
// known before anything is written.

// ConflictRule says what becomes of a conflict.
type ConflictRule string

// The rules.
const (
	// Take sets the field: it is the stack's from then on.
	Take ConflictRule = "take"
	// Yield leaves the live value, but for images and what is closed (see
	// closed.go): these are taken.
	Yield ConflictRule = "yield"
	// Fail changes nothing of the object. Drift that has an owner is then found
	// and not reverted, unless something closed, an image or an addition is part of it.
	Fail ConflictRule = "fail"
)

// owned sets whose the fields in ds are in live, where they are somebody else's:
// the newest of several.
func (c *Cluster) owned(live *unstructured.Unstructured, ds []difference) {
	sets := c.others(live)
	for i := range ds {
		d := &ds[i]
		if !d.had {
			continue
		}
		tokens := pointerTokens(d.pointer)
		for _, s := range sets {
			if !s.since.Before(d.since) && owns(s.fields, live.Object, tokens) {
				d.owner, d.since = s.owner, s.since
			}
		}
	}
}

// by says whose a field is, and since when, as far as the server says it.
func (d difference) by() string {
	s := d.owner.manager
	if d.owner.subresource != "" {
		s += " (" + d.owner.subresource + ")"
	}
	if !d.since.IsZero() {
		s += " since " + d.since.UTC().Format(time.RFC3339)
	}
	return s
}

// contest applies the stack's rule to what a change would take from others. A rule is no
// shelter: where somebody changed what is closed, or an image, or added something, all of
// the object is taken.
func (t *Target) contest(o *desired, live *unstructured.Unstructured, ds []difference) error {
	if t.spec.Conflicts != Fail {
		return nil
	}
	images, err := t.c.imagePointers(o, live)
	if err != nil {
		return nil
	}
	for _, d := range ds {
		image := slices.ContainsFunc(images, func(p string) bool { return plan.Within(d.pointer, p) })
		if d.foreign || image || regionOf(o.id.Kind, live.Object, pointerTokens(d.pointer)) != open {
			return nil
		}
	}
	var lines []string
	for _, d := range ds {
		if d.owner.manager != "" && d.has && !slices.Contains(t.spec.AdoptFrom, d.owner.manager) {
			lines = append(lines, fmt.Sprintf("%s is managed by %s", d.pointer, d.by()))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if more := len(lines) - 10; more > 0 {
		lines = append(lines[:10], fmt.Sprintf("and %d more", more))
	}
	return fault.New(fault.Denied, opPlan, "have the other manager let go of it, leave the field out, or set conflicts: take in the stack file",
		"%s: %s: %s", o.from.at(), o.id, strings.Join(lines, "; "))
}

// podSpec reports whether a map is a pod specification.
func podSpec(m map[string]any) bool {
	return slices.ContainsFunc(podLists, func(list string) bool { return m[list] != nil })
}

// regionOf returns the region of what tokens lead to in v.
func regionOf(kind string, v any, tokens []string) region {
	r, of := open, closedIn(kind)
	for i, tok := range tokens {
		m, ok := v.(map[string]any)
		if !ok {
			v, _ = valueAt(v, "/"+escapePointer(tok))
			continue
		}
		r = enter(r, of, tokens[:i], tok, m[tok], podSpec(m))
		v = m[tok]
	}
	return r
}

// conceded returns the declared fields of o that another manager owns in live,
// where the stack yields in conflicts: they are sent as they are.
func (t *Target) conceded(o *desired, live *unstructured.Unstructured, fixed []string) []yielded {
	if t.spec.Conflicts != Yield || live == nil {
		return nil
	}
	sets := slices.DeleteFunc(t.c.others(live), func(s claimed) bool { return slices.Contains(t.spec.AdoptFrom, s.manager) })
	if len(sets) == 0 {
		return nil
	}
	k := concession{closed: closedIn(o.id.Kind), fixed: append(fixed, markPointers...)}
	k.walk(place{value: o.u.Object}, live.Object, sets, open, false)
	return k.out
}

// concession finds what is declared in an open place and owned by others.
type concession struct {
	closed []closedField // of its kind
	fixed  []string      // pointers into the desired object to what is never yielded
	out    []yielded
}

// walk looks at what is below p. all says that somebody owns all of it: a set that names
// a whole map says nothing about what is closed in it.
func (k *concession) walk(p place, live any, sets []claimed, r region, all bool) {
	visit := func(next place, sets []claimed, r region) {
		value, _, there := step(live, next.keys[len(next.keys)-1])
		whole := all || slices.ContainsFunc(sets, func(c claimed) bool { return len(c.fields) == 0 })
		switch _, isMap := next.value.(map[string]any); {
		case !whole && len(sets) == 0 || !there:
		case whole && !isMap:
			holds := slices.ContainsFunc(k.fixed, func(f string) bool { return plan.Within(next.pointer(), f) })
			if r == open && !holds {
				k.out = append(k.out, yielded{keys: next.keys, at: next.pointer(), value: runtime.DeepCopyJSONValue(value)})
			}
		default:
			k.walk(next, value, sets, r, whole)
		}
	}
	switch v := p.value.(type) {
	case map[string]any:
		for key, value := range v {
			if len(p.keys) == 0 && (key == "apiVersion" || key == "kind") {
				continue
			}
			visit(p.child("f:"+key, key, value), below(sets, "f:"+key), enter(r, k.closed, p.tokens, key, value, podSpec(v)))
		}
	case []any:
		for i, e := range v {
			key := node{others: sets}.element(e, i)
			visit(p.child(key, strconv.Itoa(i), e), below(sets, key), r)
		}
	}
}
