package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/sources/git"
	"github.com/holdfast-dev/holdfast/verify"
)

func newVerify() *cobra.Command {
	return group("verify", "Check one artifact or one commit, and say why", newVerifyImage(), newVerifyCommit())
}

// trustFlags name the rules: an operator's file, or a file with its trust:,
// registries: and repositories: sections alone.
type trustFlags struct{ config, trust, output string }

func (f *trustFlags) add(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&f.config, "config", "c", "", "operator's file")
	c.Flags().StringVar(&f.trust, "trust", "", "file with the sections trust:, registries: and repositories: alone, instead of -c")
	outputFlag(c, &f.output)
	return c
}

func (f *trustFlags) load() (*config.Loaded, error) {
	switch {
	case (f.config == "") == (f.trust == ""):
		return nil, usageError{errors.New("give either -c or --trust")}
	case f.config != "":
		return config.Load(f.config)
	default:
		return config.LoadTrust(f.trust)
	}
}

// revoked returns what the daemon that has this state directory was told not to
// trust any more. Whoever may not read that is told, and judges without.
func (f *trustFlags) revoked(cmd *cobra.Command, cfg *config.Loaded) *verify.Revocations {
	out, err := recordedRevocations(cmd.Context(), cfg)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "holdfast: note: what the daemon revoked is not known here: %v\n", err)
	}
	return out
}

func newVerifyImage() *cobra.Command {
	var f trustFlags
	var env string
	c := &cobra.Command{
		Use: "image REF", Short: "Check the signatures and attestations of an image", Args: cobra.ExactArgs(1),
		Long: "Resolve an image once, check everything that the trust rule for it asks for, and\nprint each check with its result. Exit code 3: it may not be deployed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			set, err := newArtifacts(cfg, &secrets{}, f.revoked(cmd, cfg), nil)
			if err != nil {
				return err
			}
			report, _, verr := set.Verify(cmd.Context(), env, []verify.Subject{{Kind: verify.KindImage, Reference: args[0]}})
			if f.output == "json" {
				if err := printJSON(cmd.OutOrStdout(), struct {
					Report verify.Report `json:"report"`
					Error  *replyError   `json:"error,omitempty"`
				}{report, newReplyError(verr, func(s string) string { return s })}); err != nil {
					return err
				}
				return verr
			}
			for _, e := range report.Evidence {
				printEvidence(cmd.OutOrStdout(), e)
			}
			return verr
		},
	}
	c.Flags().StringVar(&env, "env", "", "environment whose rules apply")
	return f.add(c)
}

func newVerifyCommit() *cobra.Command {
	var f trustFlags
	var repo, name, from string
	c := &cobra.Command{
		Use: "commit REV", Short: "Check who authorised a commit", Args: cobra.ExactArgs(1),
		Long: "Judge the history up to a commit along first parents: each step's signature, and\nwhether its signer may change each path in it. It starts at --from, at the\noperator's anchor, or at the beginning. Exit code 3: it is not authorised.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			e, verr := verifyCommit(cmd.Context(), cfg, f.revoked(cmd, cfg), name, repo, from, args[0])
			if f.output == "json" {
				if err := printJSON(cmd.OutOrStdout(), struct {
					Evidence verify.Evidence `json:"evidence"`
					Error    *replyError     `json:"error,omitempty"`
				}{e, newReplyError(verr, func(s string) string { return s })}); err != nil {
					return err
				}
				return verr
			}
			if len(e.Checks) > 0 {
				printEvidence(cmd.OutOrStdout(), e)
			}
			return verr
		},
	}
	c.Flags().StringVar(&repo, "repo", ".", "clone of the repository")
	c.Flags().StringVar(&name, "repository", "", "which repository of the operator's file it is; needed where there are several")
	c.Flags().StringVar(&from, "from", "", "commit up to which the history is trusted")
	return f.add(c)
}

func verifyCommit(ctx context.Context, cfg *config.Loaded, revoked *verify.Revocations, name, dir, from, rev string) (verify.Evidence, error) {
	var rc *config.Repository
	for i := range cfg.Repositories {
		if name == "" && len(cfg.Repositories) == 1 || cfg.Repositories[i].Name == name {
			rc = &cfg.Repositories[i]
		}
	}
	if rc == nil {
		return verify.Evidence{}, usageError{fmt.Errorf("say with --repository which of the %d repositories it is", len(cfg.Repositories))}
	}
	verifier, err := newCommitVerifier(rc, revoked)
	if err != nil {
		return verify.Evidence{}, err
	}
	history, err := git.OpenClone(rc.Name, dir)
	if err != nil {
		return verify.Evidence{}, err
	}
	defer history.Close() //nolint:errcheck // read only
	head, err := history.Resolve(rev)
	if err != nil {
		return verify.Evidence{}, err
	}
	if from != "" {
		if from, err = history.Resolve(from); err != nil {
			return verify.Evidence{}, err
		}
	}
	return verifier.Verify(ctx, history, from, head, time.Now())
}
