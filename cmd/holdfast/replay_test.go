package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/verify"
)

// TestKeeperKeepsNoSecret: signed bytes cannot be masked, so they are not kept.
func TestKeeperKeepsNoSecret(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ledger")
	signer, vkey, err := ledger.LoadOrCreateKey(dir+".key", ledgerOrigin)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{Dir: dir, Signer: signer, Verifier: vkey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	k := &keeper{ledger: l, scrub: func(s string) string { return strings.ReplaceAll(s, "hunter2", "***") },
		holds: func(s string) bool { return strings.Contains(s, "hunter2") }, log: slog.New(slog.DiscardHandler)}
	in := func(answer string) verify.Inputs {
		a := verify.NewAnswers()
		a.Add("GET x", []byte(answer))
		return a.Complete(verify.Inputs{Time: time.Unix(0, 0)})
	}
	if d := k.inputs(in("hunter2")); d != "" {
		t.Errorf("an answer with a secret in it is kept as %s", d)
	}
	if d := k.document(map[string]string{"a": "hunter2"}); d != "" {
		t.Errorf("a document with a secret in it is kept as %s", d)
	}
	d := k.inputs(in("nothing"))
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte(d)}); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Body(t.Context(), d); err != nil || digest.FromBytes(b) != d {
		t.Errorf("what has no secret is not kept: %v", err)
	}
	var none *keeper
	if none.inputs(in("x")) != "" || none.document("x") != "" {
		t.Error("a command without a ledger keeps something")
	}
}

// TestInputsOfAnother: what is kept about one thing says nothing about another, nor
// later than the entry, nor past what was revoked.
func TestInputsOfAnother(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key := verify.Anchor{Kind: verify.AnchorKey, Value: "sha256:" + strings.Repeat("0a", 32)}
	d := digest.FromString("image")
	image := verify.Subject{Kind: verify.KindImage, Name: "ghcr.io/acme/app", Digest: d, Platforms: []string{"linux/amd64"}}
	commit := verify.Subject{Kind: "commit", Name: "fleet", Reference: strings.Repeat("1", 40)}
	p := player{entry: ledger.Entry{Time: noon}, revoked: []ledger.Entry{{Type: ledger.Revoked, Time: noon.Add(-time.Hour), Outcome: "key", Subject: key.Value}}}
	good := verify.Inputs{Time: noon.Add(-time.Minute), Revocations: []verify.Revocation{{Anchor: key}}, Content: map[digest.Digest][]byte{d: []byte("image")}}
	for name, c := range map[string]struct {
		of     verify.Subject
		change func(*verify.Inputs)
		ok     bool
	}{
		"the image":           {image, func(*verify.Inputs) {}, true},
		"the commit":          {commit, func(*verify.Inputs) {}, true},
		"before it was taken": {image, func(in *verify.Inputs) { in.Time, in.Revocations = noon.Add(-2*time.Hour), nil }, true},
		"another commit":      {commit, func(in *verify.Inputs) { in.Subject.Reference = strings.Repeat("2", 40) }, false},
		"another repository":  {commit, func(in *verify.Inputs) { in.Subject.Name = "other" }, false},
		"another digest":      {image, func(in *verify.Inputs) { in.Subject.Digest = digest.FromString("other") }, false},
		"another name":        {image, func(in *verify.Inputs) { in.Subject.Name = "ghcr.io/other/app" }, false},
		"another kind":        {image, func(in *verify.Inputs) { in.Subject.Kind = verify.KindChart }, false},
		"fewer platforms":     {image, func(in *verify.Inputs) { in.Subject.Platforms = nil }, false},
		"later":               {image, func(in *verify.Inputs) { in.Time = noon.Add(time.Minute) }, false},
		"nothing revoked":     {image, func(in *verify.Inputs) { in.Revocations = nil }, false},
		"another answer":      {image, func(in *verify.Inputs) { in.Content = map[digest.Digest][]byte{d: []byte("other")} }, false},
	} {
		in := good
		in.Subject = c.of
		c.change(&in)
		if err := p.sound(in, verify.Evidence{Subject: c.of}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
