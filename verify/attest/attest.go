// Package attest owns the judging of what a rule requires: it brings the
// verified statements about an artifact before the judge of each requirement,
// and counts who made those that are enough.
//
// It guarantees that no statement is no evidence; that a statement counts only
// for a requirement that names its signer and whose judge reads its exact type;
// that one party counts once towards a threshold, however many keys, signatures
// or log entries it has; and that of an index either the index itself or every
// platform that is to run has what is required, a signature aside, which covers
// the platforms by hash. It refuses a requirement that no judge knows.
package attest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

const op = "verify/attest.Verify"

// Source makes the Attestor of those signers that it can judge, unless they are
// revoked. An error wrapping [verify.ErrNotApplicable] means that none of them is
// its kind. It checks all of the signers, so that a bad key is found at start-up.
type Source func([]verify.Signer, *verify.Revocations) (verify.Attestor, error)

// NewJudge makes the judge of a requirement, or returns an error that wraps
// [verify.ErrNotApplicable] where it is another's.
type NewJudge func(verify.Requirement) (verify.Judge, error)

// Factory returns a [verify.Factory] of verifiers that judge all that a rule requires.
func Factory(sources []Source, judges ...NewJudge) verify.Factory {
	return func(r verify.Rule, revoked *verify.Revocations) (verify.Verifier, error) {
		return New(r, revoked, sources, judges...)
	}
}

// Verifier judges what one rule requires. It is safe for concurrent use.
type Verifier struct {
	rule     verify.Rule
	sources  []verify.Attestor
	required []required
	now      func(context.Context) time.Time
}

type required struct {
	verify.Requirement
	judge verify.Judge
}

// New returns the Verifier of r. It refuses a signer that no source can judge,
// and a requirement without a judge.
func New(r verify.Rule, revoked *verify.Revocations, sources []Source, judges ...NewJudge) (*Verifier, error) {
	v := &Verifier{rule: r, now: verify.NewClock().In}
	for _, s := range sources {
		a, err := s(r.Signers, revoked)
		if errors.Is(err, verify.ErrNotApplicable) {
			continue
		}
		if err != nil {
			return nil, err
		}
		v.sources = append(v.sources, a)
	}
	if len(v.sources) == 0 {
		return nil, fmt.Errorf("verify/attest: nobody can judge the signers of the rule")
	}
	for _, q := range r.Require {
		j, err := judge(q, judges)
		if err != nil {
			return nil, err
		}
		v.required = append(v.required, required{q, j})
	}
	if len(v.required) == 0 {
		return nil, fmt.Errorf("verify/attest: the rule requires nothing")
	}
	return v, nil
}

func judge(q verify.Requirement, judges []NewJudge) (verify.Judge, error) {
	if q.Signature != nil {
		return signature{}, nil
	}
	for _, n := range judges {
		j, err := n(q)
		if errors.Is(err, verify.ErrNotApplicable) {
			continue
		}
		return j, err
	}
	return nil, fmt.Errorf("verify/attest: nothing judges %s", q.Name())
}

// signature is the judge of signatures: there is nothing more to say.
type signature struct{}

func (signature) Reads(typ string) bool { return typ == verify.PredicateSignature }

func (signature) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	return verify.Finding{Text: strings.Join(st.Signers, ", ")}, nil
}

// Verify implements [verify.Verifier].
func (v *Verifier) Verify(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
	e := verify.Evidence{Subject: s, Rule: v.rule.Name, Facts: map[string]any{}}
	l := &look{v: v, statements: map[digest.Digest]*statements{}}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { l.platforms, err = v.platforms(gctx, s); return err })
	g.Go(func() error { return l.at(gctx, s).err }) // each requirement begins here
	if err := g.Wait(); err != nil {
		return e, fault.Wrap(fault.Transient, op, "", err)
	}
	out := make([]outcome, len(v.required))
	g, gctx = errgroup.WithContext(ctx)
	for i, q := range v.required {
		g.Go(func() error { out[i] = l.judge(gctx, q, s); return nil })
	}
	_ = g.Wait() // the functions return nil
	var errs []error
	for i, o := range out {
		q := v.required[i]
		e.Checks = append(e.Checks, v.check(q, o))
		errs = append(errs, o.err)
		if o.err != nil {
			continue
		}
		for _, a := range o.accepted {
			e.RestsOn = append(e.RestsOn, a.st.RestsOn...)
			e.Attestations = append(e.Attestations, a.st.Digest)
			e.NotAfter = earliest(e.NotAfter, a.notAfter(q.MaxAge))
		}
		e.Facts[factsOf(q.Requirement)] = o.facts(e.Facts[factsOf(q.Requirement)])
	}
	e.RestsOn = verify.Anchors(e.RestsOn)
	slices.Sort(e.Attestations)
	e.Attestations = slices.Compact(e.Attestations)
	err := verify.Join(errs)
	if err != nil && errors.Is(err, verify.ErrMissing) {
		// Registries hide what one may not see: without the artifact itself, a lack
		// of evidence says nothing.
		if gone := v.sources[0].Exists(ctx, s); gone != nil {
			return e, fault.Wrap(fault.Transient, op, "check the credentials for the registry, and that the artifact is there", gone)
		}
	}
	return e, err
}

