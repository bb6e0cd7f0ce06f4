package commit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"

	"github.com/holdfast-dev/holdfast/verify"
)

// NotesRef is where approvals are kept: notes of Git, since no file of a commit
// can speak of the commit itself. Whoever can push notes there can take them
// away, and can add none that counts.
const NotesRef = "refs/notes/holdfast"

// PredicateApproval is the type of an approval as an in-toto statement. Its
// subject is a gitCommit, and its predicate says {"repository": …, "ref": …}.
const PredicateApproval = "https://holdfast.dev/approval/v1"

// Bounds of one note.
const (
	maxNote       = 1 << 20 // bytes
	maxSignatures = 64      // documents in it that are looked at
)

// Approval returns the document that someone signs who approves a commit: with
// ssh-keygen -Y sign -n approval@holdfast.dev. uri is as [RepositoryURI] has it.
func Approval(uri, ref, id string) []byte {
	return fmt.Appendf(nil, "holdfast approval v1\nrepository %s\nref %s\ncommit %s\n", uri, ref, id)
}

// notes are the documents of one note.
type notes struct {
	signatures []string           // armored SSH signatures
	bundles    []*sgbundle.Bundle // signed statements
	odd        []string           // why others do not parse
}

// notes returns the documents in the notes about a commit.
func (w *walk) notes(ctx context.Context, ref, id string) (notes, error) {
	var n notes
	raw, err := w.h.Notes(ctx, ref, id)
	for _, b := range raw {
		n.parse(b)
	}
	return n, err
}

// parse finds the signed documents in a note: armored SSH signatures, and
// Sigstore bundles as JSON. Everything else is for people. What is broken counts
// as not there: strangers may add to a note.
func (n *notes) parse(b []byte) {
	if len(b) > maxNote {
		n.odd = append(n.odd, fmt.Sprintf("a note of %d bytes, the limit is %d", len(b), maxNote))
		return
	}
	most := n.count() + maxSignatures
	for len(b) > 0 {
		if n.count() == most {
			n.odd = append(n.odd, fmt.Sprintf("a note of more than %d documents", maxSignatures))
			return
		}
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		switch {
		case bytes.HasPrefix(line, []byte("{")):
			d := json.NewDecoder(bytes.NewReader(b))
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				n.odd = append(n.odd, "not JSON")
				break
			}
			rest = b[d.InputOffset():]
			n.bundle(raw)
		case bytes.Equal(line, []byte(beginSSH)):
			body, after, ok := bytes.Cut(b, []byte("\n"+endSSH+"\n"))
			if !ok {
				body, ok = bytes.CutSuffix(b, []byte("\n"+endSSH))
			}
			if !ok {
				n.odd = append(n.odd, "a signature without an end")
				break
			}
			rest = after
			n.signatures = append(n.signatures, string(body)+"\n"+endSSH+"\n")
		}
		b = rest
	}
}

const (
	beginSSH = "-----BEGIN SSH SIGNATURE-----"
	endSSH   = "-----END SSH SIGNATURE-----"
)

func (n *notes) count() int { return len(n.signatures) + len(n.bundles) + len(n.odd) }

// bundle adds a Sigstore bundle. Its parser is not ours.
func (n *notes) bundle(raw []byte) {
	defer func() {
		if r := recover(); r != nil {
			n.odd = append(n.odd, "not a bundle")
		}
	}()
	b := new(sgbundle.Bundle)
	if err := b.UnmarshalJSON(raw); err != nil {
		n.odd = append(n.odd, "not a bundle: "+clip(err.Error()))
		return
	}
	n.bundles = append(n.bundles, b)
}

// approve finds who approved a step, and checks that they are as many as each
// rule asks for.
func (w *walk) approve(ctx context.Context, s *step, rules []Rule) error {
	n, err := w.notes(ctx, NotesRef, s.id)
	if err != nil {
		return err
	}
	why := slices.Clone(n.odd)
	var revoked error
	verified := slices.ContainsFunc(rules, func(r Rule) bool { return r.UserVerified })
	for _, by := range w.approvers(s.id, n, &why, &revoked) {
		switch {
		case s.wrote(by):
			why = append(why, by.signer+" signed the commit")
		case verified && !by.userVerified:
			why = append(why, errNotVerified(by.signer).Error())
		case !slices.ContainsFunc(s.approvals, func(a match) bool { return a.signer == by.signer || a.fingerprint == by.fingerprint }):
			s.approvals = append(s.approvals, by)
		}
	}
	for _, r := range rules {
		if r.Approvals == nil {
			continue
		}
		count := 0
		for _, by := range s.approvals {
			if slices.Contains(r.Approvals.Signers, by.signer) {
				count++
			}
		}
		if count < r.Approvals.Threshold {
			err := s.waiting(w.v.hintApprove(s.id), "approved by %d of %s, and %d are asked for%s",
				count, strings.Join(distinct(r.Approvals.Signers), ", "), r.Approvals.Threshold, reasons(why))
			if revoked != nil { // what ran by it goes on being watched
				err = errors.Join(err, revoked)
			}
			return r.lacks(err)
		}
	}
	return nil
}

