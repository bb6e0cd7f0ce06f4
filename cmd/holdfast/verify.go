package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/sources/git"
	"github.com/holdfast-dev/holdfast/verify"
)

func newVerify() *cobra.Command {
	return group("verify", "Check an artifact, a commit or a stack, and say why",
		newVerifyImage(), newVerifyChart(), newVerifyArtifact(), newVerifyCommit(), newVerifyStack(), newVerifyBundle())
}

// trustFlags name the rules: an operator's file, or a file with its trust:,
// registries: and repositories: sections alone.
type trustFlags struct{ config, trust, output string }

func (f *trustFlags) add(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&f.config, "config", "c", "", "operator's file")
	c.Flags().StringVar(&f.trust, "trust", "", "file with the sections trust:, registries: and repositories: alone, instead of -c")
	reportFlag(c, &f.output)
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

// evidenceReply is what is printed as JSON about one thing, reportReply what is
// about artifacts.
type (
	evidenceReply struct {
		Evidence verify.Evidence `json:"evidence"`
		Error    *replyError     `json:"error,omitempty"`
	}
	reportReply struct {
		Report verify.Report `json:"report"`
		Error  *replyError   `json:"error,omitempty"`
	}
)

// printEvidenceAs prints what was looked at about one thing, and returns verr.
func printEvidenceAs(cmd *cobra.Command, output string, e verify.Evidence, verr error) error {
	if output == "text" && len(e.Checks) == 0 { // the error says it all
		return verr
	}
	return printVerdict(cmd, output, evidenceReply{e, newReplyError(verr, asIs)}, []verify.Evidence{e}, verr)
}

// printReport prints what was looked at about artifacts, and returns verr.
func printReport(cmd *cobra.Command, output string, r verify.Report, verr error) error {
	return printVerdict(cmd, output, reportReply{r, newReplyError(verr, asIs)}, r.Evidence, verr)
}

func asIs(s string) string { return s }

// printVerdict prints reply as JSON, or evidence in another form, and returns verr.
func printVerdict(cmd *cobra.Command, output string, reply any, evidence []verify.Evidence, verr error) error {
	w := cmd.OutOrStdout()
	var err error
	switch output {
	case "json":
		err = printJSON(w, reply)
	case "sarif":
		err = printSARIF(w, evidence, verr)
	default:
		for _, e := range evidence {
			printEvidence(w, e)
		}
	}
	if err != nil {
		return err
	}
	return verr
}

func newVerifyImage() *cobra.Command {
	var f trustFlags
	var env string
	var suggest bool
	c := &cobra.Command{
		Use: "image REF", Short: "Check the signatures and attestations of an image", Args: cobra.ExactArgs(1),
		Long: "Resolve an image once, check everything that the trust rule for it asks for, and\nprint each check with its result. Exit code 3: it may not be deployed.\n\nWith --suggest, print the strictest rule that the image would pass, to paste.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if suggest {
				return f.suggest(cmd, args[0])
			}
			return f.verify(cmd, env, verify.Subject{Kind: verify.KindImage, Reference: args[0]})
		},
	}
	c.Flags().StringVar(&env, "env", "", "environment whose rules apply")
	c.Flags().BoolVar(&suggest, "suggest", false, "print the strictest rule that it would pass; the roots and keys of the file are tried, or the public Sigstore")
	return f.add(c)
}

func newVerifyChart() *cobra.Command {
	var f trustFlags
	var env, tag string
	c := &cobra.Command{
		Use: "chart REF [--version VERSION]", Short: "Check the signatures and attestations of a Helm chart in a registry", Args: cobra.ExactArgs(1),
		Long: `Resolve a Helm chart once, check that it is the chart and the version that were asked
for, and check everything that the trust rule for it asks for. REF is as helm writes it,
oci://host/path/name with --version, or with a tag or a digest.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := strings.TrimPrefix(args[0], "oci://")
			if tag != "" { // tags have no "+": https://helm.sh/docs/topics/registries/#oci-feature-deprecation-and-behavior-changes-with-v380
				ref += ":" + strings.ReplaceAll(tag, "+", "_")
			}
			return f.verify(cmd, env, verify.Subject{Kind: verify.KindChart, Reference: ref})
		},
	}
	c.Flags().StringVar(&env, "env", "", "environment whose rules apply")
	c.Flags().StringVar(&tag, "version", "", "version of the chart")
	return f.add(c)
}

func newVerifyArtifact() *cobra.Command {
	var f trustFlags
	var env, kind string
	c := &cobra.Command{
		Use: "artifact REF", Short: "Check the signatures and attestations of any artifact in a registry", Args: cobra.ExactArgs(1),
		Long: "Resolve an artifact once and check everything that the trust rule for its kind asks\nfor. The kinds: " + strings.Join(verify.KindNames(), ", ") + ".",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(verify.KindNames(), kind) {
				return usageError{fmt.Errorf("--kind %s: use one of %s", kind, strings.Join(verify.KindNames(), ", "))}
			}
			return f.verify(cmd, env, verify.Subject{Kind: kind, Reference: args[0]})
		},
	}
	c.Flags().StringVar(&env, "env", "", "environment whose rules apply")
	c.Flags().StringVar(&kind, "kind", verify.KindArtifact, "kind of artifact")
	return f.add(c)
}

// verify checks artifacts by the rules of an environment and prints the report.
func (f *trustFlags) verify(cmd *cobra.Command, env string, subjects ...verify.Subject) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	set, err := newArtifacts(cfg, &secrets{}, f.revoked(cmd, cfg), nil, nil)
	if err != nil {
		return err
	}
	if known := func(e config.Environment) bool { return e.Name == env }; env != "" && len(cfg.Environments) > 0 && !slices.ContainsFunc(cfg.Environments, known) {
		return usageError{fmt.Errorf("there is no environment %q in the operator's file", env)}
	}
	r, _, verr := set.Verify(cmd.Context(), env, subjects)
	return printReport(cmd, f.output, r, verr)
}

func newVerifyStack() *cobra.Command {
	var f renderFlags
	var trust trustFlags
	c := &cobra.Command{
		Use: "stack DIR", Short: "Check every artifact that a stack names", Args: cobra.ExactArgs(1),
		Long: "Render the stack whose stack.yaml is in DIR, as the operator's file grants it, and\ncheck every artifact that it names by the rules of its environment. A developer can\nrun it before merging. Exit code 3: something may not be deployed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if trust.config == "" {
				return usageError{errors.New("give the operator's file with -c")}
			}
			f.config, f.pin = trust.config, false
			rendered, env, err := f.rendered(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return trust.verify(cmd, env, rendered.Artifacts...)
		},
	}
	c.Flags().StringVarP(&trust.config, "config", "c", "", "operator's file")
	c.Flags().StringVar(&f.repository, "repository", "", "which repository of the operator's file DIR is in; needed where there are several")
	reportFlag(c, &trust.output)
	return c
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
			return printEvidenceAs(cmd, f.output, e, verr)
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
	verifier, err := newCommitVerifier(rc, &cfg.Trust, revoked, os.ReadFile)
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
