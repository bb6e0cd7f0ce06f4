// Package mask owns the one way in which a secret may be mentioned: as a keyed
// mask. Equal secrets of one environment get equal masks, so that a rule such
// as "these two must differ" still works, and nobody without the key can test a
// guess against a mask.
//
// It guarantees that [Masker.Scrub] replaces every registered value in its
// plain, base64, JSON and hex encodings, also where it is only a part of what
// was encoded: of "user:password" in base64, of a JSON text that is a string of
// another one. Percent-encodings (RFC 3986, 2.1) and the character references of
// HTML and XML are found whichever characters somebody chose to escape, and how.
// It refuses an empty key.
package mask

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode/utf16"
)

// minScrub is the length in bytes below which a value is not searched for in
// free text: replacing every "1" or "yes" would destroy the text and hide nothing.
const minScrub = 5

// Masker masks with one key. It is safe for concurrent use.
type Masker struct {
	key []byte

	mu     sync.RWMutex
	values map[string][]string // registered value → the ways in which it may stand in a text
	finder *finder             // nil: to be made by the next Scrub
}

// New returns a Masker for key, which is at least 16 bytes.
func New(key []byte) (*Masker, error) {
	if len(key) < 16 {
		return nil, errors.New("mask: the key has fewer than 16 bytes")
	}
	return &Masker{key: slices.Clone(key), values: map[string][]string{}}, nil
}

// Derive returns a Masker whose key is derived from m's for one purpose, for
// example one environment. It starts with no registered values.
func (m *Masker) Derive(purpose string) *Masker {
	h := hmac.New(sha256.New, m.key)
	h.Write([]byte("derive\x00" + purpose))
	return &Masker{key: h.Sum(nil), values: map[string][]string{}}
}

// Value returns the mask that stands for v: "(masked 1f3a…)", 64 bits of HMAC-SHA-256.
func (m *Masker) Value(v string) string {
	h := hmac.New(sha256.New, m.key)
	h.Write([]byte("value\x00" + v))
	return fmt.Sprintf("(masked %x)", h.Sum(nil)[:8])
}

// Register makes Scrub replace values from now on. Each line of a value with
// several lines is registered as well, since logs are cut into lines.
func (m *Masker) Register(values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	add := func(v string) {
		if len(v) >= minScrub && m.values[v] == nil {
			m.values[v], m.finder = encodings(v), nil
		}
	}
	for _, v := range values {
		add(v)
		if strings.Contains(v, "\n") {
			for line := range strings.Lines(v) {
				add(strings.TrimSpace(line))
			}
		}
	}
}

// Scrub returns s with every registered value replaced by its mask. Where values
// overlap, one mask stands for what they cover together.
func (m *Masker) Scrub(s string) string {
	f := m.ready()
	if f == nil {
		return s
	}
	var found []span
	for _, v := range views(s) {
		found = f.search(found, v)
	}
	return replace(s, found)
}

// Holds reports whether s has a registered value in it, as it is or encoded, but not
// escaped over again: in one pass, and without memory, whoever wrote s.
func (m *Masker) Holds(s string) bool {
	f := m.ready()
	return f != nil && len(f.search(nil, &view{text: s})) > 0
}

// ready returns the finder; nil if nothing is registered.
func (m *Masker) ready() *finder {
	m.mu.RLock()
	f, none := m.finder, len(m.values) == 0
	m.mu.RUnlock()
	if f == nil && !none {
		return m.prepare()
	}
	return f
}

// prepare makes the finder of all values that are registered by now.
func (m *Masker) prepare() *finder {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.finder == nil { // else somebody else was faster
		m.finder = newFinder()
		for _, v := range slices.SortedFunc(maps.Keys(m.values), longestFirst) {
			mask := m.Value(v)
			for _, e := range m.values[v] {
				m.finder.add(e, mask)
			}
		}
	}
	return m.finder
}

func longestFirst(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) }

// encodings returns the ways in which v may stand in a text, the longest first.
func encodings(v string) []string {
	b := []byte(v)
	plain, html := inJSON(v, false), inJSON(v, true)
	all := []string{
		v,
		plain, html, inJSON(plain, false), inJSON(html, true),
		codePoints(v, `\u%04x`), codePoints(v, `\u%04X`),
		base64.StdEncoding.EncodeToString(b),
		base64.RawStdEncoding.EncodeToString(b),
		base64.URLEncoding.EncodeToString(b),
		base64.RawURLEncoding.EncodeToString(b),
		url.QueryEscape(v),
		url.PathEscape(v),
		hex.EncodeToString(b),
		strings.ToUpper(hex.EncodeToString(b)),
	}
	for before := range 3 {
		all = append(all, aligned(base64.RawStdEncoding, b, before), aligned(base64.RawURLEncoding, b, before))
	}
	slices.SortFunc(all, longestFirst)
	return slices.Compact(all)
}

// aligned is the part of the base64 of a longer text that depends on b alone,
// when b stands behind a number of bytes whose remainder by 3 is before.
func aligned(e *base64.Encoding, b []byte, before int) string {
	text := e.EncodeToString(append(make([]byte, before), b...))
	return text[(before*8+5)/6 : (before+len(b))*8/6]
}

// inJSON is s inside a JSON string, with <, > and & escaped as Go does by
// default (html) or not.
func inJSON(s string, html bool) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(html)
	if err := enc.Encode(s); err != nil { // a string always encodes
		panic("mask: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\"\n")[1:]
}

// codePoints is s with every character escaped, as some JSON encoders do.
// Outside the basic plane each is a pair of surrogates.
func codePoints(s, format string) string {
	var b strings.Builder
	for _, c := range utf16.Encode([]rune(s)) {
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}
