package commit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pjbgf/sha1cd"
)

// maxObject is the largest commit object, in bytes, that is looked at.
const maxObject = 1 << 20

// object is a commit, parsed from its raw bytes.
type object struct {
	tree              string
	parents           []string
	author, committer ident
	signature         string // the value of gpgsig; empty if unsigned
	payload           []byte // what the signature covers: the object without gpgsig
}

// ident is an author or a committer line.
type ident struct {
	name, email string
	when        time.Time
}

// String returns "name <email>", safe to print.
func (i ident) String() string { return clip(i.name + " <" + i.email + ">") }

// checkID makes sure that an object of a kind hashes to id.
func checkID(kind string, raw []byte, id string) error {
	return checkSum(id, fmt.Appendf(nil, "%s %d\x00", kind, len(raw)), raw)
}

// checkSum makes sure that parts hash to a SHA-1 sum, with detection of
// collisions: of bytes that are made to collide no sum says which they are.
func checkSum(want string, parts ...[]byte) error {
	h := sha1cd.New().(sha1cd.CollisionResistantHash)
	for _, p := range parts {
		h.Write(p) // a hash never fails
	}
	sum, collision := h.CollisionResistantSum(nil)
	if collision {
		return errors.New("its bytes are made to collide under SHA-1")
	}
	if got := hex.EncodeToString(sum); got != want {
		return fmt.Errorf("its bytes hash to %s", got)
	}
	return nil
}

// header is one header with its continuation lines.
type header struct {
	key, value string
	start, end int // bytes of the object
}

// parse reads a commit object strictly. Git reads headers by position and takes
// the first of a kind; other readers took the last (CVE-2026-45022). So the
// order is fixed, nothing may occur twice, and what is not known is refused:
//
//	tree, parent*, author, committer, then any of
//	encoding, mergetag*, change-id, gpgsig; an empty line; the message
func parse(raw []byte) (*object, error) {
	headers, err := split(raw)
	if err != nil {
		return nil, err
	}
	c := &object{}
	next := func(key string) (string, bool) {
		if len(headers) == 0 || headers[0].key != key {
			return "", false
		}
		v := headers[0].value
		headers = headers[1:]
		return v, true
	}
	var ok bool
	if c.tree, ok = next("tree"); !ok || !commitID.MatchString(c.tree) {
		return nil, errors.New("the first header is not a tree id")
	}
	for {
		p, ok := next("parent")
		if !ok {
			break
		}
		if !commitID.MatchString(p) {
			return nil, errors.New("a parent is not a commit id")
		}
		c.parents = append(c.parents, p)
	}
	for _, who := range []struct {
		key string
		to  *ident
	}{{"author", &c.author}, {"committer", &c.committer}} {
		line, ok := next(who.key)
		if !ok {
			return nil, fmt.Errorf("the %s header is missing or out of order", who.key)
		}
		if *who.to, err = parseIdent(line); err != nil {
			return nil, fmt.Errorf("the %s header: %w", who.key, err)
		}
	}
	return c, c.rest(raw, headers)
}

// rest reads the headers after the committer and takes the signature out.
func (c *object) rest(raw []byte, headers []header) error {
	c.payload = raw
	encoded := false
	seen := map[string]bool{}
	for _, h := range headers {
		switch h.key {
		case "mergetag": // may repeat
			continue
		case "change-id":
		case "encoding":
			if !plainEncoding.MatchString(h.value) {
				return fmt.Errorf("its encoding %q is not one in which ASCII is ASCII", clip(h.value))
			}
			encoded = !strings.HasPrefix(strings.ToLower(h.value), "utf")
		case "gpgsig":
			c.signature = h.value + "\n"
			c.payload = append(bytes.Clone(raw[:h.start]), raw[h.end:]...)
		case "gpgsig-sha256":
			return errors.New("it is signed for a SHA-256 repository (gpgsig-sha256)")
		case "tree", "parent", "author", "committer":
			return fmt.Errorf("the %s header is repeated or out of order", h.key)
		default:
			return fmt.Errorf("unknown header %q", clip(h.key))
		}
		if seen[h.key] {
			return fmt.Errorf("the %s header is repeated", h.key)
		}
		seen[h.key] = true
	}
	if who := c.author.name + c.author.email + c.committer.name + c.committer.email; !encoded && !utf8.ValidString(who) {
		return errors.New("the author or the committer is not UTF-8, and no encoding header says what it is")
	}
	return nil
}

// plainEncoding are the encodings in which every byte below 128 is ASCII: in
// others (UTF-7, UTF-16, ISO-2022-JP, Shift_JIS) one reader sees text where
// another sees an address.
var plainEncoding = regexp.MustCompile(`(?i)^(utf-8|utf8|us-ascii|iso-?8859-[0-9]{1,2}|latin-?[0-9]|windows-125[0-8]|cp125[0-8]|koi8-[ru]|euc-(jp|kr|cn|tw))$`)

// split cuts an object's head into headers. A line that begins with a space
// continues the one before. It refuses an object that is too large, and one with a
// NUL byte, where readers written in C end.
func split(raw []byte) ([]header, error) {
	switch {
	case len(raw) > maxObject:
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(raw), maxObject)
	case bytes.IndexByte(raw, 0) >= 0:
		return nil, errors.New("it contains a NUL byte")
	}
	var out []header
	for at := 0; ; {
		n := bytes.IndexByte(raw[at:], '\n')
		if n < 0 {
			return nil, errors.New("the headers do not end")
		}
		line := string(raw[at : at+n])
		end := at + n + 1
		switch {
		case line == "":
			return out, nil
		case line[0] == ' ':
			if len(out) == 0 {
				return nil, errors.New("it begins with a continuation line")
			}
			last := &out[len(out)-1]
			if !multiline(last.key) {
				return nil, fmt.Errorf("the %s header has a second line", clip(last.key))
			}
			last.value += "\n" + line[1:]
			last.end = end
		default:
			key, value, ok := strings.Cut(line, " ")
			if !ok {
				return nil, fmt.Errorf("header line %q has no value", clip(line))
			}
			if strings.ContainsRune(line, '\r') {
				return nil, errors.New("a header has a carriage return")
			}
			out = append(out, header{key: key, value: value, start: at, end: end})
		}
		at = end
	}
}

func multiline(key string) bool {
	return key == "gpgsig" || key == "gpgsig-sha256" || key == "mergetag"
}

// identLine is "name <email> seconds zone"; the name and the email have no
// angle brackets, so that there is one way to read it.
var identLine = regexp.MustCompile(`^([^<>]*?) ?<([^<>]*)> ([0-9]{1,12}) ([+-][0-9]{4})$`)

func parseIdent(line string) (ident, error) {
	m := identLine.FindStringSubmatch(line)
	if m == nil {
		return ident{}, errors.New("it is not \"name <email> seconds zone\"")
	}
	sec, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil {
		return ident{}, err
	}
	return ident{name: m[1], email: m[2], when: time.Unix(sec, 0).UTC()}, nil
}

// authorGuess finds somebody to name in the refusal of an object that does not parse.
func authorGuess(raw []byte) string {
	for line := range bytes.Lines(raw[:min(len(raw), 64<<10)]) {
		if rest, ok := bytes.CutPrefix(line, []byte("author ")); ok {
			who, _, _ := bytes.Cut(rest, []byte(">"))
			return clip(string(who) + ">")
		}
	}
	return "nobody"
}
