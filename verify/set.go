package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	parallel     = 128             // subjects looked at at once in one call
	maxCached    = 8192            // entries; an entry is about 1 KiB
	verifyBudget = 2 * time.Minute // for one digest, network included
	op           = "verify.Set"
)

// Factory makes the verifier of one rule. It checks all of the rule that
// concerns it, so that a bad key is found at start-up. The verifier MUST ask the
// revocations about each signer before it counts a signature. An error wrapping
// [ErrNotApplicable] means that the rule asks nothing of this kind of verifier.
type Factory func(Rule, *Revocations) (Verifier, error)

// Config says what a [Set] trusts. All but Grace is required.
type Config struct {
	Rules    []Rule
	Resolver Resolver
	// Revocations may grow at any time; what is added counts at once, for what
	// was verified before too.
	Revocations *Revocations
	// Grace is how long evidence that is missing is waited for in an
	// environment, from the first sight of the artifact. Nil, and a duration that
	// is not positive, mean not at all.
	Grace func(environment string) time.Duration
	// Platforms are those of an index that are to run in an environment. Nil, and
	// an empty list, mean all.
	Platforms func(environment string) []string
	// Keep keeps what each verdict was reached with, so that it can be replayed, and
	// Trust is the document there that the rules and exceptions came from. Nil is
	// nowhere.
	Keep  Keeper
	Trust digest.Digest
	// Exceptions returns what people except for a while, as of now: whose
	// signature is revoked excepts nothing any more. Nil is none.
	Exceptions func() []Exception
}

// Set decides which rule applies to a subject and runs that rule's verifiers.
// It is safe for concurrent use.
//
// The rule that applies is the most specific one whose kind, environment and
// one repository pattern match. More specific means, in this order: the
// matching pattern has more literal segments; fewer "**"; more "*"; the rule
// names its environments; it comes first in the file. Exactly one rule applies:
// a subject that fails it is not tried against the next.
type Set struct {
	rules       []compiled
	resolver    Resolver
	revocations *Revocations
	grace       func(string) time.Duration
	platforms   func(string) []string
	exceptions  func() []Exception
	clock       Clock
	sights      sights
	keep        Keeper
	trust       digest.Digest

	flight singleflight.Group
	mu     sync.Mutex
	cache  map[cacheKey]Evidence
	order  []cacheKey                      // insertion order, for eviction
	kept   map[digest.Digest]digest.Digest // documents of inputs, by Inputs.Same
}

// checkVerification is the check of a verifier that failed without saying where.
const checkVerification = "verification"

type compiled struct {
	rule      Rule
	digest    digest.Digest
	patterns  []pattern
	verifiers []Verifier
}

// cacheKey has a name in it only where one is compared: evidence is about content.
type cacheKey struct {
	subject, rule   digest.Digest
	platforms, name string
}

// NewSet returns a Set over the rules of conf. It refuses to be built without a
// resolver, revocations or a factory, with two rules of one name, with a rule
// that names no identity, and with a rule that no factory has a verifier for.
func NewSet(conf Config, factories ...Factory) (*Set, error) {
	switch {
	case conf.Resolver == nil:
		return nil, errors.New("verify: no resolver configured")
	case conf.Revocations == nil:
		return nil, errors.New("verify: no revocations configured")
	case len(factories) == 0:
		return nil, errors.New("verify: no verifier configured")
	}
	s := &Set{resolver: conf.Resolver, revocations: conf.Revocations, grace: conf.Grace, platforms: conf.Platforms,
		exceptions: conf.Exceptions, keep: conf.Keep, trust: conf.Trust, clock: NewClock(), cache: map[cacheKey]Evidence{}, kept: map[digest.Digest]digest.Digest{}}
	names := map[string]bool{}
	for _, r := range conf.Rules {
		if err := r.validate(); err != nil {
			return nil, err
		}
		if names[r.Name] {
			return nil, ruleError(r, "give each rule its own name", "the name is used twice")
		}
		names[r.Name] = true
		c, err := compile(r, conf.Revocations, factories)
		if err != nil {
			return nil, err
		}
		s.rules = append(s.rules, c)
	}
	return s, nil
}

func compile(r Rule, revoked *Revocations, factories []Factory) (compiled, error) {
	c := compiled{rule: r, digest: r.Digest()}
	for _, p := range r.Repositories {
		parsed, err := parsePattern(p)
		if err != nil {
			return c, err
		}
		c.patterns = append(c.patterns, parsed)
	}
	for _, f := range factories {
		v, err := f(r, revoked)
		switch {
		case errors.Is(err, ErrNotApplicable):
		case err != nil:
			return c, fault.Wrap(fault.Invalid, ruleOp, "", fmt.Errorf("trust rule %q: %w", r.Name, err))
		case v == nil:
			return c, fmt.Errorf("verify: trust rule %q: a factory returned no verifier and no error", r.Name)
		default:
			c.verifiers = append(c.verifiers, v)
		}
	}
	if len(c.verifiers) == 0 {
		return c, fmt.Errorf("verify: trust rule %q: no verifier configured", r.Name)
	}
	return c, nil
}

