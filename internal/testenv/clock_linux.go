package testenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Clock is the wall clock of processes that are started under it: the machine's
// with an offset. The programs are what they always are; the kernel is made to
// ask us what to answer to clock_gettime(CLOCK_REALTIME), by a seccomp
// notification, and the vDSO that would answer without the kernel is hidden
// from them. Their monotonic clock goes on, as it does on a machine whose clock
// is set, and what they start has the machine's clock.
type Clock struct{ offset atomic.Int64 }

// Set sets the clock offset ahead of the machine's, or behind if negative.
func (c *Clock) Set(offset time.Duration) { c.offset.Store(int64(offset)) }

// Start is cmd.Start under the clock.
func (c *Clock) Start(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// This thread has the filter, so nothing else may run on it, not even what
		// answers. It must not end either: it may have started children before that
		// die with it.
		runtime.LockOSThread()
		defer func() { select {} }()
		listener, err := filterClock()
		if err != nil {
			started <- fmt.Errorf("a clock of its own: %w", err)
			return
		}
		pidfd, err := startWithoutVDSO(cmd)
		if err != nil {
			started <- errors.Join(err, unix.Close(listener))
			return
		}
		go func() {
			c.serve(listener, pidfd)
			_, _ = unix.Close(listener), unix.Close(pidfd)
		}()
		started <- nil
	}()
	return <-started
}

// filterClock has this thread and what it starts ask the returned descriptor
// for the time of day.
func filterClock() (listener int, err error) {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // seccomp_data.nr
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLOCK_GETTIME, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 16, Size: 4}, // the lower half of args[0], little-endian
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.CLOCK_REALTIME, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return 0, err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// startWithoutVDSO starts cmd stopped at its first instruction, takes the
// vDSO's address off its stack and lets it go.
func startWithoutVDSO(cmd *exec.Cmd) (pidfd int, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	var status unix.WaitStatus
	_, err = unix.Wait4(pid, &status, 0, nil)
	if err == nil && !status.Stopped() {
		err = fmt.Errorf("the process is not stopped: %x", status)
	}
	if err == nil {
		err = hideVDSO(pid)
	}
	if err == nil {
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if err == nil {
		err = unix.PtraceDetach(pid)
	}
	if err != nil {
		return 0, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return pidfd, nil
}

// hideVDSO makes the entry of the auxiliary vector that says where the vDSO is
// one to ignore. The vector is behind the arguments and the environment, at the
// start of the stack (field 28 of proc_pid_stat(5)).
func hideVDSO(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on
	start, err := strconv.ParseInt(fields[28-3], 10, 64)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }()
	const atIgnore, atSysinfoEHDR = 1, 33 // elf.h
	word, zeros := make([]byte, 8), 0
	for at := start + 8; ; at += 8 { // behind argc
		if _, err := mem.ReadAt(word, at); err != nil {
			return err
		}
		v := binary.NativeEndian.Uint64(word)
		switch {
		case zeros < 2 && v == 0: // the end of the arguments, then of the environment
			zeros++
		case zeros == 2 && v == atSysinfoEHDR:
			_, err := mem.WriteAt(binary.NativeEndian.AppendUint64(nil, atIgnore), at)
			return err
		case zeros == 2 && v == 0:
			return nil // this kernel gives none
		case zeros == 2:
			at += 8 // over the value
		}
	}
}

// question and answer are struct seccomp_notif and seccomp_notif_resp of seccomp_unotify(2).
type question struct {
	ID         uint64
	PID, Flags uint32
	Nr         int32
	Arch       uint32
	IP         uint64
	Args       [6]uint64
}

type answer struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// serve answers until the process has ended.
func (c *Clock) serve(listener, pidfd int) {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			continue
		}
		var q question
		if notify(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&q)) != 0 {
			continue // it was killed in between
		}
		a := answer{ID: q.ID}
		if err := c.tell(listener, q); err != nil {
			a.Error = -int32(unix.EFAULT)
		}
		_ = notify(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
	}
}

// tell writes the time to where the process wants it.
func (c *Clock) tell(listener int, q question) error {
	now := unix.NsecToTimespec(time.Now().UnixNano() + c.offset.Load())
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, now); err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", q.PID), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }()
	if errno := notify(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&q.ID)); errno != 0 {
		return errno // the number of the process may be another one's by now
	}
	_, err = mem.WriteAt(b.Bytes(), int64(q.Args[1]))
	return err
}

func notify(listener int, request uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), request, uintptr(arg))
	return errno
}
