package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/egress"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/sandbox"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/terraform"
)

// builder makes one stack's view of a target.
type builder func(ts *targetSet, dir string, s *config.Stack, p config.Permission, d drift.Rules) (targets.Target, error)

// builtinTargets is the list of targets: a new one is a folder below targets
// and a line here.
func builtinTargets() map[string]builder {
	return map[string]builder{
		"kubernetes": (*targetSet).kubernetes,
		"terraform":  (*targetSet).terraform,
	}
}

// targetSet makes targets and holds what the stacks of an environment share.
type targetSet struct {
	cfg      *config.Loaded
	secrets  *secrets
	log      *slog.Logger
	builders map[string]builder
	clusters map[string]*kubernetes.Cluster // by environment
	binaries map[string]string              // of Terraform, by environment
	audits   map[string]*kubernetes.Audit   // who wrote what, by environment
	renderer *sandbox.Pool
	// protected is what is Holdfast's own, which no Terraform may touch.
	protected terraform.Protected

	namespaces sync.Map // of stacks on a cluster, by environment/name
}

func newTargetSet(cfg *config.Loaded, sec *secrets, log *slog.Logger, reg prometheus.Registerer, connect func(*config.Kubernetes) (*rest.Config, error)) (*targetSet, error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_kubernetes_requests_total", Help: "Requests to API servers, by environment, method and status code (0: no answer).",
	}, []string{"environment", "method", "code"})
	if err := reg.Register(requests); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	ts := &targetSet{
		cfg: cfg, secrets: sec, log: log, builders: builtinTargets(),
		clusters: map[string]*kubernetes.Cluster{}, binaries: map[string]string{}, audits: newAudits(cfg),
		protected: terraform.Protected{Paths: ownFiles(cfg), Namespaces: ownNamespaces(cfg, podNamespaceFile)},
	}
	identity, err := kubernetes.Identity(cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		identity, err = "nobody", nil // a check on another machine, which takes no Lease and so can write nothing
	}
	if err != nil {
		return nil, err
	}
	if ts.renderer, err = newRenderer(log); err != nil {
		return nil, err
	}
	claims := sharedClaims{}
	kinds := imageKinds(cfg)
	for _, e := range cfg.Environments {
		if k := e.Kubernetes; k != nil {
			rc, err := connect(k)
			if err != nil {
				return nil, fmt.Errorf("environment %s: %w", e.Name, err)
			}
			rc.Wrap(counted(requests, e.Name))
			ts.clusters[e.Name], err = kubernetes.NewCluster(kubernetes.ClusterConfig{
				REST: rc, Namespace: k.Namespace, Key: sec.key("inventory " + e.Name),
				Masker: sec.environment(e.Name), Log: log, Renderer: ts.renderer,
				ServiceAccount: kubernetes.UserOf(rc), Kinds: kinds, Health: healthRules(cfg), Injectors: injectors(k), Claims: claims.of(rc), Audit: ts.audits[e.Name], Lease: kubernetes.LeaseConfig{
					Off: k.Lease.Off, Name: k.Lease.Name, Duration: time.Duration(k.Lease.Duration), Identity: identity,
				},
			})
			if err != nil {
				return nil, fmt.Errorf("environment %s: %w", e.Name, err)
			}
			if user := kubernetes.UserOf(rc); user != "" {
				ts.protected.Users = append(ts.protected.Users, user)
			}
		}
		if t := e.Terraform; t != nil {
			bin, err := exec.LookPath(t.Binary)
			if err == nil {
				bin, err = filepath.Abs(bin)
			}
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "install it, or name its path in terraform.binary", "environment %s: %w", e.Name, err)
			}
			ts.binaries[e.Name] = bin
		}
	}
	return ts, nil
}

// defaultNamespace is where Holdfast is installed unless somebody says otherwise.
const defaultNamespace = "holdfast-system"

// podNamespaceFile is where a pod reads which namespace it is in (Kubernetes,
// "Accessing the Kubernetes API from a Pod").
const podNamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// ownNamespaces returns the namespaces that are Holdfast's own: of each
// environment, the default one, and the one that podFile says it runs in. The
// latter two are there for a daemon that deploys to no cluster, and whose
// Terraform may reach the one that it runs in all the same.
func ownNamespaces(cfg *config.Loaded, podFile string) []string {
	own := []string{defaultNamespace}
	for _, e := range cfg.Environments {
		if e.Kubernetes != nil {
			own = append(own, e.Kubernetes.Namespace)
		}
	}
	if b, err := os.ReadFile(podFile); err == nil { // outside a pod there is none
		own = append(own, strings.TrimSpace(string(b)))
	}
	own = slices.DeleteFunc(own, func(ns string) bool { return ns == "" })
	slices.Sort(own)
	return slices.Compact(own)
}

