//go:build linux && (amd64 || arm64)

package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// argument is what the command line of a first process says; its orders follow.
	argument = "box"
	// toolUser is who programs are in the box, where they are not who its first process is.
	toolUser = 1
)

// init makes this process the first one of a box if [Start] started it as one, and does not
// return then. Not main does that: what other packages do before it takes most of the time
// that a box takes to be there.
//
// During init the main goroutine has the main thread (package runtime), which others see as
// the process: the thread that starts programs, and has no right left, is another one.
func init() {
	if len(os.Args) != 3 || os.Args[1] != argument || os.Getpid() != 1 {
		return
	}
	debug.SetMemoryLimit(64 << 20)
	// What ends the daemon, a service's stop for instance, is not what ends a program that
	// saves its state.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	c := &conn{os.NewFile(3, "box")}
	unix.CloseOnExec(3)
	unix.CloseOnExec(4) // what the daemon wants to be held, if anything
	if err := first(c, os.Args[2]); err != nil {
		m := message{Err: err.Error(), NotFound: errors.Is(err, fs.ErrNotExist)}
		var able *unableError
		m.Lacking = errors.As(err, &able) && !m.NotFound
		_ = c.send(m) // nobody is left to tell
		os.Exit(1)
	}
	os.Exit(0)
}

// unableError says what the host does not let a box do.
type unableError struct {
	what string
	err  error
}

func (e *unableError) Error() string { return e.what + ": " + e.err.Error() }
func (e *unableError) Unwrap() error { return e.err }

func unable(what string, err error) error {
	if err == nil {
		return nil
	}
	return &unableError{what, err}
}

// first is the life of the first process.
func first(c *conn, args string) error {
	var cfg orders
	if err := json.Unmarshal([]byte(args), &cfg); err != nil {
		return err
	}
	// When memory gets short on the host, a box goes before the daemon.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return unable("oom_score_adj", err)
	}
	// Nobody in the box looks into this process, or into its descriptors.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return unable("PR_SET_DUMPABLE", err)
	}
	work, proc, err := build(cfg.Config)
	if err != nil {
		return err
	}
	files := []*os.File{work}
	if err := loopback(); err != nil {
		return unable("bring the loopback interface up", err)
	}
	for _, at := range cfg.Listen {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", at, err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if err := limitResources(cfg.Limits); err != nil {
		return unable("resource limits", err)
	}
	l := &launcher{starts: make(chan start)}
	confined := make(chan error)
	go l.loop(cfg, confined)
	if err := <-confined; err != nil {
		return err
	}
	if err := c.send(message{Ready: &ready{Landlock: l.landlock, Proc: proc}}, files...); err != nil {
		return err
	}
	closeAll(files)
	return serve(c, l)
}

// launcher is the thread that starts programs. It has given up all that they are not to
// have, and they come to be with what it has.
type launcher struct {
	starts   chan start
	landlock int
}

type start struct {
	cmd *exec.Cmd
	err chan error
}

func (l *launcher) loop(cfg orders, confined chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with it
	var err error
	l.landlock, err = confine(cfg)
	if confined <- err; err != nil {
		return
	}
	for s := range l.starts {
		s.err <- s.cmd.Start()
	}
}

// serve does what the daemon asks for, until it is gone.
func serve(c *conn, l *launcher) error {
	messages := make(chan incoming)
	go func() {
		for {
			m, files, err := c.receive()
			messages <- incoming{m, files, err}
			if err != nil {
				return
			}
		}
	}()
	var p *running
	for {
		var ended <-chan exit
		if p != nil {
			ended = p.ended
		}
		select {
		case e := <-ended:
			p = nil
			if err := c.send(message{Exit: &e}); err != nil {
				return err
			}
		case r := <-messages:
			m := r.message
			switch {
			case r.err != nil:
				return p.outlive()
			case m.Signal != 0:
				p.signal(syscall.Signal(m.Signal))
			case m.Seal != "":
				reply := message{Done: true}
				if err := seal(m.Seal); err != nil {
					reply = message{Err: err.Error()}
				}
				if err := c.send(reply); err != nil {
					return err
				}
			case m.Run != nil && p == nil && len(r.files) == 2:
				var err error
				if p, err = l.run(m.Run, r.files[0], r.files[1]); err != nil {
					if err := c.send(message{Err: err.Error()}); err != nil {
						return err
					}
				}
			default:
				return errors.New("a message that makes no sense")
			}
		}
	}
}

type incoming struct {
	message message
	files   []*os.File
	err     error
}

// running is the program that runs.
type running struct {
	program *program
	process *os.Process
	ended   chan exit
}

// run starts a program. What it prints goes through this process: a daemon that dies is not
// to be what ends it.
func (l *launcher) run(p *program, stdout, stderr *os.File) (*running, error) {
	cmd := &exec.Cmd{
		Path: p.Path, Args: append([]string{p.Path}, p.Args...), Env: p.Env, Dir: p.Dir,
		Stdout: &lossy{w: stdout}, Stderr: &lossy{w: stderr}, WaitDelay: time.Second,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	s := start{cmd, make(chan error)}
	l.starts <- s
	if err := <-s.err; err != nil {
		closeAll([]*os.File{stdout, stderr})
		return nil, err
	}
	r := &running{program: p, process: cmd.Process, ended: make(chan exit, 1)}
	go func() {
		state, _ := cmd.Process.Wait()
		sweep()        // what it left behind holds its pipes, and credentials
		_ = cmd.Wait() // for the pipes: the state is known
		closeAll([]*os.File{stdout, stderr})
		e := exit{Code: -1}
		if status, ok := state.Sys().(syscall.WaitStatus); ok {
			if e.Code = status.ExitStatus(); status.Signaled() {
				e.Signal = int(status.Signal())
			}
		}
		r.ended <- e
	}()
	return r, nil
}

// sweep kills every other process of the box, and takes leave of them.
func sweep() {
	_ = unix.Kill(-1, unix.SIGKILL) // there may be none
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return // none is left
		}
	}
}

func (p *running) signal(s syscall.Signal) {
	if p != nil {
		_ = p.process.Signal(s) // it may have ended by itself
	}
}

// outlive is what is done when the daemon is gone: what writes to the world is told to stop,
// and gets its grace to save its state.
func (p *running) outlive() error {
	if p == nil || !p.program.Writes {
		return nil
	}
	p.signal(syscall.SIGINT)
	select {
	case <-p.ended:
	case <-time.After(time.Duration(p.program.Grace)):
	}
	return nil
}

// lossy writes to a reader who may be gone.
type lossy struct {
	w    io.Writer
	gone bool
}

// Write implements io.Writer. It never fails.
func (l *lossy) Write(p []byte) (int, error) {
	if !l.gone {
		_, err := l.w.Write(p)
		l.gone = err != nil
	}
	return len(p), nil
}

// limitResources bounds what each process takes, or their user.
func limitResources(l Limits) error {
	for which, n := range map[int]uint64{
		unix.RLIMIT_DATA:   uint64(l.Memory),
		unix.RLIMIT_NPROC:  uint64(l.Processes),
		unix.RLIMIT_NOFILE: uint64(l.Files),
		unix.RLIMIT_FSIZE:  uint64(l.Work),
		unix.RLIMIT_CORE:   0,
	} {
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("resource limit %d: %w", which, err)
		}
	}
	return nil
}

// loopback brings up the one interface that there is.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
