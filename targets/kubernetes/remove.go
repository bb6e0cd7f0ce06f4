package kubernetes

import (
	"context"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// The end of a stack. What it owns by the three-way rule (inventory, owner mark,
// managed fields) is deleted, or let go of: then the owner mark and the managed
// label go, and every field keeps its value and its place in the managed fields.
// The inventory goes last, so that a removal that was cut off is simply planned
// again.
//
// What another stack declares is never removed. The removal waits until that
// stack has taken it over, since without an inventory nobody could tell later
// whose it was.

const opRemove = "targets/kubernetes.Removal"

var _ targets.Remover = (*Target)(nil)

// Removal implements [targets.Remover]. It gives up the stack's claims, so that
// other stacks may take over its objects. While another stack declares one of
// them and does not own it yet, or may still declare it, the error is of kind
// fault.Waiting; an object that the stack may not touch any more is fault.Denied.
func (t *Target) Removal(ctx context.Context, r targets.Rendered, orphan bool) (plan.Plan, error) {
	p, err := t.removal(ctx, r, orphan)
	return p, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) removal(ctx context.Context, r targets.Rendered, orphan bool) (plan.Plan, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return plan.Plan{}, err
	}
	t.Renounce()
	priv := &planned{owner: t.owner, ren: ren, ends: true, wanted: map[plan.ObjectID]entry{}}
	if priv.inv, err = t.readInventory(ctx); err != nil {
		return plan.Plan{}, err
	}
	if priv.changes, err = t.deletes(ctx, priv); err != nil {
		return plan.Plan{}, err
	}
	if len(priv.wanted) > 0 {
		return plan.Plan{}, t.stillMoving(priv)
	}
	for i := range priv.changes {
		c := &priv.changes[i]
		c.Reason = ending(c, orphan)
		switch {
		case c.protected:
			c.Action, c.Reason = plan.Release, "the stack ends; it is protected by "+PruneAnnotation+" and let go of"
		case orphan:
			c.Action = plan.Release
		}
	}
	slices.SortStableFunc(priv.changes, func(a, b change) int { return b.stage - a.stage })
	p := t.assemble(r, priv)
	p.Keeps, p.Documents = 0, r.Documents
	return p, nil
}

// ending says why c is made, and what goes with it.
func ending(c *change, orphan bool) string {
	switch {
	case orphan:
		return "the stack ends and lets go of it"
	case c.ID.Kind == namespaceKind.String():
		return "the stack ends; everything in the namespace goes with it, whoever made it"
	case c.ID.Kind == crdKind.String():
		return "the stack ends; every object of the kind goes with it, whoever made it"
	}
	return "the stack ends"
}

// stillMoving is the error of a removal of what another stack has yet to take over.
func (t *Target) stillMoving(priv *planned) error {
	id := slices.SortedFunc(maps.Keys(priv.wanted), plan.ObjectID.Compare)[0]
	other := t.c.claims.other(t.owner, id)
	if other == "" {
		other, _ = t.c.claims.waitsFor(t.owner)
		return fault.New(fault.Waiting, opRemove, "correct "+other+" first", "%s may move to %s, which cannot be rendered", id, other)
	}
	return fault.New(fault.Waiting, opRemove, "get "+other+" applied first", "%s moves to %s, which has not taken it over yet", id, other)
}

// markPointers are all that a release takes away.
var markPointers = []string{
	"/metadata/annotations/holdfast.dev~1stack",
	"/metadata/labels/holdfast.dev~1managed",
}

// release takes our marks off an object that is as it was judged, and leaves
// everything else as it is.
func (t *Target) release(ctx context.Context, c *change) error {
	for range attempts(ctx) {
		live, err := t.as.get(ctx, c.res, c.ID)
		if err != nil {
			return t.c.apiError(opApply, c.ID, err)
		}
		if err := t.asJudged(c, live); err != nil {
			return err
		}
		_, err = t.as.patch(ctx, c.res, c.ID, c.UID, live.GetResourceVersion(), unmark(live), false)
		switch {
		case err == nil:
			t.c.untrack(t, c.ID)
			return nil
		case !moved(err):
			return t.c.apiError(opApply, c.ID, err)
		}
	}
	return t.contended(ctx, opApply, c.res, c.ID)
}

// unmark returns the operations that take our marks off live.
func unmark(live *unstructured.Unstructured) []operation {
	var ops []operation
	for _, p := range markPointers {
		if _, ok := valueAt(live.Object, p); ok {
			ops = append(ops, operation{Op: "remove", Path: p})
		}
	}
	return ops
}

// removeInventory ends what the cluster remembers of the stack. An inventory of
// several parts is shrunk first, so that no crash leaves a gap in it.
func (t *Target) removeInventory(ctx context.Context, inv *inventory) error {
	if len(inv.live) == 0 {
		return nil
	}
	if err := t.writeInventory(ctx, inv, map[plan.ObjectID]entry{}); err != nil {
		return err
	}
	cm := inv.live[0]
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: cm.GetNamespace(), Name: cm.GetName()}
	if err := t.c.self.remove(ctx, configMaps, id, string(cm.GetUID()), metav1.DeletePropagationBackground); err != nil && !apierrors.IsNotFound(err) {
		return fault.New(fault.Transient, opInventory, "", "removing the inventory: %s", t.c.cfg.Masker.Scrub(err.Error()))
	}
	return nil
}
