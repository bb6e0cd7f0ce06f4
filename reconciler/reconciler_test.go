package reconciler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/robfig/cron/v3"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// bed is a world in memory, for the faults that real parts cannot cause on
// demand. Each stack is a folder with one file, "object"; what is deployed is
// its content.
type bed struct {
	t     *testing.T
	state string

	mu          sync.Mutex
	files       map[string]string
	commit      int
	down        bool
	refuse      string // a commit that nobody authorised
	live        map[string]string
	calls       map[string]int
	panics      string            // stack whose rendering panics
	stale       map[string]int    // applies that find the world moved
	denied      map[string]bool   // stacks that policy refuses
	bad         map[string]error  // stacks that cannot run
	depends     map[string]string // stack → dependency
	alias       map[string]string // folder → name of the stack in it
	lost        bool              // what was fetched before is gone
	half        map[string]bool   // applies that fail half-way
	history     map[string]map[string]string
	found       map[string]func(targets.Finding)
	entries     []ledger.Entry
	open        []ledger.Numbered
	evidence    map[string]string // artifact of each stack → what vouches for it; absent: nothing does
	rests       []verify.Anchor   // what the evidence rests on
	prune       map[string]Prune
	last        time.Time         // of the ledger
	undecodable string            // folder whose stack file does not decode
	dirs        map[string]string // stack → folder of its object, if that is not its name
	aliasFrom   int               // first commit with the aliases
	lostlog     bool              // the ledger is not the one that signed what is known elsewhere
	marks       map[string]Mark   // nil: marks are not kept
	events      []Event
	at          map[string]func() error                   // what happens at a call, by its name, and what it returns
	judges      func(in policy.Input, d *policy.Decision) // changes a decision
	wrap        map[string]func(*target) targets.Target   // stacks with another target
	mode        drift.Mode                                // of all stacks; revert if empty
	schedule    cron.Schedule                             // of the full comparison of all stacks
	signed      []verify.Anchor                           // what the evidence of commits rests on
	unproven    bool                                      // the evidence of commits proves nothing
}

func newBed(t *testing.T, stacks ...string) *bed {
	b := &bed{
		t: t, state: t.TempDir(), files: map[string]string{}, live: map[string]string{}, calls: map[string]int{}, stale: map[string]int{},
		denied: map[string]bool{}, bad: map[string]error{}, depends: map[string]string{}, alias: map[string]string{}, half: map[string]bool{}, history: map[string]map[string]string{}, found: map[string]func(targets.Finding){},
		prune: map[string]Prune{}, at: map[string]func() error{}, wrap: map[string]func(*target) targets.Target{},
	}
	for _, s := range stacks {
		b.files[s+"/object"] = "v1"
	}
	b.commit = 1
	b.history[b.id()] = maps.Clone(b.files)
	return b
}

func (b *bed) with(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *bed) count(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[call]
}

// meet counts a call, and makes of it what the test wants.
func (b *bed) meet(call string) error {
	b.mu.Lock()
	b.calls[call]++
	at := b.at[call]
	b.mu.Unlock()
	if at == nil {
		return nil
	}
	return at()
}

// fails makes a call fail, with an error of a kind.
func (b *bed) fails(call string, k fault.Kind) {
	b.with(func() { b.at[call] = func() error { return fault.New(k, "", "", "%s does not work", call) } })
}

// works ends what was made of a call.
func (b *bed) works(call string) { b.with(func() { delete(b.at, call) }) }

// push makes a commit.
func (b *bed) push(files map[string]string) {
	b.with(func() {
		for k, v := range files {
			if b.files[k] = v; v == "" {
				delete(b.files, k)
			}
		}
		b.commit++
		b.history[b.id()] = maps.Clone(b.files)
	})
}

// number returns how many commits there were up to one.
func (b *bed) number(commit string) (n int) {
	_, _ = fmt.Sscanf(commit, "commit-%d", &n)
	return n
}

func (b *bed) id() string { return fmt.Sprintf("commit-%d", b.commit) }

// The source.
func (b *bed) Head(context.Context) (sources.Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return sources.Revision{}, fault.New(fault.Transient, "", "", "the server is down")
	}
	return sources.Revision{Source: "repo", ID: b.id()}, nil
}

