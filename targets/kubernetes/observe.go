package kubernetes

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	// want is the digest of what was declared when the object was as it should be;
	// empty: it is not, or that is being looked at.
	want  digest.Digest
	until time.Time // until when want counts
	// after is the digest of what was declared when the object was as it should be, with
	// the state below; empty: the state is that of a finding, and good is what was
	// remembered when the object was as it should be, if it was.
	after digest.Digest
	good  *tracked
	// state is the digest of the values under our field set or, if full, of
	// everything but the status: for an object whose fields we do not all own.
	state [32]byte
	full  bool
	// foreign is the digest of what stands in closed places and is not ours.
	foreign [32]byte
	// cutOff says that it is a Job that was deleted before it had finished.
	cutOff bool
	vitals vitals
}

// observation is what a target remembers for [Target.Observe]. Guarded by Cluster.mu.
type observation struct {
	dirty   map[plan.ObjectID]sign // objects to look at
	found   map[plan.ObjectID]confirmed
	wake    chan struct{}
	busy    int           // applies under way
	epoch   int           // grows when an apply starts or ends
	current digest.Digest // the rendering that was applied last
	closed  bool          // nothing is remembered for it any more: an observer may end late
}

// sign is why an object is to be looked at.
type sign struct {
	version uint64    // of the event; 0: there was none
	at      time.Time // when the first sign came
	// live is the object at version, if the event told; it is not modified.
	live *unstructured.Unstructured
}

// confirmed is a difference that was found and is about to be repaired.
type confirmed struct {
	change *change
	ren    *rendering
	at     time.Time
}

// confirmedFor is how long a repair may rest on a difference that was found before it.
const confirmedFor = 5 * time.Second

func newObservation() observation {
	return observation{dirty: map[plan.ObjectID]sign{}, found: map[plan.ObjectID]confirmed{}, wake: make(chan struct{}, 1)}
}

// mark has the object looked at. live is nil where it is not known.
func (o *observation) mark(id plan.ObjectID, version uint64, live *unstructured.Unstructured) {
	s, ok := o.dirty[id]
	if !ok {
		s.at = time.Now()
	}
	if version >= s.version {
		s.version, s.live = version, live
	}
	o.dirty[id] = s
	delete(o.found, id)
}

func (o *observation) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// knownFor is how long an object counts as known of which nothing is heard; each gets
// between half of it and all of it, so that they do not come at once.
const knownFor = 24 * time.Hour

