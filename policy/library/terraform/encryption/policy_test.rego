package terraform.encryption_test

policy := data.terraform.encryption

resource(type, after, unknown) := {"address": sprintf("%s.a", [type]), "mode": "managed", "type": type, "name": "a", "change": {"actions": ["create"], "after": after, "after_unknown": unknown}}

plan(type, after) := {"resource_changes": [resource(type, after, {})]}

fired(p) := {rule |
	some rule, set in verdicts
	startswith(rule, "deny")
	count(set) > 0
} if {
	verdicts := policy with input as p
}

denied(type, after) := count(messages) if messages := policy.deny_argument with input as plan(type, after)

test_must_be_true if {
	every type, arguments in policy.must_be_true {
		every argument in arguments {
			all_true := {a: true | some a in arguments}
			denied(type, all_true) == 0
			denied(type, object.union(all_true, {argument: false})) == 1
			denied(type, object.remove(all_true, [argument])) == 1
		}
	}
}

test_must_not_be_false if {
	every type, arguments in policy.must_not_be_false {
		every argument in arguments {
			base := denied(type, {})
			denied(type, {argument: true}) == base
			denied(type, {argument: false}) == base + 1
		}
	}
}

test_must_be_false if {
	every type, arguments in policy.must_be_false {
		every argument in arguments {
			denied(type, {argument: false}) == denied(type, {}) - 1
			denied(type, {argument: true}) == denied(type, {})
		}
	}
}

test_must_not_be_true if {
	every type, arguments in policy.must_not_be_true {
		every argument in arguments {
			denied(type, {argument: true}) == denied(type, {}) + 1
			denied(type, {argument: false}) == denied(type, {})
		}
	}
}

test_unknown_until_apply if {
	count(policy.deny_argument) == 0 with input as {"resource_changes": [resource("aws_ebs_volume", {}, {"encrypted": true})]}
}

test_restored_cluster if denied("aws_rds_cluster", {"snapshot_identifier": "s"}) == 0

test_public_acl if {
	every acl in ["public-read", "public-read-write", "authenticated-read", "website"] {
		fired(plan("aws_s3_bucket_acl", {"acl": acl})) == {"deny_public_acl"}
	}
	fired(plan("aws_s3_bucket_acl", {"acl": "private"})) == set()
}

sse(algorithm) := plan("aws_s3_bucket_server_side_encryption_configuration", {"rule": [{"apply_server_side_encryption_by_default": [{"sse_algorithm": algorithm}]}]})

test_s3_encryption if {
	fired(sse("aws:kms")) == set()
	fired(sse("none")) == {"deny_s3_encryption"}
	fired(plan("aws_s3_bucket_server_side_encryption_configuration", {"rule": [{"apply_server_side_encryption_by_default": [{}]}]})) == {"deny_s3_encryption"}
}

all_blocked := {"block_public_acls": true, "block_public_policy": true, "ignore_public_acls": true, "restrict_public_buckets": true}

test_s3_public_access_block if {
	bucket := resource("aws_s3_bucket", {"bucket": "b"}, {})
	fired({"resource_changes": [bucket]}) == {"deny_s3_public_access_block"}
	fired({"resource_changes": [bucket, resource("aws_s3_bucket_public_access_block", object.union(all_blocked, {"bucket": "b"}), {})]}) == set()
	fired({"resource_changes": [bucket, resource("aws_s3_bucket_public_access_block", object.union(all_blocked, {"bucket": "other"}), {})]}) == {"deny_s3_public_access_block"}
	fired({
		"resource_changes": [bucket, resource("aws_s3_bucket_public_access_block", all_blocked, {"bucket": true})],
		"configuration": {"root_module": {"resources": [{"type": "aws_s3_bucket_public_access_block", "expressions": {"bucket": {"references": ["aws_s3_bucket.a.id", "aws_s3_bucket.a"]}}}]}},
	}) == set()
	count(policy.deny_s3_public_access_block) == 0 with input as {"resource_changes": [bucket]} with data.params.encryption.account_public_access_block as true
}

