package ledger_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
)

// copied is a copy of a log as a power cut leaves it: what was not synced is gone.
func copied(t *testing.T, k testLog) (_ testLog, body func(d digest.Digest) string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ledger")
	if err := os.CopyFS(dir, os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	k.dir = dir
	return k, func(d digest.Digest) string {
		return filepath.Join(dir, "bodies", "sha256", d.Encoded()[:2], d.Encoded())
	}
}

// A body whose file did not survive is written again from the journal.
func TestJournalIsReplayed(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	docs := []string{"first", "", "third: " + strings.Repeat("x", 4000)}
	for _, doc := range docs {
		mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte(doc)})
	}
	large := make([]byte, 2<<20) // its file is synced
	rand.Read(large)
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": large})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	sum := func(doc string) digest.Digest { return digest.FromString(doc) }
	for name, tc := range map[string]struct {
		harm func(t *testing.T, k testLog, body func(digest.Digest) string)
		lost int // documents that nothing can bring back
	}{
		"nothing": {harm: func(*testing.T, testLog, func(digest.Digest) string) {}},
		"files gone": {harm: func(t *testing.T, _ testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")), body(sum("")))
		}},
		"folders gone": {harm: func(t *testing.T, _ testLog, body func(digest.Digest) string) {
			remove(t, filepath.Dir(body(sum("first"))))
		}},
		"files empty": {harm: func(t *testing.T, _ testLog, body func(digest.Digest) string) {
			for _, doc := range docs {
				if err := os.Truncate(body(sum(doc)), 0); err != nil {
					t.Fatal(err)
				}
			}
		}},
		"cut off in what was added last": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")))
			lengthen(t, filepath.Join(k.dir, "bodies", "journal"), bytes.Repeat([]byte{1}, sha256.Size+3))
		}},
		"cut off in a body": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")))
			lengthen(t, filepath.Join(k.dir, "bodies", "journal"), append(make([]byte, sha256.Size+7), 200, 'x'))
		}},
		"nonsense behind it": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")))
			lengthen(t, filepath.Join(k.dir, "bodies", "journal"), bytes.Repeat([]byte{0xff}, 300))
		}},
		"while it is begun anew": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")))
			if err := os.Rename(filepath.Join(k.dir, "bodies", "journal"), filepath.Join(k.dir, "bodies", "journal.old")); err != nil {
				t.Fatal(err)
			}
		}},
		"both, and one of them holds a body twice": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")), body(sum("")))
			b, err := os.ReadFile(filepath.Join(k.dir, "bodies", "journal"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(k.dir, "bodies", "journal.old"), append(b, b...), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		"one changed in the journal, the others gone": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			edit(t, filepath.Join(k.dir, "bodies", "journal"), "first", "worst")
			remove(t, body(sum("")), body(sum(docs[2])))
		}},
		"the journal gone": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")), filepath.Join(k.dir, "bodies", "journal"))
		}, lost: 1},
		"changed in the journal and gone": {harm: func(t *testing.T, k testLog, body func(digest.Digest) string) {
			remove(t, body(sum("first")))
			edit(t, filepath.Join(k.dir, "bodies", "journal"), "first", "worst")
		}, lost: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, body := copied(t, k)
			tc.harm(t, k, body)
			l := k.open(t)
			lost := 0
			for _, doc := range append(docs, string(large)) {
				if b, err := l.Body(t.Context(), sum(doc)); err != nil || string(b) != doc {
					lost++
				}
			}
			if lost != tc.lost {
				t.Errorf("%d documents are lost, want %d", lost, tc.lost)
			}
			if left, _ := filepath.Glob(filepath.Join(k.dir, "bodies", "journal*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte("next")})
			mustClose(t, l)
			if left, _ := filepath.Glob(filepath.Join(k.dir, "bodies", "journal*")); len(left) > 0 {
				t.Errorf("left by Close: %v", left)
			}
			if tc.lost == 0 {
				k.check(t)
			}
		})
	}
}

func remove(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
}

