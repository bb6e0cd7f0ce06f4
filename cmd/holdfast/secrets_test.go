package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets/terraform"
)

// The secrets of [TestSecretsAppearNowhere]. Their characters are those that
// JSON, URLs and base64 write in different ways.
const (
	declaredSecret  = `p"ss/w0rd+&<geheim>?`                // in a Kubernetes Secret that the repository declares
	rotatedSecret   = `r0tated/+&<geheim>"?`                // the same, later
	liveSecret      = `hunter2/+&<live>"?~~`                // what somebody else puts into it
	brokenSecret    = `not{json/+&<geheim>?`                // in a Secret that the API server calls invalid
	frozenSecret    = `frozen/+&<geheim>"?~`                // in a Secret that cannot be changed
	vetoedSecret    = `vetoed/+&<geheim>"?~`                // quoted by an admission policy of the cluster
	operatorSecret  = `0per@tor/+&<value>"?`                // a sensitive Terraform variable
	collectorSecret = `collector-token-2f7a`                // of the collector of traces
	receiverSecret  = `/services/webhook/T0/B0/xoxb-9f3e71` // the address of a receiver
)

// captured keeps what a server is sent.
type captured struct {
	*httptest.Server
	mu   sync.Mutex
	text strings.Builder
}

func capture(t *testing.T, serve func(http.Handler) *httptest.Server) *captured {
	t.Helper()
	c := &captured{}
	c.Server = serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what was cut off counts as far as it goes
		c.mu.Lock()
		defer c.mu.Unlock()
		fmt.Fprintf(&c.text, "%s\n", body)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *captured) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// secretive is a world full of secrets, and everything that comes out of it.
type secretive struct {
	*faulty
	tmp                 string
	collector, receiver *captured
	said                map[string]string // what was said, by where
}

func newSecretive(t *testing.T) *secretive {
	t.Helper()
	s := &secretive{faulty: newFaulty(t), said: map[string]string{}}
	s.tmp = filepath.Join(s.w.Dir, "tmp")
	must(t, os.Mkdir(s.tmp, 0o700))
	s.collector = capture(t, httptest.NewServer)
	s.receiver = capture(t, httptest.NewServer)
	operator := strings.NewReplacer(
		"stateDir: state\n", `stateDir: state
telemetry: {otlp: `+s.collector.URL+`, headers: {X-Token: collector-token}}
notify:
  receivers: [{name: audit, type: webhook, urlFile: receiver.url}]
  routes: [{receivers: [audit]}]
`,
		"    variables: {site_dir:", "    credentials: {shop: {TF_VAR_password: operator-secret}}\n    variables: {site_dir:",
		"targets: [terraform]\n", "targets: [terraform]\n  credentials: [shop]\n",
	).Replace(s.w.Operator())
	for name, text := range map[string]string{
		"holdfast.yaml": operator, "collector-token": collectorSecret, "operator-secret": operatorSecret, "receiver.url": s.receiver.URL + receiverSecret,
	} {
		must(t, os.WriteFile(filepath.Join(s.w.Dir, name), []byte(text), 0o600))
	}
	return s
}

// start starts the daemon with a folder of its own for temporary files.
func (s *secretive) start() {
	s.t.Helper()
	var err error
	s.d, err = s.w.Start(s.log, []string{"TMPDIR=" + s.tmp, "GOTRACEBACK=all"}, s.holdfast(), "run", "-c", s.w.Config, "--log-format", "json", "--debug")
	must(s.t, err)
}

// secret is a manifest of a Secret.
func secret(name, value, more string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData: {key: '%s'}\n%s", name, value, more)
}

// stack is the stack file of a folder of manifests.
func (s *secretive) stack(name string) string {
	return fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: %s}\nspec:\n  environment: production\n  kubernetes: {namespace: %s, manifests: [\"*.yaml\"]}\n  drift: {mode: revert}\n", name, s.w.Namespace)
}

// ask runs a command and keeps what it prints.
func (s *secretive) ask(args ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.holdfast(), append(args, "-c", s.w.Config)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp)
	out, err := cmd.CombinedOutput()
	what := strings.Join(args, " ")
	if len(out) == 0 && err != nil {
		s.t.Errorf("%s says nothing: %v", what, err)
	}
	s.said["holdfast "+what] += string(out)
}

// fetch keeps what the daemon answers.
func (s *secretive) fetch(path string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.w.HTTP+path, nil)
	must(s.t, err)
	resp, err := http.DefaultClient.Do(req)
	must(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(s.t, err)
	s.said[path] += string(b)
}

