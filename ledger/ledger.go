// Package ledger owns the record of what was seen, decided and done: an
// append-only Merkle log of small entries in the C2SP tlog-tiles layout with
// signed checkpoints, and a content-addressed store of the documents that the
// entries name. docs/ledger-format.md describes the files.
//
// It guarantees that an entry is durable, with its bodies, when [Ledger.Append]
// returns; that times never run back; that only one process writes; and that
// whatever is read was checked against its hash. A process that is killed at
// any instruction leaves a valid log.
//
// It refuses to open a log that is shorter than, or inconsistent with, a
// checkpoint that was signed before, and to append an entry that breaks the
// rules that ledger/fsck checks. It does not mask: callers hand it no secret.
package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"
	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	pollInterval = 10 * time.Millisecond

	// maxSkew is how far the clock may be behind the last entry before an
	// append has to wait. Within it the last entry's time is used again.
	maxSkew = 2 * time.Second

	// lagAlarm is how long the checkpoint may lag before Run says so, and
	// lagRepeat how often it repeats itself.
	lagAlarm  = 2 * time.Second
	lagRepeat = time.Minute
)

// ErrClock says that the clock of the machine cannot be believed.
var ErrClock = errors.New("the clock went back")

// ErrLocked says that another process has the ledger open for writing.
var ErrLocked = errors.New("another process has the ledger open")

// Config says where a ledger is and who signs it.
type Config struct {
	// Dir is the folder of the log. It is made if it does not exist.
	Dir string
	// Signer signs checkpoints; its name is the origin of the log.
	Signer note.Signer
	// Verifier is the verifier key of Signer, as LoadOrCreateKey returns it.
	Verifier string
	// MinCheckpoint is optional: the newest checkpoint known from elsewhere (the
	// target's mark, a witness). Open refuses a log that does not contain it.
	MinCheckpoint []byte
	// OnLag is optional. Run calls it when the signed checkpoint stays behind the
	// log, again every minute, and with a zero Lag when it caught up.
	OnLag func(context.Context, Lag)
	// OnUnsynced is optional. It is called, at most every ten seconds, when the files of
	// bodies could not be synced, and with nil when they were after all. Meanwhile they are
	// in the journal, which grows.
	OnUnsynced func(context.Context, error)
}

// Lag is how far the signed checkpoint is behind the log.
type Lag struct {
	Entries uint64        // durable entries that no checkpoint covers
	For     time.Duration // since when there have been any
}

// Numbered is an entry with its position.
type Numbered struct {
	Index Index `json:"index"`
	Entry Entry `json:"entry"`
}

// Ledger is a log that is open for writing. It is safe for concurrent use.
type Ledger struct {
	store      store
	signer     note.Signer
	verifier   note.Verifier
	onLag      func(context.Context, Lag)
	onUnsynced func(context.Context, error)
	lock       *flock.Flock
	opened     chan struct{} // tells Run that there is a writer again

	qmu        sync.Mutex
	queue      []*request
	committing bool          // a goroutine works through queue
	hurry      chan struct{} // closed when something in queue is not to wait; nil: nobody waits for it
	closed     bool
	commits    sync.WaitGroup
	flushes    context.Context // ended by Close
	endFlushes context.CancelFunc
	doubted    time.Time // when a flush failed last

	kept kept

	mu      sync.Mutex
	state   state
	dirty   bool // an append failed: what is on disk is not known
	mark    mark
	ended   bool      // the folder is unlocked
	writer  *writer   // nil in quiet times
	wrote   time.Time // when the writer was needed last
	resting tlog.Tree // what was in the log when writer was closed
}

// mark is a size of the log that no checkpoint was seen to cover since a time.
// The zero mark says that all is covered.
type mark struct {
	size uint64
	at   time.Time
}

// request is one entry on its way into the log.
type request struct {
	entry Entry
	open  map[digest.Digest][]byte // bodies that are not durable yet
	index Index
	err   error
	done  chan struct{}
}

