package verify_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// resolver takes "name:tag" apart and makes up a digest from the tag.
type resolver struct{ calls atomic.Int32 }

func (r *resolver) Parse(s verify.Subject) (verify.Subject, error) {
	if strings.HasSuffix(s.Reference, ":malformed") {
		return s, errors.New("not a reference")
	}
	s.Name, _, _ = strings.Cut(s.Reference, ":")
	return s, nil
}

func (r *resolver) Resolve(_ context.Context, s verify.Subject) (verify.Subject, error) {
	r.calls.Add(1)
	name, tag, _ := strings.Cut(s.Reference, ":")
	if tag == "down" {
		return s, fault.New(fault.Transient, "test", "", "registry is down")
	}
	s.Name, s.Digest = name, digest.FromString(tag)
	return s, nil
}

func (r *resolver) Peek(ctx context.Context, s verify.Subject) (verify.Subject, error) {
	return r.Resolve(ctx, s)
}

type verifier func(context.Context, verify.Subject) (verify.Evidence, error)

func (f verifier) Verify(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
	return f(ctx, s)
}

func accepts(_ context.Context, s verify.Subject) (verify.Evidence, error) {
	return verify.Evidence{Subject: s, Checks: []verify.Check{{Name: "test", OK: true}}}, nil
}

func factory(v verifier) verify.Factory {
	return func(verify.Rule, *verify.Revocations) (verify.Verifier, error) { return v, nil }
}

// config is the least that a set needs.
func config(rules ...verify.Rule) verify.Config {
	return verify.Config{Rules: rules, Resolver: &resolver{}, Revocations: new(verify.Revocations)}
}

func rule(name string, patterns ...string) verify.Rule {
	return verify.Rule{
		Name: name, Kind: verify.KindImage, Repositories: patterns, InsecureIgnoreTlog: true,
		Keys: []verify.Key{{Name: "k", PEM: []byte("k")}},
	}
}

func image(ref string) verify.Subject { return verify.Subject{Kind: verify.KindImage, Reference: ref} }

func TestNewSetRefuses(t *testing.T) {
	t.Parallel()
	with := func(change func(*verify.Rule)) []verify.Rule {
		r := rule("r", "ghcr.io/**")
		change(&r)
		return []verify.Rule{r}
	}
	keyless := func(i verify.Identity) []verify.Rule {
		return with(func(r *verify.Rule) { r.Keyless, r.TrustedRoot = []verify.Identity{i}, []byte("{}") })
	}
	for name, rules := range map[string][]verify.Rule{
		"no name":                 with(func(r *verify.Rule) { r.Name = "" }),
		"no identity":             with(func(r *verify.Rule) { r.Keys = nil }),
		"an empty key":            with(func(r *verify.Rule) { r.Keys[0].PEM = nil }),
		"no log, not asked for":   with(func(r *verify.Rule) { r.InsecureIgnoreTlog = false }),
		"keyless without root":    with(func(r *verify.Rule) { r.Keyless = []verify.Identity{{Issuer: "i", Subject: "s"}} }),
		"SBOM without root":       with(func(r *verify.Rule) { r.SBOM.Keyless = []verify.Identity{{Issuer: "i", Subject: "s"}} }),
		"no issuer":               keyless(verify.Identity{Subject: "s"}),
		"no subject":              keyless(verify.Identity{Issuer: "i"}),
		"both subjects":           keyless(verify.Identity{Issuer: "i", Subject: "s", SubjectPrefix: "https://h/p"}),
		"prefix is a host":        keyless(verify.Identity{Issuer: "i", SubjectPrefix: "https://github.com/"}),
		"prefix is a scheme":      keyless(verify.Identity{Issuer: "i", SubjectPrefix: "https://"}),
		"prefix has no scheme":    keyless(verify.Identity{Issuer: "i", SubjectPrefix: "github.com/acme"}),
		"prefix has no host":      keyless(verify.Identity{Issuer: "i", SubjectPrefix: "https:///acme"}),
		"unknown kind":            with(func(r *verify.Rule) { r.Kind = "chart" }),
		"no repositories":         with(func(r *verify.Rule) { r.Repositories = nil }),
		"a wildcard in a segment": with(func(r *verify.Rule) { r.Repositories = []string{"ghcr.io/acme-*"} }),
		"no registry host":        with(func(r *verify.Rule) { r.Repositories = []string{"acme/shop"} }),
		"an empty segment":        with(func(r *verify.Rule) { r.Repositories = []string{"ghcr.io//acme"} }),
		"environment of no name":  with(func(r *verify.Rule) { r.Environments = []string{""} }),
		"environment glob":        with(func(r *verify.Rule) { r.Environments = []string{"prod*"} }),
		"unknown SBOM format":     with(func(r *verify.Rule) { r.SBOM.Formats = []string{"swid"} }),
		"one name twice":          {rule("r", "a.b/**"), rule("r", "c.d/**")},
	} {
		if _, err := verify.NewSet(config(rules...), factory(accepts)); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%s: %v (%v)", name, err, fault.KindOf(err))
		}
	}
	good := config(rule("r", "ghcr.io/**"))
	nothing := func(verify.Rule, *verify.Revocations) (verify.Verifier, error) {
		return nil, fmt.Errorf("%w", verify.ErrNotApplicable)
	}
	if _, err := verify.NewSet(good); err == nil {
		t.Error("a set without verifiers")
	}
	if _, err := verify.NewSet(config()); err == nil {
		t.Error("a set without rules and verifiers")
	}
	for name, f := range map[string]verify.Factory{
		"an error": func(verify.Rule, *verify.Revocations) (verify.Verifier, error) {
			return verifier(accepts), errors.New("a bad key")
		},
		"no verifier, no error": func(verify.Rule, *verify.Revocations) (verify.Verifier, error) { return nil, nil },
	} {
		if _, err := verify.NewSet(good, f, factory(accepts)); err == nil {
			t.Errorf("a factory returned %s", name)
		}
	}
	if _, err := verify.NewSet(good, nothing); err == nil {
		t.Error("a rule without a verifier")
	}
	without := good
	without.Resolver = nil
	if _, err := verify.NewSet(without, factory(accepts)); err == nil {
		t.Error("a set without a resolver")
	}
	without = good
	without.Revocations = nil
	if _, err := verify.NewSet(without, factory(accepts)); err == nil {
		t.Error("a set in which nothing can be revoked")
	}
}

