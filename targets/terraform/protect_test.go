package terraform

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

var protected = Protected{
	Namespaces: []string{"holdfast-system", "holdfast-staging"},
	Users:      []string{"system:serviceaccount:ops:deployer"},
	Paths:      []string{"/var/lib/holdfast", "/etc/holdfast"},
}

// judged is the plan gate alone.
func judged(t *testing.T, plan string) error {
	t.Helper()
	return (&Target{cfg: Config{Protected: protected}}).protect([]byte(plan), &configuration{})
}

// TestPlanTouchesTheDaemon judges plans as `show -json` prints them.
func TestPlanTouchesTheDaemon(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ kind, after, unknown, want string }{
		"typed, in its namespace":       {"kubernetes_config_map_v1", `{"metadata":[{"name":"a","namespace":"holdfast-system"}]}`, ``, "own namespace"},
		"typed, in another of its":      {"kubernetes_secret", `{"metadata":[{"name":"a","namespace":"holdfast-staging"}]}`, ``, "own namespace"},
		"typed, namespace unknown":      {"kubernetes_config_map", `{"metadata":[{"name":"a"}]}`, `{"metadata":[{"namespace":true}]}`, "metadata.namespace is known only after the apply"},
		"typed, metadata unknown":       {"kubernetes_config_map", `{}`, `{"metadata":true}`, "metadata is known only after the apply"},
		"its namespace":                 {"kubernetes_namespace_v1", `{"metadata":[{"name":"holdfast-system"}]}`, ``, "own namespace"},
		"a namespace, name unknown":     {"kubernetes_namespace", `{"metadata":[{}]}`, `{"metadata":[{"name":true}]}`, "metadata.name is known only"},
		"labels of its namespace":       {"kubernetes_labels", `{"api_version":"v1","kind":"Namespace","metadata":[{"name":"holdfast-system"}],"labels":{"a":"b"}}`, ``, "own namespace"},
		"data of a map in it":           {"kubernetes_config_map_v1_data", `{"metadata":[{"name":"holdfast-inventory-0","namespace":"holdfast-system"}]}`, ``, "own namespace"},
		"a mark":                        {"kubernetes_config_map", `{"metadata":[{"name":"a","namespace":"shop","annotations":{"holdfast.dev/stack":"x/y"}}]}`, ``, "holdfast.dev/stack"},
		"a mark in a template":          {"kubernetes_deployment_v1", `{"metadata":[{"name":"a","namespace":"shop"}],"spec":[{"template":[{"metadata":[{"labels":{"holdfast.dev/managed":"true"}}]}]}]}`, ``, "holdfast.dev/managed"},
		"a binding of its account":      {"kubernetes_cluster_role_binding_v1", `{"metadata":[{"name":"a"}],"role_ref":[{"name":"admin"}],"subject":[{"kind":"ServiceAccount","name":"x","namespace":"holdfast-system"}]}`, ``, "own service account"},
		"a binding of the user":         {"kubernetes_role_binding", `{"metadata":[{"name":"a","namespace":"shop"}],"role_ref":[{"name":"admin"}],"subject":[{"kind":"ServiceAccount","name":"deployer","namespace":"ops"}]}`, ``, "own service account"},
		"a binding, subject unknown":    {"kubernetes_cluster_role_binding", `{"metadata":[{"name":"a"}],"subject":[{"kind":"ServiceAccount","namespace":"ops"}]}`, `{"subject":[{"name":true}]}`, "subjects.name is known only"},
		"a role that names its objects": {"kubernetes_cluster_role", `{"metadata":[{"name":"a"}],"rule":[{"resources":["configmaps"],"resource_names":["holdfast-mark-0"]}]}`, ``, "names Holdfast's own object"},
		"a role of its name":            {"kubernetes_cluster_role", `{"metadata":[{"name":"holdfast"}],"rule":[]}`, ``, "reserved"},
		"a webhook on its pods":         {"kubernetes_mutating_webhook_configuration_v1", `{"metadata":[{"name":"a"}],"webhook":[{"name":"a.example.com","rule":[{"api_groups":[""],"resources":["pods"]}]}]}`, ``, "intercepts"},
		"a manifest":                    {"kubernetes_manifest", `{"manifest":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"holdfast-system"}}}`, ``, "own namespace"},
		"a manifest, unknown":           {"kubernetes_manifest", `{}`, `{"manifest":true}`, "manifest is known only after the apply"},
		"a manifest, namespace unknown": {"kubernetes_manifest", `{"manifest":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}}`, `{"manifest":{"metadata":{"namespace":true}}}`, "metadata.namespace is known only"},
		"a binding, subjects unknown":   {"kubernetes_manifest", `{"manifest":{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"a"}}}`, `{"manifest":{"subjects":true}}`, "subjects is known only"},
		"a text":                        {"kubectl_manifest", `{"yaml_body":"apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: holdfast-system}"}`, ``, "own namespace"},
		"a text, unknown":               {"kubectl_manifest", `{}`, `{"yaml_body":true,"namespace":true}`, "yaml_body is known only"},
		"a text, moved":                 {"kubectl_manifest", `{"yaml_body":"apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: shop}","override_namespace":"holdfast-system"}`, ``, "own namespace"},
		"no manifest at all":            {"kubectl_manifest", `{"yaml_body":"{"}`, ``, "not the manifest of one object"},
		"a kustomization":               {"kustomization_resource", `{"manifest":"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\",\"namespace\":\"holdfast-system\"}}"}`, ``, "own namespace"},
		"a release":                     {"helm_release", `{"name":"a","namespace":"holdfast-system"}`, ``, "own namespace"},
		"a release, namespace unknown":  {"helm_release", `{"name":"a"}`, `{"namespace":true}`, "namespace is known only"},
		"a release, values unknown":     {"helm_release", `{"name":"a","namespace":"shop"}`, `{"values":[true]}`, "values is known only"},
		"a release, post-rendered":      {"helm_release", `{"name":"a","namespace":"shop","postrender":[{"binary_path":"/bin/sh"}]}`, ``, "post-renderer is a program"},
		"a namespace of another tool":   {"rancher2_secret_v2", `{"name":"a","namespace":"holdfast-system"}`, ``, "own namespace"},
		"a file in the state":           {"local_file", `{"filename":"/var/lib/holdfast/ledger/checkpoint"}`, ``, "names /var/lib/holdfast"},
		"a file, spelled otherwise":     {"local_file", `{"filename":"/tmp/..//var/./lib/holdfast/x"}`, ``, "names /var/lib/holdfast"},
		"a file, from below":            {"local_file", `{"filename":"../../../../var/lib/holdfast/x"}`, ``, "names /var/lib/holdfast"},
		"a file, through the process":   {"local_file", `{"filename":"/proc/self/root/etc/holdfast/holdfast.yaml"}`, ``, "names /etc/holdfast"},
		"a file, unknown":               {"local_sensitive_file", `{}`, `{"filename":true}`, "filename is known only"},
		"a path in any other value":     {"null_resource", `{"triggers":{"a":["cat /etc/holdfast/key | base64"]}}`, ``, "names /etc/holdfast"},

		"a map elsewhere":            {"kubernetes_config_map", `{"metadata":[{"name":"a","namespace":"shop"}],"data":{"x":"holdfast-system"}}`, `{"id":true,"metadata":[{"uid":true,"generation":true,"resource_version":true}],"data":{"y":true}}`, ""},
		"a manifest elsewhere":       {"kubernetes_manifest", `{"manifest":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"shop"}}}`, `{"object":true,"manifest":{"data":{"x":true}}}`, ""},
		"a binding of another":       {"kubernetes_cluster_role_binding", `{"metadata":[{"name":"a"}],"role_ref":[{"name":"view"}],"subject":[{"kind":"Group","name":"devs"}]}`, `{"id":true,"metadata":[{"uid":true}],"subject":[{"api_group":true}]}`, ""},
		"a text elsewhere":           {"kubectl_manifest", `{"yaml_body":"apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: shop}"}`, `{"namespace":true,"uid":true,"yaml_body_parsed":true}`, ""},
		"a release elsewhere":        {"helm_release", `{"name":"a","namespace":"shop","values":["a: b"]}`, `{"metadata":true,"manifest":true}`, ""},
		"a file with a similar name": {"local_file", `{"filename":"/var/lib/holdfast-notes/x"}`, `{"id":true}`, ""},
		"another cloud's namespace":  {"azurerm_servicebus_queue", `{"namespace":"holdfast-system"}`, ``, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.unknown == "" {
				tc.unknown = "{}"
			}
			line := fmt.Sprintf(`"address":"module.m.%[1]s.x","mode":"managed","type":%[1]q`, tc.kind)
			plans := map[string]string{
				"create": fmt.Sprintf(`{"resource_changes":[{%s,"change":{"actions":["create"],"after":%s,"after_unknown":%s}}]}`, line, tc.after, tc.unknown),
				"import": fmt.Sprintf(`{"resource_changes":[{%s,"change":{"actions":["no-op"],"importing":{"id":"x"},"after":%s,"after_unknown":%s}}]}`, line, tc.after, tc.unknown),
			}
			if tc.unknown == "{}" {
				plans["delete"] = fmt.Sprintf(`{"resource_changes":[{%s,"change":{"actions":["delete"],"before":%s}}]}`, line, tc.after)
				plans["move away"] = fmt.Sprintf(`{"resource_changes":[{%s,"change":{"actions":["update"],"before":%s,"after":{}}}]}`, line, tc.after)
			}
			for how, plan := range plans {
				err := judged(t, plan)
				if tc.want == "" && err != nil {
					t.Errorf("%s: %v", how, err)
				}
				if tc.want != "" && (fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), tc.want) ||
					!strings.Contains(fmt.Sprint(err), "module.m."+tc.kind+".x") || fault.HintOf(err) == "") {
					t.Errorf("%s: %v (%v), hint %q; want %q", how, err, fault.KindOf(err), fault.HintOf(err), tc.want)
				}
			}
		})
	}
	for name, plan := range map[string]string{
		"what stays as it is": `{"resource_changes":[{"type":"helm_release","change":{"actions":["no-op"],"after":{"namespace":"holdfast-system"}}}]}`,
		"what is forgotten":   `{"resource_changes":[{"type":"helm_release","change":{"actions":["forget"],"before":{"namespace":"holdfast-system"}}}]}`,
	} {
		if err := judged(t, plan); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	read := `{"prior_state":{"values":{"root_module":{"child_modules":[{"resources":[{"address":"data.kubernetes_secret.x","mode":"data","type":"kubernetes_secret","values":{"metadata":[{"name":"key","namespace":"holdfast-system"}]}}]}]}}}}`
	if err := judged(t, read); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "data.kubernetes_secret.x") {
		t.Errorf("what was read while the plan was made: %v", err)
	}
	if err := (&Target{}).protect([]byte(`{"resource_changes":[{"type":"helm_release","change":{"actions":["create"],"after":{"namespace":""}}}]}`), &configuration{}); err != nil {
		t.Errorf("nothing is protected: %v", err)
	}
}

