package terraform

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// place is where a type of resource names an artifact.
type place struct {
	// path leads to the value. "[]" goes through a list, "{json}" and "{yaml}"
	// through a text, "{pods}" finds the pods in a Kubernetes object.
	path string
	// rule says what an immutable value looks like; nil is a container image,
	// name@sha256:…, which is verified.
	rule *immutable
}

// immutable is the form of an artifact that is not a container image.
type immutable struct {
	what, hint string
	ok         *regexp.Regexp
}

var (
	machineImage = &immutable{"machine image", "name the image by its id (ami-…)", regexp.MustCompile(`^ami-[0-9a-f]{8,17}$`)}
	googleImage  = &immutable{"machine image", "name one image (projects/P/global/images/I), not a family",
		regexp.MustCompile(`^(https://www\.googleapis\.com/compute/v1/)?projects/[^/]+/global/images/[^/]+$`)}
	azureVersion = &immutable{"machine image version", "name the exact version of the image, not \"latest\"", regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)}
	never        = &immutable{"Helm release", "deploy the chart with a kubernetes stack, where each image is verified", regexp.MustCompile(`^\z.`)}
)

// podPaths are the images of a pod in the Kubernetes provider's own shape.
func podPaths(prefix string) []place {
	return []place{
		{path: prefix + "spec[].container[].image"},
		{path: prefix + "spec[].init_container[].image"},
	}
}

// withPods is the table's entry for a Kubernetes workload.
func withPods(prefix string, types ...string) map[string][]place {
	out := map[string][]place{}
	for _, t := range types {
		out[t] = podPaths(prefix)
	}
	return out
}

// places returns, for each type of resource that runs code, where a plan names
// what will run. To cover another type, add a line here.
func places() map[string][]place {
	out := map[string][]place{
		"aws_lambda_function":                                {{path: "image_uri"}},
		"aws_ecs_task_definition":                            {{path: "container_definitions{json}[].image"}},
		"aws_apprunner_service":                              {{path: "source_configuration[].image_repository[].image_identifier"}},
		"aws_batch_job_definition":                           {{path: "container_properties{json}.image"}},
		"aws_sagemaker_model":                                {{path: "primary_container[].image"}, {path: "container[].image"}},
		"aws_lightsail_container_service_deployment_version": {{path: "container[].image"}},
		"aws_instance":                                       {{path: "ami", rule: machineImage}},
		"aws_spot_instance_request":                          {{path: "ami", rule: machineImage}},
		"aws_launch_template":                                {{path: "image_id", rule: machineImage}},
		"aws_launch_configuration":                           {{path: "image_id", rule: machineImage}},
		"google_cloud_run_service":                           {{path: "template[].spec[].containers[].image"}},
		"google_cloud_run_v2_service":                        {{path: "template[].containers[].image"}},
		"google_cloud_run_v2_job":                            {{path: "template[].template[].containers[].image"}},
		"google_cloud_run_v2_worker_pool":                    {{path: "template[].containers[].image"}},
		"google_compute_instance":                            {{path: "boot_disk[].initialize_params[].image", rule: googleImage}},
		"google_compute_instance_template":                   {{path: "disk[].source_image", rule: googleImage}},
		"azurerm_container_app":                              {{path: "template[].container[].image"}, {path: "template[].init_container[].image"}},
		"azurerm_container_app_job":                          {{path: "template[].container[].image"}, {path: "template[].init_container[].image"}},
		"azurerm_container_group":                            {{path: "container[].image"}, {path: "init_container[].image"}},
		"azurerm_linux_virtual_machine":                      {{path: "source_image_reference[].version", rule: azureVersion}},
		"azurerm_windows_virtual_machine":                    {{path: "source_image_reference[].version", rule: azureVersion}},
		"docker_image":                                       {{path: "name"}},
		"docker_container":                                   {{path: "image"}},
		"docker_service":                                     {{path: "task_spec[].container_spec[].image"}},
		"kubernetes_manifest":                                {{path: "manifest{pods}"}},
		"kubectl_manifest":                                   {{path: "yaml_body_parsed{yaml}{pods}"}},
		"helm_release":                                       {{path: "chart", rule: never}},
	}
	for _, entries := range []map[string][]place{
		withPods("", "kubernetes_pod", "kubernetes_pod_v1"),
		withPods("spec[].template[].",
			"kubernetes_deployment", "kubernetes_deployment_v1", "kubernetes_daemonset", "kubernetes_daemon_set_v1",
			"kubernetes_stateful_set", "kubernetes_stateful_set_v1", "kubernetes_job", "kubernetes_job_v1",
			"kubernetes_replication_controller", "kubernetes_replication_controller_v1"),
		withPods("spec[].job_template[].spec[].template[].", "kubernetes_cron_job", "kubernetes_cron_job_v1"),
	} {
		for t, p := range entries {
			out[t] = p
		}
	}
	return out
}

