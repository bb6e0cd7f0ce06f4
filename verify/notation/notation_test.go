package notation_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/notation"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// The types of payloads and envelopes.
const (
	payloadType = "application/vnd.cncf.notary.payload.v1+json"
	jwsType     = "application/jose+json"
)

// bed is a registry, and a notary who signs what is in it.
type bed struct {
	*verifytest.Notary
	reg    *testenv.Registry
	client *registry.Client
	who    *verifytest.Holder // whose certificate is CN=release
}

func newBed(t *testing.T, o testenv.RegistryOptions) *bed {
	t.Helper()
	reg, err := testenv.NewRegistry(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Close() })
	b := &bed{reg: reg, client: clientOf(t, reg.Host)}
	if b.Notary, err = verifytest.NewNotary(); err != nil {
		t.Fatal(err)
	}
	b.who = b.certify(t, verifytest.CertificateOptions{Name: "release"})
	return b
}

func clientOf(t *testing.T, host string) *registry.Client {
	t.Helper()
	c, err := registry.New(registry.Config{Hosts: map[string]registry.Host{host: {InsecureHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bed) certify(t *testing.T, o verifytest.CertificateOptions) *verifytest.Holder {
	t.Helper()
	h, err := b.Certify(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// image is a pushed image.
type image struct {
	verify.Subject
	desc v1.Descriptor
}

func (b *bed) push(t *testing.T, platforms ...string) image {
	t.Helper()
	repo := b.reg.Host + "/r" + digest.FromString(t.Name()).Encoded()[:12]
	d, err := verifytest.PushImage(t.Context(), repo+":1", verifytest.ImageOptions{Platforms: platforms})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.client.Manifest(t.Context(), repo, d)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(d.String())
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return image{
		verify.Subject{Kind: verify.KindImage, Reference: repo + ":1", Name: repo, Digest: d},
		v1.Descriptor{MediaType: m.MediaType, Digest: h, Size: int64(len(raw))},
	}
}

func (b *bed) sign(t *testing.T, i image, h *verifytest.Holder, o verifytest.NotationOptions) {
	t.Helper()
	if err := b.Sign(t.Context(), i.Pinned(), h, o); err != nil {
		t.Fatal(err)
	}
}

// signer is the signer of the notary's certificates, after changes.
func (b *bed) signer(change ...func(*verify.Signer)) verify.Signer {
	s := verify.Signer{Name: "release", Notation: &verify.NotationIdentity{
		Certificates: b.Certificates(), Subjects: []string{verifytest.NotationSubject},
	}}
	for _, c := range change {
		c(&s)
	}
	return s
}

// stamped asks for timestamps.
func (b *bed) stamped(s *verify.Signer) { s.Notation.Timestampers = b.Timestampers() }

// verify returns what is found about i, where nothing goes wrong.
func (b *bed) verify(t *testing.T, i image, revoked *verify.Revocations, signers ...verify.Signer) ([]verify.Statement, []verify.Rejected) {
	t.Helper()
	v, err := notation.New(b.client, signers, revoked)
	if err != nil {
		t.Fatal(err)
	}
	list, rejected, err := v.Attestations(t.Context(), i.Subject)
	if err != nil {
		t.Fatal(err)
	}
	return list, rejected
}

// accepted returns the one statement about i.
func (b *bed) accepted(t *testing.T, i image, s verify.Signer) verify.Statement {
	t.Helper()
	list, rejected := b.verify(t, i, nil, s)
	if len(list) != 1 || len(rejected) != 0 {
		t.Fatalf("%d statements, refused %v", len(list), rejected)
	}
	return list[0]
}

// refused requires that the only signature of i is refused for why.
func (b *bed) refused(t *testing.T, i image, s verify.Signer, why string) {
	t.Helper()
	list, rejected := b.verify(t, i, nil, s)
	if len(list) != 0 || len(rejected) != 1 {
		t.Fatalf("%d statements, refused %v", len(list), rejected)
	}
	if r := rejected[0]; !strings.Contains(r.Reason.Error(), why) || r.PredicateType != verify.PredicateSignature || r.Where == "" {
		t.Fatalf("refused for %q, want %q", r.Reason, why)
	}
}

func keyAnchor(t *testing.T, c *x509.Certificate) verify.Anchor {
	t.Helper()
	return verify.Anchor{Kind: verify.AnchorKey, Value: digest.FromBytes(c.RawSubjectPublicKeyInfo).String()}
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	rsa := b.certify(t, verifytest.CertificateOptions{Name: "release", RSA: true})
	alone := b.certify(t, verifytest.CertificateOptions{Name: "release", SelfSigned: true})
	plain := b.certify(t, verifytest.CertificateOptions{Name: "release", Change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }})
	for name, c := range map[string]struct {
		who    *verifytest.Holder
		sign   verifytest.NotationOptions
		change func(*verify.Signer)
	}{
		"JWS, ECDSA":  {},
		"JWS, RSA":    {who: rsa},
		"COSE, ECDSA": {sign: verifytest.NotationOptions{COSE: true}},
		"COSE, RSA":   {who: rsa, sign: verifytest.NotationOptions{COSE: true}},
		"trusted by the intermediate authority": {change: func(s *verify.Signer) {
			s.Notation.Certificates = b.Intermediate()
		}},
		"trusted by itself":     {who: alone, change: func(s *verify.Signer) { s.Notation.Certificates = alone.PEM() }},
		"no extended key usage": {who: plain},
		"the whole subject":     {change: func(s *verify.Signer) { s.Notation.Subjects = []string{"CN=release, O=acme, S=WA, C=US"} }},
		"the second of two subjects": {change: func(s *verify.Signer) {
			s.Notation.Subjects = []string{"C=US, ST=WA, O=else", "x509.subject: C=US, ST=WA, O=acme"}
		}},
		"an attribute for others":       {sign: verifytest.NotationOptions{Attributes: []signature.Attribute{{Key: "com.example", Value: "x"}}}},
		"COSE, an attribute for others": {sign: verifytest.NotationOptions{COSE: true, Attributes: []signature.Attribute{{Key: "com.example", Value: "x"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := b.push(t)
			who, s := c.who, b.signer()
			if who == nil {
				who = b.who
			}
			if c.change != nil {
				c.change(&s)
			}
			b.sign(t, i, who, c.sign)
			st := b.accepted(t, i, s)
			want := verify.Statement{
				Subject: i.Digest, PredicateType: verify.PredicateSignature, Signers: []string{"release"},
				Party:       who.Chain[0].Issuer.String() + " CN=release,O=acme,ST=WA,C=US",
				Certificate: &verify.Certificate{Issuer: who.Chain[0].Issuer.String(), Subject: "CN=release,O=acme,ST=WA,C=US"},
				NotAfter:    who.Chain[0].NotAfter,
				RestsOn:     []verify.Anchor{{Kind: verify.AnchorIdentity, Value: "CN=release,O=acme,ST=WA,C=US"}},
				Digest:      st.Digest,
				Where:       st.Where, Layout: notation.Layout,
			}
			for _, cert := range who.Chain {
				want.RestsOn = append(want.RestsOn, keyAnchor(t, cert))
			}
			if !reflect.DeepEqual(st, want) || st.Digest.Validate() != nil || !strings.HasPrefix(st.Where, "referrer sha256:") {
				t.Errorf("got  %+v\nwant %+v", st, want)
			}
		})
	}
}

// TestFallbackTag is about registries without the referrers API, and an index.
func TestFallbackTag(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{})
	i := b.push(t, "linux/amd64", "linux/arm64")
	v, err := notation.New(b.client, []verify.Signer{b.signer()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := v.Fingerprint(t.Context(), i.Subject)
	if err != nil {
		t.Fatal(err)
	}
	b.sign(t, i, b.who, verifytest.NotationOptions{})
	b.sign(t, i, b.who, verifytest.NotationOptions{COSE: true})
	if list, rejected := b.verify(t, i, nil, b.signer()); len(list) != 2 || len(rejected) != 0 {
		t.Errorf("%+v, refused %v", list, rejected)
	}
	if after, err := v.Fingerprint(t.Context(), i.Subject); err != nil || after == before {
		t.Errorf("fingerprint: %s, before %s, %v", after, before, err)
	}
	platforms, err := v.Platforms(t.Context(), i.Subject)
	if err != nil || len(platforms) != 2 || platforms[1].Name != "linux/arm64" {
		t.Errorf("platforms: %+v, %v", platforms, err)
	}
	if err := v.Exists(t.Context(), i.Subject); err != nil {
		t.Error(err)
	}
	gone := i.Subject
	gone.Digest = digest.FromString("gone")
	if err := v.Exists(t.Context(), gone); fault.KindOf(err) != fault.Transient || err == nil {
		t.Errorf("an artifact that is not there: %v", err)
	}
	// What is signed is the index: a platform of it has no signature of its own.
	if list, rejected, err := v.Attestations(t.Context(), platforms[0].Subject); len(list)+len(rejected) != 0 || err != nil {
		t.Errorf("a platform: %v, %v, %v", list, rejected, err)
	}
}

func TestTimestamp(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	stranger, err := verifytest.NewNotary()
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	now := time.Now().Truncate(time.Second)
	old := b.certify(t, verifytest.CertificateOptions{Name: "old", From: now.Add(-3 * day), Until: now.Add(-day)})
	then := now.Add(-2 * day)

	t.Run("expired certificate, without", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then})
		b.refused(t, i, b.signer(), "counts until "+now.Add(-day).UTC().Format(time.RFC3339))
	})
	t.Run("expired certificate, with one that nobody asks for", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: then})
		b.refused(t, i, b.signer(), "counts until")
	})
	for _, cose := range []bool{false, true} {
		t.Run("expired certificate, with one", func(t *testing.T) {
			t.Parallel()
			i := b.push(t)
			b.sign(t, i, old, verifytest.NotationOptions{COSE: cose, SignedAt: then.Add(time.Minute), StampedAt: then})
			st := b.accepted(t, i, b.signer(b.stamped))
			if !st.NotAfter.IsZero() || !st.Time.Equal(then.Add(-time.Second)) || len(st.RestsOn) != 5 {
				t.Errorf("%+v", st)
			}
		})
	}
	t.Run("an old signature that is stamped anew is no younger", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: then.Add(time.Hour)})
		if st := b.accepted(t, i, b.signer(b.stamped)); !st.Time.Equal(then) {
			t.Errorf("signed %s, stamped an hour later, and taken for %s", then, st.Time)
		}
	})
	t.Run("asked for and not there", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, b.who, verifytest.NotationOptions{})
		b.refused(t, i, b.signer(b.stamped), "timestamp: there is none")
	})
	t.Run("after the certificate", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: now})
		b.refused(t, i, b.signer(b.stamped), "counts until")
	})
	t.Run("before the certificate", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: now.Add(-4 * day)})
		b.refused(t, i, b.signer(b.stamped), "counts from")
	})
	t.Run("at the certificate's end, to the second", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: old.Chain[0].NotAfter}) // a second more or less
		b.refused(t, i, b.signer(b.stamped), "counts until")
	})
	t.Run("by another authority", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, old, verifytest.NotationOptions{SignedAt: then, StampedAt: then})
		b.refused(t, i, b.signer(func(s *verify.Signer) { s.Notation.Timestampers = stranger.Timestampers() }), "timestamp: ")
	})
	t.Run("of another signature", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		envelope := func(o verifytest.NotationOptions) map[string]any {
			raw, err := b.Envelope(t.Context(), i.desc, old, o)
			if err != nil {
				t.Fatal(err)
			}
			return decode(t, raw)
		}
		// Somebody who got hold of an old key moves an old timestamp.
		fresh, stamped := envelope(verifytest.NotationOptions{SignedAt: then}), envelope(verifytest.NotationOptions{SignedAt: then, StampedAt: then})
		fresh["header"].(map[string]any)["io.cncf.notary.timestampSignature"] = stamped["header"].(map[string]any)["io.cncf.notary.timestampSignature"]
		b.pushed(t, i, encode(t, fresh))
		b.refused(t, i, b.signer(b.stamped), "mismatched message")
	})
	wide, err := b.Restamped(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment })
	if err != nil {
		t.Fatal(err)
	}
	code, err := b.Restamped(func(c *x509.Certificate) {
		c.ExtraExtensions, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	})
	if err != nil {
		t.Fatal(err)
	}
	by := func(n *verifytest.Notary) func(*testing.T, []byte) []byte {
		return func(t *testing.T, sig []byte) []byte {
			token, err := n.Stamp(sig, now)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
	}
	times := func(n int) func([]byte) []byte { return func(b []byte) []byte { return bytes.Repeat(b, n) } }
	// beside returns a stranger's timestamp with the authority's certificate in the
	// bag, before its own or behind it (CVE-2026-39984).
	beside := func(first bool) func(*testing.T, []byte) []byte {
		return func(t *testing.T, sig []byte) []byte {
			var real []byte
			edit(t, by(b.Notary)(t, sig), certificates, func(b []byte) []byte { real = b; return b })
			return edit(t, by(stranger)(t, sig), certificates, func(b []byte) []byte {
				if first {
					return slices.Concat(real, b)
				}
				return slices.Concat(b, real)
			})
		}
	}
	is := func(token []byte) func(*testing.T, []byte) []byte {
		return func(*testing.T, []byte) []byte { return token }
	}
	for name, c := range map[string]struct {
		token func(t *testing.T, sig []byte) []byte
		why   string // empty: it counts
	}{
		"good":                        {by(b.Notary), ""},
		"nothing":                     {is(nil), "there is none"},
		"no ASN.1":                    {is([]byte("token")), "timestamp: "},
		"endless":                     {is(make([]byte, 64<<10+1)), "it has 65537 bytes"},
		"by a key for other uses too": {by(wide), "KeyEncipherment"},
		"by a key for code":           {by(code), "timestamp: "},
		"by a stranger, the authority's certificate before his": {beside(true), "timestamp: "},
		"by a stranger, the authority's certificate after his":  {beside(false), "timestamp: "},
		"with two signatures": {func(t *testing.T, sig []byte) []byte {
			return edit(t, by(b.Notary)(t, sig), signerInfos, times(2))
		}, "it has 2 signatures and 1 certificates"},
		"with many certificates": {func(t *testing.T, sig []byte) []byte {
			return edit(t, by(b.Notary)(t, sig), certificates, times(9))
		}, "it has 1 signatures and 9 certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := b.push(t)
			raw, err := b.Envelope(t.Context(), i.desc, b.who, verifytest.NotationOptions{})
			if err != nil {
				t.Fatal(err)
			}
			e := decode(t, raw)
			sig, err := base64.RawURLEncoding.DecodeString(e["signature"].(string))
			if err != nil {
				t.Fatal(err)
			}
			e["header"].(map[string]any)["io.cncf.notary.timestampSignature"] = c.token(t, sig)
			b.pushed(t, i, encode(t, e))
			if c.why == "" {
				b.accepted(t, i, b.signer(b.stamped))
				return
			}
			b.refused(t, i, b.signer(b.stamped), c.why)
		})
	}
}