// TestConfigurationTouchesTheDaemon: what a configuration writes out is refused
// before the tool starts.
func TestConfigurationTouchesTheDaemon(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ file, text, want string }{
		"typed":           {"main.tf", "resource \"kubernetes_config_map\" \"a\" {\n  metadata {\n    name = \"a\"\n    namespace = \"holdfast-system\"\n  }\n}\n", "main.tf:1: kubernetes_config_map.a: holdfast-system is Holdfast's own namespace"},
		"read":            {"main.tf", "data \"kubernetes_secret_v1\" \"a\" {\n  metadata {\n    name = \"a\"\n    namespace = \"holdfast-system\"\n  }\n}\n", "data.kubernetes_secret_v1.a"},
		"partly computed": {"main.tf", "resource \"kubernetes_manifest\" \"a\" {\n  manifest = {\n    apiVersion = \"v1\"\n    kind = \"ConfigMap\"\n    metadata = { name = var.x, namespace = \"holdfast-system\" }\n    data = { a = local.b }\n  }\n}\n", "Holdfast's own namespace"},
		"a text":          {"main.tf", "resource \"kubectl_manifest\" \"a\" {\n  yaml_body = <<-E\n    apiVersion: v1\n    kind: Namespace\n    metadata: {name: holdfast-system}\n  E\n}\n", "Holdfast's own namespace"},
		"a binding":       {"main.tf", "resource \"kubernetes_cluster_role_binding\" \"a\" {\n  metadata { name = \"a\" }\n  subject {\n    kind = \"ServiceAccount\"\n    name = \"deployer\"\n    namespace = \"ops\"\n  }\n}\n", "own service account"},
		"a release":       {"main.tf", "resource \"helm_release\" \"a\" {\n  name = \"a\"\n  chart = \"x\"\n  namespace = \"holdfast-staging\"\n}\n", "Holdfast's own namespace"},
		"a post-renderer": {"main.tf", "resource \"helm_release\" \"a\" {\n  name = \"a\"\n  postrender { binary_path = var.x }\n}\n", "post-renderer"},
		"JSON":            {"main.tf.json", `{"resource":{"kubernetes_config_map":{"a":{"metadata":{"name":"a","namespace":"holdfast-system"}}}}}`, "Holdfast's own namespace"},
		"a file":          {"main.tf", "resource \"local_file\" \"a\" {\n  content = \"x\"\n  filename = \"/var/lib/holdfast/x\"\n}\n", "main.tf:3: it names /var/lib/holdfast"},
		"a file in parts": {"main.tf", "resource \"local_file\" \"a\" {\n  content = \"x\"\n  filename = \"/var/lib/holdfast/${var.x}\"\n}\n", "main.tf:3: it names /var/lib/holdfast"},
		"a default":       {"variables.tf", "variable \"x\" {\n  default = \"/etc/holdfast/key\"\n}\n", "variables.tf:2: it names /etc/holdfast"},
		"a file, in JSON": {"main.tf.json", `{"resource":{"local_file":{"a":{"content":"x","filename":"/var/lib/holdfast/x"}}}}`, "it names /var/lib/holdfast"},

		"computed":           {"main.tf", "resource \"kubernetes_config_map\" \"a\" {\n  metadata {\n    name = \"a\"\n    namespace = var.x\n  }\n}\n", ""},
		"traffic from there": {"main.tf", "resource \"kubernetes_network_policy\" \"a\" {\n  metadata {\n    name = \"a\"\n    namespace = \"shop\"\n  }\n  spec {\n    ingress {\n      from {\n        namespace_selector { match_labels = { \"kubernetes.io/metadata.name\" = \"holdfast-system\" } }\n      }\n    }\n  }\n}\n", ""},
	} {
		_, err := load(t.Context(), fstest.MapFS{tc.file: {Data: []byte(tc.text)}}, ".", Limits{}.withDefaults(), protected, nil)
		text := fmt.Sprint(err) // without a lock file there is an error in any case
		if tc.want == "" && strings.Contains(text, "Holdfast") || tc.want != "" && (fault.KindOf(err) != fault.Denied || !strings.Contains(text, tc.want)) {
			t.Errorf("%s: %v; want %q", name, err, tc.want)
		}
	}
}

