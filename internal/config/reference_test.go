package config

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// The committed reference is what the types say, and says what every field means.
func TestReference(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"operator", "stack"} {
		want, err := Reference(which)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile("../../docs/reference/" + which + ".md")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/reference/%s.md is not what the types say: run make docs (%v)", which, err)
		}
		for line := range strings.Lines(string(want)) {
			if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |\n") {
				t.Errorf("%s: a field without a meaning: %s", which, line)
			}
		}
	}
	if _, err := Reference("daemon"); err == nil {
		t.Error("there is a reference of a file that does not exist")
	}
}

func TestReferenceDefaults(t *testing.T) {
	t.Parallel()
	b, err := Reference("operator")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| `workers` | number | `8` |",
		"| `listen.socket` | string | `<stateDir>/holdfast.sock` |",
		"| `repositories[].branch` | string | `main` |",
		"| `repositories[].interval` | duration | `30s` |",
		"| `repositories[].maxAge` | duration | `1h` |",
		"| `repositories[].webhook.provider` | string: `github`, `gitlab`, `gitea`, `forgejo`, `bitbucket` | required |",
		"| `environments[].evidenceGrace` | duration | `10m` |",
		"| `environments[].kubernetes.lease.name` | string | `holdfast` |",
		"| `environments[].terraform.credentials` | NAME → NAME → string |  |",
		"| `allow[].drift` | list of strings: `report`, `revert`, `ask`, `adopt` | `[report]` |",
		"| `allow[].ignore.days` | number | `90` |",
		"| `stateDir` | string | required |",
		"| `repositories[].commits.signers[].notAfter` | date |  |",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the reference lacks %q", want)
		}
	}
}
