package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/term"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
)

func newReconcile() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use: "reconcile [STACK]", Short: "Look at the source now and apply; without a name every stack", Args: cobra.MaximumNArgs(1),
		Long: "Look at the repository now instead of at the next poll, apply the stack (or all) at\nthe newest verified commit, and wait until it is healthy.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.tell(cmd, command{Verb: "reconcile", Stack: optional(args)}, "reconciled "+all(args))
		},
	}
	return f.add(c)
}

func newSuspend() *cobra.Command {
	var f stackFlags
	var reason, until string
	c := &cobra.Command{
		Use: "suspend [STACK] --reason TEXT [--until TIME]", Short: "Keep a stack, or all, as they are", Args: cobra.MaximumNArgs(1),
		Long: "Apply nothing and revert nothing, until resume or the end that --until names (a time\nsuch as 2027-01-31T18:00:00Z, or a duration such as 2h). Commits are verified and\ndrift is reported all the same. It holds over a restart and is recorded.",
		RunE: func(cmd *cobra.Command, args []string) error {
			end, err := parseEnd(until, time.Now())
			if err != nil {
				return usageError{err}
			}
			return f.tell(cmd, command{Verb: "suspend", Stack: optional(args), Reason: reason, Until: end}, "suspended "+all(args))
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the person who reads it later (required)")
	c.Flags().StringVar(&until, "until", "", "when it ends by itself: RFC 3339, or a duration from now")
	return f.add(c)
}

// parseEnd reads a time or a duration from now; empty is no end.
func parseEnd(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(d).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("--until %s: want a time such as 2027-01-31T18:00:00Z or a duration such as 2h", s)
	}
	return t.UTC(), nil
}

func newResume() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use: "resume [STACK]", Short: "End a suspension", Args: cobra.MaximumNArgs(1),
		Long: "End the suspension of one stack, or every suspension without a name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.tell(cmd, command{Verb: "resume", Stack: optional(args)}, "resumed "+all(args))
		},
	}
	return f.add(c)
}

func all(args []string) string {
	if len(args) == 0 {
		return "all stacks"
	}
	return args[0]
}

// tell has a command carried out and says that it was.
func (f *stackFlags) tell(cmd *cobra.Command, c command, done string) error {
	out, err := f.ask(cmd, c)
	if err != nil {
		return err
	}
	if f.output == "json" {
		if err := printJSON(cmd.OutOrStdout(), out); err != nil {
			return err
		}
	}
	if out.Error != nil {
		return out.Error.err()
	}
	if f.output == "text" {
		fmt.Fprintln(cmd.OutOrStdout(), done)
	}
	return nil
}

