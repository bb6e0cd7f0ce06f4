package fsck

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// checkpoint is a signed statement about a log, https://c2sp.org/tlog-checkpoint.
type checkpoint struct {
	origin string
	size   uint64
	root   [hashSize]byte
}

// openCheckpoint parses a checkpoint that one of the verifiers signed under the
// name of the log.
func openCheckpoint(raw []byte, verifiers []note.Verifier) (checkpoint, error) {
	if len(raw) > maxCheckpoint {
		return checkpoint{}, fmt.Errorf("more than %d bytes", maxCheckpoint)
	}
	// Keys are tried one at a time: two of one name and hash are ambiguous in a list.
	var last error
	for _, v := range verifiers {
		n, err := note.Open(raw, note.VerifierList(v))
		if err != nil {
			last = err
			continue
		}
		cp, err := parseCheckpoint(n.Text)
		if err != nil {
			return checkpoint{}, err
		}
		for _, sig := range n.Sigs {
			if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
				return checkpoint{}, fmt.Errorf("signature: %w", err)
			}
		}
		if cp.origin == v.Name() {
			return cp, nil
		}
		last = fmt.Errorf("the log calls itself %q, the key is for %q", cp.origin, v.Name())
	}
	return checkpoint{}, last
}

// parseCheckpoint parses the text of a checkpoint: "The note text has at least
// three lines: origin, tree size in decimal without leading zeroes, base64 root".
func parseCheckpoint(text string) (checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 {
		return checkpoint{}, errors.New("fewer than three lines")
	}
	size, err := parseNumber(lines[1])
	if err != nil {
		return checkpoint{}, fmt.Errorf("tree size: %w", err)
	}
	if size > maxSize {
		return checkpoint{}, fmt.Errorf("tree size %d is out of range", size)
	}
	root, err := parseHash(lines[2])
	if err != nil {
		return checkpoint{}, fmt.Errorf("root: %w", err)
	}
	if lines[0] == "" {
		return checkpoint{}, errors.New("no origin")
	}
	if lines[3] != "" {
		return checkpoint{}, errors.New("extension lines, which this version does not understand")
	}
	return checkpoint{origin: lines[0], size: size, root: root}, nil
}

// parseNumber parses a decimal number in its one canonical form.
func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is no decimal number", s)
	}
	return n, nil
}

// parseHash parses the one canonical base64 form of a SHA-256.
func parseHash(s string) ([hashSize]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != hashSize || base64.StdEncoding.EncodeToString(b) != s {
		return [hashSize]byte{}, fmt.Errorf("%q is no base64 of a SHA-256", s)
	}
	return [hashSize]byte(b), nil
}

// tilePath returns the path of a tile: "tile/<L>/<N>[.p/<W>]", N in groups of
// three digits, all but the last with an x before it.
func tilePath(dir string, n, width uint64) string {
	num := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		num = fmt.Sprintf("x%03d/%s", n%1000, num)
	}
	if width < tileWidth {
		num += fmt.Sprintf(".p/%d", width)
	}
	return "tile/" + dir + "/" + num
}

// parseBundle splits an entry bundle: "big-endian uint16 length-prefixed entries".
func parseBundle(b []byte) ([][]byte, error) {
	if len(b) > maxBundle {
		return nil, fmt.Errorf("more than %d bytes", maxBundle)
	}
	var leaves [][]byte
	for len(b) > 0 {
		if len(leaves) == tileWidth {
			return nil, fmt.Errorf("more than %d entries", tileWidth)
		}
		if len(b) < 2 {
			return nil, errors.New("cut off in the length of an entry")
		}
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if n > len(b) {
			return nil, errors.New("cut off in an entry")
		}
		leaves = append(leaves, b[:n])
		b = b[n:]
	}
	return leaves, nil
}

