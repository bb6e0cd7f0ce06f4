package kubernetes

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

const (
	auditPoll = 200 * time.Millisecond
	// auditBack is how much of a log is read that was there before.
	auditBack = 4 << 20
)

// Follow reads the API server's audit log at path as it grows, over rotations, until
// ctx ends, and calls learned whenever it knows more. A file that is not there yet, or
// cannot be read, is tried again; lines that are no events are counted and told of.
func (a *Audit) Follow(ctx context.Context, path string, log *slog.Logger, learned func()) error {
	f := follower{path: path}
	defer f.close()
	failing := false
	tick := time.NewTicker(auditPoll)
	defer tick.Stop()
	for {
		lines, err := f.next()
		if err != nil && !failing {
			log.WarnContext(ctx, "audit log not read", slog.String("file", path), slog.String("error", err.Error()))
		}
		failing = err != nil
		n, bad := 0, 0
		for _, line := range lines {
			took, err := a.Add(line)
			if n += took; err != nil {
				bad++
			}
		}
		if bad > 0 {
			log.WarnContext(ctx, "audit events not understood", slog.String("file", path), slog.Int("lines", bad))
		}
		if n > 0 {
			learned()
		}
		if len(lines) > 0 {
			continue // there may be more already
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// follower reads a file that grows and is replaced.
type follower struct {
	path string
	file *os.File
	rest []byte // of a line that is not complete
	skip bool   // until the end of a line that is too long, or was begun before
}

func (f *follower) close() {
	if f.file != nil {
		_ = f.file.Close() // it was only read
		f.file = nil
	}
}

// next returns the lines that were added.
func (f *follower) next() ([][]byte, error) {
	if f.file == nil {
		if err := f.open(); err != nil || f.file == nil {
			return nil, err
		}
	}
	buf := make([]byte, 256<<10)
	n, err := f.file.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		f.close()
		return nil, err
	}
	if n == 0 {
		return nil, f.rotated()
	}
	lines, rest := auditLines(append(f.rest, buf[:n]...))
	if f.skip && len(lines) > 0 {
		lines, f.skip = lines[1:], false
	}
	if f.rest = rest; len(rest) > MaxAuditEvent {
		f.rest, f.skip = nil, true
	}
	return lines, nil
}

func (f *follower) open() error {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is made with the first event
	}
	if err != nil {
		return err
	}
	f.rest, f.skip = nil, false
	if info, err := file.Stat(); err == nil && info.Size() > auditBack {
		_, err := file.Seek(-auditBack, io.SeekEnd)
		f.skip = err == nil
	}
	f.file = file
	return nil
}

// rotated has the file opened again if another one stands in its place, or if it
// was cut.
func (f *follower) rotated() error {
	there, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // between two files
	}
	if err != nil {
		return err
	}
	open, err := f.file.Stat()
	if err != nil {
		return err
	}
	at, err := f.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if !os.SameFile(there, open) || there.Size() < at {
		f.close()
	}
	return nil
}
