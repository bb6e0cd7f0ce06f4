package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets"
)

// defaultConfig is where a command looks for the operator's file without -c.
const defaultConfig = "/etc/holdfast/holdfast.yaml"

// stackFlags are those of the commands that ask the daemon, or work alone.
type stackFlags struct {
	config, output string
	verbose        bool
}

func (f *stackFlags) add(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&f.config, "config", "c", defaultConfig, "operator's file: names the daemon's socket, and what to work with when no daemon runs")
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log to stderr when no daemon runs")
	outputFlag(c, &f.output)
	return c
}

// ask asks the daemon. Without one the command works alone, under the lock of
// the state directory.
func (f *stackFlags) ask(cmd *cobra.Command, c command) (reply, error) {
	ctx := cmd.Context()
	cfg, err := config.Load(f.config)
	if err != nil {
		return reply{}, err
	}
	out, running, err := call(ctx, cfg.Listen.Socket, c)
	if running || err != nil {
		return out, err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "holdfast: no daemon answers on "+cfg.Listen.Socket+"; working alone")
	sec := &secrets{}
	w := io.Discard
	if f.verbose {
		w = cmd.ErrOrStderr()
	}
	return alone(ctx, cfg, newLogger(w, "text", slog.LevelInfo, sec), sec, c)
}

// alone opens the state directory, takes the newest commits and does one
// command. It holds the lock of the state directory, so that no daemon works on
// it meanwhile, and writes to a cluster only with the lease there.
func alone(ctx context.Context, cfg *config.Loaded, log *slog.Logger, sec *secrets, c command) (out reply, err error) {
	a, err := newApp(ctx, cfg, log, sec)
	if errors.Is(err, ledger.ErrLocked) {
		return reply{}, fault.Wrap(fault.Waiting, "holdfast", "if its socket does not answer, look at its log: it may be waiting for the clock; else stop it", err)
	}
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	required, err := requiredBefore(cfg)
	if err != nil {
		return reply{}, err
	}
	if c.lasting() {
		err = a.started(ctx, required)
	} else { // a file that the daemon would refuse decides nothing here either
		_, err = a.admission(ctx, required)
	}
	if err != nil {
		return reply{}, err
	}
	if c.local() {
		if err := a.reconciler.TakeUp(ctx); err != nil {
			return reply{}, err
		}
		return a.do(ctx, c), nil
	}
	ctx, stop := context.WithCancel(ctx)
	shared := make(chan error, 1)
	go func() { shared <- a.targets.run(ctx) }()
	defer func() {
		stop()
		err = errors.Join(err, <-shared)
	}()
	syncErr := a.reconciler.Sync(ctx)
	if len(a.reconciler.Status().Stacks) == 0 && syncErr != nil {
		return reply{}, syncErr
	}
	out = a.do(ctx, c)
	if out.Error == nil {
		out.Error = newReplyError(syncErr, sec.scrub)
	}
	return out.masked(sec.scrub)
}

func newPlan() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use: "plan STACK", Short: "Show what would change and whether it would be allowed", Args: cobra.ExactArgs(1),
		Long: "Verify, render, judge and plan one stack at the newest commit, and write nothing.\nExit code 4: there are changes; 3: they are denied.",
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := f.ask(cmd, command{Verb: "plan", Stack: args[0]})
			if err != nil {
				return err
			}
			if err := f.proposal(cmd, out); err != nil {
				return err
			}
			if out.Proposal != nil && !out.Proposal.Plan.Empty() {
				return errChanges
			}
			return nil
		},
	}
	return f.add(c)
}

func newApply() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use: "apply STACK", Short: "Bring one stack to the newest verified commit now", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := f.ask(cmd, command{Verb: "apply", Stack: args[0]})
			if err != nil {
				return err
			}
			return f.proposal(cmd, out)
		},
	}
	return f.add(c)
}

// proposal prints a proposal and returns the error that came with it.
func (f *stackFlags) proposal(cmd *cobra.Command, out reply) error {
	w := cmd.OutOrStdout()
	if f.output == "json" {
		if err := printJSON(w, out); err != nil {
			return err
		}
		return out.Error.err()
	}
	w = printing{w}
	if p := out.Proposal; p != nil {
		for _, e := range p.Report.Evidence {
			printEvidence(w, e)
		}
		printDecision(w, p.Rendered)
		printDecision(w, p.Planned)
		if p.Plan.Stack != "" {
			printPlan(w, p.Plan)
		}
	}
	return out.Error.err()
}

