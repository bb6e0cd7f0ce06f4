package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/library"
	"github.com/holdfast-dev/holdfast/policy/rego"
)

// policySet holds one evaluator for each environment and target.
type policySet struct {
	evaluators map[[2]string]policy.Evaluator
	folders    *policyFolders
}

func newPolicies(ctx context.Context, cfg *config.Loaded, trust *artifactTrust, keep *keeper) (*policySet, error) {
	ps := &policySet{evaluators: map[[2]string]policy.Evaluator{}, folders: &policyFolders{
		by: map[string]policyFolder{}, file: filepath.Join(cfg.StateDir, "git-policies.json"),
	}}
	var errs []error
	for _, e := range cfg.Environments {
		for target, used := range map[string]bool{"kubernetes": e.Kubernetes != nil, "terraform": e.Terraform != nil} {
			if !used {
				continue
			}
			ev, err := newEvaluator(ctx, cfg, trust, ps.folders, keep, e, target)
			if err != nil {
				errs = append(errs, fmt.Errorf("environment %s, %s: %w", e.Name, target, err))
			}
			ps.evaluators[[2]string{e.Name, target}] = ev
		}
	}
	return ps, errors.Join(errs...)
}

// newEvaluator compiles the policy sets of one environment for one target; with
// one in a registry or a repository, when they are first needed. It returns nil where none is
// meant for that target; stacks are then denied.
func newEvaluator(ctx context.Context, cfg *config.Loaded, trust *artifactTrust, folders *policyFolders, keep *keeper, e config.Environment, target string) (policy.Evaluator, error) {
	rc := rego.Config{Data: map[string]any{}}
	var bundled []config.Policy
	all := false
	for _, set := range cfg.Policies {
		if !slices.Contains(e.Policies, set.Name) || (len(set.Targets) > 0 && !slices.Contains(set.Targets, target)) {
			continue
		}
		for _, name := range set.Library {
			fsys, err := library.Get(name)
			if err != nil {
				return nil, err
			}
			if kind, _, _ := strings.Cut(name, "/"); kind != target && (kind == "kubernetes" || kind == "terraform") {
				continue
			}
			rc.Bundles = append(rc.Bundles, rego.Bundle{Name: name, FS: fsys})
		}
		if set.Path != "" {
			rc.Bundles = append(rc.Bundles, rego.Bundle{Name: set.Name, FS: os.DirFS(set.Path)})
		}
		if set.OCI != "" || set.Git != nil {
			bundled = append(bundled, set)
		}
		if err := mergeData(rc.Data, set.Data, "data"); err != nil {
			return nil, fault.New(fault.Invalid, "holdfast.policies", "set it in one policy set only", "policy set %s: %w", set.Name, err)
		}
		rc.Namespaces = append(rc.Namespaces, set.Namespaces...)
		all = all || len(set.Namespaces) == 0
	}
	if len(rc.Bundles)+len(bundled) == 0 {
		return nil, nil //nolint:nilnil // says that nothing judges this target
	}
	if all {
		rc.Namespaces = nil
	}
	if len(bundled) > 0 {
		return &bundledPolicies{config: rc, sets: bundled, trust: trust, folders: folders, keep: keep}, nil
	}
	return keep.evaluator(ctx, rc)
}

// mergeData adds the documents of from to into. Two sets may share a parent, but
// not a value: which one holds must not depend on their order.
func mergeData(into, from map[string]any, at string) error {
	for k, v := range from {
		old, taken := into[k]
		if !taken {
			into[k] = clone(v)
			continue
		}
		oldMap, ok1 := old.(map[string]any)
		newMap, ok2 := v.(map[string]any)
		if !ok1 || !ok2 {
			return fmt.Errorf("%s.%s is set twice", at, k)
		}
		if err := mergeData(oldMap, newMap, at+"."+k); err != nil {
			return err
		}
	}
	return nil
}

// clone copies the maps of v, which mergeData writes to.
func clone(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	out := make(map[string]any, len(m))
	for k, e := range m {
		out[k] = clone(e)
	}
	return out
}

func (p *policySet) evaluator(environment, target string) (policy.Evaluator, error) {
	if ev := p.evaluators[[2]string{environment, target}]; ev != nil {
		return ev, nil
	}
	return nil, fault.New(fault.Denied, "holdfast.policies", "give the environment a policy set for "+target,
		"no policy of environment %q judges %s", environment, target)
}
