package terraform.network_test

policy := data.terraform.network

plan(type, after) := {"resource_changes": [{"address": sprintf("%s.a", [type]), "mode": "managed", "type": type, "name": "a", "change": {"actions": ["create"], "after": after}}]}

results := {
	"deny_aws_security_group": policy.deny_aws_security_group,
	"deny_aws_security_group_rule": policy.deny_aws_security_group_rule,
	"deny_aws_ingress_rule": policy.deny_aws_ingress_rule,
	"deny_google_firewall": policy.deny_google_firewall,
	"deny_azure_rule": policy.deny_azure_rule,
}

fired(p) := {rule | some rule, set in verdicts; count(set) > 0} if verdicts := results with input as p

aws(patch) := object.union({"protocol": "tcp", "from_port": 22, "to_port": 22, "cidr_blocks": ["0.0.0.0/0"]}, patch)

bad_aws := [
	{}, {"cidr_blocks": [], "ipv6_cidr_blocks": ["::/0"]}, {"cidr_blocks": ["0.0.0.0/1"]}, {"cidr_blocks": ["10.0.0.0/8", "0.0.0.0/0"]},
	{"cidr_blocks": ["2000::/3"]}, {"from_port": 0, "to_port": 65535}, {"from_port": 80, "to_port": 443}, {"protocol": "-1", "from_port": 0, "to_port": 0},
	{"protocol": "-1", "from_port": 443, "to_port": 443},
]

good_aws := [{"cidr_blocks": ["10.0.0.0/8"]}, {"from_port": 443, "to_port": 443}, {"protocol": "icmp", "from_port": 8, "to_port": 0}, {"cidr_blocks": null}]

test_aws_security_group if {
	every patch in bad_aws {
		fired(plan("aws_security_group", {"ingress": [aws(patch)]})) == {"deny_aws_security_group"}
	}
	every patch in good_aws {
		fired(plan("aws_security_group", {"ingress": [aws(patch)], "egress": [aws({})]})) == set()
	}
}

test_aws_security_group_rule if {
	every patch in bad_aws {
		fired(plan("aws_security_group_rule", object.union(aws(patch), {"type": "ingress"}))) == {"deny_aws_security_group_rule"}
	}
	fired(plan("aws_security_group_rule", object.union(aws({}), {"type": "egress"}))) == set()
}

test_aws_ingress_rule if {
	every cidr in [{"cidr_ipv4": "0.0.0.0/0"}, {"cidr_ipv6": "::/0"}] {
		fired(plan("aws_vpc_security_group_ingress_rule", object.union({"ip_protocol": "tcp", "from_port": 3306, "to_port": 3306}, cidr))) == {"deny_aws_ingress_rule"}
		fired(plan("aws_vpc_security_group_ingress_rule", object.union({"ip_protocol": "-1"}, cidr))) == {"deny_aws_ingress_rule"}
		fired(plan("aws_vpc_security_group_ingress_rule", object.union({"ip_protocol": "tcp", "from_port": 443, "to_port": 443}, cidr))) == set()
	}
	fired(plan("aws_vpc_security_group_ingress_rule", {"ip_protocol": "tcp", "from_port": 22, "to_port": 22, "cidr_ipv4": "10.0.0.0/8"})) == set()
}

google(patch) := plan("google_compute_firewall", object.union({"direction": "INGRESS", "source_ranges": ["0.0.0.0/0"], "allow": [{"protocol": "tcp", "ports": ["22"]}]}, patch))

test_google if {
	every patch in [
		{}, {"source_ranges": ["::/0"]}, {"allow": [{"protocol": "all"}]}, {"allow": [{"protocol": "tcp", "ports": []}]},
		{"allow": [{"protocol": "tcp", "ports": ["443", "1-65535"]}]}, {"source_ranges": null},
	] {
		fired(google(patch)) == {"deny_google_firewall"}
	}
	every patch in [
		{"direction": "EGRESS"}, {"disabled": true}, {"source_ranges": ["10.0.0.0/8"]}, {"allow": [{"protocol": "tcp", "ports": ["443"]}]},
		{"allow": [{"protocol": "icmp"}]}, {"source_ranges": [], "source_tags": ["web"]}, {"allow": []},
	] {
		fired(google(patch)) == set()
	}
}

azure(patch) := object.union({"access": "Allow", "direction": "Inbound", "protocol": "Tcp", "source_address_prefix": "*", "destination_port_range": "3389"}, patch)

test_azure if {
	every patch in [
		{}, {"source_address_prefix": "Internet"}, {"source_address_prefix": "0.0.0.0/0"}, {"destination_port_range": "*"},
		{"source_address_prefix": "", "source_address_prefixes": ["::/0"]}, {"destination_port_range": "", "destination_port_ranges": ["443", "20-25"]},
	] {
		fired(plan("azurerm_network_security_rule", azure(patch))) == {"deny_azure_rule"}
		fired(plan("azurerm_network_security_group", {"security_rule": [azure(patch)]})) == {"deny_azure_rule"}
	}
	every patch in [{"access": "Deny"}, {"direction": "Outbound"}, {"source_address_prefix": "10.0.0.0/8"}, {"destination_port_range": "443"}] {
		fired(plan("azurerm_network_security_rule", azure(patch))) == set()
	}
}

test_public_ports if {
	p := plan("aws_security_group", {"ingress": [aws({})]})
	count(policy.deny_aws_security_group) == 0 with input as p with data.params.network.public_ports as [22]
	count(policy.deny_aws_security_group) == 1 with input as p with data.params.network.public_ports as []
}
