package kubernetes

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// unwatched returns a target of a cluster whose watches do not run.
func unwatched(t *testing.T) *Target {
	t.Helper()
	c, err := NewCluster(clusterConfig(t, &rest.Config{Host: "http://127.0.0.1:1"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	tt, err := New(c, spec("shop", nil))
	if err != nil {
		t.Fatal(err)
	}
	return tt
}

// What a watch tells between a look at an object and the end of the judgement is
// not lost, whatever it is.
func TestEventsBeforeTheJudgementEnds(t *testing.T) {
	t.Parallel()
	object := func(rv string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{
			"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": rv, "labels": map[string]any{ManagedLabel: "true"},
		}}}
	}
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "a"}
	kind := schema.GroupKind{Kind: "ConfigMap"}
	for name, tc := range map[string]struct {
		tell  func(c *Cluster, w *watch)
		dirty bool
	}{
		"nothing":            {func(*Cluster, *watch) {}, false},
		"what was looked at": {func(c *Cluster, w *watch) { c.event(w, id, object("5"), false) }, false},
		"something newer":    {func(c *Cluster, w *watch) { c.event(w, id, object("6"), false) }, true},
		"a deletion": {func(c *Cluster, w *watch) {
			c.absent(w, nil, 4)
			c.event(w, id, object("5"), false)
			c.event(w, id, object("6"), true)
		}, true},
		"a list without it":         {func(c *Cluster, w *watch) { c.absent(w, nil, 7) }, true},
		"an older list without it":  {func(c *Cluster, w *watch) { c.absent(w, nil, 4) }, false},
		"something newer elsewhere": {func(c *Cluster, w *watch) { c.absent(w, nil, 4); c.reached(w, 9) }, true},
		"of another namespace":      {func(c *Cluster, w *watch) { w.key.namespace = "other"; c.absent(w, nil, 7) }, false},
		"of another kind":           {func(c *Cluster, w *watch) { w.key.kind.Kind = "Secret"; c.absent(w, nil, 7) }, false},
		"it begins anew":            {func(c *Cluster, w *watch) { c.absent(w, nil, 4); c.reached(w, 0) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := unwatched(t)
			w := &watch{c: tt.c, key: watchKey{kind: kind}, seen: map[plan.ObjectID]uint64{}}
			tc.tell(tt.c, w)
			tt.c.mu.Lock()
			tt.c.watches[w.key] = w
			tt.c.mu.Unlock()
			tt.c.clean(tt, &desired{id: id}, object("5"), true, true)
			tt.c.mu.Lock()
			defer tt.c.mu.Unlock()
			if _, dirty := tt.obs.dirty[id]; dirty != tc.dirty {
				t.Errorf("looked at again: %t", dirty)
			}
			delete(tt.c.watches, w.key)
		})
	}
}

// The order of our elements in a list is ours: an apply brings it back.
func TestOwnOrder(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	object := func(list ...any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"managedFields": []any{map[string]any{"manager": "holdfast", "operation": "Apply", "fieldsV1": map[string]any{
				"f:spec": map[string]any{"f:tags": map[string]any{`v:"a"`: map[string]any{}, `v:"b"`: map[string]any{}}},
			}}}},
			"spec": map[string]any{"tags": list},
		}}
	}
	was, _ := tt.c.ownState(object("a", "b"))
	for _, same := range [][]any{{"a", "b"}, {"a", "x", "b"}, {"x", "a", "b", "y"}} {
		if is, _ := tt.c.ownState(object(same...)); is != was {
			t.Errorf("%v is another order", same)
		}
	}
	if is, _ := tt.c.ownState(object("b", "a")); is == was {
		t.Error("another order is the same")
	}
}

