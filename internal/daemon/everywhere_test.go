package daemon

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestReaches: a cluster role that is declared with its binding reaches Holdfast
// by each of its powers, by wildcards and by aggregation.
func TestReaches(t *testing.T) {
	t.Parallel()
	role := func(name, more string) string {
		return rbac + "kind: ClusterRole\nmetadata: {name: " + name + "}\n" + more
	}
	rules := func(groups, resources, verbs string) string {
		return role("x", "rules: [{apiGroups: ["+groups+"], resources: ["+resources+"], verbs: ["+verbs+"]}]")
	}
	const part = "rules: [{apiGroups: [''], resources: [secrets], verbs: [get]}]"
	labelled := func(label string) string {
		return rbac + "kind: ClusterRole\nmetadata: {name: part, labels: {" + label + ": 'true'}}\n" + part
	}
	gathers := func(selector string) string {
		return role("x", "aggregationRule: {clusterRoleSelectors: ["+selector+"]}")
	}
	for name, tc := range map[string]struct {
		bound string
		roles []string
		want  string // in the reason; empty: it reaches nothing
	}{
		"secrets":                 {"x", []string{rules("''", "secrets", "get")}, "get on secrets"},
		"secrets by name":         {"x", []string{role("x", "rules: [{apiGroups: [''], resources: [secrets], verbs: [get], resourceNames: [token]}]")}, "secrets"},
		"all verbs on secrets":    {"x", []string{rules("''", "secrets", "'*'")}, "* on secrets"},
		"everything":              {"x", []string{rules("'*'", "'*'", "'*'")}, "* on secrets"},
		"reading everything":      {"x", []string{rules("'*'", "'*'", "get, list, watch")}, "secrets"},
		"inventories":             {"x", []string{rules("''", "configmaps", "update")}, "configmaps"},
		"leases":                  {"x", []string{rules("coordination.k8s.io", "leases", "update")}, "leases"},
		"exec":                    {"x", []string{rules("''", "pods/exec", "create")}, "pods/exec"},
		"every exec":              {"x", []string{rules("''", "'*/exec'", "create")}, "pods/exec"},
		"nodes":                   {"x", []string{rules("''", "nodes/proxy", "get")}, "nodes/proxy"},
		"tokens":                  {"x", []string{rules("''", "serviceaccounts/token", "create")}, "serviceaccounts/token"},
		"pods":                    {"x", []string{rules("''", "pods", "create")}, "pods"},
		"deployments":             {"x", []string{rules("apps", "deployments", "patch")}, "deployments"},
		"jobs":                    {"x", []string{rules("batch", "jobs", "create")}, "jobs"},
		"impersonation":           {"x", []string{rules("''", "users", "impersonate")}, "users"},
		"other roles":             {"x", []string{rules("rbac.authorization.k8s.io", "clusterroles", "bind")}, "clusterroles"},
		"by aggregation":          {"x", []string{gathers("{matchLabels: {team: 'true'}}"), labelled("team")}, "secrets"},
		"by a part of admin":      {"x", []string{gathers("{matchLabels: {rbac.authorization.k8s.io/aggregate-to-admin: 'true'}}")}, "admin"},
		"by all parts":            {"x", []string{gathers("{matchLabels: {kubernetes.io/bootstrapping: rbac-defaults}}")}, "admin"},
		"by what view is made of": {"view", []string{labelled("rbac.authorization.k8s.io/aggregate-to-view")}, "secrets"},

		"no verbs":             {"x", []string{rules("''", "secrets", "")}, ""},
		"another role":         {"y", []string{rules("''", "secrets", "get")}, ""},
		"view":                 {"view", []string{labelled("team")}, ""},
		"reading config maps":  {"x", []string{rules("''", "configmaps, pods", "get, list, watch")}, ""},
		"a lease of a name":    {"x", []string{role("x", "rules: [{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [update], resourceNames: [mine]}]")}, ""},
		"a kind of its own":    {"x", []string{rules("example.com", "'*'", "'*'")}, ""},
		"another group's name": {"x", []string{rules("example.com", "secrets", "get")}, ""},
		"it gathers itself":    {"x", []string{gathers("{matchLabels: {team: 'true'}}"), strings.Replace(gathers("{matchLabels: {team: 'true'}}"), "{name: x}", "{name: y, labels: {team: 'true'}}", 1)}, ""},
	} {
		var declared []Object
		for _, text := range tc.roles {
			declared = append(declared, object(t, text))
		}
		hint, why := self.Reaches(object(t, clusterBinding(tc.bound, "User", "eve")), declared)
		if (why == "") != (tc.want == "") || !strings.Contains(why, tc.want) || (hint == "") != (why == "") {
			t.Errorf("%s: %q, hint %q; want %q", name, why, hint, tc.want)
		}
		inOne := object(t, strings.Replace(clusterBinding(tc.bound, "User", "eve"), "ClusterRoleBinding", "RoleBinding", 1))
		if _, why := self.Reaches(inOne, declared); why != "" {
			t.Errorf("%s, in one namespace: %s", name, why)
		}
	}
}

// FuzzReaches: whatever a stack declares as a role is read without harm.
func FuzzReaches(f *testing.F) {
	f.Add("rules: [{apiGroups: [''], resources: [secrets], verbs: [get]}]")
	f.Add("rules: [x, {apiGroups: 1}]\naggregationRule: {clusterRoleSelectors: [1, {matchLabels: x}, {matchExpressions: [{operator: In}]}]}")
	f.Fuzz(func(t *testing.T, text string) {
		content := map[string]any{}
		if yaml.Unmarshal([]byte(text), &content) != nil {
			return
		}
		declared := []Object{{GroupKind: clusterRoleKind, Name: "x", Content: content}}
		hint, why := self.Reaches(object(t, clusterBinding("x", "User", "eve")), declared)
		if (hint == "") != (why == "") {
			t.Errorf("hint %q, why %q", hint, why)
		}
	})
}
