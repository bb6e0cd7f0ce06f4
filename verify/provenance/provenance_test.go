package provenance

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

const (
	commitOf = "4d329c75e7ec1725f7c9ce917a8799d408d06be3"
	shop     = "https://github.com/acme/shop"
	gitlab   = "https://gitlab.com/acme/shop"
)

// now is the time of the judgements; provenance has no use for it.
var now = time.Date(2026, 6, 6, 0, 0, 0, 0, time.UTC)

func exact(s string) verify.Match    { return verify.Match{Exact: s} }
func template(s string) verify.Match { return verify.Match{Template: s} }

// generator is a workflow of slsa-github-generator at any of its versions.
func generator(workflow string) verify.Builder {
	return verify.Builder{
		ID:    template("https://github.com/slsa-framework/slsa-github-generator/.github/workflows/" + workflow + "_slsa3.yml@refs/tags/{version:semver}"),
		Level: 3, Profile: verify.ProfileGitHub,
	}
}

// shape is provenance as one build system writes it, and a rule that fits.
type shape struct {
	file        string
	rule        verify.ProvenanceRequirement
	certificate *verify.Certificate
	level       int
	ref         string
	trigger     string
	party       string
}

func githubCertificate(signer, ref, trigger, run string) *verify.Certificate {
	return &verify.Certificate{
		Issuer: "https://token.actions.githubusercontent.com", Subject: signer, BuildSigner: signer, Runner: "github-hosted",
		SourceRepository: shop, SourceDigest: commitOf, SourceRef: ref, SourceRepositoryID: "486325809", SourceOwnerID: "80431187",
		Trigger: trigger, Run: run,
	}
}

func gitlabCertificate() *verify.Certificate {
	return &verify.Certificate{
		Issuer: "https://gitlab.com", Subject: gitlab + "//.gitlab-ci.yml@refs/heads/main", BuildSigner: gitlab + "//.gitlab-ci.yml@refs/heads/main",
		Runner: "gitlab-hosted", SourceRepository: gitlab, SourceDigest: commitOf, SourceRef: "refs/heads/main", Trigger: "push", Run: gitlab + "/-/jobs/412",
	}
}

const (
	run     = shop + "/actions/runs/13531731005/attempts/1"
	release = shop + "/.github/workflows/release.yml@refs/heads/main"
	tools   = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/"
)

