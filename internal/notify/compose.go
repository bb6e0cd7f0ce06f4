package notify

import (
	"errors"
	"fmt"
	"strings"
	"text/template"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// maxLines is how many notifications of a burst are shown in a text.
	maxLines = 10
	// maxItems is how many are listed in a machine-readable body.
	maxItems = 100
	// maxMessage is the text of a message in bytes; Slack takes 3,000 characters in a section.
	maxMessage = 2900
)

// message is what one receiver is told at once.
type message struct {
	ID       string // the same at each retry
	Group    string // the same for all messages about one class of one stack
	Resolved bool
	Open     int // problems of the group that go on
	Count    int // of notifications that this is about
	Text     string
	First    Notification   // what it is about, with the greatest severity of all
	Items    []Notification // the first maxItems
}

// title is one line.
func (m message) title() string {
	t := m.First.Title
	if m.Count > 1 {
		t = fmt.Sprintf("%s (%d)", t, m.Count)
	}
	return bound(t, maxTitle)
}

// subject is the stack, or for what is about none the repository.
func (m message) subject() string {
	if m.First.Stack != "" {
		return m.First.Stack
	}
	return m.First.Repository
}

// facts are what a person looks for, in order.
func (m message) facts() [][2]string {
	f, out := m.First, [][2]string(nil)
	for _, kv := range [][2]string{
		{"Environment", f.Environment}, {"Stack", f.Stack}, {"Repository", f.Repository}, {"Commit", short(f.Revision)},
		{"Object", f.Object}, {"Actor", f.Actor}, {"Severity", string(f.Severity)}, {"Time", f.Time.UTC().Format(time.RFC3339)},
	} {
		if (kv[0] == "Object" || kv[0] == "Actor") && m.Count > 1 { // they differ, and stand in the text
			continue
		}
		if kv[1] != "" {
			out = append(out, kv)
		}
	}
	return out
}

// short is a commit as people write it.
func short(revision string) string {
	if len(revision) > 12 {
		return revision[:12]
	}
	return revision
}

// composer writes the messages of one receiver.
type composer struct {
	text  *template.Template
	scrub func(string) string
}

const defaultText = "{{.Text}}"

// newComposer refuses a template that does not work on a notification.
func newComposer(r Receiver, scrub func(string) string) (*composer, error) {
	text := r.Template
	if text == "" {
		text = defaultText
	}
	t, err := template.New(r.Name).Option("missingkey=error").Parse(text)
	if err == nil {
		err = t.Execute(&limited{left: maxText}, Notification{})
		if errors.Is(err, errTooLong) {
			err = nil
		}
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, opNew, "correct the template; its dot is the notification, with fields such as .Stack and .Text", "receiver %q: %w", r.Name, err)
	}
	return &composer{text: t, scrub: scrub}, nil
}

// message writes what list says.
func (c *composer) message(group string, list []problem, resolved bool, open int) message {
	m := message{ID: uuid.NewString(), Group: group, Resolved: resolved, Open: open, Count: len(list)}
	var lines []string
	for i, p := range list {
		n := p.n
		if resolved {
			n = *p.end
			n.Class, n.Severity = p.n.Class, Info
		}
		if i == 0 {
			m.First = n
		}
		if n.Severity.rank() > m.First.Severity.rank() {
			m.First.Severity = n.Severity
		}
		if i < maxItems {
			m.Items = append(m.Items, n)
		}
		if i < maxLines {
			lines = append(lines, c.line(n, p.times))
		}
	}
	if more := len(list) - maxLines; more > 0 {
		// The count is what a person must not miss.
		lines = append([]string{fmt.Sprintf("%d of %d:", maxLines, len(list))}, lines...)
	}
	m.Text = bound(strings.Join(lines, "\n"), maxMessage)
	return m
}

// line is one notification of a message.
func (c *composer) line(n Notification, times int) string {
	w := limited{left: maxText}
	if err := c.text.Execute(&w, n); err != nil && !errors.Is(err, errTooLong) {
		w.text.Reset() // a person rather reads it untemplated than not at all
		_, _ = w.Write([]byte(bound(n.Text, maxText)))
	}
	text := bound(c.scrub(strings.TrimSpace(w.text.String())), maxText)
	if times > 1 {
		text += fmt.Sprintf(" (%d times)", times)
	}
	return text
}

var errTooLong = errors.New("the text is too long")

// limited takes so many bytes and no more.
type limited struct {
	text strings.Builder
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		l.text.Write(p[:l.left])
		l.left = 0
		return 0, errTooLong
	}
	l.left -= len(p)
	return l.text.Write(p)
}
