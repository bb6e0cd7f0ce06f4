package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
)

// What an apply of an unchanged object leads to, and which of its fields are ours then,
// can change without a word about the object: by a definition of its kind (schema,
// defaults, storage version), and by webhooks that mutate it. So these are watched too,
// their metadata alone, and what they are about is looked at anew when one changes.

// definitions are the kinds that change what other objects are.
var definitions = []schema.GroupVersionKind{
	{Group: crdKind.Group, Version: "v1", Kind: crdKind.Kind},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding"},
}

// definitionPause is how long the API server gets to take up a changed definition, and
// others to change more of them.
const definitionPause = 2 * time.Second

// watchDefinitions follows the definitions until ctx ends.
func (c *Cluster) watchDefinitions(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, gvk := range c.definitions {
		wg.Go(func() { (&definitionWatch{c: c, gvk: gvk}).run(ctx) })
	}
}

// definitionWatch follows the objects of one kind of definition.
type definitionWatch struct {
	c           *Cluster
	gvk         schema.GroupVersionKind
	generations map[string]int64 // by name; nil: not listed yet
	moved       map[string]bool  // names of those that changed and are not taken up
}

// run lists and watches until ctx ends. What cannot be watched is made up for by asking
// about every object each time.
func (w *definitionWatch) run(ctx context.Context) {
	wait := minBackoff
	for ctx.Err() == nil {
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait = minBackoff
			continue
		case apierrors.IsForbidden(err):
			w.c.cfg.Log.WarnContext(ctx, "definitions are not watched", slog.String("kind", w.gvk.Kind),
				slog.String("hint", "allow the account to list and watch them; until then every object is looked at anew, as often"), slog.Duration("every", listEvery))
			pause(ctx, listEvery)
			w.c.stir(nil)
			continue
		case apierrors.IsNotFound(err): // this server does not have the kind
			pause(ctx, listEvery)
			continue
		}
		wait = min(2*wait, maxBackoff)
		w.c.cfg.Log.DebugContext(ctx, "watch of definitions interrupted", slog.String("kind", w.gvk.Kind), slog.String("error", w.c.cfg.Masker.Scrub(err.Error())))
		pause(ctx, wait/2+rand.N(wait/2)) //nolint:gosec // jitter needs no secrecy
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// follow lists and watches once. It returns nil when the watch ended as watches do.
func (w *definitionWatch) follow(ctx context.Context) error {
	resource, err := w.resource()
	if err != nil {
		return err
	}
	client := w.c.meta.Resource(resource)
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	now := make(map[string]int64, len(list.Items))
	for i := range list.Items {
		now[list.Items[i].Name] = list.Items[i].Generation
	}
	w.compare(now)
	events, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true})
	if err != nil {
		return err
	}
	defer events.Stop()
	var due <-chan time.Time
	for {
		if len(w.moved) > 0 && due == nil {
			due = time.After(definitionPause)
		}
		select {
		case e, ok := <-events.ResultChan():
			switch m, _ := e.Object.(*metav1.PartialObjectMetadata); {
			case !ok:
				return nil
			case e.Type == apiwatch.Error:
				return fmt.Errorf("watch: %w", apierrors.FromObject(e.Object))
			case m == nil || e.Type == apiwatch.Bookmark:
			case e.Type == apiwatch.Deleted:
				w.note(m.Name, 0)
				delete(w.generations, m.Name)
			default:
				w.note(m.Name, m.Generation)
			}
		case <-due:
			due = nil
			w.takeUp()
		}
	}
}

// resource asks whether the server has the kind.
func (w *definitionWatch) resource() (schema.GroupVersionResource, error) {
	list, err := w.c.disco.ServerResourcesForGroupVersion(w.gvk.GroupVersion().String())
	if err != nil {
		return schema.GroupVersionResource{}, err
	}
	for _, r := range list.APIResources {
		if r.Kind == w.gvk.Kind && !strings.Contains(r.Name, "/") {
			return w.gvk.GroupVersion().WithResource(r.Name), nil
		}
	}
	return schema.GroupVersionResource{}, apierrors.NewNotFound(w.gvk.GroupVersion().WithResource(w.gvk.Kind).GroupResource(), "")
}

// compare takes in a complete list.
func (w *definitionWatch) compare(now map[string]int64) {
	if w.generations == nil { // nothing rests on what was there before
		w.generations, w.moved = now, map[string]bool{}
		return
	}
	for name := range w.generations {
		if _, there := now[name]; !there {
			w.moved[name] = true
		}
	}
	for name, g := range now {
		w.note(name, g)
	}
	w.generations = now
}

// note takes in that a definition has a generation; its status may change without.
func (w *definitionWatch) note(name string, generation int64) {
	if old, known := w.generations[name]; !known || old != generation {
		w.moved[name] = true
	}
	w.generations[name] = generation
}

// takeUp has everything looked at anew that a changed definition may be about.
func (w *definitionWatch) takeUp() {
	if len(w.moved) == 0 {
		return
	}
	if w.gvk.Kind != crdKind.Kind {
		w.c.stir(nil)
	} else {
		groups := map[string]bool{}
		for name := range w.moved { // "plural.group"
			_, group, _ := strings.Cut(name, ".")
			groups[group] = true
		}
		w.c.forgetKinds(groups)
		w.c.stir(groups)
	}
	w.moved = map[string]bool{}
}

// forgetKinds has the server asked anew what the kinds of some groups are called.
func (c *Cluster) forgetKinds(groups map[string]bool) {
	c.resourcesMu.Lock()
	defer c.resourcesMu.Unlock()
	for gvk := range c.resources {
		if groups[gvk.Group] {
			delete(c.resources, gvk)
		}
	}
}

// stir has every object of some groups looked at anew, or with nil of all.
func (c *Cluster) stir(groups map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, tr := range c.tracked {
		if groups == nil || groups[groupKind(id.Kind).Group] {
			tr.t.obs.mark(id, 0, nil)
			tr.t.obs.notify()
		}
	}
}
