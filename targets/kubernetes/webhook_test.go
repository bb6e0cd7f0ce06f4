package kubernetes

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// webhook has the API server ask a server of ours about every write of a ConfigMap in a
// namespace. answer says whether it is allowed, and why not, and may take its time.
func webhook(t *testing.T, conf *rest.Config, ns string, answer func(context.Context) (allowed bool, message string)) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var review struct {
			Request struct {
				UID string `json:"uid"`
			} `json:"request"`
		}
		if err != nil || json.Unmarshal(b, &review) != nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		allowed, message := answer(r.Context())
		_ = json.NewEncoder(w).Encode(map[string]any{
			"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
			"response": map[string]any{"uid": review.Request.UID, "allowed": allowed, "status": map[string]any{"message": message}},
		})
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	name := "holdfast." + ns + ".example"
	u := fromYAML(t, fmt.Sprintf(`apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: %[1]s}
webhooks:
- name: %[1]s
  clientConfig: {url: %[2]q, caBundle: %[3]s}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[4]s}}
  failurePolicy: Fail
  sideEffects: None
  timeoutSeconds: 1
  admissionReviewVersions: [v1]
`, name, server.URL, base64.StdEncoding.EncodeToString(ca), ns))
	in := dyn(t, conf).Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"})
	if _, err := in.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	probe := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "probe"}}}
	until(t, func() bool {
		_, err := dyn(t, conf).Resource(gvrs["configmaps"]).Namespace(ns).Create(t.Context(), probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil && strings.Contains(err.Error(), name)
	})
}

// A webhook that refuses is named, one that hangs is waited for as long as the API
// server does and is worth another try, and neither is taken for a fault of the manifest.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	for name, tc := range map[string]struct {
		answer func(context.Context) (bool, string)
		kind   fault.Kind
		want   string
	}{
		"refuses": {func(context.Context) (bool, string) { return false, "not on a Friday" }, fault.Denied, "denied the request: not on a Friday"},
		"hangs": {func(ctx context.Context) (bool, string) {
			<-ctx.Done()
			return false, ""
		}, fault.Transient, "failed calling webhook"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := testenv.Namespace(t, c)
			tt := target(t, c.Config, ns, nil, nil)
			deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1")})
			webhook(t, c.Config, ns, tc.answer)
			r := mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "2")})
			begun := time.Now()
			_, err := tt.Plan(t.Context(), r)
			if fault.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "holdfast."+ns) {
				t.Errorf("plan: %v (%v)", err, fault.KindOf(err))
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			// What does not exist is planned without it, and meets it when it is made.
			r = mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "s.yaml": secretManifest("geheimnis"), "b.yaml": configMap("b", "1")})
			if _, err = tt.Plan(t.Context(), r); fault.KindOf(err) != tc.kind {
				t.Errorf("plan: %v", err)
			}
		})
	}
}

// A webhook that cannot take part in a dry run is named, with what to do about it, and
// is not asked again and again. The API server takes no such webhook any more; one that
// was made before it did is still there.
func TestWebhookWithoutDryRun(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	conf := rest.CopyConfig(c.Config)
	conf.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if !r.URL.Query().Has("dryRun") {
				return rt.RoundTrip(r)
			}
			rec := httptest.NewRecorder()
			rec.Header().Set("Content-Type", "application/json")
			rec.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(rec, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"admission webhook \"old.example\" does not support dry run","reason":"BadRequest","code":400}`)
			return rec.Result(), nil
		})
	})
	deploy(t, target(t, c.Config, ns, nil, nil), map[string]string{"a.yaml": configMap("a", "1")})
	tt := target(t, conf, ns, nil, nil)
	_, err := tt.Plan(t.Context(), mustRender(t, tt, map[string]string{"a.yaml": configMap("a", "2")}))
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), `"old.example" does not support dry run`) || !strings.Contains(fault.HintOf(err), "sideEffects") {
		t.Errorf("%v (%v, %s)", err, fault.KindOf(err), fault.HintOf(err))
	}
}

// Somebody edits one object as fast as the API server takes it. The object is restored
// again and again, another one as well, what is waiting stays one look, and in the end
// everything is as it was granted.
func TestEditsWithoutEnd(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns, d := testenv.Namespace(t, c), dyn(t, c.Config)
	tt := target(t, c.Config, ns, nil, nil)
	r := deploy(t, tt, map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")})
	want, err := tt.Desired(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	g := gate.New(&targetstest.Ledger{}, gate.Limits{})
	g.Resume(r.Stack, gate.Standing{Environment: r.Environment, Rendered: r.Digest, Revision: r.Revision.ID, Objects: want})
	found := observe(t, tt, r)
	maps := d.Resource(gvrs["configmaps"]).Namespace(ns)
	var edits atomic.Int64
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				patch := fmt.Sprintf(`{"data":{"key":"%d-%d"}}`, i, n)
				if _, err := maps.Patch(ctx, "a", types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "busy"}); err == nil {
					edits.Add(1)
				}
			}
		})
	}
	go func() {
		wg.Wait()
		edit(t, d, "x", "configmaps", ns, "b", `{"data":{"key":"2"}}`)
	}()
	restored := map[string]int{}
	repair := func(f targets.Finding) {
		p, err := tt.Plan(t.Context(), r, f.ID)
		if err != nil {
			if fault.KindOf(err) != fault.Transient {
				t.Errorf("plan: %v", err)
			}
			return
		}
		grant, err := g.Restore(t.Context(), p)
		if err != nil {
			t.Errorf("restore: %v", err)
			return
		}
		if _, err := tt.Apply(t.Context(), grant); err == nil {
			restored[f.ID.Name]++
		} else if fault.KindOf(err) != fault.Transient {
			t.Errorf("apply: %v", err)
		}
	}
	for restored["b"] == 0 {
		repair(next(t, found))
	}
	until(t, func() bool {
		select {
		case f := <-found:
			repair(f)
		default:
		}
		v, _, _ := unstructured.NestedString(getObject(t, d, "configmaps", ns, "a").Object, "data", "key")
		return v == "1"
	})
	t.Logf("%d edits, restored %v", edits.Load(), restored)
	if edits.Load() < 20 {
		t.Errorf("%d edits", edits.Load())
	}
	tt.c.mu.Lock()
	defer tt.c.mu.Unlock()
	if n := len(tt.obs.dirty); n > 2 {
		t.Errorf("%d looks wait", n)
	}
}
