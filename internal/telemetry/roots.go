package telemetry

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Root is a root of trust of the operator's file.
type Root struct {
	Name    string
	Changed time.Time     // when its file was last changed
	MaxAge  time.Duration // after which it may be out of date
}

// RegisterRoots registers how old the roots of trust are, which the daemon does
// not renew by itself.
func RegisterRoots(reg prometheus.Registerer, roots []Root) error {
	changed := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_trust_root_changed_timestamp_seconds", Help: "When the file of the root of trust was last changed.",
	}, []string{"root"})
	maxAge := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_trust_root_max_age_seconds", Help: "After how long without a change the root of trust may be out of date.",
	}, []string{"root"})
	for _, r := range roots {
		changed.WithLabelValues(r.Name).Set(float64(r.Changed.Unix()))
		maxAge.WithLabelValues(r.Name).Set(r.MaxAge.Seconds())
	}
	return errors.Join(reg.Register(changed), reg.Register(maxAge))
}
