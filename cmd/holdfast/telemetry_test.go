package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/examples"
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/forge"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
)

const monitoring = "../../deploy/monitoring"

// measure is a metric, as docs/metrics.md or a collector describes it.
type measure struct{ typ, labels string }

// documented reads the tables of docs/metrics.md.
func documented(t *testing.T) map[string]measure {
	t.Helper()
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]measure{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(holdfast_[a-z_]+)` \\| ([a-z]*) \\|([^|]*)\\| (.*) \\|$").FindAllStringSubmatch(string(b), -1) {
		labels := regexp.MustCompile("[a-z]+").FindAllString(row[3], -1)
		slices.Sort(labels)
		if _, twice := out[row[1]]; twice || row[4] == "" {
			t.Errorf("docs/metrics.md: %s is there twice or has no meaning", row[1])
		}
		out[row[1]] = measure{row[2], strings.Join(labels, " ")}
	}
	return out
}

// TestMetricsAreDocumented compares what the daemon registers with
// docs/metrics.md: every metric with its labels, and none besides.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	alice, err := testenv.NewSSHSigner(dir, "alice", "alice@acme.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"alice.allowed_signers": alice.AllowedSignersLine() + "\n",
		"holdfast.yaml": `apiVersion: holdfast.dev/v1alpha1
kind: Holdfast
stateDir: state
repositories:
- name: shop
  url: ` + dir + `
  commits:
    signers: [{name: alice, allowedSignersFile: alice.allowed_signers}]
    rules: [{paths: ["**"], signers: [alice]}]
environments: [{name: production, policies: [baseline], terraform: {binary: ` + os.Args[0] + `, mirror: ` + dir + `}}]
allow: [{repository: shop, paths: ["**"], environments: [production], targets: [terraform], drift: [report]}]
policies: [{name: baseline, library: [terraform/protected]}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "holdfast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	sec, log := &secrets{}, slog.New(slog.DiscardHandler)
	a, err := newApp(ctx, cfg, log, sec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
	}()
	// What is registered only where it is configured.
	optional := prometheus.NewRegistry()
	if _, err := newHerald(cfg, sec, log, optional, a.targets); err != nil {
		t.Fatal(err)
	}
	hook := forge.Hook{Repository: "shop", Provider: "github", Secret: func() ([]byte, error) { return []byte("a secret that is long enough"), nil }}
	if _, err := forge.New(forge.Config{Hooks: []forge.Hook{hook}, Poke: func(string) {}, Log: log, Metrics: optional}); err != nil {
		t.Fatal(err)
	}

	described := map[string]string{}
	for _, r := range []*prometheus.Registry{a.registry, optional} {
		maps.Copy(described, describe(r))
	}
	docs := documented(t)
	for name, labels := range described {
		if d, ok := docs[name]; !ok || d.labels != labels {
			t.Errorf("%s{%s} is documented (%t) with labels %q", name, labels, ok, d.labels)
		}
	}
	for name, d := range docs {
		if _, ok := described[name]; !ok {
			t.Errorf("%s is documented and does not exist", name)
		}
		if (d.typ == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is documented as a %s", name, d.typ)
		}
	}
}

// describe returns the labels of each of our metrics that r knows, whether or
// not it has a value yet.
func describe(r *prometheus.Registry) map[string]string {
	descs := make(chan *prometheus.Desc)
	go func() { r.Describe(descs); close(descs) }()
	re := regexp.MustCompile(`fqName: "(holdfast_[^"]*)".*variableLabels: \{(.*)\}\}`)
	out := map[string]string{}
	for d := range descs {
		if m := re.FindStringSubmatch(d.String()); m != nil {
			labels := strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
			slices.Sort(labels)
			out[m[1]] = strings.Join(labels, " ")
		}
	}
	return out
}

// TestMonitoringNamesWhatExists: each metric of the rules and the dashboard is
// documented, and so is each alert.
func TestMonitoringNamesWhatExists(t *testing.T) {
	t.Parallel()
	docs := documented(t)
	for _, file := range []string{"rules.yaml", "rules_test.yaml", "dashboard.json"} {
		b, err := os.ReadFile(filepath.Join(monitoring, file))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`holdfast_[a-z_]+`).FindAllString(string(b), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, n := range names {
			base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(n, "")
			if d, ok := docs[n]; !ok && (docs[base].typ != "histogram") {
				t.Errorf("%s: there is no %s (%s)", file, n, d.typ)
			}
		}
	}
	rules, err := os.ReadFile(filepath.Join(monitoring, "rules.yaml"))
	text, err2 := os.ReadFile("../../docs/metrics.md")
	tests, err3 := os.ReadFile(filepath.Join(monitoring, "rules_test.yaml"))
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !bytes.Contains(text, []byte("| `"+alert[1]+"` |")) {
			t.Errorf("%s is not documented", alert[1])
		}
		if !bytes.Contains(tests, []byte("alertname: "+alert[1]+"\n")) {
			t.Errorf("%s is not tested", alert[1])
		}
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(monitoring, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Datasource  struct{ UID string }
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.SchemaVersion < 39 {
		t.Errorf("schema %d", d.SchemaVersion)
	}
	seen := map[int]bool{}
	for _, p := range d.Panels {
		if seen[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: id %d, place %+v", p.Title, p.ID, p.GridPos)
		}
		seen[p.ID] = true
		if p.Type != "row" && (p.Datasource.UID != "${datasource}" || len(p.Targets) == 0) {
			t.Errorf("panel %q: datasource %q, %d queries", p.Title, p.Datasource.UID, len(p.Targets))
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	promtool := testenv.RequireTool(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// otlp is a collector that keeps what it gets.
type otlp struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*tracepb.Span
}

func newOTLP(t *testing.T) *otlp {
	t.Helper()
	o := &otlp{}
	o.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var req collector.ExportTraceServiceRequest
		z, err := gzip.NewReader(r.Body)
		if err == nil {
			var b []byte
			if b, err = io.ReadAll(z); err == nil {
				err = proto.Unmarshal(b, &req)
			}
		}
		if err != nil || r.Header.Get("X-Token") != "collector-token-9d1c" {
			t.Errorf("the collector was sent %s with %v: %v", r.URL, r.Header, err)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				o.spans = append(o.spans, ss.GetSpans()...)
			}
		}
	}))
	t.Cleanup(o.Close)
	return o
}

// find returns the first span with a name and, if not empty, a stack.
func (o *otlp) find(name, stack string) *tracepb.Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.spans {
		if s.GetName() == name && (stack == "" || text(s, "holdfast.stack") == stack) {
			return s
		}
	}
	return nil
}

