package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/sources/oci"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// artifactTrust judges what Holdfast itself reads from registries: desired
// states and policy bundles. What was accepted is kept on disk, so that a restart
// while the registry is down takes up what ran; it counts for the same operator's
// file and the same version of Holdfast, and until it is revoked or ends.
type artifactTrust struct {
	set      *verify.Set
	client   *registry.Client
	revoked  *verify.Revocations
	stateDir string
	operator digest.Digest

	mu       sync.Mutex
	accepted map[string]keptEvidence // by file name

	bringing sync.Mutex       // held while a bundle is brought
	bundles  map[string]fs.FS // by name and digest
}

// keptEvidence is what was accepted, and under what.
type keptEvidence struct {
	Holdfast string          `json:"holdfast"`
	Operator digest.Digest   `json:"operator"`
	Evidence verify.Evidence `json:"evidence"`
}

// maxKeptEvidence is how many files of evidence are kept.
const maxKeptEvidence = 1024

func newArtifactTrust(cfg *config.Loaded, sec *secrets, set *verify.Set, revoked *verify.Revocations) (*artifactTrust, error) {
	client, err := newRegistryClient(cfg.Registries, sec)
	if err != nil {
		return nil, err
	}
	return &artifactTrust{set: set, client: client, revoked: revoked, stateDir: cfg.StateDir, operator: cfg.Digest,
		accepted: map[string]keptEvidence{}, bundles: map[string]fs.FS{}}, nil
}

// evidence returns the proof that an artifact may be trusted, by the rule for its
// kind. These rules know no environment.
func (t *artifactTrust) evidence(ctx context.Context, kind, repository string, d digest.Digest) (verify.Evidence, error) {
	reference := repository + "@" + d.String()
	name := digest.FromString(kind+" "+reference).Encoded() + ".json"
	if e, ok := t.known(name); ok {
		return e, t.revoked.Check(e.RestsOn...)
	}
	report, _, err := t.set.Verify(ctx, "", []verify.Subject{{Kind: kind, Reference: reference}})
	e := report.Evidence[0]
	if err != nil {
		return e, err
	}
	return e, t.keep(name, e)
}

func (t *artifactTrust) dir() string { return filepath.Join(t.stateDir, "evidence") }

// known returns what was accepted before and still counts.
func (t *artifactTrust) known(name string) (verify.Evidence, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.accepted[name]
	if !ok {
		b, err := os.ReadFile(filepath.Join(t.dir(), name))
		if err != nil || json.Unmarshal(b, &k) != nil {
			return verify.Evidence{}, false // it is proven again
		}
		t.accepted[name] = k
	}
	e := k.Evidence
	if k.Holdfast != version || k.Operator != t.operator || !e.Verified() || (!e.NotAfter.IsZero() && !time.Now().Before(e.NotAfter)) {
		return verify.Evidence{}, false
	}
	e.Checks, e.Facts = slices.Clone(e.Checks), maps.Clone(e.Facts) // callers add to them
	return e, true
}

