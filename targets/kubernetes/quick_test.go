package kubernetes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// Health of what the watches tell of costs no request, and what they tell counts.
func TestHealthFromTheWatch(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	conf, n := counted(c.Config)
	tt := target(t, conf, ns, nil, func(s *Spec) {
		s.Health = []HealthRule{{Kind: "ConfigMap", Current: "metadata.?labels.?broken.orValue('') == ''"}}
	})
	files := map[string]string{"d.yaml": deployment}
	for i := range 20 {
		files[fmt.Sprintf("%d.yaml", i)] = configMap(fmt.Sprintf("c-%d", i), "1")
	}
	r := deploy(t, tt, files)
	observe(t, tt, r)
	quiet := func() bool {
		before := n.Load()
		return tt.Healthy(t.Context(), r) == nil && n.Load() == before
	}
	for end := time.Now().Add(30 * time.Second); !quiet(); {
		if time.Now().After(end) {
			t.Fatal("a look at what is healthy costs requests")
		}
	}
	// A label that nobody declared is no drift, and health sees it.
	edit(t, d, "x", "configmaps", ns, "c-7", `{"metadata":{"labels":{"broken":"yes"}}}`)
	var err error
	for end := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(end); {
		err = tt.Healthy(t.Context(), r)
	}
	if fault.KindOf(err) != fault.Waiting {
		t.Errorf("health: %v", err)
	}
	// What is on its way costs nothing either; after a while somebody asks why.
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: ns, Name: "c-7"}
	v, known := tt.c.stood(tt, id)
	if before := n.Load(); !known || v.progress == "" || fault.KindOf(tt.Healthy(t.Context(), r)) != fault.Waiting || n.Load() != before {
		t.Errorf("on its way: %t, %+v, %d requests", known, v, n.Load()-before)
	}
	tt.c.mu.Lock()
	tt.c.tracked[id].vitals.since = time.Now().Add(-2 * explainAfter)
	tt.c.mu.Unlock()
	if before := n.Load(); fault.KindOf(tt.Healthy(t.Context(), r)) != fault.Waiting || n.Load() == before {
		t.Error("nobody asks why")
	}
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "c-8", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	edit(t, d, "x", "configmaps", ns, "c-7", `{"metadata":{"labels":{"broken":null}}}`)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = tt.Healthy(t.Context(), r); err != nil && !quiet() {
			break
		}
	}
	if fault.KindOf(err) != fault.Waiting {
		t.Errorf("something is gone: %v", err)
	}
}

// A daemon that starts reads all inventories at once, and each of them only once that
// way: what is read later is what is there then.
func TestInventoriesAreReadTogether(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, own := testenv.Namespace(t, env), testenv.Namespace(t, env)
	several := func(conf *Cluster) (all []*Target) {
		conf.cfg.Namespace = own
		for i := range 5 {
			tt, err := New(conf, spec(ns, func(s *Spec) { s.Stack = fmt.Sprintf("s-%d-%s", i, ns) }))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, tt)
		}
		return all
	}
	for i, tt := range several(cluster(t, env.Config, nil)) {
		deploy(t, tt, map[string]string{"a.yaml": configMap(fmt.Sprintf("a-%d", i), "1")})
	}
	conf, n := counted(env.Config)
	again := several(cluster(t, conf, nil))
	for i, tt := range again {
		inv, err := tt.readInventory(t.Context())
		if err != nil || len(inv.entries) != 1 || len(inv.live) != 1 {
			t.Errorf("stack %d: %v, %+v", i, err, inv)
		}
	}
	if got := n.Load(); got != 1 {
		t.Errorf("%d requests for %d inventories", got, len(again))
	}
	// Somebody changes one: it is read anew, and not believed.
	edit(t, dyn(t, env.Config), "x", "configmaps", own, again[0].inventoryName()+"-0", `{"data":{"inventory":"{}"}}`)
	if _, err := again[0].readInventory(t.Context()); fault.KindOf(err) != fault.Denied {
		t.Errorf("a changed inventory: %v", err)
	}
}

// Who deploys much that is new asks for the names of a kind instead of for each object,
// and does not believe them about what came meanwhile.
func TestAbsence(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var asked requests
	tt := target(t, asked.of(c.Config), ns, nil, nil)
	add := func(name string) {
		t.Helper()
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}}}
		if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{}
	for i := range 2 * absenceMisses {
		files[fmt.Sprintf("%d.yaml", i)] = configMap(fmt.Sprintf("c-%d", i), "1")
	}
	mustPlan(t, tt, mustRender(t, tt, files))
	add("theirs")
	names := tt.c.absences.of(configMaps)
	names.mu.Lock()
	names.listed = time.Now().Add(-2 * absenceFor) // what it says is old
	names.mu.Unlock()
	files["theirs.yaml"] = configMap("theirs", "1")
	r := mustRender(t, tt, files)
	asked.take()
	if _, err := tt.Plan(t.Context(), r); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "exists and is managed by") {
		t.Fatalf("what somebody else has: %v", err)
	}
	if n := strings.Count(asked.take(), "GET"); n > 6 { // the inventory, pages of names, the one that exists
		t.Errorf("%d requests", n)
	}
	// One that comes after the names were listed.
	delete(files, "theirs.yaml")
	files["late.yaml"] = configMap("late", "1")
	r = mustRender(t, tt, files)
	p := mustPlan(t, tt, r)
	add("late")
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("apply: %v", err)
	}
	if _, err := tt.Plan(t.Context(), r); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "late") {
		t.Errorf("it is known now: %v", err)
	}
	// What was just made is not taken for absent.
	delete(files, "late.yaml")
	deploy(t, tt, files)
	if p := mustPlan(t, tt, mustRender(t, tt, files)); !p.Empty() {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
}
