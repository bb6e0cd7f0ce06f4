package reconciler

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Approve has findings of a stack reverted that nothing reverts by itself, because a
// rule asks a person first, only reports, or holds them back. refs name them; what is
// restored is what was granted, and nothing else. That a person said so is durable
// before anything is written. A finding that is not open, or cannot be reverted, is an
// error of kind fault.Invalid, and nothing is done.
func (r *Reconciler) Approve(ctx context.Context, name string, refs []string, reason string) error {
	const op = "reconciler.Approve"
	if err := r.orderable(name, reason, op); err != nil {
		return err
	}
	s, err := r.named(name)
	if err != nil {
		return err
	}
	d := s.granted()
	if d == nil {
		return fault.New(fault.Waiting, op, "", "nothing was applied yet")
	}
	if sus := r.suspension(s.Name); sus != nil {
		return sus.err()
	}
	open := s.live.findings.List()
	var ids []plan.ObjectID
	var entries []ledger.Entry
	for _, ref := range refs {
		i := slices.IndexFunc(open, func(f targets.Finding) bool { return f.Ref == ref })
		switch {
		case i < 0:
			return fault.New(fault.Invalid, op, "holdfast drift "+name+" lists what is open", "%s has no open finding %q%s", name, ref, listed(open))
		case open[i].Class == targets.Extra:
			return fault.New(fault.Invalid, op, "delete it by hand, or declare it", "%s: only a commit removes an object", open[i].ID)
		}
		ids = append(ids, open[i].ID)
		e := s.entry(ledger.Approved, "revert", r.Scrub(open[i].ID.String()+": "+reason))
		e.Subject = ref
		entries = append(entries, e)
	}
	for _, e := range entries {
		if _, err := r.Ledger.Append(ctx, e, nil); err != nil {
			return err
		}
	}
	r.Log.InfoContext(ctx, "approved", slog.String("stack", s.Name), slog.String("findings", strings.Join(refs, " ")), slog.String("reason", r.Scrub(reason)))
	return guarded(s, func() error { return r.revert(ctx, s, d, ids) })
}

func listed(open []targets.Finding) string {
	var refs []string
	for _, f := range open {
		refs = append(refs, f.Ref)
	}
	if len(refs) == 0 {
		return ""
	}
	return ", but " + strings.Join(refs, ", ")
}
