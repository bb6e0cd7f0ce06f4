package config

import (
	"strings"
	"testing"
)

// replaced returns the wide file with one place changed.
func replaced(t *testing.T, from, to string) string {
	t.Helper()
	if strings.Count(wide, from) != 1 {
		t.Fatalf("the file contains %q %d times", from, strings.Count(wide, from))
	}
	return strings.Replace(wide, from, to, 1)
}

// Each case breaks the wide file in one place.
func TestOperateRefuses(t *testing.T) {
	t.Parallel()
	const (
		route    = "[{receivers: [chat], environments: [production]}]"
		receiver = "type: slack, urlFile: chat-url"
		otlp     = "https://collector:4318"
		hooks    = `, hooks: "0.0.0.0:8322"`
		images   = ", images: [/spec/imageName]"
	)
	for name, tc := range map[string]struct{ from, to, want string }{
		"a signer twice":              {"{name: carol,", "{name: alice,", `signer "alice" is missing a name or defined twice`},
		"a signer of no name":         {"{name: carol,", `{name: "",`, `signer "" is missing a name or defined twice`},
		"nobody signs":                {"[{name: alice, allowedSignersFile: orders.keys}, {name: carol, allowedSignersFile: carol.keys}]", "[]", "signed.signers is empty"},
		"a counter of 0":              {"counter: 3", "counter: 0", "signed.counter is 0"},
		"a share below 0":             {"maxDeleteShare: 20", "maxDeleteShare: -1", "maxDeleteShare is -1"},
		"a share above 100":           {"maxDeleteShare: 20", "maxDeleteShare: 101", "maxDeleteShare is 101"},
		"a short lease":               {"{off: true}", "{duration: 2s}", "a lease of 2s"},
		"Holdfast as an injector":     {"manager: istio", "manager: holdfast", `"holdfast" cannot be an injector`},
		"an injector of no name":      {"manager: istio", `manager: ""`, `"" cannot be an injector`},
		"an injector of no kind":      {"kinds: [Deployment.apps], paths", "kinds: [], paths", "an injector needs kinds and paths"},
		"an injector of no path":      {"[/spec/template/spec/containers/*]", "[]", "an injector needs kinds and paths"},
		"an injector without reason":  {"reason: mesh", `reason: ""`, "an injector needs a reason"},
		"an injector's path":          {"/spec/template/spec/containers/*", "spec", "spec"},
		"a kind that is not custom":   {"Cluster.postgresql.cnpg.io", "Cluster", `"Cluster" is not a custom kind`},
		"a kind twice":                {"- {kind: Cluster.postgresql.cnpg.io", "- {kind: Cluster.postgresql.cnpg.io, none: true}\n- {kind: Cluster.postgresql.cnpg.io", "is declared twice"},
		"a kind with neither":         {images, "", "needs either images or none"},
		"a kind with both":            {images, images + ", none: true", "needs either images or none"},
		"orders by OpenPGP":           {"orders: {signers: [{name: alice, allowedSignersFile", "orders: {signers: [{name: alice, openpgpKeyFile", "an OpenPGP key cannot sign this"},
		"a maxAge below the interval": {"maxAge: 2h", "maxAge: 1s", "maxAge 1s is shorter than the interval"},
		"a webhook of nobody":         {"provider: gitea", "provider: svn", "svn"},
		"a webhook without a secret":  {", secretFile: hook", "", "a webhook without a secret would let anyone in"},
		"nothing listens":             {hooks, "", "a repository has a webhook and nothing listens for it"},
		"hooks without a port":        {hooks, `, hooks: "0.0.0.0"`, "listen.hooks: "},
		"PagerDuty without a key":     {"type: slack", "type: pagerduty", "PagerDuty needs an integration key"},
		"a receiver without a URL":    {receiver, "type: slack", `receiver "chat" has no URL`},
		"a receiver of no type":       {receiver, "type: fax, urlFile: chat-url", "fax"},
		"a receiver twice":            {"{name: chat, " + receiver + "}", "{name: chat, " + receiver + "}, {name: chat, " + receiver + "}", "chat"},
		"a broken template":           {receiver, receiver + `, template: "{{"`, "template: "},
		"a route to nobody":           {route, "[{receivers: []}]", "a route needs receivers"},
		"a route to a stranger":       {route, "[{receivers: [nobody]}]", `"nobody" is not a receiver`},
		"a route for nowhere":         {route, "[{receivers: [chat], environments: [moon]}]", `"moon" is not an environment`},
		"a route of no class":         {route, "[{receivers: [chat], classes: [gossip]}]", "gossip"},
		"a route of no severity":      {route, "[{receivers: [chat], severity: dire}]", "dire"},
		"a link that does not parse":  {route, route + "\n  link: 'https://[/{stack}'", "is not a URL"},
		"a link without a scheme":     {route, route + "\n  link: '//host/{stack}'", "is not a URL"},
		"a link without a host":       {route, route + "\n  link: 'https:///{stack}'", "is not a URL"},
		"traces that do not parse":    {otlp, "https://[", "is not an OTLP/HTTP endpoint"},
		"traces to no host":           {otlp, "https://", "is not an OTLP/HTTP endpoint"},
		"traces by FTP":               {otlp, "ftp://collector", "is not an OTLP/HTTP endpoint"},
		"traces with a password":      {otlp, "https://u:p@collector", "is not an OTLP/HTTP endpoint"},
		"a ratio below 0":             {"telemetry: {", "telemetry: {sampleRatio: -0.1, ", "sampleRatio is -0.1"},
		"a ratio above 1":             {"telemetry: {", "telemetry: {sampleRatio: 1.1, ", "sampleRatio is 1.1"},
	} {
		if _, err := parse("holdfast.yaml", []byte(replaced(t, tc.from, tc.to)), "/etc/holdfast"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestOperateAccepts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ from, to string }{
		"a lease of 3 s":         {"{off: true}", "{duration: 3s}"},
		"the whole share":        {"maxDeleteShare: 20", "maxDeleteShare: 100"},
		"an environment without": {"- name: lab\n  policies: [baseline]\n  kubernetes: {}", "- name: lab\n  policies: [baseline]\n  terraform: {binary: tofu, mirror: mirror}"},
		"a kind without images":  {"images: [/spec/imageName]", "none: true"},
		"no maxAge":              {"  maxAge: 2h\n", ""},
		"no webhook":             {"  webhook: {provider: gitea, secretFile: hook}\n", ""},
		"PagerDuty":              {"type: slack, urlFile: chat-url", "type: pagerduty, keyFile: key"},
		"a severity":             {"environments: [production]}]", "severity: critical, classes: [drift]}]"},
		"a link":                 {"environments: [production]}]", "environments: [production]}]\n  link: 'https://host/{environment}/{stack}'"},
		"traces without TLS":     {"https://collector", "http://collector"},
		"no traces":              {`otlp: "https://collector:4318", `, ""},
		"a ratio":                {"telemetry: {", "telemetry: {sampleRatio: 0.5, "},
		"files that are covered": {"signed: {", "signed: {files: \"sha256:" + strings.Repeat("0", 64) + "\", "},
	} {
		if _, err := parse("holdfast.yaml", []byte(replaced(t, tc.from, tc.to)), "/etc/holdfast"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := parsed(t, strings.Replace(replaced(t, "  webhook: {provider: gitea, secretFile: hook}\n", ""), `, hooks: "0.0.0.0:8322"`, "", 1))
	if o.Telemetry.SampleRatio != 1 || o.Environments[2].Kubernetes.Lease.Name != "holdfast" {
		t.Errorf("defaults are missing: %+v, %+v", o.Telemetry, o.Environments[2].Kubernetes.Lease)
	}
}
