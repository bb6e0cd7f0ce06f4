package rego

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	cpolicy "github.com/open-policy-agent/conftest/policy"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/opa"
)

// Bounds on what is read from bundles.
const (
	maxFiles     = 10_000
	maxFileBytes = 8 << 20
	maxAllBytes  = 64 << 20
)

// file is one policy or data file of a bundle.
type file struct {
	bundle, path string
	own          bool // of a bundle of others
	content      []byte
}

// name is what people read: "bundle/path".
func (f file) name() string { return f.bundle + "/" + f.path }

// fileSet is every file of the bundles, in order of bundle and path.
type fileSet struct {
	files []file
	size  int
	dir   string // where they lie while they are compiled
}

// readBundles reads policies and data of each bundle.
func readBundles(bundles []Bundle) (*fileSet, error) {
	set := &fileSet{}
	for _, b := range bundles {
		if err := set.read(b, func(p string) bool { return isPolicy(p) || isData(p) }); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// read adds the files of b that are wanted.
func (s *fileSet) read(b Bundle, wanted func(string) bool) error {
	err := fs.WalkDir(b.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !wanted(p) {
			return err
		}
		content, err := readFile(b.FS, p)
		if err != nil {
			return err
		}
		if s.size += len(content); s.size > maxAllBytes || len(s.files) >= maxFiles {
			return fmt.Errorf("more than %d files or %d bytes of policies", maxFiles, maxAllBytes)
		}
		f := file{bundle: b.Name, path: p, own: b.Own, content: content}
		if !s.has(f) {
			s.files = append(s.files, f)
		}
		return nil
	})
	if err != nil {
		return fault.New(fault.Invalid, "policy/rego.New", "", "read policy bundle %s: %w", b.Name, err)
	}
	return nil
}

// has reports whether a policy is there already: libraries come with the shared
// helper file that several of them need. Data files are never dropped, nor what
// somebody else wrote, in whose package more could stand.
func (s *fileSet) has(f file) bool {
	return isPolicy(f.path) && slices.ContainsFunc(s.files, func(g file) bool {
		return g.path == f.path && !apart(f, g) && bytes.Equal(f.content, g.content)
	})
}

func isPolicy(p string) bool { return strings.HasSuffix(p, ".rego") }

func isData(p string) bool {
	return slices.Contains([]string{".json", ".yaml", ".yml"}, strings.ToLower(path.Ext(p)))
}

func readFile(fsys fs.FS, p string) (_ []byte, err error) {
	f, err := fsys.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", p, maxFileBytes)
	}
	return content, nil
}

// compile hands the files to conftest, which reads folders: they are laid out
// below a private one that is gone when compile returns.
func (s *fileSet) compile() (_ *cpolicy.Engine, err error) {
	const op = "policy/rego.New"
	forget(os.TempDir(), time.Now().Add(-time.Hour))
	s.dir, err = os.MkdirTemp("", "holdfast-policy-")
	if err != nil {
		return nil, fault.New(fault.Transient, op, "make the temporary directory writable", "%w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	policies, data, err := s.write()
	if err != nil {
		return nil, fault.New(fault.Transient, op, "make the temporary directory writable", "%w", err)
	}
	if len(policies) == 0 {
		return nil, fault.New(fault.Invalid, op, "add a .rego file", "the policy bundles hold no policy")
	}
	engine, err := cpolicy.LoadWithData(policies, data, cpolicy.CompilerOptions{RegoVersion: "v1", Capabilities: opa.Capabilities()})
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "correct the policy", "%s", s.readable(err.Error()))
	}
	return engine, nil
}

// forget removes the folders that processes left which were killed while they
// compiled. Compiling takes seconds, so one from before a time is nobody's; one
// that cannot be removed is another user's.
func forget(dir string, before time.Time) {
	left, err := filepath.Glob(filepath.Join(dir, "holdfast-policy-*"))
	if err != nil {
		return
	}
	for _, f := range left {
		if info, err := os.Lstat(f); err == nil && info.IsDir() && info.ModTime().Before(before) {
			_ = os.RemoveAll(f)
		}
	}
}

// write lays the bundles out as dir/<n>, named by number so that a bundle's name
// can hold anything. It returns the folders of each kind.
func (s *fileSet) write() (policies, data []string, err error) {
	for _, f := range s.files {
		root := filepath.Join(s.dir, s.number(f.bundle))
		p := filepath.Join(root, filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return nil, nil, err
		}
		if err := os.WriteFile(p, f.content, 0o600); err != nil {
			return nil, nil, err
		}
		list := &data
		if isPolicy(f.path) {
			list = &policies
		}
		if !slices.Contains(*list, root) {
			*list = append(*list, root)
		}
	}
	return policies, data, nil
}

func (s *fileSet) number(bundle string) string {
	i := slices.IndexFunc(s.files, func(f file) bool { return f.bundle == bundle })
	return strconv.Itoa(i)
}

