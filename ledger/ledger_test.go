package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/ledger/fsck"
)

const origin = "holdfast.test/ledger"

// testLog is a log folder with its key.
type testLog struct {
	dir, vkey string
	signer    note.Signer
}

func newTestLog(t testing.TB) testLog {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ledger")
	signer, vkey, err := ledger.LoadOrCreateKey(dir+".key", origin)
	if err != nil {
		t.Fatal(err)
	}
	return testLog{dir: dir, vkey: vkey, signer: signer}
}

func (k testLog) config() ledger.Config {
	return ledger.Config{Dir: k.dir, Signer: k.signer, Verifier: k.vkey}
}

func (k testLog) open(t testing.TB) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), k.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // closing twice is fine
	return l
}

// copyTo copies the log's files, as a thief or a backup would.
func (k testLog) copyTo(t testing.TB) testLog {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	k.dir = to
	return k
}

func (k testLog) check(t testing.TB) fsck.Result {
	t.Helper()
	res, err := fsck.Check(t.Context(), fsck.DirReader(k.dir), fsck.Options{Verifiers: []string{k.vkey}})
	if err != nil {
		t.Fatalf("fsck: %v", err)
	}
	return res
}

func mustAppend(t testing.TB, l *ledger.Ledger, e ledger.Entry, bodies map[string][]byte) ledger.Index {
	t.Helper()
	i, err := l.Append(context.Background(), e, bodies)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func fill(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	for i := range n {
		mustAppend(t, l, ledger.Entry{Type: ledger.Seen, Note: fmt.Sprint("fill ", i)}, nil)
	}
}

func mustClose(t testing.TB, l *ledger.Ledger) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAppendReadProve(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	ctx := t.Context()

	body := []byte(`{"changes":[]}`)
	i0 := mustAppend(t, l, ledger.Entry{Type: ledger.Started, Note: "a <b> & \"c\"\nd"}, nil)
	i1 := mustAppend(t, l, ledger.Entry{Type: ledger.Intent, Stack: "shop", Environment: "prod", Revision: "r@1"},
		map[string][]byte{"plan": body, "copy": body})
	i2 := mustAppend(t, l, ledger.Entry{Type: ledger.Applied, Stack: "shop", Intent: &i1, Outcome: "ok"}, nil)

	e, err := l.Entry(ctx, i1)
	if err != nil {
		t.Fatal(err)
	}
	if e.Version != 1 || e.Stack != "shop" || time.Since(e.Time) > time.Minute || e.Bodies["plan"] != digest.FromBytes(body) {
		t.Errorf("entry %d is %+v", i1, e)
	}
	if got, err := l.Body(ctx, e.Bodies["plan"]); err != nil || !bytes.Equal(got, body) {
		t.Errorf("Body = %q, %v", got, err)
	}
	tail, err := l.Tail(ctx, 2)
	if err != nil || len(tail) != 2 || tail[0].Index != i1 || *tail[1].Entry.Intent != i1 {
		t.Errorf("Tail = %+v, %v", tail, err)
	}

	if err := l.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := ledger.OpenReader(k.dir, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []ledger.Index{i0, i1, i2} {
		p, err := l.Prove(ctx, i)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.Prove(ctx, i)
		if err != nil || !bytes.Equal(p, again) {
			t.Errorf("the reader's proof differs: %v", err)
		}
		got, err := fsck.CheckProof(p, nil, k.vkey)
		if err != nil || got.Index != uint64(i) || got.Origin != origin {
			t.Errorf("CheckProof = %+v, %v", got, err)
		}
		if _, err := fsck.CheckProof(p, []byte(`{"v":1,"type":"seen","time":"2026-01-01T00:00:00Z"}`), k.vkey); err == nil {
			t.Error("the proof holds for another leaf")
		}
	}
	if _, err := l.Prove(ctx, 99); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Prove(99) = %v", err)
	}
	for _, i := range []ledger.Index{3, 99, math.MaxUint64} {
		if e, err := r.Entry(ctx, i); err == nil || !strings.Contains(err.Error(), "there is no entry") {
			t.Errorf("Entry(%d) = %+v, %v", i, e, err)
		}
		if err := r.Scan(ctx, i, func(i ledger.Index, _ ledger.Entry) error { return fmt.Errorf("entry %d", i) }); err != nil {
			t.Errorf("Scan from %d: %v", i, err)
		}
	}
	var notes []string
	err = r.Scan(ctx, 0, func(_ ledger.Index, e ledger.Entry) error {
		notes = append(notes, e.Note)
		return nil
	})
	if err != nil || notes[0] != `a <b> & "c" d` {
		t.Errorf("Scan: %q, %v", notes, err)
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.Tail(ended, 1); !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Transient {
		t.Errorf("a cancelled read: %v (%v)", err, fault.KindOf(err))
	}
	if _, err := ledger.OpenReader(k.dir); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a reader without a key: %v", err)
	}

	mustClose(t, l)
	mustClose(t, l)
	res := k.check(t)
	if res.Size != 3 || res.Bodies != 1 || len(res.Open) != 0 || res.Entries["intent"] != 1 {
		t.Errorf("fsck found %+v", res)
	}
	if _, err := l.Append(ctx, ledger.Entry{Type: ledger.Seen}, nil); err == nil {
		t.Error("a closed ledger takes entries")
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 1)
	mustAppend(t, l, ledger.Entry{Type: ledger.Intent}, nil) // beside what is none
	zero, nine := ledger.Index(0), ledger.Index(9)
	long := strings.Repeat("x", ledger.MaxEntry)
	for name, tc := range map[string]struct {
		e      ledger.Entry
		bodies map[string][]byte
	}{
		"no type":            {e: ledger.Entry{}},
		"unknown type":       {e: ledger.Entry{Type: "gossip"}},
		"result, no intent":  {e: ledger.Entry{Type: ledger.Applied}},
		"result of a seen":   {e: ledger.Entry{Type: ledger.Applied, Intent: &zero}},
		"result of nothing":  {e: ledger.Entry{Type: ledger.Applied, Intent: &nine}},
		"drift of nothing":   {e: ledger.Entry{Type: ledger.Drift, Intent: &nine}},
		"two lines":          {e: ledger.Entry{Type: ledger.Seen, Stack: "a\nb"}},
		"not UTF-8":          {e: ledger.Entry{Type: ledger.Seen, Revision: "a\xff"}},
		"too large":          {e: ledger.Entry{Type: ledger.Seen, Revision: long}},
		"bodies by hand":     {e: ledger.Entry{Type: ledger.Seen, Bodies: map[string]digest.Digest{"a": digest.FromString("a")}}},
		"bad role":           {e: ledger.Entry{Type: ledger.Seen}, bodies: map[string][]byte{"../x": nil}},
		"too many documents": {e: ledger.Entry{Type: ledger.Seen}, bodies: many(17)},
		"a large document":   {e: ledger.Entry{Type: ledger.Seen}, bodies: map[string][]byte{"plan": make([]byte, ledger.MaxBody+1)}},
	} {
		if _, err := l.Append(t.Context(), tc.e, tc.bodies); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := l.Size(); got != 2 {
		t.Errorf("size %d after refusals, want 2", got)
	}
	if left, err := os.ReadDir(filepath.Join(k.dir, "bodies", "sha256")); err != nil || len(left) != 0 {
		t.Errorf("refused, and %d folders of documents were written: %v", len(left), err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Append(cancelled, ledger.Entry{Type: ledger.Seen}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled append: %v", err)
	}
}

func many(n int) map[string][]byte {
	m := map[string][]byte{}
	for i := range n {
		m[fmt.Sprint("role-", i)] = []byte{byte(i)}
	}
	return m
}

// A long note must not keep an intent out of the ledger.
func TestNoteIsCutToFit(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	i := mustAppend(t, l, ledger.Entry{
		Type: ledger.Intent, Revision: strings.Repeat("r", 150), Note: strings.Repeat(`"é`, 400),
	}, many(6))
	e, err := l.Entry(t.Context(), i)
	if err != nil || !strings.HasSuffix(e.Note, "…") || len(e.Note) < 100 {
		t.Errorf("note %q, %v", e.Note, err)
	}
	mustClose(t, l)
	k.check(t)
}

func TestConcurrentAppends(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	const n = 300 // more than one bundle
	indexes := make([]ledger.Index, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			indexes[i] = mustAppend(t, l, ledger.Entry{Type: ledger.Intent, Note: fmt.Sprint(i)}, nil)
		})
	}
	wg.Wait()
	for i, idx := range indexes {
		if e, err := l.Entry(t.Context(), idx); err != nil || e.Note != fmt.Sprint(i) {
			t.Fatalf("entry %d: %q, %v, want %d", idx, e.Note, err, i)
		}
	}
	for i := range n {
		wg.Go(func() {
			mustAppend(t, l, ledger.Entry{Type: ledger.Applied, Intent: &indexes[i], Outcome: "ok"}, nil)
		})
	}
	wg.Wait()
	mustClose(t, l)
	if res := k.check(t); res.Size != 2*n || len(res.Open) != 0 {
		t.Errorf("fsck found %+v", res)
	}
}

// A reader whose checkpoint is older than the last removal of partial tiles
// finds what it needs in the full ones: https://c2sp.org/tlog-tiles.
func TestFullTilesStandIn(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 5)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() { mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, nil) })
	}
	wg.Wait()
	mustClose(t, l)
	err = errors.Join(
		os.RemoveAll(filepath.Join(k.dir, "tile", "entries", "000.p")), os.RemoveAll(filepath.Join(k.dir, "tile", "0", "000.p")),
		os.WriteFile(filepath.Join(k.dir, "checkpoint"), old, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ledger.OpenReader(k.dir, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := r.Tail(t.Context(), 9)
	if err != nil || len(tail) != 5 || tail[4].Entry.Note != "fill 4" {
		t.Errorf("%+v, %v", tail, err)
	}
	if p, err := r.Prove(t.Context(), 3); err != nil {
		t.Error(err)
	} else if _, err := fsck.CheckProof(p, nil, k.vkey); err != nil {
		t.Error(err)
	}
}

func TestDanglingIntents(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	var intents []ledger.Index
	for range 3 {
		intents = append(intents, mustAppend(t, l, ledger.Entry{Type: ledger.Intent}, nil))
	}
	mustAppend(t, l, ledger.Entry{Type: ledger.Applied, Intent: &intents[0], Outcome: "ok"}, nil)
	mustAppend(t, l, ledger.Entry{Type: ledger.Drift, Intent: &intents[1]}, nil) // concerns, does not close
	mustAppend(t, l, ledger.Entry{Type: ledger.Reverted, Intent: &intents[2]}, nil)
	mustAppend(t, l, ledger.Entry{Type: ledger.Reverted}, nil) // closes nothing
	for _, when := range []string{"at once", "after a restart"} {
		got, err := l.DanglingIntents(t.Context())
		if err != nil || len(got) != 1 || got[0].Index != intents[1] {
			t.Errorf("%s: %+v, %v", when, got, err)
		}
		mustClose(t, l)
		l = k.open(t)
	}
	// An intent from before the restart can be closed.
	mustAppend(t, l, ledger.Entry{Type: ledger.Applied, Intent: &intents[1], Outcome: "abandoned"}, nil)
	if got, _ := l.DanglingIntents(t.Context()); len(got) != 0 {
		t.Errorf("still dangling: %+v", got)
	}
}

// What people ordered is kept in the ledger alone.
func TestOrders(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	orders := []ledger.Type{ledger.Revoked, ledger.Suspended, ledger.Resumed, ledger.Ordered}
	for _, o := range orders {
		mustAppend(t, l, ledger.Entry{Type: o, Note: "by alice"}, map[string][]byte{"order": nil}) // an empty document is one too
		mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, nil)
	}
	for _, when := range []string{"at once", "after a restart"} {
		got, err := l.Orders(t.Context())
		if err != nil || len(got) != len(orders) {
			t.Fatalf("%s: %+v, %v", when, got, err)
		}
		for i, o := range orders {
			if got[i].Entry.Type != o || got[i].Index != ledger.Index(2*i) {
				t.Errorf("%s: order %d is %+v, want %s", when, i, got[i], o)
			}
		}
		mustClose(t, l)
		l = k.open(t)
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	_, err := ledger.Open(t.Context(), k.config())
	if !errors.Is(err, ledger.ErrLocked) || fault.KindOf(err) != fault.Waiting {
		t.Errorf("second Open = %v", err)
	}
	mustClose(t, l)
	mustClose(t, k.open(t))
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 3)
	mustClose(t, l)
	short := k.copyTo(t)
	l = k.open(t)
	mustAppend(t, l, ledger.Entry{Type: ledger.Intent}, map[string][]byte{"plan": []byte("the plan")})
	fill(t, l, 1)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	newest, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	fork := short.copyTo(t)
	l = fork.open(t)
	fill(t, l, 10)
	mustClose(t, l)
	stranger := newTestLog(t)
	broken := testLog{dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(broken.dir, "checkpoint"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := newTestLog(t)
	mustClose(t, empty.open(t))

	remove := func(names ...string) func(testing.TB, testLog) {
		return func(t testing.TB, k testLog) {
			for _, n := range names {
				if err := os.RemoveAll(filepath.Join(k.dir, n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	replace := func(name string, from testLog) func(testing.TB, testLog) {
		return func(t testing.TB, k testLog) {
			b, err := os.ReadFile(filepath.Join(from.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(k.dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		from   testLog
		change func(testing.TB, testLog)
		config func(*ledger.Config)
		want   string
	}{
		"shorter than a checkpoint seen elsewhere": {from: short, config: func(c *ledger.Config) { c.MinCheckpoint = newest }, want: "it has 3 entries, but a checkpoint over 5"},
		"another history than one seen elsewhere":  {from: fork, config: func(c *ledger.Config) { c.MinCheckpoint = newest }, want: "are not those of a checkpoint"},
		"empty, but one was seen elsewhere":        {from: stranger, config: func(c *ledger.Config) { c.MinCheckpoint = newest }, want: "it has 0 entries, but a checkpoint over 5"},
		"a forged checkpoint from elsewhere":       {from: k, config: func(c *ledger.Config) { c.MinCheckpoint = bytes.Replace(newest, []byte("\n5\n"), []byte("\n4\n"), 1) }, want: "signature"},
		"tree state gone":                          {from: k, change: remove(".state"), want: "treeState is missing"},
		"all but the tiles gone":                   {from: k, change: remove(".state", "checkpoint", "bodies"), want: "treeState is missing"},
		"all but the bodies gone":                  {from: k, change: remove(".state", "checkpoint", "tile"), want: "treeState is missing"},
		"checkpoint gone":                          {from: k, change: remove("checkpoint"), want: "checkpoint"},
		"older tree than its own checkpoint":       {from: k, change: replace(".state/treeState", short), want: "it has 3 entries, but a checkpoint over 5"},
		"empty, with a broken checkpoint":          {from: empty, change: replace("checkpoint", broken), want: "checkpoint"},
		"checkpoint of another history":            {from: fork, change: replace("checkpoint", k), want: "are not those of a checkpoint"},
		"a bundle gone":                            {from: k, change: remove("tile/entries"), want: "no such file"},
		"a tile gone":                              {from: k, change: remove("tile/0"), want: "no such file"},
		"a bundle of another history":              {from: k, change: replace("tile/entries/000.p/5", fork), want: "entry"},
		"a tile of another history":                {from: k, change: replace("tile/0/000.p/5", fork), want: ""},
		"another key":                              {from: k, config: func(c *ledger.Config) { c.Signer, c.Verifier = stranger.signer, stranger.vkey }, want: "signature"},
		"no folder":                                {from: k, config: func(c *ledger.Config) { c.Dir = "" }, want: "needs a folder and a signer"},
		"no signer":                                {from: k, config: func(c *ledger.Config) { c.Signer = nil }, want: "needs a folder and a signer"},
		"verifier of another key":                  {from: k, config: func(c *ledger.Config) { c.Verifier = stranger.vkey }, want: "does not belong"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := tc.from
			if _, err := os.Stat(k.dir); err == nil {
				k = k.copyTo(t)
			}
			if tc.change != nil {
				tc.change(t, k)
			}
			cfg := k.config()
			if tc.config != nil {
				tc.config(&cfg)
				if tc.from.dir == stranger.dir { // its key, our log
					cfg.Signer, cfg.Verifier = short.signer, short.vkey
				}
			}
			l, err := ledger.Open(t.Context(), cfg)
			if err == nil {
				_ = l.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not mention %q", err, tc.want)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		k := k.copyTo(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ledger.Open(ctx, k.config()); !errors.Is(err, context.Canceled) || fault.KindOf(err) == fault.Denied {
			t.Errorf("got %v", err)
		}
	})
	t.Run("all is well", func(t *testing.T) {
		cfg := k.config()
		cfg.MinCheckpoint = newest
		l, err := ledger.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
	})
}

func TestDamageIsNoticed(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	i := mustAppend(t, l, ledger.Entry{Type: ledger.Intent, Note: "the truth"}, map[string][]byte{"plan": []byte("the plan")})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := l.Entry(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	d := e.Bodies["plan"]
	edit(t, filepath.Join(k.dir, "bodies/sha256", d.Encoded()[:2], d.Encoded()), "plan", "plot")
	if _, err := l.Body(t.Context(), d); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("Body = %v", err)
	}
	bundle, err := os.ReadFile(filepath.Join(k.dir, "tile/entries/000.p/1"))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(k.dir, "tile/entries/000.p/1"), "truth", "fraud")
	if _, err := l.Entry(t.Context(), i); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("Entry = %v", err)
	}
	r, err := ledger.OpenReader(k.dir, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Tail(t.Context(), 1); err == nil {
		t.Error("the reader shows a changed entry")
	}
	if err := os.WriteFile(filepath.Join(k.dir, "tile/entries/000.p/1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Entry(t.Context(), i); err == nil || !strings.Contains(err.Error(), "0 leaves, want 1") {
		t.Errorf("an empty bundle: %v", err)
	}
	edit(t, filepath.Join(k.dir, "tile/entries/000.p/1"), "", string(bundle))
	// The same document again repairs the body.
	mustAppend(t, l, ledger.Entry{Type: ledger.Seen}, map[string][]byte{"plan": []byte("the plan")})
	if _, err := l.Body(t.Context(), d); err != nil {
		t.Error(err)
	}
}

func edit(t testing.TB, name, old, with string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s has no %q", name, old)
	}
	if err := os.WriteFile(name, bytes.Replace(b, []byte(old), []byte(with), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every place that an append writes to fails once: the append must say so, the
// next one must work, and nothing that was acknowledged may be lost.
func TestFailedWrites(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path  string // where a folder is in the way, or what is taken away
		gone  bool
		start int  // entries before
		large bool // its body is synced by itself
	}{
		{path: ".state/treeState.lock"},
		{path: ".state/treeState"},
		{path: ".state/treeState", gone: true},
		{path: ".state", gone: true},
		{path: "tile/0/000.p/4"},
		{path: "tile/0/000", start: 255},
		{path: "tile/1/000.p/1", start: 255},
		{path: "tile/0", gone: true},
		{path: "tile/entries", gone: true},
		{path: "bodies/tmp", gone: true, large: true},
		{path: "bodies/journal"},
		{path: "bodies/journal", gone: true},
		{path: "bodies/sha256", gone: true},
	} {
		name := tc.path
		if tc.gone {
			name += " gone"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newTestLog(t)
			l := k.open(t)
			n := max(tc.start, 3) - 1
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() { fill(t, l, 1) })
			}
			wg.Wait()
			mustAppend(t, l, ledger.Entry{Type: ledger.Started}, map[string][]byte{"facts": []byte("{}")})

			path, aside := filepath.Join(k.dir, tc.path), filepath.Join(k.dir, "aside")
			if err := os.Rename(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if !tc.gone {
				if err := os.MkdirAll(filepath.Join(path, "in-the-way"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			e := ledger.Entry{Type: ledger.Intent, Note: "hindered"}
			body := []byte("hindered")
			if tc.large {
				body = bytes.Repeat(body, 1<<18)
			}
			_, err := l.Append(t.Context(), e, map[string][]byte{"plan": body})
			if err == nil {
				t.Fatal("acknowledged")
			}
			if fault.KindOf(err) != fault.Transient || fault.HintOf(err) == "" {
				t.Errorf("%v is %v, hint %q", err, fault.KindOf(err), fault.HintOf(err))
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(aside, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}

			i := mustAppend(t, l, ledger.Entry{Type: ledger.Intent, Note: "free"}, map[string][]byte{"plan": []byte("free")})
			mustAppend(t, l, ledger.Entry{Type: ledger.Applied, Intent: &i, Outcome: "ok"}, nil)
			mustClose(t, l)
			if res := k.check(t); res.Size < uint64(n)+3 || res.Entries["seen"] != uint64(n) {
				t.Errorf("fsck found %+v", res)
			}
			mustClose(t, k.open(t))
		})
	}
}

// Tessera takes a bundle that it could not write for one that exists already,
// goes on, and reports success.
func TestLostBundleIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 3)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(k.dir, "tile/entries/000.p/4"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if i, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Intent}, nil); err == nil {
			t.Errorf("entry %d was acknowledged, and nobody can read it", i)
		}
	}
	if l.Size() != 3 {
		t.Errorf("size %d, want 3", l.Size())
	}
}

// child starts this test binary as a process that appends to k's log.
func child(t *testing.T, k testLog, mode string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childDir+"="+k.dir, childMode+"="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// mustHave checks that each acknowledged entry is where the child saw it.
func mustHave(t *testing.T, k testLog, acknowledged map[string]string) {
	t.Helper()
	got := map[string]string{}
	l := k.open(t)
	err := l.Scan(t.Context(), 0, func(i ledger.Index, e ledger.Entry) error {
		got[fmt.Sprint(i)] = e.Note
		b, err := l.Body(t.Context(), e.Bodies["plan"])
		if string(b) != e.Note {
			t.Errorf("entry %d: body %q, %v", i, b, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, note := range acknowledged {
		if got[i] != note {
			t.Errorf("entry %s was acknowledged as %q and is now %q", i, note, got[i])
		}
	}
	mustClose(t, l)
	k.check(t)
}

func TestKilled(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	acknowledged := map[string]string{}
	for round := range 6 {
		cmd, out := child(t, k, "forever")
		// Kill after another number of entries each time, so at another point.
		for left := 1 + round*37; out.Scan(); left-- {
			i, note, _ := strings.Cut(out.Text(), " ")
			acknowledged[i] = note
			if left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		mustHave(t, k, acknowledged)
	}
	if len(acknowledged) < 200 {
		t.Errorf("only %d entries were acknowledged", len(acknowledged))
	}
}

// A disk that takes only so much, and a process that may open only so many
// files: errors, no panic, nothing lost.
func TestResourceLimits(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"size", "files"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			k := newTestLog(t)
			cmd, out := child(t, k, mode)
			acknowledged := map[string]string{}
			for out.Scan() {
				i, note, _ := strings.Cut(out.Text(), " ")
				acknowledged[i] = note
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			mustHave(t, k, acknowledged)
		})
	}
}

// The clock of a synctest bubble starts in the year 2000: far behind a log that
// was written outside.
func TestClockThatWentBack(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 1)
	mustClose(t, l)
	synctest.Test(t, func(t *testing.T) {
		l := k.open(t)
		_, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, nil)
		if fault.KindOf(err) != fault.Waiting || !errors.Is(err, ledger.ErrClock) {
			t.Errorf("Append = %v", err)
		}
		if l.Size() != 1 {
			t.Error("the entry was added")
		}
		before, err := l.Entry(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range []ledger.Entry{
			{Type: ledger.Revoked, Outcome: "digest", Subject: "sha256:" + strings.Repeat("1", 64), Note: "it mines coins"},
			{Type: ledger.Suspended, Note: "what else does it do"},
		} {
			at := mustAppend(t, l, e, nil)
			if got, err := l.Entry(t.Context(), at); err != nil || int(at) != i+1 || !got.Time.Equal(before.Time) {
				t.Errorf("%+v, %v: want the time of the entry before, %s", got, err, before.Time)
			}
		}
		mustClose(t, l)
	})
}

// The clock of the bubble is behind the checkpoint's file, which keeps Tessera
// from publishing another.
func TestCheckpointFromTheFuture(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	synctest.Test(t, func(t *testing.T) {
		l := k.open(t)
		for range 3 {
			fill(t, l, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := l.Flush(ctx); err != nil {
				t.Error(err)
			}
			cancel()
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx) })
		for range 3 {
			fill(t, l, 1)
			time.Sleep(2 * time.Second) // of the bubble's
			if lag := l.Lag(); lag != (ledger.Lag{}) {
				t.Errorf("%+v", lag)
			}
		}
		cancel()
		wg.Wait()
		mustClose(t, l)
	})
	k.check(t)
}

func TestLag(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	synctest.Test(t, func(t *testing.T) {
		told := make(chan ledger.Lag)
		cfg := k.config()
		cfg.OnLag = func(_ context.Context, l ledger.Lag) { told <- l }
		l, err := ledger.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := l.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		fill(t, l, 2)
		blocked := errors.New("not tried")
		for range 100 { // the next checkpoint may be quicker
			if blocked = errors.Join(os.RemoveAll(filepath.Join(k.dir, "checkpoint")), os.MkdirAll(filepath.Join(k.dir, "checkpoint", "x"), 0o700)); blocked == nil {
				break // nothing can take its place
			}
		}
		if blocked != nil {
			t.Fatal(blocked)
		}
		if lag := <-told; lag.Entries != 2 || lag.For < 2*time.Second {
			t.Errorf("told %+v", lag)
		}
		short, stop := context.WithTimeout(ctx, time.Second)
		if err := l.Flush(short); fault.KindOf(err) != fault.Transient {
			t.Errorf("Flush = %v", err)
		}
		stop()
		first := time.Now()
		if lag := <-told; time.Since(first) < 30*time.Second || lag.Entries != 2 {
			t.Errorf("told again %+v", lag)
		}
		if err := os.RemoveAll(filepath.Join(k.dir, "checkpoint")); err != nil {
			t.Fatal(err)
		}
		if lag := <-told; lag != (ledger.Lag{}) {
			t.Errorf("told %+v, want none", lag)
		}
		cancel()
		wg.Wait()
		mustClose(t, l)
	})
	k.check(t)
}

// In quiet times nothing is open, and the log goes on after them.
func TestRest(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := ledger.Open(t.Context(), k.config())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx) })
		publish := func() {
			t.Helper()
			if err := l.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, l, 2)
		publish()
		if l.Resting() {
			t.Error("resting at once")
		}
		for range 3 {
			time.Sleep(time.Minute) // of the bubble's
			if !l.Resting() {
				t.Error("no rest in a quiet minute")
			}
			fill(t, l, 1)
			if l.Resting() {
				t.Error("resting after an append")
			}
			publish()
		}
		cancel()
		wg.Wait()
		mustClose(t, l)
	})
	if res := k.check(t); res.Size != 5 {
		t.Errorf("%d entries", res.Size)
	}
}

// What no checkpoint covers yet is not left alone.
func TestNoRestBeforeTheCheckpoint(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	l := k.open(t)
	fill(t, l, 1)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkpoint := filepath.Join(k.dir, "checkpoint")
	if err := errors.Join(os.RemoveAll(checkpoint), os.MkdirAll(filepath.Join(checkpoint, "x"), 0o700)); err != nil {
		t.Fatal(err) // nothing can take its place
	}
	fill(t, l, 1)
	if l.Rest() {
		t.Error("it rests, and no checkpoint covers the last entry")
	}
	if err := os.RemoveAll(checkpoint); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if res := k.check(t); res.Size != 2 {
		t.Errorf("%d entries", res.Size)
	}
}

// Quiet times do not keep Tessera from removing the partial tiles of full ones.
func TestRestCollectsGarbage(t *testing.T) {
	t.Parallel()
	k := newTestLog(t)
	synctest.Test(t, func(t *testing.T) {
		l := k.open(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx) })
		for range 300 { // a bundle holds 256
			fill(t, l, 1)
			time.Sleep(30 * time.Second) // of the bubble's
		}
		cancel()
		wg.Wait()
		mustClose(t, l)
	})
	left, err := filepath.Glob(filepath.Join(k.dir, "tile", "entries", "000.p", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("%d partial bundles of a full one are left, %v", len(left), err)
	}
	k.check(t)
}

// What was done to the files in a quiet time is noticed before the next entry.
func TestChangedWhileResting(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(dir, old string) error
		want   string
	}{
		"state deleted":  {func(dir, _ string) error { return os.Remove(filepath.Join(dir, ".state", "treeState")) }, "is gone"},
		"folder deleted": {func(dir, _ string) error { return os.RemoveAll(dir) }, "is gone"},
		"rolled back":    {rollBack, "changed by somebody else"},
		"state destroyed": {func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, ".state", "treeState"), []byte("{"), 0o600)
		}, "tree state"},
		"no checkpoint": {func(dir, _ string) error { return os.Remove(filepath.Join(dir, "checkpoint")) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newTestLog(t)
			l := k.open(t)
			fill(t, l, 2)
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			old := k.copyTo(t)
			fill(t, l, 1)
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !l.Rest() {
				t.Fatal("no rest")
			}
			if err := tc.change(k.dir, old.dir); err != nil {
				t.Fatal(err)
			}
			_, err := l.Append(t.Context(), ledger.Entry{Type: ledger.Seen}, nil)
			switch {
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("Append = %v, want something with %q", err, tc.want)
			case tc.want == "" && err != nil:
				t.Errorf("Append = %v", err)
			case err == nil:
				mustClose(t, l)
				k.check(t)
			}
		})
	}
}

// rollBack puts the older files of a log over the newer ones.
func rollBack(dir, old string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.CopyFS(dir, os.DirFS(old))
}

func TestKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sub", "key")
	s1, v1, err := ledger.LoadOrCreateKey(path, origin)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	s2, v2, err := ledger.LoadOrCreateKey(path, origin)
	if err != nil || v1 != v2 || s1.KeyHash() != s2.KeyHash() {
		t.Errorf("loading gives another key: %v", err)
	}
	msg, err := note.Sign(&note.Note{Text: "hello\n"}, s2)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(v2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(msg, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
	if _, _, err := ledger.LoadOrCreateKey(path, "another.test/log"); err == nil {
		t.Error("the key of another log was accepted")
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, slices.Concat(secret[:len(secret)-8], []byte("\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ledger.LoadOrCreateKey(path, origin); err == nil || strings.Contains(err.Error(), string(secret[20:40])) {
		t.Errorf("broken key: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ledger.LoadOrCreateKey(path, origin); err == nil || !strings.Contains(err.Error(), "others may read") {
		t.Errorf("open key: %v", err)
	}
	if _, _, err := ledger.GenerateKey("no spaces please"); err == nil {
		t.Error("a name with spaces was accepted")
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, tc := range []struct {
		name   string
		bodies map[string][]byte
		at     int // appends at once
	}{
		{"alone", nil, 1},
		{"alone after a rest", nil, 1},
		{"alone with 5 bodies", many(5), 1},
		{"200 at once", nil, 200},
	} {
		b.Run(tc.name, func(b *testing.B) {
			l := newTestLog(b).open(b)
			times := make([]time.Duration, 0, b.N*tc.at)
			var mu sync.Mutex
			n := 0
			for b.Loop() {
				n++
				if strings.HasSuffix(tc.name, "rest") {
					b.StopTimer()
					if err := l.Flush(b.Context()); err != nil || !l.Rest() {
						b.Fatalf("no rest: %v", err)
					}
					b.StartTimer()
				}
				var wg sync.WaitGroup
				for w := range tc.at {
					bodies := map[string][]byte{}
					for role, body := range tc.bodies {
						bodies[role] = fmt.Appendf(nil, "%d %d %s", n, w, body)
					}
					wg.Go(func() {
						start := time.Now()
						mustAppend(b, l, ledger.Entry{Type: ledger.Intent, Stack: "shop-web", Environment: "prod", Revision: "apps@0123456789abcdef0123456789abcdef01234567"}, bodies)
						mu.Lock()
						times = append(times, time.Since(start))
						mu.Unlock()
					})
				}
				wg.Wait()
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
