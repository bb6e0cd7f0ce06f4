// Package kubernetes owns the target that deploys to a Kubernetes cluster by
// server-side apply: rendering manifests and Kustomize folders, planning against
// the live objects, applying a granted plan, and watching what was applied. One
// [Target] serves one stack; the targets of an environment share one [Cluster].
//
// It guarantees that rendering touches neither cluster nor network, that a plan
// never writes (updates are dry runs), that an apply checks each change against
// the plan that was judged before the first write, and that nothing is pruned
// which the inventory, the owner mark and the managed fields do not all call
// ours. It refuses remote bases, plugins, Helm inflation, objects outside what
// the operator allows, Holdfast's own namespace, and objects that belong to
// somebody else.
package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	// OwnerAnnotation marks an object with the stack that owns it, "environment/stack".
	OwnerAnnotation = "holdfast.dev/stack"
	// ManagedLabel selects what the shared watches see.
	ManagedLabel = "holdfast.dev/managed"

	targetName       = "kubernetes"
	defaultNamespace = "holdfast-system"
	defaultManager   = "holdfast"
	maxLooks         = 16
	defaultWorkers   = 16
)

// ClusterConfig says how to reach the cluster of one environment.
type ClusterConfig struct {
	REST *rest.Config
	// Namespace is Holdfast's own; no stack may touch it. "holdfast-system" if empty.
	Namespace string
	// Key authenticates inventories and keys the digests of live values; at least 16 bytes.
	Key []byte
	// Masker stands for every secret that is rendered or read.
	Masker *mask.Masker
	Log    *slog.Logger
	// Workers bounds the requests that one plan or apply has under way; 16 if zero.
	Workers int
	// FieldManager owns what we apply; "holdfast" if empty.
	FieldManager string
	// ServiceAccount is the user that Holdfast is to the API server, such as
	// "system:serviceaccount:holdfast-system:holdfast". No stack may give it
	// permissions or take it any. Every account in Namespace is protected as well.
	ServiceAccount string
	// Kinds say where objects of custom kinds name images, beside those that are built in.
	Kinds []KindImages
	// Health says when objects of custom kinds are healthy, beside what is built in.
	Health []HealthRule
	// Injectors may add fields to managed objects. What anybody else adds where
	// they are closed (pod specifications, RBAC, webhooks, data, finalizers, …)
	// is drift of class foreign.
	Injectors []Injector
	// Audit remembers who wrote what, where the API server's audit log is had; nil:
	// findings name field managers only.
	Audit *Audit
	// Claims is shared by the environments of one cluster; nil: this one's own.
	Claims *Claims
	// Renderer runs [RenderTask]; nil: in this process, with nothing between the
	// content of a repository and what this process holds.
	Renderer Renderer
	// Lease decides which of several daemons acts.
	Lease LeaseConfig

	timeout time.Duration // of one request; zero: requestTimeout
}

// Cluster is what the stacks of one environment share: connections, the table
// of who claims which object, and one watch per kind. It is safe for concurrent use.
type Cluster struct {
	cfg   ClusterConfig
	conf  *rest.Config // of all connections
	dyn   dynamic.Interface
	meta  metadata.Interface
	disco discovery.DiscoveryInterface
	self  *session // the daemon's own

	sessionsMu sync.Mutex
	sessions   map[string]*session // of those that are impersonated

	lease   lease
	process string // tells the processes of one identity apart
	agent   string // the User-Agent of our requests

	resourcesMu sync.Mutex
	resources   map[schema.GroupVersionKind]resource

	definitions []schema.GroupVersionKind // that are watched
	kinds       kindTable
	healthRules map[string]*healthRule // by kind
	claims      *Claims
	events      recorder

	looks     chan struct{} // one for each look at what a watch told of that is under way
	preloaded preloaded
	absences  absences

	mu      sync.Mutex // guards what follows, and the observation state of every Target
	tracked map[plan.ObjectID]*tracked
	// early are the objects that are being applied: what was told of them before they are
	// tracked, or nil.
	early   map[plan.ObjectID]*unstructured.Unstructured
	watches map[watchKey]*watch
	pending []*watch      // watches that Run has not started yet
	wake    chan struct{} // tells Run about pending
}

