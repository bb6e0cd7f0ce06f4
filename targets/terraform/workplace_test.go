package terraform

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/mask"
)

// A program that runs while a plan is made can write to its work directory and nowhere else;
// in an apply it can write to the state, and to what the operator lists.
func TestPlansCannotWrite(t *testing.T) {
	t.Parallel()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	world := t.TempDir()
	uid, gid := box.User()
	if err := os.Chown(world, uid, gid); err != nil {
		t.Fatal(err)
	}
	target, err := New(Config{
		Binary: "/bin/sh", Mirror: t.TempDir(), StateDir: t.TempDir(), RunDir: filepath.Join(t.TempDir(), "run"), Masker: m, Sandbox: Sandbox{Write: []string{world}},
	}, Spec{Stack: "shop", Environment: "test"})
	if err != nil {
		t.Fatal(err)
	}
	r := &rendering{config: &configuration{dir: ".", files: map[string][]byte{"main.tf": nil}, lock: &lockFile{}}, workspace: "default"}
	for name, writes := range map[string]bool{"plan": false, "apply": true} {
		u, err := target.start(t.Context(), r, writes)
		if err != nil {
			t.Fatal(err)
		}
		for where, dir := range map[string]string{"the world": world, "the state": target.stateDir(), "its work": box.Work + "/" + planDir, "the tree": box.Work + "/" + treeDir} {
			err := u.place.run(t.Context(), box.Command{
				Path: "/bin/sh", Args: []string{"-c", fmt.Sprintf("echo x > %s", filepath.Join(dir, name))}, Dir: box.Work,
			})
			if want := where == "its work" || writes && where != "the tree"; (err == nil) != want {
				t.Errorf("%s writes to %s: %v", name, where, err)
			}
		}
		u.close(t.Context())
	}
}
