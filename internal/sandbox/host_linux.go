//go:build linux && (amd64 || arm64)

package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// supported says that this system has workers.
const supported = true

// self is this binary, also after a newer one has taken its place on disk.
const self = "/proc/self/exe"

// start returns a new worker of the domain that has said how it is confined.
func (p *Pool) start(ctx context.Context, domain string) (*worker, error) {
	// Go opens everything close-on-exec. What our own parent left open is not.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // since Linux 5.11; the filter refuses its use anyway
	p.mu.Lock()
	shared := p.shared
	p.mu.Unlock()
	w, err := p.exec(domain, !shared)
	if !shared && noNamespaces(err) {
		p.mu.Lock()
		p.shared, shared = true, true
		p.mu.Unlock()
		w, err = p.exec(domain, false)
	}
	if err != nil {
		return nil, fault.New(fault.Transient, op, "", "start a rendering process: %w", err)
	}
	y, err := w.await()
	if err != nil {
		w.end()
		return nil, err
	}
	if missing := lacks(shared, y); len(missing) > 0 {
		p.tell(ctx, "the host lacks some means to confine rendering; it goes on with a system call filter and resource limits", slog.String("missing", strings.Join(missing, ", ")))
	}
	return w, nil
}

func lacks(shared bool, y ready) []string {
	var missing []string
	if shared {
		missing = append(missing, "user namespaces")
	}
	if y.Landlock == 0 {
		missing = append(missing, "Landlock")
	}
	return missing
}

// exec starts a process, in user, network and IPC namespaces of its own if alone.
// Nobody is mapped into the user namespace, so nothing in it has a capability.
func (p *Pool) exec(domain string, alone bool) (*worker, error) {
	cmd, err := command(self, orders{Memory: p.limits.Memory, Alone: alone})
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt from the terminal is for the parent
	}
	if alone {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC
	}
	p.living.Add(1)
	return launch(cmd, domain, p.living.Done)
}

// noNamespaces reports whether err is how hosts and containers say that nobody
// may make namespaces.
func noNamespaces(err error) bool {
	for _, no := range []error{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSYS, syscall.ENOSPC, syscall.EUSERS} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// cpu returns the CPU time that the worker has used so far.
func (w *worker) cpu() time.Duration {
	const sched = 2 // CPUCLOCK_SCHED of the whole process, see clock_getcpuclockid(3)
	var ts unix.Timespec
	if unix.ClockGettime(int32(^w.process.Pid<<3|sched), &ts) != nil {
		return 0 // it is gone, and another call says so
	}
	return time.Duration(ts.Nano())
}

func endedBySignal(s *os.ProcessState) bool {
	status, ok := s.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}
