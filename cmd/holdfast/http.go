package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets"
)

// reply is what the daemon answers on its socket.
type reply struct {
	Proposal *reconciler.Proposal `json:"proposal,omitempty"`
	Findings []targets.Finding    `json:"findings,omitempty"`
	Overview *reconciler.Overview `json:"overview,omitempty"`
	Error    *replyError          `json:"error,omitempty"`
}

// replyError carries a classified error over the socket.
type replyError struct {
	Message string `json:"message"`
	Kind    string `json:"kind"`
	Hint    string `json:"hint,omitempty"`
}

func newReplyError(err error, scrub func(string) string) *replyError {
	if err == nil {
		return nil
	}
	return &replyError{Message: scrub(err.Error()), Kind: fault.KindOf(err).String(), Hint: scrub(fault.HintOf(err))}
}

// err turns the answer back into an error of the same kind.
func (e *replyError) err() error {
	if e == nil {
		return nil
	}
	kind := fault.Internal
	for _, k := range []fault.Kind{fault.Transient, fault.Waiting, fault.Denied, fault.Invalid} {
		if k.String() == e.Kind {
			kind = k
		}
	}
	return fault.New(kind, "holdfast", e.Hint, "%s", e.Message)
}

// listeners adds the HTTP listener and the Unix socket.
func (a *app) listeners(ctx context.Context, add func(string, func(context.Context) error)) error {
	var lc net.ListenConfig
	if addr := a.cfg.Listen.HTTP; addr != "off" {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fault.New(fault.Invalid, "holdfast", "set listen.http to a free address, or to \"off\"", "listen: %w", err)
		}
		add("http", func(ctx context.Context) error { return serveHTTP(ctx, l, a.publicHandler()) })
	}
	if err := removeSocket(a.cfg.Listen.Socket); err != nil {
		return err
	}
	l, err := lc.Listen(ctx, "unix", a.cfg.Listen.Socket)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast", "set listen.socket to a shorter path in a folder of the daemon's user", "socket: %w", err)
	}
	if err := os.Chmod(a.cfg.Listen.Socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	add("socket", func(ctx context.Context) error { return serveHTTP(ctx, l, a.socketHandler(ctx)) })
	return nil
}

// removeSocket removes a socket that a daemon left behind, and nothing else.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fault.New(fault.Invalid, "holdfast", "set listen.socket to another path", "%s exists and is not a socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		return errors.Join(fault.New(fault.Waiting, "holdfast", "stop the other daemon, or set listen.socket to another path", "another process answers on %s", path), c.Close())
	}
	return os.Remove(path)
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return errors.Join(err, srv.Close())
	}
	return nil
}

// publicHandler changes nothing and shows no secret. The status is for loopback
// only, and only under a loopback name: a web page that resolves its own name to
// 127.0.0.1 (DNS rebinding) must not read it.
func (a *app) publicHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		for _, r := range a.reconciler.Status().Repositories {
			if r.Enforced == "" {
				http.Error(w, "repository "+r.Name+": no verified commit is enforced yet", http.StatusServiceUnavailable)
				return
			}
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if !loopback(r.RemoteAddr) || !loopback(r.Host) {
			http.Error(w, "the status is served to this machine only", http.StatusForbidden)
			return
		}
		o := a.reconciler.Status()
		answer(w, o)
	})
	return mux
}

// loopback reports whether addr, with or without a port, names this machine.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// socketHandler serves the commands. Whoever can open the socket (mode 0600)
// may use them.
func (a *app) socketHandler(daemon context.Context) http.Handler {
	mux := http.NewServeMux()
	command := func(verb string, ctx func(*http.Request) context.Context) {
		mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-a.reconciler.Ready():
				answer(w, a.do(ctx(r), verb, r.FormValue("stack")))
			default:
				err := fault.New(fault.Waiting, "holdfast", "try again in a moment", "the daemon is starting")
				answer(w, reply{Error: newReplyError(err, a.secrets.scrub)})
			}
		})
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		o := a.reconciler.Status()
		answer(w, reply{Overview: &o})
	})
	client := func(r *http.Request) context.Context { return r.Context() }
	command("plan", client)
	command("drift", client)
	// An apply that was begun is finished, also when nobody waits for the answer.
	command("apply", func(*http.Request) context.Context { return daemon })
	return mux
}

// do carries out one command, in the daemon or alone.
func (a *app) do(ctx context.Context, verb, stack string) reply {
	var out reply
	var err error
	switch verb {
	case "plan":
		out.Proposal, err = a.reconciler.Plan(ctx, stack)
	case "apply":
		out.Proposal, err = a.reconciler.Apply(ctx, stack)
	case "drift":
		names := []string{stack}
		if stack == "" {
			names = nil
			for _, s := range a.reconciler.Status().Stacks {
				if s.Applied != "" {
					names = append(names, s.Stack)
				}
			}
		}
		var errs []error
		for _, n := range names {
			found, err := a.reconciler.Drift(ctx, n)
			out.Findings = append(out.Findings, found...)
			errs = append(errs, err)
		}
		err = errors.Join(errs...)
	default:
		o := a.reconciler.Status()
		out.Overview = &o
	}
	out.Error = newReplyError(err, a.secrets.scrub)
	return out
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

// call asks the daemon behind a socket. ok is false if there is none.
func call(ctx context.Context, socket, method, verb, stack string) (out reply, ok bool, err error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast/v1/"+verb+"?stack="+url.QueryEscape(stack), nil)
	if err != nil {
		return out, true, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return out, false, nil
		}
		return out, true, fault.New(fault.Transient, "holdfast", "", "ask the daemon: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return out, true, fault.New(fault.Internal, "holdfast", "is the daemon of the same version?", "the daemon answered %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, true, fault.New(fault.Internal, "holdfast", "is the daemon of the same version?", "the daemon's answer: %w", err)
	}
	return out, true, nil
}
