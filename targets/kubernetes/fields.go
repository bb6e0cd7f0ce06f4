package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	maxFields     = 200  // of one change that are shown; its digests cover all
	maxFieldValue = 2048 // bytes of one value that are shown
)

// difference is one place where two values differ.
type difference struct {
	pointer  string // JSON pointer
	from, to any
	had, has bool
	foreign  bool      // it is not ours, and goes
	owner    owner     // who else owns it in the live object; empty: nobody
	since    time.Time // when the owner wrote last; zero: the server does not say
}

// compare returns where a and b differ, in stable order.
func compare(at string, a, b any, out []difference) []difference {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			keys := maps.Clone(x)
			maps.Copy(keys, y)
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				p := at + "/" + escapePointer(k)
				va, inA := x[k]
				vb, inB := y[k]
				if inA && inB {
					out = compare(p, va, vb, out)
				} else {
					out = append(out, difference{pointer: p, from: va, to: vb, had: inA, has: inB})
				}
			}
			return out
		}
	case []any:
		if y, ok := b.([]any); ok {
			for i := range max(len(x), len(y)) {
				p := at + "/" + strconv.Itoa(i)
				switch {
				case i >= len(x):
					out = append(out, difference{pointer: p, to: y[i], has: true})
				case i >= len(y):
					out = append(out, difference{pointer: p, from: x[i], had: true})
				default:
					out = compare(p, x[i], y[i], out)
				}
			}
			return out
		}
	}
	if equalJSON(a, b) {
		return out
	}
	return append(out, difference{pointer: at, from: a, to: b, had: true, has: true})
}

func equalJSON(a, b any) bool { return bytes.Equal(mustJSON(a), mustJSON(b)) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // values come from JSON
		panic("targets/kubernetes: not JSON: " + err.Error())
	}
	return b
}

func escapePointer(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
}

func pointerTokens(p string) []string {
	if p == "" {
		return nil
	}
	tokens := strings.Split(p[1:], "/")
	for i, t := range tokens {
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
	}
	return tokens
}

