package notify

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// burstWait is how long the first notification of a group waits for others:
	// a storm of drift over one stack is one message.
	burstWait = time.Second
	// A group that goes on is told of at growing intervals: what flaps is not
	// worth a message each time.
	minInterval = 5 * time.Second
	maxInterval = 5 * time.Minute
	// retryLater is when a receiver that could not be reached is tried again,
	// beyond the retries of one message.
	retryLater = time.Minute
	// maxProblems bounds what is remembered for one receiver.
	maxProblems = 2048
)

// problem is what one receiver knows about one ID.
type problem struct {
	n          Notification  // the newest
	end        *Notification // that it ended, which was not said yet
	waiting    bool          // it is to be said
	times      int           // how often it came since it was said
	said       time.Time     // last attempt
	heard      bool          // an attempt worked
	recoveries bool          // its end is wanted
}

// pace is when a group may be told of next.
type pace struct {
	since    time.Time // of the oldest that waits; zero: none does
	sent     time.Time
	interval time.Duration // after sent
}

// mailbox is one receiver: what it was told, what waits to be told, and the way
// to tell it. One slow receiver does not hold up another.
type mailbox struct {
	name     string
	repeat   time.Duration
	sender   *sender
	compose  *composer
	metrics  *metrics
	log      *slog.Logger
	resolves bool // it counts what is open, so it hears every end
	wake     chan struct{}

	mu       sync.Mutex // guards what follows
	problems map[string]*problem
	paces    map[string]*pace
}

func newMailbox(r Receiver, c Config, m *metrics) (*mailbox, error) {
	s, err := newSender(r, c.Scrub)
	if err != nil {
		return nil, err
	}
	compose, err := newComposer(r, c.Scrub)
	if err != nil {
		return nil, err
	}
	return &mailbox{
		name: r.Name, repeat: r.Repeat, sender: s, compose: compose, metrics: m, log: c.Log, resolves: r.Type == PagerDuty,
		wake: make(chan struct{}, 1), problems: map[string]*problem{}, paces: map[string]*pace{},
	}, nil
}

// add takes a problem. One that was said already and did not change is not said again.
func (b *mailbox) add(n Notification, recoveries bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.problems[n.ID]
	switch {
	case p == nil:
		b.makeRoom()
		p = &problem{}
		b.problems[n.ID] = p
	case p.end == nil && !p.waiting && p.n.says() == n.says():
		b.metrics.sent.WithLabelValues(b.name, outcomeSuppressed).Inc()
		return
	}
	p.n, p.end, p.waiting, p.recoveries = n, nil, true, p.recoveries || recoveries
	p.times++
	b.schedule(n.group())
}

// resolve takes the end of a problem, if this receiver heard of it or is about to.
func (b *mailbox) resolve(n Notification) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.problems[n.ID]
	switch {
	case p == nil:
	case !p.heard && !p.waiting: // the receiver refused to hear of it
		delete(b.problems, n.ID)
	default:
		p.end = &n
		b.schedule(p.n.group())
	}
}

// makeRoom forgets the problem that was said longest ago. The caller holds b.mu.
func (b *mailbox) makeRoom() {
	if len(b.problems) < maxProblems {
		return
	}
	var oldest string
	for id, p := range b.problems {
		if o := b.problems[oldest]; o == nil || p.said.Before(o.said) && (!p.waiting || o.waiting) || o.waiting && !p.waiting {
			oldest = id
		}
	}
	if b.problems[oldest].waiting {
		b.metrics.dropped.Inc()
	}
	delete(b.problems, oldest)
}

