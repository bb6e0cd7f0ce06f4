package kubernetes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// image is one place in an object that names a container image, or that leads to
// images in another way: it is opaque then.
type image struct {
	reference string // for an opaque place: what it leads to, to tell it from others
	path      []any  // keys and indexes
	// pin makes the place name what the subject was resolved to.
	pin func(verify.Subject)
	// uses is the "kind.group/name" of the object that an opaque place leads to, or empty.
	uses string
	// denied is why an opaque place may not be declared, unless uses is in the same stack.
	denied error
}

// opaque returns an image that no reference names.
func opaque(path []any, uses string, denied error) image {
	return image{reference: cmp.Or(uses, dotted(path)), path: path, pin: func(verify.Subject) {}, uses: uses, denied: denied}
}

func (im image) opaque() bool { return im.denied != nil }

// images finds every image that m names: in containers, init containers,
// ephemeral containers and image volumes. It goes by the shape of a pod
// specification, wherever one stands, so that pod templates of any kind, custom
// ones included, are found; kindTable.images adds what a kind declares.
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
		*out = append(*out, image{reference: ref, path: path, pin: func(s verify.Subject) { holder[last] = s.Pinned() }})
	}
	return nil
}

// declaredImages returns the images that a declared path leads to in v, which
// stands at the path at. put replaces v in what holds it.
func declaredImages(v any, path []string, at []any, put func(any)) ([]image, error) {
	var out []image
	err := walkPointer(v, path, at, put, func(v any, at []any, put func(any)) error {
		found, err := imageAt(v, at, put)
		out = append(out, found...)
		return err
	})
	return out, err
}

