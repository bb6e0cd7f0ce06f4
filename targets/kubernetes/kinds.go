package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-dev/holdfast/internal/daemon"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// KindImages says where the objects of one custom kind name images. It takes
// the place of the declaration that is built in, with what that refuses.
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
	// required are fields without which the controller runs what nobody has
	// verified, each with what it does then. Of several, separated by spaces, one is enough.
	required map[string]string
	// refused are fields that make the controller run what no image path can
	// tell, each with what they do.
	refused map[string]string
	// uses are fields that name another object whose images run, each with the
	// "kind.group" of that object. It has to be in the same stack, where it is verified.
	uses map[string]string
	// objects are fields that hold whole objects, which the controller creates.
	objects []string
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
// specifications in every kind, and where a custom kind declares it. Places that
// lead to images in another way, or to nobody knows what, are among them: see
// [image]. A custom kind without a declaration is an error of kind fault.Denied.
func (t kindTable) images(gk schema.GroupKind, m map[string]any) ([]image, error) {
	out, err := images(m)
	if err != nil {
		return nil, err
	}
	declared, err := t.declared(gk, m, nil, 0)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, im := range out {
		known[dotted(im.path)] = true
	}
	for _, im := range declared {
		if at := dotted(im.path); im.opaque() || !known[at] {
			known[at] = true
			out = append(out, im)
		}
	}
	return out, nil
}

