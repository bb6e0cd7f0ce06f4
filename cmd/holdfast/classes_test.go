package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/world"
)

// Flux CVE-2021-41254, CVE-2022-24817: a kubeconfig runs a command.
func TestClass01_kubeconfig_runs_a_command(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	kubeconfig := func(user string) string {
		return "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: 'https://127.0.0.1:9'}}]\n" +
			"contexts: [{name: a, context: {cluster: a, user: a}}]\nusers:\n- name: a\n  user: " + user + "\n"
	}
	for name, user := range map[string]string{
		"exec":          "{exec: {apiVersion: client.authentication.k8s.io/v1, command: touch, args: ['" + canary + "'], interactiveMode: Never}}",
		"auth-provider": "{auth-provider: {name: gcp, config: {cmd-path: touch, cmd-args: '" + canary + "'}}}",
	} {
		file := filepath.Join(dir, name)
		must(t, os.WriteFile(file, []byte(kubeconfig(user)), 0o600))
		if _, err := restConfig(&config.Kubernetes{Kubeconfig: file}); fault.KindOf(err) != fault.Invalid || err == nil || fault.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(dir, "token")
	must(t, os.WriteFile(file, []byte(kubeconfig("{token: x}")), 0o600))
	if _, err := restConfig(&config.Kubernetes{Kubeconfig: file}); err != nil {
		t.Errorf("a token: %v", err)
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("the command was run")
	}
}

// Argo CD CVE-2024-31216, CVE-2024-52009, CVE-2023-34236: credentials in logs,
// those of libraries included.
func TestClass12_credentials_in_logs(t *testing.T) { // no t.Parallel: it replaces the process's loggers
	const secret = `hunter2/hunter2+"quoted"`
	before := slog.Default()
	t.Cleanup(func() {
		slog.SetDefault(before)
		klog.ClearLogger()
	})
	sec := &secrets{}
	must(t, sec.use(bytes.Repeat([]byte("k"), 32), &config.Loaded{Operator: config.Operator{Environments: []config.Environment{{Name: "production"}}}}))
	sec.register(secret)
	for _, format := range []string{"json", "text"} {
		var out lockedBuffer
		log := newLogger(&out, format, slog.LevelDebug, sec)
		err := fmt.Errorf("get https://me:%s@git.example/r: %w", url.PathEscape(secret), io.EOF)
		log.ErrorContext(t.Context(), "failed", slog.String("error", err.Error()), slog.Any("cause", err), slog.Group("g", slog.String("header", "Bearer "+secret)))
		log.With(slog.String("token", secret)).DebugContext(t.Context(), secret)
		slog.WarnContext(t.Context(), "a library says "+secret) //nolint:sloglint // as libraries do
		klog.ErrorS(err, "another one", "token", secret)
		klog.Flush()
		if how := encodedIn(out.String(), secret); how != "" {
			t.Errorf("%s: the secret is in the log (%s):\n%s", format, how, out.String())
		}
		if strings.Count(out.String(), "\n") < 4 {
			t.Errorf("%s: not everything was logged:\n%s", format, out.String())
		}
	}
}

// Argo CD CVE-2025-55190: an answer of the API has stored credentials in it.
func TestClass13_api_answers_with_credentials(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	f.tamper("debug") // so that there is something to show
	f.files[settingsFile] = strings.ReplaceAll(f.files[settingsFile], "battery-staple", "battery-staple-2")
	f.commit(f.files)
	f.converged()
	public := &http.Client{}
	socket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(f.w.StateDir, "holdfast.sock"))
	}}}
	t.Cleanup(public.CloseIdleConnections)
	t.Cleanup(socket.CloseIdleConnections)
	asked := 0
	command := func(verb, stack string) string { return fmt.Sprintf(`{"verb":%q,"stack":%q}`, verb, stack) }
	for _, q := range []struct {
		client            *http.Client
		method, url, body string
	}{
		{public, http.MethodGet, "http://" + f.w.HTTP + "/v1/status", ""},
		{public, http.MethodGet, "http://" + f.w.HTTP + "/metrics", ""},
		{public, http.MethodGet, "http://" + f.w.HTTP + "/readyz", ""},
		{public, http.MethodGet, "http://" + f.w.HTTP + "/", ""},
		{public, http.MethodGet, "http://" + f.w.HTTP + "/debug/pprof/cmdline", ""},
		{socket, http.MethodPost, "http://holdfast/v1/command", command("status", "")},
		{socket, http.MethodPost, "http://holdfast/v1/command", command("plan", "shop-settings")},
		{socket, http.MethodPost, "http://holdfast/v1/command", command("drift", "shop-settings")},
		{socket, http.MethodPost, "http://holdfast/v1/command", command("apply", "shop-settings")},
		{socket, http.MethodPost, "http://holdfast/v1/command", command("plan", world.GitToken)},
	} {
		req, err := http.NewRequestWithContext(t.Context(), q.method, q.url, strings.NewReader(q.body))
		must(t, err)
		resp, err := q.client.Do(req)
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode == http.StatusOK {
			asked++
		}
		for _, secret := range []string{world.GitToken, f.w.Registry.Password, "correct-horse-battery-staple", "correct-horse-battery-staple-2"} {
			if how := encodedIn(string(body), secret); how != "" {
				t.Errorf("%s %s: a credential is in the answer (%s)", q.url, q.body, how)
			}
		}
		if strings.Contains(string(body), "PRIVATE KEY") {
			t.Errorf("%s %s: a private key is in the answer", q.url, q.body)
		}
	}
	if asked < 8 {
		t.Errorf("only %d questions were answered", asked)
	}
	f.sound()
}

