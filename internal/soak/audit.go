package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// accounts is the ledger beside the API server's audit log.
type accounts struct {
	entries, intents, done, failed, abandoned, open int

	writes, byDone, byFailed, byAbandoned, uncovered int
	successes, unseen                                int
}

// intent is one intent of the ledger, with what closed it.
type intent struct {
	index   ledger.Index
	begin   time.Time
	objects []plan.ObjectID
	closed  bool
	end     time.Time
	outcome string
	done    []plan.ObjectID // by its receipt
	wrote   map[plan.ObjectID]bool
}

const abandoned = "abandoned"

// late is for how long after the end of an intent a write under it may reach the
// server: what ended without an answer may still have been on its way, and times of
// the ledger are whole milliseconds.
func (in *intent) late() time.Duration {
	if in.outcome == "ok" {
		return time.Millisecond
	}
	return time.Second
}

func (in *intent) covers(at time.Time) bool {
	return !at.Before(in.begin) && (!in.closed || !at.After(in.end.Add(in.late())))
}

// audit compares what the ledger says was done with what the API server saw.
func (s *soak) audit(ctx context.Context) error {
	s.say("comparing the ledger with the audit log")
	intents, err := s.intents(ctx)
	if err != nil {
		return err
	}
	writes, err := s.writes()
	if err != nil {
		return err
	}
	s.count(intents)
	s.cover(intents, writes)
	s.successes(intents)
	return nil
}

// intents reads the ledger.
func (s *soak) intents(ctx context.Context) ([]*intent, error) {
	key, err := os.ReadFile(filepath.Join(s.world.StateDir, "ledger.pub"))
	if err != nil {
		return nil, err
	}
	r, err := ledger.OpenReader(filepath.Join(s.world.StateDir, "ledger"), strings.TrimSpace(string(key)))
	if err != nil {
		return nil, err
	}
	var all []*intent
	byIndex := map[ledger.Index]*intent{}
	err = r.Scan(ctx, 0, func(i ledger.Index, e ledger.Entry) error {
		s.result.ledger.entries++
		switch e.Type {
		case ledger.Intent:
			var p plan.Plan
			if err := body(ctx, r, e, "plan", &p); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
			in := &intent{index: i, begin: e.Time, wrote: map[plan.ObjectID]bool{}}
			for _, c := range p.Changes {
				in.objects = append(in.objects, c.ID)
			}
			all, byIndex[i] = append(all, in), in
		case ledger.Applied, ledger.Reverted:
			if e.Intent == nil || byIndex[*e.Intent] == nil {
				s.result.fail("entry %d closes no intent", i)
				return nil
			}
			return s.close(ctx, r, byIndex[*e.Intent], i, e)
		}
		return nil
	})
	return all, err
}

// close notes that an entry closes an intent, with the receipt that it has.
func (s *soak) close(ctx context.Context, r *ledger.Reader, in *intent, i ledger.Index, e ledger.Entry) error {
	if in.closed {
		s.result.fail("intent %d is closed twice, by entry %d too", in.index, i)
		return nil
	}
	in.closed, in.end, in.outcome = true, e.Time, e.Outcome
	if e.Outcome == abandoned { // nobody lived to write a receipt
		return nil
	}
	var receipt targets.Receipt
	if err := body(ctx, r, e, "receipt", &receipt); err != nil {
		return fmt.Errorf("entry %d: %w", i, err)
	}
	for _, o := range receipt.Outcomes {
		if o.Err == "" {
			in.done = append(in.done, o.ID)
		}
	}
	return nil
}

