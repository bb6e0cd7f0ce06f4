package reconciler

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// Suspension keeps a stack, or all, as they are: nothing is applied and no drift
// is reverted. New commits are verified and drift is reported all the same.
type Suspension struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is resumed
}

// orders are what people ordered. The ledger is where they are kept: a daemon
// that starts takes them up from there.
type orders struct {
	taking sync.Mutex // held while an order is recorded and carried out: what a restart replays is what happened

	mu        sync.Mutex             // guards what follows
	suspended map[string]Suspension  // by stack; "" is all
	taken     map[digest.Digest]bool // signed orders that were taken: none is taken twice
	left      map[string]bool        // "stack@commit" that a rollback led away from
	rollbacks map[string]*rollback   // by stack
	renamed   map[string]string      // stacks by their new name, until that stands: what holds for the old one holds for it
}

// rename notes that a stack goes on under another name, or with an empty from
// that the new name stands.
func (o *orders) rename(from, to string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.renamed == nil {
		o.renamed = map[string]string{}
	}
	if o.renamed[to] = from; from == "" {
		delete(o.renamed, to)
	}
}

// names returns what a stack is called, and was until its new name stands. The
// caller holds mu.
func (o *orders) names(stack string) []string {
	names := []string{stack}
	for old := o.renamed[stack]; old != "" && !slices.Contains(names, old); old = o.renamed[old] {
		names = append(names, old)
	}
	return names
}

// takeUpOrders takes up what was ordered before the last stop.
func (r *Reconciler) takeUpOrders(ctx context.Context) error {
	list, err := r.Ledger.Orders(ctx)
	if err != nil {
		return err
	}
	for _, n := range list {
		e := n.Entry
		switch e.Type {
		case ledger.Revoked:
			TakeUpRevocation(r.Revocations, e)
		case ledger.Suspended:
			until, _ := time.Parse(time.RFC3339, e.Subject) // empty: no end
			r.orders.suspend(e.Stack, Suspension{Reason: e.Note, Since: e.Time, Until: until})
		case ledger.Resumed:
			r.orders.lift(e.Stack)
		case ledger.Ordered:
			r.orders.take(e.Bodies["order"], e.Stack, e.Revision)
		}
	}
	kept, err := r.state.rollbacks()
	for _, rb := range kept {
		r.orders.rollBack(rb)
	}
	return err
}

// TakeUpRevocation adds to list what the entry e of the ledger revokes: nothing, if
// it is about something else.
func TakeUpRevocation(list *verify.Revocations, e ledger.Entry) {
	if e.Type == ledger.Revoked {
		list.Add(verify.Revocation{Anchor: verify.Anchor{Kind: verify.AnchorKind(e.Outcome), Value: e.Subject}, Since: e.Since, Reason: e.Note, Time: e.Time})
	}
}

func (o *orders) suspend(stack string, s Suspension) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.suspended == nil {
		o.suspended = map[string]Suspension{}
	}
	o.suspended[stack] = s
}

// lift ends the suspension of a stack, or all of them.
func (o *orders) lift(stack string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if stack == "" {
		o.suspended = nil
	} else {
		delete(o.suspended, stack)
	}
}

func (o *orders) take(order digest.Digest, stack, from string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.taken == nil {
		o.taken, o.left = map[digest.Digest]bool{}, map[string]bool{}
	}
	o.taken[order] = true
	if stack != "" {
		o.left[stack+"@"+from] = true
	}
}

// suspension returns why a stack is suspended, or nil. One that ended is not.
func (r *Reconciler) suspension(stack string) *Suspension {
	r.orders.mu.Lock()
	defer r.orders.mu.Unlock()
	for _, name := range append(r.orders.names(stack), "") {
		s, ok := r.orders.suspended[name]
		if ok && (s.Until.IsZero() || time.Now().Before(s.Until)) {
			return &s
		}
	}
	return nil
}