// readable replaces the private folder's paths by bundle names.
func (s *fileSet) readable(text string) string {
	for _, f := range slices.Backward(s.files) {
		prefix := filepath.Join(s.dir, s.number(f.bundle)) + string(filepath.Separator)
		text = strings.ReplaceAll(text, prefix, f.bundle+"/")
		text = strings.ReplaceAll(text, strings.TrimPrefix(prefix, "/"), f.bundle+"/")
	}
	return text
}

// modules returns the parsed modules by readable name.
func (s *fileSet) modules(e *cpolicy.Engine) map[string]*ast.Module {
	out := map[string]*ast.Module{}
	for p, m := range e.Modules() {
		out[s.readable(p)] = m
	}
	return out
}

// declared is what a file puts under data: a package, or a document.
type declared struct {
	file file
	path []string // of a package
	data any      // of a document
}

// refuseShared refuses what would let whoever writes a bundle of others change the rules of
// another one, by an exception for instance: a package that is the other's, within it or
// around it, and data where the other has a package.
func (s *fileSet) refuseShared(cfg Config, modules map[string]*ast.Module) error {
	if !slices.ContainsFunc(s.files, func(f file) bool { return f.own }) {
		return nil
	}
	packages, documents, err := s.declared(modules)
	if err != nil {
		return err
	}
	if len(cfg.Data) > 0 {
		documents = append(documents, declared{file: file{bundle: "the operator's file", path: "data"}, data: cfg.Data})
	}
	refuse := func(f, other file, what string) error {
		return fault.New(fault.Invalid, "policy/rego.New", "give it a package of its own", "%s: %s is in %s too, whose rules it could change", f.name(), what, other.bundle)
	}
	for i, p := range packages {
		what := "package " + strings.Join(p.path, ".")
		for _, other := range packages[:i] {
			n := min(len(p.path), len(other.path))
			if apart(p.file, other.file) && slices.Equal(p.path[:n], other.path[:n]) {
				return refuse(p.file, other.file, what)
			}
		}
		for _, d := range documents {
			if apart(p.file, d.file) && meets(d.data, p.path) {
				return refuse(d.file, p.file, what)
			}
		}
	}
	return nil
}

// apart reports whether two files are in bundles that must not change each other's rules.
func apart(a, b file) bool { return a.bundle != b.bundle && (a.own || b.own) }

// declared returns the packages, each once for a bundle, and the documents.
func (s *fileSet) declared(modules map[string]*ast.Module) (packages, documents []declared, err error) {
	seen := map[string]bool{}
	for _, f := range s.files {
		if isData(f.path) {
			d := declared{file: f}
			if err := util.Unmarshal(f.content, &d.data); err != nil {
				return nil, nil, fault.New(fault.Invalid, "policy/rego.New", "correct the file", "%s: %w", f.name(), err)
			}
			documents = append(documents, d)
			continue
		}
		m := modules[f.name()]
		if m == nil {
			continue
		}
		d := declared{file: f}
		for _, term := range m.Package.Path[1:] { // the first is data
			name, _ := term.Value.(ast.String)
			d.path = append(d.path, string(name))
		}
		if key := f.bundle + "\x00" + m.Package.Path.String(); !seen[key] {
			seen[key] = true
			packages = append(packages, d)
		}
	}
	return packages, documents, nil
}

// meets reports whether a document has something at a path, or a plain value above it.
func meets(data any, path []string) bool {
	for _, key := range path {
		m, ok := data.(map[string]any)
		if !ok {
			return true
		}
		if data, ok = m[key]; !ok {
			return false
		}
	}
	return true
}

// bundles returns the files that count, bundle by bundle in the order of list.
func (s *fileSet) bundles(list []Bundle) []SourceBundle {
	out := make([]SourceBundle, len(list))
	for i, b := range list {
		out[i] = SourceBundle{Name: b.Name, Own: b.Own, Files: map[string][]byte{}}
		for _, f := range s.files {
			if f.bundle == b.Name {
				out[i].Files[f.path] = f.content
			}
		}
	}
	return out
}

// digest binds every file and every setting that changes a verdict. Names and
// contents are length-framed by JSON, so no two sets share a digest.
func (s *fileSet) digest(cfg Config) (digest.Digest, error) {
	type entry struct {
		Name   string        `json:"name"`
		Digest digest.Digest `json:"digest"`
	}
	entries := make([]entry, len(s.files))
	for i, f := range s.files {
		entries[i] = entry{f.name(), digest.FromBytes(f.content)}
	}
	b, err := json.Marshal(map[string]any{
		"files": entries, "namespaces": cfg.Namespaces, "combine": cfg.Combine, "data": cfg.Data,
	})
	if err != nil {
		return "", fault.New(fault.Invalid, "policy/rego.New", "", "policy data is not JSON: %w", err)
	}
	return digest.FromBytes(b), nil
}
