// Package config owns the two configuration surfaces: the operator's file,
// which grants, and the stack file, which asks.
//
// It guarantees strict decoding: an unknown, repeated or wrong field is an error
// with file, line, column and a hint, and nothing is half-loaded. The JSON
// Schemas are made from the very types that are decoded. It refuses to decide
// what a stack may do beyond the operator's map, and it reads no secret: secrets
// are named by file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// maxFile is the largest configuration file in bytes.
const maxFile = 1 << 20

// Duration is a time.Duration in Go's notation: 30s, 15m, 1h30m.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration such as 30s, 15m or 1h30m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Or returns the duration, or def when it is zero.
func (d Duration) Or(def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return time.Duration(d)
}

// Date is a day in UTC, 2027-01-31, or an RFC 3339 time.
type Date struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Date) UnmarshalText(b []byte) error {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, string(b)); err == nil {
			d.Time = t.UTC()
			return nil
		}
	}
	return fmt.Errorf("%q is not a date such as 2027-01-31", b)
}

// MarshalText implements encoding.TextMarshaler.
func (d Date) MarshalText() ([]byte, error) { return []byte(d.Format(time.RFC3339)), nil }

// Problem is one thing that is wrong with a configuration file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Error returns "file:line:column: message".
func (p *Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// Problems returns every problem in err's tree.
func Problems(err error) []*Problem {
	var out []*Problem
	var walk func(error)
	walk = func(err error) {
		if p, ok := err.(*Problem); ok { //nolint:errorlint // walks the tree itself
			out = append(out, p)
			return
		}
		switch e := err.(type) { //nolint:errorlint // walks the tree itself
		case interface{ Unwrap() []error }:
			for _, c := range e.Unwrap() {
				walk(c)
			}
		case interface{ Unwrap() error }:
			if c := e.Unwrap(); c != nil {
				walk(c)
			}
		}
	}
	walk(err)
	return out
}

// document is a decoded file that can still say where a field stands.
type document struct {
	name string
	file *ast.File
	errs []error
}

// decode reads b strictly into into, which is a pointer to a struct.
func decode(name string, b []byte, into any) (*document, error) {
	d := &document{name: name}
	if len(b) > maxFile {
		return nil, d.fault(&Problem{File: name, Message: fmt.Sprintf("the file has %d bytes, at most %d are read", len(b), maxFile)})
	}
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, d.fault(d.problem(err, into))
	}
	d.file = f
	bodies := 0
	for _, doc := range f.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies++
		}
	}
	switch {
	case bodies == 0:
		return nil, d.fault(&Problem{File: name, Line: 1, Column: 1, Message: "the file is empty"})
	case bodies > 1:
		return nil, d.fault(&Problem{File: name, Line: 1, Column: 1, Message: "the file holds more than one document", Hint: "put each into a file of its own"})
	}
	if p := d.aliases(); p != nil {
		return nil, d.fault(p)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(into); err != nil {
		return nil, d.fault(d.problem(err, into))
	}
	return d, nil
}

// aliases refuses anchors and aliases: configuration is reviewed by people, and
// an alias says in one place what holds in another (or a billion others).
func (d *document) aliases() *Problem {
	var found ast.Node
	for _, doc := range d.file.Docs {
		if doc.Body == nil {
			continue
		}
		if nodes := ast.Filter(ast.AliasType, doc.Body); len(nodes) > 0 {
			found = nodes[0]
		}
		if nodes := ast.Filter(ast.MergeKeyType, doc.Body); found == nil && len(nodes) > 0 {
			found = nodes[0]
		}
	}
	if found == nil {
		return nil
	}
	pos := found.GetToken().Position
	return &Problem{File: d.name, Line: pos.Line, Column: pos.Column, Message: "aliases and merge keys are not allowed", Hint: "write the value out"}
}

func (d *document) fault(p *Problem) error {
	return fault.New(fault.Invalid, "internal/config.Load", p.Hint, "%w", p)
}

