package kubernetes

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	watchVerbs     = []string{"get", "list", "watch"}                      // the daemon's, where a stack is impersonated
	accountVerbs   = []string{"get", "create", "patch", "delete"}          // and those of the stack's account
	configMapVerbs = []string{"get", "list", "create", "update", "delete"} // inventories and marks
	leaseVerbs     = []string{"get", "create", "update"}
	eventVerbs     = []string{"create", "patch"}
)

var eventsResource = resource{name: eventResource.Resource, version: eventResource.GroupVersion(), namespaced: true}

// Right is what Holdfast's account must be allowed to do with one resource.
type Right struct {
	Account   string   `json:"account,omitempty"`   // who needs it; empty: Holdfast's own account
	Namespace string   `json:"namespace,omitempty"` // empty: in the whole cluster
	Group     string   `json:"group,omitempty"`
	Resource  string   `json:"resource"`        // plural: "deployments"
	Names     []string `json:"names,omitempty"` // the objects that it is about; empty: all
	Verbs     []string `json:"verbs"`
	Missing   []string `json:"missing,omitempty"` // those of Verbs that it is not allowed
}

func (r Right) compare(o Right) int {
	return cmp.Or(cmp.Compare(r.Account, o.Account), cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Group, o.Group), cmp.Compare(r.Resource, o.Resource), slices.Compare(r.Names, o.Names))
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
		if t.as.user == "" {
			add(res, placed.id.Namespace, stackVerbs)
			continue
		}
		add(res, placed.id.Namespace, watchVerbs)
		add(res, placed.id.Namespace, accountVerbs)
		out[len(out)-1].Account = t.as.user
	}
	if namespace, name, ok := strings.Cut(t.spec.ServiceAccount, "/"); ok {
		add(resource{name: "serviceaccounts", version: schema.GroupVersion{Version: "v1"}, namespaced: true}, namespace, []string{"impersonate"})
		out[len(out)-1].Names = []string{name}
	}
	return mergedRights(out), nil
}

