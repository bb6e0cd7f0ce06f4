package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
)

const secret = "correct-horse-battery-staple"

func scrub(s string) string { return strings.ReplaceAll(s, secret, "***") }

// fake is an OTLP collector.
type fake struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []*tracepb.ResourceSpans
	raw     bytes.Buffer // every request, unpacked
	headers []http.Header
}

func newFake(t *testing.T, first func(http.ResponseWriter, *http.Request) (done bool)) *fake {
	t.Helper()
	f := &fake{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first != nil && first(w, r) {
			return
		}
		body, err := gzip.NewReader(r.Body)
		if err != nil || r.URL.Path != "/base/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s %s: %v", r.Method, r.URL, r.Header, err)
			return
		}
		b, err := io.ReadAll(body)
		var req collector.ExportTraceServiceRequest
		if err := errors.Join(err, proto.Unmarshal(b, &req)); err != nil {
			t.Error(err)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.raw.Write(b)
		f.spans = append(f.spans, req.GetResourceSpans()...)
		f.headers = append(f.headers, r.Header)
	}))
	t.Cleanup(f.Close)
	return f
}

// shared is a log that the exporter may still write to.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newTraces(t *testing.T, c TraceConfig) (*Traces, *prometheus.Registry, *shared) {
	t.Helper()
	var log shared
	c.Scrub, c.Version, c.Log = scrub, "1.2.3", slog.New(slog.NewJSONHandler(&log, nil))
	reg := prometheus.NewRegistry()
	traces, err := NewTraces(t.Context(), c, reg)
	if err != nil {
		t.Fatal(err)
	}
	return traces, reg, &log
}

func count(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func TestTracesArrive(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	token := "first"
	traces, reg, _ := newTraces(t, TraceConfig{Endpoint: f.URL + "/base", SampleRatio: 1, Headers: map[string]func() (string, error){
		"authorization": func() (string, error) { return "Bearer " + token, nil },
	}})
	ctx, root := traces.Tracer().Start(t.Context(), "revision", trace.WithAttributes(attribute.Int("holdfast.ledger.index", 7)))
	_, child := traces.Tracer().Start(ctx, "deploy")
	child.End()
	root.End()
	token = "rotated"
	if err := traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.spans) != 1 {
		t.Fatalf("%d resources", len(f.spans))
	}
	if r := f.spans[0].GetResource().String(); !strings.Contains(r, "holdfast") || !strings.Contains(r, "1.2.3") {
		t.Errorf("resource %s", r)
	}
	spans := f.spans[0].GetScopeSpans()[0].GetSpans()
	if len(spans) != 2 || !bytes.Equal(spans[0].GetTraceId(), spans[1].GetTraceId()) || !bytes.Equal(spans[0].GetParentSpanId(), spans[1].GetSpanId()) {
		t.Errorf("spans %v", spans)
	}
	if got := f.headers[0].Get("Authorization"); got != "Bearer rotated" {
		t.Errorf("header %q", got)
	}
	if n := count(t, reg, "holdfast_trace_spans_total"); n != 2 {
		t.Errorf("%v spans counted", n)
	}
}

// Whatever a span is given, no secret leaves, also where it would be cut in two.
func TestSpansAreMasked(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	traces, _, _ := newTraces(t, TraceConfig{Endpoint: f.URL + "/base", SampleRatio: 1})
	_, linked := traces.Tracer().Start(t.Context(), "linked")
	_, span := traces.Tracer().Start(t.Context(), "name "+secret, trace.WithLinks(trace.Link{SpanContext: linked.SpanContext(), Attributes: []attribute.KeyValue{attribute.String("link", secret)}}))
	span.SetAttributes(attribute.String("one", "password="+secret), attribute.StringSlice("many", []string{"a", secret}),
		attribute.String("long", strings.Repeat("x", maxText-len(secret)/2)+secret))
	span.AddEvent("event "+secret, trace.WithAttributes(attribute.String("event", secret)))
	span.RecordError(errors.New("error " + secret))
	span.SetStatus(codes.Error, "status "+secret)
	span.End()
	if err := traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := f.raw.String()
	if !strings.Contains(got, "password=***") || !strings.Contains(got, "status ***") {
		t.Errorf("the span did not arrive: %q", got)
	}
	if strings.Contains(got, secret) || strings.Contains(got, secret[:len(secret)/2]) {
		t.Errorf("a secret left: %q", got)
	}
}

