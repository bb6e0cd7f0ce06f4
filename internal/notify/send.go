package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Type is a kind of receiver.
type Type string

// The types.
const (
	Slack     Type = "slack"     // incoming webhook
	Teams     Type = "teams"     // webhook of a Workflow
	PagerDuty Type = "pagerduty" // Events API v2
	Webhook   Type = "webhook"   // CloudEvents 1.0, structured JSON
)

// pagerDutyURL is the Events API v2 of PagerDuty's service region US.
const pagerDutyURL = "https://events.pagerduty.com/v2/enqueue"

const (
	// sendTime bounds the attempts to send one message, waits included; maxRetries
	// mostly ends them sooner, with the last answer at hand.
	sendTime   = 2 * time.Minute
	maxRetries = 6
	// requestTime bounds one of them.
	requestTime = 15 * time.Second
	minBackoff  = time.Second
	maxBackoff  = 30 * time.Second
	// maxPause is the longest that a receiver's Retry-After is honoured for.
	maxPause = time.Hour
	// maxAnswer is how much of an answer is read, and maxQuote how much of it is quoted.
	maxAnswer = 4 << 10
	maxQuote  = 200
	// minKey is the least length in bytes of a key that bodies are signed with.
	minKey = 16

	opSend = "notify.send"
)

// Receiver is one place that is told.
type Receiver struct {
	Name string
	Type Type
	// URL returns the address, which is a secret: it is read for each message, so
	// that it can be rotated. Only for PagerDuty it may be nil.
	URL func() (string, error)
	// Key returns PagerDuty's integration key, or the secret that a Webhook's
	// bodies are signed with; nil signs nothing.
	Key func() (string, error)
	// CA holds PEM certificates to trust in place of the system's; empty: the system's.
	CA []byte
	// Template is a text/template over a [Notification]; empty is its Text.
	Template string
	// Repeat is after how long what lasts is said again; 0 is never.
	Repeat time.Duration
}

// encoder writes a message as one receiver reads it. A nil body is nothing to send.
type encoder func(m message, key string) (body []byte, header http.Header, err error)

func encoders() map[Type]encoder {
	return map[Type]encoder{Slack: slack, Teams: teams, PagerDuty: pagerDuty, Webhook: cloudEvent}
}

// sender sends messages to one receiver.
type sender struct {
	name   string
	encode encoder
	url    func() (*url.URL, error)
	key    func() (string, error)
	client *retryablehttp.Client
	scrub  func(string) string
	after  time.Time // the receiver asked for nothing before; used by one goroutine
}

func newSender(r Receiver, scrub func(string) string) (*sender, error) {
	bad := func(hint, format string, args ...any) error {
		return fault.New(fault.Invalid, opNew, hint, "receiver %q: %w", r.Name, fmt.Errorf(format, args...))
	}
	encode, ok := encoders()[r.Type]
	if !ok {
		return nil, bad("use slack, teams, pagerduty or webhook", "there is no type %q", r.Type)
	}
	s := &sender{name: r.Name, encode: encode, key: r.Key, scrub: scrub}
	if s.key == nil {
		s.key = func() (string, error) { return "", nil }
	}
	address := r.URL
	if address == nil && r.Type == PagerDuty {
		address = func() (string, error) { return pagerDutyURL, nil }
	}
	if address == nil {
		return nil, bad("set urlFile", "no address")
	}
	s.url = func() (*url.URL, error) {
		text, err := address()
		if err != nil {
			return nil, err
		}
		return parseAddress(text)
	}
	if _, err := s.url(); err != nil {
		return nil, fault.Wrap(fault.Invalid, opNew, "", fmt.Errorf("receiver %q: %w", r.Name, err))
	}
	key, err := s.key()
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, opNew, "", fmt.Errorf("receiver %q: %w", r.Name, err))
	}
	switch {
	case r.Type == PagerDuty && key == "":
		return nil, bad("set keyFile to a file with the integration key", "PagerDuty needs an integration key")
	case r.Type == Webhook && r.Key != nil && len(key) < minKey:
		return nil, bad("write a long random secret into keyFile, or leave it out", "the key has %d bytes, want at least %d", len(key), minKey)
	}
	s.client, err = newClient(r.CA)
	if err != nil {
		return nil, bad("name a PEM file with certificates in caFile", "%w", err)
	}
	return s, nil
}

