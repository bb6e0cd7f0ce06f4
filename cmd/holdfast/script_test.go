package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/jsonpath"

	"github.com/holdfast-dev/holdfast/examples"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfast": main})
}

// waitTimeout is how long a script waits for the daemon to get somewhere.
const waitTimeout = 90 * time.Second

// TestScripts runs the end-to-end scripts. Each has a world of its own: a
// repository, a registry, people with keys, and a namespace on the one control
// plane that all tests share.
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			t.Parallel()
			s := &script{t: t}
			testscript.RunT(begun{t}, testscript.Params{
				Files:               []string{f},
				RequireExplicitExec: true,
				Deadline:            time.Now().Add(8 * time.Minute), // ends a command that hangs, with the script's output
				Setup:               s.setup,
				Condition:           condition,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"world":    s.world,
					"example":  s.example,
					"replace":  s.replace,
					"commit":   s.commit,
					"push":     s.push,
					"publish":  s.publish,
					"sign":     s.sign,
					"bundle":   s.bundle,
					"clock":    s.clock,
					"daemon":   s.daemon,
					"until":    s.until,
					"waitrepo": s.waitRepository,
					"waitfile": s.waitFile,
					"waitlog":  s.waitLog,
					"kube":     s.kube,
					"flip":     s.flip,
					"approve":  s.approve,
					"git":      s.git,
					"leaks":    s.leaks,
					"exits":    s.exits,
					"receiver": s.receiver,
					"hook":     s.hook,
					"kevent":   s.kubernetesEvent,
					"artifact": s.artifact,
					"setoci":   s.ociSource,
				},
			})
		})
	}
}

// begun is a test that has waited for its turn, so that the time of the script
// in it, which testscript would queue once more, begins when the script does.
type begun struct{ *testing.T }

// Parallel does nothing: the test is parallel already.
func (begun) Parallel() {}

// Run runs the one script of the test in the test itself.
func (b begun) Run(_ string, f func(testscript.T)) { f(b) }

// Verbose implements [testscript.T].
func (begun) Verbose() bool { return testing.Verbose() }

// condition is what a script may ask before it skips the rest: "[clock]", that
// a process can be given a clock of its own here.
func condition(name string) (bool, error) {
	if name != "clock" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	cmd := exec.Command("true")
	if err := new(testenv.Clock).Start(cmd); err != nil {
		return false, nil //nolint:nilerr // that is the answer
	}
	return true, cmd.Wait()
}

// script is the state of one running script.
type script struct {
	t      *testing.T
	w      *world.World
	d      *world.Daemon
	live   dynamic.Interface
	log    *lockedBuffer
	closed bool // the Git server was stopped
	env    *testscript.Env
	mail   *mailroom
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *script) setup(env *testscript.Env) error {
	s.env, s.log = env, &lockedBuffer{}
	env.Setenv("NO_COLOR", "1")
	env.Setenv("HOME", env.WorkDir)
	return nil
}

func (s *script) check(ts *testscript.TestScript, err error) {
	if err == nil {
		return
	}
	if log := s.log.String(); log != "" {
		ts.Logf("the daemon's log:\n%s", log)
	}
	ts.Fatalf("%v", err)
}

// world starts the servers: "world [terraform] [noreferrers]".
func (s *script) world(ts *testscript.TestScript, _ bool, args []string) {
	cluster := testenv.SharedCluster(s.t)
	tool := testenv.RequireTool(s.t, "tofu")
	if slices.Contains(args, "terraform") {
		if tool = testenv.Terraforms(s.t)["terraform"]; tool == "" {
			s.t.Skip("there is no terraform on PATH")
		}
	}
	// Unix sockets have short paths, so the world is not in the work folder.
	dir, err := os.MkdirTemp("", "hf-")
	s.check(ts, err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	ns := testenv.Namespace(s.t, cluster)
	s.live, err = dynamic.NewForConfig(cluster.Config)
	s.check(ts, err)
	s.w, err = world.New(world.Options{
		Dir: dir, Cluster: cluster, Namespace: ns, System: testenv.Namespace(s.t, cluster), Terraform: tool,
		NoReferrer: slices.Contains(args, "noreferrers"),
	})
	s.check(ts, err)
	ts.Defer(func() {
		if s.d != nil {
			if gone, _ := s.d.Exited(); !gone {
				_ = s.d.Stop()
			}
		}
		if !s.closed {
			_ = s.w.Close()
		}
	})
	for k, v := range map[string]string{
		"REPO": s.w.Repo.Dir, "CONFIG": s.w.Config, "STATE": s.w.StateDir, "SITE": s.w.SiteDir, "NS": ns, "REGISTRY": s.w.Registry.Host, "WORLD": dir, "HTTP": s.w.HTTP, "AUDIT": cluster.AuditLog,
		"ALICE": s.w.Alice.KeyFile, "MALLORY": s.w.Mallory.KeyFile,
	} {
		ts.Setenv(k, v)
	}
}

// example writes the example repository, or folders of it, into the work tree:
// "example [folder…]".
func (s *script) example(ts *testscript.TestScript, _ bool, args []string) {
	shop, err := fs.Sub(examples.FS, "shop")
	s.check(ts, err)
	files, err := s.w.Example(shop)
	s.check(ts, err)
	maps.DeleteFunc(files, func(name, _ string) bool {
		return len(args) > 0 && !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(name, a+"/") })
	})
	s.check(ts, s.w.Repo.Write(files))
}

// replace changes a file: "replace FILE OLD NEW". OLD must be there. $NAME in a
// file is not expanded by scripts, so "replace FILE '$NS' $NS" does it.
func (s *script) replace(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	file := ts.MkAbs(args[0])
	b, err := os.ReadFile(file)
	s.check(ts, err)
	if !bytes.Contains(b, []byte(args[1])) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	text := strings.ReplaceAll(string(b), args[1], strings.ReplaceAll(args[2], `\n`, "\n"))
	s.check(ts, os.WriteFile(file, []byte(text), 0o644))
}

// commit commits everything in the work tree and pushes it: "commit WHO MESSAGE".
// WHO is alice, bob, mallory or nobody. It sets $HEAD.
func (s *script) commit(ts *testscript.TestScript, _ bool, args []string) {
	signer, ok := map[string]*testenv.Signer{"alice": s.w.Alice, "bob": s.w.Bob, "mallory": s.w.Mallory, "nobody": nil}[args[0]]
	if !ok || len(args) != 2 {
		ts.Fatalf("usage: commit alice|bob|mallory|nobody MESSAGE")
	}
	id, err := s.w.Repo.Commit(args[1], testenv.CommitOptions{Signer: signer})
	s.check(ts, err)
	ts.Setenv("HEAD", id)
	s.check(ts, s.w.Repo.Push("--force"))
}

// push pushes HEAD by force and sets $HEAD.
func (s *script) push(ts *testscript.TestScript, _ bool, _ []string) {
	s.check(ts, s.w.Repo.Push("--force"))
	id, err := s.w.Repo.Git("rev-parse", "HEAD")
	s.check(ts, err)
	ts.Setenv("HEAD", strings.TrimSpace(id))
}

// git runs git in the work tree, or stops the server: "git stop-server".
func (s *script) git(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "stop-server" {
		s.closed = true
		s.check(ts, s.w.Git.Close())
		return
	}
	out, err := s.w.Repo.Git(args...)
	s.check(ts, err)
	fmt.Fprint(ts.Stdout(), out)
}

// publish pushes an image: "publish REPOSITORY TAG signed|keyless|unsigned|wrong-key|wrong-identity|no-sbom [legacy]".
func (s *script) publish(ts *testscript.TestScript, _ bool, args []string) {
	digest, err := s.w.Publish(s.t.Context(), args[0], args[1], world.Release(args[2]), slices.Contains(args, "legacy"))
	s.check(ts, err)
	ts.Setenv("DIGEST", digest)
}

// sign signs the image that was published last: "sign REPOSITORY signed|keyless|wrong-key|wrong-identity|no-sbom [legacy]".
func (s *script) sign(ts *testscript.TestScript, _ bool, args []string) {
	s.check(ts, s.w.Sign(s.t.Context(), args[0], ts.Getenv("DIGEST"), world.Release(args[1]), slices.Contains(args, "legacy")))
}

// bundle saves one of the bundles that the registry has about the image that was
// published last: "bundle REPOSITORY PREDICATE FILE".
func (s *script) bundle(ts *testscript.TestScript, _ bool, args []string) {
	ctx, reg := s.t.Context(), s.w.Registry
	password := func() (string, error) { return reg.Password, nil }
	client, err := registry.New(registry.Config{Hosts: map[string]registry.Host{reg.Host: {Username: reg.Username, Password: password, CA: reg.CA}}})
	s.check(ts, err)
	name := reg.Host + "/" + args[0]
	list, err := client.Referrers(ctx, name, digest.Digest(ts.Getenv("DIGEST")))
	s.check(ts, err)
	for _, d := range list {
		raw, err := client.Manifest(ctx, name, digest.Digest(d.Digest.String()))
		s.check(ts, err)
		var m struct {
			Layers []struct{ Digest digest.Digest }
		}
		s.check(ts, json.Unmarshal(raw, &m))
		b, err := client.Blob(ctx, name, m.Layers[0].Digest)
		s.check(ts, err)
		var bundle struct{ DSSEEnvelope struct{ Payload []byte } }
		s.check(ts, json.Unmarshal(b, &bundle))
		var statement struct{ PredicateType string }
		s.check(ts, json.Unmarshal(bundle.DSSEEnvelope.Payload, &statement))
		if statement.PredicateType == args[1] {
			s.check(ts, os.WriteFile(ts.MkAbs(args[2]), b, 0o600))
			return
		}
	}
	ts.Fatalf("no bundle of type %s", args[1])
}

