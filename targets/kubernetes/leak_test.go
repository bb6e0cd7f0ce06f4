package kubernetes

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// Stacks that come and go leave nothing behind: no watch, no goroutine, and nothing that
// is remembered of an object. A kind that only one stack has is watched for as long.
func TestStacksComeAndGo(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, env)
	c := cluster(t, env.Config, nil)
	kinds := func() (n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.watches)
	}
	come := func(i int, files map[string]string) (gone func()) {
		tt, err := New(c, spec(ns, func(s *Spec) { s.Stack = fmt.Sprintf("s-%d-%s", i, ns) }))
		if err != nil {
			t.Fatal(err)
		}
		r := deploy(t, tt, files)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tt.Observe(ctx, r, nil) }()
		for end := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
			c.mu.Lock()
			idle := len(tt.obs.dirty) == 0 && tt.obs.current != ""
			c.mu.Unlock()
			if idle || time.Now().After(end) {
				break
			}
		}
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := tt.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	stays := come(0, map[string]string{"a.yaml": configMap("stays", "1")})
	for round := range 3 {
		var gone []func()
		for i := range 10 {
			gone = append(gone, come(1+i, map[string]string{"a.yaml": configMap(fmt.Sprintf("a-%d", i), fmt.Sprint(round)), "s.yaml": fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: s-%d}\n", i)}))
		}
		if n := kinds(); n != 2 {
			t.Errorf("round %d: %d watches, want those of two kinds", round, n)
		}
		for _, g := range gone {
			g()
		}
		if n := kinds(); n != 1 {
			t.Errorf("round %d: %d watches are left, want the one of what stays", round, n)
		}
	}
	stays()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watches) != 0 || len(c.tracked) != 0 || len(c.claims.objects) != 0 || len(c.claims.owners) != 0 {
		t.Errorf("left: %d watches, %d objects, %d claims of %d owners", len(c.watches), len(c.tracked), len(c.claims.objects), len(c.claims.owners))
	}
}
