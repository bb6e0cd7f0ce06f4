package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// host is one registry's transport and credentials.
type host struct {
	Host
	http *http.Client
}

func newHost(c Host) (*host, error) {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    128, // a new connection costs a round trip, an idle one some 20 KiB
		ForceAttemptHTTP2:      true,
	}
	if len(c.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(c.CA) {
			return nil, errors.New("the CA has no certificate in PEM")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	if c.Password != nil && c.Username == "" {
		return nil, errors.New("a password without a username")
	}
	return &host{Host: c, http: &http.Client{
		Transport: t,
		Timeout:   callTimeout,
		// Redirects are followed by Client.follow, which decides about credentials.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (c *Client) host(h string) *host {
	if found, ok := c.hosts[h]; ok {
		return found
	}
	return c.fallback
}

func (h *host) scheme() string {
	if h.InsecureHTTP {
		return "http"
	}
	return "https"
}

func (c *Client) get(ctx context.Context, r name.Repository, path string, header http.Header) (*http.Response, error) {
	return c.request(ctx, http.MethodGet, r, path, header)
}

// request asks for /v2/<name><path>. The answer is 200, or an error: one
// wrapping ErrNotFound for 404, fault.Transient for all else. A 401 is answered
// once, also where a token was accepted before: it may have ended.
func (c *Client) request(ctx context.Context, method string, r name.Repository, path string, header http.Header) (*http.Response, error) {
	const op = "verify/registry.get"
	if c.past != nil {
		return c.past.answer(method, r, path)
	}
	reg := r.RegistryStr()
	u, err := c.address(r, path)
	if err != nil {
		return nil, err
	}
	resp, err := c.authorized(ctx, method, r, u, "pull", header, nil)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp, nil
	case http.StatusNotFound:
		discard(resp)
		return nil, fmt.Errorf("%s: %w", redacted(u), ErrNotFound)
	case http.StatusUnauthorized, http.StatusForbidden:
		discard(resp)
		return nil, fault.New(fault.Transient, op, "check the credentials for "+reg+" in holdfast.yaml", "%s: the registry answered %s", redacted(u), status(resp))
	default:
		discard(resp)
		return nil, fault.New(fault.Transient, op, "", "%s: the registry answered %s", redacted(u), status(resp))
	}
}

// address returns the URL of /v2/<name><path>.
func (c *Client) address(r name.Repository, path string) (*url.URL, error) {
	u, err := url.Parse(c.host(r.RegistryStr()).scheme() + "://" + r.RegistryStr() + "/v2/" + r.RepositoryStr() + path)
	return u, fault.Wrap(fault.Invalid, "verify/registry.get", "", err)
}

// authorized sends a request to r's registry, with the credential for what it may do
// with the repository, and returns whatever the answer is.
func (c *Client) authorized(ctx context.Context, method string, r name.Repository, u *url.URL, may string, header http.Header, body []byte) (*http.Response, error) {
	h := c.host(r.RegistryStr())
	key := tokenKey{registry: r.RegistryStr(), scope: "repository:" + r.RepositoryStr() + ":" + may}
	resp, err := c.follow(ctx, method, h, u, header, body, c.authorization(key))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	discard(resp)
	auth, err := c.login(ctx, h, key, resp.Header.Values("WWW-Authenticate"))
	if err != nil {
		return nil, err
	}
	return c.follow(ctx, method, h, u, header, body, auth)
}

// status is the code and what the standard calls it. The reason that a server
// writes beside the code may be anything, our own credential included.
func status(resp *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
}

// follow sends one request and follows redirects. The credential goes to u's host
// only, and never again once another host has been seen. A redirect may not
// lead from HTTPS to plain HTTP, nor content that is sent anywhere else.
func (c *Client) follow(ctx context.Context, method string, h *host, u *url.URL, header http.Header, body []byte, auth string) (*http.Response, error) {
	const op = "verify/registry.get"
	origin := u
	for range maxRedirects {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
		if err != nil {
			return nil, fault.Wrap(fault.Internal, op, "", err)
		}
		if header != nil {
			req.Header = header.Clone()
		}
		req.Header.Set("User-Agent", "holdfast")
		if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		resp, err := h.http.Do(req)
		if err != nil {
			return nil, fault.New(fault.Transient, op, "", "%s: %w", redacted(u), cause(err))
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		discard(resp)
		if method != http.MethodGet && method != http.MethodHead {
			return nil, fault.New(fault.Denied, op, "", "%s: refusing to send content where a redirect leads", redacted(u))
		}
		next, err := resp.Location()
		if err != nil {
			return nil, fault.New(fault.Transient, op, "", "%s: redirect without a target", redacted(u))
		}
		if next.User != nil || (next.Scheme != "https" && (next.Scheme != "http" || !c.host(next.Host).InsecureHTTP)) {
			return nil, fault.New(fault.Denied, op, "", "%s: refusing a redirect to %s", redacted(origin), redacted(next))
		}
		if next.Host != origin.Host || next.Scheme != origin.Scheme {
			auth = ""
		}
		u, h = next, c.host(next.Host)
	}
	return nil, fault.New(fault.Transient, op, "", "%s: more than %d redirects", redacted(origin), maxRedirects)
}

// redacted drops the query, where storage services put signatures.
func redacted(u *url.URL) string { return u.Scheme + "://" + u.Host + u.Path }

// cause drops the URL that net/http puts in front, which carries the query.
func cause(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	_ = resp.Body.Close()
}

type tokenKey struct{ registry, scope string }

type token struct {
	header  string
	expires time.Time
}

func (c *Client) authorization(k tokenKey) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tokens[k]; ok && time.Now().Before(t.expires) {
		return t.header
	}
	return ""
}

// login answers a 401 challenge and returns the Authorization header to use.
func (c *Client) login(ctx context.Context, h *host, k tokenKey, challenges []string) (string, error) {
	const op = "verify/registry.login"
	user, pass, err := c.credentials(h, k.registry)
	if err != nil {
		return "", fault.New(fault.Transient, op, "check the credentials for "+k.registry+" in holdfast.yaml", "%s: %w", k.registry, err)
	}
	basic := ""
	if user != "" {
		basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
	}
	scheme, params := pick(challenges)
	t := token{expires: time.Now().Add(time.Minute)}
	switch scheme {
	case "basic":
		if basic == "" {
			return "", fault.New(fault.Transient, op, "add credentials for "+k.registry+" under registries: in holdfast.yaml", "%s asks for credentials", k.registry)
		}
		t.header = basic
	case "bearer":
		if t, err = c.fetchToken(ctx, h, k, params, basic); err != nil {
			return "", err
		}
	default:
		return "", fault.New(fault.Transient, op, "", "%s: asks for authentication in a way that is not supported", k.registry)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tokens) > 1024 {
		clear(c.tokens)
	}
	c.tokens[k] = t
	return t.header, nil
}

// fetchToken asks the challenge's realm for a token.
// https://distribution.github.io/distribution/spec/auth/token/
func (c *Client) fetchToken(ctx context.Context, h *host, k tokenKey, params map[string]string, basic string) (token, error) {
	const op = "verify/registry.login"
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil {
		return token{}, fault.New(fault.Denied, op, "", "%s: names no usable token realm", k.registry)
	}
	rh := c.host(realm.Host)
	if realm.Host == k.registry {
		rh = h
	}
	if realm.Scheme != "https" && (realm.Scheme != "http" || !rh.InsecureHTTP) {
		return token{}, fault.New(fault.Denied, op, "", "%s: refusing the token realm %s: not HTTPS", k.registry, redacted(realm))
	}
	if realm.Host != k.registry && !slices.Contains(h.Realms, realm.Host) {
		// A registry that can choose the realm can choose who gets the password.
		// An anonymous request carries none, but its answer would still be
		// chosen by a third party, so it is refused too, Docker Hub's own apart.
		if k.registry != name.DefaultRegistry || realm.Host != "auth.docker.io" {
			return token{}, fault.New(fault.Denied, op, "add "+realm.Host+" to realms: of this registry in holdfast.yaml if it is the right one",
				"%s: refusing the token realm %s on another host", k.registry, redacted(realm))
		}
	}
	q := realm.Query()
	if s := params["service"]; s != "" {
		q.Set("service", s)
	}
	q.Set("scope", k.scope)
	realm.RawQuery = q.Encode()
	resp, err := c.follow(ctx, http.MethodGet, rh, realm, nil, nil, basic)
	if err != nil {
		return token{}, err
	}
	if resp.StatusCode != http.StatusOK {
		discard(resp)
		return token{}, fault.New(fault.Transient, op, "check the credentials for "+k.registry+" in holdfast.yaml", "%s: the token service answered %s", k.registry, status(resp))
	}
	b, err := read(resp, maxToken)
	if err != nil {
		return token{}, err
	}
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"` // seconds; 60 if absent, says the specification
	}
	if err := json.Unmarshal(b, &body); err != nil {
		return token{}, fault.New(fault.Transient, op, "", "%s: the token service's answer is not JSON", k.registry)
	}
	if body.Token == "" {
		body.Token = body.AccessToken
	}
	if body.Token == "" || strings.ContainsAny(body.Token, "\r\n") {
		return token{}, fault.New(fault.Transient, op, "", "%s: the token service gave no token", k.registry)
	}
	life := time.Duration(min(max(body.ExpiresIn, 60), 3600)) * time.Second
	return token{header: "Bearer " + body.Token, expires: time.Now().Add(life - 10*time.Second)}, nil
}

// credentials returns what is configured for exactly this registry.
func (c *Client) credentials(h *host, registry string) (user, pass string, err error) {
	if h.Password != nil {
		pass, err = h.Password()
		return h.Username, pass, err
	}
	if c.dockerConfig == "" {
		return "", "", nil
	}
	f, err := os.Open(c.dockerConfig)
	if err != nil {
		return "", "", err
	}
	defer f.Close() //nolint:errcheck // only read from
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return "", "", err
	}
	var conf struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return "", "", fmt.Errorf("%s: not a Docker configuration", c.dockerConfig) // the cause may quote a secret
	}
	keys := []string{registry, "https://" + registry}
	if registry == name.DefaultRegistry {
		keys = append(keys, authn.DefaultAuthKey, "docker.io")
	}
	for _, k := range keys {
		if a, ok := conf.Auths[k]; ok {
			return a.Username, a.Password, nil
		}
	}
	return "", "", nil
}

// pick returns the scheme, in lower case, and the parameters of the first
// challenge that is supported, Bearer before Basic.
func pick(challenges []string) (scheme string, params map[string]string) {
	for _, want := range []string{"bearer", "basic"} {
		for _, ch := range challenges {
			s, rest, _ := strings.Cut(strings.TrimSpace(ch), " ")
			if strings.EqualFold(s, want) {
				return want, parseParams(rest)
			}
		}
	}
	return "", nil
}

// parseParams reads key="value" pairs separated by commas (RFC 9110, 11.2).
// The first of two equal keys counts.
func parseParams(s string) map[string]string {
	out := map[string]string{}
	for s != "" {
		k, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		var v string
		if strings.HasPrefix(rest, `"`) {
			v, rest = unquote(rest[1:])
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			v, rest, _ = strings.Cut(rest, ",")
		}
		k = strings.ToLower(strings.TrimSpace(k))
		if _, ok := out[k]; !ok {
			out[k] = strings.TrimSpace(v)
		}
		s = rest
	}
	return out
}

// unquote reads up to the closing quote and returns what follows it.
func unquote(s string) (v, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			i++
			if i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
