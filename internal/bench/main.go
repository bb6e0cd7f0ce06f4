// Command bench measures the daemon on a real control plane, beside the floor
// of what the same machine does without it, in the same run.
//
// It guarantees that each figure was measured in this run, and it prints the
// figures as a table and writes them as JSON. It refuses to compare with
// figures of other machines.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
	FloorReady    float64 `json:"floorReadySeconds"`
	Applied       float64 `json:"appliedSeconds"`
	Converge      float64 `json:"convergeSeconds"`
	ObjectsPerSec float64 `json:"objectsPerSecond"`
	CPU           float64 `json:"cpuSeconds"`
	Requests      float64 `json:"apiRequests"`
	Commit        moves   `json:"commitToLive"`
	Edit          moves   `json:"editToReverted"`
	Delete        moves   `json:"deleteToRestored"`
	FloorCommit   moves   `json:"floorCommitToLive"`
	FloorEdit     moves   `json:"floorEditToReverted"`
	FloorDelete   moves   `json:"floorDeleteToRestored"`
	Burst         float64 `json:"burstReverted"`
	FloorBurst    float64 `json:"floorBurstReverted"`
	Storm         float64 `json:"stormNewestLive"`
	Restart       float64 `json:"restartSeconds"`
	IdleCore      float64 `json:"idleCorePercent"`
	IdleReq       float64 `json:"idleAPIRequests"`
	Compare       float64 `json:"comparisonCPUSeconds"`
	CompareReq    float64 `json:"comparisonAPIRequests"`
	RSS           float64 `json:"rss"`
	AnonRSS       float64 `json:"anonymousRSS"`
	Checks        []check `json:"terraformDriftChecks,omitempty"`
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
	row("floor: bare server-side applies", "%.2f s, and %.2f s until controllers have seen them", r.FloorSeconds, r.FloorReady)
	row("from nothing to applied", "%.2f s = %.2f x the floor, %.0f objects/s", r.Applied, r.Applied/r.FloorSeconds, r.ObjectsPerSec)
	row("from nothing to ready", "%.2f s = %.2f x the floor of %.2f", r.Converge, r.Converge/r.FloorReady, r.FloorReady)
	row("  CPU, API requests", "%.2f s, %.0f (%.2f per object)", r.CPU, r.Requests, r.Requests/float64(r.Objects))
	moved := func(what string, m, floor moves) {
		row(what, "p50 %.1f ms = %.1f x the floor of %.1f, p99 %.1f ms = %.1f x %.1f", m.P50, m.P50/floor.P50, floor.P50, m.P99, m.P99/floor.P99, floor.P99)
	}
	moved("commit to live, by webhook", r.Commit, r.FloorCommit)
	moved("edit to reverted", r.Edit, r.FloorEdit)
	moved("delete to restored", r.Delete, r.FloorDelete)
	row(fmt.Sprintf("%d edits at once, all reverted", burst), "%.0f ms = %.2f x the floor of %.0f", r.Burst, r.Burst/r.FloorBurst, r.FloorBurst)
	row(fmt.Sprintf("%d commits in %s", storm, stormTime), "the newest is live %.0f ms after its push, in order", r.Storm)
	row("restart, configuration changed", "%.2f s until every stack is ready", r.Restart)
	row("idle, polled every 30 s", "%.2f %% of a core, %.0f API requests in a minute (12 renew the lease)", r.IdleCore, r.IdleReq)
	row("a comparison of everything", "%.2f CPU s, %.0f API requests beside those", r.Compare, r.CompareReq)
	row("memory", "%.0f MiB RSS, of which %.0f MiB anonymous", r.RSS, r.AnonRSS)
	for _, c := range r.Checks {
		row(fmt.Sprintf("Terraform, %d resources", c.Resources), "a drift check takes %.0f ms = %.2f x a bare plan of %.0f, %+.0f ms", c.Ours, c.Ours/c.Bare, c.Bare, c.Ours-c.Bare)
	}
}

