package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/rego"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/verify"
)

// policyFolders are the policies in repositories that are followed, each as of the
// verified commit that changed it last.
type policyFolders struct {
	file string // what each set rested on, for a restart

	taking sync.Mutex // held while a commit is taken: two repositories may come at once

	mu sync.Mutex
	by map[string]policyFolder // by name of the policy set
}

// policyFolder is one set of policies at one commit, and what that rests on.
type policyFolder struct {
	commit string
	files  rego.SourceBundle
	rests  []verify.Anchor
}

// of returns the folders of sets. One that no verified commit has brought yet is
// missing.
func (f *policyFolders) of(sets []config.Policy) map[string]policyFolder {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]policyFolder{}
	for _, set := range sets {
		if folder, ok := f.by[set.Name]; ok {
			out[set.Name] = folder
		}
	}
	return out
}

// taker returns what takes the policies of a repository; nil if it has none.
func (ps *policySet) taker(cfg *config.Loaded, repository string) func(context.Context, *sources.Snapshot, verify.Evidence) (bool, error) {
	var sets []config.Policy
	for _, set := range cfg.Policies {
		if set.Git != nil && set.Git.Repository == repository {
			sets = append(sets, set)
		}
	}
	if len(sets) == 0 {
		return nil
	}
	return func(ctx context.Context, snap *sources.Snapshot, commit verify.Evidence) (bool, error) {
		return ps.take(ctx, sets, snap, commit)
	}
}

// take brings the policies that a repository has at a verified commit, and reports
// whether they are others than before. Policies that cannot be read or compiled refuse
// the commit: those before it go on judging.
func (ps *policySet) take(ctx context.Context, sets []config.Policy, snap *sources.Snapshot, commit verify.Evidence) (bool, error) {
	if !commit.Verified() { // it was revoked: what ran by it is watched, and nothing new judged
		return false, nil
	}
	ps.folders.taking.Lock()
	defer ps.folders.taking.Unlock()
	next, kept := ps.folders.all(), ps.folders.kept()
	changed := map[string]bool{}
	for _, set := range sets {
		files, err := policiesIn(snap, set)
		if err != nil {
			return false, err
		}
		old, ok := next[set.Name]
		if ok && maps.EqualFunc(old.files.Files, files.Files, bytes.Equal) {
			continue // it rests on the commit that changed it: who comes after did not vouch for it
		}
		changed[set.Name] = true
		next[set.Name] = policyFolder{commit: snap.Revision.ID, files: files, rests: commit.RestsOn}
		if was := kept[set.Name]; !ok && was.Files == digestOf(files) {
			next[set.Name] = policyFolder{commit: was.Commit, files: files, rests: was.Rests}
		}
	}
	if len(changed) == 0 {
		return false, nil
	}
	type compiled struct {
		of *bundledPolicies
		ev policy.Evaluator
	}
	var all []compiled
	for _, ev := range ps.evaluators {
		p, ok := ev.(*bundledPolicies)
		if !ok || !slices.ContainsFunc(p.sets, func(s config.Policy) bool { return changed[s.Name] }) || !p.complete(next) {
			continue
		}
		ev, err := p.build(ctx, next)
		if fault.KindOf(err) == fault.Invalid {
			return false, err
		}
		if err == nil { // else a bundle beside it is not there: that is for those who need both
			all = append(all, compiled{p, ev})
		}
	}
	if err := ps.folders.keep(next); err != nil {
		return false, err
	}
	ps.folders.mu.Lock()
	ps.folders.by = next
	ps.folders.mu.Unlock()
	for _, c := range all {
		c.of.use(c.ev, next)
	}
	return true, nil
}

// keptFolder is what is kept about a policyFolder.
type keptFolder struct {
	Commit string          `json:"commit"`
	Files  digest.Digest   `json:"files"`
	Rests  []verify.Anchor `json:"rests"`
}

