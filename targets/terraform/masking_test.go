package terraform

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-dev/holdfast/internal/mask"
)

func fuzzFS(name, src string) fs.FS { return fstest.MapFS{name: {Data: []byte(src)}} }

func testMasker(t testing.TB) *mask.Masker {
	t.Helper()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMarksThatDoNotFit makes sure that a value whose marks have another shape
// is masked as a whole.
func TestMarksThatDoNotFit(t *testing.T) {
	t.Parallel()
	for _, c := range []string{
		`{"before":["hidden-value"],"before_sensitive":{"0":true}}`,
		`{"before":{"a":"hidden-value"},"before_sensitive":[true]}`,
		`{"before":"hidden-value","before_sensitive":{"a":{"b":true}}}`,
		`{"before":["hidden-value"],"before_sensitive":[false,true]}`,
	} {
		v, err := decode([]byte(`{"resource_changes":[{"change":` + c + `}]}`))
		if err != nil {
			t.Fatal(err)
		}
		root := object(v)
		maskPlan(testMasker(t), root, nil)
		before := object(object(array(root["resource_changes"])[0])["change"])["before"]
		if s, ok := before.(string); !ok || !strings.HasPrefix(s, "(masked ") {
			t.Errorf("%s: before is %v", c, before)
		}
	}
}

func TestLiteralSecretsInTheConfiguration(t *testing.T) {
	t.Parallel()
	v, err := decode([]byte(`{"configuration":{
		"provider_config":{"aws":{"expressions":{"secret_key":{"constant_value":"A"},"region":{"constant_value":"eu-west-1"}}}},
		"root_module":{
			"variables":{"db_password":{"default":"B"},"v":{"default":"C","sensitive":true},"w":{"default":"shown"}},
			"resources":[{"address":"x.y","type":"x","name":"D","expressions":{"name":{"constant_value":"D"},"n":{"constant_value":42}},
				"provisioners":[{"expressions":{"connection":{"password":{"constant_value":"E"}}}}]}],
			"module_calls":{"m":{"module":{"variables":{"token":{"default":"F"}}}}}}},
		"planned_values":{"outputs":{"o":{"sensitive":true,"value":"D"}}},
		"prior_state":{"values":{"root_module":{"child_modules":[{"resources":[{"values":{"p":"G"},"sensitive_values":{"p":true}}]}]}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	root := object(v)
	maskPlan(testMasker(t), root, nil)
	config := object(root["configuration"])
	mod := object(config["root_module"])
	res := object(array(mod["resources"])[0])
	get := func(v any, names ...string) any {
		for _, n := range names {
			v = object(v)[n]
		}
		return v
	}
	for name, got := range map[string]any{
		"provider argument":    get(config, "provider_config", "aws", "expressions", "secret_key", "constant_value"),
		"variable's name":      get(mod, "variables", "db_password", "default"),
		"sensitive variable":   get(mod, "variables", "v", "default"),
		"literal of an output": get(res, "expressions", "name", "constant_value"),
		"connection":           get(array(res["provisioners"])[0], "expressions", "connection", "password", "constant_value"),
		"module's variable":    get(mod, "module_calls", "m", "module", "variables", "token", "default"),
		"output":               get(root, "planned_values", "outputs", "o", "value"),
		"prior state": get(array(get(array(get(root, "prior_state", "values", "root_module", "child_modules"))[0], "resources"))[0],
			"values", "p"),
	} {
		if s, ok := got.(string); !ok || !strings.HasPrefix(s, "(masked ") {
			t.Errorf("%s is %v", name, got)
		}
	}
	if res["name"] != "D" || get(mod, "variables", "w", "default") != "shown" || get(res, "expressions", "n", "constant_value") != int64(42) {
		t.Errorf("too much is masked: %v", root)
	}
}
