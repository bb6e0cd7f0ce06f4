package testenv

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	_ "embed" // the kwok stages
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A site is a directory in which at most one control plane runs at a time.
//
//	users.lock       every process that uses it holds it shared
//	start.lock       held while one of them looks for it, and starts it if need be
//	supervisor.lock  held by the supervisor and by each component
//	run/             everything else; the supervisor removes it at the end
//
// All three are flocks, which the kernel releases however their holder ends.
// The supervisor ("controlplane supervise") is a session of its own, so that
// it outlives the process that started it; it ends when nobody has held
// users.lock for a while. While it ends it holds users.lock alone, so that
// whoever comes then waits, and starts a new one.
type site struct{ dir string }

func (s site) users() string      { return filepath.Join(s.dir, "users.lock") }
func (s site) start() string      { return filepath.Join(s.dir, "start.lock") }
func (s site) supervisor() string { return filepath.Join(s.dir, "supervisor.lock") }
func (s site) run() string        { return filepath.Join(s.dir, "run") }

// The files in run that others read.
const (
	adminKubeconfig = "admin.kubeconfig"
	auditLog        = "audit.log"
)

// startTimeout is for a machine with better things to do; a few seconds is normal.
const startTimeout = 2 * time.Minute

// sharedLinger is how long a shared control plane waits for its next user: as
// long as go test may take between two packages.
const sharedLinger = 3 * time.Second

// newSite makes dir, or makes sure that it is ours alone: in a shared
// temporary directory somebody else may have made it first.
func newSite(dir string) (site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return site{}, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return site{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return site{}, err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return site{}, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return site{}, fmt.Errorf("%s is not a directory that only this user can write to", dir)
	}
	return site{dir}, nil
}

// sharedSite is where the processes of one user that have the same tools meet.
func sharedSite() (site, error) {
	h := sha256.New()
	for _, name := range []string{"controlplane", "kwok"} {
		path, err := Tool(name)
		if err != nil {
			return site{}, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return site{}, err
		}
		fmt.Fprintf(h, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
	}
	name := fmt.Sprintf("holdfast-testenv-%d-%x", os.Getuid(), h.Sum(nil)[:6])
	return newSite(filepath.Join(os.TempDir(), name))
}

// join makes this process a user of the site for the rest of its life, and
// returns the site's control plane. It starts one where there is none.
func (s site) join(ctx context.Context) (*Cluster, error) {
	users, err := lockFile(ctx, s.users(), shared)
	if err != nil {
		return nil, err
	}
	c, err := s.findOrLaunch(ctx)
	if err != nil {
		return nil, errors.Join(err, users.Close())
	}
	// Keeps the lock reachable: a collected file is a closed file.
	c.stop = users.Close
	return c, nil
}

func (s site) findOrLaunch(ctx context.Context) (*Cluster, error) {
	starting, err := lockFile(ctx, s.start(), exclusive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = starting.Close() }()
	var errs []error
	// A control plane can lose a port to somebody else, or be killed under our
	// eyes; the next attempt then starts from nothing.
	for range 3 {
		c, err := s.find(ctx)
		if errors.Is(err, errNoSupervisor) {
			c, err = s.launch(ctx, sharedLinger)
		}
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

var (
	errNoSupervisor = errors.New("no control plane is running")
	errRunning      = errors.New("a control plane is running already")
)

// find returns the control plane that runs already, once it is ready.
func (s site) find(ctx context.Context) (*Cluster, error) {
	if s.gone() {
		return nil, errNoSupervisor
	}
	c, err := openCluster(s.run())
	if err != nil {
		return nil, err
	}
	return c, s.waitReady(ctx, c)
}

// gone reports whether the supervisor and all of its components have ended.
func (s site) gone() bool {
	f, err := tryLockFile(s.supervisor(), exclusive)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

func (s site) waitGone() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if !s.gone() {
			return false, errors.New("the control plane is still running")
		}
		return false, nil
	})
}

func (s site) waitReady(ctx context.Context, c *Cluster) error {
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		err := c.ready(ctx)
		return err != nil && s.gone(), err
	})
	if err != nil {
		return fmt.Errorf("the control plane in %s is not ready: %w\n%s", s.dir, err, s.tails())
	}
	return nil
}

