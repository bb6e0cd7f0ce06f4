package config

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"text/template"
	"time"

	"github.com/opencontainers/go-digest"
)

func completeSigners(dir string, signers []Signer) {
	for i := range signers {
		s := &signers[i]
		s.AllowedSignersFile, s.OpenPGPKeyFile = abs(dir, s.AllowedSignersFile), abs(dir, s.OpenPGPKeyFile)
	}
}

func (l *Lease) complete() {
	if l.Name == "" {
		l.Name = "holdfast"
	}
	l.Duration = Duration(l.Duration.Or(30 * time.Second))
}

// completeOperate fills in the defaults of what it takes to run Holdfast.
func (o *Operator) completeOperate(dir string) {
	if o.Limits.MaxDeleteShare == 0 {
		o.Limits.MaxDeleteShare = 50
	}
	o.Orders.MaxAge = Duration(o.Orders.MaxAge.Or(time.Hour))
	completeSigners(dir, o.Orders.Signers)
	if o.Signed != nil {
		completeSigners(dir, o.Signed.Signers)
	}
	for i := range o.Notify.Receivers {
		r := &o.Notify.Receivers[i]
		r.URLFile, r.KeyFile, r.CAFile = abs(dir, r.URLFile), abs(dir, r.KeyFile), abs(dir, r.CAFile)
		r.Repeat = Duration(r.Repeat.Or(4 * time.Hour))
	}
	for name, file := range o.Telemetry.Headers {
		o.Telemetry.Headers[name] = abs(dir, file)
	}
	o.Telemetry.CAFile = abs(dir, o.Telemetry.CAFile)
	if o.Telemetry.SampleRatio == 0 {
		o.Telemetry.SampleRatio = 1
	}
}

// signers checks a list of signers and returns their names.
func (c checker) signers(at string, list []Signer) map[string]bool {
	known := map[string]bool{}
	for i, s := range list {
		sat := fmt.Sprintf("%s[%d]", at, i)
		if s.Name == "" || known[s.Name] {
			c.wrong(sat, "", "signer %q is missing a name or defined twice", s.Name)
		}
		known[s.Name] = true
		if s.AllowedSignersFile == "" && s.OpenPGPKeyFile == "" && s.Identity == nil {
			c.wrong(sat, "set allowedSignersFile, openpgpKeyFile or identity", "signer %q has no key", s.Name)
		}
	}
	return known
}

// operate checks what it takes to run Holdfast: orders, hooks, notifications,
// telemetry.
func (c checker) operate(o *Operator, envs map[string]*Environment) {
	c.hooks(o)
	c.onlySSH("$.orders.signers", o.Orders.Signers)
	if s := o.Signed; s != nil {
		if len(s.Signers) == 0 {
			c.wrong("$.signed", "name at least one signer", "signed.signers is empty")
		}
		if s.Counter < 1 {
			c.wrong("$.signed", "begin with 1 and count up with each signed file", "signed.counter is %d", s.Counter)
		}
		c.onlySSH("$.signed.signers", s.Signers)
		if _, err := digest.Parse(s.Files); s.Files != "" && err != nil {
			c.wrong("$.signed.files", "copy it from holdfast check", "%q is not a digest", s.Files)
		}
	}
	if o.Limits.MaxDeleteShare < 0 || o.Limits.MaxDeleteShare > 100 {
		c.wrong("$.limits.maxDeleteShare", "", "maxDeleteShare is %d, want 1 to 100", o.Limits.MaxDeleteShare)
	}
	for i, e := range o.Environments {
		if e.Kubernetes == nil {
			continue
		}
		at := fmt.Sprintf("$.environments[%d].kubernetes", i)
		if d := time.Duration(e.Kubernetes.Lease.Duration); d != 0 && d < 3*time.Second {
			c.wrong(at+".lease.duration", "write 30s", "a lease of %s would be lost at the first hiccup", d)
		}
		if a := e.Kubernetes.Audit; a != nil {
			if a.LogFile == "" && a.TokenFile == "" {
				c.wrong(at+".audit", "set logFile or tokenFile", "audit names nowhere to have events from")
			}
			if _, _, err := net.SplitHostPort(o.Listen.Audit); a.TokenFile != "" && err != nil {
				c.wrong("$.listen", "set listen.audit, for example 127.0.0.1:8323", "environment %q has audit events sent and nothing listens for them", e.Name)
			}
		}
		for j, in := range e.Kubernetes.Injectors {
			c.injector(fmt.Sprintf("%s.injectors[%d]", at, j), in)
		}
	}
	kinds := map[string]bool{}
	for i, k := range o.Kinds {
		at := fmt.Sprintf("$.kinds[%d]", i)
		if !strings.Contains(k.Kind, ".") {
			c.wrong(at+".kind", "write Kind.group, for example Cluster.postgresql.cnpg.io", "%q is not a custom kind", k.Kind)
		}
		if kinds[k.Kind] {
			c.wrong(at+".kind", "", "kind %q is declared twice", k.Kind)
		}
		kinds[k.Kind] = true
		if k.None == (len(k.Images) > 0) && (k.None || k.Health == nil) {
			c.wrong(at, "list images:, or write none: true", "kind %q needs either images or none", k.Kind)
		}
		for j, p := range k.Images {
			c.pointer(fmt.Sprintf("%s.images[%d]", at, j), p)
		}
	}
	c.notify(&o.Notify, envs)
	c.telemetry(&o.Telemetry)
}

