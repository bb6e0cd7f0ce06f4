package kubernetes

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const opObserve = "targets/kubernetes.Observe"

// tracked is what is remembered about one live object: enough to see that it
// moved, and nothing of its content.
type tracked struct {
	t   *Target
	uid string
	rv  uint64 // the newest version that was judged
	// state is the digest of the values under our field set or, if full, of
	// everything but the status: for an object whose fields we do not all own.
	state [32]byte
	full  bool
}

// observation is what a target remembers for [Target.Observe]. Guarded by Cluster.mu.
type observation struct {
	dirty   map[plan.ObjectID]uint64 // objects to look at, with the version of the event
	wake    chan struct{}
	busy    int           // applies under way
	epoch   int           // grows when an apply starts or ends
	current digest.Digest // the rendering that was applied last
}

func newObservation() observation {
	return observation{dirty: map[plan.ObjectID]uint64{}, wake: make(chan struct{}, 1)}
}

func (o *observation) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// clean remembers live as what it should be. complete says that our field set in
// it covers everything that we declare.
func (c *Cluster) clean(t *Target, id plan.ObjectID, live *unstructured.Unstructured, complete bool) {
	tr := &tracked{t: t, uid: string(live.GetUID()), rv: version(live)}
	var ok bool
	if tr.state, ok = c.ownState(live); !ok || !complete {
		tr.state, tr.full = c.fullState(live), true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tracked[id] = tr
	if at, dirty := t.obs.dirty[id]; dirty && at <= tr.rv {
		delete(t.obs.dirty, id)
	}
	// An event about something newer may have come before this call.
	for _, w := range c.watches {
		if at := w.seen[id]; at > tr.rv {
			t.obs.dirty[id] = at
			t.obs.notify()
		}
	}
}

// drifted remembers that a finding was made about the object in this state.
func (c *Cluster) drifted(t *Target, ch change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tr := &tracked{t: t, uid: ch.UID, rv: ch.rv, state: ch.full, full: true}
	if old := c.tracked[ch.ID]; old != nil && old.t == t {
		tr.rv = max(tr.rv, old.rv)
	}
	c.tracked[ch.ID] = tr
}

func (c *Cluster) untrack(t *Target, id plan.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tr := c.tracked[id]; tr != nil && tr.t == t {
		delete(c.tracked, id)
	}
	delete(t.obs.dirty, id)
}

func (c *Cluster) forget(t *Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, tr := range c.tracked {
		if tr.t == t {
			delete(c.tracked, id)
		}
	}
	clear(t.obs.dirty)
}

// applying holds back findings until the returned function is called: what
// moves meanwhile is our own doing, and judged when it is done.
func (c *Cluster) applying(t *Target) (done func()) {
	c.mu.Lock()
	t.obs.busy++
	t.obs.epoch++
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		t.obs.busy--
		t.obs.epoch++
		t.obs.notify()
	}
}

// realise says that ren is what the stack is brought to from now on. An Observe
// of another rendering reports nothing any more.
func (c *Cluster) realise(t *Target, ren *rendering) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.obs.current = ren.sum
}

// event judges one live object against what is remembered about it.
func (c *Cluster) event(w *watch, id plan.ObjectID, u *unstructured.Unstructured, deleted bool) {
	at := version(u)
	c.mu.Lock()
	defer c.mu.Unlock()
	if deleted {
		delete(w.seen, id)
	} else {
		w.seen[id] = at
	}
	tr := c.tracked[id]
	if tr == nil || at <= tr.rv {
		return
	}
	if !deleted && tr.uid == string(u.GetUID()) {
		now, ok := c.ownState(u)
		if tr.full {
			now, ok = c.fullState(u), true
		}
		if ok && now == tr.state {
			tr.rv = at
			return
		}
	}
	tr.t.obs.dirty[id] = at
	tr.t.obs.notify()
}

