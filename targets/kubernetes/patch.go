package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Drift that is adopted becomes a change of the file that declares the object. Whether
// it is the right file is tried out: the changed repository is rendered, and must say
// what the live object says. What an overlay, a variable or a generator sets is refused,
// with where to look; so is a Secret, of which findings hold masks only.

const opAdopt = "targets/kubernetes.Adopt"

var _ targets.Adopter = (*Target)(nil)

// Adopt implements [targets.Adopter].
func (t *Target) Adopt(ctx context.Context, s *sources.Snapshot, found []targets.Finding) (map[string][]byte, error) {
	out, err := t.adopt(ctx, s, found)
	return out, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) adopt(ctx context.Context, s *sources.Snapshot, found []targets.Finding) (map[string][]byte, error) {
	objects, err := t.declaredIn(ctx, s)
	if err != nil {
		return nil, err
	}
	changed := map[string][]byte{}
	for _, f := range found {
		o := objects[f.ID]
		refuse := func(hint, format string, args ...any) error {
			return fault.New(fault.Invalid, opAdopt, hint, "%s: "+format, append([]any{f.ID}, args...)...)
		}
		switch {
		case o == nil || f.Class == targets.Missing || f.Class == targets.Extra:
			return nil, refuse("change the repository by hand", "an object that is %s cannot be adopted field by field", f.Class)
		case isSecret(o.u.Object):
			return nil, refuse("change the repository by hand", "a finding about a Secret does not hold its values")
		}
		text, ok := changed[o.from.file]
		if !ok {
			if text, err = fs.ReadFile(s.FS, o.from.file); err != nil {
				return nil, refuse("change the repository by hand", "no file declares it: it is generated")
			}
		}
		if text, err = edited(text, o, f.Fields); err != nil {
			return nil, refuse("change the repository by hand", "%s: %w", o.from.file, err)
		}
		changed[o.from.file] = text
	}
	after, err := t.declaredIn(ctx, &sources.Snapshot{Revision: s.Revision, Tree: s.Tree, FS: patched{s.FS, changed}})
	if err != nil {
		return nil, fault.New(fault.Invalid, opAdopt, "change the repository by hand", "what is live cannot be declared: %w", err)
	}
	for _, f := range found {
		for _, field := range f.Fields {
			v, ok := valueAt(after[f.ID].masked, field.Path)
			if ok != (field.From != "") || ok && string(mustJSON(v)) != field.From {
				return nil, fault.New(fault.Invalid, opAdopt, "look for what else sets it: an overlay, a patch, a variable",
					"%s: %s is not set by %s alone", f.ID, field.Path, objects[f.ID].from.file)
			}
		}
	}
	return changed, nil
}

// declaredIn renders s and returns its objects. Nothing is claimed by it.
func (t *Target) declaredIn(ctx context.Context, s *sources.Snapshot) (map[plan.ObjectID]*desired, error) {
	ren, err := t.objects(ctx, s)
	if err != nil {
		return nil, err
	}
	out := map[plan.ObjectID]*desired{}
	for _, o := range ren.objects {
		out[o.id] = o
	}
	return out, nil
}

// edited returns text, a file of YAML documents, in which the one that declares o says
// what the live object says in fields. What does not change stays as it is, byte by byte.
func edited(text []byte, o *desired, fields []plan.Field) ([]byte, error) {
	var out bytes.Buffer
	done := false
	for _, doc := range documents(text) {
		var n yaml.Node
		if err := yaml.Unmarshal(doc, &n); err != nil {
			return nil, err
		}
		if done || !declares(&n, o) {
			out.Write(doc)
			continue
		}
		done = true
		for _, f := range fields {
			var err error
			if doc, err = setField(doc, f); err != nil {
				return nil, err
			}
		}
		out.Write(doc)
	}
	if !done {
		return nil, fault.New(fault.Invalid, opAdopt, "", "no document there declares it under this name")
	}
	return out.Bytes(), nil
}

// documents splits YAML into its documents, each with the line that ends it.
func documents(text []byte) [][]byte {
	var out [][]byte
	start := 0
	for at := 0; at < len(text); {
		end := at + bytes.IndexByte(text[at:], '\n') + 1
		if end == at {
			end = len(text)
		}
		if line := string(bytes.TrimRight(text[at:end], " \t\r\n")); line == "---" || strings.HasPrefix(line, "--- ") {
			out, start = append(out, text[start:at], text[at:end]), end
		}
		at = end
	}
	return append(out, text[start:])
}

// declares reports whether a document is that of o.
func declares(n *yaml.Node, o *desired) bool {
	var meta struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Metadata   struct {
			Name, Namespace string
		} `yaml:"metadata"`
	}
	if n.Decode(&meta) != nil {
		return false
	}
	return meta.Kind == o.u.GetKind() && meta.APIVersion == o.u.GetAPIVersion() && meta.Metadata.Name == o.u.GetName() &&
		(meta.Metadata.Namespace == "" || meta.Metadata.Namespace == o.u.GetNamespace())
}

