package ledger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/durable"
)

const (
	// maxJournaled is the largest body, in bytes, that is made durable by the journal. Of
	// larger ones the file itself is synced.
	maxJournaled = 1 << 20
	// journalSize is how many bytes the journal may have before it is begun anew, and
	// journalLimit where nothing is added any more before that is done.
	journalSize  = 32 << 20
	journalLimit = 4 * journalSize

	journalHead = sha256.Size + 8 // a record: the digest of a body, its length, and the body
)

// journal makes bodies durable whose files are there, but may not survive a power cut:
// it holds what was written to them, and one sync of it does for all bodies of a group of
// entries. To sync each file and its folder was most of what an entry cost. When there is
// time, each file is compared with the journal and synced, and the journal begins anew.
//
// After a sync that failed no later one is believed, since the kernel may have dropped what
// it could not write: then, and when [Open] finds a journal that was left behind, the files
// are written again.
type journal struct {
	store store // of the bodies

	mu     sync.Mutex // guards what follows
	file   *os.File   // nil: none is open
	size   int64      // of what is whole in it
	broken bool       // adding to it failed

	flushing sync.Mutex // held while files are synced, and guards doubtful
	doubtful bool       // a flush failed
}

func (j *journal) dir() string  { return j.store.path("bodies") }
func (j *journal) path() string { return filepath.Join(j.dir(), "journal") }

// old is the journal whose files are being synced.
func (j *journal) old() string { return j.path() + ".old" }

// add makes bodies durable whose files are there.
func (j *journal) add(docs map[digest.Digest][]byte) error {
	if len(docs) == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.size > journalLimit {
		return fmt.Errorf("%d bytes of documents wait to be synced", j.size)
	}
	if j.file == nil || j.broken {
		if err := j.begin(); err != nil {
			return err
		}
	}
	n := 0
	for _, b := range docs {
		n += journalHead + len(b)
	}
	records := make([]byte, 0, n)
	for d, b := range docs {
		sum := sha256.Sum256(b)
		if d != digest.NewDigestFromBytes(digest.SHA256, sum[:]) {
			return fmt.Errorf("the document %s was changed while it was stored", d)
		}
		records = append(records, sum[:]...)
		records = binary.BigEndian.AppendUint64(records, uint64(len(b)))
		records = append(records, b...)
	}
	_, err := j.file.WriteAt(records, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		err = j.named()
	}
	if err != nil {
		j.broken = true
		return err
	}
	j.size += int64(n)
	return nil
}

// begin begins an empty journal. What a broken one holds is written again before.
func (j *journal) begin() error {
	if j.broken {
		if err := j.all(context.Background(), io.NewSectionReader(j.file, 0, j.size), j.store.rewrite); err != nil {
			return err
		}
		_ = j.file.Close() // nothing depends on it any more
		j.file, j.size, j.broken = nil, 0, false
	}
	f, err := os.OpenFile(j.path(), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := durable.Sync(j.dir()); err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, 0
	return nil
}

// named makes sure that the file that is open has its name still.
func (j *journal) named() error {
	named, err := os.Stat(j.path())
	if err != nil {
		return err
	}
	open, err := j.file.Stat()
	if err == nil && !os.SameFile(named, open) {
		err = errors.New("the journal of bodies was replaced by somebody else")
	}
	return err
}

// full reports whether it is time to flush.
func (j *journal) full() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size > journalSize
}

