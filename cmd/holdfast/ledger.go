package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/ledger/fsck"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// ledgerOrigin names the log; checkpoints are signed under it.
const ledgerOrigin = "holdfast.dev/ledger"

func ledgerDir(cfg *config.Loaded) string { return filepath.Join(cfg.StateDir, "ledger") }
func ledgerKey(cfg *config.Loaded) string { return filepath.Join(cfg.StateDir, "ledger.key") }
func ledgerPub(cfg *config.Loaded) string { return filepath.Join(cfg.StateDir, "ledger.pub") }

// openLedger opens the ledger for writing, which locks the state directory.
func (a *app) openLedger(ctx context.Context) (*ledger.Ledger, error) {
	cfg := a.cfg
	signer, vkey, err := ledger.LoadOrCreateKey(ledgerKey(cfg), ledgerOrigin)
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(ctx, ledger.Config{Dir: ledgerDir(cfg), Signer: signer, Verifier: vkey, OnLag: a.lags, OnUnsynced: a.unsynced})
	if err != nil {
		return nil, err
	}
	// A crash may have left files that were never put in their place. The lock says
	// that nobody is at it now.
	err = durable.Tidy(cfg.StateDir)
	pub := []byte(vkey + "\n")
	if now, rerr := os.ReadFile(ledgerPub(cfg)); rerr != nil || !bytes.Equal(now, pub) {
		err = errors.Join(err, durable.Replace(ledgerPub(cfg), pub))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("state directory: %w", err), l.Close())
	}
	return l, nil
}

// lags says that the ledger's signed checkpoint is behind, or no longer.
func (a *app) lags(ctx context.Context, lag ledger.Lag) {
	e := reconciler.Event{Type: reconciler.EventLedger, Key: "ledger/lag", Time: time.Now().UTC(), Resolved: lag.Entries == 0, Message: "the ledger's checkpoint caught up"}
	if lag.Entries == 0 {
		a.log.InfoContext(ctx, "the ledger's checkpoint caught up")
	} else {
		e.Message, e.Hint = "the ledger's checkpoint lags", "look at the state directory: disk full or slow?"
		a.log.ErrorContext(ctx, "the ledger's checkpoint lags", slog.Uint64("entries", lag.Entries), slog.Duration("for", lag.For), slog.String("hint", e.Hint))
	}
	a.herald.tell(e)
}

// unsynced says that documents of the ledger are durable in its journal only, or no longer.
func (a *app) unsynced(ctx context.Context, err error) {
	e := reconciler.Event{Type: reconciler.EventLedger, Key: "ledger/unsynced", Time: time.Now().UTC(), Resolved: err == nil, Message: "the ledger's documents are synced again"}
	if err == nil {
		a.log.InfoContext(ctx, "the ledger's documents are synced again")
	} else {
		e.Message, e.Hint = "the ledger's documents cannot be synced", fault.HintOf(err)
		a.log.ErrorContext(ctx, "the ledger's documents cannot be synced", slog.String("error", err.Error()), slog.String("hint", e.Hint))
	}
	a.herald.tell(e)
}

// ledgerFlags say where a ledger is: beside the operator's file, or anywhere
// with a verifier key, as an auditor has it.
type ledgerFlags struct {
	config, dir, key, output string
}

func (f *ledgerFlags) add(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&f.config, "config", "c", "", "operator's file; its state directory holds the ledger")
	c.Flags().StringVar(&f.dir, "dir", "", "folder of the ledger, instead of -c")
	c.Flags().StringVar(&f.key, "key", "", "verifier key of the ledger, or the file that holds it (ledger.pub); required with --dir")
	outputFlag(c, &f.output)
	return c
}

// resolve returns the ledger's folder and verifier key.
func (f *ledgerFlags) resolve() (dir, vkey string, err error) {
	dir, vkey = f.dir, f.key
	switch {
	case (f.config == "") == (f.dir == ""):
		return "", "", usageError{errors.New("give either -c or --dir")}
	case f.dir != "" && f.key == "":
		return "", "", usageError{errors.New("--dir needs --key: without a key from elsewhere a log proves nothing")}
	case f.config != "":
		cfg, err := config.Load(f.config)
		if err != nil {
			return "", "", err
		}
		dir = ledgerDir(cfg)
		if vkey == "" {
			vkey = ledgerPub(cfg)
		}
	}
	if b, err := os.ReadFile(vkey); err == nil {
		vkey = string(b)
	}
	return dir, strings.TrimSpace(vkey), nil
}

func (f *ledgerFlags) open() (*ledger.Reader, error) {
	dir, vkey, err := f.resolve()
	if err != nil {
		return nil, err
	}
	return ledger.OpenReader(dir, vkey)
}

// at opens the ledger for the entry whose index a person wrote.
func (f *ledgerFlags) at(index string) (*ledger.Reader, ledger.Index, error) {
	i, err := parseIndex(index)
	if err != nil {
		return nil, 0, err
	}
	r, err := f.open()
	return r, i, err
}

func newLedger() *cobra.Command {
	return group("ledger", "Read and check the log of decisions and changes",
		newLedgerVerify(), newLedgerList(), newLedgerShow(), newLedgerProve(), newLedgerReplay())
}

