package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/sources/git"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
)

// maxStacks is how many stack files one repository may hold.
const maxStacks = 20_000

// maxFolders bounds the folders that are remembered.
const maxFolders = 10 * maxStacks

func newRepository(rc *config.Repository, cfg *config.Loaded, ts *targetSet, ps *policySet, trust *artifactTrust, revoked *verify.Revocations, keep *keeper) (reconciler.Repository, error) {
	d := &discoverer{repo: rc.Name, cfg: cfg, targets: ts, policies: ps}
	if rc.OCI != nil {
		repo, err := newArtifactRepository(rc, cfg, trust, d)
		repo.Take = ps.taker(cfg, rc.Name)
		return repo, err
	}
	src, err := newGitSource(rc, cfg.StateDir, ts.secrets)
	if err != nil {
		return reconciler.Repository{}, err
	}
	read, seen := noted(os.ReadFile)
	verifier, err := newCommitVerifier(rc, &cfg.Trust, revoked, read)
	if err != nil {
		return reconciler.Repository{}, err
	}
	trusted := keep.document(commitTrust(rc, &cfg.Trust, seen))
	return reconciler.Repository{
		Name:     rc.Name,
		Interval: time.Duration(rc.Interval),
		MaxAge:   time.Duration(rc.MaxAge),
		Source:   src,
		Authorise: func(ctx context.Context, from, head string, seen time.Time) (verify.Evidence, error) {
			answers := verify.NewAnswers()
			in := verify.Inputs{From: from, Time: seen, Trust: trusted, Revocations: revoked.List()}
			ev, err := verifier.Verify(ctx, commit.Collect(src, answers), from, head, seen)
			if err == nil || fault.KindOf(err) == fault.Denied {
				in.Subject = ev.Subject
				ev.Inputs = keep.inputs(answers.Complete(in))
			}
			if err == nil {
				err = src.KeepNotes(ctx, from, head)
			}
			return ev, err
		},
		Take:     ps.taker(cfg, rc.Name),
		Follows:  func(ctx context.Context, from, head string) error { return verifier.Follows(ctx, src, from, head) },
		Discover: d.discover,
	}, nil
}

func newGitSource(rc *config.Repository, stateDir string, sec *secrets) (*git.Source, error) {
	c := git.Config{
		Name: rc.Name, URL: rc.URL, Branch: rc.Branch, Tag: rc.Tag, Notes: followedNotes(&rc.Commits),
		Dir:    filepath.Join(stateDir, "git", rc.Name),
		Limits: snapshotLimits(rc),
	}
	if a := rc.Auth; a != nil {
		c.Auth.Username = a.Username
		c.Auth.KnownHosts = a.KnownHostsFile
		if a.TokenFile != "" {
			c.Auth.Password = func() (string, error) { return sec.read(a.TokenFile) }
		}
		if a.SSHKeyFile != "" {
			c.Auth.SSHKey = func() ([]byte, error) { return os.ReadFile(a.SSHKeyFile) }
		}
		if a.CAFile != "" {
			ca, err := os.ReadFile(a.CAFile)
			if err != nil {
				return nil, fault.New(fault.Invalid, "holdfast", "", "repository %s: caFile: %w", rc.Name, err)
			}
			c.Auth.CA = ca
		}
	}
	return git.New(c)
}

// discoverer finds the stacks of one repository.
type discoverer struct {
	repo     string
	cfg      *config.Loaded
	targets  *targetSet
	policies *policySet

	mu     sync.Mutex
	parsed map[string]parsedStack // by path

	walking sync.Mutex             // guards folders
	folders map[string]stackFolder // by path
}

type parsedStack struct {
	id    string // content id of the file
	stack *config.Stack
	key   string // of the stack, see stackKey
	err   error
}