func TestNewSetAccepts(t *testing.T) {
	t.Parallel()
	root := []byte("{}")
	exact := []verify.Identity{{Issuer: "i", Subject: "s"}}
	for name, change := range map[string]func(*verify.Rule){
		"a key, in no log":  func(*verify.Rule) {},
		"a key, in a log":   func(r *verify.Rule) { r.InsecureIgnoreTlog, r.TrustedRoot = false, root },
		"an identity alone": func(r *verify.Rule) { r.Keys, r.Keyless, r.TrustedRoot = nil, exact, root },
		"an identity's path": func(r *verify.Rule) {
			r.Keyless, r.TrustedRoot = []verify.Identity{{Issuer: "i", SubjectPrefix: "https://h/p"}}, root
		},
		"an SBOM by identity": func(r *verify.Rule) { r.SBOM.Keyless, r.TrustedRoot = exact, root },
		"both SBOM formats":   func(r *verify.Rule) { r.SBOM.Formats = []string{verify.FormatSPDX, verify.FormatCycloneDX} },
		"localhost":           func(r *verify.Rule) { r.Repositories = []string{"localhost/shop"} },
		"any host":            func(r *verify.Rule) { r.Repositories = []string{"*/acme/shop"} },
	} {
		r := rule("r", "ghcr.io/**")
		change(&r)
		nothing := func(verify.Rule, *verify.Revocations) (verify.Verifier, error) { return nil, verify.ErrNotApplicable }
		if _, err := verify.NewSet(config(r), nothing, factory(accepts)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMostSpecificRule(t *testing.T) {
	t.Parallel()
	production := rule("production", "ghcr.io/acme/**")
	production.Environments = []string{"production"}
	again := rule("production again", "ghcr.io/acme/**", "ghcr.io/**")
	again.Environments = []string{"production"}
	rules := []verify.Rule{
		rule("all", "**"), rule("acme", "ghcr.io/acme/**"), rule("acme again", "ghcr.io/acme/**"), production,
		rule("one below", "ghcr.io/acme/*"), rule("shop", "ghcr.io/acme/shop"), rule("hub", "docker.io/library/*"), again,
		rule("deep", "quay.io/**/*/*"), rule("two below", "quay.io/*/*"),
		rule("best first", "a.io/b/c", "a.io/**"), rule("best last", "b.io/**", "b.io/b/c"), rule("between", "a.io/b/*", "b.io/b/*"),
	}
	set, err := verify.NewSet(config(rules...), factory(accepts))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ env, ref, want string }{
		{"staging", "ghcr.io/acme/shop:1", "shop"},
		{"production", "ghcr.io/acme/shop:1", "shop"},
		{"staging", "ghcr.io/acme/web:1", "one below"},
		{"staging", "ghcr.io/acme/web/api:1", "acme"},
		{"production", "ghcr.io/acme/web/api:1", "production"},
		{"staging", "ghcr.io/acme-evil/web:1", "all"},
		{"staging", "ghcr.io/acme:1", "acme"},
		{"staging", "index.docker.io/library/nginx:1", "hub"},
		{"staging", "quay.io/a/b:1", "two below"},
		{"staging", "quay.io/a/b/c:1", "deep"},
		{"staging", "a.io/b/c:1", "best first"},
		{"staging", "b.io/b/c:1", "best last"},
		{"staging", "b.io/b/d:1", "between"},
	} {
		report, _, err := set.Verify(t.Context(), c.env, []verify.Subject{image(c.ref)})
		if err != nil || report.Evidence[0].Rule != c.want {
			t.Errorf("%s %s: rule %q, %v; want %q", c.env, c.ref, report.Evidence[0].Rule, err, c.want)
		}
	}
	chart := verify.Subject{Kind: "chart", Reference: "ghcr.io/acme/shop:1", Locations: []string{"apps/web.yaml:12"}}
	if _, _, err := set.Verify(t.Context(), "staging", []verify.Subject{chart}); fault.KindOf(err) != fault.Denied || !strings.HasPrefix(err.Error(), "apps/web.yaml:12: "+chart.Reference) {
		t.Errorf("a rule for images was applied to a chart: %v", err)
	}
}

// liar resolves to what it was not asked about.
type liar struct {
	resolver
	answer verify.Subject
}

func (l *liar) Resolve(context.Context, verify.Subject) (verify.Subject, error) { return l.answer, nil }

func TestResolverIsNotBelieved(t *testing.T) {
	t.Parallel()
	conf := config(rule("r", "ghcr.io/a"))
	for _, answer := range []verify.Subject{
		{Name: "ghcr.io/b", Digest: digest.FromString("x")},
		{Name: "ghcr.io/a"},
		{Name: "ghcr.io/a", Digest: "sha256:x"},
	} {
		conf.Resolver = &liar{answer: answer}
		_, pins, err := newSet(t, conf, factory(accepts)).Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")})
		if fault.KindOf(err) != fault.Internal || err == nil || len(pins) != 0 {
			t.Errorf("%s: %v, %v", answer.Pinned(), pins, err)
		}
	}
	_, _, err := newSet(t, config(rule("r", "**")), factory(accepts)).Verify(t.Context(), "e", []verify.Subject{image("x:malformed")})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("what is no reference: %v", err)
	}
}

// One verifier that is content does not stand for another that checked nothing.
func TestEveryVerifierCounts(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]verifier{
		"zero evidence": func(context.Context, verify.Subject) (verify.Evidence, error) { return verify.Evidence{}, nil },
		"a panic":       func(context.Context, verify.Subject) (verify.Evidence, error) { panic("boom") },
	} {
		for _, fs := range [][]verify.Factory{{factory(accepts), factory(other)}, {factory(other), factory(accepts)}} {
			_, _, err := newSet(t, config(rule("r", "ghcr.io/**")), fs...).Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")})
			if fault.KindOf(err) != fault.Denied || name == "a panic" && !strings.Contains(err.Error(), "panicked: boom") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// Evidence holds for as long as all of it does.
	now := time.Now()
	soon, late := now.Add(time.Hour), now.Add(2*time.Hour)
	until := func(end time.Time) verify.Factory {
		return factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
			e, err := accepts(ctx, s)
			e.NotAfter = end
			return e, err
		})
	}
	for _, c := range []struct{ one, two, want time.Time }{
		{time.Time{}, time.Time{}, time.Time{}}, {soon, time.Time{}, soon}, {time.Time{}, soon, soon}, {soon, late, soon}, {late, soon, soon},
	} {
		report, _, err := newSet(t, config(rule("r", "ghcr.io/**")), until(c.one), until(c.two)).Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")})
		if err != nil || !report.Evidence[0].NotAfter.Equal(c.want) {
			t.Errorf("%v and %v: until %v, want %v: %v", c.one, c.two, report.Evidence[0].NotAfter, c.want, err)
		}
	}
}

