package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// counted returns a copy of conf that counts requests other than watches.
func counted(conf *rest.Config) (*rest.Config, *atomic.Int64) {
	n := new(atomic.Int64)
	out := rest.CopyConfig(conf)
	out.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Query().Get("watch") == "" {
				n.Add(1)
			}
			return rt.RoundTrip(r)
		})
	})
	return out, n
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// observe starts Observe and returns its findings.
func observe(t *testing.T, tt *Target, r targets.Rendered) <-chan targets.Finding {
	t.Helper()
	found := make(chan targets.Finding, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tt.Observe(ctx, r, func(f targets.Finding) { found <- f }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Observe: %v", err)
		}
	})
	return found
}

func next(t *testing.T, found <-chan targets.Finding) targets.Finding {
	t.Helper()
	select {
	case f := <-found:
		return f
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was found")
		return targets.Finding{}
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	all := map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "c.yaml": configMap("c", "1"), "d.yaml": configMap("d", "1")}
	deploy(t, tt, all)
	// What lacks the owner mark, or our managed fields, is not ours to delete.
	edit(t, d, "x", "configmaps", ns, "b", `{"metadata":{"annotations":{"holdfast.dev/stack":null}}}`)
	edit(t, d, "x", "configmaps", ns, "c", `{"metadata":{"managedFields":[{}]}}`)
	edit(t, d, "x", "configmaps", ns, "d", `{"data":{"key":"edited"}}`)

	r := mustRender(t, tt, map[string]string{"a.yaml": all["a.yaml"]})
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 1 || p.Changes[0].ID.Name != "d" || p.Changes[0].Action != plan.Delete || len(p.Documents) == 0 {
		t.Fatalf("changes: %s", mustJSON(p.Changes))
	}
	// What the operator no longer allows is not deleted either.
	for name, allow := range map[string]Allow{
		"namespace": {Kinds: []string{"*"}, Namespaces: []string{"other"}},
		"kind":      {Kinds: []string{"Secret"}},
	} {
		narrow, err := New(tt.c, spec(ns, func(s *Spec) { s.Allow = allow; s.Namespace = "other" }))
		if err != nil {
			t.Fatal(err)
		}
		narrow.spec.Stack, narrow.owner = tt.spec.Stack, tt.owner
		rn := mustRender(t, narrow, map[string]string{"s.yaml": strings.Replace(secretManifest("x"), "login", "login-"+ns, 1)})
		if _, err := narrow.Plan(t.Context(), rn); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "ConfigMap/"+ns+"/d") {
			t.Errorf("%s: a prune of what is not allowed: %v", name, err)
		}
	}
	// A grant to delete an object does not extend to another one of its name.
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "d"}}}
	if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("deleting a successor: %v", err)
	}
	getObject(t, d, "configmaps", ns, "d")
}

func TestTamperedInventory(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	name := tt.inventoryName() + "-0"
	cm := getObject(t, d, "configmaps", defaultNamespace, name)
	content, _, _ := unstructured.NestedString(cm.Object, "data", "inventory")
	forged := strings.Replace(content, `"n":"a"`, `"n":"victim"`, 1)
	if forged == content {
		t.Fatalf("inventory: %s", content)
	}
	edit(t, d, "x", "configmaps", defaultNamespace, name, string(mustJSON(map[string]any{"data": map[string]any{"inventory": forged}})))
	if _, err := tt.Plan(t.Context(), r); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "authentication code") {
		t.Errorf("a tampered inventory: %v", err)
	}
	edit(t, d, "x", "configmaps", defaultNamespace, name, string(mustJSON(map[string]any{"data": map[string]any{"inventory": content}})))
	mustPlan(t, tt, r)
}

