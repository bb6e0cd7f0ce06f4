package testenv_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

var (
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	jobs        = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

func TestClusterRunsWorkloads(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := dynamicFor(t, c.Config)
	pod := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app": "web"}},
		"spec": map[string]any{
			"initContainers": []any{map[string]any{"name": "init", "image": "example.test/init"}},
			"containers":     []any{map[string]any{"name": "web", "image": "example.test/web"}},
		},
	}
	create(t, client, deployments, ns, map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web"},
		"spec": map[string]any{
			"replicas": int64(2),
			"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}},
			"template": pod,
		},
	})
	jobPod := map[string]any{"spec": map[string]any{
		"restartPolicy": "Never",
		"containers":    []any{map[string]any{"name": "job", "image": "example.test/job"}},
	}}
	create(t, client, jobs, ns, map[string]any{
		"apiVersion": "batch/v1", "kind": "Job", "metadata": map[string]any{"name": "once"},
		"spec": map[string]any{"template": jobPod},
	})
	started := time.Now()
	waitForCondition(ctx, t, client, deployments, ns, "web", "Available")
	t.Logf("the deployment took %v", time.Since(started))
	waitForCondition(ctx, t, client, jobs, ns, "once", "Complete")
	t.Logf("the job took %v", time.Since(started))
}

func TestClusterIdentities(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	object := func(name string) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}}
	}

	// A new identity is authenticated and may do nothing.
	mallory := dynamicFor(t, c.User("mallory", "outsiders"))
	_, err := mallory.Resource(configMaps).Namespace(ns).Create(t.Context(), &unstructured.Unstructured{Object: object("x")}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "mallory") {
		t.Errorf("a user without rights: got %v, want forbidden", err)
	}

	// A token works where a client certificate cannot pass, such as a proxy.
	token := dynamicFor(t, &rest.Config{Host: c.Config.Host, BearerToken: c.Token, TLSClientConfig: rest.TLSClientConfig{CAData: c.Config.CAData}})
	create(t, token, configMaps, ns, object("by-token"))

	// A kubeconfig carries groups and leaves a trace with user and agent.
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.WriteKubeconfig(path, "alice", "system:masters"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.UserAgent = "drift-actor/1"
	create(t, dynamicFor(t, config), configMaps, ns, object("by-alice"))
	log, err := os.ReadFile(c.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(log) {
		var event struct {
			Verb, UserAgent string
			User            struct{ Username string }
			ObjectRef       struct{ Namespace, Name string }
		}
		if err := json.Unmarshal(line, &event); err != nil {
			continue // the last line may be half written
		}
		if event.ObjectRef.Namespace == ns && event.ObjectRef.Name == "by-alice" {
			if event.Verb != "create" || event.User.Username != "alice" || event.UserAgent != "drift-actor/1" {
				t.Errorf("audit event: %+v", event)
			}
			return
		}
	}
	t.Error("no audit event for a write")
}

// TestSharedClusterAcrossProcesses runs this test binary twice at once, as go
// test runs one process per package, and compares what they got.
func TestSharedClusterAcrossProcesses(t *testing.T) {
	t.Parallel()
	started := time.Now()
	if os.Getenv("TESTENV_CHILD") != "" {
		fmt.Printf("cluster=%s\n", testenv.SharedCluster(t).Config.Host)
		return
	}
	want := "cluster=" + testenv.SharedCluster(t).Config.Host
	t.Logf("ready after %v", time.Since(started))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	outputs := make(chan string, 2)
	for range cap(outputs) {
		go func() {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$")
			cmd.Env = append(os.Environ(), "TESTENV_CHILD=1")
			out, err := cmd.CombinedOutput()
			outputs <- fmt.Sprintf("%s (%v)", out, err)
		}()
	}
	for range cap(outputs) {
		if out := <-outputs; !strings.Contains(out, want+"\n") {
			t.Errorf("got %q, want %s", out, want)
		}
	}
}

func TestOwnClusterEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	started := time.Now()
	c, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(started))
	// A second one in the same place is refused while the first runs.
	if _, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{Dir: dir}); err == nil {
		t.Error("two control planes in one directory")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cluster's files are still there: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
}

