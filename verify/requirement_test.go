package verify

import (
	"strings"
	"testing"
	"time"
)

// TestRequirementRefuses: what would check nothing, or could never be met, is
// found when the rule is loaded.
func TestRequirementRefuses(t *testing.T) {
	t.Parallel()
	builder := Builder{ID: Match{Exact: "https://ci.acme.example/builder"}, Level: 2, Profile: ProfileGitHub}
	provenance := func(f func(*ProvenanceRequirement)) Requirement {
		q := ProvenanceRequirement{Builders: []Builder{builder}, Repository: "https://github.com/acme/shop", Refs: []string{"refs/heads/*"}, Parameters: map[string][]string{"inputs": {}}}
		f(&q)
		return Requirement{Provenance: &q}
	}
	with := func(f func(*Builder)) Requirement {
		return provenance(func(q *ProvenanceRequirement) { f(&q.Builders[0]) })
	}
	vsa := func(f func(*VSARequirement)) Requirement {
		q := VSARequirement{Verifiers: []string{"https://acme.example/v"}, Levels: []string{"SLSA_BUILD_LEVEL_2", "ACME_OK"}}
		f(&q)
		return Requirement{VSA: &q}
	}
	scan := func(f func(*VulnerabilitiesRequirement)) Requirement {
		q := VulnerabilitiesRequirement{ScanMaxAge: time.Hour, DatabaseMaxAge: time.Hour, MaxSeverity: "low", Scanners: []string{"pkg:github/acme/*"}}
		f(&q)
		return Requirement{Vulnerabilities: &q}
	}
	predicate := func(typ, rego string) Requirement {
		return Requirement{Predicate: &PredicateRequirement{Type: typ, Rego: []byte(rego)}}
	}
	for name, c := range map[string]struct {
		q    Requirement
		want string
	}{
		"provenance":                       {provenance(func(*ProvenanceRequirement) {}), ""},
		"provenance, builders":             {provenance(func(q *ProvenanceRequirement) { q.Builders = nil }), "trusts no builder"},
		"provenance, level 4":              {provenance(func(q *ProvenanceRequirement) { q.Level = 4 }), "between 1 and 3"},
		"provenance, level -1":             {provenance(func(q *ProvenanceRequirement) { q.Level = -1 }), "between 1 and 3"},
		"provenance, level out of reach":   {provenance(func(q *ProvenanceRequirement) { q.Level = 3 }), "can never be met"},
		"provenance, repository":           {provenance(func(q *ProvenanceRequirement) { q.Repository = "" }), "not the URI of a source repository"},
		"provenance, repository of all":    {provenance(func(q *ProvenanceRequirement) { q.Repository = "https://github.com" }), "not the URI of a source repository"},
		"provenance, ref":                  {provenance(func(q *ProvenanceRequirement) { q.Refs = []string{"refs/heads/rel*"} }), "mixes text with a wildcard"},
		"provenance, empty ref":            {provenance(func(q *ProvenanceRequirement) { q.Refs = []string{""} }), "is not a name"},
		"provenance, trigger":              {provenance(func(q *ProvenanceRequirement) { q.Triggers = []string{"push", "push"} }), "is there twice"},
		"provenance, build type":           {provenance(func(q *ProvenanceRequirement) { q.BuildTypes = []string{" x"} }), "is not a name"},
		"provenance, parameter":            {provenance(func(q *ProvenanceRequirement) { q.Parameters = map[string][]string{"": {}} }), "is not a name"},
		"builder id":                       {with(func(b *Builder) { b.ID = Match{} }), "builder id"},
		"builder id of all":                {with(func(b *Builder) { b.ID = Match{Prefix: "https://github.com"} }), "would match almost anyone"},
		"builder level 0":                  {with(func(b *Builder) { b.Level = 0 }), "between 1 and 3"},
		"builder level 4":                  {with(func(b *Builder) { b.Level = 4 }), "between 1 and 3"},
		"builder profile":                  {with(func(b *Builder) { b.Profile = "teamcity" }), "unknown profile"},
		"builder without profile":          {with(func(b *Builder) { b.Profile = "" }), "or list buildTypes"},
		"builder of build types":           {provenance(func(q *ProvenanceRequirement) { q.Builders[0].Profile, q.BuildTypes = "", []string{"https://x/y"} }), ""},
		"vsa":                              {vsa(func(*VSARequirement) {}), ""},
		"vsa, any signer for any verifier": {Requirement{Signers: []string{"ci", "cd"}, VSA: &VSARequirement{Verifiers: []string{"a", "b"}, Levels: []string{"X"}}}, "name one signer, or one verifier"},
		"vsa, two signers of one verifier": {Requirement{Signers: []string{"ci", "cd"}, VSA: &VSARequirement{Verifiers: []string{"a"}, Levels: []string{"X"}}}, ""},
		"vsa, verifiers":                   {vsa(func(q *VSARequirement) { q.Verifiers = nil }), "trusts no verifier"},
		"vsa, empty verifier":              {vsa(func(q *VSARequirement) { q.Verifiers = []string{""} }), "is not a name"},
		"vsa, levels":                      {vsa(func(q *VSARequirement) { q.Levels = nil }), "asks for no level"},
		"vsa, empty level":                 {vsa(func(q *VSARequirement) { q.Levels = []string{""} }), "is not a name"},
		"vsa, level of failure":            {vsa(func(q *VSARequirement) { q.Levels = []string{"FAILED"} }), "is not a level"},
		"vsa, level that is none":          {vsa(func(q *VSARequirement) { q.Levels = []string{"SLSA_BUILD_LEVEL_33"} }), "is not a level"},
		"vsa, resource":                    {vsa(func(q *VSARequirement) { q.Resource = Match{Prefix: "oci://ghcr.io"} }), "would match almost anyone"},
		"vsa, age":                         {vsa(func(q *VSARequirement) { q.VerifiedWithin = -1 }), "is negative"},
		"scan":                             {scan(func(*VulnerabilitiesRequirement) {}), ""},
		"scan, age":                        {scan(func(q *VulnerabilitiesRequirement) { q.ScanMaxAge = 0 }), "set scanMaxAge"},
		"scan, age of database":            {scan(func(q *VulnerabilitiesRequirement) { q.DatabaseMaxAge = 0 }), "set databaseMaxAge"},
		"scan, severity":                   {scan(func(q *VulnerabilitiesRequirement) { q.MaxSeverity = "HIGH" }), "unknown severity"},
		"scan, scanner":                    {scan(func(q *VulnerabilitiesRequirement) { q.Scanners = []string{"pkg:*"} }), "mixes text with a wildcard"},
		"scan, empty scanner":              {scan(func(q *VulnerabilitiesRequirement) { q.Scanners = []string{""} }), "is not a name"},
		"test":                             {Requirement{Test: &TestRequirement{Kind: "unit"}}, ""},
		"test, kind":                       {Requirement{Test: &TestRequirement{}}, "say which test"},
		"release":                          {Requirement{Release: &ReleaseRequirement{Package: "pkg:oci/shop?repository_url=ghcr.io/acme/shop"}}, ""},
		"release of anything":              {Requirement{Release: &ReleaseRequirement{}}, ""},
		"release, npm scope":               {Requirement{Release: &ReleaseRequirement{Package: "pkg:npm/%40angular/http"}}, ""},
		"release, no package URL":          {Requirement{Release: &ReleaseRequirement{Package: "acme/shop"}}, "is not a package URL"},
		"release, no name":                 {Requirement{Release: &ReleaseRequirement{Package: "pkg:oci/"}}, "is not a package URL"},
		"release, version":                 {Requirement{Release: &ReleaseRequirement{Package: "pkg:github/acme/shop@v1"}}, "is not a package URL"},
		"scai":                             {Requirement{SCAI: &SCAIRequirement{Attributes: []string{"A"}, Evidence: "application/json"}}, ""},
		"scai, attributes":                 {Requirement{SCAI: &SCAIRequirement{}}, "asks for no attribute"},
		"scai, empty attribute":            {Requirement{SCAI: &SCAIRequirement{Attributes: []string{"A", ""}}}, "is not a name"},
		"scai, evidence":                   {Requirement{SCAI: &SCAIRequirement{Attributes: []string{"A"}, Evidence: "sarif"}}, "is not a media type"},
		"predicate":                        {predicate("https://acme.example/review/v1", ""), ""},
		"predicate, urn":                   {predicate("urn:acme:review:1", ""), ""},
		"predicate, type":                  {predicate("", ""), "is not the URI"},
		"predicate, bare type":             {predicate("cosign.sigstore.dev/attestation/vuln/v1", ""), "is not the URI"},
		"predicate, pattern":               {predicate("https://acme.example/*", ""), "is not the URI"},
		"predicate, signature":             {predicate(PredicateSignature, "package x"), "ask for signature instead"},
		"predicate, own kind":              {predicate("https://slsa.dev/provenance/v1", ""), "ask for provenance instead"},
		"predicate, own kind with rules":   {predicate("https://slsa.dev/provenance/v1", "package x"), ""},
		"sbom":                             {Requirement{SBOM: &SBOMRequirement{Formats: []string{"swid"}}}, "unknown format"},
	} {
		if len(c.q.Signers) == 0 {
			c.q.Signers = []string{"ci"}
		}
		err := c.q.validate([]Signer{{Name: "ci"}, {Name: "cd"}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), c.q.Name()+": ") {
			t.Errorf("%s: %v does not name the requirement", name, err)
		}
	}
}

// TestCacheKey: a verdict about a name is not one about another.
func TestCacheKey(t *testing.T) {
	t.Parallel()
	a, b := Subject{Name: "ghcr.io/acme/dev", Digest: "sha256:x"}, Subject{Name: "ghcr.io/acme/prod", Digest: "sha256:x"}
	named := &compiled{rule: Rule{Require: []Requirement{{VSA: &VSARequirement{}}}}}
	if named.key(a) == named.key(b) {
		t.Error("a summary about one repository counts for another")
	}
	for _, q := range []Requirement{{Signature: &SignatureRequirement{}}, {VSA: &VSARequirement{Resource: Match{Exact: "x"}}}} {
		if c := (&compiled{rule: Rule{Require: []Requirement{q}}}); c.key(a) != c.key(b) {
			t.Errorf("%s: evidence about content is looked for once a name", q.Name())
		}
	}
}
