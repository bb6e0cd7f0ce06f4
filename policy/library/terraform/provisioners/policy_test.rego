package terraform.provisioners_test

policy := data.terraform.provisioners

plan(module) := {"configuration": {"root_module": module}}

resource := {"address": "terraform_data.a", "type": "terraform_data", "provisioners": [{"type": "local-exec"}]}

nested := {"module_calls": {"net": {"module": {"module_calls": {"sub": {"module": {"resources": [resource]}}}}}}}

addresses(p) := {r.address | some r in policy.deny_provisioner with input as p}

test_root if addresses(plan({"resources": [resource]})) == {"terraform_data.a"}

test_nested if addresses(plan(nested)) == {"module.net.module.sub.terraform_data.a"}

test_none if addresses(plan({"resources": [object.remove(resource, ["provisioners"])]})) == set()

test_command if {
	changes := {"resource_changes": [{"address": "shell_script.a", "mode": "managed", "type": "shell_script", "change": {"actions": ["create"], "after": {}}}]}
	count(policy.deny_command) == 1 with input as changes
	count(policy.deny_command) == 0 with input as json.patch(changes, [{"op": "replace", "path": "/resource_changes/0/type", "value": "local_file"}])
}

test_action if {
	count(policy.deny_action) == 1 with input as plan({"actions": [{"address": "action.local_command.a", "type": "local_command"}]})
	count(policy.deny_action) == 0 with input as plan({"actions": [{"address": "action.x.a", "type": "aws_lambda_invoke"}]})
}
