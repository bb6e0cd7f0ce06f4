//go:build linux && (amd64 || arm64)

package box_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// shared is a folder that programs in boxes may use, and its owner is theirs.
func shared(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	uid, gid := box.User()
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts a box that has this program.
func start(t *testing.T, change func(*box.Config)) *box.Box {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := box.Config{Read: []string{self}}
	if change != nil {
		change(&cfg)
	}
	if race {
		cfg.Limits.Memory = 1 << 50 // the detector maps terabytes
	}
	b, err := box.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	uid, gid := box.User()
	for _, dir := range []string{box.Temp, "w"} {
		if err := errors.Join(b.Root().Mkdir(dir, 0o700), b.Root().Chown(dir, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// try has a program do something, and returns what it printed.
func try(t *testing.T, b *box.Box, verb ...string) (out, errs string, err error) {
	t.Helper()
	return tryIn(t.Context(), t, b, nil, verb...)
}

func tryIn(ctx context.Context, t *testing.T, b *box.Box, env []string, verb ...string) (out, errs string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	err = b.Run(ctx, box.Command{Path: self, Args: append([]string{"verb"}, verb...), Env: env, Dir: box.Work, Stdout: &o, Stderr: &e, Grace: 100 * time.Millisecond})
	return o.String(), e.String(), err
}

func TestRun(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	if out, _, err := try(t, b, "print", "a", "b c"); err != nil || out != "a b c\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, _, err := tryIn(t.Context(), t, b, []string{"A=b"}, "env"); err != nil || out != "A=b\n" {
		t.Errorf("environment %q, %v", out, err)
	}
	var exit *box.ExitError
	if _, _, err := try(t, b, "fail"); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("%v", err)
	}
	if _, _, err := try(t, b, "read", "/none"); !errors.As(err, &exit) || exit.Code != 1 {
		t.Errorf("%v", err)
	}
	if err := b.Run(t.Context(), box.Command{Path: "/none", Dir: box.Work}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	if _, _, err := try(t, b, "write", box.Work+"/w/x"); err != nil {
		t.Error(err)
	}
	if got, err := b.Root().ReadFile("w/x"); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	// What is left behind, with the pipes in its hands, is gone before the next one.
	if _, _, err := try(t, b, "leave"); err != nil {
		t.Error(err)
	}
	if out, _, err := try(t, b, "pids"); err != nil || out != "2\n" {
		t.Errorf("%s processes, %v", out, err)
	}
}

// What a program in a box tries is refused.
func TestEscapes(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("geheim"), 0o644); err != nil {
		t.Fatal(err)
	}
	given := shared(t)
	if err := os.WriteFile(filepath.Join(given, "f"), []byte("given"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *box.Config) { c.Read = append(c.Read, given) })
	if err := errors.Join(b.Root().Mkdir("s", 0o755), b.Root().WriteFile("s/main.tf", []byte("judged"), 0o644), b.Seal("s")); err != nil {
		t.Fatal(err)
	}
	n := func(v int) string { return fmt.Sprint(v) }
	for name, verb := range map[string][]string{
		"read a file of the host":        {"read", secret},
		"read shadow":                    {"read", "/etc/shadow"},
		"read the environment of init":   {"read", "/proc/1/environ"},
		"read the memory of init":        {"read", "/proc/1/mem"},
		"read by the root of init":       {"read", "/proc/1/root" + secret},
		"use its connection":             {"read", "/proc/1/fd/3"},
		"list the home of root":          {"list", "/root"},
		"list /sys":                      {"list", "/sys"},
		"read the kernel's log":          {"read", "/proc/kmsg"},
		"set a sysctl":                   {"write", "/proc/sys/kernel/core_pattern"},
		"write to the root":              {"write", "/x"},
		"write to /usr":                  {"write", "/usr/x"},
		"write to /etc":                  {"write", "/etc/hosts"},
		"write to what is given to read": {"write", given + "/f"},
		"remove what is given to read":   {"remove", given + "/f"},
		"write to the work directory":    {"write", box.Work + "/x"},
		"write to what is sealed":        {"write", box.Work + "/s/main.tf"},
		"remove what is sealed":          {"remove", box.Work + "/s/main.tf"},
		"chmod what is sealed":           {"chmod", box.Work + "/s/main.tf"},
		"link out of what is sealed":     {"link", box.Work + "/s/main.tf", box.Work + "/w/main.tf"},
		"TCP":                            {"dial", "tcp", "192.0.2.1:443"},
		"TCP to the metadata":            {"dial", "tcp", "169.254.169.254:80"},
		"TCP to the metadata, IPv6":      {"dial", "tcp", "[fd00:ec2::254]:80"},
		"TCP to the loopback":            {"dial", "tcp", "127.0.0.1:22"},
		"UDP":                            {"dial", "udp", "192.0.2.1:53"},
		"UDP to the loopback":            {"dial", "udp", "127.0.0.53:53"},
		"DNS":                            {"resolve", "example.com"},
		"a Unix socket of the host":      {"dial", "unix", "/var/run/docker.sock"},
		"an abstract Unix socket":        {"dial", "unix", "@/containerd"},
		"a raw socket":                   {"socket", n(unix.AF_INET), n(unix.SOCK_RAW), n(unix.IPPROTO_ICMP)},
		"a packet socket":                {"socket", n(unix.AF_PACKET), n(unix.SOCK_DGRAM), "0"},
		"a vsock":                        {"socket", n(unix.AF_VSOCK), n(unix.SOCK_STREAM), "0"},
		"netfilter":                      {"socket", n(unix.AF_NETLINK), n(unix.SOCK_DGRAM), n(unix.NETLINK_NETFILTER)},
		"trace itself":                   {"syscall", n(unix.SYS_PTRACE), n(unix.PTRACE_TRACEME)},
		"unshare":                        {"syscall", n(unix.SYS_UNSHARE), n(unix.CLONE_NEWUSER)},
		"a user namespace":               {"namespace"},
		"clone3":                         {"syscall", n(unix.SYS_CLONE3)},
		"mount":                          {"syscall", n(unix.SYS_MOUNT)},
		"chroot":                         {"syscall", n(unix.SYS_CHROOT)},
		"bpf":                            {"syscall", n(unix.SYS_BPF)},
		"io_uring":                       {"syscall", n(unix.SYS_IO_URING_SETUP)},
		"keyrings":                       {"syscall", n(unix.SYS_KEYCTL)},
		"user faults":                    {"syscall", n(unix.SYS_USERFAULTFD)},
		"signal init":                    {"kill", "1", n(int(unix.SIGTERM))},
		"list the host's keys":           {"list", "/etc/ssl/private/x"},
		"MPTCP":                          {"socket", n(unix.AF_INET), n(unix.SOCK_STREAM), "262"},
		"uncounted memory":               {"syscall", n(unix.SYS_MEMFD_CREATE)},
		"make a device":                  {"syscall", n(unix.SYS_MKNODAT), "-100", "0", n(unix.S_IFCHR | 0o600)},
	} {
		t.Run(name, func(t *testing.T) {
			if uid, _ := box.User(); uid == os.Geteuid() && name == "write to the work directory" {
				t.Skip("without a user of its own it owns that folder")
			}
			out, errs, err := try(t, b, verb...)
			var exit *box.ExitError
			if !errors.As(err, &exit) || exit.Signal != 0 || exit.Code != 1 {
				t.Errorf("%v, printed %q, %q", err, out, errs)
			}
			if strings.Contains(out, "geheim") || errs == "" {
				t.Errorf("printed %q, %q", out, errs)
			}
			if refusal := map[string]string{"unshare": "not permitted", "clone3": "not implemented"}[name]; !strings.Contains(errs, refusal) {
				t.Errorf("refused otherwise: %q", errs)
			}
		})
	}
	if out, _, err := try(t, b, "read", given+"/f"); err != nil || out != "given" {
		t.Errorf("what is given: %q, %v", out, err)
	}
	out, _, err := try(t, b, "status")
	if err != nil && os.Getenv("WITHOUT_PROC") != "" {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if out, _, err := try(t, b, "read", "/proc/self/oom_score_adj"); err != nil || out != "1000\n" {
		t.Errorf("when memory gets short: %q, %v", out, err)
	}
	if out, _, err := try(t, b, "list", "/etc/ssl/private"); err == nil && out != "" {
		t.Errorf("keys of the host: %q", out)
	}
}

// Where parts of /proc are covered, as in containers, a box has none; it holds all the same.
func TestWithoutProc(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("WITHOUT_PROC") != "" {
		t.Skip("this is it")
	}
	cmd := exec.Command("unshare", "-m", "sh", "-ec", `mount --bind /dev/null /proc/version; exec "$0" -test.run '^TestEscapes$'`, self)
	cmd.Env = append(os.Environ(), "WITHOUT_PROC=1")
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace to cover /proc in: %s", out)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// Memory, disk and processes end at their limit, and the box goes on.
func TestBombs(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *box.Config) {
		c.Limits = box.Limits{Work: 8 << 20, Memory: 256 << 20, Processes: 64, Files: 512}
	})
	if out, errs, err := try(t, b, "fork", "1000"); err == nil || !strings.Contains(errs, "resource temporarily unavailable") {
		t.Errorf("1,000 processes: %v, %q, %q", err, out, errs)
	}
	if _, errs, err := try(t, b, "memory", "1000"); !race && (err == nil || !strings.Contains(errs, "out of memory") && !strings.Contains(errs, "cannot allocate")) {
		t.Errorf("a gigabyte: %v, %.200q", err, errs)
	}
	if _, errs, err := try(t, b, "fill", box.Work+"/w/big"); err == nil || !strings.Contains(errs, "no space left") && !strings.Contains(errs, "too large") {
		t.Errorf("an endless file: %v, %q", err, errs)
	}
	if _, errs, err := try(t, b, "fill", box.Work+"/w/more"); err == nil || !strings.Contains(errs, "no space left") {
		t.Errorf("another endless file: %v, %q", err, errs)
	}
	if info, err := b.Root().Stat("w/big"); err != nil || info.Size() > 8<<20 {
		t.Errorf("it became %d bytes, %v", info.Size(), err)
	}
	if _, errs, err := try(t, b, "fill", "/dev/shm/big"); err == nil {
		t.Errorf("an endless file in /dev/shm: %q", errs)
	}
	if err := errors.Join(b.Root().Remove("w/big"), b.Root().Remove("w/more")); err != nil {
		t.Fatal(err)
	}
	if out, errs, err := try(t, b, "print", "still here"); err != nil || out != "still here\n" {
		t.Errorf("afterwards: %v, %q, %q", err, out, errs)
	}
}

// A program that is not wanted any more is interrupted, and killed when it does not care.
func TestStop(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for verb, want := range map[string]int{"sleep": int(unix.SIGINT), "stubborn": int(unix.SIGKILL)} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &notify{text: "asleep", call: cancel}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		err = b.Run(ctx, box.Command{Path: self, Args: []string{"verb", verb}, Dir: box.Work, Stdout: out, Grace: 50 * time.Millisecond})
		var exit *box.ExitError
		if !errors.As(err, &exit) || exit.Signal != want && verb != "sleep" || exit.Code == 0 {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if out, _, err := try(t, b, "print", "next"); err != nil || out != "next\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// notify calls call when text is written.
type notify struct {
	text string
	call func()
}

func (n *notify) Write(p []byte) (int, error) {
	if strings.Contains(string(p), n.text) {
		n.call()
	}
	return len(p), nil
}

// The only way out is a listener that the daemon serves.
func TestListen(t *testing.T) {
	t.Parallel()
	const at = "127.0.0.1:3128"
	b := start(t, func(c *box.Config) {
		c.Listen = []string{at}
		c.Hosts = map[string]string{"db.internal": "127.0.0.1"}
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "out there") }), ReadHeaderTimeout: time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(b.Listener(0)) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	for _, url := range []string{"http://" + at, "http://db.internal:3128"} {
		if out, errs, err := try(t, b, "get", url); err != nil || out != "out there" {
			t.Errorf("%s: %q, %q, %v", url, out, errs, err)
		}
	}
}

// A daemon that dies takes everything with it, but for what writes to the world: that is
// told to stop, and may save its state.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	dir := shared(t)
	for name, writes := range map[string]bool{"saved": true, "lost": false} {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(dir, name)
		b := start(t, func(c *box.Config) { c.Write = []string{dir} })
		asleep := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- b.Run(context.WithoutCancel(t.Context()), box.Command{
				Path: self, Args: []string{"verb", "saves", state}, Dir: box.Work, Writes: writes, Grace: 20 * time.Second, Stdout: &notify{"asleep", func() { close(asleep) }},
			})
		}()
		<-asleep
		b.Abandon() // as a process does that is killed: nobody says goodbye
		<-ended
		_, err = os.Stat(state)
		if saved := err == nil; saved != writes {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMissingPath(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/none/at/all", "relative", "/", "/usr/../etc", "/etc", "/proc/sys", "/dev/shm", "/run", box.Work + "/x"} {
		b, err := box.Start(t.Context(), box.Config{Read: []string{path}})
		if err == nil {
			b.Close()
		}
		if k := fault.KindOf(err); err == nil || k != fault.Invalid {
			t.Errorf("%s: %v", path, err)
		}
	}
}
