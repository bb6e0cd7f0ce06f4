package kubernetes

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// references returns what the rendering of manifest names.
func references(t testing.TB, tt *Target, manifest string) []string {
	t.Helper()
	var out []string
	for _, a := range mustRender(t, tt, map[string]string{"a.yaml": manifest}).Artifacts {
		out = append(out, a.Reference)
	}
	slices.Sort(out)
	return out
}

func TestImagesOfCustomKinds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ manifest, want string }{
		"CloudNativePG": {"apiVersion: postgresql.cnpg.io/v1\nkind: Cluster\nmetadata: {name: a}\nspec: {imageName: 'ghcr.io/cloudnative-pg/postgresql:17', postgresql: {extensions: [{name: x, image: {reference: 'ghcr.io/x/ext:1'}}]}}",
			"ghcr.io/cloudnative-pg/postgresql:17 ghcr.io/x/ext:1"},
		"Prometheus, with a sidecar": {"apiVersion: monitoring.coreos.com/v1\nkind: Prometheus\nmetadata: {name: a}\nspec: {image: 'q/p:1', thanos: {image: 'q/t:1'}, containers: [{name: x, image: 'q/s:1'}]}", "q/p:1 q/s:1 q/t:1"},
		"Strimzi":                    {"apiVersion: kafka.strimzi.io/v1\nkind: Kafka\nmetadata: {name: a}\nspec: {kafka: {version: 4.0.0, image: 'q/k:1'}, entityOperator: {topicOperator: {image: 'q/to:1'}}}", "q/k:1 q/to:1"},
		"Elastic":                    {"apiVersion: elasticsearch.k8s.elastic.co/v1\nkind: Elasticsearch\nmetadata: {name: a}\nspec: {version: 9.0.0, image: 'q/es:9', nodeSets: [{name: x, podTemplate: {spec: {initContainers: [{name: i, image: 'q/i:1'}]}}}]}", "q/es:9 q/i:1"},
		"Argo workflow":              {"apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: a}\nspec: {templates: [{container: {image: 'q/c:1'}}, {script: {image: 'q/s:1'}, sidecars: [{image: 'q/d:1'}]}]}", "q/c:1 q/d:1 q/s:1"},
		"Argo rollout":               {"apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: 'q/c:1'}]}}}", "q/c:1"},
		"Tekton pipeline":            {"apiVersion: tekton.dev/v1\nkind: Pipeline\nmetadata: {name: a}\nspec: {tasks: [{taskSpec: {steps: [{image: 'q/c:1'}]}}], finally: [{taskSpec: {sidecars: [{image: 'q/d:1'}]}}]}", "q/c:1 q/d:1"},
		"Knative":                    {"apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: 'q/c:1'}]}}}", "q/c:1"},
		"VictoriaMetrics":            {"apiVersion: operator.victoriametrics.com/v1beta1\nkind: VMCluster\nmetadata: {name: a}\nspec: {vmselect: {image: {repository: q/vm, tag: v1}}}", "q/vm:v1"},
		"Crossplane package":         {"apiVersion: pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: a}\nspec: {package: 'xpkg.crossplane.io/aws:v1', skipDependencyResolution: true}", "xpkg.crossplane.io/aws:v1"},
		"cert-manager":               {"apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\nspec: {secretName: x}", ""},
		"CloudNativePG, by a catalog of the stack": {"apiVersion: postgresql.cnpg.io/v1\nkind: Cluster\nmetadata: {name: a}\nspec: {imageCatalogRef: {apiGroup: postgresql.cnpg.io, kind: ImageCatalog, name: c, major: 17}}\n---\n" +
			"apiVersion: postgresql.cnpg.io/v1\nkind: ImageCatalog\nmetadata: {name: c}\nspec: {images: [{major: 17, image: 'q/p:17'}]}", "q/p:17"},
		"Tekton, by a task of the stack": {"apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: a}\nspec: {taskRef: {name: t, kind: Task}}\n---\n" +
			"apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {name: t}\nspec: {steps: [{image: 'q/s:1'}]}", "q/s:1"},
		"Tekton triggers": {"apiVersion: triggers.tekton.dev/v1beta1\nkind: TriggerTemplate\nmetadata: {name: a}\nspec: {resourcetemplates: [{apiVersion: tekton.dev/v1, kind: TaskRun, spec: {taskSpec: {steps: [{image: 'q/s:1'}]}}}, {apiVersion: v1, kind: Pod, spec: {containers: [{image: 'q/p:1'}]}}]}", "q/p:1 q/s:1"},
		"Argo, in a step": {"apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: a}\nspec: {templates: [{steps: [[{inline: {container: {image: 'q/c:1'}}}]]}]}", "q/c:1"},
		"Argo, by a template of the stack": {"apiVersion: argoproj.io/v1alpha1\nkind: CronWorkflow\nmetadata: {name: a}\nspec: {workflowSpec: {workflowTemplateRef: {name: t}}}\n---\n" +
			"apiVersion: argoproj.io/v1alpha1\nkind: WorkflowTemplate\nmetadata: {name: t}\nspec: {templates: [{container: {image: 'q/c:1'}}]}", "q/c:1"},
		"a built-in kind": {"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := offline(t, func(s *Spec) { s.Allow.Kinds = []string{"*", "Provider.pkg.crossplane.io"} })
			if got := strings.Join(references(t, tt, tc.manifest), " "); got != tc.want {
				t.Errorf("%q; want %q", got, tc.want)
			}
		})
	}
}