// walkPointer calls visit with every value that path, where * stands for any key
// or index, leads to in v, with where it stands and how it is replaced.
func walkPointer(v any, path []string, at []any, put func(any), visit func(v any, at []any, put func(any)) error) error {
	if len(path) == 0 {
		return visit(v, at, put)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if path[0] == "*" || path[0] == k {
				if err := walkPointer(v[k], path[1:], append(slices.Clip(at), k), func(n any) { v[k] = n }, visit); err != nil {
					return err
				}
			}
		}
	case []any:
		for i := range v {
			if path[0] == "*" || path[0] == strconv.Itoa(i) {
				if err := walkPointer(v[i], path[1:], append(slices.Clip(at), i), func(n any) { v[i] = n }, visit); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// imageAt reads the value at the end of a declared path.
func imageAt(v any, at []any, put func(any)) ([]image, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		if v == "" {
			return nil, nil
		}
		return []image{{reference: v, path: at, pin: func(s verify.Subject) { put(s.Pinned()) }}}, nil
	case map[string]any:
		im, err := splitImage(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dotted(at), err)
		}
		im.path = at
		return []image{im}, nil
	}
	return nil, fmt.Errorf("%s is neither an image reference nor a map with the parts of one", dotted(at))
}

// splitImage reads a reference that is kept in parts. It is pinned in the field
// for the digest if it has one, and otherwise behind the tag, "1.4@sha256:…":
// whoever joins the parts gets the digest with them, or a reference that no
// registry answers, and never another image.
func splitImage(m map[string]any) (image, error) {
	whole, ref, err := imagePart(m, "reference")
	if err != nil {
		return image{}, err
	}
	nameKey, name, err := imagePart(m, "repository", "repo", "image", "name")
	if err != nil {
		return image{}, err
	}
	_, registry, err := imagePart(m, "registry")
	if err != nil {
		return image{}, err
	}
	tagKey, tag, err := imagePart(m, "tag", "version")
	if err != nil {
		return image{}, err
	}
	digestKey, pinned, err := imagePart(m, "digest", "sha256")
	if err != nil {
		return image{}, err
	}
	if ref == "" && nameKey == "image" && registry == "" && tagKey == "" && digestKey == "" {
		whole, ref = nameKey, name
	}
	if ref != "" {
		return image{reference: ref, pin: func(s verify.Subject) { m[whole] = s.Pinned() }}, nil
	}
	if name == "" {
		return image{}, fault.New(fault.Denied, opRender, "write the repository too", "an image without a repository: whoever reads it would choose one")
	}
	reference := name
	if registry != "" {
		reference = registry + "/" + name
	}
	tag, behind, _ := strings.Cut(tag, "@")
	if tag != "" {
		reference += ":" + tag
	}
	if digestKey == "" {
		pinned = behind
	}
	if pinned != "" {
		reference += "@" + prefixed(pinned)
	}
	im := image{reference: reference}
	switch {
	case digestKey == "sha256":
		im.pin = func(s verify.Subject) { m[digestKey] = s.Digest.Encoded() }
	case digestKey != "":
		im.pin = func(s verify.Subject) { m[digestKey] = s.Digest.String() }
	case tag != "":
		im.pin = func(s verify.Subject) { m[tagKey] = tag + "@" + s.Digest.String() }
	default:
		return image{}, fault.New(fault.Denied, opRender, "write the digest, or a tag", "an image with neither tag nor digest cannot be pinned")
	}
	return im, nil
}

// imagePart returns the first of the fields names that m has, and its value.
func imagePart(m map[string]any, names ...string) (key, value string, err error) {
	for _, name := range names {
		v, there := m[name]
		if !there {
			continue
		}
		if s, ok := v.(string); ok || v == nil {
			return name, s, nil
		}
		return "", "", fmt.Errorf("%s is not a string", name)
	}
	return "", "", nil
}

// prefixed returns a digest with its algorithm, which some kinds leave out.
func prefixed(d string) string {
	if strings.Contains(d, ":") {
		return d
	}
	return "sha256:" + d
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

// artifacts returns every image of the rendering, once each, in order of
// appearance. An object of a custom kind whose images nobody can tell is denied.
// An object that names no namespace is in namespace, if it is in any.
func (ren *rendering) artifacts(kinds kindTable, namespace string) ([]verify.Subject, error) {
	var out []verify.Subject
	index := map[string]int{}
	for _, o := range ren.objects {
		found, err := ren.imagesOf(o, kinds, namespace)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, opRender, "", fmt.Errorf("%s: %s: %w", o.from.at(), o.id, err))
		}
		for _, im := range found {
			i, ok := index[im.reference]
			if !ok {
				i = len(out)
				index[im.reference] = i
				out = append(out, verify.Subject{Kind: verify.KindImage, Reference: im.reference})
			}
			d := o.from
			d.line = d.lineAt(im.path)
			kind, _, _ := strings.Cut(o.id.Kind, ".")
			out[i].Locations = append(out[i].Locations, fmt.Sprintf("%s %s/%s %s", d.at(), kind, o.id.Name, dotted(im.path)))
		}
	}
	return out, nil
}

// imagesOf returns the images that o names by reference. It refuses one that
// leads to others, unless those are of another object of the rendering, and one
// that leaves the choice of an image to a controller.
func (ren *rendering) imagesOf(o *desired, kinds kindTable, namespace string) ([]image, error) {
	gk := o.u.GroupVersionKind().GroupKind()
	found, err := kinds.images(gk, o.u.Object)
	if err != nil {
		return nil, err
	}
	var out []image
	for _, im := range found {
		switch {
		case !im.opaque():
			out = append(out, im)
		case !ren.declares(im.uses, o.id.Namespace, namespace):
			return nil, im.denied
		}
	}
	return out, kinds[strings.ToLower(gk.String())].missing(gk, o.u.Object)
}

// declares reports whether object, a "kind.group/name", is in the rendering and
// is what something in the namespace in means by that. Kinds that are not
// namespaced say so in their names.
func (ren *rendering) declares(object, in, namespace string) bool {
	return slices.ContainsFunc(ren.objects, func(o *desired) bool {
		near := strings.HasPrefix(object, "cluster") || cmp.Or(o.id.Namespace, namespace) == cmp.Or(in, namespace)
		return near && strings.ToLower(o.id.Kind)+"/"+o.id.Name == object
	})
}
