package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
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

// definitions are the kinds that change what other objects are. A server may have them
// in another version, or not at all.
var definitions = []schema.GroupVersionKind{
	{Group: crdKind.Group, Version: "v1", Kind: crdKind.Kind},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding"},
}

const (
	// definitionPause is how long the API server gets to take up a changed definition, and
	// others to change more of them. It doubles up to definitionRest while they go on:
	// each time every object in question costs a dry run.
	definitionPause = 2 * time.Second
	definitionRest  = 10 * time.Minute
)

// watchDefinitions follows the definitions until ctx ends.
func (c *Cluster) watchDefinitions(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, gvk := range c.definitions {
		wg.Go(func() { (&definitionWatch{c: c, gvk: gvk, moved: map[string]bool{}}).run(ctx) })
	}
}

// definitionWatch follows the objects of one kind of definition.
type definitionWatch struct {
	c           *Cluster
	gvk         schema.GroupVersionKind
	generations map[string]int64 // by name; nil: not listed yet
	late        bool             // objects were looked at before there was something to compare with
	moved       map[string]bool  // names of those that changed and are not taken up
	pause       time.Duration    // before the next time
	stirred     time.Time        // the last time
}

// run lists and watches until ctx ends. What cannot be watched is made up for by asking
// about every object each time.
func (w *definitionWatch) run(ctx context.Context) {
	wait := minBackoff
	for ctx.Err() == nil {
		told, err := w.follow(ctx)
		w.late = w.late || w.generations == nil
		switch {
		case ctx.Err() != nil:
			return
		case told:
			wait = minBackoff
			continue
		case apierrors.IsForbidden(err):
			w.c.cfg.Log.WarnContext(ctx, "definitions are not watched", slog.String("kind", w.gvk.Kind),
				slog.String("hint", "allow the account to list and watch them; until then every object is looked at anew, as often"), slog.Duration("every", listEvery))
			pause(ctx, listEvery)
			w.c.stir(nil)
			continue
		case errors.Is(err, errNoKind): // this server does not have it
			pause(ctx, listEvery)
			continue
		}
		wait = min(2*wait, maxBackoff)
		w.c.cfg.Log.DebugContext(ctx, "watch of definitions interrupted", slog.String("kind", w.gvk.Kind), slog.Any("error", err))
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

// follow lists and watches once. told says that the watch told something before it ended:
// one that ends at once is refused by something.
func (w *definitionWatch) follow(ctx context.Context) (told bool, err error) {
	r, err := w.c.anyVersion(ctx, w.gvk)
	if err != nil {
		return false, err
	}
	client := w.c.meta.Resource(r.gvr())
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, err
	}
	now := make(map[string]int64, len(list.Items))
	for i := range list.Items {
		now[list.Items[i].Name] = list.Items[i].Generation
	}
	w.compare(now)
	events, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true})
	if err != nil {
		return false, err
	}
	defer events.Stop()
	var due <-chan time.Time
	for {
		if len(w.moved) > 0 && due == nil {
			due = time.After(w.next())
		}
		select {
		case e, ok := <-events.ResultChan():
			switch m, _ := e.Object.(*metav1.PartialObjectMetadata); {
			case !ok:
				return told, nil
			case e.Type == apiwatch.Error:
				return told, fmt.Errorf("watch: %w", apierrors.FromObject(e.Object))
			case m == nil || e.Type == apiwatch.Bookmark:
			case e.Type == apiwatch.Deleted:
				w.note(m.Name, 0)
				delete(w.generations, m.Name)
			default:
				w.note(m.Name, m.Generation)
			}
			told = true
		case <-due:
			due = nil
			w.takeUp(ctx)
		case <-ctx.Done():
			return told, ctx.Err()
		}
	}
}

// next returns how long what changed waits to be taken up.
func (w *definitionWatch) next() time.Duration {
	if time.Since(w.stirred) > 2*max(w.pause, definitionPause) {
		w.pause = 0
	}
	w.pause = min(max(2*w.pause, definitionPause), definitionRest)
	return w.pause
}

// compare takes in a complete list.
func (w *definitionWatch) compare(now map[string]int64) {
	if w.generations == nil {
		w.generations = now
		if w.late { // what changed before is not known
			for name := range now {
				w.moved[name] = true
			}
		}
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
		if w.gvk.GroupKind() == crdKind { // what it is called may be asked for at once
			w.c.forgetKinds(map[string]bool{groupOf(name): true})
		}
	}
	w.generations[name] = generation
}

// groupOf returns the group of what a CustomResourceDefinition of a name defines.
func groupOf(name string) string {
	_, group, _ := strings.Cut(name, ".") // "plural.group"
	return group
}

// takeUp has everything looked at anew that a changed definition may be about.
func (w *definitionWatch) takeUp(ctx context.Context) {
	var groups map[string]bool // nil: all
	if w.gvk.GroupKind() == crdKind {
		groups = map[string]bool{}
		for name := range w.moved {
			groups[groupOf(name)] = true
		}
	}
	n := w.c.stir(groups)
	w.c.cfg.Log.InfoContext(ctx, "definitions changed: what they are about is looked at anew", slog.String("kind", w.gvk.Kind),
		slog.Any("names", slices.Sorted(maps.Keys(w.moved))), slog.Int("objects", n))
	w.moved, w.stirred = map[string]bool{}, time.Now()
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

// stir has every object of some groups looked at anew, or with nil of all, and returns
// how many they are.
func (c *Cluster) stir(groups map[string]bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, tr := range c.tracked {
		if groups == nil || groups[groupKind(id.Kind).Group] {
			tr.after, tr.good = "", nil // the server may make something else of it now
			tr.t.obs.mark(id, 0, nil)
			tr.t.obs.notify()
			n++
		}
	}
	return n
}
