// Package box owns the sandboxes in which OpenTofu and Terraform run: other people's
// code, with somebody's credentials. [Start] starts one: this very binary, re-executed in
// user, mount, process, IPC, host name and network namespaces of its own, that builds a file
// system of what it was given, starts programs in it, and ends with everything in it.
//
// It guarantees that a program in a box sees the files that it was given and no others,
// and can write to its work directory, which is memory of a bounded size, and to what was
// given for that; that it has no capability and cannot get one, reaches no network but the
// listeners that the box hands to the daemon, sees and signals no process outside, and
// cannot trace, mount, or make namespaces; that its processes, what each of them takes of
// memory, and each file are bounded, and that it goes before the daemon when memory gets
// short; and that nothing of it is left when the box is closed. When the daemon dies, a
// program that writes to the world is told to stop and gets its grace; others end at once.
// It refuses to start where the host lacks what that takes, and says what is missing.
package box

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const op = "internal/box.Start"

// Work is the work directory of every box, as programs in it see it.
const Work = "/holdfast"

// Temp is the folder of the work directory that /tmp leads to. The daemon makes it.
const Temp = "t"

// Config says what is in a box.
type Config struct {
	// Read are absolute paths that are there and cannot be written to; of a symbolic link,
	// what it leads to. One that does not exist is an error.
	Read []string
	// Write are absolute paths of folders that are there and can be written to by the user
	// that [User] says.
	Write []string
	// Listen are addresses of the box, such as "127.0.0.1:3128", whose listeners the daemon
	// serves. Nothing else can be connected to.
	Listen []string
	// Hosts are names that lead to an address in the box.
	Hosts  map[string]string
	Limits Limits
	// Hold is open until everything in the box has ended, also when the daemon has: a lock
	// on it lasts as long. May be nil.
	Hold *os.File `json:"-"`
}

// Limits bound what the programs of a box take. A zero field has the default of
// [DefaultLimits].
type Limits struct {
	Work      int64 // bytes in the work directory, which is memory, and of each file
	Memory    int64 // bytes of data of each process
	Processes int   // processes and threads, together
	Files     int   // open files of each process
}

// DefaultLimits returns the limits of the daemon.
func DefaultLimits() Limits {
	return Limits{Work: 256 << 20, Memory: 4 << 30, Processes: 256, Files: 4096}
}

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	if l.Work <= 0 {
		l.Work = d.Work
	}
	if l.Memory <= 0 {
		l.Memory = d.Memory
	}
	if l.Processes <= 0 {
		l.Processes = d.Processes
	}
	if l.Files <= 0 {
		l.Files = d.Files
	}
	return l
}

// Command is a program to run in a box.
type Command struct {
	Path string   // in the box
	Args []string // without the program's name
	Env  []string // all of its environment
	Dir  string   // in the box
	// Stdout and Stderr get what it prints; nil discards it.
	Stdout, Stderr io.Writer
	// Writes says that it changes the world: it is not killed at once when the daemon dies.
	Writes bool
	// Grace is how long it may take to stop after an interrupt.
	Grace time.Duration
}

// ExitError says that a program ended with another status than 0.
type ExitError struct {
	Code   int // -1: a signal ended it
	Signal int
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("ended by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// missing is the error of a host that cannot make a box.
func missing(what string, err error) error {
	return fault.New(fault.Invalid, op,
		"run Holdfast on a host, and in a container, that lets it make user namespaces (docs/sandbox.md says how), or write terraform.sandbox: {none: true} in the operator's file",
		"the host cannot confine the tool: %s: %w", what, err)
}

// reserved are paths that are never given: what is in them is not the operator's to give, or
// is made for the box.
var reserved = []string{"/etc", "/proc", "/sys", "/dev", "/run", "/var/run", Work, "/tmp"}

// check refuses a path that must not be in a box.
func check(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("%q is not the path of a file or folder", path)
	}
	for _, r := range reserved {
		below := strings.HasPrefix(path, r+"/")
		if path == r || below && r != "/etc" && r != "/tmp" {
			return fmt.Errorf("%s is part of every sandbox, or of none", path)
		}
	}
	return nil
}
