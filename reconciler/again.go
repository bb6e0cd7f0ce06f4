package reconciler

import (
	"context"
	"log/slog"
	"time"
)

const (
	// lookAgainAfter is how often it is looked whether the evidence changed that a
	// stack was denied for. That costs a listing per artifact.
	lookAgainAfter = 30 * time.Second
	// judgeAgainAfter is when a denied stack is judged again in any case: what
	// denied it may be a role, a quota or an exception that ends.
	judgeAgainAfter = 10 * time.Minute
)

// lookAgain has a denied stack judged again when the evidence about what it
// names changed, and returns when to look once more.
func (r *Reconciler) lookAgain(ctx context.Context, s *stack) time.Duration {
	s.mu.Lock()
	p, looked, judged, phase := s.unproven, s.looked, s.judgedAt, s.status.Phase
	s.mu.Unlock()
	if phase != Denied || s.isHeld() {
		return 0
	}
	if time.Since(judged) > judgeAgainAfter {
		s.mu.Lock()
		s.judgedAt = time.Now()
		s.mu.Unlock()
		r.queue.Add(request{reconcileStack, s.Name})
		return 0
	}
	if p == nil || len(p.named) == 0 {
		return lookAgainAfter
	}
	now, err := r.Artifacts.Fingerprint(ctx, s.Environment, p.named)
	if err != nil {
		r.Log.DebugContext(ctx, "evidence not looked at", slog.String("stack", s.Name), slog.String("error", r.Scrub(err.Error())))
		return lookAgainAfter
	}
	if looked == now {
		return lookAgainAfter
	}
	// The first time this judges once more: what came between the judgement and
	// this look would be overlooked for ever.
	s.mu.Lock()
	s.looked = now
	s.mu.Unlock()
	r.queue.Add(request{reconcileStack, s.Name})
	return 0
}
