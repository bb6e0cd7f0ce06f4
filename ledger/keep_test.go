package ledger_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
)

// TestKeep: what an entry's documents name is stored before the entry, or there is no
// entry; taking trust away does not wait for it.
func TestKeep(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	doc := []byte(`{"answers":{}}`)
	d := l.Keep(doc)
	if d != digest.FromBytes(doc) {
		t.Fatalf("kept as %q", d)
	}
	naming := func(d digest.Digest) map[string][]byte {
		return map[string][]byte{"evidence": []byte(`{"inputs":"` + d.String() + `"}`)}
	}
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, naming(d)); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Body(t.Context(), d); err != nil || string(b) != string(doc) {
		t.Errorf("it was not there when the entry was: %q, %v", b, err)
	}
	if l.Keep(make([]byte, ledger.MaxBody+1)) != "" {
		t.Error("a document that cannot be read back was kept")
	}

	bodies := filepath.Join(k.dir, "bodies", "sha256")
	if err := os.Rename(bodies, bodies+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bodies, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 40<<20)
	late := []byte(`{"answers":{"late":""}}`)
	d = l.Keep(late)
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, naming(d)); fault.KindOf(err) != fault.Transient {
		t.Errorf("an entry without what it was judged by: %v", err)
	}
	for _, e := range []ledger.Entry{{Type: ledger.Revoked, Outcome: "key", Subject: "x"}, {Type: ledger.Seen}} {
		if _, err := l.Append(t.Context(), e, nil); err != nil {
			t.Errorf("a %s waits for the documents of others: %v", e.Type, err)
		}
	}
	for range 3 {
		l.Keep(make([]byte, 40<<20))
		rand.Read(big)
		if full := l.Keep(bytes.Clone(big)); full != "" {
			t.Error("a disk that takes nothing fills the memory")
		}
	}
	if err := os.Remove(bodies); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(bodies+".away", bodies); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, naming(d)); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Body(t.Context(), d); err != nil || string(b) != string(late) {
		t.Errorf("what failed once was forgotten: %q, %v", b, err)
	}
	k.check(t)
}

// A body that several entries name is written once, and again if it was taken away.
func TestBodyIsWrittenOnce(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	doc := []byte("what several entries name")
	hex := digest.FromBytes(doc).Encoded()
	name := filepath.Join(k.dir, "bodies", "sha256", hex[:2], hex)
	put := func() os.FileInfo {
		t.Helper()
		if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": doc}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := put()
	if !os.SameFile(first, put()) {
		t.Error("it was written again")
	}
	for what, damage := range map[string]func() error{
		"removed": func() error { return os.Remove(name) },
		"cut":     func() error { return os.Truncate(name, 3) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		put()
		if b, err := l.Body(t.Context(), digest.FromBytes(doc)); err != nil || string(b) != string(doc) {
			t.Errorf("%s: %q, %v", what, b, err)
		}
	}
}
