package forge

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "correct-horse-battery"

var signingToken = signingPrefix + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))

func hash(body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

// standard signs as GitLab does with a signing token.
func standard(body, id string, at time.Time) map[string]string {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte("0123456789abcdef0123456789abcdef"))
	mac.Write([]byte(id + "." + timestamp + "." + body))
	return map[string]string{"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}
}

// bed is a Handler that counts looks.
type bed struct {
	*Handler
	looks atomic.Int32
}

func fixed(s string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(s), nil } }

func newBed(t testing.TB, hooks ...Hook) *bed {
	t.Helper()
	if len(hooks) == 0 {
		for _, p := range []Provider{GitHub, GitLab, Gitea, Forgejo, Bitbucket} {
			hooks = append(hooks, Hook{Repository: string(p), Provider: p, Secret: fixed(secret)})
		}
		hooks = append(hooks, Hook{Repository: "signed", Provider: GitLab, Secret: fixed(signingToken)})
	}
	b := &bed{}
	var err error
	b.Handler, err = New(Config{Hooks: hooks, Poke: func(string) { b.looks.Add(1) }, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) post(repository, body string, headers map[string]string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/hooks/"+repository, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

const push = `{"ref":"refs/heads/main"}`

func TestProviders(t *testing.T) {
	t.Parallel()
	rotated := standard(push, "msg_1", time.Now())
	rotated["webhook-signature"] += " v1," + base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))
	for name, c := range map[string]struct {
		repository string
		headers    map[string]string
	}{
		"github":              {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push), "X-GitHub-Event": "push"}},
		"gitlab token":        {"gitlab", map[string]string{"X-Gitlab-Token": secret, "X-Gitlab-Event": "Push Hook"}},
		"gitlab signed":       {"signed", standard(push, "msg_1", time.Now())},
		"gitea":               {"gitea", map[string]string{"X-Gitea-Signature": hash(push), "X-Gitea-Event": "push"}},
		"gitea as github":     {"gitea", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push)}},
		"forgejo":             {"forgejo", map[string]string{"X-Forgejo-Signature": hash(push), "X-Gitea-Signature": hash(push), "X-Forgejo-Event": "push"}},
		"forgejo, older":      {"forgejo", map[string]string{"X-Gitea-Signature": hash(push), "X-Gitea-Event": "push"}},
		"bitbucket":           {"bitbucket", map[string]string{"X-Hub-Signature": "sha256=" + hash(push), "X-Event-Key": "repo:push"}},
		"bitbucket, own host": {"bitbucket", map[string]string{"X-Hub-Signature": "sha256=" + hash(push), "X-Event-Key": "repo:refs_changed"}},
		"gitlab, two signed":  {"signed", rotated},
		"github, by Gitea":    {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push), "X-Gitea-Event": "issues"}},
		"a form":              {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push), "Content-Type": "application/x-www-form-urlencoded"}},
	} {
		b := newBed(t)
		if w := b.post(c.repository, push, c.headers); w.Code != http.StatusAccepted || b.looks.Load() != 1 {
			t.Errorf("%s: %d, %d looks", name, w.Code, b.looks.Load())
		}
	}
	// Another event is taken, and nothing happens.
	b := newBed(t)
	for repository, events := range map[string]map[string]string{
		"github": {"X-GitHub-Event": "ping"}, "gitea": {"X-Gitea-Event": "issues"}, "forgejo": {"X-Gitea-Event": "issues"},
	} {
		events["X-Hub-Signature-256"] = "sha256=" + hash(push)
		if w := b.post(repository, push, events); w.Code != http.StatusAccepted || b.looks.Load() != 0 {
			t.Errorf("%s: %d, %d looks", repository, w.Code, b.looks.Load())
		}
	}
	both := map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push), "X-Forgejo-Event": "issues", "X-Gitea-Event": "push"}
	if w := b.post("forgejo", push, both); w.Code != http.StatusAccepted || b.looks.Load() != 0 {
		t.Errorf("another forge's event: %d, %d looks", w.Code, b.looks.Load())
	}
}

