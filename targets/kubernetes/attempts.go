package kubernetes

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	maxAttempts = 8
	firstPause  = 5 * time.Millisecond
)

// attempts yields the number of each attempt at a write that others may get ahead of:
// at first without a pause, then after pauses that double, about 300 ms in all.
// Controllers answer what is written in a burst, which is over by then; whoever writes
// all the time wins, and is somebody to be named. It ends early with ctx.
func attempts(ctx context.Context) iter.Seq[int] {
	return func(yield func(int) bool) {
		pause := firstPause
		for i := range maxAttempts {
			if i > 1 {
				timer := time.NewTimer(pause/2 + rand.N(pause)) //nolint:gosec // jitter needs no secrecy
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
					return
				}
				pause *= 2
			}
			if !yield(i) {
				return
			}
		}
	}
}

// contended is the error of a write that others got ahead of at every attempt. It names them.
func (t *Target) contended(ctx context.Context, op string, res resource, id plan.ObjectID) error {
	if err := context.Cause(ctx); err != nil {
		return t.c.apiError(op, id, err)
	}
	live, err := t.as.get(ctx, res, id)
	if err != nil || live == nil {
		return fault.New(fault.Transient, op, "", "%s is written all the time", id)
	}
	return fault.New(fault.Transient, op, "find out who writes it without end, and stop that", "%s is written all the time; it is managed by %s", id, managers(live))
}
