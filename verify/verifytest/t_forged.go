package verifytest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"github.com/holdfast-dev/holdfast/verify"
)

const refusedSignature = "no signature by a trusted identity"

// trial puts something beside an image and says what must come of it.
type trial struct {
	name    string
	layouts []Layout // empty: both
	rule    func(*verify.Rule)
	put     func(t *testing.T, pinned string, layout Layout)
	// refused is what the refusal says; empty is accepted. With bundle and legacy
	// it differs by layout.
	refused, bundle, legacy string
}

func (c trial) want(layout Layout) string {
	switch {
	case layout == Referrers && c.bundle != "":
		return c.bundle
	case layout == Legacy && c.legacy != "":
		return c.legacy
	default:
		return c.refused
	}
}

// try runs those trials that are about the layout.
func (s *suite) try(t *testing.T, layout Layout, trials []trial) {
	t.Helper()
	for _, c := range trials {
		if len(c.layouts) > 0 && !slices.Contains(c.layouts, layout) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t)
			if c.put != nil {
				c.put(t, pinned, layout)
			}
			s.judge(t, s.rule(t, c.rule), tag, c.want(layout))
		})
	}
}

// signed puts a signature.
func (s *suite) signed(o SignOptions) func(*testing.T, string, Layout) {
	return func(t *testing.T, pinned string, layout Layout) { s.sign(t, pinned, layout, o) }
}

// with returns o changed.
func with(o SignOptions, change func(*SignOptions)) SignOptions {
	change(&o)
	return o
}

