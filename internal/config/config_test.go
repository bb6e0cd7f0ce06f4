package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const operator = `apiVersion: holdfast.dev/v1alpha1
kind: Holdfast
stateDir: state
repositories:
- name: fleet
  url: /srv/fleet.git
  commits:
    signers: [{name: alice, allowedSignersFile: alice.keys}]
    rules: [{paths: ["**"], signers: [alice]}]
environments:
- name: production
  policies: [baseline]
  kubernetes: {kubeconfig: kube.yaml}
  terraform: {binary: tofu, mirror: mirror, credentials: {aws: {AWS_SECRET: secret}}}
- name: staging
  policies: [baseline]
  kubernetes: {}
policies:
- name: baseline
  library: [kubernetes/pod-security-baseline]
allow:
- repository: fleet
  paths: ["apps/**"]
  environments: [production]
  targets: [kubernetes]
  namespaces: [shop, "team-*"]
  drift: [report, revert]
  ignore: {paths: [/spec/replicas], days: 30}
  replace: ["Job.*", "Persistent*"]
  serviceAccounts: ["{namespace}/deployer"]
- repository: fleet
  paths: ["infra/*"]
  environments: [production]
  targets: [terraform]
  credentials: [aws]
`

const stack = `apiVersion: holdfast.dev/v1alpha1
kind: Stack
metadata: {name: web}
spec:
  environment: production
  kubernetes: {namespace: shop}
`

func load(t *testing.T, text string) (*Loaded, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestLoad(t *testing.T) {
	t.Parallel()
	l, err := load(t, operator)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(l.Path)
	if l.StateDir != filepath.Join(dir, "state") || l.Environments[0].Terraform.Credentials["aws"]["AWS_SECRET"] != filepath.Join(dir, "secret") {
		t.Errorf("relative paths are not resolved against the file's folder: %+v", l.Operator)
	}
	if l.Repositories[0].Branch != "main" || time.Duration(l.Repositories[0].Interval) != 30*time.Second {
		t.Errorf("defaults are missing: %+v", l.Repositories[0])
	}
}

// Each case breaks the good file in one place; the error must name that place.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ from, to, want string }{
		"unknown field":          {"stateDir: state", "stateDirs: state", `:3:1: unknown field "stateDirs"`},
		"wrong type":             {"days: 30", "days: soon", ":28:43: want int, got string"},
		"repeated field":         {"kind: Holdfast", "kind: Holdfast\nkind: Holdfast", ":3:1:"},
		"wrong kind":             {"kind: Holdfast", "kind: Stack", ":2:7: kind is"},
		"no signers":             {"signers: [{name: alice, allowedSignersFile: alice.keys}]", "signers: []", "commits.signers is empty"},
		"a signer without a key": {"{name: alice, allowedSignersFile: alice.keys}", "{name: alice}", "has no key"},
		"unknown signer":         {"signers: [alice]", "signers: [mallory]", `:9:39: "mallory" is not a signer`},
		"no policies":            {"  policies: [baseline]\n  kubernetes: {}", "  policies: []\n  kubernetes: {}", "has no policies"},
		"unknown policy set":     {"  policies: [baseline]\n  kubernetes: {}", "  policies: [lax]\n  kubernetes: {}", `"lax" is not a policy set`},
		"unknown environment":    {"environments: [production]\n  targets: [terraform]", "environments: [prod]\n  targets: [terraform]", `"prod" is not an environment`},
		"unknown drift mode":     {"[report, revert]", "[report, rever]", `:27:19: drift mode is "rever"`},
		"plain http":             {"/srv/fleet.git", "http://git.example.com/fleet.git", "loopback only"},
		"password in the URL":    {"/srv/fleet.git", "https://a:b@git.example.com/fleet.git", "the URL holds credentials"},
		"SSH without known hosts": {"/srv/fleet.git", "git@git.example.com:fleet.git",
			"known_hosts"},
		"option as URL": {"/srv/fleet.git", "--upload-pack=x", "not a repository URL"},
		"alias":         {"kubernetes: {}", "kubernetes: &a {}\n- *a", "aliases"},
		"two documents": {"kind: Holdfast", "kind: Holdfast\n---\nkind: Holdfast", "more than one document"},
		"data that is no JSON": {"  library: [kubernetes/pod-security-baseline]", "  library: [kubernetes/pod-security-baseline]\n  data: {limit: .nan}",
			":21:10: data of policy set"},
		"policies of no repository": {"  library: [kubernetes/pod-security-baseline]", "  git: {repository: policies, path: rego}", `there is no repository "policies"`},
		"policies among stacks":     {"  library: [kubernetes/pod-security-baseline]", "  git: {repository: fleet}", "stacks come from repository"},
		"policies outside of it":    {"  library: [kubernetes/pod-security-baseline]", "  git: {repository: fleet, path: ../rego}", "is no path in a repository"},
		"a summary by nobody":       {"\nallow:", "\ntrust: {summaries: {repositories: [\"ghcr.io/**\"]}}\nallow:", "summaries need somebody"},
		"a digest that is none": {"allow:", "signed: {counter: 1, signers: [{name: alice, allowedSignersFile: alice.keys}], files: sha256}\nallow:",
			`:21:87: "sha256" is not a digest`},
		"empty anchor": {"  url: /srv/fleet.git", "  url: /srv/fleet.git\n  anchor: main", "not a commit id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(operator, tc.from) {
				t.Fatalf("the good file does not contain %q", tc.from)
			}
			_, err := load(t, strings.Replace(operator, tc.from, tc.to, 1))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want it to contain %q", err, tc.want)
			}
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("kind is %s", fault.KindOf(err))
			}
			if ps := Problems(err); len(ps) == 0 || ps[0].Line == 0 {
				t.Errorf("the error names no line: %v", err)
			}
		})
	}
}

