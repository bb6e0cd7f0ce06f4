# METADATA
# title: Pod Security Standards, baseline
# description: Every control of the baseline profile of the Pod Security Standards, Kubernetes v1.36.
# related_resources:
# - https://kubernetes.io/docs/concepts/security/pod-security-standards/
package kubernetes.pod_security_baseline

import data.lib.holdfast.kubernetes as k8s

deny_host_process contains msg if {
	some pod in k8s.pods
	pod.spec.securityContext.windowsOptions.hostProcess == true
	msg := sprintf("%s: the pod must not be a Windows host process; remove securityContext.windowsOptions.hostProcess", [k8s.name])
}

deny_host_process contains msg if {
	some c in k8s.containers
	c.container.securityContext.windowsOptions.hostProcess == true
	msg := sprintf("%s: %s must not be a Windows host process; remove securityContext.windowsOptions.hostProcess", [k8s.name, c.label])
}

deny_host_namespaces contains msg if {
	some pod in k8s.pods
	some field in ["hostNetwork", "hostPID", "hostIPC"]
	pod.spec[field] == true
	msg := sprintf("%s: the pod must not share the host's namespaces; remove %s", [k8s.name, field])
}

deny_privileged contains msg if {
	some c in k8s.containers
	c.container.securityContext.privileged == true
	msg := sprintf("%s: %s must not be privileged; remove securityContext.privileged", [k8s.name, c.label])
}

allowed_capabilities := {
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
	"NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

deny_capabilities contains msg if {
	some c in k8s.containers
	some capability in c.container.securityContext.capabilities.add
	not capability in allowed_capabilities
	msg := sprintf("%s: %s must not add the capability %v; remove it from securityContext.capabilities.add", [k8s.name, c.label, capability])
}

deny_host_path contains msg if {
	some pod in k8s.pods
	some volume in pod.spec.volumes
	object.get(volume, "hostPath", null) != null
	msg := sprintf("%s: volume %q must not mount a path of the host; use a persistentVolumeClaim or an emptyDir", [k8s.name, object.get(volume, "name", "")])
}

deny_host_ports contains msg if {
	some c in k8s.containers
	some port in c.container.ports
	k8s.value(port, "hostPort", 0) != 0
	msg := sprintf("%s: %s must not take port %v of the host; remove hostPort and use a Service", [k8s.name, c.label, port.hostPort])
}

handlers := [
	["livenessProbe"], ["readinessProbe"], ["startupProbe"],
	["lifecycle", "postStart"], ["lifecycle", "preStop"],
]

deny_probe_host contains msg if {
	some c in k8s.containers
	some handler in handlers
	some kind in ["httpGet", "tcpSocket"]
	path := array.concat(handler, [kind, "host"])
	host := k8s.value(c.container, path, "")
	host != ""
	msg := sprintf("%s: %s must not name the host %v in %s; leave it out to probe the pod itself", [k8s.name, c.label, host, concat(".", path)])
}

apparmor_annotation := "container.apparmor.security.beta.kubernetes.io/"

deny_apparmor contains msg if {
	some pod in k8s.pods
	some key, profile in pod.metadata.annotations
	startswith(key, apparmor_annotation)
	not apparmor_annotated(profile)
	msg := sprintf("%s: annotation %s must not be %q; use runtime/default or localhost/<profile>", [k8s.name, key, profile])
}

apparmor_annotated(profile) if profile in {"", "runtime/default"}

apparmor_annotated(profile) if startswith(profile, "localhost/")

deny_apparmor contains msg if {
	some context in contexts
	type := context.security.appArmorProfile.type
	not type in {"RuntimeDefault", "Localhost"}
	msg := sprintf("%s: %s must not have the AppArmor profile %v; use RuntimeDefault or Localhost", [k8s.name, context.label, type])
}

selinux_types := {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}

deny_selinux contains msg if {
	some context in contexts
	type := k8s.value(context.security, ["seLinuxOptions", "type"], "")
	not type in selinux_types
	msg := sprintf("%s: %s must not have the SELinux type %v; remove seLinuxOptions.type", [k8s.name, context.label, type])
}

deny_selinux contains msg if {
	some context in contexts
	some field in ["user", "role"]
	k8s.value(context.security, ["seLinuxOptions", field], "") != ""
	msg := sprintf("%s: %s must not set seLinuxOptions.%s; remove it", [k8s.name, context.label, field])
}

deny_proc_mount contains msg if {
	some c in k8s.containers
	not k8s.user_namespace(c.pod)
	mount := k8s.value(c.container, ["securityContext", "procMount"], "Default")
	mount != "Default"
	msg := sprintf("%s: %s must not have procMount %v; remove it, or run the pod with hostUsers: false", [k8s.name, c.label, mount])
}

deny_seccomp contains msg if {
	some context in contexts
	type := context.security.seccompProfile.type
	not type in {"RuntimeDefault", "Localhost"}
	msg := sprintf("%s: %s must not have the seccomp profile %v; use RuntimeDefault or Localhost", [k8s.name, context.label, type])
}

safe_sysctls := {
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
	"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

deny_sysctls contains msg if {
	some pod in k8s.pods
	some sysctl in pod.spec.securityContext.sysctls
	not object.get(sysctl, "name", "") in safe_sysctls
	msg := sprintf("%s: the pod must not set the sysctl %q; only those confined to the pod are allowed", [k8s.name, object.get(sysctl, "name", "")])
}

# contexts are the security contexts of the pod and of each container.
contexts contains {"label": "the pod", "security": k8s.object_or_empty(pod.spec.securityContext)} if {
	some pod in k8s.pods
}

contexts contains {"label": c.label, "security": k8s.object_or_empty(c.container.securityContext)} if {
	some c in k8s.containers
}
