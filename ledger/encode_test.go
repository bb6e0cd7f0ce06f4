package ledger

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

func TestClockWithinTheSkew(t *testing.T) {
	t.Parallel()
	last := time.Now().UTC().Add(time.Second)
	l := &Ledger{state: state{last: last}}
	if now, err := l.now(); err != nil || !now.Equal(last) {
		t.Errorf("now() = %v, %v, want the last entry's time %v", now, err, last)
	}
}

func TestEncodedTimeIsNeverLongerThanMeasured(t *testing.T) {
	t.Parallel()
	e, err := normalise(Entry{Type: Seen, Note: strings.Repeat("n", 2000), Revision: strings.Repeat("r", 700)})
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []int{0, 1_000_000, 120_000_000, 999_000_000} {
		e.Time = time.Date(2026, 12, 31, 23, 59, 59, ns, time.UTC)
		leaf, err := encode(e)
		if err != nil || len(leaf) > MaxEntry {
			t.Errorf("%d bytes, %v", len(leaf), err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	const good = `{"v":1,"type":"seen","time":"2026-01-02T03:04:05Z","bodies":{"plan":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}`
	if _, err := decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, leaf := range map[string]string{
		"too long":         strings.Replace(good, `"seen"`, strings.Repeat(" ", MaxEntry)+`"seen"`, 1),
		"no JSON":          "{",
		"an unknown field": strings.Replace(good, `"v":1`, `"v":1,"x":1`, 1),
		"two values":       good + "{}",
		"another version":  strings.Replace(good, `"v":1`, `"v":2`, 1),
		"no version":       strings.Replace(good, `"v":1,`, "", 1),
		"an unknown type":  strings.Replace(good, "seen", "gossip", 1),
		"no digest":        strings.Replace(good, "sha256:", "sha256:x", 1),
		"another hash":     strings.Replace(good, "sha256:", "sha512:"+strings.Repeat("0", 64), 1),
	} {
		if e, err := decode([]byte(leaf)); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestCheckRole(t *testing.T) {
	t.Parallel()
	for role, ok := range map[string]bool{
		"plan": true, "a-1_b.c": true, strings.Repeat("r", maxRole): true,
		"": false, strings.Repeat("r", maxRole+1): false, "../x": false, "Plan": false, "a b": false,
	} {
		if err := checkRole(role); (err == nil) != ok {
			t.Errorf("%q: %v", role, err)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"a\nb\u2028c\u2029d\x00e", 20, "a b c d e"}, {"a\xffb", 20, "a\uFFFDb"}, {"abcd", 4, "abcd"}, {"abcde", 4, "a…"}, {"éééé", 6, "é…"}, {"abc", 2, ""}, {"abc", 0, ""},
	} {
		if got := oneLine(c.in, c.limit); got != c.want {
			t.Errorf("%q in %d bytes is %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func TestNewTree(t *testing.T) {
	t.Parallel()
	root := bytes.Repeat([]byte{1}, tlog.HashSize)
	for name, c := range map[string]struct {
		size uint64
		root []byte
		ok   bool
	}{
		"a tree":                    {1, root, true},
		"an empty one":              {0, emptyRoot[:], true},
		"a size that overflows":     {math.MaxInt64/4 + 1, root, false},
		"a short root":              {1, root[1:], false},
		"a long root":               {1, append(bytes.Clone(root), 1), false},
		"leaves in an empty tree":   {0, root, false},
		"an empty tree, no root":    {0, nil, false},
		"leaves without their root": {1, nil, false},
	} {
		if got, err := newTree(c.size, c.root); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestParseBundleRefuses(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]string{
		"half a length":   "\x00\x01a\x00",
		"half a leaf":     "\x00\x02a",
		"too many leaves": strings.Repeat("\x00\x00", tileWidth+1),
	} {
		if leaves, err := parseBundle([]byte(b)); err == nil {
			t.Errorf("%s: %d leaves", name, len(leaves))
		}
	}
	if leaves, err := parseBundle([]byte(strings.Repeat("\x00\x00", tileWidth))); err != nil || len(leaves) != tileWidth {
		t.Errorf("a full bundle: %d leaves, %v", len(leaves), err)
	}
}

func TestTilePath(t *testing.T) {
	t.Parallel()
	for want, tile := range map[string]tlog.Tile{
		"tile/0/000.p/5":        {H: 8, L: 0, N: 0, W: 5},
		"tile/1/x001/234":       {H: 8, L: 1, N: 1234, W: 256},
		"tile/entries/x001/000": {H: 8, L: -1, N: 1000, W: 256},
	} {
		if got := tilePath(tile); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"v":1,"type":"result","time":"2026-01-02T03:04:05.6Z","intent":0,"outcome":"ok","bodies":{"plan":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}`))
	f.Add([]byte(`{"v":1,"type":"seen","time":"2026-01-02T03:04:05Z"} {}`))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		e, err := decode(leaf)
		if err == nil && (e.Version != entryVersion || !entryTypes[e.Type]) {
			t.Errorf("accepted %q", leaf)
		}
	})
}

// What Append makes of any note is an entry that can be read.
func FuzzNormalise(f *testing.F) {
	f.Add("shop", "deployed \x00\u2028 <b>")
	f.Fuzz(func(t *testing.T, stack, note string) {
		e, err := normalise(Entry{Type: Refused, Stack: stack, Note: note})
		if err != nil {
			return
		}
		leaf, err := encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decode(leaf); err != nil || got.Note != e.Note || len(leaf) > MaxEntry {
			t.Errorf("%q: %v", leaf, err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00"))
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

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"size":1,"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tree, err := parseState(b); err == nil && tree.N < 0 {
			t.Errorf("size %d from %q", tree.N, b)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add("PRIVATE+KEY+a+00000000+AQ==")
	f.Fuzz(func(t *testing.T, s string) {
		if signer, vkey, err := parseKey(s); err == nil && (signer == nil || vkey == "") {
			t.Errorf("a key without halves from %q", s)
		}
	})
}