// untilResumed returns the time until a suspension ends by itself; 0 is never.
func (s *Suspension) untilResumed() time.Duration {
	if s.Until.IsZero() {
		return 0
	}
	return max(time.Until(s.Until), time.Millisecond)
}

// awaitResumption has the stacks looked at when the suspensions that were taken
// up end.
func (r *Reconciler) awaitResumption() {
	for _, s := range r.all() {
		if sus := r.suspension(s.Name); sus != nil && !sus.Until.IsZero() {
			r.lookAfter(s.Name, sus.untilResumed())
		}
	}
}

// lookAfter has a stack, or all, reconciled and compared after a time: what
// drifted meanwhile was only reported.
func (r *Reconciler) lookAfter(stack string, wait time.Duration) {
	for _, s := range r.all() {
		r.orders.mu.Lock()
		concerned := stack == "" || slices.Contains(r.orders.names(s.Name), stack)
		r.orders.mu.Unlock()
		if r.queue != nil && concerned {
			r.queue.AddAfter(request{reconcileStack, s.Name}, wait)
			r.queue.AddAfter(request{compareStack, s.Name}, wait)
		}
	}
}

func (s *Suspension) err() error {
	until := "until it is resumed"
	if !s.Until.IsZero() {
		until = "until " + s.Until.UTC().Format(time.RFC3339)
	}
	return fault.New(fault.Waiting, "reconciler.suspended", "holdfast resume ends it", "suspended %s: %s", until, s.Reason)
}

// Suspend keeps a stack as it is until a time (zero: until it is resumed);
// without a name all stacks. It is durable on return.
func (r *Reconciler) Suspend(ctx context.Context, stack, reason string, until time.Time) error {
	const op = "reconciler.Suspend"
	if err := r.orderable(stack, reason, op); err != nil {
		return err
	}
	if !until.IsZero() && !until.After(time.Now()) {
		return fault.New(fault.Invalid, op, "name a time in the future", "the end, %s, is over", until.UTC().Format(time.RFC3339))
	}
	r.orders.taking.Lock()
	defer r.orders.taking.Unlock()
	e := ledger.Entry{Type: ledger.Suspended, Stack: stack, Note: r.Scrub(reason)}
	if !until.IsZero() {
		e.Subject = until.UTC().Format(time.RFC3339)
	}
	if _, err := r.Ledger.Append(ctx, e, nil); err != nil {
		return err
	}
	r.orders.suspend(stack, Suspension{Reason: e.Note, Since: time.Now().UTC(), Until: until.UTC()})
	if !until.IsZero() {
		r.lookAfter(stack, time.Until(until))
	}
	r.Log.InfoContext(ctx, "suspended", slog.String("stack", cmp.Or(stack, "all")), slog.String("reason", e.Note), slog.String("until", e.Subject))
	return nil
}

// orderable checks what an order of a person has to say.
func (r *Reconciler) orderable(stack, reason, op string) error {
	if stack != "" {
		if _, err := r.named(stack); err != nil {
			return err
		}
	}
	if reason == "" {
		return fault.New(fault.Invalid, op, "say why with --reason, for the person who reads it next year", "no reason is given")
	}
	return nil
}

// Resume ends the suspension of a stack, or all without a name. It is durable
// on return; the stacks are looked at right away.
func (r *Reconciler) Resume(ctx context.Context, stack string) error {
	if stack != "" {
		if _, err := r.named(stack); err != nil {
			return err
		}
		r.orders.mu.Lock()
		own := false
		for _, name := range r.orders.names(stack) {
			if _, own = r.orders.suspended[name]; own {
				stack = name
				break
			}
		}
		_, all := r.orders.suspended[""]
		r.orders.mu.Unlock()
		if !own && all {
			return fault.New(fault.Invalid, "reconciler.Resume", "holdfast resume without a name ends it", "all stacks are suspended together")
		}
	}
	r.orders.taking.Lock()
	defer r.orders.taking.Unlock()
	if _, err := r.Ledger.Append(ctx, ledger.Entry{Type: ledger.Resumed, Stack: stack}, nil); err != nil {
		return err
	}
	r.orders.lift(stack)
	r.Log.InfoContext(ctx, "resumed", slog.String("stack", cmp.Or(stack, "all")))
	r.lookAfter(stack, 0)
	for _, s := range r.all() { // what waited to be removed goes on, too
		if (stack == "" || s.Name == stack) && s.isHeld() && s.pruned() != PruneHold {
			r.resumeRemoval(s)
		}
	}
	return nil
}

