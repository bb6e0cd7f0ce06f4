package git

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/holdfast-dev/holdfast/sources"
)

// maxRefs bounds a server's list of refs, in bytes: about 150,000 refs.
const maxRefs = 16 << 20

var errNoBranch = errors.New("the branch does not exist")

func newRemote(c Config, ep endpoint, l sources.Limits) (remote, error) {
	a := c.Auth
	web := ep.scheme == "http" || ep.scheme == "https"
	switch {
	case !web && (a.Password != nil || a.Token != nil || a.CA != nil):
		return nil, errors.New("auth has an HTTP password, token or CA, but the url is not HTTP")
	case ep.scheme != "ssh" && (a.SSHKey != nil || a.KnownHosts != ""):
		return nil, errors.New("auth has an SSH key or known hosts, but the url is not SSH")
	case a.Password != nil && a.Token != nil:
		return nil, errors.New("auth has both a password and a token")
	}
	refs := c.followed()
	switch ep.scheme {
	case "file":
		return &pathRemote{path: ep.path, refs: refs, limits: l}, nil
	case "ssh":
		connect, err := sshConnector(ep, a, l)
		return &server{refs: refs, connect: connect}, err
	}
	if ep.scheme == "http" && !ep.loopback() && !c.InsecureHTTP {
		return nil, errors.New("plain http would show credentials and content to the network")
	}
	connect, idle, err := httpConnector(ep, a, l)
	return &server{refs: refs, connect: connect, idle: idle}, err
}

// session is one conversation with git-upload-pack.
type session interface {
	AdvertisedReferencesContext(ctx context.Context) (*packp.AdvRefs, error)
	UploadPack(ctx context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error)
	io.Closer
}

// server is a remote that speaks Git's pack protocol.
type server struct {
	refs    followed
	connect func(ctx context.Context) (session, error)
	idle    func() // closes connections that are kept for the next session; may be nil
}

func (r *server) close() {
	if r.idle != nil {
		r.idle()
	}
}

func (r *server) tips(ctx context.Context) (tips, error) {
	s, err := r.connect(ctx)
	if err != nil {
		return tips{}, err
	}
	defer s.Close() //nolint:errcheck // nothing was written
	t, _, err := r.advertised(ctx, s)
	return t, err
}

func (r *server) advertised(ctx context.Context, s session) (tips, *packp.AdvRefs, error) {
	ar, err := s.AdvertisedReferencesContext(ctx)
	if err != nil {
		return tips{}, nil, err
	}
	for _, f := range ar.Capabilities.Get("object-format") {
		if f != "sha1" {
			return tips{}, nil, invalid("use a repository with SHA-1 object ids", "object format %q is not supported", clip(f))
		}
	}
	t, err := r.refs.pick(ar.References, func(ref string) (plumbing.Hash, error) {
		if id, annotated := ar.Peeled[ref]; annotated {
			return id, nil
		}
		return ar.References[ref], nil
	})
	return t, ar, err
}

func (r *server) fetch(ctx context.Context, m *mirror) (tips, error) {
	s, err := r.connect(ctx)
	if err != nil {
		return tips{}, err
	}
	defer s.Close() //nolint:errcheck // the pack is checked on its own
	t, ar, err := r.advertised(ctx, s)
	if err != nil {
		return tips{}, err
	}
	haves, err := m.haves()
	if err != nil {
		return tips{}, err
	}
	wants, err := m.lacks(t, haves)
	if err != nil || len(wants) == 0 { // the protocol has no way to ask for nothing
		return t, err
	}
	req := packp.NewUploadPackRequestFromCapabilities(ar.Capabilities)
	if ar.Capabilities.Supports(capability.NoProgress) {
		if err := req.Capabilities.Set(capability.NoProgress); err != nil {
			return tips{}, err
		}
	}
	req.Wants = wants
	req.Haves = haves
	resp, err := s.UploadPack(ctx, req)
	if err != nil {
		return tips{}, err
	}
	defer resp.Close() //nolint:errcheck // read only
	return t, m.ingest(ctx, demultiplexed(req.Capabilities, resp))
}

// demultiplexed takes the pack out of the sideband it may be in.
func demultiplexed(l *capability.List, r io.Reader) io.Reader {
	switch {
	case l.Supports(capability.Sideband64k):
		return sideband.NewDemuxer(sideband.Sideband64k, r)
	case l.Supports(capability.Sideband):
		return sideband.NewDemuxer(sideband.Sideband, r)
	}
	return r
}

// httpConnector makes sessions over one HTTP client of our own: go-git's
// registry of protocols is global, and its default client follows redirects.
func httpConnector(ep endpoint, a Auth, l sources.Limits) (connect func(context.Context) (session, error), idle func(), err error) {
	u := url.URL{Scheme: ep.scheme, Host: ep.host}
	target := &transport.Endpoint{Protocol: ep.scheme, Host: u.Hostname(), Path: ep.path}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, nil, fmt.Errorf("port %q is not a port", p)
		}
		target.Port = int(n)
	}
	rt, err := newTransport(a.CA)
	if err != nil {
		return nil, nil, err
	}
	client := &http.Client{
		Transport: &boundTransport{next: rt, scheme: ep.scheme, host: ep.host, pack: transfer(l)},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Scheme != ep.scheme || !strings.EqualFold(req.URL.Host, ep.host) || len(via) > 3 {
				return errRedirect
			}
			return nil
		},
	}
	proto := githttp.NewClient(client)
	user := firstOf(a.Username, ep.user, "git")
	return func(context.Context) (session, error) {
		auth, err := httpAuth(a, user)
		if err != nil {
			return nil, fmt.Errorf("credentials cannot be read: %w", err)
		}
		return proto.NewUploadPackSession(target, auth)
	}, rt.CloseIdleConnections, nil
}

func httpAuth(a Auth, user string) (transport.AuthMethod, error) {
	switch {
	case a.Token != nil:
		token, err := a.Token()
		return &githttp.TokenAuth{Token: strings.TrimSpace(token)}, err
	case a.Password != nil:
		password, err := a.Password()
		return &githttp.BasicAuth{Username: user, Password: strings.TrimRight(password, "\r\n")}, err
	}
	return nil, nil
}

func newTransport(ca []byte) (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			return nil, errors.New("auth.ca holds no PEM certificate")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

// boundTransport is the last gate before the network: whatever the layers
// above decide, a request leaves for the configured origin only, and an answer
// is read only so far.
type boundTransport struct {
	next         http.RoundTripper
	scheme, host string
	pack         int64
}

// RoundTrip implements http.RoundTripper.
func (t *boundTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != t.scheme || !strings.EqualFold(req.URL.Host, t.host) {
		return nil, errRedirect
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	most := int64(maxRefs)
	switch {
	case resp.StatusCode >= http.StatusMultipleChoices:
		most = 64 << 10
	case strings.HasSuffix(req.URL.Path, "/"+transport.UploadPackServiceName):
		most = t.pack + maxRefs // the pack has its own check; this one stops what surrounds it
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&cappedReader{r: resp.Body, left: most}, resp.Body}
	return resp, nil
}

// cappedReader fails, where io.LimitReader would report a clean end.
type cappedReader struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, invalid("raise the source's limits if the repository is meant to be this large", "the server sends more than the limit")
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