// Class 17: a webhook that anyone can make. CVE-2022-24912 (timing),
// CVE-2026-40109 (a claim that nobody checked), CVE-2026-102649 (empty secret).
func TestClass17WebhookAuthentication(t *testing.T) {
	t.Parallel()
	wrong := hex.EncodeToString(make([]byte, sha256.Size))
	other := strings.Replace(push, "main", "evil", 1)
	stale := standard(push, "msg_1", time.Now().Add(-time.Hour))
	ahead := standard(push, "msg_1", time.Now().Add(time.Hour))
	noID := standard(push, "", time.Now())
	renamed := standard(push, "msg_1", time.Now())
	renamed["webhook-id"] = "msg_2"
	both := map[string]string{"X-Gitlab-Token": signingToken}
	unversioned, longer := standard(push, "msg_1", time.Now()), standard(push, "msg_1", time.Now())
	unversioned["webhook-signature"] = strings.TrimPrefix(unversioned["webhook-signature"], "v1,")
	longer["webhook-signature"] += "!!"
	sha1 := map[string]string{"X-Hub-Signature": "sha1=5257a869e7ecebeda32affa62cdca3fa51cad77e"}
	cases := map[string]struct {
		repository string
		headers    map[string]string
	}{
		"nothing":                     {"github", nil},
		"empty":                       {"github", map[string]string{"X-Hub-Signature-256": ""}},
		"empty hex":                   {"github", map[string]string{"X-Hub-Signature-256": "sha256="}},
		"no prefix":                   {"github", map[string]string{"X-Hub-Signature-256": hash(push)}},
		"wrong":                       {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + wrong}},
		"cut":                         {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push)[:62]}},
		"of another body":             {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(other)}},
		"SHA-1":                       {"github", sha1},
		"SHA-1 to bitbucket":          {"bitbucket", sha1},
		"by another forge's header":   {"github", map[string]string{"X-Gitea-Signature": hash(push)}},
		"a token where it is signed":  {"github", map[string]string{"X-Gitlab-Token": secret}},
		"good after wrong":            {"forgejo", map[string]string{"X-Forgejo-Signature": wrong, "X-Gitea-Signature": hash(push)}},
		"gitlab: none":                {"gitlab", nil},
		"gitlab: empty":               {"gitlab", map[string]string{"X-Gitlab-Token": ""}},
		"gitlab: prefix":              {"gitlab", map[string]string{"X-Gitlab-Token": secret[:len(secret)-1]}},
		"gitlab: stale":               {"signed", stale},
		"gitlab: ahead":               {"signed", ahead},
		"gitlab: no id":               {"signed", noID},
		"gitlab: another id":          {"signed", renamed},
		"gitlab: token is not enough": {"signed", both},
		"gitlab: no version":          {"signed", unversioned},
		"gitlab: and more":            {"signed", longer},
		"and more":                    {"github", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push) + "zz"}},
		"unknown repository":          {"nowhere", map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push)}},
	}
	b := newBed(t)
	var first string
	for name, c := range cases {
		w := b.post(c.repository, push, c.headers)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, w.Code)
		}
		// One answer for everybody: it tells nobody which repositories there are.
		answer := fmt.Sprint(w.Code, w.Header(), w.Body)
		if first == "" {
			first = answer
		}
		if answer != first {
			t.Errorf("%s is answered %s, others %s", name, answer, first)
		}
	}
	// A header that is there twice counts for nothing.
	r := httptest.NewRequest(http.MethodPost, "/hooks/github", strings.NewReader(push))
	r.Header = http.Header{"Content-Type": {"application/json"}, "X-Hub-Signature-256": {"sha256=" + hash(push), "sha256=" + wrong}}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized || b.looks.Load() != 0 {
		t.Errorf("two signatures: %d; %d looks in all", w.Code, b.looks.Load())
	}

	for name, s := range map[string]func() ([]byte, error){
		"empty": fixed(""), "short": fixed("fifteen bytes.."), "missing": func() ([]byte, error) { return nil, errors.New("no such file") }, "none": nil,
		"broken signing token": fixed(signingToken + "!!"),
		"empty signing token":  fixed(signingPrefix + "                "), "short signing token": fixed(signingPrefix + "MDEyMzQ1Njc4OWFi"),
	} {
		provider := GitLab
		_, err := New(Config{Hooks: []Hook{{Repository: "shop", Provider: provider, Secret: s}}, Poke: func(string) {}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
		if fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s secret: %v", name, err)
		}
	}
	// An empty key signs for everybody, wherever it would come from.
	mac := hmac.New(sha256.New, nil)
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac.Write([]byte("msg_1." + stamp + "." + push))
	header := http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {stamp}, "Webhook-Signature": {"v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
	if ok, err := standardWebhook(header, "", strings.NewReader(push)); ok || err != nil {
		t.Errorf("signed with an empty key: %t, %v", ok, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Hook{Repository: "shop", Provider: GitHub, Secret: fixed(secret)}
	used := prometheus.NewRegistry()
	for i, change := range []func(*Config){
		func(*Config) {}, // the first with its registry
		func(c *Config) { c.Hooks = nil },
		func(c *Config) { c.Poke = nil },
		func(c *Config) { c.Log = nil },
		func(c *Config) { c.Metrics = nil },
		func(c *Config) { c.Metrics = used },
		func(c *Config) { c.Hooks = append(c.Hooks, good) },
		func(c *Config) { c.Hooks[0].Repository = "" },
		func(c *Config) { c.Hooks[0].Provider = "svn" },
	} {
		c := Config{Hooks: []Hook{good}, Poke: func(string) {}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
		if i == 0 {
			c.Metrics = used
		}
		change(&c)
		if _, err := New(c); (err == nil) != (i == 0) {
			t.Errorf("%d: %v", i, err)
		}
	}
	// Only GitLab's secrets have a form.
	newBed(t, Hook{Repository: "shop", Provider: GitHub, Secret: fixed(signingPrefix + "is no key in base64")})
}

// A secret that is lost or emptied while the daemon runs lets nobody in; a new
// one counts at once.
func TestSecretRotation(t *testing.T) {
	t.Parallel()
	current, failing := secret, false
	b := newBed(t, Hook{Repository: "shop", Provider: GitHub, Secret: func() ([]byte, error) {
		if failing {
			return nil, errors.New("no such file")
		}
		return []byte(current), nil
	}})
	good := map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push)}
	if w := b.post("shop", push, good); w.Code != http.StatusAccepted {
		t.Errorf("before: %d", w.Code)
	}
	current = "another-secret-of-ours"
	if w := b.post("shop", push, good); w.Code != http.StatusUnauthorized {
		t.Errorf("the old secret: %d", w.Code)
	}
	current = ""
	mac := hmac.New(sha256.New, nil)
	mac.Write([]byte(push))
	if w := b.post("shop", push, map[string]string{"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil))}); w.Code != http.StatusUnauthorized {
		t.Errorf("signed with an empty secret: %d", w.Code)
	}
	failing = true
	if w := b.post("shop", push, good); w.Code != http.StatusUnauthorized {
		t.Errorf("no secret: %d", w.Code)
	}
}

// Class 18: webhooks that stop the daemon. CVE-2024-40634, CVE-2025-59531,
// CVE-2025-59537, CVE-2025-59538.
func TestClass18WebhookDenialOfService(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	big := strings.Repeat("x", maxBody+1)
	sum := map[string]string{"X-Hub-Signature-256": "sha256=" + hash(big)}
	if w := b.post("github", big, sum); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a declared large body: %d", w.Code)
	}
	for _, repository := range []string{"github", "gitlab", "signed", "nowhere"} { // chunked: the length shows while reading
		r := httptest.NewRequest(http.MethodPost, "/hooks/"+repository, io.MultiReader(strings.NewReader(big)))
		r.ContentLength = -1
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Hub-Signature-256", sum["X-Hub-Signature-256"])
		r.Header.Set("X-Gitlab-Token", secret)
		w := httptest.NewRecorder()
		b.ServeHTTP(w, r)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: a large body: %d", repository, w.Code)
		}
	}
	for name, w := range map[string]*httptest.ResponseRecorder{
		"get": func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			b.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/hooks/github", nil))
			return w
		}(),
		"other path": func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			b.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/apply", nil))
			return w
		}(),
		"content type": b.post("github", push, map[string]string{"Content-Type": "text/plain", "X-Hub-Signature-256": "sha256=" + hash(push)}),
		"broken type":  b.post("github", push, map[string]string{"Content-Type": "application/json; x", "X-Hub-Signature-256": "sha256=" + hash(push)}),
		"no type":      b.post("github", push, map[string]string{"Content-Type": "", "X-Hub-Signature-256": "sha256=" + hash(push)}),
	} {
		if w.Code/100 != 4 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if b.looks.Load() != 0 {
		t.Errorf("%d looks", b.looks.Load())
	}
	// A body that breaks off is not a denial.
	r := httptest.NewRequest(http.MethodPost, "/hooks/github", iotest.ErrReader(errors.New("reset")))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	if b.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
		t.Errorf("a body that breaks off: %d", w.Code)
	}
	// What a body holds does not matter, as long as it is signed: it is not parsed.
	for _, body := range []string{"", "null", "[]", `{"ref":1}`, `{"repository":{"html_url":"(a+)+$"}}`, strings.Repeat("[", 100_000), "\x00\xff"} {
		fresh := newBed(t)
		if w := fresh.post("github", body, map[string]string{"X-Hub-Signature-256": "sha256=" + hash(body)}); w.Code != http.StatusAccepted {
			t.Errorf("%.20q: %d", body, w.Code)
		}
	}
}

