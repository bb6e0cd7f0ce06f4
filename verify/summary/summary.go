// Package summary owns Holdfast's own word to others: a SLSA verification summary
// (VSA) of each artifact that it verified, signed and attached to the artifact in its
// registry, so that the next verifier can build on the verdict.
//
// It guarantees that it speaks only of evidence without a failed check, waived ones
// included, and only of repositories that the operator named; that it says nothing
// that was not verified; and that a deployment never waits for it or fails by it. It
// refuses a key that is too weak.
// https://slsa.dev/spec/v1.2/verification_summary
package summary

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/vsa"
)

const (
	op = "verify/summary"

	bundleType  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	payloadType = "application/vnd.in-toto+json"

	maxWaiting  = 4096 // summaries that wait to be attached
	workers     = 4
	maxAttached = 64              // documents that refer to an artifact: verifiers read so many and no more
	firstPause  = 2 * time.Second // before one is tried again; then twice as long
	lastPause   = 8 * time.Second
	signBudget  = 30 * time.Second // of one try, with all that it asks over the network
)

// Config says who speaks, and of what.
type Config struct {
	// Verifier is the URI by which others know this Holdfast.
	Verifier string
	Version  string // of Holdfast
	// Key is a private key in PEM: PKCS #8, or as cosign encrypts it, which needs
	// Password. ECDSA over P-256, or Ed25519.
	Key      []byte
	Password func() ([]byte, error)
	// TimestampURL is an RFC 3161 authority that says when a summary was signed;
	// empty: nobody does.
	TimestampURL string
	// Revoked returns an error if something that evidence rests on is revoked.
	Revoked func(...verify.Anchor) error
	// Repositories are patterns, as in a trust rule.
	Repositories []string
	// Policy is the digest of the operator's file.
	Policy digest.Digest
	// Every is how long a summary is good for: what is verified anew after it gets
	// another one.
	Every time.Duration
	// Known are the summaries that were attached before, by what they say, and Save
	// keeps them. Both are optional.
	Known map[string]time.Time
	Save  func(map[string]time.Time) error
}

// Attacher puts a document among what refers to an artifact. *registry.Client is one.
type Attacher interface {
	Attach(ctx context.Context, repo string, d digest.Digest, a registry.Attachment) (digest.Digest, error)
}

// Publisher signs and attaches summaries.
type Publisher struct {
	conf     Config
	keys     keypair
	attacher Attacher
	match    func(string) bool
	log      *slog.Logger
	work     chan told

	mu    sync.Mutex
	known map[string]time.Time
}

// told is one verdict that is to be made known.
type told struct {
	environment string
	evidence    verify.Evidence
	at          time.Time
}

// New returns a Publisher. It makes no request.
func New(conf Config, to Attacher, log *slog.Logger) (*Publisher, error) {
	invalid := func(format string, args ...any) (*Publisher, error) {
		return nil, fault.New(fault.Invalid, op+".New", "look at trust.summaries in holdfast.yaml", "summaries: "+format, args...)
	}
	u, err := url.Parse(conf.Verifier)
	switch {
	case err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "":
		return invalid("verifier %q is not a URI", conf.Verifier)
	case conf.Every <= 0:
		return invalid("every is not positive")
	case conf.Revoked == nil:
		return invalid("nobody knows what is revoked")
	case to == nil || log == nil:
		return invalid("nowhere to attach or to report to")
	}
	match, err := verify.Repositories(conf.Repositories)
	if err != nil {
		return invalid("%w", err)
	}
	keys, err := newKeypair(conf.Key, conf.Password)
	if err != nil {
		return invalid("key: %w", err)
	}
	known := maps.Clone(conf.Known)
	if known == nil {
		known = map[string]time.Time{}
	}
	return &Publisher{conf: conf, keys: keys, attacher: to, match: match, log: log, work: make(chan told, maxWaiting), known: known}, nil
}

// Verified takes note of what was verified in an environment. It does not block:
// what does not fit is left out, and comes again with the next verification.
func (p *Publisher) Verified(ctx context.Context, environment string, report verify.Report) {
	for _, e := range report.Evidence {
		if !passed(e) || !p.match(e.Subject.Name) || e.Subject.Digest == "" {
			continue
		}
		t := told{environment, e, time.Now()}
		if p.isKnown(t) {
			continue
		}
		select {
		case p.work <- t:
		default:
			p.log.WarnContext(ctx, "summary left out: too many wait", slog.String("artifact", e.Subject.Pinned()))
		}
	}
}

