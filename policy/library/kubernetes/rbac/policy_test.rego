package kubernetes.rbac_test

policy := data.kubernetes.rbac

role(kind, rule) := {"kind": kind, "metadata": {"name": "r"}, "rules": [rule]}

narrow := {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}

fired(object) := {rule |
	some rule, set in verdicts
	startswith(rule, "deny")
	count(set) > 0
} if {
	verdicts := policy with input as object
}

test_narrow if fired(role("ClusterRole", narrow)) == set()

test_wildcards if {
	every kind in ["Role", "ClusterRole"] {
		every rule in [{"verbs": ["*"]}, {"resources": ["*"]}, {"apiGroups": ["*"]}, {"nonResourceURLs": ["*"]}, {"resources": ["*/scale"]}, {"resources": ["pods/*"]}] {
			fired(role(kind, object.union(narrow, rule))) == {"deny_wildcard"}
		}
	}
}

test_escalation if {
	every verb in ["escalate", "bind", "impersonate"] {
		fired(role("ClusterRole", object.union(narrow, {"verbs": ["get", verb]}))) == {"deny_escalation"}
	}
}

test_aggregation if {
	fired({"kind": "ClusterRole", "metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{}]}}) == {"deny_aggregation"}
	fired({"kind": "ClusterRole", "metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}) == set()
}

binding(role, subject) := {"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [{"kind": "Group", "name": subject}]}

test_bindings if {
	fired(binding("view", "dev")) == set()
	fired(binding("cluster-admin", "dev")) == {"deny_cluster_admin"}
	every subject in ["system:anonymous", "system:unauthenticated", "system:masters"] {
		fired(binding("view", subject)) == {"deny_anonymous"}
	}
}

test_other_kinds if fired(object.union(role("Recipe", {"verbs": ["*"]}), {})) == set()
