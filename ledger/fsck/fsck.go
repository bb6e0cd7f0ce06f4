// Package fsck is an auditor's checker for a Holdfast ledger. It owns nothing
// and writes nothing; it shares no code with the writer, so that one mistake
// cannot hide in both. The format is in docs/ledger-format.md.
//
// It guarantees that, when [Check] finds no fault, the checkpoint is signed by a
// key that the auditor named, every entry and every tile of the log follows
// from that checkpoint byte by byte, every entry obeys the rules of its type,
// and every document that an entry names is there and unchanged.
//
// It refuses to check without a key, and to accept anything that it does not
// understand. It cannot see whether another log was shown to somebody else:
// give it a checkpoint from there as Options.Pinned.
package fsck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
)

const (
	hashSize  = sha256.Size
	tileWidth = 256

	maxCheckpoint = 64 << 10
	maxLeaf       = 1024
	maxBundle     = tileWidth * (2 + 1<<16 - 1)
	maxBody       = 64 << 20
	// maxSize keeps arithmetic on tree sizes far from overflow.
	maxSize = 1 << 48
)

// Reader gives access to the files of a log. An error that wraps
// fs.ErrNotExist says that there is no such file.
type Reader interface {
	// Checkpoint returns the file "checkpoint".
	Checkpoint(ctx context.Context) ([]byte, error)
	// Tile returns a file under "tile/", by its path from the log's folder:
	// "tile/0/000.p/5", "tile/entries/x001/234".
	Tile(ctx context.Context, path string) ([]byte, error)
	// Body returns the document whose SHA-256 is sum, in lower-case hex.
	Body(ctx context.Context, sum string) ([]byte, error)
}

// Options say what to check against.
type Options struct {
	// Verifiers are the verifier keys of the log, from the auditor's own files.
	// One of them must have signed the checkpoint. None is an error.
	Verifiers []string
	// Pinned are checkpoints that were seen before or elsewhere, signed by one
	// of Verifiers. The log must contain each of them.
	Pinned [][]byte
	// AllowMissingBodies lets documents be absent, for example erased by law.
	// They are then listed in Result.Missing. A document that is there is checked.
	AllowMissingBodies bool
}

// Result is what was checked. It is valid as far as the check got, also if
// there was an error.
type Result struct {
	Origin string // name of the log
	Size   uint64 // entries that the checkpoint commits to
	Root   [hashSize]byte
	// Entries counts the entries that were found good, by type.
	Entries map[string]uint64
	// Bodies counts the documents that were found good.
	Bodies uint64
	// Missing are the SHA-256 sums, in hex, of documents that are not there.
	Missing []string
	// Open are the intents that no later entry closes.
	Open []uint64
	// First and Last are the times of the first and the last entry.
	First, Last time.Time
}

// Problem is a fault in a log.
type Problem struct {
	Where string // "checkpoint", a path, "entry 17", "body <sum>"
	Err   error
}

// Error returns "where: what".
func (p *Problem) Error() string { return p.Where + ": " + p.Err.Error() }

// Unwrap returns what is wrong.
func (p *Problem) Unwrap() error { return p.Err }

func problem(where, format string, args ...any) error {
	return &Problem{Where: where, Err: fmt.Errorf(format, args...)}
}

// ErrMissing says that a document is not there. Whether it was erased or lost,
// the entry that names it, and its sum, are unchanged.
var ErrMissing = errors.New("the document is missing")