// Verify resolves and verifies subjects for environment env. It returns the
// report in the order of subjects, what was looked at before a failure
// included, and the resolved subject for each reference. The error joins all
// failures; the map is usable only without one. Its kind is that of the most
// stubborn failure: Denied and Invalid outrank Transient, which might go away.
// Evidence that is missing is Waiting during its grace, see [Config].
func (s *Set) Verify(ctx context.Context, env string, subjects []Subject) (Report, map[string]Subject, error) {
	unique := dedupe(subjects)
	evidence := make([]Evidence, len(unique))
	errs := make([]error, len(unique))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, sub := range unique {
		g.Go(func() error {
			evidence[i], errs[i] = s.one(ctx, env, sub)
			return nil // all failures are collected, none cancels the others
		})
	}
	_ = g.Wait() // the functions return nil

	pins := make(map[string]Subject, len(unique))
	for i := range unique {
		if errs[i] == nil {
			pins[unique[i].Reference] = evidence[i].Subject
		}
	}
	return Report{Environment: env, Evidence: evidence}, pins, Join(errs)
}

// dedupe merges subjects of one kind and reference, so that each is resolved once.
func dedupe(subjects []Subject) []Subject {
	type key struct{ kind, ref string }
	at := map[key]int{}
	var out []Subject
	for _, sub := range subjects {
		k := key{sub.Kind, sub.Reference}
		if i, ok := at[k]; ok {
			out[i].Locations = append(slices.Clip(out[i].Locations), sub.Locations...)
			continue
		}
		at[k] = len(out)
		out = append(out, sub)
	}
	return out
}

// Join returns nil if errs has only nil errors. The joined error is classified,
// because errors.Join alone would hide all kinds but the first: its kind is that of
// the most stubborn, Denied and Invalid before Transient before Waiting.
func Join(errs []error) error {
	var found []error
	var worst error
	for _, err := range errs {
		if err == nil {
			continue
		}
		found = append(found, err)
		if worst == nil || stubborn(fault.KindOf(err)) > stubborn(fault.KindOf(worst)) {
			worst = err
		}
	}
	switch len(found) {
	case 0:
		return nil
	case 1:
		return found[0]
	}
	return &fault.Error{Op: op, Kind: fault.KindOf(worst), Hint: fault.HintOf(worst), Err: errors.Join(found...)}
}

// stubborn ranks Transient above Waiting: with a registry that fails, it is not
// known yet what is missing.
func stubborn(k fault.Kind) int {
	switch k {
	case fault.Denied:
		return 4
	case fault.Invalid:
		return 3
	case fault.Internal:
		return 2
	case fault.Transient:
		return 1
	default:
		return 0
	}
}

// one finds the rule before anything is asked over the network: a reference must
// not make the daemon talk to a host that no rule names.
func (s *Set) one(ctx context.Context, env string, sub Subject) (Evidence, error) {
	named, err := s.resolver.Parse(sub)
	if err != nil {
		return Evidence{Subject: sub}, at(sub, fault.Wrap(fault.Invalid, op, "", err))
	}
	rule, ok := s.rule(env, named)
	if !ok {
		return Evidence{Subject: named}, at(sub, fault.New(fault.Denied, op,
			"add a rule for "+named.Name+" under trust: in holdfast.yaml",
			"no trust rule for %s %s in environment %q", named.Kind, named.Name, env))
	}
	seen := time.Now()
	resolved, err := s.resolver.Resolve(ctx, sub)
	if err != nil {
		return Evidence{Subject: named, Rule: rule.rule.Name}, at(sub, fault.Wrap(fault.Transient, op, "", err))
	}
	if resolved.Name != named.Name || resolved.Digest.Validate() != nil {
		return Evidence{Subject: sub}, fault.New(fault.Internal, op, "", "%s: the resolver returned no digest, or another name", sub.Reference)
	}
	if s.platforms != nil {
		resolved.Platforms = s.platforms(env)
	}
	e, err := s.cached(ctx, rule, resolved)
	e.Subject, e.Rule = resolved, rule.rule.Name
	if err == nil {
		s.sights.forget(rule.key(resolved))
		return e, nil
	}
	if err = s.waive(ctx, &rule.rule, env, &e, err); err != nil {
		err = s.late(env, rule.key(resolved), seen, err)
	}
	if err == nil || fault.KindOf(err) == fault.Denied {
		s.keepInputs(&e, func() bool { return err == nil || s.sights.more(rule.key(resolved), seen) })
	}
	e.inputs = nil
	return e, at(sub, err)
}

