package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// The rules of the Lease:
//
//   - No clock is compared with another machine's. The holder is sure for Duration
//     less a margin, from the start of the request that renewed it; somebody else
//     takes over when he saw the same record for all of Duration. The holder asks
//     its monotonic clock and its wall clock, and the earlier end counts: the first
//     cannot be set, the second goes on while the machine sleeps.
//   - Whoever says "I am the holder" must be the process that wrote it. The same
//     identity in another process is the same state directory after a crash: it
//     takes over at once, but only when it starts. A process that sees its own
//     identity with another process's mark has lost.
//   - client-go's leaderelection is not used: it says "leader" until a renewal
//     has failed for RenewDeadline, whenever that was, and not how long it is
//     sure for.
const (
	opLease = "targets/kubernetes.lease"

	defaultLease         = "holdfast"
	defaultLeaseDuration = 30 * time.Second
	processAnnotation    = "holdfast.dev/process"
	releaseTimeout       = 5 * time.Second
)

var leases = resource{name: "leases", version: schema.GroupVersion{Group: "coordination.k8s.io", Version: "v1"}, namespaced: true}

// thisProcess tells the processes of one identity apart. It belongs to the
// process and not to a Cluster: the environments of one daemon that share a
// cluster hold its Lease together.
var thisProcess = rand.Text()

// LeaseConfig says how daemons that share a cluster agree on the one that acts.
type LeaseConfig struct {
	// Off takes no Lease: two daemons that were started by mistake then both act.
	Off bool
	// Name of the coordination.k8s.io/v1 Lease in Holdfast's own namespace;
	// "holdfast" if empty.
	Name string
	// Duration of silence after which somebody else may take over; 30 s if zero,
	// whole seconds, at least one. It is renewed every third of it.
	Duration time.Duration
	// Identity of the holder, see [Identity]. Required unless Off.
	Identity string
}

func (l *LeaseConfig) validate() error {
	if l.Off {
		return nil
	}
	if l.Name == "" {
		l.Name = defaultLease
	}
	if l.Duration == 0 {
		l.Duration = defaultLeaseDuration
	}
	switch {
	case l.Identity == "":
		return errors.New("kubernetes: the lease has no identity")
	case l.Duration < time.Second || l.Duration%time.Second != 0:
		return fmt.Errorf("kubernetes: the lease lasts %s: whole seconds are needed, at least one", l.Duration)
	}
	return nil
}

// Identity returns the identity of the daemon whose state directory is dir: the
// same after a restart, another one for a copy of the directory. It is made of
// the folder itself (device and inode, which a copy does not share) and the
// running kernel, behind the host's name for people. A lock on the folder must
// see to it that only one process has it.
//
// Where the kernel does not say which one it is, each process is another one,
// and a restart after a crash waits until the Lease has run out. A machine that
// was cloned while it ran, memory included, cannot be told from its original.
func Identity(dir string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return "", fault.New(fault.Invalid, opLease, "make the state directory", "%s: %w", dir, err)
	}
	kernel := thisProcess
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		kernel = strings.TrimSpace(string(id))
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%d", kernel, st.Dev, st.Ino))
	return host + "_" + hex.EncodeToString(sum[:8]), nil
}

// lease is what a Cluster knows of its Lease.
type lease struct {
	mu      sync.Mutex
	until   time.Time     // we are sure to hold it until then
	holder  string        // who else holds it, as far as we know
	err     error         // why the last attempt failed
	running bool          // HoldLease is at work
	decided chan struct{} // closed after its first attempt
	writers sync.WaitGroup
}

// sight is the newest record of another holder, and since when we see it unchanged.
type sight struct {
	version string
	since   time.Time
}

// Holding returns nil while this process is sure to be the only one that may
// write to the cluster. Otherwise it returns an error of kind fault.Waiting that
// names the holder.
func (c *Cluster) Holding() error {
	if c.cfg.Lease.Off {
		return nil
	}
	l := &c.lease
	l.mu.Lock()
	defer l.mu.Unlock()
	name := c.cfg.Namespace + "/" + c.cfg.Lease.Name
	switch {
	case !l.running:
		return fault.New(fault.Transient, opLease, "", "this process does not hold Lease %s: it is starting or stopping", name)
	case l.sure():
		return nil
	case l.holder != "":
		return fault.New(fault.Waiting, opLease, "stop the other daemon, or give one of them another state directory, lease name and set of stacks",
			"another daemon acts on this cluster: %s holds Lease %s", l.holder, name)
	case l.err != nil:
		return fault.New(fault.Waiting, opLease, fault.HintOf(l.err), "Lease %s is not ours: %w", name, l.err)
	}
	return fault.New(fault.Waiting, opLease, "", "Lease %s is not ours yet", name)
}

