package notify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

func jsonHeader(contentType string) http.Header {
	return http.Header{"Content-Type": {contentType}}
}

// slack writes an incoming webhook's body. What comes from outside stands in
// plain_text, where Slack looks for neither mentions nor links, or is escaped.
//
// https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
func slack(m message, _ string) ([]byte, http.Header, error) {
	type text struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type block struct {
		Type     string `json:"type"`
		Text     *text  `json:"text,omitempty"`
		Elements []text `json:"elements,omitempty"`
	}
	plain := func(s string) *text { return &text{"plain_text", s} }
	title := icon(m) + " " + m.title()
	blocks := []block{{Type: "header", Text: plain(bound(title, maxTitle))}}
	if m.Text != "" {
		blocks = append(blocks, block{Type: "section", Text: plain(m.Text)})
	}
	if m.First.Hint != "" && !m.Resolved {
		blocks = append(blocks, block{Type: "section", Text: plain("Hint: " + m.First.Hint)})
	}
	var facts []text
	for _, f := range m.facts() {
		facts = append(facts, *plain(f[0] + ": " + f[1]))
	}
	if link := safeLink(m.First.Link); link != "" {
		facts = append(facts, text{"mrkdwn", "<" + slackEscape(strings.ReplaceAll(link, "|", "%7C")) + "|Open>"})
	}
	blocks = append(blocks, block{Type: "context", Elements: facts})
	body, err := json.Marshal(struct {
		Text   string  `json:"text"` // what a notification on a telephone shows
		Blocks []block `json:"blocks"`
	}{slackEscape(title), blocks})
	return body, jsonHeader("application/json"), err
}

// slackEscape escapes the three characters that begin mentions, channels and links.
//
// https://docs.slack.dev/messaging/formatting-message-text#escaping
func slackEscape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// safeLink returns a link that a person may be offered, or "".
func safeLink(link string) string {
	u, err := url.Parse(link)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return ""
	}
	return u.String()
}

func icon(m message) string {
	switch {
	case m.Resolved:
		return "✅"
	case m.First.Severity == Critical:
		return "🔴"
	case m.First.Severity == Warning:
		return "🟠"
	default:
		return "🔵"
	}
}

// teams writes an Adaptive Card for the webhook of a Workflow. Texts from
// outside stand in RichTextBlocks, which know no Markdown, so no links.
//
// https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using
func teams(m message, _ string) ([]byte, http.Header, error) {
	run := func(s, weight, size string) map[string]any {
		return map[string]any{"type": "RichTextBlock", "inlines": []any{map[string]any{"type": "TextRun", "text": s, "weight": weight, "size": size}}}
	}
	body := []any{run(icon(m)+" "+m.title(), "Bolder", "Medium")}
	for line := range strings.SplitSeq(m.Text, "\n") {
		if line != "" {
			body = append(body, run(line, "Default", "Default"))
		}
	}
	if m.First.Hint != "" && !m.Resolved {
		body = append(body, run("Hint: "+m.First.Hint, "Default", "Default"))
	}
	for _, f := range m.facts() {
		body = append(body, run(f[0]+": "+f[1], "Lighter", "Small"))
	}
	card := map[string]any{
		"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
		"fallbackText": m.title(), "body": body, "msteams": map[string]any{"width": "Full"},
	}
	if link := safeLink(m.First.Link); link != "" {
		card["actions"] = []any{map[string]any{"type": "Action.OpenUrl", "title": "Open", "url": link}}
	}
	out, err := json.Marshal(map[string]any{
		"type":        "message",
		"attachments": []any{map[string]any{"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": nil, "content": card}},
	})
	return out, jsonHeader("application/json"), err
}

