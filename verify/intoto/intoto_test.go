package intoto

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"nothing":                 {"", "not a JSON object"},
		"array":                   {"[]", "not a JSON object"},
		"cut":                     {`{"a":`, "not JSON"},
		"odd space":               {"\v{}", "not a JSON object"},
		"large exponent":          {`{"a":[1e9988888889]}`, "out of range"},
		"small exponent":          {`{"a":1E-0001000}`, "out of range"},
		"long number":             {`{"a":` + strings.Repeat("9", 401) + `}`, "out of range"},
		"two objects":             {`{}{}`, "not JSON"},
		"comment":                 {`{"a":1 /*x*/}`, "not JSON"},
		"not UTF-8":               {"{\"a\":\"\xff\"}", "not UTF-8"},
		"name twice":              {`{"result":"FAILED","result":"PASSED"}`, `"result" is there twice`},
		"name twice, escaped":     {`{"result":"FAILED","\u0072esult":"PASSED"}`, `"result" is there twice`},
		"name twice, deep":        {`{"x":[{"a":{"b":1}},{"a":{"b":1,"c":"}","b":2}}]}`, `"b" is there twice`},
		"name twice, after array": {`{"a":[1,2,{"b":"a"}],"a":1}`, `"a" is there twice`},
		"deep":                    {`{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`, "nested deeper"},
		"long":                    {`{"a":"` + strings.Repeat("x", MaxBytes) + `"}`, "longer than"},
		"wrong type":              {`{"result":1}`, "malformed"},
		"time in words":           {`{"at":"yesterday"}`, "RFC 3339"},
		"time without zone":       {`{"at":"2026-01-01T00:00:00"}`, "RFC 3339"},
		"time as number":          {`{"at":1700000000}`, "not a string"},
	} {
		var v struct {
			Result string `json:"result"`
			At     Time   `json:"at"`
		}
		if err := Decode([]byte(c.in), &v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	var v struct {
		Result string `json:"result"`
		At     Time   `json:"at"`
		Later  Time   `json:"later"`
	}
	in := ` {"RESULT":"FAILED","result":"PASSED","Result":"FAILED","at":"2026-01-01T01:00:00.5+01:00","later":null,
		"x":{"a":1,"b":[{"a":1},{"a":1}]},"y":{"a":"\"{[","b":"\\"},"a":1,"n":[-1.5e+0308,2E-308,0],"s":"1e9999","unknown":{}} `
	if err := Decode([]byte(in), &v); err != nil {
		t.Fatal(err)
	}
	if v.Result != "PASSED" || v.At.String() != "2026-01-01T00:00:00Z" || !v.Later.IsZero() || v.Later.String() != "" {
		t.Errorf("%+v", v)
	}
	deepest := `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`
	if err := Check([]byte(deepest)); err != nil {
		t.Error(err)
	}
}

// BenchmarkCheck is of a document of 8 MB like an SBOM.
func BenchmarkCheck(b *testing.B) {
	doc := []byte(`{"components":[{}` + strings.Repeat(`,{"type":"library","name":"left-pad","version":"1.3.0","purl":"pkg:npm/left-pad@1.3.0"}`, 100_000) + `]}`)
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if err := Check(doc); err != nil {
			b.Fatal(err)
		}
	}
}

func TestFresh(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 6, 6, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) Time { return Time{now.Add(d)} }
	for name, c := range map[string]struct {
		t      Time
		signed time.Time
		most   time.Duration
		want   string
	}{
		"fresh":                       {at(-time.Hour), now.Add(-time.Hour), 2 * time.Hour, ""},
		"for ever":                    {at(-9999 * time.Hour), time.Time{}, 0, ""},
		"a clock that is ahead":       {at(Skew), now, time.Hour, ""},
		"missing":                     {Time{}, now, time.Hour, "is missing"},
		"future":                      {at(Skew + time.Second), time.Time{}, time.Hour, "in the future"},
		"too old":                     {at(-3 * time.Hour), now, 2 * time.Hour, "more than 2h0m0s ago"},
		"newer than its signature":    {at(-time.Hour), now.Add(-48 * time.Hour), 2 * time.Hour, "after it was signed"},
		"signed by a clock behind":    {at(-time.Hour), now.Add(-time.Hour - Skew), 2 * time.Hour, ""},
		"exactly as old as it may be": {at(-2 * time.Hour), now, 2 * time.Hour, ""},
	} {
		err := Fresh("x", c.t, c.signed, now, c.most)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestDescriptor(t *testing.T) {
	t.Parallel()
	sum := digest.FromString("x")
	good := Descriptor{Name: "r.sarif", MediaType: MediaTypeSARIF, Digest: map[string]string{"sha256": sum.Encoded()}}
	if err := good.Is(MediaTypeSARIF); err != nil || good.Check() != nil || good.SHA256() != sum || good.Where() != "r.sarif" {
		t.Errorf("%v", err)
	}
	for name, d := range map[string]Descriptor{
		"another media type": {MediaType: "application/json", Digest: good.Digest},
		"no digest":          {MediaType: MediaTypeSARIF, URI: "https://x"},
		"short digest":       {MediaType: MediaTypeSARIF, Digest: map[string]string{"sha256": "abc"}},
		"upper case":         {MediaType: MediaTypeSARIF, Digest: map[string]string{"sha256": strings.ToUpper(sum.Encoded())}},
		"SHA-1":              {MediaType: MediaTypeSARIF, Digest: map[string]string{"sha1": strings.Repeat("a", 40)}},
	} {
		if d.Is(MediaTypeSARIF) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if (Descriptor{Name: "x"}).Check() == nil {
		t.Error("a descriptor of nothing is accepted")
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	if got := Short(strings.Repeat("ä", 500)); len(got) > 300 || !strings.HasSuffix(got, "…") {
		t.Errorf("%d bytes", len(got))
	}
	if got := Short("a\xffb"); got != "a\uFFFDb" {
		t.Errorf("%q", got)
	}
}

// FuzzCheck: whatever is accepted, a reader that keeps the first of two names
// finds what one that keeps the last does.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[{"b":1},"c"],"d":{"a":null}}`, `{"a":1,"\u0061":2}`, `{"a":"\\","b":"\""}`, `{"a":{"a":{"a":[[]]}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if Check(b) != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(string(b)))
		if !alike(t, d) {
			t.Errorf("%q has a name twice", b)
		}
	})
}

// alike walks one value of a decoder and reports whether no object has a name twice.
func alike(t *testing.T, d *json.Decoder) bool {
	t.Helper()
	tok, err := d.Token()
	if err != nil {
		t.Fatalf("what is accepted does not parse: %v", err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return true
	}
	names := map[string]bool{}
	for d.More() {
		if delim == '{' {
			tok, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			name, _ := tok.(string)
			if names[name] {
				return false
			}
			names[name] = true
		}
		if !alike(t, d) {
			return false
		}
	}
	_, err = d.Token()
	return err == nil
}
