package terraform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/egress"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
)

// maxRunDir keeps the sockets of providers, without a sandbox, below the 108 bytes that the
// kernel allows: /hf-0123456789/t/plugin1234567890 comes behind it.
const maxRunDir = 70

// maxLine is the longest line of output that is looked at.
const maxLine = 4 << 20

// run is one use of the tool in a workplace of its own.
type run struct {
	t     *Target
	r     *rendering
	place workplace // closed at the end
	lock  *os.File  // locked as long as anything of the run is there
	// What init depends on: the digests of the rendering and the tool.
	sum     digest.Digest
	toolSum string
	writes  bool // the tool may write to the world
}

// start opens a workplace and fills it. The tool sees it at the same path for each run of a
// stack, because configurations see their path, and a plan has to be applied where it was
// made.
func (t *Target) start(ctx context.Context, r *rendering, writes bool) (_ *run, err error) {
	const op = "targets/terraform.start"
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := privateDir(t.cfg.RunDir); err != nil {
		return nil, fault.Wrap(fault.Internal, op, "choose a run directory that only the daemon's user can write to", err)
	}
	id := sha256.Sum256([]byte(t.cfg.StateDir + "\x00" + t.spec.Environment + "\x00" + t.spec.Stack))
	dir := filepath.Join(t.cfg.RunDir, "hf-"+hex.EncodeToString(id[:5]))
	lock, err := locked(dir + ".lock")
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fault.New(fault.Waiting, op, "wait for the other process to end", "another process runs this stack (%s.lock)", dir)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	u := &run{t: t, r: r, lock: lock, writes: writes}
	defer func() {
		if err != nil {
			u.close(ctx)
		}
	}()
	if u.sum, err = r.sum(t.cfg.Masker); err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	if u.toolSum, err = tools.sum(t.cfg.Binary); err != nil {
		return nil, fault.Wrap(fault.Transient, op, "look at terraform.binary in the operator's file", err)
	}
	if r.config.backend == "" {
		if err := t.makeStateDir(); err != nil {
			return nil, fault.Wrap(fault.Transient, op, "look at the state directory: full or read-only?", err)
		}
	}
	if u.place, err = t.open(ctx, r, dir, lock, writes); err != nil {
		return nil, fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
	}
	if err := u.write(); err != nil {
		return nil, fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
	}
	return u, nil
}

// within calls f with the tool ready to work on r, while nothing else runs the stack.
func (t *Target) within(ctx context.Context, r *rendering, writes bool, f func(context.Context, *run) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	if err := t.checkProviders(r.config); err != nil {
		return err
	}
	u, err := t.start(ctx, r, writes)
	if err != nil {
		return err
	}
	defer u.close(ctx)
	if err := u.init(ctx); err != nil {
		return err
	}
	err = f(ctx, u)
	if err != nil { // it may be for what was put back
		t.initialised = nil
	}
	return err
}

// privateDir makes dir, and refuses one that others can write to or read.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to user %d", dir, st.Uid)
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to others (%s)", dir, info.Mode())
	}
	return nil
}

// work is the root module's folder as the tool sees it.
func (u *run) work() string {
	return filepath.Join(u.place.at(), treeDir, filepath.FromSlash(u.r.config.dir))
}

// file is the path of one of the run's own files as the tool sees it.
func (u *run) file(name string) string { return filepath.Join(u.place.at(), name) }

// write fills the work directory, and seals it.
func (u *run) write() error {
	root := u.place.files()
	put := func(name string, b []byte) error {
		name = filepath.Join(treeDir, filepath.FromSlash(name))
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return root.WriteFile(name, b, 0o444)
	}
	for name, b := range u.r.config.files {
		if err := put(name, b); err != nil {
			return err
		}
	}
	own, err := u.ownFiles()
	if err != nil {
		return err
	}
	for name, b := range own {
		if err := put(name, b); err != nil {
			return err
		}
	}
	rc := "disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n    path = " + strconv.Quote(u.t.cfg.Mirror) + "\n  }\n}\n"
	if err := errors.Join(root.Mkdir(rcDir, 0o755), root.WriteFile(rcName, []byte(rc), 0o444)); err != nil {
		return err
	}
	return errors.Join(u.place.seal(rcDir), u.place.seal(treeDir))
}