// state is what Append needs to know of all entries before.
type state struct {
	size    uint64
	last    time.Time
	open    map[Index]Entry // intents that nothing has closed
	intents bits            // the indexes of all intents
	orders  []Numbered      // what people ordered, oldest first
}

// fold adds the next entry.
func (s *state) fold(i Index, e Entry) {
	s.size = uint64(i) + 1
	if e.Time.After(s.last) {
		s.last = e.Time
	}
	if e.Type == Intent {
		s.open[i] = e
		s.intents.set(uint64(i))
	}
	if e.Type.stands() {
		s.orders = append(s.orders, Numbered{i, e})
	}
	if e.Type.closes() && e.Intent != nil {
		delete(s.open, *e.Intent)
	}
}

// bits is a set of small numbers.
type bits []uint64

func (b *bits) set(i uint64) {
	if need := int(i/64) + 1 - len(*b); need > 0 {
		*b = append(*b, make([]uint64, need)...)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bits) has(i uint64) bool { return i/64 < uint64(len(b)) && b[i/64]&(1<<(i%64)) != 0 }

// Open opens the log in cfg.Dir for writing, or starts one in an empty folder.
// It reads the whole log once and checks every entry against the tree. The
// error wraps [ErrLocked] if another process has it open. The caller must call
// Close; cancelling ctx later does not stop the ledger.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	const op = "ledger.Open"
	if cfg.Dir == "" || cfg.Signer == nil {
		return nil, fault.New(fault.Internal, op, "", "the ledger needs a folder and a signer")
	}
	v, err := note.NewVerifier(cfg.Verifier)
	if err != nil {
		return nil, fault.New(fault.Internal, op, "", "the ledger's verifier key: %w", err)
	}
	if v.Name() != cfg.Signer.Name() || v.KeyHash() != cfg.Signer.KeyHash() {
		return nil, fault.New(fault.Internal, op, "", "the ledger's verifier key does not belong to its signer")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, diskFault(op, err)
	}
	l := &Ledger{
		store:      store{dir: cfg.Dir, synced: new(synced), journal: &journal{store: store{dir: cfg.Dir}}},
		signer:     cfg.Signer,
		verifier:   v,
		onLag:      cfg.OnLag,
		onUnsynced: cfg.OnUnsynced,
		opened:     make(chan struct{}, 1),
		lock:       flock.New(filepath.Join(cfg.Dir, "lock"), flock.SetPermissions(0o600)),
		state:      state{open: map[Index]Entry{}},
	}
	l.flushes, l.endFlushes = context.WithCancel(context.WithoutCancel(ctx))
	ok, err := l.lock.TryLock()
	if err != nil {
		return nil, diskFault(op, err)
	}
	if !ok {
		return nil, fault.New(fault.Waiting, op, "stop the other holdfast process, or read with the offline commands",
			"%s: %w", cfg.Dir, ErrLocked)
	}
	if err := l.open(ctx, cfg); err != nil {
		_ = l.lock.Unlock() // the first error says more
		return nil, err
	}
	return l, nil
}

func (l *Ledger) open(ctx context.Context, cfg Config) error {
	const op = "ledger.Open"
	if err := l.check(ctx, cfg.MinCheckpoint); err != nil {
		return err
	}
	if err := l.store.prepareBodies(); err != nil {
		return diskFault(op, err)
	}
	if err := os.MkdirAll(l.store.path(".state"), 0o700); err != nil {
		return diskFault(op, err)
	}
	if err := l.openWriter(ctx); err != nil {
		return diskFault(op, err)
	}
	l.wrote = time.Now()
	return nil
}

