package commit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // git's object ids
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get[V any](v V, err error) func(t *testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		must(t, err)
		return v
	}
}

// repo is a real repository and, by running git, a History.
type repo struct {
	*testenv.Repo
	t          *testing.T
	alice, bob *testenv.Signer // SSH
	carol      *testenv.Signer // OpenPGP
	now        time.Time
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	dir := t.TempDir()
	server := get(testenv.NewGitServer(testenv.GitOptions{Dir: filepath.Join(dir, "server")}))(t)
	t.Cleanup(func() { must(t, server.Close()) })
	return &repo{
		t:     t,
		Repo:  get(server.NewRepo("fleet"))(t),
		alice: get(testenv.NewSSHSigner(dir, "Alice", "alice@example.com"))(t),
		bob:   get(testenv.NewSSHSigner(dir, "Bob", "bob@example.com"))(t),
		carol: get(testenv.NewOpenPGPSigner(dir, "Carol", "carol@example.com"))(t),
		// A signature from after the first sight does not count, and the commits
		// are still to be made.
		now: time.Now().Add(time.Minute),
	}
}

func (r *repo) Commit(_ context.Context, id string) ([]byte, error) {
	out, err := exec.Command("git", "-C", r.Dir, "cat-file", "commit", id).Output()
	return out, err
}

func (r *repo) ChangedPaths(_ context.Context, parent, child string) ([]string, error) {
	if parent == "" {
		parent = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	}
	out, err := exec.Command("git", "-C", r.Dir, "diff-tree", "-r", "-z", "--no-renames", "--name-only", parent, child).Output()
	return strings.FieldsFunc(string(out), func(c rune) bool { return c == 0 }), err
}

// commit writes a file and commits it.
func (r *repo) commit(path string, o testenv.CommitOptions) string {
	r.t.Helper()
	if path != "" {
		must(r.t, r.Write(map[string]string{path: rand.Text()}))
	}
	return get(r.Repo.Commit("change "+path, o))(r.t)
}

func (r *repo) by(s *testenv.Signer) testenv.CommitOptions { return testenv.CommitOptions{Signer: s} }

// raw returns an unsigned commit of the index on top of HEAD.
func (r *repo) raw(headers string) []byte {
	r.t.Helper()
	tree := get(r.Git("write-tree"))(r.t)
	head := get(r.Git("rev-parse", "HEAD"))(r.t)
	who := fmt.Sprintf("Alice <alice@example.com> %d +0000", r.now.Unix())
	return fmt.Appendf(nil, "tree %s\nparent %s\nauthor %s\ncommitter %[3]s\n%s\nmessage\n", tree, head, who, headers)
}

func line(t *testing.T, s string) []AllowedSigner {
	t.Helper()
	return get(ParseAllowedSigners("allowed_signers", []byte(s)))(t)
}

func (r *repo) config() Config {
	return Config{
		Repository: "fleet",
		Signers: []Signer{
			{Name: "alice", SSH: line(r.t, r.alice.AllowedSignersLine())},
			{Name: "bob", SSH: line(r.t, r.bob.AllowedSignersLine())},
			{Name: "carol", OpenPGP: [][]byte{[]byte(r.carol.PublicKeyArmored())}},
		},
		Rules: []Rule{
			{Paths: []string{"**"}, Signers: []string{"alice", "carol"}},
			{Paths: []string{"apps/**"}, Signers: []string{"bob"}},
		},
	}
}

func (r *repo) verify(c Config, from, head string) (verify.Evidence, error) {
	r.t.Helper()
	return get(New(c))(r.t).Verify(r.t.Context(), r, from, head, r.now)
}

func (r *repo) accepts(c Config, from, head string) verify.Evidence {
	r.t.Helper()
	ev, err := r.verify(c, from, head)
	if err != nil || !ev.Verified() {
		r.t.Fatalf("refused: %v, evidence %+v", err, ev)
	}
	return ev
}

