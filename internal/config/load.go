package config

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/opencontainers/go-digest"
	"github.com/robfig/cron/v3"

	"github.com/holdfast-dev/holdfast/internal/egress"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// names are what stacks, environments and the rest may be called: they become
// file names, labels and metric values.
var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func limitReader(r io.Reader) io.Reader { return io.LimitReader(r, maxFile+1) }

// Loaded is an operator's file that passed every check.
type Loaded struct {
	Operator
	Path string
	// Digest covers the file and every file that it names and that is no
	// secret: what is granted under one key or policy is judged anew under another.
	Digest digest.Digest
	// Named is the digest of each file that this one names and that is no secret,
	// by path; empty for one that is not there.
	Named map[string]digest.Digest

	raw  []byte            // the file
	keys map[string][]byte // the files of those who may sign it, by path
}

// Load reads, checks and completes the operator's file. Every problem in it is
// reported at once; see [Problems].
func Load(file string) (*Loaded, error) {
	b, err := readFile(file)
	if err != nil {
		return nil, err
	}
	full, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	o, err := parse(file, b, filepath.Dir(full))
	if err != nil {
		return nil, err
	}
	l := &Loaded{Operator: *o, Path: full, raw: b}
	return l, l.readNamed()
}

// parse decodes, checks and completes an operator's file that is in folder dir.
// name is for errors.
func parse(name string, b []byte, dir string) (*Operator, error) {
	var o Operator
	d, err := decode(name, b, &o)
	if err != nil {
		return nil, err
	}
	c := checker{document: d}
	c.operator(&o)
	if err := d.err(); err != nil {
		return nil, err
	}
	o.complete(dir)
	return &o, nil
}

// LoadTrust reads a file that holds the sections trust:, registries: and
// repositories: of an operator's file and nothing else, for checks by hand.
func LoadTrust(file string) (*Loaded, error) {
	b, err := readFile(file)
	if err != nil {
		return nil, err
	}
	full, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var sections struct {
		Trust        Trust        `json:"trust,omitempty"`
		Registries   []Registry   `json:"registries,omitempty"`
		Repositories []Repository `json:"repositories,omitempty"`
	}
	d, err := decode(file, b, &sections)
	if err != nil {
		return nil, err
	}
	l := &Loaded{Path: full, Digest: digest.FromBytes(b)}
	l.Trust, l.Registries, l.Repositories = sections.Trust, sections.Registries, sections.Repositories
	c := checker{document: d}
	for i := range l.Repositories {
		c.repository(fmt.Sprintf("$.repositories[%d]", i), &l.Repositories[i])
	}
	c.trust(&l.Trust, nil)
	c.identities(l.Repositories, &l.Trust)
	if err := d.err(); err != nil {
		return nil, err
	}
	l.complete(filepath.Dir(full))
	return l, nil
}

// ParseStack decodes and checks a stack file. name is for errors.
func ParseStack(name string, b []byte) (*Stack, error) {
	var s Stack
	d, err := decode(name, b, &s)
	if err != nil {
		return nil, err
	}
	c := checker{document: d}
	c.stack(&s)
	if err := d.err(); err != nil {
		return nil, err
	}
	return &s, nil
}

// named returns the files that the file names and that hold no secret.
func (o *Operator) named() ([]string, error) {
	var files []string
	signers := func(list []Signer) {
		for _, s := range list {
			files = append(files, s.AllowedSignersFile, s.OpenPGPKeyFile)
		}
	}
	for _, r := range o.Repositories {
		if r.Auth != nil {
			files = append(files, r.Auth.KnownHostsFile, r.Auth.CAFile)
		}
		signers(r.Commits.Signers)
	}
	files = append(files, o.Trust.Named()...)
	for _, r := range o.Registries {
		files = append(files, r.CAFile)
	}
	if s := o.Trust.Summaries; s != nil {
		for _, r := range s.Registries {
			files = append(files, r.CAFile)
		}
	}
	signers(o.Orders.Signers)
	if o.Signed != nil {
		signers(o.Signed.Signers)
	}
	for _, p := range o.Policies {
		if p.Path == "" {
			continue
		}
		err := filepath.WalkDir(p.Path, func(name string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				files = append(files, name)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Invalid, "internal/config.Load", "", "policy set %s: %w", p.Name, err)
		}
	}
	return slices.DeleteFunc(files, func(f string) bool { return f == "" }), nil
}

