// Package telemetry owns what leaves the daemon for its operators' tools beside
// the log: traces over OTLP/HTTP, the measurements of the ledger, and the trace
// id in log lines. What is measured elsewhere is registered where it is measured.
//
// It guarantees that nothing is paid for what is off, that a collector which is
// slow, gone or hostile costs a bounded queue and nothing else, and that every
// text is masked on its way out. It refuses to be global: no library finds a
// tracer here that it was not handed, and no environment variable adds one.
package telemetry

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
)

// RegisterBuild registers holdfast_build_info, which says what runs.
func RegisterBuild(reg prometheus.Registerer, version string) error {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_build_info", Help: "1, with the version of the daemon and of the Go that built it.",
	}, []string{"version", "goversion"})
	g.WithLabelValues(version, runtime.Version()).Set(1)
	return reg.Register(g)
}
