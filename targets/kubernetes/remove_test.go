package kubernetes

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
	"github.com/holdfast-dev/holdfast/verify"
)

func mustRemoval(t testing.TB, tt *Target, r targets.Rendered, orphan bool) plan.Plan {
	t.Helper()
	p, err := tt.Removal(t.Context(), r, orphan)
	if err != nil {
		t.Fatalf("Removal: %v", err)
	}
	return p
}

// endGrant has a real gate admit the end of a stack.
func endGrant(t testing.TB, p plan.Plan) gate.Grant {
	t.Helper()
	g, err := gate.New(&targetstest.Ledger{}, gate.Limits{}).Admit(t.Context(), gate.Request{
		Plan: p, Removal: true,
		Commit:  verify.Evidence{Subject: verify.Subject{Kind: "commit", Reference: p.Revision.ID}, Checks: []verify.Check{{Name: "signature", OK: true}}},
		Report:  verify.Report{Environment: p.Environment},
		Planned: policy.Decision{Stage: policy.StagePlan, Of: p.Digest(), Rules: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func mustEnd(t testing.TB, tt *Target, p plan.Plan) {
	t.Helper()
	if rec, err := tt.Apply(t.Context(), endGrant(t, p)); err != nil {
		t.Fatalf("Apply: %v\n%s", err, mustJSON(rec))
	}
}

// inventories returns how many ConfigMaps remember what tt owns.
func inventories(t testing.TB, conf *rest.Config, tt *Target) int {
	t.Helper()
	list, err := dyn(t, conf).Resource(gvrs["configmaps"]).Namespace(defaultNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: inventoryLabel + "=" + tt.inventoryName()})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

func TestRemovalKeepsToWhatIsOurs(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for _, orphan := range []bool{false, true} {
		t.Run(fmt.Sprint("orphan ", orphan), func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			tt := target(t, c.Config, ns, nil, nil)
			r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1"), "c.yaml": configMap("c", "1")})
			edit(t, d, "x", "configmaps", ns, "b", `{"metadata":{"annotations":{"holdfast.dev/stack":null}}}`)
			edit(t, d, "x", "configmaps", ns, "c", `{"metadata":{"managedFields":[{}]}}`)
			p := mustRemoval(t, tt, r, orphan)
			if len(p.Changes) != 1 || p.Changes[0].ID.Name != "a" || p.Changes[0].UID == "" || p.Changes[0].Before == "" {
				t.Fatalf("changes: %s", mustJSON(p.Changes))
			}
			mustEnd(t, tt, p)
			for _, name := range []string{"b", "c"} {
				getObject(t, d, "configmaps", ns, name)
			}
			if n := inventories(t, c.Config, tt); n != 0 {
				t.Errorf("%d ConfigMaps of the inventory are left", n)
			}
		})
	}
}

func TestRemovalNeedsTheJudgedObject(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	deleting, letting := mustRemoval(t, tt, r, false), mustRemoval(t, tt, r, true)
	edit(t, d, "x", "configmaps", ns, "a", `{"metadata":{"annotations":{"holdfast.dev/stack":"test/other"}}}`)
	for _, p := range []plan.Plan{deleting, letting} {
		if _, err := tt.Apply(t.Context(), endGrant(t, p)); !errors.Is(err, targets.ErrStale) {
			t.Errorf("%s of what is somebody else's now: %v", p.Changes[0].Action, err)
		}
	}
	// Nor is what lost our managed fields ours, whatever its mark says.
	edit(t, d, "x", "configmaps", ns, "a", `{"metadata":{"annotations":{"holdfast.dev/stack":"`+tt.owner+`"}}}`)
	deleting = mustRemoval(t, tt, r, false)
	edit(t, d, "x", "configmaps", ns, "b", `{"metadata":{"managedFields":[{}]}}`)
	if _, err := tt.Apply(t.Context(), endGrant(t, deleting)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("the end of what has no managed fields of ours: %v", err)
	}
	for _, name := range []string{"a", "b"} {
		getObject(t, d, "configmaps", ns, name)
	}
	// One plan's payload does not pass for the other's.
	deleting.Private = letting.Private
	if _, err := tt.Apply(t.Context(), endGrant(t, deleting)); err == nil {
		t.Error("a plan with another's payload was applied")
	}
	// Nor does a plan of a few deletes end the stack.
	p := mustRemoval(t, tt, r, false)
	p.Private.(*planned).ends = false
	if _, err := tt.Apply(t.Context(), endGrant(t, p)); err == nil {
		t.Error("a plan whose end was taken off was applied")
	}
}

// Another stack can take over what was let go of, if it asks for that.
func TestReleasedObjectIsAdopted(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	cl := cluster(t, c.Config, nil)
	stack := func(name string, adopt bool) *Target {
		tt, err := New(cl, spec(ns, func(s *Spec) { s.Stack, s.Adopt = name+"-"+ns, adopt }))
		if err != nil {
			t.Fatal(err)
		}
		return tt
	}
	files := map[string]string{"a.yaml": configMap("a", "1")}
	old := stack("old", false)
	r := deploy(t, old, files)
	was := getObject(t, d, "configmaps", ns, "a")
	mustEnd(t, old, mustRemoval(t, old, r, true))
	is := getObject(t, d, "configmaps", ns, "a")
	if is.GetUID() != was.GetUID() || is.GetAnnotations()[OwnerAnnotation] != "" || is.GetLabels()[ManagedLabel] != "" || !equalJSON(is.Object["data"], was.Object["data"]) {
		t.Errorf("it was let go of as %s", mustJSON(is.Object))
	}
	// Also while the old target is still there.
	if _, err := stack("new", false).Plan(t.Context(), mustRender(t, stack("new", false), files)); fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), "adopt: true") {
		t.Errorf("without asking: %v", err)
	}
	next := stack("new", true)
	p := mustPlan(t, next, mustRender(t, next, files))
	if len(p.Changes) != 1 || p.Changes[0].Action != plan.Update || !strings.HasPrefix(p.Changes[0].Reason, "adopted from") {
		t.Errorf("changes: %s", mustJSON(p.Changes))
	}
	deploy(t, next, files)
	if got := getObject(t, d, "configmaps", ns, "a"); got.GetUID() != was.GetUID() || !next.ours(got) {
		t.Error("it is not the new stack's")
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRemovalOfWhatMoves: what another stack declares is never removed, whoever
// is first, and the old stack's inventory lasts until it was taken over.
func TestRemovalOfWhatMoves(t *testing.T) {
	t.Parallel()
	both := map[string]string{"moved.yaml": configMap("moved", "1"), "kept.yaml": configMap("kept", "1")}
	t.Run("the end is first", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		r := mustRender(t, m.a, both)
		m.b.Expect()
		if _, err := m.a.Removal(t.Context(), r, false); fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), m.b.owner) {
			t.Errorf("before b is rendered: %v", err)
		}
		rb := mustRender(t, m.b, m.moved)
		if _, err := m.a.Removal(t.Context(), r, false); fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "has not taken it over") {
			t.Errorf("before b is applied: %v", err)
		}
		if p := mustPlan(t, m.b, rb); p.Changes[0].Reason != "moved from "+m.a.owner {
			t.Errorf("b takes over: %s", mustJSON(p.Changes))
		}
		m.end(r)
	})
	t.Run("the new stack is first", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		r := mustRender(t, m.a, both)
		if _, err := m.b.Plan(t.Context(), mustRender(t, m.b, m.moved)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("while a has it: %v", err)
		}
		m.a.Renounce()
		m.end(r)
	})
	t.Run("the new stack cannot be rendered", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		r := mustRender(t, m.a, both)
		m.b.Expect()
		if _, err := m.b.Render(t.Context(), snapshot(map[string]string{"moved.yaml": "kind: ["})); err == nil {
			t.Fatal("it was rendered")
		}
		if _, err := m.a.Removal(t.Context(), r, false); fault.KindOf(err) != fault.Waiting || !strings.Contains(fault.HintOf(err), m.b.owner) {
			t.Errorf("while b is broken: %v", err)
		}
		m.end(r)
	})
	t.Run("it is declared after the end was judged", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		p := mustRemoval(t, m.a, mustRender(t, m.a, both), false)
		mustRender(t, m.b, m.moved)
		if _, err := m.a.Apply(t.Context(), endGrant(t, p)); !errors.Is(err, targets.ErrStale) || !m.isAlive() {
			t.Errorf("the end of what b declares by now: %v", err)
		}
	})
}