// schedule notes that something in a group waits. The caller holds b.mu.
func (b *mailbox) schedule(group string) {
	p := b.paces[group]
	if p == nil {
		p = &pace{}
		b.paces[group] = p
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// due is when the group may be told of.
func (p *pace) due() time.Time {
	due := p.since.Add(burstWait)
	if next := p.sent.Add(p.interval); next.After(due) {
		return next
	}
	return due
}

// told notes that a message went out.
func (p *pace) told(now time.Time) {
	if p.sent.IsZero() || now.Sub(p.sent) > 4*p.interval { // it was quiet
		p.interval = minInterval
	} else {
		p.interval = min(2*p.interval, maxInterval)
	}
	p.since, p.sent = time.Time{}, now
}

// batch is what is said at once: problems of one group, and ends of such.
type batch struct {
	group          string
	opened, closed []problem
	open           int // how many of the group go on
}

// next returns what is to be said now, or nil and how long nothing is. With
// flush nothing waits for others.
func (b *mailbox) next(flush bool) (*batch, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	wait := b.remind(now)
	for group, p := range b.paces {
		if p.since.IsZero() {
			if now.Sub(p.sent) > 4*p.interval {
				delete(b.paces, group)
			}
			continue
		}
		if due := p.due(); !flush && due.After(now) {
			wait = min(wait, due.Sub(now))
			continue
		}
		p.told(now)
		if out := b.collect(group, now); len(out.opened)+len(out.closed) > 0 {
			return out, 0
		}
	}
	return nil, wait
}

// remind lets what lasts for the repeat time be said again, and returns when
// the next one does. The caller holds b.mu.
func (b *mailbox) remind(now time.Time) time.Duration {
	wait := time.Hour
	for _, p := range b.problems {
		if p.waiting || p.end != nil || b.repeat <= 0 {
			continue
		}
		if left := p.said.Add(b.repeat).Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		p.waiting = true
		b.schedule(p.n.group())
		wait = min(wait, burstWait)
	}
	return wait
}

// collect takes what waits in a group. The caller holds b.mu.
func (b *mailbox) collect(group string, now time.Time) *batch {
	out := &batch{group: group}
	for id, p := range b.problems {
		if p.n.group() != group {
			continue
		}
		if p.waiting {
			out.opened = append(out.opened, *p)
			p.waiting, p.times, p.said, p.heard = false, 0, now, true
		}
		if p.end == nil {
			out.open++
			continue
		}
		delete(b.problems, id)
		if p.recoveries || b.resolves {
			ended := *p
			ended.waiting = false
			out.closed = append(out.closed, ended)
		}
	}
	for _, list := range [][]problem{out.opened, out.closed} {
		slices.SortFunc(list, func(x, y problem) int {
			return cmp.Or(x.n.Time.Compare(y.n.Time), cmp.Compare(x.n.ID, y.n.ID))
		})
	}
	return out
}

// run tells the receiver until life ends or, once closing is closed, nothing waits.
func (b *mailbox) run(life context.Context, closing <-chan struct{}) {
	flush := false
	for life.Err() == nil {
		wait := time.Until(b.sender.after) // what the receiver asked for
		if wait <= 0 || flush {
			var out *batch
			if out, wait = b.next(flush); out != nil {
				b.tell(life, out, closing)
				continue
			}
			if flush {
				return
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-life.Done():
		case <-closing:
			flush = true
		case <-b.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tell sends a batch: first the problems, then what ended.
func (b *mailbox) tell(life context.Context, out *batch, closing <-chan struct{}) {
	switch b.say(life, out, out.opened, false) {
	case outcomeFailed: // in this order or not at all
		b.again(out.group, out.opened, closing)
		b.again(out.group, out.closed, closing)
		return
	case outcomeRefused:
		b.unheard(out)
	}
	if b.say(life, out, out.closed, true) == outcomeFailed {
		b.again(out.group, out.closed, closing)
	}
}

// say sends one message, with retries, and returns its outcome.
func (b *mailbox) say(life context.Context, out *batch, list []problem, resolved bool) string {
	if len(list) == 0 {
		return outcomeSent
	}
	err := b.sender.send(life, b.compose.message(out.group, list, resolved, out.open))
	outcome := outcomeSent
	switch {
	case err == nil:
	case fault.KindOf(err) == fault.Transient:
		outcome = outcomeFailed
	default:
		outcome = outcomeRefused
	}
	b.metrics.sent.WithLabelValues(b.name, outcome).Inc()
	if err != nil {
		b.log.WarnContext(life, "notification not sent", slog.String("receiver", b.name), slog.String("outcome", outcome),
			slog.Int("notifications", len(list)), slog.String("error", err.Error()), slog.String("hint", fault.HintOf(err)))
	}
	return outcome
}

// again has what could not be said wait once more, for a receiver that cannot be
// reached. What came meanwhile is newer, and stays.
func (b *mailbox) again(group string, list []problem, closing <-chan struct{}) {
	select {
	case <-closing: // nobody will try again
		return
	default:
	}
	if len(list) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, old := range list {
		p := b.problems[old.n.ID]
		if p == nil {
			b.makeRoom()
			b.problems[old.n.ID] = &old
			continue
		}
		p.waiting = p.waiting || old.waiting
		p.heard = p.heard && old.heard
		p.times += old.times
	}
	b.schedule(group)
	p := b.paces[group]
	p.sent, p.interval = time.Now(), retryLater
}

// unheard notes that the receiver refused to hear of the problems in out: it
// does not hear of their ends either.
func (b *mailbox) unheard(out *batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, old := range out.opened {
		if old.heard { // when it was said before
			continue
		}
		if p := b.problems[old.n.ID]; p != nil {
			p.heard = false
		}
		out.closed = slices.DeleteFunc(out.closed, func(p problem) bool { return p.n.ID == old.n.ID })
	}
}