func TestProtectedIsChecked(t *testing.T) {
	t.Parallel()
	for _, p := range []Protected{{Paths: []string{"state"}}, {Paths: []string{"/"}}, {Paths: []string{"/a/../b"}}, {Namespaces: []string{""}}} {
		if p.validate() == nil {
			t.Errorf("%+v was taken", p)
		}
	}
	if err := protected.validate(); err != nil {
		t.Error(err)
	}
}

func FuzzProtect(f *testing.F) {
	f.Add(`{"resource_changes":[{"type":"kubernetes_manifest","change":{"actions":["create"],"after":{"manifest":{"metadata":1}},"after_unknown":{"manifest":[true]}}}]}`)
	f.Add(`{"resource_changes":[{"type":"kubernetes_role","change":{"actions":["delete"],"before":{"metadata":[{"name":1}],"rule":{"resources":1},"subject":[[]]}}}]}`)
	f.Add(`{"prior_state":{"values":{"root_module":{"resources":[{"mode":"data","type":"kubectl_manifest","values":{"yaml_body":"a: &a [*a]"}}]}}}}`)
	f.Fuzz(func(t *testing.T, plan string) {
		err := (&Target{cfg: Config{Protected: protected}}).protect([]byte(plan), &configuration{})
		if err != nil && fault.KindOf(err) == fault.Denied && fault.HintOf(err) == "" {
			t.Errorf("a refusal without a hint: %v", err)
		}
	})
}
