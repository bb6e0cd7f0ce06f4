package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/reconciler"
)

// TestDeployManifests applies what is in deploy/kubernetes, and runs a daemon
// with the token of the service account that is made there, on a control plane
// that enforces RBAC and pod security. What the account is allowed is enough to
// deploy the example, to repair it, to prune and to be stopped: nothing that it
// asks for is forbidden. Then Holdfast is removed, and what it deployed stays.
func TestDeployManifests(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	files, err := filepath.Glob("../../deploy/kubernetes/*.yaml")
	must(t, err)
	own := f.applyManifests(files...)
	f.applyManifests("../../deploy/kubernetes/stacks/shop.yaml")
	// Pod security admits the pod; there is no image to run, and no volume.
	f.eventually("the pod", func() bool {
		pods, err := f.live.Resource(resourceOf("pod")).Namespace(f.w.System).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=holdfast"})
		return err == nil && len(pods.Items) == 1
	})

	f.signInAs("holdfast")
	f.start()
	f.converged()
	level := f.logLevel()
	f.tamper("debug")
	f.eventually("the repair", func() bool { return f.logLevel() == level })
	f.commit(map[string]string{"apps/web/service.yaml": "", "apps/web/kustomization.yaml": strings.Replace(f.files["apps/web/kustomization.yaml"], ", service.yaml", "", 1)})
	f.until("the prune", func(o reconciler.Overview) bool { return f.ready(o, "shop-web") })
	if _, err := f.live.Resource(resourceOf("service")).Namespace(f.w.Namespace).Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the service: %v", err)
	}
	if f.leaseHolder() == "" {
		t.Error("the daemon does not hold the Lease")
	}
	// The one thing that the API server refuses is to list the Secrets of the whole
	// cluster, which the manifests leave out on purpose.
	forbidden := slices.DeleteFunc(f.metric("holdfast_kubernetes_requests_total"), func(line string) bool { return !strings.Contains(line, `code="403"`) })
	if len(forbidden) != 1 || !strings.Contains(forbidden[0], `method="GET"`) || !strings.HasSuffix(forbidden[0], " 1") {
		t.Errorf("forbidden: %q; the log:\n%s", forbidden, f.log)
	}
	must(t, f.d.Stop())
	if holder := f.leaseHolder(); holder != "" {
		t.Errorf("%s kept the Lease when it stopped", holder)
	}

	for _, u := range own {
		client := f.clientFor(u)
		if err := client.Delete(t.Context(), u.GetName(), metav1.DeleteOptions{}); err != nil && u.GetKind() == "Namespace" {
			t.Error(err)
		}
	}
	f.eventually("the end of Holdfast's namespace", func() bool {
		_, err := f.live.Resource(resourceOf("namespace")).Get(t.Context(), f.w.System, metav1.GetOptions{})
		return err != nil
	})
	if f.image() == "" || f.logLevel() == "" {
		t.Error("what was deployed went with Holdfast")
	}
}

// TestCheckAccess asks what an account with Holdfast's own rights lacks for the
// example, and gives it what check prints: then it lacks nothing.
func TestCheckAccess(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.applyManifests("../../deploy/kubernetes/10-namespace.yaml", "../../deploy/kubernetes/20-rbac.yaml")
	f.signInAs("holdfast")
	check := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), f.holdfast(), append([]string{"check", "-c", f.w.Config, "--repo", f.w.Repo.Dir}, args...)...)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the code says how it went
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	if out, errs, code := check(); code != 0 { // what needs no cluster
		t.Fatalf("%d: %s%s", code, out, errs)
	}
	out, errs, code := check("--access")
	row := regexp.MustCompile(`shop-web +` + f.w.Namespace + ` +deployments\.apps +get create patch delete\n`)
	if code != 1 || !row.MatchString(out) || !strings.Contains(out, "kind: RoleBinding") || !strings.Contains(errs, "hint: have an administrator") {
		t.Errorf("%d:\n%s%s", code, out, errs)
	}
	if strings.Contains(out, "leases ") {
		t.Errorf("the Lease is allowed already:\n%s", out)
	}
	out, _, _ = check("--access", "-o", "json")
	var report checkReport
	must(t, json.Unmarshal([]byte(out), &report))
	f.applyText(report.Grants["production"])
	if out, errs, code := check("--access"); code != 0 || strings.Contains(out, "MISSING") {
		t.Errorf("with what it asked for: %d:\n%s%s", code, out, errs)
	}
}

