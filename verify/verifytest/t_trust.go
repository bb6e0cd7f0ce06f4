package verifytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

var usageTLS = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}

func hexBytes(d digest.Digest) ([]byte, error) { return hex.DecodeString(d.Encoded()) }

// rootOf is a root of the Authority.
func (s *suite) rootOf(t *testing.T, o RootOptions, log, timestamps int) *verify.Root {
	t.Helper()
	b, err := s.a.TrustedRootWith(o)
	if err != nil {
		t.Fatal(err)
	}
	return &verify.Root{Name: "test", TrustedRoot: b, Log: log, Timestamps: timestamps, CertificateLog: !o.NoCertificateLog}
}

// at is a signer under another root.
func at(root *verify.Root, s verify.Signer) verify.Signer {
	s.Root = root
	return s
}

// threshold makes a rule ask for k signatures by distinct signers.
func threshold(k int, signers ...verify.Signer) func(*verify.Rule) {
	return func(r *verify.Rule) {
		only(signers...)(r)
		r.Require[0].Threshold = k
	}
}

func named(name string, s verify.Signer) verify.Signer {
	s.Name = name
	return s
}

// thresholds count parties: keys, identities, and operators of logs and of
// timestamp authorities.
func (s *suite) thresholds(t *testing.T, layout Layout) {
	release, backup := s.key(t, "release"), s.key(t, "backup")
	ci := s.ci(verify.Match{Exact: goodSubject})
	byKey, byCI := SignOptions{Key: "release"}, SignOptions{Identity: goodSubject, Issuer: goodIssuer}
	all := func(options ...SignOptions) func(*testing.T, string, Layout) {
		return func(t *testing.T, pinned string, layout Layout) {
			for _, o := range options {
				s.sign(t, pinned, layout, o)
			}
		}
	}
	logs := func(names ...string) SignOptions {
		return with(byKey, func(o *SignOptions) { o.Logs = names })
	}
	stamps := func(names ...string) SignOptions {
		return with(byKey, func(o *SignOptions) {
			o.NoTlog = true
			for _, n := range names {
				o.Stamps = append(o.Stamps, Stamp{By: n})
			}
		})
	}
	everybody := []string{Main, Sibling, Other}
	twoLogs := s.rootOf(t, RootOptions{Logs: everybody}, 2, 0)
	renamed := s.rootOf(t, RootOptions{
		Logs: []string{Main, Other, Stranger}, Stampers: []string{Main, Other, Stranger}, Operators: map[string]string{Main: "acme", Other: "acme"},
	}, 2, 0)
	twoStamps := s.rootOf(t, RootOptions{Stampers: everybody}, 0, 2)
	renamedStamps := *renamed
	renamedStamps.Log, renamedStamps.Timestamps = 0, 2
	const oneOperator = "and 2 are asked for"
	bundles := []Layout{Referrers}

	s.try(t, layout, []trial{
		{name: "threshold 2 of 2", rule: threshold(2, release, backup), put: all(byKey, SignOptions{Key: "backup"})},
		{name: "threshold 2 of 2, a key and an identity", rule: threshold(2, release, ci), put: all(byKey, byCI)},
		{name: "threshold 2 of 2, only one", rule: threshold(2, release, backup), put: all(byKey), refused: "only 1 of 2 distinct signers"},
		{name: "CVE-2026-23992 one key signs twice", rule: threshold(2, release, backup), put: all(byKey, byKey), refused: "only 1 of 2 distinct signers"},
		{name: "CVE-2026-23992 one key under two names", rule: threshold(2, release, named("again", release)), put: all(byKey, byKey), refused: "only 1 of 2 distinct signers"},
		{
			name: "CVE-2026-23992 one identity under two names", rule: threshold(2, ci, named("again", s.ci(verify.Match{Prefix: "https://github.com/acme/shop"}))),
			put: all(byCI, byCI), refused: "only 1 of 2 distinct signers",
		},
		{name: "threshold 2 of 3", rule: threshold(2, release, backup, ci), put: all(SignOptions{Key: "backup"}, byCI)},
		{name: "log 2, two operators", layouts: bundles, rule: only(at(twoLogs, release)), put: all(logs(Main, Other))},
		{name: "log 2, three logs of two operators", layouts: bundles, rule: only(at(twoLogs, release)), put: all(logs(Sibling, Main, Other))},
		{name: "CVE-2026-49834 one log", layouts: bundles, rule: only(at(twoLogs, release)), put: all(logs(Main)), refused: "not enough verified log entries"},
		{name: "CVE-2026-49834 two entries of one log", layouts: bundles, rule: only(at(twoLogs, release)), put: all(logs(Main, Main)), refused: "not enough verified log entries"},
		{
			name: "CVE-2026-49834 one entry twice", layouts: bundles, rule: only(at(twoLogs, release)),
			put: all(with(byKey, s.change(func(b *protobundle.Bundle) {
				b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, entry(b))
			}))), refused: "duplicate tlog entries",
		},
		{name: "CVE-2026-49834 two logs of one operator", layouts: bundles, rule: only(at(twoLogs, release)), put: all(logs(Main, Sibling)), refused: oneOperator},
		{name: "CVE-2026-49834 two logs of an operator that the root names", layouts: bundles, rule: only(at(renamed, release)), put: all(logs(Main, Other)), refused: oneOperator},
		{name: "log 2, operators that the root names", layouts: bundles, rule: only(at(renamed, release)), put: all(logs(Main, Stranger))},
		{name: "CVE-2026-49834 an entry of version 1 and one of 2 in one log", layouts: bundles, rule: only(at(twoLogs, release)), put: all(with(logs(Main), func(o *SignOptions) { o.Tiles = []string{Main} })), refused: "not enough verified log entries"},
		{name: "log 2, an entry of version 1 and one of 2", layouts: bundles, rule: only(at(twoLogs, release)), put: all(with(logs(Main), func(o *SignOptions) { o.Tiles = []string{Other} }))},
		{name: "log 2 in the older layout", layouts: []Layout{Legacy}, rule: only(at(twoLogs, release)), put: all(logs(Main)), refused: "more are asked for"},
		{name: "timestamps 2, two operators", layouts: bundles, rule: only(at(twoStamps, release)), put: all(stamps(Main, Other))},
		{name: "CVE-2026-49834 one timestamp", layouts: bundles, rule: only(at(twoStamps, release)), put: all(stamps(Main)), refused: "threshold not met"},
		{name: "CVE-2026-49834 two timestamps of one authority", layouts: bundles, rule: only(at(twoStamps, release)), put: all(stamps(Main, Main)), refused: "threshold not met"},
		{name: "CVE-2026-49834 two timestamp authorities of one operator", layouts: bundles, rule: only(at(twoStamps, release)), put: all(stamps(Main, Sibling)), refused: oneOperator},
		{name: "CVE-2026-49834 two timestamp authorities of an operator that the root names", layouts: bundles, rule: only(at(&renamedStamps, release)), put: all(stamps(Main, Other)), refused: oneOperator},
		{name: "timestamps 2, operators that the root names", layouts: bundles, rule: only(at(&renamedStamps, release)), put: all(stamps(Other, Stranger))},
		{name: "timestamps 2 in the older layout", layouts: []Layout{Legacy}, rule: only(at(twoStamps, release)), put: all(stamps(Main)), refused: "more are asked for"},
	})
	t.Run("what a root can never meet", func(t *testing.T) {
		t.Parallel()
		for name, root := range map[string]*verify.Root{
			"log: 2 can never be met":                              s.rootOf(t, RootOptions{Logs: []string{Main, Sibling}}, 2, 0),
			"log: 1 can never be met":                              s.rootOf(t, RootOptions{Stampers: []string{Main}}, 1, 0),
			"timestamps: 2 can never be met":                       s.rootOf(t, RootOptions{Stampers: []string{Main, Sibling}}, 0, 2),
			"timestamps: 1 can never be met":                       s.rootOf(t, RootOptions{Logs: []string{Main}}, 1, 1),
			"has no certificate transparency log":                  {Name: "r", TrustedRoot: s.rootOf(t, RootOptions{Logs: []string{Main}, NoCertificateLog: true}, 1, 0).TrustedRoot, Log: 1, CertificateLog: true},
			"give the trusted_root.json":                           {Name: "r", TrustedRoot: []byte("{}"), Log: 1},
			"its root proves no time":                              s.rootOf(t, RootOptions{Stampers: []string{Main}}, 0, 0),
			"its timestamp authorities have 1 operators":           {Name: "r", Authorities: s.company.Authorities(), Timestampers: append(s.company.Timestampers(), certPEM(s.a.stampers[Sibling].root)...), Timestamps: 2},
			"no certificate signed itself":                         {Name: "r", Authorities: certPEM(s.a.ca.intermediate), Timestampers: s.company.Timestampers(), Timestamps: 1},
			"timestampers: CN=timestamps is no certificate author": {Name: "r", Authorities: s.company.Authorities(), Timestampers: certPEM(s.company.stamper.leaf), Timestamps: 1},
		} {
			_, err := s.Set(verify.Config{Rules: []verify.Rule{s.rule(t, only(at(root, release)))}, Revocations: new(verify.Revocations)})
			if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v (%v)", name, err, fault.KindOf(err))
			}
		}
	})
}

