//go:build linux && (amd64 || arm64)

package box_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test binary is what runs in the boxes too: with a verb as its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "verb" {
		if err := verbs[os.Args[2]](os.Args[3:]...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// verbs are what a hostile program might do. An error says that it did not work.
var verbs = map[string]func(...string) error{
	"print": func(args ...string) error { fmt.Println(strings.Join(args, " ")); return nil },
	"env":   func(...string) error { fmt.Println(strings.Join(os.Environ(), "\n")); return nil },
	"fail":  func(...string) error { os.Exit(7); return nil },
	"read": func(args ...string) error {
		b, err := os.ReadFile(args[0])
		fmt.Printf("%s", b)
		return err
	},
	"list": func(args ...string) error {
		entries, err := os.ReadDir(args[0])
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	},
	"write":  func(args ...string) error { return os.WriteFile(args[0], []byte("x"), 0o600) },
	"chmod":  func(args ...string) error { return os.Chmod(args[0], 0o777) },
	"remove": func(args ...string) error { return os.Remove(args[0]) },
	"link":   func(args ...string) error { return os.Link(args[0], args[1]) },
	"dial": func(args ...string) error {
		c, err := net.DialTimeout(args[0], args[1], 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if args[0] == "udp" {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, err = c.Read(make([]byte, 1))
			return err
		}
		return nil
	},
	"resolve": func(args ...string) error { _, err := net.LookupHost(args[0]); return err },
	"get": func(args ...string) error {
		r, err := http.Get(args[0])
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(os.Stdout, r.Body)
		return err
	},
	"socket": func(args ...string) error {
		n := numbers(args)
		_, err := unix.Socket(n[0], n[1], n[2])
		return err
	},
	"syscall": func(args ...string) error {
		n := numbers(args)
		_, _, errno := unix.Syscall6(uintptr(n[0]), uintptr(n[1]), uintptr(n[2]), uintptr(n[3]), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	},
	"namespace": func(...string) error {
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return cmd.Run()
	},
	"kill": func(args ...string) error {
		n := numbers(args)
		return unix.Kill(n[0], syscall.Signal(n[1]))
	},
	"pids": func(...string) error {
		dirs, err := filepath.Glob("/proc/[0-9]*")
		fmt.Println(len(dirs))
		return err
	},
	"status": func(...string) error {
		b, err := os.ReadFile("/proc/self/status")
		fmt.Printf("%s", b)
		return err
	},
	"fork": func(args ...string) error {
		most, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for i := range most {
			if err := exec.Command("/bin/sleep", "60").Start(); err != nil {
				fmt.Println(i)
				return err
			}
		}
		return nil
	},
	"memory": func(args ...string) error {
		most, err := strconv.Atoi(args[0])
		var all [][]byte
		for range most {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println(len(all))
		return err
	},
	"fill": func(args ...string) error {
		f, err := os.Create(args[0])
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, zeros{}, 1<<40)
		return err
	},
	"sleep": func(...string) error {
		fmt.Println("asleep")
		time.Sleep(time.Hour)
		return nil
	},
	"stubborn": func(...string) error {
		signal.Ignore(unix.SIGINT, unix.SIGTERM)
		fmt.Println("asleep")
		time.Sleep(time.Hour)
		return nil
	},
	"saves": func(args ...string) error { // its state, when it is told to stop
		c := make(chan os.Signal, 1)
		signal.Notify(c, os.Interrupt)
		fmt.Println("asleep")
		<-c
		fmt.Println("stopping") // to somebody who may be gone
		time.Sleep(50 * time.Millisecond)
		return os.WriteFile(args[0], []byte("saved"), 0o600)
	},
	"leave": func(...string) error { // a process that holds the pipes
		cmd := exec.Command("/bin/sleep", "600")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	},
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func numbers(args []string) []int {
	out := make([]int, 6)
	for i, a := range args {
		n, err := strconv.ParseInt(a, 0, 64)
		if err != nil {
			panic(err)
		}
		out[i] = int(n)
	}
	return out
}