// discover returns the stacks of a snapshot.
func (d *discoverer) discover(ctx context.Context, snap *sources.Snapshot) ([]reconciler.Stack, error) {
	files, err := d.stackFiles(ctx, snap)
	if err == nil && len(files) > maxStacks {
		err = fault.New(fault.Invalid, "holdfast.discover", "split the repository", "more than %d stack files", maxStacks)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "holdfast.discover", "", fmt.Errorf("repository %s: %w", d.repo, err))
	}
	out := make([]reconciler.Stack, len(files))
	parsed := make(map[string]parsedStack, len(files))
	for i, p := range files {
		ps := d.parse(snap.FS, p)
		parsed[p] = ps
		out[i] = d.build(path.Dir(p), ps)
	}
	d.mu.Lock()
	d.parsed = parsed
	d.mu.Unlock()
	return out, nil
}

// stackFiles returns the paths of the stack files of a snapshot, in order.
func (d *discoverer) stackFiles(ctx context.Context, snap *sources.Snapshot) ([]string, error) {
	d.walking.Lock()
	defer d.walking.Unlock()
	if d.folders == nil || len(d.folders) > maxFolders { // those that are gone are in it too
		d.folders = map[string]stackFolder{}
	}
	w := stackWalk{ctx: ctx, fsys: snap.FS, folders: d.folders}
	w.ids, _ = snap.FS.(sources.Identified)
	return w.files(".")
}

// stackFolder is what was found below a folder.
type stackFolder struct {
	id    string   // content id of the folder
	files []string // stack files, by path, in order
}

// stackWalk looks for stack files. What is below a folder whose content is that of the last
// snapshot is not looked at again: a commit costs its change.
type stackWalk struct {
	ctx     context.Context
	fsys    fs.FS
	ids     sources.Identified     // nil: the source does not tell
	folders map[string]stackFolder // by path, of the last snapshots
}

func (w *stackWalk) files(dir string) ([]string, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	var f stackFolder
	if w.ids != nil {
		var err error
		if f.id, err = w.ids.ContentID(dir); err != nil {
			return nil, err
		}
		if was, ok := w.folders[dir]; ok && was.id == f.id {
			return was.files, nil
		}
	}
	entries, err := fs.ReadDir(w.fsys, dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			below, err := w.files(p)
			if err != nil {
				return nil, err
			}
			f.files = append(f.files, below...)
		case e.Name() == config.StackFile:
			f.files = append(f.files, p)
		}
		if len(f.files) > maxStacks {
			break
		}
	}
	if f.id != "" {
		w.folders[dir] = f
	}
	return f.files, nil
}

// parse decodes a stack file, or remembers what it decoded to.
func (d *discoverer) parse(fsys fs.FS, p string) parsedStack {
	var id string
	if ids, ok := fsys.(sources.Identified); ok {
		if got, err := ids.ContentID(p); err == nil {
			id = got
		}
	}
	d.mu.Lock()
	old, ok := d.parsed[p]
	d.mu.Unlock()
	if ok && id != "" && old.id == id {
		return old
	}
	b, err := fs.ReadFile(fsys, p)
	if err != nil {
		return parsedStack{id: id, err: err}
	}
	s, err := config.ParseStack(p, b)
	ps := parsedStack{id: id, stack: s, err: err}
	if err == nil {
		ps.key = stackKey(d.repo, path.Dir(p), s, d.cfg.Digest)
	}
	return ps
}

