package kubernetes

import (
	"context"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const opUnmanaged = "targets/kubernetes.Unmanaged"

// passing are resources whose objects come and go by themselves in every namespace.
var passing = map[schema.GroupResource]bool{
	{Resource: "events"}: true, {Group: "events.k8s.io", Resource: "events"}: true,
	{Resource: "endpoints"}: true, {Group: "discovery.k8s.io", Resource: "endpointslices"}: true,
	{Group: "coordination.k8s.io", Resource: "leases"}: true, {Group: "metrics.k8s.io", Resource: "pods"}: true,
}

// Unmanaged implements [targets.Surveyor]: what stands in the namespaces of the stack and
// no stack declares. What a controller made of another object, and what Kubernetes puts
// into every namespace, is left out. It lists as the daemon, also for a stack that is
// impersonated: the answer is for operators.
func (t *Target) Unmanaged(ctx context.Context, r targets.Rendered, done map[string]bool) (found []targets.Finding, unseen []string, err error) {
	if _, err := t.rendering(r); err != nil {
		return nil, nil, fault.WithStack(t.spec.Stack, err)
	}
	if _, err := t.ownedNow(ctx); err != nil {
		return nil, nil, fault.WithStack(t.spec.Stack, err)
	}
	if other, _ := t.c.claims.waitsFor(""); other != "" {
		return nil, nil, fault.WithStack(t.spec.Stack, fault.New(fault.Waiting, opUnmanaged, "", "%s has not said yet what it declares", other))
	}
	namespaces := slices.DeleteFunc(t.namespaces(), func(n string) bool { return done[n] })
	lists, err := discovery.ServerPreferredNamespacedResources(t.c.disco)
	groups, partial := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partial {
		return nil, nil, fault.WithStack(t.spec.Stack, fault.New(fault.Transient, opUnmanaged, "", "discovery: %w", err))
	}
	for gv := range groups { // an aggregated API that is down takes only its own kinds away
		unseen = append(unseen, gv.String())
	}
	var mu sync.Mutex
	g := new(errgroup.Group)
	g.SetLimit(t.c.cfg.Workers)
	for _, list := range lists {
		version, verr := schema.ParseGroupVersion(list.GroupVersion)
		for _, kind := range list.APIResources {
			res := resource{name: kind.Name, version: version, namespaced: true}
			if verr != nil || strings.Contains(kind.Name, "/") || !slices.Contains(kind.Verbs, "list") || passing[res.gvr().GroupResource()] {
				continue
			}
			for _, namespace := range namespaces {
				g.Go(func() error {
					objects, err := t.strangers(ctx, res, kind.Kind, namespace)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case apierrors.IsForbidden(err):
						unseen = append(unseen, res.gvr().GroupResource().String()+" in "+namespace)
					case err != nil && !apierrors.IsNotFound(err) && !apierrors.IsMethodNotSupported(err):
						return fault.New(fault.Transient, opUnmanaged, "", "%s: %s", res.name, t.c.cfg.Masker.Scrub(err.Error()))
					}
					found = append(found, objects...)
					return nil
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return nil, nil, fault.WithStack(t.spec.Stack, err)
	}
	for _, namespace := range namespaces {
		done[namespace] = true
	}
	slices.SortFunc(found, func(a, b targets.Finding) int { return a.ID.Compare(b.ID) })
	slices.Sort(unseen)
	return found, unseen, nil
}

// namespaces returns where the stack has something.
func (t *Target) namespaces() []string {
	t.ownedMu.Lock()
	defer t.ownedMu.Unlock()
	out := []string{t.spec.Namespace}
	for id := range t.owned {
		if id.Namespace != "" {
			out = append(out, id.Namespace)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// strangers lists what nobody declares of one kind in a namespace.
func (t *Target) strangers(ctx context.Context, r resource, kind, namespace string) ([]targets.Finding, error) {
	var out []targets.Finding
	o := metav1.ListOptions{Limit: listPage}
	for {
		page, err := t.c.meta.Resource(r.gvr()).Namespace(namespace).List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			m := &page.Items[i]
			id := plan.ObjectID{Kind: schema.GroupKind{Group: r.version.Group, Kind: kind}.String(), Namespace: m.Namespace, Name: m.Name}
			if t.c.claims.other("", id) != "" || ofItself(id, m) { // whatever its marks say
				continue
			}
			u := &unstructured.Unstructured{Object: map[string]any{}}
			u.SetManagedFields(m.ManagedFields)
			out = append(out, targets.Finding{
				Stack: t.spec.Stack, ID: id, Class: targets.Unmanaged, Actor: managers(u), Since: m.CreationTimestamp.Time,
			})
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return out, nil
		}
	}
}

// ofItself reports whether a controller made the object of another one, or Kubernetes
// puts it into every namespace.
func ofItself(id plan.ObjectID, m *metav1.PartialObjectMetadata) bool {
	switch {
	case metav1.GetControllerOfNoCopy(m) != nil:
		return true
	case id.Kind == "ConfigMap" && id.Name == "kube-root-ca.crt", id.Kind == "ServiceAccount" && id.Name == "default":
		return true
	}
	return id.Kind == "Secret" && m.Annotations["kubernetes.io/service-account.name"] != ""
}
