package testenv

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// GitOptions say which git server to start.
type GitOptions struct {
	// Dir holds the repositories, work trees and keys. Empty: a temporary
	// directory that Close removes.
	Dir string
	// Token is accepted as a bearer token and as the password of any user.
	Token string
	// Username and Password are accepted as basic authentication. With neither
	// these nor Token, the HTTP server is open.
	Username, Password string
	// TLS serves https under a throwaway authority.
	TLS bool
}

// GitServer serves the same bare repositories by smart HTTP, by SSH and by path.
type GitServer struct {
	dir    string
	remove bool // dir is ours to remove
	web    *webServer
	ssh    *gliderssh.Server
	sshTo  string // "127.0.0.1:port"
	key    string
	known  string
}

// maxPush bounds the body of one push over HTTP.
const maxPush = 256 << 20

// NewGitServer starts a server. The caller closes it.
func NewGitServer(o GitOptions) (*GitServer, error) {
	s := &GitServer{dir: o.Dir}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "holdfast-git-")
		if err != nil {
			return nil, fmt.Errorf("git server: %w", err)
		}
		s.dir, s.remove = dir, true
	}
	if err := s.start(o); err != nil {
		return nil, errors.Join(fmt.Errorf("git server: %w", err), s.Close())
	}
	return s, nil
}

func (s *GitServer) start(o GitOptions) error {
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	s.dir = dir
	for _, sub := range []string{"repos", "work", "home", "keys"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "home", "gitconfig"), []byte(gitConfig), 0o600); err != nil {
		return err
	}
	if err := s.startHTTP(o); err != nil {
		return err
	}
	return s.startSSH()
}

// gitConfig is the only configuration any git process of the test bed reads.
const gitConfig = `[init]
	defaultBranch = main
[gc]
	auto = 0
[maintenance]
	auto = false
[receive]
	autogc = false
[advice]
	detachedHead = false
[safe]
	directory = *
[protocol "file"]
	allow = always
`

// env is the whole environment of a git process: nothing of the user's own
// configuration, agents or credential helpers gets in.
func (s *GitServer) env() []string {
	home := filepath.Join(s.dir, "home")
	env := []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + home,
		"XDG_CONFIG_HOME=" + home,
		"GNUPGHOME=" + home,
		"GIT_CONFIG_GLOBAL=" + filepath.Join(home, "gitconfig"),
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ASKPASS=true",
		"GIT_AUTHOR_NAME=" + defaultName, "GIT_AUTHOR_EMAIL=" + defaultEmail,
		"GIT_COMMITTER_NAME=" + defaultName, "GIT_COMMITTER_EMAIL=" + defaultEmail,
		"LC_ALL=C", "TZ=UTC",
		"GIT_SSH_COMMAND=ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes" +
			" -i '" + s.key + "' -o UserKnownHostsFile='" + s.KnownHostsFile() + "'",
	}
	if s.web != nil && len(s.web.ca) > 0 {
		env = append(env, "GIT_SSL_CAINFO="+s.CAFile())
	}
	return env
}

func (s *GitServer) startHTTP(o GitOptions) error {
	git, err := exec.LookPath("git")
	if err != nil {
		return fmt.Errorf("%w; install git", err)
	}
	execPath, err := exec.Command(git, "--exec-path").Output()
	if err != nil {
		return fmt.Errorf("git --exec-path: %w", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
		Dir:  s.dir,
		Env: append(s.env(),
			"GIT_PROJECT_ROOT="+s.root(),
			"GIT_HTTP_EXPORT_ALL=1",
			"REMOTE_USER=holdfast"),
		Logger: discardLogger(),
		Stderr: io.Discard,
	}
	handler := requireAuth(unchunk(backend), credentials{username: o.Username, password: o.Password, token: o.Token})
	if s.web, err = serve(handler, o.TLS); err != nil {
		return err
	}
	if len(s.web.ca) == 0 {
		return nil
	}
	return os.WriteFile(s.CAFile(), s.web.ca, 0o600)
}

// unchunk gives chunked bodies a length, because CGI has no other way to tell
// where a body ends.
func unchunk(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPush))
			if err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		}
		next.ServeHTTP(w, r)
	})
}

