package drift

import (
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

func finding(class targets.FindingClass, fields ...plan.Field) targets.Finding {
	return targets.Finding{ID: web, Class: class, Fields: fields, Detected: now, Actor: "kubectl-edit"}
}

var (
	replicas = plan.Field{Path: "/spec/replicas", From: "5", To: "2", Manager: "keda"}
	labels   = plan.Field{Path: "/metadata/labels/a", From: `"b"`, Manager: "kubectl-edit"}
	newImage = plan.Field{Path: "/spec/template/spec/containers/0/image", From: `"a"`, To: `"b"`}
	added    = plan.Field{Path: "/spec/template/spec/hostPID", From: "true", Foreign: true}
)

func TestCases(t *testing.T) {
	t.Parallel()
	with := func(f targets.Finding, change func(*targets.Finding)) targets.Finding { change(&f); return f }
	for name, tc := range map[string]struct {
		c      Case
		f      targets.Finding
		covers bool
	}{
		"everything":                       {Case{}, finding(targets.Modified, replicas), true},
		"kind":                             {Case{Kinds: []string{"Deployment"}}, finding(targets.Modified, replicas), true},
		"kind with group":                  {Case{Kinds: []string{"*.apps"}}, finding(targets.Modified, replicas), true},
		"another kind":                     {Case{Kinds: []string{"Stateful*"}}, finding(targets.Modified, replicas), false},
		"class":                            {Case{Classes: []targets.FindingClass{targets.Modified}}, finding(targets.Modified, replicas), true},
		"another class":                    {Case{Classes: []targets.FindingClass{targets.Missing}}, finding(targets.Modified, replicas), false},
		"path":                             {Case{Paths: []string{"/spec/replicas"}}, finding(targets.Modified, replicas), true},
		"one path of two":                  {Case{Paths: []string{"/spec/replicas"}}, finding(targets.Modified, replicas, labels), false},
		"both paths":                       {Case{Paths: []string{"/spec/replicas", "/metadata/*"}}, finding(targets.Modified, replicas, labels), true},
		"a path of what has no fields":     {Case{Paths: []string{"/spec"}}, finding(targets.Missing), false},
		"actor":                            {Case{Actors: []string{"ke*", "kubectl-*"}}, finding(targets.Modified, replicas, labels), true},
		"one actor of two":                 {Case{Actors: []string{"keda"}}, finding(targets.Modified, replicas, labels), false},
		"an actor that nobody knows":       {Case{Actors: []string{"*"}}, with(finding(targets.Missing), func(f *targets.Finding) { f.Actor = "" }), false},
		"a user":                           {Case{Actors: []string{"carol@*"}}, with(finding(targets.Modified, labels), func(f *targets.Finding) { f.User = "carol@acme.example" }), true},
		"a field that nobody is known for": {Case{Actors: []string{"ke*", "kubectl-*"}}, finding(targets.Modified, replicas, plan.Field{Path: "/spec/x", To: "1"}), false},
		"an addition by a name":            {Case{Actors: []string{"*"}, Mode: Ask}, finding(targets.Foreign, plan.Field{Path: "/x", From: "1", Foreign: true, Manager: "a"}), false},
		"an addition, to be reverted":      {Case{Actors: []string{"*"}, Mode: Revert}, finding(targets.Foreign, plan.Field{Path: "/x", From: "1", Foreign: true, Manager: "a"}), true},
		"the name of a client is no user":  {Case{Actors: []string{"keda", "kubectl-edit"}}, with(finding(targets.Modified, replicas), func(f *targets.Finding) { f.User = "mallory" }), false},
	} {
		if got := tc.c.covers(tc.f); got != tc.covers {
			t.Errorf("%s: %t", name, got)
		}
	}
	// The first that covers it decides, also over the stack's mode.
	r := Rules{Mode: Revert, Cases: []Case{{Name: "first", Paths: []string{"/spec/replicas"}, Mode: Report}, {Name: "second", Mode: Ask}}}
	for f, want := range map[*targets.Finding]Action{
		ptr(finding(targets.Modified, replicas)): Reported, ptr(finding(targets.Modified, labels)): Asked, ptr(finding(targets.Extra)): Reported,
	} {
		if v := r.Judge(*f, now); v.Action != want || v.Rule == "" {
			t.Errorf("%v: %s by %q", f, v.Action, v.Rule)
		}
	}
	if v := (Rules{Mode: Adopt}).Judge(finding(targets.Modified, labels), now); v.Action != Offered {
		t.Errorf("adopt: %s", v.Action)
	}
}

func ptr[T any](v T) *T { return &v }

func TestQuiet(t *testing.T) {
	t.Parallel()
	s, err := ParseSchedule("CRON_TZ=UTC 0 18 * * 5")
	if err != nil {
		t.Fatal(err)
	}
	r := Rules{Mode: Revert, Quiet: []Quiet{{Name: "weekend", Start: s, Duration: 62 * time.Hour}}}
	friday := time.Date(2026, 6, 5, 18, 0, 0, 0, time.UTC)
	monday := friday.Add(62 * time.Hour)
	for at, quiet := range map[time.Time]bool{
		friday.Add(-time.Second): false, friday: true, friday.Add(time.Hour): true, monday.Add(-time.Second): true, monday: false,
	} {
		v := r.Judge(finding(targets.Modified, replicas), at)
		if quiet != (v.Action == Postponed) || quiet && !v.Until.Equal(monday) || !quiet && v.Action != Reverted {
			t.Errorf("%s: %s until %s", at, v.Action, v.Until)
		}
	}
	if v := r.Judge(finding(targets.Foreign, added), friday); v.Action != Reverted {
		t.Errorf("what somebody added is %s", v.Action)
	}
	if v := (Rules{Mode: Report, Quiet: r.Quiet}).Judge(finding(targets.Modified, replicas), friday); v.Action != Reported {
		t.Errorf("what is only reported is %s", v.Action)
	}
}

func TestBreakGlass(t *testing.T) {
	t.Parallel()
	r := Rules{Mode: Revert, BreakGlass: 4 * time.Hour}
	held := func(class targets.FindingClass, until time.Duration, fields ...plan.Field) targets.Finding {
		f := finding(class, fields...)
		f.Excuse = &targets.Excuse{Until: now.Add(until), Reason: "incident 17"}
		return f
	}
	for name, tc := range map[string]struct {
		r      Rules
		f      targets.Finding
		at     time.Duration
		action Action
		until  time.Duration
	}{
		"it holds":                    {r, held(targets.Modified, time.Hour, replicas), 0, Excused, time.Hour},
		"at most as long as allowed":  {r, held(targets.Modified, 99*time.Hour, replicas), time.Hour, Excused, 4 * time.Hour},
		"it ended":                    {r, held(targets.Modified, time.Hour, replicas), time.Hour, Reverted, 0},
		"what is allowed ended":       {r, held(targets.Modified, 99*time.Hour, replicas), 4 * time.Hour, Reverted, 0},
		"nobody allowed it":           {Rules{Mode: Revert}, held(targets.Modified, time.Hour, replicas), 0, Reverted, 0},
		"an addition":                 {r, held(targets.Foreign, time.Hour, added), 0, Reverted, 0},
		"an addition beside a change": {r, held(targets.Modified, time.Hour, replicas, added), 0, Reverted, 0},
		"a new image":                 {r, held(targets.Modified, time.Hour, newImage), 0, Reverted, 0},
		"a deletion":                  {r, held(targets.Missing, time.Hour), 0, Reverted, 0},
		"first seen in the future":    {r, with(held(targets.Modified, 99*time.Hour, replicas), 1000*time.Hour), 0, Excused, 4 * time.Hour},
	} {
		v := tc.r.Judge(tc.f, now.Add(tc.at))
		if v.Action != tc.action || tc.until != 0 && !v.Until.Equal(now.Add(tc.until)) {
			t.Errorf("%s: %s until %s", name, v.Action, v.Until)
		}
	}
}

func with(f targets.Finding, later time.Duration) targets.Finding {
	f.Detected = f.Detected.Add(later)
	return f
}

func TestFights(t *testing.T) {
	t.Parallel()
	var fs Fights
	at, f := now, finding(targets.Modified, replicas)
	revert := func(f targets.Finding) (time.Duration, bool) { return fs.Revert(f, at) }
	for i := range fightFlips - 1 {
		if wait, noticed := revert(f); wait != 0 || noticed {
			t.Fatalf("flip %d: %s %t", i, wait, noticed)
		}
		at = at.Add(time.Second)
	}
	if wait, noticed := revert(f); wait != 0 || !noticed {
		t.Fatalf("the last flip: %s %t", wait, noticed)
	}
	// From then on it is reverted at a growing distance.
	var reverted []time.Duration
	for start := at; at.Sub(start) < time.Hour; at = at.Add(100 * time.Millisecond) {
		if wait, noticed := revert(f); noticed {
			t.Fatal("noticed twice")
		} else if wait == 0 {
			reverted = append(reverted, at.Sub(start))
		}
	}
	if len(reverted) < 10 || len(reverted) > 25 || reverted[0] != fightFirst || reverted[len(reverted)-1]-reverted[len(reverted)-2] != fightMost {
		t.Errorf("reverted after %v", reverted)
	}
	// Other fields, and other objects, are not fought about.
	other := f
	other.ID.Name = "api"
	for _, f := range []targets.Finding{finding(targets.Modified, labels), finding(targets.Missing), other} {
		if wait, noticed := revert(f); wait != 0 || noticed {
			t.Errorf("%v: %s %t", f, wait, noticed)
		}
	}
	// It is over when the other side was quiet.
	at = at.Add(fightQuiet + time.Second)
	for range fightFlips - 1 {
		if wait, noticed := revert(f); wait != 0 || noticed {
			t.Fatalf("a new peace: %s %t", wait, noticed)
		}
	}
	// A fight is no way to keep what nobody may add.
	for _, f := range []targets.Finding{finding(targets.Foreign, added), finding(targets.Modified, newImage)} {
		most, last := time.Duration(0), at
		for start := at; at.Sub(start) < 10*time.Minute; at = at.Add(50 * time.Millisecond) {
			if wait, _ := revert(f); wait == 0 {
				most, last = max(most, at.Sub(last)), at
			}
		}
		if most > fightClosed+time.Second {
			t.Errorf("%v stays for %s", f.Fields, most)
		}
	}
	// Slow flips are no fight.
	var slow Fights
	for range 10 * fightFlips {
		if wait, noticed := slow.Revert(f, at); wait != 0 || noticed {
			t.Fatal("slow flips are a fight")
		}
		at = at.Add(fightWithin / 5)
	}
}

func TestFindingsKeepTheirName(t *testing.T) {
	t.Parallel()
	var o Open
	first, fresh := o.Add(finding(targets.Modified, replicas))
	if !fresh || first.Ref == "" || first.LastSeen.IsZero() {
		t.Fatalf("%+v", first)
	}
	again := finding(targets.Modified, replicas)
	again.Detected = now.Add(time.Hour)
	same, fresh := o.Add(again)
	if fresh || same.Ref != first.Ref || !same.Detected.Equal(now) || same.LastSeen.Before(first.LastSeen) {
		t.Errorf("the same: %+v", same)
	}
	again.Fields = []plan.Field{labels}
	other, fresh := o.Add(again)
	if !fresh || other.Ref != first.Ref || !other.Detected.Equal(now) {
		t.Errorf("changed: %+v", other)
	}
	// Who wrote last, and when, makes no new finding.
	again.Fields = []plan.Field{{Path: labels.Path, From: labels.From, Manager: "x", Since: now}}
	if _, fresh := o.Add(again); fresh {
		t.Error("another manager makes another finding")
	}
	o.Close(web)
	if next, _ := o.Add(again); next.Ref == first.Ref {
		t.Error("a finding that is over came back under its name")
	}
}
