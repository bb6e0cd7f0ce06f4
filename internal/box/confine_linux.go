//go:build linux && (amd64 || arm64)

package box

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// confine takes from the calling thread, and from all that it will start, what programs in
// a box are not to have. It returns the version of Landlock's ABI, 0 where there is none.
// The calls are those of one thread: the others go on building.
func confine(cfg orders) (abi int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, unable("PR_SET_NO_NEW_PRIVS", err)
	}
	if abi, err = restrictFiles(cfg.Config); err != nil {
		return 0, unable("Landlock", err)
	}
	if err := dropCapabilities(cfg.Apart); err != nil {
		return 0, unable("drop capabilities", err)
	}
	return abi, unable("seccomp", filterCalls())
}

// dropCapabilities gives up every capability, for good, and becomes the tool's user, if that
// is to be another one.
func dropCapabilities(apart bool) error {
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return err
		}
	}
	uid := uintptr(os.Getuid())
	if apart {
		uid = toolUser
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			return errno
		}
	}
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, uid, uid, uid); errno != 0 {
			return errno
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&head, &none[0])
}

// Rights of Landlock, by the version of the ABI that brought them (landlock(7)).
const (
	allFiles     = landlock.AccessFSRefer - 1 // ABI 1
	readAndStart = landlock.AccessFSExecute | landlock.AccessFSReadFile | landlock.AccessFSReadDir
	fileOnly     = landlock.AccessFSExecute | landlock.AccessFSReadFile | landlock.AccessFSWriteFile | landlock.AccessFSTruncate | landlock.AccessFSIoctlDev
)

// restrictFiles is a second wall behind the mounts: files can be opened for what they are
// there for, and processes signalled only within.
func restrictFiles(cfg Config) (abi int, err error) {
	abi, err = landlock.LandlockGetABIVersion()
	if err != nil || abi <= 0 {
		return 0, nil //nolint:nilerr // a kernel without it, or one that was told not to use it
	}
	handled := uint64(allFiles)
	attr := landlock.RulesetAttr{}
	for version, right := range map[int]uint64{2: landlock.AccessFSRefer, 3: landlock.AccessFSTruncate, 5: landlock.AccessFSIoctlDev} {
		if abi >= version {
			handled |= right
		}
	}
	if attr.HandledAccessFS = handled; abi >= 6 {
		attr.Scoped = landlock.ScopeAbstractUnixSocket | landlock.ScopeSignal
	}
	set, err := landlock.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(set) //nolint:errcheck // it counts for the thread by then
	allow := func(path string, rights uint64) error {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer unix.Close(fd) //nolint:errcheck // only a handle
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if rights &= handled; st.Mode&unix.S_IFMT != unix.S_IFDIR {
			rights &= fileOnly
		}
		if err := landlock.LandlockAddPathBeneathRule(set, &landlock.PathBeneathAttr{AllowedAccess: rights, ParentFd: fd}, 0); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	for _, path := range slices.Concat([]string{"/proc", "/etc"}, bound, cfg.Read) {
		if err := allow(path, readAndStart); err != nil {
			return 0, err
		}
	}
	for _, path := range append([]string{Work}, cfg.Write...) {
		if err := allow(path, handled); err != nil {
			return 0, err
		}
	}
	for _, d := range devices {
		if err := allow("/dev/"+d, landlock.AccessFSReadFile|landlock.AccessFSWriteFile|landlock.AccessFSTruncate); err != nil {
			return 0, err
		}
	}
	return abi, landlock.LandlockRestrictSelf(set, 0)
}

// refused are system calls that no provider needs, and that reach into other processes, into
// namespaces and mounts, or far into the kernel.
var refused = append([]uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_ACCT, unix.SYS_SYSLOG,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET, unix.SYS_SHMGET, // memory that no limit of a process counts
	unix.SYS_QUOTACTL_FD, sysOpenTreeAttr,
	unix.SYS_LOOKUP_DCOOKIE, unix.SYS_VHANGUP, unix.SYS_PERSONALITY, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES, unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY,
}, archRefused...)

// sysOpenTreeAttr is open_tree_attr(2), of Linux 6.15, on all systems.
const sysOpenTreeAttr = 467

// namespaces are the flags of clone(2) that make one.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Offsets in struct seccomp_data, see seccomp(2). Both systems are little-endian, so the low
// half of an argument comes first.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// filter returns the program that the kernel runs for each system call.
func filter() []bpf.Instruction {
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	call := bpf.LoadAbsolute{Off: offsetCall, Size: 4}
	arg := func(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offsetArgs + 8*n, Size: 4} }
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		call,
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 0x40000000, SkipTrue: 1}, // the x32 ABI counts from there
		bpf.RetConstant{Val: absent},
	}
	for _, c := range refused {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c, SkipTrue: 1}, bpf.RetConstant{Val: refuse})
	}
	// clone3 takes its flags where a filter cannot look: the C library and Go fall back to clone.
	out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1}, bpf.RetConstant{Val: absent})
	out = append(out,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE, SkipTrue: 4},
		arg(0),
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: namespaces, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
		bpf.RetConstant{Val: allow},
	)
	// Of sockets, those that any program has: streams and datagrams. Netlink only to ask for
	// interfaces and routes.
	out = append(out,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 19},
		arg(0),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_NETLINK, SkipTrue: 14},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
		arg(1),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_STREAM, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_DGRAM, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
		arg(2),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 6}, // what the type stands for
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 5},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 4},
		bpf.RetConstant{Val: refuse},
		arg(2), // of Netlink
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NETLINK_ROUTE, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
	)
	return append(out, bpf.RetConstant{Val: allow})
}

// filterCalls installs the filter for the calling thread, and for what it starts.
func filterCalls() error {
	raw, err := bpf.Assemble(filter())
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog))) //nolint:gosec // how seccomp(2) is called
	runtime.KeepAlive(program)
	if errno != 0 {
		return errno
	}
	return nil
}