// at puts the reference, and where the repository names it, in front of err.
func at(sub Subject, err error) error {
	if err == nil {
		return nil
	}
	where := sub.Reference
	if len(sub.Locations) > 0 {
		where = sub.Locations[0] + ": " + where
	}
	return &fault.Error{Op: op, Kind: fault.KindOf(err), Hint: fault.HintOf(err), Err: fmt.Errorf("%s: %w", where, err)}
}

// rule returns the one rule that applies, see [Set].
func (s *Set) rule(env string, sub Subject) (*compiled, bool) {
	var best *compiled
	var bestPattern pattern
	for i := range s.rules {
		c := &s.rules[i]
		p, ok := c.match(env, sub)
		if !ok {
			continue
		}
		if best == nil || c.before(p, best, bestPattern) {
			best, bestPattern = c, p
		}
	}
	return best, best != nil
}

// match returns the rule's most specific pattern that matches.
func (c *compiled) match(env string, sub Subject) (best pattern, ok bool) {
	if c.rule.Kind != sub.Kind {
		return nil, false
	}
	if len(c.rule.Environments) > 0 && !slices.Contains(c.rule.Environments, env) {
		return nil, false
	}
	for _, p := range c.patterns {
		if p.match(sub.Name) && (best == nil || p.moreSpecific(best)) {
			best = p
		}
	}
	return best, best != nil
}

// before reports whether c, matching by p, goes before d, which comes earlier in the file.
func (c *compiled) before(p pattern, d *compiled, q pattern) bool {
	if p.moreSpecific(q) || q.moreSpecific(p) {
		return p.moreSpecific(q)
	}
	return len(c.rule.Environments) > 0 && len(d.rule.Environments) == 0
}

// key is where the evidence for sub under c is kept.
func (c *compiled) key(sub Subject) cacheKey {
	k := cacheKey{subject: sub.Digest, rule: c.digest, platforms: strings.Join(sub.Platforms, ",")}
	if slices.ContainsFunc(c.rule.Require, Requirement.comparesName) {
		k.name = sub.Name
	}
	if kind, _ := KindOf(sub.Kind); kind.Named != nil {
		k.name = sub.Reference
	}
	return k
}

// cached returns the evidence for sub under c, at most one verification of a
// digest and rule running at a time. Only success is kept: evidence that is
// missing may arrive at any moment.
func (s *Set) cached(ctx context.Context, c *compiled, sub Subject) (Evidence, error) {
	for {
		epoch := s.revocations.Epoch()
		if err := s.revocations.Check(digestAnchor(sub)); err != nil {
			return Evidence{Checks: []Check{{Name: "revocation", Found: err.Error(), Want: "an artifact that nobody revoked"}}}, err
		}
		if e, ok := s.lookup(c.key(sub)); ok {
			return e, nil
		}
		e, err := s.share(ctx, c, sub, epoch)
		// What was looked at while something was revoked may rest on it: it is
		// looked at again, whatever came of it.
		if s.revocations.Epoch() == epoch {
			return e, err
		}
	}
}

func digestAnchor(s Subject) Anchor { return Anchor{Kind: AnchorDigest, Value: s.Digest.String()} }

// share verifies sub under c, or waits for the same verification that another
// caller began under the same revocations.
func (s *Set) share(ctx context.Context, c *compiled, sub Subject, epoch int) (Evidence, error) {
	type result struct {
		evidence Evidence
		err      error
	}
	// The repository is part of the flight's key, not of the cache's: a
	// failure in one repository says nothing about a copy in another.
	flight := fmt.Sprintf("%s@%s %s %d %q %q", sub.Name, sub.Digest, c.digest, epoch, sub.Platforms, c.key(sub).name)
	ch := s.flight.DoChan(flight, func() (any, error) {
		// Others may wait for this result, so the first caller's
		// cancellation does not end it; the budget does.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyBudget)
		defer cancel()
		e, err := s.recorded(ctx, c, sub)
		if err == nil {
			err = s.revocations.Check(e.RestsOn...)
		}
		if err == nil && s.revocations.Epoch() == epoch {
			s.keepInputs(&e, func() bool { return true })
			s.store(c.key(sub), e)
		}
		return result{e, err}, nil
	})
	select {
	case r := <-ch:
		got := r.Val.(result)
		return got.evidence.clone(), got.err
	case <-ctx.Done():
		return Evidence{}, fault.Wrap(fault.Transient, op, "", ctx.Err())
	}
}

// recorded verifies sub under c, and notes what that was done with.
func (s *Set) recorded(ctx context.Context, c *compiled, sub Subject) (Evidence, error) {
	if s.keep == nil {
		return c.verify(ctx, sub)
	}
	in := Inputs{Subject: sub, Time: s.clock.In(ctx), Trust: s.trust, Revocations: s.revocations.List()}
	in.Subject.Locations = nil
	answers := NewAnswers()
	e, err := c.verify(Collect(ctx, answers), sub)
	in = answers.Complete(in)
	e.inputs = &in
	return e, err
}

