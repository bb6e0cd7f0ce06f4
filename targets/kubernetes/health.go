package kubernetes

import (
	"context"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
)

const opHealth = "targets/kubernetes.Healthy"

// Healthy implements [targets.HealthChecker] by kstatus and the rules about custom
// kinds: one look, no waiting.
func (t *Target) Healthy(ctx context.Context, r targets.Rendered) error {
	ren, err := t.rendering(r)
	if err != nil {
		return fault.WithStack(t.spec.Stack, err)
	}
	err = t.healthy(ctx, ren, true, func(*desired) bool { return true })
	if err == nil || fault.KindOf(err) == fault.Waiting {
		err = joined(opHealth, []error{err, t.left(ctx)})
	}
	return fault.WithStack(t.spec.Stack, err)
}

// healthy looks at the objects that in selects. With explain it says why one is not. A failure outranks what is still on
// its way.
func (t *Target) healthy(ctx context.Context, ren *rendering, explain bool, in func(*desired) bool) error {
	objs, res, err := t.placeAll(ctx, ren, nil)
	if err != nil {
		return err
	}
	errs := make([]error, len(objs))
	g := new(errgroup.Group)
	g.SetLimit(t.c.cfg.Workers)
	for i, o := range objs {
		if !in(o) || t.c.healthy(t, o.id) {
			continue
		}
		g.Go(func() error {
			errs[i] = t.ready(ctx, o, res[i], explain)
			return nil
		})
	}
	_ = g.Wait() // each worker keeps its own error
	for _, err := range errs {
		if err != nil && fault.KindOf(err) != fault.Waiting {
			return err
		}
	}
	return joined(opHealth, errs)
}

func (t *Target) ready(ctx context.Context, o *desired, res resource, explain bool) error {
	live, err := t.c.self.get(ctx, res, o.id)
	if err != nil {
		return t.c.apiError(opHealth, o.id, err)
	}
	if live == nil {
		if _, err := t.ownedNow(ctx); err != nil { // it says which Jobs have run
			return err
		}
		if t.expired(o) {
			return nil
		}
		return fault.New(fault.Waiting, opHealth, "", "%s does not exist", o.id)
	}
	s, err := t.health(live)
	if err != nil {
		return fault.New(fault.Waiting, opHealth, "", "%s: its status cannot be read: %s", o.id, t.c.cfg.Masker.Scrub(err.Error()))
	}
	if s.Status == status.CurrentStatus {
		return nil
	}
	text := t.c.cfg.Masker.Scrub(s.Message)
	if explain {
		if why := t.explain(ctx, o.id, live); why != "" {
			text += "; " + why
		}
	}
	switch s.Status {
	case status.FailedStatus:
		return fault.New(fault.Invalid, opHealth, "look at the object's events and logs", "%s failed: %s", o.id, text)
	default:
		return fault.New(fault.Waiting, opHealth, "", "%s is %s: %s", o.id, s.Status, text)
	}
}
