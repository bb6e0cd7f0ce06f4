package commit

import (
	"bytes"
	"context"
	"crypto/sha1" // git's object ids
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tagging follows tags, which carol makes.
func (r *repo) tagging() Config {
	c := r.config()
	c.Tags = &Tags{Pattern: "v*", Signers: []string{"carol", "alice"}}
	return c
}

func TestTags(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	c := r.tagging()
	r.refuses(c, "", root, "no tag that fits v* leads to it")
	get(r.Repo.Tag("v1.0.0", "first", r.by(r.carol)))(t)
	ev := r.accepts(c, "", root)
	if ev.Facts["tag"] != "v1.0.0" || ev.Facts["tagSigner"] != "carol" || ev.Checks[0].Name != "tag" {
		t.Errorf("evidence %+v", ev)
	}
	r.refuses(revoking(c, anchor("key", r.carol.Fingerprint())), "", root, "tag v1.0.0: ")

	two := r.commit("apps/a", r.by(r.bob))
	get(r.Repo.Tag("w2", "another name", r.by(r.carol)))(t)
	r.refuses(c, root, two, "no tag that fits")
	get(r.Git("tag", "v2.0.0"))(t)
	r.refuses(c, root, two, "tag v2.0.0: it is a lightweight tag")
	get(r.Git("tag", "-f", "-a", "-m", "unsigned", "v2.0.0"))(t)
	r.refuses(c, root, two, "tag v2.0.0: unsigned") // GHSA-h829-5cg7-6hff
	get(r.Repo.Tag("v2.0.0", "by bob", r.by(r.bob)))(t)
	r.refuses(c, root, two, "signed by bob, who may not sign tags")
	get(r.Repo.Tag("v2.0.0", "by alice, with SSH", r.by(r.alice)))(t)
	r.accepts(c, root, two)
	// A good tag does not cover a commit that nobody may have made.
	evil := r.commit("infra/a", r.by(r.bob))
	get(r.Repo.Tag("v3.0.0", "evil", r.by(r.carol)))(t)
	r.refuses(c, two, evil, "no rule permits bob to change infra/a")
}

// The tags that git itself makes, with gpg's and ssh-keygen's signatures.
func TestTagsOfGit(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	root := r.commit("README", r.by(r.alice))
	sky := newAuthenticator(t, 5)
	c := r.tagging()
	c.Signers = append(c.Signers, Signer{Name: "sky", SSH: sky.line(t, "test@holdfast.test"), UserVerified: true})
	c.Tags.Signers = append(c.Tags.Signers, "sky")
	get(r.Git("-c", "gpg.format=ssh", "-c", "gpg.ssh.program="+sky.program(t), "-c", "user.signingKey=key::sk-ssh-ed25519@openssh.com AAAA", "tag", "-s", "-m", "signed", "v1.0.0"))(t)
	r.accepts(c, "", root)
}

func TestTamperedTags(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	head := r.commit("README", r.by(r.alice))
	tree := get(r.Git("rev-parse", "HEAD^{tree}"))(t)
	c := r.tagging()
	who := fmt.Sprintf("Carol <carol@example.com> %d +0000", r.now.Unix())
	good := fmt.Sprintf("object %s\ntype commit\ntag v1.0.0\ntagger %s\n\nmessage\n", head, who)
	sign := func(raw string) string { return raw + get(r.carol.Sign([]byte(raw), r.now))(t) }
	store := func(raw string) {
		t.Helper()
		file := filepath.Join(r.t.TempDir(), "tag")
		must(r.t, os.WriteFile(file, []byte(raw), 0o600))
		id := get(r.Git("hash-object", "-t", "tag", "-w", "--literally", file))(r.t)
		get(r.Git("update-ref", "refs/tags/v1.0.0", id))(r.t)
	}
	store(sign(good))
	r.accepts(c, "", head)
	first := get(r.carol.Sign([]byte(good), r.now))(t)
	for name, tc := range map[string]struct{ raw, want string }{
		"another name":          {sign(strings.Replace(good, "tag v1.0.0", "tag v0.9.0", 1)), "it says that it is called v0.9.0"},
		"another message":       {strings.Replace(sign(good), "\nmessage\n", "\nmessage!\n", 1), "does not fit the commit"},
		"after the signature":   {sign(good) + "more\n", "not one armored signature"},
		"two signatures":        {sign(good) + first, "more than one signature"},
		"signature in the text": {sign(strings.Replace(good, "message", "-----BEGIN SSH SIGNATURE-----", 1)), "more than one signature"},
		"a header more":         {sign(strings.Replace(good, "\n\n", "\nx-force yes\n\n", 1)), `unknown or repeated header "x-force"`},
		"tagger twice":          {sign(strings.Replace(good, "\n\n", "\ntagger "+who+"\n\n", 1)), `unknown or repeated header "tagger"`},
		"gpgsig-sha256":         {sign(strings.Replace(good, "\n\n", "\ngpgsig-sha256 x\n\n", 1)), `unknown or repeated header "gpgsig-sha256"`},
		"no tagger":             {sign(fmt.Sprintf("object %s\ntype commit\ntag v1.0.0\n\nmessage\n", head)), "the tagger header is missing"},
		"a tagger of two":       {sign(strings.Replace(good, "<carol@example.com>", "<mallory@example.com> <carol@example.com>", 1)), "the tagger header"},
		"NUL":                   {sign(good + "\x00"), "contains a NUL"},
		"no message":            {strings.TrimSuffix(good, "\nmessage\n"), "the headers do not end"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			store(tc.raw)
			r.refuses(c, "", head, tc.want)
		})
	}
	r.t = t
	for want, raw := range map[string]string{
		"it is of a tree, not of a commit": strings.Replace(strings.Replace(good, head, tree, 1), "type commit", "type tree", 1),
		"it is of a tag, not of a commit":  strings.Replace(good, "type commit", "type tag", 1),
		"the type header is missing":       strings.Replace(good, "type commit", "object "+head+"\ntype commit", 1),
		"carriage return":                  strings.Replace(good, "type commit", "type commit\r", 1),
		"its object is not a commit id":    strings.Replace(good, head, "HEAD", 1),
		"the limit is":                     good + strings.Repeat("x", maxObject),
	} {
		if _, err := parseTag([]byte(raw)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}

	// Other bytes than the id names, and a tag of another commit.
	store(sign(good))
	id := get(r.Git("rev-parse", "refs/tags/v1.0.0"))(t)
	for want, l := range map[string]lyingTag{
		"its bytes hash to": {r, id, []byte(good)},
		"it is of commit":   {r, "", []byte(sign(strings.Replace(good, head, strings.Repeat("1", 40), 1)))},
	} {
		if l.id == "" {
			sum := sha1.Sum(append(fmt.Appendf(nil, "tag %d\x00", len(l.raw)), l.raw...))
			l.id = hex.EncodeToString(sum[:])
		}
		if _, err := get(New(c))(t).Verify(t.Context(), l, "", head, r.now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// lyingTag hands out another tag object.
type lyingTag struct {
	*repo
	id  string
	raw []byte
}

func (l lyingTag) Tag(context.Context, string, string) (name, object string, raw []byte, err error) {
	return "v1.0.0", l.id, l.raw, nil
}

func FuzzParseTag(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte("object " + id + "\ntype commit\ntag v1\ntagger A <a@b> 1 +0000\n\nm\n" + beginSSH + "\nAAAA\n" + endSSH + "\n"))
	f.Add([]byte("object " + id + "\ntype commit\ntag v1\ntagger A <a@b> 1 +0000\n\n-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := parseTag(raw)
		if err != nil {
			return
		}
		// What is signed, and the signature, are the object, and nothing else is.
		if !bytes.Equal(append(bytes.Clone(o.payload), o.signature...), raw) || !bytes.HasPrefix(raw, []byte("object "+o.target+"\ntype commit\ntag "+o.name+"\n")) {
			t.Errorf("%+v of %q", o, raw)
		}
		_, _ = keyring{}.verify(&o.object, time.Now()) // must not panic or hang
	})
}
