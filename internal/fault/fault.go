// Package fault owns Holdfast's one error type. The kind of an error decides
// what the reconcile loop does next, so nobody matches on error strings; the
// hint tells a person the one thing to do next.
//
// It guarantees that [KindOf] and [HintOf] see through any chain of wrapped and
// joined errors, and that an error nobody classified counts as [Internal]. It
// refuses to carry secrets: callers mask before they wrap.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what a failure means to the reconcile loop.
type Kind int

// The kinds, see docs/ARCHITECTURE.md, "Kinds of error".
const (
	Internal  Kind = iota // our bug: back off, alert
	Transient             // network, conflict: back off
	Waiting               // approval, lock, health, dependency: look again later
	Denied                // verification or policy said no: wait for a new revision or new rules
	Invalid               // the repository is wrong: wait for a new revision
)

// String returns the kind's name in lower case, as it appears in logs, metrics and the ledger.
func (k Kind) String() string {
	switch k {
	case Transient:
		return "transient"
	case Waiting:
		return "waiting"
	case Denied:
		return "denied"
	case Invalid:
		return "invalid"
	default:
		return "internal"
	}
}

// Error is a classified failure.
type Error struct {
	Op    string // the operation that failed: "targets/kubernetes.Plan"
	Stack string // the stack it concerns; empty where there is none
	Kind  Kind
	Err   error
	Hint  string // one imperative sentence for a person; never a secret
}

// Error returns "stack: cause". The operation is for logs and left out: a
// person who reads a refusal wants to know what is wrong, not which function
// noticed.
func (e *Error) Error() string {
	msg := "unknown error"
	if e.Err != nil {
		msg = e.Err.Error()
	}
	if e.Stack != "" && !strings.HasPrefix(msg, e.Stack+": ") {
		return e.Stack + ": " + msg
	}
	return msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns a classified error. The message follows fmt.Errorf, %w included.
func New(kind Kind, op, hint, format string, args ...any) error {
	return &Error{Op: op, Kind: kind, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// Wrap classifies err without changing its text. A nil err stays nil. An err
// that is classified already keeps its kind, and its hint where it has one.
func Wrap(kind Kind, op, hint string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		kind = e.Kind
		if e.Hint != "" {
			hint = e.Hint
		}
	}
	return &Error{Op: op, Kind: kind, Hint: hint, Err: err}
}

// WithStack names the stack that err concerns. A nil err stays nil.
func WithStack(stack string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e.Stack == stack {
		return err
	}
	out := &Error{Stack: stack, Kind: KindOf(err), Hint: HintOf(err), Err: err}
	if e != nil {
		out.Op = e.Op
	}
	return out
}

// KindOf returns the kind of the outermost classified error in err's chain.
// A deadline counts as Transient; anything unclassified as Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Transient
	}
	return Internal
}

// OpOf returns the operation of the outermost classified error, or "".
func OpOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Op
	}
	return ""
}

// HintOf returns the first hint found in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
