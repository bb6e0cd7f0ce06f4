package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/fluxcd/pkg/envsubst"
	"go.yaml.in/yaml/v3"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	kjson "sigs.k8s.io/json"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const opRender = "targets/kubernetes.Render"

func invalid(hint, format string, args ...any) error {
	return fault.New(fault.Invalid, opRender, hint, format, args...)
}

// parsed is one object as a file declares it, where it is rendered.
type parsed struct {
	file  string
	line  int        // of the document's first line; 0 is unknown
	node  *yaml.Node // nil: only the value is known
	value map[string]any
}

func (d parsed) at() string { return at(d.file, d.line) }

func at(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// manifests reads every file that the stack's globs, files and folders name.
func (j *job) manifests(tr *tree) ([]parsed, error) {
	var names []string
	for _, entry := range j.Manifests {
		found, err := expand(tr, j.Dir, entry)
		if err != nil {
			return nil, err
		}
		names = append(names, found...)
	}
	slices.Sort(names)
	var out []parsed
	for _, name := range slices.Compact(names) {
		b, err := tr.read(name)
		if err != nil {
			return nil, err
		}
		if b, err = j.substitute(tr, name, b); err != nil {
			return nil, err
		}
		ds, err := decode(name, b)
		if err != nil {
			return nil, err
		}
		for _, d := range ds {
			if version, _ := d.value["apiVersion"].(string); strings.HasPrefix(version, "holdfast.dev/") {
				continue // the stack file lives beside the manifests
			}
			if out = append(out, d); len(out) > maxObjects {
				return nil, invalid("split the stack", "the stack has more than %d objects", maxObjects)
			}
		}
	}
	return out, nil
}

// expand returns the manifest files that one entry names; none is an error, so
// that a mistyped path never empties a stack.
func expand(tr *tree, dir, entry string) ([]string, error) {
	name, err := clean(dir, entry)
	if err != nil {
		return nil, err
	}
	if !strings.ContainsAny(entry, "*?[{") {
		isDir, err := tr.isDir(name)
		if err != nil {
			return nil, err
		}
		if !isDir {
			return []string{name}, nil
		}
		real, _, err := tr.resolve(name)
		if err != nil {
			return nil, notFound(name, err)
		}
		entries, err := fs.ReadDir(tr.fsys, real)
		if err != nil {
			return nil, notFound(name, err)
		}
		var out []string
		for _, e := range entries {
			if !e.IsDir() && isManifest(e.Name()) {
				out = append(out, path.Join(name, e.Name()))
			}
		}
		return nonEmpty(out, entry)
	}
	found, err := doublestar.Glob(tr.fsys, name)
	if err != nil {
		return nil, invalid("", "manifests: %q: %w", entry, err)
	}
	return nonEmpty(slices.DeleteFunc(found, func(n string) bool {
		isDir, err := tr.isDir(n)
		return (err == nil && isDir) || !isManifest(n)
	}), entry)
}

func nonEmpty(names []string, entry string) ([]string, error) {
	if len(names) == 0 {
		return nil, invalid("correct the path, or use a pattern such as **/*.yaml", "manifests: %q matches no .yaml, .yml or .json file", entry)
	}
	return names, nil
}

func isManifest(name string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, path.Ext(name))
}

// variable is the one form of a reference that is replaced.
var variable = regexp.MustCompile(`^\$\{[A-Za-z_][A-Za-z0-9_]*\}`)

// substitute replaces ${NAME} by the stack's variables, and $$ by $. A variable
// that is not set is an error, and so are the operators and nested references
// that envsubst knows as well: a few bytes of them can make gigabytes. Each
// reference is replaced on its own, since envsubst copies what it is given for
// every $$ and recurses for every reference.
func (j *job) substitute(tr *tree, name string, b []byte) ([]byte, error) {
	if j.Variables == nil || !bytes.Contains(b, []byte("${")) {
		return b, nil
	}
	at := func(rest []byte) string {
		return fmt.Sprintf("%s:%d", name, 1+bytes.Count(b[:len(b)-len(rest)], []byte("\n")))
	}
	lookup := func(v string) (string, bool) {
		value, ok := j.Variables[v]
		return value, ok
	}
	var out []byte
	for rest := b; ; {
		i := bytes.IndexByte(rest, '$')
		if i < 0 {
			out = append(out, rest...)
			break
		}
		out, rest = append(out, rest[:i]...), rest[i:]
		ref := variable.Find(rest)
		switch {
		case bytes.HasPrefix(rest, []byte("$$")):
			ref = rest[:2]
		case ref == nil && bytes.HasPrefix(rest, []byte("${")):
			return nil, invalid("write ${NAME}, with neither operators nor nesting, or $${ for a literal ${", "%s: not a plain ${NAME}", at(rest))
		case ref == nil:
			out, rest = append(out, '$'), rest[1:]
			continue
		}
		s, err := envsubst.Eval(string(ref), lookup)
		if err != nil {
			return nil, invalid("set the variable in the operator's file, or write $${NAME} for a literal ${NAME}", "%s: %w", at(rest), err)
		}
		out, rest = append(out, s...), rest[len(ref):]
		if len(out) > maxFileBytes {
			return nil, invalid("split the file, or make the variables shorter", "%s: the file is larger than %d bytes with its variables replaced", at(rest), maxFileBytes)
		}
	}
	if tr.expanded += int64(len(out)); tr.expanded > maxTreeBytes {
		return nil, invalid("split the stack", "%s: the stack has more than %d bytes with its variables replaced", name, maxTreeBytes)
	}
	return out, nil
}