// entry has the fields of a leaf in their order, docs/ledger-format.md.
type entry struct {
	Version     int               `json:"v"`
	Type        string            `json:"type"`
	Time        time.Time         `json:"time"`
	Stack       string            `json:"stack,omitempty"`
	Environment string            `json:"env,omitempty"`
	Revision    string            `json:"rev,omitempty"`
	Subject     string            `json:"subject,omitempty"`
	Since       time.Time         `json:"since,omitzero"`
	Intent      *uint64           `json:"intent,omitempty"`
	Outcome     string            `json:"outcome,omitempty"`
	Note        string            `json:"note,omitempty"`
	Bodies      map[string]string `json:"bodies,omitempty"`
}

// parseEntry parses a leaf in the one form that it may have, so that no two
// readers can see different entries in it (double keys, case, white space).
func parseEntry(leaf []byte) (entry, error) {
	if len(leaf) > maxLeaf {
		return entry{}, fmt.Errorf("%d bytes, the limit is %d", len(leaf), maxLeaf)
	}
	var e entry
	if err := json.Unmarshal(leaf, &e); err != nil {
		return entry{}, fmt.Errorf("it is no JSON entry: %w", err)
	}
	if e.Version != 1 {
		return entry{}, fmt.Errorf("version %d, want 1", e.Version)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return entry{}, err
	}
	if !bytes.Equal(bytes.TrimSuffix(buf.Bytes(), []byte("\n")), leaf) {
		return entry{}, errors.New("it is not in canonical form: unknown or double fields, their order, or white space")
	}
	switch e.Type {
	case "started", "configuration", "seen", "verified", "decided", "intent", "result", "drift", "reverted", "ended", "approved", "denied",
		"revoked", "suspended", "resumed", "ordered", "raised":
	default:
		return entry{}, fmt.Errorf("unknown type %q", e.Type)
	}
	if e.Time.Location() != time.UTC || e.Time.IsZero() {
		return entry{}, errors.New("its time is not in UTC")
	}
	if e.Since.Location() != time.UTC || !e.Since.IsZero() && e.Type != "revoked" {
		return entry{}, errors.New("its since is not in UTC, or says nothing")
	}
	for _, s := range []string{e.Stack, e.Environment, e.Revision, e.Subject, e.Outcome, e.Note} {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return entry{}, fmt.Errorf("%q is not one line of UTF-8", s)
		}
	}
	for role, d := range e.Bodies {
		sum, ok := strings.CutPrefix(d, "sha256:")
		if !ok || !isSum(sum) {
			return entry{}, fmt.Errorf("body %q: %q is no sha256 digest", role, d)
		}
	}
	return e, nil
}

// isSum reports whether s is a SHA-256 in lower-case hex.
func isSum(s string) bool {
	return len(s) == 2*hashSize && strings.Trim(s, "0123456789abcdef") == ""
}

// leafHash and nodeHash are those of RFC 6962, section 2.1.
func leafHash(leaf []byte) [hashSize]byte {
	return sha256.Sum256(append([]byte{0}, leaf...))
}

func nodeHash(l, r [hashSize]byte) [hashSize]byte {
	b := make([]byte, 0, 1+2*hashSize)
	b = append(b, 1)
	b = append(b, l[:]...)
	return sha256.Sum256(append(b, r[:]...))
}

// treeHash returns the root over hashes, whose number is a power of two.
func treeHash(hashes [][hashSize]byte) [hashSize]byte {
	for len(hashes) > 1 {
		up := make([][hashSize]byte, len(hashes)/2)
		for i := range up {
			up[i] = nodeHash(hashes[2*i], hashes[2*i+1])
		}
		hashes = up
	}
	return hashes[0]
}

// edge is the right edge of a tree: the roots of its perfect subtrees, the
// largest first.
type edge struct {
	size  uint64
	roots [][hashSize]byte
}

func (e *edge) add(h [hashSize]byte) {
	for n := e.size; n&1 == 1; n >>= 1 {
		h = nodeHash(e.roots[len(e.roots)-1], h)
		e.roots = e.roots[:len(e.roots)-1]
	}
	e.roots = append(e.roots, h)
	e.size++
}

func (e *edge) root() [hashSize]byte {
	if e.size == 0 {
		return sha256.Sum256(nil)
	}
	h := e.roots[len(e.roots)-1]
	for i := len(e.roots) - 2; i >= 0; i-- {
		h = nodeHash(e.roots[i], h)
	}
	return h
}
