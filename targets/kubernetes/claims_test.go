package kubernetes

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// move is an object that leaves stack a for stack b in one commit.
type move struct {
	t        *testing.T
	a, b     *Target
	ns       string
	gone     map[string]string // what a declares after it
	moved    map[string]string // what b declares after it
	isAlive  func() bool
	sameUID  func() bool
	ownedByB func() bool
}

// newMove deploys the object with a. Each stack has a Cluster of its own if apart.
func newMove(t *testing.T, apart bool) *move {
	t.Helper()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	ca := cluster(t, c.Config, nil)
	cb, environment := ca, "test"
	if apart {
		cb, environment = cluster(t, c.Config, nil), "other"
		cb.claims = ca.claims // as ClusterConfig.Claims has it
	}
	stack := func(c *Cluster, name, environment string) *Target {
		tt, err := New(c, spec(ns, func(s *Spec) { s.Stack, s.Environment = name+"-"+ns, environment }))
		if err != nil {
			t.Fatal(err)
		}
		return tt
	}
	m := &move{
		t: t, ns: ns, a: stack(ca, "a", "test"), b: stack(cb, "b", environment),
		gone: map[string]string{"kept.yaml": configMap("kept", "1")}, moved: map[string]string{"moved.yaml": configMap("moved", "1")},
	}
	deploy(t, m.a, map[string]string{"moved.yaml": configMap("moved", "1"), "kept.yaml": configMap("kept", "1")})
	uid := getObject(t, d, "configmaps", ns, "moved").GetUID()
	m.isAlive = func() bool {
		_, err := d.Resource(gvrs["configmaps"]).Namespace(ns).Get(t.Context(), "moved", metav1.GetOptions{})
		return err == nil
	}
	m.sameUID = func() bool { return getObject(t, d, "configmaps", ns, "moved").GetUID() == uid }
	m.ownedByB = func() bool { return m.b.ours(getObject(t, d, "configmaps", ns, "moved")) }
	return m
}

// settle brings both stacks to what they declare and checks that x moved.
func (m *move) settle() {
	m.t.Helper()
	deploy(m.t, m.a, m.gone)
	deploy(m.t, m.b, m.moved)
	deploy(m.t, m.a, m.gone)
	if !m.sameUID() || !m.ownedByB() {
		m.t.Error("x was made anew, or is not b's")
	}
	for _, tt := range []struct {
		*Target
		files map[string]string
	}{{m.a, m.gone}, {m.b, m.moved}} {
		if p := mustPlan(m.t, tt.Target, mustRender(m.t, tt.Target, tt.files)); !p.Empty() {
			m.t.Errorf("%s is not at rest: %s", tt.owner, mustJSON(p.Changes))
		}
	}
}

// TestMoveBetweenStacks: an object that one stack gives up in the commit in which
// another declares it is never deleted, in whatever order they are worked on.
func TestMoveBetweenStacks(t *testing.T) {
	t.Parallel()
	t.Run("the new stack is first", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		m.a.Expect()
		m.b.Expect()
		rb := mustRender(t, m.b, m.moved)
		if _, err := m.b.Plan(t.Context(), rb); fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), m.a.owner) {
			t.Errorf("b while a has not said that it gives x up: %v", err)
		}
		mustRender(t, m.a, m.gone)
		deploy(t, m.b, m.moved)
		m.settle()
	})
	t.Run("the old stack is first", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		m.a.Expect()
		m.b.Expect()
		ra := mustRender(t, m.a, m.gone)
		if _, err := m.a.Plan(t.Context(), ra); fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), m.b.owner) {
			t.Errorf("a while b has not been rendered: %v", err)
		}
		mustRender(t, m.b, m.moved)
		if p := mustPlan(t, m.a, ra); p.Count(plan.Delete) != 0 {
			t.Errorf("a prunes what b declares: %s", mustJSON(p.Changes))
		}
		m.settle()
	})
	t.Run("the new stack is denied for a long time", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		m.b.Expect()
		mustRender(t, m.b, m.moved)
		// It is rendered, and never gets further. Whatever a does, x stays, and
		// stays in a's inventory.
		for _, v := range []string{"2", "3"} {
			m.gone = map[string]string{"kept.yaml": configMap("kept", v)}
			deploy(t, m.a, m.gone)
			if !m.isAlive() {
				t.Fatal("x is gone")
			}
		}
		// b gives up: now nobody declares x, and a, which still owns it, prunes it.
		mustRender(t, m.b, map[string]string{"another.yaml": configMap("another", "1")})
		if p := mustPlan(t, m.a, mustRender(t, m.a, m.gone)); p.Count(plan.Delete) != 1 {
			t.Errorf("x is nobody's, and stays: %s", mustJSON(p.Changes))
		}
	})
	t.Run("the new stack cannot be rendered", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		m.b.Expect()
		if _, err := m.b.Render(t.Context(), snapshot(map[string]string{"moved.yaml": "kind: ["})); err == nil {
			t.Fatal("it was rendered")
		}
		// a goes on, and keeps x.
		m.gone = map[string]string{"kept.yaml": configMap("kept", "2")}
		deploy(t, m.a, m.gone)
		if !m.isAlive() {
			t.Fatal("x is gone")
		}
		m.settle()
	})
	t.Run("another environment of the cluster", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, true)
		mustRender(t, m.b, m.moved)
		if p := mustPlan(t, m.a, mustRender(t, m.a, m.gone)); p.Count(plan.Delete) != 0 {
			t.Errorf("a prunes what a stack of another environment declares: %s", mustJSON(p.Changes))
		}
		m.settle()
	})
	t.Run("a closed stack is not waited for", func(t *testing.T) {
		t.Parallel()
		m := newMove(t, false)
		m.b.Expect()
		if err := m.b.Close(); err != nil {
			t.Fatal(err)
		}
		if p := mustPlan(t, m.a, mustRender(t, m.a, m.gone)); p.Count(plan.Delete) != 1 {
			t.Errorf("x is nobody's, and stays: %s", mustJSON(p.Changes))
		}
	})
}

// TestRenamedStack: the stack file has another name from one commit to the next.
func TestRenamedStack(t *testing.T) {
	t.Parallel()
	m := newMove(t, false)
	both := map[string]string{"moved.yaml": configMap("moved", "1"), "kept.yaml": configMap("kept", "1")}
	var r targets.Rendered
	if r = mustRender(t, m.b, both); r.Digest == "" {
		t.Fatal("no rendering")
	}
	if _, err := m.b.Plan(t.Context(), r); fault.KindOf(err) != fault.Invalid {
		t.Errorf("while the old name has them: %v", err)
	}
	m.a.Renounce()
	p := mustPlan(t, m.b, r)
	if len(p.Changes) != 2 || p.Count(plan.Update) != 2 || p.Changes[0].Reason != "moved from "+m.a.owner {
		t.Errorf("the new name takes over: %s", mustJSON(p.Changes))
	}
	deploy(t, m.b, both)
	if err := m.a.Close(); err != nil {
		t.Fatal(err)
	}
	if !m.sameUID() || !m.ownedByB() {
		t.Error("x was made anew, or is not the new name's")
	}
	if p := mustPlan(t, m.b, mustRender(t, m.b, both)); !p.Empty() {
		t.Errorf("after the rename: %s", mustJSON(p.Changes))
	}
}