// ownFiles are the files of the tree that are not the repository's.
func (u *run) ownFiles() (map[string][]byte, error) {
	vars, err := json.Marshal(u.r.variables)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{path.Join(u.r.config.dir, variablesName): vars}
	if u.r.config.backend == "" {
		out[path.Join(u.r.config.dir, overrideName)], err = u.t.localBackend()
	}
	return out, err
}

// localBackend keeps the state where the operator wants it.
func (t *Target) localBackend() ([]byte, error) {
	return json.Marshal(map[string]any{"terraform": map[string]any{"backend": map[string]any{"local": map[string]any{
		"path":          t.stateFile(),
		"workspace_dir": filepath.Join(t.stateDir(), workspacesDir),
	}}}})
}

func (t *Target) stateDir() string {
	return filepath.Join(t.cfg.StateDir, t.spec.Environment, t.spec.Stack)
}

func (t *Target) stateFile() string { return filepath.Join(t.stateDir(), "terraform.tfstate") }

// chmodTree sets the mode of dir and every folder below it: read-only while the tool
// runs, writable so that it can be removed.
func chmodTree(root *os.Root, dir string, mode fs.FileMode) error {
	return fs.WalkDir(root.FS(), dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return root.Chmod(p, mode)
		}
		return err
	})
}

func (u *run) close(ctx context.Context) {
	if u.place != nil {
		for _, r := range u.place.refusals() {
			u.t.cfg.Log.WarnContext(ctx, "refused by the sandbox", slog.String("stack", u.t.spec.Stack), slog.String("environment", u.t.spec.Environment),
				slog.String("host", fmt.Sprintf("%s:%d", r.Host, r.Port)), slog.String("why", r.Why))
		}
		u.place.close(ctx)
	}
	// Not by closing it alone: a process that is being started elsewhere has it open until it
	// is another program.
	if err := syscall.Flock(int(u.lock.Fd()), syscall.LOCK_UN); err != nil {
		u.t.cfg.Log.WarnContext(ctx, "run lock", slog.String("stack", u.t.spec.Stack), slog.String("error", err.Error()))
	}
	_ = u.lock.Close() // nothing was written to it
}

// locked opens a file and locks it, for whoever has it open.
func locked(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// killIn kills the processes whose working directory is below dir: providers
// outlive a tool that had to be killed, and they hold credentials. Where there
// is no /proc it does nothing.
func killIn(dir string) {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return
	}
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil || cwd != dir && !strings.HasPrefix(cwd, dir+"/") {
			continue
		}
		pid, err := strconv.Atoi(path.Base(path.Dir(link)))
		if err == nil && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already: fine
		}
	}
}

var errTooMuch = errors.New("the tool prints more than the limit")

// output cuts what the tool prints into lines and bounds it.
type output struct {
	limit int64
	line  func([]byte) // nil: nobody looks at it
	stop  context.CancelCauseFunc

	n   int64
	buf []byte
}

// Write implements io.Writer. It fails at the limit, which stops the tool.
func (o *output) Write(p []byte) (int, error) {
	if o.n += int64(len(p)); o.n > o.limit {
		err := fmt.Errorf("%w of %d bytes", errTooMuch, o.limit)
		o.stop(err)
		return 0, err
	}
	if o.line == nil {
		return len(p), nil
	}
	o.buf = append(o.buf, p...)
	for {
		i := bytes.IndexByte(o.buf, '\n')
		if i < 0 {
			break
		}
		o.line(o.buf[:i])
		o.buf = o.buf[i+1:]
	}
	if len(o.buf) > maxLine {
		o.buf = o.buf[:0] // no message of the tool is that long
	}
	return len(p), nil
}

func (o *output) flush() {
	if len(o.buf) > 0 && o.line != nil {
		o.line(o.buf)
		o.buf = nil
	}
}

func (u *run) logLine(ctx context.Context, level slog.Level, line string) {
	if line = strings.TrimSpace(line); line == "" {
		return
	}
	u.t.cfg.Log.LogAttrs(ctx, level, "terraform",
		slog.String("stack", u.t.spec.Stack), slog.String("message", u.t.cfg.Masker.Scrub(line)))
}