// TestUnverifiable: what makes a controller run images that no path names is
// denied, and the operator's own declaration of the kind accepts it.
func TestUnverifiable(t *testing.T) {
	t.Parallel()
	const tekton, argo, cnpg = "tekton.dev/v1", "argoproj.io/v1alpha1", "postgresql.cnpg.io/v1"
	for name, tc := range map[string]struct{ version, kind, spec, why string }{
		"a resolved task":                     {tekton, "TaskRun", "{taskRef: {resolver: git, params: []}}", "spec.taskRef.resolver fetches what it runs"},
		"a bundled task":                      {tekton, "TaskRun", "{taskRef: {name: x, bundle: 'evil/b:1'}}", "spec.taskRef.bundle runs what a bundle holds"},
		"a task of no stack":                  {tekton, "TaskRun", "{taskRef: {name: x}}", "spec.taskRef runs what an object outside this stack says"},
		"the default resolver":                {tekton, "TaskRun", "{taskRef: {params: []}}", "spec.taskRef runs what an object outside"},
		"a resolved step":                     {tekton, "Task", "{steps: [{ref: {resolver: hub}}]}", "spec.steps[0].ref.resolver fetches"},
		"a resolved pipeline":                 {tekton, "PipelineRun", "{pipelineRef: {resolver: bundles}}", "spec.pipelineRef.resolver fetches"},
		"a bundled pipeline":                  {tekton, "PipelineRun", "{pipelineRef: {bundle: 'evil/b:1'}}", "spec.pipelineRef.bundle runs"},
		"a resolved task in a pipeline":       {tekton, "Pipeline", "{tasks: [{taskRef: {name: x}}], finally: [{taskRef: {resolver: http}}]}", "spec.finally[0].taskRef.resolver fetches"},
		"a resolved task in a pipeline's run": {tekton, "PipelineRun", "{pipelineSpec: {tasks: [{taskRef: {resolver: http}}]}}", "spec.pipelineSpec.tasks[0].taskRef.resolver fetches"},
		"a pipeline in a pipeline":            {tekton, "Pipeline", "{tasks: [{pipelineSpec: {tasks: []}}]}", "hides a pipeline"},
		"a task for another controller":       {tekton, "Pipeline", "{tasks: [{taskSpec: {apiVersion: x.dev/v1, kind: X, spec: {image: 'evil:1'}}}]}", "a controller that nobody has declared"},
		"a resolved task of a trigger":        {"triggers.tekton.dev/v1beta1", "TriggerTemplate", "{resourcetemplates: [{apiVersion: tekton.dev/v1, kind: TaskRun, spec: {taskRef: {resolver: git}}}]}", "spec.resourcetemplates[0].spec.taskRef.resolver fetches"},
		"an unknown object of a trigger":      {"triggers.tekton.dev/v1beta1", "TriggerTemplate", "{resourcetemplates: [{apiVersion: x.dev/v1, kind: Thing}]}", "nobody has declared where objects of the custom kind Thing.x.dev"},
		"an object of a trigger, no image":    {"triggers.tekton.dev/v1beta1", "TriggerTemplate", "{resourcetemplates: [{apiVersion: postgresql.cnpg.io/v1, kind: Cluster, spec: {instances: 1}}]}", "without /spec/imageName"},
		"a manifest":                          {argo, "Workflow", "{templates: [{resource: {action: create, manifest: 'kind: Pod'}}]}", "spec.templates[0].resource.manifest creates objects"},
		"a manifest of an artifact":           {argo, "WorkflowTemplate", "{templates: [{resource: {action: create, manifestFrom: {artifact: {name: x}}}}]}", "resource.manifestFrom creates objects"},
		"a manifest in a step":                {argo, "Workflow", "{templates: [{steps: [[{inline: {resource: {manifest: x}}}]]}]}", "spec.templates[0].steps[0][0].inline.resource.manifest creates"},
		"a patch of the pods":                 {argo, "Workflow", "{podSpecPatch: 'containers: []'}", "spec.podSpecPatch patches the pods"},
		"a patch of a template's pods":        {argo, "CronWorkflow", "{workflowSpec: {templates: [{podSpecPatch: x}]}}", "spec.workflowSpec.templates[0].podSpecPatch patches"},
		"a patch of the collector's pods":     {argo, "Workflow", "{artifactGC: {podSpecPatch: x}}", "spec.artifactGC.podSpecPatch patches"},
		"a template of no stack":              {argo, "Workflow", "{workflowTemplateRef: {name: x}}", "spec.workflowTemplateRef runs what an object outside"},
		"a template of the cluster":           {argo, "Workflow", "{workflowTemplateRef: {name: t, clusterScope: true}}", "spec.workflowTemplateRef runs what an object outside"},
		"a template in a task":                {argo, "Workflow", "{templates: [{dag: {tasks: [{templateRef: {name: x, template: y}}]}}]}", "tasks[0].templateRef runs"},
		"a template in a hook":                {argo, "Workflow", "{hooks: {exit: {templateRef: {name: x, template: y}}}}", "spec.hooks.exit.templateRef runs"},
		"a template on an event":              {argo, "WorkflowEventBinding", "{submit: {workflowTemplateRef: {name: x}}}", "spec.submit.workflowTemplateRef runs"},
		"a workload of no stack":              {argo, "Rollout", "{workloadRef: {apiVersion: apps/v1, kind: Deployment, name: x}}", "spec.workloadRef runs"},
		"a catalog of no stack":               {cnpg, "Cluster", "{imageCatalogRef: {apiGroup: postgresql.cnpg.io, kind: ClusterImageCatalog, name: x, major: 17}}", "spec.imageCatalogRef runs what an object outside"},
		"a database without an image":         {cnpg, "Cluster", "{instances: 1, imageName: ''}", "without /spec/imageName or /spec/imageCatalogRef the kind's controller chooses"},
		"a pooler without an image":           {cnpg, "Pooler", "{instances: 1}", "without /spec/template/spec/containers/*/image"},
		"a build":                             {"kafka.strimzi.io/v1", "KafkaConnect", "{image: 'q/c:1', build: {plugins: [{name: x, artifacts: [{type: jar, url: 'https://evil'}]}]}}", "spec.build makes the operator build an image"},
		"a broker's operator without image":   {"kafka.strimzi.io/v1", "Kafka", "{kafka: {image: 'q/k:1'}, entityOperator: {topicOperator: {}}}", "spec.entityOperator.topicOperator makes the kind's controller choose"},
		"a rack without an image":             {"kafka.strimzi.io/v1", "KafkaConnect", "{image: 'q/c:1', rack: {topologyKey: x}}", "spec.rack makes"},
		"a sidecar without an image":          {"monitoring.coreos.com/v1", "Prometheus", "{image: 'q/p:1', thanos: {}}", "spec.thanos makes"},
		"a part without an image":             {"operator.victoriametrics.com/v1beta1", "VMCluster", "{vmselect: {image: {repository: q, tag: a}}, vminsert: {}}", "spec.vminsert makes"},
		"a queue without an image":            {"rabbitmq.com/v1beta1", "RabbitmqCluster", "{replicas: 1}", "without /spec/image the kind's controller chooses"},
		"one of two images":                   {"databases.spotahome.com/v1", "RedisFailover", "{redis: {image: 'q/r:1'}}", "without /spec/sentinel/image"},
		"what a package depends on":           {"pkg.crossplane.io/v1", "Function", "{package: 'q/f:1', skipDependencyResolution: false}", "without /spec/skipDependencyResolution the package manager installs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Another object of the same name and another kind is not what is meant.
			files := map[string]string{"a.yaml": "apiVersion: " + tc.version + "\nkind: " + tc.kind + "\nmetadata: {name: a}\nspec: " + tc.spec + "\n", "b.yaml": configMap("x", "1"),
				"c.yaml": "apiVersion: argoproj.io/v1alpha1\nkind: WorkflowTemplate\nmetadata: {name: t}\nspec: {}\n"}
			all := func(s *Spec) { s.Allow.Kinds = []string{"*", tc.kind + ".pkg.crossplane.io"} }
			_, err := offline(t, all).Render(t.Context(), snapshot(files))
			if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), tc.why) || !strings.Contains(err.Error(), "a.yaml:1") || !strings.Contains(fault.HintOf(err), "kinds:") {
				t.Fatalf("error %v (%v), hint %q; want %q", err, fault.KindOf(err), fault.HintOf(err), tc.why)
			}
			group, _, _ := strings.Cut(tc.version, "/")
			tt := offline(t, all)
			if tt.c.kinds, err = newKindTable([]KindImages{{Kind: tc.kind + "." + group, None: true}}); err != nil {
				t.Fatal(err)
			}
			if _, err := tt.Render(t.Context(), snapshot(files)); err != nil {
				t.Errorf("with a declaration of the operator's: %v", err)
			}
		})
	}
}

