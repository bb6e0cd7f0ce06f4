package gate

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// memory is a ledger that can fail.
type memory struct {
	mu      sync.Mutex
	entries []ledger.Entry
	err     error
}

func (m *memory) Append(_ context.Context, e ledger.Entry, bodies map[string][]byte) (ledger.Index, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	e.Bodies = map[string]digest.Digest{}
	for role, b := range bodies {
		e.Bodies[role] = digest.FromBytes(b)
	}
	m.entries = append(m.entries, e)
	return ledger.Index(len(m.entries) - 1), nil
}

var (
	web    = plan.ObjectID{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}
	config = plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "web"}
	image  = verify.Subject{Kind: verify.KindImage, Reference: "r/web:1", Name: "r/web", Digest: digest.FromString("image")}
)

func good() Request {
	p := plan.Plan{
		Stack: "web", Environment: "production", Target: "kubernetes",
		Revision: sources.Revision{Source: "fleet", ID: "c0ffee"}, Rendered: digest.FromString("rendered"),
		Changes: []plan.Change{{ID: web, Action: plan.Create, After: digest.FromString("web")}},
	}
	ok := []verify.Check{{Name: "signature", OK: true}}
	return seal(Request{
		Plan:      p,
		Commit:    verify.Evidence{Subject: verify.Subject{Kind: "commit", Reference: "c0ffee"}, Checks: ok},
		Artifacts: []verify.Subject{image},
		Report:    verify.Report{Environment: "production", Evidence: []verify.Evidence{{Subject: image, Checks: ok}}},
	})
}

// seal makes both decisions about the request's plan.
func seal(r Request) Request {
	r.Rendered = policy.Decision{Stage: policy.StageRendered, Of: r.Plan.Rendered, Rules: 1}
	r.Planned = policy.Decision{Stage: policy.StagePlan, Of: r.Plan.Digest(), Rules: 1}
	return r
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	m := &memory{}
	grant, err := New(m, Limits{}).Admit(t.Context(), good())
	if err != nil {
		t.Fatal(err)
	}
	if p, err := grant.Plan(); err != nil || p.Stack != "web" {
		t.Errorf("the grant does not hold the plan: %v", err)
	}
	if len(m.entries) != 1 || m.entries[0].Type != ledger.Intent || len(m.entries[0].Bodies) != 5 {
		t.Errorf("the intent is not in the ledger: %+v", m.entries)
	}
}

// Each case breaks a good request in one way.
func TestAdmitRefuses(t *testing.T) {
	t.Parallel()
	failed := []verify.Check{{Name: "signature", OK: true}, {Name: "sbom"}}
	for name, tc := range map[string]struct {
		change func(*Request)
		limits Limits
		want   string
	}{
		"no stack":                      {change: func(r *Request) { r.Plan.Stack = "" }, want: "names no stack"},
		"no rendering":                  {change: func(r *Request) { r.Plan.Rendered = "" }, want: "names no stack"},
		"no revision":                   {change: func(r *Request) { r.Plan.Revision.ID = "" }, want: "names no stack"},
		"commit without evidence":       {change: func(r *Request) { r.Commit.Checks = nil }, want: "no verified evidence"},
		"commit with a failed check":    {change: func(r *Request) { r.Commit.Checks = failed }, want: "no verified evidence"},
		"evidence about another commit": {change: func(r *Request) { r.Commit.Subject.Reference = "beef" }, want: "the commit evidence is about"},
		"evidence for another place":    {change: func(r *Request) { r.Report.Environment = "staging" }, want: "judged for environment"},
		"artifact without evidence":     {change: func(r *Request) { r.Report.Evidence = nil }, want: "no verified evidence"},
		"artifact without digest":       {change: func(r *Request) { r.Artifacts[0].Digest = "" }, want: "no verified evidence"},
		"evidence without digest":       {change: func(r *Request) { r.Artifacts[0].Digest, r.Report.Evidence[0].Subject.Digest = "", "" }, want: "no verified evidence"},
		"artifact with a failed check":  {change: func(r *Request) { r.Report.Evidence[0].Checks = failed }, want: "not every check passed"},
		"artifact with no check":        {change: func(r *Request) { r.Report.Evidence[0].Checks = nil }, want: "not every check passed"},
		"evidence of another artifact":  {change: func(r *Request) { r.Report.Evidence[0].Subject.Digest = digest.FromString("other") }, want: "no verified evidence"},
		"files refused":                 {change: func(r *Request) { r.Rendered.Results = []policy.Result{{Level: policy.Deny}} }, want: "refuses the rendered stage"},
		"plan refused":                  {change: func(r *Request) { r.Planned.Results = []policy.Result{{Level: policy.Violation}} }, want: "refuses the plan stage"},
		"no rule judged the files":      {change: func(r *Request) { r.Rendered.Rules = 0 }, want: "refuses the rendered stage"},
		"no rule judged the plan":       {change: func(r *Request) { r.Planned.Rules = 0 }, want: "refuses the plan stage"},
		"decision about other files":    {change: func(r *Request) { r.Rendered.Of = digest.FromString("x") }, want: "about something else"},
		"decision about another plan":   {change: func(r *Request) { r.Plan.Changes[0].ID.Name = "api" }, want: "about something else"},
		"one decision used for both":    {change: func(r *Request) { r.Planned = r.Rendered }, want: "about something else"},
		"decision of another stage":     {change: func(r *Request) { r.Planned.Stage = policy.StageRendered }, want: "about something else"},
		"no decision":                   {change: func(r *Request) { r.Planned = policy.Decision{} }, want: "about something else"},
		"more deletes than the limit":   {change: deletes(3), limits: Limits{MaxDeletes: 2}, want: "the limit is 2"},
		"replaces count as deletes":     {change: replaces(3), limits: Limits{MaxDeletes: 2}, want: "the limit is 2"},
		"everything that the stack has": {change: func(r *Request) { deletes(1)(r); r.Plan.Keeps = 0; *r = seal(*r) }, want: "removes everything"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			g := New(m, tc.limits)
			r := good()
			tc.change(&r)
			grant, err := g.Admit(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if _, err := grant.Plan(); err == nil {
				t.Error("a refusal came with a usable grant")
			}
			if len(m.entries) != 0 {
				t.Error("an intent was recorded for a refusal")
			}
		})
	}
}