func (r *repo) refuses(c Config, from, head, want string) {
	r.t.Helper()
	ev, err := r.verify(c, from, head)
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), want) {
		r.t.Errorf("want a denial with %q, got %v (%v)", want, err, fault.KindOf(err))
		return
	}
	if fault.HintOf(err) == "" || ev.Verified() {
		r.t.Errorf("hint %q, evidence verified: %t", fault.HintOf(err), ev.Verified())
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	two := r.commit("apps/a", r.by(r.bob))
	three := r.commit("infra/b", r.by(r.carol))
	ev := r.accepts(r.config(), "", three)
	want := []string{"signed by alice (ssh " + r.alice.Fingerprint(), "signed by bob (ssh " + r.bob.Fingerprint(), "signed by carol (openpgp " + r.carol.Fingerprint()}
	for i, c := range ev.Checks {
		if c.Name != "commit" || !strings.Contains(c.Detail, want[i]) || !strings.HasSuffix(c.Detail, "for 1 paths") {
			t.Errorf("check %d: %+v", i, c)
		}
	}
	if len(ev.Checks) != 3 || ev.Facts["signer"] != "carol" || ev.Facts["fingerprint"] != r.carol.Fingerprint() || ev.Facts["commits"] != 3 ||
		ev.Facts["author"] != "Carol <carol@example.com>" || ev.Subject.Reference != three {
		t.Errorf("evidence %+v", ev)
	}
	if n := len(r.accepts(r.config(), root, three).Checks); n != 2 {
		t.Errorf("from the first commit there are %d steps", n)
	}
	if ev := r.accepts(r.config(), three, three); len(ev.Checks) != 1 || ev.Checks[0].Name != "commit" {
		t.Errorf("head again: %+v", ev.Checks)
	}
	c := r.config()
	c.Anchor = two
	if ev := r.accepts(c, "", two); len(ev.Checks) != 1 || ev.Checks[0].Name != "anchor" {
		t.Errorf("the anchor: %+v", ev.Checks)
	}
	r.accepts(c, "", three)
	r.refuses(c, three, two, "moved back or sideways")
	c.MaxCommits = 2
	c.Anchor = ""
	r.refuses(c, "", three, "more than 2 commits")
	if _, err := get(New(c))(t).Verify(t.Context(), r, "", three, time.Time{}); err == nil {
		t.Error("no time was accepted")
	}
	if _, err := r.verify(c, "", "main"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a branch as head: %v", err)
	}
}

func TestLongHistoryIsSummarised(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	var head string
	for range maxChecks + 2 {
		head = r.commit("", r.by(r.alice))
	}
	ev := r.accepts(r.config(), "", head)
	if len(ev.Checks) != maxChecks+1 || !strings.HasPrefix(ev.Checks[0].Detail, "2 earlier commits") || ev.Facts["commits"] != maxChecks+2 {
		t.Errorf("%d checks, first %+v", len(ev.Checks), ev.Checks[0])
	}
}

func TestHistoryOnlyMovesForward(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("a", r.by(r.alice))
	applied := r.commit("b", r.by(r.alice))
	r.refuses(r.config(), applied, root, "history moved back or sideways (force-push)")
	get(r.Git("reset", "-q", "--hard", root))(t)
	side := r.commit("c", r.by(r.alice))
	r.refuses(r.config(), applied, side, "history moved back or sideways (force-push)")
	// A merge that has the applied commit as its second parent hides it from the first-parent chain.
	merge := get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: r.alice, Parents: []string{side, applied}}))(t)
	r.refuses(r.config(), applied, merge, "history moved back or sideways (force-push)")
	c := r.config()
	c.Anchor = applied
	r.refuses(c, "", side, "the anchor "+applied[:12]+" is not among")
}

func TestUnsignedAndUnauthorised(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	unsigned := r.commit("apps/x", testenv.CommitOptions{Author: "Mallory <m@example.com>"})
	r.refuses(r.config(), root, unsigned, "commit "+unsigned[:12]+" by Mallory <m@example.com>: unsigned")
	later := r.commit("apps/y", r.by(r.alice))
	r.refuses(r.config(), root, later, "commit "+unsigned[:12]) // a good head does not cover it

	get(r.Git("reset", "-q", "--hard", root))(t)
	mallory := get(testenv.NewSSHSigner(t.TempDir(), "Mallory", "alice@example.com"))(t)
	r.refuses(r.config(), root, r.commit("apps/x", r.by(mallory)), "unknown SSH key "+mallory.Fingerprint())
	eve := get(testenv.NewOpenPGPSigner(t.TempDir(), "Carol", "carol@example.com"))(t)
	get(r.Git("reset", "-q", "--hard", root))(t)
	r.refuses(r.config(), root, r.commit("apps/x", r.by(eve)), "unknown OpenPGP key")

	get(r.Git("reset", "-q", "--hard", root))(t)
	r.refuses(r.config(), root, r.commit("infra/x", r.by(r.bob)), "no rule permits bob to change infra/x")
	get(r.Git("reset", "-q", "--hard", root))(t)
	must(t, r.Remove("README"))
	r.refuses(r.config(), root, r.commit("apps/x", r.by(r.bob)), "no rule permits bob to change README")

	// A signer without a rule may not even move the head by an empty commit.
	get(r.Git("reset", "-q", "--hard", root))(t)
	c := r.config()
	c.Rules = c.Rules[:1]
	r.refuses(c, root, r.commit("", r.by(r.bob)), "whom no rule permits anything")
	r.refuses(c, get(r.Git("rev-parse", "HEAD"))(t), get(r.Git("rev-parse", "HEAD"))(t), "whom no rule permits anything")

	get(r.Git("reset", "-q", "--hard", root))(t)
	stolen := testenv.CommitOptions{Signer: r.alice, Author: "Bob <bob@example.com>"}
	r.refuses(r.config(), root, r.commit("x", stolen), "the key is not for the committer bob@example.com")
}

