package kubernetes

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// TestNoStackDeclaresTheDaemon renders what the rules of internal/daemon refuse,
// in each way that a rendering can come to it.
func TestNoStackDeclaresTheDaemon(t *testing.T) {
	t.Parallel()
	all := func(s *Spec) {
		s.Allow = Allow{Namespaces: []string{"*"}, Kinds: []string{"*", "Namespace", "ClusterRoleBinding.rbac.authorization.k8s.io", "CustomResourceDefinition.apiextensions.k8s.io", "MutatingWebhookConfiguration.admissionregistration.k8s.io", "ClusterRole.rbac.authorization.k8s.io"}}
	}
	folder := func(s *Spec) { all(s); s.Manifests, s.Kustomize = nil, "." }
	for name, tc := range map[string]struct {
		spec  func(*Spec)
		files map[string]string
		want  string
	}{
		"its namespace":            {all, map[string]string{"a.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: holdfast-system}\n"}, "Holdfast's own namespace"},
		"an object in it":          {all, map[string]string{"a.yaml": "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, namespace: holdfast-system}\n"}, "Holdfast's own namespace"},
		"the namespace of a stack": {func(s *Spec) { all(s); s.Namespace = "holdfast-system" }, map[string]string{"a.yaml": configMap("a", "1")}, "Holdfast's own namespace"},
		"a namespace transformer":  {folder, map[string]string{"kustomization.yaml": "namespace: holdfast-system\nresources: [a.yaml]\n", "a.yaml": configMap("a", "1")}, "Holdfast's own namespace"},
		"a patch of the namespace": {folder, map[string]string{"kustomization.yaml": "resources: [a.yaml]\npatches: [{patch: \"- {op: add, path: /metadata/namespace, value: holdfast-system}\", target: {kind: ConfigMap}}]\n", "a.yaml": configMap("a", "1")}, "Holdfast's own namespace"},
		"a label for all":          {folder, map[string]string{"kustomization.yaml": "resources: [a.yaml]\nlabels: [{pairs: {holdfast.dev/inventory: x}}]\n", "a.yaml": configMap("a", "1")}, "Holdfast's own"},
		"a variable":               {func(s *Spec) { all(s); s.Variables = map[string]string{"NS": "holdfast-system"} }, map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: '${NS}'}\n"}, "Holdfast's own namespace"},
		"an item of a list":        {all, map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: holdfast-system}}]\n"}, "Holdfast's own namespace"},
		"a binding of its account": {all, map[string]string{"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: admin}\nsubjects: [{kind: User, name: 'system:serviceaccount:ops:deployer'}]\n"}, "own service account"},
		"a role that reaches it": {all, map[string]string{
			"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: reader}\nrules: [{apiGroups: [''], resources: [secrets], verbs: [get]}]\n",
			"b.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: reader}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}\nsubjects: [{kind: User, name: eve}]\n",
		}, "grants get on secrets in every namespace"},
		"a mark in a template":   {all, map[string]string{"a.yaml": strings.Replace(deployment, "metadata: {labels: {app: web}}", "metadata: {labels: {app: web, holdfast.dev/managed: 'true'}}", 1)}, "Holdfast's own"},
		"its own mark, declared": {all, map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {holdfast.dev/stack: test/web-shop}}\n"}, "Holdfast's own"},
		"its API group":          {all, map[string]string{"a.yaml": "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: stacks.holdfast.dev}\nspec: {group: holdfast.dev}\n"}, "API group"},
		"a webhook on its pods":  {all, map[string]string{"a.yaml": "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: a}\nwebhooks: [{name: a.example.com, rules: [{apiGroups: [''], resources: [pods]}]}]\n"}, "intercepts objects in holdfast-system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := offline(t, tc.spec)
			tt.c.cfg.ServiceAccount = "system:serviceaccount:ops:deployer"
			_, err := tt.Render(t.Context(), snapshot(tc.files))
			if fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), tc.want) || !strings.Contains(fmt.Sprint(err), "yaml") || fault.HintOf(err) == "" {
				t.Errorf("%v (%v), hint %q; want %q", err, fault.KindOf(err), fault.HintOf(err), tc.want)
			}
		})
	}
}

