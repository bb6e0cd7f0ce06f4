package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Comparison is how an operator's file differs from the one before it, one line
// for each difference. A line names fields and files, never the content of a
// file, and no value of a field that holds free text.
type Comparison struct {
	// Looser is what the new file may grant or trust and the old one did not,
	// and every difference that is not known to be anything else.
	Looser []string `json:"looser,omitempty"`
	// Tighter is what the old file granted or trusted and the new one does not.
	Tighter []string `json:"tighter,omitempty"`
	// Neutral is what neither grants nor takes away.
	Neutral []string `json:"neutral,omitempty"`
}

// Compare returns how a file differs from the one before it. Both must be
// complete, as [Load] returns them. It looks at the fields; for the files that
// they name see [Loaded.Admit].
func Compare(before, after *Operator) Comparison {
	var c Comparison
	b, a := plain(before), plain(after)
	c.entries(before.Allow, after.Allow, list(b["allow"]), list(a["allow"]))
	delete(b, "allow")
	delete(a, "allow")
	c.object(place{}, b, a)
	return c
}

// direction is where a difference leads. The zero value is looser: what nobody
// thought about is.
type direction int

const (
	looser direction = iota
	neutral
	tighter
)

// effect says where each kind of difference of a field leads. The zero value
// makes every difference looser.
type effect struct {
	add, remove  direction // an element of a list, or a value; false, 0 and "" are none
	grow, shrink direction // a number, a duration or a date
	change       direction // any other value for another
	// key is the field that elements of a list are known by. A list without one
	// is a set.
	key string
	// ordered lists have elements without a key that are compared one by one.
	ordered bool
	// all says that an empty list stands for everything.
	all bool
	// first says that the first element of a list has a meaning of its own.
	first bool
	// rank says that the order of elements with a key counts.
	rank bool
	// free says that the names of the fields are the operator's own.
	free bool
	// asks are the fields of a list's elements that ask for something. Of an element
	// with one, what it does not grant any more another may, which does not ask.
	asks []string
	// hidden says that values are not to be shown.
	hidden bool
}

// commitDemands are the fields of a rule about commits that ask for more than a
// signature.
var commitDemands = []string{"approvals", "owners", "userVerified", "source"}

// The effects that most fields have.
var (
	inert   = effect{add: neutral, remove: neutral, grow: neutral, shrink: neutral, change: neutral}
	grants  = effect{remove: tighter}               // more is looser
	demands = effect{add: tighter}                  // less is looser
	bound   = effect{shrink: tighter}               // bigger is looser
	signers = effect{remove: tighter, key: "name"}  // who may sign
	end     = effect{add: tighter, shrink: tighter} // later, or never, is looser
	begin   = effect{add: tighter, grow: tighter}   // sooner, or always, is looser
	opaque  = effect{hidden: true}                  // any difference is looser
	quiet   = effect{hidden: true, add: neutral, remove: neutral, change: neutral}
)

