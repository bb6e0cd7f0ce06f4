package verify

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// ErrMissing is wrapped by a [Verifier] that found no evidence of the kind that
// it looks for: none at all, not evidence that is wrong. It may still come:
// build systems push first and sign seconds later.
var ErrMissing = errors.New("the evidence is missing")

// ErrRevoked is wrapped by what is denied because a person took trust away.
var ErrRevoked = errors.New("revoked")

// AnchorKind is a kind of thing that trust rests on.
type AnchorKind string

// The kinds, as people write them after holdfast revoke.
const (
	AnchorKey      AnchorKind = "key"      // fingerprint of a public key
	AnchorIdentity AnchorKind = "identity" // keyless subject, name of a signer, principal
	AnchorDigest   AnchorKind = "digest"   // of an artifact: "sha256:…"
	AnchorCommit   AnchorKind = "commit"   // commit id
	AnchorPolicy   AnchorKind = "policy"   // digest of a set of policies
)

// AnchorKinds lists every kind.
var AnchorKinds = []AnchorKind{AnchorKey, AnchorIdentity, AnchorDigest, AnchorCommit, AnchorPolicy}

// Anchor is one thing that a judgement rests on, and that a person may revoke.
//
// A key is named by "SHA256:" and the unpadded base64 of the SHA-256 of its SSH
// wire format (ssh-keygen -l) if it is an SSH key, by the upper-case fingerprint
// of an OpenPGP primary key, and by "sha256:" and the hex SHA-256 of its PKIX
// DER encoding otherwise.
type Anchor struct {
	Kind  AnchorKind `json:"kind"`
	Value string     `json:"value"`
	// At is when what rests on it is known to have been there: the proven time of a
	// signature, the first sight of a commit. It is never a date that the signer
	// chose, nor one that rests on this very anchor. Zero: nothing proves it.
	At time.Time `json:"at,omitzero"`
}

// String returns "kind value".
func (a Anchor) String() string { return string(a.Kind) + " " + a.Value }

// Anchors returns the anchors of all lists, sorted and each once.
func Anchors(lists ...[]Anchor) []Anchor {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b Anchor) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value), a.At.Compare(b.At))
	})
	return slices.CompactFunc(all, func(a, b Anchor) bool { return a.Kind == b.Kind && a.Value == b.Value && a.At.Equal(b.At) })
}

// SeenAt returns anchors of what is known to have been there at that time, which
// none of them had a part in proving.
func SeenAt(at time.Time, anchors []Anchor) []Anchor {
	out := slices.Clone(anchors)
	for i := range out {
		out[i].At = at.UTC().Round(0)
	}
	return out
}

// Revocation is trust that a person took away. It has no end.
type Revocation struct {
	Anchor
	// Since is when the key or the identity came into other hands: what is known to
	// have been there before still counts. Zero: nothing does.
	Since  time.Time `json:"since,omitzero"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// Validate refuses a revocation that would revoke nothing, or not what it seems to.
func (v Revocation) Validate(now time.Time) error {
	switch {
	case v.Since.IsZero():
	case v.Kind != AnchorKey && v.Kind != AnchorIdentity:
		return fmt.Errorf("a %s is revoked whole: only keys and identities come into other hands at some time", v.Kind)
	case v.Since.After(now):
		return fmt.Errorf("%s is in the future: what is signed until then would still count", v.Since.Format(time.RFC3339))
	}
	return v.Anchor.Validate()
}

// covers reports whether v revokes what rests on a.
func (v Revocation) covers(a Anchor) bool {
	return v.Since.IsZero() || a.At.IsZero() || !a.At.Before(v.Since)
}

// Revocations is the set of what is revoked. It is safe for concurrent use; its
// zero value is ready, and a nil one holds nothing.
type Revocations struct {
	mu   sync.RWMutex
	list []Revocation
	by   map[Anchor]int // index in list, of the one that reaches back furthest
}

// Add revokes. What is revoked stays so: a later word may only reach back further.
func (r *Revocations) Add(v Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[Anchor]int{}
	}
	if i, ok := r.by[v.normal()]; ok {
		if old := r.list[i].Since; old.IsZero() || !v.Since.IsZero() && !v.Since.Before(old) {
			return
		}
	}
	r.by[v.normal()] = len(r.list)
	r.list = append(r.list, v)
}

// normal is the form in which anchors are compared: hex and fingerprints come in
// either case.
func (a Anchor) normal() Anchor {
	a.At = time.Time{}
	switch a.Kind {
	case AnchorDigest, AnchorCommit, AnchorPolicy:
		a.Value = strings.ToLower(a.Value)
	case AnchorKey:
		if !strings.HasPrefix(a.Value, "SHA256:") { // base64 keeps its case
			a.Value = strings.ToLower(strings.ReplaceAll(a.Value, " ", ""))
		}
	}
	return a
}

// Epoch grows with every revocation: what was looked at under a smaller one has
// to be looked at again.
func (r *Revocations) Epoch() int {
	if r == nil {
		return 0
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.list)
}

// Check returns an error of kind fault.Denied if one of the anchors is revoked.
func (r *Revocations) Check(anchors ...Anchor) error {
	if r == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, a := range anchors {
		i, ok := r.by[a.normal()]
		if !ok || !r.list[i].covers(a) {
			continue
		}
		v, since := r.list[i], ""
		switch {
		case !v.Since.IsZero() && a.At.IsZero():
			since = ", as of " + stamp(v.Since) + ", and nothing proves when this was signed"
		case !v.Since.IsZero():
			since = fmt.Sprintf(", as of %s, and this is of %s", stamp(v.Since), stamp(a.At))
		}
		return fault.New(fault.Denied, "verify.Revocations", "replace what rests on it: sign anew with another key, or deploy another version",
			"%s was %w on %s%s: %s", v.Anchor, ErrRevoked, v.Time.Format(time.DateOnly), since, v.Reason)
	}
	return nil
}

// List returns what is revoked, oldest first.
func (r *Revocations) List() []Revocation {
	if r == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return append([]Revocation{}, r.list...)
}

var (
	commitID    = regexp.MustCompile(`^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)
	fingerprint = regexp.MustCompile(`^(SHA256:[A-Za-z0-9+/]{43}|sha256:[0-9a-fA-F]{64}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)
)

// Validate refuses an anchor that nothing could ever rest on: a shortened commit
// id, a digest without its algorithm, a fingerprint of another form.
func (a Anchor) Validate() error {
	n := a.normal()
	switch a.Kind {
	case AnchorKey:
		if !fingerprint.MatchString(n.Value) {
			return fmt.Errorf("%q is no fingerprint: SHA256:… of an SSH key, 40 hex digits of an OpenPGP key, sha256:… of the DER encoding of another", a.Value)
		}
	case AnchorIdentity:
		if strings.TrimSpace(a.Value) == "" {
			return errors.New("the identity is empty")
		}
	case AnchorDigest, AnchorPolicy:
		if digest.Digest(n.Value).Validate() != nil {
			return fmt.Errorf("%q is no digest: sha256: and 64 hex digits", a.Value)
		}
	case AnchorCommit:
		if !commitID.MatchString(n.Value) {
			return fmt.Errorf("%q is no full commit id", a.Value)
		}
	default:
		return fmt.Errorf("%q cannot be revoked: it is none of key, identity, digest, commit and policy", a.Kind)
	}
	return nil
}
