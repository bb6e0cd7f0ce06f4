package notation

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"slices"
	"strings"
	"testing"
)

func TestParseSubject(t *testing.T) {
	t.Parallel()
	acme := subject{{"2.5.4.6", "US"}, {"2.5.4.8", "WA"}, {"2.5.4.10", "acme"}}
	with := func(a ...attribute) subject { return slices.Concat(acme, subject(a)) }
	for text, want := range map[string]subject{
		"C=US, ST=WA, O=acme":                           acme,
		"x509.subject: C=US, ST=WA, O=acme":             acme,
		"  c=US,s=WA , o = acme ":                       acme,
		`C=US, ST=WA, O=acme, CN=a\, b`:                 with(attribute{"2.5.4.3", "a, b"}),
		`C=US, ST=WA, O=acme, CN=\ a\ `:                 with(attribute{"2.5.4.3", " a "}),
		`C=US, ST=WA, O=acme, CN=\#a=b\=\\`:             with(attribute{"2.5.4.3", `#a=b=\`}),
		`C=US, ST=WA, O=acme, CN=Lu\C4\8Di\C4\87`:       with(attribute{"2.5.4.3", "Lučić"}), // RFC 4514, section 4
		`C=US, ST=WA, O=acme, CN=Lučić`:                 with(attribute{"2.5.4.3", "Lučić"}),
		"C=US, ST=WA, O=acme, OU=Security Tools, L=x y": with(attribute{"2.5.4.11", "Security Tools"}, attribute{"2.5.4.7", "x y"}),
		"C=US, ST=WA, O=acme, 1.2.840.113549.1.9.1=a@b": with(attribute{"1.2.840.113549.1.9.1", "a@b"}),
	} {
		got, err := parseSubject(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "*", "C=US", "C=US, ST=WA", "C=US, O=acme", "ST=WA, O=acme", "C=US, ST=WA, O=acme,", "C=US, ST=WA, O=acme, ", ",C=US, ST=WA, O=acme",
		"C=US, ST=WA, O=", "C=US, ST=WA, O= ", "C=US, ST=WA, O=a, O=b", "C=US, ST=WA, S=WA, O=a", "C=US, ST=WA, O=a, XX=b", "C=US, ST=WA, O=a, 1..2=b", "C=US, ST=WA, O=a, .1=b",
		"C=US, ST=WA, O=a+OU=b", "C=US; ST=WA; O=a", `C=US, ST=WA, O="a"`, "C=US, ST=WA, O=<a>", "C=US, ST=WA, O=#0c0161", "C=US, ST=WA, O=a\x00b",
		`C=US, ST=WA, O=a\`, `C=US, ST=WA, O=a\z`, `C=US, ST=WA, O=a\1`, `C=US, ST=WA, O=a\1g`, `C=US, ST=WA, O=\FF`, "C=US, ST=WA, O=\xff", "x509.subject:", "x509.subject: *",
	} {
		if got, err := parseSubject(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	want := subject{{"2.5.4.6", "US"}, {"2.5.4.8", "WA"}, {"2.5.4.10", "acme"}}
	is := func(oid asn1.ObjectIdentifier, v any) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: oid, Value: v}
	}
	c, st, o, cn := asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.ObjectIdentifier{2, 5, 4, 8}, asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.ObjectIdentifier{2, 5, 4, 3}
	for name, x := range map[string]struct {
		name pkix.RDNSequence
		ok   bool
	}{
		"equal":            {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, "acme")}}, true},
		"more":             {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, "acme")}, {is(cn, "x")}, {is(cn, "y")}}, true},
		"several in one":   {pkix.RDNSequence{{is(c, "US"), is(st, "WA"), is(o, "acme")}}, true},
		"empty":            {nil, false},
		"less":             {pkix.RDNSequence{{is(c, "US")}, {is(o, "acme")}}, false},
		"twice":            {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, "acme")}, {is(o, "acme")}}, false},
		"twice, the first": {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, "evil")}, {is(o, "acme")}}, false},
		"no text":          {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, []byte("acme"))}}, false},
		"longer":           {pkix.RDNSequence{{is(c, "US")}, {is(st, "WA")}, {is(o, "acme\x00")}}, false},
	} {
		if got := want.matches(x.name); got != x.ok {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestMediaType is about manifests that can be read in two ways (CVE-2021-41190).
func TestMediaType(t *testing.T) {
	t.Parallel()
	const image, index = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	for raw, want := range map[string]string{
		`{"config":{},"layers":[]}`:                             image,
		`{"manifests":[]}`:                                      index,
		`{"mediaType":"` + image + `","config":{},"layers":[]}`: image,
		`{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}`: "application/vnd.docker.distribution.manifest.v2+json",
		`{"mediaType":"` + index + `","manifests":[]}`:                                                 index,
		`{"mediaType":"` + image + `","manifests":[]}`:                                                 "",
		`{"mediaType":"` + index + `","config":{},"layers":[]}`:                                        "",
		`{"manifests":[],"layers":[]}`:                                                                 "",
		`{"manifests":[],"config":{}}`:                                                                 "",
		`{}`:                                                                                           "",
		`[]`:                                                                                           "",
		`x`:                                                                                            "",
	} {
		if got, err := registry.MediaType([]byte(raw)); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", raw, got, err)
		}
	}
}

func FuzzSubject(f *testing.F) {
	f.Add("x509.subject: C=US, ST=WA, O=acme")
	f.Add(`C=US, ST=WA, O=a\, b, CN=Lu\C4\8Di\C4\87, 1.2.3=x`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseSubject(text)
		if err != nil {
			return
		}
		var name pkix.RDNSequence
		for _, a := range got {
			var oid asn1.ObjectIdentifier
			for part := range strings.SplitSeq(a.oid, ".") {
				n := 0
				for _, r := range part {
					n = n*10 + int(r-'0')
				}
				oid = append(oid, n)
			}
			if oid.String() != a.oid {
				return // a number that does not fit
			}
			name = append(name, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: a.value}})
		}
		if !got.matches(name) {
			t.Errorf("%q does not match itself: %v", text, got)
		}
		name[0][0].Value = got[0].value + "."
		if got.matches(name) {
			t.Errorf("%q matches another", text)
		}
	})
}
