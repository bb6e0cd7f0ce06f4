package kubernetes

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// Each rule that is built in knows an object without a status, one on its way, one
// that is there, and one that failed.
func TestKnownHealth(t *testing.T) {
	t.Parallel()
	rules, err := builtinHealthRules()
	if err != nil {
		t.Fatal(err)
	}
	condition := func(pairs ...string) string {
		var out []string
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, fmt.Sprintf("{type: %s, status: %q}", pairs[i], pairs[i+1]))
		}
		return "conditions: [" + strings.Join(out, ", ") + "]"
	}
	cases := map[string]struct{ current, waiting, failed string }{
		"Application.argoproj.io":                       {"health: {status: Healthy}, sync: {status: Synced}", "health: {status: Healthy}, sync: {status: OutOfSync}", "health: {status: Degraded}"},
		"Backup.postgresql.cnpg.io":                     {"phase: completed", "phase: running", "phase: failed"},
		"Backup.velero.io":                              {"phase: Completed", "phase: InProgress", "phase: PartiallyFailed"},
		"Cluster.cluster.x-k8s.io":                      {condition("Ready", "True"), condition("Ready", "False"), "phase: Failed"},
		"Elasticsearch.elasticsearch.k8s.elastic.co":    {"phase: Ready, health: green", "phase: ApplyingChanges, health: red", "phase: Invalid"},
		"Kibana.kibana.k8s.elastic.co":                  {"health: green", "health: red", ""},
		"MongoDBCommunity.mongodbcommunity.mongodb.com": {"phase: Running", "phase: Pending", "phase: Failed"},
		"Rollout.argoproj.io":                           {"phase: Healthy", "phase: Progressing", "phase: Degraded"},
		"Schedule.velero.io":                            {"phase: Enabled", "phase: New", "phase: FailedValidation"},
		"VolumeSnapshot.snapshot.storage.k8s.io":        {"readyToUse: true", "readyToUse: false", "error: {message: no}"},
		"Workflow.argoproj.io":                          {"phase: Succeeded", "phase: Running", "phase: Error"},
		"HTTPRoute.gateway.networking.k8s.io":           {"parents: [{" + condition("Accepted", "True", "ResolvedRefs", "True") + "}]", "parents: []", "parents: [{" + condition("Accepted", "False") + "}]"},
		"GRPCRoute.gateway.networking.k8s.io":           {"parents: [{" + condition("Accepted", "True", "ResolvedRefs", "True") + "}]", "parents: [{" + condition("Accepted", "True", "ResolvedRefs", "False") + "}]", ""},
	}
	two := func(a, b string) struct{ current, waiting, failed string } {
		return struct{ current, waiting, failed string }{condition(a, "True", b, "True"), condition(a, "True", b, "Unknown"), ""}
	}
	for kind, c := range map[string]struct{ current, waiting, failed string }{
		"Alertmanager.monitoring.coreos.com": two("Available", "Reconciled"), "Prometheus.monitoring.coreos.com": two("Available", "Reconciled"),
		"RabbitmqCluster.rabbitmq.com": two("AllReplicasReady", "ReconcileSuccess"), "Provider.pkg.crossplane.io": two("Installed", "Healthy"),
		"Configuration.pkg.crossplane.io": two("Installed", "Healthy"), "Function.pkg.crossplane.io": two("Installed", "Healthy"),
	} {
		cases[kind] = c
	}
	ends := map[string][2]string{ // the condition of a failure, and its value
		"Kafka.kafka.strimzi.io": {"NotReady", "True"}, "KafkaConnect.kafka.strimzi.io": {"NotReady", "True"}, "KafkaTopic.kafka.strimzi.io": {"NotReady", "True"},
		"KafkaUser.kafka.strimzi.io": {"NotReady", "True"}, "HelmRelease.helm.toolkit.fluxcd.io": {"Stalled", "True"}, "Kustomization.kustomize.toolkit.fluxcd.io": {"Stalled", "True"},
		"SealedSecret.bitnami.com": {"Synced", "False"}, "Service.serving.knative.dev": {"Ready", "False"}, "Gateway.gateway.networking.k8s.io": {"Accepted", "False"},
		"GatewayClass.gateway.networking.k8s.io": {"Accepted", "False"},
	}
	by := map[string]string{"APIService.apiregistration.k8s.io": "Available", "SealedSecret.bitnami.com": "Synced", "Gateway.gateway.networking.k8s.io": "Programmed", "GatewayClass.gateway.networking.k8s.io": "Accepted"}
	for kind, h := range rules {
		c, ok := cases[kind]
		if !ok {
			typ := by[kind]
			if typ == "" {
				typ = "Ready"
			}
			c.current, c.waiting = condition(typ, "True"), condition(typ, "Unknown")
			if end := ends[kind]; end[0] != "" {
				c.failed = condition(end[0], end[1])
			}
		}
		look := func(text string) status.Status {
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte("{metadata: {generation: 2}, spec: {}, status: {"+text+"}}"), &u.Object); err != nil {
				t.Fatal(err)
			}
			if u.Object, err = normalNumbers(u.Object); err != nil {
				t.Fatal(err)
			}
			return h.compute(u).Status
		}
		if got := h.compute(&unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{}}}).Status; got != status.InProgressStatus {
			t.Errorf("%s without a status is %s", kind, got)
		}
		if got := look(c.current); got != status.CurrentStatus {
			t.Errorf("%s {%s} is %s", kind, c.current, got)
		}
		if got := look(c.waiting); got != status.InProgressStatus {
			t.Errorf("%s {%s} is %s", kind, c.waiting, got)
		}
		if got := look("observedGeneration: 1, " + c.current); got != status.InProgressStatus {
			t.Errorf("%s, of an older generation, is %s", kind, got)
		}
		if c.failed == "" != (h.failed == nil) && !strings.HasPrefix(kind, "GRPCRoute") && !strings.HasSuffix(kind, "crossplane.io") {
			t.Errorf("%s: what is a failure?", kind)
		}
		if c.failed != "" {
			if got := look(c.failed); got != status.FailedStatus {
				t.Errorf("%s {%s} is %s", kind, c.failed, got)
			}
		}
	}
}

