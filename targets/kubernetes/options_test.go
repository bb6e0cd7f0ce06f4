package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// annotated returns a ConfigMap with an annotation of ours.
func annotated(name, value, key, note string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", annotations: {" + key + ": \"" + note + "\"}}\ndata: {key: \"" + value + "\"}\n"
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	for text, want := range map[string]string{
		annotated("a", "1", WaveAnnotation, "-3"):                  "",
		annotated("a", "1", PruneAnnotation, "keep"):               "",
		annotated("a", "1", PropagationAnnotation, "orphan"):       "",
		annotated("a", "1", WaveAnnotation, "first"):               `a.yaml:1: ConfigMap/a: the annotation holdfast.dev/wave cannot be "first"`,
		annotated("a", "1", WaveAnnotation, "1001"):                `holdfast.dev/wave cannot be "1001"`,
		annotated("a", "1", PruneAnnotation, "disabled"):           `holdfast.dev/prune cannot be "disabled"`,
		annotated("a", "1", PropagationAnnotation, "Background"):   `holdfast.dev/propagation cannot be "Background"`,
		annotated("a", "1", OwnerAnnotation, "production/another"): "holdfast.dev/stack is Holdfast's own",
		annotated("a", "1", "holdfast.dev/anything", "1"):          "holdfast.dev/anything is Holdfast's own",
	} {
		_, err := tt.Render(t.Context(), snapshot(map[string]string{"a.yaml": text}))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestPruneKeeps(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"a.yaml": configMap("a", "1"), "k.yaml": annotated("k", "1", PruneAnnotation, "keep"), "l.yaml": configMap("l", "1"),
		"o.yaml": annotated("o", "1", PropagationAnnotation, "orphan")}
	deploy(t, tt, files)
	// What somebody writes on a live object decides nothing about what goes.
	for _, name := range []string{"l", "k", "o"} {
		edit(t, d, "kubectl", "configmaps", ns, name, `{"metadata":{"annotations":{"x":"y"}}}`)
	}
	edit(t, d, "kubectl", "configmaps", ns, "l", `{"metadata":{"annotations":{"holdfast.dev/prune":"keep","holdfast.dev/propagation":"orphan"}}}`)
	for _, name := range []string{"k.yaml", "l.yaml", "o.yaml"} {
		delete(files, name)
	}
	r := mustRender(t, tt, files)
	p := mustPlan(t, tt, r)
	var pruned []string
	for i, c := range p.Changes {
		pruned = append(pruned, fmt.Sprintf("%s %s %s", c.Action, c.ID.Name, p.Private.(*planned).changes[i].propagation))
	}
	slices.Sort(pruned)
	if !slices.Equal(pruned, []string{"delete l Background", "delete o Orphan"}) {
		t.Fatalf("pruned: %v", pruned)
	}
	// The end of the stack lets go of what is protected.
	p, err := tt.Removal(t.Context(), r, false)
	if err != nil {
		t.Fatal(err)
	}
	actions := map[string]plan.Action{}
	for _, c := range p.Changes {
		actions[c.ID.Name] = c.Action
	}
	if actions["a"] != plan.Delete || actions["l"] != plan.Delete || actions["k"] != plan.Release {
		t.Errorf("the end: %v", actions)
	}
}

// What is deleted and held by a finalizer stays in the inventory, keeps the stack
// from being ready, and says what holds it.
func TestPruneIsHeld(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	held := strings.Replace(configMap("h", "1"), "{name: h}", "{name: h, finalizers: [acme.example/held]}", 1)
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "h.yaml": held})
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	err := tt.Healthy(t.Context(), r)
	if fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "ConfigMap/"+ns+"/h is being deleted and held: finalizers acme.example/held") {
		t.Fatalf("health: %v", err)
	}
	// Over a restart too.
	again := target(t, c.Config, ns, nil, nil)
	ra := mustRender(t, again, map[string]string{"a.yaml": configMap("a", "1")})
	if p := mustPlan(t, again, ra); !p.Empty() {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
	if err := again.Healthy(t.Context(), ra); fault.KindOf(err) != fault.Waiting {
		t.Errorf("health after a restart: %v", err)
	}
	edit(t, d, "x", "configmaps", ns, "h", `{"metadata":{"finalizers":null}}`)
	for _, tt := range []*Target{tt, again} {
		if err := tt.Healthy(t.Context(), ra); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	allowed := func(s *Spec) { s.Replace = []string{"Deployment.apps"} }
	tt := target(t, c.Config, ns, nil, allowed)
	deploy(t, tt, map[string]string{"d.yaml": deployment})
	old := getObject(t, d, "deployments", ns, "web")
	changed := map[string]string{"d.yaml": strings.ReplaceAll(deployment, "{app: web}", "{app: web2}")}

	not, err := New(tt.c, spec(ns, nil)) // the same stack, which did not ask
	if err != nil {
		t.Fatal(err)
	}
	if _, err := not.Plan(t.Context(), mustRender(t, not, changed)); fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), "replace:") {
		t.Errorf("without leave: %v, hint %q", err, fault.HintOf(err))
	}
	r := mustRender(t, tt, changed)
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 1 || p.Changes[0].Action != plan.Replace || p.Changes[0].UID != string(old.GetUID()) ||
		!slices.ContainsFunc(p.Changes[0].Fields, func(f plan.Field) bool { return f.Path == "/spec/selector/matchLabels/app" }) {
		t.Fatalf("changes: %s", mustJSON(p.Changes))
	}
	if getObject(t, d, "deployments", ns, "web").GetUID() != old.GetUID() {
		t.Fatal("planning replaced it")
	}
	// What is protected is not replaced.
	keep := strings.Replace(deployment, "{name: web}", "{name: web, annotations: {holdfast.dev/prune: keep}}", 1)
	deploy(t, tt, map[string]string{"d.yaml": keep})
	if _, err := tt.Plan(t.Context(), r); fault.KindOf(err) != fault.Invalid {
		t.Errorf("protected: %v", err)
	}
	deploy(t, tt, map[string]string{"d.yaml": deployment})
	p = mustPlan(t, tt, r)
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}
	live := getObject(t, d, "deployments", ns, "web")
	if live.GetUID() == old.GetUID() || !strings.Contains(string(mustJSON(live.Object)), `"matchLabels":{"app":"web2"}`) {
		t.Errorf("live: %s", mustJSON(live.Object))
	}
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("left: %s", mustJSON(p.Changes))
	}
	// A grant to replace an object does not extend to another one of its name.
	p = mustPlan(t, tt, mustRender(t, tt, map[string]string{"d.yaml": deployment}))
	if err := d.Resource(gvrs["deployments"]).Namespace(ns).Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err == nil || !strings.Contains(err.Error(), targets.ErrStale.Error()) {
		t.Errorf("it is gone: %v", err)
	}
}

