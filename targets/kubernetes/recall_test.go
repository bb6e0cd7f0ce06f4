package kubernetes

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// requests notes what is asked of the API server, but for watches: "GET", "dry PATCH", …
type requests struct {
	mu   sync.Mutex
	list []string
}

func (r *requests) of(conf *rest.Config) *rest.Config {
	out := rest.CopyConfig(conf)
	out.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			q := req.URL.Query()
			what := req.Method
			if q.Get("dryRun") != "" {
				what = "dry " + what
			}
			if q.Get("watch") == "" {
				r.mu.Lock()
				r.list = append(r.list, what)
				r.mu.Unlock()
			}
			return rt.RoundTrip(req)
		})
	})
	return out
}

// take returns what was asked since it was called last.
func (r *requests) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := strings.Join(r.list, ", ")
	r.list = nil
	return out
}

// watched returns a stack that is deployed and observed, and about which everything is
// known that its watches have to tell.
func watched(t *testing.T, conf *rest.Config, ns string, files map[string]string) (*Target, targets.Rendered, <-chan targets.Finding) {
	t.Helper()
	tt := target(t, conf, ns, nil, nil)
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	until(t, func() bool {
		for _, o := range r.Private.(*rendering).objects {
			if !tt.c.stands(tt, o) {
				return false
			}
		}
		return true
	})
	return tt, r, found
}

// What the watch told nothing about costs no request, and a plan says the same of it.
func TestRecall(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var asked requests
	files := map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "s.yaml": secretManifest("geheimnis")}
	tt, r, _ := watched(t, asked.of(c.Config), ns, files)
	recall := func(r targets.Rendered) plan.Plan {
		t.Helper()
		p, err := tt.Recall(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	asked.take()
	if p, asked := recall(r), asked.take(); !p.Empty() || asked != "" {
		t.Errorf("nothing moved: %s, asked %s", mustJSON(p.Changes), asked)
	}
	if p, asked := mustPlan(t, tt, r), asked.take(); !p.Empty() || strings.Count(asked, "dry PATCH") != 3 {
		t.Errorf("a plan looks itself: %s, asked %s", mustJSON(p.Changes), asked)
	}

	// A commit that changes one object asks about that one.
	files["b.yaml"] = configMap("b", "2")
	next2 := mustRender(t, tt, files)
	p := recall(next2)
	if got := asked.take(); got != "GET, dry PATCH" {
		t.Errorf("one object is changed: asked %s", got)
	}
	if want := mustPlan(t, tt, next2); p.Digest() != want.Digest() || len(p.Changes) != 1 {
		t.Errorf("recalled %s, planned %s", mustJSON(p.Changes), mustJSON(want.Changes))
	}
	asked.take()
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "PATCH" {
		t.Errorf("it was at the version that was judged: asked %s", got)
	}
	// One more object, and one less: then the inventory counts.
	delete(files, "a.yaml")
	files["c.yaml"] = configMap("c", "1")
	r = mustRender(t, tt, files)
	p = recall(r)
	if len(p.Changes) != 2 || p.Count(plan.Delete) != 1 || p.Count(plan.Create) != 1 {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Fatal(err)
	}

	// What somebody changes is in the next plan, although it is not repaired.
	edit(t, d, "x", "configmaps", ns, "b", `{"data":{"key":"3"}}`)
	until(t, func() bool { return len(recall(r).Changes) == 1 })
}

// A repair rests on what was just found: it is judged once, and written at that version.
func TestRepairAsksOnce(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	var asked requests
	tt, r, found := watched(t, asked.of(c.Config), ns, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	want, err := tt.Desired(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	g := gate.New(&targetstest.Ledger{}, gate.Limits{})
	g.Resume(r.Stack, gate.Standing{Environment: r.Environment, Rendered: r.Digest, Revision: r.Revision.ID, Objects: want})
	repair := func(f targets.Finding) error {
		t.Helper()
		p, err := tt.Plan(t.Context(), r, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Changes) != 1 {
			t.Fatalf("changes: %s", mustJSON(p.Changes))
		}
		grant, err := g.Restore(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tt.Apply(t.Context(), grant)
		return err
	}
	asked.take()
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if err := repair(next(t, found)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "dry PATCH, PATCH" {
		t.Errorf("an edit: asked %s", got)
	}
	if err := d.Resource(gvrs["configmaps"]).Namespace(ns).Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := repair(next(t, found)); err != nil {
		t.Fatal(err)
	}
	if got := asked.take(); got != "GET, PATCH" {
		t.Errorf("a deletion: asked %s", got)
	}
	for name, want := range map[string]string{"a": "1", "b": "1"} {
		if got := getObject(t, d, "configmaps", ns, name).Object["data"].(map[string]any)["key"]; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}

	// What is found twice, moves in between, or is old is looked at again.
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	f := next(t, found)
	id := f.ID
	edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"3"}}`)
	next(t, found)
	asked.take()
	p, err := tt.Plan(t.Context(), r, id)
	if err != nil || len(p.Changes) != 1 || p.Changes[0].Fields[0].From != `"3"` {
		t.Errorf("the newest: %v, %s", err, mustJSON(p.Changes))
	}
	if got := asked.take(); got != "" {
		t.Errorf("the first time: asked %s", got)
	}
	if _, err = tt.Plan(t.Context(), r, id); err != nil || asked.take() != "GET, dry PATCH" {
		t.Errorf("the second time: %v", err)
	}
}