func digestOf(files rego.SourceBundle) digest.Digest {
	b, err := json.Marshal(files)
	if err != nil { // names and bytes
		panic("holdfast: policies are not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

// kept returns what was kept. What cannot be read is made again, and rests on the
// newest commit.
func (f *policyFolders) kept() map[string]keptFolder {
	var out map[string]keptFolder
	if b, err := os.ReadFile(f.file); err != nil || json.Unmarshal(b, &out) != nil {
		return nil
	}
	return out
}

// keep keeps which commit each folder rests on.
func (f *policyFolders) keep(folders map[string]policyFolder) error {
	out := map[string]keptFolder{}
	for name, folder := range folders {
		out[name] = keptFolder{folder.commit, digestOf(folder.files), folder.rests}
	}
	b, err := json.Marshal(out)
	if err == nil {
		err = durable.Replace(f.file, b)
	}
	return fault.Wrap(fault.Transient, "holdfast.policies", "look at the state directory: disk full, read-only or lost?", err)
}

// all returns the folders of every set.
func (f *policyFolders) all() map[string]policyFolder {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.by)
}

// policiesIn reads the policies of a set.
func policiesIn(snap *sources.Snapshot, set config.Policy) (rego.SourceBundle, error) {
	const op = "holdfast.policies"
	at := cmp.Or(set.Git.Path, ".")
	none := func(err error) error {
		return fault.New(fault.Invalid, op, "bring the policies back, or correct git.path of the policy set", "policy set %s: %s in %s: %w", set.Name, at, snap.Revision, err)
	}
	if info, err := fs.Stat(snap.FS, at); err != nil || !info.IsDir() {
		return rego.SourceBundle{}, none(errors.New("there is no such folder"))
	}
	sub, err := fs.Sub(snap.FS, at)
	if err != nil {
		return rego.SourceBundle{}, none(err)
	}
	files, err := rego.Read(rego.Bundle{Name: set.Name, FS: sub})
	if err != nil {
		return files, none(err)
	}
	for p := range files.Files {
		if strings.HasSuffix(p, ".rego") {
			return files, nil
		}
	}
	return files, none(errors.New("it has no policies"))
}

// bundledPolicies judges with policies of which some are in registries or in
// repositories. They are brought and compiled when they are first needed, and when a
// verified commit changes them: until then, and while one of them is not trusted,
// nothing is judged, and so nothing new is granted.
type bundledPolicies struct {
	config  rego.Config
	sets    []config.Policy
	trust   *artifactTrust
	folders *policyFolders
	keep    *keeper

	mu       sync.Mutex
	compiled policy.Evaluator
	at       string // the commits that compiled is of
}

// Evaluate implements [policy.Evaluator]. The decision rests on the bundles, by
// their digests and commits, and on whoever signed them.
func (p *bundledPolicies) Evaluate(ctx context.Context, in policy.Input) (policy.Decision, error) {
	var rests []verify.Anchor
	folders := p.folders.of(p.sets)
	for _, set := range p.sets {
		if set.Git != nil {
			folder, ok := folders[set.Name]
			if !ok {
				return policy.Decision{}, fault.New(fault.Waiting, "holdfast.policies", "see holdfast status: is the repository read, its newest commit accepted, and nothing that it rests on revoked?",
					"policy set %s: no commit of repository %s that may be trusted has been taken", set.Name, set.Git.Repository)
			}
			rests = append(rests, folder.rests...)
		}
		if set.OCI == "" {
			continue
		}
		repository, d := set.Artifact()
		e, err := p.trust.evidence(ctx, verify.KindPolicy, repository, digest.Digest(d))
		if err != nil {
			return policy.Decision{}, fault.Wrap(fault.Transient, "holdfast.policies", "", fmt.Errorf("policy set %s: %w", set.Name, err))
		}
		rests = append(append(rests, e.RestsOn...), verify.Anchor{Kind: verify.AnchorPolicy, Value: d})
	}
	ev, err := p.compile(ctx, folders)
	if err != nil {
		return policy.Decision{}, err
	}
	d, err := ev.Evaluate(ctx, in)
	d.RestsOn = verify.Anchors(rests)
	return d, err
}

// complete reports whether there is a folder for each set that is in a repository.
func (p *bundledPolicies) complete(folders map[string]policyFolder) bool {
	return !slices.ContainsFunc(p.sets, func(s config.Policy) bool { _, ok := folders[s.Name]; return s.Git != nil && !ok })
}

// repositories names those that the policies come from.
func (p *bundledPolicies) repositories() []string {
	var out []string
	for _, set := range p.sets {
		if set.Git != nil {
			out = append(out, set.Git.Repository)
		}
	}
	return out
}

// commits names what the policies are compiled of.
func (p *bundledPolicies) commits(folders map[string]policyFolder) string {
	var out []string
	for _, set := range p.sets {
		out = append(out, set.Name+"@"+folders[set.Name].commit)
	}
	return strings.Join(out, " ")
}

func (p *bundledPolicies) compile(ctx context.Context, folders map[string]policyFolder) (policy.Evaluator, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.commits(folders)
	if p.compiled != nil && p.at == at {
		return p.compiled, nil
	}
	ev, err := p.build(ctx, folders)
	if err == nil {
		p.compiled, p.at = ev, at
	}
	return ev, err
}

// use makes ev, which is of those folders, what judges from now on.
func (p *bundledPolicies) use(ev policy.Evaluator, folders map[string]policyFolder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.compiled, p.at = ev, p.commits(folders)
}

// build compiles the policies with those folders.
func (p *bundledPolicies) build(ctx context.Context, folders map[string]policyFolder) (policy.Evaluator, error) {
	rc := p.config
	rc.Bundles = slices.Clone(rc.Bundles)
	for _, set := range p.sets {
		if set.OCI != "" {
			files, err := p.trust.policies(ctx, &set)
			if err != nil {
				return nil, err
			}
			rc.Bundles = append(rc.Bundles, rego.Bundle{Name: set.Name, FS: files})
		}
		if set.Git != nil {
			b := folders[set.Name].files.Bundle()
			b.Name, b.Own = "git/"+set.Name, true
			rc.Bundles = append(rc.Bundles, b)
		}
	}
	return p.keep.evaluator(ctx, rc)
}