var podGVR = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// A wave begins when everything below it is healthy.
func TestWaves(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	first := strings.Replace(strings.Replace(deployment, "{name: web}", `{name: web, annotations: {holdfast.dev/wave: "-1"}}`, 1), "replicas: 0", "replicas: 1", 1)
	// No node takes the pod before it may.
	first = strings.Replace(first, "      containers:", "      schedulingGates: [{name: acme.example/later}]\n      containers:", 1)
	r := mustRender(t, tt, map[string]string{"d.yaml": first, "a.yaml": configMap("a", "1")})
	p := mustPlan(t, tt, r)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		rec targets.Receipt
		err error
	}
	done := make(chan result, 1)
	grant := targetstest.Grant(t.Context(), t, p)
	go func() {
		rec, err := tt.Apply(ctx, grant)
		done <- result{rec, err}
	}()
	pods := d.Resource(podGVR).Namespace(ns)
	var pod string
	for pod == "" {
		list, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) > 0 {
			pod = list.Items[0].GetName()
		}
		<-time.After(50 * time.Millisecond)
	}
	if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Get(t.Context(), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("the second wave did not wait: %v", err)
	}
	if _, err := pods.Patch(t.Context(), pod, "application/json-patch+json", []byte(`[{"op":"remove","path":"/spec/schedulingGates"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil {
		t.Fatalf("%v\n%s", got.err, mustJSON(got.rec))
	}
	getObject(t, d, "configmaps", ns, "a")
}

// While a wave waits, nothing of the next is written, and the receipt says so.
func TestWaveGivesWay(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	first := strings.Replace(strings.Replace(deployment, "{name: web}", `{name: web, annotations: {holdfast.dev/wave: "-1"}}`, 1), "replicas: 0", "replicas: 1", 1)
	first = strings.Replace(first, "      containers:", "      nodeSelector: {acme.example/nowhere: here}\n      containers:", 1)
	p := mustPlan(t, tt, mustRender(t, tt, map[string]string{"d.yaml": first, "a.yaml": configMap("a", "1")}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	rec, err := tt.Apply(ctx, targetstest.Grant(t.Context(), t, p))
	if fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "wave 0 is not applied before the lower ones are healthy") {
		t.Errorf("got %v", err)
	}
	for _, o := range rec.Outcomes {
		if (o.Err == "") != (o.ID.Name == "web") {
			t.Errorf("%s: %q", o.ID, o.Err)
		}
	}
}

// A Namespace that goes and is held by a finalizer within it keeps the stack from being
// ready, with what the Namespace itself says about it.
func TestNamespaceIsHeld(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	own := ns + "-own"
	tt := target(t, c.Config, ns, nil, func(s *Spec) {
		s.Allow = Allow{Kinds: []string{"*", "Namespace"}, Namespaces: []string{ns, own}}
	})
	held := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: h, namespace: " + own + ", finalizers: [acme.example/held]}\n"
	files := map[string]string{"a.yaml": configMap("a", "1"), "n.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + own + "}\n", "h.yaml": held}
	deploy(t, tt, files)
	delete(files, "n.yaml")
	delete(files, "h.yaml")
	r := deploy(t, tt, files)
	want := func(text string) func() bool {
		return func() bool {
			err := tt.Healthy(t.Context(), r)
			return fault.KindOf(err) == fault.Waiting && strings.Contains(err.Error(), "Namespace/"+own+" is being deleted and held") && strings.Contains(err.Error(), text)
		}
	}
	until(t, want("acme.example/held")) // the namespace controller says so on the Namespace
	edit(t, d, "x", "configmaps", own, "h", `{"metadata":{"finalizers":null}}`)
	until(t, func() bool { return tt.Healthy(t.Context(), r) == nil })
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
}
