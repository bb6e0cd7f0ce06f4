package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// branch makes what is live of a stack a commit on a new branch of the clone that the
// command runs in. The daemon has no leave to write to a repository: whoever may, pushes it.
func (f *stackFlags) branch(cmd *cobra.Command, stack, name string) error {
	out, err := f.ask(cmd, command{Verb: "patch", Stack: stack})
	if err != nil {
		return err
	}
	if out.Error != nil {
		return out.Error.err()
	}
	if out.Patch == "" {
		fmt.Fprintln(cmd.OutOrStdout(), "No drift.")
		return nil
	}
	files, err := adoptOnBranch(cmd.Context(), name, stack, out.Revision, out.Patch)
	if err != nil {
		return err
	}
	if f.output == "json" {
		return printJSON(cmd.OutOrStdout(), struct {
			Branch   string   `json:"branch"`
			Revision string   `json:"revision"`
			Files    []string `json:"files"`
		}{name, out.Revision, files})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "branch %s: %s, on %.12s\nOpen a pull request: git push origin %s\n", name, strings.Join(files, ", "), out.Revision, name)
	return nil
}

// adoptOnBranch commits a patch of revision on a new branch, and returns the files that it
// changes. Neither the work tree nor the index nor HEAD is touched.
func adoptOnBranch(ctx context.Context, branch, stack, revision, patch string) ([]string, error) {
	const op = "holdfast.drift"
	dir, err := os.MkdirTemp("", "holdfast-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary index
	git := func(input string, args ...string) (string, error) {
		c := exec.CommandContext(ctx, "git", args...)
		c.Env = append(os.Environ(), "GIT_INDEX_FILE="+filepath.Join(dir, "index"))
		c.Stdin = strings.NewReader(input)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		b, err := c.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
		}
		return strings.TrimSpace(string(b)), nil
	}
	if _, err := git("", "check-ref-format", "--branch", branch); err != nil {
		return nil, usageError{fmt.Errorf("--branch: %q is no name for a branch", branch)}
	}
	if _, err := git("", "cat-file", "-e", revision+"^{commit}"); err != nil {
		return nil, fault.New(fault.Invalid, op, "run it in a clone of the repository, after git fetch", "commit %.12s, which %s stands at, is not here: %w", revision, stack, err)
	}
	if _, err := git("", "read-tree", revision); err != nil {
		return nil, err
	}
	if _, err := git(patch, "apply", "--cached", "-"); err != nil {
		return nil, err
	}
	changed, err := git("", "diff-index", "--cached", "--name-only", "-z", revision)
	if err != nil {
		return nil, err
	}
	tree, err := git("", "write-tree")
	if err != nil {
		return nil, err
	}
	commit := []string{"commit-tree", tree, "-p", revision}
	if sign, err := git("", "config", "--type=bool", "commit.gpgSign"); err == nil && sign == "true" {
		commit = append(commit, "-S")
	}
	id, err := git("Adopt what is live of "+stack+"\n\nHoldfast found it to differ from "+revision+".\n", commit...)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "say who you are and how you sign: git config user.name, user.email, user.signingKey", "%w", err)
	}
	if _, err := git("", "update-ref", "-m", "holdfast drift --branch", "refs/heads/"+branch, id, strings.Repeat("0", len(id))); err != nil {
		return nil, fault.New(fault.Invalid, op, "choose another name, or delete that one", "%w", err)
	}
	return strings.Split(strings.TrimSuffix(changed, "\x00"), "\x00"), nil
}