// A storm of webhooks is one look per pace, the last one included.
func TestStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		headers := map[string]string{"X-Hub-Signature-256": "sha256=" + hash(push)}
		for range 1000 {
			b.post("github", push, headers)
			time.Sleep(pace / 200)
		}
		if n := b.looks.Load(); n < 5 || n > 6 {
			t.Errorf("%d looks in the time of five", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		before := b.looks.Load()
		b.post("github", push, headers)
		b.post("github", push, headers) // comes too early: looked at later
		if n := b.looks.Load(); n != before+1 {
			t.Errorf("%d looks at once", n-before)
		}
		b.post("gitea", push, map[string]string{"X-Gitea-Signature": hash(push)}) // another repository does not wait
		if n := b.looks.Load(); n != before+2 {
			t.Errorf("%d looks at two repositories", n-before)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := b.looks.Load(); n != before+3 {
			t.Errorf("the last one was not looked at: %d", n-before)
		}
		b.post("github", push, headers)
		b.post("github", push, headers)
		for _, k := range b.hooks {
			k.looks.stop()
		}
		time.Sleep(2 * time.Second)
		b.post("gitea", push, map[string]string{"X-Gitea-Signature": hash(push)}) // for which none waited
		if n := b.looks.Load(); n != before+4 {
			t.Errorf("%d looks after the end", n-before)
		}
	})
}

