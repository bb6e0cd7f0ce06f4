// Package drift owns the judgement of a difference between the live world and
// what was granted: is it ignored, reported or reverted, and since when is it
// known.
//
// It guarantees that an ignore rule ends on its date and covers fields that we
// own in a modified object only: an object that is missing, one that is still
// there though nothing declares it, a field that somebody else added, and a new
// image in a pod specification are always reported. It refuses to write: a revert
// goes through the gate and the target.
package drift

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Mode says what happens to drift that no rule ignores.
type Mode string

// The modes.
const (
	Report Mode = "report" // say so, change nothing
	Revert Mode = "revert" // say so, and restore what was granted
	Ask    Mode = "ask"    // say so, and restore what was granted when a person approves
	Adopt  Mode = "adopt"  // say so, and offer the change as a patch of the repository
)

// Ignore is drift that is not acted on until its end.
type Ignore struct {
	Kind   string // "Deployment", "Deployment.apps" or a Terraform resource type
	Name   string // object name or resource address; empty: all
	Path   string // JSON pointer, * for one segment; what is below it is covered too
	Until  time.Time
	Reason string
}

// Covers reports whether the rule holds for an object at time now.
func (i Ignore) Covers(id plan.ObjectID, now time.Time) bool {
	if !now.Before(i.Until) || (i.Name != "" && i.Name != id.Name) {
		return false
	}
	kind, _, _ := strings.Cut(id.Kind, ".")
	return i.Kind == id.Kind || i.Kind == kind
}

// Rules are one stack's rules for drift.
type Rules struct {
	Mode   Mode
	Ignore []Ignore
	Cases  []Case  // the operator's; the first that covers a finding decides
	Quiet  []Quiet // the operator's
	// BreakGlass is for how long an excuse on a live object may hold; zero: none does.
	BreakGlass time.Duration
}

// Action is what happens to one finding.
type Action string

// The actions.
const (
	Ignored   Action = "ignored"
	Reported  Action = "reported"
	Reverted  Action = "reverted"
	Asked     Action = "asked"     // it is reverted when a person approves
	Offered   Action = "offered"   // a patch that adopts it is there for whoever asks
	Excused   Action = "excused"   // break-glass holds until a time
	Postponed Action = "postponed" // a quiet window holds until a time
	Fought    Action = "fought"    // somebody makes it again and again
)

// Verdict is the judgement of one finding.
type Verdict struct {
	// Finding holds the fields that are left after the ignore rules.
	Finding targets.Finding
	Action  Action
	// Reasons are those of the ignore rules that were applied.
	Reasons []string
	// Rule names the operator's case or window that decided, or is the reason of the
	// excuse; empty: the stack's mode did.
	Rule string
	// Until is when an action that holds something back ends.
	Until time.Time
}

// Judge applies the rules to f at time now.
func (r Rules) Judge(f targets.Finding, now time.Time) Verdict {
	v := Verdict{Finding: f}
	if f.Class != targets.Modified || len(f.Fields) == 0 {
		return r.decide(v, now)
	}
	v.Finding.Fields = slices.DeleteFunc(slices.Clone(f.Fields), func(field plan.Field) bool {
		if field.Foreign || bringsImage(field) {
			return false
		}
		ig, ok := r.rule(f.ID, field.Path, now)
		if ok && !slices.Contains(v.Reasons, ig.Reason) {
			v.Reasons = append(v.Reasons, ig.Reason)
		}
		return ok
	})
	if len(v.Finding.Fields) == 0 {
		v.Action = Ignored
		return v
	}
	return r.decide(v, now)
}

// podLists are the lists of a pod specification whose elements have an image.
var podLists = []string{"containers", "initContainers", "ephemeralContainers", "volumes"}

// bringsImage reports whether the live value of a field is, or holds, an image of
// a pod specification. Of a value that is too long to be shown nothing is known:
// it counts as one that does.
func bringsImage(f plan.Field) bool {
	if f.From == "" {
		return false
	}
	at := strings.Split(f.Path, "/")
	inList := false
	for i, segment := range at {
		list := slices.Contains(podLists, segment)
		if list && i+2 < len(at) && at[i+2] == "image" {
			return true
		}
		inList = inList || list
	}
	if f.From[0] != '{' && f.From[0] != '[' {
		return false
	}
	var value any
	if json.Unmarshal([]byte(f.From), &value) != nil {
		return true
	}
	return holdsImage(value, inList)
}

// holdsImage reports whether an image stands in v. inList says that v is within
// a list of containers or volumes.
func holdsImage(v any, inList bool) bool {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if (inList && k == "image") || holdsImage(e, inList || slices.Contains(podLists, k)) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return holdsImage(e, inList) })
	}
	return false
}

// Ignores reports whether a rule covers one field of an object at time now.
func (r Rules) Ignores(id plan.ObjectID, pointer string, now time.Time) bool {
	_, ok := r.rule(id, pointer, now)
	return ok
}

