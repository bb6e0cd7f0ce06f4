package terraform

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/daemon"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Protected is what of the daemon no stack may touch. The configuration is judged
// by what it writes out, before the tool starts, and each plan by its values.
// What a Helm chart holds is in neither: of a release only its namespace, its
// values and its post-renderer are judged.
type Protected struct {
	// Namespaces are Holdfast's own in the clusters that a stack could reach.
	Namespaces []string
	// Users are who Holdfast is to those clusters, "system:serviceaccount:NS:NAME".
	Users []string
	// Paths are absolute: the state directory, the configuration, credentials.
	Paths []string
}

func (p Protected) validate() error {
	for _, path := range p.Paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			return fmt.Errorf("the protected path %q is not a clean absolute path", path)
		}
	}
	if slices.Contains(p.Namespaces, "") {
		return fmt.Errorf("a protected namespace has no name")
	}
	return nil
}

const leaveAlone = "no stack may touch what Holdfast itself runs with"

// touches says how o would touch the daemon in any cluster, or "".
func (p Protected) touches(o daemon.Object) (hint, why string) {
	for _, ns := range p.Namespaces {
		for _, user := range append([]string{""}, p.Users...) {
			if hint, why = (daemon.Identity{Namespace: ns, User: user}).Touches(o); why != "" {
				return hint, why
			}
		}
	}
	return "", ""
}

// around returns what of the daemon is at path, below it or above it; "" if nothing is.
func (p Protected) around(path string) string {
	for _, own := range p.Paths {
		if own == path || strings.HasPrefix(own, path+"/") || strings.HasPrefix(path, own+"/") {
			return own
		}
	}
	return ""
}

// named returns the protected path that a text names, or "". Ways around the
// plain spelling are followed as far as a text alone can tell them.
func (p Protected) named(text string) string {
	for _, path := range p.Paths {
		if mentions(text, path) || mentions(filepath.Clean(text), path) {
			return path
		}
		// From an unknown folder enough steps up lead to the root.
		if up := strings.TrimLeft(filepath.Clean(text), "./"); strings.HasPrefix(text, "..") && mentions("/"+up, path) {
			return path
		}
	}
	return ""
}

// mentions reports whether text has path in it, as a whole name.
func mentions(text, path string) bool {
	for from := 0; ; {
		i := strings.Index(text[from:], path)
		if i < 0 {
			return false
		}
		from += i + len(path)
		if from == len(text) || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", rune(text[from])) {
			return true
		}
	}
}

// fileWriters are resources that write a file on the daemon's machine, with the
// attribute that names it.
var fileWriters = map[string]string{"local_file": "filename", "local_sensitive_file": "filename"}

// clusterFamilies are the prefixes of resource types that write to a cluster.
var clusterFamilies = []string{"kubernetes_", "kubectl_", "helm_", "k8s_", "kustomization_", "rancher2_"}

func writesToCluster(kind string) bool {
	return slices.ContainsFunc(clusterFamilies, func(prefix string) bool { return strings.HasPrefix(kind, prefix) })
}