func TestMissingToolIsAnError(t *testing.T) {
	t.Setenv("HOLDFAST_TOOLS", t.TempDir())
	if _, err := testenv.Tool("tofu"); err == nil || !strings.Contains(err.Error(), "make tools") {
		t.Errorf("got %v, want the hint", err)
	}
	if _, err := testenv.ProviderMirror(t.TempDir()); err == nil {
		t.Error("a mirror without providers")
	}
	if _, err := testenv.StartCluster(t.Context(), testenv.ClusterOptions{}); err == nil || !strings.Contains(err.Error(), "make tools") {
		t.Errorf("got %v, want the hint", err)
	}
}

func TestProviderMirror(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 { // a second call finds everything in place
		if _, err := testenv.ProviderMirror(dir); err != nil {
			t.Fatal(err)
		}
	}
	work := t.TempDir()
	write(t, filepath.Join(work, "main.tf"), `terraform {
  required_providers {
    local = { source = "hashicorp/local", version = "1.4.0" }
    time  = { source = "hashicorp/time", version = "0.14.2" }
  }
}
`)
	write(t, filepath.Join(work, "tofurc"), `provider_installation {
  filesystem_mirror { path = "`+dir+`" }
}
`)
	for engine, path := range testenv.Terraforms(t) {
		cmd := exec.CommandContext(t.Context(), path, "init", "-no-color", "-input=false")
		cmd.Dir = work
		cmd.Env = []string{"HOME=" + work, "TF_CLI_CONFIG_FILE=" + filepath.Join(work, "tofurc"), "TF_DATA_DIR=" + t.TempDir(), "CHECKPOINT_DISABLE=1"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s init on %s: %v\n%s", engine, runtime.GOARCH, err, out)
		}
		_ = os.Remove(filepath.Join(work, ".terraform.lock.hcl"))
	}
}

func TestGitTransports(t *testing.T) {
	t.Parallel()
	s := newGit(t, testenv.GitOptions{Username: "bot", Password: "pass", Token: "tok", TLS: true})
	r, err := s.NewRepo("team/app")
	if err != nil {
		t.Fatal(err)
	}
	// Larger than git's http.postBuffer, so that the push by HTTP is chunked.
	big := strings.Repeat("0123456789abcdef", 1<<12)
	commit(t, r, map[string]string{"a.yaml": "a: 1\n"}, testenv.CommitOptions{})
	if err := r.Push(); err != nil {
		t.Fatal(err)
	}
	withUser := func(userinfo string) string {
		return strings.Replace(s.HTTPURL("team/app"), "://", "://"+userinfo+"@", 1)
	}
	for i, url := range []string{s.Path("team/app"), s.SSHURL("team/app"), withUser("bot:pass"), withUser("any:tok")} {
		id := commit(t, r, map[string]string{"a.yaml": fmt.Sprintf("a: %d\n", i+2), "big": big + fmt.Sprint(i)}, testenv.CommitOptions{})
		if _, err := r.Git("-c", "http.postBuffer=1000", "push", "-q", url, "HEAD:main"); err != nil {
			t.Errorf("push: %v", err)
			continue
		}
		clone := filepath.Join(t.TempDir(), "clone")
		if _, err := r.Git("clone", "-q", url, clone); err != nil {
			t.Errorf("clone: %v", err)
			continue
		}
		if got, err := r.Git("-C", clone, "rev-parse", "HEAD"); err != nil || got != id {
			t.Errorf("%s: got %s (%v), want %s", url, got, err, id)
		}
	}
}