func TestInventoryShards(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	write := func(n int) {
		t.Helper()
		inv, err := tt.readInventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		entries := map[plan.ObjectID]entry{}
		for i := range n {
			e := entry{Version: "v1", Kind: "ConfigMap", Namespace: ns, Name: fmt.Sprint("x", i)}
			entries[e.id()] = e
		}
		if err := tt.writeInventory(t.Context(), inv, entries); err != nil {
			t.Fatal(err)
		}
		if inv, err = tt.readInventory(t.Context()); err != nil || len(inv.entries) != n {
			t.Fatalf("%d entries, %v; want %d", len(inv.entries), err, n)
		}
	}
	write(2*shardEntries + 1)
	write(1)
	write(shardEntries + 1)
	if err := d.Resource(gvrs["configmaps"]).Namespace(defaultNamespace).Delete(t.Context(), tt.inventoryName()+"-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.readInventory(t.Context()); err == nil || !strings.Contains(err.Error(), "part 2 of 2 is missing") {
		t.Errorf("an inventory without its second part: %v", err)
	}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "a"}, "data": map[string]any{"key": "old"}}}
	if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{FieldManager: "helm"}); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"a.yaml": configMap("a", "new")}
	tt := target(t, c.Config, ns, nil, nil)
	_, err := tt.Plan(t.Context(), mustRender(t, tt, files))
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "managed by helm") || !strings.Contains(fault.HintOf(err), "adopt: true") {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
	tt = target(t, c.Config, ns, nil, func(s *Spec) { s.Adopt = true })
	p := mustPlan(t, tt, mustRender(t, tt, files))
	if len(p.Changes) != 1 || p.Changes[0].Reason != "adopted from helm" || p.Changes[0].Action != plan.Update {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
	deploy(t, tt, files)
	if v, _, _ := unstructured.NestedString(getObject(t, d, "configmaps", ns, "a").Object, "data", "key"); v != "new" {
		t.Errorf("value %q", v)
	}
}

func TestTwoStacks(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	cl := cluster(t, c.Config, nil)
	stack := func(name string) *Target {
		tt, err := New(cl, spec(ns, func(s *Spec) { s.Stack = name + "-" + ns }))
		if err != nil {
			t.Fatal(err)
		}
		return tt
	}
	a, b := stack("a"), stack("b")
	shared := map[string]string{"x.yaml": configMap("x", "1"), "y.yaml": configMap("other", "1")}
	both := func(err error) bool {
		return fault.KindOf(err) == fault.Invalid && strings.Contains(fmt.Sprint(err), a.owner) && strings.Contains(fmt.Sprint(err), b.owner)
	}
	ra, rb := mustRender(t, a, shared), mustRender(t, b, shared)
	for _, tt := range []struct {
		*Target
		r targets.Rendered
	}{{a, ra}, {b, rb}} {
		if _, err := tt.Plan(t.Context(), tt.r); !both(err) {
			t.Errorf("%s: both would create it: %v", tt.owner, err)
		}
	}
	if s := read(t, d, ns); s != "" {
		t.Fatalf("something was written: %s", s)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	deploy(t, a, shared)
	rb = mustRender(t, b, shared)
	if _, err := b.Plan(t.Context(), rb); !both(err) {
		t.Errorf("the second stack: %v", err)
	}
	if p := mustPlan(t, a, ra); !p.Empty() {
		t.Errorf("the first stack is disturbed: %s", mustJSON(p.Changes))
	}

	// What b claims without a grant does not stand in a's way, even if the object is gone.
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "x", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		deploy(t, a, shared)
		edit(t, d, "kubectl-edit", "configmaps", ns, "x", `{"metadata":{"managedFields":[{}],"annotations":{"holdfast.dev/stack":null}}}`)
	}
	deploy(t, a, shared)

	// x moves from a to b: it is never deleted, whoever is first.
	only := map[string]string{"y.yaml": shared["y.yaml"]}
	mustRender(t, b, map[string]string{"x.yaml": shared["x.yaml"]})
	uid := getObject(t, d, "configmaps", ns, "x").GetUID()
	if p := mustPlan(t, a, mustRender(t, a, only)); p.Count(plan.Delete) != 0 {
		t.Errorf("a move prunes first: %s", mustJSON(p.Changes))
	}
	deploy(t, b, map[string]string{"x.yaml": shared["x.yaml"]})
	if p := mustPlan(t, a, mustRender(t, a, only)); !p.Empty() {
		t.Errorf("after the move: %s", mustJSON(p.Changes))
	}
	if u := getObject(t, d, "configmaps", ns, "x"); u.GetUID() != uid || u.GetAnnotations()[OwnerAnnotation] != b.owner {
		t.Errorf("x was made anew, or is owned by %s", u.GetAnnotations()[OwnerAnnotation])
	}
	if p := mustPlan(t, b, mustRender(t, b, map[string]string{"x.yaml": shared["x.yaml"]})); !p.Empty() {
		t.Errorf("b after the move: %s", mustJSON(p.Changes))
	}
}

// customResource returns an object of a kind of its own, the definition of the
// kind, and the definition's name.
func customResource(ns string) (cr, crd, name string) {
	kind := "K" + strings.ReplaceAll(ns, "-", "")
	plural := strings.ToLower(kind) + "s"
	const group = "test.holdfast.example"
	crd = fmt.Sprintf(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.%[3]s}
spec:
  group: %[3]s
  scope: Namespaced
  names: {kind: %[1]s, plural: %[2]s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, kind, plural, group)
	return fmt.Sprintf("apiVersion: %s/v1\nkind: %s\nmetadata: {name: one}\nspec: {size: 1}\n", group, kind), crd, plural + "." + group
}

// declareNone says for the kind of cr that its objects name no image.
func declareNone(tt *Target, cr string) {
	d, err := decode("cr.yaml", []byte(cr))
	if err != nil {
		panic(err)
	}
	u := unstructured.Unstructured{Object: d[0].value}
	tt.c.kinds[strings.ToLower(u.GroupVersionKind().GroupKind().String())] = declaration{}
}

func TestDefinitionWithItsObjects(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	cr, crd, name := customResource(ns)
	allow := func(s *Spec) { s.Allow.Kinds = []string{"*", crdKind.String()} }
	tt := target(t, c.Config, ns, nil, allow)
	declareNone(tt, cr)
	if _, err := tt.Plan(t.Context(), mustRender(t, tt, map[string]string{"b.yaml": cr})); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an unknown kind: %v", err)
	}
	t.Cleanup(func() {
		_ = d.Resource(crdGVR).Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	files := map[string]string{"a.yaml": cr, "b.yaml": crd}
	r := deploy(t, tt, files)
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("after the apply: %s", mustJSON(p.Changes))
	}
	// Another stack that knows the kind from the cluster only: its namespace is filled in.
	other := target(t, c.Config, ns, nil, func(s *Spec) { allow(s); s.Stack = "other-" + ns })
	declareNone(other, cr)
	r = mustRender(t, other, map[string]string{"a.yaml": strings.ReplaceAll(cr, "one", "two")})
	p := mustPlan(t, other, r)
	want, err := other.Desired(t.Context(), r)
	if err != nil || p.Changes[0].ID.Namespace != ns || want[p.Changes[0].ID] != p.Changes[0].After {
		t.Errorf("changes %s, desired %v, %v", mustJSON(p.Changes), want, err)
	}
}

var crdGVR = schema.GroupVersionResource{Group: crdKind.Group, Version: "v1", Resource: "customresourcedefinitions"}

func TestNamespaceInTheSamePlan(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c) + "-made"
	d := dyn(t, c.Config)
	t.Cleanup(func() {
		_ = d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	conf, n := counted(c.Config)
	tt := target(t, conf, ns, nil, func(s *Spec) { s.Allow.Kinds = []string{"*", "Namespace"} })
	files := map[string]string{"n.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + ns + "}\n"}
	for i := range 10 {
		files[fmt.Sprintf("c%d.yaml", i)] = configMap(fmt.Sprint("c", i), "x")
	}
	r := mustRender(t, tt, files)
	p := mustPlan(t, tt, r)
	if got := n.Load(); got != 3 { // inventory, discovery, the Namespace
		t.Errorf("%d requests to plan 10 objects in a new namespace; want 3", got)
	}
	n.Store(0)
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}
	if got := n.Load(); got != 12 { // inventory, the Namespace, 10 objects
		t.Errorf("%d requests to apply them; want 12", got)
	}
}

func TestCreateIsStaleWhenItExists(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	p := mustPlan(t, tt, mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1")}))
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "a"}, "data": map[string]any{"theirs": "x"}}}
	if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rec, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
	if !errors.Is(err, targets.ErrStale) || rec.Outcomes[0].Err == "" {
		t.Errorf("error %v, receipt %s", err, mustJSON(rec))
	}
	if _, theirs, _ := unstructured.NestedString(getObject(t, d, "configmaps", ns, "a").Object, "data", "key"); theirs {
		t.Error("somebody else's object was overwritten")
	}
}

