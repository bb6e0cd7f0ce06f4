package ledger_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"k8s.io/klog/v2"

	"github.com/holdfast-dev/holdfast/ledger"
)

// Environment of a child process that the tests start, see runChild.
const (
	childDir  = "LEDGER_TEST_CHILD_DIR"
	childMode = "LEDGER_TEST_CHILD_MODE"
)

func TestMain(m *testing.M) {
	// Tessera tells klog and slog about each write that a test makes fail.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(runChild(dir, os.Getenv(childMode)))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// runChild appends to the ledger in dir and prints the index and the note of
// each entry that was acknowledged.
func runChild(dir, mode string) int {
	ctx := context.Background()
	signer, vkey, err := ledger.LoadOrCreateKey(dir+".key", origin)
	if err != nil {
		return fail(err)
	}
	l, err := ledger.Open(ctx, ledger.Config{Dir: dir, Signer: signer, Verifier: vkey})
	if err != nil {
		return fail(err)
	}
	if mode == "forever" { // until somebody kills it
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					appendAndPrint(ctx, l, fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i))
				}
			})
		}
		wg.Wait()
	}
	// Otherwise the mode is a resource, and limits are tried in turn. Those on a
	// file's size hit, in this order: all files, the tree state, tiles, bundles, none.
	sizes := []uint64{0, 40, 64, 1 << 10, 1 << 20}
	signal.Ignore(syscall.SIGXFSZ)
	failed := 0
	for limit := range uint64(40) {
		resource, value := syscall.RLIMIT_FSIZE, sizes[limit%uint64(len(sizes))]
		if mode == "files" {
			resource, value = syscall.RLIMIT_NOFILE, 6+limit
		}
		if limit%4 == 0 { // the writer has to be opened under the limit
			if err := l.Flush(ctx); err != nil || !l.Rest() {
				return fail(fmt.Errorf("limit %d: no rest: %w", limit, err))
			}
		}
		var old syscall.Rlimit
		if err := syscall.Getrlimit(resource, &old); err != nil {
			return fail(err)
		}
		if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: value, Max: old.Max}); err != nil {
			return fail(err)
		}
		if !appendAndPrint(ctx, l, "limited-"+strconv.FormatUint(limit, 10)) {
			failed++
		}
		if err := syscall.Setrlimit(resource, &old); err != nil {
			return fail(err)
		}
		if !appendAndPrint(ctx, l, "free-"+strconv.FormatUint(limit, 10)) {
			return fail(fmt.Errorf("limit %d: no append works any more", limit))
		}
	}
	if failed == 0 || failed == 40 {
		return fail(fmt.Errorf("%d of 40 limited appends failed", failed))
	}
	if err := l.Close(); err != nil {
		return fail(err)
	}
	return 0
}

func appendAndPrint(ctx context.Context, l *ledger.Ledger, note string) bool {
	i, err := l.Append(ctx, ledger.Entry{Type: ledger.Seen, Note: note}, map[string][]byte{"plan": []byte(note)})
	if err == nil {
		fmt.Printf("%d %s\n", i, note) // one write, not buffered
	}
	return err == nil
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "child:", err)
	return 1
}
