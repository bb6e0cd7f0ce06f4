package kubernetes

import (
	"context"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

func TestMark(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	repository := testenv.Namespace(t, env) // unique, that is all
	c := cluster(t, env.Config, nil)
	t.Cleanup(func() { removeOwn(t, c, markName(repository)) })
	if _, ok, _, err := c.ReadMark(t.Context(), repository); ok || err != nil {
		t.Fatal(ok, err)
	}
	mark := Mark{Repository: repository, Commit: "c1", Seen: time.Unix(1e9, 0).UTC(), Origin: "log", Size: 10, Checkpoint: "log\n10\n…\n"}
	write := func(m Mark, over bool) error { t.Helper(); return c.WriteMark(t.Context(), m, over) }
	read := func(want Mark, authentic bool) {
		t.Helper()
		got, ok, auth, err := c.ReadMark(t.Context(), repository)
		if err != nil || !ok || auth != authentic || got != want {
			t.Errorf("read %+v, %t, %t, %v", got, ok, auth, err)
		}
	}
	if err := write(mark, false); err != nil {
		t.Fatal(err)
	}
	read(mark, true)

	for name, less := range map[string]func(*Mark){
		"shorter ledger": func(m *Mark) { m.Size = 9 },
	} {
		m := mark
		less(&m)
		if err := write(m, false); fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", name, err)
		}
		read(mark, true)
	}
	next := mark
	next.Commit, next.Size = "c2", 20
	if err := write(next, false); err != nil {
		t.Error(err)
	}
	read(next, true)

	// A daemon with another key sees it, knows that it is not its own, and may
	// replace it by order only.
	lost := cluster(t, env.Config, nil)
	lost.cfg.Key = []byte("another key, as after a loss")
	if got, ok, auth, err := lost.ReadMark(t.Context(), repository); !ok || auth || err != nil || got != next {
		t.Errorf("with another key: %+v, %t, %t, %v", got, ok, auth, err)
	}
	if err := lost.WriteMark(t.Context(), Mark{Repository: repository, Commit: "c3"}, false); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "not as this daemon wrote it") {
		t.Errorf("over a mark of another key: %v", err)
	}
	read(next, true)
	if err := lost.WriteMark(t.Context(), Mark{Repository: repository, Commit: "c3"}, true); err != nil {
		t.Error(err)
	}
	read(Mark{Repository: repository, Commit: "c3"}, false)

	// What is no mark says nothing, and is not authentic.
	d := dyn(t, env.Config)
	for _, content := range []string{"", "{", `{"repository":"other"}`, `{"repository":"` + repository + `","extra":1}`, strings.Repeat(" ", maxMark) + "{}"} {
		edit(t, d, "mallory", "configmaps", c.cfg.Namespace, markName(repository), string(mustJSON(map[string]any{"data": map[string]any{"mark": content}})))
		read(Mark{Repository: repository}, false)
	}
}

// removeOwn deletes a ConfigMap of Holdfast's own namespace, which tests share.
func removeOwn(t testing.TB, c *Cluster, name string) {
	t.Helper()
	err := c.dyn.Resource(configMaps.gvr()).Namespace(c.cfg.Namespace).Delete(context.Background(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// A lost key: the inventory is refused, accepted by order, and signed again;
// what it names is pruned by the rules as before.
func TestAcceptInventories(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, env), dyn(t, env.Config)
	environment := "e" + ns
	own := func(s *Spec) { s.Environment = environment }
	all := map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "c.yaml": configMap("c", "1")}
	deploy(t, target(t, env.Config, ns, nil, own), all)
	edit(t, d, "x", "configmaps", ns, "c", `{"metadata":{"annotations":{"holdfast.dev/stack":null}}}`)

	log := &syncBuffer{}
	tt := target(t, env.Config, ns, log, own)
	tt.c.cfg.Key = []byte("another key, as after a loss")
	r := mustRender(t, tt, map[string]string{"a.yaml": all["a.yaml"]})
	refused := func() {
		t.Helper()
		if _, err := tt.Plan(t.Context(), r); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "authentication code") {
			t.Errorf("an inventory of another key: %v", err)
		}
	}
	accept := func(what, environment string, want int) {
		t.Helper()
		if n, err := tt.c.AcceptInventories(t.Context(), environment, ns); n != want || err != nil {
			t.Fatalf("%s: accepted %d, %v; want %d", what, n, err, want)
		}
	}
	refused()
	// The key is there: whatever is wrong with the inventory, no order accepts it.
	accept("without a mark", environment, 0)
	if err := tt.c.WriteMark(t.Context(), Mark{Repository: ns, Commit: "c1"}, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeOwn(t, tt.c, markName(ns)) })
	accept("with an authentic mark", environment, 0)
	refused()
	old := cluster(t, env.Config, nil) // with the key that is lost
	if err := old.WriteMark(t.Context(), Mark{Repository: ns, Commit: "c1"}, true); err != nil {
		t.Fatal(err)
	}
	accept("another environment", "e", 0)
	refused()
	accept("with a mark of the lost key", environment, 1)
	if !strings.Contains(log.String(), "accepted by order") {
		t.Errorf("log: %s", log)
	}
	p := mustPlan(t, tt, r)
	if len(p.Changes) != 1 || p.Changes[0].ID.Name != "b" || p.Changes[0].Action != plan.Delete {
		t.Errorf("changes: %s", mustJSON(p.Changes)) // not c, which lacks the owner mark
	}
	accept("once more", environment, 0)
	cm := getObject(t, d, "configmaps", defaultNamespace, tt.inventoryName()+"-0")
	content, _, _ := unstructured.NestedString(cm.Object, "data", "inventory")
	if mac, _, _ := unstructured.NestedString(cm.Object, "data", "mac"); mac != tt.sign(content) {
		t.Error("the inventory was not signed again")
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add(`{"repository":"shop","commit":"c","seen":"2026-01-01T00:00:00Z","size":1}`)
	f.Add(`{"size":-1}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, content string) {
		m, err := parseMark(content)
		if err != nil && m != (Mark{}) {
			t.Errorf("%+v with %v", m, err)
		}
	})
}