const opArtifacts = "targets/terraform.PlanArtifacts"

// imageRule is a reference by digest.
var imageRule = regexp.MustCompile(`^[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$`)

// PlanArtifacts returns the container images that the plan would run. Anything
// that is not immutable, or is known only after the apply, is denied: nobody
// could say what would run. Machine images and function archives have to be
// immutable too, and are not among the subjects.
func (t *Target) PlanArtifacts(p plan.Plan) ([]verify.Subject, error) {
	s, err := planArtifacts(p)
	return s, fault.WithStack(t.spec.Stack, err)
}

func planArtifacts(p plan.Plan) ([]verify.Subject, error) {
	if p.Empty() {
		return nil, nil
	}
	i := slices.IndexFunc(p.Documents, func(d plan.Document) bool { return d.Name == PlanDocument })
	if i < 0 {
		return nil, fault.New(fault.Internal, opArtifacts, "", "the plan has no document %s", PlanDocument)
	}
	table := places()
	found := &artifacts{images: map[string][]string{}}
	for _, v := range array(object(p.Documents[i].Value)["resource_changes"]) {
		rc := object(v)
		kind, _ := rc["type"].(string)
		change := object(rc["change"])
		if rc["mode"] == "data" || !writes(array(change["actions"])) {
			continue
		}
		found.address, _ = rc["address"].(string)
		after := object(change["after"])
		for _, at := range table[kind] {
			if err := found.walk(at, at.path, "", after, change["after_unknown"]); err != nil {
				return nil, err
			}
		}
		if kind == "aws_lambda_function" {
			if err := found.archive(after, object(change["after_unknown"])); err != nil {
				return nil, err
			}
		}
	}
	var out []verify.Subject
	for _, ref := range sortedKeys(found.images) {
		out = append(out, verify.Subject{Kind: verify.KindImage, Reference: ref, Locations: found.images[ref]})
	}
	return out, nil
}

// writes reports whether the object is there after the change because of it.
func writes(actions []any) bool {
	return slices.ContainsFunc(actions, func(a any) bool { return a == "create" || a == "update" })
}

// artifacts collects what the resources of a plan name.
type artifacts struct {
	address string              // the resource that is looked at
	images  map[string][]string // reference → locations
}

func (a *artifacts) denied(at, hint, format string, args ...any) error {
	return fault.New(fault.Denied, opArtifacts, hint, "%s: %s %s", a.address, strings.TrimPrefix(at, "."), fmt.Sprintf(format, args...))
}

const hintPin = "pin it: name@sha256:…"

