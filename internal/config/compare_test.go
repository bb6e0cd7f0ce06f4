package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// wide is a file with a value in every section that Compare knows.
const wide = `apiVersion: holdfast.dev/v1alpha1
kind: Holdfast
stateDir: /state
listen: {http: "127.0.0.1:8321", hooks: "0.0.0.0:8322"}
repositories:
- name: fleet
  url: /srv/fleet.git
  anchor: "0000000000000000000000000000000000000001"
  webhook: {provider: gitea, secretFile: hook}
  maxAge: 2h
  limits: {files: 1000}
  commits:
    signers:
    - {name: alice, allowedSignersFile: alice.keys, notAfter: 2027-06-30}
    - {name: bob, openpgpKeyFile: bob.asc, notBefore: 2026-01-01}
    rules:
    - {paths: ["**"], signers: [alice]}
    - {paths: ["apps/**", "docs/**"], signers: [alice, bob]}
environments:
- name: production
  policies: [baseline, ours]
  variables: {DOMAIN: shop.example.com}
  evidenceGrace: 5m
  kubernetes:
    kubeconfig: kube.yaml
    injectors:
    - {manager: istio, kinds: [Deployment.apps], paths: [/spec/template/spec/containers/*], images: ["ghcr.io/istio/*"], reason: mesh}
  terraform: {binary: tofu, mirror: mirror, timeout: 20m, credentials: {aws: {AWS_SECRET: secret}, dns: {DNS_TOKEN: dns}}}
- name: staging
  policies: [baseline]
  kubernetes: {lease: {off: true}}
- name: lab
  policies: [baseline]
  kubernetes: {}
policies:
- {name: baseline, library: [kubernetes/pod-security-baseline, kubernetes/images], targets: [kubernetes]}
- {name: ours, path: policies, namespaces: [main], data: {params: {limit: 5}}}
allow:
- repository: fleet
  paths: ["apps/**"]
  environments: [production, staging]
  targets: [kubernetes]
  namespaces: [shop, "team-*"]
  kinds: [ConfigMap, Deployment.apps]
  drift: [report, revert]
  ignore: {paths: [/spec/replicas], days: 30}
  prune: [delete]
  adoptFrom: [helm]
  conflicts: [take, yield]
  replace: [Job.batch]
- repository: fleet
  paths: ["infra/*"]
  environments: [production]
  targets: [terraform]
  credentials: [aws]
trust:
  roots: [{name: sigstore, trustedRoot: root.json}]
  signers:
  - {name: release, key: {file: release.pub}, root: sigstore}
  - {name: old, key: {pem: PEM}, root: sigstore, notAfter: 2027-01-01}
  - {name: ci, identity: {issuer: "https://issuer", subject: {exact: "https://ci"}}, root: sigstore}
  - {name: rest, key: {file: rest.pub}, unlogged: true}
  rules:
  - name: acme
    repositories: ["ghcr.io/acme/**"]
    environments: [production]
    require:
    - signature: {signers: [release, old]}
    - sbom: {signers: [ci], formats: [spdx]}
  - name: rest
    repositories: ["ghcr.io/**"]
    require:
    - signature: {signers: [rest]}
registries:
- {host: ghcr.io, username: u, passwordFile: p, realms: [auth.ghcr.io]}
- {host: "localhost:5000", insecureHTTP: true}
limits: {maxDeletes: 10, maxDeleteShare: 20}
kinds:
- {kind: Cluster.postgresql.cnpg.io, images: [/spec/imageName]}
orders: {signers: [{name: alice, allowedSignersFile: orders.keys}], maxAge: 30m}
signed: {counter: 3, signers: [{name: alice, allowedSignersFile: orders.keys}, {name: carol, allowedSignersFile: carol.keys}]}
notify:
  receivers: [{name: chat, type: slack, urlFile: chat-url}]
  routes: [{receivers: [chat], environments: [production]}]
telemetry: {otlp: "https://collector:4318", headers: {Authorization: otlp-token}}
`

