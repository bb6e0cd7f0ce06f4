// Package demo owns the story that `make demo` tells: each step does a thing to
// a real cluster, repository, registry or file and waits until the daemon has
// answered it.
//
// It guarantees that the times it prints were measured and that a step which
// did not happen ends the demo with an error. It refuses to touch anything but
// its temporary folder and its own control plane.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/holdfast-dev/holdfast/examples"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// stepTimeout is how long one step may take before the demo gives up.
const stepTimeout = 60 * time.Second

// Options say how to tell the story.
type Options struct {
	Holdfast string // the binary
	Out      io.Writer
	Stay     bool // stay up at the end until ctx ends
	Colour   bool
}

// story is a demo that is being told.
type story struct {
	Options
	world  *world.World
	daemon *world.Daemon
	live   dynamic.Interface
	files  map[string]string
	start  time.Time
}

// Run tells the story. It returns nil only if every step happened.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return err
	}
	s := &story{Options: o, start: time.Now()}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s.say("Holdfast: verify before apply. Everything here is real and on loopback, in %s", dir)
	s.chapter("Setting up")
	log, err := os.Create(filepath.Join(dir, "daemon.log"))
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // a log
	if err := s.setUp(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.world.Close(), s.world.Cluster.Close()) }()
	if s.daemon, err = s.world.Daemon(o.Holdfast, log); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if b, readErr := os.ReadFile(log.Name()); readErr == nil {
				s.say("\nthe end of the daemon's log:\n%s", tail(string(b), 30))
			}
		}
		if gone, _ := s.daemon.Exited(); !gone {
			err = errors.Join(err, s.daemon.Stop())
		}
	}()
	for _, chapter := range []struct {
		title string
		tell  func(context.Context) error
	}{
		{"A signed commit deploys a signed application", s.deploy},
		{"What is not proven does not run", s.artifacts},
		{"Policy judges what is declared, and what would happen", s.policies},
		{"The live world stays what was granted", s.drift},
		{"History only moves forward", s.history},
		{"Everything is on record", s.ledger},
	} {
		s.chapter(chapter.title)
		if err := chapter.tell(ctx); err != nil {
			return fmt.Errorf("%s: %w", chapter.title, err)
		}
	}
	s.say("\nAll of it happened, in %s.", time.Since(s.start).Round(100*time.Millisecond))
	if o.Stay {
		s.stay(ctx)
	}
	return nil
}

func (s *story) setUp(ctx context.Context, dir string) error {
	if err := s.step("a Kubernetes control plane (etcd, kube-apiserver, controller-manager, scheduler, kwok)", func(ctx context.Context) (string, error) {
		cluster, err := testenv.StartCluster(ctx, testenv.ClusterOptions{Dir: filepath.Join(dir, "cluster")})
		if err != nil {
			return "", err
		}
		if s.live, err = dynamic.NewForConfig(cluster.Config); err != nil {
			return "", errors.Join(err, cluster.Close())
		}
		s.world = &world.World{Options: world.Options{Cluster: cluster}}
		return "", nil
	})(ctx); err != nil {
		return err
	}
	cluster := s.world.Cluster
	err := s.step("a Git server, an OCI registry, a release key and a certificate authority", func(ctx context.Context) (string, error) {
		tofu, err := testenv.Tool("tofu")
		if err != nil {
			return "", err
		}
		s.world, err = world.New(world.Options{Dir: dir, Cluster: cluster, Namespace: "shop", System: "holdfast-system", Terraform: tofu})
		if err != nil {
			return "", err
		}
		shop, err := fs.Sub(examples.FS, "shop")
		if err != nil {
			return "", err
		}
		if s.files, err = s.world.Example(shop); err != nil {
			return "", err
		}
		ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "shop"}}}
		_, err = s.live.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(ctx, ns, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		for _, image := range []struct {
			repository, tag string
			release         world.Release
		}{
			{"acme/web", "1.0", world.Signed}, {"acme/web", "2.0", world.Unsigned}, {"acme/web", "2.1", world.NoSBOM},
			{"acme/keyless/web", "2.2", world.WrongIdentity}, {"acme/keyless/web", "2.3", world.Keyless},
		} {
			if _, err := s.world.Publish(ctx, image.repository, image.tag, image.release, false); err != nil {
				return "", err
			}
		}
		return "", nil
	})(ctx)
	if err != nil {
		return errors.Join(err, cluster.Close())
	}
	return nil
}

