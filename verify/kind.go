package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// The kinds of artifact.
const (
	KindImage    = "image"    // a container image that a Kubernetes object names
	KindArtifact = "artifact" // an OCI artifact with a desired state
	KindPolicy   = "policy"   // a policy bundle
	KindChart    = "chart"    // a Helm chart in a registry
)

// Kind is one kind of artifact.
type Kind struct {
	Name string
	What string // for people: "a Helm chart"
	// Placed says that it is deployed to an environment, so that rules may be about
	// some environments only.
	Placed bool
	// Config is the media type that its config must have, and Layer that of its one
	// layer with content, beside which those of Extra may be. Empty: whoever reads its
	// content checks what it is.
	Config, Layer string
	Extra         []string
	// Named reads from its config what it calls itself. The name must be the last
	// part of the repository, and the version the tag, if it was asked for by one: a
	// signature is about content, and somebody's other chart has one too.
	Named func(config []byte) (name, version string, err error)
}

// kinds is the table of artifact kinds: a new one is an entry.
var kinds = []Kind{
	{Name: KindImage, What: "a container image", Placed: true},
	{Name: KindArtifact, What: "an artifact with a desired state"},
	{Name: KindPolicy, What: "a bundle of policies"},
	{
		// https://helm.sh/docs/topics/registries/#helm-chart-manifest
		Name: KindChart, What: "a Helm chart", Placed: true,
		Config: "application/vnd.cncf.helm.config.v1+json", Layer: "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
		Extra: []string{"application/vnd.cncf.helm.chart.provenance.v1.prov"}, Named: chartName,
	},
}

// KindOf returns the kind with a name.
func KindOf(name string) (Kind, bool) {
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}

// KindNames lists every kind that a rule may be about.
func KindNames() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.Name)
	}
	return out
}

var (
	chartPart    = regexp.MustCompile(`\A[a-zA-Z0-9._-]{1,250}\z`)
	chartVersion = regexp.MustCompile(`\A[0-9A-Za-z.+-]{1,127}\z`)
)

// chartName reads the Chart.yaml that Helm puts into the config as JSON.
func chartName(config []byte) (name, version string, err error) {
	var c struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return "", "", fmt.Errorf("its config is not a Chart.yaml: %w", err)
	}
	if !chartPart.MatchString(c.Name) || !chartVersion.MatchString(c.Version) {
		return "", "", errors.New("its config names no chart and no version")
	}
	return c.Name, c.Version, nil
}
