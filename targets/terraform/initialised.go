package terraform

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What init sets up depends on the configuration, the lock file and the tool. While these are
// the same it is put back, and init does not run: for a check that finds nothing it would be
// a third of the time.

// initialised is what init left in its folder.
type initialised struct {
	rendering digest.Digest
	tool      string
	entries   []initialisedEntry
}

type initialisedEntry struct {
	name    string // below the data folder
	mode    fs.FileMode
	content []byte // of a file
	link    string // of a symbolic link
}

const (
	// maxInitialised bounds what is remembered, in bytes: with a mirror of packed providers
	// init unpacks them, which is not remembered.
	maxInitialised = 1 << 20
	// maxInitialisedEntries bounds it in number.
	maxInitialisedEntries = 2000
)

// remember reads what init has left; nil if that is too much, or something else than files,
// folders and links.
func (u *run) remember() *initialised {
	out := &initialised{rendering: u.sum, tool: u.toolSum}
	root := u.place.files()
	size := 0
	err := fs.WalkDir(root.FS(), dataDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dataDir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := initialisedEntry{name: strings.TrimPrefix(name, dataDir+"/"), mode: info.Mode()}
		switch {
		case d.IsDir():
		case d.Type() == fs.ModeSymlink:
			if e.link, err = root.Readlink(name); err != nil {
				return err
			}
		case d.Type().IsRegular() && info.Size() <= int64(maxInitialised-size):
			if e.content, err = readRegular(root, name, maxInitialised); err != nil {
				return err
			}
		default:
			return errTooMuch
		}
		size += len(e.content)
		if out.entries = append(out.entries, e); size > maxInitialised || len(out.entries) > maxInitialisedEntries {
			return errTooMuch
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return out
}

// putBack makes the data folder what init would leave there. It reports false if that is not
// known.
func (u *run) putBack() (bool, error) {
	was := u.t.initialised
	if was == nil || was.rendering != u.sum || was.tool != u.toolSum {
		return false, nil
	}
	root := u.place.files()
	uid, gid := u.place.owner()
	for _, e := range was.entries {
		name := path.Join(dataDir, e.name)
		var err error
		switch {
		case e.mode.IsDir():
			err = root.Mkdir(name, e.mode.Perm())
		case e.mode.Type() == fs.ModeSymlink:
			err = root.Symlink(e.link, name)
		default:
			err = root.WriteFile(name, e.content, e.mode.Perm())
		}
		if err = errors.Join(err, root.Lchown(name, uid, gid)); err != nil {
			return false, err
		}
	}
	return true, nil
}
