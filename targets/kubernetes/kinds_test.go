package kubernetes

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
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
		"Crossplane package":         {"apiVersion: pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: a}\nspec: {package: 'xpkg.crossplane.io/aws:v1'}", "xpkg.crossplane.io/aws:v1"},
		"cert-manager":               {"apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\nspec: {secretName: x}", ""},
		"an image that is not named": {"apiVersion: rabbitmq.com/v1beta1\nkind: RabbitmqCluster\nmetadata: {name: a}\nspec: {replicas: 1}", ""},
		"a built-in kind":            {"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}", ""},
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
		if kind != strings.ToLower(kind) || len(d.images) == 0 || slices.Contains(strings.Fields(kindsWithoutImages[group]), name) {
			t.Errorf("%s: %v", kind, d)
		}
		for _, p := range d.images {
			if !strings.HasPrefix(p, "/spec/") {
				t.Errorf("%s: %q", kind, p)
			}
		}
		for version, named := range d.versions {
			if !slices.Contains(d.images, named) || version == named {
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
