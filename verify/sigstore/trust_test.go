package sigstore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// What cosign's own claim verifier looks at, too, holds without it.
func TestCheckSimpleSigning(t *testing.T) {
	t.Parallel()
	d := digest.FromString("image")
	payload := func(typ, sum string) string {
		return fmt.Sprintf(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, sum, typ)
	}
	const good = "cosign container image signature"
	for name, c := range map[string]struct{ payload, want string }{
		"good":                   {payload(good, d.String()), ""},
		"another digest":         {payload(good, digest.FromString("other").String()), "the signature is about"},
		"no algorithm":           {payload(good, d.Encoded()), "the signature is about"},
		"another type":           {payload("atomic container signature", d.String()), "of type"},
		"a name twice":           {strings.Replace(payload(good, d.String()), `"image"`, `"image":{},"image"`, 1), "twice"},
		"a name in capitals":     {strings.Replace(payload(good, d.String()), `"image"`, `"Image"`, 1), "the signature is about"},
		"something behind it":    {payload(good, d.String()) + "{}", "not JSON"},
		"nothing":                {"", "not a JSON object"},
		"a list":                 {"[" + payload(good, d.String()) + "]", "not a JSON object"},
		"a type of another kind": {strings.Replace(payload(good, d.String()), `"`+good+`"`, "1", 1), "malformed"},
	} {
		err := checkSimpleSigning([]byte(c.payload), d)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