func TestEvilMerge(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	base := r.commit("README", r.by(r.alice))
	side := r.commit("apps/side", r.by(r.alice))
	get(r.Git("reset", "-q", "--hard", base))(t)
	main := r.commit("apps/main", r.by(r.bob))
	merge := func(extra string) string {
		t.Helper()
		get(r.Git("read-tree", "-m", "-u", main))(t)
		get(r.Git("checkout", "-q", side, "--", "apps/side"))(t)
		if extra != "" {
			must(t, r.Write(map[string]string{extra: "evil"}))
		}
		return get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: r.bob, Parents: []string{main, side}}))(t)
	}
	r.accepts(r.config(), main, merge(""))
	get(r.Git("reset", "-q", "--hard", main))(t)
	r.refuses(r.config(), main, merge("infra/evil"), "no rule permits bob to change infra/evil")
}

func TestWindows(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	head := r.commit("a", r.by(r.alice))
	old := r.now.AddDate(-1, 0, 0)
	change := func(f func(*Config)) Config {
		c := r.config()
		f(&c)
		return c
	}
	r.accepts(change(func(c *Config) { c.Signers[0].NotBefore, c.Signers[0].NotAfter = old, r.now.Add(time.Hour) }), root, head)
	r.refuses(change(func(c *Config) { c.Signers[0].NotAfter = r.now.Add(-time.Hour) }), root, head, "signer alice is not valid when the commit was first seen")
	r.refuses(change(func(c *Config) { c.Signers[0].NotBefore = r.now.Add(time.Hour) }), root, head, "signer alice is not valid when the commit was first seen")
	key := func(option string) Config {
		return change(func(c *Config) {
			c.Signers[0].SSH = line(t, strings.Replace(r.alice.AllowedSignersLine(), `namespaces="git"`, option, 1))
		})
	}
	r.refuses(key(`valid-before="20200101Z"`), root, head, "the key (allowed_signers:1) is not valid when")
	r.refuses(key(`valid-after="20990101Z"`), root, head, "the key (allowed_signers:1) is not valid when")
	r.refuses(key(`namespaces="file"`), root, head, `may not sign for the namespace "git"`)
	r.accepts(key(`namespaces="file,gi?"`), root, head)

	// The date of the commit can only narrow: one from before the key counts against it.
	dated := r.commit("b", testenv.CommitOptions{Signer: r.alice, Time: old})
	r.accepts(r.config(), head, dated)
	window := r.now.AddDate(0, -6, 0)
	r.refuses(change(func(c *Config) { c.Signers[0].NotBefore = window }), head, dated, "on the commit's own date")
	r.refuses(key(`valid-after="`+window.UTC().Format("20060102150405")+`Z"`), head, dated, "on the commit's own date")
	pgp := r.commit("c", testenv.CommitOptions{Signer: r.carol, Time: old})
	r.accepts(r.config(), dated, pgp)
	r.refuses(change(func(c *Config) { c.Signers[2].NotBefore = window }), dated, pgp, "on the commit's own date")
}

