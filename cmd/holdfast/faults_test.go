package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/examples"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/ledger/fsck"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// faulty is a world whose servers fail when a test says so, with a daemon and
// the two Kubernetes stacks of the example repository. Release n is image n of
// shop-web and log-level n of shop-settings, so that what is live says which
// release it is.
type faulty struct {
	t     *testing.T
	w     *world.World
	d     *world.Daemon
	live  dynamic.Interface
	log   *lockedBuffer
	files map[string]string // the two stacks, as of release 1.0
	infra map[string]string // the example's Terraform stack, which is not committed at first
	head  string
}

const (
	settingsFile   = "apps/settings/settings.yaml"
	deploymentFile = "apps/web/deployment.yaml"
	siteFile       = "infra/site/main.tf"
)

// newFaulty makes the world and commits release 1.0. It starts no daemon.
func newFaulty(t *testing.T) *faulty {
	t.Helper()
	cluster := testenv.SharedCluster(t)
	dir, err := os.MkdirTemp("", "hf-") // Unix sockets have short paths
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := &faulty{t: t, log: &lockedBuffer{}}
	f.w, err = world.New(world.Options{
		Dir: dir, Cluster: cluster, Namespace: testenv.Namespace(t, cluster), System: testenv.Namespace(t, cluster),
		Terraform: testenv.RequireTool(t, "tofu"), Faults: true,
	})
	must(t, err)
	t.Cleanup(func() {
		if f.d != nil {
			if gone, _ := f.d.Exited(); !gone {
				_ = f.d.Kill()
			}
		}
		_ = f.w.Close()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", f.log)
		}
	})
	f.live, err = dynamic.NewForConfig(cluster.Config)
	must(t, err)
	shop, err := fs.Sub(examples.FS, "shop")
	must(t, err)
	all, err := f.w.Example(shop)
	must(t, err)
	f.files, f.infra = map[string]string{}, map[string]string{}
	for name, content := range all {
		if strings.HasPrefix(name, "infra/") {
			f.infra[name] = content
		} else {
			f.files[name] = content
		}
	}
	f.publish("1.0", world.Signed)
	f.commit(f.files)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holdfast returns the path of the program that [TestMain] installed.
func (f *faulty) holdfast() string {
	f.t.Helper()
	bin, err := exec.LookPath("holdfast")
	must(f.t, err)
	return bin
}

func (f *faulty) start() {
	f.t.Helper()
	var err error
	f.d, err = f.w.Daemon(f.holdfast(), f.log)
	must(f.t, err)
}

func (f *faulty) kill() {
	f.t.Helper()
	if err := f.d.Kill(); err != nil {
		f.t.Fatalf("kill: %v", err)
	}
}

func (f *faulty) publish(tag string, how world.Release) {
	f.t.Helper()
	_, err := f.w.Publish(f.t.Context(), "acme/web", tag, how, false)
	must(f.t, err)
}

// commit commits files as alice and pushes.
func (f *faulty) commit(files map[string]string) {
	f.t.Helper()
	var err error
	f.head, err = f.w.Commit("Change", f.w.Alice, files)
	must(f.t, err)
}

// declare commits a release that is there already.
func (f *faulty) declare(version string) {
	f.t.Helper()
	f.commit(map[string]string{
		settingsFile:   strings.Replace(f.files[settingsFile], "log-level: info", "log-level: \""+version+"\"", 1),
		deploymentFile: strings.Replace(f.files[deploymentFile], "web:1.0", "web:"+version, 1),
	})
}

// release publishes an image and declares it.
func (f *faulty) release(version string) {
	f.t.Helper()
	f.publish(version, world.Signed)
	f.declare(version)
}

// until waits until the daemon's status is as check wants it.
func (f *faulty) until(what string, check func(reconciler.Overview) bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), waitTimeout)
	defer cancel()
	_, err := f.w.Wait(ctx, f.d, what, check)
	must(f.t, err)
}

// converged waits until every stack of the repository enforces the newest commit.
func (f *faulty) converged() {
	f.t.Helper()
	f.until("both stacks to be ready", func(o reconciler.Overview) bool {
		return f.ready(o, "shop-settings") && f.ready(o, "shop-web")
	})
}

func (f *faulty) ready(o reconciler.Overview, stack string) bool {
	st := world.Stack(o, stack)
	return st.Phase == reconciler.Ready && st.Applied == f.head
}