// check reads the log that is there, and refuses one that was cut or changed.
func (l *Ledger) check(ctx context.Context, minCheckpoint []byte) error {
	const op = "ledger.Open"
	bad := func(err error) error {
		return fault.New(fault.Denied, op, "restore the ledger folder from a copy, or look for who changed it",
			"ledger %s: %w", l.store.dir, err)
	}
	t, err := l.store.state()
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.store.checkEmpty(); err != nil {
			return bad(err)
		}
		t, err = tlog.Tree{Hash: emptyRoot}, nil
	}
	if err != nil {
		return bad(err)
	}
	_, cp, err := l.store.checkpoint(l.verifier)
	switch {
	case errors.Is(err, fs.ErrNotExist) && t.N == 0:
		cp = t // a crash while the log was being made
	case err != nil:
		return bad(fmt.Errorf("checkpoint: %w", err))
	}
	if err := l.store.contains(t, cp); err != nil {
		return bad(err)
	}
	if len(minCheckpoint) > 0 {
		want, err := parseCheckpoint(minCheckpoint, l.verifier)
		if err != nil {
			return bad(fmt.Errorf("the checkpoint known from elsewhere: %w", err))
		}
		if err := l.store.contains(t, want); err != nil {
			return bad(err)
		}
	}
	err = l.store.scan(ctx, t, 0, func(i Index, e Entry) error {
		l.state.fold(i, e)
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return bad(err)
	}
	if cp.N < t.N {
		l.mark = mark{size: uint64(t.N), at: time.Now()}
	}
	return nil
}

