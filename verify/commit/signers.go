package commit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxSigners is the largest allowed_signers file, in bytes.
const maxSigners = 1 << 20

// AllowedSigner is one line of an OpenSSH allowed_signers file; see ssh-keygen(1),
// ALLOWED SIGNERS.
type AllowedSigner struct {
	Principals    []string // patterns with * and ?, negated by !; one must match the committer's email
	Namespaces    []string // patterns; empty permits all
	CertAuthority bool     // Key signs certificates; it does not sign commits itself
	// ValidAfter and ValidBefore bound when the key may be used, inclusive; zero is unbounded.
	ValidAfter, ValidBefore time.Time
	Key                     ssh.PublicKey
	Location                string // "file:line"
}

// ParseAllowedSigners parses the allowed_signers file b, called name in
// errors, which say "name:line: …". Times without a zone are UTC, where OpenSSH
// takes the machine's: what is trusted must not depend on where a daemon runs.
func ParseAllowedSigners(name string, b []byte) ([]AllowedSigner, error) {
	if len(b) > maxSigners {
		return nil, fmt.Errorf("%s: the file has more than %d bytes", name, maxSigners)
	}
	var out []AllowedSigner
	for n, line := range contentLines(b) {
		s, err := parseSigner(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		s.Location = fmt.Sprintf("%s:%d", name, n)
		out = append(out, s)
	}
	return out, nil
}

// contentLines yields the lines of b that are neither empty nor a comment, each with
// its number, from 1 on.
func contentLines(b []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			line = strings.TrimSpace(line)
			if line != "" && line[0] != '#' && !yield(n, line) {
				return
			}
		}
	}
}

func parseSigner(line string) (AllowedSigner, error) {
	var s AllowedSigner
	principals, rest, err := cutPrincipals(line)
	if err != nil {
		return s, err
	}
	if s.Principals, err = patterns(principals); err != nil {
		return s, fmt.Errorf("principals: %w", err)
	}
	if first, _, _ := strings.Cut(rest, " "); !keyType.MatchString(first) {
		var options string
		if options, rest, err = cutOptions(rest); err != nil {
			return s, err
		}
		if err := s.options(options); err != nil {
			return s, err
		}
	}
	fields := strings.Fields(rest)
	if len(fields) < 2 || !keyType.MatchString(fields[0]) {
		return s, errors.New("no key: want principals, options, key type and key")
	}
	if s.Key, err = parseKey(fields[0], fields[1]); err != nil {
		return s, err
	}
	return s, checkKey(s.Key)
}

var keyType = regexp.MustCompile(`^(ssh-|ecdsa-|sk-)[A-Za-z0-9@.-]+$`)

func parseKey(kind, encoded string) (ssh.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("the key is not base64")
	}
	key, err := ssh.ParsePublicKey(raw)
	if err != nil {
		return nil, errors.New("the key does not parse")
	}
	if key.Type() != kind {
		return nil, fmt.Errorf("the key is of type %s, not %s", clip(key.Type()), kind)
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, errors.New("a certificate is not a key; list its authority with cert-authority")
	}
	return key, nil
}

// cutPrincipals takes the first field, which may be in quotes.
func cutPrincipals(line string) (principals, rest string, err error) {
	if quoted, ok := strings.CutPrefix(line, `"`); ok {
		principals, rest, ok = strings.Cut(quoted, `"`)
		if !ok {
			return "", "", errors.New("principals: the quotes do not end")
		}
	} else if i := strings.IndexAny(line, " \t"); i >= 0 {
		principals, rest = line[:i], line[i:]
	} else {
		return "", "", errors.New("no key: want principals, options, key type and key")
	}
	return principals, strings.TrimLeft(strings.ReplaceAll(rest, "\t", " "), " "), nil
}

// cutOptions takes everything up to the first space that is not in quotes.
func cutOptions(s string) (options, rest string, err error) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ' ' && !quoted:
			return s[:i], strings.TrimLeft(s[i:], " "), nil
		}
	}
	if quoted {
		return "", "", errors.New("options: the quotes do not end")
	}
	return "", "", errors.New("no key: want principals, options, key type and key")
}