func TestGitRefusesWrongCredentials(t *testing.T) {
	t.Parallel()
	s := newGit(t, testenv.GitOptions{Username: "bot", Password: "pass", Token: "tok"})
	r, err := s.NewRepo("app")
	if err != nil {
		t.Fatal(err)
	}
	commit(t, r, map[string]string{"a": "1"}, testenv.CommitOptions{})
	if err := r.Push(); err != nil {
		t.Fatal(err)
	}
	stranger, err := testenv.NewSSHSigner(t.TempDir(), "stranger", "stranger@holdfast.test")
	if err != nil {
		t.Fatal(err)
	}
	sshWith := func(key, hosts string) string {
		return "core.sshCommand=ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -i " + key + " -o UserKnownHostsFile=" + hosts
	}
	bad := func(userinfo string) string { return strings.Replace(s.HTTPURL("app"), "://", "://"+userinfo, 1) }
	for _, tt := range []struct{ name, config, url string }{
		{"http, nobody", "a.b=c", bad("")},
		{"http, wrong password", "a.b=c", bad("bot:wrong@")},
		{"http, wrong user", "a.b=c", bad("other:pass@")},
		{"http, empty password", "a.b=c", bad("bot:@")},
		{"ssh, wrong key", sshWith(stranger.KeyFile, s.KnownHostsFile()), s.SSHURL("app")},
		{"ssh, unknown host", sshWith(s.ClientKey(), "/dev/null"), s.SSHURL("app")},
		{"ssh, outside of the root", sshWith(s.ClientKey(), s.KnownHostsFile()), s.SSHURL("../work/app/.git/..")},
	} {
		for _, verb := range [][]string{{"ls-remote", tt.url}, {"push", tt.url, "HEAD:refs/heads/x"}} {
			args := append([]string{"-c", tt.config}, verb...)
			cmd := exec.CommandContext(t.Context(), "git", args...)
			cmd.Dir = r.Dir
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true"}
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("%s: %s was served: %s", tt.name, verb[0], out)
			}
		}
	}
	if out, err := r.Git("--git-dir", s.Path("app"), "for-each-ref", "--format=%(refname)"); err != nil || out != "refs/heads/main" {
		t.Errorf("refs: %q, %v", out, err)
	}
}

func TestSignedCommits(t *testing.T) {
	t.Parallel()
	s := newGit(t, testenv.GitOptions{})
	r, err := s.NewRepo("signed")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bySSH, err := testenv.NewSSHSigner(dir, "Alice", "alice@holdfast.test")
	if err != nil {
		t.Fatal(err)
	}
	byPGP, err := testenv.NewOpenPGPSigner(dir, "Bob", "bob@holdfast.test")
	if err != nil {
		t.Fatal(err)
	}
	first := commit(t, r, map[string]string{"a": "1"}, testenv.CommitOptions{Signer: bySSH})
	second := commit(t, r, map[string]string{"a": "2"}, testenv.CommitOptions{Signer: byPGP, Time: time.Unix(1700000000, 0)})
	amended := commit(t, r, map[string]string{"a": "3"}, testenv.CommitOptions{Signer: byPGP, Amend: true})
	if out, err := r.Git("log", "--format=%H %an"); err != nil || out != amended+" Bob\n"+first+" Alice" {
		t.Errorf("log: %q, %v", out, err)
	}

	payload, signature := split(t, r, first)
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(bySSH.PublicKeyArmored()))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sshsig.Unarmor([]byte(signature))
	if err != nil {
		t.Fatal(err)
	}
	if err := sshsig.Verify(strings.NewReader(payload), sig, key, sig.HashAlgorithm, "git"); err != nil {
		t.Errorf("ssh signature: %v", err)
	}
	for _, id := range []string{second, amended} {
		payload, signature = split(t, r, id)
		ring, err := openpgp.ReadArmoredKeyRing(strings.NewReader(byPGP.PublicKeyArmored()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openpgp.CheckArmoredDetachedSignature(ring, strings.NewReader(payload), strings.NewReader(signature), nil); err != nil {
			t.Errorf("openpgp signature: %v", err)
		}
	}

	// Where the real tools are, git itself agrees.
	if _, err := exec.LookPath("ssh-keygen"); err == nil {
		allowed := filepath.Join(dir, "allowed_signers")
		write(t, allowed, bySSH.AllowedSignersLine())
		if _, err := r.Git("-c", "gpg.ssh.allowedSignersFile="+allowed, "verify-commit", first); err != nil {
			t.Error(err)
		}
		if _, err := r.Tag("v1", "one", testenv.CommitOptions{Signer: bySSH}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Git("-c", "gpg.ssh.allowedSignersFile="+allowed, "verify-tag", "v1"); err != nil {
			t.Error(err)
		}
	}
}

func TestRegistries(t *testing.T) {
	t.Parallel()
	for _, o := range []testenv.RegistryOptions{
		{Referrers: true}, {Referrers: true, TLS: true, Auth: true}, {}, {TLS: true, Auth: true},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			t.Parallel()
			r, err := testenv.NewRegistry(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			ref, err := name.ParseReference(r.Host + "/team/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			image, err := random.Image(64, 2)
			if err != nil {
				t.Fatal(err)
			}
			opts := []remote.Option{remote.WithTransport(r.Transport())}
			if o.Auth {
				if err := remote.Write(ref, image, opts...); err == nil {
					t.Error("a push without credentials")
				}
				wrong := authn.FromConfig(authn.AuthConfig{Username: r.Username, Password: "wrong"})
				if err := remote.Write(ref, image, append(opts, remote.WithAuth(wrong))...); err == nil {
					t.Error("a push with a wrong password")
				}
				opts = append(opts, remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: r.Username, Password: r.Password})))
			}
			if o.TLS {
				if err := remote.Write(ref, image, remote.WithTransport(http.DefaultTransport)); err == nil {
					t.Error("the system trusts the registry's authority")
				}
			}
			if err := remote.Write(ref, image, opts...); err != nil {
				t.Fatal(err)
			}
			testReferrers(t, r, o, ref.Context(), image, opts)
		})
	}
}

