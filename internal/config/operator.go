package config

// Version is the apiVersion of both configuration surfaces.
const Version = "holdfast.dev/v1alpha1"

// Operator is the operator's file, holdfast.yaml: the root of trust. Paths in
// it are relative to the file's own folder.
type Operator struct {
	APIVersion   string        `json:"apiVersion" jsonschema:"enum=holdfast.dev/v1alpha1" jsonschema_description:"Version of this format."`
	Kind         string        `json:"kind" jsonschema:"enum=Holdfast" jsonschema_description:"Says that this is an operator's file."`
	StateDir     string        `json:"stateDir" jsonschema_description:"Folder for the ledger, the Git mirrors, local Terraform state and what is needed to go on after a restart. Holdfast locks it."`
	Listen       Listen        `json:"listen,omitempty" jsonschema_description:"Where the daemon can be reached."`
	Workers      int           `json:"workers,omitempty" jsonschema_description:"How many stacks are worked on at once; 8 by default."`
	Repositories []Repository  `json:"repositories" jsonschema_description:"The desired-state repositories to watch."`
	Environments []Environment `json:"environments" jsonschema_description:"Where stacks may be deployed to, and with which credentials."`
	Allow        []Allow       `json:"allow" jsonschema_description:"The operator's map: what a stack in which repository and path may ask for. Anything else is denied."`
	Trust        Trust         `json:"trust,omitempty" jsonschema_description:"Which artifacts are trusted. An artifact that no rule matches is denied."`
	Registries   []Registry    `json:"registries,omitempty" jsonschema_description:"How to reach registries that need credentials, a private CA or plain HTTP."`
	Policies     []Policy      `json:"policies" jsonschema_description:"Sets of conftest policies, used by name in environments."`
	Drift        DriftDefaults `json:"drift,omitempty" jsonschema_description:"When everything is compared with the live world."`
	Limits       Limits        `json:"limits,omitempty" jsonschema_description:"What one plan may do before a person has to look."`
	Kinds        []Kind        `json:"kinds,omitempty" jsonschema_description:"Where objects of custom kinds name images. Declarations for the kinds of common operators are built in; an entry here takes their place."`
	Orders       Orders        `json:"orders,omitempty" jsonschema_description:"Who may sign orders: to go back to an older commit, or to go on after the state directory was lost."`
	Signed       *Signed       `json:"signed,omitempty" jsonschema_description:"Require that changes of this file are signed."`
	Notify       Notify        `json:"notify,omitempty" jsonschema_description:"Who hears of drift, denials and recoveries."`
	Telemetry    Telemetry     `json:"telemetry,omitempty" jsonschema_description:"Where traces go."`
}

// Listen says where the daemon can be reached.
type Listen struct {
	HTTP   string `json:"http,omitempty" jsonschema_description:"Address of /healthz, /readyz, /metrics and the read-only status, 127.0.0.1:8321 by default; \"off\" for none. The status is served on loopback only."`
	Socket string `json:"socket,omitempty" jsonschema_description:"Unix socket for commands that change something, <stateDir>/holdfast.sock by default."`
	Audit  string `json:"audit,omitempty" jsonschema_description:"Address of POST /audit/ENVIRONMENT, where API servers send their audit events; required where an environment has audit.tokenFile. Nothing else is served there."`
	Hooks  string `json:"hooks,omitempty" jsonschema_description:"Address of POST /hooks/REPOSITORY, where forges say that something was pushed; required where a repository has a webhook. Nothing else is served there."`
}

