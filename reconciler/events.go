package reconciler

import (
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// EventType says what happened.
type EventType string

// The types of event.
const (
	EventApplied   EventType = "applied"   // something was deployed
	EventDenied    EventType = "denied"    // verification or policy said no, or the repository is wrong
	EventFailed    EventType = "failed"    // something does not work and is tried again
	EventHeld      EventType = "held"      // a person has to decide: a plan over the limits, a stack file that is gone
	EventDrift     EventType = "drift"     // the world differs from what was granted
	EventReverted  EventType = "reverted"  // and was made equal again
	EventRecovered EventType = "recovered" // a stack that was denied, failed or held is well again
	EventRevoked   EventType = "revoked"   // what a stack runs rests on something that was revoked
	EventSource    EventType = "source"    // a repository cannot be read or is refused
	EventLedger    EventType = "ledger"    // the ledger cannot be written
)

// Event is something that a person may want to hear of. Its texts are masked.
type Event struct {
	Type EventType
	// Key is the same for the same problem, however often it is told; an event
	// that is Resolved ends the problem of its key.
	Key      string
	Resolved bool
	Time     time.Time

	Stack, Environment, Repository string
	Revision                       string // commit
	Object                         string // "Deployment/shop/web", for drift
	Class                          string // targets.FindingClass, for drift
	Actor                          string // who made the drift, as far as it is known
	Kind                           fault.Kind
	Message, Hint                  string
}

// tell hands e to whoever listens. It does not block: the listener queues.
func (r *Reconciler) tell(e Event) {
	if r.Events == nil {
		return
	}
	e.Time = time.Now().UTC()
	e.Message, e.Hint = r.Scrub(e.Message), r.Scrub(e.Hint)
	r.Events(e)
}

// event returns an event about s.
func (s *stack) event(t EventType, key, message string) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Event{
		Type: t, Key: key + "/" + s.Name, Stack: s.Name, Environment: s.Environment, Repository: s.repo,
		Revision: s.asked.ID, Message: message,
	}
}

// failuresUntilTold is how often something that is tried again has to fail
// before people hear of it: most such failures are gone a second later.
const failuresUntilTold = 4

// tellSettled tells people of what became of a reconciliation, if it is news.
func (r *Reconciler) tellSettled(s *stack, err error, changed bool) {
	if err == nil {
		if s.isHeld() { // nothing is well about it until a person decides
			return
		}
		if s.alarm(false) {
			e := s.event(EventRecovered, "stack", "the stack is well again")
			e.Resolved = true
			r.tell(e)
		}
		return
	}
	kind := fault.KindOf(err)
	t := EventFailed
	switch {
	case kind == fault.Denied || kind == fault.Invalid:
		t = EventDenied
	case kind == fault.Waiting && fault.OpOf(err) == opAdmit:
		t = EventHeld
	case kind == fault.Waiting:
		return
	case s.failures() != failuresUntilTold:
		return
	}
	if !changed && t != EventFailed {
		return
	}
	s.alarm(true)
	e := s.event(t, "stack", err.Error())
	e.Kind, e.Hint = kind, fault.HintOf(err)
	r.tell(e)
}

// opAdmit is the operation of the gate's refusals. A refusal of kind Waiting is
// about limits: a person has to decide.
const opAdmit = "policy/gate.Admit"

// alarm notes whether people were told of a problem with s, and reports what
// was noted before.
func (s *stack) alarm(on bool) (before bool) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	before, s.live.alarmed = s.live.alarmed, on
	return before
}

func (s *stack) failures() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts
}
