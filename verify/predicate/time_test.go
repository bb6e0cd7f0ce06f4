package predicate

import (
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

// What a module that looks at the clock says does not hold for ever.
func TestClockIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for module, want := range map[string]time.Time{
		"package holdfast.predicate\ndeny contains \"late\" if input.predicate.ends < time.now_ns()\n": now.Add(time.Minute),
		"package holdfast.predicate\ndeny contains \"bad\" if input.predicate.bad\n":                   {},
	} {
		j, err := New(verify.Requirement{Predicate: &verify.PredicateRequirement{Type: "https://acme.example/p", Rego: []byte(module)}})
		if err != nil {
			t.Fatal(err)
		}
		f, err := j.Judge(verify.Statement{PredicateType: "https://acme.example/p", Predicate: []byte(`{"ends": 4102444800000000000}`)}, now)
		if err != nil || !f.NotAfter.Equal(want) {
			t.Errorf("%s holds until %v, want %v: %v", module, f.NotAfter, want, err)
		}
	}
}