func deletes(n int) func(*Request) { return removes(n, plan.Delete) }

func replaces(n int) func(*Request) { return removes(n, plan.Replace) }

func removes(n int, a plan.Action) func(*Request) {
	return func(r *Request) {
		r.Plan.Changes, r.Plan.Keeps = nil, 1
		for i := range n {
			r.Plan.Changes = append(r.Plan.Changes, plan.Change{ID: plan.ObjectID{Kind: "ConfigMap", Name: string(rune('0' + i))}, Action: a})
		}
		*r = seal(*r)
	}
}

func TestNoGrantWithoutIntent(t *testing.T) {
	t.Parallel()
	grant, err := New(&memory{err: errors.New("disk full")}, Limits{}).Admit(t.Context(), good())
	if fault.KindOf(err) != fault.Transient {
		t.Errorf("got %v, want a transient error", err)
	}
	if _, err := grant.Plan(); err == nil {
		t.Error("granted without a durable intent")
	}
}

func TestGrantIsBound(t *testing.T) {
	t.Parallel()
	if _, err := (Grant{}).Plan(); err == nil || !strings.Contains(err.Error(), "did not admit") {
		t.Errorf("a zero grant: %v", err)
	}
	r := good()
	grant, err := New(&memory{}, Limits{}).Admit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.Plan.Changes[0].Action = plan.Delete // shares its array with the grant
	if _, err := grant.Plan(); err == nil {
		t.Error("the plan was changed after it was granted, and the grant is still usable")
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	want := digest.FromString("web")
	unknown := plan.ObjectID{Kind: "Secret", Namespace: "shop", Name: "web"} // granted without a digest
	base := good().Plan
	with := func(c ...plan.Change) plan.Plan { p := base; p.Changes = c; return p }
	for name, tc := range map[string]struct {
		plan plan.Plan
		ok   bool
	}{
		"update back":          {with(plan.Change{ID: web, Action: plan.Update, After: want}), true},
		"create again":         {with(plan.Change{ID: web, Action: plan.Create, After: want}), true},
		"another result":       {with(plan.Change{ID: web, Action: plan.Update, After: digest.FromString("evil")}), false},
		"no result":            {with(plan.Change{ID: web, Action: plan.Update}), false},
		"delete":               {with(plan.Change{ID: web, Action: plan.Delete, After: want}), false},
		"replace":              {with(plan.Change{ID: web, Action: plan.Replace, After: want}), false},
		"object never granted": {with(plan.Change{ID: config, Action: plan.Create, After: want}), false},
		"digest never granted": {with(plan.Change{ID: unknown, Action: plan.Update}), false},
		"another rendering":    {func() plan.Plan { p := base; p.Rendered = digest.FromString("new"); return p }(), false},
		"another environment":  {func() plan.Plan { p := base; p.Environment = "staging"; return p }(), false},
		"another stack":        {func() plan.Plan { p := base; p.Stack = "api"; return p }(), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &memory{}
			g := New(m, Limits{})
			if err := g.Stand(good(), map[plan.ObjectID]digest.Digest{web: want, unknown: ""}); err != nil {
				t.Fatal(err)
			}
			grant, err := g.Restore(t.Context(), tc.plan)
			if _, usable := grant.Plan(); (err == nil) != tc.ok || (usable == nil) != tc.ok || (len(m.entries) == 1) != tc.ok {
				t.Errorf("got %v and %d intents", err, len(m.entries))
			}
			g.Revoke("web")
			if _, err := g.Restore(t.Context(), tc.plan); err == nil || !strings.Contains(err.Error(), "no standing grant") {
				t.Errorf("a revoked grant: %v", err)
			}
		})
	}
}

