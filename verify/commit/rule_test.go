package commit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
)

const (
	testURI = "https://git.example.com/acme/fleet"
	testRef = "refs/heads/main"
)

func TestMain(m *testing.M) {
	if key := os.Getenv("HOLDFAST_TEST_AUTHENTICATOR"); key != "" {
		if err := signForGit(key, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// authenticator is a security key in software: what it signs says whether someone
// was there (bit 0) and was verified (bit 2).
type authenticator struct {
	private ed25519.PrivateKey
	flags   byte
}

func newAuthenticator(t *testing.T, flags byte) *authenticator {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return &authenticator{private, flags}
}

// PublicKey implements ssh.Signer.
func (a *authenticator) PublicKey() ssh.PublicKey {
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, a.private.Public().(ed25519.PublicKey), "ssh:"}))
	if err != nil {
		panic(err)
	}
	return key
}

// Sign implements ssh.Signer, as PROTOCOL.u2f has it.
func (a *authenticator) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{a.flags}, 7)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Rest: rest,
		Blob: ed25519.Sign(a.private, slices.Concat(app[:], rest, message[:]))}, nil
}

func (a *authenticator) line(t *testing.T, email string) []AllowedSigner {
	t.Helper()
	return line(t, email+" "+string(ssh.MarshalAuthorizedKey(a.PublicKey())))
}

// program writes a program that git runs in the place of ssh-keygen.
func (a *authenticator) program(t *testing.T) string {
	t.Helper()
	self := get(os.Executable())(t)
	name := filepath.Join(t.TempDir(), "authenticator")
	must(t, os.WriteFile(name, fmt.Appendf(nil, "#!/bin/sh\nHOLDFAST_TEST_AUTHENTICATOR=%x:%d exec %s \"$@\"\n", a.private.Seed(), a.flags, self), 0o700))
	return name
}

// signForGit does what git asks ssh-keygen for: -Y sign -n git -f KEY FILE.
func signForGit(key string, args []string) error {
	var seed []byte
	var flags byte
	if _, err := fmt.Sscanf(key, "%x:%d", &seed, &flags); err != nil {
		return err
	}
	if len(args) < 2 || args[0] != "-Y" || args[1] != "sign" {
		return fmt.Errorf("not asked to sign: %q", args)
	}
	file := args[len(args)-1]
	message, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	armored, err := SignDocument(SSHNamespace, message, &authenticator{ed25519.NewKeyFromSeed(seed), flags})
	if err != nil {
		return err
	}
	return os.WriteFile(file+".sig", armored, 0o600)
}

// gitCommit has git itself make a signed commit.
func (r *repo) gitCommit(path, program string) string {
	r.t.Helper()
	must(r.t, r.Write(map[string]string{path: rand.Text()}))
	get(r.Git("add", "-A"))(r.t)
	get(r.Git("-c", "gpg.format=ssh", "-c", "gpg.ssh.program="+program, "-c", "user.signingKey=key::sk-ssh-ed25519@openssh.com AAAA",
		"commit", "-q", "-S", "-m", "change "+path))(r.t)
	return get(r.Git("rev-parse", "HEAD"))(r.t)
}

