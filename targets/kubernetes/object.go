package kubernetes

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/kustomize/kyaml/openapi"
	kyaml "sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/holdfast-dev/holdfast/internal/daemon"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// desired is one object as it should be. It is not modified once it is rendered.
type desired struct {
	id     plan.ObjectID
	u      *unstructured.Unstructured // as it is sent
	from   declared                   // its value is not used
	masked map[string]any
	after  digest.Digest // over masked
	scoped bool          // whether it is namespaced is known
	wave   int           // see WaveAnnotation
	asked  map[string]string
}

// seal computes what is derived from o.u.
func (t *Target) seal(o *desired) error {
	gvk := o.u.GroupVersionKind()
	o.id = plan.ObjectID{Kind: gvk.GroupKind().String(), Namespace: o.u.GetNamespace(), Name: o.u.GetName()}
	o.masked = t.masked(o.u.Object)
	b, err := json.Marshal(o.masked)
	if err != nil {
		return invalid("", "%s: %w", o.from.at(), err)
	}
	o.after = digest.FromBytes(b)
	return nil
}

// object checks one declared object and makes it what is sent.
func (t *Target) object(d declared, custom map[string]resource) (*desired, error) {
	at := d.at()
	u := &unstructured.Unstructured{Object: d.value}
	gvk := u.GroupVersionKind()
	bad := func(hint, format string, args ...any) error {
		return invalid(hint, "%s: %s", at, fmt.Sprintf(format, args...))
	}
	meta, ok := d.value["metadata"].(map[string]any)
	if !ok {
		return nil, bad("", "not a Kubernetes object: it has no metadata")
	}
	for _, f := range []string{"name", "namespace", "generateName"} {
		if v, there := meta[f]; there {
			if _, ok := v.(string); !ok {
				return nil, bad("quote it: YAML reads some words and numbers as other types", "%s: metadata.%s is not a string", gvk.Kind, f)
			}
		}
	}
	switch {
	case gvk.Kind == "" || gvk.Version == "":
		return nil, bad("", "the object has no apiVersion or no kind")
	case u.GetGenerateName() != "":
		return nil, bad("give the object a name", "%s: generateName makes another object each time", gvk.Kind)
	case u.GetName() == "":
		return nil, bad("", "%s without a name", gvk.Kind)
	case strings.ContainsAny(u.GetName()+u.GetNamespace(), "/%") || u.GetName() == "." || u.GetName() == "..":
		return nil, bad("", "%s: the name %q is not valid", gvk.Kind, u.GetName())
	case gvk.Group == "kustomize.config.k8s.io":
		return nil, bad("use kustomize: instead of manifests:", "a %s is not something to apply", gvk.Kind)
	case u.GetUID() != "" || u.GetResourceVersion() != "" || u.GetDeletionTimestamp() != nil:
		return nil, bad("remove metadata.uid, resourceVersion and deletionTimestamp", "%s/%s is a copy of a live object", gvk.Kind, u.GetName())
	}
	asks, err := asked(u)
	if err != nil {
		return nil, bad("", "%s/%s: %v", gvk.Kind, u.GetName(), err)
	}
	if key := daemon.Mark(meta, asks); key != "" { // before the real marks are written
		return nil, fault.New(fault.Denied, opRender, "remove it", "%s: %s/%s: %s is Holdfast's own", at, gvk.Kind, u.GetName(), key)
	}
	if _, ok := d.value["status"]; ok {
		if len(d.value) == 4 && gvk.Kind != "Namespace" && gvk.Kind != "ServiceAccount" {
			return nil, bad("declare a spec", "%s/%s declares a status only", gvk.Kind, u.GetName())
		}
		delete(d.value, "status")
	}
	for _, f := range []string{"managedFields", "creationTimestamp", "generation", "selfLink"} {
		delete(meta, f)
	}
	if err := t.mark(u); err != nil {
		return nil, bad("", "%s/%s: %v", gvk.Kind, u.GetName(), err)
	}
	if err := t.secret(u); err != nil {
		return nil, bad("", "Secret/%s: %v", u.GetName(), err)
	}
	o := &desired{u: u, from: d, wave: wave(u), asked: asks}
	namespaced, known := openapi.IsNamespaceScoped(kyaml.TypeMeta{APIVersion: u.GetAPIVersion(), Kind: u.GetKind()})
	if r, ok := custom[gvk.GroupKind().String()]; ok && !known {
		namespaced, known = r.namespaced, true
	}
	if known {
		return o, t.setScope(o, namespaced)
	}
	return o, t.admit(o)
}

// mark writes the owner mark, and drops what would carry a copy of a secret.
func (t *Target) mark(u *unstructured.Unstructured) error {
	for field, add := range map[string][2]string{"annotations": {OwnerAnnotation, t.owner}, "labels": {ManagedLabel, "true"}} {
		m, _, err := unstructured.NestedMap(u.Object, "metadata", field)
		if err != nil {
			return err
		}
		if m == nil {
			m = map[string]any{}
		}
		for k, v := range m {
			if _, ok := v.(string); !ok {
				return fmt.Errorf("metadata.%s: %s is not a string", field, k)
			}
		}
		delete(m, lastApplied)
		m[add[0]] = add[1]
		u.Object["metadata"].(map[string]any)[field] = m
	}
	return nil
}

