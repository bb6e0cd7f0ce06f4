package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

const (
	entryVersion = 1
	maxNote      = 300 // bytes
	maxRole      = 32  // bytes
	maxBodies    = 16  // per entry
)

// longestTime is the longest text that an entry's time can have.
var longestTime = time.Date(2000, 1, 1, 0, 0, 0, 999_000_000, time.UTC)

var entryTypes = map[Type]bool{
	Started: true, Configuration: true, Seen: true, Verified: true, Decided: true,
	Intent: true, Applied: true, Drift: true, Reverted: true, Refused: true,
	Ended: true, Approved: true, Revoked: true, Suspended: true, Resumed: true, Ordered: true, Raised: true,
}

// closes reports whether an entry of type t closes the intent that it names.
func (t Type) closes() bool { return t == Applied || t == Reverted }

// stands reports whether an entry of type t says something that holds until
// another entry ends it.
func (t Type) stands() bool { return t == Revoked || t == Suspended || t == Resumed || t == Ordered }

// narrows reports whether an entry of type t takes trust or leave away, and
// nothing else.
func (t Type) narrows() bool { return t == Revoked || t == Suspended }

// patient reports whether nobody waits for entries of the type.
func (t Type) patient() bool {
	switch t {
	case Verified, Decided, Applied, Drift, Reverted, Ended:
		return true
	}
	return false
}

// normalise makes e an entry that encodes to at most [MaxEntry] bytes whatever
// its time will be, or says why it cannot be one.
func normalise(e Entry) (Entry, error) {
	if !entryTypes[e.Type] {
		return e, fmt.Errorf("unknown entry type %q", e.Type)
	}
	if e.Type == Applied && e.Intent == nil {
		return e, fmt.Errorf("a %s names no intent", e.Type)
	}
	if !e.Since.IsZero() && e.Type != Revoked {
		return e, fmt.Errorf("a %s has no since", e.Type)
	}
	e.Since = e.Since.UTC().Truncate(time.Second)
	for _, f := range []struct{ name, value string }{
		{"stack", e.Stack}, {"env", e.Environment}, {"rev", e.Revision}, {"subject", e.Subject}, {"outcome", e.Outcome},
	} {
		if !utf8.ValidString(f.value) || strings.ContainsFunc(f.value, unicode.IsControl) {
			return e, fmt.Errorf("%s %q is not one line of UTF-8", f.name, f.value)
		}
	}
	e.Version = entryVersion
	e.Time = longestTime
	e.Note = oneLine(e.Note, maxNote)
	leaf, err := encode(e)
	if err != nil {
		return e, err
	}
	if over := len(leaf) - MaxEntry; over > 0 {
		e.Note = oneLine(e.Note, max(0, len(e.Note)-over))
		if leaf, err = encode(e); err != nil {
			return e, err
		}
	}
	if len(leaf) > MaxEntry {
		return e, fmt.Errorf("the entry has %d bytes, the limit is %d", len(leaf), MaxEntry)
	}
	return e, nil
}

// oneLine makes s one line of at most limit bytes of valid UTF-8.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= limit {
		return s
	}
	const more = "…"
	if limit < len(more) {
		return ""
	}
	cut := limit - len(more)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}

// encode returns the leaf of e: compact JSON, fields in the order of the
// struct, map keys sorted, nothing escaped for HTML.
func encode(e Entry) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// decode parses a leaf. It refuses what encode does not write.
func decode(leaf []byte) (Entry, error) {
	if len(leaf) > MaxEntry {
		return Entry{}, fmt.Errorf("the leaf has %d bytes, the limit is %d", len(leaf), MaxEntry)
	}
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(leaf))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("the leaf is no entry: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, errors.New("the leaf has more than one value")
	}
	if e.Version != entryVersion {
		return Entry{}, fmt.Errorf("entry version %d, want %d", e.Version, entryVersion)
	}
	if !entryTypes[e.Type] {
		return Entry{}, fmt.Errorf("unknown entry type %q", e.Type)
	}
	for role, d := range e.Bodies {
		if err := checkDigest(d); err != nil {
			return Entry{}, fmt.Errorf("body %q: %w", role, err)
		}
	}
	return e, nil
}

func checkRole(role string) error {
	if role == "" || len(role) > maxRole || strings.Trim(role, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return fmt.Errorf("body role %q: want at most %d of a-z, 0-9, '-', '_', '.'", role, maxRole)
	}
	return nil
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %s is not sha256", d)
	}
	return nil
}
