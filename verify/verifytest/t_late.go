package verifytest

import (
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

const (
	provenanceType = "https://slsa.dev/provenance/v1"
	spdxType       = "https://spdx.dev/Document"
)

// keyAnchor names one of the Authority's keys as a person would revoke it.
func (s *suite) keyAnchor(t *testing.T, name string) verify.Anchor {
	t.Helper()
	b, err := s.a.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return verify.Anchor{Kind: verify.AnchorKey, Value: digest.FromBytes(block.Bytes).String()}
}

// revocable returns the verifiers under test for r, and what is revoked in them.
func (s *suite) revocable(t *testing.T, r verify.Rule) (*verify.Set, func(verify.Anchor)) {
	t.Helper()
	revoked := new(verify.Revocations)
	set, err := s.Set(verify.Config{Rules: []verify.Rule{r}, Revocations: revoked})
	if err != nil {
		t.Fatal(err)
	}
	return set, func(a verify.Anchor) {
		revoked.Add(verify.Revocation{Anchor: a, Reason: "leaked", Time: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)})
	}
}

// revocations takes trust away from signers and digests that were accepted, by
// the set that accepted them.
func (s *suite) revocations(t *testing.T, layout Layout) {
	identity := verify.Anchor{Kind: verify.AnchorIdentity, Value: goodSubject}
	gone := func(a verify.Anchor) string { return a.String() + " was revoked on 2026-01-02: leaked" }

	for name, c := range map[string]struct {
		rule   func(*verify.Rule)
		sign   SignOptions
		anchor verify.Anchor
	}{
		"key":            {sign: SignOptions{Key: "release"}, anchor: s.keyAnchor(t, "release")},
		"keyless":        {rule: only(s.ci(verify.Match{Exact: goodSubject})), sign: SignOptions{Identity: goodSubject, Issuer: goodIssuer}, anchor: identity},
		"keyless prefix": {rule: only(s.ci(verify.Match{Prefix: "https://github.com/acme"})), sign: SignOptions{Identity: goodSubject, Issuer: goodIssuer}, anchor: identity},
	} {
		t.Run("revoked "+name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, d := s.push(t)
			s.sign(t, pinned, layout, c.sign)
			set, revoke := s.revocable(t, s.rule(t, c.rule))
			want := []verify.Anchor{{Kind: verify.AnchorDigest, Value: d.String()}, c.anchor}
			if got := bare(s.judgeBy(t, set, tag, "").RestsOn); !slices.Equal(got, want) {
				t.Errorf("the evidence rests on %v, want %v", got, want)
			}
			revoke(c.anchor)
			s.judgeBy(t, set, tag, gone(c.anchor))
		})
	}
	t.Run("revoked digest", func(t *testing.T) {
		t.Parallel()
		tag, pinned, d := s.push(t)
		s.sign(t, pinned, layout, SignOptions{Key: "release"})
		set, revoke := s.revocable(t, s.rule(t, nil))
		s.judgeBy(t, set, tag, "")
		a := verify.Anchor{Kind: verify.AnchorDigest, Value: d.String()}
		revoke(a)
		s.judgeBy(t, set, tag, gone(a))
	})
	t.Run("revoked one of two", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, layout, SignOptions{Key: "release"})
		s.sign(t, pinned, layout, SignOptions{Key: "backup"})
		set, revoke := s.revocable(t, s.rule(t, only(s.key(t, "release"), s.key(t, "backup"))))
		release, backup := s.keyAnchor(t, "release"), s.keyAnchor(t, "backup")
		if got := bare(s.judgeBy(t, set, tag, "").RestsOn); !slices.Contains(got, release) || !slices.Contains(got, backup) {
			t.Errorf("the evidence rests on %v", got)
		}
		revoke(release)
		if e := s.judgeBy(t, set, tag, ""); slices.Contains(bare(e.RestsOn), release) || e.Checks[0].Found != "backup" {
			t.Errorf("a revoked signer still counts: %v %+v", e.RestsOn, e.Checks)
		}
		revoke(backup)
		s.judgeBy(t, set, tag, "was revoked")
	})
	t.Run("revoked signer of the SBOM", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, layout, SignOptions{Key: "release"})
		s.attest(t, pinned, layout, spdxType, SPDX("shop"), SignOptions{Key: "scanner"})
		set, revoke := s.revocable(t, s.rule(t, withSBOM(s.key(t, "scanner"))))
		a := s.keyAnchor(t, "scanner")
		if got := bare(s.judgeBy(t, set, tag, "").RestsOn); !slices.Contains(got, a) || !slices.Contains(got, s.keyAnchor(t, "release")) {
			t.Errorf("the evidence rests on %v", got)
		}
		revoke(a)
		s.judgeBy(t, set, tag, gone(a))
	})
}

