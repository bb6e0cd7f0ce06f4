package kubernetes

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
)

// What the server refuses to bring back is drift all the same, with what was
// made of it: an object that was deleted and made anew as another one, and one
// that was made immutable.
func TestDriftBeyondRepair(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{
		"d.yaml": deployment,
		"c.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {level: info}\n",
	})

	edit(t, d, "intruder", "configmaps", ns, "c", `{"immutable":true,"data":{"level":"evil"}}`)
	deployments := d.Resource(gvrs["deployments"]).Namespace(ns)
	if err := deployments.Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	evil := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 0, selector: {matchLabels: {app: evil}},
  template: {metadata: {labels: {app: evil}}, spec: {hostPID: true, containers: [{name: web, image: evil.example/miner}]}}}}`), &evil.Object); err != nil {
		t.Fatal(err)
	}
	if _, err := deployments.Create(t.Context(), evil, metav1.CreateOptions{FieldManager: "intruder"}); err != nil {
		t.Fatal(err)
	}

	found := observe(t, tt, r) // as after a restart: nothing is remembered
	want := map[string]string{"web": "miner", "c": "/data/level"}
	for len(want) > 0 {
		f := next(t, found)
		if f.Class == targets.Missing { // seen in between
			continue
		}
		if text := string(mustJSON(f)); want[f.ID.Name] != "" && (!strings.Contains(text, want[f.ID.Name]) || f.Actor != "intruder") {
			t.Errorf("finding: %s", text)
		}
		delete(want, f.ID.Name)
	}
	// There is no plan for it, and whoever asks learns why.
	if _, err := tt.Plan(t.Context(), r); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("Plan = %v", err)
	}
}