// TestUsedObjects: an object that another one runs is known by its kind, its
// group, its name and its namespace.
func TestUsedObjects(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		value any
		want  string
	}{
		"a name":       {"x", "task.tekton.dev/x"},
		"a reference":  {map[string]any{"name": "x"}, "task.tekton.dev/x"},
		"a kind":       {map[string]any{"name": "x", "kind": "ClusterTask"}, "clustertask.tekton.dev/x"},
		"a group":      {map[string]any{"name": "x", "kind": "Y", "apiGroup": "y.dev"}, "y.y.dev/x"},
		"a version":    {map[string]any{"name": "x", "kind": "Y", "apiVersion": "y.dev/v1"}, "y.y.dev/x"},
		"a scope":      {map[string]any{"name": "x", "clusterScope": true}, "clustertask.tekton.dev/x"},
		"nothing":      {map[string]any{}, "task.tekton.dev/"},
		"not a string": {map[string]any{"name": int64(1)}, "task.tekton.dev/"},
	} {
		if got := used(tc.value, "task.tekton.dev"); got != tc.want {
			t.Errorf("%s: %q; want %q", name, got, tc.want)
		}
	}
	for _, tc := range []struct {
		of, in string
		near   bool
	}{{"", "", true}, {"shop", "", true}, {"", "shop", true}, {"other", "", false}, {"", "other", false}, {"other", "other", true}} {
		ren := &rendering{objects: []*desired{{id: plan.ObjectID{Kind: "Task.tekton.dev", Namespace: tc.of, Name: "x"}}}}
		if ren.declares("task.tekton.dev/x", tc.in, "shop") != tc.near {
			t.Errorf("a task in %q for a run in %q: %v", tc.of, tc.in, !tc.near)
		}
	}
	ren := &rendering{objects: []*desired{{id: plan.ObjectID{Kind: "ClusterTask.tekton.dev", Name: "x"}}}}
	if !ren.declares("clustertask.tekton.dev/x", "other", "shop") {
		t.Error("what is not namespaced is not found from another namespace")
	}
	for _, nothing := range []any{nil, "", false, []any{}} {
		if says(nothing) {
			t.Errorf("%#v is taken for a wish", nothing)
		}
	}
}

