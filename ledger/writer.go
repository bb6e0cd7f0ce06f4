package ledger

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"

	"github.com/holdfast-dev/holdfast/internal/fault"
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

// openWriter opens the log's writer, which lives until it is stopped: of ctx it
// takes the values alone. It must be known what is in the log, since Tessera
// starts a new log wherever its state file is missing.
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
		WithCheckpointRepublishInterval(0).           // no two writers publish at once, whatever stalls
		WithGarbageCollectionInterval(quietTime / 2). // of partial tiles: once at least before each rest
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
	const op = "ledger.Append"
	if l.ended {
		return fault.New(fault.Transient, op, "", "the ledger is closed")
	}
	l.wrote = time.Now()
	if l.writer != nil {
		return nil
	}
	t, err := l.store.state()
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Transient, op, "stop holdfast, and restore the ledger folder from a copy", "the log's .state/treeState is gone")
	}
	if err != nil {
		return err
	}
	if t != l.resting {
		return fault.New(fault.Transient, op, "stop holdfast, look for who did that, and restore the ledger folder from a copy",
			"the log was changed by somebody else: it has %d entries with the root %s, but had %d with %s", t.N, t.Hash, l.resting.N, l.resting.Hash)
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
// covers everything. It says whether the writer is closed. After an append that
// failed it stays open: what is on disk is not known before the next.
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
