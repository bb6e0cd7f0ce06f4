package rego

import (
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// The rule names of conftest v0.71.1 (policy/engine.go).
var (
	warningName = regexp.MustCompile(`^warn(_[a-zA-Z0-9]+)*$`)
	failureName = regexp.MustCompile(`^(deny|violation)(_[a-zA-Z0-9]+)*$`)
	nearName    = regexp.MustCompile(`^(?i:deny|violation|warn)`)
)

func isRule(name string) bool { return warningName.MatchString(name) || failureName.MatchString(name) }

// exceptionName strips the prefixes from a rule's name in conftest's order.
func exceptionName(rule string) string {
	switch rule {
	case "violation", "deny", "warn":
		return ""
	}
	for _, p := range []string{"violation_", "deny_", "warn_"} {
		rule = strings.TrimPrefix(rule, p)
	}
	return rule
}

func packageName(m *ast.Module) string {
	return strings.Replace(m.Package.Path.String(), "data.", "", 1)
}

// ruleName returns the first part of the rule's reference: "deny" of deny, deny.x and deny[k].
func ruleName(r *ast.Rule) (string, bool) {
	if r.Head == nil {
		return "", false
	}
	if len(r.Head.Reference) > 0 {
		if v, ok := r.Head.Reference[0].Value.(ast.Var); ok {
			return string(v), true
		}
	}
	return string(r.Head.Name), r.Head.Name != ""
}

// refuseSilent refuses each rule that looks as if it judged and never can.
// conftest reads only sets of strings and objects; it takes anything else under
// these names for "passed".
func refuseSilent(modules map[string]*ast.Module) error {
	for _, file := range slices.Sorted(mapKeys(modules)) {
		m := modules[file]
		if packageName(m) == "" || strings.ContainsAny(packageName(m), "[\"") {
			return refusal(file, m.Package.Location, "use a package name of plain identifiers", "package %s cannot be named as a namespace", m.Package.Path)
		}
		for _, r := range m.Rules {
			for ; r != nil; r = r.Else {
				if err := refuseRule(file, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func refuseRule(file string, r *ast.Rule) error {
	name, ok := ruleName(r)
	if !ok || !nearName.MatchString(name) {
		return nil
	}
	set := r.Head.RuleKind() == ast.MultiValue && len(r.Head.Reference) <= 1 && len(r.Head.Args) == 0
	if !isRule(name) {
		if judges(r) {
			return refusal(file, r.Location, `name it like "deny_name", or give a helper another name`, "conftest does not evaluate a rule named %q", name)
		}
		return nil
	}
	if !set || r.Default {
		return refusal(file, r.Location, `write "`+name+` contains msg if { … }"`, "rule %q is not a set, so it would pass in silence", name)
	}
	if !mayBeMessage(r.Head.Key) {
		return refusal(file, r.Location, `let the rule contain a string, or an object with "msg"`, "rule %q contains %s, which is not a message, so it would pass in silence", name, r.Head.Key)
	}
	return nil
}

// judges reports whether a rule with a near-miss name looks like a verdict, not
// like a helper: a set, a constant string or a boolean.
func judges(r *ast.Rule) bool {
	if len(r.Head.Args) > 0 {
		return false
	}
	if r.Head.RuleKind() == ast.MultiValue || len(r.Head.Reference) > 1 {
		return true
	}
	if r.Head.Value == nil {
		return true
	}
	switch r.Head.Value.Value.(type) {
	case ast.Boolean, ast.String:
		return true
	}
	return false
}

// mayBeMessage reports whether the key of a set rule can be a message. What a
// variable holds is checked when the rule gives it.
func mayBeMessage(key *ast.Term) bool {
	if key == nil {
		return false
	}
	switch v := key.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, *ast.Array, ast.Set, *ast.ArrayComprehension, *ast.SetComprehension:
		return false
	case ast.String:
		return v != ""
	case ast.Object:
		msg := v.Get(ast.InternedTerm("msg"))
		if msg == nil {
			return false
		}
		_, isString := msg.Value.(ast.String)
		return !ast.IsConstant(msg.Value) || isString && string(msg.Value.(ast.String)) != ""
	}
	return true
}

func refusal(file string, loc *ast.Location, hint, format string, args ...any) error {
	line := 0
	if loc != nil {
		line = loc.Row
	}
	return fault.New(fault.Invalid, "policy/rego.New", hint, "%s:%d: "+format, append([]any{file, line}, args...)...)
}

// usesFileInfo reports whether a policy may look at data.conftest, which costs
// a query of its own for each file.
func usesFileInfo(modules map[string]*ast.Module) bool {
	found := false
	for _, m := range modules {
		ast.WalkRefs(m, func(r ast.Ref) bool {
			if len(r) > 0 && r[0].Equal(ast.DefaultRootDocument) {
				if len(r) == 1 {
					found = true
				} else if s, ok := r[1].Value.(ast.String); !ok || s == "conftest" {
					found = true
				}
			}
			return found
		})
	}
	return found || importsConftest(modules)
}

func importsConftest(modules map[string]*ast.Module) bool {
	for _, m := range modules {
		for _, imp := range m.Imports {
			if strings.HasPrefix(imp.Path.String(), "data.conftest") {
				return true
			}
		}
	}
	return false
}

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }
