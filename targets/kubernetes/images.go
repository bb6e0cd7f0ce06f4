package kubernetes

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/holdfast-dev/holdfast/verify"
)

// image is one place in an object that names a container image.
type image struct {
	reference string
	path      []any // keys and indexes
	set       func(string)
}

// images finds every image that m names: in containers, init containers,
// ephemeral containers and image volumes. It goes by the shape of a pod
// specification, wherever one stands, so that pod templates of any kind, custom
// ones included, are found.
func images(m map[string]any) ([]image, error) {
	var out []image
	err := walkImages(m, nil, &out, 0)
	return out, err
}

func walkImages(v any, at []any, out *[]image, depth int) error {
	if depth > 10*maxDepth {
		return fmt.Errorf("nested too deeply")
	}
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if err := walkImages(e, append(slices.Clip(at), i), out, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			here := append(slices.Clip(at), k)
			if list, ok := v[k].([]any); ok {
				if err := listedImages(k, list, here, out); err != nil {
					return err
				}
			}
			if err := walkImages(v[k], here, out, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// listedImages looks at one list of containers or volumes.
func listedImages(key string, list []any, at []any, out *[]image) error {
	var field []string
	switch key {
	case "containers", "initContainers", "ephemeralContainers":
		field = []string{"image"}
	case "volumes":
		field = []string{"image", "reference"}
	default:
		return nil
	}
	for i, e := range list {
		path := append(slices.Clip(at), i)
		holder, _ := e.(map[string]any)
		for _, f := range field[:len(field)-1] {
			holder, _ = holder[f].(map[string]any)
			path = append(path, f)
		}
		last := field[len(field)-1]
		v, ok := holder[last]
		if !ok || v == "" {
			continue
		}
		path = append(path, last)
		ref, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s is not a string", dotted(path))
		}
		*out = append(*out, image{reference: ref, path: path, set: func(s string) { holder[last] = s }})
	}
	return nil
}

// dotted returns path as people write it: "spec.containers[0].image".
func dotted(path []any) string {
	var b strings.Builder
	for _, p := range path {
		switch p := p.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", p)
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			fmt.Fprint(&b, p)
		}
	}
	return b.String()
}

// artifacts returns every image of the rendering, once each, in order of appearance.
func (ren *rendering) artifacts() ([]verify.Subject, error) {
	var out []verify.Subject
	index := map[string]int{}
	for _, o := range ren.objects {
		found, err := images(o.u.Object)
		if err != nil {
			return nil, invalid("", "%s: %s: %w", o.from.at(), o.id, err)
		}
		for _, im := range found {
			i, ok := index[im.reference]
			if !ok {
				i = len(out)
				index[im.reference] = i
				out = append(out, verify.Subject{Kind: verify.KindImage, Reference: im.reference})
			}
			d := o.from
			if n := nodeAt(d.node, im.path); n != nil {
				d.line = n.Line
			}
			kind, _, _ := strings.Cut(o.id.Kind, ".")
			out[i].Locations = append(out[i].Locations, fmt.Sprintf("%s %s/%s %s", d.at(), kind, o.id.Name, dotted(im.path)))
		}
	}
	return out, nil
}

// nodeAt returns the node at path, or nil.
func nodeAt(n *yaml.Node, path []any) *yaml.Node {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			n = child(n, p)
		case int:
			if n == nil || n.Kind != yaml.SequenceNode || p >= len(n.Content) {
				return nil
			}
			n = n.Content[p]
		}
		if n == nil {
			return nil
		}
	}
	return n
}