// keepInputs keeps what a verdict was reached with, where it is kept already or more
// more allows it. What is waited for, or not known, is no verdict.
func (s *Set) keepInputs(e *Evidence, more func() bool) {
	if e.inputs == nil {
		return
	}
	same := e.inputs.Same(e.Checks)
	s.mu.Lock()
	e.Inputs = s.kept[same]
	s.mu.Unlock()
	if e.Inputs == "" && more() {
		e.Inputs = s.keep(*e.inputs)
		s.mu.Lock()
		if len(s.kept) >= maxCached {
			clear(s.kept) // they are kept once more, which does no harm
		}
		s.kept[same] = e.Inputs
		s.mu.Unlock()
	}
	e.inputs = nil
}

// verify runs all verifiers of the rule side by side and merges what they
// found. Zero checks are a denial.
func (c *compiled) verify(ctx context.Context, sub Subject) (Evidence, error) {
	found := make([]Evidence, len(c.verifiers))
	errs := make([]error, len(c.verifiers))
	var g errgroup.Group
	for i, v := range c.verifiers {
		g.Go(func() error {
			found[i], errs[i] = guarded(ctx, v, sub)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil

	out := Evidence{Subject: sub, Rule: c.rule.Name, Facts: map[string]any{}, RestsOn: []Anchor{digestAnchor(sub)}}
	for i, e := range found {
		if errors.Is(errs[i], ErrNotApplicable) {
			errs[i] = nil
			continue
		}
		if errs[i] == nil && !e.Verified() {
			errs[i] = fault.New(fault.Denied, op, "", "%s: a verifier checked nothing or reports a failed check", sub.Pinned())
		}
		if errs[i] != nil && !slices.ContainsFunc(e.Checks, func(c Check) bool { return !c.OK }) { // it failed without saying where
			e.Checks = append(e.Checks, Check{Name: checkVerification, Found: Brief(errs[i].Error()), Next: fault.HintOf(errs[i])})
		}
		out.Checks = append(out.Checks, e.Checks...)
		out.RestsOn = append(out.RestsOn, e.RestsOn...)
		out.Attestations = append(out.Attestations, e.Attestations...)
		maps.Copy(out.Facts, e.Facts)
		if out.NotAfter.IsZero() || (!e.NotAfter.IsZero() && e.NotAfter.Before(out.NotAfter)) {
			out.NotAfter = e.NotAfter
		}
	}
	out.RestsOn = Anchors(out.RestsOn)
	if err := Join(errs); err != nil {
		return out, err
	}
	if !out.Verified() {
		return out, fault.New(fault.Denied, op, "", "%s: no verifier applies to it", sub.Pinned())
	}
	return out, nil
}

// guarded turns a panic into a refusal: a verifier reads bytes that anyone with
// push rights chose.
func guarded(ctx context.Context, v Verifier, sub Subject) (e Evidence, err error) {
	defer func() {
		if r := recover(); r != nil {
			e, err = Evidence{}, fault.New(fault.Denied, op, "report this as a bug, with the image", "%s: a verifier panicked: %v", sub.Pinned(), r)
		}
	}()
	return v.Verify(ctx, sub)
}

func (s *Set) lookup(key cacheKey) (Evidence, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.cache[key]
	if !ok || (!e.NotAfter.IsZero() && !s.clock.Now().Before(e.NotAfter)) || s.revocations.Check(e.RestsOn...) != nil {
		return Evidence{}, false
	}
	return e.clone(), true
}

// Clock is a wall clock that never runs back while the process lives: setting the
// machine's back makes nothing valid again (invariant 13).
type Clock struct{ started time.Time }

// NewClock returns a Clock that goes from now on.
func NewClock() Clock { return Clock{time.Now()} }

// Now returns the time of the wall clock, but never less than what has passed
// since the start.
func (c Clock) Now() time.Time {
	passed := c.started.Add(time.Since(c.started)).Round(0)
	if wall := time.Now().Round(0); wall.After(passed) {
		return wall
	}
	return passed
}

func (s *Set) store(key cacheKey, e Evidence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.cache[key]; !ok {
		s.order = append(s.order, key)
	}
	s.cache[key] = e.clone()
	for len(s.order) > maxCached {
		delete(s.cache, s.order[0])
		s.order = s.order[1:]
	}
}

// clone copies what callers might change. The values of Facts are never changed.
func (e Evidence) clone() Evidence {
	e.Checks = slices.Clone(e.Checks)
	e.Facts = maps.Clone(e.Facts)
	e.RestsOn = slices.Clone(e.RestsOn)
	return e
}
