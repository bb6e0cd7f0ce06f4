// Command soak has the daemon live through what no test has the time for: it is
// killed at random moments while people edit, delete and commit, and then runs
// for long under the same load, beside servers that fail.
//
// It guarantees that the daemon is judged by what others saw of it: the world by
// what the API server has in the end, the ledger by the API server's audit log,
// memory by the kernel. Once the load is over every check is made, also after one
// that failed, and then the files of the run stay. It refuses to measure speed, which
// internal/bench does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
)

type options struct {
	apps  int
	kills int
	long  time.Duration
	bin   string
	seed  uint64
}

func main() {
	var o options
	flag.IntVar(&o.apps, "apps", 40, "applications, of four objects each")
	flag.IntVar(&o.kills, "kills", 200, "how often the daemon is killed soon after its start")
	flag.DurationVar(&o.long, "for", 30*time.Minute, "how long it runs after that")
	flag.StringVar(&o.bin, "holdfast", "bin/holdfast", "the binary")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of what is chosen at random; what happens meanwhile is never the same")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak: error:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to clean up
	}
}

// soak is one run.
type soak struct {
	options
	dir     string
	cluster *testenv.Cluster
	world   *world.World
	live    dynamic.Interface
	image   string // what the applications run, pinned
	log     *os.File
	daemon  *world.Daemon
	load    load
	result  result
}

// result is what one run came to.
type result struct {
	kills, restarts, faults int
	converged               time.Duration
	memory                  growth
	ledger                  accounts
	wrong                   []string // each a check that failed
}

func (r *result) fail(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

func run(ctx context.Context, o options) (err error) {
	if o.apps < 1 || o.kills < 0 || o.long < 0 {
		return errors.New("-apps must be at least 1, -kills and -for not negative")
	}
	fmt.Fprintf(os.Stderr, "soak: seed %d\n", o.seed)
	s := &soak{options: o}
	if s.dir, err = os.MkdirTemp("", "hfsoak-"); err != nil {
		return err
	}
	defer func() {
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, os.RemoveAll(s.dir))
			return
		}
		err = fmt.Errorf("%w\nthe daemon's log, its state and the audit log are in %s", err, s.dir)
	}()
	if err := s.copyBinary(); err != nil {
		return err
	}
	s.say("starting a control plane")
	if s.cluster, err = testenv.StartCluster(ctx, testenv.ClusterOptions{Dir: filepath.Join(s.dir, "cluster")}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.keepAudit(err), s.cluster.Close()) }()
	people := rest.CopyConfig(s.cluster.Config)
	people.UserAgent = somebody
	if s.live, err = dynamic.NewForConfig(people); err != nil {
		return err
	}
	tofu, err := testenv.Tool("tofu")
	if err != nil {
		return err
	}
	if s.world, err = world.New(world.Options{Dir: s.dir, Cluster: s.cluster, Namespace: namespaces + "*", System: "holdfast-system", Terraform: tofu, Faults: true}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.world.Close()) }()
	if s.log, err = os.Create(filepath.Join(s.dir, "daemon.log")); err != nil {
		return err
	}
	defer s.log.Close() //nolint:errcheck // nobody reads it after this
	defer s.killed()
	for _, step := range []func(context.Context) error{s.begin, s.killing, s.soaking, s.converge, s.end, s.audit} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	s.print(os.Stdout)
	if len(s.result.wrong) > 0 {
		return fmt.Errorf("%d checks failed:\n  %s", len(s.result.wrong), strings.Join(s.result.wrong, "\n  "))
	}
	return nil
}

func (s *soak) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "soak: %s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// random returns a source of choices of its own for one goroutine.
func (s *soak) random(of uint64) *rand.Rand {
	return rand.New(rand.NewPCG(s.seed, of)) // choices that can be made again
}

// copyBinary makes the run independent of who builds meanwhile: each start of the
// daemon is of the same binary.
func (s *soak) copyBinary() error {
	b, err := os.ReadFile(s.bin)
	if err != nil {
		return err
	}
	s.bin = filepath.Join(s.dir, "holdfast")
	return os.WriteFile(s.bin, b, 0o755)
}

// keepAudit saves the audit log of a run with an error: what the control plane wrote goes with it.
func (s *soak) keepAudit(err error) error {
	if err == nil {
		return nil
	}
	files, err := s.auditFiles()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		errs = append(errs, os.Rename(name, filepath.Join(s.dir, filepath.Base(name))))
	}
	return errors.Join(errs...)
}

// end stops the daemon as an operator does and has its ledger verified.
func (s *soak) end(ctx context.Context) error {
	if err := s.daemon.Stop(); err != nil {
		s.result.fail("the daemon did not stop well: %v", err)
	}
	if out, err := exec.CommandContext(ctx, s.bin, "ledger", "verify", "-c", s.world.Config).CombinedOutput(); err != nil {
		s.result.fail("the ledger does not verify: %v: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (s *soak) print(w io.Writer) {
	r, a := s.result, s.result.ledger
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-34s "+format+"\n", append([]any{what}, args...)...)
	}
	fmt.Fprintf(w, "\n%d applications, %d objects, seed %d\n", s.apps, s.apps*len(objects), s.seed)
	row("load", "%d edits, %d deletions, %d commits", s.load.edits.Load(), s.load.deletions.Load(), s.load.commits.Load())
	row("daemon", "%d times killed, %d times restarted, %d faults of servers", r.kills, r.restarts, r.faults)
	row("converged", "%.1f s after the load", r.converged.Seconds())
	r.memory.print(row)
	row("ledger", "%d entries, %d intents: %d done, %d failed, %d abandoned, %d open", a.entries, a.intents, a.done, a.failed, a.abandoned, a.open)
	row("audited writes", "%d", a.writes)
	row("  covered by results", "%d done, %d failed", a.byDone, a.byFailed)
	row("  covered by abandoned intents", "%d", a.byAbandoned)
	row("  uncovered", "%d", a.uncovered)
	row("successes in receipts", "%d", a.successes)
	row("  without an audited write", "%d", a.unseen)
}
