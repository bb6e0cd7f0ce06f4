# METADATA
# title: Pod Security Standards, restricted
# description: >-
#   What the restricted profile of the Pod Security Standards, Kubernetes v1.36, asks for
#   beyond baseline. Use it together with kubernetes/pod-security-baseline.
# related_resources:
# - https://kubernetes.io/docs/concepts/security/pod-security-standards/
package kubernetes.pod_security_restricted

import data.lib.holdfast.kubernetes as k8s

volume_types := {
	"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image",
	"persistentVolumeClaim", "projected", "secret",
}

deny_volume_types contains msg if {
	some pod in k8s.pods
	some volume in pod.spec.volumes
	some type, source in volume
	type != "name"
	source != null
	not type in volume_types
	msg := sprintf("%s: volume %q must not be of type %s; use one of %s", [k8s.name, object.get(volume, "name", ""), type, concat(", ", sort(volume_types))])
}

# Unlike baseline, restricted knows no exception for pods in a user namespace.
deny_proc_mount contains msg if {
	some c in k8s.containers
	mount := k8s.value(c.container, ["securityContext", "procMount"], "Default")
	mount != "Default"
	msg := sprintf("%s: %s must not have procMount %v; remove it", [k8s.name, c.label, mount])
}

deny_privilege_escalation contains msg if {
	some c in k8s.containers
	not k8s.windows(c.pod)
	k8s.value(c.container, ["securityContext", "allowPrivilegeEscalation"], true) != false
	msg := sprintf("%s: %s may gain privileges; set securityContext.allowPrivilegeEscalation: false", [k8s.name, c.label])
}

deny_run_as_non_root contains msg if {
	some pod in k8s.pods
	not k8s.user_namespace(pod)
	pod.spec.securityContext.runAsNonRoot == false
	msg := sprintf("%s: the pod may run as root; set securityContext.runAsNonRoot: true", [k8s.name])
}

deny_run_as_non_root contains msg if {
	some c in k8s.containers
	not k8s.user_namespace(c.pod)
	inherited := k8s.value(c.pod.spec, ["securityContext", "runAsNonRoot"], false)
	k8s.value(c.container, ["securityContext", "runAsNonRoot"], inherited) != true
	msg := sprintf("%s: %s may run as root; set securityContext.runAsNonRoot: true", [k8s.name, c.label])
}

deny_run_as_user contains msg if {
	some pod in k8s.pods
	not k8s.user_namespace(pod)
	pod.spec.securityContext.runAsUser == 0
	msg := sprintf("%s: the pod must not run as user 0; choose another securityContext.runAsUser", [k8s.name])
}

deny_run_as_user contains msg if {
	some c in k8s.containers
	not k8s.user_namespace(c.pod)
	c.container.securityContext.runAsUser == 0
	msg := sprintf("%s: %s must not run as user 0; choose another securityContext.runAsUser", [k8s.name, c.label])
}

deny_seccomp contains msg if {
	some c in k8s.containers
	not k8s.windows(c.pod)
	inherited := k8s.value(c.pod.spec, ["securityContext", "seccompProfile", "type"], "")
	type := k8s.value(c.container, ["securityContext", "seccompProfile", "type"], inherited)
	not type in {"RuntimeDefault", "Localhost"}
	msg := sprintf("%s: %s has no seccomp profile; set securityContext.seccompProfile.type: RuntimeDefault", [k8s.name, c.label])
}

deny_capabilities contains msg if {
	some c in k8s.containers
	not k8s.windows(c.pod)
	not "ALL" in k8s.value(c.container, ["securityContext", "capabilities", "drop"], [])
	msg := sprintf("%s: %s keeps capabilities; set securityContext.capabilities.drop: [ALL]", [k8s.name, c.label])
}

deny_capabilities contains msg if {
	some c in k8s.containers
	not k8s.windows(c.pod)
	some capability in c.container.securityContext.capabilities.add
	capability != "NET_BIND_SERVICE"
	msg := sprintf("%s: %s must not add the capability %v; only NET_BIND_SERVICE may be added", [k8s.name, c.label, capability])
}