func newDrift() *cobra.Command {
	var f stackFlags
	var patch, unmanaged bool
	var branch string
	c := &cobra.Command{
		Use: "drift [STACK]", Short: "Compare with the live world now, and change nothing", Args: cobra.MaximumNArgs(1),
		Long: `Compare one stack, or all, with the live world and print what differs from what
was granted. Exit code 4: something does.

With --patch print the difference as a patch of the repository: merged, it makes what is
live what is declared (holdfast drift shop-web --patch | git apply). With --branch make it
a commit on a new branch of the clone that you are in, on top of the commit that the stack
stands at, signed as you sign; your files stay as they are. Push it to open a pull request.

With --unmanaged list the objects that no stack declares in the namespaces where stacks
have theirs. They are no drift, and nothing is done about them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if patch {
				if len(args) == 0 {
					return usageError{errors.New("--patch needs the name of a stack")}
				}
				return f.patch(cmd, args[0])
			}
			if cmd.Flags().Changed("branch") {
				if len(args) == 0 {
					return usageError{errors.New("--branch needs the name of a stack")}
				}
				return f.branch(cmd, args[0], branch)
			}
			if unmanaged {
				return f.unmanaged(cmd, optional(args))
			}
			out, err := f.ask(cmd, command{Verb: "drift", Stack: optional(args)})
			if err != nil {
				return err
			}
			if f.output == "json" {
				if err := printJSON(cmd.OutOrStdout(), struct {
					Findings []targets.Finding `json:"findings"`
					Error    *replyError       `json:"error,omitempty"`
				}{append([]targets.Finding{}, out.Findings...), out.Error}); err != nil {
					return err
				}
			} else {
				printFindings(printing{cmd.OutOrStdout()}, out.Findings)
			}
			if out.Error != nil {
				return out.Error.err()
			}
			if len(out.Findings) > 0 {
				return errChanges
			}
			if f.output == "text" {
				fmt.Fprintln(cmd.OutOrStdout(), "No drift.")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&patch, "patch", false, "print what differs as a patch of the repository")
	c.Flags().StringVar(&branch, "branch", "", "commit what differs to a new branch of the clone in this folder")
	c.Flags().BoolVar(&unmanaged, "unmanaged", false, "list what no stack declares beside what stacks have")
	c.MarkFlagsMutuallyExclusive("patch", "unmanaged", "branch")
	return f.add(c)
}

// unmanaged prints what no stack declares beside what one stack has, or all.
func (f *stackFlags) unmanaged(cmd *cobra.Command, stack string) error {
	out, err := f.ask(cmd, command{Verb: "unmanaged", Stack: stack})
	if err != nil {
		return err
	}
	if f.output == "json" {
		if err := printJSON(cmd.OutOrStdout(), struct {
			Objects []targets.Finding `json:"objects"`
			Unseen  []string          `json:"unseen,omitempty"`
			Error   *replyError       `json:"error,omitempty"`
		}{append([]targets.Finding{}, out.Findings...), out.Unseen, out.Error}); err != nil {
			return err
		}
	} else {
		printFindings(printing{cmd.OutOrStdout()}, out.Findings)
		if len(out.Findings) == 0 && out.Error == nil {
			fmt.Fprintln(cmd.OutOrStdout(), "Nothing is unmanaged.")
		}
		if len(out.Unseen) > 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "not listed, since the account may not:", strings.Join(out.Unseen, ", "))
		}
	}
	if out.Error != nil {
		return out.Error.err()
	}
	return nil
}

// patch prints the drift of a stack as a patch.
func (f *stackFlags) patch(cmd *cobra.Command, stack string) error {
	out, err := f.ask(cmd, command{Verb: "patch", Stack: stack})
	if err != nil {
		return err
	}
	if f.output == "json" {
		if err := printJSON(cmd.OutOrStdout(), out); err != nil {
			return err
		}
	} else {
		fmt.Fprint(cmd.OutOrStdout(), out.Patch)
	}
	switch {
	case out.Error != nil:
		return out.Error.err()
	case out.Patch != "":
		return errChanges
	}
	return nil
}

func newStatus() *cobra.Command {
	var f stackFlags
	var watch bool
	c := &cobra.Command{
		Use: "status [STACK]", Short: "Show where every stack stands", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return f.watch(cmd, optional(args))
			}
			out, err := f.ask(cmd, command{Verb: "status"})
			if err != nil {
				return err
			}
			if out.Overview == nil {
				return out.Error.err()
			}
			return f.status(cmd, *out.Overview, optional(args))
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and print what changes; on a terminal the page is drawn again")
	return f.add(c)
}

// status prints the overview, or one stack of it.
func (f *stackFlags) status(cmd *cobra.Command, o reconciler.Overview, name string) error {
	switch {
	case name != "":
		return f.one(cmd, o, name)
	case f.output == "json":
		return printJSON(cmd.OutOrStdout(), o)
	}
	return printStatus(printing{cmd.OutOrStdout()}, o)
}

// watchEvery is how often status --watch looks.
const watchEvery = time.Second

// watch prints the status again and again: the page anew on a terminal, else a
// line for each stack whose state changed.
func (f *stackFlags) watch(cmd *cobra.Command, name string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	file, ok := w.(*os.File)
	page := ok && term.IsTerminal(int(file.Fd())) && f.output == "text"
	cfg, err := config.Load(f.config)
	if err != nil {
		return err
	}
	last := map[string]string{}
	for ctx.Err() == nil {
		out, running, err := call(ctx, cfg.Listen.Socket, command{Verb: "status"})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !running:
			return fault.New(fault.Waiting, "holdfast.status", "start it: holdfast run", "no daemon answers on %s", cfg.Listen.Socket)
		case out.Overview == nil:
			return out.Error.err()
		}
		if page {
			fmt.Fprint(w, "\x1b[H\x1b[2J\x1b[3J")
			if err := f.status(cmd, *out.Overview, name); err != nil {
				return err
			}
		} else if err := f.changes(w, *out.Overview, name, last); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchEvery):
		}
	}
	return nil
}

// changes prints the stacks whose state is not the one in last, and notes it there.
func (f *stackFlags) changes(w io.Writer, o reconciler.Overview, name string, last map[string]string) error {
	for _, s := range o.Stacks {
		state := fmt.Sprintf("%s %s %s %d", s.Phase, s.Applied, s.Message, len(s.Findings))
		if name != "" && s.Stack != name || last[s.Stack] == state {
			continue
		}
		last[s.Stack] = state
		if f.output == "json" {
			if err := json.NewEncoder(w).Encode(s); err != nil {
				return fmt.Errorf("print: %w", err)
			}
			continue
		}
		fmt.Fprintf(printing{w}, "%s  %-12s %-12s %s  %s\n", s.Since.Format(time.RFC3339), s.Stack, s.Phase, dash(short(s.Applied)), clip(firstLine(s.Message)))
	}
	return nil
}

// one prints the status of one stack in full.
func (f *stackFlags) one(cmd *cobra.Command, o reconciler.Overview, name string) error {
	for _, s := range o.Stacks {
		if s.Stack != name {
			continue
		}
		if f.output == "json" {
			return printJSON(cmd.OutOrStdout(), s)
		}
		w := printing{cmd.OutOrStdout()}
		if err := table(w, []string{"stack", s.Stack}, []string{"repository", s.Repository}, []string{"folder", s.Dir},
			[]string{"environment", dash(s.Environment)}, []string{"target", dash(s.Target)}, []string{"phase", string(s.Phase)},
			[]string{"desired", dash(s.Desired)}, []string{"applied", dash(s.Applied)}, []string{"drift mode", dash(string(s.DriftMode))}); err != nil {
			return err
		}
		if s.Message != "" {
			fmt.Fprintf(w, "\n%s\n", s.Message)
		}
		if s.Hint != "" {
			fmt.Fprintf(w, "hint: %s\n", s.Hint)
		}
		if rb := s.RolledBack; rb != nil {
			fmt.Fprintf(w, "\nrolled back from %s to %s since %s, until a newer commit changes the stack: %s\n", short(rb.From), short(rb.To), rb.Since.Format(time.RFC3339), rb.Reason)
		}
		if s.Revoked != "" {
			fmt.Fprintf(w, "\nwhat runs is not restored any more: %s\n", s.Revoked)
		}
		printFindings(w, s.Findings)
		return nil
	}
	return fault.New(fault.Invalid, "holdfast.status", "holdfast status lists the stacks", "there is no stack %q", name)
}

func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
