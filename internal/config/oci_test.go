package config

import (
	"strings"
	"testing"
)

const gitRepository = `  url: /srv/fleet.git
  commits:
    signers: [{name: alice, allowedSignersFile: alice.keys}]
    rules: [{paths: ["**"], signers: [alice]}]
`

func TestOCI(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("0", 64)
	for text, problem := range map[string]string{
		"  oci: {reference: oci://ghcr.io/acme/desired-state, tag: production}\n":                    "",
		"  oci: {reference: \"oci://localhost:5000/state\", semver: \">=1.0.0\"}\n":                  "",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: a, annotations: {a.example/channel: prod}}\n": "",
		"  oci: {reference: ghcr.io/acme/desired-state, tag: production}\n":                          "not a repository in a registry",
		"  oci: {reference: https://ghcr.io/acme/desired-state, tag: production}\n":                  "not a repository in a registry",
		"  oci: {reference: \"oci://ghcr.io/acme/desired-state:1\", tag: production}\n":              "not a repository in a registry",
		"  oci: {reference: oci://ghcr.io/acme/desired-state@" + digest + ", tag: production}\n":     "not a repository in a registry",
		"  oci: {reference: oci://ghcr.io, tag: production}\n":                                       "not a repository in a registry",
		"  oci: {reference: oci://user:password@ghcr.io/acme/x, tag: production}\n":                  "not a repository in a registry",
		"  oci: {reference: oci://ghcr.io/acme/desired-state}\n":                                     "either tag or semver",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: production, semver: 1.x}\n":                   "either tag or semver",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: production}\n  branch: main\n":                "branch is for Git repositories",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: production}\n  anchor: " + digest[7:] + "\n":  "anchor is for Git repositories",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: production}\n  auth: {tokenFile: t}\n":        "auth is for Git repositories",
		"  oci: {reference: oci://ghcr.io/acme/x, tag: production}\n" + gitRepository:                "commits is for Git repositories",
		"": "not a repository URL",
	} {
		l, err := load(t, strings.Replace(operator, gitRepository, text, 1))
		switch {
		case problem == "" && err != nil:
			t.Errorf("%s%v", text, err)
		case problem == "" && (l.Repositories[0].OCI.Repository() == "" || l.Repositories[0].Branch != ""):
			t.Errorf("%s%+v", text, l.Repositories[0])
		case problem != "" && (err == nil || !strings.Contains(err.Error(), problem)):
			t.Errorf("%s%v; want %q", text, err, problem)
		}
	}
	for name, ok := range map[string]bool{
		"oci://ghcr.io/acme/policies@" + digest: true, "oci://ghcr.io/acme/policies": false, "oci://ghcr.io/acme/policies:1": false,
		"ghcr.io/acme/policies@" + digest: false, "oci://ghcr.io/acme/policies@sha256:0": false, "oci://ghcr.io/acme/policies:1@" + digest: false,
	} {
		l, err := load(t, strings.Replace(operator, "  library: [kubernetes/pod-security-baseline]", "  oci: "+name, 1))
		if ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if !ok || err != nil {
			continue
		}
		if repository, d := l.Policies[0].Artifact(); repository != "ghcr.io/acme/policies" || d != digest {
			t.Errorf("%s: %s, %s", name, repository, d)
		}
	}
}

// TestCompareOCI is about what makes the source of a desired state looser: all
// but another thing that an artifact must say.
func TestCompareOCI(t *testing.T) {
	t.Parallel()
	with := func(oci string) *Operator {
		t.Helper()
		l, err := load(t, strings.Replace(operator, gitRepository, "  oci: {reference: oci://ghcr.io/acme/x, "+oci+"}\n", 1))
		if err != nil {
			t.Fatal(err)
		}
		l.StateDir, l.Listen.Socket, l.Environments[0].Kubernetes.Kubeconfig = "", "", "" // each file has a folder of its own
		l.Environments[0].Terraform = nil
		return &l.Operator
	}
	plain, bound := with("tag: production"), with("tag: production, annotations: {channel: prod}")
	if c := Compare(plain, bound); len(c.Looser) > 0 || len(c.Tighter) != 1 {
		t.Errorf("an annotation more: %+v", c)
	}
	for what, pair := range map[string][2]*Operator{
		"an annotation less": {bound, plain},
		"another annotation": {bound, with("tag: production, annotations: {channel: staging}")},
		"another tag":        {plain, with("tag: latest")},
		"a range":            {plain, with("semver: \">=1.0.0\"")},
	} {
		if c := Compare(pair[0], pair[1]); len(c.Looser) == 0 {
			t.Errorf("%s: %+v", what, c)
		}
	}
}