func newLedgerVerify() *cobra.Command {
	var f ledgerFlags
	c := &cobra.Command{
		Use: "verify", Short: "Check the whole ledger offline", Args: cobra.NoArgs,
		Long: "Check every entry, every tile and every body of a ledger against its signed\ncheckpoint, offline, with a checker that shares no code with the writer.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, vkey, err := f.resolve()
			if err != nil {
				return err
			}
			res, err := fsck.Check(cmd.Context(), fsck.DirReader(dir), fsck.Options{Verifiers: []string{vkey}})
			var problem *fsck.Problem
			switch {
			case errors.As(err, &problem):
				return fault.Wrap(fault.Denied, "ledger.verify", "compare with a copy of the checkpoint that you keep elsewhere; treat the log as tampered with until you know more",
					fmt.Errorf("the ledger does not verify: %w", err))
			case err != nil:
				return err
			}
			if f.output == "json" {
				return printJSON(cmd.OutOrStdout(), map[string]any{
					"origin": res.Origin, "size": res.Size, "root": hex.EncodeToString(res.Root[:]), "entries": res.Entries, "bodies": res.Bodies,
					"open": res.Open, "first": res.First, "last": res.Last,
				})
			}
			return printFsck(cmd.OutOrStdout(), res)
		},
	}
	return f.add(c)
}

func newLedgerList() *cobra.Command {
	var f ledgerFlags
	var stack, typ string
	var n int
	c := &cobra.Command{
		Use: "list", Short: "List entries, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := f.open()
			if err != nil {
				return err
			}
			entries := []ledger.Numbered{}
			err = r.Scan(cmd.Context(), 0, func(i ledger.Index, e ledger.Entry) error {
				if (stack == "" || e.Stack == stack) && (typ == "" || string(e.Type) == typ) {
					entries = append(entries, ledger.Numbered{Index: i, Entry: e})
				}
				return nil
			})
			if err != nil {
				return err
			}
			if n > 0 && len(entries) > n {
				entries = entries[len(entries)-n:]
			}
			if f.output == "json" {
				return printJSON(cmd.OutOrStdout(), entries)
			}
			rows := [][]string{{"INDEX", "TIME", "TYPE", "STACK", "OUTCOME", "REVISION", "NOTE"}}
			for _, e := range entries {
				source, id, _ := strings.Cut(e.Entry.Revision, "@")
				rev := "-"
				if id != "" {
					rev = source + "@" + short(id)
				}
				rows = append(rows, []string{strconv.FormatUint(uint64(e.Index), 10), e.Entry.Time.Format(time.RFC3339), string(e.Entry.Type),
					dash(e.Entry.Stack), dash(e.Entry.Outcome), rev, clip(e.Entry.Note)})
			}
			return table(cmd.OutOrStdout(), rows...)
		},
	}
	c.Flags().StringVar(&stack, "stack", "", "only entries of this stack")
	c.Flags().StringVar(&typ, "type", "", "only entries of this type")
	c.Flags().IntVarP(&n, "lines", "n", 0, "only the last N")
	return f.add(c)
}

func newLedgerShow() *cobra.Command {
	var f ledgerFlags
	c := &cobra.Command{
		Use: "show INDEX", Short: "Show an entry with its bodies", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, i, err := f.at(args[0])
			if err != nil {
				return err
			}
			e, err := r.Entry(cmd.Context(), i)
			if err != nil {
				return err
			}
			bodies := map[string]json.RawMessage{}
			for role, d := range e.Bodies {
				b, err := r.Body(cmd.Context(), d)
				if err != nil {
					return err
				}
				bodies[role] = b
			}
			return printJSON(cmd.OutOrStdout(), struct {
				Index  ledger.Index               `json:"index"`
				Entry  ledger.Entry               `json:"entry"`
				Bodies map[string]json.RawMessage `json:"bodies"`
			}{i, e, bodies})
		},
	}
	return f.add(c)
}

func newLedgerProve() *cobra.Command {
	var f ledgerFlags
	c := &cobra.Command{
		Use: "prove INDEX", Short: "Print a proof that an entry is in the log", Args: cobra.ExactArgs(1),
		Long: "Print a C2SP tlog-proof, which anybody can check offline with the ledger's\nverifier key and the entry; docs/ledger-format.md says how.",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, i, err := f.at(args[0])
			if err != nil {
				return err
			}
			proof, err := r.Prove(cmd.Context(), i)
			if err != nil {
				return err
			}
			if f.output == "json" {
				return printJSON(cmd.OutOrStdout(), map[string]string{"proof": string(proof), "digest": digest.FromBytes(proof).String()})
			}
			_, err = cmd.OutOrStdout().Write(proof)
			return err
		},
	}
	return f.add(c)
}

func parseIndex(s string) (ledger.Index, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, usageError{fmt.Errorf("%q is not the index of an entry", s)}
	}
	return ledger.Index(n), nil
}

func printFsck(w io.Writer, res fsck.Result) error {
	_, err := fmt.Fprintf(w, "The ledger verifies: %d entries, %d bodies, root %x.\n", res.Size, res.Bodies, res.Root)
	return err
}
