package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/cel-go/cel"
	celast "github.com/google/cel-go/common/ast"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// HealthRule says by CEL expressions (https://cel.dev) where an object of a custom
// kind stands. They see the fields of the live object by name, as Flux's
// healthCheckExprs do: apiVersion, kind, metadata, spec, status, data. InProgress and
// Failed are optional and are asked first; what none of the three says, an expression
// that asks for a field that is not there yet too, is on its way.
type HealthRule struct {
	Kind                        string // "Cluster.postgresql.cnpg.io"
	Current, InProgress, Failed string
}

const (
	maxExpression = 4096   // bytes
	maxCost       = 100000 // of one evaluation, in CEL's own units
	// maxEvaluation bounds what the cost does not see, such as comparing large values.
	maxEvaluation = 250 * time.Millisecond
)

// objectFields are what an expression may name.
var objectFields = []string{"apiVersion", "kind", "metadata", "spec", "status", "data"}

var healthEnv = sync.OnceValues(func() (*cel.Env, error) {
	opts := []cel.EnvOption{cel.OptionalTypes(), cel.ParserRecursionLimit(50)}
	for _, f := range objectFields {
		opts = append(opts, cel.Variable(f, cel.DynType))
	}
	return cel.NewEnv(opts...)
})

// healthRule is a [HealthRule] that was compiled.
type healthRule struct {
	inProgress, failed, current cel.Program // nil: not given
}

// newHealthRules compiles rules, by kind.
func newHealthRules(rules []HealthRule) (map[string]*healthRule, error) {
	out := map[string]*healthRule{}
	for _, r := range rules {
		h := &healthRule{}
		for _, e := range []struct {
			name, text string
			to         *cel.Program
		}{{"current", r.Current, &h.current}, {"inProgress", r.InProgress, &h.inProgress}, {"failed", r.Failed, &h.failed}} {
			if e.text == "" && e.name != "current" {
				continue
			}
			p, err := compileHealth(e.text)
			if err != nil {
				return nil, fmt.Errorf("health of %s: %s: %w", r.Kind, e.name, err)
			}
			*e.to = p
		}
		if _, twice := out[r.Kind]; twice || r.Kind == "" {
			return nil, fmt.Errorf("health of %q is said twice, or of no kind", r.Kind)
		}
		out[r.Kind] = h
	}
	return out, nil
}

func compileHealth(text string) (cel.Program, error) {
	if text == "" || len(text) > maxExpression {
		return nil, fmt.Errorf("the expression has %d bytes, want 1 to %d", len(text), maxExpression)
	}
	env, err := healthEnv()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, err
	}
	if t := ast.OutputType(); t != cel.BoolType && t != cel.DynType {
		return nil, fmt.Errorf("%q is a %s, want true or false", text, t)
	}
	// One regular expression over a long text is one step, that neither the cost nor the
	// time interrupts.
	if len(celast.MatchDescendants(celast.NavigateAST(ast.NativeRep()), celast.FunctionMatcher("matches"))) > 0 {
		return nil, fmt.Errorf("%q: matches is not allowed; use ==, in, contains, startsWith or endsWith", text)
	}
	return env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100))
}

// compute returns where live stands, as kstatus would say it.
func (h *healthRule) compute(live *unstructured.Unstructured) *status.Result {
	// Some controllers write it as a string.
	if seen, ok, _ := unstructured.NestedFieldNoCopy(live.Object, "status", "observedGeneration"); ok && fmt.Sprint(seen) != fmt.Sprint(live.GetGeneration()) {
		return &status.Result{Status: status.InProgressStatus, Message: fmt.Sprintf("generation %d was not observed yet", live.GetGeneration())}
	}
	if live.GetDeletionTimestamp() != nil {
		return &status.Result{Status: status.TerminatingStatus, Message: "it is being deleted"}
	}
	vars := map[string]any{}
	for _, f := range objectFields {
		vars[f] = live.Object[f]
	}
	var unknown error
	is := func(p cel.Program) bool {
		if p == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), maxEvaluation)
		defer cancel()
		out, _, err := p.ContextEval(ctx, vars)
		if err != nil {
			unknown = err
			return false
		}
		yes, ok := out.Value().(bool)
		return ok && yes
	}
	switch {
	case is(h.inProgress):
		return &status.Result{Status: status.InProgressStatus, Message: said(live, "in progress")}
	case is(h.failed):
		return &status.Result{Status: status.FailedStatus, Message: said(live, "failed")}
	case is(h.current):
		return &status.Result{Status: status.CurrentStatus}
	case unknown != nil:
		return &status.Result{Status: status.InProgressStatus, Message: said(live, unknown.Error())}
	}
	return &status.Result{Status: status.InProgressStatus, Message: said(live, "not current yet")}
}

