package verify

import (
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// What a verdict was reached with is kept, so that anyone can reach it again: what
// was asked of registries and repositories and what came back, what was trusted and
// revoked, and what time it was.

// Inputs is all that one verdict was reached with, as a document of the ledger.
type Inputs struct {
	// Subject is what was judged, resolved; of a commit its Reference is the head.
	Subject Subject `json:"subject"`
	// From is, of a commit, the last one that was accepted before.
	From string `json:"from,omitempty"`
	// Time is the time of the judgement; of a commit its first sight.
	Time time.Time `json:"time"`
	// Trust is the document that says whom the operator trusted.
	Trust digest.Digest `json:"trust"`
	// Revocations is what people had taken trust away from.
	Revocations []Revocation `json:"revocations,omitempty"`
	// Answers are what was asked and the digest of what came back, empty where there
	// was nothing. Content has the answers by their digest.
	Answers map[string]digest.Digest `json:"answers"`
	Content map[digest.Digest][]byte `json:"content"`
	// TooMuch says that the answers are more than are kept: Content is not complete.
	TooMuch bool `json:"-"`
}

// Answer returns what came back for a request, and false where there was nothing. What
// was not asked then, was not kept, or is not what its digest says, is an error of kind
// fault.Invalid.
func (in Inputs) Answer(request string) ([]byte, bool, error) {
	d, asked := in.Answers[request]
	b, kept := in.Content[d]
	switch {
	case asked && d == "":
		return nil, false, nil
	case !asked || !kept || digest.FromBytes(b) != d:
		return nil, false, fault.New(fault.Invalid, "verify.Inputs", "", "%s: it was not asked then, or its answer was not kept", request)
	}
	return b, true, nil
}

// MaxAnswers is how many bytes of answers are kept for one verdict. Honest ones are
// a hundredth of that.
const MaxAnswers = 16 << 20

// Keeper keeps what a verdict was reached with. It returns the digest of the document
// at once, or nothing where it may not be kept, and MUST have it stored before an
// entry of the ledger that leads to it.
type Keeper func(Inputs) digest.Digest

// Answers collects what one verification asks of the outside and what comes back.
// It is safe for concurrent use; a nil one collects nothing.
type Answers struct {
	mu      sync.Mutex
	by      map[string]digest.Digest
	content map[digest.Digest][]byte
	bytes   int
}

// NewAnswers returns an empty collection.
func NewAnswers() *Answers {
	return &Answers{by: map[string]digest.Digest{}, content: map[digest.Digest][]byte{}}
}

// Add notes an answer, which MUST NOT be changed any more.
func (a *Answers) Add(request string, answer []byte) {
	if a != nil {
		a.AddDigest(request, digest.FromBytes(answer), answer)
	}
}

// AddDigest is Add for an answer whose digest is known.
func (a *Answers) AddDigest(request string, d digest.Digest, answer []byte) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.put(request, d, answer)
}

// put is AddDigest with a.mu held. What is too much is not held on to.
func (a *Answers) put(request string, d digest.Digest, answer []byte) {
	a.by[request] = d
	if _, ok := a.content[d]; ok || a.bytes > MaxAnswers {
		return
	}
	if a.bytes += len(answer) + len(request); a.bytes > MaxAnswers {
		clear(a.content)
		return
	}
	a.content[d] = answer
}

// None notes that there was nothing.
func (a *Answers) None(request string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.by[request] = ""
}

// Merge adds what another collection has.
func (a *Answers) Merge(o *Answers) {
	if a == nil || o == nil || a == o {
		return
	}
	o.mu.Lock()
	by, content, over := maps.Clone(o.by), maps.Clone(o.content), o.bytes > MaxAnswers
	o.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	for request, d := range by {
		if d == "" {
			a.by[request] = d
		} else {
			a.put(request, d, content[d])
		}
	}
	if over {
		a.bytes = MaxAnswers + 1
		clear(a.content)
	}
}

// Complete returns in with what was asked and answered.
func (a *Answers) Complete(in Inputs) Inputs {
	a.mu.Lock()
	defer a.mu.Unlock()
	in.Answers, in.Content, in.TooMuch = maps.Clone(a.by), maps.Clone(a.content), a.bytes > MaxAnswers
	in.Time = in.Time.UTC()
	return in
}

// Same returns a digest over all of in but the time, and over the verdict: a judgement
// that comes to the same by the same is kept once.
func (in Inputs) Same(checks []Check) digest.Digest {
	in.Time, in.Content = time.Time{}, nil
	b, err := json.Marshal(struct {
		Inputs
		Checks []Check `json:"checks"`
	}{in, checks})
	if err != nil { // strings, times and booleans always marshal
		panic("verify: inputs are not JSON: " + err.Error())
	}
	return digest.FromBytes(b)
}

type answersKey struct{}

// Collect returns a context in which what is asked of the outside is noted in a.
func Collect(ctx context.Context, a *Answers) context.Context {
	return context.WithValue(ctx, answersKey{}, a)
}

// Collecting returns where to note what is asked of the outside; nil is nowhere.
func Collecting(ctx context.Context) *Answers {
	a, _ := ctx.Value(answersKey{}).(*Answers)
	return a
}

type asOfKey struct{}

// AsOf returns a context in which artifacts are judged as of a time. It is for
// replaying a verdict that the ledger has, and for nothing else.
func AsOf(ctx context.Context, at time.Time) context.Context {
	return context.WithValue(ctx, asOfKey{}, at)
}

// In returns the time to judge by: now, but for a replay.
func (c Clock) In(ctx context.Context) time.Time {
	if at, ok := ctx.Value(asOfKey{}).(time.Time); ok {
		return at
	}
	return c.Now()
}

// Replayed reports whether ctx is of a replay.
func Replayed(ctx context.Context) bool {
	_, ok := ctx.Value(asOfKey{}).(time.Time)
	return ok
}
