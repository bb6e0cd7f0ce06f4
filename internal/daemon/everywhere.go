package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// This file judges what is granted in every namespace, and so in Holdfast's own.

var (
	clusterRoleKind    = schema.GroupKind{Group: rbacGroup, Kind: "ClusterRole"}
	clusterBindingKind = schema.GroupKind{Group: rbacGroup, Kind: "ClusterRoleBinding"}
)

const (
	rbacGroup   = "rbac.authorization.k8s.io"
	aggregateTo = rbacGroup + "/aggregate-to-"
	scopeIt     = "grant it where it is needed: a RoleBinding in each of these namespaces, with the same roleRef"
)

// strongRoles are roles of Kubernetes itself that reach Holdfast's credentials
// when they are bound in every namespace.
var strongRoles = []string{
	"cluster-admin", "admin", "edit", "system:aggregate-to-admin", "system:aggregate-to-edit",
	"system:kube-controller-manager", "system:kube-scheduler", "system:node",
}

func strongRole(name string) bool {
	return slices.Contains(strongRoles, name) || strings.HasPrefix(name, "system:controller:")
}

// publicRoles are roles that Kubernetes itself gives to everybody.
var publicRoles = []string{"system:basic-user", "system:discovery", "system:public-info-viewer", "system:service-account-issuer-discovery"}

// broadGroups are groups that Holdfast's own account is in, or may be in.
var broadGroups = []string{"system:authenticated", "system:serviceaccounts", "system:masters"}

func roleRef(o Object) string {
	ref, _ := o.Content["roleRef"].(map[string]any)
	name, _ := ref["name"].(string)
	return name
}

// bindsStrongRole refuses to grant a strong role of Kubernetes everywhere.
func (id Identity) bindsStrongRole(o Object) string {
	if role := roleRef(o); o.GroupKind == clusterBindingKind && !o.Live && strongRole(role) {
		return fmt.Sprintf("it grants %s in every namespace, %s, Holdfast's own, among them", role, id.Namespace)
	}
	return ""
}

// bindsBroadGroup refuses to grant something everywhere to groups that Holdfast's
// account is in as well: nobody but the operator says what Holdfast may do.
func (id Identity) bindsBroadGroup(o Object) string {
	if o.GroupKind != clusterBindingKind || o.Live || slices.Contains(publicRoles, roleRef(o)) {
		return ""
	}
	for _, sub := range listAt(o.Content, "subjects") {
		if who, _ := sub["name"].(string); sub["kind"] == "Group" && slices.Contains(broadGroups, who) {
			return fmt.Sprintf("it grants permissions in every namespace to the group %s, which Holdfast's own account is in or may be in", who)
		}
	}
	return ""
}

// power is what leads to Holdfast's credentials, or to what it runs with, for
// whoever has it in Holdfast's namespace.
type power struct {
	group     string
	resources []string
	verbs     []string // empty: any
	// named says that it is one for objects that are named, too: what Holdfast's
	// are called cannot be known.
	named bool
}

var (
	writing = []string{"create", "update", "patch", "delete", "deletecollection"}
	running = []string{"create", "update", "patch"}
)

var powers = []power{
	{group: "", resources: []string{"secrets"}, named: true},
	{group: "", resources: []string{"configmaps"}, verbs: writing},
	{group: "coordination.k8s.io", resources: []string{"leases"}, verbs: writing},
	{group: "", resources: []string{"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "pods/ephemeralcontainers", "nodes/proxy"}},
	{group: "", resources: []string{"serviceaccounts/token"}, verbs: []string{"create"}},
	// A pod takes whatever account and secrets its namespace has.
	{group: "", resources: []string{"pods", "replicationcontrollers", "podtemplates"}, verbs: running},
	{group: "apps", resources: []string{"deployments", "statefulsets", "daemonsets", "replicasets"}, verbs: running},
	{group: "batch", resources: []string{"jobs", "cronjobs"}, verbs: running},
	{group: "", resources: []string{"users", "groups", "serviceaccounts"}, verbs: []string{"impersonate"}},
	{group: rbacGroup, resources: []string{"roles", "clusterroles"}, verbs: []string{"bind", "escalate"}},
}

// Reaches says how binding, if it is a cluster role binding, would reach what
// Holdfast runs with through one of the cluster roles that are declared with it,
// and what to do instead, or "". What other roles grant is not known here.
func (id Identity) Reaches(binding Object, declared []Object) (hint, why string) {
	if binding.GroupKind != clusterBindingKind {
		return "", ""
	}
	roles := clusterRoles(declared)
	what := roles.reach(roleRef(binding), map[string]bool{})
	if what == "" {
		return "", ""
	}
	return scopeIt, fmt.Sprintf("the cluster role %s grants %s in every namespace, %s, Holdfast's own, among them", roleRef(binding), what, id.Namespace)
}

// roleSet is the content of cluster roles by name.
type roleSet map[string]map[string]any

func clusterRoles(declared []Object) roleSet {
	// Others may add to this role of Kubernetes; strongRoles need nothing more.
	roles := roleSet{"view": {"aggregationRule": map[string]any{"clusterRoleSelectors": []any{
		map[string]any{"matchLabels": map[string]any{aggregateTo + "view": "true"}},
	}}}}
	for _, o := range declared {
		if o.GroupKind == clusterRoleKind {
			roles[o.Name] = o.Content
		}
	}
	return roles
}

// reach says what of the powers a role has, by itself or by aggregation, or "".
func (roles roleSet) reach(name string, seen map[string]bool) string {
	if seen[name] {
		return ""
	}
	seen[name] = true
	for _, rule := range listAt(roles[name], "rules") {
		if what := reaching(rule); what != "" {
			return what
		}
	}
	for _, selector := range listAt(roles[name], "aggregationRule", "clusterRoleSelectors") {
		for _, to := range []string{"admin", "edit"} {
			if selects(selector, labels.Set{aggregateTo + to: "true", "kubernetes.io/bootstrapping": "rbac-defaults"}) {
				return "what " + to + " is made of"
			}
		}
		for _, other := range slices.Sorted(maps.Keys(roles)) {
			if selects(selector, labelsOf(roles[other])) {
				if what := roles.reach(other, seen); what != "" {
					return what
				}
			}
		}
	}
	return ""
}

// reaching says which of the powers a rule of a role grants, or "".
func reaching(rule map[string]any) string {
	for _, p := range powers {
		if len(stringsAt(rule, "resourceNames")) > 0 && !p.named || !anyOf(stringsAt(rule, "apiGroups"), p.group) {
			continue
		}
		verbs := stringsAt(rule, "verbs")
		if len(verbs) == 0 || len(p.verbs) > 0 && !anyOf(verbs, p.verbs...) {
			continue
		}
		for _, r := range p.resources {
			names := []string{r}
			if _, sub, ok := strings.Cut(r, "/"); ok {
				names = append(names, "*/"+sub)
			}
			if anyOf(stringsAt(rule, "resources"), names...) {
				return strings.Join(verbs, ", ") + " on " + r
			}
		}
	}
	return ""
}

// anyOf reports whether list has one of want, or the wildcard.
func anyOf(list []string, want ...string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return s == "*" || slices.Contains(want, s) })
}

func labelsOf(content map[string]any) labels.Set {
	meta, _ := content["metadata"].(map[string]any)
	m, _ := meta["labels"].(map[string]any)
	set := labels.Set{}
	for k, v := range m {
		set[k], _ = v.(string)
	}
	return set
}
