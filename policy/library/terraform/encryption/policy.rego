# METADATA
# title: Encryption and public access
# description: Stores are encrypted and closed to the public. Amazon, Google and Azure.
package terraform.encryption

import data.lib.holdfast.terraform as tf

# must_be_true names arguments that have to be set to true.
must_be_true := {
	"aws_ebs_volume": ["encrypted"],
	"aws_db_instance": ["storage_encrypted"],
	"aws_rds_cluster": ["storage_encrypted"],
	"aws_docdb_cluster": ["storage_encrypted"],
	"aws_neptune_cluster": ["storage_encrypted"],
	"aws_redshift_cluster": ["encrypted"],
	"aws_efs_file_system": ["encrypted"],
	"aws_elasticache_replication_group": ["at_rest_encryption_enabled", "transit_encryption_enabled"],
	"aws_s3_bucket_public_access_block": ["block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"],
	"aws_s3_account_public_access_block": ["block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"],
	"google_storage_bucket": ["uniform_bucket_level_access"],
}

# must_not_be_false names arguments that are true unless set.
must_not_be_false := {
	"azurerm_storage_account": ["https_traffic_only_enabled", "enable_https_traffic_only"],
	"azurerm_mssql_database": ["transparent_data_encryption_enabled"],
	"azurerm_mysql_server": ["ssl_enforcement_enabled"],
	"azurerm_postgresql_server": ["ssl_enforcement_enabled"],
	"aws_ebs_encryption_by_default": ["enabled"],
}

# must_be_false names arguments that have to be set to false, because the provider's default is true.
must_be_false := {
	"azurerm_storage_account": ["allow_nested_items_to_be_public"],
	"azurerm_mssql_server": ["public_network_access_enabled"],
	"azurerm_managed_disk": ["public_network_access_enabled"],
}

# must_not_be_true names arguments that are false unless set.
must_not_be_true := {
	"aws_db_instance": ["publicly_accessible"],
	"aws_rds_cluster_instance": ["publicly_accessible"],
	"aws_redshift_cluster": ["publicly_accessible"],
}

deny_argument contains result if {
	some change in tf.planned
	some argument in must_be_true[change.type]
	not exempt(change, argument)
	not tf.unknown(change, argument)
	not is_true(tf.value(tf.after(change), argument, null))
	result := tf.result(change, sprintf("set %s = true", [argument]))
}

deny_argument contains result if {
	some change in tf.planned
	some argument in must_not_be_false[change.type]
	is_false(tf.after(change)[argument])
	result := tf.result(change, sprintf("must not set %s = false", [argument]))
}

deny_argument contains result if {
	some change in tf.planned
	some argument in must_be_false[change.type]
	not tf.unknown(change, argument)
	not is_false(tf.value(tf.after(change), argument, null))
	result := tf.result(change, sprintf("set %s = false", [argument]))
}

deny_argument contains result if {
	some change in tf.planned
	some argument in must_not_be_true[change.type]
	is_true(tf.after(change)[argument])
	result := tf.result(change, sprintf("must not set %s = true", [argument]))
}

# Some providers write booleans as strings.
is_true(v) if lower(sprintf("%v", [v])) == "true"

is_false(v) if lower(sprintf("%v", [v])) == "false"

# A restored cluster inherits the encryption of its snapshot.
exempt(change, "storage_encrypted") if tf.value(tf.after(change), "snapshot_identifier", "") != ""

exempt(change, "storage_encrypted") if tf.value(tf.after(change), "replicate_source_db", "") != ""

public_acls := {"public-read", "public-read-write", "website"}

deny_public_acl contains result if {
	some change in tf.planned
	change.type in {"aws_s3_bucket", "aws_s3_bucket_acl", "aws_s3_object"}
	acl := tf.value(tf.after(change), "acl", "")
	acl in (public_acls | {"authenticated-read"})
	result := tf.result(change, sprintf("must not have the public ACL %q; remove it", [acl]))
}

deny_s3_encryption contains result if {
	some change in tf.planned
	change.type == "aws_s3_bucket_server_side_encryption_configuration"
	not tf.unknown(change, "rule")
	some rule in tf.blocks(tf.after(change), "rule")
	some by_default in tf.blocks(rule, "apply_server_side_encryption_by_default")
	not tf.value(by_default, "sse_algorithm", "") in {"AES256", "aws:kms", "aws:kms:dsse"}
	result := tf.result(change, "must encrypt with AES256, aws:kms or aws:kms:dsse")
}

# A bucket without its public access block is as open as its ACLs and policies.
# Accounts that are closed as a whole say so with data.params.encryption.account_public_access_block.
deny_s3_public_access_block contains result if {
	some change in tf.planned
	change.type == "aws_s3_bucket"
	not data.params.encryption.account_public_access_block
	not blocked(change)
	result := tf.result(change, "has no aws_s3_bucket_public_access_block; add one, with all four arguments true")
}

blocked(bucket) if {
	some change in tf.planned
	change.type == "aws_s3_bucket_public_access_block"
	name := tf.value(tf.after(change), "bucket", "")
	name != ""
	name in {tf.value(tf.after(bucket), "bucket", ""), tf.value(tf.after(bucket), "id", "")}
}

