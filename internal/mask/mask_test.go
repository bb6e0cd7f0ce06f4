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