// setField returns doc with one field as it is in the live object.
func setField(doc []byte, f plan.Field) ([]byte, error) {
	var want any
	if f.From != "" {
		if err := utiljson.Unmarshal([]byte(f.From), &want); err != nil {
			return nil, fault.New(fault.Invalid, opAdopt, "", "%s is too long to be in a finding", f.Path)
		}
	}
	var n yaml.Node
	if err := yaml.Unmarshal(doc, &n); err != nil {
		return nil, err
	}
	tokens := pointerTokens(f.Path)
	at, left := n.Content[0], tokens
	var parent *yaml.Node
	for len(left) > 0 {
		next := nodeAt(at, left[0])
		if next == nil {
			break
		}
		parent, at, left = at, next, left[1:]
	}
	switch {
	case len(left) > 1:
		return nil, fault.New(fault.Invalid, opAdopt, "", "%s is not declared there", f.Path)
	case len(left) == 0 && f.From != "" && at.Kind == yaml.ScalarNode && scalar(want):
		if out, ok := replaceScalar(doc, at, want); ok {
			return out, nil
		}
	}
	var fresh yaml.Node
	if f.From != "" {
		b, err := json.Marshal(want)
		if err != nil {
			return nil, err
		}
		if err := yaml.Unmarshal(b, &fresh); err != nil {
			return nil, err
		}
		plainStyle(&fresh)
	}
	switch {
	case len(left) == 0 && f.From != "":
		*at = *fresh.Content[0]
	case len(left) == 0:
		remove(parent, tokens[len(tokens)-1])
	case f.From == "":
		return doc, nil // it is not there already
	case at.Kind == yaml.MappingNode:
		at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: left[0]}, fresh.Content[0])
	case at.Kind == yaml.SequenceNode:
		at.Content = append(at.Content, fresh.Content[0])
	default:
		return nil, fault.New(fault.Invalid, opAdopt, "", "%s is not declared there", f.Path)
	}
	return encoded(&n, doc)
}

// encoded writes a document in the style of the one that it was read from, as far as
// the indentation of lists goes.
func encoded(n *yaml.Node, was []byte) ([]byte, error) {
	var before yaml.Node
	if err := yaml.Unmarshal(was, &before); err != nil {
		return nil, err
	}
	write := func(n *yaml.Node, compact bool) ([]byte, error) {
		var out bytes.Buffer
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if compact {
			enc.CompactSeqIndent()
		}
		if err := enc.Encode(n); err != nil {
			return nil, err
		}
		return out.Bytes(), enc.Close()
	}
	best, kept := true, -1
	for _, compact := range []bool{true, false} {
		text, err := write(&before, compact)
		if err != nil {
			return nil, err
		}
		lines, same := strings.Split(string(was), "\n"), 0
		for line := range strings.SplitSeq(string(text), "\n") {
			if slices.Contains(lines, line) {
				same++
			}
		}
		if same > kept {
			best, kept = compact, same
		}
	}
	return write(n, best)
}

func scalar(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

// plainStyle has what came from JSON written as people write it.
func plainStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// nodeAt returns the node under a token of a JSON pointer, or nil.
func nodeAt(n *yaml.Node, token string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		return child(n, token)
	}
	if i, err := strconv.Atoi(token); err == nil && i >= 0 {
		return item(n, i)
	}
	return nil
}

func remove(n *yaml.Node, token string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == token {
				n.Content = slices.Delete(n.Content, i, i+2)
				return
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(token); err == nil && i >= 0 && i < len(n.Content) {
			n.Content = slices.Delete(n.Content, i, i+1)
		}
	}
}

// replaceScalar replaces the text of one scalar, if it stands on one line as it is
// written most often.
func replaceScalar(doc []byte, n *yaml.Node, want any) ([]byte, bool) {
	lines := bytes.SplitAfter(doc, []byte("\n"))
	if n.Line < 1 || n.Line > len(lines) || n.Anchor != "" || n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return nil, false
	}
	line := lines[n.Line-1]
	old := n.Value
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		old = `"` + old + `"`
	case n.Style&yaml.SingleQuotedStyle != 0:
		old = "'" + old + "'"
	}
	if n.Column < 1 || n.Column-1 > len(line) || !bytes.HasPrefix(line[n.Column-1:], []byte(old)) || old == "" {
		return nil, false
	}
	fresh, err := yaml.Marshal(want)
	if err != nil || bytes.Count(fresh, []byte("\n")) != 1 {
		return nil, false
	}
	text := strings.TrimSuffix(string(fresh), "\n")
	if s, ok := want.(string); ok && n.Style&yaml.DoubleQuotedStyle != 0 {
		text = strconv.Quote(s)
	}
	lines[n.Line-1] = slices.Concat(line[:n.Column-1], []byte(text), line[n.Column-1+len(old):])
	return bytes.Join(lines, nil), true
}

// patched is a file system in which some files have other content.
type patched struct {
	fs.FS
	files map[string][]byte
}

// Open implements [fs.FS].
func (p patched) Open(name string) (fs.File, error) {
	if b, ok := p.files[name]; ok {
		return &memory{Reader: bytes.NewReader(b), name: path.Base(name)}, nil
	}
	return p.FS.Open(name)
}

// Lstat implements [fs.ReadLinkFS].
func (p patched) Lstat(name string) (fs.FileInfo, error) {
	if b, ok := p.files[name]; ok {
		return &memory{Reader: bytes.NewReader(b), name: path.Base(name)}, nil
	}
	return fs.Lstat(p.FS, name)
}

// ReadLink implements [fs.ReadLinkFS].
func (p patched) ReadLink(name string) (string, error) { return fs.ReadLink(p.FS, name) }

// memory is a file of [patched], and what is known about it.
type memory struct {
	*bytes.Reader
	name string
}

// Stat, Close and the methods of [fs.FileInfo] are what a file in memory needs.
func (m *memory) Stat() (fs.FileInfo, error) { return m, nil }

// Close implements [fs.File].
func (m *memory) Close() error { return nil }

// Name implements [fs.FileInfo].
func (m *memory) Name() string { return m.name }

// Mode implements [fs.FileInfo].
func (m *memory) Mode() fs.FileMode { return 0o644 }

// ModTime implements [fs.FileInfo].
func (m *memory) ModTime() time.Time { return time.Time{} }

// IsDir implements [fs.FileInfo].
func (m *memory) IsDir() bool { return false }

// Sys implements [fs.FileInfo].
func (m *memory) Sys() any { return nil }
