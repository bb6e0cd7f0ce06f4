package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Why a roll-out does not come to an end: the pod that stands in its way, what
// Kubernetes says about it, and its last words. It is for people and decides nothing;
// what the daemon's account may not read is left out.

const (
	explainTime = 3 * time.Second // for all requests of one explanation
	explainPods = 200             // looked at, of one workload
	maxLogLine  = 300             // bytes of a log line that are shown
)

var (
	podResource = resource{name: "pods", version: schema.GroupVersion{Version: "v1"}, namespaced: true}
	eventList   = resource{name: "events", version: schema.GroupVersion{Version: "v1"}, namespaced: true}
)

// workloads are the kinds whose pods are found by spec.selector.
var workloads = []schema.GroupKind{
	{Group: "apps", Kind: "Deployment"}, {Group: "apps", Kind: "StatefulSet"}, {Group: "apps", Kind: "DaemonSet"},
	{Group: "apps", Kind: "ReplicaSet"}, {Group: "batch", Kind: "Job"},
}

// explain says why live, which is not healthy, is not; "" if nothing is known. A stack
// that is impersonated sees what its account may see.
func (t *Target) explain(ctx context.Context, id plan.ObjectID, live *unstructured.Unstructured) string {
	ctx, cancel := context.WithTimeout(ctx, explainTime)
	defer cancel()
	c := explainer{t.c, t.as}
	text := c.podTrouble(ctx, live)
	if text == "" {
		text = c.warning(ctx, id.Namespace, live.GetKind(), live.GetName())
	}
	return c.cfg.Masker.Scrub(text)
}

// line makes text that somebody else wrote one short line.
func line(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(text), "�"))
	if len(text) > maxLogLine {
		return strings.ToValidUTF8(text[:maxLogLine], "") + "…"
	}
	return text
}

// explainer asks what an explanation needs, as somebody.
type explainer struct {
	*Cluster
	as *session
}

// podTrouble describes the pod of live that is in the greatest trouble.
func (c explainer) podTrouble(ctx context.Context, live *unstructured.Unstructured) string {
	gk := live.GroupVersionKind().GroupKind()
	var pods []corev1.Pod
	switch {
	case gk == schema.GroupKind{Kind: "Pod"}:
		var p corev1.Pod
		if runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &p) != nil {
			return ""
		}
		pods = append(pods, p)
	case slices.Contains(workloads, gk):
		pods = c.podsOf(ctx, live)
	}
	var worst *corev1.Pod
	var at trouble
	for i := range pods {
		if t := troubleOf(&pods[i]); t.rank > at.rank || t.rank == at.rank && worst != nil && pods[i].CreationTimestamp.After(worst.CreationTimestamp.Time) {
			worst, at = &pods[i], t
		}
	}
	if worst == nil || at.rank == 0 {
		return ""
	}
	parts := []string{fmt.Sprintf("Pod/%s: %s", worst.Name, at.text)}
	if text := c.warning(ctx, worst.Namespace, "Pod", worst.Name); text != "" {
		parts = append(parts, text)
	}
	if at.container != "" {
		if line := c.lastLine(ctx, worst, at); line != "" {
			parts = append(parts, fmt.Sprintf("last log line of %s: %s", at.container, line))
		}
	}
	return strings.Join(parts, "; ")
}

// podsOf returns the pods that live selects and controls, a Deployment through its
// ReplicaSets.
func (c explainer) podsOf(ctx context.Context, live *unstructured.Unstructured) []corev1.Pod {
	selector, _, _ := unstructured.NestedMap(live.Object, "spec", "selector")
	var ls metav1.LabelSelector
	if selector == nil || runtime.DefaultUnstructuredConverter.FromUnstructured(selector, &ls) != nil {
		return nil
	}
	sel, err := metav1.LabelSelectorAsSelector(&ls)
	if err != nil || sel.Empty() {
		return nil
	}
	list, err := c.as.client(podResource, live.GetNamespace()).List(ctx, metav1.ListOptions{LabelSelector: sel.String(), Limit: explainPods})
	if err != nil {
		return nil
	}
	var out []corev1.Pod
	for i := range list.Items {
		var p corev1.Pod
		if runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &p) == nil && controls(live, &p) {
			out = append(out, p)
		}
	}
	return out
}

