package mask

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
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

// percentEncode escapes all of s but for letters, digits and what keep names.
func percentEncode(s, keep, format string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, format, c)
		}
	}
	return b.String()
}

// Which characters are escaped, and how, differs from one library to the next.
func TestScrubDecodes(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"p@ss&w0rd/1", "correct horse&battery+staple", "Tr0ub4dor!*(3)/x", `a"b<c>'d-hunter`, "geheim-ü-wort=1", "100%41-hunter", "key&amp;lock"} {
		m := masker(t, key)
		m.Register(secret)
		var inXML bytes.Buffer
		if err := xml.EscapeText(&inXML, []byte(secret)); err != nil {
			t.Fatal(err)
		}
		address := (&url.URL{Scheme: "postgres", User: url.UserPassword("u", secret), Host: "h"}).String()
		for name, text := range map[string]string{
			"user info":                address,
			"path":                     (&url.URL{Scheme: "https", Host: "h", Path: "/x/" + secret}).String(),
			"fragment":                 (&url.URL{Scheme: "https", Host: "h", Fragment: secret}).String(),
			"encodeURIComponent":       percentEncode(secret, "-_.!~*'()", "%%%02X"),
			"quote of Python":          percentEncode(secret, "-_.~/", "%%%02X"),
			"lower case":               percentEncode(secret, "-_.~", "%%%02x"),
			"a form, in lower case":    strings.ReplaceAll(percentEncode(secret, "-_.~ ", "%%%02x"), " ", "+"),
			"everything":               percentEncode(hex.EncodeToString([]byte(secret)), "", "%%%02x") + percentEncode(secret, "", "%%%02x"),
			"HTML":                     html.EscapeString(secret),
			"XML":                      inXML.String(),
			"names":                    strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(secret),
			"hexadecimal references":   strings.NewReplacer("&", "&#x26;", "<", "&#x3C;", ">", "&#x3e;", `"`, "&#x22;", "'", "&#0039;").Replace(secret),
			"an address in an address": "https://h/?to=" + url.QueryEscape(address),
			"an address in HTML":       html.EscapeString("https://h/?a=b&to=" + address),
			"base64 in an address":     url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(secret))),
			"beside other escapes":     "50% &c; %2 %zz %%41 &#; & " + address + " %",
		} {
			got := m.Scrub("before " + text + " behind")
			if !strings.Contains(got, m.Value(secret)) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " behind") {
				t.Errorf("%s: %q stands as %q", name, secret, got)
			}
		}
	}
}

// Nothing but the value goes, and all of it.
func TestScrubReplacesExactly(t *testing.T) {
	t.Parallel()
	m := masker(t, key)
	m.Register("hunter", "hunter@home", "abcdef", "defghijk")
	home, long := m.Value("hunter@home"), m.Value("defghijk")
	for text, want := range map[string]string{
		"u:hunter%40home@h 100%25":      "u:" + home + "@h 100%25",
		"<a>hunter&#64;home&lt;</a>":    "<a>" + home + "&lt;</a>",
		"%68unter%2540home.":            home + ".",
		"abcdefghijk":                   long,
		"hunterhunter":                  m.Value("hunter") + m.Value("hunter"),
		"a %41 &amp; 1+1 of the others": "a %41 &amp; 1+1 of the others",
	} {
		if got := m.Scrub(text); got != want {
			t.Errorf("%q gives %q; want %q", text, got, want)
		}
	}
}

// FuzzScrub: whatever stands around it, and whichever of its characters are
// escaped, a value is found, and a text without values stays as it is.
func FuzzScrub(f *testing.F) {
	f.Add("p@ss&w0rd/1", "postgres://u:", "@h?a=%20b", uint64(0b10010))
	f.Add("geheim-ü=1", "&am", "p;+%2", uint64(1<<63-1))
	f.Add("%41%42%43", "%", "%", uint64(3))
	f.Add("&amp;&lt;", "&", ";", uint64(5))
	f.Fuzz(func(t *testing.T, secret, before, after string, choice uint64) {
		m := masker(t, key)
		if before+after != "" && m.Scrub(before+after) != before+after {
			t.Errorf("%q is changed", before+after)
		}
		if len(secret) < minScrub {
			return
		}
		m.Register(secret)
		var inURL, inHTML strings.Builder
		for i, c := range []byte(secret) {
			format := []string{"%%%02X", "%%%02x"}[choice>>(i*7%64)&1]
			if escaped := choice>>(i%64)&1 == 1; escaped || c == '%' || c == '+' {
				fmt.Fprintf(&inURL, format, c)
			} else {
				inURL.WriteByte(c)
			}
		}
		for i, c := range secret {
			if escaped := choice>>(i%64)&1 == 1; c == '&' || escaped && c > ' ' && c < 0x7f {
				fmt.Fprintf(&inHTML, "&#%d;", c)
			} else {
				inHTML.WriteString(string(c))
			}
		}
		texts := []string{secret, inURL.String()}
		if utf8.ValidString(secret) {
			texts = append(texts, inHTML.String())
		}
		for _, text := range texts {
			// What stands around may not become a part of an escape.
			got := m.Scrub(before + "\n" + text + "\n" + after)
			if !strings.Contains(got, "(masked ") {
				t.Errorf("%q stands as %q", secret, got)
			}
		}
	})
}

// Most texts are logs, with an escape here and there.
func BenchmarkScrub(b *testing.B) {
	m, err := New([]byte(key))
	if err != nil {
		b.Fatal(err)
	}
	for i := range 100 {
		m.Register(fmt.Sprintf("%x-secret", sha256.Sum256([]byte{byte(i)})))
	}
	line := "2026-01-01T00:00:00Z INFO applied ConfigMap/shop/settings: data.key is now \"value\" at 100%\n"
	for name, text := range map[string]string{"plain": strings.ReplaceAll(line, "%", ""), "percent": line, "escapes": line + "%20 &amp; +"} {
		b.Run(name, func(b *testing.B) {
			text := strings.Repeat(text, 1<<20/len(text))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				m.Scrub(text)
			}
		})
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
