package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// resource is how the API server calls a kind.
type resource struct {
	name       string // plural: "deployments"
	version    schema.GroupVersion
	namespaced bool
}

func (r resource) gvr() schema.GroupVersionResource { return r.version.WithResource(r.name) }

// errImmutable is wrapped when a field of an object cannot be changed in place.
var errImmutable = errors.New("immutable")

// errNoKind is wrapped when the cluster does not know a kind.
var errNoKind = errors.New("the cluster does not know the kind")

// resource asks the cluster about gvk, once for each group and version.
func (c *Cluster) resource(_ context.Context, gvk schema.GroupVersionKind) (resource, error) {
	c.resourcesMu.Lock()
	defer c.resourcesMu.Unlock()
	if r, ok := c.resources[gvk]; ok {
		return r, nil
	}
	list, err := c.disco.ServerResourcesForGroupVersion(gvk.GroupVersion().String())
	if err != nil && !apierrors.IsNotFound(err) {
		return resource{}, fault.New(fault.Transient, opPlan, "", "discovery of %s: %w", gvk.GroupVersion(), err)
	}
	if list != nil {
		for _, r := range list.APIResources {
			if !strings.Contains(r.Name, "/") {
				c.resources[gvk.GroupVersion().WithKind(r.Kind)] = resource{name: r.Name, version: gvk.GroupVersion(), namespaced: r.Namespaced}
			}
		}
	}
	if r, ok := c.resources[gvk]; ok {
		return r, nil
	}
	return resource{}, fmt.Errorf("%w %s", errNoKind, gvk)
}

// anyVersion asks the cluster about gvk, or another version of the same kind.
func (c *Cluster) anyVersion(ctx context.Context, gvk schema.GroupVersionKind) (resource, error) {
	r, err := c.resource(ctx, gvk)
	if !errors.Is(err, errNoKind) {
		return r, err
	}
	groups, gerr := c.disco.ServerGroups()
	if gerr != nil {
		return resource{}, fault.New(fault.Transient, opPlan, "", "discovery: %w", gerr)
	}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			if g.Name != gvk.Group || v.Version == gvk.Version {
				continue
			}
			if r, err := c.resource(ctx, schema.GroupVersionKind{Group: g.Name, Version: v.Version, Kind: gvk.Kind}); !errors.Is(err, errNoKind) {
				return r, err
			}
		}
	}
	return resource{}, err
}

func (c *Cluster) client(r resource, namespace string) dynamic.ResourceInterface {
	return c.self.client(r, namespace)
}

// apiError classifies what the API server answered about id. The text holds no
// secret: about a Secret, and about a ConfigMap that is not valid, it names fields
// and reasons only, since the server may quote values that nobody registered. A
// key of either is what a line of a file of theirs became: it is left out too.
func (c *Cluster) apiError(op string, id plan.ObjectID, err error) error {
	if err == nil {
		return nil
	}
	kind, hint := fault.Transient, ""
	switch {
	case errors.Is(err, errNoKind):
		kind, hint = fault.Invalid, "correct apiVersion and kind, or deploy its CustomResourceDefinition first"
	case dryRunless(err):
		kind, hint = fault.Denied, "have the webhook say sideEffects: None or NoneOnDryRun, or leave what Holdfast manages out of it (namespaceSelector, objectSelector)"
	case admissionRefuses(err):
		kind, hint = fault.Denied, "ask whoever runs the webhook, or change what is declared"
	case immutable(err):
		kind, hint = fault.Invalid, "rename the object, or list its kind under replace: in the stack file: the field cannot be changed in place"
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err), untyped(err):
		kind, hint = fault.Invalid, "correct the manifest"
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		kind, hint = fault.Waiting, "wait until the namespace is gone"
	case apierrors.IsForbidden(err):
		kind, hint = fault.Denied, "look at the role of Holdfast's account, and at the cluster's admission policies and quotas"
	case apierrors.IsUnauthorized(err):
		hint = "look at Holdfast's credential for this cluster"
	case apierrors.IsNotFound(err):
		kind, hint = fault.Waiting, "declare the namespace, or create it"
	}
	var status apierrors.APIStatus
	text := c.cfg.Masker.Scrub(err.Error())
	quotes := id.Kind == "Secret" || id.Kind == "ConfigMap" && apierrors.IsInvalid(err)
	if quotes && errors.As(err, &status) {
		text = cmp.Or(string(status.Status().Reason), fmt.Sprintf("the API server answers %d", status.Status().Code))
		if d := status.Status().Details; d != nil {
			for _, cause := range d.Causes {
				field, _, _ := strings.Cut(cause.Field, "[")
				text += fmt.Sprintf(" %s (%s)", field, cause.Type)
			}
		}
	}
	if immutable(err) {
		err = errors.Join(err, errImmutable)
	}
	return fault.New(kind, op, hint, "%s: %w", id, &masked{text: text, err: err})
}

// masked shows a text without secrets in place of an error's own.
type masked struct {
	text string
	err  error
}

func (m *masked) Error() string { return m.text }

// Is lets callers compare with sentinels; the text of the cause stays hidden.
func (m *masked) Is(target error) bool { return errors.Is(m.err, target) }

// untyped reports whether the API server could not read what was sent as an
// object of its kind: a server-side apply of an unknown field, or of a value of
// another type, is answered with 500 and no reason, by its text alone.
func untyped(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && strings.HasPrefix(status.Status().Message, "failed to create typed patch object")
}

// dryRunless reports whether a webhook cannot take part in a dry run.
func dryRunless(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsBadRequest(err) && errors.As(err, &status) && strings.Contains(status.Status().Message, "does not support dry run")
}

// admissionRefuses reports whether a webhook said no. The status is what it chose, 400
// where it chose none.
func admissionRefuses(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code, text := status.Status().Code, status.Status().Message
	if code < 400 || code >= 500 || code == http.StatusConflict || code == http.StatusTooManyRequests { // it will say something else later
		return false
	}
	return strings.HasPrefix(text, "admission webhook ") && strings.Contains(text, " denied the request")
}

// immutable reports whether the API server refused to change a field in place.
func immutable(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) {
		return false
	}
	text := status.Status().Message
	return strings.Contains(text, "immutable") || strings.Contains(text, "updates to statefulset spec") || strings.Contains(text, "may not change")
}
