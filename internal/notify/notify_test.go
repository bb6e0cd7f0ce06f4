package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func value(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// phone is a receiver that remembers what it was told, one line each.
type phone struct {
	mu     sync.Mutex
	heard  []string
	at     []time.Time
	answer func(n int) (status int, header http.Header) // of the n-th request; nil: 200
	calls  int
}

func (p *phone) RoundTrip(req *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	p.calls++
	status, header := http.StatusOK, http.Header{}
	if p.answer != nil {
		status, header = p.answer(p.calls)
	}
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	if status/100 == 2 {
		p.heard, p.at = append(p.heard, string(body)), append(p.at, time.Now())
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader("no_service")), Request: req}, nil
}

func (p *phone) rang() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

func (p *phone) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.heard...)
}

// bed is a Notifier whose receivers are phones.
type bed struct {
	*Notifier
	phones map[string]*phone
	reg    *prometheus.Registry
	log    *logbook
	stop   func()
}

// logbook is a log that may be read while it is written.
type logbook struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// plain is the encoder of phones.
func plain(m message, _ string) ([]byte, http.Header, error) {
	kind := "problem"
	if m.Resolved {
		kind = "ended"
	}
	return fmt.Appendf(nil, "%s %s n=%d open=%d %s: %s", kind, m.First.Severity, m.Count, m.Open, m.title(), m.Text), http.Header{}, nil
}

// start runs a Notifier in a synctest bubble.
func start(t *testing.T, c Config, names ...string) *bed {
	t.Helper()
	b := &bed{phones: map[string]*phone{}, reg: prometheus.NewRegistry(), log: &logbook{}}
	for _, n := range names {
		c.Receivers = append(c.Receivers, Receiver{Name: n, Type: Slack, URL: value("https://chat.example/" + n), Repeat: 4 * time.Hour})
	}
	if c.Scrub == nil {
		c.Scrub = func(s string) string { return strings.ReplaceAll(s, "hunter2", "(masked)") }
	}
	c.Metrics, c.Log = b.reg, slog.New(slog.NewTextHandler(b.log, nil))
	var err error
	if b.Notifier, err = New(c); err != nil {
		t.Fatal(err)
	}
	for n, box := range b.mailboxes {
		b.phones[n] = &phone{}
		box.sender.client.HTTPClient.Transport, box.sender.encode = b.phones[n], plain
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return b
}

func drift(stack, object string) Notification {
	return Notification{ID: "drift/" + object + "/" + stack, Class: Drift, Severity: Warning, Environment: "production", Stack: stack, Object: object,
		Title: "Drift: " + stack, Text: object + " modified by carol", Time: time.Now()}
}

func ended(n Notification) Notification {
	n.Resolved, n.Title, n.Text, n.Time = true, "Drift ended: "+n.Stack, n.Object+" is as it was", time.Now()
	return n
}

func expect(t *testing.T, p *phone, want ...string) {
	t.Helper()
	got := p.said()
	if len(got) != len(want) {
		t.Fatalf("heard %d messages, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("message %d is %q, want %q in it", i, got[i], want[i])
		}
	}
}

// settle lets time pass.
func settle(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

func TestSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		d := drift("web", "Deployment/shop/web")
		for range 5 {
			b.Notify(d)
			settle(10 * time.Second)
		}
		expect(t, b.phones["ops"], "problem warning n=1")
		if n := count(t, mustMetric(t, b).WithLabelValues("ops", outcomeSuppressed)); n != 4 {
			t.Errorf("suppressed %v", n)
		}
		// What changed is said.
		d.Text = "Deployment/shop/web modified by mallory"
		b.Notify(d)
		settle(time.Minute)
		expect(t, b.phones["ops"], "carol", "mallory")
		// What lasts is said again, once in a while.
		settle(4*time.Hour + time.Minute)
		expect(t, b.phones["ops"], "carol", "mallory", "mallory")
		// An end is said once; then it is a new problem.
		b.Notify(ended(d))
		b.Notify(ended(d))
		settle(10 * time.Minute)
		b.Notify(d)
		settle(10 * time.Minute)
		expect(t, b.phones["ops"], "carol", "mallory", "mallory", "ended info n=1 open=0 Drift ended: web", "mallory")
		settle(2 * time.Hour)
		expect(t, b.phones["ops"], "carol", "mallory", "mallory", "ended", "mallory")
	})
}