func TestUserVerified(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	present, verified := newAuthenticator(t, 1), newAuthenticator(t, 1|4)
	with := func(a *authenticator, f func(*Config)) Config {
		c := r.config()
		c.Signers = append(c.Signers, Signer{Name: "sky", SSH: a.line(t, "test@holdfast.test")})
		c.Rules = append(c.Rules, Rule{Paths: []string{"apps/**"}, Signers: []string{"sky", "alice", "carol"}, UserVerified: true})
		if f != nil {
			f(&c)
		}
		return c
	}
	if ev := r.accepts(with(verified, nil), root, r.gitCommit("apps/a", verified.program(t))); ev.Facts["userVerified"] != true || ev.Facts["method"] != "ssh" {
		t.Errorf("evidence %+v", ev.Facts)
	}
	get(r.Git("reset", "-q", "--hard", root))(t)
	touched := r.gitCommit("apps/a", present.program(t))
	r.refuses(with(present, nil), root, touched, "sky has to be verified by a security key")
	plain := with(present, func(c *Config) { c.Rules[2].UserVerified = false })
	if ev := r.accepts(plain, root, touched); ev.Facts["userVerified"] != false {
		t.Errorf("evidence %+v", ev.Facts)
	}
	r.refuses(with(present, func(c *Config) { c.Rules[2].UserVerified, c.Signers[3].UserVerified = false, true }), root, touched, "sky has to be verified by a security key")

	// A rule that asks for nothing, and permits the same, takes nothing away.
	get(r.Git("reset", "-q", "--hard", root))(t)
	r.refuses(with(verified, nil), root, r.commit("apps/b", r.by(r.alice)), "alice has to be verified")
	get(r.Git("reset", "-q", "--hard", root))(t)
	r.refuses(with(verified, nil), root, r.commit("apps/b", r.by(r.carol)), "carol has to be verified")
	r.refuses(with(verified, func(c *Config) { c.Rules[2].UserVerified, c.Signers[2].UserVerified = false, true }), root, get(r.Git("rev-parse", "HEAD"))(t), "carol has to be verified")
	get(r.Git("reset", "-q", "--hard", root))(t)
	r.accepts(with(verified, nil), root, r.commit("infra/b", r.by(r.alice)))

	// The flags are signed: to set one breaks the signature.
	get(r.Git("reset", "-q", "--hard", root))(t)
	raw := r.raw("")
	sig := get(sshsig.Sign(strings.NewReader(string(raw)), present, sshsig.HashSHA512, SSHNamespace))(t)
	sig.Signature.Rest[0] |= flagUserVerified
	r.refuses(with(present, nil), root, get(r.CommitRaw(testenv.WithSignature(raw, string(sshsig.Armor(sig)))))(t), "does not fit the commit")
}

// A certificate may ask for the same, in words of OpenSSH.
func TestVerifyRequiredCertificate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	authority := get(ssh.NewSignerFromKey(get2(ed25519.GenerateKey(rand.Reader))(t)))(t)
	ring := keyring{signers: []holder{{Signer: Signer{Name: "s", SSH: []AllowedSigner{{Principals: []string{"*@b"}, CertAuthority: true, Key: authority.PublicKey()}}}}}}
	for flags, want := range map[byte]bool{1: false, 5: true, 4: false} {
		a := newAuthenticator(t, flags)
		cert := &ssh.Certificate{Key: a.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"a@b"}, ValidBefore: ssh.CertTimeInfinity,
			Permissions: ssh.Permissions{CriticalOptions: map[string]string{"verify-required": ""}}}
		must(t, cert.SignCert(rand.Reader, authority))
		m, err := ring.verify(sshObject(t, get(ssh.NewCertSigner(cert, a))(t), "a@b", now), now)
		if (err == nil) != want || want && !m.userVerified {
			t.Errorf("flags %d: %+v, %v", flags, m, err)
		}
	}
}

func get2[A, B any](_ A, v B, err error) func(t *testing.T) B { return get(v, err) }

// approving returns a configuration in which changes of infra need approvals.
func (r *repo) approving(threshold int) Config {
	c := r.config()
	c.URI, c.Ref = testURI, testRef
	for i, s := range []*testenv.Signer{r.alice, r.bob} {
		c.Signers[i].SSH = line(r.t, strings.Replace(s.AllowedSignersLine(), `namespaces="git"`, `namespaces="git,approval@holdfast.dev"`, 1))
	}
	c.Rules = append(c.Rules, Rule{Paths: []string{"infra/**"}, Signers: []string{"alice", "carol"},
		Approvals: &Approvals{Threshold: threshold, Signers: []string{"alice", "bob", "carol"}}})
	return c
}

// approve pushes approvals into the notes of a commit, as docs/commits.md shows.
func (r *repo) approve(id string, documents ...string) {
	r.t.Helper()
	for _, d := range documents {
		r.attach(NotesRef, id, d)
	}
}

// attach appends a document to the notes of a commit.
func (r *repo) attach(ref, id, document string) {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "note")
	must(r.t, os.WriteFile(file, []byte(document), 0o600))
	get(r.Git("notes", "--ref", ref, "append", "-F", file, id))(r.t)
}

func (r *repo) approval(s *testenv.Signer, uri, ref, id string) string {
	r.t.Helper()
	document := Approval(uri, ref, id)
	return string(document) + get(s.SignNamespace(document, NamespaceApproval))(r.t)
}

// waits checks that something which may still come is missing.
func (r *repo) waits(c Config, from, head, want string) {
	r.t.Helper()
	ev, err := r.verify(c, from, head)
	if fault.KindOf(err) != fault.Waiting || !strings.Contains(err.Error(), want) || fault.HintOf(err) == "" || ev.Verified() {
		r.t.Errorf("want to wait with %q, got %v (%v, hint %q), verified: %t", want, err, fault.KindOf(err), fault.HintOf(err), ev.Verified())
	}
}

