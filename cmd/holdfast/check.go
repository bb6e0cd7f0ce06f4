package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
	"github.com/holdfast-dev/holdfast/verify"
)

// checked is what check found out about one stack.
type checked struct {
	Stack       string            `json:"stack"`
	Dir         string            `json:"dir"`
	Environment string            `json:"environment,omitempty"`
	Target      string            `json:"target,omitempty"`
	Objects     int               `json:"objects"`
	Artifacts   []string          `json:"artifacts,omitempty"`
	Error       *replyError       `json:"error,omitempty"`
	Problems    []*config.Problem `json:"problems,omitempty"`
	// Access is what the account needs in the cluster; with --access only.
	Access []kubernetes.Right `json:"access,omitempty"`

	err error
}

func newCheck() *cobra.Command {
	var file, repo, name, schema, ref, output string
	var access bool
	c := &cobra.Command{
		Use: "check -c FILE [--repo DIR [--access]]", Short: "Check the operator's file, and a repository against it", Args: cobra.NoArgs,
		Long: `Check the operator's file: every field, every file that it names, every policy.
With --repo, check a working tree of a desired-state repository as well: every
stack file, whether the operator's map grants it, and whether it renders. No
cluster and no network is needed.

--access asks the clusters which rights the account lacks that the stacks need,
and prints the roles that would grant them. Nothing is written.

--schema operator|stack prints the JSON Schema of a file, for your editor, and
--reference operator|stack every field of it with its default and its meaning.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case schema != "":
				return printDocument(cmd, config.Schema, schema)
			case ref != "":
				return printDocument(cmd, config.Reference, ref)
			}
			if file == "" {
				return usageError{errors.New("name the operator's file with -c")}
			}
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			if access && repo == "" {
				return usageError{errors.New("--access is about the stacks of a repository: name it with --repo")}
			}
			found, grants, err := checkAll(cmd.Context(), cfg, repo, name, access)
			if err != nil {
				return err
			}
			if output == "json" {
				if found == nil {
					found = []checked{}
				}
				if err := printJSON(cmd.OutOrStdout(), checkReport{Config: cfg.Path, Digest: cfg.Digest, Stacks: found, Grants: grants}); err != nil {
					return err
				}
			} else if err := errors.Join(printChecked(cmd, cfg, found), printAccess(cmd.OutOrStdout(), found, grants)); err != nil {
				return err
			}
			return worst(found)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "operator's file")
	c.Flags().StringVar(&repo, "repo", "", "working tree of a desired-state repository")
	c.Flags().StringVar(&name, "repository", "", "which repository of the operator's file it is; needed where there are several")
	c.Flags().BoolVar(&access, "access", false, "ask the clusters which rights are missing")
	c.Flags().StringVar(&schema, "schema", "", "print the JSON Schema of the operator or the stack file")
	c.Flags().StringVar(&ref, "reference", "", "print every field of the operator or the stack file, in Markdown")
	outputFlag(c, &output)
	return c
}

// printDocument prints what was made of the types of a configuration file.
func printDocument(cmd *cobra.Command, make func(string) ([]byte, error), which string) error {
	b, err := make(which)
	if err != nil {
		return usageError{err}
	}
	_, err = cmd.OutOrStdout().Write(b)
	return err
}

// checkAll builds everything that the operator's file describes, and with a
// repository its stacks. It opens no state directory, and no connection but to
// ask for access, where it returns the missing roles by environment as well.
func checkAll(ctx context.Context, cfg *config.Loaded, dir, name string, access bool) ([]checked, map[string]string, error) {
	connect := anywhere
	if access {
		connect = restConfig
	}
	d, err := offline(ctx, cfg, name, connect)
	if err != nil || dir == "" {
		return nil, nil, err
	}
	snap, err := workingTree(dir, d.repo)
	if err != nil {
		return nil, nil, err
	}
	stacks, err := d.discover(ctx, snap)
	if err != nil {
		return nil, nil, err
	}
	out := make([]checked, 0, len(stacks))
	for _, s := range stacks {
		c := checked{Stack: s.Name, Dir: s.Dir, Environment: s.Environment, Target: s.TargetName, err: s.Err}
		if s.Err == nil {
			var r targets.Rendered
			t, err := s.Build()
			if err == nil {
				r, err = t.Render(ctx, snap)
			}
			c.err = err
			c.Objects = len(r.Documents)
			for _, a := range r.Artifacts {
				c.Artifacts = append(c.Artifacts, a.Reference)
			}
			if access && c.err == nil {
				c.Access, c.err = stackAccess(ctx, t, r)
			}
		}
		c.Error = newReplyError(c.err, asIs)
		c.Problems = config.Problems(c.err)
		out = append(out, c)
	}
	grants, err := missingRoles(ctx, d.targets.clusters, out)
	return out, grants, err
}

// offline wires up what needs no state and, until it is asked to, opens no connection.
func offline(ctx context.Context, cfg *config.Loaded, repository string, connect func(*config.Kubernetes) (*rest.Config, error)) (*discoverer, error) {
	sec := &secrets{}
	// Masks are compared with nothing here, so any key will do.
	if err := sec.use(make([]byte, 32), cfg); err != nil {
		return nil, err
	}
	if _, err := newSummaries(cfg, sec, new(verify.Revocations), slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	artifacts, err := newArtifacts(cfg, sec, new(verify.Revocations), nil, nil)
	if err != nil {
		return nil, err
	}
	trust, err := newArtifactTrust(cfg, sec, artifacts, new(verify.Revocations))
	if err != nil {
		return nil, err
	}
	ps, err := newPolicies(ctx, cfg, trust, nil)
	if err != nil {
		return nil, err
	}
	ts, err := newTargetSet(cfg, sec, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), connect)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i := range cfg.Repositories {
		_, err := newRepository(&cfg.Repositories[i], cfg, ts, ps, trust, new(verify.Revocations), nil)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if repository == "" {
		if len(cfg.Repositories) > 1 {
			return nil, usageError{errors.New("the operator's file has several repositories: say which with --repository")}
		}
		repository = cfg.Repositories[0].Name
	}
	return &discoverer{repo: repository, cfg: cfg, targets: ts, policies: ps}, nil
}

// anywhere is restConfig for a machine that may not be the daemon's: a
// kubeconfig is checked, and without one there is nothing to connect to.
func anywhere(k *config.Kubernetes) (*rest.Config, error) {
	if k.Kubeconfig == "" {
		return &rest.Config{Host: "https://127.0.0.1:1"}, nil
	}
	return restConfig(k)
}

// workingTree is a snapshot of a folder on disk. No path leads out of it.
func workingTree(dir, repository string) (*sources.Snapshot, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, "holdfast", "", "%w", err)
	}
	// The root stays open as long as the process: the snapshot reads lazily.
	return &sources.Snapshot{
		Revision: sources.Revision{Source: repository, ID: "working-tree"},
		Tree:     digest.FromString("working-tree"),
		FS:       withoutGit{root.FS()},
	}, nil
}

// withoutGit hides .git, which no commit contains.
type withoutGit struct{ fs.FS }

func (f withoutGit) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(f.FS, name)
	out := all[:0]
	for _, e := range all {
		if e.Name() != ".git" {
			out = append(out, e)
		}
	}
	return out, err
}

func printChecked(cmd *cobra.Command, cfg *config.Loaded, found []checked) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s is valid: %d repositories, %d environments, %d trust rules.\n", cfg.Path, len(cfg.Repositories), len(cfg.Environments), len(cfg.Trust.Rules))
	for _, old := range oldRoots(cfg, time.Now()) {
		fmt.Fprintf(w, "note: root of trust %s may be out of date: it was last changed on %s\n", old.Name, old.Changed.Format(time.DateOnly))
	}
	if cfg.Signed != nil {
		fmt.Fprintf(w, "signed.files: %s\n", cfg.FilesDigest())
	}
	if len(found) == 0 {
		return nil
	}
	rows := [][]string{{"STACK", "FOLDER", "ENVIRONMENT", "TARGET", "DOCUMENTS", "ARTIFACTS", "RESULT"}}
	for _, c := range found {
		result := "ok"
		if c.Error != nil {
			result = c.Error.Kind
		}
		rows = append(rows, []string{c.Stack, c.Dir, dash(c.Environment), dash(c.Target), fmt.Sprint(c.Objects), fmt.Sprint(len(c.Artifacts)), result})
	}
	return table(w, rows...)
}

// worst joins what was found, so that each is printed; a denial decides the
// exit code only where nothing is invalid.
func worst(found []checked) error {
	var invalid, denied []error
	for _, c := range found {
		switch {
		case c.err == nil:
		case fault.KindOf(c.err) == fault.Denied:
			denied = append(denied, fault.WithStack(c.Stack, c.err))
		default:
			invalid = append(invalid, fault.WithStack(c.Stack, c.err))
		}
	}
	return errors.Join(append(invalid, denied...)...)
}
