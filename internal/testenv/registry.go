package testenv

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log"
	"net/http"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // the driver that newDistribution names
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/sirupsen/logrus"
)

// RegistryOptions say which registry to start.
type RegistryOptions struct {
	// Referrers starts a registry with the referrers API of OCI distribution
	// 1.1. Without it, clients have to fall back to the referrers tag.
	Referrers bool
	// TLS serves https under a throwaway authority.
	TLS bool
	// Auth demands basic authentication with a fresh password.
	Auth bool
}

// Registry is an OCI registry in memory.
type Registry struct {
	Host     string // "127.0.0.1:port"
	CA       []byte // the authority in PEM; nil without TLS
	Username string // empty without Auth
	Password string

	web       *webServer
	transport *http.Transport
}

// NewRegistry starts a registry. The caller closes it.
func NewRegistry(o RegistryOptions) (*Registry, error) {
	handler := newDistribution
	if o.Referrers {
		handler = newReferrersRegistry
	}
	r := &Registry{}
	h := handler()
	if o.Auth {
		r.Username, r.Password = "holdfast", rand.Text()
		h = requireAuth(h, credentials{username: r.Username, password: r.Password})
	}
	web, err := serve(h, o.TLS)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.web, r.Host, r.CA = web, web.host, web.ca
	if r.transport, err = transportFor(r.CA); err != nil {
		_ = web.close()
		return nil, fmt.Errorf("registry: %w", err)
	}
	return r, nil
}

// URL returns the registry's base URL, "http://127.0.0.1:port".
func (r *Registry) URL() string { return r.web.url() }

// Transport returns a transport that trusts the registry's certificate. It
// carries no credentials.
func (r *Registry) Transport() http.RoundTripper { return r.transport }

// Close stops the registry and forgets its content.
func (r *Registry) Close() error {
	r.transport.CloseIdleConnections()
	return r.web.close()
}

func newReferrersRegistry() http.Handler {
	return registry.New(registry.Logger(discardLogger()), registry.WithReferrersSupport(true))
}

// newDistribution returns the CNCF reference registry, which has no referrers API.
func newDistribution() http.Handler {
	config := &configuration.Configuration{
		Version: configuration.MajorMinorVersion(0, 1),
		Storage: configuration.Storage{
			"inmemory": configuration.Parameters{},
			"delete":   configuration.Parameters{"enabled": true},
			// The purger would outlive the registry by up to an hour.
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.HTTP.Secret = rand.Text()
	config.Log.AccessLog.Disabled = true
	// It logs each request through the process's default logrus logger, and
	// takes no other.
	logrus.SetOutput(io.Discard)
	return handlers.NewApp(context.Background(), config)
}

// credentials of a server. A token is accepted as a bearer token and, as
// forges do, as the password of any user.
type credentials struct{ username, password, token string }

func (c credentials) required() bool { return c != credentials{} }

func (c credentials) allow(r *http.Request) bool {
	if c.token != "" && equal(r.Header.Get("Authorization"), "Bearer "+c.token) {
		return true
	}
	username, password, ok := r.BasicAuth()
	if !ok {
		return false
	}
	if c.token != "" && equal(password, c.token) {
		return true
	}
	return c.password != "" && equal(username, c.username) && equal(password, c.password)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func requireAuth(next http.Handler, c credentials) http.Handler {
	if !c.required() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.allow(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="holdfast test bed"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func discardLogger() *log.Logger { return log.New(io.Discard, "", 0) }