// Repository is one desired-state repository.
type Repository struct {
	Name     string     `json:"name" jsonschema_description:"How it is called in allow, in logs and in the ledger; lower case letters, digits and dashes, at most 63."`
	URL      string     `json:"url,omitempty" jsonschema_description:"A Git repository: https://…, ssh://git@host/…, git@host:path, or an absolute path. http:// only to loopback. Required unless oci is set."`
	OCI      *OCI       `json:"oci,omitempty" jsonschema_description:"An OCI artifact, instead of a Git repository. A trust rule of kind artifact says who must have signed it."`
	Branch   string     `json:"branch,omitempty" jsonschema_description:"The branch that is followed, main by default."`
	Tag      string     `json:"tag,omitempty" jsonschema_description:"Instead of a branch, a pattern of tags, such as v*: the one with the highest semantic version is followed. It must be annotated and signed, see commits.tagSigners. Pre-releases count only if the pattern has a \"-\"."`
	Interval Duration   `json:"interval,omitempty" jsonschema_description:"How often the branch is looked at, 30s by default, with 10 % jitter."`
	Anchor   string     `json:"anchor,omitempty" jsonschema_description:"A commit that you trust as the start: history before it is not judged. Without one, all history is."`
	Auth     *Auth      `json:"auth,omitempty" jsonschema_description:"Credentials, used for the host of url and for no other."`
	Commits  Commits    `json:"commits,omitempty" jsonschema_description:"Who may change which path. Required unless oci is set."`
	Limits   RepoLimits `json:"limits,omitempty" jsonschema_description:"What a snapshot may hold. More is an error."`
	MaxAge   Duration   `json:"maxAge,omitempty" jsonschema_description:"For how long the head of the branch may be impossible to confirm before that is a finding, 1h by default."`
	Webhook  *Webhook   `json:"webhook,omitempty" jsonschema_description:"How the forge says that something was pushed, so that it is looked at at once and not at the next interval. What it says is only a hint to look."`
}

// OCI is a desired state that is kept in an OCI registry.
type OCI struct {
	Reference   string            `json:"reference" jsonschema_description:"oci://host/path, without a tag."`
	Tag         string            `json:"tag,omitempty" jsonschema_description:"The tag that is followed, for example production. The signed time of creation must grow: a tag that is moved back is refused."`
	Semver      string            `json:"semver,omitempty" jsonschema_description:"Instead of tag, a range of versions, for example \">=1.2.0 <2.0.0\": the tag with the highest one is followed, and the signed version must grow. Pre-releases only if the range names one."`
	Annotations map[string]string `json:"annotations,omitempty" jsonschema_description:"What the signed manifest must say, exactly: binds an artifact to one purpose."`
}

// Webhook is how a forge says that something was pushed. What it says is only a
// hint to look.
type Webhook struct {
	Provider   string `json:"provider" jsonschema:"enum=github,enum=gitlab,enum=gitea,enum=forgejo,enum=bitbucket" jsonschema_description:"Whose webhooks they are."`
	SecretFile string `json:"secretFile" jsonschema_description:"File with the secret that the forge signs with, at least 16 bytes."`
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
	Bytes      int64 `json:"bytes,omitempty" jsonschema_description:"Total bytes of the files read from one snapshot; 512 MiB if it is left out."`
	FileBytes  int64 `json:"fileBytes,omitempty" jsonschema_description:"Bytes of one file; 16 MiB if it is left out."`
	Files      int   `json:"files,omitempty" jsonschema_description:"Number of files; 100,000 if it is left out."`
	PathLength int   `json:"pathLength,omitempty" jsonschema_description:"Length of a path in bytes; 1024 if it is left out."`
}

// Environment is a place to deploy to.
type Environment struct {
	Name       string            `json:"name" jsonschema_description:"How allow and stacks call it; lower case letters, digits and dashes, at most 63."`
	Policies   []string          `json:"policies" jsonschema_description:"Names of policy sets. At least one."`
	Variables  map[string]string `json:"variables,omitempty" jsonschema_description:"Replace ${NAME} in manifests. A name that is not set here is an error."`
	Kubernetes *Kubernetes       `json:"kubernetes,omitempty" jsonschema_description:"A cluster. An environment has a cluster, a tool or both."`
	Terraform  *Terraform        `json:"terraform,omitempty" jsonschema_description:"OpenTofu or Terraform."`
	Platforms  []string          `json:"platforms,omitempty" jsonschema_description:"Platforms of an image index that run here: linux/arm64. Evidence that is not on the index must be on each of them; empty: on all."`
	// EvidenceGrace is how long missing evidence is waited for.
	EvidenceGrace Duration `json:"evidenceGrace,omitempty" jsonschema_description:"How long evidence that is missing is waited for from the first sight of an artifact, before it is a denial: build systems push first and sign seconds later. 10m by default; 0s is written as 1ns."`
}