func (s *story) deploy(ctx context.Context) error {
	return s.steps(ctx,
		s.step("alice pushes a signed commit: two Kubernetes stacks and a Terraform stack go live", func(ctx context.Context) (string, error) {
			if _, err := s.world.Commit("Deploy the shop", s.world.Alice, s.files); err != nil {
				return "", err
			}
			_, err := s.wait(ctx, "all stacks ready", func(o reconciler.Overview) bool {
				ready := 0
				for _, st := range o.Stacks {
					if st.Phase == reconciler.Ready {
						ready++
					}
				}
				return ready == 3
			})
			if err != nil {
				return "", err
			}
			image, err := s.image(ctx)
			return "the Deployment runs " + image, err
		}),
	)
}

func (s *story) artifacts(ctx context.Context) error {
	with := func(image string) map[string]string {
		return map[string]string{"apps/web/deployment.yaml": strings.Replace(s.files["apps/web/deployment.yaml"], "/acme/web:1.0", image, 1)}
	}
	return s.steps(ctx,
		s.refused("an image that nobody signed is refused", "shop-web", reconciler.Denied, with("/acme/web:2.0"), "no signature"),
		s.refused("so is one without an SBOM", "shop-web", reconciler.Denied, with("/acme/web:2.1"), "SBOM"),
		s.refused("so is one signed by another workflow than the release workflow", "shop-web", reconciler.Denied, with("/acme/keyless/web:2.2"), "signature"),
		s.step("one that the release workflow signed, keyless, goes live", func(ctx context.Context) (string, error) {
			if err := s.change(ctx, "Release 2.3", with("/acme/keyless/web:2.3"), "shop-web"); err != nil {
				return "", err
			}
			image, err := s.image(ctx)
			if err == nil && !strings.Contains(image, "/acme/keyless/web@sha256:") {
				err = fmt.Errorf("the Deployment runs %s", image)
			}
			return "the Deployment runs " + image, err
		}),
	)
}

func (s *story) policies(ctx context.Context) error {
	deployment, tf := s.files["apps/web/deployment.yaml"], s.files["infra/site/main.tf"]
	privileged := strings.Replace(deployment, "allowPrivilegeEscalation: false", "privileged: true", 1)
	before, _, _ := strings.Cut(tf, "# Stands for a database")
	return s.steps(ctx,
		s.refused("a privileged container is denied", "shop-web", reconciler.Denied, map[string]string{"apps/web/deployment.yaml": privileged}, "rivileged"),
		s.refused("the destroy of a protected resource is denied, from the plan", "shop-site", reconciler.Denied,
			map[string]string{"infra/site/main.tf": before, "apps/web/deployment.yaml": deployment}, "terraform_data.orders_database"),
		s.step("back to what is allowed", func(ctx context.Context) (string, error) {
			return "", s.change(ctx, "Keep the database", map[string]string{"infra/site/main.tf": tf}, "shop-site", "shop-web")
		}),
	)
}

var (
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
)

func (s *story) drift(ctx context.Context) error {
	carol, err := dynamic.NewForConfig(s.world.Cluster.User("carol", "system:masters"))
	if err != nil {
		return err
	}
	motd := filepath.Join(s.world.SiteDir, "motd")
	return s.steps(ctx,
		s.step("carol edits a ConfigMap by hand, and it comes back", func(ctx context.Context) (string, error) {
			start := time.Now()
			_, err := carol.Resource(configMaps).Namespace("shop").Patch(ctx, "shop-settings", types.MergePatchType,
				[]byte(`{"data":{"log-level":"debug"}}`), metav1.PatchOptions{FieldManager: "carols-editor"})
			if err != nil {
				return "", err
			}
			took, err := s.until(ctx, start, func(ctx context.Context) (bool, error) {
				cm, err := s.live.Resource(configMaps).Namespace("shop").Get(ctx, "shop-settings", metav1.GetOptions{})
				if err != nil {
					return false, err
				}
				v, _, err := unstructured.NestedString(cm.Object, "data", "log-level")
				return v == "info", err
			})
			return "reverted after " + took, err
		}),
		s.step("carol deletes the Deployment, and it comes back", func(ctx context.Context) (string, error) {
			old, err := s.live.Resource(deployments).Namespace("shop").Get(ctx, "web", metav1.GetOptions{})
			if err != nil {
				return "", err
			}
			start := time.Now()
			if err := carol.Resource(deployments).Namespace("shop").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
				return "", err
			}
			took, err := s.until(ctx, start, func(ctx context.Context) (bool, error) {
				d, err := s.live.Resource(deployments).Namespace("shop").Get(ctx, "web", metav1.GetOptions{})
				return err == nil && d.GetUID() != old.GetUID(), nil
			})
			return "restored after " + took, err
		}),
		s.step("someone edits a file that Terraform manages, and it comes back", func(ctx context.Context) (string, error) {
			want, err := os.ReadFile(motd)
			if err != nil {
				return "", err
			}
			start := time.Now()
			if err := os.WriteFile(motd, []byte("This machine is managed by nobody.\n"), 0o644); err != nil { // as the configuration says
				return "", err
			}
			took, err := s.until(ctx, start, func(context.Context) (bool, error) {
				b, err := os.ReadFile(motd)
				return err == nil && string(b) == string(want), nil
			})
			return "flagged and reverted after " + took + "; the schedule looks every 5 s", err
		}),
		s.step("the drift is on record, with who did it", func(ctx context.Context) (string, error) {
			var line string
			_, err := s.until(ctx, time.Now(), func(ctx context.Context) (bool, error) {
				out, err := s.holdfast(ctx, "ledger", "list", "-c", s.world.Config, "--type", "drift")
				for l := range strings.Lines(out) {
					if strings.Contains(l, "carols-editor") {
						line = strings.Join(strings.Fields(l), " ")
					}
				}
				return line != "" && strings.Contains(out, "shop-site"), err
			})
			return line, err
		}),
	)
}

