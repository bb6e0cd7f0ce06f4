package main

import (
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
	k := &keeper{l, func(s string) string { return strings.ReplaceAll(s, "hunter2", "***") }}
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
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, nil); err != nil {
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
