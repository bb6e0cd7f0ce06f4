# METADATA
# title: Provisioners
# description: >-
#   Nothing runs commands during apply: no provisioner in the root module or in any module
#   that it calls, no resource or action that runs a local command.
package terraform.provisioners

import data.lib.holdfast.terraform as tf

deny_provisioner contains result if {
	walk(input.configuration.root_module, [path, resource])
	is_object(resource)
	some provisioner in resource.provisioners
	address := sprintf("%s%s", [prefix(path), object.get(resource, "address", "(unknown)")])
	result := {
		"msg": sprintf("%s: must not use the provisioner %q; it runs code that no plan shows", [address, object.get(provisioner, "type", "")]),
		"address": address,
	}
}

# prefix turns a path such as module_calls/a/module into "module.a.".
prefix(path) := concat("", [sprintf("module.%s.", [path[i + 1]]) |
	some i, step in path
	step == "module_calls"
	path[i + 2] == "module"
])

commands := {"local_command", "local_exec", "shell_script", "shell_script_resource", "external"}

deny_command contains result if {
	some change in tf.planned
	change.type in commands
	result := tf.result(change, "must not run a local command; it runs code that no plan shows")
}

deny_action contains result if {
	walk(input.configuration.root_module, [path, module])
	is_object(module)
	some action in module.actions
	action.type in commands
	address := sprintf("%s%s", [prefix(path), object.get(action, "address", action.type)])
	result := {
		"msg": sprintf("%s: must not be an action that runs a local command", [address]),
		"address": address,
	}
}