// TestRefusedCreate: what the server refuses is wrong in the repository, and no
// change of the world that would be planned again for ever.
func TestRefusedCreate(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, tc := range map[string]struct{ manifest, want string }{
		"port":         {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 99999}]}\n", "spec.ports[0].port"},
		"key":          {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {'a b': Z2VoZWltbmlz}\n", "Invalid data (FieldValueInvalid)"},
		"type":         {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: http}]}\n", "port"},
		"secret field": {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndate: {a: b}\n", "the API server answers 500"},
		"field":        {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndate: {a: b}\n", "date"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := target(t, c.Config, testenv.Namespace(t, c), nil, nil)
			p := mustPlan(t, tt, mustRender(t, tt, map[string]string{"a.yaml": tc.manifest}))
			_, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
			if fault.KindOf(err) != fault.Invalid || errors.Is(err, targets.ErrStale) || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("%v: %v; want invalid, with %q", fault.KindOf(err), err, tc.want)
			}
		})
	}
}

func TestErrorKinds(t *testing.T) {
	t.Parallel()
	c := offline(t, nil).c
	for code, want := range map[int]fault.Kind{
		400: fault.Invalid, 405: fault.Invalid, 413: fault.Invalid, 422: fault.Invalid, 403: fault.Denied, 404: fault.Waiting,
		401: fault.Transient, 409: fault.Transient, 429: fault.Transient, 500: fault.Transient, 503: fault.Transient,
	} {
		err := apierrors.NewGenericServerResponse(code, "patch", schema.GroupResource{Resource: "configmaps"}, "a", "", 0, true)
		if got := fault.KindOf(c.apiError(opApply, plan.ObjectID{Kind: "ConfigMap", Name: "a"}, err)); got != want {
			t.Errorf("%d is %v; want %v", code, got, want)
		}
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	log := &syncBuffer{}
	tt := target(t, c.Config, ns, log, nil)
	const secret = "correct-horse/battery+staple"
	// The server quotes the key and type; immutable data makes it answer about values.
	manifest := secretManifest(secret) + "immutable: true\n"
	deploy(t, tt, map[string]string{"a.yaml": manifest})
	_, err := tt.Plan(t.Context(), mustRender(t, tt, map[string]string{"a.yaml": secretManifest(secret+"2") + "immutable: true\n"}))
	if fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
		t.Errorf("an immutable secret: %v", err)
	}
	_, err2 := tt.Render(t.Context(), snapshot(map[string]string{"a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: '" + secret + "%'}\n"}))
	for _, text := range []string{fmt.Sprintf("%v %+v", err, err), fmt.Sprint(err2), log.String()} {
		if how := targetstest.Leaks(text, secret); how != "" {
			t.Errorf("the secret leaks (%s): %s", how, text)
		}
	}
}

