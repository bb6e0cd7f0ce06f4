// Package library owns the policies that Holdfast ships.
//
// It guarantees that each policy can be used alone, with Holdfast and with the
// plain conftest command, and that its shared helpers come with it. It refuses
// names that it does not know.
package library

import (
	"embed"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

//go:embed kubernetes/*/policy.rego terraform/*/policy.rego lib/*/*.rego
var files embed.FS

// names are the policies, sorted.
var names = []string{
	"kubernetes/images",
	"kubernetes/pod-security-baseline",
	"kubernetes/pod-security-restricted",
	"kubernetes/rbac",
	"terraform/encryption",
	"terraform/network",
	"terraform/protected",
	"terraform/provisioners",
}

// Names returns the name of every policy, sorted.
func Names() []string { return slices.Clone(names) }

// Get returns the files of a policy: its own at "<name>/policy.rego" and the
// helpers that it imports below "lib". The error for an unknown name is of kind
// fault.Invalid.
func Get(name string) (fs.FS, error) {
	if !slices.Contains(names, name) {
		return nil, fault.New(fault.Invalid, "policy/library.Get", "use one of: "+strings.Join(names, ", "), "no policy %q in the library", name)
	}
	target, _, _ := strings.Cut(name, "/")
	return part{all: files, roots: []string{name, path.Join("lib", target)}}, nil
}

// Namespace returns the package of a policy: "kubernetes.pod_security_baseline".
func Namespace(name string) string {
	return strings.NewReplacer("/", ".", "-", "_").Replace(name)
}

// part is the subset of all that lies on the way to roots and below them.
type part struct {
	all   embed.FS
	roots []string
}

// Open opens a file of the part. A folder can be read with ReadDir only.
func (p part) Open(name string) (fs.File, error) {
	if !p.holds(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return p.all.Open(name)
}

// ReadDir lists a folder of the part.
func (p part) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := p.all.ReadDir(name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !p.holds(path.Join(name, e.Name())) }), err
}

func (p part) holds(name string) bool {
	return name == "." || slices.ContainsFunc(p.roots, func(r string) bool {
		return name == r || strings.HasPrefix(name, r+"/") || strings.HasPrefix(r, name+"/")
	})
}