func TestApprovals(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	id := r.commit("infra/a", r.by(r.alice))
	one, two := r.approving(1), r.approving(2)
	r.waits(one, root, id, "approved by 0 of alice, bob, carol, and 1 are asked for")
	r.accepts(one, root, root) // nothing in infra

	r.approve(id, r.approval(r.bob, testURI, testRef, id))
	ev := r.accepts(one, root, id)
	approvals, _ := ev.Facts["approvals"].([]any)
	if len(approvals) != 1 || approvals[0].(map[string]any)["signer"] != "bob" || !slices.Contains(ev.RestsOn, anchor(verify.AnchorKey, r.bob.Fingerprint())) ||
		!strings.Contains(ev.Checks[1].Detail, "approved by bob") {
		t.Errorf("evidence %+v", ev)
	}
	r.waits(two, root, id, "approved by 1 of alice, bob, carol, and 2 are asked for")
	// The same person again is one.
	r.approve(id, r.approval(r.bob, testURI, testRef, id))
	r.waits(two, root, id, "approved by 1 of")
	// So is somebody with two keys.
	second := get(testenv.NewSSHSigner(t.TempDir(), "Bob", "bob@example.com"))(t)
	keys := r.approving(2)
	keys.Signers[1].SSH = append(keys.Signers[1].SSH, line(t, strings.Replace(second.AllowedSignersLine(), `namespaces="git"`, `namespaces="approval@holdfast.dev"`, 1))...)
	r.approve(id, r.approval(second, testURI, testRef, id))
	r.waits(keys, root, id, "approved by 1 of")
	r.refuses(revoking(one, anchor(verify.AnchorKey, r.alice.Fingerprint())), root, id, "was revoked on")
	r.waits(revoking(one, anchor(verify.AnchorKey, r.bob.Fingerprint())), root, id, "was revoked on")

	late := r.approving(1)
	late.Signers[1].NotAfter = r.now.Add(-time.Hour)
	r.waits(late, root, id, "signer bob is not valid at")
	other := r.approving(1)
	other.Rules[2].Approvals.Signers = []string{"carol"}
	r.waits(other, root, id, "approved by 0 of carol")
	namespace := r.approving(1)
	namespace.Signers[1].SSH = line(t, r.bob.AllowedSignersLine())
	r.waits(namespace, root, id, `may not sign for the namespace "approval@holdfast.dev"`)
}