func stat(t *testing.T, name string) fs.FileInfo {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// mustBody fails the test unless the log has a document.
func mustBody(t *testing.T, l *ledger.Ledger, doc string) {
	t.Helper()
	if b, err := l.Body(t.Context(), digest.FromString(doc)); err != nil || string(b) != doc {
		t.Errorf("%q, %v, want %q", b, err, doc)
	}
}

func lengthen(t *testing.T, name string, by []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(by); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// The journal does not grow for ever, and only entries with bodies wait for it.
func TestJournalBegunAnew(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	name := filepath.Join(k.dir, "bodies", "journal")
	doc := make([]byte, 1<<20)
	most := int64(0)
	for range 80 {
		rand.Read(doc)
		mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": bytes.Clone(doc)})
		if info, err := os.Stat(name); err == nil {
			most = max(most, info.Size())
		}
	}
	if most > 41<<20 || most < 31<<20 {
		t.Errorf("the journal had up to %d bytes", most)
	}
	remove(t, name)
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte("x")}); fault.KindOf(err) != fault.Transient {
		t.Errorf("a body that nothing makes durable: %v", err)
	}
	mustAppend(t, l, ledger.Entry{Type: ledger.Revoked, Outcome: "key", Subject: "x"}, nil)
	remove(t, name)
	i := mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte("x")})
	if e, err := l.Entry(t.Context(), i); err != nil || e.Bodies["evidence"] != digest.FromString("x") {
		t.Errorf("%v, %v", e.Bodies, err)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%v, %v", info, err)
	}
	mustBody(t, l, "x")
	mustClose(t, l)
	k.check(t)
}

// A body that many entries name at once, while the journal is begun anew again and again,
// and its file is cut: it is whole, and every entry has it.
func TestJournalWhileItIsFlushed(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	doc := bytes.Repeat([]byte("shared "), 1000)
	hex := digest.FromBytes(doc).Encoded()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				own := fmt.Appendf(nil, "%d %d", w, i)
				if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": doc, "plan": own}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		wg.Go(func() {
			if err := l.FlushBodies(t.Context()); err != nil {
				t.Error(err)
			}
			_ = os.Truncate(filepath.Join(k.dir, "bodies", "sha256", hex[:2], hex), 7) // it may not be there yet
		})
	}
	wg.Wait()
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": doc})
	mustClose(t, l)
	k.check(t)
}

// After adding to the journal failed, nothing counts as durable that only a lost journal
// held: it is put once more, and what was acknowledged before is synced.
func TestJournalIsLost(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	first := map[string][]byte{"evidence": []byte("first")}
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, first)
	name := filepath.Join(k.dir, "bodies", "journal")
	remove(t, name)
	if _, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte("second")}); fault.KindOf(err) != fault.Transient {
		t.Errorf("acknowledged without a journal: %v", err)
	}
	sum := digest.FromString("first").Encoded()
	remove(t, filepath.Join(k.dir, "bodies", "sha256", sum[:2], sum))
	// What the lost journal held is written from what is left of it, before anything else.
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": []byte("third")})
	mustBody(t, l, "first")
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, first)
	if b, err := os.ReadFile(name); err != nil || !bytes.Contains(b, []byte("first")) {
		t.Errorf("what was journalled before the loss counts as journalled: %v", err)
	}
	mustClose(t, l)
	k.check(t)
}

// A flush that fails is told, and nothing is lost by it. All that it may have synced is written
// again, since the kernel may have dropped it.
func TestFlushFails(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	doc, other := []byte("what cannot be synced"), []byte("what can be")
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"evidence": doc, "plan": other})
	hex := digest.FromBytes(doc).Encoded()
	folder := filepath.Join(k.dir, "bodies", "sha256", hex[:2])
	remove(t, folder)
	if err := os.WriteFile(folder, nil, 0o600); err != nil { // a file is in the way
		t.Fatal(err)
	}
	name := digest.FromBytes(other).Encoded()
	name = filepath.Join(k.dir, "bodies", "sha256", name[:2], name)
	held, err := os.Open(name) // so that no other file gets its number
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	before := stat(t, name)
	for range 2 {
		if err := l.FlushBodies(t.Context()); err == nil {
			t.Error("flushed")
		}
	}
	if _, err := os.Stat(filepath.Join(k.dir, "bodies", "journal.old")); err != nil {
		t.Errorf("the journal of what was not synced: %v", err)
	}
	remove(t, folder)
	if err := l.FlushBodies(t.Context()); err != nil {
		t.Error(err)
	}
	mustBody(t, l, string(doc))
	if os.SameFile(before, stat(t, name)) {
		t.Error("a file was believed whose sync may have failed")
	}
	mustClose(t, l)
	k.check(t)
}
