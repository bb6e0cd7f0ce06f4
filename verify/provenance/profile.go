package provenance

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// profile is how a build system writes its provenance.
type profile struct {
	types []buildType
	// signed is that of build types which the rule lists.
	signed func(verify.Certificate, *build) string
	// extended says that certificates of the build system's identities name the
	// source: then they must.
	extended bool
}

// buildType is how provenance of one build type is read.
type buildType struct {
	is verify.Match
	// read returns what the provenance says of the source and the trigger.
	read func(*build) (claims, error)
	// checked are the external parameters that read looks at, or that say nothing
	// which could change a build.
	checked func(path []string) bool
	// signed returns why a certificate's build signer or run is not that of the
	// builder, or "".
	signed func(verify.Certificate, *build) string
}

// plain reads provenance by the letter of SLSA: the source is what was resolved.
func plain(b *build) (claims, error) {
	s, err := sole(b)
	return claims{source: s}, err
}

// Profiles are those of [verify.BuilderProfiles] whose provenance is known. A
// build system without types here writes none of its own.
var profiles = map[string]profile{
	verify.ProfileGitHub:      {types: githubTypes, signed: githubSigned, extended: true},
	verify.ProfileGitLab:      {types: gitlabTypes, signed: gitlabSigned, extended: true},
	verify.ProfileBuildKit:    {types: buildkitTypes, signed: buildkitSigned},
	verify.ProfileBuildkite:   {types: []buildType{buildkite}},
	verify.ProfileJenkins:     {types: jenkinsTypes},
	verify.ProfileAzureDevOps: {types: azureTypes},
}

func exactly(uri string) verify.Match { return verify.Match{Exact: uri} }

// only returns a checker of parameters at or below some paths.
func only(paths ...string) func([]string) bool {
	var all [][]string
	for _, p := range paths {
		all = append(all, strings.Split(p, "."))
	}
	return func(path []string) bool {
		return slices.ContainsFunc(all, func(p []string) bool { return len(path) >= len(p) && slices.Equal(path[:len(p)], p) })
	}
}

// githubTypes: GitHub's own and the community's workflow type, which are alike,
// and those of slsa-github-generator.
// https://github.com/actions/toolkit/tree/main/packages/attest
// https://github.com/slsa-framework/github-actions-buildtypes/tree/main/workflow/v1
// https://github.com/slsa-framework/slsa-github-generator
var githubTypes = []buildType{
	{is: exactly("https://actions.github.io/buildtypes/workflow/v1"), read: githubWorkflow, checked: workflowOwn, signed: githubSigned},
	{is: exactly("https://slsa-framework.github.io/github-actions-buildtypes/workflow/v1"), read: githubWorkflow, checked: workflowOwn, signed: githubSigned},
	{is: exactly("https://github.com/slsa-framework/slsa-github-generator/delegator-generic@v0"), read: githubDelegated, checked: only(), signed: delegatorSigned},
	{is: exactly("https://slsa.dev/container-based-build/v0.1?draft"), read: githubContainerBased, checked: only("source.uri", "source.digest"), signed: githubSigned},
	{is: exactly("https://github.com/slsa-framework/slsa-github-generator/generic@v1"), read: githubGenerator, checked: configOwn, signed: githubSigned},
	{is: exactly("https://github.com/slsa-framework/slsa-github-generator/container@v1"), read: githubGenerator, checked: configOwn, signed: githubSigned},
	{is: exactly("https://github.com/slsa-framework/slsa-github-generator/go@v1"), read: githubGenerator, checked: configOwn, signed: githubSigned},
}

var (
	workflowOwn = only("workflow.ref", "workflow.repository", "workflow.path")
	configOwn   = only("configSource.uri", "configSource.entryPoint")
)

func githubWorkflow(b *build) (claims, error) {
	s, err := declared(b, word(b.external, "workflow", "repository"), word(b.external, "workflow", "ref"))
	in := at(b.internal, "github")
	return claims{
		source: s, trigger: word(in, "event_name"), repositoryID: word(in, "repository_id"), ownerID: word(in, "repository_owner_id"),
		runner: word(in, "runner_environment"), run: b.invocation,
	}, err
}

