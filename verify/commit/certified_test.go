package commit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
)

const issuer = "https://accounts.example.com"

// throwaway is a Sigstore for one test, which signs for real.
type throwaway struct {
	t *testing.T
	*ca.VirtualSigstore
	root *verify.Root
}

func newThrowaway(t *testing.T) *throwaway {
	t.Helper()
	vs := get(ca.NewVirtualSigstore())(t)
	logs := map[string]*root.TransparencyLog{}
	for id, log := range vs.RekorLogs() {
		log.ID = get(hex.DecodeString(id))(t) // the library keeps its digits
		logs[id] = log
	}
	tr := get(root.NewTrustedRoot(root.TrustedRootMediaType01, vs.FulcioCertificateAuthorities(), nil, vs.TimestampingAuthorities(), logs))(t)
	return &throwaway{t: t, VirtualSigstore: vs, root: &verify.Root{Name: "test", TrustedRoot: get(tr.MarshalJSON())(t), Log: 1}}
}

// signer is a signer whose certificates name an email.
func (s *throwaway) signer(name, email string, root *verify.Root) Signer {
	return Signer{Name: name, Certified: &verify.Signer{Name: name, Root: root, Identity: &verify.Identity{Issuer: issuer, Subject: verify.Match{Exact: email}}}}
}

func (s *throwaway) timestamps() *verify.Root {
	r := *s.root
	r.Log, r.Timestamps = 0, 1
	return &r
}

func prover(signers []verify.Signer) (Prover, error) { return sigstore.NewProver(signers) }

// The parts of a CMS signature, to be written wrong one by one.
type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

type signerInfo struct {
	Version            int
	SID                asn1.RawValue
	DigestAlgorithm    pkix.AlgorithmIdentifier
	SignedAttrs        []attribute `asn1:"optional,omitempty,tag:0,set"`
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Signature          []byte
	UnsignedAttrs      []attribute `asn1:"optional,omitempty,tag:1,set"`
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content []byte `asn1:"optional,omitempty,explicit,tag:0"`
}

type signedData struct {
	Version          int
	DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
	Content          contentInfo
	Certificates     []asn1.RawValue `asn1:"optional,omitempty,tag:0,set"`
	SignerInfos      []signerInfo    `asn1:"set"`
}

// gitsign signs as gitsign does.
type gitsign struct {
	*throwaway
	email   string
	payload []byte
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	// What a test wants to be otherwise.
	attrs    func([]attribute) []attribute          // before it is signed
	entry    func(*rekorpb.TransparencyLogEntry)    // of the log
	info     func(*signerInfo)                      // after it was signed
	data     func(*signedData)                      //
	logged   bool                                   // with an entry of the log
	stamped  bool                                   // with a timestamp
	rekord   func(message, signature []byte) []byte // the entry's body
	pemBlock func(*pem.Block)
}

func (s *throwaway) gitsign(email string, payload []byte) *gitsign {
	cert, key, err := s.GenerateLeafCert(email, issuer)
	must(s.t, err)
	return &gitsign{throwaway: s, email: email, payload: payload, cert: cert, key: key.(*ecdsa.PrivateKey), logged: true}
}

func der(t *testing.T, v any, params string) asn1.RawValue {
	t.Helper()
	return asn1.RawValue{FullBytes: get(asn1.MarshalWithParams(v, params))(t)}
}

var oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}

