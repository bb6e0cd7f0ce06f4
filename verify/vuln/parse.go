package vuln

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// maxListed bounds the results of a scan, maxFacts those in facts.
const (
	maxListed = 200_000
	maxFacts  = 256
)

// tool is a scanner, or its database.
type tool struct{ uri, version string }

// scan is what is kept of a scan.
type scan struct {
	scanner, database tool
	updated, finished intoto.Time
	counted           bool // found is all that was found
	found             []vulnerability
}

// unknown is the severity of what nobody has rated, or in words that are not
// known. It counts as high.
const unknown = "unknown"

type vulnerability struct{ id, severity string }

// rank orders severities as [verify.Severities] does.
func (v vulnerability) rank() int {
	if v.severity == unknown {
		return slices.Index(verify.Severities, "high")
	}
	return slices.Index(verify.Severities, v.severity)
}

// worst returns the worst that was found; nothing is "none".
func (s scan) worst() vulnerability {
	if len(s.found) == 0 {
		return vulnerability{severity: verify.Severities[0]}
	}
	return slices.MaxFunc(s.found, func(a, b vulnerability) int { return cmp.Compare(a.rank(), b.rank()) })
}

// parse reads a scan. The types differ in the result only, which cosign leaves in
// the scanner's own format.
func parse(predicateType string, predicate []byte) (scan, error) {
	var p struct {
		Scanner struct {
			URI     string `json:"uri"`
			Version string `json:"version"`
			DB      struct {
				URI        string      `json:"uri"`
				Version    string      `json:"version"`
				LastUpdate intoto.Time `json:"lastUpdate"`
			} `json:"db"`
			Result json.RawMessage `json:"result"`
		} `json:"scanner"`
		Metadata struct {
			ScanFinishedOn intoto.Time `json:"scanFinishedOn"`
		} `json:"metadata"`
	}
	if err := intoto.Decode(predicate, &p); err != nil {
		return scan{}, err
	}
	s := scan{
		scanner: tool{p.Scanner.URI, p.Scanner.Version}, database: tool{p.Scanner.DB.URI, p.Scanner.DB.Version},
		updated: p.Scanner.DB.LastUpdate, finished: p.Metadata.ScanFinishedOn,
	}
	if s.scanner.uri == "" {
		return s, errors.New("it names no scanner")
	}
	if len(p.Scanner.Result) == 0 || string(p.Scanner.Result) == "null" {
		return s, errors.New("it has no result: an empty list says that nothing was found")
	}
	var err error
	switch predicateType {
	case PredicateV01, PredicateV02:
		s.counted = true
		s.found, err = rated(p.Scanner.Result)
	case PredicateCosign:
		err = s.own(p.Scanner.Result)
	default:
		err = fmt.Errorf("%q is not a scan", intoto.Short(predicateType))
	}
	if err == nil && len(s.found) > maxListed {
		err = fmt.Errorf("it lists more than %d vulnerabilities", maxListed)
	}
	return s, err
}

// rated reads the list of in-toto's types. The prose of v0.1 has each in an object
// "vulnerability", its example has not.
func rated(raw json.RawMessage) ([]vulnerability, error) {
	type one struct {
		ID       string `json:"id"`
		Severity []struct {
			Score score `json:"score"`
		} `json:"severity"`
	}
	var list []struct {
		one
		Vulnerability *one `json:"vulnerability"`
	}
	if err := intoto.Unmarshal(raw, &list); err != nil {
		return nil, errors.New("the result is not a list of vulnerabilities")
	}
	out := make([]vulnerability, 0, len(list))
	for _, x := range list {
		v := x.one
		if x.Vulnerability != nil && v.ID == "" {
			v = *x.Vulnerability
		}
		if v.ID == "" {
			return nil, errors.New("a vulnerability has no id")
		}
		worst := ""
		for _, s := range v.Severity {
			worst = worse(worst, cmp.Or(s.Score.severity(), unknown))
		}
		out = append(out, vulnerability{v.ID, cmp.Or(worst, unknown)})
	}
	return out, nil
}

