// Package daemon owns what is Holdfast's own in a cluster: its namespace, service
// account, permissions, admission policies, API group, labels and annotations. It
// guarantees that every target judges an object by the same rules, whatever tool
// would write it, and that what cannot be read counts as touched rather than not.
// It refuses, through [Identity.Touches], each object with which a stack would
// reach any of these; it reads no cluster and writes nothing.
package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// domain is where Holdfast's own labels, annotations and API groups are.
const domain = "holdfast.dev"

// Identity is what Holdfast is in one cluster.
type Identity struct {
	Namespace string // its own; everything in it is protected
	// User is who it is to the API server, "system:serviceaccount:NS:NAME" in a
	// cluster. Every service account of Namespace is protected as well.
	User string
}

// Object is one object that a stack would write, adopt or delete.
type Object struct {
	schema.GroupKind
	Namespace, Name string
	Content         map[string]any // nil: nothing but its name is known
	// Given are Holdfast's own labels and annotations that are there by right.
	Given map[string]string
	// Live objects carry whatever marks they carry: nobody asks for them.
	Live bool
}

// rule is one thing that is protected. touches says how o would touch it, or "".
type rule struct {
	name    string
	hint    string
	touches func(id Identity, o Object) string
}

const leaveAlone = "no stack may change what Holdfast itself runs with"

// rules are all of them; the first that applies is the one that is told.
var rules = []rule{
	{"namespace", "keep out of Holdfast's namespace", Identity.inOwnNamespace},
	{"name", leaveAlone, Identity.hasOwnName},
	{"subject", leaveAlone, Identity.bindsOwnAccount},
	{"role reference", leaveAlone, Identity.bindsOwnRole},
	{"strong role", scopeIt, Identity.bindsStrongRole},
	{"broad group", "name a group of your own, or a RoleBinding in the namespaces that need it", Identity.bindsBroadGroup},
	{"resource names", leaveAlone, Identity.namesOwnObjects},
	{"API group", leaveAlone, Identity.inOwnGroup},
	{"mark", "remove it", Identity.hasOwnMark},
	{"selector", leaveAlone, Identity.selectsOwnMark},
	{"service", leaveAlone, Identity.callsOwnService},
	{"admission", "", Identity.interceptsOwnObjects},
	{"admission of roles", "leave clusterroles and clusterrolebindings out, or use scope: Namespaced, or an objectSelector for a label of yours", Identity.interceptsOwnRoles},
	{"API service", "leave the API server's own groups alone", Identity.replacesBuiltinGroup},
	{"volume", leaveAlone, Identity.claimsOwnVolume},
}

// Touches says what of Holdfast's own o would touch, and what to do instead, or "".
func (id Identity) Touches(o Object) (hint, why string) { return id.touches(o, rules) }

func (id Identity) touches(o Object, rules []rule) (hint, why string) {
	for _, r := range rules {
		if why = r.touches(id, o); why == "" {
			continue
		}
		if hint = r.hint; hint == "" {
			hint = fmt.Sprintf("leave Holdfast's namespace out: namespaceSelector: {matchExpressions: [{key: %s, operator: NotIn, values: [%s]}]}",
				namespaceNameLabel, id.Namespace)
		}
		return hint, why
	}
	return "", ""
}

func (id Identity) inOwnNamespace(o Object) string {
	own := id.Namespace
	if o.Namespace == own || (o.GroupKind == namespaceKind && o.Name == own) {
		return own + " is Holdfast's own namespace"
	}
	return ""
}

func isRBAC(gk schema.GroupKind) bool { return gk.Group == rbacGroup }

func isAdmission(gk schema.GroupKind) bool { return gk.Group == "admissionregistration.k8s.io" }

// reserved reports whether a name is, or starts with, "holdfast".
func reserved(name string) bool {
	first := strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("-.:", r) })
	return len(first) > 0 && strings.EqualFold(first[0], "holdfast")
}

func (id Identity) hasOwnName(o Object) string {
	if !isRBAC(o.GroupKind) && !isAdmission(o.GroupKind) {
		return ""
	}
	const why = "the name is reserved for Holdfast's own permissions and admission policies"
	if reserved(o.Name) {
		return why
	}
	for _, w := range listAt(o.Content, "webhooks") {
		if name, _ := w["name"].(string); reserved(name) {
			return "the webhook " + name + ": " + why
		}
	}
	if policy, _, _ := unstructured.NestedString(o.Content, "spec", "policyName"); reserved(policy) {
		return "it binds the admission policy " + policy + ", which is reserved for Holdfast"
	}
	return ""
}

// accountGroup is the group of the accounts of the namespace that follows.
const accountGroup = "system:serviceaccounts:"