func count(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func mustMetric(t *testing.T, b *bed) *prometheus.CounterVec {
	t.Helper()
	for _, box := range b.mailboxes {
		return box.metrics.sent
	}
	t.Fatal("no receiver")
	return nil
}

func TestBurstIsOneMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		for i := range 100 {
			b.Notify(drift("web", fmt.Sprintf("ConfigMap/shop/c%03d", i)))
			settle(5 * time.Millisecond)
		}
		b.Notify(drift("db", "Secret/shop/db"))
		settle(2 * time.Second)
		got := b.phones["ops"].said()
		if len(got) != 2 {
			t.Fatalf("%d messages: %v", len(got), got)
		}
		if !strings.Contains(strings.Join(got, "\n"), "n=100 open=100 Drift: web (100): 10 of 100:") {
			t.Errorf("burst: %v", got)
		}
		for i := range 99 {
			b.Notify(ended(drift("web", fmt.Sprintf("ConfigMap/shop/c%03d", i))))
		}
		settle(time.Minute)
		expect(t, b.phones["ops"], "problem", "problem", "ended info n=99 open=1")
	})
}

// Something that flaps all day is not a message each time.
func TestFlapping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		for range 3600 {
			d := drift("web", "Deployment/shop/web")
			b.Notify(d)
			settle(500 * time.Millisecond)
			b.Notify(ended(d))
			settle(500 * time.Millisecond)
		}
		got := b.phones["ops"].said()
		if len(got) < 10 || len(got) > 60 {
			t.Errorf("%d messages in an hour", len(got))
		}
		if !strings.Contains(strings.Join(got, "\n"), "times)") {
			t.Errorf("nobody says how often: %v", got)
		}
	})
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{Routes: []Route{
			{Receivers: []string{"ops"}, Environments: []string{"production"}, Classes: []Class{Drift, Recovered}},
			{Receivers: []string{"security"}, Severity: Critical},
			{Receivers: []string{"shop"}, Stacks: []string{"shop-*"}, Classes: []Class{Denied}},
		}}, "ops", "security", "shop")
		defer b.stop()
		web := drift("shop-web", "Deployment/shop/web")
		side := drift("shop-web", "Pod/shop/side")
		side.Severity = Critical
		staging := drift("shop-web", "Deployment/stage/web")
		staging.Environment = "staging"
		denied := Notification{ID: "stack/shop-db", Class: Denied, Severity: Warning, Stack: "shop-db", Environment: "staging", Title: "Denied: shop-db", Text: "no signature"}
		other := denied
		other.ID, other.Stack = "stack/billing", "billing"
		for _, n := range []Notification{web, side, staging, denied, other} {
			b.Notify(n)
		}
		settle(time.Minute)
		expect(t, b.phones["ops"], "problem critical n=2")
		expect(t, b.phones["security"], "Pod/shop/side")
		expect(t, b.phones["shop"], "no signature")
		// A recovery is for whoever heard of the problem, and wants it.
		for _, n := range []Notification{web, side, staging, denied, other} {
			b.Notify(ended(n))
		}
		settle(time.Minute)
		expect(t, b.phones["ops"], "problem", "ended info n=2")
		expect(t, b.phones["security"], "problem", "ended info n=1")
		expect(t, b.phones["shop"], "no signature")
	})
}

// A drift that is reverted at once is told, and so is its end.
func TestProblemAndEndTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		d := drift("web", "Deployment/shop/web")
		b.Notify(d)
		b.Notify(ended(d))
		settle(2 * time.Second)
		expect(t, b.phones["ops"], "problem warning n=1", "ended info n=1 open=0")
	})
}

func TestRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops", "other")
		defer b.stop()
		begin := time.Now()
		b.phones["ops"].answer = func(n int) (int, http.Header) {
			switch {
			case n <= 2:
				return http.StatusInternalServerError, http.Header{}
			case n == 3:
				return http.StatusTooManyRequests, http.Header{"Retry-After": {"20"}}
			}
			return http.StatusOK, http.Header{}
		}
		b.Notify(drift("web", "Deployment/shop/web"))
		settle(2 * time.Second)
		expect(t, b.phones["other"], "problem") // one receiver's trouble is its own
		settle(time.Minute)
		expect(t, b.phones["ops"], "problem")
		if took := b.phones["ops"].at[0].Sub(begin); took < 23*time.Second || took > time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