// githubDelegated reads what a builder of one's own says through the generator's
// delegator, which works on github.com alone.
func githubDelegated(b *build) (claims, error) {
	from := ""
	if name := word(b.internal, "GITHUB_REPOSITORY"); name != "" {
		from = "https://github.com/" + name
	}
	s, err := declared(b, from, word(b.internal, "GITHUB_REF"))
	return githubVariables(b, s), err
}

func githubContainerBased(b *build) (claims, error) {
	from := locate(word(b.external, "source", "uri"))
	s, err := declared(b, from.repository, from.ref)
	return githubVariables(b, s), err
}

func githubVariables(b *build, s source) claims {
	return claims{
		source: s, trigger: word(b.internal, "GITHUB_EVENT_NAME"), repositoryID: word(b.internal, "GITHUB_REPOSITORY_ID"),
		ownerID: word(b.internal, "GITHUB_REPOSITORY_OWNER_ID"), run: b.invocation,
	}
}

// githubGenerator reads provenance v0.2. Its invocation is "RUN-ATTEMPT".
func githubGenerator(b *build) (claims, error) {
	from := locate(word(b.external, "configSource", "uri"))
	s, err := declared(b, from.repository, from.ref)
	c := claims{
		source: s, trigger: word(b.internal, "github_event_name"),
		repositoryID: word(b.internal, "github_repository_id"), ownerID: word(b.internal, "github_repository_owner_id"),
	}
	if run, attempt, ok := strings.Cut(b.invocation, "-"); ok {
		c.run = s.repository + "/actions/runs/" + run + "/attempts/" + attempt
	}
	return c, err
}

// githubSigned: a workflow signs for itself.
func githubSigned(c verify.Certificate, b *build) string {
	if c.BuildSigner != b.builder {
		return fmt.Sprintf("the certificate was issued to %q, the builder is %q", intoto.Short(c.BuildSigner), intoto.Short(b.builder))
	}
	return ""
}

var delegator = regexp.MustCompile(`\Ahttps://github\.com/slsa-framework/slsa-github-generator/\.github/workflows/delegator_(?:lowperms-)?generic_slsa3\.yml@refs/tags/v[0-9]+\.[0-9]+\.[0-9]+\z`)

// delegatorSigned: the generator's delegator signs for the builders that it runs,
// whose identity it has verified.
func delegatorSigned(c verify.Certificate, _ *build) string {
	if !delegator.MatchString(c.BuildSigner) {
		return fmt.Sprintf("the certificate was issued to %q, expected the delegator of slsa-github-generator", intoto.Short(c.BuildSigner))
	}
	return ""
}

// gitlabTypes: those of GitLab itself and of its runner.
// https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1/
// https://docs.gitlab.com/ci/runners/configure_runners/#provenance-metadata-format
var gitlabTypes = []buildType{
	{is: exactly("https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1"), read: gitlabJob, checked: gitlabChecked("variables"), signed: gitlabSigned},
	{is: verify.Match{Template: "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/{version:semver}/PROVENANCE.md"}, read: gitlabJob, checked: gitlabChecked("", "parameters"), signed: gitlabSigned},
}

// gitlabJob reads the source. The ref and the trigger stand in variables only,
// which who starts a pipeline may overwrite: a certificate names them.
func gitlabJob(b *build) (claims, error) {
	from := word(b.external, "source")
	if from == "" {
		from = word(b.external, "configSource", "uri")
	}
	s, err := declared(b, from, "")
	c := claims{source: s}
	if b.invocation != "" {
		c.run = s.repository + "/-/jobs/" + b.invocation
	}
	return c, err
}

// gitlabChecked knows the source, the job, and below a folder the variables that
// GitLab itself sets for every job.
func gitlabChecked(folders ...string) func([]string) bool {
	fixed := only("source", "entryPoint", "configSource.uri", "configSource.entryPoint")
	return func(path []string) bool {
		if fixed(path) {
			return true
		}
		for _, f := range folders {
			at := 0
			if f != "" {
				at = 1
			}
			if len(path) == at+1 && (at == 0 || path[0] == f) && gitlabOwn(path[at]) {
				return true
			}
		}
		return false
	}
}

func gitlabOwn(variable string) bool {
	switch variable {
	case "CI", "RUNNER_GENERATE_ARTIFACTS_METADATA", "SLSA_PROVENANCE_SCHEMA_VERSION":
		return true
	}
	return strings.HasPrefix(variable, "CI_") || strings.HasPrefix(variable, "GITLAB_")
}

