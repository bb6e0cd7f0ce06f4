package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Who made a change is often learned after it was reverted: an API server writes its
// audit log in batches. So findings whose user is not known are remembered for a
// while, and named when more is known.

const (
	nameless    = 1000 // findings that are remembered
	namelessFor = 10 * time.Minute
)

// anonymous are findings that have no user yet. It is safe for concurrent use.
type anonymous struct {
	mu   sync.Mutex
	list []unnamed // oldest first
}

type unnamed struct {
	stack   string
	target  targets.Attributor
	finding targets.Finding
	at      time.Time
}

func (a *anonymous) add(u unnamed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, u)
	if over := len(a.list) - nameless; over > 0 {
		a.list = slices.Delete(a.list, 0, over)
	}
}

// named takes out what has a user now, and what is too old.
func (a *anonymous) named(now time.Time) []unnamed {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []unnamed
	a.list = slices.DeleteFunc(a.list, func(u unnamed) bool {
		f, ok := u.target.Attribute(u.finding)
		if ok {
			u.finding = f
			out = append(out, u)
		}
		return ok || now.Sub(u.at) > namelessFor
	})
	return out
}

// attribute names the user who made f, if that is known.
func (r *Reconciler) attribute(d *deployment, f targets.Finding) targets.Finding {
	a, ok := d.target.(targets.Attributor)
	if !ok {
		return f
	}
	f, _ = a.Attribute(f)
	return f
}

// unattributed remembers a finding that was told of without a user.
func (r *Reconciler) unattributed(d *deployment, f targets.Finding) {
	if a, ok := d.target.(targets.Attributor); ok && f.User == "" {
		r.anonymous.add(unnamed{stack: d.Name, target: a, finding: f, at: time.Now()})
	}
}

// Learned says that more is known of who wrote what: findings that nobody was named
// for are looked at again. It does not block for long.
func (r *Reconciler) Learned(ctx context.Context) {
	for _, u := range r.anonymous.named(time.Now()) {
		s := r.stack(u.stack)
		if s == nil {
			continue
		}
		f := u.finding
		if s.live.findings.Name(f) { // a rule may be about the user: it is judged again
			if d := s.granted(); d != nil && d.Drift.Judge(f, time.Now()).Action == drift.Reverted && r.repairs != nil {
				s.live.addPending(map[plan.ObjectID]time.Time{f.ID: signOf(f)})
				r.repairs.Add(s.Name)
			}
		}
		note := fmt.Sprintf("%s %s by %s", f.ID, f.Class, f.Who())
		if o := f.Origin; o != nil {
			note += fmt.Sprintf(" from %s with %s", strings.Join(o.SourceIPs, ", "), o.UserAgent)
		}
		note = r.Scrub(note)
		r.recordFinding(ctx, s, ledger.Drift, "attributed", f, note)
		r.Log.InfoContext(ctx, "drift attributed", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("object", f.ID.String()),
			slog.String("finding", f.Ref), slog.String("actor", f.Who()), slog.String("what", note))
		r.tell(s.eventOf(EventDrift, "actor/"+f.Ref, note, f))
	}
}
