package config

import (
	"strings"
	"testing"
)

// demanding is the wide file with rules that ask for more than a signature.
func demanding(t *testing.T) string {
	t.Helper()
	out := strings.Replace(wide, `    - {paths: ["apps/**", "docs/**"], signers: [alice, bob]}
`, `    - {paths: ["apps/**", "docs/**"], signers: [alice, bob], approvals: {signers: [alice, bob], threshold: 2}, owners: true, userVerified: true, forgeMerges: {signers: [github]}, source: {signers: [dana], verifiers: [v], levels: [SLSA_SOURCE_LEVEL_3]}}
    owners: {"@acme/apps": [alice, bob]}
`, 1)
	out = strings.Replace(out, "    - {name: bob,", `    - {name: github, openpgpKeyFile: github.asc}
    - {name: dana, root: sigstore, identity: {issuer: "https://accounts.example.com", subject: {exact: dana@example.com}}}
    - {name: bob, userVerified: true,`, 1)
	if !strings.Contains(out, "trust:\n  roots: [{name: sigstore,") {
		t.Fatal("the wide file has no root")
	}
	return out
}

func TestCompareCommitRules(t *testing.T) {
	t.Parallel()
	file := demanding(t)
	const rule = "repositories[fleet].commits.rules[1]"
	for name, c := range map[string]struct {
		from, to      string
		there, back   direction // of the change, and of taking it back
		line, andBack string
	}{
		"an approval less":         {"threshold: 2", "threshold: 1", looser, tighter, rule + ".approvals.threshold", ""},
		"no approvals":             {"approvals: {signers: [alice, bob], threshold: 2}, ", "", looser, tighter, rule + ".approvals", ""},
		"an approver less":         {"approvals: {signers: [alice, bob], threshold: 2}", "approvals: {signers: [alice, bob, dana], threshold: 2}", looser, tighter, rule + ".approvals.signers: dana was added", ""},
		"no owners":                {"owners: true, ", "", looser, tighter, rule + ".owners", ""},
		"nobody verified":          {"userVerified: true, forge", "forge", looser, tighter, rule + ".userVerified", ""},
		"a signer not verified":    {"{name: bob, userVerified: true,", "{name: bob,", looser, tighter, "commits.signers[bob].userVerified", ""},
		"no forge":                 {"forgeMerges: {signers: [github]}, ", "", looser, looser, rule + ".forgeMerges: was removed; another rule may apply instead", ""},
		"a level less":             {"levels: [SLSA_SOURCE_LEVEL_3]", "levels: [SLSA_SOURCE_LEVEL_3, ORG_SOURCE_X]", tighter, looser, rule + ".source.levels: ORG_SOURCE_X was added", ""},
		"a verifier more":          {"verifiers: [v]", "verifiers: [v, w]", looser, tighter, rule + ".source.verifiers: w was added", ""},
		"no summary":               {", source: {signers: [dana], verifiers: [v], levels: [SLSA_SOURCE_LEVEL_3]}", "", looser, tighter, rule + ".source", ""},
		"an owner more":            {`{"@acme/apps": [alice, bob]}`, `{"@acme/apps": [alice, bob], "@carol": [dana]}`, looser, tighter, "commits.owners.@carol", ""},
		"an owner's signer less":   {`{"@acme/apps": [alice, bob]}`, `{"@acme/apps": [alice]}`, tighter, looser, "commits.owners.@acme/apps: bob was removed", ""},
		"a path less for a demand": {`["apps/**", "docs/**"]`, `["apps/**"]`, looser, looser, rule + ".paths: docs/** was removed; another rule may apply instead", rule + ".paths: docs/** was added"},
		"another identity":         {"dana@example.com", "dan@example.com", looser, looser, "commits.signers[dana].identity.subject.exact", ""},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(file, c.from, c.to, 1)
			if changed == file {
				t.Fatal("nothing changed")
			}
			if c.andBack == "" {
				c.andBack = strings.SplitN(c.line, ":", 2)[0]
			}
			before, after := parsed(t, file), parsed(t, changed)
			for _, way := range []struct {
				was, is *Operator
				want    direction
				line    string
			}{{before, after, c.there, c.line}, {after, before, c.back, c.andBack}} {
				got := Compare(way.was, way.is)
				lines, others := got.Looser, got.Tighter
				if way.want == tighter {
					lines, others = others, lines
				}
				if len(lines) != 1 || len(others) > 0 || !strings.Contains(lines[0], way.line) {
					t.Errorf("want %q (direction %d): %+v", way.line, way.want, got)
				}
			}
		})
	}
	// A rule that asks for something and goes: what it asked for, nobody asks for.
	lines := strings.SplitAfter(file, "\n")
	var without []string
	for _, l := range lines {
		if !strings.Contains(l, "approvals:") {
			without = append(without, l)
		}
	}
	if c := Compare(parsed(t, file), parsed(t, strings.Join(without, ""))); len(c.Looser) != 1 || !strings.Contains(c.Looser[0], rule+": was removed") {
		t.Errorf("%+v", c)
	}
}

func TestLoadRefusesCommits(t *testing.T) {
	t.Parallel()
	file := demanding(t)
	for want, c := range map[string]struct{ from, to string }{
		`"github" signs commits and merges`:         {"signers: [alice, bob], approvals", "signers: [alice, bob, github], approvals"},
		`3 approvals are asked for, and 2 people`:   {"threshold: 2", "threshold: 3"},
		`owners are asked for, and nobody is one`:   {`    owners: {"@acme/apps": [alice, bob]}` + "\n", ""},
		`"apps" is not an owner`:                    {`"@acme/apps"`, "apps"},
		`"dave" is not a signer of this repository`: {`"@acme/apps": [alice`, `"@acme/apps": [dave`},
		`a source attestation of anybody`:           {"verifiers: [v]", "verifiers: []"},
		`identity and root belong together`:         {"root: sigstore, identity", "identity"},
		`"public" is not a root`:                    {"root: sigstore, identity", "root: public, identity"},
		`nobody may sign the tags`:                  {"  url: /srv/fleet.git\n", "  url: /srv/fleet.git\n  tag: v*\n"},
		`tag and branch exclude each other`:         {"  url: /srv/fleet.git\n", "  url: /srv/fleet.git\n  tag: v*\n  branch: main\n"},
		`is not a pattern`:                          {"  url: /srv/fleet.git\n", "  url: /srv/fleet.git\n  tag: \"v[\"\n"},
		`no tags are followed`:                      {`    owners: {"@acme`, "    tagSigners: [alice]\n" + `    owners: {"@acme`},
	} {
		changed := strings.Replace(file, c.from, c.to, 1)
		if _, err := parse("holdfast.yaml", []byte(changed), "/etc/holdfast"); changed == file || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	o, err := parse("holdfast.yaml", []byte(strings.Replace(file, ", threshold: 2", "", 1)), "/")
	if err != nil || o.Repositories[0].Commits.Rules[1].Approvals.Threshold != 1 {
		t.Fatalf("the default threshold: %v", err)
	}
	if approvals, sources := o.Repositories[0].Commits.Notes(); !approvals || !sources {
		t.Error("the notes that the rules need are not brought")
	}
}
