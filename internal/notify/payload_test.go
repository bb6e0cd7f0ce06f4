package notify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// nasty is what an attacker would have people read.
const nasty = `<!channel> <https://evil.example|click> [click](https://evil.example) *bold* hunter2-hunter2`

func attack() Notification {
	return Notification{
		ID: "drift/x/shop-web", Class: Drift, Severity: Critical, Environment: "production", Stack: "shop-web", Repository: "shop", Revision: strings.Repeat("a", 40),
		Object: "Deployment/shop/web", Actor: nasty, Title: "Drift: shop-web " + nasty, Text: nasty + strings.Repeat("x", 10_000), Hint: nasty,
		Link: "https://holdfast.example/stacks/shop-web", Time: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
	}
}

func scrub(s string) string { return strings.ReplaceAll(s, "hunter2-hunter2", "(masked)") }

// compose makes a message of list as a receiver of a type would be sent it.
func compose(t *testing.T, resolved bool, list ...Notification) message {
	t.Helper()
	c, err := newComposer(Receiver{}, scrub)
	if err != nil {
		t.Fatal(err)
	}
	var problems []problem
	for _, n := range list {
		n = n.clean(scrub)
		problems = append(problems, problem{n: n, end: &n, times: 1})
	}
	return c.message(list[0].group(), problems, resolved, 0)
}

func body(t *testing.T, e encoder, m message, key string) (map[string]any, string, http.Header) {
	t.Helper()
	b, header, err := e(m, key)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out, string(b), header
}

func TestSlack(t *testing.T) {
	t.Parallel()
	out, raw, _ := body(t, slack, compose(t, false, attack()), "")
	if strings.Contains(raw, "hunter2") {
		t.Error("a secret leaves")
	}
	if text := out["text"].(string); strings.ContainsAny(text, "<>") {
		t.Errorf("text is not escaped: %s", text)
	}
	for _, b := range out["blocks"].([]any) {
		block := b.(map[string]any)
		elements, _ := block["elements"].([]any)
		if len(elements) > 10 {
			t.Errorf("%d elements in a context", len(elements))
		}
		if text, ok := block["text"].(map[string]any); ok {
			elements = append(elements, text)
			limit := map[any]int{"header": 150, "section": 3000}[block["type"]]
			if n := len([]rune(text["text"].(string))); n > limit || n == 0 {
				t.Errorf("%s of %d characters", block["type"], n)
			}
		}
		for _, e := range elements {
			if e := e.(map[string]any); e["type"] == "mrkdwn" && e["text"] != "<https://holdfast.example/stacks/shop-web|Open>" {
				t.Errorf("text from outside as mrkdwn: %v", e)
			}
		}
	}
}

func TestTeams(t *testing.T) {
	t.Parallel()
	out, raw, _ := body(t, teams, compose(t, false, attack()), "")
	card := out["attachments"].([]any)[0].(map[string]any)
	if out["type"] != "message" || card["contentType"] != "application/vnd.microsoft.card.adaptive" {
		t.Errorf("envelope: %v", out)
	}
	for _, b := range card["content"].(map[string]any)["body"].([]any) {
		if kind := b.(map[string]any)["type"]; kind != "RichTextBlock" { // a TextBlock knows Markdown, links included
			t.Errorf("text in a %v", kind)
		}
	}
	if strings.Contains(raw, "hunter2") || len(raw) > 28<<10 {
		t.Errorf("a secret or too long: %d bytes", len(raw))
	}
}

