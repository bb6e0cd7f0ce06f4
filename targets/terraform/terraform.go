// Package terraform owns the target that deploys with OpenTofu or Terraform,
// one Target per stack.
//
// It guarantees that every run starts from an empty work directory with a
// cleared environment, takes providers from one filesystem mirror only, checks
// each of them against the committed lock file, and applies the very plan file
// that was judged, over the very files that it was made from. It refuses
// modules that are not in the repository, a backend that keeps state in the
// work directory, and artifacts that a plan names by anything but a digest.
//
// Making a plan evaluates the configuration before a policy has seen what it
// does. So it refuses, before the tool starts, what would run a program, load
// code or read the machine meanwhile: blocks and settings of terraform blocks
// that it does not know (an encryption block names key programs: operators set
// TF_ENCRYPTION), backends with credential programs, the state of other stacks
// on disk, paths of file functions that leave the repository, and, unless the
// operator permits them ([Permits]), provisioners, ephemeral and action blocks,
// which work around a plan unseen, functions of providers, the data sources
// external, local_command and http, and ignore_changes = all.
//
// The tool and its providers run in a sandbox (package box).
//
// It refuses what touches the daemon itself ([Protected]), in the configuration as
// far as it is written out and in every plan, before a policy sees either.
//
// It does not catch a path that the configuration computes (from a variable,
// say), a template that [templatestring] makes, and files or programs that a
// provider is told to use in its own arguments: for that the sandbox is there.
//
// [templatestring]: https://opentofu.org/docs/language/functions/templatestring/
package terraform

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Name is how plans and operators name this target.
const Name = "terraform"

// Config is the operator's side of one environment.
type Config struct {
	// Binary is the absolute path of tofu or terraform, 1.3 or newer.
	Binary string
	// Mirror is the absolute path of a filesystem mirror of providers. Nothing
	// else installs a provider.
	Mirror string
	// StateDir holds <environment>/<stack>/terraform.tfstate for stacks whose
	// configuration names no backend.
	StateDir string
	// RunDir is the parent of the work directories, which hold plan files with
	// secrets in clear: memory by default (/dev/shm where there is one). Keep
	// it short, since providers make Unix sockets below it.
	RunDir string
	// Environ is the only environment that the tool gets, apart from what this
	// package sets. Its values count as secrets. TF_VAR_name sets a variable.
	Environ map[string]string
	// Masker masks for this environment; required.
	Masker *mask.Masker
	// Log gets the tool's output, masked; nil discards it.
	Log *slog.Logger
	// Timeout bounds one plan or apply; 0 is 30 minutes.
	Timeout time.Duration
	// Grace is how long an interrupted tool may take to save its state before
	// it is killed; 0 is one minute.
	Grace  time.Duration
	Limits Limits
	// Sandbox says what the tool may reach.
	Sandbox Sandbox
	// Permit are those of [Permits] that a configuration may have.
	Permit []string
	// Protected is what of the daemon no stack may touch. StateDir is protected
	// in any case.
	Protected Protected
}

// Limits bound what is read from the repository and from the tool. A zero field
// means its default.
type Limits struct {
	Files    int   // files of one stack, modules included; 2,000
	Bytes    int64 // all of them together; 64 MiB
	Modules  int   // module calls, nested ones included; 200
	PlanJSON int64 // what `show -json` prints; 64 MiB
	PlanFile int64 // the saved plan; 256 MiB
	Output   int64 // anything else that one command prints; 32 MiB
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Files <= 0 {
		l.Files = 2000
	}
	if l.Modules <= 0 {
		l.Modules = 200
	}
	def(&l.Bytes, 64<<20)
	def(&l.PlanJSON, 64<<20)
	def(&l.PlanFile, 256<<20)
	def(&l.Output, 32<<20)
	return l
}

// Spec is what one stack asks for.
type Spec struct {
	Stack       string
	Environment string
	Dir         string // the root module's folder in the snapshot: "infra/shop"; "" or "." is the top
	Workspace   string // "" is "default"
	// Variables are input variables. A value for a variable of a type other
	// than string, number, bool or any is JSON.
	Variables map[string]string
}

// Target deploys one stack. Its methods are safe for concurrent use; runs of
// one stack follow each other.
type Target struct {
	cfg       Config
	spec      Spec
	env       map[string]string // Environ without TF_VAR_*
	secrets   map[string]string // variables from TF_VAR_*
	providers providerHashes

	mu          sync.Mutex   // one run at a time
	initialised *initialised // guarded by mu; nil: init runs
}

