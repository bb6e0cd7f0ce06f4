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
	inv     *inventory // nil: a plan of a few objects
	wanted  map[plan.ObjectID]entry
}

// change is what the plan knows about one object beyond what a judge sees.
type change struct {
	plan.Change
	obj      *desired // nil: a delete
	res      resource
	pointers []string // the fields that it touches
	yields   []yielded
	full     [32]byte // of the live object
	rv       uint64
}

// Plan implements [targets.Target]. Objects that do not exist are planned
// without a request beyond the look-up; each that exists costs one dry run.
func (t *Target) Plan(ctx context.Context, r targets.Rendered, only ...plan.ObjectID) (plan.Plan, error) {
	p, err := t.plan(ctx, r, only)
	return p, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) plan(ctx context.Context, r targets.Rendered, only []plan.ObjectID) (plan.Plan, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return plan.Plan{}, err
	}
	priv := &planned{owner: t.owner, ren: ren}
	var owned map[plan.ObjectID]bool
	if len(only) == 0 {
		if priv.inv, err = t.readInventory(ctx); err != nil {
			return plan.Plan{}, err
		}
	}
	if owned, err = t.ownedNow(ctx); err != nil {
		return plan.Plan{}, err
	}
	objs, res, err := t.placeAll(ctx, ren, only)
	if err != nil {
		return plan.Plan{}, err
	}
	priv.wanted = make(map[plan.ObjectID]entry, len(objs))
	for _, o := range objs {
		priv.wanted[o.id] = o.entry()
	}
	changes, err := t.changes(ctx, objs, res, owned)
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
		Rendered: r.Digest, Keeps: len(priv.ren.objects), Private: priv, Payload: priv.payload(),
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
func (priv *planned) payload() digest.Digest {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", priv.owner)
	for _, c := range priv.changes {
		fmt.Fprintf(h, "%s %s %s %s %q\n", c.Action, c.ID, c.UID, c.Before, c.pointers)
		if c.obj != nil {
			fmt.Fprintf(h, "%s %s\n", c.obj.id, digest.FromBytes(mustJSON(c.obj.masked)))
			for _, y := range c.yields {
				fmt.Fprintf(h, "yields %q\n", y.pointer())
			}
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

// changes plans every object.
func (t *Target) changes(ctx context.Context, objs []*desired, res []resource, owned map[plan.ObjectID]bool) ([]change, error) {
	out, errs := t.each(ctx, objs, res, owned)
	if err := joined(opPlan, errs); err != nil {
		return nil, err
	}
	var list []change
	for _, c := range out {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list, nil
}

// each plans every object by itself, in parallel. Namespaces come first: in one
// that is about to be created nothing needs to be looked up.
func (t *Target) each(ctx context.Context, objs []*desired, res []resource, owned map[plan.ObjectID]bool) ([]*change, []error) {
	out := make([]*change, len(objs))
	errs := make([]error, len(objs))
	created := map[string]bool{}
	for _, namespaces := range []bool{true, false} {
		g := new(errgroup.Group)
		g.SetLimit(t.c.cfg.Workers)
		for i, o := range objs {
			if (o.id.Kind == namespaceKind.String()) == namespaces {
				g.Go(func() error {
					out[i], errs[i] = t.change(ctx, o, res[i], owned, created[o.id.Namespace])
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

// change plans one object. It returns nil when there is nothing to do.
func (t *Target) change(ctx context.Context, o *desired, res resource, owned map[plan.ObjectID]bool, absent bool) (*change, error) {
	c := &change{Change: plan.Change{ID: o.id, Action: plan.Create, After: o.after, Source: o.from.at()}, obj: o, res: res}
	if absent {
		return c, t.unclaimed(o.id, owned)
	}
	live, after, reason, err := t.dryRun(ctx, o, res, owned[o.id])
	if err != nil {
		return nil, err
	}
	c.yields = t.yields(o, live)
	if live == nil {
		return c, t.unclaimed(o.id, owned)
	}
	was, will := t.masked(content(live.Object)), t.masked(content(after.Object))
	ds := compare("", was, will, nil)
	if len(ds) == 0 && t.c.entry(live) != nil {
		t.c.clean(t, o.id, live, t.c.fieldSet(live) == t.c.fieldSet(after))
		return nil, nil
	}
	if len(ds) == 0 && reason == "" {
		reason = "the managed fields no longer say that Holdfast owns it"
	}
	c.Action, c.UID, c.Reason, c.Fields = plan.Update, string(live.GetUID()), reason, shown(ds)
	for _, d := range ds {
		c.pointers = append(c.pointers, d.pointer)
	}
	c.Before = t.before(live, c.pointers)
	c.Actor, c.Since = t.c.actor(live, ds)
	c.full, c.rv = t.c.fullState(live), version(live)
	return c, nil
}

// dryRun reads the live object and asks the server what applying o to it would
// give. The dry run is bound to the version that was read: otherwise what a
// controller writes in between would look like a change of ours.
func (t *Target) dryRun(ctx context.Context, o *desired, res resource, owned bool) (live, after *unstructured.Unstructured, reason string, err error) {
	for range maxConflicts {
		if live, err = t.c.get(ctx, res, o.id); err != nil {
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
		after, err = t.c.apply(ctx, res, with(u, bound), true)
		switch {
		case err == nil:
			return live, after, reason, nil
		case !apierrors.IsConflict(err) && !apierrors.IsNotFound(err):
			return nil, nil, "", t.c.apiError(opPlan, o.id, err)
		}
	}
	return nil, nil, "", fault.New(fault.Transient, opPlan, "", "%s: somebody else writes it all the time", o.id)
}

// unclaimed refuses to create what another stack declares too.
func (t *Target) unclaimed(id plan.ObjectID, owned map[plan.ObjectID]bool) error {
	if other := t.c.otherClaim(t.owner, id); other != "" && !owned[id] {
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
	case owned && !t.c.hasClaim(mark, o.id) && !t.c.gaveUp(mark, o.id):
		return "", nil
	case mark != "" && owns(entry, live.Object, []string{"metadata", "annotations", OwnerAnnotation}) && entry != nil:
		if t.c.gaveUp(mark, o.id) && (owned || t.c.otherClaim(t.owner, o.id) == "") {
			return "moved from " + mark, nil
		}
		return "", t.twoOwners(o.id, mark)
	case owned:
		return "", nil // whoever wrote the mark, it was not Holdfast
	}
	if other := t.c.otherClaim(t.owner, o.id); other != "" {
		return "", t.twoOwners(o.id, other)
	}
	if t.spec.Adopt {
		return "adopted from " + managers(live), nil
	}
	return "", fault.New(fault.Invalid, opPlan, "set adopt: true in the stack file to take it over, or rename the object",
		"%s: %s exists and is managed by %s", o.from.at(), o.id, managers(live))
}

// deletes plans what the stack owns and no longer declares. All three must agree
// that an object is ours: the inventory, the owner mark and the managed fields.
func (t *Target) deletes(ctx context.Context, priv *planned) ([]change, error) {
	var ids []plan.ObjectID
	for id := range priv.inv.entries {
		if _, keep := priv.wanted[id]; keep {
			continue
		}
		if other := t.c.otherClaim(t.owner, id); other != "" {
			// A move: the other stack takes it over, whoever is first.
			t.c.cfg.Log.InfoContext(ctx, "not pruned, another stack declares it", slog.String("stack", t.spec.Stack),
				slog.String("object", id.String()), slog.String("other", other))
			continue
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, plan.ObjectID.Compare)
	out := make([]*change, len(ids))
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
				live, err = t.c.get(ctx, res, id)
			}
			if err != nil {
				errs[i] = t.c.apiError(opPlan, id, err)
				return nil
			}
			if live != nil && t.ours(live) && live.GetDeletionTimestamp() == nil {
				if hint, why := t.outside(id, id.Namespace == ""); why != "" {
					errs[i] = fault.New(fault.Denied, opPlan, hint+", or delete the object by hand", "%s is no longer declared and cannot be pruned: %s", id, why)
					return nil
				}
				out[i] = &change{Change: plan.Change{
					ID: id, Action: plan.Delete, UID: string(live.GetUID()), Before: t.before(live, ownPointers), Reason: "no longer declared",
				}, res: res, pointers: ownPointers}
			}
			return nil
		})
	}
	_ = g.Wait() // each worker keeps its own error
	if err := joined(opPlan, errs); err != nil {
		return nil, err
	}
	var list []change
	for _, c := range slices.Backward(out) {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list, nil
}

// ownPointers is what a delete depends on.
var ownPointers = []string{"/metadata/annotations/holdfast.dev~1stack"}

func (t *Target) ours(live *unstructured.Unstructured) bool {
	return live.GetAnnotations()[OwnerAnnotation] == t.owner && t.c.entry(live) != nil
}