// stolen signs something with the digest d, and returns the bundle.
func (s *suite) stolen(t *testing.T, d digest.Digest, o SignOptions) *protobundle.Bundle {
	t.Helper()
	b, err := s.a.Bundle(t.Context(), s.Host+"/elsewhere", d, signPredicate, map[string]any{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stolenLayer signs another image and returns the annotations of its layer.
func (s *suite) stolenLayer(t *testing.T, pinned string, o SignOptions) map[string]string {
	t.Helper()
	var got map[string]string
	o.ChangeLayer = func(annotations map[string]string) { got = annotations }
	s.sign(t, pinned, Legacy, o)
	return got
}

// mixed signs by o, and puts a part of another signature, by other, in the place of
// its own: what bundle takes over, or the annotation of the older layout.
func (s *suite) mixed(o, other SignOptions, annotation string, bundle func(mine, theirs *protobundle.Bundle)) func(*testing.T, string, Layout) {
	return func(t *testing.T, pinned string, layout Layout) {
		if layout == Referrers {
			theirs := s.stolen(t, digest.Digest(pinned[strings.LastIndex(pinned, "@")+1:]), other)
			o.Change = func(mine *protobundle.Bundle) { bundle(mine, theirs) }
		} else {
			_, elsewhere, _ := s.push(t)
			theirs := s.stolenLayer(t, elsewhere, other)
			o.ChangeLayer = func(mine map[string]string) { mine[annotation] = theirs[annotation] }
		}
		s.sign(t, pinned, layout, o)
	}
}

func swapEntries(mine, theirs *protobundle.Bundle) {
	mine.VerificationMaterial.TlogEntries = theirs.VerificationMaterial.TlogEntries
}

// forgeries are signatures of which a part is another's: each has a name by which
// it was found elsewhere, and was accepted there.
func (s *suite) forgeries(t *testing.T, layout Layout) {
	byKey, byCI := SignOptions{Key: "release"}, SignOptions{Identity: goodSubject, Issuer: goodIssuer}
	identity := only(s.ci(verify.Match{Exact: goodSubject}))
	tiles := with(byKey, func(o *SignOptions) { o.Tiles, o.Stamps = []string{Main}, []Stamp{{}} })
	tilesCI := with(byCI, func(o *SignOptions) { o.Tiles, o.Stamps = []string{Main}, []Stamp{{}} })
	stamped := s.rootOf(t, RootOptions{Logs: []string{Main}, Stampers: []string{Main}}, 1, 0)
	under := func(root *verify.Root, signer verify.Signer) func(*verify.Rule) {
		signer.Root = root
		return only(signer)
	}
	release, ci := s.key(t, "release"), s.ci(verify.Match{Exact: goodSubject})
	stranger := SignOptions{Key: "other"}
	elsewhere := digest.FromString("elsewhere")

	s.try(t, layout, []trial{
		{name: "Rekor v2", layouts: []Layout{Referrers}, rule: under(stamped, release), put: s.signed(tiles)},
		{name: "Rekor v2 keyless", layouts: []Layout{Referrers}, rule: under(stamped, ci), put: s.signed(tilesCI)},
		{
			name: "CVE-2022-36056 the log entry of another artifact", rule: identity,
			put:    s.signed(with(byCI, func(o *SignOptions) { o.SwapEntry = true })),
			bundle: "transparency log signature does not match", legacy: "does not match",
		},
		{
			name: "CVE-2022-36056 the Rekor v2 entry of another artifact", layouts: []Layout{Referrers}, rule: under(stamped, release),
			put: s.signed(with(tiles, func(o *SignOptions) { o.SwapEntry = true })), refused: "verifying log entry",
		},
		{
			name: "CVE-2022-23649 the log entry of another key about the same artifact", put: s.mixed(byKey, stranger, entryAnnotation, swapEntries),
			bundle: "transparency log signature does not match", legacy: "signature in bundle does not match",
		},
		{
			name:    "CVE-2022-23649 the Rekor v2 entry of another key about the same artifact",
			layouts: []Layout{Referrers}, rule: under(stamped, release),
			put:     s.mixed(tiles, with(tiles, func(o *SignOptions) { o.Key = "other" }), "", swapEntries),
			refused: "verifying log entry",
		},
		{
			name: "CVE-2022-23649 the log entry of an earlier signature of the same key", put: s.mixed(byKey, byKey, entryAnnotation, swapEntries),
			bundle: "transparency log signature does not match", legacy: "signature in bundle does not match",
		},
		{
			name: "CVE-2026-22703 any log entry", rule: identity, put: s.mixed(byCI, stranger, entryAnnotation, swapEntries),
			bundle: "transparency log signature does not match", legacy: "signature in bundle does not match",
		},
		{
			name: "CVE-2026-22703 any Rekor v2 entry", layouts: []Layout{Referrers}, rule: under(stamped, ci),
			put: func(t *testing.T, pinned string, layout Layout) {
				theirs := s.stolen(t, elsewhere, with(tiles, func(o *SignOptions) { o.Key = "other" }))
				s.sign(t, pinned, layout, with(tilesCI, func(o *SignOptions) {
					o.Change = func(mine *protobundle.Bundle) { swapEntries(mine, theirs) }
				}))
			}, refused: "verifying log entry",
		},
		{
			name: "a log entry whose promise is another's", put: s.mixed(byKey, stranger, "", func(mine, theirs *protobundle.Bundle) {
				entry(mine).InclusionPromise = entry(theirs).InclusionPromise
			}), layouts: []Layout{Referrers}, refused: "not enough verified log entries",
		},
		{
			name: "a log entry whose promise is another's, legacy", layouts: []Layout{Legacy},
			put: s.signed(with(byKey, func(o *SignOptions) {
				o.ChangeLayer = func(a map[string]string) {
					a[entryAnnotation] = strings.Replace(a[entryAnnotation], `"logIndex":`, `"logIndex":7`, 1)
				}
			})), refused: "unable to verify SET",
		},
		{
			name: "a log entry whose time was changed", layouts: []Layout{Referrers},
			put:     s.signed(with(byKey, s.change(func(b *protobundle.Bundle) { entry(b).IntegratedTime -= 60 }))),
			refused: "not enough verified log entries",
		},
		{
			name: "a promise without a proof", layouts: []Layout{Referrers},
			put:     s.signed(with(byKey, s.change(func(b *protobundle.Bundle) { entry(b).InclusionProof = nil }))),
			refused: "inclusion proof missing",
		},
		{
			name: "a proof without a promise proves no time", layouts: []Layout{Referrers},
			put:     s.signed(with(byKey, s.change(func(b *protobundle.Bundle) { entry(b).InclusionPromise = nil }))),
			refused: "threshold not met for verified signed & log entry integrated timestamps",
		},
		{
			name: "a checkpoint of another tree", layouts: []Layout{Referrers},
			put: s.mixed(byKey, stranger, "", func(mine, theirs *protobundle.Bundle) {
				entry(mine).InclusionProof.Checkpoint = entry(theirs).InclusionProof.Checkpoint
			}), refused: "failed to verify log inclusion",
		},
		{
			name: "a checkpoint of another tree, Rekor v2", layouts: []Layout{Referrers}, rule: under(stamped, release),
			put: s.mixed(tiles, with(tiles, func(o *SignOptions) { o.Key = "other" }), "", func(mine, theirs *protobundle.Bundle) {
				entry(mine).InclusionProof.Checkpoint = entry(theirs).InclusionProof.Checkpoint
			}), refused: "failed to verify log inclusion",
		},
		{
			name: "a proof of another place in the tree", layouts: []Layout{Referrers},
			put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
				entry(b).InclusionProof.TreeSize, entry(b).InclusionProof.LogIndex = 2, 1
			}))), refused: "failed to verify log inclusion",
		},
		{name: "a log that the root does not have", put: s.signed(with(byKey, func(o *SignOptions) { o.Logs = []string{Stranger} })), bundle: "not enough verified log entries", legacy: "rekor log public key not found"},
		{name: "a Rekor v2 log that the root does not have", layouts: []Layout{Referrers}, rule: under(stamped, release), put: s.signed(with(tiles, func(o *SignOptions) { o.Tiles = []string{Stranger} })), refused: "not enough verified log entries"},
		{name: "Rekor v2 without a timestamp", layouts: []Layout{Referrers}, rule: under(stamped, release), put: s.signed(with(tiles, func(o *SignOptions) { o.Stamps = nil })), refused: "threshold not met"},
		{name: "a certificate without an SCT", rule: identity, put: s.signed(with(byCI, func(o *SignOptions) { o.NoSCT = true })), bundle: "signed certificate timestamp", legacy: "does not include required embedded SCT"},
		{name: "a certificate for something else than signing code", rule: identity, put: s.signed(with(byCI, func(o *SignOptions) { o.Usage = usageTLS })), refused: "leaf certificate verification failed"},
		{
			name: "GHSA-fx35-mq7g-6g98 a key in the place of the certificate", layouts: []Layout{Legacy}, rule: identity,
			put: s.inPlaceOfCertificate(stranger, "other"), refused: refusedSignature,
		},
		{
			name: "GHSA-fx35-mq7g-6g98 a key that comes before the trusted one", layouts: []Layout{Legacy},
			put: s.inPlaceOfCertificate(stranger, "other"), refused: refusedSignature,
		},
		{
			name: "GHSA-fx35-mq7g-6g98 a hint of the trusted key", layouts: []Layout{Referrers},
			put: s.mixed(stranger, byKey, "", func(mine, theirs *protobundle.Bundle) {
				mine.VerificationMaterial.Content = theirs.VerificationMaterial.Content
			}), refused: refusedSignature,
		},
		{
			name: "a hint of another key decides nothing", layouts: []Layout{Referrers},
			put: s.mixed(byKey, stranger, "", func(mine, theirs *protobundle.Bundle) {
				mine.VerificationMaterial.Content = theirs.VerificationMaterial.Content
			}),
		},
		{
			name: "another's certificate", rule: identity,
			put: s.mixed(with(byCI, func(o *SignOptions) { o.Identity = "mallory@example.org" }), byCI, certificateAnnotation, func(mine, theirs *protobundle.Bundle) {
				mine.VerificationMaterial.Content = theirs.VerificationMaterial.Content
			}), bundle: "transparency log certificate does not match", legacy: "comparing public key PEMs",
		},
		{
			name: "two certificates, the trusted one first", rule: identity, put: s.twoCertificates(true),
			bundle: "transparency log certificate does not match", legacy: refusedSignature,
		},
		{
			name: "two certificates, the trusted one last", rule: identity, put: s.twoCertificates(false),
			bundle: `failed to verify certificate identity`, legacy: refusedSignature,
		},
		{
			name: "a certificate around the trusted key", layouts: []Layout{Legacy},
			put: s.certificateAroundKey(), refused: "expected a signature by a key, not by a certificate",
		},
		{
			name: "two signatures in one bundle", layouts: []Layout{Referrers},
			put: s.mixed(byKey, stranger, "", func(mine, theirs *protobundle.Bundle) {
				env := mine.GetDsseEnvelope()
				env.Signatures = append(env.Signatures, theirs.GetDsseEnvelope().Signatures[0])
			}), refused: "signature",
		},
		{
			name: "a message signature is none of an image", layouts: []Layout{Referrers},
			put: func(t *testing.T, pinned string, layout Layout) {
				sum := digest.Digest(pinned[strings.LastIndex(pinned, "@")+1:])
				s.sign(t, pinned, layout, with(byKey, s.change(func(b *protobundle.Bundle) {
					raw, err := hexBytes(sum)
					if err != nil {
						t.Error(err)
					}
					b.Content = &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
						MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: raw},
						Signature:     b.GetDsseEnvelope().Signatures[0].Sig,
					}}
				})))
			}, refused: "not a signed statement",
		},
		{name: "another payload type", layouts: []Layout{Referrers}, put: s.signed(with(byKey, func(o *SignOptions) { o.PayloadType = "text/plain" })), refused: `payload type "text/plain"`},
		{
			name: "a media type of tomorrow", layouts: []Layout{Referrers},
			put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
				b.MediaType = "application/vnd.dev.sigstore.bundle.v0.4+json"
			}))), refused: refusedSignature,
		},
		{
			name: "version 0.1 has a promise and no proof", layouts: []Layout{Referrers},
			put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
				b.MediaType, entry(b).InclusionProof = "application/vnd.dev.sigstore.bundle+json;version=0.1", nil
			}))),
		},
		{
			name: "version 0.1 without a promise", layouts: []Layout{Referrers},
			put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
				b.MediaType, entry(b).InclusionPromise = "application/vnd.dev.sigstore.bundle+json;version=0.1", nil
			}))), refused: "inclusion promises missing",
		},
		{name: "CVE-2026-44310 a panic is a refusal", rule: under(stamped, release), put: func(t *testing.T, pinned string, layout Layout) {
			for _, broken := range s.broken(layout) {
				s.sign(t, pinned, layout, with(byKey, broken))
			}
		}, refused: refusedSignature},
		{name: "CVE-2024-51746 an entry that was logged for another certificate", rule: identity, put: s.mixed(byCI, byCI, entryAnnotation, swapEntries), bundle: "transparency log signature does not match", legacy: "signature in bundle does not match"},
		{name: "CVE-2025-25204 nothing at all", refused: refusedSignature},
		{name: "CVE-2025-25204 a bundle without a signature", layouts: []Layout{Referrers}, put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
			b.GetDsseEnvelope().Signatures = []*protodsse.Signature{}
		}))), refused: refusedSignature},
		{name: "CVE-2024-45395 more log entries than can be looked at", layouts: []Layout{Referrers}, put: s.signed(with(byKey, s.change(func(b *protobundle.Bundle) {
			for len(b.VerificationMaterial.TlogEntries) <= 32 {
				b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, entry(b))
			}
		}))), refused: "too many"},
		{name: "a clock that is ahead", put: s.signed(with(byKey, func(o *SignOptions) { o.LoggedAt = time.Now().Add(time.Hour) })), refused: "in the future"},
		{name: "a clock that is a little ahead", put: s.signed(with(byKey, func(o *SignOptions) { o.LoggedAt = time.Now().Add(30 * time.Second) }))},
	})
}

