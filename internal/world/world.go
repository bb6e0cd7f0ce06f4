// Package world owns a small company on loopback: a Git server with a
// desired-state repository, an OCI registry, a certificate authority that signs
// releases for real, people with signing keys, and an operator's file for a
// daemon that watches it all. The demo, the end-to-end tests and the benchmark
// live in it.
//
// It guarantees that every part is the real thing, that nothing outside its
// folder is touched, and that Close ends all of it. It refuses to be linked into
// the product: internal/archtest sees to that.
package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets/terraform"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// GitToken is the token of the Git server, Password that of the registry is
// made by it.
const GitToken = "git-token-4f1d9c0a7b" //nolint:gosec // of a server that lives for one test

// Identity and Issuer are those of the company's release workflow.
const (
	Identity = "https://github.com/acme/shop/.github/workflows/release.yaml@refs/heads/main"
	Issuer   = "https://token.actions.githubusercontent.com"
)

const predicateSPDX = "https://spdx.dev/Document/v2.3"

// Options say what a world is made of.
type Options struct {
	Dir        string           // its folder; must exist
	Cluster    *testenv.Cluster // where to deploy to
	Namespace  string           // replaces "shop" in the example repository
	System     string           // Holdfast's own namespace
	Terraform  string           // path of tofu or terraform
	NoReferrer bool             // a registry without the referrers API
	Faults     bool             // the daemon reaches every server through a fault proxy
}

// World is a running world.
type World struct {
	Options
	Git       *testenv.GitServer
	Repo      *testenv.Repo
	Registry  *testenv.Registry
	Authority *verifytest.Authority
	Alice     *testenv.Signer // may change everything
	Bob       *testenv.Signer // may change apps/ only
	Mallory   *testenv.Signer // may change nothing
	Config    string          // path of the operator's file
	StateDir  string
	SiteDir   string         // where the Terraform stack puts its files
	HTTP      string         // address of the daemon's HTTP listener
	Clock     *testenv.Clock // of daemons that are started; nil for the machine's

	// What the daemon reaches the servers through with Options.Faults; nil without.
	GitFaults, RegistryFaults, ClusterFaults *testenv.FaultProxy

	mirror string
}

// New starts the servers and writes the operator's file. The repository is
// empty until the first Commit.
func New(o Options) (_ *World, err error) {
	w := &World{Options: o, Config: filepath.Join(o.Dir, "holdfast.yaml"), StateDir: filepath.Join(o.Dir, "state"), SiteDir: filepath.Join(o.Dir, "site")}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.Git, err = testenv.NewGitServer(testenv.GitOptions{Dir: filepath.Join(o.Dir, "git"), Token: GitToken}); err != nil {
		return nil, err
	}
	if w.Repo, err = w.Git.NewRepo("shop"); err != nil {
		return nil, err
	}
	if w.Registry, err = testenv.NewRegistry(testenv.RegistryOptions{Referrers: !o.NoReferrer, TLS: true, Auth: true}); err != nil {
		return nil, err
	}
	if w.Authority, err = verifytest.NewAuthority(); err != nil {
		return nil, err
	}
	keys := filepath.Join(o.Dir, "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		signer **testenv.Signer
		make   func(dir, name, email string) (*testenv.Signer, error)
		name   string
	}{{&w.Alice, testenv.NewSSHSigner, "alice"}, {&w.Bob, testenv.NewOpenPGPSigner, "bob"}, {&w.Mallory, testenv.NewSSHSigner, "mallory"}} {
		if *p.signer, err = p.make(keys, p.name, p.name+"@acme.example"); err != nil {
			return nil, err
		}
	}
	uid, gid := box.User() // Terraform's
	if err := errors.Join(os.Mkdir(w.SiteDir, 0o755), os.Chown(w.SiteDir, uid, gid)); err != nil {
		return nil, err
	}
	if w.mirror, err = testenv.ProviderMirror(filepath.Join(o.Dir, "mirror")); err != nil {
		return nil, err
	}
	if w.HTTP, err = freeAddress(); err != nil {
		return nil, err
	}
	if o.Faults {
		if err := w.startFaults(); err != nil {
			return nil, err
		}
	}
	return w, w.writeConfig()
}

// startFaults starts a proxy in front of each server.
func (w *World) startFaults() (err error) {
	if w.GitFaults, err = testenv.NewFaultProxy(strings.TrimSuffix(w.Git.HTTPURL("shop"), "/shop.git")); err != nil {
		return err
	}
	if w.RegistryFaults, err = testenv.NewFaultProxyTLS(w.Registry.URL(), w.Registry.Transport()); err != nil {
		return err
	}
	transport, err := rest.TransportFor(w.Cluster.User("holdfast", "system:masters"))
	if err != nil {
		return err
	}
	w.ClusterFaults, err = testenv.NewFaultProxyTLS(w.Cluster.Config.Host, transport)
	return err
}