// account splits "system:serviceaccount:NS:NAME".
func account(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	return namespace, name, ok
}

func (id Identity) bindsOwnAccount(o Object) string {
	if !isRBAC(o.GroupKind) {
		return ""
	}
	const why = "it grants permissions to Holdfast's own service account"
	ns, name, isAccount := account(id.User)
	for _, sub := range listAt(o.Content, "subjects") {
		who, _ := sub["name"].(string)
		switch sub["kind"] {
		case "ServiceAccount":
			at, _ := sub["namespace"].(string)
			if at == "" { // the API server refuses it; nothing is left to that
				at = o.Namespace
			}
			if at == id.Namespace || isAccount && at == ns && who == name {
				return why
			}
		case "Group":
			if who == accountGroup+id.Namespace || isAccount && who == accountGroup+ns {
				return why
			}
		default:
			at, _, ok := account(who)
			if (ok && at == id.Namespace) || (who != "" && who == id.User) {
				return why
			}
		}
	}
	return ""
}

func (id Identity) bindsOwnRole(o Object) string {
	if role, _, _ := unstructured.NestedString(o.Content, "roleRef", "name"); isRBAC(o.GroupKind) && reserved(role) {
		return "it gives Holdfast's own role " + role + " to somebody else"
	}
	return ""
}

func (id Identity) namesOwnObjects(o Object) string {
	if !isRBAC(o.GroupKind) {
		return ""
	}
	_, own, _ := account(id.User)
	for _, rule := range listAt(o.Content, "rules") {
		accounts := slices.ContainsFunc(stringsAt(rule, "resources"), func(r string) bool {
			return r == "*" || r == "serviceaccounts" || strings.HasPrefix(r, "serviceaccounts/")
		})
		for _, name := range stringsAt(rule, "resourceNames") {
			switch {
			case reserved(name), name == id.Namespace, name == id.User && name != "", own != "" && name == own && accounts:
				return "it names Holdfast's own object " + name
			}
		}
	}
	return ""
}

func ownLabel(key string) bool {
	prefix, _, _ := strings.Cut(key, "/")
	return inOwnDomain(prefix)
}

func inOwnDomain(s string) bool { return s == domain || strings.HasSuffix(s, "."+domain) }

func (id Identity) inOwnGroup(o Object) string {
	group, _, _ := unstructured.NestedString(o.Content, "spec", "group")
	_, defined, _ := strings.Cut(o.Name, ".")
	if inOwnDomain(o.Group) || (o.GroupKind == crdKind && (inOwnDomain(group) || inOwnDomain(defined))) {
		return "the API group " + domain + " is Holdfast's own"
	}
	return ""
}

// ownKey reports whether a label or annotation is Holdfast's own.
func ownKey(key string) bool {
	prefix, _, ok := strings.Cut(key, "/")
	return ok && inOwnDomain(prefix)
}

// hasOwnMark looks at the metadata of the object and of every template in it:
// but for the marks that Holdfast gave to it, none of its labels and annotations
// may be there.
func (id Identity) hasOwnMark(o Object) string {
	if o.Live {
		return ""
	}
	meta, _ := o.Content["metadata"].(map[string]any)
	if key := Mark(meta, o.Given); key != "" {
		return key + " is Holdfast's own"
	}
	for _, v := range o.Content {
		if key := nestedMark(v, 0); key != "" {
			return key + " is Holdfast's own, in a template too"
		}
	}
	return ""
}

