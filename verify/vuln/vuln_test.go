package vuln

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

var now = time.Date(2026, 6, 6, 12, 0, 0, 0, time.UTC)

var types = map[string]string{"intoto-v01": PredicateV01, "intoto-v02": PredicateV02, "cosign-trivy": PredicateCosign, "cosign-grype": PredicateCosign}

func rule() verify.VulnerabilitiesRequirement {
	return verify.VulnerabilitiesRequirement{Scanners: []string{"pkg:github/*/*"}, ScanMaxAge: 24 * time.Hour, DatabaseMaxAge: 12 * time.Hour, MaxSeverity: "medium"}
}

func judge(t testing.TB, q verify.VulnerabilitiesRequirement) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{Vulnerabilities: &q})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func statement(t testing.TB, file string) verify.Statement {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return verify.Statement{PredicateType: types[file], Predicate: b, Time: now.Add(-time.Hour)}
}

// TestShapes: scans as tools write them are read.
func TestShapes(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"intoto-v02":   "2 medium true map[critical:0 high:0 low:1 medium:1 none:0 unknown:0] [map[id:CVE-2026-1 severity:medium] map[id:GHSA-fxph-q3j8-mv87 severity:low]]",
		"intoto-v01":   "1 medium true map[critical:0 high:0 low:0 medium:1 none:0 unknown:0] [map[id:CVE-2026-1 severity:medium]]",
		"cosign-trivy": "2 medium true map[critical:0 high:0 low:1 medium:1 none:0 unknown:0] [map[id:CVE-2026-2 severity:medium] map[id:CVE-2026-3 severity:low]]",
		"cosign-grype": "1 low true map[critical:0 high:0 low:1 medium:0 none:0 unknown:0] [map[id:CVE-2026-2 severity:low]]",
	} {
		st := statement(t, file)
		j := judge(t, rule())
		if !j.Reads(st.PredicateType) {
			t.Errorf("%s is not read", file)
		}
		f, err := j.Judge(st, now)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		n := strings.Fields(f.Text)[0]
		if got := fmt.Sprint(n, " ", f.Facts["worst"], " ", f.Facts["counted"], " ", f.Facts["counts"], " ", f.Facts["vulnerabilities"]); got != want {
			t.Errorf("%s:\n got %s\nwant %s", file, got, want)
		}
		// The database grows too old first, 12 hours after 06:11, or 04:21.
		if f.Made.Hour() != 10 || f.NotAfter.Hour() != 18 && f.NotAfter.Hour() != 16 {
			t.Errorf("%s: made %s, until %s", file, f.Made, f.NotAfter)
		}
	}
}

