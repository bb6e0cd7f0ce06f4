//go:build !linux

package durable

import (
	"io/fs"
	"path/filepath"
)

// syncAll syncs file by file.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		return Sync(path)
	})
}