func (g *gitsign) sign() string {
	t := g.t
	t.Helper()
	sum := sha256.Sum256(g.payload)
	attrs := []attribute{
		{oidContentType, []asn1.RawValue{der(t, oidData, "")}},
		{oidMessageDigest, []asn1.RawValue{der(t, sum[:], "")}},
	}
	if g.attrs != nil {
		attrs = g.attrs(attrs)
	}
	message := get(asn1.MarshalWithParams(attrs, "set"))(t)
	digest := sha256.Sum256(message)
	signature := get(g.key.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
	sid := der(t, struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}{asn1.RawValue{FullBytes: g.cert.RawIssuer}, g.cert.SerialNumber}, "")
	info := signerInfo{Version: 1, SID: sid, DigestAlgorithm: pkix.AlgorithmIdentifier{Algorithm: oidSHA256}, SignedAttrs: attrs,
		SignatureAlgorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, Signature: signature}
	if g.logged {
		info.UnsignedAttrs = append(info.UnsignedAttrs, attribute{oidLogEntry, []asn1.RawValue{der(t, g.logEntry(message, signature), "")}})
	}
	if g.stamped {
		var response struct {
			Status asn1.RawValue
			Token  asn1.RawValue
		}
		_, err := asn1.Unmarshal(get(g.TimestampResponse(signature))(t), &response)
		must(t, err)
		info.UnsignedAttrs = append(info.UnsignedAttrs, attribute{oidTimestamp, []asn1.RawValue{response.Token}})
	}
	if g.info != nil {
		g.info(&info)
	}
	data := signedData{Version: 1, DigestAlgorithms: []pkix.AlgorithmIdentifier{info.DigestAlgorithm}, Content: contentInfo{Type: oidData},
		Certificates: []asn1.RawValue{{FullBytes: g.cert.Raw}}, SignerInfos: []signerInfo{info}}
	if g.data != nil {
		g.data(&data)
	}
	outer := der(t, struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{oidSignedData, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: der(t, data, "").FullBytes}}, "")
	block := &pem.Block{Type: pemCMS, Bytes: outer.FullBytes}
	if g.pemBlock != nil {
		g.pemBlock(block)
	}
	return string(pem.EncodeToMemory(block))
}

// logEntry is the entry as gitsign keeps it: without its body.
func (g *gitsign) logEntry(message, signature []byte) []byte {
	t := g.t
	t.Helper()
	body := get(hashedRekord(message, signature, g.cert))(t)
	if g.rekord != nil {
		body = g.rekord(message, signature)
	}
	id := get(g.RekorLogID())(t)
	at := time.Now().Unix()
	set := get(g.RekorSignPayload(tlog.RekorPayload{Body: base64.StdEncoding.EncodeToString(body), IntegratedTime: at, LogIndex: 7, LogID: id}))(t)
	proof := get(g.GetInclusionProof(body))(t)
	entry := &rekorpb.TransparencyLogEntry{
		LogIndex: 7, LogId: &protocommon.LogId{KeyId: get(hex.DecodeString(id))(t)}, KindVersion: &rekorpb.KindVersion{Kind: "hashedrekord", Version: "0.0.1"},
		IntegratedTime: at, InclusionPromise: &rekorpb.InclusionPromise{SignedEntryTimestamp: set},
		InclusionProof: &rekorpb.InclusionProof{LogIndex: *proof.LogIndex, TreeSize: *proof.TreeSize,
			RootHash: get(hex.DecodeString(*proof.RootHash))(t), Checkpoint: &rekorpb.Checkpoint{Envelope: *proof.Checkpoint}},
	}
	if g.entry != nil {
		g.entry(entry)
	}
	return get(proto.Marshal(entry))(t)
}

// certified is a repository whose only signer is dana, by certificates.
func certified(t *testing.T) (*repo, *throwaway, Config, string) {
	r, s := newRepo(t), newThrowaway(t)
	root := r.commit("README", r.by(r.alice))
	c := r.config()
	c.Signers = append(c.Signers, s.signer("dana", "dana@example.com", s.root))
	c.Rules[0].Signers = append(c.Rules[0].Signers, "dana")
	c.Prover = prover
	must(t, r.Write(map[string]string{"apps/x": "1"}))
	get(r.Git("add", "-A"))(t)
	return r, s, c, root
}

