// Command bench measures the daemon on a real control plane, beside the floor
// of what the same machine does without it, in the same run.
//
// It guarantees that each figure was measured in this run, and it prints the
// figures as a table and writes them as JSON. It refuses to compare with
// figures of other machines.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// result is what one run with n applications measured. Times are in
// milliseconds, sizes in MiB.
type result struct {
	Apps          int     `json:"apps"`
	Objects       int     `json:"objects"`
	FloorSeconds  float64 `json:"floorSeconds"`
	Converge      float64 `json:"convergeSeconds"`
	Ratio         float64 `json:"convergeToFloor"`
	ObjectsPerSec float64 `json:"objectsPerSecond"`
	CPU           float64 `json:"cpuSeconds"`
	Requests      float64 `json:"apiRequests"`
	CommitP50     float64 `json:"commitToLiveP50"`
	CommitP99     float64 `json:"commitToLiveP99"`
	EditP50       float64 `json:"editToRevertedP50"`
	EditP99       float64 `json:"editToRevertedP99"`
	DeleteP50     float64 `json:"deleteToRestoredP50"`
	DeleteP99     float64 `json:"deleteToRestoredP99"`
	Restart       float64 `json:"restartSeconds"`
	IdleCore      float64 `json:"idleCorePercent"`
	IdleReq       float64 `json:"idleAPIRequests"`
	RSS           float64 `json:"rss"`
	AnonRSS       float64 `json:"anonymousRSS"`
	TofuPlan      float64 `json:"tofuPlan,omitempty"`
	DriftCheck    float64 `json:"terraformDriftCheck,omitempty"`
}

func main() {
	apps := flag.String("apps", "100,500", "numbers of applications, a run each")
	bin := flag.String("holdfast", "bin/holdfast", "the binary")
	out := flag.String("json", "dist/bench.json", "where to write the figures")
	edits := flag.Int("edits", 100, "edits, deletions and a fifth as many commits per run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *apps, *bin, *out, *edits); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to clean up
	}
}

func run(ctx context.Context, apps, bin, out string, edits int) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	var results []result
	for field := range strings.SplitSeq(apps, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return fmt.Errorf("-apps: %q is not a number of applications", field)
		}
		r, err := measure(ctx, n, bin, edits)
		if err != nil {
			return fmt.Errorf("%d applications: %w", n, err)
		}
		results = append(results, r)
		print1(os.Stdout, r)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

func print1(w io.Writer, r result) {
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-34s "+format+"\n", append([]any{what}, args...)...)
	}
	fmt.Fprintf(w, "\n%d applications, %d objects\n", r.Apps, r.Objects)
	row("floor: bare server-side applies", "%.2f s", r.FloorSeconds)
	row("converge from nothing", "%.2f s = %.2f x the floor, %.0f objects/s", r.Converge, r.Ratio, r.ObjectsPerSec)
	row("  CPU, API requests", "%.2f s, %.0f (%.2f per object)", r.CPU, r.Requests, r.Requests/float64(r.Objects))
	row("commit to live", "p50 %.0f ms, p99 %.0f ms", r.CommitP50, r.CommitP99)
	row("edit to reverted", "p50 %.1f ms, p99 %.1f ms", r.EditP50, r.EditP99)
	row("delete to restored", "p50 %.1f ms, p99 %.1f ms", r.DeleteP50, r.DeleteP99)
	row("restart, configuration changed", "%.2f s until every stack is ready", r.Restart)
	row("idle, polled every 30 s", "%.2f %% of a core, %.0f API requests in a minute (12 renew the lease)", r.IdleCore, r.IdleReq)
	row("memory", "%.0f MiB RSS, of which %.0f MiB anonymous", r.RSS, r.AnonRSS)
	if r.TofuPlan > 0 {
		row("floor: bare tofu plan", "%.0f ms", r.TofuPlan)
		row("Terraform drift check", "%.0f ms = %.2f x the floor", r.DriftCheck, r.DriftCheck/r.TofuPlan)
	}
}

// bench is one run.
type bench struct {
	n      int
	world  *world.World
	daemon *world.Daemon
	live   dynamic.Interface
	result result
}

func measure(ctx context.Context, n int, bin string, edits int) (_ result, err error) {
	dir, err := os.MkdirTemp("", "hfbench-")
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Fprintf(os.Stderr, "bench: %d applications: starting a control plane\n", n)
	cluster, err := testenv.StartCluster(ctx, testenv.ClusterOptions{Dir: filepath.Join(dir, "cluster")})
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	b := &bench{n: n}
	if b.live, err = dynamic.NewForConfig(cluster.Config); err != nil {
		return result{}, err
	}
	tofu, err := testenv.Tool("tofu")
	if err != nil {
		return result{}, err
	}
	if b.world, err = world.New(world.Options{Dir: dir, Cluster: cluster, Namespace: "app-*", System: "holdfast-system", Terraform: tofu}); err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, b.world.Close()) }()
	for _, step := range []func(context.Context) error{
		b.namespaces, b.floor, func(ctx context.Context) error { return b.converge(ctx, bin) },
		func(ctx context.Context) error { return b.idle(ctx, bin) },
		func(ctx context.Context) error { return b.repairs(ctx, edits) },
		func(ctx context.Context) error { return b.commits(ctx, max(1, edits/5)) },
		b.stop, b.terraform,
	} {
		if err := step(ctx); err != nil {
			return b.result, err
		}
	}
	return b.result, nil
}