// testReferrers attaches something to image and looks for it by the API alone.
func testReferrers(t *testing.T, r *testenv.Registry, o testenv.RegistryOptions, repo name.Repository, image v1.Image, opts []remote.Option) {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	subject, err := remote.Head(repo.Digest(digest.String()), opts...)
	if err != nil {
		t.Fatal(err)
	}
	other, err := random.Image(16, 1)
	if err != nil {
		t.Fatal(err)
	}
	attached := mutate.Subject(other, *subject).(v1.Image)
	if err := remote.Write(repo.Tag("attached"), attached, opts...); err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(repo.Digest(digest.String()), opts...)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Errorf("referrers: %+v, %v", manifest, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+"/v2/team/app/referrers/"+digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(r.Username, r.Password)
	res, err := r.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if has := res.StatusCode == http.StatusOK; has != o.Referrers {
		t.Errorf("referrers API: status %d, want it served: %t", res.StatusCode, o.Referrers)
	}
}

func TestFaultProxyCertificates(t *testing.T) {
	t.Parallel()
	target, err := testenv.NewRegistry(testenv.RegistryOptions{Referrers: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	p, err := testenv.NewFaultProxyTLS(target.URL(), target.Transport())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CA())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(client.CloseIdleConnections)
	for _, c := range []struct {
		until time.Time
		want  string
	}{{time.Now().Add(time.Hour), ""}, {time.Now().Add(-time.Hour), "certificate has expired"}, {time.Now().Add(time.Hour), ""}} {
		if err := p.Certify(c.until); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err == nil {
			err = res.Body.Close()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("a certificate until %s: %v, want %q", c.until, err, c.want)
		}
	}
}

func TestFaultProxy(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("x", 1000)
	target, err := testenv.NewRegistry(testenv.RegistryOptions{Referrers: true, TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	p, err := testenv.NewFaultProxyTransport(target.URL(), target.Transport())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	do := func(ctx context.Context, method, url, body string) (int, string, error) {
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = res.Body.Close() }()
		got, err := io.ReadAll(res.Body)
		return res.StatusCode, string(got), err
	}
	// The registry takes the blob in one request and serves it back.
	digest, _, err := v1.SHA256(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if status, out, err := do(t.Context(), http.MethodPost, p.URL()+"/v2/app/blobs/uploads/?digest="+digest.String(), body); err != nil || status != http.StatusCreated {
		t.Fatalf("upload: %d %s %v", status, out, err)
	}
	url := p.URL() + "/v2/app/blobs/" + digest.String()
	get := func(ctx context.Context) (int, string, error) { return do(ctx, http.MethodGet, url, "") }

	if status, out, err := get(t.Context()); status != 200 || out != body || err != nil {
		t.Errorf("no fault: %d, %d bytes, %v", status, len(out), err)
	}
	p.Set(testenv.Fault{CutAfter: 100})
	if _, out, err := get(t.Context()); err == nil || len(out) != 100 {
		t.Errorf("cut: %d bytes, %v", len(out), err)
	}
	p.Set(testenv.Fault{Corrupt: true})
	if _, out, err := get(t.Context()); err != nil || len(out) != len(body) || strings.Count(out, "y") != 16 {
		t.Errorf("corrupt: %d bytes, %d spoiled, %v", len(out), strings.Count(out, "y"), err)
	}
	p.Set(testenv.Fault{Status: 503, Times: 1})
	before := p.Requests()
	if status, _, err := get(t.Context()); status != 503 || err != nil {
		t.Errorf("status: %d, %v", status, err)
	}
	if status, _, err := get(t.Context()); status != 200 || err != nil {
		t.Errorf("status, second time: %d, %v", status, err)
	}
	if n := p.Requests() - before; n != 2 {
		t.Errorf("%d requests counted, want 2", n)
	}
	p.Set(testenv.Fault{Status: 500, Match: func(r *http.Request) bool { return r.Method == http.MethodHead }})
	if status, _, err := get(t.Context()); status != 200 || err != nil {
		t.Errorf("not matched: %d, %v", status, err)
	}
	p.Set(testenv.Fault{Status: 500, Skip: 1, Times: 1})
	for _, want := range []int{200, 500, 200} {
		if status, _, err := get(t.Context()); status != want || err != nil {
			t.Errorf("skip: %d, %v, want %d", status, err, want)
		}
	}
	if n := p.Matches(); n != 3 {
		t.Errorf("%d requests matched, want 3", n)
	}
	p.Set(testenv.Fault{Rewrite: func(r *http.Response) error { r.StatusCode = 418; return nil }})
	if status, _, err := get(t.Context()); status != 418 || err != nil {
		t.Errorf("rewrite: %d, %v", status, err)
	}
	p.Set(testenv.Fault{Trickle: 5000})
	began := time.Now()
	if _, out, err := get(t.Context()); out != body || err != nil || time.Since(began) < 100*time.Millisecond {
		t.Errorf("trickle: %d bytes, %v, after %s", len(out), err, time.Since(began))
	}
	p.Set(testenv.Fault{})
	p.Down()
	if _, _, err := get(t.Context()); err == nil {
		t.Error("down: an answer")
	}
	p.Up()
	if status, _, err := get(t.Context()); status != 200 || err != nil {
		t.Errorf("up: %d, %v", status, err)
	}
	p.Set(testenv.Fault{Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delay: %v", err)
	}
}

func newGit(t *testing.T, o testenv.GitOptions) *testenv.GitServer {
	t.Helper()
	o.Dir = t.TempDir()
	s, err := testenv.NewGitServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func commit(t *testing.T, r *testenv.Repo, files map[string]string, o testenv.CommitOptions) string {
	t.Helper()
	if err := r.Write(files); err != nil {
		t.Fatal(err)
	}
	id, err := r.Commit("change", o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// split returns a commit's bytes without its signature, and the signature.
func split(t *testing.T, r *testenv.Repo, id string) (payload, signature string) {
	t.Helper()
	raw, err := r.Git("cat-file", "commit", id)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(raw+"\n", "gpgsig ")
	if !ok {
		t.Fatalf("commit %s is not signed", id)
	}
	signature, after, _ := strings.Cut(rest, "\n\n")
	return before + "\n" + after, strings.ReplaceAll(signature, "\n ", "\n") + "\n"
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func dynamicFor(t *testing.T, config *rest.Config) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func create(t *testing.T, client dynamic.Interface, kind schema.GroupVersionResource, ns string, object map[string]any) {
	t.Helper()
	_, err := client.Resource(kind).Namespace(ns).Create(t.Context(), &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func waitForCondition(ctx context.Context, t *testing.T, client dynamic.Interface, kind schema.GroupVersionResource, ns, name, condition string) {
	t.Helper()
	w, err := client.Resource(kind).Namespace(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		object, ok := event.Object.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conditions {
			if m, ok := c.(map[string]any); ok && m["type"] == condition && m["status"] == "True" {
				return
			}
		}
	}
	t.Fatalf("%s %s is not %s in time", kind.Resource, name, condition)
}