// newClient returns a client that follows no redirect: an address carries a
// credential, which belongs to the host that it names.
func newClient(ca []byte) (*retryablehttp.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(ca) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("no certificate in it")
		}
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true,
				TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: requestTime, MaxResponseHeaderBytes: 16 << 10,
				MaxIdleConns: 1, IdleConnTimeout: 30 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Timeout:       requestTime,
		},
		RetryWaitMin: minBackoff, RetryWaitMax: maxBackoff, RetryMax: maxRetries,
		CheckRetry:   worthwhile,
		Backoff:      backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}, nil
}

// worthwhile reports whether to try again soon. It is not when the receiver asks
// for more patience than one message has.
func worthwhile(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if err == nil && retryAfter(resp) > sendTime {
		return false, nil
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}

// retryAfter is what the receiver asks for (RFC 9110, section 10.2.3), or 0.
func retryAfter(resp *http.Response) time.Duration {
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return min(max(0, time.Duration(min(seconds, int(maxPause/time.Second)))*time.Second), maxPause)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, time.Until(at)), maxPause)
	}
	return 0
}

// backoff doubles, honours Retry-After, and adds up to a half, so that daemons
// that failed together do not come back together.
func backoff(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
	wait := retryablehttp.DefaultBackoff(least, most, attempt, resp)
	return wait + rand.N(wait/2+1) //nolint:gosec // jitter needs no secrecy
}

// parseAddress reads an address. Its error does not quote it.
func parseAddress(text string) (*url.URL, error) {
	const hint = "write one https:// URL into the file"
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fault.New(fault.Invalid, opSend, hint, "its address is not an https URL")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && !ip.IsLoopback() && u.Hostname() != "localhost" {
		return nil, fault.New(fault.Invalid, opSend, hint, "its address is plain http to another machine")
	}
	return u, nil
}

// send sends m, again and again for two minutes where that may help. An error of
// kind fault.Transient says that it may work later; any other that the receiver
// refused the message. No error holds the address.
func (s *sender) send(ctx context.Context, m message) error {
	key, err := s.key()
	if err != nil {
		return fault.Wrap(fault.Transient, opSend, "", err)
	}
	to, err := s.url()
	if err != nil {
		return err
	}
	body, header, err := s.encode(m, key)
	if err != nil || body == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, "", body)
	if err != nil {
		return fault.New(fault.Internal, opSend, "", "request: %w", err)
	}
	req.URL, req.Host = to, to.Host
	req.Header = header
	req.Header.Set("User-Agent", "holdfast")
	resp, err := s.client.Do(req)
	if err != nil {
		return fault.New(fault.Transient, opSend, "", "%s", s.scrub(cause(err).Error()))
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	return s.judge(resp)
}

// cause is what went wrong, without the address that net/http puts before it.
func cause(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// judge turns an answer into an error.
func (s *sender) judge(resp *http.Response) error {
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 == 2 {
		return nil // whatever became of the rest of the answer
	}
	if err != nil {
		answer = nil
	}
	quote := bound(s.scrub(string(answer)), maxQuote)
	switch {
	case resp.StatusCode/100 == 3:
		return fault.New(fault.Denied, opSend, "write the address that it redirects to into the file", "the receiver answers %d, a redirect, which is not followed", resp.StatusCode)
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode/100 == 5:
		s.after = time.Now().Add(retryAfter(resp))
		return fault.New(fault.Transient, opSend, "", "the receiver answers %d: %q", resp.StatusCode, quote)
	default:
		return fault.New(fault.Denied, opSend, "look at the receiver's address and key: were they revoked?", "the receiver answers %d: %q", resp.StatusCode, quote)
	}
}
