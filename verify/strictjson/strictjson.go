// Package strictjson owns the question whether two readers would understand a
// JSON document of a stranger the same way.
//
// It guarantees that a document which passes is one value in UTF-8, nested no
// deeper than [MaxDepth], without a name that an object has twice, also where the
// two are written with different escapes, and without a number that no reader
// holds. It refuses everything else, and bytes behind the value.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"
)

// MaxDepth is how deep objects and lists may be nested.
const MaxDepth = 64

// Check returns why raw is not one strict JSON value, or nil. Its cost is linear
// in the length of raw.
func Check(raw []byte) error {
	switch {
	case !utf8.Valid(raw):
		return errors.New("not UTF-8")
	case !json.Valid(raw):
		return errors.New("not JSON")
	}
	return walk(raw)
}

// Unmarshal reads a document that passes [Check] into what into points to. Fields
// match in case, too; those that into does not have are ignored.
func Unmarshal(raw []byte, into any) error {
	if err := Check(raw); err != nil {
		return err
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(raw, into)
}

// scope is one object or array that is open.
type scope struct {
	names map[string]struct{} // that the object has; nil for an array
	next  bool                // the next string is a name
}

// walk refuses deep nesting; names that an object has twice, because of two
// values readers take the first, the last, or both; and numbers that no reader
// holds: OPA panics on some, and fills the memory with others. b is valid JSON.
func walk(b []byte) error {
	var open []*scope // the innermost last
	in := &scope{}
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			if len(open) == MaxDepth {
				return fmt.Errorf("nested deeper than %d", MaxDepth)
			}
			open, in = append(open, in), &scope{}
			if b[i] == '{' {
				in.names, in.next = map[string]struct{}{}, true
			}
		case '}', ']':
			open, in = open[:len(open)-1], open[len(open)-1]
		case ',':
			in.next = in.names != nil
		case '"':
			end := i + stringLength(b[i:])
			if in.next {
				name := unquote(b[i:end])
				if _, twice := in.names[name]; twice {
					return fmt.Errorf("the name %.40q is there twice in one object", name)
				}
				in.names[name], in.next = struct{}{}, false
			}
			i = end - 1
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			n := numberLength(b[i:])
			if unheld(b[i : i+n]) {
				return fmt.Errorf("the number %.40q is out of range", b[i:i+n])
			}
			i += n - 1
		}
	}
	return nil
}

func numberLength(b []byte) int {
	if end := bytes.IndexAny(b, ",]} \t\r\n"); end >= 0 {
		return end
	}
	return len(b)
}

// unheld reports whether a number has more digits, or a larger exponent, than
// any that a floating-point number has.
func unheld(number []byte) bool {
	const digits, exponent = 400, 3
	_, exp, _ := bytes.Cut(bytes.ToLower(number), []byte("e"))
	return len(number) > digits || len(bytes.TrimLeft(exp, "+-0")) > exponent
}

// stringLength returns the length of the JSON string that b begins with, quotes
// included.
func stringLength(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

func unquote(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b[1 : len(b)-1])
	}
	var s string
	_ = json.Unmarshal(b, &s) // it is valid JSON
	return s
}