// own reads the result in the formats of Trivy and Grype; another one is not
// counted. Only Grype's says what its database knew.
func (s *scan) own(raw json.RawMessage) error {
	var r struct {
		Results []struct { // Trivy
			Vulnerabilities []struct {
				VulnerabilityID string
				Severity        string
			}
		}
		SchemaVersion json.RawMessage
		Matches       []struct { // Grype
			Vulnerability struct {
				ID       string `json:"id"`
				Severity string `json:"severity"`
			} `json:"vulnerability"`
		} `json:"matches"`
		Descriptor struct {
			DB struct {
				Built  intoto.Time `json:"built"`
				Status struct {
					Built intoto.Time `json:"built"` // since schema 6
				} `json:"status"`
			} `json:"db"`
		} `json:"descriptor"`
	}
	if raw[0] != '{' {
		return nil
	}
	if err := intoto.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("the result: %w", err)
	}
	s.counted = len(r.SchemaVersion) > 0 || r.Matches != nil
	for _, x := range r.Results {
		for _, v := range x.Vulnerabilities {
			s.found = append(s.found, vulnerability{v.VulnerabilityID, cmp.Or(named(v.Severity), unknown)})
		}
	}
	for _, m := range r.Matches {
		s.found = append(s.found, vulnerability{m.Vulnerability.ID, cmp.Or(named(m.Vulnerability.Severity), unknown)})
	}
	for _, t := range []intoto.Time{r.Descriptor.DB.Built, r.Descriptor.DB.Status.Built} {
		if s.updated.IsZero() {
			s.updated = t
		}
	}
	return nil
}

// score is how a method rates a vulnerability: a word, or a number of CVSS, which
// some write as one.
type score string

// UnmarshalJSON reads a string or a number.
func (s *score) UnmarshalJSON(b []byte) error {
	*s = score(strings.Trim(string(b), `"`))
	return nil
}

// severity returns one of [verify.Severities], or "" where it is neither a word
// nor a number that is known: a vector, for example.
// https://www.first.org/cvss/v4.0/specification-document#Qualitative-Severity-Rating-Scale
func (s score) severity() string {
	if word := named(string(s)); word != "" {
		return word
	}
	n, err := strconv.ParseFloat(string(s), 64)
	switch {
	case err != nil || math.IsNaN(n) || n < 0 || n > 10:
		return ""
	case n == 0:
		return "none"
	case n < 4:
		return "low"
	case n < 7:
		return "medium"
	case n < 9:
		return "high"
	default:
		return "critical"
	}
}

// synonyms are what databases call severities, beside the names themselves.
var synonyms = map[string]string{"moderate": "medium", "important": "high", "negligible": "low", "minor": "low", "informational": "none", "info": "none"}

// named returns the severity that a word means, or "".
func named(word string) string {
	word = strings.ToLower(strings.TrimSpace(word))
	if slices.Contains(verify.Severities, word) {
		return word
	}
	return synonyms[word]
}

// worse returns the worse of two severities, as they rank; "" is none at all.
func worse(a, b string) string {
	if (vulnerability{severity: b}).rank() > (vulnerability{severity: a}).rank() {
		return b
	}
	return a
}

// text says what was found, for people.
func (s scan) text() string {
	by := fmt.Sprintf("%s at %s, database of %s", intoto.Short(s.scanner.uri), s.finished, s.updated)
	if !s.counted {
		return "scanned by " + by
	}
	return fmt.Sprintf("%d vulnerabilities, at worst %s, by %s", len(s.found), s.worst().severity, by)
}

func (s scan) facts() map[string]any {
	counts := map[string]int{unknown: 0}
	for _, name := range verify.Severities {
		counts[name] = 0
	}
	for _, v := range s.found {
		counts[v.severity]++
	}
	sorted := slices.SortedStableFunc(slices.Values(s.found), func(a, b vulnerability) int {
		return cmp.Or(cmp.Compare(b.rank(), a.rank()), strings.Compare(a.id, b.id))
	})
	list := []map[string]any{}
	for _, v := range sorted[:min(len(sorted), maxFacts)] {
		list = append(list, map[string]any{"id": intoto.Short(v.id), "severity": v.severity})
	}
	return map[string]any{
		"scanner":  map[string]any{"uri": intoto.Short(s.scanner.uri), "version": intoto.Short(s.scanner.version)},
		"database": map[string]any{"uri": intoto.Short(s.database.uri), "version": intoto.Short(s.database.version), "updated": s.updated.String()},
		"scanned":  s.finished.String(), "counted": s.counted, "counts": counts, "worst": s.worst().severity,
		"vulnerabilities": list, "moreVulnerabilities": len(s.found) - len(list),
	}
}
