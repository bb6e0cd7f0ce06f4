package reconciler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// traced returns a daemon whose spans are recorded.
func (b *bed) traced() (*Reconciler, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	r := b.new()
	r.Tracer = provider.Tracer("test")
	return r, spans
}

// ended returns the spans with a name that are about stack, if it is named.
func ended(spans *tracetest.SpanRecorder, name, stack string) (out []sdktrace.ReadOnlySpan) {
	for _, s := range spans.Ended() {
		if s.Name() == name && (stack == "" || valueOf(s, string(attrStack)) == stack) {
			out = append(out, s)
		}
	}
	return out
}

func valueOf(s sdktrace.ReadOnlySpan, key string) string {
	for _, a := range s.Attributes() {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

func below(spans *tracetest.SpanRecorder, parent trace.SpanContext) (names []string) {
	for _, s := range spans.Ended() {
		if s.Parent().SpanID() == parent.SpanID() {
			names = append(names, s.Name())
		}
	}
	slices.Sort(names)
	return names
}

func TestTraceOfADeployment(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web")
	r, spans := b.traced()
	stop := b.run(r)
	b.untilPhase(r, "web", Ready)
	stop()

	revisions, deploys := ended(spans, "revision", ""), ended(spans, "deploy", "web")
	if len(revisions) != 1 || len(deploys) != 1 {
		t.Fatalf("%d revisions, %d deployments", len(revisions), len(deploys))
	}
	root, deploy := revisions[0], deploys[0]
	if root.Parent().IsValid() || valueOf(root, "holdfast.revision") != "commit-1" || valueOf(root, "holdfast.repository") != "repo" {
		t.Errorf("revision: parent %v, %v", root.Parent(), root.Attributes())
	}
	if got, want := below(spans, root.SpanContext()), []string{"deploy", "discover", "fetch", "record", "verify_commit"}; !slices.Equal(got, want) {
		t.Errorf("below revision: %v, want %v", got, want)
	}
	if got, want := below(spans, deploy.SpanContext()), []string{"apply", "gate", "observe", "plan", "policy_plan", "policy_rendered", "record", "record", "record", "render", "verify_artifacts"}; !slices.Equal(got, want) {
		t.Errorf("below deploy: %v, want %v", got, want)
	}
	for _, s := range spans.Ended() {
		if s.SpanContext().TraceID() != root.SpanContext().TraceID() {
			t.Errorf("%s is in another trace", s.Name())
		}
		if s.Status().Code == codes.Error {
			t.Errorf("%s: %s", s.Name(), s.Status().Description)
		}
	}
	for key, want := range map[string]string{"holdfast.environment": "e", "holdfast.revision": "commit-1"} {
		if got := valueOf(deploy, key); got != want {
			t.Errorf("deploy: %s is %q", key, got)
		}
	}
	if got := valueOf(ended(spans, "plan", "")[0], "holdfast.plan.digest"); !strings.HasPrefix(got, "sha256:") {
		t.Errorf("plan digest %q", got)
	}
	gateIndex, err := strconv.Atoi(valueOf(ended(spans, "gate", "")[0], "holdfast.ledger.index"))
	if err != nil || b.entries[gateIndex].Type != "intent" {
		t.Errorf("the gate's entry %d is no intent (%v)", gateIndex, err)
	}
	for _, s := range ended(spans, "record", "") {
		i, err := strconv.Atoi(valueOf(s, "holdfast.ledger.index"))
		if err != nil || string(b.entries[i].Type) != valueOf(s, "holdfast.ledger.type") {
			t.Errorf("record of entry %d: %v, %v", i, s.Attributes(), err)
		}
	}
}

// What is tried again, and what is repaired, is no part of the commit's trace:
// that would have no end. It has a link to it.
func TestTracesOfWhatComesLater(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "bad")
	b.denied["bad"] = true
	r, spans := b.traced()
	stop := b.run(r)
	b.untilPhase(r, "web", Ready)
	b.untilPhase(r, "bad", Denied)
	if _, err := r.Apply(t.Context(), "bad"); err == nil {
		t.Fatal("applied")
	}
	b.disturb("web")
	b.until("the repair", func() bool { return len(ended(spans, "repair", "web")) == 1 })
	stop() // waits for the entries that are on their way to the ledger

	origin := ended(spans, "revision", "")[0].SpanContext()
	denied := ended(spans, "deploy", "bad")
	if len(denied) != 2 {
		t.Fatalf("%d attempts", len(denied))
	}
	if denied[0].Parent().SpanID() != origin.SpanID() || denied[0].Status().Code != codes.Error || valueOf(denied[0], "holdfast.error.kind") != "denied" {
		t.Errorf("first attempt: parent %v, status %v, %v", denied[0].Parent(), denied[0].Status(), denied[0].Attributes())
	}
	for name, s := range map[string]sdktrace.ReadOnlySpan{"second attempt": denied[1], "repair": ended(spans, "repair", "web")[0]} {
		if s.Parent().IsValid() || len(s.Links()) != 1 || s.Links()[0].SpanContext.SpanID() != origin.SpanID() {
			t.Errorf("%s: parent %v, links %v", name, s.Parent(), s.Links())
		}
	}
	if got, want := below(spans, ended(spans, "repair", "web")[0].SpanContext()), []string{"apply", "gate", "plan", "record", "record"}; !slices.Equal(got, want) { // its result, and the end of the finding
		t.Errorf("below repair: %v, want %v", got, want)
	}
}

// disturb changes the live object of a stack and has its observer see it.
func (b *bed) disturb(stack string) {
	b.t.Helper()
	b.until("observer of "+stack, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.found[stack] != nil })
	var found func(targets.Finding)
	b.with(func() { b.live[stack], found = "tampered", b.found[stack] })
	now := time.Now()
	found(targets.Finding{ID: plan.ObjectID{Kind: "Object", Name: stack}, Class: targets.Modified, Since: now.Add(-2 * time.Second), Detected: now,
		Fields: []plan.Field{{Path: "/v", From: "tampered", To: "v1"}}})
}

