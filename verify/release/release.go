// Package release owns the judgement of release attestations: that the artifact
// is part of a release of a package, by the word of who publishes it.
//
// It guarantees that the package URL names one version, and that of the package
// that the rule asks for. It refuses one that does not parse, and one that pins
// the digest of something else.
// https://github.com/in-toto/attestation/blob/main/spec/predicates/release.md
package release

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// The predicate types of releases. v0.2 renamed releaseId to packageId.
const (
	PredicateV01 = "https://in-toto.io/attestation/release/v0.1"
	PredicateV02 = "https://in-toto.io/attestation/release/v0.2"
)

// Judge judges releases. It implements [verify.Judge].
type Judge struct {
	want *purl // nil: any package
}

// New returns the Judge of a requirement for a release.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.Release == nil {
		return nil, verify.ErrNotApplicable
	}
	if q.Release.Package == "" {
		return Judge{}, nil
	}
	p, err := parse(q.Release.Package)
	if err != nil {
		return nil, fmt.Errorf("release: package: %w", err)
	}
	return Judge{&p}, nil
}

// Reads implements [verify.Judge].
func (Judge) Reads(predicateType string) bool {
	return predicateType == PredicateV01 || predicateType == PredicateV02
}

// Judge implements [verify.Judge]. The facts are {purl, package, version,
// packageId, files}.
func (j Judge) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	var r struct {
		PURL      string `json:"purl"`
		PackageID string `json:"packageId"`
		ReleaseID string `json:"releaseId"`
	}
	if err := intoto.Decode(st.Predicate, &r); err != nil {
		return verify.Finding{}, fmt.Errorf("the release is not usable: %w", err)
	}
	p, err := parse(r.PURL)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the release is not usable: %w", err)
	}
	if p.version == "" { // "It MUST include a purl version"
		return verify.Finding{}, fmt.Errorf("the release is not usable: %q names no version", intoto.Short(r.PURL))
	}
	if j.want != nil && !j.want.contains(p) {
		return verify.Finding{}, fmt.Errorf("package: found %q, expected %s", intoto.Short(r.PURL), j.want)
	}
	if d := digest.Digest(p.version); p.kind == "oci" && d.Validate() == nil && !about(st, d) {
		return verify.Finding{}, fmt.Errorf("package: %q is another artifact", intoto.Short(r.PURL))
	}
	id := r.PackageID
	if st.PredicateType == PredicateV01 {
		id = r.ReleaseID
	}
	return verify.Finding{
		Text: intoto.Short(r.PURL),
		Facts: map[string]any{
			"purl": intoto.Short(r.PURL), "package": intoto.Short(p.String()), "version": intoto.Short(p.version),
			"packageId": intoto.Short(id), "files": len(st.Subjects),
		},
	}, nil
}

// about reports whether the statement has a subject of the digest.
func about(st verify.Statement, d digest.Digest) bool {
	return st.Subject == d || slices.ContainsFunc(st.Subjects, func(s verify.StatementSubject) bool {
		return s.Digest[d.Algorithm().String()] == d.Encoded()
	})
}

// purl is a package URL.
// https://github.com/package-url/purl-spec/blob/main/PURL-SPECIFICATION.rst
type purl struct {
	kind, path, version string // path is namespace and name
	qualifiers          map[string]string
}

// parse reads a package URL. One with a subpath is refused: it is a part of a
// package.
func parse(text string) (purl, error) {
	bad := func(why string) (purl, error) {
		return purl{}, fmt.Errorf("%q is not the URL of a package: %s", intoto.Short(text), why)
	}
	rest, ok := strings.CutPrefix(text, "pkg:")
	if !ok {
		return bad("it does not begin with pkg:")
	}
	if strings.Contains(rest, "#") {
		return bad("it has a subpath")
	}
	rest, query, _ := strings.Cut(strings.TrimLeft(rest, "/"), "?")
	kind, path, _ := strings.Cut(rest, "/")
	p := purl{kind: strings.ToLower(kind), qualifiers: map[string]string{}}
	version := ""
	if i := strings.LastIndex(path, "@"); i > 0 && path[i-1] != '/' { // not a scope of npm
		path, version = path[:i], path[i+1:]
	}
	var err error
	if p.path, err = url.PathUnescape(strings.Trim(path, "/")); err != nil || p.path == "" || p.kind == "" {
		return bad("it names no package")
	}
	if p.version, err = url.PathUnescape(version); err != nil {
		return bad("its version is not encoded")
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, raw, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(raw)
		if err != nil {
			return bad("a qualifier is not encoded")
		}
		if _, twice := p.qualifiers[strings.ToLower(name)]; twice {
			return bad("a qualifier is there twice")
		}
		p.qualifiers[strings.ToLower(name)] = value
	}
	return p, nil
}

// contains reports whether q is a version of the package p: of the same type and
// name, with at least the qualifiers that p has.
func (p purl) contains(q purl) bool {
	if p.kind != q.kind || p.path != q.path {
		return false
	}
	for name, value := range p.qualifiers {
		if q.qualifiers[name] != value {
			return false
		}
	}
	return true
}

// String returns the package without its version, for people.
func (p purl) String() string {
	text := "pkg:" + p.kind + "/" + p.path
	sep := "?"
	for _, name := range slices.Sorted(maps.Keys(p.qualifiers)) {
		text += sep + name + "=" + p.qualifiers[name]
		sep = "&"
	}
	return text
}
