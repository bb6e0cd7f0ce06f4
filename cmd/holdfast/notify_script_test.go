package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// mailroom is an HTTPS server that stands for all receivers, one path each.
type mailroom struct {
	mu    sync.Mutex
	heard map[string][]string // receiver → bodies
}

// receiverKey is PagerDuty's integration key, and what CloudEvents are signed with.
const receiverKey = "receiver-key-7c1f0d9a"

func (m *mailroom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	name := strings.TrimPrefix(r.URL.Path, "/services/")
	if err == nil && name == "webhook" {
		mac := hmac.New(sha256.New, []byte(receiverKey))
		mac.Write(body)
		if r.Header.Get("X-Holdfast-Signature-256") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			http.Error(w, "wrong signature", http.StatusUnauthorized)
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard[name] = append(m.heard[name], string(body))
	w.WriteHeader(http.StatusAccepted)
}

func (m *mailroom) matching(name string, re *regexp.Regexp) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, body := range m.heard[name] {
		if re.MatchString(body) {
			n++
		}
	}
	return n
}

// receiver is where notifications arrive:
//
//	receiver start                  an HTTPS server for slack, teams, pagerduty and webhook, with NAME.url files in $WORLD
//	receiver wait NAME REGEXP       until NAME got a message that matches
//	receiver count NAME REGEXP N    NAME got exactly N messages that match
//	receiver log                    prints what arrived
func (s *script) receiver(ts *testscript.TestScript, _ bool, args []string) {
	switch {
	case args[0] == "start":
		s.mail = &mailroom{heard: map[string][]string{}}
		srv := httptest.NewTLSServer(s.mail)
		ts.Defer(srv.Close)
		files := map[string]string{
			"receiver-ca.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})),
			"receiver.key":    receiverKey + "\n",
		}
		for _, name := range []string{"slack", "teams", "pagerduty", "webhook"} {
			files[name+".url"] = srv.URL + "/services/" + name + "\n"
		}
		for name, text := range files {
			s.check(ts, os.WriteFile(filepath.Join(s.w.Dir, name), []byte(text), 0o600))
		}
	case args[0] == "wait" && len(args) == 3:
		re := regexp.MustCompile(args[2])
		s.poll(ts, strings.Join(args, " "), func(context.Context) (bool, error) { return s.mail.matching(args[1], re) > 0, nil })
	case args[0] == "count" && len(args) == 4:
		if got := strconv.Itoa(s.mail.matching(args[1], regexp.MustCompile(args[2]))); got != args[3] {
			s.check(ts, fmt.Errorf("%s got %s messages that match %s, want %s", args[1], got, args[2], args[3]))
		}
	case args[0] == "log":
		s.mail.mu.Lock()
		defer s.mail.mu.Unlock()
		for name, bodies := range s.mail.heard {
			fmt.Fprintf(ts.Stdout(), "%s:\n%s\n", name, strings.Join(bodies, "\n"))
		}
	default:
		ts.Fatalf("usage: receiver start|wait|count|log")
	}
}

// hook is a forge's webhook:
//
//	hook address                  sets $HOOKS to a free address
//	hook send REPOSITORY SECRET STATUS   posts a push as GitHub does; an empty SECRET signs nothing
func (s *script) hook(ts *testscript.TestScript, _ bool, args []string) {
	switch {
	case args[0] == "address":
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
		s.check(ts, err)
		ts.Setenv("HOOKS", l.Addr().String())
		s.check(ts, l.Close())
	case args[0] == "send" && len(args) == 4:
		const body = `{"ref":"refs/heads/main"}`
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+ts.Getenv("HOOKS")+"/hooks/"+args[1], strings.NewReader(body))
		s.check(ts, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-GitHub-Event", "push")
		if args[2] != "" {
			mac := hmac.New(sha256.New, []byte(args[2]))
			mac.Write([]byte(body))
			req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		}
		resp, err := http.DefaultClient.Do(req)
		s.check(ts, err)
		s.check(ts, resp.Body.Close())
		if got := strconv.Itoa(resp.StatusCode); got != args[3] {
			s.check(ts, fmt.Errorf("the webhook is answered %s, want %s", got, args[3]))
		}
	default:
		ts.Fatalf("usage: hook address|send")
	}
}

// kubernetesEvent waits for an Event in the script's namespace: "kevent REASON
// REGEXP KIND", where KIND is that of the object it is about.
func (s *script) kubernetesEvent(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile(args[1])
	events := s.live.Resource(corev1.SchemeGroupVersion.WithResource("events")).Namespace(s.w.Namespace)
	s.poll(ts, "kevent "+strings.Join(args, " "), func(ctx context.Context) (bool, error) {
		list, err := events.List(ctx, metav1.ListOptions{FieldSelector: "reason=" + args[0] + ",involvedObject.kind=" + args[2]})
		if err != nil {
			return false, err
		}
		for _, u := range list.Items {
			if note, _, err := unstructured.NestedString(u.Object, "message"); err == nil && re.MatchString(note) {
				return true, nil
			}
		}
		return false, fmt.Errorf("none of %d events", len(list.Items))
	})
}
