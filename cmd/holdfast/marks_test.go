package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

// TestOrderBelievesInventoriesOfALostKeyOnly: an order about one repository
// leaves an inventory that somebody changed as it is, unless the key is lost.
func TestOrderBelievesInventoriesOfALostKeyOnly(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, env) // Holdfast's own here
	repository := "shop"
	marksWith := func(key string) clusterMarks {
		m, err := mask.New([]byte("0123456789abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := kubernetes.NewCluster(kubernetes.ClusterConfig{
			REST: env.Config, Namespace: ns, Key: []byte(key), Masker: m, Lease: kubernetes.LeaseConfig{Off: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		return clusterMarks{clusters: map[string]*kubernetes.Cluster{"test": c}, ledger: emptyLedger(t)}
	}
	d, err := dynamic.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	maps := d.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(ns)
	tampered := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "inventory", "labels": map[string]any{"holdfast.dev/inventory": "x"}},
		"data":     map[string]any{"inventory": `{"owner":"test/other","index":0,"count":1,"entries":[]}`, "mac": "forged"},
	}}
	if _, err := maps.Create(t.Context(), tampered, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mark := reconciler.Mark{Repository: repository, Commit: "c1", Seen: time.Unix(1e9, 0), Checkpoint: []byte("log\n1\nroot\n")}
	order := func(what string, m clusterMarks, signed bool) {
		t.Helper()
		if err := m.Write(t.Context(), "test", mark, true); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		cm, err := maps.Get(t.Context(), "inventory", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if mac, _, _ := unstructured.NestedString(cm.Object, "data", "mac"); (mac != "forged") != signed {
			t.Errorf("%s: the authentication code is %q", what, mac)
		}
	}
	before, after := marksWith("fedcba9876543210"), marksWith("another key, as after a loss")
	order("without a mark", before, false)
	order("with an authentic mark", before, false)
	order("with a mark of the lost key", after, true)
}

// emptyLedger returns a ledger that nothing was written to.
func emptyLedger(t *testing.T) *ledger.Ledger {
	t.Helper()
	dir := t.TempDir()
	signer, verifier, err := ledger.LoadOrCreateKey(filepath.Join(dir, "key"), "test.example")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(context.Background(), ledger.Config{Dir: filepath.Join(dir, "log"), Signer: signer, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
