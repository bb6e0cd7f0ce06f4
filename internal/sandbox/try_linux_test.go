package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// tryAll tries everything that a worker must not be able to do, and returns what
// came of each: "" if it worked. where is a folder with a Unix socket in it.
func tryAll(where string) map[string]string {
	out := map[string]string{}
	try := func(name string, err error) {
		out[name] = ""
		if err != nil {
			out[name] = err.Error()
		}
	}
	call := func(name string, number uintptr, args ...uintptr) {
		args = append(args, make([]uintptr, 6)...)
		_, _, errno := syscall.RawSyscall6(number, args[0], args[1], args[2], args[3], args[4], args[5])
		out[name] = ""
		if errno != 0 {
			out[name] = errno.Error()
		}
	}
	_, err := os.ReadFile("/etc/passwd")
	try("read a file", err)
	_, err = os.ReadFile("/proc/self/environ")
	try("read the environment", err)
	try("write a file", os.WriteFile(where+"/written", []byte("x"), 0o600))
	_, err = os.ReadDir("/")
	try("list a folder", err)
	_, err = os.Stat("/etc")
	try("stat", err)
	_, err = net.Dial("unix", where+"/socket")
	try("connect to a Unix socket", err)
	_, err = net.Dial("unix", "@holdfast-test")
	try("connect to an abstract socket", err)
	_, err = net.Dial("tcp", "127.0.0.1:1")
	try("connect to TCP", err)
	_, err = net.Dial("udp", "127.0.0.1:1")
	try("connect to UDP", err)
	_, err = net.Listen("tcp", "127.0.0.1:0")
	try("listen", err)
	try("run a program", exec.Command("/bin/true").Run())
	_, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)
	try("netlink", err)
	try("signal the parent", syscall.Kill(os.Getppid(), 0))
	try("trace the parent", syscall.PtraceAttach(os.Getppid()))
	call("signal a thread of another", unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid()), 0)
	call("socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM)
	call("fork", unix.SYS_CLONE, uintptr(unix.SIGCHLD))
	call("clone3", unix.SYS_CLONE3)
	call("io_uring", unix.SYS_IO_URING_SETUP, 1)
	call("memfd", unix.SYS_MEMFD_CREATE)
	call("pidfd", unix.SYS_PIDFD_OPEN, uintptr(os.Getppid()))
	call("raise a limit", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_FSIZE)
	call("executable memory", unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE, ^uintptr(0))
	call("leave no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 0)
	call("new namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	call("mount", unix.SYS_MOUNT)
	call("bpf", unix.SYS_BPF)
	call("keys", unix.SYS_KEYCTL)
	for fd := uintptr(3); fd < 1024; fd++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, 0, 0); errno == 0 {
			out[fmt.Sprintf("read descriptor %d", fd)] = ""
		}
	}
	return out
}
