//go:build linux && (amd64 || arm64)

package box

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// startTimeout is how long a box may take until it is there.
	startTimeout = 30 * time.Second
	// outsider is who programs in a box are on the host where the daemon is root: nobody
	// whom a distribution knows, nor whom systemd gives to a container.
	outsider = 1_900_000_000
)

// User returns the user and group, on the host, of programs in a box: an unprivileged one
// of their own where the daemon is root, and the daemon's own otherwise.
func User() (uid, gid int) {
	if os.Geteuid() == 0 && !within() {
		return outsider, outsider
	}
	return os.Geteuid(), os.Getegid()
}

// within reports whether root here is root of a user namespace, which may not have the
// outsider.
func within() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err != nil || len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295"
}

// Box is one sandbox. It is safe for concurrent use; its programs share their files.
type Box struct {
	conn      *conn
	process   *os.Process
	root      *os.Root
	listeners []net.Listener
	ended     chan struct{} // closed when the first process is gone, and all others with it

	running sync.Mutex // one program at a time
}

// Start starts a box. The caller closes it.
func Start(ctx context.Context, cfg Config) (_ *Box, err error) {
	cfg.Limits = cfg.Limits.orDefaults()
	for _, path := range slices.Concat(cfg.Read, cfg.Write) {
		if err := check(path); err != nil {
			return nil, fault.New(fault.Invalid, op, "name another folder", "%w", err)
		}
	}
	if len(cfg.Listen) >= maxFDs {
		return nil, fault.New(fault.Invalid, op, "list fewer", "%d listeners, the limit is %d", len(cfg.Listen), maxFDs-1)
	}
	uid, _ := User()
	orders, err := json.Marshal(orders{cfg, uid != os.Geteuid()})
	if err != nil {
		return nil, err
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, fault.New(fault.Transient, op, "", "start a sandbox: %w", err)
	}
	b := &Box{conn: &conn{ours}, ended: make(chan struct{})}
	err = b.launch(string(orders), theirs, cfg.Hold)
	_ = theirs.Close() // the box has it: when that ends, so does what we read
	if err != nil {
		_ = ours.Close() // nobody is at the other end
		return nil, err
	}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	late := time.AfterFunc(startTimeout, func() { _ = b.process.Kill() })
	defer late.Stop()
	defer context.AfterFunc(ctx, func() { _ = b.process.Kill() })()
	m, files, err := b.conn.receive()
	switch {
	case err != nil:
		return nil, fault.New(fault.Transient, op, "", "the sandbox ended while it started: %w", err)
	case m.Lacking:
		return nil, missing(m.Err, errUnable)
	case m.NotFound:
		return nil, fault.New(fault.Invalid, op, "correct the path, or make it", "%s", m.Err)
	case m.Ready == nil || len(files) != 1+len(cfg.Listen):
		closeAll(files)
		return nil, fault.New(fault.Internal, op, "", "the sandbox did not start: %s", m.Err)
	}
	return b, b.take(files)
}

var errUnable = errors.New("refused by the kernel")

// take takes over the work directory and the listeners.
func (b *Box) take(files []*os.File) (err error) {
	defer closeAll(files)
	if b.root, err = os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(files[0].Fd()))); err != nil {
		return fault.Wrap(fault.Internal, op, "", err)
	}
	for _, f := range files[1:] {
		l, err := net.FileListener(f)
		if err != nil {
			return fault.Wrap(fault.Internal, op, "", err)
		}
		b.listeners = append(b.listeners, l)
	}
	return nil
}

// launch starts the first process of the box. It is not tied to our life: when our end of
// the connection goes, it ends what runs in order, and itself.
func (b *Box) launch(orders string, theirs, hold *os.File) error {
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // what our own parent left open
	cmd := exec.Command("/proc/self/exe", argument, orders)         // this binary
	cmd.Args[0] = "holdfast"
	cmd.Env, cmd.Dir, cmd.ExtraFiles = []string{}, "/", []*os.File{theirs}
	if hold != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, hold)
	}
	uid, gid := os.Geteuid(), os.Getegid()
	attr := &syscall.SysProcAttr{
		Setpgid:     true,
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
	}
	if u, g := User(); u != uid {
		attr.UidMappings = append(attr.UidMappings, syscall.SysProcIDMap{ContainerID: toolUser, HostID: u, Size: 1})
		attr.GidMappings = append(attr.GidMappings, syscall.SysProcIDMap{ContainerID: toolUser, HostID: g, Size: 1})
		attr.GidMappingsEnableSetgroups = true
	}
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return missing("user, mount, process, IPC, host name and network namespaces", err)
	}
	b.process = cmd.Process
	go func() {
		_ = cmd.Wait() // what it has to say it says on the connection
		close(b.ended)
	}()
	return nil
}

