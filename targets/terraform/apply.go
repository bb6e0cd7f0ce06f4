package terraform

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// notReached is the outcome of a change that the tool did not come to.
const notReached = "not reached"

// Apply applies the saved plan that was granted, at the path and over the files
// that it was made from. The tool refuses a plan whose state has moved on, but
// not one whose world has: so Apply plans once more, and compares each granted
// change with what it finds, before the first write.
func (t *Target) Apply(ctx context.Context, g gate.Grant) (targets.Receipt, error) {
	started := time.Now()
	p, err := g.Plan()
	if err != nil {
		return targets.Receipt{Stack: t.spec.Stack, Started: started, Ended: time.Now()}, fault.WithStack(t.spec.Stack, err)
	}
	rec := targets.Receipt{Stack: t.spec.Stack, Plan: p.Digest(), Started: started}
	for _, c := range p.Changes {
		rec.Outcomes = append(rec.Outcomes, targets.Outcome{ID: c.ID, Action: c.Action, Err: notReached})
	}
	err = t.scrub(t.apply(ctx, p, &rec))
	rec.Ended = time.Now()
	return rec, fault.WithStack(t.spec.Stack, err)
}

func (t *Target) apply(ctx context.Context, p plan.Plan, rec *targets.Receipt) error {
	const op = "targets/terraform.Apply"
	s, ok := p.Private.(*sealed)
	if !ok || p.Target != Name || p.Stack != t.spec.Stack || p.Environment != t.spec.Environment {
		return fault.New(fault.Internal, op, "", "the plan is not this target's")
	}
	if got, err := s.payload(t.cfg.Masker); err != nil || got != p.Payload || s.stack != p.Stack || s.env != p.Environment {
		return fault.New(fault.Internal, op, "", "the saved plan is not the one that was judged")
	}
	if sum, err := s.r.sum(t.cfg.Masker); err != nil || sum != p.Rendered {
		return fault.New(fault.Internal, op, "", "the plan's files are not the rendering that was judged")
	}
	if p.Empty() && s.ends == "" {
		return nil
	}
	if sum, err := tools.sum(t.cfg.Binary); err != nil || sum != s.tool {
		return fault.New(fault.Transient, op, "", "%s is another one than planned: %w", t.cfg.Binary, targets.ErrStale)
	}
	return t.within(ctx, s.r, true, func(ctx context.Context, u *run) error {
		switch {
		case s.ends == orphaned:
			return u.letGo(ctx, p, rec)
		case p.Empty():
			return u.removeState(ctx)
		}
		now, _, err := u.plan(ctx, "now", s)
		if err != nil {
			return err
		}
		if err := fresh(p.Changes, now.changes); err != nil {
			return err
		}
		granted, err := u.keepPlan("granted", s.file)
		if err != nil {
			return fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
		}
		if err := u.apply(ctx, granted, rec); err != nil || s.ends == "" {
			return err
		}
		return u.removeState(ctx)
	})
}

// fresh reports an error wrapping ErrStale unless each granted change is still
// to be made, from the same values.
func fresh(granted, now []plan.Change) error {
	found := map[plan.ObjectID]plan.Change{}
	for _, c := range now {
		found[c.ID] = c
	}
	for _, c := range granted {
		n, ok := found[c.ID]
		what := ""
		switch {
		case !ok:
			what = "it is no longer needed"
		case n.Action != c.Action:
			what = fmt.Sprintf("it would be a %s now", n.Action)
		case n.Before != c.Before:
			what = "its values are others now"
		default:
			continue
		}
		return fault.New(fault.Transient, "targets/terraform.Apply", "", "%s: %s: %s: %w", c.ID, c.Action, what, targets.ErrStale)
	}
	return nil
}

// keepPlan puts a saved plan where the tool reads it and nothing in the sandbox can write to.
func (u *run) keepPlan(dir string, saved []byte) (name string, err error) {
	root := u.place.files()
	if err := root.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := root.WriteFile(path.Join(dir, planName), saved, 0o444); err != nil {
		return "", err
	}
	return path.Join(dir, planName), u.place.seal(dir)
}

// apply runs the tool and fills in the outcomes.
func (u *run) apply(ctx context.Context, granted string, rec *targets.Receipt) error {
	const op = "targets/terraform.Apply"
	var diags []diagnostic
	p := progress{rec: rec, failed: map[string]string{}}
	err := u.tool(ctx, u.t.cfg.Limits.Output, u.listener(ctx, slog.LevelInfo, &diags, p.message),
		"apply", "-json", "-no-color", "-input=false", "-auto-approve", u.file(granted))
	if err == nil {
		p.succeed()
		return nil
	}
	err = u.failure(op, u.describe(diags), err)
	p.fail(diags, func(d diagnostic) string { return u.t.cfg.Masker.Scrub(u.describe([]diagnostic{d})) })
	return err
}

// progress follows an apply through the tool's messages.
type progress struct {
	rec    *targets.Receipt
	failed map[string]string // address → what was tried
}

func (p *progress) message(m message) {
	addr := m.Hook.Resource.Addr
	switch m.Type {
	case "apply_start":
		// From here on it may have been written, whatever becomes of it.
		p.set(addr, "interrupted while it was applied", false)
	case "apply_complete":
		p.complete(addr, m.Hook.Action)
	case "apply_errored":
		p.failed[addr] = m.Hook.Action
		p.set(addr, "the "+m.Hook.Action+" failed", false)
	}
}

// complete marks what is done. A replace is done when both its halves are.
func (p *progress) complete(addr, action string) {
	for i := range p.rec.Outcomes {
		o := &p.rec.Outcomes[i]
		if address(o.ID) != addr {
			continue
		}
		half := ""
		switch {
		case o.Action != plan.Replace:
		case action == "delete" && o.Err != halfCreated:
			half = halfDeleted
		case action == "create" && o.Err != halfDeleted && o.Err != halfDeletedThenStarted:
			half = halfCreated
		}
		o.Err = half
	}
}

// The states of a replace between its halves.
const (
	halfDeleted            = "deleted, not created again"
	halfDeletedThenStarted = "deleted, interrupted while it was created again"
	halfCreated            = "created, the old one not deleted"
)

func (p *progress) set(addr, text string, all bool) {
	for i := range p.rec.Outcomes {
		o := &p.rec.Outcomes[i]
		if !all && address(o.ID) != addr || o.Err == "" {
			continue
		}
		switch o.Err {
		case halfDeleted:
			o.Err = halfDeletedThenStarted
		case halfCreated:
		default:
			o.Err = text
		}
	}
}

// succeed is for the end of an apply without an error: the tool says nothing
// about outputs, moves and imports on the way.
func (p *progress) succeed() {
	for i := range p.rec.Outcomes {
		p.rec.Outcomes[i].Err = ""
	}
}

func (p *progress) fail(diags []diagnostic, word func(diagnostic) string) {
	for i := range p.rec.Outcomes {
		o := &p.rec.Outcomes[i]
		for _, d := range diags {
			if d.Address != "" && d.Address == address(o.ID) && o.Err != "" {
				o.Err = strings.TrimSpace(o.Err + ": " + word(d))
				break
			}
		}
	}
}

// address returns the resource address that the tool's messages use.
func address(id plan.ObjectID) string {
	a, _, _ := strings.Cut(id.Name, deposedMark)
	return a
}