// says waits until a stack is in one of the phases at the newest commit, with a
// message that matches.
func (f *faulty) says(stack, message string, phases ...reconciler.Phase) {
	f.t.Helper()
	re := regexp.MustCompile(message)
	f.until(stack+" to say "+message, func(o reconciler.Overview) bool {
		st := world.Stack(o, stack)
		for _, p := range phases {
			if st.Phase == p && st.Desired == f.head && re.MatchString(st.Message) {
				return true
			}
		}
		return false
	})
}

// repositorySays waits until the repository's status has a message that matches.
func (f *faulty) repositorySays(message string) {
	f.t.Helper()
	re := regexp.MustCompile(message)
	f.until("the repository to say "+message, func(o reconciler.Overview) bool {
		return len(o.Repositories) == 1 && re.MatchString(o.Repositories[0].Message)
	})
}

// logLevel and image are what is live.
func (f *faulty) logLevel() string {
	f.t.Helper()
	return f.field("configmap", "shop-settings", "data", "log-level")
}

func (f *faulty) image() string {
	f.t.Helper()
	u, err := f.live.Resource(resourceOf("deployment")).Namespace(f.w.Namespace).Get(f.t.Context(), "web", metav1.GetOptions{})
	must(f.t, err)
	spec := u.Object["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	return spec["containers"].([]any)[0].(map[string]any)["image"].(string)
}

func (f *faulty) field(kind, name string, path ...string) string {
	f.t.Helper()
	u, err := f.live.Resource(resourceOf(kind)).Namespace(f.w.Namespace).Get(f.t.Context(), name, metav1.GetOptions{})
	must(f.t, err)
	var v any = u.Object
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	s, _ := v.(string)
	return s
}

// eventually waits until a live value is what it should be.
func (f *faulty) eventually(what string, ok func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), waitTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			f.t.Fatalf("%s did not happen", what)
		case <-tick.C:
		}
	}
}

// tamper changes the settings as somebody who is not Holdfast.
func (f *faulty) tamper(level string) {
	f.t.Helper()
	_, err := f.live.Resource(resourceOf("configmap")).Namespace(f.w.Namespace).Patch(f.t.Context(), "shop-settings",
		types.MergePatchType, fmt.Appendf(nil, `{"data":{"log-level":%q}}`, level), metav1.PatchOptions{FieldManager: "carol"})
	must(f.t, err)
}

// sound stops the daemon, unless it is gone already, and checks its ledger from
// outside: it verifies, and no intent is left without a result.
func (f *faulty) sound() {
	f.t.Helper()
	if gone, _ := f.d.Exited(); !gone {
		if err := f.d.Stop(); err != nil {
			f.t.Errorf("the daemon did not stop well: %v", err)
		}
	}
	f.audit(f.w.StateDir)
}

// check verifies the ledger of a state directory.
func (f *faulty) check(state string) fsck.Result {
	f.t.Helper()
	res, err := fsck.Check(f.t.Context(), fsck.DirReader(filepath.Join(state, "ledger")), fsck.Options{Verifiers: []string{f.ledgerKey(state)}})
	if err != nil {
		f.t.Fatalf("the ledger does not verify: %v", err)
	}
	return res
}

// audit verifies the ledger of a state directory, and wants one result for each intent.
func (f *faulty) audit(state string) {
	f.t.Helper()
	res := f.check(state)
	if len(res.Open) > 0 {
		f.t.Errorf("intents without a result: %v", res.Open)
	}
	closed := map[ledger.Index]bool{}
	for _, e := range f.entries(state) {
		if e.Type != ledger.Applied && e.Type != ledger.Reverted || e.Intent == nil {
			continue
		}
		if closed[*e.Intent] {
			f.t.Errorf("intent %d has two results", *e.Intent)
		}
		closed[*e.Intent] = true
	}
}

func (f *faulty) ledgerKey(state string) string {
	f.t.Helper()
	key, err := os.ReadFile(filepath.Join(state, "ledger.pub"))
	must(f.t, err)
	return strings.TrimSpace(string(key))
}

// entries reads the whole ledger of a state directory.
func (f *faulty) entries(state string) (all []ledger.Entry) {
	f.t.Helper()
	r, err := ledger.OpenReader(filepath.Join(state, "ledger"), f.ledgerKey(state))
	must(f.t, err)
	must(f.t, r.Scan(f.t.Context(), 0, func(_ ledger.Index, e ledger.Entry) error {
		all = append(all, e)
		return nil
	}))
	return all
}