func TestTamperedCommits(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	must(t, r.Write(map[string]string{"apps/x": "1"}))
	get(r.Git("add", "-A"))(t)
	good := r.raw("")
	sign := func(raw []byte) []byte {
		return testenv.WithSignature(raw, get(r.alice.Sign(raw, r.now))(t))
	}
	evil := strings.Repeat("a", 40)
	signature := get(r.alice.Sign(good, r.now))(t)
	pgp := get(r.carol.Sign(good, r.now))(t)
	wrongNamespace := get(r.alice.SignNamespace(good, "file"))(t)

	firstLine, _, _ := strings.Cut(string(good), "\n")
	insert := func(after string, lines string) []byte {
		return bytes.Replace(sign(good), []byte(after), []byte(after+lines), 1)
	}
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"other tree":             {bytes.Replace(sign(good), []byte(firstLine), []byte("tree "+evil), 1), "does not fit the commit"},
		"other message":          {append(sign(good), "more\n"...), "does not fit the commit"},
		"pgp, other message":     {append(testenv.WithSignature(good, pgp), "more\n"...), "does not fit the commit"},
		"tree twice, signed":     {sign(append([]byte("tree "+evil+"\n"), good...)), "author header is missing"},
		"tree hidden at the end": {sign(r.raw("tree " + evil + "\n")), "the tree header is repeated"},
		"tree after gpgsig":      {bytes.Replace(sign(good), []byte("-----END SSH SIGNATURE-----\n"), []byte("-----END SSH SIGNATURE-----\ntree "+evil+"\n"), 1), "the tree header is repeated"},
		"author twice":           {sign(r.raw("author Bob <bob@example.com> 1 +0000\n")), "the author header is repeated"},
		"committer twice":        {sign(r.raw("committer Bob <bob@example.com> 1 +0000\n")), "the committer header is repeated"},
		"parent late":            {sign(r.raw("parent " + evil + "\n")), "the parent header is repeated"},
		"committer first":        {sign([]byte(firstLine + "\ncommitter A <a@b> 1 +0000\nauthor A <a@b> 1 +0000\n\nx\n")), "author header is missing"},
		"gpgsig twice":           {testenv.WithSignature(sign(good), signature), "the gpgsig header is repeated"},
		"gpgsig-sha256":          {bytes.Replace(sign(good), []byte("\ngpgsig "), []byte("\ngpgsig-sha256 "), 1), "gpgsig-sha256"},
		"gpgsig-sha256 beside":   {insert("committer Alice <alice@example.com> "+fmt.Sprint(r.now.Unix())+" +0000\n", "gpgsig-sha256 x\n"), "gpgsig-sha256"},
		"unknown header":         {sign(r.raw("x-force yes\n")), `unknown header "x-force"`},
		"NUL":                    {sign(append(bytes.Clone(good), 0)), "NUL"},
		"folded author":          {bytes.Replace(sign(good), []byte("\ncommitter"), []byte("\n more\ncommitter"), 1), "has a second line"},
		"carriage return":        {sign(r.raw("encoding utf-8\r\n")), "carriage return"},
		"two emails":             {sign(bytes.Replace(good, []byte("\ncommitter Alice <alice@example.com>"), []byte("\ncommitter Bob <bob@example.com> <alice@example.com>"), 1)), "committer header"},
		"wrong namespace":        {testenv.WithSignature(good, wrongNamespace), `made for the namespace "file"`},
		"not a signature":        {testenv.WithSignature(good, "hello\n"), "neither SSH nor OpenPGP"},
		"broken ssh signature":   {testenv.WithSignature(good, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"), "SSH signature:"},
		"broken pgp signature":   {testenv.WithSignature(good, "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n"), "OpenPGP signature:"},
		"two signatures in one":  {testenv.WithSignature(good, signature+signature), "not one armored signature"},
		"two pgp in one":         {testenv.WithSignature(good, pgp+pgp), "not one armored signature"},
		"long signature":         {testenv.WithSignature(good, "-----BEGIN SSH SIGNATURE-----\n"+strings.Repeat("A", maxSignature)), "the limit is"},
	} {
		t.Run(name, func(t *testing.T) {
			get(r.Git("update-ref", "HEAD", root))(t)
			id := get(r.CommitRaw(c.raw))(t)
			r.t = t
			r.refuses(r.config(), root, id, c.want)
		})
	}
	r.t = t
	get(r.Git("update-ref", "HEAD", root))(t)
	r.accepts(r.config(), root, get(r.CommitRaw(sign(good)))(t))
	// Headers that Git itself writes are fine, before and after the signature.
	extra := sign(r.raw("encoding ISO-8859-1\nmergetag object " + evil + "\n type commit\nchange-id zzz\n"))
	get(r.Git("update-ref", "HEAD", root))(t)
	r.accepts(r.config(), root, get(r.CommitRaw(extra))(t))
}

// lying returns other bytes than the ids ask for.
type lying struct {
	*repo
	swap map[string]string
}

func (l lying) Commit(ctx context.Context, id string) ([]byte, error) {
	if other, ok := l.swap[id]; ok {
		id = other
	}
	return l.repo.Commit(ctx, id)
}

func TestBytesMustBeTheOnesNamed(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("a", r.by(r.alice))
	good := r.commit("b", r.by(r.alice))
	unsigned := r.commit("b", testenv.CommitOptions{Parents: []string{root}})
	_, err := get(New(r.config()))(t).Verify(t.Context(), lying{r, map[string]string{unsigned: good}}, root, unsigned, r.now)
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "its bytes hash to "+good) {
		t.Errorf("got %v", err)
	}
	if _, err := r.verify(r.config(), root, strings.Repeat("1", 40)); err == nil || fault.KindOf(err) == fault.Denied {
		t.Errorf("a commit that cannot be read: %v", err) // not its author's fault
	}
	if _, err := get(New(r.config()))(t).Verify(t.Context(), failing{r}, root, good, r.now); fault.KindOf(err) != fault.Transient {
		t.Errorf("paths that cannot be read: %v", err)
	}
}

