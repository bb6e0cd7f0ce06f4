package predicate

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/holdfast-dev/holdfast/internal/opa"
)

const (
	file    = "predicate.rego"
	pack    = "data.holdfast.predicate"
	verdict = "deny"
)

// compile prepares the deny rules of a module.
func compile(module []byte) (oparego.PreparedEvalQuery, error) {
	var none oparego.PreparedEvalQuery
	m, err := ast.ParseModuleWithOpts(file, string(module), ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: opa.Capabilities()})
	if err != nil {
		return none, err
	}
	if m == nil {
		return none, errors.New("the Rego module is empty")
	}
	if err := refuse(m); err != nil {
		return none, err
	}
	c := ast.NewCompiler().WithCapabilities(opa.Capabilities()).WithStrict(true)
	if c.Compile(map[string]*ast.Module{file: m}); c.Failed() {
		return none, c.Errors
	}
	return oparego.New(
		oparego.Query(pack+"."+verdict),
		oparego.Compiler(c),
		oparego.Runtime(ast.ObjectTerm()), // an empty one: no environment
		oparego.StrictBuiltinErrors(true),
		oparego.Capabilities(opa.Capabilities()),
	).PrepareForEval(context.Background())
}

// nearVerdict finds names that look as if they judged.
var nearVerdict = regexp.MustCompile(`\A(?i:deny|violation|warn)`)

// refuse refuses a module that looks as if it judged and does not.
func refuse(m *ast.Module) error {
	if m.Package.Path.String() != pack {
		return at(m.Package.Location, "the package is %s, expected holdfast.predicate", strings.TrimPrefix(m.Package.Path.String(), "data."))
	}
	denies := false
	for _, r := range m.Rules {
		name := r.Head.Ref().String()
		switch {
		case name == verdict && r.Head.RuleKind() == ast.MultiValue && !r.Default && message(r.Head.Key):
			denies = true
		case nearVerdict.MatchString(name):
			return at(r.Location, `rule %q would never refuse: write "deny contains msg if { … }" with a text as msg`, name)
		}
	}
	if !denies {
		return errors.New(`the Rego module has no deny rule, so it can never refuse: write "deny contains msg if { … }"`)
	}
	return references(m)
}

// message reports whether what a set rule contains can be a text. What a variable
// holds is checked when the rule gives it.
func message(key *ast.Term) bool {
	if key == nil {
		return false
	}
	if s, ok := key.Value.(ast.String); ok {
		return strings.TrimSpace(string(s)) != ""
	}
	return !ast.IsConstant(key.Value)
}

// references refuses a look at what is never there: a rule that compares with it
// never holds, and so never refuses.
func references(m *ast.Module) error {
	var err error
	ast.WalkRefs(m, func(r ast.Ref) bool {
		if err != nil || len(r) == 0 {
			return true
		}
		switch {
		case r.HasPrefix(ast.MustParseRef(pack)):
		case r[0].Equal(ast.DefaultRootDocument):
			err = at(r[0].Location, "%s is not there: a module has no data", r)
		case r[0].Equal(ast.InputRootDocument) && len(r) > 1:
			if s, ok := r[1].Value.(ast.String); ok && !slices.Contains(inputs, string(s)) {
				err = at(r[0].Location, "%s is not there: input has %s", r, strings.Join(inputs, ", "))
			}
		}
		return err != nil
	})
	return err
}

func at(loc *ast.Location, format string, args ...any) error {
	row := 0
	if loc != nil {
		row = loc.Row
	}
	return fmt.Errorf("%s:%d: %s", file, row, fmt.Sprintf(format, args...))
}
