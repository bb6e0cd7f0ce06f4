package config

import (
	"regexp"
	"strings"
)

var (
	ociName   = regexp.MustCompile(`^oci://[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$`)
	ociDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Repository returns the host and the path of the reference.
func (o *OCI) Repository() string { return strings.TrimPrefix(o.Reference, "oci://") }

// Artifact returns the host and the path of the bundle, and its digest.
func (p *Policy) Artifact() (repository, digest string) {
	repository, digest, _ = strings.Cut(strings.TrimPrefix(p.OCI, "oci://"), "@")
	return repository, digest
}

// artifact checks a repository that is an OCI artifact.
func (c checker) artifact(at string, r *Repository) {
	if !ociName.MatchString(r.OCI.Reference) {
		c.wrong(at+".oci.reference", "write oci://host/path without a tag, for example oci://ghcr.io/acme/desired-state", "%q is not a repository in a registry", r.OCI.Reference)
	}
	if (r.OCI.Tag == "") == (r.OCI.Semver == "") {
		c.wrong(at+".oci", "write tag: production, or semver: \">=1.0.0 <2.0.0\"", "oci needs either tag or semver")
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"url", r.URL != ""}, {"branch", r.Branch != ""}, {"tag", r.Tag != ""}, {"anchor", r.Anchor != ""}, {"auth", r.Auth != nil}, {"webhook", r.Webhook != nil},
		{"commits", len(r.Commits.Signers)+len(r.Commits.Rules) > 0},
	} {
		if f.set {
			c.wrong(at+"."+f.name, "take it out; a registry's credentials are under registries:, and who must sign is under trust:", "%s is for Git repositories, and this is an OCI artifact", f.name)
		}
	}
}
