package provenance

import (
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// agree checks that the certificate of the signature and the provenance say the
// same, and completes from the certificate what the provenance leaves out. One
// that names no OIDC issuer is of an authority of one's own and says nothing of a
// build.
func (r *reasons) agree(name string, t buildType, cert verify.Certificate, b *build, c *claims) {
	if cert.Issuer == "" {
		return
	}
	must := profiles[name].extended
	for _, x := range []struct {
		what     string
		found    *string
		cert     string
		required bool
	}{
		{"source repository", &c.repository, normalRepository(cert.SourceRepository), must},
		{"commit", &c.commit, cert.SourceDigest, must},
		{"ref", &c.ref, cert.SourceRef, must},
		{"trigger", &c.trigger, cert.Trigger, false},
		{"source repository's number", &c.repositoryID, cert.SourceRepositoryID, false},
		{"source repository owner's number", &c.ownerID, cert.SourceOwnerID, false},
		{"runner", &c.runner, cert.Runner, false},
		{"run", &c.run, cert.Run, false},
	} {
		switch {
		case x.cert == "" && x.required:
			r.add("%s: the certificate does not say it", x.what)
		case *x.found == "":
			*x.found = x.cert
		case x.cert != "" && *x.found != x.cert:
			r.add("%s: the provenance says %q, the certificate %q", x.what, intoto.Short(*x.found), intoto.Short(x.cert))
		}
	}
	if t.signed == nil {
		return
	}
	if why := t.signed(cert, b); why != "" {
		r.add("build signer: %s", why)
	}
}