// checkEmpty makes sure that no log was here before: Tessera starts a new one,
// and signs it, wherever its state file is missing.
func (s store) checkEmpty() error {
	for _, name := range []string{"checkpoint", "tile"} {
		if _, err := os.Lstat(s.path(name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf(".state/treeState is missing, but there is a %s", name)
		}
	}
	stored, err := os.ReadDir(s.path("bodies", "sha256"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if len(stored) > 0 {
		return errors.New(".state/treeState is missing, but there are bodies")
	}
	return err
}

// probe opens what Tessera is about to open and lock: where that fails, Tessera
// panics in a goroutine of its own, which nobody can recover. Several
// descriptors at once show that there are some left.
func (s store) probe() error {
	var files [4]*os.File
	var err error
	for i := range files {
		if files[i], err = os.OpenFile(s.path(".state", "treeState.lock"), os.O_CREATE|os.O_RDWR, 0o644); err != nil { // #nosec G302 G304 -- as Tessera does
			break
		}
	}
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing was written
		}
	}
	return err
}

// Append adds e with the documents in bodies, by role, and returns its index
// once all of it is durable. It sets the version, time and bodies of e and cuts
// the note. An error leaves open whether the entry is in the log: it may be,
// never the other way round.
//
// The kind of the error is Waiting if the clock is behind the last entry and e is
// no revocation or suspension, Transient if the disk does not take it, Internal
// if e is not a valid entry.
func (l *Ledger) Append(ctx context.Context, e Entry, bodies map[string][]byte) (Index, error) {
	const op = "ledger.Append"
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(e.Bodies) > 0 {
		return 0, fault.New(fault.Internal, op, "", "ledger entry: Append fills in the bodies")
	}
	if e.Intent != nil {
		l.mu.Lock()
		known := l.state.intents.has(uint64(*e.Intent))
		l.mu.Unlock()
		if !known {
			return 0, fault.New(fault.Internal, op, "", "ledger entry: %d is no intent", *e.Intent)
		}
		e.Intent = new(*e.Intent) // the caller may change its own
	}
	if l.named(bodies) {
		if err := l.writeKept(); err != nil {
			return 0, diskFault(op, err)
		}
	}
	names, open, err := l.store.putBodies(bodies)
	if err != nil {
		return 0, diskFault(op, err)
	}
	e.Bodies = names
	if e, err = normalise(e); err != nil {
		return 0, fault.New(fault.Internal, op, "", "ledger entry: %w", err)
	}

	r := &request{entry: e, open: open, done: make(chan struct{})}
	l.qmu.Lock()
	if l.closed {
		l.qmu.Unlock()
		return 0, fault.New(fault.Transient, op, "", "the ledger is closed")
	}
	l.queue = append(l.queue, r)
	if l.hurry != nil && !e.Type.patient() {
		close(l.hurry)
		l.hurry = nil
	}
	if !l.committing {
		l.committing = true
		l.commits.Go(func() { l.drain(context.WithoutCancel(ctx)) })
	}
	l.qmu.Unlock()

	select {
	case <-r.done:
		return r.index, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// drain commits what is queued, group by group, until nothing is left.
func (l *Ledger) drain(ctx context.Context) {
	for {
		l.gather()
		l.qmu.Lock()
		group := l.queue[:min(len(l.queue), groupSize)]
		l.queue = l.queue[len(group):]
		if len(group) == 0 {
			l.queue, l.committing = nil, false
			l.qmu.Unlock()
			return
		}
		l.qmu.Unlock()

		ready := l.keepBodies(group)
		l.mu.Lock()
		err := l.commit(ctx, ready)
		l.mu.Unlock()
		for _, r := range group {
			if r.err == nil {
				r.err = err
			}
			close(r.done)
		}
	}
}

// keepBodies makes the bodies of a group durable, and returns the requests of which that
// is so. The others get the error.
func (l *Ledger) keepBodies(group []*request) []*request {
	open := map[digest.Digest][]byte{}
	for _, r := range group {
		maps.Copy(open, r.open)
	}
	err := l.store.keep(open)
	if l.store.journal.full() {
		l.flushBodies()
	}
	if err == nil {
		return group
	}
	var ready []*request
	for _, r := range group {
		if len(r.open) > 0 {
			r.err = diskFault("ledger.Append", err)
		} else {
			ready = append(ready, r)
		}
	}
	return ready
}

// flushRetry is how long a flush that failed is not tried again.
const flushRetry = 10 * time.Second

// flushBodies has the files of bodies synced while other things are done. Where that fails,
// it is told, and the journal goes on.
func (l *Ledger) flushBodies() {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	if l.closed || time.Since(l.doubted) < flushRetry {
		return
	}
	l.commits.Go(func() {
		err := l.store.journal.flush(l.flushes)
		if l.flushes.Err() != nil || errors.Is(err, errFlushing) {
			return
		}
		l.qmu.Lock()
		told := !l.doubted.IsZero()
		if l.doubted = (time.Time{}); err != nil {
			l.doubted = time.Now()
		}
		l.qmu.Unlock()
		switch {
		case l.onUnsynced == nil:
		case err != nil:
			l.onUnsynced(l.flushes, diskFault("ledger.Run", err))
		case told:
			l.onUnsynced(l.flushes, nil)
		}
	})
}

// gatherTime is how long entries wait for others to be committed with, while none of
// them is waited for: a commit costs the same for one and for many.
const gatherTime = 10 * time.Millisecond

// gather waits for more entries, unless one is in the queue that is not to wait.
func (l *Ledger) gather() {
	l.qmu.Lock()
	if len(l.queue) == 0 || len(l.queue) >= groupSize || l.closed || slices.ContainsFunc(l.queue, func(r *request) bool { return !r.entry.Type.patient() }) {
		l.qmu.Unlock()
		return
	}
	hurry := make(chan struct{})
	l.hurry = hurry
	l.qmu.Unlock()
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-hurry:
	}
	l.qmu.Lock()
	defer l.qmu.Unlock()
	l.hurry = nil
}

// timely returns the time that the entries of a group get and those requests that
// get one: while the clock is behind, only what takes trust or leave away is not
// to wait (invariant 6), and gets the time of the newest entry. The others get
// the error. It holds l.mu.
func (l *Ledger) timely(group []*request) (time.Time, []*request) {
	now, err := l.now()
	if err == nil {
		return now, group
	}
	var narrowing []*request
	for _, r := range group {
		if r.entry.Type.narrows() {
			narrowing = append(narrowing, r)
		} else {
			r.err = err
		}
	}
	return l.state.last, narrowing
}

// commit adds one group to the tree. All its entries get one time, so their
// order among each other does not matter. The error is that of all requests that
// have none of their own. It holds l.mu.
func (l *Ledger) commit(ctx context.Context, group []*request) error {
	const op = "ledger.Append"
	if l.dirty {
		if err := l.catchUp(ctx); err != nil {
			return diskFault(op, err)
		}
		l.dirty = false
	}
	now, group := l.timely(group)
	if len(group) == 0 {
		return nil
	}
	leaves := make([][]byte, len(group))
	var err error
	for i, r := range group {
		r.entry.Time = now
		if leaves[i], err = encode(r.entry); err != nil {
			return fault.Wrap(fault.Internal, op, "", err)
		}
	}
	if err := l.needWriter(ctx); err != nil {
		return diskFault(op, err)
	}
	if err := l.store.probe(); err != nil {
		return diskFault(op, err)
	}

	futures := make([]tessera.IndexFuture, len(group))
	for i, leaf := range leaves {
		futures[i] = l.writer.add(ctx, tessera.NewEntry(leaf))
	}
	for i, f := range futures {
		idx, ferr := f()
		group[i].index = Index(idx.Index)
		err = errors.Join(err, ferr)
	}
	if err == nil {
		err = l.readBack(group, leaves)
	}
	if err != nil {
		l.dirty = true
		return diskFault(op, err)
	}
	slices.SortFunc(group, func(a, b *request) int { return cmp.Compare(a.index, b.index) })
	for _, r := range group {
		if uint64(r.index) != l.state.size {
			l.dirty = true
			return diskFault(op, fmt.Errorf("the tree gave entry %d the index %d", l.state.size, r.index))
		}
		l.state.fold(r.index, r.entry)
	}
	l.touch()
	return nil
}

// Now returns the time that an entry would get. No clock is believed that is
// behind the newest entry by more than two seconds (invariant 13): then the
// error wraps [ErrClock], and is of kind fault.Waiting.
func (l *Ledger) Now() (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now()
}

// now is Now with l.mu held.
func (l *Ledger) now() (time.Time, error) {
	now, last := time.Now().UTC().Truncate(time.Millisecond), l.state.last
	if now.Before(last.Add(-maxSkew)) {
		return now, fault.New(fault.Waiting, "ledger.Now", "set the clock of this machine right",
			"%w: it says %s, and the newest entry of the ledger is from %s", ErrClock, now.Format(time.RFC3339), last.Format(time.RFC3339))
	}
	if now.Before(last) {
		now = last
	}
	return now, nil
}

// readBack makes sure that a reader finds exactly what was added, also if the
// bundle that the group went into was damaged before.
func (l *Ledger) readBack(group []*request, leaves [][]byte) error {
	t, err := l.store.state()
	if err != nil {
		return err
	}
	bundles := map[int64][][]byte{}
	for i, r := range group {
		idx := int64(r.index)
		n := idx / tileWidth
		if idx >= t.N {
			return fmt.Errorf("entry %d is not in the tree", idx)
		}
		if bundles[n] == nil {
			if bundles[n], err = l.store.bundle(t, n); err != nil {
				return err
			}
		}
		if string(bundles[n][idx%tileWidth]) != string(leaves[i]) {
			return fmt.Errorf("entry %d reads back as something else", idx)
		}
	}
	return nil
}

// catchUp learns what a failed append left in the log. It holds l.mu.
func (l *Ledger) catchUp(ctx context.Context) error {
	t, err := l.store.state()
	if err != nil {
		return err
	}
	if uint64(t.N) < l.state.size {
		return fmt.Errorf("the log has %d entries, but had %d", t.N, l.state.size)
	}
	err = l.store.scan(ctx, t, Index(l.state.size), func(i Index, e Entry) error {
		l.state.fold(i, e)
		return nil
	})
	l.touch()
	return err
}

// touch notes that the log grew. It holds l.mu.
func (l *Ledger) touch() {
	if l.mark == (mark{}) {
		l.mark = mark{size: l.state.size, at: time.Now()}
	}
}

// Run watches that the signed checkpoint keeps up with the log, tells
// Config.OnLag when it does not, and lets the log's files alone in quiet times.
// It blocks until ctx is done and returns nil.
func (l *Ledger) Run(ctx context.Context) error {
	t := time.NewTicker(lagAlarm / 4)
	defer t.Stop()
	var told time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		lag := l.Lag()
		switch {
		case l.onLag == nil:
		case lag.For >= lagAlarm && time.Since(told) >= lagRepeat:
			told = time.Now()
			l.onLag(ctx, lag)
		case lag.Entries == 0 && !told.IsZero():
			told = time.Time{}
			l.onLag(ctx, Lag{})
		}
		if lag.Entries > 0 {
			l.store.unstick()
		}
		if lag.Entries > 0 || !l.rest(quietTime) {
			continue
		}
		l.flushBodies()
		t.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-l.opened:
			t.Reset(lagAlarm / 4)
		}
	}
}