// The places of lists in a SignedData that has certificates (RFC 5652, section 5.1).
const (
	certificates = 3
	signerInfos  = 4
)

// edit changes what is in a list of a timestamp's SignedData.
func edit(t *testing.T, token []byte, which int, change func([]byte) []byte) []byte {
	t.Helper()
	var info struct {
		Type    asn1.ObjectIdentifier
		Content []asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(token, &info); err != nil {
		t.Fatal(err)
	}
	info.Content[which].Bytes, info.Content[which].FullBytes = change(info.Content[which].Bytes), nil
	out, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWindow is about the time in which a signer counts (CVE-2026-54787).
func TestWindow(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	now := time.Now().Truncate(time.Second)
	at := now.Add(-30 * time.Minute)
	i := b.push(t)
	b.sign(t, i, b.who, verifytest.NotationOptions{SignedAt: at, StampedAt: at})
	window := func(from, to time.Time) verify.Signer {
		return b.signer(b.stamped, func(s *verify.Signer) { s.NotBefore, s.NotAfter = from, to })
	}
	b.accepted(t, i, window(at.Add(-time.Minute), at.Add(time.Minute)))
	b.accepted(t, i, window(at.Add(-time.Minute), time.Time{}))
	b.refused(t, i, window(at, time.Time{}), "counts from") // the timestamp is a second more or less
	b.refused(t, i, window(time.Time{}, at), "counts until")
	b.refused(t, i, window(time.Time{}, at.Add(time.Second)), "counts until")
	b.refused(t, i, b.signer(func(s *verify.Signer) { s.NotBefore = at.Add(-time.Hour) }), "nothing proves when it was signed")
	if _, err := newSet(t, b, verify.Requirement{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}},
		b.signer(func(s *verify.Signer) { s.NotAfter = now })); err == nil || !strings.Contains(err.Error(), "a window needs a proven time") {
		t.Errorf("a window without timestamps: %v", err)
	}
}

func decode(t *testing.T, envelope []byte) map[string]any {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func encode(t *testing.T, envelope any) []byte {
	t.Helper()
	b, err := json.Marshal(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pushed pushes an envelope in JWS, which may be anything.
func (b *bed) pushed(t *testing.T, i image, envelope []byte) {
	t.Helper()
	if err := verifytest.PushNotation(t.Context(), i.Pinned(), jwsType, envelope, verifytest.Registry{}); err != nil {
		t.Fatal(err)
	}
}

// forge signs in JWS what notation refuses to sign: with any protected header, or
// any certificate.
func forge(t *testing.T, i image, h *verifytest.Holder, change func(protected map[string]any)) []byte {
	t.Helper()
	protected := map[string]any{
		"alg": "ES256", "cty": payloadType, "crit": []string{"io.cncf.notary.signingScheme"},
		"io.cncf.notary.signingScheme": "notary.x509", "io.cncf.notary.signingTime": time.Now().UTC().Format(time.RFC3339),
	}
	if change != nil {
		change(protected)
	}
	enc := base64.RawURLEncoding
	head := enc.EncodeToString(encode(t, protected))
	payload := enc.EncodeToString(encode(t, map[string]any{"targetArtifact": map[string]any{
		"mediaType": i.desc.MediaType, "digest": i.desc.Digest, "size": i.desc.Size,
	}}))
	sum := sha256.Sum256([]byte(head + "." + payload))
	r, s, err := ecdsa.Sign(rand.Reader, h.Key.(*ecdsa.PrivateKey), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	var chain [][]byte
	for _, c := range h.Chain {
		chain = append(chain, c.Raw)
	}
	return encode(t, map[string]any{"payload": payload, "protected": head, "header": map[string]any{"x5c": chain}, "signature": enc.EncodeToString(sig)})
}

// TestForgeIsRead keeps the tests that use forge honest: what it makes counts
// where nothing is wrong about it.
func TestForgeIsRead(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	b.pushed(t, i, forge(t, i, b.who, nil))
	b.accepted(t, i, b.signer())
}

func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	stranger, err := verifytest.NewNotary()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	subjectOf := func(n pkix.Name) *verifytest.Holder { return b.certify(t, verifytest.CertificateOptions{Subject: n}) }
	other, err := stranger.Certify(verifytest.CertificateOptions{Name: "release"})
	if err != nil {
		t.Fatal(err)
	}
	alone := b.certify(t, verifytest.CertificateOptions{Name: "release", SelfSigned: true})
	for name, c := range map[string]struct {
		who  *verifytest.Holder
		sign verifytest.NotationOptions
		why  string
	}{
		"wrong CA":                           {who: other, why: "is a trusted one"},
		"self-signed leaf not in the store":  {who: alone, why: "is a trusted one"},
		"wrong subject":                      {who: subjectOf(pkix.Name{Country: []string{"US"}, Province: []string{"WA"}, Organization: []string{"acme-evil"}}), why: "the certificate is for O=acme-evil,ST=WA,C=US"},
		"a part of the subject is missing":   {who: subjectOf(pkix.Name{Country: []string{"US"}, Organization: []string{"acme"}}), why: "the certificate is for O=acme,C=US"},
		"the subject names two":              {who: subjectOf(pkix.Name{Country: []string{"US"}, Province: []string{"WA"}, Organization: []string{"acme", "evil"}}), why: "the certificate is for"},
		"the subject in the common name":     {who: subjectOf(pkix.Name{Country: []string{"US"}, Province: []string{"WA"}, CommonName: "x,O=acme"}), why: "the certificate is for"},
		"the subject in another case":        {who: subjectOf(pkix.Name{Country: []string{"US"}, Province: []string{"WA"}, Organization: []string{"ACME"}}), why: "the certificate is for"},
		"a signature that expired":           {sign: verifytest.NotationOptions{SignedAt: now.Add(-50 * time.Minute), Expiry: now.Add(-time.Minute)}, why: "the signer gave the signature until"},
		"COSE, a signature that expired":     {sign: verifytest.NotationOptions{COSE: true, SignedAt: now.Add(-50 * time.Minute), Expiry: now.Add(-time.Minute)}, why: "the signer gave the signature until"},
		"about another digest":               {sign: verifytest.NotationOptions{Claim: func(d *v1.Descriptor) { d.Digest.Hex = strings.Repeat("0", 64) }}, why: "the signature is about sha256:0000"},
		"about another size":                 {sign: verifytest.NotationOptions{Claim: func(d *v1.Descriptor) { d.Size++ }}, why: "the signature is about"},
		"about another media type":           {sign: verifytest.NotationOptions{Claim: func(d *v1.Descriptor) { d.MediaType = "application/octet-stream" }}, why: "the signature is about"},
		"COSE, about another size":           {sign: verifytest.NotationOptions{COSE: true, Claim: func(d *v1.Descriptor) { d.Size++ }}, why: "the signature is about"},
		"about nothing":                      {sign: verifytest.NotationOptions{Payload: []byte(`{}`)}, why: "the signature is about"},
		"about two things":                   {sign: verifytest.NotationOptions{COSE: true, Payload: []byte(`{"targetArtifact":{},"targetArtifact":{}}`)}, why: "payload: "},
		"a payload that is not JSON":         {sign: verifytest.NotationOptions{COSE: true, Payload: []byte(`x`)}, why: "payload: "},
		"a payload of another type":          {sign: verifytest.NotationOptions{PayloadType: "application/json"}, why: "payload of type"},
		"COSE, a payload of another type":    {sign: verifytest.NotationOptions{COSE: true, PayloadType: "application/json"}, why: "payload of type"},
		"a signing authority's word":         {sign: verifytest.NotationOptions{Scheme: signature.SigningSchemeX509SigningAuthority}, why: "a signing authority vouches for the time"},
		"COSE, a signing authority's word":   {sign: verifytest.NotationOptions{COSE: true, Scheme: signature.SigningSchemeX509SigningAuthority}, why: "a signing authority vouches for the time"},
		"an unknown critical attribute":      {sign: verifytest.NotationOptions{Attributes: []signature.Attribute{{Key: "com.example", Critical: true, Value: 1}}}, why: `unknown critical attribute "com.example"`},
		"COSE, unknown critical attribute":   {sign: verifytest.NotationOptions{COSE: true, Attributes: []signature.Attribute{{Key: "com.example", Critical: true, Value: 1}}}, why: `unknown critical attribute "com.example"`},
		"a plugin, critical":                 {sign: verifytest.NotationOptions{Attributes: []signature.Attribute{{Key: "io.cncf.notary.verificationPlugin", Critical: true, Value: "x"}}}, why: "plugins are not run"},
		"a plugin, as if one could leave it": {sign: verifytest.NotationOptions{Attributes: []signature.Attribute{{Key: "io.cncf.notary.verificationPlugin", Value: "x"}}}, why: "plugins are not run"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, who := b.push(t), c.who
			if who == nil {
				who = b.who
			}
			b.sign(t, i, who, c.sign)
			b.refused(t, i, b.signer(), c.why)
		})
	}
}

// TestSignatureOfAnotherImage copies a signature, as it is, to another image.
func TestSignatureOfAnotherImage(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	from, to := b.push(t), b.push(t)
	raw, err := b.Envelope(t.Context(), from.desc, b.who, verifytest.NotationOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.pushed(t, from, raw)
	b.accepted(t, from, b.signer())
	b.pushed(t, to, raw)
	b.refused(t, to, b.signer(), "the signature is about "+from.Digest.String())
}

func TestForged(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	leaf := func(change func(*x509.Certificate)) *verifytest.Holder {
		return b.certify(t, verifytest.CertificateOptions{Name: "release", Change: change})
	}
	usage := func(u ...x509.ExtKeyUsage) *verifytest.Holder {
		return leaf(func(c *x509.Certificate) { c.ExtKeyUsage = u })
	}
	swapped := *b.who
	swapped.Chain = []*x509.Certificate{b.who.Chain[0], b.who.Chain[2], b.who.Chain[1]}
	short := *b.who
	short.Chain = b.who.Chain[:2]
	long := *b.who
	long.Chain = slices.Concat(b.who.Chain, slices.Repeat(b.who.Chain[2:], 6))
	// A stranger's certificate, with the trusted root behind it.
	stranger, err := verifytest.NewNotary()
	if err != nil {
		t.Fatal(err)
	}
	grafted, err := stranger.Certify(verifytest.CertificateOptions{Name: "release"})
	if err != nil {
		t.Fatal(err)
	}
	grafted.Chain = slices.Concat(grafted.Chain[:1], b.who.Chain[1:])
	for name, c := range map[string]struct {
		who    *verifytest.Holder
		change func(map[string]any)
		why    string
	}{
		"alg none":                        {change: func(p map[string]any) { p["alg"] = "none" }, why: "signing method none is invalid"},
		"alg HS256":                       {change: func(p map[string]any) { p["alg"] = "HS256" }, why: "signing method HS256 is invalid"},
		"alg RS256":                       {change: func(p map[string]any) { p["alg"] = "RS256" }, why: "signing method RS256 is invalid"},
		"alg of another key":              {change: func(p map[string]any) { p["alg"] = "PS256" }, why: "signature is invalid"},
		"alg of another size":             {change: func(p map[string]any) { p["alg"] = "ES384" }, why: "signature is invalid"},
		"nothing critical":                {change: func(p map[string]any) { delete(p, "crit") }, why: "crit"},
		"critical, and not there":         {change: func(p map[string]any) { p["crit"] = []string{"io.cncf.notary.signingScheme", "b64"} }, why: "marked critical but not present"},
		"critical, and unknown":           {change: func(p map[string]any) { p["crit"], p["b64"] = []string{"io.cncf.notary.signingScheme", "b64"}, false }, why: `unknown critical attribute "b64"`},
		"an expiry that one may overlook": {change: func(p map[string]any) { p["io.cncf.notary.expiry"] = time.Now().Add(time.Hour).Format(time.RFC3339) }, why: "not marked as critical"},
		"an unknown scheme":               {change: func(p map[string]any) { p["io.cncf.notary.signingScheme"] = "permissive" }, why: "unsupported SigningScheme"},
		"for TLS servers":                 {who: usage(x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageServerAuth), why: "must not contain ServerAuth"},
		"for timestamps":                  {who: usage(x509.ExtKeyUsageTimeStamping), why: "must not contain Timestamping"},
		"for anything":                    {who: usage(x509.ExtKeyUsageAny), why: "for any usage"},
		"for something else":              {who: usage(x509.ExtKeyUsageIPSECUser), why: "incompatible key usage"},
		"no key usage":                    {who: leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }), why: "key usage extension must be present"},
		"a key for encryption too":        {who: leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }), why: "KeyEncipherment"},
		"an authority signs itself": {who: leaf(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, c.KeyUsage|x509.KeyUsageCertSign
		}), why: "ca field must be set to false"},
		"a critical extension that nobody knows": {who: leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), why: "unhandled critical extension"},
		"a chain in disorder":                {who: &swapped, why: "certificate-chain is invalid"},
		"a chain without its root":           {who: &short, why: "certificate-chain is invalid"},
		"a chain that is endless":            {who: &long, why: "a chain of 9 certificates"},
		"a chain that belongs to another":    {who: grafted, why: "certificate-chain is invalid"},
		"a certificate that has not begun":   {who: b.certify(t, verifytest.CertificateOptions{Name: "release", From: time.Now().Add(time.Hour), Until: time.Now().Add(2 * time.Hour)}), why: "counts from"},
		"a name without a subject's content": {who: leaf(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), why: "subject of the certificate: it is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, who := b.push(t), c.who
			if who == nil {
				who = b.who
			}
			b.pushed(t, i, forge(t, i, who, c.change))
			b.refused(t, i, b.signer(), c.why)
		})
	}
}