func TestApprovalsThatDoNotCount(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	mallory := get(testenv.NewSSHSigner(t.TempDir(), "Mallory", "bob@example.com"))(t)
	present := newAuthenticator(t, 1)
	for name, c := range map[string]struct {
		document func(id string) string
		want     string
	}{
		"the author's own":   {func(id string) string { return r.approval(r.alice, testURI, testRef, id) }, "alice signed the commit"},
		"a stranger's":       {func(id string) string { return r.approval(mallory, testURI, testRef, id) }, "unknown SSH key"},
		"another commit":     {func(string) string { return r.approval(r.bob, testURI, testRef, root) }, "does not fit the document"},
		"another repository": {func(id string) string { return r.approval(r.bob, testURI+"2", testRef, id) }, "does not fit the document"},
		"another branch":     {func(id string) string { return r.approval(r.bob, testURI, "refs/heads/staging", id) }, "does not fit the document"},
		"a commit signature": {func(id string) string {
			return get(r.bob.SignNamespace(Approval(testURI, testRef, id), SSHNamespace))(t)
		}, "made for the namespace"},
		"text alone":          {func(id string) string { return string(Approval(testURI, testRef, id)) }, "approved by 0"},
		"no end":              {func(string) string { return beginSSH + "\nAAAA" }, "a signature without an end"},
		"a broken signature":  {func(string) string { return beginSSH + "\nAAAA\n" + endSSH }, "SSH signature"},
		"JSON that is none":   {func(string) string { return `{"a": ` }, "not JSON"},
		"a bundle of nothing": {func(string) string { return `{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}` }, "not a bundle"},
		"not verified": {func(id string) string {
			return string(get(SignDocument(NamespaceApproval, Approval(testURI, testRef, id), present))(t))
		}, "pat has to be verified"},
	} {
		t.Run(name, func(t *testing.T) {
			get(r.Git("reset", "-q", "--hard", root))(t)
			r.t = t
			id := r.commit("infra/a", r.by(r.alice))
			r.approve(id, c.document(id))
			config := r.approving(1)
			config.Signers = append(config.Signers, Signer{Name: "pat", SSH: present.line(t, "pat@example.com"), UserVerified: true})
			config.Rules[2].Approvals.Signers = append(config.Rules[2].Approvals.Signers, "pat")
			r.waits(config, root, id, c.want)
			// A stranger's words do not keep a good approval from counting.
			r.approve(id, r.approval(r.bob, testURI, testRef, id))
			r.accepts(config, root, id)
		})
	}
	r.t = t
	get(r.Git("reset", "-q", "--hard", root))(t)
	id := r.commit("infra/a", r.by(r.alice))
	r.approve(id, strings.Repeat("x", maxNote+1))
	r.waits(r.approving(1), root, id, "the limit is")
	// What was there when the commit was accepted is there beside it.
	both := accepted{r, []byte(r.approval(r.bob, testURI, testRef, id))}
	if _, err := get(New(r.approving(1)))(t).Verify(t.Context(), both, root, id, r.now); err != nil {
		t.Errorf("an approval of before: %v", err)
	}
	var many notes
	many.parse([]byte(strings.Repeat("{}\n", maxSignatures+2)))
	if many.count() != maxSignatures+1 || !strings.Contains(many.odd[maxSignatures], "more than") {
		t.Errorf("many documents: %d, %q", many.count(), many.odd)
	}

	// Where a rule asks for verified people, an approval by one who is not is none.
	get(r.Git("reset", "-q", "--hard", root))(t)
	verified := newAuthenticator(t, 5)
	c := r.approving(1)
	c.Signers = append(c.Signers, Signer{Name: "sky", SSH: verified.line(t, "test@holdfast.test")})
	c.Rules[2].UserVerified, c.Rules[2].Signers = true, []string{"sky"}
	c.Rules[2].Approvals.Signers = append(c.Rules[2].Approvals.Signers, "sky")
	id = r.gitCommit("infra/a", verified.program(t))
	r.approve(id, r.approval(r.bob, testURI, testRef, id))
	r.waits(c, root, id, "bob has to be verified")
}

// accepted has what a note said before.
type accepted struct {
	*repo
	before []byte
}

func (a accepted) Notes(ctx context.Context, ref, id string) ([][]byte, error) {
	now, err := a.repo.Notes(ctx, ref, id)
	return append(now, a.before), err
}

// Approvals and summaries of the source may be statements that a certificate
// vouches for.
func (s *throwaway) statement(email, predicateType, id string, annotations map[string]any, predicate any) string {
	s.t.Helper()
	subject := map[string]any{"digest": map[string]string{"gitCommit": id}}
	if annotations != nil {
		subject["annotations"] = annotations
	}
	payload := get(json.Marshal(map[string]any{"_type": "https://in-toto.io/Statement/v1", "predicateType": predicateType, "subject": []any{subject}, "predicate": predicate}))(s.t)
	entity := get(s.Attest(email, issuer, payload))(s.t)
	cert := get(entity.VerificationContent())(s.t).Certificate()
	env := get(entity.SignatureContent())(s.t).EnvelopeContent().RawEnvelope()
	stamps := get(entity.Timestamps())(s.t)
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:                   &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: cert.Raw}},
			TimestampVerificationData: &protobundle.TimestampVerificationData{Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamps[0]}}},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: payload, PayloadType: env.PayloadType,
			Signatures: []*protodsse.Signature{{Sig: get(base64.StdEncoding.DecodeString(env.Signatures[0].Sig))(s.t)}},
		}},
	}
	return string(get(protojson.Marshal(b))(s.t))
}

