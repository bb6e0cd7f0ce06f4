package kubernetes

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// This file says where managed objects are closed: what we did not declare there
// and somebody put there is drift of class foreign. The rules:
//
//   - Pod specifications are closed wherever they stand, and whole, so that a
//     field of a later Kubernetes is closed as well; what is open is listed.
//   - Metadata is open (kubectl rollout restart, labels of other tools) but for
//     what gives somebody power over the object or its permissions.
//   - Status and replicas stand nowhere here, so the status and scale
//     subresources, and with them controllers and the HorizontalPodAutoscaler,
//     are free. What is written through a subresource is not exempt as such: the
//     status endpoint of several kinds lets finalizers and annotations through.

// closedField closes the fields of a kind at and below a path.
type closedField struct {
	kind string // glob over Kind.group; Kind alone is one of the core group
	path string // JSON pointer; each segment is a glob
	why  string
}

var closedFields = []closedField{
	{"*", "/metadata/ownerReferences", "deleting the owner would delete the object"},
	{"*", "/metadata/finalizers", "the object could not be deleted any more"},

	{"ConfigMap", "/data", "programs read every key"},
	{"ConfigMap", "/binaryData", "programs read every key"},
	{"ConfigMap", "/immutable", "a change of ours could not be made any more"},
	{"Secret", "/data", "programs read every key"},
	{"Secret", "/stringData", "programs read every key"},
	{"Secret", "/immutable", "a change of ours could not be made any more"},

	{"*.rbac.authorization.k8s.io", "/rules", "permissions"},
	{"*.rbac.authorization.k8s.io", "/subjects", "who has the permissions"},
	{"*.rbac.authorization.k8s.io", "/roleRef", "which permissions"},
	{"*.rbac.authorization.k8s.io", "/aggregationRule", "permissions of other roles"},
	{"*.rbac.authorization.k8s.io", "/metadata/labels/rbac.authorization.k8s.io~1aggregate-to-*", "adds the permissions to another role"},

	{"*.admissionregistration.k8s.io", "/webhooks", "sees and alters what is admitted"},
	{"*.admissionregistration.k8s.io", "/spec", "decides what is admitted"},
	{"APIService.apiregistration.k8s.io", "/spec", "answers for a whole API group"},
	{"CustomResourceDefinition.apiextensions.k8s.io", "/spec/conversion", "sees and alters every object of the kind"},

	{"ServiceAccount", "/secrets", "credentials"},
	{"ServiceAccount", "/imagePullSecrets", "credentials"},
	{"ServiceAccount", "/automountServiceAccountToken", "credentials"},
	{"ServiceAccount", "/metadata/annotations/eks.amazonaws.com~1role-arn", "a role in the cloud"},
	{"ServiceAccount", "/metadata/annotations/iam.gke.io~1gcp-service-account", "a role in the cloud"},
	{"ServiceAccount", "/metadata/annotations/azure.workload.identity~1client-id", "a role in the cloud"},

	{"Service", "/spec/selector", "where the traffic goes"},
	{"Service", "/spec/externalIPs", "takes traffic of other addresses (CVE-2020-8554)"},
	{"Service", "/spec/externalName", "where the traffic goes"},
	{"Service", "/spec/ports", "what is reachable"},
	{"Service", "/spec/type", "from where it is reachable"},
	{"Service", "/spec/publishNotReadyAddresses", "sends traffic to pods that are not ready"},
	{"Ingress.networking.k8s.io", "/spec/defaultBackend", "where the traffic goes"},
	{"Ingress.networking.k8s.io", "/spec/ingressClassName", "which controller takes the traffic"},
	{"Ingress.networking.k8s.io", "/spec/tls", "which key the traffic is under"},
	{"NetworkPolicy.networking.k8s.io", "/spec", "what is reachable"},
	{"Deployment.apps", "/spec/paused", "a new version would not come to run"},
	{"CronJob.batch", "/spec/suspend", "the work would not be done"},
	{"CronJob.batch", "/spec/timeZone", "when the work is done"},
	{"Namespace", "/metadata/labels/pod-security.kubernetes.io~1enforce*", "lets privileged pods in"},
}