// clock sets the daemon's clock ahead of the machine's, or behind: "clock
// DURATION". Daemons that are started after its first use have that clock.
func (s *script) clock(ts *testscript.TestScript, _ bool, args []string) {
	offset, err := time.ParseDuration(args[0])
	s.check(ts, err)
	if s.w.Clock == nil {
		s.w.Clock = &testenv.Clock{}
	}
	s.w.Clock.Set(offset)
}

// daemon starts, stops or kills the daemon: "daemon start|stop|kill".
func (s *script) daemon(ts *testscript.TestScript, neg bool, args []string) {
	var err error
	switch args[0] {
	case "start":
		var bin string
		bin, err = lookPath(ts.Getenv("PATH"), "holdfast")
		s.check(ts, err)
		s.d, err = s.w.Daemon(bin, s.log)
	case "stop":
		err = s.d.Stop()
	case "kill":
		err = s.d.Kill()
	case "log":
		_, err = io.WriteString(ts.Stdout(), s.log.String())
	default:
		ts.Fatalf("usage: daemon start|stop|kill|log")
	}
	if neg {
		ts.Fatalf("daemon cannot be negated")
	}
	s.check(ts, err)
}

func lookPath(path, name string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if p := filepath.Join(dir, name); exec.Command(p).Err == nil {
			if _, err := os.Stat(p); err == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("no %s in %s", name, path)
}

// until waits for stacks: "until PHASE STACK… [message=REGEXP] [applied]". With
// applied, the stack must enforce $HEAD; without, it must be asked for $HEAD.
func (s *script) until(ts *testscript.TestScript, _ bool, args []string) {
	phase, args := reconciler.Phase(args[0]), args[1:]
	var names []string
	message := regexp.MustCompile("")
	applied, anyRevision := false, false
	for _, a := range args {
		switch {
		case strings.HasPrefix(a, "message="):
			message = regexp.MustCompile(strings.TrimPrefix(a, "message="))
		case a == "applied":
			applied = true
		case a == "any":
			anyRevision = true
		default:
			names = append(names, a)
		}
	}
	head := ts.Getenv("HEAD")
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	_, err := s.w.Wait(ctx, s.d, fmt.Sprintf("%v to be %s", names, phase), func(o reconciler.Overview) bool {
		for _, n := range names {
			st := world.Stack(o, n)
			revision := anyRevision || st.Desired == head || st.Desired == ""
			if applied {
				revision = st.Applied == head
			}
			if st.Phase != phase || !revision || !message.MatchString(st.Message) {
				return false
			}
		}
		return true
	})
	s.check(ts, err)
}

// waitRepository waits until $HEAD is refused for a reason: "waitrepo REGEXP".
func (s *script) waitRepository(ts *testscript.TestScript, _ bool, args []string) {
	head, re := ts.Getenv("HEAD"), regexp.MustCompile(args[0])
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	_, err := s.w.Wait(ctx, s.d, "the repository to say "+args[0], func(o reconciler.Overview) bool {
		r := o.Repositories[0]
		return r.Verified != head && re.MatchString(r.Message)
	})
	s.check(ts, err)
}

// poll asks until ok.
func (s *script) poll(ts *testscript.TestScript, what string, ok func(context.Context) (bool, error)) {
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if done {
			return
		}
		select {
		case <-ctx.Done():
			s.check(ts, fmt.Errorf("%s did not happen: %w", what, err))
		case <-tick.C:
		}
	}
}

// waitFile waits for a file's content: "waitfile FILE REGEXP".
func (s *script) waitFile(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile(args[1])
	s.poll(ts, strings.Join(args, " "), func(context.Context) (bool, error) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && re.Match(b), err
	})
}

// waitLog waits for a line of the daemon's log: "waitlog REGEXP".
func (s *script) waitLog(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile(args[0])
	s.poll(ts, "log "+args[0], func(context.Context) (bool, error) { return re.MatchString(s.log.String()), nil })
}

