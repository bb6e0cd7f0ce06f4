package kubernetes

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/fluxcd/pkg/envsubst"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// TestRenderRefuses has one case for each rule; each fails without its rule.
func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	kust := func(s *Spec) { s.Manifests, s.Kustomize, s.Dir = nil, ".", "app" }
	cm := configMap("a", "x")
	withKust := func(k string) map[string]string {
		return map[string]string{"app/kustomization.yaml": k, "app/cm.yaml": cm}
	}
	const ok = "resources: [cm.yaml]\n"
	bomb := strings.Repeat("${V//o/", 40) + "x" + strings.Repeat("}", 40)
	big := func(s *Spec) { s.Variables = map[string]string{"V": strings.Repeat("x", maxFileBytes/8)} }
	for name, c := range map[string]struct {
		files map[string]string
		spec  func(*Spec)
		kind  fault.Kind
		want  string
	}{
		"duplicate key":      {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  k: a\n  k: b\n"}, want: "a.yaml:6: the key \"k\""},
		"duplicate in json":  {files: map[string]string{"a.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","name":"b"}}`}, spec: func(s *Spec) { s.Manifests = []string{"a.json"} }, want: "duplicate field"},
		"duplicate object":   {files: map[string]string{"a.yaml": cm, "b.yaml": cm}, want: "a.yaml:1 and b.yaml:1"},
		"no name":            {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n"}, want: "without a name"},
		"name of no string":  {files: map[string]string{"a.yaml": configMap("y", "")}, want: "metadata.name is not a string"},
		"generateName":       {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n"}, want: "generateName"},
		"path in name":       {files: map[string]string{"a.yaml": configMap("a/b", "")}, want: "not valid"},
		"status only":        {files: map[string]string{"a.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nstatus: {replicas: 1}\n"}, want: "status only"},
		"a live copy":        {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, uid: x}\n"}, want: "copy of a live object"},
		"owner mark":         {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, annotations: {holdfast.dev/stack: x/y}}\n"}, kind: fault.Denied, want: "Holdfast's own"},
		"no match":           {files: map[string]string{"a.txt": cm}, want: "matches no"},
		"no object":          {files: map[string]string{"a.yaml": "# nothing\n"}, want: "renders no object"},
		"unset variable":     {files: map[string]string{"a.yaml": configMap("a", "${NOPE}")}, spec: func(s *Spec) { s.Variables = map[string]string{} }, want: `a.yaml:4: variable not set (strict mode): "NOPE"`},
		"variable operator":  {files: map[string]string{"a.yaml": configMap("a", "${A:-x}")}, spec: func(s *Spec) { s.Variables = map[string]string{"A": "a"} }, want: "a.yaml:4: not a plain ${NAME}"},
		"nested variable":    {files: map[string]string{"a.yaml": configMap("a", bomb)}, spec: func(s *Spec) { s.Variables = map[string]string{"V": "oo"} }, want: "a.yaml:4: not a plain ${NAME}"},
		"open variable":      {files: map[string]string{"a.yaml": "# ${V"}, spec: func(s *Spec) { s.Variables = map[string]string{"V": "oo"} }, want: "a.yaml:1: not a plain ${NAME}"},
		"variable length":    {files: map[string]string{"a.yaml": configMap("a", "${#V}")}, spec: func(s *Spec) { s.Variables = map[string]string{"V": "oo"} }, want: "not a plain ${NAME}"},
		"long file":          {files: map[string]string{"a.yaml": strings.Repeat("# ${V}\n", 10)}, spec: big, want: "a.yaml:8: the file is larger"},
		"long files":         {files: manyFiles(10, strings.Repeat("# ${V}\n", 7)), spec: big, want: "the stack has more than"},
		"not base64":         {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: '%'}\n"}, want: "not base64"},
		"hidden document":    {files: map[string]string{"a.yaml": cm + "...\n" + configMap("a", "y")}, want: "declared twice"},
		"foreign namespace":  {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: other}\n"}, kind: fault.Denied, want: "namespace other is not allowed"},
		"kind not allowed":   {files: map[string]string{"a.yaml": cm}, spec: func(s *Spec) { s.Allow.Kinds = []string{"Deployment.apps"} }, kind: fault.Denied, want: "kind ConfigMap is not allowed"},
		"cluster by glob":    {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"}, kind: fault.Denied, want: "cluster-scoped kind Namespace is not allowed by name"},
		"another namespace":  {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n"}, spec: func(s *Spec) { s.Allow.Kinds = []string{"Namespace"} }, kind: fault.Denied, want: "namespace other is not allowed"},
		"own namespace":      {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: holdfast-system}\n"}, spec: func(s *Spec) { s.Allow.Namespaces = []string{"*"} }, kind: fault.Denied, want: "own namespace"},
		"own role":           {files: map[string]string{"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: holdfast-daemon}\nrules: []\n"}, spec: func(s *Spec) { s.Allow.Kinds = []string{"ClusterRole.rbac.authorization.k8s.io"} }, kind: fault.Denied, want: "reserved"},
		"own account":        {files: map[string]string{"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: a}\nroleRef: {kind: Role, name: x, apiGroup: rbac.authorization.k8s.io}\nsubjects: [{kind: ServiceAccount, name: x, namespace: holdfast-system}]\n"}, kind: fault.Denied, want: "own service account"},
		"kustomize via file": {files: map[string]string{"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nmetadata: {name: x}\n"}, want: "not something to apply"},
		"dir leaves":         {files: map[string]string{"a.yaml": cm}, spec: func(s *Spec) { s.Manifests = []string{"../x.yaml"} }, want: "leaves the repository"},
		"absolute":           {files: map[string]string{"a.yaml": cm}, spec: func(s *Spec) { s.Manifests = []string{"/etc/passwd"} }, want: "not a relative path"},
		"link leaves":        {files: map[string]string{"a.yaml": "-> ../../etc/passwd"}, want: "symbolic link leaves"},

		"remote base":         {files: withKust("resources: ['https://example.com/x.yaml']\n"), spec: kust, want: "remote resource"},
		"git base":            {files: withKust("resources: ['git@example.com:a/b']\n"), spec: kust, want: "remote resource"},
		"github, also a path": {files: map[string]string{"app/kustomization.yaml": "resources: [github.com/a/b]\n", "app/github.com/a/b/kustomization.yaml": "resources: [cm.yaml]\n", "app/github.com/a/b/cm.yaml": cm}, spec: kust, want: "remote resource"},
		"remote component":    {files: withKust(ok + "components: ['https://example.com/x']\n"), spec: kust, want: "remote resource"},
		"remote patch":        {files: withKust(ok + "patches: [{path: 'https://example.com/x'}]\n"), spec: kust, want: "remote resource"},
		"remote old patch":    {files: withKust(ok + "patchesStrategicMerge: ['https://example.com/{x}']\n"), spec: kust, want: "remote resource"},
		"remote file":         {files: withKust(ok + "configMapGenerator: [{name: g, files: ['a=https://example.com/x']}]\n"), spec: kust, want: "remote resource"},
		"remote env":          {files: withKust(ok + "secretGenerator: [{name: g, env: 'https://example.com/x'}]\n"), spec: kust, want: "remote resource"},
		"remote, in a base":   {files: map[string]string{"app/kustomization.yaml": "resources: [../base]\n", "base/kustomization.yaml": "bases: ['https://example.com/x']\n"}, spec: kust, want: "base/kustomization.yaml"},
		"openapi":             {files: withKust(ok + "openapi: {path: cm.yaml}\n"), spec: kust, want: "openapi is not supported"},
		"openapi, other case": {files: withKust(ok + "OpenAPI: {path: cm.yaml}\n"), spec: kust, want: "openapi is not supported"},
		"openapi in a part":   {files: map[string]string{"app/kustomization.yaml": ok + "components: [c]\n", "app/cm.yaml": cm, "app/c/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nopenapi: {version: v1.20.4}\n"}, spec: kust, want: "openapi is not supported"},
		"helm":                {files: withKust(ok + "helmCharts: [{name: x}]\n"), spec: kust, want: "helmCharts"},
		"old helm":            {files: withKust(ok + "helmChartInflationGenerator: [{chartName: x}]\n"), spec: kust, want: "helmChartInflationGenerator"},
		"helm globals":        {files: withKust(ok + "helmGlobals: {chartHome: x}\n"), spec: kust, want: "helmGlobals"},
		"generators":          {files: withKust(ok + "generators: [cm.yaml]\n"), spec: kust, want: "generators"},
		"transformers":        {files: withKust(ok + "transformers: [cm.yaml]\n"), spec: kust, want: "transformers"},
		"validators":          {files: withKust(ok + "validators: [cm.yaml]\n"), spec: kust, want: "validators"},
		"kustomize absolute":  {files: withKust("resources: [/etc/passwd]\n"), spec: kust, want: "not a relative path"},
		"kustomize leaves":    {files: withKust("resources: [../../x]\n"), spec: kust, want: "leaves the repository"},
		"kustomize link":      {files: map[string]string{"app/kustomization.yaml": ok, "app/cm.yaml": "-> ../../cm.yaml"}, spec: kust, want: "symbolic link leaves"},
		"unknown field":       {files: withKust(ok + "recources: []\n"), spec: kust, want: "recources"},
		"kustomize dup key":   {files: map[string]string{"app/kustomization.yaml": ok, "app/cm.yaml": cm + "data: {x: y}\n"}, spec: kust, want: "app/cm.yaml:5"},
		"kustomize variable":  {files: map[string]string{"app/kustomization.yaml": ok, "app/cm.yaml": configMap("a", "${NOPE}")}, spec: func(s *Spec) { kust(s); s.Variables = map[string]string{} }, want: "app/cm.yaml:4: variable not set"},
		"kustomize cycle":     {files: map[string]string{"app/kustomization.yaml": "resources: [../b]\n", "b/kustomization.yaml": "resources: [../app]\n"}, spec: kust, want: "app: the folder is a base of itself"},
		"kustomize diamond":   {files: diamond(22, "resources: [../l%[1]d, ../m%[1]d]\n"), spec: kust, want: "more than 1000 folders"},
		"kustomize twice":     {files: diamond(22, "resources: [../l%[1]d, ../l%[1]d]\n"), spec: kust, want: "more than 1000 folders"},
		"components twice":    {files: diamond(22, "resources: [../l%[1]d]\ncomponents: [../l%[1]d]\n"), spec: kust, want: "more than 1000 folders"},
		"kustomize objects":   {files: map[string]string{"app/kustomization.yaml": "resources: [" + strings.Repeat("../b,", 99) + "]\n", "b/kustomization.yaml": ok, "b/cm.yaml": strings.Repeat(cm+"---\n", 60)}, spec: kust, want: "more than 5000 objects"},
		"kustomize bytes":     {files: map[string]string{"app/kustomization.yaml": ok + "configMapGenerator: [{name: g, files: [" + strings.Repeat("f,", 99) + "]}]\n", "app/cm.yaml": cm, "app/f": strings.Repeat("x", 1<<20)}, spec: kust, want: "more than 33554432 bytes"},
		"missing resource":    {files: withKust("resources: [nope]\n"), spec: kust, want: "app/nope does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := offline(t, c.spec).Render(t.Context(), snapshot(c.files))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v; want one with %q", err, c.want)
			}
			want := c.kind
			if want == 0 {
				want = fault.Invalid
			}
			if got := fault.KindOf(err); got != want {
				t.Errorf("kind %v; want %v (%v)", got, want, err)
			}
			if want == fault.Denied && fault.HintOf(err) == "" {
				t.Error("a denial without a hint")
			}
		})
	}
}

// diamond returns levels of folders that each name the next one by format.
func diamond(levels int, format string) map[string]string {
	files := map[string]string{"app/kustomization.yaml": fmt.Sprintf(format, 0)}
	for i := range levels {
		for _, side := range []string{"l", "m"} {
			files[fmt.Sprintf("%s%d/kustomization.yaml", side, i)] = fmt.Sprintf(format, i+1)
		}
	}
	for _, side := range []string{"l", "m"} {
		files[fmt.Sprintf("%s%d/kustomization.yaml", side, levels)] = "resources: [cm.yaml]\n"
		files[fmt.Sprintf("%s%d/cm.yaml", side, levels)] = configMap(side, "x")
	}
	return files
}

func manyFiles(n int, text string) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprintf("%d.yaml", i)] = text
	}
	return files
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	c := offline(t, nil).c
	for name, change := range map[string]func(*Spec){
		"no stack":       func(s *Spec) { s.Stack = "" },
		"slash in stack": func(s *Spec) { s.Stack = "a/b" },
		"no environment": func(s *Spec) { s.Environment = "" },
		"no namespace":   func(s *Spec) { s.Namespace = "" },
		"no kinds":       func(s *Spec) { s.Allow.Kinds = nil },
		"bad glob":       func(s *Spec) { s.Allow.Kinds = []string{"["} },
		"both":           func(s *Spec) { s.Kustomize = "." },
		"neither":        func(s *Spec) { s.Manifests = nil },
	} {
		if _, err := New(c, spec("shop", change)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestRenderKustomize(t *testing.T) {
	t.Parallel()
	tt := offline(t, func(s *Spec) {
		s.Manifests, s.Kustomize, s.Dir = nil, ".", "apps/web"
		s.Variables = map[string]string{"COUNT": "3", "NAME": "blue"}
	})
	r := mustRender(t, tt, map[string]string{
		"apps/web/kustomization.yaml": "namePrefix: p-\nresources: [../../base]\npatches:\n- path: patch.yaml\nconfigMapGenerator:\n- name: gen\n  files: [script=run.sh]\n",
		"apps/web/patch.yaml":         "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: ${COUNT}}\n",
		"apps/web/run.sh":             "echo ${HOME}\n",
		"base/kustomization.yaml":     "resources: [all.yaml]\n",
		"base/all.yaml":               configMap("a", "${NAME} $${NAME}") + "---\n" + deployment,
	})
	var got []string
	for _, d := range r.Documents {
		m := d.Value.(map[string]any)
		got = append(got, fmt.Sprintf("%s:%d %s/%s", d.Name, d.Line, m["kind"], m["metadata"].(map[string]any)["name"]))
	}
	want := "base/all.yaml:1 ConfigMap/p-a|apps/web/kustomization.yaml:0 ConfigMap/p-gen-|base/all.yaml:6 Deployment/p-web"
	if s := strings.Join(got, "|"); !strings.HasPrefix(s, want[:60]) || !strings.HasSuffix(s, "base/all.yaml:6 Deployment/p-web") {
		t.Errorf("documents:\n%s\nwant like\n%s", s, want)
	}
	docs := string(mustJSON(r.Documents))
	for _, s := range []string{`"replicas":3`, `blue ${NAME}`, `echo ${HOME}`, `"namespace":"shop"`} {
		if !strings.Contains(docs, s) {
			t.Errorf("no %s in %s", s, docs)
		}
	}
	if strings.Contains(docs, "config.kubernetes.io") {
		t.Error("a note of kustomize is left")
	}
}

func TestRenderListsAndSecrets(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	r := mustRender(t, tt, map[string]string{"a.yaml": `apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata:
    name: s
    annotations: {kubectl.kubernetes.io/last-applied-configuration: 'geheimnis'}
  data: {a: Z2VoZWltbmlz}
  stringData: {b: geheimnis}
- apiVersion: v1
  kind: List
  items:
  - {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {initContainers: [{name: i, image: one}], volumes: [{name: v, image: {reference: two}}]}}
`})
	docs := string(mustJSON(r.Documents))
	if strings.Contains(docs, "geheimnis") || strings.Contains(docs, "Z2VoZWltbmlz") {
		t.Errorf("the secret is in the documents: %s", docs)
	}
	data := r.Documents[0].Value.(map[string]any)["data"].(map[string]any)
	if data["a"] != data["b"] || !strings.HasPrefix(fmt.Sprint(data["a"]), "(masked ") {
		t.Errorf("masks of equal values: %v", data)
	}
	if r.Documents[0].Line != 4 || len(r.Artifacts) != 2 {
		t.Errorf("line %d, artifacts %+v", r.Documents[0].Line, r.Artifacts)
	}
}

// FuzzSubstitute: a plain reference is replaced as envsubst does it.
func FuzzSubstitute(f *testing.F) {
	f.Add("${A} $${A} $$ $ $$${A}${B}$\n")
	f.Add("${A:-${B}}")
	j := &job{Variables: map[string]string{"A": "a$${B}", "B": ""}}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := j.substitute(&tree{}, "a.yaml", []byte(text))
		if err != nil || len(text) > 1000 || !strings.Contains(text, "${") || strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
			return // envsubst stops at a NUL
		}
		want, err := envsubst.Eval(text, func(v string) (string, bool) { s, ok := j.Variables[v]; return s, ok })
		if err != nil || string(got) != want {
			t.Errorf("%q gives %q; want %q, %v", text, got, want, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("a.yaml", deployment+"---\n"+configMap("a", "x"))
	f.Add("a.yaml", "a: &a [*a]\n")
	f.Add("a.yaml", "--- {apiVersion: v1, kind: List, items: [{kind: X, metadata: {name: y}}]}\n...\n%YAML 1.1\n---\n")
	f.Add("a.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`)
	tt := offline(f, nil)
	f.Fuzz(func(t *testing.T, name, text string) {
		if len(name) > 100 || len(text) > 1<<16 {
			return
		}
		found, err := decode(name, []byte(text))
		if err != nil {
			return
		}
		b, err := encode(found)
		if err != nil {
			return
		}
		ds, err := decodeAnswer(b)
		if err != nil && fs.ValidPath(name) {
			t.Fatalf("%q: an answer that nobody takes: %v", text, err)
		}
		for _, d := range ds {
			o, err := tt.object(d, customResources(ds))
			if err != nil {
				continue
			}
			if _, err := json.Marshal(o.u.Object); err != nil || o.id.Name == "" || o.after == "" {
				t.Errorf("%q gives an object that cannot be sent: %v", text, err)
			}
			if _, err := images(o.u.Object); err != nil {
				continue
			}
		}
	})
}
