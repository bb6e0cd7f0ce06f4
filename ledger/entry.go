package ledger

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Type says what an entry records.
type Type string

// The types of entry. docs/ledger-format.md says which fields each one has.
const (
	Started       Type = "started"       // the daemon started: version, binary digest
	Configuration Type = "configuration" // the operator's file was loaded
	Seen          Type = "seen"          // a revision was seen for the first time
	Verified      Type = "verified"      // a commit, or all artifacts of a rendering, were verified
	Decided       Type = "decided"       // policies judged a rendering or a plan
	Intent        Type = "intent"        // the gate granted a plan; durable before the first write
	Applied       Type = "result"        // what an intent came to
	Drift         Type = "drift"         // the world differs from what was granted
	Reverted      Type = "reverted"      // a drift was repaired
	Ended         Type = "ended"         // a finding is over, whatever ended it
	Approved      Type = "approved"      // a person let go on what was held for a person
	Refused       Type = "denied"        // something was refused, and why
	Revoked       Type = "revoked"       // a person took trust away: from a key, an identity, a digest, a commit or a policy
	Suspended     Type = "suspended"     // a person suspended a stack, or all
	Resumed       Type = "resumed"       // a person, or its end, ended a suspension
	Ordered       Type = "ordered"       // a signed order was taken: to go back, or to go on after a loss
	Raised        Type = "raised"        // something about the daemon or a source needs a person: a head that cannot be confirmed, a clock that went back
)

// Index is the position of an entry in the log, from 0.
type Index uint64

// Entry is one leaf of the log. It is small (at most [MaxEntry] bytes of JSON)
// and holds no secret; what does not fit goes into bodies.
type Entry struct {
	Version     int       `json:"v"` // always 1; set by Append
	Type        Type      `json:"type"`
	Time        time.Time `json:"time"` // UTC; set by Append; never before the last entry's
	Stack       string    `json:"stack,omitempty"`
	Environment string    `json:"env,omitempty"`
	Revision    string    `json:"rev,omitempty"` // "source@commit"
	// Subject is what a revocation, an order or a finding is about: the revoked
	// value, the commit to go to, the end of a suspension, the name of the finding.
	Subject string `json:"subject,omitempty"`
	// Since is when what a revocation is about came into other hands; zero: it
	// never counted.
	Since time.Time `json:"since,omitzero"`
	// Intent is, in a result, revert or drift entry, the intent that it closes or concerns.
	Intent *Index `json:"intent,omitempty"`
	// Outcome is one word: "ok", "failed", "stale", "denied", "abandoned", …
	Outcome string `json:"outcome,omitempty"`
	// Note is one masked line for people, cut to 300 bytes.
	Note string `json:"note,omitempty"`
	// Bodies name the documents that belong to the entry by role ("plan",
	// "evidence", "receipt") and by digest; Append fills it in.
	Bodies map[string]digest.Digest `json:"bodies,omitempty"`
}

// MaxEntry is the largest leaf in bytes. Each append rewrites a partial bundle
// of up to 255 leaves, so small leaves are what keeps an intent cheap.
const MaxEntry = 1024
