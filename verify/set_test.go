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
		Name: name, Kind: verify.KindImage, Repositories: patterns,
		Signers: []verify.Signer{{Name: "k", Key: &verify.Key{PEM: []byte("k")}, Unlogged: true}},
		Require: []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{"k"}}},
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
	signer := func(change func(*verify.Signer)) []verify.Rule {
		return with(func(r *verify.Rule) { change(&r.Signers[0]) })
	}
	root := func(change func(*verify.Root)) []verify.Rule {
		return signer(func(s *verify.Signer) {
			s.Unlogged, s.Root = false, &verify.Root{Name: "root", TrustedRoot: []byte("{}"), Log: 1}
			change(s.Root)
		})
	}
	keyless := func(i verify.Identity) []verify.Rule {
		return signer(func(s *verify.Signer) {
			*s = verify.Signer{Name: "k", Identity: &i, Root: &verify.Root{Name: "root", TrustedRoot: []byte("{}"), Log: 1}}
		})
	}
	subject := func(m verify.Match) []verify.Rule { return keyless(verify.Identity{Issuer: "i", Subject: m}) }
	build := func(issuer string, b verify.Build) []verify.Rule {
		return keyless(verify.Identity{Issuer: issuer, Subject: verify.Match{Exact: "s"}, Build: &b})
	}
	require := func(q ...verify.Requirement) []verify.Rule {
		return with(func(r *verify.Rule) { r.Require = q })
	}
	signature := verify.Requirement{Signature: &verify.SignatureRequirement{}, Signers: []string{"k"}}
	changed := func(change func(*verify.Requirement)) []verify.Rule {
		q := signature
		change(&q)
		return require(q)
	}
	const github = "https://token.actions.githubusercontent.com"
	for name, rules := range map[string][]verify.Rule{
		"no name": with(func(r *verify.Rule) { r.Name = "" }),
		"a kind without environments": with(func(r *verify.Rule) {
			r.Kind, r.Environments = verify.KindArtifact, []string{"production"}
		}),
		"an empty key":             signer(func(s *verify.Signer) { s.Key = &verify.Key{} }),
		"a signer without a name":  signer(func(s *verify.Signer) { s.Name = "" }),
		"neither key nor identity": signer(func(s *verify.Signer) { s.Key = nil }),
		"key and identity":         signer(func(s *verify.Signer) { s.Identity = &verify.Identity{Issuer: "i", Subject: verify.Match{Exact: "s"}} }),
		"no log, not asked for":    signer(func(s *verify.Signer) { s.Unlogged = false }),
		"root and unlogged": signer(func(s *verify.Signer) {
			s.Root = &verify.Root{Name: "root", TrustedRoot: []byte("{}"), Log: 1}
		}),
		"a window that is empty":     signer(func(s *verify.Signer) { s.NotBefore, s.NotAfter = time.Unix(2, 0), time.Unix(2, 0) }),
		"a window without a time":    signer(func(s *verify.Signer) { s.NotAfter = time.Unix(2, 0) }),
		"two signers of one name":    with(func(r *verify.Rule) { r.Signers = append(r.Signers, r.Signers[0]) }),
		"a root of nothing":          root(func(r *verify.Root) { r.TrustedRoot = nil }),
		"a root of both":             root(func(r *verify.Root) { r.Authorities = []byte("x") }),
		"a root without any time":    root(func(r *verify.Root) { r.Log = 0 }),
		"a root with too many logs":  root(func(r *verify.Root) { r.Log = 9 }),
		"a root with less than none": root(func(r *verify.Root) { r.Timestamps = -1 }),
		"own authorities with a log": root(func(r *verify.Root) { r.TrustedRoot, r.Authorities = nil, []byte("x") }),
		"keyless without root": signer(func(s *verify.Signer) {
			*s = verify.Signer{Name: "k", Identity: &verify.Identity{Issuer: "i", Subject: verify.Match{Exact: "s"}}}
		}),
		"keyless and unlogged": signer(func(s *verify.Signer) {
			*s = verify.Signer{Name: "k", Identity: &verify.Identity{Issuer: "i", Subject: verify.Match{Exact: "s"}}, Unlogged: true}
		}),
		"no issuer":                    keyless(verify.Identity{Subject: verify.Match{Exact: "s"}}),
		"no subject":                   subject(verify.Match{}),
		"both subjects":                subject(verify.Match{Exact: "s", Prefix: "https://h/p"}),
		"prefix is a host":             subject(verify.Match{Prefix: "https://github.com/"}),
		"prefix is a scheme":           subject(verify.Match{Prefix: "https://"}),
		"prefix has no scheme":         subject(verify.Match{Prefix: "github.com/acme"}),
		"prefix has no host":           subject(verify.Match{Prefix: "https:///acme"}),
		"template of anyone":           subject(verify.Match{Template: "https://github.com/{org}"}),
		"prefix of an empty segment":   subject(verify.Match{Prefix: "https://github.com//x"}),
		"prefix of a dot":              subject(verify.Match{Prefix: "https://github.com/."}),
		"prefix with a space":          subject(verify.Match{Prefix: "https://github.com/acme "}),
		"regex that ends its group":    subject(verify.Match{UnsafeRegex: "a)|(b"}),
		"regex with a loose great dot": subject(verify.Match{UnsafeRegex: "https://GITHUB.COM/acme/x"}),
		"template of any owner":        subject(verify.Match{Template: "https://github.com/{org}/shop/release.yml"}),
		"template within a host":       subject(verify.Match{Template: "https://github{x}/acme/shop"}),
		"template of a subdomain":      subject(verify.Match{Template: "https://gitlab.{h}/acme/x"}),
		"template within an owner":     subject(verify.Match{Template: "https://github.com/acme-{x}/shop"}),
		"template of a strange hole":   subject(verify.Match{Template: "https://github.com/acme/{x:any}"}),
		"template with a star":         subject(verify.Match{Template: "https://github.com/acme/*"}),
		"template with a brace":        subject(verify.Match{Template: "https://github.com/acme/{repo"}),
		"regex of anyone":              subject(verify.Match{UnsafeRegex: ".*"}),
		"regex with a loose dot":       subject(verify.Match{UnsafeRegex: "https://github.com/acme/.*"}),
		"regex that does not parse":    subject(verify.Match{UnsafeRegex: "("}),
		"build of no profile":          build(github, verify.Build{}),
		"build of another issuer":      build("https://gitlab.example/x", verify.Build{Profile: verify.ProfileGitHub, Repository: "r", OwnerID: "1"}),
		"build without repository":     build(github, verify.Build{Profile: verify.ProfileGitHub, OwnerID: "1"}),
		"build without a number":       build(github, verify.Build{Profile: verify.ProfileGitHub, Repository: "r"}),
		"build of a mixed ref":         build(github, verify.Build{Profile: verify.ProfileGitHub, Repository: "r", OwnerID: "1", Refs: []string{"refs/heads/v*"}}),
		"build on an open runner":      build("https://oidc.circleci.com/org/00000000-0000-0000-0000-000000000000", verify.Build{Profile: verify.ProfileCircleCI, Repository: "r", Runners: []string{"ssh-rerun"}}),
		"no requirement":               require(),
		"an empty requirement":         require(verify.Requirement{Signers: []string{"k"}}),
		"two things in one":            changed(func(q *verify.Requirement) { q.SBOM = &verify.SBOMRequirement{} }),
		"the same thing twice":         require(signature, signature),
		"no signer":                    changed(func(q *verify.Requirement) { q.Signers = nil }),
		"an unknown signer":            changed(func(q *verify.Requirement) { q.Signers = []string{"mallory"} }),
		"a signer twice":               changed(func(q *verify.Requirement) { q.Signers, q.Threshold = []string{"k", "k"}, 2 }),
		"a threshold out of reach":     changed(func(q *verify.Requirement) { q.Threshold = 2 }),
		"a negative threshold":         changed(func(q *verify.Requirement) { q.Threshold = -1 }),
		"a negative age":               changed(func(q *verify.Requirement) { q.MaxAge = -1 }),
		"an age without a time":        changed(func(q *verify.Requirement) { q.MaxAge = time.Hour }),
		"unknown SBOM format": require(verify.Requirement{
			SBOM: &verify.SBOMRequirement{Formats: []string{"swid"}}, Signers: []string{"k"},
		}),
		"unknown mode":            with(func(r *verify.Rule) { r.Mode = "ignore" }),
		"a mode without an end":   with(func(r *verify.Rule) { r.Mode = verify.Warn }),
		"watching without an end": with(func(r *verify.Rule) { r.Mode = verify.Observe }),
		"an end of nothing":       with(func(r *verify.Rule) { r.Until = time.Unix(1, 0) }),
		"unknown kind":            with(func(r *verify.Rule) { r.Kind = "toaster" }),
		"no repositories":         with(func(r *verify.Rule) { r.Repositories = nil }),
		"a wildcard in a segment": with(func(r *verify.Rule) { r.Repositories = []string{"ghcr.io/acme-*"} }),
		"no registry host":        with(func(r *verify.Rule) { r.Repositories = []string{"acme/shop"} }),
		"an empty segment":        with(func(r *verify.Rule) { r.Repositories = []string{"ghcr.io//acme"} }),
		"environment of no name":  with(func(r *verify.Rule) { r.Environments = []string{""} }),
		"environment glob":        with(func(r *verify.Rule) { r.Environments = []string{"prod*"} }),
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
	root := &verify.Root{Name: "root", TrustedRoot: []byte("{}"), Log: 1}
	identity := func(m verify.Match) func(*verify.Rule) {
		return func(r *verify.Rule) {
			r.Signers[0] = verify.Signer{Name: "k", Identity: &verify.Identity{Issuer: "i", Subject: m}, Root: root}
		}
	}
	for name, change := range map[string]func(*verify.Rule){
		"a key, in no log":   func(*verify.Rule) {},
		"a key, in a log":    func(r *verify.Rule) { r.Signers[0].Unlogged, r.Signers[0].Root = false, root },
		"an identity alone":  identity(verify.Match{Exact: "s"}),
		"an identity's path": identity(verify.Match{Prefix: "https://h/p"}),
		"a template":         identity(verify.Match{Template: "https://github.com/acme/{repo}/.github/workflows/release.yml@refs/tags/{tag:semver}"}),
		"a careful regex":    identity(verify.Match{UnsafeRegex: `https://github\.com/acme/[a-z]+`}),
		"own authorities": func(r *verify.Rule) {
			identity(verify.Match{Exact: "s"})(r)
			r.Signers[0].Identity.Issuer, r.Signers[0].Root = "", &verify.Root{Name: "ca", Authorities: []byte("x")}
		},
		"both SBOM formats": func(r *verify.Rule) {
			r.Require = []verify.Requirement{{SBOM: &verify.SBOMRequirement{Formats: []string{verify.FormatSPDX, verify.FormatCycloneDX}}, Signers: []string{"k"}}}
		},
		"a mode that ends": func(r *verify.Rule) { r.Mode, r.Until = verify.Warn, time.Unix(1, 0) },
		"localhost":        func(r *verify.Rule) { r.Repositories = []string{"localhost/shop"} },
		"any host":         func(r *verify.Rule) { r.Repositories = []string{"*/acme/shop"} },
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
	chart := verify.Subject{Kind: "toaster", Reference: "ghcr.io/acme/shop:1", Locations: []string{"apps/web.yaml:12"}}
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

// Whoever may push can have an artifact refused as often as they like: a refusal that
// is the same is kept once, and of others only so many.
func TestInputsOfRefusals(t *testing.T) {
	t.Parallel()
	kept, look := 0, "the same"
	conf := config(rule("r", "ghcr.io/**"))
	refuses := verifier(func(_ context.Context, s verify.Subject) (verify.Evidence, error) {
		return verify.Evidence{Subject: s, Checks: []verify.Check{{Name: "test", Found: look}}}, fault.New(fault.Denied, "test", "", "no")
	})
	conf.Keep = func(verify.Inputs) digest.Digest { kept++; return digest.FromString(fmt.Sprint(kept)) }
	set, err := verify.NewSet(conf, factory(refuses))
	if err != nil {
		t.Fatal(err)
	}
	judge := func() digest.Digest {
		found, _, _ := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/acme/web:1")})
		return found.Evidence[0].Inputs
	}
	first := judge()
	for range 10 {
		if again := judge(); again != first || first == "" {
			t.Fatalf("kept as %q, then as %q", first, again)
		}
	}
	for i := range 100 {
		look = fmt.Sprint("another ", i)
		judge()
	}
	if kept < 2 || kept > 10 {
		t.Errorf("%d kept", kept)
	}
	look = "the same"
	if again := judge(); again != first {
		t.Errorf("what was kept as %q is now %q", first, again)
	}
}