// listen keeps what everybody can see while the daemon runs.
func (s *secretive) listen() {
	s.t.Helper()
	s.fetch("/metrics")
	s.fetch("/v1/status")
	for _, stack := range []string{"shop-settings", "broken", "frozen", "vetoed"} {
		s.ask("plan", stack, "-o", "json")
		s.ask("drift", stack, "-o", "json")
		s.ask("logs", stack)
	}
	s.ask("status", "-o", "json")
	list, err := s.live.Resource(corev1.SchemeGroupVersion.WithResource("events")).Namespace(s.w.Namespace).List(s.t.Context(), metav1.ListOptions{})
	must(s.t, err)
	b, err := json.Marshal(list)
	must(s.t, err)
	s.said["the Events of the namespace"] += string(b)
}

// kept adds what is in the files below a folder.
func (s *secretive) kept(dir string) {
	s.t.Helper()
	must(s.t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		s.said[p] = string(b)
		return err
	}))
}

// search fails the test where a secret stands in anything that was said.
func (s *secretive) search() {
	s.t.Helper()
	s.said["the log"] = s.log.String()
	s.said["notifications"], s.said["traces"] = s.receiver.String(), s.collector.String()
	declared := []string{declaredSecret, rotatedSecret, brokenSecret, frozenSecret, vetoedSecret}
	for where, text := range s.said {
		for _, secret := range append(declared, liveSecret, operatorSecret, collectorSecret, receiverSecret, world.GitToken, s.w.Registry.Password) {
			rel, _ := filepath.Rel(s.w.StateDir, where)
			switch {
			case strings.HasPrefix(rel, "git"+string(filepath.Separator)) && slices.Contains(declared, secret):
				continue // a mirror of the repository has what the repository has
			case strings.HasPrefix(rel, "terraform"+string(filepath.Separator)) && secret == operatorSecret:
				continue // so does the state; docs/operations.md says how to encrypt it
			}
			if how := encodedIn(text, secret); how != "" {
				s.t.Errorf("%q stands in %s (%s)", secret, where, how)
			}
		}
	}
}

// TestSecretsAppearNowhere deploys, fails, drifts, is refused and crashes with
// secrets at hand, and looks for them in everything that leaves or stays behind.
func TestSecretsAppearNowhere(t *testing.T) {
	t.Parallel()
	s := newSecretive(t)
	s.veto()
	s.commit(map[string]string{
		settingsFile:             "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop-settings}\ndata: {log-level: info}\n---\n" + secret("shop-session", declaredSecret, ""),
		"apps/frozen/stack.yaml": s.stack("frozen"),
		"apps/frozen/s.yaml":     secret("frozen", frozenSecret, "immutable: true\n"),
	})
	s.start()
	s.until("the stacks to be ready", func(o reconciler.Overview) bool {
		return s.ready(o, "shop-settings") && s.ready(o, "shop-web") && s.ready(o, "frozen")
	})

	// Somebody else writes to a Secret.
	_, err := s.live.Resource(resourceOf("secret")).Namespace(s.w.Namespace).Patch(t.Context(), "shop-session", types.MergePatchType,
		mustMarshal(t, map[string]any{"stringData": map[string]any{"key": liveSecret, "more": liveSecret}}), metav1.PatchOptions{FieldManager: "carol"})
	must(t, err)
	s.eventually("the revert", func() bool {
		return s.field("secret", "shop-session", "data", "key") == base64.StdEncoding.EncodeToString([]byte(declaredSecret))
	})
	s.listen()

	// What cannot be applied, in three ways, and what policy refuses.
	s.commit(map[string]string{
		"apps/frozen/s.yaml":     secret("frozen", rotatedSecret, "immutable: true\n"),
		"apps/broken/stack.yaml": s.stack("broken"),
		"apps/broken/s.yaml":     strings.Replace(secret("broken", brokenSecret, "type: kubernetes.io/dockerconfigjson\n"), "key:", ".dockerconfigjson:", 1),
		"apps/vetoed/stack.yaml": s.stack("vetoed"),
		"apps/vetoed/s.yaml":     secret("vetoed", vetoedSecret, ""),
		deploymentFile: strings.NewReplacer("allowPrivilegeEscalation: false", "privileged: true").Replace(s.files[deploymentFile]) +
			"---\n" + secret("shop-web", rotatedSecret, ""),
	})
	for _, stack := range []string{"frozen", "broken", "vetoed", "shop-web"} {
		s.says(stack, ".", reconciler.Invalid, reconciler.Denied)
	}
	s.eventually("the notification", func() bool { return strings.Contains(s.receiver.String(), "vetoed") })
	s.listen()

	// What only the masks at the sinks keep in: a configuration that quotes.
	s.commit(s.quotingSite())
	s.says("quoting", "no such thing: .*masked.*masked.*masked", reconciler.Failed, reconciler.Invalid)
	s.ask("plan", "quoting", "-o", "json")
	s.ask("logs", "quoting")
	s.fetch("/v1/status")

	// kill -9 while Terraform has a plan file open.
	s.commit(s.slowSite())
	s.eventually("the apply", func() bool { return strings.Contains(s.log.String(), "time_sleep.slow: Creating") })
	s.kill()
	s.kept(s.tmp)
	s.kept(s.w.StateDir)

	// And a dump of everything that runs.
	s.start()
	s.says("frozen", ".", reconciler.Invalid, reconciler.Denied)
	must(t, syscall.Kill(s.d.PID(), syscall.SIGQUIT))
	s.eventually("the end", func() bool { gone, _ := s.d.Exited(); return gone })
	if !strings.Contains(s.log.String(), "SIGQUIT: quit") {
		t.Error("there is no dump to look at")
	}
	s.kept(s.tmp)
	s.kept(s.w.StateDir)
	if s.collector.String() == "" {
		t.Error("the collector got nothing")
	}
	s.search()
}

