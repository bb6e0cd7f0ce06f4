package main

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
)

// bundleFlags are called as cosign calls them.
type bundleFlags struct {
	bundle, trustedRoot, identity, issuer, key, predicate, output string
	ignoreTlog                                                    bool
}

func newVerifyBundle() *cobra.Command {
	var f bundleFlags
	c := &cobra.Command{
		Use: "bundle --bundle FILE (--certificate-identity ID --certificate-oidc-issuer URL | --key FILE) ARTIFACT|sha256:HEX", Args: cobra.ExactArgs(1),
		Short: "Check a Sigstore bundle from anywhere",
		Long:  "Check, offline, that a Sigstore bundle was made by one identity or key, and that it\nis about an artifact: a file, or its digest. Without --trusted-root it is judged by\nthe public Sigstore, as known when this program was built. Exit code 0: it is\nverified; 3: it is refused, also where it cannot be read as a bundle.",
		RunE:  func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	c.Flags().StringVar(&f.bundle, "bundle", "", "the bundle")
	c.Flags().StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json to judge it by")
	c.Flags().StringVar(&f.identity, "certificate-identity", "", "exact subject alternative name of the certificate")
	c.Flags().StringVar(&f.issuer, "certificate-oidc-issuer", "", "exact OIDC issuer of the certificate")
	c.Flags().StringVar(&f.key, "key", "", "public key in PEM, instead of an identity")
	c.Flags().StringVar(&f.predicate, "type", "", "exact predicate type that the statement must have")
	c.Flags().BoolVar(&f.ignoreTlog, "insecure-ignore-tlog", false, "accept a signature by --key without a log entry or timestamp: nothing proves when it was made")
	reportFlag(c, &f.output)
	return c
}

func (f *bundleFlags) run(cmd *cobra.Command, artifact string) error {
	if err := f.check(); err != nil {
		return err
	}
	signer, err := f.signer()
	if err != nil {
		return err
	}
	raw, err := readBundle(f.bundle)
	if err != nil {
		return err
	}
	about, done, err := openArtifact(artifact)
	if err != nil {
		return err
	}
	defer done()
	st, err := sigstore.ProveBundle(signer, raw, about)
	if err == nil && f.predicate != "" && st.PredicateType != f.predicate {
		err = fault.New(fault.Denied, "holdfast.verify", "", "the statement is of type %s, and %s is asked for", st.PredicateType, f.predicate)
	}
	e := bundleEvidence(f, artifact, about.Digest, signer, st, err)
	return printEvidenceAs(cmd, f.output, e, err)
}

// check refuses flags that do not belong together.
func (f *bundleFlags) check() error {
	switch {
	case f.bundle == "":
		return usageError{errors.New("--bundle is required")}
	case f.key != "" && (f.identity != "" || f.issuer != ""):
		return usageError{errors.New("give either --key or an identity")}
	case f.key == "" && (f.identity == "" || f.issuer == ""):
		return usageError{errors.New("give --certificate-identity and --certificate-oidc-issuer, or --key")}
	case f.ignoreTlog && f.key == "":
		return usageError{errors.New("--insecure-ignore-tlog goes with --key: a certificate ends after minutes")}
	case f.ignoreTlog && f.trustedRoot != "":
		return usageError{errors.New("give either --trusted-root or --insecure-ignore-tlog")}
	}
	return nil
}

// signer is who must have made the bundle.
func (f *bundleFlags) signer() (verify.Signer, error) {
	s := verify.Signer{Name: "certificate", Unlogged: f.ignoreTlog}
	if f.key != "" {
		pem, err := readRegular(f.key, 1<<20)
		if err != nil {
			return s, err
		}
		s.Name, s.Key = "key", &verify.Key{PEM: pem}
	} else {
		s.Identity = &verify.Identity{Issuer: f.issuer, Subject: verify.Match{Exact: f.identity}}
	}
	if f.ignoreTlog {
		return s, nil
	}
	trusted := sigstore.PublicGood
	if f.trustedRoot != "" {
		var err error
		if trusted, err = readRegular(f.trustedRoot, 16<<20); err != nil {
			return s, err
		}
	}
	var err error
	s.Root, err = sigstore.RootOf("trusted root", trusted)
	return s, err
}

// maxBundle is how large a bundle may be: an attestation has its SBOM inside.
const maxBundle = 64 << 20

func readBundle(name string) ([]byte, error) {
	return readRegular(name, maxBundle)
}

// openRegular opens a file, and nothing that a read could hang on or never end of.
func openRegular(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Denied, "holdfast.verify", "give a file", "%s: not a regular file", name)
	}
	if err != nil {
		_ = file.Close() // nothing was read
		return nil, err
	}
	return file, nil
}

// readRegular returns the content of a file of at most so many bytes.
func readRegular(name string, most int64) ([]byte, error) {
	file, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	raw, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > most {
		return nil, fault.New(fault.Denied, "holdfast.verify", "", "%s: larger than %d bytes", name, most)
	}
	return raw, nil
}

var hexDigest = regexp.MustCompile(`\Asha256:[0-9a-f]{64}\z`)

// openArtifact returns a file to verify, or what is written as a digest.
func openArtifact(name string) (sigstore.Artifact, func(), error) {
	if hexDigest.MatchString(strings.ToLower(name)) { // a file of that name is ./sha256:…
		return sigstore.Artifact{Digest: digest.Digest(strings.ToLower(name))}, func() {}, nil
	}
	file, err := openRegular(name)
	if err != nil {
		return sigstore.Artifact{}, nil, err
	}
	done := func() { _ = file.Close() } // read only
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		done()
		return sigstore.Artifact{}, nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		done()
		return sigstore.Artifact{}, nil, err
	}
	return sigstore.Artifact{Digest: digest.NewDigest(digest.SHA256, h), Content: file}, done, nil
}

// bundleEvidence is the report of one bundle.
func bundleEvidence(f *bundleFlags, name string, d digest.Digest, signer verify.Signer, st verify.Statement, err error) verify.Evidence {
	c := verify.Check{Name: verify.NameSignature, OK: err == nil, Want: "a bundle by " + signer.String(), Asked: "the command line"}
	if f.predicate != "" {
		c.Name, c.Want = verify.NamePredicate+" "+f.predicate, "a statement by "+signer.String()
	}
	if err != nil {
		c.Found, c.Next = err.Error(), "do not use the artifact; ask whoever published it for a bundle by this identity"
	} else {
		c.Found = st.PredicateType
		if st.Certificate != nil {
			c.Found += " by " + st.Certificate.Subject
		}
		if !st.Time.IsZero() {
			c.Found += ", signed " + st.Time.UTC().Format("2006-01-02 15:04:05Z")
		}
		var anchors []string
		for _, a := range verify.Anchors(st.RestsOn) {
			anchors = append(anchors, a.String())
		}
		c.Detail = strings.Join(anchors, "\n")
	}
	return verify.Evidence{Subject: verify.Subject{Kind: "artifact", Reference: name, Name: name, Digest: d}, Checks: []verify.Check{c}, RestsOn: st.RestsOn}
}