// TestUnverifiableTable: every field of the built-in declarations that is refused,
// that needs an image beside it or an object of the stack is found where it
// stands, and every kind that requires a field is denied without.
func TestUnverifiableTable(t *testing.T) {
	t.Parallel()
	table, err := newKindTable(nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, d := range kindsWithImages {
		name, group, _ := strings.Cut(kind, ".")
		gk := schema.GroupKind{Group: group, Kind: name}
		for _, p := range slices.Sorted(maps.Keys(merged(d.refused, d.versions, d.uses))) {
			found, err := table.images(gk, holding(p))
			if err != nil || !slices.ContainsFunc(found, func(im image) bool {
				return fault.KindOf(im.denied) == fault.Denied && im.pointer() == strings.ReplaceAll(p, "*", "0")
			}) {
				t.Errorf("%s: %s: %+v, %v", kind, p, found, err)
			}
		}
		for p := range d.required {
			without := merged(d.required)
			delete(without, p)
			m := map[string]any{}
			for other := range without {
				set(m, pointerTokens(strings.Fields(other)[0]), "q/a:1")
			}
			if err := d.missing(gk, m); fault.KindOf(err) != fault.Denied {
				t.Errorf("%s without %s: %v", kind, p, err)
			}
			for _, enough := range strings.Fields(p) {
				set(m, pointerTokens(enough), "q/a:1")
				if err := d.missing(gk, m); err != nil {
					t.Errorf("%s with %s: %v", kind, enough, err)
				}
			}
		}
	}
}

// holding returns an object with a value at pointer.
func holding(pointer string) map[string]any {
	m := map[string]any{}
	set(m, pointerTokens(pointer), "value")
	return m
}

// set puts value where tokens lead to in m, with * for the first element of a list.
func set(m map[string]any, tokens []string, value any) {
	for i := len(tokens) - 1; i > 0; i-- {
		if tokens[i] == "*" {
			value = []any{value}
		} else {
			value = map[string]any{tokens[i]: value}
		}
	}
	under, ok := m[tokens[0]].(map[string]any)
	if !ok {
		m[tokens[0]] = value
		return
	}
	m[tokens[0]] = overlay(under, value)
}

// TestUnverifiableLive: what somebody adds to a live object that makes its
// controller run other images is found like an image that is added. What a live
// object lacks is not.
func TestUnverifiableLive(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	object := func(spec string) *unstructured.Unstructured {
		return fromYAML(t, "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: a}\nspec: "+spec)
	}
	want := &desired{u: object("{workflowTemplateRef: {name: t}, templates: [{container: {image: 'q/c:1'}}]}")}
	for spec, pointers := range map[string]string{
		"{workflowTemplateRef: {name: t}, templates: [{container: {image: 'q/c:1'}}]}":                  "",
		"{workflowTemplateRef: {name: t}, podSpecPatch: x, templates: [{container: {image: 'q/c:1'}}]}": "/spec/podSpecPatch",
		"{workflowTemplateRef: {name: other}, templates: [{container: {image: 'q/c:1'}}]}":              "/spec/workflowTemplateRef",
		"{workflowTemplateRef: {name: t, clusterScope: true}, templates: [{resource: {manifest: x}}]}":  "/spec/templates/0/resource/manifest /spec/workflowTemplateRef",
	} {
		added, err := tt.c.newImages(want, object(spec))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, im := range added {
			got = append(got, im.pointer())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != pointers {
			t.Errorf("%s: %q; want %q", spec, got, pointers)
		}
	}
	queue := fromYAML(t, "apiVersion: rabbitmq.com/v1beta1\nkind: RabbitmqCluster\nmetadata: {name: a}\nspec: {image: 'q/r:1'}")
	lacking := fromYAML(t, "apiVersion: rabbitmq.com/v1beta1\nkind: RabbitmqCluster\nmetadata: {name: a}\nspec: {replicas: 1}")
	if added, err := tt.c.newImages(&desired{u: queue}, lacking); err != nil || len(added) > 0 {
		t.Errorf("a live object without its image: %+v, %v", added, err)
	}
}

// TestSplitImages: an image in parts is verified as one reference, and pinned so
// that whoever joins the parts gets the digest.
func TestSplitImages(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	for name, tc := range map[string]struct{ image, reference, pinned, refused string }{
		"a tag":                  {image: `{repository: q/a, tag: v1}`, reference: "q/a:v1", pinned: `"tag":"v1@` + d.String() + `"`},
		"a registry":             {image: `{registry: ghcr.io, repository: q/a, tag: v1}`, reference: "ghcr.io/q/a:v1", pinned: `"tag":"v1@` + d.String() + `"`},
		"a tag with digest":      {image: `{repository: q/a, tag: 'v1@sha256:` + strings.Repeat("0", 64) + `'}`, reference: "q/a:v1@sha256:" + strings.Repeat("0", 64), pinned: `"tag":"v1@` + d.String() + `"`},
		"an empty digest":        {image: `{repository: q/a, tag: v1, digest: ''}`, reference: "q/a:v1", pinned: `"digest":"` + d.String() + `"`},
		"a digest":               {image: `{image: q/a, digest: 'sha256:` + strings.Repeat("0", 64) + `'}`, reference: "q/a@sha256:" + strings.Repeat("0", 64), pinned: `"digest":"` + d.String() + `"`},
		"a bare digest":          {image: `{repository: q/a, tag: v1, sha256: ` + strings.Repeat("a", 64) + `}`, reference: "q/a:v1@sha256:" + strings.Repeat("a", 64), pinned: `"sha256":"` + d.Encoded() + `"`},
		"a whole reference":      {image: `{reference: 'q/a:1', pullPolicy: Always}`, reference: "q/a:1", pinned: `"reference":"q/a@` + d.String() + `"`},
		"only an image":          {image: `{image: 'q/a:1'}`, reference: "q/a:1", pinned: `"image":"q/a@` + d.String() + `"`},
		"a string":               {image: `q/a:1`, reference: "q/a:1", pinned: `"image":"q/a@` + d.String() + `"`},
		"no repository":          {image: `{tag: v1}`, refused: "without a repository"},
		"neither tag nor digest": {image: `{repository: q/a}`, refused: "neither tag nor digest"},
		"a tag that is a number": {image: `{repository: q/a, tag: 1.4}`, refused: "tag is not a string"},
		"a number":               {image: `1`, refused: "neither an image reference nor a map"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := offline(t, nil)
			tt.c.kinds["thing.example.com"] = declaration{images: []string{"/spec/*/image"}}
			files := map[string]string{"a.yaml": "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\nspec:\n  main:\n    image: " + tc.image + "\n"}
			r, err := tt.Render(t.Context(), snapshot(files))
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) || !strings.Contains(err.Error(), "a.yaml:1") {
					t.Errorf("error %v; want %q", err, tc.refused)
				}
				return
			}
			if err != nil || len(r.Artifacts) != 1 || r.Artifacts[0].Reference != tc.reference {
				t.Fatalf("artifacts %+v, error %v; want %s", r.Artifacts, err, tc.reference)
			}
			if at := r.Artifacts[0].Locations[0]; at != "a.yaml:6 Thing/a spec.main.image" {
				t.Errorf("location %q", at)
			}
			p, err := tt.Pin(r, map[string]verify.Subject{tc.reference: {Name: "q/a", Digest: d}})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(mustJSON(p.Documents)); !strings.Contains(got, tc.pinned) {
				t.Errorf("pinned: %s; want %s in it", got, tc.pinned)
			}
			if strings.Contains(string(mustJSON(r.Documents)), d.Encoded()) {
				t.Error("Pin changed the rendering that it was given")
			}
		})
	}
}