// platforms returns those platforms of an index that are to run, each one manifest.
func (v *Verifier) platforms(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	out, err := v.chosen(ctx, s)
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, p := range out {
		g.Go(func() error { return v.sources[0].Single(ctx, p.Subject) })
	}
	return out, g.Wait()
}

// chosen returns those platforms that an index has of those that are to run.
func (v *Verifier) chosen(ctx context.Context, s verify.Subject) ([]verify.Platform, error) {
	all, err := v.sources[0].Platforms(ctx, s)
	if err != nil || len(all) == 0 || len(s.Platforms) == 0 {
		return all, err
	}
	var out []verify.Platform
	for _, p := range all { // a runtime may take it for its own
		if p.Name == verify.AnyPlatform {
			out = append(out, p)
		}
	}
	for _, want := range s.Platforms {
		name, n := verify.ParsePlatform(want), len(out)
		for _, p := range all {
			if p.Name == name || strings.HasPrefix(p.Name, name+"/") { // a variant
				out = append(out, p)
			}
		}
		if name == "" || len(out) == n {
			return nil, fault.New(fault.Denied, op, "build it for "+want+", or take the platform out of the environment", "%s: the index has nothing for %s", s.Pinned(), want)
		}
	}
	return out, nil
}

// Fingerprint implements [verify.Fingerprinter]: of an index, what is attached to
// each platform counts too.
func (v *Verifier) Fingerprint(ctx context.Context, s verify.Subject) (digest.Digest, error) {
	subjects := []verify.Subject{s}
	if slices.ContainsFunc(v.required, func(q required) bool { return q.Signature == nil }) {
		platforms, err := v.platforms(ctx, s)
		if err != nil {
			return "", err
		}
		for _, p := range platforms {
			subjects = append(subjects, p.Subject)
		}
	}
	parts := make([]digest.Digest, len(subjects)*len(v.sources))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, sub := range subjects {
		for j, src := range v.sources {
			g.Go(func() (err error) { parts[i*len(v.sources)+j], err = src.Fingerprint(ctx, sub); return err })
		}
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	return digest.FromString(fmt.Sprint(parts)), nil
}

// look is one verification: what each manifest has is asked for once.
type look struct {
	v         *Verifier
	platforms []verify.Platform

	mu         sync.Mutex
	statements map[digest.Digest]*statements
}

type statements struct {
	once     sync.Once
	list     []verify.Statement
	rejected []verify.Rejected
	err      error
}

// at returns the statements about exactly s.
func (l *look) at(ctx context.Context, s verify.Subject) *statements {
	l.mu.Lock()
	got := l.statements[s.Digest]
	if got == nil {
		got = new(statements)
		l.statements[s.Digest] = got
	}
	l.mu.Unlock()
	got.once.Do(func() {
		for _, src := range l.v.sources {
			list, rejected, err := src.Attestations(ctx, s)
			if err != nil {
				got.err = fault.Wrap(fault.Transient, op, "", err)
				return
			}
			for _, st := range list {
				st.Name = s.Name
				got.list = append(got.list, st)
			}
			got.rejected = append(got.rejected, rejected...)
		}
	})
	return got
}

// accepted is a statement that counts.
type accepted struct {
	st      verify.Statement
	finding verify.Finding
	on      string // "image", "index" or the platform
	digest  digest.Digest
}

func (a accepted) notAfter(maxAge time.Duration) time.Time {
	end := earliest(a.st.NotAfter, a.finding.NotAfter)
	if maxAge > 0 {
		end = earliest(end, a.st.Time.Add(maxAge))
	}
	return end
}

// earliest returns the earlier of two times of which zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// outcome is what came of one requirement.
type outcome struct {
	accepted []accepted
	tried    []verify.Tried
	err      error
}

// judge judges one requirement: on the artifact itself, or else on each platform
// of an index.
func (l *look) judge(ctx context.Context, q required, s verify.Subject) outcome {
	on := "image"
	if len(l.platforms) > 0 {
		on = "index"
	}
	whole := l.on(ctx, q, s, on)
	switch {
	case whole.err == nil, len(l.platforms) == 0, q.Signature != nil:
		return whole
	case errors.Is(whole.err, verify.ErrContradicts), errors.Is(whole.err, verify.ErrRevoked), fault.KindOf(whole.err) == fault.Transient:
		return whole // what is said of all platforms, or not known
	}
	parts := make([]outcome, len(l.platforms))
	var g errgroup.Group
	g.SetLimit(8)
	for i, p := range l.platforms {
		g.Go(func() error { parts[i] = l.on(ctx, q, p.Subject, p.Name); return nil })
	}
	_ = g.Wait() // the functions return nil
	out := outcome{tried: whole.tried}
	var errs []error
	for _, p := range parts {
		out.accepted, out.tried = append(out.accepted, p.accepted...), append(out.tried, p.tried...)
		errs = append(errs, p.err)
	}
	if out.err = verify.Join(errs); out.err != nil && !errors.Is(whole.err, verify.ErrMissing) {
		out.err = verify.Join([]error{whole.err, out.err})
	}
	return out
}

// on judges one requirement on exactly s.
func (l *look) on(ctx context.Context, q required, s verify.Subject, on string) outcome {
	all := l.at(ctx, s)
	if all.err != nil {
		return outcome{err: all.err}
	}
	var out outcome
	var wrong, revoked []error
	no := func(where, what string, err error) {
		if errors.Is(err, verify.ErrOther) || what != "" && !q.judge.Reads(what) {
			return // somebody else's business
		}
		out.tried = append(out.tried, verify.Tried{Where: verify.Brief(where), What: verify.Brief(what), Why: verify.Brief(err.Error())})
		switch {
		case errors.Is(err, verify.ErrRevoked):
			revoked = append(revoked, err)
		default:
			wrong = append(wrong, err)
		}
	}
	for _, r := range all.rejected {
		no(r.Where, r.PredicateType, r.Reason)
	}
	now := l.v.now(ctx)
	var counted []accepted
	for _, st := range newest(q.judge, all.list) {
		f, err := q.accept(st, s.Digest, now)
		if err != nil {
			no(st.Where, st.PredicateType, fmt.Errorf("by %s: %w", strings.Join(st.Signers, ", "), err))
			continue
		}
		f.Text = verify.Brief(f.Text)
		out.tried = append(out.tried, verify.Tried{Where: verify.Brief(st.Where), What: verify.Brief(st.PredicateType), Found: f.Text})
		counted = append(counted, accepted{st, f, on, s.Digest})
	}
	n := parties(q.Signers, counted)
	contradicted := slices.ContainsFunc(wrong, func(err error) bool { return errors.Is(err, verify.ErrContradicts) })
	if n >= q.Need() && !contradicted {
		out.accepted = counted
		return out
	}
	out.err = l.v.refuse(q, s, n, wrong, revoked)
	return out
}

// accept judges one statement.
func (q required) accept(st verify.Statement, d digest.Digest, now time.Time) (verify.Finding, error) {
	switch {
	case !q.judge.Reads(st.PredicateType):
		return verify.Finding{}, fmt.Errorf("%s is something else", st.PredicateType)
	case st.Subject != d:
		return verify.Finding{}, fmt.Errorf("it is about %s", st.Subject)
	case !slices.ContainsFunc(st.Signers, func(s string) bool { return slices.Contains(q.Signers, s) }):
		return verify.Finding{}, fmt.Errorf("they may not sign this")
	case q.MaxAge > 0 && st.Time.IsZero():
		return verify.Finding{}, fmt.Errorf("nothing proves when it was signed, and it may be %s old", q.MaxAge)
	case q.MaxAge > 0 && now.Sub(st.Time) > q.MaxAge:
		return verify.Finding{}, fmt.Errorf("it was signed %s, more than %s ago", st.Time.Format(time.RFC3339), q.MaxAge)
	}
	f, err := guarded(q.judge, st, now)
	if err == nil && q.MaxAge > 0 && !f.Made.IsZero() && now.Sub(f.Made) > q.MaxAge { // stamped anew, it is no younger
		return f, fmt.Errorf("it was made %s, more than %s ago", f.Made.Format(time.RFC3339), q.MaxAge)
	}
	return f, err
}

// guarded makes a panic in a judge a refusal of that one statement.
func guarded(j verify.Judge, st verify.Statement, now time.Time) (f verify.Finding, err error) {
	defer func() {
		if r := recover(); r != nil {
			f, err = verify.Finding{}, fmt.Errorf("malformed: %v", r)
		}
	}()
	return j.Judge(st, now)
}

// newest leaves out what the same party has replaced, where the judge says that
// only its newest statement of a series counts. A statement without a proven time
// is older than one with.
func newest(j verify.Judge, list []verify.Statement) []verify.Statement {
	if _, ok := j.(verify.Superseding); !ok {
		return list
	}
	type series struct{ party, name string }
	type entry struct {
		of       series
		at, made time.Time
	}
	older := func(a, b entry) bool { return cmp.Or(a.at.Compare(b.at), a.made.Compare(b.made)) < 0 }
	entries, best := make([]entry, len(list)), map[series]entry{} // zero: of no series
	for i, st := range list {
		if !j.Reads(st.PredicateType) {
			continue
		}
		f, _ := guarded(j, st, time.Time{}) // when it was made, it says also when it is not enough
		if st.Certificate == nil && f.Made.IsZero() && !st.Time.IsZero() {
			continue // whoever may push can have an old signature by a key stamped anew: nothing is newer than it
		}
		e := entry{of: series{st.Party, f.Series}, at: st.Time, made: f.Made}
		if !e.made.IsZero() && e.made.Before(e.at) {
			e.at = e.made
		}
		entries[i] = e
		if b, ok := best[e.of]; !ok || older(b, e) {
			best[e.of] = e
		}
	}
	var out []verify.Statement
	for i, st := range list {
		if !j.Reads(st.PredicateType) || !older(entries[i], best[entries[i].of]) {
			out = append(out, st)
		}
	}
	return out
}

// parties counts distinct parties among those who made statements: each named
// signer counts once, and so does whoever is behind several of the statements, by
// the same key or identity, or by the same builder.
func parties(names []string, all []accepted) int {
	// Statements that share a party are one group.
	group := make([]int, len(all))
	for i := range all {
		group[i] = i
	}
	for i := range all {
		for j := range i {
			same := all[i].st.Party == all[j].st.Party || all[i].finding.Party != "" && all[i].finding.Party == all[j].finding.Party
			if !same || group[i] == group[j] {
				continue
			}
			from, to := group[i], group[j]
			for k := range group {
				if group[k] == from {
					group[k] = to
				}
			}
		}
	}
	signs := map[string][]int{} // groups, by the name of the signer
	for i, a := range all {
		for _, name := range a.st.Signers {
			signs[name] = append(signs[name], group[i])
		}
	}
	// The largest pairing of names with groups (augmenting paths).
	by := map[int]string{}
	var pair func(name string, seen map[int]bool) bool
	pair = func(name string, seen map[int]bool) bool {
		for _, g := range signs[name] {
			if seen[g] {
				continue
			}
			seen[g] = true
			if other, taken := by[g]; !taken || pair(other, seen) {
				by[g] = name
				return true
			}
		}
		return false
	}
	n := 0
	for _, name := range names {
		if pair(name, map[int]bool{}) {
			n++
		}
	}
	return n
}

// refuse returns the error of a requirement that n of the needed parties met:
// something is revoked, something is wrong, or it is not there yet.
func (v *Verifier) refuse(q required, s verify.Subject, n int, wrong, revoked []error) error {
	none := fmt.Sprintf("no %s by a trusted identity", what(q.Requirement))
	switch {
	case n >= q.Need():
		none = fmt.Sprintf("one %s contradicts another", what(q.Requirement))
	case n > 0:
		none = fmt.Sprintf("only %d of %d distinct signers made a good %s", n, q.Need(), what(q.Requirement))
	}
	switch {
	case len(revoked) > 0:
		return fault.New(fault.Denied, op, cmp.Or(fault.HintOf(revoked[0]), hint(q.Requirement)), "%s: %s: %w", s.Pinned(), none, verify.BriefError(revoked[0]))
	case len(wrong) > 0:
		return fault.New(fault.Denied, op, hint(q.Requirement), "%s: %s: %w", s.Pinned(), none, verify.Reasons(wrong))
	default:
		return fault.New(fault.Waiting, op, hint(q.Requirement), "%s: %s: %w", s.Pinned(), none, verify.ErrMissing)
	}
}

// what names a requirement in a sentence.
func what(q verify.Requirement) string {
	switch {
	case q.Signature != nil:
		return "signature"
	case q.SBOM != nil:
		return "SBOM attestation"
	default:
		return q.Name() + " attestation"
	}
}

func hint(q verify.Requirement) string {
	switch {
	case q.Signature != nil:
		return "sign it in CI, or add the signer under trust: in holdfast.yaml"
	case q.SBOM != nil:
		return "attest an SBOM in CI: cosign attest --type spdxjson or cyclonedx"
	default:
		return "attest " + q.Name() + " in CI, or change the rule under trust: in holdfast.yaml"
	}
}

// check is the report of one requirement.
func (v *Verifier) check(q required, o outcome) verify.Check {
	c := verify.Check{Name: q.Name(), Asked: q.Source, OK: o.err == nil, Tried: bounded(o.tried), Next: fault.HintOf(o.err)}
	c.Want = article(what(q.Requirement)) + " by " + v.rule.Names(q.Requirement)
	if q.Need() > 1 {
		c.Want = fmt.Sprintf("%ss by %d distinct of: %s", what(q.Requirement), q.Need(), strings.ReplaceAll(v.rule.Names(q.Requirement), " or ", "; "))
	}
	if o.err != nil {
		if c.Found = "nothing"; len(o.tried) > 0 {
			c.Found = fmt.Sprintf("%d candidates: %s", len(o.tried), o.err)
		}
		return c
	}
	var found []string
	var anchors []verify.Anchor
	for _, a := range o.accepted {
		text := a.finding.Text
		if a.on != "image" {
			text += ", on the " + a.on
		}
		found = append(found, text)
		anchors = append(anchors, a.st.RestsOn...)
	}
	slices.Sort(found)
	c.Found = strings.Join(slices.Compact(found), "; ")
	var names []string
	for _, a := range verify.Anchors(anchors) {
		names = append(names, a.String())
	}
	c.Detail = strings.Join(names, "\n")
	return c
}

func article(what string) string {
	if strings.ContainsRune("aeiou", rune(strings.ToLower(what)[0])) || strings.HasPrefix(what, "SBOM") {
		return "an " + what
	}
	return "a " + what
}

// bounded keeps a report readable when someone pushed many bad candidates.
func bounded(tried []verify.Tried) []verify.Tried {
	const most = 16
	out := slices.Clone(tried[:min(len(tried), most)])
	if len(tried) > most {
		out = append(out, verify.Tried{Where: fmt.Sprintf("and %d more", len(tried)-most)})
	}
	return out
}

// factsOf is the key of the facts of a requirement.
func factsOf(q verify.Requirement) string {
	base, _, _ := strings.Cut(q.Name(), " ")
	switch base {
	case verify.NameProvenance, verify.NameVulnerabilities, verify.NameSCAI:
		return base
	default:
		return base + "s"
	}
}

// facts lists what was accepted behind what is there already: {signers, digest,
// on, layout, time} and what the judge adds.
func (o outcome) facts(before any) []any {
	list, _ := before.([]any)
	for _, a := range o.accepted {
		f := map[string]any{
			"signer": strings.Join(a.st.Signers, ", "), "digest": a.digest.String(), "on": a.on, "layout": a.st.Layout,
			"predicateType": a.st.PredicateType,
		}
		if !a.st.Time.IsZero() {
			f["time"] = a.st.Time.UTC().Format(time.RFC3339)
		}
		for k, x := range a.finding.Facts {
			f[k] = x
		}
		list = append(list, f)
	}
	return list
}
