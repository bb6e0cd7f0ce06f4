package kubernetes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const opPlan = "targets/kubernetes.Plan"

// planned is the private half of a [plan.Plan].
type planned struct {
	owner   string
	ren     *rendering
	changes []change
	few     bool       // only some objects were planned
	inv     *inventory // nil: it was not read, and says what the stack declares, or few
	wanted  map[plan.ObjectID]entry
	ends    bool // nothing is left of the stack afterwards, not even its inventory
}

// change is what the plan knows about one object beyond what a judge sees.
type change struct {
	plan.Change
	obj      *desired // nil: a delete
	res      resource
	pointers []string // the fields that it touches
	yields   []yielded
	fix      []operation // what the apply alone would not do, made before it
	bare     bool        // fix is all there is to do
	foretold *tracked    // what says it instead of a dry run; nil: a dry run
	// returning are the images that cannot be removed: something adds them again.
	returning []string
	foreign   [32]byte // the state of what we did not declare in the live object
	takes     []string // managers whose fields become ours before the apply
	full      [32]byte // of the live object
	rv        uint64   // of the live object, as is version
	version   string
	whole     bool // there is a way to it, as far as is known
	// Of a delete or a replacement: how the object goes. Of a delete: the stage and
	// the wave that made it, and whether only the end of the stack lets go of it.
	propagation metav1.DeletionPropagation
	stage, wave int
	protected   bool
}

// Plan implements [targets.Target]. Objects that do not exist are planned
// without a request beyond the look-up; each that exists costs one dry run.
func (t *Target) Plan(ctx context.Context, r targets.Rendered, only ...plan.ObjectID) (plan.Plan, error) {
	p, err := t.plan(ctx, r, only, false)
	return p, fault.WithStack(t.spec.Stack, err)
}

// Recall implements [targets.Recaller]. An object costs no request of which the watch
// told nothing since it was found to be as r declares it, nor does the inventory where
// it says already what r does.
func (t *Target) Recall(ctx context.Context, r targets.Rendered) (plan.Plan, error) {
	p, err := t.plan(ctx, r, nil, true)
	return p, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) plan(ctx context.Context, r targets.Rendered, only []plan.ObjectID, recall bool) (plan.Plan, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return plan.Plan{}, err
	}
	priv := &planned{owner: t.owner, ren: ren, few: len(only) > 0}
	objs, res, err := t.placeAll(ctx, ren, only)
	if err != nil {
		return plan.Plan{}, err
	}
	priv.wanted = make(map[plan.ObjectID]entry, len(objs))
	for _, o := range objs {
		priv.wanted[o.id] = o.entry()
	}
	if !priv.few && (!recall || !t.says(priv.wanted)) {
		if priv.inv, err = t.readInventory(ctx); err != nil {
			return plan.Plan{}, err
		}
	}
	owned, err := t.ownedNow(ctx)
	if err != nil {
		return plan.Plan{}, err
	}
	known := func(o *desired) (*change, bool) {
		switch {
		case priv.few:
			c := t.c.lately(t, ren, o)
			return c, c != nil
		case recall:
			return nil, t.c.stands(t, o)
		}
		return nil, false
	}
	changes, err := t.changes(ctx, objs, res, owned, known)
	if err != nil {
		return plan.Plan{}, err
	}
	priv.changes = changes
	if priv.inv != nil {
		gone, err := t.deletes(ctx, priv)
		if err != nil {
			return plan.Plan{}, err
		}
		priv.changes = append(priv.changes, gone...)
	}
	return t.assemble(r, priv), nil
}

// assemble makes the plan that judges see.
func (t *Target) assemble(r targets.Rendered, priv *planned) plan.Plan {
	p := plan.Plan{
		Stack: r.Stack, Environment: r.Environment, Target: targetName, Revision: r.Revision,
		Rendered: r.Digest, Keeps: len(priv.ren.objects), Private: priv, Payload: t.payload(priv),
	}
	for _, c := range priv.changes {
		p.Changes = append(p.Changes, c.Change)
		if c.obj != nil {
			p.Documents = append(p.Documents, c.obj.document())
		}
	}
	if len(p.Documents) == 0 { // only deletes: what remains is judged
		p.Documents = r.Documents
	}
	return p
}

