package testenv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Fault is what a [FaultProxy] does to the requests it matches. Its zero
// value does nothing.
type Fault struct {
	Delay    time.Duration              // wait before the request goes on; ends early with the client
	CutAfter int64                      // break the connection after so many bytes of the response body; negative: before the first
	Corrupt  bool                       // flip one bit in every 64th byte of the response body, from the first on
	Trickle  int                        // pass on so many bytes of the response body a second
	Status   int                        // answer with this status and do not ask the target
	Rewrite  func(*http.Response) error // change the target's answer: how a server lies
	Match    func(*http.Request) bool   // nil matches all requests
	Skip     int                        // let so many matches pass first
	Times    int                        // only for the first so many matches after those; 0: for all
}

// Hang is long enough for a request never to be answered in a test.
const Hang = time.Hour

// FaultProxy is an HTTP reverse proxy that injects faults.
type FaultProxy struct {
	web   *webServer
	proxy *httputil.ReverseProxy
	ca    *authority // nil without TLS

	mu       sync.Mutex
	fault    Fault
	matches  int
	requests int
	cert     *tls.Certificate
	down     bool
	conns    map[net.Conn]bool
}

// faultKey is the key under which a request's context holds its [Fault].
type faultKey struct{}

// NewFaultProxy starts a proxy in front of targetURL, which must be http or
// https. It keeps the Host that the client asked for, so that the absolute
// URLs a server answers with lead through the proxy again. The caller closes it.
func NewFaultProxy(targetURL string) (*FaultProxy, error) {
	return NewFaultProxyTransport(targetURL, nil)
}

// NewFaultProxyTransport is [NewFaultProxy] with a transport to the target,
// for one behind TLS or client certificates. nil: the target needs neither.
func NewFaultProxyTransport(targetURL string, transport http.RoundTripper) (*FaultProxy, error) {
	return newFaultProxy(targetURL, transport, nil)
}

// NewFaultProxyTLS is [NewFaultProxyTransport] that is itself reached by https,
// under a throwaway authority.
func NewFaultProxyTLS(targetURL string, transport http.RoundTripper) (*FaultProxy, error) {
	ca, err := newAuthority("holdfast fault proxy")
	if err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	return newFaultProxy(targetURL, transport, ca)
}

func newFaultProxy(targetURL string, transport http.RoundTripper, ca *authority) (*FaultProxy, error) {
	target, err := url.Parse(targetURL)
	if err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	if target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
		return nil, fmt.Errorf("fault proxy: %q is not an http URL", targetURL)
	}
	if transport == nil {
		if transport, err = transportFor(nil); err != nil {
			return nil, fmt.Errorf("fault proxy: %w", err)
		}
	}
	p := &FaultProxy{ca: ca, conns: map[net.Conn]bool{}}
	p.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			if f, ok := r.Request.Context().Value(faultKey{}).(Fault); ok && f.Rewrite != nil {
				return f.Rewrite(r)
			}
			return nil
		},
		Transport:     transport,
		FlushInterval: -1, // a watch is a response that never ends
		ErrorLog:      discardLogger(),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	p.web = &webServer{
		server: &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, ErrorLog: discardLogger(), ConnState: p.track},
		host:   listener.Addr().String(), scheme: "http",
	}
	if ca != nil {
		if err := p.Certify(time.Now().Add(validity)); err != nil {
			_ = listener.Close()
			return nil, fmt.Errorf("fault proxy: %w", err)
		}
		p.web.scheme, p.web.ca = "https", ca.certPEM()
		listener = tls.NewListener(listener, &tls.Config{GetCertificate: p.certificate, MinVersion: tls.VersionTLS12})
	}
	go func() { _ = p.web.server.Serve(listener) }()
	return p, nil
}

// certificate returns the certificate that [FaultProxy.Certify] made last.
func (p *FaultProxy) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cert, nil
}

// Certify replaces the certificate of a proxy with TLS by one that is valid
// until the given time, which may have passed, and breaks all connections.
func (p *FaultProxy) Certify(until time.Time) error {
	certPEM, keyPEM, err := p.ca.issueServerUntil(until)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.cert = &pair
	p.mu.Unlock()
	p.Break()
	return nil
}

// CA returns the authority of a proxy with TLS in PEM, nil without.
func (p *FaultProxy) CA() []byte { return p.web.ca }