// Revoke takes trust away from a key, an identity, a digest, a commit or a
// policy. It needs no network, is durable on return, and takes effect at once:
// what runs and rests on it is not restored or scaled up any more, nothing is
// deleted, and every stack that it concerns is judged anew. It returns those. The
// time of v is set here.
func (r *Reconciler) Revoke(ctx context.Context, v verify.Revocation) ([]string, error) {
	const op = "reconciler.Revoke"
	v.Time, v.Since = time.Now().UTC(), v.Since.UTC().Truncate(time.Second)
	if err := v.Validate(v.Time); err != nil {
		return nil, fault.Wrap(fault.Invalid, op, "name the whole value: one that is mistyped would revoke nothing", err)
	}
	if err := r.orderable("", v.Reason, op); err != nil {
		return nil, err
	}
	v.Reason = r.Scrub(v.Reason)
	r.orders.taking.Lock()
	defer r.orders.taking.Unlock()
	e := ledger.Entry{Type: ledger.Revoked, Outcome: string(v.Kind), Subject: v.Value, Since: v.Since, Note: v.Reason}
	if _, err := r.Ledger.Append(ctx, e, nil); err != nil {
		return nil, err
	}
	r.Revocations.Add(v)
	r.Log.WarnContext(ctx, "revoked", slog.String("kind", string(v.Kind)), slog.String("value", v.Value), slog.Time("since", v.Since), slog.String("reason", v.Reason))
	return r.withdraw(ctx), nil
}

// withdraw ends the standing grants that rest on something revoked, and returns
// the stacks that had one.
func (r *Reconciler) withdraw(ctx context.Context) []string {
	var out []string
	for _, s := range r.all() {
		d := s.granted()
		if d == nil {
			continue
		}
		err := r.Revocations.Check(d.rests...)
		if err == nil {
			continue
		}
		out = append(out, s.Name)
		r.Gate.Revoke(s.Name)
		if !s.revoked(d, err) {
			continue
		}
		r.Log.WarnContext(ctx, "standing grant withdrawn", slog.String("stack", s.Name), slog.String("reason", err.Error()))
		e := s.event(EventRevoked, "revoked", err.Error()+"; what runs is neither restored nor scaled up, and nothing is deleted")
		e.Kind, e.Hint = fault.Denied, fault.HintOf(err)
		r.tell(e)
		if r.queue != nil {
			r.queue.Add(request{reconcileStack, s.Name})
		}
	}
	return out
}

// Order is a signed order to go against history: back, or on from where a lost
// state directory left it.
type Order struct {
	Kind       string    `json:"kind"` // OrderRollback, OrderRecover
	Ledger     string    `json:"ledger"`
	Repository string    `json:"repository"`
	Stack      string    `json:"stack,omitempty"` // of a rollback
	From       string    `json:"from"`            // commit that it leads away from: it holds for no other
	To         string    `json:"to"`              // commit to go to
	Reason     string    `json:"reason"`
	Issued     time.Time `json:"issued"`
}

// The kinds of order.
const (
	OrderRollback = "rollback" // one stack goes back to an older commit, until a newer one changes it
	OrderRecover  = "recover"  // a repository's history goes on from a commit, whatever the marks say
)

