package main

import (
	"io"
	"slices"
	"strconv"
	"strings"

	sarifreport "github.com/owenrumney/go-sarif/v3/pkg/report"
	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// printSARIF prints the checks of evidence as SARIF 2.1.0, for code scanners:
// what failed as an error, what is waived as a warning, and what holds as a pass.
// A refusal that no check tells of is a result too.
// https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
func printSARIF(w io.Writer, evidence []verify.Evidence, verr error) error {
	out := sarifreport.NewV210Report()
	run := sarif.NewRunWithInformationURI("holdfast", "https://holdfast.dev")
	for _, e := range evidence {
		for _, c := range e.Checks {
			addResult(run, e, c)
		}
	}
	if verr != nil && !slices.ContainsFunc(evidence, refused) {
		e := verify.Evidence{}
		if len(evidence) == 1 {
			e = evidence[0]
		}
		addResult(run, e, verify.Check{Name: "verification", Found: verr.Error(), Next: fault.HintOf(verr)})
	}
	out.AddRun(run)
	if err := out.PrettyWrite(w); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// refused reports whether a check says why e does not hold.
func refused(e verify.Evidence) bool {
	return slices.ContainsFunc(e.Checks, func(c verify.Check) bool { return !c.OK && c.Waived == "" })
}

func addResult(run *sarif.Run, e verify.Evidence, c verify.Check) {
	run.AddRule(c.Name).WithDescription("Holdfast asks of an artifact: " + c.Name)
	level, kind := "error", "fail"
	switch {
	case c.OK:
		level, kind = "none", "pass"
	case c.Waived != "":
		level = "warning"
	}
	text := []string{e.Subject.Pinned() + ": " + c.Name + ": " + c.Found}
	for _, line := range []struct{ what, value string }{{"expected", c.Want}, {"asked by", c.Asked}, {"waived", c.Waived}, {"next", c.Next}} {
		if line.value != "" && !c.OK {
			text = append(text, line.what+": "+line.value)
		}
	}
	result := run.CreateResultForRule(c.Name).WithLevel(level).WithKind(kind).WithMessage(sarif.NewTextMessage(strings.Join(text, "\n")))
	for _, at := range e.Subject.Locations {
		result.AddLocation(location(at))
	}
}

// location reads "FILE:LINE what is there".
func location(at string) *sarif.Location {
	place, _, _ := strings.Cut(at, " ")
	file, line, _ := strings.Cut(place, ":")
	physical := sarif.NewPhysicalLocation().WithArtifactLocation(sarif.NewSimpleArtifactLocation(file))
	if n, err := strconv.Atoi(line); err == nil && n > 0 {
		physical = physical.WithRegion(sarif.NewSimpleRegion(n, n))
	}
	return sarif.NewLocationWithPhysicalLocation(physical)
}