// readNamed hashes the file and the content of what it names. A file that is
// not there counts as such; who needs it will say so.
func (l *Loaded) readNamed() error {
	files, err := l.named()
	if err != nil {
		return err
	}
	l.Named, l.keys = map[string]digest.Digest{}, map[string][]byte{}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", digest.FromBytes(l.raw))
	for _, f := range files {
		content, err := os.ReadFile(f)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			l.Named[f] = ""
			fmt.Fprintf(h, "%q absent\n", f)
			continue
		case err != nil:
			return fault.New(fault.Invalid, "internal/config.Load", "", "%w", err)
		}
		l.Named[f] = digest.FromBytes(content)
		fmt.Fprintf(h, "%q %s\n", f, l.Named[f])
		if l.Signed.names(f) {
			l.keys[f] = content
		}
	}
	l.Digest = digest.NewDigest(digest.SHA256, h)
	return nil
}

// complete fills in defaults and makes paths absolute.
func (o *Operator) complete(dir string) {
	o.StateDir = abs(dir, o.StateDir)
	if o.Listen.HTTP == "" {
		o.Listen.HTTP = "127.0.0.1:8321"
	}
	if o.Listen.Socket == "" {
		o.Listen.Socket = filepath.Join(o.StateDir, "holdfast.sock")
	}
	o.Listen.Socket = abs(dir, o.Listen.Socket)
	if o.Workers == 0 {
		o.Workers = 8
	}
	if o.Limits.MaxDeletes == 0 {
		o.Limits.MaxDeletes = 50
	}
	if o.Drift.KubernetesSchedule == "" {
		o.Drift.KubernetesSchedule = "@hourly"
	}
	if o.Drift.TerraformSchedule == "" {
		o.Drift.TerraformSchedule = "*/15 * * * *"
	}
	for i := range o.Repositories {
		r := &o.Repositories[i]
		if r.Branch == "" && r.Tag == "" && r.OCI == nil {
			r.Branch = "main"
		}
		r.Interval = Duration(r.Interval.Or(30 * time.Second))
		if a := r.Auth; a != nil {
			a.TokenFile, a.SSHKeyFile = abs(dir, a.TokenFile), abs(dir, a.SSHKeyFile)
			a.KnownHostsFile, a.CAFile = abs(dir, a.KnownHostsFile), abs(dir, a.CAFile)
		}
		r.Commits.complete(dir)
		r.MaxAge = Duration(r.MaxAge.Or(time.Hour))
		if w := r.Webhook; w != nil {
			w.SecretFile = abs(dir, w.SecretFile)
		}
	}
	for i := range o.Environments {
		e := &o.Environments[i]
		e.EvidenceGrace = Duration(e.EvidenceGrace.Or(10 * time.Minute))
		if k := e.Kubernetes; k != nil {
			k.Kubeconfig = abs(dir, k.Kubeconfig)
			k.Lease.complete()
			if a := k.Audit; a != nil {
				a.LogFile, a.TokenFile = abs(dir, a.LogFile), abs(dir, a.TokenFile)
			}
			if k.Namespace == "" {
				k.Namespace = "holdfast-system"
			}
		}
		if t := e.Terraform; t != nil {
			t.Mirror = abs(dir, t.Mirror)
			if strings.ContainsRune(t.Binary, filepath.Separator) {
				t.Binary = abs(dir, t.Binary)
			}
			t.Timeout = Duration(t.Timeout.Or(30 * time.Minute))
			for _, set := range t.Credentials {
				for k, v := range set {
					set[k] = abs(dir, v)
				}
			}
		}
	}
	o.Trust.complete(dir)
	completeRegistries(dir, o.Registries)
	for i := range o.Policies {
		o.Policies[i].Path = abs(dir, o.Policies[i].Path)
	}
	for i := range o.Allow {
		a := &o.Allow[i]
		if len(a.Drift) == 0 {
			a.Drift = []string{"report"}
		}
		if len(a.Conflicts) == 0 {
			a.Conflicts = []string{"take"}
		}
		if a.Ignore.Days == 0 {
			a.Ignore.Days = defaultIgnoreDays
		}
	}
	o.completeOperate(dir)
}