type failing struct{ *repo }

func (failing) ChangedPaths(context.Context, string, string) ([]string, error) {
	return nil, fault.New(fault.Transient, "test", "", "no")
}

// pgpKey makes an OpenPGP key and a signer configured with it.
func pgpKey(t *testing.T, c *packet.Config) *openpgp.Entity {
	t.Helper()
	return get(openpgp.NewEntity("Pat", "", "pat@example.com", c))(t)
}

func publicKey(t *testing.T, e *openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, e.Serialize(&b))
	return b.Bytes()
}

func TestOpenPGPKeys(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	must(t, r.Write(map[string]string{"x": "1"}))
	get(r.Git("add", "-A"))(t)
	at := func(d time.Duration) *packet.Config {
		return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return r.now.Add(d) }}
	}
	commit := func(e *openpgp.Entity, c *packet.Config) string {
		t.Helper()
		get(r.Git("update-ref", "HEAD", root))(t)
		raw := r.raw("")
		var b bytes.Buffer
		must(t, openpgp.ArmoredDetachSign(&b, e, bytes.NewReader(raw), c))
		return get(r.CommitRaw(testenv.WithSignature(raw, b.String()+"\n")))(t)
	}
	with := func(e *openpgp.Entity) Config {
		c := r.config()
		c.Signers = append(c.Signers, Signer{Name: "pat", OpenPGP: [][]byte{publicKey(t, e)}})
		c.Rules[0].Signers = append(c.Rules[0].Signers, "pat")
		return c
	}
	e := pgpKey(t, at(-time.Hour))
	r.accepts(with(e), root, commit(e, at(0)))

	if err := checkPGPSignature(&packet.Signature{Hash: crypto.SHA1}, e, r.now); err == nil || !strings.Contains(err.Error(), "it uses SHA-1") {
		t.Errorf("SHA-1: %v", err)
	}
	if err := checkPGPSignature(&packet.Signature{Hash: crypto.SHA256, SigType: packet.SigTypeText}, e, r.now); err == nil || !strings.Contains(err.Error(), "not over a document") {
		t.Errorf("a text signature: %v", err)
	}

	revoked := pgpKey(t, at(-time.Hour))
	id := commit(revoked, at(-time.Minute))
	must(t, revoked.RevokeKey(packet.KeyCompromised, "lost", at(0)))
	r.refuses(with(revoked), root, id, "revoked")

	short := at(-2 * time.Hour)
	short.KeyLifetimeSecs = 3600
	expired := pgpKey(t, short)
	r.refuses(with(expired), root, commit(expired, at(-90*time.Minute)), "expired")

	newer := pgpKey(t, at(0))
	get(r.Git("update-ref", "HEAD", root))(t)
	raw := bytes.ReplaceAll(r.raw(""), fmt.Append(nil, r.now.Unix()), fmt.Append(nil, r.now.Add(-time.Hour).Unix()))
	var b bytes.Buffer
	must(t, openpgp.ArmoredDetachSign(&b, newer, bytes.NewReader(raw), at(0)))
	r.refuses(with(newer), root, get(r.CommitRaw(testenv.WithSignature(raw, b.String()+"\n")))(t), "not valid on the commit's own date")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	weak := get(ssh.NewPublicKey(&get(rsa.GenerateKey(rand.Reader, 1024))(t).PublicKey))(t)
	for want, f := range map[string]func(*Config){
		"no signers":                     func(c *Config) { c.Signers = nil },
		"no rules":                       func(c *Config) { c.Rules = nil },
		"names the signer \"dave\"":      func(c *Config) { c.Rules[0].Signers = []string{"dave"} },
		"is not a glob":                  func(c *Config) { c.Rules[0].Paths = []string{"a["} },
		"\"/apps/**\" is not a glob":     func(c *Config) { c.Rules[0].Paths = []string{"/apps/**"} },
		"rule 1 has no paths":            func(c *Config) { c.Rules[0].Paths = nil },
		"rule 2 has no paths or no sign": func(c *Config) { c.Rules[1].Signers = nil },
		"is not a commit id":             func(c *Config) { c.Anchor = "main" },
		"signer \"alice\" has no keys":   func(c *Config) { c.Signers[0].SSH = nil },
		"is listed twice":                func(c *Config) { c.Signers[1].Name = "alice" },
		"a signer has no name":           func(c *Config) { c.Signers[1].Name = "" },
		"have the same key":              func(c *Config) { c.Signers[1].SSH = c.Signers[0].SSH },
		"notAfter is before":             func(c *Config) { c.Signers[0].NotBefore, c.Signers[0].NotAfter = r.now, r.now.Add(-1) },
		"has 1024 bits":                  func(c *Config) { c.Signers[0].SSH = []AllowedSigner{{Principals: []string{"*"}, Key: weak}} },
		"no principals":                  func(c *Config) { c.Signers[0].SSH[0].Principals = nil },
		"OpenPGP key 1":                  func(c *Config) { c.Signers[2].OpenPGP = [][]byte{[]byte("x")} },
		"private key":                    func(c *Config) { c.Signers[2].OpenPGP = [][]byte{get(os.ReadFile(r.carol.KeyFile))(t)} },
		"maxCommits":                     func(c *Config) { c.MaxCommits = -1 },
	} {
		c := r.config()
		f(&c)
		v, err := New(c)
		if v != nil || fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// sshObject makes a signed commit object with any key and format.
func sshObject(t *testing.T, signer ssh.Signer, email string, when time.Time) *object {
	t.Helper()
	raw := fmt.Appendf(nil, "tree %s\nauthor A <%s> %d +0000\ncommitter A <%[2]s> %[3]d +0000\n\nm\n", strings.Repeat("a", 40), email, when.Unix())
	sig := get(sshsig.Sign(bytes.NewReader(raw), signer, sshsig.HashSHA512, "git"))(t)
	return get(parse(testenv.WithSignature(raw, string(sshsig.Armor(sig)))))(t)
}

func TestSSHKeys(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ring := func(a ...AllowedSigner) keyring {
		return keyring{signers: []holder{{Signer: Signer{Name: "s", SSH: a}}}}
	}
	newKey := func() ssh.Signer {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		return get(ssh.NewSignerFromKey(k))(t)
	}

	weak := get(ssh.NewSignerFromKey(get(rsa.GenerateKey(rand.Reader, 1024))(t)))(t)
	if _, err := ring().verify(sshObject(t, weak, "a@b", now), now); err == nil || !strings.Contains(err.Error(), "has 1024 bits") {
		t.Errorf("RSA 1024: %v", err)
	}
	strong := get(ssh.NewSignerFromKey(get(rsa.GenerateKey(rand.Reader, 2048))(t)))(t)
	if _, err := ring(AllowedSigner{Principals: []string{"*"}, Key: strong.PublicKey()}).verify(sshObject(t, strong, "a@b", now), now); err != nil {
		t.Errorf("RSA 2048: %v", err)
	}
	// ssh-rsa is SHA-1. The library above refuses it when it parses; the format list here stands behind it.
	sig := get(strong.Sign(rand.Reader, []byte("x")))(t)
	blob := ssh.Marshal(struct {
		Magic                [6]byte
		Version              uint32
		Key, NS, Res, H, Sig string
	}{[6]byte{'S', 'S', 'H', 'S', 'I', 'G'}, 1, string(strong.PublicKey().Marshal()), "git", "", "sha512", string(ssh.Marshal(sig))})
	if _, err := parseSSHSignature(string(pem.EncodeToMemory(&pem.Block{Type: sshsig.PEMType, Bytes: blob}))); err == nil {
		t.Error("an ssh-rsa signature was accepted")
	}

	// A security key that nobody touched: user presence is bit 0 of the flags.
	sk := ssh.Marshal(struct{ Type, Key, App string }{ssh.KeyAlgoSKED25519, strings.Repeat("k", 32), "ssh:"})
	for flags, want := range map[byte]string{0: "not touched", 1: ""} {
		body := ssh.Marshal(&ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: make([]byte, 64), Rest: []byte{flags, 0, 0, 0, 1}})
		blob := ssh.Marshal(struct {
			Magic                [6]byte
			Version              uint32
			Key, NS, Res, H, Sig string
		}{[6]byte{'S', 'S', 'H', 'S', 'I', 'G'}, 1, string(sk), "git", "", "sha512", string(body)})
		_, err := parseSSHSignature(string(pem.EncodeToMemory(&pem.Block{Type: sshsig.PEMType, Bytes: blob})))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("flags %d: %v", flags, err)
		}
	}

	ca, user := newKey(), newKey()
	cert := func(f func(*ssh.Certificate)) ssh.Signer {
		c := &ssh.Certificate{Key: user.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"a@b"},
			ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix())}
		f(c)
		must(t, c.SignCert(rand.Reader, ca))
		return get(ssh.NewCertSigner(c, user))(t)
	}
	authority := AllowedSigner{Principals: []string{"*@b"}, CertAuthority: true, Key: ca.PublicKey()}
	good := cert(func(*ssh.Certificate) {})
	if m, err := ring(authority).verify(sshObject(t, good, "a@b", now), now); err != nil || m.fingerprint != ssh.FingerprintSHA256(user.PublicKey()) {
		t.Errorf("a good certificate: %v, %v", m, err)
	}
	plain := authority
	plain.CertAuthority = false
	for name, c := range map[string]struct {
		ring   keyring
		signer ssh.Signer
		email  string
		when   time.Time
	}{
		"the authority itself":     {ring(authority), ca, "a@b", now},
		"not an authority":         {ring(plain), good, "a@b", now},
		"the key, not its cert":    {ring(AllowedSigner{Principals: []string{"*"}, Key: user.PublicKey()}), good, "a@b", now},
		"another principal":        {ring(authority), good, "c@b", now},
		"a principal of no line":   {ring(authority), cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a@c"} }), "a@c", now},
		"no principal":             {ring(authority), cert(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), "a@b", now},
		"expired":                  {ring(authority), cert(func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Add(-time.Minute).Unix()) }), "a@b", now},
		"the commit's date before": {ring(authority), good, "a@b", now.Add(-2 * time.Hour)},
		"a host's":                 {ring(authority), cert(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), "a@b", now},
		"critical option":          {ring(authority), cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"verify-required": ""} }), "a@b", now},
	} {
		if m, err := c.ring.verify(sshObject(t, c.signer, c.email, c.when), now); err == nil {
			t.Errorf("%s: accepted as %v", name, m)
		}
	}
}

