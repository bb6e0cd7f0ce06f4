package reconciler

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// authorises has the bed's commits authorised by f.
func (r *Reconciler) authorises(f func() error) (asked *int) {
	asked = new(int)
	inner := r.repos["repo"].Authorise
	r.repos["repo"].Authorise = func(ctx context.Context, from, head string, seen time.Time) (verify.Evidence, error) {
		*asked++
		if err := f(); err != nil {
			return verify.Evidence{}, err
		}
		return inner(ctx, from, head, seen)
	}
	return asked
}

// A commit that is refused is not judged again, and what did not work is tried
// again.
func TestCommitThatIsNotTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind            fault.Kind
		judged          int // of three looks
		recorded, told  int
		soon            bool // the next look is after the interval
		panics, missing bool
	}{
		{kind: fault.Denied, judged: 1, recorded: 1, told: 1, soon: true},
		{kind: fault.Invalid, judged: 1, recorded: 1, told: 1, soon: true},
		{kind: fault.Transient, judged: 3},
		{kind: fault.Internal, judged: 3, told: 1},
		{kind: fault.Internal, judged: 3, told: 1, panics: true},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.new()
			defer r.Close()
			repo := r.repository("repo")
			repo.Interval = time.Second
			asked := r.authorises(func() error {
				if c.panics {
					panic("oh no")
				}
				return fault.New(c.kind, "op", "", "no")
			})
			var next time.Duration
			for range 3 {
				next = r.poll(t.Context(), repo)
			}
			if *asked != c.judged {
				t.Errorf("judged %d times", *asked)
			}
			if soon := next < 2*time.Second; soon != c.soon {
				t.Errorf("the next look is in %s", next)
			}
			r.late.Wait()
			if n := b.recorded(ledger.Refused, "", c.kind.String()); n != c.recorded || b.told(EventSource, "") != c.told {
				t.Errorf("%d on record, %d told", n, b.told(EventSource, ""))
			}
			if st := repo.snapshotStatus(); st.Verified != "" || st.Message == "" || r.stack("a") != nil {
				t.Errorf("it was taken: %+v", st)
			}
			// The end of the daemon is no failure.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if next := r.poll(ctx, repo); next >= 2*time.Second || repo.attempts != 0 {
				t.Errorf("at the end: the next look is in %s", next)
			}
		})
	}
}

// It is told once that a repository is well again, if it was not.
func TestRepositoryThatIsWell(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	defer r.Close()
	repo := r.repository("repo")
	wrong := fault.New(fault.Denied, "", "", "no")
	r.authorises(func() error { return wrong })
	r.poll(t.Context(), repo)
	wrong = nil
	b.push(nil)
	for range 3 {
		r.poll(t.Context(), repo)
	}
	if n := b.told(EventSource, ""); n != 2 || repo.snapshotStatus().Message != "" {
		t.Errorf("told %d times: %+v", n, b.events)
	}
}

