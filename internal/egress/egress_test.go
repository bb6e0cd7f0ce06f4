package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a resolver with what is in it.
type names map[string][]string

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range n[host] {
		out = append(out, netip.MustParseAddr(a))
	}
	if out == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

func policy(t *testing.T, entries ...string) Policy {
	t.Helper()
	p, err := Parse(entries)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	p := policy(t, "api.example.com:443", "*.cloud.example:443", "db.internal:5432", "10.1.0.0/16:443", "[fd12::/16]:443", "192.0.2.7:22", "0.0.0.0/0:8443", "[::/0]:8443", "[fd12::/16]:8443", "rebind.example:443", "home.example:443", "localhost:443", "metadata.google.internal:80")
	dns := names{
		"api.example.com": {"93.184.216.34", "2606:2800::1"}, "a.cloud.example": {"93.184.216.35"}, "evil.cloud.example": {"10.9.9.9"},
		"inner.cloud.example": {"10.1.2.3"}, "db.internal": {"10.9.0.1"}, "other.example": {"93.184.216.36"}, "mixed.cloud.example": {"169.254.169.254", "93.184.216.37"},
		"local.cloud.example": {"127.0.0.1"}, "rebind.example": {"169.254.169.254"}, "metadata.google.internal": {"169.254.169.254"}, "cgnat.cloud.example": {"100.64.0.1"},
		"home.example": {"127.0.0.1"}, "localhost": {"127.0.0.1"},
		"mapped.cloud.example": {"::ffff:169.254.169.254"},
	}
	for address, want := range map[string]string{
		"api.example.com:443":         "93.184.216.34 2606:2800::1",
		"API.example.com.:443":        "93.184.216.34 2606:2800::1",
		"api.example.com:80":          "no entry",
		"x.api.example.com:443":       "no entry",
		"other.example:443":           "no entry",
		"a.cloud.example:443":         "93.184.216.35",
		"cloud.example:443":           "no entry",
		"acloud.example:443":          "no entry",
		"evil.cloud.example:443":      "is private",
		"local.cloud.example:443":     "is private",
		"cgnat.cloud.example:443":     "is private",
		"inner.cloud.example:443":     "10.1.2.3",
		"db.internal:5432":            "10.9.0.1",
		"mixed.cloud.example:443":     "93.184.216.37",
		"mapped.cloud.example:443":    "metadata",
		"rebind.example:443":          "metadata",
		"metadata.google.internal:80": "metadata",
		"10.1.200.1:443":              "10.1.200.1",
		"10.2.0.1:443":                "no entry",
		"192.0.2.7:22":                "192.0.2.7",
		"[::ffff:192.0.2.7]:22":       "192.0.2.7",
		"192.0.2.8:22":                "no entry",
		"93.184.216.34:443":           "no entry",
		"[fd12::1]:443":               "fd12::1",
		"[fd12::1%eth0]:443":          "zone",
		"169.254.169.254:8443":        "metadata",
		"[fe80::1]:8443":              "metadata",
		"[fd00:ec2::254]:8443":        "metadata",
		"[::ffff:a9fe:a9fe]:8443":     "metadata",
		"[64:ff9b::a9fe:a9fe]:8443":   "metadata",
		"[2002:a9fe:a9fe::1]:8443":    "metadata",
		"[::a9fe:a9fe]:8443":          "metadata",
		"[2001:0:a9fe:a9fe::1]:8443":  "metadata",
		"[fd12::5efe:a9fe:a9fe]:8443": "metadata",
		"100.100.100.200:8443":        "metadata",
		"168.63.129.16:8443":          "metadata",
		"224.0.0.1:8443":              "metadata",
		"0.0.0.0:8443":                "metadata",
		"[::]:8443":                   "metadata",
		"[fd00:42::42]:8443":          "metadata", "[fd00:a9fe:a9fe::1]:8443": "metadata", "100.96.0.96:8443": "metadata", "[::ffff:0:169.254.169.254]:8443": "metadata",
		"10.0.0.1:8443": "no entry", "127.0.0.1:8443": "no entry", "home.example:443": "is private", "localhost:443": "127.0.0.1",
		"255.255.255.255:8443":   "metadata",
		"8.8.8.8:8443":           "8.8.8.8",
		"127.1:443":              "no name",
		"0x7f000001:443":         "no name",
		"2130706433:443":         "no name",
		"a_b.cloud.example:443":  "no such host",
		"a b.cloud.example:443":  "no name",
		"a%2e.cloud.example:443": "no name",
		":443":                   "no name",
	} {
		host, port, err := Split(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		addrs, err := p.resolve(t.Context(), dns, host, port)
		got := strings.Trim(fmt.Sprint(addrs), "[]")
		if err != nil {
			got = err.Error()
		}
		if refused := strings.Contains(got, want); !refused || err == nil && got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "host", "host:", "host:0", "host:99999", "host:https", "*:443", "*.com:443", "a.*.example:443", "https://host:443", "::ffff:10.0.0.0/104:443", "ho st:1", "-:x"} {
		if _, err := Parse([]string{text}); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// serve starts a proxy, and returns a client of it and what it refused.
func serve(t *testing.T, p Policy) (*http.Client, func() []Refusal) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var refused []Refusal
	proxy := &Proxy{Policy: p, Refused: func(r Refusal) { mu.Lock(); defer mu.Unlock(); refused = append(refused, r) }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- proxy.Serve(ctx, l) }()
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: l.Addr().String()})}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &http.Client{Transport: tr}, func() []Refusal { mu.Lock(); defer mu.Unlock(); return refused }
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := c.Get(url) //nolint:noctx // a test
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

// Requests go through where they are allowed, in both forms, and nowhere else: not by a
// redirect either, and not into the proxy itself.
func TestProxy(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
			return
		}
		fmt.Fprint(w, "hello "+r.Host)
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(func() { plain.Close(); secure.Close() })
	c, refused := serve(t, policy(t, plain.Listener.Addr().String(), secure.Listener.Addr().String(), "169.254.169.254:80"))
	c.Transport.(*http.Transport).TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	for _, s := range []*httptest.Server{plain, secure} {
		if code, body := get(t, c, s.URL+"/x"); code != 200 || body != "hello "+s.Listener.Addr().String() {
			t.Errorf("%s: %d %s", s.URL, code, body)
		}
	}
	if code, body := get(t, c, plain.URL+"/away"); code != http.StatusForbidden || !strings.Contains(body, "metadata") {
		t.Errorf("a redirect: %d %s", code, body)
	}
	if code, body := get(t, c, "https://127.0.0.1:1/"); code != 0 || !strings.Contains(body, "Forbidden") {
		t.Errorf("another port: %d %s", code, body)
	}
	want := []Refusal{{"169.254.169.254", 80, "169.254.169.254 is a metadata service, or no address of a host"}, {"127.0.0.1", 1, "no entry allows it"}}
	if got := refused(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("refused: %v", got)
	}
}

// A forward leads to one address, and what is sent comes back; both ends are closed in turn.
func TestForward(t *testing.T) {
	t.Parallel()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			served.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = echo.Close(); served.Wait() })
	for name, entries := range map[string][]string{"allowed": {echo.Addr().String()}, "refused": nil} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		p := &Proxy{Policy: policy(t, entries...)}
		go func() { done <- p.Forward(ctx, l, echo.Addr().String()) }()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, werr := io.WriteString(conn, "ping\n")
		_ = conn.(*net.TCPConn).CloseWrite()
		got, err := bufio.NewReader(conn).ReadString('\n')
		if allowed := errors.Join(werr, err) == nil && got == "ping\n"; allowed != (entries != nil) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