func TestApprovalByStatement(t *testing.T) {
	t.Parallel()
	r, s := newRepo(t), newThrowaway(t)
	root := r.commit("README", r.by(r.alice))
	c := r.approving(1)
	c.Prover = prover
	c.Signers = append(c.Signers, s.signer("dana", "dana@example.com", s.timestamps()), s.signer("danas-other-name", "dana@example.com", s.timestamps()))
	c.Rules[2].Approvals.Signers = []string{"dana", "danas-other-name"}
	type predicate = map[string]string
	for name, tc := range map[string]struct {
		document func(id string) string
		want     string // empty: accepted
	}{
		"good": {func(id string) string {
			return s.statement("dana@example.com", PredicateApproval, id, nil, predicate{"repository": testURI, "ref": testRef})
		}, ""},
		"another person": {func(id string) string {
			return s.statement("mallory@example.com", PredicateApproval, id, nil, predicate{"repository": testURI, "ref": testRef})
		}, "expected SAN value"},
		"another commit": {func(string) string {
			return s.statement("dana@example.com", PredicateApproval, root, nil, predicate{"repository": testURI, "ref": testRef})
		}, "does not match any digest"},
		"another repository": {func(id string) string {
			return s.statement("dana@example.com", PredicateApproval, id, nil, predicate{"repository": testURI + "2", "ref": testRef})
		}, "approved it for"},
		"another branch": {func(id string) string {
			return s.statement("dana@example.com", PredicateApproval, id, nil, predicate{"repository": testURI, "ref": "refs/heads/x"})
		}, "approved it for refs/heads/x"},
		"another type": {func(id string) string {
			return s.statement("dana@example.com", "https://example.com/x", id, nil, predicate{"repository": testURI, "ref": testRef})
		}, "approved by 0"},
		"nothing in it": {func(id string) string { return s.statement("dana@example.com", PredicateApproval, id, nil, nil) }, "approved it for"},
	} {
		t.Run(name, func(t *testing.T) {
			get(r.Git("reset", "-q", "--hard", root))(t)
			r.t, s.t = t, t
			id := r.commit("infra/a", r.by(r.alice))
			r.approve(id, tc.document(id))
			if tc.want == "" {
				r.accepts(c, root, id)
				// Two names of one identity are one person.
				two := c
				two.Rules = slices.Clone(c.Rules)
				two.Rules[2].Approvals = &Approvals{Threshold: 2, Signers: c.Rules[2].Approvals.Signers}
				r.waits(two, root, id, "approved by 1 of")
				return
			}
			r.waits(c, root, id, tc.want)
		})
	}
}

// What a statement is, and when it was signed, is looked at beside who signed it.
func TestStatements(t *testing.T) {
	t.Parallel()
	s := newThrowaway(t)
	id := strings.Repeat("a", 40)
	dana := s.signer("dana", "dana@example.com", s.timestamps())
	var n notes
	n.parse([]byte(s.statement("dana@example.com", PredicateApproval, id, nil, nil)))
	if len(n.bundles) != 1 {
		t.Fatalf("no bundle: %q", n.odd)
	}
	ring := func(signer Signer) keyring { return get(newKeyring([]Signer{signer}, prover))(t) }
	if m, _, err := ring(dana).statement(n.bundles[0], id, PredicateApproval, nil); err != nil || m.signer != "dana" {
		t.Errorf("a good one: %+v, %v", m, err)
	}
	if _, _, err := ring(dana).statement(n.bundles[0], id, predicateVSA, nil); err == nil || !strings.Contains(err.Error(), "is of type "+PredicateApproval) {
		t.Errorf("another type: %v", err)
	}
	if _, _, err := ring(dana).statement(n.bundles[0], id, PredicateApproval, []string{"source"}); err == nil {
		t.Error("by a signer who is not asked")
	}
	dana.NotAfter = time.Now().Add(-time.Hour)
	if _, _, err := ring(dana).statement(n.bundles[0], id, PredicateApproval, nil); err == nil || !strings.Contains(err.Error(), "signer dana is not valid when the statement was signed") {
		t.Errorf("after the signer's end: %v", err)
	}
}

