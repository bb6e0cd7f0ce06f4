package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/internal/telemetry"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy/gate"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
	"github.com/holdfast-dev/holdfast/verify/summary"
)

// app is everything that one operator's file describes, wired together.
type app struct {
	cfg        *config.Loaded
	log        *slog.Logger
	secrets    *secrets
	revoked    *verify.Revocations
	logs       *logRing
	ledger     *ledger.Ledger
	registry   *prometheus.Registry
	traces     *telemetry.Traces
	targets    *targetSet
	herald     *herald
	summaries  *summary.Publisher // nil: none are made
	reconciler *reconciler.Reconciler
}

// newApp opens the state directory, which locks it, and wires everything up. It
// starts nothing.
func newApp(ctx context.Context, cfg *config.Loaded, log *slog.Logger, sec *secrets) (*app, error) {
	a := &app{cfg: cfg, secrets: sec, revoked: &verify.Revocations{}, logs: newLogRing(sec.scrub), registry: prometheus.NewRegistry()}
	a.log = slog.New(a.logs.tee(log.Handler()))
	log = a.log
	if err := errors.Join(a.registry.Register(collectors.NewGoCollector()), a.registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
		telemetry.RegisterBuild(a.registry, version), telemetry.RegisterRoots(a.registry, trustRoots(cfg))); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	for _, old := range oldRoots(cfg, time.Now()) {
		log.WarnContext(ctx, "root of trust may be out of date", slog.String("root", old.Name), slog.Time("changed", old.Changed))
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "holdfast", "make stateDir writable for the daemon's user", "state directory: %w", err)
	}
	if err := sec.open(filepath.Join(cfg.StateDir, "mask.key"), cfg); err != nil {
		return nil, err
	}
	if err := sec.load(cfg); err != nil {
		return nil, err
	}
	var err error
	if a.traces, err = newTraces(ctx, cfg, sec, log, a.registry); err != nil {
		return nil, err
	}
	if a.ledger, err = a.openLedger(ctx); err != nil {
		return nil, err
	}
	if err := a.wire(ctx); err != nil {
		return nil, errors.Join(err, a.ledger.Close())
	}
	return a, nil
}

func (a *app) wire(ctx context.Context) error {
	keep := &keeper{ledger: a.ledger, log: a.log, scrub: a.secrets.scrub, holds: a.secrets.holds}
	artifacts, err := newArtifacts(a.cfg, a.secrets, a.revoked, evidenceGrace(a.cfg), keep)
	if err != nil {
		return err
	}
	trust, err := newArtifactTrust(a.cfg, a.secrets, artifacts, a.revoked)
	if err != nil {
		return err
	}
	policies, err := newPolicies(ctx, a.cfg, trust, keep)
	if err != nil {
		return err
	}
	if a.targets, err = newTargetSet(a.cfg, a.secrets, a.log, a.registry, restConfig); err != nil {
		return err
	}
	var repos []reconciler.Repository
	for i := range a.cfg.Repositories {
		repo, err := newRepository(&a.cfg.Repositories[i], a.cfg, a.targets, policies, trust, a.revoked, keep)
		if err != nil {
			return err
		}
		repos = append(repos, repo)
	}
	signers, err := newSigners(a.cfg.Orders.Signers, os.ReadFile)
	if err != nil {
		return err
	}
	measured, err := telemetry.MeasureLedger(a.registry, a.ledger)
	if err != nil {
		return err
	}
	recorded := maskedLedger{measured, a.secrets.scrub}
	if a.herald, err = newHerald(a.cfg, a.secrets, a.log, a.registry, a.targets); err != nil {
		return err
	}
	if a.summaries, err = newSummaries(a.cfg, a.secrets, a.revoked, a.log); err != nil {
		return err
	}
	a.reconciler, err = reconciler.New(reconciler.Config{
		Repositories: repos,
		Artifacts:    artifacts,
		Gate:         gate.New(recorded, gate.Limits{MaxDeletes: a.cfg.Limits.MaxDeletes, MaxDeleteShare: a.cfg.Limits.MaxDeleteShare}),
		Ledger:       recorded,
		StateDir:     filepath.Join(a.cfg.StateDir, "reconciler"),
		Workers:      a.cfg.Workers,
		Log:          a.log,
		Metrics:      a.registry,
		Tracer:       a.traces.Tracer(),
		Scrub:        a.secrets.scrub,
		Revocations:  a.revoked,
		OrderMaxAge:  time.Duration(a.cfg.Orders.MaxAge),
		Marks:        clusterMarks{a.targets.clusters, a.ledger},
		Events:       a.herald.tell,
		Verified:     a.verified,
		Signer: func(order, signature []byte, now time.Time) (string, error) {
			return commit.VerifyDocument(commit.NamespaceOrder, signers, order, signature, now, a.revoked)
		},
	})
	return err
}

// clockEvery is how often a daemon that cannot believe the clock looks at it.
const clockEvery = time.Second

// awaitClock waits for as long as the clock is behind the ledger: a machine may
// start before it has asked what time it is. Not even the operator's file, which
// may be signed for a time, can be judged before.
func (a *app) awaitClock(ctx context.Context) error {
	said := false
	for {
		_, err := a.ledger.Now()
		if !errors.Is(err, ledger.ErrClock) {
			return err
		}
		if !said {
			a.log.WarnContext(ctx, "waiting for the clock", slog.String("error", err.Error()), slog.String("hint", fault.HintOf(err)))
			said = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(clockEvery):
		}
	}
}

