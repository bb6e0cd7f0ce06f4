package telemetry

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// WithTraceID returns a handler that adds trace_id to a line that was logged
// within a sampled trace, and hands all lines to next.
func WithTraceID(next slog.Handler) slog.Handler { return traceID{next} }

type traceID struct{ slog.Handler }

func (h traceID) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() && span.HasTraceID() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceID) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceID{h.Handler.WithAttrs(attrs)}
}

func (h traceID) WithGroup(name string) slog.Handler { return traceID{h.Handler.WithGroup(name)} }
