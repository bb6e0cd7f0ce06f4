package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
	"github.com/holdfast-dev/holdfast/verify"
)

// syncBuffer is a log that tests may read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// snapshot makes one of files; a value that starts with "-> " is a symbolic link.
func snapshot(files map[string]string) *sources.Snapshot {
	m := fstest.MapFS{}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%q %q\n", name, files[name])
		m[name] = &fstest.MapFile{Data: []byte(files[name]), Mode: 0o644}
		if to, ok := strings.CutPrefix(files[name], "-> "); ok {
			m[name] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
		}
	}
	return &sources.Snapshot{
		Revision: sources.Revision{Source: "test", ID: hex.EncodeToString(h.Sum(nil)[:20])},
		Tree:     digest.NewDigest(digest.SHA256, h), FS: m,
	}
}

// offline returns a target that can render, and nothing else.
func offline(t testing.TB, change func(*Spec)) *Target {
	t.Helper()
	return target(t, &rest.Config{Host: "http://127.0.0.1:1"}, "shop", nil, change)
}

func target(t testing.TB, conf *rest.Config, namespace string, log *syncBuffer, change func(*Spec)) *Target {
	t.Helper()
	tt, err := New(cluster(t, conf, log), spec(namespace, change))
	if err != nil {
		t.Fatal(err)
	}
	return tt
}

func spec(namespace string, change func(*Spec)) Spec {
	s := Spec{Stack: "web-" + namespace, Environment: "test", Namespace: namespace, Manifests: []string{"*.yaml"}, Allow: Allow{Kinds: []string{"*"}}}
	if change != nil {
		change(&s)
	}
	return s
}

func clusterConfig(t testing.TB, conf *rest.Config, log *syncBuffer) ClusterConfig {
	t.Helper()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := ClusterConfig{REST: conf, Key: []byte("fedcba9876543210"), Masker: m, Lease: LeaseConfig{Off: true}}
	if log != nil {
		cfg.Log = slog.New(slog.NewJSONHandler(log, nil))
	}
	return cfg
}

// cluster returns a Cluster whose watches run until t ends.
func cluster(t testing.TB, conf *rest.Config, log *syncBuffer) *Cluster {
	t.Helper()
	c, err := NewCluster(clusterConfig(t, conf, log))
	if err != nil {
		t.Fatal(err)
	}
	c.definitions = nil // those of other tests, which have everything looked at anew
	running(t, c)
	return c
}