func TestImmutableField(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	deploy(t, tt, map[string]string{"d.yaml": deployment})
	_, err := tt.Plan(t.Context(), mustRender(t, tt, map[string]string{"d.yaml": strings.ReplaceAll(deployment, "app: web", "app: other")}))
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), "cannot be changed in place") {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	conf, n := counted(c.Config)
	tt := target(t, conf, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"d.yaml": deployment, "c.yaml": configMap("c", "1"), "s.yaml": secretManifest("first-password")})
	found := observe(t, tt, r)

	// An edit is found with its author.
	edit(t, d, "kubectl-edit", "configmaps", ns, "c", `{"data":{"key":"edited"}}`)
	f := next(t, found)
	if f.ID.Name != "c" || f.Class != targets.Modified || f.Actor != "kubectl-edit" || f.Since.IsZero() ||
		len(f.Fields) != 1 || f.Fields[0] != (plan.Field{Path: "/data/key", From: `"edited"`, To: `"1"`, Manager: "kubectl-edit", Since: f.Since.UTC()}) {
		t.Errorf("finding: %s", mustJSON(f))
	}
	// A second edit is another finding, an edit of a Secret shows masks.
	edit(t, d, "kubectl-edit", "configmaps", ns, "c", `{"data":{"key":"again"}}`)
	if f = next(t, found); f.Fields[0].From != `"again"` {
		t.Errorf("finding: %s", mustJSON(f))
	}
	edit(t, d, "thief", "secrets", ns, "login", `{"stringData":{"password":"second-password"}}`)
	if f = next(t, found); f.Actor != "thief" || strings.Contains(string(mustJSON(f)), "password\":") || !strings.Contains(f.Fields[0].From, "(masked ") {
		t.Errorf("finding: %s", mustJSON(f))
	}
	// The repair makes no finding; a deletion does.
	deployAgain := func() {
		t.Helper()
		if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, mustPlan(t, tt, r))); err != nil {
			t.Fatal(err)
		}
	}
	deployAgain()
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if f = next(t, found); f.ID.Name != "c" || f.Class != targets.Missing || f.Actor != "" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	deployAgain()
	// Hiding from the watch, by taking the label away, is seen as well.
	edit(t, d, "hider", "configmaps", ns, "c", `{"metadata":{"labels":null}}`)
	if f = next(t, found); f.ID.Name != "c" || f.Class != targets.Modified {
		t.Errorf("finding: %s", mustJSON(f))
	}
	deployAgain()

	// Status churn, and a field that we do not declare, cost no request. The
	// edit of c that follows proves that the watch was there all the time.
	n.Store(0)
	const harmless = 20
	for i := range harmless {
		edit(t, d, "status-writer", "deployments", ns, "web", fmt.Sprintf(`{"status":{"observedGeneration":%d}}`, i), "status")
		edit(t, d, "someone", "deployments", ns, "web", fmt.Sprintf(`{"metadata":{"annotations":{"note":"%d"}}}`, i))
	}
	edit(t, d, "kubectl-edit", "deployments", ns, "web", `{"spec":{"replicas":1}}`)
	if f = next(t, found); f.ID.Name != "web" || f.Actor != "kubectl-edit" || f.Fields[0].Path != "/spec/replicas" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	// A read and a dry run; both again whenever a controller writes in between,
	// which a busy machine makes happen several times.
	if got := n.Load(); got >= 2*harmless {
		t.Errorf("%d requests for %d harmless updates and one drift; want 2, or a few more", got, 2*harmless)
	}
	if len(found) != 0 {
		t.Errorf("one finding too many: %s", mustJSON(<-found))
	}
}