// nameRule keeps names safe as single path elements.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// environAllowed are the variables of the tool that an operator may set: none
// of them makes it load code or settings from elsewhere.
var environAllowed = []string{"TF_ENCRYPTION", "TF_TOKEN_", "TF_HTTP_", "TF_VAR_"}

// New checks cfg and spec and returns the stack's target. It does no I/O.
func New(cfg Config, spec Spec) (*Target, error) {
	const op = "targets/terraform.New"
	bad := func(hint, format string, args ...any) (*Target, error) {
		return nil, fault.WithStack(spec.Stack, fault.New(fault.Invalid, op, hint, format, args...))
	}
	if cfg.Masker == nil {
		return nil, fault.New(fault.Internal, op, "", "no masker")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Minute
	}
	if cfg.Grace <= 0 {
		cfg.Grace = time.Minute
	}
	if cfg.RunDir == "" {
		cfg.RunDir = defaultRunDir()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	for _, d := range []struct{ name, path string }{
		{"binary", cfg.Binary}, {"provider mirror", cfg.Mirror}, {"state directory", cfg.StateDir}, {"run directory", cfg.RunDir},
	} {
		if !filepath.IsAbs(d.path) {
			return bad("give an absolute path", "the %s %q is not an absolute path", d.name, d.path)
		}
	}
	cfg.Protected.Paths = append(slices.Clone(cfg.Protected.Paths), filepath.Clean(cfg.StateDir))
	for _, p := range slices.Concat(cfg.Sandbox.Read, cfg.Sandbox.Write) {
		if own := cfg.Protected.around(p); own != "" {
			return bad("name another folder under terraform.sandbox", "%s holds %s, or is in it, which is Holdfast's own", p, own)
		}
	}
	if err := cfg.Protected.validate(); err != nil {
		return bad("correct the operator's file", "%w", err)
	}
	if strings.ContainsAny(cfg.Mirror, "\"\\$%\n") {
		return bad("move the mirror", "the provider mirror's path %q has a character that the tool's configuration gives a meaning", cfg.Mirror)
	}
	if len(cfg.RunDir) > maxRunDir {
		return bad("choose a shorter run directory, such as /dev/shm/holdfast",
			"the run directory %q has more than %d bytes: providers could not make their sockets below it", cfg.RunDir, maxRunDir)
	}
	if spec.Workspace == "" {
		spec.Workspace = "default"
	}
	for _, n := range []struct{ what, name string }{
		{"stack", spec.Stack}, {"environment", spec.Environment}, {"workspace", spec.Workspace},
	} {
		if !nameRule.MatchString(n.name) {
			return bad("use letters, digits, '.', '_' and '-' only", "the %s name %q is not a plain name", n.what, n.name)
		}
	}
	if spec.Dir == "" {
		spec.Dir = "."
	}
	if !fs.ValidPath(spec.Dir) {
		return bad("give a path inside the repository", "the root module's folder %q is not a clean path in the repository", spec.Dir)
	}
	t := &Target{cfg: cfg, spec: spec, env: map[string]string{}, secrets: map[string]string{}}
	t.spec.Variables = maps.Clone(spec.Variables)
	for name, value := range cfg.Environ {
		if strings.HasPrefix(name, "TF_") && !slices.ContainsFunc(environAllowed, func(p string) bool { return strings.HasPrefix(name, p) }) {
			return bad("remove it from the environment's credentials", "%s may not be set: it changes where the tool loads code or settings from", name)
		}
		cfg.Masker.Register(value)
		if v, ok := strings.CutPrefix(name, "TF_VAR_"); ok {
			t.secrets[v] = value
			continue
		}
		t.env[name] = value
	}
	return t, nil
}

func defaultRunDir() string {
	name := fmt.Sprintf("holdfast-%d", os.Getuid())
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return filepath.Join("/dev/shm", name)
	}
	return filepath.Join(os.TempDir(), name)
}

// rendering is the private half of a Rendered: everything that a run needs.
type rendering struct {
	config    *configuration
	variables map[string]json.RawMessage // input variables, by name
	workspace string
}

// sum is a keyed digest over the files and the values that a run uses.
func (r *rendering) sum(m *mask.Masker) (digest.Digest, error) {
	type file struct {
		Name string
		Sum  string
	}
	in := struct {
		Dir, Workspace string
		Files          []file
		Variables      map[string]json.RawMessage
	}{Dir: r.config.dir, Workspace: r.workspace, Variables: r.variables}
	for _, name := range slices.Sorted(maps.Keys(r.config.files)) {
		s := sha256.Sum256(r.config.files[name])
		in.Files = append(in.Files, file{name, hex.EncodeToString(s[:])})
	}
	b, err := json.Marshal(in)
	if err != nil {
		return "", err
	}
	return keyed(m, "rendering", b), nil
}

