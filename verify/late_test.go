package verify_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

func newSet(t *testing.T, c verify.Config, fs ...verify.Factory) *verify.Set {
	t.Helper()
	set, err := verify.NewSet(c, fs...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// missing is the error of a verifier that found nothing.
func missing(s verify.Subject) error {
	return fault.New(fault.Waiting, "test", "sign it", "%s: no signature: %w", s.Reference, verify.ErrMissing)
}

// try verifies one image and requires an error of kind want whose text has all
// of texts, or none for kind -1.
func try(t *testing.T, set *verify.Set, env, ref string, want fault.Kind, texts ...string) {
	t.Helper()
	_, _, err := set.Verify(t.Context(), env, []verify.Subject{image(ref)})
	if want < 0 {
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		return
	}
	if err == nil || fault.KindOf(err) != want || fault.HintOf(err) == "" {
		t.Errorf("%s: %v (%v), want %v", ref, err, fault.KindOf(err), want)
	}
	for _, text := range texts {
		if !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%s: %v does not say %q", ref, err, text)
		}
	}
}

const accepted fault.Kind = -1

func TestMissingEvidenceIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		signed := false
		conf := config(rule("r", "ghcr.io/**"))
		conf.Grace = func(env string) time.Duration {
			return map[string]time.Duration{"production": 10 * time.Minute, "test": time.Minute}[env]
		}
		set := newSet(t, conf, factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
			if signed {
				e, err := accepts(ctx, s)
				e.NotAfter = time.Now().Add(time.Second)
				return e, err
			}
			return verify.Evidence{}, missing(s)
		}))
		const ref = "ghcr.io/a:1"
		stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
		first := time.Now()
		try(t, set, "production", ref, fault.Waiting, "waited for until "+stamp(first.Add(10*time.Minute)))
		try(t, set, "no grace", ref, fault.Denied, "no signature")
		time.Sleep(time.Minute)
		try(t, set, "test", ref, fault.Denied, "waited for since "+stamp(first)) // another environment's grace, one first sight
		// A copy in another repository is the same artifact, and gets no more time.
		try(t, set, "production", "ghcr.io/b:1", fault.Waiting, "until "+stamp(first.Add(10*time.Minute)))
		time.Sleep(9*time.Minute - time.Second)
		try(t, set, "production", ref, fault.Waiting, "until "+stamp(first.Add(10*time.Minute)))
		time.Sleep(time.Second)
		try(t, set, "production", ref, fault.Denied, "waited for since "+stamp(first))
		time.Sleep(time.Hour)
		try(t, set, "production", ref, fault.Denied, "waited for since "+stamp(first))
		// It arrives, is used up, and goes: then the waiting begins anew.
		signed = true
		try(t, set, "production", ref, accepted)
		signed = false
		time.Sleep(time.Second)
		try(t, set, "production", ref, fault.Waiting, "until "+stamp(time.Now().Add(10*time.Minute)))
	})
}

