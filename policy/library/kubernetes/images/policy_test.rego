package kubernetes.images_test

policy := data.kubernetes.images

hex := "9c4156e0ddc59b2d7cc23d4ba7c07a5b71e3b1c4b2e3ae6b4e1d1b55d3ad2f10"

pod(image) := {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image}]}}

pinned(name) := pod(sprintf("%s@sha256:%s", [name, hex]))

params := {"images": {"registries": ["ghcr.io/acme", "docker.io/library/"]}}

test_pinned if count(policy.deny_unpinned) == 0 with input as pinned("ghcr.io/acme/shop:1.4")

test_unpinned if {
	every image in ["nginx", "nginx:1", "nginx@sha256:abc", sprintf("nginx@sha256:%s-x", [hex]), "", null, 7] {
		count(policy.deny_unpinned) == 1 with input as pod(image)
	}
}

test_image_is_missing if {
	count(policy.deny_unpinned) == 1 with input as {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"initContainers": [{"name": "c"}]}}
}

test_image_volume if {
	spec := {"volumes": [{"name": "v", "image": {"reference": "ghcr.io/acme/model:1"}}]}
	count(policy.deny_unpinned) == 1 with input as {"kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
}

test_registry if {
	every name in ["ghcr.io/acme/shop", "nginx", "docker.io/library/nginx"] {
		count(policy.deny_registry) == 0 with input as pinned(name) with data.params as params
	}
}

test_other_registry if {
	every name in ["ghcr.io/acme-evil/shop", "ghcr.io.evil.example/acme/shop", "acme/shop", "localhost/acme/shop", "evil.example:5000/ghcr.io/acme/shop"] {
		count(policy.deny_registry) == 1 with input as pinned(name) with data.params as params
	}
}

test_any_registry if count(policy.deny_registry) == 0 with input as pinned("evil.example/x")