func completeRegistries(dir string, list []Registry) {
	for i := range list {
		r := &list[i]
		r.PasswordFile, r.CAFile = abs(dir, r.PasswordFile), abs(dir, r.CAFile)
	}
}

// checker holds the rules that types cannot express.
type checker struct{ *document }

func (c checker) header(version, kind, wantKind string) {
	if version != Version {
		c.wrong("$.apiVersion", "write apiVersion: "+Version, "apiVersion is %q, this Holdfast reads %q", version, Version)
	}
	if kind != wantKind {
		c.wrong("$.kind", "write kind: "+wantKind, "kind is %q, want %q", kind, wantKind)
	}
}

func (c checker) name(at, what, name string) {
	if !names.MatchString(name) {
		c.wrong(at, "use lower case letters, digits and dashes, at most 63", "%q cannot be the name of %s", name, what)
	}
}

func (c checker) globs(at string, globs []string) {
	for i, g := range globs {
		if g == "" || !doublestar.ValidatePattern(g) {
			c.wrong(fmt.Sprintf("%s[%d]", at, i), "", "%q is not a glob", g)
		}
	}
}

// nameGlobs are globs over names, which have no folders: path.Match.
func (c checker) nameGlobs(at string, globs []string) {
	for i, g := range globs {
		if _, err := path.Match(g, "x"); g == "" || err != nil || strings.ContainsAny(g, "{}") {
			c.wrong(fmt.Sprintf("%s[%d]", at, i), "use * and ?, for example team-*", "%q is not a glob over names", g)
		}
	}
}

func (c checker) oneOf(at, what, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		hint := "use one of: " + strings.Join(allowed, ", ")
		if near := nearest(value, allowed); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.wrong(at, hint, "%s is %q", what, value)
	}
}

func (c checker) schedule(at, spec string) {
	if spec == "" {
		return
	}
	if _, err := cron.ParseStandard(spec); err != nil {
		c.wrong(at, "for example \"*/15 * * * *\" or @hourly", "%q is not a cron schedule: %v", spec, err)
	}
}

func (c checker) operator(o *Operator) {
	c.header(o.APIVersion, o.Kind, "Holdfast")
	if o.StateDir == "" {
		c.wrong("$.stateDir", "name a folder that survives a restart", "stateDir is missing")
	}
	if o.Listen.HTTP != "" && o.Listen.HTTP != "off" {
		if _, _, err := net.SplitHostPort(o.Listen.HTTP); err != nil {
			c.wrong("$.listen.http", "write host:port, for example 127.0.0.1:8321", "listen.http: %v", err)
		}
	}
	if o.Workers < 0 || o.Workers > 256 {
		c.wrong("$.workers", "", "workers is %d, want 1 to 256", o.Workers)
	}
	if len(o.Repositories) == 0 {
		c.wrong("$.repositories", "", "no repository is configured")
	}
	repos, envs, sets := map[string]bool{}, map[string]*Environment{}, map[string]bool{}
	for i := range o.Repositories {
		at := fmt.Sprintf("$.repositories[%d]", i)
		c.repository(at, &o.Repositories[i])
		c.once(at, "repository", o.Repositories[i].Name, repos)
	}
	for i := range o.Policies {
		at := fmt.Sprintf("$.policies[%d]", i)
		c.policy(at, &o.Policies[i], repos, o.Allow)
		c.once(at, "policy set", o.Policies[i].Name, sets)
	}
	seen := map[string]bool{}
	for i := range o.Environments {
		e := &o.Environments[i]
		at := fmt.Sprintf("$.environments[%d]", i)
		c.environment(at, e, sets)
		c.once(at, "environment", e.Name, seen)
		envs[e.Name] = e
	}
	if len(o.Environments) == 0 {
		c.wrong("$.environments", "", "no environment is configured")
	}
	for i := range o.Allow {
		c.allow(fmt.Sprintf("$.allow[%d]", i), &o.Allow[i], repos, envs)
	}
	c.trust(&o.Trust, envs)
	c.identities(o.Repositories, &o.Trust)
	c.registries("$.registries", o.Registries)
	c.operate(o, envs)
	c.schedule("$.drift.kubernetesSchedule", o.Drift.KubernetesSchedule)
	c.schedule("$.drift.terraformSchedule", o.Drift.TerraformSchedule)
	c.drift(&o.Drift, envs)
}

