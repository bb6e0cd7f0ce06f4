package provenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// maxListed bounds the dependencies of a build.
const maxListed = 100_000

// build is what provenance of any version says, in the words of v1.
type build struct {
	builder, buildType string
	external, internal map[string]any // numbers are json.Number
	dependencies       []intoto.Descriptor
	invocation         string
	started, finished  intoto.Time
}

// parse reads provenance of one version.
func parse(predicateType string, predicate []byte) (*build, error) {
	var b *build
	var err error
	switch predicateType {
	case PredicateV1:
		b, err = parseV1(predicate)
	case PredicateV02:
		b, err = parseV02(predicate)
	default:
		return nil, fmt.Errorf("%q is not provenance", intoto.Short(predicateType))
	}
	switch {
	case err != nil:
		return nil, err
	case b.builder == "":
		return nil, errors.New("it names no builder")
	case b.buildType == "":
		return nil, errors.New("it names no build type")
	case len(b.dependencies) > maxListed:
		return nil, fmt.Errorf("it lists more than %d dependencies", maxListed)
	}
	return b, nil
}

// text is a string that some builders write as a number.
type text string

// UnmarshalJSON reads a string or a number.
func (t *text) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err == nil {
		if s != nil {
			*t = text(*s)
		}
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return errors.New("neither a string nor a number")
	}
	*t = text(n.String())
	return nil
}

// either returns the one of two spellings of a field that is there.
func either(a, b text) (string, error) {
	if a != "" && b != "" && a != b {
		return "", errors.New("it names two invocations")
	}
	return string(max(a, b)), nil
}

// parseV1 reads https://slsa.dev/spec/v1.2/build-provenance.
func parseV1(predicate []byte) (*build, error) {
	var p struct {
		BuildDefinition struct {
			BuildType            string              `json:"buildType"`
			ExternalParameters   json.RawMessage     `json:"externalParameters"`
			InternalParameters   json.RawMessage     `json:"internalParameters"`
			ResolvedDependencies []intoto.Descriptor `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
			Metadata struct {
				InvocationID text        `json:"invocationId"`
				Invocation   text        `json:"invocationID"` // as BuildKit and in-toto-golang write it
				StartedOn    intoto.Time `json:"startedOn"`
				FinishedOn   intoto.Time `json:"finishedOn"`
			} `json:"metadata"`
		} `json:"runDetails"`
	}
	if err := intoto.Decode(predicate, &p); err != nil {
		return nil, err
	}
	external, err := object("externalParameters", p.BuildDefinition.ExternalParameters)
	if err != nil {
		return nil, err
	}
	if external == nil { // "REQUIRED for SLSA Build L1", be it empty
		return nil, errors.New("it has no externalParameters")
	}
	internal, err := object("internalParameters", p.BuildDefinition.InternalParameters)
	if err != nil {
		return nil, err
	}
	m := p.RunDetails.Metadata
	invocation, err := either(m.InvocationID, m.Invocation)
	return &build{
		builder: p.RunDetails.Builder.ID, buildType: p.BuildDefinition.BuildType, external: external, internal: internal,
		dependencies: p.BuildDefinition.ResolvedDependencies, invocation: invocation, started: m.StartedOn, finished: m.FinishedOn,
	}, err
}

// parseV02 reads https://slsa.dev/spec/v0.2/provenance. Its external parameters
// are {configSource {uri, entryPoint}, parameters, event {inputs}}: what GitHub's
// event says that a person typed in is as much from outside as the parameters.
func parseV02(predicate []byte) (*build, error) {
	var p struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		BuildType  string `json:"buildType"`
		Invocation struct {
			ConfigSource struct {
				URI        string            `json:"uri"`
				Digest     map[string]string `json:"digest"`
				EntryPoint string            `json:"entryPoint"`
			} `json:"configSource"`
			Parameters  json.RawMessage `json:"parameters"`
			Environment json.RawMessage `json:"environment"`
		} `json:"invocation"`
		Metadata struct {
			InvocationID text        `json:"buildInvocationId"`
			Invocation   text        `json:"buildInvocationID"` // as in-toto-golang writes it
			StartedOn    intoto.Time `json:"buildStartedOn"`
			FinishedOn   intoto.Time `json:"buildFinishedOn"`
		} `json:"metadata"`
		Materials []intoto.Descriptor `json:"materials"`
	}
	if err := intoto.Decode(predicate, &p); err != nil {
		return nil, err
	}
	parameters, err := value(p.Invocation.Parameters)
	if err != nil {
		return nil, err
	}
	environment, err := object("environment", p.Invocation.Environment)
	if err != nil {
		return nil, err
	}
	config := p.Invocation.ConfigSource
	external := map[string]any{
		"configSource": map[string]any{"uri": config.URI, "entryPoint": config.EntryPoint},
		"parameters":   parameters,
		"event":        map[string]any{"inputs": at(environment, "github_event_payload", "inputs")},
	}
	deps := p.Materials
	if config.URI != "" && len(config.Digest) > 0 {
		deps = append([]intoto.Descriptor{{URI: config.URI, Digest: config.Digest}}, deps...)
	}
	invocation, err := either(p.Metadata.InvocationID, p.Metadata.Invocation)
	return &build{
		builder: p.Builder.ID, buildType: p.BuildType, external: external, internal: environment,
		dependencies: deps, invocation: invocation, started: p.Metadata.StartedOn, finished: p.Metadata.FinishedOn,
	}, err
}

// value reads JSON that has been checked, with numbers as they are written.
func value(raw json.RawMessage) (any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// object reads a JSON object; it returns nil for nothing and null.
func object(what string, raw json.RawMessage) (map[string]any, error) {
	v, err := value(raw)
	if err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return v, nil
	default:
		return nil, fmt.Errorf("%s is not an object", what)
	}
}

// at returns what is at a path of names, or nil.
func at(v any, path ...string) any {
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// word returns the string or the number at a path, else "".
func word(v any, path ...string) string {
	if s, ok := leaf(at(v, path...)); ok {
		return s
	}
	return ""
}

// leaf returns a value that is not an object or array, as it is written.
func leaf(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	default:
		return "", false
	}
}

// dotted writes a path as a rule does.
func dotted(path []string) string { return strings.Join(path, ".") }