// effects is the table of fields whose differences are not always looser, and
// of lists whose elements have a key. What does not stand here is looser.
//
// Removing a trust rule or a repository pattern of one is looser: a less
// specific rule may then apply. So is every difference of what policies are
// evaluated, but a policy that Holdfast ships added: a policy may hold
// exceptions from others. Removing an environment or a repository is looser,
// since then nothing keeps what was deployed there as it was judged. What names
// a secret that is sent somewhere is looser, and so is what makes Holdfast look
// less often, or tell fewer people: that blinds those who would object.
var effects = map[string]effect{
	"workers":       inert,
	"listen.socket": inert,
	"listen.hooks":  grants,
	"listen.audit":  grants,

	"repositories":                               {key: "name"},
	"repositories[].interval":                    bound,
	"repositories[].anchor":                      grants,
	"repositories[].maxAge":                      bound,
	"repositories[].webhook":                     grants,
	"repositories[].limits.bytes":                bound,
	"repositories[].limits.fileBytes":            bound,
	"repositories[].limits.files":                bound,
	"repositories[].limits.pathLength":           bound,
	"repositories[].oci.annotations":             {add: tighter, free: true},
	"repositories[].oci.annotations.*":           {add: tighter},
	"repositories[].commits.signers":             signers,
	"repositories[].commits.signers[].notAfter":  end,
	"repositories[].commits.signers[].notBefore": begin,
	"repositories[].commits.rules":               {remove: tighter, ordered: true, asks: commitDemands},
	"repositories[].commits.rules[].paths":       grants,
	"repositories[].commits.rules[].signers":     grants,

	"repositories[].commits.signers[].userVerified":      demands,
	"repositories[].commits.rules[].approvals":           demands,
	"repositories[].commits.rules[].approvals.signers":   grants,
	"repositories[].commits.rules[].approvals.threshold": {grow: tighter},
	"repositories[].commits.rules[].owners":              demands,
	"repositories[].commits.rules[].userVerified":        demands,
	"repositories[].commits.rules[].forgeMerges":         grants,
	"repositories[].commits.rules[].forgeMerges.signers": grants,
	"repositories[].commits.rules[].source":              demands,
	"repositories[].commits.rules[].source.signers":      grants,
	"repositories[].commits.rules[].source.verifiers":    grants,
	"repositories[].commits.rules[].source.levels":       demands,
	"repositories[].commits.owners":                      {remove: tighter, free: true},
	"repositories[].commits.owners.*":                    grants,
	"repositories[].commits.tagSigners":                  grants,

	"environments":                                 {key: "name"},
	"environments[].variables":                     opaque,
	"environments[].evidenceGrace":                 inert,
	"environments[].kubernetes.injectors":          {remove: tighter, key: "manager"},
	"environments[].kubernetes.injectors[].kinds":  grants,
	"environments[].kubernetes.injectors[].paths":  grants,
	"environments[].kubernetes.injectors[].images": grants,
	"environments[].kubernetes.injectors[].reason": inert,
	"environments[].kubernetes.lease.off":          grants,
	"environments[].kubernetes.lease.duration":     inert,
	"environments[].terraform.variables":           opaque,
	"environments[].terraform.credentials":         {remove: tighter, free: true},
	"environments[].terraform.credentials.*":       {remove: tighter, free: true},
	"environments[].terraform.timeout":             inert,
	"environments[].terraform.permit":              grants,
	"environments[].terraform.sandbox.none":        grants,
	"environments[].terraform.sandbox.read":        grants,
	"environments[].terraform.sandbox.write":       grants,
	"environments[].terraform.sandbox.egress":      grants,
	"environments[].terraform.sandbox.forwards":    grants,
	"environments[].terraform.sandbox.memory":      bound,
	"environments[].terraform.sandbox.work":        bound,
	"environments[].terraform.sandbox.processes":   bound,

	"allow[].paths":           grants,
	"allow[].environments":    grants,
	"allow[].targets":         grants,
	"allow[].namespaces":      grants,
	"allow[].kinds":           {remove: tighter, all: true},
	"allow[].credentials":     grants,
	"allow[].drift":           {remove: tighter, first: true},
	"allow[].conflicts":       {remove: tighter, first: true},
	"allow[].replace":         grants,
	"allow[].serviceAccounts": {first: true},
	"allow[].ignore.paths":    grants,
	"allow[].ignore.days":     bound,
	"allow[].prune":           grants,
	"allow[].adoptFrom":       grants,
	"allow[].clusterPowers":   grants,

	"trust.roots":                    {key: "name", add: neutral, remove: neutral},
	"trust.roots[].log":              {grow: tighter},
	"trust.roots[].timestamps":       {add: tighter, grow: tighter},
	"trust.roots[].maxAge":           bound,
	"trust.signers":                  {key: "name", add: neutral, remove: neutral},
	"trust.signers[].key.pem":        opaque,
	"trust.signers[].unlogged":       grants,
	"trust.signers[].notAfter":       end,
	"trust.signers[].notBefore":      begin,
	"trust.signers[].identity.build": demands,
	"trust.rules":                    {key: "name", rank: true},
	"trust.rules[].until":            end,
	"trust.rules[].require":          {add: tighter, key: onlyField},
	"trust.rules[].require[]":        {free: true},

	"trust.rules[].require[].*.signers":        grants,
	"trust.rules[].require[].*.threshold":      {add: tighter, grow: tighter},
	"trust.rules[].require[].*.maxAge":         {add: tighter, shrink: tighter},
	"trust.rules[].require[].*.formats":        {remove: tighter, all: true},
	"trust.rules[].require[].*.builders":       grants,
	"trust.rules[].require[].*.level":          {add: tighter, grow: tighter},
	"trust.rules[].require[].*.verifiers":      grants,
	"trust.rules[].require[].*.levels":         demands,
	"trust.rules[].require[].*.attributes":     demands,
	"trust.rules[].require[].*.scanMaxAge":     bound,
	"trust.rules[].require[].*.databaseMaxAge": bound,
	"trust.rules[].require[].*.allowWarnings":  grants,
	"trust.rules[].require[].*.allowV02":       grants,
	"trust.rules[].require[].*.sarif":          demands,
	"trust.rules[].require[].*.singleSubject":  demands,
	"trust.exceptions":                         grants,
	"trust.exceptions.signers":                 signers,

	"registries":                {key: "host"},
	"registries[].insecureHTTP": grants,
	"registries[].realms":       grants,

	// A set counts where an environment names it, and that is another field.
	"policies":           {key: "name", add: neutral, remove: neutral},
	"policies[].library": demands,
	"policies[].data":    opaque,

	"drift.rules":            {key: "name", rank: true},
	"drift.quiet":            {remove: tighter, key: "name"},
	"drift.quiet[].duration": bound,
	"drift.breakGlass":       grants,

	"limits.maxDeletes":     bound,
	"limits.maxDeleteShare": bound,

	"kinds":                     {key: "kind"},
	"kinds[].health":            inert,
	"kinds[].health.current":    inert,
	"kinds[].health.inProgress": inert,
	"kinds[].health.failed":     inert,

	"orders.signers":             signers,
	"orders.signers[].notAfter":  end,
	"orders.signers[].notBefore": begin,
	"orders.maxAge":              bound,

	"signed":                     demands,
	"signed.signers":             signers,
	"signed.signers[].notAfter":  end,
	"signed.signers[].notBefore": begin,
	"signed.counter":             inert,
	"signed.files":               inert,

	"notify.receivers":            {key: "name"},
	"notify.receivers[].template": quiet,
	"notify.receivers[].repeat":   inert,
	"notify.routes":               {hidden: true},
	"notify.link":                 quiet,

	"telemetry.otlp":        grants,
	"telemetry.headers":     {remove: tighter, free: true},
	"telemetry.headers.*":   grants,
	"telemetry.sampleRatio": inert,
}

