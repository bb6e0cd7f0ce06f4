package reconciler

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
)

// A mark that knows more than this daemon is refused; one that cannot be
// compared is compared again.
func TestCompareMark(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mark     Mark
		verified string
		before   func(*bed)
		kind     fault.Kind
		says     string // empty: it may go on
	}{
		"an older commit":                   {Mark{Commit: "commit-1"}, "commit-2", nil, 0, ""},
		"the same commit":                   {Mark{Commit: "commit-2"}, "commit-2", func(b *bed) { b.fails("follows", fault.Denied) }, 0, ""},
		"no commit":                         {Mark{}, "commit-2", func(b *bed) { b.fails("follows", fault.Denied) }, 0, ""},
		"a newer commit":                    {Mark{Commit: "commit-3"}, "commit-2", nil, fault.Denied, "does not come after it"},
		"a commit that cannot be":           {Mark{Commit: "commit-1"}, "commit-2", func(b *bed) { b.fails("follows", fault.Invalid) }, fault.Denied, "does not come after it"},
		"history that cannot be read":       {Mark{Commit: "commit-1"}, "commit-2", func(b *bed) { b.fails("follows", fault.Transient) }, fault.Transient, "follows"},
		"nothing verified yet":              {Mark{Commit: "commit-1"}, "", nil, fault.Waiting, "no commit of repository repo was verified yet"},
		"a checkpoint of another ledger":    {Mark{Commit: "commit-2", Checkpoint: []byte("c")}, "commit-2", func(b *bed) { b.lostlog = true }, fault.Denied, "by a daemon that knew more"},
		"a checkpoint that cannot be read":  {Mark{Commit: "commit-2", Checkpoint: []byte("c")}, "commit-2", func(b *bed) { b.fails("contains", fault.Transient) }, fault.Transient, "contains"},
		"a checkpoint of this ledger":       {Mark{Commit: "commit-2", Checkpoint: []byte("c")}, "commit-2", nil, 0, ""},
		"this ledger, and a newer commit":   {Mark{Commit: "commit-3", Checkpoint: []byte("c")}, "commit-2", nil, fault.Denied, "does not come after it"},
		"no checkpoint, and another ledger": {Mark{Commit: "commit-2"}, "commit-2", func(b *bed) { b.lostlog = true }, 0, ""},
	} {
		b := newBed(t, "a")
		if c.before != nil {
			c.before(b)
		}
		r := b.new()
		err := r.compareMark(t.Context(), r.repository("repo"), c.mark, c.verified)
		if (c.says == "") != (err == nil) || err != nil && (fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %s: %q", name, err, c.kind, c.says)
		}
		if denied := c.kind == fault.Denied; denied != strings.Contains(fault.HintOf(err), "holdfast recover repo") {
			t.Errorf("%s: hint %q", name, fault.HintOf(err))
		}
	}
}

// The mark is read once, and again some time after it was refused or could not
// be read.
func TestMarkIsReadAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.marks = map[string]Mark{"e/repo": {Commit: "commit-9"}}
	r := b.applied()
	ms := r.marks.at("e", "repo")
	knows := func(kind fault.Kind, reads int) {
		t.Helper()
		err := r.knows(t.Context(), "e", "repo")
		if (kind == 0) != (err == nil) || err != nil && fault.KindOf(err) != kind || b.count("mark read") != reads {
			t.Errorf("%v after %d reads, want %s and %d", err, b.count("mark read"), kind, reads)
		}
	}
	knows(fault.Denied, 1)
	knows(fault.Denied, 1)
	if got := r.recoverFrom(r.repository("repo")); got != "commit-9" {
		t.Errorf("an order would lead away from %q", got)
	}
	ms.retry = time.Now()
	b.fails("mark read", fault.Transient)
	knows(fault.Transient, 2)
	knows(fault.Transient, 2)
	ms.retry = time.Now()
	b.works("mark read")
	b.with(func() { b.marks["e/repo"] = Mark{Commit: "commit-1", Checkpoint: []byte("c")} })
	b.fails("contains", fault.Transient) // a failure of ours: the next one asks at once
	knows(fault.Transient, 3)
	b.works("contains")
	knows(0, 4)
	knows(0, 4)
	if got := r.recoverFrom(r.repository("repo")); got != "commit-1" {
		t.Errorf("an order would lead away from %q", got)
	}
	refused, over := 0, 0
	for _, e := range b.events {
		switch {
		case e.Key == "mark/e/repo" && e.Resolved:
			over++
		case e.Key == "mark/e/repo" && e.Kind == fault.Denied && e.Hint != "":
			refused++
		}
	}
	if refused != 1 || over != 1 {
		t.Errorf("told %d times, and %d times that it is over: %+v", refused, over, b.events)
	}
}