func TestOneLogLinePerOutcome(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "bad")
	b.denied["bad"] = true
	r, spans := b.traced()
	var mu sync.Mutex
	var log bytes.Buffer
	r.Log = slog.New(slog.NewJSONHandler(writer(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return log.Write(p) }), nil))
	stop := b.run(r)
	b.untilPhase(r, "web", Ready)
	b.untilPhase(r, "bad", Denied)
	b.disturb("web")
	b.until("the repair", func() bool { return len(ended(spans, "repair", "web")) == 1 })
	stop()

	lines := map[string][]map[string]any{}
	for line := range strings.Lines(log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprint(m["msg"], " ", m["stack"])
		lines[key] = append(lines[key], m)
	}
	for key, attrs := range map[string][]string{
		"verified commit <nil>": {"repository", "commit"},
		"applied web":           {"environment", "revision", "changes", "took"},
		"not reconciled bad":    {"environment", "revision", "kind", "op", "error", "hint"},
		"drift web":             {"environment", "object", "class", "actor", "action", "what"},
		"reverted drift web":    {"environment", "objects"},
	} {
		if len(lines[key]) != 1 {
			t.Errorf("%s: %d lines", key, len(lines[key]))
			continue
		}
		for _, a := range attrs {
			if _, ok := lines[key][0][a]; !ok {
				t.Errorf("%s: no %s in %v", key, a, lines[key][0])
			}
		}
		delete(lines, key)
	}
	if len(lines) != 0 {
		t.Errorf("further lines: %v", lines)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestMetricsOfAStack(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "bad")
	b.denied["bad"] = true
	r := b.new()
	reg := r.Metrics.(*prometheus.Registry)
	stop := b.run(r)
	b.untilPhase(r, "web", Ready)
	b.untilPhase(r, "bad", Denied)
	b.disturb("web")
	b.until("the repair", func() bool {
		return samples(t, reg)[`holdfast_drift_reverts_total{environment="e",stack="web",target="fake"}`] == 1
	})
	b.untilPhase(r, "web", Ready)
	b.until("everything settled", func() bool { return samples(t, reg)[`holdfast_workers_busy{queue="repairs"}`] == 0 })
	stop()

	want := map[string]float64{
		`holdfast_stack_phase{environment="e",phase="ready",stack="web"}`:                 1,
		`holdfast_stack_phase{environment="e",phase="denied",stack="web"}`:                0,
		`holdfast_stack_phase{environment="e",phase="denied",stack="bad"}`:                1,
		`holdfast_stack_ready{environment="e",stack="web",target="fake"}`:                 1,
		`holdfast_stack_ready{environment="e",stack="bad",target="fake"}`:                 0,
		`holdfast_drift_open{class="modified",environment="e",stack="web"}`:               0,
		`holdfast_drift_findings_total{action="reverted",class="modified",target="fake"}`: 1,
		`holdfast_drift_detect_seconds_count{target="fake"}`:                              1,
		`holdfast_drift_repair_seconds_count{}`:                                           1,
		`holdfast_refusals_total{kind="denied",op="policy.Evaluate",subject="stack"}`:     1,
		`holdfast_reconciliations_total{environment="e",outcome="denied",stack="bad"}`:    1,
		`holdfast_reconcile_seconds_count{target="fake"}`:                                 1,
		`holdfast_revision_lag_seconds_count{target="fake"}`:                              1,
		`holdfast_stage_seconds_count{stage="render",target="fake"}`:                      2,
		`holdfast_stage_seconds_count{stage="policy_rendered",target="fake"}`:             2,
		`holdfast_stage_seconds_count{stage="apply",target="fake"}`:                       2,
		`holdfast_stage_seconds_count{stage="verify_commit",target=""}`:                   1,
		`holdfast_repository_head_verified{repository="repo"}`:                            1,
		`holdfast_repository_head_enforced{repository="repo"}`:                            1,
		`holdfast_repository_lag_seconds{repository="repo"}`:                              0,
		`holdfast_repository_stale{repository="repo"}`:                                    0,
		`holdfast_workers{queue="stacks"}`:                                                4,
		`holdfast_queue_depth{queue="stacks"}`:                                            0,
	}
	got := samples(t, reg)
	for series, v := range want {
		if g, ok := got[series]; !ok || g != v {
			t.Errorf("%s is %v (there: %t), want %v", series, g, ok, v)
		}
	}
	recent := float64(time.Now().Add(-time.Minute).Unix())
	for _, series := range []string{
		`holdfast_stack_applied_timestamp_seconds{environment="e",stack="web"}`, `holdfast_stack_phase_timestamp_seconds{environment="e",stack="web"}`,
		`holdfast_repository_head_confirmed_timestamp_seconds{repository="repo"}`, `holdfast_repository_head_seen_timestamp_seconds{repository="repo"}`,
	} {
		if got[series] < recent {
			t.Errorf("%s is %v", series, got[series])
		}
	}
	if _, ok := got[`holdfast_stack_applied_timestamp_seconds{environment="e",stack="bad"}`]; ok {
		t.Error("a stack that was never applied has a time of it")
	}
}