// Kubernetes says how an environment's cluster is reached.
type Kubernetes struct {
	Kubeconfig string     `json:"kubeconfig,omitempty" jsonschema_description:"Kubeconfig file; without one the pod's own service account is used. exec and auth-provider plugins are refused."`
	Context    string     `json:"context,omitempty" jsonschema_description:"Context of the kubeconfig. Empty: the current one."`
	Namespace  string     `json:"namespace,omitempty" jsonschema_description:"Holdfast's own namespace there, for inventories, marks and the lease; holdfast-system by default. No stack may touch it."`
	Injectors  []Injector `json:"injectors,omitempty" jsonschema_description:"Who else may add fields to managed objects. What nobody listed here adds to a pod template, RBAC, a webhook, the data of a ConfigMap or Secret, ownerReferences or finalizers is drift, and is removed."`
	Audit      *Audit     `json:"audit,omitempty" jsonschema_description:"Where the API server's audit events are had: they name the user who made a change. Without it findings name field managers."`
	Lease      Lease      `json:"lease,omitempty" jsonschema_description:"How daemons that share a cluster agree on which one acts."`
}

// Audit says where audit events of an API server are had.
type Audit struct {
	LogFile   string `json:"logFile,omitempty" jsonschema_description:"The API server's --audit-log-path, in JSON, where it can be read on this machine."`
	TokenFile string `json:"tokenFile,omitempty" jsonschema_description:"File with the bearer token that the API server shows when it posts events to /audit/ENVIRONMENT at listen.audit, at least 16 bytes."`
}

// Injector is a second manager that may add fields to managed objects.
type Injector struct {
	Manager     string   `json:"manager" jsonschema_description:"Exact field manager, as managedFields names it."`
	Subresource string   `json:"subresource,omitempty" jsonschema_description:"Only what was written through this subresource, for example scale. Empty: the object itself."`
	Kinds       []string `json:"kinds" jsonschema_description:"Kind or Kind.group globs, for example Deployment.apps."`
	Paths       []string `json:"paths" jsonschema_description:"JSON pointers, with * for one segment (a list element too); what is below is covered."`
	Images      []string `json:"images,omitempty" jsonschema_description:"Globs on image references that it may add, for example ghcr.io/acme/proxy@sha256:*. Empty: none. An added image that no entry covers is a finding whatever the paths say."`
	Reason      string   `json:"reason" jsonschema_description:"Why, for the person who reads it next year."`
}

// Lease is how daemons that share a cluster agree on which one acts.
type Lease struct {
	Off      bool     `json:"off,omitempty" jsonschema_description:"Take no Lease. Two daemons that were started by mistake then both act."`
	Name     string   `json:"name,omitempty" jsonschema_description:"Name of the coordination.k8s.io Lease in Holdfast's own namespace; holdfast by default."`
	Duration Duration `json:"duration,omitempty" jsonschema_description:"After which another daemon may take over from one that is silent, 30s by default. It is renewed every third of that."`
}

// Terraform says how an environment runs OpenTofu or Terraform.
type Terraform struct {
	Binary      string                       `json:"binary" jsonschema_description:"tofu or terraform: an absolute path, or a name to look up on PATH."`
	Mirror      string                       `json:"mirror" jsonschema_description:"Filesystem mirror of providers. Providers come from nowhere else."`
	Variables   map[string]string            `json:"variables,omitempty" jsonschema_description:"Input variables for every stack of the environment."`
	Credentials map[string]map[string]string `json:"credentials,omitempty" jsonschema_description:"Named sets of environment variables, each with the file that holds its value."`
	Timeout     Duration                     `json:"timeout,omitempty" jsonschema_description:"For one plan or apply, 30m by default."`
	Permit      []string                     `json:"permit,omitempty" jsonschema:"enum=provisioners,enum=external,enum=local_command,enum=http,enum=ephemeral,enum=actions,enum=provider-functions,enum=ignore-all-changes" jsonschema_description:"What a configuration may have although it runs before, or beside, what a plan shows. Empty: none of it."`
	Sandbox     TerraformSandbox             `json:"sandbox,omitempty" jsonschema_description:"What the tool and its providers may reach. Nothing but the mirror and the stack's own state unless it is said here."`
}

