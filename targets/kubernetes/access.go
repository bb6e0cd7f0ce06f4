package kubernetes

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
)

const opAccess = "targets/kubernetes.Access"

// What Holdfast does with an object that it deploys, and with what is its own.
var (
	// get: to plan and to look at health. list, watch: to see drift. patch: for
	// server-side apply, its dry runs, and to remove what others added. create: for
	// a patch that makes the object. delete: to prune.
	stackVerbs     = []string{"get", "list", "watch", "create", "patch", "delete"}
	configMapVerbs = []string{"get", "list", "create", "update", "delete"} // inventories and marks
	leaseVerbs     = []string{"get", "create", "update"}
	eventVerbs     = []string{"create", "patch"}
)

var eventsResource = resource{name: eventResource.Resource, version: eventResource.GroupVersion(), namespaced: true}

// Right is what Holdfast's account must be allowed to do with one resource.
type Right struct {
	Namespace string   `json:"namespace,omitempty"` // empty: in the whole cluster
	Group     string   `json:"group,omitempty"`
	Resource  string   `json:"resource"` // plural: "deployments"
	Verbs     []string `json:"verbs"`
	Missing   []string `json:"missing,omitempty"` // those of Verbs that it is not allowed
}

func (r Right) compare(o Right) int {
	return cmp.Or(cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Group, o.Group), cmp.Compare(r.Resource, o.Resource))
}

// Access returns what the account needs to deploy r and to watch over it, and
// what of that the API server does not allow it. It asks once for each namespace,
// and once more for each verb that the first answer leaves open. A rule that
// allows some names only counts as missing. The rights that Kubernetes demands
// of whoever deploys a Role or a binding are not looked at.
//
// An unknown kind is fault.Invalid; a failure to ask is fault.Transient.
func (t *Target) Access(ctx context.Context, r targets.Rendered) ([]Right, error) {
	ren, err := t.rendering(r)
	if err != nil {
		return nil, err
	}
	rights, err := t.needs(ctx, ren)
	if err != nil {
		return nil, fault.WithStack(t.spec.Stack, err)
	}
	known := map[string][]authorizationv1.ResourceRule{}
	for i := range rights {
		if err := t.c.missing(ctx, &rights[i], known); err != nil {
			return nil, fault.WithStack(t.spec.Stack, err)
		}
	}
	return rights, nil
}

// needs lists the rights that a rendering needs, each resource once.
func (t *Target) needs(ctx context.Context, ren *rendering) ([]Right, error) {
	var out []Right
	add := func(r resource, namespace string, verbs []string) {
		if !r.namespaced {
			namespace = ""
		}
		out = append(out, Right{Namespace: namespace, Group: r.version.Group, Resource: r.name, Verbs: verbs})
	}
	add(configMaps, t.c.cfg.Namespace, configMapVerbs)
	if !t.c.cfg.Lease.Off {
		add(leases, t.c.cfg.Namespace, leaseVerbs)
	}
	add(eventsResource, t.spec.Namespace, eventVerbs)
	for _, o := range ren.objects {
		placed, res, err := t.place(ctx, ren, o)
		if err != nil {
			return nil, err
		}
		add(res, placed.id.Namespace, stackVerbs)
	}
	slices.SortFunc(out, Right.compare)
	return slices.CompactFunc(out, func(a, b Right) bool { return a.compare(b) == 0 }), nil
}

// missing asks the API server which verbs of r are not allowed.
func (c *Cluster) missing(ctx context.Context, r *Right, known map[string][]authorizationv1.ResourceRule) error {
	rules, err := c.rules(ctx, r.Namespace, known)
	if err != nil {
		return err
	}
	for _, verb := range r.Verbs {
		if slices.ContainsFunc(rules, func(rule authorizationv1.ResourceRule) bool { return allows(rule, verb, r) }) {
			continue
		}
		review := authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: r.Namespace, Verb: verb, Group: r.Group, Resource: r.Resource},
		}}
		if err := c.ask(ctx, authorizationv1.SchemeGroupVersion.WithResource("selfsubjectaccessreviews"), "SelfSubjectAccessReview", &review); err != nil {
			return err
		}
		if !review.Status.Allowed {
			r.Missing = append(r.Missing, verb)
		}
	}
	return nil
}

