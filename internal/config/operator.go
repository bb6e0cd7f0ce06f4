package config

// Version is the apiVersion of both configuration surfaces.
const Version = "holdfast.dev/v1alpha1"

// Operator is the operator's file, holdfast.yaml: the root of trust. Paths in
// it are relative to the file's own folder.
type Operator struct {
	APIVersion   string        `json:"apiVersion" jsonschema:"enum=holdfast.dev/v1alpha1"`
	Kind         string        `json:"kind" jsonschema:"enum=Holdfast"`
	StateDir     string        `json:"stateDir" jsonschema_description:"Folder for the ledger, the Git mirrors, local Terraform state and what is needed to go on after a restart. Holdfast locks it."`
	Listen       Listen        `json:"listen,omitempty"`
	Workers      int           `json:"workers,omitempty" jsonschema_description:"How many stacks are worked on at once; 8 by default."`
	Repositories []Repository  `json:"repositories" jsonschema_description:"The desired-state repositories to watch."`
	Environments []Environment `json:"environments" jsonschema_description:"Where stacks may be deployed to, and with which credentials."`
	Allow        []Allow       `json:"allow" jsonschema_description:"The operator's map: what a stack in which repository and path may ask for. Anything else is denied."`
	Trust        []Trust       `json:"trust,omitempty" jsonschema_description:"Which artifacts are trusted. An artifact that no rule matches is denied."`
	Registries   []Registry    `json:"registries,omitempty" jsonschema_description:"How to reach registries that need credentials, a private CA or plain HTTP."`
	Policies     []Policy      `json:"policies" jsonschema_description:"Sets of conftest policies, used by name in environments."`
	Drift        DriftDefaults `json:"drift,omitempty"`
	Limits       Limits        `json:"limits,omitempty"`
}

// Listen says where the daemon can be reached.
type Listen struct {
	HTTP   string `json:"http,omitempty" jsonschema_description:"Address of /healthz, /readyz, /metrics and the read-only status, 127.0.0.1:8321 by default; \"off\" for none. The status is served on loopback only."`
	Socket string `json:"socket,omitempty" jsonschema_description:"Unix socket for commands that change something, <stateDir>/holdfast.sock by default."`
}

// Repository is one desired-state repository.
type Repository struct {
	Name     string     `json:"name"`
	URL      string     `json:"url" jsonschema_description:"https://…, ssh://git@host/…, git@host:path, or an absolute path. http:// only to loopback."`
	Branch   string     `json:"branch,omitempty" jsonschema_description:"main by default."`
	Interval Duration   `json:"interval,omitempty" jsonschema_description:"How often the branch is looked at, 30s by default, with 10 % jitter."`
	Anchor   string     `json:"anchor,omitempty" jsonschema_description:"A commit that you trust as the start: history before it is not judged. Without one, all history is."`
	Auth     *Auth      `json:"auth,omitempty" jsonschema_description:"Credentials, used for the host of url and for no other."`
	Commits  Commits    `json:"commits" jsonschema_description:"Who may change which path."`
	Limits   RepoLimits `json:"limits,omitempty"`
}

// Auth says how to sign in to a Git server. Secrets are named by file, never written here.
type Auth struct {
	Username       string `json:"username,omitempty" jsonschema_description:"For basic authentication; with a token most servers take any name."`
	TokenFile      string `json:"tokenFile,omitempty" jsonschema_description:"File with the token or password."`
	SSHKeyFile     string `json:"sshKeyFile,omitempty" jsonschema_description:"File with the private SSH key."`
	KnownHostsFile string `json:"knownHostsFile,omitempty" jsonschema_description:"known_hosts file; required for SSH."`
	CAFile         string `json:"caFile,omitempty" jsonschema_description:"PEM file with the certificate authorities of the server."`
}

// RepoLimits bound what a repository may hold.
type RepoLimits struct {
	Bytes      int64 `json:"bytes,omitempty" jsonschema_description:"Total bytes of the files read from one snapshot."`
	FileBytes  int64 `json:"fileBytes,omitempty" jsonschema_description:"Bytes of one file."`
	Files      int   `json:"files,omitempty" jsonschema_description:"Number of files."`
	PathLength int   `json:"pathLength,omitempty" jsonschema_description:"Length of a path in bytes."`
}