// options reads the comma-separated options. As in OpenSSH their names ignore
// case, a value is in quotes, and none may be repeated.
func (s *AllowedSigner) options(list string) error {
	seen := map[string]bool{}
	for list != "" {
		end := strings.IndexAny(list, "=,")
		name, value := list, ""
		hasValue := end >= 0 && list[end] == '='
		switch {
		case end < 0:
			list = ""
		case !hasValue:
			name, list = list[:end], list[end+1:]
		default:
			name = list[:end]
			var err error
			if value, list, err = cutValue(list[end+1:]); err != nil {
				return fmt.Errorf("option %s: %w", clip(name), err)
			}
		}
		name = strings.ToLower(name)
		if seen[name] {
			return fmt.Errorf("option %s is repeated", clip(name))
		}
		seen[name] = true
		if err := s.option(name, value, hasValue); err != nil {
			return fmt.Errorf("option %s: %w", clip(name), err)
		}
	}
	if !s.ValidBefore.IsZero() && !s.ValidBefore.After(s.ValidAfter) {
		return errors.New("valid-before is not after valid-after")
	}
	return nil
}

func (s *AllowedSigner) option(name, value string, hasValue bool) (err error) {
	if (name == "cert-authority") == hasValue {
		return errors.New("unknown, or with a value where there is none, or without one")
	}
	switch name {
	case "cert-authority":
		s.CertAuthority = true
	case "namespaces":
		s.Namespaces, err = patterns(value)
	case "valid-after":
		s.ValidAfter, err = parseTime(value)
	case "valid-before":
		s.ValidBefore, err = parseTime(value)
	default:
		return errors.New("unknown")
	}
	return err
}

// cutValue takes a value in quotes and the comma after it.
func cutValue(s string) (value, rest string, err error) {
	s, ok := strings.CutPrefix(s, `"`)
	if !ok {
		return "", "", errors.New("the value is not in quotes")
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
			b.WriteByte('"')
		case s[i] == '"':
			rest = s[i+1:]
			if rest == "" {
				return b.String(), "", nil
			}
			if rest, ok = strings.CutPrefix(rest, ","); !ok || rest == "" {
				return "", "", errors.New("something other than an option follows the value")
			}
			return b.String(), rest, nil
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", errors.New("the quotes do not end")
}

// patterns splits a pattern list at its commas.
func patterns(list string) ([]string, error) {
	out := strings.Split(list, ",")
	for _, p := range out {
		if strings.TrimPrefix(p, "!") == "" {
			return nil, errors.New("a pattern is empty")
		}
	}
	return out, nil
}

// parseTime reads YYYYMMDD[Z] or YYYYMMDDHHMM[SS][Z].
func parseTime(s string) (time.Time, error) {
	digits := strings.TrimSuffix(s, "Z")
	layout := map[int]string{8: "20060102", 12: "200601021504", 14: "20060102150405"}[len(digits)]
	if layout == "" {
		return time.Time{}, fmt.Errorf("%q is not YYYYMMDD[Z] or YYYYMMDDHHMM[SS][Z]", clip(s))
	}
	t, err := time.ParseInLocation(layout, digits, time.UTC)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a date", clip(s))
	}
	return t, nil
}

// matchList is OpenSSH's match_pattern_list: one pattern must match, and no
// negated one may.
func matchList(list []string, s string) bool {
	matched := false
	for _, p := range list {
		if negated, ok := strings.CutPrefix(p, "!"); ok {
			if matchPattern(negated, s) {
				return false
			}
		} else if matchPattern(p, s) {
			matched = true
		}
	}
	return matched
}

// matchPattern is OpenSSH's match_pattern: * is any text, ? any byte. It takes
// time proportional to the product of the lengths.
func matchPattern(p, s string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(p[i:], "*") == ""
}
