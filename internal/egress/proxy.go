package egress

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	dialTimeout = 30 * time.Second
	// maxConnections bounds the connections of one sandbox.
	maxConnections = 512
	// idleTimeout is how long a connection lasts on which nothing is sent.
	idleTimeout = 10 * time.Minute
	retryAccept = 100 * time.Millisecond
)

// Proxy connects what a sandbox asks for.
type Proxy struct {
	Policy   Policy
	Resolver Resolver // nil: the host's
	// Refused is told of each refusal; nil discards them. It may be called at once from
	// several goroutines.
	Refused func(Refusal)

	slots sync.Once
	busy  chan struct{}
}

// Serve is an HTTP proxy on l (RFC 9110, section 9.3.6, CONNECT, and requests with a whole
// URL), until ctx ends.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	transport := &http.Transport{
		DialContext:           func(ctx context.Context, _, address string) (net.Conn, error) { return p.dial(ctx, address) },
		Proxy:                 nil,
		ResponseHeaderTimeout: idleTimeout, DisableKeepAlives: true,
	}
	plain := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport:    transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { answer(w, err) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodConnect:
				p.connect(ctx, w, r)
			case r.URL.Scheme == "http" && r.URL.Host != "":
				plain.ServeHTTP(w, r)
			default:
				http.Error(w, "this is a proxy", http.StatusBadRequest)
			}
		}),
		ReadHeaderTimeout: dialTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // what is open is cut
	defer stop()
	if err := s.Serve(netutil.LimitListener(l, maxConnections)); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Forward connects everything that comes to l to one address, until ctx ends: for what cannot
// use a proxy. The policy counts for it too.
func (p *Proxy) Forward(ctx context.Context, l net.Listener, address string) error {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	l = netutil.LimitListener(l, maxConnections)
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			select { // out of descriptors, for instance
			case <-time.After(retryAccept):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		open.Go(func() {
			defer in.Close() //nolint:errcheck // it is over
			out, err := p.dial(ctx, address)
			if err == nil {
				join(ctx, in, out)
			}
		})
	}
}

func answer(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	var r *Refusal
	if errors.As(err, &r) {
		status = http.StatusForbidden
	}
	http.Error(w, "Holdfast's sandbox: "+err.Error(), status)
}

func (p *Proxy) connect(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	out, err := p.dial(r.Context(), r.Host)
	if err != nil {
		answer(w, err)
		return
	}
	defer out.Close() //nolint:errcheck // it is over
	in, rest, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer in.Close() //nolint:errcheck // it is over
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	if n := rest.Reader.Buffered(); n > 0 { // what was sent without waiting
		if _, err := io.CopyN(out, rest, int64(n)); err != nil {
			return
		}
	}
	join(ctx, in, out)
}

// dial connects to an address as the policy allows.
func (p *Proxy) dial(ctx context.Context, address string) (net.Conn, error) {
	host, port, err := Split(address)
	if err != nil {
		return nil, err
	}
	p.slots.Do(func() { p.busy = make(chan struct{}, maxConnections) })
	select {
	case p.busy <- struct{}{}:
	default:
		return nil, errors.New("too many connections")
	}
	conn, err := p.connectTo(ctx, host, port)
	if err != nil {
		<-p.busy
		var r *Refusal
		if errors.As(err, &r) && p.Refused != nil {
			p.Refused(*r)
		}
		return nil, err
	}
	return &counted{Conn: conn, done: func() { <-p.busy }}, nil
}

func (p *Proxy) connectTo(ctx context.Context, host string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var r Resolver = net.DefaultResolver
	if p.Resolver != nil {
		r = p.Resolver
	}
	addrs, err := p.Policy.resolve(ctx, r, host, port)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// counted is a connection that takes a slot until it is closed.
type counted struct {
	net.Conn
	once sync.Once
	done func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(c.done)
	return c.Conn.Close()
}

// join copies both ways until both are over, nothing comes for long, or ctx ends.
func join(ctx context.Context, a, b net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := func() { _ = a.Close(); _ = b.Close() }
	defer context.AfterFunc(ctx, end)()
	idle := time.AfterFunc(idleTimeout, cancel)
	defer idle.Stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			to, from := way[0], way[1]
			buf := make([]byte, 32<<10)
			for {
				n, err := from.Read(buf)
				if n > 0 {
					idle.Reset(idleTimeout)
					if _, werr := to.Write(buf[:n]); werr != nil {
						cancel()
						return
					}
				}
				if err != nil {
					if half, ok := unwrap(to).(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
						cancel()
					}
					return
				}
			}
		})
	}
	both.Wait()
	end()
}

func unwrap(c net.Conn) net.Conn {
	if k, ok := c.(*counted); ok {
		return k.Conn
	}
	return c
}
