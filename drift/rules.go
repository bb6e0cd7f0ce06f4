package drift

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Case is the operator's word on some drift, in the place of a stack's mode. Empty
// lists match everything. Paths and Actors match a finding only as a whole: a case
// about one field says nothing about a finding with another one.
type Case struct {
	Name    string
	Kinds   []string // globs over Kind or Kind.group, or Terraform resource types
	Paths   []string // JSON pointers, * for one segment; what is below is covered
	Classes []targets.FindingClass
	Actors  []string // globs over field managers and users
	Mode    Mode
}

func (c Case) covers(f targets.Finding) bool {
	kind, _, _ := strings.Cut(f.ID.Kind, ".")
	within := func(field plan.Field) bool {
		return slices.ContainsFunc(c.Paths, func(p string) bool { return plan.Within(p, field.Path) })
	}
	switch {
	case len(c.Kinds) > 0 && !matches(c.Kinds, f.ID.Kind) && !matches(c.Kinds, kind):
		return false
	case len(c.Classes) > 0 && !slices.Contains(c.Classes, f.Class):
		return false
	case len(c.Paths) > 0 && (len(f.Fields) == 0 || slices.ContainsFunc(f.Fields, func(field plan.Field) bool { return !within(field) })):
		return false
	}
	if len(c.Actors) == 0 {
		return true
	}
	// A client calls itself what it likes: what a name cannot open is what nobody may add.
	return (c.Mode == Revert || !closed(f)) && c.by(f)
}

// closed reports whether somebody's addition, or a new image, is part of f.
func closed(f targets.Finding) bool {
	return f.Class == targets.Foreign || slices.ContainsFunc(f.Fields, func(field plan.Field) bool { return field.Foreign || bringsImage(field) })
}

// by reports whether everybody who is known to have had a part in f is meant.
func (c Case) by(f targets.Finding) bool {
	if f.Actor == "" && f.User == "" {
		return false
	}
	who := func(manager string) string {
		if manager == f.Actor && f.User != "" { // who signed in says more than what a client calls itself
			return f.User
		}
		return manager
	}
	return matches(c.Actors, who(f.Actor)) && !slices.ContainsFunc(f.Fields, func(field plan.Field) bool {
		return !matches(c.Actors, who(field.Manager)) // a field that nobody is known for does not match
	})
}

func matches(globs []string, s string) bool {
	return slices.ContainsFunc(globs, func(g string) bool { ok, err := path.Match(g, s); return err == nil && ok })
}

// Quiet is a time in which nothing is reverted: drift is told of, and reverted when
// it is over.
type Quiet struct {
	Name     string
	Start    cron.Schedule
	Duration time.Duration
}

// until returns when the window that holds at now ends; zero: none does.
func (q Quiet) until(now time.Time) time.Time {
	var end time.Time
	// The last start is not asked for by cron; the first one after now less the
	// duration is the earliest that still holds.
	for at := q.Start.Next(now.Add(-q.Duration)); !at.IsZero() && !at.After(now); at = q.Start.Next(at) {
		end = at.Add(q.Duration)
	}
	return end
}

// quiet returns the window that holds longest at now.
func (r Rules) quiet(now time.Time) (name string, until time.Time) {
	for _, q := range r.Quiet {
		if end := q.until(now); end.After(until) {
			name, until = q.Name, end
		}
	}
	return name, until
}

// excused returns until when break-glass keeps f from being reverted; zero: it does
// not. What somebody added, and a new image, are never excused: nothing unproven
// runs, in an emergency either.
func (r Rules) excused(f targets.Finding, now time.Time) time.Time {
	x := f.Excuse
	if x == nil || r.BreakGlass <= 0 || f.Class != targets.Modified || closed(f) {
		return time.Time{}
	}
	first := f.Detected
	if first.IsZero() || first.After(now) {
		first = now
	}
	until := slices.MinFunc([]time.Time{x.Until, first.Add(r.BreakGlass)}, time.Time.Compare)
	if !until.After(now) {
		return time.Time{}
	}
	return until
}

// decide returns what happens to f, which no rule ignores as a whole.
func (r Rules) decide(v Verdict, now time.Time) Verdict {
	f := v.Finding
	mode := cmp.Or(r.Mode, Report)
	for _, c := range r.Cases {
		if c.covers(f) {
			mode, v.Rule = c.Mode, c.Name
			break
		}
	}
	if f.Class == targets.Extra { // only a new commit deletes
		mode = Report
	}
	switch mode {
	case Ask:
		v.Action = Asked
		return v
	case Adopt:
		v.Action = Offered
		return v
	case Revert:
		v.Action = Reverted
	default:
		v.Action = Reported
		return v
	}
	if until := r.excused(f, now); !until.IsZero() {
		v.Action, v.Until, v.Rule = Excused, until, f.Excuse.Reason
		return v
	}
	if name, until := r.quiet(now); !until.IsZero() && !closed(f) {
		v.Action, v.Until, v.Rule = Postponed, until, name
	}
	return v
}
