package commit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// runner writes a program for git to run, with the body of a shell script.
func runner(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o700))
	return name
}

// TestCommitsOfGit judges what git itself makes, with each program that it signs
// by. Beside gpg and ssh-keygen, which are asked if they are there, these are a
// security key in software, and what gitsign does.
func TestCommitsOfGit(t *testing.T) {
	t.Parallel()
	const email = "test@holdfast.test" // whom git of the test bed commits as
	r, s := newRepo(t), newThrowaway(t)
	root := r.commit("README", r.by(r.alice))
	need := func(t *testing.T, program string) string {
		t.Helper()
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("no %s on PATH", program)
		}
		return path
	}
	for name, c := range map[string]struct {
		signer func(t *testing.T) (Signer, []string) // and git's options
		method string
	}{
		"ssh": {func(t *testing.T) (Signer, []string) {
			key := filepath.Join(t.TempDir(), "key")
			must(t, exec.Command(need(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key).Run())
			return Signer{SSH: line(t, email+" "+string(get(os.ReadFile(key+".pub"))(t)))},
				[]string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + key}
		}, "ssh"},
		"gpg": {func(t *testing.T) (Signer, []string) {
			home := get(os.MkdirTemp("", "gpg"))(t) // its socket needs a short path
			t.Cleanup(func() { must(t, os.RemoveAll(home)) })
			gpg := func(args ...string) []byte {
				t.Helper()
				cmd := exec.Command(need(t, "gpg"), append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
				return get(cmd.Output())(t)
			}
			gpg("--quick-generate-key", "Test <"+email+">", "ed25519", "sign", "never")
			t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() })
			return Signer{OpenPGP: [][]byte{gpg("--armor", "--export", email)}},
				[]string{"-c", "gpg.program=" + runner(t, "exec gpg --homedir "+home+` "$@"`), "-c", "user.signingKey=" + email}
		}, "openpgp"},
		"security key": {func(t *testing.T) (Signer, []string) {
			sky := newAuthenticator(t, flagUserPresent|flagUserVerified)
			return Signer{SSH: sky.line(t, email), UserVerified: true},
				[]string{"-c", "gpg.format=ssh", "-c", "gpg.ssh.program=" + sky.program(t), "-c", "user.signingKey=key::" + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sky.PublicKey())))}
		}, "ssh"},
		"gitsign": {func(t *testing.T) (Signer, []string) {
			dir := t.TempDir()
			payload, signature := filepath.Join(dir, "payload"), filepath.Join(dir, "signature")
			must(t, syscall.Mkfifo(payload, 0o600))
			must(t, syscall.Mkfifo(signature, 0o600))
			go func() {
				b, err := os.ReadFile(payload)
				if err == nil {
					_ = os.WriteFile(signature, []byte(s.gitsign("dana@example.com", b).sign()), 0o600)
				}
			}()
			return s.signer("git", "dana@example.com", s.root),
				[]string{"-c", "gpg.format=x509", "-c", "user.signingKey=dana", "-c", "gpg.x509.program=" +
					runner(t, fmt.Sprintf("cat > %s && cat %s && printf '\\n[GNUPG:] SIG_CREATED ' >&2", payload, signature))}
		}, "x509"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t, s.t = t, t
			signer, options := c.signer(t)
			signer.Name = "git"
			get(r.Git("reset", "-q", "--hard", root))(t)
			must(t, r.Write(map[string]string{"apps/x": name}))
			get(r.Git("add", "-A"))(t)
			get(r.Git(append(options, "commit", "-q", "-S", "-m", "by git, with a subject\n\nand a body")...))(t)
			config := r.config()
			config.Prover = prover
			config.Signers = append(config.Signers, signer)
			config.Rules[1].Signers = append(config.Rules[1].Signers, "git")
			if ev := r.accepts(config, root, get(r.Git("rev-parse", "HEAD"))(t)); ev.Facts["method"] != c.method {
				t.Errorf("facts %+v", ev.Facts)
			}
			config.Signers = config.Signers[:3]
			config.Rules[1].Signers = config.Rules[1].Signers[:1]
			if _, err := r.verify(config, root, get(r.Git("rev-parse", "HEAD"))(t)); err == nil {
				t.Error("accepted without the signer")
			}
		})
	}
}