// clean remembers live as what o should be. complete says that our field set in
// it covers everything that we declare, and settled that nothing but a change of live
// makes it something else: what is yielded may be ours again by time alone.
func (c *Cluster) clean(t *Target, o *desired, live *unstructured.Unstructured, complete, settled bool) {
	id := o.id
	tr := &tracked{t: t, uid: string(live.GetUID()), rv: version(live), after: o.after, foreign: c.foreignState(id, live)}
	if settled && live.GetLabels()[ManagedLabel] == "true" { // others are not watched
		tr.want, tr.until = o.after, time.Now().Add(knownFor/2+rand.N(knownFor/2)) //nolint:gosec // spreads them
	}
	var ok bool
	if tr.state, ok = c.ownState(live); !ok || !complete {
		tr.state, tr.full = c.fullState(live), true
	}
	tr.vitals = t.vitals(live, vitals{})
	newer := c.toldOf(t, id, tr.rv)
	if newer != nil && !tooWide(newer) && c.same(tr, id, newer) {
		tr.rv, tr.vitals = version(newer), t.vitals(newer, tr.vitals)
		newer = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.obs.closed {
		return
	}
	if old := c.tracked[id]; old != nil && old.t == t && old.uid == tr.uid {
		switch {
		case old.vitals.at >= tr.vitals.at:
			tr.vitals = old.vitals
		case !tr.vitals.current && !old.vitals.since.IsZero():
			tr.vitals.since = old.vitals.since
		}
	}
	c.tracked[id] = tr
	delete(t.obs.found, id)
	if was, dirty := t.obs.dirty[id]; dirty && was.version <= tr.rv && tr.rv != unordered {
		delete(t.obs.dirty, id)
	}
	if live.GetLabels()[ManagedLabel] == "true" {
		c.overtaken(t, id, tr.rv)
	}
	if newer != nil {
		t.obs.mark(id, version(newer), newer)
		t.obs.notify()
	}
}

// toldOf returns what a watch has told of the object last, if that is newer than version
// at and was kept: a controller that writes a status is often quicker than the answer to
// the apply that it follows.
func (c *Cluster) toldOf(t *Target, id plan.ObjectID, at uint64) *unstructured.Unstructured {
	c.mu.Lock()
	defer c.mu.Unlock()
	live := c.early[id]
	if live != nil {
		c.early[id] = nil
	}
	if s := t.obs.dirty[id]; s.live != nil && (live == nil || s.version > version(live)) {
		live = s.live
	}
	if live == nil || version(live) <= at && at != unordered {
		return nil
	}
	return live
}

// overtaken has the object looked at again if a watch has told of something newer
// than version at already, before there was anything to compare it with: another
// version, or that it is gone. The caller holds mu.
func (c *Cluster) overtaken(t *Target, id plan.ObjectID, at uint64) {
	for w := range c.covering(id) {
		newest, there := w.seen[id]
		if newest > at || !there && w.at >= at && w.at > 0 {
			t.obs.mark(id, max(newest, w.at), nil)
			t.obs.notify()
		}
	}
}

// covering yields the watches that tell of an object. The caller holds mu.
func (c *Cluster) covering(id plan.ObjectID) iter.Seq[*watch] {
	return func(yield func(*watch) bool) {
		kind := groupKind(id.Kind)
		if w := c.watches[watchKey{kind, ""}]; w != nil && !yield(w) || id.Namespace == "" {
			return
		}
		if w := c.watches[watchKey{kind, id.Namespace}]; w != nil {
			yield(w)
		}
	}
}

// newest reports whether a watch tells of the object, and has told of nothing newer
// than version at. The caller holds mu.
func (c *Cluster) newest(id plan.ObjectID, at uint64) bool {
	if at == unordered {
		return false
	}
	watched := false
	for w := range c.covering(id) {
		if w.forbidden {
			continue
		}
		if w.at == 0 || w.interrupted || w.seen[id] > at {
			return false
		}
		watched = true
	}
	return watched
}

// stands reports whether o is in the world as it is declared, as far as that is known
// without asking: it was when it was looked at last, and nothing was heard of it since.
func (c *Cluster) stands(t *Target, o *desired) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	tr := c.tracked[o.id]
	_, dirty := t.obs.dirty[o.id]
	return tr != nil && tr.t == t && tr.want == o.after && time.Now().Before(tr.until) && !dirty && c.newest(o.id, tr.rv)
}

// unmovedSince reports whether the watch has told of the object at version at, and of
// nothing newer.
func (c *Cluster) unmovedSince(id plan.ObjectID, at uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.newest(id, at) {
		return false
	}
	for w := range c.covering(id) {
		if w.seen[id] == at {
			return true
		}
	}
	return false
}

// lately returns the change that was found out about o a moment ago, or nil. It is
// given out once.
func (c *Cluster) lately(t *Target, ren *rendering, o *desired) *change {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := t.obs.found[o.id]
	delete(t.obs.found, o.id)
	if !ok || f.ren.sum != ren.sum || time.Since(f.at) > confirmedFor || f.change.After != o.after {
		return nil
	}
	if f.change.Action == plan.Update && !c.newest(o.id, f.change.rv) {
		return nil
	}
	return f.change
}

// covers reports whether the watch tells of the object.
func (w *watch) covers(id plan.ObjectID) bool {
	return id.Kind == w.key.kind.String() && (w.key.namespace == "" || w.key.namespace == id.Namespace)
}

// stood returns how an object stands now, as far as that is known: how it did when it was
// written or seen last, if the watch that covers it has told of nothing newer. It asks
// nobody.
func (c *Cluster) stood(t *Target, id plan.ObjectID) (v vitals, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tr := c.tracked[id]
	if tr == nil || tr.t != t || !c.newest(id, tr.vitals.at) {
		return vitals{}, false
	}
	return tr.vitals, true
}

// reached notes that a watch has told of everything up to a version, or with 0
// that it begins anew.
func (c *Cluster) reached(w *watch, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.at = at
}

// drifted remembers that a finding was made about the object in this state.
func (c *Cluster) drifted(t *Target, ch change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.obs.closed {
		return
	}
	tr := &tracked{t: t, uid: ch.UID, rv: ch.rv, state: ch.full, full: true, foreign: ch.foreign}
	delete(t.obs.found, ch.ID)
	if old := c.tracked[ch.ID]; old != nil && old.t == t {
		tr.rv, tr.cutOff = max(tr.rv, old.rv), old.cutOff
		tr.vitals = old.vitals
		if tr.good = old.good; old.after != "" {
			tr.good = old
		}
	}
	c.tracked[ch.ID] = tr
}

