package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

var (
	roles     = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}
	bindings  = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}
	accounts  = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	services  = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	cronJobs  = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "cronjobs"}
	ingresses = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ingresses"}
	fences    = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
)

const (
	loginManifest   = "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\ndata: {password: bWluZQ==}\n"
	roleManifest    = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]\n"
	bindingManifest = "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: r}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}\n"
	serviceManifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
	ingressManifest = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: {rules: [{host: a.example}]}\n"
	cronJobManifest = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: j}\nspec: {schedule: '0 0 1 1 *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: j, image: " + otherImage + "}]}}}}}\n"
	fenceManifest   = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: f}\nspec: {podSelector: {matchLabels: {app: web}}}\n"
	otherImage      = "registry.example/other@sha256:1111111111111111111111111111111111111111111111111111111111111111"
)

// template is the body of an edit of the pod template of the deployment.
func template(spec string) string { return "spec: {template: {spec: " + spec + "}}" }

var probed = strings.Replace(deployment, "securityContext: {}", "livenessProbe: {httpGet: {port: 80}}", 1)

// additions that a second manager makes, and that server-side apply leaves.
var foreignCases = map[string]struct {
	resource schema.GroupVersionResource
	manifest string
	body     string // of the edit, in YAML
	path     string // that the finding names; empty: the class is modified
}{
	"a sidecar":          {gvrs["deployments"], deployment, template("{containers: [{name: spy, image: " + otherImage + "}]}"), "/spec/template/spec/containers/"},
	"an init container":  {gvrs["deployments"], deployment, template("{initContainers: [{name: spy, image: " + otherImage + "}]}"), "/spec/template/spec/initContainers"},
	"an env":             {gvrs["deployments"], deployment, template("{containers: [{name: web, env: [{name: LD_PRELOAD, value: /tmp/x.so}]}]}"), "/spec/template/spec/containers/0/env"},
	"an envFrom":         {gvrs["deployments"], deployment, template("{containers: [{name: web, envFrom: [{secretRef: {name: x}}]}]}"), "/spec/template/spec/containers/0/envFrom"},
	"a command":          {gvrs["deployments"], deployment, template("{containers: [{name: web, command: [sh, -c, evil]}]}"), "/spec/template/spec/containers/0/command"},
	"a privileged mode":  {gvrs["deployments"], deployment, template("{containers: [{name: web, securityContext: {privileged: true}}]}"), "/spec/template/spec/containers/0/securityContext/privileged"},
	"a host volume":      {gvrs["deployments"], deployment, template("{volumes: [{name: root, hostPath: {path: /}}]}"), "/spec/template/spec/volumes"},
	"an image volume":    {gvrs["deployments"], deployment, template("{volumes: [{name: i, image: {reference: " + otherImage + "}}]}"), "/spec/template/spec/volumes"},
	"hostPID":            {gvrs["deployments"], deployment, template("{hostPID: true}"), "/spec/template/spec/hostPID"},
	"an account":         {gvrs["deployments"], deployment, template("{serviceAccountName: admin}"), "/spec/template/spec/serviceAccount"},
	"an ownerReference":  {gvrs["deployments"], deployment, "metadata: {ownerReferences: [{apiVersion: v1, kind: Namespace, name: NS, uid: UID}]}", "/metadata/ownerReferences"},
	"the host's network": {gvrs["deployments"], strings.Replace(deployment, "securityContext: {}", "ports: [{containerPort: 80}]", 1), template("{hostNetwork: true}"), "/spec/template/spec/"},
	"a finalizer":        {gvrs["deployments"], deployment, "metadata: {finalizers: [evil.example/stay]}", "/metadata/finalizers"},
	"a ConfigMap key":    {gvrs["configmaps"], configMap("c", "1"), "data: {evil: x}", "/data/evil"},
	"a binary key":       {gvrs["configmaps"], configMap("c", "1"), "binaryData: {evil: AAAA}", "/binaryData"},
	"a Secret key":       {gvrs["secrets"], loginManifest, "data: {evil: c3RvbGVuLXZhbHVl}", "/data/evil"},
	"an RBAC subject":    {bindings, bindingManifest, "subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: eve}]", "/subjects"},
	"an RBAC rule":       {roles, roleManifest, "rules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]", ""},
	"a pull secret":      {accounts, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n", "imagePullSecrets: [{name: x}]", "/imagePullSecrets"},
	"a cloud role":       {accounts, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n", "metadata: {annotations: {eks.amazonaws.com/role-arn: x}}", "/metadata/annotations/eks.amazonaws.com~1role-arn"},
	"a selector":         {services, serviceManifest, "spec: {selector: {app: evil}}", "/spec/selector"},
	"a service type":     {services, serviceManifest, "spec: {type: LoadBalancer}", "/spec/type"},
	"a target port":      {services, serviceManifest, "spec: {ports: [{port: 80, protocol: TCP, targetPort: 9999}]}", "/spec/ports/0/targetPort"},
	"another direction":  {fences, fenceManifest, "spec: {policyTypes: [Egress]}", "/spec/policyTypes"},
	"a longer probe":     {gvrs["deployments"], probed, template("{containers: [{name: web, livenessProbe: {failureThreshold: 9}}]}"), "/spec/template/spec/containers/0/livenessProbe/failureThreshold"},
	"an unready address": {services, serviceManifest, "spec: {publishNotReadyAddresses: true}", "/spec/publishNotReadyAddresses"},
	"a backend":          {ingresses, ingressManifest, "spec: {defaultBackend: {service: {name: evil, port: {number: 80}}}}", "/spec/defaultBackend"},
	"an ingress class":   {ingresses, ingressManifest, "spec: {ingressClassName: evil}", "/spec/ingressClassName"},
	"a certificate":      {ingresses, ingressManifest, "spec: {tls: [{hosts: [a.example], secretName: evil}]}", "/spec/tls"},
	"a pause":            {gvrs["deployments"], deployment, "spec: {paused: true}", "/spec/paused"},
	"a suspension":       {cronJobs, cronJobManifest, "spec: {suspend: true}", "/spec/suspend"},
	"a time zone":        {cronJobs, cronJobManifest, "spec: {timeZone: Etc/UTC}", "/spec/timeZone"},
	"an external IP":     {services, serviceManifest, "spec: {externalIPs: [203.0.113.7]}", "/spec/externalIPs"},
}

// hidden are the cases that are tried with cleared managed fields as well.
var hidden = []string{"a pause", "a suspension", "a sidecar", "an env", "an image volume", "hostPID", "a finalizer", "a ConfigMap key", "a Secret key", "a service type", "a target port", "another direction", "a longer probe"}

// fromYAML returns the object of a manifest.
func fromYAML(t testing.TB, manifest string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// waysToWrite are the ways in which a second manager writes.
var waysToWrite = map[string]func(t testing.TB, c dynamic.ResourceInterface, u *unstructured.Unstructured, body string){
	"apply": func(t testing.TB, c dynamic.ResourceInterface, u *unstructured.Unstructured, body string) {
		t.Helper()
		o := fromYAML(t, body)
		o.SetAPIVersion(u.GetAPIVersion())
		o.SetKind(u.GetKind())
		o.SetName(u.GetName())
		if _, err := c.Apply(t.Context(), u.GetName(), o, metav1.ApplyOptions{FieldManager: "intruder", Force: true}); err != nil {
			t.Fatal(err)
		}
	},
	"patch": func(t testing.TB, c dynamic.ResourceInterface, u *unstructured.Unstructured, body string) {
		t.Helper()
		strategic(t, c, u.GetName(), body)
	},
	// Whoever may write an object may say that nobody did.
	"patch and clear the managed fields": func(t testing.TB, c dynamic.ResourceInterface, u *unstructured.Unstructured, body string) {
		t.Helper()
		strategic(t, c, u.GetName(), body)
		live, err := c.Get(t.Context(), u.GetName(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		live.SetManagedFields(slices.DeleteFunc(live.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager == "intruder" }))
		if _, err := c.Update(t.Context(), live, metav1.UpdateOptions{FieldManager: "intruder"}); err != nil && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	},
	"clear all managed fields and patch": func(t testing.TB, c dynamic.ResourceInterface, u *unstructured.Unstructured, body string) {
		t.Helper()
		if _, err := c.Patch(t.Context(), u.GetName(), types.MergePatchType, []byte(`{"metadata":{"managedFields":[{}]}}`), metav1.PatchOptions{FieldManager: "intruder"}); err != nil {
			t.Fatal(err)
		}
		strategic(t, c, u.GetName(), body)
	},
}

func strategic(t testing.TB, c dynamic.ResourceInterface, name, body string) {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Patch(t.Context(), name, types.StrategicMergePatchType, j, metav1.PatchOptions{FieldManager: "intruder"}); err != nil {
		t.Fatal(err)
	}
}

func jsonPatch(t testing.TB, c dynamic.ResourceInterface, name, patch string) {
	t.Helper()
	if _, err := c.Patch(t.Context(), name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{FieldManager: "intruder"}); err != nil {
		t.Fatal(err)
	}
}

// restore brings r back under a standing grant, as the reconciler does: when a
// controller writes in between, it plans again.
func restore(t testing.TB, tt *Target, r targets.Rendered) error {
	t.Helper()
	want, err := tt.Desired(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	g := gate.New(&targetstest.Ledger{}, gate.Limits{})
	g.Resume(r.Stack, gate.Standing{Environment: r.Environment, Rendered: r.Digest, Revision: r.Revision.ID, Objects: want})
	for range 10 {
		p, err := tt.Plan(t.Context(), r)
		if err != nil {
			return err
		}
		grant, err := g.Restore(t.Context(), p)
		if err != nil {
			t.Fatalf("the standing grant does not cover the restoring: %v", err)
		}
		if _, err = tt.Apply(t.Context(), grant); !errors.Is(err, targets.ErrStale) {
			return err
		}
		t.Log(err)
	}
	return errors.New("it is stale each time")
}

// TestForeignFieldsAreRemoved: what a second manager adds to a managed object
// where it is closed is found by the watch and by a plan, and is gone after the
// restoring, and nothing else is.
func TestForeignFieldsAreRemoved(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, tc := range foreignCases {
		for way, write := range waysToWrite {
			if strings.Contains(way, "clear") && !slices.Contains(hidden, name) {
				continue
			}
			t.Run(name+"/"+way, func(t *testing.T) {
				t.Parallel()
				ns := testenv.Namespace(t, c)
				tt := target(t, c.Config, ns, nil, nil)
				r := deploy(t, tt, map[string]string{"a.yaml": tc.manifest})
				u := fromYAML(t, tc.manifest)
				client := dyn(t, c.Config).Resource(tc.resource).Namespace(ns)
				before, err := client.Get(t.Context(), u.GetName(), metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				found := observe(t, tt, r)
				owner := getObject(t, dyn(t, c.Config), "namespaces", "", ns)
				write(t, client, u, strings.NewReplacer("UID", string(owner.GetUID()), "NS", ns).Replace(tc.body))
				cleared := strings.Contains(way, "clear")
				checkFinding(t, next(t, found), tc.path, cleared)
				p := mustPlan(t, tt, r)
				if len(p.Changes) != 1 || p.Changes[0].Foreign() != (tc.path != "" && way != "clear all managed fields and patch") && !cleared {
					t.Errorf("plan: %s", mustJSON(p.Changes))
				}
				if how := targetstest.Leaks(string(mustJSON(p)), "stolen-value"); how != "" {
					t.Errorf("the plan shows the Secret's value (%s)", how)
				}
				if err := restore(t, tt, r); err != nil {
					t.Fatal(err)
				}
				after, err := client.Get(t.Context(), u.GetName(), metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if ds := compare("", plainContent(before), plainContent(after), nil); len(ds) != 0 {
					t.Errorf("not restored: %+v", ds)
				}
				if p := mustPlan(t, tt, r); !p.Empty() {
					t.Errorf("after the restoring: %s", mustJSON(p.Changes))
				}
			})
		}
	}
}

const podManifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: web, image: " + otherImage + "}]}\n"

var pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// accountIn waits for the account of a namespace, and gives it a pull secret: no
// Pod is admitted without it.
func accountIn(t testing.TB, d dynamic.Interface, ns string) {
	t.Helper()
	until(t, func() bool {
		_, err := d.Resource(accounts).Namespace(ns).Patch(t.Context(), "default", types.MergePatchType, []byte(`{"imagePullSecrets":[{"name":"pull"}]}`), metav1.PatchOptions{})
		return err == nil
	})
}

// TestPodsAreClosed: what admission puts into a Pod does not hide what others add,
// also when they clear the managed fields.
func TestPodsAreClosed(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, tc := range map[string]struct {
		body, sub, path string
		stays           bool // the API server takes nothing of it back
	}{
		"a finalizer":      {body: "metadata: {finalizers: [evil.example/stay]}", path: "/metadata/finalizers"},
		"an owner":         {body: "metadata: {ownerReferences: [{apiVersion: v1, kind: Namespace, name: NS, uid: UID}]}", path: "/metadata/ownerReferences"},
		"a deadline":       {body: "spec: {activeDeadlineSeconds: 5000}", path: "/spec/activeDeadlineSeconds", stays: true},
		"a debugger":       {body: "spec: {ephemeralContainers: [{name: d, image: " + otherImage + ", command: [sh]}]}", sub: "ephemeralcontainers", path: "/spec/ephemeralContainers", stays: true},
		"a debugger's env": {body: "spec: {ephemeralContainers: [{name: d, image: " + otherImage + ", env: [{name: A, value: b}]}]}", sub: "ephemeralcontainers", path: "/spec/ephemeralContainers", stays: true},
	} {
		for _, cleared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/cleared=%t", name, cleared), func(t *testing.T) {
				t.Parallel()
				ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
				accountIn(t, d, ns)
				tt := target(t, c.Config, ns, nil, nil)
				r := deploy(t, tt, map[string]string{"a.yaml": podManifest})
				client := d.Resource(pods).Namespace(ns)
				owner := getObject(t, d, "namespaces", "", ns)
				body, err := yaml.YAMLToJSON([]byte(strings.NewReplacer("UID", string(owner.GetUID()), "NS", ns).Replace(tc.body)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Patch(t.Context(), "p", types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: "intruder"}, slices.DeleteFunc([]string{tc.sub}, func(s string) bool { return s == "" })...); err != nil {
					t.Fatal(err)
				}
				if cleared {
					live, err := client.Get(t.Context(), "p", metav1.GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					ours := slices.DeleteFunc(live.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager == "intruder" })
					jsonPatch(t, client, "p", string(mustJSON([]operation{{"replace", "/metadata/managedFields", ours}})))
				}
				if got := foreignPaths(mustPlan(t, tt, r)); len(got) != 1 || !strings.HasPrefix(got[0], tc.path) {
					t.Errorf("foreign: %q; want what is in %s", got, tc.path)
				}
				if err := restore(t, tt, r); tc.stays != (err != nil) {
					t.Errorf("restoring: %v", err)
				}
				if p := mustPlan(t, tt, r); p.Empty() == tc.stays {
					t.Errorf("after the restoring: %s", mustJSON(p.Changes))
				}
			})
		}
	}
}

// TestNoFalseAlarmInPods: what admission, the scheduler and the API server put
// into Pods is nobody's addition.
func TestNoFalseAlarmInPods(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	accountIn(t, d, ns)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{
		"a.yaml": podManifest,
		"b.yaml": strings.Replace(podManifest, "name: p", "name: q", 1),
		"c.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: r}\nspec:\n  hostNetwork: true\n  serviceAccountName: default\n  securityContext: {runAsUser: 1}\n" +
			"  tolerations: [{key: a, operator: Exists}]\n  volumes: [{name: v, emptyDir: {}}, {name: s, secret: {secretName: s}}]\n" +
			"  initContainers: [{name: i, image: " + otherImage + "}]\n" +
			"  containers: [{name: web, image: " + otherImage + ", ports: [{containerPort: 80}], livenessProbe: {httpGet: {port: 80}}, volumeMounts: [{name: v, mountPath: /v}], " +
			"env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]\n",
	})
	client := d.Resource(pods).Namespace(ns)
	bind := fromYAML(t, "apiVersion: v1\nkind: Binding\nmetadata: {name: p}\ntarget: {apiVersion: v1, kind: Node, name: somewhere}\n")
	if _, err := client.Create(t.Context(), bind, metav1.CreateOptions{FieldManager: "kube-scheduler"}, "binding"); err != nil && !apierrors.IsConflict(err) { // a scheduler was faster
		t.Fatal(err)
	}
	p := mustPlan(t, tt, r)
	if !p.Empty() {
		t.Errorf("false alarms: %s", mustJSON(p.Changes))
	}
	for _, name := range []string{"p", "q", "r"} {
		live, err := client.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		text := string(mustJSON(live.Object["spec"]))
		for _, filled := range []string{"kube-api-access-", "not-ready", "preemptionPolicy", `"imagePullSecrets"`} {
			if !strings.Contains(text, filled) {
				t.Errorf("%s: admission puts no %s into a Pod: %s", name, filled, text)
			}
		}
	}
}

// TestFillsOfPods: what nobody owns in a Pod says nothing only if admission or
// the scheduler may have put it there, as it is.
func TestFillsOfPods(t *testing.T) {
	t.Parallel()
	c := offline(t, nil).c
	const mount = "/var/run/secrets/kubernetes.io/serviceaccount"
	for patch, want := range map[string]string{
		"spec: {nodeName: n, priority: 0, preemptionPolicy: Never, serviceAccount: a, serviceAccountName: a, enableServiceLinks: true}": "",
		"spec: {tolerations: [{operator: Exists}], imagePullSecrets: [{name: x}], nodeSelector: {a: b}, overhead: {cpu: '1'}}":          "",
		"spec: {volumes: [{name: kube-api-access-x, projected: {sources: [{serviceAccountToken: {path: token}}]}}]}":                    "",
		"spec: {volumes: [{name: kube-api-access-x, projected: {sources: [{secret: {name: x}}]}}]}":                                     "/spec/volumes",
		"spec: {volumes: [{name: kube-api-access-x, hostPath: {path: /}}]}":                                                             "/spec/volumes",
		"spec: {volumes: [{name: other, projected: {sources: [{serviceAccountToken: {path: token}}]}}]}":                                "/spec/volumes",
		"spec: {containers: [{name: web, volumeMounts: [{name: kube-api-access-x, mountPath: " + mount + "}]}]}":                        "",
		"spec: {containers: [{name: web, volumeMounts: [{name: kube-api-access-x, mountPath: /bin}]}]}":                                 "/spec/containers/0/volumeMounts",
		"spec: {containers: [{name: web, volumeMounts: [{name: other, mountPath: " + mount + "}]}]}":                                    "/spec/containers/0/volumeMounts",
		"spec: {containers: [{name: web, command: [sh]}]}":                                                                              "/spec/containers/0/command",
		"spec: {containers: [{name: web, args: [x]}]}":                                                                                  "/spec/containers/0/args",
		"spec: {containers: [{name: web, env: [{name: A, value: b}]}]}":                                                                 "/spec/containers/0/env",
		"spec: {containers: [{name: web, lifecycle: {preStop: {sleep: {}}}}]}":                                                          "/spec/containers/0/lifecycle",
		"spec: {containers: [{name: web, securityContext: {privileged: true}}]}":                                                        "/spec/containers/0/securityContext",
		"spec: {containers: [{name: web}, {name: spy, image: x}]}":                                                                      "/spec/containers/1",
		"spec: {initContainers: [{name: spy, image: x}]}":                                                                               "/spec/initContainers",
		"spec: {ephemeralContainers: [{name: spy, image: x}]}":                                                                          "/spec/ephemeralContainers",
		"spec: {securityContext: {runAsUser: 0}}":                                                                                       "/spec/securityContext",
		"spec: {hostPID: true}":                 "/spec/hostPID",
		"spec: {hostIPC: true}":                 "/spec/hostIPC",
		"spec: {hostNetwork: true}":             "/spec/hostNetwork",
		"spec: {activeDeadlineSeconds: 1}":      "/spec/activeDeadlineSeconds",
		"spec: {enableServiceLinks: false}":     "/spec/enableServiceLinks",
		"metadata: {finalizers: [a.example/b]}": "/metadata/finalizers",
		"metadata: {ownerReferences: [{apiVersion: v1, kind: Pod, name: a, uid: u}]}": "/metadata/ownerReferences",
	} {
		u := fromYAML(t, patch)
		u.SetName("p")
		ours := fromYAML(t, `{"f:spec": {"f:containers": {'k:{"name":"web"}': {".": {}, "f:name": {}}}}}`).Object
		var got []string
		for _, p := range c.undeclared(plan.ObjectID{Kind: "Pod", Name: "p"}, u, ours, func(place) bool { return false }) {
			got = append(got, p.pointer())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: found %q; want %q", patch, got, want)
		}
	}
}

// TestFilledFieldsWithAnotherValue: a field that the server fills in says
// something when it has another value, and nobody owning it changes nothing.
func TestFilledFieldsWithAnotherValue(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	_, definition, definitionName := customResource(testenv.Namespace(t, c))
	hook := "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: NAME}\n" +
		"webhooks: [{name: w.example.com, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {url: 'https://127.0.0.1:1/'}, " +
		"rules: [{apiGroups: [none.example.com], apiVersions: [v1], operations: [CREATE], resources: [nothings]}]}]\n"
	hooks := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	for name, tc := range map[string]struct {
		resource                 schema.GroupVersionResource
		kind, manifest, as, path string
		value                    any
	}{
		"a conversion": {schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
			"CustomResourceDefinition.apiextensions.k8s.io", definition, definitionName, "/spec/conversion",
			map[string]any{"strategy": "Webhook", "webhook": map[string]any{"conversionReviewVersions": []any{"v1"}, "clientConfig": map[string]any{"url": "https://127.0.0.1:1/"}}}},
		"a failure policy":     {hooks, "ValidatingWebhookConfiguration.admissionregistration.k8s.io", hook, "", "/webhooks/0/failurePolicy", "Ignore"},
		"a match policy":       {hooks, "ValidatingWebhookConfiguration.admissionregistration.k8s.io", hook, "", "/webhooks/0/matchPolicy", "Exact"},
		"a namespace selector": {hooks, "ValidatingWebhookConfiguration.admissionregistration.k8s.io", hook, "", "/webhooks/0/namespaceSelector", map[string]any{"matchLabels": map[string]any{"no": "where"}}},
		"an object selector":   {hooks, "ValidatingWebhookConfiguration.admissionregistration.k8s.io", hook, "", "/webhooks/0/objectSelector", map[string]any{"matchLabels": map[string]any{"no": "where"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, as := testenv.Namespace(t, c), tc.as
			if as == "" {
				as = "w-" + ns
			}
			tt := target(t, c.Config, ns, nil, func(s *Spec) { s.Allow.Kinds = []string{tc.kind} })
			r := deploy(t, tt, map[string]string{"a.yaml": strings.ReplaceAll(tc.manifest, "NAME", as)})
			client := dyn(t, c.Config).Resource(tc.resource)
			t.Cleanup(func() { _ = client.Delete(context.Background(), as, metav1.DeleteOptions{}) })
			found := observe(t, tt, r)
			jsonPatch(t, client, as, string(mustJSON([]operation{{"add", tc.path, tc.value}})))
			next(t, found)
			live, err := client.Get(t.Context(), as, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ours := slices.DeleteFunc(live.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager == "intruder" })
			jsonPatch(t, client, as, string(mustJSON([]operation{{"replace", "/metadata/managedFields", ours}})))
			if p := mustPlan(t, tt, r); len(p.Changes) != 1 || !slices.ContainsFunc(p.Changes[0].Fields, func(f plan.Field) bool { return strings.HasPrefix(f.Path, tc.path) }) {
				t.Errorf("plan: %s", mustJSON(p.Changes))
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatal(err)
			}
			after, err := client.Get(t.Context(), as, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if v, ok := valueAt(after.Object, tc.path); ok && equalJSON(v, tc.value) {
				t.Errorf("%s is still %s", tc.path, mustJSON(v))
			}
			if p := mustPlan(t, tt, r); !p.Empty() {
				t.Errorf("after the restoring: %s", mustJSON(p.Changes))
			}
		})
	}
}

// TestServerFills: each value that the server fills in says nothing, and another
// one, or the same elsewhere, does.
func TestServerFills(t *testing.T) {
	t.Parallel()
	const pod, service, peers, hook = "containers: []", "clusterIP: 10.0.0.1", "podSelector: {}", "clientConfig: {}"
	for _, tc := range []struct {
		key, around, value string
		want               bool
	}{
		{"restartPolicy", pod, "Always", true}, {"restartPolicy", "image: x", "Always", false},
		{"dnsPolicy", pod, "ClusterFirst", true}, {"dnsPolicy", pod, "None", false},
		{"schedulerName", pod, "default-scheduler", true}, {"schedulerName", pod, "mine", false},
		{"terminationGracePeriodSeconds", pod, "30", true}, {"terminationGracePeriodSeconds", pod, "0", false},
		{"terminationMessagePath", "", "/dev/termination-log", true}, {"terminationMessagePath", "", "/etc/x", false},
		{"terminationMessagePolicy", "", "File", true}, {"terminationMessagePolicy", "", "FallbackToLogsOnError", false},
		{"imagePullPolicy", "", "IfNotPresent", true}, {"imagePullPolicy", "", "Never", false},
		{"pullPolicy", "", "IfNotPresent", true}, {"pullPolicy", "", "Never", false},
		{"periodSeconds", "", "10", true}, {"periodSeconds", "", "9", false},
		{"successThreshold", "", "1", true}, {"successThreshold", "", "2", false},
		{"failureThreshold", "", "3", true}, {"failureThreshold", "", "30", false},
		{"scheme", "", "HTTP", true}, {"scheme", "", "HTTPS", false},
		{"defaultMode", "", "420", true}, {"defaultMode", "", "511", false},
		{"apiVersion", "fieldPath: metadata.name", "v1", true}, {"apiVersion", "", "v1", false},
		{"protocol", "", "TCP", true}, {"protocol", "", "UDP", false},
		{"timeoutSeconds", "", "1", true}, {"timeoutSeconds", hook, "10", true}, {"timeoutSeconds", "", "10", false},
		{"type", service, "ClusterIP", true}, {"type", service, "LoadBalancer", false}, {"type", service, "NodePort", false},
		{"type", "path: /", "''", true}, {"type", "path: /", "DirectoryOrCreate", false}, {"type", "", "Unconfined", false},
		{"targetPort", "port: 80", "80", true}, {"targetPort", "port: 80", "81", false},
		{"nodePort", "", "30000", true},
		{"policyTypes", peers, "[Ingress]", true}, {"policyTypes", peers, "[Egress]", false}, {"policyTypes", peers, "[Ingress, Egress]", false},
		{"policyTypes", "egress: [{}]", "[Ingress, Egress]", true}, {"policyTypes", "egress: [{}]", "[Ingress]", false},
		{"matchPolicy", "", "Equivalent", true}, {"matchPolicy", "", "Exact", false},
		{"reinvocationPolicy", "", "Never", true}, {"reinvocationPolicy", "", "IfNeeded", false},
		{"failurePolicy", "", "Fail", true}, {"failurePolicy", "", "Ignore", false},
		{"namespaceSelector", "", "{}", true}, {"namespaceSelector", "", "{matchLabels: {a: b}}", false},
		{"port", "namespace: a", "443", true}, {"port", "namespace: a", "444", false}, {"port", "protocol: TCP", "443", false},
		{"conversion", "", "{strategy: None}", true}, {"conversion", "", "{strategy: Webhook}", false},
		{"ingressClassName", "", "any", true},
		{"suspend", "", "false", true}, {"suspend", "", "true", false},
		{"hostPID", pod, "true", false},
	} {
		m := fromYAML(t, "{"+tc.key+": "+tc.value+"}").Object
		around := fromYAML(t, "{"+tc.around+"}").Object
		s := scan{kind: "Any"}
		if got := s.isDefault(place{value: m[tc.key]}, "f:"+tc.key, around, false); got != tc.want {
			t.Errorf("%s: %s beside {%s}: %t", tc.key, tc.value, tc.around, got)
		}
		if s.isDefault(place{value: m[tc.key]}, "f:"+tc.key, around, true) {
			t.Errorf("%s as an element of a list", tc.key)
		}
	}
}

// plainContent is what u says, without what a controller notes in annotations,
// and without empty lists and maps, which mean the same as none.
func plainContent(u *unstructured.Unstructured) any {
	m := content(u.Object)
	unstructured.RemoveNestedField(m, "metadata", "annotations", "deployment.kubernetes.io/revision")
	return dense(m)
}

func dense(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if d := dense(e); d != nil {
				out[k] = d
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		if len(v) == 0 {
			return nil
		}
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = dense(e)
		}
		return out
	}
	return v
}

func checkFinding(t testing.TB, f targets.Finding, path string, cleared bool) {
	t.Helper()
	named := slices.ContainsFunc(f.Fields, func(field plan.Field) bool {
		return field.Foreign && strings.HasPrefix(field.Path, path) && field.To == ""
	})
	switch {
	case cleared:
		if f.Class != targets.Foreign && f.Class != targets.Modified {
			t.Errorf("finding: %s", mustJSON(f))
		}
	case path == "":
		if f.Class != targets.Modified || f.Actor != "intruder" {
			t.Errorf("finding: %s", mustJSON(f))
		}
	case f.Class != targets.Foreign || f.Actor != "intruder" || f.Since.IsZero() || !named:
		t.Errorf("finding: %s", mustJSON(f))
	}
	if how := targetstest.Leaks(string(mustJSON(f)), "stolen-value"); how != "" {
		t.Errorf("the finding shows the Secret's value (%s): %s", how, mustJSON(f))
	}
}

// clusterWith returns a Cluster with injectors.
func clusterWith(t testing.TB, conf *rest.Config, injectors ...Injector) *Cluster {
	t.Helper()
	c := cluster(t, conf, nil)
	c.cfg.Injectors = injectors
	return c
}

func targetOf(t testing.TB, c *Cluster, ns string) *Target {
	t.Helper()
	tt, err := New(c, spec(ns, nil))
	if err != nil {
		t.Fatal(err)
	}
	return tt
}

// meshInjector may add a container with one image, its environment, and a volume.
var meshInjector = Injector{
	Manager: "mesh", Kinds: []string{"Deployment"}, Images: []string{"registry.example/proxy@sha256:*"},
	Paths: []string{"/spec/template/spec/containers", "/spec/template/spec/volumes/*"},
}

const proxyImage = "registry.example/proxy@sha256:2222222222222222222222222222222222222222222222222222222222222222"

// TestInjectors: what the operator allows stays, and nothing beside it.
func TestInjectors(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	sidecar := func(image string) string {
		return template("{containers: [{name: proxy, image: " + image + ", env: [{name: A, value: b}]}], volumes: [{name: certs, emptyDir: {}}]}")
	}
	for name, tc := range map[string]struct {
		manager, body string
		in            Injector
		want          []string // the fields that go
	}{
		"an allowed injector stays":    {"mesh", sidecar(proxyImage), meshInjector, nil},
		"another manager does not":     {"intruder", sidecar(proxyImage), meshInjector, []string{"/spec/template/spec/containers/1", "/spec/template/spec/volumes/0"}},
		"another image does not":       {"mesh", sidecar(otherImage), meshInjector, []string{"/spec/template/spec/containers/1"}},
		"another path does not":        {"mesh", template("{hostPID: true, volumes: [{name: certs, emptyDir: {}}]}"), meshInjector, []string{"/spec/template/spec/hostPID"}},
		"another kind does not":        {"mesh", sidecar(proxyImage), injector(func(in *Injector) { in.Kinds = []string{"StatefulSet"} }), []string{"/spec/template/spec/containers/1", "/spec/template/spec/volumes/0"}},
		"another subresource does not": {"mesh", sidecar(proxyImage), injector(func(in *Injector) { in.Subresource = "scale" }), []string{"/spec/template/spec/containers/1", "/spec/template/spec/volumes/0"}},
		"no image is allowed by paths": {"mesh", sidecar(proxyImage), injector(func(in *Injector) { in.Images = nil }), []string{"/spec/template/spec/containers/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := testenv.Namespace(t, c)
			tt := targetOf(t, clusterWith(t, c.Config, tc.in), ns)
			r := deploy(t, tt, map[string]string{"a.yaml": deployment})
			client := dyn(t, c.Config).Resource(gvrs["deployments"]).Namespace(ns)
			applyAs(t, client, tc.manager, deployment, tc.body)
			p := mustPlan(t, tt, r)
			if got := foreignPaths(p); !slices.Equal(got, tc.want) {
				t.Fatalf("foreign: %q; want %q", got, tc.want)
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatal(err)
			}
			if p := mustPlan(t, tt, r); !p.Empty() {
				t.Errorf("after the restoring: %s", mustJSON(p.Changes))
			}
			live := getObject(t, dyn(t, c.Config), "deployments", ns, "web")
			if stays := strings.Contains(string(mustJSON(live.Object["spec"])), "proxy@"); stays != (tc.want == nil) {
				t.Errorf("the sidecar stays: %v", stays)
			}
		})
	}
}

func injector(change func(*Injector)) Injector {
	in := meshInjector
	change(&in)
	return in
}

// applyAs has manager apply body to the object of manifest, over everybody's objection.
func applyAs(t testing.TB, c dynamic.ResourceInterface, manager, manifest, body string) {
	t.Helper()
	u, o := fromYAML(t, manifest), fromYAML(t, body)
	o.SetAPIVersion(u.GetAPIVersion())
	o.SetKind(u.GetKind())
	o.SetName(u.GetName())
	if _, err := c.Apply(t.Context(), u.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: true}); err != nil {
		t.Fatal(err)
	}
}

func foreignPaths(p plan.Plan) []string {
	var out []string
	for _, c := range p.Changes {
		for _, f := range c.Fields {
			if f.Foreign {
				out = append(out, f.Path)
			}
		}
	}
	return out
}

// TestWithinAnInjection: what an intruder adds to an injector's container goes,
// and the container stays.
func TestWithinAnInjection(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := targetOf(t, clusterWith(t, c.Config, meshInjector), ns)
	r := deploy(t, tt, map[string]string{"a.yaml": deployment})
	client := dyn(t, c.Config).Resource(gvrs["deployments"]).Namespace(ns)
	applyAs(t, client, "mesh", deployment, template("{containers: [{name: proxy, image: "+proxyImage+", env: [{name: A, value: b}]}, {name: web, env: [{name: MESH, value: '1'}]}]}"))
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Fatalf("an allowed injector is reported: %s", mustJSON(p.Changes))
	}
	strategic(t, client, "web", template("{containers: [{name: proxy, env: [{name: EVIL, value: x}]}, {name: web, env: [{name: EVIL, value: other}]}]}"))
	p := mustPlan(t, tt, r)
	if n := len(foreignPaths(p)); n != 2 {
		t.Errorf("foreign: %q", foreignPaths(p))
	}
	if err := restore(t, tt, r); err != nil {
		t.Fatal(err)
	}
	text := string(mustJSON(getObject(t, dyn(t, c.Config), "deployments", ns, "web").Object["spec"]))
	if strings.Contains(text, "EVIL") || !strings.Contains(text, proxyImage) || !strings.Contains(text, "MESH") {
		t.Errorf("after the restoring: %s", text)
	}
}

func TestInjectorsThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Injector){
		"no manager":         func(in *Injector) { in.Manager = "" },
		"our own manager":    func(in *Injector) { in.Manager = defaultManager },
		"no kind":            func(in *Injector) { in.Kinds = nil },
		"no path":            func(in *Injector) { in.Paths = nil },
		"the whole object":   func(in *Injector) { in.Paths = []string{"/"} },
		"not a pointer":      func(in *Injector) { in.Paths = []string{"spec"} },
		"not a glob":         func(in *Injector) { in.Kinds = []string{"["} },
		"not a glob (image)": func(in *Injector) { in.Images = []string{"["} },
	} {
		in := injector(change)
		good := offline(t, nil).c.cfg
		good.Injectors = []Injector{in}
		if _, err := NewCluster(good); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestNoForeignFalseAlarm: what controllers, autoscalers and people do to
// managed objects in the course of their work is nobody's business, and where
// the watch is concerned costs no request.
func TestNoForeignFalseAlarm(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	conf, n := counted(c.Config)
	tt := target(t, conf, ns, nil, func(s *Spec) {
		s.Allow.Kinds = []string{"*", "ClusterRole.rbac.authorization.k8s.io"}
	})
	name := "aggregated-" + ns
	files := map[string]string{
		"d.yaml":  strings.Replace(deployment, "  replicas: 0\n", "", 1),
		"q.yaml":  strings.Replace(strings.Replace(deployment, "name: web}", "name: quiet}", 1), "replicas: 0", "paused: true\n  replicas: 0", 1),
		"s.yaml":  serviceManifest,
		"p.yaml":  "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: p}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
		"a.yaml":  "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n",
		"t.yaml":  "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata: {name: t, annotations: {kubernetes.io/service-account.name: default}}\n",
		"c.yaml":  "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: " + name + "}\naggregationRule: {clusterRoleSelectors: [{matchLabels: {x: " + ns + "}}]}\n",
		"cc.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: part-" + name + ", labels: {x: " + ns + "}}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]\n",
		"cj.yaml": "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: j}\nspec: {schedule: '0 0 1 1 *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: j, image: " + otherImage + "}]}}}}}\n",
		"i.yaml":  ingressManifest,
		"ss.yaml": "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: s}\nspec: {serviceName: s, selector: {matchLabels: {a: s}}, template: {metadata: {labels: {a: s}}, spec: {containers: [{name: s, image: " + otherImage + ", ports: [{containerPort: 80}], livenessProbe: {httpGet: {port: 80}}}], volumes: [{name: c, configMap: {name: c, optional: true}}]}}}\n",
	}
	t.Cleanup(func() {
		for _, role := range []string{name, "part-" + name} {
			_ = d.Resource(schema.GroupVersionResource{Group: roles.Group, Version: "v1", Resource: "clusterroles"}).Delete(context.Background(), role, metav1.DeleteOptions{})
		}
	})
	until(t, func() bool { // the controller deletes tokens of accounts that it does not know
		_, err := d.Resource(accounts).Namespace(ns).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	deployments := d.Resource(gvrs["deployments"]).Namespace(ns)
	for what, patch := range map[string]string{
		"rollout restart": `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`,
		"labels":          `{"metadata":{"labels":{"team":"a"}}}`,
		"autoscaled":      `{"spec":{"template":{"spec":{"containers":[{"name":"web","resources":{"requests":{"cpu":"1"}}}]}}}}`,
	} {
		if _, err := deployments.Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "kubectl-" + what[:4]}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	edit(t, d, "kube-controller-manager", "deployments", ns, "web", `{"spec":{"replicas":3}}`, "scale")
	// The controllers have done their work when the rules and the token are there.
	until(t, func() bool {
		role, err := d.Resource(schema.GroupVersionResource{Group: roles.Group, Version: "v1", Resource: "clusterroles"}).Get(t.Context(), name, metav1.GetOptions{})
		token := getObject(t, d, "secrets", ns, "t")
		rollout := getObject(t, d, "deployments", ns, "web")
		seen, _, _ := unstructured.NestedInt64(rollout.Object, "status", "observedGeneration")
		return err == nil && role.Object["rules"] != nil && token.Object["data"] != nil && seen == rollout.GetGeneration()
	})
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("false alarms: %s", mustJSON(p.Changes))
	}
	// What is known to be clean costs nothing when it is written again.
	edit(t, d, "x", "deployments", ns, "web", `{"metadata":{"annotations":{"settled":"yes"}}}`)
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("false alarms: %s", mustJSON(p.Changes))
	}
	// What the controllers did before is looked at when this is found: one loop
	// judges all candidates, in turn.
	edit(t, d, "visitor", "deployments", ns, "quiet", `{"spec":{"template":{"spec":{"hostPID":true}}}}`)
	if f := next(t, found); f.ID.Name != "quiet" || f.Actor != "visitor" {
		t.Errorf("finding: %s", mustJSON(f))
	}
	n.Store(0)
	const harmless = 20
	for i := range harmless / 2 {
		edit(t, d, "autoscaler", "deployments", ns, "web", fmt.Sprintf(`{"spec":{"replicas":%d}}`, i%2), "scale")
		edit(t, d, "status-writer", "deployments", ns, "web", fmt.Sprintf(`{"status":{"observedGeneration":%d}}`, i), "status")
	}
	// One watch has them all, in order: what is found last was looked at last.
	edit(t, d, "intruder", "deployments", ns, "quiet", `{"spec":{"template":{"spec":{"hostIPC":true}}}}`)
	f := next(t, found)
	if len(f.Fields) == 1 && f.Actor == "visitor" { // once more, since its controller wrote too
		f = next(t, found)
	}
	if f.ID.Name != "quiet" || f.Class != targets.Foreign || len(f.Fields) != 2 {
		t.Errorf("finding: %s", mustJSON(f))
	}
	// A read and two dry runs, and again whenever a controller writes in between.
	if got := n.Load(); got >= harmless {
		t.Errorf("%d requests for %d harmless writes and one that is not; want 3, or a few more", got, harmless)
	}
	if len(found) != 0 {
		t.Errorf("one finding too many: %s", mustJSON(<-found))
	}
}

// until waits for what controllers do.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(time.Minute), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatal("the controllers do not get there")
		case <-tick.C:
		}
	}
}

