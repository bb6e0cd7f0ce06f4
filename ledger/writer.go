package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

const (
	groupSize          = 64 // entries that one write of the tree may add
	groupAge           = 200 * time.Microsecond
	checkpointInterval = 100 * time.Millisecond // the least that Tessera takes
	closeTimeout       = 10 * time.Second

	// quietTime is how long nothing is appended before the writer is closed.
	quietTime = 5 * time.Second
)

// writer is Tessera's appender. While it is open it looks at its files some
// twenty times a second, which is most of what an idle daemon would do; so the
// ledger has one only while something is written.
type writer struct {
	add      tessera.AddFn
	shutdown func(context.Context) error
	stop     context.CancelFunc
}

// openWriter opens the log's writer. It must be known what is in the log, since
// Tessera starts a new log wherever its state file is missing.
func (l *Ledger) openWriter(ctx context.Context) error {
	if err := l.store.probe(); err != nil {
		return err
	}
	driver, err := posix.New(ctx, posix.Config{Path: l.store.dir})
	if err != nil {
		return err
	}
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(l.signer).
		WithBatching(groupSize, groupAge).
		WithCheckpointInterval(checkpointInterval).
		WithShutdownTimeout(closeTimeout)
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		stop()
		return err
	}
	l.writer = &writer{add: appender.Add, shutdown: shutdown, stop: stop}
	return nil
}

// needWriter opens the writer if it was closed in a quiet time, and refuses to
// if the log is not what it was then. It holds l.mu.
func (l *Ledger) needWriter(ctx context.Context) error {
	if l.ended {
		return errors.New("the ledger is closed")
	}
	l.wrote = time.Now()
	if l.writer != nil {
		return nil
	}
	t, err := l.store.state()
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the log's .state/treeState is gone: stop holdfast and restore the ledger folder from a copy")
	}
	if err != nil {
		return err
	}
	if t != l.resting {
		return fmt.Errorf("the log was changed by somebody else: it has %d entries with the root %s, but had %d with %s: stop holdfast and look for who did",
			t.N, t.Hash, l.resting.N, l.resting.Hash)
	}
	if err := l.openWriter(ctx); err != nil {
		return err
	}
	select {
	case l.opened <- struct{}{}:
	default:
	}
	return nil
}

// rest closes the writer if it was not needed for quiet and the checkpoint
// covers everything. It says whether the writer is closed.
func (l *Ledger) rest(quiet time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writer == nil {
		return true
	}
	if l.dirty || time.Since(l.wrote) < quiet || l.covered() != l.state.size {
		return false
	}
	t, err := l.store.state()
	if err != nil || uint64(t.N) != l.state.size {
		return false
	}
	l.writer.stop()
	l.writer, l.resting = nil, t
	return true
}
