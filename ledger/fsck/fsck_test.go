package fsck_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/ledger/fsck"
)

const origin = "holdfast.test/ledger"

// written is a log that the real writer made, at two sizes.
type written struct {
	dir    string
	signer note.Signer
	vkey   string
	old    []byte // a checkpoint over the first few entries
	oldDir string // the files as they were then
}

// writeLog writes a log of size entries: intents with bodies and their results.
func writeLog(t testing.TB, size int) written {
	t.Helper()
	root := t.TempDir()
	w := written{dir: filepath.Join(root, "log"), oldDir: filepath.Join(root, "old")}
	var err error
	if w.signer, w.vkey, err = ledger.LoadOrCreateKey(filepath.Join(root, "key"), origin); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{Dir: w.dir, Signer: w.signer, Verifier: w.vkey})
	if err != nil {
		t.Fatal(err)
	}
	add := func(e ledger.Entry, bodies map[string][]byte) ledger.Index {
		i, err := l.Append(t.Context(), e, bodies)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	intent := add(ledger.Entry{Type: ledger.Intent, Stack: "shop"}, map[string][]byte{"plan": []byte("a plan"), "evidence": {}})
	add(ledger.Entry{Type: ledger.Applied, Stack: "shop", Intent: &intent, Outcome: "ok"}, map[string][]byte{"receipt": []byte("done")})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.old, err = l.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(w.oldDir, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range size - 2 { // no two alike: equal leaves have equal proofs
		wg.Go(func() { add(ledger.Entry{Type: ledger.Seen, Revision: fmt.Sprint("apps@", i)}, nil) })
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w written) check(t testing.TB, dir string, pinned ...[]byte) error {
	t.Helper()
	_, err := fsck.Check(t.Context(), fsck.DirReader(dir), fsck.Options{Verifiers: []string{w.vkey}, Pinned: pinned})
	return err
}

func (w written) clone(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "clone")
	if err := os.CopyFS(dir, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// logFiles are the files that the checkpoint over size entries commits to, and
// the checkpoint. Older partial tiles are none of them.
func logFiles(t testing.TB, dir string, size int) []string {
	t.Helper()
	current := map[string]bool{"checkpoint": true}
	for _, kind := range []string{"entries", "0"} {
		for n := range (size + 255) / 256 {
			name := fmt.Sprintf("tile/%s/%03d", kind, n)
			if w := size - n*256; w < 256 {
				name += fmt.Sprintf(".p/%d", w)
			}
			current[name] = true
		}
	}
	if full := size / 256; full > 0 {
		current[fmt.Sprintf("tile/1/000.p/%d", full)] = true
	}
	err := fs.WalkDir(os.DirFS(dir), "bodies/sha256", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			current[p] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(current))
}

func read(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, b []byte, elem ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elem...), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGoodLogs(t *testing.T) {
	t.Parallel()
	for _, size := range []int{2, 255, 256, 257, 600} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			w := writeLog(t, size)
			res, err := fsck.Check(t.Context(), fsck.DirReader(w.dir), fsck.Options{
				Verifiers: []string{otherKey(t), w.vkey}, Pinned: [][]byte{w.old, read(t, w.dir, "checkpoint")},
			})
			if err != nil {
				t.Fatal(err)
			}
			if res.Size != uint64(size) || res.Bodies != 3 || len(res.Open) != 0 || res.Origin != origin {
				t.Errorf("found %+v", res)
			}
		})
	}
}

func otherKey(t testing.TB) string {
	t.Helper()
	vkey, _ := newKey(t, origin)
	return vkey
}

// Nobody can change one byte of what the checkpoint commits to.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	for _, size := range []int{9, 300} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			w := writeLog(t, size)
			for _, name := range logFiles(t, w.dir, size) {
				good := read(t, w.dir, name)
				step := max(1, len(good)/150)
				for i := 0; i < len(good); i += step {
					bad := bytes.Clone(good)
					bad[i] ^= 1 << (i % 8)
					write(t, bad, w.dir, name)
					if w.check(t, w.dir) == nil {
						t.Errorf("%s: byte %d was changed and nobody noticed", name, i)
					}
				}
				for _, bad := range [][]byte{good[:max(0, len(good)-1)], append(bytes.Clone(good), 'x')} {
					if len(bad) == len(good) {
						continue
					}
					write(t, bad, w.dir, name)
					if w.check(t, w.dir) == nil {
						t.Errorf("%s: %d bytes instead of %d, and nobody noticed", name, len(bad), len(good))
					}
				}
				if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
					t.Fatal(err)
				}
				if w.check(t, w.dir) == nil {
					t.Errorf("%s was deleted and nobody noticed", name)
				}
				write(t, good, w.dir, name)
			}
			if err := w.check(t, w.dir); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestMissingBodies(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 3)
	if err := os.RemoveAll(filepath.Join(w.dir, "bodies")); err != nil {
		t.Fatal(err)
	}
	if err := w.check(t, w.dir); !errors.Is(err, fsck.ErrMissing) {
		t.Errorf("Check = %v", err)
	}
	res, err := fsck.Check(t.Context(), fsck.DirReader(w.dir), fsck.Options{Verifiers: []string{w.vkey}, AllowMissingBodies: true})
	if err != nil || len(res.Missing) != 3 {
		t.Errorf("missing %v, %v", res.Missing, err)
	}
}