// at returns the value that pointer names in v.
func valueAt(v any, pointer string) (any, bool) {
	for _, tok := range pointerTokens(pointer) {
		switch x := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = x[tok]; !ok {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(tok)
			if err != nil || i < 0 || i >= len(x) {
				return nil, false
			}
			v = x[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// shown returns ds as people see them, with some of each sort when there are
// too many. The values are masked already.
func shown(ds []difference) []plan.Field {
	if len(ds) > maxFields {
		own := slices.IndexFunc(ds, func(d difference) bool { return !d.foreign })
		if own > maxFields/2 {
			ds = slices.Concat(ds[:maxFields/2], ds[own:])
		}
	}
	out := make([]plan.Field, 0, min(len(ds), maxFields))
	text := func(v any, there bool) string {
		if !there {
			return ""
		}
		s := string(mustJSON(v))
		if len(s) > maxFieldValue {
			return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(s[:maxFieldValue], ""), len(s))
		}
		return s
	}
	for _, d := range ds[:min(len(ds), maxFields)] {
		out = append(out, plan.Field{Path: d.pointer, From: text(d.from, d.had), To: text(d.to, d.has), Foreign: d.foreign, Manager: d.owner.manager, Since: d.since.UTC()})
	}
	return out
}

// content returns m without what the server keeps for itself.
func content(m map[string]any) map[string]any {
	out := maps.Clone(m)
	delete(out, "status")
	if meta, ok := m["metadata"].(map[string]any); ok {
		meta = maps.Clone(meta)
		for _, f := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"} {
			delete(meta, f)
		}
		out["metadata"] = meta
	}
	return out
}

// entry returns our manager's apply entry in u's managed fields, or nil.
func (c *Cluster) entry(u *unstructured.Unstructured) map[string]any {
	fields, _ := c.ourEntry(u)["fieldsV1"].(map[string]any)
	return fields
}

// ourEntry is entry with who, when and how.
func (c *Cluster) ourEntry(u *unstructured.Unstructured) map[string]any {
	list, _, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", "managedFields")
	entries, _ := list.([]any)
	for _, e := range entries {
		m, _ := e.(map[string]any)
		if m["manager"] == c.cfg.FieldManager && m["operation"] == string(metav1.ManagedFieldsOperationApply) && m["subresource"] == nil {
			return m
		}
	}
	return nil
}

// ownState is a keyed digest of our field set in u and the values under it. ok
// is false when we own nothing.
func (c *Cluster) ownState(u *unstructured.Unstructured) (state [32]byte, ok bool) {
	set := c.entry(u)
	if set == nil {
		return state, false
	}
	var values bytes.Buffer
	ownValues(&values, set, u.Object, 0)
	return c.keyed("own", mustJSON(set), values.Bytes()), true
}

// fieldSet is a keyed digest of our field set in u.
func (c *Cluster) fieldSet(u *unstructured.Unstructured) [32]byte {
	return c.keyed("set", mustJSON(c.entry(u)))
}

// fullState is a keyed digest of everything in u but its status.
func (c *Cluster) fullState(u *unstructured.Unstructured) [32]byte {
	return c.keyed("full", mustJSON(content(u.Object)))
}

// ownValues writes the values of v at the leaves of set, which is in the format
// of FieldsV1: "f:" a field, "k:" a list element by keys, "v:" a set element by
// value, "i:" by index, "." the element itself. A leaf is written whole, since
// an empty object and a leaf look the same there. The order of our elements in a list
// is written too.
func ownValues(b *bytes.Buffer, set map[string]any, v any, depth int) {
	if depth > 10*maxDepth {
		return
	}
	if len(set) == 0 {
		b.Write(mustJSON(v))
		return
	}
	list, _ := v.([]any)
	order := make([]string, len(list)) // of what is ours: an apply brings it back
	for _, k := range slices.Sorted(maps.Keys(set)) {
		if k == "." {
			continue
		}
		sub, _ := set[k].(map[string]any)
		next, token, ok := step(v, k)
		if i, err := strconv.Atoi(token); ok && err == nil && i < len(order) {
			order[i] = k
		}
		b.WriteString(k)
		if !ok {
			b.WriteString("\x00absent\n")
			continue
		}
		ownValues(b, sub, next, depth+1)
		b.WriteByte('\n')
	}
	for _, k := range order {
		if k != "" {
			b.WriteString(k + "\x00")
		}
	}
}

// step follows one key of a FieldsV1 set in v, and says how a JSON pointer does.
func step(v any, key string) (next any, token string, ok bool) {
	kind, name, _ := strings.Cut(key, ":")
	if kind == "f" {
		m, _ := v.(map[string]any)
		next, ok = m[name]
		return next, name, ok
	}
	list, _ := v.([]any)
	i := -1
	switch kind {
	case "k":
		var keys map[string]any
		if utiljson.Unmarshal([]byte(name), &keys) != nil {
			return nil, "", false
		}
		i = slices.IndexFunc(list, func(e any) bool {
			m, ok := e.(map[string]any)
			return ok && hasKeys(m, keys)
		})
	case "v":
		var value any
		if utiljson.Unmarshal([]byte(name), &value) != nil {
			return nil, "", false
		}
		i = slices.IndexFunc(list, func(e any) bool { return equalJSON(e, value) })
	case "i":
		if n, err := strconv.Atoi(name); err == nil {
			i = n
		}
	}
	if i < 0 || i >= len(list) {
		return nil, "", false
	}
	return list[i], strconv.Itoa(i), true
}

func hasKeys(m, keys map[string]any) bool {
	for k, want := range keys {
		if !equalJSON(m[k], want) {
			return false
		}
	}
	return true
}

// owns reports whether set (FieldsV1) has the field at pointer of v.
func owns(set map[string]any, v any, tokens []string) bool {
	for _, tok := range tokens {
		if len(set) == 0 {
			return true // a leaf: everything below it
		}
		var next map[string]any
		found := false
		if _, ok := v.([]any); !ok {
			next, found = set["f:"+tok].(map[string]any)
			m, _ := v.(map[string]any)
			v = m[tok]
		} else {
			elem, ok := valueAt(v, "/"+tok)
			for k, s := range set {
				if e, _, there := step(v, k); k != "." && ok && there && equalJSON(e, elem) {
					next, found = s.(map[string]any)
					break
				}
			}
			v = elem
		}
		if !found {
			return false
		}
		set = next
	}
	return true
}

// actor returns the newest manager other than us that owns one of the fields in
// ds, or, if none does, the newest one that wrote after we did. Nothing is guessed:
// without either the name is empty.
func (c *Cluster) actor(live *unstructured.Unstructured, ds []difference) (string, time.Time) {
	var ours time.Time
	var owner, other metav1.ManagedFieldsEntry
	newer := func(e, than metav1.ManagedFieldsEntry) bool {
		return e.Time != nil && (than.Time == nil || !e.Time.Before(than.Time))
	}
	entries := live.GetManagedFields()
	for _, e := range entries {
		if e.Manager == c.cfg.FieldManager && e.Operation == metav1.ManagedFieldsOperationApply && e.Time != nil {
			ours = e.Time.Time
		}
	}
	for _, e := range entries {
		if e.Subresource == "status" || e.Time == nil || e.FieldsV1 == nil ||
			(e.Manager == c.cfg.FieldManager && e.Operation == metav1.ManagedFieldsOperationApply) {
			continue
		}
		var set map[string]any
		if utiljson.Unmarshal(e.FieldsV1.GetRawBytes(), &set) != nil {
			continue
		}
		if slices.ContainsFunc(ds, func(d difference) bool {
			_, there := valueAt(live.Object, d.pointer)
			return there && owns(set, live.Object, pointerTokens(d.pointer))
		}) && newer(e, owner) {
			owner = e
		}
		if !e.Time.Time.Before(ours) && newer(e, other) {
			other = e
		}
	}
	switch {
	case owner.Manager != "":
		return owner.Manager, owner.Time.Time
	case other.Manager != "":
		return other.Manager, other.Time.Time
	}
	return "", time.Time{}
}

// managers names who manages u, newest first, for a person.
func managers(u *unstructured.Unstructured) string {
	entries := u.GetManagedFields()
	slices.SortStableFunc(entries, func(a, b metav1.ManagedFieldsEntry) int {
		if a.Time == nil || b.Time == nil {
			return 0
		}
		return b.Time.Compare(a.Time.Time)
	})
	var names []string
	for _, e := range entries {
		if e.Subresource == "" && !slices.Contains(names, e.Manager) {
			names = append(names, e.Manager)
		}
	}
	if len(names) == 0 {
		return "nobody known"
	}
	return strings.Join(names, ", ")
}
