# METADATA
# title: Container images
# description: >-
#   Images are pinned by digest and come from allowed registries.
#   data.params.images.registries lists prefixes such as "ghcr.io/acme/"; without it any registry passes.
package kubernetes.images

import data.lib.holdfast.kubernetes as k8s

pinned := `@sha256:[0-9a-f]{64}$`

images contains {"label": c.label, "image": image} if {
	some c in k8s.containers
	image := k8s.value(c.container, "image", "")
}

images contains {"label": sprintf("volume %q", [object.get(volume, "name", "")]), "image": k8s.value(volume.image, "reference", "")} if {
	some pod in k8s.pods
	some volume in pod.spec.volumes
	is_object(volume.image)
}

deny_unpinned contains msg if {
	some i in images
	not regex.match(pinned, sprintf("%v", [i.image]))
	msg := sprintf("%s: %s must pin its image by digest: %q is mutable; write name@sha256:<digest>", [k8s.name, i.label, i.image])
}

deny_registry contains msg if {
	registries := data.params.images.registries
	some i in images
	not from(sprintf("%v", [i.image]), registries)
	msg := sprintf("%s: %s takes the image %q from a registry that is not allowed; use one of %s", [k8s.name, i.label, i.image, concat(", ", sort(registries))])
}

# from compares whole path segments, so "ghcr.io/acme" does not allow "ghcr.io/acme-evil".
from(image, registries) if {
	some registry in registries
	registry != ""
	prefix := sprintf("%s/", [trim_suffix(registry, "/")])
	startswith(normal(image), prefix)
}

# normal writes a short Docker Hub name out in full.
normal(image) := image if {
	parts := split(image, "/")
	count(parts) > 1
	regex.match(`[.:]|^localhost$`, parts[0])
} else := concat("", ["docker.io/", image]) if {
	contains(image, "/")
} else := concat("", ["docker.io/library/", image])
