package ledger

import (
	"context"
	"errors"
)

// Rest has a quiet time begin, if it can.
func (l *Ledger) Rest() bool { return l.rest(0) }

// Resting says whether there is no writer.
func (l *Ledger) Resting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writer == nil
}

func (l *Ledger) FlushBodies(ctx context.Context) error {
	if err := l.store.journal.flush(ctx); !errors.Is(err, errFlushing) {
		return err
	}
	return nil
}
