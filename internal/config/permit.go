package config

import (
	"path"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Permission is what the operator's map grants to one stack.
type Permission struct {
	Environment *Environment
	Namespaces  []string // globs; Kubernetes only
	Kinds       []string // globs; Kubernetes only
	// ClusterPowers permits roles, bound cluster-wide, that reach Holdfast's things.
	ClusterPowers  bool
	DriftMode      string // "report" or "revert"
	ServiceAccount string // service account to impersonate, namespace/name; empty: none
	Conflicts      string // "take", "yield" or "fail"; Kubernetes only
	Prune          string // "hold", "delete" or "orphan"
	Credentials    map[string]string
}

// Permit compares what the stack in folder dir of a repository asks for with
// the operator's map. What no single entry grants as a whole is an error of
// kind Denied that names the request and what would be granted instead.
func (o *Operator) Permit(repository, dir string, s *Stack, now time.Time) (Permission, error) {
	const op = "internal/config.Permit"
	target := "kubernetes"
	if s.Spec.Terraform != nil {
		target = "terraform"
	}
	deny := func(hint, format string, args ...any) (Permission, error) {
		return Permission{}, fault.WithStack(s.Metadata.Name, fault.New(fault.Denied, op, hint, format, args...))
	}
	entries := slices.DeleteFunc(slices.Clone(o.Allow), func(a Allow) bool {
		return a.Repository != repository || !matchAny(a.Paths, dir)
	})
	if len(entries) == 0 {
		return deny("add the path to allow: in the operator's file", "no entry of the operator's map covers %s in repository %s", dir, repository)
	}
	entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Environments, s.Spec.Environment) })
	if len(entries) == 0 {
		return deny("ask for an environment that is allowed there, or extend allow: in the operator's file",
			"a stack in %s may not deploy to environment %q", dir, s.Spec.Environment)
	}
	entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Targets, target) })
	if len(entries) == 0 {
		return deny("extend targets in allow: in the operator's file", "a stack in %s may not use %s in environment %q", dir, target, s.Spec.Environment)
	}
	env := o.environment(s.Spec.Environment)
	switch {
	case env == nil:
		return deny("", "environment %q does not exist", s.Spec.Environment)
	case target == "kubernetes" && env.Kubernetes == nil, target == "terraform" && env.Terraform == nil:
		return deny("", "environment %q has no %s target", env.Name, target)
	}
	if k := s.Spec.Kubernetes; k != nil {
		if k.Namespace == env.Kubernetes.Namespace {
			return deny("deploy to another namespace", "namespace %q is Holdfast's own", k.Namespace)
		}
		entries = slices.DeleteFunc(entries, func(a Allow) bool { return !matchName(a.Namespaces, k.Namespace) })
		if len(entries) == 0 {
			return deny("ask for a namespace that is allowed there, or extend allow: in the operator's file",
				"a stack in %s may not deploy to namespace %q", dir, k.Namespace)
		}
	}
	p := Permission{Environment: env, DriftMode: s.Spec.Drift.Mode}
	if t := s.Spec.Terraform; t != nil && t.Credentials != "" {
		entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Credentials, t.Credentials) })
		if len(entries) == 0 {
			return deny("extend credentials in allow: in the operator's file", "a stack in %s may not use credentials %q", dir, t.Credentials)
		}
		set, ok := env.Terraform.Credentials[t.Credentials]
		if !ok {
			return deny("", "environment %q has no credentials %q", env.Name, t.Credentials)
		}
		p.Credentials = set
	}
	if mode := s.Spec.Drift.Mode; mode != "" {
		entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Drift, mode) })
		if len(entries) == 0 {
			return deny("leave drift.mode out, or extend drift in allow: in the operator's file", "a stack in %s may not use drift mode %q", dir, mode)
		}
	}
	for _, ig := range s.Spec.Drift.Ignore {
		entries = slices.DeleteFunc(entries, func(a Allow) bool { return !a.Ignore.covers(ig, now) })
		if len(entries) == 0 {
			return deny("extend ignore in allow: in the operator's file, or shorten the rule",
				"a stack in %s may not ignore %s of %s until %s", dir, ig.Path, ig.Kind, ig.Until.Format(time.DateOnly))
		}
	}
	if prune := s.Spec.Prune; prune != "" && prune != "hold" {
		entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Prune, prune) })
		if len(entries) == 0 {
			return deny("leave prune out, or extend prune in allow: in the operator's file", "a stack in %s may not ask for prune: %s", dir, prune)
		}
	}
	if k := s.Spec.Kubernetes; k != nil {
		if rule := k.Conflicts; rule != "" {
			entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.Conflicts, rule) })
			if len(entries) == 0 {
				return deny("leave conflicts out, or extend conflicts in allow: in the operator's file", "a stack in %s may not ask for conflicts: %s", dir, rule)
			}
			p.Conflicts = rule
		}
		if k.ServiceAccount != "" {
			entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.accounts(k.Namespace), k.ServiceAccount) })
			if len(entries) == 0 {
				return deny("leave serviceAccount out, or extend serviceAccounts in allow: in the operator's file", "a stack in %s may not be service account %q", dir, k.ServiceAccount)
			}
		}
		for _, kind := range k.Replace {
			entries = slices.DeleteFunc(entries, func(a Allow) bool { return !a.replaces(kind) })
			if len(entries) == 0 {
				return deny("extend replace in allow: in the operator's file", "a stack in %s may not have objects of kind %q replaced", dir, kind)
			}
		}
		for _, m := range k.AdoptFrom {
			entries = slices.DeleteFunc(entries, func(a Allow) bool { return !slices.Contains(a.AdoptFrom, m) })
			if len(entries) == 0 {
				return deny("extend adoptFrom in allow: in the operator's file", "a stack in %s may not take over the fields of %q", dir, m)
			}
		}
	}
	granted := entries[0]
	if p.Prune = s.Spec.Prune; p.Prune == "" {
		p.Prune = "hold"
	}
	p.Namespaces, p.Kinds, p.ClusterPowers = granted.Namespaces, granted.Kinds, granted.ClusterPowers
	if k := s.Spec.Kubernetes; k != nil {
		if p.ServiceAccount = k.ServiceAccount; p.ServiceAccount == "" && len(granted.ServiceAccounts) > 0 {
			p.ServiceAccount = granted.accounts(k.Namespace)[0]
		}
	}
	if s.Spec.Kubernetes != nil && p.Conflicts == "" {
		p.Conflicts = granted.Conflicts[0]
	}
	if p.DriftMode == "" {
		p.DriftMode = granted.Drift[0]
	}
	return p, nil
}