// kube reads and changes live objects of the script's namespace, as somebody
// who is not Holdfast:
//
//	kube get KIND NAME JSONPATH          prints a value
//	kube wait KIND NAME JSONPATH VALUE   until it is VALUE
//	kube gone KIND NAME                  until the object is not there
//	kube patch KIND NAME MANAGER JSON    merge patch
//	kube apply MANAGER FILE              server-side apply of JSON
//	kube delete KIND NAME
func (s *script) kube(ts *testscript.TestScript, neg bool, args []string) {
	ctx := s.t.Context()
	verb, args := args[0], args[1:]
	kinds := s.live.Resource(resourceOf(args[0])).Namespace(s.w.Namespace)
	value := func(ctx context.Context) (string, error) {
		u, err := kinds.Get(ctx, args[1], metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		jp := jsonpath.New("kube").AllowMissingKeys(true)
		if err := jp.Parse("{" + args[2] + "}"); err != nil {
			return "", err
		}
		var b strings.Builder
		err = jp.Execute(&b, u.Object)
		return b.String(), err
	}
	var err error
	switch verb {
	case "get":
		var v string
		v, err = value(ctx)
		fmt.Fprintln(ts.Stdout(), v)
	case "wait":
		s.poll(ts, "kube "+strings.Join(args, " "), func(ctx context.Context) (bool, error) {
			v, err := value(ctx)
			return err == nil && v == args[3], fmt.Errorf("value %q, error %w", v, err)
		})
	case "gone":
		s.poll(ts, "kube gone "+strings.Join(args, " "), func(ctx context.Context) (bool, error) {
			_, err := kinds.Get(ctx, args[1], metav1.GetOptions{})
			return err != nil, nil
		})
	case "patch":
		_, err = kinds.Patch(ctx, args[1], types.MergePatchType, []byte(args[3]), metav1.PatchOptions{FieldManager: args[2]})
	case "delete":
		err = kinds.Delete(ctx, args[1], metav1.DeleteOptions{})
	case "create":
		_, err = kinds.Patch(ctx, args[1], types.ApplyPatchType, []byte(args[3]), metav1.PatchOptions{FieldManager: args[2]})
	default:
		ts.Fatalf("kube %s: unknown verb", verb)
	}
	if neg != (err != nil) {
		s.check(ts, fmt.Errorf("kube %s %v: error %w", verb, args, err))
	}
}

// flip changes an object again and again, as soon as each change is reverted: "flip
// KIND NAME MANAGER PATCH TIMES".
func (s *script) flip(ts *testscript.TestScript, _ bool, args []string) {
	times, err := strconv.Atoi(args[4])
	s.check(ts, err)
	in := s.live.Resource(resourceOf(args[0])).Namespace(s.w.Namespace)
	for range times {
		u, err := in.Patch(s.t.Context(), args[1], types.MergePatchType, []byte(args[3]), metav1.PatchOptions{FieldManager: args[2]})
		s.check(ts, err)
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			now, err := in.Get(s.t.Context(), args[1], metav1.GetOptions{})
			s.check(ts, err)
			if now.GetResourceVersion() != u.GetResourceVersion() {
				break
			}
		}
	}
}

// approve has the open findings of a stack reverted: "approve STACK REASON".
func (s *script) approve(ts *testscript.TestScript, _ bool, args []string) {
	o, err := s.w.Status(s.t.Context())
	s.check(ts, err)
	run := []string{"approve", args[0], "--reason", args[1], "-c", s.w.Config}
	for _, st := range o.Stacks {
		if st.Stack == args[0] {
			for _, f := range st.Findings {
				run = append(run, f.Ref)
			}
		}
	}
	s.check(ts, ts.Exec("holdfast", run...))
}

func resourceOf(kind string) schema.GroupVersionResource {
	gvr := schema.GroupVersionResource{Version: "v1", Resource: kind + "s"}
	if kind == "deployment" {
		gvr.Group = "apps"
	}
	return gvr
}

// leaks fails if a secret stands, in any encoding, in the daemon's log, its
// state directory or what it answers: "leaks SECRET [except=FILE…]".
func (s *script) leaks(ts *testscript.TestScript, _ bool, args []string) {
	secret := args[0]
	var found []string
	look := func(where string, b []byte) {
		if enc := encodedIn(string(b), secret); enc != "" {
			found = append(found, where+" ("+enc+")")
		}
	}
	look("the log", []byte(s.log.String()))
	if o, err := s.w.Status(s.t.Context()); err == nil {
		b, err := json.Marshal(o)
		s.check(ts, err)
		look("the status", b)
	}
	err := filepath.WalkDir(s.w.StateDir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the daemon writes files anew and renames them
			return nil
		}
		if err != nil || !e.Type().IsRegular() || slices.ContainsFunc(args[1:], func(a string) bool {
			return strings.Contains(p, strings.TrimPrefix(a, "except="))
		}) {
			return err
		}
		b, err := os.ReadFile(p)
		look(p, b)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	s.check(ts, err)
	if len(found) > 0 {
		s.check(ts, fmt.Errorf("%q leaks: %s", secret, strings.Join(found, ", ")))
	}
}

// exits runs a command that must end with a code: "exits CODE COMMAND…".
func (s *script) exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("%v exited with %d, want %s", args[1:], code, want)
	}
}