// TestAuthorityForSomethingElse is about an authority that may only issue
// certificates for TLS: what it issues for code counts for nothing.
func TestAuthorityForSomethingElse(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	web, err := b.Subordinate("web", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	if err != nil {
		t.Fatal(err)
	}
	who, err := web.Certify(verifytest.CertificateOptions{Name: "release"})
	if err != nil {
		t.Fatal(err)
	}
	b.sign(t, i, who, verifytest.NotationOptions{})
	b.refused(t, i, b.signer(), "incompatible key usage")
}

func TestTampered(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	raw, err := b.Envelope(t.Context(), i.desc, b.who, verifytest.NotationOptions{})
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding
	for name, c := range map[string]struct {
		change func(map[string]any)
		why    string
	}{
		"payload":          {func(e map[string]any) { e["payload"] = enc.EncodeToString([]byte(`{"targetArtifact":{}}`)) }, "signature is invalid"},
		"protected header": {func(e map[string]any) { e["protected"] = enc.EncodeToString([]byte(`{"alg":"ES256"}`)) }, "signature is invalid"},
		"header twice":     {func(e map[string]any) { e["protected"] = enc.EncodeToString([]byte(`{"alg":"ES256","alg":"ES256"}`)) }, "protected header: "},
		"signature":        {func(e map[string]any) { e["signature"] = enc.EncodeToString(make([]byte, 64)) }, "signature is invalid"},
		"no signature":     {func(e map[string]any) { e["signature"] = "" }, "signature is invalid"},
		"no certificate":   {func(e map[string]any) { e["header"] = map[string]any{} }, "certificate chain is not present"},
		"another certificate": {func(e map[string]any) {
			e["header"] = map[string]any{"x5c": [][]byte{b.certify(t, verifytest.CertificateOptions{Name: "x"}).Chain[0].Raw}}
		}, "signature is invalid"},
		"no payload": {func(e map[string]any) { delete(e, "payload") }, "signature is invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := i
			i.Subject = b.push(t).Subject // its own list of referrers
			e := decode(t, raw)
			c.change(e)
			b.pushed(t, i, encode(t, e))
			b.refused(t, i, b.signer(), c.why)
		})
	}
}

