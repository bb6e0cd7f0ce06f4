package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Who did it. Managed fields name a client, and know whole seconds; the API server's
// audit log (audit.k8s.io/v1) names the user. The two are joined by object, time and
// field manager. Where more than one user fits nobody is named: what is not known is
// not guessed.

const (
	auditPerObject = 16    // writes that are remembered of one object
	auditObjects   = 20000 // objects of which writes are remembered
	// auditSlack is how far the clocks of API servers may be apart, and how long an
	// event of a watch may take. What was done while nobody watched has no user: too
	// many may have written meanwhile.
	auditSlack = 2 * time.Second
	// MaxAuditEvent is the largest event that is read, in bytes: request headers, which
	// stand in it, may have 1 MiB.
	MaxAuditEvent = 4 << 20
	maxAuditText  = 256 // bytes that are kept of one text
	maxAuditList  = 20  // and elements of one list
)

// auditEvent is what is read of an Event of audit.k8s.io/v1.
type auditEvent struct {
	Kind             string     `json:"kind"`
	APIVersion       string     `json:"apiVersion"`
	AuditID          string     `json:"auditID"`
	Stage            string     `json:"stage"`
	RequestURI       string     `json:"requestURI"`
	Verb             string     `json:"verb"`
	User             auditUser  `json:"user"`
	ImpersonatedUser *auditUser `json:"impersonatedUser"`
	SourceIPs        []string   `json:"sourceIPs"`
	UserAgent        string     `json:"userAgent"`
	ObjectRef        *struct {
		Resource, Namespace, Name, APIGroup, Subresource string
	} `json:"objectRef"`
	ResponseStatus *struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	StageTimestamp time.Time `json:"stageTimestamp"`
}

type auditUser struct {
	Username string   `json:"username"`
	Groups   []string `json:"groups"`
}

// auditKey names an object as the audit log does. A deletion of a collection names none.
type auditKey struct{ group, resource, namespace, name string }

// write is one write of an object.
type write struct {
	verb, manager, user string
	origin              targets.Origin
}

// Audit remembers who wrote what. It is safe for concurrent use; the environments of
// a cluster may share one. Its zero value is ready.
type Audit struct {
	mu    sync.Mutex
	m     map[auditKey][]write
	order []auditKey // as they came
}

// clip cuts what somebody else wrote.
func clip(s string) string {
	if len(s) <= maxAuditText {
		return strings.Clone(s)
	}
	return strings.ToValidUTF8(s[:maxAuditText], "") + "…"
}

func clipped(list []string) []string {
	var out []string
	for _, s := range list[:min(len(list), maxAuditList)] {
		out = append(out, clip(s))
	}
	return out
}

// Add takes one Event, or an EventList as the API server's webhook back end sends it
// (Kubernetes, "Auditing"). Events about anything but a write that was done are left
// out. It returns how many were taken.
func (a *Audit) Add(b []byte) (int, error) {
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return 0, fmt.Errorf("kubernetes: audit: %w", err)
	}
	items := list.Items
	switch list.Kind {
	case "Event":
		items = []json.RawMessage{b}
	case "EventList":
	default:
		return 0, fmt.Errorf("kubernetes: audit: a %q is no Event", list.Kind)
	}
	n := 0
	for _, raw := range items {
		var e auditEvent
		if err := json.Unmarshal(raw, &e); err != nil {
			return n, fmt.Errorf("kubernetes: audit: %w", err)
		}
		if a.add(e) {
			n++
		}
	}
	return n, nil
}

var writeVerbs = []string{"create", "update", "patch", "delete", "deletecollection"}