func (t *artifactTrust) keep(name string, e verify.Evidence) error {
	k := keptEvidence{Holdfast: version, Operator: t.operator, Evidence: e}
	b, err := json.Marshal(k)
	if err != nil {
		return fault.Wrap(fault.Internal, "holdfast.evidence", "", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k.Evidence.Checks, k.Evidence.Facts = slices.Clone(e.Checks), maps.Clone(e.Facts)
	t.accepted[name] = k
	err = os.MkdirAll(t.dir(), 0o700)
	if err == nil {
		err = errors.Join(durable.Replace(filepath.Join(t.dir(), name), b), t.evict(name))
	}
	return fault.Wrap(fault.Transient, "holdfast.evidence", "look at the state directory: disk full, read-only or lost?", err)
}

// evict removes the oldest files of evidence above the limit, except name. The
// caller holds t.mu.
func (t *artifactTrust) evict(name string) error {
	list, err := os.ReadDir(t.dir())
	if err != nil || len(list) <= maxKeptEvidence {
		return err
	}
	age := func(e fs.DirEntry) time.Time {
		info, err := e.Info()
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Or(age(a).Compare(age(b)), cmp.Compare(a.Name(), b.Name())) })
	var errs []error
	for _, e := range list[:len(list)-maxKeptEvidence] {
		if e.Name() != name {
			delete(t.accepted, e.Name())
			errs = append(errs, os.Remove(filepath.Join(t.dir(), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// policies returns the files of a policy set that is in a registry. Each is
// brought once, whichever environments it is for.
func (t *artifactTrust) policies(ctx context.Context, set *config.Policy) (fs.FS, error) {
	t.bringing.Lock()
	defer t.bringing.Unlock()
	repository, d := set.Artifact()
	key := set.Name + " " + d
	if files, ok := t.bundles[key]; ok {
		return files, nil
	}
	files, err := oci.Policies(ctx, oci.Bundle{
		Name: set.Name, Repository: repository, Digest: d, Registry: t.client,
		Dir: filepath.Join(t.stateDir, "oci-policies", set.Name),
		Admit: func(ctx context.Context, d digest.Digest) error {
			_, err := t.evidence(ctx, verify.KindPolicy, repository, d)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	t.bundles[key] = files
	return files, nil
}

// newArtifactRepository wires a desired state that is an OCI artifact.
func newArtifactRepository(rc *config.Repository, cfg *config.Loaded, trust *artifactTrust, d *discoverer) (reconciler.Repository, error) {
	name := rc.OCI.Repository()
	evidence := func(ctx context.Context, d digest.Digest) (verify.Evidence, error) {
		return trust.evidence(ctx, verify.KindArtifact, name, d)
	}
	src, err := oci.New(oci.Config{
		Name: rc.Name, Repository: name, Tag: rc.OCI.Tag, Semver: rc.OCI.Semver, Annotations: rc.OCI.Annotations,
		Dir: filepath.Join(cfg.StateDir, "oci", rc.Name), Registry: trust.client,
		Admit:  func(ctx context.Context, d digest.Digest) error { _, err := evidence(ctx, d); return err },
		Limits: snapshotLimits(rc),
	})
	if err != nil {
		return reconciler.Repository{}, err
	}
	return reconciler.Repository{
		Name:     rc.Name,
		Interval: time.Duration(rc.Interval),
		MaxAge:   time.Duration(rc.MaxAge),
		Source:   src,
		Authorise: func(ctx context.Context, from, head string, seen time.Time) (verify.Evidence, error) {
			e, err := evidence(ctx, digest.Digest(head))
			if err != nil {
				return e, err
			}
			a, err := src.Advance(ctx, from, head, seen)
			return withOrder(e, a, err), err
		},
		Follows:  src.Follows,
		Discover: d.discover,
	}, nil
}

// checkOrder is the check that [withOrder] adds.
const checkOrder = "order"

// withOrder makes the evidence about an artifact that about a revision: it adds
// what the artifact says about itself, and whether history may go on to it.
func withOrder(e verify.Evidence, a oci.Artifact, err error) verify.Evidence {
	e.Subject.Reference = e.Subject.Digest.String()
	c := verify.Check{Name: checkOrder, OK: err == nil, Want: "an artifact that its publisher made after the last applied one"}
	if err != nil {
		c.Found, c.Next = err.Error(), fault.HintOf(err)
	}
	if e.Facts == nil {
		e.Facts = map[string]any{}
	}
	said := map[string]string{"version": a.Version, "revision": a.Revision, "source": a.Source}
	if !a.Created.IsZero() {
		said["created"] = a.Created.UTC().Format(time.RFC3339Nano)
	}
	for _, k := range slices.Sorted(maps.Keys(said)) {
		if said[k] == "" {
			continue
		}
		e.Facts[k] = said[k]
		if c.OK {
			c.Found = strings.TrimPrefix(c.Found+", "+k+" "+said[k], ", ")
		}
	}
	e.Checks = append(e.Checks, c)
	return e
}