// writing begins a series of writes and returns what ends it. It waits for the
// first attempt to take the Lease, so that a daemon that has just started does
// not turn its first stacks away. Each write of the series asks Holding again.
func (c *Cluster) writing(ctx context.Context) (done func(), err error) {
	if c.cfg.Lease.Off {
		return func() {}, nil
	}
	l := &c.lease
	l.mu.Lock()
	running, decided := l.running, l.decided
	if running {
		l.writers.Add(1)
	}
	l.mu.Unlock()
	if running {
		select {
		case <-decided:
			err = c.Holding()
		case <-ctx.Done():
			err = fault.Wrap(fault.Transient, opLease, "", context.Cause(ctx))
		}
		if err == nil {
			return l.writers.Done, nil
		}
		l.writers.Done()
		return nil, err
	}
	return nil, c.Holding()
}

// HoldLease takes the Lease and renews it until ctx ends. Then nothing more is
// written, and when what is under way has ended the Lease is given back, so that
// the next daemon need not wait. It returns nil then, and at once if the Lease is off.
func (c *Cluster) HoldLease(ctx context.Context) error {
	if c.cfg.Lease.Off {
		return nil
	}
	if !c.lease.start() {
		return fault.New(fault.Internal, opLease, "", "the lease is held already")
	}
	defer c.endLease(context.WithoutCancel(ctx))
	var other sight
	held, said := false, false
	for starting := true; ; {
		start := time.Now()
		holder, err := c.tryLease(ctx, &other, starting)
		now := c.lease.settle(start, c.cfg.Lease.Duration, holder, err)
		if now != held || !said {
			c.logLease(ctx, now, holder, err)
		}
		held, said, starting = now, true, starting && err != nil
		timer := time.NewTimer(time.Until(start.Add(c.cfg.Lease.Duration / 3)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func (c *Cluster) logLease(ctx context.Context, held bool, holder string, err error) {
	name := slog.String("lease", c.cfg.Namespace+"/"+c.cfg.Lease.Name)
	switch {
	case held:
		c.cfg.Log.InfoContext(ctx, "lease held", name, slog.String("identity", c.cfg.Lease.Identity))
	case err != nil:
		c.cfg.Log.WarnContext(ctx, "lease not held", name, slog.String("error", err.Error()))
	default:
		c.cfg.Log.WarnContext(ctx, "lease not held", name, slog.String("holder", holder))
	}
}

func (l *lease) start() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		return false
	}
	l.running, l.decided = true, make(chan struct{})
	return true
}

// settle notes the result of an attempt that began at start, and reports
// whether we are sure to hold the Lease. An attempt that failed takes nothing
// away: what the last good one promised still holds.
func (l *lease) settle(start time.Time, duration time.Duration, holder string, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder, l.err = holder, err
	switch {
	case holder != "":
		l.until = time.Time{}
	case err == nil:
		l.until = start.Add(duration - margin(duration))
	}
	select {
	case <-l.decided:
	default:
		close(l.decided)
	}
	return l.sure()
}

// sure is called with mu held.
func (l *lease) sure() bool {
	now := time.Now()
	return now.Before(l.until) && now.Round(0).Before(l.until.Round(0)) // Round(0) strips the monotonic reading
}

// margin is what the holder gives up of its time, for a write that is under way
// when it ends.
func margin(duration time.Duration) time.Duration { return duration / 6 }

// tryLease makes one attempt to take or renew the Lease, and looks again where
// somebody wrote it in between: most often another environment of this process.
// It returns the holder if that is somebody else.
func (c *Cluster) tryLease(ctx context.Context, other *sight, starting bool) (holder string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Lease.Duration/3)
	defer cancel()
	for range attempts(ctx) {
		holder, err = c.writeLease(ctx, other, starting)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return holder, c.leaseError(err)
}

func (c *Cluster) writeLease(ctx context.Context, other *sight, starting bool) (holder string, err error) {
	client := c.client(leases, c.cfg.Namespace)
	live, err := client.Get(ctx, c.cfg.Lease.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = c.createOwn(ctx, leases, c.leaseObject(nil))
		return "", err
	}
	if err != nil {
		return "", err
	}
	var rec coordinationv1.Lease
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &rec); err != nil {
		return "", fmt.Errorf("the Lease is malformed: %w", err)
	}
	if by := c.heldByOther(&rec, other, starting); by != "" {
		return by, nil
	}
	next := c.leaseObject(&rec)
	next.SetResourceVersion(live.GetResourceVersion()) // of several who try, one succeeds
	_, err = client.Update(ctx, next, metav1.UpdateOptions{FieldManager: c.cfg.FieldManager})
	return "", err
}

// heldByOther returns who holds the Lease if we may not take it: not until its
// record was the same for as long as it says that it is good for.
func (c *Cluster) heldByOther(rec *coordinationv1.Lease, other *sight, starting bool) string {
	holder := ""
	if rec.Spec.HolderIdentity != nil {
		holder = *rec.Spec.HolderIdentity
	}
	mine := holder == c.cfg.Lease.Identity && (starting || rec.Annotations[processAnnotation] == c.process)
	if holder == "" || mine {
		*other = sight{}
		return ""
	}
	if other.version != rec.ResourceVersion {
		*other = sight{rec.ResourceVersion, time.Now()}
	}
	duration := c.cfg.Lease.Duration
	if s := rec.Spec.LeaseDurationSeconds; s != nil {
		duration = max(duration, time.Duration(*s)*time.Second)
	}
	if time.Since(other.since) >= duration {
		return ""
	}
	return holder
}

// leaseObject is the Lease as we write it, after rec (nil: there is none).
func (c *Cluster) leaseObject(rec *coordinationv1.Lease) *unstructured.Unstructured {
	now := metav1.NowMicro().Format(metav1.RFC3339Micro)
	acquired, transitions := now, int64(0)
	if rec != nil {
		same := rec.Spec.HolderIdentity != nil && *rec.Spec.HolderIdentity == c.cfg.Lease.Identity && rec.Annotations[processAnnotation] == c.process
		if rec.Spec.LeaseTransitions != nil {
			transitions = int64(*rec.Spec.LeaseTransitions)
		}
		switch {
		case !same:
			transitions++
		case rec.Spec.AcquireTime != nil:
			acquired = rec.Spec.AcquireTime.Format(metav1.RFC3339Micro)
		}
	}
	return c.leaseWith(c.process, map[string]any{
		"holderIdentity": c.cfg.Lease.Identity, "leaseDurationSeconds": int64(c.cfg.Lease.Duration / time.Second),
		"acquireTime": acquired, "renewTime": now, "leaseTransitions": transitions,
	})
}

func (c *Cluster) leaseWith(process string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
		"metadata": map[string]any{
			"name": c.cfg.Lease.Name, "namespace": c.cfg.Namespace,
			"labels":      map[string]any{"app.kubernetes.io/managed-by": "holdfast"},
			"annotations": map[string]any{processAnnotation: process},
		},
		"spec": spec,
	}}
}