func (a *Audit) add(e auditEvent) bool {
	ref := e.ObjectRef
	if e.Stage != "ResponseComplete" || ref == nil || !slices.Contains(writeVerbs, e.Verb) || ref.Subresource == "status" ||
		e.ResponseStatus == nil || e.ResponseStatus.Code < 200 || e.ResponseStatus.Code > 299 {
		return false
	}
	// A client may say anything; the last address is the one that the server saw itself.
	ips := e.SourceIPs[max(0, len(e.SourceIPs)-1):]
	w := write{verb: e.Verb, user: clip(e.User.Username), origin: targets.Origin{
		Groups: clipped(e.User.Groups), SourceIPs: clipped(ips), UserAgent: clip(e.UserAgent), AuditID: clip(e.AuditID), Time: e.StageTimestamp.UTC(),
	}}
	if as := e.ImpersonatedUser; as != nil {
		w.origin.Impersonator, w.user, w.origin.Groups = w.user, clip(as.Username), clipped(as.Groups)
	}
	// What a client does not call itself, the API server takes from its User-Agent.
	w.manager, _, _ = strings.Cut(e.UserAgent, "/")
	if u, err := url.ParseRequestURI(e.RequestURI); err == nil {
		if u.Query().Has("dryRun") {
			return false
		}
		if m := u.Query().Get("fieldManager"); m != "" {
			w.manager = m
		}
	}
	w.manager = clip(w.manager)
	key := auditKey{clip(ref.APIGroup), clip(ref.Resource), clip(ref.Namespace), clip(ref.Name)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[auditKey][]write{}
	}
	if _, known := a.m[key]; !known {
		a.order = append(a.order, key)
		for len(a.m) >= auditObjects { // the object that was written first longest ago
			delete(a.m, a.order[0])
			a.order = a.order[1:]
		}
	}
	if writes := append(a.m[key], w); len(writes) > auditPerObject {
		a.m[key] = slices.Clone(writes[len(writes)-auditPerObject:])
	} else {
		a.m[key] = writes
	}
	return true
}

// writes returns the writes of an object by anybody but own, oldest first.
func (a *Audit) writes(key auditKey, own func(write) bool) []write {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := slices.Clone(a.m[key])
	collection := key
	collection.name = ""
	all = append(all, a.m[collection]...)
	all = slices.DeleteFunc(all, own)
	slices.SortStableFunc(all, func(x, y write) int { return x.origin.Time.Compare(y.origin.Time) })
	return all
}

// Attribute implements [targets.Attributor].
func (t *Target) Attribute(f targets.Finding) (targets.Finding, bool) {
	a := t.c.cfg.Audit
	if a == nil || f.User != "" {
		return f, f.User != ""
	}
	for _, r := range t.c.resourcesOf(f.ID) {
		key := auditKey{r.version.Group, r.name, f.ID.Namespace, f.ID.Name}
		if w, ok := whoDid(f, a.writes(key, t.c.own)); ok {
			f.User, f.Origin = w.user, &w.origin
			return f, true
		}
	}
	return f, false
}

// own reports whether a write was one of this process's.
func (c *Cluster) own(w write) bool {
	who := w.user
	if w.origin.Impersonator != "" {
		who = w.origin.Impersonator
	}
	return w.origin.UserAgent == c.agent && (c.cfg.ServiceAccount == "" || who == c.cfg.ServiceAccount)
}

// resourcesOf returns what the cluster calls a kind, as far as it was asked.
func (c *Cluster) resourcesOf(id plan.ObjectID) []resource {
	gk := schema.ParseGroupKind(id.Kind)
	c.resourcesMu.Lock()
	defer c.resourcesMu.Unlock()
	var out []resource
	for gvk, r := range c.resources {
		if gvk.GroupKind() == gk && !slices.ContainsFunc(out, func(o resource) bool { return o.name == r.name }) {
			out = append(out, r)
		}
	}
	return out
}

// whoDid returns the write that made f, if there is one user whom it can have been.
func whoDid(f targets.Finding, writes []write) (write, bool) {
	noticed := f.Noticed
	if noticed.IsZero() {
		noticed = f.Detected
	}
	var fit []write
	for _, w := range writes {
		at := w.origin.Time
		deletes := strings.HasPrefix(w.verb, "delete")
		switch {
		case deletes != (f.Class == targets.Missing) || at.After(noticed.Add(auditSlack)) || noticed.Sub(at) > 2*auditSlack:
		case deletes:
			fit = append(fit, w)
		case f.Actor != "" && !f.Since.IsZero():
			// Managed fields say who and, in whole seconds, when.
			if w.manager == f.Actor && at.After(f.Since.Add(-auditSlack)) && at.Before(f.Since.Add(time.Second+auditSlack)) {
				fit = append(fit, w)
			}
		default:
			fit = append(fit, w)
		}
	}
	if len(fit) == 0 || slices.ContainsFunc(fit, func(w write) bool { return w.user != fit[0].user }) {
		return write{}, false
	}
	return fit[len(fit)-1], true
}

// auditLines splits a log of one Event a line. It returns what is left of the last
// line, which is not complete yet.
func auditLines(b []byte) (lines [][]byte, rest []byte) {
	for {
		line, more, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return lines, b
		}
		if len(bytes.TrimSpace(line)) > 0 {
			lines = append(lines, line)
		}
		b = more
	}
}
