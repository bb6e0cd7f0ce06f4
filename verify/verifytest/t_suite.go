package verifytest

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Bed is what [Run] tests against.
type Bed struct {
	Registry Registry
	Host     string // "127.0.0.1:port"
	// Set builds the image verifiers under test, over that registry, which is the
	// resolver that the configuration still lacks.
	Set func(verify.Config) (*verify.Set, error)
	// Replay builds the same over what one verification was told.
	Replay func(verify.Config, verify.Inputs) (*verify.Set, error)
}

// The identities of the suite.
const (
	goodSubject = "https://github.com/acme/shop/.github/workflows/release.yml@refs/heads/main"
	goodIssuer  = "https://token.actions.githubusercontent.com"
)

type suite struct {
	Bed
	a       *Authority
	root    []byte
	company *Company
}

// Run checks that the verifiers accept what they must and refuse what they must
// not accept, each case on real signatures in a real registry.
func Run(t *testing.T, bed Bed) {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	root, err := a.TrustedRoot()
	if err != nil {
		t.Fatal(err)
	}
	company, err := NewCompany(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{Bed: bed, a: a, root: root, company: company}
	for _, layout := range []Layout{Referrers, Legacy} {
		t.Run([]string{"referrers", "legacy"}[layout], func(t *testing.T) {
			t.Parallel()
			s.signatures(t, layout)
			s.sboms(t, layout)
			s.revocations(t, layout)
			s.since(t, layout)
			s.latest(t, layout)
			s.late(t, layout)
			s.fingerprints(t, layout)
			s.ended(t, layout)
			s.forgeries(t, layout)
			s.thresholds(t, layout)
			s.roots(t, layout)
			s.windows(t, layout)
			s.keys(t, layout)
			s.builds(t, layout)
			s.identities(t, layout)
			s.statements(t, layout)
		})
	}
	t.Run("one verification for many askers", s.once)
	t.Run("weak keys", s.weak)
	s.companies(t)
}

// set returns the verifiers under test for r, in which nothing is revoked.
func (s *suite) set(t *testing.T, r verify.Rule) *verify.Set {
	t.Helper()
	set, err := s.Set(verify.Config{Rules: []verify.Rule{r}, Revocations: new(verify.Revocations)})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// rule returns the rule that asks for a signature by the key "release".
func (s *suite) rule(t *testing.T, change func(*verify.Rule)) verify.Rule {
	t.Helper()
	r := verify.Rule{Name: "acme", Kind: verify.KindImage, Repositories: []string{s.Host + "/**"}}
	only(s.key(t, "release"))(&r)
	if change != nil {
		change(&r)
	}
	return r
}

// sigstore is the Authority as a root.
func (s *suite) sigstore() *verify.Root {
	return &verify.Root{Name: "test", TrustedRoot: s.root, Log: 1, CertificateLog: true}
}

// key is one of the Authority's keys as a signer.
func (s *suite) key(t *testing.T, name string) verify.Signer {
	t.Helper()
	pem, err := s.a.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	return verify.Signer{Name: name, Key: &verify.Key{PEM: pem}, Root: s.sigstore()}
}

// ci is the suite's issuer with a subject, as a signer.
func (s *suite) ci(subject verify.Match) verify.Signer {
	return verify.Signer{Name: "ci", Identity: &verify.Identity{Issuer: goodIssuer, Subject: subject}, Root: s.sigstore()}
}

func unlogged(s verify.Signer) verify.Signer {
	s.Root, s.Unlogged = nil, true
	return s
}

// only makes a rule ask for a signature by any one of signers, and for nothing else.
func only(signers ...verify.Signer) func(*verify.Rule) {
	return func(r *verify.Rule) {
		r.Signers, r.Require = signers, []verify.Requirement{{Signature: &verify.SignatureRequirement{}}}
		for _, s := range signers {
			r.Require[0].Signers = append(r.Require[0].Signers, s.Name)
		}
	}
}

// withSBOM makes a rule ask for an SBOM too, by a signer that it has or by one
// more.
func withSBOM(by ...verify.Signer) func(*verify.Rule) {
	return func(r *verify.Rule) {
		q := verify.Requirement{SBOM: &verify.SBOMRequirement{}, Signers: r.Require[0].Signers}
		if len(by) > 0 {
			q.Signers = nil
		}
		for _, s := range by {
			q.Signers = append(q.Signers, s.Name)
			r.Signers = append(r.Signers, s)
		}
		r.Require = append(r.Require, q)
	}
}

// repositoryOf is a repository for one test alone.
func repositoryOf(t *testing.T) string { return "t/" + digest.FromString(t.Name()).Encoded()[:20] }

// push pushes an image and returns its tag and its pinned name.
func (s *suite) push(t *testing.T, platforms ...string) (tag, pinned string, d digest.Digest) {
	t.Helper()
	repo := s.Host + "/" + repositoryOf(t)
	tag = repo + ":v" + strings.ToLower(digest.FromString(time.Now().String()).Encoded()[:12])
	d, err := PushImage(t.Context(), tag, ImageOptions{Registry: s.Registry, Platforms: platforms})
	if err != nil {
		t.Fatal(err)
	}
	return tag, repo + "@" + d.String(), d
}

// judge verifies tag and requires wantErr in the refusal, or acceptance if it is "".
func (s *suite) judge(t *testing.T, r verify.Rule, tag, wantErr string) verify.Evidence {
	t.Helper()
	var kept []verify.Inputs
	conf := verify.Config{Rules: []verify.Rule{r}, Revocations: new(verify.Revocations), Keep: func(in verify.Inputs) digest.Digest {
		kept = append(kept, in)
		return digest.FromString("kept")
	}}
	set, err := s.Set(conf)
	if err != nil {
		t.Fatal(err)
	}
	e := s.judgeBy(t, set, tag, wantErr)
	if len(kept) != 1 || e.Inputs == "" {
		t.Fatalf("%d verdicts can be replayed", len(kept))
	}
	conf.Keep = nil
	s.replay(t, conf, kept[0], e)
	return e
}

// replay reaches a verdict again, without the registry.
func (s *suite) replay(t *testing.T, conf verify.Config, in verify.Inputs, then verify.Evidence) {
	t.Helper()
	set, err := s.Replay(conf, in)
	if err != nil {
		t.Fatal(err)
	}
	report, _, err := set.Verify(verify.AsOf(t.Context(), in.Time), "production", []verify.Subject{{Kind: in.Subject.Kind, Reference: in.Subject.Pinned()}})
	if now := report.Evidence[0]; now.Verified() != then.Verified() || (err == nil) != then.Verified() || !reflect.DeepEqual(now.Checks, then.Checks) {
		t.Errorf("judged again, it is %v\n%+v\nand was\n%+v", err, now.Checks, then.Checks)
	}
}

// judgeBy is judge with a set that was made before.
func (s *suite) judgeBy(t *testing.T, set *verify.Set, tag, wantErr string) verify.Evidence {
	t.Helper()
	report, pins, err := set.Verify(t.Context(), "production", []verify.Subject{{Kind: verify.KindImage, Reference: tag}})
	if len(report.Evidence) != 1 {
		t.Fatalf("report has %d entries", len(report.Evidence))
	}
	e := report.Evidence[0]
	if wantErr == "" {
		if err != nil {
			t.Fatalf("refused: %v\n%+v", err, e.Checks)
		}
		if !e.Verified() || pins[tag].Digest == "" {
			t.Fatalf("accepted without evidence or pin: %+v", e)
		}
		return e
	}
	if err == nil {
		t.Fatalf("accepted: %+v", e)
	}
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), wantErr) {
		t.Fatalf("got %v (%v), want Denied with %q", err, fault.KindOf(err), wantErr)
	}
	if fault.HintOf(err) == "" || len(e.Checks) == 0 || len(pins) != 0 {
		t.Errorf("a refusal needs a hint and the checks that were made, and no pin: %q %+v %v", fault.HintOf(err), e.Checks, pins)
	}
	return e
}

