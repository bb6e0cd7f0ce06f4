package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll syncs the file system, which is one request to the disk for all files of it. The
// kernel tells of what could not be written since version 5.8.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