func TestCertifiedSignature(t *testing.T) {
	t.Parallel()
	r, s, c, root := certified(t)
	good := r.raw("")
	commit := func(g *gitsign) string {
		t.Helper()
		get(r.Git("update-ref", "HEAD", root))(t)
		return get(r.CommitRaw(testenv.WithSignature(good, g.sign())))(t)
	}
	ev := r.accepts(c, root, commit(s.gitsign("dana@example.com", good)))
	if ev.Facts["signer"] != "dana" || ev.Facts["method"] != "x509" || ev.Facts["fingerprint"] != "dana@example.com ("+issuer+")" || ev.Facts["signed"] == "" ||
		!slices.Contains(bare(ev), anchor(verify.AnchorIdentity, "dana@example.com")) || !slices.Contains(bare(ev), anchor(verify.AnchorIdentity, "dana")) {
		t.Errorf("evidence %+v", ev)
	}
	// A body in the entry is not looked at: what it must be follows from the signature.
	odd := s.gitsign("dana@example.com", good)
	odd.entry = func(e *rekorpb.TransparencyLogEntry) { e.CanonicalizedBody = []byte("{}") }
	r.accepts(c, root, commit(odd))
	stamped := c
	stamped.Signers = slices.Clone(c.Signers)
	stamped.Signers[3] = s.signer("dana", "dana@example.com", s.timestamps())
	onlyStamp := s.gitsign("dana@example.com", good)
	onlyStamp.logged, onlyStamp.stamped = false, true
	stampedID := commit(onlyStamp)
	r.accepts(stamped, root, stampedID)
	r.refuses(c, root, stampedID, "X.509 signature:") // the root asks for a log entry
	withLog := s.gitsign("dana@example.com", good)
	r.refuses(stamped, root, commit(withLog), "X.509 signature:") // the root asks for a timestamp

	window := c
	window.Signers = slices.Clone(c.Signers)
	window.Signers[3].NotAfter = time.Now().Add(-time.Hour)
	r.refuses(window, root, commit(s.gitsign("dana@example.com", good)), "signer dana is not valid when the commit was signed")
	// The proven time counts, and not when it was first seen here.
	window.Signers[3].NotAfter = time.Now().Add(30 * time.Minute)
	late := r.now
	r.now = r.now.Add(time.Hour)
	id := commit(s.gitsign("dana@example.com", good))
	r.accepts(window, root, id)
	r.now = late

	for _, a := range []verify.Anchor{anchor(verify.AnchorIdentity, "dana"), anchor(verify.AnchorIdentity, "dana@example.com")} {
		r.refuses(revoking(c, a), root, id, "was revoked on")
	}
}