// endLease lets writers end and gives the Lease back. Where that takes too long
// it runs out instead.
func (c *Cluster) endLease(ctx context.Context) {
	l := &c.lease
	l.mu.Lock()
	l.running, l.until = false, time.Time{}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	idle := make(chan struct{})
	go func() {
		l.writers.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		return
	}
	if err := c.releaseLease(ctx); err != nil {
		c.cfg.Log.WarnContext(ctx, "lease not released", slog.String("error", c.leaseError(err).Error()))
	}
}

func (c *Cluster) releaseLease(ctx context.Context) error {
	client := c.client(leases, c.cfg.Namespace)
	live, err := client.Get(ctx, c.cfg.Lease.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	holder, _, _ := unstructured.NestedString(live.Object, "spec", "holderIdentity")
	if holder != c.cfg.Lease.Identity || live.GetAnnotations()[processAnnotation] != c.process {
		return nil
	}
	transitions, _, _ := unstructured.NestedInt64(live.Object, "spec", "leaseTransitions")
	free := c.leaseWith("", map[string]any{"holderIdentity": "", "leaseDurationSeconds": int64(1), "leaseTransitions": transitions})
	free.SetResourceVersion(live.GetResourceVersion())
	_, err = client.Update(ctx, free, metav1.UpdateOptions{FieldManager: c.cfg.FieldManager})
	return err
}

func (c *Cluster) leaseError(err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	if apierrors.IsForbidden(err) {
		hint = "allow Holdfast's account to get, create and update Leases in its own namespace"
	}
	return fault.New(fault.Transient, opLease, hint, "%s", c.cfg.Masker.Scrub(err.Error()))
}