// A receiver that is away for an hour hears of the problems when it is back,
// once each, and is not asked without pause.
func TestReceiverAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		back := time.Now().Add(time.Hour)
		b.phones["ops"].answer = func(int) (int, http.Header) {
			if time.Now().Before(back) {
				return 0, nil
			}
			return http.StatusOK, http.Header{}
		}
		web, db := drift("web", "Deployment/shop/web"), drift("web", "Deployment/shop/db")
		b.Notify(web)
		b.Notify(db)
		settle(30 * time.Minute)
		b.Notify(ended(web))
		settle(35 * time.Minute)
		expect(t, b.phones["ops"], "problem warning n=2", "ended info n=1 open=1")
		if n := b.phones["ops"].rang(); n > 400 {
			t.Errorf("asked %d times in an hour", n)
		}
		if !strings.Contains(b.log.String(), "notification not sent") || strings.Contains(b.log.String(), "chat.example") {
			t.Errorf("log: %s", b.log)
		}
	})
}

// A receiver that asks for an hour of quiet gets it.
func TestLongRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		b.phones["ops"].answer = func(n int) (int, http.Header) {
			if n == 1 {
				return http.StatusTooManyRequests, http.Header{"Retry-After": {"1800"}}
			}
			return http.StatusOK, http.Header{}
		}
		b.Notify(drift("web", "Deployment/shop/web"))
		b.Notify(drift("db", "Deployment/shop/db"))
		settle(29 * time.Minute)
		if n := b.phones["ops"].rang(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		settle(5 * time.Minute)
		expect(t, b.phones["ops"], "problem", "problem")
	})
}

// A receiver that refuses a problem is not told of its end, and not asked again.
func TestRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		b.phones["ops"].answer = func(int) (int, http.Header) { return http.StatusForbidden, http.Header{} }
		d := drift("web", "Deployment/shop/web")
		b.Notify(d)
		settle(time.Minute)
		b.Notify(ended(d))
		settle(time.Minute)
		if n := b.phones["ops"].rang(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		if n := count(t, mustMetric(t, b).WithLabelValues("ops", outcomeRefused)); n != 1 {
			t.Errorf("refused %v", n)
		}
	})
}

// What waits is sent when Run ends, for five seconds and no longer.
func TestFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops", "away")
		b.phones["away"].answer = func(int) (int, http.Header) { return 0, nil }
		b.Notify(drift("web", "Deployment/shop/web"))
		begin := time.Now()
		b.stop()
		if took := time.Since(begin); took > flushTime {
			t.Errorf("the end took %s", took)
		}
		expect(t, b.phones["ops"], "problem")
	})
}

