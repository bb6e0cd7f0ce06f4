package strictjson

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for in, want := range map[string]string{
		`{"a":1,"b":{"a":[1,{"a":2}]}}`: "", `"x"`: "", `[1,"x",null,true]`: "", ` {} `: "", `{"a":1,"A":2}`: "", deep(MaxDepth): "",
		``: "not JSON", `{`: "not JSON", `{"a":1}{`: "not JSON", `{} x`: "not JSON", `1e99999`: "out of range", `{"a":-1.5E+3}`: "", `[1,]`: "not JSON", "\"\xff\"": "not UTF-8",
		`{"a":1,"a":2}`:         `"a" is there twice`,
		`{"x":[{"a":1,"a":2}]}`: `"a" is there twice`,
		`{"a":1,"\u0061":2}`:    `"a" is there twice`,
		deep(MaxDepth + 1):      "nested deeper",
	} {
		err := Check([]byte(in))
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", in, err, want)
		}
	}
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	var v struct {
		Digest string `json:"digest"`
	}
	if err := Unmarshal([]byte(`{"digest":"a","Digest":"b","other":1}`), &v); err != nil || v.Digest != "a" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := Unmarshal([]byte(`{"digest":"b","digest":"c"}`), &v); err == nil || v.Digest != "a" {
		t.Errorf("%+v, %v", v, err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}]}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if Check(raw) == nil && !json.Valid(raw) {
			t.Errorf("%q passes, and is not JSON", raw)
		}
	})
}
