package commit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // git's object ids
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
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

func (r *repo) File(_ context.Context, id, name string) ([]byte, error) {
	out, err := exec.Command("git", "-C", r.Dir, "cat-file", "blob", id+":"+name).Output()
	if err != nil {
		return nil, fs.ErrNotExist
	}
	return out, nil
}

func (r *repo) Notes(_ context.Context, ref, id string) ([][]byte, error) {
	out, err := exec.Command("git", "-C", r.Dir, "notes", "--ref", ref, "show", id).Output()
	if err != nil {
		return nil, nil
	}
	return [][]byte{out}, nil
}

func (r *repo) Tag(_ context.Context, pattern, id string) (name, object string, raw []byte, err error) {
	out, err := exec.Command("git", "-C", r.Dir, "tag", "--points-at", id, "--list", pattern, "--format", "%(refname:short) %(objectname) %(objecttype)").Output()
	fields := strings.Fields(string(out))
	if err != nil || len(fields) < 3 {
		return "", "", nil, fs.ErrNotExist
	}
	if fields[2] == "tag" {
		raw, err = exec.Command("git", "-C", r.Dir, "cat-file", "tag", fields[1]).Output()
	}
	return fields[0], fields[1], raw, err
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
	v, answers := get(New(c))(r.t), verify.NewAnswers()
	ev, err := v.Verify(r.t.Context(), Collect(r, answers), from, head, r.now)
	if k := fault.KindOf(err); c.Revocations == nil && (err == nil || k == fault.Denied || k == fault.Waiting) { // it can be judged again from what was answered alone
		again, errAgain := v.Verify(r.t.Context(), Replay(answers.Complete(verify.Inputs{})), from, head, r.now)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || !reflect.DeepEqual(ev, again) {
			r.t.Errorf("judged again, it is %v\n%+v\nand was %v\n%+v", errAgain, again, err, ev)
		}
	}
	return ev, err
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
	if last := ev.Checks[len(ev.Checks)-1]; fault.HintOf(err) == "" || ev.Verified() || last.OK || last.Next != fault.HintOf(err) {
		r.t.Errorf("hint %q, evidence verified: %t, last check %+v", fault.HintOf(err), ev.Verified(), last)
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
	c.Anchor, c.MaxCommits = three, 1 // what is behind the anchor is not looked at
	r.accepts(c, "", three)
	if _, err := get(New(r.config()))(t).Verify(t.Context(), r, "", three, time.Time{}); fault.KindOf(err) != fault.Internal || err == nil {
		t.Errorf("no time of first sight: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, from := range []string{"", three} {
		if ev, err := get(New(r.config()))(t).Verify(ctx, r, from, three, r.now); !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Transient || ev.Verified() {
			t.Errorf("cancelled, from %q: %v", from, err)
		}
	}
	if _, err := r.verify(c, "", "main"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a branch as head: %v", err)
	}
}

func TestLongHistoryIsSummarised(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	head := r.commit("", r.by(r.bob))
	for range maxChecks + 1 {
		head = r.commit("", r.by(r.alice))
	}
	ev := r.accepts(r.config(), "", head)
	if len(ev.Checks) != maxChecks+1 || !strings.HasPrefix(ev.Checks[0].Detail, "2 earlier commits") || ev.Facts["commits"] != maxChecks+2 {
		t.Errorf("%d checks, first %+v", len(ev.Checks), ev.Checks[0])
	}
	c := r.config()
	c.Rules = c.Rules[:1]
	if ev, err := r.verify(c, "", head); err == nil || len(ev.Checks) != 1 || ev.Checks[0].OK {
		t.Errorf("the summary promises what was refused: %+v, %v", ev.Checks, err)
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
	c := r.config()
	c.Anchor = unsigned // the operator's own word
	for _, from := range []string{"", root, unsigned} {
		r.accepts(c, from, unsigned)
	}

	get(r.Git("reset", "-q", "--hard", root))(t)
	mallory := get(testenv.NewSSHSigner(t.TempDir(), "Mallory", "alice@example.com"))(t)
	r.refuses(r.config(), root, r.commit("apps/x", r.by(mallory)), "unknown SSH key "+mallory.Fingerprint())
	eve := get(testenv.NewOpenPGPSigner(t.TempDir(), "Carol", "carol@example.com"))(t)
	get(r.Git("reset", "-q", "--hard", root))(t)
	evil := r.commit("apps/x", r.by(eve))
	r.refuses(r.config(), root, evil, "unknown OpenPGP key")
	c = r.config() // of SSH signers alone
	c.Signers = c.Signers[:2]
	c.Rules[0].Signers = []string{"alice"}
	r.refuses(c, root, evil, "no signer has one")

	get(r.Git("reset", "-q", "--hard", root))(t)
	r.refuses(r.config(), root, r.commit("infra/x", r.by(r.bob)), "no rule permits bob to change infra/x")
	get(r.Git("reset", "-q", "--hard", root))(t)
	must(t, r.Remove("README"))
	r.refuses(r.config(), root, r.commit("apps/x", r.by(r.bob)), "no rule permits bob to change README")

	// A signer without a rule may not even move the head by an empty commit.
	get(r.Git("reset", "-q", "--hard", root))(t)
	c = r.config()
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
	packets, _, err := onePacket(pgp)
	must(t, err)
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
		"gpgsig-sha256":          {bytes.Replace(sign(good), []byte("\ngpgsig "), []byte("\ngpgsig-sha256 "), 1), "signed for a SHA-256 repository"},
		"gpgsig-sha256 beside":   {insert("committer Alice <alice@example.com> "+fmt.Sprint(r.now.Unix())+" +0000\n", "gpgsig-sha256 x\n"), "gpgsig-sha256"},
		"unknown header":         {sign(r.raw("x-force yes\n")), `unknown header "x-force"`},
		"NUL":                    {sign(append(bytes.Clone(good), 0)), "by Alice <alice@example.com>: malformed: it contains a NUL"},
		"folded author":          {bytes.Replace(sign(good), []byte("\ncommitter"), []byte("\n more\ncommitter"), 1), "has a second line"},
		"carriage return":        {sign(r.raw("encoding utf-8\r\n")), "carriage return"},
		"encoding UTF-7":         {sign(r.raw("encoding UTF-7\n")), `its encoding "UTF-7" is not one`},
		"encoding UTF-16":        {sign(r.raw("encoding UTF-16LE\n")), `its encoding "UTF-16LE" is not one`},
		"encoding twice":         {sign(r.raw("encoding utf-8\nencoding ISO-8859-1\n")), "the encoding header is repeated"},
		"no encoding":            {sign(bytes.Replace(good, []byte("author Alice"), []byte("author Ali\xe7e"), 1)), "is not UTF-8, and no encoding"},
		"not the encoding":       {sign(bytes.Replace(r.raw("encoding UTF-8\n"), []byte("author Alice"), []byte("author Ali\xe7e"), 1)), "is not UTF-8, and no encoding"},
		"two emails":             {sign(bytes.Replace(good, []byte("\ncommitter Alice <alice@example.com>"), []byte("\ncommitter Bob <bob@example.com> <alice@example.com>"), 1)), "committer header"},
		"wrong namespace":        {testenv.WithSignature(good, wrongNamespace), `made for the namespace "file"`},
		"not a signature":        {testenv.WithSignature(good, "hello\n"), "neither SSH nor OpenPGP nor X.509"},
		"broken ssh signature":   {testenv.WithSignature(good, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"), "SSH signature:"},
		"broken pgp signature":   {testenv.WithSignature(good, "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n"), "OpenPGP signature:"},
		"two signatures in one":  {testenv.WithSignature(good, signature+signature), "not one armored signature"},
		"text after pgp":         {testenv.WithSignature(good, pgp+"more\n"), "not one armored signature"},
		"two packets in one pgp": {testenv.WithSignature(good, armored(t, openpgp.SignatureType, append(bytes.Clone(packets), packets...))), "more than one packet"},
		"pgp with broken base64": {testenv.WithSignature(good, strings.Replace(pgp, "\n\n", "\n\n!!!!\n", 1)), "armor does not parse"},
		"another pgp packet":     {testenv.WithSignature(good, armored(t, openpgp.SignatureType, publicKey(t, pgpKey(t, nil)))), "not a signature that names"},
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
	extra := sign(bytes.Replace(r.raw("encoding ISO-8859-1\nmergetag object "+evil+"\n type commit\nchange-id zzz\n"), []byte("author Alice"), []byte("author Ali\xe7e"), 1))
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
	absent := strings.Repeat("1", 40)
	for _, from := range []string{root, absent} {
		if _, err := r.verify(r.config(), from, absent); err == nil || fault.KindOf(err) == fault.Denied {
			t.Errorf("a commit that cannot be read, from %s: %v", from, err) // not its author's fault
		}
	}
	if _, err := get(New(r.config()))(t).Verify(t.Context(), failing{r}, root, good, r.now); fault.KindOf(err) != fault.Transient {
		t.Errorf("paths that cannot be read: %v", err)
	}
}

// testdata/shattered-1.b64 is the beginning of the first of the two files that
// collide under SHA-1 (https://shattered.io). No such bytes are known that begin as
// an object of git does, so the check is asked without.
func TestCollisionsAreRefused(t *testing.T) {
	t.Parallel()
	raw := get(base64.StdEncoding.DecodeString(strings.ReplaceAll(string(get(os.ReadFile("testdata/shattered-1.b64"))(t)), "\n", "")))(t)
	sum := sha1.Sum(raw)
	if err := checkSum(hex.EncodeToString(sum[:]), raw); err == nil || !strings.Contains(err.Error(), "collide under SHA-1") {
		t.Errorf("a collision: %v", err)
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

// armored puts OpenPGP packets into armor of a kind.
func armored(t *testing.T, kind string, packets []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := get(armor.Encode(&b, kind, nil))(t)
	get(w.Write(packets))(t)
	must(t, w.Close())
	return b.String() + "\n"
}

func TestOnePacket(t *testing.T) {
	t.Parallel()
	// RFC 4880, 5.2.3: version 4, over a document, RSA, SHA-256, its time and no
	// other subpacket, two bytes of the hash, and one number.
	anonymous := []byte("\xc2\x13\x04\x00\x01\x08\x00\x06\x05\x02\x60\x00\x00\x00\x00\x00\x00\x00\x00\x08\xff")
	const end = "-----END PGP SIGNATURE-----\n"
	for name, c := range map[string]struct{ in, want string }{
		"no key named": {armored(t, openpgp.SignatureType, anonymous), "names its key"},
		"a message":    {strings.Replace(armored(t, "PGP MESSAGE", anonymous), "-----END PGP MESSAGE-----\n", end, 1), "armor"},
		"no armor":     {"-----BEGIN \n" + end, "armor"},
		"no packet":    {armored(t, openpgp.SignatureType, nil), "it does not parse"},
	} {
		if _, _, err := onePacket(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A subkey must have been valid itself on the commit's date.
func TestSubkeyWindow(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(d time.Duration) *packet.Config {
		return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return now.Add(d) }}
	}
	e := pgpKey(t, at(-2*time.Hour))
	must(t, e.AddSigningSubkey(at(-time.Hour)))
	signing, stranger := e.Subkeys[len(e.Subkeys)-1].PublicKey.KeyId, uint64(1)
	for _, c := range []struct {
		name   string
		issuer *uint64
		date   time.Duration
		want   string // empty: accepted
	}{
		{"the subkey", &signing, 0, ""},
		{"before the subkey", &signing, -90 * time.Minute, "the subkey was not valid"},
		{"before the key", &signing, -3 * time.Hour, "the key was not valid"},
		{"another key", &stranger, 0, "not part of the key"},
	} {
		sig := &packet.Signature{Hash: crypto.SHA256, SigType: packet.SigTypeBinary, IssuerKeyId: c.issuer}
		err := checkPGPSignature(sig, e, now.Add(c.date))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	sig := &packet.Signature{Hash: crypto.SHA256, SigType: packet.SigTypeBinary, IssuerKeyId: &e.PrimaryKey.KeyId}
	if err := checkPGPSignature(sig, &openpgp.Entity{PrimaryKey: e.PrimaryKey}, now); err == nil {
		t.Error("a key without an identity that it signed itself")
	}
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
	weakPGP := &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 1024}
	weak := get(ssh.NewPublicKey(&get(rsa.GenerateKey(rand.Reader, 1024))(t).PublicKey))(t)
	for want, f := range map[string]func(*Config){
		"no signers":                     func(c *Config) { c.Signers = nil },
		"no rules":                       func(c *Config) { c.Rules = nil },
		"names the signer \"dave\"":      func(c *Config) { c.Rules[0].Signers = []string{"dave"} },
		"is not a glob":                  func(c *Config) { c.Rules[0].Paths = []string{"a["} },
		"\"\" is not a glob":             func(c *Config) { c.Rules[0].Paths = []string{""} },
		"\"./apps/**\" is not a glob":    func(c *Config) { c.Rules[0].Paths = []string{"./apps/**"} },
		"\"/apps/**\" is not a glob":     func(c *Config) { c.Rules[0].Paths = []string{"/apps/**"} },
		"rule 1 has no paths":            func(c *Config) { c.Rules[0].Paths = nil },
		"rule 2 has no paths or no sign": func(c *Config) { c.Rules[1].Signers = nil },
		"is not a commit id":             func(c *Config) { c.Anchor = "main" },
		"signer \"alice\" has no keys":   func(c *Config) { c.Signers[0].SSH = nil },
		"is listed twice":                func(c *Config) { c.Signers[1].Name = "alice" },
		"a signer has no name":           func(c *Config) { c.Signers[1].Name = "" },
		"have the same key":              func(c *Config) { c.Signers[1].SSH = c.Signers[0].SSH },
		"\"carol\" and \"dave\" have":    func(c *Config) { c.Signers = append(c.Signers, Signer{Name: "dave", OpenPGP: c.Signers[2].OpenPGP}) },
		"notAfter is before":             func(c *Config) { c.Signers[0].NotBefore, c.Signers[0].NotAfter = r.now, r.now.Add(-1) },
		"has 1024 bits":                  func(c *Config) { c.Signers[0].SSH = []AllowedSigner{{Principals: []string{"*"}, Key: weak}} },
		"no key":                         func(c *Config) { c.Signers[0].SSH = []AllowedSigner{{Principals: []string{"*"}}} },
		"RSA key has 1024 bits":          func(c *Config) { c.Signers[2].OpenPGP = [][]byte{publicKey(r.t, pgpKey(r.t, weakPGP))} },
		"it is empty":                    func(c *Config) { c.Signers[2].OpenPGP = [][]byte{nil} },
		"no principals":                  func(c *Config) { c.Signers[0].SSH[0].Principals = nil },
		"OpenPGP key 1: it does not":     func(c *Config) { c.Signers[2].OpenPGP = [][]byte{[]byte("x")} },
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

func TestNewAccepts(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	for name, f := range map[string]func(*Config){
		"one key twice for one signer": func(c *Config) { c.Signers[0].SSH = append(c.Signers[0].SSH, c.Signers[0].SSH...) },
		"one authority for two signers": func(c *Config) {
			authority := c.Signers[0].SSH[0]
			for i := range c.Signers[:2] {
				c.Signers[i].SSH = []AllowedSigner{{Principals: []string{c.Signers[i].Name}, CertAuthority: true, Key: authority.Key}}
			}
		},
		"an end without a beginning": func(c *Config) { c.Signers[0].NotAfter = r.now },
	} {
		c := r.config()
		f(&c)
		if _, err := New(c); err != nil {
			t.Errorf("%s: %v", name, err)
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

	// The parsers are not ours: what makes one panic is refused.
	if m, err := ring().verify(nil, now); err == nil {
		t.Errorf("a panic: %v", m)
	}

	// A signature is one block of its type, and nothing more.
	armored := sshsig.Armor(get(sshsig.Sign(strings.NewReader("x"), strong, sshsig.HashSHA512, "git"))(t))
	block, _ := pem.Decode(armored)
	for name, b := range map[string]*pem.Block{
		"another type": {Type: "SIGNATURE", Bytes: block.Bytes},
		"headers":      {Type: block.Type, Bytes: block.Bytes, Headers: map[string]string{"a": "b"}},
	} {
		if _, err := parseSSHSignature(string(pem.EncodeToMemory(b))); err == nil || !strings.Contains(err.Error(), "not one armored signature") {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A security key that nobody touched: user presence is bit 0 of the flags.
	sk := ssh.Marshal(struct{ Type, Key, App string }{ssh.KeyAlgoSKED25519, strings.Repeat("k", 32), "ssh:"})
	for rest, want := range map[string]string{"\x00\x00\x00\x00\x01": "not touched", "": "not touched", "\x01\x00\x00\x00\x01": ""} {
		body := ssh.Marshal(&ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: make([]byte, 64), Rest: []byte(rest)})
		blob := ssh.Marshal(struct {
			Magic                [6]byte
			Version              uint32
			Key, NS, Res, H, Sig string
		}{[6]byte{'S', 'S', 'H', 'S', 'I', 'G'}, 1, string(sk), "git", "", "sha512", string(body)})
		_, err := parseSSHSignature(string(pem.EncodeToMemory(&pem.Block{Type: sshsig.PEMType, Bytes: blob})))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("flags and counter %q: %v", rest, err)
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
	sha1CA := get(ssh.NewSignerWithAlgorithms(strong.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSA}))(t)
	sha1Cert := &ssh.Certificate{Key: user.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"a@b"}, ValidBefore: ssh.CertTimeInfinity}
	must(t, sha1Cert.SignCert(rand.Reader, sha1CA))
	strongAuthority := AllowedSigner{Principals: []string{"*@b"}, CertAuthority: true, Key: strong.PublicKey()}
	if checkKey(sha1Cert) == nil {
		t.Error("a certificate counts as a key")
	}
	unsigned := *sha1Cert
	unsigned.Signature = nil
	if err := authority.permitsCert(&unsigned, sshObject(t, user, "a@b", now), now); err == nil {
		t.Error("a certificate without a signature")
	}
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
		"signed with SHA-1":        {ring(strongAuthority), get(ssh.NewCertSigner(sha1Cert, user))(t), "a@b", now},
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
		`* cert-authority,namespaces="git" ` + key: func(s AllowedSigner) bool {
			return s.CertAuthority && slices.Equal(s.Namespaces, []string{"git"})
		},
		`* namespaces="a\" b,c" ` + key:                        func(s AllowedSigner) bool { return slices.Equal(s.Namespaces, []string{`a" b`, "c"}) },
		`* namespaces="a\b" ` + key:                            func(s AllowedSigner) bool { return s.Namespaces[0] == `a\b` },
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
		`* namespaces="a"cert-authority ` + key, `* valid-after="" ` + key, `* valid-before="Z" ` + key,
	} {
		if got, err := ParseAllowedSigners("f", []byte("\n"+in)); err == nil || !strings.HasPrefix(err.Error(), "f:2: ") {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	_, short, _ := strings.Cut(key, " ")
	certificate := &ssh.Certificate{Key: testKey(t), CertType: ssh.UserCert}
	_, ca, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	must(t, certificate.SignCert(rand.Reader, get(ssh.NewSignerFromKey(ca))(t)))
	for in, want := range map[string]string{
		strings.Repeat("#\n", maxSigners/2) + "#": "more than",
		"a@b":                              "no key: want principals",
		"\"a@b " + key:                     "principals: the quotes do not end",
		`* namespaces="git ` + key:         "options: the quotes do not end",
		`* namespaces="git\`:               "options: the quotes do not end",
		`* namespaces="git\\" ` + key:      "options: the quotes do not end",
		`* namespaces=git ` + key:          "the value is not in quotes",
		"a@b ssh-ed25519 " + short[:7]:     "the key is not base64",
		"a@b ssh-ed25519 " + short[:8]:     "the key does not parse",
		"a@b ecdsa-sha2-nistp256 " + short: "the key is of type ssh-ed25519",
		"a@b " + string(ssh.MarshalAuthorizedKey(certificate)): "list its authority with cert-authority",
	} {
		if got, err := ParseAllowedSigners("f", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %+v, %v; want %q", in, got, err, want)
		}
	}
}

func TestMatchList(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		list, s string
		want    bool
	}{
		{"a@b", "a@b", true}, {"a@b", "a@bc", false}, {"a@b", "a@", false}, {"a@b", "", false}, {"*", "", true}, {"?", "", false},
		{"a@?", "a@bc", false}, {"*@b", "a@b", true}, {"*@b", "a@b@c", false}, {"a*b*c", "axbxbxc", true}, {"a*b*c", "axbxbx", false}, {"a**", "a", true},
		{"c@d,a@b", "a@b", true}, {"*,!a@b", "a@b", false}, {"!a@b,*", "a@b", false}, {"!c@d", "a@b", false},
	} {
		if got := matchList(strings.Split(c.list, ","), c.s); got != c.want {
			t.Errorf("%s and %q: %t", c.list, c.s, got)
		}
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

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("a", 40)
	const people = "author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n"
	for _, c := range []struct{ raw, want string }{
		{strings.Repeat("x", maxObject+1), "the limit is"},
		{"\nmessage", "the first header is not a tree id"},
		{people + "\nm", "the first header is not a tree id"},
		{"tree " + id[:39] + "\n" + people + "\nm", "the first header is not a tree id"},
		{"tree " + id + "\nparent HEAD\n" + people + "\nm", "a parent is not a commit id"},
		{"tree " + id + "\n" + people, "the headers do not end"},
		{" more\n\nm", "begins with a continuation line"},
		{"tree\n\nm", "has no value"},
	} {
		if _, err := parse([]byte(c.raw)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want %q", c.raw, err, c.want)
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
		if err := checkID("commit", raw, hex.EncodeToString(sum[:])); err != nil {
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