func TestOldAndNewMixed(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 9)

	rolledBack := w.clone(t)
	write(t, w.old, rolledBack, "checkpoint")
	if err := w.check(t, rolledBack); err != nil {
		t.Errorf("an old checkpoint is still one: %v", err)
	}
	if err := w.check(t, rolledBack, read(t, w.dir, "checkpoint")); err == nil || !strings.Contains(err.Error(), "it was cut") {
		t.Errorf("a log that was cut, with the newer checkpoint pinned: %v", err)
	}
	write(t, read(t, w.dir, "checkpoint"), w.oldDir, "checkpoint")
	if w.check(t, w.oldDir) == nil {
		t.Error("a new checkpoint over old tiles was accepted")
	}
}

// forge writes a whole log by the book, with any leaves, under any key.
func forge(t testing.TB, signer note.Signer, name string, leaves ...string) string {
	t.Helper()
	dir := t.TempDir()
	var bundle, tile []byte
	for _, leaf := range leaves {
		bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf)))
		bundle = append(bundle, leaf...)
		h := fsck.LeafHash([]byte(leaf))
		tile = append(tile, h[:]...)
	}
	for _, kind := range []string{"entries", "0"} {
		if err := os.MkdirAll(filepath.Join(dir, "tile", kind, "000.p"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := fmt.Sprint(len(leaves))
	write(t, bundle, dir, "tile/entries/000.p", w)
	write(t, tile, dir, "tile/0/000.p", w)
	root := fsck.Root(leaves)
	cp, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%s\n%s\n", name, w, base64.StdEncoding.EncodeToString(root[:]))}, signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cp, dir, "checkpoint")
	return dir
}

const at = `"time":"2026-01-02T03:04:05.6Z"`

// Even who has the key cannot sign entries that break the rules.
func TestRulesOfEntries(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 2)
	intent := `{"v":1,"type":"intent",` + at + `}`
	for name, tc := range map[string]struct {
		leaves []string
		want   string // "" is good
	}{
		"good":                  {leaves: []string{intent, `{"v":1,"type":"result",` + at + `,"intent":0,"outcome":"ok"}`}},
		"empty log":             {},
		"time runs back":        {leaves: []string{intent, `{"v":1,"type":"seen","time":"2026-01-02T03:04:05.5Z"}`}, want: "entry 1: its time"},
		"result without intent": {leaves: []string{intent, `{"v":1,"type":"result",` + at + `}`}, want: "names no intent"},
		"result of the future":  {leaves: []string{`{"v":1,"type":"result",` + at + `,"intent":1}`, intent}, want: "no earlier intent"},
		"result of itself":      {leaves: []string{`{"v":1,"type":"result",` + at + `,"intent":0}`}, want: "no earlier intent"},
		"result of a sighting":  {leaves: []string{`{"v":1,"type":"seen",` + at + `}`, `{"v":1,"type":"result",` + at + `,"intent":0}`}, want: "no earlier intent"},
		"not JSON":              {leaves: []string{"hello"}, want: "no JSON entry"},
		"empty leaf":            {leaves: []string{""}, want: "no JSON entry"},
		"white space":           {leaves: []string{`{"v":1, "type":"seen",` + at + `}`}, want: "canonical"},
		"unknown field":         {leaves: []string{`{"v":1,"type":"seen",` + at + `,"x":1}`}, want: "canonical"},
		"double field":          {leaves: []string{`{"v":1,"type":"seen","type":"denied",` + at + `}`}, want: "canonical"},
		"upper case":            {leaves: []string{`{"v":1,"Type":"seen",` + at + `}`}, want: "canonical"},
		"padded time":           {leaves: []string{`{"v":1,"type":"seen","time":"2026-01-02T03:04:05.60Z"}`}, want: "canonical"},
		"local time":            {leaves: []string{`{"v":1,"type":"seen","time":"2026-01-02T03:04:05+01:00"}`}, want: "UTC"},
		"no time":               {leaves: []string{`{"v":1,"type":"seen","time":"0001-01-01T00:00:00Z"}`}, want: "UTC"},
		"unknown type":          {leaves: []string{`{"v":1,"type":"gossip",` + at + `}`}, want: "unknown type"},
		"next version":          {leaves: []string{`{"v":2,"type":"seen",` + at + `}`}, want: "version 2"},
		"two lines":             {leaves: []string{`{"v":1,"type":"seen",` + at + `,"note":"a\nb"}`}, want: "one line"},
		"weak digest":           {leaves: []string{`{"v":1,"type":"seen",` + at + `,"bodies":{"plan":"md5:aa"}}`}, want: "no sha256"},
		"digest with a path":    {leaves: []string{`{"v":1,"type":"seen",` + at + `,"bodies":{"plan":"sha256:../../x"}}`}, want: "no sha256"},
		"too large":             {leaves: []string{`{"v":1,"type":"seen",` + at + `,"note":"` + strings.Repeat("x", 1000) + `"}`}, want: "the limit is 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := w.check(t, forge(t, w.signer, origin, tc.leaves...))
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var p *fsck.Problem
			if !errors.As(err, &p) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Check = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestForgedHistories(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 2)
	a, b, c := `{"v":1,"type":"seen",`+at+`,"note":"a"}`, `{"v":1,"type":"seen",`+at+`,"note":"b"}`, `{"v":1,"type":"seen",`+at+`,"note":"c"}`
	good := forge(t, w.signer, origin, a, b)
	pin := read(t, good, "checkpoint")
	strangerKey, stranger := newKey(t, origin)
	otherName, _ := newKey(t, "another.test/log")

	cases := map[string]struct {
		dir  string
		keys []string
		want string
	}{
		"good":                       {dir: forge(t, w.signer, origin, a, b, c)},
		"two leaves swapped":         {dir: forge(t, w.signer, origin, b, a), want: "history was rewritten"},
		"another leaf":               {dir: forge(t, w.signer, origin, a, c, c), want: "history was rewritten"},
		"cut":                        {dir: forge(t, w.signer, origin, a), want: "it was cut"},
		"signed by a stranger":       {dir: forge(t, stranger, origin, a, b), want: "signature"},
		"another log's name":         {dir: forge(t, w.signer, "another.test/log", a, b), want: "calls itself"},
		"no key":                     {dir: good, keys: []string{}, want: "no verifier key"},
		"a key that is none":         {dir: good, keys: []string{"x"}, want: "verifier key"},
		"only the stranger's key":    {dir: good, keys: []string{strangerKey}, want: "signature"},
		"only another log's key":     {dir: good, keys: []string{otherName}, want: "signature"},
		"swapped under the old root": {dir: withFiles(t, good, forge(t, w.signer, origin, b, a)), want: "its root is"},
		"swapped in the bundle only": {dir: withBundle(t, good, forge(t, w.signer, origin, b, a)), want: "tile/0/000.p/2: hash 0"},
	}
	for name, tc := range cases {
		keys := tc.keys
		if keys == nil {
			keys = []string{w.vkey}
		}
		o := fsck.Options{Verifiers: keys, Pinned: [][]byte{pin}}
		if strings.HasPrefix(name, "swapped ") { // must be noticed without a pin
			o.Pinned = nil
		}
		_, err := fsck.Check(t.Context(), fsck.DirReader(tc.dir), o)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// withFiles returns the tiles of from under the checkpoint of dir.
func withFiles(t testing.TB, dir, from string) string {
	t.Helper()
	write(t, read(t, dir, "checkpoint"), from, "checkpoint")
	return from
}

// withBundle returns the log in dir with the entry bundle of from.
func withBundle(t testing.TB, dir, from string) string {
	t.Helper()
	write(t, read(t, dir, "tile/0/000.p/2"), from, "tile/0/000.p/2")
	return withFiles(t, dir, from)
}

func newKey(t testing.TB, name string) (string, note.Signer) {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return vkey, signer
}

// A tile or body behind a link out of the folder is not read.
func TestNoLinksOut(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 3)
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, read(t, w.dir, "checkpoint"), outside)
	if err := os.Remove(filepath.Join(w.dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(w.dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	if w.check(t, w.dir) == nil {
		t.Error("a link out of the folder was followed")
	}
}

func TestCheckProof(t *testing.T) {
	t.Parallel()
	w := writeLog(t, 300)
	r, err := ledger.OpenReader(w.dir, w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []ledger.Index{0, 1, 255, 256, 299} {
		p, err := r.Prove(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fsck.CheckProof(p, nil, w.vkey)
		if err != nil || got.Index != uint64(i) || got.Size != 300 {
			t.Fatalf("CheckProof(%d) = %+v, %v", i, got, err)
		}
		if _, err := fsck.CheckProof(p, got.Leaf, w.vkey); err != nil {
			t.Error(err)
		}
		if _, err := fsck.CheckProof(p, nil, otherKey(t)); err == nil {
			t.Error("another key's proof was accepted")
		}
		for b := range p {
			bad := bytes.Clone(p)
			bad[b] ^= 1
			if _, err := fsck.CheckProof(bad, nil, w.vkey); err == nil {
				t.Fatalf("proof %d: byte %d was changed and nobody noticed:\n%s", i, b, bad)
			}
		}
	}
	p, err := r.Prove(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	text := string(p)
	lines := strings.Split(text, "\n")
	for name, bad := range map[string]string{
		"empty":             "",
		"no header":         strings.Replace(text, "tlog-proof@v1", "tlog-proof@v2", 1),
		"no leaf":           strings.Replace(text, lines[1]+"\n", "", 1),
		"leading zero":      strings.Replace(text, "index 7", "index 07", 1),
		"another index":     strings.Replace(text, "index 7", "index 6", 1),
		"outside":           strings.Replace(text, "index 7", "index 300", 1),
		"one hash less":     strings.Replace(text, lines[3]+"\n", "", 1),
		"one hash too many": strings.Replace(text, lines[3]+"\n", lines[3]+"\n"+lines[3]+"\n", 1),
		"no checkpoint":     text[:strings.Index(text, "\n\n")+2],
	} {
		if _, err := fsck.CheckProof([]byte(bad), nil, w.vkey); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// RFC 8032 keys and the tree of RFC 6962 are what the format names; a log that
// was written with nothing of ours must pass.
func TestIndependentLog(t *testing.T) {
	t.Parallel()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := note.NewEd25519VerifierKey(origin, pub)
	if err != nil {
		t.Fatal(err)
	}
	hash := vkey[len(origin)+1 : len(origin)+9]
	signer, err := note.NewSigner("PRIVATE+KEY+" + origin + "+" + hash + "+" +
		base64.StdEncoding.EncodeToString(append([]byte{1}, priv.Seed()...)))
	if err != nil {
		t.Fatal(err)
	}
	dir := forge(t, signer, origin, `{"v":1,"type":"seen",`+at+`}`)
	if _, err := fsck.Check(t.Context(), fsck.DirReader(dir), fsck.Options{Verifiers: []string{vkey}}); err != nil {
		t.Error(err)
	}
}

// The check by hand in docs/ledger-format.md accepts what CheckProof accepts.
func TestDocumentedCheckByHand(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("the documented check needs openssl")
	}
	_, script, ok := strings.Cut(string(read(t, "../../docs/ledger-format.md")), "```sh\n")
	if !ok {
		t.Fatal("no script in the document")
	}
	script, _, _ = strings.Cut(script, "```")
	w := writeLog(t, 300)
	r, err := ledger.OpenReader(w.dir, w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	byHand := func(proof []byte, vkey string) (string, error) {
		file := filepath.Join(t.TempDir(), "proof")
		write(t, proof, file)
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Env = append(os.Environ(), "PROOF="+file, "VKEY="+vkey)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, i := range []ledger.Index{0, 200, 255, 298, 299} {
		p, err := r.Prove(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := byHand(p, w.vkey); err != nil || !strings.Contains(out, `{"v":1,`) {
			t.Errorf("entry %d: %v\n%s", i, err, out)
		}
		if i != 200 {
			continue
		}
		if _, err := byHand(p, otherKey(t)); err == nil {
			t.Error("the script accepts another key")
		}
		for _, change := range [][2]string{{"index 200", "index 201"}, {"extra eyJ2", "extra eyJw"}, {"\n300\n", "\n301\n"}} {
			bad := bytes.Replace(p, []byte(change[0]), []byte(change[1]), 1)
			if out, err := byHand(bad, w.vkey); err == nil {
				t.Errorf("the script accepts %q as %q:\n%s", change[0], change[1], out)
			}
		}
	}
}