func parsed(t *testing.T, text string) *Operator {
	t.Helper()
	o, err := parse("holdfast.yaml", []byte(text), "/etc/holdfast")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestCompareWithItself(t *testing.T) {
	t.Parallel()
	for _, text := range []string{operator, wide} {
		if c := Compare(parsed(t, text), parsed(t, text)); !reflect.DeepEqual(c, Comparison{}) {
			t.Errorf("a file differs from itself: %+v", c)
		}
	}
}

// Each case changes the file in one place; the reverse change is checked too.
func TestCompare(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		from, to       string
		verdict, back  Verdict // of the change, and of its reverse
		line, backLine string
	}{
		"the state folder":               {"stateDir: /state", "stateDir: /tmp/state", Looser, Looser, "stateDir: was /state, is /tmp/state", ""},
		"an address":                     {"127.0.0.1:8321", "127.0.0.1:9999", Looser, Looser, "listen.http: was 127.0.0.1:8321, is 127.0.0.1:9999", ""},
		"workers":                        {"kind: Holdfast", "kind: Holdfast\nworkers: 2", Neutral, Neutral, "workers: was 8, is 2", ""},
		"another repository URL":         {"/srv/fleet.git", "/srv/evil.git", Looser, Looser, "repositories[fleet].url", ""},
		"another branch":                 {"  maxAge: 2h", "  maxAge: 2h\n  branch: next", Looser, Looser, "repositories[fleet].branch: was main, is next", ""},
		"a later anchor":                 {"0001\"", "0002\"", Looser, Looser, "repositories[fleet].anchor", ""},
		"no anchor":                      {"  anchor: \"0000000000000000000000000000000000000001\"\n", "", Tighter, Looser, "repositories[fleet].anchor: was removed", "repositories[fleet].anchor: was added"},
		"a longer maxAge":                {"maxAge: 2h", "maxAge: 3h", Looser, Tighter, "repositories[fleet].maxAge: was 2h0m0s, is 3h0m0s", ""},
		"the interval":                   {"  maxAge: 2h", "  maxAge: 2h\n  interval: 5m", Looser, Tighter, "repositories[fleet].interval", ""},
		"no webhook":                     {"  webhook: {provider: gitea, secretFile: hook}\n", "", Tighter, Looser, "repositories[fleet].webhook: was removed", ""},
		"another webhook secret":         {"secretFile: hook", "secretFile: hook2", Looser, Looser, "webhook.secretFile", ""},
		"more files":                     {"files: 1000", "files: 2000", Looser, Tighter, "repositories[fleet].limits.files: was 1000, is 2000", ""},
		"a signer more":                  {"    - {name: bob,", "    - {name: mallory, allowedSignersFile: m.keys}\n    - {name: bob,", Looser, Tighter, "repositories[fleet].commits.signers[mallory]: was added", ""},
		"another key file":               {"alice.keys", "mallory.keys", Looser, Looser, "commits.signers[alice].allowedSignersFile", ""},
		"a signer longer":                {"2027-06-30", "2028-06-30", Looser, Tighter, "commits.signers[alice].notAfter", ""},
		"a signer for ever":              {", notAfter: 2027-06-30", "", Looser, Tighter, "commits.signers[alice].notAfter: was removed", ""},
		"a signer from sooner":           {"2026-01-01", "2025-01-01", Looser, Tighter, "commits.signers[bob].notBefore", ""},
		"a signer from ever":             {", notBefore: 2026-01-01", "", Looser, Tighter, "commits.signers[bob].notBefore: was removed", ""},
		"a path more for a signer":       {`["apps/**", "docs/**"]`, `["apps/**", "docs/**", "infra/**"]`, Looser, Tighter, "repositories[fleet].commits.rules[1].paths: infra/** was added", ""},
		"a signer more for a path":       {`{paths: ["**"], signers: [alice]}`, `{paths: ["**"], signers: [alice, bob]}`, Looser, Tighter, "repositories[fleet].commits.rules[0].signers: bob was added", ""},
		"a rule less":                    {"    - {paths: [\"**\"], signers: [alice]}\n", "", Tighter, Looser, "commits.rules[0]: was removed", "commits.rules[0]: was added"},
		"an environment less":            {"- name: lab\n  policies: [baseline]\n  kubernetes: {}\n", "", Looser, Looser, "environments[lab]: was removed", "environments[lab]: was added"},
		"a policy set less":              {"policies: [baseline, ours]", "policies: [baseline]", Looser, Looser, "environments[production].policies: ours was removed", "ours was added"},
		"another variable":               {"shop.example.com", "evil.example.com", Looser, Looser, "environments[production].variables: was changed", ""},
		"more grace":                     {"evidenceGrace: 5m", "evidenceGrace: 15m", Neutral, Neutral, "environments[production].evidenceGrace", ""},
		"another cluster":                {"kubeconfig: kube.yaml", "kubeconfig: other.yaml", Looser, Looser, "environments[production].kubernetes.kubeconfig", ""},
		"an injector less":               {"    injectors:\n    - {manager: istio, kinds: [Deployment.apps], paths: [/spec/template/spec/containers/*], images: [\"ghcr.io/istio/*\"], reason: mesh}\n", "", Tighter, Looser, "kubernetes.injectors[istio]: was removed", ""},
		"an injector with more paths":    {"[/spec/template/spec/containers/*]", "[/spec/template/spec/containers/*, /spec/template/spec/volumes]", Looser, Tighter, "injectors[istio].paths: /spec/template/spec/volumes was added", ""},
		"an injector with more images":   {`["ghcr.io/istio/*"]`, `["ghcr.io/istio/*", "**"]`, Looser, Tighter, "injectors[istio].images: ** was added", ""},
		"another reason of an injector":  {"reason: mesh", "reason: the mesh", Neutral, Neutral, "injectors[istio].reason", ""},
		"a lease":                        {"{lease: {off: true}}", "{}", Tighter, Looser, "environments[staging].kubernetes.lease.off: was removed", ""},
		"another tool":                   {"binary: tofu", "binary: /tmp/tofu", Looser, Looser, "terraform.binary", ""},
		"another mirror":                 {"mirror: mirror", "mirror: /tmp/mirror", Looser, Looser, "terraform.mirror", ""},
		"another timeout":                {"timeout: 20m", "timeout: 40m", Neutral, Neutral, "terraform.timeout", ""},
		"credentials less":               {", dns: {DNS_TOKEN: dns}", "", Tighter, Looser, "terraform.credentials.dns: was removed", ""},
		"another file of credentials":    {"AWS_SECRET: secret", "AWS_SECRET: other", Looser, Looser, "terraform.credentials.aws.AWS_SECRET", ""},
		"a variable more in credentials": {"AWS_SECRET: secret", "AWS_SECRET: secret, LD_PRELOAD: x", Looser, Looser, "terraform.credentials.aws.LD_PRELOAD", ""},
		"a library policy more":          {"kubernetes/images]", "kubernetes/images, kubernetes/rbac]", Tighter, Looser, "policies[baseline].library: kubernetes/rbac was added", "kubernetes/rbac was removed"},
		"a policy set for both targets":  {", targets: [kubernetes]}", "}", Looser, Looser, "policies[baseline].targets", ""},
		"another policy folder":          {"path: policies", "path: lax", Looser, Looser, "policies[ours].path", ""},
		"all namespaces of policies":     {", namespaces: [main]", "", Looser, Looser, "policies[ours].namespaces", ""},
		"other policy data":              {"limit: 5", "limit: 50", Looser, Looser, "policies[ours].data: was changed", ""},
		"a policy set that nobody names": {"allow:\n", "- {name: spare, library: [kubernetes/rbac]}\nallow:\n", Neutral, Neutral, "policies[spare]: was added", ""},
		"more paths":                     {`paths: ["apps/**"]`, `paths: ["apps/**", "more/**"]`, Looser, Tighter, "allow[0].paths: more/** was added", ""},
		"another environment":            {"environments: [production]\n  targets: [terraform]", "environments: [production, staging]\n  targets: [terraform]", Looser, Tighter, "allow[1].environments: staging was added", ""},
		"another target":                 {"targets: [kubernetes]\n  namespaces", "targets: [kubernetes, terraform]\n  namespaces", Looser, Tighter, "allow[0].targets: terraform was added", ""},
		"more namespaces":                {`"team-*"]`, `"team-*", "shop-*"]`, Looser, Tighter, "allow[0].namespaces: shop-* was added", "allow[0].namespaces: shop-* was removed"},
		"more kinds":                     {"[ConfigMap, Deployment.apps]", "[ConfigMap, Deployment.apps, Secret]", Looser, Tighter, "allow[0].kinds: Secret was added", ""},
		"all kinds":                      {"  kinds: [ConfigMap, Deployment.apps]\n", "", Looser, Tighter, `allow[0].kinds: was ["ConfigMap","Deployment.apps"], is everything`, ""},
		"more credentials":               {"credentials: [aws]", "credentials: [aws, dns]", Looser, Tighter, "allow[1].credentials: dns was added", ""},
		"no more revert":                 {"[report, revert]", "[report]", Tighter, Looser, "allow[0].drift: revert was removed", ""},
		"another default of drift":       {"[report, revert]", "[revert, report]", Looser, Looser, "allow[0].drift", ""},
		"more to ignore":                 {"[/spec/replicas]", "[/spec/replicas, /spec/template]", Looser, Tighter, "allow[0].ignore.paths: /spec/template was added", ""},
		"to ignore for longer":           {"days: 30", "days: 300", Looser, Tighter, "allow[0].ignore.days: was 30, is 300", ""},
		"to ignore for the default":      {", days: 30", "", Looser, Tighter, "allow[0].ignore.days: was 30, is 90", ""},
		"no pruning":                     {"  prune: [delete]\n", "", Tighter, Looser, "allow[0].prune: delete was removed", ""},
		"no yielding":                    {"  conflicts: [take, yield]\n", "  conflicts: [take]\n", Tighter, Looser, "allow[0].conflicts: yield was removed", ""},
		"no replacing":                   {"  replace: [Job.batch]\n", "", Tighter, Looser, "allow[0].replace: Job.batch was removed", ""},
		"no adoption":                    {"  adoptFrom: [helm]\n", "", Tighter, Looser, "allow[0].adoptFrom: helm was removed", ""},
		"an entry less":                  {"- repository: fleet\n  paths: [\"infra/*\"]\n  environments: [production]\n  targets: [terraform]\n  credentials: [aws]\n", "", Tighter, Looser, "allow[1]: was removed", "allow[1]: was added"},
		"a trust rule less":              {"  - name: rest\n    repositories: [\"ghcr.io/**\"]\n    require:\n    - signature: {signers: [rest]}\n", "", Looser, Looser, "trust.rules[rest]: was removed", "trust.rules[rest]: was added"},
		"a trust rule for all":           {"    environments: [production]\n    require", "    require", Looser, Looser, "trust.rules[acme].environments", ""},
		"a trust rule for less":          {`["ghcr.io/acme/**"]`, `["ghcr.io/acme/web"]`, Looser, Looser, "trust.rules[acme].repositories", ""},
		"a signer less":                  {"[release, old]", "[release]", Tighter, Looser, "trust.rules[acme].require[signature].signature.signers: old was removed", "signers: old was added"},
		"another key":                    {"pem: PEM", "pem: OTHER", Looser, Looser, "trust.signers[old].key.pem: was changed", ""},
		"another file of a key":          {"file: release.pub", "file: evil.pub", Looser, Looser, "trust.signers[release].key.file", ""},
		"another identity":               {`exact: "https://ci"`, `exact: "https://evil"`, Looser, Looser, "trust.signers[ci].identity.subject.exact", ""},
		"any build of an identity":       {`{exact: "https://ci"}`, `{exact: "https://ci"}, build: {profile: buildkite}`, Tighter, Looser, "trust.signers[ci].identity.build: was added", "trust.signers[ci].identity.build: was removed"},
		"a signer for longer":            {"notAfter: 2027-01-01", "notAfter: 2028-01-01", Looser, Tighter, "trust.signers[old].notAfter", ""},
		"a signer whom no rule names":    {"  rules:\n  - name: acme", "  - {name: new, key: {file: new.pub}, unlogged: true}\n  rules:\n  - name: acme", Neutral, Neutral, "trust.signers[new]: was added", "trust.signers[new]: was removed"},
		"another trusted root":           {"trustedRoot: root.json", "trustedRoot: evil.json", Looser, Looser, "trust.roots[sigstore].trustedRoot", ""},
		"a transparency log":             {"file: rest.pub}, unlogged: true", "file: rest.pub}, root: sigstore", Looser, Looser, "trust.signers[rest].root: was added", ""},
		"two transparency logs":          {"trustedRoot: root.json", "trustedRoot: root.json, log: 2", Tighter, Looser, "trust.roots[sigstore].log: was 1, is 2", ""},
		"a timestamp too":                {"trustedRoot: root.json", "trustedRoot: root.json, timestamps: 1", Tighter, Looser, "trust.roots[sigstore].timestamps: was added", ""},
		"two signers":                    {"[release, old]", "[release, old], threshold: 2", Tighter, Looser, "signature.threshold: was added", ""},
		"no SBOM":                        {"    - sbom: {signers: [ci], formats: [spdx]}\n", "", Looser, Tighter, "trust.rules[acme].require[sbom]: was removed", ""},
		"any SBOM":                       {", formats: [spdx]", "", Looser, Tighter, "trust.rules[acme].require[sbom].sbom.formats: was [\"spdx\"], is everything", ""},
		"another SBOM":                   {"formats: [spdx]", "formats: [spdx, cyclonedx]", Looser, Tighter, "sbom.formats: cyclonedx was added", ""},
		"a rule that warns":              {"    environments: [production]\n", "    environments: [production]\n    mode: warn\n    until: 2027-01-01\n", Looser, Looser, "trust.rules[acme].mode", ""},
		"another order of trust":         {"  - name: acme\n", "  - name: zero\n    repositories: [x.io/y]\n    require: [{signature: {signers: [rest]}}]\n  - name: acme\n", Looser, Looser, "trust.rules[zero]: was added", ""},
		"plain HTTP":                     {"username: u,", "username: u, insecureHTTP: true,", Looser, Tighter, "registries[ghcr.io].insecureHTTP", ""},
		"a realm more":                   {"[auth.ghcr.io]", "[auth.ghcr.io, evil.io]", Looser, Tighter, "registries[ghcr.io].realms: evil.io was added", ""},
		"another password":               {"passwordFile: p", "passwordFile: ledger.key", Looser, Looser, "registries[ghcr.io].passwordFile", ""},
		"a registry more":                {"limits: {max", "- {host: evil.io, username: u, passwordFile: p}\nlimits: {max", Looser, Looser, "registries[evil.io]: was added", ""},
		"more deletes":                   {"maxDeletes: 10", "maxDeletes: 11", Looser, Tighter, "limits.maxDeletes: was 10, is 11", ""},
		"no limit of deletes":            {"maxDeletes: 10", "maxDeletes: -1", Looser, Tighter, "limits.maxDeletes: was 10, is -1", ""},
		"a larger share":                 {"maxDeleteShare: 20", "maxDeleteShare: 100", Looser, Tighter, "limits.maxDeleteShare", ""},
		"the default share":              {", maxDeleteShare: 20", "", Looser, Tighter, "limits.maxDeleteShare: was 20, is 50", ""},
		"a kind without images":          {"images: [/spec/imageName]", "none: true", Looser, Looser, "kinds[Cluster.postgresql.cnpg.io]", ""},
		"older orders":                   {"maxAge: 30m", "maxAge: 48h", Looser, Tighter, "orders.maxAge", ""},
		"nobody orders":                  {"orders: {signers: [{name: alice, allowedSignersFile: orders.keys}], maxAge: 30m}", "orders: {maxAge: 30m}", Tighter, Looser, "orders.signers[alice]: was removed", "orders.signers[alice]: was added"},
		"unsigned":                       {"signed: {counter: 3, signers: [{name: alice, allowedSignersFile: orders.keys}, {name: carol, allowedSignersFile: carol.keys}]}\n", "", Looser, Tighter, "signed: was removed", "signed: was added"},
		"a signer of this file less":     {", {name: carol, allowedSignersFile: carol.keys}", "", Tighter, Looser, "signed.signers[carol]: was removed", "signed.signers[carol]: was added"},
		"the counter":                    {"counter: 3", "counter: 4", Neutral, Neutral, "signed.counter", ""},
		"a secret for somebody to see":   {"headers: {", "headers: {x: ledger.key, ", Looser, Tighter, "telemetry.headers.x: was added", ""},
		"traces for somebody else":       {"https://collector:4318", "https://evil:4318", Looser, Looser, "telemetry.otlp", ""},
		"less to hear of":                {"routes: [{receivers: [chat], environments: [production]}]", "routes: []", Looser, Looser, "notify.routes: was changed", ""},
		"another URL to tell":            {"urlFile: chat-url", "urlFile: evil-url", Looser, Looser, "notify.receivers[chat].urlFile", ""},
		"a schedule":                     {"limits: {max", "drift: {kubernetesSchedule: \"@daily\"}\nlimits: {max", Looser, Looser, "drift.kubernetesSchedule", ""},
	} {
		if tc.verdict == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Count(wide, tc.from) == 0 {
				t.Fatalf("the file does not contain %q", tc.from)
			}
			before, after := parsed(t, wide), parsed(t, strings.Replace(wide, tc.from, tc.to, 1))
			for _, way := range []struct {
				b, a *Operator
				want Verdict
				line string
			}{{before, after, tc.verdict, tc.line}, {after, before, tc.back, tc.backLine}} {
				c := Compare(way.b, way.a)
				got := Neutral
				lines := c.Neutral
				switch {
				case len(c.Looser) > 0:
					got, lines = Looser, c.Looser
				case len(c.Tighter) > 0:
					got, lines = Tighter, c.Tighter
				}
				if got != way.want || !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, way.line) }) {
					t.Errorf("%+v is %s, want %s with %q", c, got, way.want, way.line)
				}
			}
		})
	}
}

