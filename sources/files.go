package sources

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
)

// OpenFile returns an open file with content, for the file systems of snapshots.
func OpenFile(info fs.FileInfo, content []byte) fs.File {
	return &openFile{info: info, Reader: bytes.NewReader(content)}
}

// OpenDir returns an open folder with a list, for the file systems of snapshots.
// name is for errors.
func OpenDir(info fs.FileInfo, name string, list []fs.DirEntry) fs.ReadDirFile {
	return &openDir{info: info, name: name, list: list}
}

type openFile struct {
	info fs.FileInfo
	*bytes.Reader
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	info fs.FileInfo
	name string
	list []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

// ReadDir implements fs.ReadDirFile.
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.list)
	} else if len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	out := d.list[:n:n]
	d.list = d.list[n:]
	return out, nil
}