// NewOrder returns the order that would be right now, for a person to sign. to
// is a full commit id.
func (r *Reconciler) NewOrder(_ context.Context, kind, name, to, reason string) (Order, error) {
	const op = "reconciler.NewOrder"
	if err := r.orderable("", reason, op); err != nil {
		return Order{}, err
	}
	o := Order{Kind: kind, Ledger: r.Ledger.Origin(), To: to, Reason: reason, Issued: time.Now().UTC().Truncate(time.Second)}
	switch kind {
	case OrderRollback:
		s, err := r.named(name)
		if err != nil {
			return o, err
		}
		o.Stack, o.Repository, o.From = s.Name, s.repo, r.repository(s.repo).snapshotStatus().Verified
	case OrderRecover:
		repo := r.repository(name)
		if repo == nil {
			return o, fault.New(fault.Invalid, op, "holdfast status lists the repositories", "there is no repository %q", name)
		}
		o.Repository, o.From = name, r.recoverFrom(repo)
	default:
		return o, fault.New(fault.Invalid, op, "", "there is no order %q", kind)
	}
	return o, nil
}

// recoverFrom is what a recover order leads away from: the mark that is refused,
// or the newest commit that was verified.
func (r *Reconciler) recoverFrom(repo *repository) string {
	if r.Marks != nil {
		for _, env := range r.Marks.Environments() {
			ms := r.marks.at(env, repo.Name)
			ms.mu.Lock()
			found := ms.found
			ms.mu.Unlock()
			if found != "" {
				return found
			}
		}
	}
	return repo.snapshotStatus().Verified
}

// maxOrder is the largest order in bytes.
const maxOrder = 16 << 10

// Obey takes a signed order: raw is the JSON of an [Order] as it was signed. It
// checks who signed it, that it is about this daemon as it stands, and that it
// was not taken before; records it; and carries it out.
func (r *Reconciler) Obey(ctx context.Context, raw, signature []byte) error {
	const op = "reconciler.Obey"
	if len(raw) > maxOrder || len(signature) > maxOrder {
		return fault.New(fault.Invalid, op, "", "the order has more than %d bytes", maxOrder)
	}
	if r.Signer == nil {
		return fault.New(fault.Denied, op, "name who may sign orders under orders: in the operator's file", "nobody may sign orders")
	}
	now, err := r.Ledger.Now()
	if err != nil {
		return err
	}
	signer, err := r.Signer(raw, signature, now)
	if err != nil {
		return fault.Wrap(fault.Denied, op, "sign it with a key that orders: in the operator's file names", err)
	}
	o, err := parseOrder(raw)
	if err != nil {
		return err
	}
	// Nothing may move between the check of an order and its effect.
	r.orders.taking.Lock()
	defer r.orders.taking.Unlock()
	if repo := r.repository(o.Repository); repo != nil {
		repo.polling.Lock()
		defer repo.polling.Unlock()
	}
	sum := digest.FromBytes(raw)
	if err := r.fits(o, sum, now); err != nil {
		return err
	}
	var carryOut func() error
	switch o.Kind {
	case OrderRollback:
		carryOut, err = r.prepareRollback(ctx, o)
	case OrderRecover:
		carryOut, err = r.prepareRecover(ctx, o)
	default:
		err = fault.New(fault.Invalid, op, "", "there is no order %q", o.Kind)
	}
	if err != nil {
		return err
	}
	_, err = r.Ledger.Append(ctx, ledger.Entry{
		Type: ledger.Ordered, Stack: o.Stack, Revision: o.Repository + "@" + o.From, Subject: o.To, Outcome: o.Kind,
		Note: r.Scrub(fmt.Sprintf("by %s: %s", signer, o.Reason)),
	}, map[string][]byte{"order": raw, "signature": signature})
	if err != nil {
		return err
	}
	r.orders.take(sum, o.Stack, o.Repository+"@"+o.From)
	r.Log.WarnContext(ctx, "order taken", slog.String("order", o.Kind), slog.String("repository", o.Repository), slog.String("stack", o.Stack),
		slog.String("from", o.From), slog.String("to", o.To), slog.String("by", signer), slog.String("reason", r.Scrub(o.Reason)))
	return carryOut()
}

