package verifytest

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/verify"
)

const (
	gitlabIssuer    = "https://gitlab.example"
	circleIssuer    = "https://oidc.circleci.com/org/3f1c2d4e-0000-4000-8000-000000000001"
	buildkiteIssuer = "https://agent.buildkite.com"
)

// asBuilt is what Fulcio writes of a good build on GitHub.
var asBuilt = verify.Certificate{
	BuildSigner: goodSubject, BuildSignerDigest: strings.Repeat("a", 40), Runner: "github-hosted",
	SourceRepository: "https://github.com/acme/shop", SourceDigest: strings.Repeat("b", 40), SourceRef: "refs/heads/main",
	SourceRepositoryID: "4711", SourceOwner: "https://github.com/acme", SourceOwnerID: "42",
	BuildConfig: goodSubject, BuildConfigDigest: strings.Repeat("a", 40), Trigger: "push",
	Run: "https://github.com/acme/shop/actions/runs/1/attempts/1", Visibility: "private", Deployment: "production",
}

// asAsked is all that can be asked of it.
var asAsked = verify.Build{
	Profile: verify.ProfileGitHub, Repository: asBuilt.SourceRepository, RepositoryID: asBuilt.SourceRepositoryID, OwnerID: asBuilt.SourceOwnerID,
	Refs: []string{"refs/heads/main", "refs/tags/*"}, Triggers: []string{"push", "schedule"}, Runners: []string{"github-hosted"},
	Signers: []string{"https://github.com/acme/shop/**"}, Digests: []string{asBuilt.BuildSignerDigest},
	Visibilities: []string{"private"}, Environments: []string{"production"},
}

// asked returns a rule that asks for a build by an issuer.
func (s *suite) asked(issuer string, b verify.Build) func(*verify.Rule) {
	signer := s.ci(verify.Match{Exact: goodSubject})
	signer.Identity = &verify.Identity{Issuer: issuer, Subject: verify.Match{Exact: goodSubject}, Build: &b}
	return only(signer)
}

func (s *suite) built(issuer string, c verify.Certificate) func(*testing.T, string, Layout) {
	return s.signed(SignOptions{Identity: goodSubject, Issuer: issuer, Build: &c})
}

// builds have each field of a certificate right, wrong and missing.
func (s *suite) builds(t *testing.T, layout Layout) {
	trials := []trial{
		{name: "build", rule: s.asked(goodIssuer, asAsked), put: s.built(goodIssuer, asBuilt)},
		{name: "build, a certificate that says nothing", rule: s.asked(goodIssuer, asAsked), put: s.signed(SignOptions{Identity: goodSubject, Issuer: goodIssuer}), refused: "source repository: found nothing"},
	}
	for what, field := range map[string]struct {
		of    func(*verify.Certificate) *string
		wrong string
	}{
		"source repository":                   {func(c *verify.Certificate) *string { return &c.SourceRepository }, "https://github.com/acme/shop-evil"},
		"source repository's number":          {func(c *verify.Certificate) *string { return &c.SourceRepositoryID }, "47110"},
		"source repository owner's number":    {func(c *verify.Certificate) *string { return &c.SourceOwnerID }, "421"},
		"ref":                                 {func(c *verify.Certificate) *string { return &c.SourceRef }, "refs/heads/main/evil"},
		"trigger":                             {func(c *verify.Certificate) *string { return &c.Trigger }, "pull_request_target"},
		"runner":                              {func(c *verify.Certificate) *string { return &c.Runner }, "self-hosted"},
		"build signer":                        {func(c *verify.Certificate) *string { return &c.BuildSigner }, "https://github.com/mallory/shop/x.yml"},
		"build signer's digest":               {func(c *verify.Certificate) *string { return &c.BuildSignerDigest }, strings.Repeat("c", 40)},
		"visibility of the source repository": {func(c *verify.Certificate) *string { return &c.Visibility }, "public"},
		"deployment environment":              {func(c *verify.Certificate) *string { return &c.Deployment }, "staging"},
	} {
		wrong, missing := asBuilt, asBuilt
		*field.of(&wrong), *field.of(&missing) = field.wrong, ""
		trials = append(trials,
			trial{name: "build, wrong " + what, rule: s.asked(goodIssuer, asAsked), put: s.built(goodIssuer, wrong), refused: what + ": found \"" + field.wrong + "\""},
			trial{name: "build, no " + what, rule: s.asked(goodIssuer, asAsked), put: s.built(goodIssuer, missing), refused: what + ": found nothing"},
		)
	}
	s.try(t, layout, append(trials, s.profiles()...))
}

