package sigstore

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

var write = flag.Bool("write", false, "sign testdata/material.json anew")

const materialFile = "testdata/material.json"

var fuzzed = digest.FromString("x")

// fixture is what was signed once, so that each process of the fuzzer begins with
// the same bytes: bundles of every kind about fuzzed, and who may have made them.
type fixture struct {
	Key         []byte            `json:"key"`
	TrustedRoot json.RawMessage   `json:"trustedRoot"`
	Bundles     []json.RawMessage `json:"bundles"`
}

const fuzzSubject, fuzzIssuer = "https://github.com/acme/shop/x.yml", "https://token.actions.githubusercontent.com"

// TestMaterial requires that each bundle is accepted for one of the signers.
func TestMaterial(t *testing.T) {
	t.Parallel()
	if *write {
		if err := writeMaterial(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	raws, trusts := signedMaterial(t)
	for i, raw := range raws {
		b, err := parseBundle(raw)
		if err != nil {
			t.Fatal(err)
		}
		good := 0
		for _, by := range trusts {
			if _, err := guarded(t.Context(), by, candidate{bundle: b}, fuzzed); err == nil {
				good++
			}
		}
		if good == 0 {
			t.Errorf("nobody made bundle %d", i)
		}
	}
}

func writeMaterial(ctx context.Context) error {
	a, err := verifytest.NewAuthority()
	if err != nil {
		return err
	}
	var m fixture
	if m.Key, err = a.Key("release"); err != nil {
		return err
	}
	if m.TrustedRoot, err = a.TrustedRootWith(verifytest.RootOptions{Logs: []string{verifytest.Main}, Stampers: []string{verifytest.Main}}); err != nil {
		return err
	}
	stamps := []verifytest.Stamp{{}}
	for _, o := range []verifytest.SignOptions{
		{Key: "release"}, {Key: "release", NoTlog: true}, {Key: "release", Tiles: []string{verifytest.Main}, Stamps: stamps},
		{Identity: fuzzSubject, Issuer: fuzzIssuer}, {Identity: fuzzSubject, Issuer: fuzzIssuer, Stamps: stamps, Build: &verify.Certificate{SourceRef: "refs/heads/main"}},
	} {
		for _, typ := range []string{verify.PredicateSignature, "https://spdx.dev/Document"} {
			b, err := a.Bundle(ctx, "registry.example/x", fuzzed, typ, map[string]any{"spdxVersion": "SPDX-2.3"}, o)
			if err != nil {
				return err
			}
			raw, err := protojson.Marshal(b)
			if err != nil {
				return err
			}
			m.Bundles = append(m.Bundles, raw)
		}
	}
	out, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(materialFile, append(out, '\n'), 0o600)
}

// signedMaterial returns the bundles, and the trust of who made them.
func signedMaterial(t testing.TB) (bundles [][]byte, trusts []trust) {
	t.Helper()
	raw, err := os.ReadFile(materialFile)
	if err != nil {
		t.Fatal(err)
	}
	var m fixture
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	root := &verify.Root{Name: "test", TrustedRoot: m.TrustedRoot, Log: 1, CertificateLog: true}
	for _, s := range []verify.Signer{
		{Name: "release", Key: &verify.Key{PEM: m.Key}, Root: root},
		{Name: "unlogged", Key: &verify.Key{PEM: m.Key}, Unlogged: true},
		{Name: "ci", Identity: &verify.Identity{Issuer: fuzzIssuer, Subject: verify.Match{Exact: fuzzSubject}}, Root: root},
	} {
		one, err := newTrust(s)
		if err != nil {
			t.Fatal(err)
		}
		trusts = append(trusts, one)
	}
	for _, b := range m.Bundles {
		bundles = append(bundles, b)
	}
	return bundles, trusts
}

// parsed are the bundles, parsed.
func parsed(f *testing.F, raws [][]byte) (out []*sgbundle.Bundle) {
	f.Helper()
	for _, raw := range raws {
		b, err := parseBundle(raw)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// FuzzBundle also has every kind of signer judge what parses: nothing may be
// accepted but what a signer signed, byte for byte.
func FuzzBundle(f *testing.F) {
	raws, trusts := signedMaterial(f)
	signed := map[string]bool{}
	for i, b := range parsed(f, raws) {
		f.Add(raws[i])
		signed[string(b.GetDsseEnvelope().Payload)] = true
	}
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := parseBundle(raw)
		if err != nil {
			return
		}
		if !bundleTypes[b.GetMediaType()] {
			t.Error("unknown media type accepted")
		}
		for _, by := range trusts {
			if _, err := guarded(t.Context(), by, candidate{bundle: b}, fuzzed); err == nil && !signed[string(b.GetDsseEnvelope().Payload)] {
				t.Errorf("%s: accepted %s", by.signer, b.GetDsseEnvelope().Payload)
			}
		}
	})
}

func FuzzStatement(f *testing.F) {
	raws, _ := signedMaterial(f)
	for _, b := range parsed(f, raws) {
		f.Add(b.GetDsseEnvelope().Payload)
	}
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"p","subject":[{"digest":{"sha256":"` + fuzzed.Encoded() + `"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStatement(b, fuzzed); err == nil && (st.Subject != fuzzed || st.PredicateType == "") {
			t.Errorf("accepted %+v", st)
		}
	})
}

// FuzzLegacy also has every kind of signer judge what parses, and nobody signed.
func FuzzLegacy(f *testing.F) {
	raws, trusts := signedMaterial(f)
	for _, b := range parsed(f, raws) {
		entry, stamp, cert := "", "", ""
		for _, e := range b.VerificationMaterial.TlogEntries {
			entry = annotated(f, map[string]any{
				"SignedEntryTimestamp": e.InclusionPromise.GetSignedEntryTimestamp(),
				"Payload":              map[string]any{"body": e.CanonicalizedBody, "integratedTime": e.IntegratedTime, "logIndex": e.LogIndex, "logID": e.LogId.KeyId},
			})
		}
		for _, s := range b.VerificationMaterial.GetTimestampVerificationData().GetRfc3161Timestamps() {
			stamp = annotated(f, map[string]any{"SignedRFC3161Timestamp": s.SignedTimestamp})
		}
		if c := b.VerificationMaterial.GetCertificate(); c != nil {
			cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes}))
		}
		f.Add(entry, stamp, cert, b.GetDsseEnvelope().Payload)
	}
	f.Add(`{"Payload":{"body":1}}`, `{"SignedRFC3161Timestamp":"AA=="}`, "cert", []byte("{}"))
	f.Fuzz(func(t *testing.T, rekor, ts, cert string, payload []byte) {
		for _, attestation := range []bool{false, true} {
			sig, err := parseLegacy(map[string]string{
				static.BundleAnnotationKey: rekor, static.RFC3161TimestampAnnotationKey: ts,
				static.CertificateAnnotationKey: cert, static.SignatureAnnotationKey: "AA==",
			}, payload, attestation)
			if err != nil {
				continue
			}
			if b, err := sig.Bundle(); err == nil && b != nil {
				if _, ok := b.Payload.Body.(string); !ok {
					t.Error("a body that cosign would panic on")
				}
			}
			for _, by := range trusts {
				if st, err := guarded(t.Context(), by, candidate{legacy: sig, attestation: attestation}, fuzzed); err == nil {
					t.Errorf("%s: accepted %+v", by.signer, st)
				}
			}
		}
	})
}

func annotated(f *testing.F, v any) string {
	f.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}