// gitURL, registryHost and registryCA are how the daemon reaches the servers.
func (w *World) gitURL() string {
	if w.GitFaults != nil {
		return w.GitFaults.URL() + "/shop.git"
	}
	return w.Git.HTTPURL("shop")
}

func (w *World) registryHost() string {
	if w.RegistryFaults != nil {
		return w.RegistryFaults.Host()
	}
	return w.Registry.Host
}

func (w *World) registryCA() []byte {
	if w.RegistryFaults != nil {
		return w.RegistryFaults.CA()
	}
	return w.Registry.CA
}

func (w *World) writeKubeconfig(path string) error {
	if w.ClusterFaults != nil {
		return w.ClusterFaults.WriteKubeconfig(path, "holdfast")
	}
	return w.Cluster.WriteKubeconfig(path, "holdfast", "system:masters")
}

// Close ends the servers.
func (w *World) Close() error {
	var errs []error
	for _, p := range []*testenv.FaultProxy{w.GitFaults, w.RegistryFaults, w.ClusterFaults} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	if w.Git != nil {
		errs = append(errs, w.Git.Close())
	}
	if w.Registry != nil {
		errs = append(errs, w.Registry.Close())
	}
	return errors.Join(errs...)
}

// freeAddress returns an address to listen on that is below the ports that the
// kernel gives to connections: one of those may be taken again at any moment.
func freeAddress() (string, error) {
	var err error
	for range 100 {
		var l net.Listener
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000))) //nolint:noctx,gosec // closed at once; a port needs no secrecy
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", err
}