// profiles have what must hold of each build system, asked for or not.
func (s *suite) profiles() []trial {
	least := verify.Build{Profile: verify.ProfileGitHub, Repository: asBuilt.SourceRepository, OwnerID: asBuilt.SourceOwnerID}
	gitlab := verify.Build{Profile: verify.ProfileGitLab, Repository: "https://gitlab.example/acme/shop", RepositoryID: "7"}
	onGitLab := verify.Certificate{SourceRepository: gitlab.Repository, SourceRepositoryID: "7", Runner: "gitlab-hosted", Trigger: "push"}
	circle := verify.Build{Profile: verify.ProfileCircleCI, Repository: "github.com/acme/shop"}
	onCircle := verify.Certificate{SourceRepository: circle.Repository, Runner: `""`} // what Fulcio's template writes
	buildkite := verify.Build{Profile: verify.ProfileBuildkite}
	onBuildkite := verify.Certificate{Runner: "buildkite-hosted", Trigger: "webhook"}
	change := func(c verify.Certificate, by func(*verify.Certificate)) verify.Certificate { by(&c); return c }

	out := []trial{
		{name: "github-actions", rule: s.asked(goodIssuer, least), put: s.built(goodIssuer, asBuilt)},
		{name: "github-actions, self-hosted", rule: s.asked(goodIssuer, least), put: s.built(goodIssuer, change(asBuilt, func(c *verify.Certificate) { c.Runner = "self-hosted" })), refused: `runner: found "self-hosted"`},
		{
			name: "github-actions, self-hosted and asked for", rule: s.asked(goodIssuer, verify.Build{Profile: least.Profile, Repository: least.Repository, OwnerID: least.OwnerID, Runners: []string{"self-hosted"}}),
			put: s.built(goodIssuer, change(asBuilt, func(c *verify.Certificate) { c.Runner = "self-hosted" })),
		},
		{
			name: "github-actions, a pull request that was asked for", rule: s.asked(goodIssuer, verify.Build{Profile: least.Profile, Repository: least.Repository, OwnerID: least.OwnerID, Triggers: []string{"pull_request"}}),
			put: s.built(goodIssuer, change(asBuilt, func(c *verify.Certificate) { c.Trigger = "pull_request" })),
		},
		{name: "github-actions, an enterprise of the same host", rule: s.asked(goodIssuer+"/acme", least), put: s.built(goodIssuer+"/mallory", asBuilt), refused: refusedSignature},
		{name: "CVE-2026-22772 an issuer that shares a prefix", rule: s.asked(goodIssuer, least), put: s.built(goodIssuer+"/mallory", asBuilt), refused: refusedSignature},
		{name: "CVE-2026-49478 the issuer of another organisation", rule: s.asked(circleIssuer, circle), put: s.built(circleIssuer[:len(circleIssuer)-1]+"2", onCircle), refused: refusedSignature},
		{name: "gitlab-ci", rule: s.asked(gitlabIssuer, gitlab), put: s.built(gitlabIssuer, onGitLab)},
		{name: "gitlab-ci, self-hosted", rule: s.asked(gitlabIssuer, gitlab), put: s.built(gitlabIssuer, change(onGitLab, func(c *verify.Certificate) { c.Runner = "self-hosted" })), refused: `runner: found "self-hosted"`},
		{name: "circleci", rule: s.asked(circleIssuer, circle), put: s.built(circleIssuer, onCircle)},
		{name: "circleci, run again with SSH", rule: s.asked(circleIssuer, circle), put: s.built(circleIssuer, change(onCircle, func(c *verify.Certificate) { c.Runner = "ssh-rerun" })), refused: `found "ssh-rerun"`},
		{name: "circleci, another repository", rule: s.asked(circleIssuer, circle), put: s.built(circleIssuer, change(onCircle, func(c *verify.Certificate) { c.SourceRepository += "-evil" })), refused: "source repository: found"},
		{name: "buildkite", rule: s.asked(buildkiteIssuer, buildkite), put: s.built(buildkiteIssuer, onBuildkite)},
		{
			name: "buildkite, another runner", rule: s.asked(buildkiteIssuer, verify.Build{Profile: verify.ProfileBuildkite, Runners: []string{"buildkite-hosted"}}),
			put: s.built(buildkiteIssuer, change(onBuildkite, func(c *verify.Certificate) { c.Runner = "self-hosted" })), refused: `runner: found "self-hosted"`,
		},
	}
	for _, trigger := range []string{"pull_request", "pull_request_target", "workflow_run", "issue_comment", ""} {
		out = append(out, trial{
			name: "github-actions, trigger " + trigger, rule: s.asked(goodIssuer, least),
			put: s.built(goodIssuer, change(asBuilt, func(c *verify.Certificate) { c.Trigger = trigger })), refused: "trigger: found",
		})
	}
	for _, trigger := range []string{"merge_request_event", "external_pull_request_event"} {
		out = append(out, trial{
			name: "gitlab-ci, trigger " + trigger, rule: s.asked(gitlabIssuer, gitlab),
			put: s.built(gitlabIssuer, change(onGitLab, func(c *verify.Certificate) { c.Trigger = trigger })), refused: "trigger: found",
		})
	}
	return out
}

