// Package forge owns the one door that Holdfast opens to forges: POST
// /hooks/REPOSITORY, by which GitHub, GitLab, Gitea, Forgejo and Bitbucket say
// that something was pushed.
//
// It guarantees that what a forge says is only a hint to look: the body is
// hashed as it arrives, and neither kept nor parsed. It is checked in constant
// time with a secret that is read anew for each request; a storm is one look per
// second and repository, the last one included. It refuses a missing or short
// secret at the start, a body over 1 MiB, and everybody who cannot sign, with
// one answer, so that nobody learns which repositories there are.
package forge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/httpd"
)

const (
	// maxBody is the most that a body may hold. What is hashed is not kept, so
	// this bounds time, not memory. GitHub itself stops at 25 MB; a push of more
	// than this is still found by the poll.
	maxBody = 1 << 20
	// MinSecret is the least length of a secret in bytes.
	MinSecret = 16
	// maxConnections may be open at once.
	maxConnections = 64
	// pace is how often one repository is looked at at most.
	pace = 100 * time.Millisecond

	op = "forge.New"
)

// Hook is the webhook of one repository.
type Hook struct {
	Repository string
	Provider   Provider
	// Secret returns what the forge signs with. It is called for each request, so
	// that the secret can be rotated.
	Secret func() ([]byte, error)
}

// Config says whom to listen to. All fields are required.
type Config struct {
	Hooks []Hook
	// Poke is called when something was pushed to a repository. It must not block.
	Poke    func(repository string)
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Handler answers webhooks. It is safe for concurrent use.
type Handler struct {
	log      *slog.Logger
	mux      *http.ServeMux
	hooks    map[string]*hook
	stranger *hook // stands for every repository that there is not
	counted  *prometheus.CounterVec
	denials  rate.Sometimes
}

// hook is one repository's.
type hook struct {
	Hook
	check  checker
	looks  coalescer
	broken rate.Sometimes // log lines about a secret that cannot be read
}

// New returns a Handler. It reads each secret once, and refuses one that is
// missing or shorter than 16 bytes with an error of kind fault.Invalid.
func New(c Config) (*Handler, error) {
	switch {
	case len(c.Hooks) == 0:
		return nil, errors.New("forge: no webhook configured")
	case c.Poke == nil || c.Log == nil || c.Metrics == nil:
		return nil, errors.New("forge: nobody to poke, no logger or no metrics registry")
	}
	h := &Handler{
		log: c.Log, mux: http.NewServeMux(), hooks: map[string]*hook{}, denials: rate.Sometimes{Interval: time.Minute},
		counted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_webhooks_total", Help: "Webhooks by outcome: pushed, other (an event that is no push), denied, malformed, broken (the secret cannot be read).",
		}, []string{"outcome"}),
	}
	if err := c.Metrics.Register(h.counted); err != nil {
		return nil, fmt.Errorf("forge: register metrics: %w", err)
	}
	for _, hk := range c.Hooks {
		if h.hooks[hk.Repository] != nil || hk.Repository == "" {
			return nil, fault.New(fault.Invalid, op, "give each repository one webhook", "repository %q is missing a name or has two webhooks", hk.Repository)
		}
		check, ok := checkers()[hk.Provider]
		if !ok || hk.Secret == nil {
			return nil, fault.New(fault.Invalid, op, "use github, gitlab, gitea, forgejo or bitbucket", "repository %s: no secret, or no provider %q", hk.Repository, hk.Provider)
		}
		k := &hook{Hook: hk, check: check, looks: coalescer{poke: func() { c.Poke(hk.Repository) }}, broken: rate.Sometimes{Interval: time.Minute}}
		if _, err := k.secret(); err != nil {
			return nil, err
		}
		h.hooks[hk.Repository] = k
	}
	nobody := []byte(rand.Text())
	h.stranger = &hook{check: checkers()[GitHub], Hook: Hook{Secret: func() ([]byte, error) {
		_, _ = c.Hooks[0].Secret() // takes as long as for a repository that there is
		return nobody, nil
	}}}
	h.mux.HandleFunc("POST /hooks/{repository}", h.receive)
	return h, nil
}

// secret reads the secret and refuses a weak one: an empty secret signs for
// everybody (CVE-2026-102649).
func (k *hook) secret() ([]byte, error) {
	s, err := k.Secret()
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, op, "", fmt.Errorf("webhook of %s: %w", k.Repository, err))
	}
	if len(s) < MinSecret {
		return nil, fault.New(fault.Invalid, op, "write a long random secret into the file, and give the same to the forge", "webhook of %s: the secret has %d bytes, want at least %d", k.Repository, len(s), MinSecret)
	}
	if key, ok := strings.CutPrefix(string(s), signingPrefix); ok && k.Provider == GitLab {
		if _, ok := signingKey(key); !ok {
			return nil, fault.New(fault.Invalid, op, "copy the signing token from GitLab once more", "webhook of %s: what follows %s is not a key in base64", k.Repository, signingPrefix)
		}
	}
	return s, nil
}

// ServeHTTP answers one webhook.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// receive answers one POST. Up to the signature, what it answers depends on
// nothing but the request itself.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request) {
	// GitHub and Gitea send forms too if they are told so; the signature is over
	// the raw body either way.
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" && media != "application/x-www-form-urlencoded" {
		h.refuse(w, "malformed", http.StatusUnsupportedMediaType)
		return
	}
	if r.ContentLength > maxBody {
		h.refuse(w, "malformed", http.StatusRequestEntityTooLarge)
		return
	}
	k, known := h.hooks[r.PathValue("repository")]
	if !known {
		k = h.stranger // for whom no signature is right
	}
	secret, err := k.secret()
	if err != nil {
		k.broken.Do(func() {
			h.log.ErrorContext(r.Context(), "webhook secret unusable", slog.String("repository", k.Repository), slog.String("error", err.Error()), slog.String("hint", fault.HintOf(err)))
		})
		h.counted.WithLabelValues("broken").Inc()
		secret = []byte(rand.Text())
	}
	ok, err := k.check(r.Header, secret, http.MaxBytesReader(w, r.Body, maxBody))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		h.refuse(w, "malformed", http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		h.refuse(w, "malformed", http.StatusBadRequest)
		return
	case !ok:
		h.denials.Do(func() {
			h.log.WarnContext(r.Context(), "webhook denied", slog.String("from", r.RemoteAddr), slog.Bool("known", known))
		})
		h.refuse(w, "denied", http.StatusUnauthorized)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	if !k.Provider.pushed(r.Header) {
		h.counted.WithLabelValues("other").Inc()
		return
	}
	h.counted.WithLabelValues("pushed").Inc()
	k.looks.ask()
}

// refuse answers with a status and nothing else.
func (h *Handler) refuse(w http.ResponseWriter, outcome string, status int) {
	h.counted.WithLabelValues(outcome).Inc()
	w.Header().Set("Connection", "close") // whoever is refused begins again
	http.Error(w, http.StatusText(status), status)
}

// Serve answers on l until ctx ends, and closes it.
func (h *Handler) Serve(ctx context.Context, l net.Listener) error {
	defer func() {
		for _, k := range h.hooks {
			k.looks.stop()
		}
	}()
	return httpd.Serve(ctx, &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug), // what strangers do wrong
	}, netutil.LimitListener(l, maxConnections))
}
