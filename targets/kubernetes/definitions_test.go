package kubernetes

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// A definition that changes has the objects of its kind looked at anew, and a mutating
// webhook all of them, although nothing is heard of the objects themselves.
func TestDefinitionsThatChange(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	cr, crd, name := customResource(ns)
	group := strings.ReplaceAll(ns, "t-", "g-") + ".holdfast.example" // other tests define kinds too
	move := strings.NewReplacer("test.holdfast.example", group)
	cr, crd, name = move.Replace(cr), move.Replace(crd), move.Replace(name)
	t.Cleanup(func() {
		_ = d.Resource(crdGVR).Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	for _, kind := range definitions[:2] {
		t.Run(kind.Kind, func(t *testing.T) {
			var asked requests
			c, err := NewCluster(clusterConfig(t, asked.of(env.Config), nil))
			if err != nil {
				t.Fatal(err)
			}
			c.definitions = []schema.GroupVersionKind{kind}
			running(t, c)
			tt, err := New(c, spec(ns, func(s *Spec) { s.Allow.Kinds = []string{"*", crdKind.String()} }))
			if err != nil {
				t.Fatal(err)
			}
			declareNone(tt, cr)
			r := deploy(t, tt, map[string]string{"a.yaml": cr, "b.yaml": crd, "c.yaml": configMap("c", "1")})
			observe(t, tt, r)
			settled := func() bool {
				for _, o := range r.Private.(*rendering).objects {
					if !c.stands(tt, o) {
						return false
					}
				}
				return true
			}
			until(t, settled)
			until(t, func() bool { // the watch of definitions has begun
				if kind.Kind == crdKind.Kind {
					jsonPatch(t, d.Resource(crdGVR), name, `[{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns", "value": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]}]`)
					jsonPatch(t, d.Resource(crdGVR), name, `[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}]`)
				} else {
					webhook := &unstructured.Unstructured{Object: map[string]any{
						"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind.Kind, "metadata": map[string]any{"name": group}, "webhooks": []any{},
					}}
					in := d.Resource(schema.GroupVersionResource{Group: kind.Group, Version: "v1", Resource: "mutatingwebhookconfigurations"})
					if _, err := in.Create(t.Context(), webhook, metav1.CreateOptions{}); err != nil {
						t.Fatal(err)
					}
					if err := in.Delete(t.Context(), group, metav1.DeleteOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				return strings.Contains(asked.take(), "dry PATCH")
			})
			until(t, settled)
		})
	}
}