// body reads a document of an entry.
func body(ctx context.Context, r *ledger.Reader, e ledger.Entry, role string, into any) error {
	d, ok := e.Bodies[role]
	if !ok {
		return fmt.Errorf("it has no %s", role)
	}
	b, err := r.Body(ctx, d)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// write is one write of the daemon that the API server carried out.
type write struct {
	id    plan.ObjectID
	at    time.Time // when the server received it
	verb  string
	audit string
}

// event is the part of an audit event (audit.k8s.io/v1) that matters here.
type event struct {
	AuditID    string
	Stage      string
	RequestURI string
	Verb       string
	UserAgent  string
	ObjectRef  struct{ Resource, APIGroup, Namespace, Name, Subresource string }
	// ResponseStatus has a code also for what succeeded.
	ResponseStatus           struct{ Code int }
	RequestReceivedTimestamp time.Time
}

// ours reports whether e is a write of the daemon to an application that was
// carried out. Questions about access are posted, and write nothing.
func (e event) ours() bool {
	return e.Stage == "ResponseComplete" && e.ResponseStatus.Code/100 == 2 && strings.HasPrefix(e.UserAgent, "holdfast") &&
		strings.HasPrefix(e.ObjectRef.Namespace, namespaces) && e.ObjectRef.Resource != "namespaces" && e.ObjectRef.APIGroup != "authorization.k8s.io" &&
		!strings.Contains(e.RequestURI, "dryRun=")
}

// id names the object as plans do. What applications do not have gets a name that
// no plan has.
func (e event) id() plan.ObjectID {
	id := plan.ObjectID{Kind: e.ObjectRef.Resource, Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name}
	for _, o := range objects {
		if o.gvr.Resource == e.ObjectRef.Resource && o.gvr.Group == e.ObjectRef.APIGroup && e.ObjectRef.Subresource == "" {
			id.Kind = o.kind
		}
	}
	return id
}

// auditFiles returns the audit log; at 100 MB the API server begins another file.
func (s *soak) auditFiles() ([]string, error) {
	ext := filepath.Ext(s.cluster.AuditLog)
	return filepath.Glob(strings.TrimSuffix(s.cluster.AuditLog, ext) + "*" + ext)
}

// writes reads the audit log.
func (s *soak) writes() ([]write, error) {
	files, err := s.auditFiles()
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no audit log at %s", s.cluster.AuditLog)
	}
	var all []write
	for _, name := range files {
		if err := readEvents(name, func(e event) {
			if e.ours() {
				all = append(all, write{e.id(), e.RequestReceivedTimestamp, e.Verb, e.AuditID})
			}
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return all, nil
}

func readEvents(name string, fn func(event)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	for dec := json.NewDecoder(f); ; {
		var e event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // the control plane still writes
			return nil
		}
		if err != nil {
			return err
		}
		fn(e)
	}
}

// count counts the intents by what they came to.
func (s *soak) count(intents []*intent) {
	a := &s.result.ledger
	for _, in := range intents {
		a.intents++
		switch {
		case !in.closed:
			a.open++
			s.some(a.open, "intent %d of %s is open", in.index, in.begin.Format(time.RFC3339Nano))
		case in.outcome == "ok":
			a.done++
		case in.outcome == abandoned:
			a.abandoned++
		default:
			a.failed++
		}
	}
}

// some records what is wrong for the first few of a kind.
func (s *soak) some(n int, format string, args ...any) {
	if n <= 10 {
		s.result.fail(format, args...)
	}
}

// cover looks for the intent of each write: one that names the object, was durable
// before the write and not over. The grounds that say most are taken.
func (s *soak) cover(intents []*intent, writes []write) {
	byObject := map[plan.ObjectID][]*intent{}
	for _, in := range intents {
		for _, id := range in.objects {
			byObject[id] = append(byObject[id], in)
		}
	}
	a := &s.result.ledger
	for _, w := range writes {
		a.writes++
		var done, failed, given bool
		for _, in := range byObject[w.id] {
			if !in.covers(w.at) {
				continue
			}
			in.wrote[w.id] = true
			switch {
			case slices.Contains(in.done, w.id):
				done = true
			case in.outcome == abandoned:
				given = true
			default:
				failed = true
			}
		}
		switch {
		case done:
			a.byDone++
		case failed:
			a.byFailed++
		case given:
			a.byAbandoned++
		default:
			a.uncovered++
			s.some(a.uncovered, "no intent covers the %s of %s at %s (audit %s)", w.verb, w.id, w.at.Format(time.RFC3339Nano), w.audit)
		}
	}
}

// successes looks for a write of each change that a receipt calls done.
func (s *soak) successes(intents []*intent) {
	a := &s.result.ledger
	for _, in := range intents {
		for _, id := range in.done {
			a.successes++
			if !in.wrote[id] {
				a.unseen++
				s.some(a.unseen, "the receipt of intent %d says that %s was changed, and the API server saw no write", in.index, id)
			}
		}
	}
}
