# Helpers that find the pods and containers inside any Kubernetes object.
package lib.holdfast.kubernetes

templated := {
	"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet",
	"ReplicationController", "Job",
}

# pods holds the one pod of a workload, with its path, or nothing.
pods contains {"path": "spec", "metadata": object.get(input, "metadata", {}), "spec": object_or_empty(input.spec)} if {
	input.kind == "Pod"
}

pods contains {"path": "spec.template.spec", "metadata": metadata_of(input.spec.template), "spec": object_or_empty(input.spec.template.spec)} if {
	input.kind in templated
}

pods contains {"path": "spec.jobTemplate.spec.template.spec", "metadata": metadata_of(template), "spec": object_or_empty(template.spec)} if {
	input.kind == "CronJob"
	template := input.spec.jobTemplate.spec.template
}

pods contains {"path": "template.spec", "metadata": metadata_of(input.template), "spec": object_or_empty(input.template.spec)} if {
	input.kind == "PodTemplate"
}

lists := {"initContainers": "init container", "containers": "container", "ephemeralContainers": "ephemeral container"}

# containers holds every container: regular, init (sidecars too) and ephemeral.
containers contains {"pod": pod, "container": container, "label": label} if {
	some pod in pods
	some list, word in lists
	some i, container in array_or_empty(pod.spec[list])
	label := sprintf("%s %q", [word, object.get(container, "name", sprintf("#%d", [i]))])
}

metadata_of(template) := object_or_empty(object.get(template, "metadata", {}))

# name says which object a message is about: "Deployment default/web".
name := sprintf("%s %s/%s", [input.kind, ns, id]) if {
	ns := input.metadata.namespace
	is_string(ns)
	ns != ""
} else := sprintf("%s %s", [input.kind, id])

id := n if {
	n := input.metadata.name
	is_string(n)
} else := n if {
	n := input.metadata.generateName
	is_string(n)
} else := "(without a name)"

# value returns what stands at path in x, and fallback where it is absent or null.
value(x, path, fallback) := v if {
	v := object.get(x, path, fallback)
	v != null
} else := fallback

object_or_empty(x) := x if {
	is_object(x)
} else := {}

array_or_empty(x) := x if {
	is_array(x)
} else := []

windows(pod) if pod.spec.os.name == "windows"

# user_namespace is true for a pod that runs in a user namespace of its own.
user_namespace(pod) if pod.spec.hostUsers == false