func TestPagerDuty(t *testing.T) {
	t.Parallel()
	out, raw, _ := body(t, pagerDuty, compose(t, false, attack(), drift("shop-web", "Pod/x/y")), "routing")
	p := out["payload"].(map[string]any)
	if out["event_action"] != "trigger" || out["routing_key"] != "routing" || p["severity"] != "critical" || p["class"] != "drift" || p["component"] != "shop-web" {
		t.Errorf("event: %s", raw)
	}
	if n := len([]rune(p["summary"].(string))); n == 0 || n > 1024 || len(out["dedup_key"].(string)) > 255 || strings.Contains(raw, "hunter2") {
		t.Errorf("limits: summary of %d", n)
	}
	// An incident ends with the last of its problems.
	end := compose(t, true, attack())
	end.Open = 1
	if b, _, err := pagerDuty(end, "routing"); b != nil || err != nil {
		t.Errorf("resolved while a problem goes on: %s %v", b, err)
	}
	end.Open = 0
	resolve, _, _ := body(t, pagerDuty, end, "routing")
	if resolve["event_action"] != "resolve" || resolve["dedup_key"] != out["dedup_key"] || resolve["payload"] != nil {
		t.Errorf("resolve: %v", resolve)
	}
}

func TestCloudEvent(t *testing.T) {
	t.Parallel()
	m := compose(t, false, attack())
	_, raw, header := body(t, cloudEvent, m, "0123456789abcdef")
	var e event.Event
	if err := json.Unmarshal([]byte(raw), &e); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil || e.SpecVersion() != "1.0" || e.Type() != "dev.holdfast.drift" || e.Subject() != "shop-web" || e.Source() != "/holdfast/production" || e.ID() != m.ID {
		t.Errorf("event %s: %v", raw, err)
	}
	var d data
	if err := e.DataAs(&d); err != nil || d.Severity != Critical || len(d.Notifications) != 1 || d.Notifications[0].Object != "Deployment/shop/web" {
		t.Errorf("data %+v: %v", d, err)
	}
	mac := hmac.New(sha256.New, []byte("0123456789abcdef"))
	mac.Write([]byte(raw))
	if got := header.Get(SignatureHeader); got != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
		t.Errorf("signature %q", got)
	}
	if ct := header.Get("Content-Type"); !strings.HasPrefix(ct, "application/cloudevents+json") {
		t.Errorf("content type %s", ct)
	}
	if strings.Contains(raw, "hunter2") || len(raw) > 64<<10 {
		t.Errorf("a secret or too long: %d bytes", len(raw))
	}
	var storm []Notification
	for range 500 {
		storm = append(storm, attack())
	}
	if _, raw, _ := body(t, cloudEvent, compose(t, false, storm...), ""); len(raw) > 512<<10 || !strings.Contains(raw, `"count":500`) {
		t.Errorf("500 at once are %d bytes", len(raw))
	}
	if _, _, h := body(t, cloudEvent, m, ""); h.Get(SignatureHeader) != "" {
		t.Error("signed without a key")
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{{.Stack}}: {{.Object}} by {{.Actor}}`: "shop-web: Deployment/shop/web by carol hunter2",
		`{{range 1000000}}xxxxxxxxxx{{end}}`:    "xxxxxxxxxx",
		// What only exists after the template ran is masked as well.
		`hun{{"ter2-hunter2"}}`: "(masked)",
		// A template that fails on this one leaves the text.
		`{{index .Object 1000}}`: "the text",
	} {
		r := Receiver{Template: text}
		c, err := newComposer(r, scrub)
		if strings.Contains(text, "index") {
			c, err = newComposer(Receiver{}, scrub)
			c.text = mustTemplate(t, text)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := c.line(Notification{Stack: "shop-web", Object: "Deployment/shop/web", Actor: "carol hunter2", Text: "the text"}, 1)
		if !strings.HasPrefix(got, want) || len(got) > maxText {
			t.Errorf("%s: %d bytes %.60s", text, len(got), got)
		}
	}
}

func FuzzBound(f *testing.F) {
	f.Add("", 5)
	f.Add("ééééé", 6)
	f.Add("a\xffb", 4)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		if limit = max(limit%1000, 4); len(bound(s, limit)) > max(limit, 4) {
			t.Errorf("bound(%q, %d) = %q", s, limit, bound(s, limit))
		}
	})
}

// realSender returns a sender to a server with a certificate of its own.
func realSender(t *testing.T, kind Type, h http.HandlerFunc) *sender {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	s, err := newSender(Receiver{Name: "ops", Type: kind, URL: value(srv.URL + "/services/T0/B0/secret-path"), Key: value("0123456789abcdef"), CA: ca}, scrub)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.HTTPClient.CloseIdleConnections)
	return s
}

func TestSend(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	s := realSender(t, Slack, func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(b)
	})
	if err := s.send(t.Context(), compose(t, false, attack())); err != nil {
		t.Fatal(err)
	}
	if text := <-got; !strings.HasPrefix(text, "POST /services/T0/B0/secret-path application/json {") {
		t.Errorf("sent %s", text)
	}
}

// An address carries a credential: it goes nowhere else, and stands in no error.
func TestSendRefusals(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	m := compose(t, false, attack())

	s := realSender(t, Slack, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/stolen", http.StatusTemporaryRedirect)
	})
	if err := s.send(t.Context(), m); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("redirect: %v", err)
	}

	s = realSender(t, PagerDuty, func(http.ResponseWriter, *http.Request) { t.Error("nothing was sent") })
	part := compose(t, true, attack())
	part.Open = 1 // the incident goes on
	if err := s.send(t.Context(), part); err != nil {
		t.Errorf("nothing to send: %v", err)
	}

	s = realSender(t, Slack, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "no hunter2-hunter2\n"+strings.Repeat("x", 1<<20))
	})
	if err := s.send(t.Context(), m); fault.KindOf(err) != fault.Denied || len(err.Error()) > 400 || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("forbidden: %v", err)
	}

	s = realSender(t, Slack, func(http.ResponseWriter, *http.Request) { t.Error("a certificate of a stranger was accepted") })
	strict, err := newClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.client = strict
	if err := s.send(t.Context(), m); err == nil || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("certificate: %v", err)
	}

	// Nobody is there: the reason is told, the address is not.
	s = realSender(t, Slack, nil)
	closed := httptest.NewServer(nil)
	closed.Close()
	s.url = parsed(t, closed.URL+"/secret-path")
	s.client.RetryMax = 0
	if err := s.send(t.Context(), m); fault.KindOf(err) != fault.Transient || strings.Contains(err.Error(), "secret-path") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("unreachable: %v", err)
	}
}

// A rotated address is used for the next message.
func TestRotation(t *testing.T) {
	t.Parallel()
	paths := make(chan string, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { paths <- r.URL.Path }))
	defer srv.Close()
	current := srv.URL + "/one"
	n, err := New(Config{Scrub: scrub, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Receivers: []Receiver{{Name: "ops", Type: Teams, URL: func() (string, error) { return current, nil }}}})
	if err != nil {
		t.Fatal(err)
	}
	s := n.mailboxes["ops"].sender
	defer s.client.HTTPClient.CloseIdleConnections()
	for _, path := range []string{"/one", "/two"} {
		current = srv.URL + path
		if err := s.send(t.Context(), compose(t, false, attack())); err != nil {
			t.Fatal(err)
		}
		if got := <-paths; got != path {
			t.Errorf("sent to %s, want %s", got, path)
		}
	}
}

func parsed(t *testing.T, address string) func() (*url.URL, error) {
	t.Helper()
	u, err := url.Parse(address)
	return func() (*url.URL, error) { return u, err }
}

func mustTemplate(t *testing.T, text string) *template.Template {
	t.Helper()
	out, err := template.New("").Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFacts(t *testing.T) {
	t.Parallel()
	m := compose(t, false, Notification{Stack: "web", Revision: strings.Repeat("a", 40), Object: "Pod/x", Actor: "carol"})
	names := func() (out []string) {
		for _, f := range m.facts() {
			out = append(out, f[0])
			if f[0] == "Commit" && f[1] != strings.Repeat("a", 12) {
				t.Errorf("the commit is %s", f[1])
			}
		}
		return out
	}
	if got := strings.Join(names(), " "); got != "Stack Commit Object Actor Time" {
		t.Errorf("of one: %s", got)
	}
	m.Count = 2 // which differ in object and actor
	if got := strings.Join(names(), " "); got != "Stack Commit Time" {
		t.Errorf("of two: %s", got)
	}
	if got := short("v1"); got != "v1" {
		t.Errorf("a short revision is %s", got)
	}
}

// A template that never ends costs no memory.
func TestLimited(t *testing.T) {
	t.Parallel()
	w := limited{left: 5}
	for _, c := range []struct {
		in, want string
		err      error
	}{{"abc", "abc", nil}, {"de", "abcde", nil}, {"f", "abcde", errTooLong}, {"", "abcde", nil}} {
		if _, err := w.Write([]byte(c.in)); err != c.err || w.text.String() != c.want { //nolint:errorlint // it is returned as it is
			t.Errorf("after %q: %q, %v", c.in, w.text.String(), err)
		}
	}
}

// People are offered links that open a page, and nothing else.
func TestSafeLink(t *testing.T) {
	t.Parallel()
	for link, ok := range map[string]bool{
		"https://h/x": true, "http://h/x": true,
		"": false, "javascript:alert(1)": false, "ftp://h/x": false, "//h/x": false, "https:///x": false, "https://[": false, "h/x": false,
	} {
		if got := safeLink(link); (got != "") != ok {
			t.Errorf("%q: %q", link, got)
		}
	}
}

// What there is not has no place in a message, and an end needs no hint.
func TestWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	full := Notification{Class: Drift, Severity: Warning, Title: "Drift: web", Text: "changed", Hint: "look", Link: "https://holdfast.example/x"}
	for name, encode := range map[string]encoder{"slack": slack, "teams": teams} {
		_, raw, _ := body(t, encode, compose(t, false, full), "")
		for _, want := range []string{"🟠 Drift: web", "changed", "Hint: look", "https://holdfast.example/x"} {
			if !strings.Contains(raw, want) {
				t.Errorf("%s: no %s: %s", name, want, raw)
			}
		}
		if _, raw, _ = body(t, encode, compose(t, true, full), ""); strings.Contains(raw, "Hint: ") || !strings.Contains(raw, "✅") {
			t.Errorf("%s of an end: %s", name, raw)
		}
		_, raw, _ = body(t, encode, compose(t, false, Notification{Severity: Critical, Title: "Drift: web"}), "")
		for _, none := range []string{"Hint: ", `"text":""`, "Open", "|"} {
			if strings.Contains(raw, none) {
				t.Errorf("%s of a title alone has %s: %s", name, none, raw)
			}
		}
		if !strings.Contains(raw, "🔴") {
			t.Errorf("%s: nobody sees that it is critical: %s", name, raw)
		}
	}
	if got := icon(message{}); got != "🔵" {
		t.Errorf("a message of no severity has %s", got)
	}
	another := compose(t, false, full)
	another.Open = 2
	if out, raw, _ := body(t, pagerDuty, another, "routing"); out["event_action"] != "trigger" || out["client_url"] != full.Link {
		t.Errorf("a problem beside others: %s", raw)
	}
	if _, raw, _ := body(t, pagerDuty, compose(t, false, Notification{Title: "x"}), "routing"); strings.Contains(raw, "links") {
		t.Errorf("a link that there is not: %s", raw)
	}
	var e event.Event
	if _, raw, _ := body(t, cloudEvent, compose(t, true, full), ""); json.Unmarshal([]byte(raw), &e) != nil || e.Type() != "dev.holdfast.drift.resolved" {
		t.Errorf("the event of an end is %s", e.Type())
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]fault.Kind{301: fault.Denied, 404: fault.Denied, 429: fault.Transient, 500: fault.Transient, 503: fault.Transient} {
		s := &sender{scrub: scrub}
		if err := s.judge(&http.Response{StatusCode: status, Body: http.NoBody}); fault.KindOf(err) != want {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]time.Duration{ // from, to
		"": {}, "soon": {}, "-5": {}, "20": {20 * time.Second, 20 * time.Second}, "99999999999": {maxPause, maxPause},
		time.Now().Add(time.Minute).UTC().Format(http.TimeFormat):  {30 * time.Second, time.Minute},
		time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat): {},
	} {
		if got := retryAfter(&http.Response{Header: http.Header{"Retry-After": {text}}}); got < want[0] || got > want[1] {
			t.Errorf("%q: %s", text, got)
		}
	}
}
