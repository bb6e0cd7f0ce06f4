// Package sandbox owns the processes in which content of a repository is
// rendered: this very binary, re-executed, that gave up everything but its pipes
// before it reads the first byte. [Main] makes the process a worker, a [Pool]
// starts, feeds and ends workers.
//
// It guarantees that a worker has no file system, no network, no environment, no
// other descriptor and no way to start a program; that it serves one trust
// domain; that it is killed when it takes too long, too much memory or answers
// too much; and that one which is killed or crashes takes nothing down but the
// rendering at hand. What it needs to read it asks the parent for, which answers
// from the snapshot that the caller gave. It refuses to start a worker that
// cannot confine itself by a system call filter and resource limits; a network
// namespace and Landlock are added where the host has them. Where there are no
// workers (not Linux on amd64 or arm64), rendering is in process, and that is said.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	op = "internal/sandbox.Run"

	// maxCPU is how much CPU time a worker may use in its life, in seconds: what
	// still ends it when nobody looks at the clock any more.
	maxCPU = 600
)

// Task is what a worker does with a request: parse and render. It gets all that
// it may read through fsys, which implements fs.StatFS, fs.ReadDirFS and
// fs.ReadFileFS, and fs.ReadLinkFS if the caller's file system does. Its errors
// travel as kind (Invalid, Transient or Internal), hint and text.
type Task func(request []byte, fsys fs.FS) (answer []byte, err error)

// Limits bound the workers of a Pool. A zero field has the default of [DefaultLimits].
type Limits struct {
	Time    time.Duration // of one rendering, by the clock
	Memory  int64         // bytes of data, of each worker, beyond what it starts with
	Answer  int64         // bytes of one answer
	Runs    int           // renderings until a worker is replaced
	Workers int           // at once, busy or idle
	Domain  int           // busy at once for one trust domain
	Idle    time.Duration // until an idle worker ends
}

// DefaultLimits returns the limits of the daemon.
func DefaultLimits() Limits {
	return Limits{
		Time: 30 * time.Second, Memory: 512 << 20, Answer: 32 << 20,
		Runs: 512, Workers: 4, Domain: 2, Idle: 30 * time.Second,
	}
}

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	for _, n := range []struct {
		v *int64
		d int64
	}{{&l.Memory, d.Memory}, {&l.Answer, d.Answer}} {
		if *n.v <= 0 {
			*n.v = n.d
		}
	}
	for _, n := range []struct{ v, d *int }{{&l.Runs, &d.Runs}, {&l.Workers, &d.Workers}, {&l.Domain, &d.Domain}} {
		if *n.v <= 0 {
			*n.v = *n.d
		}
	}
	for _, n := range []struct{ v, d *time.Duration }{{&l.Time, &d.Time}, {&l.Idle, &d.Idle}} {
		if *n.v <= 0 {
			*n.v = *n.d
		}
	}
	return l
}

// Config says what a Pool does.
type Config struct {
	// Task is what main or TestMain gives to [Main] as well. It runs here only
	// where there are no workers.
	Task   Task
	Limits Limits
	Log    *slog.Logger
}

// Pool runs a Task in workers. It starts them when they are needed and keeps
// them warm for a while. It is safe for concurrent use.
type Pool struct {
	task   Task
	limits Limits
	log    *slog.Logger
	slots  chan struct{} // one for each busy worker

	mu      sync.Mutex
	domains map[string]chan struct{} // one for each busy worker of the domain
	idle    []*worker                // the longest idle first
	living  sync.WaitGroup
	closed  bool
	told    bool // what the host lacks was logged
	shared  bool // the host lets nobody make namespaces
}