// payload binds what is sent, with secrets as keyed masks. It is computed from
// the objects, not from digests that were computed before.
func (t *Target) payload(priv *planned) digest.Digest {
	h := sha256.New()
	fmt.Fprintf(h, "%s %t\n", priv.owner, priv.ends)
	for _, c := range priv.changes {
		fmt.Fprintf(h, "%s %s %s %s %q %s\n", c.Action, c.ID, c.UID, c.Before, c.pointers, c.propagation)
		if c.obj != nil {
			fmt.Fprintf(h, "%s %s\n", c.obj.id, digest.FromBytes(mustJSON(c.obj.masked)))
			fmt.Fprintf(h, "fix %x %t %q\n", t.c.keyed("fix", mustJSON(c.fix)), c.bare, c.returning)
			for _, y := range c.yields {
				fmt.Fprintf(h, "yields %q\n", y.at)
			}
			fmt.Fprintf(h, "takes %q\n", c.takes)
		}
	}
	return digest.NewDigest(digest.SHA256, h)
}

// place finds out how the cluster calls o's kind, and gives it its namespace
// where the rendering could not know. known is false for a kind that the
// rendering itself defines and the cluster does not know yet.
func (t *Target) place(ctx context.Context, ren *rendering, o *desired) (placed *desired, res resource, err error) {
	gvk := o.u.GroupVersionKind()
	res, err = t.c.resource(ctx, gvk)
	if errors.Is(err, errNoKind) {
		def, ok := ren.custom[gvk.GroupKind().String()]
		if !ok {
			return nil, resource{}, t.c.apiError(opPlan, o.id, err)
		}
		def.version = gvk.GroupVersion()
		res, err = def, nil
	}
	if err != nil {
		return nil, resource{}, err
	}
	if o.scoped && res.namespaced == (o.id.Namespace != "") {
		return o, res, nil
	}
	c := *o
	c.u = o.u.DeepCopy()
	return &c, res, t.setScope(&c, res.namespaced)
}

func (t *Target) placeAll(ctx context.Context, ren *rendering, only []plan.ObjectID) ([]*desired, []resource, error) {
	var objs []*desired
	var all []resource
	for _, o := range ren.objects {
		o, res, err := t.place(ctx, ren, o)
		if err != nil {
			return nil, nil, err
		}
		if len(only) == 0 || slices.Contains(only, o.id) {
			objs, all = append(objs, o), append(all, res)
		}
	}
	return objs, all, nil
}

