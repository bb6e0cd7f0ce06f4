package release

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

var subject = digest.FromString("shop")

func judge(t testing.TB, pack string) verify.Judge {
	t.Helper()
	j, err := New(verify.Requirement{Release: &verify.ReleaseRequirement{Package: pack}})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func statement(typ, predicate string) verify.Statement {
	return verify.Statement{
		Subject: subject, PredicateType: typ, Predicate: []byte(predicate),
		Subjects: []verify.StatementSubject{{Name: "shop", Digest: map[string]string{"sha256": subject.Encoded()}}},
	}
}

// github is what GitHub attests of an immutable release.
const github = `{"purl":"pkg:github/acme/shop@v1.2.3","databaseId":"1","ownerId":"2","packageId":"3","repository":"acme/shop","repositoryId":"3","tag":"v1.2.3"}`

func TestJudge(t *testing.T) {
	t.Parallel()
	oci := fmt.Sprintf(`{"purl":"pkg:oci/shop@sha256%%3A%s?repository_url=ghcr.io/acme/shop&tag=v1.2.3"}`, subject.Encoded())
	for name, c := range map[string]struct{ typ, predicate, pack, want string }{
		"GitHub's":                        {PredicateV02, github, "pkg:github/acme/shop", ""},
		"any package":                     {PredicateV02, github, "", ""},
		"image":                           {PredicateV01, oci, "pkg:oci/shop?repository_url=ghcr.io/acme/shop", ""},
		"npm scope":                       {PredicateV01, `{"purl":"pkg:npm/%40angular/http@7.2.16","releaseId":"1"}`, "pkg:npm/@angular/http", ""},
		"npm scope, not encoded":          {PredicateV01, `{"purl":"pkg:npm/@angular/http@7.2.16"}`, "pkg:npm/%40angular/http", ""},
		"package is another":              {PredicateV02, github, "pkg:github/acme/shop-evil", "package: found"},
		"package is of another type":      {PredicateV02, github, "pkg:golang/acme/shop", "package: found"},
		"package is at another registry":  {PredicateV01, oci, "pkg:oci/shop?repository_url=ghcr.io/evil/shop", "package: found"},
		"package names no registry":       {PredicateV01, strings.ReplaceAll(oci, "repository_url", "x"), "pkg:oci/shop?repository_url=ghcr.io/acme/shop", "package: found"},
		"package is missing":              {PredicateV02, `{}`, "", "does not begin with pkg:"},
		"package is a URL":                {PredicateV02, `{"purl":"https://github.com/acme/shop@v1"}`, "", "does not begin with pkg:"},
		"package has no name":             {PredicateV02, `{"purl":"pkg:github/@v1"}`, "", "names no"},
		"package is a part of one":        {PredicateV02, `{"purl":"pkg:github/acme/shop@v1#cmd"}`, "", "subpath"},
		"package has a qualifier twice":   {PredicateV02, `{"purl":"pkg:oci/shop@v1?a=1&A=2"}`, "", "qualifier is there twice"},
		"package is not encoded":          {PredicateV02, `{"purl":"pkg:oci/shop@%zz"}`, "", "not encoded"},
		"version is missing":              {PredicateV02, `{"purl":"pkg:github/acme/shop"}`, "", "names no version"},
		"version is another artifact":     {PredicateV01, strings.ReplaceAll(oci, subject.Encoded(), digest.FromString("evil").Encoded()), "", "is another artifact"},
		"version of an npm scope is none": {PredicateV01, `{"purl":"pkg:npm/@angular"}`, "", "names no version"},
		"name is there twice":             {PredicateV02, `{"purl":"pkg:a/b@1","purl":"pkg:a/c@1"}`, "", "there twice"},
	} {
		f, err := judge(t, c.pack).Judge(statement(c.typ, c.predicate), time.Time{})
		if c.want == "" && (err != nil || f.Facts["version"] == "") {
			t.Errorf("%s: %v, %v", name, f.Facts, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestPackageID: v0.2 renamed the field.
func TestPackageID(t *testing.T) {
	t.Parallel()
	both := `{"purl":"pkg:a/b@1","releaseId":"old","packageId":"new"}`
	for typ, want := range map[string]string{PredicateV01: "old", PredicateV02: "new"} {
		f, err := judge(t, "").Judge(statement(typ, both), time.Time{})
		if err != nil || f.Facts["packageId"] != want {
			t.Errorf("%s: %v, %v", typ, f.Facts, err)
		}
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	j := judge(t, "")
	if !j.Reads(PredicateV01) || !j.Reads(PredicateV02) || j.Reads("https://in-toto.io/attestation/release") || j.Reads(PredicateV02+"0") {
		t.Error("another type is read")
	}
	if _, err := New(verify.Requirement{}); !errors.Is(err, verify.ErrNotApplicable) {
		t.Errorf("another requirement: %v", err)
	}
	if _, err := New(verify.Requirement{Release: &verify.ReleaseRequirement{Package: "acme/shop"}}); err == nil {
		t.Error("a package that is none is accepted")
	}
}

// FuzzJudge: no bytes make it panic, and what is accepted is the package.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(github))
	f.Add([]byte(`{"purl":"pkg:npm/%40angular/http@7.2.16?a=b&c"}`))
	j := judge(f, "pkg:github/acme/shop")
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := j.Judge(statement(PredicateV02, string(b)), time.Time{})
		if err == nil && (!strings.HasPrefix(fmt.Sprint(found.Facts["package"]), "pkg:github/acme/shop") || found.Facts["version"] == "") {
			t.Errorf("accepted %q: %v", b, found.Facts)
		}
	})
}