// podLists are the lists that make a map a pod specification, and are closed by
// their name alone in any kind.
var podLists = []string{"containers", "initContainers", "ephemeralContainers"}

// podOpen are the fields of pod specifications and containers that are open.
var podOpen = map[string]string{
	"resources": "autoscalers set requests and limits; nothing else runs by it",
}

// serverFills are fields that the API server sets where nobody declares them,
// somewhere in what is closed, and which values it gives to them. With such a
// value that nobody owns they say nothing; with another one, or an owner, they
// are judged like any other: whoever may write an object may clear its managed
// fields. What is left out here costs a dry run, and no more.
var serverFills = map[string]func(value any, beside map[string]any) bool{
	// Pod specifications.
	"restartPolicy":                 beside("containers", "Always"), // in a container it makes a sidecar
	"dnsPolicy":                     beside("containers", "ClusterFirst"),
	"schedulerName":                 beside("containers", "default-scheduler"),
	"terminationGracePeriodSeconds": beside("containers", 30),
	"terminationMessagePath":        filled("/dev/termination-log"),
	"terminationMessagePolicy":      filled("File"),
	"imagePullPolicy":               filled("IfNotPresent", "Always"), // the latter stays from a tag that was latest
	"pullPolicy":                    filled("IfNotPresent", "Always"),
	"periodSeconds":                 filled(10),
	"successThreshold":              filled(1),
	"failureThreshold":              filled(3),
	"scheme":                        filled("HTTP"),
	"defaultMode":                   filled(0o644),
	"apiVersion":                    beside("fieldPath", "v1"),
	"protocol":                      filled("TCP"),
	"timeoutSeconds":                either(beside("clientConfig", 10), filled(1)),                // of a webhook, of a probe
	"type":                          either(beside("path", ""), beside("clusterIP", "ClusterIP")), // of a hostPath, of a Service
	// Services.
	"targetPort": likePort,
	"nodePort":   func(any, map[string]any) bool { return true }, // any number: without one the server keeps it
	// Network policies, admission configurations, API services and definitions.
	"policyTypes":        likeRules,
	"matchPolicy":        filled("Equivalent"),
	"reinvocationPolicy": filled("Never"),
	"failurePolicy":      filled("Fail"),
	"port":               beside("namespace", 443), // of a service that is called
	"suspend":            filled(false),
	"ingressClassName":   func(any, map[string]any) bool { return true }, // admission sets the cluster's default class, once
	"conversion":         filled(map[string]any{"strategy": "None"}),
}

// filled is for a field that the server sets to one of values.
func filled(values ...any) func(any, map[string]any) bool {
	return func(v any, _ map[string]any) bool {
		return slices.ContainsFunc(values, func(w any) bool { return equalJSON(v, w) })
	}
}

// beside is for a field that the server sets to value where it stands beside another.
func beside(other string, value any) func(any, map[string]any) bool {
	return func(v any, m map[string]any) bool { return m[other] != nil && equalJSON(v, value) }
}

func either(a, b func(any, map[string]any) bool) func(any, map[string]any) bool {
	return func(v any, m map[string]any) bool { return a(v, m) || b(v, m) }
}

// likePort: a Service's port leads to the same port of its pods.
func likePort(v any, m map[string]any) bool { return equalJSON(v, m["port"]) }

// likeRules: a NetworkPolicy is about what comes in, and about what goes out
// where it has rules for that.
func likeRules(v any, m map[string]any) bool {
	if egress, _ := m["egress"].([]any); len(egress) > 0 {
		return equalJSON(v, []any{"Ingress", "Egress"})
	}
	return equalJSON(v, []any{"Ingress"})
}