// asDeclared returns what is remembered of o as it was when it was as it should be, or nil.
func (c *Cluster) asDeclared(t *Target, o *desired) *tracked {
	c.mu.Lock()
	defer c.mu.Unlock()
	tr := c.tracked[o.id]
	if tr != nil && tr.after == "" {
		tr = tr.good
	}
	if tr == nil || tr.t != t || tr.after != o.after || tr.full || time.Now().After(tr.until) {
		return nil
	}
	return tr
}

// misjudged forgets how an object was when it was as it should be: what that foretold did
// not come true.
func (c *Cluster) misjudged(t *Target, id plan.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tr := c.tracked[id]; tr != nil && tr.t == t {
		tr.after, tr.good = "", nil
	}
}

// doubt has the object looked at again: what was just written is not all there is to say.
func (c *Cluster) doubt(t *Target, id plan.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tr := c.tracked[id]; tr != nil && tr.t == t { // it was about what is overwritten
		tr.want, tr.after, tr.good, tr.vitals = "", "", nil, vitals{}
	}
	t.obs.mark(id, 0, nil)
	t.obs.notify()
}

func (c *Cluster) untrack(t *Target, id plan.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tr := c.tracked[id]; tr != nil && tr.t == t {
		delete(c.tracked, id)
	}
	delete(t.obs.dirty, id)
	delete(t.obs.found, id)
}

func (c *Cluster) forget(t *Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, tr := range c.tracked {
		if tr.t == t {
			delete(c.tracked, id)
		}
	}
	t.obs.closed = true
	clear(t.obs.dirty)
	clear(t.obs.found)
	c.release(t, func(watchKey) bool { return false })
}

