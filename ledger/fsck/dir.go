package fsck

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
)

// DirReader returns a Reader of the log in the folder dir. It never follows a
// link out of the folder.
func DirReader(dir string) Reader { return dirReader(dir) }

type dirReader string

func (d dirReader) Checkpoint(context.Context) ([]byte, error) {
	return d.read("checkpoint", maxCheckpoint)
}

func (d dirReader) Tile(_ context.Context, name string) ([]byte, error) {
	return d.read(name, maxBundle)
}

func (d dirReader) Body(_ context.Context, sum string) ([]byte, error) {
	if !isSum(sum) {
		return nil, fmt.Errorf("%q is no SHA-256", sum)
	}
	return d.read(path.Join("bodies", "sha256", sum[:2], sum), maxBody)
}

func (d dirReader) read(name string, limit int64) ([]byte, error) {
	f, err := os.OpenInRoot(string(d), name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b, nil
}
