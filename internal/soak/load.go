package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

const (
	namespaces = "app-"
	somebody   = "somebody" // who makes live edits; never the daemon

	editors    = 2
	editPause  = 300 * time.Millisecond // at most, between two edits of an editor
	pushPause  = 1500 * time.Millisecond
	deleteOnce = 4 // one of so many edits is a deletion
	// respite is how long an object is left alone after an edit: ten reverts of the same
	// field within a minute are a fight, which the daemon reverts ever more slowly.
	respite = 12 * time.Second
)

// object is a kind that each application has one object of, and an edit that
// somebody makes of it by hand: of a declared value, or beside one.
type object struct {
	gvr  schema.GroupVersionResource
	kind string // as plans name it
	edit string
}

var objects = []object{
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "ConfigMap", `{"data":{"value":"edited"}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "Service", `{"spec":{"ports":[{"port":81}]}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, "ServiceAccount", `{"automountServiceAccountToken":true}`},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, "Deployment.apps", `{"spec":{"revisionHistoryLimit":4}}`},
}

func appName(i int) string { return fmt.Sprintf("%s%04d", namespaces, i) }

// app returns the files of one application.
func app(i int, value string) map[string]string {
	dir := "apps/" + appName(i) + "/"
	return map[string]string{
		dir + "stack.yaml": fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: %[1]s}\nspec:\n  environment: production\n"+
			"  kubernetes: {namespace: %[1]s, kustomize: .}\n  drift: {mode: revert}\n", appName(i)),
		dir + "kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [app.yaml]\n",
		dir + "app.yaml":           fmt.Sprintf(manifests, value, "${REGISTRY}/acme/web:1.0"),
	}
}

// manifests is in the order of objects.
const manifests = `apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {value: %q}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  revisionHistoryLimit: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: web
        image: %s
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// load is what people do, and what they want.
type load struct {
	edits, deletions, commits atomic.Int64

	mu      sync.Mutex
	touched map[[2]int]time.Time // application and object
	head    string               // the newest commit
	values  []string             // what it declares, by application
}

func (s *soak) in(i int, o object) dynamic.ResourceInterface {
	return s.live.Resource(o.gvr).Namespace(appName(i))
}

// namespaces makes a namespace for each application.
func (s *soak) namespaces(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range s.apps {
		g.Go(func() error {
			ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": appName(i)}}}
			_, err := s.live.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(ctx, ns, metav1.CreateOptions{})
			return err
		})
	}
	return g.Wait()
}

// publish commits every application.
func (s *soak) publish() (err error) {
	files := map[string]string{}
	for i := range s.apps {
		s.load.values = append(s.load.values, "0")
		for name, content := range app(i, "0") {
			files[name] = content
		}
	}
	s.load.head, err = s.world.Commit("Everything", s.world.Alice, files)
	return err
}

// underLoad has people at work for as long as do takes. phase makes their choices
// other ones than those of other phases.
func (s *soak) underLoad(ctx context.Context, phase uint64, do func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	working, stop := context.WithCancel(ctx)
	for i := range uint64(editors) {
		g.Go(func() error { return again(working, s.random(phase<<8+i), editPause, s.disturb) })
	}
	g.Go(func() error { return again(working, s.random(phase<<8+editors), pushPause, s.push) })
	g.Go(func() error {
		defer stop()
		return do(ctx)
	})
	return g.Wait()
}

// again does something with pauses of a random length until ctx ends.
func again(ctx context.Context, random *rand.Rand, pause time.Duration, do func(context.Context, *rand.Rand) error) error {
	for {
		if err := do(ctx, random); err != nil && ctx.Err() == nil {
			return err
		}
		if sleep(ctx, time.Duration(random.Int64N(int64(pause)))) != nil {
			return nil // told to stop
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// disturb edits or deletes a live object.
func (s *soak) disturb(ctx context.Context, random *rand.Rand) (err error) {
	i, k, del := random.IntN(s.apps), random.IntN(len(objects)), random.IntN(deleteOnce) == 0
	if !s.load.touch(i, k) {
		return nil
	}
	if del {
		s.load.deletions.Add(1)
		err = s.in(i, objects[k]).Delete(ctx, "web", metav1.DeleteOptions{})
	} else {
		s.load.edits.Add(1)
		_, err = s.in(i, objects[k]).Patch(ctx, "web", types.MergePatchType, []byte(objects[k].edit), metav1.PatchOptions{FieldManager: somebody})
	}
	if apierrors.IsNotFound(err) { // deleted before, and not back yet
		return nil
	}
	return err
}

// touch reports whether an object has had its rest, and notes that it is touched now.
func (l *load) touch(app, object int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, now := [2]int{app, object}, time.Now()
	if now.Sub(l.touched[at]) < respite {
		return false
	}
	if l.touched == nil {
		l.touched = map[[2]int]time.Time{}
	}
	l.touched[at] = now
	return true
}

// push commits another value for an application.
func (s *soak) push(_ context.Context, random *rand.Rand) error {
	i, value := random.IntN(s.apps), fmt.Sprintf("commit-%d", s.load.commits.Add(1))
	files := app(i, value)
	head, err := s.world.Commit(value, s.world.Alice, files)
	if err != nil {
		return err
	}
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	s.load.head, s.load.values[i] = head, value
	return nil
}

// declared returns the objects of an application as the newest commit has them.
func (s *soak) declared(i int) ([]map[string]any, error) {
	var all []map[string]any
	for doc := range strings.SplitSeq(fmt.Sprintf(manifests, s.load.values[i], s.image), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}

// unlike returns where live is not as declared, or nothing. Fields that are not
// declared do not count; more elements of a list do.
func unlike(at string, declared, live any) string {
	switch want := declared.(type) {
	case map[string]any:
		got, _ := live.(map[string]any)
		for k, v := range want {
			if where := unlike(at+"/"+k, v, got[k]); where != "" {
				return where
			}
		}
		return ""
	case []any:
		got, _ := live.([]any)
		if len(got) != len(want) {
			return fmt.Sprintf("%s has %d elements, want %d", at, len(got), len(want))
		}
		for i := range want {
			if where := unlike(fmt.Sprintf("%s/%d", at, i), want[i], got[i]); where != "" {
				return where
			}
		}
		return ""
	}
	if fmt.Sprint(live) != fmt.Sprint(declared) { // numbers are of several types
		return fmt.Sprintf("%s is %v, want %v", at, live, declared)
	}
	return ""
}

// asDeclared returns where the world is not as the newest commit has it, or nothing.
func (s *soak) asDeclared(ctx context.Context) (string, error) {
	for i := range s.apps {
		declared, err := s.declared(i)
		if err != nil {
			return "", err
		}
		for k, o := range objects {
			live, err := s.in(i, o).Get(ctx, "web", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return fmt.Sprintf("%s of %s is not there", o.kind, appName(i)), nil
			}
			if err != nil {
				return "", err
			}
			if where := unlike("", declared[k], live.Object); where != "" {
				return fmt.Sprintf("%s of %s: %s", o.kind, appName(i), where), nil
			}
		}
	}
	return "", nil
}