// declared returns what the kind's declaration says of the object m, which
// stands at the path at.
func (t kindTable) declared(gk schema.GroupKind, m map[string]any, at []any, depth int) ([]image, error) {
	d, ok := t[strings.ToLower(gk.String())]
	switch {
	case !ok && builtinGroup(gk.Group):
		return nil, nil
	case !ok:
		return nil, undeclared(gk)
	case depth > maxDepth:
		return nil, fmt.Errorf("nested too deeply")
	}
	var out []image
	for _, p := range d.images {
		found, err := declaredImages(m, pointerTokens(p), at, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	out = append(out, d.unverifiable(gk, m, at)...)
	if len(at) > 0 { // One that stands by itself is judged when it is rendered: what a live one lacks cannot be taken out of it.
		if err := d.missing(gk, m); err != nil {
			out = append(out, opaque(at, "", err))
		}
	}
	for _, p := range d.objects {
		err := walkPointer(m, pointerTokens(p), at, nil, func(v any, at []any, _ func(any)) error {
			inner, _ := v.(map[string]any)
			version, _ := inner["apiVersion"].(string)
			kind, _ := inner["kind"].(string)
			found, err := t.declared(schema.FromAPIVersionAndKind(version, kind).GroupKind(), inner, at, depth+1)
			out = append(out, found...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// unverifiable returns the places of m, which stands at the path at, where it
// leads to images by something else than a reference to one.
func (d declaration) unverifiable(gk schema.GroupKind, m map[string]any, at []any) []image {
	var out []image
	each := func(fields map[string]string, judge func(value any, path []any, what string)) {
		for _, p := range slices.Sorted(maps.Keys(fields)) {
			_ = walkPointer(m, pointerTokens(p), at, nil, func(v any, path []any, _ func(any)) error { // which has no error of its own
				if says(v) {
					judge(v, path, fields[p])
				}
				return nil
			})
		}
	}
	each(d.refused, func(_ any, path []any, why string) {
		out = append(out, opaque(path, "", fault.New(fault.Denied, opRender, "leave it out, or "+accepting(gk), "%s %s", dotted(path), why)))
	})
	each(d.versions, func(_ any, path []any, name string) {
		if !stands(m, name) {
			out = append(out, opaque(path, "", fault.New(fault.Denied, opRender,
				"name the image in "+name+", so that it can be verified, or "+accepting(gk), "%s makes the kind's controller choose an image by itself", dotted(path))))
		}
	})
	each(d.uses, func(v any, path []any, kind string) {
		out = append(out, opaque(path, used(v, kind), fault.New(fault.Denied, opRender,
			"declare what it names in the same stack, where its images are verified, or "+accepting(gk), "%s runs what an object outside this stack says", dotted(path))))
	})
	return out
}

// missing refuses an object that leaves out what its kind requires.
func (d declaration) missing(gk schema.GroupKind, m map[string]any) error {
	for _, needed := range slices.Sorted(maps.Keys(d.required)) {
		fields := strings.Fields(needed)
		if !slices.ContainsFunc(fields, func(p string) bool { return stands(m, p) }) {
			list := strings.Join(fields, " or ")
			return fault.New(fault.Denied, opRender, "set "+list+", or "+accepting(gk), "without %s %s", list, d.required[needed])
		}
	}
	return nil
}

// accepting says how the operator takes an object as it is.
func accepting(gk schema.GroupKind) string {
	return fmt.Sprintf("have the operator accept that it is not verified: an entry for %s under kinds: in holdfast.yaml takes the place of what is built in, refusals included", gk)
}

// stands reports whether pointer leads to anything in m.
func stands(m map[string]any, pointer string) bool {
	found := false
	_ = walkPointer(m, pointerTokens(pointer), nil, nil, func(v any, _ []any, _ func(any)) error {
		found = found || says(v)
		return nil
	})
	return found
}

// says reports whether a field with the value v asks for anything.
func says(v any) bool {
	list, ok := v.([]any)
	return v != nil && v != "" && v != false && (!ok || len(list) > 0)
}

// used returns the "kind.group/name" that the value of a field names, for which
// kind is the kind where the field has none.
func used(v any, kind string) string {
	if name, ok := v.(string); ok {
		return kind + "/" + name
	}
	m, _ := v.(map[string]any)
	text := func(key string) string { s, _ := m[key].(string); return s }
	name, group, _ := strings.Cut(kind, ".")
	if k := text("kind"); k != "" {
		name = strings.ToLower(k)
	}
	if g := text("apiGroup"); g != "" {
		group = g
	}
	if v := text("apiVersion"); v != "" {
		group = schema.FromAPIVersionAndKind(v, "").Group
	}
	if m["clusterScope"] == true { // Argo Workflows
		name = "cluster" + name
	}
	return name + "." + group + "/" + text("name")
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
	"postgresql.cnpg.io":               "backup database databaserole failoverquorum publication scheduledbackup subscription",
	"kafka.strimzi.io":                 "kafkaconnector kafkanodepool kafkarebalance kafkatopic kafkauser",
	"rabbitmq.com":                     "binding exchange federation operatorpolicy permission policy queue schemareplication shovel superstream topicpermission user vhost",
	"autoscaling.k8s.elastic.co":       "elasticsearchautoscaler",
	"stackconfigpolicy.k8s.elastic.co": "stackconfigpolicy",
	// A workload of these is a pod template.
	"argoproj.io":         "analysisrun analysistemplate appproject clusteranalysistemplate experiment",
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
	"tekton.dev":                     "verificationpolicy",
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
			"/spec/thanos": "/spec/thanos/image",
		},
		required: chosenWithout("/spec/image"),
	},
	"prometheusagent.monitoring.coreos.com": prometheusKind(),
	"thanosruler.monitoring.coreos.com":     prometheusKind(),
	// https://docs.victoriametrics.com/operator/api/
	"vlagent.operator.victoriametrics.com":        oneImage(),
	"vlcluster.operator.victoriametrics.com":      components("vlinsert", "vlselect", "vlstorage"),
	"vlogs.operator.victoriametrics.com":          oneImage(),
	"vlsingle.operator.victoriametrics.com":       oneImage(),
	"vmagent.operator.victoriametrics.com":        reloaderKind(),
	"vmalert.operator.victoriametrics.com":        reloaderKind(),
	"vmalertmanager.operator.victoriametrics.com": reloaderKind(),
	"vmanomaly.operator.victoriametrics.com":      oneImage(),
	"vmauth.operator.victoriametrics.com":         reloaderKind(),
	"vmcluster.operator.victoriametrics.com":      components("vminsert", "vmselect", "vmstorage", "vmstorage/vmBackup"),
	"vmsingle.operator.victoriametrics.com": {
		images:   []string{"/spec/image", "/spec/vmBackup/image"},
		versions: map[string]string{"/spec/vmBackup": "/spec/vmBackup/image"},
		required: chosenWithout("/spec/image"),
	},
	"vtcluster.operator.victoriametrics.com": components("insert", "select", "storage"),
	"vtsingle.operator.victoriametrics.com":  oneImage(),
	// https://cloudnative-pg.io/documentation/current/cloudnative-pg.v1/
	"cluster.postgresql.cnpg.io": {
		images:   []string{"/spec/imageName", "/spec/postgresql/extensions/*/image"},
		uses:     map[string]string{"/spec/imageCatalogRef": "imagecatalog.postgresql.cnpg.io"},
		required: chosenWithout("/spec/imageName /spec/imageCatalogRef"),
	},
	"clusterimagecatalog.postgresql.cnpg.io": {images: []string{"/spec/images/*/image", "/spec/images/*/extensions/*/image", "/spec/componentImages/*/image"}},
	"imagecatalog.postgresql.cnpg.io":        {images: []string{"/spec/images/*/image", "/spec/images/*/extensions/*/image", "/spec/componentImages/*/image"}},
	// Its image stands in the pod template.
	"pooler.postgresql.cnpg.io": {required: chosenWithout("/spec/template/spec/containers/*/image")},
	"postgresql.acid.zalan.do": {
		images: []string{"/spec/dockerImage", "/spec/connectionPooler/dockerImage", "/spec/sidecars/*/image"},
		versions: map[string]string{
			"/spec/connectionPooler": "/spec/connectionPooler/dockerImage", "/spec/enableConnectionPooler": "/spec/connectionPooler/dockerImage",
			"/spec/enableReplicaConnectionPooler": "/spec/connectionPooler/dockerImage",
		},
		required: chosenWithout("/spec/dockerImage"),
		refused:  map[string]string{"/spec/enableLogicalBackup": "runs the operator's own image for backups"},
	},
	// https://strimzi.io/docs/operators/latest/configuring
	"kafka.kafka.strimzi.io": {
		images: []string{
			"/spec/kafka/image", "/spec/kafka/brokerRackInitImage", "/spec/zookeeper/image", "/spec/entityOperator/topicOperator/image",
			"/spec/entityOperator/userOperator/image", "/spec/entityOperator/tlsSidecar/image", "/spec/cruiseControl/image",
			"/spec/cruiseControl/tlsSidecar/image", "/spec/jmxTrans/image", "/spec/kafkaExporter/image",
		},
		versions: map[string]string{
			"/spec/kafka/version": "/spec/kafka/image", "/spec/kafka/rack": "/spec/kafka/brokerRackInitImage", "/spec/zookeeper": "/spec/zookeeper/image",
			"/spec/entityOperator/topicOperator": "/spec/entityOperator/topicOperator/image",
			"/spec/entityOperator/userOperator":  "/spec/entityOperator/userOperator/image",
			"/spec/cruiseControl":                "/spec/cruiseControl/image", "/spec/jmxTrans": "/spec/jmxTrans/image", "/spec/kafkaExporter": "/spec/kafkaExporter/image",
		},
		required: chosenWithout("/spec/kafka/image"),
	},
	"kafkabridge.kafka.strimzi.io": strimziKind(),
	"kafkaconnect.kafka.strimzi.io": {
		images:   strimziKind().images,
		versions: strimziKind().versions,
		required: strimziKind().required,
		refused:  map[string]string{"/spec/build": "makes the operator build an image from what it downloads, unverified"},
	},
	"kafkamirrormaker.kafka.strimzi.io":  strimziKind(),
	"kafkamirrormaker2.kafka.strimzi.io": strimziKind(),
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
	"workflow.argoproj.io":                workflowKind("/spec"),
	"workflowtemplate.argoproj.io":        workflowKind("/spec"),
	"clusterworkflowtemplate.argoproj.io": workflowKind("/spec"),
	"cronworkflow.argoproj.io":            workflowKind("/spec/workflowSpec"),
	"workfloweventbinding.argoproj.io":    {uses: map[string]string{"/spec/submit/workflowTemplateRef": workflowTemplate}},
	// A rollout is a pod template, or leads to the Deployment with one.
	"rollout.argoproj.io": {uses: map[string]string{"/spec/workloadRef": "deployment.apps"}},
	// https://tekton.dev/docs/pipelines/pipeline-api/
	"task.tekton.dev":        taskKind("/spec"),
	"clustertask.tekton.dev": taskKind("/spec"),
	"taskrun.tekton.dev":     both(taskKind("/spec/taskSpec"), referenceKind("/spec/taskRef", "task.tekton.dev")),
	"stepaction.tekton.dev":  oneImage(),
	"pipeline.tekton.dev":    pipelineKind("/spec"),
	"pipelinerun.tekton.dev": both(pipelineKind("/spec/pipelineSpec"), referenceKind("/spec/pipelineRef", "pipeline.tekton.dev")),
	"run.tekton.dev":         {refused: map[string]string{"/spec/spec": anyController}},
	"customrun.tekton.dev":   {refused: map[string]string{"/spec/customSpec": anyController}},
	// Whatever it makes when it is triggered is judged as if it stood by itself.
	"triggertemplate.triggers.tekton.dev": {objects: []string{"/spec/resourcetemplates/*"}},
	// https://www.jaegertracing.io/docs/1.76/deployment/kubernetes/
	"jaeger.jaegertracing.io": {required: chosenWithout("/spec/allInOne/image /spec/collector/image"), images: []string{
		"/spec/agent/image", "/spec/allInOne/image", "/spec/collector/image", "/spec/ingester/image", "/spec/query/image",
		"/spec/storage/cassandraCreateSchema/image", "/spec/storage/dependencies/image", "/spec/storage/elasticsearch/image",
		"/spec/storage/esIndexCleaner/image", "/spec/storage/esRollover/image", "/spec/storage/grpcPlugin/image",
	}},
	// https://github.com/open-telemetry/opentelemetry-operator/tree/main/docs/api
	"instrumentation.opentelemetry.io": {images: []string{
		"/spec/apacheHttpd/image", "/spec/dotnet/image", "/spec/go/image", "/spec/java/image", "/spec/java/extensions/*/image",
		"/spec/nginx/image", "/spec/nodejs/image", "/spec/python/image",
	}},
	"opampbridge.opentelemetry.io": oneImage(),
	"opentelemetrycollector.opentelemetry.io": {
		images:   []string{"/spec/image", "/spec/additionalContainers/*/image", "/spec/targetAllocator/image"},
		versions: map[string]string{"/spec/targetAllocator/enabled": "/spec/targetAllocator/image"},
		required: chosenWithout("/spec/image"),
	},
	"targetallocator.opentelemetry.io": {images: []string{"/spec/image", "/spec/additionalContainers/*/image"}, required: chosenWithout("/spec/image")},
	// https://redis-operator.opstree.dev/docs/crd-reference/
	"redis.redis.redis.opstreelabs.in":            opstreeKind(),
	"rediscluster.redis.redis.opstreelabs.in":     opstreeKind(),
	"redisreplication.redis.redis.opstreelabs.in": opstreeKind(),
	"redissentinel.redis.redis.opstreelabs.in":    opstreeKind(),
	"redisfailover.databases.spotahome.com": {
		images: []string{
			"/spec/redis/image", "/spec/redis/exporter/image", "/spec/redis/extraContainers/*/image",
			"/spec/sentinel/image", "/spec/sentinel/exporter/image", "/spec/sentinel/extraContainers/*/image",
		},
		versions: map[string]string{"/spec/redis/exporter/enabled": "/spec/redis/exporter/image", "/spec/sentinel/exporter/enabled": "/spec/sentinel/exporter/image"},
		required: chosenWithout("/spec/redis/image", "/spec/sentinel/image"),
	},
	// https://www.rabbitmq.com/kubernetes/operator/using-operator
	"rabbitmqcluster.rabbitmq.com": {
		images:   []string{"/spec/image", "/spec/secretBackend/vault/defaultUserUpdaterImage"},
		required: chosenWithout("/spec/image"),
	},
	// https://docs.crossplane.io/latest/api/: packages are images, and providers and functions run them.
	"configuration.pkg.crossplane.io":    packageKind(),
	"controllerconfig.pkg.crossplane.io": {images: []string{"/spec/image"}},
	"function.pkg.crossplane.io":         packageKind(),
	"provider.pkg.crossplane.io":         packageKind(),
}

// chosenWithout requires each of fields, or one of those that it lists: a
// controller that finds none takes an image of its own choice.
func chosenWithout(fields ...string) map[string]string {
	out := map[string]string{}
	for _, f := range fields {
		out[f] = "the kind's controller chooses an image by itself"
	}
	return out
}

// both returns what a and b say together.
func both(a, b declaration) declaration {
	return declaration{
		images:   slices.Concat(a.images, b.images),
		versions: merged(a.versions, b.versions),
		required: merged(a.required, b.required),
		refused:  merged(a.refused, b.refused),
		uses:     merged(a.uses, b.uses),
		objects:  slices.Concat(a.objects, b.objects),
	}
}

func merged(ms ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range ms {
		maps.Copy(out, m)
	}
	return out
}

func oneImage() declaration {
	return declaration{images: []string{"/spec/image"}, required: chosenWithout("/spec/image")}
}

// components is a kind whose parts have an image each. A part that is not there does not run.
func components(names ...string) declaration {
	d := declaration{
		images:   []string{"/spec/requestsLoadBalancer/spec/image"},
		versions: map[string]string{"/spec/requestsLoadBalancer/enabled": "/spec/requestsLoadBalancer/spec/image"},
	}
	for _, n := range names {
		d.images = append(d.images, "/spec/"+n+"/image")
		d.versions["/spec/"+n] = "/spec/" + n + "/image"
	}
	return d
}

// packageKind is a kind of packages. The package manager installs what a package
// depends on as well, and no stack names that.
func packageKind() declaration {
	return declaration{images: []string{"/spec/package"}, required: map[string]string{
		"/spec/package":                  "there is nothing to verify",
		"/spec/skipDependencyResolution": "the package manager installs what the package depends on, unverified",
	}}
}

func strimziKind() declaration {
	return declaration{
		images:   []string{"/spec/image", "/spec/clientRackInitImage"},
		versions: map[string]string{"/spec/version": "/spec/image", "/spec/rack": "/spec/clientRackInitImage"},
		required: chosenWithout("/spec/image"),
	}
}

func prometheusKind() declaration {
	return declaration{
		images:   []string{"/spec/image"},
		versions: map[string]string{"/spec/version": "/spec/image", "/spec/baseImage": "/spec/image", "/spec/tag": "/spec/image", "/spec/sha": "/spec/image"},
		required: chosenWithout("/spec/image"),
	}
}

func elasticKind() declaration {
	return declaration{images: []string{"/spec/image"}, versions: map[string]string{"/spec/version": "/spec/image"}, required: chosenWithout("/spec/image")}
}

func reloaderKind() declaration {
	return declaration{
		images:   []string{"/spec/image", "/spec/configReloaderImage"},
		versions: map[string]string{"/spec/configReloaderImageTag": "/spec/configReloaderImage"},
		required: chosenWithout("/spec/image"),
	}
}

func opstreeKind() declaration {
	return declaration{
		images:   []string{"/spec/kubernetesConfig/image", "/spec/redisExporter/image", "/spec/initContainer/image", "/spec/sidecars/*/image"},
		versions: map[string]string{"/spec/redisExporter/enabled": "/spec/redisExporter/image", "/spec/initContainer/enabled": "/spec/initContainer/image"},
		required: chosenWithout("/spec/kubernetesConfig/image"),
	}
}

const (
	workflowTemplate = "workflowtemplate.argoproj.io"
	patchesPods      = "patches the pods that are made, images included"
	anyController    = "is for a controller that nobody has declared"
)

// workflowKind is a kind with an Argo workflow at spec.
func workflowKind(spec string) declaration {
	d := declaration{
		refused: map[string]string{spec + "/podSpecPatch": patchesPods, spec + "/artifactGC/podSpecPatch": patchesPods},
		uses:    map[string]string{spec + "/workflowTemplateRef": workflowTemplate, spec + "/hooks/*/templateRef": workflowTemplate},
	}
	for _, at := range []string{spec + "/templateDefaults", spec + "/templates/*"} {
		d = both(d, stepKind(at))
		for _, step := range []string{at + "/steps/*/*", at + "/dag/tasks/*"} {
			d = both(d, stepKind(step+"/inline"))
			d.uses[step+"/templateRef"], d.uses[step+"/hooks/*/templateRef"] = workflowTemplate, workflowTemplate
			d.refused[step+"/inline/steps"], d.refused[step+"/inline/dag"] = "hides steps within a step", "hides steps within a step"
		}
	}
	return d
}

// stepKind is a template of an Argo workflow at the pointer at.
func stepKind(at string) declaration {
	return declaration{
		images: []string{at + "/container/image", at + "/script/image", at + "/sidecars/*/image"},
		refused: map[string]string{
			at + "/podSpecPatch": patchesPods, at + "/resource/manifest": "creates objects from a text, unverified",
			at + "/resource/manifestFrom": "creates objects from an artifact, unverified",
		},
		uses: map[string]string{at + "/templateRef": workflowTemplate},
	}
}

// referenceKind is a reference of Tekton's at the pointer at, to an object of kind.
func referenceKind(at, kind string) declaration {
	return declaration{
		refused: map[string]string{at + "/resolver": "fetches what it runs from elsewhere, unverified", at + "/bundle": "runs what a bundle holds, unverified"},
		uses:    map[string]string{at: kind},
	}
}

// taskKind is a kind with the specification of a Tekton task at spec.
func taskKind(spec string) declaration {
	return both(
		declaration{
			images:  []string{spec + "/steps/*/image", spec + "/sidecars/*/image", spec + "/stepTemplate/image"},
			refused: map[string]string{spec + "/apiVersion": anyController, spec + "/spec": anyController},
		},
		referenceKind(spec+"/steps/*/ref", "stepaction.tekton.dev"),
	)
}

// pipelineKind is a kind with the specification of a Tekton pipeline at spec.
func pipelineKind(spec string) declaration {
	var d declaration
	for _, task := range []string{spec + "/tasks/*", spec + "/finally/*"} {
		d = both(d, both(taskKind(task+"/taskSpec"), both(referenceKind(task+"/taskRef", "task.tekton.dev"), referenceKind(task+"/pipelineRef", "pipeline.tekton.dev"))))
		d.refused[task+"/pipelineSpec"] = "hides a pipeline within a pipeline"
	}
	return d
}
