package testenv

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ClusterOptions say how to start a control plane of one's own.
type ClusterOptions struct {
	// Dir holds the cluster's files. Empty: a temporary directory that Close removes.
	Dir string
}

// Cluster is a running control plane: etcd, API server, controller manager,
// scheduler, and kwok in the place of kubelets. Deployments become available
// and Jobs complete within seconds; no container ever runs.
type Cluster struct {
	Kubeconfig string       // path of a kubeconfig for the user "admin", group system:masters
	Config     *rest.Config // the same identity; no client-side rate limit
	Token      string       // a bearer token for the user "token-admin", group system:masters
	AuditLog   string       // path of the API server's audit log: the metadata of every write, one JSON object a line

	run    string // the directory of this run of the control plane
	ca     *authority
	client *http.Client // as admin
	stop   func() error
}

// StartCluster starts a control plane of the caller's own and waits until it
// is ready. It ends with Close, or with the calling process. ctx bounds the
// start only.
func StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	dir, remove := o.Dir, func() error { return nil }
	if dir == "" {
		temp, err := os.MkdirTemp("", "holdfast-cluster-")
		if err != nil {
			return nil, fmt.Errorf("start cluster: %w", err)
		}
		dir, remove = temp, func() error { return os.RemoveAll(temp) }
	}
	c, err := startOwn(ctx, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), remove())
	}
	stop := c.stop
	c.stop = func() error { return errors.Join(stop(), remove()) }
	return c, nil
}

func startOwn(ctx context.Context, dir string) (*Cluster, error) {
	s, err := newSite(dir)
	if err != nil {
		return nil, err
	}
	users, err := lockFile(ctx, s.users(), shared)
	if err != nil {
		return nil, err
	}
	c, err := s.launch(ctx, 0)
	if errors.Is(err, errRunning) {
		return nil, errors.Join(err, users.Close())
	}
	if err != nil {
		return nil, errors.Join(err, users.Close(), s.waitGone())
	}
	c.stop = func() error {
		c.client.CloseIdleConnections()
		return errors.Join(users.Close(), s.waitGone())
	}
	return c, nil
}

// Close stops a cluster made by [StartCluster] and waits until its processes
// are gone. It does nothing to a shared one.
func (c *Cluster) Close() error {
	if c.stop == nil {
		return nil
	}
	stop := c.stop
	c.stop = nil
	return stop()
}

// Expire compacts etcd up to its newest revision and kills the API server, which starts
// again: whoever watched from an older version hears that it is gone. It returns when the
// control plane is ready. It is for a cluster made by [StartCluster].
func (c *Cluster) Expire(ctx context.Context) error {
	if c.stop == nil {
		return errors.New("expire: others use this cluster")
	}
	raw, err := os.ReadFile(filepath.Join(c.run, supervised))
	if err != nil {
		return err
	}
	var s supervision
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	etcd := ""
	for _, component := range s.Components {
		for _, arg := range component.Args {
			if to, ok := strings.CutPrefix(arg, "--etcd-servers="); ok {
				etcd = to
			}
		}
	}
	var newest struct{ Header struct{ Revision string } }
	if err := post(ctx, etcd+"/v3/kv/range", map[string]any{"key": "AA=="}, &newest); err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	if err := post(ctx, etcd+"/v3/kv/compaction", map[string]any{"revision": newest.Header.Revision, "physical": true}, nil); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	if err := c.killAPIServer(); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for c.ready(ctx) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// killAPIServer ends the API server of this cluster; its supervisor starts another.
func (c *Cluster) killAPIServer() error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range all {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(line, []byte("\x00kube-apiserver\x00")) || !bytes.Contains(line, []byte(c.run)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	return errors.New("there is no API server to kill")
}

// post sends v as JSON and decodes the answer.
func post(ctx context.Context, url string, v, out any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// User returns a configuration for another identity, with a client certificate
// of its own. The user may do what RBAC grants to it: at first, nothing. It
// returns nil if no certificate can be made, which only a broken random source
// can cause.
func (c *Cluster) User(name string, groups ...string) *rest.Config {
	certPEM, keyPEM, err := c.ca.issueClient(name, groups...)
	if err != nil {
		return nil
	}
	return &rest.Config{
		Host:  c.Config.Host,
		QPS:   -1,
		Burst: -1,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   c.ca.certPEM(),
			CertData: certPEM,
			KeyData:  keyPEM,
		},
	}
}

// WriteKubeconfig writes a self-contained kubeconfig for another identity.
func (c *Cluster) WriteKubeconfig(path, user string, groups ...string) error {
	if err := writeKubeconfig(path, c.Config.Host, c.ca, user, groups...); err != nil {
		return fmt.Errorf("kubeconfig for %s: %w", user, err)
	}
	return nil
}

func writeKubeconfig(path, server string, ca *authority, user string, groups ...string) error {
	certPEM, keyPEM, err := ca.issueClient(user, groups...)
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca.certPEM()}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: user}
	config.CurrentContext = "test"
	return clientcmd.WriteToFile(*config, path)
}

