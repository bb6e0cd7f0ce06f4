package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// killsVariable says how often [TestKilledAtRandom] kills the daemon.
const killsVariable = "HOLDFAST_TEST_KILLS"

// TestKilledAtRandom kills the daemon at random moments while commits arrive
// and a second manager undoes what is deployed. At the end everything is as the
// newest commit asks, the ledger verifies, every intent has one result, and no
// unfinished file is left.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := 200
	if v := os.Getenv(killsVariable); v != "" {
		var err error
		if kills, err = strconv.Atoi(v); err != nil {
			t.Fatalf("%s: %v", killsVariable, err)
		}
	} else if testing.Short() {
		kills = 20
	}
	f := newFaulty(t)
	const images = 4
	for i := range images {
		f.publish(fmt.Sprintf("6.%d", i), world.Signed)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	ctx, stop := context.WithCancel(t.Context())
	load, ctx := errgroup.WithContext(ctx)
	load.Go(func() error { return f.keepCommitting(ctx, images) })
	load.Go(func() error { return f.keepTampering(ctx) })
	began := time.Now()
	for range kills {
		f.start()
		pause(ctx, time.Duration(random.IntN(700))*time.Millisecond)
		f.kill()
	}
	t.Logf("%d kills in %s", kills, time.Since(began).Round(time.Second))
	stop()
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.converged()
	level := f.logLevel()
	f.tamper("debug")
	f.eventually("the repair", func() bool { return f.logLevel() == level })
	f.sound()
	f.tidy()
	count := map[string]int{}
	for _, e := range f.entries(f.w.StateDir) {
		count[strings.TrimSpace(string(e.Type)+" "+e.Outcome)]++
	}
	t.Logf("the ledger has %v", count)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// keepCommitting commits one release after the other until ctx ends.
func (f *faulty) keepCommitting(ctx context.Context, images int) error {
	for n := 0; ctx.Err() == nil; n++ {
		head, err := f.w.Commit("Change", f.w.Alice, map[string]string{
			settingsFile:   strings.Replace(f.files[settingsFile], "log-level: info", fmt.Sprintf("log-level: \"6.%d\"", n), 1),
			deploymentFile: strings.Replace(f.files[deploymentFile], "web:1.0", fmt.Sprintf("web:6.%d", n%images), 1),
		})
		if err != nil {
			return err
		}
		f.head = head
		pause(ctx, 200*time.Millisecond)
	}
	return nil
}

// keepTampering undoes what is deployed until ctx ends.
func (f *faulty) keepTampering(ctx context.Context) error {
	settings := f.live.Resource(resourceOf("configmap")).Namespace(f.w.Namespace)
	for n := 0; ctx.Err() == nil; n++ {
		// What is not there yet cannot be changed, and that is all right.
		if n%10 == 9 {
			_ = settings.Delete(ctx, "shop-settings", metav1.DeleteOptions{})
		} else {
			_, _ = settings.Patch(ctx, "shop-settings", types.MergePatchType, fmt.Appendf(nil, `{"data":{"log-level":"tampered %d"}}`, n), metav1.PatchOptions{FieldManager: "carol"})
		}
		pause(ctx, 150*time.Millisecond)
	}
	return nil
}

// tidy checks that no crash left unfinished files in the state directory.
func (f *faulty) tidy() {
	f.t.Helper()
	for _, pattern := range []string{"reconciler/*/.new-*", "git/*/incoming-*", "git/*/objects/pack/tmp_*", ".new-*"} {
		left, err := filepath.Glob(filepath.Join(f.w.StateDir, pattern))
		must(f.t, err)
		if len(left) > 0 {
			f.t.Errorf("%d unfinished files are left, such as %s", len(left), left[0])
		}
	}
}

// startWithin starts the daemon in a mount namespace with a small file system
// over dir, and returns the path under which this process sees what the daemon
// sees. It skips the test where the kernel does not allow that.
func (f *faulty) startWithin(dir, size string) (root string) {
	f.t.Helper()
	must(f.t, os.MkdirAll(dir, 0o700))
	unshare := []string{"unshare", "--user", "--map-root-user", "--mount"}
	try := append(slices.Clone(unshare), "mount", "-t", "tmpfs", "tmpfs", dir)
	if out, err := exec.Command(try[0], try[1:]...).CombinedOutput(); err != nil {
		f.t.Skipf("no mount namespace to fill a disk in: %v: %s", err, out)
	}
	// Its user namespace has one user, who is the tool's too.
	must(f.t, os.Chown(f.w.SiteDir, os.Getuid(), os.Getgid()))
	var err error
	f.d, err = f.w.Start(f.log, []string{"TMPDIR=" + dir}, append(unshare, "sh", "-ec",
		`mount -t tmpfs -o mode=700,size="$0" tmpfs "$1"; shift; exec "$@"`, size, dir, f.holdfast(), "run", "-c", f.w.Config, "--log-format", "json")...)
	must(f.t, err)
	return fmt.Sprintf("/proc/%d/root", f.d.PID())
}

// fill leaves no room in the file system of a folder.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	defer file.Close()
	for piece := make([]byte, 1<<20); len(piece) > 0; {
		if _, err := file.Write(piece); errors.Is(err, syscall.ENOSPC) {
			piece = piece[:len(piece)/2]
		} else {
			must(t, err)
		}
	}
	return func() { must(t, os.Remove(name)) }
}

// motd is what the Terraform stack has written; empty before it has.
func (f *faulty) motd() string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.w.SiteDir, "motd"))
	if !errors.Is(err, fs.ErrNotExist) {
		must(f.t, err)
	}
	return string(b)
}

// TestDiskFull: with a full disk under the state nothing is applied, the daemon
// says what is wrong, and goes on by itself when there is room again. The work
// folders of plans are memory of their own.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	full := `no space left`
	for _, c := range []struct {
		name, dir, size string // dir is within the state directory
		says            func(*faulty)
	}{
		{"state", ".", "16m", func(f *faulty) { f.repositorySays(full) }},
		{"ledger", "ledger", "4m", func(f *faulty) { f.says("shop-settings", full, reconciler.Failed) }},
		{"mirror", "git", "4m", func(f *faulty) { f.repositorySays(full) }},
		{"marks", "reconciler", "1m", func(f *faulty) { f.repositorySays(full) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t)
			dir := filepath.Join(f.w.StateDir, c.dir)
			root := f.startWithin(dir, c.size)
			f.converged()
			level, motd := f.logLevel(), f.motd()
			free := fill(t, filepath.Join(root, dir))
			f.settings("7.0")
			c.says(f)
			if got := f.logLevel(); got != level {
				t.Errorf("%s was applied with a full disk", got)
			}
			if got := f.motd(); got != motd {
				t.Errorf("%q was written with a full disk", got)
			}
			free()
			f.converged()
			if got := f.logLevel(); got != "7.0" {
				t.Errorf("with room again the settings are of release %s", got)
			}
			// Before its file system is gone; results are recorded a moment after they stand.
			f.eventually("a result of every intent", func() bool { return len(f.check(root+f.w.StateDir).Open) == 0 })
			f.audit(root + f.w.StateDir)
		})
	}
}