// TestInvalidInBetween: others turned a field into something beside which ours
// is not valid. Neither our apply nor the removal alone leads back.
func TestInvalidInBetween(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	manifest := strings.Replace(deployment, "        securityContext: {}\n", `        securityContext: {}
        env: [{name: MODE, value: safe}]
        livenessProbe: {httpGet: {path: /, port: 80}}
      volumes: [{name: conf, configMap: {name: c}}]
`, 1)
	for name, patch := range map[string]string{
		"a value that became a reference": `[{"op":"remove","path":"/spec/template/spec/containers/0/env/0/value"},{"op":"add","path":"/spec/template/spec/containers/0/env/0/valueFrom","value":{"fieldRef":{"fieldPath":"metadata.name"}}}]`,
		"a volume of the host":            `[{"op":"remove","path":"/spec/template/spec/volumes/0/configMap"},{"op":"add","path":"/spec/template/spec/volumes/0/hostPath","value":{"path":"/"}}]`,
		"a probe that runs a command":     `[{"op":"remove","path":"/spec/template/spec/containers/0/livenessProbe/httpGet"},{"op":"add","path":"/spec/template/spec/containers/0/livenessProbe/exec","value":{"command":["evil"]}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			tt := target(t, c.Config, ns, nil, nil)
			r := deploy(t, tt, map[string]string{"a.yaml": manifest})
			before := getObject(t, d, "deployments", ns, "web")
			found := observe(t, tt, r)
			jsonPatch(t, d.Resource(gvrs["deployments"]).Namespace(ns), "web", patch)
			f := next(t, found)
			added := slices.ContainsFunc(f.Fields, func(field plan.Field) bool { return field.Foreign })
			if f.Class != targets.Modified || f.Actor != "intruder" || !added {
				t.Errorf("finding: %s", mustJSON(f))
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatal(err)
			}
			if ds := compare("", plainContent(before), plainContent(getObject(t, d, "deployments", ns, "web")), nil); len(ds) != 0 {
				t.Errorf("not restored: %+v", ds)
			}
			if p := mustPlan(t, tt, r); !p.Empty() {
				t.Errorf("after the restoring: %s", mustJSON(p.Changes))
			}
		})
	}
}

// TestImagesAreNeverYielded: a rule that lets others set a field does not let
// them choose what runs.
func TestImagesAreNeverYielded(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for _, rule := range []string{"/spec", "/spec/template", "/spec/template/spec", "/spec/template/spec/containers"} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			tt := target(t, c.Config, ns, nil, func(s *Spec) {
				s.Yield = func(_ plan.ObjectID, pointer string) bool { return plan.Within(rule, pointer) }
			})
			r := deploy(t, tt, map[string]string{"a.yaml": deployment})
			client := d.Resource(gvrs["deployments"]).Namespace(ns)
			strategic(t, client, "web", template("{containers: [{name: web, image: "+otherImage+"}, {name: spy, image: "+otherImage+"}]}"))
			if p := mustPlan(t, tt, r); !slices.Contains(foreignPaths(p), "/spec/template/spec/containers/1") && !slices.Contains(foreignPaths(p), "/spec/template/spec/containers/0") {
				t.Errorf("plan: %s", mustJSON(p.Changes))
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatal(err)
			}
			if text := string(mustJSON(getObject(t, d, "deployments", ns, "web").Object["spec"])); strings.Contains(text, otherImage) {
				t.Errorf("after the restoring: %s", text)
			}
		})
	}
}

// TestCoOwnedKey: a key that another manager owns with us is drift as soon as we
// no longer declare it, and a commit that removes it removes it.
func TestCoOwnedKey(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	both := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {key: '1', shared: x}\n"
	r := deploy(t, tt, map[string]string{"a.yaml": both})
	client := d.Resource(gvrs["configmaps"]).Namespace(ns)
	applyAs(t, client, "second", both, "data: {shared: x}")
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("a second owner of the same value: %s", mustJSON(p.Changes))
	}
	applyAs(t, client, "second", both, "data: {shared: taken}")
	if p := mustPlan(t, tt, r); len(p.Changes) != 1 || len(foreignPaths(p)) != 0 || p.Changes[0].Actor != "second" {
		t.Errorf("taken by force: %s", mustJSON(p.Changes))
	}
	deploy(t, tt, map[string]string{"a.yaml": both})
	applyAs(t, client, "second", both, "data: {shared: x}")
	r = deploy(t, tt, map[string]string{"a.yaml": configMap("c", "1")})
	if data := getObject(t, d, "configmaps", ns, "c").Object["data"]; !equalJSON(data, map[string]any{"key": "1"}) {
		t.Errorf("data: %s", mustJSON(data))
	}
	if p := mustPlan(t, tt, r); !p.Empty() {
		t.Errorf("after the commit: %s", mustJSON(p.Changes))
	}
}

// TestCommitOverForeignFields: a new commit brings its own changes and removes
// what others added, in one plan, whatever stands before it in the list.
func TestCommitOverForeignFields(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	deploy(t, tt, map[string]string{"a.yaml": deployment})
	jsonPatch(t, d.Resource(gvrs["deployments"]).Namespace(ns), "web", `[{"op":"add","path":"/spec/template/spec/containers/0","value":{"name":"spy","image":"`+otherImage+`"}},
		{"op":"add","path":"/spec/template/spec/containers/1/env","value":[{"name":"A","value":"b"}]}]`)
	next := strings.Replace(deployment, "name: web\n        image", "name: web\n        workingDir: /srv\n        image", 1)
	r := mustRender(t, tt, map[string]string{"a.yaml": next})
	p := mustPlan(t, tt, r)
	if got := foreignPaths(p); !slices.Equal(got, []string{"/spec/template/spec/containers/0", "/spec/template/spec/containers/1/env"}) || p.Changes[0].Foreign() {
		t.Errorf("plan: %s", mustJSON(p.Changes))
	}
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil && !errors.Is(err, targets.ErrStale) {
		t.Fatal(err)
	}
	deploy(t, tt, map[string]string{"a.yaml": next})
	text := string(mustJSON(getObject(t, d, "deployments", ns, "web").Object["spec"]))
	if strings.Contains(text, "spy") || strings.Contains(text, `"env"`) || !strings.Contains(text, "/srv") {
		t.Errorf("after the commit: %s", text)
	}
}

// TestForeignGrantIsExact: the grant to remove something covers what was judged,
// in the place where it was, and nothing that was put there since.
func TestForeignGrantIsExact(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, move := range map[string]string{
		"another value":         `[{"op":"replace","path":"/spec/template/spec/containers/1/image","value":"registry.example/third"}]`,
		"another order":         `[{"op":"add","path":"/spec/template/spec/containers/0","value":{"name":"first","image":"registry.example/third"}}]`,
		"gone in the meanwhile": `[{"op":"remove","path":"/spec/template/spec/containers/1"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			tt := target(t, c.Config, ns, nil, nil)
			r := deploy(t, tt, map[string]string{"a.yaml": deployment})
			client := d.Resource(gvrs["deployments"]).Namespace(ns)
			jsonPatch(t, client, "web", `[{"op":"add","path":"/spec/template/spec/containers/-","value":{"name":"spy","image":"`+otherImage+`"}}]`)
			p := mustPlan(t, tt, r)
			jsonPatch(t, client, "web", move)
			if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
				t.Errorf("applying what was judged before: %v; want ErrStale", err)
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestForeignGrantNamesTheElement: the same value at the same index of a list is
// not what was judged when it belongs to another element.
func TestForeignGrantNamesTheElement(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": deployment})
	client := d.Resource(gvrs["deployments"]).Namespace(ns)
	const env = `[{"name":"E","value":"x"}]`
	jsonPatch(t, client, "web", `[{"op":"add","path":"/spec/template/spec/containers/0/env","value":`+env+`}]`)
	p := mustPlan(t, tt, r)
	jsonPatch(t, client, "web", `[{"op":"add","path":"/spec/template/spec/containers/0","value":{"name":"first","image":"`+otherImage+`","env":`+env+`}}]`)
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); !errors.Is(err, targets.ErrStale) {
		t.Errorf("applying what was judged of another element: %v; want ErrStale", err)
	}
}

// TestForeignPatchIsBound: what is sent beside the apply is part of what was judged.
func TestForeignPatchIsBound(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("c", "1")})
	edit(t, d, "intruder", "configmaps", ns, "c", `{"data":{"evil":"x"}}`)
	p := mustPlan(t, tt, r)
	fix := p.Private.(*planned).changes[0].fix
	fix[len(fix)-1].Path = "/data/key"
	if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); fault.KindOf(err) != fault.Internal {
		t.Errorf("a patch that was not judged: %v", err)
	}
	if v, _, _ := unstructured.NestedString(getObject(t, d, "configmaps", ns, "c").Object, "data", "key"); v != "1" {
		t.Errorf("data.key is %q", v)
	}
}