// change makes Change of options.
func (s *suite) change(by func(*protobundle.Bundle)) func(*SignOptions) {
	return func(o *SignOptions) { o.Change = by }
}

// entry is the only log entry of a bundle.
func entry(b *protobundle.Bundle) *protorekor.TransparencyLogEntry {
	return b.VerificationMaterial.TlogEntries[0]
}

// inPlaceOfCertificate signs by o, with a public key where a certificate belongs.
func (s *suite) inPlaceOfCertificate(o SignOptions, key string) func(*testing.T, string, Layout) {
	return func(t *testing.T, pinned string, layout Layout) {
		pem, err := s.a.Key(key)
		if err != nil {
			t.Fatal(err)
		}
		o.ChangeLayer = func(a map[string]string) { a[certificateAnnotation] = string(pem) }
		s.sign(t, pinned, layout, o)
	}
}

// twoCertificates has mallory sign, and puts the certificate of somebody trusted
// before or behind hers.
func (s *suite) twoCertificates(trustedFirst bool) func(*testing.T, string, Layout) {
	trusted := SignOptions{Identity: goodSubject, Issuer: goodIssuer}
	mallory := SignOptions{Identity: "mallory@example.org", Issuer: goodIssuer}
	return func(t *testing.T, pinned string, layout Layout) {
		if layout == Legacy {
			_, elsewhere, _ := s.push(t)
			theirs := s.stolenLayer(t, elsewhere, trusted)[certificateAnnotation]
			mallory.ChangeLayer = func(a map[string]string) {
				if trustedFirst {
					a[certificateAnnotation] = theirs + a[certificateAnnotation]
				} else {
					a[certificateAnnotation] += theirs
				}
			}
			s.sign(t, pinned, layout, mallory)
			return
		}
		theirs := s.stolen(t, digest.FromString("elsewhere"), trusted).VerificationMaterial.GetCertificate()
		mallory.Change = func(b *protobundle.Bundle) {
			chain := []*protocommon.X509Certificate{b.VerificationMaterial.GetCertificate(), theirs}
			if trustedFirst {
				slices.Reverse(chain)
			}
			b.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.2"
			b.VerificationMaterial.Content = &protobundle.VerificationMaterial_X509CertificateChain{
				X509CertificateChain: &protocommon.X509CertificateChain{Certificates: chain},
			}
		}
		s.sign(t, pinned, layout, mallory)
	}
}

