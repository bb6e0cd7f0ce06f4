package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const trusting = `trust:
  roots:
  - {name: sigstore, trustedRoot: root.json}
  - {name: github, trustedRoot: github.json, log: 0, timestamps: 1}
  - {name: corp, authorities: ca.pem, timestampers: tsa.pem, timestamps: 1}
  signers:
  - {name: release, key: {file: release.pub}, root: sigstore, notAfter: 2027-06-30}
  - {name: old, key: {pem: PEM}, unlogged: true}
  - {name: ci, root: github, identity: {issuer: "https://issuer", subject: {exact: "https://ci"}}}
  - {name: notary, notation: {caFile: notary.pem, subjects: ["C=US, ST=WA, O=acme"]}}
  rules:
  - name: shop
    repositories: ["ghcr.io/acme/**"]
    mode: warn
    until: 2027-01-01
    require:
    - signature: {signers: [release, old, notary], threshold: 2}
    - provenance: {signers: [ci], builders: [{id: {exact: b}, level: 3}], repository: "https://github.com/acme/shop", maxAge: 24h}
  exceptions: {file: exceptions.yaml, signers: [{name: dave, allowedSignersFile: dave.keys}]}
`

// loadTrust reads text as a file with the section trust: alone.
func loadTrust(t *testing.T, text string) (*Loaded, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trust.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadTrust(file)
}

func TestTrust(t *testing.T) {
	t.Parallel()
	l, err := loadTrust(t, trusting)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(l.Path)
	var names []string
	for _, f := range l.Trust.Named() {
		names = append(names, strings.TrimPrefix(f, dir+"/"))
	}
	want := []string{"root.json", "github.json", "ca.pem", "tsa.pem", "release.pub", "notary.pem", "exceptions.yaml", "exceptions.yaml.sig", "dave.keys"}
	if !slices.Equal(names, want) {
		t.Errorf("it names %v, want %v", names, want)
	}
	roots := l.Trust.Roots
	for i, want := range []string{"1 true", "0 false", "0 false"} {
		if got := fmt.Sprint(*roots[i].Log, *roots[i].CertificateLog); got != want || time.Duration(roots[i].MaxAge) != defaultRootAge {
			t.Errorf("root %s: %s, want %s; %v", roots[i].Name, got, want, roots[i].MaxAge)
		}
	}
	r := &l.Trust.Rules[0]
	if r.Kind != "image" || r.Source() != "trust.yaml:12" || r.Require[0].Source() != "trust.yaml:17" || r.Require[1].Source() != "trust.yaml:18" {
		t.Errorf("%s %s: %s, %s", r.Kind, r.Source(), r.Require[0].Source(), r.Require[1].Source())
	}
	by := r.Require[0].By()
	if !slices.Equal(by.Signers, []string{"release", "old", "notary"}) || by.Threshold != 2 || time.Duration(r.Require[1].By().MaxAge) != 24*time.Hour {
		t.Errorf("%+v, %+v", by, r.Require[1].By())
	}
}

func TestTrustRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ from, to, want string }{
		"a root of nothing":              {"trustedRoot: root.json", "maxAge: 1h", ":3:6: root \"sigstore\" needs exactly one of"},
		"a root of both":                 {"authorities: ca.pem", "authorities: ca.pem, trustedRoot: x", "needs exactly one of"},
		"timestampers of a trusted root": {"trustedRoot: root.json", "trustedRoot: root.json, timestampers: tsa.pem", "timestampers belong to authorities"},
		"two roots of one name":          {"name: github", "name: sigstore", "defined twice"},
		"two signers of one name":        {"name: old", "name: release", "defined twice"},
		"a name that is none":            {"name: shop", "name: Shop", "cannot be the name"},
		"neither key nor identity":       {", key: {pem: PEM}", "", "needs exactly one of key, identity and notation"},
		"key and identity":               {"key: {pem: PEM}", "key: {pem: PEM}, identity: {subject: {exact: x}}", "needs exactly one of key, identity and notation"},
		"a key of nothing":               {"{pem: PEM}", "{}", "a key needs either file or pem"},
		"a key of both":                  {"{pem: PEM}", "{pem: PEM, file: x}", "a key needs either file or pem"},
		"a root that is not there":       {"root: github", "root: gitlab", "\"gitlab\" is not a root"},
		"an identity without a root":     {"root: github, ", "", "identity \"ci\" needs a root"},
		"a key without root or word":     {", unlogged: true", "", "has no root that could prove"},
		"a key with both":                {", unlogged: true", ", unlogged: true, root: sigstore", "set either root or unlogged"},
		"notation with a root":           {"{name: notary,", "{name: notary, root: sigstore,", "has its own authorities"},
		"a rule about nothing":           {`repositories: ["ghcr.io/acme/**"]`, "repositories: []", "repositories is empty"},
		"a kind that is none":            {"  - name: shop\n", "  - name: shop\n    kind: toaster\n", "kind is \"toaster\""},
		"a mode that is none":            {"mode: warn", "mode: ignore", "mode is \"ignore\""},
		"a mode without an end":          {"    until: 2027-01-01\n", "", "have an end"},
		"an end without a mode":          {"    mode: warn\n", "", "have an end"},
		"nothing is asked":               {"    require:\n    - signature: {signers: [release, old, notary], threshold: 2}\n    - provenance: {signers: [ci], builders: [{id: {exact: b}, level: 3}], repository: \"https://github.com/acme/shop\", maxAge: 24h}\n", "    require: []\n", "asks for nothing"},
		"an entry of nothing":            {"signature: {signers: [release, old, notary], threshold: 2}", "{}", "it asks for nothing"},
		"two things in one entry":        {"threshold: 2}\n", "threshold: 2}\n      sbom: {signers: [ci]}\n", "one entry asks for signature and sbom"},
		"nobody is asked":                {"signers: [ci], ", "", "it names no signer"},
		"a signer that is not there":     {"signers: [ci]", "signers: [cd]", ":18:7: \"cd\" is not a signer"},
		"an unknown field":               {"threshold: 2", "treshold: 2", `did you mean "threshold"?`},
		"exceptions without a signer":    {", signers: [{name: dave, allowedSignersFile: dave.keys}]}", "}", "who may sign them"},
		"exceptions by a signer of none": {"allowedSignersFile: dave.keys", "notAfter: 2027-01-01", "dave"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(trusting, c.from) {
				t.Fatalf("there is no %q", c.from)
			}
			_, err := loadTrust(t, strings.Replace(trusting, c.from, c.to, 1))
			text := ""
			if err != nil {
				text = err.Error()
				for _, p := range Problems(err) {
					text += " " + p.Hint
				}
			}
			if !strings.Contains(text, c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestParseExceptions(t *testing.T) {
	t.Parallel()
	good := "apiVersion: holdfast.dev/v1alpha1\nkind: Exceptions\nexceptions:\n- digest: sha256:" + strings.Repeat("0", 64) +
		"\n  environments: [production]\n  checks: [sbom]\n  reason: broken\n  until: 2027-01-01\n"
	if x, err := ParseExceptions("x.yaml", []byte(good)); err != nil || len(x.Exceptions) != 1 || x.Exceptions[0].Until.Year() != 2027 {
		t.Fatalf("%+v, %v", x, err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"another kind":   {"kind: Exceptions", "kind: Stack", "kind"},
		"a tag":          {"sha256:" + strings.Repeat("0", 64), "ghcr.io/acme/web:1", "is not a digest"},
		"everywhere":     {"  environments: [production]\n", "", "names its environments and checks"},
		"of everything":  {"  checks: [sbom]\n", "", "names its environments and checks"},
		"for no reason":  {"  reason: broken\n", "", "a reason and an end"},
		"for ever":       {"  until: 2027-01-01\n", "", "a reason and an end"},
		"an extra field": {"reason: broken", "reason: broken\n  always: true", "unknown field"},
	} {
		if _, err := ParseExceptions("x.yaml", []byte(strings.Replace(good, c.from, c.to, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