// admission has the API server mutate the deployments of a namespace, as a
// webhook would, and returns when it does.
func admission(t testing.TB, conf *rest.Config, ns, spec string) {
	t.Helper()
	d := dyn(t, conf)
	group := schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}
	for resource, manifest := range map[string]string{
		"mutatingadmissionpolicies": `kind: MutatingAdmissionPolicy
spec:
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + ns + `}}
    resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}]
  reinvocationPolicy: Never
  failurePolicy: Fail
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: 'Object{metadata: Object.metadata{labels: {"mutated": "yes"}}, spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec` + spec + `}}}'
`,
		"mutatingadmissionpolicybindings": "kind: MutatingAdmissionPolicyBinding\nspec: {policyName: mutate-" + ns + "}\n",
	} {
		u := fromYAML(t, manifest)
		u.SetAPIVersion(group.String())
		u.SetName("mutate-" + ns)
		client := d.Resource(group.WithResource(resource))
		if _, err := client.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Delete(context.Background(), u.GetName(), metav1.DeleteOptions{}) })
	}
	probe := fromYAML(t, strings.Replace(deployment, "name: web}", "name: probe}", 1))
	until(t, func() bool {
		u, err := d.Resource(gvrs["deployments"]).Namespace(ns).Create(t.Context(), probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err == nil && u.GetLabels()["mutated"] == "yes"
	})
}

// TestAdmissionThatMutates: what admission adds to every write is nobody's
// addition. An image is one all the same, until the operator allows it.
func TestAdmissionThatMutates(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	deployed := func(t *testing.T, spec string, injectors ...Injector) (*Target, targets.Rendered) {
		t.Helper()
		ns := testenv.Namespace(t, c)
		admission(t, c.Config, ns, spec)
		tt := targetOf(t, clusterWith(t, c.Config, injectors...), ns)
		r := mustRender(t, tt, map[string]string{"a.yaml": deployment})
		if _, err := tt.Apply(t.Context(), targetstest.Grant(t.Context(), t, mustPlan(t, tt, r))); err != nil {
			t.Fatal(err)
		}
		return tt, r
	}
	image := `{containers: [Object.spec.template.spec.containers{name: "proxy", image: "` + proxyImage + `"}]}`
	t.Run("a default", func(t *testing.T) {
		t.Parallel()
		tt, r := deployed(t, `{containers: [Object.spec.template.spec.containers{name: "web", env: [Object.spec.template.spec.containers.env{name: "REGION", value: "x"}]}]}`)
		if p := mustPlan(t, tt, r); !p.Empty() {
			t.Errorf("plan: %s", mustJSON(p.Changes))
		}
	})
	t.Run("an image", func(t *testing.T) {
		t.Parallel()
		tt, r := deployed(t, image)
		found := observe(t, tt, r)
		if f := next(t, found); f.Class != targets.Foreign || len(f.Fields) != 1 || !strings.HasPrefix(f.Fields[0].Path, "/spec/template/spec/containers/") {
			t.Errorf("finding: %s", mustJSON(f))
		}
		if err := restore(t, tt, r); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.HintOf(err), "injectors") {
			t.Errorf("an image that comes back: %v", err)
		}
	})
	t.Run("an image that is allowed", func(t *testing.T) {
		t.Parallel()
		tt, r := deployed(t, image, meshInjector)
		if p := mustPlan(t, tt, r); !p.Empty() {
			t.Errorf("plan: %s", mustJSON(p.Changes))
		}
	})
}

func TestOwnDomain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind, finalizer string
		want            bool
	}{
		{"Certificate.cert-manager.io", "acme.cert-manager.io/finalizer", true},
		{"Kafka.kafka.strimzi.io", "strimzi.io/topic-operator", true},
		{"Rollout.argoproj.io", "resources-finalizer.argocd.argoproj.io", true},
		{"Kafka.kafka.strimzi.io", "evil.example/stay", false},
		{"Kafka.kafka.strimzi.io", "io", false},
		{"Deployment.apps", "apps", false},
		{"Ingress.networking.k8s.io", "evil.k8s.io/stay", false},
		{"ConfigMap", "foo", false},
	} {
		if got := ownDomain(tc.kind, tc.finalizer); got != tc.want {
			t.Errorf("%s, %s: %v", tc.kind, tc.finalizer, got)
		}
	}
}

// TestCustomKindsAreClosed: pod specifications are found by their shape, and the
// finalizers of a kind's own controller are left alone.
func TestCustomKindsAreClosed(t *testing.T) {
	t.Parallel()
	c := offline(t, nil).c
	u := fromYAML(t, `apiVersion: example.dev/v1