// Notify never waits, and memory is bounded.
func TestStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := Config{Scrub: func(s string) string { return s }, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			Receivers: []Receiver{{Name: "ops", Type: Slack, URL: value("https://chat.example/x")}}}
		n, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		for i := range queueLength + 50 { // nobody runs
			n.Notify(drift("web", fmt.Sprint(i)))
		}
		if got := count(t, n.dropped); got != 50 {
			t.Errorf("dropped %v", got)
		}
		if first := n.queue[0].Object; first != "50" {
			t.Errorf("the oldest is %s", first)
		}
		box := n.mailboxes["ops"]
		for i := range 3 * maxProblems {
			box.add(drift("web", fmt.Sprint(i)), true)
		}
		if len(box.problems) > maxProblems {
			t.Errorf("remembers %d problems", len(box.problems))
		}
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := Receiver{Name: "ops", Type: Slack, URL: value("https://chat.example/secret-path")}
	for name, change := range map[string]func(*Config, *Receiver){
		"plain http":       func(_ *Config, r *Receiver) { r.URL = value("http://chat.example/secret-path") },
		"not a URL":        func(_ *Config, r *Receiver) { r.URL = value("secret-path") },
		"other scheme":     func(_ *Config, r *Receiver) { r.URL = value("ftp://chat.example/secret-path") },
		"control":          func(_ *Config, r *Receiver) { r.URL = value("https://chat.example/secret-path\x01") },
		"http to a number": func(_ *Config, r *Receiver) { r.URL = value("http://10.0.0.1/secret-path") },
		"no host":          func(_ *Config, r *Receiver) { r.URL = value("https:///secret-path") },
		"no URL":           func(_ *Config, r *Receiver) { r.URL = nil },
		"unknown type":     func(_ *Config, r *Receiver) { r.Type = "smoke" },
		"no name":          func(_ *Config, r *Receiver) { r.Name = "" },
		"twice":            func(c *Config, r *Receiver) { c.Receivers = append(c.Receivers, *r) },
		"unreadable":       func(_ *Config, r *Receiver) { r.URL = func() (string, error) { return "", errors.New("no such file") } },
		"short key":        func(_ *Config, r *Receiver) { r.Type, r.Key = Webhook, value("fifteen bytes..") },
		"no routing key":   func(_ *Config, r *Receiver) { r.Type, r.Key = PagerDuty, value("") },
		"bad CA":           func(_ *Config, r *Receiver) { r.CA = []byte("not PEM") },
		"template syntax":  func(_ *Config, r *Receiver) { r.Template = "{{" },
		"template field":   func(_ *Config, r *Receiver) { r.Template = "{{.Secret}}" },
		"unknown route":    func(c *Config, _ *Receiver) { c.Routes = []Route{{Receivers: []string{"nobody"}}} },
		"bad glob":         func(c *Config, r *Receiver) { c.Routes = []Route{{Receivers: []string{r.Name}, Stacks: []string{"["}}} },
	} {
		r := good
		c := Config{Scrub: func(s string) string { return s }, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
		change(&c, &r)
		c.Receivers = append(c.Receivers, r)
		_, err := New(c)
		if fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error()+fault.HintOf(err), "secret-path") {
			t.Errorf("%s: the error holds the address: %v", name, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:8080/x", "http://localhost/x", "http://[::1]/x", " https://chat.example/x\n"} {
		if _, err := parseAddress(u); err != nil {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// A problem that is back before its end was said goes on.
func TestBackBeforeTheEndWasSaid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		d := drift("web", "Deployment/shop/web")
		b.Notify(d)
		settle(time.Minute)
		b.Notify(ended(d))
		b.Notify(d)
		settle(time.Minute)
		expect(t, b.phones["ops"], "problem", "problem")
	})
}

// What was said longest ago is forgotten first, and what waits last: only that is lost.
func TestMakeRoom(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		waiting map[string]bool
		gone    string
		dropped float64
	}{
		"nothing waits":    {nil, "0000", 0},
		"the oldest waits": {map[string]bool{"0000": true}, "0001", 0},
		"one does not":     {nil, "1000", 0},
		"all wait":         {nil, "0000", 1},
	} {
		m, err := newMetrics(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		b := &mailbox{metrics: m, problems: map[string]*problem{}}
		for i := range maxProblems {
			id := fmt.Sprintf("%04d", i)
			waits := tc.waiting[id] || name == "all wait" || name == "one does not" && id != "1000"
			b.problems[id] = &problem{said: now.Add(time.Duration(i) * time.Second), waiting: waits}
		}
		b.makeRoom()
		if b.problems[tc.gone] != nil || len(b.problems) != maxProblems-1 || count(t, m.dropped) != tc.dropped {
			t.Errorf("%s: %s is there: %t; %v dropped", name, tc.gone, b.problems[tc.gone] != nil, count(t, m.dropped))
		}
	}
}

// PagerDuty counts what is open, so it hears every end, whatever the routes
// leave out; and what is not to be repeated is said once.
func TestEndsForPagerDuty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		receivers := []Receiver{
			{Name: "duty", Type: PagerDuty, Key: value("routing")},
			{Name: "chat", Type: Slack, URL: value("https://chat.example/x")},
		}
		b := start(t, Config{Receivers: receivers, Routes: []Route{{Receivers: []string{"duty", "chat"}, Classes: []Class{Drift}}}})
		defer b.stop()
		d := drift("web", "Deployment/shop/web")
		b.Notify(d)
		settle(48 * time.Hour)
		b.Notify(ended(d))
		settle(time.Minute)
		expect(t, b.phones["duty"], "problem", "ended")
		expect(t, b.phones["chat"], "problem")
	})
}