// ownFiles returns the files that are Holdfast's own: the operator's file, what
// it names, and the state directory. They are absolute.
func ownFiles(cfg *config.Loaded) []string {
	files := []string{cfg.StateDir, cfg.Path, cfg.Path + ".sig", cfg.Listen.Socket}
	signers := func(list []config.Signer) {
		for _, s := range list {
			files = append(files, s.AllowedSignersFile, s.OpenPGPKeyFile)
		}
	}
	signers(cfg.Orders.Signers)
	if cfg.Signed != nil {
		signers(cfg.Signed.Signers)
	}
	for _, r := range cfg.Repositories {
		signers(r.Commits.Signers)
		if a := r.Auth; a != nil {
			files = append(files, a.TokenFile, a.SSHKeyFile, a.KnownHostsFile, a.CAFile)
		}
		if w := r.Webhook; w != nil {
			files = append(files, w.SecretFile)
		}
	}
	for _, e := range cfg.Environments {
		if k := e.Kubernetes; k != nil {
			files = append(files, k.Kubeconfig)
			if k.Audit != nil {
				files = append(files, k.Audit.TokenFile)
			}
		}
		if t := e.Terraform; t != nil {
			files = append(files, t.Mirror)
			for _, set := range t.Credentials {
				files = append(files, slices.Collect(maps.Values(set))...)
			}
		}
	}
	files = append(files, cfg.Trust.Named()...)
	for _, r := range cfg.Registries {
		files = append(files, r.PasswordFile, r.CAFile)
	}
	if s := cfg.Trust.Summaries; s != nil {
		files = append(files, s.KeyFile, s.PasswordFile)
		for _, r := range s.Registries {
			files = append(files, r.PasswordFile, r.CAFile)
		}
	}
	for _, p := range cfg.Policies {
		files = append(files, p.Path)
	}
	for _, r := range cfg.Notify.Receivers {
		files = append(files, r.URLFile, r.KeyFile, r.CAFile)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == "" })
	for i, f := range files {
		files[i] = filepath.Clean(f)
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// sharedClaims lets the environments of one cluster see what each other's stacks declare.
type sharedClaims map[string]*kubernetes.Claims

func (s sharedClaims) of(rc *rest.Config) *kubernetes.Claims {
	if s[rc.Host] == nil {
		s[rc.Host] = kubernetes.NewClaims()
	}
	return s[rc.Host]
}

func imageKinds(cfg *config.Loaded) []kubernetes.KindImages {
	var out []kubernetes.KindImages
	for _, k := range cfg.Kinds {
		if k.None || len(k.Images) > 0 {
			out = append(out, kubernetes.KindImages{Kind: k.Kind, Images: k.Images, None: k.None})
		}
	}
	return out
}

func healthRules(cfg *config.Loaded) []kubernetes.HealthRule {
	var out []kubernetes.HealthRule
	for _, k := range cfg.Kinds {
		if k.Health != nil {
			out = append(out, healthRule(k.Kind, *k.Health))
		}
	}
	return out
}

func healthRule(kind string, h config.Health) kubernetes.HealthRule {
	return kubernetes.HealthRule{Kind: kind, Current: h.Current, InProgress: h.InProgress, Failed: h.Failed}
}

func injectors(k *config.Kubernetes) []kubernetes.Injector {
	var out []kubernetes.Injector
	for _, in := range k.Injectors {
		out = append(out, kubernetes.Injector{Manager: in.Manager, Subresource: in.Subresource, Kinds: in.Kinds, Paths: in.Paths, Images: in.Images})
	}
	return out
}

// counted counts the requests that go through a transport.
func counted(c *prometheus.CounterVec, environment string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			code := 0
			if err == nil {
				code = resp.StatusCode
			}
			c.WithLabelValues(environment, req.Method, strconv.Itoa(code)).Inc()
			return resp, err
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// run runs what the targets share until ctx ends.
func (ts *targetSet) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { <-ctx.Done(); return nil }) // without a cluster too: the daemon ends with its first part
	for _, c := range ts.clusters {
		g.Go(func() error { return c.Run(ctx) })
		g.Go(func() error { return c.HoldLease(ctx) })
	}
	return errors.Join(g.Wait(), ts.renderer.Close())
}

func (ts *targetSet) build(target, dir string, s *config.Stack, p config.Permission, d drift.Rules) (targets.Target, error) {
	b, ok := ts.builders[target]
	if !ok {
		return nil, fault.New(fault.Invalid, "holdfast.build", "", "there is no target %q", target)
	}
	return b(ts, dir, s, p, d)
}

