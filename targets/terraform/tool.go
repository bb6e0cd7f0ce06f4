package terraform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/egress"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Sandbox says what the tool, and the providers that it starts, may reach. They run in a
// box of package box; see docs/sandbox.md.
type Sandbox struct {
	// None runs the tool without a sandbox, as a child of the daemon, with the rights of
	// the daemon.
	None bool
	// Read and Write are absolute paths that the tool may read, or write below, beside the
	// mirror and the stack's own state.
	Read, Write []string
	// Egress is what may be connected to. Forwards are addresses, "host:port", that the
	// tool connects to by their name without a proxy.
	Egress   egress.Policy
	Forwards []string
	Limits   box.Limits
}

// The folders of a work directory. The tool may write to all of them but the tree.
const (
	treeDir = "s" // the repository's files
	dataDir = "d" // what init sets up
	homeDir = "h"
	tempDir = box.Temp
	planDir = "p" // saved plans
	rcDir   = "c" // the tool's own configuration
	rcName  = rcDir + "/rc"
)

// proxyAddress is where the tool finds the proxy in its sandbox.
const proxyAddress = "127.0.0.1:3128"

// workplace is where one run of the tool happens: a work directory, and a way to run the
// tool in it.
type workplace interface {
	// at is the work directory as the tool sees it.
	at() string
	// files is the same for the daemon, which follows no link out of it.
	files() *os.Root
	// seal makes a folder read-only for the tool.
	seal(dir string) error
	// run runs a program until it ends. A status other than 0 is a [box.ExitError].
	run(ctx context.Context, c box.Command) error
	// owner is who the tool is on the host.
	owner() (uid, gid int)
	// refusals are what the sandbox did not let through so far.
	refusals() []egress.Refusal
	close(ctx context.Context)
}

// open returns a new, empty workplace for the stack, in which the tool may write to the world
// or only to its work directory.
func (t *Target) open(ctx context.Context, r *rendering, dir string, lock *os.File, writes bool) (workplace, error) {
	if t.cfg.Sandbox.None {
		return openBare(dir, func(ctx context.Context, text string, err error) {
			t.cfg.Log.WarnContext(ctx, "work directory", slog.String("stack", t.spec.Stack), slog.String("what", text), slog.String("error", err.Error()))
		})
	}
	return t.openBox(ctx, r, lock, writes)
}

// boxed is a workplace in a sandbox.
type boxed struct {
	b       *box.Box
	end     context.CancelFunc // of what serves its listeners
	serving sync.WaitGroup

	mu      sync.Mutex
	refused []egress.Refusal
}

// maxRefusals bounds how many refusals are kept of one run.
const maxRefusals = 100

func (t *Target) openBox(ctx context.Context, r *rendering, lock *os.File, writes bool) (workplace, error) {
	const op = "targets/terraform.start"
	s := t.cfg.Sandbox
	cfg := box.Config{
		Read: append([]string{t.cfg.Binary, t.cfg.Mirror}, s.Read...), Write: slices.Clone(s.Write),
		Listen: []string{proxyAddress}, Hosts: map[string]string{}, Limits: s.Limits, Hold: lock,
	}
	outside, err := t.packagesOutside(r.config)
	if err != nil {
		return nil, fault.Wrap(fault.Transient, op, "look at the provider mirror", err)
	}
	cfg.Read = append(cfg.Read, outside...)
	if r.config.backend == "" {
		cfg.Write = append(cfg.Write, t.stateDir())
	}
	if !writes { // a plan changes nothing in the world
		cfg.Read, cfg.Write = append(cfg.Read, cfg.Write...), nil
	}
	for _, f := range s.Forwards {
		host, port, err := egress.Split(f)
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "write host:port", "forward %q: %w", f, err)
		}
		// Each host has an address of its own, so that two may have one port.
		address, ok := cfg.Hosts[host]
		if !ok {
			address = fmt.Sprintf("127.0.1.%d", 1+len(cfg.Hosts))
			cfg.Hosts[host] = address
		}
		cfg.Listen = append(cfg.Listen, fmt.Sprintf("%s:%d", address, port))
	}
	b, err := box.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	serveCtx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // until it is closed: an apply that is told to stop saves its state
	w := &boxed{b: b, end: cancel}
	proxy := &egress.Proxy{Policy: s.Egress, Refused: w.note}
	w.serving.Go(func() { t.served(serveCtx, proxy.Serve(serveCtx, b.Listener(0))) })
	for i, f := range s.Forwards {
		w.serving.Go(func() { t.served(serveCtx, proxy.Forward(serveCtx, b.Listener(1+i), f)) })
	}
	uid, gid := box.User()
	for _, dir := range []string{dataDir, homeDir, tempDir, planDir} {
		if err := errors.Join(b.Root().Mkdir(dir, 0o700), b.Root().Chown(dir, uid, gid)); err != nil {
			w.close(ctx)
			return nil, fault.Wrap(fault.Internal, op, "", err)
		}
	}
	return w, nil
}

