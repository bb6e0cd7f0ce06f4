package commit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/verify"
)

func anchor(kind verify.AnchorKind, value string) verify.Anchor {
	return verify.Anchor{Kind: kind, Value: value}
}

// revoking returns c with a revoked.
func revoking(c Config, a verify.Anchor) Config {
	c.Revocations = new(verify.Revocations)
	c.Revocations.Add(verify.Revocation{Anchor: a, Reason: "laptop stolen", Time: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)})
	return c
}

// bare is what e rests on, without since when that is known to have been there.
func bare(e verify.Evidence) []verify.Anchor { return verify.SeenAt(time.Time{}, e.RestsOn) }

// TestRevokedSince: a commit that was first seen before a key came into other hands
// still counts, whatever its date. An approval does not: it may come long after the
// commit.
func TestRevokedSince(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	one := r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	since := func(c Config, a verify.Anchor, at time.Time) Config {
		c.Revocations = new(verify.Revocations)
		c.Revocations.Add(verify.Revocation{Anchor: a, Since: at, Reason: "laptop stolen", Time: r.now})
		return c
	}
	for _, a := range []verify.Anchor{
		anchor(verify.AnchorKey, r.bob.Fingerprint()), anchor(verify.AnchorIdentity, "bob"), anchor(verify.AnchorIdentity, "bob@example.com"),
	} {
		r.accepts(since(r.config(), a, r.now.Add(time.Second)), one, two)
		r.refuses(since(r.config(), a, r.now), one, two, "was revoked")
		r.refuses(since(r.config(), a, r.now.Add(-time.Hour)), one, two, "as of")
	}
	approved := r.commit("infra/b", r.by(r.alice))
	r.approve(approved, r.approval(r.bob, testURI, testRef, approved))
	c := r.approving(1)
	r.accepts(c, two, approved)
	r.waits(since(c, anchor(verify.AnchorKey, r.bob.Fingerprint()), r.now.Add(time.Second)), two, approved, "nothing proves when this was signed")
	// What ran by it is no less revoked for waiting for another approval.
	if _, err := r.verify(since(c, anchor(verify.AnchorKey, r.bob.Fingerprint()), r.now), two, approved); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("a revoked approval: %v", err)
	}
}

func TestEvidenceRestsOnEverySigner(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	three := r.commit("infra/b", r.by(r.carol))
	got := bare(r.accepts(r.config(), "", three))
	for _, want := range []verify.Anchor{
		anchor(verify.AnchorCommit, three),
		anchor(verify.AnchorIdentity, "alice"), anchor(verify.AnchorIdentity, "alice@example.com"), anchor(verify.AnchorKey, r.alice.Fingerprint()),
		anchor(verify.AnchorIdentity, "bob"), anchor(verify.AnchorIdentity, "bob@example.com"), anchor(verify.AnchorKey, r.bob.Fingerprint()),
		anchor(verify.AnchorIdentity, "carol"), anchor(verify.AnchorKey, r.carol.Fingerprint()),
	} {
		if !slices.Contains(got, want) {
			t.Errorf("the evidence does not rest on %s: %v", want, got)
		}
	}
	if slices.Contains(got, anchor(verify.AnchorCommit, two)) {
		t.Error("the evidence rests on a commit that was passed")
	}
	if got := bare(r.accepts(r.config(), two, three)); slices.Contains(got, anchor(verify.AnchorIdentity, "bob")) {
		t.Errorf("the evidence rests on a signer outside of the history that was judged: %v", got)
	}
	c := r.config()
	c.Anchor = three
	if got := bare(r.accepts(c, "", three)); !slices.Equal(got, []verify.Anchor{anchor(verify.AnchorCommit, three)}) {
		t.Errorf("the anchor rests on %v", got)
	}
}