func (r Rules) rule(id plan.ObjectID, pointer string, now time.Time) (Ignore, bool) {
	for _, ig := range r.Ignore {
		if ig.Covers(id, now) && plan.Within(ig.Path, pointer) {
			return ig, true
		}
	}
	return Ignore{}, false
}

// FromPlan turns a plan that was made from what was granted into findings: what
// the plan would change is what has drifted.
func FromPlan(p plan.Plan, now time.Time) []targets.Finding {
	out := make([]targets.Finding, 0, len(p.Changes))
	for _, c := range p.Changes {
		f := targets.Finding{Stack: p.Stack, ID: c.ID, Class: targets.Modified, Fields: c.Fields, Source: c.Source, Excerpt: c.Excerpt, Actor: c.Actor, Since: c.Since, Detected: now, Excuse: targets.ExcuseOf(c)}
		if f.Since.IsZero() {
			f.Since = now
		}
		switch {
		case c.Action == plan.Create:
			f.Class = targets.Missing
			f.Fields = nil
		case c.Action == plan.Delete:
			f.Class = targets.Extra
		case c.Foreign():
			f.Class = targets.Foreign
		}
		out = append(out, f)
	}
	return out
}

// ParseSchedule reads a cron schedule: five fields, or @hourly and the like.
func ParseSchedule(spec string) (cron.Schedule, error) {
	s, err := cron.ParseStandard(spec)
	if err != nil {
		return nil, fmt.Errorf("cron schedule %q: %w", spec, err)
	}
	return s, nil
}

// Open is the set of findings that are known and not yet gone. It is safe for
// concurrent use; its zero value is ready.
type Open struct {
	mu sync.Mutex
	m  map[plan.ObjectID]entry
}

type entry struct {
	finding targets.Finding
	key     [sha256.Size]byte
}

// Known returns f with what is remembered of the finding that is open for its object:
// its name, and when it was first seen.
func (o *Open) Known(f targets.Finding) targets.Finding {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.m[f.ID]; ok {
		f.Ref, f.Detected = old.finding.Ref, old.finding.Detected
		if f.User == "" && f.Actor == old.finding.Actor && f.Since.Equal(old.finding.Since) {
			f.User, f.Origin = old.finding.User, old.finding.Origin
		}
	}
	return f
}

// Add notes f and reports whether it is new: another object, or other content
// than the finding that is open for the object. What is known of the open one stays:
// its name, when it was first seen, and an older Since.
func (o *Open) Add(f targets.Finding) (targets.Finding, bool) {
	f = o.Known(f)
	if f.LastSeen = time.Now().UTC(); f.Ref == "" {
		f.Ref = newRef(f)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s", f.Class)
	for _, field := range f.Fields { // who wrote last, and when, makes no new finding
		fmt.Fprintf(h, " %q %q %q %t", field.Path, field.From, field.To, field.Foreign)
	}
	key := [sha256.Size]byte(h.Sum(nil))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[plan.ObjectID]entry{}
	}
	old, ok := o.m[f.ID]
	if ok && old.key == key {
		old.finding.LastSeen, old.finding.Excuse = f.LastSeen, f.Excuse
		o.m[f.ID] = old
		return old.finding, false
	}
	if since := old.finding.Since; !since.IsZero() && since.Before(f.Since) {
		f.Since = since
	}
	o.m[f.ID] = entry{f, key}
	return f, true
}

// Name notes who made a finding, and reports whether it is still open.
func (o *Open) Name(f targets.Finding) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.m[f.ID]; ok && old.finding.Ref == f.Ref {
		old.finding.User, old.finding.Origin = f.User, f.Origin
		o.m[f.ID] = old
		return true
	}
	return false
}

// newRef makes the name of a finding. It is no secret and need not be hard to guess;
// two findings of one daemon do not share one.
func newRef(f targets.Finding) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d", f.Stack, f.ID, f.Class, f.Detected.UnixNano()))
	return "d-" + hex.EncodeToString(sum[:6])
}

// Close ends the findings for ids, or all without ids, and returns what was open.
func (o *Open) Close(ids ...plan.ObjectID) []targets.Finding {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []targets.Finding
	if len(ids) == 0 {
		for _, e := range o.m {
			out = append(out, e.finding)
		}
		o.m = nil
		return out
	}
	for _, id := range ids {
		if e, ok := o.m[id]; ok {
			out = append(out, e.finding)
			delete(o.m, id)
		}
	}
	return out
}

// List returns the open findings in a stable order.
func (o *Open) List() []targets.Finding {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]targets.Finding, 0, len(o.m))
	for _, e := range o.m {
		out = append(out, e.finding)
	}
	slices.SortFunc(out, func(a, b targets.Finding) int {
		return cmp.Or(a.Detected.Compare(b.Detected), a.ID.Compare(b.ID))
	})
	return out
}