// keyed returns a digest of content that only the holder of m's key can
// compute, so that nobody can test a guess of a secret in content against it.
func keyed(m *mask.Masker, purpose string, content []byte) digest.Digest {
	sum := sha256.Sum256(content)
	h := sha256.New()
	// One mask has 64 bits; four of them under different prefixes have 256.
	for _, part := range []string{"0", "1", "2", "3"} {
		h.Write([]byte(m.Value(part + purpose + hex.EncodeToString(sum[:]))))
	}
	return digest.NewDigest(digest.SHA256, h)
}

// Render reads the stack's configuration: the root module and the modules that
// it calls, which all have to be in the snapshot.
func (t *Target) Render(ctx context.Context, s *sources.Snapshot) (targets.Rendered, error) {
	r, err := t.render(ctx, s)
	return r, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) render(ctx context.Context, s *sources.Snapshot) (targets.Rendered, error) {
	const op = "targets/terraform.Render"
	if s == nil || s.FS == nil {
		return targets.Rendered{}, fault.New(fault.Internal, op, "", "no snapshot")
	}
	cfg, err := load(ctx, s.FS, t.spec.Dir, t.cfg.Limits, t.cfg.Protected, t.cfg.Permit)
	if err != nil {
		return targets.Rendered{}, fault.Wrap(fault.Invalid, op, "", t.scrub(err))
	}
	vars, err := t.variables(cfg)
	if err != nil {
		return targets.Rendered{}, err
	}
	priv := &rendering{config: cfg, variables: vars, workspace: t.spec.Workspace}
	sum, err := priv.sum(t.cfg.Masker)
	if err != nil {
		return targets.Rendered{}, fault.Wrap(fault.Internal, op, "", err)
	}
	return targets.Rendered{
		Stack:       t.spec.Stack,
		Environment: t.spec.Environment,
		Revision:    s.Revision,
		Digest:      sum,
		Documents:   []plan.Document{{Name: cfg.document(), Value: scrubAll(t.cfg.Masker, cfg.describe())}},
		Private:     priv,
	}, nil
}

// variables returns the input variables as the tool's JSON variables file
// holds them, and registers the sensitive ones.
func (t *Target) variables(cfg *configuration) (map[string]json.RawMessage, error) {
	const op = "targets/terraform.Render"
	out := map[string]json.RawMessage{}
	set := func(name, value string, decl variable) error {
		if decl.sensitive {
			t.cfg.Masker.Register(value)
		}
		if decl.plain {
			b, err := json.Marshal(value)
			out[name] = b
			return err
		}
		if !json.Valid([]byte(value)) {
			return fault.New(fault.Invalid, op, "write the value as JSON",
				"%s: the value of variable %q is not JSON, and its type needs it", decl.pos, name)
		}
		if decl.sensitive {
			registerLeaves(t.cfg.Masker, []byte(value))
		}
		out[name] = json.RawMessage(value)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(t.spec.Variables)) {
		decl, ok := cfg.variables[name]
		if !ok {
			return nil, fault.New(fault.Invalid, op, "declare the variable or remove its value",
				"variable %q is set, and %s does not declare it", name, cfg.dir)
		}
		if err := set(name, t.spec.Variables[name], decl); err != nil {
			return nil, err
		}
	}
	// An environment's credentials are shared by its stacks: a variable that
	// this one does not declare is not its own.
	for name, value := range t.secrets {
		if decl, ok := cfg.variables[name]; ok {
			decl.sensitive = true
			if err := set(name, value, decl); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func registerLeaves(m *mask.Masker, b []byte) {
	v, err := decode(b)
	if err != nil {
		return // checked by the caller
	}
	for _, s := range leaves(v, nil) {
		m.Register(s)
	}
}

// scrub removes registered secrets from err's text and keeps its kind and hint.
func (t *Target) scrub(err error) error {
	if err == nil {
		return nil
	}
	text := t.cfg.Masker.Scrub(err.Error())
	if text == err.Error() {
		return err
	}
	cause := errors.New(text)
	for _, keep := range []error{targets.ErrStale, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, keep) {
			cause = fmt.Errorf("%w: %s", keep, text)
		}
	}
	return &fault.Error{Op: fault.OpOf(err), Kind: fault.KindOf(err), Hint: t.cfg.Masker.Scrub(fault.HintOf(err)), Err: cause}
}
