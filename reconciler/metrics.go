package reconciler

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// metrics are documented in docs/operations.md; their names are stable.
type metrics struct {
	reconciled       *prometheus.CounterVec
	reconcileSeconds *prometheus.HistogramVec
	compareSeconds   *prometheus.HistogramVec
	repairSeconds    prometheus.Histogram
	findings         *prometheus.CounterVec
	sourceErrors     *prometheus.CounterVec
	ledgerErrors     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	m := &metrics{
		reconciled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_reconciliations_total", Help: "Reconciliations by stack and outcome (ok or the kind of error).",
		}, []string{"stack", "outcome"}),
		reconcileSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_reconcile_seconds", Help: "Time from render to applied, by target.", Buckets: buckets,
		}, []string{"target"}),
		compareSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_compare_seconds", Help: "Time of a full comparison with the live world, by target.", Buckets: buckets,
		}, []string{"target"}),
		repairSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_drift_repair_seconds", Help: "Time from the detection of drift to its repair.", Buckets: buckets,
		}),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_drift_findings_total", Help: "Drift findings by target, class and action.",
		}, []string{"target", "class", "action"}),
		sourceErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_source_errors_total", Help: "Revisions that could not be read or were refused, by repository and kind of error.",
		}, []string{"repository", "kind"}),
		ledgerErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_ledger_errors_total", Help: "Entries other than intents that could not be recorded.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.reconciled, m.reconcileSeconds, m.compareSeconds, m.repairSeconds, m.findings, m.sourceErrors, m.ledgerErrors} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("reconciler: register metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) settled(s *stack, err error) {
	outcome := "ok"
	if err != nil {
		outcome = fault.KindOf(err).String()
	}
	m.reconciled.WithLabelValues(s.Name, outcome).Inc()
}