// place is where a value stands: for people, and as the table calls it.
type place struct{ path, pattern string }

func (p place) field(name string) place {
	pattern := name
	if effects[p.pattern].free {
		pattern = "*"
	}
	if p.path == "" {
		return place{name, pattern}
	}
	return place{p.path + "." + name, p.pattern + "." + pattern}
}

func (p place) element(name any) place {
	return place{fmt.Sprintf("%s[%v]", p.path, name), p.pattern + "[]"}
}

func (c *Comparison) note(d direction, p place, format string, args ...any) {
	line := p.path + ": " + fmt.Sprintf(format, args...)
	switch d {
	case neutral:
		c.Neutral = append(c.Neutral, line)
	case tighter:
		c.Tighter = append(c.Tighter, line)
	default:
		c.Looser = append(c.Looser, line)
	}
}

// object compares two objects field by field.
func (c *Comparison) object(p place, before, after map[string]any) {
	fields := maps.Clone(before)
	maps.Copy(fields, after)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		c.value(p.field(name), before[name], after[name])
	}
}

// value compares two values; nil is one that is not there.
func (c *Comparison) value(p place, before, after any) {
	e := effects[p.pattern]
	if reflect.DeepEqual(before, after) {
		return
	}
	_, wasList := before.([]any)
	_, isList := after.([]any)
	b, wasObject := before.(map[string]any)
	a, isObject := after.(map[string]any)
	switch {
	case e.hidden:
		c.note(e.change, p, "was changed")
	case wasList || isList:
		c.list(p, e, list(before), list(after))
	case wasObject && isObject:
		c.object(p, b, a)
	case before == nil:
		c.note(e.add, p, "was added%s", shown(after))
	case after == nil:
		c.note(e.remove, p, "was removed%s", shown(before))
	default:
		c.note(e.between(before, after), p, "was%s, is%s", shown(before), shown(after))
	}
}

// between returns where it leads that one value takes the place of another.
func (e effect) between(before, after any) direction {
	b, okB := magnitude(before)
	a, okA := magnitude(after)
	switch {
	case !okA || !okB:
		return e.change
	case a > b:
		return e.grow
	default:
		return e.shrink
	}
}

// unlimited is more than any number; -1 stands for it in the file.
const unlimited = float64(1 << 62)

// magnitude returns a number that grows with the value.
func magnitude(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		if v < 0 {
			return unlimited, true
		}
		return v, true
	case string:
		if d, err := time.ParseDuration(v); err == nil {
			return d.Seconds(), true
		}
		if t, err := time.Parse(time.RFC3339, v); err == nil {
			return float64(t.UnixNano()), true
		}
	}
	return 0, false
}