// mergedRights returns rights sorted, each place once with all that is needed there.
func mergedRights(rights []Right) []Right {
	rights = slices.SortedStableFunc(slices.Values(rights), Right.compare)
	var out []Right
	for _, r := range rights {
		if n := len(out); n > 0 && out[n-1].compare(r) == 0 {
			for _, v := range r.Verbs {
				if !slices.Contains(out[n-1].Verbs, v) {
					out[n-1].Verbs = append(slices.Clip(out[n-1].Verbs), v)
				}
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// errForbidden says that a question may not be asked, as one account or another.
var errForbidden = errors.New("forbidden")

// missing asks the API server which verbs of r are not allowed.
func (c *Cluster) missing(ctx context.Context, r *Right, known map[string][]authorizationv1.ResourceRule) error {
	as, err := c.as(r.Account)
	if err != nil {
		return err
	}
	rules, err := c.rules(ctx, as, r.Namespace, known)
	if as.user != "" && errors.Is(err, errForbidden) { // it may not be asked for: nothing that it may do is of use
		r.Missing = r.Verbs
		return nil
	}
	if err != nil {
		return err
	}
	for _, verb := range r.Verbs {
		if slices.ContainsFunc(rules, func(rule authorizationv1.ResourceRule) bool { return allows(rule, verb, r) }) {
			continue
		}
		review := authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: r.Namespace, Verb: verb, Group: r.Group, Resource: r.Resource, Name: strings.Join(r.Names, "")},
		}}
		if err := c.ask(ctx, as, authorizationv1.SchemeGroupVersion.WithResource("selfsubjectaccessreviews"), "SelfSubjectAccessReview", &review); err != nil {
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
func (c *Cluster) rules(ctx context.Context, as *session, namespace string, known map[string][]authorizationv1.ResourceRule) ([]authorizationv1.ResourceRule, error) {
	key := as.user + "/" + namespace
	if rules, ok := known[key]; ok || namespace == "" {
		return rules, nil
	}
	review := authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	if err := c.ask(ctx, as, authorizationv1.SchemeGroupVersion.WithResource("selfsubjectrulesreviews"), "SelfSubjectRulesReview", &review); err != nil {
		return nil, err
	}
	known[key] = review.Status.ResourceRules
	return review.Status.ResourceRules, nil
}

func allows(rule authorizationv1.ResourceRule, verb string, r *Right) bool {
	in := func(list []string, s string) bool { return slices.Contains(list, s) || slices.Contains(list, "*") }
	return len(rule.ResourceNames) == 0 && in(rule.Verbs, verb) && in(rule.APIGroups, r.Group) && in(rule.Resources, r.Resource)
}

// Account returns the user that the API server takes us for.
func (c *Cluster) Account(ctx context.Context) (string, error) {
	var review authenticationv1.SelfSubjectReview
	err := c.ask(ctx, c.self, authenticationv1.SchemeGroupVersion.WithResource("selfsubjectreviews"), "SelfSubjectReview", &review)
	return review.Status.UserInfo.Username, err
}

// ask sends a review, which the server answers and does not keep.
func (c *Cluster) ask(ctx context.Context, as *session, r schema.GroupVersionResource, kind string, review runtime.Object) error {
	wrap := func(err error) error {
		return fault.New(fault.Transient, opAccess, "look at Holdfast's credential for this cluster", "%s: %w", kind, &masked{c.cfg.Masker.Scrub(err.Error()), err})
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(review)
	if err != nil {
		return fault.Wrap(fault.Internal, opAccess, "", err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(r.GroupVersion().WithKind(kind))
	answer, err := as.dyn.Resource(r).Create(ctx, u, metav1.CreateOptions{})
	if apierrors.IsForbidden(err) {
		err = errors.Join(err, errForbidden)
	}
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
// A right of another account is bound to that one.
func GrantManifest(account string, rights []Right) []byte {
	byPlace := map[string][]Right{}
	others := map[string][]Right{}
	for _, r := range rights {
		if r.Account != "" && r.Account != account {
			others[r.Account] = append(others[r.Account], r)
			continue
		}
		byPlace[r.Namespace] = append(byPlace[r.Namespace], r)
	}
	var b bytes.Buffer
	for _, namespace := range slices.Sorted(maps.Keys(byPlace)) {
		writeRole(&b, account, namespace, byPlace[namespace])
	}
	for _, other := range slices.Sorted(maps.Keys(others)) {
		b.Write(GrantManifest(other, others[other]))
	}
	return b.Bytes()
}

// writeRole writes one role, with the resources of a group that have the same
// verbs in one rule, and its binding. Strings are written as JSON, which is YAML.
func writeRole(b *bytes.Buffer, account, namespace string, rights []Right) {
	name := "holdfast-stacks"
	if rights[0].Account != "" { // one role for each account that is impersonated
		name = strings.NewReplacer("system:serviceaccount:", "", ":", "-").Replace(account) + "-" + name
	}
	kind, meta := "ClusterRole", fmt.Sprintf("{name: %s}", name)
	if namespace != "" {
		kind, meta = "Role", fmt.Sprintf("{name: %s, namespace: %s}", name, mustJSON(namespace))
	}
	fmt.Fprintf(b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: %s\nmetadata: %s\nrules:\n", kind, meta)
	rights = mergedRights(rights)
	for len(rights) > 0 {
		first, n, names := rights[0], 0, []string{}
		for n < len(rights) && rights[n].Group == first.Group && slices.Equal(rights[n].Verbs, first.Verbs) && slices.Equal(rights[n].Names, first.Names) {
			names = append(names, rights[n].Resource)
			n++
		}
		rights = rights[n:]
		only := ""
		if len(first.Names) > 0 {
			only = fmt.Sprintf(", resourceNames: %s", mustJSON(first.Names))
		}
		fmt.Fprintf(b, "- {apiGroups: %s, resources: %s%s, verbs: %s}\n", mustJSON([]string{first.Group}), mustJSON(names), only, mustJSON(first.Verbs))
	}
	fmt.Fprintf(b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: %sBinding\nmetadata: %s\n", kind, meta)
	fmt.Fprintf(b, "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: %s, name: %s}\nsubjects:\n- %s\n", kind, name, subject(account))
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