func TestStandJudges(t *testing.T) {
	t.Parallel()
	g := New(&memory{}, Limits{})
	r := good()
	r.Report.Evidence = nil
	if err := g.Stand(r, map[plan.ObjectID]digest.Digest{web: "sha256:x"}); err == nil {
		t.Error("what could not be admitted stands")
	}
	end := removing(5, 0)
	end.Removal = true
	if err := g.Stand(end, nil); err == nil || !strings.Contains(err.Error(), "cannot stand") {
		t.Errorf("the end of a stack: %v", err)
	}
}

// A stack may go on without objects where its operator says so.
func TestAdmitEmpty(t *testing.T) {
	t.Parallel()
	if _, err := New(&memory{}, Limits{AllowEmpty: true}).Admit(t.Context(), removing(3, 0)); err != nil {
		t.Error(err)
	}
}

// removing is a good request whose plan deletes some objects and keeps others.
func removing(deletes, keeps int) Request {
	r := good()
	r.Plan.Changes, r.Plan.Keeps = nil, keeps
	for i := range deletes {
		r.Plan.Changes = append(r.Plan.Changes, plan.Change{ID: plan.ObjectID{Kind: "ConfigMap", Name: strings.Repeat("x", i+1)}, Action: plan.Delete})
	}
	return seal(r)
}

func TestAdmitHoldsLargeShares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		deletes, keeps, share int
		held                  bool
	}{
		{3, 1, 50, false}, // few
		{4, 4, 50, false}, // exactly the share
		{4, 3, 50, true},
		{40, 60, 50, false},
		{60, 40, 50, true},
		{60, 40, 0, false}, // no limit
		{60, 40, 100, false},
	} {
		_, err := New(&memory{}, Limits{MaxDeleteShare: c.share}).Admit(t.Context(), removing(c.deletes, c.keeps))
		if held := fault.KindOf(err) == fault.Waiting && err != nil; held != c.held {
			t.Errorf("%d of %d with a limit of %d %%: %v", c.deletes, c.deletes+c.keeps, c.share, err)
		}
	}
}

func TestAdmitRemoval(t *testing.T) {
	t.Parallel()
	var m memory
	removal := func(change func(*Request)) error {
		r := removing(5, 0)
		r.Removal, r.Rendered = true, policy.Decision{}
		if change != nil {
			change(&r)
		}
		_, err := New(&m, Limits{MaxDeletes: 10, MaxDeleteShare: 50}).Admit(t.Context(), r)
		return err
	}
	if err := removal(nil); err != nil {
		t.Fatal(err)
	}
	if m.entries[0].Outcome != Removal {
		t.Errorf("the intent does not say that it ends the stack: %+v", m.entries[0])
	}
	for name, change := range map[string]func(*Request){
		"not asked for": func(r *Request) { r.Removal = false },
		"it creates something": func(r *Request) {
			r.Plan.Changes = append(r.Plan.Changes, plan.Change{ID: web, Action: plan.Create})
			r.Planned.Of = r.Plan.Digest()
		},
		"it keeps something":     func(r *Request) { r.Plan.Keeps = 1; r.Planned.Of = r.Plan.Digest() },
		"policy refuses it":      func(r *Request) { r.Planned.Results = []policy.Result{{Level: policy.Deny}} },
		"nobody authorised it":   func(r *Request) { r.Commit.Checks = nil },
		"it is larger than ever": func(r *Request) { *r = removing(11, 0); r.Removal = true },
	} {
		if removal(change) == nil {
			t.Errorf("%s: admitted", name)
		}
	}
}

// A plan that only lets go of objects removes nothing, and is no restoring either.
func TestRestoreRefusesRelease(t *testing.T) {
	t.Parallel()
	g := New(&memory{}, Limits{})
	r := good()
	if err := g.Stand(r, map[plan.ObjectID]digest.Digest{web: digest.FromString("web")}); err != nil {
		t.Fatal(err)
	}
	r.Plan.Changes[0].Action = plan.Release
	if _, err := g.Restore(t.Context(), r.Plan); fault.KindOf(err) != fault.Denied || err == nil {
		t.Errorf("got %v", err)
	}
}