// Root returns the work directory. What is in it is hostile once a program has run.
func (b *Box) Root() *os.Root { return b.root }

// Listener returns the listener for the address at i of [Config.Listen].
func (b *Box) Listener(i int) net.Listener { return b.listeners[i] }

// Seal makes a folder of the work directory read-only, for good.
func (b *Box) Seal(name string) error {
	b.running.Lock()
	defer b.running.Unlock()
	if err := b.conn.send(message{Seal: name}); err != nil {
		return fault.Wrap(fault.Transient, op, "", err)
	}
	m, _, err := b.conn.receive()
	if err == nil && m.Err != "" {
		err = errors.New(m.Err)
	}
	if err != nil {
		return fault.New(fault.Internal, op, "", "make %s read-only: %w", name, err)
	}
	return nil
}

// Run runs a program until it ends. What it started and left behind is killed then. When
// ctx ends, the program is interrupted, and killed after its grace. A status other than 0
// is an [ExitError].
func (b *Box) Run(ctx context.Context, c Command) error {
	b.running.Lock()
	defer b.running.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	out, err := relay(c.Stdout)
	if err != nil {
		return fault.Wrap(fault.Transient, op, "", err)
	}
	errs, err := relay(c.Stderr)
	if err != nil {
		out.wait()
		return fault.Wrap(fault.Transient, op, "", err)
	}
	err = b.conn.send(message{Run: &program{c.Path, c.Args, c.Env, c.Dir, c.Writes, int64(c.Grace)}}, out.theirs, errs.theirs)
	_ = out.theirs.Close()  // the box has it
	_ = errs.theirs.Close() // the box has it
	var m message
	if err == nil {
		stop := b.stopping(ctx, c.Grace)
		m, _, err = b.conn.receive()
		stop()
	}
	out.wait()
	errs.wait()
	switch {
	case err != nil:
		return fault.New(fault.Transient, op, "", "the sandbox ended: %w", err)
	case m.Exit == nil:
		return fault.New(fault.Internal, op, "", "the sandbox cannot start %s: %s", c.Path, m.Err)
	case m.Exit.Code != 0:
		return &ExitError{m.Exit.Code, m.Exit.Signal}
	}
	return nil
}

// stopping interrupts the program when ctx ends, and kills it after its grace. The returned
// function ends that.
func (b *Box) stopping(ctx context.Context, grace time.Duration) (stop func()) {
	over := make(chan struct{})
	after := context.AfterFunc(ctx, func() {
		_ = b.conn.send(message{Signal: int(unix.SIGINT)}) // what fails here is killed below
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-over:
		case <-timer.C:
			_ = b.conn.send(message{Signal: int(unix.SIGKILL)})
			timer.Reset(time.Second)
			select {
			case <-over:
			case <-timer.C:
				_ = b.process.Kill() // and all others with it
			}
		}
	})
	return func() { close(over); after() }
}

// relayed is one stream of a program.
type relayed struct {
	theirs *os.File
	done   chan struct{}
}

// relay copies what is written to the returned file to w.
func relay(w io.Writer) (*relayed, error) {
	r, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if w == nil {
		w = io.Discard
	}
	out := &relayed{theirs, make(chan struct{})}
	go func() {
		_, err := io.Copy(w, r)
		if err != nil {
			_, _ = io.Copy(io.Discard, r) // whoever writes is not to wait for us
		}
		_ = r.Close() // only read from
		close(out.done)
	}()
	return out, nil
}

func (r *relayed) wait() {
	_ = r.theirs.Close() // it may be closed already
	<-r.done
}

// Close ends everything in the box, and waits until it is gone.
func (b *Box) Close() {
	if b.process != nil {
		_ = b.process.Kill() // it may have ended by itself
		<-b.ended
	}
	_ = b.conn.f.Close() // nobody is at the other end
	for _, l := range b.listeners {
		_ = l.Close() // nobody is left to connect
	}
	if b.root != nil {
		_ = b.root.Close() // only a handle on a folder
	}
}
