package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"
)

// moves are times in milliseconds.
type moves struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func summed(took []float64) moves { return moves{percentile(took, .5), percentile(took, .99)} }

const (
	burst     = 100 // objects that are edited at once
	bursts    = 5   // of which the median counts
	storm     = 50  // commits in stormTime
	stormTime = 10 * time.Second

	hookSecret = "correct-horse-battery-staple"
)

// configure has the daemon told of pushes.
func (b *bench) configure() error {
	if err := os.WriteFile(filepath.Join(b.world.Dir, "hook.secret"), []byte(hookSecret), 0o600); err != nil {
		return err
	}
	if err := b.replace("interval: 200ms", "interval: 30s\n  webhook: {provider: github, secretFile: hook.secret}"); err != nil {
		return err
	}
	host, port, _ := strings.Cut(b.world.HTTP, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	b.hooks = fmt.Sprintf("%s:%d", host, n+1)
	return b.replace("listen: {", fmt.Sprintf("listen: {hooks: %q, ", b.hooks))
}

// replace changes the operator's file.
func (b *bench) replace(from, to string) error {
	conf, err := os.ReadFile(b.world.Config)
	if err != nil {
		return err
	}
	if !strings.Contains(string(conf), from) {
		return fmt.Errorf("the operator's file has no %q", from)
	}
	return os.WriteFile(b.world.Config, []byte(strings.Replace(string(conf), from, to, 1)), 0o600)
}

// push commits files, pushes them and tells the daemon, as a forge does.
func (b *bench) push(ctx context.Context, message string, files map[string]string) error {
	if _, err := b.world.Commit(message, b.world.Alice, files); err != nil {
		return err
	}
	const body = `{"ref":"refs/heads/main"}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+b.hooks+"/hooks/shop", strings.NewReader(body))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write([]byte(body))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("the webhook is answered %s", resp.Status)
	}
	return resp.Body.Close()
}

// configMaps returns the ConfigMaps of one application, of the daemon's or the floor's.
func (b *bench) configMaps(prefix string, i int) dynamic.ResourceInterface {
	return b.live.Resource(resource("ConfigMap")).Namespace(strings.Replace(appName(i), "app", prefix, 1))
}

func value(u *unstructured.Unstructured) string {
	v, _, _ := unstructured.NestedString(u.Object, "data", "value")
	return v
}

func edited(ctx context.Context, in dynamic.ResourceInterface) error {
	_, err := in.Patch(ctx, "web", types.MergePatchType, []byte(`{"data":{"value":"edited"}}`), metav1.PatchOptions{FieldManager: "somebody"})
	return err
}

// all returns a watch of the ConfigMaps of the whole cluster, from now on.
func (b *bench) all(ctx context.Context) (watch.Interface, error) {
	in := b.live.Resource(resource("ConfigMap"))
	list, err := in.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, err
	}
	// The server closes a watch that is read too slowly for it; this one resumes.
	return toolswatch.NewRetryWatcherWithContext(ctx, list.GetResourceVersion(), &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return in.Watch(ctx, o) },
	})
}

// floors measures what a bare client needs for the same: one watch, and an apply of what
// it tells; a push, and an apply.
func (b *bench) floors(ctx context.Context, n int) error {
	desired := configMap("0")
	apply := func(ctx context.Context, namespace string, u *unstructured.Unstructured) error {
		_, err := b.live.Resource(resource("ConfigMap")).Namespace(namespace).Apply(ctx, "web", u, metav1.ApplyOptions{FieldManager: "floor", Force: true})
		return err
	}
	w, err := b.all(ctx)
	if err != nil {
		return err
	}
	var reverts errgroup.Group
	reverts.SetLimit(16)
	var watching sync.WaitGroup
	watching.Go(func() {
		for e := range w.ResultChan() {
			u, ok := e.Object.(*unstructured.Unstructured)
			if ok && u.GetName() == "web" && strings.HasPrefix(u.GetNamespace(), "floor-") && (e.Type == watch.Deleted || value(u) != "0") {
				reverts.Go(func() error { return apply(ctx, u.GetNamespace(), desired) })
			}
		}
	})
	if b.result.FloorEdit, b.result.FloorDelete, err = b.repairs(ctx, "floor", n); err != nil {
		return err
	}
	if b.result.FloorBurst, err = b.bursts(ctx, "floor"); err != nil {
		return err
	}
	w.Stop()
	watching.Wait()
	if err := reverts.Wait(); err != nil {
		return err
	}
	b.result.FloorCommit, err = b.commits(ctx, "floor", max(1, n/5), func(ctx context.Context, i int, v string) error {
		if _, err := b.world.Commit(v, b.world.Alice, map[string]string{"floor.txt": v}); err != nil {
			return err
		}
		return apply(ctx, strings.Replace(appName(i), "app", "floor", 1), configMap(v))
	})
	return err
}

// configMap returns the ConfigMap of an application as it is declared.
func configMap(v string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "web"},
		"data": map[string]any{"value": v, "payload": strings.Repeat("x", 2048)},
	}}
}

// moves measures how fast the daemon answers.
func (b *bench) moves(ctx context.Context, n int) (err error) {
	if b.result.Edit, b.result.Delete, err = b.repairs(ctx, "app", n); err != nil {
		return err
	}
	if b.result.Burst, err = b.bursts(ctx, "app"); err != nil {
		return err
	}
	b.result.Commit, err = b.commits(ctx, "app", max(1, n/5), func(ctx context.Context, i int, v string) error {
		return b.push(ctx, v, map[string]string{"apps/" + appName(i) + "/app.yaml": app(i, v)["app.yaml"]})
	})
	if err != nil {
		return err
	}
	return b.stormOfCommits(ctx)
}

// repairs edits and deletes live ConfigMaps and waits for each to come back.
func (b *bench) repairs(ctx context.Context, prefix string, n int) (edit, del moves, err error) {
	var edits, deletes []float64
	for range n {
		in := b.configMaps(prefix, rand.IntN(b.n)) // a sample
		took, err := b.until(ctx, in, true, func(ctx context.Context) error { return edited(ctx, in) },
			func(u *unstructured.Unstructured) bool { return value(u) != "edited" })
		if err != nil {
			return edit, del, fmt.Errorf("edit: %w", err)
		}
		edits = append(edits, took)
		took, err = b.until(ctx, in, true, func(ctx context.Context) error {
			return in.Delete(ctx, "web", metav1.DeleteOptions{})
		}, func(*unstructured.Unstructured) bool { return true })
		if err != nil {
			return edit, del, fmt.Errorf("delete: %w", err)
		}
		deletes = append(deletes, took)
	}
	return summed(edits), summed(deletes), nil
}

// bursts returns the median of several times that edits takes.
func (b *bench) bursts(ctx context.Context, prefix string) (float64, error) {
	took := make([]float64, bursts)
	for i := range took {
		var err error
		if took[i], err = b.edits(ctx, prefix); err != nil {
			return 0, err
		}
	}
	return percentile(took, .5), nil
}

// edits edits a ConfigMap of each of many applications at once, and returns the
// milliseconds until all are as they were.
func (b *bench) edits(ctx context.Context, prefix string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := b.all(ctx)
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	start := time.Now()
	n := min(burst, b.n)
	var g errgroup.Group
	g.Go(func() error { // a watch that nobody reads is closed
		var g errgroup.Group
		g.SetLimit(16)
		for _, i := range rand.Perm(b.n)[:n] { // a sample
			g.Go(func() error { return edited(ctx, b.configMaps(prefix, i)) })
		}
		return g.Wait()
	})
	open, back := map[string]bool{}, 0
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return 0, apierrors.FromObject(e.Object)
		}
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok || u.GetName() != "web" || !strings.HasPrefix(u.GetNamespace(), prefix+"-") {
			continue
		}
		switch {
		case value(u) == "edited":
			open[u.GetNamespace()] = true
		case open[u.GetNamespace()]:
			delete(open, u.GetNamespace())
			if back++; back == n {
				return float64(time.Since(start).Microseconds()) / 1000, g.Wait()
			}
		}
	}
	return 0, fmt.Errorf("%d of %d came back: %w", back, n, ctx.Err())
}

// until does something and returns the milliseconds until an event shows an
// object that is as it should be. With disturbs, what is done causes an event
// itself, which shows one that is not.
func (b *bench) until(ctx context.Context, in dynamic.ResourceInterface, disturbs bool, do func(context.Context) error, good func(*unstructured.Unstructured) bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := in.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web"})
	if err != nil {
		return 0, err
	}
	w, err := in.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web", ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	start := time.Now()
	if err := do(ctx); err != nil {
		return 0, err
	}
	disturbed := !disturbs
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		switch {
		case !ok:
			return 0, fmt.Errorf("watch: %v", e.Object)
		case e.Type == watch.Deleted || !good(u):
			disturbed = true
		case disturbed:
			return float64(time.Since(start).Microseconds()) / 1000, nil
		}
	}
	return 0, fmt.Errorf("it did not come back: %w", ctx.Err())
}

// commits has a change of one application asked for, again and again, and waits until
// each is live.
func (b *bench) commits(ctx context.Context, prefix string, n int, ask func(ctx context.Context, i int, v string) error) (moves, error) {
	var took []float64
	for i := range n {
		at, v := rand.IntN(b.n), fmt.Sprintf("commit-%d", i) // a sample
		ms, err := b.until(ctx, b.configMaps(prefix, at), false, func(ctx context.Context) error { return ask(ctx, at, v) },
			func(u *unstructured.Unstructured) bool { return value(u) == v })
		if err != nil {
			return moves{}, fmt.Errorf("commit: %w", err)
		}
		took = append(took, ms)
	}
	return summed(took), nil
}

// stormOfCommits changes one application with one commit after the other, and measures
// how long after its push the newest is live. An older one after a newer is an error.
func (b *bench) stormOfCommits(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	in := b.configMaps("app", 0)
	list, err := in.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web"})
	if err != nil {
		return err
	}
	w, err := in.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web", ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return err
	}
	defer w.Stop()
	var pushed time.Time
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(stormTime / storm)
		defer tick.Stop()
		for i := range storm {
			v := fmt.Sprintf("storm-%d", i)
			if err := b.push(ctx, v, map[string]string{"apps/" + appName(0) + "/app.yaml": app(0, v)["app.yaml"]}); err != nil {
				return err
			}
			pushed = time.Now()
			<-tick.C
		}
		return nil
	})
	newest := -1
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("watch: %v", e.Object)
		}
		text, ok := strings.CutPrefix(value(u), "storm-")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < newest {
			return fmt.Errorf("commit %s is live after commit %d", text, newest)
		}
		if newest = n; n == storm-1 {
			live := time.Now()
			err := g.Wait()
			b.result.Storm = float64(live.Sub(pushed).Microseconds()) / 1000
			return err
		}
	}
	return fmt.Errorf("commit %d is live, the newest is not: %w", newest, ctx.Err())
}
