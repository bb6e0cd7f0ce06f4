package testenv

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Fault is what a [FaultProxy] does to the requests it matches. Its zero
// value does nothing.
type Fault struct {
	Delay    time.Duration            // wait before the request goes on; ends early with the client
	CutAfter int64                    // break the connection after so many bytes of the response body; negative: before the first
	Corrupt  bool                     // flip one bit in every 64th byte of the response body, from the first on
	Status   int                      // answer with this status and do not ask the target
	Match    func(*http.Request) bool // nil matches all requests
	Times    int                      // only for the first so many matches; 0: for all
}

// FaultProxy is an HTTP reverse proxy that injects faults.
type FaultProxy struct {
	web   *webServer
	proxy *httputil.ReverseProxy

	mu       sync.Mutex
	fault    Fault
	matches  int
	requests int
}

// NewFaultProxy starts a proxy in front of targetURL, which must be http or
// https. It keeps the Host that the client asked for, so that the absolute
// URLs a server answers with lead through the proxy again. The caller closes it.
func NewFaultProxy(targetURL string) (*FaultProxy, error) {
	return NewFaultProxyTransport(targetURL, nil)
}

// NewFaultProxyTransport is [NewFaultProxy] with a transport to the target,
// for one behind TLS or client certificates. nil: the target needs neither.
func NewFaultProxyTransport(targetURL string, transport http.RoundTripper) (*FaultProxy, error) {
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
	p := &FaultProxy{}
	p.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport:     transport,
		FlushInterval: -1, // a watch is a response that never ends
		ErrorLog:      discardLogger(),
	}
	if p.web, err = serve(p, false); err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	return p, nil
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
	if p.fault.Times > 0 && p.matches > p.fault.Times {
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
	if f.CutAfter != 0 || f.Corrupt {
		w = &faultyWriter{ResponseWriter: w, fault: f}
	}
	p.proxy.ServeHTTP(w, r)
}

// faultyWriter spoils a response body on its way to the client.
type faultyWriter struct {
	http.ResponseWriter
	fault  Fault
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