// writeConfig writes the operator's file and everything that it names.
func (w *World) writeConfig() error {
	root, err := w.Authority.TrustedRoot()
	if err != nil {
		return err
	}
	key, err := w.Authority.Key("release")
	if err != nil {
		return err
	}
	if err := w.writeKubeconfig(filepath.Join(w.Dir, "kubeconfig.yaml")); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"git-token":              []byte(GitToken + "\n"),
		"registry-password":      []byte(w.Registry.Password + "\n"),
		"registry-ca.pem":        w.registryCA(),
		"trusted_root.json":      root,
		"release.pub":            key,
		"alice.allowed_signers":  []byte(w.Alice.AllowedSignersLine() + "\n"),
		"orders.allowed_signers": []byte(strings.Replace(w.Alice.AllowedSignersLine(), `"git"`, `"order@holdfast.dev,config@holdfast.dev"`, 1) + "\n"),
		"bob.asc":                []byte(w.Bob.PublicKeyArmored()),
		"holdfast.yaml":          []byte(w.Operator()),
	} {
		if err := os.WriteFile(filepath.Join(w.Dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Operator returns the text of the operator's file.
func (w *World) Operator() string {
	r := strings.NewReplacer(
		"{{git}}", w.gitURL(), "{{registry}}", w.registryHost(), "{{namespace}}", w.Namespace, "{{system}}", w.System,
		"{{tofu}}", w.Terraform, "{{mirror}}", w.mirror, "{{site}}", w.SiteDir, "{{http}}", w.HTTP,
		"{{issuer}}", Issuer, "{{identity}}", Identity, "{{user}}", w.Registry.Username,
	)
	return r.Replace(operator)
}

const operator = `apiVersion: holdfast.dev/v1alpha1
kind: Holdfast
stateDir: state
listen: {http: "{{http}}"}

repositories:
- name: shop
  url: {{git}}
  branch: main
  interval: 200ms
  auth: {tokenFile: git-token}
  commits:
    signers:
    - {name: alice, allowedSignersFile: alice.allowed_signers}
    - {name: bob, openpgpKeyFile: bob.asc}
    rules:
    - {paths: ["**"], signers: [alice]}
    - {paths: ["apps/**"], signers: [bob]}

environments:
- name: production
  policies: [baseline]
  evidenceGrace: 1ns
  variables: {SHOP_NAME: Holdfast Shop, REGISTRY: "{{registry}}"}
  kubernetes: {kubeconfig: kubeconfig.yaml, namespace: {{system}}}
  terraform:
    binary: {{tofu}}
    mirror: {{mirror}}
    variables: {site_dir: "{{site}}"}
    sandbox: {write: ["{{site}}"]}

allow:
- repository: shop
  paths: ["apps/*"]
  environments: [production]
  targets: [kubernetes]
  namespaces: [{{namespace}}]
  drift: [revert, report]
  ignore: {paths: [/spec/replicas], days: 90}
- repository: shop
  paths: ["infra/*"]
  environments: [production]
  targets: [terraform]
  drift: [revert, report]

trust:
  roots: [{name: sigstore, trustedRoot: trusted_root.json}]
  signers:
  - {name: release, key: {file: release.pub}, root: sigstore}
  - {name: release-workflow, identity: {issuer: {{issuer}}, subject: {exact: "{{identity}}"}}, root: sigstore}
  rules:
  - name: acme-releases
    repositories: ["{{registry}}/acme/**"]
    require:
    - signature: {signers: [release]}
    - sbom: {signers: [release]}
  - name: acme-keyless
    repositories: ["{{registry}}/acme/keyless/**"]
    require:
    - signature: {signers: [release-workflow]}
    - sbom: {signers: [release-workflow]}

orders: {signers: [{name: alice, allowedSignersFile: orders.allowed_signers}]}

registries:
- {host: "{{registry}}", username: {{user}}, passwordFile: registry-password, caFile: registry-ca.pem}

policies:
- name: baseline
  library:
  - kubernetes/pod-security-baseline
  - kubernetes/pod-security-restricted
  - kubernetes/images
  - kubernetes/rbac
  - terraform/protected
  - terraform/provisioners
  - terraform/network
  - terraform/encryption
  data:
    params:
      protected: {types: [terraform_data]}
`

// Example returns the files of the example repository, with this world's
// namespace and a lock file for the providers of its mirror.
func (w *World) Example(examples fs.FS) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(examples, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(examples, p)
		files[p] = strings.ReplaceAll(string(b), "namespace: shop", "namespace: "+w.Namespace)
		return err
	})
	if err != nil {
		return nil, err
	}
	for p := range files {
		if strings.HasSuffix(p, "/main.tf") {
			lock, err := w.Lock()
			if err != nil {
				return nil, err
			}
			files[filepath.Dir(p)+"/.terraform.lock.hcl"] = lock
		}
	}
	return files, nil
}

// Mirror returns the folder of the provider mirror.
func (w *World) Mirror() string { return w.mirror }

// Lock returns a lock file for the local provider of the mirror.
func (w *World) Lock() (string, error) {
	source := "registry.opentofu.org/hashicorp/local"
	if filepath.Base(w.Terraform) == "terraform" {
		source = "registry.terraform.io/hashicorp/local"
	}
	b, err := terraform.Lock(w.mirror, map[string]string{source: "1.4.0"})
	return string(b), err
}

// Commit writes files (an empty content removes one), commits them with signer
// (nil: unsigned) and pushes.
func (w *World) Commit(message string, signer *testenv.Signer, files map[string]string) (string, error) {
	write := map[string]string{}
	for name, content := range files {
		if content != "" {
			write[name] = content
			continue
		}
		if err := w.Repo.Remove(name); err != nil {
			return "", err
		}
	}
	if err := w.Repo.Write(write); err != nil {
		return "", err
	}
	id, err := w.Repo.Commit(message, testenv.CommitOptions{Signer: signer})
	if err != nil {
		return "", err
	}
	return id, w.Repo.Push()
}

// Release says how an image was released.
type Release string

// The ways to release an image; only the first two may run.
const (
	Signed        Release = "signed"         // by the release key, with an SBOM
	Keyless       Release = "keyless"        // by the release workflow, with an SBOM
	Unsigned      Release = "unsigned"       // pushed, and that is all
	WrongKey      Release = "wrong-key"      // by another key
	WrongIdentity Release = "wrong-identity" // by another workflow
	NoSBOM        Release = "no-sbom"        // signed, without an SBOM
)

// Publish pushes an image to the registry and signs it as release says. legacy
// uses the tags that cosign used before the referrers API. It returns the
// image's digest.
func (w *World) Publish(ctx context.Context, repository, tag string, release Release, legacy bool) (string, error) {
	ref := w.Registry.Host + "/" + repository + ":" + tag
	digest, err := verifytest.PushImage(ctx, ref, verifytest.ImageOptions{Registry: w.registryAccess()})
	if err != nil || release == Unsigned {
		return digest.String(), err
	}
	return digest.String(), w.Sign(ctx, repository, digest.String(), release, legacy)
}

func (w *World) registryAccess() verifytest.Registry {
	return verifytest.Registry{Username: w.Registry.Username, Password: w.Registry.Password, Transport: w.Registry.Transport()}
}

// Sign signs an image that was pushed before, as release says.
func (w *World) Sign(ctx context.Context, repository, digest string, release Release, legacy bool) error {
	o := verifytest.SignOptions{Key: "release", Registry: w.registryAccess()}
	if legacy {
		o.Layout = verifytest.Legacy
	}
	switch release {
	case WrongKey:
		o.Key = "stranger"
	case Keyless:
		o.Key, o.Identity, o.Issuer = "", Identity, Issuer
	case WrongIdentity:
		o.Key, o.Identity, o.Issuer = "", "https://github.com/mallory/shop/.github/workflows/release.yaml@refs/heads/main", Issuer
	}
	pinned := w.Registry.Host + "/" + repository + "@" + digest
	if err := w.Authority.Sign(ctx, pinned, o); err != nil || release == NoSBOM {
		return err
	}
	return w.Authority.Attest(ctx, pinned, predicateSPDX, verifytest.SPDX(repository), o)
}

// Daemon is a running daemon.
type Daemon struct {
	w    *World
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	log  *syncWriter
}

// Daemon starts the daemon with the binary at bin; its log goes to log.
func (w *World) Daemon(bin string, log io.Writer) (*Daemon, error) {
	return w.Start(log, nil, bin, "run", "-c", w.Config, "--log-format", "json")
}

// Start starts a command that becomes the daemon, with more environment; its
// log goes to log.
func (w *World) Start(log io.Writer, env []string, command ...string) (*Daemon, error) {
	d := &Daemon{w: w, done: make(chan struct{}), log: &syncWriter{w: log}}
	d.cmd = exec.Command(command[0], command[1:]...) //nolint:noctx // ends by Stop or Kill
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = dieWithParent()
	start := d.cmd.Start
	if w.Clock != nil {
		start = func() error { return w.Clock.Start(d.cmd) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// syncWriter lets stdout and stderr share a writer.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// PID returns the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop ends the daemon and waits for it.
func (d *Daemon) Stop() error {
	_ = d.cmd.Process.Signal(os.Interrupt)
	select {
	case <-d.done:
		return d.err
	case <-time.After(30 * time.Second):
		return errors.Join(errors.New("the daemon does not stop"), d.Kill())
	}
}

// Kill ends the daemon as kill -9 does.
func (d *Daemon) Kill() error {
	err := d.cmd.Process.Kill()
	<-d.done
	return err
}

// Exited reports whether the daemon ended, and how.
func (d *Daemon) Exited() (bool, error) {
	select {
	case <-d.done:
		return true, d.err
	default:
		return false, nil
	}
}

// Status asks the daemon where everything stands.
func (w *World) Status(ctx context.Context) (o reconciler.Overview, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.HTTP+"/v1/status", nil)
	if err != nil {
		return o, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return o, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return o, fmt.Errorf("status: %s", resp.Status)
	}
	return o, json.NewDecoder(resp.Body).Decode(&o)
}

// Metric returns the sum of the daemon's samples whose text begins with prefix. That
// there is none is an error.
func (w *World) Metric(ctx context.Context, prefix string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.HTTP+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	total, there := 0.0, false
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, err
		}
		total, there = total+v, true
	}
	if !there {
		return 0, fmt.Errorf("no metric %q", prefix)
	}
	return total, nil
}

// Memory returns what the daemon has in memory, in MiB: all of it, and what of that is
// no file.
func (d *Daemon) Memory() (rss, anonymous float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		for key, to := range map[string]*float64{"VmRSS:": &rss, "RssAnon:": &anonymous} {
			if rest, ok := strings.CutPrefix(line, key); ok {
				kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					return 0, 0, err
				}
				*to = kib / 1024
			}
		}
	}
	return rss, anonymous, nil
}

// Wait asks for the status until check is content with it.
func (w *World) Wait(ctx context.Context, d *Daemon, what string, check func(reconciler.Overview) bool) (reconciler.Overview, error) {
	var last reconciler.Overview
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if o, err := w.Status(ctx); err == nil {
			if last = o; check(o) {
				return o, nil
			}
		}
		if d != nil {
			if gone, err := d.Exited(); gone {
				return last, fmt.Errorf("waiting for %s: the daemon ended: %w", what, err)
			}
		}
		select {
		case <-ctx.Done():
			b, _ := json.MarshalIndent(last, "", " ") // for people
			return last, fmt.Errorf("waiting for %s: %w; the last status was %s", what, ctx.Err(), b)
		case <-tick.C:
		}
	}
}

// Stack returns the status of one stack, or a zero one.
func Stack(o reconciler.Overview, name string) reconciler.Status {
	for _, s := range o.Stacks {
		if s.Stack == name {
			return s
		}
	}
	return reconciler.Status{}
}