// list compares two lists.
func (c *Comparison) list(p place, e effect, before, after []any) {
	switch {
	case e.all && len(before) == 0:
		c.note(tighter, p, "was everything, is%s", shown(after))
		return
	case e.all && len(after) == 0:
		c.note(looser, p, "was%s, is everything", shown(before))
		return
	case e.first && !reflect.DeepEqual(before[:min(1, len(before))], after[:min(1, len(after))]):
		c.note(looser, p, "was%s, is%s", shown(before), shown(after))
		return
	case e.ordered:
		for _, s := range align(before, after) {
			c.slot(p, e, s)
		}
		return
	}
	if b, ok := keyed(before, e.key); ok {
		if a, ok := keyed(after, e.key); ok {
			c.elements(p, e, b, a)
			if e.rank && !slices.Equal(common(before, a, e.key), common(after, b, e.key)) {
				c.note(looser, p, "the order was changed")
			}
			return
		}
	}
	c.set(p, e, before, after)
}

// elements compares lists whose elements have a key.
func (c *Comparison) elements(p place, e effect, before, after map[string]map[string]any) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b, was := before[name]
		a, is := after[name]
		switch at := p.element(name); {
		case !was:
			c.note(e.add, at, "was added")
		case !is:
			c.note(e.remove, at, "was removed")
		default:
			c.object(at, b, a)
		}
	}
}

// set compares lists whose order does not count.
func (c *Comparison) set(p place, e effect, before, after []any) {
	holds := func(list []any, v any) bool {
		return slices.ContainsFunc(list, func(w any) bool { return reflect.DeepEqual(v, w) })
	}
	for _, v := range after {
		if !holds(before, v) {
			c.note(e.add, p, "%s was added", text(v))
		}
	}
	for _, v := range before {
		if !holds(after, v) {
			c.note(e.remove, p, "%s was removed", text(v))
		}
	}
}

// slot is an element of an ordered list, before and after. Where there is none
// the index is -1.
type slot struct {
	before, after   any
	was, is, follow int // follow is the index in the new list of what comes next
}

func (c *Comparison) slot(p place, e effect, s slot) {
	switch {
	case s.was < 0:
		c.note(e.add, p.element(s.is), "was added")
	case s.is < 0:
		gone, _ := s.before.(map[string]any)
		if e.asking(gone) {
			e.remove = looser
		}
		c.note(e.remove, p.element(s.was), "was removed")
	default:
		b, _ := s.before.(map[string]any)
		a, _ := s.after.(map[string]any)
		if !e.asking(b) {
			c.object(p.element(s.is), b, a)
			return
		}
		var granted Comparison
		granted.object(p.element(s.is), e.split(b, false), e.split(a, false))
		granted.shadowed("another rule")
		c.Looser = append(c.Looser, granted.Looser...)
		c.object(p.element(s.is), e.split(b, true), e.split(a, true))
	}
}

// asking reports whether an element asks for something.
func (e effect) asking(element map[string]any) bool { return len(e.split(element, true)) > 0 }

// split returns the fields of an element that ask for something, or the others.
func (e effect) split(element map[string]any, asks bool) map[string]any {
	out := map[string]any{}
	for name, v := range element {
		if slices.Contains(e.asks, name) == asks {
			out[name] = v
		}
	}
	return out
}

// align pairs the elements of two ordered lists that differ. What is equal at
// both ends is left out; between, as many as there are in both are pairs.
func align(before, after []any) []slot {
	start := 0
	for start < len(before) && start < len(after) && reflect.DeepEqual(before[start], after[start]) {
		start++
	}
	was, is := len(before), len(after)
	for was > start && is > start && reflect.DeepEqual(before[was-1], after[is-1]) {
		was, is = was-1, is-1
	}
	var out []slot
	for i := start; i < was || i < is; i++ {
		s := slot{was: -1, is: -1, follow: min(i+1, is)}
		if i < was {
			s.was, s.before = i, before[i]
		}
		if i < is {
			s.is, s.after = i, after[i]
		}
		out = append(out, s)
	}
	return out
}

// entries compares the operator's map, where the first entry that fits counts:
// what one entry does not grant any more, a later one may, with other kinds and
// namespaces.
func (c *Comparison) entries(typedBefore, typedAfter []Allow, before, after []any) {
	p := place{"allow", "allow"}
	for _, s := range align(before, after) {
		var d Comparison
		d.slot(p, effect{remove: tighter}, s)
		if s.was >= 0 {
			for _, later := range typedAfter[s.follow:] {
				if typedBefore[s.was].overlaps(later) {
					d.shadowed("a later entry")
					break
				}
			}
		}
		c.Looser = append(c.Looser, d.Looser...)
		c.Tighter = append(c.Tighter, d.Tighter...)
		c.Neutral = append(c.Neutral, d.Neutral...)
	}
}

