package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Exception lets one artifact pass without some of the evidence that its rule
// asks for, until a day. It is signed by a person, who says why.
type Exception struct {
	Digest       digest.Digest `json:"digest"`
	Environments []string      `json:"environments"` // exact names; at least one
	// Checks are the names of the checks that may fail: "sbom", "test dast", …
	Checks []string  `json:"checks"`
	Reason string    `json:"reason"`
	By     string    `json:"by"` // name of the signer
	Until  time.Time `json:"until"`
}

// Validate refuses an exception that is wider than one artifact, has no end, or
// does not say who made it and why.
func (x Exception) Validate() error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Invalid, ruleOp, "look at the file of exceptions", "exception for %s: %s", x.Digest, fmt.Sprintf(format, args...))
	}
	switch {
	case x.Digest.Validate() != nil:
		return wrong("it names no digest: an exception is for one artifact")
	case len(x.Environments) == 0:
		return wrong("it names no environment")
	case len(x.Checks) == 0:
		return wrong("it names no check")
	case strings.TrimSpace(x.Reason) == "":
		return wrong("it has no reason")
	case x.By == "":
		return wrong("nobody signed it")
	case x.Until.IsZero():
		return wrong("it has no end")
	}
	return nil
}

// waive returns nil where err, the outcome of a verification under r in env, does
// not count: the rule only watches yet, or a person made an exception of every
// check that failed. It marks those checks in e. What is revoked is never waived,
// nor is a failure that says nothing about the artifact.
func (s *Set) waive(ctx context.Context, r *Rule, env string, e *Evidence, err error) error {
	if err == nil || errors.Is(err, ErrRevoked) {
		return err
	}
	missing := fault.KindOf(err) == fault.Waiting && errors.Is(err, ErrMissing)
	if fault.KindOf(err) != fault.Denied && !missing {
		return err
	}
	failed := func(c Check) bool { return !c.OK }
	if slices.ContainsFunc(e.Checks, func(c Check) bool { return failed(c) && c.Name == checkVerification }) { // a panic, a cap
		return err
	}
	now := s.clock.In(ctx)
	if r.Mode == Warn || r.Mode == Observe {
		if now.Before(r.Until) {
			e.waive(failed, fmt.Sprintf("mode %s until %s", r.Mode, r.Until.Format(time.DateOnly)), r.Until)
			e.Quiet = r.Mode == Observe
			return nil
		}
		e.note(failed, fmt.Sprintf("mode %s ended %s", r.Mode, r.Until.Format(time.DateOnly)))
	}
	for _, x := range s.lifted() {
		if x.Digest != e.Subject.Digest || !slices.Contains(x.Environments, env) {
			continue
		}
		covered := func(c Check) bool { return failed(c) && slices.Contains(x.Checks, c.Name) }
		if !now.Before(x.Until) {
			e.note(covered, fmt.Sprintf("the exception by %s ended %s", x.By, x.Until.Format(time.DateOnly)))
			continue
		}
		e.waive(covered, fmt.Sprintf("exception by %s until %s: %s", x.By, x.Until.Format(time.DateOnly), x.Reason), x.Until)
		e.RestsOn = Anchors(e.RestsOn, []Anchor{{Kind: AnchorIdentity, Value: x.By}})
	}
	if e.Verified() {
		return nil
	}
	for i := range e.Checks { // it is a denial after all
		e.Checks[i].Waived = ""
	}
	return err
}

// lifted returns the exceptions that stand now. One that is not complete is none.
func (s *Set) lifted() []Exception {
	if s.exceptions == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.exceptions()), func(x Exception) bool { return x.Validate() != nil })
}

// waive marks checks as waived until then.
func (e *Evidence) waive(which func(Check) bool, why string, until time.Time) {
	for i, c := range e.Checks {
		if which(c) && c.Waived == "" {
			e.Checks[i].Waived = why
			if e.NotAfter.IsZero() || until.Before(e.NotAfter) {
				e.NotAfter = until
			}
		}
	}
}

// note adds to what was found by checks.
func (e *Evidence) note(which func(Check) bool, what string) {
	for i, c := range e.Checks {
		if which(c) {
			e.Checks[i].Found = strings.TrimPrefix(c.Found+"; "+what, "; ")
		}
	}
}
