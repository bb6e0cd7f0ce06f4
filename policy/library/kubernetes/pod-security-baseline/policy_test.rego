package kubernetes.pod_security_baseline_test

policy := data.kubernetes.pod_security_baseline

lists := ["containers", "initContainers", "ephemeralContainers"]

# pod_with returns a Pod whose spec is patched.
pod_with(patch) := {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": object.union({"containers": [{"name": "c"}]}, patch)}

container_with(list, patch) := pod_with({list: [object.union({"name": "x"}, patch)]})

# fired are the rules that refuse an object.
fired(object) := {rule |
	some rule, set in verdicts
	startswith(rule, "deny")
	count(set) > 0
} if {
	verdicts := policy with input as object
}

bad_pods := [
	["deny_host_process", {"securityContext": {"windowsOptions": {"hostProcess": true}}}],
	["deny_host_namespaces", {"hostNetwork": true}],
	["deny_host_namespaces", {"hostPID": true}],
	["deny_host_namespaces", {"hostIPC": true}],
	["deny_host_path", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}],
	["deny_apparmor", {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}],
	["deny_selinux", {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}],
	["deny_selinux", {"securityContext": {"seLinuxOptions": {"user": "u"}}}],
	["deny_selinux", {"securityContext": {"seLinuxOptions": {"role": "r"}}}],
	["deny_seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}],
	["deny_sysctls", {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}],
]

bad_containers := [
	["deny_host_process", {"securityContext": {"windowsOptions": {"hostProcess": true}}}],
	["deny_privileged", {"securityContext": {"privileged": true}}],
	["deny_capabilities", {"securityContext": {"capabilities": {"add": ["CHOWN", "SYS_ADMIN"]}}}],
	["deny_capabilities", {"securityContext": {"capabilities": {"add": ["NET_RAW"]}}}],
	["deny_host_ports", {"ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}]}],
	["deny_probe_host", {"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}],
	["deny_probe_host", {"readinessProbe": {"tcpSocket": {"host": "10.0.0.1"}}}],
	["deny_probe_host", {"startupProbe": {"httpGet": {"host": "10.0.0.1"}}}],
	["deny_probe_host", {"lifecycle": {"postStart": {"httpGet": {"host": "10.0.0.1"}}}}],
	["deny_probe_host", {"lifecycle": {"preStop": {"tcpSocket": {"host": "10.0.0.1"}}}}],
	["deny_apparmor", {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}],
	["deny_selinux", {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}],
	["deny_proc_mount", {"securityContext": {"procMount": "Unmasked"}}],
	["deny_seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}],
]

good_pods := [
	{},
	{"hostNetwork": false, "hostPID": false, "hostIPC": false, "securityContext": {"windowsOptions": {"hostProcess": false}}},
	{"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": null}]},
	{"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}, "seccompProfile": {"type": "Localhost"}}},
	{"securityContext": {"seLinuxOptions": {"type": "container_engine_t", "level": "s0"}}},
	{"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}, {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}},
]

good_containers := [
	{"securityContext": {"privileged": false, "capabilities": {"add": ["CHOWN", "NET_BIND_SERVICE"]}}},
	{"ports": [{"containerPort": 80, "hostPort": 0}]},
	{"livenessProbe": {"httpGet": {"host": "", "port": 80}}, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}},
	{"securityContext": {"procMount": "Default", "seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "Localhost"}}},
	{"securityContext": null},
]

test_bad_pods if {
	every c in bad_pods {
		fired(pod_with(c[1])) == {c[0]}
	}
}

test_bad_containers_of_every_list if {
	every c in bad_containers {
		every list in lists {
			fired(container_with(list, c[1])) == {c[0]}
		}
	}
}

test_good_pods if {
	every patch in good_pods {
		fired(pod_with(patch)) == set()
	}
}

test_good_containers if {
	every patch in good_containers {
		fired(container_with("containers", patch)) == set()
	}
}

test_apparmor_annotations if {
	annotated := {"deny_apparmor"}
	every profile, want in {"unconfined": annotated, "runtime/default": set(), "localhost/p": set(), "": set()} {
		pod := object.union(pod_with({}), {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": profile}}})
		fired(pod) == want
	}
}

test_proc_mount_in_user_namespace if {
	fired(pod_with({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]})) == set()
}

spec := {"hostPID": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]}

workloads := array.concat(
	[{"kind": kind, "metadata": {"name": "w"}, "spec": {"template": {"spec": spec}}} |
		some kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"]
	],
	[
		{"kind": "Pod", "metadata": {"name": "w"}, "spec": spec},
		{"kind": "CronJob", "metadata": {"name": "w"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}},
		{"kind": "PodTemplate", "metadata": {"name": "w"}, "template": {"spec": spec}},
	],
)

test_every_kind_of_workload if {
	count(workloads) == 9
	every w in workloads {
		fired(w) == {"deny_host_namespaces", "deny_privileged"}
	}
}

test_message_names_object_and_container if {
	msgs := policy.deny_privileged with input as object.union(container_with("initContainers", {"securityContext": {"privileged": true}}), {"metadata": {"namespace": "shop"}})
	msgs == {`Pod shop/p: init container "x" must not be privileged; remove securityContext.privileged`}
}

test_other_kinds if {
	every object in [{"kind": "ConfigMap", "metadata": {"name": "c"}, "spec": spec}, {}, null, "text", 1] {
		fired(object) == set()
	}
}