// shadowed makes looser what is tighter only as long as no other entry applies.
func (c *Comparison) shadowed(by string) {
	for _, line := range c.Tighter {
		c.Looser = append(c.Looser, line+"; "+by+" may apply instead")
	}
	c.Tighter = nil
}

// overlaps reports whether a stack may fit both entries.
func (a Allow) overlaps(b Allow) bool {
	shares := func(x, y []string) bool {
		return slices.ContainsFunc(x, func(s string) bool { return slices.Contains(y, s) })
	}
	if a.Repository != b.Repository || !shares(a.Environments, b.Environments) || !shares(a.Targets, b.Targets) {
		return false
	}
	for _, x := range a.Paths {
		for _, y := range b.Paths {
			x, y := literal(x), literal(y)
			if strings.HasPrefix(x, y) || strings.HasPrefix(y, x) {
				return true
			}
		}
	}
	return false
}

// literal returns what a glob begins with. Two globs match a common path only if
// one of their beginnings is a beginning of the other.
func literal(glob string) string {
	if i := strings.IndexAny(glob, `*?[{\`); i >= 0 {
		return glob[:i]
	}
	return glob
}

// files compares the content of the files that two versions name. A file that
// only one of them names is judged by the field that names it, but for those in
// a folder of policies.
func (c *Comparison) files(before, after map[string]digest.Digest, folders []string) {
	names := map[string]digest.Digest{}
	maps.Copy(names, before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, named := before[name]
		is, names := after[name]
		inFolder := slices.ContainsFunc(folders, func(dir string) bool {
			rel, err := filepath.Rel(dir, name)
			return err == nil && filepath.IsLocal(rel)
		})
		switch {
		case was == is && named == names, (!named || !names) && !inFolder:
		case !named:
			c.Looser = append(c.Looser, fmt.Sprintf("file %s: was added", name))
		case !names:
			c.Looser = append(c.Looser, fmt.Sprintf("file %s: was removed", name))
		case is == "":
			c.Looser = append(c.Looser, fmt.Sprintf("file %s: is not there any more", name))
		default:
			c.Looser = append(c.Looser, fmt.Sprintf("file %s: has other content, %s", name, is))
		}
	}
}

// commonFolders returns the folders of policies that both name.
func commonFolders(a, b *Operator) []string {
	var out []string
	for _, x := range a.Policies {
		if x.Path != "" && slices.ContainsFunc(b.Policies, func(y Policy) bool { return y.Path == x.Path }) {
			out = append(out, x.Path)
		}
	}
	return out
}

// plain returns the JSON form of a configuration.
func plain(o *Operator) map[string]any {
	b, err := json.Marshal(o)
	if err != nil { // plain data
		panic("internal/config: " + err.Error())
	}
	out := map[string]any{}
	if err := json.Unmarshal(b, &out); err != nil {
		panic("internal/config: " + err.Error())
	}
	return out
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// keyed returns the elements by their key, or false where one has none or two
// have the same.
func keyed(elements []any, key string) (map[string]map[string]any, bool) {
	out := map[string]map[string]any{}
	for _, v := range elements {
		o, _ := v.(map[string]any)
		name, _ := o[key].(string)
		if key == onlyField {
			name = fieldOf(o)
		}
		if _, twice := out[name]; twice || name == "" {
			return nil, false
		}
		out[name] = o
	}
	return out, true
}

// onlyField stands for the key of a list of which each element has one field.
const onlyField = "*"

// fieldOf returns the name of the one field of o, with the kind or the type of
// what it holds: there may be several of one name.
func fieldOf(o map[string]any) string {
	if len(o) != 1 {
		return ""
	}
	for name, v := range o {
		inner, _ := v.(map[string]any)
		for _, k := range []string{"kind", "type"} {
			if s, _ := inner[k].(string); s != "" {
				name += " " + s
			}
		}
		return name
	}
	return ""
}

// common returns the keys of the elements that others has too, in order.
func common(elements []any, others map[string]map[string]any, key string) []string {
	var out []string
	for _, v := range elements {
		o, _ := v.(map[string]any)
		if name, _ := o[key].(string); others[name] != nil {
			out = append(out, name)
		}
	}
	return out
}

// maxShown is how much of a value a line shows, in bytes.
const maxShown = 120

// shown returns " VALUE", or nothing for an object: it is named by its path.
func shown(v any) string {
	if _, ok := v.(map[string]any); ok {
		return ""
	}
	return " " + text(v)
}

// text returns a value as JSON, or as it is if it is a string, cut.
func text(v any) string {
	s, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil { // it was JSON a moment ago
			panic("internal/config: " + err.Error())
		}
		s = string(b)
	}
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
