package ledger

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/durable"
)

const (
	// maxJournaled is the largest body, in bytes, that is made durable by the journal. Of
	// larger ones the file itself is synced.
	maxJournaled = 1 << 20
	// journalSize is how many bytes the journal may have before it is begun anew.
	journalSize = 16 << 20

	journalHead = sha256.Size + 8 // a record: the digest of a body, its length, and the body
)

// journal makes bodies durable whose files are there, but may not survive a power cut:
// it holds what was written to them, and one sync of it does for all bodies of a group of
// entries. To sync each file and its folder was most of what an entry cost. Now and then
// all files are synced together, and the journal begins anew. [Open] writes again what it
// holds; nobody else has to know that it is there.
type journal struct {
	dir string // of the bodies

	mu     sync.Mutex // guards what follows
	file   *os.File   // nil: none is open
	size   int64      // of file
	broken bool       // adding to it failed: what it holds is not known

	flushing sync.Mutex // held while files are synced
}

func (j *journal) path() string { return filepath.Join(j.dir, "journal") }

// old is the journal whose files are being synced.
func (j *journal) old() string { return j.path() + ".old" }

// add makes bodies durable whose files are there.
func (j *journal) add(docs map[digest.Digest][]byte) error {
	if len(docs) == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		if err := j.begin(); err != nil {
			return err
		}
	}
	var records []byte
	for _, b := range docs {
		sum := sha256.Sum256(b)
		records = append(records, sum[:]...)
		records = binary.BigEndian.AppendUint64(records, uint64(len(b)))
		records = append(records, b...)
	}
	_, err := j.file.Write(records)
	if err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		err = j.there()
	}
	if err != nil {
		_ = j.file.Close() // the first error says more
		j.file, j.broken = nil, true
		return err
	}
	j.size += int64(len(records))
	return nil
}

// begin begins an empty journal. What a broken one held is made durable before.
func (j *journal) begin() error {
	if j.broken {
		if err := durable.SyncAll(j.dir); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(j.path(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := durable.Sync(j.dir); err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size, j.broken = f, 0, false
	return nil
}

// there makes sure that the file that is open has its name still.
func (j *journal) there() error {
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

// flush syncs all files of which the journal holds the content, and begins it anew. What
// is added meanwhile stays in it.
func (j *journal) flush() error {
	j.flushing.Lock()
	defer j.flushing.Unlock()
	for {
		last, err := j.turn()
		if err != nil {
			return err
		}
		if _, err := os.Lstat(j.old()); err == nil {
			if err := durable.SyncAll(j.dir); err != nil {
				return err
			}
			if err := errors.Join(os.Remove(j.old()), durable.Sync(j.dir)); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// turn has what is added from now on go to a new file, unless a flush that failed left one
// behind, which comes first. It reports whether nothing is left to turn.
func (j *journal) turn() (last bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := os.Lstat(j.old()); err == nil {
		return false, nil
	}
	if j.file == nil { // nothing was added, or it is broken, which begin makes up for
		return true, nil
	}
	if err := os.Rename(j.path(), j.old()); err != nil {
		return false, err
	}
	err = j.file.Close()
	j.file, j.size = nil, 0
	return true, err
}

// replay calls put for each body that a journal holds which was left behind, and then
// removes it. What a crash cut off was never said to be durable.
func (j *journal) replay(put func(digest.Digest, []byte) error) error {
	found := false
	for _, name := range []string{j.old(), j.path()} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
		if err := errors.Join(records(bufio.NewReader(f), put), f.Close()); err != nil {
			return err
		}
	}
	if !found {
		return nil
	}
	if err := durable.SyncAll(j.dir); err != nil {
		return err
	}
	for _, name := range []string{j.old(), j.path()} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return durable.Sync(j.dir)
}

// records calls put for each record of a journal up to its end, or to one that is not whole.
func records(r io.Reader, put func(digest.Digest, []byte) error) error {
	for {
		var head [journalHead]byte
		if _, err := io.ReadFull(r, head[:]); ended(err) {
			return nil
		} else if err != nil {
			return err
		}
		n := binary.BigEndian.Uint64(head[sha256.Size:])
		if n > maxJournaled {
			return nil
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); ended(err) {
			return nil
		} else if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		if string(sum[:]) != string(head[:sha256.Size]) {
			return nil
		}
		if err := put(digest.NewDigestFromBytes(digest.SHA256, sum[:]), b); err != nil {
			return err
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
