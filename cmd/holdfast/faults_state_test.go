package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// copyState copies the state directory, as a backup or a clone of the machine does.
func (f *faulty) copyState(to string) {
	f.t.Helper()
	out, err := exec.CommandContext(f.t.Context(), "cp", "-a", f.w.StateDir, to).CombinedOutput() // with its modes
	if err != nil {
		f.t.Fatalf("cp: %v\n%s", err, out)
	}
}

// recover hands in alice's order to go on at the newest commit.
func (f *faulty) recover() {
	f.t.Helper()
	out, err := exec.CommandContext(f.t.Context(), f.holdfast(), "recover", "shop", f.head,
		"--reason", "restored from a backup", "--key", f.w.Alice.KeyFile, "-c", f.w.Config).CombinedOutput()
	if err != nil {
		f.t.Fatalf("recover: %v\n%s", err, out)
	}
}

// intents counts the intents of a ledger: what was ever about to be written.
func (f *faulty) intents(state string) (n int) {
	f.t.Helper()
	for _, e := range f.entries(state) {
		if e.Type == ledger.Intent {
			n++
		}
	}
	return n
}

// TestStateFromAnOldBackup: a daemon that knows less than what was applied
// before waits for a signed order, and applies nothing until then.
func TestStateFromAnOldBackup(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	must(t, f.d.Stop())
	backup := filepath.Join(f.w.Dir, "backup")
	f.copyState(backup)
	f.start()
	f.release("2.0")
	f.converged()
	must(t, f.d.Stop())

	must(t, os.RemoveAll(f.w.StateDir))
	must(t, os.Rename(backup, f.w.StateDir))
	before := f.intents(f.w.StateDir)
	f.release("3.0")
	f.start()
	f.says("shop-settings", "knew more than this one", reconciler.Denied)
	if got := f.logLevel(); got != "2.0" {
		t.Errorf("the settings are of release %s, want 2.0", got)
	}
	if n := f.intents(f.w.StateDir); n != before {
		t.Errorf("%d intents were recorded before the order", n-before)
	}
	f.recover()
	f.converged()
	if got := f.logLevel(); got != "3.0" {
		t.Errorf("the settings are of release %s, want 3.0", got)
	}
	f.sound()
}

// TestStateCopiedAndStartedTwice: of a daemon and its clone, one acts. The other
// says so, and writes nothing.
func TestStateCopiedAndStartedTwice(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	must(t, f.d.Stop())
	clone := f.clone()
	f.copyState(clone.w.StateDir)
	f.start()
	f.converged()
	before := f.intents(clone.w.StateDir)
	clone.start()
	f.release("2.0")
	clone.head = f.head
	f.converged()
	f.eventually("the clone's word", func() bool { return strings.Contains(clone.log.String(), "lease not held") })
	f.tamper("debug")
	f.eventually("the repair", func() bool { return f.logLevel() == "2.0" })
	clone.sound()
	if n := clone.intents(clone.w.StateDir); n != before {
		t.Errorf("the clone recorded %d intents", n-before)
	}
	f.sound()
}

// clone returns a second daemon of the same world, with a state directory of its own.
func (f *faulty) clone() *faulty {
	f.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(f.t, err)
	address := listener.Addr().String()
	must(f.t, listener.Close())
	w := *f.w
	w.HTTP, w.StateDir, w.Config = address, filepath.Join(w.Dir, "clone"), filepath.Join(w.Dir, "clone.yaml")
	config := strings.NewReplacer("stateDir: state", "stateDir: clone", f.w.HTTP, w.HTTP).Replace(string(get(f.t, f.w.Config)))
	must(f.t, os.WriteFile(w.Config, []byte(config), 0o600))
	c := *f
	c.w, c.d, c.log = &w, nil, &lockedBuffer{}
	f.t.Cleanup(func() {
		if c.d != nil {
			if gone, _ := c.d.Exited(); !gone {
				_ = c.d.Kill()
			}
		}
		if f.t.Failed() {
			f.t.Logf("the clone's log:\n%s", c.log)
		}
	})
	return &c
}

func get(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return b
}
