package kubernetes

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Who deploys much that is new asks about each object whether it exists, and hears that
// it does not. After some such answers about one kind its names are listed, and for a
// few seconds the list is asked. A create answers for itself: of an object that came
// meanwhile it makes a stale plan.

const (
	absenceMisses  = 16 // in absenceFor, before the names of a kind are listed
	absenceFor     = 3 * time.Second
	absencePages   = 10 // of names; with more than that it is cheaper to ask
	absenceRetreat = 10 * time.Minute
)

// absences says what does not exist.
type absences struct {
	mu    sync.Mutex
	kinds map[schema.GroupResource]*absence
}

// absence is what is known about one kind.
type absence struct {
	mu     sync.Mutex // held while it is listed
	misses int        // since begun
	begun  time.Time
	listed time.Time // zero: names say nothing
	used   time.Time // when it saved a request
	names  map[[2]string]bool
	never  time.Time // until when it is not tried: there are too many, or it may not be listed
}

func (a *absences) of(r resource) *absence {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kinds == nil {
		a.kinds = map[schema.GroupResource]*absence{}
	}
	key := r.gvr().GroupResource()
	if a.kinds[key] == nil {
		a.kinds[key] = &absence{}
	}
	return a.kinds[key]
}

// lookUp returns the live object, or nil when there is none, as far as that has to be
// known before it is created.
func (t *Target) lookUp(ctx context.Context, r resource, id plan.ObjectID) (*unstructured.Unstructured, error) {
	if t.as != t.c.self { // what an account may not see it is not told of
		return t.as.get(ctx, r, id)
	}
	a := t.c.absences.of(r)
	if !t.c.heardOf(id) && a.lacks(ctx, t.c, r, id) {
		return nil, nil
	}
	live, err := t.as.get(ctx, r, id)
	if err == nil && live == nil {
		a.miss()
	}
	return live, err
}

// heardOf reports whether anything is known about an object.
func (c *Cluster) heardOf(id plan.ObjectID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tracked[id] != nil {
		return true
	}
	for w := range c.covering(id) {
		if _, seen := w.seen[id]; seen {
			return true
		}
	}
	return false
}

func (a *absence) miss() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.begun) > absenceFor {
		a.begun, a.misses = time.Now(), 0
	}
	a.misses++
}

// appeared notes that an object exists.
func (a *absence) appeared(id plan.ObjectID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names != nil {
		a.names[[2]string{id.Namespace, id.Name}] = true
	}
}

// lacks reports whether an object was not there a moment ago.
func (a *absence) lacks(ctx context.Context, c *Cluster, r resource, id plan.ObjectID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.listed) > absenceFor {
		a.listed, a.names = time.Time{}, nil
		much := a.misses >= absenceMisses && now.Sub(a.begun) <= absenceFor || now.Sub(a.used) <= absenceFor
		if !much || now.Before(a.never) {
			return false
		}
		if a.names = c.names(ctx, r); a.names == nil {
			a.never = now.Add(absenceRetreat)
			return false
		}
		a.listed = now
	}
	if a.names[[2]string{id.Namespace, id.Name}] {
		return false
	}
	a.used = now
	return true
}

// names lists what exists of a kind, as namespace and name; nil if that cannot be had,
// or not at a reasonable price.
func (c *Cluster) names(ctx context.Context, r resource) map[[2]string]bool {
	out := map[[2]string]bool{}
	o := metav1.ListOptions{Limit: listPage}
	for range absencePages {
		page, err := c.meta.Resource(r.gvr()).List(ctx, o)
		if err != nil {
			return nil
		}
		for i := range page.Items {
			out[[2]string{page.Items[i].Namespace, page.Items[i].Name}] = true
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return out
		}
		if left := page.RemainingItemCount; left != nil && *left > listPage*absencePages {
			return nil
		}
	}
	return nil
}
