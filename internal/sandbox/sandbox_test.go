//go:build linux && (amd64 || arm64)

package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

var noFiles = fstest.MapFS{}

func pool(t testing.TB, l Limits) *Pool {
	t.Helper()
	p, err := New(Config{Task: hostile, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func run(t testing.TB, p *Pool, domain, request string) string {
	t.Helper()
	b, err := p.Run(t.Context(), domain, []byte(request), noFiles)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	return string(b)
}

func TestNewRefusesNoTask(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("no error")
	}
}

// TestWorkerCanDoNothing has a worker try each thing that it must not do, with
// what the filter alone leaves, and with namespaces and Landlock on top.
func TestWorkerCanDoNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, address := range []string{filepath.Join(dir, "socket"), "@holdfast-test-" + filepath.Base(filepath.Dir(dir))} {
		l, err := net.Listen("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	leakDescriptor(t)
	for _, shared := range []bool{false, true} {
		p := pool(t, Limits{})
		p.shared = shared
		var got map[string]string
		if err := json.Unmarshal([]byte(run(t, p, "a", "try "+dir)), &got); err != nil {
			t.Fatal(err)
		}
		if len(got) < 25 {
			t.Errorf("only %d were tried", len(got))
		}
		for what, err := range got {
			switch {
			case err == "":
				t.Errorf("namespaces shared %v: %s: it can", shared, what)
			case !strings.Contains(err, "not permitted") && what != "clone3" && what != "list a folder":
				t.Errorf("namespaces shared %v: %s: %s", shared, what, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "written")); err == nil {
		t.Error("a file was written")
	}
}

// leakDescriptor opens one that is not close-on-exec, as a careless parent does.
func leakDescriptor(t *testing.T) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
}

// TestWorkerIsConfined looks at a worker from outside.
func TestWorkerIsConfined(t *testing.T) {
	t.Parallel()
	leakDescriptor(t)
	p := pool(t, Limits{})
	pid := run(t, p, "a", "pid")
	proc := func(name string) string {
		b, err := os.ReadFile("/proc/" + pid + "/" + name)
		if errors.Is(err, fs.ErrPermission) {
			return "" // it is not dumpable, and we are not root
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	status := strings.Fields(proc("status"))
	for _, want := range [][2]string{{"NoNewPrivs:", "1"}, {"Seccomp:", "2"}, {"CapEff:", "0000000000000000"}, {"CapPrm:", "0000000000000000"}} {
		for i, f := range status {
			if f == want[0] && status[i+1] != want[1] {
				t.Errorf("%s %s; want %s", f, status[i+1], want[1])
			}
		}
	}
	tasks, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if s := proc("task/" + task.Name() + "/status"); !strings.Contains(s, "Seccomp:\t2") || !strings.Contains(s, "NoNewPrivs:\t1") {
			t.Errorf("thread %s is not filtered", task.Name())
		}
	}
	if env := proc("environ"); strings.TrimRight(env, "\x00") != strings.Join(environment, "\x00") && env != "" {
		t.Errorf("environment %q", env)
	}
	for line := range strings.Lines(proc("limits")) {
		f := strings.Fields(line)
		for name, want := range map[string]string{"Max file size": "0", "Max core file": "0", "Max open files": "32", "Max cpu time": "600", "Max processes": "64"} {
			if strings.HasPrefix(line, name) && f[len(strings.Fields(name))] != want && f[len(strings.Fields(name))+1] != want {
				t.Errorf("%s: want %s in %q", name, want, line)
			}
		}
	}
	fds, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Skip("only root looks at the descriptors of a worker: ", err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/" + pid + "/fd/" + fd.Name())
		n, _ := strconv.Atoi(fd.Name())
		own := strings.HasPrefix(to, "anon_inode:[event") // of Go's runtime
		if n > 2 && !own {
			t.Errorf("descriptor %d is %s", n, to)
		}
	}
	ours, _ := os.Readlink("/proc/self/ns/net")
	if theirs, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil && theirs == ours && !p.shared {
		t.Error("the worker is in our network")
	}
}

// TestLandlockAlone: it denies files and ports also where the filter lets a call through.
func TestLandlockAlone(t *testing.T) {
	t.Parallel()
	if os.Getenv("HOLDFAST_TEST_LANDLOCK") != "" {
		abi, err := denyFiles()
		_, open := os.ReadFile("/etc/passwd")
		conn, dial := net.Dial("tcp4", "127.0.0.1:1")
		if conn != nil {
			_ = conn.Close()
		}
		fmt.Println("landlock", abi, err, errors.Is(open, fs.ErrPermission), abi < 4 || errors.Is(dial, fs.ErrPermission))
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLandlockAlone$", "-test.v")
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_LANDLOCK=1")
	out, _ := cmd.Output() // it cannot write its coverage, for one
	if strings.Contains(string(out), "landlock 0") {
		t.Skip("the kernel has no Landlock")
	}
	if !strings.Contains(string(out), "<nil> true true") {
		t.Errorf("under Landlock: %s", out)
	}
}

// TestFaultsOfATask: each ends the rendering at hand, and the next one works.
func TestFaultsOfATask(t *testing.T) {
	t.Parallel()
	small := Limits{Time: 2 * time.Second, Memory: 96 << 20, Answer: 1 << 20}
	for name, c := range map[string]struct {
		request, want, not string
		kind               fault.Kind
		hint               bool
	}{
		"time":          {request: "spin", kind: fault.Invalid, want: "longer than 2s", hint: true},
		"no CPU":        {request: "sleep", kind: fault.Transient, want: "took longer than 2s", hint: true},
		"memory":        {request: "eat", kind: fault.Invalid, want: "more than 96 MiB of memory", hint: true},
		"answer":        {request: "flood", kind: fault.Invalid, want: "larger than 1 MiB", hint: true},
		"stack":         {request: "deep", kind: fault.Internal, want: "crashed"},
		"panic":         {request: "panic x", kind: fault.Internal, want: "assignment to entry in nil map"},
		"secret panic":  {request: "panic-secret geheimnis", kind: fault.Internal, want: "panicked: string", not: "geheimnis"},
		"fatal panic":   {request: "die geheimnis", kind: fault.Internal, want: "crashed: exit status 2", not: "geheimnis"},
		"long frame":    {request: "babble", kind: fault.Invalid, want: "larger than 1 MiB"},
		"unknown frame": {request: "unknown", kind: fault.Internal, want: "nonsense"},
		"closed pipe":   {request: "close", kind: fault.Internal, want: "closed its pipes"},
		"claims denial": {request: "denied", kind: fault.Internal, want: "no\uFFFD xxx", not: "\x1b"},
		"error":         {request: "what", kind: fault.Internal, want: `unknown request "what"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := pool(t, small)
			_, err := p.Run(t.Context(), "a", []byte(c.request), noFiles)
			if name == "time" && strings.Contains(fmt.Sprint(err), "had the CPU for") {
				t.Skip("this host has no CPU to spare: ", err)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || fault.KindOf(err) != c.kind {
				t.Fatalf("error %v (%v); want %v with %q", err, fault.KindOf(err), c.kind, c.want)
			}
			if all := err.Error() + fault.HintOf(err); c.not != "" && strings.Contains(all, c.not) || len(all) > 2*maxText {
				t.Errorf("error %q", all)
			}
			if c.hint && fault.HintOf(err) == "" {
				t.Error("no hint")
			}
			if got := run(t, p, "a", "echo hello"); got != "hello" {
				t.Errorf("afterwards: %q", got)
			}
		})
	}
}

func TestWorkersAreWarmAndReplaced(t *testing.T) {
	t.Parallel()
	p := pool(t, Limits{Runs: 3})
	pids := map[string]int{}
	for range 9 {
		pids[run(t, p, "a", "pid")]++
	}
	if len(pids) != 3 {
		t.Errorf("renderings by process: %v; want 3 processes of 3", pids)
	}
}

// TestDomainsShareNoProcess: whatever the pool has room for, a worker serves one
// trust domain.
func TestDomainsShareNoProcess(t *testing.T) {
	t.Parallel()
	p := pool(t, Limits{Workers: 2, Domain: 1})
	var mu sync.Mutex
	served := map[string]string{}
	var wg sync.WaitGroup
	for _, domain := range []string{"a", "b", "c"} {
		wg.Go(func() {
			for range 8 {
				pid := run(t, p, domain, "pid")
				mu.Lock()
				if other, ok := served[pid]; ok && other != domain {
					t.Errorf("process %s served %s and %s", pid, other, domain)
				}
				served[pid] = domain
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := len(children(t, served)); n > 2 {
		t.Errorf("%d workers are alive; want 2 at most", n)
	}
}

// children returns which of the processes exist.
func children(t *testing.T, pids map[string]string) []string {
	t.Helper()
	var out []string
	for pid := range pids {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// TestOneDomainKeepsNobodyWaiting: the workers of a domain that are all busy
// leave one for another.
func TestOneDomainKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	p := pool(t, Limits{Workers: 2, Domain: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := p.Run(ctx, "slow", []byte("sleep"), noFiles); fault.KindOf(err) != fault.Transient {
				t.Errorf("cancelled: %v", err)
			}
		})
	}
	if got := run(t, p, "quick", "echo x"); got != "x" {
		t.Error(got)
	}
	cancel()
	wg.Wait()
}

// deadly is a file system in which the first few questions kill who asks, see
// hostile.
type deadly struct {
	fstest.MapFS
	times int
}

func (d *deadly) Stat(name string) (fs.FileInfo, error) {
	if d.times--; d.times >= 0 {
		return nil, fs.ErrNotExist
	}
	return fs.Stat(d.MapFS, ".")
}

func TestKilledWorkerIsReplacedOnce(t *testing.T) {
	t.Parallel()
	for times, want := range map[int]string{1: "", 2: "killed from outside"} {
		var log bytes.Buffer
		p := pool(t, Limits{})
		p.log = slog.New(slog.NewTextHandler(&log, nil))
		got, err := p.Run(t.Context(), "a", []byte("ask done"), &deadly{times: times})
		if want == "" && (err != nil || string(got) != "done") {
			t.Errorf("killed once: %q, %v", got, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want) || fault.KindOf(err) != fault.Transient) {
			t.Errorf("killed twice: %v", err)
		}
		if n := strings.Count(log.String(), "rendering again"); n != 1 {
			t.Errorf("killed %d times: %d retries logged", times, n)
		}
	}
}

// TestParentsDeathEndsWorkers: also a worker that is busy and does not read.
func TestParentsDeathEndsWorkers(t *testing.T) {
	t.Parallel()
	if os.Getenv("HOLDFAST_TEST_PARENT") != "" {
		p := pool(t, Limits{})
		fmt.Println("pid", run(t, p, "a", "pid"))
		_, _ = p.Run(t.Context(), "a", []byte("spin"), noFiles)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestParentsDeathEndsWorkers$", "-test.v")
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var seen strings.Builder
	for buf := make([]byte, 256); pid == 0; {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("%v after %s", err, seen.String())
		}
		seen.Write(buf[:n])
		if _, rest, ok := strings.Cut(seen.String(), "pid "); ok && strings.Contains(rest, "\n") {
			_, _ = fmt.Sscan(rest, &pid)
		}
	}
	worker, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(worker)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(worker), Events: unix.POLLIN}}, 10_000); err != nil || n != 1 {
		t.Errorf("the worker outlives its parent: %d, %v", n, err)
	}
}

func TestIdleWorkersEnd(t *testing.T) {
	t.Parallel()
	p := pool(t, Limits{Idle: time.Millisecond})
	pid, _ := strconv.Atoi(run(t, p, "a", "pid"))
	for begun := time.Now(); syscall.Kill(pid, 0) == nil; {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the idle worker is still there")
		}
	}
	if got := run(t, p, "a", "echo x"); got != "x" {
		t.Error(got)
	}
}

func TestCloseRefusesMore(t *testing.T) {
	t.Parallel()
	p := pool(t, Limits{})
	pid, _ := strconv.Atoi(run(t, p, "a", "pid"))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the worker is still there: %v", err)
	}
	if _, err := p.Run(t.Context(), "a", []byte("pid"), noFiles); fault.KindOf(err) != fault.Transient {
		t.Errorf("after Close: %v", err)
	}
}

// TestFiles: a worker sees the parent's files, and no others.
func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, size := range map[string]int{"small": 10, "empty": 0, "large": 3 << 20, "huge": maxContent + 1} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../etc/passwd", filepath.Join(dir, "folder", "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := pool(t, Limits{})
	read := func(request string) (string, error) {
		b, err := p.Run(t.Context(), "a", []byte(request), root.FS())
		return string(b), err
	}
	for _, name := range []string{"small", "empty", "large"} {
		want, _ := os.ReadFile(filepath.Join(dir, name))
		if got, err := read("read " + name); err != nil || got != string(want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	var want bytes.Buffer
	_ = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, _ error) error {
		fmt.Fprintln(&want, name, d.IsDir())
		return nil
	})
	if got, err := read("walk ."); err != nil || got != want.String() {
		t.Errorf("walk: %v\n%s\nwant\n%s", err, got, want.String())
	}
	for name, kind := range map[string]fault.Kind{
		"missing": fault.Invalid, "huge": fault.Transient, "folder": fault.Transient, "folder/link": fault.Transient,
		"../x": fault.Transient, "/etc/passwd": fault.Transient, strings.Repeat("x", maxName+1): fault.Transient,
	} {
		if got, err := read("read " + name); fault.KindOf(err) != kind || err == nil {
			t.Errorf("%.20s: %.20q, %v", name, got, err)
		}
	}
	if _, err := p.Run(t.Context(), "a", bytes.Repeat([]byte("x"), maxRequest), noFiles); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a long request: %v", err)
	}
}

// trusting is a file system that opens whatever name it is given.
type trusting struct{ t *testing.T }

func (f trusting) Open(name string) (fs.File, error) {
	if name != "fine" {
		f.t.Errorf("opened %q", name)
	}
	return nil, fs.ErrNotExist
}

// TestQuestionsAreChecked before the file system sees them.
func TestQuestionsAreChecked(t *testing.T) {
	t.Parallel()
	s := &server{fsys: trusting{t}}
	for _, name := range []string{"fine", "../x", "/etc/passwd", "a/../../x", "a//b", "", strings.Repeat("x", maxName+1)} {
		for _, o := range []operation{opStat, opLstat, opReadDir, opReadLink, opRead, "write"} {
			payload, err := json.Marshal(question{o, name})
			if err != nil {
				t.Fatal(err)
			}
			if head, content := s.answer(payload); len(content) > 0 || !bytes.Contains(head, []byte(`"missing":true`)) && !bytes.Contains(head, []byte(`"error":`)) {
				t.Errorf("%s %q: %s", o, name, head)
			}
		}
	}
}

// broken fails as a disk does.
type broken struct{}

func (broken) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EIO}
}

// TestErrorsOfFilesAreOurs: what the parent saw is reported, not what a worker says of it.
func TestErrorsOfFilesAreOurs(t *testing.T) {
	t.Parallel()
	_, err := pool(t, Limits{}).Run(t.Context(), "a", []byte("read x"), broken{})
	if !errors.Is(err, syscall.EIO) || fault.KindOf(err) != fault.Transient {
		t.Errorf("error %v", err)
	}
}

// TestTail: a worker that talks without end costs nothing.
func TestTail(t *testing.T) {
	t.Parallel()
	var s tail
	for range 100 {
		if n, err := s.Write(bytes.Repeat([]byte("x"), maxText/10)); n != maxText/10 || err != nil {
			t.Fatal(n, err)
		}
	}
	if n := len(s.String()); n != maxText {
		t.Errorf("it keeps %d bytes", n)
	}
}

// BenchmarkRun is what a warm worker costs, beyond the work itself.
func BenchmarkRun(b *testing.B) {
	p := pool(b, Limits{Runs: 1 << 30})
	run(b, p, "a", "echo x")
	for b.Loop() {
		run(b, p, "a", "echo x")
	}
}

// BenchmarkStart is what a cold one costs.
func BenchmarkStart(b *testing.B) {
	p := pool(b, Limits{Runs: 1})
	for b.Loop() {
		run(b, p, "a", "echo x")
	}
}
