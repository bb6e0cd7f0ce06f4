package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// queueLength is how many notifications wait to be routed. Routing does no
	// I/O, so they only wait in a storm.
	queueLength = 1024
	// flushTime is how long what was not sent yet may take when Run ends.
	flushTime = 5 * time.Second

	opNew = "notify.New"
)

// Route sends what it matches to receivers. An empty list matches everything.
type Route struct {
	Receivers    []string
	Environments []string
	Stacks       []string // globs over names (path.Match)
	// Classes are those of problems. A list that leaves out [Recovered] does not
	// hear of their ends; PagerDuty always does, since it counts what is open.
	Classes  []Class
	Severity Severity // the least; Info if empty
}

// matches reports whether the route is for n, which is a problem.
func (r Route) matches(n Notification) bool {
	return (len(r.Environments) == 0 || slices.Contains(r.Environments, n.Environment)) &&
		(len(r.Classes) == 0 || slices.Contains(r.Classes, n.Class)) &&
		n.Severity.rank() >= r.Severity.rank() &&
		(len(r.Stacks) == 0 || slices.ContainsFunc(r.Stacks, func(glob string) bool {
			ok, err := path.Match(glob, n.Stack)
			return err == nil && ok
		}))
}

// recoveries reports whether the route wants to hear of the ends of problems.
func (r Route) recoveries() bool {
	return len(r.Classes) == 0 || slices.Contains(r.Classes, Recovered)
}

// Config says who is told of what. Link and Routes are optional.
type Config struct {
	Receivers []Receiver
	Routes    []Route // none: every receiver hears everything
	Link      string  // where a person can look; {stack} and {environment} are replaced
	// Scrub masks secrets. Every text passes it before it leaves.
	Scrub   func(string) string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Notifier tells people. It is safe for concurrent use.
type Notifier struct {
	cfg       Config
	mailboxes map[string]*mailbox
	dropped   prometheus.Counter
	wake      chan struct{}

	mu    sync.Mutex
	queue []Notification
}

// New returns a Notifier. It reads each receiver's address and key once, to
// refuse those that cannot be used with an error of kind fault.Invalid, and
// connects to nobody.
func New(c Config) (*Notifier, error) {
	if c.Scrub == nil || c.Log == nil || c.Metrics == nil {
		return nil, errors.New("notify: no scrubber, logger or metrics registry")
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, err
	}
	n := &Notifier{cfg: c, mailboxes: map[string]*mailbox{}, dropped: m.dropped, wake: make(chan struct{}, 1)}
	for _, r := range c.Receivers {
		if n.mailboxes[r.Name] != nil || r.Name == "" {
			return nil, fault.New(fault.Invalid, opNew, "give each receiver a name of its own", "receiver %q is missing a name or defined twice", r.Name)
		}
		box, err := newMailbox(r, c, m)
		if err != nil {
			return nil, err
		}
		n.mailboxes[r.Name] = box
	}
	for _, r := range c.Routes {
		for _, name := range r.Receivers {
			if n.mailboxes[name] == nil {
				return nil, fault.New(fault.Invalid, opNew, "define the receiver, or correct the route", "a route names receiver %q, which is not defined", name)
			}
		}
		for _, glob := range r.Stacks {
			if _, err := path.Match(glob, ""); err != nil {
				return nil, fault.New(fault.Invalid, opNew, "use * and ?", "a route names stacks %q: %w", glob, err)
			}
		}
	}
	return n, nil
}

// Notify queues v. It does not wait: when the queue is full the oldest is dropped.
func (n *Notifier) Notify(v Notification) {
	n.mu.Lock()
	if len(n.queue) >= queueLength {
		n.queue = slices.Delete(n.queue, 0, 1)
		n.dropped.Inc()
	}
	n.queue = append(n.queue, v)
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends. Then what was not sent yet is sent at once, for at
// most five seconds.
func (n *Notifier) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	closing := make(chan struct{})
	var boxes sync.WaitGroup
	for _, b := range n.mailboxes {
		boxes.Go(func() { b.run(life, closing) })
	}
	for {
		select {
		case <-n.wake:
			n.dispatch()
		case <-ctx.Done():
			n.dispatch()
			defer time.AfterFunc(flushTime, end).Stop()
			close(closing)
			boxes.Wait()
			return nil
		}
	}
}

// dispatch hands everything in the queue to the mailboxes.
func (n *Notifier) dispatch() {
	n.mu.Lock()
	queue := n.queue
	n.queue = nil
	n.mu.Unlock()
	for _, v := range queue {
		if v.Link == "" {
			v.Link = link(n.cfg.Link, v)
		}
		v = v.clean(n.cfg.Scrub)
		if v.Resolved { // for those who heard of the problem, whatever the routes say
			for _, b := range n.mailboxes {
				b.resolve(v)
			}
			continue
		}
		for name, recoveries := range n.audience(v) {
			n.mailboxes[name].add(v, recoveries)
		}
	}
}

// audience returns who is to hear of a problem, and whether of its end too.
func (n *Notifier) audience(v Notification) map[string]bool {
	out := map[string]bool{}
	if len(n.cfg.Routes) == 0 {
		for name := range n.mailboxes {
			out[name] = true
		}
	}
	for _, r := range n.cfg.Routes {
		if !r.matches(v) {
			continue
		}
		for _, name := range r.Receivers {
			out[name] = out[name] || r.recoveries()
		}
	}
	return out
}

// metrics have stable names.
type metrics struct {
	sent    *prometheus.CounterVec
	dropped prometheus.Counter
}

// The outcomes of holdfast_notifications_total.
const (
	outcomeSent       = "sent"       // the receiver has it
	outcomeFailed     = "failed"     // given up for now; said again later
	outcomeRefused    = "refused"    // the receiver said no
	outcomeSuppressed = "suppressed" // said already
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_notifications_total", Help: "Messages to receivers by outcome: sent, failed (given up for now), refused (by the receiver), suppressed (said already).",
		}, []string{"receiver", "outcome"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_notifications_dropped_total", Help: "Notifications that were dropped because too many came at once.",
		}),
	}
	if err := errors.Join(reg.Register(m.sent), reg.Register(m.dropped)); err != nil {
		return nil, fmt.Errorf("notify: register metrics: %w", err)
	}
	return m, nil
}
