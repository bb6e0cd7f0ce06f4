package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

func rbac(plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: plural}
}

// account makes a service account in ns and returns its name and how it signs in.
func account(t testing.TB, env *testenv.Cluster, ns string) (string, *rest.Config) {
	t.Helper()
	d := dyn(t, env.Config)
	accounts := d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace(ns)
	sa := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "deployer"}}}
	if _, err := accounts.Create(t.Context(), sa, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	request := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": map[string]any{"name": "deployer"}, "spec": map[string]any{}}}
	answer, err := accounts.Create(t.Context(), request, metav1.CreateOptions{}, "token")
	if err != nil {
		t.Fatal(err)
	}
	token, _, _ := unstructured.NestedString(answer.Object, "status", "token")
	conf := rest.AnonymousClientConfig(env.Config)
	conf.BearerToken, conf.QPS = token, -1
	return "system:serviceaccount:" + ns + ":deployer", conf
}

// create makes every object in a text of YAML documents.
func create(t testing.TB, d dynamic.Interface, text string) {
	t.Helper()
	plural := map[string]string{"Role": "roles", "RoleBinding": "rolebindings", "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings"}
	for _, doc := range strings.Split(text, "---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		var client dynamic.ResourceInterface = d.Resource(rbac(plural[u.GetKind()]))
		if ns := u.GetNamespace(); ns != "" {
			client = d.Resource(rbac(plural[u.GetKind()])).Namespace(ns)
		}
		if _, err := client.Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}

func missing(rights []Right) (out []string) {
	for _, r := range rights {
		if len(r.Missing) > 0 {
			out = append(out, fmt.Sprintf("%s/%s: %s", r.Namespace, r.Resource, strings.Join(r.Missing, " ")))
		}
	}
	return out
}

// An account with few rights is told exactly what it lacks; what GrantManifest
// writes is enough to deploy, and not more than was listed.
func TestAccess(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, own := testenv.Namespace(t, env), testenv.Namespace(t, env)
	name, conf := account(t, env, own)
	admin := dyn(t, env.Config)
	create(t, admin, fmt.Sprintf(`apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: some, namespace: %[1]s}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, patch]}
- {apiGroups: [""], resources: [secrets], verbs: ["*"], resourceNames: [other]}
- {apiGroups: ["*"], resources: ["*"], verbs: [delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: some, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: some}
subjects:
- {kind: ServiceAccount, namespace: %[2]s, name: deployer}
`, ns, own))
	counting, requests := counted(conf)
	tt := target(t, counting, ns, nil, func(s *Spec) { s.Allow.Kinds = []string{"*", "PriorityClass.scheduling.k8s.io"} })
	tt.c.cfg.Namespace = own
	tt.c.cfg.Lease = LeaseConfig{Name: "holdfast"}
	r := mustRender(t, tt, map[string]string{
		"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"),
		"s.yaml": strings.Replace(secretManifest("x"), "login", "login-"+ns, 1),
		"p.yaml": "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: " + ns + "}\nvalue: 1\n",
	})
	rights, err := tt.Access(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/priorityclasses: get list watch create patch delete",
		own + "/configmaps: get list create update delete",
		own + "/leases: get create update",
		ns + "/configmaps: create",
		ns + "/secrets: get list watch create patch",
		ns + "/events: create patch",
	}
	got := missing(rights)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("missing:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Two lists of rules, one question for each verb that they leave open, and
	// discovery of three groups and versions.
	if n := requests.Load(); n > 2+25+6 {
		t.Errorf("%d requests", n)
	}
	user, err := tt.c.Account(t.Context())
	if err != nil || user != name {
		t.Errorf("account %q, %v", user, err)
	}

	create(t, admin, strings.ReplaceAll(string(GrantManifest(user, rights)), "name: holdfast-stacks", "name: "+ns))
	t.Cleanup(func() { removeClusterRole(t, admin, ns) })
	if rights, err = tt.Access(t.Context(), r); err != nil || len(missing(rights)) > 0 {
		t.Errorf("with what was asked for: %v, %v", missing(rights), err)
	}
	tt.c.cfg.Lease.Off = true
	deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "s.yaml": strings.Replace(secretManifest("x"), "login", "login-"+ns, 1)})
}

func removeClusterRole(t testing.TB, d dynamic.Interface, name string) {
	t.Helper()
	for _, plural := range []string{"clusterroles", "clusterrolebindings"} {
		if err := d.Resource(rbac(plural)).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
}

func TestGrantManifestQuotes(t *testing.T) {
	t.Parallel()
	text := string(GrantManifest("mallory\nroleRef: x", []Right{{Resource: "pods", Verbs: []string{"get"}}}))
	for _, doc := range strings.Split(text, "---\n")[1:] {
		var m map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &m); err != nil {
			t.Errorf("%v in\n%s", err, doc)
		}
	}
	if !strings.Contains(text, `"mallory\nroleRef: x"`) {
		t.Errorf("not quoted:\n%s", text)
	}
}