// flush makes all files durable of which the journal holds the content, and begins it anew.
// What is added meanwhile stays in it. When ctx ends, what is left stays for the next one;
// while another flush is under way, the error is errFlushing.
func (j *journal) flush(ctx context.Context) error {
	if !j.flushing.TryLock() {
		return errFlushing
	}
	defer j.flushing.Unlock()
	for {
		last, err := j.turn()
		if err != nil {
			return err
		}
		if err := j.settle(ctx); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// turn has what is added from now on go to a new file, unless there is one already whose
// bodies are to be synced, which come first. It reports whether nothing is left to turn.
func (j *journal) turn() (last bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := os.Lstat(j.old()); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if j.file == nil {
		return true, nil
	}
	if j.broken {
		if err := j.begin(); err != nil {
			return false, err
		}
	}
	if err := os.Rename(j.path(), j.old()); err != nil {
		return false, err
	}
	err = j.file.Close()
	j.file, j.size = nil, 0
	return true, err
}

// settle makes the bodies of the old journal durable, and removes it.
func (j *journal) settle(ctx context.Context) error {
	put := j.store.confirm
	if j.doubtful {
		put = j.store.rewrite
	}
	f, err := os.Open(j.old())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(j.all(ctx, f, put), f.Close())
	}
	if err == nil {
		err = os.Remove(j.old())
	}
	if err == nil {
		err = durable.Sync(j.dir())
	}
	j.doubtful = err != nil
	return err
}

var (
	errDamaged  = errors.New("the journal of bodies is damaged")
	errFlushing = errors.New("the journal of bodies is being flushed")
)

// replay writes again what journals hold that were left behind, and removes them. What a
// crash cut off was never said to be durable; a journal with more than that behind a record
// that cannot be read is kept under another name. The caller syncs the folder.
func (j *journal) replay() error {
	for _, name := range []string{j.old(), j.path()} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		left := 0
		if err == nil {
			left, err = j.each(context.Background(), f, j.store.rewrite)
			err = errors.Join(err, f.Close())
		}
		switch {
		case err != nil:
		case left > journalHead+maxJournaled:
			err = os.Rename(name, fmt.Sprintf("%s.damaged-%d", name, time.Now().UnixNano()))
		default:
			err = os.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// all calls put for each body of a journal that this process wrote: any damage is an error,
// since what is in memory was compared by nobody.
func (j *journal) all(ctx context.Context, r io.Reader, put func(digest.Digest, []byte) error) error {
	left, err := j.each(ctx, r, put)
	if err == nil && left > 0 {
		err = errDamaged
	}
	return err
}

// each calls put for each body of a journal, and syncs their folders. It goes over a body
// that is not what its record says, and ends at a record that is not whole. It returns how
// many bytes it could not use.
func (j *journal) each(ctx context.Context, r io.Reader, put func(digest.Digest, []byte) error) (left int, err error) {
	in := bufio.NewReader(r)
	dirs := map[string]bool{}
	g, going := errgroup.WithContext(ctx)
	g.SetLimit(bodySyncs)
	for going.Err() == nil {
		b, bad, err := record(in)
		if err != nil {
			return 0, errors.Join(err, g.Wait())
		}
		if left += bad; b == nil && bad > 0 {
			continue
		}
		if b == nil {
			break
		}
		d := digest.FromBytes(b)
		dirs[filepath.Dir(j.store.bodyPath(d))] = true
		g.Go(func() error { return put(d, b) })
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return 0, err
	}
	rest, err := io.Copy(io.Discard, in)
	return left + int(rest), errors.Join(err, j.store.syncDirs(dirs))
}

// record reads the body of the next record; nil where there is none. Of one whose content is
// not what its digest says it returns the size.
func record(r *bufio.Reader) (b []byte, bad int, err error) {
	head, err := r.Peek(journalHead)
	if errors.Is(err, io.EOF) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint64(head[sha256.Size:])
	if n > maxJournaled {
		return nil, 0, nil
	}
	whole := make([]byte, journalHead+int(n))
	if n, err := io.ReadFull(r, whole); errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, n, nil
	} else if err != nil {
		return nil, 0, err
	}
	if sum := sha256.Sum256(whole[journalHead:]); !bytes.Equal(sum[:], whole[:sha256.Size]) {
		return nil, len(whole), nil
	}
	return whole[journalHead:], 0, nil
}