// The mark follows what is verified, and is written no more often than that.
func TestMarkFollows(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	b.marks = map[string]Mark{}
	r := b.new()
	defer r.Close()
	if err := r.marked(t.Context(), "e", "repo"); err != nil || b.count("mark write") != 0 {
		t.Errorf("before anything is verified: %v, %d writes", err, b.count("mark write"))
	}
	for i, commit := range []string{"commit-1", "commit-2"} {
		if err := r.look(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if n := b.count("mark write"); n != i {
			t.Errorf("%d writes before anything is applied", n)
		}
		for range 2 {
			if err := r.marked(t.Context(), "e", "repo"); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.marks["e/repo"].Commit; got != commit || b.count("mark write") != i+1 {
			t.Errorf("the mark is %q after %d writes", got, b.count("mark write"))
		}
		b.push(map[string]string{"a/object": "v2"})
	}
	if n := b.told(EventSource, ""); n != 0 {
		t.Errorf("told %d times of a mark that is as it should be", n)
	}
	again := b.new() // which finds the mark as it is
	defer again.Close()
	if err := again.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.with(func() { b.marks["e/repo"] = Mark{Commit: "commit-3"}; clear(b.calls) })
	if err := again.marked(t.Context(), "e", "repo"); err != nil || b.count("mark write") != 0 {
		t.Errorf("%v, %d writes", err, b.count("mark write"))
	}
}

// Where there is no place for marks, none are asked for.
func TestNoMarks(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied("a") // with marks, but none for its environment
	if n := b.count("mark read") + b.count("mark write"); n != 0 {
		t.Errorf("asked %d times", n)
	}
	r.Marks = nil
	b.push(map[string]string{"a/object": "v2"})
	if err := r.Reconcile(t.Context(), "a"); err != nil || b.object("a") != "v2" {
		t.Errorf("%v: %q", err, b.object("a"))
	}
	if err := obey(t, r, OrderRecover, "repo", "commit-1", "alice's"); err != nil {
		t.Errorf("recover: %v", err)
	}
	daemon := b.new()
	daemon.Marks = nil
	b.run(daemon)
	b.push(map[string]string{"a/object": "v3"})
	b.until("the next commit", func() bool { return b.object("a") == "v3" })
}

// judgedByOld has the policies of a stack come from a repository of which this daemon
// knows less than its mark says.
func (b *bed) judgedByOld(r *Reconciler, of *basis) {
	b.with(func() { b.marks = map[string]Mark{"e/policies": {Commit: "commit-9"}} })
	r.repos["policies"] = &repository{
		Repository: Repository{Name: "policies", Follows: r.repos["repo"].Follows},
		status:     RepositoryStatus{Verified: "commit-1"},
	}
	of.JudgedBy = []string{"policies"}
}

// A stack is not judged by policies of a repository that is behind its mark.
func TestMarkOfPolicies(t *testing.T) {
	t.Parallel()
	b := newBed(t, "a")
	r := b.applied()
	of := r.stack("a").desired()
	b.judgedByOld(r, &of)
	applied := b.count("apply a")
	if _, err := r.deploy(t.Context(), r.stack("a"), of, ledger.Applied, nil); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "commit-9") {
		t.Errorf("%v", err)
	}
	if b.count("apply a") != applied {
		t.Error("it was applied")
	}
}
