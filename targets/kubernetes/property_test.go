package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// The local comparison is checked against the API server: generated edits of generated
// objects, and for each the question whether a forced server-side dry run would change
// anything. Where it would, the local comparison MUST have seen something; where it
// would not, a candidate costs a request and is counted. What others added is checked
// against sets of the library that the API server itself uses for managed fields.

// cases returns how many edits are tried; HOLDFAST_CASES sets another number.
func cases(t testing.TB, otherwise int) int {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_CASES")); err == nil {
		return n
	}
	return otherwise
}

const widgets = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: KIND.property.example}
spec:
  group: property.example
  names: {kind: KINDS, plural: KIND}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
          spec:
            type: object
            properties:
              size: {x-kubernetes-int-or-string: true}
              count: {type: integer, default: 3}
              mode: {type: string, nullable: true}
              extra: {type: object, x-kubernetes-preserve-unknown-fields: true}
              template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
              tags: {type: array, x-kubernetes-list-type: set, items: {type: string}}
              plain: {type: array, items: {type: string}}
              steps: {type: array, x-kubernetes-list-type: atomic, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, weight: {type: integer, default: 1}, note: {type: string}}}
`

// subjects are the objects that are edited. %[1]s is a name.
var subjects = []string{
	"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %[1]s, labels: {app: x}}\ndata: {a: \"1\", b: \"several\\nlines\"}\nbinaryData: {c: AAEC}\n",
	"apiVersion: v1\nkind: Secret\nmetadata: {name: %[1]s}\nstringData: {password: hunter2-hunter2}\n",
	"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %[1]s, annotations: {a: b}}\nautomountServiceAccountToken: false\nimagePullSecrets: [{name: a}]\n",
	"apiVersion: v1\nkind: Service\nmetadata: {name: %[1]s}\nspec: {selector: {app: %[1]s}, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]}\n",
	`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      securityContext: {}
      containers:
      - name: web
        image: registry.example/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        args: [a, b]
        env: [{name: A, value: "1"}, {name: C, value: "2"}, {name: B, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]
        resources: {limits: {cpu: %[2]s}, requests: {}}
        securityContext: {}
      volumes: [{name: v, emptyDir: {}}, {name: c, configMap: {name: x, items: [{key: a, path: b}]}}]
      tolerations: [{key: a, operator: Exists}]
`,
	`apiVersion: batch/v1
kind: CronJob
metadata: {name: %[1]s}
spec:
  schedule: "0 0 1 1 *"
  suspend: true
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: "registry.example/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}]}}}}
`,
	"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %[1]s}\nspec: {podSelector: {matchLabels: {app: x}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}], policyTypes: [Ingress]}\n",
	"apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: %[1]s}\nrules: [{apiGroups: [\"\"], resources: [configmaps], verbs: [get, list]}, {apiGroups: [apps], resources: [deployments], verbs: [get]}]\n",
	"apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: %[1]s}\nspec: {minAvailable: 50%%, selector: {matchLabels: {app: x}}}\n",
	"apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: %[1]s}\nspec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: x}, maxReplicas: 3, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}\n",
	"apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %[1]s}\nspec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1024Mi}}}\n",
	`apiVersion: property.example/v1
kind: KINDS
metadata: {name: %[1]s}
spec:
  size: 50%%
  mode: fast
  extra: {a: {b: [1, 2.5, {c: null}]}, empty: {}, list: []}
  template: {apiVersion: v1, kind: ConfigMap, metadata: {name: inner}, data: {a: b}}
  tags: [a, b]
  plain: [a, b]
  steps: [{run: a}, {run: b, env: {}}]
  parts: [{name: a, note: x}, {name: b, weight: 2}]
`,
}

// property is what is known about one object that is edited.
type property struct {
	o      *desired
	res    resource
	client dynamic.ResourceInterface
}

// propertyWorld deploys every subject once.
func propertyWorld(t *testing.T, r *rand.Rand) (*Target, []*property) {
	t.Helper()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	plural := "widgets" + strings.ReplaceAll(ns, "-", "")
	kind := strings.ToUpper(plural[:1]) + plural[1:]
	kinds := strings.NewReplacer("KINDS", kind, "KIND", plural)
	crds := d.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	def := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(kinds.Replace(widgets)), &def.Object); err != nil {
		t.Fatal(err)
	}
	if _, err := crds.Create(t.Context(), def, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = crds.Delete(context.WithoutCancel(t.Context()), def.GetName(), metav1.DeleteOptions{}) })
	custom := KindImages{Kind: kind + ".property.example", None: true}
	cfg := clusterConfig(t, env.Config, nil)
	cfg.Kinds = []KindImages{custom}
	c, err := NewCluster(cfg) // its watches do not run: the test is what tells of events
	if err != nil {
		t.Fatal(err)
	}
	tt, err := New(c, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for i, s := range subjects {
		files[fmt.Sprintf("%02d.yaml", i)] = fmt.Sprintf(kinds.Replace(s)+"%.0[2]s", fmt.Sprintf("s-%d-%d", i, r.IntN(1000)), pick(r, "1000m", `"1"`))
	}
	var ren *rendering
	for end := time.Now().Add(30 * time.Second); ; { // the new kind is served a moment later
		rendered := mustRender(t, tt, files)
		ren = rendered.Private.(*rendering)
		if _, err := tt.Plan(t.Context(), rendered); err == nil || time.Now().After(end) {
			break
		}
	}
	deploy(t, tt, files)
	var out []*property
	for _, o := range ren.objects {
		placed, res, err := tt.place(t.Context(), ren, o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, &property{placed, res, c.client(res, ns)})
	}
	return tt, out
}

// edit makes some edit of the object, of which the server may refuse many, and says
// what it was; "" if it was refused.
func (p *property) edit(ctx context.Context, r *rand.Rand) string {
	live, err := p.client.Get(ctx, p.o.id.Name, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	manager := []string{"editor", "kubectl-edit", "holdfast"}[r.IntN(3)]
	switch r.IntN(12) {
	case 0: // nobody is said to manage it any more
		_, err = p.client.Patch(ctx, p.o.id.Name, types.MergePatchType, []byte(`{"metadata":{"managedFields":[{}]}}`), metav1.PatchOptions{FieldManager: manager})
		return accepted("managed fields cleared", err)
	case 1: // another object takes its place
		if err := p.client.Delete(ctx, p.o.id.Name, metav1.DeleteOptions{}); err != nil {
			return ""
		}
		again := &unstructured.Unstructured{Object: content(live.Object)}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			again.SetFinalizers(nil)
			if _, err = p.client.Create(ctx, again, metav1.CreateOptions{FieldManager: manager}); err == nil {
				break
			}
		}
		return accepted("made anew by "+manager, err)
	case 2: // our entry is cut
		entries := live.GetManagedFields()
		for i, e := range entries {
			if e.Manager == "holdfast" && e.FieldsV1 != nil {
				set := fieldpath.NewSet()
				if set.FromJSON(e.FieldsV1.GetRawReader()) != nil {
					return ""
				}
				var leaves []fieldpath.Path
				set.Leaves().Iterate(func(f fieldpath.Path) { leaves = append(leaves, f.Copy()) })
				if len(leaves) == 0 {
					return ""
				}
				gone := leaves[r.IntN(len(leaves))]
				b, err := set.Difference(fieldpath.NewSet(gone)).ToJSON()
				if err != nil {
					return ""
				}
				entries[i].FieldsV1 = metav1.NewFieldsV1(string(b))
				live.SetManagedFields(entries)
				_, err = p.client.Update(ctx, live, metav1.UpdateOptions{FieldManager: manager})
				return accepted("our entry without "+gone.String(), err)
			}
		}
		return ""
	case 3: // a field is taken by force, and given another value or not
		body := map[string]any{"apiVersion": live.GetAPIVersion(), "kind": live.GetKind(), "metadata": map[string]any{"name": live.GetName(), "labels": map[string]any{"app": pick(r, "x", "y")}}}
		b := mustJSON(body)
		yes := true
		_, err = p.client.Patch(ctx, p.o.id.Name, types.ApplyPatchType, b, metav1.PatchOptions{FieldManager: "taker", Force: &yes})
		return accepted("applied by force: "+string(b), err)
	}
	var where string
	for range 1 + r.IntN(2) {
		where += mutateValue(r, live.Object, "")
	}
	if where == "" {
		return ""
	}
	_, err = p.client.Update(ctx, live, metav1.UpdateOptions{FieldManager: manager})
	return accepted(manager+":"+where, err)
}

// accepted returns what was done, unless the server refused it.
func accepted(what string, err error) string {
	if err != nil {
		return ""
	}
	return what
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// mutateValue changes something somewhere in v, and says what.
func mutateValue(r *rand.Rand, v any, at string) string {
	switch v := v.(type) {
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		if at == "" {
			keys = slices.DeleteFunc(keys, func(k string) bool { return k == "apiVersion" || k == "kind" || k == "status" })
		}
		if at == "/metadata" {
			keys = []string{"labels", "annotations"}
			for _, k := range keys {
				if v[k] == nil {
					v[k] = map[string]any{}
				}
			}
		}
		if len(keys) == 0 || r.IntN(8) == 0 && at != "" && at != "/metadata" {
			k := pick(r, "added", "hostPID", "immutable", "paused", "a", "note")
			v[k] = pick[any](r, "x", int64(7), true, map[string]any{}, map[string]any{"b": "c"}, []any{})
			return " +" + at + "/" + k
		}
		k := keys[r.IntN(len(keys))]
		switch e := v[k].(type) {
		case map[string]any, []any:
			if r.IntN(12) == 0 && at != "" {
				delete(v, k)
				return " -" + at + "/" + k
			}
			return mutateList(r, v, k, e, at)
		default:
			if r.IntN(6) == 0 {
				delete(v, k)
				return " -" + at + "/" + k
			}
			v[k] = another(r, e)
			return " ~" + at + "/" + k
		}
	}
	return ""
}

// mutateList changes a list, or what is in a map or a list.
func mutateList(r *rand.Rand, m map[string]any, k string, e any, at string) string {
	list, ok := e.([]any)
	if !ok {
		return mutateValue(r, e, at+"/"+k)
	}
	switch n := len(list); {
	case n == 0 || r.IntN(4) == 0:
		fresh := pick[any](r, "x", "y")
		if n > 0 {
			if o, isMap := list[0].(map[string]any); isMap {
				c := maps.Clone(o)
				for _, f := range []string{"name", "key", "containerPort", "port"} {
					if _, ok := c[f]; ok {
						c[f] = another(r, c[f])
					}
				}
				fresh = c
			}
		}
		m[k] = append(list, fresh)
		return " +" + at + "/" + k
	case n > 1 && r.IntN(3) == 0:
		slices.Reverse(list)
		return " reversed " + at + "/" + k
	case r.IntN(4) == 0:
		i := r.IntN(n)
		m[k] = slices.Delete(list, i, i+1)
		return fmt.Sprintf(" -%s/%s/%d", at, k, i)
	default:
		i := r.IntN(n)
		if o, isMap := list[i].(map[string]any); isMap {
			return mutateValue(r, o, fmt.Sprintf("%s/%s/%d", at, k, i))
		}
		list[i] = another(r, list[i])
		return fmt.Sprintf(" ~%s/%s/%d", at, k, i)
	}
}

func another(r *rand.Rand, v any) any {
	switch v := v.(type) {
	case string:
		return pick(r, v+"x", "other", "", "1", "500m", "UDP", "Always", "10.0.0.1", "AAEC")
	case int64:
		return v + int64(r.IntN(3)) - 1
	case float64:
		return v + 1
	case bool:
		return !v
	}
	return "was null"
}

func TestComparisonAgainstTheServer(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	tt, objects := propertyWorld(t, r)
	c, edits, drifted, spare, foretold := tt.c, 0, 0, 0, 0
	want := cases(t, 250)
	for tries := 0; edits < want && tries < 20*want; tries++ {
		p := objects[r.IntN(len(objects))]
		c.mu.Lock()
		tr := c.tracked[p.o.id]
		c.mu.Unlock()
		if tr == nil {
			t.Fatalf("%s is not remembered", p.o.id)
		}
		what := p.edit(t.Context(), r)
		if what == "" {
			continue
		}
		edits++
		live, after := p.oracle(t, tt)
		differs := after == nil || p.differs(tt, live, after)
		candidate := live == nil || !c.same(tr, p.o.id, live)
		switch {
		case differs && !candidate:
			t.Errorf("%s: an edit was not seen:%s\n%s", p.o.id, what, mustJSON(live.Object))
		case differs:
			drifted++
		case candidate:
			spare++
		}
		if live != nil {
			if ch := tt.certain(p.o, p.res, live, map[plan.ObjectID]bool{p.o.id: true}); ch != nil {
				foretold++
				p.sameChange(t, tt, ch, live, after, what)
			}
		}
		p.restore(t, tt)
	}
	t.Logf("%d edits, of which %d would change by an apply, %d of them foretold, and %d cost a question in vain", edits, drifted, foretold, spare)
	if edits < want || drifted < want/4 || foretold < drifted/8 {
		t.Errorf("%d edits, %d of them drift, %d foretold: this shows little", edits, drifted, foretold)
	}
}

// sameChange compares a change that was foretold with what the server says.
func (p *property) sameChange(t testing.TB, tt *Target, ch *change, live, after *unstructured.Unstructured, what string) {
	t.Helper()
	if after == nil {
		t.Errorf("%s: foretold, and the server refuses it, after%s", p.o.id, what)
		return
	}
	ds := compare("", tt.masked(content(live.Object)), tt.masked(content(after.Object)), nil)
	tt.c.owned(live, ds)
	if want := shown(ds); !equalJSON(ch.Fields, want) {
		t.Errorf("%s: foretold %s, the server says %s, after%s", p.o.id, mustJSON(ch.Fields), mustJSON(want), what)
	}
	left, err := tt.c.foreign(p.o, after, tt.c.entry(after))
	if err != nil || len(left) > 0 {
		t.Errorf("%s: foretold, and %v is foreign (%v), after%s", p.o.id, left, err, what)
	}
}

func (p *property) differs(tt *Target, live, after *unstructured.Unstructured) bool {
	return !equalJSON(content(live.Object), content(after.Object)) || tt.c.fieldSet(live) != tt.c.fieldSet(after)
}

// oracle returns the live object, and what a forced apply would make of it: nil if the
// server refuses it, which is drift all the same. Both are about one version: controllers
// go on working.
func (p *property) oracle(t testing.TB, tt *Target) (live, after *unstructured.Unstructured) {
	t.Helper()
	for range 20 {
		live, err := tt.c.self.get(t.Context(), p.res, p.o.id)
		if err != nil {
			t.Fatal(err)
		}
		if live == nil {
			return nil, nil
		}
		after, err := tt.c.self.apply(t.Context(), p.res, with(p.o.u, map[string]any{"resourceVersion": live.GetResourceVersion()}), true)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			return live, nil
		}
		return live, after
	}
	t.Fatalf("%s is written all the time", p.o.id)
	return nil, nil
}

// restore brings the object back, and remembers it as the daemon would.
func (p *property) restore(t testing.TB, tt *Target) {
	t.Helper()
	for range 5 {
		live, err := tt.c.self.apply(t.Context(), p.res, p.o.u, false)
		if err == nil {
			// What an apply leaves behind, another manager's additions, goes with the object.
			if left, ferr := tt.c.foreign(p.o, live, tt.c.entry(live)); ferr == nil && len(left) == 0 && len(live.GetManagedFields()) < 8 {
				tt.c.clean(tt, p.o, live, true, true)
				return
			}
		}
		if err := p.client.Delete(t.Context(), p.o.id.Name, metav1.DeleteOptions{}); err != nil {
			t.Logf("%s: %v", p.o.id, err)
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			live, err := tt.c.self.get(t.Context(), p.res, p.o.id)
			if err == nil && live == nil {
				break
			}
			if live != nil && len(live.GetFinalizers()) > 0 {
				_, _ = p.client.Patch(t.Context(), p.o.id.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			}
		}
	}
	t.Fatalf("%s cannot be restored", p.o.id)
}

// closedFor says, apart from the tables that the code uses, where an object of a kind
// is closed, for the kinds of the test.
func closedFor(kind string, path fieldpath.Path) bool {
	var names []string
	for _, pe := range path {
		if pe.FieldName != nil {
			names = append(names, *pe.FieldName)
		}
	}
	has := func(prefix ...string) bool {
		return len(names) >= len(prefix) && slices.Equal(names[:len(prefix)], prefix)
	}
	pod := func(prefix ...string) bool {
		return has(prefix...) && !slices.Contains(names[len(prefix):], "resources")
	}
	switch kind {
	case "ConfigMap", "Secret":
		return has("data") || has("binaryData") || has("immutable")
	case "Deployment.apps":
		return pod("spec", "template", "spec") || has("spec", "paused")
	case "CronJob.batch":
		return pod("spec", "jobTemplate", "spec", "template", "spec") || has("spec", "timeZone") || has("spec", "suspend")
	case "Role.rbac.authorization.k8s.io":
		return has("rules")
	case "NetworkPolicy.networking.k8s.io":
		return has("spec")
	}
	return false
}

// What others own in closed places and we do not is found, all of it and nothing else.
func TestForeignFieldsAgainstTheLibrary(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	tt, objects := propertyWorld(t, r)
	objects = slices.DeleteFunc(objects, func(p *property) bool {
		return !slices.Contains([]string{"ConfigMap", "Secret", "Deployment.apps", "CronJob.batch", "Role.rbac.authorization.k8s.io", "NetworkPolicy.networking.k8s.io"}, p.o.id.Kind)
	})
	want, edits, found := cases(t, 120), 0, 0
	for tries := 0; edits < want && tries < 20*want; tries++ {
		p := objects[r.IntN(len(objects))]
		live, err := p.client.Get(t.Context(), p.o.id.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		what := mutateValue(r, live.Object, "")
		for range r.IntN(4) {
			what += addSomething(r, p.o.id.Kind, live.Object)
		}
		if _, err := p.client.Update(t.Context(), live, metav1.UpdateOptions{FieldManager: "editor"}); err != nil || what == "" {
			continue
		}
		edits++
		after, err := tt.c.self.apply(t.Context(), p.res, p.o.u, false) // what is left is what others added
		if err == nil {
			found += p.compareForeign(t, tt, after, what)
		}
		p.restore(t, tt)
	}
	t.Logf("%d edits, %d left something foreign", edits, found)
	if edits < want || found < want/20 {
		t.Errorf("%d edits, %d of them foreign: this shows little", edits, found)
	}
}

// addSomething adds what somebody might, where an object of the kind is closed.
func addSomething(r *rand.Rand, kind string, live map[string]any) string {
	pod := map[string][]string{"Deployment.apps": {"spec", "template", "spec"}, "CronJob.batch": {"spec", "jobTemplate", "spec", "template", "spec"}}[kind]
	if pod == nil {
		switch kind {
		case "ConfigMap":
			f := pick(r, "data", "binaryData")
			m, _ := live[f].(map[string]any)
			if m == nil {
				return ""
			}
			m[pick(r, "x", "y.conf", "z~/")] = pick(r, "AAEC", "AAED")
			return " +" + f
		case "Secret":
			if m, _ := live["data"].(map[string]any); m != nil {
				m["x"] = "AAEC"
			}
			return " +data"
		case "Role.rbac.authorization.k8s.io":
			rules, _ := live["rules"].([]any)
			live["rules"] = append(rules, map[string]any{"apiGroups": []any{""}, "resources": []any{"secrets"}, "verbs": []any{"get"}})
			return " +rules"
		}
		return ""
	}
	spec, ok, _ := unstructured.NestedFieldNoCopy(live, pod...)
	m, _ := spec.(map[string]any)
	if !ok || m == nil {
		return ""
	}
	containers, _ := m["containers"].([]any)
	if len(containers) == 0 {
		return ""
	}
	c, _ := containers[0].(map[string]any)
	list := func(m map[string]any, f string, e any) {
		l, _ := m[f].([]any)
		m[f] = append(l, e)
	}
	name := fmt.Sprintf("p%d", r.IntN(1000)) // of two of one name, which the server lets be, the library knows one
	switch r.IntN(9) {
	case 0:
		m["hostPID"] = true
	case 1:
		m["nodeSelector"] = map[string]any{name: "x"}
	case 2:
		list(m, "volumes", map[string]any{"name": name, "hostPath": map[string]any{"path": "/"}})
	case 3:
		list(m, "tolerations", map[string]any{"key": name, "operator": "Exists"})
	case 4:
		list(m, "containers", map[string]any{"name": name, "image": "registry.example/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"})
	case 5:
		list(c, "env", map[string]any{"name": name, "value": "x"})
	case 6:
		list(c, "args", name)
	case 7:
		c["securityContext"] = map[string]any{"privileged": true}
	case 8:
		c["resources"] = map[string]any{"requests": map[string]any{"cpu": "1"}}
	}
	return " +" + name
}

// compareForeign compares what is found with the sets of the library, and returns 1 if
// there was something.
func (p *property) compareForeign(t testing.TB, tt *Target, live *unstructured.Unstructured, what string) int {
	t.Helper()
	ours, others, err := tt.c.fieldSets(live, []string{tt.c.cfg.FieldManager})
	if err != nil {
		t.Fatal(err)
	}
	var expected []string
	others.Leaves().Difference(ours).Iterate(func(f fieldpath.Path) {
		if ours.Has(f) || !closedFor(p.o.id.Kind, f) {
			return
		}
		if tokens, ok := pointerOfPath(live.Object, f); ok {
			expected = append(expected, pointerOf(tokens))
		}
	})
	places, err := tt.c.foreign(p.o, live, tt.c.entry(live))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, pl := range places {
		if len(pl.owners) > 0 { // what nobody owns is judged by other rules
			got = append(got, pl.pointer())
		}
	}
	for _, e := range expected {
		if !slices.ContainsFunc(got, func(g string) bool { return plan.Within(g, e) }) {
			t.Errorf("%s: %s was not found, after%s; found %v", p.o.id, e, what, got)
		}
	}
	for _, g := range got {
		if !slices.ContainsFunc(expected, func(e string) bool { return plan.Within(g, e) }) {
			t.Errorf("%s: %s is nobody else's, after%s; expected %v", p.o.id, g, what, expected)
		}
	}
	return min(1, len(expected))
}

// pointerOfPath finds a path of the library in an object.
func pointerOfPath(v any, f fieldpath.Path) (tokens []string, ok bool) {
	for _, pe := range f {
		i, ok := elementAt(v, pe)
		if !ok {
			return nil, false
		}
		switch x := v.(type) {
		case map[string]any:
			tokens, v = append(tokens, *pe.FieldName), x[*pe.FieldName]
		case []any:
			tokens, v = append(tokens, strconv.Itoa(i)), x[i]
		}
	}
	return tokens, true
}