func newApprove() *cobra.Command {
	var f stackFlags
	var reason string
	c := &cobra.Command{
		Use: "approve STACK FINDING... --reason TEXT", Short: "Revert drift that is held for a person", Args: cobra.MinimumNArgs(2),
		Long: "Restore what was granted where drift is only reported, asked about, or held back. Findings\nare named as holdfast drift and the notifications name them (d-3f9a2c71b04e). It is recorded\nbefore anything is written.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.tell(cmd, command{Verb: "approve", Stack: args[0], Refs: args[1:], Reason: reason}, "reverted "+strings.Join(args[1:], " "))
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the person who reads it later (required)")
	return f.add(c)
}

func newRevoke() *cobra.Command {
	var f stackFlags
	var reason, since string
	kinds := make([]string, len(verify.AnchorKinds))
	for i, k := range verify.AnchorKinds {
		kinds[i] = string(k)
	}
	c := &cobra.Command{
		Use: "revoke key|identity|digest|commit|policy VALUE --reason TEXT [--since TIME]", Short: "Take trust away, at once and for good",
		Args: cobra.ExactArgs(2), ValidArgs: kinds,
		Long: `Take trust away from a key, an identity, a digest, a commit or a policy. It is local,
needs no network, is recorded in the ledger, and has no end. From then on nothing that
rests on it is deployed; what runs and rests on it is not restored or scaled up any
more, its drift is reported, nothing is deleted, and people are told.

  key       SHA256:… of an SSH key (ssh-keygen -lf), the fingerprint of an OpenPGP key,
            or sha256:… of the DER encoding of another public key
  identity  the subject of a keyless certificate, or the name of a signer
  digest    sha256:… of an artifact
  commit    a full commit id
  policy    the digest of a policy set, as decisions in the ledger name it

Of a key or an identity --since says when it came into other hands (a time such as
2027-01-31T18:00:00Z, or 2h for two hours ago). What is known to have been there before
still counts: a signature by its entry in a log or its timestamp, a commit by when this
daemon first saw it. Where nothing proves the time, nothing counts. A later revocation
may reach back further, and never less.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(kinds, args[0]) {
				return usageError{fmt.Errorf("cannot revoke a %q; want one of %s", args[0], strings.Join(kinds, ", "))}
			}
			from, err := parseSince(since, time.Now())
			if err != nil {
				return usageError{err}
			}
			out, err := f.ask(cmd, command{Verb: "revoke", Anchor: verify.Anchor{Kind: verify.AnchorKind(args[0]), Value: args[1]}, Since: from, Reason: reason})
			if err != nil {
				return err
			}
			if f.output == "json" {
				if err := printJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			} else if out.Error == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "revoked %s %s\n", args[0], args[1])
				if len(out.Stacks) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "  nothing that runs rests on it")
				}
				for _, s := range out.Stacks {
					fmt.Fprintf(cmd.OutOrStdout(), "  %s runs what rests on it: it is not restored any more\n", s)
				}
			}
			return out.Error.err()
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required)")
	c.Flags().StringVar(&since, "since", "", "when it came into other hands: RFC 3339, or a duration back from now")
	return f.add(c)
}

// parseSince reads a time or a duration back from now; empty is always.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.IsZero() {
		return time.Time{}, fmt.Errorf("--since %s: want a time such as 2027-01-31T18:00:00Z or a duration such as 2h", s)
	}
	return t.UTC(), nil
}

func newRollback() *cobra.Command {
	return newOrder(reconciler.OrderRollback, "rollback STACK COMMIT --reason TEXT --key FILE", "Take a stack back to an older commit, by a signed order",
		`Take a stack back to an older commit of its branch. It is kept there until a newer commit
changes what the stack is made of; the commit that it leads away from is remembered.
Everything is verified and judged again, and drift is reverted to the older commit.`)
}

func newRecover() *cobra.Command {
	return newOrder(reconciler.OrderRecover, "recover REPOSITORY COMMIT --reason TEXT --key FILE", "Go on from a commit after the state directory was lost, by a signed order",
		`Say from which commit the history of a repository goes on: after the state directory was
lost or restored from an old backup, or after the branch was rewritten on purpose. The
commit must be signed as always. The marks that are kept with the targets are replaced,
and inventories that were written under a key that is lost are believed once more.`)
}

// newOrder makes the command for one kind of signed order.
func newOrder(kind, use, short, long string) *cobra.Command {
	var f stackFlags
	var reason, key, order, signature string
	var print bool
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.RangeArgs(0, 2),
		Long: long + `

An order is signed with an SSH key that orders: in the operator's file names: --key FILE,
a private key, or a public key whose private half an agent holds. To sign elsewhere,
print the order, sign it, and hand it in:

  holdfast ` + strings.Fields(use)[0] + ` … --print > order.json
  ssh-keygen -Y sign -n ` + commit.NamespaceOrder + ` -f KEY order.json
  holdfast ` + strings.Fields(use)[0] + ` --order order.json --signature order.json.sig`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if order != "" || signature != "" {
				return f.handIn(cmd, order, signature)
			}
			if len(args) != 2 {
				return usageError{fmt.Errorf("want a name and a commit\n%s", cmd.UseLine())}
			}
			if key == "" && !print {
				return usageError{errors.New("name a key with --key, or --print the order to sign it elsewhere")}
			}
			out, err := f.ask(cmd, command{Verb: "order", Kind: kind, Name: args[0], To: args[1], Reason: reason})
			if err != nil {
				return err
			}
			if out.Error != nil {
				return out.Error.err()
			}
			raw, err := json.Marshal(out.Order)
			if err != nil {
				return fmt.Errorf("order: %w", err)
			}
			if print {
				_, err := cmd.OutOrStdout().Write(raw)
				return err
			}
			signer, err := signerFrom(cmd, key)
			if err != nil {
				return err
			}
			sig, err := commit.SignDocument(commit.NamespaceOrder, raw, signer)
			if err != nil {
				return err
			}
			return f.tell(cmd, command{Verb: "obey", Order: raw, Signature: sig}, fmt.Sprintf("order taken: %s %s to %s", kind, args[0], args[1]))
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required)")
	c.Flags().StringVar(&key, "key", "", "SSH key to sign the order with")
	c.Flags().BoolVar(&print, "print", false, "print the order instead of signing it")
	c.Flags().StringVar(&order, "order", "", "file with an order that was signed elsewhere")
	c.Flags().StringVar(&signature, "signature", "", "file with its signature")
	return f.add(c)
}

// handIn hands in an order that was signed elsewhere.
func (f *stackFlags) handIn(cmd *cobra.Command, order, signature string) error {
	if order == "" || signature == "" {
		return usageError{errors.New("--order and --signature belong together")}
	}
	raw, err := os.ReadFile(order)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast.order", "", "%w", err)
	}
	sig, err := os.ReadFile(signature)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast.order", "", "%w", err)
	}
	return f.tell(cmd, command{Verb: "obey", Order: raw, Signature: sig}, "order taken")
}

// signerFrom returns a signer for the key in file: a private key, asking for its
// passphrase on a terminal, or a public key that an agent holds the other half of.
func signerFrom(cmd *cobra.Command, file string) (ssh.Signer, error) {
	const op = "holdfast.order"
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "", "key: %w", err)
	}
	if pub, _, _, _, err := ssh.ParseAuthorizedKey(b); err == nil {
		return agentSigner(cmd.Context(), pub)
	}
	signer, err := ssh.ParsePrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		pass, perr := askPassphrase(cmd, file)
		if perr != nil {
			return nil, perr
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(b, pass)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "name an SSH private key", "key %s: %w", file, err)
	}
	return signer, nil
}

func askPassphrase(cmd *cobra.Command, file string) ([]byte, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, fault.New(fault.Invalid, "holdfast.order", "load it into an agent and name the public key", "key %s has a passphrase, and there is no terminal to ask for it", file)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Passphrase for %s: ", file)
	pass, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return pass, nil
}

func agentSigner(ctx context.Context, pub ssh.PublicKey) (ssh.Signer, error) {
	const op, hint = "holdfast.order", "start an agent and add the key: ssh-add"
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return nil, fault.New(fault.Invalid, op, hint, "SSH agent: %w", err)
	}
	signers, err := agent.NewClient(conn).Signers() // the connection lives as long as the command
	if err != nil {
		return nil, errors.Join(fault.New(fault.Invalid, op, hint, "SSH agent: %w", err), conn.Close())
	}
	for _, s := range signers {
		if string(s.PublicKey().Marshal()) == string(pub.Marshal()) {
			return s, nil
		}
	}
	return nil, errors.Join(fault.New(fault.Invalid, op, hint, "the SSH agent does not hold %s", ssh.FingerprintSHA256(pub)), conn.Close())
}