// bare leaves out since when something is known to have been there.
func bare(anchors []verify.Anchor) []verify.Anchor { return verify.SeenAt(time.Time{}, anchors) }

// since takes trust away as of some time: what is proven to be signed before still
// counts, from the cache too, and what nothing proves the time of does not.
func (s *suite) since(t *testing.T, layout Layout) {
	at := time.Now().Add(-time.Minute).Truncate(time.Second)
	keyless := func(o SignOptions) SignOptions {
		o.Identity, o.Issuer, o.IssuedAt = goodSubject, goodIssuer, at.Add(-time.Minute)
		return o
	}
	key, identity := s.keyAnchor(t, "release"), verify.Anchor{Kind: verify.AnchorIdentity, Value: goodSubject}
	ci := only(s.ci(verify.Match{Exact: goodSubject}))
	unlogged := func(r *verify.Rule) { r.Signers[0].Root, r.Signers[0].Unlogged = nil, true }
	for name, c := range map[string]struct {
		rule   func(*verify.Rule)
		sign   SignOptions
		anchor verify.Anchor
		since  time.Time
		want   string
	}{
		"a key, after":          {nil, SignOptions{Key: "release", LoggedAt: at}, key, at.Add(time.Second), ""},
		"a key, before":         {nil, SignOptions{Key: "release", LoggedAt: at}, key, at, "was revoked on 2026-01-02, as of "},
		"an identity, after":    {ci, keyless(SignOptions{LoggedAt: at}), identity, at.Add(time.Second), ""},
		"an identity, before":   {ci, keyless(SignOptions{LoggedAt: at}), identity, at.Add(-time.Second), "was revoked on 2026-01-02, as of "},
		"a key without a proof": {unlogged, SignOptions{Key: "release", LoggedAt: at}, key, at.Add(time.Second), "nothing proves when this was signed"},
	} {
		t.Run("revoked since: "+name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			s.sign(t, pinned, layout, c.sign)
			revoked := new(verify.Revocations)
			set, err := s.Set(verify.Config{Rules: []verify.Rule{s.rule(t, c.rule)}, Revocations: revoked})
			if err != nil {
				t.Fatal(err)
			}
			s.judgeBy(t, set, tag, "")
			revoked.Add(verify.Revocation{Anchor: c.anchor, Since: c.since, Reason: "leaked", Time: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)})
			s.judgeBy(t, set, tag, c.want)
		})
	}
}

// latest has two witnesses of one signature: the later one counts against it, for one
// who lies dates back.
func (s *suite) latest(t *testing.T, layout Layout) {
	at := time.Now().Add(-2 * time.Minute).Truncate(time.Second)
	between, after := at.Add(30*time.Second), at.Add(90*time.Second)
	signer := s.key(t, "release")
	signer.Root = s.rootOf(t, RootOptions{Logs: []string{Main}, Stampers: []string{Main}}, 1, 1)
	put := func(t *testing.T) (tag string) {
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, layout, SignOptions{Key: "release", LoggedAt: at, Stamps: []Stamp{{At: at.Add(time.Minute)}}})
		return tag
	}
	for end, want := range map[time.Time]string{after: "", between: "no signature by a trusted identity"} {
		t.Run("the later of two times, a window", func(t *testing.T) {
			t.Parallel()
			by := signer
			by.NotAfter = end
			s.judge(t, s.rule(t, only(by)), put(t), want)
		})
	}
	for since, want := range map[time.Time]string{after: "", between: "was revoked"} {
		t.Run("the later of two times, a revocation", func(t *testing.T) {
			t.Parallel()
			tag, revoked := put(t), new(verify.Revocations)
			set, err := s.Set(verify.Config{Rules: []verify.Rule{s.rule(t, only(signer))}, Revocations: revoked})
			if err != nil {
				t.Fatal(err)
			}
			revoked.Add(verify.Revocation{Anchor: s.keyAnchor(t, "release"), Since: since, Reason: "leaked", Time: after})
			s.judgeBy(t, set, tag, want)
		})
	}
}