// The last tie between trust rules is which comes first.
func TestCompareTrustOrder(t *testing.T) {
	t.Parallel()
	before, after := parsed(t, wide), parsed(t, wide)
	slices.Reverse(after.Trust.Rules)
	if c := Compare(before, after); len(c.Looser) != 1 || c.Looser[0] != "trust.rules: the order was changed" {
		t.Errorf("%+v", c)
	}
}

// Elsewhere the order says nothing.
func TestCompareOrder(t *testing.T) {
	t.Parallel()
	before, after := parsed(t, wide), parsed(t, wide)
	slices.Reverse(after.Environments)
	if c := Compare(before, after); !reflect.DeepEqual(c, Comparison{}) {
		t.Errorf("%+v", c)
	}
}

// A value that is no number has not grown, nor shrunk.
func TestCompareBetween(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		e             effect
		before, after any
		want          direction
	}{
		{bound, 2.0, 1.0, tighter}, {bound, 1.0, 2.0, looser}, {bound, -1.0, 2.0, tighter}, {bound, "1h", "1m", tighter},
		{bound, 1.0, "x", looser}, {bound, "y", "x", looser}, {begin, "x", 1.0, looser}, {begin, 1.0, 2.0, tighter},
	} {
		if got := tc.e.between(tc.before, tc.after); got != tc.want {
			t.Errorf("%v to %v: %v, want %v", tc.before, tc.after, got, tc.want)
		}
	}
}

