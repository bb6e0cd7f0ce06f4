package telemetry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/ledger"
)

// Ledger is a ledger that is measured. It does what the ledger does.
type Ledger struct {
	*ledger.Ledger
	seconds prometheus.Histogram
	errors  *prometheus.CounterVec
}

// MeasureLedger registers the metrics of l and returns it measured.
func MeasureLedger(reg prometheus.Registerer, l *ledger.Ledger) (*Ledger, error) {
	m := &Ledger{
		Ledger: l,
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_ledger_append_seconds", Help: "Time until an entry was durable.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_ledger_append_errors_total", Help: "Entries that could not be recorded, by type.",
		}, []string{"type"}),
	}
	if err := errors.Join(reg.Register(m.seconds), reg.Register(m.errors), reg.Register(length{l})); err != nil {
		return nil, fmt.Errorf("telemetry: register metrics: %w", err)
	}
	return m, nil
}

// Append measures [ledger.Ledger.Append].
func (m *Ledger) Append(ctx context.Context, e ledger.Entry, bodies map[string][]byte) (ledger.Index, error) {
	start := time.Now()
	i, err := m.Ledger.Append(ctx, e, bodies)
	if err != nil {
		m.errors.WithLabelValues(string(e.Type)).Inc()
		return i, err
	}
	m.seconds.Observe(time.Since(start).Seconds())
	return i, nil
}

// length gathers how long the log is and how far its checkpoint is behind.
type length struct{ l *ledger.Ledger }

var (
	descEntries    = prometheus.NewDesc("holdfast_ledger_entries", "Durable entries of the ledger.", nil, nil)
	descLagEntries = prometheus.NewDesc("holdfast_ledger_checkpoint_lag_entries", "Durable entries that no signed checkpoint covers.", nil, nil)
	descLagSeconds = prometheus.NewDesc("holdfast_ledger_checkpoint_lag_seconds", "For how long there have been such entries.", nil, nil)
)

func (length) Describe(to chan<- *prometheus.Desc) {
	to <- descEntries
	to <- descLagEntries
	to <- descLagSeconds
}

func (g length) Collect(to chan<- prometheus.Metric) {
	lag := g.l.Lag()
	to <- prometheus.MustNewConstMetric(descEntries, prometheus.GaugeValue, float64(g.l.Size()))
	to <- prometheus.MustNewConstMetric(descLagEntries, prometheus.GaugeValue, float64(lag.Entries))
	to <- prometheus.MustNewConstMetric(descLagSeconds, prometheus.GaugeValue, lag.For.Seconds())
}