// tails returns the ends of the logs, for an error that may be all a person
// ever sees of them.
func (s site) tails() string {
	logs, err := filepath.Glob(filepath.Join(s.run(), "*.log"))
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil || filepath.Base(path) == auditLog {
			continue
		}
		raw = raw[max(0, len(raw)-1500):]
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(path), raw)
	}
	return b.String()
}

// launch starts a control plane and waits until it is ready. The caller holds
// users.lock, and start.lock where others may come.
func (s site) launch(ctx context.Context, linger time.Duration) (*Cluster, error) {
	lock, err := tryLockFile(s.supervisor(), exclusive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", s.dir, errRunning, err)
	}
	// From Start on the supervisor has the lock, through the descriptor it inherits.
	defer func() { _ = lock.Close() }()
	// What a supervisor leaves behind when it is killed.
	if err := os.RemoveAll(s.run()); err != nil {
		return nil, err
	}
	if err := s.prepare(linger); err != nil {
		return nil, err
	}
	c, err := openCluster(s.run())
	if err != nil {
		return nil, err
	}
	if err := s.supervise(lock); err != nil {
		return nil, err
	}
	return c, s.waitReady(ctx, c)
}

// supervise starts the supervisor as a session of its own. Its output goes to
// a file: with an inherited pipe, go test would wait for it to end.
func (s site) supervise(lock *os.File) error {
	controlplane, err := Tool("controlplane")
	if err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(s.run(), "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(controlplane, "supervise", filepath.Join(s.run(), supervised))
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.run()}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Nobody waits for it: its lock says whether it runs.
	return cmd.Process.Release()
}

var (
	//go:embed stages/node.yaml
	nodeStages string
	//go:embed stages/pod.yaml
	podStages string
)

// auditPolicy records who wrote what, and nothing that the control plane does
// by the second.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - {group: coordination.k8s.io, resources: [leases]}
  - {group: "", resources: [events]}
  - {group: events.k8s.io, resources: [events]}
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// prepare writes all that the control plane reads into run.
func (s site) prepare(linger time.Duration) error {
	if err := os.Mkdir(s.run(), 0o700); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	files, err := s.files(fmt.Sprintf("https://127.0.0.1:%d", ports[2]))
	if err != nil {
		return err
	}
	config, err := s.supervision(linger, ports)
	if err != nil {
		return err
	}
	files[supervised] = config
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.run(), name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s site) files(server string) (map[string][]byte, error) {
	ca, err := newAuthority("holdfast test cluster")
	if err != nil {
		return nil, err
	}
	for user, groups := range map[string][]string{
		"admin":                          {"system:masters"},
		"system:kube-controller-manager": nil,
		"system:kube-scheduler":          nil,
		"kwok":                           {"system:masters"},
	} {
		path := filepath.Join(s.run(), strings.TrimPrefix(user, "system:")+".kubeconfig")
		if err := writeKubeconfig(path, server, ca, user, groups...); err != nil {
			return nil, err
		}
	}
	caKey, err := ca.keyPEM()
	if err != nil {
		return nil, err
	}
	serverCert, serverKey, err := ca.issueServer("kubernetes", "kubernetes.default", "kubernetes.default.svc")
	if err != nil {
		return nil, err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	accountsKey, err := encodeKey(accounts)
	if err != nil {
		return nil, err
	}
	accountsPublic, err := x509.MarshalPKIXPublicKey(accounts.Public())
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"ca.crt":            ca.certPEM(),
		"ca.key":            caKey,
		"apiserver.crt":     serverCert,
		"apiserver.key":     serverKey,
		"accounts.key":      accountsKey,
		"accounts.pub":      pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: accountsPublic}),
		"tokens.csv":        []byte(rand.Text() + ",token-admin,token-admin,system:masters\n"),
		"audit-policy.yaml": []byte(auditPolicy),
		"stages.yaml":       []byte(nodeStages + "---\n" + podStages),
	}, nil
}

