package daemon

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var self = Identity{Namespace: "holdfast-system", User: "system:serviceaccount:ops:deployer"}

func object(t testing.TB, text string) Object {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	return Object{
		GroupKind: u.GroupVersionKind().GroupKind(), Namespace: u.GetNamespace(), Name: u.GetName(), Content: u.Object,
		Given: map[string]string{"holdfast.dev/stack": "production/web", "holdfast.dev/managed": "true"},
	}
}

const (
	rbac      = "apiVersion: rbac.authorization.k8s.io/v1\n"
	admission = "apiVersion: admissionregistration.k8s.io/v1\n"
)

func clusterBinding(role, kind, who string) string {
	return rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {kind: ClusterRole, name: '" + role + "'}\nsubjects: [{kind: " + kind + ", name: '" + who + "'}]"
}

// TestTouches has an object for each way to reach the daemon. Each is refused by
// the rule that is named, and by no other: without the rule it would pass.
func TestTouches(t *testing.T) {
	t.Parallel()
	tried := map[string]bool{}
	for name, tc := range map[string]struct{ rule, object string }{
		"object in its namespace":   {"namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: holdfast-system}"},
		"lease in its namespace":    {"namespace", "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: a, namespace: holdfast-system}"},
		"event in its namespace":    {"namespace", "apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {name: a, namespace: holdfast-system}"},
		"its namespace":             {"namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: holdfast-system}"},
		"cluster role of its name":  {"name", rbac + "kind: ClusterRole\nmetadata: {name: holdfast-daemon}"},
		"role of its name":          {"name", rbac + "kind: Role\nmetadata: {name: holdfast, namespace: shop}"},
		"name with a colon":         {"name", rbac + "kind: ClusterRole\nmetadata: {name: 'holdfast:read'}"},
		"its admission policy":      {"name", admission + "kind: ValidatingAdmissionPolicy\nmetadata: {name: holdfast-guard}"},
		"binding of its policy":     {"name", admission + "kind: ValidatingAdmissionPolicyBinding\nmetadata: {name: x}\nspec: {policyName: holdfast-guard}"},
		"webhook of its name":       {"name", admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: holdfast.example.com}]"},
		"binding of its account":    {"subject", rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: x, namespace: holdfast-system}]"},
		"binding of the account":    {"subject", rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: deployer, namespace: ops}]"},
		"binding of it as a user":   {"subject", rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: User, name: 'system:serviceaccount:holdfast-system:holdfast'}]"},
		"binding of the user":       {"subject", rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: User, name: 'system:serviceaccount:ops:deployer'}]"},
		"binding without a place":   {"subject", rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: ops}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: deployer}]"},
		"binding of its group":      {"subject", rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: Group, name: 'system:serviceaccounts:holdfast-system'}]"},
		"binding of its role":       {"role reference", rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {kind: Role, name: holdfast}\nsubjects: [{kind: User, name: eve}]"},
		"role that names a thing":   {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [update], resourceNames: [holdfast-inventory-00]}]"},
		"role that names its space": {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [namespaces], verbs: [delete], resourceNames: [holdfast-system]}]"},
		"role over its account":     {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [serviceaccounts/token], verbs: [create], resourceNames: [deployer]}]"},
		"role over all of its name": {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: ['*'], verbs: [delete], resourceNames: [deployer]}]"},
		"role over the account":     {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [serviceaccounts], verbs: [delete], resourceNames: [deployer]}]"},
		"role over its user":        {"resource names", rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [users], verbs: [impersonate], resourceNames: ['system:serviceaccount:ops:deployer']}]"},
		"object of its group":       {"API group", "apiVersion: holdfast.dev/v1\nkind: Stack\nmetadata: {name: a, namespace: shop}"},
		"definition in its group":   {"API group", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: stacks.holdfast.dev}\nspec: {group: holdfast.dev}"},
		"definition by its name":    {"API group", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: stacks.holdfast.dev}\nspec: {group: example.com}"},
		"definition by its content": {"API group", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: stacks.example.com}\nspec: {group: holdfast.dev}"},
		"forged owner":              {"mark", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {holdfast.dev/stack: production/other}}"},
		"inventory label":           {"mark", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {holdfast.dev/inventory: x}}"},
		"aggregated into its role":  {"mark", rbac + "kind: ClusterRole\nmetadata: {name: a, labels: {rbac.holdfast.dev/aggregate-to-daemon: 'true'}}"},
		"mark in a template":        {"mark", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {metadata: {labels: {holdfast.dev/managed: 'true'}}}}"},
		"mark without a value":      {"mark", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {holdfast.dev/inventory: ''}}"},
		"mark in a list":            {"mark", "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\nspec: {volumeClaimTemplates: [{metadata: {labels: {holdfast.dev/managed: 'true'}}}]}"},
		"role that seeks its own":   {"selector", rbac + "kind: ClusterRole\nmetadata: {name: a}\naggregationRule: {clusterRoleSelectors: [{matchExpressions: [{key: rbac.holdfast.dev/x, operator: Exists}]}]}"},
		"role that gathers its own": {"selector", rbac + "kind: ClusterRole\nmetadata: {name: a}\naggregationRule: {clusterRoleSelectors: [{matchLabels: {rbac.holdfast.dev/x: 'true'}}]}"},
		"webhook at its service":    {"service", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, clientConfig: {service: {namespace: holdfast-system, name: x}}}]"},
		"conversion at its service": {"service", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: as.example.com}\nspec: {group: example.com, conversion: {webhook: {clientConfig: {service: {namespace: holdfast-system}}}}}"},
		"API at its service":        {"service", "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.example.com}\nspec: {group: example.com, service: {namespace: holdfast-system}}"},
		"webhook on everything":     {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: ['*'], resources: ['*'], operations: ['*'], scope: Namespaced}]}]"},
		"webhook on pods": {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], " +
			"namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system]}]}}]"},
		"binding of the account's group": {"subject", rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: Group, name: 'system:serviceaccounts:ops'}]"},
		"everything everywhere":          {"strong role", clusterBinding("cluster-admin", "User", "eve")},
		"all namespaces' admin":          {"strong role", clusterBinding("admin", "User", "eve")},
		"all namespaces' editor":         {"strong role", clusterBinding("edit", "Group", "devs")},
		"a controller's role":            {"strong role", clusterBinding("system:controller:job-controller", "User", "eve")},
		"a role for everybody":           {"broad group", clusterBinding("x", "Group", "system:authenticated")},
		"a role for all accounts":        {"broad group", clusterBinding("x", "Group", "system:serviceaccounts")},
		"a role for the masters":         {"broad group", clusterBinding("x", "Group", "system:masters")},
		"webhook on namespaces":          {"admission", admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [namespaces]}]}]"},
		"webhook on all of the cluster":  {"admission", admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: ['*'], scope: Cluster}]}]"},
		"webhook on cluster roles":       {"admission of roles", admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles]}], namespaceSelector: {matchLabels: {a: b}}}]"},
		"webhook on its inventories":     {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [configmaps]}], objectSelector: {matchExpressions: [{key: holdfast.dev/inventory, operator: Exists}]}}]"},
		"webhook on its marks":           {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [configmaps]}], objectSelector: {matchLabels: {holdfast.dev/mark: x}}}]"},
		"webhook on what has no name":    {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [coordination.k8s.io], resources: [leases]}], objectSelector: {matchExpressions: [{key: app.kubernetes.io/name, operator: DoesNotExist}]}}]"},
		"webhook by pod security":        {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], namespaceSelector: {matchLabels: {pod-security.kubernetes.io/enforce: restricted}}}]"},
		"webhook on its own roles":       {"admission of roles", admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles]}], objectSelector: {matchLabels: {app.kubernetes.io/name: holdfast}}}]"},
		"policy on cluster bindings":     {"admission of roles", admission + "kind: ValidatingAdmissionPolicy\nmetadata: {name: x}\nspec: {matchConstraints: {resourceRules: [{apiGroups: ['*'], resources: [clusterrolebindings]}], objectSelector: {matchExpressions: [{key: app.kubernetes.io/name, operator: NotIn, values: [holdfast]}]}}}"},
		"policy on config maps":          {"admission", admission + "kind: ValidatingAdmissionPolicy\nmetadata: {name: x}\nspec: {matchConstraints: {resourceRules: [{apiGroups: [''], resources: [configmaps]}]}}"},
		"mutating policy":                {"admission", admission + "kind: MutatingAdmissionPolicy\nmetadata: {name: x}\nspec: {matchConstraints: {resourceRules: [{apiGroups: [apps], resources: ['*']}]}}"},
		"unreadable selector":            {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], namespaceSelector: [x]}]"},
		"half a selector":                {"admission", admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], objectSelector: {matchLabels: {inject: 'true'}, matchExpressions: x}}]"},
		"API in the place of its own":    {"API service", "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.holdfast.dev}\nspec: {group: holdfast.dev, service: {namespace: shop}}"},
		"API in the place of a core":     {"API service", "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.apps}\nspec: {group: apps, service: {namespace: shop}}"},
		"volume of its claim":            {"volume", "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: a}\nspec: {claimRef: {namespace: holdfast-system, name: state}}"},
	} {
		tried[tc.rule] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := object(t, tc.object)
			if hint, why := self.Touches(o); why == "" || hint == "" {
				t.Fatalf("it is not refused: %q, hint %q", why, hint)
			}
			without := slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.name == tc.rule })
			if _, why := self.touches(o, without); why != "" {
				t.Errorf("another rule refuses it too, so this case does not show the rule %q: %s", tc.rule, why)
			}
		})
	}
	for _, r := range rules {
		if !tried[r.name] {
			t.Errorf("nothing shows the rule %q", r.name)
		}
	}
}

