package terraform_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/egress"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/terraform"
)

// What a configuration's own program tries in an apply, with the real tools: it does not get
// out, and what it is allowed works.
func TestSandbox(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("geheim"), 0o644); err != nil {
			t.Fatal(err)
		}
		script := map[string]string{
			"host":     "cat " + secret,
			"shadow":   "cat /etc/shadow",
			"daemon":   "cat /proc/1/environ",
			"states":   "ls " + filepath.Dir(filepath.Dir(l.cfg.StateDir)),
			"tree":     "echo x > main.tf",
			"home":     "ls /root /home",
			"metadata": "exec 3<>/dev/tcp/169.254.169.254/80",
			"tcp":      "exec 3<>/dev/tcp/192.0.2.1/443",
			"mount":    "mount -t tmpfs none /tmp",
			"unshare":  "unshare -U true",
			"nsenter":  "nsenter -t 1 -m true",
		}
		var lines []string
		for name, try := range script {
			lines = append(lines, fmt.Sprintf("if ( %s ) >/dev/null 2>&1; then echo %s >> %s/escaped; fi", try, name, l.world))
		}
		lines = append(lines, "echo done > "+l.world+"/done", "env > "+l.world+"/env")
		main := "resource \"terraform_data\" \"evil\" {\n  provisioner \"local-exec\" {\n    interpreter = [\"/bin/bash\", \"-c\"]\n    command = <<-EOT\n" + strings.Join(lines, "\n") + "\n    EOT\n  }\n}\n"
		target := l.target(t)
		l.deploy(t, target, snapshot("c", map[string]string{"infra/main.tf": main}))
		if b, err := os.ReadFile(filepath.Join(l.world, "done")); err != nil || string(b) != "done\n" {
			t.Errorf("what is allowed: %q, %v", b, err)
		}
		if b, err := os.ReadFile(filepath.Join(l.world, "escaped")); err == nil {
			t.Errorf("escaped by: %s", strings.Fields(string(b)))
		}
		env, err := os.ReadFile(filepath.Join(l.world, "env"))
		if err != nil || strings.Contains(string(env), "HOLDFAST") || strings.Contains(string(env), "GOCACHE") {
			t.Errorf("environment: %s, %v", env, err)
		}
	})
}

// The only way out is the proxy, and forwards; what they refuse is told.
func TestSandboxEgress(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "out there") }))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		forward := "localhost:" + port
		allowed, err := egress.Parse([]string{s.Listener.Addr().String(), forward})
		if err != nil {
			t.Fatal(err)
		}
		l.cfg.Sandbox.Egress, l.cfg.Sandbox.Forwards = allowed, []string{forward}
		ask := func(host, via string) string {
			return fmt.Sprintf("exec 3<>/dev/tcp/%s && printf 'GET http://%s/ HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3", via, host)
		}
		lines := []string{
			"( " + ask(s.Listener.Addr().String(), "127.0.0.1/3128") + " ) > " + l.world + "/proxy",
			"( " + ask("169.254.169.254", "127.0.0.1/3128") + " ) > " + l.world + "/refused",
			"( " + ask("localhost", "127.0.1.1/"+port) + " ) > " + l.world + "/forward",
		}
		main := "resource \"terraform_data\" \"out\" {\n  provisioner \"local-exec\" {\n    interpreter = [\"/bin/bash\", \"-c\"]\n    command = <<-EOT\n" + strings.Join(lines, "\n") + "\n    EOT\n  }\n}\n"
		l.deploy(t, l.target(t), snapshot("c", map[string]string{"infra/main.tf": main}))
		for name, want := range map[string]string{"proxy": "out there", "forward": "out there", "refused": "403 Forbidden"} {
			if b, err := os.ReadFile(filepath.Join(l.world, name)); err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		if out := l.log.String(); !strings.Contains(out, "refused by the sandbox") || !strings.Contains(out, "169.254.169.254:80") {
			t.Errorf("the refusal is not in the log: %s", out)
		}
	})
}

// A host that cannot make a sandbox runs nothing, and says what it lacks.
func TestNoSandbox(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Sandbox.Read = []string{"/none/at/all"}
		target := l.target(t)
		r, err := target.Render(t.Context(), snapshot("c", map[string]string{"infra/main.tf": "locals {}\n"}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Plan(t.Context(), r)
		wantFault(t, err, fault.Invalid, "/none/at/all")
	})
}

// Init runs once for a rendering, and again after anything failed.
func TestInitIsRemembered(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		lock := e.lock(t, map[string]string{"local": "1.4.0"})
		files := func(content string) map[string]string {
			return map[string]string{"infra/.terraform.lock.hcl": string(lock), "infra/main.tf": fmt.Sprintf(`
resource "local_file" "a" {
  filename = %q
  content  = %q
}`, filepath.Join(l.world, "a"), content)}
		}
		target := l.target(t)
		inits := func() int { return strings.Count(l.log.String(), "nitializing the backend") }
		r, _ := l.deploy(t, target, snapshot("c", files("one")))
		if n := inits(); n != 1 {
			t.Errorf("%d times for a plan and its apply", n)
		}
		for range 2 {
			if p, err := target.Plan(t.Context(), r); err != nil || !p.Empty() {
				t.Fatalf("%v, %v", p.Changes, err)
			}
		}
		if n := inits(); n != 1 {
			t.Errorf("%d times for what was the same", n)
		}
		l.deploy(t, target, snapshot("d", files("two")))
		if n := inits(); n != 2 {
			t.Errorf("%d times for two renderings", n)
		}
		// What fails may fail for what was put back.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := target.Plan(ctx, r); err == nil {
			t.Error("a plan that was called off")
		}
		l.deploy(t, target, snapshot("e", files("three")))
		if b, err := os.ReadFile(filepath.Join(l.world, "a")); err != nil || string(b) != "three" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// No setting gives a sandbox what is Holdfast's own.
func TestSandboxIsNotTheDaemons(t *testing.T) {
	t.Parallel()
	l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
	l.cfg.Protected = terraform.Protected{Paths: []string{"/etc/holdfast/holdfast.yaml"}}
	for _, path := range []string{"/etc/holdfast", "/etc/holdfast/holdfast.yaml", filepath.Dir(l.cfg.StateDir), l.cfg.StateDir + "/x"} {
		for name, sandbox := range map[string]terraform.Sandbox{"read": {Read: []string{path}}, "write": {Write: []string{path}}} {
			cfg := l.cfg
			cfg.Sandbox = sandbox
			_, err := terraform.New(cfg, l.spec)
			wantFault(t, err, fault.Invalid, path)
			if err == nil {
				t.Errorf("%s %s", name, path)
			}
		}
	}
}
