package reconciler

import (
	"io/fs"
	"testing"

	"github.com/holdfast-dev/holdfast/sources"
)

// idFS is a file system of which only the ids are known, and how often one was asked for.
type idFS struct {
	fs.FS
	ids   map[string]string
	asked int
}

func (f *idFS) ContentID(name string) (string, error) {
	f.asked++
	if id, ok := f.ids[name]; ok {
		return id, nil
	}
	return "", fs.ErrNotExist
}

// A folder that is the same answers for all that is in it, and for nothing else.
func TestComparedByFolder(t *testing.T) {
	t.Parallel()
	within := &deployment{inputs: map[string]string{"a/x": "1", "a/y": "2", "a/z": absent}}
	outside := &deployment{inputs: map[string]string{"a/x": "1", "ab/y": "2"}}
	snap := func(ids map[string]string) *sources.Snapshot { return &sources.Snapshot{FS: &idFS{ids: ids}} }
	first := snap(map[string]string{"a": "A", "a/x": "1", "a/y": "2", "ab/y": "2"})
	for name, tc := range map[string]struct {
		d     *deployment
		then  map[string]string
		same  bool
		asked int
	}{
		"nothing":                    {within, map[string]string{"a": "A", "a/x": "1", "a/y": "2"}, true, 1},
		"another file of the folder": {within, map[string]string{"a": "B", "a/x": "1", "a/y": "2"}, true, 4},
		"a file":                     {within, map[string]string{"a": "B", "a/x": "1", "a/y": "3"}, false, 0},
		"a file that was not there":  {within, map[string]string{"a": "B", "a/x": "1", "a/y": "2", "a/z": "1"}, false, 0},
		"the folder is gone":         {within, map[string]string{}, false, 0},
		"outside":                    {outside, map[string]string{"a": "A", "a/x": "1", "ab/y": "3"}, false, 0},
	} {
		c := compared{}.next(tc.d, first, "a")
		if !c.same {
			t.Fatalf("%s: it began as another", name)
		}
		s := snap(tc.then)
		if c = c.next(tc.d, s, "a"); c.same != tc.same {
			t.Errorf("%s: same: %t", name, c.same)
		}
		if asked := s.FS.(*idFS).asked; tc.asked > 0 && asked != tc.asked {
			t.Errorf("%s: asked %d times, want %d", name, asked, tc.asked)
		}
	}
	// What another deployment was compared with says nothing.
	c := compared{}.next(within, first, "a").next(&deployment{inputs: map[string]string{"a/x": "9"}}, first, "a")
	if c.same {
		t.Error("another deployment counts as compared")
	}
}