// NewCluster returns a Cluster. It checks cfg and does no I/O.
func NewCluster(cfg ClusterConfig) (*Cluster, error) {
	switch {
	case cfg.REST == nil:
		return nil, errors.New("kubernetes: no connection configured")
	case cfg.Masker == nil:
		return nil, errors.New("kubernetes: no masker configured")
	case len(cfg.Key) < 16:
		return nil, errors.New("kubernetes: the inventory key has fewer than 16 bytes")
	}
	if err := cfg.Lease.validate(); err != nil {
		return nil, err
	}
	if cfg.Namespace == "" {
		cfg.Namespace = defaultNamespace
	}
	if cfg.FieldManager == "" {
		cfg.FieldManager = defaultManager
	}
	for _, in := range cfg.Injectors {
		if err := in.validate(cfg.FieldManager); err != nil {
			return nil, err
		}
	}
	if cfg.Renderer == nil {
		cfg.Renderer = inProcess{}
	}
	if cfg.Claims == nil {
		cfg.Claims = NewClaims()
	}
	kinds, err := newKindTable(cfg.Kinds)
	if err != nil {
		return nil, err
	}
	builtin, err := builtinHealthRules()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	own, err := newHealthRules(cfg.Health)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	health := maps.Clone(builtin)
	maps.Copy(health, own)
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	conf := rest.CopyConfig(cfg.REST)
	conf.QPS, conf.RateLimiter = -1, nil // the API server has priority and fairness; our own limit is Workers
	conf.DisableCompression = true
	conf.WarningHandler = rest.NoWarnings{}
	if conf.UserAgent == "" {
		conf.UserAgent = "holdfast"
	}
	conf.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return bounded{next: next, timeout: cmp.Or(cfg.timeout, requestTimeout)}
	})
	client, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: connection: %w", err)
	}
	dyn, err := dynamic.NewForConfigAndClient(conf, client)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: connection: %w", err)
	}
	meta, err := metadata.NewForConfigAndClient(conf, client)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: connection: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfigAndClient(conf, client)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: connection: %w", err)
	}
	return &Cluster{
		conf: conf, self: &session{dyn: dyn, manager: cfg.FieldManager}, sessions: map[string]*session{},
		cfg: cfg, dyn: dyn, meta: meta, disco: disco, process: thisProcess, agent: conf.UserAgent,
		resources:   map[schema.GroupVersionKind]resource{},
		definitions: definitions,
		looks:       make(chan struct{}, maxLooks),
		kinds:       kinds,
		healthRules: health,
		claims:      cfg.Claims,
		tracked:     map[plan.ObjectID]*tracked{},
		early:       map[plan.ObjectID]*unstructured.Unstructured{},
		watches:     map[watchKey]*watch{},
		wake:        make(chan struct{}, 1),
	}, nil
}

// Allow bounds what a stack may contain. The operator sets it.
type Allow struct {
	// Namespaces are globs (path.Match); empty allows the stack's own only.
	Namespaces []string
	// Kinds are globs over "ConfigMap", "Deployment.apps", …. A cluster-scoped
	// kind must be listed by its exact name.
	Kinds []string
	// ClusterPowers permits to bind roles of the stack cluster-wide that reach
	// Holdfast's own things, as those of many operators do. Whoever may sign the
	// stack is then trusted as much as Holdfast.
	ClusterPowers bool
}

// Spec describes one stack.
type Spec struct {
	Stack, Environment string
	Dir                string // the stack's folder in the repository, slash-separated; "" or "." is the root
	Namespace          string // for namespaced objects that declare none
	// Kustomize is a folder with a kustomization, Manifests are globs, files or
	// folders (not recursive), both relative to Dir. Exactly one is set.
	Kustomize string
	Manifests []string
	// Variables replace ${NAME} in what is rendered; nil leaves it alone.
	Variables map[string]string
	// Adopt takes over existing objects that Holdfast does not manage yet.
	Adopt bool
	// AdoptFrom are field managers, such as "kubectl-client-side-apply", "helm" or
	// "kustomize-controller", whose fields are taken over with the object: what
	// they set and the stack does not declare goes. Fields of other managers stay.
	AdoptFrom []string
	// Replace are the kinds, such as "Job.batch", whose objects are deleted and made
	// again when a field changes that cannot be changed in place.
	Replace []string
	// ServiceAccount is who the stack is to the API server when it is planned and
	// applied, "namespace/name"; empty: the daemon itself.
	ServiceAccount string
	// Conflicts says what becomes of declared fields that another manager owns;
	// empty: Take.
	Conflicts ConflictRule
	Allow     Allow
	// Health says when objects of custom kinds are healthy, in the place of the cluster's rules.
	Health []HealthRule
	// Yield says which declared fields, by JSON pointer, keep the value that
	// the live object has. Nil yields none. Fields within lists are not asked for.
	Yield func(id plan.ObjectID, pointer string) bool
}

