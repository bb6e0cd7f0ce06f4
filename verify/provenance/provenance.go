// Package provenance owns the judgement of SLSA provenance: where, by whom and
// from what an artifact was built.
//
// It guarantees that the builder is one that the rule trusts, for the level that
// it asks for; that the source is one commit of the one repository, at a ref and
// by a trigger that may be built; that every external parameter is known; and
// that a keyless signature's certificate and the provenance say the same. It
// refuses a build type that it has no profile for, unless the rule lists it, and
// whatever else it cannot read.
// https://slsa.dev/spec/v1.2/verifying-artifacts
package provenance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// The predicate types of provenance.
const (
	PredicateV1  = "https://slsa.dev/provenance/v1"
	PredicateV02 = "https://slsa.dev/provenance/v0.2"
)

// Judge judges provenance. It implements [verify.Judge].
type Judge struct{ want verify.ProvenanceRequirement }

// New returns the Judge of a requirement for provenance. It refuses a builder
// whose profile has no build types of its own, where the rule lists none.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.Provenance == nil {
		return nil, verify.ErrNotApplicable
	}
	j := Judge{want: *q.Provenance}
	j.want.Level = max(1, j.want.Level)
	for _, b := range j.want.Builders {
		if len(j.want.BuildTypes) == 0 && len(profiles[b.Profile].types) == 0 {
			return nil, fmt.Errorf("provenance: builder %s: profile %q has no build types of its own: list buildTypes", b.ID, b.Profile)
		}
	}
	return j, nil
}

// Reads implements [verify.Judge].
func (j Judge) Reads(predicateType string) bool {
	return predicateType == PredicateV1 || predicateType == PredicateV02 && j.want.AllowV02
}

// Judge implements [verify.Judge]. The facts are {builder, level, profile,
// buildType, source {repository, ref, commit}, trigger, invocation, started,
// finished, dependencies, moreDependencies}. The party is the builder, whatever
// its version.
func (j Judge) Judge(st verify.Statement, _ time.Time) (verify.Finding, error) {
	b, err := parse(st.PredicateType, st.Predicate)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the provenance is not usable: %w", err)
	}
	f := verify.Finding{Made: b.finished.Time}
	builder, err := j.builder(b)
	if err != nil {
		return f, err
	}
	t, err := j.buildType(builder, b)
	if err != nil {
		return f, err
	}
	c, err := t.read(b)
	if err != nil {
		return f, fmt.Errorf("builder %q: %w", intoto.Short(b.builder), err)
	}
	var why reasons
	if st.Certificate != nil {
		why.agree(builder.Profile, t, *st.Certificate, b, &c)
	}
	j.source(&why, builder.Profile, c)
	j.parameters(&why, t, b)
	if j.want.SingleSubject && len(st.Subjects) != 1 {
		why.add("it is about %d artifacts, expected one", len(st.Subjects))
	}
	if err := why.err(); err != nil {
		return f, err
	}
	f.Text = fmt.Sprintf("SLSA build level %d by %s, from %s", builder.Level, intoto.Short(b.builder), c.source)
	f.Facts = facts(builder, b, c)
	f.Party = party(builder)
	return f, nil
}

// builder returns the trusted builder that the provenance names, at the level
// that is asked for.
func (j Judge) builder(b *build) (verify.Builder, error) {
	i := slices.IndexFunc(j.want.Builders, func(x verify.Builder) bool { return x.ID.Matches(b.builder) })
	if i < 0 {
		return verify.Builder{}, fmt.Errorf("builder: found %q, expected %s", intoto.Short(b.builder), builders(j.want.Builders))
	}
	found := j.want.Builders[i]
	if found.Level < j.want.Level {
		return verify.Builder{}, fmt.Errorf("builder %q is trusted for SLSA build level %d, expected %d", intoto.Short(b.builder), found.Level, j.want.Level)
	}
	return found, nil
}