func TestHealthRulesRefuse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                              "the expression has 0 bytes",
		strings.Repeat("(", 5000):       "the expression has 5000 bytes",
		"status.phase ==":               "Syntax error",
		"nothing.phase == 'x'":          "undeclared reference to 'nothing'",
		"'Ready'":                       "want true or false",
		strings.Repeat("(", 100) + "1)": "recursion",
	} {
		_, err := New(offline(t, nil).c, spec("shop", func(s *Spec) { s.Health = []HealthRule{{Kind: "A.acme.example", Current: text}} }))
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v, want %q", text, err, want)
		}
	}
	// What costs too much is not known, and takes no time.
	if _, err := newHealthRules([]HealthRule{{Kind: "B.acme.example", Current: "[data.x].all(v, v.matches('(a?){900}b$'))"}}); err == nil || !strings.Contains(err.Error(), "matches is not allowed") {
		t.Errorf("a regular expression: %v", err)
	}
	rules, err := newHealthRules([]HealthRule{{Kind: "A.acme.example", Current: "spec.l.all(a, spec.l.all(b, spec.l.all(c, a + b + c >= 0)))"}})
	if err != nil {
		t.Fatal(err)
	}
	list := make([]any, 1000)
	for i := range list {
		list[i] = int64(i)
	}
	start := time.Now()
	got := rules["A.acme.example"].compute(&unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"l": list}}})
	stopped := strings.Contains(got.Message, "cost") || strings.Contains(got.Message, "deadline") // whichever is first
	if got.Status != status.InProgressStatus || !stopped || time.Since(start) > 5*time.Second {
		t.Errorf("%+v after %s", got, time.Since(start))
	}
}