// veto has the cluster refuse one Secret, and quote it.
func (s *secretive) veto() {
	s.t.Helper()
	admission := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource}
	}
	name := "veto-" + s.w.Namespace
	for resource, object := range map[string]map[string]any{
		"validatingadmissionpolicies": {"kind": "ValidatingAdmissionPolicy", "spec": map[string]any{
			"matchConstraints": map[string]any{"resourceRules": []any{map[string]any{
				"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE", "UPDATE"}, "resources": []any{"secrets"},
			}}},
			"validations": []any{map[string]any{
				"expression":        "!object.metadata.name.startsWith('vetoed')",
				"messageExpression": "'no: ' + string(object.data.key) + ' or ' + object.metadata.name",
			}},
		}},
		"validatingadmissionpolicybindings": {"kind": "ValidatingAdmissionPolicyBinding", "spec": map[string]any{
			"policyName": name, "validationActions": []any{"Deny"},
			"matchResources": map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": s.w.Namespace}}},
		}},
	} {
		object["apiVersion"], object["metadata"] = "admissionregistration.k8s.io/v1", map[string]any{"name": name}
		client := s.live.Resource(admission(resource))
		_, err := client.Create(s.t.Context(), &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
		must(s.t, err)
		s.t.Cleanup(func() { _ = client.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	probe := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "vetoed-probe"}, "stringData": map[string]any{"key": "probe"},
	}}
	s.eventually("the veto", func() bool {
		_, err := s.live.Resource(resourceOf("secret")).Namespace(s.w.Namespace).Create(s.t.Context(), probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil
	})
}

// quotingSite is a Terraform stack that fails with a secret in its message.
func (s *secretive) quotingSite() map[string]string {
	s.t.Helper()
	lock, err := s.w.Lock()
	must(s.t, err)
	return map[string]string{
		"infra/quoting/stack.yaml":          "apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: quoting}\nspec:\n  environment: production\n  terraform: {root: ., credentials: shop}\n",
		"infra/quoting/.terraform.lock.hcl": lock,
		"infra/quoting/main.tf": `terraform {
  required_providers {
    local = { source = "hashicorp/local" }
  }
}
variable "site_dir" { type = string }
variable "password" {
  type      = string
  sensitive = true
}
locals { plain = nonsensitive(var.password) }
resource "local_file" "quoting" {
  filename = "${var.site_dir}/quoting"
  content  = "x"
  lifecycle {
    precondition {
      condition     = local.plain == ""
      error_message = "no such thing: ${local.plain} ${base64encode("user:${local.plain}")} ${urlencode(local.plain)} ${jsonencode({ a = local.plain })}"
    }
  }
}
`,
	}
}

// slowSite is a Terraform stack that has a secret and takes its time.
func (s *secretive) slowSite() map[string]string {
	s.t.Helper()
	lock, err := terraform.Lock(s.w.Mirror(), map[string]string{"registry.opentofu.org/hashicorp/local": "1.4.0", "registry.opentofu.org/hashicorp/time": "0.14.2"})
	must(s.t, err)
	return map[string]string{
		"infra/slow/stack.yaml":          "apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: slow}\nspec:\n  environment: production\n  terraform: {root: ., credentials: shop}\n  drift: {mode: report}\n",
		"infra/slow/.terraform.lock.hcl": string(lock),
		"infra/slow/main.tf": `terraform {
  required_providers {
    local = { source = "hashicorp/local" }
    time  = { source = "hashicorp/time" }
  }
}
variable "site_dir" { type = string }
variable "password" {
  type      = string
  sensitive = true
}
resource "local_file" "first" {
  filename          = "${var.site_dir}/first"
  sensitive_content = var.password
}
resource "time_sleep" "slow" {
  create_duration = "600s"
  triggers        = { password = var.password }
  depends_on      = [local_file.first]
}
`,
	}
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}
