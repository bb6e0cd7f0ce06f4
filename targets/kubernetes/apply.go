package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	opApply = "targets/kubernetes.Apply"
	// absentVersion is a resourceVersion that no object has. With it a
	// server-side apply creates an absent object and answers 409 for one that
	// exists, so that a create needs no look-up of its own.
	absentVersion      = "1"
	establishedTimeout = 60 * time.Second
)

// Apply implements [targets.Target]. Updates and deletes are read again before
// the first write, creates are checked by the request that makes them. An error
// that wraps [targets.ErrStale] may come after some writes; the receipt says which.
func (t *Target) Apply(ctx context.Context, g gate.Grant) (targets.Receipt, error) {
	rec := targets.Receipt{Stack: t.spec.Stack, Started: time.Now().UTC()}
	err := t.carryOut(ctx, g, &rec)
	rec.Ended = time.Now().UTC()
	return rec, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) carryOut(ctx context.Context, g gate.Grant, rec *targets.Receipt) error {
	p, err := g.Plan()
	if err != nil {
		return err
	}
	rec.Plan = p.Digest()
	for _, c := range p.Changes {
		rec.Outcomes = append(rec.Outcomes, targets.Outcome{ID: c.ID, Action: c.Action, Err: "not attempted"})
	}
	priv, err := t.granted(p)
	if err != nil {
		return err
	}
	written, err := t.c.writing(ctx)
	if err != nil {
		return err
	}
	defer written()
	ids := make([]plan.ObjectID, len(priv.changes))
	for i, c := range priv.changes {
		ids[i] = c.ID
	}
	defer t.c.applying(t, ids...)()

	versions, err := t.recheck(ctx, priv)
	if err != nil {
		return err
	}
	t.c.realise(t, priv.ren)
	w := &writer{t: t, priv: priv, versions: versions, rec: rec}
	final, err := w.union(ctx)
	if err != nil {
		return err
	}
	for _, n := range waves(priv.changes) {
		if err := w.wave(ctx, n); err != nil {
			w.disown(ctx)
			return err
		}
	}
	if err := w.deletes(ctx); err != nil {
		return err
	}
	if priv.ends {
		return t.removeInventory(ctx, priv.inv)
	}
	if final == nil {
		return nil
	}
	if err := w.held(ctx, final); err != nil {
		return err
	}
	return t.writeInventory(ctx, priv.inv, final)
}

// waveTimeout is how long an apply waits for the lower waves. After it the stack
// waits, and others have their turn.
const (
	waveTimeout = 30 * time.Second
	waveLook    = 500 * time.Millisecond
)

// wave creates and changes the objects of wave n, stage by stage, when everything in
// the lower ones is healthy. A repair does not wait: what it restores ran before.
func (w *writer) wave(ctx context.Context, n int) error {
	if !w.priv.few {
		if err := w.lower(ctx, n); err != nil {
			return err
		}
	}
	var failed []error
	for s := range 4 {
		if err := w.stage(ctx, func(c *change) bool { return c.obj != nil && c.obj.wave == n && stage(c.obj.u) == s }); err != nil {
			if !w.priv.few {
				return err
			}
			failed = append(failed, err) // what is restored does not wait for what cannot be
		}
		if s == 0 {
			if err := w.established(ctx, n); err != nil {
				return err
			}
		}
	}
	return joined(opApply, failed)
}

// lower waits until every object below wave n is healthy.
func (w *writer) lower(ctx context.Context, n int) error {
	if !slices.ContainsFunc(w.priv.ren.objects, func(o *desired) bool { return o.wave < n }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, waveTimeout)
	defer cancel()
	look := func(explain bool) error {
		return w.t.healthy(ctx, w.priv.ren, explain, func(o *desired) bool { return o.wave < n })
	}
	err := look(false)
	ticker := time.NewTicker(waveLook)
	defer ticker.Stop()
	for waiting := true; waiting && fault.KindOf(err) == fault.Waiting && err != nil; {
		select {
		case <-ticker.C:
			if now := look(false); ctx.Err() == nil {
				err = now
			}
		case <-ctx.Done():
			waiting = false
		}
	}
	if err != nil {
		kind := fault.KindOf(err)
		if kind == fault.Invalid { // what failed may recover, and is looked at again
			kind = fault.Waiting
		}
		return fault.Wrap(kind, opApply, fault.HintOf(err), fmt.Errorf("wave %d is not applied before the lower ones are healthy: %w", n, err))
	}
	return nil
}

