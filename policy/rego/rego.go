// Package rego judges documents with conftest policies.
//
// It guarantees the verdicts of the conftest command for every policy that it
// loads, over conftest's own compiler, and it evaluates them in a closed world:
// no network, no environment, no clock but the one instant of the evaluation.
// It refuses what conftest lets pass in silence: a rule that can never refuse,
// a namespace without rules, a rule result without a message, and an error
// inside a builtin. A document named "kind: List" is judged item by item.
//
// What a policy sees is the document itself at the root of input, exactly as
// conftest gives it. Beside it, under input.holdfast, stand the verified facts:
//
//	stage, target, stack, environment, repository, commit
//	artifacts[reference or name@digest]: kind, reference, name, digest, rule, checks, facts, locations
//
// In combined mode input is an array of {path, contents}, and holdfast stands in
// the contents of each element.
package rego

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	cpolicy "github.com/open-policy-agent/conftest/policy"
	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/opa"
)

// DefaultTimeout bounds one evaluation when the configuration names no timeout.
const DefaultTimeout = 30 * time.Second

// Bundle is one named folder of policies (.rego) and data (.json, .yaml, .yml).
// A data file is mounted as conftest mounts it: the root of the folder is data.
type Bundle struct {
	Name string
	FS   fs.FS
	// Own says that others than the operator write it: a package of another bundle is
	// refused in it, where it could make exceptions from that one's rules.
	Own bool
}

// Config says what is evaluated.
type Config struct {
	// Bundles are compiled together, so rules of one may use another's
	// packages. The same file in two bundles counts once.
	Bundles []Bundle
	// Namespaces are the packages to evaluate ("main"); empty is every package
	// that holds a rule. A namespace without a rule is refused.
	Namespaces []string
	// Combine evaluates all documents as one input, as conftest --combine does.
	Combine bool
	// Data is the operator's data, found by policies as data.<key>.
	Data map[string]any
	// Timeout bounds one evaluation; zero is DefaultTimeout.
	Timeout time.Duration
}

// Validate reports what New would refuse without reading any policy.
func (c Config) Validate() error {
	const op = "policy/rego.New"
	if len(c.Bundles) == 0 {
		return fault.New(fault.Invalid, op, "name at least one policy bundle", "no policies configured")
	}
	seen := map[string]bool{}
	for _, b := range c.Bundles {
		switch {
		case b.Name == "" || b.FS == nil:
			return fault.New(fault.Invalid, op, "", "a policy bundle has no name or no files")
		case seen[b.Name]:
			return fault.New(fault.Invalid, op, "name it once", "policy bundle %q is named twice", b.Name)
		}
		seen[b.Name] = true
	}
	if c.Timeout < 0 {
		return fault.New(fault.Invalid, op, "", "negative policy timeout %s", c.Timeout)
	}
	for _, k := range reservedData {
		if _, ok := c.Data[k]; ok {
			return fault.New(fault.Invalid, op, "rename the key", "data.%s is reserved", k)
		}
	}
	return nil
}

// reservedData are keys that only the evaluator writes.
var reservedData = []string{"conftest", "holdfast"}

// Evaluator evaluates compiled policies. It is safe for concurrent use.
type Evaluator struct {
	namespaces []namespace
	query      ast.Body // of every namespace
	prepared   oparego.PreparedEvalQuery
	compiler   *ast.Compiler
	base       map[string]any // data, never written after New
	store      storage.Store
	combine    bool
	timeout    time.Duration
	digest     digest.Digest
	rules      int
	fileInfo   bool // a policy looks at data.conftest.file
	source     Source
}

// Source is all that an [Evaluator] was made of, as plain data.
type Source struct {
	Bundles    []SourceBundle `json:"bundles"`
	Namespaces []string       `json:"namespaces,omitempty"`
	Combine    bool           `json:"combine,omitempty"`
	Data       map[string]any `json:"data,omitempty"`
	Timeout    time.Duration  `json:"timeout,omitempty"`
}

// SourceBundle is a [Bundle] with its files by path.
type SourceBundle struct {
	Name  string            `json:"name"`
	Own   bool              `json:"own,omitempty"`
	Files map[string][]byte `json:"files"`
}

// Source returns what e was made of. It is not to be changed.
func (e *Evaluator) Source() Source { return e.source }

// Restore makes the Evaluator that a Source is of, as [New] does.
func Restore(ctx context.Context, s Source) (*Evaluator, error) {
	cfg := Config{Namespaces: s.Namespaces, Combine: s.Combine, Data: s.Data, Timeout: s.Timeout}
	cfg.Timeout = min(cfg.Timeout, DefaultTimeout)
	for _, b := range s.Bundles {
		for p := range b.Files {
			if !fs.ValidPath(p) {
				return nil, fault.New(fault.Invalid, "policy/rego.Restore", "", "%q is no path in bundle %s", p, b.Name)
			}
		}
		cfg.Bundles = append(cfg.Bundles, b.Bundle())
	}
	return New(ctx, cfg)
}

