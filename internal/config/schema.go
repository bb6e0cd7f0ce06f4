package config

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/invopop/jsonschema"
)

// Schema returns the JSON Schema of the "operator" or the "stack" file, made
// from the types that are decoded.
func Schema(which string) ([]byte, error) {
	var v any
	switch which {
	case "operator":
		v = &Operator{}
	case "stack":
		v = &Stack{}
	default:
		return nil, fmt.Errorf("there is no schema %q; use operator or stack", which)
	}
	r := &jsonschema.Reflector{
		RequiredFromJSONSchemaTags: false,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`, Examples: []any{"30s", "15m"}}
			case reflect.TypeFor[Date]():
				return &jsonschema.Schema{Type: "string", Examples: []any{"2027-01-31"}}
			}
			return nil
		},
	}
	s := r.Reflect(v)
	s.ID = jsonschema.ID("https://holdfast.dev/schemas/v1alpha1/" + which + ".json")
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("schema %s: %w", which, err)
	}
	return append(b, '\n'), nil
}
