package reconciler

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/workqueue"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
)

// metrics are documented in docs/metrics.md, and a test of cmd/holdfast compares
// the two. Their names are stable. Labels are names that the operator or a stack
// file gives, and constants of ours; never an object or a commit, of which there
// is no end.
type metrics struct {
	reconciled       *prometheus.CounterVec
	reconcileSeconds *prometheus.HistogramVec
	stageSeconds     *prometheus.HistogramVec
	lagSeconds       *prometheus.HistogramVec
	compareSeconds   *prometheus.HistogramVec
	detectSeconds    *prometheus.HistogramVec
	repairSeconds    prometheus.Histogram
	findings         *prometheus.CounterVec
	reverts          *prometheus.CounterVec
	refusals         *prometheus.CounterVec
	sourceErrors     *prometheus.CounterVec
	queueDepth       *prometheus.GaugeVec
	queueSeconds     *prometheus.HistogramVec
	queueLongest     *prometheus.GaugeVec
	workers          *prometheus.GaugeVec
	workersBusy      *prometheus.GaugeVec
}

// The queues, as values of the label queue.
const (
	queueStacks  = "stacks"
	queueRepairs = "repairs"
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		all = append(all, c)
		return c
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		all = append(all, g)
		return g
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		all = append(all, h)
		return h
	}
	steps := []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	waits := []float64{.1, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400}
	m := &metrics{
		reconciled:       counters("holdfast_reconciliations_total", "Reconciliations by stack and outcome (ok or the kind of error).", "stack", "environment", "outcome"),
		reconcileSeconds: histograms("holdfast_reconcile_seconds", "Time from render to applied, by target.", steps, "target"),
		stageSeconds:     histograms("holdfast_stage_seconds", "Time of one stage of the pipeline, refused ones included; no target for stages about a commit.", steps, "stage", "target"),
		lagSeconds:       histograms("holdfast_revision_lag_seconds", "Time from the first sight of a commit to a stack that was deployed from it.", waits, "target"),
		compareSeconds:   histograms("holdfast_compare_seconds", "Time of a full comparison with the live world, by target.", steps, "target"),
		detectSeconds:    histograms("holdfast_drift_detect_seconds", "Time from a change of the live world to its detection, where the target knows the former.", waits, "target"),
		findings:         counters("holdfast_drift_findings_total", "Drift findings by target, class and action.", "target", "class", "action"),
		reverts:          counters("holdfast_drift_reverts_total", "Objects that were restored after drift.", "stack", "environment", "target"),
		refusals:         counters("holdfast_refusals_total", "Commits and stacks that were refused, by kind of error and the operation that refused.", "subject", "kind", "op"),
		sourceErrors:     counters("holdfast_source_errors_total", "Revisions that could not be read or were refused, by repository and kind of error.", "repository", "kind"),
		queueDepth:       gauges("holdfast_queue_depth", "Requests that wait for a worker.", "queue"),
		queueSeconds:     histograms("holdfast_queue_wait_seconds", "Time that a request waited for a worker.", steps, "queue"),
		queueLongest:     gauges("holdfast_queue_longest_running_seconds", "For how long the slowest worker has been at its request.", "queue"),
		workers:          gauges("holdfast_workers", "Workers of a queue.", "queue"),
		workersBusy:      gauges("holdfast_workers_busy", "Workers of a queue that have a request.", "queue"),
		repairSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_drift_repair_seconds", Help: "Time from the detection of drift to its repair.", Buckets: steps,
		}),
	}
	var errs []error
	for _, c := range append(all, m.repairSeconds) {
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
	m.reconciled.WithLabelValues(label(s.Name), s.Environment, outcome).Inc()
}

// The subjects of refusals.
const (
	refusedCommit = "commit"
	refusedStack  = "stack"
)

func (m *metrics) refused(subject string, err error) {
	m.refusals.WithLabelValues(subject, fault.KindOf(err).String(), fault.OpOf(err)).Inc()
}

