package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight

	maxCheckpoint = 64 << 10
	maxBundle     = tileWidth * (2 + math.MaxUint16)

	// MaxBody is the largest document, in bytes, that can belong to an entry.
	MaxBody = 64 << 20
)

// emptyRoot is the root of a tree without leaves, RFC 6962 section 2.1.
var emptyRoot = tlog.Hash(sha256.Sum256(nil))

// store reads the files of one log. What it returns is authenticated up to the
// root of the tree that it is given.
type store struct {
	dir     string
	synced  *synced  // nil for who only reads
	journal *journal // likewise
}

func (s store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, nil
}

// state returns the tree that the writer integrated last. It may be ahead of
// the checkpoint. The error wraps fs.ErrNotExist where there is no log yet.
func (s store) state() (tlog.Tree, error) {
	raw, err := readFile(s.path(".state", "treeState"), maxCheckpoint)
	if err != nil {
		return tlog.Tree{}, err
	}
	return parseState(raw)
}

// unstick lets Tessera publish a checkpoint. It does not while the file of the
// last one is younger than its interval, which after the clock went back is for
// as long as it takes to catch up.
func (s store) unstick() {
	name := s.path("checkpoint")
	if fi, err := os.Stat(name); err == nil && fi.ModTime().After(time.Now()) {
		_ = os.Chtimes(name, time.Time{}, time.Unix(0, 0)) // else the lag is reported
	}
}

func parseState(raw []byte) (tlog.Tree, error) {
	var st struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return tlog.Tree{}, fmt.Errorf("tree state: %w", err)
	}
	return newTree(st.Size, st.Root)
}

func newTree(size uint64, root []byte) (tlog.Tree, error) {
	if size > math.MaxInt64/4 {
		return tlog.Tree{}, fmt.Errorf("tree size %d is out of range", size)
	}
	if len(root) != tlog.HashSize {
		return tlog.Tree{}, fmt.Errorf("a root has %d bytes, want %d", len(root), tlog.HashSize)
	}
	t := tlog.Tree{N: int64(size), Hash: tlog.Hash(root)}
	if size == 0 && t.Hash != emptyRoot {
		return tlog.Tree{}, errors.New("the root of an empty tree is wrong")
	}
	return t, nil
}

// checkpoint returns the published checkpoint and the tree that it commits to.
func (s store) checkpoint(v note.Verifier) ([]byte, tlog.Tree, error) {
	raw, err := readFile(s.path("checkpoint"), maxCheckpoint)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	t, err := parseCheckpoint(raw, v)
	return raw, t, err
}

func parseCheckpoint(raw []byte, v note.Verifier) (tlog.Tree, error) {
	cp, _, _, err := log.ParseCheckpoint(raw, v.Name(), v)
	if err != nil {
		return tlog.Tree{}, err
	}
	return newTree(cp.Size, cp.Hash)
}

// Height, ReadTiles and SaveTiles make store a tlog.TileReader.
func (s store) Height() int { return tileHeight }

// SaveTiles does nothing: the tiles are where they belong.
func (s store) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles returns the tiles. The caller authenticates them.
func (s store) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		b, err := s.resource(t, tileWidth*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		if want := t.W * tlog.HashSize; len(b) >= want {
			b = b[:want] // a full tile stands in for a partial one
		}
		out[i] = b
	}
	return out, nil
}

// resource reads a tile, or an entry bundle where t.L is -1. A partial one may
// have been removed once the full one exists: https://c2sp.org/tlog-tiles.
func (s store) resource(t tlog.Tile, limit int64) ([]byte, error) {
	b, err := readFile(s.path(tilePath(t)), limit)
	if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
		t.W = tileWidth
		if full, ferr := readFile(s.path(tilePath(t)), limit); ferr == nil {
			return full, nil
		}
	}
	return b, err
}

// tilePath turns x/mod's name of a tile into the name that tlog-tiles gives it.
func tilePath(t tlog.Tile) string {
	p := strings.TrimPrefix(t.Path(), "tile/8/")
	return "tile/" + strings.Replace(p, "data/", "entries/", 1)
}

// parseBundle splits an entry bundle into leaves: each has a length of two
// bytes, big endian, before it.
func parseBundle(b []byte) ([][]byte, error) {
	var leaves [][]byte
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, errors.New("entry bundle: cut off in a length")
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n > len(b) {
			return nil, errors.New("entry bundle: cut off in a leaf")
		}
		leaves, b = append(leaves, b[:n:n]), b[n:]
	}
	if len(leaves) > tileWidth {
		return nil, fmt.Errorf("entry bundle: %d leaves, the limit is %d", len(leaves), tileWidth)
	}
	return leaves, nil
}

