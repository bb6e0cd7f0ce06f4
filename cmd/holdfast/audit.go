package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/httpd"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

const (
	// maxAuditBody is the largest batch of audit events, in bytes. API servers send
	// 400 at most by default (--audit-webhook-batch-max-size).
	maxAuditBody     = 32 << 20
	auditConnections = 16
	minAuditToken    = 16 // bytes
)

// audits adds what tells who wrote what: API servers that send their audit events, and
// audit logs that are read as they grow.
func (a *app) audits(ctx context.Context, add func(string, func(context.Context) error)) error {
	mux := http.NewServeMux()
	receives := false
	for _, e := range a.cfg.Environments {
		if e.Kubernetes == nil || e.Kubernetes.Audit == nil {
			continue
		}
		into := a.targets.audits[e.Name]
		if file := e.Kubernetes.Audit.LogFile; file != "" {
			add("audit log of "+e.Name, func(ctx context.Context) error {
				return into.Follow(ctx, file, a.log, func() { a.reconciler.Learned(ctx) })
			})
		}
		if file := e.Kubernetes.Audit.TokenFile; file != "" {
			token := func() (string, error) { return a.secrets.read(file) }
			switch t, err := token(); {
			case err != nil:
				return err
			case len(t) < minAuditToken:
				return fault.New(fault.Invalid, "holdfast", "write a long random one into "+file, "the token for audit events has %d bytes, want at least %d", len(t), minAuditToken)
			}
			receives = true
			mux.HandleFunc("POST /audit/"+e.Name, func(w http.ResponseWriter, r *http.Request) { a.audit(w, r, into, token) })
		}
	}
	if !receives {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.Listen.Audit)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast", "set listen.audit to a free address", "listen: %w", err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	add("audit events", func(ctx context.Context) error {
		return httpd.Serve(ctx, srv, netutil.LimitListener(l, auditConnections))
	})
	return nil
}

// audit takes a batch of events from an API server that shows the token.
func (a *app) audit(w http.ResponseWriter, r *http.Request, into *kubernetes.Audit, token func() (string, error)) {
	want, err := token() // read each time: a rotated one counts at once
	got, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if err != nil || !bearer || subtle.ConstantTimeCompare([]byte(got), []byte(want)) != 1 {
		a.log.WarnContext(r.Context(), "audit events denied", slog.String("from", r.RemoteAddr))
		http.Error(w, "not authorised", http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAuditBody))
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "not read", code)
		return
	}
	n, err := into.Add(body)
	if n > 0 {
		a.reconciler.Learned(r.Context())
	}
	if err != nil {
		http.Error(w, "not audit events", http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// newAudits returns a memory of writes for each environment whose audit events are had.
func newAudits(cfg *config.Loaded) map[string]*kubernetes.Audit {
	out := map[string]*kubernetes.Audit{}
	for _, e := range cfg.Environments {
		if e.Kubernetes != nil && e.Kubernetes.Audit != nil {
			out[e.Name] = &kubernetes.Audit{}
		}
	}
	return out
}
