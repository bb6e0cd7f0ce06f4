package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// requests notes what is asked of the API server, but for watches: "GET", "dry PATCH", …
type requests struct {
	mu   sync.Mutex
	list []string
}

func (r *requests) of(conf *rest.Config) *rest.Config {
	out := rest.CopyConfig(conf)
	out.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			q := req.URL.Query()
			what := req.Method
			if q.Get("dryRun") != "" {
				what = "dry " + what
			}
			if q.Get("watch") == "" {
				r.mu.Lock()
				r.list = append(r.list, what)
				r.mu.Unlock()
			}
			return rt.RoundTrip(req)
		})
	})
	return out
}

// take returns what was asked since it was called last.
func (r *requests) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := strings.Join(r.list, ", ")
	r.list = nil
	return out
}

// watched returns a stack that is deployed and observed, and about which everything is
// known that its watches have to tell.
func watched(t *testing.T, conf *rest.Config, ns string, files map[string]string) (*Target, targets.Rendered, <-chan targets.Finding) {
	t.Helper()
	tt := target(t, conf, ns, nil, nil)
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	until(t, func() bool { return standing(t, tt, r) })
	return tt, r, found
}

// standing reports whether all of r is known to be as it should.
func standing(t testing.TB, tt *Target, r targets.Rendered) bool {
	t.Helper()
	objs, _, err := tt.placeAll(t.Context(), r.Private.(*rendering), nil)
	if err != nil {
		t.Fatal(err)
	}
	return !slices.ContainsFunc(objs, func(o *desired) bool { return !tt.c.stands(tt, o) })
}

