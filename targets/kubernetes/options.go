package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What a developer may ask for one object, by an annotation on it.
const (
	// PruneAnnotation with the value "keep" protects an object: it is neither pruned nor
	// replaced.
	PruneAnnotation = "holdfast.dev/prune"
	// PropagationAnnotation says what becomes of the dependents of an object that is
	// deleted: "background" (the default), "foreground" or "orphan" (Kubernetes,
	// "Garbage Collection").
	PropagationAnnotation = "holdfast.dev/propagation"
	// WaveAnnotation is a whole number, 0 by default: objects of a wave are applied
	// when everything in the lower ones is healthy.
	WaveAnnotation = "holdfast.dev/wave"
)

// What a person may write on a live object in an emergency. Both are drift of nobody's
// field, and no stack may declare them.
const (
	// BreakGlassAnnotation is the time (RFC 3339) until which drift of the object is
	// not reverted, as far as the operator allows.
	BreakGlassAnnotation = "holdfast.dev/break-glass"
	// BreakGlassReasonAnnotation says why, for whoever hears of it.
	BreakGlassReasonAnnotation = "holdfast.dev/break-glass-reason"
)

const maxReason = 200 // bytes of a reason that are kept

// excuse returns what stands on a live object in its excuse. A time that cannot be
// read is none.
func excuse(live *unstructured.Unstructured) (until time.Time, reason string) {
	notes := live.GetAnnotations()
	until, err := time.Parse(time.RFC3339, notes[BreakGlassAnnotation])
	if err != nil {
		return time.Time{}, ""
	}
	if reason = notes[BreakGlassReasonAnnotation]; len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	return until.UTC(), reason
}

const pruneKeep = "keep"

// propagations are the values of [PropagationAnnotation].
var propagations = map[string]metav1.DeletionPropagation{
	"": metav1.DeletePropagationBackground, "background": metav1.DeletePropagationBackground,
	"foreground": metav1.DeletePropagationForeground, "orphan": metav1.DeletePropagationOrphan,
}

const maxWave = 1000 // either way

// asked returns the annotations of an object that is declared with which it asks for
// something, or says which one cannot be read.
func asked(u *unstructured.Unstructured) (map[string]string, error) {
	out := map[string]string{}
	for key, v := range u.GetAnnotations() {
		ok := false
		switch key {
		case PruneAnnotation:
			ok = v == pruneKeep
		case PropagationAnnotation:
			_, ok = propagations[v]
		case WaveAnnotation:
			n, err := strconv.Atoi(v)
			ok = err == nil && -maxWave <= n && n <= maxWave
		default:
			continue
		}
		if !ok {
			return nil, fmt.Errorf("the annotation %s cannot be %q", key, v)
		}
		out[key] = v
	}
	return out, nil
}

// wave returns the wave of an object. A live one may say anything.
func wave(u *unstructured.Unstructured) int {
	n, err := strconv.Atoi(u.GetAnnotations()[WaveAnnotation])
	if err != nil {
		return 0
	}
	return max(-maxWave, min(n, maxWave))
}

// declaredNote returns an annotation of live that a stack declared: what somebody wrote
// there decides nothing about what goes, and what is left behind.
func (c *Cluster) declaredNote(live *unstructured.Unstructured, key string) string {
	if entry := c.entry(live); entry == nil || !owns(entry, live.Object, []string{"metadata", "annotations", key}) {
		return ""
	}
	return live.GetAnnotations()[key]
}

func (c *Cluster) protected(live *unstructured.Unstructured) bool {
	return c.declaredNote(live, PruneAnnotation) == pruneKeep
}

// propagation returns how live is deleted.
func (c *Cluster) propagation(live *unstructured.Unstructured) metav1.DeletionPropagation {
	return propagations[c.declaredNote(live, PropagationAnnotation)]
}

// waves returns the waves in which something is created or changed, in order.
func waves(changes []change) []int {
	var out []int
	for _, c := range changes {
		if c.obj != nil {
			out = append(out, c.obj.wave)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
