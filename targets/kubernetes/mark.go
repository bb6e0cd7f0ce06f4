package kubernetes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	opMark    = "targets/kubernetes.mark"
	markLabel = "holdfast.dev/mark"
	// maxMark bounds what is read of a mark, in bytes.
	maxMark = 64 << 10
)

// Mark is how far a repository was followed, as the cluster remembers it. A
// daemon that knows less than its mark has lost its state, or was given an old one.
type Mark struct {
	Repository string    `json:"repository"`
	Commit     string    `json:"commit"`               // newest commit that was authorised
	Seen       time.Time `json:"seen,omitzero"`        // when the daemon first saw it
	Origin     string    `json:"origin,omitempty"`     // of the ledger: the name in its checkpoints
	Size       uint64    `json:"size,omitempty"`       // of the ledger, in entries
	Checkpoint string    `json:"checkpoint,omitempty"` // of the ledger, signed, at Size
}

// less reports whether m takes back something that old says.
func (m Mark) less(old Mark) bool {
	return m.Origin == old.Origin && m.Size < old.Size
}

func markName(repository string) string {
	sum := sha256.Sum256([]byte(repository))
	return "holdfast-mark-" + hex.EncodeToString(sum[:10])
}

// ReadMark returns the mark of a repository. A mark that is there and not
// authentic is no error: it was written under a key that is lost, or by somebody
// else, and even then can only make the caller stricter. Content that is no mark
// of this repository is returned as one that says nothing, not authentic. A
// failure to read is fault.Transient.
func (c *Cluster) ReadMark(ctx context.Context, repository string) (m Mark, ok, authentic bool, err error) {
	cm, err := c.client(configMaps, c.cfg.Namespace).Get(ctx, markName(repository), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Mark{}, false, false, nil
	}
	if err != nil {
		return Mark{}, false, false, c.markError("reading", err)
	}
	m, authentic = c.openMark(repository, cm)
	return m, true, authentic, nil
}

// openMark reads what a ConfigMap says about a repository.
func (c *Cluster) openMark(repository string, cm *unstructured.Unstructured) (m Mark, authentic bool) {
	content, _, _ := unstructured.NestedString(cm.Object, "data", "mark")
	mac, _, _ := unstructured.NestedString(cm.Object, "data", "mac")
	m, err := parseMark(content)
	if err != nil || m.Repository != repository {
		return Mark{Repository: repository}, false
	}
	return m, hmac.Equal([]byte(mac), []byte(c.sign("mark", content)))
}

// parseMark decodes the content of a mark, which anybody may have written.
func parseMark(content string) (m Mark, err error) {
	if len(content) > maxMark {
		return Mark{}, fmt.Errorf("the mark has %d bytes, more than %d", len(content), maxMark)
	}
	dec := json.NewDecoder(strings.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Mark{}, fmt.Errorf("the mark: %w", err)
	}
	return m, nil
}

// WriteMark makes m the mark of its repository. A mark that is not authentic, or
// that says more than m (a longer ledger of the same origin),
// is only replaced with over, which stands for a signed order; otherwise the
// error is fault.Denied. Another writer at the same time, and what the API
// server refuses, are fault.Transient; without the Lease it is fault.Waiting.
func (c *Cluster) WriteMark(ctx context.Context, m Mark, over bool) error {
	written, err := c.writing(ctx)
	if err != nil {
		return err
	}
	defer written()
	client := c.client(configMaps, c.cfg.Namespace)
	live, err := client.Get(ctx, markName(m.Repository), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err := c.createOwn(ctx, configMaps, c.markObject(m))
		return c.markError("writing", err)
	}
	if err != nil {
		return c.markError("reading", err)
	}
	if err := c.mayReplace(ctx, m, live, over); err != nil {
		return err
	}
	next := c.markObject(m)
	next.SetResourceVersion(live.GetResourceVersion())
	_, err = client.Update(ctx, next, metav1.UpdateOptions{FieldManager: c.cfg.FieldManager})
	return c.markError("writing", err)
}