// podFills are what admission and the scheduler put into a Pod itself, beyond
// what the server fills into any pod specification. They do so once: it does not
// come back when it is removed, nor can most of it be.
var podFills = []struct {
	path string // JSON pointer; each segment is a glob
	is   func(value any) bool
}{
	{"/spec/nodeName", anything},
	{"/spec/nodeSelector", anything}, // of its runtime class, or its namespace
	{"/spec/overhead", anything},     // of its runtime class
	{"/spec/priority", anything},
	{"/spec/priorityClassName", anything},
	{"/spec/preemptionPolicy", anything},
	{"/spec/tolerations", anything},
	{"/spec/serviceAccount", anything},
	{"/spec/serviceAccountName", anything},
	{"/spec/imagePullSecrets", anything}, // of its account
	{"/spec/enableServiceLinks", func(v any) bool { return v == true }},
	{"/spec/volumes/*", accessVolume},
	{"/spec/containers/*/volumeMounts/*", accessMount},
	{"/spec/initContainers/*/volumeMounts/*", accessMount},
}

func anything(any) bool { return true }

// putIntoPod reports whether admission or the scheduler may have put value at
// tokens of a Pod: as it is, or each element of it.
func putIntoPod(tokens []string, value any) bool {
	for _, f := range podFills {
		if matchPath(f.path, tokens) {
			return f.is(value)
		}
	}
	list, _ := value.([]any)
	for i, e := range list {
		if !putIntoPod(append(slices.Clip(tokens), strconv.Itoa(i)), e) {
			return false
		}
	}
	return len(list) > 0
}

// accessVolume: the volume with the token of the Pod's account.
func accessVolume(v any) bool {
	m, _ := v.(map[string]any)
	projected, _ := m["projected"].(map[string]any)
	sources, _ := projected["sources"].([]any)
	return accessName(m) && len(m) == 2 && len(sources) > 0 && !slices.ContainsFunc(sources, func(s any) bool {
		source, _ := s.(map[string]any)
		return source["serviceAccountToken"] == nil && source["configMap"] == nil && source["downwardAPI"] == nil
	})
}