// A commit whose place in history cannot be kept is not taken: a restart would
// go back behind it.
func TestCommitThatCannotBeKept(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	if err := os.WriteFile(filepath.Join(b.state, "repositories"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := b.new()
	defer r.Close()
	if err := r.look(t.Context(), ""); fault.KindOf(err) != fault.Transient || err == nil {
		t.Errorf("look: %v", err)
	}
	if r.stack("a") != nil || r.repository("repo").snapshotStatus().Verified != "" {
		t.Error("it was taken")
	}
}

// History does not start over when what is known of it cannot be read.
func TestHistoryThatCannotBeRead(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.applied("a").Close()
	if err := os.WriteFile(filepath.Join(b.state, "repositories", "repo.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.push(map[string]string{"a/object": "v2"})
	r := b.new()
	defer r.Close()
	if err := r.Sync(t.Context()); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("sync: %v", err)
	}
	if r.stack("a") != nil {
		t.Error("it was taken")
	}
}

// A head that was never confirmed is not stale before its time.
func TestAgeCountsFromTheStart(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.down = true
	r := b.new()
	repo := r.repository("repo")
	repo.MaxAge = time.Hour
	r.poll(t.Context(), repo)
	if repo.snapshotStatus().Stale {
		t.Error("it is stale at once")
	}
}

// Only what is known is looked at.
func TestLook(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.new()
	defer r.Close()
	r.Poke("nobody")
	for range 2 { // many at once are one
		r.Poke("repo")
	}
	if n := len(r.repository("repo").poked); n != 1 {
		t.Errorf("it is to be looked at %d times", n)
	}
	if err := r.look(t.Context(), "nobody"); err != nil || r.stack("a") != nil {
		t.Errorf("another repository: %v", err)
	}
	if err := r.look(t.Context(), "repo"); err != nil || r.stack("a") == nil {
		t.Errorf("the repository: %v", err)
	}
}

// Reconcile is about one stack or all, but never about what is gone.
func TestReconcile(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a", "c", "gone")
	r := b.applied("a", "c", "gone")
	b.push(map[string]string{"gone/object": ""})
	if err := r.look(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][3]int{"": {1, 1, 0}, "a": {1, 0, 0}, "gone": {0, 0, 1}} {
		b.with(func() { clear(b.calls) })
		if err := r.Reconcile(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if got := [3]int{b.count("render a"), b.count("render c"), b.count("render gone")}; got != want {
			t.Errorf("reconcile %q rendered %v, want %v", name, got, want)
		}
	}
	if err := r.Reconcile(t.Context(), "nobody"); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("reconcile nobody: %v", err)
	}
}

// asks makes stacks of a commit of the bed.
func (b *bed) asks(stacks ...Stack) (out []asked) {
	for _, s := range stacks {
		if s.Build == nil {
			s.Build = func() (targets.Target, error) { return b.build(s.Name) }
		}
		out = append(out, asked{Stack: s, snap: b.snapshot("commit-1")})
	}
	return out
}

// What a commit does to the stacks that run.
func TestReplace(t *testing.T) {
	t.Parallel()
	at := sources.Revision{Source: "repo", ID: "commit-2"}
	a := Stack{Name: "a", Dir: "a", Environment: "e", Key: "k", Prune: PruneDelete}
	no := errors.New("no such field")
	for _, c := range []struct {
		name     string
		deployed bool
		now      []Stack
		check    func(t *testing.T, r *Reconciler, old *stack, wanted, refused []*stack)
	}{
		{"the same request", true, []Stack{a}, func(t *testing.T, r *Reconciler, old *stack, wanted, refused []*stack) {
			if r.stack("a") != old || len(wanted) != 1 || wanted[0] != old || len(refused) != 0 || old.isHeld() {
				t.Error("it is another generation")
			}
		}},
		{"another request", true, []Stack{{Name: "a", Dir: "a", Environment: "e", Key: "other"}}, func(t *testing.T, r *Reconciler, old *stack, wanted, _ []*stack) {
			if s := r.stack("a"); s == old || s.live != old.live || len(wanted) != 1 {
				t.Error("it is no next generation")
			}
		}},
		{"the same request, which can run by now", false, []Stack{a}, func(t *testing.T, r *Reconciler, old *stack, wanted, _ []*stack) {
			again := asked{Stack: old.Stack, snap: old.snap}
			again.Build = func() (targets.Target, error) { return &plain{}, nil }
			old.Err = no
			if r.replace(t.Context(), "repo", at, []asked{again}); r.stack("a").refused() != nil || len(wanted) != 1 {
				t.Error("it is refused still")
			}
		}},
		{"a request that is refused", true, []Stack{{Name: "a", Dir: "a", Err: no}}, func(t *testing.T, r *Reconciler, old *stack, wanted, refused []*stack) {
			if r.stack("a") != old || !errors.Is(old.refused(), no) || len(refused) != 1 || len(wanted) != 0 {
				t.Error("what was granted does not go on")
			}
		}},
		{"a target that cannot be made", true, []Stack{{Name: "a", Dir: "a", Key: "other", Build: func() (targets.Target, error) { return nil, no }}}, func(t *testing.T, r *Reconciler, old *stack, _, refused []*stack) {
			if r.stack("a") != old || !errors.Is(old.refused(), no) || len(refused) != 1 {
				t.Error("what was granted does not go on")
			}
		}},
		{"a refused request of what was never granted", false, []Stack{{Name: "a", Dir: "a", Err: no}}, func(t *testing.T, r *Reconciler, old *stack, wanted, _ []*stack) {
			if r.stack("a") == old || !errors.Is(r.stack("a").refused(), no) || len(wanted) != 1 {
				t.Error("the older request stands")
			}
		}},
		{"gone, with nothing in the world", false, nil, func(t *testing.T, r *Reconciler, _ *stack, _, _ []*stack) {
			if r.stack("a") != nil {
				t.Error("it is still there")
			}
		}},
		{"gone", true, nil, func(t *testing.T, r *Reconciler, old *stack, _, _ []*stack) {
			if r.stack("a") != old || !old.isHeld() || r.queue.Len() != 1 {
				t.Error("it is not removed")
			}
		}},
		{"under another name in another environment", true, []Stack{{Name: "new", Dir: "a", Environment: "f"}}, func(t *testing.T, r *Reconciler, old *stack, _, _ []*stack) {
			if !old.isHeld() || r.queue.Len() != 0 {
				t.Error("it is removed, though another name has its folder")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "a")
			r := b.new()
			r.queue = r.metrics.delaying(queueStacks)
			defer r.queue.ShutDown()
			defer r.late.Wait()
			old := newStack("repo", a)
			old.target = &target{b: b, name: "a"}
			if c.deployed {
				old.live.current = &deployment{basis: basis{Stack: a, target: &target{b: b, name: "a"}, snap: b.snapshot("commit-1")}}
			}
			other := newStack("another", Stack{Name: "other"})
			r.stacks["a"], r.stacks["other"] = old, other
			wanted, refused := r.replace(t.Context(), "repo", at, b.asks(c.now...))
			c.check(t, r, old, wanted, refused)
			if r.stack("other") != other || other.isHeld() {
				t.Error("a stack of another repository is gone")
			}
		})
	}
}

// A name that a target cannot hand over is refused, in favour of what runs.
func TestReplaceUnderAnotherName(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.wrap["a"], b.wrap["new"] = plainly, plainly
	r := b.applied("a")
	no := errors.New("no such field")
	for _, err := range []error{nil, no} {
		now := Stack{Name: "new", Dir: "a", Environment: "e", Err: err}
		r.replace(t.Context(), "repo", sources.Revision{Source: "repo", ID: "commit-2"}, b.asks(now))
		got := r.stack("new").refused()
		if err == nil && (got == nil || !strings.Contains(got.Error(), "is called a")) || err != nil && !errors.Is(got, no) {
			t.Errorf("refused: %v", got)
		}
		if !r.stack("a").isHeld() || b.object("a") != "v1" {
			t.Error("what was deployed is given up")
		}
	}
}

// Who has a name, of those that run and those that ran before a restart.
func TestOwners(t *testing.T) {
	t.Parallel()
	no := errors.New("unknown field")
	for name, c := range map[string]struct {
		runs     []*stack
		deployed bool
		held     bool
		kept     map[string]stackState
		asked    Stack
		is       string
		taken    string
	}{
		"a free name":                          {asked: Stack{Name: "a", Dir: "a"}, is: "a"},
		"its own":                              {runs: []*stack{newStack("repo", Stack{Name: "a", Dir: "a"})}, deployed: true, asked: Stack{Name: "a", Dir: "a"}, is: "a"},
		"of a folder that deployed":            {runs: []*stack{newStack("repo", Stack{Name: "a", Dir: "b"})}, deployed: true, asked: Stack{Name: "a", Dir: "a"}, taken: "is taken by repo/b"},
		"of a folder that is gone":             {runs: []*stack{newStack("repo", Stack{Name: "a", Dir: "b"})}, deployed: true, held: true, asked: Stack{Name: "a", Dir: "a"}, taken: "whose stack file is gone"},
		"of a folder that did not":             {runs: []*stack{newStack("repo", Stack{Name: "a", Dir: "b"})}, asked: Stack{Name: "a", Dir: "a"}, is: "a"},
		"of another repository":                {runs: []*stack{newStack("other", Stack{Name: "a", Dir: "a"})}, asked: Stack{Name: "a", Dir: "a"}, taken: "is taken by other/a"},
		"of what ran before":                   {kept: map[string]stackState{"a": {Repository: "repo", Dir: "b"}}, asked: Stack{Name: "a", Dir: "a"}, taken: "is taken by repo/b"},
		"of what was gone before":              {kept: map[string]stackState{"a": {Repository: "repo", Dir: "b", Held: true}}, asked: Stack{Name: "a", Dir: "a"}, taken: "whose stack file is gone"},
		"of what ran elsewhere before":         {kept: map[string]stackState{"a": {Repository: "other", Dir: "a"}}, asked: Stack{Name: "a", Dir: "a"}, taken: "is taken by other/a"},
		"its own before":                       {kept: map[string]stackState{"a": {Repository: "repo", Dir: "a"}}, asked: Stack{Name: "a", Dir: "a"}, is: "a"},
		"not known, of what runs":              {runs: []*stack{newStack("repo", Stack{Name: "x", Dir: "a"}), newStack("repo", Stack{Name: "y", Dir: "b"}), newStack("other", Stack{Name: "z", Dir: "a"})}, deployed: true, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "x"},
		"not known, of what ran":               {kept: map[string]stackState{"x": {Repository: "repo", Dir: "a"}, "y": {Repository: "repo", Dir: "b"}, "z": {Repository: "other", Dir: "a"}}, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "x"},
		"not known, and nothing in its folder": {runs: []*stack{newStack("repo", Stack{Name: "y", Dir: "b"})}, deployed: true, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "repo/a"},
		"not known, and another's folder":      {runs: []*stack{newStack("other", Stack{Name: "z", Dir: "a"})}, deployed: true, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "repo/a"},
		"not known, and nothing was in it":     {kept: map[string]stackState{"y": {Repository: "repo", Dir: "b"}}, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "repo/a"},
		"not known, and it was another's":      {kept: map[string]stackState{"z": {Repository: "other", Dir: "a"}}, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "repo/a"},
		"not known, of what is elsewhere":      {runs: []*stack{newStack("repo", Stack{Name: "x", Dir: "b"})}, deployed: true, kept: map[string]stackState{"x": {Repository: "repo", Dir: "a"}}, asked: Stack{Name: "repo/a", Dir: "a", Err: no}, is: "repo/a"},
		"known, and refused":                   {runs: []*stack{newStack("repo", Stack{Name: "x", Dir: "a"})}, deployed: true, asked: Stack{Name: "new", Dir: "a", Err: no}, is: "new"},
		"with a slash, and not refused":        {runs: []*stack{newStack("repo", Stack{Name: "x", Dir: "a"})}, deployed: true, asked: Stack{Name: "n/w", Dir: "a"}, is: "n/w"},
	} {
		b := newBed(t, "x")
		r := b.new()
		for _, s := range c.runs {
			if s.held = c.held; c.deployed {
				s.live.current = &deployment{}
			}
			r.stacks[s.Name] = s
		}
		r.kept = c.kept
		got := r.owners("repo", b.asks(c.asked))[0]
		switch {
		case c.taken == "" && (got.Name != c.is || !errors.Is(got.Err, c.asked.Err)):
			t.Errorf("%s: it is %q: %v", name, got.Name, got.Err)
		case c.taken != "" && (got.Name != "a@repo/a" || got.Err == nil || !strings.Contains(got.Err.Error(), c.taken)):
			t.Errorf("%s: it is %q: %v, want %q", name, got.Name, got.Err, c.taken)
		}
	}
}

// soon is a schedule that has its next time right away.
type soon struct{}

func (soon) Next(now time.Time) time.Time { return now.Add(5 * time.Millisecond) }

// What nobody watches is compared by schedule.
func TestScheduledComparison(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.wrap["a"], b.schedule = plainly, soon{}
	b.ready("a")
	b.tamper("a", "edited")
	b.until("the revert", func() bool { return b.object("a") == "v1" })
}