// TerraformSandbox says what a tool may reach.
type TerraformSandbox struct {
	None      bool     `json:"none,omitempty" jsonschema_description:"Run the tool without a sandbox, with all rights of the daemon. Every stack of the environment is then trusted as much as Holdfast."`
	Read      []string `json:"read,omitempty" jsonschema_description:"Absolute paths that the tool may read."`
	Write     []string `json:"write,omitempty" jsonschema_description:"Absolute paths of folders below which the tool may write."`
	Egress    []string `json:"egress,omitempty" jsonschema_description:"What the tool may connect to, through a proxy: host:port, *.domain:port, or network/bits:port. Private addresses need an entry that names the host or the network. Metadata services and link-local addresses cannot be allowed."`
	Forwards  []string `json:"forwards,omitempty" jsonschema_description:"host:port to which the tool connects by name without a proxy, such as a database. They are allowed by that."`
	Memory    int64    `json:"memory,omitempty" jsonschema_description:"Bytes of data of each process, 4 GiB by default."`
	Work      int64    `json:"work,omitempty" jsonschema_description:"Bytes in the work directory, which is memory, and of each file, 256 MiB by default."`
	Processes int      `json:"processes,omitempty" jsonschema_description:"Processes and threads, together, 256 by default."`
}

// Allow is one entry of the operator's map.
type Allow struct {
	Repository   string   `json:"repository" jsonschema_description:"Name of a repository."`
	Paths        []string `json:"paths" jsonschema_description:"Globs on the folder of the stack file; ** crosses folders."`
	Environments []string `json:"environments" jsonschema_description:"Names of environments."`
	Targets      []string `json:"targets" jsonschema:"enum=kubernetes,enum=terraform" jsonschema_description:"What a stack may deploy to."`
	Namespaces   []string `json:"namespaces,omitempty" jsonschema_description:"Globs. Kubernetes only."`
	Kinds        []string `json:"kinds,omitempty" jsonschema_description:"Kind.group globs such as Deployment.apps or ConfigMap; namespaced kinds only unless named in full. Empty: all namespaced kinds."`
	// ClusterPowers is spelled out, since it is close to full trust.
	ClusterPowers   bool        `json:"clusterPowers,omitempty" jsonschema_description:"A stack may bind its own roles cluster-wide although they reach Holdfast's things (secrets or workloads of all namespaces), as cert-manager's and ingress controllers' do. Whoever may sign it is then trusted as much as Holdfast."`
	Credentials     []string    `json:"credentials,omitempty" jsonschema_description:"Names of the environment's credentials that a Terraform stack may ask for."`
	Drift           []string    `json:"drift,omitempty" jsonschema:"enum=report,enum=revert,enum=ask,enum=adopt" jsonschema_description:"Drift modes that a stack may ask for; the first is the default. Empty: report."`
	Conflicts       []string    `json:"conflicts,omitempty" jsonschema:"enum=take,enum=yield,enum=fail" jsonschema_description:"What a stack may ask to become of declared fields that other field managers own; the first is the default. Empty: take."`
	ServiceAccounts []string    `json:"serviceAccounts,omitempty" jsonschema_description:"Service accounts, namespace/name, as one of which a stack is planned and applied; {namespace} stands for the stack's own. The first is the default. Empty: Holdfast's own, and no other."`
	Replace         []string    `json:"replace,omitempty" jsonschema_description:"Kinds that a stack may ask to have deleted and made again when an immutable field changes: globs such as Job.batch. Kinds whose deletion loses data (Namespace, CustomResourceDefinition, PersistentVolumeClaim, PersistentVolume) must be named in full. Empty: none."`
	Ignore          IgnoreBound `json:"ignore,omitempty" jsonschema_description:"Which drift a stack may ask to ignore. Empty: none."`
	Prune           []string    `json:"prune,omitempty" jsonschema:"enum=hold,enum=delete,enum=orphan" jsonschema_description:"What a stack may ask to happen to its objects when its stack file goes. Empty: hold."`
	AdoptFrom       []string    `json:"adoptFrom,omitempty" jsonschema_description:"Field managers whose fields a stack may ask to take over. Empty: none."`
}