// Commits says who may change what.
type Commits struct {
	Signers []Signer     `json:"signers"`
	Rules   []CommitRule `json:"rules" jsonschema_description:"Each path that a commit changes must be allowed to its signer by a rule."`
}

// Signer is a person or a machine that signs commits.
type Signer struct {
	Name               string `json:"name"`
	AllowedSignersFile string `json:"allowedSignersFile,omitempty" jsonschema_description:"SSH keys in the format of ssh-keygen(1), ALLOWED SIGNERS."`
	OpenPGPKeyFile     string `json:"openpgpKeyFile,omitempty" jsonschema_description:"OpenPGP public keys, armoured or binary."`
	NotBefore          *Date  `json:"notBefore,omitempty"`
	NotAfter           *Date  `json:"notAfter,omitempty"`
}

// CommitRule allows signers to change paths.
type CommitRule struct {
	Paths   []string `json:"paths" jsonschema_description:"Globs; ** crosses folders."`
	Signers []string `json:"signers" jsonschema_description:"Names of signers."`
}

// Environment is a place to deploy to.
type Environment struct {
	Name       string            `json:"name"`
	Policies   []string          `json:"policies" jsonschema_description:"Names of policy sets. At least one."`
	Variables  map[string]string `json:"variables,omitempty" jsonschema_description:"Replace ${NAME} in manifests. A name that is not set here is an error."`
	Kubernetes *Kubernetes       `json:"kubernetes,omitempty"`
	Terraform  *Terraform        `json:"terraform,omitempty"`
}

// Kubernetes says how an environment's cluster is reached.
type Kubernetes struct {
	Kubeconfig string `json:"kubeconfig,omitempty" jsonschema_description:"Kubeconfig file; without one the pod's own service account is used. exec and auth-provider plugins are refused."`
	Context    string `json:"context,omitempty"`
	Namespace  string `json:"namespace,omitempty" jsonschema_description:"Holdfast's own namespace there, for inventories; holdfast-system by default. No stack may touch it."`
}

// Terraform says how an environment runs OpenTofu or Terraform.
type Terraform struct {
	Binary      string                       `json:"binary" jsonschema_description:"tofu or terraform: an absolute path, or a name to look up on PATH."`
	Mirror      string                       `json:"mirror" jsonschema_description:"Filesystem mirror of providers. Providers come from nowhere else."`
	Variables   map[string]string            `json:"variables,omitempty" jsonschema_description:"Input variables for every stack of the environment."`
	Credentials map[string]map[string]string `json:"credentials,omitempty" jsonschema_description:"Named sets of environment variables, each with the file that holds its value."`
	Timeout     Duration                     `json:"timeout,omitempty" jsonschema_description:"For one plan or apply, 30m by default."`
}

// Allow is one entry of the operator's map.
type Allow struct {
	Repository   string      `json:"repository"`
	Paths        []string    `json:"paths" jsonschema_description:"Globs on the folder of the stack file; ** crosses folders."`
	Environments []string    `json:"environments"`
	Targets      []string    `json:"targets" jsonschema:"enum=kubernetes,enum=terraform"`
	Namespaces   []string    `json:"namespaces,omitempty" jsonschema_description:"Globs. Kubernetes only."`
	Kinds        []string    `json:"kinds,omitempty" jsonschema_description:"Kind.group globs such as Deployment.apps or ConfigMap; namespaced kinds only unless named in full. Empty: all namespaced kinds."`
	Credentials  []string    `json:"credentials,omitempty" jsonschema_description:"Names of the environment's credentials that a Terraform stack may ask for."`
	Drift        []string    `json:"drift,omitempty" jsonschema:"enum=report,enum=revert" jsonschema_description:"Drift modes that a stack may ask for; the first is the default. Empty: report."`
	Ignore       IgnoreBound `json:"ignore,omitempty" jsonschema_description:"Which drift a stack may ask to ignore. Empty: none."`
}