// end has b take over what moved and ends a, whose rendering is r.
func (m *move) end(r targets.Rendered) {
	m.t.Helper()
	deploy(m.t, m.b, m.moved)
	p := mustRemoval(m.t, m.a, r, false)
	if len(p.Changes) != 1 || p.Changes[0].ID.Name != "kept" {
		m.t.Errorf("a ends with %s", mustJSON(p.Changes))
	}
	mustEnd(m.t, m.a, p)
	if !m.sameUID() || !m.ownedByB() {
		m.t.Error("what moved was made anew, or is not b's")
	}
	if p := mustPlan(m.t, m.b, mustRender(m.t, m.b, m.moved)); !p.Empty() {
		m.t.Errorf("b is not at rest: %s", mustJSON(p.Changes))
	}
}

func TestRemovalOrder(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	var mu sync.Mutex
	var deleted []string
	conf := rest.CopyConfig(c.Config)
	conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodDelete {
				mu.Lock()
				deleted = append(deleted, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
				mu.Unlock()
			}
			return rt.RoundTrip(r)
		})
	})
	name := "ends-" + ns
	tt := target(t, conf, ns, nil, func(s *Spec) { s.Allow = Allow{Kinds: []string{"*", "Namespace"}, Namespaces: []string{ns, name}} })
	r := deploy(t, tt, map[string]string{
		"a.yaml": configMap("a", "1"), "d.yaml": deployment,
		"n.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n",
	})
	p := mustRemoval(t, tt, r, false)
	last := p.Changes[len(p.Changes)-1]
	if last.ID.Name != name || !strings.Contains(last.Reason, "everything in the namespace goes with it") {
		t.Errorf("the last change: %s", mustJSON(last))
	}
	mustEnd(t, tt, p)
	want := []string{"web", "a", name, tt.inventoryName() + "-0"}
	if !slices.Equal(deleted, want) {
		t.Errorf("deleted in the order %q, want %q", deleted, want)
	}
}