// identities are names that are like a trusted one.
func (s *suite) identities(t *testing.T, layout Layout) {
	const (
		prefix   = "https://github.com/acme/shop"
		template = "https://github.com/acme/{repo}/.github/workflows/release.yml@refs/tags/{v:semver}"
		tagged   = "https://github.com/acme/shop/.github/workflows/release.yml@refs/tags/"
		unsafe   = `https://github\.com/acme/[a-z]+/\.github/workflows/release\.yml@refs/heads/main`
	)
	var trials []trial
	for _, kind := range []struct {
		name  string
		match verify.Match
		good  []string
		evil  []string
	}{
		{"exact", verify.Match{Exact: goodSubject}, []string{goodSubject}, []string{
			goodSubject + "2", goodSubject + "/", goodSubject + "?x", strings.ToUpper(goodSubject[:20]) + goodSubject[20:],
			strings.Replace(goodSubject, "github.com", "github.com.evil.example", 1), strings.Replace(goodSubject, "github.com", "githubXcom", 1),
		}},
		{"prefix", verify.Match{Prefix: prefix}, []string{goodSubject, prefix + "/other"}, []string{
			prefix + "-evil/x.yml", prefix + ".evil/x.yml", "https://evil.example/" + prefix + "/x.yml", prefix[:len(prefix)-1] + "/x.yml",
			"https://github.com/acme", "http://github.com/acme/shop/x.yml", "https://github.com@evil.example/acme/shop/x.yml",
		}},
		{"template", verify.Match{Template: template}, []string{tagged + "v1.2.3", tagged + "1.2.3-rc.1"}, []string{
			tagged + "latest", tagged + "v1.2.3/evil", tagged + "v1.2", "https://github.com/acme/a/b/.github/workflows/release.yml@refs/tags/v1.2.3",
			"https://github.com/acme//.github/workflows/release.yml@refs/tags/v1.2.3", "https://github.com/mallory/shop/.github/workflows/release.yml@refs/tags/v1.2.3",
		}},
		{"unsafeRegex", verify.Match{UnsafeRegex: unsafe}, []string{goodSubject}, []string{
			goodSubject + "2", "https://evil.example/" + goodSubject, strings.Replace(goodSubject, "github.com", "githubXcom", 1), goodSubject + "%0A",
		}},
		{"CVE-2025-29778 alternatives are anchored", verify.Match{UnsafeRegex: unsafe + "|" + `https://gitlab\.example/acme/.*`}, []string{goodSubject, "https://gitlab.example/acme/x"}, []string{
			goodSubject + "2", "https://evil.example/https://gitlab.example/acme/x",
		}},
		{"CVE-2026-25542 a trusted name inside of another", verify.Match{Exact: goodSubject}, nil, []string{"https://evil.example/x?ref=" + goodSubject}},
	} {
		rule := only(s.ci(kind.match))
		for _, who := range kind.good {
			trials = append(trials, trial{name: "identity by " + kind.name + ", " + who, rule: rule, put: s.signed(SignOptions{Identity: who, Issuer: goodIssuer})})
		}
		for _, who := range kind.evil {
			trials = append(trials, trial{name: "not by " + kind.name + ", " + who, rule: rule, put: s.signed(SignOptions{Identity: who, Issuer: goodIssuer}), refused: refusedSignature})
		}
	}
	for _, issuer := range []string{goodIssuer + "/acme", goodIssuer + ".evil.example", goodIssuer[:len(goodIssuer)-1], "http" + goodIssuer[5:], "https://evil.example/" + goodIssuer, strings.ToUpper(goodIssuer)} {
		trials = append(trials, trial{name: "not the issuer " + issuer, rule: only(s.ci(verify.Match{Exact: goodSubject})), put: s.signed(SignOptions{Identity: goodSubject, Issuer: issuer}), refused: refusedSignature})
	}
	trials = append(trials,
		trial{name: "not by the second name of a certificate", rule: only(s.ci(verify.Match{Exact: goodSubject})), put: s.signed(SignOptions{Identity: "https://evil.example/x\n" + goodSubject, Issuer: goodIssuer}), refused: refusedSignature},
	)
	s.try(t, layout, trials)
}