// changes plans every object that is not known already.
func (t *Target) changes(ctx context.Context, objs []*desired, res []resource, owned map[plan.ObjectID]bool, known func(*desired) (*change, bool)) ([]change, error) {
	all := make([]*change, len(objs))
	var at []int
	var ask []*desired
	var places []resource
	for i, o := range objs {
		var ok bool
		if all[i], ok = known(o); !ok {
			at, ask, places = append(at, i), append(ask, o), append(places, res[i])
		}
	}
	out, errs := t.each(ctx, ask, places, owned, func(*desired) *unstructured.Unstructured { return nil })
	if err := joined(opPlan, errs); err != nil {
		return nil, err
	}
	for i, c := range out {
		all[at[i]] = c
	}
	var list []change
	for _, c := range all {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list, nil
}

// each plans every object by itself, in parallel. Namespaces come first: in one
// that is about to be created nothing needs to be looked up. told returns the live
// object that a watch has just told of, or nil.
func (t *Target) each(ctx context.Context, objs []*desired, res []resource, owned map[plan.ObjectID]bool, told func(*desired) *unstructured.Unstructured) ([]*change, []error) {
	out := make([]*change, len(objs))
	errs := make([]error, len(objs))
	created := map[string]bool{}
	for _, namespaces := range []bool{true, false} {
		g := new(errgroup.Group)
		g.SetLimit(t.c.cfg.Workers)
		for i, o := range objs {
			if (o.id.Kind == namespaceKind.String()) == namespaces {
				g.Go(func() error {
					out[i], errs[i] = t.change(ctx, o, res[i], owned, created[o.id.Namespace], told(o))
					return nil
				})
			}
		}
		_ = g.Wait() // each worker keeps its own error
		if namespaces {
			for i, o := range objs {
				if out[i] != nil && out[i].Action == plan.Create && o.id.Namespace == "" {
					created[o.id.Name] = true
				}
			}
		}
	}
	return out, errs
}

// joined makes one error of several: the first decides the kind, up to ten are shown.
func joined(op string, errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch {
	case len(errs) == 0:
		return nil
	case len(errs) == 1:
		return errs[0]
	}
	return fault.Wrap(fault.KindOf(errs[0]), op, fault.HintOf(errs[0]), errors.Join(errs[:min(len(errs), 10)]...))
}

// change plans one object. It returns nil when there is nothing to do. With an
// error it may return how the object differs: that is no plan.
func (t *Target) change(ctx context.Context, o *desired, res resource, owned map[plan.ObjectID]bool, absent bool, live *unstructured.Unstructured) (*change, error) {
	if absent {
		return t.creation(o, res), t.unclaimed(o.id, owned)
	}
	for range attempts(ctx) {
		c, err := t.difference(ctx, o, res, owned, live)
		if !errors.Is(err, errMoved) {
			return c, err
		}
		live = nil
	}
	return nil, t.contended(ctx, opPlan, res, o.id)
}

func (t *Target) creation(o *desired, res resource) *change {
	return &change{Change: plan.Change{ID: o.id, Action: plan.Create, After: o.after, Source: o.from.at()}, obj: o, res: res}
}

// difference plans one object that may exist, and was told, if that is not nil, a
// moment ago. An error that wraps [errMoved] says that it was written meanwhile.
func (t *Target) difference(ctx context.Context, o *desired, res resource, owned map[plan.ObjectID]bool, told *unstructured.Unstructured) (*change, error) {
	if told != nil {
		if c := t.certain(o, res, told, owned); c != nil {
			return c, nil
		}
	}
	c := t.creation(o, res)
	live, after, reason, err := t.dryRun(ctx, o, res, owned[o.id], told)
	if err != nil && (live == nil || fault.KindOf(err) != fault.Invalid) {
		return nil, err
	}
	if errors.Is(err, errImmutable) && t.replaceable(o, live) {
		return t.replacement(c, o, live)
	}
	if c.yields = t.yields(o, live); live == nil {
		if t.expired(o) {
			return nil, nil
		}
		return c, t.unclaimed(o.id, owned)
	}
	var added additions
	overridden := err != nil
	switch {
	case overridden:
		if after, c.fix, err = t.override(ctx, o, res, live, err); err != nil {
			return t.beyondRepair(c, o, live), err
		}
	case len(t.takes(live)) == 0: // an adoption takes fields over first; what is left is looked at after it
		if added, err = t.additionsIn(ctx, o, res, live, after); err != nil {
			return nil, err
		}
		c.fix, c.returning = added.ops, added.returning
	}
	was, will := t.masked(content(live.Object)), t.masked(content(after.Object))
	own, foreign := compare("", was, will, nil), added.differences(was)
	if overridden { // what goes with it is not told apart: none of it may be ignored
		removedIsForeign(own)
	}
	sameSet := t.c.fieldSet(live) == t.c.fieldSet(after)
	if !sameSet {
		if c.Stays, err = t.stays(live, after); err != nil {
			return nil, err
		}
	}
	if len(own)+len(foreign)+len(c.Stays) == 0 && t.c.entry(live) != nil {
		t.c.clean(t, o, live, sameSet, len(c.yields) == 0)
		return nil, nil
	}
	c.bare = len(own) == 0 && t.c.entry(live) != nil && sameSet
	if len(own)+len(foreign)+len(c.Stays) == 0 && reason == "" {
		reason = "the managed fields no longer say that Holdfast owns it"
	}
	ds := slices.Concat(foreign, own)
	t.c.owned(live, ds)
	if err := t.contest(o, live, ds); err != nil {
		t.update(c, live, ds)
		return c, err
	}
	t.update(c, live, ds)
	c.Reason = reason
	for _, d := range ds {
		c.pointers = append(c.pointers, d.pointer)
	}
	c.pointers = append(c.pointers, added.tests...)
	c.Before = t.before(live, c.pointers)
	t.adopting(c, live)
	return c, nil
}

// beyondRepair returns how live differs from what is declared, or nil, where the
// server refuses to bring it back: what somebody made of it is drift all the same.
func (t *Target) beyondRepair(c *change, o *desired, live *unstructured.Unstructured) *change {
	goal, _, err := t.goal(o, live)
	if err != nil {
		return nil
	}
	ds := compare("", t.masked(content(live.Object)), t.masked(content(goal)), nil)
	if len(ds) == 0 {
		return nil
	}
	removedIsForeign(ds)
	t.update(c, live, ds)
	return c
}

// update makes c the change of live in what differs.
func (t *Target) update(c *change, live *unstructured.Unstructured, ds []difference) {
	c.Action, c.UID, c.Fields = plan.Update, string(live.GetUID()), shown(ds)
	c.Actor, c.Since = t.c.actor(live, ds)
	c.Excused, c.Excuse = excuse(live)
	c.full, c.foreign = t.c.fullState(live), t.c.foreignState(c.ID, live)
	c.rv, c.version = version(live), live.GetResourceVersion()
}

// removedIsForeign calls foreign what is there and is not to be.
func removedIsForeign(ds []difference) {
	for i, d := range ds {
		ds[i].foreign = d.had && !d.has
	}
}

// dryRun reads the live object and asks the server what applying o to it would
// give. When the server calls the result invalid, live comes with the error. The
// dry run is bound to the version that was read: otherwise what a controller
// writes in between would look like a change of ours.
func (t *Target) dryRun(ctx context.Context, o *desired, res resource, owned bool, told *unstructured.Unstructured) (live, after *unstructured.Unstructured, reason string, err error) {
	for range attempts(ctx) {
		if live, told = told, nil; live == nil {
			live, err = t.lookUp(ctx, res, o.id)
		}
		if err != nil {
			return nil, nil, "", t.c.apiError(opPlan, o.id, err)
		}
		if live == nil {
			return nil, nil, "", nil
		}
		if reason, err = t.ownership(o, live, owned); err != nil {
			return nil, nil, "", err
		}
		bound := map[string]any{"resourceVersion": live.GetResourceVersion(), "uid": string(live.GetUID())}
		u, err := o.send(t.yields(o, live))
		if err != nil {
			return nil, nil, "", err
		}
		after, err = t.as.apply(ctx, res, with(u, bound), true)
		if from := t.takes(live); err == nil && len(from) > 0 {
			if reason == "" { // an adoption that was cut off
				reason = adoptedFrom(live)
			}
			after, err = t.takeOver(ctx, o, res, live, after, from)
		}
		switch {
		case err == nil:
			return live, after, reason, nil
		case o.isJob() && immutable(err) && !t.replaceable(o, live):
			return nil, nil, "", fault.New(fault.Invalid, opPlan, "give the changed Job another name, or delete the old one by hand",
				"%s: %s: a Job's template cannot be changed once it exists", o.from.at(), o.id)
		case !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !errors.Is(err, errMoved):
			return live, nil, reason, t.c.apiError(opPlan, o.id, err)
		}
	}
	return nil, nil, "", t.contended(ctx, opPlan, res, o.id)
}

// unclaimed refuses to create what another stack declares too.
func (t *Target) unclaimed(id plan.ObjectID, owned map[plan.ObjectID]bool) error {
	if other := t.c.claims.other(t.owner, id); other != "" && !owned[id] {
		return t.twoOwners(id, other)
	}
	return nil
}

// before is the digest of the live values that a change touches, masked.
func (t *Target) before(live *unstructured.Unstructured, pointers []string) digest.Digest {
	m := t.masked(content(live.Object))
	h := sha256.New()
	for _, p := range pointers {
		v, ok := valueAt(m, p)
		fmt.Fprintf(h, "%q %t %s\n", p, ok, mustJSON(v))
	}
	return digest.NewDigest(digest.SHA256, h)
}

func (t *Target) twoOwners(id plan.ObjectID, other string) error {
	if t.c.claims.isAwaited(other) {
		return fault.New(fault.Waiting, opPlan, "", "%s belongs to %s, which has not said yet whether it gives it up", id, other)
	}
	return fault.New(fault.Invalid, opPlan, "remove it from one of the two stacks",
		"%s is declared by two stacks: %s and %s", id, t.owner, other)
}

// ownership decides whether live may be changed for this stack, and says why
// where that is not plain. What the signed inventory calls ours stays ours: a
// mark that was removed or altered, cleared managed fields, or another object in
// its place are drift like any other, unless the stack of the mark declares it.
func (t *Target) ownership(o *desired, live *unstructured.Unstructured, owned bool) (reason string, err error) {
	mark := live.GetAnnotations()[OwnerAnnotation]
	entry := t.c.entry(live)
	switch {
	case mark == t.owner:
		return "", nil
	case owned && !t.c.claims.has(mark, o.id) && !t.c.claims.gaveUp(mark, o.id):
		return "", nil
	case mark != "" && owns(entry, live.Object, []string{"metadata", "annotations", OwnerAnnotation}) && entry != nil:
		if t.c.claims.gaveUp(mark, o.id) && (owned || t.c.claims.other(t.owner, o.id) == "") {
			return "moved from " + mark, nil
		}
		return "", t.twoOwners(o.id, mark)
	case owned:
		return "", nil // whoever wrote the mark, it was not Holdfast
	}
	if other := t.c.claims.other(t.owner, o.id); other != "" {
		return "", t.twoOwners(o.id, other)
	}
	if t.spec.Adopt {
		if hint, why := t.untouchable(o.id, live); why != "" {
			return "", fault.New(fault.Denied, opPlan, hint, "%s: %s cannot be adopted: %s", o.from.at(), o.id, why)
		}
		return adoptedFrom(live), nil
	}
	return "", fault.New(fault.Invalid, opPlan, "set adopt: true in the stack file to take it over, or rename the object",
		"%s: %s exists and is managed by %s", o.from.at(), o.id, managers(live))
}

// deletes plans what the stack owns and no longer declares. All three must agree
// that an object is ours: the inventory, the owner mark and the managed fields.
func (t *Target) deletes(ctx context.Context, priv *planned) ([]change, error) {
	var ids []plan.ObjectID
	for id := range priv.inv.entries {
		if _, keep := priv.wanted[id]; !keep {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, plan.ObjectID.Compare)
	out := make([]*change, len(ids))
	kept := make([]bool, len(ids)) // ours until another stack takes them
	errs := make([]error, len(ids))
	g := new(errgroup.Group)
	g.SetLimit(t.c.cfg.Workers)
	for i, id := range ids {
		g.Go(func() error {
			res, err := t.c.anyVersion(ctx, priv.inv.entries[id].gvk())
			if errors.Is(err, errNoKind) {
				return nil // its definition is gone, and all of its kind with it
			}
			var live *unstructured.Unstructured
			if err == nil {
				live, err = t.as.get(ctx, res, id)
			}
			if err != nil {
				errs[i] = t.c.apiError(opPlan, id, err)
				return nil
			}
			if live != nil && t.ours(live) {
				if live.GetDeletionTimestamp() != nil && !priv.ends {
					kept[i] = true
					t.leaves(id, priv.inv.entries[id])
					return nil
				}
				if kept[i], errs[i] = t.moving(ctx, id); kept[i] || errs[i] != nil {
					return nil
				}
				if t.c.protected(live) && !priv.ends {
					t.c.cfg.Log.InfoContext(ctx, "not pruned", slog.String("stack", t.spec.Stack), slog.String("object", id.String()),
						slog.String("why", "it is protected by "+PruneAnnotation))
					kept[i] = true
					return nil
				}
				if hint, why := t.untouchable(id, live); why != "" {
					errs[i] = fault.New(fault.Denied, opPlan, hint+", or delete the object by hand", "%s is no longer declared and cannot be pruned: %s", id, why)
					return nil
				}
				out[i] = &change{Change: plan.Change{
					ID: id, Action: plan.Delete, UID: string(live.GetUID()), Before: t.before(live, ownPointers), Reason: "no longer declared",
				}, res: res, pointers: ownPointers, stage: stage(live), wave: wave(live), propagation: t.c.propagation(live), protected: t.c.protected(live)}
			}
			return nil
		})
	}
	_ = g.Wait() // each worker keeps its own error
	if err := joined(opPlan, errs); err != nil {
		return nil, err
	}
	for i, id := range ids {
		if kept[i] {
			priv.wanted[id] = priv.inv.entries[id]
		}
	}
	var list []change
	for _, c := range slices.Backward(out) {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list, nil
}

// moving reports whether an object that the stack gave up belongs to another
// one now, or may do so: it stays in the inventory, and is pruned only if nobody
// took it over in the end. While another stack is being rendered, the answer is
// an error of kind fault.Waiting.
func (t *Target) moving(ctx context.Context, id plan.ObjectID) (bool, error) {
	why, other := "another stack declares it", t.c.claims.other(t.owner, id)
	if other == "" {
		var failed bool
		if other, failed = t.c.claims.waitsFor(t.owner); other != "" && !failed {
			return false, fault.New(fault.Waiting, opPlan, "", "%s is no longer declared, but may move to %s, which is not rendered yet", id, other)
		}
		why = "another stack, which cannot be rendered, may declare it"
	}
	if other == "" {
		return false, nil
	}
	t.c.cfg.Log.InfoContext(ctx, "not pruned", slog.String("stack", t.spec.Stack), slog.String("object", id.String()),
		slog.String("other", other), slog.String("why", why))
	return true, nil
}

// ownPointers is what a delete depends on.
var ownPointers = []string{"/metadata/annotations/holdfast.dev~1stack"}

func (t *Target) ours(live *unstructured.Unstructured) bool {
	return live.GetAnnotations()[OwnerAnnotation] == t.owner && t.c.entry(live) != nil
}