func (t *Target) served(ctx context.Context, err error) {
	if err != nil {
		t.cfg.Log.WarnContext(ctx, "the sandbox has no way out any more", slog.String("stack", t.spec.Stack), slog.String("error", err.Error()))
	}
}

// workspacesDir is the folder of the states of workspaces, below that of the stack.
const workspacesDir = "workspaces"

// makeStateDir makes the folder for the state that the daemon keeps, and gives it to whoever
// the tool is.
func (t *Target) makeStateDir() error {
	dir := t.stateDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // never follows a link that a program left there
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only a handle on a folder
	uid, gid := box.User()
	apart := uid != os.Geteuid() && !t.cfg.Sandbox.None
	if t.spec.Workspace != "default" { // a plan cannot make it
		for _, name := range []string{workspacesDir, filepath.Join(workspacesDir, t.spec.Workspace)} {
			err := root.Mkdir(name, 0o700)
			if err == nil && apart {
				err = root.Lchown(name, uid, gid)
			}
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	if !apart {
		return nil
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid {
		return nil // what is in it is the tool's, and not looked at
	}
	return fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, root.Lchown(name, uid, gid))
	})
}

func (w *boxed) note(r egress.Refusal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused) < maxRefusals && !slices.Contains(w.refused, r) {
		w.refused = append(w.refused, r)
	}
}

func (w *boxed) refusals() []egress.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refused)
}

func (w *boxed) owner() (uid, gid int)                        { return box.User() }
func (w *boxed) at() string                                   { return box.Work }
func (w *boxed) files() *os.Root                              { return w.b.Root() }
func (w *boxed) seal(dir string) error                        { return w.b.Seal(dir) }
func (w *boxed) run(ctx context.Context, c box.Command) error { return w.b.Run(ctx, c) }

func (w *boxed) close(context.Context) {
	w.b.Close()
	w.end()
	w.serving.Wait()
}

// readRegular reads a file that a program in the sandbox may have made: it waits for no pipe,
// and reads no more than limit.
func readRegular(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: %w of %d bytes", name, errTooMuch, limit)
	}
	return b, err
}

// bare is a workplace without a sandbox: a folder of the host.
type bare struct {
	dir  string
	root *os.Root
	warn func(ctx context.Context, text string, err error)
}

func openBare(dir string, warn func(context.Context, string, error)) (workplace, error) {
	w := &bare{dir: dir, warn: warn}
	w.clean(context.Background()) // what a killed daemon left behind
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	for _, d := range []string{dataDir, homeDir, tempDir, planDir} {
		if err := w.root.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *bare) owner() (uid, gid int)      { return os.Geteuid(), os.Getegid() }
func (w *bare) at() string                 { return w.dir }
func (w *bare) files() *os.Root            { return w.root }
func (w *bare) seal(dir string) error      { return chmodTree(w.root, dir, 0o500) }
func (w *bare) refusals() []egress.Refusal { return nil }

// run runs a program as a child. It gets an interrupt and then its grace; what holds its
// pipes open after that must not hold us.
func (w *bare) run(ctx context.Context, c box.Command) error {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.Env, c.Dir, c.Stdout, c.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = c.Grace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(c.Grace + 2*time.Second)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			killIn(w.dir)
		}
	})()
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &box.ExitError{Code: exit.ExitCode()}
	}
	return err
}

