package commit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

const testVerifier = "https://source.example.com/verifier"

// sourced returns a configuration in which changes of infra need a summary of the
// source track, by the identity source@example.com.
func (r *repo) sourced(s *throwaway) Config {
	c := r.config()
	c.URI, c.Ref, c.Prover = testURI, testRef, prover
	c.Signers = append(c.Signers, s.signer("source", "source@example.com", s.timestamps()), s.signer("dana", "dana@example.com", s.timestamps()))
	c.Rules = append(c.Rules, Rule{Paths: []string{"infra/**"}, Signers: []string{"alice"},
		Source: &Source{Signers: []string{"source"}, Verifiers: []string{testVerifier}, Levels: []string{"SLSA_SOURCE_LEVEL_3", "ORG_SOURCE_REVIEWED"}}})
	return c
}

// summary is a verification summary as the SLSA source tools write it.
func (s *throwaway) summary(id string, change func(predicate, annotations map[string]any)) string {
	predicate := map[string]any{
		"verifier": map[string]any{"id": testVerifier}, "timeVerified": time.Now().UTC().Format(time.RFC3339), "resourceUri": "git+" + testURI,
		"policy": map[string]any{"uri": "https://example.com/policy"}, "verificationResult": "PASSED",
		"verifiedLevels": []string{"SLSA_SOURCE_LEVEL_4", "ORG_SOURCE_REVIEWED"},
	}
	annotations := map[string]any{"source_refs": []string{testRef}}
	if change != nil {
		change(predicate, annotations)
	}
	return s.statement("source@example.com", predicateVSA, id, annotations, predicate)
}

func TestSourceSummary(t *testing.T) {
	t.Parallel()
	r, s := newRepo(t), newThrowaway(t)
	c := r.sourced(s)
	root := r.commit("README", r.by(r.alice))
	one := r.commit("infra/a", r.by(r.alice))
	two := r.commit("docs/a", r.by(r.alice))
	r.waits(c, root, one, "no verification summary vouches for its source: expected SLSA_SOURCE_LEVEL_3, ORG_SOURCE_REVIEWED by "+testVerifier)
	r.attach(SourceNotesRef, two, s.summary(two, nil))
	r.waits(c, root, one, "no verification summary") // of a later commit, which is not there yet
	ev := r.accepts(c, root, two)                    // what is true of it is true of what led to it
	if !slices.ContainsFunc(ev.RestsOn, func(a verify.Anchor) bool { return a.Value == "source@example.com" }) {
		t.Errorf("rests on %v", ev.RestsOn)
	}
	r.attach(SourceNotesRef, one, s.summary(one, nil))
	ev = r.accepts(c, root, one)
	if got := fmt.Sprint(ev.Facts["source"]); !strings.Contains(got, testVerifier) || !strings.Contains(got, "SLSA_SOURCE_LEVEL_4") {
		t.Errorf("facts %v", got)
	}
	r.waits(revoking(c, anchor("identity", "source@example.com")), root, one, "was revoked on")
	r.refuses(c, one, root, "moved back")
}