// bench is one run.
type bench struct {
	n      int
	world  *world.World
	daemon *world.Daemon
	live   dynamic.Interface
	hooks  string // address of the daemon's listener for webhooks
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
	if err := b.configure(); err != nil {
		return result{}, err
	}
	for _, step := range []func(context.Context) error{
		b.namespaces, b.floor, func(ctx context.Context) error { return b.floors(ctx, edits) },
		func(ctx context.Context) error { return b.converge(ctx, bin) },
		func(ctx context.Context) error { return b.idle(ctx, bin) },
		func(ctx context.Context) error { return b.moves(ctx, edits) },
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
	if err := g.Wait(); err != nil {
		return err
	}
	b.result.FloorSeconds = time.Since(start).Seconds()
	return b.observed(start)
}

// observed waits until the controllers have seen the Deployments of the floor, as the
// daemon does before it calls a stack ready.
func (b *bench) observed(start time.Time) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		list, err := b.live.Resource(resource("Deployment")).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list.Items, func(u unstructured.Unstructured) bool {
			seen, _, _ := unstructured.NestedInt64(u.Object, "status", "observedGeneration")
			return seen < u.GetGeneration()
		}) {
			b.result.FloorReady = time.Since(start).Seconds()
			return nil
		}
		<-tick.C
	}
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
	_, err := b.world.Commit("Everything", b.world.Alice, files)
	if err != nil {
		return err
	}
	if b.result.Converge, err = b.start(ctx, bin, b.n); err != nil {
		return err
	}
	b.result.ObjectsPerSec = float64(b.result.Objects) / b.result.Applied
	if b.result.CPU, err = cpuSeconds(b.daemon.PID()); err != nil {
		return err
	}
	b.result.Requests, err = b.requests(ctx)
	return err
}

// start starts the daemon and returns the seconds until every stack is ready. The
// status of so many stacks is large, and to ask for it all the time would be measured
// too: it is asked for when the log says that applies stacks were applied.
func (b *bench) start(ctx context.Context, bin string, applies int) (float64, error) {
	log, err := os.Create(filepath.Join(b.world.Dir, "daemon.log"))
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if b.daemon, err = b.world.Daemon(bin, log); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	applied := follow(log.Name(), `"msg":"applied"`)
	for {
		n, err := applied()
		if err != nil {
			return 0, err
		}
		if n >= applies {
			if b.result.Applied == 0 {
				b.result.Applied = time.Since(start).Seconds()
			}
			if o, err := b.world.Status(ctx); err == nil && len(o.Stacks) == b.n &&
				!slices.ContainsFunc(o.Stacks, func(s reconciler.Status) bool { return s.Phase != reconciler.Ready }) {
				return time.Since(start).Seconds(), nil
			}
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

// follow counts the lines of a growing file that contain text.
func follow(name, text string) func() (int, error) {
	n, at := 0, int64(0)
	return func() (int, error) {
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		defer f.Close() //nolint:errcheck // read only
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return 0, err
		}
		b, err := io.ReadAll(f)
		if err != nil {
			return 0, err
		}
		b = b[:bytes.LastIndexByte(b, '\n')+1]
		at += int64(len(b))
		n += bytes.Count(b, []byte(text))
		return n, nil
	}
}

const (
	idleSettle = 45 * time.Second // longer than workers of renderings live
	idleTime   = time.Minute
)

// idle measures what the daemon does while there is nothing to do, and what a
// comparison of everything costs.
func (b *bench) idle(ctx context.Context, bin string) (err error) {
	if err := b.daemon.Stop(); err != nil {
		return err
	}
	if err := b.replace("interval: 30s", "interval: 29s"); err != nil { // another configuration
		return err
	}
	if b.result.Restart, err = b.start(ctx, bin, 0); err != nil {
		return err
	}
	<-time.After(idleSettle)
	cpu, req, err := b.over(ctx, idleTime)
	if err != nil {
		return err
	}
	b.result.IdleCore, b.result.IdleReq = 100*cpu/idleTime.Seconds(), req
	if err := b.memory(); err != nil {
		return err
	}
	if err := b.daemon.Stop(); err != nil {
		return err
	}
	if err := b.replace("repositories:", "drift: {kubernetesSchedule: \"* * * * *\"}\nrepositories:"); err != nil {
		return err
	}
	if _, err := b.start(ctx, bin, 0); err != nil {
		return err
	}
	<-time.After(idleSettle)
	if b.result.Compare, b.result.CompareReq, err = b.over(ctx, idleTime); err != nil { // one comparison falls into it
		return err
	}
	b.result.Compare, b.result.CompareReq = b.result.Compare-cpu, b.result.CompareReq-req
	return nil
}

// over returns the CPU seconds and the API requests of the daemon while d passes.
func (b *bench) over(ctx context.Context, d time.Duration) (cpu, requests float64, err error) {
	cpu, err = cpuSeconds(b.daemon.PID())
	if err != nil {
		return 0, 0, err
	}
	if requests, err = b.requests(ctx); err != nil {
		return 0, 0, err
	}
	<-time.After(d)
	cpu2, err := cpuSeconds(b.daemon.PID())
	if err != nil {
		return 0, 0, err
	}
	requests2, err := b.requests(ctx)
	return cpu2 - cpu, requests2 - requests, err
}

func (b *bench) memory() (err error) {
	b.result.RSS, b.result.AnonRSS, err = b.daemon.Memory()
	return err
}

func (b *bench) stop(context.Context) error { return b.daemon.Stop() }

// requests returns how many requests the daemon has made to the API server.
func (b *bench) requests(ctx context.Context) (float64, error) {
	return b.world.Metric(ctx, "holdfast_kubernetes_requests_total{")
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
