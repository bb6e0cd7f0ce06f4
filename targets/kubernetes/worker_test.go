package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/examples"
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/sandbox"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
)

// workers is shared by the tests; it ends with the process.
var workers = sync.OnceValues(func() (*sandbox.Pool, error) {
	return sandbox.New(sandbox.Config{Task: RenderTask})
})

// confined returns a target that renders in a worker, and does nothing else.
func confined(t testing.TB, change func(*Spec)) *Target {
	t.Helper()
	p, err := workers()
	if err != nil {
		t.Fatal(err)
	}
	return rendererTarget(t, p, change)
}

func limited(t testing.TB, l sandbox.Limits, change func(*Spec)) *Target {
	t.Helper()
	p, err := sandbox.New(sandbox.Config{Task: RenderTask, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return rendererTarget(t, p, change)
}

func rendererTarget(t testing.TB, r Renderer, change func(*Spec)) *Target {
	t.Helper()
	tt := target(t, &rest.Config{Host: "http://127.0.0.1:1"}, "shop", nil, change)
	tt.c.cfg.Renderer = r
	return tt
}

func kustomized(s *Spec) { s.Manifests, s.Kustomize, s.Dir = nil, ".", "app" }

// sameRendering renders both ways and wants the same, errors included.
func sameRendering(t *testing.T, s *sources.Snapshot, change func(*Spec)) (targets.Rendered, error) {
	t.Helper()
	want, wantErr := offline(t, change).Render(t.Context(), s)
	got, err := confined(t, change).Render(t.Context(), s)
	if fmt.Sprint(err) != fmt.Sprint(wantErr) || fault.KindOf(err) != fault.KindOf(wantErr) || fault.HintOf(err) != fault.HintOf(wantErr) {
		t.Fatalf("in a worker: %v (%v; %s)\nin process: %v (%v; %s)", err, fault.KindOf(err), fault.HintOf(err), wantErr, fault.KindOf(wantErr), fault.HintOf(wantErr))
	}
	if err != nil {
		return got, err
	}
	if got.Digest != want.Digest || !reflect.DeepEqual(got.Documents, want.Documents) || !reflect.DeepEqual(got.Artifacts, want.Artifacts) {
		t.Errorf("in a worker:\n%s\nin process:\n%s", mustJSON(got.Documents), mustJSON(want.Documents))
	}
	return got, nil
}

// TestWorkersRenderTheSame: every stack of the examples and of the end-to-end
// scripts.
func TestWorkersRenderTheSame(t *testing.T) {
	t.Parallel()
	trees := map[string]fs.FS{"examples": examples.FS}
	scripts, err := filepath.Glob("../../cmd/holdfast/testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scripts {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files := fstest.MapFS{}
		for _, f := range a.Files {
			files[f.Name] = &fstest.MapFile{Data: f.Data}
		}
		trees[name] = files
	}
	n := 0
	for tree, fsys := range trees {
		for _, s := range stacks(t, fsys) {
			n++
			t.Run(tree+"/"+s.Dir, func(t *testing.T) {
				t.Parallel()
				r, err := sameRendering(t, &sources.Snapshot{Revision: sources.Revision{Source: "test", ID: "1"}, FS: fsys}, func(spec *Spec) { *spec = s })
				if tree == "examples" && (err != nil || len(r.Documents) == 0) {
					t.Errorf("%d documents, %v", len(r.Documents), err)
				}
			})
		}
	}
	if n < 3 {
		t.Errorf("found %d stacks", n)
	}
}

// stacks returns what the stack files of a tree ask for, with everything allowed.
func stacks(t *testing.T, fsys fs.FS) []Spec {
	t.Helper()
	var out []Spec
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != config.StackFile {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		s, err := config.ParseStack(name, b)
		if err != nil || s.Spec.Kubernetes == nil {
			return nil //nolint:nilerr // a script about stack files that are wrong
		}
		k := s.Spec.Kubernetes
		spec := Spec{
			Stack: s.Metadata.Name, Environment: s.Spec.Environment, Dir: filepath.Dir(name), Namespace: k.Namespace,
			Kustomize: k.Kustomize, Manifests: k.Manifests, Allow: Allow{Kinds: []string{"*"}},
			Variables: map[string]string{"REGISTRY": "registry.example", "SHOP_NAME": "Shop"},
		}
		if k.Kustomize == "" && len(k.Manifests) == 0 {
			spec.Manifests = []string{"."}
		}
		out = append(out, spec)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWorkersRenderTheSameLines: where the lines of values come from is not lost.
func TestWorkersRenderTheSameLines(t *testing.T) {
	t.Parallel()
	r, err := sameRendering(t, snapshot(map[string]string{"a.yaml": `# first
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: p, labels: &l {a: "b"}}
  spec:
    nodeSelector: *l
    containers:
    - <<: &c
        name: c
        image: one
    - name: d

      image: two
    initContainers: &i
    - name: i
      image: three
    ephemeralContainers: *i
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c, annotations: {"<&>": "\u2028"}}, data: {n: "1e3", big: "12345678901234567890"}}
`}), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range r.Artifacts {
		got = append(got, a.Locations...)
	}
	slices.Sort(got)
	want := []string{
		"a.yaml:16 Pod/p spec.containers[1].image",
		"a.yaml:19 Pod/p spec.ephemeralContainers[0].image", // the line it is written on
		"a.yaml:19 Pod/p spec.initContainers[0].image",
		"a.yaml:5 Pod/p spec.containers[0].image", // behind a merge key: that of the object
	}
	if !slices.Equal(got, want) {
		t.Errorf("locations %q; want %q", got, want)
	}
}

// TestWorkersRefuseTheSame: hostile files are a clear error in bounded memory,
// and the next stack is rendered by the same pool.
func TestWorkersRefuseTheSame(t *testing.T) {
	t.Parallel()
	cm := configMap("a", "x")
	for name, c := range map[string]struct {
		files map[string]string
		spec  func(*Spec)
		want  string
	}{
		"10 MB manifest":      {files: map[string]string{"a.yaml": cm + strings.Repeat("# x\n", 10<<18)}, want: "a.yaml is larger than 4194304 bytes"},
		"deep YAML":           {files: map[string]string{"a.yaml": cm + "x: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\n"}, want: "a.yaml"},
		"deeper YAML":         {files: map[string]string{"a.yaml": cm + "x: " + strings.Repeat("[", 1<<20)}, want: "a.yaml"},
		"deep JSON":           {files: map[string]string{"a.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`}, spec: func(s *Spec) { s.Manifests = []string{"."} }, want: "a.json:1: nested too deeply"},
		"alias bomb":          {files: map[string]string{"a.yaml": aliasBomb(cm)}, want: "excessive aliasing"},
		"alias of itself":     {files: map[string]string{"a.yaml": cm + "x: &a [*a]\n"}, want: "contains itself"},
		"duplicate keys":      {files: map[string]string{"a.yaml": cm + "kind: Secret\n"}, want: "a.yaml:5: the key \"kind\""},
		"NUL bytes":           {files: map[string]string{"a.yaml": cm + "x: a\x00b\n"}, want: "a.yaml:1: yaml: control characters are not allowed"},
		"invalid UTF-8":       {files: map[string]string{"a.yaml": cm + "x: \xff\n"}, want: "a.yaml:1: yaml"},
		"components in loops": {files: componentLoop(), spec: kustomized, want: "is a base of itself"},
		"path traversal":      {files: map[string]string{"app/kustomization.yaml": "resources: [../../etc/passwd]\n"}, spec: kustomized, want: "leaves the repository"},
		"traversal by patch":  {files: map[string]string{"app/kustomization.yaml": "resources: [cm.yaml]\npatches: [{path: ../../../x}]\n", "app/cm.yaml": cm}, spec: kustomized, want: "leaves the repository"},
		"symlink loop":        {files: map[string]string{"a.yaml": "-> b.yaml", "b.yaml": "-> a.yaml"}, want: "too many symbolic links"},
		"symlink to a parent": {files: map[string]string{"app/kustomization.yaml": "resources: [down]\n", "app/down": "-> ../app"}, spec: kustomized, want: "app"},
		"symlink out":         {files: map[string]string{"a.yaml": "-> /etc/passwd"}, want: "symbolic link leaves"},
		"many files":          {files: manyFiles(maxFiles+1, "# x\n"), want: "more than 2000 files"},
		"many objects":        {files: map[string]string{"a.yaml": strings.Repeat(cm+"---\n", maxObjects+1)}, want: "more than 5000 objects"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := snapshot(c.files)
			if err := refusal(sameRendering(t, s, c.spec)); err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want one with %q", err, c.want)
			}
			mustRender(t, confined(t, nil), map[string]string{"a.yaml": cm})
		})
	}
}

func refusal(_ targets.Rendered, err error) error { return err }

func aliasBomb(start string) string {
	out := start + "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 9; i++ {
		out += fmt.Sprintf("a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	return out
}

func componentLoop() map[string]string {
	part := "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncomponents: [../%s]\n"
	return map[string]string{
		"app/kustomization.yaml": "resources: [cm.yaml]\ncomponents: [../one]\n", "app/cm.yaml": configMap("a", "x"),
		"one/kustomization.yaml": fmt.Sprintf(part, "two"), "two/kustomization.yaml": fmt.Sprintf(part, "one"),
	}
}

// slow is a kustomization, within all limits on what is read, that takes
// minutes: every patch is tried on every object.
func slow() map[string]string {
	var objects, patches strings.Builder
	for i := range 4000 {
		objects.WriteString(configMap(fmt.Sprintf("c%d", i), "x") + "---\n")
	}
	for i := range 2000 {
		fmt.Fprintf(&patches, "- target: {kind: ConfigMap, name: 'c.*'}\n  patch: '[{op: add, path: /data/k%d, value: y}]'\n", i)
	}
	return map[string]string{"app/kustomization.yaml": "resources: [all.yaml]\npatches:\n" + patches.String(), "app/all.yaml": objects.String()}
}

// big is a kustomization, within all limits on what is read, that takes
// gigabytes: one long value is copied to every object.
func big() map[string]string {
	var objects strings.Builder
	for i := range 500 {
		objects.WriteString(configMap(fmt.Sprintf("c%d", i), "x") + "---\n")
	}
	objects.WriteString(configMap("source", strings.Repeat("x", 3<<20)))
	return map[string]string{
		"app/kustomization.yaml": "resources: [all.yaml]\nreplacements:\n- source: {kind: ConfigMap, name: source, fieldPath: data.key}\n  targets:\n  - select: {kind: ConfigMap}\n    fieldPaths: [data.copy]\n    options: {create: true}\n",
		"app/all.yaml":           objects.String(),
	}
}

// TestKustomizationThatTakesMinutes is killed at the limit, and the next stack renders.
func TestKustomizationThatTakesMinutes(t *testing.T) {
	t.Parallel()
	tt := limited(t, sandbox.Limits{Time: 3 * time.Second}, kustomized)
	begun := time.Now()
	_, err := tt.Render(t.Context(), snapshot(slow()))
	// On a host without a CPU to spare it is the host's fault.
	if err == nil || !strings.Contains(err.Error(), "longer than 3s") || fault.HintOf(err) == "" {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	mustRender(t, tt, map[string]string{"app/kustomization.yaml": "resources: [cm.yaml]\n", "app/cm.yaml": configMap("a", "x")})
}

// TestKustomizationThatTakesGigabytes is killed at the limit, and costs this
// process nothing.
func TestKustomizationThatTakesGigabytes(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector itself takes more memory than the limit")
	}
	tt := limited(t, sandbox.Limits{Memory: 256 << 20}, kustomized)
	s := snapshot(big())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := tt.Render(t.Context(), s)
	runtime.ReadMemStats(&after)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), "more than 256 MiB of memory") || fault.HintOf(err) == "" {
		t.Errorf("error %v (%v)", err, fault.KindOf(err))
	}
	if d := after.TotalAlloc - before.TotalAlloc; d > 64<<20 {
		t.Errorf("it took %d MiB here", d>>20)
	}
	mustRender(t, tt, map[string]string{"app/kustomization.yaml": "resources: [cm.yaml]\n", "app/cm.yaml": configMap("a", "x")})
}

// spy notes the trust domains that are rendered.
type spy struct{ domains []string }

func (s *spy) Run(ctx context.Context, domain string, request []byte, fsys fs.FS) ([]byte, error) {
	s.domains = append(s.domains, domain)
	return inProcess{}.Run(ctx, domain, request, fsys)
}

// TestTrustDomain is the repository with the environment.
func TestTrustDomain(t *testing.T) {
	t.Parallel()
	s := &spy{}
	for _, repository := range []string{"one", "two"} {
		for _, environment := range []string{"test", "production"} {
			snap := snapshot(map[string]string{"a.yaml": configMap("a", "x")})
			snap.Revision.Source = repository
			if _, err := rendererTarget(t, s, func(spec *Spec) { spec.Environment = environment }).Render(t.Context(), snap); err != nil {
				t.Fatal(err)
			}
		}
	}
	slices.Sort(s.domains)
	if n := len(slices.Compact(s.domains)); n != 4 {
		t.Errorf("%d trust domains of 4: %q", n, s.domains)
	}
}

// saying is a renderer that says one thing.
type saying struct {
	answer string
	err    error
}

func (s saying) Run(context.Context, string, []byte, fs.FS) ([]byte, error) {
	return []byte(s.answer), s.err
}

// TestAnswersAreHostile: what a worker says gets no permission, no place and no
// more memory than an honest answer.
func TestAnswersAreHostile(t *testing.T) {
	t.Parallel()
	object := func(more string) string {
		return `{"objects":[{"file":"a.yaml","line":1` + more + `,"value":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}}]}`
	}
	for name, c := range map[string]struct {
		answer, want string
		kind         fault.Kind
	}{
		"nothing":         {answer: ``, want: "nonsense"},
		"no JSON":         {answer: `{"objects":[`, want: "nonsense"},
		"no object":       {answer: `{"objects":[{"file":"a.yaml","value":null}]}`, want: "nonsense"},
		"a list":          {answer: `{"objects":[{"file":"a.yaml","value":[]}]}`, want: "nonsense"},
		"empty":           {answer: `{}`, want: "renders no object", kind: fault.Invalid},
		"no place":        {answer: strings.Replace(object(""), "a.yaml", "../a.yaml", 1), want: "nonsense"},
		"negative line":   {answer: strings.Replace(object(""), `"line":1`, `"line":-1`, 1), want: "nonsense"},
		"too few lines":   {answer: object(`,"lines":[1,1,1]`), want: "nonsense"},
		"too many lines":  {answer: object(`,"lines":[1,1,1,1,1,1]`), want: "nonsense"},
		"negative lines":  {answer: object(`,"lines":[1,1,1,1,-1]`), want: "nonsense"},
		"deep":            {answer: `{"objects":[{"file":"a.yaml","value":{"x":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + `}}]}`, want: "nonsense"},
		"many values":     {answer: `{"objects":[{"file":"a.yaml","value":{"x":[` + strings.Repeat("0,", maxValues) + `0]}}]}`, want: "nonsense"},
		"many objects":    {answer: `{"objects":[` + strings.Repeat(`{"file":"a","value":{}},`, maxObjects) + `{"file":"a","value":{}}]}`, want: "nonsense"},
		"not permitted":   {answer: strings.Replace(object(""), `{"name":"a"}`, `{"name":"a","namespace":"holdfast-system"}`, 1), want: "Holdfast's own namespace", kind: fault.Denied},
		"no Kubernetes":   {answer: `{"objects":[{"file":"a.yaml","value":{"apiVersion":"v1","kind":"ConfigMap"}}]}`, want: "no metadata", kind: fault.Invalid},
		"name of no name": {answer: strings.Replace(object(""), `{"name":"a"}`, `{"name":["a"]}`, 1), want: "not a string", kind: fault.Invalid},
	} {
		_, err := rendererTarget(t, saying{answer: c.answer}, nil).Render(t.Context(), snapshot(nil))
		if err == nil || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%v); want %v with %q", name, err, fault.KindOf(err), c.kind, c.want)
		}
	}
}

// TestErrorsOfRenderingAreMasked: it quotes what it reads.
func TestErrorsOfRenderingAreMasked(t *testing.T) {
	t.Parallel()
	tt := rendererTarget(t, saying{err: fault.New(fault.Invalid, opRender, "remove geheimnis", "line 1: geheimnis is wrong")}, nil)
	tt.c.cfg.Masker.Register("geheimnis")
	_, err := tt.Render(t.Context(), snapshot(nil))
	if all := fmt.Sprint(err) + fault.HintOf(err); strings.Contains(all, "geheimnis") || !strings.Contains(all, "(masked ") || fault.KindOf(err) != fault.Invalid {
		t.Errorf("error %q, kind %v", all, fault.KindOf(err))
	}
}

// TestFirstErrorQuotesNoSecret: kustomize quotes what it could not use, before
// any rendering has told the masker what is secret.
func TestFirstErrorQuotesNoSecret(t *testing.T) {
	t.Parallel()
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
	replacement := "resources: [s.yaml]\nreplacements: [{source: {kind: Secret, fieldPath: %s}, targets: [{select: {kind: Secret}, fieldPaths: [metadata.name]}]}]\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"stringData": {map[string]string{"app/kustomization.yaml": fmt.Sprintf(replacement, "stringData.x.y.z"), "app/s.yaml": secret + "stringData: {x: geheimnis-eins}\n"}, "(masked "},
		"data":       {map[string]string{"app/kustomization.yaml": fmt.Sprintf(replacement, "data.x.y.z"), "app/s.yaml": secret + "data: {x: Z2VoZWltbmlzLWVpbnM=}\n"}, "(masked "},
		"a patch":    {map[string]string{"app/kustomization.yaml": "resources: [s.yaml]\npatches: [{path: p.yaml}]\n", "app/s.yaml": secret + "stringData: geheimnis-eins\n", "app/p.yaml": secret + "stringData: {a: geheimnis-zwei}\n"}, "(masked "},
		"literal":    {map[string]string{"app/kustomization.yaml": "secretGenerator: [{name: s, literals: [geheimnis-eins]}]\n"}, "(masked "},
		"env file":   {map[string]string{"app/kustomization.yaml": "secretGenerator: [{name: s, envs: [e]}]\n", "app/e": "K=geheimnis-eins\xff\n"}, "not UTF-8"},
		"too many":   {map[string]string{"app/kustomization.yaml": "secretGenerator: [{name: s, literals: [geheimnis-eins], files: [f]}]\n", "app/f": strings.Repeat("geheimnis", maxMasked/8)}, "kept back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := sameRendering(t, snapshot(c.files), kustomized)
			all := fmt.Sprint(err) + fault.HintOf(err)
			if err == nil || strings.Contains(all, "geheimnis") || strings.Contains(all, "Z2VoZWlt") || !strings.Contains(all, c.want) {
				t.Errorf("error %q; want one with %q", all, c.want)
			}
		})
	}
}

// FuzzDecodeAnswer: what is taken can be sent back as it came.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"objects":[{"file":"a.yaml","line":1,"lines":[1,2,3,4],"value":{"a":[1,{}]}}]}`))
	f.Add([]byte(`{"objects":[{"file":"a.yaml","value":{"a":1e3,"b":12345678901234567890,"c":"\ud800"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ds, err := decodeAnswer(b)
		if err != nil {
			return
		}
		for _, d := range ds {
			if d.value == nil || !fs.ValidPath(d.file) || d.lineAt([]any{"a", 0}) < 0 {
				t.Errorf("%q gives %+v", b, d)
			}
			if _, err := json.Marshal(d.value); err != nil {
				t.Error(err)
			}
		}
	})
}

// BenchmarkRender compares a warm worker with rendering in process, on the
// kustomization of the examples.
func BenchmarkRender(b *testing.B) {
	files, err := fs.Sub(examples.FS, "shop")
	if err != nil {
		b.Fatal(err)
	}
	s := &sources.Snapshot{Revision: sources.Revision{Source: "test", ID: "1"}, FS: files}
	change := func(s *Spec) {
		s.Manifests, s.Kustomize, s.Dir = nil, ".", "apps/web"
		s.Variables = map[string]string{"REGISTRY": "registry.example", "SHOP_NAME": "Shop"}
	}
	for name, tt := range map[string]*Target{"process": offline(b, change), "worker": limited(b, sandbox.Limits{Runs: 1 << 30}, change)} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				begun := time.Now()
				if _, err := tt.Render(b.Context(), s); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			for _, q := range []int{50, 99} {
				b.ReportMetric(float64(took[len(took)*q/100].Microseconds()), fmt.Sprintf("p%d-µs", q))
			}
		})
	}
}
