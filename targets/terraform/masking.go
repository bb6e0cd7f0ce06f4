package terraform

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"

	"github.com/holdfast-dev/holdfast/internal/mask"
)

// decode reads JSON into the shape that documents have: a number becomes an
// int64 where it is one, else a float64.
func decode(b []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return numbers(v), nil
}

func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
		return v.String() // out of range for a float64
	case map[string]any:
		for k, e := range v {
			v[k] = numbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = numbers(e)
		}
	}
	return v
}

// leaves appends the strings and numbers inside v, as text. The names of an
// object's fields are not among them: they are masked with it where it stands,
// and elsewhere they are ordinary words.
func leaves(v any, out []string) []string {
	switch v := v.(type) {
	case string:
		return append(out, v)
	case int64, float64:
		b, err := json.Marshal(v)
		if err == nil {
			out = append(out, string(b))
		}
	case map[string]any:
		for _, e := range v {
			out = leaves(e, out)
		}
	case []any:
		for _, e := range v {
			out = leaves(e, out)
		}
	}
	return out
}

// maskValue returns the mask of a whole value. A null stays one: that nothing
// is there is no secret, and rules ask for it.
func maskValue(m *mask.Masker, v any) any {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return m.Value(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return m.Value("")
		}
		return m.Value(string(b))
	}
}

// masking is one pass over the JSON of a plan. The first pass collects the
// secrets, the second replaces them.
type masking struct {
	m       *mask.Masker
	secrets map[string]bool // collected by the first pass
	replace bool
}

// value handles one sensitive value.
func (k *masking) value(v any) any {
	if k.replace {
		return maskValue(k.m, v)
	}
	for _, s := range leaves(v, nil) {
		k.secrets[s] = true
	}
	return v
}

// marked walks v beside its marks: true marks the whole value.
func (k *masking) marked(v, marks any) any {
	switch marks := marks.(type) {
	case bool:
		if marks {
			return k.value(v)
		}
	case map[string]any:
		if v, ok := v.(map[string]any); ok {
			for name, mk := range marks {
				if e, ok := v[name]; ok {
					v[name] = k.marked(e, mk)
				}
			}
			return v
		}
		if v != nil && anyTrue(marks) {
			return k.value(v) // marks that do not fit: all of it
		}
	case []any:
		if v, ok := v.([]any); ok && len(v) >= len(marks) {
			for i, mk := range marks {
				v[i] = k.marked(v[i], mk)
			}
			return v
		}
		if v != nil && anyTrue(marks) {
			return k.value(v)
		}
	}
	return v
}

func anyTrue(marks any) bool {
	switch marks := marks.(type) {
	case bool:
		return marks
	case map[string]any:
		for _, e := range marks {
			if anyTrue(e) {
				return true
			}
		}
	case []any:
		for _, e := range marks {
			if anyTrue(e) {
				return true
			}
		}
	}
	return false
}

// maskPlan masks every sensitive value in the JSON of a plan, wherever it
// stands, and registers each with m, so that logs and errors lose it as well.
func maskPlan(m *mask.Masker, root map[string]any, variables map[string]bool) {
	k := &masking{m: m, secrets: map[string]bool{}}
	k.plan(root, variables)
	for s := range k.secrets {
		m.Register(s)
	}
	k.replace = true
	k.plan(root, variables)
	// What is left are copies under names that nothing marks.
	for name, v := range root {
		root[name] = k.scrub(v, name == "configuration")
	}
}

func (k *masking) plan(root map[string]any, variables map[string]bool) {
	config := object(root["configuration"])
	k.configuration(config)
	declared := object(object(config["root_module"])["variables"])
	for name, v := range object(root["variables"]) {
		if sensitive, _ := object(declared[name])["sensitive"].(bool); sensitive || variables[name] {
			k.field(v, "value")
		}
	}
	for _, list := range []string{"resource_changes", "resource_drift"} {
		for _, rc := range array(root[list]) {
			k.change(object(object(rc)["change"]))
		}
	}
	for _, d := range array(root["deferred_changes"]) {
		k.change(object(object(object(d)["resource_change"])["change"]))
	}
	for _, c := range object(root["output_changes"]) {
		k.change(object(c))
	}
	for _, a := range array(root["action_invocations"]) {
		if a := object(a); a["config_values"] != nil {
			a["config_values"] = k.marked(a["config_values"], a["config_sensitive"])
		}
	}
	k.values(object(root["planned_values"]))
	k.values(object(object(root["prior_state"])["values"]))
}

