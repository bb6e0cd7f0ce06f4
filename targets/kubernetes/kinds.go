package kubernetes

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/daemon"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// KindImages says where the objects of one custom kind name images. It takes
// the place of the declaration that is built in.
type KindImages struct {
	Kind string // "Cluster.postgresql.cnpg.io"; case does not matter
	// Images are JSON pointers, with * for one segment (a list element too). One
	// that leads to a map with repository, registry, tag or digest names one
	// image by all of them.
	Images []string
	// None says that its objects name no image but those in pod templates, which
	// are found by their shape in every kind.
	None bool
}

// declaration is what is known about one custom kind.
type declaration struct {
	images []string
	// versions are fields that make the kind's controller choose an image by
	// itself, each with the field that names the image instead: who sets the one
	// has to set the other, or an image would run that nobody has verified.
	versions map[string]string
}

// kindTable holds declarations by "kind.group" in lower case.
type kindTable map[string]declaration

// newKindTable returns the built-in declarations with the operator's in their place.
func newKindTable(own []KindImages) (kindTable, error) {
	t := kindTable{}
	for group, kinds := range kindsWithoutImages {
		for _, kind := range strings.Fields(kinds) {
			t[kind+"."+group] = declaration{}
		}
	}
	for kind, d := range kindsWithImages {
		t[kind] = d
	}
	seen := map[string]bool{}
	for _, k := range own {
		name := strings.ToLower(k.Kind)
		_, group, _ := strings.Cut(name, ".")
		switch {
		case group == "":
			return nil, fmt.Errorf("kubernetes: kinds: %q is not of the form Kind.group", k.Kind)
		case seen[name]:
			return nil, fmt.Errorf("kubernetes: kinds: %s is declared twice", k.Kind)
		case k.None == (len(k.Images) > 0):
			return nil, fmt.Errorf("kubernetes: kinds: %s needs either images or none", k.Kind)
		}
		for _, p := range k.Images {
			if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") {
				return nil, fmt.Errorf("kubernetes: kinds: %s: %q is no JSON pointer to a field", k.Kind, p)
			}
		}
		seen[name] = true
		t[name] = declaration{images: slices.Clone(k.Images)}
	}
	return t, nil
}

// images finds every image that an object names: by the shape of pod
// specifications in every kind, and where a custom kind declares it. A custom
// kind without a declaration is an error of kind fault.Denied.
func (t kindTable) images(gk schema.GroupKind, m map[string]any) ([]image, error) {
	out, err := images(m)
	if err != nil {
		return nil, err
	}
	d, ok := t[strings.ToLower(gk.String())]
	if !ok {
		if builtinGroup(gk.Group) {
			return out, nil
		}
		return nil, undeclared(gk)
	}
	known := map[string]bool{}
	for _, im := range out {
		known[dotted(im.path)] = true
	}
	for _, p := range d.images {
		found, err := declaredImages(m, pointerTokens(p), nil, nil)
		if err != nil {
			return nil, err
		}
		for _, im := range found {
			if at := dotted(im.path); !known[at] {
				known[at] = true
				out = append(out, im)
			}
		}
	}
	return out, d.chosen(m)
}

// chosen refuses a version that stands without the image that it would choose.
func (d declaration) chosen(m map[string]any) error {
	for version, name := range d.versions {
		v, ok := valueAt(m, version)
		if im, named := valueAt(m, name); ok && v != nil && v != "" && (!named || im == nil || im == "") {
			return fault.New(fault.Denied, opRender, "name the image in "+name+", so that it can be verified",
				"%s makes the kind's controller choose an image by itself", version)
		}
	}
	return nil
}

// undeclared says what to do about a kind of which nobody knows where it names images.
func undeclared(gk schema.GroupKind) error {
	if why, ok := deployers[strings.ToLower(gk.String())]; ok {
		return fault.New(fault.Denied, opRender,
			fmt.Sprintf("deploy what it leads to with a stack of its own, or accept that nothing of it is verified, under kinds: in the operator's file: {kind: %s, none: true}", gk),
			"an object of the kind %s %s", gk, why)
	}
	return fault.New(fault.Denied, opRender,
		fmt.Sprintf("find out which fields of it name images and have the operator add them under kinds: in holdfast.yaml: {kind: %[1]s, images: [/spec/image]}; for a kind that runs none: {kind: %[1]s, none: true}", gk),
		"nobody has declared where objects of the custom kind %s name images", gk)
}