// applying holds back findings until the returned function is called: what
// moves meanwhile is our own doing, and judged when it is done.
//
// What a watch tells of ids meanwhile is kept for when they are judged.
func (c *Cluster) applying(t *Target, ids ...plan.ObjectID) (done func()) {
	c.mu.Lock()
	for _, id := range ids {
		c.early[id] = nil
	}
	t.obs.busy++
	t.obs.epoch++
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, id := range ids {
			delete(c.early, id)
		}
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
	// What is judged may take a while: nobody waits for it.
	c.mu.Lock()
	before := c.tracked[id]
	var v vitals
	judge := false
	if before != nil {
		v, judge = before.vitals, !deleted && (at > before.rv || at == unordered)
	}
	c.mu.Unlock()
	same := judge && !tooWide(u) && c.same(before, id, u)
	if before != nil && !deleted && before.uid == string(u.GetUID()) {
		v = before.t.vitals(u, v)
	} else {
		v = vitals{at: at}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if deleted {
		delete(w.seen, id)
	} else {
		w.seen[id] = at
	}
	if w.at > 0 { // the pages of a first list come in no order
		w.at = max(w.at, at)
	}
	tr := c.tracked[id]
	if tr != nil && at > tr.vitals.at {
		if tr != before {
			v = vitals{at: at}
		}
		tr.vitals = v
	}
	if tr == nil {
		c.ahead(id, u, deleted)
	}
	if tr == nil || at <= tr.rv && at != unordered {
		return
	}
	if deleted && w.key.kind == jobKind {
		tr.cutOff = !finished(u)
	}
	if same && tr == before {
		tr.rv = at
		return
	}
	if deleted { // or it left the label behind: it may still be there
		u = nil
	}
	tr.t.obs.mark(id, at, u)
	tr.t.obs.notify()
}

// ahead keeps what is told of an object that is being applied and not tracked yet. The
// caller holds mu.
func (c *Cluster) ahead(id plan.ObjectID, u *unstructured.Unstructured, deleted bool) {
	if _, applied := c.early[id]; !applied {
		return
	}
	if deleted {
		u = nil
	}
	c.early[id] = u
}

// same reports whether u is, in all that matters, what is remembered: the same object,
// our field set and the values under it, and what stands in closed places and is not
// ours. Everything else is looked at: it is a question to the server whether it matters.
// It reads what is never changed of tr, and needs no lock.
func (c *Cluster) same(tr *tracked, id plan.ObjectID, u *unstructured.Unstructured) bool {
	if tr.uid != string(u.GetUID()) {
		return false
	}
	now, ok := c.ownState(u)
	if tr.full {
		now, ok = c.fullState(u), true
	}
	return ok && now == tr.state && c.foreignState(id, u) == tr.foreign
}

// absent judges what a complete list at version at did not have.
func (c *Cluster) absent(w *watch, there map[plan.ObjectID]bool, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.at = max(w.at, at)
	for id := range w.seen {
		if !there[id] {
			delete(w.seen, id)
		}
	}
	for id, tr := range c.tracked {
		if w.covers(id) && !there[id] && tr.rv <= at && tr.uid != "" {
			tr.t.obs.mark(id, at, nil)
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
	t.begin(ctx, ren)
	late := retries{timer: time.NewTimer(0), ids: map[plan.ObjectID]bool{}}
	defer late.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.obs.wake:
		case <-late.timer.C:
			late.armed = false
			t.c.requeue(t, late.ids)
		}
		ids, signs, epoch := t.take(ren)
		if len(ids) > 0 {
			err := late.note(ids, t.confirm(ctx, ren, ids, signs, epoch, found))
			if err != nil && ctx.Err() == nil {
				t.c.cfg.Log.WarnContext(ctx, "drift not confirmed yet", slog.String("stack", t.spec.Stack), slog.Int("objects", len(late.ids)),
					slog.Duration("retry", late.wait), slog.String("error", t.c.cfg.Masker.Scrub(err.Error())))
			}
		}
	}
}

// retries are the objects that could not be judged. They are looked at again
// after a growing delay, together, and hold up no other object.
type retries struct {
	timer *time.Timer
	armed bool
	wait  time.Duration
	ids   map[plan.ObjectID]bool
}

// note takes in how judging ids went, and returns what failed.
func (r *retries) note(ids []plan.ObjectID, failed map[plan.ObjectID]error) error {
	for _, id := range ids {
		delete(r.ids, id)
	}
	var errs []error
	for _, id := range slices.SortedFunc(maps.Keys(failed), plan.ObjectID.Compare) {
		r.ids[id] = true
		errs = append(errs, failed[id])
	}
	switch {
	case len(r.ids) == 0:
		r.wait = 0
	case !r.armed:
		r.armed, r.wait = true, min(max(2*r.wait, minBackoff), maxBackoff)
		r.timer.Reset(r.wait)
	}
	return joined(opObserve, errs)
}

// requeue marks ids to be looked at. The loop that calls it takes them at once.
func (c *Cluster) requeue(t *Target, ids map[plan.ObjectID]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range ids {
		t.obs.mark(id, 0, nil)
	}
}

// begin starts the watches for ren and marks what nothing is known about. What
// the cluster cannot place yet is tried again like all that cannot be judged.
func (t *Target) begin(ctx context.Context, ren *rendering) {
	ids := make([]plan.ObjectID, 0, len(ren.objects))
	needed, unplaced := map[watchKey]bool{}, map[schema.GroupKind]bool{}
	for _, o := range ren.objects {
		kind := o.u.GroupVersionKind().GroupKind()
		if placed, res, err := t.place(ctx, ren, o); err == nil {
			t.c.ensureWatch(t, placed.id, kind, res)
			needed[watchKey{kind, placed.id.Namespace}] = true
			o = placed
		} else {
			unplaced[kind] = true
		}
		ids = append(ids, o.id)
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.obs.current = ren.sum
	t.c.release(t, func(k watchKey) bool { return needed[k] || unplaced[k.kind] })
	for _, id := range ids {
		if tr := t.c.tracked[id]; tr == nil || tr.t != t {
			t.obs.mark(id, 0, nil)
		}
	}
	t.obs.notify()
}

// take returns the objects to look at and why, unless an apply is under way.
func (t *Target) take(ren *rendering) ([]plan.ObjectID, map[plan.ObjectID]sign, int) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.obs.busy > 0 || t.obs.current != ren.sum {
		return nil, nil, 0
	}
	signs := t.obs.dirty
	t.obs.dirty = map[plan.ObjectID]sign{}
	for id := range signs { // until it is found to be as it should
		if tr := t.c.tracked[id]; tr != nil && tr.t == t {
			tr.want = ""
		}
	}
	return slices.SortedFunc(maps.Keys(signs), plan.ObjectID.Compare), signs, t.obs.epoch
}

// confirm plans ids, each by itself, and reports what differs. It returns why
// objects could not be judged.
func (t *Target) confirm(ctx context.Context, ren *rendering, ids []plan.ObjectID, signs map[plan.ObjectID]sign, epoch int, found func(targets.Finding)) map[plan.ObjectID]error {
	select { // however many stacks have something to look at
	case t.c.looks <- struct{}{}:
		defer func() { <-t.c.looks }()
	case <-ctx.Done():
		return nil
	}
	changes, failed := t.inspect(ctx, ren, ids, signs)
	t.c.mu.Lock()
	moved := t.obs.epoch != epoch
	if moved { // by an apply: all of it is judged again
		for _, id := range ids {
			if _, newer := t.obs.dirty[id]; !newer {
				t.obs.dirty[id] = sign{at: signs[id].at}
			}
		}
		t.obs.notify()
	}
	t.c.mu.Unlock()
	if moved {
		return nil
	}
	now := time.Now().UTC()
	for _, c := range changes {
		t.c.drifted(t, *c)
		t.repairable(ren, c)
		f := targets.Finding{Stack: t.spec.Stack, ID: c.ID, Class: targets.Modified, Fields: c.Fields, Source: c.Source, Excerpt: c.Excerpt, Actor: c.Actor, Since: c.Since, Detected: now, Noticed: signs[c.ID].at, Excuse: targets.ExcuseOf(c.Change)}
		switch {
		case c.Action == plan.Create:
			f.Class = targets.Missing
		case c.Foreign():
			f.Class = targets.Foreign
		}
		if f.Since.IsZero() {
			f.Since = now
		}
		found(f)
	}
	return failed
}

// repairable keeps a change that was confirmed for the repair that may follow.
func (t *Target) repairable(ren *rendering, c *change) {
	if !c.whole {
		return
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if _, newer := t.obs.dirty[c.ID]; !newer && !t.obs.closed {
		t.obs.found[c.ID] = confirmed{change: c, ren: ren, at: time.Now()}
	}
}

// inspect plans ids, each by itself.
func (t *Target) inspect(ctx context.Context, ren *rendering, ids []plan.ObjectID, signs map[plan.ObjectID]sign) ([]*change, map[plan.ObjectID]error) {
	failed := map[plan.ObjectID]error{}
	owned, err := t.ownedNow(ctx)
	if err != nil {
		for _, id := range ids {
			failed[id] = err
		}
		return nil, failed
	}
	wanted := make(map[plan.ObjectID]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	var objs []*desired
	var all []resource
	for _, o := range ren.objects {
		if o.scoped && !wanted[o.id] {
			continue
		}
		placed, res, err := t.place(ctx, ren, o)
		switch {
		case err != nil && wanted[o.id]:
			failed[o.id] = err
		case err == nil && (wanted[placed.id] || wanted[o.id]): // o.id: it could not be placed before
			t.c.ensureWatch(t, placed.id, placed.u.GroupVersionKind().GroupKind(), res)
			objs, all = append(objs, placed), append(all, res)
		}
	}
	// A watch tells of a kind in one version, which may be that of another stack.
	told := func(o *desired) *unstructured.Unstructured {
		if live := signs[o.id].live; live != nil && live.GroupVersionKind() == o.u.GroupVersionKind() {
			return live
		}
		return nil
	}
	changes, errs := t.each(ctx, objs, all, owned, told)
	var good []*change
	for i, o := range objs {
		switch {
		case errs[i] != nil && (changes[i] == nil || changes[i].Action == plan.Create):
			failed[o.id] = errs[i]
		case changes[i] != nil: // also if there is no way back: whoever tries to repair it learns why
			changes[i].whole = errs[i] == nil
			good = append(good, changes[i])
		}
	}
	return good, failed
}

// maxWidth is how many elements of one list managed fields may name for an object to be
// compared here: that takes their square.
const maxWidth = 500

// tooWide reports whether managed fields, which anybody may write, name more of a list.
func tooWide(u *unstructured.Unstructured) bool {
	entries, _, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", "managedFields")
	list, _ := entries.([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		if fields, _ := m["fieldsV1"].(map[string]any); wider(fields, 0) {
			return true
		}
	}
	return false
}

func wider(set map[string]any, depth int) bool {
	elements := 0
	for k, sub := range set {
		if strings.HasPrefix(k, "k:") || strings.HasPrefix(k, "v:") {
			elements++
		}
		if next, _ := sub.(map[string]any); depth > maxNesting || wider(next, depth+1) {
			return true
		}
	}
	return elements > maxWidth
}
