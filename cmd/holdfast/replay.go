package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/policy/rego"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
	"github.com/holdfast-dev/holdfast/verify/registry"
)

// keeper keeps in the ledger what verdicts were reached with. A nil one keeps
// nothing.
type keeper struct {
	ledger *ledger.Ledger
	log    *slog.Logger
	// scrub masks every secret; holds finds those of the operator, in one pass: the
	// bytes that it looks at are a stranger's.
	scrub func(string) string
	holds func(string) bool

	told sync.Once
}

// inline is the largest answer that is kept within its inputs. Larger ones are kept by
// themselves, and so once, whoever asks again.
const inline = 16 << 10

// inputs implements [verify.Keeper]. Signed bytes cannot be masked: what has a secret
// in it is not kept, and that verdict cannot be replayed.
func (k *keeper) inputs(in verify.Inputs) digest.Digest {
	switch {
	case k == nil:
		return ""
	case in.TooMuch:
		return k.left("the answers are too many bytes")
	}
	small := make(map[digest.Digest][]byte, len(in.Content))
	for d, b := range in.Content {
		switch {
		case k.holds(string(b)):
			return k.left("an answer has a secret in it")
		case len(b) > inline:
			if k.ledger.Keep(b) == "" {
				return k.left("the disk takes nothing")
			}
		default:
			small[d] = b
		}
	}
	in.Content = small
	b, err := json.Marshal(in)
	if err != nil || k.holds(string(b)) {
		return k.left("it has a secret in it")
	}
	return k.ledger.Keep(b)
}

