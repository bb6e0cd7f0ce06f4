package kubernetes

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Limits on what one rendering reads and makes.
const (
	maxFiles     = 2000
	maxFileBytes = 4 << 20
	maxTreeBytes = 32 << 20
	maxObjects   = 5000
	maxVisits    = 1000 // of kustomize folders, each counted as often as it is mentioned
	maxDepth     = 32
	maxLinks     = 16
)

// tree reads a snapshot within limits. Symbolic links are followed inside the
// repository only.
type tree struct {
	fsys  fs.FS
	files int
	bytes int64
	// expanded counts the bytes of files in which variables were replaced.
	expanded int64
}

// clean joins dir and name and refuses what is not a path inside the repository.
func clean(dir, name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\\\x00\n") {
		return "", invalid("use a relative path inside the repository", "%q is not a relative path", name)
	}
	p := path.Join(dir, name)
	if !fs.ValidPath(p) {
		return "", invalid("keep everything that a stack needs inside the repository", "%q leaves the repository", name)
	}
	return p, nil
}

// resolve follows the symbolic links in name and refuses one that leaves the tree.
func (t *tree) resolve(name string) (string, fs.FileInfo, error) {
	links, ok := t.fsys.(fs.ReadLinkFS)
	if !ok {
		info, err := fs.Stat(t.fsys, name)
		return name, info, err
	}
	done, rest := ".", name
	var info fs.FileInfo
	for hops := 0; ; {
		if rest == "" || rest == "." {
			if info == nil {
				var err error
				if info, err = links.Lstat(done); err != nil {
					return "", nil, err
				}
			}
			return done, info, nil
		}
		first, tail, _ := strings.Cut(rest, "/")
		next := path.Join(done, first)
		var err error
		if info, err = links.Lstat(next); err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done, rest = next, tail
			continue
		}
		if hops++; hops > maxLinks {
			return "", nil, invalid("", "%s: too many symbolic links", name)
		}
		to, err := links.ReadLink(next)
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(to) || !fs.ValidPath(path.Join(done, to)) {
			return "", nil, invalid("replace the link by the file it points to", "%s: the symbolic link leaves the repository", next)
		}
		done, rest, info = ".", path.Join(done, to, tail), nil
	}
}

// isDir reports whether name is a folder. A name that does not exist is an error.
func (t *tree) isDir(name string) (bool, error) {
	_, info, err := t.resolve(name)
	if err != nil {
		return false, notFound(name, err)
	}
	return info.IsDir(), nil
}

// read returns the content of the regular file name.
func (t *tree) read(name string) ([]byte, error) {
	real, info, err := t.resolve(name)
	if err != nil {
		return nil, notFound(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("", "%s is not a regular file", name)
	}
	if info.Size() > maxFileBytes {
		return nil, tooLarge(name)
	}
	f, err := t.fsys.Open(real)
	if err != nil {
		return nil, notFound(name, err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fault.New(fault.Transient, opRender, "", "%s: %w", name, err)
	}
	t.files++
	t.bytes += int64(len(b))
	switch {
	case len(b) > maxFileBytes:
		return nil, tooLarge(name)
	case t.files > maxFiles:
		return nil, invalid("split the stack", "the stack reads more than %d files", maxFiles)
	case t.bytes > maxTreeBytes:
		return nil, invalid("split the stack", "the stack reads more than %d bytes", maxTreeBytes)
	}
	return b, nil
}

func tooLarge(name string) error {
	return invalid("split the file", "%s is larger than %d bytes", name, maxFileBytes)
}

func notFound(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("correct the path; remote resources are not supported, copy them into the repository", "%s does not exist in the repository", name)
	}
	return fault.Wrap(fault.Transient, opRender, "", err)
}
