package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// events returns the Events of a namespace that Holdfast wrote.
func events(t *testing.T, conf *rest.Config, ns string) []corev1.Event {
	t.Helper()
	list, err := dyn(t, conf).Resource(eventResource).Namespace(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []corev1.Event
	for _, u := range list.Items {
		var e corev1.Event
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &e); err != nil {
			t.Fatal(err)
		}
		if e.Source.Component == "holdfast" {
			out = append(out, e)
		}
	}
	return out
}

func TestEmit(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	deploy(t, tt, map[string]string{"a.yaml": configMap("settings", "1"), "d.yaml": deployment})

	emit := func(e Event) {
		e.Namespace, e.Stack = ns, "shop-web"
		tt.c.Emit(t.Context(), e)
	}
	emit(Event{Reason: "Applied", Note: "2 created"})
	for range 5 {
		emit(Event{Reason: "Drift", Warning: true, Object: "Deployment/" + ns + "/web", Note: "replicas: 7 instead of 2"})
	}
	got := map[string]corev1.Event{}
	for _, e := range events(t, c.Config, ns) {
		got[e.Reason] = e
	}
	if len(got) != 2 {
		t.Fatalf("events: %+v", got)
	}
	if e := got["Applied"]; e.Type != "Normal" || e.Message != "shop-web: 2 created" || e.InvolvedObject.Kind != "Namespace" || e.InvolvedObject.Name != ns || e.Count != 1 {
		t.Errorf("applied: %+v", e)
	}
	live := getObject(t, dyn(t, c.Config), "deployments", ns, "web")
	e := got["Drift"]
	if e.Count != 5 || e.Type != "Warning" {
		t.Errorf("five of the same: count %d, type %s", e.Count, e.Type)
	}
	if o := e.InvolvedObject; o.Kind != "Deployment" || o.APIVersion != "apps/v1" || o.Name != "web" || o.UID != live.GetUID() {
		t.Errorf("about: %+v", o)
	}
}

// A storm of different things about one object ends as one Event, and is
// limited; a note is bounded and masked.
func TestEmitStorm(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	conf, requests := counted(c.Config)
	cl := cluster(t, conf, nil)
	cl.cfg.Masker.Register("correct-horse")
	for i := range 200 {
		cl.Emit(t.Context(), Event{Namespace: ns, Stack: "shop", Reason: "Denied", Warning: true, Note: strings.Repeat("x", i) + " correct-horse " + strings.Repeat("é", 2000)})
	}
	if n := requests.Load(); n > 30 {
		t.Errorf("200 events made %d requests", n)
	}
	list := events(t, c.Config, ns)
	if len(list) == 0 || len(list) > 11 {
		t.Errorf("%d events", len(list))
	}
	for _, e := range list {
		if len(e.Message) > 1024 || strings.Contains(e.Message, "correct-horse") {
			t.Errorf("message of %d bytes: %.60s", len(e.Message), e.Message)
		}
	}
}

// Nothing is written to Holdfast's own namespace; where the account may not
// write Events, that is said once.
func TestEmitRefused(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	own := cluster(t, c.Config, nil)
	own.cfg.Namespace = ns
	own.Emit(t.Context(), Event{Namespace: ns, Stack: "shop", Reason: "Applied", Note: "x"})
	if got := events(t, c.Config, ns); len(got) > 0 {
		t.Errorf("events in Holdfast's own namespace: %+v", got)
	}

	log := &syncBuffer{}
	nobody := cluster(t, c.User("nobody-"+ns), log)
	for _, note := range []string{"one", "two", "three"} {
		nobody.Emit(t.Context(), Event{Namespace: ns, Stack: "shop", Reason: "Applied", Note: note})
	}
	if n := strings.Count(log.String(), "no Kubernetes Events"); n != 1 || !strings.Contains(log.String(), "create events") {
		t.Errorf("said %d times: %s", n, log.String())
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	start := time.Now()
	offline(t, nil).c.Emit(ctx, Event{Namespace: ns, Stack: "shop", Reason: "Applied", Note: "nobody is there"})
	if took := time.Since(start); took > 2*eventTime {
		t.Errorf("an unreachable server took %s", took)
	}
}

// Who makes one stack drift all the time keeps nobody else's warnings from being written.
func TestWarningsOfOneStack(t *testing.T) {
	t.Parallel()
	var r recorder
	written := func(stack string, n int) int {
		count := 0
		for i := range n {
			name := fmt.Sprint(stack, i)
			result, err := r.correlate(stack, &corev1.Event{Type: corev1.EventTypeWarning, Reason: "Drift", Message: name,
				InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: stack, Name: name}})
			if err != nil {
				t.Fatal(err)
			}
			if !result.Skip {
				count++
			}
		}
		return count
	}
	if n := written("loud", 1000); n < stackBurst || n > stackBurst+10 {
		t.Errorf("%d warnings about one stack at once", n)
	}
	if n := written("quiet", 3); n != 3 {
		t.Errorf("%d of 3 warnings about another", n)
	}
	for i := range maxStacks {
		written(fmt.Sprint("stack-", i), 1)
	}
	if len(r.stacks) > maxStacks {
		t.Errorf("%d stacks are remembered", len(r.stacks))
	}
}