// build turns a request into a stack as the operator's map grants it.
func (d *discoverer) build(dir string, ps parsedStack) reconciler.Stack {
	if ps.err != nil {
		return reconciler.Stack{Name: d.repo + "/" + dir, Dir: dir, Err: ps.err}
	}
	s := ps.stack
	out := reconciler.Stack{
		Name: s.Metadata.Name, Environment: s.Spec.Environment, Dir: dir, DependsOn: s.Spec.DependsOn,
		TargetName: "kubernetes", Key: ps.key,
	}
	spec := d.cfg.Drift.KubernetesSchedule
	if s.Spec.Terraform != nil {
		out.TargetName, spec = "terraform", d.cfg.Drift.TerraformSchedule
	}
	perm, err := d.cfg.Permit(d.repo, dir, s, time.Now())
	if err != nil {
		out.Err = err
		return out
	}
	if s.Spec.Drift.Schedule != "" {
		spec = s.Spec.Drift.Schedule
	}
	var errs []error
	out.Schedule, err = drift.ParseSchedule(spec)
	errs = append(errs, err)
	out.Prune = reconciler.Prune(perm.Prune)
	out.Drift, err = driftRules(&d.cfg.Drift, s.Spec.Environment, s.Metadata.Name)
	errs = append(errs, err)
	out.Drift.Mode = drift.Mode(perm.DriftMode)
	for _, ig := range s.Spec.Drift.Ignore {
		out.Drift.Ignore = append(out.Drift.Ignore, drift.Ignore{Kind: ig.Kind, Name: ig.Name, Path: ig.Path, Until: ig.Until.Time, Reason: ig.Reason})
	}
	out.Policy, err = d.policies.evaluator(s.Spec.Environment, out.TargetName)
	if p, ok := out.Policy.(*bundledPolicies); ok {
		out.JudgedBy = p.repositories()
	}
	errs = append(errs, err)
	out.Build = func() (targets.Target, error) { return d.targets.build(out.TargetName, dir, s, perm, out.Drift) }
	out.Err = errors.Join(errs...)
	return out
}

// driftRules returns the operator's word on the drift of one stack.
func driftRules(d *config.DriftDefaults, environment, stack string) (drift.Rules, error) {
	var out drift.Rules
	for _, r := range d.Rules {
		if !config.Applies(r.Environments, r.Stacks, environment, stack) {
			continue
		}
		c := drift.Case{Name: r.Name, Kinds: r.Kinds, Paths: r.Paths, Actors: r.Actors, Mode: drift.Mode(r.Action)}
		for _, class := range r.Classes {
			c.Classes = append(c.Classes, targets.FindingClass(class))
		}
		out.Cases = append(out.Cases, c)
	}
	for _, q := range d.Quiet {
		if !config.Applies(q.Environments, q.Stacks, environment, stack) {
			continue
		}
		s, err := drift.ParseSchedule(q.Schedule)
		if err != nil {
			return out, err
		}
		out.Quiet = append(out.Quiet, drift.Quiet{Name: q.Name, Start: s, Duration: time.Duration(q.Duration)})
	}
	for _, b := range d.BreakGlass {
		if config.Applies(b.Environments, b.Stacks, environment, stack) {
			out.BreakGlass = time.Duration(b.Max) // the first that applies
			break
		}
	}
	return out, nil
}

// stackKey binds everything that configures a stack: its own file, where it is,
// and the operator's file.
func stackKey(repo, dir string, s *config.Stack, operator digest.Digest) string {
	b, err := json.Marshal(struct {
		Repo, Dir string
		Stack     *config.Stack
		Operator  digest.Digest
	}{repo, dir, s, operator})
	if err != nil { // plain data
		panic("holdfast: " + err.Error())
	}
	return digest.FromBytes(b).String()
}

// joinDir resolves a path of a stack file against its folder. The result may
// lie outside that folder, never outside the repository.
func joinDir(dir, p string) (string, error) {
	joined := path.Join(dir, p)
	if joined == ".." || strings.HasPrefix(joined, "../") || path.IsAbs(p) {
		return "", fault.New(fault.Invalid, "holdfast.build", "name a path inside the repository", "%q leaves the repository", p)
	}
	return joined, nil
}

// snapshotLimits are what a snapshot of the repository may hold.
func snapshotLimits(rc *config.Repository) sources.Limits {
	return sources.Limits{Bytes: rc.Limits.Bytes, File: rc.Limits.FileBytes, Files: rc.Limits.Files, PathLength: rc.Limits.PathLength}
}
