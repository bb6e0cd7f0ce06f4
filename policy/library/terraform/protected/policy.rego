# METADATA
# title: Protected resources
# description: >-
#   Resources that hold data or keys are neither destroyed nor replaced.
#   data.params.protected.types adds resource types, data.params.protected.addresses adds
#   single resources. To retire one, silence the rule "destroy" with an exception.
package terraform.protected

import data.lib.holdfast.terraform as tf

types := default_types | {t | some t in data.params.protected.types}

addresses := {a | some a in data.params.protected.addresses}

default_types := {
	# databases
	"aws_db_instance", "aws_rds_cluster", "aws_rds_global_cluster", "aws_dynamodb_table", "aws_dynamodb_global_table",
	"aws_docdb_cluster", "aws_neptune_cluster", "aws_redshift_cluster", "aws_elasticache_replication_group",
	"aws_elasticache_cluster", "aws_memorydb_cluster", "aws_opensearch_domain", "aws_elasticsearch_domain",
	"aws_timestreamwrite_table", "aws_keyspaces_table", "aws_msk_cluster", "aws_kinesis_stream",
	"google_sql_database_instance", "google_sql_database", "google_spanner_instance", "google_spanner_database",
	"google_bigtable_instance", "google_bigtable_table", "google_bigquery_dataset", "google_bigquery_table",
	"google_firestore_database", "google_redis_instance", "google_alloydb_cluster", "google_alloydb_instance",
	"azurerm_mssql_server", "azurerm_mssql_database", "azurerm_mssql_managed_instance", "azurerm_mssql_managed_database",
	"azurerm_postgresql_server", "azurerm_postgresql_flexible_server", "azurerm_postgresql_flexible_server_database",
	"azurerm_mysql_server", "azurerm_mysql_flexible_server", "azurerm_mysql_flexible_database", "azurerm_mariadb_server",
	"azurerm_cosmosdb_account", "azurerm_cosmosdb_sql_database", "azurerm_redis_cache",
	# buckets, file systems, registries
	"aws_s3_bucket", "aws_efs_file_system", "aws_fsx_lustre_file_system", "aws_fsx_ontap_file_system",
	"aws_fsx_openzfs_file_system", "aws_fsx_windows_file_system", "aws_glacier_vault", "aws_backup_vault", "aws_ecr_repository",
	"google_storage_bucket", "google_filestore_instance", "google_artifact_registry_repository",
	"azurerm_storage_account", "azurerm_storage_container", "azurerm_storage_share", "azurerm_netapp_volume", "azurerm_container_registry",
	# keys and secrets
	"aws_kms_key", "aws_kms_external_key", "aws_kms_replica_key", "aws_secretsmanager_secret", "aws_cloudhsm_v2_cluster",
	"google_kms_key_ring", "google_kms_crypto_key", "google_secret_manager_secret",
	"azurerm_key_vault", "azurerm_key_vault_key", "azurerm_key_vault_secret", "azurerm_key_vault_certificate",
	"azurerm_key_vault_managed_hardware_security_module",
	# disks and snapshots
	"aws_ebs_volume", "aws_ebs_snapshot", "aws_db_snapshot", "aws_db_cluster_snapshot",
	"google_compute_disk", "google_compute_region_disk", "google_compute_snapshot",
	"azurerm_managed_disk", "azurerm_snapshot",
}

deny_destroy contains result if {
	some change in tf.changes
	protected(change)
	tf.removed(change)
	result := tf.result(change, sprintf("must not be %s, it holds data or keys; keep the resource, or ask for an exception", [word(change)]))
}

deny_forget contains result if {
	some change in tf.changes
	protected(change)
	"forget" in change.change.actions
	result := tf.result(change, "must not leave the state, it holds data or keys; keep the resource, or ask for an exception")
}

protected(change) if change.type in types

protected(change) if change.address in addresses

word(change) := "replaced" if {
	tf.replaced(change)
} else := "destroyed"