func TestCertifiedSignatureRefused(t *testing.T) {
	t.Parallel()
	r, s, c, root := certified(t)
	good := r.raw("")
	other := newThrowaway(t)
	mallory := s.gitsign("mallory@example.com", good)
	for name, tc := range map[string]struct {
		change func(g *gitsign)
		want   string
	}{
		"no log entry and no timestamp (gitsign's default)": {func(g *gitsign) { g.logged = false }, "carries neither a log entry nor a timestamp"},
		"CVE-2024-51746: an entry of another signature": {func(g *gitsign) {
			theirs := s.gitsign("dana@example.com", []byte("something else"))
			g.rekord = func([]byte, []byte) []byte {
				return get(hashedRekord([]byte("something else"), []byte("signature"), theirs.cert))(t)
			}
		}, "not enough verified log entries"},
		"another identity": {func(g *gitsign) { g.cert, g.key = mallory.cert, mallory.key }, "expected SAN value to match"},
		"another authority": {func(g *gitsign) {
			theirs := other.gitsign("dana@example.com", good)
			g.cert, g.key = theirs.cert, theirs.key
		}, "leaf certificate verification failed"},
		"another log": {func(g *gitsign) {
			mine := g.throwaway
			g.throwaway = &throwaway{t: mine.t, VirtualSigstore: other.VirtualSigstore}
		}, "not enough verified log entries"},
		"another commit":   {func(g *gitsign) { g.payload = append(bytes.Clone(good), "more\n"...) }, "does not fit the commit"},
		"broken signature": {func(g *gitsign) { g.info = func(i *signerInfo) { i.Signature[len(i.Signature)-1] ^= 1 } }, "invalid signature"},
		"an entry's own body": {func(g *gitsign) {
			g.entry = func(e *rekorpb.TransparencyLogEntry) { e.KindVersion.Kind = "rekord" }
		}, "it is of kind \"rekord\""},
		"an entry of another version": {func(g *gitsign) {
			g.entry = func(e *rekorpb.TransparencyLogEntry) { e.KindVersion.Version = "0.0.2" }
		}, "version \"0.0.2\""},
		"an entry at another time": {func(g *gitsign) {
			g.entry = func(e *rekorpb.TransparencyLogEntry) { e.IntegratedTime += 3600 }
		}, "failed to verify"},
		"a broken entry": {func(g *gitsign) {
			g.info = func(i *signerInfo) { i.UnsignedAttrs[0].Values[0] = der(t, []byte{255}, "") }
		}, "the log entry: it does not parse"},
		"two entries": {func(g *gitsign) {
			g.info = func(i *signerInfo) { i.UnsignedAttrs = append(i.UnsignedAttrs, i.UnsignedAttrs[0]) }
		}, "an attribute is repeated"},
		"two entries in one attribute": {func(g *gitsign) {
			g.info = func(i *signerInfo) {
				i.UnsignedAttrs[0].Values = append(i.UnsignedAttrs[0].Values, i.UnsignedAttrs[0].Values[0])
			}
		}, "the log entry does not parse"},
		"no signed attributes": {func(g *gitsign) { g.info = func(i *signerInfo) { i.SignedAttrs = nil } }, "it has no signed attributes"},
		"no digest":            {func(g *gitsign) { g.attrs = func(a []attribute) []attribute { return a[:1] } }, "have no digest"},
		"two digests": {func(g *gitsign) {
			g.attrs = func(a []attribute) []attribute { return append(a, a[1]) }
		}, "an attribute is repeated"},
		"about something else than data": {func(g *gitsign) {
			g.attrs = func(a []attribute) []attribute {
				a[0].Values[0] = der(t, oidSignedData, "")
				return a
			}
		}, "are not about data"},
		"SHA-1": {func(g *gitsign) {
			g.info = func(i *signerInfo) { i.DigestAlgorithm.Algorithm = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26} }
		}, "the digest algorithm 1.3.14.3.2.26 is not accepted"},
		"content of its own": {func(g *gitsign) { g.data = func(d *signedData) { d.Content.Content = []byte{4, 1, 'x'} } }, "content of its own"},
		"no signer":          {func(g *gitsign) { g.data = func(d *signedData) { d.SignerInfos = nil } }, "no signer"},
		"two signers": {func(g *gitsign) {
			g.data = func(d *signedData) { d.SignerInfos = append(d.SignerInfos, d.SignerInfos[0]) }
		}, "more than one signer"},
		"no certificate": {func(g *gitsign) { g.data = func(d *signedData) { d.Certificates = nil } }, "the signer's certificate is not in it"},
		"the certificate twice": {func(g *gitsign) {
			g.data = func(d *signedData) { d.Certificates = append(d.Certificates, d.Certificates[0]) }
		}, "two certificates fit the signer"},
		"too many certificates": {func(g *gitsign) {
			g.data = func(d *signedData) {
				for range maxCertificates {
					d.Certificates = append(d.Certificates, asn1.RawValue{FullBytes: mallory.cert.Raw})
				}
			}
		}, "more than 16 certificates"},
		"armor of another type": {func(g *gitsign) { g.pemBlock = func(b *pem.Block) { b.Headers = map[string]string{"a": "b"} } }, "not one armored signature"},
		"text after DER":        {func(g *gitsign) { g.pemBlock = func(b *pem.Block) { b.Bytes = append(b.Bytes, 0) } }, "it is not in DER"},
		"indefinite length": {func(g *gitsign) {
			g.pemBlock = func(b *pem.Block) { b.Bytes = append([]byte{0x30, 0x80}, append(b.Bytes[4:], 0, 0)...) }
		}, "it is not in DER"},
	} {
		t.Run(name, func(t *testing.T) {
			g := s.gitsign("dana@example.com", good)
			tc.change(g)
			get(r.Git("update-ref", "HEAD", root))(t)
			id := get(r.CommitRaw(testenv.WithSignature(good, g.sign())))(t)
			r.t = t
			r.refuses(c, root, id, tc.want)
		})
	}
	r.t = t
	// What nobody proves the time of is told apart, with the way out.
	g := s.gitsign("dana@example.com", good)
	g.logged = false
	get(r.Git("update-ref", "HEAD", root))(t)
	if _, err := r.verify(c, root, get(r.CommitRaw(testenv.WithSignature(good, g.sign())))(t)); !strings.Contains(fault.HintOf(err), "git config gitsign.rekorMode offline") {
		t.Errorf("hint %q", fault.HintOf(err))
	}
	// The signature stands beside others in one repository, and a signer by key is
	// not asked about it.
	keys := r.config()
	get(r.Git("update-ref", "HEAD", root))(t)
	r.refuses(keys, root, get(r.CommitRaw(testenv.WithSignature(good, s.gitsign("dana@example.com", good).sign())))(t), "no signer has an identity")
}