// bundle returns the leaves of bundle n in t, not authenticated.
func (s store) bundle(t tlog.Tree, n int64) ([][]byte, error) {
	width := min(int64(tileWidth), t.N-n*tileWidth)
	b, err := s.resource(tlog.Tile{H: tileHeight, L: -1, N: n, W: int(width)}, maxBundle)
	if err != nil {
		return nil, err
	}
	leaves, err := parseBundle(b)
	if err != nil {
		return nil, fmt.Errorf("bundle %d: %w", n, err)
	}
	if int64(len(leaves)) < width {
		return nil, fmt.Errorf("bundle %d: %d leaves, want %d", n, len(leaves), width)
	}
	return leaves[:width], nil
}

// leaves returns the leaves from index from to the end of its bundle, each
// checked against its hash in t.
func (s store) leaves(t tlog.Tree, from int64) ([][]byte, error) {
	n := from / tileWidth
	all, err := s.bundle(t, n)
	if err != nil {
		return nil, err
	}
	all = all[from%tileWidth:]
	indexes := make([]int64, len(all))
	for i := range all {
		indexes[i] = tlog.StoredHashIndex(0, from+int64(i))
	}
	hashes, err := tlog.TileHashReader(t, s).ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	for i, leaf := range all {
		if tlog.RecordHash(leaf) != hashes[i] {
			return nil, fmt.Errorf("entry %d does not match the tree: it was changed after it was written", from+int64(i))
		}
	}
	return all, nil
}

func (s store) entry(t tlog.Tree, i Index) (Entry, error) {
	leaf, err := s.leaf(t, i)
	if err != nil {
		return Entry{}, err
	}
	return decode(leaf)
}

func (s store) leaf(t tlog.Tree, i Index) ([]byte, error) {
	if uint64(i) >= uint64(t.N) {
		return nil, fmt.Errorf("there is no entry %d: the log has %d", i, t.N)
	}
	all, err := s.bundle(t, int64(i)/tileWidth)
	if err != nil {
		return nil, err
	}
	leaf := all[int64(i)%tileWidth]
	h, err := tlog.TileHashReader(t, s).ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))})
	if err != nil {
		return nil, err
	}
	if tlog.RecordHash(leaf) != h[0] {
		return nil, fmt.Errorf("entry %d does not match the tree: it was changed after it was written", i)
	}
	return leaf, nil
}

func (s store) scan(ctx context.Context, t tlog.Tree, from Index, fn func(Index, Entry) error) error {
	if uint64(from) >= uint64(t.N) {
		return nil
	}
	for at := int64(from); at < t.N; {
		if err := ctx.Err(); err != nil {
			return err
		}
		leaves, err := s.leaves(t, at)
		if err != nil {
			return err
		}
		for _, leaf := range leaves {
			e, err := decode(leaf)
			if err != nil {
				return fmt.Errorf("entry %d: %w", at, err)
			}
			if err := fn(Index(at), e); err != nil {
				return err
			}
			at++
		}
	}
	return nil
}

func (s store) tail(ctx context.Context, t tlog.Tree, n int) ([]Numbered, error) {
	from := max(0, t.N-int64(max(0, n)))
	out := make([]Numbered, 0, t.N-from)
	err := s.scan(ctx, t, Index(from), func(i Index, e Entry) error {
		out = append(out, Numbered{Index: i, Entry: e})
		return nil
	})
	return out, err
}

// prove returns a c2sp.org/tlog-proof@v1 that entry i is in t, to which the
// checkpoint raw commits. Its extra data is the leaf.
func (s store) prove(raw []byte, t tlog.Tree, i Index) ([]byte, error) {
	leaf, err := s.leaf(t, i)
	if err != nil {
		return nil, err
	}
	hashes, err := tlog.ProveRecord(t.N, int64(i), tlog.TileHashReader(t, s))
	if err != nil {
		return nil, err
	}
	p := proof.TLogProof{Index: uint64(i), Checkpoint: raw, ExtraData: leaf}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	return p.Marshal(), nil
}

// contains checks that t is old with more leaves.
func (s store) contains(t, old tlog.Tree) error {
	if old.N > t.N {
		return fmt.Errorf("it has %d entries, but a checkpoint over %d was signed", t.N, old.N)
	}
	root := emptyRoot
	if old.N > 0 {
		var err error
		if root, err = tlog.TreeHash(old.N, tlog.TileHashReader(t, s)); err != nil {
			return err
		}
	}
	if root != old.Hash {
		return fmt.Errorf("its first %d entries are not those of a checkpoint that was signed", old.N)
	}
	return nil
}

func (s store) bodyPath(d digest.Digest) string {
	hex := d.Encoded()
	return s.path("bodies", "sha256", hex[:2], hex)
}

func (s store) body(d digest.Digest) ([]byte, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	b, err := readFile(s.bodyPath(d), MaxBody)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(b); got != d {
		return nil, fmt.Errorf("body %s was changed: its content has %s", d, got)
	}
	return b, nil
}