// TestMalformed pushes what is no envelope: it is refused, and hides nothing.
func TestMalformed(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	bad := []string{"", "x", "{}", "[]", "null", `{"header":{"x5c":["MAA="]}}`, `{"protected":"e30","header":{"x5c":["MAA="]}}`, "\xd2", "\xd2\x84\x43\xa1\x01\x26\xa0\x41\x78\x40", strings.Repeat("[", 1000), strings.Repeat("\x81", 1000)}
	for _, envelope := range bad {
		for _, mt := range []string{jwsType, "application/cose"} {
			if err := verifytest.PushNotation(t.Context(), i.Pinned(), mt, []byte(envelope), verifytest.Registry{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.sign(t, i, b.who, verifytest.NotationOptions{})
	if list, rejected := b.verify(t, i, nil, b.signer()); len(list) != 1 || len(rejected) != 2*len(bad) {
		t.Errorf("%d statements, %d refused: %v", len(list), len(rejected), rejected)
	}
}

func TestRevoked(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	b.sign(t, i, b.who, verifytest.NotationOptions{StampedAt: time.Now()})
	signer := b.signer(b.stamped)
	anchors := b.accepted(t, i, signer).RestsOn
	if len(anchors) != 5 { // subject, three keys, timestamp authority
		t.Fatalf("it rests on %v", anchors)
	}
	for _, a := range anchors {
		if err := a.Validate(); err != nil {
			t.Errorf("nobody could revoke %s: %v", a, err)
		}
		revoked := new(verify.Revocations)
		revoked.Add(verify.Revocation{Anchor: a, Reason: "stolen", Time: time.Now()})
		list, rejected := b.verify(t, i, revoked, signer)
		if len(list) != 0 || len(rejected) != 1 || !errors.Is(rejected[0].Reason, verify.ErrRevoked) {
			t.Errorf("%s is revoked: %v, refused %v", a, list, rejected)
		}
		// As of a time after it: who stamped it proves that of all but himself.
		revoked = new(verify.Revocations)
		revoked.Add(verify.Revocation{Anchor: a, Since: time.Now().Add(time.Hour), Reason: "stolen", Time: time.Now()})
		if list, _ := b.verify(t, i, revoked, signer); len(list) == 0 == !a.At.IsZero() {
			t.Errorf("%s is revoked as of later: %v", a, list)
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(anchors), func(a verify.Anchor) bool { return a.At.IsZero() })); n != 4 {
		t.Errorf("%d of %v are known to have been there", n, anchors)
	}
}

// TestStrictOnly keeps out what a trust policy of another level would be: whoever
// serves the registry could bring back what has expired or was revoked
// (CVE-2024-23332).
func TestStrictOnly(t *testing.T) {
	t.Parallel()
	var fields []string
	for i, typ := 0, reflect.TypeFor[verify.NotationIdentity](); i < typ.NumField(); i++ {
		fields = append(fields, typ.Field(i).Name)
	}
	if want := []string{"Certificates", "Timestampers", "Subjects"}; !slices.Equal(fields, want) {
		t.Errorf("an identity has %v: is one of them a way around a check?", fields)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b.who.Chain[0].RawSubjectPublicKeyInfo})
	for name, c := range map[string]struct {
		change func(*verify.Signer)
		why    string
	}{
		"no certificate":               {func(s *verify.Signer) { s.Notation.Certificates = nil }, "there is none"},
		"no PEM":                       {func(s *verify.Signer) { s.Notation.Certificates = []byte("x") }, "give certificates in PEM"},
		"something behind it":          {func(s *verify.Signer) { s.Notation.Certificates = append(s.Notation.Certificates, 'x') }, "give certificates in PEM"},
		"a key":                        {func(s *verify.Signer) { s.Notation.Certificates = key }, "give certificates in PEM"},
		"a certificate of an employee": {func(s *verify.Signer) { s.Notation.Certificates = b.who.PEM() }, "neither an authority nor signed by itself"},
		"timestamps by an employee":    {func(s *verify.Signer) { s.Notation.Timestampers = b.who.PEM() }, "no root certificate"},
		"timestamps, not from a root":  {func(s *verify.Signer) { s.Notation.Timestampers = b.Intermediate() }, "no root certificate"},
		"timestamps, no PEM":           {func(s *verify.Signer) { s.Notation.Timestampers = []byte("x") }, "give certificates in PEM"},
		"no subject":                   {func(s *verify.Signer) { s.Notation.Subjects = nil }, "names no subject"},
		"any subject":                  {func(s *verify.Signer) { s.Notation.Subjects = []string{"*"} }, "not of the form"},
		"half a subject":               {func(s *verify.Signer) { s.Notation.Subjects = []string{"C=US, O=acme"} }, "it has no ST"},
	} {
		_, err := notation.New(b.client, []verify.Signer{b.signer(c.change)}, nil)
		if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := notation.New(b.client, nil, nil); err == nil {
		t.Error("made for nobody")
	}
	if _, err := notation.New(nil, []verify.Signer{b.signer()}, nil); err == nil {
		t.Error("made without a registry")
	}
}

// TestKinds is about who judges which signers.
func TestKinds(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	a, err := verifytest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := a.Key("release")
	if err != nil {
		t.Fatal(err)
	}
	key := verify.Signer{Name: "key", Key: &verify.Key{PEM: pub}, Unlogged: true}
	ours, theirs := notation.Source(b.client), sigstore.Source(sigstore.NewStore(b.client))
	if _, err := ours([]verify.Signer{key}, nil); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("notation takes a key: %v", err)
	}
	if _, err := theirs([]verify.Signer{b.signer()}, nil); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("sigstore takes an identity of notation: %v", err)
	}
	for _, source := range []attest.Source{ours, theirs} {
		if _, err := source([]verify.Signer{key, b.signer()}, nil); err != nil {
			t.Error(err)
		}
		if _, err := source(nil, nil); err == nil || errors.Is(err, verify.ErrNotApplicable) {
			t.Errorf("made for nobody: %v", err)
		}
	}
}

// newSet returns what the daemon would judge images with.
func newSet(t *testing.T, b *bed, q verify.Requirement, signers ...verify.Signer) (*verify.Set, error) {
	t.Helper()
	return verify.NewSet(verify.Config{Resolver: b.client, Revocations: new(verify.Revocations), Rules: []verify.Rule{{
		Name: "acme", Kind: verify.KindImage, Repositories: []string{"**"}, Signers: signers, Require: []verify.Requirement{q},
	}}}, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(b.client)), notation.Source(b.client)}))
}

