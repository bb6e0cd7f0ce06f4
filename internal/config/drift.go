package config

import (
	"fmt"
	"slices"
	"time"
)

// What a file may name: the modes of the package drift and the classes of targets.
var (
	driftModes   = []string{"report", "revert", "ask", "adopt"}
	driftClasses = []string{"modified", "foreign", "missing", "extra"}
)

// maxHeld bounds what holds reverts back.
const maxHeld = 7 * 24 * time.Hour

// drift checks the operator's rules for drift.
func (c checker) drift(d *DriftDefaults, envs map[string]*Environment) {
	names := map[string]bool{}
	for i, r := range d.Rules {
		at := fmt.Sprintf("$.drift.rules[%d]", i)
		c.once(at, "drift rule", r.Name, names)
		c.scope(at, r.Environments, r.Stacks, envs)
		c.nameGlobs(at+".kinds", r.Kinds)
		c.nameGlobs(at+".actors", r.Actors)
		for j, p := range r.Paths {
			c.pointer(fmt.Sprintf("%s.paths[%d]", at, j), p)
		}
		for j, class := range r.Classes {
			c.oneOf(fmt.Sprintf("%s.classes[%d]", at, j), "class of drift", class, driftClasses...)
		}
		c.oneOf(at+".action", "action", r.Action, driftModes...)
	}
	names = map[string]bool{}
	for i, q := range d.Quiet {
		at := fmt.Sprintf("$.drift.quiet[%d]", i)
		c.once(at, "quiet window", q.Name, names)
		c.scope(at, q.Environments, q.Stacks, envs)
		if q.Schedule == "" {
			c.wrong(at, "for example schedule: 0 18 * * 5", "a quiet window needs a schedule")
		}
		c.schedule(at+".schedule", q.Schedule)
		c.held(at+".duration", q.Duration)
	}
	for i, b := range d.BreakGlass {
		at := fmt.Sprintf("$.drift.breakGlass[%d]", i)
		c.scope(at, b.Environments, b.Stacks, envs)
		c.held(at+".max", b.Max)
	}
}

func (c checker) scope(at string, environments, stacks []string, envs map[string]*Environment) {
	for i, e := range environments {
		if envs[e] == nil {
			c.wrong(fmt.Sprintf("%s.environments[%d]", at, i), "", "%q is not an environment", e)
		}
	}
	c.nameGlobs(at+".stacks", stacks)
}

func (c checker) held(at string, d Duration) {
	if d := time.Duration(d); d <= 0 || d > maxHeld {
		c.wrong(at, "for example 4h", "%s is not between 1s and %s", d, maxHeld)
	}
}

// Applies reports whether something for environments and stacks is for one of them.
// Empty lists mean all.
func Applies(environments, stacks []string, environment, stack string) bool {
	return (len(environments) == 0 || slices.Contains(environments, environment)) && (len(stacks) == 0 || matchName(stacks, stack))
}