func TestNoEndpointMakesNoSpans(t *testing.T) { // not parallel: it counts allocations
	traces, _, _ := newTraces(t, TraceConfig{SampleRatio: 1})
	tracer := traces.Tracer()
	if allocs := testing.AllocsPerRun(100, func() {
		_, span := tracer.Start(t.Context(), "x")
		span.End()
	}); allocs > 1 { // the context
		t.Errorf("%v allocations for a span that nobody wants", allocs)
	}
	if _, span := tracer.Start(t.Context(), "x"); span.IsRecording() || span.SpanContext().IsValid() {
		t.Error("a span was made")
	}
	if err := traces.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSampling(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	traces, _, _ := newTraces(t, TraceConfig{Endpoint: f.URL + "/base", SampleRatio: 0})
	ctx, span := traces.Tracer().Start(t.Context(), "x")
	_, child := traces.Tracer().Start(ctx, "y")
	child.End()
	span.End()
	if err := traces.Close(t.Context()); err != nil || len(f.spans) != 0 {
		t.Errorf("%v, %d spans", err, len(f.spans))
	}
}

// A collector that does not answer holds the daemon up for five seconds when it
// stops, and never before.
func TestDeadCollector(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	f := newFake(t, func(http.ResponseWriter, *http.Request) bool { <-hang; return true })
	traces, reg, log := newTraces(t, TraceConfig{Endpoint: f.URL + "/base", SampleRatio: 1})
	start := time.Now()
	for range 2 * queueSpans {
		_, span := traces.Tracer().Start(t.Context(), "x")
		span.End()
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("making spans took %s", took)
	}
	start = time.Now()
	_ = traces.Close(t.Context())
	if took := time.Since(start); took > flushTimeout+time.Second {
		t.Errorf("closing took %s", took)
	}
	close(hang)
	if count(t, reg, "holdfast_trace_spans_total") == 0 || strings.Count(log.String(), "traces not sent") != 1 {
		t.Errorf("log %s", log)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("a redirect was followed, with %v", r.Header) }))
	t.Cleanup(thief.Close)
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
		return true
	})
	traces, _, log := newTraces(t, TraceConfig{Endpoint: f.URL + "/base", SampleRatio: 1, Headers: map[string]func() (string, error){"X-Token": func() (string, error) { return secret, nil }}})
	_, span := traces.Tracer().Start(t.Context(), "x")
	span.End()
	_ = traces.Close(t.Context())
	if !strings.Contains(log.String(), "traces not sent") || strings.Contains(log.String(), secret) {
		t.Errorf("log %s", log)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"collector:4318", "grpc://collector:4317", "https://", "::"} {
		_, err := NewTraces(t.Context(), TraceConfig{Endpoint: bad, Scrub: scrub, Log: slog.New(slog.DiscardHandler)}, prometheus.NewRegistry())
		if fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTraceIDInLogLines(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	l := slog.New(WithTraceID(slog.NewJSONHandler(&log, nil))).With(slog.String("k", "v"))
	id := trace.TraceID{1, 2, 3}
	for _, flags := range []trace.TraceFlags{trace.FlagsSampled, 0} {
		ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{1}, TraceFlags: flags}))
		l.InfoContext(ctx, "x")
	}
	l.InfoContext(context.Background(), "x")
	var got []any
	for line := range strings.Lines(log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || m["k"] != "v" {
			t.Errorf("%s: %v", line, err)
		}
		got = append(got, m["trace_id"])
	}
	if len(got) != 3 || got[0] != id.String() || got[1] != nil || got[2] != nil {
		t.Errorf("trace ids %v", got)
	}
}

func TestLedgerIsMeasured(t *testing.T) {
	t.Parallel()
	signer, verifier, err := ledger.LoadOrCreateKey(filepath.Join(t.TempDir(), "key"), "holdfast.test/telemetry")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{Dir: t.TempDir(), Signer: signer, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	m, err := MeasureLedger(reg, l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Append(t.Context(), ledger.Entry{Type: ledger.Started, Note: "x"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"holdfast_ledger_entries": 1, "holdfast_ledger_append_seconds": 1, "holdfast_ledger_append_errors_total": 0,
		"holdfast_ledger_checkpoint_lag_entries": 0, "holdfast_ledger_checkpoint_lag_seconds": 0,
	} {
		if got := count(t, reg, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Append(t.Context(), ledger.Entry{Type: ledger.Intent}, nil); err == nil {
		t.Error("a closed ledger took an entry")
	}
	if got := count(t, reg, "holdfast_ledger_append_errors_total"); got != 1 {
		t.Errorf("%v errors", got)
	}
}