// set changes a value at a path of names in a predicate; nil deletes.
func set(t testing.TB, predicate []byte, path string, v any) []byte {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal(predicate, &p); err != nil {
		t.Fatal(err)
	}
	names := strings.Split(path, ".")
	at := p
	for _, n := range names[:len(names)-1] {
		at = at[n].(map[string]any)
	}
	if at[names[len(names)-1]] = v; v == nil {
		delete(at, names[len(names)-1])
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rate(scores ...any) []any {
	var s []any
	for _, x := range scores {
		s = append(s, map[string]any{"method": "x", "score": x})
	}
	return []any{map[string]any{"id": "CVE-1", "severity": s}}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, path string
		value      any
		rule       func(*verify.VulnerabilitiesRequirement)
		want       string
		is         error
	}{
		"scanner is another":                   {path: "scanner.uri", value: "pkg:evil/scanner", want: "scanner: found", is: verify.ErrOther},
		"scanner is missing":                   {path: "scanner.uri", want: "names no scanner"},
		"scan is too old":                      {path: "metadata.scanFinishedOn", value: "2026-06-05T11:00:00Z", want: "scanFinishedOn is 2026-06-05T11:00:00Z, more than"},
		"scan is in the future":                {path: "metadata.scanFinishedOn", value: "2026-06-06T12:05:00Z", want: "in the future"},
		"scan is newer than its signature":     {path: "metadata.scanFinishedOn", value: "2026-06-06T11:30:00Z", want: "after it was signed"},
		"scan has no date":                     {path: "metadata.scanFinishedOn", want: "scanFinishedOn is missing"},
		"scan has a date in words":             {path: "metadata.scanFinishedOn", value: "today", want: "RFC 3339"},
		"database is too old":                  {path: "scanner.db.lastUpdate", value: "2026-06-05T23:00:00Z", want: "scanner.db.lastUpdate is 2026-06-05T23:00:00Z, more than"},
		"database is in the future":            {path: "scanner.db.lastUpdate", value: "2027-01-01T00:00:00Z", want: "in the future"},
		"database has no date":                 {path: "scanner.db.lastUpdate", want: "scanner.db.lastUpdate is missing"},
		"database of cosign has no date":       {file: "cosign-trivy", path: "scanner.db.lastUpdate", want: "scanner.db.lastUpdate is missing"},
		"database of Grype has no date":        {file: "cosign-grype", path: "scanner.result.descriptor", want: "scanner.db.lastUpdate is missing"},
		"result is missing":                    {path: "scanner.result", want: "has no result"},
		"result is not a list":                 {path: "scanner.result", value: map[string]any{}, want: "not a list"},
		"result has no id":                     {path: "scanner.result", value: []any{map[string]any{"ID": "CVE-1"}}, want: "has no id"},
		"result of another tool":               {file: "cosign-trivy", path: "scanner.result", value: map[string]any{"runs": []any{}}, want: "cannot be counted"},
		"result of another tool, as a text":    {file: "cosign-trivy", path: "scanner.result", value: "none", want: "cannot be counted"},
		"severity is too high":                 {path: "scanner.result", value: rate("critical"), want: "of severity critical, expected at most medium", is: verify.ErrContradicts},
		"severity is too high in one method":   {path: "scanner.result", value: rate("low", "7.0", "none"), want: "of severity high", is: verify.ErrContradicts},
		"severity is a number":                 {path: "scanner.result", value: rate(9.8), want: "of severity critical", is: verify.ErrContradicts},
		"severity is a vector":                 {path: "scanner.result", value: rate("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:L"), want: "of severity unknown", is: verify.ErrContradicts},
		"severity is not a number":             {path: "scanner.result", value: rate("NaN"), want: "of severity unknown", is: verify.ErrContradicts},
		"severity is unknown beside a low one": {path: "scanner.result", value: rate("low", "SEVERE"), want: "of severity unknown", is: verify.ErrContradicts},
		"severity is out of range":             {path: "scanner.result", value: rate("-1"), want: "of severity unknown", is: verify.ErrContradicts},
		"severity is missing":                  {path: "scanner.result", value: rate(), want: "of severity unknown", is: verify.ErrContradicts},
		"severity of Grype is unknown":         {file: "cosign-grype", path: "scanner.result.matches", value: []any{map[string]any{"vulnerability": map[string]any{"id": "CVE-1", "severity": "Unknown"}}}, want: "of severity unknown", is: verify.ErrContradicts},
		"severity, where none is allowed":      {rule: func(q *verify.VulnerabilitiesRequirement) { q.MaxSeverity = "none" }, want: "of severity medium", is: verify.ErrContradicts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := c.file
			if file == "" {
				file = "intoto-v02"
			}
			q, st := rule(), statement(t, file)
			if c.path != "" {
				st.Predicate = set(t, st.Predicate, c.path, c.value)
			}
			if c.rule != nil {
				c.rule(&q)
			}
			_, err := judge(t, q).Judge(st, now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if kind(err) != kind(c.is) {
				t.Errorf("%v is %s, want %s", err, kind(err), kind(c.is))
			}
		})
	}
}

// TestAnySeverity: what was found is no reason to refuse where the rule bounds
// nothing, counted or not.
func TestAnySeverity(t *testing.T) {
	t.Parallel()
	for _, most := range []string{"", "critical"} {
		q := rule()
		q.MaxSeverity = most
		for _, result := range []any{map[string]any{"runs": []any{}}, "text", []any{}} {
			st := statement(t, "cosign-trivy")
			st.Predicate = set(t, st.Predicate, "scanner.result", result)
			f, err := judge(t, q).Judge(st, now)
			if err != nil || f.Facts["counted"] != false || !strings.HasPrefix(f.Text, "scanned by") {
				t.Errorf("%v: %+v, %v", result, f, err)
			}
		}
	}
}

// TestMadeWithError: what is not enough still replaces what is older.
func TestMadeWithError(t *testing.T) {
	t.Parallel()
	st := statement(t, "intoto-v02")
	st.Predicate = set(t, st.Predicate, "scanner.result", rate("critical"))
	f, err := judge(t, rule()).Judge(st, time.Time{})
	if err == nil || f.Made.IsZero() || f.Series != "pkg:github/aquasecurity/trivy" {
		t.Errorf("%+v, %v", f, err)
	}
	if _, ok := judge(t, rule()).(verify.Superseding); !ok {
		t.Error("an old scan outweighs a new one")
	}
}

// TestFactsAreBounded: a scan with many findings does not fill the ledger.
func TestFactsAreBounded(t *testing.T) {
	t.Parallel()
	var list []any
	for i := range 2 * maxFacts {
		list = append(list, map[string]any{"id": fmt.Sprintf("CVE-%d", i), "severity": []any{map[string]any{"score": "low"}}})
	}
	list = append(list, rate("medium")[0])
	st := statement(t, "intoto-v02")
	st.Predicate = set(t, st.Predicate, "scanner.result", list)
	f, err := judge(t, rule()).Judge(st, now)
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := f.Facts["vulnerabilities"].([]map[string]any)
	if len(kept) != maxFacts || kept[0]["id"] != "CVE-1" || kept[0]["severity"] != "medium" || f.Facts["moreVulnerabilities"] != maxFacts+1 {
		t.Errorf("%d kept, first %v, %v more", len(kept), kept[0], f.Facts["moreVulnerabilities"])
	}
}

// kind names what an error says beside that a statement is not enough.
func kind(err error) string {
	switch {
	case errors.Is(err, verify.ErrOther):
		return "about something else"
	case errors.Is(err, verify.ErrContradicts):
		return "a contradiction"
	default:
		return "not enough"
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	j := judge(t, rule())
	if j.Reads("https://in-toto.io/attestation/vulns") || j.Reads(PredicateV02+"0") || j.Reads("cosign.sigstore.dev/attestation/vuln/v1") {
		t.Error("another type is read")
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted is no worse than the
// rule allows.
func FuzzJudge(f *testing.F) {
	for file := range types {
		f.Add(statement(f, file).Predicate)
	}
	j := judge(f, rule())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, typ := range []string{PredicateV01, PredicateV02, PredicateCosign} {
			found, err := j.Judge(verify.Statement{PredicateType: typ, Predicate: b}, now)
			if err != nil {
				continue
			}
			if w := found.Facts["worst"]; w != "none" && w != "low" && w != "medium" {
				t.Errorf("accepted %v", w)
			}
		}
	})
}