// Lag returns how far the signed checkpoint is behind. Up to 100 ms is normal.
// A checkpoint that cannot be read counts as covering nothing.
func (l *Ledger) Lag() Lag {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mark == (mark{}) {
		return Lag{}
	}
	size, covered := l.state.size, l.covered()
	switch {
	case covered >= size:
		l.mark = mark{}
		return Lag{}
	case covered >= l.mark.size: // it moves on, others came meanwhile
		l.mark = mark{size: size, at: time.Now()}
	}
	return Lag{Entries: size - covered, For: time.Since(l.mark.at)}
}

// covered returns how many entries the published checkpoint commits to.
func (l *Ledger) covered() uint64 {
	_, t, err := l.store.checkpoint(l.verifier)
	if err != nil {
		return 0
	}
	return uint64(t.N)
}

// Size returns the number of durable entries.
func (l *Ledger) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.size
}

// DanglingIntents returns the intents that no result and no revert has closed,
// oldest first. It reads no file.
func (l *Ledger) DanglingIntents(ctx context.Context) ([]Numbered, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Numbered, 0, len(l.state.open))
	for _, i := range slices.Sorted(maps.Keys(l.state.open)) {
		out = append(out, Numbered{Index: i, Entry: l.state.open[i]})
	}
	return out, nil
}

