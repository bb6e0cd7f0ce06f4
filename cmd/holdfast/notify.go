package main

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/notify"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

// herald tells people what happens: the operator's receivers, and whoever looks
// at a stack's namespace.
type herald struct {
	notifier *notify.Notifier
	targets  *targetSet
	events   map[string]chan reconciler.Event // for Kubernetes, by environment: none waits for another
}

// heraldQueue is how many events wait for one API server. A full queue drops: an
// Event in a namespace is a convenience, the ledger is the record.
const heraldQueue = 256

// newHerald returns the herald of the operator's file. Receivers whose address
// or key cannot be used are refused.
func newHerald(cfg *config.Loaded, sec *secrets, log *slog.Logger, reg prometheus.Registerer, ts *targetSet) (*herald, error) {
	c := notify.Config{Link: cfg.Notify.Link, Scrub: sec.scrub, Log: log, Metrics: reg}
	for _, r := range cfg.Notify.Receivers {
		rc, err := newReceiver(r, sec)
		if err != nil {
			return nil, err
		}
		c.Receivers = append(c.Receivers, rc)
	}
	for _, r := range cfg.Notify.Routes {
		route := notify.Route{Receivers: r.Receivers, Environments: r.Environments, Stacks: r.Stacks, Severity: notify.Severity(r.Severity)}
		for _, class := range r.Classes {
			route.Classes = append(route.Classes, notify.Class(class))
		}
		c.Routes = append(c.Routes, route)
	}
	n, err := notify.New(c)
	if err != nil {
		return nil, err
	}
	h := &herald{notifier: n, targets: ts, events: map[string]chan reconciler.Event{}}
	for _, e := range cfg.Environments {
		h.events[e.Name] = make(chan reconciler.Event, heraldQueue)
	}
	return h, nil
}

func newReceiver(r config.Receiver, sec *secrets) (notify.Receiver, error) {
	out := notify.Receiver{Name: r.Name, Type: notify.Type(r.Type), Template: r.Template, Repeat: time.Duration(r.Repeat)}
	if r.URLFile != "" {
		out.URL = func() (string, error) { return sec.readAddress(r.URLFile) }
	}
	if r.KeyFile != "" {
		out.Key = func() (string, error) { return sec.read(r.KeyFile) }
	}
	if r.CAFile != "" {
		ca, err := os.ReadFile(r.CAFile)
		if err != nil {
			return out, fault.New(fault.Invalid, "holdfast", "correct caFile", "receiver %q: %w", r.Name, err)
		}
		out.CA = ca
	}
	return out, nil
}

// minSecretPath is the length from which the path of an address is masked also
// where it stands without its host.
const minSecretPath = 16

// readAddress reads an address that is a secret, and registers it.
func (s *secrets) readAddress(file string) (string, error) {
	text, err := s.read(file)
	if err != nil {
		return "", err
	}
	if u, err := url.Parse(strings.TrimSpace(text)); err == nil && len(u.RequestURI()) >= minSecretPath {
		s.register(u.RequestURI(), u.Path)
	}
	return text, nil
}

// tell takes an event of the reconciler. It does not block.
func (h *herald) tell(e reconciler.Event) {
	if n, ok := notification(e); ok {
		h.notifier.Notify(n)
	}
	if _, ok := eventReasons[e.Type]; ok {
		select {
		case h.events[e.Environment] <- e:
		default:
		}
	}
}

// run tells until ctx ends.
func (h *herald) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.notifier.Run(ctx) })
	for _, events := range h.events {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case e := <-events:
					h.emit(ctx, e)
				}
			}
		})
	}
	return g.Wait()
}

// emit writes a Kubernetes Event about a stack that is deployed to a cluster.
func (h *herald) emit(ctx context.Context, e reconciler.Event) {
	namespace := h.targets.namespace(e.Environment, e.Stack)
	if c := h.targets.clusters[e.Environment]; c != nil && namespace != "" {
		reason := eventReasons[e.Type]
		c.Emit(ctx, kubernetes.Event{Namespace: namespace, Stack: e.Stack, Object: e.Object, Reason: reason.name, Warning: reason.warning, Note: eventNote(e)})
	}
}