// document keeps a document that is JSON, unless there is a secret in it.
func (k *keeper) document(v any) digest.Digest {
	if k == nil {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil || k.scrub(string(b)) != string(b) {
		return k.left("it has a secret in it")
	}
	return k.ledger.Keep(b)
}

// left says, once, that something is not kept.
func (k *keeper) left(why string) digest.Digest {
	k.told.Do(func() {
		k.log.Warn("inputs of a verdict are not kept, which is said once", slog.String("reason", why)) //nolint:sloglint // there is no context here
	})
	return ""
}

// noted returns a reader of files, and where it notes what it read.
func noted(read files) (files, map[string][]byte) {
	seen := map[string][]byte{}
	return func(name string) ([]byte, error) {
		b, err := read(name)
		if err == nil {
			seen[name] = b
		}
		return b, err
	}, seen
}

// from returns a reader of files that were noted.
func from(seen map[string][]byte) files {
	return func(name string) ([]byte, error) {
		b, ok := seen[name]
		if !ok {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		return b, nil
	}
}

// trusted is the document that says whom the operator trusted: a part of his file,
// and the files that it names. It has public keys and roots, and no secret.
type trusted struct {
	Trust config.Trust `json:"trust"`
	// Repository is set where it is about commits.
	Repository *config.Repository `json:"repository,omitempty"`
	Files      map[string][]byte  `json:"files"`
	// Asked says where the rules stood in his file, by their names.
	Asked map[string]string `json:"asked,omitempty"`
	// Sources are those of the rules about commits.
	Sources []string `json:"sources,omitempty"`
}

// artifactRules is the document of whom to trust about artifacts.
func artifactRules(t *config.Trust, rules []verify.Rule, seen map[string][]byte) trusted {
	out := trusted{Trust: *t, Files: seen, Asked: map[string]string{}}
	out.Trust.Summaries = nil // it decides nothing
	for _, r := range rules {
		out.Asked[r.Name] = r.Source
		for _, q := range r.Require {
			out.Asked[r.Name+"\n"+q.Name()] = q.Source
		}
	}
	return out
}

// commitTrust is the document of whom to trust about the commits of a repository.
func commitTrust(rc *config.Repository, t *config.Trust, seen map[string][]byte) trusted {
	return trusted{
		Trust: config.Trust{Roots: t.Roots}, Files: seen, Sources: rc.Commits.Sources(),
		Repository: &config.Repository{Name: rc.Name, URL: rc.URL, Branch: rc.Branch, Tag: rc.Tag, Anchor: rc.Anchor, Commits: rc.Commits},
	}
}

// evaluator compiles policies, of which each decision is kept with what it was made
// of.
func (k *keeper) evaluator(ctx context.Context, conf rego.Config) (policy.Evaluator, error) {
	ev, err := rego.New(ctx, conf)
	if err != nil || k == nil {
		return ev, err
	}
	return &keptPolicies{ev: ev, keep: k, source: k.document(ev.Source()), kept: map[digest.Digest]digest.Digest{}}, nil
}

// keptPolicies is an evaluator whose decisions can be replayed.
type keptPolicies struct {
	ev     *rego.Evaluator
	keep   *keeper
	source digest.Digest

	mu   sync.Mutex
	kept map[digest.Digest]digest.Digest // documents of inputs, by the decision that they led to
}

// maxDecisions is how many decisions an evaluator knows the inputs of.
const maxDecisions = 4096

// decisionInputs is what a decision was made of.
type decisionInputs struct {
	Time     time.Time     `json:"time"`
	Policies digest.Digest `json:"policies"` // the document of a rego.Source
	Input    policy.Input  `json:"input"`
}

// Evaluate implements [policy.Evaluator].
func (p *keptPolicies) Evaluate(ctx context.Context, in policy.Input) (policy.Decision, error) {
	now := time.Now().UTC().Round(0)
	d, err := p.ev.EvaluateAt(ctx, in, now)
	if err != nil || p.source == "" {
		return d, err
	}
	same := d.Digest() // a decision that is made once more, by the same, is kept once
	p.mu.Lock()
	defer p.mu.Unlock()
	inputs, ok := p.kept[same]
	if !ok {
		inputs = p.keep.document(decisionInputs{now, p.source, in})
		if len(p.kept) >= maxDecisions {
			clear(p.kept)
		}
		p.kept[same] = inputs
	}
	d.Inputs = inputs
	return d, nil
}

const whatPolicies = "policies"

// replayed is what came of judging something again.
type replayed struct {
	What   string           `json:"what"` // "commit", the kind of artifact, or "policies"
	Name   string           `json:"name"`
	Then   bool             `json:"then"` // whether it was verified
	Now    bool             `json:"now"`
	Same   bool             `json:"same"` // the verdict, check by check
	Differ []string         `json:"differ,omitempty"`
	Again  *verify.Evidence `json:"again,omitempty"`
	// Decision is what policies say again.
	Decision *policy.Decision `json:"decision,omitempty"`
	Why      string           `json:"why,omitempty"` // why it could not be judged again
	// NotKept says that there is nothing to judge it by: no rule, a registry that failed.
	NotKept bool `json:"notKept,omitempty"`
}

func newLedgerReplay() *cobra.Command {
	var f ledgerFlags
	var all bool
	c := &cobra.Command{
		Use: "replay INDEX... | --all", Short: "Reach verdicts again, offline, from what the ledger kept",
		Long: `Judge again what entries of the ledger judged: the commit, each artifact with its
signatures and attestations, and what the policies said. All that this needs is in the ledger's folder, named by
digest from the entry: what the registry and the repository answered, whom the operator
trusted, what was revoked, the policies and what they saw, what time it was. Nothing is asked of any network, so a copy of the
folder and the ledger's public key are enough, on any machine.

Exit codes: 0 the same verdict, 3 another one, 1 it could not be judged again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError{errors.New("name entries by their index, or give --all")}
			}
			r, err := f.open()
			if err != nil {
				return err
			}
			p := player{r: r, docs: map[digest.Digest][]byte{}}
			if err := p.readRevocations(cmd.Context()); err != nil {
				return err
			}
			var list []replayedEntry
			again := func(i ledger.Index, e ledger.Entry) error {
				of := p.replay(cmd.Context(), e)
				if len(of) == 0 {
					return nil
				}
				r := replayedEntry{i, e.Type, e.Stack, e.Time, of}
				if f.output != "json" { // a long ledger takes a while
					if err := printReplay(cmd.OutOrStdout(), r); err != nil {
						return err
					}
					for j := range r.Verdicts { // what was printed is not needed any more
						r.Verdicts[j].Again, r.Verdicts[j].Decision = nil, nil
					}
				}
				list = append(list, r)
				return nil
			}
			if all {
				if err := r.Scan(cmd.Context(), 0, again); err != nil {
					return err
				}
			}
			for _, arg := range args {
				i, err := parseIndex(arg)
				if err != nil {
					return err
				}
				e, err := r.Entry(cmd.Context(), i)
				if err != nil {
					return err
				}
				if err := again(i, e); err != nil {
					return err
				}
				if len(list) == 0 || list[len(list)-1].Index != i {
					return fault.New(fault.Invalid, "ledger.replay", "entries of the types verified, decided, intent and denied have verdicts",
						"entry %d, of type %s, has no verdict", i, e.Type)
				}
			}
			if f.output == "json" {
				if err := printJSON(cmd.OutOrStdout(), list); err != nil {
					return err
				}
			}
			return verdict(list)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every entry that has a verdict")
	return f.add(c)
}

// replayedEntry is an entry of the ledger whose verdicts were reached again.
type replayedEntry struct {
	Index    ledger.Index `json:"index"`
	Type     ledger.Type  `json:"type"`
	Stack    string       `json:"stack,omitempty"`
	Time     time.Time    `json:"time"`
	Verdicts []replayed   `json:"verdicts"`
}

// verdict is the outcome of a replay as an error: the worst that was found.
func verdict(list []replayedEntry) error {
	var unknown error
	for _, e := range list {
		for _, r := range e.Verdicts {
			switch {
			case r.Same, r.Why != "" && !r.Then && r.NotKept: // nothing was let through by it
			case r.Why == "":
				return fault.New(fault.Denied, "ledger.replay", "compare the two with -o json; another version of Holdfast may judge otherwise",
					"entry %d: %s %s: judged again, the verdict is another", e.Index, r.What, r.Name)
			case unknown == nil:
				unknown = fault.New(fault.Invalid, "ledger.replay", "", "entry %d: %s %s could not be judged again: %s", e.Index, r.What, r.Name, r.Why)
			}
		}
	}
	return unknown
}

// replay judges again all that an entry has a verdict about, which may be nothing.
func (p player) replay(ctx context.Context, e ledger.Entry) []replayed {
	var out []replayed
	p.entry = e
	lost := func(what string, err error) {
		if err != nil {
			out = append(out, replayed{What: what, Name: "on record", Then: e.Type != ledger.Refused, Why: err.Error()})
		}
	}
	var c verify.Evidence
	err := p.body(ctx, e, "commit", &c)
	lost("commit", err)
	if _, id, _ := strings.Cut(e.Revision, "@"); err == nil && c.Subject.Reference != "" {
		judge := p.artifact // the desired state may be an artifact
		if c.Subject.Kind == commit.KindCommit {
			judge = p.commit
		}
		r := p.again(ctx, c, "", judge)
		if c.Subject.Reference != id && c.Subject.Digest.String() != id {
			r = replayed{What: c.Subject.Kind, Name: c.Subject.Reference, Then: c.Verified(), Why: "the entry is about " + e.Revision}
		}
		out = append(out, r)
	}
	var report verify.Report
	lost("evidence", p.body(ctx, e, "evidence", &report))
	for _, a := range report.Evidence {
		out = append(out, p.again(ctx, a, report.Environment, p.artifact))
	}
	for _, role := range []string{"rendered", "planned"} {
		var d *policy.Decision
		lost(whatPolicies, p.body(ctx, e, role, &d))
		if d != nil {
			out = append(out, p.decision(ctx, *d, report))
		}
	}
	return out
}

// player reads what verdicts were reached with, and reaches them again.
type player struct {
	r       *ledger.Reader
	docs    map[digest.Digest][]byte // those that many verdicts share
	revoked []ledger.Entry
	entry   ledger.Entry
}

// readRevocations reads what people revoked, so that no verdict passes that left it out.
func (p *player) readRevocations(ctx context.Context) error {
	return p.r.Scan(ctx, 0, func(_ ledger.Index, e ledger.Entry) error {
		if e.Type == ledger.Revoked {
			p.revoked = append(p.revoked, e)
		}
		return nil
	})
}

// body reads a document of an entry, if it has one in that role.
func (p player) body(ctx context.Context, e ledger.Entry, role string, into any) error {
	d, ok := e.Bodies[role]
	if !ok {
		return nil
	}
	return p.read(ctx, d, into)
}

// shared is read for a document that many verdicts name.
func (p player) shared(ctx context.Context, d digest.Digest, into any) error {
	if _, ok := p.docs[d]; !ok {
		b, err := p.r.Body(ctx, d)
		if err != nil {
			return err
		}
		if len(p.docs) >= maxShared {
			clear(p.docs)
		}
		p.docs[d] = b
	}
	return decode(d, p.docs[d], into)
}

// maxShared is how many shared documents are held.
const maxShared = 16

func (p player) read(ctx context.Context, d digest.Digest, into any) error {
	b, err := p.r.Body(ctx, d)
	if err != nil {
		return err
	}
	return decode(d, b, into)
}

func decode(d digest.Digest, b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // a number is what it was written as
	if err := dec.Decode(into); err != nil {
		return fault.New(fault.Invalid, "ledger.replay", "it is of another version of Holdfast", "document %s: %w", d, err)
	}
	return nil
}

// again judges one thing again, and compares.
func (p player) again(ctx context.Context, then verify.Evidence, env string, judge func(context.Context, string, verify.Inputs, trusted) (verify.Evidence, error)) replayed {
	// Whether an artifact came after the last one is not about it alone.
	then.Checks = slices.DeleteFunc(slices.Clone(then.Checks), func(c verify.Check) bool { return c.Name == checkOrder })
	out := replayed{What: then.Subject.Kind, Name: cmp.Or(then.Subject.Pinned(), then.Subject.Name), Then: then.Verified()}
	if then.Inputs == "" {
		out.Why, out.NotKept = "what it was judged by was not kept", true
		return out
	}
	var in verify.Inputs
	var whom trusted
	err := p.read(ctx, then.Inputs, &in)
	if err == nil {
		err = p.shared(ctx, in.Trust, &whom)
	}
	if err == nil {
		err = p.complete(ctx, &in)
	}
	if err == nil {
		err = p.sound(in, then)
	}
	if err != nil {
		out.Why = err.Error()
		return out
	}
	now, err := judge(verify.AsOf(ctx, in.Time), env, in, whom)
	if k := fault.KindOf(err); err != nil && k != fault.Denied && k != fault.Waiting { // it could not be judged
		out.Why = err.Error()
		return out
	}
	out.Now, out.Again = now.Verified() && err == nil, &now
	out.Differ = differences(then, now)
	out.Same = out.Now == out.Then && len(out.Differ) == 0
	return out
}

// complete brings the answers that are kept by themselves.
func (p player) complete(ctx context.Context, in *verify.Inputs) error {
	total := 0
	for _, d := range in.Answers {
		if _, ok := in.Content[d]; ok || d == "" {
			continue
		}
		b, err := p.r.Body(ctx, d)
		if err != nil {
			return err
		}
		if total += len(b); total > verify.MaxAnswers {
			return errors.New("its answers are more than are ever kept")
		}
		in.Content[d] = b
	}
	return nil
}

// sound checks that the inputs are those of the evidence and not of another, that each
// answer is what its digest says, that the time is not after the entry's, and that
// nothing that people had revoked by then is left out.
func (p player) sound(in verify.Inputs, then verify.Evidence) error {
	a, b := in.Subject, then.Subject
	if a.Kind != b.Kind || a.Name != b.Name || a.Digest != b.Digest || b.Kind == commit.KindCommit && a.Reference != b.Reference || !slices.Equal(a.Platforms, b.Platforms) {
		return fmt.Errorf("it was judged by what is kept about %s %s", a.Kind, a.Pinned())
	}
	if in.Time.After(p.entry.Time.Add(replaySkew)) {
		return fmt.Errorf("it was judged as of %s, after the entry", in.Time.Format(time.RFC3339))
	}
	for d, content := range in.Content {
		if digest.FromBytes(content) != d {
			return fmt.Errorf("the answer %s was changed", d)
		}
	}
	judged := in.Time
	if b.Kind == commit.KindCommit { // that is when it was first seen; it is judged anew for each entry
		judged = p.entry.Time
	}
	known := revocations(in)
	for _, e := range p.revoked {
		var one verify.Revocations
		reconciler.TakeUpRevocation(&one, e)
		for _, v := range one.List() {
			last := v.Anchor // the latest that it spares
			if !v.Since.IsZero() {
				last.At = v.Since
			}
			if e.Time.Add(replaySkew).Before(judged) && known.Check(last) == nil {
				return fmt.Errorf("%s was revoked before, and the inputs leave that out", v.Anchor)
			}
		}
	}
	return nil
}

// replaySkew is how far the times of a verdict and of entries may be apart: they are
// read one after the other.
const replaySkew = 2 * time.Second

// revocations is what was revoked then.
func revocations(in verify.Inputs) *verify.Revocations {
	out := new(verify.Revocations)
	for _, v := range in.Revocations {
		out.Add(v)
	}
	return out
}

// commit judges a commit again.
func (p player) commit(ctx context.Context, _ string, in verify.Inputs, whom trusted) (verify.Evidence, error) {
	if whom.Repository == nil {
		return verify.Evidence{}, errors.New("nothing says who might sign commits")
	}
	whom.Repository.Commits.SetSources(whom.Sources)
	v, err := newCommitVerifier(whom.Repository, &whom.Trust, revocations(in), from(whom.Files))
	if err != nil {
		return verify.Evidence{}, err
	}
	return v.Verify(ctx, commit.Replay(in), in.From, in.Subject.Reference, in.Time)
}

// artifact judges an artifact again, by the rule that applies to it in env.
func (p player) artifact(ctx context.Context, env string, in verify.Inputs, whom trusted) (verify.Evidence, error) {
	client := registry.Replay(in)
	conf := verify.Config{Resolver: client, Revocations: revocations(in), Platforms: func(string) []string { return in.Subject.Platforms }}
	read := from(whom.Files)
	var err error
	if conf.Rules, err = trustRules(&whom.Trust, read); err != nil {
		return verify.Evidence{}, err
	}
	for i := range conf.Rules {
		r := &conf.Rules[i]
		r.Source = whom.Asked[r.Name]
		for j := range r.Require {
			r.Require[j].Source = whom.Asked[r.Name+"\n"+r.Require[j].Name()]
		}
	}
	if conf.Exceptions, err = trustExceptions(&whom.Trust, conf.Rules, conf.Revocations, read, func() time.Time { return in.Time }); err != nil {
		return verify.Evidence{}, err
	}
	set, err := newSet(conf, client)
	if err != nil {
		return verify.Evidence{}, err
	}
	report, _, err := set.Verify(ctx, env, []verify.Subject{{Kind: in.Subject.Kind, Reference: named(in.Subject)}})
	return report.Evidence[0], err
}

// decision judges by policies again.
func (p player) decision(ctx context.Context, then policy.Decision, report verify.Report) replayed {
	out := replayed{What: whatPolicies, Name: "of the stage " + string(then.Stage), Then: then.Allowed()}
	if then.Inputs == "" {
		out.Why, out.NotKept = "what they judged was not kept", true
		return out
	}
	var in decisionInputs
	var source rego.Source
	err := p.read(ctx, then.Inputs, &in)
	if err == nil {
		err = p.shared(ctx, in.Policies, &source)
	}
	var ev *rego.Evaluator
	if err == nil {
		ev, err = rego.Restore(ctx, source)
	}
	var now policy.Decision
	if err == nil {
		now, err = ev.EvaluateAt(ctx, in.Input, in.Time)
	}
	if err != nil {
		out.Why = err.Error()
		return out
	}
	if then.Stage == policy.StagePlan && len(report.Evidence) > 0 && !sameJSON(in.Input.Report, report) {
		out.Why = "they saw other evidence than the entry has"
		return out
	}
	now.RestsOn, now.Inputs = then.RestsOn, then.Inputs // not theirs to say
	out.Now, out.Decision = now.Allowed(), &now
	if now.Digest() != then.Digest() {
		out.Differ = []string{fmt.Sprintf("%d results of %d rules, and were %d of %d", len(now.Results), now.Rules, len(then.Results), then.Rules)}
	}
	out.Same = out.Now == out.Then && len(out.Differ) == 0
	return out
}

// named is the reference of a subject as it was written, with the digest that it was
// resolved to.
func named(s verify.Subject) string {
	if strings.Contains(s.Reference, "@") || s.Reference == "" {
		return s.Pinned()
	}
	return s.Reference + "@" + s.Digest.String()
}

// differences names what two verdicts do not share: the rule, a check, what was found.
func differences(then, now verify.Evidence) []string {
	var out []string
	if then.Rule != now.Rule {
		out = append(out, fmt.Sprintf("the rule was %q and is %q", then.Rule, now.Rule))
	}
	for i := range max(len(then.Checks), len(now.Checks)) {
		switch {
		case i >= len(now.Checks):
			out = append(out, fmt.Sprintf("%s is not checked any more", then.Checks[i].Name))
		case i >= len(then.Checks):
			out = append(out, fmt.Sprintf("%s was not checked", now.Checks[i].Name))
		case !reflect.DeepEqual(then.Checks[i], now.Checks[i]):
			out = append(out, fmt.Sprintf("%s: %s, and was %s", now.Checks[i].Name, outcomeOf(now.Checks[i]), outcomeOf(then.Checks[i])))
		}
	}
	if !slices.Equal(names(then.RestsOn), names(now.RestsOn)) {
		out = append(out, "it rests on other signers")
	}
	if !slices.Equal(then.Attestations, now.Attestations) {
		out = append(out, "it was accepted with other attestations")
	}
	for k, v := range now.Facts { // an artifact's publisher says more of it than is judged
		if !sameJSON(then.Facts[k], v) {
			out = append(out, "the facts differ: "+k)
		}
	}
	return out
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func outcomeOf(c verify.Check) string {
	b, err := json.Marshal(c)
	if err != nil { // strings and booleans
		return c.Name
	}
	return string(b)
}

func names(list []verify.Anchor) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String()+a.At.UTC().Format(time.RFC3339Nano))
	}
	return out
}

// word says what a verdict is.
func (r replayed) word(yes bool) string {
	switch {
	case !yes:
		return "refused"
	case r.What == whatPolicies:
		return "allowed"
	default:
		return "verified"
	}
}

// amount says how much was judged.
func (r replayed) amount() string {
	if r.Decision != nil {
		return fmt.Sprintf("%d results of %d rules", len(r.Decision.Results), r.Decision.Rules)
	}
	return fmt.Sprintf("%d checks", len(r.Again.Checks))
}

func printReplay(w io.Writer, e replayedEntry) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "entry %d: %s, %s\n", e.Index, strings.TrimSpace(string(e.Type)+" "+e.Stack), e.Time.Format(time.RFC3339))
	for _, r := range e.Verdicts {
		switch {
		case r.Why != "":
			fmt.Fprintf(&b, "  ? %s %s: was %s; not judged again: %s\n", r.What, r.Name, r.word(r.Then), r.Why)
		case r.Same:
			fmt.Fprintf(&b, "  ✓ %s %s: %s, then and now: %s, the same word for word\n", r.What, r.Name, r.word(r.Then), r.amount())
		default:
			fmt.Fprintf(&b, "  ✗ %s %s: was %s, judged again it is %s\n", r.What, r.Name, r.word(r.Then), r.word(r.Now))
			for _, d := range r.Differ {
				fmt.Fprintf(&b, "      %s\n", d)
			}
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
