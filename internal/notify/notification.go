// Package notify owns how people hear of what Holdfast found: drift, denials,
// failures and what became of them, in Slack, Microsoft Teams, PagerDuty and as
// signed CloudEvents.
//
// It guarantees that telling never holds up the work that is told of (a bounded
// queue drops the oldest, and counts), that one problem is said once until it
// changes, lasts for the repeat time or ends, that a burst is one message, that
// a recovery goes only to whoever heard of the problem, and that every text is
// masked and bounded. What was said is remembered in memory: after a restart an
// open problem may be said once more. It refuses receivers that would be reached
// in plain text beyond this machine, redirects, and weak signing keys; a
// receiver's address is a secret and stands in no log and no error.
//
// CloudEvents come from their SDK, retries from go-retryablehttp. The payloads
// of the other receivers are one small struct each: their client libraries bring
// a WebSocket and an API client along, for the same few fields.
package notify

import (
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// Class says what a notification is about. The operator's routes name classes.
type Class string

// The classes.
const (
	Drift     Class = "drift"     // the world differs from what was granted
	Denied    Class = "denied"    // verification or policy said no
	Failed    Class = "failed"    // something does not work and is tried again
	Recovered Class = "recovered" // the end of a problem, of any class
	Held      Class = "held"      // a person has to decide
	Revoked   Class = "revoked"   // what runs rests on something that was revoked
	Source    Class = "source"    // a repository cannot be read or is refused
	Ledger    Class = "ledger"    // the ledger cannot be written
)

// Severity says how soon a person should look.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// rank orders severities; an unknown one is the least.
func (s Severity) rank() int {
	switch s {
	case Critical:
		return 2
	case Warning:
		return 1
	default:
		return 0
	}
}

// Notification is one thing that people may want to hear of. It is also the dot
// of a receiver's template.
type Notification struct {
	// ID is the same for the same problem, however often it is told. One that is
	// Resolved ends the problem of its ID.
	ID       string
	Resolved bool
	Class    Class // of the problem, also when it is resolved
	Severity Severity
	Time     time.Time

	Environment, Stack, Repository string
	Revision                       string // commit
	Object                         string
	Actor                          string
	Title                          string // one line, the same for all problems of one class and stack
	Text, Hint                     string
	Link                           string // where a person can look
}

// Limits of texts in bytes. Receivers have their own, which are larger than what
// a person reads.
const (
	maxName  = 256
	maxTitle = 150 // of a header in Slack
	maxText  = 1500
	maxHint  = 500
)

// clean returns n with its texts masked and bounded.
func (n Notification) clean(scrub func(string) string) Notification {
	for _, f := range []struct {
		text *string
		max  int
	}{
		{&n.Environment, maxName}, {&n.Stack, maxName}, {&n.Repository, maxName}, {&n.Revision, maxName}, {&n.Object, 2 * maxName},
		{&n.Actor, maxName}, {&n.Title, maxTitle}, {&n.Text, maxText}, {&n.Hint, maxHint}, {&n.Link, 2 * maxName},
	} {
		*f.text = bound(scrub(*f.text), f.max)
	}
	return n
}

// group is what a burst of notifications has in common.
func (n Notification) group() string {
	return strings.Join([]string{string(n.Class), n.Environment, n.Repository, n.Stack}, "/")
}

// says is what a person would read. Two notifications that say the same are the same.
func (n Notification) says() string {
	return strings.Join([]string{string(n.Class), string(n.Severity), n.Title, n.Text, n.Hint, n.Object, n.Actor, n.Revision}, "\x00")
}

// bound cuts s to at most max bytes, at a character.
func bound(s string, max int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= max {
		return s
	}
	const more = "…"
	cut := max - len(more)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}

// link fills in the operator's template of a link.
func link(template string, n Notification) string {
	return strings.NewReplacer("{stack}", url.PathEscape(n.Stack), "{environment}", url.PathEscape(n.Environment)).Replace(template)
}