// New returns a Pool without workers. It does no I/O.
func New(cfg Config) (*Pool, error) {
	if cfg.Task == nil {
		return nil, errors.New("sandbox: no task")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	limits := cfg.Limits.orDefaults()
	return &Pool{
		task: cfg.Task, limits: limits, log: cfg.Log,
		slots: make(chan struct{}, limits.Workers), domains: map[string]chan struct{}{},
	}, nil
}

// Run does one request in a worker of the trust domain and returns its answer,
// which is hostile: the caller MUST validate it. The worker reads from fsys, and
// from nothing else.
//
// A limit that is exceeded is an error of kind fault.Invalid, a crash or an
// answer out of turn fault.Internal, a worker that somebody killed twice in a
// row, or that had no CPU, fault.Transient; an error of the task has the kind that
// the task gave it.
func (p *Pool) Run(ctx context.Context, domain string, request []byte, fsys fs.FS) ([]byte, error) {
	if !supported {
		p.tell(ctx, "rendering in process: there are no workers on this system", slog.String("system", runtime.GOOS+"/"+runtime.GOARCH))
		return guarded(p.task, request, fsys)
	}
	release, err := p.admit(ctx, domain)
	if err != nil {
		return nil, err
	}
	defer release()
	answer, err := p.once(ctx, domain, request, fsys)
	if errors.Is(err, errKilled) {
		p.log.WarnContext(ctx, "rendering again: the worker was killed", slog.String("error", err.Error()))
		answer, err = p.once(ctx, domain, request, fsys)
	}
	return answer, err
}

// once does the request in one worker, which is fit for another one only if it
// answered in turn.
func (p *Pool) once(ctx context.Context, domain string, request []byte, fsys fs.FS) ([]byte, error) {
	w, err := p.take(ctx, domain)
	if err != nil {
		return nil, err
	}
	answer, inTurn, err := w.do(ctx, p.limits, request, fsys)
	if inTurn && w.runs < p.limits.Runs && w.cpu() < maxCPU*time.Second-p.limits.Time { // the kernel would end it
		p.give(w)
	} else {
		w.end()
	}
	return answer, err
}

// admit waits until the domain, and then the pool, has a worker to spare, so
// that one domain cannot keep the others waiting.
func (p *Pool) admit(ctx context.Context, domain string) (release func(), err error) {
	p.mu.Lock()
	own := p.domains[domain]
	if own == nil {
		own = make(chan struct{}, min(p.limits.Domain, p.limits.Workers))
		p.domains[domain] = own
	}
	p.mu.Unlock()
	for i, c := range []chan struct{}{own, p.slots} {
		select {
		case c <- struct{}{}:
		case <-ctx.Done():
			if i > 0 {
				<-own
			}
			return nil, fault.Wrap(fault.Transient, op, "", ctx.Err())
		}
	}
	return func() { <-p.slots; <-own }, nil
}

// take returns a warm worker of the domain, or a new one. Where the pool is full
// of idle workers of others, the longest idle makes room.
func (p *Pool) take(ctx context.Context, domain string) (*worker, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, fault.New(fault.Transient, op, "", "rendering has ended")
	}
	for i := len(p.idle) - 1; i >= 0; i-- {
		w := p.idle[i]
		if w.domain != domain {
			continue
		}
		p.remove(i)
		if w.alive() {
			p.mu.Unlock()
			return w, nil
		}
	}
	var evicted *worker
	if len(p.idle)+len(p.slots) > p.limits.Workers {
		evicted = p.idle[0]
		p.remove(0)
	}
	p.mu.Unlock()
	if evicted != nil {
		evicted.end()
	}
	return p.start(ctx, domain)
}

// give keeps w for the next request of its domain.
func (p *Pool) give(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		go w.end()
		return
	}
	p.idle = append(p.idle, w)
	w.expiry = time.AfterFunc(p.limits.Idle, func() { p.expire(w) })
}

// expire ends w if it is still idle.
func (p *Pool) expire(w *worker) {
	p.mu.Lock()
	for i := range p.idle {
		if p.idle[i] == w {
			p.remove(i)
			p.mu.Unlock()
			w.end()
			return
		}
	}
	p.mu.Unlock()
}

// remove takes the worker at i from the idle ones. The caller holds mu.
func (p *Pool) remove(i int) {
	p.idle[i].expiry.Stop()
	p.idle = append(p.idle[:i], p.idle[i+1:]...)
}

// Close ends the idle workers, lets no new one start, and waits for those that
// are busy. The caller has ended their contexts.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	for len(p.idle) > 0 {
		p.remove(len(p.idle) - 1)
	}
	p.idle = nil
	p.mu.Unlock()
	for _, w := range idle {
		w.end()
	}
	p.living.Wait()
	return nil
}

// tell logs one time what is not as it should be on this host.
func (p *Pool) tell(ctx context.Context, message string, attrs ...slog.Attr) {
	p.mu.Lock()
	told := p.told
	p.told = true
	p.mu.Unlock()
	if !told {
		p.log.LogAttrs(ctx, slog.LevelWarn, message, attrs...) //nolint:sloglint // constants of its callers
	}
}

// guarded runs the task and makes an error of a panic. The text of a runtime
// error holds no value of the input; that of any other panic could.
func guarded(task Task, request []byte, fsys fs.FS) (answer []byte, err error) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		what := fmt.Sprintf("%T", v)
		var re runtime.Error
		if e, ok := v.(error); ok && errors.As(e, &re) {
			what = re.Error()
		}
		err = fault.New(fault.Internal, op, reportHint, "rendering panicked: %s", strings.TrimSpace(what))
	}()
	return task(request, fsys)
}