func accessMount(v any) bool {
	m, _ := v.(map[string]any)
	return accessName(m) && m["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
}

func accessName(m map[string]any) bool {
	name, _ := m["name"].(string)
	return strings.HasPrefix(name, "kube-api-access-")
}

// mirrors are fields that the server keeps equal to another one beside them. One
// that nobody owns says nothing if we declare the other; otherwise both must go,
// or the server sets the other again.
var mirrors = map[string]string{"serviceAccount": "serviceAccountName"}

// region says what kind of place a scan is in.
type region int

const (
	open   region = iota
	closed        // by the table
	inPod         // within a pod specification
)

// enter returns the region of the child key of a map in region r of an object, about
// whose kind the table has of ([closedIn]). pod says that the map is a pod specification.
func enter(r region, of []closedField, at []string, key string, value any, pod bool) region {
	switch {
	case r == inPod || (pod && r == open):
		if podOpen[key] != "" {
			return open
		}
		return inPod
	case r == closed:
		return closed
	}
	if _, list := value.([]any); list && (key == "volumes" || slices.Contains(podLists, key)) {
		return inPod
	}
	tokens := append(at[:len(at):len(at)], key)
	if slices.ContainsFunc(of, func(f closedField) bool { return matchPath(f.path, tokens) }) {
		return closed
	}
	return open
}

// closedIn returns the entries of closedFields about a kind.
func closedIn(kind string) []closedField {
	return slices.DeleteFunc(slices.Clone(closedFields), func(f closedField) bool { return !glob(f.kind, kind) })
}

// matchPath matches a pointer whose segments are globs against all of tokens.
func matchPath(pattern string, tokens []string) bool {
	if strings.Count(pattern, "/") != len(tokens) {
		return false
	}
	rest := pattern[1:]
	for _, token := range tokens {
		var want string
		if want, rest, _ = strings.Cut(rest, "/"); !glob(want, escapePointer(token)) {
			return false
		}
	}
	return true
}

// glob is path.Match, without its cost for what is no pattern.
func glob(pattern, s string) bool {
	switch {
	case pattern == "*":
		return !strings.Contains(s, "/")
	case !strings.ContainsAny(pattern, `*?[\`):
		return pattern == s
	}
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}

// habit is what Kubernetes itself puts into closed fields in the course of its
// work. It needs no injector of the operator.
type habit struct {
	kind   string // glob over Kind.group; Kind alone is one of the core group
	path   string // JSON pointer; each segment is a glob
	values []string
	by     string                                     // field manager; empty: whoever says so
	when   func(live *unstructured.Unstructured) bool // nil: always
	why    string
}

var habits = []habit{
	{kind: "PersistentVolumeClaim", path: "/metadata/finalizers/*", values: []string{"kubernetes.io/pvc-protection"}, why: "admission protects volumes in use"},
	{kind: "PersistentVolume", path: "/metadata/finalizers/*",
		values: []string{"kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer", "external-attacher/*"}, why: "volumes in use"},
	{kind: "Service", path: "/metadata/finalizers/*",
		values: []string{"service.kubernetes.io/load-balancer-cleanup", "service.k8s.aws/resources", "networking.gke.io/*", "gke.networking.io/*"},
		why:    "a cloud's load balancer is removed before its Service"},
	{kind: "Ingress.networking.k8s.io", path: "/metadata/finalizers/*",
		values: []string{"ingress.k8s.aws/resources", "group.ingress.k8s.aws/*", "networking.gke.io/*"}, why: "a cloud's load balancer is removed before its Ingress"},
	{kind: "CustomResourceDefinition.apiextensions.k8s.io", path: "/metadata/finalizers/*",
		values: []string{"customresourcecleanup.apiextensions.k8s.io"}, why: "the objects go before their definition"},
	{kind: "*", path: "/metadata/finalizers/*", values: []string{"foregroundDeletion", "orphan"}, when: deleting, why: "how the object is being deleted"},
	{kind: "Secret", path: "/data/*", by: "kube-controller-manager", when: accountToken, why: "the token controller fills it in"},
	{kind: "ClusterRole.rbac.authorization.k8s.io", path: "/rules", by: "clusterrole-aggregation-controller", when: aggregated,
		why: "the rules are those of the roles that the declared aggregationRule selects"},
}

func deleting(u *unstructured.Unstructured) bool { return u.GetDeletionTimestamp() != nil }

func accountToken(u *unstructured.Unstructured) bool {
	return u.Object["type"] == "kubernetes.io/service-account-token"
}

func aggregated(u *unstructured.Unstructured) bool {
	_, ok := u.Object["aggregationRule"].(map[string]any)
	return ok
}

// usual reports whether p is how Kubernetes, or the controller of a custom kind,
// works.
func usual(id plan.ObjectID, u *unstructured.Unstructured, p place) bool {
	value, _ := p.value.(string)
	if matchPath("/metadata/finalizers/*", p.tokens) && ownDomain(id.Kind, value) {
		return true
	}
	return slices.ContainsFunc(habits, func(h habit) bool {
		if !glob(h.kind, id.Kind) || !matchPath(h.path, p.tokens) || (h.when != nil && !h.when(u)) {
			return false
		}
		if h.by != "" && !slices.ContainsFunc(p.owners, func(o owner) bool { return o.manager == h.by }) {
			return false
		}
		return len(h.values) == 0 || slices.ContainsFunc(h.values, func(v string) bool { return glob(v, value) })
	})
}

// ownDomain reports whether a finalizer is of the domain of a custom kind's own
// group: its controller holds the object until it has cleaned up behind it.
// Kubernetes' own groups are not meant: what holds their objects is listed.
func ownDomain(kind, finalizer string) bool {
	_, group, _ := strings.Cut(kind, ".")
	if builtinGroup(group) {
		return false
	}
	domain, _, _ := strings.Cut(finalizer, "/")
	last := func(s string) string {
		labels := strings.Split(s, ".")
		return strings.Join(labels[max(0, len(labels)-2):], ".")
	}
	return strings.Contains(domain, ".") && last(domain) == last(group)
}