// Bundle returns b as [New] takes it.
func (b SourceBundle) Bundle() Bundle {
	files := fstest.MapFS{}
	for p, content := range b.Files {
		files[p] = &fstest.MapFile{Data: content, Mode: 0o400}
	}
	return Bundle{Name: b.Name, FS: files, Own: b.Own}
}

// Read returns the policies and data of b, as [New] would read them.
func Read(b Bundle) (SourceBundle, error) {
	files, err := readBundles([]Bundle{b})
	if err != nil {
		return SourceBundle{}, err
	}
	return files.bundles([]Bundle{b})[0], nil
}

// namespace is one package that holds rules.
type namespace struct {
	name  string
	rules []rule
	heads int // rule bodies, as conftest counts them
}

// rule is all rules of one name within a namespace.
type rule struct {
	name      string
	exception string // what an exception calls it: the name without its prefix
}

// New compiles the policies of cfg. Its errors name the file and line at fault
// and are of kind fault.Invalid.
func New(ctx context.Context, cfg Config) (*Evaluator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	files, err := readBundles(cfg.Bundles)
	if err != nil {
		return nil, err
	}
	engine, err := files.compile()
	if err != nil {
		return nil, err
	}
	return newEvaluator(ctx, cfg, engine, files)
}

func newEvaluator(ctx context.Context, cfg Config, engine *cpolicy.Engine, files *fileSet) (*Evaluator, error) {
	const op = "policy/rego.New"
	modules := files.modules(engine)
	if err := refuseSilent(modules); err != nil {
		return nil, err
	}
	if err := files.refuseShared(cfg, modules); err != nil {
		return nil, err
	}
	base, err := mergeData(ctx, engine.Store(), cfg.Data)
	if err != nil {
		return nil, err
	}
	e := &Evaluator{
		compiler: engine.Compiler(),
		base:     base,
		store:    newStore(base),
		combine:  cfg.Combine,
		timeout:  cfg.Timeout,
		fileInfo: usesFileInfo(modules),
		source:   Source{Bundles: files.bundles(cfg.Bundles), Namespaces: cfg.Namespaces, Combine: cfg.Combine, Data: cfg.Data, Timeout: cfg.Timeout},
	}
	if e.timeout == 0 {
		e.timeout = DefaultTimeout
	}
	if err := e.checkConflicts(); err != nil {
		return nil, err
	}
	if e.namespaces, err = selectNamespaces(modules, cfg.Namespaces); err != nil {
		return nil, err
	}
	if e.query, err = parseQuery(e.namespaces); err != nil {
		return nil, fault.New(fault.Invalid, op, "", "%w", err)
	}
	if e.prepared, err = e.prepare(ctx, e.store); err != nil {
		return nil, fault.New(fault.Invalid, op, "", "prepare: %w", err)
	}
	for _, ns := range e.namespaces {
		e.rules += ns.heads
	}
	if e.digest, err = files.digest(cfg); err != nil {
		return nil, err
	}
	return e, nil
}

// Policies returns the digest of every policy file, data file and setting that decides.
func (e *Evaluator) Policies() digest.Digest { return e.digest }

// Namespaces returns the evaluated namespaces, sorted.
func (e *Evaluator) Namespaces() []string {
	out := make([]string, len(e.namespaces))
	for i, ns := range e.namespaces {
		out[i] = ns.name
	}
	return out
}

// prepare compiles the one query. It asks for conftest's rules and for nothing
// else, so helpers run only where a rule needs them, and once for all of them.
func (e *Evaluator) prepare(ctx context.Context, store storage.Store) (oparego.PreparedEvalQuery, error) {
	return oparego.New(
		oparego.ParsedQuery(e.query),
		oparego.Compiler(e.compiler),
		oparego.Store(store),
		oparego.Runtime(ast.ObjectTerm()), // an empty one: no environment
		oparego.StrictBuiltinErrors(true),
		oparego.Capabilities(opa.Capabilities()),
	).PrepareForEval(ctx)
}

// selectNamespaces groups the rules of modules by package. Names compare
// exactly: conftest folds case and drops the second of "Main" and "main".
func selectNamespaces(modules map[string]*ast.Module, want []string) ([]namespace, error) {
	const op = "policy/rego.New"
	heads := map[string]map[string]int{}
	for _, m := range modules {
		ns := packageName(m)
		for _, r := range m.Rules {
			name, ok := ruleName(r)
			if !ok || !isRule(name) {
				continue
			}
			if heads[ns] == nil {
				heads[ns] = map[string]int{}
			}
			heads[ns][name]++
		}
	}
	names := slices.Sorted(mapKeys(heads))
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, op, `write a rule such as "deny contains msg if { … }"`, "the policies hold no deny, violation or warn rule")
	}
	if len(want) > 0 {
		for _, w := range want {
			if heads[w] == nil {
				return nil, fault.New(fault.Invalid, op, "use one of: "+strings.Join(names, ", "), "policy namespace %q holds no rule", w)
			}
		}
		names = slices.Compact(slices.Sorted(slices.Values(want)))
	}
	out := make([]namespace, 0, len(names))
	for _, name := range names {
		ns := namespace{name: name}
		for _, r := range slices.Sorted(mapKeys(heads[name])) {
			ns.rules = append(ns.rules, rule{name: r, exception: exceptionName(r)})
			ns.heads += heads[name][r]
		}
		out = append(out, ns)
	}
	return out, nil
}