func TestSourceSummaryRefused(t *testing.T) {
	t.Parallel()
	r, s := newRepo(t), newThrowaway(t)
	c := r.sourced(s)
	root := r.commit("README", r.by(r.alice))
	set := func(key string, value any) func(p, a map[string]any) {
		return func(p, _ map[string]any) { p[key] = value }
	}
	for name, tc := range map[string]struct {
		change func(p, a map[string]any)
		want   string
	}{
		"another repository":   {set("resourceUri", "git+"+testURI+"2"), "is about"},
		"no repository":        {set("resourceUri", ""), "is about"},
		"another branch":       {func(_, a map[string]any) { a["source_refs"] = []string{"refs/heads/x"} }, "is not about refs/heads/main"},
		"no branch":            {func(_, a map[string]any) { delete(a, "source_refs") }, "is not about refs/heads/main"},
		"branches of a text":   {func(_, a map[string]any) { a["source_refs"] = testRef }, "is not about refs/heads/main"},
		"failed":               {set("verificationResult", "FAILED"), `says "FAILED"`},
		"no result":            {set("verificationResult", nil), `says ""`},
		"a lower level":        {set("verifiedLevels", []string{"SLSA_SOURCE_LEVEL_2", "ORG_SOURCE_REVIEWED"}), "and not SLSA_SOURCE_LEVEL_3"},
		"a level of builds":    {set("verifiedLevels", []string{"SLSA_BUILD_LEVEL_4", "ORG_SOURCE_REVIEWED"}), "and not SLSA_SOURCE_LEVEL_3"},
		"a level that is none": {set("verifiedLevels", []string{"SLSA_SOURCE_LEVEL_x", "ORG_SOURCE_REVIEWED"}), "and not SLSA_SOURCE_LEVEL_3"},
		"a property less":      {set("verifiedLevels", []string{"SLSA_SOURCE_LEVEL_4"}), "and not ORG_SOURCE_REVIEWED"},
		"another verifier":     {set("verifier", map[string]any{"id": testVerifier + "/"}), "is by the verifier"},
		"from the future":      {set("timeVerified", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), "from the future"},
		"of another form":      {set("verifiedLevels", "SLSA_SOURCE_LEVEL_4"), "does not parse"},
	} {
		t.Run(name, func(t *testing.T) {
			get(r.Git("reset", "-q", "--hard", root))(t)
			r.t, s.t = t, t
			id := r.commit("infra/a", r.by(r.alice))
			r.attach(SourceNotesRef, id, s.summary(id, tc.change))
			r.waits(c, root, id, tc.want)
			r.attach(SourceNotesRef, id, s.summary(id, nil)) // another beside it
			r.accepts(c, root, id)
		})
	}
	r.t, s.t = t, t
	get(r.Git("reset", "-q", "--hard", root))(t)
	id := r.commit("infra/a", r.by(r.alice))
	r.attach(SourceNotesRef, id, s.summary(root, nil))
	r.waits(c, root, id, "does not match any digest")
	r.attach(NotesRef, id, s.summary(id, nil))
	r.waits(c, root, id, "no verification summary") // approvals are kept elsewhere
	r.attach(SourceNotesRef, id, s.statement("dana@example.com", predicateVSA, id, map[string]any{"source_refs": []string{testRef}}, map[string]any{
		"verifier": map[string]any{"id": testVerifier}, "resourceUri": testURI, "verificationResult": "PASSED", "verifiedLevels": []string{"SLSA_SOURCE_LEVEL_4", "ORG_SOURCE_REVIEWED"}}))
	r.waits(c, root, id, "expected SAN value") // somebody else's word
	r.attach(SourceNotesRef, id, strings.Repeat("x", maxNote))
	r.waits(c, root, id, "the limit is")
}

// The ref is that of the subject that is the commit, not of one beside it.
func TestSummaryOfSeveralSubjects(t *testing.T) {
	t.Parallel()
	const other = "1111111111111111111111111111111111111111"
	id := strings.Repeat("a", 40)
	for name, c := range map[string]struct {
		subjects string
		want     bool
	}{
		"its own":      {fmt.Sprintf(`{"digest":{"gitCommit":%q},"annotations":{"sourceRefs":[%q]}}`, id, testRef), true},
		"of another":   {fmt.Sprintf(`{"digest":{"gitCommit":%q}},{"digest":{"gitCommit":%q},"annotations":{"sourceRefs":[%q]}}`, id, other, testRef), false},
		"of no digest": {fmt.Sprintf(`{"digest":{"gitCommit":%q}},{"annotations":{"sourceRefs":[%q]}}`, id, testRef), false},
	} {
		var st statement
		must(t, json.Unmarshal([]byte(`{"subject":[`+c.subjects+`]}`), &st))
		if got := st.onRef(id, testRef); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