// A removal of what the operator no longer allows the stack is refused.
func TestRemovalOfWhatIsNotAllowed(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	p := mustRemoval(t, tt, r, false)
	tt.spec.Allow.Namespaces = []string{"elsewhere"}
	if _, err := tt.Removal(t.Context(), r, false); fault.KindOf(err) != fault.Denied {
		t.Errorf("planned: %v", err)
	}
	if _, err := tt.Apply(t.Context(), endGrant(t, p)); fault.KindOf(err) != fault.Denied {
		t.Errorf("applied: %v", err)
	}
}

// An inventory of several parts goes without ever having a gap.
func TestRemovalOfALargeInventory(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	inv, err := tt.readInventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	entries := map[plan.ObjectID]entry{}
	for i := range 2*shardEntries + 1 {
		e := entry{Version: "v1", Kind: "ConfigMap", Namespace: ns, Name: fmt.Sprint("x", i)}
		entries[e.id()] = e
	}
	if err := tt.writeInventory(t.Context(), inv, entries); err != nil {
		t.Fatal(err)
	}
	if err := tt.removeInventory(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	if n := inventories(t, c.Config, tt); n != 0 {
		t.Errorf("%d parts are left", n)
	}
}

// Somebody else takes the object in the moment in which it is let go of.
func TestReleaseIsRaced(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, patch := range map[string]struct {
		body  string
		stale bool
	}{
		"by another stack": {`{"metadata":{"annotations":{"holdfast.dev/stack":"test/other"}}}`, true},
		"elsewhere in it":  {`{"data":{"more":"of it"}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			var once sync.Once
			conf := rest.CopyConfig(c.Config)
			conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if r.Header.Get("Content-Type") == "application/json-patch+json" {
						once.Do(func() { edit(t, d, "x", "configmaps", ns, "a", patch.body) })
					}
					return rt.RoundTrip(r)
				})
			})
			tt := target(t, conf, ns, nil, nil)
			r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
			_, err := tt.Apply(t.Context(), endGrant(t, mustRemoval(t, tt, r, true)))
			mark := getObject(t, d, "configmaps", ns, "a").GetAnnotations()[OwnerAnnotation]
			if errors.Is(err, targets.ErrStale) != patch.stale || (mark == "test/other") != patch.stale || !patch.stale && (err != nil || mark != "") {
				t.Errorf("error %v, mark %q", err, mark)
			}
		})
	}
}
