package verifytest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

// statements are signed by whom they should be, and say what they should not.
func (s *suite) statements(t *testing.T, layout Layout) {
	other := digest.FromString("another image")
	noSBOM := "no SBOM attestation by a trusted identity"
	raw := func(typ, predicateType, subject, predicate string) []byte {
		return fmt.Appendf(nil, `{"_type":%q,"predicateType":%q,"subject":%s,"predicate":%s}`, typ, predicateType, subject, predicate)
	}
	about := func(names ...string) string {
		var list []map[string]any
		for i, sum := range names {
			list = append(list, map[string]any{"name": fmt.Sprint("artifact-", i), "digest": map[string]string{"sha256": sum}})
		}
		b, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	spdx, err := json.Marshal(SPDX("shop"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(spdx)
	attested := func(payload func(sum string) []byte, change ...func(*SignOptions)) func(*testing.T, string, Layout) {
		return func(t *testing.T, pinned string, layout Layout) {
			s.sign(t, pinned, layout, SignOptions{Key: "release"})
			o := SignOptions{RawPayload: payload(pinned[strings.LastIndex(pinned, ":")+1:])}
			for _, c := range change {
				c(&o)
			}
			s.attest(t, pinned, layout, spdxType, nil, o)
		}
	}
	many := make([]string, 1025)
	for i := range many {
		many[i] = digest.FromString(fmt.Sprint(i)).Encoded()
	}
	trials := []trial{
		{name: "a statement", put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(sum), good) })},
		{name: "one subject among many", put: attested(func(sum string) []byte {
			return raw(statementV1, spdxType, about(other.Encoded(), sum, digest.FromString("third").Encoded()), good)
		})},
		{name: "no subject among many is this one", put: attested(func(string) []byte { return raw(statementV1, spdxType, about(other.Encoded(), other.Encoded()), good) }), bundle: "not match", legacy: "no matching subject digest found"},
		{name: "no subject", put: attested(func(string) []byte { return raw(statementV1, spdxType, "[]", good) }), bundle: "not match", legacy: "no matching subject digest found"},
		{name: "more subjects than one looks at", layouts: []Layout{Referrers}, put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(append(many, sum)...), good) }), refused: "too many subjects"},
		{name: "the digest under another algorithm", put: attested(func(sum string) []byte {
			return raw(statementV1, spdxType, `[{"name":"x","digest":{"sha512":"`+sum+`"}}]`, good)
		}), bundle: "not match", legacy: "no matching subject digest found"},
		{name: "the digest in capitals", put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(strings.ToUpper(sum)), good) }), bundle: "is not about", legacy: "no matching subject digest found"},
		{name: "the digest and more", put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(sum+"00"), good) }), bundle: "not match", legacy: "no matching subject digest found"},
		{name: "CVE-2022-35929 another predicate type", put: attested(func(sum string) []byte { return raw(statementV1, provenanceType, about(sum), good) }), refused: noSBOM},
		{name: "CVE-2022-35929 a predicate type with more behind it", put: attested(func(sum string) []byte { return raw(statementV1, spdxType+"/v2.3/evil", about(sum), good) }), refused: noSBOM},
		{name: "CVE-2022-35930 no predicate type", put: attested(func(sum string) []byte { return raw(statementV1, "", about(sum), good) }), refused: "without a predicate type"},
		{name: "CVE-2022-35930 another type of statement", put: attested(func(sum string) []byte { return raw("https://in-toto.io/Statement/v2", spdxType, about(sum), good) }), refused: "statement of type"},
		{name: "CVE-2026-39395 a payload that does not parse", put: attested(func(sum string) []byte { b := raw(statementV1, spdxType, about(sum), good); return b[:len(b)-1] }), refused: noSBOM},
		{name: "CVE-2026-39395 a payload that is null", put: attested(func(string) []byte { return []byte("null") }), refused: noSBOM},
		{name: "CVE-2026-39395 a predicate that is null", put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(sum), "null") }), refused: noSBOM},
		{name: "CVE-2026-39395 an empty payload", put: attested(func(string) []byte { return []byte{} }), refused: noSBOM},
		{name: "CVE-2026-39395 a payload of another type", put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(sum), good) }, func(o *SignOptions) { o.PayloadType = "application/json" }), refused: noSBOM},
		{name: "a name twice", put: attested(func(sum string) []byte {
			return []byte(`{"_type":"` + statementV1 + `","predicateType":"` + provenanceType + `","predicateType":"` + spdxType + `","subject":` + about(sum) + `,"predicate":` + good + `}`)
		}), bundle: noSBOM, legacy: "twice"},
		{name: "a name in other letters", put: attested(func(sum string) []byte {
			return []byte(`{"_type":"` + statementV1 + `","PredicateType":"` + spdxType + `","subject":` + about(sum) + `,"predicate":` + good + `}`)
		}), refused: noSBOM},
		{name: "a nesting bomb", put: attested(func(sum string) []byte {
			return raw(statementV1, spdxType, about(sum), strings.Repeat(`{"a":`, 5000)+"1"+strings.Repeat("}", 5000))
		}), refused: "nested deeper"},
		{name: "two signatures in one envelope", layouts: []Layout{Legacy}, rule: func(r *verify.Rule) {
			only(unlogged(r.Signers[0]))(r)
			withSBOM()(r)
		}, put: attested(func(sum string) []byte { return raw(statementV1, spdxType, about(sum), good) }, func(o *SignOptions) { o.NoTlog, o.CoSigner = true, "other" }), refused: "2 signatures in one envelope"},
		{name: "a signature in the place of an attestation", put: attested(func(sum string) []byte { return raw(statementV1, signPredicate, about(sum), "{}") }), refused: noSBOM},
	}
	for i := range trials {
		if trials[i].rule == nil {
			trials[i].rule = withSBOM()
		}
	}
	trials = append(trials, trial{
		name: "an attestation that says it is a signature", layouts: []Layout{Legacy},
		put: func(t *testing.T, pinned string, layout Layout) {
			s.attest(t, pinned, layout, signPredicate, map[string]any{}, SignOptions{})
		}, refused: "a signature statement in the place of an attestation",
	})
	for what, payload := range map[string]string{
		"of another type": `{"critical":{"identity":{},"image":{"docker-manifest-digest":%q},"type":"atomic container signature"}}`,
		"of two digests":  `{"critical":{"image":{"docker-manifest-digest":"x"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"}}`,
		"of no type":      `{"critical":{"image":{"docker-manifest-digest":%q}}}`,
	} {
		trials = append(trials, trial{
			name: "a signature payload " + what, layouts: []Layout{Legacy},
			put: func(t *testing.T, pinned string, layout Layout) {
				s.sign(t, pinned, layout, SignOptions{Key: "release", RawPayload: fmt.Appendf(nil, payload, pinned[strings.LastIndex(pinned, "@")+1:])})
			}, refused: "signature payload",
		})
	}
	s.try(t, layout, trials)
	s.indexes(t, layout)
}