// found notes a finding that is new.
func (m *metrics) found(target string, f targets.Finding, action string) {
	m.findings.WithLabelValues(target, string(f.Class), action).Inc()
	since := f.Since // managed fields know whole seconds
	switch {
	case f.Origin != nil && !f.Origin.Time.IsZero():
		since = f.Origin.Time
	case !f.Noticed.IsZero():
		since = f.Noticed
	}
	if !since.IsZero() {
		m.detectSeconds.WithLabelValues(target).Observe(max(0, f.Detected.Sub(since).Seconds()))
	}
}

// reverted notes that objects of s were restored.
func (m *metrics) reverted(s *stack, objects int) {
	m.reverts.WithLabelValues(label(s.Name), s.Environment, s.TargetName).Add(float64(objects))
}

// deployed notes that something of b is in the world that was not there before.
func (m *metrics) deployed(b basis) {
	m.lagSeconds.WithLabelValues(b.TargetName).Observe(max(0, time.Since(b.seen).Seconds()))
}

// staff notes how many workers a queue has.
func (m *metrics) staff(queue string, workers int) {
	m.workers.WithLabelValues(queue).Set(float64(workers))
	m.workersBusy.WithLabelValues(queue).Set(0)
}

// busy notes that a worker of a queue has something to do until the returned
// function is called.
func (m *metrics) busy(queue string) (done func()) {
	g := m.workersBusy.WithLabelValues(queue)
	g.Inc()
	return g.Dec
}

// delaying and plain make the queues, which measure themselves.
func (m *metrics) delaying(name string) workqueue.TypedDelayingInterface[request] {
	return workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[request]{Name: name, MetricsProvider: queueMetrics{m}})
}

func (m *metrics) plain(name string) workqueue.TypedInterface[string] {
	return workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: name, MetricsProvider: queueMetrics{m}})
}

// queueMetrics gives client-go's queues those of our metrics that say something
// which the others do not.
type queueMetrics struct{ m *metrics }

func (q queueMetrics) NewDepthMetric(name string) workqueue.GaugeMetric {
	return q.m.queueDepth.WithLabelValues(name)
}

func (q queueMetrics) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return q.m.queueSeconds.WithLabelValues(name)
}

func (q queueMetrics) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return q.m.queueLongest.WithLabelValues(name)
}

func (queueMetrics) NewAddsMetric(string) workqueue.CounterMetric { return unmeasured{} }

func (queueMetrics) NewRetriesMetric(string) workqueue.CounterMetric { return unmeasured{} }

func (queueMetrics) NewWorkDurationMetric(string) workqueue.HistogramMetric { return unmeasured{} }

func (queueMetrics) NewUnfinishedWorkSecondsMetric(string) workqueue.SettableGaugeMetric {
	return unmeasured{}
}

type unmeasured struct{}

func (unmeasured) Inc()            {}
func (unmeasured) Set(float64)     {}
func (unmeasured) Observe(float64) {}

// phases are the values of the label phase.
var phases = []Phase{Pending, Reconciling, Progressing, Ready, Drifted, Waiting, Denied, Invalid, Failed, Held, Suspended}

var classes = []targets.FindingClass{targets.Modified, targets.Foreign, targets.Missing, targets.Extra}

// standing gathers the state of stacks and repositories when it is asked for,
// so that nothing has to keep gauges and what they show in step.
type standing struct{ r *Reconciler }