// TestMarksDoNotHideDrift removes and forges what says that an object is ours:
// all of it is drift, of these objects and of the others of the stack.
func TestMarksDoNotHideDrift(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{}
	for _, name := range []string{"cleared", "forged", "anew", "plain"} {
		files[name+".yaml"] = configMap(name, "1")
	}
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	maps := d.Resource(gvrs["configmaps"]).Namespace(ns)
	edit(t, d, "x", "configmaps", ns, "cleared", `{"metadata":{"managedFields":[{}],"annotations":{"holdfast.dev/stack":null}},"data":{"key":"evil"}}`)
	forged := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{
		"name": "forged", "annotations": map[string]any{OwnerAnnotation: "production/other"}, "labels": map[string]any{ManagedLabel: "true"},
	}, "data": map[string]any{"key": "evil"}}}
	if _, err := maps.Apply(t.Context(), "forged", forged, metav1.ApplyOptions{FieldManager: defaultManager, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), "anew", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	anew := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "anew"}, "data": map[string]any{"key": "evil"}}}
	if _, err := maps.Create(t.Context(), anew, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	edit(t, d, "x", "configmaps", ns, "plain", `{"data":{"key":"evil"}}`)
	for seen := map[string]bool{}; len(seen) < len(files); {
		seen[next(t, found).ID.Name] = true // anew is Missing if it is looked at in between
	}
	// A full plan says the same, and its apply restores the marks.
	if p := mustPlan(t, tt, r); p.Count(plan.Update) != 4 || len(p.Changes) != 4 || p.Keeps != 4 {
		t.Errorf("plan: %s", mustJSON(p))
	}
	deploy(t, tt, files)
	for name := range files {
		u := getObject(t, d, "configmaps", ns, strings.TrimSuffix(name, ".yaml"))
		if v, _, _ := unstructured.NestedString(u.Object, "data", "key"); v != "1" || !tt.ours(u) {
			t.Errorf("%s is not restored: %s", name, mustJSON(u.Object))
		}
	}
}

