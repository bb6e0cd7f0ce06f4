package rego

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/conftest/output"
	"github.com/open-policy-agent/conftest/parser"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// maxInputBytes bounds one file that Test reads.
const maxInputBytes = 256 << 20

// TestOptions are the flags of "holdfast policy test", which are those of
// "conftest test".
type TestOptions struct {
	Policy        []string // files and folders of policies; empty is "policy"
	Data          []string // files and folders of data
	Namespaces    []string // empty is "main"; may hold patterns, as path.Match has them
	AllNamespaces bool
	Combine       bool
	Parser        string        // forces one parser for every file
	Timeout       time.Duration // of one namespace over one document set; zero is DefaultTimeout
	Stdin         io.Reader     // what the file "-" means; nil is empty
}

// Test judges files as the conftest command does and returns its results, under
// the same guards as Evaluate. Results are sorted by namespace and file.
// An error means that nothing was judged; violations are in the results.
func Test(ctx context.Context, o TestOptions, files []string) ([]output.CheckResult, error) {
	e, err := o.evaluator(ctx)
	if err != nil {
		return nil, err
	}
	paths, err := listFiles(files)
	if err != nil {
		return nil, err
	}
	inputs := make([]testInput, len(paths))
	for i, p := range paths {
		if inputs[i], err = o.parse(p); err != nil {
			return nil, err
		}
	}
	if o.Combine {
		var all []document
		for _, in := range inputs {
			all = append(all, in.docs...)
		}
		one := combine(all)
		inputs = []testInput{{name: one.file, docs: []document{one}}}
	}
	return e.test(ctx, inputs)
}

// testInput is one file.
type testInput struct {
	name string
	docs []document
}

func (e *Evaluator) test(ctx context.Context, inputs []testInput) ([]output.CheckResult, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	at := time.Now()
	var out []output.CheckResult
	for _, ns := range e.namespaces {
		for _, in := range inputs {
			out = append(out, output.CheckResult{FileName: in.name, Namespace: ns.name})
		}
	}
	for i, in := range inputs {
		for _, d := range in.docs {
			verdicts, err := e.judge(ctx, d, at)
			if err != nil {
				return nil, err
			}
			for j, v := range verdicts {
				v.check(&out[j*len(inputs)+i])
			}
		}
	}
	return out, nil
}

// evaluator loads the policies that o names.
func (o TestOptions) evaluator(ctx context.Context) (*Evaluator, error) {
	policies := o.Policy
	if len(policies) == 0 {
		policies = []string{"policy"}
	}
	set := &fileSet{}
	if err := set.readPaths(policies, isPolicy); err != nil {
		return nil, err
	}
	if err := set.readPaths(o.Data, isData); err != nil {
		return nil, err
	}
	engine, err := set.compile()
	if err != nil {
		return nil, err
	}
	cfg := Config{Combine: o.Combine, Timeout: o.Timeout}
	if !o.AllNamespaces {
		if cfg.Namespaces, err = o.namespaces(engine.Namespaces()); err != nil {
			return nil, err
		}
	}
	return newEvaluator(ctx, cfg, engine, set)
}

// namespaces resolves patterns as conftest does.
func (o TestOptions) namespaces(known []string) ([]string, error) {
	if len(o.Namespaces) == 0 {
		return []string{"main"}, nil
	}
	var out []string
	for _, pattern := range o.Namespaces {
		if !strings.ContainsAny(pattern, "*?[") {
			out = append(out, pattern)
			continue
		}
		matches := slices.DeleteFunc(slices.Clone(known), func(ns string) bool {
			ok, err := path.Match(pattern, ns)
			return err != nil || !ok
		})
		if len(matches) == 0 {
			return nil, fault.New(fault.Invalid, "policy/rego.Test", "", "no policy namespace matches %q", pattern)
		}
		out = append(out, matches...)
	}
	return out, nil
}

// readPaths adds files and folders of the machine, each as a bundle.
func (s *fileSet) readPaths(paths []string, wanted func(string) bool) error {
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return fault.New(fault.Invalid, "policy/rego.Test", "name a file or folder that exists", "%w", err)
		}
		dir, base := p, ""
		if !info.IsDir() {
			dir, base = filepath.Dir(p), filepath.Base(p)
		}
		keep := func(name string) bool { return wanted(name) && (base == "" || name == base) }
		fsys := os.DirFS(dir)
		if base != "" {
			fsys = oneFile{fsys, base}
		}
		if err := s.read(Bundle{Name: filepath.ToSlash(filepath.Clean(dir)), FS: fsys}, keep); err != nil {
			return err
		}
	}
	return nil
}

// oneFile is a file system in which only one file can be found.
type oneFile struct {
	fs.FS
	name string
}

// ReadDir lists the one file, so that its neighbours are not walked.
func (o oneFile) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, fs.ErrNotExist
	}
	info, err := fs.Stat(o.FS, o.name)
	if err != nil {
		return nil, err
	}
	return []fs.DirEntry{fs.FileInfoToDirEntry(info)}, nil
}

// listFiles expands folders into the files that a parser is known for.
func listFiles(args []string) ([]string, error) {
	const op = "policy/rego.Test"
	var out []string
	for _, a := range args {
		if a == "-" {
			out = append(out, a)
			continue
		}
		info, err := os.Stat(a)
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "name a file that exists", "%w", err)
		}
		if !info.IsDir() {
			out = append(out, a)
			continue
		}
		err = filepath.WalkDir(a, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && parser.FileSupported(p) {
				out = append(out, p)
			}
			return err
		})
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "", "%w", err)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, op, "name the files to test", "no files to test")
	}
	return out, nil
}

// parse reads one file with conftest's parser. A parser that panics on its
// input is an error.
func (o TestOptions) parse(name string) (in testInput, err error) {
	const op = "policy/rego.Test"
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Invalid, op, "", "%s: the parser panicked: %v", name, p)
		}
	}()
	content, err := o.read(name)
	if err != nil {
		return testInput{}, fault.New(fault.Invalid, op, "", "read %s: %w", name, err)
	}
	p, err := o.parserOf(name)
	if err != nil {
		return testInput{}, fault.New(fault.Invalid, op, "choose one with --parser", "%s: %w", name, err)
	}
	if aware, ok := p.(parser.PathAwareParser); ok {
		aware.SetPath(name)
	}
	var v any
	if err := p.Unmarshal(content, &v); err != nil {
		return testInput{}, fault.New(fault.Invalid, op, "", "%s: %w", name, err)
	}
	if v, err = toJSON(v); err != nil {
		return testInput{}, fault.New(fault.Invalid, op, "", "%s: %w", name, err)
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return testInput{}, fault.New(fault.Internal, op, "", "%s: %w", name, err)
	}
	return testInput{name: name, docs: expand(document{file: name, dir: filepath.Dir(abs), value: v}, 0)}, nil
}

func (o TestOptions) parserOf(name string) (parser.Parser, error) {
	if o.Parser != "" {
		return parser.New(o.Parser)
	}
	return parser.NewFromPath(name)
}

func (o TestOptions) read(name string) (_ []byte, err error) {
	r := o.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		r = f
	}
	if r == nil {
		return nil, errors.New("no standard input")
	}
	content, err := io.ReadAll(io.LimitReader(r, maxInputBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxInputBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxInputBytes)
	}
	return content, nil
}
