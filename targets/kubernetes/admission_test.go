package kubernetes

import (
	"context"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

func TestAdmissionPolicyRefuses(t *testing.T) {
	t.Parallel()
	for name, conf := range map[string]AdmissionConfig{
		"no users": {Name: "a", Action: AdmissionDeny}, "no action": {Name: "a", Users: []string{"u"}}, "another action": {Name: "a", Action: "Deny", Users: []string{"u"}},
		"no name": {Action: AdmissionDeny, Users: []string{"u"}},
	} {
		if b, err := AdmissionPolicy(conf); err == nil {
			t.Errorf("%s:\n%s", name, b)
		}
	}
	b, err := AdmissionPolicy(AdmissionConfig{Name: "a", Action: AdmissionDeny, Users: []string{`it's "me"\`}})
	var policy map[string]any
	if err == nil {
		err = yaml.Unmarshal(b[:strings.LastIndex(string(b), "---\n")], &policy)
	}
	conditions, _, _ := unstructured.NestedSlice(policy, "spec", "matchConditions")
	if err != nil || len(conditions) != 1 || !strings.Contains(conditions[0].(map[string]any)["expression"].(string), `'it\'s "me"\\'`) {
		t.Errorf("%v\n%v", err, conditions)
	}
}

// A real API server keeps everybody out but Holdfast, the account of the stack and
// Kubernetes itself, and lets through what is no part of a declaration.
func TestAdmissionPolicy(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	holdfast := env.User("holdfast-"+ns, "system:masters")
	tt := target(t, holdfast, ns, nil, nil)
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "d.yaml": deployment, "gone.yaml": configMap("gone", "1")})
	text, err := AdmissionPolicy(AdmissionConfig{Name: ns, Action: AdmissionDeny, Namespaces: []string{ns},
		Users: []string{"holdfast-" + ns, "system:serviceaccount:{namespace}:deployer"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "---\n")[1:] {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		kinds := d.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1",
			Resource: map[string]string{"ValidatingAdmissionPolicy": "validatingadmissionpolicies", "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings"}[u.GetKind()]})
		if _, err := kinds.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kinds.Delete(context.WithoutCancel(t.Context()), u.GetName(), metav1.DeleteOptions{}) })
	}
	somebody := dyn(t, env.User("carol", "system:masters"))
	maps := somebody.Resource(gvrs["configmaps"]).Namespace(ns)
	patch := func(kind, name, body string, sub ...string) error {
		_, err := somebody.Resource(gvrs[kind]).Namespace(ns).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	for end := time.Now().Add(30 * time.Second); ; { // the API server takes a moment to take it up
		if err = patch("configmaps", "a", `{"data":{"key":"2"}}`); err != nil || time.Now().After(end) {
			break
		}
		deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "d.yaml": deployment, "gone.yaml": configMap("gone", "1")})
	}
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "managed by Holdfast (stack "+tt.owner+"): change it in the repository") {
		t.Fatalf("an edit: %v", err)
	}
	for name, err := range map[string]error{
		"a key":      patch("configmaps", "a", `{"data":{"other":"2"}}`),
		"a field":    patch("configmaps", "a", `{"immutable":true}`),
		"our mark":   patch("configmaps", "a", `{"metadata":{"annotations":{"holdfast.dev/stack":null}}}`),
		"our label":  patch("configmaps", "a", `{"metadata":{"labels":{"holdfast.dev/managed":null}}}`),
		"replicas":   patch("deployments", "web", `{"spec":{"replicas":3}}`),
		"a deletion": maps.Delete(t.Context(), "a", metav1.DeleteOptions{}),
		"a fake": func() error {
			u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "fake", "labels": map[string]any{ManagedLabel: "true"}}}}
			_, err := maps.Create(t.Context(), u, metav1.CreateOptions{})
			return err
		}(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"a label of another tool": patch("configmaps", "a", `{"metadata":{"labels":{"team":"shop"}}}`),
		"breaking the glass":      patch("configmaps", "a", `{"metadata":{"annotations":{"holdfast.dev/break-glass":"2099-01-01T00:00:00Z"}}}`),
		"the scale subresource":   patch("deployments", "web", `{"spec":{"replicas":1}}`, "scale"),
		"what is not managed":     patch("configmaps", "kube-root-ca.crt", `{"data":{"x":"y"}}`),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The account of the stack, in its own namespace; Holdfast itself; and controllers.
	account := dyn(t, env.User("system:serviceaccount:"+ns+":deployer", "system:masters"))
	if _, err := account.Resource(gvrs["configmaps"]).Namespace(ns).Patch(t.Context(), "a", types.MergePatchType, []byte(`{"data":{"key":"2"}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("the account of the stack: %v", err)
	}
	stranger := dyn(t, env.User("system:serviceaccount:other:deployer", "system:masters"))
	if _, err := stranger.Resource(gvrs["configmaps"]).Namespace(ns).Patch(t.Context(), "a", types.MergePatchType, []byte(`{"data":{"key":"3"}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("an account of its name elsewhere: %v", err)
	}
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "d.yaml": deployment}) // and prunes
	if _, err := maps.Get(t.Context(), "gone", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("Holdfast cannot prune: %v", err)
	}
}
