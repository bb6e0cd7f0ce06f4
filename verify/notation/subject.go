package notation

import (
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// attribute is one part of a distinguished name.
type attribute struct{ oid, value string }

// subject is what the subject of a certificate must have.
type subject []attribute

// names are the attribute types that may be written by name (RFC 4514, section 3;
// S is the Notary Project's alias of ST).
var names = map[string]string{
	"C": "2.5.4.6", "ST": oidState, "S": oidState, "L": "2.5.4.7", "O": "2.5.4.10", "OU": "2.5.4.11", "CN": "2.5.4.3",
	"STREET": "2.5.4.9", "SERIALNUMBER": "2.5.4.5", "POSTALCODE": "2.5.4.17",
	"DC": "0.9.2342.19200300.100.1.25", "UID": "0.9.2342.19200300.100.1.1",
}

const oidState = "2.5.4.8"

var dotted = regexp.MustCompile(`^[0-2](\.(0|[1-9][0-9]*))+$`)

// parseSubject reads a trusted identity: "C=US, ST=WA, O=acme", with or without
// the "x509.subject:" that it begins with in a trust policy. "Each identity […]
// MUST contain country (C), state or province (ST or S), and organization (O)";
// the identity "*" is not one.
// https://github.com/notaryproject/specifications/blob/v1.1.0/specs/trust-store-trust-policy.md#trusted-identities-constraints
func parseSubject(s string) (subject, error) {
	rest := strings.TrimPrefix(strings.TrimLeft(s, " "), "x509.subject:")
	if !utf8.ValidString(rest) {
		return nil, errors.New("it is not UTF-8")
	}
	var out subject
	for more := true; more; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return nil, fmt.Errorf("%.80q is not of the form C=US, ST=WA, O=acme", rest)
		}
		name = strings.TrimSpace(name)
		oid := names[strings.ToUpper(name)]
		if dotted.MatchString(name) {
			oid = name
		}
		if oid == "" {
			return nil, fmt.Errorf("unknown attribute %.80q", name)
		}
		if out.has(oid) {
			return nil, fmt.Errorf("attribute %s is there twice", name)
		}
		var value string
		var err error
		if value, rest, more, err = parseValue(after); err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		out = append(out, attribute{oid, value})
	}
	for _, name := range []string{"C", "ST", "O"} {
		if !out.has(names[name]) {
			return nil, fmt.Errorf("it has no %s: C, ST and O are required", name)
		}
	}
	return out, nil
}

// special are the characters that a value may have only behind a backslash
// (RFC 4514, section 2.4). One that is bare would begin something that is not
// understood here, such as a name of several values.
const special = `"+;<>`

// parseValue reads a value up to the next comma, and reports whether there is one.
func parseValue(s string) (value, rest string, more bool, err error) {
	s = strings.TrimLeft(s, " ")
	if strings.HasPrefix(s, "#") {
		return "", "", false, errors.New("a value in hexadecimal is not read")
	}
	var b strings.Builder
	end := 0 // of the value without the bare spaces behind it
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ',':
			more, rest, s = true, s[i+1:], s[:i]
		case c == '\\':
			n := unescape(&b, s[i+1:])
			if n == 0 {
				return "", "", false, errors.New("a backslash escapes one of the characters \"+,;<>#=\\ and space, or two hexadecimal digits")
			}
			i, end = i+n, b.Len()
		case strings.IndexByte(special, c) >= 0 || c == 0:
			return "", "", false, fmt.Errorf("%q must be escaped with a backslash", c)
		default:
			b.WriteByte(c)
			if c != ' ' {
				end = b.Len()
			}
		}
	}
	value = b.String()[:end]
	switch {
	case value == "":
		return "", "", false, errors.New("the value is empty")
	case !utf8.ValidString(value):
		return "", "", false, errors.New("the value is not UTF-8")
	}
	return value, rest, more, nil
}

// unescape writes what the characters behind a backslash stand for, and returns
// how many they are, or 0.
func unescape(b *strings.Builder, s string) int {
	if s == "" {
		return 0
	}
	if strings.IndexByte(special+`,#=\ `, s[0]) >= 0 {
		b.WriteByte(s[0])
		return 1
	}
	if len(s) < 2 {
		return 0
	}
	x, err := hex.DecodeString(s[:2])
	if err != nil {
		return 0
	}
	b.Write(x)
	return 2
}

func (s subject) has(oid string) bool {
	for _, a := range s {
		if a.oid == oid {
			return true
		}
	}
	return false
}

// matches reports whether name has every attribute of s. One that name has twice
// matches nothing: which of them is meant is not known.
func (s subject) matches(name pkix.RDNSequence) bool {
	for _, want := range s {
		n, same := 0, false
		for _, rdn := range name {
			for _, a := range rdn {
				if a.Type.String() == want.oid {
					n++
					same = a.Value == any(want.value)
				}
			}
		}
		if n != 1 || !same {
			return false
		}
	}
	return true
}