// IgnoreBound bounds what a stack may ignore.
type IgnoreBound struct {
	Paths []string `json:"paths,omitempty" jsonschema_description:"JSON pointers, with * for one segment."`
	Days  int      `json:"days,omitempty" jsonschema_description:"How many days ahead an ignore rule may end; 90 by default."`
}

// Registry says how one registry is reached.
type Registry struct {
	Host         string   `json:"host" jsonschema_description:"host or host:port. Credentials go there and nowhere else."`
	Username     string   `json:"username,omitempty" jsonschema_description:"With passwordFile; both or neither."`
	PasswordFile string   `json:"passwordFile,omitempty" jsonschema_description:"File with the password or token."`
	CAFile       string   `json:"caFile,omitempty" jsonschema_description:"PEM file with the certificate authorities of the registry. Empty: the system's."`
	InsecureHTTP bool     `json:"insecureHTTP,omitempty" jsonschema_description:"Use plain HTTP."`
	Realms       []string `json:"realms,omitempty" jsonschema_description:"Other hosts that may issue this registry's tokens."`
}

// Policy is a named set of policies.
type Policy struct {
	Name       string         `json:"name" jsonschema_description:"How environments call the set."`
	Library    []string       `json:"library,omitempty" jsonschema_description:"Policies that Holdfast ships, by name: kubernetes/pod-security-baseline."`
	Path       string         `json:"path,omitempty" jsonschema_description:"Folder with Rego policies and data files."`
	OCI        string         `json:"oci,omitempty" jsonschema_description:"A bundle with Rego policies and data files in a registry, by digest: oci://host/path@sha256:…. A trust rule of kind policy says who must have signed it."`
	Git        *PolicyGit     `json:"git,omitempty" jsonschema_description:"A folder of Rego policies and data files in one of the repositories, as of its newest verified commit: its rules about commits say who may change them."`
	Namespaces []string       `json:"namespaces,omitempty" jsonschema_description:"Rego packages to evaluate. Empty: all that hold rules."`
	Targets    []string       `json:"targets,omitempty" jsonschema:"enum=kubernetes,enum=terraform" jsonschema_description:"Empty: both."`
	Data       map[string]any `json:"data,omitempty" jsonschema_description:"Documents for the policies, under data."`
}

// PolicyGit names policies in a repository that is followed.
type PolicyGit struct {
	Repository string `json:"repository" jsonschema_description:"Name of a repository under repositories."`
	Path       string `json:"path,omitempty" jsonschema_description:"Folder in it; the whole repository if it is left out."`
}

// DriftDefaults are the operator's settings for drift.
type DriftDefaults struct {
	KubernetesSchedule string `json:"kubernetesSchedule,omitempty" jsonschema_description:"Cron schedule of the full comparison, beside the watch; @hourly by default."`
	TerraformSchedule  string `json:"terraformSchedule,omitempty" jsonschema_description:"Cron schedule of the drift check; */15 * * * * by default."`

	Rules      []DriftRule  `json:"rules,omitempty" jsonschema_description:"The operator's word on some drift, in the place of the stack's mode. The first rule that matches a finding decides."`
	Quiet      []DriftQuiet `json:"quiet,omitempty" jsonschema_description:"Times in which drift is told of and not reverted; it is reverted when they are over."`
	BreakGlass []BreakGlass `json:"breakGlass,omitempty" jsonschema_description:"Where a person may keep drift of an object from being reverted for a while, by the annotation holdfast.dev/break-glass on the live object. Without an entry the annotation means nothing."`
}

