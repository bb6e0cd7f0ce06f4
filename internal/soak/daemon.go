package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
)

const (
	readyWithin    = 10 * time.Minute
	convergeWithin = 2 * time.Minute
	killWithin     = 1500 * time.Millisecond // of its start: also while it starts
	faultMost      = 4 * time.Second
	sampleEvery    = time.Second
	look           = 100 * time.Millisecond
)

func (s *soak) start() (err error) {
	s.daemon, err = s.world.Daemon(s.bin, s.log)
	return err
}

// kill ends the daemon as kill -9 does. One that ended by itself is an error.
func (s *soak) kill() error {
	if err := s.alive(); err != nil {
		return err
	}
	s.result.kills++
	return s.daemon.Kill()
}

func (s *soak) alive() error {
	if gone, err := s.daemon.Exited(); gone {
		return fmt.Errorf("the daemon ended by itself: %w", err)
	}
	return nil
}

// killed makes sure that no daemon is left over, however the run ends.
func (s *soak) killed() {
	if s.daemon != nil {
		_ = s.daemon.Kill() // it may have ended
	}
}

// begin starts the daemon on a repository that is ready, and waits until every stack is.
func (s *soak) begin(ctx context.Context) error {
	s.say("starting %d applications", s.apps)
	if err := s.namespaces(ctx); err != nil {
		return err
	}
	digest, err := s.world.Publish(ctx, "acme/web", "1.0", world.Signed, false)
	if err != nil {
		return err
	}
	s.image = s.world.RegistryFaults.Host() + "/acme/web@" + digest
	if err := s.publish(); err != nil {
		return err
	}
	if err := s.start(); err != nil {
		return err
	}
	_, err = s.settled(ctx, readyWithin)
	return err
}

// settled waits until every stack is ready at the newest commit and the world is as that
// has it, and returns how long that took.
func (s *soak) settled(ctx context.Context, within time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	start := time.Now()
	for {
		_, err := s.world.Wait(ctx, s.daemon, "every stack to be ready at the newest commit", s.ready)
		if err != nil {
			return 0, err
		}
		where, err := s.asDeclared(ctx)
		if err == nil && where == "" {
			return time.Since(start), nil
		}
		if sleep(ctx, look) != nil {
			return 0, fmt.Errorf("every stack is ready, and the world is not as declared after %s: %s: %w", within, where, errors.Join(err, ctx.Err()))
		}
	}
}

func (s *soak) ready(o reconciler.Overview) bool {
	return len(o.Stacks) == s.apps && !slices.ContainsFunc(o.Stacks, func(st reconciler.Status) bool {
		return st.Phase != reconciler.Ready || st.Applied != s.load.head
	})
}

// killing kills the daemon again and again soon after its start, and leaves one running.
func (s *soak) killing(ctx context.Context) error {
	s.say("killing the daemon %d times", s.kills)
	random := s.random(1)
	return s.underLoad(ctx, 2, func(ctx context.Context) error {
		for range s.kills {
			if err := sleep(ctx, time.Duration(random.Int64N(int64(killWithin)))); err != nil {
				return err
			}
			if err := s.kill(); err != nil {
				return err
			}
			if err := s.start(); err != nil {
				return err
			}
		}
		return nil
	})
}

// soaking runs the daemon for long. It is ended in the first half only: growth
// shows in a process that lives.
func (s *soak) soaking(ctx context.Context) error {
	s.say("soaking for %s", s.long)
	random := s.random(3)
	every := min(max(s.long/20, 2*time.Second), 20*time.Second)
	return s.underLoad(ctx, 4, func(ctx context.Context) error {
		end := time.Now().Add(s.long)
		restarts := time.Now().Add(s.long / 2)
		var samples []sample // of the process that runs
		tick, next := time.NewTicker(sampleEvery), time.NewTimer(every)
		defer tick.Stop()
		defer next.Stop()
		for time.Now().Before(end) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				if one, err := s.sample(ctx); err == nil { // one that starts has no answer yet
					samples = append(samples, one)
				}
			case <-next.C:
				if time.Now().Before(restarts) && random.IntN(2) == 0 {
					samples = nil
					if err := s.restart(); err != nil {
						return err
					}
				} else if err := s.fault(ctx, random); err != nil {
					return err
				}
				next.Reset(every/2 + time.Duration(random.Int64N(int64(every))))
			}
			if err := s.alive(); err != nil {
				return err
			}
		}
		s.grown(samples)
		return nil
	})
}

// restart ends the daemon, well and not in turn, and starts it again.
func (s *soak) restart() error {
	if s.result.restarts > s.result.kills-s.kills {
		if err := s.kill(); err != nil {
			return err
		}
		return s.start()
	}
	s.result.restarts++
	if err := s.daemon.Stop(); err != nil {
		return fmt.Errorf("the daemon did not stop well: %w", err)
	}
	return s.start()
}