// Crossplane GHSA-mf7q-r4rv-jv94, Kyverno CVE-2022-47633: what is verified is
// not what is fetched later. A tag that moves after it was verified changes
// nothing, not even in a repair or after a restart.
func TestClass21_verify_then_fetch(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	verified := f.image()
	if !strings.Contains(verified, "@sha256:") {
		t.Fatalf("the image that runs is not named by its digest: %s", verified)
	}
	f.publish("1.0", world.Unsigned) // the same tag now names something else
	f.scale(0)
	f.eventually("the repair", func() bool { return f.replicas() == 2 })
	if got := f.image(); got != verified {
		t.Errorf("after a repair %s runs, and %s was verified", got, verified)
	}
	f.kill()
	f.scale(0)
	f.start()
	f.eventually("the repair", func() bool { return f.replicas() == 2 })
	if got := f.image(); got != verified {
		t.Errorf("after a restart %s runs, and %s was verified", got, verified)
	}
	// Between the verification and the apply.
	f.release("2.0")
	f.converged()
	verified = f.image()
	f.publish("2.0", world.Unsigned)
	f.settings("2.1") // a new commit is judged anew where its stack changed only
	f.converged()
	if got := f.image(); got != verified {
		t.Errorf("after another commit %s runs, and %s was verified", got, verified)
	}
	f.sound()
}

// scale sets the replicas as somebody who is not Holdfast.
func (f *faulty) scale(n int) {
	f.t.Helper()
	_, err := f.live.Resource(resourceOf("deployment")).Namespace(f.w.Namespace).Patch(f.t.Context(), "web",
		types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n), metav1.PatchOptions{FieldManager: "carol"})
	must(f.t, err)
}

func (f *faulty) replicas() int64 {
	f.t.Helper()
	u, err := f.live.Resource(resourceOf("deployment")).Namespace(f.w.Namespace).Get(f.t.Context(), "web", metav1.GetOptions{})
	must(f.t, err)
	n, _, err := unstructured.NestedInt64(u.Object, "spec", "replicas")
	must(f.t, err)
	return n
}
