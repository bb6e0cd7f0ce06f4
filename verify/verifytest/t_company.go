package verifytest

import (
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

// companies is about what proves no time: certificates of one's own that live long,
// and a key that is trusted under two roots.
func (s *suite) companies(t *testing.T) {
	const who = "builder@acme.example"
	builder := verify.Signer{Name: "builder", Identity: &verify.Identity{Subject: verify.Match{Exact: who}},
		Root: &verify.Root{Name: "acme", Authorities: s.company.Authorities()}}
	signed := SignOptions{Identity: who, Company: s.company, NoTlog: true, IssuedAt: time.Now().Add(-time.Hour), Lifetime: 2 * time.Hour}

	// The key of such a certificate is what a person may have to revoke.
	t.Run("revoked key of a company's certificate", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, Referrers, signed)
		set, revoke := s.revocable(t, s.rule(t, only(builder)))
		rests := s.judgeBy(t, set, tag, "").RestsOn
		i := slices.IndexFunc(rests, func(a verify.Anchor) bool { return a.Kind == verify.AnchorKey })
		if i < 0 || !rests[i].At.IsZero() {
			t.Fatalf("the evidence rests on %v", rests)
		}
		revoke(rests[i])
		s.judgeBy(t, set, tag, "was revoked")
	})

	// A replay judges such a certificate by the time that it was judged at.
	t.Run("replayed at another time", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, Referrers, signed)
		var kept verify.Inputs
		conf := verify.Config{Rules: []verify.Rule{s.rule(t, only(builder))}, Revocations: new(verify.Revocations),
			Keep: func(in verify.Inputs) digest.Digest { kept = in; return digest.FromString("kept") }}
		set, err := s.Set(conf)
		if err != nil {
			t.Fatal(err)
		}
		s.judgeBy(t, set, tag, "")
		conf.Keep = nil
		again, err := s.Replay(conf, kept)
		if err != nil {
			t.Fatal(err)
		}
		for after, accepted := range map[time.Duration]bool{0: true, 30 * time.Minute: true, -2 * time.Hour: false, 2 * time.Hour: false} {
			_, _, err := again.Verify(verify.AsOf(t.Context(), kept.Time.Add(after)), "production", []verify.Subject{{Kind: verify.KindImage, Reference: kept.Subject.Pinned()}})
			if (err == nil) != accepted {
				t.Errorf("judged %s later: %v", after, err)
			}
			if again, err = s.Replay(conf, kept); err != nil { // nothing from a cache
				t.Fatal(err)
			}
		}
	})

	// One key under two roots is two signers: what a log proves for the one says
	// nothing about the other, who has no proven time.
	t.Run("one key under two roots", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, Referrers, SignOptions{Key: "release"})
		logged, alone := s.key(t, "release"), unlogged(s.key(t, "release"))
		alone.Name = "alone"
		rule := s.rule(t, only(logged, alone))
		rule.Require = []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}, MaxAge: time.Hour}}
		e := s.judge(t, rule, tag, "")
		if i := slices.IndexFunc(e.RestsOn, func(a verify.Anchor) bool { return a.Kind == verify.AnchorKey }); i < 0 || e.RestsOn[i].At.IsZero() {
			t.Errorf("the evidence rests on %v", e.RestsOn)
		}
		rule.Require = []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{"alone"}}}
		e = s.judge(t, rule, tag, "")
		if i := slices.IndexFunc(e.RestsOn, func(a verify.Anchor) bool { return a.Kind == verify.AnchorKey }); i < 0 || !e.RestsOn[i].At.IsZero() {
			t.Errorf("a log proves the time of a signature that is judged without one: %v", e.RestsOn)
		}
		rule.Require = []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{"release", "alone"}, Threshold: 2}}
		s.judge(t, rule, tag, "signature")
	})
}
