package commit

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// TestReplayChecksAnswers: an answer is what its digest says, or none.
func TestReplayChecksAnswers(t *testing.T) {
	t.Parallel()
	d := digest.FromString("raw")
	for name, content := range map[string]map[digest.Digest][]byte{
		"another one": {d: []byte("other")}, "none": {},
	} {
		in := verify.Inputs{Answers: map[string]digest.Digest{"commit 1": d}, Content: content}
		if _, err := Replay(in).Commit(t.Context(), "1"); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := verify.Inputs{Answers: map[string]digest.Digest{"commit 1": d}, Content: map[digest.Digest][]byte{d: []byte("raw")}}
	if b, err := Replay(good).Commit(t.Context(), "1"); err != nil || string(b) != "raw" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := Replay(good).Commit(t.Context(), "2"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("what was not asked then: %v", err)
	}
}