func (s *GitServer) startSSH() error {
	host, err := newSSHKey()
	if err != nil {
		return err
	}
	hostSigner, err := ssh.NewSignerFromKey(host)
	if err != nil {
		return err
	}
	client, err := newSSHKey()
	if err != nil {
		return err
	}
	signer, err := newSSHSigner(filepath.Join(s.dir, "keys"), "client", "client@holdfast.test", client)
	if err != nil {
		return err
	}
	s.key = signer.KeyFile
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.sshTo = listener.Addr().String()
	s.known = knownhosts.Line([]string{s.sshTo}, hostSigner.PublicKey()) + "\n"
	if err := os.WriteFile(s.KnownHostsFile(), []byte(s.known), 0o600); err != nil {
		_ = listener.Close()
		return err
	}
	s.ssh = &gliderssh.Server{
		Handler:     s.handleSSH,
		HostSigners: []gliderssh.Signer{hostSigner},
		MaxTimeout:  10 * time.Minute,
		PublicKeyHandler: func(_ gliderssh.Context, key gliderssh.PublicKey) bool {
			return gliderssh.KeysEqual(key, signer.ssh.PublicKey())
		},
	}
	go func() { _ = s.ssh.Serve(listener) }()
	return nil
}

func newSSHKey() (ed25519.PrivateKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// handleSSH runs the two services git asks for, and nothing else.
func (s *GitServer) handleSSH(session gliderssh.Session) {
	argv := session.Command()
	if len(argv) != 2 || argv[0] != "git-upload-pack" && argv[0] != "git-receive-pack" {
		_, _ = io.WriteString(session.Stderr(), "only git-upload-pack and git-receive-pack are served\n")
		_ = session.Exit(128)
		return
	}
	repo := filepath.Join(s.root(), filepath.Clean("/"+argv[1]))
	cmd := exec.CommandContext(session.Context(), "git", strings.TrimPrefix(argv[0], "git-"), repo)
	cmd.Env = s.env()
	for _, e := range session.Environ() {
		if strings.HasPrefix(e, "GIT_PROTOCOL=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Stdout, cmd.Stderr = session, session.Stderr()
	// A pipe of our own: with the session as Stdin, Run would wait for a client
	// that waits for us.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		_ = session.Exit(128)
		return
	}
	go func() {
		_, _ = io.Copy(stdin, session)
		_ = stdin.Close()
	}()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		_ = session.Exit(0)
	case errors.As(err, &exit):
		_ = session.Exit(exit.ExitCode())
	default:
		_ = session.Exit(128)
	}
}

func (s *GitServer) root() string { return filepath.Join(s.dir, "repos") }

// HTTPURL returns the repository's http or https URL, without credentials.
func (s *GitServer) HTTPURL(repo string) string { return s.web.url() + "/" + repo + ".git" }

// SSHURL returns the repository's ssh URL.
func (s *GitServer) SSHURL(repo string) string { return "ssh://git@" + s.sshTo + "/" + repo + ".git" }

// Path returns the directory of the bare repository.
func (s *GitServer) Path(repo string) string { return filepath.Join(s.root(), repo+".git") }

// KnownHosts returns the content of a known_hosts file with the server's host key.
func (s *GitServer) KnownHosts() string { return s.known }

// KnownHostsFile returns the path of a file with [GitServer.KnownHosts].
func (s *GitServer) KnownHostsFile() string { return filepath.Join(s.dir, "keys", "known_hosts") }

// ClientKey returns the path of the one private key that SSH accepts.
func (s *GitServer) ClientKey() string { return s.key }

// CA returns the authority of the https server in PEM, nil without TLS.
func (s *GitServer) CA() []byte { return s.web.ca }

// CAFile returns the path of a file with [GitServer.CA]; it exists only with TLS.
func (s *GitServer) CAFile() string { return filepath.Join(s.dir, "keys", "ca.pem") }

// Close stops the server, and removes its directory if it made it.
func (s *GitServer) Close() error {
	var errs []error
	if s.web != nil {
		errs = append(errs, s.web.close())
	}
	if s.ssh != nil {
		errs = append(errs, s.ssh.Close())
	}
	if s.remove {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