// rules returns what the account may do in a namespace, as far as the server
// lists it. For the whole cluster there is no such list.
func (c *Cluster) rules(ctx context.Context, namespace string, known map[string][]authorizationv1.ResourceRule) ([]authorizationv1.ResourceRule, error) {
	if rules, ok := known[namespace]; ok || namespace == "" {
		return rules, nil
	}
	review := authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	if err := c.ask(ctx, authorizationv1.SchemeGroupVersion.WithResource("selfsubjectrulesreviews"), "SelfSubjectRulesReview", &review); err != nil {
		return nil, err
	}
	known[namespace] = review.Status.ResourceRules
	return review.Status.ResourceRules, nil
}

func allows(rule authorizationv1.ResourceRule, verb string, r *Right) bool {
	in := func(list []string, s string) bool { return slices.Contains(list, s) || slices.Contains(list, "*") }
	return len(rule.ResourceNames) == 0 && in(rule.Verbs, verb) && in(rule.APIGroups, r.Group) && in(rule.Resources, r.Resource)
}

// Account returns the user that the API server takes us for.
func (c *Cluster) Account(ctx context.Context) (string, error) {
	var review authenticationv1.SelfSubjectReview
	err := c.ask(ctx, authenticationv1.SchemeGroupVersion.WithResource("selfsubjectreviews"), "SelfSubjectReview", &review)
	return review.Status.UserInfo.Username, err
}

// ask sends a review, which the server answers and does not keep.
func (c *Cluster) ask(ctx context.Context, r schema.GroupVersionResource, kind string, review runtime.Object) error {
	wrap := func(err error) error {
		return fault.New(fault.Transient, opAccess, "look at Holdfast's credential for this cluster", "%s: %s", kind, c.cfg.Masker.Scrub(err.Error()))
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(review)
	if err != nil {
		return fault.Wrap(fault.Internal, opAccess, "", err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(r.GroupVersion().WithKind(kind))
	answer, err := c.dyn.Resource(r).Create(ctx, u, metav1.CreateOptions{})
	if err != nil {
		return wrap(err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(answer.Object, review); err != nil {
		return wrap(err)
	}
	return nil
}

// GrantManifest returns the roles and bindings, as YAML, that give account all
// of rights. They are complete, not only what is missing, so that applying a
// newer list takes nothing away that is still needed.
func GrantManifest(account string, rights []Right) []byte {
	byPlace := map[string][]Right{}
	for _, r := range rights {
		byPlace[r.Namespace] = append(byPlace[r.Namespace], r)
	}
	var b bytes.Buffer
	for _, namespace := range slices.Sorted(maps.Keys(byPlace)) {
		writeRole(&b, account, namespace, byPlace[namespace])
	}
	return b.Bytes()
}

// writeRole writes one role, with the resources of a group that have the same
// verbs in one rule, and its binding. Strings are written as JSON, which is YAML.
func writeRole(b *bytes.Buffer, account, namespace string, rights []Right) {
	kind, meta := "ClusterRole", "{name: holdfast-stacks}"
	if namespace != "" {
		kind, meta = "Role", fmt.Sprintf("{name: holdfast-stacks, namespace: %s}", mustJSON(namespace))
	}
	fmt.Fprintf(b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: %s\nmetadata: %s\nrules:\n", kind, meta)
	slices.SortFunc(rights, Right.compare)
	rights = slices.CompactFunc(rights, func(a, b Right) bool { return a.compare(b) == 0 })
	for len(rights) > 0 {
		first, n, names := rights[0], 0, []string{}
		for n < len(rights) && rights[n].Group == first.Group && slices.Equal(rights[n].Verbs, first.Verbs) {
			names = append(names, rights[n].Resource)
			n++
		}
		rights = rights[n:]
		fmt.Fprintf(b, "- {apiGroups: %s, resources: %s, verbs: %s}\n", mustJSON([]string{first.Group}), mustJSON(names), mustJSON(first.Verbs))
	}
	fmt.Fprintf(b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: %sBinding\nmetadata: %s\n", kind, meta)
	fmt.Fprintf(b, "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: %s, name: holdfast-stacks}\nsubjects:\n- %s\n", kind, subject(account))
}

// subject is account as a binding names it.
func subject(account string) string {
	if rest, ok := strings.CutPrefix(account, "system:serviceaccount:"); ok {
		if namespace, name, ok := strings.Cut(rest, ":"); ok {
			return fmt.Sprintf("{kind: ServiceAccount, namespace: %s, name: %s}", mustJSON(namespace), mustJSON(name))
		}
	}
	return fmt.Sprintf("{apiGroup: rbac.authorization.k8s.io, kind: User, name: %s}", mustJSON(account))
}
