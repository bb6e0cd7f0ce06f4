package sbom

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	spdxjson "github.com/spdx/tools-golang/json"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// Caps on a document, beside the registry's on its bytes.
const (
	maxTools = 32     // named in facts
	maxText  = 200    // bytes of one tool's name
	maxNodes = 500000 // components, nested ones included
)

// document is what is kept of an SBOM.
type document struct {
	format, version string
	components      int
	tools           []string
}

// parse reads an SBOM and requires at least one component.
func parse(format string, b []byte) (d document, err error) {
	// The parsers are not ours and the bytes are a stranger's.
	defer func() {
		if r := recover(); r != nil {
			d, err = document{}, fmt.Errorf("malformed: %v", r)
		}
	}()
	if err := intoto.Check(b); err != nil {
		return d, err
	}
	switch format {
	case verify.FormatCycloneDX:
		d, err = parseCycloneDX(b)
	case verify.FormatSPDX:
		d, err = parseSPDX(b)
	default:
		return d, fmt.Errorf("unknown format %q", format)
	}
	if err != nil {
		return document{}, err
	}
	if d.components == 0 {
		return document{}, errors.New("it lists no component")
	}
	if d.components > maxNodes {
		return document{}, fmt.Errorf("more than %d components", maxNodes)
	}
	d.format, d.tools = format, tidy(d.tools)
	return d, nil
}

func tidy(tools []string) []string {
	out := []string{}
	for _, t := range tools {
		if t = strings.ToValidUTF8(strings.TrimSpace(t), ""); t != "" {
			out = append(out, strings.ToValidUTF8(t[:min(len(t), maxText)], ""))
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxTools)]
}

func parseCycloneDX(b []byte) (document, error) {
	var head struct {
		BOMFormat   string `json:"bomFormat"`
		SpecVersion string `json:"specVersion"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return document{}, fmt.Errorf("CycloneDX: %w", err)
	}
	if head.BOMFormat != cdx.BOMFormat || head.SpecVersion == "" {
		return document{}, errors.New("not a CycloneDX document: bomFormat or specVersion is missing or wrong")
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return document{}, fmt.Errorf("CycloneDX: %w", err)
	}
	d := document{version: head.SpecVersion}
	n, err := countCycloneDX(bom.Components)
	if err != nil {
		return document{}, err
	}
	d.components = n
	if bom.Metadata != nil && bom.Metadata.Tools != nil {
		d.tools = cycloneDXTools(bom.Metadata.Tools)
	}
	return d, nil
}

func cycloneDXTools(t *cdx.ToolsChoice) (tools []string) {
	if t.Tools != nil { // deprecated since 1.5, written by most tools
		for _, one := range *t.Tools { // as above
			tools = append(tools, one.Name+" "+one.Version)
		}
	}
	if t.Components != nil {
		for _, one := range *t.Components {
			tools = append(tools, one.Name+" "+one.Version)
		}
	}
	return tools
}

// countCycloneDX counts nested components too. Their depth is bounded.
func countCycloneDX(list *[]cdx.Component) (int, error) {
	if list == nil {
		return 0, nil
	}
	n := 0
	for _, c := range *list {
		if c.Name == "" {
			return 0, errors.New("CycloneDX: a component has no name")
		}
		inner, err := countCycloneDX(c.Components)
		if err != nil {
			return 0, err
		}
		n += 1 + inner
	}
	return n, nil
}

func parseSPDX(b []byte) (document, error) {
	var head struct {
		Version string          `json:"spdxVersion"`
		Context json.RawMessage `json:"@context"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return document{}, fmt.Errorf("SPDX: %w", err)
	}
	switch {
	case strings.HasPrefix(head.Version, "SPDX-2."):
		return parseSPDX2(b)
	case len(head.Context) > 0:
		return parseSPDX3(head.Context, b)
	default:
		return document{}, errors.New("not an SPDX document: neither spdxVersion SPDX-2.x nor an SPDX 3 @context")
	}
}

func parseSPDX2(b []byte) (document, error) {
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		return document{}, fmt.Errorf("SPDX: %w", err)
	}
	d := document{version: strings.TrimPrefix(doc.SPDXVersion, "SPDX-")}
	for _, p := range doc.Packages {
		if p == nil || p.PackageName == "" {
			return document{}, errors.New("SPDX: a package has no name")
		}
		d.components++
	}
	if doc.CreationInfo != nil {
		for _, c := range doc.CreationInfo.Creators {
			if c.CreatorType == "Tool" {
				d.tools = append(d.tools, c.Creator)
			}
		}
	}
	return d, nil
}

// spdx3Context is the prefix of the JSON-LD context of SPDX 3.0 documents,
// "https://spdx.org/rdf/3.0.1/spdx-context.jsonld".
const spdx3Context = "https://spdx.org/rdf/3."

// parseSPDX3 reads the compact JSON-LD form, in which the types are plain names.
// https://spdx.github.io/spdx-spec/v3.0.1/serializations/
func parseSPDX3(rawContext, b []byte) (document, error) {
	var context string
	if err := json.Unmarshal(rawContext, &context); err != nil || !strings.HasPrefix(context, spdx3Context) {
		return document{}, errors.New("SPDX 3: unknown @context")
	}
	var doc struct {
		Graph []struct {
			Type    string `json:"type"`
			Name    string `json:"name"`
			Version string `json:"specVersion"` // of CreationInfo
		} `json:"@graph"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return document{}, fmt.Errorf("SPDX 3: %w", err)
	}
	var d document
	for _, e := range doc.Graph {
		switch e.Type {
		case "software_Package":
			if e.Name == "" {
				return document{}, errors.New("SPDX 3: a package has no name")
			}
			d.components++
		case "Tool":
			d.tools = append(d.tools, e.Name)
		case "CreationInfo":
			if d.version == "" {
				d.version = e.Version
			}
		}
	}
	if !strings.HasPrefix(d.version, "3.") {
		return document{}, errors.New("SPDX 3: no CreationInfo with a specVersion")
	}
	return d, nil
}