# The bucket's name is known only after apply: the configuration says which one is meant.
blocked(bucket) if {
	walk(input.configuration.root_module, [_, resource])
	is_object(resource)
	resource.type == "aws_s3_bucket_public_access_block"
	some reference in resource.expressions.bucket.references
	reference == local_address(bucket)
}

local_address(change) := sprintf("%s.%s", [change.type, change.name])

deny_instance_disk contains result if {
	some change in tf.planned
	change.type in {"aws_instance", "aws_launch_template"}
	some block in ["root_block_device", "ebs_block_device"]
	some i, device in tf.blocks(tf.after(change), block)
	not is_true(tf.value(device, "encrypted", null))
	not tf.unknown(change, [block, i, "encrypted"])
	result := tf.result(change, sprintf("set encrypted = true in %s", [block]))
}

deny_google_public contains result if {
	some change in tf.planned
	change.type in {
		"google_storage_bucket_iam_member", "google_storage_bucket_iam_binding", "google_project_iam_member",
		"google_project_iam_binding", "google_bigquery_dataset_iam_member", "google_storage_bucket_access_control",
	}
	some member in members(tf.after(change))
	member in {"allUsers", "allAuthenticatedUsers"}
	result := tf.result(change, sprintf("must not grant access to %s", [member]))
}

members(v) := array.concat(
	[m | some field in ["member", "entity"]; m := tf.value(v, field, ""); m != ""],
	tf.value(v, "members", []),
)

deny_google_bucket contains result if {
	some change in tf.planned
	change.type == "google_storage_bucket"
	not tf.unknown(change, "public_access_prevention")
	tf.value(tf.after(change), "public_access_prevention", "inherited") != "enforced"
	result := tf.result(change, `set public_access_prevention = "enforced"`)
}

deny_google_sql contains result if {
	some change in tf.planned
	change.type == "google_sql_database_instance"
	some settings in tf.blocks(tf.after(change), "settings")
	some ip in tf.blocks(settings, "ip_configuration")
	some network in tf.blocks(ip, "authorized_networks")
	endswith(tf.value(network, "value", ""), "/0")
	result := tf.result(change, "must not authorise the whole world; remove the network from authorized_networks")
}

deny_google_sql contains result if {
	some change in tf.planned
	change.type == "google_sql_database_instance"
	some settings in tf.blocks(tf.after(change), "settings")
	some ip in tf.blocks(settings, "ip_configuration")
	not tf.value(ip, "ssl_mode", "") in {"ENCRYPTED_ONLY", "TRUSTED_CLIENT_CERTIFICATE_REQUIRED"}
	not is_true(tf.value(ip, "require_ssl", null))
	result := tf.result(change, `set ssl_mode = "ENCRYPTED_ONLY"`)
}

# Google encrypts every disk; where the operator asks for own keys, a disk must name one.
deny_google_disk contains result if {
	data.params.encryption.customer_keys
	some change in tf.planned
	change.type in {"google_compute_disk", "google_compute_region_disk"}
	not tf.unknown(change, "disk_encryption_key")
	count(tf.blocks(tf.after(change), "disk_encryption_key")) == 0
	result := tf.result(change, "has no disk_encryption_key; name a key of yours")
}

# Azure encrypts every disk; where the operator asks for own keys, a disk must name a set.
deny_azure_disk contains result if {
	data.params.encryption.customer_keys
	some change in tf.planned
	change.type == "azurerm_managed_disk"
	not tf.unknown(change, "disk_encryption_set_id")
	tf.value(tf.after(change), "disk_encryption_set_id", "") == ""
	result := tf.result(change, "has no disk_encryption_set_id; name a set of yours")
}

weak_tls := {"TLS1_0", "TLS1_1", "1.0", "1.1", "Disabled", "TLSEnforcementDisabled"}

deny_azure_tls contains result if {
	some change in tf.planned
	change.type in {"azurerm_storage_account", "azurerm_mssql_server", "azurerm_mysql_server", "azurerm_postgresql_server"}
	some field in ["min_tls_version", "minimum_tls_version", "ssl_minimal_tls_version_enforced"]
	version := tf.after(change)[field]
	version in weak_tls
	result := tf.result(change, sprintf("must not accept %s; use TLS 1.2", [version]))
}

deny_azure_container contains result if {
	some change in tf.planned
	change.type == "azurerm_storage_container"
	access := tf.value(tf.after(change), "container_access_type", "private")
	access != "private"
	result := tf.result(change, sprintf("must not be public (%s); set container_access_type = \"private\"", [access]))
}

deny_azure_sql_firewall contains result if {
	some change in tf.planned
	change.type in {"azurerm_mssql_firewall_rule", "azurerm_postgresql_flexible_server_firewall_rule", "azurerm_mysql_flexible_server_firewall_rule"}
	v := tf.after(change)
	v.start_ip_address == "0.0.0.0"
	v.end_ip_address == "255.255.255.255"
	result := tf.result(change, "must not admit every address; name the range that needs it")
}