func TestRevokedSignerAuthorisesNothing(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	one := r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	three := r.commit("infra/b", r.by(r.carol))
	four := r.commit("infra/c", r.by(r.alice))
	for _, a := range []verify.Anchor{
		anchor(verify.AnchorKey, r.bob.Fingerprint()), anchor(verify.AnchorIdentity, "bob"), anchor(verify.AnchorIdentity, "bob@example.com"),
	} {
		c := revoking(r.config(), a)
		want := "commit " + two[:12] + " by Bob <bob@example.com>: " + a.String() + " was revoked on 2026-01-02: laptop stolen"
		r.refuses(c, one, two, want)  // a new step
		r.refuses(c, two, two, want)  // what runs, looked at again
		r.refuses(c, "", four, want)  // a good head does not cover it
		r.refuses(c, one, four, want) // nor does a good head after it
		r.accepts(c, two, four)
		c.Anchor = two // the operator's own word
		r.accepts(c, "", four)
		c.Anchor = one
		r.refuses(c, "", four, want)
	}
	for _, form := range []string{r.carol.Fingerprint(), strings.ToLower(r.carol.Fingerprint())} {
		r.refuses(revoking(r.config(), anchor(verify.AnchorKey, form)), two, three, "was revoked")
	}
	r.accepts(revoking(r.config(), anchor(verify.AnchorKey, r.alice.Fingerprint()+"x")), "", four)
}

func TestRevokedCommitIsNotDeployed(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	one := r.commit("README", r.by(r.alice))
	bad := r.commit("apps/a", r.by(r.bob))
	fixed := r.commit("apps/a", r.by(r.bob))
	c := revoking(r.config(), anchor(verify.AnchorCommit, strings.ToUpper(bad)))
	r.refuses(c, one, bad, "was revoked on 2026-01-02: laptop stolen")
	r.refuses(c, bad, bad, "was revoked")
	r.accepts(c, one, fixed)
	r.accepts(c, bad, fixed)
	c.Anchor = bad
	r.refuses(c, "", bad, "was revoked")
	r.accepts(c, "", fixed)
}

// revoker revokes while the history is read.
type revoker struct {
	*repo
	set  *verify.Revocations
	what verify.Anchor
}

func (r revoker) ChangedPaths(ctx context.Context, parent, child string) ([]string, error) {
	r.set.Add(verify.Revocation{Anchor: r.what, Reason: "just now"})
	return r.repo.ChangedPaths(ctx, parent, child)
}

func TestRevocationDuringTheJudgement(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	one := r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	for _, a := range []verify.Anchor{anchor(verify.AnchorIdentity, "bob"), anchor(verify.AnchorCommit, two)} {
		c := r.config()
		c.Revocations = new(verify.Revocations)
		ev, err := get(New(c))(t).Verify(t.Context(), revoker{r, c.Revocations, a}, one, two, r.now)
		if err == nil || !strings.Contains(err.Error(), "just now") || ev.Verified() {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// A certificate counts by its authority, so that revoking the authority ends
// every certificate that it made.
func TestCertificateRestsOnItsAuthority(t *testing.T) {
	t.Parallel()
	now := time.Now()
	newKey := func() ssh.Signer {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		return get(ssh.NewSignerFromKey(k))(t)
	}
	ca, user := newKey(), newKey()
	cert := &ssh.Certificate{Key: user.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"a@b"}, ValidBefore: ssh.CertTimeInfinity}
	must(t, cert.SignCert(rand.Reader, ca))
	signer := get(ssh.NewCertSigner(cert, user))(t)
	ring := keyring{signers: []holder{{Signer: Signer{Name: "s", SSH: []AllowedSigner{{Principals: []string{"*@b"}, CertAuthority: true, Key: ca.PublicKey()}}}}}}
	m, err := ring.verify(sshObject(t, signer, "a@b", now), now)
	must(t, err)
	for _, want := range []verify.Anchor{
		anchor(verify.AnchorIdentity, "s"), anchor(verify.AnchorIdentity, "a@b"),
		anchor(verify.AnchorKey, ssh.FingerprintSHA256(user.PublicKey())), anchor(verify.AnchorKey, ssh.FingerprintSHA256(ca.PublicKey())),
	} {
		if !slices.Contains(m.anchors, want) {
			t.Errorf("%s is not among %v", want, m.anchors)
		}
	}
}

// An OpenPGP signature by a subkey counts by the primary key and by the subkey.
func TestSubkeyIsAnAnchor(t *testing.T) {
	t.Parallel()
	e := pgpKey(t, nil)
	must(t, e.AddSigningSubkey(nil))
	sub := e.Subkeys[len(e.Subkeys)-1].PublicKey
	got := pgpAnchors("pat", e, sub.KeyId)
	if len(got) != 3 || got[1].Value != pgpFingerprint(e) || !strings.HasSuffix(got[2].Value, strings.ToUpper(sub.KeyIdString())) {
		t.Errorf("%v", got)
	}
}
