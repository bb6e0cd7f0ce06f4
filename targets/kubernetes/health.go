package kubernetes

import (
	"context"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const opHealth = "targets/kubernetes.Healthy"

// explainAfter is how long an object may be on its way before somebody asks why.
const explainAfter = 3 * time.Second

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

// healthy looks at the objects that in selects, and asks about those of which the watch
// does not say enough. With explain it says why one is not healthy. A failure outranks
// what is still on its way.
func (t *Target) healthy(ctx context.Context, ren *rendering, explain bool, in func(*desired) bool) error {
	objs, res, err := t.placeAll(ctx, ren, nil)
	if err != nil {
		return err
	}
	errs := make([]error, len(objs))
	g := new(errgroup.Group)
	g.SetLimit(t.c.cfg.Workers)
	for i, o := range objs {
		if !in(o) {
			continue
		}
		switch v, known := t.c.stood(t, o.id); {
		case known && v.current:
			continue
		case known && v.progress != "" && time.Since(v.since) < explainAfter:
			errs[i] = notReady(o.id, status.InProgressStatus, t.c.cfg.Masker.Scrub(v.progress))
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
	return notReady(o.id, s.Status, text)
}

func notReady(id plan.ObjectID, s status.Status, text string) error {
	if s == status.FailedStatus {
		return fault.New(fault.Invalid, opHealth, "look at the object's events and logs", "%s failed: %s", id, text)
	}
	return fault.New(fault.Waiting, opHealth, "", "%s is %s: %s", id, s, text)
}