// parseOrder reads an order in the one form that it may have, so that nobody
// signs one text and another is read (unknown or double fields, what follows).
func parseOrder(raw []byte) (o Order, err error) {
	if err = json.Unmarshal(raw, &o); err == nil {
		var again []byte
		if again, err = json.Marshal(o); err == nil && !bytes.Equal(again, bytes.TrimSpace(raw)) {
			err = errors.New("it is not as Holdfast writes it: print it with --print, and sign that")
		}
	}
	if err != nil {
		return o, fault.New(fault.Invalid, "reconciler.Obey", "", "the order: %w", err)
	}
	return o, nil
}

// fits checks that an order is meant for this daemon, now, and once.
func (r *Reconciler) fits(o Order, sum digest.Digest, now time.Time) error {
	const op = "reconciler.Obey"
	refuse := func(format string, args ...any) error {
		return fault.New(fault.Denied, op, "ask for a new order and sign that", format, args...)
	}
	r.orders.mu.Lock()
	again := r.orders.taken[sum]
	r.orders.mu.Unlock()
	repo := r.repository(o.Repository)
	switch age := now.Sub(o.Issued); {
	case again:
		return refuse("the order was taken before")
	case o.Ledger != r.Ledger.Origin():
		return refuse("the order is for the daemon with the ledger %q, this is %q", o.Ledger, r.Ledger.Origin())
	case repo == nil:
		return refuse("there is no repository %q", o.Repository)
	case age > r.OrderMaxAge || age < -5*time.Minute:
		return refuse("the order was issued at %s", o.Issued.Format(time.RFC3339))
	case o.Reason == "":
		return refuse("the order gives no reason")
	}
	from := repo.snapshotStatus().Verified
	if o.Kind == OrderRecover {
		from = r.recoverFrom(repo)
	}
	if o.From != from {
		return refuse("the order leads away from commit %s, but that is %s by now", o.From, from)
	}
	return nil
}

// prepareRecover checks that history may go on from o.To, and returns what makes
// it so.
func (r *Reconciler) prepareRecover(ctx context.Context, o Order) (func() error, error) {
	repo := r.repository(o.Repository)
	seen, err := r.Ledger.Now()
	if err != nil {
		return nil, err
	}
	if _, err := repo.Source.Fetch(ctx, sources.Revision{Source: o.Repository, ID: o.To}); err != nil {
		return nil, err
	}
	// Its own signer must be authorised; what came before it is what the order
	// vouches for.
	if _, err := repo.Authorise(ctx, o.To, o.To, seen); err != nil {
		return nil, err
	}
	return func() error {
		if err := r.state.saveRepository(repo.Name, repositoryState{Verified: o.To, Seen: seen, Confirmed: repo.confirmed()}); err != nil {
			return err
		}
		repo.broken, repo.refusal = nil, nil
		repo.note(func(st *RepositoryStatus) {
			st.Verified, st.seen, st.Enforced, st.Message, st.Hint = o.To, seen, "", "", ""
		})
		if err := r.overMarks(ctx, repo, o.To); err != nil {
			return err
		}
		r.poke(repo)
		return nil
	}, nil
}

// overMarks replaces the marks of a repository by what a signed order says.
func (r *Reconciler) overMarks(ctx context.Context, repo *repository, commit string) error {
	if r.Marks == nil {
		return nil
	}
	for _, env := range r.Marks.Environments() {
		ms := r.marks.at(env, repo.Name)
		ms.mu.Lock()
		err := r.writeMark(ctx, ms, env, repo, commit, true)
		if err == nil {
			ms.checked, ms.refused, ms.found = true, nil, ""
		}
		ms.mu.Unlock()
		if err != nil {
			return err
		}
		e := markEvent(env, repo.Name, "an order was taken: history goes on from "+commit)
		e.Resolved = true
		r.tell(e)
	}
	return nil
}