// running has the watches of c run until t ends.
func running(t testing.TB, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func configMap(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {key: %q}\n", name, value)
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.example/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        resources: {limits: {cpu: "1", memory: 1Gi}}
        securityContext: {}
`

func secretManifest(value string) string {
	return "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\ndata: {password: " + base64.StdEncoding.EncodeToString([]byte(value)) + "}\n"
}

var gvrs = map[string]schema.GroupVersionResource{
	"configmaps":  {Version: "v1", Resource: "configmaps"},
	"secrets":     {Version: "v1", Resource: "secrets"},
	"deployments": {Group: "apps", Version: "v1", Resource: "deployments"},
	"namespaces":  {Version: "v1", Resource: "namespaces"},
}

func dyn(t testing.TB, conf *rest.Config) dynamic.Interface {
	t.Helper()
	d, err := dynamic.NewForConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// edit merges patch into an object, as manager.
func edit(t testing.TB, d dynamic.Interface, manager, resource, ns, name, patch string, sub ...string) {
	t.Helper()
	_, err := d.Resource(gvrs[resource]).Namespace(ns).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: manager}, sub...)
	if err != nil {
		t.Fatalf("edit %s: %v", name, err)
	}
}

func read(t testing.TB, d dynamic.Interface, ns string) string {
	t.Helper()
	var b strings.Builder
	for _, r := range []string{"configmaps", "secrets", "deployments"} {
		list, err := d.Resource(gvrs[r]).Namespace(ns).List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list.Items {
			if u.GetName() == "kube-root-ca.crt" {
				continue
			}
			unstructured.RemoveNestedField(u.Object, "metadata", "annotations", "deployment.kubernetes.io/revision") // a controller's, at any moment
			fmt.Fprintf(&b, "%s\n", mustJSON(content(u.Object)))
		}
	}
	return b.String()
}

func TestTarget(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	const secret = `p"ss/word+&<geheim>?`
	targetstest.Run(t, func(t *testing.T) targetstest.World {
		ns := testenv.Namespace(t, c)
		log := &syncBuffer{}
		d := dyn(t, c.Config)
		v1 := map[string]string{"a.yaml": configMap("a", "one"), "b.yaml": configMap("b", "one"), "s.yaml": secretManifest(secret), "d.yaml": deployment}
		v2, shrunk := maps.Clone(v1), maps.Clone(v1)
		v2["a.yaml"] = configMap("a", "two")
		delete(shrunk, "b.yaml")
		return targetstest.World{
			Target: target(t, c.Config, ns, log, nil),
			V1:     snapshot(v1), V2: snapshot(v2), Shrunk: snapshot(shrunk),
			Secret:  secret,
			Disturb: func(t testing.TB) { edit(t, d, "kubectl-edit", "configmaps", ns, "a", `{"data":{"key":"disturbed"}}`) },
			Read:    func(t testing.TB) string { return read(t, d, ns) },
			Content: func(t testing.TB) string { return unmarked(read(t, d, ns)) },
			Log:     log.String,
			Prepare: func(t testing.TB, r targets.Rendered) targets.Rendered { return pinAll(t, r) },
		}
	})
}

// unmarked is what read returns, without our marks.
func unmarked(objects string) string {
	for _, mark := range []string{`"holdfast\.dev/stack":"[^"]*",?`, `"holdfast\.dev/managed":"true",?`, `"(annotations|labels)":\{\},?`} {
		objects = regexp.MustCompile(mark).ReplaceAllString(objects, "")
	}
	return strings.ReplaceAll(objects, ",}", "}")
}

// pinAll is where a pipeline would pin; what the tests deploy is pinned already.
func pinAll(t testing.TB, r targets.Rendered) targets.Rendered {
	t.Helper()
	for _, a := range r.Artifacts {
		if !strings.Contains(a.Reference, "@sha256:") {
			t.Fatalf("%s is not pinned", a.Reference)
		}
	}
	return r
}

func mustRender(t testing.TB, tt *Target, files map[string]string) targets.Rendered {
	t.Helper()
	r, err := tt.Render(t.Context(), snapshot(files))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustPlan(t testing.TB, tt *Target, r targets.Rendered) plan.Plan {
	t.Helper()
	p, err := tt.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func deploy(t testing.TB, tt *Target, files map[string]string) targets.Rendered {
	t.Helper()
	r := mustRender(t, tt, files)
	p := mustPlan(t, tt, r)
	if p.Empty() {
		return r
	}
	if rec, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatalf("Apply: %v\n%s", err, mustJSON(rec))
	}
	return r
}

func getObject(t testing.TB, d dynamic.Interface, resource, ns, name string) *unstructured.Unstructured {
	t.Helper()
	u, err := d.Resource(gvrs[resource]).Namespace(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestPin(t *testing.T) {
	t.Parallel()
	tt := offline(t, nil)
	r := mustRender(t, tt, map[string]string{"d.yaml": strings.ReplaceAll(deployment, "web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "web:1.4")})
	if len(r.Artifacts) != 1 || r.Artifacts[0].Reference != "registry.example/web:1.4" ||
		r.Artifacts[0].Locations[0] != "d.yaml:12 Deployment/web spec.template.spec.containers[0].image" {
		t.Fatalf("artifacts: %+v", r.Artifacts)
	}
	if _, err := tt.Pin(r, nil); err == nil {
		t.Error("an artifact without a digest was pinned")
	}
	s := verify.Subject{Name: "registry.example/web", Digest: digest.FromString("x")}
	p, err := tt.Pin(r, map[string]verify.Subject{"registry.example/web:1.4": s})
	if err != nil {
		t.Fatal(err)
	}
	if p.Digest == r.Digest || !strings.Contains(string(mustJSON(p.Documents)), s.Pinned()) || strings.Contains(string(mustJSON(p.Documents)), "web:1.4") {
		t.Errorf("pinned: %s", mustJSON(p.Documents))
	}
	if strings.Contains(string(mustJSON(r.Documents)), s.Pinned()) {
		t.Error("Pin changed the rendering that it was given")
	}
}