func TestParseAllowedSigners(t *testing.T) {
	t.Parallel()
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(testKey(t))))
	good := map[string]func(AllowedSigner) bool{
		"a@b " + key + " comment here": func(s AllowedSigner) bool { return slices.Equal(s.Principals, []string{"a@b"}) },
		"\"a@b,*@c\"\t" + key:          func(s AllowedSigner) bool { return slices.Equal(s.Principals, []string{"a@b", "*@c"}) },
		`* namespaces="git,file",cert-authority ` + key: func(s AllowedSigner) bool {
			return s.CertAuthority && slices.Equal(s.Namespaces, []string{"git", "file"})
		},
		`* VALID-AFTER="20200102" ` + key:                      func(s AllowedSigner) bool { return s.ValidAfter.Equal(time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)) },
		`* valid-before="20200102030405Z" ` + key:              func(s AllowedSigner) bool { return s.ValidBefore.Equal(time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)) },
		`* valid-after="202001020304",namespaces="a b" ` + key: func(s AllowedSigner) bool { return s.ValidAfter.Minute() == 4 && s.Namespaces[0] == "a b" },
	}
	for in, ok := range good {
		got, err := ParseAllowedSigners("f", []byte("# comment\n\n"+in+"\n"))
		if err != nil || len(got) != 1 || !ok(got[0]) || got[0].Location != "f:3" {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"a@b", key, "a@b ssh-ed25519", "a@b ssh-ed25519 !!!", "a@b ssh-rsa " + strings.Fields(key)[1], ", " + key, "\"a@b " + key,
		`* namespaces=git ` + key, `* namespaces="git ` + key, `* unknown ` + key, `* unknown="x" ` + key, `* cert-authority="x" ` + key,
		`* namespaces="a",namespaces="b" ` + key, `* valid-after="x" ` + key, `* valid-after="20201301" ` + key, `* namespaces="" ` + key,
		`* valid-after="20210101",valid-before="20200101" ` + key, `* namespaces="a"x ` + key, `* namespaces="a", ` + key,
	} {
		if got, err := ParseAllowedSigners("f", []byte("\n"+in)); err == nil || !strings.HasPrefix(err.Error(), "f:2: ") {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	if _, err := ParseAllowedSigners("f", make([]byte, maxSigners+1)); err == nil {
		t.Error("a file without end was accepted")
	}
}

func testKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAgainstSSHKeygen asks OpenSSH the same questions.
func TestAgainstSSHKeygen(t *testing.T) {
	t.Parallel()
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("no ssh-keygen on PATH: not compared with OpenSSH")
	}
	dir := t.TempDir()
	signer := get(testenv.NewSSHSigner(dir, "A", "a@b"))(t)
	other := get(testenv.NewSSHSigner(dir, "O", "a@b"))(t)
	now := time.Now()
	raw := fmt.Appendf(nil, "tree %s\nauthor A <a@b> %d +0000\ncommitter A <a@b> %[2]d +0000\n\nm\n", strings.Repeat("a", 40), now.Unix())
	key := strings.TrimSpace(signer.PublicKeyArmored())
	otherKey := strings.TrimSpace(other.PublicKeyArmored())
	day := func(d int) string { return now.UTC().AddDate(0, 0, d).Format("20060102") }
	i := 0
	for _, namespace := range []string{"git", "file"} {
		armored := get(signer.SignNamespace(raw, namespace))(t)
		for _, file := range []string{
			"a@b " + key, "c@d " + key, "*@b " + key, "* " + key, "?@b " + key, "*,!a@b " + key, "!c@d,a@b " + key, `"a@b,c@d" ` + key, "a@b " + otherKey,
			`a@b namespaces="git" ` + key, `a@b namespaces="file" ` + key, `a@b namespaces="g*,!git" ` + key, `a@b namespaces=git ` + key,
			`a@b valid-after="` + day(-1) + `Z" ` + key, `a@b valid-after="` + day(1) + `Z" ` + key,
			`a@b valid-before="` + day(-1) + `" ` + key, `a@b valid-before="` + day(1) + `",valid-after="` + day(-1) + `" ` + key,
			`a@b valid-after="` + day(1) + `",valid-before="` + day(-1) + `" ` + key,
			"a@b cert-authority " + key, "a@b nonsense " + key, "# a@b " + key, "", "a@b " + otherKey + "\na@b " + key,
			`a@b NameSpaces="git" ` + key, "a@b\t" + key,
		} {
			i++
			allowed, sig := filepath.Join(dir, fmt.Sprint("allowed", i)), filepath.Join(dir, fmt.Sprint("sig", i))
			must(t, os.WriteFile(allowed, []byte(file+"\n"), 0o600))
			must(t, os.WriteFile(sig, []byte(armored), 0o600))
			cmd := exec.Command(keygen, "-Y", "verify", "-f", allowed, "-I", "a@b", "-n", "git", "-s", sig)
			cmd.Stdin = bytes.NewReader(raw)
			cmd.Env = append(os.Environ(), "TZ=UTC")
			theirs := cmd.Run() == nil
			ours := false
			if lines, err := ParseAllowedSigners("f", []byte(file+"\n")); err == nil {
				c := get(parse(testenv.WithSignature(raw, armored)))(t)
				_, err := keyring{signers: []holder{{Signer: Signer{Name: "s", SSH: lines}}}}.verify(c, now)
				ours = err == nil
			}
			if ours != theirs {
				t.Errorf("namespace %s, %q: OpenSSH says %t, we say %t", namespace, file, theirs, ours)
			}
		}
	}
}

func FuzzParseCommit(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte("tree " + id + "\nparent " + id + "\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\ngpgsig x\n y\n\nm\n"))
	f.Add([]byte("tree " + id + "\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\ntree " + id + "\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parse(raw)
		if err != nil {
			return
		}
		// The tree is the first line, and there is no other before the message.
		head, _, _ := bytes.Cut(raw, []byte("\n\n"))
		if !bytes.HasPrefix(raw, []byte("tree "+c.tree+"\n")) || bytes.Count(append([]byte("\n"), head...), []byte("\ntree ")) != 1 {
			t.Errorf("tree %s of %q", c.tree, raw)
		}
		if c.signature == "" {
			if !bytes.Equal(c.payload, raw) {
				t.Error("an unsigned commit has another payload")
			}
			return
		}
		// What is signed is the object without one header: putting it back gives the object.
		header := []byte("gpgsig " + strings.ReplaceAll(strings.TrimSuffix(c.signature, "\n"), "\n", "\n ") + "\n")
		at := bytes.Index(raw, header)
		if at < 0 || !bytes.Equal(append(bytes.Clone(c.payload[:at]), c.payload[at:]...), append(bytes.Clone(raw[:at]), raw[at+len(header):]...)) {
			t.Errorf("payload %q of %q", c.payload, raw)
		}
		keyring{}.verify(c, time.Now())                                              // must not panic or hang
		sum := sha1.Sum(append(fmt.Appendf(nil, "commit %d\x00", len(raw)), raw...)) // git's object ids
		if err := checkID(raw, hex.EncodeToString(sum[:])); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseAllowedSigners(f *testing.F) {
	key := string(ssh.MarshalAuthorizedKey(testKey(f)))
	f.Add([]byte("a@b " + key))
	f.Add([]byte(`"a,b" namespaces="git",valid-after="20200101",cert-authority ` + key))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := ParseAllowedSigners("f", b)
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("error without a place: %v", err)
		}
		for _, l := range lines {
			if l.Key == nil || len(l.Principals) == 0 || l.Location == "" {
				t.Errorf("half a line: %+v", l)
			}
			matchList(l.Principals, "someone@example.com")
		}
	})
}