var (
	descPhase     = prometheus.NewDesc("holdfast_stack_phase", "1 for the phase that the stack is in, 0 for the others.", []string{"stack", "environment", "phase"}, nil)
	descPhaseTime = prometheus.NewDesc("holdfast_stack_phase_timestamp_seconds", "When the stack entered its phase.", []string{"stack", "environment"}, nil)
	descReady     = prometheus.NewDesc("holdfast_stack_ready", "1 if the world is what is asked for.", []string{"stack", "environment", "target"}, nil)
	descApplied   = prometheus.NewDesc("holdfast_stack_applied_timestamp_seconds", "When what is enforced was deployed.", []string{"stack", "environment"}, nil)
	descOpen      = prometheus.NewDesc("holdfast_drift_open", "Drift findings that are not over, by class.", []string{"stack", "environment", "class"}, nil)

	descConfirmed = prometheus.NewDesc("holdfast_repository_head_confirmed_timestamp_seconds", "When the head of the branch was last confirmed.", []string{"repository"}, nil)
	descSeen      = prometheus.NewDesc("holdfast_repository_head_seen_timestamp_seconds", "When the head of the branch was first seen.", []string{"repository"}, nil)
	descStale     = prometheus.NewDesc("holdfast_repository_stale", "1 if the head could not be confirmed for longer than maxAge.", []string{"repository"}, nil)
	descVerified  = prometheus.NewDesc("holdfast_repository_head_verified", "1 if the head of the branch is authorised.", []string{"repository"}, nil)
	descEnforced  = prometheus.NewDesc("holdfast_repository_head_enforced", "1 if the stacks of the head of the branch are what is asked for.", []string{"repository"}, nil)
	descLag       = prometheus.NewDesc("holdfast_repository_lag_seconds", "For how long the head of the branch has been seen and not taken; 0 when it is.", []string{"repository"}, nil)
)

func (standing) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPhase, descPhaseTime, descReady, descApplied, descOpen,
		descConfirmed, descSeen, descStale, descVerified, descEnforced, descLag} {
		to <- d
	}
}

func (g standing) Collect(to chan<- prometheus.Metric) {
	for _, c := range g.r.Repositories {
		collectRepository(to, g.r.repository(c.Name).snapshotStatus())
	}
	for _, s := range g.r.all() {
		g.r.collectStack(to, s)
	}
}

// label makes a name fit for a label. A folder of a repository may have any
// bytes, and a value that is not UTF-8, or is there twice, would cost all of the
// metrics: what is not UTF-8 is quoted, and so is what looks quoted.
func label(name string) string {
	if !utf8.ValidString(name) || strings.HasPrefix(name, `"`) {
		return strconv.QuoteToASCII(name)
	}
	return name
}

func gauge(to chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// timestamp sends nothing for a time that is not known: 0 would be 1970.
func timestamp(to chan<- prometheus.Metric, d *prometheus.Desc, at time.Time, labels ...string) {
	if !at.IsZero() {
		gauge(to, d, float64(at.UnixMilli())/1000, labels...)
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func collectRepository(to chan<- prometheus.Metric, st RepositoryStatus) {
	timestamp(to, descConfirmed, st.Checked, st.Name)
	timestamp(to, descSeen, st.headSeen, st.Name)
	gauge(to, descStale, oneIf(st.Stale), st.Name)
	known := st.Head != ""
	gauge(to, descVerified, oneIf(known && st.Head == st.Verified), st.Name)
	gauge(to, descEnforced, oneIf(known && st.Head == st.Enforced), st.Name)
	var lag float64
	if known && st.Head != st.Enforced {
		lag = max(0, time.Since(st.headSeen).Seconds())
	}
	gauge(to, descLag, lag, st.Name)
}

func (r *Reconciler) collectStack(to chan<- prometheus.Metric, s *stack) {
	st := r.stackStatus(s)
	name := label(st.Stack)
	for _, p := range phases {
		gauge(to, descPhase, oneIf(st.Phase == p), name, st.Environment, string(p))
	}
	timestamp(to, descPhaseTime, st.Since, name, st.Environment)
	gauge(to, descReady, oneIf(st.Phase == Ready), name, st.Environment, st.Target)
	if d := s.granted(); d != nil {
		timestamp(to, descApplied, d.at, name, st.Environment)
	}
	open := map[targets.FindingClass]int{}
	for _, f := range st.Findings {
		open[f.Class]++
	}
	for _, c := range classes {
		gauge(to, descOpen, float64(open[c]), name, st.Environment, string(c))
	}
}