// deletes removes what goes, in the reverse order: what is used goes after what uses it.
func (w *writer) deletes(ctx context.Context) error {
	var down []int
	for _, c := range w.priv.changes {
		if c.obj == nil {
			down = append(down, c.wave)
		}
	}
	slices.Sort(down)
	for _, n := range slices.Backward(slices.Compact(down)) {
		for s := 3; s >= 0; s-- {
			if err := w.stage(ctx, func(c *change) bool { return c.obj == nil && c.wave == n && c.stage == s }); err != nil {
				return err
			}
		}
	}
	if !w.priv.ends {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, goneTimeout) // for all of them
	defer cancel()
	var errs []error
	for i := range w.priv.changes { // without an inventory nobody could tell later whose it was
		if c := &w.priv.changes[i]; c.Action == plan.Delete {
			errs = append(errs, w.t.gone(ctx, c))
		}
	}
	return joined(opApply, errs)
}

// held keeps in the inventory what was deleted and is not gone yet.
func (w *writer) held(ctx context.Context, final map[plan.ObjectID]entry) error {
	var errs []error
	for i := range w.priv.changes {
		c := &w.priv.changes[i]
		if c.Action != plan.Delete {
			continue
		}
		live, err := w.t.as.get(ctx, c.res, c.ID)
		switch {
		case err != nil:
			errs = append(errs, w.t.c.apiError(opApply, c.ID, err))
		case live != nil && string(live.GetUID()) == c.UID:
			final[c.ID] = w.priv.inv.entries[c.ID]
			w.t.leaves(c.ID, final[c.ID])
		}
	}
	return joined(opApply, errs)
}

// granted checks that the private half is what was judged, and is ours.
func (t *Target) granted(p plan.Plan) (*planned, error) {
	bad := func(why string) error { return fault.New(fault.Internal, opApply, "", "%s", why) }
	priv, ok := p.Private.(*planned)
	switch {
	case !ok || priv == nil || priv.ren == nil:
		return nil, bad("the plan was not made by this target")
	case p.Stack != t.spec.Stack || p.Environment != t.spec.Environment || p.Target != targetName || priv.owner != t.owner:
		return nil, bad("the plan is for another stack")
	case p.Payload == "" || t.payload(priv) != p.Payload || len(priv.changes) != len(p.Changes):
		return nil, bad("the plan's payload is not what was judged")
	}
	for i, c := range p.Changes {
		if pc := priv.changes[i]; pc.ID != c.ID || pc.Action != c.Action || pc.UID != c.UID || pc.Before != c.Before || pc.After != c.After {
			return nil, bad("the plan's payload is not what was judged")
		}
	}
	for _, c := range priv.changes {
		if c.obj == nil {
			if other := t.c.claims.other(t.owner, c.ID); other != "" {
				return nil, stale(c.ID, "it is declared by "+other+" now")
			}
			continue
		}
		if b := t.masked(c.obj.u.Object); !equalJSON(b, c.obj.masked) {
			return nil, bad("the plan's payload is not what was judged")
		}
	}
	if err := t.guard(priv); err != nil {
		return nil, err
	}
	return priv, nil
}

func stale(id plan.ObjectID, why string) error {
	return fault.New(fault.Transient, opApply, "", "%s: %s: %w", id, why, targets.ErrStale)
}

