package kubernetes

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	listPage = 500
	// silence is how long a watch may tell nothing: the API server sends a bookmark about
	// once a minute.
	silence = 5 * time.Minute
	// listEvery is when everything is listed again: what a watch left out is found then.
	listEvery  = time.Hour
	minBackoff = 50 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// watchKey names one watch. An empty namespace is the whole cluster.
type watchKey struct {
	kind      schema.GroupKind
	namespace string
}

// watch follows the objects of one kind that carry Holdfast's label, for all
// stacks. Of an object that left the label behind it sees a deletion.
type watch struct {
	c   *Cluster
	key watchKey
	res resource

	// Guarded by Cluster.mu.
	seen        map[plan.ObjectID]uint64 // newest version, by object
	at          uint64                   // up to which all that happened was seen; 0: nothing yet
	forbidden   bool                     // cluster-wide is not allowed: one watch per namespace
	interrupted bool                     // it tells nothing for now
	asked       map[string]users         // namespaces that the watch is to cover, and for whom
	stop        context.CancelFunc       // nil: it does not run yet
	stopped     bool                     // nobody needs it any more
}

// users are the targets that something is needed for.
type users map[*Target]bool

// ensureWatch starts the watch that covers id, unless there is one. It goes on for as
// long as t, or another target, needs it.
func (c *Cluster) ensureWatch(t *Target, id plan.ObjectID, kind schema.GroupKind, res resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.obs.closed {
		return
	}
	all := watchKey{kind: kind}
	w := c.startWatch(all, res)
	w.use(id.Namespace, users{t: true})
	if w.forbidden {
		c.startWatch(watchKey{kind, id.Namespace}, res).use(id.Namespace, users{t: true})
	}
}

func (w *watch) use(namespace string, by users) {
	if w.asked[namespace] == nil {
		w.asked[namespace] = users{}
	}
	maps.Copy(w.asked[namespace], by)
}

// release ends what t needs of the watches, but for what keep says, and stops those that
// nobody needs any more. The caller holds mu.
func (c *Cluster) release(t *Target, keep func(watchKey) bool) {
	for key, w := range c.watches {
		for namespace, by := range w.asked {
			if by[t] && !keep(watchKey{key.kind, namespace}) {
				if delete(by, t); len(by) == 0 {
					delete(w.asked, namespace)
				}
			}
		}
		if len(w.asked) > 0 {
			continue
		}
		delete(c.watches, key)
		if w.stopped = true; w.stop != nil {
			w.stop()
		}
	}
}

// begun returns the context that a watch runs in; nil if it was stopped already.
func (w *watch) begun(ctx context.Context) context.Context {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.stopped {
		return nil
	}
	ctx, w.stop = context.WithCancel(ctx)
	return ctx
}

// startWatch returns the watch of a key, which it starts if there is none. The caller
// holds mu.
func (c *Cluster) startWatch(key watchKey, res resource) *watch {
	if w := c.watches[key]; w != nil {
		return w
	}
	w := &watch{c: c, key: key, res: res, seen: map[plan.ObjectID]uint64{}, asked: map[string]users{}}
	c.watches[key] = w
	c.pending = append(c.pending, w)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return w
}

// run lists and watches until ctx ends, or until the watch is replaced by one
// per namespace.
func (w *watch) run(ctx context.Context) {
	if ctx = w.begun(ctx); ctx == nil {
		return
	}
	defer w.stop()
	at, wait := "", time.Duration(0)
	var listed time.Time
	for ctx.Err() == nil {
		var err error
		if at == "" || time.Since(listed) > listEvery {
			listed = time.Now()
			at, err = w.list(ctx)
		} else {
			at, err = w.follow(ctx, at)
		}
		switch {
		case err == nil:
			wait = 0
			continue
		case ctx.Err() != nil:
			return
		case apierrors.IsForbidden(err) && w.key.namespace == "" && w.res.namespaced:
			w.c.cfg.Log.WarnContext(ctx, "cluster-wide watch is forbidden, watching each namespace", slog.String("kind", w.key.kind.String()))
			w.c.narrow(w)
			return
		}
		w.tells(false)
		if apierrors.IsNotFound(err) && w.moved(ctx) {
			at = ""
		}
		wait = min(max(2*wait, minBackoff), maxBackoff)
		w.c.cfg.Log.WarnContext(ctx, "watch interrupted", slog.String("kind", w.key.kind.String()),
			slog.Duration("retry", wait), slog.String("error", w.c.cfg.Masker.Scrub(err.Error())))
		pause(ctx, wait/2+rand.N(wait/2+1)) //nolint:gosec // jitter: a restarted API server is not met by all at once
	}
}

