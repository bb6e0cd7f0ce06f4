package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
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
	made := struct {
		Branch   string   `json:"branch,omitempty"` // empty: there is no drift
		Revision string   `json:"revision,omitempty"`
		Files    []string `json:"files,omitempty"`
	}{}
	if out.Patch != "" {
		made.Branch, made.Revision = name, out.Revision
		if made.Files, err = adoptOnBranch(cmd.Context(), name, stack, out.Revision, out.Patch); err != nil {
			return err
		}
	}
	switch {
	case f.output == "json":
		return printJSON(cmd.OutOrStdout(), made)
	case made.Branch == "":
		fmt.Fprintln(cmd.OutOrStdout(), "No drift.")
	default:
		fmt.Fprintf(printing{cmd.OutOrStdout()}, "branch %s: %s, on %.12s\nLook at it, and open a pull request: git show %[1]s && git push origin %[1]s\n", name, strings.Join(made.Files, ", "), made.Revision)
	}
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
	top := ""
	git := func(input string, args ...string) (string, error) {
		c := exec.CommandContext(ctx, "git", args...)
		c.Dir = top
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
	if strings.Contains(revision, ":") {
		return nil, fault.New(fault.Invalid, op, "use --patch where the artifact is made", "%s comes from an OCI artifact, not from a commit", stack)
	}
	// In a folder of the clone git applies a part of the patch, and is content.
	if top, err = git("", "rev-parse", "--show-toplevel"); err != nil {
		return nil, fault.New(fault.Invalid, op, "run it in a clone of the repository", "%w", err)
	}
	if _, err := git("", "cat-file", "-e", revision+"^{commit}"); err != nil {
		return nil, fault.New(fault.Invalid, op, "run it in a clone of the repository, after git fetch", "commit %.12s, which %s stands at, is not here: %w", revision, stack, err)
	}
	if _, err := git("", "read-tree", revision); err != nil {
		return nil, err
	}
	if _, err := git(patch, "apply", "--cached", "--whitespace=nowarn", "-"); err != nil {
		return nil, err
	}
	changed, err := git("", "diff-index", "--cached", "--raw", "--no-renames", "-z", revision)
	if err != nil {
		return nil, err
	}
	files, err := plainChanges(changed)
	if err != nil {
		return nil, err
	}
	if want := strings.Count("\n"+patch, "\ndiff --git "); len(files) != want || want == 0 {
		return nil, fault.New(fault.Internal, op, "use --patch", "git applied the patch to %d of %d files", len(files), want)
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
	return files, nil
}

// plainChanges returns the files of git diff-index --raw -z. Whoever commits may sign it, so
// it holds nothing but other content of manifests that are there: no new file, link or mode.
func plainChanges(raw string) ([]string, error) {
	fields := strings.Split(strings.TrimSuffix(raw, "\x00"), "\x00")
	var files []string
	for i := 0; i+1 < len(fields); i += 2 {
		is, name := strings.Fields(fields[i]), fields[i+1] // :100644 100644 <was> <is> M
		plain := len(is) == 5 && is[4] == "M" && is[0] == ":"+is[1] && (is[1] == "100644" || is[1] == "100755")
		if !plain || !slices.Contains([]string{".yaml", ".yml", ".json"}, path.Ext(name)) {
			return nil, fault.New(fault.Denied, "holdfast.drift", "look at it with --patch, and at the daemon", "the patch does more to %q than to change a manifest", name)
		}
		files = append(files, name)
	}
	return files, nil
}