func (k *masking) change(c map[string]any) {
	for _, side := range []string{"before", "after"} {
		if v, ok := c[side]; ok {
			c[side] = k.marked(v, c[side+"_sensitive"])
		}
	}
}

func (k *masking) values(v map[string]any) {
	for _, o := range object(v["outputs"]) {
		if sensitive, _ := object(o)["sensitive"].(bool); sensitive {
			k.field(o, "value")
		}
	}
	k.module(object(v["root_module"]))
}

func (k *masking) module(mod map[string]any) {
	for _, r := range array(mod["resources"]) {
		if r := object(r); r["values"] != nil {
			r["values"] = k.marked(r["values"], r["sensitive_values"])
		}
	}
	for _, c := range array(mod["child_modules"]) {
		k.module(object(c))
	}
}

// secretName matches arguments whose literal values in the configuration count
// as secrets: there the tool marks nothing.
var secretName = regexp.MustCompile(`(?i)(passw|secret|token|credential|private|(^|_)key$|access_?key|api_?key)`)

// configuration handles literal values in the configuration, in which the tool
// marks nothing but variables.
func (k *masking) configuration(c map[string]any) {
	for _, p := range object(c["provider_config"]) {
		k.expressions(object(p)["expressions"], false)
	}
	k.configModule(object(c["root_module"]))
}

func (k *masking) configModule(mod map[string]any) {
	for name, v := range object(mod["variables"]) {
		sensitive, _ := object(v)["sensitive"].(bool)
		if sensitive || secretName.MatchString(name) {
			k.field(v, "default")
		}
	}
	for _, o := range object(mod["outputs"]) {
		if sensitive, _ := object(o)["sensitive"].(bool); sensitive {
			k.expressions(object(o)["expression"], true)
		}
	}
	for _, r := range array(mod["resources"]) {
		k.expressions(object(r)["expressions"], false)
		for _, p := range array(object(r)["provisioners"]) {
			k.expressions(object(p)["expressions"], false)
		}
	}
	for _, c := range object(mod["module_calls"]) {
		k.expressions(object(c)["expressions"], false)
		k.configModule(object(object(c)["module"]))
	}
}

// expressions masks constant values below names that sound secret.
func (k *masking) expressions(v any, secret bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			if name == "constant_value" {
				if secret {
					k.field(v, name)
				}
				continue
			}
			k.expressions(e, secret || secretName.MatchString(name))
		}
	case []any:
		for _, e := range v {
			k.expressions(e, secret)
		}
	}
}

func (k *masking) field(v any, name string) {
	if o := object(v); o[name] != nil {
		o[name] = k.value(o[name])
	}
}

// describes are the fields of the configuration that name things.
var describes = map[string]bool{"address": true, "type": true, "name": true, "mode": true, "full_name": true, "provider_config_key": true, "source": true}

// scrub replaces registered values in every string. In the configuration it
// also replaces whole literals that equal a secret too short to be searched for.
func (k *masking) scrub(v any, config bool) any {
	switch v := v.(type) {
	case string:
		if config && k.secrets[v] && v != "" {
			return k.m.Value(v)
		}
		return k.m.Scrub(v)
	case int64, float64:
		b, err := json.Marshal(v)
		if err != nil {
			return v
		}
		if s := string(b); k.m.Scrub(s) != s {
			return k.m.Value(s)
		}
	case map[string]any:
		for name, e := range v {
			_, text := e.(string)
			e = k.scrub(e, config && (!text || !describes[name]))
			if masked := k.m.Scrub(name); masked != name {
				delete(v, name)
				name = masked
			}
			v[name] = e
		}
	case []any:
		for i, e := range v {
			v[i] = k.scrub(e, config)
		}
	}
	return v
}

// scrubAll replaces registered values in every string of v.
func scrubAll(m *mask.Masker, v any) any { return (&masking{m: m}).scrub(v, false) }

func object(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}

func array(v any) []any {
	a, _ := v.([]any)
	return a
}
