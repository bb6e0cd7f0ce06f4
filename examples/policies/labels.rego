# METADATA
# title: Every object says which product it is part of
# description: >-
#   A policy of one's own, beside the library. Name its folder as the path of a
#   policy set in holdfast.yaml.
package acme.labels

deny contains msg if {
	input.kind in {"Deployment", "StatefulSet", "DaemonSet", "Service"}
	not input.metadata.labels["app.kubernetes.io/part-of"]
	msg := sprintf("%s %s: set the label app.kubernetes.io/part-of", [input.kind, input.metadata.name])
}

# The verified facts stand under input.holdfast: in production, an image must
# have been signed by the release key or the release workflow, not only trusted.
warn contains msg if {
	input.holdfast.environment == "production"
	some reference, artifact in input.holdfast.artifacts
	count(artifact.facts.signatures) == 0
	msg := sprintf("%s runs without a signature", [reference])
}
