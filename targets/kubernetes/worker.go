package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

// Rendering has two halves. RenderTask parses what the repository holds, with
// libraries that nobody has read to the end, and may run in a process that can
// do nothing else. What it answers is bounded JSON, which the Target validates:
// permissions, masks, digests and policies are the Target's.

// Renderer runs [RenderTask] for requests, mostly in another process. The domain
// names whose content is rendered: content of two domains MUST NOT meet in one
// process. An error keeps the kind that RenderTask gave it; one of the Renderer's
// own is fault.Invalid where the content exceeds a limit.
type Renderer interface {
	Run(ctx context.Context, domain string, request []byte, fsys fs.FS) (answer []byte, err error)
}

// inProcess renders in this process: for tests, and where there are no workers.
type inProcess struct{}

func (inProcess) Run(_ context.Context, _ string, request []byte, fsys fs.FS) ([]byte, error) {
	return RenderTask(request, fsys)
}

// Limits on an answer, beside its length, which the Renderer bounds.
const (
	maxNesting = 10 * maxDepth // of one object
	maxValues  = 2_000_000     // of all objects and their lines: what they take in memory is many times their text
)

// job is a request: what of a Spec rendering needs.
type job struct {
	Dir       string            `json:"dir"`
	Kustomize string            `json:"kustomize,omitempty"`
	Manifests []string          `json:"manifests,omitempty"`
	Variables map[string]string `json:"variables"` // null: leave ${NAME} alone
	// Mask is the key of the masks in errors, of this environment's renderings only.
	Mask []byte `json:"mask"`
}

// answer is what RenderTask returns.
type answer struct {
	Objects []rendered `json:"objects"`
}

// rendered is one object of an answer. Lines are those of its values in the
// order of walk, and empty where only Line is known.
type rendered struct {
	File  string          `json:"file"`
	Line  int             `json:"line,omitempty"`
	Lines []int           `json:"lines,omitempty"`
	Value json.RawMessage `json:"value"`
}

// RenderTask renders one stack from fsys. It reads nothing else, and keeps
// nothing from one request to the next that depends on it. What is wrong with the
// repository is an error of kind fault.Invalid.
func RenderTask(request []byte, fsys fs.FS) ([]byte, error) {
	var j job
	if err := json.Unmarshal(request, &j); err != nil {
		return nil, fault.New(fault.Internal, opRender, "", "request: %w", err)
	}
	read := j.manifests
	if j.Kustomize != "" {
		read = j.kustomize
	}
	found, err := read(&tree{fsys: fsys})
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, opRender, "", err)
	}
	return encode(found)
}

func encode(found []parsed) ([]byte, error) {
	a := answer{Objects: make([]rendered, len(found))}
	for i, d := range found {
		value, err := json.Marshal(d.value)
		if err != nil {
			return nil, invalid("", "%s: %w", d.at(), err)
		}
		r := rendered{File: d.file, Line: d.line, Value: value}
		if r.Lines, err = linesOf(nil, d.value, d.node, 0); err != nil {
			return nil, invalid("", "%s: %w", d.at(), err)
		}
		if d.node == nil {
			r.Lines = nil
		}
		a.Objects[i] = r
	}
	return json.Marshal(a)
}

var errNesting = errors.New("nested too deeply")