func shapes() []shape {
	github := verify.ProfileGitHub
	main := []string{"refs/heads/main"}
	attest := verify.ProvenanceRequirement{
		Builders: []verify.Builder{{ID: exact(release), Level: 2, Profile: github}}, Level: 2, Repository: shop, Refs: main, Triggers: []string{"push"}, SingleSubject: true,
		Parameters: map[string][]string{"workflow.path": {".github/workflows/release.yml"}},
	}
	return []shape{
		{file: "github-attest", rule: attest, certificate: githubCertificate(release, "refs/heads/main", "push", run), level: 2, ref: "refs/heads/main", trigger: "push", party: "builder " + shop + "/.github/workflows/release.yml"},
		{file: "github-workflow", level: 3, ref: "refs/heads/main", trigger: "workflow_dispatch", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{generator("builder_go")}, Level: 3, Repository: shop, Refs: main,
			Parameters: map[string][]string{"inputs.deploy_target": {"production"}, "inputs.build_id": {}, "inputs.perform_deploy": {"true", "false"}, "vars": {}},
		}, party: "builder " + tools + "builder_go_slsa3.yml"},
		{file: "github-delegator", level: 3, ref: "refs/heads/main", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{generator("builder_maven")}, Repository: shop, Refs: main, Parameters: map[string][]string{"inputs": {}, "inputs.jdk-version": {"17", "21"}},
		}, certificate: githubCertificate(tools+"delegator_generic_slsa3.yml@refs/tags/v2.1.0", "refs/heads/main", "push", run)},
		{file: "github-container-based", level: 3, ref: "refs/heads/main", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{generator("builder_container-based")}, Repository: shop, Refs: main,
			Parameters: map[string][]string{"builderImage": {}, "configPath": {}, "buildConfig": {}},
		}, certificate: githubCertificate(tools+"builder_container-based_slsa3.yml@refs/tags/v2.1.0", "refs/heads/main", "push", run)},
		{file: "github-generator-v02", level: 3, ref: "refs/tags/v14.2", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{generator("generator_container")}, AllowV02: true, Repository: shop, Refs: []string{"refs/tags/*"},
		}, certificate: githubCertificate(tools+"generator_container_slsa3.yml@refs/tags/v2.1.0", "refs/tags/v14.2", "push", shop+"/actions/runs/13530999644/attempts/1")},
		{file: "gitlab", level: 3, ref: "refs/heads/main", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: template(gitlab + "/-/runners/{id:number}"), Level: 3, Profile: verify.ProfileGitLab}}, Repository: gitlab, Refs: main,
			Parameters: map[string][]string{"variables.DEPLOY_TOKEN": {"[MASKED]"}},
		}, certificate: gitlabCertificate()},
		{file: "gitlab-runner", level: 1, ref: "refs/heads/main", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: template(gitlab + "/-/runners/{id:number}"), Level: 1, Profile: verify.ProfileGitLab}}, Repository: gitlab, Refs: main,
		}, certificate: gitlabCertificate()},
		{file: "gitlab-runner-v02", level: 1, rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: template(gitlab + "/-/runners/{id:number}"), Level: 1, Profile: verify.ProfileGitLab}}, Repository: gitlab, AllowV02: true,
		}},
		{file: "buildkit", level: 2, ref: "refs/heads/main", trigger: "push", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: template(shop + "/actions/runs/{id:number}"), Level: 2, Profile: verify.ProfileBuildKit}}, Repository: shop, Refs: main,
			Parameters: map[string][]string{"request.args.target": {"release"}, "request.locals.name": {"context"}},
		}, certificate: githubCertificate(release, "refs/heads/main", "push", run)},
		{file: "buildkit-v02", level: 2, ref: "refs/heads/main", rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: template(shop + "/actions/runs/{id:number}/attempts/{n:number}"), Level: 2, Profile: verify.ProfileBuildKit}}, AllowV02: true, Repository: shop,
			Parameters: map[string][]string{"parameters.args.target": {"release", "debug"}, "parameters.locals.name": {"context"}},
		}},
		{file: "buildkite", level: 1, ref: "refs/heads/main", rule: verify.ProvenanceRequirement{
			Builders:   []verify.Builder{{ID: template("https://github.com/buildkite-plugins/generate-provenance-attestation-buildkite-plugin@refs/tags/{v:semver}"), Level: 1, Profile: verify.ProfileBuildkite}},
			Repository: shop, Refs: main, Parameters: map[string][]string{"pipeline": {"https://buildkite.com/acme/shop"}, "step": {}},
		}},
		{file: "jenkins-v02", level: 1, rule: verify.ProvenanceRequirement{
			Builders:   []verify.Builder{{ID: template("https://gitlab.eclipse.org/eclipsefdn/security/slsa-jenkins-plugin@{v:semver}"), Level: 1, Profile: verify.ProfileJenkins}},
			Repository: "https://git.acme.example/shop", AllowV02: true,
		}},
		{file: "jenkins", level: 1, rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: exact("builder-1"), Level: 1, Profile: verify.ProfileJenkins}}, Repository: "ssh://git@git.acme.example/shop/shop",
			Parameters: map[string][]string{"pipeline.path": {"Jenkinsfile"}},
		}},
		{file: "azure-devops", level: 1, rule: verify.ProvenanceRequirement{
			Builders: []verify.Builder{{ID: exact("11"), Level: 1, Profile: verify.ProfileAzureDevOps}}, Repository: "https://acme@dev.azure.com/acme/shop/_git/shop",
		}},
	}
}

