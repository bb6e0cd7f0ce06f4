package verify_test

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Fleet CVE-2026-44936, Kargo CVE-2026-32828: content of a repository makes the
// daemon talk to a host of the repository's choice, such as a cloud's metadata
// service. Nothing is asked of a host that no rule of the operator names.
func TestClass15_requests_to_hosts_of_the_repository(t *testing.T) {
	t.Parallel()
	r := &resolver{}
	set, err := verify.NewSet(verify.Config{Rules: []verify.Rule{rule("acme", "ghcr.io/acme/**")}, Resolver: r, Revocations: new(verify.Revocations)}, factory(accepts))
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"169.254.169.254/latest/meta-data", "10.0.0.1/x", "127.0.0.1/x", "[fd00::1]/x", "internal.corp/x", "ghcr.io.evil.example/acme/x", "ghcr.io/acme-evil/x"} {
		_, _, err := set.Verify(t.Context(), "production", []verify.Subject{image(ref)})
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "no trust rule") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if n := r.calls.Load(); n != 0 {
		t.Errorf("%d hosts were asked", n)
	}
	if _, _, err := set.Verify(t.Context(), "production", []verify.Subject{image("ghcr.io/acme/x:1")}); err != nil || r.calls.Load() != 1 {
		t.Errorf("what a rule names: %v, asked %d times", err, r.calls.Load())
	}
}
