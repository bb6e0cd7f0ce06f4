package verify_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// checked returns evidence with these checks, the second of which fails with err.
func checked(err error) verify.Factory {
	return factory(func(context.Context, verify.Subject) (verify.Evidence, error) {
		return verify.Evidence{Checks: []verify.Check{{Name: "signature", OK: true}, {Name: "sbom", Found: "nothing", OK: err == nil}}}, err
	})
}

func TestWaive(t *testing.T) {
	t.Parallel()
	denied := fault.New(fault.Denied, "test", "do it", "no SBOM")
	missing := fault.New(fault.Waiting, "test", "do it", "no SBOM: %w", verify.ErrMissing)
	future, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	exception := func(change func(*verify.Exception)) []verify.Exception {
		x := verify.Exception{
			Digest: digest.FromString("1"), Environments: []string{"production"}, Checks: []string{"sbom"}, Reason: "the scanner is broken", By: "carol", Until: future,
		}
		if change != nil {
			change(&x)
		}
		return []verify.Exception{x}
	}
	for name, c := range map[string]struct {
		mode       verify.Mode
		until      time.Time
		exceptions []verify.Exception
		err        error
		passes     bool
		says       string // in the failed check
	}{
		"enforced":                       {err: denied},
		"enforced by name":               {mode: verify.Enforce, err: denied},
		"warned":                         {mode: verify.Warn, until: future, err: denied, passes: true, says: "mode warn until"},
		"observed":                       {mode: verify.Observe, until: future, err: denied, passes: true, says: "mode observe until"},
		"missing, and warned":            {mode: verify.Warn, until: future, err: missing, passes: true},
		"warned until yesterday":         {mode: verify.Warn, until: past, err: denied, says: "mode warn ended"},
		"warned, and the registry fails": {mode: verify.Warn, until: future, err: fault.New(fault.Transient, "test", "", "down")},
		"warned, and revoked":            {mode: verify.Warn, until: future, err: fault.New(fault.Denied, "test", "x", "%w", verify.ErrRevoked)},
		"excepted":                       {exceptions: exception(nil), err: denied, passes: true, says: "exception by carol until"},
		"excepted, and missing":          {exceptions: exception(nil), err: missing, passes: true},
		"excepted, and revoked":          {exceptions: exception(nil), err: fault.New(fault.Denied, "test", "x", "%w", verify.ErrRevoked)},
		"another check is excepted":      {exceptions: exception(func(x *verify.Exception) { x.Checks = []string{"signature"} }), err: denied},
		"another digest":                 {exceptions: exception(func(x *verify.Exception) { x.Digest = digest.FromString("2") }), err: denied},
		"another environment":            {exceptions: exception(func(x *verify.Exception) { x.Environments = []string{"test"} }), err: denied},
		"it ended":                       {exceptions: exception(func(x *verify.Exception) { x.Until = past }), err: denied, says: "the exception by carol ended"},
		"no reason":                      {exceptions: exception(func(x *verify.Exception) { x.Reason = " " }), err: denied},
		"no end":                         {exceptions: exception(func(x *verify.Exception) { x.Until = time.Time{} }), err: denied},
		"nobody":                         {exceptions: exception(func(x *verify.Exception) { x.By = "" }), err: denied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rule("r", "ghcr.io/**")
			r.Mode, r.Until = c.mode, c.until
			conf := config(r)
			conf.Grace = func(string) time.Duration { return time.Hour }
			if c.exceptions != nil {
				conf.Exceptions = func() []verify.Exception { return c.exceptions }
			}
			report, pins, err := newSet(t, conf, checked(c.err)).Verify(t.Context(), "production", []verify.Subject{image("ghcr.io/a:1")})
			e := report.Evidence[0]
			if (err == nil) != c.passes || c.passes != e.Verified() || c.passes != (len(pins) == 1) {
				t.Fatalf("%v, %v, %+v", err, pins, e)
			}
			if err != nil && fault.KindOf(err) != fault.KindOf(c.err) {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
			failed := e.Checks[1]
			if text := failed.Waived + failed.Found; failed.OK || !strings.Contains(text, c.says) || c.passes == (failed.Waived == "") {
				t.Errorf("%+v does not say %q", failed, c.says)
			}
			if c.passes && !e.NotAfter.Equal(future) {
				t.Errorf("it holds until %v", e.NotAfter)
			}
		})
	}
}

// What failed without a check that one could name is not waived.
func TestWaiveNeedsACheck(t *testing.T) {
	t.Parallel()
	r := rule("r", "ghcr.io/**")
	r.Mode, r.Until = verify.Warn, time.Now().Add(time.Hour)
	set := newSet(t, config(r), factory(func(context.Context, verify.Subject) (verify.Evidence, error) { panic("boom") }))
	if _, _, err := set.Verify(t.Context(), "production", []verify.Subject{image("ghcr.io/a:1")}); fault.KindOf(err) != fault.Denied || err == nil {
		t.Error(err)
	}
	broken := errors.New("two of three")
	conf := config(rule("r", "ghcr.io/**"))
	conf.Exceptions = func() []verify.Exception {
		return []verify.Exception{{Digest: digest.FromString("1"), Environments: []string{"e"}, Checks: []string{"b"}, Reason: "r", By: "carol", Until: time.Now().Add(time.Hour)}}
	}
	set = newSet(t, conf, factory(func(context.Context, verify.Subject) (verify.Evidence, error) {
		return verify.Evidence{Checks: []verify.Check{{Name: "a"}, {Name: "b"}}}, fault.Wrap(fault.Denied, "test", "", broken)
	}))
	report, _, err := set.Verify(t.Context(), "e", []verify.Subject{image("ghcr.io/a:1")})
	if !errors.Is(err, broken) || report.Evidence[0].Checks[1].Waived != "" {
		t.Errorf("%v: one exception lifted two denials: %+v", err, report.Evidence[0].Checks)
	}
}
