package terraform

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
)

// fingerprint returns a text that changes whenever a file below name does. The
// change time is part of it, which only the kernel sets.
func fingerprint(name string) (string, error) {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.Mode()&fs.ModeSymlink != 0 {
			return fs.ErrInvalid // cannot tell: hash each time
		}
		fmt.Fprintf(&out, "%s %d %d %d %d.%d\n", p, st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec)
		return nil
	})
	return out.String(), err
}