func TestUndeclaredKinds(t *testing.T) {
	t.Parallel()
	thing := "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n"
	for name, tc := range map[string]struct{ manifest, why, hint string }{
		"nobody knows it":         {"# a note\n" + thing, "a.yaml:2: Thing/a: nobody has declared where objects of the custom kind Thing.example.com name images", "{kind: Thing.example.com, images: [/spec/image]}"},
		"one without images":      {thing, "nobody has declared", "{kind: Thing.example.com, none: true}"},
		"it deploys other things": {"apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: a}\n", "makes Flux install a chart", "{kind: HelmRelease.helm.toolkit.fluxcd.io, none: true}"},
		"a version for an image":  {"apiVersion: elasticsearch.k8s.elastic.co/v1\nkind: Elasticsearch\nmetadata: {name: a}\nspec: {version: 9.0.0}\n", "choose an image by itself", "name the image in /spec/image"},
		"a kind of a known group": {"apiVersion: cert-manager.io/v1\nkind: Novelty\nmetadata: {name: a}\n", "nobody has declared", "Novelty.cert-manager.io"},
	} {
		_, err := offline(t, nil).Render(t.Context(), snapshot(map[string]string{"a.yaml": tc.manifest}))
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), tc.why) || !strings.Contains(fault.HintOf(err), tc.hint) {
			t.Errorf("%s: %v (%v), hint %q", name, err, fault.KindOf(err), fault.HintOf(err))
		}
	}
}

