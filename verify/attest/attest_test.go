package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

const scan = "https://scan.test/v1"

var (
	image = digest.FromString("image")
	amd64 = digest.FromString("amd64")
	arm64 = digest.FromString("arm64")
	noon  = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

// shelf is an Attestor with what is put on it.
type shelf struct {
	statements map[digest.Digest][]verify.Statement
	rejected   map[digest.Digest][]verify.Rejected
	platforms  []verify.Platform
	gone       error
	down       error
	asked      atomic.Int32
	nested     digest.Digest // is an index, whatever the index calls it
}

func (s *shelf) Attestations(_ context.Context, sub verify.Subject) ([]verify.Statement, []verify.Rejected, error) {
	s.asked.Add(1)
	return s.statements[sub.Digest], s.rejected[sub.Digest], s.down
}
func (s *shelf) Platforms(context.Context, verify.Subject) ([]verify.Platform, error) {
	return s.platforms, nil
}
func (s *shelf) Single(_ context.Context, sub verify.Subject) error {
	if sub.Digest == s.nested {
		return fault.New(fault.Denied, "test", "", "an index inside an index")
	}
	return nil
}
func (s *shelf) Exists(context.Context, verify.Subject) error { return s.gone }
func (s *shelf) Fingerprint(_ context.Context, sub verify.Subject) (digest.Digest, error) {
	return digest.FromString(fmt.Sprint(sub.Digest, s.statements[sub.Digest])), nil
}

func (s *shelf) put(st ...verify.Statement) *shelf {
	if s.statements == nil {
		s.statements = map[digest.Digest][]verify.Statement{}
	}
	for _, x := range st {
		s.statements[x.Subject] = append(s.statements[x.Subject], x)
	}
	return s
}

func (s *shelf) reject(r verify.Rejected) *shelf {
	s.rejected = map[digest.Digest][]verify.Rejected{image: {r}}
	return s
}

// scans judges statements of which only the newest counts: the predicate is what it found.
type scans struct{}

func (scans) Reads(typ string) bool { return typ == scan }
func (scans) Superseding()          {}
func (scans) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	found, made, _ := strings.Cut(string(st.Predicate), "@")
	f := verify.Finding{Text: found, Facts: map[string]any{"found": found}}
	if made != "" {
		f.Made, _ = time.Parse(time.RFC3339, made)
	}
	switch {
	case found == "panic":
		panic("boom")
	case found == "refused":
		return f, fmt.Errorf("it is refused: %w", verify.ErrContradicts)
	case strings.HasPrefix(found, "builder "):
		f.Party = found
	case found != "clean":
		return f, fmt.Errorf("it found %s", found)
	}
	return f, nil
}

func signed(by string, change ...func(*verify.Statement)) verify.Statement {
	st := verify.Statement{
		Subject: image, PredicateType: verify.PredicateSignature, Signers: []string{by}, Party: "party of " + by, Time: noon,
		RestsOn: []verify.Anchor{{Kind: verify.AnchorIdentity, Value: by}}, Where: "by " + by, Certificate: &verify.Certificate{},
	}
	for _, c := range change {
		c(&st)
	}
	return st
}

func scanned(by, found string, change ...func(*verify.Statement)) verify.Statement {
	st := signed(by, change...)
	st.PredicateType, st.Predicate = scan, []byte(found)
	return st
}

func on(d digest.Digest) func(*verify.Statement) {
	return func(st *verify.Statement) { st.Subject = d }
}
func at(t time.Time) func(*verify.Statement) { return func(st *verify.Statement) { st.Time = t } }
func party(p string) func(*verify.Statement) { return func(st *verify.Statement) { st.Party = p } }
func by(c *verify.Certificate) func(*verify.Statement) {
	return func(st *verify.Statement) { st.Certificate = c }
}

func also(name string) func(*verify.Statement) {
	return func(st *verify.Statement) { st.Signers = append(st.Signers, name) }
}

