package provenance

import (
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// parameters checks that every external parameter is known, and has one of the
// values that the rule lists: "if externalParameters contains anything that is
// not expected, verification fails".
// https://slsa.dev/spec/v1.2/verifying-artifacts#step-2-check-expectations
func (j Judge) parameters(why *reasons, t buildType, b *build) {
	seen := map[string]bool{}
	leaves(b.external, nil, func(path []string, value string) {
		known := t.checked(path)
		for name, values := range j.want.Parameters {
			if !covers(name, path) {
				continue
			}
			known, seen[name] = true, true
			if len(values) > 0 && !slices.Contains(values, value) {
				why.wrong("external parameter "+intoto.Short(dotted(path)), value, strings.Join(values, " or "))
			}
		}
		if !known {
			why.add("external parameter %q is not known: list it under parameters, with the values that are allowed", intoto.Short(dotted(path)))
		}
	})
	for _, name := range slices.Sorted(maps.Keys(j.want.Parameters)) {
		if values := j.want.Parameters[name]; !seen[name] && len(values) > 0 && !slices.Contains(values, "") {
			why.wrong("external parameter "+name, "", strings.Join(values, " or "))
		}
	}
}

// covers reports whether a name of a rule means the parameter at path.
func covers(name string, path []string) bool {
	p := dotted(path)
	return p == name || strings.HasPrefix(p, name+".")
}

// leaves calls f with every value below v that is not an object or an array, in
// the order of their names. Elements of an array have the array's own path; null
// is nothing.
func leaves(v any, path []string, f func(path []string, value string)) {
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			leaves(v[name], append(path[:len(path):len(path)], name), f)
		}
	case []any:
		for _, x := range v {
			leaves(x, path, f)
		}
	default:
		if s, ok := leaf(v); ok {
			f(path, s)
		}
	}
}