// A controller that writes a status is often quicker than the answer to our apply: what
// the watch told meanwhile is compared, and looked at only if it is not what was applied.
func TestToldBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	object := func(rv, size, seen string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{
			"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": rv, "labels": map[string]any{ManagedLabel: "true"},
		}, "data": map[string]any{"size": size}, "status": map[string]any{"seen": seen}}}
	}
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "a"}
	applied := object("5", "1", "0")
	for name, tc := range map[string]struct {
		idle  bool // no apply is under way
		known bool // the object is tracked already
		tell  func(c *Cluster, w *watch)
		dirty bool
	}{
		"its status":                  {tell: func(c *Cluster, w *watch) { c.event(w, id, object("6", "1", "1"), false) }},
		"its status, of an update":    {known: true, tell: func(c *Cluster, w *watch) { c.event(w, id, object("6", "1", "1"), false) }},
		"another value":               {tell: func(c *Cluster, w *watch) { c.event(w, id, object("6", "2", "1"), false) }, dirty: true},
		"another value, of an update": {known: true, tell: func(c *Cluster, w *watch) { c.event(w, id, object("6", "2", "1"), false) }, dirty: true},
		"another value, and then a status": {tell: func(c *Cluster, w *watch) {
			c.event(w, id, object("6", "2", "0"), false)
			c.event(w, id, object("7", "2", "1"), false)
		}, dirty: true},
		"a status, and then a deletion": {tell: func(c *Cluster, w *watch) {
			c.event(w, id, object("6", "1", "1"), false)
			c.event(w, id, object("7", "1", "1"), true)
		}, dirty: true},
		"a status, and then one that was not kept": {tell: func(c *Cluster, w *watch) {
			c.event(w, id, object("6", "1", "1"), false)
			c.mu.Lock()
			w.seen[id] = 7
			c.mu.Unlock()
		}, dirty: true},
		"somebody else's object of that name": {tell: func(c *Cluster, w *watch) {
			u := object("6", "1", "1")
			u.SetUID("another")
			c.event(w, id, u, false)
		}, dirty: true},
		"made anew": {tell: func(c *Cluster, w *watch) {
			c.event(w, id, object("6", "1", "1"), true)
			u := object("7", "1", "1")
			u.SetUID("another")
			c.event(w, id, u, false)
		}, dirty: true},
		"a status, without an apply": {idle: true, tell: func(c *Cluster, w *watch) { c.event(w, id, object("6", "1", "1"), false) }, dirty: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := unwatched(t)
			w := &watch{c: tt.c, key: watchKey{kind: schema.GroupKind{Kind: "ConfigMap"}}, seen: map[plan.ObjectID]uint64{}, at: 4}
			tt.c.mu.Lock()
			tt.c.watches[w.key] = w
			tt.c.mu.Unlock()
			if tc.known {
				tt.c.clean(tt, &desired{id: id}, object("3", "0", "0"), true, true)
			}
			done := func() {}
			if !tc.idle {
				done = tt.c.applying(tt, id)
			}
			tc.tell(tt.c, w)
			tt.c.clean(tt, &desired{id: id}, applied, true, true)
			done()
			tt.c.mu.Lock()
			defer tt.c.mu.Unlock()
			if _, dirty := tt.obs.dirty[id]; dirty != tc.dirty {
				t.Errorf("looked at again: %t", dirty)
			}
			if len(tt.c.early) > 0 {
				t.Errorf("%d objects are kept after the apply", len(tt.c.early))
			}
			delete(tt.c.watches, w.key)
		})
	}
}

// Versions that are no numbers are in no order: each event is compared, and nothing is known
// without asking.
func TestUnorderedVersions(t *testing.T) {
	t.Parallel()
	object := func(rv, value string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{
			"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": rv, "labels": map[string]any{ManagedLabel: "true"},
		}, "data": map[string]any{"a": value}}}
	}
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "a"}
	tt := unwatched(t)
	c := tt.c
	w := &watch{c: c, key: watchKey{kind: schema.GroupKind{Kind: "ConfigMap"}}, seen: map[plan.ObjectID]uint64{}, at: 4}
	c.mu.Lock()
	c.watches[w.key] = w
	c.mu.Unlock()
	o := &desired{id: id}
	o.after = "sha256:x"
	c.clean(tt, o, object("12/34", "1"), true, true)
	if c.stands(tt, o) {
		t.Error("it is known to stand")
	}
	c.event(w, id, object("12/35", "1"), false)
	c.mu.Lock()
	if len(tt.obs.dirty) > 0 {
		t.Error("what has not changed is looked at")
	}
	c.mu.Unlock()
	c.event(w, id, object("12/36", "2"), false)
	dirty := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(tt.obs.dirty) > 0
	}
	if !dirty() {
		t.Error("a change is overlooked")
	}
	c.clean(tt, o, object("12/35", "1"), true, true)
	if !dirty() {
		t.Error("a change is forgotten that was told of while the object was judged")
	}
	c.untrack(tt, id)
	defer c.applying(tt, id)()
	c.event(w, id, object("12/37", "2"), false)
	c.clean(tt, o, object("12/36", "1"), true, true)
	if !dirty() {
		t.Error("a change is overlooked that was told of before the answer to an apply")
	}
}
