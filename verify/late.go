package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Evidence that is late: build systems push first and sign seconds later. What
// is missing is waited for during a bounded grace, then denied; a denied
// artifact is looked at again when its fingerprint changes.

// maxSights bounds the memory of first sights. Forgetting one only lets a
// waiting begin anew.
const maxSights = 8192

// sights remembers when artifacts that have not verified were first seen under
// a rule. The times carry the monotonic clock, so setting the wall clock makes a
// waiting neither longer nor shorter.
type sights struct {
	mu    sync.Mutex
	first map[cacheKey]time.Time
	order []cacheKey                 // insertion order, for eviction
	kept  map[cacheKey]*rate.Limiter // how often inputs of a refusal may be kept
}

// see returns the first sight of key, which is now if there was none.
func (s *sights) see(key cacheKey, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.first[key]; ok {
		return t
	}
	if s.first == nil {
		s.first = map[cacheKey]time.Time{}
	}
	s.first[key] = now
	s.order = append(s.order, key)
	for len(s.order) > maxSights {
		delete(s.first, s.order[0])
		s.order = s.order[1:]
	}
	return now
}

// Whoever may push to a registry can have an artifact looked at again at any time, so
// what is kept of the refusals of one is bounded: keepBurst at once, as each look may
// ask in another order, then one every keepEvery.
const (
	keepEvery = 5 * time.Minute
	keepBurst = 4
)

// more reports whether the inputs of one more refusal of key may be kept.
func (s *sights) more(key cacheKey, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.kept[key]
	if !ok {
		if s.kept == nil || len(s.kept) >= maxSights {
			s.kept = map[cacheKey]*rate.Limiter{}
		}
		l = rate.NewLimiter(rate.Every(keepEvery), keepBurst)
		s.kept[key] = l
	}
	return l.AllowN(now, 1)
}

// forget ends the waiting for key.
func (s *sights) forget(key cacheKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.first, key)
}

// late decides what err, the outcome of a verification that began at seen,
// means in env. Missing evidence is waited for until the grace has passed since
// the first sight of the artifact.
func (s *Set) late(env string, key cacheKey, seen time.Time, err error) error {
	first := s.sights.see(key, seen)
	if fault.KindOf(err) != fault.Waiting || !errors.Is(err, ErrMissing) {
		return err
	}
	var grace time.Duration
	if s.grace != nil {
		grace = s.grace(env)
	}
	out := &fault.Error{Op: op, Kind: fault.Denied, Hint: fault.HintOf(err)}
	switch {
	case time.Since(first) < grace:
		out.Kind = fault.Waiting
		out.Err = fmt.Errorf("%w; it is waited for until %s", err, stamp(first.Add(grace)))
	case grace > 0:
		out.Err = fmt.Errorf("%w; it was waited for since %s", err, stamp(first))
	default:
		out.Err = err
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Fingerprint returns a digest over everything that a new verification of
// subjects in env would look at: what the tags stand for, and the lists of the
// evidence. It is equal for as long as nothing changed, whatever the order of
// subjects. It costs a few small requests for each artifact and proves nothing.
// All errors are fault.Transient.
func (s *Set) Fingerprint(ctx context.Context, env string, subjects []Subject) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyBudget)
	defer cancel()
	unique := dedupe(subjects)
	parts := make([]string, len(unique))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, sub := range unique {
		g.Go(func() (err error) {
			parts[i], err = s.fingerprint(ctx, env, sub)
			return at(sub, err)
		})
	}
	if err := g.Wait(); err != nil {
		return "", &fault.Error{Op: op, Kind: fault.Transient, Hint: fault.HintOf(err), Err: err}
	}
	slices.Sort(parts)
	return fingerprintOf(parts), nil
}

// fingerprint is one subject's part. As in [Set.one], no host is asked that no
// rule names.
func (s *Set) fingerprint(ctx context.Context, env string, sub Subject) (string, error) {
	parts := []string{sub.Kind, sub.Reference}
	named, err := s.resolver.Parse(sub)
	if err != nil {
		return fingerprintOf(append(parts, "not a reference")).String(), nil //nolint:nilerr // it stays what it is
	}
	rule, ok := s.rule(env, named)
	if !ok {
		return fingerprintOf(append(parts, "no rule")).String(), nil
	}
	peeked, err := s.resolver.Peek(ctx, sub)
	if fault.KindOf(err) == fault.Waiting {
		return fingerprintOf(append(parts, "no such artifact")).String(), nil
	}
	if err != nil {
		return "", err
	}
	parts = append(parts, rule.digest.String(), peeked.Pinned())
	for _, v := range rule.verifiers {
		f, ok := v.(Fingerprinter)
		if !ok {
			continue
		}
		d, err := f.Fingerprint(ctx, peeked)
		if err != nil {
			return "", err
		}
		parts = append(parts, d.String())
	}
	return fingerprintOf(parts).String(), nil
}

// fingerprintOf binds parts, in their order.
func fingerprintOf(parts []string) digest.Digest {
	b, err := json.Marshal(parts)
	if err != nil { // strings always marshal
		panic("verify: strings are not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}