// What the watch told nothing about costs no request, and a plan says the same of it.
func TestRecall(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var asked requests
	files := map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "s.yaml": secretManifest("geheimnis")}
	tt, r, _ := watched(t, asked.of(c.Config), ns, files)
	recall := func(r targets.Rendered) plan.Plan {
		t.Helper()
		p, err := tt.Recall(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	asked.take()
	if p, asked := recall(r), asked.take(); !p.Empty() || asked != "" {
		t.Errorf("nothing moved: %s, asked %s", mustJSON(p.Changes), asked)
	}
	if p, asked := mustPlan(t, tt, r), asked.take(); !p.Empty() || strings.Count(asked, "dry PATCH") != 3 {
		t.Errorf("a plan looks itself: %s, asked %s", mustJSON(p.Changes), asked)
	}

	// A commit that changes one object asks about that one.
	files["b.yaml"] = configMap("b", "2")
	next2 := mustRender(t, tt, files)
	p := recall(next2)
	if got := asked.take(); got != "GET, dry PATCH" {
		t.Errorf("one object is changed: asked %s", got)
	}
	if want := mustPlan(t, tt, next2); p.Digest() != want.Digest() || len(p.Changes) != 1 {
		t.Errorf("recalled %s, planned %s", mustJSON(p.Changes), mustJSON(want.Changes))
	}
	asked.take()
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "PATCH" {
		t.Errorf("it was at the version that was judged: asked %s", got)
	}
	// One more object, and one less: then the inventory counts.
	delete(files, "a.yaml")
	files["c.yaml"] = configMap("c", "1")
	r = mustRender(t, tt, files)
	p = recall(r)
	if len(p.Changes) != 2 || p.Count(plan.Delete) != 1 || p.Count(plan.Create) != 1 {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}

	// What somebody changes is in the next plan, although it is not repaired.
	edit(t, d, "x", "configmaps", ns, "b", `{"data":{"key":"3"}}`)
	until(t, func() bool { return len(recall(r).Changes) == 1 })
}

// A repair rests on what was just found: it is judged once, and written at that version.
func TestRepairAsksOnce(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var asked requests
	tt, r, found := watched(t, asked.of(c.Config), ns, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	want, err := tt.Desired(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	g := gate.New(&targetstest.Ledger{}, gate.Limits{})
	g.Resume(r.Stack, gate.Standing{Environment: r.Environment, Rendered: r.Digest, Revision: r.Revision.ID, Objects: want})
	repair := func(f targets.Finding) error {
		t.Helper()
		p, err := tt.Plan(t.Context(), r, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Changes) != 1 {
			t.Fatalf("changes: %s", mustJSON(p.Changes))
		}
		grant, err := g.Restore(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tt.Apply(t.Context(), grant)
		return err
	}
	asked.take()
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if err := repair(next(t, found)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "PATCH" {
		t.Errorf("an edit: asked %s", got)
	}
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"more":"2"}}`)
	if err := repair(next(t, found)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "dry PATCH, dry PATCH, PATCH" {
		t.Errorf("an addition, of which only the server can say whether it stays away: asked %s", got)
	}
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := repair(next(t, found)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "GET, PATCH" {
		t.Errorf("a deletion: asked %s", got)
	}
	for name, want := range map[string]string{"a": "1", "b": "1"} {
		if got := getObject(t, d, "configmaps", ns, name).Object["data"].(map[string]any)["key"]; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}

	// What is found twice, moves in between, or is old is looked at again.
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	f := next(t, found)
	id := f.ID
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"3"}}`)
	next(t, found)
	asked.take()
	p, err := tt.Plan(t.Context(), r, id)
	if err != nil || len(p.Changes) != 1 || p.Changes[0].Fields[0].From != `"3"` {
		t.Errorf("the newest: %v, %s", err, mustJSON(p.Changes))
	}
	if got := asked.take(); got != "" {
		t.Errorf("the first time: asked %s", got)
	}
	if _, err = tt.Plan(t.Context(), r, id); err != nil || asked.take() != "GET, dry PATCH" {
		t.Errorf("the second time: %v", err)
	}
}

// Where the server refuses what was foretold, the change is stale, and the next plan asks.
func TestForetoldAndRefused(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	cr, crd, name := customResource(ns)
	t.Cleanup(func() {
		_ = d.Resource(crdGVR).Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	crd = strings.Replace(crd, "type: object, x-kubernetes-preserve-unknown-fields: true", `type: object, properties: {spec: {type: object,
    properties: {size: {type: integer}, share: {type: integer}}, x-kubernetes-validations: [{rule: "!has(self.size) || !has(self.share)"}]}}`, 1)
	var asked requests
	tt := target(t, asked.of(c.Config), ns, nil, func(s *Spec) { s.Allow.Kinds = []string{"*", crdKind.String()} })
	declareNone(tt, cr)
	r := deploy(t, tt, map[string]string{"a.yaml": cr, "b.yaml": crd})
	found := observe(t, tt, r)
	until(t, func() bool { return standing(t, tt, r) })
	objects := d.Resource(schema.GroupVersionResource{Group: "test.holdfast.example", Version: "v1", Resource: strings.TrimSuffix(name, ".test.holdfast.example")}).Namespace(ns)
	patch := func(p string) {
		t.Helper()
		if _, err := objects.Patch(t.Context(), "one", types.MergePatchType, []byte(p), metav1.PatchOptions{FieldManager: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	asked.take()
	patch(`{"spec":{"size":null,"share":7}}`)
	f := next(t, found)
	p, err := tt.Plan(t.Context(), r, f.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "" {
		t.Errorf("it was not foretold: asked %s", got)
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("refused: %v", err)
	}
	if _, err := tt.Plan(t.Context(), r, f.ID); fault.KindOf(err) != fault.Invalid {
		t.Errorf("what the server refuses: %v", err)
	}
	asked.take()
	patch(`{"spec":{"share":8}}`)
	next(t, found)
	if got := asked.take(); got != "dry PATCH" {
		t.Errorf("what did not come true is foretold again: asked %s", got)
	}
}

// Two stacks may have a kind in two versions, and one watch tells of both.
func TestWatchInAnotherVersion(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	c := cluster(t, env.Config, nil)
	hpa := func(name, version, metric string) string {
		return "apiVersion: autoscaling/" + version + "\nkind: HorizontalPodAutoscaler\nmetadata: {name: " + name + "}\nspec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, " + metric + "}\n"
	}
	stack := func(name, manifest string) (*Target, targets.Rendered, <-chan targets.Finding) {
		t.Helper()
		tt, err := New(c, spec(ns, func(s *Spec) { s.Stack = name + "-" + ns }))
		if err != nil {
			t.Fatal(err)
		}
		r := deploy(t, tt, map[string]string{"h.yaml": manifest})
		return tt, r, observe(t, tt, r)
	}
	stack("one", hpa("one", "v1", "targetCPUUtilizationPercentage: 50"))
	tt, r, found := stack("two", hpa("two", "v2", "metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]"))
	until(t, func() bool { return standing(t, tt, r) })
	hpas := schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}
	patch := func(body string) {
		t.Helper()
		if _, err := d.Resource(hpas).Namespace(ns).Patch(t.Context(), "two", types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"metadata":{"labels":{"theirs":"yes"}}}`)
	patch(`{"spec":{"maxReplicas":5}}`)
	f := next(t, found)
	if len(f.Fields) != 1 || f.Fields[0].Path != "/spec/maxReplicas" {
		t.Errorf("finding: %s", mustJSON(f))
	}
}

// What is yielded may be ours again without a word about the object: by the end of an
// ignore rule, and when the other manager lets go. It is asked about each time.
func TestRecallOfWhatIsYielded(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var over atomic.Bool
	tt := target(t, c.Config, ns, nil, func(s *Spec) {
		s.Yield = func(_ plan.ObjectID, pointer string) bool { return pointer == "/data/key" && !over.Load() }
	})
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	observe(t, tt, r)
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	recall := func() int {
		t.Helper()
		p, err := tt.Recall(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Changes)
	}
	at := version(getObject(t, d, "configmaps", ns, "a"))
	until(t, func() bool { // the watch has told, and it was looked at
		tt.c.mu.Lock()
		defer tt.c.mu.Unlock()
		tr := tt.c.tracked[plan.ObjectID{Kind: "ConfigMap", Namespace: ns, Name: "a"}]
		return tr != nil && tr.rv >= at
	})
	if n := recall(); n != 0 {
		t.Errorf("while it is yielded: %d changes", n)
	}
	over.Store(true)
	if n := recall(); n != 1 {
		t.Errorf("when that is over: %d changes", n)
	}
}

// A watch that is interrupted tells nothing: until it goes on, everything is asked about.
func TestRecallWhileTheWatchIsInterrupted(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	proxy, err := testenv.NewFaultProxyTransport(c.Config.Host, mustTransport(t, c.Config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	tt, r, _ := watched(t, &rest.Config{Host: proxy.URL()}, ns, map[string]string{"a.yaml": configMap("a", "1")})
	stands := func() bool { return tt.c.stands(tt, r.Private.(*rendering).objects[0]) }
	proxy.Set(testenv.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("watch") }, Status: http.StatusForbidden})
	proxy.Break()
	until(t, func() bool { return !stands() })
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if p, err := tt.Recall(t.Context(), r); err != nil || len(p.Changes) != 1 {
		t.Errorf("recall: %v, %s", err, mustJSON(p.Changes))
	}
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"1"}}`)
	proxy.Set(testenv.Fault{})
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	until(t, stands)
}

// Watches that end at once are not opened again and again.
func TestDefinitionsThatCannotBeWatched(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	proxy, err := testenv.NewFaultProxyTransport(env.Config.Host, mustTransport(t, env.Config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	proxy.Set(testenv.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("watch") }, Rewrite: func(r *http.Response) error {
		r.Body = http.NoBody // an end without an event
		return nil
	}})
	var asked requests
	c, err := NewCluster(clusterConfig(t, asked.of(&rest.Config{Host: proxy.URL()}), nil))
	if err != nil {
		t.Fatal(err)
	}
	c.definitions = definitions[:1]
	running(t, c)
	until(t, func() bool { return proxy.Matches() >= 3 })
	if n := strings.Count(asked.take(), "GET"); n > 10 {
		t.Errorf("%d requests for %d watches", n, proxy.Matches())
	}
}

// Definitions that change all the time have everything looked at less and less often.
func TestDefinitionsThatChangeAllTheTime(t *testing.T) {
	t.Parallel()
	w := &definitionWatch{generations: map[string]int64{}, moved: map[string]bool{}}
	total := time.Duration(0)
	for range 20 {
		total += w.next()
		w.stirred = time.Now()
	}
	if last := w.next(); last != definitionRest || total < time.Hour {
		t.Errorf("after %s the pause is %s", total, last)
	}
	w.stirred = time.Now().Add(-3 * definitionRest)
	if got := w.next(); got != definitionPause {
		t.Errorf("after a quiet time the pause is %s", got)
	}
}

// An image that a custom kind names somewhere open is seen, although nothing closed and
// nothing of ours changed.
func TestImageOfACustomKindIsSeen(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	cr, crd, name := customResource(ns)
	u := fromYAML(t, cr)
	gvk := u.GroupVersionKind()
	conf := clusterConfig(t, env.Config, nil)
	conf.Kinds = []KindImages{{Kind: gvk.GroupKind().String(), Images: []string{"/spec/sidecar"}}}
	c, err := NewCluster(conf)
	if err != nil {
		t.Fatal(err)
	}
	c.definitions = nil
	running(t, c)
	tt, err := New(c, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Resource(crdGVR).Create(t.Context(), fromYAML(t, crd), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Resource(crdGVR).Delete(context.Background(), name, metav1.DeleteOptions{}) })
	served := func(version string) func() bool {
		return func() bool {
			c.forgetKinds(map[string]bool{gvk.Group: true})
			_, err := c.resource(t.Context(), gvk.GroupKind().WithVersion(version))
			return err == nil
		}
	}
	until(t, served("v1"))
	r := deploy(t, tt, map[string]string{"a.yaml": cr})
	found := observe(t, tt, r)
	until(t, func() bool { return standing(t, tt, r) })
	plural, _, _ := strings.Cut(name, ".")
	in := d.Resource(gvk.GroupVersion().WithResource(plural)).Namespace(ns)
	if _, err := in.Patch(t.Context(), "one", types.MergePatchType, []byte(`{"spec":{"sidecar":"evil.example/miner:1"}}`), metav1.PatchOptions{FieldManager: "x"}); err != nil {
		t.Fatal(err)
	}
	if f := next(t, found); f.ID.Name != "one" || f.Class != targets.Foreign {
		t.Errorf("finding: %s", mustJSON(f))
	}

	// The definition goes on to another version, and so does the watch.
	jsonPatch(t, d.Resource(crdGVR), name, `[{"op":"replace","path":"/spec/versions","value":[
		{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}},
		{"name":"v2","served":true,"storage":false,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}]`)
	cr = strings.Replace(cr, "/v1\n", "/v2\n", 1)
	until(t, served("v2"))
	r = deploy(t, tt, map[string]string{"a.yaml": cr})
	found = observe(t, tt, r)
	jsonPatch(t, d.Resource(crdGVR), name, `[{"op":"replace","path":"/spec/versions/0/served","value":false},{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`)
	in = d.Resource(gvk.GroupKind().WithVersion("v2").GroupVersion().WithResource(plural)).Namespace(ns)
	until(t, func() bool {
		_, err := in.Patch(t.Context(), "one", types.MergePatchType, []byte(`{"spec":{"size":7}}`), metav1.PatchOptions{FieldManager: "x"})
		return err == nil
	})
	if f := next(t, found); f.ID.Name != "one" || f.Class != targets.Modified {
		t.Errorf("finding: %s", mustJSON(f))
	}
}

// Managed fields that anybody made wide are not compared here.
func TestTooWide(t *testing.T) {
	t.Parallel()
	set := map[string]any{}
	for i := range maxWidth + 1 {
		set[fmt.Sprintf(`v:"%d"`, i)] = map[string]any{}
	}
	u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"managedFields": []any{
		map[string]any{"manager": "x", "fieldsV1": map[string]any{"f:metadata": map[string]any{"f:finalizers": set}}},
	}}}}
	if !tooWide(u) {
		t.Error("it is compared")
	}
	for k := range set {
		delete(set, k)
		break
	}
	if tooWide(u) {
		t.Error("it is not compared")
	}
}

// What only the server can tell is asked, however much of it is remembered.
func TestNotForetold(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	two := strings.Replace(deployment, "        resources:", "        env: [{name: A, value: \"1\"}, {name: B, value: \"2\"}]\n        resources:", 1)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"d.yaml": two})
	o, res, err := tt.placeAll(t.Context(), r.Private.(*rendering), nil)
	if err != nil {
		t.Fatal(err)
	}
	const web = `{"spec":{"template":{"spec":{"containers":[{"name":"web",%s}]}}}}`
	for name, tc := range map[string]struct {
		patch string
		take  bool // what was added is nobody's
		want  bool
	}{
		"a value":                       {patch: fmt.Sprintf(web, `"image":"evil"`), want: true},
		"in a map that is empty":        {patch: fmt.Sprintf(web, `"securityContext":{"privileged":true}`)},
		"in a map that is empty, owned": {patch: fmt.Sprintf(web, `"securityContext":{"privileged":true}`), take: true},
		"the order of a list":           {patch: fmt.Sprintf(web, `"env":[{"name":"B","value":"2"},{"name":"A","value":"1"}]`)},
		"one more of a list":            {patch: fmt.Sprintf(web, `"env":[{"name":"C","value":"3"}],"image":"evil"`)},
	} {
		live := getObject(t, d, "deployments", ns, "web")
		tt.c.clean(tt, o[0], live, true, true)
		if name == "the order of a list" { // a patch would merge it
			spec := live.Object["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
			env := spec["containers"].([]any)[0].(map[string]any)["env"].([]any)
			slices.Reverse(env)
			if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Update(t.Context(), live, metav1.UpdateOptions{FieldManager: "x"}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(tc.patch), metav1.PatchOptions{FieldManager: "x"}); err != nil {
			t.Fatal(err)
		}
		if tc.take {
			live := getObject(t, d, "deployments", ns, "web")
			live.SetManagedFields(slices.DeleteFunc(live.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager == "x" }))
			if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Update(t.Context(), live, metav1.UpdateOptions{FieldManager: "holdfast"}); err != nil {
				t.Fatal(err)
			}
		}
		live = getObject(t, d, "deployments", ns, "web")
		owned := map[plan.ObjectID]bool{o[0].id: true}
		if got := tt.certain(o[0], res[0], live, owned); (got != nil) != tc.want {
			t.Errorf("%s: foretold: %t", name, got != nil)
		}
		as := tt.as
		tt.as = &session{user: "somebody", dyn: as.dyn, manager: as.manager}
		if tt.certain(o[0], res[0], live, owned) != nil {
			t.Errorf("%s: an account is told what it may not see", name)
		}
		tt.as = as
		p := mustPlan(t, tt, r)
		if len(p.Changes) != 1 {
			t.Fatalf("%s: it is no drift: %s", name, mustJSON(p.Changes))
		}
		if foreign := p.Changes[0].Foreign(); foreign != strings.Contains(name, "empty") && name != "one more of a list" {
			t.Errorf("%s: foreign: %t", name, foreign)
		}
		if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p := mustPlan(t, tt, r); !p.Empty() {
			t.Errorf("%s: left: %s", name, mustJSON(p.Changes))
		}
	}
}
