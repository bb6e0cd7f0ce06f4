package main

import (
	"context"
	"crypto/x509"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/telemetry"
)

// newTraces makes what sends traces where the operator's file says, if it does.
func newTraces(ctx context.Context, cfg *config.Loaded, sec *secrets, log *slog.Logger, reg prometheus.Registerer) (*telemetry.Traces, error) {
	t := cfg.Telemetry
	c := telemetry.TraceConfig{
		Endpoint: t.OTLP, Headers: map[string]func() (string, error){}, SampleRatio: t.SampleRatio,
		Version: version, Scrub: sec.scrub, Log: log,
	}
	for name, file := range t.Headers {
		c.Headers[name] = func() (string, error) { return sec.read(file) }
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fault.New(fault.Invalid, "holdfast", "correct telemetry.caFile", "telemetry: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "holdfast", "put PEM certificates into telemetry.caFile", "telemetry: there is no certificate in %s", t.CAFile)
		}
	}
	return telemetry.NewTraces(ctx, c, reg)
}