// passed reports whether each check was passed: what people waived was not verified.
func passed(e verify.Evidence) bool {
	return len(e.Checks) > 0 && !slices.ContainsFunc(e.Checks, func(c verify.Check) bool { return !c.OK })
}

// isKnown reports whether a summary that says the same is there and fresh.
func (p *Publisher) isKnown(t told) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.known[p.key(t)]
	return ok && t.at.Sub(at) < p.conf.Every
}

// key names what a summary says.
func (p *Publisher) key(t told) string {
	return strings.Join([]string{t.evidence.Subject.Pinned(), t.environment, t.evidence.Rule, p.conf.Verifier}, " ")
}

// Run signs and attaches until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	var g errgroup.Group
	for range workers { // a registry that hangs holds up one of them
		g.Go(func() error { p.attachAll(ctx); return nil })
	}
	return g.Wait()
}

func (p *Publisher) attachAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-p.work:
			if p.isKnown(t) {
				continue
			}
			if err := p.publish(ctx, t); err != nil && ctx.Err() == nil {
				p.log.WarnContext(ctx, "summary not attached", slog.String("artifact", t.evidence.Subject.Pinned()), slog.String("environment", t.environment),
					slog.String("error", err.Error()), slog.String("hint", fault.HintOf(err)))
			}
		}
	}
}

// publish makes t known. What is attached is signed once, so that to try again
// attaches nothing twice.
func (p *Publisher) publish(ctx context.Context, t told) error {
	b, err := p.sign(ctx, t)
	if err != nil {
		return fault.Wrap(fault.Transient, op, "", err)
	}
	for pause := firstPause; ; pause *= 2 {
		if err := p.conf.Revoked(t.evidence.RestsOn...); err != nil { // since it was verified
			return err
		}
		err = p.attach(ctx, t, b)
		if err == nil || fault.KindOf(err) != fault.Transient || pause > lastPause {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (p *Publisher) attach(ctx context.Context, t told, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, signBudget)
	defer cancel()
	s := t.evidence.Subject
	d, err := p.attacher.Attach(ctx, s.Name, s.Digest, registry.Attachment{MediaType: bundleType, Content: b, Most: maxAttached, Annotations: map[string]string{
		"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": vsa.Predicate,
		"org.opencontainers.image.created": t.at.UTC().Format(time.RFC3339),
	}})
	if err != nil {
		return err
	}
	p.log.InfoContext(ctx, "summary attached", slog.String("artifact", s.Pinned()), slog.String("environment", t.environment), slog.String("summary", d.String()))
	if err := p.remember(t); err != nil { // a restart attaches it once more
		p.log.WarnContext(ctx, "summary not remembered", slog.String("artifact", s.Pinned()), slog.String("error", err.Error()))
	}
	return nil
}

// remember notes that t is known, and forgets what has to be said again.
func (p *Publisher) remember(t told) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[p.key(t)] = t.at
	maps.DeleteFunc(p.known, func(_ string, at time.Time) bool { return t.at.Sub(at) >= p.conf.Every })
	if p.conf.Save == nil {
		return nil
	}
	return p.conf.Save(maps.Clone(p.known))
}

// sign returns the summary of t as a Sigstore bundle.
func (p *Publisher) sign(ctx context.Context, t told) ([]byte, error) {
	st, err := json.Marshal(p.statement(t))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, signBudget)
	defer cancel()
	options := sign.BundleOptions{Context: ctx}
	if p.conf.TimestampURL != "" {
		options.TimestampAuthorities = []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: p.conf.TimestampURL, Timeout: 20 * time.Second})}
	}
	b, err := sign.Bundle(&sign.DSSEData{Data: st, PayloadType: payloadType}, p.keys, options)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(b)
}

// policy names what was verified by. Summaries of two environments, or by two rules,
// do not replace each other.
func (p *Publisher) policy(t told) string {
	return "urn:holdfast:trust-rule:" + url.PathEscape(t.environment) + ":" + url.PathEscape(t.evidence.Rule)
}