func (o *otlp) below(parent *tracepb.Span) map[string]*tracepb.Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[string]*tracepb.Span{}
	for _, s := range o.spans {
		if bytes.Equal(s.GetParentSpanId(), parent.GetSpanId()) {
			out[s.GetName()] = s
		}
	}
	return out
}

func text(s *tracepb.Span, key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(waitTimeout), time.NewTicker(50*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("%s did not happen", what)
		case <-tick.C:
		}
	}
}

// TestTelemetry has the daemon deploy, refuse and revert, and looks at it with
// what operators look with: the real Prometheus, a collector of traces, the log.
func TestTelemetry(t *testing.T) {
	t.Parallel()
	cluster := testenv.SharedCluster(t)
	dir, err := os.MkdirTemp("", "hf-") // Unix sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w, err := world.New(world.Options{
		Dir: dir, Cluster: cluster, Namespace: testenv.Namespace(t, cluster), System: testenv.Namespace(t, cluster), Terraform: testenv.RequireTool(t, "tofu"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	traces := newOTLP(t)
	operator := strings.Replace(w.Operator(), "stateDir: state\n", "stateDir: state\ntelemetry: {otlp: "+traces.URL+", headers: {X-Token: collector-token}}\n", 1)
	for name, content := range map[string]string{w.Config: operator, filepath.Join(dir, "collector-token"): "collector-token-9d1c\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if _, err := w.Publish(ctx, "acme/web", "1.0", world.Signed, false); err != nil {
		t.Fatal(err)
	}
	shop, err := fs.Sub(examples.FS, "shop")
	if err != nil {
		t.Fatal(err)
	}
	files, err := w.Example(shop)
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(files, func(name, _ string) bool { return !strings.HasPrefix(name, "apps/") })
	head, err := w.Commit("Deploy", w.Alice, files)
	if err != nil {
		t.Fatal(err)
	}
	bin, err := exec.LookPath("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	d, err := w.Daemon(bin, log)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(d.Stop)
	t.Cleanup(func() {
		_ = stop()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log)
		}
	})
	phase := func(stack string, p reconciler.Phase) {
		t.Helper()
		if _, err := w.Wait(ctx, d, stack+" to be "+string(p), func(o reconciler.Overview) bool {
			return world.Stack(o, stack).Phase == p
		}); err != nil {
			t.Fatal(err)
		}
	}
	phase("shop-web", reconciler.Ready)
	phase("shop-settings", reconciler.Ready)

	// Somebody edits, and it is reverted.
	live, err := dynamic.NewForConfig(cluster.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := live.Resource(resourceOf("configmap")).Namespace(w.Namespace).Patch(ctx, "shop-settings", types.MergePatchType,
		[]byte(`{"data":{"log-level":"debug"}}`), metav1.PatchOptions{FieldManager: "carol"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revert", func() bool { return strings.Contains(log.String(), `"reverted drift"`) })
	phase("shop-settings", reconciler.Ready)

	prom := startPrometheus(t, w.HTTP)
	t.Run("prometheus", func(t *testing.T) { checkPrometheus(t, prom, w.HTTP) })

	// A change that policy refuses.
	deployment := strings.Replace(files["apps/web/deployment.yaml"], "allowPrivilegeEscalation: false", "privileged: true", 1)
	if _, err := w.Commit("Privileged", w.Alice, map[string]string{"apps/web/deployment.yaml": deployment}); err != nil {
		t.Fatal(err)
	}
	phase("shop-web", reconciler.Denied)
	eventually(t, "the alert", func() bool {
		return len(prom.query(t, `ALERTS{alertname="HoldfastStackDenied", stack="shop-web"}`)) == 1
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	checkTrace(t, traces, head)
	checkLog(t, log.String(), traces)
}

// checkTrace: the deployment is one trace from the commit to the ledger.
func checkTrace(t *testing.T, traces *otlp, head string) {
	t.Helper()
	revision, deploy := traces.find("revision", ""), traces.find("deploy", "shop-web")
	if revision == nil || deploy == nil {
		t.Fatal("no trace arrived")
	}
	if text(revision, "holdfast.revision") != head || !bytes.Equal(deploy.GetParentSpanId(), revision.GetSpanId()) {
		t.Errorf("%v is not below %v", deploy, revision)
	}
	for _, name := range []string{"fetch", "verify_commit", "discover"} {
		if traces.below(revision)[name] == nil {
			t.Errorf("no %s below revision", name)
		}
	}
	steps := traces.below(deploy)
	for _, name := range []string{"render", "verify_artifacts", "policy_rendered", "plan", "policy_plan", "gate", "apply", "observe", "record"} {
		if s := steps[name]; s == nil || !bytes.Equal(s.GetTraceId(), revision.GetTraceId()) {
			t.Errorf("no %s below deploy, or in another trace", name)
		}
	}
	if repair := traces.find("repair", "shop-settings"); repair == nil || len(repair.GetLinks()) != 1 || !bytes.Equal(repair.GetLinks()[0].GetTraceId(), revision.GetTraceId()) {
		t.Errorf("repair %v has no link to the commit", repair)
	}
}

// checkLog: one line for each outcome, with the trace that it belongs to.
func checkLog(t *testing.T, log string, traces *otlp) {
	t.Helper()
	lines := map[string][]map[string]any{}
	for line := range strings.Lines(log) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		key := fmt.Sprint(m["msg"], " ", m["stack"])
		lines[key] = append(lines[key], m)
	}
	for _, key := range []string{"applied shop-web", "applied shop-settings", "drift shop-settings", "reverted drift shop-settings", "not reconciled shop-web"} {
		n := 0
		for _, m := range lines[key] {
			if m["kind"] != "waiting" {
				n++
			}
			if m["environment"] != "production" {
				t.Errorf("%s: %v", key, m)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d lines", key, n)
		}
	}
	deploy := traces.find("deploy", "shop-web")
	if id := lines["applied shop-web"][0]["trace_id"]; id != hex.EncodeToString(deploy.GetTraceId()) {
		t.Errorf("applied: trace id %v, want that of %v", id, deploy)
	}
	for _, key := range []string{"reverted drift shop-settings", "not reconciled shop-web"} {
		if m := lines[key]; len(m) > 0 && m[len(m)-1]["trace_id"] == nil {
			t.Errorf("%s has no trace id", key)
		}
	}
}

// prom is a running Prometheus.
type prom struct{ url string }

// startPrometheus runs Prometheus with our rules; it scrapes target each second.
func startPrometheus(t *testing.T, target string) *prom {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs(filepath.Join(monitoring, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- {job_name: holdfast, static_configs: [{targets: [%q]}]}
`, rules, target)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	cmd := exec.Command(testenv.RequireTool(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yaml"), //nolint:noctx // ends by Kill
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus:\n%s", out.String())
		}
	})
	p := &prom{}
	eventually(t, "the start of Prometheus", func() bool {
		m := regexp.MustCompile(`Listening on.*address=(127\.0\.0\.1:\d+)`).FindStringSubmatch(out.String())
		if m != nil {
			p.url = "http://" + m[1]
		}
		return m != nil
	})
	return p
}

// get reads a JSON answer of the API into v.
func (p *prom) get(t *testing.T, path string, v any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

// query returns the values of an expression by the label stack.
func (p *prom) query(t *testing.T, expr string) map[string]string {
	t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  []any
			}
		}
	}
	if err := p.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil
	}
	out := map[string]string{}
	for _, r := range answer.Data.Result {
		out[r.Metric["stack"]] = fmt.Sprint(r.Value[1])
	}
	return out
}

// checkPrometheus: the daemon's metrics are well-formed and arrive, every rule
// can be evaluated, and the dashboard's queries are understood.
func checkPrometheus(t *testing.T, p *prom, target string) {
	eventually(t, "a scrape", func() bool {
		ready := p.query(t, "holdfast_stack_ready")
		return ready["shop-web"] == "1" && ready["shop-settings"] == "1"
	})
	for expr, want := range map[string]string{
		`sum(holdfast_drift_reverts_total)`:                    "1",
		`holdfast_repository_head_enforced`:                    "1",
		`count(holdfast_build_info)`:                           "1",
		`sum(holdfast_stage_seconds_count{stage="apply"}) > 2`: "3",
	} {
		if got := p.query(t, expr)[""]; got != want {
			t.Errorf("%s is %q, want %q", expr, got, want)
		}
	}
	type group struct {
		Rules []struct{ Name, Health, LastError, State string }
	}
	var answer struct{ Data struct{ Groups []group } }
	eventually(t, "the evaluation of every rule", func() bool {
		if err := p.get(t, "/api/v1/rules", &answer); err != nil || len(answer.Data.Groups) == 0 {
			return false
		}
		for _, r := range answer.Data.Groups[0].Rules {
			if r.Health == "unknown" {
				return false
			}
		}
		return true
	})
	for _, r := range answer.Data.Groups[0].Rules {
		if r.Health != "ok" {
			t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
		}
		if r.State == "firing" {
			t.Errorf("%s fires, though all is well", r.Name)
		}
	}

	resp, err := http.Get("http://" + target + "/metrics") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	check := exec.CommandContext(t.Context(), testenv.RequireTool(t, "promtool"), "check", "metrics")
	check.Stdin = bytes.NewReader(body)
	if out, err := check.CombinedOutput(); err != nil || bytes.Contains(out, []byte("holdfast_")) {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	docs := documented(t)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (holdfast_\w+) (\w+)$`).FindAllStringSubmatch(string(body), -1) {
		if docs[m[1]].typ != m[2] {
			t.Errorf("%s is a %s, documented as %q", m[1], m[2], docs[m[1]].typ)
		}
	}

	dashboard, err := os.ReadFile(filepath.Join(monitoring, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(dashboard, &d); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$stack", ".*", "$environment", ".*")
	for _, panel := range d.Panels {
		for _, q := range panel.Targets {
			var answer struct{ Status, Error string }
			if err := p.get(t, "/api/v1/query?query="+url.QueryEscape(variables.Replace(q.Expr)), &answer); err != nil || answer.Status != "success" {
				t.Errorf("%s: %s, %v", q.Expr, answer.Error, err)
			}
		}
	}
}