// namespace returns the namespace of a stack on a cluster, or "".
func (ts *targetSet) namespace(environment, stack string) string {
	ns, _ := ts.namespaces.Load(environment + "/" + stack)
	text, _ := ns.(string)
	return text
}

type eventReason struct {
	name    string
	warning bool
}

// eventReasons are the reasons of Kubernetes Events. What is about no stack has none.
var eventReasons = map[reconciler.EventType]eventReason{
	reconciler.EventApplied:   {"Applied", false},
	reconciler.EventDenied:    {"Denied", true},
	reconciler.EventDrift:     {"Drift", true},
	reconciler.EventReverted:  {"Reverted", false},
	reconciler.EventHeld:      {"Held", true},
	reconciler.EventFailed:    {"Failed", true},
	reconciler.EventRecovered: {"Recovered", false},
	reconciler.EventRevoked:   {"Revoked", true},
}

func eventNote(e reconciler.Event) string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (hint: " + e.Hint + ")"
}

// classes of the problems that people are told of. A deployment that went well
// is none.
var classes = map[reconciler.EventType]notify.Class{
	reconciler.EventDenied:    notify.Denied,
	reconciler.EventFailed:    notify.Failed,
	reconciler.EventHeld:      notify.Held,
	reconciler.EventDrift:     notify.Drift,
	reconciler.EventReverted:  notify.Drift,
	reconciler.EventRecovered: notify.Recovered,
	reconciler.EventRevoked:   notify.Revoked,
	reconciler.EventSource:    notify.Source,
	reconciler.EventLedger:    notify.Ledger,
}

// notification is what people are told of e, if anything.
func notification(e reconciler.Event) (n notify.Notification, ok bool) {
	class, ok := classes[e.Type]
	if !ok || (class == notify.Recovered && !e.Resolved) {
		return n, false
	}
	return notify.Notification{
		ID: e.Key, Resolved: e.Resolved, Class: class, Severity: severity(e), Time: e.Time,
		Environment: e.Environment, Stack: e.Stack, Repository: e.Repository, Revision: e.Revision, Object: e.Object, Actor: e.Actor,
		Title: title(e), Text: e.Message, Hint: e.Hint,
	}, true
}

// severity of an event. What somebody added to an object, what is revoked, what
// a repository was refused for and what we got wrong cannot wait for the morning.
func severity(e reconciler.Event) notify.Severity {
	switch {
	case e.Resolved:
		return notify.Info
	case e.Type == reconciler.EventRevoked, e.Type == reconciler.EventLedger,
		e.Type == reconciler.EventDrift && e.Class == string(targets.Foreign),
		e.Type == reconciler.EventSource && e.Kind == fault.Denied,
		e.Type == reconciler.EventFailed && e.Kind == fault.Internal:
		return notify.Critical
	default:
		return notify.Warning
	}
}

// title is the same for all events of one type about one stack.
func title(e reconciler.Event) string {
	about := e.Stack
	if about == "" && e.Repository != "" {
		about = "repository " + e.Repository
	}
	if about == "" {
		about = "the ledger"
	}
	verb := titles[e.Type]
	if e.Resolved {
		verb = "Recovered"
		if e.Object != "" {
			verb = "Drift ended"
		}
	}
	return verb + ": " + about
}

var titles = map[reconciler.EventType]string{
	reconciler.EventDenied:  "Denied",
	reconciler.EventFailed:  "Failed",
	reconciler.EventHeld:    "Held",
	reconciler.EventDrift:   "Drift",
	reconciler.EventRevoked: "Revoked",
	reconciler.EventSource:  "Refused or unreachable",
	reconciler.EventLedger:  "Not recorded",
}