// certificateAroundKey signs with the trusted key, and has the log record a
// certificate for it, so that whoever looks for the key in the log finds nothing.
func (s *suite) certificateAroundKey() func(*testing.T, string, Layout) {
	return func(t *testing.T, pinned string, layout Layout) {
		s.sign(t, pinned, layout, SignOptions{Identity: "mallory@example.org", Issuer: goodIssuer, With: "release"})
	}
}

// broken are ways to break what parsers look at.
func (s *suite) broken(layout Layout) (out []func(*SignOptions)) {
	if layout == Legacy {
		for _, text := range []string{
			`{"Payload":{"body":1}}`, `{"Payload":{"body":"!"}}`, `{}`, `null`, `[]`, `{"Payload":{"body":""}}`, `{"Payload":{"body":"bnVsbA=="}}`,
			`{"Payload":{"body":"eyJraW5kIjoiZHNzZSIsImFwaVZlcnNpb24iOiIwLjAuMSIsInNwZWMiOnt9fQ=="}}`, // {"kind":"dsse","apiVersion":"0.0.1","spec":{}}
			`{"Payload":{"body":"eyJraW5kIjoiaW50b3RvIiwiYXBpVmVyc2lvbiI6IjAuMC4yIiwic3BlYyI6e319"}}`, // {"kind":"intoto","apiVersion":"0.0.2","spec":{}}
		} {
			out = append(out, func(o *SignOptions) {
				o.ChangeLayer = func(a map[string]string) { a[entryAnnotation] = text }
			})
		}
		return append(out, func(o *SignOptions) {
			o.ChangeLayer = func(a map[string]string) { a[stampAnnotation] = `{"SignedRFC3161Timestamp":"AAAA"}` }
		}, func(o *SignOptions) {
			o.ChangeLayer = func(a map[string]string) {
				a[certificateAnnotation] = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
			}
		})
	}
	for _, change := range []func(*protobundle.Bundle){
		func(b *protobundle.Bundle) { entry(b).KindVersion = nil },
		func(b *protobundle.Bundle) { entry(b).LogId = nil },
		func(b *protobundle.Bundle) { entry(b).CanonicalizedBody = nil },
		func(b *protobundle.Bundle) { entry(b).CanonicalizedBody = []byte("null") },
		func(b *protobundle.Bundle) {
			entry(b).CanonicalizedBody = []byte(`{"kind":"dsse","apiVersion":"0.0.1","spec":{}}`)
		},
		func(b *protobundle.Bundle) {
			entry(b).CanonicalizedBody = []byte(`{"kind":"intoto","apiVersion":"0.0.2","spec":{"content":{"envelope":{}}}}`)
		},
		func(b *protobundle.Bundle) {
			entry(b).CanonicalizedBody = []byte(`{"kind":"hashedrekord","apiVersion":"0.0.2","spec":{}}`)
		},
		func(b *protobundle.Bundle) { entry(b).InclusionProof.Checkpoint = nil },
		func(b *protobundle.Bundle) { entry(b).InclusionProof.RootHash = nil },
		func(b *protobundle.Bundle) { b.VerificationMaterial = nil },
		func(b *protobundle.Bundle) { b.VerificationMaterial.Content = nil },
		func(b *protobundle.Bundle) { b.GetDsseEnvelope().Signatures = nil },
		func(b *protobundle.Bundle) { b.GetDsseEnvelope().Payload = nil },
		func(b *protobundle.Bundle) { b.Content = nil },
		func(b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = &protobundle.TimestampVerificationData{
				Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{}, {SignedTimestamp: []byte{0x30}}},
			}
			entry(b).InclusionPromise = nil
		},
	} {
		out = append(out, s.change(change))
	}
	return out
}
