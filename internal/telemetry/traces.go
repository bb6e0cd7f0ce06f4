package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	scope = "github.com/holdfast-dev/holdfast"

	// exportTimeout is for one batch, with its repetitions; flushTimeout for
	// what is left when the daemon stops.
	exportTimeout = 4 * time.Second
	flushTimeout  = 5 * time.Second

	queueSpans = 4096 // that wait for the collector; further ones are dropped
	batchSpans = 512
	batchDelay = 2 * time.Second

	maxText = 2 << 10 // bytes of an attribute or a status
)

// TraceConfig says where traces go.
type TraceConfig struct {
	// Endpoint is the base URL of an OTLP/HTTP collector; v1/traces is added to
	// its path, as for OTEL_EXPORTER_OTLP_ENDPOINT. Empty: no traces.
	// https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp
	Endpoint string
	// Headers are read for each request, so that a token can be rotated.
	Headers map[string]func() (string, error)
	// RootCAs are trusted instead of the system's; nil: those of the system.
	RootCAs     *x509.CertPool
	SampleRatio float64 // share of traces that are sent, 0 to 1
	Version     string  // of the daemon
	// Scrub masks secrets in every text that leaves.
	Scrub func(string) string
	Log   *slog.Logger
}

// Traces sends spans to a collector.
type Traces struct {
	provider *sdktrace.TracerProvider // nil: off
}

// NewTraces returns what sends spans to the collector of c. It connects when the
// first spans are sent; a collector that cannot be reached is a warning in the
// log, and no more.
func NewTraces(ctx context.Context, c TraceConfig, reg prometheus.Registerer) (*Traces, error) {
	const op = "telemetry.NewTraces"
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_trace_spans_total", Help: "Spans that were handed to the collector (sent) or that it did not take (failed).",
	}, []string{"outcome"})
	if err := reg.Register(sent); err != nil {
		return nil, fmt.Errorf("telemetry: register metrics: %w", err)
	}
	if c.Endpoint == "" {
		return &Traces{}, nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fault.New(fault.Invalid, op, "set telemetry.otlp to an address such as https://collector:4318", "%q is not an OTLP/HTTP endpoint", c.Endpoint)
	}
	exporter, err := otlptrace.New(ctx, otlptracehttp.NewClient(
		otlptracehttp.WithEndpointURL(u.JoinPath("v1/traces").String()),
		otlptracehttp.WithHTTPClient(c.client()),
		otlptracehttp.WithTimeout(exportTimeout),
		otlptracehttp.WithHeaders(nil),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: 200 * time.Millisecond, MaxInterval: time.Second, MaxElapsedTime: exportTimeout}),
	))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	return &Traces{provider: sdktrace.NewTracerProvider(
		sdktrace.WithRawSpanLimits(spanLimits),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "holdfast"), attribute.String("service.version", c.Version))),
		sdktrace.WithBatcher(&sink{next: exporter, TraceConfig: c, sent: sent},
			sdktrace.WithMaxQueueSize(queueSpans), sdktrace.WithMaxExportBatchSize(batchSpans),
			sdktrace.WithBatchTimeout(batchDelay), sdktrace.WithExportTimeout(exportTimeout)),
	)}, nil
}

// spanLimits bound a span. Texts are bounded by the sink: they must be whole
// when they are masked.
var spanLimits = sdktrace.SpanLimits{
	AttributeValueLengthLimit: -1, AttributeCountLimit: 64, EventCountLimit: 64, LinkCountLimit: 16,
	AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 16,
}

// client returns an HTTP client that follows no redirect: the headers are for
// the collector that the operator named.
func (c TraceConfig) client() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone() // it is one, by its documentation
	t.TLSClientConfig = &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12}
	return &http.Client{
		Transport:     headers{t, c.Headers},
		Timeout:       exportTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// headers adds headers to each request.
type headers struct {
	next   http.RoundTripper
	values map[string]func() (string, error)
}

func (h headers) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	for name, read := range h.values {
		v, err := read()
		if err != nil {
			return nil, err
		}
		req.Header.Set(name, v)
	}
	return h.next.RoundTrip(req)
}

// Tracer returns what makes spans. It makes none, at no cost, when traces are off.
func (t *Traces) Tracer() trace.Tracer {
	if t.provider == nil {
		return noop.NewTracerProvider().Tracer(scope)
	}
	return t.provider.Tracer(scope)
}

// Close sends what is left, for at most five seconds, and stops. Spans that end
// later are lost.
func (t *Traces) Close(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fault.Wrap(fault.Transient, "telemetry.Close", "look at the collector of telemetry.otlp", err)
	}
	return nil
}

// sink masks spans, hands them on, and tells once when the collector goes away
// and once when it is back.
type sink struct {
	TraceConfig
	next sdktrace.SpanExporter
	sent *prometheus.CounterVec
	down atomic.Bool
}

// ExportSpans never returns an error: OpenTelemetry would print it on stderr,
// unmasked.
func (s *sink) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, span := range spans {
		out[i] = masked{span, s.Scrub}
	}
	err := s.next.ExportSpans(ctx, out)
	if err != nil {
		s.sent.WithLabelValues("failed").Add(float64(len(spans)))
		if !s.down.Swap(true) {
			s.Log.WarnContext(ctx, "traces not sent", slog.String("error", s.Scrub(err.Error())), slog.String("hint", "look at the collector of telemetry.otlp"))
		}
		return nil
	}
	s.sent.WithLabelValues("sent").Add(float64(len(spans)))
	if s.down.Swap(false) {
		s.Log.InfoContext(ctx, "traces sent again")
	}
	return nil
}

func (s *sink) Shutdown(ctx context.Context) error { return s.next.Shutdown(ctx) }

// masked is a span whose texts are masked.
type masked struct {
	sdktrace.ReadOnlySpan
	scrub func(string) string
}

func (m masked) Name() string { return m.text(m.ReadOnlySpan.Name()) }

func (m masked) Attributes() []attribute.KeyValue { return m.attributes(m.ReadOnlySpan.Attributes()) }

func (m masked) Events() []sdktrace.Event {
	events := append([]sdktrace.Event(nil), m.ReadOnlySpan.Events()...)
	for i := range events {
		events[i].Name, events[i].Attributes = m.text(events[i].Name), m.attributes(events[i].Attributes)
	}
	return events
}

func (m masked) Links() []sdktrace.Link {
	links := append([]sdktrace.Link(nil), m.ReadOnlySpan.Links()...)
	for i := range links {
		links[i].Attributes = m.attributes(links[i].Attributes)
	}
	return links
}

func (m masked) Status() sdktrace.Status {
	st := m.ReadOnlySpan.Status()
	st.Description = m.text(st.Description)
	return st
}

// attributes masks texts. Lists of texts are sent as one text, so that a secret
// is found across them; numbers and truth values stay as they are.
func (m masked) attributes(in []attribute.KeyValue) []attribute.KeyValue {
	out := make([]attribute.KeyValue, len(in))
	for i, a := range in {
		switch a.Value.Type() {
		case attribute.BOOL, attribute.INT64, attribute.FLOAT64:
			out[i] = a
		default:
			out[i] = attribute.String(string(a.Key), m.text(a.Value.String()))
		}
	}
	return out
}

// text masks before it shortens: half a secret would not be found.
func (m masked) text(s string) string {
	s = m.scrub(s)
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
