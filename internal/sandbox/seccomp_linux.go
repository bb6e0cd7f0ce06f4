//go:build linux && (amd64 || arm64)

package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// calls are the system calls that Go's runtime makes for a program that computes
// and talks over pipes that are open. Everything else is refused with EPERM:
// what opens, connects, executes, maps, signals or looks at other processes.
var calls = append([]uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_GETRANDOM, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}, archCalls...)

// Offsets in struct seccomp_data, see seccomp(2). Both systems are little-endian,
// so the low half of an argument comes first.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// filter returns the program that the kernel runs for each system call of the
// process pid.
func filter(pid uint32) []bpf.Instruction {
	call := bpf.LoadAbsolute{Off: offsetCall, Size: 4}
	arg := func(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offsetArgs + 8*n, Size: 4} }
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		call,
	}
	for _, c := range calls {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c, SkipTrue: 1}, bpf.RetConstant{Val: allow})
	}
	only := func(call, argument uint32, cond bpf.JumpTest, val uint32) {
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 4},
			arg(argument),
			bpf.JumpIf{Cond: cond, Val: val, SkipTrue: 1},
			bpf.RetConstant{Val: refuse},
			bpf.RetConstant{Val: allow},
		)
	}
	only(unix.SYS_CLONE, 0, bpf.JumpBitsSet, unix.CLONE_THREAD)    // threads, not processes
	only(unix.SYS_MMAP, 2, bpf.JumpBitsNotSet, unix.PROT_EXEC)     // no new code
	only(unix.SYS_MPROTECT, 2, bpf.JumpBitsNotSet, unix.PROT_EXEC) //
	only(unix.SYS_TGKILL, 0, bpf.JumpEqual, pid)                   // Go interrupts its own threads
	return append(out,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		bpf.RetConstant{Val: absent}, // the C library falls back to clone
		bpf.RetConstant{Val: refuse},
	)
}

// filterCalls installs the filter for all threads, and lets no program that is
// executed gain a privilege.
func filterCalls() error {
	raw, err := bpf.Assemble(filter(uint32(os.Getpid())))
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog))) //nolint:gosec // how seccomp(2) is called
	runtime.KeepAlive(program)
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return fmt.Errorf("seccomp: thread %d has another filter", thread)
	}
	return nil
}