// wrongType is how the YAML library reports a value of another type.
var wrongType = regexp.MustCompile(`^cannot unmarshal (\S+) into Go .* of type (\S+)$`)

// problem turns a YAML error into one with a place and, where it can, a hint.
func (d *document) problem(err error, into any) *Problem {
	p := &Problem{File: d.name, Message: firstLine(err.Error())}
	var ye yaml.Error
	if errors.As(err, &ye) {
		p.Message = ye.GetMessage()
		if tk := ye.GetToken(); tk != nil {
			p.Line, p.Column = tk.Position.Line, tk.Position.Column
		}
	}
	if m := wrongType.FindStringSubmatch(p.Message); m != nil {
		p.Message = fmt.Sprintf("want %s, got %s", m[2], m[1])
	}
	if field, ok := strings.CutPrefix(p.Message, "unknown field "); ok {
		name := strings.Trim(field, `"`)
		p.Message = fmt.Sprintf("unknown field %q", name)
		if near := nearest(name, fieldNames(reflect.TypeOf(into))); near != "" {
			p.Hint = fmt.Sprintf("did you mean %q?", near)
		} else {
			p.Hint = "holdfast check --schema prints the fields that exist"
		}
	}
	return p
}

// wrong notes a problem with the field at a YAML path such as "$.allow[0].paths".
func (d *document) wrong(path, hint, format string, args ...any) {
	p := &Problem{File: d.name, Message: fmt.Sprintf(format, args...), Hint: hint}
	p.Line, p.Column = d.position(path)
	d.errs = append(d.errs, p)
}

// at returns "FILE:LINE" of the field at a YAML path.
func (d *document) at(path string) string {
	line, _ := d.position(path)
	return fmt.Sprintf("%s:%d", filepath.Base(d.name), line)
}

// position returns where the field at a YAML path stands, or what it is in.
func (d *document) position(path string) (line, column int) {
	for at := path; at != "$" && at != ""; at = parent(at) {
		yp, err := yaml.PathString(at)
		if err != nil {
			continue
		}
		node, err := yp.FilterFile(d.file)
		if err != nil || node == nil || node.GetToken() == nil {
			continue
		}
		tok := node.GetToken()
		if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 {
			tok = m.Values[0].Key.GetToken()
		}
		return tok.Position.Line, tok.Position.Column
	}
	return 1, 1
}

func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i > 0 {
		return path[:i]
	}
	return ""
}

func (d *document) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	hint := ""
	var p *Problem
	if errors.As(d.errs[0], &p) {
		hint = p.Hint
	}
	return fault.New(fault.Invalid, "internal/config.Load", hint, "%w", errors.Join(d.errs...))
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// fieldNames returns every field name that t and what it holds can have.
func fieldNames(t reflect.Type) []string {
	seen := map[reflect.Type]bool{}
	var names []string
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			if seen[t] {
				return
			}
			seen[t] = true
			for i := range t.NumField() {
				f := t.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name != "" {
					names = append(names, name)
				}
				walk(f.Type)
			}
		}
	}
	walk(t)
	slices.Sort(names)
	return slices.Compact(names)
}

// nearest returns the name that is at most two edits away from s, or "".
func nearest(s string, names []string) string {
	best, bestDist := "", 3
	for _, n := range names {
		if strings.EqualFold(s, n) {
			return n
		}
		if d := distance(s, n); d < bestDist && d < len(s) {
			best, bestDist = n, d
		}
	}
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j+1]+1, cur[j]+1, prev[j]+cost)
		}
		prev = cur
	}
	return prev[len(b)]
}

// readFile reads a configuration file with the size limit.
func readFile(path string) ([]byte, error) {
	const op = "internal/config.Load"
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, "name the file with -c", "%w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(limitReader(f)); err != nil {
		return nil, fault.New(fault.Invalid, op, "", "%s: %w", path, err)
	}
	return buf.Bytes(), nil
}

// abs resolves a path of the file against the folder that the file is in.
func abs(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