// late tells evidence that is missing, which is waited for, from evidence that is
// wrong, which is not.
func (s *suite) late(t *testing.T, layout Layout) {
	signed := func(t *testing.T, pinned string) { s.sign(t, pinned, layout, SignOptions{Key: "release"}) }
	attested := func(typ string, predicate any, o SignOptions) func(*testing.T, string) {
		return func(t *testing.T, pinned string) { s.attest(t, pinned, layout, typ, predicate, o) }
	}
	stranger, elsewhere := SignOptions{Key: "other"}, SignOptions{Claim: digest.FromString("other")}
	type steps []func(*testing.T, string)
	for name, c := range map[string]struct {
		steps steps
		sbom  bool
		want  fault.Kind
	}{
		"nothing":                  {want: fault.Waiting},
		"an SBOM alone":            {steps: steps{attested(spdxType, SPDX("shop"), SignOptions{})}, want: fault.Waiting},
		"provenance of a stranger": {steps: steps{attested(provenanceType, map[string]any{}, stranger)}, want: fault.Waiting},
		"a stranger's signature":   {steps: steps{func(t *testing.T, pinned string) { s.sign(t, pinned, layout, stranger) }}, want: fault.Denied},
		"a copied signature": {steps: steps{func(t *testing.T, p string) {
			s.sign(t, p, layout, SignOptions{Key: "release", Claim: elsewhere.Claim})
		}}, want: fault.Denied},
		"no SBOM":                             {sbom: true, steps: steps{signed}, want: fault.Waiting},
		"an SBOM and no signature":            {sbom: true, steps: steps{attested(spdxType, SPDX("shop"), SignOptions{})}, want: fault.Waiting},
		"provenance in the place of an SBOM":  {sbom: true, steps: steps{signed, attested(provenanceType, map[string]any{}, SignOptions{})}, want: fault.Waiting},
		"a stranger's provenance and no SBOM": {sbom: true, steps: steps{signed, attested(provenanceType, map[string]any{}, stranger)}, want: fault.Waiting},
		"a stranger's SBOM":                   {sbom: true, steps: steps{signed, attested(spdxType, SPDX("shop"), stranger)}, want: fault.Denied},
		"a stranger's SBOM and no signature":  {sbom: true, steps: steps{attested(spdxType, SPDX("shop"), stranger)}, want: fault.Denied},
		"the SBOM of another image":           {sbom: true, steps: steps{signed, attested(spdxType, SPDX("shop"), elsewhere)}, want: fault.Denied},
		"an empty SBOM":                       {sbom: true, steps: steps{signed, attested(spdxType, map[string]any{"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT"}, SignOptions{})}, want: fault.Denied},
	} {
		t.Run("late "+name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			for _, step := range c.steps {
				step(t, pinned)
			}
			set := s.patient(t, c.sbom)
			s.kind(t, set, c.want, tag)
			// What was missing or wrong arrives, and is seen at once.
			signed(t, pinned)
			attested(spdxType, SPDX("shop"), SignOptions{})(t, pinned)
			s.judgeBy(t, set, tag, "")
		})
	}
	t.Run("late beside wrong", func(t *testing.T) {
		t.Parallel()
		missing, _, _ := s.push(t)
		wrong, pinned, _ := s.push(t)
		s.sign(t, pinned, layout, stranger)
		s.kind(t, s.patient(t, false), fault.Denied, missing, wrong)
	})
	t.Run("late beside a revoked attestation", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		attested(spdxType, SPDX("shop"), SignOptions{})(t, pinned)
		revoked := new(verify.Revocations)
		revoked.Add(verify.Revocation{Anchor: s.keyAnchor(t, "release"), Reason: "leaked"})
		set, err := s.Set(verify.Config{
			Rules: []verify.Rule{s.rule(t, only(s.key(t, "release"), s.key(t, "backup")))}, Revocations: revoked,
			Grace: func(string) time.Duration { return time.Hour },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.kind(t, set, fault.Waiting, tag)
		s.sign(t, pinned, layout, SignOptions{Key: "backup"})
		s.judgeBy(t, set, tag, "")
	})
	t.Run("late on the platforms, wrong on the index", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t, "linux/amd64")
		signed(t, pinned)
		s.attest(t, pinned, layout, spdxType, SPDX("shop"), stranger)
		s.kind(t, s.patient(t, true), fault.Denied, tag)
	})
	t.Run("late on a platform", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t, "linux/amd64", "linux/arm64")
		children, err := platformsOf(t.Context(), pinned, s.Registry)
		if err != nil {
			t.Fatal(err)
		}
		signed(t, pinned)
		set := s.patient(t, true)
		s.attest(t, children[0], layout, spdxType, SPDX("shop"), SignOptions{})
		s.kind(t, set, fault.Waiting, tag)
		s.attest(t, children[1], layout, spdxType, SPDX("shop"), stranger)
		s.kind(t, set, fault.Denied, tag)
	})
}

