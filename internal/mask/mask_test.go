package mask

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

func masker(t *testing.T, key string) *Masker {
	t.Helper()
	m, err := New([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const key = "0123456789abcdef"

func TestNewRefusesShortKeys(t *testing.T) {
	t.Parallel()
	if _, err := New([]byte("short")); err == nil {
		t.Error("accepted")
	}
}

func TestValue(t *testing.T) {
	t.Parallel()
	m := masker(t, key)
	switch {
	case m.Value("a") != masker(t, key).Value("a"):
		t.Error("equal values have different masks")
	case m.Value("a") == m.Value("b"):
		t.Error("different values have equal masks")
	case m.Value("a") == masker(t, "fedcba9876543210").Value("a"):
		t.Error("the mask does not depend on the key")
	case m.Value("a") == m.Derive("production").Value("a"), m.Derive("production").Value("a") == m.Derive("staging").Value("a"):
		t.Error("the mask does not depend on the environment")
	case strings.Contains(m.Value("secret"), "secret"):
		t.Error("the mask holds the value")
	}
}

func TestScrub(t *testing.T) {
	t.Parallel()
	m := masker(t, key)
	secret := `pass "word" & 100% <tag>`
	m.Register(secret, "tiny", "line one\nline two", secret+"-longer")
	j, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plain":     secret,
		"in a text": "login failed for " + secret + " at host",
		"JSON":      string(j),
		"base64":    base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64url": base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"query":     url.QueryEscape(secret),
		"path":      url.PathEscape(secret),
		"hex":       hex.EncodeToString([]byte(secret)),
		"HEX":       strings.ToUpper(hex.EncodeToString([]byte(secret))),
	} {
		got := m.Scrub(text)
		if strings.Contains(got, text) && !strings.Contains(text, " at host") || !strings.Contains(got, m.Value(secret)) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := m.Scrub("line two"); !strings.Contains(got, "masked") {
		t.Errorf("a line of a longer secret stands: %q", got)
	}
	if got := m.Scrub(secret + "-longer"); got != m.Value(secret+"-longer") {
		t.Errorf("the longest secret does not win: %q", got)
	}
	if got := m.Scrub("a tiny thing"); got != "a tiny thing" {
		t.Errorf("short values destroy texts: %q", got)
	}
	if got := masker(t, key).Scrub("anything"); got != "anything" {
		t.Errorf("%q", got)
	}
}

// A secret that is a part of what was encoded is found as well.
func TestScrubFindsParts(t *testing.T) {
	t.Parallel()
	m := masker(t, key)
	const secret = `p"ss/w0rd+&<geheim>?` + "\U0001f511"
	m.Register(secret)
	inner, err := json.Marshal(map[string]string{"password": secret})
	if err != nil {
		t.Fatal(err)
	}
	outer, err := json.Marshal(string(inner))
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(inner), string(outer), url.Values{"a": {"b " + secret}}.Encode(), codePoints("a"+secret, `\u%04x`), codePoints(secret+"b", `\u%04X`), `a "` + inJSON(secret, false) + `" b`}
	for before := range 4 {
		for _, after := range []string{"", "a", "ab"} {
			text := []byte(strings.Repeat("x", before) + secret + after)
			texts = append(texts, base64.StdEncoding.EncodeToString(text), base64.RawURLEncoding.EncodeToString(text))
		}
	}
	for _, text := range texts {
		if got := m.Scrub(text); !strings.Contains(got, m.Value(secret)) {
			t.Errorf("%q stands as %q", text, got)
		}
	}
}

func BenchmarkRegister(b *testing.B) {
	for b.Loop() {
		m, err := New([]byte(key))
		if err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			m.Register(strings.Repeat("secret", 4) + strings.Repeat("x", i))
		}
	}
}
