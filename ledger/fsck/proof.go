package fsck

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// maxProof bounds a proof file: a leaf, 64 hashes and a checkpoint.
const maxProof = 2*maxLeaf + 64*64 + maxCheckpoint

// Proven is what a proof file shows.
type Proven struct {
	Origin string
	Index  uint64
	Size   uint64 // of the tree that the entry is in
	Leaf   []byte
	Type   string
	Time   time.Time
}

// CheckProof checks a c2sp.org/tlog-proof@v1 offline: that leaf is an entry of
// the log whose verifier key is vkey. With a nil leaf it is the one in the
// proof's extra data that is checked.
func CheckProof(proof, leaf []byte, vkey string) (Proven, error) {
	verifiers, err := parseVerifiers([]string{vkey})
	if err != nil {
		return Proven{}, err
	}
	p, err := parseProof(proof)
	if err != nil {
		return Proven{}, &Problem{"proof", err}
	}
	if leaf == nil {
		leaf = p.extra
	}
	if leaf == nil {
		return Proven{}, problem("proof", "it has no entry in it, and none was given")
	}
	cp, err := openCheckpoint(p.checkpoint, verifiers)
	if err != nil {
		return Proven{}, &Problem{"checkpoint", err}
	}
	if p.index >= cp.size {
		return Proven{}, problem("proof", "entry %d of a log of %d", p.index, cp.size)
	}
	// #nosec G115 -- the size of a checkpoint is at most maxSize
	err = tlog.CheckRecord(p.hashes, int64(cp.size), cp.root, int64(p.index), leafHash(leaf))
	if err != nil {
		return Proven{}, problem("proof", "the entry is not in the log: %w", err)
	}
	e, err := parseEntry(leaf)
	if err != nil {
		return Proven{}, &Problem{fmt.Sprintf("entry %d", p.index), err}
	}
	return Proven{Origin: cp.origin, Index: p.index, Size: cp.size, Leaf: bytes.Clone(leaf), Type: e.Type, Time: e.Time}, nil
}

type proofFile struct {
	index      uint64
	extra      []byte
	hashes     tlog.RecordProof
	checkpoint []byte
}

// parseProof parses https://c2sp.org/tlog-proof: a header line, an optional
// "extra" line, an "index" line, the hashes, an empty line, the checkpoint.
func parseProof(raw []byte) (proofFile, error) {
	var p proofFile
	if len(raw) > maxProof {
		return p, fmt.Errorf("more than %d bytes", maxProof)
	}
	head, cp, ok := strings.Cut(string(raw), "\n\n")
	if !ok {
		return p, errors.New("no empty line before the checkpoint")
	}
	p.checkpoint = []byte(cp)
	lines := strings.Split(head, "\n")
	if lines[0] != "c2sp.org/tlog-proof@v1" {
		return p, errors.New("it does not start with c2sp.org/tlog-proof@v1")
	}
	lines = lines[1:]
	if len(lines) > 0 && strings.HasPrefix(lines[0], "extra ") {
		var err error
		text := strings.TrimPrefix(lines[0], "extra ")
		p.extra, err = base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || base64.StdEncoding.EncodeToString(p.extra) != text {
			return p, errors.New("the extra line is no base64")
		}
		lines = lines[1:]
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "index ") {
		return p, errors.New("no index line")
	}
	var err error
	if p.index, err = parseNumber(strings.TrimPrefix(lines[0], "index ")); err != nil {
		return p, fmt.Errorf("index: %w", err)
	}
	if lines = lines[1:]; len(lines) > 63 {
		return p, errors.New("more than 63 hashes")
	}
	for _, line := range lines {
		h, err := parseHash(line)
		if err != nil {
			return p, err
		}
		p.hashes = append(p.hashes, h)
	}
	return p, nil
}