// statement says what was verified, and nothing else.
func (p *Publisher) statement(t told) map[string]any {
	s := t.evidence.Subject
	inputs := []map[string]any{}
	for _, d := range t.evidence.Attestations {
		inputs = append(inputs, map[string]any{"uri": "oci://" + s.Name + "@" + d.String(), "digest": map[string]string{d.Algorithm().String(): d.Encoded()}})
	}
	return map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []map[string]any{{"name": s.Name, "digest": map[string]string{s.Digest.Algorithm().String(): s.Digest.Encoded()}}},
		"predicateType": vsa.Predicate,
		"predicate": map[string]any{
			"verifier":           map[string]any{"id": p.conf.Verifier, "version": map[string]string{"holdfast": p.conf.Version}},
			"timeVerified":       t.at.UTC().Format(time.RFC3339),
			"resourceUri":        "oci://" + s.Name,
			"policy":             map[string]any{"uri": p.policy(t), "digest": map[string]string{"sha256": p.conf.Policy.Encoded()}},
			"inputAttestations":  inputs,
			"verificationResult": "PASSED",
			"verifiedLevels":     levels(t.environment, t.evidence),
			"slsaVersion":        "1.2",
		},
	}
}

// levels returns what was verified: the SLSA build level that provenance was trusted
// for, else none; each check that was passed; the environment whose rule it was.
func levels(environment string, e verify.Evidence) []string {
	build, first := 0, true
	list, _ := e.Facts[verify.NameProvenance].([]any)
	for _, f := range list { // of several platforms the least
		facts, _ := f.(map[string]any)
		level, _ := facts["level"].(int)
		if first || level < build {
			build, first = level, false
		}
	}
	out := []string{fmt.Sprintf("SLSA_BUILD_LEVEL_%d", build)}
	for _, c := range e.Checks {
		out = append(out, "HOLDFAST_VERIFIED_"+upper(c.Name))
	}
	if environment != "" {
		out = append(out, "HOLDFAST_ENVIRONMENT_"+upper(environment))
	}
	return out
}

// upper makes a name a part of a level.
func upper(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		default:
			return '_'
		}
	}, s)
}

// keypair is a private key as sigstore-go signs with it.
type keypair struct {
	signer    signature.Signer
	public    crypto.PublicKey
	pem       string
	details   protocommon.PublicKeyDetails
	algorithm string
}

func newKeypair(pem []byte, password func() ([]byte, error)) (keypair, error) {
	pass := cryptoutils.SkipPassword
	if password != nil {
		pass = func(bool) ([]byte, error) { return password() }
	}
	private, err := privateKey(pem, pass)
	if err != nil {
		return keypair{}, err
	}
	k := keypair{}
	switch p := private.(type) {
	case *ecdsa.PrivateKey:
		if p.Curve != elliptic.P256() {
			return keypair{}, fmt.Errorf("an ECDSA key over %s: use one over P-256", p.Curve.Params().Name)
		}
		k.details, k.algorithm, k.public = protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, "ECDSA", p.Public()
	case ed25519.PrivateKey:
		k.details, k.algorithm, k.public = protocommon.PublicKeyDetails_PKIX_ED25519, "ED25519", p.Public()
	default:
		return keypair{}, fmt.Errorf("keys of type %T are not used to sign: use ECDSA over P-256, or Ed25519", private)
	}
	if k.signer, err = signature.LoadSigner(private, crypto.SHA256); err != nil {
		return keypair{}, err
	}
	public, err := cryptoutils.MarshalPublicKeyToPEM(k.public)
	if err != nil {
		return keypair{}, err
	}
	k.pem = string(public)
	return k, nil
}

// GetHashAlgorithm implements [sign.Keypair].
func (k keypair) GetHashAlgorithm() protocommon.HashAlgorithm {
	return protocommon.HashAlgorithm_SHA2_256
}

// GetSigningAlgorithm implements [sign.Keypair].
func (k keypair) GetSigningAlgorithm() protocommon.PublicKeyDetails { return k.details }

// GetHint implements [sign.Keypair]: the digest by which Holdfast names the key.
func (k keypair) GetHint() []byte { return []byte(digest.FromString(k.pem).Encoded()) }

// GetKeyAlgorithm implements [sign.Keypair].
func (k keypair) GetKeyAlgorithm() string { return k.algorithm }

// GetPublicKey implements [sign.Keypair].
func (k keypair) GetPublicKey() crypto.PublicKey { return k.public }

// GetPublicKeyPem implements [sign.Keypair].
func (k keypair) GetPublicKeyPem() (string, error) { return k.pem, nil }

// SignData implements [sign.Keypair].
func (k keypair) SignData(_ context.Context, data []byte) (sig, sum []byte, err error) {
	sig, err = k.signer.SignMessage(strings.NewReader(string(data)))
	h := sha256.Sum256(data)
	return sig, h[:], err
}
