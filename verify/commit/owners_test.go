package commit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	hmarr "github.com/hmarr/codeowners"
)

// owning returns a configuration in which changes need an owner.
func (r *repo) owning() Config {
	c := r.approving(1)
	c.Rules = []Rule{{Paths: []string{"**"}, Signers: []string{"alice", "bob", "carol"}, Owners: true}}
	c.Owners = map[string][]string{"@acme/Apps": {"bob"}, "@Alice": {"alice"}, "carol@example.com": {"carol"}}
	return c
}

func TestOwners(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	must(t, r.Write(map[string]string{".github/CODEOWNERS": "* @alice\n/apps/ @ACME/apps carol@example.com\n/apps/secret\n/stranger/ @mallory\n"}))
	root := r.commit("README", r.by(r.alice))
	c := r.owning()
	back := func() { get(r.Git("reset", "-q", "--hard", root))(t) }
	ev := r.accepts(c, root, r.commit("apps/a", r.by(r.bob)))
	if got := ev.Facts["owners"].(map[string]any)["apps/a"]; !slices.Equal(got.([]string), []string{"@acme/apps", "carol@example.com"}) {
		t.Errorf("facts %+v", ev.Facts)
	}
	back()
	id := r.commit("infra/a", r.by(r.bob))
	r.waits(c, root, id, "infra/a belongs to @alice, and none of them signed or approved it")
	r.approve(id, r.approval(r.alice, testURI, testRef, id))
	r.accepts(c, root, id)
	back()
	r.refuses(c, root, r.commit("apps/secret", r.by(r.bob)), "nobody owns apps/secret")
	back()
	r.waits(c, root, r.commit("stranger/x", r.by(r.alice)), "stranger/x belongs to @mallory")

	// Who owns what is not for the commit itself to say.
	back()
	must(t, r.Write(map[string]string{".github/CODEOWNERS": "* @acme/apps\n"}))
	take := r.commit("infra/a", r.by(r.bob))
	r.waits(c, root, take, ".github/CODEOWNERS belongs to @alice")
	r.approve(take, r.approval(r.alice, testURI, testRef, take))
	r.accepts(c, root, take)
	r.accepts(c, take, r.commit("infra/b", r.by(r.bob))) // from now on
	back()
	must(t, r.Write(map[string]string{".github/CODEOWNERS": "* @alice\n!x @bob\n"}))
	r.refuses(c, root, r.commit("infra/a", r.by(r.alice)), "it would leave no CODEOWNERS that can be read: .github/CODEOWNERS of commit")
	back()
	must(t, r.Remove(".github/CODEOWNERS"))
	r.refuses(c, root, r.commit("", r.by(r.alice)), "it would leave no CODEOWNERS that can be read")

	// The first of GitHub's places counts, and no rule asks where there is none.
	back()
	must(t, r.Write(map[string]string{"CODEOWNERS": "* @acme/apps\n"}))
	second := r.commit("docs/x", r.by(r.alice))
	r.waits(c, second, r.commit("docs/y", r.by(r.bob)), "docs/y belongs to @alice")

	r.refuses(c, "", root, "it is the first commit")
	none := newRepo(t)
	base := none.commit("README", none.by(none.alice))
	none.refuses(none.owning(), base, none.commit("x", none.by(none.alice)), "has no CODEOWNERS")
	must(t, none.Write(map[string]string{"docs/CODEOWNERS": "*\n[x] @alice\n"}))
	broken := none.commit("README", none.by(none.alice))
	none.refuses(none.owning(), broken, none.commit("x", none.by(none.alice)), "docs/CODEOWNERS of commit "+broken[:12]+": line 2: pattern \"[x]\": patterns have no classes")
}

func TestParseOwners(t *testing.T) {
	t.Parallel()
	c := get(parseOwners([]byte("# comment\r\n\n*.js @js-owner #This is an inline comment.\n  docs/*  docs@example.com\n/with\\ space/ @A/b @c\n/none\n")))(t)
	for path, want := range map[string]string{
		"a/b.js": "@js-owner", "docs/x": "docs@example.com", "docs/x/y": "", "with space/x": "@a/b @c", "none": "", "none/x": "", "other": "",
	} {
		if got := strings.Join(c.of(path), " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for in, want := range map[string]string{
		"* alice":                              "line 1: \"alice\" is no owner",
		"\n* @a @":                             "line 2",
		"!x @a":                                "cannot be negated",
		"x[ab] @a":                             "no classes",
		"\\#x @a":                              "cannot begin",
		"a***b @a":                             "three asterisks",
		"x\\":                                  "escapes nothing",
		"/ @a":                                 "matches nothing",
		"a//b @a":                              "empty segment",
		"// @a":                                "empty segment",
		"a\x00b @a":                            "not UTF-8",
		"\xff @a":                              "not UTF-8",
		strings.Repeat("#", maxOwners) + "#":   "the limit is",
		strings.Repeat("x\n", maxOwnerLines+1): "more than",
	} {
		if _, err := parseOwners([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", in, err, want)
		}
	}
}

// FuzzOwners compares with another reader of the format.
func FuzzOwners(f *testing.F) {
	for _, p := range []string{"*", "*.js", "/build/logs/", "docs/*", "apps/", "/docs/", "**/logs", "/apps/github", "a/**/b", "a/**", "/a\\ b/c", "foo*", "?x", "**", "/*", "*/", "a/*/b", "**/*", "/**"} {
		for _, name := range []string{"x.js", "a/b/x.js", "build/logs/x", "docs/x", "docs/a/x", "apps", "x/apps/y", "logs/x", "a/b", "a/x/y/b", "a b/c", "foobar/x", "a"} {
			f.Add(p, name)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		ours, err := parseOwners([]byte(pattern + " @a\n"))
		if err != nil || len(ours) != 1 || strings.ContainsAny(name, "\\\n") || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || name == "" ||
			strings.Contains(name, "//") || !utf8.ValidString(name) || strings.TrimSpace(pattern) != pattern ||
			strings.HasSuffix("/"+pattern, "/**/") || strings.Contains(pattern, "**/**") || // which theirs takes for nothing
			strings.ContainsAny(pattern, "\n\r\t\\ #") {
			return
		}
		theirs, err := hmarr.ParseFile(strings.NewReader(pattern + " @a\n"))
		if err != nil || len(theirs) != 1 {
			return
		}
		rule, err := theirs.Match(name)
		if err != nil {
			return
		}
		if got := ours.of(name) != nil; got != (rule != nil) {
			t.Errorf("pattern %q, path %q: we say %t, hmarr/codeowners %t", pattern, name, got, rule != nil)
		}
	})
}

func TestOwnersTakeTimeThatIsBounded(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range maxOwnerLines {
		fmt.Fprintf(&b, "%sx%d @a\n", strings.Repeat("**/*a*/", 6), i)
	}
	c := get(parseOwners([]byte(b.String())))(t)
	if c.of(strings.Repeat("a/", 60)+"y") != nil {
		t.Error("a match")
	}
}