// TestLeavesOthersAlone has what looks like it and is not.
func TestLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"its own marks":                    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {holdfast.dev/stack: production/web}, labels: {holdfast.dev/managed: 'true'}}",
		"a name like it":                   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: holdfast-notes, namespace: shop}",
		"a longer name":                    rbac + "kind: ClusterRole\nmetadata: {name: holdfaster}",
		"a similar domain":                 "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {notholdfast.dev/x: y}}",
		"a thing named like its namespace": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: holdfast-system, namespace: shop}",
		"another namespace":                "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}",
		"a mark without a prefix":          "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {holdfast.dev: x}}",
		"a thing with its group in it":     "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a.holdfast.dev}\nspec: {group: holdfast.dev}",
		"another account of its namespace": rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: other, namespace: ops}]",
		"another account as a user":        rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: User, name: 'system:serviceaccount:shop:x'}]",
		"a user with a colon":              rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: User, name: 'holdfast-system:x'}]",
		"another account's name":           rbac + "kind: Role\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [serviceaccounts], verbs: [get], resourceNames: [other]}]",
		"a role that gathers others":       rbac + "kind: ClusterRole\nmetadata: {name: a}\naggregationRule: {clusterRoleSelectors: [{matchLabels: {team: shop}}]}",
		"a kind with all of their fields": "apiVersion: example.com/v1\nkind: Team\nmetadata: {name: a}\nroleRef: {name: holdfast}\nsubjects: [{kind: ServiceAccount, name: x, namespace: holdfast-system}]\n" +
			"rules: [{resourceNames: [holdfast]}]\naggregationRule: {clusterRoleSelectors: [{matchLabels: {rbac.holdfast.dev/x: 'true'}}]}\n" +
			"webhooks: [{name: x, rules: [{apiGroups: ['*'], resources: ['*']}]}]\nspec: {claimRef: {namespace: holdfast-system}}",
		"a volume of another claim":   "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: a}\nspec: {claimRef: {namespace: shop, name: state}}",
		"a volume of another group":   "apiVersion: example.com/v1\nkind: PersistentVolume\nmetadata: {name: a}\nspec: {claimRef: {namespace: holdfast-system, name: state}}",
		"a claim of another kind":     "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nspec: {claimRef: {namespace: holdfast-system, name: state}}",
		"webhook on some namespaces":  admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [namespaces]}], objectSelector: {matchLabels: {team: shop}}}]",
		"policy that matches nothing": admission + "kind: ValidatingAdmissionPolicy\nmetadata: {name: x}\nspec: {validations: []}",
		"everybody, in one namespace": rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {kind: ClusterRole, name: x}\nsubjects: [{kind: Group, name: 'system:authenticated'}]",
		"a user named as a group is":  clusterBinding("x", "User", "system:masters"),
		"another account":             rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: deployer, namespace: shop}]",
		"a thing of a name":           rbac + "kind: Role\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [get], resourceNames: [deployer]}]",
		"webhook on its own":          admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: cert-manager}\nwebhooks: [{name: webhook.cert-manager.io, rules: [{apiGroups: [cert-manager.io], resources: ['*/*']}]}]",
		"webhook that leaves it out": admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], " +
			"namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, holdfast-system]}]}}]",
		"webhook by a label":         admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], namespaceSelector: {matchLabels: {inject: 'true'}}}]",
		"webhook by an object label": admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [pods]}], objectSelector: {matchLabels: {inject: 'true'}}}]",
		"webhook on other namespaces": admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [''], resources: [namespaces, namespaces/finalize]}], " +
			"namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [holdfast-system]}]}}]",
		"webhook on what is in namespaces": admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: ['*'], resources: ['*'], scope: Namespaced}], " +
			"namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [holdfast-system]}]}}]",
		"webhook outside of namespaces": admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [apps], resources: ['*'], scope: Cluster}]}]",
		"webhook on labelled roles":     admission + "kind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles]}], objectSelector: {matchLabels: {team: shop}}}]",
		"an admin in one namespace":     rbac + "kind: RoleBinding\nmetadata: {name: a, namespace: shop}\nroleRef: {kind: ClusterRole, name: admin}\nsubjects: [{kind: Group, name: 'system:serviceaccounts:shop'}]",
		"discovery for everybody":       clusterBinding("system:discovery", "Group", "system:authenticated"),
		"a role for one account":        clusterBinding("x", "User", "eve"),
		"API of its own":                "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1beta1.metrics.k8s.io}\nspec: {group: metrics.k8s.io, service: {namespace: kube-system}}",
	} {
		if _, why := self.Touches(object(t, text)); why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
	for _, role := range []string{"cluster-admin", "x"} { // to end such a binding is no escalation
		ended := object(t, clusterBinding(role, "Group", "system:authenticated"))
		ended.Live = true
		if _, why := self.Touches(ended); why != "" {
			t.Errorf("a live binding of %s: %s", role, why)
		}
	}
	live := object(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {holdfast.dev/stack: x/y}}")
	live.Live = true
	if _, why := self.Touches(live); why != "" {
		t.Errorf("a live object with a mark: %s", why)
	}
	for name, text := range map[string]string{
		"a user":          rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: User, name: ''}]",
		"an account":      rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: ServiceAccount, name: ''}]",
		"a group":         rbac + "kind: ClusterRoleBinding\nmetadata: {name: a}\nroleRef: {name: x}\nsubjects: [{kind: Group, name: 'system:serviceaccounts:'}]",
		"a resource name": rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [serviceaccounts], resourceNames: ['']}]",
	} {
		if _, why := (Identity{Namespace: "holdfast-system"}).Touches(object(t, text)); why != "" {
			t.Errorf("%s without a name, and nobody known: %s", name, why)
		}
	}
	if _, why := self.Touches(Object{GroupKind: apiServiceKind, Name: "v1.example.com"}); why != "" {
		t.Errorf("an API service of which nothing is known but its name: %s", why)
	}
}