// recheck reads every object again that exists, and returns the versions at
// which each was as judged. What is written at the version that was judged only, and
// is at that version as far as the watch has told, is not read.
func (t *Target) recheck(ctx context.Context, priv *planned) ([]string, error) {
	versions := make([]string, len(priv.changes))
	errs := make([]error, len(priv.changes))
	g := new(errgroup.Group)
	g.SetLimit(t.c.cfg.Workers)
	for i := range priv.changes {
		c := &priv.changes[i]
		if c.Action == plan.Update && t.c.unmovedSince(c.ID, c.rv) {
			versions[i] = c.version
		} else if c.Action != plan.Create {
			g.Go(func() error {
				versions[i], errs[i] = t.unmoved(ctx, c)
				return nil
			})
		}
	}
	_ = g.Wait() // each worker keeps its own error
	return versions, joined(opApply, errs)
}

// unmoved returns the live version of an object that is as it was judged.
func (t *Target) unmoved(ctx context.Context, c *change) (string, error) {
	live, err := t.as.get(ctx, c.res, c.ID)
	if err != nil {
		return "", t.c.apiError(opApply, c.ID, err)
	}
	if err := t.asJudged(c, live); err != nil {
		return "", err
	}
	return live.GetResourceVersion(), nil
}

// asJudged reports why live is not what was judged.
func (t *Target) asJudged(c *change, live *unstructured.Unstructured) error {
	switch {
	case live == nil:
		return stale(c.ID, "it is gone")
	case string(live.GetUID()) != c.UID:
		return stale(c.ID, "it was replaced by another object of the same name")
	case t.before(live, c.pointers) != c.Before:
		return stale(c.ID, "its fields have other values")
	case c.obj == nil && !t.ours(live):
		return stale(c.ID, "it is not ours any more")
	}
	return nil
}

// union writes the inventory of before and after together, so that a crash never
// forgets an object, and returns what the inventory is in the end (nil: the same).
func (w *writer) union(ctx context.Context) (map[plan.ObjectID]entry, error) {
	t, priv, inv := w.t, w.priv, w.priv.inv
	if inv == nil {
		owned, err := t.ownedNow(ctx)
		if err != nil {
			return nil, err
		}
		missing := false
		for id := range priv.wanted {
			missing = missing || !owned[id]
		}
		if !missing {
			return nil, nil
		}
		if inv, err = t.readInventory(ctx); err != nil {
			return nil, err
		}
	}
	w.inv, w.had = inv, inv.entries
	all := maps.Clone(inv.entries)
	for id, e := range priv.wanted {
		e.Ran = inv.entries[id].Ran // what is not made yet has not run
		all[id] = e
	}
	if err := t.writeInventory(ctx, inv, all); err != nil {
		return nil, err
	}
	if priv.inv == nil {
		return nil, nil
	}
	return priv.wanted, nil
}

// writer carries out changes and keeps the receipt.
type writer struct {
	t        *Target
	priv     *planned
	versions []string
	inv      *inventory              // nil: it was not written
	had      map[plan.ObjectID]entry // by the inventory, before this apply
	rec      *targets.Receipt

	mu     sync.Mutex
	theirs []plan.ObjectID // was to be created, and somebody else had made it
}

// disownTime is what an apply that ends early still takes to say what is not ours.
const disownTime = 10 * time.Second

// disown takes back from the inventory what somebody else turned out to have made:
// otherwise the next plan would call it ours.
func (w *writer) disown(ctx context.Context) {
	if w.inv == nil || len(w.theirs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), disownTime)
	defer cancel()
	entries := maps.Clone(w.inv.entries)
	for _, id := range w.theirs {
		if _, had := w.had[id]; !had {
			delete(entries, id)
		}
	}
	if err := w.t.writeInventory(ctx, w.inv, entries); err != nil {
		w.t.c.cfg.Log.WarnContext(ctx, "the inventory still names what somebody else has made", slog.String("stack", w.t.spec.Stack), slog.String("error", err.Error()))
	}
}