func appName(i int) string { return fmt.Sprintf("app-%04d", i) }

// app returns the files of one application.
func app(i int, payload string) map[string]string {
	name := appName(i)
	return map[string]string{
		"stack.yaml": fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: %s}\nspec:\n  environment: production\n"+
			"  kubernetes: {namespace: %s, kustomize: .}\n  drift: {mode: revert}\n", name, name),
		"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [app.yaml]\n",
		"app.yaml": fmt.Sprintf(`apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {value: %q, payload: %q}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: web
        image: ${REGISTRY}/acme/web:1.0
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`, payload, strings.Repeat("x", 2048)),
	}
}

func (b *bench) namespaces(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, prefix := range []string{"app", "floor"} {
		for i := range b.n {
			g.Go(func() error {
				ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace",
					"metadata": map[string]any{"name": strings.Replace(appName(i), "app", prefix, 1)}}}
				_, err := b.live.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(ctx, ns, metav1.CreateOptions{})
				return err
			})
		}
	}
	return g.Wait()
}

// floor applies the same objects with a bare loop, 16 at a time.
func (b *bench) floor(ctx context.Context) error {
	var objects []*unstructured.Unstructured
	for i := range b.n {
		text := strings.ReplaceAll(app(i, "0")["app.yaml"], "${REGISTRY}", b.world.Registry.Host)
		for doc := range strings.SplitSeq(text, "\n---\n") {
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
				return err
			}
			u.SetNamespace(strings.Replace(appName(i), "app", "floor", 1))
			objects = append(objects, u)
		}
	}
	b.result.Apps, b.result.Objects = b.n, len(objects)
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, u := range objects {
		g.Go(func() error {
			_, err := b.live.Resource(resource(u.GetKind())).Namespace(u.GetNamespace()).Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: "floor", Force: true})
			return err
		})
	}
	err := g.Wait()
	b.result.FloorSeconds = time.Since(start).Seconds()
	return err
}

func resource(kind string) schema.GroupVersionResource {
	gvr := schema.GroupVersionResource{Version: "v1", Resource: strings.ToLower(kind) + "s"}
	if kind == "Deployment" {
		gvr.Group = "apps"
	}
	return gvr
}

// converge starts the daemon on a repository that is ready, and waits until
// every stack is.
func (b *bench) converge(ctx context.Context, bin string) error {
	if _, err := b.world.Publish(ctx, "acme/web", "1.0", world.Signed, false); err != nil {
		return err
	}
	files := map[string]string{}
	for i := range b.n {
		for name, content := range app(i, "0") {
			files["apps/"+appName(i)+"/"+name] = content
		}
	}
	if _, err := b.world.Commit("Everything", b.world.Alice, files); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(b.world.Dir, "daemon.log"))
	if err != nil {
		return err
	}
	if b.result.Converge, err = b.start(ctx, bin, log); err != nil {
		return err
	}
	b.result.Ratio = b.result.Converge / b.result.FloorSeconds
	b.result.ObjectsPerSec = float64(b.result.Objects) / b.result.Converge
	if b.result.CPU, err = cpuSeconds(b.daemon.PID()); err != nil {
		return err
	}
	b.result.Requests, err = b.requests(ctx)
	return err
}

