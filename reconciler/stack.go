package reconciler

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// Phase is where a stack stands, in one word.
type Phase string

// The phases.
const (
	Pending     Phase = "pending"     // not looked at yet
	Reconciling Phase = "reconciling" // being verified, judged or applied
	Progressing Phase = "progressing" // applied, not healthy yet
	Ready       Phase = "ready"       // the world is what was granted
	Drifted     Phase = "drifted"     // the world is not, and nobody reverts it
	Waiting     Phase = "waiting"     // for a dependency, a lock, a person
	Denied      Phase = "denied"      // verification or policy said no
	Invalid     Phase = "invalid"     // the repository is wrong
	Failed      Phase = "failed"      // something did not work and is tried again
	Held        Phase = "held"        // its stack file is gone; nothing is deleted
)

// Status is what is known about one stack.
type Status struct {
	Stack       string            `json:"stack"`
	Repository  string            `json:"repository"`
	Dir         string            `json:"dir"`
	Environment string            `json:"environment,omitempty"`
	Target      string            `json:"target,omitempty"`
	Phase       Phase             `json:"phase"`
	Desired     string            `json:"desired,omitempty"` // commit that is asked for
	Applied     string            `json:"applied,omitempty"` // commit that is enforced
	Message     string            `json:"message,omitempty"`
	Hint        string            `json:"hint,omitempty"`
	Since       time.Time         `json:"since"` // when the phase was entered
	DriftMode   drift.Mode        `json:"driftMode,omitempty"`
	Findings    []targets.Finding `json:"findings,omitempty"`
}

// stack is a running stack.
type stack struct {
	Stack
	Target targets.Target // nil with an Err
	repo   string

	work     *sync.Mutex // held by whoever works on the stack
	findings drift.Open

	mu       sync.Mutex // guards what follows
	status   Status
	attempts int
	held     bool
	last     *Proposal // what the last judgement reached
	refusal  error     // why the newest request is not taken; the older one stands
	snap     *sources.Snapshot
	commit   verify.Evidence
	// What was granted last, and what it was made from.
	rendered  targets.Rendered
	isGranted bool
	inputs    map[string]string
	pending   map[plan.ObjectID]time.Time // to repair, with the time of detection
	stop      context.CancelFunc          // ends the observer
	closed    bool
}

func newStack(repo string, c Stack) *stack {
	return &stack{Stack: c, repo: repo, work: new(sync.Mutex), status: Status{
		Stack: c.Name, Repository: repo, Dir: c.Dir, Environment: c.Environment, Target: c.TargetName,
		Phase: Pending, Since: time.Now().UTC(), DriftMode: c.Drift.Mode,
	}}
}

// build makes the target. A stack whose target cannot be made cannot run.
func (s *stack) build() {
	if s.Err == nil {
		s.Target, s.Err = s.Build()
	}
}

// want sets what the stack should become.
func (s *stack) want(snap *sources.Snapshot, commit verify.Evidence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snap, s.commit = snap, commit
	s.held, s.refusal = false, nil
	s.attempts = 0
	s.status.Desired = snap.Revision.ID
	if s.isGranted && sameInputs(s.inputs, snap) {
		s.status.Applied = snap.Revision.ID
	}
}

func (s *stack) desired() (*sources.Snapshot, verify.Evidence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snap, s.commit
}

func (s *stack) granted() (targets.Rendered, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rendered, s.isGranted
}

// unchanged reports whether what is asked for was granted and applied already:
// everything that the rendering read still has the same content.
func (s *stack) unchanged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isGranted && s.snap != nil && sameInputs(s.inputs, s.snap)
}

// stand notes that p is in the world now.
func (s *stack) stand(p *Proposal) {
	s.findings.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rendered, s.isGranted, s.inputs = p.rendered, true, p.inputs
	s.pending = nil
	s.status.Applied = p.Plan.Revision.ID
}

// judged keeps what a judgement reached: a refusal is recorded with it.
func (s *stack) judged(p *Proposal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = p
}

// takeJudged returns what the last judgement reached, once.
func (s *stack) takeJudged() *Proposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.last
	s.last = nil
	return p
}

func (s *stack) revisionString() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snap == nil {
		return ""
	}
	return s.snap.Revision.Source + "@" + s.snap.Revision.ID
}

