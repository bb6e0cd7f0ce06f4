package reconciler

import (
	"io/fs"
	"maps"
	"strings"
	"sync"

	"github.com/holdfast-dev/holdfast/sources"
)

// tracker notes what a rendering reads, so that a stack is rendered again only
// when some of it changed. It notes names that do not exist as well: a file
// that appears is a change.
type tracker struct {
	snap *sources.Snapshot
	ids  sources.Identified // nil: the file system cannot tell

	mu   sync.Mutex
	seen map[string]string
}

func newTracker(snap *sources.Snapshot) *tracker {
	t := &tracker{snap: snap, seen: map[string]string{}}
	t.ids, _ = snap.FS.(sources.Identified)
	return t
}

// absent is the content id of a name that does not exist.
const absent = "absent"

func contentID(ids sources.Identified, name string) string {
	id, err := ids.ContentID(name)
	if err != nil {
		return absent
	}
	return id
}

func (t *tracker) note(name string) {
	if t.ids == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.seen[name]; !ok {
		t.seen[name] = contentID(t.ids, name)
	}
}

// snapshot returns the snapshot with reads noted.
func (t *tracker) snapshot() *sources.Snapshot {
	s := *t.snap
	s.FS = trackedFS{t}
	return &s
}

// inputs returns what was read by name and content id. Without ids it is the
// whole tree.
func (t *tracker) inputs() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ids == nil {
		return map[string]string{".": t.snap.Tree.String()}
	}
	return maps.Clone(t.seen)
}

// sameInputs reports whether snap has the same content under every name of inputs.
func sameInputs(inputs map[string]string, snap *sources.Snapshot) bool {
	if len(inputs) == 0 {
		return false
	}
	ids, ok := snap.FS.(sources.Identified)
	if !ok {
		return inputs["."] == snap.Tree.String()
	}
	for name, id := range inputs {
		if contentID(ids, name) != id {
			return false
		}
	}
	return true
}

// inFolder reports whether all inputs are in the folder dir.
func inFolder(inputs map[string]string, dir string) bool {
	below := dir + "/"
	for name := range inputs {
		if name != dir && !strings.HasPrefix(name, below) {
			return false
		}
	}
	return true
}

// trackedFS notes each name that is opened, listed or read.
type trackedFS struct{ t *tracker }

func (f trackedFS) Open(name string) (fs.File, error) {
	f.t.note(name)
	return f.t.snap.FS.Open(name)
}

func (f trackedFS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.t.note(name)
	return fs.ReadDir(f.t.snap.FS, name)
}

func (f trackedFS) ReadFile(name string) ([]byte, error) {
	f.t.note(name)
	return fs.ReadFile(f.t.snap.FS, name)
}

// Stat notes nothing for a folder that exists: being there is not content, and
// the id of a folder would tie the stack to everything below it.
func (f trackedFS) Stat(name string) (fs.FileInfo, error) {
	info, err := fs.Stat(f.t.snap.FS, name)
	if err != nil || !info.IsDir() {
		f.t.note(name)
	}
	return info, err
}

func (f trackedFS) ContentID(name string) (string, error) {
	if f.t.ids == nil {
		return "", fs.ErrInvalid
	}
	f.t.note(name)
	return f.t.ids.ContentID(name)
}
