package sigstore

import (
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Artifact is what a bundle from anywhere is to be about.
type Artifact struct {
	Digest  digest.Digest // SHA-256
	Content io.Reader     // nil where only the digest is known
}

// ProveBundle verifies that signer made the bundle, and that it is about a: by a
// signature of it, or by a statement of which it is a subject. A bundle of either
// kind that is not that is fault.Denied, and so is one that does not parse, or a
// signer that nothing could be judged by.
func ProveBundle(signer verify.Signer, bundle []byte, a Artifact) (verify.Statement, error) {
	const op = "verify/sigstore.ProveBundle"
	t, err := newTrust(signer)
	if err != nil {
		return verify.Statement{}, fault.New(fault.Denied, op, "", "%s: %w", signer.Name, err)
	}
	st, err := t.proveAny(bundle, a)
	if err != nil {
		return verify.Statement{}, fault.New(fault.Denied, op, "", "%w", err)
	}
	st.Where, st.Layout = "bundle", LayoutFile
	return st, nil
}

// LayoutFile is a bundle that somebody brought.
const LayoutFile = "file"

func (t trust) proveAny(raw []byte, a Artifact) (st verify.Statement, err error) {
	defer func() {
		if r := recover(); r != nil { // whoever made the bundle chose its bytes
			st, err = verify.Statement{}, fmt.Errorf("malformed: %v", r)
		}
	}()
	b, err := parseBundle(raw)
	if err != nil {
		return verify.Statement{}, err
	}
	if _, err := b.Envelope(); err == nil {
		return t.proveBundle(b, a.Digest)
	}
	about, err := a.policy()
	if err != nil {
		return verify.Statement{}, err
	}
	return t.check(b, about, verify.Statement{Subject: a.Digest, PredicateType: verify.PredicateSignature})
}

func (a Artifact) policy() (sgverify.ArtifactPolicyOption, error) {
	if a.Content != nil {
		return sgverify.WithArtifact(a.Content), nil
	}
	return digestPolicy(a.Digest)
}

// check verifies the bundle and completes st with who made it.
func (t trust) check(b *sgbundle.Bundle, about sgverify.ArtifactPolicyOption, st verify.Statement) (verify.Statement, error) {
	result, err := t.bundle.Verify(b, sgverify.NewPolicy(about, t.policy))
	if err != nil {
		return verify.Statement{}, err
	}
	times, err := t.observed(b, result)
	if err != nil {
		return verify.Statement{}, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return verify.Statement{}, err
	}
	return t.identify(st, content.Certificate(), times)
}

// RootOf returns the strictest demands that a trusted root can meet: a log where
// it has one, else a timestamp. One that cannot be read is fault.Denied.
func RootOf(name string, trustedRoot []byte) (*verify.Root, error) {
	tr, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		return nil, fault.New(fault.Denied, "verify/sigstore.RootOf", "give the trusted_root.json of a Sigstore", "trusted root: %w", err)
	}
	r := &verify.Root{Name: name, TrustedRoot: trustedRoot, CertificateLog: len(tr.CTLogs()) > 0}
	switch {
	case len(tr.RekorLogs()) > 0:
		r.Log = 1
	case len(tr.TimestampingAuthorities()) > 0:
		r.Timestamps = 1
	default:
		return nil, fault.Wrap(fault.Denied, "verify/sigstore.RootOf", "", errors.New("trusted root: it has neither a log nor a timestamp authority"))
	}
	return r, nil
}
