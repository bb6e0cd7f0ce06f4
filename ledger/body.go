package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dev/holdfast/internal/durable"
)

// bodySyncs bounds how many bodies one Append syncs at once. A journalling file
// system commits syncs that wait together in one go.
const bodySyncs = 8

// prepareBodies makes the folders and clears what a crash left half written.
func (s store) prepareBodies() error {
	if err := os.RemoveAll(s.path("bodies", "tmp")); err != nil {
		return err
	}
	for _, dir := range []string{s.path("bodies", "tmp"), s.path("bodies", "sha256")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := s.journal.replay(); err != nil {
		return err
	}
	// An earlier process may have died before it synced its folders.
	for _, dir := range []string{s.path("bodies", "sha256"), s.path("bodies"), s.dir, filepath.Dir(s.dir)} {
		if err := durable.Sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// putBodies writes bodies to files that are called as their digest is. It returns those that
// are durable only once they are in the journal.
func (s store) putBodies(bodies map[string][]byte) (names map[string]digest.Digest, open map[digest.Digest][]byte, err error) {
	if len(bodies) == 0 {
		return nil, nil, nil
	}
	if len(bodies) > maxBodies {
		return nil, nil, fmt.Errorf("%d bodies, the limit is %d", len(bodies), maxBodies)
	}
	unique := map[digest.Digest][]byte{}
	names = make(map[string]digest.Digest, len(bodies))
	for role, b := range bodies {
		if err := checkRole(role); err != nil {
			return nil, nil, err
		}
		if len(b) > MaxBody {
			return nil, nil, fmt.Errorf("body %q has %d bytes, the limit is %d", role, len(b), MaxBody)
		}
		d := digest.FromBytes(b)
		names[role], unique[d] = d, b
	}
	open, err = s.putAll(unique)
	return names, open, err
}

// synced remembers which bodies this process has made durable: entries that come
// together name the same ones. The zero synced, and nil, know none.
type synced struct {
	mu  sync.Mutex
	set map[digest.Digest]bool
}

// maxSynced bounds how many are remembered.
const maxSynced = 4096

// has reports whether a body was made durable, and is there still as it was.
func (y *synced) has(d digest.Digest, b []byte, name string) bool {
	if y == nil {
		return false
	}
	y.mu.Lock()
	known := y.set[d]
	y.mu.Unlock()
	if !known {
		return false
	}
	if old, err := readFile(name, MaxBody); err == nil && bytes.Equal(old, b) {
		return true
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.set, d)
	return false
}

func (y *synced) clear() {
	y.mu.Lock()
	defer y.mu.Unlock()
	clear(y.set)
}

func (y *synced) add(docs map[digest.Digest][]byte) {
	if y == nil {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.set == nil || len(y.set)+len(docs) > maxSynced {
		y.set = map[digest.Digest]bool{}
	}
	for d := range docs {
		y.set[d] = true
	}
}

// putAll writes documents to files that are called as their digest is. It returns those that
// are durable only once they are in the journal.
func (s store) putAll(all map[digest.Digest][]byte) (open map[digest.Digest][]byte, err error) {
	open, large := map[digest.Digest][]byte{}, map[digest.Digest][]byte{}
	for d, b := range all {
		switch {
		case s.synced.has(d, b, s.bodyPath(d)):
		case len(b) > maxJournaled:
			large[d] = b
		default:
			open[d] = b
		}
	}
	if err := s.syncAll(large); err != nil {
		return nil, err
	}
	s.synced.add(large)
	for d, b := range open {
		if err := s.create(d, b); err != nil {
			return nil, err
		}
	}
	return open, nil
}

// keep makes documents durable whose files putAll wrote. After an error nothing counts as
// durable that is not put once more.
func (s store) keep(open map[digest.Digest][]byte) error {
	if err := s.journal.add(open); err != nil {
		s.synced.clear()
		return err
	}
	s.synced.add(open)
	return nil
}

// syncAll stores documents by their digest. They are durable when it returns.
func (s store) syncAll(docs map[digest.Digest][]byte) error {
	if len(docs) == 0 {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(bodySyncs)
	dirs := map[string]bool{}
	for d, b := range docs {
		dirs[filepath.Dir(s.bodyPath(d))] = true
		g.Go(func() error { return s.confirm(d, b) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return s.syncDirs(dirs)
}

// syncDirs makes the names in folders of bodies durable, and the names of the folders.
func (s store) syncDirs(dirs map[string]bool) error {
	var g errgroup.Group
	g.SetLimit(bodySyncs)
	for dir := range dirs {
		g.Go(func() error { return durable.Sync(dir) })
	}
	return errors.Join(g.Wait(), durable.Sync(s.path("bodies", "sha256")))
}

// create writes a body to its file, if it is not there, and syncs nothing. One that is cut
// off is found by whoever compares it, and replaced.
func (s store) create(d digest.Digest, b []byte) error {
	name := s.bodyPath(d)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(name), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		if old, err := readFile(name, MaxBody); err == nil && bytes.Equal(old, b) {
			return nil
		}
		return s.rewrite(d, b)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// confirm writes a body if its file is not what it should be, and syncs it. The caller syncs
// its folder.
func (s store) confirm(d digest.Digest, b []byte) error {
	name := s.bodyPath(d)
	if old, err := readFile(name, MaxBody); err == nil && bytes.Equal(old, b) && durable.Sync(name) == nil {
		return nil
	}
	return s.rewrite(d, b)
}

// rewrite writes a body to a new file, which is synced and takes the place of any old one.
// The caller syncs its folder.
func (s store) rewrite(d digest.Digest, b []byte) error {
	name := s.bodyPath(d)
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return writeAtomic(s.path("bodies", "tmp"), name, b)
}

// writeAtomic writes name by way of a synced file in tmpDir. The caller syncs
// the folder of name.
func writeAtomic(tmpDir, name string, b []byte) (err error) {
	f, err := os.CreateTemp(tmpDir, "new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the cause is what counts
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
