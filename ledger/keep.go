package ledger

import (
	"bytes"
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxKept bounds the bytes of documents that wait to be written.
const maxKept = 64 << 20

// kept are documents that belong to no entry by themselves: the bodies of entries
// name them. They are written while the daemon does other things, and before the next
// entry.
type kept struct {
	mu      sync.Mutex // guards what follows
	pending map[digest.Digest][]byte
	bytes   int
	writing sync.Mutex // held while pending is written
}

// Keep stores a document and returns its digest at once; empty for one that is
// larger than [MaxBody], or that comes while the disk takes nothing and too much waits
// already. An entry with a body that names the document is not in the log before that
// is durable, with all that was given before it: what cannot be stored fails that
// entry, and no other.
func (l *Ledger) Keep(doc []byte) digest.Digest {
	if len(doc) > MaxBody {
		return ""
	}
	d := digest.FromBytes(doc)
	l.kept.mu.Lock()
	if l.kept.pending == nil {
		l.kept.pending = map[digest.Digest][]byte{}
	}
	if _, ok := l.kept.pending[d]; !ok {
		l.kept.pending[d] = doc
		l.kept.bytes += len(doc)
	}
	full := l.kept.bytes > maxKept
	l.kept.mu.Unlock()
	if full {
		if l.writeKept() != nil { // a disk that takes nothing: it is not held in memory for ever
			l.forget(d)
			return ""
		}
		return d
	}
	l.qmu.Lock()
	defer l.qmu.Unlock()
	if !l.closed {
		l.commits.Go(func() { _ = l.writeKept() }) // as above
	}
	return d
}

func (l *Ledger) forget(d digest.Digest) {
	l.kept.mu.Lock()
	defer l.kept.mu.Unlock()
	l.kept.bytes -= len(l.kept.pending[d])
	delete(l.kept.pending, d)
}

// named reports whether one of the bodies names a document that is still to be
// written.
func (l *Ledger) named(bodies map[string][]byte) bool {
	l.kept.mu.Lock()
	defer l.kept.mu.Unlock()
	for d := range l.kept.pending {
		for _, b := range bodies {
			if bytes.Contains(b, []byte(d)) {
				return true
			}
		}
	}
	return false
}

// writeKept makes all documents durable that were given to Keep before.
func (l *Ledger) writeKept() error {
	l.kept.writing.Lock()
	defer l.kept.writing.Unlock()
	l.kept.mu.Lock()
	docs := maps.Clone(l.kept.pending)
	l.kept.mu.Unlock()
	if len(docs) == 0 {
		return nil
	}
	open, err := l.store.putAll(docs)
	if err == nil {
		err = l.store.keep(open)
	}
	if err != nil {
		return err
	}
	l.kept.mu.Lock()
	defer l.kept.mu.Unlock()
	for d, doc := range docs {
		delete(l.kept.pending, d)
		l.kept.bytes -= len(doc)
	}
	return nil
}