// IgnoreBound bounds what a stack may ignore.
type IgnoreBound struct {
	Paths []string `json:"paths,omitempty" jsonschema_description:"JSON pointers, with * for one segment."`
	Days  int      `json:"days,omitempty" jsonschema_description:"How many days ahead an ignore rule may end; 90 by default."`
}

// Trust is one rule about artifacts.
type Trust struct {
	Name               string     `json:"name"`
	Kind               string     `json:"kind,omitempty" jsonschema:"enum=image" jsonschema_description:"Kind of artifact, image by default."`
	Repositories       []string   `json:"repositories" jsonschema_description:"Globs on normalised names, segment by segment: ghcr.io/acme/**."`
	Environments       []string   `json:"environments,omitempty" jsonschema_description:"Empty: all."`
	Keys               []TrustKey `json:"keys,omitempty"`
	Keyless            []Keyless  `json:"keyless,omitempty"`
	TrustedRoot        string     `json:"trustedRoot,omitempty" jsonschema_description:"trusted_root.json of the Sigstore instance; required with keyless."`
	InsecureIgnoreTlog bool       `json:"insecureIgnoreTlog,omitempty" jsonschema_description:"Accept signatures by key without a transparency log entry. Then nothing proves when a signature was made."`
	SBOM               SBOM       `json:"sbom,omitempty"`
}

// TrustKey is a public key.
type TrustKey struct {
	Name string `json:"name"`
	File string `json:"file,omitempty" jsonschema_description:"PEM file."`
	PEM  string `json:"pem,omitempty" jsonschema_description:"The key itself."`
}

// Keyless is an identity in a Fulcio certificate.
type Keyless struct {
	Issuer        string `json:"issuer" jsonschema_description:"Exact OIDC issuer."`
	Subject       string `json:"subject,omitempty" jsonschema_description:"Exact subject alternative name."`
	SubjectPrefix string `json:"subjectPrefix,omitempty" jsonschema_description:"Path prefix of the subject, by whole segments."`
}

// SBOM says what is asked of the software bill of materials.
type SBOM struct {
	Required bool     `json:"required,omitempty"`
	Formats  []string `json:"formats,omitempty" jsonschema:"enum=spdx,enum=cyclonedx" jsonschema_description:"Empty: both."`
}

// Registry says how one registry is reached.
type Registry struct {
	Host         string   `json:"host" jsonschema_description:"host or host:port. Credentials go there and nowhere else."`
	Username     string   `json:"username,omitempty"`
	PasswordFile string   `json:"passwordFile,omitempty"`
	CAFile       string   `json:"caFile,omitempty"`
	InsecureHTTP bool     `json:"insecureHTTP,omitempty"`
	Realms       []string `json:"realms,omitempty" jsonschema_description:"Other hosts that may issue this registry's tokens."`
}

// Policy is a named set of policies.
type Policy struct {
	Name       string         `json:"name"`
	Library    []string       `json:"library,omitempty" jsonschema_description:"Policies that Holdfast ships, by name: kubernetes/pod-security-baseline."`
	Path       string         `json:"path,omitempty" jsonschema_description:"Folder with Rego policies and data files."`
	Namespaces []string       `json:"namespaces,omitempty" jsonschema_description:"Rego packages to evaluate. Empty: all that hold rules."`
	Targets    []string       `json:"targets,omitempty" jsonschema:"enum=kubernetes,enum=terraform" jsonschema_description:"Empty: both."`
	Data       map[string]any `json:"data,omitempty" jsonschema_description:"Documents for the policies, under data."`
}

// DriftDefaults are the operator's settings for drift.
type DriftDefaults struct {
	KubernetesSchedule string `json:"kubernetesSchedule,omitempty" jsonschema_description:"Cron schedule of the full comparison, beside the watch; @hourly by default."`
	TerraformSchedule  string `json:"terraformSchedule,omitempty" jsonschema_description:"Cron schedule of the drift check; */15 * * * * by default."`
}

// Limits bound what one plan may do.
type Limits struct {
	MaxDeletes int `json:"maxDeletes,omitempty" jsonschema_description:"How many objects one plan may delete or replace; 50 by default, -1 for no limit."`
}