// said returns what the conditions of live that are not as they should be say, or else.
func said(live *unstructured.Unstructured, otherwise string) string {
	conditions, _, _ := unstructured.NestedSlice(live.Object, "status", "conditions")
	for _, e := range conditions {
		m, _ := e.(map[string]any)
		if text, _ := m["message"].(string); m["status"] == "False" && text != "" {
			return fmt.Sprintf("%v: %s", m["type"], text)
		}
	}
	for _, f := range []string{"phase", "state", "health"} {
		if text, ok, _ := unstructured.NestedString(live.Object, "status", f); ok && text != "" {
			return f + " " + text
		}
	}
	return otherwise
}

// health returns where live stands: by the stack's rule for its kind, else the
// operator's, else one that is built in, else by kstatus.
func (t *Target) health(live *unstructured.Unstructured) (*status.Result, error) {
	kind := live.GroupVersionKind().GroupKind().String()
	for _, rules := range []map[string]*healthRule{t.healthRules, t.c.healthRules} {
		if h := rules[kind]; h != nil {
			return h.compute(live), nil
		}
	}
	return status.Compute(live)
}

// vitals are how an object stood at one version.
type vitals struct {
	at       uint64
	current  bool
	progress string    // what it was doing, where it was on its way
	since    time.Time // since when it is not current
}

// vitals returns how live stands, which stood as before says. It asks nobody.
func (t *Target) vitals(live *unstructured.Unstructured, before vitals) vitals {
	v := vitals{at: version(live)}
	s, err := t.health(live)
	switch {
	case err == nil && s.Status == status.CurrentStatus:
		v.current = true
		return v
	case err == nil && s.Status == status.InProgressStatus:
		v.progress = strings.Clone(cmp.Or(line(s.Message), "not current yet")) // of a text that may be long
	}
	if v.since = before.since; v.since.IsZero() {
		v.since = time.Now()
	}
	return v
}

// builtinHealthRules compiles what is built in, once.
var builtinHealthRules = sync.OnceValues(func() (map[string]*healthRule, error) {
	var rules []HealthRule
	for _, kind := range slices.Sorted(maps.Keys(knownHealth)) {
		r := knownHealth[kind]
		r.Kind = kind
		rules = append(rules, r)
	}
	return newHealthRules(rules)
})

// when returns an expression that is true if the condition of a type has a status.
func when(condition, value string) string {
	return "status.conditions.exists(c, c.type == '" + condition + "' && c.status == '" + value + "')"
}

var ready = HealthRule{Current: when("Ready", "True")}

// routed: every parent took the route, and everything that it names was found.
var routed = HealthRule{
	Current: "status.parents.size() > 0 && status.parents.all(p, ['Accepted', 'ResolvedRefs'].all(t, p.conditions.exists(c, c.type == t && c.status == 'True')))",
	Failed:  "status.parents.exists(p, p.conditions.exists(c, c.type == 'Accepted' && c.status == 'False'))",
}