func (b *bed) Fetch(_ context.Context, r sources.Revision) (*sources.Snapshot, error) {
	if err := b.meet("fetch"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m := identified{fstest.MapFS{}}
	files := b.history[r.ID]
	for k, v := range files {
		m.MapFS[k] = &fstest.MapFile{Data: []byte(v)}
	}
	return &sources.Snapshot{Revision: r, Tree: digest.FromString(fmt.Sprint(files)), FS: m}, nil
}

func (b *bed) Local(ctx context.Context, r sources.Revision) (*sources.Snapshot, error) {
	b.mu.Lock()
	lost := b.lost
	b.mu.Unlock()
	if err := b.meet("local"); err != nil {
		return nil, err
	}
	if lost {
		return nil, fault.New(fault.Invalid, "", "", "the mirror has no %s", r.ID)
	}
	return b.Fetch(ctx, r)
}

type identified struct{ fstest.MapFS }

func (i identified) ContentID(name string) (string, error) {
	if info, err := fs.Stat(i.MapFS, name); err == nil && info.IsDir() {
		return i.folderID(name)
	}
	b, err := fs.ReadFile(i.MapFS, name)
	return digest.FromBytes(b).String(), err
}

// folderID binds everything below a folder, as the id of a Git tree does.
func (i identified) folderID(dir string) (string, error) {
	all := ""
	err := fs.WalkDir(i.MapFS, dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			b, _ := fs.ReadFile(i.MapFS, p)
			all += p + digest.FromBytes(b).String()
		}
		return err
	})
	return digest.FromString(all).String(), err
}

// The ledger.
func (b *bed) Append(_ context.Context, e ledger.Entry, bodies map[string][]byte) (ledger.Index, error) {
	if err := b.meet("append " + string(e.Type)); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Bodies = map[string]digest.Digest{}
	for role, body := range bodies {
		e.Bodies[role] = digest.FromBytes(body)
	}
	b.entries = append(b.entries, e)
	return ledger.Index(len(b.entries) - 1), nil
}