// hintApprove says how to approve a commit.
func (v *Verifier) hintApprove(id string) string {
	return fmt.Sprintf("have someone else approve commit %s of %s in repository %s, and push %s (docs/commits.md)", id, v.ref, v.uri, NotesRef)
}

func reasons(why []string) string {
	if len(why) == 0 {
		return ""
	}
	return " (" + clipTo(strings.Join(why, "; "), 400) + ")"
}

// wrote reports whether the change is by's own: an author cannot approve, under
// another name neither. The forge that merged is nobody's second pair of eyes.
func (s *step) wrote(by match) bool {
	same := func(m match) bool { return m.signer == by.signer || m.fingerprint == by.fingerprint }
	return same(s.by) || s.merger != nil && same(*s.merger)
}

// approvers returns who approved a commit in the repository and on the ref that
// are followed. Why the others do not count is added to why.
func (w *walk) approvers(id string, n notes, why *[]string, revoked *error) []match {
	var out []match
	add := func(m match, err error) {
		if err == nil {
			err = w.v.revoked.Check(m.anchors...)
		}
		if errors.Is(err, verify.ErrRevoked) {
			*revoked = err
		}
		if err != nil {
			*why = append(*why, err.Error())
			return
		}
		out = append(out, m)
	}
	document := Approval(w.v.uri, w.v.ref, id)
	for _, sig := range n.signatures {
		add(w.v.keys.document(NamespaceApproval, document, []byte(sig), w.now))
	}
	for _, b := range n.bundles {
		if !claims(b, PredicateApproval) {
			continue
		}
		add(w.approvedBy(b, id))
	}
	return out
}

// claims reports whether a bundle says that it is a statement of a type. It
// proves nothing.
func claims(b *sgbundle.Bundle, predicateType string) bool {
	env := b.GetDsseEnvelope()
	if env == nil {
		return false
	}
	var st struct {
		PredicateType string `json:"predicateType"`
	}
	return json.Unmarshal(env.GetPayload(), &st) == nil && st.PredicateType == predicateType
}

// approvedBy returns who made an approval that is a statement.
func (w *walk) approvedBy(b *sgbundle.Bundle, id string) (match, error) {
	by, st, err := w.v.keys.statement(b, id, PredicateApproval, nil)
	if err != nil {
		return match{}, err
	}
	var p struct {
		Repository string `json:"repository"`
		Ref        string `json:"ref"`
	}
	if err := json.Unmarshal(st.Predicate, &p); err != nil {
		return match{}, errors.New("the approval does not parse")
	}
	if p.Repository != w.v.uri || p.Ref != w.v.ref {
		return match{}, fmt.Errorf("%s approved it for %s in %s", by.signer, clip(p.Ref), clip(p.Repository))
	}
	return by, nil
}

// statement is an in-toto statement about commits.
// https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
type statement struct {
	Type          string `json:"_type"`
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Digest      map[string]string          `json:"digest"`
		Annotations map[string]json.RawMessage `json:"annotations"`
	} `json:"subject"`
	Predicate json.RawMessage `json:"predicate"`
}

// statement returns which of the signers, by name, signed the statement in b, and
// what it says, if it is about the commit id and of the type. Nil is all of them.
func (k keyring) statement(b *sgbundle.Bundle, id, predicateType string, among []string) (match, statement, error) {
	err := errors.New("no signer who could make it has an identity")
	for _, h := range k.signers {
		if h.prover == nil || among != nil && !slices.Contains(among, h.Name) {
			continue
		}
		payload, by, perr := h.prover.Statement(b, "gitCommit", id)
		if perr != nil {
			err = perr
			continue
		}
		var st statement
		if err := json.Unmarshal(payload, &st); err != nil {
			return match{}, st, errors.New("the statement does not parse")
		}
		if st.Type != "https://in-toto.io/Statement/v1" || st.PredicateType != predicateType {
			return match{}, st, fmt.Errorf("the statement is of type %s", clip(st.PredicateType))
		}
		m := h.certified(by)
		return m, st, inWindow("signer "+h.Name, h.NotBefore, h.NotAfter, moment{"when the statement was signed", m.time})
	}
	return match{}, statement{}, err
}

// document returns whose SSH key signed a document for a namespace.
func (k keyring) document(namespace string, message, armored []byte, now time.Time) (m match, err error) {
	defer func() { // the parsers are not ours
		if recover() != nil {
			m, err = match{}, because("sign it again", "the signature cannot be parsed")
		}
	}()
	signers := make([]Signer, len(k.signers))
	for i, h := range k.signers {
		signers[i] = h.Signer
	}
	return verifyDocument(namespace, signers, message, armored, now)
}