// Check reads all of the log and returns the first fault as a *[Problem]. When
// the only fault is missing documents, the error wraps [ErrMissing].
func Check(ctx context.Context, r Reader, o Options) (Result, error) {
	var res Result
	verifiers, err := parseVerifiers(o.Verifiers)
	if err != nil {
		return res, err
	}
	raw, err := r.Checkpoint(ctx)
	if err != nil {
		return res, &Problem{"checkpoint", err}
	}
	cp, err := openCheckpoint(raw, verifiers)
	if err != nil {
		return res, &Problem{"checkpoint", err}
	}
	res = Result{Origin: cp.origin, Size: cp.size, Root: cp.root, Entries: map[string]uint64{}}
	c := &checker{r: r, size: cp.size, res: &res, intents: map[uint64]bool{}, sums: map[string]bool{}}
	for i, p := range o.Pinned {
		pin, err := openCheckpoint(p, verifiers)
		if err != nil {
			return res, problem("pinned checkpoint", "number %d: %w", i+1, err)
		}
		if pin.origin != cp.origin {
			return res, problem("pinned checkpoint", "it is of the log %q, this is %q", pin.origin, cp.origin)
		}
		if pin.size > cp.size {
			return res, problem("checkpoint", "the log has %d entries, but a checkpoint over %d was signed: it was cut", cp.size, pin.size)
		}
		c.pins = append(c.pins, pin)
	}
	if err := c.tree(ctx, cp.root); err != nil {
		return res, err
	}
	for i, open := range c.intents {
		if open {
			res.Open = append(res.Open, i)
		}
	}
	slices.Sort(res.Open)
	if err := c.bodies(ctx, o.AllowMissingBodies); err != nil {
		return res, err
	}
	return res, nil
}

// checker walks one log from the first leaf to the last.
type checker struct {
	r    Reader
	size uint64
	res  *Result
	pins []checkpoint

	// levels holds, for each level of tiles, the hashes of the tile that is
	// being filled. What is in a tile file must be exactly these.
	levels [][][hashSize]byte
	counts []uint64 // hashes seen so far on each level
	edge   edge

	intents map[uint64]bool // index of each intent: is it open?
	sums    map[string]bool // documents that entries name
	order   []string        // the same, in order of appearance
	last    time.Time
}

// tree recomputes the whole tree from the entries, compares every tile with
// what it must be, and the root with the checkpoint's.
func (c *checker) tree(ctx context.Context, root [hashSize]byte) error {
	if err := c.checkPins(0); err != nil {
		return err
	}
	for at := uint64(0); at < c.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := at / tileWidth
		width := min(c.size-at, tileWidth)
		path := tilePath("entries", n, width)
		raw, err := c.resource(ctx, "entries", n, width)
		if err != nil {
			return &Problem{path, err}
		}
		leaves, err := parseBundle(raw)
		if err != nil {
			return &Problem{path, err}
		}
		if uint64(len(leaves)) < width {
			return problem(path, "%d entries, want %d", len(leaves), width)
		}
		for _, leaf := range leaves[:width] {
			if err := c.leaf(ctx, at, leaf); err != nil {
				return err
			}
			at++
		}
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	if got := c.edge.root(); got != root {
		return problem("checkpoint", "its root is %x, the entries give %x", root, got)
	}
	return nil
}

// leaf adds one leaf to the tree and checks it as an entry.
func (c *checker) leaf(ctx context.Context, i uint64, leaf []byte) error {
	h := leafHash(leaf)
	c.edge.add(h)
	if err := c.push(ctx, 0, h); err != nil {
		return err
	}
	if err := c.checkPins(i + 1); err != nil {
		return err
	}
	e, err := parseEntry(leaf)
	if err == nil {
		err = c.entry(i, e)
	}
	if err != nil {
		return &Problem{fmt.Sprintf("entry %d", i), err}
	}
	return nil
}

func (c *checker) checkPins(size uint64) error {
	for _, p := range c.pins {
		if p.size == size && p.root != c.edge.root() {
			return problem("checkpoint", "the first %d entries are not those of a checkpoint that was signed: history was rewritten", size)
		}
	}
	return nil
}

// entry checks the rules that hold between entries.
func (c *checker) entry(i uint64, e entry) error {
	if e.Time.Before(c.last) {
		return fmt.Errorf("its time %s is before that of the entry before it, %s",
			e.Time.Format(time.RFC3339Nano), c.last.Format(time.RFC3339Nano))
	}
	c.last, c.res.Last = e.Time, e.Time
	if i == 0 {
		c.res.First = e.Time
	}
	if e.Intent != nil {
		if _, ok := c.intents[*e.Intent]; !ok {
			return fmt.Errorf("it names entry %d as its intent, which is no earlier intent", *e.Intent)
		}
	}
	switch e.Type {
	case "intent":
		c.intents[i] = true
	case "result":
		if e.Intent == nil {
			return errors.New("a result names no intent")
		}
		c.intents[*e.Intent] = false
	case "reverted":
		if e.Intent != nil {
			c.intents[*e.Intent] = false
		}
	}
	for _, d := range e.Bodies {
		sum := d[len("sha256:"):]
		if !c.sums[sum] {
			c.sums[sum] = true
			c.order = append(c.order, sum)
		}
	}
	c.res.Entries[e.Type]++
	return nil
}

