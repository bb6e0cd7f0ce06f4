package verify_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
)

func TestRevocations(t *testing.T) {
	t.Parallel()
	upper, lower := "SHA256:"+strings.Repeat("A", 43), "SHA256:"+strings.Repeat("a", 43)
	first := revocation(verify.Anchor{Kind: verify.AnchorKey, Value: upper})
	again := first
	again.Reason = "another reason"
	var r verify.Revocations
	r.Add(first)
	r.Add(again)
	if list := r.List(); len(list) != 1 || list[0] != first || r.Epoch() != 1 {
		t.Errorf("what is revoked already was revoked again: %v, epoch %d", list, r.Epoch())
	}
	if r.Check(first.Anchor) == nil {
		t.Error("the key is not revoked")
	}
	if err := r.Check(verify.Anchor{Kind: verify.AnchorKey, Value: lower}); err != nil {
		t.Errorf("base64 in another case is another key: %v", err)
	}
	var none *verify.Revocations
	if err := none.Check(first.Anchor); err != nil || none.Epoch() != 0 || none.List() != nil {
		t.Errorf("nil holds something: %v, epoch %d, %v", err, none.Epoch(), none.List())
	}
}

// TestRevokedSince: a revocation as of a time spares what is known to have been
// there before, and nothing else; it can reach back further, and never less.
func TestRevokedSince(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key := verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0a", 32)}
	as := func(at time.Time) verify.Anchor { return verify.SeenAt(at, []verify.Anchor{key})[0] }
	since := func(at time.Time) verify.Revocation {
		return verify.Revocation{Anchor: key, Since: at, Reason: "leaked", Time: noon.Add(time.Hour)}
	}
	var r verify.Revocations
	check := func(when string, at time.Time, refused bool) {
		t.Helper()
		if err := r.Check(as(at)); (err != nil) != refused || err != nil && !errors.Is(err, verify.ErrRevoked) {
			t.Errorf("%s, signed %s: %v", when, at, err)
		}
	}
	r.Add(since(noon))
	check("as of noon", noon.Add(-time.Nanosecond), false)
	check("as of noon", noon, true)
	check("as of noon", noon.Add(time.Second), true)
	check("as of noon", time.Time{}, true)
	epoch := r.Epoch()
	r.Add(since(noon.Add(time.Minute)))
	if check("it never reaches less far", noon, true); r.Epoch() != epoch {
		t.Error("what changes nothing counts as a revocation")
	}
	r.Add(since(noon.Add(-time.Minute)))
	if check("it reaches back further", noon.Add(-time.Second), true); r.Epoch() == epoch {
		t.Error("nobody would look again")
	}
	check("it reaches back further", noon.Add(-time.Hour), false)
	r.Add(since(time.Time{}))
	check("for good", noon.Add(-time.Hour), true)
	r.Add(since(noon))
	check("for good, whatever is said later", noon.Add(-time.Hour), true)

	for name, v := range map[string]verify.Revocation{
		"in the future": {Anchor: key, Since: noon.Add(time.Hour)},
		"a digest":      {Anchor: verify.Anchor{Kind: verify.AnchorDigest, Value: key.Value}, Since: noon},
		"no value":      {Anchor: verify.Anchor{Kind: verify.AnchorKey}, Since: noon},
	} {
		if v.Validate(noon.Add(time.Minute)) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := since(noon).Validate(noon); err != nil {
		t.Error(err)
	}
	merged := verify.Anchors([]verify.Anchor{as(noon), key}, []verify.Anchor{as(noon.In(time.FixedZone("x", 60)))})
	if len(merged) != 2 || !merged[0].At.IsZero() {
		t.Errorf("what nothing proves was lost: %v", merged)
	}
}

func TestAnchorValidate(t *testing.T) {
	t.Parallel()
	hex := strings.Repeat("0123456789abcdef", 4)
	for kind, values := range map[verify.AnchorKind]struct{ good, bad []string }{
		verify.AnchorKey: {
			good: []string{"SHA256:" + hex[:43], "sha256:" + hex, hex[:40], strings.ToUpper(hex[:40]), "0123 4567" + hex[:32]},
			bad:  []string{"", hex[:16], "SHA256:" + hex[:42], "sha256:" + hex[:63], "MD5:00:11"},
		},
		verify.AnchorIdentity: {good: []string{"alice"}, bad: []string{"", " "}},
		verify.AnchorDigest:   {good: []string{"sha256:" + hex, strings.ToUpper("sha256:" + hex)}, bad: []string{"", hex, "sha256:" + hex[:12]}},
		verify.AnchorPolicy:   {good: []string{"sha256:" + hex}, bad: []string{"", hex}},
		verify.AnchorCommit:   {good: []string{hex[:40], strings.ToUpper(hex[:40]), hex}, bad: []string{"", hex[:7], hex[:39], "main"}},
		"tag":                 {bad: []string{"v1"}},
	} {
		for _, v := range values.good {
			if err := (verify.Anchor{Kind: kind, Value: v}).Validate(); err != nil {
				t.Errorf("%s %q: %v", kind, v, err)
			}
		}
		for _, v := range values.bad {
			if err := (verify.Anchor{Kind: kind, Value: v}).Validate(); err == nil {
				t.Errorf("%s %q would revoke nothing, and is accepted", kind, v)
			}
		}
	}
}