// The certificate is the one that the signer names, wherever it stands: taking
// the first let others be signed for (CVE-2026-39984, gitsign's PR 810).
func TestCertificateIsTheSigners(t *testing.T) {
	t.Parallel()
	var bag []*x509.Certificate
	for serial := range int64(3) {
		block, _ := pem.Decode(ownAuthority(t, serial+1))
		bag = append(bag, get(x509.ParseCertificate(block.Bytes))(t))
	}
	byKey := func(id []byte) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: id}
	}
	bySerial := func(issuer []byte, serial int64) asn1.RawValue {
		return der(t, struct {
			Issuer asn1.RawValue
			Serial int64
		}{asn1.RawValue{FullBytes: issuer}, serial}, "")
	}
	const bySequence = cbasn1.SEQUENCE
	keyTag := cbasn1.Tag(0).ContextSpecific()
	for name, c := range map[string]struct {
		sid  asn1.RawValue
		tag  cbasn1.Tag
		want *x509.Certificate
	}{
		"by key":             {byKey(bag[1].SubjectKeyId), keyTag, bag[1]},
		"by another key":     {byKey([]byte("other")), keyTag, nil},
		"by no key":          {byKey(nil), keyTag, nil},
		"by serial":          {bySerial(bag[1].RawIssuer, 2), bySequence, bag[1]},
		"by another serial":  {bySerial(bag[1].RawIssuer, 9), bySequence, nil},
		"by another issuer":  {bySerial(der(t, pkix.RDNSequence{}, "").FullBytes, 2), bySequence, nil},
		"by something else":  {der(t, 2, ""), cbasn1.INTEGER, nil},
		"by a broken issuer": {der(t, []int{1}, ""), bySequence, nil},
	} {
		if got, err := certificateOf(get(asn1.Marshal(c.sid))(t), c.tag, bag); got != c.want || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestGitsign judges commits that gitsign made, by the public Sigstore. They and
// its trusted root are from the tests of gitsign and sigstore-go.
func TestGitsign(t *testing.T) {
	t.Parallel()
	publicGood := &verify.Root{Name: "sigstore", TrustedRoot: get(os.ReadFile("testdata/sigstore-trusted-root.json"))(t), Log: 1, CertificateLog: true}
	ring := func(email string) keyring {
		t.Helper()
		return get(newKeyring([]Signer{{Name: "billy", Certified: &verify.Signer{Name: "billy", Root: publicGood,
			Identity: &verify.Identity{Issuer: "https://accounts.google.com", Subject: verify.Match{Exact: email}}}}}, prover))(t)
	}
	offline := get(parse(get(os.ReadFile("testdata/gitsign-offline.commit"))(t)))(t)
	m, err := ring("billy@chainguard.dev").verify(offline, time.Now())
	if err != nil || m.signer != "billy" || m.time.Unix() != 1685981480 {
		t.Errorf("rekorMode offline: %+v, %v", m, err)
	}
	if _, err := ring("mallory@chainguard.dev").verify(offline, time.Now()); err == nil {
		t.Error("another identity")
	}
	offline.payload = append(bytes.Clone(offline.payload), '\n')
	if _, err := ring("billy@chainguard.dev").verify(offline, time.Now()); err == nil || !strings.Contains(err.Error(), "does not fit the commit") {
		t.Errorf("another message: %v", err)
	}
	online := get(parse(get(os.ReadFile("testdata/gitsign-online.commit"))(t)))(t)
	if _, err := ring("billy@chainguard.dev").verify(online, time.Now()); err == nil || !strings.Contains(err.Error(), "neither a log entry nor a timestamp") {
		t.Errorf("rekorMode online: %v", err)
	}
}

func TestNewRefusesCertificates(t *testing.T) {
	t.Parallel()
	r, s, _, _ := certified(t)
	timeless := *s.root
	timeless.Log = 0
	own := &verify.Root{Name: "own", Authorities: ownAuthority(t, 1)}
	for want, f := range map[string]func(*Config){
		"nobody can judge certificates": func(c *Config) { c.Prover = nil },
		"proves no time":                func(c *Config) { c.Signers[3].Certified.Root = own },
		"an identity needs a root":      func(c *Config) { c.Signers[3].Certified.Root = nil },
		"an identity needs the exact":   func(c *Config) { c.Signers[3].Certified.Identity.Issuer = "" },
		"does not say that its holder":  func(c *Config) { c.Signers[3].UserVerified = true },
	} {
		c := r.config()
		c.Prover = prover
		c.Signers = append(c.Signers, s.signer("dana", "dana@example.com", s.root))
		f(&c)
		if _, err := New(c); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func ownAuthority(t *testing.T, serial int64) []byte {
	t.Helper()
	key := get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "own"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw := get(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

// The body of a log entry is made here, and must be what Rekor makes.
func TestHashedRekordIsCanonical(t *testing.T) {
	t.Parallel()
	s := newThrowaway(t)
	g := s.gitsign("dana@example.com", nil)
	body := get(hashedRekord([]byte("m"), []byte("<&>"), g.cert))(t)
	var back any
	must(t, json.Unmarshal(body, &back))
	if again := get(json.Marshal(back))(t); !bytes.Equal(again, body) || bytes.ContainsAny(body, " \n\\") {
		t.Errorf("not canonical: %s", body)
	}
}

func FuzzParseCMS(f *testing.F) {
	for _, name := range []string{"testdata/gitsign-offline.commit", "testdata/gitsign-online.commit"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		c, err := parse(raw)
		if err != nil {
			f.Fatal(err)
		}
		block, _ := pem.Decode([]byte(c.signature))
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseCMS(string(pem.EncodeToMemory(&pem.Block{Type: pemCMS, Bytes: raw})))
		if err != nil {
			return
		}
		if c.certificate == nil || len(c.digest) != c.hash.Size() || c.attributes[0] != 0x31 || len(c.timestamps) > maxTimestamps {
			t.Errorf("half a signature: %+v", c)
		}
		c.fits(raw)
		_, _ = c.bundle() // must not panic
	})
}