func (ts *targetSet) kubernetes(dir string, s *config.Stack, p config.Permission, d drift.Rules) (targets.Target, error) {
	k := s.Spec.Kubernetes
	spec := kubernetes.Spec{
		Stack: s.Metadata.Name, Environment: s.Spec.Environment, Dir: dir, Namespace: k.Namespace,
		Manifests: k.Manifests, Variables: p.Environment.Variables, Adopt: k.Adopt, AdoptFrom: k.AdoptFrom,
		Conflicts: kubernetes.ConflictRule(p.Conflicts), Replace: k.Replace, ServiceAccount: p.ServiceAccount,
	}
	for _, h := range k.Health {
		spec.Health = append(spec.Health, healthRule(h.Kind, h.Health))
	}
	if len(d.Ignore) > 0 {
		spec.Yield = func(id plan.ObjectID, pointer string) bool { return d.Ignores(id, pointer, time.Now()) }
	}
	spec.Allow = kubernetes.Allow{Namespaces: p.Namespaces, Kinds: p.Kinds, ClusterPowers: p.ClusterPowers}
	if len(p.Kinds) == 0 {
		spec.Allow.Kinds = []string{"*"} // all namespaced ones
	}
	if spec.Variables == nil {
		spec.Variables = map[string]string{}
	}
	if spec.Kustomize = k.Kustomize; k.Kustomize == "" && len(k.Manifests) == 0 {
		spec.Manifests = []string{"."}
	}
	ts.namespaces.Store(spec.Environment+"/"+spec.Stack, spec.Namespace)
	return kubernetes.New(ts.clusters[s.Spec.Environment], spec)
}

func (ts *targetSet) terraform(dir string, s *config.Stack, p config.Permission, _ drift.Rules) (targets.Target, error) {
	t, env := s.Spec.Terraform, p.Environment
	root, err := joinDir(dir, t.Root)
	if err != nil {
		return nil, err
	}
	masker := ts.secrets.environment(env.Name)
	environ := map[string]string{}
	for name, file := range p.Credentials {
		v, err := readSecret(file)
		if err != nil {
			return nil, err
		}
		masker.Register(v)
		environ[name] = v
	}
	variables := map[string]string{}
	for k, v := range env.Terraform.Variables {
		variables[k] = v
	}
	for k, v := range t.Variables {
		if _, taken := variables[k]; taken {
			return nil, fault.New(fault.Denied, "holdfast.build", "remove it from the stack file", "variable %q is set by the operator", k)
		}
		variables[k] = v
	}
	sandboxed, err := terraformSandbox(env.Terraform.Sandbox)
	if err != nil {
		return nil, err
	}
	return terraform.New(terraform.Config{
		Binary: ts.binaries[env.Name], Mirror: env.Terraform.Mirror,
		StateDir: filepath.Join(ts.cfg.StateDir, "terraform"), Environ: environ,
		Masker: masker, Log: ts.log, Timeout: time.Duration(env.Terraform.Timeout),
		Protected: ts.protected, Sandbox: sandboxed, Permit: env.Terraform.Permit,
	}, terraform.Spec{
		Stack: s.Metadata.Name, Environment: env.Name, Dir: root, Workspace: t.Workspace, Variables: variables,
	})
}

// terraformSandbox is what the operator lets the tool reach.
func terraformSandbox(s config.TerraformSandbox) (terraform.Sandbox, error) {
	allowed, err := egress.Parse(slices.Concat(s.Egress, s.Forwards))
	return terraform.Sandbox{
		None: s.None, Read: s.Read, Write: s.Write, Egress: allowed, Forwards: s.Forwards,
		Limits: box.Limits{Work: s.Work, Memory: s.Memory, Processes: s.Processes},
	}, err
}

// restConfig reads a kubeconfig. A file that runs commands is refused: whoever
// can write a kubeconfig must not be able to run code (CVE-2021-41254).
func restConfig(k *config.Kubernetes) (*rest.Config, error) {
	const op = "holdfast.restConfig"
	if k.Kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "set kubernetes.kubeconfig outside a cluster", "no kubeconfig: %w", err)
		}
		return c, nil
	}
	raw, err := clientcmd.LoadFromFile(k.Kubeconfig)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "", "kubeconfig: %w", err)
	}
	for name, u := range raw.AuthInfos {
		if u.Exec != nil || u.AuthProvider != nil {
			return nil, fault.New(fault.Invalid, op, "use a client certificate or a token", "%s: user %q runs a command or an auth provider", k.Kubeconfig, name)
		}
	}
	c, err := clientcmd.NewNonInteractiveClientConfig(*raw, k.Context, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "", "%s: %w", k.Kubeconfig, err)
	}
	return c, nil
}
