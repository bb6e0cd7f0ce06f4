package mask

import (
	"cmp"
	"html"
	"slices"
	"strings"
)

// span is a part of a text that a mask is to stand for.
type span struct {
	start, end int
	mask       string
}

// replace returns s with a mask for each span, and one for spans that overlap:
// that of the longest.
func replace(s string, found []span) string {
	if len(found) == 0 {
		return s
	}
	slices.SortFunc(found, func(a, b span) int { return cmp.Or(a.start-b.start, b.end-a.end) })
	var out strings.Builder
	done := 0
	for i := 0; i < len(found); {
		longest, end := found[i], found[i].end
		out.WriteString(s[done:found[i].start])
		for i++; i < len(found) && found[i].start < end; i++ {
			if found[i].end-found[i].start > longest.end-longest.start {
				longest = found[i]
			}
			end = max(end, found[i].end)
		}
		out.WriteString(longest.mask)
		done = end
	}
	out.WriteString(s[done:])
	return out.String()
}

// needle is what is searched for, and the mask of the value that it is of.
type needle struct{ text, mask string }

// finder searches for all needles in one pass. Needles have at least minScrub
// bytes.
type finder struct {
	pairs   [1 << 16]bool // by their first two bytes: most of a text is passed by this alone
	needles map[[4]byte][]needle
}

func newFinder() *finder { return &finder{needles: map[[4]byte][]needle{}} }

func pair(a, b byte) uint16 { return uint16(a)<<8 | uint16(b) }

func (f *finder) add(text, mask string) {
	f.pairs[pair(text[0], text[1])] = true
	key := [4]byte([]byte(text[:4]))
	f.needles[key] = append(f.needles[key], needle{text, mask})
}

// search appends what it finds in v to found. It looks at every byte: behind the
// start of one value another may start.
func (f *finder) search(found []span, v *view) []span {
	covered := 0 // the end of what is found
	for i := 0; i+minScrub <= len(v.text); i++ {
		if !f.pairs[pair(v.text[i], v.text[i+1])] {
			continue
		}
		var best needle
		for _, n := range f.needles[[4]byte{v.text[i], v.text[i+1], v.text[i+2], v.text[i+3]}] {
			if len(n.text) > len(best.text) && strings.HasPrefix(v.text[i:], n.text) {
				best = n
			}
		}
		if end := i + len(best.text); best.text != "" && end > covered {
			found = append(found, span{v.start(i), v.end(end), best.mask})
			covered = end
		}
	}
	return found
}

// view is a text as it reads when its escapes are decoded.
type view struct {
	text    string
	of      *view // what was decoded; nil: text is the original
	escapes []escape
}

// escape says what stands in a view for what in the text that was decoded.
type escape struct{ at, length, from, fromLength int }

// start returns where in the original byte i of the view is.
func (v *view) start(i int) int {
	if v.of == nil {
		return i
	}
	e := v.before(i)
	if i < e.at+e.length {
		return v.of.start(e.from)
	}
	return v.of.start(i - e.at - e.length + e.from + e.fromLength)
}

// end returns where in the original the bytes before i end. An escape that they
// have a part of is covered whole.
func (v *view) end(i int) int {
	if v.of == nil {
		return i
	}
	e := v.before(i - 1)
	return v.of.end(max(0, i-e.at-e.length) + e.from + e.fromLength)
}

// before returns the last escape that starts at i or before it.
func (v *view) before(i int) escape {
	n, exact := slices.BinarySearchFunc(v.escapes, i, func(e escape, i int) int { return e.at - i })
	switch {
	case exact:
		return v.escapes[n]
	case n == 0:
		return escape{}
	}
	return v.escapes[n-1]
}

// maxEscapes is how often a text may be escaped over again: an address that is a
// parameter of another one, or stands in HTML.
const maxEscapes = 2

// views returns s, and how it reads decoded in each way that changes it.
func views(s string) []*view {
	all := []*view{{text: s}}
	newest := all
	for range maxEscapes {
		var next []*view
		for _, v := range newest {
			next = append(next, v.decoded()...)
		}
		all, newest = append(all, next...), next
	}
	return all
}

// decoded returns v decoded in each way that changes it.
func (v *view) decoded() []*view {
	var out []*view
	if d := v.decode("%", percent); d != nil {
		out = append(out, d)
		if strings.Contains(v.text, "+") {
			out = append(out, v.decode("%+", form))
		}
	}
	if d := v.decode("&", reference); d != nil {
		out = append(out, d)
	}
	return out
}

// decode returns v with its escapes decoded, or nil when there is none. They
// start with one of marks; decoder returns what the one at the start of a text
// stands for and its length, or 0 when it is none.
func (v *view) decode(marks string, decoder func(s string) (decoded string, length int)) *view {
	var text strings.Builder
	var escapes []escape
	done := 0
	for i := 0; ; {
		n := strings.IndexAny(v.text[i:], marks)
		if n < 0 {
			break
		}
		i += n
		decoded, length := decoder(v.text[i:])
		if length == 0 {
			i++
			continue
		}
		text.WriteString(v.text[done:i])
		escapes = append(escapes, escape{text.Len(), len(decoded), i, length})
		text.WriteString(decoded)
		i += length
		done = i
	}
	if escapes == nil {
		return nil
	}
	text.WriteString(v.text[done:])
	return &view{text.String(), v, escapes}
}

// percent decodes %41.
func percent(s string) (string, int) {
	if len(s) < 3 {
		return "", 0
	}
	high, low := digit(s[1]), digit(s[2])
	if high < 0 || low < 0 {
		return "", 0
	}
	return string([]byte{byte(high<<4 | low)}), 3
}

// digit returns the value of a hexadecimal digit, or -1. Most of what is asked
// about in a log is none.
func digit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// form decodes what percent does, and + for a space, as in
// application/x-www-form-urlencoded.
func form(s string) (string, int) {
	if s[0] == '+' {
		return " ", 1
	}
	return percent(s)
}

// maxReference is the length in bytes that a character reference has at most:
// that of the longest name of HTML, and of numbers with zeros before them.
const maxReference = 40

// reference decodes &amp;, &#38; and &#x26;.
func reference(s string) (string, int) {
	end := strings.IndexByte(s[:min(len(s), maxReference)], ';')
	if end < 0 {
		return "", 0
	}
	decoded := html.UnescapeString(s[:end+1])
	if decoded == s[:end+1] {
		return "", 0
	}
	return decoded, end + 1
}