// mayReplace refuses to take back what the live mark says, unless ordered.
func (c *Cluster) mayReplace(ctx context.Context, m Mark, live *unstructured.Unstructured, over bool) error {
	old, authentic := c.openMark(m.Repository, live)
	why := ""
	switch {
	case !authentic:
		why = "is not as this daemon wrote it"
	case m.less(old):
		why = fmt.Sprintf("says more: commit %s, ledger size %d", old.Commit, old.Size)
	default:
		return nil
	}
	if !over {
		return fault.New(fault.Denied, opMark, "restore the newest state directory, or sign an order to go on without it",
			"the mark of repository %s in namespace %s %s", m.Repository, c.cfg.Namespace, why)
	}
	c.cfg.Log.WarnContext(ctx, "mark replaced by order", slog.String("repository", m.Repository),
		slog.String("old", old.Commit), slog.String("new", m.Commit), slog.Bool("authentic", authentic))
	return nil
}

func (c *Cluster) markObject(m Mark) *unstructured.Unstructured {
	m.Seen = m.Seen.UTC()
	content := string(mustJSON(m))
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": markName(m.Repository), "namespace": c.cfg.Namespace,
			"labels": map[string]any{markLabel: markName(m.Repository), "app.kubernetes.io/managed-by": "holdfast"},
		},
		"data": map[string]any{"mark": content, "mac": c.sign("mark", content)},
	}}
}

func (c *Cluster) markError(doing string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	if apierrors.IsForbidden(err) {
		hint = "look at the role of Holdfast's account in its own namespace"
	}
	return fault.New(fault.Transient, opMark, hint, "%s the mark: %s", doing, c.cfg.Masker.Scrub(err.Error()))
}

// AcceptInventories signs the inventories of an environment's stacks again that
// were signed with a key that is lost, and returns how many ConfigMaps that were.
// It is for a signed order to go on with a repository without the old state
// directory, and comes before the mark is replaced: the key counts as lost only
// if the mark is there and not authentic. While the mark is, no inventory is
// signed, and what is wrong with one is somebody else's doing.
//
// When the key is lost, nothing tells an inventory of the old key from one that
// was tampered with, nor whose repository a stack was of: whatever the
// environment's inventories say is believed from then on. Whoever may write in
// Holdfast's namespace can spoil a mark as well, and so have a later order do
// this. What an inventory names is still only pruned where the owner mark and
// the managed fields on the object call it ours. Inventories of other
// environments, and content that is no inventory, stay as they are.
func (c *Cluster) AcceptInventories(ctx context.Context, environment, repository string) (int, error) {
	_, found, authentic, err := c.ReadMark(ctx, repository)
	if err != nil || !found || authentic {
		return 0, err
	}
	written, err := c.writing(ctx)
	if err != nil {
		return 0, err
	}
	defer written()
	client := c.client(configMaps, c.cfg.Namespace)
	list, err := client.List(ctx, metav1.ListOptions{LabelSelector: inventoryLabel})
	if err != nil {
		return 0, fault.New(fault.Transient, opInventory, "", "reading the inventories: %s", c.cfg.Masker.Scrub(err.Error()))
	}
	accepted := 0
	for i := range list.Items {
		cm := &list.Items[i]
		s, foreign := c.foreignShard(cm)
		if !foreign || !strings.HasPrefix(s.Owner, environment+"/") {
			continue
		}
		content, _, _ := unstructured.NestedString(cm.Object, "data", "inventory")
		if err := unstructured.SetNestedField(cm.Object, c.sign("inventory", content), "data", "mac"); err != nil {
			return accepted, fault.Wrap(fault.Internal, opInventory, "", err)
		}
		if _, err := client.Update(ctx, cm, metav1.UpdateOptions{FieldManager: c.cfg.FieldManager}); err != nil {
			return accepted, fault.New(fault.Transient, opInventory, "", "accepting the inventory: %s", c.cfg.Masker.Scrub(err.Error()))
		}
		c.cfg.Log.WarnContext(ctx, "inventory of a lost key accepted by order", slog.String("stack", s.Owner),
			slog.String("configmap", cm.GetName()), slog.Int("objects", len(s.Entries)))
		accepted++
	}
	return accepted, nil
}

// foreignShard returns the part of an inventory that cm holds, and whether its
// authentication code is another key's.
func (c *Cluster) foreignShard(cm *unstructured.Unstructured) (s shard, foreign bool) {
	content, _, _ := unstructured.NestedString(cm.Object, "data", "inventory")
	mac, _, _ := unstructured.NestedString(cm.Object, "data", "mac")
	if err := json.Unmarshal([]byte(content), &s); err != nil || hmac.Equal([]byte(mac), []byte(c.sign("inventory", content))) {
		return s, false
	}
	return s, true
}
