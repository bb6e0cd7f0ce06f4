package kubernetes

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// Stacks that come and go leave nothing behind: no watch, no goroutine, and nothing that
// is remembered of an object. A kind that only one stack has is watched for as long.
//
// HOLDFAST_STACKS sets how many come; then the test must run alone, and goroutines and
// memory are compared too.
func TestStacksComeAndGo(t *testing.T) {
	t.Parallel()
	rounds, alone := 3, false
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_STACKS")); err == nil {
		rounds, alone = max(3, n/10), true
	}
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
	var heap, goroutines uint64 // after two rounds: connections and caches are there then
	usage := func() (uint64, uint64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, uint64(runtime.NumGoroutine())
	}
	for round := range rounds {
		if round == 2 {
			heap, goroutines = usage()
		}
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
	if h, g := usage(); alone && (h > heap+heap/5+(1<<20) || g > goroutines+2) {
		t.Errorf("after %d stacks: %d KiB and %d goroutines, after 20: %d KiB and %d", 10*rounds, h>>10, g, heap>>10, goroutines)
	}
	stays()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watches) != 0 || len(c.tracked) != 0 || len(c.claims.objects) != 0 || len(c.claims.owners) != 0 {
		t.Errorf("left: %d watches, %d objects, %d claims of %d owners", len(c.watches), len(c.tracked), len(c.claims.objects), len(c.claims.owners))
	}
}
