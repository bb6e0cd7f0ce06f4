// Package reconciler owns the loop: which stack is worked on when, and the
// pipeline from a verified commit to a world that is equal to it.
//
// It guarantees that one stack's failure stays with that stack, that a stack is
// worked on by one worker at a time, that the last verified state goes on being
// enforced while a newer one is refused or cannot be fetched, and that after a
// crash dangling intents are found and closed. It refuses to write to the world
// itself: targets do, with a grant.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/robfig/cron/v3"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/workqueue"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// Stack is one stack as the operator granted it.
type Stack struct {
	Name        string
	Environment string
	Dir         string // folder of the stack file within the snapshot
	TargetName  string // "kubernetes", "terraform"
	DependsOn   []string
	Drift       drift.Rules
	Schedule    cron.Schedule // of the full comparison
	Policy      policy.Evaluator
	// JudgedBy are the repositories that its policies come from: a daemon that knows
	// less of one of them than its mark says judges nothing.
	JudgedBy []string
	// Build makes the stack's target. It is called once, when the stack starts
	// to run, and not for a stack that is running already.
	Build func() (targets.Target, error)
	// Prune says what becomes of the objects when the stack file goes.
	Prune Prune
	// Key binds everything that configured the stack. While it stays equal the
	// running stack is kept.
	Key string
	// Err says why the stack cannot run: it does not decode, or the operator's
	// map denies it. The other fields may then be empty.
	Err error
}

// Prune is what becomes of a stack's objects when its stack file goes.
type Prune string

// The ways to prune. The zero Prune is PruneHold.
const (
	PruneHold   Prune = "hold"   // they stay, and go on being enforced
	PruneDelete Prune = "delete" // they are deleted
	PruneOrphan Prune = "orphan" // they stay, and nobody cares for them any more
)

// Source is a source that can also read what it fetched before, without network.
type Source interface {
	sources.Source
	Local(ctx context.Context, rev sources.Revision) (*sources.Snapshot, error)
}

// Repository is one desired-state repository.
type Repository struct {
	Name     string
	Interval time.Duration
	// MaxAge is how long the head may be impossible to confirm before that is a
	// finding; zero is never.
	MaxAge time.Duration
	Source Source
	// Authorise proves who authorised the history from one commit (exclusive;
	// empty: from the anchor) to head, which was first seen at a given time.
	Authorise func(ctx context.Context, from, head string, seen time.Time) (verify.Evidence, error)
	// Follows checks that head is from or comes after it along first parents, and
	// judges nothing.
	Follows func(ctx context.Context, from, head string) error
	// Take is optional. It is told the newest verified revision before its stacks are
	// discovered, and says whether that changes what stacks are judged by. It may
	// refuse it: then the one before goes on being enforced, over a restart too.
	Take func(ctx context.Context, snap *sources.Snapshot, commit verify.Evidence) (changed bool, err error)
	// Discover returns the stacks of a snapshot whose commit was authorised. A
	// stack that cannot run carries its Err; an error means that nothing could
	// be discovered at all.
	Discover func(ctx context.Context, snap *sources.Snapshot) ([]Stack, error)
}

// Artifacts proves what a rendering names.
type Artifacts interface {
	Verify(ctx context.Context, environment string, subjects []verify.Subject) (verify.Report, map[string]verify.Subject, error)
	// Fingerprint binds everything that a new verification would look at: while
	// it stays equal, so does the outcome.
	Fingerprint(ctx context.Context, environment string, subjects []verify.Subject) (digest.Digest, error)
}

// Ledger is where decisions and changes are recorded.
type Ledger interface {
	gate.Ledger
	DanglingIntents(ctx context.Context) ([]ledger.Numbered, error)
	// Orders returns what people ordered, oldest first.
	Orders(ctx context.Context) ([]ledger.Numbered, error)
	// Now returns the time, or an error of kind fault.Waiting if the clock is
	// behind the newest entry: then nothing that depends on time can be judged.
	Now() (time.Time, error)
	// Checkpoint returns the newest signed checkpoint; Contains checks that the
	// log goes on from one.
	Checkpoint(ctx context.Context) ([]byte, error)
	Contains(ctx context.Context, checkpoint []byte) error
	Origin() string
}