// openCluster reads the files that site.prepare wrote.
func openCluster(run string) (*Cluster, error) {
	c := &Cluster{
		Kubeconfig: filepath.Join(run, adminKubeconfig),
		AuditLog:   filepath.Join(run, auditLog),
		run:        run,
	}
	certPEM, err := os.ReadFile(filepath.Join(run, "ca.crt"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(run, "ca.key"))
	if err != nil {
		return nil, err
	}
	if c.ca, err = loadAuthority(certPEM, keyPEM); err != nil {
		return nil, err
	}
	tokens, err := os.ReadFile(filepath.Join(run, "tokens.csv"))
	if err != nil {
		return nil, err
	}
	row, err := csv.NewReader(bytes.NewReader(tokens)).Read()
	if err != nil {
		return nil, err
	}
	c.Token = row[0]
	if c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return nil, err
	}
	c.Config.QPS, c.Config.Burst = -1, -1
	c.client, err = rest.HTTPClientFor(c.Config)
	return c, err
}

// nodeName is the one node of every cluster.
const nodeName = "node-1"

// ready reports whether the control plane does its work: the API server is
// ready, the controller manager has made the default service account, and the
// node takes pods. It makes the node where it is missing.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.do(ctx, http.MethodGet, "/readyz", nil, nil); err != nil {
		return err
	}
	var node struct {
		Spec struct {
			Taints []struct{ Key string }
		}
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	err := c.do(ctx, http.MethodGet, "/api/v1/nodes/"+nodeName, nil, &node)
	if isStatus(err, http.StatusNotFound) {
		err := c.do(ctx, http.MethodPost, "/api/v1/nodes", map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"name": nodeName, "labels": map[string]string{
				"kubernetes.io/hostname": nodeName, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
			}},
		}, nil)
		return errors.Join(errors.New("the node is new"), err)
	}
	if err != nil {
		return err
	}
	healthy := false
	for _, cond := range node.Status.Conditions {
		healthy = healthy || cond.Type == "Ready" && cond.Status == "True"
	}
	if !healthy || len(node.Spec.Taints) > 0 {
		return errors.New("the node is not ready")
	}
	return c.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
}

// statusError is an answer that is not a success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func isStatus(err error, code int) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == code
}

// do sends one request to the API server as admin. It is all of Kubernetes
// that the test bed needs for itself.
func (c *Cluster) do(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if in == nil {
		body = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.Config.Host, "/")+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return &statusError{res.StatusCode, fmt.Sprintf("%s %s: %s: %.300s", method, path, res.Status, answer)}
	}
	if out == nil || json.Valid(answer) && json.Unmarshal(answer, out) == nil {
		return nil
	}
	return fmt.Errorf("%s %s: unexpected answer %.300s", method, path, answer)
}

// poll calls check until it succeeds, gives up or ctx ends. The error then is
// the last one of check.
func poll(ctx context.Context, every time.Duration, check func() (giveUp bool, err error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		giveUp, err := check()
		if err == nil || giveUp {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}