// Names of the variables in the query.
const (
	exceptionsVar = "exceptions"
	resultsVar    = "results"
)

// parseQuery writes the query of all namespaces: the results of each rule, and
// every name that an exception gives, which a comprehension keeps defined where
// there is none. A rule needs no such thing: it is a set, which is empty at least.
func parseQuery(all []namespace) (ast.Body, error) {
	results, exceptions := make([]string, len(all)), make([]string, len(all))
	for i, ns := range all {
		rules := make([]string, len(ns.rules))
		for j, r := range ns.rules {
			rules[j] = "data." + ns.name + "." + r.name
		}
		results[i] = "[" + strings.Join(rules, ", ") + "]"
		exceptions[i] = fmt.Sprintf("[x | x := data.%s.exception[_][_]]", ns.name)
	}
	q := fmt.Sprintf("%s = [%s]; %s = [%s]", resultsVar, strings.Join(results, ", "), exceptionsVar, strings.Join(exceptions, ", "))
	return ast.ParseBodyWithOpts(q, ast.ParserOptions{RegoVersion: ast.RegoV1})
}

func (e *Evaluator) checkConflicts() error {
	errs := ast.CheckPathConflicts(e.compiler, func(path []string) (bool, error) {
		var v any = e.base
		for _, p := range path {
			m, ok := v.(map[string]any)
			if !ok {
				return true, nil // a leaf above the rule
			}
			if v, ok = m[p]; !ok {
				return false, nil
			}
		}
		return true, nil
	})
	if len(errs) > 0 {
		return fault.New(fault.Invalid, "policy/rego.New", "rename the package or the data key", "policy data hides a rule: %w", error(errs))
	}
	return nil
}

func newStore(data map[string]any) storage.Store {
	return inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false))
}

// fileStore returns the data with data.conftest.file as conftest sets it. It
// shares the rest, so it costs one small map; a store for each file is what
// makes it right under concurrency.
func (e *Evaluator) fileStore(name, dir string) storage.Store {
	data := make(map[string]any, len(e.base)+1)
	for k, v := range e.base {
		data[k] = v
	}
	data["conftest"] = map[string]any{"file": map[string]any{"name": name, "dir": dir}}
	return newStore(data)
}

// mergeData adds the operator's data to what the bundles hold. A value that
// both set is refused: neither may silently win.
func mergeData(ctx context.Context, store storage.Store, operator map[string]any) (map[string]any, error) {
	const op = "policy/rego.New"
	base := map[string]any{}
	if store != nil {
		v, err := storage.ReadOne(ctx, store, storage.Path{})
		if err != nil {
			return nil, fault.New(fault.Internal, op, "", "read policy data: %w", err)
		}
		if m, ok := v.(map[string]any); ok {
			base = m
		}
	}
	for _, k := range reservedData {
		if _, ok := base[k]; ok {
			return nil, fault.New(fault.Invalid, op, "rename the key", "a policy bundle sets data.%s, which is reserved", k)
		}
	}
	normal, err := toJSON(operator)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "", "policy data is not JSON: %w", err)
	}
	m, _ := normal.(map[string]any)
	return mergeMaps(base, m, "data")
}

func mergeMaps(a, b map[string]any, at string) (map[string]any, error) {
	out := make(map[string]any, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		old, ok := out[k]
		if !ok {
			out[k] = v
			continue
		}
		am, aok := old.(map[string]any)
		bm, bok := v.(map[string]any)
		if !aok || !bok {
			return nil, fault.New(fault.Invalid, "policy/rego.New", "remove one of them", "%s.%s is set by a bundle and by the operator", at, k)
		}
		merged, err := mergeMaps(am, bm, at+"."+k)
		if err != nil {
			return nil, err
		}
		out[k] = merged
	}
	return out, nil
}

// asFault classifies what went wrong inside an evaluation. Running out of time
// may pass; anything else stays until the policies or the documents change.
func asFault(ctx context.Context, err error) error {
	const op = "policy/rego.Evaluate"
	if cause := ctx.Err(); cause != nil {
		hint := ""
		if errors.Is(cause, context.DeadlineExceeded) {
			hint = "simplify the policy or raise its timeout"
		}
		return fault.New(fault.Transient, op, hint, "policy evaluation stopped: %w", cause)
	}
	return fault.Wrap(fault.Denied, op, "correct the policy", err)
}
