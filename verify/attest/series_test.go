package attest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// tests judges "TOOL RESULT" of the tools of one kind: those that begin with "a".
type tests struct{ name string }

func (tests) Reads(typ string) bool { return typ == scan }
func (tests) Superseding()          {}
func (j tests) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	tool, result, _ := strings.Cut(string(st.Predicate), " ")
	f := verify.Finding{Text: result, Series: tool}
	switch {
	case !strings.HasPrefix(tool, "a"):
		return f, fmt.Errorf("of %s: %w", tool, verify.ErrOther)
	case st.Name != j.name:
		return f, fmt.Errorf("the artifact is called %q", st.Name)
	case result == "no":
		return f, fmt.Errorf("%s: %w", tool, verify.ErrContradicts)
	case result != "yes":
		return f, fmt.Errorf("%s says %s", tool, result)
	}
	return f, nil
}

// TestSeries: of several series by one signer the newest of each counts, what
// says no outweighs the rest, and what is about something else is not there.
func TestSeries(t *testing.T) {
	t.Parallel()
	earlier := at(noon.Add(-time.Minute))
	const ok, waiting, denied = "", "waiting", "denied"
	for name, c := range map[string]struct {
		shelf *shelf
		want  string
		says  string
	}{
		"yes":                                   {(&shelf{}).put(scanned("a", "a yes")), ok, ""},
		"of another kind":                       {(&shelf{}).put(scanned("a", "z no")), waiting, "no predicate"},
		"beside another kind":                   {(&shelf{}).put(scanned("a", "a yes", earlier), scanned("a", "z no")), ok, ""},
		"no, then yes":                          {(&shelf{}).put(scanned("a", "a no", earlier), scanned("a", "a yes")), ok, ""},
		"yes, then no":                          {(&shelf{}).put(scanned("a", "a yes", earlier), scanned("a", "a no")), denied, "its maker says no"},
		"no by one tool, then yes by another":   {(&shelf{}).put(scanned("a", "a1 no", earlier), scanned("a", "a2 yes")), denied, "one predicate"},
		"doubt by one tool, and yes by another": {(&shelf{}).put(scanned("a", "a1 maybe"), scanned("a", "a2 yes", earlier)), ok, ""},
		"no by another signer":                  {(&shelf{}).put(scanned("a", "a yes"), scanned("b", "a no")), denied, "contradicts another"},
		"no by who may not say it":              {(&shelf{}).put(scanned("a", "a yes"), scanned("c", "a no")), ok, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := verifier(t, c.shelf, clean(0, "a", "b"))
			v.required[0].judge = tests{"ghcr.io/acme/shop"}
			_, err := v.Verify(t.Context(), verify.Subject{Kind: verify.KindImage, Name: "ghcr.io/acme/shop", Digest: digest.FromString("image")})
			kind := map[string]fault.Kind{waiting: fault.Waiting, denied: fault.Denied}[c.want]
			if c.want == ok && err != nil || c.want != ok && (fault.KindOf(err) != kind || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %s %q", err, c.want, c.says)
			}
		})
	}
}