// What is known of a repository, and what is not.
func TestMetricsOfARepository(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web")
	r := b.new()
	for _, c := range []struct {
		head, verified, enforced string
		metrics                  [3]bool // verified, enforced, behind
	}{
		{"", "", "", [3]bool{}},
		{"", "1", "1", [3]bool{}},
		{"2", "1", "1", [3]bool{false, false, true}},
		{"2", "2", "1", [3]bool{true, false, true}},
		{"2", "2", "2", [3]bool{true, true, false}},
	} {
		r.repository("repo").note(func(st *RepositoryStatus) {
			*st = RepositoryStatus{Head: c.head, Verified: c.verified, Enforced: c.enforced, headSeen: time.Now().Add(-time.Minute)}
		})
		m := samples(t, r.Metrics.(*prometheus.Registry))
		got := [3]bool{m[`holdfast_repository_head_verified{repository="repo"}`] == 1, m[`holdfast_repository_head_enforced{repository="repo"}`] == 1, m[`holdfast_repository_lag_seconds{repository="repo"}`] > 0}
		if got != c.metrics {
			t.Errorf("%+v: %v", c, got)
		}
		if at, ok := m[`holdfast_repository_head_confirmed_timestamp_seconds{repository="repo"}`]; ok {
			t.Errorf("a head that was never confirmed was at %v", at)
		}
	}
}

// samples gathers reg; a histogram is there by its _count.
func samples(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			name, v := f.GetName(), m.GetGauge().GetValue()+m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				name, v = name+"_count", float64(h.GetSampleCount())
			}
			out[name+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

// A folder of the repository names what does not decode. Whatever its bytes are,
// the metrics of all others must be there.
func TestMetricsSurviveHostileNames(t *testing.T) {
	t.Parallel()
	names := []string{"web", "a-\xff", "a-\xfe", `"a-\xff"`, `"a-\xfe"`}
	b := newBed(t, "web", "1", "2", "3", "4")
	for i, n := range names[1:] {
		b.alias[strconv.Itoa(i+1)], b.bad[n] = n, fault.New(fault.Invalid, "", "", "it does not decode")
	}
	r, _ := b.ready("web")
	for _, n := range names[1:] {
		b.untilPhase(r, n, Invalid)
	}
	got := samples(t, r.Metrics.(*prometheus.Registry))
	ready := 0
	for series := range got {
		if strings.HasPrefix(series, "holdfast_stack_ready{") {
			ready++
		}
	}
	if ready != len(names) {
		t.Errorf("%d stacks of %d are there", ready, len(names))
	}
}

// Every phase is a value of the label.
func TestPhasesAreMeasured(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "stack.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Phase" {
			return true
		}
		declared++
		v, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil || !slices.Contains(phases, Phase(v)) {
			t.Errorf("phase %q is not measured", v)
		}
		return true
	})
	if declared != len(phases) {
		t.Errorf("%d phases are declared, %d measured", declared, len(phases))
	}
}
