package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Reader reads a ledger that another process may be writing: files only, no
// lock, up to the last signed checkpoint. It is safe for concurrent use.
type Reader struct {
	store     store
	verifiers []note.Verifier
}

// OpenReader returns a reader of the log in dir, whose checkpoint must be
// signed by one of the verifier keys.
func OpenReader(dir string, verifiers ...string) (*Reader, error) {
	const op = "ledger.OpenReader"
	if len(verifiers) == 0 {
		return nil, fault.New(fault.Invalid, op, "give the ledger's verifier key", "no verifier key for the ledger")
	}
	r := &Reader{store: store{dir: dir}}
	for _, k := range verifiers {
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fault.New(fault.Invalid, op, "", "ledger verifier key %q: %w", k, err)
		}
		r.verifiers = append(r.verifiers, v)
	}
	if _, _, err := r.tree(); err != nil {
		return nil, readFault(op, err)
	}
	return r, nil
}

// tree returns the newest checkpoint and its tree.
func (r *Reader) tree() ([]byte, tlog.Tree, error) {
	raw, err := readFile(r.store.path("checkpoint"), maxCheckpoint)
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	var errs []error
	for _, v := range r.verifiers {
		t, err := parseCheckpoint(raw, v)
		if err == nil {
			return raw, t, nil
		}
		errs = append(errs, err)
	}
	return nil, tlog.Tree{}, fmt.Errorf("checkpoint: %w", errors.Join(errs...))
}

// Size returns the number of entries that the checkpoint covers.
func (r *Reader) Size(_ context.Context) (uint64, error) {
	_, t, err := r.tree()
	return uint64(t.N), readFault("ledger.Size", err)
}

// Entry returns entry i, checked against the checkpoint.
func (r *Reader) Entry(_ context.Context, i Index) (Entry, error) {
	_, t, err := r.tree()
	if err != nil {
		return Entry{}, readFault("ledger.Entry", err)
	}
	e, err := r.store.entry(t, i)
	return e, readFault("ledger.Entry", err)
}

// Tail returns the last n entries, oldest first.
func (r *Reader) Tail(ctx context.Context, n int) ([]Numbered, error) {
	_, t, err := r.tree()
	if err != nil {
		return nil, readFault("ledger.Tail", err)
	}
	out, err := r.store.tail(ctx, t, n)
	return out, readFault("ledger.Tail", err)
}

// Scan calls fn for each entry from index from on, in order, and stops at the
// first error, which it returns.
func (r *Reader) Scan(ctx context.Context, from Index, fn func(Index, Entry) error) error {
	_, t, err := r.tree()
	if err != nil {
		return readFault("ledger.Scan", err)
	}
	return readFault("ledger.Scan", r.store.scan(ctx, t, from, fn))
}

// Body returns the document with digest d, checked against it.
func (r *Reader) Body(_ context.Context, d digest.Digest) ([]byte, error) {
	b, err := r.store.body(d)
	return b, readFault("ledger.Body", err)
}

// Prove returns a c2sp.org/tlog-proof@v1 for entry i, see [Ledger.Prove].
func (r *Reader) Prove(_ context.Context, i Index) ([]byte, error) {
	raw, t, err := r.tree()
	if err != nil {
		return nil, readFault("ledger.Prove", err)
	}
	p, err := r.store.prove(raw, t, i)
	return p, readFault("ledger.Prove", err)
}

// Checkpoint returns the newest signed checkpoint.
func (r *Reader) Checkpoint(_ context.Context) ([]byte, error) {
	raw, _, err := r.tree()
	return raw, readFault("ledger.Checkpoint", err)
}