// linesOf appends the lines of v and what it holds to out, 0 where the node is
// not known: behind a merge key.
func linesOf(out []int, v any, n *yaml.Node, depth int) ([]int, error) {
	if depth > maxNesting {
		return nil, errNesting
	}
	line := 0
	if n != nil {
		line = n.Line
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
	}
	out = append(out, line)
	var err error
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if out, err = linesOf(out, v[k], child(n, k), depth+1); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, e := range v {
			if out, err = linesOf(out, e, item(n, i), depth+1); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// item returns the value at i of the sequence n, or nil.
func item(n *yaml.Node, i int) *yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode || i >= len(n.Content) {
		return nil
	}
	return n.Content[i]
}

// declared is one object as a file declares it.
type declared struct {
	file  string
	line  int    // of the object's first line; 0 is unknown
	lines *lines // of its values; nil: unknown
	value map[string]any
}

func (d declared) at() string { return at(d.file, d.line) }

// lineAt returns the line of the value at path, which is made of keys and
// indexes, or that of the object where it is not known.
func (d declared) lineAt(path []any) int {
	l := d.lines
	for _, p := range path {
		if l == nil {
			return d.line
		}
		switch p := p.(type) {
		case string:
			l = l.keys[p]
		case int:
			if p >= len(l.items) {
				return d.line
			}
			l = l.items[p]
		}
	}
	if l == nil || l.line == 0 {
		return d.line
	}
	return l.line
}

// lines are the lines of a value and of what it holds.
type lines struct {
	line  int
	keys  map[string]*lines
	items []*lines
}

// read has the stack rendered and returns its objects.
func (t *Target) read(ctx context.Context, s *sources.Snapshot) ([]declared, error) {
	key := t.c.keyed("masks of renderings", []byte(t.spec.Environment))
	request, err := json.Marshal(job{
		Dir: t.spec.Dir, Kustomize: t.spec.Kustomize, Manifests: t.spec.Manifests,
		Variables: t.spec.Variables, Mask: key[:],
	})
	if err != nil {
		return nil, fault.New(fault.Internal, opRender, "", "request: %w", err)
	}
	b, err := t.c.cfg.Renderer.Run(ctx, s.Revision.Source+"\x00"+t.spec.Environment, request, s.FS)
	if err != nil {
		return nil, t.scrubbed(err)
	}
	found, err := decodeAnswer(b)
	if err != nil {
		return nil, fault.New(fault.Internal, opRender, "report it, with the files of the stack", "the rendering process answers nonsense: %s", t.c.cfg.Masker.Scrub(err.Error()))
	}
	return found, nil
}

// scrubbed masks what rendering says: it quotes what it reads.
func (t *Target) scrubbed(err error) error {
	text, hint := err.Error(), fault.HintOf(err)
	clean, cleanHint := t.c.cfg.Masker.Scrub(text), t.c.cfg.Masker.Scrub(hint)
	if clean == text && cleanHint == hint {
		return err
	}
	return fault.New(fault.KindOf(err), opRender, cleanHint, "%s", clean)
}

// decodeAnswer takes an answer apart. It believes nothing of it.
func decodeAnswer(b []byte) ([]declared, error) {
	if err := sane(b); err != nil {
		return nil, err
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, err
	}
	if len(a.Objects) > maxObjects {
		return nil, fmt.Errorf("%d objects", len(a.Objects))
	}
	out := make([]declared, len(a.Objects))
	for i, r := range a.Objects {
		if !fs.ValidPath(r.File) || r.Line < 0 {
			return nil, fmt.Errorf("object %d is at no place", i)
		}
		d := declared{file: r.File, line: r.Line}
		if err := utiljson.Unmarshal(r.Value, &d.value); err != nil {
			return nil, err
		}
		if d.value == nil {
			return nil, fmt.Errorf("object %d is none", i)
		}
		if len(r.Lines) > 0 {
			rest := r.Lines
			if d.lines = linesFor(d.value, &rest); d.lines == nil || len(rest) > 0 {
				return nil, fmt.Errorf("object %d has other lines than values", i)
			}
		}
		out[i] = d
	}
	return out, nil
}

// sane refuses JSON that takes much more memory than its text, before any of it
// is decoded.
func sane(b []byte) error {
	depth, values, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			depth++
			values++
		case c == '}', c == ']':
			depth--
		case c == ',':
			values++
		}
		if depth > maxNesting+3 || values > maxValues {
			return errors.New("too deep, or too many values")
		}
	}
	return nil
}

// linesFor is the reverse of linesOf: it takes the lines of v from the front of
// rest. It returns nil if there are too few.
func linesFor(v any, rest *[]int) *lines {
	if len(*rest) == 0 || (*rest)[0] < 0 {
		return nil
	}
	l := &lines{line: (*rest)[0]}
	*rest = (*rest)[1:]
	switch v := v.(type) {
	case map[string]any:
		l.keys = make(map[string]*lines, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if l.keys[k] = linesFor(v[k], rest); l.keys[k] == nil {
				return nil
			}
		}
	case []any:
		l.items = make([]*lines, len(v))
		for i, e := range v {
			if l.items[i] = linesFor(e, rest); l.items[i] == nil {
				return nil
			}
		}
	}
	return l
}
