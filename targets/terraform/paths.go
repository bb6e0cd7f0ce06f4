package terraform

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// fileFunctions read a file, or list files, by the path in their first argument.
var fileFunctions = []string{
	"file", "filebase64", "filebase64sha256", "filebase64sha512", "fileexists", "filemd5", "fileset",
	"filesha1", "filesha256", "filesha512", "templatefile",
}

// unknownPart stands for a part of a path that only the tool can know. No path
// in a configuration has a zero byte.
const unknownPart = "\x00"

// paths refuses calls of file functions in one configuration file whose path
// leaves the repository, and texts that name what is Holdfast's own.
func (m *module) paths(name string) error {
	src := m.out.files[name]
	if strings.HasSuffix(name, ".json") {
		return m.pathsJSON(name, src)
	}
	f, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	if body, ok := f.Body.(*hclsyntax.Body); ok {
		return m.pathsIn(body)
	}
	return nil
}

// pathsJSON takes every string of a JSON configuration for the template that
// it may be.
func (m *module) pathsJSON(name string, src []byte) error {
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			if _, err := parseFile(name, src); err != nil {
				return err // says where
			}
			return invalid("correct the configuration", "%s: %w", name, err)
		}
		s, ok := tok.(string)
		if !ok {
			continue
		}
		line := 1 + bytes.Count(src[:min(int(dec.InputOffset()), len(src))], []byte("\n"))
		if err := m.protectText(s, name, line); err != nil {
			return err
		}
		if err := m.pathsInTemplate(name, s, line); err != nil {
			return err
		}
	}
}

// pathsInTemplate checks a template. One that the tool could not parse calls nothing.
func (m *module) pathsInTemplate(name, src string, line int) error {
	if !strings.Contains(src, "${") && !strings.Contains(src, "%{") {
		return nil
	}
	e, diags := hclsyntax.ParseTemplate([]byte(src), name, hcl.Pos{Line: line, Column: 1})
	if diags.HasErrors() {
		return nil
	}
	return m.pathsIn(e)
}

// pathsIn checks every call in a syntax tree, and reports the first one in the file.
func (m *module) pathsIn(node hclsyntax.Node) error {
	var calls []*hclsyntax.FunctionCallExpr
	var named error
	_ = hclsyntax.VisitAll(node, func(n hclsyntax.Node) hcl.Diagnostics {
		switch n := n.(type) {
		case *hclsyntax.FunctionCallExpr:
			calls = append(calls, n)
		case *hclsyntax.LiteralValueExpr:
			if n.Val.Type().FriendlyName() == "string" && n.Val.IsKnown() && !n.Val.IsNull() && named == nil {
				named = m.protectText(n.Val.AsString(), n.SrcRange.Filename, n.SrcRange.Start.Line)
			}
		}
		return nil
	})
	if named != nil {
		return named
	}
	slices.SortFunc(calls, func(a, b *hclsyntax.FunctionCallExpr) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
	for _, c := range calls {
		if err := m.checkCall(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *module) checkCall(c *hclsyntax.FunctionCallExpr) error {
	if strings.HasPrefix(c.Name, "provider::") {
		return m.permitted("provider-functions", c.NameRange, "use a function of the language", "%s() runs code of a provider while the configuration is read", c.Name)
	}
	name := strings.TrimPrefix(c.Name, "core::")
	if name == "pathexpand" {
		return denied("keep the file in the stack's folder", "%s: %s() leads out of the repository", at(c.NameRange), name)
	}
	if !slices.Contains(fileFunctions, name) || len(c.Args) == 0 {
		return nil
	}
	args := c.Args[:1]
	if name == "fileset" {
		args = c.Args[:min(2, len(c.Args))] // the pattern can lead out as well
	}
	for i, arg := range args {
		for _, p := range m.pathsOf(arg) {
			if m.leaves(p, i == 0) {
				return denied("keep the file in the stack's folder", "%s: the path of %s() leads out of the repository", at(c.NameRange), name)
			}
			if name == "templatefile" {
				if err := m.template(p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// leaves reports whether a path leaves the repository, or may do so: where the
// rest of it is unknown, one step up is too much. Only the first argument of a
// call is relative to the root module's folder.
func (m *module) leaves(p string, whole bool) bool {
	up := slices.Contains(strings.Split(strings.ReplaceAll(p, `\`, "/"), "/"), "..")
	switch {
	case strings.HasPrefix(p, "/"), strings.HasPrefix(p, "~"):
		return true
	case !whole || strings.Contains(p, unknownPart):
		return up
	}
	return up && !fs.ValidPath(path.Join(m.out.dir, p))
}

// template checks the calls in a template that a configuration names.
func (m *module) template(p string) error {
	name := path.Join(m.out.dir, p)
	b, ok := m.out.files[name]
	if !ok || m.seen[name] {
		return nil
	}
	m.seen[name] = true
	return m.pathsInTemplate(name, string(b), 1)
}

// pathsOf returns the paths that an expression can stand for, relative to the
// root module's folder, with unknownPart for what it cannot tell. For an
// expression that it does not know these are the strings inside, each of them
// alone: enough to see a step up.
func (m *module) pathsOf(e hclsyntax.Expression) []string {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		if e.Val.Type().FriendlyName() == "string" && e.Val.IsKnown() && !e.Val.IsNull() {
			return []string{e.Val.AsString()}
		}
		return nil
	case *hclsyntax.ParenthesesExpr:
		return m.pathsOf(e.Expression)
	case *hclsyntax.TemplateWrapExpr:
		return m.pathsOf(e.Wrapped)
	case *hclsyntax.ConditionalExpr:
		return append(m.pathsOf(e.TrueResult), m.pathsOf(e.FalseResult)...)
	case *hclsyntax.ScopeTraversalExpr:
		return []string{m.pathOf(e)}
	case *hclsyntax.TemplateExpr:
		var out strings.Builder
		for _, part := range e.Parts {
			s := unknownPart
			if p := m.pathsOf(part); len(p) == 1 {
				s = p[0]
			}
			out.WriteString(s)
		}
		return []string{out.String()}
	}
	var out []string
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		if l, ok := n.(*hclsyntax.LiteralValueExpr); ok && l.Val.Type().FriendlyName() == "string" && l.Val.IsKnown() && !l.Val.IsNull() {
			switch s := l.Val.AsString(); {
			case strings.HasPrefix(s, "~"):
				out = append(out, s)
			case !strings.HasPrefix(s, "/"): // that may be a separator, as in join("/", …)
				out = append(out, unknownPart+"/"+s)
			}
		}
		return nil
	})
	return out
}

// pathOf returns what a reference stands for in a path.
func (m *module) pathOf(e *hclsyntax.ScopeTraversalExpr) string {
	if len(e.Traversal) == 2 && e.Traversal.RootName() == "path" {
		if a, ok := e.Traversal[1].(hcl.TraverseAttr); ok {
			switch a.Name {
			case "module":
				return m.fromRoot()
			case "root", "cwd":
				return "."
			}
		}
	}
	return unknownPart
}

// fromRoot returns the module's folder relative to the root module's.
func (m *module) fromRoot() string {
	if m.out.dir == "." {
		return m.dir
	}
	up := strings.Repeat("../", 1+strings.Count(m.out.dir, "/"))
	return path.Clean(up + m.dir)
}