func TestVerifyCollectsAllFailures(t *testing.T) {
	t.Parallel()
	set, err := verify.NewSet(config(rule("r", "ghcr.io/**")), factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
		switch s.Digest {
		case digest.FromString("none"):
			return verify.Evidence{}, nil // zero evidence
		case digest.FromString("failed"):
			return verify.Evidence{Checks: []verify.Check{{Name: "test"}}}, nil
		case digest.FromString("panics"):
			panic("boom")
		case digest.FromString("foreign"):
			return verify.Evidence{}, fmt.Errorf("%w", verify.ErrNotApplicable)
		}
		return accepts(ctx, s)
	}))
	if err != nil {
		t.Fatal(err)
	}
	refused := []string{"ghcr.io/a:none", "ghcr.io/a:failed", "ghcr.io/a:panics", "ghcr.io/a:foreign", "quay.io/a:unmatched"}
	var all []verify.Subject
	for _, ref := range refused {
		if _, _, err := set.Verify(t.Context(), "e", []verify.Subject{image(ref)}); fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v (%v)", ref, err, fault.KindOf(err))
		}
		all = append(all, image(ref))
	}
	if _, _, err := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:down")}); fault.KindOf(err) != fault.Transient {
		t.Errorf("a registry that is down: %v", err)
	}
	all = append(all, image("ghcr.io/a:down"), image("ghcr.io/a:good"))
	report, pins, err := set.Verify(t.Context(), "e", all)
	if fault.KindOf(err) != fault.Denied || len(report.Evidence) != len(all) || len(pins) != 1 {
		t.Errorf("%v, %d, %v", err, len(report.Evidence), pins)
	}
	for _, s := range all[:len(all)-1] {
		if !strings.Contains(err.Error(), s.Reference) {
			t.Errorf("the error does not name %s", s.Reference)
		}
	}
}