// DriftRule says what happens to some drift. Empty lists match everything.
type DriftRule struct {
	Name         string   `json:"name" jsonschema_description:"Shown with what it decides."`
	Environments []string `json:"environments,omitempty" jsonschema_description:"Names of environments."`
	Stacks       []string `json:"stacks,omitempty" jsonschema_description:"Globs over names of stacks."`
	Kinds        []string `json:"kinds,omitempty" jsonschema_description:"Globs over Kind or Kind.group, or Terraform resource types."`
	Paths        []string `json:"paths,omitempty" jsonschema_description:"JSON pointers, with * for one segment; what is below is covered. Every field of a finding must be covered."`
	Classes      []string `json:"classes,omitempty" jsonschema:"enum=modified,enum=foreign,enum=missing,enum=extra" jsonschema_description:"modified: a field of ours; foreign: somebody added something; missing: an object is gone; extra: one is still there."`
	Actors       []string `json:"actors,omitempty" jsonschema_description:"Globs over users, as far as the audit log tells, else over field managers, which are what a client calls itself. Everybody who had a part in a finding must match; drift whose actor is unknown never does."`
	Action       string   `json:"action" jsonschema:"enum=revert,enum=report,enum=ask,enum=adopt" jsonschema_description:"revert: at once; report: say so; ask: revert when a person approves (holdfast approve); adopt: offer the change as a commit in a clone of the repository (holdfast drift --branch)."`
}

// DriftQuiet is a time in which nothing is reverted.
type DriftQuiet struct {
	Name         string   `json:"name" jsonschema_description:"Shown with what it holds back."`
	Environments []string `json:"environments,omitempty" jsonschema_description:"Names of environments. Empty: all."`
	Stacks       []string `json:"stacks,omitempty" jsonschema_description:"Globs over names of stacks. Empty: all."`
	Schedule     string   `json:"schedule" jsonschema_description:"Cron schedule of its beginning, in the daemon's time zone, or with CRON_TZ=Europe/Berlin in front."`
	Duration     Duration `json:"duration" jsonschema_description:"How long it lasts, at most 168h."`
}

// BreakGlass says where an excuse on a live object counts.
type BreakGlass struct {
	Environments []string `json:"environments,omitempty" jsonschema_description:"Names of environments. Empty: all."`
	Stacks       []string `json:"stacks,omitempty" jsonschema_description:"Globs over names of stacks. Empty: all."`
	Max          Duration `json:"max" jsonschema_description:"For how long from when the drift was first seen, whatever the annotation says; at most 168h. What somebody added and new images are reverted all the same."`
}

// Limits bound what one plan may do.
type Limits struct {
	MaxDeletes     int `json:"maxDeletes,omitempty" jsonschema_description:"How many objects one plan may delete or replace; 50 by default, -1 for no limit."`
	MaxDeleteShare int `json:"maxDeleteShare,omitempty" jsonschema_description:"Which share of what a stack has one plan may delete or replace, in percent, where that is more than three objects; 50 by default, 100 for no limit."`
}

// Kind says where objects of a custom kind name images.
type Kind struct {
	Kind   string   `json:"kind" jsonschema_description:"Kind.group, for example Cluster.postgresql.cnpg.io."`
	Images []string `json:"images,omitempty" jsonschema_description:"JSON pointers to image references, with * for one segment. A path that ends in a map with repository, tag and digest is read as one reference."`
	None   bool     `json:"none,omitempty" jsonschema_description:"Objects of this kind run no image. Either images or none; with health neither is needed."`
	Health *Health  `json:"health,omitempty" jsonschema_description:"When an object of this kind is healthy. Rules for the kinds of common operators are built in; for others the condition Ready counts."`
}

// Health says by CEL expressions over a live object where it stands.
type Health struct {
	Current    string `json:"current" jsonschema_description:"CEL expression that is true when the object is healthy. It names fields of the live object: status.phase == 'Running'."`
	InProgress string `json:"inProgress,omitempty" jsonschema_description:"CEL expression that is true while it is on its way. Asked before the others."`
	Failed     string `json:"failed,omitempty" jsonschema_description:"CEL expression that is true when it failed and will not go on by itself."`
}

