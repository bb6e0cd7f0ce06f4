# Helpers that read the JSON of a Terraform or OpenTofu plan.
package lib.holdfast.terraform

# changes are the managed resources that the plan names, whatever happens to them.
changes contains change if {
	some change in input.resource_changes
	object.get(change, "mode", "managed") == "managed"
}

# planned are the resources as they will be: everything but what goes.
planned contains change if {
	some change in changes
	is_object(change.change.after)
}

after(change) := change.change.after

# removed reports a delete, alone or as part of a replace.
removed(change) if "delete" in change.change.actions

replaced(change) if {
	"delete" in change.change.actions
	"create" in change.change.actions
}

# unknown reports a value that is known only after apply. Such a value cannot be judged here.
unknown(change, path) if object.get(object.get(change.change, "after_unknown", {}), path, false) == true

# value returns what stands at path in x, and fallback where it is absent or null.
value(x, path, fallback) := v if {
	v := object.get(x, path, fallback)
	v != null
} else := fallback

# blocks returns the nested blocks of a name: none, one or more.
blocks(x, name) := b if {
	b := object.get(x, name, [])
	is_array(b)
} else := [b] if {
	b := object.get(x, name, [])
	is_object(b)
} else := []

result(change, msg) := {
	"msg": sprintf("%s: %s", [change.address, msg]),
	"address": change.address,
	"type": change.type,
}