func builders(list []verify.Builder) string {
	var names []string
	for _, b := range list {
		names = append(names, b.ID.String())
	}
	return strings.Join(names, " or ")
}

// party names who built it: two versions of a builder are one.
func party(b verify.Builder) string {
	name, _, _ := strings.Cut(b.ID.String(), "@")
	return "builder " + name
}

// buildType returns how provenance of the builder is read.
func (j Judge) buildType(builder verify.Builder, b *build) (buildType, error) {
	known := profiles[builder.Profile].types
	i := slices.IndexFunc(known, func(t buildType) bool { return t.is.Matches(b.buildType) })
	listed := slices.Contains(j.want.BuildTypes, b.buildType)
	switch {
	case len(j.want.BuildTypes) > 0 && !listed:
		return buildType{}, fmt.Errorf("build type: found %q, expected %s", intoto.Short(b.buildType), strings.Join(j.want.BuildTypes, " or "))
	case i >= 0:
		return known[i], nil
	case listed:
		return buildType{read: plain, checked: only(), signed: profiles[builder.Profile].signed}, nil
	default:
		return buildType{}, fmt.Errorf("build type: found %q, which profile %s does not know: list it under buildTypes after reading what it means", intoto.Short(b.buildType), builder.Profile)
	}
}

// source checks what was built, and why.
func (j Judge) source(why *reasons, profile string, c claims) {
	if want := normalRepository(j.want.Repository); c.repository != want {
		why.wrong("source repository", c.repository, want)
	}
	if len(j.want.Refs) > 0 && (c.ref == "" || !verify.MatchesPattern(j.want.Refs, c.ref)) {
		why.wrong("ref", c.ref, strings.Join(j.want.Refs, " or "))
	}
	switch {
	case len(j.want.Triggers) > 0 && !slices.Contains(j.want.Triggers, c.trigger):
		why.wrong("trigger", c.trigger, strings.Join(j.want.Triggers, " or "))
	case len(j.want.Triggers) == 0 && verify.RunsStrangers(profile, c.trigger):
		why.wrong("trigger", c.trigger, "one that runs only what the repository's own people wrote")
	}
}

// reasons collects everything that does not fit, not only the first.
type reasons []string

func (r *reasons) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

// wrong adds that something is not as it must be.
func (r *reasons) wrong(what, found, want string) {
	if found == "" {
		r.add("%s: found nothing, expected %s", what, want)
		return
	}
	r.add("%s: found %q, expected %s", what, intoto.Short(found), want)
}

func (r reasons) err() error {
	const most = 8
	switch {
	case len(r) == 0:
		return nil
	case len(r) > most:
		return errors.New(strings.Join(append(r[:most:most], fmt.Sprintf("and %d more", len(r)-most)), "; "))
	}
	return errors.New(strings.Join(r, "; "))
}

// maxDependencies bounds those in facts.
const maxDependencies = 64

func facts(builder verify.Builder, b *build, c claims) map[string]any {
	deps := []map[string]any{}
	for _, d := range b.dependencies[:min(len(b.dependencies), maxDependencies)] {
		deps = append(deps, map[string]any{"uri": intoto.Short(d.URI), "digest": bounded(d.Digest)})
	}
	return map[string]any{
		"builder": intoto.Short(b.builder), "level": builder.Level, "profile": builder.Profile, "buildType": intoto.Short(b.buildType),
		"source":  map[string]any{"repository": intoto.Short(c.repository), "ref": intoto.Short(c.ref), "commit": c.commit},
		"trigger": intoto.Short(c.trigger), "invocation": intoto.Short(b.invocation),
		"started": b.started.String(), "finished": b.finished.String(),
		"dependencies": deps, "moreDependencies": len(b.dependencies) - len(deps),
	}
}

func bounded(digests map[string]string) map[string]string {
	const most = 8
	out := map[string]string{}
	for alg, sum := range digests {
		if len(out) < most {
			out[intoto.Short(alg)] = intoto.Short(sum)
		}
	}
	return out
}
