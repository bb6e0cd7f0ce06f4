package fsck

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// The tree must be that of RFC 6962, as x/mod computes it, at every size.
func TestTreeIsThatOfRFC6962(t *testing.T) {
	t.Parallel()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(idx []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(idx))
		for i, x := range idx {
			out[i] = stored[x]
		}
		return out, nil
	})
	var e edge
	var level [][hashSize]byte
	for n := range int64(600) {
		leaf := binary.BigEndian.AppendUint64(nil, uint64(n))
		hashes, err := tlog.StoredHashes(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		e.add(leafHash(leaf))
		level = append(level, leafHash(leaf))
		want, err := tlog.TreeHash(n+1, reader)
		if err != nil {
			t.Fatal(err)
		}
		if e.root() != [hashSize]byte(want) {
			t.Fatalf("root of %d leaves is wrong", n+1)
		}
		if n == 255 && treeHash(level) != e.root() {
			t.Fatal("the hash of a full tile is wrong")
		}
	}
}

func TestTilePath(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"tile/0/000":                  tilePath("0", 0, 256),
		"tile/1/999.p/255":            tilePath("1", 999, 255),
		"tile/entries/x001/000":       tilePath("entries", 1000, 256),
		"tile/entries/x001/x234/067":  tilePath("entries", 1234067, 256),
		"tile/3/x999/x999/x999/x001":  "tile/3/x999/x999/x999/x001",
		"tile/2/x123/x456/789.p/1":    tilePath("2", 123456789, 1),
		"tile/entries/x001/x000/000":  tilePath("entries", 1000000, 256),
		"tile/entries/x010/000.p/100": tilePath("entries", 10000, 100),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"v":1,"type":"result","time":"2026-01-02T03:04:05.6Z","stack":"s","intent":0,"outcome":"ok","note":"<\u2028>","bodies":{"plan":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}`))
	f.Add([]byte(`{"v":1,"type":"seen","type":"denied","time":"2026-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		e, err := parseEntry(leaf)
		if err != nil {
			return
		}
		if len(leaf) > maxLeaf || e.Version != 1 || e.Type == "" {
			t.Errorf("accepted %q", leaf)
		}
		// One form only: a leaf with white space in front is another leaf.
		if _, err := parseEntry(append([]byte(" "), leaf...)); err == nil {
			t.Errorf("two forms of %q", leaf)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00\x00\x02bc"))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		leaves, err := parseBundle(b)
		if err != nil {
			return
		}
		var again []byte
		for _, l := range leaves {
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(l))), l...)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%q came back as %q", b, again)
		}
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add("holdfast.test/ledger\n3\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")
	f.Add("a\n03\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		cp, err := parseCheckpoint(text)
		if err == nil && (cp.origin == "" || cp.size > maxSize) {
			t.Errorf("accepted %q", text)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra aGk=\nindex 1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\nname\n1\n"))
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 01\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseProof(b)
		if err == nil && len(p.hashes) > 63 {
			t.Errorf("accepted %d hashes", len(p.hashes))
		}
	})
}