// clean ends what still runs in the work directory, and removes it.
func (w *bare) clean(ctx context.Context) {
	if _, err := os.Lstat(w.dir); err != nil {
		return
	}
	killIn(w.dir)
	if root, err := os.OpenRoot(w.dir); err == nil {
		if err := chmodTree(root, ".", 0o700); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.warn(ctx, "make it writable", err)
		}
		_ = root.Close() // only a handle on a folder
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.warn(ctx, "it is left behind", err)
	}
}

func (w *bare) close(ctx context.Context) {
	if w.root != nil {
		_ = w.root.Close() // only a handle on a folder
	}
	w.clean(ctx)
}

// tool runs one command of the tool. Each line of its output goes to line; nil looks at none.
func (u *run) tool(ctx context.Context, limit int64, line func([]byte), args ...string) error {
	const op = "targets/terraform.command"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &output{limit: limit, line: line, stop: cancel}
	var last tail
	text := &output{limit: u.t.cfg.Limits.Output, stop: cancel, line: func(b []byte) {
		last.add(b)
		u.logLine(ctx, slog.LevelDebug, string(b))
	}}
	err := u.place.run(ctx, box.Command{
		Path: u.t.cfg.Binary, Args: args, Env: u.environ(), Dir: u.work(), Stdout: out, Stderr: text,
		Writes: args[0] == "apply", Grace: u.t.cfg.Grace,
	})
	out.flush()
	text.flush()
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errTooMuch) {
			return fault.New(fault.Invalid, op, "make the stack smaller, or raise the operator's limits", "%w", cause)
		}
		return fault.New(fault.Transient, op, "", "interrupted: %w", cause)
	}
	var exit *box.ExitError
	if errors.As(err, &exit) {
		return &toolError{*exit, last.String()}
	}
	return err
}

// toolError is a tool that failed, with the end of what it wrote to its standard error.
type toolError struct {
	exit box.ExitError
	text string
}

// Error implements error.
func (e *toolError) Error() string {
	if e.text == "" {
		return "the tool: " + e.exit.Error()
	}
	return e.text
}

// tail keeps the last lines of a text.
type tail struct{ b bytes.Buffer }

const maxTail = 64 << 10

func (t *tail) add(line []byte) {
	t.b.Write(line)
	t.b.WriteByte('\n')
	if extra := t.b.Len() - maxTail; extra > 0 {
		t.b.Next(extra)
	}
}

func (t *tail) String() string { return string(bytes.TrimSpace(t.b.Bytes())) }

// environ is all of the tool's environment.
func (u *run) environ() []string {
	env := maps.Clone(u.t.env)
	maps.Copy(env, map[string]string{
		"HOME":               u.file(homeDir),
		"TMPDIR":             u.file(tempDir),
		"TF_CLI_CONFIG_FILE": u.file(rcName),
		"TF_DATA_DIR":        u.file(dataDir),
		"TF_IN_AUTOMATION":   "1",
		"CHECKPOINT_DISABLE": "1",
	})
	if !u.t.cfg.Sandbox.None {
		for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			env[name] = "http://" + proxyAddress
		}
		for _, name := range []string{"NO_PROXY", "no_proxy"} { // forwards are taken as they are
			env[name] = "127.0.0.0/8,localhost"
		}
	}
	out := make([]string, 0, len(env))
	for _, name := range sortedKeys(env) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// packagesOutside returns the provider packages of a configuration that a link in the mirror
// leads to.
func (t *Target) packagesOutside(cfg *configuration) ([]string, error) {
	mirror, err := filepath.EvalSymlinks(t.cfg.Mirror)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range cfg.lock.entries {
		packages, err := mirrorPackages(t.cfg.Mirror, e.addr, e.version)
		if err != nil {
			continue // the tool asks for it if it needs it
		}
		name, ok := packages[platform]
		if !ok {
			continue
		}
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil, err
		}
		if rel, err := filepath.Rel(mirror, real); (err != nil || !filepath.IsLocal(rel)) && !slices.Contains(out, real) {
			out = append(out, real)
		}
	}
	return out, nil
}
