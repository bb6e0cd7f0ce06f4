package terraform

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const pinned = "ghcr.io/acme/shop@sha256:9c41f0e5d3b2a1908f7e6d5c4b3a29181706f5e4d3c2b1a0998877665544332f"

// change is a plan's document with one resource.
func change(t *testing.T, kind, after, unknown string) plan.Plan {
	t.Helper()
	if unknown == "" {
		unknown = "{}"
	}
	after = strings.ReplaceAll(after, "PINNED", pinned)
	v, err := decode([]byte(`{"resource_changes":[{"address":"` + kind + `.x","mode":"managed","type":"` + kind + `",
		"change":{"actions":["create"],"after":` + after + `,"after_unknown":` + unknown + `}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return plan.Plan{Changes: []plan.Change{{Action: plan.Create}}, Documents: []plan.Document{{Name: PlanDocument, Value: v}}}
}

func TestPlanArtifacts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind, after, unknown string
		denied               string // part of the error; "" is allowed
		images               int
	}{
		{kind: "aws_lambda_function", after: `{"image_uri":"PINNED"}`, images: 1},
		{kind: "aws_lambda_function", after: `{"image_uri":"ghcr.io/acme/shop:1.4"}`, denied: "may change"},
		{kind: "aws_lambda_function", after: `{}`, unknown: `{"image_uri":true}`, denied: "only after the apply"},
		{kind: "aws_lambda_function", after: `{"s3_bucket":"b","s3_key":"k","s3_object_version":"v","source_code_hash":"h"}`},
		{kind: "aws_lambda_function", after: `{"s3_bucket":"b","s3_key":"k","source_code_hash":"h"}`, denied: "s3_object_version"},
		{kind: "aws_lambda_function", after: `{"s3_bucket":"b","s3_key":"k","s3_object_version":"v"}`, unknown: `{"source_code_hash":true}`, denied: "source_code_hash"},
		{kind: "aws_lambda_function", after: `{"s3_key":"k"}`, unknown: `{"s3_bucket":true}`, denied: "s3_object_version"},
		{kind: "aws_ecs_task_definition", after: `{"container_definitions":"[{\"image\":\"PINNED\"},{\"image\":\"PINNED\"}]"}`, images: 1},
		{kind: "aws_ecs_task_definition", after: `{"container_definitions":"[{\"image\":\"PINNED\"},{\"image\":\"nginx\"}]"}`, denied: "container_definitions[1].image"},
		{kind: "aws_ecs_task_definition", after: `{"container_definitions":"(masked 00)"}`, denied: "cannot be read"},
		{kind: "aws_ecs_task_definition", after: `{}`, unknown: `{"container_definitions":true}`, denied: "only after the apply"},
		{kind: "aws_instance", after: `{"ami":"ami-0123456789abcdef0"}`},
		{kind: "aws_instance", after: `{"ami":"resolve:ssm:/latest"}`, denied: "machine image"},
		{kind: "google_cloud_run_service", after: `{"template":[{"spec":[{"containers":[{"image":"PINNED"}]}]}]}`, images: 1},
		{kind: "google_cloud_run_v2_service", after: `{"template":[{"containers":[{"image":"a:latest"}]}]}`, denied: "may change"},
		{kind: "google_cloud_run_v2_job", after: `{"template":[{"template":[{"containers":[{}]}]}]}`,
			unknown: `{"template":[{"template":[{"containers":[{"image":true}]}]}]}`, denied: "only after the apply"},
		{kind: "google_compute_instance", after: `{"boot_disk":[{"initialize_params":[{"image":"projects/p/global/images/family/f"}]}]}`, denied: "family"},
		{kind: "google_compute_instance", after: `{"boot_disk":[{"initialize_params":[{"image":"projects/p/global/images/i-1"}]}]}`},
		{kind: "azurerm_container_app", after: `{"template":[{"container":[{"image":"PINNED"}],"init_container":[{"image":"x:1"}]}]}`, denied: "init_container"},
		{kind: "azurerm_container_group", after: `{"container":[{"image":"PINNED"}]}`, images: 1},
		{kind: "azurerm_linux_virtual_machine", after: `{"source_image_reference":[{"version":"latest"}]}`, denied: "latest"},
		{kind: "docker_image", after: `{"name":"nginx"}`, denied: "may change"},
		{kind: "docker_container", after: `{"image":"PINNED"}`, images: 1},
		{kind: "kubernetes_pod_v1", after: `{"spec":[{"container":[{"image":"x"}]}]}`, denied: "may change"},
		{kind: "kubernetes_deployment", after: `{"spec":[{"template":[{"spec":[{"container":[{"image":"PINNED"}],"init_container":[{"image":"PINNED"}]}]}]}]}`, images: 1},
		{kind: "kubernetes_cron_job_v1", after: `{"spec":[{"job_template":[{"spec":[{"template":[{"spec":[{"container":[{"image":"x"}]}]}]}]}]}]}`, denied: "may change"},
		{kind: "kubernetes_manifest", after: `{"manifest":{"kind":"Deployment","spec":{"template":{"spec":{"initContainers":[{"image":"x"}]}}}}}`, denied: "initContainers[0].image"},
		{kind: "kubernetes_manifest", after: `{"manifest":{"spec":{"volumes":[{"image":{"reference":"x"}},{"name":"y"}]}}}`, denied: "reference"},
		{kind: "kubernetes_manifest", after: `{}`, unknown: `{"manifest":true}`, denied: "only after the apply"},
		{kind: "kubectl_manifest", after: `{"yaml_body_parsed":"spec:\n  containers:\n  - image: PINNED\n"}`, images: 1},
		{kind: "kubectl_manifest", after: `{"yaml_body_parsed":"spec:\n  containers:\n  - image: x\n"}`, denied: "may change"},
		{kind: "helm_release", after: `{"chart":"x"}`, denied: "Helm"},
		{kind: "terraform_data", after: `{"image":"x"}`},
	} {
		p := change(t, c.kind, c.after, c.unknown)
		got, err := planArtifacts(p)
		switch {
		case c.denied == "" && (err != nil || len(got) != c.images):
			t.Errorf("%s %s: %v, %v; want %d images", c.kind, c.after, got, err, c.images)
		case c.denied != "" && (fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error()+fault.HintOf(err), c.denied)):
			t.Errorf("%s %s %s: %v; want a denial that says %q", c.kind, c.after, c.unknown, err, c.denied)
		case c.images > 0 && (got[0].Reference != pinned || !strings.Contains(got[0].Locations[0], c.kind+".x ")):
			t.Errorf("%s: %+v", c.kind, got[0])
		}
	}
}

func TestPlanArtifactsWithoutDocument(t *testing.T) {
	t.Parallel()
	if _, err := planArtifacts(plan.Plan{Changes: []plan.Change{{Action: plan.Create}}}); err == nil {
		t.Error("a plan without its document names nothing, and is accepted")
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte("provider \"registry.opentofu.org/hashicorp/local\" {\n  version = \"1\"\n  hashes = [\"h1:x\"]\n}\n"))
	f.Add([]byte("provider \"a/b/c\" {\n  version = 1\n  hashes = x\n}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLock("lock", b)
		if err != nil {
			return
		}
		for _, e := range l.entries {
			if !validAddress(e.addr) || strings.ContainsAny(e.version, `/\`) {
				t.Errorf("accepted %q %q", e.addr, e.version)
			}
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add("locals { a = 1 }", false)
	f.Add(`{"module":{"a":[{"source":"./m"}]},"resource":{"x_y":{"z":{"provider":"a.b"}}}}`, true)
	f.Add("terraform {\n required_providers {\n a = { source = \"b/c\" }\n d = \"1\"\n }\n backend \"s3\" {}\n}\nvariable \"v\" {\n sensitive = null\n}", false)
	f.Fuzz(func(t *testing.T, src string, asJSON bool) {
		name := "main.tf"
		if asJSON {
			name = "main.tf.json"
		}
		c, err := load(t.Context(), fuzzFS(name, src), ".", Limits{}.withDefaults(), Protected{Namespaces: []string{"holdfast-system"}, Paths: []string{"/var/lib/holdfast"}}, nil)
		if err == nil && len(c.files) != 1 {
			t.Errorf("%d files", len(c.files))
		}
	})
}

// FuzzView feeds the JSON of plans.
func FuzzView(f *testing.F) {
	f.Add([]byte(`{"format_version":"1.2","resource_changes":[{"address":"a.b","type":"a","change":{"actions":["update"],
		"before":{"p":"supersecret"},"after":{"p":"supersecret","q":[1]},"after_unknown":{"q":[true]},
		"before_sensitive":{"p":true},"after_sensitive":{"p":true}}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		target := &Target{}
		target.cfg.Masker = testMasker(t)
		v, err := target.view(b, &rendering{config: &configuration{lock: &lockFile{}}})
		if err == nil && len(v.changes) == 0 {
			t.Error("no change, and no error")
		}
	})
}