func (b *bed) Orders(context.Context) ([]ledger.Numbered, error) {
	if err := b.meet("orders"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ledger.Numbered
	for i, e := range b.entries {
		switch e.Type {
		case ledger.Revoked, ledger.Suspended, ledger.Resumed, ledger.Ordered:
			out = append(out, ledger.Numbered{Index: ledger.Index(i), Entry: e})
		}
	}
	return out, nil
}

func (b *bed) Now() (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if now.Before(b.last) {
		return now, fault.New(fault.Waiting, "ledger.Now", "", "%w", ledger.ErrClock)
	}
	return now, nil
}

func (b *bed) Checkpoint(context.Context) ([]byte, error) { return []byte("checkpoint"), nil }

func (b *bed) Contains(context.Context, []byte) error {
	if err := b.meet("contains"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lostlog {
		return fault.New(fault.Denied, "", "", "the ledger is shorter")
	}
	return nil
}

func (b *bed) Origin() string { return "holdfast.test/bed" }

// The marks.
func (b *bed) Environments() []string {
	if b.marks == nil {
		return nil
	}
	return []string{"e"}
}

func (b *bed) Read(_ context.Context, environment, repository string) (Mark, bool, error) {
	if err := b.meet("mark read"); err != nil {
		return Mark{}, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.marks[environment+"/"+repository]
	return m, ok, nil
}

func (b *bed) Write(_ context.Context, environment string, m Mark, _ bool) error {
	if err := b.meet("mark write"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.marks[environment+"/"+m.Repository] = m
	return nil
}

func (b *bed) told(t EventType, stack string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, e := range b.events {
		if e.Type == t && e.Stack == stack {
			n++
		}
	}
	return n
}

func (b *bed) DanglingIntents(context.Context) ([]ledger.Numbered, error) {
	return b.open, b.meet("dangling")
}

func (b *bed) recorded(typ ledger.Type, stack, outcome string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, e := range b.entries {
		if e.Type == typ && e.Stack == stack && (outcome == "" || e.Outcome == outcome) {
			n++
		}
	}
	return n
}

// Artifacts and policy.
func (b *bed) Verify(_ context.Context, env string, subjects []verify.Subject) (verify.Report, map[string]verify.Subject, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	report, pins := verify.Report{Environment: env}, map[string]verify.Subject{}
	for _, s := range subjects {
		if b.evidence[s.Reference] == "" {
			return report, nil, fault.New(fault.Denied, "", "", "%s: nothing vouches for it", s.Reference)
		}
		s.Digest = digest.FromString(s.Reference)
		pins[s.Reference] = s
		report.Evidence = append(report.Evidence, verify.Evidence{Subject: s, Checks: []verify.Check{{Name: "signature", OK: true}}, RestsOn: b.rests})
	}
	return report, pins, nil
}

func (b *bed) Fingerprint(_ context.Context, _ string, subjects []verify.Subject) (digest.Digest, error) {
	if err := b.meet("fingerprint"); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var all string
	for _, s := range subjects {
		all += s.Reference + b.evidence[s.Reference]
	}
	return digest.FromString(all), nil
}

func (b *bed) Evaluate(_ context.Context, in policy.Input) (policy.Decision, error) {
	if err := b.meet("evaluate " + in.Stack); err != nil {
		return policy.Decision{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := policy.Decision{Stage: in.Stage, Of: in.Of, Rules: 1}
	if b.denied[in.Stack] {
		d.Results = []policy.Result{{Level: policy.Deny, Message: "not like this", File: "object"}}
	}
	if b.judges != nil {
		b.judges(in, &d)
	}
	return d, nil
}

// target deploys one stack of the bed.
type target struct {
	b    *bed
	name string
	dir  string // of its object, if that is not its name
}

func (t target) folder() string {
	if t.dir != "" {
		return t.dir
	}
	return t.name
}

func (t target) call(what string) error {
	t.b.mu.Lock()
	panics := what == "render" && t.b.panics == t.name
	t.b.mu.Unlock()
	if panics {
		panic("oh no")
	}
	return t.b.meet(what + " " + t.name)
}

func (t target) oid() plan.ObjectID { return plan.ObjectID{Kind: "Object", Name: t.name} }

func (t target) Render(_ context.Context, s *sources.Snapshot) (targets.Rendered, error) {
	if err := t.call("render"); err != nil {
		return targets.Rendered{}, err
	}
	content, err := fs.ReadFile(s.FS, t.folder()+"/object")
	r := targets.Rendered{Stack: t.name, Environment: "e", Revision: s.Revision, Digest: digest.FromBytes(content), Private: string(content)}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.b.evidence != nil {
		r.Artifacts = []verify.Subject{{Kind: verify.KindImage, Reference: t.name}}
	}
	return r, err
}

func (t target) Pin(r targets.Rendered, _ map[string]verify.Subject) (targets.Rendered, error) {
	return r, t.call("pin")
}

func (t target) Healthy(context.Context, targets.Rendered) error { return t.call("healthy") }
func (t target) Close() error                                    { return t.call("close") }
func (t target) Expect()                                         { _ = t.call("expect") }
func (t target) Postpone()                                       { _ = t.call("postpone") }
func (t target) Renounce()                                       { _ = t.call("renounce") }

func (t target) Removal(_ context.Context, r targets.Rendered, orphan bool) (plan.Plan, error) {
	if err := t.call("removal"); err != nil {
		return plan.Plan{}, err
	}
	action := plan.Delete
	if orphan {
		action = plan.Release
	}
	return plan.Plan{
		Stack: t.name, Environment: "e", Target: "fake", Revision: r.Revision, Rendered: r.Digest, Private: "",
		Changes: []plan.Change{{ID: t.oid(), Action: action}},
	}, nil
}

func (t target) Plan(_ context.Context, r targets.Rendered, _ ...plan.ObjectID) (plan.Plan, error) {
	if err := t.call("plan"); err != nil {
		return plan.Plan{}, err
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	p := plan.Plan{Stack: t.name, Environment: "e", Target: "fake", Revision: r.Revision, Rendered: r.Digest, Private: r.Private}
	if live, ok := t.b.live[t.name]; !ok {
		p.Changes = []plan.Change{{ID: t.oid(), Action: plan.Create, After: r.Digest}}
	} else if live != r.Private {
		p.Changes = []plan.Change{{ID: t.oid(), Action: plan.Update, After: r.Digest, Fields: []plan.Field{{Path: "/v", From: live, To: r.Private.(string)}}}}
	}
	return p, nil
}

func (t target) Apply(_ context.Context, g gate.Grant) (targets.Receipt, error) {
	if err := t.call("apply"); err != nil {
		return targets.Receipt{}, err
	}
	p, err := g.Plan()
	if err != nil {
		return targets.Receipt{}, err
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.b.stale[t.name] > 0 {
		t.b.stale[t.name]--
		return targets.Receipt{}, fault.Wrap(fault.Transient, "", "", fmt.Errorf("moved: %w", targets.ErrStale))
	}
	if t.b.half[t.name] {
		t.b.live[t.name] = "half"
		return targets.Receipt{}, fault.New(fault.Invalid, "", "", "one of two objects was refused")
	}
	if t.b.live[t.name] = p.Private.(string); p.Private == "" {
		if p.Changes[0].Action == plan.Delete {
			delete(t.b.live, t.name)
		} else {
			t.b.live[t.name] = "let go"
		}
	}
	return targets.Receipt{Stack: t.name, Plan: p.Digest()}, nil
}

func (t target) Desired(_ context.Context, r targets.Rendered) (map[plan.ObjectID]digest.Digest, error) {
	return map[plan.ObjectID]digest.Digest{t.oid(): r.Digest}, nil
}

func (t target) Observe(ctx context.Context, _ targets.Rendered, found func(targets.Finding)) error {
	t.b.with(func() { t.b.found[t.name] = found })
	if err := t.call("observe"); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// plain is a target that can do no more than it must.
type plain struct{ targets.Target }

func plainly(t *target) targets.Target { return &plain{t} }

// namer is a target that names artifacts in the plan only.
type namer struct{ *target }

func (n namer) PlanArtifacts(plan.Plan) ([]verify.Subject, error) {
	return []verify.Subject{{Kind: verify.KindImage, Reference: "only planned"}}, n.call("name artifacts")
}

// build makes the target of a stack.
func (b *bed) build(name string) (targets.Target, error) {
	err := b.meet("build " + name)
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &target{b: b, name: name, dir: b.dirs[name]}
	if wrap := b.wrap[name]; wrap != nil {
		return wrap(t), err
	}
	return t, err
}

// discover makes a stack of each folder.
func (b *bed) discover(_ context.Context, snap *sources.Snapshot) ([]Stack, error) {
	names, err := fs.Glob(snap.FS, "*/object")
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Stack
	for _, n := range names {
		dir := path.Dir(n)
		name := dir
		if a := b.alias[dir]; a != "" && b.number(snap.Revision.ID) >= b.aliasFrom {
			name = a
		}
		if dir == b.undecodable && b.number(snap.Revision.ID) > 1 {
			out = append(out, Stack{Name: "repo/" + dir, Dir: dir, Err: fault.New(fault.Invalid, "", "", "unknown field")})
			continue
		}
		s := Stack{
			Name: name, Environment: "e", Dir: dir, TargetName: "fake", Key: dir + " " + name + b.depends[name], Drift: drift.Rules{Mode: cmp.Or(b.mode, drift.Revert)}, Prune: b.prune[name],
			Schedule: b.schedule, Policy: b, Err: b.bad[name], Build: func() (targets.Target, error) { return b.build(name) },
		}
		if d := b.depends[name]; d != "" {
			s.DependsOn = []string{d}
		}
		out = append(out, s)
	}
	return out, err
}

func (b *bed) new() *Reconciler {
	b.t.Helper()
	r, err := New(Config{
		Repositories: []Repository{{
			Name: "repo", Interval: 5 * time.Millisecond, Source: b, Discover: b.discover,
			Follows: func(_ context.Context, from, head string) error {
				if err := b.meet("follows"); err != nil {
					return err
				}
				if b.number(from) > b.number(head) {
					return fault.New(fault.Denied, "", "", "%s does not come after %s", head, from)
				}
				return nil
			},
			Authorise: func(_ context.Context, _, head string, _ time.Time) (verify.Evidence, error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				if head == b.refuse {
					return verify.Evidence{}, fault.New(fault.Denied, "", "", "nobody signed %s", head)
				}
				return verify.Evidence{Subject: verify.Subject{Kind: "commit", Reference: head}, Checks: []verify.Check{{Name: "commit", OK: !b.unproven}}, RestsOn: b.signed}, nil
			},
		}},
		Artifacts: b, Gate: gate.New(b, gate.Limits{}), Ledger: b, StateDir: b.state, Workers: 4,
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Scrub: func(s string) string { return s },
		Revocations: &verify.Revocations{}, Marks: b,
		Events: func(e Event) { b.with(func() { b.events = append(b.events, e) }) },
		Signer: func(_, signature []byte, _ time.Time) (string, error) {
			if string(signature) != "alice's" {
				return "", errors.New("nobody known signed it")
			}
			return "alice", nil
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// run runs r until stop is called.
func (b *bed) run(r *Reconciler) (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				b.t.Errorf("Run: %v", err)
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

// until waits until ok.
func (b *bed) until(what string, ok func() bool) {
	b.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			b.t.Fatalf("%s did not happen", what)
		case <-tick.C:
		}
	}
}

func status(r *Reconciler, name string) Status {
	for _, s := range r.Status().Stacks {
		if s.Stack == name {
			return s
		}
	}
	return Status{}
}

func (b *bed) untilPhase(r *Reconciler, name string, p Phase) Status {
	b.t.Helper()
	b.until(fmt.Sprintf("%s %s", name, p), func() bool { return status(r, name).Phase == p })
	return status(r, name)
}

// ready starts a daemon and waits until the stacks are ready.
func (b *bed) ready(stacks ...string) (r *Reconciler, stop func()) {
	b.t.Helper()
	r = b.new()
	stop = b.run(r)
	for _, s := range stacks {
		b.untilPhase(r, s, Ready)
	}
	return r, stop
}

// applied returns a reconciler without a daemon, with the stacks applied.
func (b *bed) applied(stacks ...string) *Reconciler {
	b.t.Helper()
	r := b.new()
	b.t.Cleanup(r.Close)
	if err := r.Sync(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	for _, s := range stacks {
		if _, err := r.Apply(b.t.Context(), s); err != nil {
			b.t.Fatal(err)
		}
	}
	r.late.Wait() // nothing goes on behind the test's back
	return r
}

func TestWorkFollowsChange(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "b")
	r, _ := b.ready("a", "b")
	b.push(map[string]string{"b/object": "v2"})
	b.until("b at the new commit", func() bool { return status(r, "b").Applied == "commit-2" && status(r, "a").Applied == "commit-2" })
	if n := b.count("render a"); n != 1 {
		t.Errorf("a was rendered %d times, though nothing that it reads changed", n)
	}
	if n := b.count("plan a"); n != 1 {
		t.Errorf("a was planned %d times", n)
	}
	if n := b.count("expect a"); n != 1 {
		t.Errorf("others waited %d times for a", n)
	}
}

func TestClass19_one_stack_does_not_hurt_another(t *testing.T) {
	t.Parallel()
	b := newBed(t, "good", "panics", "denied", "bad")
	b.panics, b.denied["denied"], b.bad["bad"] = "panics", true, fault.New(fault.Invalid, "", "", "no such field")
	r, _ := b.ready("good")
	if st := b.untilPhase(r, "panics", Failed); !strings.Contains(st.Message, "panic") {
		t.Errorf("message %q", st.Message)
	}
	if st := b.untilPhase(r, "denied", Denied); !strings.Contains(st.Message, "not like this") {
		t.Errorf("message %q", st.Message)
	}
	b.untilPhase(r, "bad", Invalid)
	b.until("the denial on record", func() bool { return b.recorded(ledger.Refused, "denied", "denied") == 1 })
	if b.count("apply denied") != 0 || b.recorded(ledger.Intent, "denied", "") != 0 {
		t.Error("a denied stack was applied")
	}
}

func TestRefusedCommitKeepsTheOldState(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	b.with(func() { b.refuse = "commit-2" })
	b.push(map[string]string{"a/object": "evil"})
	b.until("the refusal", func() bool { return strings.Contains(r.Status().Repositories[0].Message, "nobody signed") })
	b.until("the refusal on record", func() bool { return b.recorded(ledger.Refused, "", "denied") == 1 })
	if got := r.Status().Repositories[0].Verified; got != "commit-1" {
		t.Errorf("verified %s", got)
	}
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
	b.push(map[string]string{"a/object": "v3"})
	b.until("the next good commit", func() bool { return b.object("a") == "v3" })
}

// drift changes an object behind the daemon's back and reports it.
func (b *bed) drift(name, content string) {
	b.until("the observer of "+name, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.found[name] != nil
	})
	var found func(targets.Finding)
	b.with(func() { b.live[name] = content; found = b.found[name] })
	found(targets.Finding{ID: target{b: b, name: name}.oid(), Class: targets.Modified, Fields: []plan.Field{{Path: "/v", From: content}}, Detected: time.Now()})
}

func (b *bed) object(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.live[name]
}

// A stack file that asks for what the operator denies must not end the
// enforcement of what was granted before.
func TestRefusedRequestKeepsTheOldState(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	b.with(func() { b.bad["a"] = fault.New(fault.Denied, "", "", "not your namespace") })
	b.push(nil)
	if st := b.untilPhase(r, "a", Denied); st.Message != "a: not your namespace" {
		t.Errorf("message %q", st.Message)
	}
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
	b.with(func() { b.bad["a"] = nil })
	b.push(map[string]string{"a/object": "v2"})
	b.until("the next good request", func() bool { return b.object("a") == "v2" })
	b.untilPhase(r, "a", Ready)
}

func TestStalePlanIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.stale["a"] = 1
	b.ready("a")
	if n := b.count("plan a"); n != 2 {
		t.Errorf("%d plans, want 2", n)
	}
	if b.recorded(ledger.Applied, "a", "failed") != 1 {
		t.Error("the stale apply is not on record")
	}
}

func TestDependencies(t *testing.T) {
	t.Parallel()
	b := newBed(t, "web", "db", "x", "y")
	b.depends = map[string]string{"web": "db", "x": "y", "y": "x"}
	b.denied["db"] = true
	r := b.new()
	b.run(r)
	b.untilPhase(r, "db", Denied)
	b.until("web to say what it waits for", func() bool {
		st := status(r, "web")
		return st.Phase == Waiting && strings.Contains(st.Message, `"db", which is denied`)
	})
	if st := b.untilPhase(r, "x", Invalid); !strings.Contains(st.Message, "cycle: x → y → x") {
		t.Errorf("message %q", st.Message)
	}
	b.with(func() { b.denied["db"] = false })
	b.push(map[string]string{"db/object": "v2"})
	b.untilPhase(r, "web", Ready)
}

// After a restart the daemon enforces what was granted, with the source down,
// without planning or judging it again.
func TestRestartWithoutTheSource(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	_, stop := b.ready("a")
	stop()
	b.with(func() { b.down, b.found = true, map[string]func(targets.Finding){}; clear(b.calls) })
	r := b.new()
	b.run(r)
	b.untilPhase(r, "a", Ready)
	if n := b.count("plan a"); n != 0 {
		t.Errorf("%d plans after the restart, want none", n)
	}
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
}

// What was granted must render to the same digest, or it is judged anew.
func TestRestartWithOtherContent(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	_, stop := b.ready("a")
	stop()
	b.with(func() { b.history["commit-1"]["a/object"] = "altered"; b.denied["a"] = true })
	r := b.new()
	b.run(r)
	b.untilPhase(r, "a", Denied)
	if b.object("a") != "v1" {
		t.Error("altered content was applied")
	}
}

func TestDanglingIntentsAreClosed(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.open = []ledger.Numbered{{Index: 7, Entry: ledger.Entry{Type: ledger.Intent, Stack: "a"}}}
	b.ready("a")
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[0]; e.Type != ledger.Applied || e.Outcome != "abandoned" || e.Intent == nil || *e.Intent != 7 {
		t.Errorf("the first entry is %+v", e)
	}
}

func TestStackFileGone(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "b")
	r, _ := b.ready("a", "b")
	b.push(map[string]string{"a/object": "", "b/object": ""})
	b.untilPhase(r, "a", Held)
	b.untilPhase(r, "b", Held)
	if b.object("a") != "v1" || b.object("b") != "v1" {
		t.Error("something was deleted")
	}
	b.push(map[string]string{"a/object": "v2"})
	b.untilPhase(r, "a", Ready)
}

// A denial is recorded with what it rests on.
func TestDenialKeepsItsEvidence(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.denied["a"] = true
	b.run(b.new())
	b.until("the denial on record", func() bool { return b.recorded(ledger.Refused, "a", "denied") == 1 })
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if e.Type != ledger.Refused {
			continue
		}
		for _, role := range []string{"commit", "evidence", "rendered"} {
			if e.Bodies[role] == "" {
				t.Errorf("the denial has no %s: %v", role, e.Bodies)
			}
		}
	}
}

// The mark is kept before anything of a commit can be in the world: a crash in
// between must not roll back.
func TestMarkComesFirst(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	discover, marks := b.discover, make(chan string, 1)
	r.repos["repo"].Discover = func(ctx context.Context, snap *sources.Snapshot) ([]Stack, error) {
		st, err := r.state.repository("repo")
		if err != nil {
			return nil, err
		}
		select {
		case marks <- st.Verified:
		default:
		}
		return discover(ctx, snap)
	}
	b.run(r)
	if got := <-marks; got != "commit-1" {
		t.Errorf("stacks of commit-1 were discovered while the mark was %q", got)
	}
}

// A name stays with the folder that has it: whoever takes it would take the
// objects that are kept under it.
func TestNamesCannotBeTaken(t *testing.T) {
	t.Parallel()
	b := newBed(t, "shop")
	r, _ := b.ready("shop")
	b.with(func() { b.alias["aaa"] = "shop" })
	b.push(map[string]string{"aaa/object": "evil"})
	if st := b.untilPhase(r, "shop@repo/aaa", Invalid); !strings.Contains(st.Message, "is taken by repo/shop") {
		t.Errorf("message %q", st.Message)
	}
	b.push(map[string]string{"shop/object": "v2"})
	b.until("the rightful stack to go on", func() bool { return b.object("shop") == "v2" })

	// Nor when its own stack file is gone.
	b.push(map[string]string{"aaa/object": "", "shop/object": ""})
	b.untilPhase(r, "shop", Held)
	b.push(map[string]string{"aaa/object": "evil"})
	b.untilPhase(r, "shop@repo/aaa", Invalid)
	if b.object("shop") != "v2" {
		t.Error("the name of a held stack was taken")
	}
}

// Nor from another repository, nor when several want one that nobody has.
func TestNamesAcrossRepositories(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	r.stacks["shop"] = newStack("other", Stack{Name: "shop", Dir: "apps"})
	got := r.owners("repo", []asked{{Stack: Stack{Name: "shop", Dir: "apps"}}, {Stack: Stack{Name: "twin", Dir: "a"}}, {Stack: Stack{Name: "twin", Dir: "b"}}, {Stack: Stack{Name: "free", Dir: "c"}}})
	for i, want := range []string{"is taken by other/apps", "is taken by repo/b", "is taken by repo/a", ""} {
		switch {
		case want == "" && got[i].Err != nil:
			t.Errorf("%s is refused: %v", got[i].Name, got[i].Err)
		case want != "" && (got[i].Err == nil || !strings.Contains(got[i].Err.Error(), want)):
			t.Errorf("%s in %s: got %v, want %q", got[i].Name, got[i].Dir, got[i].Err, want)
		}
	}
}

// A name does not move to another folder: who may change the one need not be
// who may change the other.
func TestFolderMoves(t *testing.T) {
	t.Parallel()
	b := newBed(t, "shop", "other", "third")
	r, _ := b.ready("shop", "other", "third")
	b.with(func() { b.alias["moved"] = "shop" })
	b.push(map[string]string{"shop/object": "", "moved/object": "v1"})
	b.untilPhase(r, "shop", Held)
	b.untilPhase(r, "shop@repo/moved", Invalid)
	b.push(map[string]string{"moved/object": "", "shop/object": "v2"})
	b.until("it goes on where it was", func() bool { return b.object("shop") == "v2" })
}

// What was fetched before is gone: the newest commit is taken again.
func TestRestartWithoutTheMirror(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	_, stop := b.ready("a")
	stop()
	b.with(func() { b.lost = true; clear(b.found) })
	r := b.new()
	b.run(r)
	b.untilPhase(r, "a", Ready)
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
}

// The newest commit is refused by policy, and the daemon restarts: what was
// granted before goes on being enforced, and so does a stack that the newest
// commit does not declare any more.
func TestRestartEnforcesWhatWasGranted(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "gone")
	r, stop := b.ready("a", "gone")
	b.with(func() { b.denied["a"] = true })
	b.push(map[string]string{"a/object": "v2", "gone/object": ""})
	b.untilPhase(r, "a", Denied)
	b.untilPhase(r, "gone", Held)
	stop()
	b.with(func() { clear(b.found) })
	r = b.new()
	b.run(r)
	b.untilPhase(r, "a", Denied)
	b.untilPhase(r, "gone", Held)
	for _, name := range []string{"a", "gone"} {
		b.drift(name, "edited")
		b.until("the repair of "+name, func() bool { return b.object(name) == "v1" })
	}
	b.untilPhase(r, "gone", Held)
}

// A changed request that is refused does not end what was granted.
func TestNewGenerationKeepsTheOldGrant(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	b.with(func() { b.depends["a"] = "nothing" }) // another key: another generation
	b.push(nil)
	b.untilPhase(r, "a", Waiting)
	b.drift("a", "edited")
	b.until("the repair", func() bool { return b.object("a") == "v1" })
}

// After an apply that failed half-way the old commit is not simply ready again.
func TestHalfAppliedIsNotReady(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r, _ := b.ready("a")
	b.with(func() { b.half["a"] = true })
	b.push(map[string]string{"a/object": "v2"})
	b.untilPhase(r, "a", Invalid)
	b.with(func() { b.half["a"] = false })
	b.push(map[string]string{"a/object": "v1"})
	b.until("v1 again", func() bool { return b.object("a") == "v1" })
	b.untilPhase(r, "a", Ready)
}

// Many stacks that depend on many cost little to look at.
func TestDependencyLayers(t *testing.T) {
	t.Parallel()
	r := newBed(t, "x").new()
	const layers = 60
	for l := range layers {
		for i := range 2 {
			s := newStack("repo", Stack{Name: fmt.Sprintf("s%d-%d", l, i)})
			if l > 0 {
				s.DependsOn = []string{fmt.Sprintf("s%d-0", l-1), fmt.Sprintf("s%d-1", l-1)}
			}
			r.stacks[s.Name] = s
		}
	}
	top := fmt.Sprintf("s%d-0", layers-1)
	if c := r.cycle(top, top, map[string]bool{}); c != nil {
		t.Errorf("found a cycle: %v", c)
	}
	r.stacks["s0-0"].DependsOn = []string{top}
	if c := r.cycle(top, top, map[string]bool{}); len(c) != layers+1 {
		t.Errorf("found %d stacks in the cycle, want %d", len(c), layers+1)
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	err := Config{}.Validate()
	for _, want := range []string{"repositories", "artifact verifier", "gate", "ledger", "state folder", "workers", "logger", "metrics", "scrubber"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name the missing %s", err, want)
		}
	}
}

func TestTracker(t *testing.T) {
	t.Parallel()
	snap := &sources.Snapshot{FS: identified{fstest.MapFS{"a/x": {Data: []byte("1")}, "b/y": {Data: []byte("1")}}}}
	track := newTracker(snap)
	s := track.snapshot()
	if _, err := fs.ReadFile(s.FS, "a/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Stat(s.FS, "a/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b/y"} { // a folder that is there is no content
		if _, err := fs.Stat(s.FS, name); err != nil {
			t.Fatal(err)
		}
	}
	in := track.inputs()
	if names := slices.Sorted(maps.Keys(in)); !slices.Equal(names, []string{"a/missing", "a/x", "b/y"}) {
		t.Errorf("noted %v", names)
	}
	for name, tc := range map[string]struct {
		fs   fstest.MapFS
		same bool
	}{
		"nothing changed":    {fstest.MapFS{"a/x": {Data: []byte("1")}, "b/y": {Data: []byte("1")}}, true},
		"another file":       {fstest.MapFS{"a/x": {Data: []byte("1")}, "b/y": {Data: []byte("1")}, "b/z": {Data: []byte("2")}}, true},
		"the file that read": {fstest.MapFS{"a/x": {Data: []byte("2")}, "b/y": {Data: []byte("1")}}, false},
		"a file that is":     {fstest.MapFS{"a/x": {Data: []byte("1")}, "b/y": {Data: []byte("2")}}, false},
		"a file appears":     {fstest.MapFS{"a/x": {Data: []byte("1")}, "b/y": {Data: []byte("1")}, "a/missing": {}}, false},
		"the file is gone":   {fstest.MapFS{}, false},
	} {
		if got := sameInputs(in, &sources.Snapshot{FS: identified{tc.fs}}); got != tc.same {
			t.Errorf("%s: same = %t", name, got)
		}
	}
	if sameInputs(nil, snap) {
		t.Error("a rendering that read nothing counts as unchanged")
	}
}
