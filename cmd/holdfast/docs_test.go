package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// root is the top folder of the repository.
const root = "../.."

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// docs/cli.md: every command and every flag.
func TestCommandsAreDocumented(t *testing.T) {
	t.Parallel()
	doc := readDoc(t, "docs/cli.md")
	tree := newRoot()
	tree.InitDefaultCompletionCmd()
	tree.InitDefaultHelpCmd()
	for _, c := range allCommands(tree)[1:] {
		if c.Hidden {
			continue
		}
		if !c.HasSubCommands() && !mentionsCommand(doc, c) {
			t.Errorf("docs/cli.md does not mention %q", c.CommandPath())
		}
		c.InitDefaultHelpFlag()
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !mentionsFlag(doc, "--"+f.Name) {
				t.Errorf("docs/cli.md does not mention --%s of %q", f.Name, c.CommandPath())
			}
			if f.Shorthand != "" && !mentionsFlag(doc, "-"+f.Shorthand) {
				t.Errorf("docs/cli.md does not mention -%s of %q", f.Shorthand, c.CommandPath())
			}
		})
	}
}

// mentionsCommand reports whether doc has the command; the shells of completion
// stand in one list.
func mentionsCommand(doc string, c *cobra.Command) bool {
	if c.Parent().Name() == "completion" {
		return regexp.MustCompile(`holdfast completion [a-z|]*\b` + c.Name() + `\b`).MatchString(doc)
	}
	return regexp.MustCompile(regexp.QuoteMeta(c.CommandPath()) + `\b`).MatchString(doc)
}

func mentionsFlag(doc, flag string) bool {
	return regexp.MustCompile("(^|[^-a-z])" + regexp.QuoteMeta(flag) + "([^-a-z]|$)").MatchString(doc)
}

// Every test and script that the documentation leans on exists, and where it
// names the package, there.
func TestNamedTestsExist(t *testing.T) {
	t.Parallel()
	tests := testsByName(t)
	name := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`")
	script := regexp.MustCompile("`([a-z0-9-]+\\.txtar)`")
	inPackage := regexp.MustCompile("`([a-z/]+)`: ((?:`(?:Test|Fuzz)\\w+`(?:, )?)+)")
	for _, file := range []string{"docs/threat-model.md", "docs/ARCHITECTURE.md", "docs/operations.md"} {
		doc := readDoc(t, file)
		found := name.FindAllStringSubmatch(doc, -1)
		if len(found) == 0 {
			t.Errorf("%s names no test", file)
		}
		for _, m := range found {
			if tests[m[1]] == nil {
				t.Errorf("%s names %s, which does not exist", file, m[1])
			}
		}
		for _, m := range script.FindAllStringSubmatch(doc, -1) {
			if _, err := os.Stat(filepath.Join("testdata/script", m[1])); err != nil {
				t.Errorf("%s names %s, which does not exist", file, m[1])
			}
		}
		for _, m := range inPackage.FindAllStringSubmatch(doc, -1) {
			for _, n := range name.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(tests[n[1]], m[1]) {
					t.Errorf("%s says that %s is in %s; it is in %v", file, n[1], m[1], tests[n[1]])
				}
			}
		}
	}
}

// testsByName returns the folders of each test and fuzz test.
func testsByName(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	eachFile(t, func(dir, name string, f *ast.File) {
		if !strings.HasSuffix(name, "_test.go") {
			return
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				out[fn.Name.Name] = append(out[fn.Name.Name], dir)
			}
		}
	})
	return out
}

// eachFile calls do with each Go file of the module.
func eachFile(t *testing.T, do func(dir, name string, f *ast.File)) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (rel == ".git" || rel == "hack" || rel == "bin" || rel == "dist") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		do(filepath.ToSlash(filepath.Dir(rel)), d.Name(), f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// docs/troubleshooting.md: every message that it quotes is one that the code
// still has. "…" stands for what differs.
func TestQuotedMessagesExist(t *testing.T) {
	t.Parallel()
	texts := literals(t)
	span := regexp.MustCompile("`([^`]+)`")
	rows := 0
	for line := range strings.Lines(readDoc(t, "docs/troubleshooting.md")) {
		cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !ok || !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, m := range span.FindAllStringSubmatch(cell, -1) {
			rows++
			if !slices.ContainsFunc(texts, func(text string) bool { return quotes(m[1], text) }) {
				t.Errorf("docs/troubleshooting.md: no message is like %q", m[1])
			}
		}
	}
	if rows < 50 {
		t.Errorf("%d messages were found in docs/troubleshooting.md", rows)
	}
}

// verb is a verb of package fmt, with what quotes it.
var verb = regexp.MustCompile(`"?%[-+#.0-9]*[a-z]"?`)

// quotes reports whether message is text, or a part of it, with "…" for its verbs.
func quotes(message, text string) bool {
	text = verb.ReplaceAllString(text, "…")
	for _, part := range strings.Split(message, "…") {
		_, rest, ok := strings.Cut(text, part)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// literals returns the strings of all code that is not a test, those that are
// added up as one.
func literals(t *testing.T) []string {
	t.Helper()
	var out []string
	eachFile(t, func(dir, name string, f *ast.File) {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(dir, "internal/testenv") || strings.HasPrefix(dir, "internal/world") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n.(type) {
			case *ast.BinaryExpr, *ast.BasicLit:
				if s := textOf(n); len(s) > 3 {
					out = append(out, s)
				}
			}
			return true
		})
	})
	return out
}

// textOf returns a string literal, or several with "…" for what is between them.
func textOf(n ast.Node) string {
	switch x := n.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(x.Value); err == nil && x.Kind == token.STRING {
			return s
		}
	case *ast.BinaryExpr:
		if x.Op == token.ADD {
			return textOf(x.X) + textOf(x.Y)
		}
		return ""
	}
	return "…"
}

// docs/operations.md: what to do about each alert that can come.
func TestAlertsAreExplained(t *testing.T) {
	t.Parallel()
	doc := readDoc(t, "docs/operations.md")
	alerts := regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(readDoc(t, "deploy/monitoring/rules.yaml"), -1)
	if len(alerts) == 0 {
		t.Fatal("no alerts")
	}
	for _, m := range alerts {
		if !strings.Contains(doc, "\n| `"+m[1]+"` |") {
			t.Errorf("docs/operations.md does not say what to do about %s", m[1])
		}
	}
}

// Every link within the repository leads to a file, and every anchor to a heading.
func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	for _, file := range []string{
		"README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/cli.md", "docs/operations.md",
		"docs/threat-model.md", "docs/troubleshooting.md",
	} {
		for _, m := range link.FindAllStringSubmatch(readDoc(t, file), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			to := filepath.Join(filepath.Dir(file), m[1])
			if m[1] == "" {
				to = file
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: %s leads nowhere", file, m[0])
				continue
			}
			if m[2] != "" && !slices.Contains(headings(readDoc(t, to)), m[2]) {
				t.Errorf("%s: %s has no heading %s", file, to, m[2])
			}
		}
	}
}

// headings returns the anchors of a document as forges make them.
func headings(doc string) []string {
	var out []string
	dropped := regexp.MustCompile(`[^a-z0-9 _-]`)
	for line := range strings.Lines(doc) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			out = append(out, "#"+strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-"))
		}
	}
	return out
}