func (s *suite) signatures(t *testing.T, layout Layout) {
	const refused = "no signature by a trusted identity"
	exact := only(s.ci(verify.Match{Exact: goodSubject}))
	prefix := only(s.ci(verify.Match{Prefix: "https://github.com/acme/shop"}))
	release := s.key(t, "release")
	byKey := SignOptions{Key: "release"}
	byCI := SignOptions{Identity: goodSubject, Issuer: goodIssuer}
	with := func(o SignOptions, change func(*SignOptions)) *SignOptions { change(&o); return &o }
	other := digest.FromString("another image")

	cases := []struct {
		name    string
		rule    func(*verify.Rule)
		sign    *SignOptions // nil: unsigned
		refused bool
	}{
		{name: "key", sign: &byKey},
		{name: "key no log allowed", rule: only(unlogged(release)), sign: with(byKey, func(o *SignOptions) { o.NoTlog = true })},
		{name: "keyless exact", rule: exact, sign: &byCI},
		{name: "keyless prefix", rule: prefix, sign: &byCI},
		{name: "no evidence", refused: true},
		{name: "wrong key", sign: &SignOptions{Key: "other"}, refused: true},
		{name: "key no log", sign: with(byKey, func(o *SignOptions) { o.NoTlog = true }), refused: true},
		{name: "key for identity", rule: exact, sign: &byKey, refused: true},
		{name: "identity for key", sign: &byCI, refused: true},
		{name: "wrong identity", rule: exact, sign: with(byCI, func(o *SignOptions) { o.Identity += "x" }), refused: true},
		{name: "wrong issuer", rule: exact, sign: with(byCI, func(o *SignOptions) { o.Issuer = "https://accounts.example" }), refused: true},
		{name: "issuer with our prefix", rule: exact, sign: with(byCI, func(o *SignOptions) { o.Issuer += ".evil.example" }), refused: true},
		{name: "identity with our prefix", rule: prefix, sign: with(byCI, func(o *SignOptions) { o.Identity = "https://github.com/acme/shop-evil/x.yml" }), refused: true},
		{name: "prefix is anchored", rule: prefix, sign: with(byCI, func(o *SignOptions) {
			o.Identity = "https://evil.example/?https://github.com/acme/shop/x.yml"
		}), refused: true},
		{name: "copied from another image", sign: with(byKey, func(o *SignOptions) { o.Claim = other }), refused: true},
		{name: "log entry of another artifact", sign: with(byKey, func(o *SignOptions) { o.SwapEntry = true }), refused: true},
		{name: "log entry of another artifact keyless", rule: exact, sign: with(byCI, func(o *SignOptions) { o.SwapEntry = true }), refused: true},
		{name: "certificate expired when logged", rule: exact, sign: with(byCI, func(o *SignOptions) { o.LoggedAt = time.Now().Add(30 * time.Minute) }), refused: true},
		{name: "keyless without log", rule: exact, sign: with(byCI, func(o *SignOptions) { o.NoTlog = true }), refused: true},
		{name: "malformed payload", sign: with(byKey, func(o *SignOptions) { o.RawPayload = []byte(`{"critical":`) }), refused: true},
		{name: "payload of no type", sign: with(byKey, func(o *SignOptions) { o.RawPayload = []byte(`{}`) }), refused: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			if c.sign != nil {
				s.sign(t, pinned, layout, *c.sign)
			}
			want := ""
			if c.refused {
				want = refused
			}
			s.judge(t, s.rule(t, c.rule), tag, want)
		})
	}
	t.Run("SBOM is no signature", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.attest(t, pinned, layout, "https://spdx.dev/Document", SPDX("shop"), SignOptions{})
		s.judge(t, s.rule(t, nil), tag, refused)
	})
	t.Run("another root", func(t *testing.T) {
		t.Parallel()
		stranger, err := NewAuthority()
		if err != nil {
			t.Fatal(err)
		}
		tag, pinned, _ := s.push(t)
		o := byCI
		o.Layout, o.Registry = layout, s.Registry
		if err := stranger.Sign(t.Context(), pinned, o); err != nil {
			t.Fatal(err)
		}
		s.judge(t, s.rule(t, exact), tag, refused)
	})
	t.Run("index", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t, "linux/amd64", "linux/arm64")
		s.sign(t, pinned, layout, byKey)
		s.judge(t, s.rule(t, nil), tag, "")
	})
	t.Run("a bad signature beside a good one", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t)
		s.sign(t, pinned, layout, SignOptions{Key: "other"})
		s.sign(t, pinned, layout, byKey)
		s.judge(t, s.rule(t, nil), tag, "")
	})
}

