package oci

import (
	"slices"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify/strictjson"
)

// The annotations of a manifest that are read here.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
const (
	annotationCreated  = "org.opencontainers.image.created"
	annotationVersion  = "org.opencontainers.image.version"
	annotationRevision = "org.opencontainers.image.revision"
	annotationSource   = "org.opencontainers.image.source"
	annotationTitle    = "org.opencontainers.image.title"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// The media types of layers.
const (
	layerOCI    = "application/vnd.oci.image.layer.v1.tar+gzip"               // oras push FOLDER, Argo CD, opa build
	layerFlux   = "application/vnd.cncf.flux.content.v1.tar+gzip"             // flux push artifact
	layerPolicy = "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego" // conftest push: one file
	layerData   = "application/vnd.cncf.openpolicyagent.data.layer.v1+json"   // conftest push: one file
)

// imageConfigs are the configurations of what runs. An image that is signed to
// run was not signed to say what runs.
var imageConfigs = []string{"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}

// maxLayers bounds the files that conftest pushes one by one.
const maxLayers = 1000

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive reports whether the layer is a compressed tar, and not a single file.
func (d descriptor) archive() bool { return strings.HasSuffix(d.MediaType, ".tar+gzip") }

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations"`
}

// parseManifest parses an image manifest, which OCI artifacts are written as. It
// refuses one that two readers could understand differently.
func parseManifest(raw []byte) (*manifest, error) {
	m := &manifest{}
	if err := strictjson.Unmarshal(raw, m); err != nil {
		return nil, invalid("push the artifact again", "its manifest is malformed: %w", err)
	}
	switch {
	case m.SchemaVersion != 2:
		return nil, invalid("push it as an OCI artifact", "its manifest has schema version %d", m.SchemaVersion)
	case m.MediaType != "" && m.MediaType != manifestType:
		return nil, invalid("push one artifact, not an index of several", "its manifest is a %s", clip(m.MediaType))
	case len(m.Layers) == 0:
		return nil, invalid("push a folder with flux push artifact, or oras push", "it has no layers")
	case len(m.Layers) > maxLayers:
		return nil, invalid("push fewer files, or one archive", "it has %d layers, the limit is %d", len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if !artifactID.MatchString(l.Digest.String()) || l.Size < 0 {
			return nil, invalid("push the artifact again", "a layer has the digest %q and the size %d", clip(l.Digest.String()), l.Size)
		}
	}
	return m, nil
}

// desiredState returns the one layer of a desired state.
func (m *manifest) desiredState() (descriptor, error) {
	const hint = "push a folder with flux push artifact, or oras push: one layer of type tar+gzip"
	if slices.Contains(imageConfigs, m.Config.MediaType) {
		return descriptor{}, invalid(hint, "it is a container image, not a desired state")
	}
	if len(m.Layers) != 1 {
		return descriptor{}, invalid(hint, "it has %d layers, a desired state has one", len(m.Layers))
	}
	if l := m.Layers[0]; l.MediaType != layerFlux && l.MediaType != layerOCI {
		return descriptor{}, invalid(hint, "its layer is a %s", clip(l.MediaType))
	}
	return m.Layers[0], nil
}

// policies returns the layers of a policy bundle: one archive, or files.
func (m *manifest) policies() ([]descriptor, error) {
	const hint = "push the policies with conftest push, or as an opa bundle: one layer of type tar+gzip"
	if len(m.Layers) == 1 && m.Layers[0].MediaType == layerOCI {
		return m.Layers, nil
	}
	for _, l := range m.Layers {
		if l.MediaType != layerPolicy && l.MediaType != layerData {
			return nil, invalid(hint, "a layer of it is a %s", clip(l.MediaType))
		}
		if l.Annotations[annotationTitle] == "" {
			return nil, invalid(hint, "a layer of it has no annotation %s, which names its file", annotationTitle)
		}
	}
	return m.Layers, nil
}

// invalid is a fault of an artifact's content.
func invalid(hint, format string, args ...any) error {
	return fault.New(fault.Invalid, "sources/oci", hint, format, args...)
}

// clip makes text from outside fit for one line of a log.
func clip(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s[:min(len(s), most)], "?"))
	return strings.TrimSpace(s)
}
