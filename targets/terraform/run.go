package terraform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/terraform-exec/tfexec"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
)

// maxRunDir keeps the sockets of providers below the 108 bytes that the kernel
// allows: /hf-0123456789/t/plugin1234567890 comes behind it.
const maxRunDir = 70

// maxLine is the longest line of output that is looked at.
const maxLine = 4 << 20

// run is one work directory and the tool in it.
type run struct {
	t    *Target
	r    *rendering
	dir  string // removed at the end
	tf   *tfexec.Terraform
	lock *flock.Flock
}

// start makes the work directory. It is at the same path for each run of a
// stack, because configurations see their path, and a plan has to be applied
// where it was made.
func (t *Target) start(ctx context.Context, r *rendering) (_ *run, err error) {
	const op = "targets/terraform.start"
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := privateDir(t.cfg.RunDir); err != nil {
		return nil, fault.Wrap(fault.Internal, op, "choose a run directory that only the daemon's user can write to", err)
	}
	id := sha256.Sum256([]byte(t.cfg.StateDir + "\x00" + t.spec.Environment + "\x00" + t.spec.Stack))
	dir := filepath.Join(t.cfg.RunDir, "hf-"+hex.EncodeToString(id[:5]))
	u := &run{t: t, r: r, dir: dir, lock: flock.New(dir + ".lock")}
	ok, err := u.lock.TryLock()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	if !ok {
		return nil, fault.New(fault.Waiting, op, "wait for the other process to end", "another process runs this stack (%s.lock)", dir)
	}
	defer func() {
		if err != nil {
			u.close(ctx)
		}
	}()
	u.clean(ctx) // what a killed daemon left behind
	if err := u.write(); err != nil {
		return nil, fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
	}
	u.tf, err = tfexec.NewTerraform(u.work(), t.cfg.Binary)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	if err := u.tf.SetEnv(u.environ()); err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	if err := u.tf.SetWaitDelay(t.cfg.Grace); err != nil {
		return nil, fault.Wrap(fault.Internal, op, "", err)
	}
	return u, nil
}

// within calls f with the tool ready to work on r, while nothing else runs the stack.
func (t *Target) within(ctx context.Context, r *rendering, f func(context.Context, *run) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	if err := t.checkProviders(r.config); err != nil {
		return err
	}
	u, err := t.start(ctx, r)
	if err != nil {
		return err
	}
	defer u.close(ctx)
	if err := u.init(ctx); err != nil {
		return err
	}
	return f(ctx, u)
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

func (u *run) tree() string { return filepath.Join(u.dir, "s") }
func (u *run) work() string { return filepath.Join(u.tree(), filepath.FromSlash(u.r.config.dir)) }
func (u *run) data() string { return filepath.Join(u.dir, "d") }

// file returns the path of one of the run's own files.
func (u *run) file(name string) string { return filepath.Join(u.dir, name) }

func (u *run) environ() map[string]string {
	env := maps.Clone(u.t.env)
	maps.Copy(env, map[string]string{
		"HOME":               u.file("h"),
		"TMPDIR":             u.file("t"),
		"TF_CLI_CONFIG_FILE": u.file("rc"),
		"TF_DATA_DIR":        u.data(),
		"CHECKPOINT_DISABLE": "1",
	})
	return env
}

// write fills the work directory.
func (u *run) write() error {
	for _, d := range []string{u.dir, u.tree(), u.data(), u.file("h"), u.file("t")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	put := func(name string, b []byte) error {
		name = filepath.Join(u.tree(), filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		return os.WriteFile(name, b, 0o400)
	}
	for name, b := range u.r.config.files {
		if err := put(name, b); err != nil {
			return err
		}
	}
	vars, err := json.Marshal(u.r.variables)
	if err != nil {
		return err
	}
	if err := put(path.Join(u.r.config.dir, variablesName), vars); err != nil {
		return err
	}
	if u.r.config.backend == "" {
		b, err := u.localBackend()
		if err != nil {
			return err
		}
		if err := put(path.Join(u.r.config.dir, overrideName), b); err != nil {
			return err
		}
	}
	rc := "disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n    path = " + strconv.Quote(u.t.cfg.Mirror) + "\n  }\n}\n"
	if err := os.WriteFile(u.file("rc"), []byte(rc), 0o600); err != nil {
		return err
	}
	return u.chmodTree(0o500)
}

// localBackend keeps the state where the operator wants it.
func (u *run) localBackend() ([]byte, error) {
	dir := u.stateDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"terraform": map[string]any{"backend": map[string]any{"local": map[string]any{
		"path":          u.stateFile(),
		"workspace_dir": filepath.Join(dir, "workspaces"),
	}}}})
}

func (u *run) stateDir() string {
	return filepath.Join(u.t.cfg.StateDir, u.t.spec.Environment, u.t.spec.Stack)
}

func (u *run) stateFile() string { return filepath.Join(u.stateDir(), "terraform.tfstate") }

// chmodTree sets the mode of every folder of the tree: read-only while the tool
// runs, writable so that it can be removed.
func (u *run) chmodTree(mode fs.FileMode) error {
	root, err := os.OpenRoot(u.tree()) // never follows a link that a program left there
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only a handle on a folder
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return root.Chmod(p, mode)
		}
		return err
	})
}

