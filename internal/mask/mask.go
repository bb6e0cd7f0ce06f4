// Package mask owns the one way in which a secret may be mentioned: as a keyed
// mask. Equal secrets of one environment get equal masks, so that a rule such
// as "these two must differ" still works, and nobody without the key can test a
// guess against a mask.
//
// It guarantees that [Masker.Scrub] replaces every registered value in its
// plain, base64, URL, JSON and hex encodings. It refuses an empty key.
package mask

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// minScrub is the length in bytes below which a value is not searched for in
// free text: replacing every "1" or "yes" would destroy the text and hide nothing.
const minScrub = 5

// Masker masks with one key. It is safe for concurrent use.
type Masker struct {
	key []byte

	mu       sync.RWMutex
	values   map[string]bool
	replacer *strings.Replacer // rebuilt by Register
}

// New returns a Masker for key, which is at least 16 bytes.
func New(key []byte) (*Masker, error) {
	if len(key) < 16 {
		return nil, errors.New("mask: the key has fewer than 16 bytes")
	}
	return &Masker{key: slices.Clone(key), values: map[string]bool{}}, nil
}

// Derive returns a Masker whose key is derived from m's for one purpose, for
// example one environment. It starts with no registered values.
func (m *Masker) Derive(purpose string) *Masker {
	h := hmac.New(sha256.New, m.key)
	h.Write([]byte("derive\x00" + purpose))
	return &Masker{key: h.Sum(nil), values: map[string]bool{}}
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
	added := false
	add := func(v string) {
		if len(v) >= minScrub && !m.values[v] {
			m.values[v] = true
			added = true
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
	if !added {
		return
	}
	// Longest first: strings.Replacer takes the first match in argument order.
	sorted := make([]string, 0, len(m.values))
	for v := range m.values {
		sorted = append(sorted, v)
	}
	slices.SortFunc(sorted, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	var pairs []string
	for _, v := range sorted {
		for _, e := range encodings(v) {
			pairs = append(pairs, e, m.Value(v))
		}
	}
	m.replacer = strings.NewReplacer(pairs...)
}

// Scrub returns s with every registered value replaced by its mask.
func (m *Masker) Scrub(s string) string {
	m.mu.RLock()
	r := m.replacer
	m.mu.RUnlock()
	if r == nil {
		return s
	}
	return r.Replace(s)
}

// encodings returns the ways in which v may stand in a text.
func encodings(v string) []string {
	j, err := json.Marshal(v)
	if err != nil { // a string always marshals
		panic("mask: " + err.Error())
	}
	b := []byte(v)
	all := []string{
		v,
		string(j[1 : len(j)-1]),
		base64.StdEncoding.EncodeToString(b),
		base64.RawStdEncoding.EncodeToString(b),
		base64.URLEncoding.EncodeToString(b),
		base64.RawURLEncoding.EncodeToString(b),
		url.QueryEscape(v),
		url.PathEscape(v),
		hex.EncodeToString(b),
		strings.ToUpper(hex.EncodeToString(b)),
	}
	slices.SortStableFunc(all, func(a, b string) int { return len(b) - len(a) })
	return slices.Compact(all)
}
