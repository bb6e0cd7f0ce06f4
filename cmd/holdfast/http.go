package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/httpd"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/verify"
)

// startTimeout is how long a command waits for a daemon that is starting.
const startTimeout = 10 * time.Second

// maxRequest is the largest command on the socket in bytes.
const maxRequest = 1 << 20

// command is what is asked of the daemon, or done alone.
type command struct {
	Verb   string    `json:"verb"`
	Stack  string    `json:"stack,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Until  time.Time `json:"until,omitzero"`
	// Anchor is what to revoke, and Since when it came into other hands.
	Anchor verify.Anchor `json:"anchor,omitzero"`
	Since  time.Time     `json:"since,omitzero"`
	// Kind, Name and To say which order to draw up.
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
	To   string `json:"to,omitempty"`
	// Order and Signature are an order that is handed in.
	Refs      []string `json:"refs,omitempty"` // findings
	Order     []byte   `json:"order,omitempty"`
	Signature []byte   `json:"signature,omitempty"`
}

// lasting reports whether a command that was begun is finished although nobody
// waits for the answer.
func (c command) lasting() bool {
	return c.Verb != "plan" && c.Verb != "drift" && c.Verb != "unmanaged" && c.Verb != "patch" && c.Verb != "status"
}

// local reports whether a command needs neither sources nor targets: it is
// about what this daemon knows.
func (c command) local() bool {
	return slices.Contains([]string{"suspend", "resume", "revoke"}, c.Verb)
}

// reply is what the daemon answers on its socket.
type reply struct {
	Stacks   []string             `json:"stacks,omitempty"` // that a revocation concerns
	Order    *reconciler.Order    `json:"order,omitempty"`  // to sign
	Proposal *reconciler.Proposal `json:"proposal,omitempty"`
	Findings []targets.Finding    `json:"findings,omitempty"`
	Unseen   []string             `json:"unseen,omitempty"` // kinds that may not be listed
	Patch    string               `json:"patch,omitempty"`
	Revision string               `json:"revision,omitempty"` // the commit that Patch is of
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
		add("http", func(ctx context.Context) error { return servePublic(ctx, l, a.publicHandler()) })
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

// serveHTTP serves people who may use the socket. An answer may take as long as
// they follow a log.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	return httpd.Serve(ctx, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}, l)
}

// publicConnections is how many strangers may be connected at once: each costs a
// descriptor, and without descriptors no intent is recorded.
const publicConnections = 128

// servePublic serves whoever reaches the address, one request for each
// connection: one that is kept would keep its place from a probe.
func servePublic(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 2 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second, MaxHeaderBytes: 16 << 10}
	srv.SetKeepAlivesEnabled(false)
	return httpd.Serve(ctx, srv, netutil.LimitListener(l, publicConnections))
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
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 8}))
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		if !loopback(r.RemoteAddr) || !loopback(r.Host) {
			http.Error(w, "the status is served to this machine only", http.StatusForbidden)
			return
		}
		o := a.reconciler.Status()
		answer(w, a.secrets.scrub, o)
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
	mux.HandleFunc("POST /v1/command", func(w http.ResponseWriter, r *http.Request) {
		var c command
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&c); err != nil {
			http.Error(w, "not a command", http.StatusBadRequest)
			return
		}
		ctx := r.Context()
		if c.lasting() {
			ctx = daemon
		}
		starting := time.NewTimer(startTimeout)
		defer starting.Stop()
		select {
		case <-a.reconciler.Ready():
			answer(w, a.secrets.scrub, a.do(ctx, c))
		case <-ctx.Done():
		case <-starting.C:
			err := fault.New(fault.Waiting, "holdfast", "try again in a moment", "the daemon is starting")
			answer(w, a.secrets.scrub, reply{Error: newReplyError(err, a.secrets.scrub)})
		}
	})
	mux.HandleFunc("GET /v1/logs", a.serveLogs)
	return mux
}

// do carries out one command, in the daemon or alone.
func (a *app) do(ctx context.Context, c command) reply {
	var out reply
	var err error
	stack := c.Stack
	switch c.Verb {
	case "plan":
		out.Proposal, err = a.reconciler.Plan(ctx, stack)
	case "apply":
		out.Proposal, err = a.reconciler.Apply(ctx, stack)
	case "reconcile":
		err = a.reconciler.Reconcile(ctx, stack)
	case "suspend":
		err = a.reconciler.Suspend(ctx, stack, c.Reason, c.Until)
	case "approve":
		err = a.reconciler.Approve(ctx, stack, c.Refs, c.Reason)
	case "resume":
		err = a.reconciler.Resume(ctx, stack)
	case "revoke":
		out.Stacks, err = a.reconciler.Revoke(ctx, verify.Revocation{Anchor: c.Anchor, Since: c.Since, Reason: c.Reason})
	case "order":
		var o reconciler.Order
		o, err = a.reconciler.NewOrder(ctx, c.Kind, c.Name, c.To, c.Reason)
		out.Order = &o
	case "obey":
		err = a.reconciler.Obey(ctx, c.Order, c.Signature)
	case "drift":
		var errs []error
		for _, n := range a.deployed(stack) {
			found, err := a.reconciler.Drift(ctx, n)
			out.Findings = append(out.Findings, found...)
			errs = append(errs, err)
		}
		err = errors.Join(errs...)
	case "unmanaged":
		err = a.unmanaged(ctx, stack, &out)
	case "patch":
		out.Patch, out.Revision, err = a.reconciler.Patch(ctx, stack)
	case "status":
		o := a.reconciler.Status()
		out.Overview = &o
	default:
		err = fault.New(fault.Invalid, "holdfast", "is the daemon of the same version?", "there is no command %q", c.Verb)
	}
	out.Error = newReplyError(err, a.secrets.scrub)
	return out
}

// deployed returns a stack, or with "" all that something was applied for.
func (a *app) deployed(stack string) []string {
	if stack != "" {
		return []string{stack}
	}
	var names []string
	for _, s := range a.reconciler.Status().Stacks {
		if s.Applied != "" {
			names = append(names, s.Stack)
		}
	}
	return names
}

// unmanaged collects what no stack declares beside one or all.
func (a *app) unmanaged(ctx context.Context, stack string, out *reply) error {
	var errs []error
	done := map[string]map[string]bool{} // namespaces, by environment
	for _, n := range a.deployed(stack) {
		found, unseen, err := a.reconciler.Unmanaged(ctx, n, done)
		out.Findings = append(out.Findings, found...)
		out.Unseen = append(out.Unseen, unseen...)
		errs = append(errs, err)
	}
	slices.Sort(out.Unseen)
	out.Unseen = slices.Compact(out.Unseen)
	return errors.Join(errs...)
}

// dial asks the daemon behind a socket. ok is false if there is none.
func dial(ctx context.Context, socket, method, path string, body []byte) (resp *http.Response, ok bool, err error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, true, fmt.Errorf("ask the daemon: %w", err)
	}
	if resp, err = client.Do(req); err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, false, nil
		}
		return nil, true, fault.New(fault.Transient, "holdfast", "", "ask the daemon: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, true, errors.Join(fault.New(fault.Internal, "holdfast", "is the daemon of the same version?", "the daemon answered %s", resp.Status), resp.Body.Close())
	}
	return resp, true, nil
}

// call has the daemon behind a socket carry out a command. ok is false if there
// is none.
func call(ctx context.Context, socket string, c command) (out reply, ok bool, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return out, true, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, ok, err := dial(ctx, socket, http.MethodPost, "command", body)
	if resp == nil {
		return out, ok, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, true, fault.New(fault.Internal, "holdfast", "is the daemon of the same version?", "the daemon's answer: %w", err)
	}
	return out, true, nil
}