// A stack's rule comes before all others.
func TestHealthOfCustomKinds(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, func(s *Spec) {
		s.Health = []HealthRule{{Kind: "ConfigMap", Current: "data.key == 'ready'", Failed: "data.key == 'broken'"}}
	})
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "ready")})
	if err := tt.Healthy(t.Context(), r); err != nil {
		t.Error(err)
	}
	for value, want := range map[string]fault.Kind{"soon": fault.Waiting, "broken": fault.Invalid} {
		edit(t, d, "x", "configmaps", ns, "a", `{"data":{"key":"`+value+`"}}`)
		if err := tt.Healthy(t.Context(), r); fault.KindOf(err) != want {
			t.Errorf("%s: %v", value, err)
		}
	}
}

// kubelet answers for the containers of a node what they wrote.
func kubelet(t testing.TB, d dynamic.Interface, logs string) (node string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/containerLogs/") || r.URL.Query().Get("tailLines") != "1" || r.URL.Query().Get("previous") != "true" {
			http.Error(w, r.URL.String(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte(logs))
	}))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	nodes := d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	u, err := nodes.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"generateName": "kubelet-"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nodes.Delete(context.WithoutCancel(t.Context()), u.GetName(), metav1.DeleteOptions{}) })
	patchStatus(t, nodes, u.GetName(), map[string]any{
		"addresses":       []any{map[string]any{"type": "InternalIP", "address": host}},
		"daemonEndpoints": map[string]any{"kubeletEndpoint": map[string]any{"Port": n}},
	})
	return u.GetName()
}

func patchStatus(t testing.TB, in dynamic.ResourceInterface, name string, st map[string]any) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"status": st})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Patch(t.Context(), name, types.MergePatchType, b, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// A roll-out that does not come to an end names the pod, the event and the log line.
func TestRolloutIsExplained(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	const secret = "the-password-in-the-log"
	tt.c.cfg.Masker.Register(secret)
	node := kubelet(t, d, "starting\x1b[31m: cannot log in with "+secret+"\n")
	text := strings.Replace(strings.Replace(deployment, "replicas: 0", "replicas: 1", 1), "      containers:", "      nodeName: "+node+"\n      containers:", 1)
	r := deploy(t, tt, map[string]string{"d.yaml": text})
	pods := d.Resource(podGVR).Namespace(ns)
	var pod *unstructured.Unstructured
	for pod == nil {
		list, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) > 0 {
			pod = &list.Items[0]
		}
		<-time.After(20 * time.Millisecond)
	}
	waiting := func() map[string]any {
		return map[string]any{
			"phase":      "Running",
			"conditions": []any{map[string]any{"type": "Ready", "status": "False"}},
			"containerStatuses": []any{map[string]any{
				"name": "web", "restartCount": 4, "ready": false, "image": "i", "imageID": "i",
				"state":     map[string]any{"running": nil, "waiting": map[string]any{"reason": "CrashLoopBackOff", "message": "back-off 1m20s"}},
				"lastState": map[string]any{"terminated": map[string]any{"exitCode": 137, "reason": "OOMKilled"}},
			}},
		}
	}
	events := d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "events"}).Namespace(ns)
	if _, err := events.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"name": "e"}, "type": "Warning", "reason": "BackOff",
		"message": "Back-off restarting failed container", "lastTimestamp": time.Now().UTC().Format(time.RFC3339),
		"involvedObject": map[string]any{"kind": "Pod", "name": pod.GetName(), "namespace": ns},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 100 { // what plays the part of the node writes the status too, once
		patchStatus(t, pods, pod.GetName(), waiting())
		<-time.After(50 * time.Millisecond)
		if err = tt.Healthy(t.Context(), r); err != nil && strings.Contains(err.Error(), "CrashLoopBackOff") {
			break
		}
	}
	for _, want := range []string{
		"Deployment/" + ns + "/web", "Pod/" + pod.GetName() + ": container web waits: CrashLoopBackOff: back-off 1m20s; it ended with 137 (OOMKilled) before",
		"event BackOff: Back-off restarting failed container", "last log line of web: starting [31m: cannot log in with ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\n  does not say %q", err, want)
		}
	}
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a secret: %v", err)
	}
}
