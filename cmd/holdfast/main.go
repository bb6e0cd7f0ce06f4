// Command holdfast is the daemon and its command line. It owns flags, wiring
// and output, and is the only package that imports implementations of sources,
// verifiers, policies and targets.
//
// It guarantees stable exit codes (0 ok, 1 error, 2 usage, 3 denied, 4 drift or
// changes found), results on stdout and talk on stderr. It refuses to print a
// secret: everything that leaves goes through the scrubber.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// The exit codes, see docs/cli.md.
const (
	exitOK = iota
	exitError
	exitUsage
	exitDenied
	exitChanges
)

// errChanges makes a command exit with exitChanges and no message.
var errChanges = errors.New("changes found")

// errDenied makes a command exit with exitDenied and no message: it has said
// on stdout what was refused.
var errDenied = errors.New("denied")

// usageError is a mistake on the command line.
type usageError struct{ error }

func main() {
	worker()
	noCoreDumps()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Main runs one command and returns its exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.ExecuteContext(ctx))
}

// report prints err for a person and returns the exit code that it means.
func report(w io.Writer, err error) int {
	var usage usageError
	var demo errDemo
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errChanges):
		return exitChanges
	case errors.Is(err, errDenied):
		return exitDenied
	case errors.As(err, &demo):
		return demo.code
	case errors.As(err, &usage):
		fmt.Fprintf(w, "holdfast: error: %v\n", err)
		return exitUsage
	}
	for _, e := range flatten(err) {
		explain(printing{w}, e)
	}
	if fault.KindOf(err) == fault.Denied {
		return exitDenied
	}
	return exitError
}

// flatten returns the errors that err joins.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) // takes the tree apart
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// explain prints one error and what to do about it.
func explain(w io.Writer, err error) {
	problems := config.Problems(err)
	for _, p := range problems {
		fmt.Fprintf(w, "holdfast: error: %v\n", p)
		if p.Hint != "" {
			fmt.Fprintf(w, "holdfast: hint: %s\n", p.Hint)
		}
	}
	if len(problems) > 0 {
		return
	}
	fmt.Fprintf(w, "holdfast: error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintf(w, "holdfast: hint: %s\n", hint)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Verify, judge and apply desired state, and keep it so",
		Long: `Holdfast watches a desired-state Git repository. It proves that each commit, and
each artifact that the rendered result names, may be trusted; judges the change
by policy; applies exactly what it judged, at the verified digests; and keeps
comparing the live world with it.

Exit codes: 0 ok, 1 error, 2 usage, 3 denied, 4 drift or changes found.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see holdfast --help", args[0])}
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newRun(), newCheck(), newRender(), newVerify(), newPolicy(),
		newPlan(), newApply(), newDrift(), newStatus(), newLogs(),
		newAdmission(), newReconcile(), newApprove(), newSuspend(), newResume(), newRollback(), newRecover(), newRevoke(),
		newLedger(), newDemo(), newVersion(),
	)
	for _, c := range allCommands(root) {
		if c.Args == nil {
			continue
		}
		check := c.Args
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w\n%s", err, cmd.UseLine())}
			}
			return nil
		}
	}
	return root
}

func allCommands(c *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		out = append(out, allCommands(sub)...)
	}
	return out
}

// group is a command that only holds others. Without one of them it is a
// usage error, not a page of help with exit code 0.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return usageError{fmt.Errorf("%s needs a subcommand; see %s --help", cmd.CommandPath(), cmd.CommandPath())}
		},
	}
	c.AddCommand(subs...)
	return c
}