func isSecret(m map[string]any) bool { return m["kind"] == "Secret" && m["apiVersion"] == "v1" }

// secret registers the values of a Secret for scrubbing, and turns stringData,
// which the API server never stores, into data.
func (t *Target) secret(u *unstructured.Unstructured) error {
	if !isSecret(u.Object) {
		return nil
	}
	data, _, err := unstructured.NestedMap(u.Object, "data")
	if err != nil {
		return fmt.Errorf("data is not a map")
	}
	plain, _, err := unstructured.NestedMap(u.Object, "stringData")
	if err != nil {
		return fmt.Errorf("stringData is not a map")
	}
	if data == nil {
		data = map[string]any{}
	}
	for k, v := range plain {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("stringData: %s is not a string", k)
		}
		data[k] = base64.StdEncoding.EncodeToString([]byte(s))
	}
	values := make([]string, 0, len(data))
	for k, v := range data {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("data: %s is not a string", k)
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return fmt.Errorf("data: %s is not base64", k)
		}
		values = append(values, string(b))
	}
	t.c.cfg.Masker.Register(values...)
	delete(u.Object, "stringData")
	if len(data) > 0 {
		u.Object["data"] = data
	}
	return nil
}

// masked returns a deep copy of m in which no secret is left.
func (t *Target) masked(m map[string]any) map[string]any {
	out := (&unstructured.Unstructured{Object: m}).DeepCopy().Object
	meta, _ := out["metadata"].(map[string]any)
	if notes, _ := meta["annotations"].(map[string]any); notes != nil {
		delete(notes, lastApplied)
	}
	if !isSecret(out) {
		return out
	}
	for _, field := range []string{"data", "stringData"} {
		values, _ := out[field].(map[string]any)
		for k, v := range values {
			s := fmt.Sprint(v)
			if b, err := base64.StdEncoding.DecodeString(s); err == nil && field == "data" {
				s = string(b)
			}
			values[k] = t.c.cfg.Masker.Value(s)
		}
	}
	return out
}

// setScope gives o its namespace once it is known whether it has one, and
// checks that the stack may have it.
func (t *Target) setScope(o *desired, namespaced bool) error {
	o.scoped = true
	switch {
	case namespaced && o.u.GetNamespace() == "":
		o.u.SetNamespace(t.spec.Namespace)
	case !namespaced && o.u.GetNamespace() != "":
		o.u.SetNamespace("")
	}
	if err := t.seal(o); err != nil {
		return err
	}
	return t.admit(o)
}

// admit refuses what touches Holdfast itself, and what the operator did not allow.
func (t *Target) admit(o *desired) error {
	if o.id == (plan.ObjectID{}) {
		if err := t.seal(o); err != nil {
			return err
		}
	}
	deny := func(hint, format string, args ...any) error {
		return fault.New(fault.Denied, opRender, hint, "%s: %s: %s", o.from.at(), o.id, fmt.Sprintf(format, args...))
	}
	if hint, why := t.touches(o); why != "" {
		return deny(hint, "%s", why)
	}
	if hint, why := t.outside(o.id, o.scoped && o.id.Namespace == ""); why != "" {
		return deny(hint, "%s", why)
	}
	return nil
}

// outside says why the operator does not let the stack have id, and what to do
// about it, or "".
// cluster says that the kind is known to be cluster-scoped.
func (t *Target) outside(id plan.ObjectID, cluster bool) (hint, why string) {
	ns := id.Namespace
	add := func(what, to string) string {
		return fmt.Sprintf("have the operator add %q to the %s that this stack may have", what, to)
	}
	glob := func(patterns []string, s string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { ok, err := path.Match(p, s); return err == nil && ok })
	}
	switch {
	case cluster && !slices.Contains(t.spec.Allow.Kinds, id.Kind):
		return add(id.Kind, "kinds"), "the cluster-scoped kind " + id.Kind + " is not allowed by name"
	case !glob(t.spec.Allow.Kinds, id.Kind):
		return add(id.Kind, "kinds"), "the kind " + id.Kind + " is not allowed"
	case ns != "" && !glob(t.spec.Allow.Namespaces, ns):
		return add(ns, "namespaces"), "the namespace " + ns + " is not allowed"
	case id.Kind == "Namespace" && !glob(t.spec.Allow.Namespaces, id.Name):
		return add(id.Name, "namespaces"), "the namespace " + id.Name + " is not allowed"
	}
	return "", ""
}

// normalNumbers gives numbers the types of apimachinery: int64 or float64.
func normalNumbers(m map[string]any) (map[string]any, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, utiljson.Unmarshal(b, &out)
}

// keyed returns an HMAC-SHA-256 over parts under the cluster's key.
func (c *Cluster) keyed(purpose string, parts ...[]byte) [32]byte {
	h := hmac.New(sha256.New, c.cfg.Key)
	fmt.Fprintf(h, "%s\x00", purpose)
	for _, p := range parts {
		fmt.Fprintf(h, "%d\x00", len(p))
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

// with returns a copy of u whose metadata has the given fields as well.
func with(u *unstructured.Unstructured, fields map[string]any) *unstructured.Unstructured {
	out := maps.Clone(u.Object)
	meta := maps.Clone(u.Object["metadata"].(map[string]any))
	maps.Copy(meta, fields)
	out["metadata"] = meta
	return &unstructured.Unstructured{Object: out}
}