// moved asks what the kind is called now, when it is not called what the watch follows
// any more: its definition may serve another version. It reports whether that is news.
func (w *watch) moved(ctx context.Context) bool {
	w.c.forgetKinds(map[string]bool{w.key.kind.Group: true})
	r, err := w.c.anyVersion(ctx, w.key.kind.WithVersion(w.res.version.Version))
	if err != nil || r == w.res {
		return false
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.res = r
	return true
}

// tells notes whether the watch would tell of what happens now.
func (w *watch) tells(now bool) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.interrupted = !now
}

// narrow replaces a cluster-wide watch by one for each namespace that was asked for.
func (c *Cluster) narrow(w *watch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.forbidden = true
	for namespace, by := range w.asked {
		c.startWatch(watchKey{w.key.kind, namespace}, w.res).use(namespace, by)
	}
}

func (w *watch) client() interface {
	List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error)
	Watch(context.Context, metav1.ListOptions) (apiwatch.Interface, error)
} {
	return w.c.client(w.res, w.key.namespace)
}

// list compares everything that exists, and returns the version to watch from.
func (w *watch) list(ctx context.Context) (string, error) {
	o := metav1.ListOptions{LabelSelector: ManagedLabel + "=true", Limit: listPage}
	there := map[plan.ObjectID]bool{}
	w.c.reached(w, 0)
	for {
		page, err := w.client().List(ctx, o)
		if err != nil {
			return "", err
		}
		for i := range page.Items {
			u := &page.Items[i]
			there[w.id(u)] = true
			w.c.event(w, w.id(u), u, false)
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			at := page.GetResourceVersion()
			w.c.absent(w, there, parseVersion(at))
			return at, nil
		}
	}
}

func (w *watch) id(u *unstructured.Unstructured) plan.ObjectID {
	return plan.ObjectID{Kind: w.key.kind.String(), Namespace: u.GetNamespace(), Name: u.GetName()}
}

// follow handles events from at on. It returns the version to resume from, or ""
// when the server no longer has it.
func (w *watch) follow(ctx context.Context, at string) (string, error) {
	seconds := int64(300 + rand.IntN(300)) //nolint:gosec // spreads reconnects
	events, err := w.client().Watch(ctx, metav1.ListOptions{
		LabelSelector: ManagedLabel + "=true", ResourceVersion: at, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return "", nil
		}
		return at, err
	}
	defer events.Stop()
	w.tells(true)
	got := false
	silent := time.NewTimer(silence)
	defer silent.Stop()
	for {
		var e apiwatch.Event
		var open bool
		select {
		case e, open = <-events.ResultChan():
		case <-silent.C:
			return at, errors.New("the watch has told nothing for too long, not even how far it is")
		}
		if !open {
			break
		}
		silent.Reset(silence)
		if e.Type == apiwatch.Error {
			err := apierrors.FromObject(e.Object)
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				return "", nil
			}
			return at, err
		}
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			return at, errors.New("an event without an object")
		}
		got, at = true, u.GetResourceVersion()
		if e.Type == apiwatch.Bookmark {
			w.c.reached(w, version(u))
		} else {
			w.c.event(w, w.id(u), u, e.Type == apiwatch.Deleted)
		}
	}
	if !got && ctx.Err() == nil {
		return at, errors.New("the connection ended without an event") // back off: something refuses us
	}
	return at, nil
}

func version(u *unstructured.Unstructured) uint64 { return parseVersion(u.GetResourceVersion()) }

// unordered is the version of what has one that is no number, as an aggregated API server
// may give it: whether it is newer than another is not known.
const unordered = ^uint64(0)

// parseVersion reads a resourceVersion. Kubernetes orders them as decimal integers.
func parseVersion(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return unordered
	}
	return n
}
