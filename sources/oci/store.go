package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	maxKept     = 4096    // manifests and blobs that are kept on disk
	maxManifest = 4 << 20 // bytes, the limit that the OCI distribution specification recommends
	keptPrefix  = "sha256-"
	newPrefix   = ".new-" // durable.Tidy removes what a crash left of it
)

// store is a [Content] that keeps what it brought in a folder, one file for each
// digest, and reads it from there again. A file is believed only while it has the
// digest that it is called by. What was not used for longest goes first.
type store struct {
	dir     string
	most    int64 // bytes that are kept
	content Content
	tidy    sync.Once
	mu      sync.Mutex // held while files are removed
}

// Manifest implements [Content].
func (s *store) Manifest(ctx context.Context, repository string, d digest.Digest) ([]byte, error) {
	if b, ok := s.read(d); ok {
		return b, nil
	}
	b, err := s.content.Manifest(ctx, repository, d)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(b); got != d {
		return nil, fault.New(fault.Transient, "sources/oci", "check the registry and what is between it and here", "the manifest %s has other content (%s)", short(d), short(got))
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := durable.Replace(s.path(d), b); err != nil {
		return nil, onDisk(err)
	}
	return b, s.evict(d)
}

// Open implements [Content]. The blob is brought as a whole, and has its digest,
// before any of it is returned.
func (s *store) Open(ctx context.Context, repository string, d digest.Digest, size int64) (io.ReadCloser, error) {
	if f, ok := s.open(d, size); ok {
		return f, nil
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	from, err := s.content.Open(ctx, repository, d, size)
	if err != nil {
		return nil, err
	}
	f, err := s.write(ctx, from, d, size)
	if err := errors.Join(err, from.Close()); err != nil {
		return nil, err
	}
	if err := s.evict(d); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// write stores a blob, and returns it from its beginning.
func (s *store) write(ctx context.Context, from io.Reader, d digest.Digest, size int64) (_ *os.File, err error) {
	f, err := os.CreateTemp(s.dir, newPrefix+"*")
	if err != nil {
		return nil, onDisk(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			_ = os.Remove(f.Name()) // durable.Tidy takes what stays
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(disk{f}, h), io.LimitReader(contextReader{ctx, from}, size+1))
	if err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != size || got != d.Encoded() {
		return nil, fault.New(fault.Transient, "sources/oci", "check the registry and what is between it and here",
			"the blob %s of %d bytes came as %d bytes with the digest sha256:%.12s", short(d), size, n, got)
	}
	if err := os.Rename(f.Name(), s.path(d)); err != nil {
		return nil, onDisk(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, onDisk(err)
	}
	return f, nil
}

// read returns a manifest that is kept.
func (s *store) read(d digest.Digest) ([]byte, bool) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, false
	}
	defer f.Close() //nolint:errcheck // only read from
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil || digest.FromBytes(b) != d {
		return nil, false
	}
	s.used(d)
	return b, true
}

// open returns a blob that is kept, from its beginning.
func (s *store) open(d digest.Digest, size int64) (*os.File, bool) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, false
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, size+1))
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil || n != size || hex.EncodeToString(h.Sum(nil)) != d.Encoded() {
		_ = f.Close() // it is not used
		return nil, false
	}
	s.used(d)
	return f, true
}

// used notes that d is still of use. If that cannot be noted, d only goes sooner.
func (s *store) used(d digest.Digest) {
	now := time.Now()
	_ = os.Chtimes(s.path(d), now, now)
}

func (s *store) path(d digest.Digest) string {
	return filepath.Join(s.dir, keptPrefix+d.Encoded())
}

// prepare makes the folder, and once removes what a crash left in it.
func (s *store) prepare() (err error) {
	s.tidy.Do(func() { err = durable.Tidy(s.dir) })
	return onDisk(errors.Join(err, os.MkdirAll(s.dir, 0o700)))
}

// evict removes what was not used for longest, except d, until the rest is
// within the limits.
func (s *store) evict(d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return onDisk(err)
	}
	var kept []fs.FileInfo
	var total int64
	for _, e := range list {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), keptPrefix) { // it has just gone, or is not ours
			continue
		}
		kept = append(kept, info)
		total += info.Size()
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	n := len(kept)
	for _, info := range kept {
		if n <= maxKept && total <= s.most {
			break
		}
		if info.Name() == filepath.Base(s.path(d)) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return onDisk(err)
		}
		n, total = n-1, total-info.Size()
	}
	return nil
}

// offline returns what is kept, and nothing else.
func (s *store) offline() Content { return kept{s} }

type kept struct{ *store }

// Manifest implements [Content].
func (k kept) Manifest(_ context.Context, _ string, d digest.Digest) ([]byte, error) {
	if b, ok := k.read(d); ok {
		return b, nil
	}
	return nil, notKept(d)
}

// Open implements [Content].
func (k kept) Open(_ context.Context, _ string, d digest.Digest, size int64) (io.ReadCloser, error) {
	if f, ok := k.open(d, size); ok {
		return f, nil
	}
	return nil, notKept(d)
}

func notKept(d digest.Digest) error {
	return fault.New(fault.Transient, "sources/oci.Local", "wait until it is fetched from the registry again", "%s is not on disk, or damaged there", short(d))
}

// disk is a writer whose failures are known to be the disk's.
type disk struct{ io.Writer }

// Write implements io.Writer.
func (d disk) Write(p []byte) (int, error) {
	n, err := d.Writer.Write(p)
	return n, onDisk(err)
}

func onDisk(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Transient, "sources/oci", "look at the state directory: disk full, read-only or lost?", fmt.Errorf("keep the artifact: %w", err))
}

// contextReader stops between reads when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, fault.Wrap(fault.Transient, "sources/oci", "", err)
	}
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) { // what it says about the content is not known
		err = fault.Wrap(fault.Transient, "sources/oci", "", err)
	}
	return n, err
}