// Clients that hold connections open do not keep others out for ever, and the
// end does not wait for them.
func TestServe(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, l) }()
	idle := make([]net.Conn, maxConnections-1)
	for i := range idle {
		if idle[i], err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(idle[i], "POST /hooks/github HTTP/1.1\r\nHost: x\r\n")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+l.Addr().String()+"/hooks/github", strings.NewReader(push))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, "X-Hub-Signature-256": {"sha256=" + hash(push)}}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted || b.looks.Load() != 1 {
		t.Errorf("answer %d, %d looks", resp.StatusCode, b.looks.Load())
	}
	// Whoever does not finish is cut off.
	if err := idle[0].SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, idle[0]); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("a slow client is not cut off: %v", err)
	}
	cancel()
	start := time.Now()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	for _, c := range idle {
		_ = c.Close()
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// FuzzWebhook looks for a panic, and for anyone who gets in without the secret.
func FuzzWebhook(f *testing.F) {
	b := newBed(f)
	for _, repository := range []string{"github", "gitlab", "gitea", "forgejo", "bitbucket", "signed", "nowhere"} {
		f.Add(repository, "application/json", "X-Hub-Signature-256", "sha256="+hash(push), "X-GitHub-Event", "push", []byte(push))
		f.Add(repository, "application/json; charset=utf-8", "X-Gitlab-Token", secret, "X-Gitlab-Event", "Push Hook", []byte(push))
		f.Add(repository, "text/plain", "Webhook-Signature", "v1,AAAA v1, v2,x", "Webhook-Timestamp", "-9223372036854775808", []byte{})
		f.Add(repository, "", "X-Gitea-Signature", hash(""), "X-Hub-Signature", "sha1=", []byte{0xff})
	}
	f.Fuzz(func(t *testing.T, repository, media, name, value, name2, value2 string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/hooks/x", bytes.NewReader(body))
		r.Header = http.Header{}
		r.Header.Set("Content-Type", media)
		r.Header.Add(name, value)
		r.Header.Add(name2, value2)
		r.SetPathValue("repository", repository)
		w := httptest.NewRecorder()
		b.receive(w, r)
		headers := map[string]string{name: value, name2 + "\x00": value2}
		knows := false
		for _, v := range headers {
			knows = knows || strings.Contains(v, secret) || strings.Contains(strings.ToLower(v), hash(string(body)))
		}
		if w.Code == http.StatusAccepted && !knows {
			t.Errorf("%q let in %q %q: %q", repository, headers, body, w.Body)
		}
	})
}