// weak are keys that anybody with enough time can sign by.
func (s *suite) weak(t *testing.T) {
	t.Parallel()
	short, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := new(big.Int).SetBit(big.NewInt(1), 1023, 1)
	for want, pub := range map[string]crypto.PublicKey{
		"an RSA key of 1024 bits is too weak": &rsa.PublicKey{N: modulus, E: 65537},
		"an ECDSA key over P-224 is too weak": short.Public(),
	} {
		pem, err := cryptoutils.MarshalPublicKeyToPEM(pub)
		if err != nil {
			t.Fatal(err)
		}
		signer := verify.Signer{Name: "weak", Key: &verify.Key{PEM: pem}, Unlogged: true}
		_, err = s.Set(verify.Config{Rules: []verify.Rule{s.rule(t, only(signer))}, Revocations: new(verify.Revocations)})
		if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// roots are the kinds of root that are no public Sigstore.
func (s *suite) roots(t *testing.T, layout Layout) {
	const who = "builder@acme.example"
	now := time.Now()
	release := s.key(t, "release")
	ci := s.ci(verify.Match{Exact: goodSubject})
	// GitHub's own: no log, and no SCT in the certificates.
	github := s.rootOf(t, RootOptions{Stampers: []string{Main}, NoCertificateLog: true}, 0, 1)
	byCI := SignOptions{Identity: goodSubject, Issuer: goodIssuer, NoTlog: true, NoSCT: true}
	stamped := func(o SignOptions, stamps ...Stamp) SignOptions {
		o.Stamps = stamps
		return o
	}
	// A company's own.
	acme := s.company
	timeless := &verify.Root{Name: "acme", Authorities: acme.Authorities()}
	timed := &verify.Root{Name: "acme", Authorities: acme.Authorities(), Timestampers: acme.Timestampers(), Timestamps: 1}
	builder := func(root *verify.Root) verify.Signer {
		return verify.Signer{Name: "builder", Identity: &verify.Identity{Subject: verify.Match{Exact: who}}, Root: root}
	}
	byCompany := SignOptions{Identity: who, Company: acme, NoTlog: true}
	over := func(o SignOptions, from time.Time, lifetime time.Duration) SignOptions {
		o.IssuedAt, o.Lifetime = from, lifetime
		return o
	}
	stranger, err := NewCompany(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	bundles, legacy := []Layout{Referrers}, []Layout{Legacy}
	both := s.rootOf(t, RootOptions{Logs: []string{Main}, Stampers: []string{Main}}, 1, 1)

	s.try(t, layout, []trial{
		{name: "no log", rule: only(at(github, ci)), put: s.signed(stamped(byCI, Stamp{}))},
		{name: "no log, by a key", rule: only(at(github, release)), put: s.signed(stamped(SignOptions{Key: "release", NoTlog: true}, Stamp{}))},
		{name: "no log and no timestamp", rule: only(at(github, ci)), put: s.signed(byCI), bundle: "threshold not met", legacy: "no timestamp"},
		{name: "no log, a log entry in the place of the timestamp", rule: only(at(github, ci)), put: s.signed(with(byCI, func(o *SignOptions) { o.NoTlog = false })), bundle: "threshold not met", legacy: "no timestamp"},
		{name: "a timestamp over another signature", rule: only(at(github, ci)), put: s.signed(stamped(byCI, Stamp{Over: []byte("another")})), bundle: "hashed messages don't match", legacy: refusedSignature},
		{name: "a timestamp of a stranger", rule: only(at(github, ci)), put: s.signed(stamped(byCI, Stamp{By: Other})), bundle: "threshold not met", legacy: refusedSignature},
		{name: "CVE-2026-39984 another's certificate in the bag of a timestamp", rule: only(at(github, ci)), put: s.signed(stamped(byCI, Stamp{Forged: true})), bundle: "threshold not met", legacy: refusedSignature},
		{name: "a timestamp from before its authority", rule: only(at(github, release)), put: s.signed(stamped(SignOptions{Key: "release", NoTlog: true}, Stamp{At: now.Add(-2 * time.Hour)})), bundle: "threshold not met", legacy: refusedSignature},
		{name: "a timestamp before the certificate", rule: only(at(github, ci)), put: s.signed(stamped(byCI, Stamp{At: now.Add(-30 * time.Minute)})), bundle: "leaf certificate verification failed", legacy: refusedSignature},
		{name: "a timestamp after the certificate", rule: only(at(github, ci)), put: s.signed(stamped(over(byCI, now.Add(-30*time.Minute), 10*time.Minute), Stamp{})), bundle: "leaf certificate verification failed", legacy: refusedSignature},
		{name: "a timestamp of tomorrow", rule: only(at(github, release)), put: s.signed(stamped(SignOptions{Key: "release", NoTlog: true}, Stamp{At: now.Add(24 * time.Hour)})), refused: "in the future"},
		{name: "a log and a timestamp", rule: only(at(both, ci)), put: s.signed(SignOptions{Identity: goodSubject, Issuer: goodIssuer, Stamps: []Stamp{{}}})},
		{name: "a log and no timestamp", rule: only(at(both, ci)), put: s.signed(SignOptions{Identity: goodSubject, Issuer: goodIssuer}), bundle: "threshold not met", legacy: "no timestamp"},
		{name: "a timestamp and no log", rule: only(at(both, ci)), put: s.signed(SignOptions{Identity: goodSubject, Issuer: goodIssuer, NoTlog: true, Stamps: []Stamp{{}}}), bundle: "not enough verified log entries", legacy: "offline verification failed"},

		{name: "own authorities", layouts: bundles, rule: only(builder(timeless)), put: s.signed(byCompany)},
		{name: "own authorities, timestamps", layouts: bundles, rule: only(builder(timed)), put: s.signed(stamped(byCompany, Stamp{}))},
		{name: "own authorities, without the timestamp", layouts: bundles, rule: only(builder(timed)), put: s.signed(byCompany), refused: "threshold not met"},
		{name: "own authorities, an ended certificate", layouts: bundles, rule: only(builder(timeless)), put: s.signed(over(byCompany, now.Add(-time.Hour), time.Minute)), refused: "leaf certificate verification failed"},
		{
			name: "own authorities, an ended certificate that signed in time", layouts: bundles, rule: only(builder(timed)),
			put: s.signed(stamped(over(byCompany, now.Add(-50*time.Minute), time.Minute), Stamp{At: now.Add(-50*time.Minute + 30*time.Second)})),
		},
		{name: "own authorities, an ended certificate that signed too late", layouts: bundles, rule: only(builder(timed)), put: s.signed(stamped(over(byCompany, now.Add(-50*time.Minute), time.Minute), Stamp{})), refused: "leaf certificate verification failed"},
		{name: "own authorities, a stranger's", layouts: bundles, rule: only(builder(timeless)), put: s.signed(with(byCompany, func(o *SignOptions) { o.Company = stranger })), refused: "leaf certificate verification failed"},
		{name: "own authorities, another subject", layouts: bundles, rule: only(builder(timeless)), put: s.signed(with(byCompany, func(o *SignOptions) { o.Identity = "mallory@acme.example" })), refused: `for "mallory@acme.example"`},
		{name: "own authorities, an issuer that was not asked for", layouts: bundles, rule: only(builder(timeless)), put: s.signed(with(byCompany, func(o *SignOptions) { o.Issuer = goodIssuer })), refused: "for issuer"},
		{name: "own authorities, a certificate for servers", layouts: bundles, rule: only(builder(timeless)), put: s.signed(with(byCompany, func(o *SignOptions) { o.Usage = usageTLS })), refused: "leaf certificate verification failed"},
		{name: "own authorities, the older layout", layouts: legacy, rule: only(builder(timed)), put: s.signed(stamped(byCompany, Stamp{})), refused: "read in bundles only"},
		{
			name: "own authorities, an intermediate that the root does not name", layouts: bundles,
			rule: only(builder(&verify.Root{Name: "acme", Authorities: acme.Root()})),
			put: s.signed(with(byCompany, s.change(func(b *protobundle.Bundle) {
				b.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.2"
				b.VerificationMaterial.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
					Certificates: []*protocommon.X509Certificate{b.VerificationMaterial.GetCertificate(), {RawBytes: acme.ca.intermediate.Raw}},
				}}
			}))), refused: "leaf certificate verification failed",
		},
	})
	s.intermediates(t, layout)
}

// intermediates end while what they issued goes on: who signs then is nobody.
func (s *suite) intermediates(t *testing.T, layout Layout) {
	now := time.Now()
	end := now.Add(-10 * time.Minute)
	ended, err := NewAuthorityUntil(end)
	if err != nil {
		t.Fatal(err)
	}
	trustedRoot, err := ended.TrustedRoot()
	if err != nil {
		t.Fatal(err)
	}
	ci := at(&verify.Root{Name: "ended", TrustedRoot: trustedRoot, Log: 1, CertificateLog: true}, s.ci(verify.Match{Exact: goodSubject}))
	signed := func(when time.Time) func(*testing.T, string, Layout) {
		return func(t *testing.T, pinned string, layout Layout) {
			o := SignOptions{Registry: s.Registry, Layout: layout, Identity: goodSubject, Issuer: goodIssuer, IssuedAt: end.Add(-10 * time.Minute), Lifetime: time.Hour, LoggedAt: when}
			if err := ended.Sign(t.Context(), pinned, o); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.try(t, layout, []trial{
		{name: "CVE-2026-24122 signed before the intermediate ended", rule: only(ci), put: signed(end.Add(-time.Minute))},
		{name: "CVE-2026-24122 signed after the intermediate ended", rule: only(ci), put: signed(end.Add(time.Minute)), refused: "certificate"},
	})
	if layout == Legacy {
		return
	}
	company, err := NewCompany(end)
	if err != nil {
		t.Fatal(err)
	}
	builder := verify.Signer{Name: "builder", Identity: &verify.Identity{Subject: verify.Match{Exact: "builder@acme.example"}}, Root: &verify.Root{Name: "acme", Authorities: company.Authorities()}}
	s.try(t, layout, []trial{{
		name: "CVE-2026-24122 an intermediate of one's own that ended", rule: only(builder),
		put: s.signed(SignOptions{Identity: "builder@acme.example", Company: company, NoTlog: true}), refused: "leaf certificate verification failed",
	}})
}

// bounded asks for a signature by signer in its window; zero is open.
func bounded(signer verify.Signer, from, to time.Time) func(*verify.Rule) {
	signer.NotBefore, signer.NotAfter = from, to
	return only(signer)
}

// windows bound the proven time of signatures, of keys and of identities.
func (s *suite) windows(t *testing.T, layout Layout) {
	moment := time.Now().Add(-30 * time.Minute).Truncate(time.Second)
	stampedRoot := s.rootOf(t, RootOptions{Stampers: []string{Main}}, 0, 1)
	within := func(signer verify.Signer, from, to time.Duration) func(*verify.Rule) {
		return bounded(signer, moment.Add(from), moment.Add(to))
	}
	logged := func(o SignOptions) SignOptions { o.LoggedAt = moment; return o }
	stamped := func(o SignOptions) SignOptions {
		o.NoTlog, o.Stamps = true, []Stamp{{At: moment}}
		return o
	}
	byKey, byCI := SignOptions{Key: "release"}, SignOptions{Identity: goodSubject, Issuer: goodIssuer, IssuedAt: moment.Add(-time.Minute)}
	const before, after = "CVE-2026-54787 before ", "CVE-2026-54787 after "
	var trials []trial
	for _, who := range []struct {
		name   string
		signer verify.Signer
		put    func(*testing.T, string, Layout)
	}{
		{"a key's window, by log", s.key(t, "release"), s.signed(logged(byKey))},
		{"a key's window, by timestamp", at(stampedRoot, s.key(t, "release")), s.signed(stamped(byKey))},
		{"an identity's window, by log", s.ci(verify.Match{Exact: goodSubject}), s.signed(logged(byCI))},
		{"an identity's window, by timestamp", at(stampedRoot, s.ci(verify.Match{Exact: goodSubject})), s.signed(stamped(byCI))},
	} {
		const second = time.Second
		trials = append(trials,
			trial{name: "inside " + who.name, rule: within(who.signer, -second, second), put: who.put},
			trial{name: before + who.name, rule: within(who.signer, second, time.Minute), put: who.put, refused: refusedSignature},
			trial{name: before + who.name + ", without an end", rule: bounded(who.signer, moment.Add(second), time.Time{}), put: who.put, refused: refusedSignature},
			trial{name: after + who.name, rule: within(who.signer, -time.Minute, -second), put: who.put, refused: refusedSignature},
			trial{name: after + who.name + ", without a beginning", rule: bounded(who.signer, time.Time{}, moment.Add(-second)), put: who.put, refused: refusedSignature},
			trial{name: "the edges of " + who.name + ": it begins", rule: bounded(who.signer, moment, time.Time{}), put: who.put},
			trial{name: "the edges of " + who.name + ": it has ended", rule: bounded(who.signer, time.Time{}, moment), put: who.put, refused: refusedSignature},
		)
	}
	aged := func(most time.Duration) func(*verify.Rule) {
		return func(r *verify.Rule) {
			only(s.key(t, "release"))(r)
			r.Require[0].MaxAge = most
		}
	}
	trials = append(trials,
		trial{name: "maxAge", rule: aged(time.Hour), put: s.signed(logged(byKey))},
		trial{name: "older than maxAge", rule: aged(20 * time.Minute), put: s.signed(logged(byKey)), refused: "more than 20m0s ago"},
	)
	s.try(t, layout, trials)
}

// keys are of every kind that a signer may have.
func (s *suite) keys(t *testing.T, layout Layout) {
	stamped := s.rootOf(t, RootOptions{Logs: []string{Main}, Stampers: []string{Main}}, 1, 0)
	var trials []trial
	for _, kind := range []string{"rsa2048", "rsa3072", "ed25519", "p384", "p521"} {
		name := "team." + kind
		signer := s.key(t, name)
		trials = append(trials,
			trial{name: "key " + kind, rule: only(unlogged(signer)), put: s.signed(SignOptions{Key: name, NoTlog: true})},
			trial{name: "another key " + kind, rule: only(unlogged(signer)), put: s.signed(SignOptions{Key: "other." + kind, NoTlog: true}), refused: refusedSignature},
		)
		if kind == "p384" || kind == "p521" {
			trials = append(trials, trial{name: "key " + kind + " over SHA-256", rule: only(signer), put: s.signed(SignOptions{Key: name, Hash: crypto.SHA256})})
		}
		if kind != "ed25519" {
			o := SignOptions{Key: name, Tiles: []string{Main}, Stamps: []Stamp{{}}}
			trials = append(trials, trial{name: "key " + kind + " in Rekor v2", layouts: []Layout{Referrers}, rule: only(at(stamped, signer)), put: s.signed(o)})
		}
	}
	s.try(t, layout, trials)
}
