package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
)

// encodedIn returns the name of the encoding in which secret stands in text, or
// "". What is packed with gzip somewhere in text is looked at as well.
func encodedIn(text, secret string) string {
	if how := standsIn(text, secret); how != "" {
		return how
	}
	for _, unpacked := range gunzipped([]byte(text)) {
		if how := standsIn(string(unpacked), secret); how != "" {
			return "gzip, " + how
		}
	}
	return ""
}

func standsIn(text, secret string) string {
	for _, e := range encodingsOf(secret) {
		if strings.Contains(text, e.text) {
			return e.name
		}
	}
	return ""
}

type encoding struct{ name, text string }

func encodingsOf(secret string) []encoding {
	b := []byte(secret)
	quoted := inJSON(secret)
	all := []encoding{
		{"plain", secret},
		{"JSON", quoted},
		{"JSON for HTML", inHTMLJSON(secret)},
		{"JSON in JSON", inJSON(quoted)},
		{"JSON for HTML in JSON", inHTMLJSON(inHTMLJSON(secret))},
		{"JSON code points", codePoints(secret, `\u%04x`)},
		{"JSON code points", codePoints(secret, `\u%04X`)},
		{"URL query", url.QueryEscape(secret)},
		{"URL path", url.PathEscape(secret)},
		{"hex", hex.EncodeToString(b)},
		{"upper-case hex", strings.ToUpper(hex.EncodeToString(b))},
	}
	for before := range 3 {
		all = append(all,
			encoding{fmt.Sprintf("base64 behind %d bytes", before), alignedBase64(base64.RawStdEncoding, b, before)},
			encoding{fmt.Sprintf("URL-safe base64 behind %d bytes", before), alignedBase64(base64.RawURLEncoding, b, before)})
	}
	return all
}

// alignedBase64 is the part of the base64 of a longer text that depends on b
// alone, when b stands behind some bytes of it.
func alignedBase64(e *base64.Encoding, b []byte, before int) string {
	text := e.EncodeToString(append(make([]byte, before), b...))
	return text[(before*8+5)/6 : (before+len(b))*8/6]
}

func inJSON(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	return strings.TrimSpace(b.String())[1 : b.Len()-2]
}

func inHTMLJSON(s string) string {
	j, _ := json.Marshal(s) // a string always marshals
	return string(j[1 : len(j)-1])
}

func codePoints(s, format string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, format, r)
	}
	return b.String()
}

// gunzipped returns the content of every gzip member that begins somewhere in b,
// as far as it can be unpacked.
func gunzipped(b []byte) (all [][]byte) {
	for magic := []byte{0x1f, 0x8b, 0x08}; ; b = b[1:] {
		at := bytes.Index(b, magic)
		if at < 0 {
			return all
		}
		b = b[at:]
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			continue
		}
		z.Multistream(false)
		text, _ := io.ReadAll(io.LimitReader(z, 64<<20)) // a member that is cut off counts as far as it goes
		all = append(all, text)
	}
}

// TestEncodedIn shows that the search finds what it is meant to find.
func TestEncodedIn(t *testing.T) {
	t.Parallel()
	const secret = `p"ss/w0rd+&<geheim>?é`
	var packed bytes.Buffer
	packed.WriteString("some bytes before")
	z := gzip.NewWriter(&packed)
	_, _ = io.WriteString(z, `{"key":"`+inJSON(secret)+`"}`)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(map[string]string{"key": secret})
	if err != nil {
		t.Fatal(err)
	}
	jj, err := json.Marshal(string(j))
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{
		"plain": "a " + secret, "JSON": string(j), "JSON in JSON": string(jj), "gzip": packed.String() + "and after",
		"query": url.Values{"key": {secret}}.Encode(), "path": url.PathEscape("a " + secret + " b"),
		"hex": hex.EncodeToString([]byte("a" + secret + "b")), "HEX": fmt.Sprintf("%X", "a"+secret+"b"),
		"code points": codePoints("a"+secret, `\u%04x`),
	}
	for before := range 4 {
		long := []byte(strings.Repeat("x", before) + secret + "behind it")
		texts[fmt.Sprint("base64 ", before)] = base64.StdEncoding.EncodeToString(long)
		texts[fmt.Sprint("base64url ", before)] = base64.RawURLEncoding.EncodeToString(long)
		texts[fmt.Sprint("base64 at the end ", before)] = base64.StdEncoding.EncodeToString(long[:len(long)-len("behind it")])
	}
	for name, text := range texts {
		if encodedIn(text, secret) == "" {
			t.Errorf("%s: not found in %q", name, text)
		}
		if how := encodedIn(text, "another secret"); how != "" {
			t.Errorf("%s: found what is not there (%s)", name, how)
		}
	}
}