// protect judges the JSON of a plan, before anything in it is masked.
func (t *Target) protect(raw []byte, cfg *configuration) error {
	var p struct {
		Resources []resourceChange `json:"resource_changes"`
		Prior     struct {
			Values struct {
				Root dataModule `json:"root_module"`
			} `json:"values"`
		} `json:"prior_state"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("the plan's JSON: %w", err)
	}
	for _, rc := range p.Resources {
		at, _ := cfg.locate(rc.ModuleAddress, rc.Mode, rc.Type, rc.Name)
		w := written{p: t.cfg.Protected, kind: rc.Type, address: rc.Address, at: at}
		actions := rc.Change.Actions
		idle := len(actions) == 0 || slices.Equal(actions, []string{"no-op"}) || slices.Equal(actions, []string{"forget"})
		if idle && rc.Change.Importing == nil {
			continue
		}
		if err := w.judge(object(rc.Change.Before), nil); err != nil {
			return err
		}
		if err := w.judge(object(rc.Change.After), object(rc.Change.Unknown)); err != nil {
			return err
		}
	}
	return p.Prior.Values.Root.judge(t.cfg.Protected)
}

// dataModule is the part of a state that says what was read.
type dataModule struct {
	Resources []struct {
		Address string         `json:"address"`
		Mode    string         `json:"mode"`
		Type    string         `json:"type"`
		Values  map[string]any `json:"values"`
	} `json:"resources"`
	Children []dataModule `json:"child_modules"`
}

// judge refuses a plan that has read what is Holdfast's own.
func (m dataModule) judge(p Protected) error {
	for _, r := range m.Resources {
		if r.Mode != "data" {
			continue
		}
		if err := (written{p: p, kind: r.Type, address: r.Address}).judge(r.Values, nil); err != nil {
			return err
		}
	}
	for _, c := range m.Children {
		if err := c.judge(p); err != nil {
			return err
		}
	}
	return nil
}

// written is one resource as a configuration or a plan has it.
type written struct {
	p                 Protected
	kind, address, at string
}

func (w written) denied(hint, format string, args ...any) error {
	where := w.address
	if w.at != "" {
		where = w.at + ": " + where
	}
	return fault.New(fault.Denied, "targets/terraform.protect", hint, "%s: %s", where, fmt.Sprintf(format, args...))
}

// judge refuses values that touch the daemon, and values of which nobody can
// say before the apply whether they do. unknown has true where a value is not
// known yet.
func (w written) judge(values, unknown map[string]any) error {
	if values == nil {
		return nil
	}
	if err := w.judgePaths(values, unknown); err != nil {
		return err
	}
	if len(w.p.Namespaces) == 0 || !writesToCluster(w.kind) {
		return nil
	}
	if w.kind == "helm_release" {
		return w.judgeRelease(values, unknown)
	}
	if ns, _ := values["namespace"].(string); ns != "" {
		if err := w.judgeObject(daemon.Object{Namespace: ns, Live: true}); err != nil {
			return err
		}
	}
	for _, name := range []string{"namespace", "override_namespace"} {
		if unknown[name] == true && values[name] == nil && w.kind != "kubectl_manifest" {
			return w.later(name)
		}
	}
	return w.judgeContent(values, unknown)
}

const hintKnown = "use values that are known before the apply, or deploy it with a kubernetes stack"

func (w written) later(what string) error {
	return w.denied(hintKnown, "%s is known only after the apply, so nobody can say whether it touches Holdfast", what)
}

func (w written) judgePaths(values, unknown map[string]any) error {
	if len(w.p.Paths) == 0 {
		return nil
	}
	if attr, ok := fileWriters[w.kind]; ok && unknown[attr] == true {
		return w.later(attr)
	}
	for _, text := range leaves(values, nil) {
		if path := w.p.named(text); path != "" {
			return w.denied(leaveAlone, "it names %s, which is Holdfast's own", path)
		}
	}
	return nil
}

func (w written) judgeRelease(values, unknown map[string]any) error {
	for _, name := range []string{"namespace", "values", "set", "set_list", "set_sensitive", "set_wo", "postrender"} {
		if anyTrue(unknown[name]) {
			return w.later(name)
		}
	}
	if len(array(values["postrender"])) > 0 || len(object(values["postrender"])) > 0 {
		return w.denied("remove it, and deploy the chart with a kubernetes stack", "its post-renderer is a program that would run beside the daemon")
	}
	ns, _ := values["namespace"].(string)
	return w.judgeObject(daemon.Object{Namespace: ns, Live: true})
}

func (w written) judgeObject(o daemon.Object) error {
	if hint, why := w.p.touches(o); why != "" {
		return w.denied(hint, "%s", why)
	}
	return nil
}

// texts are the attributes that hold a whole object as YAML or JSON, by type.
var texts = map[string]string{
	"kubectl_manifest": "yaml_body", "k8s_manifest": "content", "kustomization_resource": "manifest",
}

// judgeContent judges the Kubernetes object that a resource stands for.
func (w written) judgeContent(values, unknown map[string]any) error {
	var content, marks map[string]any
	if attr, ok := texts[w.kind]; ok {
		if unknown[attr] == true {
			return w.later(attr)
		}
		text, _ := values[attr].(string)
		if err := yaml.Unmarshal([]byte(text), &content); err != nil {
			return w.denied("correct it", "%s is not the manifest of one object", attr)
		}
	} else if w.kind == "kubernetes_manifest" {
		if unknown["manifest"] == true {
			return w.later("manifest")
		}
		content, marks = object(values["manifest"]), object(unknown["manifest"])
	} else {
		content, marks = object(asObject(values)), object(asObject(unknown))
		gk := typeKind(w.kind, values)
		content["apiVersion"], content["kind"] = gk.Group+"/v1", gk.Kind
	}
	if content == nil {
		return nil
	}
	o := contentObject(content)
	if ns, _ := values["override_namespace"].(string); ns != "" {
		o.Namespace = ns
	}
	if what := undecided(o, marks); what != "" {
		return w.later(what)
	}
	return w.judgeObject(o)
}

// contentObject returns a manifest as the rules see it.
func contentObject(content map[string]any) daemon.Object {
	meta := object(content["metadata"])
	o := daemon.Object{Content: content}
	o.Kind, _ = content["kind"].(string)
	version, _ := content["apiVersion"].(string)
	if group, _, ok := strings.Cut(version, "/"); ok {
		o.Group = group
	}
	o.Namespace, _ = meta["namespace"].(string)
	o.Name, _ = meta["name"].(string)
	return o
}

// decisive are the fields on which the rules about permissions and admission depend.
var decisive = []string{
	"name", "namespace", "kind", "resourceNames", "resources", "apiGroups", "policyName", "group", "matchLabels", "matchExpressions",
	"key", "operator", "values", "service", "clientConfig", "namespaceSelector", "objectSelector", "subjects", "roleRef", "rules", "webhooks", "spec",
}

// undecided returns a field that is not known yet and that decides whether o
// touches the daemon, or "".
func undecided(o daemon.Object, unknown map[string]any) string {
	for _, name := range []string{"apiVersion", "kind", "metadata"} {
		if unknown[name] == true {
			return name
		}
	}
	meta := object(unknown["metadata"])
	for _, name := range []string{"namespace", "labels", "annotations"} {
		if anyTrue(meta[name]) {
			return "metadata." + name
		}
	}
	touchy := slices.Contains([]string{"rbac.authorization.k8s.io", "admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"}, o.Group) ||
		o.Kind == "Namespace" || o.Kind == "PersistentVolume"
	if !touchy {
		return ""
	}
	if meta["name"] == true {
		return "metadata.name"
	}
	for _, name := range sortedKeys(unknown) {
		if name == "metadata" {
			continue
		}
		if what := undecidedIn(unknown[name], name); what != "" {
			return what
		}
	}
	return ""
}

func undecidedIn(unknown any, name string) string {
	switch u := unknown.(type) {
	case bool:
		if u && slices.Contains(decisive, name) {
			return name
		}
	case []any:
		for _, e := range u {
			if what := undecidedIn(e, name); what != "" {
				return what
			}
		}
	case map[string]any:
		for _, k := range sortedKeys(u) {
			if what := undecidedIn(u[k], k); what != "" {
				return name + "." + what
			}
		}
	}
	return ""
}

// typeKinds are the typed resources of the Kubernetes provider whose kinds the
// rules know; the provider's names are those of the API in snake case.
var typeKinds = map[string]schema.GroupKind{
	"namespace":                        {Kind: "Namespace"},
	"persistent_volume":                {Kind: "PersistentVolume"},
	"role":                             {Group: "rbac.authorization.k8s.io", Kind: "Role"},
	"role_binding":                     {Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"},
	"cluster_role":                     {Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"},
	"cluster_role_binding":             {Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"},
	"mutating_webhook_configuration":   {Group: "admissionregistration.k8s.io", Kind: "MutatingWebhookConfiguration"},
	"validating_webhook_configuration": {Group: "admissionregistration.k8s.io", Kind: "ValidatingWebhookConfiguration"},
	"validating_admission_policy":      {Group: "admissionregistration.k8s.io", Kind: "ValidatingAdmissionPolicy"},
	"api_service":                      {Group: "apiregistration.k8s.io", Kind: "APIService"},
}

// typeKind returns the kind of object that a typed resource stands for.
func typeKind(kind string, values map[string]any) schema.GroupKind {
	if k, ok := values["kind"].(string); ok { // kubernetes_labels and the like name it
		version, _ := values["api_version"].(string)
		group, _, found := strings.Cut(version, "/")
		if !found {
			group = ""
		}
		return schema.GroupKind{Group: group, Kind: k}
	}
	name := strings.TrimPrefix(kind, "kubernetes_")
	if i := strings.LastIndex(name, "_v"); i > 0 {
		name = name[:i]
	}
	if gk, ok := typeKinds[name]; ok {
		return gk
	}
	return schema.GroupKind{Kind: name}
}

var (
	// plurals are the blocks that the API calls otherwise.
	plurals = map[string]string{"subject": "subjects", "rule": "rules", "webhook": "webhooks", "resource_rule": "resourceRules"}
	// singles are the blocks of which there is one: a list of one object in a plan.
	singles = []string{
		"metadata", "spec", "template", "job_template", "role_ref", "aggregation_rule", "client_config", "service", "namespace_selector",
		"object_selector", "claim_ref", "match_constraints",
	}
)

// asObject turns the values of a typed resource into the shape of the API.
func asObject(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = asObject(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			name, e := camel(k), asObject(e)
			if p, ok := plurals[k]; ok {
				name = p
				if _, one := e.(map[string]any); one { // JSON syntax may write one block without a list
					e = []any{e}
				}
			}
			if list, ok := e.([]any); ok && len(list) == 1 && slices.Contains(singles, k) {
				e = list[0]
			}
			if k == "labels" || k == "annotations" || k == "match_labels" { // their keys are data
				e = v[k]
			}
			out[name] = e
		}
		return out
	}
	return v
}

// camel turns "resource_names" into "resourceNames".
func camel(s string) string {
	words := strings.Split(s, "_")
	for i, w := range words[1:] {
		if w != "" {
			words[i+1] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "")
}

// protectBlock judges a resource or data source by what it writes out.
func (m *module) protectBlock(b *hcl.Block) error {
	if len(m.protected.Namespaces) == 0 || !writesToCluster(b.Labels[0]) {
		return nil
	}
	address := strings.Join(b.Labels, ".")
	if b.Type == "data" {
		address = "data." + address
	}
	if m.address != "" {
		address = m.address + "." + address
	}
	return written{p: m.protected, kind: b.Labels[0], address: address, at: at(b.DefRange)}.judge(writtenOut(b.Body), nil)
}

// writtenOut returns the values in a body that are plain, in the shape of a
// plan. What is computed is left out: the plan will show it.
func writtenOut(body hcl.Body) map[string]any {
	out := map[string]any{}
	if native, ok := body.(*hclsyntax.Body); ok {
		for name, a := range native.Attributes {
			if v := plain(a.Expr); v != nil {
				out[name] = v
			}
		}
		for _, b := range native.Blocks {
			list, _ := out[b.Type].([]any)
			out[b.Type] = append(list, writtenOut(b.Body))
		}
		return out
	}
	attrs, _ := body.JustAttributes() // in JSON a block looks like an attribute
	for name, a := range attrs {
		if v := plain(a.Expr); v != nil {
			out[name] = v
		}
	}
	return out
}

// plain returns the value of an expression as far as it is written out, or nil.
func plain(e hcl.Expression) any {
	if pairs, diags := hcl.ExprMap(e); !diags.HasErrors() {
		out := map[string]any{}
		for _, p := range pairs {
			name := hcl.ExprAsKeyword(p.Key)
			if name == "" {
				name = literal(p.Key)
			}
			if v := plain(p.Value); v != nil {
				out[name] = v
			}
		}
		return out
	}
	if list, diags := hcl.ExprList(e); !diags.HasErrors() {
		out := make([]any, 0, len(list))
		for _, e := range list {
			if v := plain(e); v != nil {
				out = append(out, v)
			}
		}
		return out
	}
	v, diags := e.Value(nil)
	if diags.HasErrors() || v.IsNull() || !v.IsWhollyKnown() || v.Type() == cty.DynamicPseudoType {
		return nil
	}
	b, err := ctyjson.Marshal(v, v.Type())
	if err != nil {
		return nil
	}
	var out any
	if json.Unmarshal(b, &out) != nil {
		return nil
	}
	return out
}

// protectText refuses a text of the configuration that names a protected path.
func (m *module) protectText(text, file string, line int) error {
	if path := m.protected.named(text); path != "" {
		return denied(leaveAlone, "%s:%d: it names %s, which is Holdfast's own", file, line, path)
	}
	return nil
}
