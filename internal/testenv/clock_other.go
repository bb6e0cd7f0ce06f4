//go:build !linux

package testenv

import (
	"errors"
	"os/exec"
	"time"
)

// Clock is the wall clock of processes that are started under it. It needs Linux.
type Clock struct{}

// Set does nothing.
func (*Clock) Set(time.Duration) {}

// Start fails.
func (*Clock) Start(*exec.Cmd) error { return errors.New("a clock of its own needs Linux") }