// absent judges what a complete list at version at did not have.
func (c *Cluster) absent(w *watch, there map[plan.ObjectID]bool, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range w.seen {
		if !there[id] {
			delete(w.seen, id)
		}
	}
	for id, tr := range c.tracked {
		inScope := id.Kind == w.key.kind.String() && (w.key.namespace == "" || w.key.namespace == id.Namespace)
		if inScope && !there[id] && tr.rv <= at && tr.uid != "" {
			tr.t.obs.dirty[id] = at
			tr.t.obs.notify()
		}
	}
}

// Observe implements [targets.Observer]. It needs [Cluster.Run] to be running.
// Findings about a rendering that another one has replaced are dropped.
func (t *Target) Observe(ctx context.Context, r targets.Rendered, found func(targets.Finding)) error {
	ren, err := t.rendering(r)
	if err != nil {
		return fault.WithStack(t.spec.Stack, err)
	}
	if err := t.begin(ctx, ren); err != nil {
		return fault.WithStack(t.spec.Stack, err)
	}
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.obs.wake:
		}
		ids, epoch := t.take(ren)
		if len(ids) == 0 {
			continue
		}
		if err := t.confirm(ctx, r, ids, epoch, found); err == nil || ctx.Err() != nil {
			wait = 0
			continue
		} else {
			wait = min(max(2*wait, minBackoff), maxBackoff)
			t.c.cfg.Log.WarnContext(ctx, "drift not confirmed yet", slog.String("stack", t.spec.Stack),
				slog.Duration("retry", wait), slog.String("error", t.c.cfg.Masker.Scrub(err.Error())))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// begin starts the watches for ren and marks what nothing is known about.
func (t *Target) begin(ctx context.Context, ren *rendering) error {
	objs, res, err := t.placeAll(ctx, ren, nil)
	if err != nil {
		return fault.Wrap(fault.Transient, opObserve, "", err)
	}
	for i, o := range objs {
		if known, err := t.c.resource(ctx, o.u.GroupVersionKind()); err == nil {
			t.c.ensureWatch(o.id, o.u.GroupVersionKind().GroupKind(), known)
		} else {
			t.c.ensureWatch(o.id, o.u.GroupVersionKind().GroupKind(), res[i])
		}
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.obs.current = ren.sum
	for _, o := range objs {
		if tr := t.c.tracked[o.id]; tr == nil || tr.t != t {
			t.obs.dirty[o.id] = 0
		}
	}
	t.obs.notify()
	return nil
}

// take returns the objects to look at, unless an apply is under way.
func (t *Target) take(ren *rendering) ([]plan.ObjectID, int) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.obs.busy > 0 || t.obs.current != ren.sum {
		return nil, 0
	}
	ids := make([]plan.ObjectID, 0, len(t.obs.dirty))
	for id := range t.obs.dirty {
		ids = append(ids, id)
	}
	clear(t.obs.dirty)
	slices.SortFunc(ids, plan.ObjectID.Compare)
	return ids, t.obs.epoch
}

// confirm plans ids and reports what differs.
func (t *Target) confirm(ctx context.Context, r targets.Rendered, ids []plan.ObjectID, epoch int, found func(targets.Finding)) error {
	p, err := t.Plan(ctx, r, ids...)
	t.c.mu.Lock()
	moved := t.obs.epoch != epoch
	if err != nil || moved {
		for _, id := range ids {
			t.obs.dirty[id] = max(t.obs.dirty[id], 0)
		}
		t.obs.notify()
	}
	t.c.mu.Unlock()
	if err != nil || moved {
		return err
	}
	now := time.Now().UTC()
	for _, c := range p.Private.(*planned).changes {
		t.c.drifted(t, c)
		f := targets.Finding{Stack: t.spec.Stack, ID: c.ID, Class: targets.Modified, Fields: c.Fields, Actor: c.actor, Since: c.since, Detected: now}
		if c.Action == plan.Create {
			f.Class = targets.Missing
		}
		if f.Since.IsZero() {
			f.Since = now
		}
		found(f)
	}
	return nil
}