// TestObserveIsolatesFailures: what cannot be judged holds up nothing else, and
// is tried again, but not all the time.
func TestClass19_one_object_does_not_stop_a_kind(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var refuse atomic.Bool
	tries := new(atomic.Int64)
	conf := rest.CopyConfig(c.Config)
	conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if refuse.Load() && r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/bad") {
				tries.Add(1)
				return &http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody, Request: r, Header: http.Header{}}, nil
			}
			return rt.RoundTrip(r)
		})
	})
	files := map[string]string{"a.yaml": configMap("bad", "1"), "b.yaml": configMap("good", "1")}
	deploy(t, target(t, conf, ns, nil, nil), files)
	refuse.Store(true)
	tt := target(t, conf, ns, nil, nil) // looks at both at once first, as after a restart
	for _, name := range []string{"bad", "good"} {
		edit(t, d, "x", "configmaps", ns, name, `{"data":{"key":"2"}}`)
	}
	found := observe(t, tt, mustRender(t, tt, files))
	for i := range 5 {
		if i > 0 {
			edit(t, d, "x", "configmaps", ns, "good", fmt.Sprintf(`{"data":{"key":"x%d"}}`, i))
		}
		if f := next(t, found); f.ID.Name != "good" {
			t.Fatalf("finding: %s", mustJSON(f))
		}
	}
	refuse.Store(false)
	if f := next(t, found); f.ID.Name != "bad" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	if n := tries.Load(); n == 0 || n > 20 {
		t.Errorf("%d tries of what fails; want a few", n)
	}
}

// TestObserveWithoutADefinition starts with a kind that the cluster does not know.
func TestObserveWithoutADefinition(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	cr, crd, name := customResource(ns)
	deploy(t, target(t, c.Config, ns, nil, nil), map[string]string{"a.yaml": configMap("a", "1")})
	tt := target(t, c.Config, ns, nil, nil)
	declareNone(tt, cr)
	found := observe(t, tt, mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": cr}))
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if f := next(t, found); f.ID.Name != "a" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	t.Cleanup(func() { _ = d.Resource(crdGVR).Delete(context.Background(), name, metav1.DeleteOptions{}) })
	deploy(t, target(t, c.Config, ns, nil, func(s *Spec) {
		s.Stack, s.Allow.Kinds = "definitions-"+ns, []string{crdKind.String()}
	}), map[string]string{"a.yaml": crd})
	if f := next(t, found); f.ID.Name != "one" || f.ID.Namespace != ns || f.Class != targets.Missing {
		t.Errorf("finding: %s", mustJSON(f))
	}
}

func TestRetriesGrow(t *testing.T) {
	t.Parallel()
	bad, good := plan.ObjectID{Name: "bad"}, plan.ObjectID{Name: "good"}
	r := retries{timer: time.NewTimer(time.Hour), ids: map[plan.ObjectID]bool{}}
	failed := map[plan.ObjectID]error{bad: errors.New("no")}
	for range 3 {
		if err := r.note([]plan.ObjectID{bad, good}, failed); err == nil || len(r.ids) != 1 {
			t.Fatalf("error %v, retries %v", err, r.ids)
		}
		r.armed = false // the timer ran
	}
	if r.wait != 4*minBackoff {
		t.Errorf("the third delay is %v; want %v", r.wait, 4*minBackoff)
	}
	if err := r.note([]plan.ObjectID{bad}, nil); err != nil || r.wait != 0 || len(r.ids) != 0 {
		t.Errorf("after a success: %v, %v, %v", err, r.wait, r.ids)
	}
}

func TestNoFalseDrift(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	files := map[string]string{"d.yaml": deployment, "s.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n"}
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, files)
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("1000m, defaults: %s", mustJSON(p.Changes))
	}
	// A daemon that starts again knows nothing, and finds nothing.
	again := target(t, c.Config, ns, nil, nil)
	found := observe(t, again, mustRender(t, again, files))
	edit(t, dyn(t, c.Config), "x", "deployments", ns, "web", `{"spec":{"replicas":1}}`)
	if f := next(t, found); f.ID.Name != "web" || len(f.Fields) != 1 {
		t.Errorf("finding: %s", mustJSON(f))
	}
}