// clean ends what still runs in the work directory, and removes it.
func (u *run) clean(ctx context.Context) {
	if _, err := os.Lstat(u.dir); err != nil {
		return
	}
	killIn(u.dir)
	if err := u.chmodTree(0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.t.cfg.Log.WarnContext(ctx, "work directory", slog.String("stack", u.t.spec.Stack), slog.String("error", err.Error()))
	}
	if err := os.RemoveAll(u.dir); err != nil {
		u.t.cfg.Log.WarnContext(ctx, "work directory is left behind", slog.String("stack", u.t.spec.Stack), slog.String("error", err.Error()))
	}
}

func (u *run) close(ctx context.Context) {
	u.clean(ctx)
	if err := u.lock.Unlock(); err != nil {
		u.t.cfg.Log.WarnContext(ctx, "run lock", slog.String("stack", u.t.spec.Stack), slog.String("error", err.Error()))
	}
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

// command runs one call of the tool: with a limit on its output, each line of
// which goes to line, and with an end to everything it started.
func (u *run) command(ctx context.Context, limit int64, line func([]byte), call func(context.Context, io.Writer) error) error {
	const op = "targets/terraform.command"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &output{limit: limit, line: line, stop: cancel}
	text := &output{limit: u.t.cfg.Limits.Output, stop: cancel, line: func(b []byte) { u.logLine(ctx, slog.LevelDebug, string(b)) }}
	u.tf.SetStdout(out)
	u.tf.SetStderr(text)

	// The tool gets an interrupt and then its grace. A provider that holds its
	// pipes open after that must not hold us.
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(u.t.cfg.Grace + 2*time.Second)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			killIn(u.dir)
		}
	})()
	err := call(ctx, out)
	out.flush()
	text.flush()
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errTooMuch) {
			return fault.New(fault.Invalid, op, "make the stack smaller, or raise the operator's limits", "%w", cause)
		}
		return fault.New(fault.Transient, op, "", "interrupted: %w", cause)
	}
	return err
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
	// terraform-exec has no option for a read-only lock file; Dir is passed on as it stands.
	err := u.command(ctx, u.t.cfg.Limits.Output, func(b []byte) { u.logLine(ctx, slog.LevelDebug, string(b)) },
		func(ctx context.Context, _ io.Writer) error { return u.tf.Init(ctx, tfexec.Dir("-lockfile=readonly")) })
	if err != nil {
		return u.failure(op, "", err)
	}
	if err := u.checkBackend(); err != nil {
		return err
	}
	if err := u.unchanged(); err != nil {
		return err
	}
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
	b, err := os.ReadFile(filepath.Join(u.data(), "terraform.tfstate"))
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
	if got.Backend.Type != want || want == "local" && got.Backend.Config["path"] != u.stateFile() {
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
		return os.WriteFile(filepath.Join(u.data(), "environment"), []byte(name), 0o600)
	}
	err := u.command(ctx, u.t.cfg.Limits.Output, nil, func(ctx context.Context, _ io.Writer) error { return u.tf.WorkspaceSelect(ctx, name) })
	if err != nil && ctx.Err() == nil {
		return fault.Wrap(fault.Waiting, op, "create it once: tofu workspace new "+name, u.t.scrub(u.failure(op, "", err)))
	}
	return err
}

// unchanged makes sure that the tree still is what was judged: the tool, a
// provider or a program that the configuration runs could have written to it.
func (u *run) unchanged() error {
	const op = "targets/terraform.run"
	own := []string{path.Join(u.r.config.dir, variablesName), path.Join(u.r.config.dir, overrideName)}
	seen := 0
	root, err := os.OpenRoot(u.tree())
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
	return fault.New(fault.Transient, op, "", "%s", said)
}