// Host returns "127.0.0.1:port".
func (p *FaultProxy) Host() string { return p.web.host }

// WriteKubeconfig writes a kubeconfig that leads through a proxy with TLS.
// Whoever uses it acts with the identity of the proxy's own transport.
func (p *FaultProxy) WriteKubeconfig(path, user string) error {
	return writeKubeconfig(path, p.URL(), p.ca, user)
}

// track keeps the open connections, and refuses new ones while the proxy is down.
func (p *FaultProxy) track(c net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case state == http.StateClosed || state == http.StateHijacked:
		delete(p.conns, c)
	case p.down:
		_ = c.Close()
	default:
		p.conns[c] = true
	}
}

// Down makes the target look stopped: open connections break, and new ones are
// broken before a byte is read.
func (p *FaultProxy) Down() {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	p.Break()
}

// Up ends [FaultProxy.Down].
func (p *FaultProxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// Break breaks all open connections once; new ones are served.
func (p *FaultProxy) Break() {
	p.mu.Lock()
	open := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		open = append(open, c)
	}
	p.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// URL returns the proxy's base URL.
func (p *FaultProxy) URL() string { return p.web.url() }

// Set replaces the fault. It is safe while requests are under way: they keep
// the one they started with. It starts the count for Times anew.
func (p *FaultProxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.matches = f, 0
}

// Requests returns how many requests have arrived, faulty or not.
func (p *FaultProxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Matches returns how many requests the fault that is set has matched.
func (p *FaultProxy) Matches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.matches
}

// Close stops the proxy and breaks its connections.
func (p *FaultProxy) Close() error {
	if t, ok := p.proxy.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return p.web.close()
}

// next counts a request and returns the fault it gets.
func (p *FaultProxy) next(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if p.fault.Match != nil && !p.fault.Match(r) {
		return Fault{}
	}
	p.matches++
	n := p.matches - p.fault.Skip
	if n <= 0 || p.fault.Times > 0 && n > p.fault.Times {
		return Fault{}
	}
	return p.fault
}

// ServeHTTP forwards a request, with the fault that is set.
func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.next(r)
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	if f.Status != 0 {
		http.Error(w, fmt.Sprintf("fault proxy: status %d", f.Status), f.Status)
		return
	}
	if f.CutAfter != 0 || f.Corrupt || f.Trickle > 0 {
		w = &faultyWriter{ResponseWriter: w, fault: f, gone: r.Context().Done()}
	}
	p.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
}

// faultyWriter spoils a response body on its way to the client.
type faultyWriter struct {
	http.ResponseWriter
	fault  Fault
	gone   <-chan struct{} // the client went away
	offset int64
}

// Unwrap lets the reverse proxy flush and hijack.
func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultyWriter) Write(p []byte) (int, error) {
	out := p
	if w.fault.Corrupt {
		out = append([]byte(nil), p...)
		for i := range out {
			if (w.offset+int64(i))%64 == 0 {
				out[i] ^= 1
			}
		}
	}
	if w.fault.Trickle > 0 {
		return w.trickle(out)
	}
	if w.fault.CutAfter == 0 {
		n, err := w.ResponseWriter.Write(out)
		w.offset += int64(n)
		return n, err
	}
	left := max(w.fault.CutAfter, 0) - w.offset
	if int64(len(out)) <= left {
		n, err := w.ResponseWriter.Write(out)
		w.offset += int64(n)
		return n, err
	}
	_, err := w.ResponseWriter.Write(out[:left])
	// What was written so far must reach the client before the connection breaks.
	if flush := http.NewResponseController(w.ResponseWriter).Flush(); err == nil && !errors.Is(flush, http.ErrNotSupported) {
		err = flush
	}
	if err != nil {
		return 0, err
	}
	panic(http.ErrAbortHandler)
}

// trickle writes p in ten pieces a second.
func (w *faultyWriter) trickle(p []byte) (written int, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for len(p) > 0 && err == nil {
		piece := min(len(p), max(w.fault.Trickle/10, 1))
		var n int
		n, err = w.ResponseWriter.Write(p[:piece])
		written, p = written+n, p[n:]
		if flush := http.NewResponseController(w.ResponseWriter).Flush(); err == nil && !errors.Is(flush, http.ErrNotSupported) {
			err = flush
		}
		select {
		case <-tick.C:
		case <-w.gone:
			return written, context.Canceled
		}
	}
	return written, err
}