// pagerDuty writes an event of the Events API v2. One class of one stack is one
// incident: it is resolved when the last of its problems ended.
//
// https://developer.pagerduty.com/docs/send-alert-event
func pagerDuty(m message, key string) ([]byte, http.Header, error) {
	if m.Resolved && m.Open > 0 {
		return nil, nil, nil
	}
	type payload struct {
		Summary   string         `json:"summary"`
		Source    string         `json:"source"`
		Severity  Severity       `json:"severity"`
		Timestamp string         `json:"timestamp"`
		Component string         `json:"component,omitempty"`
		Group     string         `json:"group,omitempty"`
		Class     Class          `json:"class"`
		Details   map[string]any `json:"custom_details"`
	}
	type hyperlink struct {
		Href string `json:"href"`
		Text string `json:"text"`
	}
	event := struct {
		RoutingKey string      `json:"routing_key"`
		Action     string      `json:"event_action"`
		DedupKey   string      `json:"dedup_key"`
		Client     string      `json:"client"`
		ClientURL  string      `json:"client_url,omitempty"`
		Links      []hyperlink `json:"links,omitempty"`
		Payload    *payload    `json:"payload,omitempty"`
	}{RoutingKey: key, Action: "resolve", DedupKey: dedupKey(m.Group), Client: "Holdfast"}
	if !m.Resolved {
		details := map[string]any{"text": m.Text, "notifications": m.Count}
		for _, f := range append(m.facts(), [2]string{"Hint", m.First.Hint}) {
			details[strings.ToLower(f[0])] = f[1]
		}
		event.Action = "trigger"
		event.Payload = &payload{
			Summary: bound(m.title()+": "+m.Text, 1024), Source: "holdfast/" + m.First.Environment, Severity: m.First.Severity,
			Timestamp: m.First.Time.UTC().Format(time.RFC3339), Component: m.subject(), Group: m.First.Environment, Class: m.First.Class, Details: details,
		}
		if link := safeLink(m.First.Link); link != "" {
			event.ClientURL, event.Links = link, []hyperlink{{link, "Holdfast"}}
		}
	}
	body, err := json.Marshal(event)
	return body, jsonHeader("application/json"), err
}

// dedupKey names a group or a problem in at most 255 characters.
func dedupKey(group string) string {
	sum := sha256.Sum256([]byte(group))
	return "holdfast-" + hex.EncodeToString(sum[:])
}

// SignatureHeader holds the signature of a Webhook's body: "sha256=" and its
// HMAC-SHA-256 in hex. The body holds the event's id and time, so the signature
// covers them.
const SignatureHeader = "X-Holdfast-Signature-256"

// data is the data of a CloudEvent.
type data struct {
	Class         Class    `json:"class"`
	Severity      Severity `json:"severity"`
	Resolved      bool     `json:"resolved"`
	Environment   string   `json:"environment,omitempty"`
	Stack         string   `json:"stack,omitempty"`
	Repository    string   `json:"repository,omitempty"`
	Title         string   `json:"title"`
	Text          string   `json:"text"`
	Link          string   `json:"link,omitempty"`
	Count         int      `json:"count"` // of notifications; at most 100 are listed
	Open          int      `json:"open"`  // problems of this class and stack that go on
	Notifications []item   `json:"notifications"`
}

// item is one notification of a CloudEvent.
type item struct {
	Problem  string    `json:"problem"` // the same for a problem and its end
	Severity Severity  `json:"severity"`
	Time     time.Time `json:"time"`
	Revision string    `json:"revision,omitempty"`
	Object   string    `json:"object,omitempty"`
	Actor    string    `json:"actor,omitempty"`
	Text     string    `json:"text"`
	Hint     string    `json:"hint,omitempty"`
}

// cloudEvent writes a CloudEvent 1.0 in structured JSON, signed if there is a key.
//
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
func cloudEvent(m message, key string) ([]byte, http.Header, error) {
	d := data{
		Class: m.First.Class, Severity: m.First.Severity, Resolved: m.Resolved, Environment: m.First.Environment, Stack: m.First.Stack,
		Repository: m.First.Repository, Title: m.title(), Text: m.Text, Link: safeLink(m.First.Link), Count: m.Count, Open: m.Open,
	}
	for _, n := range m.Items {
		d.Notifications = append(d.Notifications, item{dedupKey(n.ID), n.Severity, n.Time, n.Revision, n.Object, n.Actor, n.Text, n.Hint})
	}
	e := event.New(event.CloudEventsVersionV1)
	e.SetID(m.ID)
	e.SetSource("/holdfast/" + url.PathEscape(m.First.Environment))
	e.SetType("dev.holdfast." + string(m.First.Class))
	if m.Resolved {
		e.SetType("dev.holdfast." + string(m.First.Class) + ".resolved")
	}
	if s := m.subject(); s != "" {
		e.SetSubject(s)
	}
	e.SetTime(m.First.Time.UTC())
	if err := e.SetData(event.ApplicationJSON, d); err != nil {
		return nil, nil, err
	}
	if err := e.Validate(); err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, nil, err
	}
	header := jsonHeader(event.ApplicationCloudEventsJSON + "; charset=utf-8")
	if key != "" {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write(body)
		header.Set(SignatureHeader, "sha256="+hex.EncodeToString(mac.Sum(nil)))
	}
	return body, header, nil
}