// knownHealth are the kinds of common operators of which kstatus does not know enough:
// it calls an object current that has no status yet, and knows the condition Ready
// only. The sources are the operators' API references.
var knownHealth = map[string]HealthRule{
	"APIService.apiregistration.k8s.io":             {Current: when("Available", "True")},
	"Alertmanager.monitoring.coreos.com":            {Current: when("Available", "True") + " && " + when("Reconciled", "True")},
	"Application.argoproj.io":                       {Current: "status.health.status == 'Healthy' && status.sync.status == 'Synced'", Failed: "status.health.status == 'Degraded'"},
	"Backup.postgresql.cnpg.io":                     {Current: "status.phase == 'completed'", Failed: "status.phase == 'failed'"},
	"Backup.velero.io":                              {Current: "status.phase == 'Completed'", Failed: "status.phase in ['Failed', 'PartiallyFailed', 'FailedValidation']"},
	"Certificate.cert-manager.io":                   ready,
	"Cluster.cluster.x-k8s.io":                      {Current: when("Ready", "True") + " || " + when("Available", "True"), Failed: "status.phase == 'Failed'"},
	"Cluster.postgresql.cnpg.io":                    ready,
	"ClusterIssuer.cert-manager.io":                 ready,
	"ClusterPolicy.kyverno.io":                      ready,
	"ClusterSecretStore.external-secrets.io":        ready,
	"Configuration.pkg.crossplane.io":               {Current: when("Installed", "True") + " && " + when("Healthy", "True"), Failed: when("Healthy", "False")},
	"Elasticsearch.elasticsearch.k8s.elastic.co":    {Current: "status.phase == 'Ready' && status.health in ['green', 'yellow']", Failed: "status.phase == 'Invalid'"},
	"ExternalSecret.external-secrets.io":            ready,
	"Function.pkg.crossplane.io":                    {Current: when("Installed", "True") + " && " + when("Healthy", "True"), Failed: when("Healthy", "False")},
	"GRPCRoute.gateway.networking.k8s.io":           routed,
	"Gateway.gateway.networking.k8s.io":             {Current: when("Programmed", "True"), Failed: when("Accepted", "False")},
	"GatewayClass.gateway.networking.k8s.io":        {Current: when("Accepted", "True"), Failed: when("Accepted", "False")},
	"HTTPRoute.gateway.networking.k8s.io":           routed,
	"HelmRelease.helm.toolkit.fluxcd.io":            {Current: when("Ready", "True"), Failed: when("Stalled", "True")},
	"Issuer.cert-manager.io":                        ready,
	"Kafka.kafka.strimzi.io":                        {Current: when("Ready", "True"), Failed: when("NotReady", "True")},
	"KafkaConnect.kafka.strimzi.io":                 {Current: when("Ready", "True"), Failed: when("NotReady", "True")},
	"KafkaTopic.kafka.strimzi.io":                   {Current: when("Ready", "True"), Failed: when("NotReady", "True")},
	"KafkaUser.kafka.strimzi.io":                    {Current: when("Ready", "True"), Failed: when("NotReady", "True")},
	"Kibana.kibana.k8s.elastic.co":                  {Current: "status.health == 'green'"},
	"Kustomization.kustomize.toolkit.fluxcd.io":     {Current: when("Ready", "True"), Failed: when("Stalled", "True")},
	"MongoDBCommunity.mongodbcommunity.mongodb.com": {Current: "status.phase == 'Running'", Failed: "status.phase == 'Failed'"},
	"NodePool.karpenter.sh":                         ready,
	"Policy.kyverno.io":                             ready,
	"Prometheus.monitoring.coreos.com":              {Current: when("Available", "True") + " && " + when("Reconciled", "True")},
	"Provider.pkg.crossplane.io":                    {Current: when("Installed", "True") + " && " + when("Healthy", "True"), Failed: when("Healthy", "False")},
	"RabbitmqCluster.rabbitmq.com":                  {Current: when("AllReplicasReady", "True") + " && " + when("ReconcileSuccess", "True")},
	"Rollout.argoproj.io":                           {Current: "status.phase == 'Healthy'", Failed: "status.phase == 'Degraded'"},
	"ScaledJob.keda.sh":                             ready,
	"ScaledObject.keda.sh":                          ready,
	"Schedule.velero.io":                            {Current: "status.phase == 'Enabled'", Failed: "status.phase == 'FailedValidation'"},
	"SealedSecret.bitnami.com":                      {Current: when("Synced", "True"), Failed: when("Synced", "False")},
	"SecretStore.external-secrets.io":               ready,
	"Service.serving.knative.dev":                   {Current: when("Ready", "True"), Failed: when("Ready", "False")},
	"VolumeSnapshot.snapshot.storage.k8s.io":        {Current: "status.readyToUse == true", Failed: "has(status.error)"},
	"Workflow.argoproj.io":                          {Current: "status.phase == 'Succeeded'", Failed: "status.phase in ['Failed', 'Error']"},
}