// Orders returns what people ordered (revocations, suspensions and their ends,
// signed orders), oldest first: the ledger is where they are kept. It reads no file.
func (l *Ledger) Orders(ctx context.Context) ([]Numbered, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.state.orders), nil
}

// Contains checks that the log goes on from a checkpoint that it signed before
// and that was kept elsewhere. Otherwise the log was lost, restored from an
// older copy, or is another one; the error is of kind fault.Denied.
func (l *Ledger) Contains(_ context.Context, checkpoint []byte) error {
	const op = "ledger.Contains"
	lost := func(err error) error {
		return fault.New(fault.Denied, op, "restore the newest copy of the state directory", "the ledger here is not the one that signed what is known elsewhere: %w", err)
	}
	want, err := parseCheckpoint(checkpoint, l.verifier)
	if err != nil {
		return lost(err)
	}
	t, err := l.store.state()
	if err != nil {
		return diskFault(op, err)
	}
	if err := l.store.contains(t, want); err != nil {
		return lost(err)
	}
	return nil
}

// Origin names this log among all others: its name and the hash of its key, as
// verifier keys begin (C2SP signed-note).
func (l *Ledger) Origin() string {
	return fmt.Sprintf("%s+%08x", l.verifier.Name(), l.verifier.KeyHash())
}

// Entry returns entry i, checked against the tree.
func (l *Ledger) Entry(_ context.Context, i Index) (Entry, error) {
	t, err := l.store.state()
	if err != nil {
		return Entry{}, readFault("ledger.Entry", err)
	}
	e, err := l.store.entry(t, i)
	return e, readFault("ledger.Entry", err)
}