func TestNewRefusesRules(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	for want, f := range map[string]func(*Config){
		"asks for 4 approvals of 3 people": func(c *Config) { c.Rules[2].Approvals.Threshold = 4 },
		"asks for 0 approvals":             func(c *Config) { c.Rules[2].Approvals.Threshold = 0 },
		"asks for 2 approvals of 1 people": func(c *Config) {
			c.Rules[2].Approvals.Threshold, c.Rules[2].Approvals.Signers = 2, []string{"bob", "bob"}
		},
		"names the signer \"dave\"":        func(c *Config) { c.Rules[2].Approvals.Signers[0] = "dave" },
		"names the signer \"forge\"":       func(c *Config) { c.Rules[2].ForgeMerges = []string{"forge"} },
		"signs commits and merges":         func(c *Config) { c.Rules[2].ForgeMerges = []string{"alice"} },
		"nothing that they could be bound": func(c *Config) { c.URI = "" },
		"could be bound to":                func(c *Config) { c.Ref = "" },
		"nobody is one":                    func(c *Config) { c.Rules[0].Owners = true },
		"is no owner":                      func(c *Config) { c.Owners = map[string][]string{"alice": {"alice"}} },
		"\"@A\" is nobody":                 func(c *Config) { c.Owners = map[string][]string{"@A": {}} },
		"is listed twice":                  func(c *Config) { c.Owners = map[string][]string{"@A": {"alice"}, "@a": {"bob"}} },
		"the owner \"@a\" is the signer":   func(c *Config) { c.Owners = map[string][]string{"@a": {"dave"}} },
		"of anybody, or of anything": func(c *Config) {
			c.Rules[0].Source = &Source{Signers: []string{"alice"}, Levels: []string{"SLSA_SOURCE_LEVEL_3"}}
		},
		"who has no identity": func(c *Config) {
			c.Rules[0].Source = &Source{Signers: []string{"alice"}, Verifiers: []string{"x"}, Levels: []string{"SLSA_SOURCE_LEVEL_3"}}
		},
		"no pattern of tags":          func(c *Config) { c.Tags = &Tags{Pattern: "v[", Signers: []string{"alice"}} },
		"nobody may sign tags":        func(c *Config) { c.Tags = &Tags{Pattern: "v*"} },
		"\"dave\" of tags is not con": func(c *Config) { c.Tags = &Tags{Pattern: "v*", Signers: []string{"dave"}} },
	} {
		c := r.approving(1)
		f(&c)
		if v, err := New(c); v != nil || fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v (hint %q)", want, err, fault.HintOf(err))
		}
	}
}

func TestRepositoryURI(t *testing.T) {
	t.Parallel()
	const want = "https://git.example.com/Acme/fleet"
	for _, in := range []string{
		"https://git.example.com/Acme/fleet", "https://GIT.example.com/Acme/fleet.git", "https://git.example.com/Acme/fleet/", "http://git.example.com/Acme/fleet",
		"git@git.example.com:Acme/fleet.git", "git.example.com:Acme/fleet", "ssh://git@git.example.com:2222/Acme/fleet.git", "https://user@git.example.com/Acme/fleet",
	} {
		if got, err := RepositoryURI(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{"/srv/git/fleet.git": "file:///srv/git/fleet", "file:///srv/git/fleet": "file:///srv/git/fleet",
		"https://git.example.com:8443/fleet": "https://git.example.com:8443/fleet"} {
		if got, err := RepositoryURI(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "fleet", "ftp://host/x", "https://host"} {
		if got, err := RepositoryURI(in); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add([]byte("text\n" + beginSSH + "\nAAAA\n" + endSSH + "\n\n{\"a\": 1}\n{\n\"b\": []}\n"))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{"rawBytes":""}},"dsseEnvelope":{"payload":"e30=","payloadType":"x","signatures":[{"sig":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n notes
		n.parse(b)
		for _, s := range n.signatures {
			if !strings.HasPrefix(s, beginSSH+"\n") || !strings.HasSuffix(s, endSSH+"\n") || !strings.Contains(string(b)+"\n", s) {
				t.Errorf("%q of %q", s, b)
			}
			_, _ = keyring{}.document(NamespaceApproval, nil, []byte(s), time.Now())
		}
		for _, bundle := range n.bundles {
			claims(bundle, PredicateApproval)
		}
	})
}

// TestWhereItIsAsked: each check names the rule that asked for it.
func TestWhereItIsAsked(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	one := r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	three := r.commit("infra/b", r.by(r.alice))
	c := r.approving(1)
	c.Asked = "holdfast.yaml:9"
	for i := range c.Rules {
		c.Rules[i].Asked = fmt.Sprintf("holdfast.yaml:%d", 10+i)
	}
	for _, want := range []struct{ from, head, asked string }{
		{one, two, "holdfast.yaml:11"},   // permitted
		{two, three, "holdfast.yaml:12"}, // approvals are asked for
		{three, r.commit("README", r.by(r.bob)), "holdfast.yaml:9"},
	} {
		ev, _ := r.verify(c, want.from, want.head)
		if last := ev.Checks[len(ev.Checks)-1]; last.Asked != want.asked {
			t.Errorf("asked at %q, want %q: %+v", last.Asked, want.asked, last)
		}
	}
}
