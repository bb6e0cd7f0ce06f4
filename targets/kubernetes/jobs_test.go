package kubernetes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

var jobGVR = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}

// jobManifest returns a Job; suspended, it does not finish by itself.
func jobManifest(extra string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec:
  %s
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: migrate
        image: registry.example/migrate@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
`, extra)
}

// TestJobOutlivedByItsTTL: a Job that the cluster deleted after it had run is not
// missing, and does not run twice, neither now nor after a restart.
func TestJobOutlivedByItsTTL(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"j.yaml": jobManifest("ttlSecondsAfterFinished: 1"), "c.yaml": configMap("c", "1")}
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	gone := func() bool {
		_, err := d.Resource(jobGVR).Namespace(ns).Get(t.Context(), "migrate", metav1.GetOptions{})
		return err != nil
	}
	for deadline := time.Now().Add(60 * time.Second); !gone(); time.Sleep(100 * time.Millisecond) { // the cluster's own clock
		if time.Now().After(deadline) {
			t.Fatal("the Job does not finish and go")
		}
	}
	again := target(t, c.Config, ns, nil, nil) // as after a restart
	for name, tt := range map[string]*Target{"the process that saw it": tt, "another process": again} {
		r := mustRender(t, tt, files)
		if err := tt.Healthy(t.Context(), r); err != nil {
			t.Errorf("%s: health: %v", name, err)
		}
		if p := mustPlan(t, tt, r); !p.Empty() {
			t.Errorf("%s: plan: %s", name, mustJSON(p.Changes))
		}
	}
	// The edit that follows is the first finding: the Job was none.
	edit(t, d, "kubectl-edit", "configmaps", ns, "c", `{"data":{"key":"2"}}`)
	if f := next(t, found); f.ID.Name != "c" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	// A changed Job is another one, and runs.
	files["j.yaml"] = jobManifest("ttlSecondsAfterFinished: 2")
	p := mustPlan(t, again, mustRender(t, again, files))
	if p.Count(plan.Create) != 1 || p.Changes[len(p.Changes)-1].ID.Name != "migrate" {
		t.Errorf("a changed Job: %s", mustJSON(p.Changes))
	}
}

// TestJobCutOff: a Job that is deleted before it has finished is missing, and
// made again.
func TestJobCutOff(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"j.yaml": jobManifest("suspend: true\n  ttlSecondsAfterFinished: 1")}
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	_, err := d.Resource(jobGVR).Namespace(ns).Patch(t.Context(), "migrate", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"holdfast.dev/stack":null}}}`), metav1.PatchOptions{FieldManager: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if f := next(t, found); f.Class != targets.Modified { // the watch is there
		t.Fatalf("finding: %s", mustJSON(f))
	}
	background := metav1.DeletePropagationBackground
	if err := d.Resource(jobGVR).Namespace(ns).Delete(t.Context(), "migrate", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	if f := next(t, found); f.Class != targets.Missing || f.ID.Name != "migrate" {
		t.Fatalf("finding: %s", mustJSON(f))
	}
	if err := tt.Healthy(t.Context(), r); fault.KindOf(err) != fault.Waiting {
		t.Errorf("health: %v", err)
	}
	for range 2 { // a plan does not forget it
		if p := mustPlan(t, tt, r); p.Count(plan.Create) != 1 {
			t.Fatalf("plan: %s", mustJSON(p.Changes))
		}
	}
	deploy(t, tt, files)
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("after it was made again: %s", mustJSON(p.Changes))
	}
}

// TestJobWithoutTTL is missing like any other object, whatever it has done.
func TestJobWithoutTTL(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"j.yaml": jobManifest("backoffLimit: 1")}
	r := deploy(t, tt, files)
	background := metav1.DeletePropagationBackground
	if err := d.Resource(jobGVR).Namespace(ns).Delete(t.Context(), "migrate", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	if p := mustPlan(t, tt, r); p.Count(plan.Create) != 1 {
		t.Errorf("plan: %s", mustJSON(p.Changes))
	}
}

func TestChangedJob(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	deploy(t, tt, map[string]string{"j.yaml": jobManifest("suspend: true")})
	changed := strings.Replace(jobManifest("suspend: true"), "registry.example/migrate", "registry.example/migrate2", 1)
	_, err := tt.Plan(t.Context(), mustRender(t, tt, map[string]string{"j.yaml": changed}))
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "a Job's template cannot be changed") || !strings.Contains(fault.HintOf(err), "another name") {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
}

// TestJobThatWasNeverMade: the inventory lists a Job before it is made; only an
// apply that came to its end says that it was.
func TestJobThatWasNeverMade(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	files := map[string]string{"j.yaml": jobManifest("ttlSecondsAfterFinished: 1")}
	p := mustPlan(t, tt, mustRender(t, tt, files))
	if _, err := (&writer{t: tt, priv: p.Private.(*planned)}).union(t.Context()); err != nil { // and then a crash
		t.Fatal(err)
	}
	again := target(t, c.Config, ns, nil, nil)
	if p := mustPlan(t, again, mustRender(t, again, files)); p.Count(plan.Create) != 1 {
		t.Errorf("after the crash: %s", mustJSON(p.Changes))
	}
}