// fault has a server fail for a while; each way to fail has its turn.
func (s *soak) fault(ctx context.Context, random *rand.Rand) error {
	git, registry, cluster := s.world.GitFaults, s.world.RegistryFaults, s.world.ClusterFaults
	set := func(p *testenv.FaultProxy, f testenv.Fault) func() { return func() { p.Set(f) } }
	well := func(p *testenv.FaultProxy) func() { return func() { p.Set(testenv.Fault{}); p.Break() } }
	all := []struct{ begin, end func() }{
		{git.Down, git.Up},
		{set(git, testenv.Fault{Status: http.StatusServiceUnavailable}), well(git)},
		{set(git, testenv.Fault{Delay: testenv.Hang}), well(git)},
		{registry.Down, registry.Up},
		{cluster.Down, cluster.Up},
		{cluster.Break, func() {}},
		{set(cluster, testenv.Fault{Status: http.StatusServiceUnavailable}), well(cluster)},
		{set(cluster, testenv.Fault{Delay: testenv.Hang}), well(cluster)},
		{set(cluster, testenv.Fault{CutAfter: -1, Match: writes}), well(cluster)}, // they are carried out, and the answers are lost
	}
	f := all[s.result.faults%len(all)]
	s.result.faults++
	f.begin()
	defer f.end()
	return sleep(ctx, time.Duration(random.Int64N(int64(faultMost))))
}

// writes reports whether a request changes an object. Dry runs, which come first, are
// answered.
func writes(r *http.Request) bool {
	return r.Method == http.MethodPatch && !r.URL.Query().Has("dryRun")
}

// converge waits, without load, until the world is as it should be.
func (s *soak) converge(ctx context.Context) error {
	s.say("waiting until the world is as commit %s has it", s.load.head)
	took, err := s.settled(ctx, convergeWithin)
	if err != nil && ctx.Err() == nil {
		s.result.fail("the world did not converge: %v", err)
		return nil
	}
	s.result.converged = took
	return err
}

// sample is what the daemon used at one moment. Sizes are in MiB.
type sample struct{ rss, anonymous, goroutines, files float64 }

func (s *soak) sample(ctx context.Context) (one sample, err error) {
	if one.rss, one.anonymous, err = s.daemon.Memory(); err != nil {
		return one, err
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.daemon.PID()))
	if err != nil {
		return one, err
	}
	one.files = float64(len(files))
	one.goroutines, err = s.world.Metric(ctx, "go_goroutines ")
	return one, err
}

// growth is what the first and the last quarter of a process's life used, as
// medians: a burst is no growth.
type growth struct {
	samples     int
	first, last sample
}

func (g growth) print(row func(what, format string, args ...any)) {
	if g.samples == 0 {
		row("growth", "not measured")
		return
	}
	row("memory, first and last quarter", "%.0f to %.0f MiB anonymous, %.0f to %.0f MiB RSS (%d samples)", g.first.anonymous, g.last.anonymous, g.first.rss, g.last.rss, g.samples)
	row("goroutines, files", "%.0f to %.0f, %.0f to %.0f", g.first.goroutines, g.last.goroutines, g.first.files, g.last.files)
}

const (
	fewest    = 20 // samples, for a comparison that says something
	mayGrow   = 1.2
	mayAddMiB = 10
)

// grown compares the quarters of one process's life. The first fifth does not
// count: caches fill.
func (s *soak) grown(samples []sample) {
	samples = samples[len(samples)/5:]
	if len(samples) < fewest {
		if s.long >= 2*time.Minute {
			s.result.fail("growth could not be measured: the daemon answered %d times only", len(samples))
		}
		return
	}
	quarter := len(samples) / 4
	g := growth{len(samples), median(samples[:quarter]), median(samples[len(samples)-quarter:])}
	s.result.memory = g
	for what, m := range map[string][2]float64{"anonymous memory": {g.first.anonymous, g.last.anonymous}, "resident memory": {g.first.rss, g.last.rss}} {
		if m[1] > m[0]*mayGrow+mayAddMiB {
			s.result.fail("%s grew from %.0f to %.0f MiB", what, m[0], m[1])
		}
	}
	if g.last.goroutines > g.first.goroutines*mayGrow {
		s.result.fail("goroutines grew from %.0f to %.0f", g.first.goroutines, g.last.goroutines)
	}
}

func median(of []sample) sample {
	mid := func(field func(sample) float64) float64 {
		var all []float64
		for _, one := range of {
			all = append(all, field(one))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	return sample{
		rss: mid(func(m sample) float64 { return m.rss }), anonymous: mid(func(m sample) float64 { return m.anonymous }),
		goroutines: mid(func(m sample) float64 { return m.goroutines }), files: mid(func(m sample) float64 { return m.files }),
	}
}