// defaultIgnoreDays is how many days ahead an ignore rule may end, where the
// operator's file does not say.
const defaultIgnoreDays = 90

// holdsData are kinds with which data goes that is not in the repository.
var holdsData = []string{"Namespace", "CustomResourceDefinition.apiextensions.k8s.io", "PersistentVolumeClaim", "PersistentVolume"}

// accounts returns the service accounts that a stack in a namespace may be.
func (a Allow) accounts(namespace string) []string {
	out := make([]string, len(a.ServiceAccounts))
	for i, sa := range a.ServiceAccounts {
		out[i] = strings.ReplaceAll(sa, "{namespace}", namespace)
	}
	return out
}

// Covers reports whether the entry is about an environment.
func (a Allow) Covers(environment string) bool { return slices.Contains(a.Environments, environment) }

// replaces reports whether a stack may have objects of a kind replaced.
func (a Allow) replaces(kind string) bool {
	return slices.Contains(a.Replace, kind) || !slices.Contains(holdsData, kind) && matchName(a.Replace, kind)
}

func (o *Operator) environment(name string) *Environment {
	for i := range o.Environments {
		if o.Environments[i].Name == name {
			return &o.Environments[i]
		}
	}
	return nil
}

// covers reports whether a stack may have the ignore rule ig.
func (b IgnoreBound) covers(ig Ignore, now time.Time) bool {
	if ig.Until.After(now.AddDate(0, 0, b.Days)) {
		return false
	}
	for _, p := range b.Paths {
		if plan.Within(p, ig.Path) {
			return true
		}
	}
	return false
}

// matchName reports whether one of the globs matches a name, as the Kubernetes
// target matches it.
func matchName(globs []string, name string) bool {
	for _, g := range globs {
		if ok, err := path.Match(g, name); err == nil && ok {
			return true
		}
	}
	return false
}

// matchAny reports whether one of the globs matches a slash-separated path.
func matchAny(globs []string, name string) bool {
	name = path.Clean(name)
	for _, g := range globs {
		if ok, err := doublestar.Match(g, name); err == nil && ok {
			return true
		}
	}
	return false
}