// controls reports whether live controls a pod that it selects.
func controls(live *unstructured.Unstructured, p *corev1.Pod) bool {
	by := metav1.GetControllerOf(p)
	switch {
	case by == nil:
		return false
	case by.UID == live.GetUID():
		return true
	}
	return live.GetKind() == "Deployment" && by.Kind == "ReplicaSet" && by.Name == live.GetName()+"-"+p.Labels["pod-template-hash"]
}

// trouble is what is wrong with a pod. A greater rank is worse; 0 is nothing.
type trouble struct {
	rank      int
	text      string
	container string // whose log may say more
	previous  bool   // the log of the instance before the one that waits
}

// beginning are reasons to wait that every pod has at first.
var beginning = []string{"ContainerCreating", "PodInitializing"}

func troubleOf(p *corev1.Pod) trouble {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded {
		return trouble{}
	}
	var worst trouble
	note := func(t trouble) {
		if t.rank > worst.rank {
			worst = t
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		last := ""
		if l := s.LastTerminationState.Terminated; l != nil {
			last = fmt.Sprintf("; it ended with %d (%s) before", l.ExitCode, l.Reason)
		}
		switch w, t := s.State.Waiting, s.State.Terminated; {
		case w != nil && !slices.Contains(beginning, w.Reason):
			note(trouble{5, fmt.Sprintf("container %s waits: %s", s.Name, reason(w.Reason, w.Message)) + last, s.Name, s.RestartCount > 0})
		case t != nil && t.ExitCode != 0:
			note(trouble{4, fmt.Sprintf("container %s ended with %d: %s", s.Name, t.ExitCode, reason(t.Reason, t.Message)), s.Name, false})
		case s.State.Running != nil && !s.Ready && s.RestartCount > 0:
			note(trouble{3, fmt.Sprintf("container %s runs and is not ready after %d restarts", s.Name, s.RestartCount) + last, s.Name, true})
		}
	}
	if p.Status.Phase == corev1.PodFailed {
		note(trouble{4, reason(cmp.Or(p.Status.Reason, "Failed"), p.Status.Message), "", false})
	}
	for _, c := range p.Status.Conditions {
		switch {
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			note(trouble{2, reason(c.Reason, c.Message), "", false})
		case c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse:
			note(trouble{1, "not ready: " + reason(c.Reason, c.Message), "", false})
		}
	}
	return worst
}

func reason(word, message string) string {
	if message == "" {
		return word
	}
	return word + ": " + line(message)
}

// warning returns the newest Warning event about an object.
func (c explainer) warning(ctx context.Context, namespace, kind, name string) string {
	if namespace == "" {
		return ""
	}
	list, err := c.as.client(eventList, namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "type=Warning,involvedObject.kind=" + kind + ",involvedObject.name=" + name, Limit: explainPods,
	})
	if err != nil {
		return ""
	}
	var newest corev1.Event
	var at time.Time
	for i := range list.Items {
		var e corev1.Event
		if runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &e) != nil {
			continue
		}
		seen := slices.MaxFunc([]time.Time{e.LastTimestamp.Time, e.EventTime.Time, e.CreationTimestamp.Time}, time.Time.Compare)
		if newest.Name == "" || seen.After(at) {
			newest, at = e, seen
		}
	}
	if newest.Name == "" {
		return ""
	}
	return fmt.Sprintf("event %s: %s", line(newest.Reason), line(c.cfg.Masker.Scrub(newest.Message)))
}

// lastLine returns the last line that a container wrote.
func (c explainer) lastLine(ctx context.Context, p *corev1.Pod, t trouble) string {
	path := "/api/v1/namespaces/" + url.PathEscape(p.Namespace) + "/pods/" + url.PathEscape(p.Name) + "/log"
	if c.as.user != "" { // the connection that can read a log is the daemon's
		return ""
	}
	b, err := c.disco.RESTClient().Get().AbsPath(path).Param("container", t.container).Param("tailLines", "1").
		Param("limitBytes", fmt.Sprint(8*maxLogLine)).Param("previous", fmt.Sprint(t.previous)).DoRaw(ctx)
	if err != nil {
		return ""
	}
	return line(c.cfg.Masker.Scrub(string(b))) // before it is cut
}