// walk follows rest from v, beside the marks of what is not known yet.
func (a *artifacts) walk(p place, rest, at string, v, unknown any) error {
	if b, _ := unknown.(bool); b {
		hint := hintPin
		if p.rule != nil {
			hint = p.rule.hint
		}
		return a.denied(at, hint, "is known only after the apply")
	}
	if v == nil {
		return nil
	}
	switch {
	case rest == "":
		return a.leaf(p, at, v)
	case strings.HasPrefix(rest, "[]"):
		list, ok := v.([]any)
		if !ok {
			return a.denied(at, hintPin, "is not a list, so nobody can say what it runs")
		}
		marks, _ := unknown.([]any)
		for i, e := range list {
			var mark any
			if i < len(marks) {
				mark = marks[i]
			}
			if err := a.walk(p, rest[2:], fmt.Sprintf("%s[%d]", at, i), e, mark); err != nil {
				return err
			}
		}
		return nil
	case strings.HasPrefix(rest, "{json}"), strings.HasPrefix(rest, "{yaml}"):
		parsed, err := parseText(v, rest[1:5])
		if err != nil {
			return a.denied(at, "keep sensitive values out of what runs", "cannot be read: %v", err)
		}
		return a.walk(p, rest[6:], at, parsed, nil)
	case rest == "{pods}":
		return a.pods(p, at, v)
	}
	name := strings.TrimPrefix(rest, ".")
	end := strings.IndexAny(name, ".[{")
	if end < 0 {
		end = len(name)
	}
	o, ok := v.(map[string]any)
	if !ok {
		return a.denied(at, hintPin, "is not an object, so nobody can say what it runs")
	}
	return a.walk(p, name[end:], at+"."+name[:end], o[name[:end]], object(unknown)[name[:end]])
}

// parseText reads the JSON or YAML in a string.
func parseText(v any, format string) (any, error) {
	s, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("not a text")
	}
	b := []byte(s)
	if format == "yaml" {
		var err error
		if b, err = yaml.YAMLToJSON(b); err != nil {
			return nil, err
		}
	}
	var out any
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&out); err != nil {
		return nil, err
	}
	if _, isText := out.(string); isText {
		return nil, fmt.Errorf("masked, or only a text")
	}
	return out, nil
}

// pods looks for containers anywhere in a Kubernetes object.
func (a *artifacts) pods(p place, at string, v any) error {
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if err := a.pods(p, fmt.Sprintf("%s[%d]", at, i), e); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, name := range sortedKeys(v) {
			e := v[name]
			at := at + "." + name
			switch name {
			case "containers", "initContainers", "ephemeralContainers":
				if err := a.walk(p, "[].image", at, e, nil); err != nil {
					return err
				}
			case "volumes":
				if err := a.walk(p, "[].image.reference", at, e, nil); err != nil {
					return err
				}
			default:
				if err := a.pods(p, at, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// leaf judges one artifact.
func (a *artifacts) leaf(p place, at string, v any) error {
	s, ok := v.(string)
	if !ok {
		return a.denied(at, hintPin, "is not a text")
	}
	if p.rule != nil {
		if !p.rule.ok.MatchString(s) {
			return a.denied(at, p.rule.hint, "names a %s that may change (%q)", p.rule.what, s)
		}
		return nil
	}
	if s == "" {
		return nil
	}
	if !imageRule.MatchString(s) {
		return a.denied(at, hintPin, "names an image that may change (%q)", s)
	}
	a.images[s] = append(a.images[s], a.address+" "+strings.TrimPrefix(at, "."))
	return nil
}

// archive judges the archive of a Lambda function: an object in S3 needs its
// version and the hash of its content; a local file is part of the repository.
func (a *artifacts) archive(after, unknown map[string]any) error {
	if after["s3_bucket"] == nil && unknown["s3_bucket"] != true {
		return nil
	}
	const hint = "give s3_object_version, and source_code_hash as a plain value"
	for _, name := range []string{"s3_key", "s3_object_version", "source_code_hash"} {
		if s, _ := after[name].(string); s == "" {
			return a.denied(name, hint, "has no value that is known before the apply, so the archive may change")
		}
	}
	return nil
}
