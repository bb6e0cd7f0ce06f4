//go:build !linux || (!amd64 && !arm64)

package box

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
)

// User returns the daemon's own user and group.
func User() (uid, gid int) { return os.Geteuid(), os.Getegid() }

// Box is one sandbox. There is none on this system.
type Box struct{}

// Start refuses.
func Start(context.Context, Config) (*Box, error) {
	return nil, missing("namespaces", errors.New("there are none on "+runtime.GOOS+"/"+runtime.GOARCH))
}

// Root returns the work directory.
func (*Box) Root() *os.Root { return nil }

// Listener returns a listener.
func (*Box) Listener(int) net.Listener { return nil }

// Seal makes a folder of the work directory read-only.
func (*Box) Seal(string) error { return errNone }

// Run runs a program.
func (*Box) Run(context.Context, Command) error { return errNone }

// Close ends everything in the box.
func (*Box) Close() {}

var errNone = errors.New("there are no sandboxes on this system")
