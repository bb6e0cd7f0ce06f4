package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The identity of commits that name no author.
const (
	defaultName  = "Holdfast Test"
	defaultEmail = "test@holdfast.test"
)

// Repo is a work tree whose remote "origin" is a bare repository of a
// [GitServer], reached by path.
type Repo struct {
	Dir string
	env []string
}

// NewRepo makes a bare repository on the server and an empty work tree on
// branch main. The name may contain slashes.
func (s *GitServer) NewRepo(name string) (*Repo, error) {
	r := &Repo{Dir: filepath.Join(s.dir, "work", filepath.Clean("/"+name)), env: s.env()}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("repository %s: %w", name, err)
	}
	bare := s.Path(name)
	for _, args := range [][]string{
		{"init", "-q", "--bare", bare},
		{"--git-dir", bare, "config", "http.receivepack", "true"},
		{"--git-dir", bare, "config", "uploadpack.allowFilter", "true"},
		{"--git-dir", bare, "config", "uploadpack.allowReachableSHA1InWant", "true"},
		{"init", "-q"},
		{"remote", "add", "origin", bare},
	} {
		if _, err := r.Git(args...); err != nil {
			return nil, fmt.Errorf("repository %s: %w", name, err)
		}
	}
	return r, nil
}

// Write writes files, given by their slash-separated paths, into the work
// tree. The next Commit takes them in.
func (r *Repo) Write(files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(r.Dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// Remove removes files or folders from the work tree.
func (r *Repo) Remove(paths ...string) error {
	for _, name := range paths {
		path := filepath.Join(r.Dir, filepath.FromSlash(name))
		if _, err := os.Lstat(path); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// CommitOptions say how to make a commit or a tag. The zero value is an
// unsigned commit of now by a fixed identity.
type CommitOptions struct {
	Signer  *Signer   // nil: unsigned
	Author  string    // "Name <email>"; empty: the signer, or a fixed identity
	Time    time.Time // author and committer time, to the second; zero: now
	Amend   bool      // replace HEAD
	Parents []string  // commit ids; nil: HEAD, or HEAD's parents with Amend
}

func (o CommitOptions) identity() string {
	author := o.Author
	switch {
	case author != "":
	case o.Signer != nil:
		author = fmt.Sprintf("%s <%s>", o.Signer.Name, o.Signer.Email)
	default:
		author = fmt.Sprintf("%s <%s>", defaultName, defaultEmail)
	}
	return fmt.Sprintf("%s %d +0000", author, o.time().Unix())
}

func (o CommitOptions) time() time.Time {
	if o.Time.IsZero() {
		return time.Now()
	}
	return o.Time
}

// Commit commits the whole work tree on the current branch and returns the id.
func (r *Repo) Commit(msg string, o CommitOptions) (string, error) {
	// Fixed once: the header and the signature carry the same second.
	o.Time = o.time()
	if _, err := r.Git("add", "-A"); err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	tree, err := r.Git("write-tree")
	if err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	parents := o.Parents
	if parents == nil {
		if parents, err = r.parents(o.Amend); err != nil {
			return "", fmt.Errorf("commit: %w", err)
		}
	}
	var raw bytes.Buffer
	fmt.Fprintf(&raw, "tree %s\n", tree)
	for _, p := range parents {
		fmt.Fprintf(&raw, "parent %s\n", p)
	}
	fmt.Fprintf(&raw, "author %s\ncommitter %[1]s\n\n%s\n", o.identity(), strings.TrimRight(msg, "\n"))
	signed, err := o.sign(raw.Bytes())
	if err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	return r.CommitRaw(signed)
}

// parents returns what the next commit follows: HEAD, or with amend what HEAD
// follows. A branch without a commit has none.
func (r *Repo) parents(amend bool) ([]string, error) {
	head, err := r.Git("rev-parse", "--verify", "-q", "HEAD")
	if err != nil {
		if amend {
			return nil, errors.New("nothing to amend")
		}
		return nil, nil
	}
	if !amend {
		return []string{head}, nil
	}
	out, err := r.Git("log", "-1", "--format=%P", head)
	return strings.Fields(out), err
}

func (o CommitOptions) sign(raw []byte) ([]byte, error) {
	if o.Signer == nil {
		return raw, nil
	}
	signature, err := o.Signer.Sign(raw, o.time())
	if err != nil {
		return nil, err
	}
	return WithSignature(raw, signature), nil
}

// WithSignature returns a raw commit with an armored signature in a "gpgsig"
// header, where git puts it: last of the headers, folded by one space.
func WithSignature(raw []byte, armored string) []byte {
	header := "\ngpgsig " + strings.ReplaceAll(strings.TrimRight(armored, "\n"), "\n", "\n ")
	headers, body, _ := bytes.Cut(raw, []byte("\n\n"))
	return bytes.Join([][]byte{headers, []byte(header), []byte("\n\n"), body}, nil)
}

// CommitRaw stores raw as a commit, whatever it contains, moves the current
// branch to it and returns its id. It lets a test build commits that git
// itself would not.
func (r *Repo) CommitRaw(raw []byte) (string, error) {
	id, err := r.git(raw, "hash-object", "-t", "commit", "-w", "--stdin", "--literally")
	if err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	if _, err := r.Git("update-ref", "HEAD", id); err != nil {
		return "", fmt.Errorf("commit: %w", err)
	}
	return id, nil
}

// Tag makes an annotated tag of HEAD, signed if o has a signer, and returns
// the id of the tag object.
func (r *Repo) Tag(name, msg string, o CommitOptions) (string, error) {
	o.Time = o.time()
	head, err := r.Git("rev-parse", "--verify", "HEAD")
	if err != nil {
		return "", fmt.Errorf("tag %s: %w", name, err)
	}
	raw := fmt.Appendf(nil, "object %s\ntype commit\ntag %s\ntagger %s\n\n%s\n", head, name, o.identity(), strings.TrimRight(msg, "\n"))
	if o.Signer != nil {
		signature, err := o.Signer.Sign(raw, o.Time)
		if err != nil {
			return "", fmt.Errorf("tag %s: %w", name, err)
		}
		raw = append(raw, signature...)
	}
	id, err := r.git(raw, "hash-object", "-t", "tag", "-w", "--stdin", "--literally")
	if err != nil {
		return "", fmt.Errorf("tag %s: %w", name, err)
	}
	if _, err := r.Git("update-ref", "refs/tags/"+name, id); err != nil {
		return "", fmt.Errorf("tag %s: %w", name, err)
	}
	return id, nil
}

// Push runs "git push origin" with args. Without a ref among them it pushes
// the current branch.
func (r *Repo) Push(args ...string) error {
	args = append([]string{"push", "-q", "origin"}, args...)
	if strings.HasPrefix(args[len(args)-1], "-") || len(args) == 3 {
		args = append(args, "HEAD")
	}
	_, err := r.Git(args...)
	return err
}

// Git runs git in the work tree and returns its standard output without the
// trailing newline. An error contains what git said.
func (r *Repo) Git(args ...string) (string, error) { return r.git(nil, args...) }

func (r *Repo) git(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = r.Dir, r.env, bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(string(out), "\n"), nil
}
