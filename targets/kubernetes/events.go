package kubernetes

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/record/util"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	// maxNote is the length in bytes of a note. Events.k8s.io takes 1024, of which
	// the correlator wants some for "(combined from similar events): ".
	maxNote = 1024 - 40
	// eventTime bounds one request about an Event, which nobody waits for.
	eventTime = 5 * time.Second
	// Of Events that are no warning so many are written in a second, and at once: each
	// costs the API server as much as an object that is deployed. What they say is in the
	// ledger.
	quietEvents = 2
	quietBurst  = 20
	// Warnings wait for their turn, and what comes after them too: what they are about is
	// to be repaired first.
	warningEvents = 10
	warningBurst  = 10
	// So many warnings are about one stack in a second, and at once: the rest is left to the
	// ledger, so that who can make one stack drift keeps nobody else's from being told.
	stackEvents = 2
	stackBurst  = 5
	maxStacks   = 4096 // that are remembered
)

// Event is something that happened to a stack, for whoever looks at its
// namespace with kubectl.
type Event struct {
	Namespace string // of the stack
	Stack     string
	Object    string // [plan.ObjectID.String] of the object it is about; empty: the namespace
	Reason    string // one word in CamelCase: "Drift"
	Warning   bool
	Note      string
}

// recorder turns a storm into one Event with a count, the way every controller
// does: after ten that differ in their note alone they are one, and one object
// gets at most 25 at once and one in five minutes afterwards.
type recorder struct {
	once       sync.Once
	quiet      *rate.Limiter // of what is no warning
	warnings   *rate.Limiter
	mu         sync.Mutex               // guards what follows
	stacks     map[string]*rate.Limiter // warnings, by stack
	correlator *record.EventCorrelator
	refused    sync.Map // verbs that were logged as forbidden
}

func (r *recorder) correlate(stack string, e *corev1.Event) (*record.EventCorrelateResult, error) {
	r.once.Do(func() {
		r.correlator = record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{})
		r.quiet = rate.NewLimiter(quietEvents, quietBurst)
		r.warnings = rate.NewLimiter(warningEvents, warningBurst)
	})
	allowed := r.quiet
	if e.Type == corev1.EventTypeWarning {
		allowed = r.ofStack(stack)
	}
	if !allowed.Allow() {
		return &record.EventCorrelateResult{Skip: true}, nil
	}
	return r.correlator.EventCorrelate(e)
}

// ofStack returns what bounds the warnings about one stack.
func (r *recorder) ofStack(stack string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stacks == nil || len(r.stacks) >= maxStacks && r.stacks[stack] == nil {
		r.stacks = map[string]*rate.Limiter{}
	}
	if r.stacks[stack] == nil {
		r.stacks[stack] = rate.NewLimiter(stackEvents, stackBurst)
	}
	return r.stacks[stack]
}

var eventResource = corev1.SchemeGroupVersion.WithResource("events")

// Emit writes a Kubernetes Event, as far as that works: one that the account
// may not write is logged once with what is missing, any other failure at the
// debug level. Nothing is written to Holdfast's own namespace.
func (c *Cluster) Emit(ctx context.Context, e Event) {
	event := c.newEvent(e)
	if event.Namespace == "" || event.Namespace == c.cfg.Namespace {
		return
	}
	result, err := c.events.correlate(e.Stack, event)
	if err != nil || result.Skip || e.Warning && c.events.warnings.Wait(ctx) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, eventTime)
	defer cancel()
	verb := "create"
	if result.Event.Count > 1 {
		verb = "patch"
		err = c.patchEvent(ctx, result.Event, result.Patch)
	}
	if verb == "create" || apierrors.IsNotFound(err) { // the API server forgets Events after an hour
		result.Event.ResourceVersion = ""
		verb, err = "create", c.createEvent(ctx, result.Event)
	}
	switch {
	case err == nil:
	case apierrors.IsForbidden(err):
		if _, logged := c.events.refused.LoadOrStore(verb+" "+event.Namespace, true); !logged {
			c.cfg.Log.WarnContext(ctx, "no Kubernetes Events", slog.String("namespace", event.Namespace),
				slog.String("hint", "allow the account to "+verb+" events in this namespace, or live without"))
		}
	default:
		c.cfg.Log.DebugContext(ctx, "event not written", slog.String("stack", e.Stack), slog.String("error", c.cfg.Masker.Scrub(err.Error())))
	}
}

// newEvent makes the object. It stands in the namespace of what it is about, as
// the API server wants it.
func (c *Cluster) newEvent(e Event) *corev1.Event {
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: e.Namespace, Namespace: e.Namespace}
	if id, uid, ok := c.tracks(e.Object); ok && id.Namespace != "" {
		kind := groupKind(id.Kind)
		about = corev1.ObjectReference{APIVersion: c.knownVersion(kind), Kind: kind.Kind, Name: id.Name, Namespace: id.Namespace, UID: types.UID(uid)}
	}
	kind, now := corev1.EventTypeNormal, metav1.Now()
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: util.GenerateEventName(about.Name, now.UnixNano()), Namespace: about.Namespace},
		InvolvedObject: about, Type: kind, Reason: e.Reason, Message: note(c.cfg.Masker.Scrub(e.Stack + ": " + e.Note)),
		Source: corev1.EventSource{Component: c.cfg.FieldManager}, ReportingController: "holdfast.dev/" + c.cfg.FieldManager,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
}

// tracks finds a tracked object by the text of its id.
func (c *Cluster) tracks(text string) (id plan.ObjectID, uid string, ok bool) {
	if text == "" {
		return id, "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, tr := range c.tracked {
		if strings.HasSuffix(text, id.Name) && id.String() == text {
			return id, tr.uid, true
		}
	}
	return id, "", false
}

func groupKind(text string) schema.GroupKind {
	kind, group, _ := strings.Cut(text, ".")
	return schema.GroupKind{Group: group, Kind: kind}
}

// knownVersion returns a group and version under which a kind was used before.
func (c *Cluster) knownVersion(kind schema.GroupKind) string {
	c.resourcesMu.Lock()
	defer c.resourcesMu.Unlock()
	for gvk := range c.resources {
		if gvk.GroupKind() == kind {
			return gvk.GroupVersion().String()
		}
	}
	return kind.Group
}

// createEvent writes a new Event.
func (c *Cluster) createEvent(ctx context.Context, e *corev1.Event) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(e)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetAPIVersion("v1")
	u.SetKind("Event")
	_, err = c.dyn.Resource(eventResource).Namespace(e.Namespace).Create(ctx, u, metav1.CreateOptions{FieldManager: c.cfg.FieldManager})
	return err
}

// patchEvent counts one more of the same. The correlator's patch is a strategic
// merge patch of plain fields.
func (c *Cluster) patchEvent(ctx context.Context, e *corev1.Event, patch []byte) error {
	_, err := c.dyn.Resource(eventResource).Namespace(e.Namespace).Patch(ctx, e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: c.cfg.FieldManager})
	return err
}

// note cuts s to what an Event may say, at a character.
func note(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxNote {
		return s
	}
	cut := maxNote - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
