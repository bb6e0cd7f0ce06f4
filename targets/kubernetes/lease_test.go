package kubernetes

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

const shortLease = time.Second

// contender returns a Cluster that contends for the Lease name as a process of its own.
func contender(t testing.TB, conf *rest.Config, name, identity, process string) *Cluster {
	t.Helper()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCluster(ClusterConfig{
		REST: conf, Key: []byte("fedcba9876543210"), Masker: m,
		Lease: LeaseConfig{Name: name, Duration: shortLease, Identity: identity},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.process = process
	return c
}

// hold runs HoldLease and returns what stops it cleanly.
func hold(t testing.TB, c *Cluster) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.HoldLease(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("HoldLease: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// eventually asks until the answer is yes.
func eventually(t testing.TB, what string, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(30 * time.Second); !yes(); {
		select {
		case <-end:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func held(c *Cluster) func() bool { return func() bool { return c.Holding() == nil } }

// leaseHolder returns who the API server says holds the Lease.
func leaseHolder(t testing.TB, c *Cluster) string {
	t.Helper()
	u, err := c.client(leases, c.cfg.Namespace).Get(t.Context(), c.cfg.Lease.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holder, _, _ := unstructured.NestedString(u.Object, "spec", "holderIdentity")
	return holder
}

func TestLeaseOneOfTwoActs(t *testing.T) {
	t.Parallel()
	conf := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, conf)
	first := contender(t, conf.Config, ns, "first", "1")
	second := contender(t, conf.Config, ns, "second", "2")
	if err := first.Holding(); fault.KindOf(err) != fault.Transient {
		t.Errorf("before HoldLease: %v", err)
	}
	stop := hold(t, first)
	eventually(t, "first holds", held(first))
	hold(t, second)

	// The second one's first attempt says who acts, and its Apply writes nothing.
	tt, err := New(second, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	r := mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	p := mustPlan(t, tt, r) // a plan needs no Lease
	rec, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
	if fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "first holds Lease") || fault.HintOf(err) == "" {
		t.Errorf("apply without the Lease: %v", err)
	}
	if len(rec.Outcomes) != 1 || rec.Outcomes[0].Err == "" {
		t.Errorf("outcomes: %+v", rec.Outcomes)
	}
	if err := second.WriteMark(t.Context(), Mark{Repository: ns, Commit: "c"}, true); fault.KindOf(err) != fault.Waiting {
		t.Errorf("a mark without the Lease: %v", err)
	}
	d := dyn(t, conf.Config)
	if list, err := d.Resource(configMaps.gvr()).Namespace(ns).List(t.Context(), metav1.ListOptions{LabelSelector: ManagedLabel}); err != nil || len(list.Items) > 0 {
		t.Errorf("written without the Lease: %v, %v", list, err)
	}

	// A clean stop gives the Lease back: no need to wait for it to run out.
	stop()
	if holder := leaseHolder(t, first); holder == "first" {
		t.Error("a clean stop kept the Lease")
	}
	eventually(t, "second holds", held(second))
	if first.Holding() == nil {
		t.Error("two hold the Lease")
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
		t.Error(err)
	}
}

// A daemon that is cut off loses the Lease by its own clock before anybody else
// may have it, and refuses to write from then on.
func TestLeaseExpires(t *testing.T) {
	t.Parallel()
	conf := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, conf)
	proxy, err := testenv.NewFaultProxyTransport(conf.Config.Host, mustTransport(t, conf.Config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	cut := contender(t, &rest.Config{Host: proxy.URL()}, ns, "cut", "1")
	other := contender(t, conf.Config, ns, "other", "2")
	hold(t, cut)
	eventually(t, "cut holds", held(cut))
	tt, err := New(cut, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	r := mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
	p := mustPlan(t, tt, r)

	proxy.Set(testenv.Fault{Status: 503})
	hold(t, other)
	var lost, taken time.Time
	eventually(t, "other holds", func() bool {
		now := time.Now()
		if lost.IsZero() && cut.Holding() != nil {
			lost = now
		}
		if other.Holding() == nil {
			taken = now
		}
		return !taken.IsZero()
	})
	if lost.IsZero() || lost.After(taken) {
		t.Errorf("lost at %s, taken over at %s: two held it", lost, taken)
	}
	writes := proxy.Requests()
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "503") && !strings.Contains(err.Error(), "not ours") {
		t.Errorf("apply of an expired holder: %v", err)
	}
	if n := proxy.Requests() - writes; n > 2 { // an attempt to renew may fall in between
		t.Errorf("an expired holder's apply made %d requests", n)
	}
	// When the network is back it sees who acts.
	proxy.Set(testenv.Fault{})
	eventually(t, "cut sees other", func() bool { err := cut.Holding(); return err != nil && strings.Contains(err.Error(), "other holds") })
}

// A Lease that is lost in the middle of an apply ends it before the next write.
func TestLeaseLostWhileApplying(t *testing.T) {
	t.Parallel()
	conf := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, conf)
	proxy, err := testenv.NewFaultProxyTransport(conf.Config.Host, mustTransport(t, conf.Config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	c := contender(t, &rest.Config{Host: proxy.URL()}, ns, "id", "1")
	c.cfg.Lease.Duration = time.Hour // no renewal falls into the test
	hold(t, c)
	eventually(t, "it holds", held(c))
	tt, err := New(c, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	r := mustRender(t, tt, map[string]string{
		"a.yaml": configMap("a", "1"),
		"b.yaml": "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: b}\nspec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: b}}\n",
	})
	p := mustPlan(t, tt, r)
	stages := map[int]string{}
	for _, ch := range p.Private.(*planned).changes {
		stages[stage(ch.obj.u)] = ch.ID.Name
	}
	if len(stages) != 2 {
		t.Fatalf("both in one stage: %v", stages)
	}
	proxy.Set(testenv.Fault{Match: func(r *http.Request) bool {
		if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/configmaps/a") {
			c.lease.settle(time.Now(), shortLease, "thief", nil)
		}
		return false
	}})
	rec, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
	if fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), "thief") {
		t.Errorf("apply: %v", err)
	}
	for _, o := range rec.Outcomes {
		if wrote := o.Err == ""; wrote != (o.ID.Name == "a") {
			t.Errorf("outcome of %s: %q", o.ID, o.Err)
		}
	}
}

// kill -9 leaves the Lease behind. The same state directory takes it over at
// once; another daemon waits until it ran out.
func TestLeaseAfterCrash(t *testing.T) {
	t.Parallel()
	conf := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, conf)
	crashed := contender(t, conf.Config, ns, "id", "1")
	var none sight
	if holder, err := crashed.tryLease(t.Context(), &none, true); holder != "" || err != nil {
		t.Fatal(holder, err)
	}
	// Who is another daemon must wait.
	stranger := contender(t, conf.Config, ns, "stranger", "2")
	began := time.Now()
	if holder, err := stranger.tryLease(t.Context(), &none, true); holder != "id" || err != nil {
		t.Errorf("holder %q, %v", holder, err)
	}
	hold(t, contender(t, conf.Config, ns, "copy", "3"))
	again := contender(t, conf.Config, ns, "id", "4")
	hold(t, again)
	eventually(t, "the restarted daemon holds", held(again))
	if took := time.Since(began); took > shortLease {
		t.Errorf("a restart took %s", took)
	}
	// The process that was thought dead, and was only stopped, has lost: its own
	// identity in another process's hands is somebody else's.
	if holder, err := crashed.tryLease(t.Context(), &sight{}, false); holder != "id" || err != nil {
		t.Errorf("the old process: holder %q, %v", holder, err)
	}
}

// Two environments of one daemon share the Lease.
func TestLeaseHeldTwiceByOneDaemon(t *testing.T) {
	t.Parallel()
	conf := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, conf)
	a, b := contender(t, conf.Config, ns, "id", "1"), contender(t, conf.Config, ns, "id", "1")
	hold(t, a)
	hold(t, b)
	eventually(t, "both hold", func() bool { return a.Holding() == nil && b.Holding() == nil })
	for end := time.Now().Add(2 * shortLease); time.Now().Before(end); {
		if errA, errB := a.Holding(), b.Holding(); errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		<-time.After(shortLease / 20)
	}
}

func TestLeaseIdentity(t *testing.T) {
	t.Parallel()
	original := filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(original, "ledger"), 0o700); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(copied, os.DirFS(original)); err != nil {
		t.Fatal(err)
	}
	one, err := Identity(original)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Identity(original); err != nil || again != one {
		t.Errorf("%q after a restart, %q before: %v", again, one, err)
	}
	if other, err := Identity(copied); err != nil || other == one {
		t.Errorf("a copy is %q as well: %v", other, err)
	}
	if _, err := Identity(filepath.Join(original, "none")); fault.KindOf(err) != fault.Invalid {
		t.Errorf("no folder: %v", err)
	}
}

func TestLeaseConfigRefuses(t *testing.T) {
	t.Parallel()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]LeaseConfig{
		"no identity": {},
		"too short":   {Identity: "x", Duration: time.Millisecond},
		"not whole":   {Identity: "x", Duration: 1500 * time.Millisecond},
	} {
		if _, err := NewCluster(ClusterConfig{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Key: make([]byte, 16), Masker: m, Lease: l}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func mustTransport(t testing.TB, conf *rest.Config) http.RoundTripper {
	t.Helper()
	rt, err := rest.TransportFor(conf)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}
