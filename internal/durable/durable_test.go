package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	check := func(want string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("it holds %q, %v; want %q", b, err, want)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("%v, %v: something else is left", all, err)
		}
	}
	if err := Create(path, []byte("first")); err != nil {
		t.Fatal(err)
	}
	check("first")
	if err := Create(path, []byte("second")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file = %v", err)
	}
	check("first")
	if err := Replace(path, []byte("third")); err != nil {
		t.Fatal(err)
	}
	check("third")
	if err := os.WriteFile(filepath.Join(dir, ".new-1"), []byte("thi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Tidy(dir), Tidy(filepath.Join(dir, "no", "folder"))); err != nil {
		t.Error(err)
	}
	check("third")
	if err := Replace(filepath.Join(dir, "no", "folder"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Replace in no folder = %v", err)
	}
	check("third")
}

// A file that cannot be written whole does not take the place of the old one.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if err := Replace(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	fail := func(string, string) error { return syscall.ENOSPC }
	if err := write(path, []byte("new"), fail); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write = %v", err)
	}
	all, err := os.ReadDir(filepath.Dir(path))
	if b, rerr := os.ReadFile(path); err != nil || rerr != nil || string(b) != "old" || len(all) != 1 {
		t.Errorf("it holds %q beside %v: %v, %v", b, all, err, rerr)
	}
}
