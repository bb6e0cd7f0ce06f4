package reconciler

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/trace"

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
	Drifted     Phase = "drifted"     // the world is not
	Waiting     Phase = "waiting"     // for a dependency, a lock, a person
	Denied      Phase = "denied"      // verification or policy said no
	Invalid     Phase = "invalid"     // the repository is wrong
	Failed      Phase = "failed"      // something did not work and is tried again
	Held        Phase = "held"        // its stack file is gone; nothing is deleted
	Suspended   Phase = "suspended"   // by a person; nothing is applied and nothing reverted
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
	Suspended   *Suspension       `json:"suspended,omitempty"`
	RolledBack  *RolledBack       `json:"rolledBack,omitempty"`
	Revoked     string            `json:"revoked,omitempty"` // why what runs is not restored any more
}

// RolledBack says why a stack is kept at an older commit.
type RolledBack struct {
	To     string    `json:"to"`
	From   string    `json:"from"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// basis is what a judgement starts from: a snapshot that was authorised, and the
// stack that it declares.
type basis struct {
	Stack
	target targets.Target
	snap   *sources.Snapshot
	commit verify.Evidence
	seen   time.Time // when the commit was first seen
	anew   bool      // a person asks: nothing is taken from memory
}

// deployment is what was granted and is in the world.
type deployment struct {
	basis
	rendered targets.Rendered
	inputs   map[string]string
	at       time.Time       // when it was granted
	rests    []verify.Anchor // what a revocation would make it void by
}

// enforced is what goes on being enforced, whatever becomes of newer requests.
// Every generation of one stack shares it.
type enforced struct {
	work     sync.Mutex // held by whoever writes to the world for the stack
	findings drift.Open
	fights   drift.Fights

	mu      sync.Mutex // guards what follows
	current *deployment
	dirty   bool                        // an apply of something else failed half-way
	between bool                        // an apply of something else waits half-way: nothing leads back meanwhile
	revoked error                       // what current rests on was revoked: it is not restored
	alarmed bool                        // people were told of a problem
	pending map[plan.ObjectID]time.Time // to repair, with the time of detection
	stop    context.CancelFunc          // ends the observer
	closed  bool
}

// stack is one generation of a stack: a request, and what became of it. Its
// request never changes; a changed stack file makes a new generation.
type stack struct {
	Stack
	repo string
	live *enforced

	mu        sync.Mutex // guards what follows
	target    targets.Target
	status    Status
	attempts  int
	held      bool
	renamed   bool             // it goes on under another name, which stands
	expected  bool             // others wait for its rendering before they prune
	last      *Proposal        // what the last judgement reached
	unproven  *Proposal        // what the judgement reached that denied it
	looked    digest.Digest    // fingerprint of the evidence before the newest judgement
	judgedAt  time.Time        // when it was judged for the reason of time alone
	lookedFor sources.Revision // what looked and judgedAt are about
	refusal   error            // why the newest request is not taken; the older one stands
	asked     sources.Revision // newest revision that asks for something
	snap      *sources.Snapshot
	compared  compared // of snap
	commit    verify.Evidence
	seen      time.Time
	span      trace.SpanContext // of the newest work on it, until its outcome is told
}

func newStack(repo string, c Stack) *stack {
	return &stack{Stack: c, repo: repo, live: &enforced{}, status: Status{
		Stack: c.Name, Repository: repo, Dir: c.Dir, Environment: c.Environment, Target: c.TargetName,
		Phase: Pending, Since: time.Now().UTC(), DriftMode: c.Drift.Mode,
	}}
}

// build makes the target. A stack whose target cannot be made cannot run.
func (s *stack) build() {
	if s.Err == nil {
		s.target, s.Err = s.Build()
	}
}

// inherit makes s the next generation of o.
func (s *stack) inherit(o *stack) {
	s.live = o.live
	s.status.Applied = o.snapshotStatus().Applied
}

// want sets what the stack should become.
func (s *stack) want(snap *sources.Snapshot, commit verify.Evidence, seen time.Time) {
	s.mu.Lock()
	s.snap, s.commit, s.seen = snap, commit, seen
	s.held, s.refusal = false, nil
	s.attempts = 0
	s.asked, s.status.Desired = snap.Revision, snap.Revision.ID
	s.mu.Unlock()
	if s.unchanged() {
		s.standing()
	}
}

// standing notes that what is asked for is what is enforced already.
func (s *stack) standing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Applied = s.snap.Revision.ID
}

// desired is the basis of a judgement of what is asked for.
func (s *stack) desired() basis {
	s.mu.Lock()
	defer s.mu.Unlock()
	return basis{Stack: s.Stack, target: s.target, snap: s.snap, commit: s.commit, seen: s.seen}
}

// granted returns what is enforced, or nil.
func (s *stack) granted() *deployment {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	return s.live.current
}

// unchanged reports whether what is asked for was granted and applied already:
// the same request, and everything that its rendering read has the same content.
func (s *stack) unchanged() bool {
	s.live.mu.Lock()
	d, dirty := s.live.current, s.live.dirty || s.live.revoked != nil
	s.live.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d == nil || dirty || s.snap == nil || d.Key != s.Key {
		return false
	}
	if s.compared.with != d || s.compared.snap != s.snap { // neither ever changes
		s.compared = s.compared.next(d, s.snap, s.Dir)
	}
	return s.compared.same
}

// compared is what came of comparing the inputs of a deployment with a snapshot.
type compared struct {
	with *deployment
	snap *sources.Snapshot
	same bool
	// folder is the content id of the stack's folder in snap, where all inputs are in it.
	folder string
}

// next compares the inputs of d with snap. While the folder that all of them are in is the
// same, it is the only question: a commit costs its change, not what is deployed.
func (c compared) next(d *deployment, snap *sources.Snapshot, dir string) compared {
	now := compared{with: d, snap: snap}
	if ids, ok := snap.FS.(sources.Identified); ok && inFolder(d.inputs, dir) {
		now.folder = contentID(ids, dir)
	}
	if c.with == d && now.folder != "" && now.folder == c.folder {
		now.same = c.same
	} else {
		now.same = sameInputs(d.inputs, snap)
	}
	return now
}

// begin notes that something is about to be written: until it stands, nothing
// that was granted before counts as being in the world.
func (s *stack) begin() {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	s.live.dirty = true
}

// stand makes d what is enforced. It returns what was before, the findings that
// are over with it, and whether what was before had been revoked.
func (s *stack) stand(d *deployment) (before *deployment, over []targets.Finding, trusted bool) {
	over = s.live.findings.Close()
	s.live.mu.Lock()
	before, trusted = s.live.current, s.live.revoked != nil
	s.live.current, s.live.dirty, s.live.between, s.live.pending, s.live.revoked = d, false, false, nil, nil
	s.live.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Applied = d.snap.Revision.ID
	return before, over, trusted
}

// revoked notes that d rests on something that was revoked, and reports whether
// that is news.
func (s *stack) revoked(d *deployment, why error) bool {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	if s.live.current != d || s.live.revoked != nil {
		return false
	}
	s.live.revoked, s.live.alarmed = why, true
	return true
}

// denied keeps what a denied judgement reached, to tell when it would come out
// differently.
func (s *stack) denied(p *Proposal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lookedFor != s.asked {
		s.looked, s.lookedFor, s.judgedAt = "", s.asked, time.Now()
	}
	s.unproven = p
}

func (s *stack) revisionString() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.ID == "" {
		return ""
	}
	return s.asked.Source + "@" + s.asked.ID
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

func (s *stack) entry(t ledger.Type, outcome, note string) ledger.Entry {
	return ledger.Entry{Type: t, Stack: s.Name, Environment: s.Environment, Revision: s.revisionString(), Outcome: outcome, Note: note}
}

func (s *stack) enter(p Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(p)
}

func (s *stack) enterLocked(p Phase) {
	if s.status.Phase != p {
		s.status.Phase, s.status.Since = p, time.Now().UTC()
	}
}

func (s *stack) progress(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Message, s.status.Hint = message, ""
}

// settle notes the outcome of a reconciliation and reports whether it differs
// from what the status said before.
func (s *stack) settle(err error, scrub func(string) string) bool {
	if err == nil {
		s.rest()
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts++
	message, hint := scrub(err.Error()), scrub(fault.HintOf(err))
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

// rest enters the phase of a stack for which nothing is left to do.
func (s *stack) rest() {
	drifted := len(s.live.findings.List()) > 0
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts = 0
	switch {
	case s.held:
		s.holdLocked()
	case drifted:
		s.enterLocked(Drifted)
		s.status.Message, s.status.Hint = "", ""
	default:
		s.enterLocked(Ready)
		s.status.Message, s.status.Hint = "", ""
	}
}

// calm notes that the world was found to be what was granted, or was made so.
// A request that is refused or not applied yet, and a removal that is, keeps its
// own phase.
func (s *stack) calm() {
	s.mu.Lock()
	phase, refusal, held := s.status.Phase, s.refusal, s.held
	s.mu.Unlock()
	if refusal == nil && (phase == Ready || phase == Drifted || phase == Held || !held && s.unchanged() && phase != Progressing) {
		s.rest()
	}
}

// disturbed notes that drift was found. It does not hide a refusal.
func (s *stack) disturbed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Phase == Ready {
		s.enterLocked(Drifted)
	}
}

// hold notes that the stack file is gone. What was deployed stays, and goes on
// being enforced.
func (s *stack) hold(rev sources.Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return false
	}
	s.asked = rev
	s.holdLocked()
	return true
}

func (s *stack) isHeld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

func (s *stack) holdLocked() {
	s.held = true
	s.enterLocked(Held)
	s.status.Message = "the stack file is gone; nothing is deleted"
	s.status.Hint = hintHeld
}

// refuse notes that what is asked for now cannot be taken. What was granted
// before goes on being enforced.
func (s *stack) refuse(rev sources.Revision, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts = 0
	s.held = false
	s.refusal = err
	s.asked, s.status.Desired = rev, rev.ID
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
	findings := s.live.findings.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Findings = findings
	if why := s.live.whyRevoked(); why != nil {
		st.Revoked = why.Error()
	}
	return st
}

func (e *enforced) whyRevoked() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.revoked
}

// waits notes whether an apply of something newer waits half-way.
func (e *enforced) waits(half bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.between = half
}

func (e *enforced) halfWay() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.between
}

// addPending queues objects for repair.
func (e *enforced) addPending(detected map[plan.ObjectID]time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pending == nil {
		e.pending = map[plan.ObjectID]time.Time{}
	}
	for id, at := range detected {
		if _, ok := e.pending[id]; !ok {
			e.pending[id] = at
		}
	}
}

// takePending returns the objects to repair and forgets them.
func (e *enforced) takePending() (ids []plan.ObjectID, detected map[plan.ObjectID]time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	detected, e.pending = e.pending, nil
	return slices.SortedFunc(maps.Keys(detected), plan.ObjectID.Compare), detected
}

// observing replaces the observer, whose context stop ends.
func (e *enforced) observing(stop context.CancelFunc) {
	e.mu.Lock()
	old := e.stop
	e.stop = stop
	if e.closed && stop != nil {
		stop()
	}
	e.mu.Unlock()
	if old != nil {
		old()
	}
}

// close ends the observer and frees the targets.
func (s *stack) close() {
	s.live.mu.Lock()
	s.live.closed = true
	d := s.live.current
	s.live.mu.Unlock()
	s.live.observing(nil)
	if d != nil {
		closeTarget(d.target)
	}
	if t := s.desired().target; d == nil || t != d.target {
		closeTarget(t)
	}
}

func closeTarget(t targets.Target) {
	if c, ok := t.(targets.Closer); ok {
		_ = c.Close() // nothing can be done about it
	}
}