func verifier(t *testing.T, s *shelf, require ...verify.Requirement) *Verifier {
	t.Helper()
	r := verify.Rule{Name: "r", Require: require}
	for _, n := range []string{"a", "b", "c"} {
		r.Signers = append(r.Signers, verify.Signer{Name: n, Key: &verify.Key{PEM: []byte(n)}})
	}
	v, err := New(r, nil, []Source{func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) { return s, nil }},
		func(q verify.Requirement) (verify.Judge, error) {
			if q.Predicate == nil {
				return nil, verify.ErrNotApplicable
			}
			return scans{}, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	v.now = func(context.Context) time.Time { return noon.Add(time.Hour) }
	return v
}

func signatureBy(n int, by ...string) verify.Requirement {
	return verify.Requirement{Signature: &verify.SignatureRequirement{}, Signers: by, Threshold: n}
}

func clean(n int, by ...string) verify.Requirement {
	return verify.Requirement{Predicate: &verify.PredicateRequirement{Type: scan}, Signers: by, Threshold: n}
}

func within(d time.Duration, q verify.Requirement) verify.Requirement {
	q.MaxAge = d
	return q
}

func TestVerify(t *testing.T) {
	t.Parallel()
	index := []verify.Platform{{Name: "linux/amd64", Subject: verify.Subject{Digest: amd64}}, {Name: "linux/arm64", Subject: verify.Subject{Digest: arm64}}}
	other := digest.FromString("other")
	const ok, waiting, denied, transient = "", "waiting", "denied", "transient"
	for name, c := range map[string]struct {
		shelf     *shelf
		require   []verify.Requirement
		platforms []string
		want      string
		says      string
	}{
		"a signature":                             {(&shelf{}).put(signed("a")), []verify.Requirement{signatureBy(0, "a", "b")}, nil, ok, ""},
		"nothing":                                 {&shelf{}, []verify.Requirement{signatureBy(0, "a")}, nil, waiting, "no signature by a trusted identity"},
		"a signature by who may not":              {(&shelf{}).put(signed("c")), []verify.Requirement{signatureBy(0, "a", "b")}, nil, denied, "they may not sign this"},
		"a signature of something else":           {(&shelf{}).put(signed("a", on(other))), []verify.Requirement{signatureBy(0, "a")}, nil, waiting, ""},
		"the shelf lies about the digest":         {&shelf{statements: map[digest.Digest][]verify.Statement{image: {signed("a", on(other))}}}, []verify.Requirement{signatureBy(0, "a")}, nil, denied, "it is about"},
		"an attestation is no signature":          {(&shelf{}).put(scanned("a", "clean")), []verify.Requirement{signatureBy(0, "a")}, nil, waiting, ""},
		"a signature is no attestation":           {(&shelf{}).put(signed("a")), []verify.Requirement{clean(0, "a")}, nil, waiting, ""},
		"another's requirement":                   {(&shelf{}).put(signed("a"), scanned("a", "clean")), []verify.Requirement{signatureBy(0, "a"), clean(0, "b")}, nil, denied, "they may not sign this"},
		"both":                                    {(&shelf{}).put(signed("a"), scanned("b", "clean")), []verify.Requirement{signatureBy(0, "a"), clean(0, "b")}, nil, ok, ""},
		"one of both":                             {(&shelf{}).put(signed("a")), []verify.Requirement{signatureBy(0, "a"), clean(0, "b")}, nil, waiting, "no predicate"},
		"missing beside wrong":                    {(&shelf{}).put(scanned("a", "worms")), []verify.Requirement{signatureBy(0, "a"), clean(0, "a")}, nil, denied, "worms"},
		"two of two":                              {(&shelf{}).put(signed("a"), signed("b")), []verify.Requirement{signatureBy(2, "a", "b")}, nil, ok, ""},
		"one of two":                              {(&shelf{}).put(signed("a")), []verify.Requirement{signatureBy(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"one twice":                               {(&shelf{}).put(signed("a"), signed("a")), []verify.Requirement{signatureBy(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"one party under two names":               {(&shelf{}).put(signed("a", party("p")), signed("b", party("p"))), []verify.Requirement{signatureBy(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"one signature for two names":             {(&shelf{}).put(signed("a", also("b"))), []verify.Requirement{signatureBy(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"one name for two parties":                {(&shelf{}).put(signed("a", party("p")), signed("a", party("q"))), []verify.Requirement{signatureBy(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"two names that overlap":                  {(&shelf{}).put(signed("a", also("b"), party("p")), signed("a", party("q"))), []verify.Requirement{signatureBy(2, "a", "b")}, nil, ok, ""},
		"two of three":                            {(&shelf{}).put(signed("c"), signed("b")), []verify.Requirement{signatureBy(2, "a", "b", "c")}, nil, ok, ""},
		"two signers, one builder":                {(&shelf{}).put(scanned("a", "builder x"), scanned("b", "builder x")), []verify.Requirement{clean(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"two signers, two builders":               {(&shelf{}).put(scanned("a", "builder x"), scanned("b", "builder y")), []verify.Requirement{clean(2, "a", "b")}, nil, ok, ""},
		"one signer, two builders":                {(&shelf{}).put(scanned("a", "builder x", also("b")), scanned("a", "builder y", also("b"))), []verify.Requirement{clean(2, "a", "b")}, nil, waiting, "only 1 of 2"},
		"rejected, of unknown type":               {(&shelf{}).reject(verify.Rejected{Reason: errors.New("garbled")}), []verify.Requirement{clean(0, "a")}, nil, denied, "garbled"},
		"rejected, of this type":                  {(&shelf{}).reject(verify.Rejected{PredicateType: scan, Reason: errors.New("forged")}), []verify.Requirement{clean(0, "a")}, nil, denied, "forged"},
		"rejected, of another type":               {(&shelf{}).reject(verify.Rejected{PredicateType: "x", Reason: errors.New("forged")}), []verify.Requirement{clean(0, "a")}, nil, waiting, ""},
		"revoked":                                 {(&shelf{}).reject(verify.Rejected{PredicateType: scan, Reason: fmt.Errorf("key: %w", verify.ErrRevoked)}), []verify.Requirement{clean(0, "a")}, nil, denied, "revoked"},
		"a panic":                                 {(&shelf{}).put(scanned("a", "panic")), []verify.Requirement{clean(0, "a")}, nil, denied, "malformed: boom"},
		"young enough":                            {(&shelf{}).put(signed("a")), []verify.Requirement{within(time.Hour, signatureBy(0, "a"))}, nil, ok, ""},
		"too old":                                 {(&shelf{}).put(signed("a", at(noon.Add(-time.Second)))), []verify.Requirement{within(time.Hour, signatureBy(0, "a"))}, nil, denied, "more than 1h0m0s ago"},
		"of no known age":                         {(&shelf{}).put(signed("a", at(time.Time{}))), []verify.Requirement{within(time.Hour, signatureBy(0, "a"))}, nil, denied, "nothing proves when"},
		"the registry is down":                    {&shelf{down: errors.New("down")}, []verify.Requirement{signatureBy(0, "a")}, nil, transient, "down"},
		"the artifact cannot be seen":             {&shelf{gone: errors.New("hidden")}, []verify.Requirement{signatureBy(0, "a")}, nil, transient, "hidden"},
		"the newest scan counts":                  {(&shelf{}).put(scanned("a", "clean", at(noon.Add(-time.Hour))), scanned("a", "worms")), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},
		"the newest scan is clean":                {(&shelf{}).put(scanned("a", "worms", at(noon.Add(-time.Hour))), scanned("a", "clean")), []verify.Requirement{clean(0, "a")}, nil, ok, ""},
		"another's scan does not count for his":   {(&shelf{}).put(scanned("b", "worms"), scanned("a", "clean", at(noon.Add(-time.Hour)))), []verify.Requirement{clean(0, "a", "b")}, nil, ok, ""},
		"the newest by its own word":              {(&shelf{}).put(scanned("a", "clean@2026-01-01T00:00:00Z"), scanned("a", "worms@2026-01-02T00:00:00Z")), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},
		"stamped anew, it is no newer":            {(&shelf{}).put(scanned("a", "clean@2026-01-01T00:00:00Z", at(noon.Add(time.Minute))), scanned("a", "worms@2026-01-02T11:00:00Z")), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},
		"stamped anew, it is no younger":          {(&shelf{}).put(scanned("a", "clean@2026-01-02T00:00:00Z")), []verify.Requirement{within(2*time.Hour, clean(0, "a"))}, nil, denied, "more than 2h0m0s ago"},
		"by a key, without a date, none is newer": {(&shelf{}).put(scanned("a", "refused", by(nil)), scanned("a", "clean", by(nil), at(noon.Add(time.Minute)))), []verify.Requirement{clean(0, "a")}, nil, denied, "it is refused"},
		"a word is less than a proof":             {(&shelf{}).put(scanned("a", "clean@2027-01-01T00:00:00Z", at(time.Time{})), scanned("a", "worms")), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},

		"on the index":                      {(&shelf{platforms: index}).put(scanned("a", "clean")), []verify.Requirement{clean(0, "a")}, nil, ok, ""},
		"on each platform":                  {(&shelf{platforms: index}).put(scanned("a", "clean", on(amd64)), scanned("a", "clean", on(arm64))), []verify.Requirement{clean(0, "a")}, nil, ok, ""},
		"on one platform":                   {(&shelf{platforms: index}).put(scanned("a", "clean", on(amd64))), []verify.Requirement{clean(0, "a")}, nil, waiting, ""},
		"on the one that runs":              {(&shelf{platforms: index}).put(scanned("a", "clean", on(amd64))), []verify.Requirement{clean(0, "a")}, []string{"linux/amd64"}, ok, ""},
		"on the one that does not run":      {(&shelf{platforms: index}).put(scanned("a", "clean", on(amd64))), []verify.Requirement{clean(0, "a")}, []string{"linux/arm64"}, waiting, ""},
		"a platform that is not there":      {(&shelf{platforms: index}).put(scanned("a", "clean")), []verify.Requirement{clean(0, "a")}, []string{"linux/s390x"}, denied, "nothing for linux/s390x"},
		"on all but one that runs anywhere": {(&shelf{platforms: append(slices.Clone(index), verify.Platform{Name: verify.AnyPlatform, Subject: verify.Subject{Digest: other}})}).put(scanned("a", "clean", on(amd64))), []verify.Requirement{clean(0, "a")}, []string{"linux/amd64"}, waiting, ""},
		"wrong on a platform":               {(&shelf{platforms: index}).put(scanned("a", "clean", on(amd64)), scanned("a", "worms", on(arm64))), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},
		"wrong on the index alone":          {(&shelf{platforms: index}).put(scanned("a", "worms"), scanned("a", "clean", on(amd64)), scanned("a", "clean", on(arm64))), []verify.Requirement{clean(0, "a")}, nil, ok, ""},
		"wrong on the index, missing below": {(&shelf{platforms: index}).put(scanned("a", "worms"), scanned("a", "clean", on(amd64))), []verify.Requirement{clean(0, "a")}, nil, denied, "worms"},
		"contradicted on the index":         {(&shelf{platforms: index}).put(scanned("a", "refused"), scanned("a", "clean", on(amd64)), scanned("a", "clean", on(arm64))), []verify.Requirement{clean(0, "a")}, nil, denied, "refused"},
		"a signature on each platform only": {(&shelf{platforms: index}).put(signed("a", on(amd64)), signed("a", on(arm64))), []verify.Requirement{signatureBy(0, "a")}, nil, waiting, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := verifier(t, c.shelf, c.require...).Verify(t.Context(), verify.Subject{Kind: verify.KindImage, Name: "x", Digest: image, Platforms: c.platforms})
			kind := map[string]fault.Kind{waiting: fault.Waiting, denied: fault.Denied, transient: fault.Transient}[c.want]
			switch {
			case c.want == ok:
				if err != nil || !e.Verified() || len(e.Checks) != len(c.require) {
					t.Fatalf("refused: %v\n%+v", err, e.Checks)
				}
			case err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), c.says):
				t.Fatalf("%v (%v), want %s with %q", err, fault.KindOf(err), c.want, c.says)
			case c.want == waiting && !errors.Is(err, verify.ErrMissing):
				t.Errorf("missing, or not: %v", err)
			case c.want != transient && (e.Verified() || fault.HintOf(err) == ""):
				t.Errorf("a refusal has a failed check and a hint: %+v %q", e.Checks, fault.HintOf(err))
			}
		})
	}
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	s := (&shelf{}).put(signed("a"), signed("b", at(noon.Add(30*time.Minute))), scanned("a", "clean"))
	e, err := verifier(t, s, within(2*time.Hour, signatureBy(2, "a", "b")), clean(0, "a")).Verify(t.Context(), verify.Subject{Digest: image})
	if err != nil {
		t.Fatal(err)
	}
	if want := noon.Add(2 * time.Hour); !e.NotAfter.Equal(want) {
		t.Errorf("it holds until %s, want %s: then the first signature is too old", e.NotAfter, want)
	}
	if len(e.RestsOn) != 2 || e.RestsOn[0].Value != "a" || e.RestsOn[1].Value != "b" {
		t.Errorf("it rests on %v", e.RestsOn)
	}
	signatures, _ := e.Facts["signatures"].([]any)
	predicates, _ := e.Facts["predicates"].([]any)
	if len(signatures) != 2 || len(predicates) != 1 || predicates[0].(map[string]any)["found"] != "clean" || predicates[0].(map[string]any)["on"] != "image" {
		t.Errorf("facts: %v", e.Facts)
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times what the image has", n)
	}
}

func TestTriedIsBounded(t *testing.T) {
	t.Parallel()
	s := &shelf{}
	long := strings.Repeat("x", 10_000) + "\x1b[2K"
	for range 100 {
		s.put(scanned("a", long, func(st *verify.Statement) { st.Where = "\x1b[2K\r" + long }))
		s.rejected = map[digest.Digest][]verify.Rejected{image: append(s.rejected[image], verify.Rejected{Where: long, Reason: errors.New(long)})}
	}
	e, err := verifier(t, s, clean(0, "a")).Verify(t.Context(), verify.Subject{Digest: image})
	if err == nil || len(e.Checks[0].Tried) != 17 || len(err.Error()) > 5_000 || len(e.Checks[0].Found) > 5_000 {
		t.Fatalf("%d tried, %d bytes of error", len(e.Checks[0].Tried), len(err.Error()))
	}
	for _, tried := range e.Checks[0].Tried {
		for _, text := range []string{tried.Where, tried.What, tried.Found, tried.Why, err.Error()} {
			if strings.ContainsAny(text, "\x1b\r") || len(text) > 5_000 {
				t.Fatalf("%d bytes, or with what a terminal acts on: %.60q", len(text), text)
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	none := func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) {
		return nil, fmt.Errorf("not mine: %w", verify.ErrNotApplicable)
	}
	broken := func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) {
		return nil, errors.New("a bad key")
	}
	fine := func([]verify.Signer, *verify.Revocations) (verify.Attestor, error) { return &shelf{}, nil }
	for name, c := range map[string]struct {
		sources []Source
		require []verify.Requirement
	}{
		"no source":             {nil, []verify.Requirement{signatureBy(0, "a")}},
		"a source for others":   {[]Source{none}, []verify.Requirement{signatureBy(0, "a")}},
		"a source that fails":   {[]Source{fine, broken}, []verify.Requirement{signatureBy(0, "a")}},
		"nothing to require":    {[]Source{fine}, nil},
		"a requirement unknown": {[]Source{fine}, []verify.Requirement{clean(0, "a")}},
	} {
		if _, err := New(verify.Rule{Require: c.require}, nil, c.sources); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	s := &shelf{platforms: []verify.Platform{{Name: "linux/amd64", Subject: verify.Subject{Digest: amd64}}}}
	v := verifier(t, s, signatureBy(0, "a"), clean(0, "a"))
	var seen []digest.Digest
	for _, st := range []verify.Statement{signed("a"), signed("b"), scanned("a", "clean", on(amd64))} {
		s.put(st)
		d, err := v.Fingerprint(t.Context(), verify.Subject{Digest: image})
		if err != nil || slices.Contains(seen, d) {
			t.Errorf("%s, %v: it did not change", d, err)
		}
		seen = append(seen, d)
	}
}

// TestNestedIndexes: of what an index calls an image each that is to run is looked into.
func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	s := &shelf{platforms: []verify.Platform{{Name: "linux/amd64", Subject: verify.Subject{Digest: amd64}}, {Name: "linux/arm64", Subject: verify.Subject{Digest: arm64}}}, nested: arm64}
	s.put(signed("a"))
	v := verifier(t, s, signatureBy(0, "a"))
	if _, err := v.Verify(t.Context(), verify.Subject{Digest: image}); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "an index inside an index") {
		t.Errorf("accepted, or %v", err)
	}
	if _, err := v.Verify(t.Context(), verify.Subject{Digest: image, Platforms: []string{"linux/amd64"}}); err != nil {
		t.Errorf("what does not run is in the way: %v", err)
	}
}