// The operator may grant what operators of this kind need, by name.
func TestClusterPowers(t *testing.T) {
	t.Parallel()
	tt := offline(t, func(s *Spec) {
		s.Allow = Allow{Namespaces: []string{"*"}, Kinds: []string{"*", "ClusterRole.rbac.authorization.k8s.io", "ClusterRoleBinding.rbac.authorization.k8s.io"}, ClusterPowers: true}
	})
	_, err := tt.Render(t.Context(), snapshot(map[string]string{
		"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: reader}\nrules: [{apiGroups: [''], resources: [secrets], verbs: [get]}]\n",
		"b.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: reader}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}\nsubjects: [{kind: User, name: eve}]\n",
	}))
	if err != nil {
		t.Error(err)
	}
}

// TestNoStackPrunesOrAdoptsTheDaemon: what became Holdfast's own after a stack
// had it is neither written nor deleted, and what binds its account is not
// adopted.
func TestNoStackPrunesOrAdoptsTheDaemon(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	update := mustPlan(t, tt, mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "2"), "b.yaml": configMap("b", "1")}))
	prune := mustPlan(t, tt, mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1")}))
	if len(update.Changes) != 1 || len(prune.Changes) != 1 {
		t.Fatalf("plans: %s, %s", mustJSON(update.Changes), mustJSON(prune.Changes))
	}
	own, err := New(cluster(t, c.Config, nil), spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	own.c.cfg.Namespace = ns // as if the operator had moved Holdfast there
	for name, p := range map[string]any{"an update": update, "a prune": prune} {
		g := targetstest.Grant(t.Context(), t, update)
		if p, ok := p.(interface{ Summary() string }); ok && p.Summary() == prune.Summary() {
			g = targetstest.Grant(t.Context(), t, prune)
		}
		if _, err := own.Apply(t.Context(), g); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "Holdfast's own namespace") {
			t.Errorf("%s of what is Holdfast's own by now: %v", name, err)
		}
	}
	if v, _, _ := unstructured.NestedString(getObject(t, d, "configmaps", ns, "a").Object, "data", "key"); v != "1" {
		t.Errorf("it was written: %q", v)
	}
	getObject(t, d, "configmaps", ns, "b")

	binding := schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}
	text := func(account, space string) map[string]any {
		return map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "daemon-" + ns},
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
			"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": space}},
		}
	}
	if _, err := d.Resource(binding).Create(t.Context(), &unstructured.Unstructured{Object: text("holdfast", defaultNamespace)}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Resource(binding).Delete(context.Background(), "daemon-"+ns, metav1.DeleteOptions{}) })
	adopter := target(t, c.Config, ns, nil, func(s *Spec) {
		s.Stack, s.Adopt = "adopter-"+ns, true
		s.Allow.Kinds = []string{"ClusterRoleBinding.rbac.authorization.k8s.io"}
	})
	_, err = adopter.Plan(t.Context(), mustRender(t, adopter, map[string]string{"a.yaml": string(mustJSON(text("web", ns)))}))
	if fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "cannot be adopted") {
		t.Errorf("adopting the binding of Holdfast's account: %v", err)
	}
}

func TestUserOf(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:ops:deployer"}`)) + ".c2ln"
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		conf *rest.Config
		want string
	}{
		"a token":           {&rest.Config{BearerToken: token}, "system:serviceaccount:ops:deployer"},
		"a token in a file": {&rest.Config{BearerTokenFile: file}, "system:serviceaccount:ops:deployer"},
		"an opaque token":   {&rest.Config{BearerToken: "secret"}, ""},
		"a broken token":    {&rest.Config{BearerToken: "a.!.c"}, ""},
		"a certificate":     {testenv.SharedCluster(t).User("deployer"), "deployer"},
		"nothing":           {&rest.Config{}, ""},
	} {
		if got := UserOf(tc.conf); got != tc.want {
			t.Errorf("%s: %q; want %q", name, got, tc.want)
		}
	}
}
