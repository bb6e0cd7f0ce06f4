package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// hostile are seeds that a strict decoder must not fall over.
var hostile = []string{"", "a: &x [*x]", "<<: {}", "a: b: c", "- ", "{", "\xff", "a: .nan", "?", "? [a]\n: b", "!!binary x", "a: \"\\u0000\""}

// What decodes must be well-formed, and must decode to the same again after it
// was encoded.
func FuzzStack(f *testing.F) {
	f.Add([]byte(stack))
	f.Add([]byte(stack + "  drift: {mode: revert, ignore: [{kind: Deployment, path: /spec/replicas, until: 2027-01-01, reason: HPA}]}\n"))
	for _, s := range hostile {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStack("stack.yaml", b)
		if err != nil {
			return
		}
		if s.Metadata.Name == "" || (s.Spec.Kubernetes == nil) == (s.Spec.Terraform == nil) {
			t.Errorf("accepted %q", b)
		}
		encoded := encode(t, s)
		again, err := ParseStack("stack.yaml", encoded)
		if err != nil || !bytes.Equal(encode(t, again), encoded) {
			t.Errorf("%q became %s: %v", b, encoded, err)
		}
	})
}

func FuzzOperator(f *testing.F) {
	f.Add([]byte(operator))
	f.Add([]byte(wide))
	for _, s := range hostile {
		f.Add([]byte(s))
	}
	stack, err := ParseStack("stack.yaml", []byte(stack))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parse("holdfast.yaml", b, "/etc/holdfast")
		if err != nil {
			return
		}
		encoded := encode(t, o)
		again, err := parse("holdfast.yaml", encoded, "/etc/holdfast")
		if err != nil || !bytes.Equal(encode(t, again), encoded) {
			t.Fatalf("%q became %s: %v", b, encoded, err)
		}
		if c := Compare(o, again); !reflect.DeepEqual(c, Comparison{}) {
			t.Errorf("%q differs from itself: %+v", b, c)
		}
		_, _ = o.Permit("fleet", "apps/web", stack, time.Now()) // must not panic
	})
}

// encode returns v as JSON, which is YAML.
func encode(t *testing.T, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
