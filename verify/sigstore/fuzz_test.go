package sigstore

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
)

func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bundle, err := parseBundle(b); err == nil && !bundleTypes[bundle.GetMediaType()] {
			t.Error("unknown media type accepted")
		}
	})
}

func FuzzStatement(f *testing.F) {
	d := digest.FromString("x")
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"p","subject":[{"digest":{"sha256":"` + d.Encoded() + `"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStatement(b, d); err == nil && (st.Subject != d || st.PredicateType == "") {
			t.Errorf("accepted %+v", st)
		}
	})
}

func FuzzLegacy(f *testing.F) {
	f.Add(`{"Payload":{"body":1}}`, `{"SignedRFC3161Timestamp":"AA=="}`, "cert", []byte("{}"))
	f.Fuzz(func(t *testing.T, rekor, ts, cert string, payload []byte) {
		sig, err := parseLegacy(map[string]string{
			static.BundleAnnotationKey: rekor, static.RFC3161TimestampAnnotationKey: ts,
			static.CertificateAnnotationKey: cert, static.SignatureAnnotationKey: "AA==",
		}, payload, false)
		if err != nil {
			return
		}
		if b, err := sig.Bundle(); err == nil && b != nil {
			if _, ok := b.Payload.Body.(string); !ok {
				t.Error("a body that cosign would panic on")
			}
		}
	})
}