// Whoever was promised an end hears of it, also if the problem changed into one
// whose route promises none.
func TestEndThatWasPromised(t *testing.T) {
	t.Parallel()
	n, err := New(Config{Scrub: scrub, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Receivers: []Receiver{{Name: "ops", Type: Slack, URL: value("https://chat.example/x")}}})
	if err != nil {
		t.Fatal(err)
	}
	box, d := n.mailboxes["ops"], drift("web", "Deployment/shop/web")
	box.add(d, true)
	d.Severity = Critical
	box.add(d, false)
	box.resolve(ended(d))
	if out, _ := box.next(true); out == nil || len(out.opened) != 1 || len(out.closed) != 1 || out.opened[0].times != 2 {
		t.Errorf("%+v", out)
	}
}

func TestNewAccepts(t *testing.T) {
	t.Parallel()
	url := value("https://chat.example/x")
	for name, r := range map[string]Receiver{
		"a webhook that is signed":     {Type: Webhook, URL: url, Key: value("0123456789abcdef")},
		"a webhook that is not":        {Type: Webhook, URL: url},
		"a key that signs nothing":     {Type: Slack, URL: url, Key: value("short")},
		"PagerDuty":                    {Type: PagerDuty, Key: value("routing")},
		"PagerDuty in another country": {Type: PagerDuty, Key: value("routing"), URL: url},
	} {
		s, err := newSender(r, scrub)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if to, err := s.url(); err != nil || (to.String() == pagerDutyURL) != (r.URL == nil) {
			t.Errorf("%s: sends to %s, %v", name, to, err)
		}
	}
	for i := range 3 {
		c := Config{Scrub: scrub, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
		switch i {
		case 0:
			c.Scrub = nil
		case 1:
			c.Log = nil
		case 2:
			c.Metrics = nil
		}
		if _, err := New(c); err == nil {
			t.Errorf("%d: a Notifier without all it needs", i)
		}
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	own, none := drift("web", "Pod/x"), drift("web", "Pod/x")
	own.Link = "https://own.example"
	for _, c := range []struct {
		template string
		n        Notification
		want     string
	}{
		{"https://h/{environment}/{stack}", none, "https://h/production/web"},
		{"https://h/{environment}/{stack}", own, "https://own.example"},
		{"", own, "https://own.example"},
		{"", none, ""},
	} {
		n, err := New(Config{Scrub: scrub, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Link: c.template,
			Receivers: []Receiver{{Name: "ops", Type: Slack, URL: value("https://chat.example/x")}}})
		if err != nil {
			t.Fatal(err)
		}
		n.Notify(c.n)
		n.dispatch()
		if got := n.mailboxes["ops"].problems[c.n.ID].n.Link; got != c.want {
			t.Errorf("%q: %q, want %q", c.template, got, c.want)
		}
	}
}

// One route is enough to be promised an end.
func TestAudience(t *testing.T) {
	t.Parallel()
	ends, none := Route{Receivers: []string{"ops"}}, Route{Receivers: []string{"ops"}, Classes: []Class{Drift}}
	for _, routes := range [][]Route{{ends, none}, {none, ends}} {
		n := &Notifier{cfg: Config{Routes: routes}}
		if got := n.audience(drift("web", "Pod/x")); len(got) != 1 || !got["ops"] {
			t.Errorf("%v", got)
		}
	}
}

// An end that a receiver was away for is told when it is back.
func TestEndIsToldLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, Config{}, "ops")
		defer b.stop()
		d := drift("web", "Deployment/shop/web")
		b.Notify(d)
		settle(time.Minute)
		back := time.Now().Add(time.Hour)
		b.phones["ops"].mu.Lock()
		b.phones["ops"].answer = func(int) (int, http.Header) {
			if time.Now().Before(back) {
				return 0, nil
			}
			return http.StatusOK, http.Header{}
		}
		b.phones["ops"].mu.Unlock()
		b.Notify(ended(d))
		settle(90 * time.Minute)
		expect(t, b.phones["ops"], "problem", "ended")
	})
}
