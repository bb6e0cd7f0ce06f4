package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// SourceNotesRef is where the SLSA source tools keep attestations about commits.
// https://github.com/slsa-framework/source-tool/blob/main/actions/store_note/action.yml
const SourceNotesRef = "refs/notes/commits"

const predicateVSA = "https://slsa.dev/verification_summary/v1"

// sourceRefs are the names of the annotation of a subject that says on which refs
// it is: as the specification has it, and as tools wrote it before.
// https://slsa.dev/spec/v1.2/source-requirements
var sourceRefs = []string{"sourceRefs", "source_refs"}

// vouched is a verification summary of a commit's source that counts.
type vouched struct {
	id       string // the commit
	by       match
	verifier string
	levels   []string
}

// vouch checks that somebody vouches for the source of the step i, or of a later
// one: what is true of a commit's history on a ref is true of the part before.
func (w *walk) vouch(ctx context.Context, i int, s *step, want Source) error {
	var why []string
	for _, id := range w.steps[i:] {
		found, err := w.vouchedFor(ctx, id, want, &why)
		if err != nil {
			return err
		}
		if found != nil {
			s.source = found
			return nil
		}
	}
	return s.waiting(fmt.Sprintf("have the source verified, and the summary pushed to %s", SourceNotesRef),
		"no verification summary vouches for its source: expected %s by %s%s", strings.Join(want.Levels, ", "), strings.Join(want.Verifiers, " or "), reasons(why))
}

// vouchedFor returns the first summary about a commit that is enough. Why others
// are not is added to why.
func (w *walk) vouchedFor(ctx context.Context, id string, want Source, why *[]string) (*vouched, error) {
	key := id + "\x00" + fmt.Sprint(want)
	if v, ok := w.vouched[key]; ok {
		return v, nil
	}
	n, err := w.notes(ctx, SourceNotesRef, id)
	if err != nil {
		return nil, err
	}
	*why = append(*why, n.odd...)
	var out *vouched
	for _, b := range n.bundles {
		if !claims(b, predicateVSA) {
			continue
		}
		by, st, err := w.v.keys.statement(b, id, predicateVSA, want.Signers)
		if err == nil {
			err = w.v.revoked.Check(by.anchors...)
		}
		var v *vouched
		if err == nil {
			v, err = w.v.summary(st, id, want, w.now)
		}
		if err != nil {
			*why = append(*why, err.Error())
			continue
		}
		v.by, out = by, v
		break
	}
	if w.vouched == nil {
		w.vouched = map[string]*vouched{}
	}
	w.vouched[key] = out
	return out, nil
}

// summary judges a verification summary of the source track, as its
// specification asks consumers to.
// https://slsa.dev/spec/v1.2/verification_summary#how-to-verify
func (v *Verifier) summary(st statement, id string, want Source, now time.Time) (*vouched, error) {
	var p struct {
		Verifier struct {
			ID string `json:"id"`
		} `json:"verifier"`
		TimeVerified       time.Time `json:"timeVerified"`
		ResourceURI        string    `json:"resourceUri"`
		VerificationResult string    `json:"verificationResult"`
		VerifiedLevels     []string  `json:"verifiedLevels"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return nil, errors.New("the summary does not parse")
	}
	if !slices.Contains(want.Verifiers, p.Verifier.ID) {
		return nil, fmt.Errorf("the summary is by the verifier %q", clip(p.Verifier.ID))
	}
	if uri, err := RepositoryURI(strings.TrimPrefix(p.ResourceURI, "git+")); err != nil || uri != v.uri {
		return nil, fmt.Errorf("the summary is about %q, and not about %s", clip(p.ResourceURI), v.uri)
	}
	if !st.onRef(id, v.ref) {
		return nil, fmt.Errorf("the summary is not about %s", v.ref)
	}
	if p.VerificationResult != "PASSED" {
		return nil, fmt.Errorf("the summary says %q", clip(p.VerificationResult))
	}
	if p.TimeVerified.After(now.Add(maxSkew)) {
		return nil, errors.New("the summary is from the future")
	}
	for _, level := range want.Levels {
		if !reaches(p.VerifiedLevels, level) {
			return nil, fmt.Errorf("the summary has %s, and not %s", clip(strings.Join(p.VerifiedLevels, ", ")), level)
		}
	}
	return &vouched{id: id, verifier: p.Verifier.ID, levels: p.VerifiedLevels}, nil
}

// maxSkew is how far a verifier's clock may be ahead.
const maxSkew = 5 * time.Minute

// onRef reports whether the subject that is the commit says that it is on ref.
func (st statement) onRef(id, ref string) bool {
	for _, s := range st.Subject {
		if s.Digest["gitCommit"] != id {
			continue
		}
		for _, name := range sourceRefs {
			var refs []string
			if raw, ok := s.Annotations[name]; ok && json.Unmarshal(raw, &refs) == nil && slices.Contains(refs, ref) {
				return true
			}
		}
	}
	return false
}

const sourceLevel = "SLSA_SOURCE_LEVEL_"

// reaches reports whether a level is among levels, or a higher one of the source
// track: each includes those below.
func reaches(levels []string, want string) bool {
	if slices.Contains(levels, want) {
		return true
	}
	n, ok := strings.CutPrefix(want, sourceLevel)
	return ok && len(n) == 1 && slices.ContainsFunc(levels, func(have string) bool {
		m, ok := strings.CutPrefix(have, sourceLevel)
		return ok && len(m) == 1 && '0' <= m[0] && m[0] <= '9' && m > n
	})
}
