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
	// An earlier process may have died before it synced its folders.
	for _, dir := range []string{s.path("bodies", "sha256"), s.path("bodies"), s.dir, filepath.Dir(s.dir)} {
		if err := durable.Sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// putBodies stores bodies by their digest. They are durable when it returns.
func (s store) putBodies(bodies map[string][]byte) (map[string]digest.Digest, error) {
	if len(bodies) == 0 {
		return nil, nil
	}
	if len(bodies) > maxBodies {
		return nil, fmt.Errorf("%d bodies, the limit is %d", len(bodies), maxBodies)
	}
	unique := map[digest.Digest][]byte{}
	names := make(map[string]digest.Digest, len(bodies))
	for role, b := range bodies {
		if err := checkRole(role); err != nil {
			return nil, err
		}
		if len(b) > MaxBody {
			return nil, fmt.Errorf("body %q has %d bytes, the limit is %d", role, len(b), MaxBody)
		}
		d := digest.FromBytes(b)
		names[role], unique[d] = d, b
	}

	return names, s.putAll(unique)
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

// putAll stores documents by their digest. They are durable when it returns.
func (s store) putAll(all map[digest.Digest][]byte) error {
	docs := make(map[digest.Digest][]byte, len(all))
	for d, b := range all {
		if !s.synced.has(d, b, s.bodyPath(d)) {
			docs[d] = b
		}
	}
	if err := s.syncAll(docs); err != nil {
		return err
	}
	s.synced.add(docs)
	return nil
}

func (s store) syncAll(docs map[digest.Digest][]byte) error {
	var dirs sync.Map
	var g errgroup.Group
	g.SetLimit(bodySyncs)
	for d, b := range docs {
		g.Go(func() error {
			dirs.Store(filepath.Dir(s.bodyPath(d)), true)
			return s.putBody(d, b)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	dirs.Range(func(dir, _ any) bool {
		g.Go(func() error { return durable.Sync(dir.(string)) })
		return true
	})
	return g.Wait()
}

// putBody writes and syncs one body. The caller syncs its folder.
func (s store) putBody(d digest.Digest, b []byte) error {
	name := s.bodyPath(d)
	if old, err := readFile(name, MaxBody); err == nil && bytes.Equal(old, b) {
		return durable.Sync(name) // who wrote it may have died before the sync
	}
	if err := makeDir(filepath.Dir(name)); err != nil {
		return err
	}
	return writeAtomic(s.path("bodies", "tmp"), name, b)
}

// makeDir makes one folder, and syncs its parent if it was not there.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(dir))
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
