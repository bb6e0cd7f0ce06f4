package commit

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
)

// gitsign CVE-2026-44309, CVE-2026-44310, CVE-2024-51746 and PR 810; go-git
// CVE-2026-45022; gitverify GHSA-h829-5cg7-6hff; timestamp-authority
// CVE-2026-39984; x/crypto CVE-2026-39831.
func TestClass23_commit_signatures_are_confused(t *testing.T) {
	t.Parallel()
	r, s, c, root := certified(t)
	raw := r.raw("")
	evil := strings.Repeat("a", 40)
	store := func(t *testing.T, raw []byte) string {
		t.Helper()
		get(r.Git("update-ref", "HEAD", root))(t)
		return get(r.CommitRaw(raw))(t)
	}
	dana := func(raw []byte) []byte {
		return testenv.WithSignature(raw, s.gitsign("dana@example.com", raw).sign())
	}
	for name, tc := range map[string]struct {
		raw  func() []byte
		want string
	}{
		"CVE-2026-45022, CVE-2026-44309: a signature over bytes that a library wrote anew": {func() []byte {
			// What is signed has one tree; the object that is read has two.
			return bytes.Replace(dana(raw), []byte("\nauthor "), []byte("\ntree "+evil+"\nauthor "), 1)
		}, "author header is missing"},
		"CVE-2024-51746: the log entry of something else": {func() []byte {
			g := s.gitsign("dana@example.com", raw)
			g.rekord = func(_, signature []byte) []byte {
				return get(hashedRekord([]byte("something else"), signature, g.cert))(t)
			}
			return testenv.WithSignature(raw, g.sign())
		}, "not enough verified log entries"},
		"CVE-2026-39984, PR 810: a certificate that is not the signer's": {func() []byte {
			g := s.gitsign("dana@example.com", raw)
			g.key = s.gitsign("mallory@example.com", raw).key
			return testenv.WithSignature(raw, g.sign())
		}, "invalid signature"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t, s.t = t, t
			r.refuses(c, root, store(t, tc.raw()), tc.want)
		})
	}
	r.t, s.t = t, t
	r.accepts(c, root, store(t, dana(raw)))

	t.Run("CVE-2026-44310: a parser that panics", func(t *testing.T) {
		ring := keyring{signers: []holder{{Signer: Signer{Name: "dana"}, prover: panics{}}}}
		o := get(parse(dana(raw)))(t)
		if m, err := ring.verify(o, time.Now()); err == nil || !strings.Contains(err.Error(), "cannot be parsed") {
			t.Errorf("%+v, %v", m, err)
		}
	})
	t.Run("GHSA-h829-5cg7-6hff: a tag that nobody signed", func(t *testing.T) {
		other := newRepo(t)
		head := other.commit("README", other.by(other.alice))
		get(other.Git("tag", "-a", "-m", "unsigned", "v1.0.0"))(t)
		other.refuses(other.tagging(), "", head, "tag v1.0.0: unsigned")
	})
	t.Run("CVE-2026-39831: a security key that nobody touched", func(t *testing.T) {
		a := newAuthenticator(t, 0)
		ring := keyring{signers: []holder{{Signer: Signer{Name: "s", SSH: a.line(t, "a@b")}}}}
		if m, err := ring.verify(sshObject(t, a, "a@b", time.Now()), time.Now()); err == nil {
			t.Errorf("accepted as %+v", m)
		}
	})
}

// panics is a Prover with a bug.
type panics struct{ Prover }
