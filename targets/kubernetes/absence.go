package kubernetes

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Who deploys much that is new asks about each object whether it exists, and hears that
// it does not. After some such answers about one kind its names are listed, and for a
// few seconds the list is asked, for longer if it took long. A create answers for itself:
// of an object that came meanwhile it makes a stale plan.

const (
	absenceMisses  = 16 // in missesFor, before the names of a kind are listed
	missesFor      = 3 * time.Second
	absenceFor     = 15 * time.Second // that names count, and are listed again if they were of use
	absenceTimes   = 50               // they count so many times as long as it took to list them, if that is longer
	absencePages   = 60               // of names; where there are more it is asked
	absenceRetreat = 10 * time.Minute
	absenceWait    = time.Second
)

// absences says what does not exist.
type absences struct {
	mu    sync.Mutex
	kinds map[schema.GroupResource]*absence
}

// absence is what is known about one kind.
type absence struct {
	mu      sync.Mutex
	listing chan struct{} // closed when whoever lists it is done; nil: nobody does
	misses  int           // since begun
	begun   time.Time
	listed  time.Time     // zero: names say nothing
	lasts   time.Duration // for how long they count since then
	used    time.Time     // when it saved a request
	names   map[[2]string]bool
	never   time.Time // until when it is not tried: there are too many, or it may not be listed
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
	if time.Since(a.begun) > missesFor {
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

// lacks reports whether an object was not there a moment ago. Whoever finds the names too
// old lists them, and others wait for that, for as long as it may take to ask themselves.
func (a *absence) lacks(ctx context.Context, c *Cluster, r resource, id plan.ObjectID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.listed) > a.lasts && !a.renew(ctx, c, r) {
		return false
	}
	if a.names == nil || a.names[[2]string{id.Namespace, id.Name}] {
		return false
	}
	a.used = time.Now()
	return true
}

// renew has the names listed, or waits for who does, and reports whether they are fresh.
// It is called with mu held, and gives it back meanwhile.
func (a *absence) renew(ctx context.Context, c *Cluster, r resource) bool {
	now := time.Now()
	if done := a.listing; done != nil {
		a.mu.Unlock()
		defer a.mu.Lock()
		timer := time.NewTimer(absenceWait)
		defer timer.Stop()
		select {
		case <-done:
			return true
		case <-timer.C:
		case <-ctx.Done():
		}
		return false
	}
	a.names = nil
	much := a.misses >= absenceMisses && now.Sub(a.begun) <= missesFor || now.Sub(a.used) <= max(a.lasts, absenceFor)
	if !much || now.Before(a.never) {
		return false
	}
	done := make(chan struct{})
	a.listing = done
	a.mu.Unlock()
	names, err := c.names(ctx, r)
	a.mu.Lock()
	a.listing = nil
	close(done)
	switch {
	case errors.Is(err, errTooMany), apierrors.IsForbidden(err):
		a.never = now.Add(absenceRetreat)
	case err == nil:
		a.listed, a.names, a.lasts = now, names, max(absenceFor, absenceTimes*time.Since(now))
		time.AfterFunc(2*a.lasts, a.free)
	}
	return err == nil
}

// free drops names that are too old to be of use.
func (a *absence) free() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.listed) > a.lasts {
		a.names = nil
	}
}

var errTooMany = errors.New("too many to list")

// names lists what exists of a kind, as namespace and name.
func (c *Cluster) names(ctx context.Context, r resource) (map[[2]string]bool, error) {
	out := map[[2]string]bool{}
	o := metav1.ListOptions{Limit: listPage}
	for range absencePages {
		page, err := c.meta.Resource(r.gvr()).List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			out[[2]string{page.Items[i].Namespace, page.Items[i].Name}] = true
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return out, nil
		}
		if left := page.RemainingItemCount; left != nil && *left > listPage*absencePages {
			return nil, errTooMany
		}
	}
	return nil, errTooMany
}
