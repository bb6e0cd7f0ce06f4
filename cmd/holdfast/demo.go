package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// newDemo starts the demo, which is a program of its own: its test bed and its
// throwaway certificate authority have no place in the daemon's binary.
func newDemo() *cobra.Command {
	c := &cobra.Command{
		Use: "demo", Short: "Tell the whole story on this machine, on real parts", Args: cobra.ArbitraryArgs,
		Long:               "Start a control plane, a registry, a Git server and a daemon on loopback in a\ntemporary folder, and show what Holdfast does. Needs what `make demo` builds.",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			bin := filepath.Join(filepath.Dir(self), "holdfast-demo")
			if _, err := os.Stat(bin); err != nil {
				return fault.New(fault.Invalid, "holdfast.demo", "run make demo in a checkout: it builds what the demo needs", "there is no holdfast-demo beside this binary")
			}
			demo := exec.CommandContext(cmd.Context(), bin, args...)
			demo.Env = append(os.Environ(), "HOLDFAST_BIN="+self)
			demo.Stdin, demo.Stdout, demo.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			demo.Cancel = func() error { return demo.Process.Signal(os.Interrupt) }
			err = demo.Run()
			var exit *exec.ExitError
			if errors.As(err, &exit) { // it has said why
				return errDemo{exit.ExitCode()}
			}
			return err
		},
	}
	return c
}

// errDemo passes the demo's exit code on.
type errDemo struct{ code int }

func (errDemo) Error() string { return "the demo did not end well" }
