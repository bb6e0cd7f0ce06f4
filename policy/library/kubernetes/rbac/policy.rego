# METADATA
# title: Role-based access control
# description: Roles name what they grant, and nobody may grant more than they have.
package kubernetes.rbac

import data.lib.holdfast.kubernetes as k8s

roles := {"Role", "ClusterRole"}

rules contains {"index": i, "rule": rule} if {
	input.kind in roles
	some i, rule in input.rules
}

deny_wildcard contains msg if {
	some r in rules
	some field in ["verbs", "resources", "apiGroups", "nonResourceURLs"]
	some entry in r.rule[field]
	wildcard(field, entry)
	msg := sprintf("%s: rules[%d].%s must not hold the wildcard %q; name what is needed", [k8s.name, r.index, field, entry])
}

wildcard(_, "*")

wildcard("resources", entry) if startswith(entry, "*/")

wildcard("resources", entry) if endswith(entry, "/*")

powers := {"escalate", "bind", "impersonate"}

deny_escalation contains msg if {
	some r in rules
	some verb in r.rule.verbs
	lower(verb) in powers
	msg := sprintf("%s: rules[%d] must not grant the verb %q, which leads to the rights of others", [k8s.name, r.index, verb])
}

deny_aggregation contains msg if {
	input.kind == "ClusterRole"
	some selector in input.aggregationRule.clusterRoleSelectors
	count(k8s.value(selector, "matchLabels", {})) == 0
	count(k8s.value(selector, "matchExpressions", [])) == 0
	msg := sprintf("%s: aggregationRule must not select every ClusterRole; name a label", [k8s.name])
}

deny_cluster_admin contains msg if {
	input.kind in {"RoleBinding", "ClusterRoleBinding"}
	input.roleRef.kind == "ClusterRole"
	input.roleRef.name == "cluster-admin"
	msg := sprintf("%s: must not bind cluster-admin; bind a role that names what is needed", [k8s.name])
}

deny_anonymous contains msg if {
	input.kind in {"RoleBinding", "ClusterRoleBinding"}
	some subject in input.subjects
	subject.name in {"system:anonymous", "system:unauthenticated", "system:masters"}
	msg := sprintf("%s: must not bind the %s %q", [k8s.name, object.get(subject, "kind", "subject"), subject.name])
}