var (
	leases = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	shop   = regexp.MustCompile(`(?m)(name|namespace): shop$`)
)

// applyManifests applies manifests under the names of this world, strictly: an
// unknown field is an error.
func (f *faulty) applyManifests(files ...string) (out []*unstructured.Unstructured) {
	f.t.Helper()
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(f.t, err)
		out = append(out, f.applyText(string(b))...)
	}
	return out
}

func (f *faulty) applyText(text string) (out []*unstructured.Unstructured) {
	f.t.Helper()
	text = shop.ReplaceAllString(text, "$1: "+f.w.Namespace)
	text = strings.NewReplacer("holdfast-system", f.w.System, "holdfast-watch", f.w.System).Replace(text)
	for _, doc := range strings.Split(strings.TrimPrefix(text, "---\n"), "\n---\n") {
		u := &unstructured.Unstructured{}
		must(f.t, yaml.UnmarshalStrict([]byte(doc), &u.Object))
		b, err := u.MarshalJSON()
		must(f.t, err)
		force := true
		_, err = f.clientFor(u).Patch(f.t.Context(), u.GetName(), types.ApplyPatchType, b,
			metav1.PatchOptions{FieldManager: "kubectl", Force: &force, FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			f.t.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
		}
		if u.GetNamespace() == "" && u.GetKind() != "Namespace" {
			f.t.Cleanup(func() { _ = f.clientFor(u).Delete(context.Background(), u.GetName(), metav1.DeleteOptions{}) })
		}
		out = append(out, u)
	}
	return out
}

func (f *faulty) clientFor(u *unstructured.Unstructured) dynamic.ResourceInterface {
	plural, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
	if ns := u.GetNamespace(); ns != "" {
		return f.live.Resource(plural).Namespace(ns)
	}
	return f.live.Resource(plural)
}

// signInAs makes the daemon use a token of a service account in its own namespace.
func (f *faulty) signInAs(account string) {
	f.t.Helper()
	request := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": map[string]any{"name": account}, "spec": map[string]any{},
	}}
	answer, err := f.live.Resource(resourceOf("serviceaccount")).Namespace(f.w.System).Create(f.t.Context(), request, metav1.CreateOptions{}, "token")
	must(f.t, err)
	token, _, _ := unstructured.NestedString(answer.Object, "status", "token")
	// Straight to the API server: the proxy of this world signs in as an administrator.
	path := filepath.Join(f.w.Dir, "kubeconfig.yaml")
	must(f.t, f.w.Cluster.WriteKubeconfig(path, account))
	config, err := clientcmd.LoadFromFile(path)
	must(f.t, err)
	for _, user := range config.AuthInfos {
		user.ClientCertificateData, user.ClientKeyData, user.Token = nil, nil, token
	}
	must(f.t, clientcmd.WriteToFile(*config, path))
}

func (f *faulty) leaseHolder() string {
	f.t.Helper()
	u, err := f.live.Resource(leases).Namespace(f.w.System).Get(f.t.Context(), "holdfast", metav1.GetOptions{})
	must(f.t, err)
	holder, _, _ := unstructured.NestedString(u.Object, "spec", "holderIdentity")
	return holder
}

// metric returns the lines of a metric of the running daemon.
func (f *faulty) metric(name string) (lines []string) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "http://"+f.w.HTTP+"/metrics", nil)
	must(f.t, err)
	resp, err := http.DefaultClient.Do(req)
	must(f.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(f.t, err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, name+"{") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