// Config is what a Reconciler works with. All fields are required but those
// that say otherwise.
type Config struct {
	Repositories []Repository
	Artifacts    Artifacts
	Gate         *gate.Gate
	Ledger       Ledger
	StateDir     string // folder of the reconciler's own state
	Workers      int
	Log          *slog.Logger
	Metrics      prometheus.Registerer
	// Tracer is optional: it makes the spans of deployments.
	Tracer trace.Tracer
	// Scrub masks secrets in a text before it is logged, shown or recorded.
	Scrub func(string) string
	// Revocations is what people revoked. The verifiers share it.
	Revocations *verify.Revocations
	// Signer says who signed an order, or that nobody did who may. Without it no
	// order is taken.
	Signer      func(order, signature []byte, now time.Time) (string, error)
	OrderMaxAge time.Duration // of an order; 1 h if zero
	// Marks is optional: where the high-water marks are kept beside the state folder.
	Marks Marks
	// Events is optional. It is called for what a person may want to hear of,
	// from many goroutines, and MUST not block.
	Events func(Event)
	// Verified is optional. It is called with what was verified for a deployment, and
	// must not block.
	Verified func(ctx context.Context, environment string, report verify.Report)
}

// Validate reports what is missing.
func (c Config) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("reconciler: no %s", what))
		}
	}
	need(len(c.Repositories) > 0, "repositories")
	need(c.Artifacts != nil, "artifact verifier")
	need(c.Gate != nil, "gate")
	need(c.Ledger != nil, "ledger")
	need(c.StateDir != "", "state folder")
	need(c.Workers > 0, "workers")
	need(c.Log != nil, "logger")
	need(c.Metrics != nil, "metrics registry")
	need(c.Scrub != nil, "scrubber")
	need(c.Revocations != nil, "revocations")
	return errors.Join(errs...)
}

// Reconciler is the loop.
type Reconciler struct {
	Config
	metrics *metrics
	state   stateDir
	orders  orders
	marks   markKeeper

	anonymous anonymous

	mu     sync.Mutex // guards the maps, not what they hold
	repos  map[string]*repository
	stacks map[string]*stack
	before map[string]string     // old names of stacks that were renamed and do not stand yet, by new name
	kept   map[string]stackState // what the state directory says about stacks, by name

	queue      workqueue.TypedDelayingInterface[request] // nil: nothing runs by itself
	repairs    workqueue.TypedInterface[string]
	late       sync.WaitGroup // ledger entries that nobody waits for
	unrecorded atomic.Bool    // the last of them could not be appended
	life       context.Context
	watch      *errgroup.Group // observers
	ready      chan struct{}   // closed when what was granted before is taken up
}

// request names a unit of work; it holds no state.
type request struct {
	kind requestKind
	name string
}

type requestKind int

const (
	reconcileStack requestKind = iota
	compareStack               // full comparison with the live world, by schedule
	lookAgain                  // has the evidence changed that a stack was denied for?
	removeStack                // its stack file is gone, and so shall its objects be
)

// New returns a Reconciler. It does no I/O.
func New(c Config) (*Reconciler, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.OrderMaxAge == 0 {
		c.OrderMaxAge = time.Hour
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, err
	}
	r := &Reconciler{
		Config:  c,
		metrics: m,
		state:   stateDir(c.StateDir),
		repos:   map[string]*repository{},
		stacks:  map[string]*stack{},
		ready:   make(chan struct{}),
	}
	for _, repo := range c.Repositories {
		r.repos[repo.Name] = &repository{Repository: repo, poked: make(chan struct{}, 1)}
	}
	if err := c.Metrics.Register(standing{r}); err != nil {
		return nil, fmt.Errorf("reconciler: register metrics: %w", err)
	}
	return r, nil
}