func TestOnlyMissingEvidenceIsWaitedFor(t *testing.T) {
	t.Parallel()
	conf := config(rule("r", "ghcr.io/**"))
	conf.Grace = func(string) time.Duration { return time.Hour }
	wrong := func(s verify.Subject) error {
		return fault.New(fault.Denied, "test", "sign it", "%s: wrong", s.Reference)
	}
	down := func(s verify.Subject) error {
		return fault.New(fault.Transient, "test", "wait", "%s: down", s.Reference)
	}
	by := map[digest.Digest][2]func(verify.Subject) error{
		digest.FromString("missing"):          {missing, nil},
		digest.FromString("both-missing"):     {missing, missing},
		digest.FromString("wrong"):            {wrong, nil},
		digest.FromString("missing-wrong"):    {missing, wrong},
		digest.FromString("missing-down"):     {missing, down},
		digest.FromString("down-only"):        {nil, down},
		digest.FromString("wrong-and-absent"): {wrong, missing},
	}
	one := func(i int) verify.Factory {
		return factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
			if refuse := by[s.Digest][i]; refuse != nil {
				return verify.Evidence{}, refuse(s)
			}
			return accepts(ctx, s)
		})
	}
	set := newSet(t, conf, one(0), one(1))
	for tag, want := range map[string]fault.Kind{
		"missing": fault.Waiting, "both-missing": fault.Waiting, "wrong": fault.Denied, "missing-wrong": fault.Denied,
		"missing-down": fault.Transient, "down-only": fault.Transient, "wrong-and-absent": fault.Denied, "fine": accepted,
	} {
		try(t, set, "e", "ghcr.io/a:"+tag, want)
	}
	// What waits for something else than evidence has no grace that could end.
	later := fault.New(fault.Waiting, "test", "wait", "later")
	try(t, newSet(t, config(rule("r", "ghcr.io/**")), factory(func(context.Context, verify.Subject) (verify.Evidence, error) {
		return verify.Evidence{}, later
	})), "e", "ghcr.io/a:1", fault.Waiting, "later")
	// One artifact that may still come does not hide one that is wrong.
	_, _, err := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:missing"), image("ghcr.io/a:wrong")})
	if fault.KindOf(err) != fault.Denied {
		t.Errorf("one waiting and one wrong: %v", err)
	}
}

var key = verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:aa"}

func revocation(a verify.Anchor) verify.Revocation {
	return verify.Revocation{Anchor: a, Reason: "leaked", Time: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}
}