func (s *suite) sign(t *testing.T, pinned string, layout Layout, o SignOptions) {
	t.Helper()
	o.Layout, o.Registry = layout, s.Registry
	if err := s.a.Sign(t.Context(), pinned, o); err != nil {
		t.Fatal(err)
	}
}

// attest attests by the key "release" unless o says otherwise.
func (s *suite) attest(t *testing.T, pinned string, layout Layout, typ string, predicate any, o SignOptions) {
	t.Helper()
	if o.Key == "" {
		o.Key = "release"
	}
	o.Layout, o.Registry = layout, s.Registry
	if err := s.a.Attest(t.Context(), pinned, typ, predicate, o); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) sboms(t *testing.T, layout Layout) {
	const spdx, cyclonedx = "https://spdx.dev/Document", "https://cyclonedx.org/bom"
	none := "no SBOM attestation by a trusted identity"
	notObject := "not a JSON object"
	if layout == Referrers {
		notObject = none // sigstore-go refuses such a statement
	}
	cases := []struct {
		name, typ string
		predicate any
		sign      SignOptions
		refused   string
	}{
		{name: "spdx", typ: spdx, predicate: SPDX("shop")},
		{name: "spdx versioned", typ: spdx + "/v2.3", predicate: SPDX("shop")},
		{name: "cyclonedx", typ: cyclonedx, predicate: CycloneDX("shop")},
		{name: "no SBOM", refused: none},
		{name: "wrong key", typ: spdx, predicate: SPDX("shop"), sign: SignOptions{Key: "other"}, refused: none},
		{name: "about another digest", typ: spdx, predicate: SPDX("shop"), sign: SignOptions{Claim: digest.FromString("other")}, refused: none},
		{name: "other predicate type", typ: "https://slsa.dev/provenance/v1", predicate: SPDX("shop"), refused: none},
		{name: "predicate type with our prefix", typ: spdx + "-evil", predicate: SPDX("shop"), refused: none},
		{name: "signature type is no SBOM", typ: signPredicate, predicate: SPDX("shop"), refused: none},
		{name: "type of statement unknown", typ: spdx, predicate: SPDX("shop"), sign: SignOptions{StatementType: "https://in-toto.io/Statement/v9"}, refused: none},
		{name: "spdx under cyclonedx type", typ: cyclonedx, predicate: SPDX("shop"), refused: "not a CycloneDX document"},
		{name: "empty document", typ: cyclonedx, predicate: map[string]any{"bomFormat": "CycloneDX", "specVersion": "1.5"}, refused: "lists no component"},
		{name: "not an object", typ: spdx, predicate: "SPDX", refused: notObject},
	}
	rule := func(t *testing.T) verify.Rule {
		return s.rule(t, withSBOM())
	}
	for _, c := range cases {
		t.Run("sbom "+c.name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			s.sign(t, pinned, layout, SignOptions{Key: "release"})
			if c.typ != "" {
				s.attest(t, pinned, layout, c.typ, c.predicate, c.sign)
			}
			s.judge(t, rule(t), tag, c.refused)
		})
	}
	t.Run("sbom on each platform", func(t *testing.T) {
		t.Parallel()
		tag, pinned, _ := s.push(t, "linux/amd64", "linux/arm64")
		s.sign(t, pinned, layout, SignOptions{Key: "release"})
		children, err := platformsOf(t.Context(), pinned, s.Registry)
		if err != nil || len(children) != 2 {
			t.Fatalf("%v, %v", children, err)
		}
		s.attest(t, children[0], layout, spdx, SPDX("shop"), SignOptions{})
		s.judge(t, rule(t), tag, none)
		s.attest(t, children[1], layout, spdx, SPDX("shop"), SignOptions{})
		s.judge(t, rule(t), tag, "")
	})
}

// once asks for one image many times, by different names, at once.
func (s *suite) once(t *testing.T) {
	t.Parallel()
	tag, pinned, _ := s.push(t)
	s.sign(t, pinned, Referrers, SignOptions{Key: "release"})
	set := s.set(t, s.rule(t, nil))
	subjects := []verify.Subject{
		{Kind: verify.KindImage, Reference: tag, Locations: []string{"a"}},
		{Kind: verify.KindImage, Reference: tag, Locations: []string{"b"}},
		{Kind: verify.KindImage, Reference: pinned},
	}
	report, pins, err := set.Verify(context.WithoutCancel(t.Context()), "production", subjects)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Evidence) != 2 || len(report.Evidence[0].Subject.Locations) != 2 || pins[tag].Pinned() != pinned || pins[pinned].Pinned() != pinned {
		t.Errorf("report %+v, pins %v", report, pins)
	}
}
