package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-dev/holdfast/sources"
)

// sshConnector makes sessions over SSH. go-git's own client reads the user's
// ssh_config, which can move the connection to another host, dials without the
// caller's context and reads without bound; hence this one.
func sshConnector(ep endpoint, a Auth, l sources.Limits) (func(context.Context) (session, error), error) {
	if a.KnownHosts == "" {
		return nil, errors.New("an SSH source needs auth.knownHosts")
	}
	if a.SSHKey == nil {
		return nil, errors.New("an SSH source needs auth.sshKey")
	}
	addr := ep.host
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "22")
	}
	d := sshDialer{
		addr:    addr,
		user:    firstOf(ep.user, a.Username, "git"),
		auth:    a,
		command: transport.UploadPackServiceName + " " + quote(ep.path),
		most:    transfer(l) + maxRefs,
	}
	return d.dial, nil
}

type sshDialer struct {
	addr, user, command string
	auth                Auth
	most                int64
}

func (d sshDialer) dial(ctx context.Context) (session, error) {
	config, err := d.config()
	if err != nil {
		return nil, err
	}
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	// The SSH library has no contexts: closing the connection is how to stop it.
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // gives up
	c, chans, reqs, err := ssh.NewClientConn(conn, d.addr, config)
	if err != nil {
		stop()
		return nil, errors.Join(err, ignoreClosed(conn.Close()))
	}
	client := ssh.NewClient(c, chans, reqs)
	s := &sshSession{client: client, stop: stop}
	if err := s.start(d.command, d.most); err != nil {
		return nil, errors.Join(err, ignoreClosed(s.Close()))
	}
	return s, nil
}

func (d sshDialer) config() (*ssh.ClientConfig, error) {
	db, err := knownhosts.NewDB(d.auth.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("known_hosts cannot be read: %w", err)
	}
	pem, err := d.auth.SSHKey()
	if err != nil {
		return nil, fmt.Errorf("the SSH key cannot be read: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) {
		return nil, errors.New("the SSH key has a passphrase; use a deploy key without one")
	}
	if err != nil {
		return nil, errors.New("the SSH key is not a private key")
	}
	return &ssh.ClientConfig{
		User:              d.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback:   db.HostKeyCallback(),
		HostKeyAlgorithms: db.HostKeyAlgorithms(d.addr),
	}, nil
}

// sshSession speaks the pack protocol with one remote git-upload-pack.
type sshSession struct {
	client *ssh.Client
	stop   func() bool
	stdin  io.WriteCloser
	stdout io.Reader
	refs   *packp.AdvRefs
}

func (s *sshSession) start(command string, most int64) error {
	sess, err := s.client.NewSession()
	if err != nil {
		return err
	}
	if s.stdin, err = sess.StdinPipe(); err != nil {
		return err
	}
	out, err := sess.StdoutPipe()
	if err != nil {
		return err
	}
	s.stdout = &cappedReader{r: out, left: most}
	return sess.Start(command) // with stderr unset it is drained and dropped
}

// AdvertisedReferencesContext implements session.
func (s *sshSession) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	if s.refs != nil {
		return s.refs, nil
	}
	ar := packp.NewAdvRefs()
	err := ar.Decode(&cappedReader{r: s.stdout, left: maxRefs})
	switch {
	case errors.Is(err, packp.ErrEmptyInput):
		return nil, transport.ErrRepositoryNotFound // the server said why on stderr
	case errors.Is(err, packp.ErrEmptyAdvRefs):
		return nil, transport.ErrEmptyRemoteRepository
	case err != nil:
		return nil, err
	case ar.IsEmpty():
		return nil, transport.ErrEmptyRemoteRepository
	}
	transport.FilterUnsupportedCapabilities(ar.Capabilities)
	s.refs = ar
	return ar, nil
}

// UploadPack implements session.
func (s *sshSession) UploadPack(_ context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err := errors.Join(
		req.UploadRequest.Encode(&b),
		req.UploadHaves.Encode(&b, true),
		pktline.NewEncoder(&b).Encodef("done\n"),
	)
	if err != nil {
		return nil, err
	}
	if _, err := s.stdin.Write(b.Bytes()); err != nil {
		return nil, err
	}
	if err := s.stdin.Close(); err != nil {
		return nil, err
	}
	resp := packp.NewUploadPackResponse(req)
	if err := resp.Decode(io.NopCloser(s.stdout)); err != nil {
		return nil, err
	}
	return resp, nil
}

// Close ends the connection. The server needs no farewell.
func (s *sshSession) Close() error {
	s.stop()
	return ignoreClosed(s.client.Close())
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// quote is Git's sq_quote_buf: one word for the server's shell.
func quote(s string) string {
	return "'" + strings.NewReplacer(`'`, `'\''`, `!`, `'\!'`).Replace(s) + "'"
}