// decode reads the objects of one file. Lists are flattened.
func decode(name string, b []byte) ([]parsed, error) {
	var out []parsed
	if path.Ext(name) == ".json" {
		var v map[string]any
		strict, err := kjson.UnmarshalStrict(b, &v, kjson.DisallowDuplicateFields)
		if err = errors.Join(append(strict, err)...); err != nil {
			return nil, invalid("", "%s: %w", name, err)
		}
		return flatten(out, parsed{file: name, line: 1, value: v}, 0)
	}
	for _, doc := range split(b) {
		d := parsed{file: name}
		var root yaml.Node
		dec := yaml.NewDecoder(bytes.NewReader(doc.text))
		switch err := dec.Decode(&root); {
		case errors.Is(err, io.EOF):
			continue // comments only
		case err != nil:
			return nil, invalid("", "%s:%d: %w", name, doc.line, unquoted(err))
		}
		if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			return nil, invalid("separate documents by a line ---", "%s:%d: more than one YAML document where one is expected", name, doc.line)
		}
		if len(root.Content) == 0 || root.Content[0].Tag == "!!null" {
			continue
		}
		shift(&root, doc.line-1, 0)
		d.node = root.Content[0]
		d.line = d.node.Line
		if err := unique(name, d.node, 0); err != nil {
			return nil, err
		}
		j, err := sigsyaml.YAMLToJSONStrict(doc.text)
		if err != nil {
			return nil, invalid("", "%s:%d: %w", name, d.line, unquoted(err))
		}
		if err := utiljson.Unmarshal(j, &d.value); err != nil || d.value == nil {
			return nil, invalid("", "%s:%d: %w", name, d.line, errNotObject)
		}
		if out, err = flatten(out, d, 0); err != nil {
			return nil, err
		}
	}
	return out, nil
}

var errNotObject = errors.New("not an object")

// yamlQuotes are the errors of the YAML parsers that quote a file, by words that
// are in them, and what is said instead.
var yamlQuotes = []struct{ words, instead string }{
	{"unknown anchor", "an alias (*name) of an anchor that is not there; quote a value that starts with *"},
	{"value contains itself", "the value of an anchor contains itself"},
	{"cannot decode", "a value is not of the type that its tag says"},
	{"cannot unmarshal", "a value is not of the type that is expected"},
	{"map key", "a key is neither a text nor a number"},
}

// unquoted returns err, of a YAML parser, without what it quotes: it may be the
// value of a Secret, which nobody has registered before it is decoded.
func unquoted(err error) error {
	for _, q := range yamlQuotes {
		if strings.Contains(err.Error(), q.words) {
			return errors.New("yaml: " + q.instead)
		}
	}
	return err
}

type document struct {
	line int // of its first line, from 1
	text []byte
}

// split cuts a YAML stream at its document markers, which YAML 1.2 (9.1.2)
// allows at the start of a line only, and nowhere inside a document.
func split(b []byte) []document {
	out := []document{{line: 1}}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		marker := bytes.HasPrefix(line, []byte("---")) || bytes.HasPrefix(line, []byte("..."))
		if marker && (len(line) == 3 || bytes.ContainsAny(line[3:4], " \t\r\n")) {
			out = append(out, document{line: n})
			line = append([]byte("   "), line[3:]...) // keeps columns; "--- {a: b}" is legal
		}
		last := &out[len(out)-1]
		last.text = append(last.text, line...)
	}
	return out
}

// shift makes the lines of a document's nodes lines of the file.
func shift(n *yaml.Node, by, depth int) {
	if depth > 10*maxDepth {
		return
	}
	n.Line += by
	for _, c := range n.Content {
		shift(c, by, depth+1)
	}
}

// unique refuses duplicate keys, with their line.
func unique(file string, n *yaml.Node, depth int) error {
	if depth > 10*maxDepth {
		return invalid("", "%s:%d: nested too deeply", file, n.Line)
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if first, dup := seen[k.Value]; dup && k.Kind == yaml.ScalarNode {
				return invalid("remove one of them", "%s:%d: the key %q is there already, in line %d", file, k.Line, k.Value, first)
			}
			seen[k.Value] = k.Line
		}
	}
	for _, c := range n.Content {
		if err := unique(file, c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// flatten appends d to out, or what it holds if it is a list.
func flatten(out []parsed, d parsed, depth int) ([]parsed, error) {
	kind, _ := d.value["kind"].(string)
	items, ok := d.value["items"].([]any)
	if !strings.HasSuffix(kind, "List") || !ok {
		return append(out, d), nil
	}
	if depth > maxDepth || len(items) > maxObjects {
		return nil, invalid("split the list", "%s: the list is too deep or too long", d.at())
	}
	nodes := child(d.node, "items")
	for i, item := range items {
		e := parsed{file: d.file, line: d.line}
		if nodes != nil && i < len(nodes.Content) {
			e.node, e.line = nodes.Content[i], nodes.Content[i].Line
		}
		if e.value, ok = item.(map[string]any); !ok {
			return nil, invalid("", "%s: item %d of the list is not an object", d.at(), i)
		}
		var err error
		if out, err = flatten(out, e, depth+1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// child returns the value of key in the mapping n, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