// Run works until ctx ends. It goes on from what was verified and granted
// before the last stop, without network, and only then looks for news.
func (r *Reconciler) Run(ctx context.Context) error {
	if err := r.closeDangling(ctx); err != nil {
		return err
	}
	if err := r.takeUpOrders(ctx); err != nil {
		return err
	}
	watch, life := errgroup.WithContext(ctx)
	r.watch, r.life = watch, life
	r.queue = r.metrics.delaying(queueStacks)
	r.repairs = r.metrics.plain(queueRepairs)
	r.metrics.staff(queueStacks, r.Workers)
	r.metrics.staff(queueRepairs, repairWorkers)
	r.resume(ctx)
	r.awaitResumption()
	close(r.ready)

	var workers sync.WaitGroup
	for range r.Workers {
		workers.Go(func() { r.work(life) })
	}
	for range repairWorkers {
		workers.Go(func() { r.workRepairs(life) })
	}
	for _, c := range r.Repositories {
		workers.Go(func() { r.pollLoop(life, r.repository(c.Name)) })
	}
	<-ctx.Done()
	r.queue.ShutDown()
	r.repairs.ShutDown()
	workers.Wait()
	err := watch.Wait()
	r.late.Wait()
	r.closeTargets()
	return err
}

// Ready is closed once Run has taken up what was granted before. Commands that
// come earlier would find nothing.
func (r *Reconciler) Ready() <-chan struct{} { return r.ready }

// work takes requests until the queue shuts down. A panic while working on one
// stack is that stack's failure.
func (r *Reconciler) work(ctx context.Context) {
	for {
		req, down := r.queue.Get()
		if down {
			return
		}
		done := r.metrics.busy(queueStacks)
		again := r.handle(ctx, req)
		done()
		r.queue.Done(req)
		if again > 0 && ctx.Err() == nil {
			r.queue.AddAfter(req, again)
		}
	}
}

// handle does one request and returns when to do it again; 0 is not by itself.
func (r *Reconciler) handle(ctx context.Context, req request) (again time.Duration) {
	s := r.stack(req.name)
	if s == nil { // gone since it was queued
		return 0
	}
	switch req.kind {
	case compareStack:
		return r.compare(ctx, s)
	case lookAgain:
		return r.lookAgain(ctx, s)
	}
	if sus := r.suspension(req.name); sus != nil {
		return sus.untilResumed()
	}
	if req.kind == removeStack {
		return r.end(ctx, s)
	}
	return r.settle(ctx, s, guarded(s, func() error { return r.reconcile(ctx, s) }))
}

// guarded runs f for s and turns a panic into an error (invariant 3).
func guarded(s *stack, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "reconciler", "report this with the log", "panic: %v", p)
		}
		err = fault.WithStack(s.Name, err)
	}()
	return f()
}

// settle notes the outcome of a reconciliation and returns when to try again:
// the kind of the error decides.
func (r *Reconciler) settle(ctx context.Context, s *stack, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	ctx = s.traced(ctx)
	kind := fault.KindOf(err)
	changed := s.settle(err, r.Scrub)
	r.tellSettled(s, err, changed)
	judged := s.takeJudged()
	r.metrics.settled(s, err)
	if (kind == fault.Denied || kind == fault.Invalid) && s.live.halfWay() {
		// What waited half-way does not go on: what was granted before is enforced again.
		s.live.waits(false)
		r.observe(s)
		if r.queue != nil {
			r.queue.Add(request{compareStack, s.Name})
		}
	}
	switch {
	case err == nil:
		r.wake(s.Name)
		return 0
	case !changed:
	case kind == fault.Denied || kind == fault.Invalid:
		r.metrics.refused(refusedStack, err)
		r.recordLater(ctx, ledger.Entry{Type: ledger.Refused, Stack: s.Name, Environment: s.Environment, Revision: s.revisionString(), Outcome: kind.String(), Note: r.Scrub(err.Error())}, judged.bodies())
		fallthrough
	default:
		level := slog.LevelWarn
		if kind == fault.Waiting {
			level = slog.LevelInfo
		}
		r.Log.Log(ctx, level, "not reconciled", slog.String("stack", s.Name), slog.String("environment", s.Environment), slog.String("revision", s.revisionString()), slog.String("kind", kind.String()),
			slog.String("op", fault.OpOf(err)), slog.String("error", r.Scrub(err.Error())), slog.String("hint", fault.HintOf(err)))
	}
	switch kind {
	case fault.Waiting:
		return s.backoff(500*time.Millisecond, 15*time.Second)
	case fault.Denied: // evidence may come after the image
		s.denied(judged)
		if r.queue != nil {
			r.queue.AddAfter(request{lookAgain, s.Name}, lookAgainAfter)
		}
		return 0
	case fault.Invalid:
		return 0
	default:
		return s.backoff(time.Second, 5*time.Minute)
	}
}