func TestKindTable(t *testing.T) {
	t.Parallel()
	own, err := newKindTable([]KindImages{
		{Kind: "Thing.Example.com", Images: []string{"/spec/a"}},
		{Kind: "HelmRelease.helm.toolkit.fluxcd.io", None: true},
		{Kind: "Cluster.postgresql.cnpg.io", Images: []string{"/spec/other"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := own["thing.example.com"]; len(d.images) != 1 {
		t.Errorf("a declaration of the operator's: %v", d)
	}
	if d := own["cluster.postgresql.cnpg.io"]; !slices.Equal(d.images, []string{"/spec/other"}) {
		t.Errorf("a declaration in the place of a built-in one: %v", d)
	}
	if _, ok := own["helmrelease.helm.toolkit.fluxcd.io"]; !ok {
		t.Error("what the operator accepts is not in the table")
	}
	for name, bad := range map[string][]KindImages{
		"no group":   {{Kind: "Thing", None: true}},
		"neither":    {{Kind: "Thing.example.com"}},
		"both":       {{Kind: "Thing.example.com", None: true, Images: []string{"/a"}}},
		"no pointer": {{Kind: "Thing.example.com", Images: []string{"spec.image"}}},
		"a root":     {{Kind: "Thing.example.com", Images: []string{"/"}}},
		"twice":      {{Kind: "Thing.example.com", None: true}, {Kind: "thing.example.com", None: true}},
	} {
		if _, err := newKindTable(bad); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	// The built-in declarations contradict neither each other nor themselves.
	for kind := range deployers {
		group := kind[strings.Index(kind, ".")+1:]
		if slices.Contains(strings.Fields(kindsWithoutImages[group]), strings.SplitN(kind, ".", 2)[0]) {
			t.Errorf("%s deploys other things, and is said to run no image", kind)
		}
		if _, ok := kindsWithImages[kind]; ok {
			t.Errorf("%s deploys other things, and has image paths", kind)
		}
	}
	for kind, d := range kindsWithImages {
		name, group, _ := strings.Cut(kind, ".")
		if kind != strings.ToLower(kind) || len(d.images)+len(d.required)+len(d.refused)+len(d.uses)+len(d.objects) == 0 || slices.Contains(strings.Fields(kindsWithoutImages[group]), name) {
			t.Errorf("%s: %v", kind, d)
		}
		for _, p := range d.images {
			if !strings.HasPrefix(p, "/spec/") {
				t.Errorf("%s: %q", kind, p)
			}
		}
		for version, named := range d.versions {
			if !slices.Contains(d.images, named) || version == named || strings.Contains(version+named, "*") {
				t.Errorf("%s: %s is said to stand for %s, which is no image", kind, version, named)
			}
		}
	}
	for _, group := range slices.Sorted(maps.Keys(kindsWithoutImages)) {
		if builtinGroup(group) || group != strings.ToLower(group) {
			t.Errorf("%q is no group of custom kinds", group)
		}
	}
}

func FuzzDeclaredImages(f *testing.F) {
	f.Add("apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\nspec: {main: {image: {repository: a, tag: b}}}", "/spec/*/image")
	f.Add("apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\nspec: [{image: a}, 1, null]", "/spec/*/image")
	f.Add("{kind: Thing, image: {digest: '@'}}", "/image")
	f.Fuzz(func(t *testing.T, text, path string) {
		ds, err := decode("a.yaml", []byte(text))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		for _, d := range ds {
			found, err := declaredImages(d.value, pointerTokens(path), nil, nil)
			for _, im := range found {
				if err == nil && im.reference == "" {
					t.Errorf("an image without a reference at %s", dotted(im.path))
				}
				im.pin(verify.Subject{Name: "q/a", Digest: digest.FromString("x")})
			}
		}
	})
}
