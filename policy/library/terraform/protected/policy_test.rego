package terraform.protected_test

policy := data.terraform.protected

change(type, actions) := {"resource_changes": [{"address": sprintf("%s.a", [type]), "mode": "managed", "type": type, "name": "a", "change": {"actions": actions, "before": {}, "after": null}}]}

test_destroyed if {
	every type in ["aws_db_instance", "aws_s3_bucket", "aws_kms_key", "google_sql_database_instance", "google_compute_disk", "azurerm_storage_account", "azurerm_managed_disk"] {
		count(policy.deny_destroy) == 1 with input as change(type, ["delete"])
	}
}

test_replaced if {
	every actions in [["delete", "create"], ["create", "delete"]] {
		some result in policy.deny_destroy with input as change("aws_db_instance", actions)
		contains(result.msg, "replaced")
		result.address == "aws_db_instance.a"
	}
}

test_kept if {
	every actions in [["no-op"], ["create"], ["update"], ["read"]] {
		count(policy.deny_destroy) == 0 with input as change("aws_db_instance", actions)
	}
}

test_forgotten if count(policy.deny_forget) == 1 with input as change("aws_s3_bucket", ["forget"])

test_other_types if {
	every type in ["terraform_data", "null_resource", "aws_instance"] {
		count(policy.deny_destroy) == 0 with input as change(type, ["delete"])
	}
}

test_added_types if {
	count(policy.deny_destroy) == 1 with input as change("terraform_data", ["delete"]) with data.params.protected.types as ["terraform_data"]
	count(policy.deny_destroy) == 1 with input as change("aws_s3_bucket", ["delete"]) with data.params.protected.types as ["terraform_data"]
	count(policy.deny_destroy) == 1 with input as change("local_file", ["delete"]) with data.params.protected.addresses as ["local_file.a"]
}