// TestWatchSurvives cuts, refuses and expires the watch while objects change.
func TestWatchSurvives(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	transport, err := rest.TransportFor(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := testenv.NewFaultProxyTransport(c.Config.Host, transport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	watching := func(r *http.Request) bool { return r.URL.Query().Get("watch") != "" }
	proxy.Set(testenv.Fault{Match: watching, CutAfter: 100, Times: 2})
	log := &syncBuffer{}
	tt := target(t, &rest.Config{Host: proxy.URL()}, ns, log, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	found := observe(t, tt, r)
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"cut"}}`)
	if f := next(t, found); f.ID.Name != "a" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	proxy.Set(testenv.Fault{Match: watching, Status: http.StatusGone, Times: 3})
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if f := next(t, found); f.ID.Name != "b" || f.Class != targets.Missing {
		t.Errorf("finding: %s", mustJSON(f))
	}
}

// TestCompactedVersions has etcd compacted and the API server killed while the watch is cut:
// what it would resume from is gone, and what happened meanwhile is found by a list.
func TestCompactedVersions(t *testing.T) {
	t.Parallel()
	c, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	proxy, err := testenv.NewFaultProxyTransport(c.Config.Host, mustTransport(t, c.Config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	tt := target(t, &rest.Config{Host: proxy.URL()}, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "c.yaml": configMap("c", "1")})
	found := observe(t, tt, r)
	edit(t, d, "x", "configmaps", ns, "c", `{"data":{"key":"seen"}}`) // the watch runs
	if f := next(t, found); f.ID.Name != "c" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	proxy.Down()
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"unseen"}}`)
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lists atomic.Int32
	proxy.Set(testenv.Fault{Match: func(r *http.Request) bool {
		if q := r.URL.Query(); r.URL.Path == "/api/v1/configmaps" && q.Get("watch") == "" && q.Get("labelSelector") != "" {
			lists.Add(1)
		}
		return false
	}})
	proxy.Up()
	classes := map[string]targets.FindingClass{}
	for range 2 {
		f := next(t, found)
		classes[f.ID.Name] = f.Class
	}
	if classes["a"] != targets.Modified || classes["b"] != targets.Missing {
		t.Errorf("found: %v", classes)
	}
	if lists.Load() == 0 {
		t.Error("the watch was resumed from a version that is gone")
	}
}

func TestWatchWithoutClusterWideRights(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	conf := rest.CopyConfig(c.Config)
	conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/api/v1/configmaps" {
				rec := &http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody, Request: r, Header: http.Header{}}
				return rec, nil
			}
			return rt.RoundTrip(r)
		})
	})
	files := map[string]string{"a.yaml": configMap("a", "1")}
	deploy(t, target(t, conf, ns, nil, nil), files)
	log := &syncBuffer{}
	tt := target(t, conf, ns, log, nil) // as after a restart: nothing was applied by this one
	found := observe(t, tt, mustRender(t, tt, files))
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if f := next(t, found); f.ID.Name != "a" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	if !strings.Contains(log.String(), "watching each namespace") {
		t.Errorf("log: %s", log)
	}
}

// TestNarrow: the watches of each namespace do not depend on what was looked at before.
func TestNarrow(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	c, kind := tt.c, schema.GroupKind{Kind: "ConfigMap"}
	before, after := watchKey{kind, "before"}, watchKey{kind, "after"}
	c.ensureWatch(tt, plan.ObjectID{Kind: "ConfigMap", Namespace: before.namespace, Name: "a"}, kind, configMaps)
	c.mu.Lock()
	all := c.watches[watchKey{kind: kind}]
	c.mu.Unlock()
	c.narrow(all)
	c.ensureWatch(tt, plan.ObjectID{Kind: "ConfigMap", Namespace: after.namespace, Name: "a"}, kind, configMaps)
	c.mu.Lock()
	if c.watches[before] == nil || c.watches[after] == nil || len(c.watches) != 3 {
		t.Errorf("watches: %v", c.watches)
	}
	c.mu.Unlock()
	if err := tt.Close(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watches) != 0 {
		t.Errorf("nobody needs %v", c.watches)
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"c.yaml": configMap("c", "1")})
	if err := tt.Healthy(t.Context(), r); err != nil {
		t.Errorf("a ConfigMap: %v", err)
	}
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := tt.Healthy(t.Context(), r); fault.KindOf(err) != fault.Waiting {
		t.Errorf("a missing object: %v", err)
	}
}