kind: Widget
metadata:
  name: w
  finalizers: [widgets.example.dev/cleanup, evil.example/stay]
  managedFields:
  - {manager: holdfast, operation: Apply, fieldsV1: {"f:spec": {"f:deep": {"f:pod": {"f:containers": {"k:{\"name\":\"a<b\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}}}
  - {manager: controller, operation: Update, fieldsV1: {"f:metadata": {"f:finalizers": {".": {}, "v:\"widgets.example.dev/cleanup\"": {}}}, "f:spec": {"f:size": {}}}}
  - {manager: intruder, operation: Update, fieldsV1: {"f:metadata": {"f:finalizers": {"v:\"evil.example/stay\"": {}}}, "f:spec": {"f:deep": {"f:pod": {"f:hostPID": {}, "f:containers": {"k:{\"name\":\"a<b\"}": {"f:command": {}}}}}}}}
spec:
  size: 3
  deep: {pod: {hostPID: true, containers: [{name: a<b, image: x, command: [sh], resources: {limits: {cpu: "1"}}}]}}
  unrelated: {volumes: many}
  other: {volumes: [{name: v, hostPath: {path: /}}]}
`)
	id := plan.ObjectID{Kind: "Widget.example.dev", Name: "w"}
	var got []string
	for _, p := range c.undeclared(id, u, c.entry(u), func(p place) bool { return usual(id, u, p) }) {
		got = append(got, p.pointer())
		if tokens, value, ok := locate(u.Object, p.keys); !ok || pointerOf(tokens) != p.pointer() || !equalJSON(value, p.value) {
			t.Errorf("%s is found at %q", p.pointer(), tokens)
		}
	}
	want := []string{"/metadata/finalizers/1", "/spec/deep/pod/containers/0/command", "/spec/deep/pod/hostPID", "/spec/other/volumes"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// FuzzUndeclared: field sets come from the API server, but whoever may write an
// object may write them too.
func FuzzUndeclared(f *testing.F) {
	f.Add([]byte(`{"spec":{"containers":[{"name":"a"}],"volumes":[{"name":"v"}]}}`), []byte(`{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{}}}}}`), []byte(`{"f:spec":{"f:hostPID":{}}}`))
	f.Add([]byte(`{"metadata":{"finalizers":["a","b"]},"data":{"k":1}}`), []byte(`{}`), []byte(`{"f:metadata":{"f:finalizers":{"v:\"a\"":{},"v:1":{},"i:7":{},"k:{}":{}}}}`))
	f.Add([]byte(`{"containers":[1,null,{"name":{}},[]]}`), []byte(`{"f:containers":{"k:{\"name\":null}":{},"v:{":{}}}`), []byte(`{"f:containers":[]}`))
	c := offline(f, nil).c
	f.Fuzz(func(t *testing.T, object, ours, theirs []byte) {
		u := &unstructured.Unstructured{}
		var own, other map[string]any
		if json.Unmarshal(object, &u.Object) != nil || json.Unmarshal(ours, &own) != nil || json.Unmarshal(theirs, &other) != nil || u.Object == nil {
			t.Skip()
		}
		if err := unstructured.SetNestedSlice(u.Object, []any{map[string]any{"manager": "x", "operation": "Update", "fieldsV1": other}}, "metadata", "managedFields"); err != nil {
			t.Skip()
		}
		id := plan.ObjectID{Kind: "ConfigMap", Name: "c"}
		places := c.undeclared(id, u, own, nil)
		for _, p := range places {
			if v, ok := valueAt(u.Object, p.pointer()); !ok || !equalJSON(v, p.value) {
				t.Errorf("nothing is at %s", p.pointer())
			}
			if _, declared := follow(own, p.keys); declared {
				t.Errorf("%s is declared", p.pointer())
			}
		}
		ops, _ := removal(places, u.Object)
		left := u.DeepCopy().Object
		for _, op := range ops {
			if op.Op == "remove" {
				without(left, pointerTokens(op.Path))
			}
		}
	})
}

// randomEdits are what intruders do to the deployment of TestRandomEdits. Some are
// refused in some order of them.
var randomEdits = []string{
	`[{"op":"add","path":"/spec/template/spec/containers/0","value":{"name":"spy","image":"` + otherImage + `","env":[{"name":"A","value":"b"}]}}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/-","value":{"name":"late","image":"` + otherImage + `"}}]`,
	`[{"op":"add","path":"/spec/template/spec/initContainers","value":[{"name":"first","image":"` + otherImage + `"}]}]`,
	`[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"` + otherImage + `"}]`,
	`[{"op":"replace","path":"/spec/template/spec/containers/0/command","value":["sh"]}]`,
	`[{"op":"remove","path":"/spec/template/spec/containers/0/command"}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/args","value":["-x"]}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/env/0","value":{"name":"LD_PRELOAD","value":"x"}}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/env/-","value":{"name":"E","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}}]`,
	`[{"op":"remove","path":"/spec/template/spec/containers/0/env/0"}]`,
	`[{"op":"remove","path":"/spec/template/spec/containers/0/env"}]`,
	`[{"op":"replace","path":"/spec/template/spec/containers/0/env/1/value","value":"changed"}]`,
	`[{"op":"remove","path":"/spec/template/spec/containers/0/env/1/value"},{"op":"add","path":"/spec/template/spec/containers/0/env/1/valueFrom","value":{"fieldRef":{"fieldPath":"metadata.name"}}}]`,
	`[{"op":"add","path":"/spec/template/spec/volumes/-","value":{"name":"host","hostPath":{"path":"/"}}},{"op":"add","path":"/spec/template/spec/containers/0/volumeMounts/-","value":{"name":"host","mountPath":"/host"}}]`,
	`[{"op":"remove","path":"/spec/template/spec/volumes/0/emptyDir"},{"op":"add","path":"/spec/template/spec/volumes/0/hostPath","value":{"path":"/"}}]`,
	`[{"op":"add","path":"/spec/template/spec/hostNetwork","value":true}]`,
	`[{"op":"add","path":"/spec/template/spec/serviceAccountName","value":"admin"}]`,
	`[{"op":"add","path":"/spec/template/spec/securityContext","value":{"runAsUser":0}}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/securityContext/privileged","value":true}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem","value":false}]`,
	`[{"op":"add","path":"/spec/template/spec/tolerations","value":[{"operator":"Exists"}]}]`,
	`[{"op":"replace","path":"/spec/template/spec/dnsPolicy","value":"Default"}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/ports/-","value":{"containerPort":9999,"protocol":"UDP"}}]`,
	`[{"op":"add","path":"/spec/template/spec/containers/0/lifecycle","value":{"postStart":{"exec":{"command":["evil"]}}}}]`,
	`[{"op":"add","path":"/metadata/finalizers","value":["evil.example/stay"]}]`,
	`[{"op":"remove","path":"/metadata/managedFields/0"}]`,
	`[{"op":"remove","path":"/metadata/managedFields/1"}]`,
	`[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]`,
	`[{"op":"remove","path":"/metadata/labels"}]`,
}

// TestRandomEdits: whatever intruders do to a deployment, in whatever order, the
// restoring leads back to exactly what it was.
func TestRandomEdits(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	manifest := strings.Replace(deployment, "        securityContext: {}\n", `        securityContext: {readOnlyRootFilesystem: true}
        command: [serve]
        env: [{name: MODE, value: safe}, {name: LEVEL, value: '3'}]
        ports: [{containerPort: 80}]
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
`, 1)
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 12))
			ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
			tt := target(t, c.Config, ns, nil, nil)
			r := deploy(t, tt, map[string]string{"a.yaml": manifest})
			before := getObject(t, d, "deployments", ns, "web")
			var done []string
			for range 1 + random.IntN(6) {
				e := randomEdits[random.IntN(len(randomEdits))]
				_, err := d.Resource(gvrs["deployments"]).Namespace(ns).Patch(t.Context(), "web", types.JSONPatchType, []byte(e),
					metav1.PatchOptions{FieldManager: fmt.Sprint("intruder", random.IntN(2))})
				if err == nil {
					done = append(done, e)
				}
			}
			if err := restore(t, tt, r); err != nil {
				t.Fatalf("%v, after\n%s", err, strings.Join(done, "\n"))
			}
			if ds := compare("", plainContent(before), plainContent(getObject(t, d, "deployments", ns, "web")), nil); len(ds) != 0 {
				t.Errorf("not restored: %+v, after\n%s", ds, strings.Join(done, "\n"))
			}
			if p := mustPlan(t, tt, r); !p.Empty() {
				t.Errorf("after the restoring: %s, after\n%s", mustJSON(p.Changes), strings.Join(done, "\n"))
			}
		})
	}
}