// Tail returns the last n entries, oldest first, checked against the tree.
func (l *Ledger) Tail(ctx context.Context, n int) ([]Numbered, error) {
	t, err := l.store.state()
	if err != nil {
		return nil, readFault("ledger.Tail", err)
	}
	out, err := l.store.tail(ctx, t, n)
	return out, readFault("ledger.Tail", err)
}

// Scan calls fn for each entry from index from on, in order, and stops at the
// first error, which it returns. Entries that are added meanwhile are left out.
func (l *Ledger) Scan(ctx context.Context, from Index, fn func(Index, Entry) error) error {
	t, err := l.store.state()
	if err != nil {
		return readFault("ledger.Scan", err)
	}
	return readFault("ledger.Scan", l.store.scan(ctx, t, from, fn))
}

// Body returns the document with digest d, checked against it.
func (l *Ledger) Body(_ context.Context, d digest.Digest) ([]byte, error) {
	b, err := l.store.body(d)
	return b, readFault("ledger.Body", err)
}

// Prove returns a c2sp.org/tlog-proof@v1 for entry i with the entry as its
// extra data. It waits until a checkpoint covers the entry.
func (l *Ledger) Prove(ctx context.Context, i Index) ([]byte, error) {
	const op = "ledger.Prove"
	if size := l.Size(); uint64(i) >= size {
		return nil, fault.New(fault.Invalid, op, "", "there is no entry %d: the log has %d", i, size)
	}
	if err := l.await(ctx, uint64(i)+1); err != nil {
		return nil, err
	}
	raw, t, err := l.store.checkpoint(l.verifier)
	if err != nil {
		return nil, readFault(op, err)
	}
	p, err := l.store.prove(raw, t, i)
	return p, readFault(op, err)
}

// Checkpoint returns the newest signed checkpoint.
func (l *Ledger) Checkpoint(_ context.Context) ([]byte, error) {
	raw, _, err := l.store.checkpoint(l.verifier)
	return raw, readFault("ledger.Checkpoint", err)
}

// Flush waits until a signed checkpoint covers everything appended before.
func (l *Ledger) Flush(ctx context.Context) error { return l.await(ctx, l.Size()) }

func (l *Ledger) await(ctx context.Context, size uint64) error {
	if l.covered() >= size {
		return nil
	}
	l.mu.Lock()
	err := l.needWriter(ctx) // it publishes the checkpoint again if that was lost in a quiet time
	l.mu.Unlock()
	if err != nil {
		return diskFault("ledger.Flush", err)
	}
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return fault.New(fault.Transient, "ledger.Flush", "look at the state directory: disk full, read-only or lost?",
				"no checkpoint covers the first %d entries yet: %w", size, ctx.Err())
		case <-t.C:
		}
		l.store.unstick()
		if l.covered() >= size {
			return nil
		}
	}
}

// Close waits for appends under way, publishes a last checkpoint and unlocks
// the folder. It takes at most some ten seconds. What was appended is durable
// also if it returns an error.
func (l *Ledger) Close() error {
	l.qmu.Lock()
	done := l.closed
	l.closed = true
	l.qmu.Unlock()
	if done {
		return nil
	}
	l.endFlushes()
	l.commits.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = l.store.journal.flush(ctx) // whoever opens the log next does what is left
	err := l.Flush(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writer != nil {
		if err == nil {
			err = l.writer.shutdown(ctx)
		}
		l.writer.stop()
		l.writer = nil
	}
	l.ended = true
	return errors.Join(err, l.lock.Unlock())
}

// diskFault classifies a failure to write. It is worth another try.
func diskFault(op string, err error) error {
	return fault.Wrap(fault.Transient, op, "look at the state directory: disk full, read-only or lost?", fmt.Errorf("ledger: %w", err))
}

// readFault classifies a failure to read something back.
func readFault(op string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.Wrap(fault.Internal, op, "run holdfast ledger verify", fmt.Errorf("ledger: %w", err))
}