// wake queues the stacks that depend on name.
func (r *Reconciler) wake(name string) {
	if r.queue == nil { // nothing runs by itself
		return
	}
	for _, s := range r.all() {
		if slices.Contains(s.DependsOn, name) && !s.settled() {
			r.queue.Add(request{reconcileStack, s.Name})
		}
	}
}

func (r *Reconciler) repository(name string) *repository {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.repos[name]
}

func (r *Reconciler) stack(name string) *stack {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stacks[name]
}

// all returns the stacks in name order.
func (r *Reconciler) all() []*stack {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*stack, 0, len(r.stacks))
	for _, s := range r.stacks {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *stack) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// closeDangling closes the intents that a crash left open. What they meant to
// do is done again, or not needed any more: the stacks are reconciled anyway.
func (r *Reconciler) closeDangling(ctx context.Context) error {
	open, err := r.Ledger.DanglingIntents(ctx)
	if err != nil {
		return err
	}
	for _, n := range open {
		_, err := r.Ledger.Append(ctx, ledger.Entry{
			Type: ledger.Applied, Stack: n.Entry.Stack, Environment: n.Entry.Environment, Revision: n.Entry.Revision,
			Intent: &n.Index, Outcome: "abandoned", Note: "the daemon stopped before it could record the result; the stack is reconciled again",
		}, nil)
		if err != nil {
			return err
		}
		// A repair, which has no judgement of its own, leads back to what is kept, and
		// a removal needs it to go on: only an apply leaves it in doubt.
		if _, judged := n.Entry.Bodies["commit"]; judged && n.Entry.Outcome != gate.Removal {
			if err := r.state.forget(n.Entry.Stack); err != nil {
				return err
			}
		}
		r.Log.WarnContext(ctx, "closed a dangling intent", slog.String("stack", n.Entry.Stack), slog.Uint64("intent", uint64(n.Index)))
	}
	return nil
}

// recordLater appends e without waiting for it to be durable. Intents do not
// come this way: the gate waits for them.
func (r *Reconciler) recordLater(ctx context.Context, e ledger.Entry, bodies map[string][]byte) {
	ctx = context.WithoutCancel(ctx)
	r.late.Go(func() {
		ctx, span := r.child(ctx, "record")
		span.SetAttributes(attrEntry.String(string(e.Type)))
		index, err := r.Ledger.Append(ctx, e, bodies)
		for wait := time.Second; err != nil; wait = min(2*wait, time.Minute) {
			r.unrecordedEntry(ctx, e, err)
			if e.Intent == nil || r.life == nil || r.life.Err() != nil {
				break
			}
			// Nothing else knows what was done: an intent that stays open is closed
			// by the next start only, as abandoned.
			pause(r.life, wait)
			index, err = r.Ledger.Append(ctx, e, bodies)
		}
		if err == nil {
			indexed(span, index)
		}
		endSpan(span, r.Scrub, err)
		if before := r.unrecorded.Swap(err != nil); before && err == nil {
			r.tell(Event{Type: EventLedger, Key: "ledger/append", Resolved: true, Message: "the ledger can be written again"})
		}
	})
}

// unrecordedEntry says that e could not be appended.
func (r *Reconciler) unrecordedEntry(ctx context.Context, e ledger.Entry, err error) {
	r.unrecorded.Store(true)
	r.Log.ErrorContext(ctx, "entry not recorded", slog.String("type", string(e.Type)), slog.String("stack", e.Stack), slog.String("error", err.Error()))
	r.tell(Event{Type: EventLedger, Key: "ledger/append", Stack: e.Stack, Environment: e.Environment, Kind: fault.KindOf(err),
		Message: "an entry could not be recorded: " + err.Error(), Hint: "look at the state directory: disk full, read-only or lost?"})
}

func (r *Reconciler) closeTargets() {
	for _, s := range r.all() {
		s.close()
	}
}