func (s *story) history(ctx context.Context) error {
	return s.steps(ctx,
		s.repositoryRefuses("a commit that nobody signed is refused", "unsigned", func() error {
			_, err := s.world.Commit("Quick fix", nil, map[string]string{"apps/web/service.yaml": s.files["apps/web/service.yaml"] + "# quick fix\n"})
			return err
		}),
		s.repositoryRefuses("so is one by somebody who may not change that path", "mallory", func() error {
			if err := s.reset(1); err != nil {
				return err
			}
			_, err := s.world.Commit("Another quick fix", s.world.Mallory, map[string]string{"apps/web/service.yaml": s.files["apps/web/service.yaml"] + "# fix\n"})
			return err
		}),
		s.repositoryRefuses("a force-push to an older, well-signed state is refused", "back or sideways", func() error { return s.reset(3) }),
		s.step("while it is refused, the last verified state goes on being enforced", func(ctx context.Context) (string, error) {
			start := time.Now()
			if err := s.live.Resource(configMaps).Namespace("shop").Delete(ctx, "shop-settings", metav1.DeleteOptions{}); err != nil {
				return "", err
			}
			took, err := s.until(ctx, start, func(ctx context.Context) (bool, error) {
				_, err := s.live.Resource(configMaps).Namespace("shop").Get(ctx, "shop-settings", metav1.GetOptions{})
				return err == nil, nil
			})
			return "a deleted ConfigMap was back after " + took, err
		}),
	)
}

func (s *story) ledger(ctx context.Context) error {
	return s.steps(ctx,
		s.step("the daemon stops, and its ledger verifies offline", func(ctx context.Context) (string, error) {
			if err := s.daemon.Stop(); err != nil {
				return "", err
			}
			out, err := s.holdfast(ctx, "ledger", "verify", "-c", s.world.Config)
			return strings.TrimSpace(out), err
		}),
		s.step("each verdict is reached again, from a copy and its public key alone", func(ctx context.Context) (string, error) {
			dir := filepath.Join(s.world.Dir, "auditor")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(s.world.StateDir, "ledger"))); err != nil {
				return "", err
			}
			out, err := s.holdfast(ctx, "ledger", "replay", "--all", "--dir", dir, "--key", filepath.Join(s.world.StateDir, "ledger.pub"))
			if err != nil {
				return "", fmt.Errorf("%w\n%s", err, out)
			}
			return fmt.Sprintf("%d verdicts about commits, images and plans, the same word for word", strings.Count(out, "✓")), nil
		}),
		s.step("a copy in which one byte of history was changed does not", func(ctx context.Context) (string, error) {
			dir := filepath.Join(s.world.Dir, "tampered")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(s.world.StateDir, "ledger"))); err != nil {
				return "", err
			}
			if err := tamper(dir); err != nil {
				return "", err
			}
			out, err := s.holdfast(ctx, "ledger", "verify", "--dir", dir, "--key", filepath.Join(s.world.StateDir, "ledger.pub"))
			if err == nil {
				return "", errors.New("the tampered ledger verifies")
			}
			first, _, _ := strings.Cut(out, "\n")
			return first, nil
		}),
		s.step("the daemon starts again, and goes on from where it was", func(ctx context.Context) (string, error) {
			log, err := os.OpenFile(filepath.Join(s.world.Dir, "daemon.log"), os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return "", err
			}
			if s.daemon, err = s.world.Daemon(s.Holdfast, log); err != nil {
				return "", err
			}
			_, err = s.wait(ctx, "the stacks to be ready again", func(o reconciler.Overview) bool {
				return world.Stack(o, "shop-web").Phase == reconciler.Ready && world.Stack(o, "shop-site").Phase == reconciler.Ready
			})
			return "", err
		}),
	)
}

