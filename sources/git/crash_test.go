package git

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// A process that was killed in the middle of a write must not leave a mirror
// that can never be used again.
func TestCrashWhileWritingARef(t *testing.T) {
	t.Parallel()
	server, repo := gitServer(t, testenv.GitOptions{})
	push(t, repo, map[string]string{"a": "1"})
	s := open(t, config(t, "path", server))
	fetch(t, s)
	ref := filepath.Join(s.mirror.dir, filepath.FromSlash(branchPrefix+"main"))
	before := get(os.Stat(ref))(t)

	push(t, repo, map[string]string{"a": "2"})
	fetch(t, s)
	if after := get(os.Stat(ref))(t); os.SameFile(before, after) {
		t.Error("the ref was rewritten in place: a crash would leave it empty")
	}

	must(t, s.Close())
	must(t, os.Truncate(ref, 0)) // as a power cut may leave it
	must(t, os.WriteFile(filepath.Join(s.mirror.dir, "incoming-1"), []byte("half"), 0o600))
	fetch(t, s)
	if left := get(filepath.Glob(filepath.Join(s.mirror.dir, "incoming-*")))(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
