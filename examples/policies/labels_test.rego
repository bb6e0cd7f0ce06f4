package acme.labels_test

import data.acme.labels

service(meta) := {"kind": "Service", "metadata": object.union({"name": "web"}, meta)}

test_label_is_asked_for if {
	labels.deny == {"Service web: set the label app.kubernetes.io/part-of"} with input as service({})
}

test_label_is_enough if {
	count(labels.deny) == 0 with input as service({"labels": {"app.kubernetes.io/part-of": "shop"}})
}

test_other_kinds_pass if {
	count(labels.deny) == 0 with input as {"kind": "ConfigMap", "metadata": {"name": "web"}}
}