// onlySSH checks signers of orders and configurations, which are signed with SSH keys.
func (c checker) onlySSH(at string, list []Signer) {
	c.signers(at, list)
	for i, s := range list {
		if s.OpenPGPKeyFile != "" {
			c.wrong(fmt.Sprintf("%s[%d]", at, i), "use allowedSignersFile", "an OpenPGP key cannot sign this")
		}
		if s.Identity != nil || s.Root != "" {
			c.wrong(fmt.Sprintf("%s[%d]", at, i), "use allowedSignersFile", "a certificate cannot sign this")
		}
	}
}

func (c checker) hooks(o *Operator) {
	used := false
	for i, r := range o.Repositories {
		if r.MaxAge != 0 && time.Duration(r.MaxAge) < r.Interval.Or(30*time.Second) {
			c.wrong(fmt.Sprintf("$.repositories[%d].maxAge", i), "make maxAge several times the interval", "maxAge %s is shorter than the interval", time.Duration(r.MaxAge))
		}
		w := r.Webhook
		if w == nil {
			continue
		}
		used = true
		at := fmt.Sprintf("$.repositories[%d].webhook", i)
		c.oneOf(at+".provider", "provider", w.Provider, "github", "gitlab", "gitea", "forgejo", "bitbucket")
		if w.SecretFile == "" {
			c.wrong(at, "name a file with a long random secret", "a webhook without a secret would let anyone in")
		}
	}
	switch _, _, err := net.SplitHostPort(o.Listen.Hooks); {
	case o.Listen.Hooks == "" && used:
		c.wrong("$.listen", "set listen.hooks, for example 0.0.0.0:8322", "a repository has a webhook and nothing listens for it")
	case o.Listen.Hooks != "" && err != nil:
		c.wrong("$.listen.hooks", "write host:port", "listen.hooks: %v", err)
	}
}

func (c checker) injector(at string, in Injector) {
	if in.Manager == "" || in.Manager == "holdfast" {
		c.wrong(at+".manager", "name the manager as kubectl get --show-managed-fields shows it", "%q cannot be an injector", in.Manager)
	}
	if len(in.Kinds) == 0 || len(in.Paths) == 0 {
		c.wrong(at, "list kinds: and paths:", "an injector needs kinds and paths")
	}
	c.nameGlobs(at+".kinds", in.Kinds)
	for i, p := range in.Paths {
		c.pointer(fmt.Sprintf("%s.paths[%d]", at, i), p)
	}
	c.globs(at+".images", in.Images)
	if in.Reason == "" {
		c.wrong(at, "say why, for the person who reads it next year", "an injector needs a reason")
	}
}

// classes are those that a route may name; they are the classes of
// internal/notify.
var classes = []string{"drift", "denied", "failed", "recovered", "held", "revoked", "source", "ledger"}

func (c checker) notify(n *Notify, envs map[string]*Environment) {
	known := map[string]bool{}
	for i, r := range n.Receivers {
		at := fmt.Sprintf("$.notify.receivers[%d]", i)
		c.once(at, "receiver", r.Name, known)
		c.oneOf(at+".type", "type", r.Type, "slack", "teams", "pagerduty", "webhook")
		switch {
		case r.Type == "pagerduty" && r.KeyFile == "":
			c.wrong(at, "set keyFile", "PagerDuty needs an integration key")
		case r.Type != "pagerduty" && r.URLFile == "":
			c.wrong(at, "set urlFile", "receiver %q has no URL", r.Name)
		}
		if _, err := template.New("").Parse(r.Template); err != nil {
			c.wrong(at+".template", "", "template: %v", err)
		}
	}
	for i, r := range n.Routes {
		at := fmt.Sprintf("$.notify.routes[%d]", i)
		if len(r.Receivers) == 0 {
			c.wrong(at, "", "a route needs receivers")
		}
		for j, name := range r.Receivers {
			if !known[name] {
				c.wrong(fmt.Sprintf("%s.receivers[%d]", at, j), "", "%q is not a receiver", name)
			}
		}
		for j, e := range r.Environments {
			if envs[e] == nil {
				c.wrong(fmt.Sprintf("%s.environments[%d]", at, j), "", "%q is not an environment", e)
			}
		}
		c.nameGlobs(at+".stacks", r.Stacks)
		for j, k := range r.Classes {
			c.oneOf(fmt.Sprintf("%s.classes[%d]", at, j), "class", k, classes...)
		}
		if r.Severity != "" {
			c.oneOf(at+".severity", "severity", r.Severity, "info", "warning", "critical")
		}
	}
	if n.Link != "" {
		if u, err := url.Parse(strings.NewReplacer("{stack}", "s", "{environment}", "e").Replace(n.Link)); err != nil || u.Scheme == "" || u.Host == "" {
			c.wrong("$.notify.link", "for example https://holdfast.example.com/stacks/{stack}", "%q is not a URL", n.Link)
		}
	}
}

func (c checker) telemetry(t *Telemetry) {
	if t.OTLP != "" {
		u, err := url.Parse(t.OTLP)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
			c.wrong("$.telemetry.otlp", "for example https://collector:4318", "%q is not an OTLP/HTTP endpoint", t.OTLP)
		}
	}
	if t.SampleRatio < 0 || t.SampleRatio > 1 {
		c.wrong("$.telemetry.sampleRatio", "", "sampleRatio is %g, want 0 to 1", t.SampleRatio)
	}
}
