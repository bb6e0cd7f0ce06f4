package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// A generated ValidatingAdmissionPolicy keeps others from writing managed objects, for
// those who want drift prevented and not only repaired. It is no replacement for
// watching: an administrator can remove it, and what was there before it stays.

// AdmissionAction says what the API server does with a write that the policy forbids.
type AdmissionAction string

// The actions.
const (
	AdmissionDeny  AdmissionAction = "deny"
	AdmissionWarn  AdmissionAction = "warn"  // let it through, and tell whoever wrote
	AdmissionAudit AdmissionAction = "audit" // let it through, and note it in the audit log
)

// AdmissionConfig says what to generate.
type AdmissionConfig struct {
	Name   string // of the policy, after "holdfast-"
	Action AdmissionAction
	// Users may write: Holdfast's own, the accounts that stacks are impersonated as.
	// "system:serviceaccount:{namespace}:NAME" is NAME in the object's own namespace.
	Users []string
	// Namespaces bound the policy; empty: everything, cluster-scoped objects too.
	Namespaces []string
}

// clusterControllers are the parts of Kubernetes that write objects of others in the
// course of their work (controller-manager, "--use-service-account-credentials").
var clusterControllers = []string{
	"attachdetach-controller", "clusterrole-aggregation-controller", "cronjob-controller", "daemon-set-controller", "deployment-controller",
	"disruption-controller", "endpoint-controller", "endpointslice-controller", "expand-controller", "generic-garbage-collector",
	"endpointslicemirroring-controller", "horizontal-pod-autoscaler", "job-controller", "namespace-controller", "node-controller", "persistent-volume-binder", "pod-garbage-collector", "pv-protection-controller",
	"pvc-protection-controller", "replicaset-controller", "replication-controller", "resourcequota-controller", "root-ca-cert-publisher",
	"service-account-controller", "service-controller", "statefulset-controller", "token-cleaner", "ttl-after-finished-controller",
}

// AdmissionPolicy returns a ValidatingAdmissionPolicy and its binding as YAML. Whoever is
// not among the users may still write what is no part of a declaration: subresources
// (status, scale), and metadata but for Holdfast's marks, so that controllers can do
// their work and a person can break the glass.
func AdmissionPolicy(conf AdmissionConfig) ([]byte, error) {
	action, ok := map[AdmissionAction]string{AdmissionDeny: "Deny", AdmissionWarn: "Warn", AdmissionAudit: "Audit"}[conf.Action]
	switch {
	case !ok:
		return nil, fmt.Errorf("kubernetes: %q is no action, want deny, warn or audit", conf.Action)
	case conf.Name == "":
		return nil, errors.New("kubernetes: the policy has no name")
	case len(conf.Users) == 0:
		return nil, errors.New("kubernetes: nobody may write: the policy would keep Holdfast out")
	}
	users := slices.Clone(conf.Users)
	for _, c := range clusterControllers {
		users = append(users, "system:serviceaccount:kube-system:"+c)
	}
	users = append(users, "system:kube-controller-manager", "system:kube-scheduler", "system:apiserver")
	var exact, templates []string
	for _, u := range users {
		if before, after, ok := strings.Cut(u, "{namespace}"); ok {
			templates = append(templates, fmt.Sprintf("request.userInfo.username == %s + request.namespace + %s", celText(before), celText(after)))
			continue
		}
		exact = append(exact, celText(u))
	}
	slices.Sort(exact)
	templates = append(templates, "'system:nodes' in request.userInfo.groups") // a kubelet ends the pods of its node
	scope := "*"
	if len(conf.Namespaces) > 0 {
		scope = "Namespaced"
	}
	may := append([]string{fmt.Sprintf("request.userInfo.username in [%s]", strings.Join(slices.Compact(exact), ", "))}, templates...)

	name := "holdfast-" + conf.Name
	marks := func(of string) string {
		return fmt.Sprintf("%[1]s.metadata.?labels[?%[2]s].orValue('') + ' ' + %[1]s.metadata.?annotations[?%[3]s].orValue('')", of, celText(ManagedLabel), celText(OwnerAnnotation))
	}
	rest := "['metadata', 'status']"
	policy := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"app.kubernetes.io/managed-by": "holdfast"}},
		"spec": map[string]any{
			"failurePolicy": "Fail",
			"matchConstraints": map[string]any{
				"objectSelector": map[string]any{"matchLabels": map[string]any{ManagedLabel: "true"}},
				"resourceRules": []any{map[string]any{
					"apiGroups": []any{"*"}, "apiVersions": []any{"*"}, "resources": []any{"*"}, "operations": []any{"CREATE", "UPDATE", "DELETE"}, "scope": scope,
				}},
			},
			"matchConditions": []any{map[string]any{"name": "somebody-else", "expression": "!(" + strings.Join(may, " || ") + ")"}},
			"validations": []any{map[string]any{
				"expression": "request.operation == 'UPDATE' && " + marks("object") + " == " + marks("oldObject") +
					" && object.all(k, k in " + rest + " || (k in oldObject && object[k] == oldObject[k])) && oldObject.all(k, k in " + rest + " || k in object)",
				"messageExpression": "'managed by Holdfast (stack ' + (oldObject == null ? object : oldObject).metadata.?annotations[?" + celText(OwnerAnnotation) +
					"].orValue('unknown') + '): change it in the repository that declares it'",
				"reason": "Forbidden",
			}},
		},
	}
	bind := map[string]any{"policyName": name, "validationActions": []any{action}}
	if len(conf.Namespaces) > 0 {
		values := make([]any, len(conf.Namespaces))
		for i, ns := range conf.Namespaces {
			values[i] = ns
		}
		bind["matchResources"] = map[string]any{"namespaceSelector": map[string]any{"matchExpressions": []any{
			map[string]any{"key": "kubernetes.io/metadata.name", "operator": "In", "values": values},
		}}}
	}
	binding := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"app.kubernetes.io/managed-by": "holdfast"}}, "spec": bind,
	}
	var out bytes.Buffer
	for _, doc := range []any{policy, binding} {
		b, err := yaml.Marshal(doc)
		if err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
		out.WriteString("---\n")
		out.Write(b)
	}
	return out.Bytes(), nil
}

// celText writes s as a CEL string.
func celText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(s) + "'"
}
