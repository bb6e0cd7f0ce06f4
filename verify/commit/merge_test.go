package commit

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// forge is the key with which a forge signs the merges that it makes.
func (r *repo) forge() (*testenv.Signer, Config) {
	r.t.Helper()
	forge := get(testenv.NewOpenPGPSigner(r.t.TempDir(), "GitHub", "noreply@github.com"))(r.t)
	c := r.config()
	c.Signers = append(c.Signers, Signer{Name: "github", OpenPGP: [][]byte{[]byte(forge.PublicKeyArmored())}})
	for i := range c.Rules {
		c.Rules[i].ForgeMerges = []string{"github"}
	}
	return forge, c
}

func TestForgeMerges(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	forge, c := r.forge()
	must(t, r.Write(map[string]string{"apps/shared": "0"}))
	base := r.commit("README", r.by(r.alice))
	side := r.commit("apps/side", r.by(r.bob))
	unsigned := r.commit("apps/side", testenv.CommitOptions{})
	get(r.Git("reset", "-q", "--hard", base))(t)
	byForge := r.commit("apps/side", r.by(forge))
	get(r.Git("reset", "-q", "--hard", base))(t)
	infra := r.commit("infra/side", r.by(r.bob))
	get(r.Git("reset", "-q", "--hard", base))(t)
	main := r.commit("apps/shared", r.by(r.alice))
	merge := func(tip string, extra map[string]string, parents ...string) string {
		t.Helper()
		get(r.Git("reset", "-q", "--hard", main))(t)
		get(r.Git("merge", "-q", "--no-commit", "--no-ff", tip))(t)
		must(t, r.Write(extra))
		return get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: forge, Parents: append([]string{main, tip}, parents...)}))(t)
	}
	good := merge(side, nil)
	ev := r.accepts(c, main, good)
	if ev.Facts["signer"] != "bob" || ev.Facts["mergedBy"] != "github" || !strings.Contains(ev.Checks[0].Detail, "merged by github") {
		t.Errorf("evidence %+v", ev)
	}
	r.refuses(revoking(c, anchor("key", r.bob.Fingerprint())), main, good, "was revoked on")
	r.refuses(revoking(c, anchor("key", forge.Fingerprint())), main, good, "was revoked on")
	without := r.config()
	r.refuses(without, main, good, "unknown OpenPGP key")
	other := c
	other.Rules = append([]Rule{}, c.Rules...)
	other.Rules[1].ForgeMerges = nil // bob's own rule
	r.refuses(other, main, good, "no rule permits bob, merged by github, to change apps/side")

	r.refuses(c, main, merge(unsigned, nil), "merged by github: commit "+unsigned[:12])
	r.refuses(c, main, merge(byForge, nil), "is signed by github too")
	r.refuses(c, main, merge(infra, nil), "no rule permits bob, merged by github, to change infra/side")
	r.refuses(c, main, merge(side, map[string]string{"apps/evil": "1"}), "apps/evil is not as bob has it")
	r.refuses(c, main, merge(side, map[string]string{"apps/side": "1"}), "apps/side is not as bob has it")
	// A merge that takes back what others did since, and what bob has in an older form.
	r.refuses(c, main, merge(side, map[string]string{"apps/shared": "0"}), "apps/shared is changed, and bob did not change it")
	r.refuses(c, main, merge(side, nil, infra), "counts on merges of two commits only")

	get(r.Git("reset", "-q", "--hard", main))(t)
	r.refuses(c, main, r.commit("apps/squashed", r.by(forge)), "counts on merges of two commits only")
	// Histories that have nothing in common.
	get(r.Git("checkout", "-q", "--orphan", "other"))(t)
	stranger := get(r.Repo.Commit("orphan", testenv.CommitOptions{Signer: r.bob, Parents: []string{}}))(t)
	get(r.Git("checkout", "-q", "-f", "main"))(t)
	r.refuses(c, main, get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: forge, Parents: []string{main, stranger}}))(t), "no one commit in which they parted")
}

// After a merge of main into the branch, that merge is where both sides parted.
func TestForgeMergeOfABranchBroughtUpToDate(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	forge, c := r.forge()
	must(t, r.Write(map[string]string{"apps/shared": "0"}))
	base := r.commit("README", r.by(r.alice))
	one := r.commit("apps/shared", r.by(r.alice)) // on main
	get(r.Git("reset", "-q", "--hard", base))(t)
	side := r.commit("apps/side", r.by(r.bob))
	get(r.Git("merge", "-q", "--no-commit", "--no-ff", one))(t)
	updated := get(r.Repo.Commit("merge main", testenv.CommitOptions{Signer: r.bob, Parents: []string{side, one}}))(t)
	get(r.Git("reset", "-q", "--hard", one))(t)
	two := r.commit("apps/shared", r.by(r.alice)) // main goes on
	get(r.Git("merge", "-q", "--no-commit", "--no-ff", updated))(t)
	good := get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: forge, Parents: []string{two, updated}}))(t)
	r.accepts(c, two, good)
	// The branch has the older apps/shared, by merging it. To take that is not bob's change.
	get(r.Git("checkout", "-q", one, "--", "apps/shared"))(t)
	evil := get(r.Repo.Commit("merge", testenv.CommitOptions{Signer: forge, Parents: []string{two, updated}}))(t)
	r.refuses(c, two, evil, "apps/shared is changed, and bob did not change it")
}

func TestMergeBaseIsGits(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	// A ladder of merges, with dates that do not help.
	a := []string{r.commit("a", r.by(r.alice))}
	b := []string{a[0]}
	for i := range 5 {
		o := testenv.CommitOptions{Parents: []string{a[len(a)-1]}, Time: r.now.AddDate(0, 0, -i)}
		if i%2 == 1 {
			o.Parents = append(o.Parents, b[len(b)-1])
		}
		a = append(a, get(r.Repo.Commit("a", o))(t))
		o = testenv.CommitOptions{Parents: []string{b[len(b)-1]}, Time: r.now.AddDate(0, 0, i-9)}
		b = append(b, get(r.Repo.Commit("b", o))(t))
	}
	w := &walk{v: get(New(r.config()))(t), h: r}
	for _, x := range a {
		for _, y := range b {
			want := strings.Fields(get(r.Git("merge-base", "--all", x, y))(t))
			got, err := w.mergeBase(t.Context(), x, y)
			if len(want) == 1 && got != want[0] || len(want) > 1 && err == nil {
				t.Errorf("%s and %s: %s, %v, git says %v", x, y, got, err, want)
			}
		}
	}
	// A common ancestor that is seen first, and lies behind another.
	behind := get(r.Repo.Commit("behind", testenv.CommitOptions{Parents: a[:1]}))(t)
	before := get(r.Repo.Commit("before", testenv.CommitOptions{Parents: []string{behind}, Time: r.now.AddDate(0, 0, -30)}))(t)
	x := get(r.Repo.Commit("x", testenv.CommitOptions{Parents: []string{behind, before}}))(t)
	y := get(r.Repo.Commit("y", testenv.CommitOptions{Parents: []string{behind, before}}))(t)
	if got, err := w.mergeBase(t.Context(), x, y); got != before || got != get(r.Git("merge-base", "--all", x, y))(t) {
		t.Errorf("the base is %s, %v, want %s", got, err, before)
	}
	w.v.most = 1
	if _, err := w.mergeBase(t.Context(), a[5], b[5]); err == nil || !strings.Contains(err.Error(), "more than 1 commits") {
		t.Errorf("a limit of 1: %v", err)
	}
}
