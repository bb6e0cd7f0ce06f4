package drift

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

var (
	now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	web = plan.ObjectID{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}
)

func TestJudge(t *testing.T) {
	t.Parallel()
	replicas := plan.Field{Path: "/spec/replicas", From: "5", To: "2"}
	foreign := plan.Field{Path: "/spec/template/spec/hostPID", From: "true", Foreign: true}
	everything := Ignore{Kind: "Deployment", Path: "/spec", Until: now.Add(time.Hour), Reason: "hush"}
	command := plan.Field{Path: "/spec/template/spec/containers/0/command", From: `["sh"]`, To: `["serve"]`}
	sidecar := plan.Field{Path: "/spec/template/spec/containers/1", From: `{"image":"evil","name":"x"}`}
	template := plan.Field{Path: "/spec/template", From: `{"spec":{"initContainers":[{"image":"evil"}]}}`}
	volume := plan.Field{Path: "/spec/template/spec/volumes/0/image/reference", From: `"evil"`, To: `"good"`}
	long := plan.Field{Path: "/spec/template/spec/affinity", From: `{"a":"bbbb… (9999 bytes)`}
	noImage := plan.Field{Path: "/spec/template/spec/volumes/0", From: `{"name":"x","emptyDir":{}}`}
	gone := plan.Field{Path: "/spec/template/spec/containers/1", To: `{"image":"ours"}`}
	all := plan.Field{Path: "/spec/template/spec/containers", From: `[{"image":"evil"}]`}
	other := plan.Field{Path: "/spec/backup/0/image", From: `"a"`, To: `"b"`}
	within := plan.Field{Path: "/spec/backup", From: `{"image":"a"}`, To: `{"image":"b"}`}
	text := plan.Field{Path: "/spec/notes", From: `"aaaa… (9999 bytes)`}
	image := plan.Field{Path: "/spec/template/spec/containers/0/image", From: `"a"`, To: `"b"`}
	hpa := Ignore{Kind: "Deployment", Path: "/spec/replicas", Until: now.Add(time.Hour), Reason: "HPA owns it"}
	modified := func(fields ...plan.Field) targets.Finding {
		return targets.Finding{ID: web, Class: targets.Modified, Fields: fields}
	}
	for name, tc := range map[string]struct {
		rules  Rules
		f      targets.Finding
		action Action
		fields int
	}{
		"report":                   {Rules{Mode: Report}, modified(image), Reported, 1},
		"revert":                   {Rules{Mode: Revert}, modified(image), Reverted, 1},
		"no mode reports":          {Rules{}, modified(image), Reported, 1},
		"ignored":                  {Rules{Mode: Revert, Ignore: []Ignore{hpa}}, modified(replicas), Ignored, 0},
		"ignored in part":          {Rules{Mode: Revert, Ignore: []Ignore{hpa}}, modified(replicas, image), Reverted, 1},
		"missing is never ignored": {Rules{Mode: Revert, Ignore: []Ignore{hpa}}, targets.Finding{ID: web, Class: targets.Missing}, Reverted, 0},
		"extra is never reverted":  {Rules{Mode: Revert}, targets.Finding{ID: web, Class: targets.Extra}, Reported, 0},
		"the rule has ended":       {Rules{Mode: Revert, Ignore: []Ignore{{Kind: "Deployment", Path: "/spec/replicas", Until: now}}}, modified(replicas), Reverted, 1},
		"another kind":             {Rules{Ignore: []Ignore{{Kind: "StatefulSet", Path: "/spec/replicas", Until: now.Add(1)}}}, modified(replicas), Reported, 1},
		"another name":             {Rules{Ignore: []Ignore{{Kind: "Deployment", Name: "api", Path: "/spec/replicas", Until: now.Add(1)}}}, modified(replicas), Reported, 1},
		"kind with group":          {Rules{Ignore: []Ignore{{Kind: "Deployment.apps", Name: "web", Path: "/spec/replicas", Until: now.Add(1)}}}, modified(replicas), Ignored, 0},
		"wildcard and below":       {Rules{Ignore: []Ignore{{Kind: "Deployment", Path: "/spec/*/spec", Until: now.Add(1)}}}, modified(command), Ignored, 0},

		"a foreign field is never ignored":           {Rules{Ignore: []Ignore{everything}}, modified(replicas, foreign), Reported, 1},
		"a foreign finding is never ignored":         {Rules{Ignore: []Ignore{everything}}, targets.Finding{ID: web, Class: targets.Foreign, Fields: []plan.Field{foreign}}, Reported, 1},
		"a foreign finding is reverted":              {Rules{Mode: Revert, Ignore: []Ignore{everything}}, targets.Finding{ID: web, Class: targets.Foreign, Fields: []plan.Field{foreign}}, Reverted, 1},
		"a new image is never ignored":               {Rules{Mode: Revert, Ignore: []Ignore{everything}}, modified(replicas, image), Reverted, 1},
		"a container with an image is not either":    {Rules{Ignore: []Ignore{everything}}, modified(sidecar), Reported, 1},
		"nor a template with an image":               {Rules{Ignore: []Ignore{everything}}, modified(template), Reported, 1},
		"nor an image volume":                        {Rules{Ignore: []Ignore{everything}}, modified(volume), Reported, 1},
		"nor what is too long to tell":               {Rules{Ignore: []Ignore{everything}}, modified(long), Reported, 1},
		"a volume without an image may be ignored":   {Rules{Ignore: []Ignore{everything}}, modified(noImage), Ignored, 0},
		"a container that is missing may be as well": {Rules{Ignore: []Ignore{everything}}, modified(gone), Ignored, 0},

		"nor a list with an image":                 {Rules{Ignore: []Ignore{everything}}, modified(all), Reported, 1},
		"an image that no pod runs may be ignored": {Rules{Ignore: []Ignore{everything}}, modified(other, within), Ignored, 0},
		"a long text is no image":                  {Rules{Ignore: []Ignore{everything}}, modified(text), Ignored, 0},
		"an extra object is never ignored":         {Rules{Ignore: []Ignore{everything}}, targets.Finding{ID: web, Class: targets.Extra, Fields: []plan.Field{replicas}}, Reported, 1},
		"nor is what differs nobody knows how":     {Rules{Ignore: []Ignore{everything}}, modified(), Reported, 0},

		"a prefix is not a segment": {Rules{Ignore: []Ignore{{Kind: "Deployment", Path: "/spec/repl", Until: now.Add(1)}}}, modified(replicas), Reported, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := tc.rules.Judge(tc.f, now)
			if v.Action != tc.action || len(v.Finding.Fields) != tc.fields {
				t.Errorf("got %s with %d fields, want %s with %d", v.Action, len(v.Finding.Fields), tc.action, tc.fields)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	ignore := func(path, reason string) Ignore {
		return Ignore{Kind: "Deployment", Path: path, Until: now.Add(1), Reason: reason}
	}
	rules := Rules{Ignore: []Ignore{ignore("/spec/replicas", "HPA"), ignore("/spec/minReadySeconds", "HPA"), ignore("/spec/paused", "pause")}}
	fields := []plan.Field{{Path: "/spec/replicas"}, {Path: "/spec/minReadySeconds"}, {Path: "/spec/paused"}, {Path: "/spec/strategy"}}
	v := rules.Judge(targets.Finding{ID: web, Class: targets.Modified, Fields: fields}, now)
	if !slices.Equal(v.Reasons, []string{"HPA", "pause"}) || len(v.Finding.Fields) != 1 {
		t.Errorf("%+v", v)
	}
}

func TestForeignPlan(t *testing.T) {
	t.Parallel()
	foreign, own := plan.Field{Path: "/data/a", From: `"x"`, Foreign: true}, plan.Field{Path: "/data/b", From: `"x"`, To: `"y"`}
	got := FromPlan(plan.Plan{Changes: []plan.Change{
		{ID: web, Action: plan.Update, Fields: []plan.Field{foreign}},
		{ID: web, Action: plan.Update, Fields: []plan.Field{foreign, own}},
		{ID: web, Action: plan.Update, Fields: []plan.Field{own}},
	}}, now)
	for i, want := range []targets.FindingClass{targets.Foreign, targets.Modified, targets.Modified} {
		if got[i].Class != want {
			t.Errorf("change %d is %s; want %s", i, got[i].Class, want)
		}
	}
	if !got[1].Fields[0].Foreign {
		t.Error("the foreign field has lost its mark")
	}
}

func TestFromPlan(t *testing.T) {
	t.Parallel()
	got := FromPlan(plan.Plan{Stack: "web", Changes: []plan.Change{
		{ID: web, Action: plan.Create}, {ID: web, Action: plan.Update, Since: now.Add(-time.Hour)}, {ID: web, Action: plan.Replace}, {ID: web, Action: plan.Delete},
	}}, now)
	want := []targets.FindingClass{targets.Missing, targets.Modified, targets.Modified, targets.Extra}
	for i, f := range got {
		if f.Class != want[i] || f.Stack != "web" {
			t.Errorf("%d: %+v, want class %s", i, f, want[i])
		}
		if known := i == 1; f.Since.Equal(now) == known || f.Since.IsZero() {
			t.Errorf("%d: since %s", i, f.Since)
		}
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	var o Open
	f := targets.Finding{ID: web, Class: targets.Modified, Detected: now, Fields: []plan.Field{{Path: "/a", From: "1"}}}
	if _, fresh := o.Add(f); !fresh {
		t.Error("the first finding is not new")
	}
	again := f
	again.Detected = now.Add(time.Minute)
	if kept, fresh := o.Add(again); fresh || !kept.Detected.Equal(now) {
		t.Error("the same finding counts twice")
	}
	f.Fields = []plan.Field{{Path: "/a", From: "2"}}
	if _, fresh := o.Add(f); !fresh {
		t.Error("other content is not new")
	}
	if len(o.List()) != 1 || len(o.Close(web)) != 1 || len(o.List()) != 0 {
		t.Error("close does not end the finding")
	}
}

func TestOpenKeepsTheOldestSince(t *testing.T) {
	t.Parallel()
	var o Open
	f := targets.Finding{ID: web, Class: targets.Modified}
	for i, c := range []struct{ since, want time.Time }{
		{time.Time{}, time.Time{}},
		{now, now},
		{now.Add(time.Hour), now},
		{now.Add(-time.Hour), now.Add(-time.Hour)},
	} {
		f.Since, f.Fields = c.since, []plan.Field{{Path: "/a", From: string(rune('0' + i))}}
		if got, fresh := o.Add(f); !fresh || !got.Since.Equal(c.want) {
			t.Errorf("%d: since %s, want %s", i, got.Since, c.want)
		}
	}
	api := web
	api.Name = "api"
	o.Add(targets.Finding{ID: api})
	if n := len(o.Close()); n != 2 || len(o.List()) != 0 {
		t.Errorf("%d of 2 findings ended, %d are left", n, len(o.List()))
	}
}

func TestParseSchedule(t *testing.T) {
	t.Parallel()
	s, err := ParseSchedule("*/15 * * * *")
	if err != nil || !s.Next(now).Equal(now.Add(15*time.Minute)) {
		t.Errorf("%v %v", s, err)
	}
	if _, err := ParseSchedule("sometimes"); err == nil {
		t.Error("accepted")
	}
}
