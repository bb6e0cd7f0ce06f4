package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// What goes, goes slowly: finalizers and dependents may hold it. A replacement, and
// the end of a stack, wait for it; a prune does not, but what is on its way out stays
// in the inventory and keeps the stack from being ready.

// goneTimeout is how long a request waits for an object that it deleted.
const goneTimeout = 30 * time.Second

// replaceable reports whether the stack may delete live and make it again. What is
// protected is not, nor what is on its way out for another reason than ours.
func (t *Target) replaceable(o *desired, live *unstructured.Unstructured) bool {
	return live != nil && slices.Contains(t.spec.Replace, o.id.Kind) && !t.c.protected(live)
}

// replacement makes c the change that deletes live and creates o, because of a field
// that cannot be changed in place. Nothing is asked of the server: with the old object
// there it could not say whether the new one is valid.
func (t *Target) replacement(c *change, o *desired, live *unstructured.Unstructured) (*change, error) {
	goal, _, err := t.goal(o, live)
	if err != nil {
		return nil, err
	}
	ds := compare("", t.masked(content(live.Object)), t.masked(content(goal)), nil)
	t.c.owned(live, ds)
	if err := t.contest(o, live, ds); err != nil {
		return c, err
	}
	t.update(c, live, ds)
	for _, d := range ds {
		c.pointers = append(c.pointers, d.pointer)
	}
	c.yields = nil // a new object has no live values
	c.Action, c.Reason = plan.Replace, "a field that changes is immutable: it is deleted and made again"
	c.Before, c.propagation = t.before(live, c.pointers), t.c.propagation(live)
	return c, nil
}

// replace deletes the object that was judged, waits until it is gone, and creates the
// new one. After a crash in between the object is missing, and is created.
func (w *writer) replace(ctx context.Context, c *change) error {
	t := w.t
	if err := t.as.remove(ctx, c.res, c.ID, c.UID, c.propagation); err != nil && !apierrors.IsNotFound(err) {
		if apierrors.IsConflict(err) {
			return stale(c.ID, "it was replaced by another object of the same name")
		}
		return t.c.apiError(opApply, c.ID, err)
	}
	t.c.untrack(t, c.ID)
	if err := t.gone(ctx, c); err != nil {
		return err
	}
	create := *c
	create.Action = plan.Create
	live, _, err := t.send(ctx, &create, "")
	if err != nil {
		return w.notCreated(ctx, c, err)
	}
	return t.settle(c, live)
}

// gone waits until the object with c's uid does not exist any more.
func (t *Target) gone(ctx context.Context, c *change) error {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	client := t.as.client(c.res, c.ID.Namespace)
	var last *unstructured.Unstructured
	for {
		live, err := t.as.get(ctx, c.res, c.ID)
		switch {
		case err != nil && ctx.Err() == nil:
			return t.c.apiError(opApply, c.ID, err)
		case err != nil:
			return leaving(opApply, c.ID, last)
		case live == nil || string(live.GetUID()) != c.UID:
			return nil
		}
		last = live
		events, err := client.Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", c.ID.Name).String(), ResourceVersion: live.GetResourceVersion(),
		})
		if err != nil {
			if ctx.Err() != nil {
				return leaving(opApply, c.ID, last)
			}
			return t.c.apiError(opApply, c.ID, err)
		}
		select {
		case <-events.ResultChan(): // whatever it is, it is looked at anew
		case <-ctx.Done():
		}
		events.Stop()
	}
}

// leaving says what live, which is being deleted, waits for.
func leaving(op string, id plan.ObjectID, live *unstructured.Unstructured) error {
	if live == nil {
		return fault.New(fault.Waiting, op, "", "%s is being deleted", id)
	}
	why := "by its dependents, or until it has ended gracefully"
	if f := live.GetFinalizers(); len(f) > 0 {
		why = "finalizers " + strings.Join(f, ", ")
	}
	conditions, _, _ := unstructured.NestedSlice(live.Object, "status", "conditions")
	for _, e := range conditions { // a Namespace says what is left in it
		if m, _ := e.(map[string]any); m["status"] == "True" && m["message"] != nil {
			why += fmt.Sprintf("; %v", m["message"])
		}
	}
	return fault.New(fault.Waiting, op, "find out why what should clean up does not; removing a finalizer by hand leaves behind what it stands for",
		"%s is being deleted and held: %s", id, why)
}

// leaves notes that an object that is not declared any more is on its way out.
func (t *Target) leaves(id plan.ObjectID, e entry) {
	t.ownedMu.Lock()
	defer t.ownedMu.Unlock()
	if t.leaving == nil {
		t.leaving = map[plan.ObjectID]entry{}
	}
	t.leaving[id] = e
}

// left returns nil when everything that the stack gave up is gone.
func (t *Target) left(ctx context.Context) error {
	t.ownedMu.Lock()
	going := maps.Clone(t.leaving)
	t.ownedMu.Unlock()
	var errs []error
	for _, id := range slices.SortedFunc(maps.Keys(going), plan.ObjectID.Compare) {
		res, err := t.c.anyVersion(ctx, going[id].gvk())
		var live *unstructured.Unstructured
		if err == nil {
			live, err = t.c.self.get(ctx, res, id)
		}
		switch {
		case err != nil && !errors.Is(err, errNoKind):
			errs = append(errs, t.c.apiError(opHealth, id, err))
		case live != nil && live.GetDeletionTimestamp() != nil:
			errs = append(errs, leaving(opHealth, id, live))
		default:
			t.ownedMu.Lock()
			delete(t.leaving, id)
			t.ownedMu.Unlock()
		}
	}
	return joined(opHealth, errs)
}
