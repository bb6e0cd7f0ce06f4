package sigstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/holdfast-dev/holdfast/verify"
)

// What nobody signed costs little, and says little, however large it is.
func TestUnsignedBundlesAreCheap(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := cryptoutils.MarshalPublicKeyToPEM(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer := verify.Signer{Name: "release", Key: &verify.Key{PEM: pem}, Unlogged: true}
	d := digest.FromString("image")
	bundle := func(payloadType, payload string) []byte {
		return fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},
			"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":"AAAA"}]}}`, base64.StdEncoding.EncodeToString([]byte(payload)), payloadType)
	}
	if _, err := parseBundle([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"tlogEntries":[` + strings.Repeat("{},", maxParts) + `{}]}}`)); err == nil || !strings.Contains(err.Error(), "parts") {
		t.Errorf("a bundle of many parts: %v", err)
	}
	subjects := strings.Repeat(`{"digest":{"sha256":"x"}},`, 500_000)
	for name, raw := range map[string][]byte{
		"a long payload type": bundle(strings.Repeat("x", 8<<20), "{}"),
		"many subjects":       bundle(intotoPayload, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"p","subject":[`+strings.TrimSuffix(subjects, ",")+`]}`),
	} {
		b, err := parseBundle(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v := &Verifier{}
		for range 50 {
			one, err := newTrust(signer)
			if err != nil {
				t.Fatal(err)
			}
			v.trusts = append(v.trusts, one)
		}
		began := time.Now()
		_, err = v.prove(t.Context(), v.trusts, candidate{bundle: b}, d)
		if err == nil || len(err.Error()) > 5_000 {
			t.Errorf("%s: %d bytes of error", name, len(fmt.Sprint(err)))
		}
		t.Logf("%s: 50 signers took %s", name, time.Since(began))
	}
}