// builtinGroup reports whether the API server itself serves a group. The kinds
// in these name images in pod templates only.
func builtinGroup(group string) bool { return daemon.Builtin(group) }

// deployers are kinds whose objects make another controller deploy what stands
// elsewhere: an image path could not tell what will run.
var deployers = map[string]string{
	"kustomization.kustomize.toolkit.fluxcd.io": "makes Flux apply manifests from elsewhere, unverified",
	"helmrelease.helm.toolkit.fluxcd.io":        "makes Flux install a chart, unverified",
	"helmchart.helm.cattle.io":                  "makes the cluster install a chart, unverified",
	"application.argoproj.io":                   "makes Argo CD apply manifests from elsewhere, unverified",
	"applicationset.argoproj.io":                "makes Argo CD apply manifests from elsewhere, unverified",
	"sensor.argoproj.io":                        "creates objects on events, unverified",
	"wasmplugin.extensions.istio.io":            "makes proxies load a program, unverified",
	"envoyfilter.networking.istio.io":           "changes the configuration of proxies, which can load programs",
	"subscription.operators.coreos.com":         "makes the lifecycle manager install an operator, unverified",
}

// kindsWithoutImages are kinds of common operators, by group, whose objects name
// no image outside pod templates. Their schemas were looked through.
var kindsWithoutImages = map[string]string{ //nolint:gosec // names of kinds, some of which are about credentials
	"acme.cert-manager.io":   "challenge order",
	"cert-manager.io":        "certificate certificaterequest clusterissuer issuer",
	"policy.cert-manager.io": "certificaterequestpolicy",
	"external-secrets.io":    "clusterexternalsecret clusterpushsecret clustersecretstore externalsecret pushsecret secretstore",
	"generators.external-secrets.io": "acraccesstoken cloudsmithaccesstoken clustergenerator ecrauthorizationtoken fake gcraccesstoken generatorstate " +
		"githubaccesstoken grafana mfa password quayaccesstoken sshkey stssessiontoken uuid vaultdynamicsecret webhook",
	"bitnami.com":                      "sealedsecret",
	"secrets-store.csi.x-k8s.io":       "secretproviderclass",
	"secrets.hashicorp.com":            "hcpauth hcpvaultsecretsapp secrettransformation vaultauth vaultauthglobal vaultconnection vaultdynamicsecret vaultpkisecret vaultstaticsecret",
	"monitoring.coreos.com":            "alertmanagerconfig podmonitor probe prometheusrule scrapeconfig servicemonitor",
	"operator.victoriametrics.com":     "vmalertmanagerconfig vmnodescrape vmpodscrape vmprobe vmrule vmscrapeconfig vmservicescrape vmstaticscrape vmuser",
	"postgresql.cnpg.io":               "backup database databaserole failoverquorum pooler publication scheduledbackup subscription",
	"kafka.strimzi.io":                 "kafkaconnector kafkanodepool kafkarebalance kafkatopic kafkauser",
	"rabbitmq.com":                     "binding exchange federation operatorpolicy permission policy queue schemareplication shovel superstream topicpermission user vhost",
	"autoscaling.k8s.elastic.co":       "elasticsearchautoscaler",
	"stackconfigpolicy.k8s.elastic.co": "stackconfigpolicy",
	// A workload of these is a pod template.
	"argoproj.io":         "analysisrun analysistemplate appproject clusteranalysistemplate experiment rollout workfloweventbinding",
	"serving.knative.dev": "configuration domainmapping revision route service",
	"keda.sh":             "cloudeventsource clustertriggerauthentication scaledjob scaledobject triggerauthentication",
	"eventing.keda.sh":    "cloudeventsource clustercloudeventsource",
	// Where Flux looks, and whom it tells; what it would apply is denied (deployers).
	"source.toolkit.fluxcd.io":       "bucket gitrepository helmrepository ocirepository",
	"image.toolkit.fluxcd.io":        "imagepolicy imagerepository imageupdateautomation",
	"notification.toolkit.fluxcd.io": "alert provider receiver",
	"networking.istio.io":            "destinationrule gateway serviceentry sidecar virtualservice workloadentry workloadgroup",
	"security.istio.io":              "authorizationpolicy peerauthentication requestauthentication",
	"telemetry.istio.io":             "telemetry",
	"gateway.networking.k8s.io":      "backendtlspolicy gateway gatewayclass grpcroute httproute listenerset referencegrant tcproute tlsroute udproute",
	"traefik.io":                     "ingressroute ingressroutetcp ingressrouteudp middleware middlewaretcp serverstransport serverstransporttcp tlsoption tlsstore traefikservice",
	"projectcontour.io":              "extensionservice httpproxy tlscertificatedelegation",
	"cilium.io":                      "ciliumcidrgroup ciliumclusterwidenetworkpolicy ciliumegressgatewaypolicy ciliumnetworkpolicy",
	"metallb.io":                     "addresspool bfdprofile bgpadvertisement bgppeer community ipaddresspool l2advertisement",
	"policy.linkerd.io":              "authorizationpolicy egressnetwork httplocalratelimitpolicy httproute meshtlsauthentication networkauthentication server serverauthorization",
	"snapshot.storage.k8s.io":        "volumesnapshot volumesnapshotclass volumesnapshotcontent",
	"autoscaling.k8s.io":             "verticalpodautoscaler verticalpodautoscalercheckpoint",
	"cluster.x-k8s.io":               "cluster clusterclass machine machinedeployment machinedrainrule machinehealthcheck machinepool machineset",
	"apiextensions.crossplane.io":    "compositeresourcedefinition composition compositionrevision environmentconfig usage",
	"pkg.crossplane.io":              "deploymentruntimeconfig lock",
	"protection.crossplane.io":       "clusterusage usage",
	"tekton.dev":                     "customrun verificationpolicy",
	"triggers.tekton.dev":            "triggerbinding clustertriggerbinding interceptor clusterinterceptor",
}