func TestCache(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	res := &resolver{}
	conf := config(rule("r", "ghcr.io/**"))
	conf.Resolver = res
	set, err := verify.NewSet(conf, factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
		calls.Add(1)
		e, err := accepts(ctx, s)
		switch s.Digest {
		case digest.FromString("expired"):
			e.NotAfter = time.Now().Add(-time.Second)
		case digest.FromString("fresh"):
			e.NotAfter = time.Now().Add(time.Hour)
		case digest.FromString("unsigned"):
			return verify.Evidence{}, fault.New(fault.Denied, "test", "", "no signature")
		}
		return e, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tag  string
		want int32 // verifications for three calls, from two repositories
	}{{"good", 1}, {"fresh", 1}, {"expired", 3}, {"unsigned", 3}} {
		calls.Store(0)
		for _, repo := range []string{"a", "b", "a"} {
			_, pins, err := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/" + repo + ":" + c.tag)})
			if (err != nil) != (c.tag == "unsigned") {
				t.Error(err)
			}
			if err == nil && pins["ghcr.io/"+repo+":"+c.tag].Name != "ghcr.io/"+repo {
				t.Errorf("a hit kept another repository's name: %v", pins)
			}
		}
		if calls.Load() != c.want {
			t.Errorf("%s: verified %d times, want %d", c.tag, calls.Load(), c.want)
		}
	}
	res.calls.Store(0)
	ref := image("ghcr.io/a:good")
	if _, _, err := set.Verify(t.Context(), "e", []verify.Subject{ref, ref, ref}); err != nil || res.calls.Load() != 1 {
		t.Errorf("resolved %d times, %v", res.calls.Load(), err)
	}
}

func TestVerifyHonoursTheContext(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	set, err := verify.NewSet(config(rule("r", "ghcr.io/**")), factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
		<-release
		return accepts(ctx, s)
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := set.Verify(ctx, "e", []verify.Subject{image("ghcr.io/a:1")}); !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Transient {
		t.Errorf("got %v", err)
	}
}

func TestSignersOfTheSBOM(t *testing.T) {
	t.Parallel()
	prefix := verify.Identity{Issuer: "i", SubjectPrefix: "https://github.com/acme/"}
	r := rule("r", "ghcr.io/**")
	for name, c := range map[string]struct {
		sbom verify.SBOMRequirement
		want string
	}{
		"the rule's":     {verify.SBOMRequirement{}, "key k"},
		"another key":    {verify.SBOMRequirement{Keys: []verify.Key{{Name: "other"}}}, "key other"},
		"other identity": {verify.SBOMRequirement{Keyless: []verify.Identity{prefix}}, "https://github.com/acme/… (i)"},
	} {
		r.SBOM = c.sbom
		if got := r.ForSBOM().Signers(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