// Orders says who may sign orders, and how long one may be on its way.
type Orders struct {
	Signers []Signer `json:"signers,omitempty" jsonschema_description:"Empty: no order is ever taken."`
	MaxAge  Duration `json:"maxAge,omitempty" jsonschema_description:"An order older than this is refused, 1h by default."`
}

// Signed asks that this file is signed. Who may sign the next file is said by
// the one before it.
type Signed struct {
	Signers []Signer `json:"signers" jsonschema_description:"Who may sign holdfast.yaml, as an SSH signature of the namespace config@holdfast.dev in holdfast.yaml.sig."`
	Counter int      `json:"counter" jsonschema_description:"Grows with each signed file. A file with a smaller counter than the one before it is refused."`
	Files   string   `json:"files,omitempty" jsonschema_description:"Digest of every file that this one names and that is no secret, as holdfast check prints it: the signature covers them through it. Required wherever a signature is."`
}

// Notify says who hears of what.
type Notify struct {
	Receivers []Receiver `json:"receivers,omitempty" jsonschema_description:"The places that are told."`
	Routes    []Route    `json:"routes,omitempty" jsonschema_description:"Every route that matches sends to its receivers. Without routes every receiver gets everything."`
	Link      string     `json:"link,omitempty" jsonschema_description:"Where a person can look; {stack} and {environment} are replaced."`
}

// Receiver is one place that is told.
type Receiver struct {
	Name     string   `json:"name" jsonschema_description:"How routes call it."`
	Type     string   `json:"type" jsonschema:"enum=slack,enum=teams,enum=pagerduty,enum=webhook" jsonschema_description:"What it speaks: a webhook gets CloudEvents."`
	URLFile  string   `json:"urlFile,omitempty" jsonschema_description:"File with the URL, which is a secret: an incoming webhook of Slack or Teams, or where CloudEvents are posted. For PagerDuty empty: its Events API v2."`
	KeyFile  string   `json:"keyFile,omitempty" jsonschema_description:"PagerDuty: file with the integration key. Webhook: file with a secret; bodies are signed with HMAC-SHA-256 in X-Holdfast-Signature-256."`
	CAFile   string   `json:"caFile,omitempty" jsonschema_description:"PEM file with the certificate authorities of the receiver."`
	Template string   `json:"template,omitempty" jsonschema_description:"Go text/template for the text; its dot is the notification."`
	Repeat   Duration `json:"repeat,omitempty" jsonschema_description:"The same thing is said again after this time while it lasts, 4h by default."`
}

// Route sends what it matches to receivers. An empty list matches all.
type Route struct {
	Receivers    []string `json:"receivers" jsonschema_description:"Names of receivers."`
	Environments []string `json:"environments,omitempty" jsonschema_description:"Names of environments. Empty: all."`
	Stacks       []string `json:"stacks,omitempty" jsonschema_description:"Globs over names."`
	Classes      []string `json:"classes,omitempty" jsonschema_description:"drift, denied, failed, recovered, held, revoked, source, ledger."`
	Severity     string   `json:"severity,omitempty" jsonschema:"enum=info,enum=warning,enum=critical" jsonschema_description:"The least severity; info by default."`
}

// Telemetry says where traces go.
type Telemetry struct {
	OTLP        string            `json:"otlp,omitempty" jsonschema_description:"OTLP/HTTP endpoint for traces, for example https://collector:4318. Empty: none."`
	Headers     map[string]string `json:"headers,omitempty" jsonschema_description:"Header names, each with the file that holds its value."`
	CAFile      string            `json:"caFile,omitempty" jsonschema_description:"PEM file with the certificate authorities of the endpoint. Empty: the system's."`
	SampleRatio float64           `json:"sampleRatio,omitempty" jsonschema_description:"Share of deployments that are traced, 1 by default."`
}