// kindsWithImages are kinds of common operators whose objects name images, by
// "kind.group". The paths are those of their published schemas.
var kindsWithImages = map[string]declaration{
	// https://prometheus-operator.dev/docs/api-reference/api/
	"alertmanager.monitoring.coreos.com": prometheusKind(),
	"prometheus.monitoring.coreos.com": {
		images: []string{"/spec/image", "/spec/thanos/image"},
		versions: map[string]string{
			"/spec/version": "/spec/image", "/spec/baseImage": "/spec/image", "/spec/tag": "/spec/image", "/spec/sha": "/spec/image",
			"/spec/thanos/version": "/spec/thanos/image", "/spec/thanos/baseImage": "/spec/thanos/image",
			"/spec/thanos/tag": "/spec/thanos/image", "/spec/thanos/sha": "/spec/thanos/image",
		},
	},
	"prometheusagent.monitoring.coreos.com": prometheusKind(),
	"thanosruler.monitoring.coreos.com":     prometheusKind(),
	// https://docs.victoriametrics.com/operator/api/
	"vlagent.operator.victoriametrics.com":        {images: []string{"/spec/image"}},
	"vlcluster.operator.victoriametrics.com":      {images: []string{"/spec/vlinsert/image", "/spec/vlselect/image", "/spec/vlstorage/image"}},
	"vlogs.operator.victoriametrics.com":          {images: []string{"/spec/image"}},
	"vlsingle.operator.victoriametrics.com":       {images: []string{"/spec/image"}},
	"vmagent.operator.victoriametrics.com":        reloaderKind(),
	"vmalert.operator.victoriametrics.com":        reloaderKind(),
	"vmalertmanager.operator.victoriametrics.com": reloaderKind(),
	"vmanomaly.operator.victoriametrics.com":      {images: []string{"/spec/image"}},
	"vmauth.operator.victoriametrics.com":         reloaderKind(),
	"vmcluster.operator.victoriametrics.com": {
		images:   []string{"/spec/vminsert/image", "/spec/vmselect/image", "/spec/vmstorage/image", "/spec/vmstorage/vmBackup/image"},
		versions: map[string]string{"/spec/clusterVersion": "/spec/vmstorage/image"},
	},
	"vmsingle.operator.victoriametrics.com":  {images: []string{"/spec/image", "/spec/vmBackup/image"}},
	"vtcluster.operator.victoriametrics.com": {images: []string{"/spec/insert/image", "/spec/select/image", "/spec/storage/image"}},
	"vtsingle.operator.victoriametrics.com":  {images: []string{"/spec/image"}},
	// https://cloudnative-pg.io/documentation/current/cloudnative-pg.v1/
	"cluster.postgresql.cnpg.io":             {images: []string{"/spec/imageName", "/spec/postgresql/extensions/*/image"}},
	"clusterimagecatalog.postgresql.cnpg.io": {images: []string{"/spec/images/*/image", "/spec/images/*/extensions/*/image", "/spec/componentImages/*/image"}},
	"imagecatalog.postgresql.cnpg.io":        {images: []string{"/spec/images/*/image", "/spec/images/*/extensions/*/image", "/spec/componentImages/*/image"}},
	"postgresql.acid.zalan.do":               {images: []string{"/spec/dockerImage", "/spec/connectionPooler/dockerImage", "/spec/sidecars/*/image"}},
	// https://strimzi.io/docs/operators/latest/configuring
	"kafka.kafka.strimzi.io": {
		images: []string{
			"/spec/kafka/image", "/spec/kafka/brokerRackInitImage", "/spec/zookeeper/image", "/spec/entityOperator/topicOperator/image",
			"/spec/entityOperator/userOperator/image", "/spec/entityOperator/tlsSidecar/image", "/spec/cruiseControl/image",
			"/spec/cruiseControl/tlsSidecar/image", "/spec/jmxTrans/image", "/spec/kafkaExporter/image",
		},
		versions: map[string]string{"/spec/kafka/version": "/spec/kafka/image"},
	},
	"kafkabridge.kafka.strimzi.io": {images: []string{"/spec/image", "/spec/clientRackInitImage"}},
	// The output of a build is what it makes, not what it runs; it cannot be verified before it is made.
	"kafkaconnect.kafka.strimzi.io": {
		images:   []string{"/spec/image", "/spec/clientRackInitImage", "/spec/build/output/image"},
		versions: map[string]string{"/spec/version": "/spec/image"},
	},
	"kafkamirrormaker.kafka.strimzi.io":  {images: []string{"/spec/image"}, versions: map[string]string{"/spec/version": "/spec/image"}},
	"kafkamirrormaker2.kafka.strimzi.io": {images: []string{"/spec/image", "/spec/clientRackInitImage"}, versions: map[string]string{"/spec/version": "/spec/image"}},
	// https://www.elastic.co/docs/reference/cloud-on-k8s/api-docs
	"agent.agent.k8s.elastic.co":                       elasticKind(),
	"apmserver.apm.k8s.elastic.co":                     elasticKind(),
	"beat.beat.k8s.elastic.co":                         elasticKind(),
	"elasticsearch.elasticsearch.k8s.elastic.co":       elasticKind(),
	"elasticmapsserver.maps.k8s.elastic.co":            elasticKind(),
	"enterprisesearch.enterprisesearch.k8s.elastic.co": elasticKind(),
	"kibana.kibana.k8s.elastic.co":                     elasticKind(),
	"logstash.logstash.k8s.elastic.co":                 elasticKind(),
	// https://argo-workflows.readthedocs.io/en/latest/fields/
	"workflow.argoproj.io":                {images: workflowImages("/spec")},
	"workflowtemplate.argoproj.io":        {images: workflowImages("/spec")},
	"clusterworkflowtemplate.argoproj.io": {images: workflowImages("/spec")},
	"cronworkflow.argoproj.io":            {images: workflowImages("/spec/workflowSpec")},
	// https://tekton.dev/docs/pipelines/pipeline-api/
	"task.tekton.dev":                     {images: taskImages("/spec")},
	"clustertask.tekton.dev":              {images: taskImages("/spec")},
	"taskrun.tekton.dev":                  {images: append(taskImages("/spec/taskSpec"), "/spec/taskRef/bundle")},
	"stepaction.tekton.dev":               {images: []string{"/spec/image"}},
	"pipeline.tekton.dev":                 {images: pipelineImages("/spec")},
	"pipelinerun.tekton.dev":              {images: append(pipelineImages("/spec/pipelineSpec"), "/spec/pipelineRef/bundle")},
	"triggertemplate.triggers.tekton.dev": {images: append(taskImages("/spec/resourcetemplates/*/spec/taskSpec"), pipelineImages("/spec/resourcetemplates/*/spec/pipelineSpec")...)},
	// https://www.jaegertracing.io/docs/1.76/deployment/kubernetes/
	"jaeger.jaegertracing.io": {images: []string{
		"/spec/agent/image", "/spec/allInOne/image", "/spec/collector/image", "/spec/ingester/image", "/spec/query/image",
		"/spec/storage/cassandraCreateSchema/image", "/spec/storage/dependencies/image", "/spec/storage/elasticsearch/image",
		"/spec/storage/esIndexCleaner/image", "/spec/storage/esRollover/image", "/spec/storage/grpcPlugin/image",
	}},
	// https://github.com/open-telemetry/opentelemetry-operator/tree/main/docs/api
	"instrumentation.opentelemetry.io": {images: []string{
		"/spec/apacheHttpd/image", "/spec/dotnet/image", "/spec/go/image", "/spec/java/image", "/spec/java/extensions/*/image",
		"/spec/nginx/image", "/spec/nodejs/image", "/spec/python/image",
	}},
	"opampbridge.opentelemetry.io":            {images: []string{"/spec/image"}},
	"opentelemetrycollector.opentelemetry.io": {images: []string{"/spec/image", "/spec/additionalContainers/*/image", "/spec/targetAllocator/image"}},
	"targetallocator.opentelemetry.io":        {images: []string{"/spec/image", "/spec/additionalContainers/*/image"}},
	// https://redis-operator.opstree.dev/docs/crd-reference/
	"redis.redis.redis.opstreelabs.in":            opstreeKind(),
	"rediscluster.redis.redis.opstreelabs.in":     opstreeKind(),
	"redisreplication.redis.redis.opstreelabs.in": opstreeKind(),
	"redissentinel.redis.redis.opstreelabs.in":    opstreeKind(),
	"redisfailover.databases.spotahome.com": {images: []string{
		"/spec/redis/image", "/spec/redis/exporter/image", "/spec/redis/extraContainers/*/image",
		"/spec/sentinel/image", "/spec/sentinel/exporter/image", "/spec/sentinel/extraContainers/*/image",
	}},
	// https://www.rabbitmq.com/kubernetes/operator/using-operator
	"rabbitmqcluster.rabbitmq.com": {images: []string{"/spec/image", "/spec/secretBackend/vault/defaultUserUpdaterImage"}},
	// https://docs.crossplane.io/latest/api/: packages are images, and providers and functions run them.
	"configuration.pkg.crossplane.io":    {images: []string{"/spec/package"}},
	"controllerconfig.pkg.crossplane.io": {images: []string{"/spec/image"}},
	"function.pkg.crossplane.io":         {images: []string{"/spec/package"}},
	"provider.pkg.crossplane.io":         {images: []string{"/spec/package"}},
}

