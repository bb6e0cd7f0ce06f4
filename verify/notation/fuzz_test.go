package notation

import (
	"encoding/json"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

var (
	fuzzed     = descriptor{MediaType: "application/example", Digest: digest.FromString("x"), Size: 1}
	fuzzTarget = v1.Descriptor{MediaType: "application/example", Digest: v1.Hash{Algorithm: "sha256", Hex: digest.FromString("x").Encoded()}, Size: 1}
)

// FuzzEnvelope begins with good envelopes, and with good ones about something
// else, by somebody else: whatever counts in the end is by the former. The keys are
// new in each process, so nothing more can be said of them.
func FuzzEnvelope(f *testing.F) {
	n, err := verifytest.NewNotary()
	if err != nil {
		f.Fatal(err)
	}
	for who, claim := range map[string]func(*v1.Descriptor){"release": nil, "other": func(d *v1.Descriptor) { d.Size++ }} {
		h, err := n.Certify(verifytest.CertificateOptions{Name: who})
		if err != nil {
			f.Fatal(err)
		}
		for _, o := range []verifytest.NotationOptions{{}, {COSE: true}, {StampedAt: time.Now()}, {COSE: true, Expiry: time.Now().Add(time.Hour)}} {
			o.Claim = claim
			b, err := n.Envelope(f.Context(), fuzzTarget, h, o)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(!o.COSE, b)
		}
	}
	f.Add(true, []byte(`{"payload":"e30","protected":"eyJhbGciOiJub25lIn0","header":{"x5c":["MAA="]},"signature":"AA"}`))
	f.Add(false, []byte("\xd2\x84\x43\xa1\x01\x26\xa0\x41\x78\x40"))
	f.Fuzz(func(t *testing.T, isJWS bool, b []byte) {
		mt := cose.MediaTypeEnvelope
		if isJWS {
			mt = jws.MediaTypeEnvelope
		}
		if s, err := open(mt, b, fuzzed); err == nil && s.subject.String() != "CN=release,O=acme,ST=WA,C=US" {
			t.Errorf("accepted %+v", s)
		}
	})
}

// FuzzTimestamp cuts bytes out of a good timestamp, and puts others there: whatever
// counts in the end says the same time.
func FuzzTimestamp(f *testing.F) {
	n, err := verifytest.NewNotary()
	if err != nil {
		f.Fatal(err)
	}
	sig, at := []byte("signature"), time.Now().Truncate(time.Second)
	good, err := n.Stamp(sig, at)
	if err != nil {
		f.Fatal(err)
	}
	trusted, err := newTrust(verify.Signer{Name: "x", Notation: &verify.NotationIdentity{
		Certificates: n.Certificates(), Timestampers: n.Timestampers(), Subjects: []string{verifytest.NotationSubject},
	}})
	if err != nil {
		f.Fatal(err)
	}
	for _, from := range []uint16{0, 1, 30, 60, 120, 200, 800} {
		f.Add(from, from, []byte(nil))
		f.Add(from, from+1, []byte{0x30})
		f.Add(from, from+4, []byte{0x30, 0x84, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, from, to uint16, instead []byte) {
		head := good[:min(int(from), len(good))]
		tail := good[min(max(int(to), len(head)), len(good)):]
		var s signed
		s.Signature, s.UnsignedAttributes.TimestampSignature = sig, slices.Concat(head, instead, tail)
		if made, _, err := trusted.stamped(t.Context(), &s); err == nil && !made.from.Add(time.Second).Equal(at) {
			t.Errorf("accepted %+v", made)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if mt, err := registry.MediaType(b); err == nil && (mt == "" || !json.Valid(b)) {
			t.Errorf("%q has type %q", b, mt)
		}
	})
}
