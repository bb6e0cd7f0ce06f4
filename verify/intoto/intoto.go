// Package intoto owns the reading of predicates: JSON in which every reader
// finds the same, and the types of fields that predicates share.
//
// It guarantees that a field is found by its exact name only, that a time is an
// RFC 3339 time, and that a date a signer chose cannot make something look newer
// than its signature. It refuses a predicate that is not one JSON object in
// UTF-8, that has a name twice in an object, that is nested deeper than
// [MaxDepth] or longer than [MaxBytes], or that has a number out of all range.
package intoto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/holdfast-dev/holdfast/verify/strictjson"
)

// The bounds of a predicate.
const (
	MaxDepth = strictjson.MaxDepth
	MaxBytes = 32 << 20
)

// Decode reads a predicate into v. Fields that v does not have are ignored, as
// the specification wants; those that it has match in case, too.
// https://github.com/in-toto/attestation/blob/main/spec/v1/README.md#parsing-rules
func Decode(b []byte, v any) error {
	if len(b) > MaxBytes {
		return fmt.Errorf("the predicate is longer than %d bytes", MaxBytes)
	}
	if err := Check(b); err != nil {
		return err
	}
	return Unmarshal(b, v)
}

// Unmarshal reads a part of a predicate that [Decode] has checked and left as it
// is.
func Unmarshal(b []byte, v any) error {
	if err := kjson.UnmarshalCaseSensitivePreserveInts(b, v); err != nil {
		return fmt.Errorf("malformed: %s", Short(err.Error()))
	}
	return nil
}

// Check requires one JSON object that every reader understands alike.
func Check(b []byte) error {
	if b = bytes.Trim(b, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return errors.New("the predicate is not a JSON object")
	}
	if err := strictjson.Check(b); err != nil {
		return fmt.Errorf("the predicate: %w", err)
	}
	return nil
}

// Time is a timestamp; zero where the predicate has none, null or "".
// https://github.com/in-toto/attestation/blob/main/spec/v1/field_types.md#timestamp
type Time struct{ time.Time }

// UnmarshalJSON reads an RFC 3339 time.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New("a time is not a string")
	}
	t.Time = time.Time{}
	if s == nil || *s == "" {
		return nil
	}
	if err := t.UnmarshalText([]byte(*s)); err != nil {
		return fmt.Errorf("%q is not an RFC 3339 time", Short(*s))
	}
	return nil
}

// String returns the time in UTC, or "".
func (t Time) String() string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Skew is how far ahead of ours a signer's clock may be.
const Skew = 2 * time.Minute

// Fresh returns why a date that a signer chose is not good now, or nil. signed
// is the proven time of the signature, zero if there is none: what was signed
// cannot be newer, or a date in the future would stay fresh for as long as its
// signer likes. most is how old it may be; 0 is for ever.
func Fresh(what string, t Time, signed, now time.Time, most time.Duration) error {
	switch {
	case t.IsZero():
		return fmt.Errorf("%s is missing: what is not said is too old", what)
	case t.After(now.Add(Skew)):
		return fmt.Errorf("%s is %s, which is in the future", what, t)
	case !signed.IsZero() && t.After(signed.Add(Skew)):
		return fmt.Errorf("%s is %s, after it was signed at %s", what, t, Time{signed})
	case most > 0 && now.Sub(t.Time) > most:
		return fmt.Errorf("%s is %s, more than %s ago", what, t, most)
	}
	return nil
}

// Short bounds a text that a stranger wrote, for people and for facts.
func Short(s string) string {
	const long = 256
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= long {
		return s
	}
	return strings.ToValidUTF8(s[:long], "") + "…"
}