// stage carries out the changes that in selects, in parallel, and stops on errors.
func (w *writer) stage(ctx context.Context, in func(*change) bool) error {
	errs := make([]error, len(w.priv.changes))
	g := new(errgroup.Group)
	g.SetLimit(w.t.c.cfg.Workers)
	for i := range w.priv.changes {
		c := &w.priv.changes[i]
		if !in(c) {
			continue
		}
		g.Go(func() error {
			if errs[i] = ctx.Err(); errs[i] != nil {
				return nil
			}
			if errs[i] = w.t.c.Holding(); errs[i] != nil {
				return nil
			}
			if errs[i] = w.write(ctx, c, w.versions[i]); errs[i] != nil {
				w.rec.Outcomes[i].Err = w.t.c.cfg.Masker.Scrub(errs[i].Error())
			} else {
				w.rec.Outcomes[i].Err = ""
			}
			return nil
		})
	}
	_ = g.Wait() // each worker keeps its own error
	return joined(opApply, errs)
}

// write makes one change. On a conflict the object is read again: as judged, it
// is tried again; otherwise the change is stale.
func (w *writer) write(ctx context.Context, c *change, at string) error {
	t := w.t
	switch c.Action {
	case plan.Delete:
		return t.delete(ctx, c)
	case plan.Release:
		return t.release(ctx, c)
	case plan.Replace:
		return w.replace(ctx, c)
	}
	if len(c.takes) > 0 {
		var err error
		if at, err = t.migrate(ctx, c); err != nil {
			return err
		}
	}
	for range attempts(ctx) {
		live, begun, err := t.send(ctx, c, at)
		switch {
		case err == nil:
			return t.settle(c, live)
		case c.Action == plan.Create:
			return w.notCreated(ctx, c, err)
		case begun && moved(err):
			return stale(c.ID, "it was written while it was being restored")
		case begun || (!moved(err) && !apierrors.IsInvalid(err)):
			return t.c.apiError(opApply, c.ID, err)
		}
		now, uerr := t.unmoved(ctx, c)
		if uerr != nil && (moved(err) || errors.Is(uerr, targets.ErrStale)) {
			return uerr
		}
		if !moved(err) && c.foretold != nil { // the server has more to say: it is asked before the next attempt
			t.c.misjudged(t, c.ID)
			return stale(c.ID, "it cannot be brought back as it was foretold: "+t.c.apiError(opApply, c.ID, err).Error())
		}
		if !moved(err) { // invalid, and it is still what was judged
			return t.c.apiError(opApply, c.ID, err)
		}
		at = now
	}
	return t.contended(ctx, opApply, c.res, c.ID)
}

func moved(err error) bool { return apierrors.IsConflict(err) || errors.Is(err, errMoved) }

// send makes the requests of a create or an update, of the object at version at.
// begun says that the first of two was carried out. What others added goes first:
// beside it our own fields may not be valid.
func (t *Target) send(ctx context.Context, c *change, at string) (live *unstructured.Unstructured, begun bool, err error) {
	if len(c.fix) > 0 {
		live, err = t.as.patch(ctx, c.res, c.ID, c.UID, at, c.fix, false)
		if err != nil || c.bare {
			return live, false, err
		}
		at, begun = live.GetResourceVersion(), true
	}
	meta := map[string]any{"resourceVersion": absentVersion}
	if c.Action == plan.Update {
		meta = map[string]any{"resourceVersion": at, "uid": c.UID}
	}
	u, err := c.obj.send(c.yields)
	if err != nil {
		return nil, begun, err
	}
	left := live
	live, err = t.as.apply(ctx, c.res, with(u, meta), false)
	for range attempts(ctx) {
		if !begun || !apierrors.IsConflict(err) {
			break
		}
		// Controllers answer to the first write at once, in fields of their own.
		now, gerr := t.as.get(ctx, c.res, c.ID)
		if gerr != nil || now == nil || string(now.GetUID()) != c.UID || t.c.declaredState(c.obj, now) != t.c.declaredState(c.obj, left) {
			break
		}
		meta["resourceVersion"] = now.GetResourceVersion()
		live, err = t.as.apply(ctx, c.res, with(u, meta), false)
	}
	return live, begun, err
}