// start starts the daemon and returns the seconds until every stack is ready.
func (b *bench) start(ctx context.Context, bin string, log io.Writer) (float64, error) {
	start := time.Now()
	var err error
	if b.daemon, err = b.world.Daemon(bin, log); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	// The status of so many stacks is large: to ask for it all the time would be
	// measured too.
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		if o, err := b.world.Status(ctx); err == nil && len(o.Stacks) == b.n &&
			!slices.ContainsFunc(o.Stacks, func(s reconciler.Status) bool { return s.Phase != reconciler.Ready }) {
			return time.Since(start).Seconds(), nil
		}
		if gone, err := b.daemon.Exited(); gone {
			return 0, fmt.Errorf("the daemon ended: %w", err)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("not every stack is ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

const statusEvery = 200 * time.Millisecond

// again restarts the daemon with another poll interval, and returns the seconds
// until every stack is ready.
func (b *bench) again(ctx context.Context, bin, from, to string) (float64, error) {
	if err := b.daemon.Stop(); err != nil {
		return 0, err
	}
	conf, err := os.ReadFile(b.world.Config)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(b.world.Config, []byte(strings.Replace(string(conf), "interval: "+from, "interval: "+to, 1)), 0o600); err != nil {
		return 0, err
	}
	return b.start(ctx, bin, io.Discard)
}

const (
	idleSettle = 45 * time.Second // longer than workers of renderings live
	idleTime   = time.Minute
)

// idle measures what the daemon does while there is nothing to do, at the
// interval that it polls with by default.
func (b *bench) idle(ctx context.Context, bin string) (err error) {
	if b.result.Restart, err = b.again(ctx, bin, "200ms", "30s"); err != nil {
		return err
	}
	<-time.After(idleSettle)
	cpu, err := cpuSeconds(b.daemon.PID())
	if err != nil {
		return err
	}
	req, err := b.requests(ctx)
	if err != nil {
		return err
	}
	<-time.After(idleTime)
	cpu2, err := cpuSeconds(b.daemon.PID())
	if err != nil {
		return err
	}
	req2, err := b.requests(ctx)
	if err != nil {
		return err
	}
	b.result.IdleCore, b.result.IdleReq = 100*(cpu2-cpu)/idleTime.Seconds(), req2-req
	if err := b.memory(); err != nil {
		return err
	}
	_, err = b.again(ctx, bin, "30s", "200ms")
	return err
}

func (b *bench) memory() error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.daemon.PID()))
	if err != nil {
		return err
	}
	b.result.RSS, b.result.AnonRSS = statusMiB(string(text), "VmRSS:"), statusMiB(string(text), "RssAnon:")
	return nil
}

func statusMiB(text, key string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				return 0
			}
			return kib / 1024
		}
	}
	return 0
}

// repairs edits and deletes live ConfigMaps and waits for each to come back.
func (b *bench) repairs(ctx context.Context, n int) error {
	var edits, deletes []float64
	for range n {
		maps := b.live.Resource(resource("ConfigMap")).Namespace(appName(rand.IntN(b.n))) // a sample
		took, err := b.until(ctx, maps, true, func(ctx context.Context) error {
			_, err := maps.Patch(ctx, "web", types.MergePatchType, []byte(`{"data":{"value":"edited"}}`), metav1.PatchOptions{FieldManager: "somebody"})
			return err
		}, func(u *unstructured.Unstructured) bool {
			v, _, _ := unstructured.NestedString(u.Object, "data", "value")
			return v == "0"
		})
		if err != nil {
			return fmt.Errorf("edit: %w", err)
		}
		edits = append(edits, took)
		took, err = b.until(ctx, maps, true, func(ctx context.Context) error {
			return maps.Delete(ctx, "web", metav1.DeleteOptions{})
		}, func(*unstructured.Unstructured) bool { return true })
		if err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		deletes = append(deletes, took)
	}
	b.result.EditP50, b.result.EditP99 = percentile(edits, .5), percentile(edits, .99)
	b.result.DeleteP50, b.result.DeleteP99 = percentile(deletes, .5), percentile(deletes, .99)
	return nil
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

// commits changes one application in each commit and waits until it is live.
func (b *bench) commits(ctx context.Context, n int) error {
	var took []float64
	for i := range n {
		at := rand.IntN(b.n) // a sample
		value := fmt.Sprintf("commit-%d", i)
		maps := b.live.Resource(resource("ConfigMap")).Namespace(appName(at))
		ms, err := b.until(ctx, maps, false, func(context.Context) error {
			_, err := b.world.Commit(value, b.world.Alice, map[string]string{"apps/" + appName(at) + "/app.yaml": app(at, value)["app.yaml"]})
			return err
		}, func(u *unstructured.Unstructured) bool {
			v, _, _ := unstructured.NestedString(u.Object, "data", "value")
			return v == value
		})
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		took = append(took, ms)
	}
	b.result.CommitP50, b.result.CommitP99 = percentile(took, .5), percentile(took, .99)
	return nil
}

func (b *bench) stop(context.Context) error { return b.daemon.Stop() }

// requests returns how many requests the daemon has made to the API server.
func (b *bench) requests(ctx context.Context) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.world.HTTP+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	total := 0.0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "holdfast_kubernetes_requests_total{") {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total, nil
}

// cpuSeconds returns the user and system time of a process.
func cpuSeconds(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is not as expected")
	}
	const ticks = 100 // USER_HZ, which Linux fixes for user space
	total := 0.0
	for _, f := range fields[11:13] {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, err
		}
		total += v
	}
	return total / ticks, nil
}

func percentile(v []float64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(p*float64(len(s))))]
}

// timed runs a command n times and returns the median in milliseconds. An exit
// code in ok is no failure.
func timed(ctx context.Context, n int, ok []int, dir string, env []string, name string, args ...string) (float64, error) {
	var all []float64
	for range n {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Env = dir, env
		start := time.Now()
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && slices.Contains(ok, exit.ExitCode()) {
			err = nil
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		all = append(all, float64(time.Since(start).Microseconds())/1000)
	}
	return percentile(all, .5), nil
}
