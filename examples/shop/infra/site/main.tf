terraform {
  required_providers {
    local = {
      source  = "hashicorp/local"
      version = "1.4.0"
    }
  }
}

variable "site_dir" {
  type        = string
  description = "Where the site's files are; the operator sets it."
}

# A file that Terraform manages: edit it, and the change is found and undone.
resource "local_file" "motd" {
  filename             = "${var.site_dir}/motd"
  content              = "This machine is managed by Holdfast.\n"
  file_permission      = "0644"
  directory_permission = "0755"
}

# Stands for a database: the operator's policy protects this type of resource.
resource "terraform_data" "orders_database" {
  input = "orders"
}
