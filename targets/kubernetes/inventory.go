package kubernetes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const (
	opInventory    = "targets/kubernetes.inventory"
	inventoryLabel = "holdfast.dev/inventory"
	shardEntries   = 2000
	maxShards      = 64
)

var configMaps = resource{name: "configmaps", version: schema.GroupVersion{Version: "v1"}, namespaced: true}

// entry is one object in an inventory.
type entry struct {
	Group     string `json:"g,omitempty"`
	Version   string `json:"v"`
	Kind      string `json:"k"`
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"n"`
	// Ran is the digest of a Job that the cluster deletes when it is done.
	Ran digest.Digest `json:"d,omitempty"`
}

func (e entry) id() plan.ObjectID {
	return plan.ObjectID{Kind: e.gvk().GroupKind().String(), Namespace: e.Namespace, Name: e.Name}
}

func (e entry) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: e.Group, Version: e.Version, Kind: e.Kind}
}

func (o *desired) entry() entry {
	gvk := o.u.GroupVersionKind()
	e := entry{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: o.id.Namespace, Name: o.id.Name}
	if o.expires() {
		e.Ran = o.after
	}
	return e
}

// shard is what one ConfigMap of an inventory holds.
type shard struct {
	Owner   string  `json:"owner"`
	Index   int     `json:"index"`
	Count   int     `json:"count"` // how many shards there are
	Entries []entry `json:"entries"`
}

// inventory is what a stack owns, as the cluster remembers it.
type inventory struct {
	entries map[plan.ObjectID]entry
	live    []*unstructured.Unstructured // the ConfigMaps, by index
}

func (t *Target) inventoryName() string {
	sum := sha256.Sum256([]byte(t.owner))
	return "holdfast-inventory-" + hex.EncodeToString(sum[:10])
}

func (t *Target) sign(content string) string { return t.c.sign("inventory", content) }

// sign returns the authentication code of what Holdfast keeps in the cluster.
func (c *Cluster) sign(purpose, content string) string {
	h := hmac.New(sha256.New, c.cfg.Key)
	h.Write([]byte(purpose + "\x00" + content))
	return hex.EncodeToString(h.Sum(nil))
}

// preloadFor is how long inventories that were read together are good for.
const preloadFor = time.Minute

// preloaded are the inventories of all stacks as they were when the first one was read:
// a daemon that starts needs all of them, and to search for each would cost the API
// server the square of their number. Each is given out once.
type preloaded struct {
	mu   sync.Mutex
	at   time.Time // zero: nothing was read yet
	maps map[string][]*unstructured.Unstructured
	used map[string]bool
}

// inventoryOf returns the ConfigMaps of one inventory.
func (c *Cluster) inventoryOf(ctx context.Context, name string) ([]*unstructured.Unstructured, error) {
	if items, ok := c.preloaded.take(ctx, c, name); ok {
		return items, nil
	}
	return c.listInventories(ctx, inventoryLabel+"="+name)
}

// take returns an inventory that was read together with all others. ok is false when
// it has to be read by itself.
func (p *preloaded) take(ctx context.Context, c *Cluster, name string) (items []*unstructured.Unstructured, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() {
		all, err := c.listInventories(ctx, inventoryLabel)
		if err != nil {
			return nil, false // whoever reads one by itself says why
		}
		p.at, p.maps, p.used = time.Now(), map[string][]*unstructured.Unstructured{}, map[string]bool{}
		for _, cm := range all {
			of := cm.GetLabels()[inventoryLabel]
			p.maps[of] = append(p.maps[of], cm)
		}
	}
	if time.Since(p.at) > preloadFor {
		p.maps, p.used = nil, nil
		return nil, false
	}
	if p.used[name] {
		return nil, false
	}
	p.used[name] = true
	items = p.maps[name]
	delete(p.maps, name)
	return items, true
}

func (c *Cluster) listInventories(ctx context.Context, selector string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	o := metav1.ListOptions{LabelSelector: selector, Limit: listPage}
	for {
		page, err := c.client(configMaps, c.cfg.Namespace).List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			out = append(out, &page.Items[i])
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return out, nil
		}
	}
}

// readInventory returns what the stack owns. An inventory that somebody changed
// or took a part of is an error: nothing may be pruned by it.
func (t *Target) readInventory(ctx context.Context) (*inventory, error) {
	name := t.inventoryName()
	items, err := t.c.inventoryOf(ctx, name)
	if err != nil {
		hint := "check that the API server can be reached"
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			hint = "look at the credential of Holdfast's account, and at its role in its own namespace"
		}
		return nil, fault.New(fault.Transient, opInventory, hint, "reading the inventory: %s", t.c.cfg.Masker.Scrub(err.Error()))
	}
	inv := &inventory{entries: map[plan.ObjectID]entry{}}
	tampered := func(format string, args ...any) error {
		return fault.New(fault.Denied, opInventory,
			fmt.Sprintf("find out who changed it; deleting the ConfigMaps labelled %s=%s starts a new inventory, and nothing is pruned by the old one", inventoryLabel, name),
			"the inventory in namespace %s is not as Holdfast wrote it: %s", t.c.cfg.Namespace, fmt.Sprintf(format, args...))
	}
	found := map[int]*unstructured.Unstructured{}
	count := 0
	for _, cm := range items {
		content, _, _ := unstructured.NestedString(cm.Object, "data", "inventory")
		mac, _, _ := unstructured.NestedString(cm.Object, "data", "mac")
		if !hmac.Equal([]byte(mac), []byte(t.sign(content))) {
			return nil, tampered("%s has a wrong authentication code", cm.GetName())
		}
		var s shard
		if err := json.Unmarshal([]byte(content), &s); err != nil || s.Owner != t.owner || cm.GetName() != name+"-"+strconv.Itoa(s.Index) {
			return nil, tampered("%s is about something else", cm.GetName())
		}
		found[s.Index] = cm
		count = max(count, s.Count)
		for _, e := range s.Entries {
			inv.entries[e.id()] = e
		}
	}
	// Shards are written from the last to the first and removed after the first
	// says so, so that no crash leaves a gap.
	for i := range count {
		if found[i] == nil {
			return nil, tampered("part %d of %d is missing", i+1, count)
		}
		inv.live = append(inv.live, found[i])
	}
	t.setOwned(inv.entries)
	return inv, nil
}

// writeInventory makes entries the inventory. It writes nothing that is there already.
func (t *Target) writeInventory(ctx context.Context, inv *inventory, entries map[plan.ObjectID]entry) error {
	ids := make([]plan.ObjectID, 0, len(entries))
	for id := range entries {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, plan.ObjectID.Compare)
	if err := t.c.Holding(); err != nil {
		return err
	}
	count := max(1, (len(ids)+shardEntries-1)/shardEntries)
	if count > maxShards {
		return fault.New(fault.Invalid, opInventory, "split the stack", "the stack owns %d objects", len(ids))
	}
	live := make([]*unstructured.Unstructured, count)
	for i := count - 1; i >= 0; i-- {
		s := shard{Owner: t.owner, Index: i, Count: count, Entries: []entry{}}
		for _, id := range ids[i*shardEntries : min(len(ids), (i+1)*shardEntries)] {
			s.Entries = append(s.Entries, entries[id])
		}
		var old *unstructured.Unstructured
		if i < len(inv.live) {
			old = inv.live[i]
		}
		var err error
		if live[i], err = t.writeShard(ctx, s, old); err != nil {
			return fault.New(fault.Transient, opInventory, "", "writing the inventory: %s", t.c.cfg.Masker.Scrub(err.Error()))
		}
	}
	for i := count; i < len(inv.live); i++ {
		cm := inv.live[i]
		id := plan.ObjectID{Kind: "ConfigMap", Namespace: cm.GetNamespace(), Name: cm.GetName()}
		if err := t.c.self.remove(ctx, configMaps, id, string(cm.GetUID()), metav1.DeletePropagationBackground); err != nil && !apierrors.IsNotFound(err) {
			return fault.New(fault.Transient, opInventory, "", "shrinking the inventory: %s", t.c.cfg.Masker.Scrub(err.Error()))
		}
	}
	inv.live, inv.entries = live, entries
	t.setOwned(entries)
	return nil
}

func (t *Target) writeShard(ctx context.Context, s shard, old *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	content := string(mustJSON(s))
	if old != nil {
		if have, _, _ := unstructured.NestedString(old.Object, "data", "inventory"); have == content {
			return old, nil
		}
	}
	cm := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": t.inventoryName() + "-" + strconv.Itoa(s.Index), "namespace": t.c.cfg.Namespace,
			"labels":      map[string]any{inventoryLabel: t.inventoryName(), "app.kubernetes.io/managed-by": "holdfast"},
			"annotations": map[string]any{OwnerAnnotation: t.owner},
		},
		"data": map[string]any{"inventory": content, "mac": t.sign(content)},
	}}
	client := t.c.client(configMaps, t.c.cfg.Namespace)
	if old != nil {
		cm.SetResourceVersion(old.GetResourceVersion()) // two writers of one inventory must not overwrite each other
		return client.Update(ctx, cm, metav1.UpdateOptions{FieldManager: t.c.cfg.FieldManager})
	}
	return t.c.createOwn(ctx, configMaps, cm)
}

// createOwn creates an object in Holdfast's own namespace, and that where it is missing.
func (c *Cluster) createOwn(ctx context.Context, r resource, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	client, o := c.client(r, c.cfg.Namespace), metav1.CreateOptions{FieldManager: c.cfg.FieldManager}
	out, err := client.Create(ctx, u, o)
	if !apierrors.IsNotFound(err) {
		return out, err
	}
	ns := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": c.cfg.Namespace},
	}}
	_, err = c.dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(ctx, ns, o)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	return client.Create(ctx, u, o)
}

func (t *Target) setOwned(entries map[plan.ObjectID]entry) {
	owned := make(map[plan.ObjectID]bool, len(entries))
	ran := map[plan.ObjectID]digest.Digest{}
	for id, e := range entries {
		owned[id] = true
		if e.Ran != "" {
			ran[id] = e.Ran
		}
	}
	t.ownedMu.Lock()
	t.owned, t.ran, t.entries = owned, ran, entries
	t.ownedMu.Unlock()
}

// says reports whether the inventory, as it was read or written last, says wanted.
func (t *Target) says(wanted map[plan.ObjectID]entry) bool {
	t.ownedMu.Lock()
	defer t.ownedMu.Unlock()
	return t.entries != nil && maps.Equal(t.entries, wanted)
}

// ownedNow returns what the inventory said last, and reads it once if need be.
func (t *Target) ownedNow(ctx context.Context) (map[plan.ObjectID]bool, error) {
	t.ownedMu.Lock()
	owned := t.owned
	t.ownedMu.Unlock()
	if owned != nil {
		return owned, nil
	}
	if _, err := t.readInventory(ctx); err != nil {
		return nil, err
	}
	t.ownedMu.Lock()
	defer t.ownedMu.Unlock()
	return t.owned, nil
}