// statement returns a shape as it comes before the judge.
func (s shape) statement(t testing.TB) verify.Statement {
	t.Helper()
	b, err := os.ReadFile("testdata/" + s.file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	st := verify.Statement{PredicateType: PredicateV1, Predicate: b, Subjects: []verify.StatementSubject{{Name: "shop"}}, Certificate: s.certificate}
	if s.rule.AllowV02 {
		st.PredicateType = PredicateV02
	}
	return st
}

func judge(t testing.TB, q verify.ProvenanceRequirement) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{Provenance: &q})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// TestShapes: provenance as the build systems write it is read.
func TestShapes(t *testing.T) {
	t.Parallel()
	for _, s := range shapes() {
		t.Run(s.file, func(t *testing.T) {
			t.Parallel()
			j, st := judge(t, s.rule), s.statement(t)
			if !j.Reads(st.PredicateType) {
				t.Fatalf("it does not read %s", st.PredicateType)
			}
			f, err := j.Judge(st, now)
			if err != nil {
				t.Fatal(err)
			}
			source, _ := f.Facts["source"].(map[string]any)
			if f.Facts["level"] != s.level || source["ref"] != s.ref || f.Facts["trigger"] != s.trigger || source["commit"] != commitOf || source["repository"] != s.rule.Repository {
				t.Errorf("facts: %v", f.Facts)
			}
			if s.party != "" && f.Party != s.party {
				t.Errorf("party %q, want %q", f.Party, s.party)
			}
			if !strings.Contains(f.Text, "SLSA build level") || !strings.Contains(f.Text, commitOf[:12]) {
				t.Errorf("text %q", f.Text)
			}
			if _, err := json.Marshal(f.Facts); err != nil {
				t.Error(err)
			}
		})
	}
}

// change is what is wrong in one of the shapes: of the predicate by a path of
// names, of the rule, or of the statement.
type change struct {
	file string
	set  map[string]any // by path; nil deletes
	rule func(*verify.ProvenanceRequirement)
	st   func(*verify.Statement)
	want string
}