func TestOverlaps(t *testing.T) {
	t.Parallel()
	entry := func(repository, path, environment, target string) Allow {
		return Allow{Repository: repository, Paths: []string{"docs/x", path}, Environments: []string{environment}, Targets: []string{target}}
	}
	a := entry("fleet", "apps/*", "production", "kubernetes")
	a.Paths = a.Paths[1:]
	for _, tc := range []struct {
		b    Allow
		want bool
	}{
		{entry("fleet", "apps/*", "production", "kubernetes"), true},
		{entry("fleet", "**", "production", "kubernetes"), true},
		{entry("fleet", "apps/web/**", "production", "kubernetes"), true},
		{entry("fleet", "infra/*", "production", "kubernetes"), false},
		{entry("other", "apps/*", "production", "kubernetes"), false},
		{entry("fleet", "apps/*", "staging", "kubernetes"), false},
		{entry("fleet", "apps/*", "production", "terraform"), false},
	} {
		if a.overlaps(tc.b) != tc.want || tc.b.overlaps(a) != tc.want {
			t.Errorf("%+v: want %t", tc.b, tc.want)
		}
	}
}

// What one entry does not grant any more, a later one may, more widely.
func TestCompareShadowedEntry(t *testing.T) {
	t.Parallel()
	before := parsed(t, wide)
	before.Allow = append(before.Allow, Allow{
		Repository: "fleet", Paths: []string{"**"}, Environments: []string{"production"}, Targets: []string{"kubernetes"},
		Namespaces: []string{"*"}, Drift: []string{"report"},
	})
	for name, change := range map[string]func(*Operator){
		"a namespace less": func(o *Operator) { o.Allow[0].Namespaces = []string{"shop"} },
		"removed":          func(o *Operator) { o.Allow = o.Allow[1:] },
	} {
		after := parsed(t, wide)
		after.Allow = slices.Clone(before.Allow)
		change(after)
		c := Compare(before, after)
		if len(c.Looser) != 1 || !strings.Contains(c.Looser[0], "a later entry may apply instead") {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// Every field that is not in the table is looser, those of tomorrow too.
func TestCompareUnknownFieldIsLooser(t *testing.T) {
	t.Parallel()
	var c Comparison
	c.object(place{}, map[string]any{"limits": map[string]any{}}, map[string]any{"limits": map[string]any{"tomorrow": true}, "new": 1.0})
	if len(c.Looser) != 2 {
		t.Errorf("%+v", c)
	}
}

// Every field that the table names exists.
func TestCompareTable(t *testing.T) {
	t.Parallel()
	b, err := Reference("operator")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for pattern := range effects {
		field := strings.TrimSuffix(strings.TrimSuffix(pattern, ".*"), "[]")
		field = strings.ReplaceAll(regexp.QuoteMeta("| `"+field+"` |"), `\*`, "[a-zA-Z]+")
		if !regexp.MustCompile(field).MatchString(text) {
			t.Errorf("there is no field %s", pattern)
		}
	}
}

// Whatever is done to the operator's map: if a stack is granted something that
// it was not granted before, that is looser.
func TestCompareSeesWhatPermitGrants(t *testing.T) {
	t.Parallel()
	const rounds = 5000
	r := rand.New(rand.NewPCG(1, 2))
	base := parsed(t, wide)
	base.Environments[1].Terraform = base.Environments[0].Terraform
	looser, tighter := 0, 0
	for range rounds {
		before, after := *base, *base
		before.Allow = randomMap(r)
		after.Allow = cloneMap(t, before.Allow)
		for range 1 + r.IntN(2) {
			mutate(r, &after.Allow)
		}
		c := Compare(&before, &after)
		if len(c.Looser) > 0 {
			looser++
			continue
		}
		if len(c.Tighter) > 0 {
			tighter++
		}
		for range 40 {
			dir, s := randomRequest(r)
			was, denied := before.Permit("fleet", dir, s, epoch)
			is, err := after.Permit("fleet", dir, s, epoch)
			if err == nil && (denied != nil || wider(was, is)) {
				b, _ := json.Marshal([]any{before.Allow, after.Allow, dir, s, c})
				t.Fatalf("granted more, and called %+v: %s", c, b)
			}
		}
	}
	if looser < rounds/20 || tighter < rounds/20 {
		t.Errorf("of %d mutations %d were looser and %d tighter: this shows little", rounds, looser, tighter)
	}
}

var epoch = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

// wider reports whether a permission grants what another does not.
func wider(was, is Permission) bool {
	beyond := func(was, is []string) bool {
		return slices.ContainsFunc(is, func(s string) bool { return !slices.Contains(was, s) })
	}
	return beyond(was.Namespaces, is.Namespaces) || was.DriftMode != is.DriftMode || was.Conflicts != is.Conflicts || was.ServiceAccount != is.ServiceAccount ||
		len(was.Kinds) > 0 && (len(is.Kinds) == 0 || beyond(was.Kinds, is.Kinds))
}

var vocabulary = map[string][]string{
	"paths": {"apps/*", "apps/**", "infra/*", "**"}, "environments": {"production", "staging"}, "targets": {"kubernetes", "terraform"},
	"namespaces": {"shop", "team-*", "*"}, "kinds": {"ConfigMap", "Deployment.apps"}, "drift": {"report", "revert"},
	"ignore": {"/spec/replicas", "/spec"}, "credentials": {"aws", "dns"}, "prune": {"delete", "orphan"}, "adoptFrom": {"helm", "flux"},
	"conflicts": {"take", "yield", "fail"}, "replace": {"Job.batch", "*.apps"}, "serviceAccounts": {"{namespace}/deployer", "shop/admin"},
}

// some returns some of the words, at least as many as it must.
func some(r *rand.Rand, of string, least int) []string {
	words := slices.Clone(vocabulary[of])
	r.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
	return words[:least+r.IntN(len(words)+1-least)]
}

func randomEntry(r *rand.Rand) Allow {
	return Allow{
		Repository: "fleet", Paths: some(r, "paths", 1), Environments: some(r, "environments", 1), Targets: some(r, "targets", 1),
		Namespaces: some(r, "namespaces", 1), Kinds: some(r, "kinds", 0), Drift: some(r, "drift", 1), Credentials: some(r, "credentials", 0),
		Ignore: IgnoreBound{Paths: some(r, "ignore", 0), Days: 30 * (1 + r.IntN(3))}, Prune: some(r, "prune", 0), AdoptFrom: some(r, "adoptFrom", 0),
		Conflicts: some(r, "conflicts", 1), Replace: some(r, "replace", 0), ServiceAccounts: some(r, "serviceAccounts", 0),
	}
}

func randomMap(r *rand.Rand) []Allow {
	var out []Allow
	for range 1 + r.IntN(3) {
		out = append(out, randomEntry(r))
	}
	return out
}

func cloneMap(t *testing.T, list []Allow) []Allow {
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var out []Allow
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func mutate(r *rand.Rand, list *[]Allow) {
	if len(*list) == 0 {
		*list = randomMap(r)
		return
	}
	i := r.IntN(len(*list))
	a := &(*list)[i]
	lists := map[string]*[]string{
		"paths": &a.Paths, "environments": &a.Environments, "targets": &a.Targets, "namespaces": &a.Namespaces, "kinds": &a.Kinds,
		"drift": &a.Drift, "ignore": &a.Ignore.Paths, "credentials": &a.Credentials, "prune": &a.Prune, "adoptFrom": &a.AdoptFrom, "conflicts": &a.Conflicts, "replace": &a.Replace, "serviceAccounts": &a.ServiceAccounts,
	}
	switch r.IntN(8) {
	case 0:
		*list = slices.Delete(*list, i, i+1)
	case 1:
		*list = slices.Insert(*list, i, randomEntry(r))
	case 2:
		j := r.IntN(len(*list))
		(*list)[i], (*list)[j] = (*list)[j], (*list)[i]
	case 3:
		a.Ignore.Days = 30 * (1 + r.IntN(3))
	default:
		names := slices.Sorted(maps.Keys(lists))
		name := names[r.IntN(len(names))]
		field := lists[name]
		switch {
		case len(*field) > 1 || name == "kinds" && len(*field) == 1:
			*field = slices.Delete(slices.Clone(*field), 0, 1)
		default:
			*field = some(r, name, 1)
		}
	}
}

func randomRequest(r *rand.Rand) (string, *Stack) {
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	s := &Stack{Metadata: Metadata{Name: "s"}, Spec: StackSpec{Environment: pick("production", "staging"), Prune: pick("", "hold", "delete", "orphan")}}
	if r.IntN(2) == 0 {
		s.Spec.Kubernetes = &StackKubernetes{Namespace: pick("shop", "team-a", "other")}
		if r.IntN(4) == 0 {
			s.Spec.Kubernetes.AdoptFrom = []string{pick("helm", "flux")}
		}
		if r.IntN(4) == 0 {
			s.Spec.Kubernetes.Replace = []string{pick("Job.batch", "Deployment.apps")}
		}
		s.Spec.Kubernetes.ServiceAccount = pick("", "", "shop/deployer", "shop/admin")
		s.Spec.Kubernetes.Conflicts = pick("", "", "take", "yield", "fail")
	} else {
		s.Spec.Terraform = &StackTerraform{Credentials: pick("", "aws", "dns")}
	}
	s.Spec.Drift.Mode = pick("", "report", "revert")
	if r.IntN(4) == 0 {
		s.Spec.Drift.Ignore = []Ignore{{Kind: "Deployment", Path: pick("/spec/replicas", "/spec/template"), Until: Date{epoch.AddDate(0, 0, r.IntN(100))}, Reason: "r"}}
	}
	return pick("apps/web", "apps/web/x", "infra/dns", "other", "."), s
}

func TestCompareFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := strings.NewReplacer("alice.keys", filepath.Join(dir, "alice.keys"), "path: policies", "path: "+filepath.Join(dir, "policies")).Replace(wide)
	write := func(name, content string) { writeFile(t, filepath.Join(dir, name), content) }
	write("holdfast.yaml", text)
	write("alice.keys", "1")
	write("policies/a.rego", "1")
	before, err := Load(filepath.Join(dir, "holdfast.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	last := before.Record("", epoch)
	for i, tc := range []struct{ name, content, want string }{
		{"alice.keys", "2", "alice.keys: has other content"},
		{"policies/b.rego", "1", "policies/b.rego: was added"},
		{"policies/a.rego", "2", "policies/a.rego: has other content"},
	} {
		write(tc.name, tc.content)
		after, err := Load(filepath.Join(dir, "holdfast.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		a := after.compare(last)
		if a.Verdict != Looser || len(a.Looser) != i+1 || !strings.Contains(fmt.Sprint(a.Looser), tc.want) {
			t.Errorf("%s: %+v", tc.name, a)
		}
	}
}

// A file that only one version names is judged by the field that names it, but
// in a folder of policies, where no field does.
func TestCompareNamedFiles(t *testing.T) {
	t.Parallel()
	const absent = "absent" // the version does not name the file
	for _, tc := range []struct {
		name, was, is string
		want          string // of the line; empty: no difference
	}{
		{"/etc/alice.keys", "sha256:1", "sha256:1", ""},
		{"/etc/alice.keys", "", "", ""},
		{"/etc/alice.keys", "sha256:1", "sha256:2", "has other content, sha256:2"},
		{"/etc/alice.keys", "sha256:1", "", "is not there any more"},
		{"/etc/alice.keys", "", "sha256:1", "has other content, sha256:1"},
		{"/etc/alice.keys", "sha256:1", absent, ""},
		{"/etc/alice.keys", absent, "sha256:1", ""},
		{"/etc/policies/a.rego", "sha256:1", absent, "was removed"},
		{"/etc/policies/a.rego", absent, "sha256:1", "was added"},
		{"/etc/policies/a.rego", absent, "", "was added"},
		{"/etc/policies.rego", absent, "sha256:1", ""},
	} {
		named := func(d string) map[string]digest.Digest {
			if d == absent {
				return nil
			}
			return map[string]digest.Digest{tc.name: digest.Digest(d)}
		}
		var c, want Comparison
		c.files(named(tc.was), named(tc.is), []string{"/etc/policies"})
		if tc.want != "" {
			want.Looser = []string{"file " + tc.name + ": " + tc.want}
		}
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s, %q to %q: %+v, want %+v", tc.name, tc.was, tc.is, c, want)
		}
	}
}

func TestKeyed(t *testing.T) {
	t.Parallel()
	named := func(names ...string) (out []any) {
		for _, n := range names {
			out = append(out, map[string]any{"name": n})
		}
		return out
	}
	if got, ok := keyed(named("a", "b"), "name"); !ok || len(got) != 2 {
		t.Errorf("%v, %t", got, ok)
	}
	for name, list := range map[string][]any{"one key twice": named("a", "a"), "no key": named("a", ""), "no objects": {"a"}} {
		if _, ok := keyed(list, "name"); ok {
			t.Errorf("%s: an element would be lost", name)
		}
	}
}

func TestShown(t *testing.T) {
	t.Parallel()
	if got := shown(map[string]any{"secret": "x"}); got != "" {
		t.Errorf("an object is shown: %s", got)
	}
	if got := shown(strings.Repeat("é", maxShown)); len(got) > maxShown+len(" …") || !strings.HasSuffix(got, "é…") {
		t.Errorf("a long text: %s", got)
	}
}

func TestCommonFolders(t *testing.T) {
	t.Parallel()
	o := func(paths ...string) *Operator {
		var o Operator
		for _, p := range paths {
			o.Policies = append(o.Policies, Policy{Path: p})
		}
		return &o
	}
	if got := commonFolders(o("/a", "", "/b"), o("", "/b", "/c")); !slices.Equal(got, []string{"/b"}) {
		t.Errorf("%q", got)
	}
}