// tamper changes one byte in the first entry bundle of a ledger.
func tamper(dir string) error {
	return filepath.WalkDir(filepath.Join(dir, "tile", "entries"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		if err := os.Chmod(p, 0o600); err != nil {
			return err
		}
		return os.WriteFile(p, b, 0o600)
	})
}

// reset moves the branch back by n commits and pushes it by force.
func (s *story) reset(n int) error {
	if _, err := s.world.Repo.Git("reset", "--hard", fmt.Sprintf("HEAD~%d", n)); err != nil {
		return err
	}
	return s.world.Repo.Push("--force")
}

// change commits files as alice and waits until the stacks have taken it.
func (s *story) change(ctx context.Context, message string, files map[string]string, stacks ...string) error {
	id, err := s.world.Commit(message, s.world.Alice, files)
	if err != nil {
		return err
	}
	_, err = s.wait(ctx, strings.Join(stacks, " and ")+" at "+id, func(o reconciler.Overview) bool {
		for _, name := range stacks {
			if st := world.Stack(o, name); st.Applied != id || st.Phase != reconciler.Ready {
				return false
			}
		}
		return true
	})
	return err
}

// refused is a step in which alice commits something that a stack must refuse,
// for a reason that contains why.
func (s *story) refused(title, stack string, phase reconciler.Phase, files map[string]string, why string) step {
	return s.step(title, func(ctx context.Context) (string, error) {
		id, err := s.world.Commit(title, s.world.Alice, files)
		if err != nil {
			return "", err
		}
		o, err := s.wait(ctx, stack+" to refuse", func(o reconciler.Overview) bool {
			st := world.Stack(o, stack)
			return st.Desired == id && st.Phase == phase && strings.Contains(st.Message, why)
		})
		return world.Stack(o, stack).Message, err
	})
}

// repositoryRefuses is a step in which the new head must not be taken.
func (s *story) repositoryRefuses(title, why string, push func() error) step {
	return s.step(title, func(ctx context.Context) (string, error) {
		if err := push(); err != nil {
			return "", err
		}
		head, err := s.world.Repo.Git("rev-parse", "HEAD")
		if err != nil {
			return "", err
		}
		head = strings.TrimSpace(head)
		o, err := s.wait(ctx, "the commit to be refused", func(o reconciler.Overview) bool {
			return len(o.Repositories) == 1 && o.Repositories[0].Head == head && o.Repositories[0].Verified != head &&
				strings.Contains(o.Repositories[0].Message, why)
		})
		if err != nil {
			return "", err
		}
		return o.Repositories[0].Message, nil
	})
}

func (s *story) wait(ctx context.Context, what string, check func(reconciler.Overview) bool) (reconciler.Overview, error) {
	return s.world.Wait(ctx, s.daemon, what, check)
}

// until asks check again and again and returns the time from start until it
// said yes.
func (s *story) until(ctx context.Context, start time.Time, check func(context.Context) (bool, error)) (string, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := check(ctx)
		if err != nil {
			return "", err
		}
		if ok {
			return time.Since(start).Round(time.Millisecond).String(), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("it did not happen: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// image returns the image of the live Deployment.
func (s *story) image(ctx context.Context) (string, error) {
	d, err := s.live.Resource(deployments).Namespace("shop").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	containers, _, err := unstructured.NestedSlice(d.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) == 0 {
		return "", fmt.Errorf("the Deployment has no containers: %w", err)
	}
	image, _ := containers[0].(map[string]any)["image"].(string)
	if !strings.Contains(image, "@sha256:") {
		return "", fmt.Errorf("the live image %q is not pinned", image)
	}
	return image, nil
}

// holdfast runs the binary and returns what it printed.
func (s *story) holdfast(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, s.Holdfast, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("holdfast %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// stay tells how to look around, and waits.
func (s *story) stay(ctx context.Context) {
	bin := s.Holdfast
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, bin); err == nil {
			bin = rel
		}
	}
	s.say(`
It stays up until you press Ctrl-C. Look around in another terminal:

  %[1]s status -c %[2]s
  %[1]s drift -c %[2]s
  %[1]s ledger list -c %[2]s
  kubectl --kubeconfig %[3]s -n shop get all
  kubectl --kubeconfig %[3]s -n shop scale deployment web --replicas 5     # and watch it come back
  curl http://%[4]s/metrics`, bin, s.world.Config, s.world.Cluster.Kubeconfig, s.world.HTTP)
	<-ctx.Done()
	s.say("")
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
