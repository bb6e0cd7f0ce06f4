package verify_test

import (
	"strings"
	"testing"

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
