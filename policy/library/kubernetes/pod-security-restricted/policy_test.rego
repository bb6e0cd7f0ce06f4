package kubernetes.pod_security_restricted_test

policy := data.kubernetes.pod_security_restricted

secure := {"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}

pod(spec, context) := {"kind": "Pod", "metadata": {"name": "p"}, "spec": object.union({"containers": [{"name": "c", "securityContext": context}]}, spec)}

fired(object) := {rule |
	some rule, set in verdicts
	startswith(rule, "deny")
	count(set) > 0
} if {
	verdicts := policy with input as object
}

without(key) := object.remove(secure, [key])

test_secure_pod if fired(pod({}, secure)) == set()

test_everything_missing if {
	fired(pod({}, {})) == {"deny_privilege_escalation", "deny_run_as_non_root", "deny_seccomp", "deny_capabilities"}
}

bad_contexts := [
	["deny_privilege_escalation", without("allowPrivilegeEscalation")],
	["deny_privilege_escalation", object.union(secure, {"allowPrivilegeEscalation": true})],
	["deny_run_as_non_root", without("runAsNonRoot")],
	["deny_run_as_non_root", object.union(secure, {"runAsNonRoot": false})],
	["deny_run_as_user", object.union(secure, {"runAsUser": 0})],
	["deny_seccomp", without("seccompProfile")],
	["deny_seccomp", object.union(secure, {"seccompProfile": {"type": "Unconfined"}})],
	["deny_capabilities", without("capabilities")],
	["deny_capabilities", object.union(secure, {"capabilities": {"drop": ["NET_RAW"]}})],
	["deny_capabilities", object.union(secure, {"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}})],
	["deny_proc_mount", object.union(secure, {"procMount": "Unmasked"})],
]

test_bad_containers if {
	every c in bad_contexts {
		fired(pod({}, c[1])) == {c[0]}
	}
}

test_init_and_ephemeral_containers if {
	every list in ["initContainers", "ephemeralContainers"] {
		every c in bad_contexts {
			fired(pod({list: [{"name": "x", "securityContext": c[1]}]}, secure)) == {c[0]}
		}
	}
}

bad_specs := [
	["deny_run_as_non_root", {"securityContext": {"runAsNonRoot": false}}],
	["deny_run_as_user", {"securityContext": {"runAsUser": 0}}],
	["deny_volume_types", {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}],
	["deny_volume_types", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}],
]

test_bad_pods if {
	every c in bad_specs {
		fired(pod(c[1], secure)) == {c[0]}
	}
}

test_good_volumes if {
	every type in policy.volume_types {
		fired(pod({"volumes": [{"name": "v", type: {}}]}, secure)) == set()
	}
}

test_pod_level_defaults if {
	fired(pod(
		{"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "Localhost"}}},
		{"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
	)) == set()
}

test_windows if fired(pod({"os": {"name": "windows"}}, {"runAsNonRoot": true})) == set()

test_user_namespace if {
	fired(pod({"hostUsers": false}, object.union(without("runAsNonRoot"), {"runAsUser": 0}))) == set()
	fired(pod({"hostUsers": false}, object.union(secure, {"procMount": "Unmasked"}))) == {"deny_proc_mount"}
}