// started records that the daemon starts, and with which configuration. One
// that may not take the place of the last is refused; see [app.admit].
func (a *app) started(ctx context.Context, requireSigned string) error {
	self, err := selfDigest()
	if err != nil {
		return err
	}
	note := fmt.Sprintf("holdfast %s, binary sha256:%s", version, self)
	if _, err := a.ledger.Append(ctx, ledger.Entry{Type: ledger.Started, Note: note}, nil); err != nil {
		return err
	}
	return a.admit(ctx, requireSigned)
}

func (a *app) close() error {
	a.reconciler.Close()
	return errors.Join(a.ledger.Close(), a.traces.Close(context.Background()))
}

// selfDigest returns the SHA-256 of the running binary in hex.
func selfDigest() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("digest of the binary: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("digest of the binary: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("digest of the binary: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// secrets masks. It is made before the log, which needs it, and gets its keys
// and values when the configuration is known.
type secrets struct {
	raw  []byte
	root *mask.Masker
	envs map[string]*mask.Masker
}

// open reads the key that masks are made with, or makes one.
func (s *secrets) open(path string, cfg *config.Loaded) error {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return fmt.Errorf("mask key: %w", err)
		}
		if err = durable.Create(path, key); errors.Is(err, fs.ErrExist) { // another process was quicker
			key, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return fmt.Errorf("mask key: %w", err)
	}
	return s.use(key, cfg)
}

// use sets the key.
func (s *secrets) use(key []byte, cfg *config.Loaded) error {
	root, err := mask.New(key)
	if err != nil {
		return err
	}
	s.raw, s.root, s.envs = key, root, map[string]*mask.Masker{}
	for _, e := range cfg.Environments {
		s.envs[e.Name] = root.Derive("environment " + e.Name)
	}
	return nil
}

// load registers the values of every secret file that the configuration names.
func (s *secrets) load(cfg *config.Loaded) error {
	var files []string
	for _, r := range cfg.Repositories {
		if r.Auth != nil {
			files = append(files, r.Auth.TokenFile, r.Auth.SSHKeyFile)
		}
	}
	for _, r := range cfg.Registries {
		files = append(files, r.PasswordFile)
	}
	if x := cfg.Trust.Summaries; x != nil {
		files = append(files, x.KeyFile, x.PasswordFile)
		for _, r := range x.Registries {
			files = append(files, r.PasswordFile)
		}
	}
	for _, f := range cfg.Telemetry.Headers {
		files = append(files, f)
	}
	for _, e := range cfg.Environments {
		if k := e.Kubernetes; k != nil && k.Kubeconfig != "" {
			if err := s.loadKubeconfig(k.Kubeconfig); err != nil {
				return err
			}
		}
		if e.Terraform == nil {
			continue
		}
		for _, set := range e.Terraform.Credentials {
			for _, f := range set {
				files = append(files, f)
			}
		}
	}
	for _, f := range append(files, ledgerKey(cfg)) {
		if f == "" || f == ledgerKey(cfg) && !exists(f) { // made a moment later
			continue
		}
		if _, err := s.read(f); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// loadKubeconfig registers the credentials in a kubeconfig.
func (s *secrets) loadKubeconfig(path string) error {
	raw, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast", "", "kubeconfig: %w", err)
	}
	for _, u := range raw.AuthInfos {
		s.register(u.Token, u.Password, string(u.ClientKeyData))
		for _, f := range []string{u.TokenFile, u.ClientKey} {
			if f == "" {
				continue
			}
			if _, err := s.read(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads a secret and registers what it is now: files are rotated.
func (s *secrets) read(path string) (string, error) {
	v, err := readSecret(path)
	if err == nil {
		s.register(v)
	}
	return v, err
}

// register makes values known to every masker: a secret of the daemon may turn
// up in what a stack of any environment renders.
func (s *secrets) register(values ...string) {
	if s.root == nil { // a command without a state directory, which keeps nothing
		return
	}
	s.root.Register(values...)
	for _, m := range s.envs {
		m.Register(values...)
	}
}

// environment returns the masker of one environment.
func (s *secrets) environment(name string) *mask.Masker { return s.envs[name] }

// key derives a key for one purpose from the state directory's key.
func (s *secrets) key(purpose string) []byte {
	h := hmac.New(sha256.New, s.raw)
	h.Write([]byte("key\x00" + purpose))
	return h.Sum(nil)
}

// scrub masks every secret that is known by now.
func (s *secrets) scrub(text string) string {
	if s.root == nil {
		return text
	}
	text = s.root.Scrub(text)
	for _, m := range s.envs {
		text = m.Scrub(text)
	}
	return text
}

// holds reports whether a text has a secret of the operator in it.
func (s *secrets) holds(text string) bool { return s.root != nil && s.root.Holds(text) }

// readSecret reads a secret from a file, without the newline that editors add.
func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "holdfast", "create the file, readable for the daemon's user only", "secret: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// newLogger logs to w, as text on a terminal and as JSON elsewhere. Every line
// is masked on its way out, whoever wrote it.
func newLogger(w io.Writer, format string, level slog.Level, sec *secrets) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			a.Value = slog.StringValue(a.Value.Duration().Round(time.Millisecond).String())
		}
		return a
	}}
	masked := scrubber{w, sec}
	var h slog.Handler = slog.NewJSONHandler(masked, o)
	if format == "text" {
		h = slog.NewTextHandler(masked, o)
	}
	log := slog.New(telemetry.WithTraceID(h))
	// Libraries that log by themselves get the same masks.
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	return log
}

// scrubber masks what slog's handlers write, which is one line at a time.
type scrubber struct {
	w   io.Writer
	sec *secrets
}

func (s scrubber) Write(p []byte) (int, error) {
	if _, err := io.WriteString(s.w, s.sec.scrub(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