func prometheusKind() declaration {
	return declaration{
		images:   []string{"/spec/image"},
		versions: map[string]string{"/spec/version": "/spec/image", "/spec/baseImage": "/spec/image", "/spec/tag": "/spec/image", "/spec/sha": "/spec/image"},
	}
}

func elasticKind() declaration {
	return declaration{images: []string{"/spec/image"}, versions: map[string]string{"/spec/version": "/spec/image"}}
}

func reloaderKind() declaration {
	return declaration{
		images:   []string{"/spec/image", "/spec/configReloaderImage"},
		versions: map[string]string{"/spec/configReloaderImageTag": "/spec/configReloaderImage"},
	}
}

func opstreeKind() declaration {
	return declaration{images: []string{"/spec/kubernetesConfig/image", "/spec/redisExporter/image", "/spec/initContainer/image", "/spec/sidecars/*/image"}}
}

func workflowImages(spec string) []string {
	var out []string
	for _, at := range []string{spec + "/templateDefaults", spec + "/templates/*"} {
		out = append(out, at+"/container/image", at+"/script/image", at+"/sidecars/*/image")
	}
	return out
}

func taskImages(spec string) []string {
	return []string{spec + "/steps/*/image", spec + "/sidecars/*/image", spec + "/stepTemplate/image"}
}

func pipelineImages(spec string) []string {
	var out []string
	for _, list := range []string{"/tasks/*", "/finally/*"} {
		out = append(out, taskImages(spec+list+"/taskSpec")...)
		out = append(out, spec+list+"/taskRef/bundle")
	}
	return out
}