// indexes have evidence on themselves or on their platforms.
func (s *suite) indexes(t *testing.T, layout Layout) {
	children := func(t *testing.T, pinned string) []string {
		t.Helper()
		c, err := platformsOf(t.Context(), pinned, s.Registry)
		if err != nil || len(c) != 2 {
			t.Fatalf("%v, %v", c, err)
		}
		return c
	}
	for _, c := range []struct {
		name    string
		put     func(t *testing.T, pinned string)
		sbom    bool
		refused string
	}{
		{name: "an index of which one platform is signed", put: func(t *testing.T, p string) { s.sign(t, children(t, p)[0], layout, SignOptions{Key: "release"}) }, refused: refusedSignature},
		{name: "an index of which each platform is signed", put: func(t *testing.T, p string) {
			for _, c := range children(t, p) {
				s.sign(t, c, layout, SignOptions{Key: "release"})
			}
		}, refused: refusedSignature},
		{name: "an index with the signature of a platform", put: func(t *testing.T, p string) {
			s.sign(t, p, layout, SignOptions{Key: "release", Claim: digest.Digest(children(t, p)[0][strings.LastIndex(children(t, p)[0], "@")+1:])})
		}, refused: refusedSignature},
		{name: "an index with the SBOM of a platform", sbom: true, put: func(t *testing.T, p string) {
			s.sign(t, p, layout, SignOptions{Key: "release"})
			s.attest(t, p, layout, spdxType, SPDX("x"), SignOptions{Claim: digest.Digest(children(t, p)[0][strings.LastIndex(children(t, p)[0], "@")+1:])})
		}, refused: "no SBOM attestation"},
		{name: "an index with an SBOM", sbom: true, put: func(t *testing.T, p string) {
			s.sign(t, p, layout, SignOptions{Key: "release"})
			s.attest(t, p, layout, spdxType, SPDX("x"), SignOptions{})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tag, pinned, _ := s.push(t, "linux/amd64", "linux/arm64")
			c.put(t, pinned)
			var change func(*verify.Rule)
			if c.sbom {
				change = withSBOM()
			}
			s.judge(t, s.rule(t, change), tag, c.refused)
		})
	}
}
