package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
)

const (
	logLines    = 50   // kept for each stack
	logLine     = 2048 // bytes of one line
	logFollower = 256  // lines that a follower may be behind before it loses some
)

// logRing keeps the newest lines of the log about each stack, masked, for
// holdfast logs.
type logRing struct {
	scrub func(string) string

	mu        sync.Mutex
	stacks    map[string][]string
	followers map[chan string]string // to the stack that it follows
}

func newLogRing(scrub func(string) string) *logRing {
	return &logRing{scrub: scrub, stacks: map[string][]string{}, followers: map[chan string]string{}}
}

// tee returns a handler that keeps what is about a stack, and passes all on.
func (r *logRing) tee(next slog.Handler) slog.Handler { return ringHandler{next: next, ring: r} }

type ringHandler struct {
	next slog.Handler
	ring *logRing
	with []slog.Attr
}

func (h ringHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h ringHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.next, h.with = h.next.WithAttrs(attrs), append(slices.Clip(h.with), attrs...)
	return h
}

func (h ringHandler) WithGroup(name string) slog.Handler {
	h.next = h.next.WithGroup(name)
	return h
}

func (h ringHandler) Handle(ctx context.Context, rec slog.Record) error {
	var stack string
	var line strings.Builder
	fmt.Fprintf(&line, "%s %-5s %s", rec.Time.UTC().Format(time.RFC3339), rec.Level, rec.Message)
	note := func(a slog.Attr) bool {
		if a.Key == "stack" {
			stack = a.Value.String()
		} else if v := a.Value.Resolve().String(); v != "" {
			fmt.Fprintf(&line, "  %s=%s", a.Key, strings.ReplaceAll(v, "\n", "\n    "))
		}
		return true
	}
	for _, a := range h.with {
		note(a)
	}
	rec.Attrs(note)
	if stack != "" {
		h.ring.add(stack, line.String())
	}
	return h.next.Handle(ctx, rec)
}

func (r *logRing) add(stack, line string) {
	if line = printable(r.scrub(line)); len(line) > logLine {
		line = strings.ToValidUTF8(line[:logLine], "") + "…"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := append(r.stacks[stack], line)
	if len(kept) > logLines {
		kept = slices.Clone(kept[len(kept)-logLines:])
	}
	r.stacks[stack] = kept
	for ch, want := range r.followers {
		if want != stack {
			continue
		}
		select {
		case ch <- line:
		default: // it is too slow, and must not hold up the daemon
		}
	}
}

// follow returns what is kept about a stack, and a channel with what comes.
func (r *logRing) follow(stack string) (kept []string, ch chan string, stop func()) {
	ch = make(chan string, logFollower)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followers[ch] = stack
	return slices.Clone(r.stacks[stack]), ch, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.followers, ch)
	}
}

// serveLogs answers with the log of one stack, one line of text at a time.
func (a *app) serveLogs(w http.ResponseWriter, r *http.Request) {
	kept, ch, stop := a.logs.follow(r.FormValue("stack"))
	defer stop()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	flush := http.NewResponseController(w)
	send := func(line string) bool {
		_, err := io.WriteString(w, line+"\n")
		return err == nil && flush.Flush() == nil
	}
	for _, line := range kept {
		if !send(line) {
			return
		}
	}
	if r.FormValue("follow") == "" {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case line := <-ch:
			if !send(line) {
				return
			}
		}
	}
}

func newLogs() *cobra.Command {
	var file string
	var follow bool
	c := &cobra.Command{
		Use: "logs STACK", Short: "Show what the daemon said about a stack", Args: cobra.ExactArgs(1),
		Long: "Show the newest lines of the daemon's log about one stack. Without a daemon, show\nwhat the ledger says about it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			q := url.Values{"stack": args}
			if follow {
				q.Set("follow", "true")
			}
			resp, running, err := dial(cmd.Context(), cfg.Listen.Socket, http.MethodGet, "logs?"+q.Encode(), nil)
			switch {
			case err != nil:
				return err
			case running:
				defer resp.Body.Close() //nolint:errcheck // read only
				return copyLines(cmd, resp.Body)
			case follow:
				return fault.New(fault.Waiting, "holdfast.logs", "start it: holdfast run", "no daemon answers on %s", cfg.Listen.Socket)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "holdfast: no daemon answers on "+cfg.Listen.Socket+"; this is what the ledger says")
			return ledgerLog(cmd, cfg, args[0])
		},
	}
	c.Flags().StringVarP(&file, "config", "c", defaultConfig, "operator's file: names the daemon's socket")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return c
}

func copyLines(cmd *cobra.Command, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), lines.Text()); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	if err := lines.Err(); err != nil && cmd.Context().Err() == nil {
		return fault.New(fault.Transient, "holdfast.logs", "", "the daemon went away: %w", err)
	}
	return nil
}

// ledgerLog prints the newest entries about a stack.
func ledgerLog(cmd *cobra.Command, cfg *config.Loaded, stack string) error {
	f := ledgerFlags{dir: ledgerDir(cfg), key: ledgerPub(cfg)}
	reader, err := f.open()
	if err != nil {
		return err
	}
	var kept []string
	err = reader.Scan(cmd.Context(), 0, func(_ ledger.Index, e ledger.Entry) error {
		if e.Stack == stack {
			kept = append(kept, fmt.Sprintf("%s %s %s %s", e.Time.Format(time.RFC3339), e.Type, e.Outcome, e.Note))
			kept = kept[max(0, len(kept)-logLines):]
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, line := range kept {
		fmt.Fprintln(cmd.OutOrStdout(), line)
	}
	return nil
}