// push adds a hash to a level. A tile that is full is compared with its file,
// and its own hash goes one level up.
func (c *checker) push(ctx context.Context, level int, h [hashSize]byte) error {
	if level == len(c.levels) {
		c.levels = append(c.levels, nil)
		c.counts = append(c.counts, 0)
	}
	c.levels[level] = append(c.levels[level], h)
	c.counts[level]++
	if len(c.levels[level]) < tileWidth {
		return nil
	}
	tile := c.levels[level]
	c.levels[level] = nil
	if err := c.compare(ctx, level, c.counts[level]/tileWidth-1, tile); err != nil {
		return err
	}
	return c.push(ctx, level+1, treeHash(tile))
}

// finish compares the partial tiles at the right edge with their files.
func (c *checker) finish(ctx context.Context) error {
	for level, tile := range c.levels {
		if len(tile) == 0 {
			continue
		}
		if err := c.compare(ctx, level, c.counts[level]/tileWidth, tile); err != nil {
			return err
		}
	}
	return nil
}

// compare checks one tile file against the hashes that must be in it.
func (c *checker) compare(ctx context.Context, level int, n uint64, want [][hashSize]byte) error {
	dir := fmt.Sprint(level)
	width := uint64(len(want))
	path := tilePath(dir, n, width)
	got, err := c.resource(ctx, dir, n, width)
	if err != nil {
		return &Problem{path, err}
	}
	if len(got)%hashSize != 0 || len(got) > tileWidth*hashSize || len(got) < len(want)*hashSize {
		return problem(path, "%d bytes, want %d", len(got), len(want)*hashSize)
	}
	for i, h := range want {
		if !bytes.Equal(got[i*hashSize:(i+1)*hashSize], h[:]) {
			return problem(path, "hash %d is not that of what it stands for: an entry or the tile was changed", i)
		}
	}
	return nil
}

// resource reads a tile or a bundle. A partial one may have been removed once
// the full one is there (https://c2sp.org/tlog-tiles, "Partial Tiles").
func (c *checker) resource(ctx context.Context, dir string, n, width uint64) ([]byte, error) {
	b, err := c.r.Tile(ctx, tilePath(dir, n, width))
	if errors.Is(err, fs.ErrNotExist) && width < tileWidth {
		if full, ferr := c.r.Tile(ctx, tilePath(dir, n, tileWidth)); ferr == nil {
			return full, nil
		}
	}
	return b, err
}

// bodies checks the documents that the entries name.
func (c *checker) bodies(ctx context.Context, allowMissing bool) error {
	for _, sum := range c.order {
		b, err := c.r.Body(ctx, sum)
		if errors.Is(err, fs.ErrNotExist) {
			c.res.Missing = append(c.res.Missing, sum)
			continue
		}
		if err != nil {
			return &Problem{"body " + sum, err}
		}
		if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != sum {
			return problem("body "+sum, "it was changed: its SHA-256 is %x", got)
		}
		c.res.Bodies++
	}
	if len(c.res.Missing) > 0 && !allowMissing {
		return problem("body "+c.res.Missing[0], "%w (%d in all)", ErrMissing, len(c.res.Missing))
	}
	return nil
}

func parseVerifiers(vkeys []string) ([]note.Verifier, error) {
	if len(vkeys) == 0 {
		return nil, errors.New("fsck: no verifier key: a log that anybody may have signed proves nothing")
	}
	var out []note.Verifier
	for _, k := range vkeys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("fsck: verifier key %q: %w", k, err)
		}
		out = append(out, v)
	}
	return out, nil
}
