package config

// StackFile is the name of a stack file.
const StackFile = "stack.yaml"

// Stack is a developer's file, stack.yaml: a request, which the operator's map
// grants or denies.
type Stack struct {
	APIVersion string    `json:"apiVersion" jsonschema:"enum=holdfast.dev/v1alpha1" jsonschema_description:"Version of this format."`
	Kind       string    `json:"kind" jsonschema:"enum=Stack" jsonschema_description:"Says that this is a stack file."`
	Metadata   Metadata  `json:"metadata" jsonschema_description:"What the stack is called."`
	Spec       StackSpec `json:"spec" jsonschema_description:"What the stack asks for. The operator's map grants it or denies it."`
}

// Metadata names a stack.
type Metadata struct {
	Name string `json:"name" jsonschema_description:"Unique among all stacks of the daemon; lower case letters, digits and dashes."`
}

// StackSpec is what a stack asks for.
type StackSpec struct {
	Environment string           `json:"environment" jsonschema_description:"Name of one of the operator's environments."`
	Kubernetes  *StackKubernetes `json:"kubernetes,omitempty" jsonschema_description:"Either kubernetes or terraform."`
	Terraform   *StackTerraform  `json:"terraform,omitempty" jsonschema_description:"Either kubernetes or terraform."`
	DependsOn   []string         `json:"dependsOn,omitempty" jsonschema_description:"Stacks that must be ready first."`
	Drift       StackDrift       `json:"drift,omitempty" jsonschema_description:"How the stack wants its drift treated."`
	Prune       string           `json:"prune,omitempty" jsonschema:"enum=hold,enum=delete,enum=orphan" jsonschema_description:"What happens to the objects when this file goes: hold keeps and enforces them until a person decides, delete removes them, orphan lets go of them. hold by default."`
}

// StackKubernetes is what to deploy to a cluster.
type StackKubernetes struct {
	Namespace      string   `json:"namespace" jsonschema_description:"For objects that name none."`
	Kustomize      string   `json:"kustomize,omitempty" jsonschema_description:"Folder of the kustomization, relative to the stack file."`
	Manifests      []string `json:"manifests,omitempty" jsonschema_description:"Files, folders or globs, relative to the stack file. Neither: all manifests beside the stack file."`
	Adopt          bool     `json:"adopt,omitempty" jsonschema_description:"Take over objects that exist and that no stack owns."`
	Conflicts      string   `json:"conflicts,omitempty" jsonschema:"enum=take,enum=yield,enum=fail" jsonschema_description:"What becomes of a declared field that another field manager owns and that has another value: take sets it, yield keeps the live value (but of images and of what is closed to others), fail changes nothing of the object and says whose it is. Empty: the first that the operator allows there."`
	ServiceAccount string   `json:"serviceAccount,omitempty" jsonschema_description:"Service account, namespace/name, as which the stack is planned and applied. Empty: the first that the operator names there; none: Holdfast's own."`
	Replace        []string `json:"replace,omitempty" jsonschema_description:"Kinds (Job.batch) whose objects are deleted and made again when a field changes that cannot be changed in place. What carries the annotation holdfast.dev/prune: keep is not."`
	AdoptFrom      []string `json:"adoptFrom,omitempty" jsonschema_description:"Also take over every field that these field managers own (kubectl-client-side-apply, helm, kustomize-controller): what they set and this stack does not declare goes."`

	Health []StackHealth `json:"health,omitempty" jsonschema_description:"When objects of custom kinds are healthy, in the place of the operator's rules and those that are built in."`
}

// StackHealth says when objects of one kind are healthy.
type StackHealth struct {
	Kind   string `json:"kind" jsonschema_description:"Kind.group, for example Cluster.postgresql.cnpg.io."`
	Health `json:",inline"`
}

// StackTerraform is a configuration to apply.
type StackTerraform struct {
	Root        string            `json:"root,omitempty" jsonschema_description:"Folder of the root module, relative to the stack file; \".\" by default."`
	Workspace   string            `json:"workspace,omitempty" jsonschema_description:"Name of the workspace; default if it is left out."`
	Variables   map[string]string `json:"variables,omitempty" jsonschema_description:"Input variables. One that the operator set may not be set here; for other types than string, number and bool the value is JSON."`
	Credentials string            `json:"credentials,omitempty" jsonschema_description:"Name of one of the environment's credentials."`
}

// StackDrift is how a stack wants its drift treated.
type StackDrift struct {
	Mode     string   `json:"mode,omitempty" jsonschema:"enum=report,enum=revert,enum=ask,enum=adopt" jsonschema_description:"Report drift, revert it at once, revert it when a person approves, or offer it as a patch of the repository. Empty: the first mode that the operator allows there."`
	Schedule string   `json:"schedule,omitempty" jsonschema_description:"Cron schedule of the full comparison. Empty: the operator's."`
	Ignore   []Ignore `json:"ignore,omitempty" jsonschema_description:"Drift that is not acted on, as far as the operator allows it."`
}

// Ignore is drift that is not acted on, for a time and with a reason.
type Ignore struct {
	Kind   string `json:"kind" jsonschema_description:"Kind, Kind.group, or a Terraform resource type."`
	Name   string `json:"name,omitempty" jsonschema_description:"Object name or resource address; empty: all."`
	Path   string `json:"path" jsonschema_description:"JSON pointer, with * for one segment."`
	Until  Date   `json:"until" jsonschema_description:"The date on which the rule ends."`
	Reason string `json:"reason" jsonschema_description:"Why, for the person who reads it next year."`
}