// The namespace may have any name.
func TestNamespaceOfAnotherName(t *testing.T) {
	t.Parallel()
	id := Identity{Namespace: "gitops", User: "system:serviceaccount:gitops:daemon"}
	role := object(t, rbac+"kind: ClusterRole\nmetadata: {name: a}\nrules: [{apiGroups: [''], resources: [namespaces], verbs: [delete], resourceNames: [gitops]}]")
	if _, why := id.Touches(role); !strings.Contains(why, "own object gitops") {
		t.Errorf("a role that may delete its namespace: %q", why)
	}
}

func TestHintForAdmission(t *testing.T) {
	t.Parallel()
	hint, _ := self.Touches(object(t, admission+"kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: x.example.com, rules: [{apiGroups: ['*'], resources: ['*']}]}]"))
	if !strings.Contains(hint, "NotIn, values: [holdfast-system]") {
		t.Errorf("hint %q", hint)
	}
}

// TestBuiltinGroups: every group of the Kubernetes API is known.
func TestBuiltinGroups(t *testing.T) {
	t.Parallel()
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if !Builtin(gvk.Group) {
			t.Errorf("the group %q is not known", gvk.Group)
		}
	}
	for _, group := range []string{"gateway.networking.k8s.io", "snapshot.storage.k8s.io", "metrics.k8s.io", "holdfast.dev", "example.com"} {
		if Builtin(group) {
			t.Errorf("the group %q is not served by the API server", group)
		}
	}
}

func FuzzTouches(f *testing.F) {
	f.Add("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}")
	f.Add(admission + "kind: MutatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks: [{name: 1, rules: [x, {apiGroups: [1]}], namespaceSelector: {matchExpressions: [{operator: In}]}}]")
	f.Add(rbac + "kind: ClusterRole\nmetadata: {name: a}\nrules: x\naggregationRule: [1]")
	f.Fuzz(func(t *testing.T, text string) {
		u := &unstructured.Unstructured{}
		if yaml.Unmarshal([]byte(text), &u.Object) != nil || u.Object == nil {
			return
		}
		o := Object{GroupKind: u.GroupVersionKind().GroupKind(), Content: u.Object}
		if hint, why := self.Touches(o); (hint == "") != (why == "") {
			t.Errorf("hint %q, why %q", hint, why)
		}
	})
}
