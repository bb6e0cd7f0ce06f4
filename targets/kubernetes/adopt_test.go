package kubernetes

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// legacy is a Deployment as another tool left it: with a label, an annotation, a
// volume, an env and a sidecar that the stack does not declare.
func legacy(t testing.TB) *unstructured.Unstructured {
	t.Helper()
	ds, err := decode("d.yaml", []byte(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {team: old}, annotations: {old.example.com/note: x}}
spec:
  replicas: 0
  progressDeadlineSeconds: 99
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      volumes: [{name: cache, emptyDir: {}}]
      containers:
      - name: web
        image: registry.example/web:old
        env: [{name: OLD, value: x}]
      - {name: sidecar, image: 'registry.example/sidecar:old'}
`))
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: ds[0].value}
}

// TestAdoptFrom takes over what kubectl, Helm and another server-side applier made.
func TestAdoptFrom(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for manager, write := range map[string]func(t *testing.T, r dynamic.ResourceInterface, u *unstructured.Unstructured){
		"kubectl-client-side-apply": func(t *testing.T, r dynamic.ResourceInterface, u *unstructured.Unstructured) {
			b, err := json.Marshal(u.Object)
			if err != nil {
				t.Fatal(err)
			}
			notes := u.GetAnnotations()
			notes[lastApplied] = string(b) + "\n" // as kubectl apply does
			u.SetAnnotations(notes)
			if _, err := r.Create(t.Context(), u, metav1.CreateOptions{FieldManager: "kubectl-client-side-apply"}); err != nil {
				t.Fatal(err)
			}
		},
		"helm": func(t *testing.T, r dynamic.ResourceInterface, u *unstructured.Unstructured) {
			if _, err := r.Create(t.Context(), u, metav1.CreateOptions{FieldManager: "helm"}); err != nil {
				t.Fatal(err)
			}
		},
		"kustomize-controller": func(t *testing.T, r dynamic.ResourceInterface, u *unstructured.Unstructured) {
			if _, err := r.Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "kustomize-controller"}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(manager, func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			write(t, d.Resource(gvrs["deployments"]).Namespace(ns), legacy(t))
			edit(t, d, "someone", "deployments", ns, "web", `{"metadata":{"annotations":{"someone.example.com/note":"y"}}}`)
			files := map[string]string{"d.yaml": deployment}
			tt := target(t, c.Config, ns, nil, func(s *Spec) {
				s.Adopt, s.AdoptFrom = true, []string{"kubectl-client-side-apply", "helm", "kustomize-controller"}
			})
			p := mustPlan(t, tt, mustRender(t, tt, files))
			if len(p.Changes) != 1 || !strings.HasPrefix(p.Changes[0].Reason, "adopted from ") || !strings.Contains(p.Changes[0].Reason, manager) {
				t.Fatalf("changes: %s", mustJSON(p.Changes))
			}
			shown := map[string]plan.Field{}
			for _, f := range p.Changes[0].Fields {
				shown[f.Path] = f
			}
			for _, path := range []string{
				"/metadata/labels/team", "/metadata/annotations/old.example.com~1note", "/spec/template/spec/volumes",
				"/spec/template/spec/containers/0/env", "/spec/template/spec/containers/1",
			} {
				if f, ok := shown[path]; !ok || f.From == "" || f.To != "" {
					t.Errorf("%s is not shown to go: %+v", path, f)
				}
			}
			if f := shown["/spec/progressDeadlineSeconds"]; f.From != "99" || f.To != "600" {
				t.Errorf("a field that goes back to its default: %+v", f)
			}
			for path := range shown {
				if strings.Contains(path, "someone") || strings.Contains(path, "dnsPolicy") || strings.Contains(path, "revisionHistoryLimit") {
					t.Errorf("%s is not to change: %+v", path, shown[path])
				}
			}
			if _, ok := shown["/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"]; ok != (manager == "kubectl-client-side-apply") {
				t.Errorf("the last applied configuration is shown: %v", ok)
			}
			if strings.Contains(string(mustJSON(p)), `last-applied-configuration","from":"\"{`) {
				t.Error("the plan holds the last applied configuration")
			}

			r := deploy(t, tt, files)
			u := getObject(t, d, "deployments", ns, "web")
			text := string(mustJSON(content(u.Object)))
			for _, gone := range []string{"sidecar", "OLD", "cache", "old.example.com", `"team"`, "last-applied", "web:old"} {
				if strings.Contains(text, gone) {
					t.Errorf("%s is still there: %s", gone, text)
				}
			}
			if !strings.Contains(text, "someone.example.com/note") || !strings.Contains(text, `"progressDeadlineSeconds":600`) {
				t.Errorf("too much is gone: %s", text)
			}
			if slices.ContainsFunc(u.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager == manager && e.Subresource == "" }) {
				t.Errorf("%s still manages fields: %s", manager, mustJSON(u.GetManagedFields()))
			}
			if p := mustPlan(t, tt, r); !p.Empty() {
				t.Errorf("after the adoption: %s", mustJSON(p.Changes))
			}
		})
	}
}

// TestAdoptLeavesOthers: without AdoptFrom what others set stays.
func TestAdoptLeavesOthers(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Create(t.Context(), legacy(t), metav1.CreateOptions{FieldManager: "helm"}); err != nil {
		t.Fatal(err)
	}
	tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Adopt, s.AdoptFrom = true, []string{"kubectl-client-side-apply"} })
	deploy(t, tt, map[string]string{"d.yaml": deployment})
	text := string(mustJSON(content(getObject(t, d, "deployments", ns, "web").Object)))
	for _, kept := range []string{`"team":"old"`, "old.example.com/note", `"progressDeadlineSeconds":99`} {
		if !strings.Contains(text, kept) {
			t.Errorf("%s is gone: %s", kept, text)
		}
	}
}

// TestAdoptIsAsJudged: what moves between the plan and the apply stops it before
// anything is taken over.
func TestAdoptIsAsJudged(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	if _, err := d.Resource(gvrs["deployments"]).Namespace(ns).Create(t.Context(), legacy(t), metav1.CreateOptions{FieldManager: "helm"}); err != nil {
		t.Fatal(err)
	}
	tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Adopt, s.AdoptFrom = true, []string{"helm"} })
	p := mustPlan(t, tt, mustRender(t, tt, map[string]string{"d.yaml": deployment}))
	edit(t, d, "helm", "deployments", ns, "web", `{"metadata":{"labels":{"team":"new"}}}`)
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("after an edit: %v", err)
	}
	u := getObject(t, d, "deployments", ns, "web")
	if u.GetLabels()["team"] != "new" || tt.c.entry(u) != nil {
		t.Errorf("it was written: %s", mustJSON(u.Object))
	}
	// A takeover that was cut off after its first step is completed by the next plan.
	priv := mustPlan(t, tt, mustRender(t, tt, map[string]string{"d.yaml": deployment})).Private.(*planned)
	if len(priv.changes) != 1 || len(priv.changes[0].takes) != 1 {
		t.Fatalf("changes: %+v", priv.changes)
	}
	if _, err := (&writer{t: tt, priv: priv}).union(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := tt.migrate(t.Context(), &priv.changes[0]); err != nil {
		t.Fatal(err)
	}
	deploy(t, tt, map[string]string{"d.yaml": deployment})
	if text := string(mustJSON(content(getObject(t, d, "deployments", ns, "web").Object))); strings.Contains(text, "sidecar") || strings.Contains(text, `"team"`) {
		t.Errorf("left behind: %s", text)
	}
}