// component and supervision are what "controlplane supervise" reads.
type component struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Args []string `json:"args"`
	Log  string   `json:"log"`
}

// supervised is the file that says what the supervisor runs.
const supervised = "supervise.json"

type supervision struct {
	Users      string        `json:"users"`
	Linger     time.Duration `json:"lingerNanoseconds"`
	Dir        string        `json:"dir"`
	Components []component   `json:"components"`
}

func (s site) supervision(linger time.Duration, ports []int) ([]byte, error) {
	controlplane, err := Tool("controlplane")
	if err != nil {
		return nil, err
	}
	kwok, err := Tool("kwok")
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(s.run(), name) }
	etcd := "http://127.0.0.1:" + strconv.Itoa(ports[0])
	peer := "http://127.0.0.1:" + strconv.Itoa(ports[1])
	components := []component{
		{Name: "etcd", Path: controlplane, Args: []string{"etcd",
			"--name=test", "--data-dir=" + in("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=test=" + peer,
		}},
		{Name: "kube-apiserver", Path: controlplane, Args: []string{"kube-apiserver",
			"--etcd-servers=" + etcd,
			"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(ports[2]), "--advertise-address=127.0.0.1",
			"--endpoint-reconciler-type=none",
			"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
			"--client-ca-file=" + in("ca.crt"), "--token-auth-file=" + in("tokens.csv"), "--authorization-mode=RBAC",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + in("accounts.pub"), "--service-account-signing-key-file=" + in("accounts.key"),
			"--service-cluster-ip-range=10.0.0.0/16",
			// Without it the API server refuses privileged pods, and a test of our own refusal passes falsely.
			"--allow-privileged=true",
			"--audit-policy-file=" + in("audit-policy.yaml"), "--audit-log-path=" + in(auditLog),
		}},
		{Name: "kube-controller-manager", Path: controlplane, Args: []string{"kube-controller-manager",
			"--kubeconfig=" + in("kube-controller-manager.kubeconfig"), "--use-service-account-credentials=true",
			"--controllers=*,-node-ipam-controller", "--node-monitor-grace-period=24h", "--leader-elect=false", "--secure-port=0",
			// The defaults are made for large clusters and long lives: 5s, 20 and 30.
			"--node-monitor-period=500ms", "--kube-api-qps=500", "--kube-api-burst=1000",
			"--service-account-private-key-file=" + in("accounts.key"), "--root-ca-file=" + in("ca.crt"),
		}},
		{Name: "kube-scheduler", Path: controlplane, Args: []string{"kube-scheduler",
			"--kubeconfig=" + in("kube-scheduler.kubeconfig"), "--leader-elect=false", "--secure-port=0",
			"--kube-api-qps=500", "--kube-api-burst=1000",
		}},
		{Name: "kwok", Path: kwok, Args: []string{
			"--kubeconfig=" + in("kwok.kubeconfig"), "--manage-all-nodes=true", "--config=" + in("stages.yaml"),
		}},
	}
	for i := range components {
		components[i].Log = in(components[i].Name + ".log")
	}
	return json.MarshalIndent(supervision{Users: s.users(), Linger: linger, Dir: s.run(), Components: components}, "", "  ")
}

// freePorts returns loopback ports from below the range that the kernel gives
// to outgoing connections, so that none of those can take one before its
// server does.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 20000 + mathrand.IntN(12000)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		// Open until the end, so that no port is chosen twice.
		defer func() { _ = l.Close() }()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("no free ports on 127.0.0.1")
}

const (
	shared    = syscall.LOCK_SH
	exclusive = syscall.LOCK_EX
)

// lockFile waits for a lock on a file, which it makes where it is missing.
// Closing the file releases it.
func lockFile(ctx context.Context, path string, how int) (*os.File, error) {
	var f *os.File
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		var err error
		f, err = tryLockFile(path, how)
		return err != nil && !errors.Is(err, syscall.EWOULDBLOCK), err
	})
	return f, err
}

func tryLockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
