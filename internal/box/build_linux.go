//go:build linux && (amd64 || arm64)

package box

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stage is where the file system of a box is built, before it becomes all that there is.
// It is a folder of every host, and nothing in it is needed.
const stage = "/proc"

// devices are the devices of a box.
var devices = []string{"null", "zero", "full", "random", "urandom"}

// build makes the file system of the box, which is all that the processes in it can see,
// and returns its work directory.
func build(cfg Config) (work *os.File, proc bool, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, false, unable("a mount namespace", err)
	}
	// The sources are looked up before anything is mounted over them.
	b := builder{}
	if err := b.open(cfg); err != nil {
		return nil, false, err
	}
	if err := tmpfs(stage, 8<<20, "0755"); err != nil {
		return nil, false, unable("mount a tmpfs", err)
	}
	if err := b.bindAll(); err != nil {
		return nil, false, err
	}
	if err := b.etc(cfg.Hosts); err != nil {
		return nil, false, err
	}
	if err := b.work(cfg.Limits.Work); err != nil {
		return nil, false, err
	}
	proc, err = ownProc()
	if err != nil {
		return nil, false, err
	}
	if err := enter(); err != nil {
		return nil, false, unable("change the root of the file system", err)
	}
	_ = unix.Sethostname([]byte("box")) // the host's name, where a unit's filter refuses that
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return nil, false, unable("make the root read-only", err)
	}
	work, err = os.Open(Work)
	return work, proc, err
}

// ownProc mounts /proc for the processes of the box. Where parts of /proc are covered, as
// container runtimes do, the kernel lets nobody mount another: then there is none.
func ownProc() (bool, error) {
	if err := os.Mkdir(stage+"/proc", 0o555); err != nil {
		return false, err
	}
	err := unix.Mount("proc", stage+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subset=pid")
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	return err == nil, unable("mount /proc for its own processes", err)
}

// builder holds the sources, opened.
type builder struct{ trees map[string]int }

// bound are the folders of the system that are in every box, where the host has them:
// programs and libraries, and whom to trust in TLS.
var bound = []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/alternatives"}

// open clones what is to be seen, so that nothing that is mounted later can hide it.
func (b *builder) open(cfg Config) error {
	b.trees = map[string]int{}
	add := func(path string, write bool) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "find", Path: path, Err: err}
		}
		if err != nil {
			return unable("clone "+path, err)
		}
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
		if !write {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		if slices.Contains(devices, strings.TrimPrefix(path, "/dev/")) { // reading and writing a device is not writing to the mount
			attr.Attr_set = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_RDONLY
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return unable("make "+path+" read-only", err)
		}
		b.trees[path] = fd
		return nil
	}
	for _, d := range devices {
		if err := add("/dev/"+d, false); err != nil {
			return err
		}
	}
	for _, path := range bound {
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink != 0 {
			continue // links are made again
		}
		if err := add(path, false); err != nil {
			return err
		}
	}
	for _, path := range cfg.Read {
		if _, err := os.Stat(path); err == nil && slices.ContainsFunc(bound, func(b string) bool { return strings.HasPrefix(path, b+"/") }) {
			continue // it is there: of /bin and its like, which may be links, through where they lead
		}
		if err := add(path, false); err != nil {
			return err
		}
	}
	for _, path := range cfg.Write {
		if err := add(path, true); err != nil {
			return err
		}
	}
	return nil
}

// bindAll puts the sources where they are on the host, outer folders first.
func (b *builder) bindAll() error {
	for _, path := range bound {
		target, err := os.Readlink(path)
		if err != nil {
			continue
		}
		if err := os.Symlink(target, stage+path); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(b.trees)) {
		fd := b.trees[path]
		at := filepath.Join(stage, path)
		if err := place(fd, at); err != nil {
			return fmt.Errorf("make a place for %s: %w", path, err)
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return unable("bind "+path, err)
		}
		_ = unix.Close(fd) // it is mounted
	}
	for _, path := range private {
		if info, err := os.Lstat(stage + path); err == nil && info.IsDir() {
			if err := unix.Mount("tmpfs", stage+path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "size=4k,mode=0755"); err != nil {
				return unable("cover "+path, err)
			}
		}
	}
	return nil
}

// private are folders within bound ones that hold keys.
var private = []string{"/etc/ssl/private", "/etc/pki/tls/private"}

// place makes the folder or the file that is mounted over. What is there is taken as it is.
func place(fd int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(at, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	return f.Close()
}

// etc writes the few files by which programs learn names.
func (b *builder) etc(hosts map[string]string) error {
	if err := os.MkdirAll(stage+"/etc", 0o755); err != nil {
		return err
	}
	names := "127.0.0.1 localhost\n::1 localhost\n"
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		names += hosts[name] + " " + name + "\n"
	}
	for name, content := range map[string]string{
		"hosts": names, "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n", "resolv.conf": "",
		"passwd": "root:x:0:0:::\ntool:x:1:1::" + Work + ":\n", "group": "root:x:0:\ntool:x:1:\n",
	} {
		if _, taken := b.trees["/etc/"+name]; taken {
			continue
		}
		if err := os.WriteFile(filepath.Join(stage, "etc", name), []byte(content), 0o444); err != nil {
			return err
		}
	}
	return nil
}

// work mounts the work directory; /tmp leads into it.
func (b *builder) work(size int64) error {
	if err := os.MkdirAll(stage+Work, 0o755); err != nil {
		return err
	}
	if err := tmpfs(stage+Work, size, "0755"); err != nil {
		return unable("mount a tmpfs", err)
	}
	err := os.Symlink(filepath.Join(Work, Temp), stage+"/tmp")
	if errors.Is(err, fs.ErrExist) { // what was given is in it; programs are told of the other one
		return nil
	}
	return err
}

func tmpfs(at string, size int64, mode string) error {
	return unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,nr_inodes=%d,mode=%s", size, 1+size>>12, mode))
}

// enter makes the stage all that there is.
func enter() error {
	if err := os.Chdir(stage); err != nil {
		return err
	}
	// The old root comes to lie over the new one, and is taken away (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Chdir("/")
}

// seal makes a folder of the work directory read-only.
func seal(name string) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%q is not in the work directory", name)
	}
	at := filepath.Join(Work, name)
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // it is mounted
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
