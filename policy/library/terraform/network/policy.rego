# METADATA
# title: Network exposure
# description: >-
#   No ingress from the whole world to sensitive ports, over IPv4 or IPv6.
#   data.params.network.public_ports lists the ports that may face the world; by default 80 and 443.
#   A range passes only if every port of it is listed.
package terraform.network

import data.lib.holdfast.terraform as tf

public_ports := {port | some port in data.params.network.public_ports} if {
	data.params.network.public_ports
} else := {80, 443}

# A whole address family, or so large a part of it that a few of them are the
# world again: 0.0.0.0/1 is half of it, 2000::/3 is every public IPv6 address.
world(cidr) if regex.match(`/0*[0-3]$`, sprintf("%v", [cidr]))

# All of IPv4, written as IPv6.
world(cidr) if lower(sprintf("%v", [cidr])) in {"::ffff:0:0/96", "::ffff:0.0.0.0/96"}

world(cidr) if lower(sprintf("%v", [cidr])) in {"*", "internet", "any", "0.0.0.0", "::"}

# open(from, to) reports that a range holds a port which must not face the world.
open(from, to) if {
	not all_public(from, to)
}

all_public(from, to) if {
	from <= to
	to - from < 100
	every port in numbers.range(from, to) {
		port in public_ports
	}
}

# AWS: -1 and the protocol "-1" mean everything.
aws_open(rule) if lower(sprintf("%v", [tf.value(rule, "protocol", tf.value(rule, "ip_protocol", "-1"))])) in {"-1", "all"}

aws_open(rule) if {
	not lower(sprintf("%v", [tf.value(rule, "protocol", tf.value(rule, "ip_protocol", "-1"))])) in {"icmp", "icmpv6", "1", "58"}
	open(tf.value(rule, "from_port", -1), tf.value(rule, "to_port", -1))
}

aws_sources(rule) := [cidr |
	some field in ["cidr_blocks", "ipv6_cidr_blocks"]
	some cidr in tf.value(rule, field, [])
]

deny_aws_security_group contains result if {
	some change in tf.planned
	change.type in {"aws_security_group", "aws_default_security_group"}
	some rule in tf.blocks(tf.after(change), "ingress")
	some cidr in aws_sources(rule)
	world(cidr)
	aws_open(rule)
	result := tf.result(change, sprintf("ingress must not be open to %s on %s; name the networks that need it", [cidr, ports(rule)]))
}

deny_aws_security_group_rule contains result if {
	some change in tf.planned
	change.type == "aws_security_group_rule"
	rule := tf.after(change)
	rule.type == "ingress"
	some cidr in aws_sources(rule)
	world(cidr)
	aws_open(rule)
	result := tf.result(change, sprintf("ingress must not be open to %s on %s; name the networks that need it", [cidr, ports(rule)]))
}

deny_aws_ingress_rule contains result if {
	some change in tf.planned
	change.type == "aws_vpc_security_group_ingress_rule"
	rule := tf.after(change)
	some field in ["cidr_ipv4", "cidr_ipv6"]
	cidr := tf.value(rule, field, "")
	world(cidr)
	aws_open(rule)
	result := tf.result(change, sprintf("ingress must not be open to %s on %s; name the networks that need it", [cidr, ports(rule)]))
}

ports(rule) := sprintf("ports %v-%v", [tf.value(rule, "from_port", "any"), tf.value(rule, "to_port", "any")])

deny_google_firewall contains result if {
	some change in tf.planned
	change.type == "google_compute_firewall"
	rule := tf.after(change)
	tf.value(rule, "direction", "INGRESS") == "INGRESS"
	tf.value(rule, "disabled", false) == false
	some cidr in google_sources(rule)
	world(cidr)
	some allow in tf.blocks(rule, "allow")
	google_open(allow)
	result := tf.result(change, sprintf("must not allow %v from %s; name the networks that need it", [tf.value(allow, "protocol", "any protocol"), cidr]))
}

# google_sources: a rule that names no source at all means the whole world.
google_sources(rule) := tf.value(rule, "source_ranges", []) if {
	count(tf.value(rule, "source_ranges", [])) > 0
} else := ["0.0.0.0/0"] if {
	count(tf.value(rule, "source_tags", [])) == 0
	count(tf.value(rule, "source_service_accounts", [])) == 0
} else := []

google_open(allow) if {
	lower(sprintf("%v", [tf.value(allow, "protocol", "all")])) in {"all", "tcp", "udp", "sctp", "6", "17", "132"}
	count(tf.value(allow, "ports", [])) == 0
}

google_open(allow) if {
	some text in tf.value(allow, "ports", [])
	text_open(text)
}

# text_open reads "22", "1000-2000" and "*".
text_open(text) if sprintf("%v", [text]) in {"*", ""}

text_open(text) if {
	regex.match(`^\d+(-\d+)?$`, sprintf("%v", [text]))
	parts := split(sprintf("%v", [text]), "-")
	open(to_number(parts[0]), to_number(parts[count(parts) - 1]))
}

deny_azure_rule contains result if {
	some r in azure_rules
	lower(tf.value(r.rule, "access", "")) == "allow"
	lower(tf.value(r.rule, "direction", "")) == "inbound"
	some source in azure_list(r.rule, "source_address_prefix", "source_address_prefixes")
	world(source)
	some port in azure_list(r.rule, "destination_port_range", "destination_port_ranges")
	text_open(port)
	result := tf.result(r.change, sprintf("must not allow %s to port %s; name the networks that need it", [source, port]))
}

azure_rules contains {"change": change, "rule": tf.after(change)} if {
	some change in tf.planned
	change.type == "azurerm_network_security_rule"
}

azure_rules contains {"change": change, "rule": rule} if {
	some change in tf.planned
	change.type == "azurerm_network_security_group"
	some rule in tf.blocks(tf.after(change), "security_rule")
}

azure_list(rule, one, many) := array.concat(
	[v | v := tf.value(rule, one, ""); v != ""],
	tf.value(rule, many, []),
)
