package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/oklog/run"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-dev/holdfast/internal/config"
)

// logFlags choose how the daemon talks.
type logFlags struct {
	format string
	debug  bool
}

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.format, "log-format", "", "text or json; text on a terminal, json elsewhere")
	c.Flags().BoolVar(&f.debug, "debug", false, "log more")
}

func (f *logFlags) logger(cmd *cobra.Command, sec *secrets) *slog.Logger {
	level := slog.LevelInfo
	if f.debug {
		level = slog.LevelDebug
	}
	format := f.format
	if format == "" {
		format = "json"
		if file, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			format = "text"
		}
	}
	return newLogger(cmd.ErrOrStderr(), format, level, sec)
}

func newRun() *cobra.Command {
	var file, requireSigned string
	var lf logFlags
	c := &cobra.Command{
		Use: "run -c FILE", Short: "Run the daemon", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			if requireSigned != "" {
				if requireSigned, err = filepath.Abs(requireSigned); err != nil {
					return err
				}
			}
			sec := &secrets{}
			return serve(cmd.Context(), cfg, lf.logger(cmd, sec), sec, requireSigned)
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&requireSigned, "require-signed", "", "allowed_signers file: one of its keys must have signed the operator's file, whatever that says itself")
	lf.add(c)
	return c
}

// configFlag adds the required -c.
func configFlag(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "config", "c", "", "operator's file")
	inner := c.PreRunE
	c.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *file == "" {
			return usageError{errors.New("name the operator's file with -c")}
		}
		if inner != nil {
			return inner(cmd, args)
		}
		return nil
	}
}

// serve runs the daemon until ctx ends or one of its parts does. requireSigned
// is the file that --require-signed names, or empty.
func serve(ctx context.Context, cfg *config.Loaded, log *slog.Logger, sec *secrets, requireSigned string) (err error) {
	a, err := newApp(ctx, cfg, log, sec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.awaitClock(ctx); err != nil || ctx.Err() != nil { // stopped while it waited
		return err
	}
	if err := a.started(ctx, requireSigned); err != nil {
		return err
	}
	var g run.Group
	add := func(name string, f func(context.Context) error) {
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}, func(error) { cancel() })
	}
	add("signals", func(ctx context.Context) error { <-ctx.Done(); return nil })
	add("memory", keepMemory)
	add("ledger", a.ledger.Run)
	add("targets", a.targets.run)
	add("reconciler", a.reconciler.Run)
	add("notifications", a.herald.run)
	if a.summaries != nil {
		add("summaries", a.summaries.Run)
	}
	if err := a.hooks(ctx, add); err != nil {
		return err
	}
	if err := a.audits(ctx, add); err != nil {
		return err
	}
	if err := a.listeners(ctx, add); err != nil {
		return err
	}
	log.InfoContext(ctx, "started", slog.String("version", version), slog.String("config", cfg.Path), slog.String("digest", cfg.Digest.String()),
		slog.String("http", cfg.Listen.HTTP), slog.String("socket", cfg.Listen.Socket))
	err = g.Run()
	log.InfoContext(ctx, "stopped")
	return err
}
