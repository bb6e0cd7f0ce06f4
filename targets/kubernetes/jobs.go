package kubernetes

import (
	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// A Job with spec.ttlSecondsAfterFinished is deleted by the cluster when it has
// done its work. That it is gone is no drift, and it is not made again:
//
//   - The inventory keeps the digest of each such Job that an apply made. If the
//     Job is gone and is still desired with that very digest, it ran.
//   - Unless this process saw it being deleted before it had finished: then it is
//     missing like any other object. Nobody saw that after a restart, so such a
//     Job stays gone until it is changed or renamed: rather than that a Job runs
//     twice, it runs once and was cut off.
//
// A digest is written after the apply that made the Job. After a crash between
// the two the Job, if it is gone by then, is made again.

var jobKind = schema.GroupKind{Group: "batch", Kind: "Job"}

func (o *desired) isJob() bool { return o.u.GroupVersionKind().GroupKind() == jobKind }

// expires reports whether the cluster deletes the object by itself.
func (o *desired) expires() bool {
	_, ok, err := unstructured.NestedFieldNoCopy(o.u.Object, "spec", "ttlSecondsAfterFinished")
	return o.isJob() && ok && err == nil
}

// expired reports whether o, which does not exist, is a Job that has run.
func (t *Target) expired(o *desired) bool {
	if !o.expires() || t.ranAs(o.id) != o.after {
		return false
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	tr := t.c.tracked[o.id]
	return tr == nil || tr.t != t || !tr.cutOff
}

// ranAs returns the digest with which the inventory says that a Job was made, or "".
func (t *Target) ranAs(id plan.ObjectID) digest.Digest {
	t.ownedMu.Lock()
	defer t.ownedMu.Unlock()
	return t.ran[id]
}

// finished reports whether a live Job has come to its end, one way or the other.
func finished(u *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, e := range conditions {
		c, _ := e.(map[string]any)
		if (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True" {
			return true
		}
	}
	return false
}