// TestEveryImageFieldIsKnown walks all kinds of the Kubernetes API that a user
// can write: a string field that holds an image, and that images does not find,
// fails it.
func TestEveryImageFieldIsKnown(t *testing.T) {
	t.Parallel()
	bearing := map[string]bool{}
	var walk func(reflect.Type, string, map[reflect.Type]bool)
	walk = func(ty reflect.Type, owner string, seen map[reflect.Type]bool) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice || ty.Kind() == reflect.Map {
			ty = ty.Elem()
		}
		if ty.Kind() != reflect.Struct || seen[ty] || strings.HasSuffix(ty.Name(), "Status") || strings.HasSuffix(ty.Name(), "Statuses") {
			return
		}
		seen[ty] = true
		for f := range ty.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			low := strings.ToLower(name)
			isString := f.Type.Kind() == reflect.String || (f.Type.Kind() == reflect.Pointer && f.Type.Elem().Kind() == reflect.String)
			inImageSource := strings.Contains(ty.Name(), "ImageVolume") && low != "pullpolicy"
			if isString && (inImageSource || (strings.Contains(low, "image") && low != "imagepullpolicy")) {
				bearing[ty.Name()+"."+name] = true
			}
			walk(f.Type, ty.Name(), seen)
		}
	}
	for gvk, ty := range scheme.Scheme.AllKnownTypes() {
		if !strings.HasSuffix(gvk.Kind, "List") {
			walk(ty, "", map[reflect.Type]bool{})
		}
	}
	known := map[string]bool{
		"Container.image": true, "EphemeralContainerCommon.image": true, "ImageVolumeSource.reference": true,
		// The name of a disk image inside a Ceph pool, not of a container image.
		"RBDVolumeSource.image": true, "RBDPersistentVolumeSource.image": true,
		// Reported by the node.
		"NodeSystemInfo.osImage": true,
	}
	for f := range bearing {
		if !known[f] {
			t.Errorf("%s may name an image, and images does not look there", f)
		}
	}
	for _, f := range []string{"Container.image", "EphemeralContainerCommon.image", "ImageVolumeSource.reference"} {
		if !bearing[f] {
			t.Errorf("the walk does not find %s: %v", f, bearing)
		}
	}
	// Each list of a pod that has containers or volumes is looked at.
	pod := reflect.TypeFor[corev1.PodSpec]()
	for f := range pod.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Type.Kind() != reflect.Slice {
			continue
		}
		var item map[string]any
		switch f.Type.Elem() {
		case reflect.TypeFor[corev1.Container](), reflect.TypeFor[corev1.EphemeralContainer]():
			item = map[string]any{"name": "x", "image": "img"}
		case reflect.TypeFor[corev1.Volume]():
			item = map[string]any{"name": "x", "image": map[string]any{"reference": "img"}}
		default:
			continue
		}
		got, err := images(map[string]any{"spec": map[string]any{name: []any{item}}})
		if err != nil || len(got) != 1 || got[0].reference != "img" {
			t.Errorf("spec.%s: %v, %v", name, got, err)
		}
	}
}

func BenchmarkApply200(b *testing.B) {
	c := testenv.SharedCluster(b)
	files := map[string]string{}
	for i := range 200 {
		files[fmt.Sprintf("c%03d.yaml", i)] = configMap(fmt.Sprintf("c%03d", i), strings.Repeat("x", 2048))
	}
	b.Run("bare", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			ns := testenv.Namespace(b, c)
			tt := target(b, c.Config, ns, nil, nil)
			ren := mustRender(b, tt, files).Private.(*rendering)
			b.StartTimer()
			sem := make(chan struct{}, 16)
			errs := make(chan error, len(ren.objects))
			for _, o := range ren.objects {
				sem <- struct{}{}
				go func() {
					_, err := tt.as.apply(context.Background(), configMaps, o.u, false)
					<-sem
					errs <- err
				}()
			}
			for range ren.objects {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("holdfast", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			ns := testenv.Namespace(b, c)
			tt := target(b, c.Config, ns, nil, nil)
			g := targetstest.Grant(b.Context(), b, mustPlan(b, tt, mustRender(b, tt, files)))
			b.StartTimer()
			if _, err := tt.Apply(b.Context(), g); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("edit-to-found", func(b *testing.B) {
		ns, d := testenv.Namespace(b, c), dyn(b, c.Config)
		tt := target(b, c.Config, ns, nil, nil)
		r := deploy(b, tt, files)
		found := make(chan targets.Finding, 1)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { _ = tt.Observe(ctx, r, func(f targets.Finding) { found <- f }) }()
		for i := 0; b.Loop(); i++ {
			_, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Patch(ctx, fmt.Sprintf("c%03d", i%200), types.MergePatchType,
				fmt.Appendf(nil, `{"data":{"key":"%d"}}`, i), metav1.PatchOptions{FieldManager: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			<-found
		}
	})
}