// What is granted under one key, signer or policy must not stand under another.
func TestDigestCoversWhatTheFileNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Replace(operator, "  library: [kubernetes/pod-security-baseline]", "  path: policies", 1) +
		"trust: {roots: [{name: s, trustedRoot: root.json}], signers: [{name: k, key: {file: key.pem}, root: s}], " +
		"rules: [{name: t, repositories: [\"ghcr.io/**\"], require: [{signature: {signers: [k]}}]}]}\n"
	write("holdfast.yaml", text)
	seen := map[string]string{}
	for _, f := range []string{"", "alice.keys", "key.pem", "root.json", "policies/a.rego", "policies/data.yaml"} {
		for _, content := range []string{"1", "2"} {
			if f != "" {
				write(f, content)
			}
			l, err := Load(filepath.Join(dir, "holdfast.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			at := f + content
			if was, ok := seen[l.Digest.String()]; ok && f != "" {
				t.Errorf("%s has the digest of %s", at, was)
			}
			seen[l.Digest.String()] = at
		}
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	t.Parallel()
	text := strings.NewReplacer("signers: [alice]", "signers: [mallory]", "[report, revert]", "[rever]").Replace(operator)
	_, err := load(t, text)
	if got := len(Problems(err)); got != 2 {
		t.Errorf("%d problems, want 2: %v", got, err)
	}
}

func TestUnknownFieldHint(t *testing.T) {
	t.Parallel()
	_, err := ParseStack("stack.yaml", []byte(strings.Replace(stack, "environment:", "enviroment:", 1)))
	if got := fault.HintOf(err); got != `did you mean "environment"?` {
		t.Errorf("hint is %q (%v)", got, err)
	}
}

func TestPermit(t *testing.T) {
	t.Parallel()
	l, err := load(t, operator)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ignore := func(path, until string) string {
		return "  drift: {ignore: [{kind: Deployment, path: " + path + ", until: " + until + ", reason: HPA}]}\n"
	}
	for name, tc := range map[string]struct{ repo, dir, from, to, denied string }{
		"granted":             {dir: "apps/web"},
		"namespace glob":      {dir: "apps/web", from: "namespace: shop", to: "namespace: team-a"},
		"revert":              {dir: "apps/web", from: "kubernetes:", to: "drift: {mode: revert}\n  kubernetes:"},
		"ignore":              {dir: "apps/web", from: "  kubernetes:", to: ignore("/spec/replicas", "2026-06-20") + "  kubernetes:"},
		"credentials":         {dir: "infra/dns", from: "kubernetes: {namespace: shop}", to: "terraform: {credentials: aws}"},
		"replace":             {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, replace: [Job.batch]}"},
		"replace another":     {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, replace: [Job.batch, Pod]}", denied: `kind "Pod" replaced`},
		"replace data":        {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, replace: [PersistentVolumeClaim]}", denied: `kind "PersistentVolumeClaim" replaced`},
		"service account":     {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, serviceAccount: shop/deployer}"},
		"another account":     {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, serviceAccount: kube-system/admin}", denied: `may not be service account "kube-system/admin"`},
		"account elsewhere":   {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, serviceAccount: team-a/deployer}", denied: `may not be service account "team-a/deployer"`},
		"take in conflicts":   {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, conflicts: take}"},
		"fail in conflicts":   {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, conflicts: fail}", denied: "may not ask for conflicts: fail"},
		"yield in conflicts":  {dir: "apps/web", from: "{namespace: shop}", to: "{namespace: shop, conflicts: yield}", denied: "may not ask for conflicts: yield"},
		"another path":        {dir: "infra/x/y", denied: "no entry of the operator's map covers"},
		"another repository":  {repo: "other", dir: "apps/web", denied: "no entry of the operator's map covers"},
		"another environment": {dir: "apps/web", from: "production", to: "staging", denied: `may not deploy to environment "staging"`},
		"another target":      {dir: "apps/web", from: "kubernetes: {namespace: shop}", to: "terraform: {}", denied: "may not use terraform"},
		"another namespace":   {dir: "apps/web", from: "namespace: shop", to: "namespace: kube-system", denied: `may not deploy to namespace "kube-system"`},
		"our namespace":       {dir: "apps/web", from: "namespace: shop", to: "namespace: holdfast-system", denied: "Holdfast's own"},
		"other credentials":   {dir: "infra/dns", from: "kubernetes: {namespace: shop}", to: "terraform: {credentials: gcp}", denied: "may not use credentials"},
		"ignore too long":     {dir: "apps/web", from: "  kubernetes:", to: ignore("/spec/replicas", "2026-09-01") + "  kubernetes:", denied: "may not ignore"},
		"ignore another path": {dir: "apps/web", from: "  kubernetes:", to: ignore("/spec/template", "2026-06-20") + "  kubernetes:", denied: "may not ignore"},
		"revert not allowed":  {dir: "infra/dns", from: "kubernetes: {namespace: shop}", to: "terraform: {}\n  drift: {mode: revert}", denied: "drift mode"},
		"report without modes": {dir: "infra/dns", from: "kubernetes: {namespace: shop}",
			to: "terraform: {}\n  drift: {mode: report}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := ParseStack("stack.yaml", []byte(strings.Replace(stack, tc.from, tc.to, 1)))
			if err != nil {
				t.Fatal(err)
			}
			repo := tc.repo
			if repo == "" {
				repo = "fleet"
			}
			p, err := l.Permit(repo, tc.dir, s, now)
			switch {
			case tc.denied == "" && (err != nil || p.Environment.Name != "production"):
				t.Errorf("denied: %v", err)
			case tc.denied != "" && (fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), tc.denied)):
				t.Errorf("got %v, want a denial with %q", err, tc.denied)
			}
		})
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"operator", "stack"} {
		b, err := Schema(which)
		if err != nil {
			t.Fatal(err)
		}
		var s struct {
			Defs map[string]struct {
				Properties           map[string]struct{ Description string } `json:"properties"`
				AdditionalProperties *bool                                   `json:"additionalProperties"`
			} `json:"$defs"`
		}
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		if len(s.Defs) < 5 {
			t.Errorf("%s: only %d definitions", which, len(s.Defs))
		}
		for name, def := range s.Defs {
			if def.AdditionalProperties == nil || *def.AdditionalProperties {
				t.Errorf("%s: %s accepts unknown fields", which, name)
			}
		}
	}
}