func (s *stack) entry(t ledger.Type, outcome, note string) ledger.Entry {
	return ledger.Entry{Type: t, Stack: s.Name, Environment: s.Environment, Revision: s.revisionString(), Outcome: outcome, Note: note}
}

func (s *stack) enter(p Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(p)
}

func (s *stack) enterLocked(p Phase) bool {
	if s.status.Phase == p {
		return false
	}
	s.status.Phase, s.status.Since = p, time.Now().UTC()
	return true
}

func (s *stack) progress(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Message, s.status.Hint = message, ""
}

// settle notes the outcome of a reconciliation and reports whether it differs
// from what the status said before.
func (s *stack) settle(err error, scrub func(string) string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.attempts = 0
		s.status.Message, s.status.Hint = "", ""
		switch {
		case s.held:
			s.holdLocked()
		case len(s.findings.List()) > 0:
			s.enterLocked(Drifted)
		default:
			s.enterLocked(Ready)
		}
		return true
	}
	s.attempts++
	message, hint := scrub(err.Error()), fault.HintOf(err)
	phase := Failed
	switch fault.KindOf(err) {
	case fault.Waiting:
		phase = Waiting
		if s.status.Phase == Progressing { // applied, and not healthy yet
			phase = Progressing
		}
	case fault.Denied:
		phase = Denied
	case fault.Invalid:
		phase = Invalid
	}
	changed := s.status.Message != message || s.status.Phase != phase
	s.enterLocked(phase)
	s.status.Message, s.status.Hint = message, hint
	return changed
}

// refused returns why the stack cannot run as it is asked for, or nil.
func (s *stack) refused() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal != nil {
		return s.refusal
	}
	return s.Err
}

// hold notes that the stack file is gone. What was deployed stays, and goes on
// being enforced.
func (s *stack) hold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return false
	}
	s.holdLocked()
	return true
}

// refuse notes that what is asked for now cannot be taken. What was granted
// before goes on being enforced.
func (s *stack) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts = 0
	s.refusal = err
}

// inherit takes over what o, the same stack with another configuration, has in
// the world, and ends o.
func (s *stack) inherit(o *stack) {
	o.close()
	s.work = o.work
	s.status.Applied = o.snapshotStatus().Applied
}

func (s *stack) holdLocked() {
	s.held = true
	s.enterLocked(Held)
	s.status.Message = "the stack file is gone; nothing is deleted"
	s.status.Hint = "bring the stack file back, or delete what it deployed by hand"
}

// settled reports whether nothing is left to do for the stack.
func (s *stack) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.Phase == Ready || s.status.Phase == Held || s.status.Phase == Drifted
}

// backoff returns the time until the next attempt: doubled each time, with
// jitter, so that stacks that failed together do not come back together.
func (s *stack) backoff(first, limit time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := first
	for i := 1; i < s.attempts && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	return d - time.Duration(rand.Int64N(int64(d)/5+1)) //nolint:gosec // jitter needs no secrecy
}

// untilCompare returns the time until the next scheduled comparison.
func (s *stack) untilCompare(now time.Time) time.Duration {
	if s.Schedule == nil {
		return 0
	}
	return s.Schedule.Next(now).Sub(now)
}

func (s *stack) snapshotStatus() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Findings = s.findings.List()
	return st
}

// addPending queues an object for repair.
func (s *stack) addPending(id plan.ObjectID, detected time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == nil {
		s.pending = map[plan.ObjectID]time.Time{}
	}
	if _, ok := s.pending[id]; !ok {
		s.pending[id] = detected
	}
}

// takePending returns the objects to repair and forgets them.
func (s *stack) takePending() (ids []plan.ObjectID, detected map[plan.ObjectID]time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	detected, s.pending = s.pending, nil
	return slices.SortedFunc(maps.Keys(detected), plan.ObjectID.Compare), detected
}

// observing starts or replaces the observer's context.
func (s *stack) observing(stop context.CancelFunc) {
	s.mu.Lock()
	old := s.stop
	s.stop = stop
	if s.closed && stop != nil { // replaced while it was at work
		stop()
	}
	s.mu.Unlock()
	if old != nil {
		old()
	}
}

// close ends the observer and frees the target.
func (s *stack) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.observing(nil)
	if c, ok := s.Target.(targets.Closer); ok {
		_ = c.Close() // nothing can be done about it at the end
	}
}
