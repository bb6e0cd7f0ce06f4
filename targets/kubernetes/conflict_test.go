package kubernetes

import (
	"context"
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// scale sets the replicas as the HorizontalPodAutoscaler does.
func scale(t testing.TB, d dynamic.Interface, ns string, replicas string) {
	t.Helper()
	edit(t, d, "autoscaler", "deployments", ns, "web", `{"spec":{"replicas":`+replicas+`}}`, "scale")
}

// force applies a Deployment's container as another manager, and takes what it says.
func force(t testing.TB, d dynamic.Interface, ns, container string) {
	t.Helper()
	body := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"selector":{"matchLabels":{"app":"web"}},
		"template":{"spec":{"containers":[` + container + `]}}}}`
	yes := true
	if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Patch(t.Context(), "web", types.ApplyPatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "vpa", Force: &yes}); err != nil {
		t.Fatal(err)
	}
}

func replicas(t testing.TB, d dynamic.Interface, ns string) any {
	t.Helper()
	v, _, _ := unstructured.NestedFieldNoCopy(getObject(t, d, "deployments", ns, "web").Object, "spec", "replicas")
	return v
}

const conflictImage = "registry.example/web@sha256:1123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestConflictTake(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Conflicts = Take })
	files := map[string]string{"d.yaml": deployment}
	r := deploy(t, tt, files)
	edit(t, d, "kubectl-edit", "deployments", ns, "web", `{"spec":{"replicas":3}}`)
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 1 || len(p.Changes[0].Fields) != 1 {
		t.Fatalf("changes: %s", mustJSON(p.Changes))
	}
	f := p.Changes[0].Fields[0]
	if f.Path != "/spec/replicas" || f.Manager != "kubectl-edit" || f.Since.IsZero() {
		t.Errorf("whose the field is: %+v", f)
	}
	deploy(t, tt, files)
	if got := replicas(t, d, ns); got != int64(0) {
		t.Errorf("replicas: %v", got)
	}
}

func TestConflictFail(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Conflicts = Fail })
	r := deploy(t, tt, map[string]string{"d.yaml": deployment, "c.yaml": configMap("c", "1")})
	found := observe(t, tt, r)
	scale(t, d, ns, "3")
	_, err := tt.Plan(t.Context(), r)
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "d.yaml:1: Deployment/"+ns+"/web: /spec/replicas is managed by autoscaler (scale)") { // the server keeps no time of a scale {
		t.Fatalf("plan: %v", err)
	}
	if f := next(t, found); f.ID.Name != "web" || f.Class != targets.Modified || f.Fields[0].Manager != "autoscaler" {
		t.Errorf("finding: %+v", f)
	}
	// What nobody else owns is repaired all the same.
	edit(t, d, "x", "configmaps", ns, "c", `{"data":{"key":null}}`)
	p, err := tt.Plan(t.Context(), r, plan.ObjectID{Kind: "ConfigMap", Namespace: ns, Name: "c"})
	if err != nil || len(p.Changes) != 1 {
		t.Errorf("%v, %s", err, mustJSON(p.Changes))
	}
	// A rule is no shelter for what nobody may add or change.
	force(t, d, ns, `{"name":"web","image":"`+conflictImage+`"}`)
	p, err = tt.Plan(t.Context(), r)
	if err != nil || len(p.Changes) != 2 {
		t.Errorf("an image beside a contested field: %v, %s", err, mustJSON(p.Changes))
	}
	deploy(t, tt, map[string]string{"d.yaml": deployment, "c.yaml": configMap("c", "1")})
	// When the other lets go, the stack goes on.
	scale(t, d, ns, "0")
	if _, err := tt.Plan(t.Context(), r); err != nil {
		t.Errorf("the values agree: %v", err)
	}
}

func TestConflictYield(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Conflicts = Yield })
	files := map[string]string{"d.yaml": deployment, "c.yaml": configMap("c", "1")}
	r := deploy(t, tt, files)
	scale(t, d, ns, "3")
	force(t, d, ns, `{"name":"web","resources":{"limits":{"cpu":"2"}}}`)
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Fatalf("what is yielded is a change: %s", mustJSON(p.Changes))
	}
	// A change of something else leaves both as they are.
	files["d.yaml"] = strings.Replace(deployment, "labels: {app: web}", "labels: {app: web, tier: front}", 1)
	r = deploy(t, tt, files)
	live := getObject(t, d, "deployments", ns, "web")
	containers, _, _ := unstructured.NestedSlice(live.Object, "spec", "template", "spec", "containers")
	limits, _, _ := unstructured.NestedStringMap(containers[0].(map[string]any), "resources", "limits")
	labels, _, _ := unstructured.NestedStringMap(live.Object, "spec", "template", "metadata", "labels")
	if replicas(t, d, ns) != int64(3) || limits["cpu"] != "2" || limits["memory"] != "1Gi" || labels["tier"] != "front" {
		t.Errorf("replicas %v, limits %v, labels %v", replicas(t, d, ns), limits, labels)
	}
	// Images, what is closed, and our own marks are never yielded.
	force(t, d, ns, `{"name":"web","image":"`+conflictImage+`","imagePullPolicy":"Always","securityContext":{"privileged":true}}`)
	edit(t, d, "x", "deployments", ns, "web", `{"metadata":{"annotations":{"holdfast.dev/stack":"other/stack"}}}`)
	edit(t, d, "x", "configmaps", ns, "c", `{"data":{"key":"2"}}`)
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 2 {
		t.Fatalf("changes: %s", mustJSON(p.Changes))
	}
	if _, err := tt.Apply(context.Background(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}
	live = getObject(t, d, "deployments", ns, "web")
	if text := string(mustJSON(live.Object["spec"])); strings.Contains(text, conflictImage) || strings.Contains(text, "privileged") || !tt.ours(live) {
		t.Errorf("left: %s", mustJSON(live.Object))
	}
	if replicas(t, d, ns) != int64(3) {
		t.Errorf("replicas: %v", replicas(t, d, ns))
	}
}

// A manager that is said to own a whole map yields nothing that is closed in it: anybody
// may write such an entry.
func TestYieldBelowAForgedEntry(t *testing.T) {
	t.Parallel()
	tt := offline(t, func(s *Spec) { s.Conflicts = Yield })
	r := mustRender(t, tt, map[string]string{"s.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}, sessionAffinity: None, ports: [{port: 80}]}\n"})
	o := r.Private.(*rendering).objects[0]
	live := o.u.DeepCopy()
	live.Object["spec"] = map[string]any{"selector": map[string]any{"app": "evil"}, "sessionAffinity": "ClientIP", "ports": []any{map[string]any{"port": int64(81)}}}
	live.Object["metadata"].(map[string]any)["managedFields"] = []any{map[string]any{
		"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": map[string]any{"f:spec": map[string]any{}},
	}}
	var at []string
	for _, y := range tt.yields(o, live) {
		at = append(at, y.at)
	}
	if len(at) != 1 || at[0] != "/spec/sessionAffinity" {
		t.Errorf("yielded: %v", at)
	}
}

// Who writes an object without end is named, and nobody waits for long.
func TestContended(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, func(*Spec) {})
	r := deploy(t, tt, map[string]string{"c.yaml": configMap("c", "1")})
	o := r.Private.(*rendering).objects[0]
	res, err := tt.c.resource(t.Context(), o.u.GroupVersionKind())
	if err != nil {
		t.Fatal(err)
	}
	edit(t, d, "writer", "configmaps", ns, "c", `{"data":{"key":"2"}}`)
	if err := tt.contended(t.Context(), opApply, res, o.id); fault.KindOf(err) != fault.Transient || !strings.Contains(err.Error(), "managed by ") || !strings.Contains(err.Error(), "writer") {
		t.Errorf("contended: %v", err)
	}
	n := 0
	for range attempts(t.Context()) {
		n++
	}
	if n != maxAttempts {
		t.Errorf("%d attempts", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n = 0
	for range attempts(ctx) {
		n++
	}
	if err := tt.contended(ctx, opApply, res, o.id); n != 2 || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %d attempts, %v", n, err)
	}
}

// What is taken out of the repository and owned by somebody else too stays in the world:
// the plan says so, once.
func TestFieldThatStays(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"d.yaml": strings.Replace(deployment, "replicas: 0", "replicas: 2", 1)}
	deploy(t, tt, files)
	body := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":2,"selector":{"matchLabels":{"app":"web"}}}}`
	if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Patch(t.Context(), "web", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: "scaler"}); err != nil {
		t.Fatal(err)
	}
	files["d.yaml"] = strings.Replace(deployment, "replicas: 0", "", 1)
	r := mustRender(t, tt, files)
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 1 || len(p.Changes[0].Fields) != 0 || len(p.Changes[0].Stays) != 1 {
		t.Fatalf("changes: %s", mustJSON(p.Changes))
	}
	if f := p.Changes[0].Stays[0]; f.Path != "/spec/replicas" || f.From != "2" || f.Manager != "scaler" {
		t.Errorf("what stays: %+v", f)
	}
	deploy(t, tt, files)
	if p := mustPlan(t, tt, r); !p.Empty() || replicas(t, d, ns) != int64(2) {
		t.Errorf("it is theirs now: %s, replicas %v", mustJSON(p.Changes), replicas(t, d, ns))
	}
	// What nobody else owns goes, or becomes the server's default, without a word.
	files["d.yaml"] = strings.Replace(files["d.yaml"], "labels: {app: web}", "labels: {app: web, tier: front}", 1)
	deploy(t, tt, files)
	files["d.yaml"] = strings.Replace(files["d.yaml"], ", tier: front", "", 1)
	if p := mustPlan(t, tt, mustRender(t, tt, files)); len(p.Changes) != 1 || len(p.Changes[0].Stays) != 0 {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
}
