package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Reference returns the reference of the "operator" or the "stack" file in
// Markdown, made from the types that are decoded and from what [Load] fills in:
// every field with its type, its default, what it may be and what it means.
func Reference(which string) ([]byte, error) {
	switch which {
	case "operator":
		o := &Operator{StateDir: "<stateDir>"}
		sample(reflect.ValueOf(o).Elem())
		oci := o.Repositories[0].OCI // with it, a repository has no branch
		o.Repositories[0].OCI = nil
		o.complete("")
		o.Repositories[0].OCI = oci
		o.StateDir = ""
		return reference("holdfast.yaml", "operator", "the operator's file", reflect.ValueOf(o).Elem()), nil
	case "stack":
		s := &Stack{}
		sample(reflect.ValueOf(s).Elem())
		return reference(StackFile, "stack", "the stack file", reflect.ValueOf(s).Elem()), nil
	}
	return nil, fmt.Errorf("there is no reference %q; use operator or stack", which)
}

// sample makes one element of each list of objects, and each object that may be
// left out, so that there is a place for every default.
func sample(v reflect.Value) {
	if v.Type() == reflect.TypeFor[Date]() {
		return
	}
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Pointer && f.Type().Elem() != reflect.TypeFor[Date]() {
			f.Set(reflect.New(f.Type().Elem()))
			f = f.Elem()
		}
		if f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct {
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			f = f.Index(0)
		}
		if f.Kind() == reflect.Struct {
			sample(f)
		}
	}
}

// entry is one field of a configuration file.
type entry struct {
	path, kind, value, meaning string
}

func reference(file, which, called string, v reflect.Value) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s: every field\n\n", file)
	fmt.Fprintf(&b, "<!-- Generated from the types by holdfast check --reference %s; make docs writes it. Do not edit. -->\n\n", which)
	fmt.Fprintf(&b, "This is %s, field by field. What it is for and examples are in [the guide](../configuration.md); `holdfast check\n--schema %s` prints the same as a JSON Schema for your editor. `[]` is an element of a list, `NAME` a name of your own. A field\nis required where what it belongs to is set.\n", called, which)
	var top []entry
	var sections bytes.Buffer
	for i := range v.NumField() {
		e, inner := describe("", v.Type().Field(i), v.Field(i))
		top = append(top, e)
		if len(inner) > 0 {
			fmt.Fprintf(&sections, "\n## `%s`\n", e.path)
			table(&sections, inner)
		}
	}
	table(&b, top)
	b.Write(sections.Bytes())
	return b.Bytes()
}

// prose keeps a description from being read as Markdown.
var prose = strings.NewReplacer("|", `\|`, "*", `\*`, "<", "&lt;", "_", `\_`, "[", `\[`)

func table(b *bytes.Buffer, list []entry) {
	b.WriteString("\n| field | type | default | meaning |\n|---|---|---|---|\n")
	for _, e := range list {
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", e.path, e.kind, e.value, prose.Replace(e.meaning))
	}
}

// describe returns the entry of a field, and those of the fields below it.
func describe(prefix string, f reflect.StructField, v reflect.Value) (entry, []entry) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	e := entry{path: prefix + name, meaning: f.Tag.Get("jsonschema_description")}
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	var inner []entry
	t := v.Type()
	switch {
	case t == reflect.TypeFor[Duration](), t == reflect.TypeFor[*Date](), t == reflect.TypeFor[Date]():
		e.kind, e.value = simple(t), standard(v)
	case t.Kind() == reflect.Struct:
		e.kind = "object"
		inner = fields(e.path+".", v)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		e.kind = "list of objects"
		inner = fields(e.path+"[].", v.Index(0))
	default:
		e.kind, e.value = simple(t), standard(v)
	}
	if allowed := enum(f.Tag.Get("jsonschema")); allowed != "" {
		e.kind += ": " + allowed
	}
	if options != "omitempty" {
		e.value = "required"
	}
	return e, inner
}

func fields(prefix string, v reflect.Value) []entry {
	var out []entry
	for i := range v.NumField() {
		switch f := v.Type().Field(i); {
		case f.Anonymous:
			out = append(out, fields(prefix, v.Field(i))...)
		case f.IsExported():
			e, inner := describe(prefix, f, v.Field(i))
			out = append(append(out, e), inner...)
		}
	}
	return out
}

// simple names a type that has no fields.
func simple(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return "duration"
	case t == reflect.TypeFor[*Date](), t == reflect.TypeFor[Date]():
		return "date"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "list of " + simple(t.Elem()) + "s"
	case reflect.Map:
		return "NAME → " + simple(t.Elem())
	case reflect.Interface:
		return "anything"
	default:
		return "number"
	}
}

// standard returns what a field is when it is left out.
func standard(v reflect.Value) string {
	if v.IsZero() {
		return ""
	}
	switch x := v.Interface().(type) {
	case Duration:
		text := time.Duration(x).String()
		text = strings.TrimSuffix(text, "0s")
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		if !strings.HasSuffix(text, "h") && !strings.HasSuffix(text, "m") {
			text = time.Duration(x).String()
		}
		return "`" + text + "`"
	case []string:
		return "`[" + strings.Join(x, ", ") + "]`"
	default:
		return fmt.Sprintf("`%v`", x)
	}
}

// enum returns the values that a jsonschema tag allows.
func enum(tag string) string {
	var out []string
	for part := range strings.SplitSeq(tag, ",") {
		if v, ok := strings.CutPrefix(part, "enum="); ok {
			out = append(out, "`"+v+"`")
		}
	}
	return strings.Join(out, ", ")
}
