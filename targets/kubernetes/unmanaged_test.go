package kubernetes

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
)

// What no stack declares is listed, with who manages it: not what controllers and
// Kubernetes make, nor what another stack has, but what only claims to be ours.
func TestUnmanaged(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	conf := rest.CopyConfig(env.Config)
	conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/"+ns+"/secrets") {
				return &http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody, Request: r, Header: http.Header{}}, nil
			}
			return rt.RoundTrip(r)
		})
	})
	c := cluster(t, conf, nil)
	stack := func(name string) *Target {
		t.Helper()
		tt, err := New(c, spec(ns, func(s *Spec) { s.Stack = name + "-" + ns }))
		if err != nil {
			t.Fatal(err)
		}
		return tt
	}
	tt := stack("one")
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "d.yaml": strings.Replace(deployment, "replicas: 0", "replicas: 1", 1)})
	deploy(t, stack("two"), map[string]string{"b.yaml": configMap("b", "1")})
	until(t, func() bool { // the Deployment has a ReplicaSet, which is none of ours either
		list, err := d.Resource(gvrs["deployments"].GroupVersion().WithResource("replicasets")).Namespace(ns).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) > 0
	})
	for name, annotations := range map[string]map[string]any{"stray": nil, "forged": {OwnerAnnotation: "test/one-" + ns}} {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{
			"name": name, "annotations": annotations, "labels": map[string]any{ManagedLabel: "true"}}}}
		if _, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{FieldManager: "carol"}); err != nil {
			t.Fatal(err)
		}
	}
	done := map[string]bool{}
	found, unseen, err := tt.Unmanaged(t.Context(), r, done)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range found {
		names = append(names, f.ID.Name)
		if f.Class != targets.Unmanaged || f.Actor != "carol" || f.Since.IsZero() {
			t.Errorf("finding: %s", mustJSON(f))
		}
	}
	if !slices.Equal(names, []string{"forged", "stray"}) {
		t.Errorf("found %s", mustJSON(found))
	}
	if !slices.Equal(unseen, []string{"secrets in " + ns}) {
		t.Errorf("unseen %v", unseen)
	}
	if found, _, err := tt.Unmanaged(t.Context(), r, done); err != nil || len(found) != 0 {
		t.Errorf("it was looked at: %s, %v", mustJSON(found), err)
	}
}