// init prepares the work directory and the backend.
func (u *run) init(ctx context.Context) error {
	const op = "targets/terraform.init"
	if there, err := u.putBack(); err != nil {
		u.t.initialised = nil
		return fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
	} else if there {
		return u.workspace(ctx)
	}
	err := u.tool(ctx, u.t.cfg.Limits.Output, func(b []byte) { u.logLine(ctx, slog.LevelDebug, string(b)) },
		"init", "-no-color", "-input=false", "-lockfile=readonly")
	if err != nil {
		return u.failure(op, "", err)
	}
	if err := u.checkBackend(); err != nil {
		return err
	}
	if err := u.unchanged(); err != nil {
		return err
	}
	u.t.initialised = u.remember()
	return u.workspace(ctx)
}

// checkBackend looks at what init really set up: if it is not what the
// configuration was understood to say, the state would be lost with the work
// directory, or land elsewhere.
func (u *run) checkBackend() error {
	const op = "targets/terraform.init"
	var got struct {
		Backend struct {
			Type   string         `json:"type"`
			Config map[string]any `json:"config"`
		} `json:"backend"`
	}
	b, err := readRegular(u.place.files(), path.Join(dataDir, "terraform.tfstate"), maxInitialised)
	if err != nil {
		return fault.New(fault.Invalid, op, "", "the tool set up no backend: %w", err)
	}
	if err := json.Unmarshal(b, &got); err != nil {
		return fault.New(fault.Internal, op, "", "the tool's note of its backend: %w", err)
	}
	want := u.r.config.backend
	if want == "" {
		want = "local"
	}
	if got.Backend.Type != want || want == "local" && got.Backend.Config["path"] != u.t.stateFile() {
		return fault.New(fault.Denied, op, "name the backend once, in the root module's terraform block",
			"the tool uses backend %q, the configuration was judged with %q", got.Backend.Type, want)
	}
	return nil
}

// workspace selects the stack's workspace without creating it.
func (u *run) workspace(ctx context.Context) error {
	const op = "targets/terraform.init"
	name := u.r.workspace
	if name == "default" {
		return nil
	}
	if u.r.config.backend == "" {
		// Select refuses a workspace that has no state yet. Locally a workspace
		// is nothing but a folder, so the tool may start with an empty one.
		return u.place.files().WriteFile(filepath.Join(dataDir, "environment"), []byte(name), 0o644)
	}
	err := u.tool(ctx, u.t.cfg.Limits.Output, nil, "workspace", "select", "-no-color", name)
	if err != nil && ctx.Err() == nil {
		return fault.Wrap(fault.Waiting, op, "create it once: tofu workspace new "+name, u.t.scrub(u.failure(op, "", err)))
	}
	return err
}

// unchanged makes sure that the tree still is what was judged: without a sandbox the tool, a
// provider or a program that the configuration runs could have written to it.
func (u *run) unchanged() error {
	const op = "targets/terraform.run"
	own := []string{path.Join(u.r.config.dir, variablesName), path.Join(u.r.config.dir, overrideName)}
	seen := 0
	root, err := u.place.files().OpenRoot(treeDir)
	if err != nil {
		return fault.Wrap(fault.Internal, op, "", err)
	}
	defer root.Close() //nolint:errcheck // only a handle on a folder
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || slices.Contains(own, name) {
			return err
		}
		want, ok := u.r.config.files[name]
		if !ok {
			return fmt.Errorf("%s was made", name)
		}
		seen++
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s was replaced", name)
		}
		got, err := root.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s was changed", name)
		}
		return nil
	})
	if err == nil && seen != len(u.r.config.files) {
		err = errors.New("a file was removed")
	}
	if err != nil {
		return fault.New(fault.Denied, op, "keep what the configuration writes out of its own folder, and commit a complete "+lockName,
			"the run changed the files that it was judged by: %w", err)
	}
	return nil
}

// message is a line of the tool's machine-readable output,
// https://developer.hashicorp.com/terraform/internals/machine-readable-ui
type message struct {
	Level      string      `json:"@level"`
	Message    string      `json:"@message"`
	Type       string      `json:"type"`
	Diagnostic *diagnostic `json:"diagnostic"`
	Hook       struct {
		Resource struct {
			Addr string `json:"addr"`
		} `json:"resource"`
		Action string `json:"action"`
	} `json:"hook"`
}