// patient returns the verifiers under test with an hour of grace.
func (s *suite) patient(t *testing.T, sbom bool) *verify.Set {
	t.Helper()
	var change func(*verify.Rule)
	if sbom {
		change = withSBOM()
	}
	set, err := s.Set(verify.Config{
		Rules: []verify.Rule{s.rule(t, change)}, Revocations: new(verify.Revocations),
		Grace: func(string) time.Duration { return time.Hour },
	})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// kind requires a refusal of kind want.
func (s *suite) kind(t *testing.T, set *verify.Set, want fault.Kind, tags ...string) {
	t.Helper()
	var subjects []verify.Subject
	for _, tag := range tags {
		subjects = append(subjects, verify.Subject{Kind: verify.KindImage, Reference: tag})
	}
	_, _, err := set.Verify(t.Context(), "production", subjects)
	if err == nil || fault.KindOf(err) != want {
		t.Fatalf("got %v (%v), want %v", err, fault.KindOf(err), want)
	}
	if until := strings.Contains(err.Error(), "waited for until"); want == fault.Waiting && !until {
		t.Errorf("the error does not say until when it is waited for: %v", err)
	}
}

// fingerprints change with the evidence, and with nothing else.
func (s *suite) fingerprints(t *testing.T, layout Layout) {
	t.Run("fingerprint", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t, "linux/amd64", "linux/arm64")
		_, another, _ := s.push(t)
		children, err := platformsOf(t.Context(), pinned, s.Registry)
		if err != nil {
			t.Fatal(err)
		}
		set := s.patient(t, true)
		unnamed := "elsewhere.invalid/x:1" // no rule names it, so nobody asks it
		subject := func(ref string) verify.Subject { return verify.Subject{Kind: verify.KindImage, Reference: ref} }
		fingerprint := func() digest.Digest {
			t.Helper()
			a, err := set.Fingerprint(t.Context(), "production", []verify.Subject{subject(tag), subject(another), subject(unnamed)})
			if err != nil {
				t.Fatal(err)
			}
			b, err := set.Fingerprint(t.Context(), "production", []verify.Subject{subject(another), subject(unnamed), subject(tag)})
			if err != nil || a != b {
				t.Fatalf("nothing changed, and %s became %s: %v", a, b, err)
			}
			return a
		}
		last := fingerprint()
		for _, c := range []struct {
			what   string
			change func()
		}{
			{"a signature", func() { s.sign(t, pinned, layout, SignOptions{Key: "release"}) }},
			{"a bad signature", func() { s.sign(t, another, layout, SignOptions{Key: "other"}) }},
			{"an attestation", func() { s.attest(t, pinned, layout, spdxType, SPDX("shop"), SignOptions{}) }},
			{"one on a platform", func() { s.attest(t, children[1], layout, spdxType, SPDX("shop"), SignOptions{}) }},
			{"a tag that was moved", func() { s.move(t, tag) }},
		} {
			c.change()
			next := fingerprint()
			if next == last {
				t.Errorf("%s changed nothing", c.what)
			}
			last = next
		}
	})
}