// TestRefuses: each rule refuses what breaks it, and nothing else does.
func TestRefuses(t *testing.T) {
	t.Parallel()
	const definition = "buildDefinition."
	git := func(repository, ref, commit string) map[string]any {
		return map[string]any{"uri": "git+" + repository + "@" + ref, "digest": map[string]any{"gitCommit": commit}}
	}
	other := strings.Repeat("b", 40)
	certificate := func(f func(*verify.Certificate)) func(*verify.Statement) {
		return func(st *verify.Statement) {
			c := *st.Certificate
			f(&c)
			st.Certificate = &c
		}
	}
	for name, c := range map[string]change{
		"builder is another": {set: map[string]any{"runDetails.builder.id": shop + "/.github/workflows/other.yml@refs/heads/main"}, want: "builder: found"},
		"builder is another, whose name contains the trusted one": {set: map[string]any{"runDetails.builder.id": "https://evil.example/" + release}, want: "builder: found"},
		"builder is missing":               {set: map[string]any{"runDetails.builder.id": nil}, want: "names no builder"},
		"builder is spelled in upper case": {set: map[string]any{"runDetails.builder": map[string]any{"ID": release}}, want: "names no builder"},
		"level is not enough": {rule: func(q *verify.ProvenanceRequirement) {
			q.Builders = append([]verify.Builder{{ID: q.Builders[0].ID, Level: 1, Profile: verify.ProfileGitHub}}, q.Builders...)
		}, want: "trusted for SLSA build level 1, expected 2"},
		"build type is unknown":                   {set: map[string]any{definition + "buildType": "https://evil.example/v1"}, want: "which profile github-actions does not know"},
		"build type is of another profile":        {set: map[string]any{definition + "buildType": "https://mobyproject.org/buildkit@v1"}, want: "does not know"},
		"build type is missing":                   {set: map[string]any{definition + "buildType": nil}, want: "names no build type"},
		"build type is not listed":                {rule: func(q *verify.ProvenanceRequirement) { q.BuildTypes = []string{"https://example.com/v1"} }, want: "build type: found"},
		"repository is another":                   {set: map[string]any{definition + "externalParameters.workflow.repository": shop + "-evil", definition + "resolvedDependencies": []any{git(shop+"-evil", "refs/heads/main", commitOf)}}, st: certificate(func(c *verify.Certificate) { c.SourceRepository = shop + "-evil" }), want: "source repository: found"},
		"repository is only used":                 {set: map[string]any{definition + "externalParameters.workflow.repository": shop + "-evil", definition + "resolvedDependencies": []any{git(shop, "refs/heads/main", commitOf)}}, want: "no commit of the source"},
		"repository is missing":                   {set: map[string]any{definition + "externalParameters.workflow.repository": nil}, want: "no source is named"},
		"dependencies are missing":                {set: map[string]any{definition + "resolvedDependencies": nil}, want: "no commit of the source"},
		"dependencies have two commits":           {set: map[string]any{definition + "resolvedDependencies": []any{git(shop, "refs/heads/main", commitOf), git(shop, "refs/heads/main", other)}}, want: "two commits"},
		"dependencies have two refs":              {set: map[string]any{definition + "resolvedDependencies": []any{git(shop, "refs/heads/main", commitOf), git(shop, "refs/heads/evil", commitOf)}}, want: "two commits or refs"},
		"dependency has no commit":                {set: map[string]any{definition + "resolvedDependencies": []any{git(shop, "refs/heads/main", "main")}}, want: "has no commit"},
		"dependency has two digests":              {set: map[string]any{definition + "resolvedDependencies": []any{map[string]any{"uri": "git+" + shop, "digest": map[string]any{"gitCommit": commitOf, "sha1": other}}}}, want: "has two commits"},
		"parameters and source name two refs":     {set: map[string]any{definition + "externalParameters.workflow.ref": "refs/heads/evil"}, want: "the parameters name ref"},
		"ref is another":                          {rule: func(q *verify.ProvenanceRequirement) { q.Refs = []string{"refs/tags/*"} }, want: "ref: found"},
		"ref is missing":                          {file: "jenkins", rule: func(q *verify.ProvenanceRequirement) { q.Refs = []string{"refs/heads/main"} }, want: "ref: found nothing"},
		"ref is a variable of a key's provenance": {file: "gitlab", rule: func(q *verify.ProvenanceRequirement) { q.Refs = []string{"**"} }, st: func(st *verify.Statement) { st.Certificate = nil }, want: "ref: found nothing"},
		"trigger is another":                      {rule: func(q *verify.ProvenanceRequirement) { q.Triggers = []string{"schedule"} }, want: "trigger: found"},
		"trigger is missing":                      {set: map[string]any{definition + "internalParameters": nil}, st: func(st *verify.Statement) { st.Certificate = nil }, want: "trigger: found nothing"},
		"trigger runs what strangers wrote": {set: map[string]any{definition + "internalParameters.github.event_name": "pull_request_target"}, rule: func(q *verify.ProvenanceRequirement) { q.Triggers = nil },
			st: func(st *verify.Statement) { st.Certificate = nil }, want: "trigger: found"},
		"trigger of strangers in the certificate": {file: "gitlab", st: certificate(func(c *verify.Certificate) { c.Trigger = "merge_request_event" }), want: "trigger: found"},
		"parameter is unknown":                    {set: map[string]any{definition + "externalParameters.inputs": map[string]any{"debug": true}}, want: `external parameter "inputs.debug" is not known`},
		"parameter is unknown, at the top":        {set: map[string]any{definition + "externalParameters.compiler": "evil"}, want: `"compiler" is not known`},
		"parameter is unknown, in a list":         {set: map[string]any{definition + "externalParameters.steps": []any{map[string]any{"run": "evil"}}}, want: `"steps.run" is not known`},
		"parameter only looks like a known path":  {set: map[string]any{definition + "externalParameters.workflow·ref": "evil"}, want: `"workflow.ref" is not known`},
		"parameter begins like a listed one":      {file: "github-delegator", set: map[string]any{definition + "externalParameters.inputs2": "x"}, want: `"inputs2" is not known`},
		"parameter has another value":             {file: "github-workflow", set: map[string]any{definition + "externalParameters.inputs.deploy_target": "staging"}, want: "external parameter inputs.deploy_target"},
		"parameter has another value below":       {file: "github-delegator", set: map[string]any{definition + "externalParameters.inputs.jdk-version": 8}, want: `found "8"`},
		"parameter is missing":                    {file: "github-workflow", set: map[string]any{definition + "externalParameters.inputs.deploy_target": nil}, want: "found nothing, expected production"},
		"parameters are missing":                  {set: map[string]any{definition + "externalParameters": nil}, want: "no externalParameters"},
		"parameters are a list":                   {set: map[string]any{definition + "externalParameters": []any{}}, want: "externalParameters is not an object"},
		"parameter of v0.2":                       {file: "github-generator-v02", set: map[string]any{"invocation.parameters": map[string]any{"x": "y"}}, want: `"parameters.x" is not known`},
		"parameter of v0.2, in an array":          {file: "github-generator-v02", set: map[string]any{"invocation.parameters": []any{"--evil"}}, want: `"parameters" is not known`},
		"input that a person typed":               {file: "github-generator-v02", set: map[string]any{"invocation.environment.github_event_payload.inputs": map[string]any{"x": "y"}}, want: `"event.inputs.x" is not known`},
		"files of the client's disk":              {file: "buildkit", rule: func(q *verify.ProvenanceRequirement) { q.Parameters = nil }, want: `"request.locals.name" is not known`},
		"parameter of BuildKit":                   {file: "buildkit", set: map[string]any{definition + "externalParameters.request.args.build-arg:CC": "evil"}, want: `"request.args.build-arg:CC" is not known`},
		"variable of GitLab":                      {file: "gitlab", set: map[string]any{definition + "externalParameters.variables.CC": "evil"}, want: `"variables.CC" is not known`},
		"variable of GitLab's runner":             {file: "gitlab-runner", set: map[string]any{definition + "externalParameters.CC": ""}, want: `"CC" is not known`},
		"certificate has another commit":          {st: certificate(func(c *verify.Certificate) { c.SourceDigest = other }), want: "commit: the provenance says"},
		"certificate has no commit":               {st: certificate(func(c *verify.Certificate) { c.SourceDigest = "" }), want: "commit: the certificate does not say it"},
		"certificate has another repository":      {st: certificate(func(c *verify.Certificate) { c.SourceRepository = shop + "-evil" }), want: "source repository: the provenance says"},
		"certificate has no repository":           {st: certificate(func(c *verify.Certificate) { c.SourceRepository = "" }), want: "source repository: the certificate does not say it"},
		"certificate has another ref":             {st: certificate(func(c *verify.Certificate) { c.SourceRef = "refs/heads/evil" }), want: "ref: the provenance says"},
		"certificate has no ref":                  {st: certificate(func(c *verify.Certificate) { c.SourceRef = "" }), want: "ref: the certificate does not say it"},
		"certificate has another trigger":         {st: certificate(func(c *verify.Certificate) { c.Trigger = "schedule" }), want: "trigger: the provenance says"},
		"certificate has another run":             {st: certificate(func(c *verify.Certificate) { c.Run = shop + "/actions/runs/1/attempts/1" }), want: "run: the provenance says"},
		"certificate has another run, v0.2":       {file: "github-generator-v02", st: certificate(func(c *verify.Certificate) { c.Run = run }), want: "run: the provenance says"},
		"certificate has another job of GitLab":   {file: "gitlab", st: certificate(func(c *verify.Certificate) { c.Run = gitlab + "/-/jobs/413" }), want: "run: the provenance says"},
		"certificate has another repository id":   {st: certificate(func(c *verify.Certificate) { c.SourceRepositoryID = "1" }), want: "source repository's number"},
		"certificate has another owner id":        {st: certificate(func(c *verify.Certificate) { c.SourceOwnerID = "1" }), want: "source repository owner's number"},
		"certificate has another runner":          {st: certificate(func(c *verify.Certificate) { c.Runner = "self-hosted" }), want: "runner: the provenance says"},
		"certificate is of another workflow":      {st: certificate(func(c *verify.Certificate) { c.BuildSigner = shop + "/.github/workflows/evil.yml@refs/heads/main" }), want: "build signer: the certificate was issued to"},
		"certificate names no workflow":           {st: certificate(func(c *verify.Certificate) { c.BuildSigner = "" }), want: "build signer: the certificate was issued to"},
		"certificate is not the delegator's":      {file: "github-delegator", st: certificate(func(c *verify.Certificate) { c.BuildSigner = release }), want: "expected the delegator"},
		"certificate is of another GitLab":        {file: "gitlab", st: certificate(func(c *verify.Certificate) { c.Issuer = "https://gitlab.com.evil.example" }), want: "build signer: the certificate is of"},
		"certificate is of another run, BuildKit": {file: "buildkit", st: certificate(func(c *verify.Certificate) { c.Run = shop + "/actions/runs/1/attempts/1" }), want: "build signer"},
		"certificate of a listed build type": {set: map[string]any{definition + "buildType": "https://example.com/v1", definition + "externalParameters": map[string]any{}}, rule: func(q *verify.ProvenanceRequirement) {
			q.BuildTypes, q.Parameters = []string{"https://example.com/v1"}, nil
		}, st: certificate(func(c *verify.Certificate) { c.BuildSigner = "https://evil.example/" }), want: "build signer"},
		"source of BuildKit is a folder":  {file: "buildkit", set: map[string]any{definition + "externalParameters.configSource": map[string]any{"path": "Dockerfile"}}, want: "built from a local folder"},
		"source of Buildkite is another":  {file: "buildkite", set: map[string]any{definition + "externalParameters.build.commit": other}, want: "the parameters name commit"},
		"source of Azure is one of two":   {file: "azure-devops", set: map[string]any{definition + "resolvedDependencies": []any{git("https://acme@dev.azure.com/acme/shop/_git/shop", "main", commitOf), git("https://evil.example/x", "main", commitOf)}}, want: "does not say which was built"},
		"subjects are two":                {st: func(st *verify.Statement) { st.Subjects = append(st.Subjects, verify.StatementSubject{Name: "evil"}) }, want: "about 2 artifacts"},
		"subjects are not known":          {st: func(st *verify.Statement) { st.Subjects = nil }, want: "about 0 artifacts"},
		"invocation has two names":        {set: map[string]any{"runDetails.metadata.invocationID": "1"}, want: "two invocations"},
		"time is not one":                 {set: map[string]any{"runDetails.metadata.startedOn": "yesterday"}, want: "RFC 3339"},
		"predicate is of another version": {st: func(st *verify.Statement) { st.PredicateType = PredicateV02 }, want: "names no builder"},
		"predicate is none":               {st: func(st *verify.Statement) { st.PredicateType = "https://example.com" }, want: "is not provenance"},
		"name is there twice":             {st: func(st *verify.Statement) { st.Predicate = []byte(`{"buildDefinition":{"a":1,"a":2}}`) }, want: "there twice"},
		"predicate is cut":                {st: func(st *verify.Statement) { st.Predicate = st.Predicate[:40] }, want: "not JSON"},
		"predicate is missing":            {st: func(st *verify.Statement) { st.Predicate = nil }, want: "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := shapes()
			i := slices.IndexFunc(all, func(s shape) bool { return s.file == c.file || c.file == "" && s.file == "github-attest" })
			q, st := all[i].rule, all[i].statement(t)
			st.Predicate = changed(t, st.Predicate, c.set)
			if c.rule != nil {
				c.rule(&q)
			}
			if c.st != nil {
				c.st(&st)
			}
			_, err := judge(t, q).Judge(st, now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

// changed returns a predicate with values set at paths. "·" in a name is a dot.
func changed(t testing.TB, predicate []byte, set map[string]any) []byte {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal(predicate, &p); err != nil {
		t.Fatal(err)
	}
	for path, v := range set {
		names := strings.Split(path, ".")
		at := p
		for _, n := range names[:len(names)-1] {
			next, ok := at[n].(map[string]any)
			if !ok {
				t.Fatalf("no %s in %s", n, path)
			}
			at = next
		}
		last := strings.ReplaceAll(names[len(names)-1], "·", ".")
		if at[last] = v; v == nil {
			delete(at, last)
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLetterOfSLSA: a builder without a profile is read where the rule lists what
// it writes.
func TestLetterOfSLSA(t *testing.T) {
	t.Parallel()
	q := verify.ProvenanceRequirement{
		Builders: []verify.Builder{{ID: exact("https://ci.acme.example/builder"), Level: 2}}, BuildTypes: []string{"https://ci.acme.example/build/v1"},
		Repository: shop, Refs: []string{"refs/heads/*"}, Parameters: map[string][]string{"target": {"release", ""}},
	}
	predicate := `{"buildDefinition":{"buildType":"https://ci.acme.example/build/v1","externalParameters":{%s},"resolvedDependencies":[
		{"uri":"git+https://GitHub.com/acme/shop.git@refs/heads/main","digest":{"gitCommit":"` + commitOf + `"}},{"uri":"pkg:npm/left-pad@1.3.0"}]},
		"runDetails":{"builder":{"id":"https://ci.acme.example/builder"}}}`
	for parameters, want := range map[string]string{"": "", `"target":"release"`: "", `"target":null`: "", `"target":"debug"`: "external parameter target", `"x":1`: "not known"} {
		st := verify.Statement{PredicateType: PredicateV1, Predicate: []byte(strings.Replace(predicate, "%s", parameters, 1))}
		_, err := judge(t, q).Judge(st, now)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", parameters, err, want)
		}
	}
}

// TestPrivateAuthority: a certificate of an authority of one's own says nothing of
// the build, and contradicts nothing.
func TestPrivateAuthority(t *testing.T) {
	t.Parallel()
	s := shapes()[0]
	st := s.statement(t)
	st.Certificate = &verify.Certificate{Subject: "ci.acme.example"}
	if _, err := judge(t, s.rule).Judge(st, now); err != nil {
		t.Error(err)
	}
}

// TestNewRefuses: what could not be read is found when the rule is loaded.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := New(verify.Requirement{SBOM: &verify.SBOMRequirement{}}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
	q := verify.ProvenanceRequirement{Builders: []verify.Builder{{ID: exact("x"), Level: 1, Profile: verify.ProfileCircleCI}}}
	if _, err := New(verify.Requirement{Provenance: &q}); err == nil || !strings.Contains(err.Error(), "list buildTypes") {
		t.Errorf("no build types: %v", err)
	}
	if judge(t, shapes()[0].rule).Reads(PredicateV02) {
		t.Error("v0.2 is read where it is not allowed")
	}
	if judge(t, shapes()[4].rule).Reads(PredicateV1 + ".1") {
		t.Error("another version is read")
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]source{
		"git+https://github.com/acme/shop@refs/tags/pkg@1.0": {repository: shop, ref: "refs/tags/pkg@1.0"},
		"git+https://github.com/acme/shop.git@main":          {repository: shop, ref: "main"},
		"git+https://github.com/acme/shop@" + commitOf:       {repository: shop},
		"https://github.com/acme/shop.git#refs/heads/main:x": {repository: shop, ref: "refs/heads/main"},
		"https://github.com/acme/shop.git#" + commitOf:       {repository: shop},
		"HTTPS://GitHub.com/acme/shop/":                      {repository: shop},
		"https://acme@dev.azure.com/acme/_git/shop":          {repository: "https://acme@dev.azure.com/acme/_git/shop"},
		"git@github.com:acme/shop.git":                       {repository: "ssh://git@github.com/acme/shop"},
		"":                                                   {},
	} {
		if got := locate(uri); got != want {
			t.Errorf("%q: got %+v, want %+v", uri, got, want)
		}
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted names the source that
// the rule asks for.
func FuzzJudge(f *testing.F) {
	var judges []verify.Judge
	for _, s := range shapes() {
		f.Add(s.statement(f).Predicate, s.rule.AllowV02)
		judges = append(judges, judge(f, s.rule))
	}
	f.Fuzz(func(t *testing.T, b []byte, v02 bool) {
		st := verify.Statement{PredicateType: PredicateV1, Predicate: b, Subjects: []verify.StatementSubject{{}}}
		if v02 {
			st.PredicateType = PredicateV02
		}
		for i, s := range shapes() {
			st.Certificate = s.certificate
			found, err := judges[i].Judge(st, now)
			if err != nil {
				continue
			}
			if source, _ := found.Facts["source"].(map[string]any); source["repository"] != s.rule.Repository || source["commit"] == "" {
				t.Errorf("%s: accepted %v", s.file, found.Facts)
			}
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	s := shapes()[0]
	j, st := judge(b, s.rule), s.statement(b)
	for b.Loop() {
		if _, err := j.Judge(st, now); err != nil {
			b.Fatal(err)
		}
	}
}