func TestRevocationEndsAHit(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	conf := config(rule("r", "ghcr.io/**"))
	set := newSet(t, conf, factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
		calls.Add(1)
		e, err := accepts(ctx, s)
		e.RestsOn = []verify.Anchor{key}
		return e, err
	}))
	try(t, set, "e", "ghcr.io/a:1", accepted)
	try(t, set, "e", "ghcr.io/a:2", accepted)
	// What has nothing to do with it is still a hit: it makes no request.
	conf.Revocations.Add(revocation(verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:bb"}))
	conf.Revocations.Add(revocation(verify.Anchor{Kind: verify.AnchorDigest, Value: strings.ToUpper(digest.FromString("2").String())}))
	try(t, set, "e", "ghcr.io/a:1", accepted)
	try(t, set, "e", "ghcr.io/a:2", fault.Denied, "was revoked on 2026-01-02: leaked")
	if calls.Load() != 2 {
		t.Errorf("verified %d times, want 2", calls.Load())
	}
	// A verifier that forgets to ask is not believed.
	conf.Revocations.Add(revocation(key))
	try(t, set, "e", "ghcr.io/a:1", fault.Denied, "key sha256:aa was revoked on 2026-01-02: leaked")
	if calls.Load() != 3 {
		t.Errorf("verified %d times, want 3: another signer may have signed", calls.Load())
	}
}

// What was begun before a revocation may have looked at the signer before it.
func TestRevocationDuringAVerification(t *testing.T) {
	t.Parallel()
	synctest.Test(t, revokeDuringAVerification) // in which a call that waits for ever fails
}

func revokeDuringAVerification(t *testing.T) {
	conf := config(rule("r", "ghcr.io/**"))
	var calls atomic.Int32
	looked, goOn := make(chan struct{}), make(chan struct{})
	set := newSet(t, conf, factory(func(ctx context.Context, s verify.Subject) (verify.Evidence, error) {
		if err := conf.Revocations.Check(key); err != nil {
			return verify.Evidence{}, err
		}
		if calls.Add(1) == 1 {
			close(looked)
			<-goOn
		}
		return accepts(ctx, s) // without saying what it rests on
	}))
	done := make(chan error)
	verifyIt := func() {
		_, _, err := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")})
		done <- err
	}
	go verifyIt()
	<-looked
	conf.Revocations.Add(revocation(key))
	go verifyIt() // must not join the first
	if err := <-done; fault.KindOf(err) != fault.Denied {
		t.Errorf("begun after the revocation: %v", err)
	}
	close(goOn)
	if err := <-done; fault.KindOf(err) != fault.Denied {
		t.Errorf("begun before the revocation: %v", err)
	}
	try(t, set, "e", "ghcr.io/a:1", fault.Denied)
}

// listed is a verifier with a list that changes.
type listed struct {
	verifier
	list func() (digest.Digest, error)
}

func (l listed) Fingerprint(context.Context, verify.Subject) (digest.Digest, error) { return l.list() }

// peeking counts and may fail.
type peeking struct {
	resolver
	peeks atomic.Int32
}

func (p *peeking) Peek(ctx context.Context, s verify.Subject) (verify.Subject, error) {
	p.peeks.Add(1)
	if strings.HasSuffix(s.Reference, ":absent") {
		return s, fault.New(fault.Waiting, "test", "", "no such image")
	}
	return p.Resolve(ctx, s)
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	conf := config(rule("r", "ghcr.io/**"), rule("any", "**"))
	conf.Rules[1].Environments = []string{"any"}
	res := &peeking{}
	conf.Resolver = res
	now := digest.FromString("a list")
	var broken error
	set := newSet(t, conf, func(verify.Rule, *verify.Revocations) (verify.Verifier, error) {
		return listed{accepts, func() (digest.Digest, error) { return now, broken }}, nil
	}, factory(accepts)) // which has no list
	fingerprint := func(refs ...string) digest.Digest {
		t.Helper()
		var subjects []verify.Subject
		for _, ref := range refs {
			subjects = append(subjects, image(ref))
		}
		d, err := set.Fingerprint(t.Context(), "e", subjects)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a := fingerprint("ghcr.io/a:1", "ghcr.io/b:1", "quay.io/c:1", "ghcr.io/a:absent")
	if b := fingerprint("ghcr.io/a:absent", "quay.io/c:1", "ghcr.io/b:1", "ghcr.io/a:1", "ghcr.io/a:1"); a != b {
		t.Error("the order changed it")
	}
	if res.peeks.Load() != 6 {
		t.Errorf("asked %d times, want 6: not for what no rule names, once for what is named twice", res.peeks.Load())
	}
	if _, err := set.Fingerprint(t.Context(), "any", []verify.Subject{image("x:malformed")}); err != nil || res.peeks.Load() != 6 {
		t.Errorf("what is no reference: %v, asked %d times", err, res.peeks.Load())
	}
	now = digest.FromString("another list")
	if fingerprint("ghcr.io/a:1", "ghcr.io/b:1", "quay.io/c:1", "ghcr.io/a:absent") == a {
		t.Error("the list did not change it")
	}
	if fingerprint("ghcr.io/a:1") == fingerprint("ghcr.io/a:2") {
		t.Error("the digest did not change it")
	}
	for _, kind := range []fault.Kind{fault.Denied, fault.Internal, fault.Waiting, fault.Transient} {
		broken = fault.New(kind, "test", "", "broken")
		if d, err := set.Fingerprint(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")}); fault.KindOf(err) != fault.Transient || err == nil || d != "" {
			t.Errorf("%v: %q, %v", kind, d, err)
		}
	}
	broken = nil
	if _, err := set.Fingerprint(t.Context(), "e", []verify.Subject{image("ghcr.io/a:down")}); fault.KindOf(err) != fault.Transient || err == nil {
		t.Errorf("a registry that is down: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	broken = context.Canceled
	if _, err := set.Fingerprint(ctx, "e", []verify.Subject{image("ghcr.io/a:1")}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAnchors(t *testing.T) {
	t.Parallel()
	a, b := verify.Anchor{Kind: verify.AnchorKey, Value: "a"}, verify.Anchor{Kind: verify.AnchorCommit, Value: "b"}
	list := []verify.Anchor{a, b}
	if got := fmt.Sprint(verify.Anchors(list, list)); got != "[commit b key a]" {
		t.Error(got)
	}
	if list[0] != a {
		t.Error("the argument was sorted")
	}
}