// Mark returns the first label or annotation in an object's metadata that is
// Holdfast's own and does not have the value in given, or "".
func Mark(meta map[string]any, given map[string]string) string {
	var found []string
	for _, field := range []string{"labels", "annotations"} {
		m, _ := meta[field].(map[string]any)
		for key, v := range m {
			if want, ok := given[key]; ownKey(key) && (!ok || v != want) {
				found = append(found, key)
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

// nestedMark looks for Holdfast's own marks in the templates within v.
func nestedMark(v any, depth int) string {
	if depth > maxDepth {
		return ""
	}
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if key := nestedMark(e, depth+1); key != "" {
				return key
			}
		}
	case map[string]any:
		if meta, ok := v["metadata"].(map[string]any); ok {
			if key := Mark(meta, nil); key != "" {
				return key
			}
		}
		for _, e := range v {
			if key := nestedMark(e, depth+1); key != "" {
				return key
			}
		}
	}
	return ""
}

// selectsOwnMark refuses cluster roles that gather Holdfast's own.
func (id Identity) selectsOwnMark(o Object) string {
	for _, selector := range listAt(o.Content, "aggregationRule", "clusterRoleSelectors") {
		for _, key := range selectorKeys(selector) {
			if isRBAC(o.GroupKind) && ownKey(key) {
				return "it aggregates Holdfast's own roles by " + key
			}
		}
	}
	return ""
}

func selectorKeys(selector map[string]any) []string {
	var keys []string
	match, _ := selector["matchLabels"].(map[string]any)
	for k := range match {
		keys = append(keys, k)
	}
	for _, e := range listAt(selector, "matchExpressions") {
		if k, ok := e["key"].(string); ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// callsOwnService refuses what makes the API server call a service in
// Holdfast's namespace: webhooks, conversion webhooks and API services.
func (id Identity) callsOwnService(o Object) string {
	var services []map[string]any
	at := func(m map[string]any, path ...string) {
		svc, _, _ := unstructured.NestedMap(m, path...)
		services = append(services, svc)
	}
	switch {
	case isAdmission(o.GroupKind):
		for _, w := range listAt(o.Content, "webhooks") {
			at(w, "clientConfig", "service")
		}
	case o.GroupKind == crdKind:
		at(o.Content, "spec", "conversion", "webhook", "clientConfig", "service")
	case o.GroupKind == apiServiceKind:
		at(o.Content, "spec", "service")
	}
	for _, svc := range services {
		if svc["namespace"] == id.Namespace {
			return "it calls a service in " + id.Namespace + ", Holdfast's own namespace"
		}
	}
	return ""
}

// namespaceNameLabel is set by the API server on every namespace.
const namespaceNameLabel = "kubernetes.io/metadata.name"

// interceptsOwnObjects refuses admission webhooks and policies that could alter
// or hold up Holdfast's own namespace and what it holds. A selector is judged by
// the labels that the namespace and the objects there are known to have.
func (id Identity) interceptsOwnObjects(o Object) string {
	who, by := intercepts(o, func(m map[string]any, rules []map[string]any) bool {
		if !selects(m["namespaceSelector"], id.namespaceLabels()...) {
			return false
		}
		return slices.ContainsFunc(rules, inNamespace) && selects(m["objectSelector"], ownLabels...) ||
			slices.ContainsFunc(rules, onNamespaces) && selects(m["objectSelector"], id.namespaceLabels()...)
	})
	if !by {
		return ""
	}
	return who + " intercepts objects in " + id.Namespace + ", Holdfast's own namespace, or the namespace itself"
}

// interceptsOwnRoles refuses those that could hold up Holdfast's own cluster
// roles and bindings. Namespace selectors say nothing about them (Kubernetes,
// "Matching requests: namespaceSelector").
func (id Identity) interceptsOwnRoles(o Object) string {
	who, by := intercepts(o, func(m map[string]any, rules []map[string]any) bool {
		return slices.ContainsFunc(rules, onClusterRoles) && selects(m["objectSelector"], ownLabels...)
	})
	if !by {
		return ""
	}
	return who + " intercepts cluster roles or their bindings, Holdfast's own among them"
}

// intercepts returns what in o, a webhook or an admission policy, reaches by
// what it matches and by its rules.
func intercepts(o Object, reaches func(match map[string]any, rules []map[string]any) bool) (who string, by bool) {
	if !isAdmission(o.GroupKind) {
		return "", false
	}
	for _, w := range listAt(o.Content, "webhooks") {
		if reaches(w, listAt(w, "rules")) {
			return fmt.Sprintf("the webhook %v", w["name"]), true
		}
	}
	match, _, _ := unstructured.NestedMap(o.Content, "spec", "matchConstraints")
	return "the policy", reaches(match, listAt(match, "resourceRules"))
}

// inNamespace reports whether a rule covers what Holdfast's namespace holds.
func inNamespace(rule map[string]any) bool {
	return anyOf(stringsAt(rule, "apiGroups"), ownGroups...) && rule["scope"] != "Cluster" &&
		slices.ContainsFunc(stringsAt(rule, "resources"), func(r string) bool {
			r, _, _ = strings.Cut(r, "/")
			return !slices.Contains(clusterResources, r)
		})
}

func onNamespaces(rule map[string]any) bool { return ofCluster(rule, "", "namespaces") }

func onClusterRoles(rule map[string]any) bool {
	return ofCluster(rule, rbacGroup, "clusterroles", "clusterrolebindings")
}

// ofCluster reports whether a rule covers one of the resources, which have no
// namespace.
func ofCluster(rule map[string]any, group string, resources ...string) bool {
	return anyOf(stringsAt(rule, "apiGroups"), group) && rule["scope"] != "Namespaced" &&
		slices.ContainsFunc(stringsAt(rule, "resources"), func(r string) bool {
			r, _, _ = strings.Cut(r, "/")
			return r == "*" || slices.Contains(resources, r)
		})
}

// ownLabels are the labels that objects in Holdfast's namespace have: what
// deploy/ makes, what the daemon makes, and what has none (Leases, Events).
var ownLabels = []labels.Set{
	{"app.kubernetes.io/name": "holdfast"},
	{"app.kubernetes.io/managed-by": "holdfast"},
	{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/managed-by": "holdfast"},
	{},
}

// namespaceLabels are those that Holdfast's namespace may have: those of the API
// server and of deploy/, and nothing more.
func (id Identity) namespaceLabels() []labels.Set {
	name := labels.Set{namespaceNameLabel: id.Namespace}
	deployed := labels.Set{"app.kubernetes.io/name": "holdfast"}
	for _, mode := range []string{"enforce", "audit", "warn"} {
		deployed["pod-security.kubernetes.io/"+mode] = "restricted"
		deployed["pod-security.kubernetes.io/"+mode+"-version"] = "latest"
	}
	return []labels.Set{name, labels.Merge(name, deployed), labels.Merge(name, labels.Set{"app.kubernetes.io/name": "holdfast"})}
}

var (
	// ownGroups are the API groups of what Holdfast's namespace holds: its pods,
	// inventories, accounts, roles, leases and events.
	ownGroups        = []string{"", "apps", "batch", "coordination.k8s.io", "events.k8s.io", rbacGroup}
	clusterResources = []string{"namespaces", "nodes", "persistentvolumes", "componentstatuses", "clusterroles", "clusterrolebindings"}
)

// selects reports whether a label selector may match one of sets. One that is
// absent or cannot be read matches everything; what it asks of Holdfast's own
// labels, whose values can be computed, counts as met.
func selects(selector any, sets ...labels.Set) bool {
	b, err := json.Marshal(selector)
	if err != nil {
		return true
	}
	var ls metav1.LabelSelector
	if json.Unmarshal(b, &ls) != nil {
		return true
	}
	maps.DeleteFunc(ls.MatchLabels, func(key, _ string) bool { return ownLabel(key) })
	ls.MatchExpressions = slices.DeleteFunc(ls.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return ownLabel(r.Key) })
	sel, err := metav1.LabelSelectorAsSelector(&ls)
	return err != nil || slices.ContainsFunc(sets, func(set labels.Set) bool { return sel.Matches(set) })
}

var (
	namespaceKind = schema.GroupKind{Kind: "Namespace"}
	crdKind       = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}
)

// maxDepth bounds how deep templates are looked for.
const maxDepth = 320

var apiServiceKind = schema.GroupKind{Group: "apiregistration.k8s.io", Kind: "APIService"}

func (id Identity) replacesBuiltinGroup(o Object) string {
	if o.GroupKind != apiServiceKind || o.Content == nil {
		return ""
	}
	if group, _, _ := unstructured.NestedString(o.Content, "spec", "group"); Builtin(group) || inOwnDomain(group) {
		return fmt.Sprintf("it puts another server in the place of the API group %q, which Holdfast relies on", group)
	}
	return ""
}

func (id Identity) claimsOwnVolume(o Object) string {
	ns, _, _ := unstructured.NestedString(o.Content, "spec", "claimRef", "namespace")
	if o.Kind == "PersistentVolume" && o.Group == "" && ns == id.Namespace {
		return "it is a volume of Holdfast's own namespace"
	}
	return ""
}

// listAt returns the maps in the list at path.
func listAt(m map[string]any, path ...string) []map[string]any {
	v, _, _ := unstructured.NestedFieldNoCopy(m, path...)
	list, _ := v.([]any)
	var out []map[string]any
	for _, e := range list {
		if o, ok := e.(map[string]any); ok {
			out = append(out, o)
		}
	}
	return out
}

// stringsAt returns the texts in the list at a field.
func stringsAt(m map[string]any, field string) []string {
	list, _ := m[field].([]any)
	var out []string
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// Builtin reports whether the API server itself serves an API group.
func Builtin(group string) bool { return slices.Contains(builtinGroups, group) }

var builtinGroups = []string{
	"", "apps", "autoscaling", "batch", "extensions", "policy",
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "authentication.k8s.io",
	"authorization.k8s.io", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io",
	"flowcontrol.apiserver.k8s.io", "imagepolicy.k8s.io", "internal.apiserver.k8s.io", "lifecycle.k8s.io", "networking.k8s.io", "node.k8s.io",
	"rbac.authorization.k8s.io", "resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "storagemigration.k8s.io",
}