test_instance_disk if {
	fired(plan("aws_instance", {"root_block_device": [{"encrypted": false}]})) == {"deny_instance_disk"}
	fired(plan("aws_instance", {"ebs_block_device": [{}]})) == {"deny_instance_disk"}
	fired(plan("aws_instance", {"root_block_device": [{"encrypted": true}], "ebs_block_device": [{"encrypted": true}]})) == set()
	fired({"resource_changes": [resource("aws_instance", {"root_block_device": [{}]}, {"root_block_device": [{"encrypted": true}]})]}) == set()
}

test_google_public if {
	fired(plan("google_storage_bucket_iam_member", {"member": "allUsers"})) == {"deny_google_public"}
	fired(plan("google_storage_bucket_iam_binding", {"members": ["user:a@example.com", "allAuthenticatedUsers"]})) == {"deny_google_public"}
	fired(plan("google_storage_bucket_iam_member", {"member": "user:a@example.com"})) == set()
}

test_google_bucket if {
	ok := {"uniform_bucket_level_access": true, "public_access_prevention": "enforced"}
	fired(plan("google_storage_bucket", ok)) == set()
	fired(plan("google_storage_bucket", object.union(ok, {"public_access_prevention": "inherited"}))) == {"deny_google_bucket"}
	fired(plan("google_storage_bucket", object.union(ok, {"uniform_bucket_level_access": false}))) == {"deny_argument"}
}

sql(ip) := plan("google_sql_database_instance", {"settings": [{"ip_configuration": [ip]}]})

test_google_sql if {
	fired(sql({"ssl_mode": "ENCRYPTED_ONLY", "authorized_networks": [{"value": "10.0.0.0/8"}]})) == set()
	fired(sql({"require_ssl": true})) == set()
	fired(sql({})) == {"deny_google_sql"}
	fired(sql({"ssl_mode": "ENCRYPTED_ONLY", "authorized_networks": [{"value": "0.0.0.0/0"}]})) == {"deny_google_sql"}
	fired(sql({"ssl_mode": "ALLOW_UNENCRYPTED_AND_ENCRYPTED"})) == {"deny_google_sql"}
}

test_customer_keys if {
	every type, rule in {"google_compute_disk": "deny_google_disk", "azurerm_managed_disk": "deny_azure_disk"} {
		p := plan(type, {"public_network_access_enabled": false})
		fired(p) == set()
		fired(p) == {rule} with data.params.encryption.customer_keys as true
	}
	count(policy.deny_google_disk) == 0 with input as plan("google_compute_disk", {"disk_encryption_key": [{"kms_key_self_link": "k"}]}) with data.params.encryption.customer_keys as true
	count(policy.deny_azure_disk) == 0 with input as plan("azurerm_managed_disk", {"disk_encryption_set_id": "s"}) with data.params.encryption.customer_keys as true
}

test_azure if {
	fired(plan("azurerm_storage_account", {"allow_nested_items_to_be_public": false, "min_tls_version": "TLS1_2"})) == set()
	fired(plan("azurerm_storage_account", {"allow_nested_items_to_be_public": false, "min_tls_version": "TLS1_0"})) == {"deny_azure_tls"}
	fired(plan("azurerm_storage_container", {"container_access_type": "blob"})) == {"deny_azure_container"}
	fired(plan("azurerm_storage_container", {"container_access_type": "private"})) == set()
	fired(plan("azurerm_mssql_firewall_rule", {"start_ip_address": "0.0.0.0", "end_ip_address": "255.255.255.255"})) == {"deny_azure_sql_firewall"}
	fired(plan("azurerm_mssql_firewall_rule", {"start_ip_address": "10.0.0.0", "end_ip_address": "10.0.0.9"})) == set()
}