// TestRule judges whole rules: signatures of both kinds count side by side, and
// one certificate counts once.
func TestRule(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	a, err := verifytest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := a.Key("release")
	if err != nil {
		t.Fatal(err)
	}
	named := func(name string, subject string) verify.Signer {
		return b.signer(func(s *verify.Signer) { s.Name, s.Notation.Subjects = name, []string{subject} })
	}
	signers := []verify.Signer{
		{Name: "key", Key: &verify.Key{PEM: pub}, Unlogged: true},
		named("release", "C=US, ST=WA, O=acme, CN=release"), named("anyone", "C=US, ST=WA, O=acme"),
	}
	two := verify.Requirement{Signature: &verify.SignatureRequirement{}, Threshold: 2, Signers: []string{"key", "release", "anyone"}}
	judge := func(t *testing.T, i image, q verify.Requirement, want string) verify.Evidence {
		t.Helper()
		set, err := newSet(t, b, q, signers...)
		if err != nil {
			t.Fatal(err)
		}
		report, _, err := set.Verify(t.Context(), "production", []verify.Subject{{Kind: verify.KindImage, Reference: i.Pinned()}})
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %q", err, want)
		}
		return report.Evidence[0]
	}
	t.Run("one certificate, two names", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, b.who, verifytest.NotationOptions{})
		b.sign(t, i, b.who, verifytest.NotationOptions{COSE: true})
		b.sign(t, i, b.certify(t, verifytest.CertificateOptions{Name: "release"}), verifytest.NotationOptions{}) // its successor
		judge(t, i, two, "only 1 of 2 distinct signers")
	})
	t.Run("two certificates", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, b.who, verifytest.NotationOptions{})
		b.sign(t, i, b.certify(t, verifytest.CertificateOptions{Name: "qa"}), verifytest.NotationOptions{})
		judge(t, i, two, "")
	})
	t.Run("a certificate and a key", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.sign(t, i, b.who, verifytest.NotationOptions{})
		judge(t, i, two, "only 1 of 2")
		if err := a.Sign(t.Context(), i.Pinned(), verifytest.SignOptions{Key: "release", NoTlog: true}); err != nil {
			t.Fatal(err)
		}
		e := judge(t, i, two, "")
		if !e.NotAfter.Equal(b.who.Chain[0].NotAfter) {
			t.Errorf("it holds until %s, and the certificate until %s", e.NotAfter, b.who.Chain[0].NotAfter)
		}
	})
	t.Run("a signature that expired is not a missing one", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		now := time.Now()
		b.sign(t, i, b.who, verifytest.NotationOptions{SignedAt: now.Add(-50 * time.Minute), Expiry: now.Add(-time.Minute)})
		judge(t, i, verify.Requirement{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}}, "the signer gave the signature until")
	})
	t.Run("one that will expire", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		soon := time.Now().Add(time.Hour).Truncate(time.Second)
		b.sign(t, i, b.who, verifytest.NotationOptions{Expiry: soon})
		if e := judge(t, i, verify.Requirement{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}}, ""); !e.NotAfter.Equal(soon) {
			t.Errorf("it holds until %s, not %s", e.NotAfter, soon)
		}
	})
	for why, c := range map[string]struct {
		q      verify.Requirement
		signer verify.Signer
	}{
		"makes no statements":              {verify.Requirement{SBOM: &verify.SBOMRequirement{}}, b.signer()},
		"maxAge needs a proven time":       {verify.Requirement{Signature: &verify.SignatureRequirement{}, MaxAge: time.Hour}, b.signer()},
		"leave root and unlogged out":      {verify.Requirement{Signature: &verify.SignatureRequirement{}}, b.signer(func(s *verify.Signer) { s.Unlogged = true })},
		"the trust store is empty":         {verify.Requirement{Signature: &verify.SignatureRequirement{}}, b.signer(func(s *verify.Signer) { s.Notation.Certificates = nil })},
		"it names no subject":              {verify.Requirement{Signature: &verify.SignatureRequirement{}}, b.signer(func(s *verify.Signer) { s.Notation.Subjects = nil })},
		"exactly one of key, identity and": {verify.Requirement{Signature: &verify.SignatureRequirement{}}, b.signer(func(s *verify.Signer) { s.Key = &verify.Key{PEM: pub} })},
	} {
		c.q.Signers = []string{"release"}
		if _, err := newSet(t, b, c.q, c.signer); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

// TestCaps is about endless data (CVE-2023-33957, CVE-2023-33958, CVE-2023-25656).
func TestCaps(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	for name, c := range map[string]struct {
		signatures int
		why        string
	}{
		"1,000 signatures": {1000, "more than 512 referrers"},
		"129 signatures":   {129, "more than 128 signatures"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := b.push(t)
			b.sign(t, i, b.who, verifytest.NotationOptions{})
			list := make([]v1.Descriptor, c.signatures)
			for n := range list {
				list[n] = v1.Descriptor{MediaType: types.OCIManifestSchema1, ArtifactType: "application/vnd.cncf.notary.signature", Size: 1,
					Digest: v1.Hash{Algorithm: "sha256", Hex: digest.FromString(time.Unix(int64(n), 0).String()).Encoded()}}
			}
			proxy := b.proxy(t, testenv.Fault{
				Match:   func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/referrers/") },
				Rewrite: answer(t, map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": list}),
			})
			_, _, err := proxy.attestations(t, i, b.signer())
			if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
		})
	}
	t.Run("an endless envelope", func(t *testing.T) {
		t.Parallel()
		i := b.push(t)
		b.pushed(t, i, make([]byte, 128<<10+1))
		b.refused(t, i, b.signer(), "an envelope of 131073 bytes")
	})
}

// TestManifests is about manifests that say they are signatures.
func TestManifests(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	const ours, empty = "application/vnd.cncf.notary.signature", "application/vnd.oci.empty.v1+json"
	for name, c := range map[string]struct {
		artifactType, config string
		layers               func(v1.Descriptor) []v1.Descriptor
		why                  string // of refusal; empty: it counts
		none                 bool   // it is no signature at all
	}{
		"by artifact type":   {artifactType: ours, config: empty},
		"by config":          {config: ours},
		"by both":            {artifactType: ours, config: ours, none: true},
		"something else":     {artifactType: "application/example", config: empty, none: true},
		"a different config": {config: "application/example", none: true},
		"nothing said":       {config: empty, none: true},
		"no envelope":        {config: ours, layers: func(v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{} }, why: "this has 0"},
		"two envelopes":      {config: ours, layers: func(d v1.Descriptor) []v1.Descriptor { return []v1.Descriptor{d, d} }, why: "this has 2"},
		"a lie about the size": {config: ours, layers: func(d v1.Descriptor) []v1.Descriptor {
			d.Size = 1
			return []v1.Descriptor{d}
		}, why: "bytes, not 1"},
		"a negative size": {config: ours, layers: func(d v1.Descriptor) []v1.Descriptor {
			d.Size = -1
			return []v1.Descriptor{d}
		}, why: "an envelope of -1 bytes"},
		"an envelope of an unknown type": {config: ours, layers: func(d v1.Descriptor) []v1.Descriptor {
			d.MediaType = "application/example"
			return []v1.Descriptor{d}
		}, why: `an envelope of type "application/example"`},
		"an envelope of the other type": {config: ours, layers: func(d v1.Descriptor) []v1.Descriptor {
			d.MediaType = "application/cose"
			return []v1.Descriptor{d}
		}, why: "envelope: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := b.push(t)
			raw, err := b.Envelope(t.Context(), i.desc, b.who, verifytest.NotationOptions{})
			if err != nil {
				t.Fatal(err)
			}
			err = verifytest.PushNotation(t.Context(), i.Pinned(), jwsType, raw, verifytest.Registry{}, func(m *v1.Manifest) {
				m.ArtifactType, m.Config.MediaType = c.artifactType, types.MediaType(c.config)
				if c.layers != nil {
					m.Layers = c.layers(m.Layers[0])
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case c.none:
				if list, rejected := b.verify(t, i, nil, b.signer()); len(list)+len(rejected) != 0 {
					t.Errorf("%v, refused %v", list, rejected)
				}
			case c.why != "":
				b.refused(t, i, b.signer(), c.why)
			default:
				b.accepted(t, i, b.signer())
			}
		})
	}
}

// proxied is a registry behind a proxy.
type proxied struct {
	host   string
	client *registry.Client
	faults *testenv.FaultProxy
}

func (b *bed) proxy(t *testing.T, f testenv.Fault) proxied {
	t.Helper()
	proxy, err := testenv.NewFaultProxy(b.reg.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	proxy.Set(f)
	host := strings.TrimPrefix(proxy.URL(), "http://")
	return proxied{host, clientOf(t, host), proxy}
}

func (p proxied) attestations(t *testing.T, i image, s verify.Signer) ([]verify.Statement, []verify.Rejected, error) {
	t.Helper()
	v, err := notation.New(p.client, []verify.Signer{s}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(i.Name, "/")
	i.Name = p.host + "/" + path
	return v.Attestations(t.Context(), i.Subject)
}

// TestRegistryFailureIsNotAbsence breaks each request in turn.
func TestRegistryFailureIsNotAbsence(t *testing.T) {
	t.Parallel()
	b := newBed(t, testenv.RegistryOptions{Referrers: true})
	i := b.push(t)
	b.sign(t, i, b.who, verifytest.NotationOptions{})
	image := "/manifests/" + i.Digest.String()
	for name, match := range map[string]func(path string) bool{
		"list": func(path string) bool { return strings.Contains(path, "/referrers/") },
		"signature": func(path string) bool {
			return strings.Contains(path, "/manifests/") && !strings.HasSuffix(path, image)
		},
		"envelope": func(path string) bool { return strings.Contains(path, "/blobs/") },
		"image":    func(path string) bool { return strings.HasSuffix(path, image) },
	} {
		for _, f := range []testenv.Fault{{Status: http.StatusServiceUnavailable}, {Status: http.StatusNotFound}, {Corrupt: true}, {CutAfter: -1}} {
			if name == "list" && f.Status == http.StatusNotFound {
				continue // that is how a registry says that it has no referrers API
			}
			f.Match = func(r *http.Request) bool { return match(r.URL.Path) }
			p := b.proxy(t, f)
			list, _, err := p.attestations(t, i, b.signer())
			if fault.KindOf(err) != fault.Transient || err == nil || len(list) > 0 || p.faults.Matches() == 0 {
				t.Errorf("%s, %+v: %v, %v (%v)", name, f.Status, list, err, fault.KindOf(err))
			}
		}
	}
}

// answer replaces what a registry says.
func answer(t *testing.T, with any) func(*http.Response) error {
	b := encode(t, with)
	return func(r *http.Response) error {
		_ = r.Body.Close()
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		r.Header.Set("Content-Length", strconv.Itoa(len(b)))
		return nil
	}
}