// settle remembers live, which a change led to, as what it should be, unless
// something foreign is in it still.
func (t *Target) settle(c *change, live *unstructured.Unstructured) error {
	if len(c.returning) > 0 {
		t.c.drifted(t, change{Change: c.Change, full: t.c.fullState(live), foreign: t.c.foreignState(c.ID, live), rv: version(live)})
		return fault.New(fault.Denied, opApply, "list who adds it, and the image, under injectors in the operator's file, or stop the admission webhook",
			"%s: the image at %s was not declared and is added again whenever it is removed", c.ID, c.returning[0])
	}
	left, err := t.c.foreign(c.obj, live, t.c.entry(live))
	if err != nil || len(left) > 0 || c.foretold != nil && !t.c.same(c.foretold, c.ID, live) {
		t.c.doubt(t, c.ID)
		return nil
	}
	t.c.clean(t, c.obj, live, true, len(c.yields) == 0)
	return nil
}

// notCreated says why a create failed. A conflict means that the object exists,
// unless it is about something else, such as a quota that many use at once.
func (w *writer) notCreated(ctx context.Context, c *change, err error) error {
	t := w.t
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		if live, gerr := t.as.get(ctx, c.res, c.ID); gerr != nil || live != nil {
			t.c.absences.of(c.res).appeared(c.ID)
			if gerr != nil || !t.ours(live) { // what had been ours before stays so
				w.mu.Lock()
				w.theirs = append(w.theirs, c.ID)
				w.mu.Unlock()
			}
			return stale(c.ID, "it exists by now")
		}
	}
	return t.c.apiError(opApply, c.ID, err)
}

func (t *Target) delete(ctx context.Context, c *change) error {
	err := t.as.remove(ctx, c.res, c.ID, c.UID, c.propagation)
	switch {
	case apierrors.IsNotFound(err):
	case apierrors.IsConflict(err):
		return stale(c.ID, "it was replaced by another object of the same name")
	case err != nil:
		return t.c.apiError(opApply, c.ID, err)
	}
	t.c.untrack(t, c.ID)
	return nil
}

// established waits until the definitions of a wave, which were just applied, are served.
func (w *writer) established(ctx context.Context, wave int) error {
	var errs []error
	for i := range w.priv.changes {
		c := &w.priv.changes[i]
		if c.obj == nil || c.obj.wave != wave || c.obj.u.GroupVersionKind().GroupKind() != crdKind || !w.needed(c) {
			continue
		}
		errs = append(errs, w.t.waitEstablished(ctx, c))
	}
	return joined(opApply, errs)
}

// needed reports whether the plan makes an object of a kind that c defines.
func (w *writer) needed(c *change) bool {
	group, _, _ := unstructured.NestedString(c.obj.u.Object, "spec", "group")
	kind, _, _ := unstructured.NestedString(c.obj.u.Object, "spec", "names", "kind")
	return slices.ContainsFunc(w.priv.changes, func(o change) bool { return o.ID.Kind == kind+"."+group })
}

func (t *Target) waitEstablished(ctx context.Context, c *change) error {
	ctx, cancel := context.WithTimeout(ctx, establishedTimeout)
	defer cancel()
	ready := func(u *unstructured.Unstructured) bool {
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		return slices.ContainsFunc(list, func(e any) bool {
			m, _ := e.(map[string]any)
			return m["type"] == "Established" && m["status"] == "True"
		})
	}
	wait := func(err error) error {
		return fault.New(fault.Waiting, opApply, "look at the definition's conditions", "%s: not established: %w", c.ID, err)
	}
	client := t.as.client(c.res, "")
	live, err := client.Get(ctx, c.ID.Name, metav1.GetOptions{})
	if err != nil {
		return wait(err)
	}
	if ready(live) {
		return nil
	}
	events, err := client.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", c.ID.Name).String(), ResourceVersion: live.GetResourceVersion(),
	})
	if err != nil {
		return wait(err)
	}
	defer events.Stop()
	for e := range events.ResultChan() {
		if u, ok := e.Object.(*unstructured.Unstructured); ok && ready(u) {
			return nil
		}
	}
	return wait(fmt.Errorf("the watch ended: %w", context.Cause(ctx)))
}
