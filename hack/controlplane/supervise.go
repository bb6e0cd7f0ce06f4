package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// supervision is what the supervisor reads; internal/testenv writes it.
type supervision struct {
	// Users is a file on which every user holds a shared flock. Whoever crashes
	// lets go of it too.
	Users string `json:"users"`
	// Linger is how long the components outlive their last user.
	Linger time.Duration `json:"lingerNanoseconds"`
	// Dir is removed when all components have ended.
	Dir        string      `json:"dir"`
	Components []component `json:"components"`
}

type component struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Args []string `json:"args"`
	Log  string   `json:"log"`
}

const (
	// lockFD is an flocked file that the starter hands down, and the supervisor
	// hands on: its lock is free only when the supervisor and the last
	// component are gone, however they ended.
	lockFD = 3
	// poll is how often the supervisor looks for users.
	poll = 250 * time.Millisecond
	// A component may start before the one it depends on, give up, and be
	// started again; after so many times something else is wrong.
	maxStarts    = 20
	restartDelay = 500 * time.Millisecond
)

func superviseMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: controlplane supervise CONFIG")
		return 2
	}
	raw, err := os.ReadFile(args[0])
	if err != nil {
		log.Print(err)
		return 1
	}
	var s supervision
	if err := json.Unmarshal(raw, &s); err != nil {
		log.Printf("%s: %v", args[0], err)
		return 1
	}
	if err := s.run(); err != nil {
		log.Print(err)
		return 1
	}
	return 0
}

// exit says that a component ended.
type exit struct {
	index int
	err   error
}

// run keeps the components running until nobody uses them, then ends them and
// removes their directory. Components die with the thread that started them
// (PR_SET_PDEATHSIG), so run stays on one thread and starts all of them there.
func (s *supervision) run() error {
	runtime.LockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	users, err := os.Open(s.Users)
	if err != nil {
		return err
	}
	defer func() { _ = users.Close() }()
	lock := os.NewFile(lockFD, "supervisor.lock")
	if lock == nil {
		return errors.New("no lock was handed down on descriptor 3")
	}

	running := make([]*exec.Cmd, len(s.Components))
	starts := make([]int, len(s.Components))
	exits := make(chan exit, len(s.Components))
	restarts := make(chan int, len(s.Components))
	var failed error
	start := func(i int) {
		starts[i]++
		cmd, err := s.Components[i].start(lock)
		if err != nil {
			failed = err
			return
		}
		running[i] = cmd
		go func() { exits <- exit{i, cmd.Wait()} }()
	}
	for i := range s.Components {
		start(i)
	}

	tick := time.NewTicker(poll)
	defer tick.Stop()
	lastUsed := time.Now()
	for done := false; !done && failed == nil; {
		select {
		case <-signals:
			done = true
		case now := <-tick.C:
			unused, err := tryExclusive(users)
			switch {
			case err != nil:
				failed = err
			case !unused:
				lastUsed = now
			case now.Sub(lastUsed) >= s.Linger:
				// The lock is kept: who comes now waits until everything is gone.
				done = true
			default:
				failed = syscall.Flock(int(users.Fd()), syscall.LOCK_UN)
			}
		case e := <-exits:
			running[e.index] = nil
			name := s.Components[e.index].Name
			log.Printf("%s ended: %v", name, e.err)
			if starts[e.index] >= maxStarts {
				failed = fmt.Errorf("%s does not stay up: %w", name, e.err)
				break
			}
			time.AfterFunc(restartDelay, func() { restarts <- e.index })
		case i := <-restarts:
			start(i)
		}
	}
	left := 0
	for _, cmd := range running {
		if cmd != nil {
			// Nothing they hold outlives them, so nothing is gained by asking nicely.
			_ = cmd.Process.Kill()
			left++
		}
	}
	for ; left > 0; left-- {
		<-exits
	}
	if failed != nil {
		return failed // the logs in the directory are needed
	}
	return os.RemoveAll(s.Dir)
}

func (c component) start(lock *os.File) (*exec.Cmd, error) {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return cmd, nil
}

// tryExclusive reports whether it got the lock that all users share.
func tryExclusive(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