// TestRegistryFaults: whatever the registry does, the stack that needs it says
// so and stays as it was, its neighbour goes on, and both converge afterwards.
func TestRegistryFaults(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	registry := f.w.RegistryFaults
	f.start()
	f.converged()

	manifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	failed := []reconciler.Phase{reconciler.Failed}
	refused := []reconciler.Phase{reconciler.Failed, reconciler.Denied} // a lie is no evidence either way
	for i, c := range []struct {
		name    string
		begin   func()
		end     func() // nil: the fault is taken away
		message string
		phases  []reconciler.Phase
		again   bool // a refusal stands for minutes: only a new commit shows that the registry is well
	}{
		{name: "down", begin: registry.Down, end: registry.Up, message: `acme/web`, phases: failed},
		{name: "5xx", begin: func() { registry.Set(testenv.Fault{Status: 503}) }, message: `503`, phases: failed},
		{name: "429", begin: func() { registry.Set(testenv.Fault{Status: 429}) }, message: `429`, phases: failed},
		{name: "401 after success", begin: func() { registry.Set(testenv.Fault{Rewrite: unauthorized, Skip: 3}) }, message: `401 Unauthorized`, phases: failed},
		{
			name: "silent", begin: func() { registry.Set(testenv.Fault{Delay: testenv.Hang}) },
			end:    func() { registry.Set(testenv.Fault{}); registry.Break() },
			phases: []reconciler.Phase{reconciler.Reconciling},
		},
		{name: "cut", begin: func() { registry.Set(testenv.Fault{CutAfter: 40}) }, message: `EOF|reset`, phases: failed},
		{name: "certificate expired", begin: func() { must(t, registry.Certify(time.Now().Add(-time.Hour))) },
			end: func() { must(t, registry.Certify(time.Now().Add(time.Hour))) }, message: `certificate has expired`, phases: failed},
		{name: "wrong digest", begin: func() { registry.Set(testenv.Fault{Rewrite: otherContent, Match: manifest}) },
			message: `other content`, phases: refused, again: true},
		{name: "endless", begin: func() { registry.Set(testenv.Fault{Match: manifest, Rewrite: endless}) },
			message: `longer than`, phases: refused, again: true},
		{name: "wrong size", begin: func() { registry.Set(testenv.Fault{Rewrite: longer, Match: manifest}) },
			message: `EOF|reset`, phases: failed},
		{name: "wrong media type", begin: func() { registry.Set(testenv.Fault{Rewrite: page, Match: referrers}) },
			message: `content type "text/html"`, phases: failed},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			f.t = t
			before, version := f.image(), fmt.Sprintf("2.%d", i)
			c.begin()
			f.release(version)
			f.says("shop-web", c.message, c.phases...)
			f.until("the neighbour to be ready", func(o reconciler.Overview) bool { return f.ready(o, "shop-settings") })
			if got := f.logLevel(); got != version {
				t.Errorf("the neighbour has release %s, want %s", got, version)
			}
			if got := f.image(); got != before {
				t.Errorf("an image was deployed that could not be verified: %s", got)
			}
			if c.end != nil {
				c.end()
			}
			registry.Set(testenv.Fault{})
			if c.again {
				f.release(version + "-again")
			}
			f.converged()
			if got := f.image(); got == before || !strings.Contains(got, "@sha256:") {
				t.Errorf("after the fault the image is %s", got)
			}
		})
		if !ok {
			break
		}
	}
	f.t = t
	f.sound()
}

// referrers matches requests for lists of what refers to an image.
func referrers(r *http.Request) bool { return strings.Contains(r.URL.Path, "/referrers/") }

// page answers as a captive portal does.
func page(r *http.Response) error {
	r.Header.Set("Content-Type", "text/html")
	return nil
}

// unauthorized answers as a server does whose credentials were changed.
func unauthorized(r *http.Response) error {
	r.StatusCode, r.Status = http.StatusUnauthorized, "401 Unauthorized"
	r.Header.Set("WWW-Authenticate", `Basic realm="faults"`)
	return nil
}

// otherContent answers with a manifest that is not quite the one it names.
func otherContent(r *http.Response) error {
	if r.ContentLength < 0 {
		return errors.New("the manifest has no length")
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r.Body, strings.NewReader("\n")), r.Body}
	r.ContentLength++
	r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	return nil
}

// longer announces more than it sends.
func longer(r *http.Response) error {
	r.ContentLength += 100
	r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	return nil
}

// endless never stops sending.
func endless(r *http.Response) error {
	_ = r.Body.Close()
	r.Body, r.ContentLength = zeros{}, -1
	r.Header.Del("Content-Length")
	return nil
}

// zeros is a body without an end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Close implements io.Closer.
func (zeros) Close() error { return nil }