// gitlabSigned: the builder is a runner, the certificate the job's; both are of
// one GitLab.
func gitlabSigned(c verify.Certificate, b *build) string {
	if !strings.HasPrefix(b.builder, strings.TrimSuffix(c.Issuer, "/")+"/") {
		return fmt.Sprintf("the certificate is of %q, the builder is %q", intoto.Short(c.Issuer), intoto.Short(b.builder))
	}
	return ""
}

// buildkitTypes are alike in v0.2 and v1.
// https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md
var buildkitTypes = []buildType{
	{is: exactly("https://mobyproject.org/buildkit@v1"), read: buildkit, checked: buildkitChecked, signed: buildkitSigned},
	{is: exactly("https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"), read: buildkit, checked: buildkitChecked, signed: buildkitSigned},
}

// buildkit reads the remote context. What BuildKit calls vcs is the client's word
// and counts for nothing.
func buildkit(b *build) (claims, error) {
	from := locate(word(b.external, "configSource", "uri"))
	s, err := declared(b, from.repository, from.ref)
	return claims{source: s}, err
}

// buildkitChecked knows the source, how the frontend was called, and labels,
// which change nothing that is run.
func buildkitChecked(path []string) bool {
	if len(path) == 3 && (path[0] == "request" || path[0] == "parameters") && path[1] == "args" {
		return strings.HasPrefix(path[2], "label:")
	}
	return buildkitFixed(path)
}

var buildkitFixed = only("configSource", "request.frontend", "parameters.frontend", "buildConfig")

// buildkitSigned: the builder is the workflow that signs, or the run of it.
func buildkitSigned(c verify.Certificate, b *build) string {
	if c.Run == "" && c.BuildSigner == "" {
		return ""
	}
	if b.builder == c.BuildSigner || b.builder == c.Run || strings.HasPrefix(c.Run, b.builder+"/attempts/") {
		return ""
	}
	return fmt.Sprintf("the certificate is of %q in %q, the builder is %q", intoto.Short(c.BuildSigner), intoto.Short(c.Run), intoto.Short(b.builder))
}

// buildkite is what its plugin writes.
// https://github.com/buildkite-plugins/generate-provenance-attestation-buildkite-plugin
var buildkite = buildType{
	is: exactly("https://buildkite.github.io/slsa-buildtypes/job/v1"),
	read: func(b *build) (claims, error) {
		s, err := declared(b, word(b.external, "repository"), "")
		if id := word(b.external, "build", "commit"); err == nil && id != s.commit {
			err = fmt.Errorf("the parameters name commit %q, the source is %s", intoto.Short(id), s.commit)
		}
		return claims{source: s}, err
	},
	checked: only("repository", "build.branch", "build.commit", "build.tag", "job.id", "step.id"),
}

// jenkinsTypes: the SLSA plugin's, and that of Red Hat's templates.
// https://github.com/jenkinsci/slsa-plugin
var jenkinsTypes = []buildType{
	{is: verify.Match{Template: "https://gitlab.eclipse.org/eclipsefdn/security/slsa-jenkins-plugin@{version:semver}"}, read: jenkinsJob, checked: configOwn},
	{is: exactly("https://redhat.com/rhtap/slsa-build-types/jenkins-build/v1"), read: pipeline, checked: only("pipeline.repository", "pipeline.ref")},
}

func jenkinsJob(b *build) (claims, error) {
	from := locate(word(b.external, "configSource", "uri"))
	s, err := declared(b, from.repository, from.ref)
	return claims{source: s}, err
}

// azureTypes: that of Red Hat's templates. Azure DevOps has none of its own.
var azureTypes = []buildType{
	{is: exactly("https://redhat.com/rhtap/slsa-build-types/azure-build/v1"), read: pipeline, checked: only("pipeline.repository", "pipeline.ref")},
}

// pipeline reads provenance that may name its source in the parameters, and else
// only lists it among what was resolved. The ref is often a commit.
func pipeline(b *build) (claims, error) {
	from, ref := word(b.external, "pipeline", "repository"), word(b.external, "pipeline", "ref")
	if from == "" {
		return plain(b)
	}
	if commitID.MatchString(ref) {
		ref = ""
	}
	s, err := declared(b, from, ref)
	return claims{source: s}, err
}
