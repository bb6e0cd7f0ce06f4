package main

import (
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

var (
	web   = plan.ObjectID{Kind: "ConfigMap", Namespace: "app-0001", Name: "web"}
	other = plan.ObjectID{Kind: "Service", Namespace: "app-0001", Name: "web"}
	noon  = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

// An auditor that finds nothing in anything is worse than none.
func TestCover(t *testing.T) {
	t.Parallel()
	granted := func(outcome string, done ...plan.ObjectID) *intent {
		return &intent{begin: noon, end: noon.Add(time.Second), closed: true, outcome: outcome, objects: []plan.ObjectID{web}, done: done, wrote: map[plan.ObjectID]bool{}}
	}
	within, soon, after := noon.Add(time.Millisecond), noon.Add(1500*time.Millisecond), noon.Add(3*time.Second)
	for name, c := range map[string]struct {
		in   *intent
		id   plan.ObjectID
		at   time.Time
		want accounts
	}{
		"done":                     {granted("ok", web), web, within, accounts{writes: 1, byDone: 1, successes: 1}},
		"done, by a failed intent": {granted("failed", web), web, within, accounts{writes: 1, byDone: 1, successes: 1}},
		"failed":                   {granted("failed"), web, within, accounts{writes: 1, byFailed: 1}},
		"failed, answer was lost":  {granted("failed"), web, soon, accounts{writes: 1, byFailed: 1}},
		"abandoned":                {granted(abandoned), web, within, accounts{writes: 1, byAbandoned: 1}},
		"before the intent":        {granted("ok", web), web, noon.Add(-time.Millisecond), accounts{writes: 1, uncovered: 1, successes: 1, unseen: 1}},
		"after its result":         {granted("ok", web), web, soon, accounts{writes: 1, uncovered: 1, successes: 1, unseen: 1}},
		"long after it was killed": {granted(abandoned), web, after, accounts{writes: 1, uncovered: 1}},
		"another object":           {granted("ok"), other, within, accounts{writes: 1, uncovered: 1}},
	} {
		s := &soak{}
		s.cover([]*intent{c.in}, []write{{id: c.id, at: c.at}})
		s.successes([]*intent{c.in})
		if got := s.result.ledger; got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
		if wrong := c.want.uncovered + c.want.unseen; len(s.result.wrong) != wrong {
			t.Errorf("%s: %d failures, want %d: %q", name, len(s.result.wrong), wrong, s.result.wrong)
		}
	}
}

func TestUnlike(t *testing.T) {
	t.Parallel()
	declared := map[string]any{"data": map[string]any{"value": "1"}, "ports": []any{map[string]any{"port": float64(80)}}}
	for name, c := range map[string]struct {
		live any
		want string
	}{
		"the same, and more": {map[string]any{"data": map[string]any{"value": "1"}, "ports": []any{map[string]any{"port": int64(80), "protocol": "TCP"}}, "status": "x"}, ""},
		"another value":      {map[string]any{"data": map[string]any{"value": "2"}, "ports": []any{map[string]any{"port": int64(80)}}}, "/data/value is 2, want 1"},
		"another element":    {map[string]any{"data": map[string]any{"value": "1"}, "ports": []any{map[string]any{"port": int64(81)}}}, "/ports/0/port is 81, want 80"},
		"one more":           {map[string]any{"data": map[string]any{"value": "1"}, "ports": []any{1, 2}}, "/ports has 2 elements, want 1"},
	} {
		if got := unlike("", declared, c.live); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestGrown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		by   float64 // a sample
		want int
	}{"steady": {0, 0}, "memory and goroutines grow": {1, 3}} {
		s := &soak{}
		var samples []sample
		for i := range 200 {
			at := 50 + c.by*float64(i)
			samples = append(samples, sample{at, at, at, at})
		}
		s.grown(samples)
		if len(s.result.wrong) != c.want {
			t.Errorf("%s: %q", name, s.result.wrong)
		}
	}
}