type diagnostic struct {
	Severity string `json:"severity"`
	Summary  string `json:"summary"`
	Detail   string `json:"detail"`
	Address  string `json:"address"`
	Range    *struct {
		Filename string `json:"filename"`
		Start    struct {
			Line   int `json:"line"`
			Column int `json:"column"`
		} `json:"start"`
	} `json:"range"`
}

// listener reads the tool's machine-readable output.
func (u *run) listener(ctx context.Context, level slog.Level, errs *[]diagnostic, each func(message)) func([]byte) {
	return func(line []byte) {
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			u.logLine(ctx, level, string(line))
			return
		}
		u.logLine(ctx, level, m.Message)
		if m.Diagnostic != nil && m.Diagnostic.Severity == "error" && len(*errs) < 20 {
			*errs = append(*errs, *m.Diagnostic)
		}
		if each != nil {
			each(m)
		}
	}
}

// describe words diagnostics for people, with positions in the repository.
func (u *run) describe(diags []diagnostic) string {
	var parts []string
	for _, d := range diags {
		text := d.Summary
		if d.Detail != "" {
			text += ": " + strings.Join(strings.Fields(d.Detail), " ")
		}
		if d.Range != nil {
			text = fmt.Sprintf("%s:%d:%d: %s", path.Join(u.r.config.dir, d.Range.Filename), d.Range.Start.Line, d.Range.Start.Column, text)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// configurationErrors begin the summaries that only a new revision can cure.
// The tool has no codes for them.
var configurationErrors = []string{
	"Unsupported argument", "Unsupported attribute", "Unsupported block", "Missing required argument", "Missing map element",
	"Reference to undeclared", "No value for required variable", "Invalid reference", "Invalid expression", "Invalid function argument",
	"Invalid for_each argument", "Invalid count argument", "Invalid index", "Invalid value for", "Invalid resource type", "Invalid data source",
	"Invalid template", "Duplicate ", "Incorrect attribute value type", "Call to unknown function", "Error in function call", "Cycle:",
	"Inconsistent conditional", "Unsupported Terraform Core version", "Unsupported OpenTofu Core version", "Argument or block definition required",
	"nstance cannot be destroyed", // "Instance …" and "Resource instance …"
}

// failure classifies what the tool said.
func (u *run) failure(op, said string, err error) error {
	if err == nil {
		return nil
	}
	var classified *fault.Error
	if errors.As(err, &classified) {
		return u.t.scrub(err) // interrupted, or stopped at a limit
	}
	if said == "" {
		said = strings.Join(strings.Fields(strings.NewReplacer("╷", " ", "│", " ", "╵", " ").Replace(err.Error())), " ")
	}
	const longest = 4000
	if len(said) > longest {
		said = strings.ToValidUTF8(said[:longest], "") + "…"
	}
	said = u.t.cfg.Masker.Scrub(said)
	switch {
	case strings.Contains(said, "Saved plan is stale"):
		return fault.New(fault.Transient, op, "", "%w: %s", targets.ErrStale, said)
	case strings.Contains(said, "Error acquiring the state lock") && !strings.Contains(said, "could not write lock info"): // that is a full disk
		return fault.New(fault.Waiting, op,
			"wait for whoever holds the lock; if that run is dead, remove its lock with `tofu force-unlock`", "the state is locked: %s", said)
	case strings.Contains(said, "Inconsistent dependency lock file"),
		strings.Contains(said, "Provider dependency changes detected"),
		strings.Contains(said, "Failed to query available provider packages"),
		strings.Contains(said, "Failed to install provider"),
		strings.Contains(said, "checksums"):
		return fault.New(fault.Denied, op, "run `tofu providers lock`, commit "+lockName+", and keep the same versions in the mirror", "%s", said)
	}
	for _, s := range configurationErrors {
		if strings.Contains(said, s) {
			return fault.New(fault.Invalid, op, "correct the configuration", "%s", said)
		}
	}
	if refused := u.place.refusals(); len(refused) > 0 {
		return fault.New(fault.Denied, op, "list what the stack needs under terraform.sandbox.egress in the operator's file",
			"the sandbox refused %s; the tool says: %s", u.t.cfg.Masker.Scrub(errors.Join(asErrors(refused)...).Error()), said)
	}
	return fault.New(fault.Transient, op, "", "%s", said)
}

func asErrors(refused []egress.Refusal) []error {
	out := make([]error, len(refused))
	for i := range refused {
		out[i] = &refused[i]
	}
	return out
}