// move makes tag stand for another image.
func (s *suite) move(t *testing.T, tag string) {
	t.Helper()
	if _, err := PushImage(t.Context(), tag, ImageOptions{Registry: s.Registry, Platforms: []string{"linux/amd64"}}); err != nil {
		t.Fatal(err)
	}
}

// ended looks at roots of trust of which a part has ended: what was signed and
// logged before that counts for ever, what came later never.
func (s *suite) ended(t *testing.T, layout Layout) {
	now := time.Now()
	byCI := SignOptions{Identity: goodSubject, Issuer: goodIssuer, IssuedAt: now.Add(-time.Minute), LoggedAt: now.Add(-30 * time.Second)}
	byKey := SignOptions{Key: "release", LoggedAt: now.Add(-30 * time.Second)}
	tiles := SignOptions{Key: "release", Tiles: []string{Main}, Stamps: []Stamp{{At: now.Add(-30 * time.Second)}}}
	identity := only(s.ci(verify.Match{Exact: goodSubject}))
	before, after := now.Add(-40*time.Second), now.Add(-10*time.Second)
	for name, c := range map[string]struct {
		part    string
		end     time.Time
		rule    func(*verify.Rule)
		sign    SignOptions
		refused bool
	}{
		"authority after":       {part: "certificateAuthorities", end: after, rule: identity, sign: byCI},
		"authority before":      {part: "certificateAuthorities", end: before, rule: identity, sign: byCI, refused: true},
		"log after":             {part: "tlogs", end: after, rule: identity, sign: byCI},
		"log before":            {part: "tlogs", end: before, rule: identity, sign: byCI, refused: true},
		"log after, by a key":   {part: "tlogs", end: after, sign: byKey},
		"log before, by a key":  {part: "tlogs", end: before, sign: byKey, refused: true},
		"Rekor v2 log after":    {part: "tlogs", end: after, sign: tiles},
		"Rekor v2 log before":   {part: "tlogs", end: before, sign: tiles, refused: true},
		"timestamps after":      {part: "timestampAuthorities", end: after, sign: tiles},
		"timestamps before":     {part: "timestampAuthorities", end: before, sign: tiles, refused: true},
		"certificate log":       {part: "ctlogs", end: now.Add(-10 * time.Minute), rule: identity, sign: byCI, refused: true},
		"certificate log after": {part: "ctlogs", end: after, rule: identity, sign: byCI},
	} {
		if len(c.sign.Tiles) > 0 && layout == Legacy { // it has entries of version 1 only
			continue
		}
		t.Run("ended "+name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			s.sign(t, pinned, layout, c.sign)
			want := ""
			if c.refused {
				want = "no signature by a trusted identity"
			}
			s.judge(t, s.rule(t, func(r *verify.Rule) {
				if c.rule != nil {
					c.rule(r)
				}
				root := *r.Signers[0].Root
				if len(c.sign.Tiles) > 0 {
					root = *s.rootOf(t, RootOptions{Logs: []string{Main}, Stampers: []string{Main}}, 1, 0)
				}
				root.TrustedRoot = endPart(t, root.TrustedRoot, c.part, c.end)
				r.Signers = []verify.Signer{r.Signers[0]}
				r.Signers[0].Root = &root
			}), tag, want)
		})
	}
}

// endPart returns the trusted root with the end of one part's validity set.
func endPart(t *testing.T, trustedRoot []byte, part string, end time.Time) []byte {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(trustedRoot, &doc); err != nil {
		t.Fatal(err)
	}
	for _, one := range doc[part].([]any) {
		of := one.(map[string]any)
		if key, ok := of["publicKey"].(map[string]any); ok {
			of = key
		}
		of["validFor"].(map[string]any)["end"] = end.UTC().Format(time.RFC3339)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
