// Package durable owns how small files of the state directory come to be.
//
// It guarantees that whoever reads such a file, also after a crash or a power
// cut, finds the whole old content or the whole new one, and that nobody but
// its owner can. It refuses to say what is in them, and large ones: a file is
// written from memory.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// unfinished is how the names of files begin that were not given theirs yet.
const unfinished = ".new-"

// Replace writes content, mode 0600, to a file that may be there already. Its
// folder must exist.
func Replace(path string, content []byte) error {
	return write(path, content, os.Rename)
}

// Create writes content, mode 0600, to a file that must not be there: the error
// wraps fs.ErrExist if it is, also if another process made it meanwhile.
func Create(path string, content []byte) error {
	return write(path, content, os.Link)
}

func write(path string, content []byte, name func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, unfinished+"*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has another name then
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = name(f.Name(), path)
	}
	if err == nil {
		err = Sync(dir)
	}
	return err
}

// Sync makes the names in a folder survive a power cut.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Tidy removes what a crash left of files that were not finished in a folder, if
// there is one. Nobody else may be writing there.
func Tidy(dir string) error {
	left, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, f := range left {
		if strings.HasPrefix(f.Name(), unfinished) {
			errs = append(errs, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}