func (c checker) registries(at string, list []Registry) {
	for i, r := range list {
		at := fmt.Sprintf("%s[%d]", at, i)
		if r.Host == "" || strings.ContainsAny(r.Host, "/@ ") {
			c.wrong(at+".host", "write host or host:port, without a scheme", "%q is not a registry host", r.Host)
		}
		if (r.Username == "") != (r.PasswordFile == "") {
			c.wrong(at, "set both or neither", "username and passwordFile belong together")
		}
	}
}

func (c checker) once(at, what, name string, seen map[string]bool) {
	c.name(at+".name", "a "+what, name)
	if seen[name] {
		c.wrong(at+".name", "", "%s %q is defined twice", what, name)
	}
	seen[name] = true
}

func (c checker) repository(at string, r *Repository) {
	if r.OCI != nil {
		c.artifact(at, r)
		return
	}
	c.repositoryURL(at, r)
	if r.Anchor != "" && !regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`).MatchString(r.Anchor) {
		c.wrong(at+".anchor", "write the full commit id", "%q is not a commit id", r.Anchor)
	}
	c.commits(at+".commits", r)
}

func (c checker) repositoryURL(at string, r *Repository) {
	u, err := url.Parse(r.URL)
	switch {
	case r.URL == "" || strings.HasPrefix(r.URL, "-"):
		c.wrong(at+".url", "", "%q is not a repository URL", r.URL)
	case filepath.IsAbs(r.URL):
	case err == nil && u.User != nil && (u.Scheme != "ssh" || func() bool { _, set := u.User.Password(); return set }()):
		c.wrong(at+".url", "use auth.username and auth.tokenFile", "the URL holds credentials")
	case err == nil && (u.Scheme == "https" || u.Scheme == "file"):
	case err == nil && u.Scheme == "http":
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			c.wrong(at+".url", "use https://", "plain http is allowed to loopback only")
		}
	case err == nil && u.Scheme == "ssh", err != nil || u.Scheme == "":
		if r.Auth == nil || r.Auth.KnownHostsFile == "" {
			c.wrong(at+".url", "set auth.knownHostsFile", "SSH needs a known_hosts file")
		}
	default:
		c.wrong(at+".url", "use https, ssh or an absolute path", "scheme %q is not supported", u.Scheme)
	}
}

func (c checker) environment(at string, e *Environment, sets map[string]bool) {
	for i, p := range e.Platforms {
		if parts := strings.Split(p, "/"); len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
			c.wrong(fmt.Sprintf("%s.platforms[%d]", at, i), "write for example linux/arm64", "%q is not a platform", p)
		}
	}
	if e.Kubernetes == nil && e.Terraform == nil {
		c.wrong(at, "add kubernetes: or terraform:", "environment %q has no target", e.Name)
	}
	if len(e.Policies) == 0 {
		c.wrong(at, "name at least one policy set: what nothing judges is denied", "environment %q has no policies", e.Name)
	}
	for i, p := range e.Policies {
		if !sets[p] {
			c.wrong(fmt.Sprintf("%s.policies[%d]", at, i), "", "%q is not a policy set", p)
		}
	}
	if t := e.Terraform; t != nil {
		if t.Binary == "" {
			c.wrong(at+".terraform", "write binary: tofu or terraform", "terraform.binary is missing")
		}
		if t.Mirror == "" {
			c.wrong(at+".terraform", "fill a folder with tofu providers mirror", "terraform.mirror is missing")
		}
		for i, p := range t.Permit {
			c.oneOf(fmt.Sprintf("%s.terraform.permit[%d]", at, i), "permit", p, permits...)
		}
		c.sandbox(at+".terraform.sandbox", t.Sandbox)
	}
}

// maxForwards bounds the forwards of a sandbox.
const maxForwards = 12

// permits are what package terraform refuses unless the operator permits it.
var permits = []string{"provisioners", "external", "local_command", "http", "ephemeral", "actions", "provider-functions", "ignore-all-changes"}

func (c checker) sandbox(at string, s TerraformSandbox) {
	for name, list := range map[string][]string{"read": s.Read, "write": s.Write} {
		for i, p := range list {
			if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
				c.wrong(fmt.Sprintf("%s.%s[%d]", at, name, i), "write an absolute path, without .. and a slash at its end", "%q is not the path of a file or folder", p)
			}
		}
	}
	if _, err := egress.Parse(s.Egress); err != nil {
		c.wrong(at+".egress", fault.HintOf(err), "%v", err)
	}
	for i, f := range s.Forwards {
		host, _, err := egress.Split(f)
		if err == nil && (strings.ContainsAny(host, "*/:") || net.ParseIP(host) != nil) {
			err = fmt.Errorf("%q is not the name of a host", host)
		}
		if err != nil {
			c.wrong(fmt.Sprintf("%s.forwards[%d]", at, i), "write host:port", "%v", err)
		}
	}
	if len(s.Forwards) > maxForwards {
		c.wrong(at+".forwards", "put a proxy in front of them", "%d forwards, the limit is %d", len(s.Forwards), maxForwards)
	}
	if s.Memory < 0 || s.Work < 0 || s.Processes < 0 {
		c.wrong(at, "leave it out for the default", "a limit is less than 0")
	}
}

func (c checker) allow(at string, a *Allow, repos map[string]bool, envs map[string]*Environment) {
	if !repos[a.Repository] {
		c.wrong(at+".repository", "", "%q is not a repository", a.Repository)
	}
	if len(a.Paths) == 0 {
		c.wrong(at, "write paths: [\"**\"] for the whole repository", "paths is empty")
	}
	c.globs(at+".paths", a.Paths)
	c.nameGlobs(at+".namespaces", a.Namespaces)
	c.nameGlobs(at+".kinds", a.Kinds)
	if len(a.Environments) == 0 {
		c.wrong(at, "", "environments is empty")
	}
	for i, e := range a.Environments {
		if envs[e] == nil {
			c.wrong(fmt.Sprintf("%s.environments[%d]", at, i), "", "%q is not an environment", e)
		}
	}
	if len(a.Targets) == 0 {
		c.wrong(at, "write targets: [kubernetes], [terraform] or both", "targets is empty")
	}
	for i, t := range a.Targets {
		c.oneOf(fmt.Sprintf("%s.targets[%d]", at, i), "target", t, "kubernetes", "terraform")
	}
	if slices.Contains(a.Targets, "kubernetes") && len(a.Namespaces) == 0 {
		c.wrong(at, "", "a Kubernetes entry needs namespaces")
	}
	for i, m := range a.Prune {
		c.oneOf(fmt.Sprintf("%s.prune[%d]", at, i), "prune", m, "hold", "delete", "orphan")
	}
	for i, m := range a.Drift {
		c.oneOf(fmt.Sprintf("%s.drift[%d]", at, i), "drift mode", m, driftModes...)
	}
	c.nameGlobs(at+".replace", a.Replace)
	for i, sa := range a.ServiceAccounts {
		if namespace, name, ok := strings.Cut(sa, "/"); !ok || namespace == "" || name == "" || strings.ContainsAny(name, "/:*") {
			c.wrong(fmt.Sprintf("%s.serviceAccounts[%d]", at, i), "write namespace/name, or {namespace}/name", "%q is no service account", sa)
		}
	}
	for i, m := range a.Conflicts {
		c.oneOf(fmt.Sprintf("%s.conflicts[%d]", at, i), "rule for conflicts", m, "take", "yield", "fail")
	}
	for i, p := range a.Ignore.Paths {
		c.pointer(fmt.Sprintf("%s.ignore.paths[%d]", at, i), p)
	}
	if a.Ignore.Days < 0 {
		c.wrong(at+".ignore.days", "", "days is negative")
	}
}

func (c checker) pointer(at, p string) {
	if !strings.HasPrefix(p, "/") || p == "/" {
		c.wrong(at, "for example /spec/replicas", "%q is not a JSON pointer to a field", p)
	}
}

func (c checker) policy(at string, p *Policy, repos map[string]bool, allow []Allow) {
	if len(p.Library) == 0 && p.Path == "" && p.OCI == "" && p.Git == nil {
		c.wrong(at, "add library:, path:, oci: or git:", "policy set %q is empty", p.Name)
	}
	if g := p.Git; g != nil {
		if !repos[g.Repository] {
			c.wrong(at+".git.repository", "name one of repositories", "there is no repository %q", g.Repository)
		}
		if g.Path == "" && slices.ContainsFunc(allow, func(a Allow) bool { return a.Repository == g.Repository }) {
			c.wrong(at+".git", "name the folder of the policies under path:", "stacks come from repository %q too: all that they bring would be policies and data", g.Repository)
		}
		if g.Path != "" && !fs.ValidPath(g.Path) {
			c.wrong(at+".git.path", "write a path within the repository, for example rego/acme", "%q is no path in a repository", g.Path)
		}
	}
	if name, digest, ok := strings.Cut(p.OCI, "@"); p.OCI != "" && (!ok || !ociName.MatchString(name) || !ociDigest.MatchString(digest)) {
		c.wrong(at+".oci", "write oci://host/path@sha256:…", "%q does not name a policy bundle by its digest", p.OCI)
	}
	for i, t := range p.Targets {
		c.oneOf(fmt.Sprintf("%s.targets[%d]", at, i), "target", t, "kubernetes", "terraform")
	}
	if _, err := json.Marshal(p.Data); err != nil { // not a number, infinity
		c.wrong(at+".data", "write what JSON can hold", "data of policy set %q: %v", p.Name, err)
	}
}

func (c checker) stack(s *Stack) {
	c.header(s.APIVersion, s.Kind, "Stack")
	c.name("$.metadata.name", "a stack", s.Metadata.Name)
	if s.Spec.Environment == "" {
		c.wrong("$.spec", "write environment: NAME", "spec.environment is missing")
	}
	k, t := s.Spec.Kubernetes, s.Spec.Terraform
	if (k == nil) == (t == nil) {
		c.wrong("$.spec", "", "a stack has either kubernetes or terraform")
	}
	if k != nil {
		if k.Namespace == "" {
			c.wrong("$.spec.kubernetes", "write namespace: NAME", "kubernetes.namespace is missing")
		} else {
			c.name("$.spec.kubernetes.namespace", "a namespace", k.Namespace)
		}
		if k.Kustomize != "" && len(k.Manifests) > 0 {
			c.wrong("$.spec.kubernetes", "", "kustomize and manifests exclude each other")
		}
		if k.Conflicts != "" {
			c.oneOf("$.spec.kubernetes.conflicts", "rule for conflicts", k.Conflicts, "take", "yield", "fail")
		}
		c.local("$.spec.kubernetes.kustomize", k.Kustomize)
		for i, m := range k.Manifests {
			c.local(fmt.Sprintf("$.spec.kubernetes.manifests[%d]", i), m)
		}
	}
	if t != nil {
		c.local("$.spec.terraform.root", t.Root)
		if t.Workspace != "" {
			c.name("$.spec.terraform.workspace", "a workspace", t.Workspace)
		}
	}
	for i, d := range s.Spec.DependsOn {
		at := fmt.Sprintf("$.spec.dependsOn[%d]", i)
		c.name(at, "a stack", d)
		if d == s.Metadata.Name {
			c.wrong(at, "", "a stack cannot depend on itself")
		}
	}
	if s.Spec.Drift.Mode != "" {
		c.oneOf("$.spec.drift.mode", "drift mode", s.Spec.Drift.Mode, driftModes...)
	}
	if s.Spec.Prune != "" {
		c.oneOf("$.spec.prune", "prune", s.Spec.Prune, "hold", "delete", "orphan")
	}
	c.schedule("$.spec.drift.schedule", s.Spec.Drift.Schedule)
	for i, ig := range s.Spec.Drift.Ignore {
		at := fmt.Sprintf("$.spec.drift.ignore[%d]", i)
		c.pointer(at+".path", ig.Path)
		if ig.Kind == "" {
			c.wrong(at, "", "an ignore rule needs a kind")
		}
		if ig.Reason == "" {
			c.wrong(at, "say why, for the person who reads it next year", "an ignore rule needs a reason")
		}
		if ig.Until.IsZero() {
			c.wrong(at, "write until: 2027-01-31", "an ignore rule needs an end")
		}
	}
}

// local refuses paths that are absolute or look like something remote. Whether
// they stay inside the repository is checked where they are read.
func (c checker) local(at, p string) {
	if path.IsAbs(p) || strings.ContainsAny(p, "\\\x00") || strings.Contains(p, "://") {
		c.wrong(at, "write a path relative to the stack file", "%q is not a relative path", p)
	}
}