// Target deploys one stack. It is safe for concurrent use, but Apply is called
// by one caller at a time.
type Target struct {
	c     *Cluster
	spec  Spec
	owner string // "environment/stack": the owner mark
	as    *session

	healthRules map[string]*healthRule // by kind

	ownedMu sync.Mutex
	entries map[plan.ObjectID]entry         // what the inventory said last, not modified; nil: not read yet
	owned   map[plan.ObjectID]bool          // of entries
	ran     map[plan.ObjectID]digest.Digest // Jobs that it says were made
	leaving map[plan.ObjectID]entry         // what is being deleted and not declared any more

	obs observation // guarded by Cluster.mu
}

var (
	_ targets.Target        = (*Target)(nil)
	_ targets.Pinner        = (*Target)(nil)
	_ targets.HealthChecker = (*Target)(nil)
	_ targets.Observer      = (*Target)(nil)
	_ targets.Recaller      = (*Target)(nil)
	_ targets.Surveyor      = (*Target)(nil)
	_ targets.Closer        = (*Target)(nil)
	_ targets.Attributor    = (*Target)(nil)
	_ targets.Claimer       = (*Target)(nil)
)

const opNew = "targets/kubernetes.New"

// New returns the target of one stack. It does no I/O. A spec that cannot be is
// an error of kind fault.Invalid.
func New(c *Cluster, s Spec) (*Target, error) {
	bad := func(format string, args ...any) error {
		return fault.WithStack(s.Stack, fault.New(fault.Invalid, opNew, "correct the stack file, or the operator's", format, args...))
	}
	if c == nil {
		return nil, bad("no cluster")
	}
	for _, n := range []struct{ what, name string }{{"stack", s.Stack}, {"environment", s.Environment}} {
		if n.name == "" || strings.ContainsAny(n.name, "/ \n\t") {
			return nil, bad("%q is no name of a %s", n.name, n.what)
		}
	}
	switch {
	case s.Namespace == "":
		return nil, bad("no namespace")
	case (s.Kustomize == "") == (len(s.Manifests) == 0):
		return nil, bad("exactly one of kustomize and manifests must be set")
	case !slices.Contains([]ConflictRule{"", Take, Yield, Fail}, s.Conflicts):
		return nil, bad("%q is no rule for conflicts", s.Conflicts)
	case len(s.Allow.Kinds) == 0:
		return nil, bad(`no kind is allowed (["*"] allows all namespaced ones)`)
	}
	for _, g := range append(append([]string{}, s.Allow.Namespaces...), s.Allow.Kinds...) {
		if _, err := path.Match(g, ""); err != nil {
			return nil, bad("pattern %q: %w", g, err)
		}
	}
	if len(s.Allow.Namespaces) == 0 {
		s.Allow.Namespaces = []string{s.Namespace}
	}
	health, err := newHealthRules(s.Health)
	if err != nil {
		return nil, bad("%w", err)
	}
	user := ""
	if s.ServiceAccount != "" {
		namespace, name, ok := strings.Cut(s.ServiceAccount, "/")
		if !ok || namespace == "" || name == "" || strings.ContainsAny(name, "/:") || strings.Contains(namespace, ":") {
			return nil, bad("%q is no service account, want namespace/name", s.ServiceAccount)
		}
		if namespace == c.cfg.Namespace {
			return nil, bad("the service account %s is of Holdfast's own namespace", s.ServiceAccount)
		}
		user = AccountUser(s.ServiceAccount)
	}
	as, err := c.as(user)
	if err != nil {
		return nil, bad("%w", err)
	}
	return &Target{c: c, as: as, spec: s, healthRules: health, owner: s.Environment + "/" + s.Stack, obs: newObservation()}, nil
}

// Close withdraws the stack's claims and forgets what it watches.
func (t *Target) Close() error {
	t.c.claims.withdraw(t)
	t.c.forget(t)
	return nil
}

// Run keeps the shared watches going until ctx ends. It returns nil then.
func (c *Cluster) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.watchDefinitions(ctx) })
	c.mu.Lock()
	c.pending = c.pending[:0]
	for _, w := range c.watches {
		c.pending = append(c.pending, w)
	}
	for {
		started := c.pending
		c.pending = nil
		c.mu.Unlock()
		for _, w := range started {
			wg.Go(func() { w.run(ctx) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
	}
}
